//! Clouds to test with: networks, routers, groups and ports of any number of hosts, and what each host is told of them.
//!
//! Everything is named by small numbers, so that a failure prints the same ids each time.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it, as a module of its own")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub mod random;

use dataplane::PortNumbers;
use model::address_group::AddressGroup;
use model::arrival::Arrival;
use model::balancer::{Balancer, Listener, Member, Persistence, Transport};
use model::firewall::{Carried, Ends, Firewall, FirewallAction, FirewallPolicy, FirewallRule};
use model::mirror::{Mirror, MirrorDirection, MirrorPlace, MirrorTarget};
use model::network::{
    Binding, ExternalGateway, FixedIp, FloatingIp, ForwardedProtocol, GatewayHost, Ipv6Gateway, Network, Port,
    PortForwarding, Router, RouterInterface, Snat, StaticRoute, SubPort, Subnet,
};
use model::provider::{Provider, Segmentation};
use model::security::{Direction, Ethertype, PortRange, Protocol, Remote, Rule, SecurityGroup};
use model::spec::HostNetwork;
use model::{
    AddressGroupId, BalancerId, FirewallPolicyId, FirewallRuleId, HostId, Mac, MachineId, NetworkId, PortId, RouterId,
    RuleId, SecurityGroupId, SubnetId, Vni,
};
use openflow::flow::PortNo;
use uuid::Uuid;

/// The OpenFlow port of the tunnel on every host.
pub const VXLAN: PortNo = PortNo(1);

/// A cloud of some hosts.
#[derive(Debug, Clone, Default)]
pub struct Cloud {
    pub networks: Vec<Network>,
    /// The IPv4 subnet of each network, in the same order.
    pub subnets: Vec<Subnet>,
    /// The IPv6 subnets of those networks that have one.
    pub subnets6: Vec<Subnet>,
    pub routers: Vec<Router>,
    pub firewall_policies: Vec<FirewallPolicy>,
    pub address_groups: Vec<AddressGroup>,
    pub groups: Vec<SecurityGroup>,
    pub ports: Vec<Port>,
    pub balancers: Vec<Balancer>,
}

fn id(kind: u128, number: usize) -> Uuid {
    Uuid::from_u128(kind << 64 | number as u128)
}

pub fn host_id(host: usize) -> HostId {
    HostId::from_uuid(id(1, host))
}

/// The tunnel endpoint of a host.
pub fn endpoint(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 20, 0, u8::try_from(host + 1).unwrap())
}

pub fn tcp(first: u16, last: u16) -> Protocol {
    Protocol::Tcp(PortRange::new(first, last).unwrap())
}

pub fn udp(first: u16, last: u16) -> Protocol {
    Protocol::Udp(PortRange::new(first, last).unwrap())
}

/// TCP to one port.
pub fn carried_tcp(port: u16) -> Carried {
    Carried::Tcp(Ends { source: PortRange::ALL, destination: PortRange::new(port, port).unwrap() })
}

/// UDP to one port.
pub fn carried_udp(port: u16) -> Carried {
    Carried::Udp(Ends { source: PortRange::ALL, destination: PortRange::new(port, port).unwrap() })
}

pub const PING: Protocol = Protocol::Icmp { kind: None, code: None };

impl Cloud {
    /// Adds a network with one subnet of it; gives the number of both.
    pub fn network(&mut self, name: &str, cidr: &str) -> usize {
        let number = self.networks.len();
        let network = NetworkId::from_uuid(id(2, number));
        let vni = Vni::try_from(5001 + u32::try_from(number).unwrap()).unwrap();
        self.networks.push(Network {
            id: network,
            name: name.to_owned(),
            vni,
            mtu: 1450,
            provider: None,
            routed_prefixes: Vec::new(),
        });
        let cidr: ipnet::IpNet = cidr.parse().unwrap();
        self.subnets.push(Subnet {
            id: SubnetId::from_uuid(id(3, number)),
            name: format!("{name}-subnet"),
            network,
            cidr,
            gateway: cidr.hosts().next(),
            dhcp: true,
            dns: vec![IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9))],
            announced: model::network::Announced::default(),
        });
        number
    }

    /// Gives a network an IPv6 subnet, and its gateway the first address. Ports made after that have an address of it, too.
    pub fn ipv6(&mut self, network: usize, cidr: &str) {
        let cidr: ipnet::Ipv6Net = cidr.parse().unwrap();
        self.subnets6.push(Subnet {
            id: SubnetId::from_uuid(id(3, 1000 + network)),
            name: format!("{}-subnet6", self.networks[network].name),
            network: self.networks[network].id,
            cidr: cidr.into(),
            gateway: Some(nth(cidr, 1).into()),
            dhcp: true,
            dns: vec!["2620:fe::9".parse().unwrap()],
            announced: model::network::Announced::default(),
        });
    }

    /// Makes a network a part of a physical one: a VLAN, or what has no tag.
    pub fn provide(&mut self, network: usize, physical: &str, vlan: Option<u16>) {
        let vlan = vlan.map(|number| Segmentation::Vlan(number.try_into().unwrap()));
        let (physical_network, segmentation) = (physical.parse().unwrap(), vlan.unwrap_or(Segmentation::Flat));
        self.networks[network].provider = Some(Provider { physical_network, segmentation });
    }

    /// The IPv6 subnet of a network.
    pub fn subnet6(&self, network: usize) -> Option<&Subnet> {
        self.subnets6.iter().find(|subnet| subnet.network == self.networks[network].id)
    }

    /// Adds a router with a foot at the gateway of each subnet of these networks.
    pub fn router(&mut self, name: &str, networks: &[usize]) -> usize {
        let number = self.routers.len();
        let foot = |kind: u8, subnet: &Subnet, network: usize| RouterInterface {
            subnet: subnet.id,
            address: subnet.gateway.unwrap(),
            mac: Mac::new([2, 1, 0, kind, u8::try_from(number).unwrap(), u8::try_from(network).unwrap()]),
        };
        let plain = networks.iter().map(|network| foot(0, &self.subnets[*network], *network));
        let six = networks.iter().filter_map(|network| Some(foot(6, self.subnet6(*network)?, *network)));
        let interfaces = plain.chain(six).collect();
        let key = u16::try_from(number + 1).unwrap();
        let id = RouterId::from_uuid(id(4, number));
        let (name, routes) = (name.to_owned(), Vec::new());
        self.routers.push(Router {
            id,
            name,
            key,
            interfaces,
            routes,
            external: None,
            ipv6_gateway: None,
            firewall: None,
        });
        number
    }

    /// Leads a router out to the subnet of a provider network.
    pub fn lead_out(&mut self, router: usize, network: usize) {
        let subnet = self.subnets[network].id;
        self.routers[router].external = Some(ExternalGateway { subnet, snat: None, floating_ips: Vec::new() });
    }

    /// Has the data centre route prefixes of IPv6 to a provider network.
    pub fn routed(&mut self, network: usize, prefixes: &[&str]) {
        self.networks[network].routed_prefixes = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
    }

    /// Leads a router out by IPv6 to that subnet of a provider network, where these hosts may have its address; `last` is the last octet of that and of its MAC
    /// address.
    pub fn lead_out6(&mut self, router: usize, network: usize, hosts: &[usize], last: u8) -> (Ipv6Addr, Mac) {
        let subnet = self.subnet6(network).unwrap();
        let ipnet::IpNet::V6(cidr) = subnet.cidr else { panic!("IPv6 only") };
        let (subnet, address) = (subnet.id, nth(cidr, last.into()));
        let mac = Mac::new([2, 3, 0, 6, 0, last]);
        let gateway = |host: &usize| GatewayHost { host: host_id(*host), tunnel: endpoint(*host) };
        let gateways = hosts.iter().map(gateway).collect();
        self.routers[router].ipv6_gateway = Some(Ipv6Gateway { subnet, address, mac, gateways });
        (address, mac)
    }

    /// Gives a network's IPv6 subnet another prefix, and its ports and routers the same place there.
    pub fn renumber6(&mut self, network: usize, cidr: &str) {
        let cidr: ipnet::Ipv6Net = cidr.parse().unwrap();
        let id = self.networks[network].id;
        let Some(subnet) = self.subnets6.iter_mut().find(|subnet| subnet.network == id) else { return };
        let moved = |address: IpAddr| match address {
            IpAddr::V6(address) => IpAddr::V6(nth(cidr, address.to_bits() & u128::from(u64::MAX))),
            IpAddr::V4(_) => address,
        };
        (subnet.cidr, subnet.gateway) = (cidr.into(), subnet.gateway.map(moved));
        let subnet = subnet.id;
        for foot in self.routers.iter_mut().flat_map(|router| &mut router.interfaces).filter(|it| it.subnet == subnet) {
            foot.address = moved(foot.address);
        }
        for fixed in self.ports.iter_mut().flat_map(|port| &mut port.addresses).filter(|it| it.subnet == subnet) {
            fixed.address = moved(fixed.address);
        }
    }

    /// Gives a router an address on its external subnet, which other ports share; these hosts may be its gateway, the first one is. `last` is the last
    /// octet of the address and of its MAC address.
    pub fn share(&mut self, router: usize, hosts: &[usize], last: u8) -> (Ipv4Addr, Mac) {
        let external = self.routers[router].external.as_mut().unwrap();
        let subnet = self.subnets.iter().find(|subnet| subnet.id == external.subnet).unwrap();
        let IpAddr::V4(first) = subnet.cidr.network() else { panic!("IPv4 only") };
        let [a, b, c, _] = first.octets();
        let (address, mac) = (Ipv4Addr::new(a, b, c, last), Mac::new([2, 3, 0, 0, 0, last]));
        let gateway = |host: &usize| GatewayHost { host: host_id(*host), tunnel: endpoint(*host) };
        let forwardings = external.snat.take().map(|snat| snat.forwardings).unwrap_or_default();
        external.snat = Some(Snat { address, mac, gateways: hosts.iter().map(gateway).collect(), forwardings });
        (address, mac)
    }

    /// Forwards a port of the router's address to one of a port behind it.
    pub fn forward(
        &mut self,
        router: usize,
        (protocol, external_port): (ForwardedProtocol, u16),
        (port, internal_port): (usize, u16),
    ) {
        let (internal_ip_address, port) = (self.address(port), self.ports[port].id);
        let snat = self.routers[router].external.as_mut().unwrap().snat.as_mut().unwrap();
        snat.forwardings.push(PortForwarding { protocol, external_port, port, internal_ip_address, internal_port });
    }

    /// Gives a port an address on the external subnet of a router; `last` is the last octet of it and of its MAC address.
    pub fn float(&mut self, router: usize, port: usize, last: u8) -> FloatingIp {
        let fixed = self.address(port);
        let external = self.routers[router].external.as_mut().unwrap();
        let subnet = self.subnets.iter().find(|subnet| subnet.id == external.subnet).unwrap();
        let IpAddr::V4(first) = subnet.cidr.network() else { panic!("IPv4 only") };
        let [a, b, c, _] = first.octets();
        let (address, mac) = (Ipv4Addr::new(a, b, c, last), Mac::new([2, 3, 0, 0, 0, last]));
        let floating = FloatingIp { address, mac, port: self.ports[port].id, fixed };
        external.floating_ips.push(floating);
        floating
    }

    /// Gives a router a route.
    pub fn route(&mut self, router: usize, destination: &str, next_hop: impl Into<IpAddr>) {
        let route = StaticRoute { destination: destination.parse().unwrap(), next_hop: next_hop.into() };
        self.routers[router].routes.push(route);
    }

    /// Adds a group that lets everything out.
    pub fn group(&mut self, name: &str) -> usize {
        let number = self.groups.len();
        let key = u32::try_from(number + 1).unwrap();
        let id = SecurityGroupId::from_uuid(id(5, number));
        self.groups.push(SecurityGroup { id, name: name.to_owned(), key, stateful: true, rules: Vec::new() });
        self.rule(number, Direction::Egress, Protocol::Any, Remote::Any);
        number
    }

    /// Gives a router a firewall of two new policies without a rule; gives the numbers of ingress and egress.
    pub fn wall(&mut self, router: usize) -> (usize, usize) {
        let policies = ["in", "out"].map(|way| {
            let number = self.firewall_policies.len();
            let id = FirewallPolicyId::from_uuid(id(12, number));
            self.firewall_policies.push(FirewallPolicy { id, name: format!("{way}-{number}"), rules: Vec::new() });
            number
        });
        let [ingress, egress] = policies.map(|number| Some(self.firewall_policies[number].id));
        self.routers[router].firewall = Some(Firewall { ingress, egress });
        (policies[0], policies[1])
    }

    /// Puts a rule of IPv4 at a place in a firewall policy, named by its number.
    pub fn judge(
        &mut self,
        policy: usize,
        at: usize,
        action: FirewallAction,
        protocol: Carried,
        (source, destination): (Option<&str>, Option<&str>),
    ) -> &mut FirewallRule {
        let keys = self.firewall_policies.iter().flat_map(|policy| &policy.rules).map(|rule| rule.key);
        let key = keys.max().unwrap_or(0) + 1;
        let prefix = |text: Option<&str>| text.map(|text| text.parse().unwrap());
        let rule = FirewallRule {
            id: FirewallRuleId::from_uuid(id(13, usize::try_from(key).unwrap())),
            name: format!("rule-{key}"),
            key,
            rank: 0,
            enabled: true,
            action,
            ethertype: Ethertype::IPv4,
            protocol,
            source: prefix(source),
            destination: prefix(destination),
        };
        self.firewall_policies[policy].insert(at, rule);
        &mut self.firewall_policies[policy].rules[at]
    }

    /// Adds an address group.
    pub fn addresses(&mut self, name: &str, prefixes: &[&str]) -> usize {
        let number = self.address_groups.len();
        let id = AddressGroupId::from_uuid(id(8, number));
        let addresses = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
        let key = u32::try_from(number + 1).unwrap();
        self.address_groups.push(AddressGroup { id, name: name.to_owned(), key, addresses });
        number
    }

    /// The remote side "addresses of this address group".
    pub fn within(&self, group: usize) -> Remote {
        Remote::Addresses(self.address_groups[group].id)
    }

    /// Adds an IPv4 rule to a group.
    pub fn rule(&mut self, group: usize, direction: Direction, protocol: Protocol, remote: Remote) {
        self.rule_of(Ethertype::IPv4, group, direction, protocol, remote);
    }

    /// Adds a rule to a group.
    pub fn rule_of(
        &mut self,
        ethertype: Ethertype,
        group: usize,
        direction: Direction,
        protocol: Protocol,
        remote: Remote,
    ) {
        let number = self.groups.iter().map(|group| group.rules.len()).sum::<usize>() + 1;
        let id = RuleId::from_uuid(Uuid::from_u128((number as u128) << 96));
        self.groups[group].rules.push(Rule { id, direction, ethertype, protocol, remote });
    }

    pub fn allow(&mut self, group: usize, protocol: Protocol, remote: Remote) {
        self.rule(group, Direction::Ingress, protocol, remote);
    }

    /// Lets in by IPv6.
    pub fn allow6(&mut self, group: usize, protocol: Protocol, remote: Remote) {
        self.rule_of(Ethertype::IPv6, group, Direction::Ingress, protocol, remote);
    }

    /// The remote side "members of this group".
    pub fn members(&self, group: usize) -> Remote {
        Remote::Group(self.groups[group].id)
    }

    /// Adds a port on a network (and its subnet), plugged in on a host; `last` is the last octet of its address.
    pub fn port(&mut self, name: &str, network: usize, host: usize, last: u8, groups: &[usize]) -> usize {
        let number = self.ports.len();
        let IpAddr::V4(first) = self.subnets[network].cidr.network() else { panic!("IPv4 only") };
        let [a, b, c, _] = first.octets();
        let key = u32::try_from(number + 1).unwrap();
        let fixed = FixedIp { subnet: self.subnets[network].id, address: Ipv4Addr::new(a, b, c, last).into() };
        let six = self.subnet6(network).map(|subnet| {
            let ipnet::IpNet::V6(prefix) = subnet.cidr else { panic!("{}: no IPv6", subnet.cidr) };
            FixedIp { subnet: subnet.id, address: nth(prefix, last.into()).into() }
        });
        self.ports.push(Port {
            id: PortId::from_uuid(id(6, number)),
            name: name.to_owned(),
            network: self.networks[network].id,
            key,
            mac: Mac::new([2, 2, 0, 0, 0, u8::try_from(number + 1).unwrap()]),
            addresses: [fixed].into_iter().chain(six).collect(),
            groups: groups.iter().map(|group| self.groups[*group].id).collect(),
            allowed_pairs: Vec::new(),
            qos: model::qos::Qos::default(),
            port_security: true,
            trunk: None,
            mirror: None,
            arriving: None,
            binding: Some(Binding {
                machine: MachineId::from_uuid(id(7, number)),
                hostname: name.to_owned(),
                host: host_id(host),
                tunnel: endpoint(host),
            }),
        });
        number
    }

    /// Adds a load balancer on a network, by IPv6 if told so; `last` is the last octet of its address and of its MAC address.
    pub fn balancer(&mut self, name: &str, network: usize, last: u8, six: bool) -> usize {
        let number = self.balancers.len();
        let subnet = if six { self.subnet6(network).unwrap() } else { &self.subnets[network] };
        let address = match subnet.cidr {
            ipnet::IpNet::V4(cidr) => IpAddr::V4((cidr.network().to_bits() + u32::from(last)).into()),
            ipnet::IpNet::V6(cidr) => nth(cidr, last.into()).into(),
        };
        self.balancers.push(Balancer {
            id: BalancerId::from_uuid(id(10, number)),
            name: name.to_owned(),
            key: u16::try_from(number + 1).unwrap(),
            subnet: subnet.id,
            address,
            mac: Mac::new([2, 4, 0, u8::from(six), 0, last]),
            listeners: Vec::new(),
        });
        number
    }

    /// Has a load balancer listen, for members that are ports, each with the port that it listens on and a weight.
    pub fn listen(&mut self, balancer: usize, protocol: Transport, port: u16, members: &[(usize, u16, u16)]) {
        let is_plain = self.balancers[balancer].address.is_ipv4();
        let member = |(own, port, weight): &(usize, u16, u16)| {
            let address = if is_plain { self.address(*own).into() } else { self.address6(*own).unwrap().into() };
            Member { address, port: *port, weight: *weight, in_error: false }
        };
        let members = members.iter().map(member).collect();
        let persistence = Persistence::None;
        self.balancers[balancer].listeners.push(Listener {
            protocol,
            port,
            persistence,
            monitor: None,
            connection_limit: None,
            members,
        });
    }

    /// Makes a port a sub-port of another one, in a VLAN: it is where that one is.
    pub fn trunk(&mut self, port: usize, parent: usize, vlan: u16) {
        let (parent, binding) = (self.ports[parent].id, self.ports[parent].binding.clone());
        self.ports[port].trunk = Some(SubPort { parent, vlan: vlan.try_into().unwrap() });
        self.ports[port].binding = binding;
    }

    /// Has a port awaited on another host, with its sub-ports.
    pub fn await_on(&mut self, port: usize, host: usize, serial: u64) {
        let tap = self.ports[port].tap_port();
        for port in self.ports.iter_mut().filter(|port| port.tap_port() == tap) {
            port.arriving = Some(Arrival { host: host_id(host), tunnel: endpoint(host), serial });
        }
    }

    /// Has what is awaited on a host be there.
    pub fn arrive(&mut self, host: usize) {
        let came = self.ports.iter().filter_map(|port| Some((port.tap_port(), port.arriving?.serial))).collect();
        for port in &mut self.ports {
            *port = port.clone().once_arrived(host_id(host), &came);
        }
    }

    /// Has a port get copies of the frames of another one.
    pub fn mirror(&mut self, port: usize, to: usize, direction: MirrorDirection) {
        self.ports[port].mirror = Some(Mirror { to: self.ports[to].id, direction });
    }

    /// The VNI of the copies for a port.
    pub fn mirror_vni(&self, port: usize) -> u32 {
        Vni::MIRRORS.start() + self.ports[port].key
    }

    fn mirrors(&self) -> BTreeMap<PortId, MirrorTarget> {
        let wanted: BTreeSet<PortId> =
            self.ports.iter().filter_map(|port| port.mirror).map(|mirror| mirror.to).collect();
        let targets = (0..self.ports.len()).filter(|port| wanted.contains(&self.ports[*port].id));
        let place = |port: &Port| {
            let binding = port.binding.as_ref()?;
            Some(MirrorPlace { host: binding.host, tunnel: binding.tunnel })
        };
        let target = |number: usize| {
            let port = &self.ports[number];
            let vni = Vni::try_from(self.mirror_vni(number)).unwrap();
            let sources = self.ports.iter().filter(|source| source.mirror.is_some_and(|mirror| mirror.to == port.id));
            let senders: BTreeSet<MirrorPlace> = sources.filter_map(place).collect();
            let senders = senders.into_iter().collect();
            (port.id, MirrorTarget { port: port.id, name: port.name.clone(), vni, place: place(port), senders })
        };
        targets.map(target).collect()
    }

    /// What a host is told.
    pub fn host(&self, host: usize) -> HostNetwork {
        let network = HostNetwork {
            host: host_id(host),
            tunnel: endpoint(host),
            networks: self.networks.iter().map(|network| (network.id, network.clone())).collect(),
            subnets: self.subnets.iter().chain(&self.subnets6).map(|subnet| (subnet.id, subnet.clone())).collect(),
            routers: self.routers.iter().map(|router| (router.id, router.clone())).collect(),
            firewall_policies: self.firewall_policies.iter().map(|policy| (policy.id, policy.clone())).collect(),
            address_groups: self.address_groups.iter().map(|group| (group.id, group.clone())).collect(),
            groups: self.groups.iter().map(|group| (group.id, group.clone())).collect(),
            ports: self.ports.iter().map(|port| (port.id, port.clone())).collect(),
            balancers: self.balancers.iter().map(|balancer| (balancer.id, balancer.clone())).collect(),
            mirrors: self.mirrors(),
        };
        network.check().unwrap();
        network
    }

    /// The OpenFlow ports of a host: 10 and the number of the port in the cloud. Sub-ports have none of their own.
    pub fn numbers(&self, host: usize) -> PortNumbers {
        let host = host_id(host);
        let is_wired = |port: &&Port| port.is_on(host) || port.is_awaited_on(host);
        let here = self.ports.iter().filter(|port| port.trunk.is_none()).filter(is_wired);
        let ports = here.map(|port| (port.id, PortNo(10 + port.key - 1))).collect();
        let wired: BTreeSet<_> = self.networks.iter().filter_map(|network| network.provider.as_ref()).collect();
        let names: BTreeSet<_> = wired.iter().map(|provider| provider.physical_network.clone()).collect();
        let physical = names.into_iter().zip((2..).map(PortNo)).collect();
        PortNumbers { ports, vxlan: Some(VXLAN), physical, ..PortNumbers::default() }
    }

    pub fn address(&self, port: usize) -> Ipv4Addr {
        match self.ports[port].addresses[0].address {
            IpAddr::V4(address) => address,
            IpAddr::V6(address) => panic!("{address}: IPv4 only"),
        }
    }

    /// The IPv6 address of a port on its subnet.
    pub fn address6(&self, port: usize) -> Option<Ipv6Addr> {
        self.ports[port].addresses.iter().find_map(|fixed| match fixed.address {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        })
    }

    pub fn mac(&self, port: usize) -> Mac {
        self.ports[port].mac
    }
}

/// The address with this number in a prefix.
fn nth(prefix: ipnet::Ipv6Net, number: u128) -> Ipv6Addr {
    Ipv6Addr::from_bits(prefix.network().to_bits() + number)
}

/// Two subnets behind a router, two groups, two hosts:
/// web may be reached by tcp 80 and ping, db by tcp 5432 from members of web and by udp 8000 to 8999 from 10.0.0.0/16.
pub fn two_subnets() -> Cloud {
    let mut cloud = Cloud::default();
    let blue = cloud.network("blue", "10.0.1.0/24");
    let green = cloud.network("green", "10.0.2.0/24");
    cloud.router("main", &[blue, green]);
    let web = cloud.group("web");
    let db = cloud.group("db");
    cloud.allow(web, tcp(80, 80), Remote::Any);
    cloud.allow(web, PING, Remote::Any);
    let web_members = cloud.members(web);
    cloud.allow(db, tcp(5432, 5432), web_members);
    cloud.allow(db, udp(8000, 8999), Remote::Prefix("10.0.0.0/16".parse().unwrap()));
    cloud.port("web-1", blue, 0, 11, &[web]);
    cloud.port("web-2", blue, 1, 12, &[web]);
    cloud.port("db-1", green, 0, 21, &[db]);
    cloud.port("db-2", green, 1, 22, &[db]);
    let open = cloud.port("open-1", blue, 0, 13, &[]);
    cloud.ports[open].port_security = false;
    cloud
}

/// The same with IPv6 as well: over that, web may be reached by tcp 80 and pings, db by tcp 5432 from members of web and by udp 8000 to 8999 from
/// fd00::/16.
pub fn dual_stack() -> Cloud {
    let mut cloud = Cloud::default();
    let blue = cloud.network("blue", "10.0.1.0/24");
    let green = cloud.network("green", "10.0.2.0/24");
    cloud.ipv6(blue, "fd00:0:0:1::/64");
    cloud.ipv6(green, "fd00:0:0:2::/64");
    cloud.router("main", &[blue, green]);
    let web = cloud.group("web");
    let db = cloud.group("db");
    let web_members = cloud.members(web);
    for ethertype in [Ethertype::IPv4, Ethertype::IPv6] {
        let (all, web_ping) = match ethertype {
            Ethertype::IPv4 => ("10.0.0.0/16", 8),
            Ethertype::IPv6 => ("fd00::/16", 128),
        };
        let ping = Protocol::Icmp { kind: Some(web_ping), code: Some(0) };
        if ethertype == Ethertype::IPv6 {
            cloud.rule_of(ethertype, web, Direction::Egress, Protocol::Any, Remote::Any);
            cloud.rule_of(ethertype, db, Direction::Egress, Protocol::Any, Remote::Any);
        }
        cloud.rule_of(ethertype, web, Direction::Ingress, tcp(80, 80), Remote::Any);
        cloud.rule_of(ethertype, web, Direction::Ingress, ping, Remote::Any);
        cloud.rule_of(ethertype, db, Direction::Ingress, tcp(5432, 5432), web_members);
        cloud.rule_of(ethertype, db, Direction::Ingress, udp(8000, 8999), Remote::Prefix(all.parse().unwrap()));
    }
    cloud.port("web-1", blue, 0, 11, &[web]);
    cloud.port("web-2", blue, 1, 12, &[web]);
    cloud.port("db-1", green, 0, 21, &[db]);
    cloud.port("db-2", green, 1, 22, &[db]);
    let open = cloud.port("open-1", blue, 0, 13, &[]);
    cloud.ports[open].port_security = false;
    cloud
}

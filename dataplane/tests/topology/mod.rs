//! Clouds to test with: networks, routers, groups and ports of any number of hosts, and what each host is told of them.
//!
//! Everything is named by small numbers, so that a failure prints the same ids each time.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it, as a module of its own")]

use std::net::{IpAddr, Ipv4Addr};

pub mod random;

use dataplane::PortNumbers;
use model::network::{Binding, FixedIp, Network, Port, Router, RouterInterface, Subnet};
use model::security::{Direction, Ethertype, PortRange, Protocol, Remote, Rule, SecurityGroup};
use model::spec::HostNetwork;
use model::{HostId, Mac, MachineId, NetworkId, PortId, RouterId, RuleId, SecurityGroupId, SubnetId, Vni};
use openflow::flow::PortNo;
use uuid::Uuid;

/// The OpenFlow port of the tunnel on every host.
pub const VXLAN: PortNo = PortNo(1);

/// A cloud of some hosts.
#[derive(Debug, Clone, Default)]
pub struct Cloud {
    pub networks: Vec<Network>,
    pub subnets: Vec<Subnet>,
    pub routers: Vec<Router>,
    pub groups: Vec<SecurityGroup>,
    pub ports: Vec<Port>,
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

pub const PING: Protocol = Protocol::Icmp { kind: None, code: None };

impl Cloud {
    /// Adds a network with one subnet of it; gives the number of both.
    pub fn network(&mut self, name: &str, cidr: &str) -> usize {
        let number = self.networks.len();
        let network = NetworkId::from_uuid(id(2, number));
        let vni = Vni::try_from(5001 + u32::try_from(number).unwrap()).unwrap();
        self.networks.push(Network { id: network, name: name.to_owned(), vni, mtu: 1450 });
        let cidr: ipnet::IpNet = cidr.parse().unwrap();
        self.subnets.push(Subnet {
            id: SubnetId::from_uuid(id(3, number)),
            name: format!("{name}-subnet"),
            network,
            cidr,
            gateway: cidr.hosts().next(),
            dhcp: true,
            dns: vec![IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9))],
        });
        number
    }

    /// Adds a router with a foot at the gateway of each of these subnets.
    pub fn router(&mut self, name: &str, subnets: &[usize]) -> usize {
        let number = self.routers.len();
        let interfaces = subnets
            .iter()
            .map(|subnet| RouterInterface {
                subnet: self.subnets[*subnet].id,
                address: self.subnets[*subnet].gateway.unwrap(),
                mac: Mac::new([2, 1, 0, 0, u8::try_from(number).unwrap(), u8::try_from(*subnet).unwrap()]),
            })
            .collect();
        let key = u16::try_from(number + 1).unwrap();
        self.routers.push(Router { id: RouterId::from_uuid(id(4, number)), name: name.to_owned(), key, interfaces });
        number
    }

    /// Adds a group that lets everything out.
    pub fn group(&mut self, name: &str) -> usize {
        let number = self.groups.len();
        let key = u32::try_from(number + 1).unwrap();
        let id = SecurityGroupId::from_uuid(id(5, number));
        self.groups.push(SecurityGroup { id, name: name.to_owned(), key, rules: Vec::new() });
        self.rule(number, Direction::Egress, Protocol::Any, Remote::Any);
        number
    }

    /// Adds a rule to a group.
    pub fn rule(&mut self, group: usize, direction: Direction, protocol: Protocol, remote: Remote) {
        let number = self.groups.iter().map(|group| group.rules.len()).sum::<usize>() + 1;
        let id = RuleId::from_uuid(Uuid::from_u128((number as u128) << 96));
        self.groups[group].rules.push(Rule { id, direction, ethertype: Ethertype::IPv4, protocol, remote });
    }

    pub fn allow(&mut self, group: usize, protocol: Protocol, remote: Remote) {
        self.rule(group, Direction::Ingress, protocol, remote);
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
        self.ports.push(Port {
            id: PortId::from_uuid(id(6, number)),
            name: name.to_owned(),
            network: self.networks[network].id,
            key,
            mac: Mac::new([2, 2, 0, 0, 0, u8::try_from(number + 1).unwrap()]),
            addresses: vec![FixedIp { subnet: self.subnets[network].id, address: Ipv4Addr::new(a, b, c, last).into() }],
            groups: groups.iter().map(|group| self.groups[*group].id).collect(),
            port_security: true,
            binding: Some(Binding {
                machine: MachineId::from_uuid(id(7, number)),
                hostname: name.to_owned(),
                host: host_id(host),
                tunnel: endpoint(host),
            }),
        });
        number
    }

    /// What a host is told.
    pub fn host(&self, host: usize) -> HostNetwork {
        let network = HostNetwork {
            host: host_id(host),
            tunnel: endpoint(host),
            networks: self.networks.iter().map(|network| (network.id, network.clone())).collect(),
            subnets: self.subnets.iter().map(|subnet| (subnet.id, subnet.clone())).collect(),
            routers: self.routers.iter().map(|router| (router.id, router.clone())).collect(),
            groups: self.groups.iter().map(|group| (group.id, group.clone())).collect(),
            ports: self.ports.iter().map(|port| (port.id, port.clone())).collect(),
        };
        network.check().unwrap();
        network
    }

    /// The OpenFlow ports of a host: 10 and the number of the port in the cloud.
    pub fn numbers(&self, host: usize) -> PortNumbers {
        let here = self.ports.iter().filter(|port| port.is_on(host_id(host)));
        PortNumbers { ports: here.map(|port| (port.id, PortNo(10 + port.key - 1))).collect(), vxlan: Some(VXLAN) }
    }

    pub fn address(&self, port: usize) -> Ipv4Addr {
        match self.ports[port].addresses[0].address {
            IpAddr::V4(address) => address,
            IpAddr::V6(address) => panic!("{address}: IPv4 only"),
        }
    }

    pub fn mac(&self, port: usize) -> Mac {
        self.ports[port].mac
    }
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

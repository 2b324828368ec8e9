//! What is compiled one change at a time is what is compiled from nothing: over random sequences of edits of every kind, seen from every host.

#[cfg(test)]
mod topology;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;

use dataplane::compile::{Compiler, Edit, Stations};
use dataplane::peer::{Peer, Peers};
use dataplane::{PortNumbers, compile};
use model::balancer::monitor::{Check, Monitor};
use model::balancer::{Listener, Member, Persistence, Transport};
use model::firewall::{Carried, Firewall, FirewallAction};
use model::mirror::MirrorDirection;
use model::network::{ForwardedProtocol, Port, Router, StaticRoute};
use model::spec::HostNetwork;
use model::{BalancerId, Mac, PortId, Vni};
use openflow::flow::{Action, FlowKey, PortNo};
use proptest::prelude::{ProptestConfig, any, proptest};
use topology::random::{self, HOSTS, Random};
use topology::{Cloud, PING, endpoint, host_id, tcp, two_subnets};
use uuid::Uuid;

/// A cloud that changes, and the port numbers of each host.
struct World {
    cloud: Cloud,
    random: Random,
    /// Numbers ports that were added, so that none has what another had.
    added: u8,
    is_tunnelled: bool,
    is_wired: bool,
    unplugged: BTreeSet<PortId>,
    /// The network outside that floating IPs are of.
    outer: usize,
    stations: Stations,
    /// What is known of hosts that others watch.
    peers: Peers,
    settling: BTreeSet<PortId>,
    /// The queues that hosts have given ports.
    queues: BTreeMap<PortId, u32>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut cloud = random::cloud(&mut random);
        let outer = cloud.network("outer", "203.0.113.0/24");
        cloud.ipv6(outer, "2001:db8:ffff::/64");
        cloud.provide(outer, "dc", Some(300));
        cloud.port("outer-1", outer, 0, 60, &[]);
        let (unplugged, stations) = (BTreeSet::new(), Stations::new());
        let (peers, settling) = (Peers::new(), BTreeSet::new());
        let queues = BTreeMap::new();
        Self {
            cloud,
            random,
            added: 0,
            is_tunnelled: true,
            is_wired: true,
            unplugged,
            outer,
            stations,
            peers,
            settling,
            queues,
        }
    }

    fn numbers(&self, host: usize) -> PortNumbers {
        let mut numbers = self.cloud.numbers(host);
        numbers.ports.retain(|id, _| !self.unplugged.contains(id));
        numbers.physical.retain(|_, _| self.is_wired);
        numbers.vxlan = numbers.vxlan.filter(|_| self.is_tunnelled);
        numbers.stations = self.stations.clone();
        numbers.peers = self.peers.clone();
        numbers.peers.remove(&endpoint(host));
        numbers.settling = self.settling.clone();
        numbers.queues = self.queues.clone();
        numbers
    }

    /// Makes one change at random and says which.
    fn step(&mut self) -> &'static str {
        let port = self.random.below(self.cloud.ports.len().max(1));
        if self.cloud.ports.is_empty() {
            self.cloud.port("first", 0, 0, 200, &[]);
            return "a first port";
        }
        match self.random.below(61) {
            0 | 1 => self.add_port(port),
            2 => {
                self.cloud.ports.remove(port);
                "a port less"
            }
            3 => self.move_port(port),
            4 => self.regroup(port),
            5 => {
                self.cloud.ports[port].port_security ^= true;
                "port security"
            }
            6 => self.change_rules(),
            7 => self.change_feet(),
            8 => self.change_endpoint(),
            9 => {
                let id = self.cloud.ports[port].id;
                if !self.unplugged.remove(&id) {
                    self.unplugged.insert(id);
                }
                "a port plugged in or out"
            }
            10 => {
                self.is_tunnelled ^= true;
                "the tunnel port"
            }
            11 => {
                let subnet = self.random.below(self.cloud.subnets.len());
                self.cloud.subnets[subnet].dhcp ^= true;
                "DHCP of a subnet"
            }
            12 => self.renumber(),
            13 | 14 => self.change_routes(port),
            15 => {
                let network = self.random.below(self.cloud.networks.len());
                let provider = &mut self.cloud.networks[network].provider;
                if provider.take().is_none() {
                    let vlan = u16::try_from(network).ok().filter(|number| *number > 0);
                    self.cloud.provide(network, if network < 2 { "dc" } else { "lab" }, vlan);
                }
                "a network of the data centre"
            }
            16 => {
                self.is_wired ^= true;
                "the wires of hosts"
            }
            17..=19 => self.float(port),
            23..=25 => self.change_addresses(),
            20 => {
                let last = *self.random.pick(&[1, 9]);
                let six = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, last.into());
                let address = *self.random.pick(&[IpAddr::from([203, 0, 113, last]), six.into()]);
                let key = (self.cloud.networks[self.outer].id, address);
                if self.stations.remove(&key).is_none() {
                    self.stations.insert(key, Mac::new([2, 9, 0, 0, 0, 1]));
                }
                "a station outside"
            }
            21 | 22 => self.share(port),
            33 | 34 => self.forward(port),
            26..=28 => self.roam(port),
            39..=41 => self.live(),
            29..=32 => self.join(port),
            42..=46 => self.wall(),
            48..=52 => self.watch(port),
            56..=60 => self.lead_out6(port),
            35..=38 => self.balance(port),
            53..=55 => self.queue(port),
            _ => {
                self.added += 1;
                readdress(&mut self.cloud.ports[port], 100 + self.added);
                "the addresses of a port"
            }
        }
    }

    /// A port of a network of the data centre is promised something, or gets a queue, or another one, or loses either.
    fn queue(&mut self, port: usize) -> &'static str {
        let wired = |port: &usize| {
            let network = self.cloud.networks.iter().find(|network| network.id == self.cloud.ports[*port].network);
            network.is_some_and(|network| network.provider.is_some())
        };
        let port = (0..self.cloud.ports.len()).rfind(wired).unwrap_or(port);
        let (port, queue) = (&mut self.cloud.ports[port], u32::try_from(self.random.below(4)).unwrap_or_default());
        if self.random.once_in(3) {
            port.qos.egress_min_kbps = NonZeroU32::new(queue);
            return "a minimum of a port";
        }
        if queue == 0 {
            self.queues.remove(&port.id);
        } else {
            port.qos.egress_min_kbps = NonZeroU32::new(300);
            self.queues.insert(port.id, queue);
        }
        "a queue of a port"
    }

    /// A host is watched, heard, silent or nothing of it any more.
    fn live(&mut self) -> &'static str {
        let host = self.random.below(HOSTS);
        let number = PortNo(100 + u32::try_from(host).unwrap_or_default());
        let (is_heard, is_alive) = *self.random.pick(&[(false, false), (true, false), (true, true), (true, true)]);
        if self.random.once_in(5) {
            self.peers.remove(&endpoint(host));
        } else {
            self.peers.insert(endpoint(host), Peer { number, is_heard, is_alive });
        }
        "the life of a host"
    }

    /// A port awaited on a host, come there, or awaited no more.
    fn roam(&mut self, port: usize) -> &'static str {
        let (host, id) = (self.random.below(HOSTS), self.cloud.ports[port].id);
        if self.random.once_in(4) {
            if !self.settling.remove(&id) {
                self.settling.insert(id);
            }
            return "a port that has come lately";
        }
        if self.random.once_in(3) {
            self.cloud.arrive(host);
            return "ports that came";
        }
        match self.cloud.ports[port].arriving {
            Some(_) => self.cloud.ports[port].arriving = None,
            None => self.cloud.await_on(port, host, 1),
        }
        "a port that is awaited"
    }

    /// Nothing is awaited that is nowhere, or where it is.
    fn tidy_arrivals(&mut self) {
        for port in &mut self.cloud.ports {
            let home = port.binding.as_ref().map(|binding| binding.host);
            port.arriving = port.arriving.filter(|arrival| home.is_some_and(|home| home != arrival.host));
        }
    }

    /// A floating IP for a port, or none any more.
    fn float(&mut self, port: usize) -> &'static str {
        let (id, subnet) = (self.cloud.ports[port].id, self.cloud.ports[port].addresses[0].subnet);
        let stands = |router: &Router| router.interfaces.iter().any(|foot| foot.subnet == subnet);
        let Some(router) = self.cloud.routers.iter().position(stands) else { return "no floating IP" };
        if self.cloud.routers[router].external.is_none() {
            self.cloud.lead_out(router, self.outer);
        }
        let before = self.cloud.routers[router].external.as_mut().map(|external| {
            let count = external.floating_ips.len();
            external.floating_ips.retain(|floating| floating.port != id);
            count - external.floating_ips.len()
        });
        if before == Some(0) {
            self.added += 1;
            self.cloud.float(router, port, 100 + self.added);
        }
        "a floating IP"
    }

    /// An address outside for all ports behind a router, with other gateway hosts each time, or none any more.
    fn share(&mut self, port: usize) -> &'static str {
        let subnet = self.cloud.ports[port].addresses[0].subnet;
        let stands = |router: &Router| router.interfaces.iter().any(|foot| foot.subnet == subnet);
        let Some(router) = self.cloud.routers.iter().position(stands) else { return "no SNAT" };
        if self.cloud.routers[router].external.is_none() {
            self.cloud.lead_out(router, self.outer);
        }
        let hosts: Vec<usize> = (0..HOSTS).filter(|_| self.random.once_in(2)).collect();
        self.cloud.share(router, &hosts, 40 + u8::try_from(router).unwrap_or_default());
        if self.random.once_in(5)
            && let Some(external) = &mut self.cloud.routers[router].external
        {
            external.snat = None;
        }
        "SNAT of a router"
    }

    /// A way out by IPv6 for one router at a time, for tenants have the same addresses; with other gateway hosts each time, or none any more. What is routed is
    /// another each time.
    fn lead_out6(&mut self, port: usize) -> &'static str {
        let subnet = self.cloud.ports[port].addresses[0].subnet;
        let stands = |router: &Router| router.interfaces.iter().any(|foot| foot.subnet == subnet);
        let Some(router) = self.cloud.routers.iter().position(stands) else { return "no way out by IPv6" };
        self.cloud.routers.iter_mut().for_each(|router| router.ipv6_gateway = None);
        let prefixes: &[&[&str]] = &[&[], &["fd00::/16"], &["fd00:0:0:1::/64"], &["fd00:0:0:2::/64", "2001:db8::/48"]];
        let prefixes = *self.random.pick(prefixes);
        self.cloud.routed(self.outer, prefixes);
        let hosts: Vec<usize> = (0..HOSTS).filter(|_| self.random.once_in(2)).collect();
        if !self.random.once_in(5) {
            self.cloud.lead_out6(router, self.outer, &hosts, 40 + u8::try_from(router).unwrap_or_default());
        }
        "a way out by IPv6"
    }

    /// One more forwarded port of a router's address, or one less.
    fn forward(&mut self, port: usize) -> &'static str {
        let subnet = self.cloud.ports[port].addresses[0].subnet;
        let stands = |router: &Router| router.interfaces.iter().any(|foot| foot.subnet == subnet);
        let Some(router) = self.cloud.routers.iter().position(stands) else { return "no forwarding" };
        let external = self.cloud.routers[router].external.as_mut();
        let Some(snat) = external.and_then(|external| external.snat.as_mut()) else { return "no forwarding" };
        if self.random.once_in(3) {
            snat.forwardings.pop();
        } else {
            self.added += 1;
            let protocol = if self.random.once_in(2) { ForwardedProtocol::Tcp } else { ForwardedProtocol::Udp };
            self.cloud.forward(router, (protocol, u16::from(self.added)), (port, 80 + u16::from(self.added)));
        }
        "a forwarded port"
    }

    /// A load balancer on the network of a port, with other listeners and members each time, or none any more.
    fn balance(&mut self, port: usize) -> &'static str {
        let of = self.cloud.networks.iter().position(|network| network.id == self.cloud.ports[port].network);
        let Some(network) = of.filter(|network| self.cloud.networks[*network].provider.is_none()) else {
            return "no load balancer";
        };
        let six = self.cloud.subnet6(network).is_some() && self.random.once_in(2);
        let subnet = if six { self.cloud.subnet6(network) } else { self.cloud.subnets.get(network) };
        let subnet = subnet.map(|subnet| subnet.id);
        let Some(front) = self.cloud.balancers.iter().position(|it| Some(it.subnet) == subnet) else {
            let front = self.cloud.balancer("front", network, 250 + u8::from(six), six);
            self.added += 1;
            self.cloud.balancers[front].key = 500 + u16::from(self.added);
            self.cloud.balancers[front].id = BalancerId::from_uuid(Uuid::from_u128(11 << 64 | u128::from(self.added)));
            return "a load balancer more";
        };
        if self.random.once_in(8) {
            self.cloud.balancers.remove(front);
            return "a load balancer less";
        }
        let member = self.random.pick(&self.cloud.ports).addresses.clone();
        let front = &mut self.cloud.balancers[front];
        let (protocol, own) = *self.random.pick(&[(Transport::Tcp, 80), (Transport::Udp, 53)]);
        let Some(listener) = front.listeners.iter_mut().find(|it| it.protocol == protocol) else {
            let persistence = *self.random.pick(&[Persistence::None, Persistence::SourceIp]);
            front.listeners.push(Listener {
                protocol,
                port: own,
                persistence,
                monitor: None,
                connection_limit: None,
                members: Vec::new(),
            });
            return "a listener more";
        };
        if self.random.once_in(4) {
            let check = self.random.pick(&[Check::Tcp, Check::http(), Check::Ping, Check::UdpConnect]).clone();
            let monitor = Monitor { admin_state_up: !self.random.once_in(4), ..Monitor::new(check) };
            let fits = listener.monitor.is_none() && monitor.check_for(protocol).is_ok();
            listener.monitor = fits.then_some(monitor);
            return "a health monitor";
        }
        if self.random.once_in(4) {
            listener.connection_limit = *self.random.pick(&[None, Some(1), Some(3)]);
            return "a limit of connections";
        }
        if self.random.once_in(4) {
            listener.members.iter_mut().for_each(|member| member.in_error = self.random.once_in(2));
            return "verdicts";
        }
        let address = member.iter().map(|it| it.address).find(|it| it.is_ipv4() == front.address.is_ipv4());
        let Some(address) = address.filter(|address| *address != front.address) else { return "no member" };
        let count = listener.members.len();
        listener.members.retain(|member| member.address != address);
        if listener.members.len() == count {
            let weight = *self.random.pick(&[0, 1, 2, 256]);
            listener.members.push(Member { address, port: 8080, weight, in_error: false });
        }
        "a member"
    }

    /// A firewall for a router, other rules for one that has it, or none any more.
    fn wall(&mut self) -> &'static str {
        if self.cloud.routers.is_empty() {
            return "no firewall";
        }
        let router = self.random.below(self.cloud.routers.len());
        let Some(firewall) = &mut self.cloud.routers[router].firewall else {
            if self.cloud.firewall_policies.len() < 4 {
                self.cloud.wall(router);
            } else {
                let policies = &self.cloud.firewall_policies;
                let [ingress, egress] = [0, 1].map(|_| Some(self.random.pick(policies).id));
                self.cloud.routers[router].firewall = Some(Firewall { ingress, egress });
            }
            return "a firewall";
        };
        match self.random.below(8) {
            0 => self.cloud.routers[router].firewall = None,
            1 => firewall.egress = None,
            2 => {
                let policy = self.random.below(self.cloud.firewall_policies.len());
                self.cloud.firewall_policies[policy].name += "x";
            }
            kind => {
                let policy = self.random.below(self.cloud.firewall_policies.len());
                let count = self.cloud.firewall_policies[policy].rules.len();
                let at = self.random.below(count + 1);
                let rules = &mut self.cloud.firewall_policies[policy].rules;
                match (rules.get_mut(at), kind) {
                    (Some(rule), 3) => rule.enabled ^= true,
                    (Some(_), 4) => drop(rules.remove(at)),
                    _ => {
                        let action = *self.random.pick(&[FirewallAction::Allow, FirewallAction::Deny]);
                        let carried = *self.random.pick(&[Carried::Any, Carried::Icmp, topology::carried_tcp(80)]);
                        self.cloud.judge(policy, at, action, carried, (Some("10.0.0.0/8"), None));
                    }
                }
            }
        }
        "the rules of a firewall"
    }

    /// A port mirrored to another, or to nobody any more.
    fn watch(&mut self, port: usize) -> &'static str {
        let to = self.random.below(self.cloud.ports.len());
        let direction = *self.random.pick(&[MirrorDirection::In, MirrorDirection::Out, MirrorDirection::Both]);
        if self.random.once_in(4) {
            self.cloud.ports[port].mirror = None;
        } else {
            self.cloud.mirror(port, to, direction);
        }
        "a mirror"
    }

    /// Who gets copies is there, and is not mirrored.
    fn tidy_mirrors(&mut self) {
        let known: BTreeSet<PortId> = self.cloud.ports.iter().map(|port| port.id).collect();
        let ports = self.cloud.ports.iter().filter_map(|port| port.mirror);
        let targets: BTreeSet<PortId> = ports.map(|mirror| mirror.to).collect();
        for port in &mut self.cloud.ports {
            let is_target = targets.contains(&port.id);
            port.mirror = port.mirror.filter(|mirror| known.contains(&mirror.to) && !is_target);
        }
    }

    /// A port on the tap of another, in a VLAN, or on one of its own again.
    fn join(&mut self, port: usize) -> &'static str {
        let parent = self.random.below(self.cloud.ports.len());
        let vlan = u16::try_from(1 + self.random.below(3)).unwrap_or(1);
        match self.cloud.ports[port].trunk {
            Some(_) => self.cloud.ports[port].trunk = None,
            None => self.cloud.trunk(port, parent, vlan),
        }
        "a sub-port"
    }

    /// Sub-ports are where their parents are now, and none any more where that cannot be.
    fn tidy_trunks(&mut self) {
        let (mut tags, before) = (BTreeSet::new(), self.cloud.ports.clone());
        for port in &mut self.cloud.ports {
            let Some(trunk) = port.trunk else { continue };
            let parent = before.iter().find(|other| other.id == trunk.parent && other.trunk.is_none());
            match parent.filter(|_| tags.insert(trunk)) {
                Some(parent) => {
                    port.binding.clone_from(&parent.binding);
                    port.arriving = parent.arriving;
                }
                None => port.trunk = None,
            }
        }
    }

    /// Takes away what a step has left without a ground.
    fn tidy(&mut self) {
        self.tidy_trunks();
        self.tidy_mirrors();
        self.tidy_arrivals();
        let Cloud { networks, subnets, subnets6, ports, routers, balancers, .. } = &mut self.cloud;
        balancers.retain(|balancer| {
            let mut subnet = subnets.iter().chain(&*subnets6).filter(|subnet| subnet.id == balancer.subnet);
            let network = subnet.next().map(|subnet| subnet.network);
            networks.iter().any(|it| Some(it.id) == network && it.provider.is_none())
        });
        let is_outside = networks[self.outer].provider.is_some();
        if !is_outside {
            networks[self.outer].routed_prefixes.clear();
        }
        for router in routers {
            let is_way6 = |route: &StaticRoute| route.destination.to_string() == "::/0";
            if !is_outside || router.routes.iter().any(is_way6) {
                router.ipv6_gateway = None;
            }
            let is_way = |route: &StaticRoute| route.destination.to_string() == "0.0.0.0/0";
            if !is_outside || router.routes.iter().any(is_way) {
                router.external = None;
            }
            let feet: Vec<_> = router.interfaces.iter().map(|foot| foot.subnet).collect();
            let Some(external) = &mut router.external else { continue };
            let is_behind = |id, address| {
                let port = ports.iter().find(|port| port.id == id);
                let mut fixed = port.into_iter().flat_map(|port| &port.addresses);
                fixed.any(|fixed| fixed.address == IpAddr::V4(address) && feet.contains(&fixed.subnet))
            };
            external.floating_ips.retain(|floating| is_behind(floating.port, floating.fixed));
            let held: Vec<_> = external.floating_ips.iter().map(|floating| (floating.port, floating.fixed)).collect();
            if let Some(snat) = &mut external.snat {
                snat.forwardings.retain(|forwarding| {
                    let end = (forwarding.port, forwarding.internal_ip_address);
                    is_behind(end.0, end.1) && !held.contains(&end)
                });
            }
        }
    }

    fn add_port(&mut self, template: usize) -> &'static str {
        self.added += 1;
        let mut port = self.cloud.ports[template].clone();
        port.id = PortId::from_uuid(Uuid::from_u128(9 << 64 | u128::from(self.added)));
        port.key = 200 + u32::from(self.added);
        port.mac = Mac::new([2, 2, 9, 0, 0, self.added]);
        readdress(&mut port, 100 + self.added);
        self.cloud.ports.push(port);
        "a port more"
    }

    fn move_port(&mut self, port: usize) -> &'static str {
        let host = self.random.below(HOSTS);
        match &mut self.cloud.ports[port].binding {
            Some(binding) if !self.random.once_in(4) => {
                (binding.host, binding.tunnel) = (host_id(host), endpoint(host))
            }
            binding => *binding = None,
        }
        "a port on another host"
    }

    fn regroup(&mut self, port: usize) -> &'static str {
        let all: Vec<_> = self.cloud.groups.iter().map(|group| group.id).collect();
        self.cloud.ports[port].groups = all.into_iter().filter(|_| self.random.once_in(3)).collect();
        "the groups of a port"
    }

    fn change_rules(&mut self) -> &'static str {
        let group = self.random.below(self.cloud.groups.len());
        match self.random.below(4) {
            0 => drop(self.cloud.groups[group].rules.pop()),
            1 => self.cloud.groups[group].name += "x",
            2 => self.cloud.groups[group].key += 1000,
            _ => {
                let members = self.cloud.members(self.random.below(self.cloud.groups.len()));
                let rule = self.cloud.groups[group].rules.len();
                self.cloud.allow(group, if rule.is_multiple_of(2) { tcp(1000, 1999) } else { PING }, members);
            }
        }
        "rules"
    }

    /// An address more or less in an address group, another name or key of it, or a rule that names it.
    fn change_addresses(&mut self) -> &'static str {
        let number = self.random.below(self.cloud.address_groups.len());
        let prefix = *self.random.pick(&["10.0.0.0/8", "10.0.1.0/28", "fd00:0:0:1::/72", "0.0.0.0/0", "::/0"]);
        let Ok(prefix) = prefix.parse() else { return "no prefix" };
        let list = &mut self.cloud.address_groups[number];
        match self.random.below(7) {
            0 => list.name += "x",
            1 => list.key += 1000,
            2 => {
                let (within, group) = (self.cloud.within(number), self.random.below(self.cloud.groups.len()));
                self.cloud.allow(group, if self.random.once_in(2) { tcp(1000, 1999) } else { PING }, within);
            }
            6 if number > 0 => {
                let gone = self.cloud.within(number);
                self.cloud.groups.iter_mut().for_each(|group| group.rules.retain(|rule| rule.remote != gone));
                self.cloud.address_groups.remove(number);
            }
            _ if list.addresses.contains(&prefix) && list.addresses.len() > 1 => {
                list.addresses.retain(|other| *other != prefix);
            }
            _ if list.addresses.contains(&prefix) => {}
            _ => list.addresses.push(prefix),
        }
        "an address group"
    }

    fn change_feet(&mut self) -> &'static str {
        if self.cloud.routers.is_empty() {
            self.cloud.router("late", &[0, 1]);
            return "a router more";
        }
        let router = self.random.below(self.cloud.routers.len());
        if self.random.once_in(3) {
            self.cloud.routers.remove(router);
            return "a router less";
        }
        let router = &mut self.cloud.routers[router];
        router.interfaces.truncate(router.interfaces.len() / 2);
        let left: Vec<_> = router.interfaces.iter().map(|foot| foot.subnet).collect();
        let subnets: Vec<_> = self.cloud.subnets.iter().chain(&self.cloud.subnets6).cloned().collect();
        let is_near = |hop| subnets.iter().any(|subnet| left.contains(&subnet.id) && subnet.cidr.contains(&hop));
        router.routes.retain(|route| is_near(route.next_hop));
        "a foot less"
    }

    /// A route by a port in a subnet of a router, or none any more.
    fn change_routes(&mut self, port: usize) -> &'static str {
        let fixed = self.random.pick(&self.cloud.ports[port].addresses).clone();
        let stands = |router: &&mut Router| router.interfaces.iter().any(|foot| foot.subnet == fixed.subnet);
        let destinations = match fixed.address {
            IpAddr::V4(_) => ["172.16.0.0/16", "172.16.0.0/24", "0.0.0.0/0"],
            IpAddr::V6(_) => ["fd16::/32", "fd16::/64", "::/0"],
        };
        let Ok(destination) = self.random.pick(&destinations).parse() else { return "no destination" };
        let route = StaticRoute { destination, next_hop: fixed.address };
        let is_cleared = self.random.once_in(5);
        let Some(router) = self.cloud.routers.iter_mut().find(stands) else { return "no route" };
        if is_cleared {
            router.routes.clear();
        } else if !router.routes.contains(&route) && router.routes.len() < 12 {
            router.routes.push(route);
        }
        "the routes of a router"
    }

    fn change_endpoint(&mut self) -> &'static str {
        let host = self.random.below(HOSTS);
        self.added += 1;
        let moved = Ipv4Addr::new(172, 21, 0, self.added);
        let bindings = self.cloud.ports.iter_mut().filter_map(|port| port.binding.as_mut());
        bindings.filter(|binding| binding.host == host_id(host)).for_each(|binding| binding.tunnel = moved);
        "the endpoint of a host"
    }

    fn renumber(&mut self) -> &'static str {
        let network = self.random.below(self.cloud.networks.len());
        self.added += 1;
        let network = &mut self.cloud.networks[network];
        network.vni = vni(self.added).unwrap_or(network.vni);
        "the number of a network"
    }
}

/// A VNI that no network of a random cloud has.
fn vni(number: u8) -> Option<Vni> {
    Vni::try_from(9000 + u32::from(number)).ok()
}

/// Gives a port the addresses of its subnets that end in this number.
fn readdress(port: &mut Port, last: u8) {
    for fixed in &mut port.addresses {
        fixed.address = match fixed.address {
            IpAddr::V4(address) => {
                let [a, b, c, _] = address.octets();
                Ipv4Addr::new(a, b, c, last).into()
            }
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, last.into()).into()
            }
        };
    }
}

fn nothing(host: usize) -> HostNetwork {
    HostNetwork::empty(host_id(host), endpoint(host))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// After every edit the flows, groups and names are those of a compile from nothing, and what is said to be touched is what differs.
    #[test]
    fn edits_lead_where_compiling_from_nothing_does(seed in any::<u64>()) {
        let mut world = World::new(seed);
        let mut compilers: Vec<Compiler> = (0..HOSTS).map(|host| Compiler::new(nothing(host))).collect();
        for number in 0..25 {
            let step = if number == 0 { "the beginning" } else { world.step() };
            world.tidy();
            for (host, compiler) in compilers.iter_mut().enumerate() {
                let before = compiler.flows().clone();
                let touched = compiler.update(world.cloud.host(host), &world.numbers(host));
                let fresh = compile(&world.cloud.host(host), &world.numbers(host));
                assert!(fresh == *compiler.flows(), "seed {seed}, step {number} ({step}), host {host}:\n{}", {
                    let keys = |set: &dataplane::FlowSet| set.to_text();
                    format!("from nothing\n{}\nafter edits\n{}", keys(&fresh), keys(compiler.flows()))
                });
                assert_eq!(touched, before.differences(&fresh), "seed {seed}, step {number} ({step}), host {host}");
            }
        }
    }
}

/// An edit by object leads where the whole specification does, and touches a port's own flows only.
#[test]
fn an_edit_costs_what_it_changes() {
    let mut cloud = two_subnets();
    let mut compiler = Compiler::new(nothing(0));
    compiler.update(cloud.host(0), &cloud.numbers(0));
    let port = cloud.port("web-3", 0, 0, 33, &[0]);
    let put = Edit::PutPort(Box::new(cloud.ports[port].clone()));
    let plug = Edit::Plug(cloud.ports[port].id, Some(PortNo(10 + cloud.ports[port].key - 1)));
    let touched = compiler.edit(vec![put, plug]);
    assert_eq!(*compiler.flows(), compile(&cloud.host(0), &cloud.numbers(0)));
    assert_eq!((touched.flows.len(), touched.groups.len()), (10, 1), "{touched:#?}");
    let text = |key: &FlowKey| compiler.flows().entry(key).map(|entry| entry.flow.to_string()).unwrap_or_default();
    let web_3 = |text: String| {
        text.contains("10.0.1.33")
            || text.contains("reg1=0x6")
            || text.contains("02:02:00:00:00:06")
            || text.contains("reg2=0x6")
    };
    assert!(touched.flows.iter().all(|key| web_3(text(key))));

    cloud.groups[1].rules.pop();
    let touched = compiler.edit(vec![Edit::PutGroup(Box::new(cloud.groups[1].clone()))]);
    assert_eq!(*compiler.flows(), compile(&cloud.host(0), &cloud.numbers(0)));
    assert!(touched.groups.is_empty() && !touched.flows.is_empty());
    assert!(touched.flows.iter().all(|key| key.table == 23), "{touched:#?}");
}

/// A mirror costs flows of the mirrored port and one for who gets the copies, and nothing else; one that goes leaves nothing.
#[test]
fn a_mirror_costs_what_it_copies() {
    let mut cloud = topology::dual_stack();
    let plain = cloud.clone();
    let mut compilers: Vec<Compiler> = (0..2).map(|host| Compiler::new(nothing(host))).collect();
    let mut update = |cloud: &Cloud| {
        let take = |(host, compiler): (usize, &mut Compiler)| compiler.update(cloud.host(host), &cloud.numbers(host));
        let touched: Vec<_> = compilers.iter_mut().enumerate().map(take).collect();
        for (host, compiler) in compilers.iter().enumerate() {
            assert!(*compiler.flows() == compile(&cloud.host(host), &cloud.numbers(host)), "host {host}");
        }
        touched.iter().map(|touched| (touched.flows.len(), touched.groups.len())).collect::<Vec<_>>()
    };
    update(&cloud);
    // From web-1 here to db-2 there: what classifies and guards web-1, and what db-2's host does with the copies.
    cloud.mirror(0, 3, MirrorDirection::Out);
    assert_eq!(update(&cloud), [(10, 0), (1, 0)]);
    // Delivery and answers; who was sent to itself.
    cloud.mirror(0, 3, MirrorDirection::Both);
    assert_eq!(update(&cloud), [(3, 0), (0, 0)]);
    cloud.mirror(0, 3, MirrorDirection::In);
    assert_eq!(update(&cloud), [(10, 0), (0, 0)]);
    // Who gets the copies goes elsewhere.
    cloud.mirror(0, 2, MirrorDirection::In);
    assert_eq!(update(&cloud), [(3, 0), (1, 0)]);
    assert_eq!(update(&plain), [(4, 0), (0, 0)]);
}

/// N addresses and M rules are N + M flows, and an address more is one flow more, whatever else there is.
#[test]
fn an_address_of_an_address_group_is_one_flow() {
    let mut cloud = two_subnets();
    let office = cloud.addresses("office", &["192.0.2.0/24", "192.0.2.128/25", "2001:db8::/32"]);
    let flows = |cloud: &Cloud| compile(&cloud.host(0), &cloud.numbers(0)).flows().len();
    let without = flows(&cloud);
    let office_addresses = cloud.within(office);
    for number in 0..10 {
        cloud.allow(0, tcp(2000 + number, 2000 + number), office_addresses);
    }
    // One own identity, ten selectors, the end of the conjunction, three addresses.
    assert_eq!(flows(&cloud) - without, 1 + 10 + 1 + 3);

    let mut compiler = Compiler::new(nothing(0));
    compiler.update(cloud.host(0), &cloud.numbers(0));
    for (change, prefix) in [("added", "198.51.100.7/32"), ("removed", "192.0.2.0/24")] {
        let Ok(prefix) = prefix.parse() else { panic!("{prefix}") };
        let addresses = &mut cloud.address_groups[office].addresses;
        if change == "added" {
            addresses.push(prefix)
        } else {
            addresses.retain(|other| *other != prefix)
        }
        let before = compiler.flows().clone();
        let put = Edit::PutAddresses(Box::new(cloud.address_groups[office].clone()));
        let touched = compiler.edit(vec![put]);
        assert_eq!(*compiler.flows(), compile(&cloud.host(0), &cloud.numbers(0)));
        let keys: Vec<&FlowKey> = touched.flows.iter().collect();
        assert_eq!((keys.len(), touched.groups.len()), (1, 0), "{change}: {touched:#?}");
        let entry = compiler.flows().entry(keys[0]).or_else(|| before.entry(keys[0]));
        let is_clause = |action: &Action| matches!(action, Action::Conjunction { clause: 2, clauses: 3, .. });
        assert!(entry.is_some_and(|entry| entry.flow.actions.iter().all(is_clause)), "{change}: {entry:?}");
    }
    cloud.groups[0].rules.retain(|rule| rule.remote != office_addresses);
    let list = cloud.address_groups.remove(office);
    let edits = vec![Edit::PutGroup(Box::new(cloud.groups[0].clone())), Edit::RemoveAddresses(list.id)];
    compiler.edit(edits);
    assert_eq!(*compiler.flows(), compile(&cloud.host(0), &cloud.numbers(0)));
    assert_eq!(flows(&cloud), without);
}

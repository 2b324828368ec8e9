//! Clouds made from a seed: two tenants with the same addresses, on two or three hosts, with rules of every kind; and who may speak to whom in
//! them, told straight from the rules, without flows.

use std::net::IpAddr;
use std::num::NonZeroU32;

use dataplane::trace::Payload;
use ipnet::IpNet;
use model::Mac;
use model::mirror::MirrorDirection;
use model::network::{AllowedPair, Port};
use model::qos::{DscpMark, Limit, Limits};
use model::security::{Direction, Ethertype, PortRange, Protocol, Remote};

use super::Cloud;

/// Hosts of a random cloud.
pub const HOSTS: usize = 3;

/// What address groups hold: addresses of ports, prefixes around them and within one another, both versions of IP, everyone.
const ADDRESSES: [&[&str]; 3] = [
    &["10.0.1.11/32", "10.0.2.11/32", "10.0.2.0/28", "fd00:0:0:2::b/128"],
    &["fd00:0:0:1::/64", "10.0.0.0/16", "10.0.1.0/24", "10.0.1.12/30", "fd00::/16"],
    &["192.0.2.0/24", "0.0.0.0/0", "::/0"],
];

/// A xorshift generator: the same seed, the same cloud.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % end
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    fn protocol(&mut self, ethertype: Ethertype) -> Protocol {
        let first = *self.pick(&[0, 22, 80, 1000, 8000]);
        let last = first + *self.pick(&[0, 1, 99, 999]);
        match self.below(6) {
            0 => Protocol::Any,
            1 | 2 => Protocol::Tcp(PortRange::new(first, last).unwrap()),
            3 => Protocol::Udp(PortRange::new(first, last).unwrap()),
            4 => Protocol::Icmp { kind: self.once_in(2).then_some(echo(ethertype)), code: None },
            _ => Protocol::Number(*self.pick(&[6, 17, 47])),
        }
    }

    /// What a packet of this version carries.
    pub fn payload(&mut self, ethertype: Ethertype) -> Payload {
        let target = *self.pick(&[0, 21, 22, 23, 80, 81, 82, 1000, 1100, 8000, 8999, 9000]);
        match self.below(5) {
            0 | 1 => Payload::Tcp { source: 30_000, target },
            2 => Payload::Udp { source: 30_000, target },
            3 => Payload::Icmp { kind: *self.pick(&[echo(ethertype), 13]), code: 0 },
            _ => Payload::Protocol(*self.pick(&[47, 50])),
        }
    }
}

/// The type of an echo request.
fn echo(ethertype: Ethertype) -> u8 {
    match ethertype {
        Ethertype::IPv4 => 8,
        Ethertype::IPv6 => 128,
    }
}

/// The version of an address.
pub fn version(address: IpAddr) -> Ethertype {
    if address.is_ipv4() { Ethertype::IPv4 } else { Ethertype::IPv6 }
}

/// Two tenants, each with two networks of the same addresses, maybe a router, and groups of its own.
pub fn cloud(random: &mut Random) -> Cloud {
    let mut cloud = Cloud::default();
    for tenant in ["red", "blue"] {
        let networks = [
            cloud.network(&format!("{tenant}-a"), "10.0.1.0/24"),
            cloud.network(&format!("{tenant}-b"), "10.0.2.0/24"),
        ];
        cloud.networks[networks[1]].mtu = *random.pick(&[1450, 1400, 8950]);
        if !random.once_in(3) {
            for (network, cidr) in networks.iter().zip(["fd00:0:0:1::/64", "fd00:0:0:2::/64"]) {
                cloud.ipv6(*network, cidr);
            }
        }
        if !random.once_in(4) {
            cloud.router(tenant, &networks);
        }
        let groups: Vec<usize> = (0..3).map(|number| cloud.group(&format!("{tenant}-{number}"))).collect();
        let lists = ADDRESSES.map(|list| {
            let mut mine: Vec<&str> = list[1..].iter().copied().filter(|_| random.once_in(2)).collect();
            mine.push(list[0]);
            cloud.addresses(&format!("{tenant}-{}", list[0]), &mine)
        });
        for group in &groups {
            if random.once_in(3) {
                cloud.groups[*group].rules.clear();
            }
            cloud.groups[*group].stateful = !random.once_in(4);
            for _ in 0..random.below(4) {
                let direction = if random.once_in(3) { Direction::Egress } else { Direction::Ingress };
                let ethertype = *random.pick(&[Ethertype::IPv4, Ethertype::IPv6]);
                let prefixes = match ethertype {
                    Ethertype::IPv4 => ["10.0.1.0/24", "10.0.0.0/16", "10.0.2.11/32"],
                    Ethertype::IPv6 => ["fd00:0:0:1::/64", "fd00::/16", "fd00:0:0:2::b/128"],
                };
                let remote = match random.below(6) {
                    0 => Remote::Any,
                    4 | 5 => cloud.within(*random.pick(&lists)),
                    1 => Remote::Prefix(random.pick(&prefixes).parse().unwrap()),
                    _ => cloud.members(*random.pick(&groups)),
                };
                let protocol = random.protocol(ethertype);
                cloud.rule_of(ethertype, *group, direction, protocol, remote);
            }
        }
        for network in networks {
            for number in 0..1 + random.below(4) {
                let mut mine: Vec<usize> = groups.iter().copied().filter(|_| random.once_in(2)).collect();
                mine.dedup();
                let last = u8::try_from(11 + number).unwrap();
                let host = random.below(HOSTS);
                let port = cloud.port(&format!("{tenant}-{network}-{number}"), network, host, last, &mine);
                if random.once_in(5) {
                    let addresses = random.pick(&["10.0.1.100/32", "10.0.0.0/16", "fd00:0:0:1::/64"]).parse().unwrap();
                    let mac = random.once_in(3).then_some(Mac::new([0, 0, 0x5e, 0, 1, 7]));
                    cloud.ports[port].allowed_pairs.push(AllowedPair { addresses, mac });
                }
                if random.once_in(4) {
                    let mut limit = || Limit::new(1000, None).ok().filter(|_| random.once_in(2));
                    cloud.ports[port].qos.egress = Limits { kbps: limit(), pps: limit() };
                    cloud.ports[port].qos.ingress = Limits { kbps: limit(), pps: limit() };
                    cloud.ports[port].qos.egress_min_kbps = NonZeroU32::new(500).filter(|_| random.once_in(2));
                    cloud.ports[port].qos.dscp_mark = DscpMark::try_from(46).ok().filter(|_| random.once_in(2));
                }
                if random.once_in(6) {
                    cloud.ports[port].port_security = false;
                    cloud.ports[port].groups.clear();
                }
            }
        }
        join(&mut cloud, tenant, random);
        watch(&mut cloud, tenant, random);
    }
    roam(&mut cloud, random);
    cloud
}

/// Has some ports awaited on another host than theirs, with their sub-ports.
fn roam(cloud: &mut Cloud, random: &mut Random) {
    for port in 0..cloud.ports.len() {
        let host = random.below(HOSTS);
        if cloud.ports[port].trunk.is_none() && !cloud.ports[port].is_on(super::host_id(host)) && random.once_in(4) {
            cloud.await_on(port, host, 1);
        }
    }
}

/// Makes some of a tenant's ports sub-ports of others of its own, on the same network or on another, there with the same MAC address sometimes.
fn join(cloud: &mut Cloud, tenant: &str, random: &mut Random) {
    let mine: Vec<usize> =
        (0..cloud.ports.len()).filter(|port| cloud.ports[*port].name.split('-').next() == Some(tenant)).collect();
    let Some((parents, others)) = mine.split_at_checked(2) else { return };
    for port in others {
        if random.once_in(3) {
            let parent = *random.pick(parents);
            cloud.trunk(*port, parent, u16::try_from(*port).unwrap() + 1);
            let (there, here) = (&cloud.ports[parent], &cloud.ports[*port]);
            let is_free = cloud.ports.iter().all(|other| (other.network, other.mac) != (here.network, there.mac));
            if is_free && random.once_in(2) {
                cloud.ports[*port].mac = cloud.ports[parent].mac;
            }
        }
    }
}

/// Has some of a tenant's ports mirrored to one of its own.
fn watch(cloud: &mut Cloud, tenant: &str, random: &mut Random) {
    let mine: Vec<usize> =
        (0..cloud.ports.len()).filter(|port| cloud.ports[*port].name.split('-').next() == Some(tenant)).collect();
    let to = *random.pick(&mine);
    for port in mine.into_iter().filter(|port| *port != to) {
        let direction = *random.pick(&[MirrorDirection::In, MirrorDirection::Out, MirrorDirection::Both]);
        if random.once_in(3) {
            cloud.mirror(port, to, direction);
        }
    }
}

/// Whether a new connection from one port to an address of another is allowed: they are joined, the sender's rules let it out and the receiver's
/// let it in. Each has an address of that version.
pub fn is_allowed(cloud: &Cloud, source: usize, (target, at): (usize, IpAddr), payload: Payload) -> bool {
    let (from, to) = (&cloud.ports[source], &cloud.ports[target]);
    let mine = from.addresses.iter().find(|fixed| fixed.address.is_ipv4() == at.is_ipv4()).unwrap();
    let theirs = to.addresses.iter().find(|fixed| fixed.address == at).unwrap();
    let joined = from.network == to.network || {
        cloud.routers.iter().any(|router| {
            let subnets: Vec<_> = router.interfaces.iter().map(|foot| foot.subnet).collect();
            subnets.contains(&mine.subnet) && subnets.contains(&theirs.subnet)
        })
    };
    let out = !from.port_security || lets(cloud, from, (to, at), Direction::Egress, payload);
    let into = !to.port_security || lets(cloud, to, (from, mine.address), Direction::Ingress, payload);
    joined && out && into
}

fn lets(cloud: &Cloud, mine: &Port, other: (&Port, IpAddr), direction: Direction, payload: Payload) -> bool {
    let groups = cloud.groups.iter().filter(|group| mine.groups.contains(&group.id));
    let rules = groups.flat_map(|group| &group.rules).filter(|rule| rule.direction == direction);
    let mut rules = rules.filter(|rule| rule.ethertype == version(other.1));
    rules.any(|rule| carries(rule.protocol, payload) && is_remote(cloud, rule.remote, other))
}

/// Whether the rules of a port let a packet pass between it and a stranger at an address.
pub fn lets_stranger(cloud: &Cloud, port: &Port, at: IpAddr, direction: Direction, payload: Payload) -> bool {
    let groups = cloud.groups.iter().filter(|group| port.groups.contains(&group.id));
    let rules = groups.flat_map(|group| &group.rules).filter(|rule| rule.direction == direction);
    let mut rules = rules.filter(|rule| rule.ethertype == version(at));
    rules.any(|rule| {
        let is_remote = match rule.remote {
            Remote::Any => true,
            Remote::Prefix(prefix) => prefix.contains(&IpNet::from(at)),
            Remote::Group(_) => false,
            Remote::Addresses(id) => cloud.address_groups.iter().any(|group| group.id == id && group.holds(at)),
        };
        is_remote && carries(rule.protocol, payload)
    })
}

fn is_remote(cloud: &Cloud, remote: Remote, (other, at): (&Port, IpAddr)) -> bool {
    match remote {
        Remote::Any => true,
        Remote::Prefix(prefix) => prefix.contains(&IpNet::from(at)),
        Remote::Group(group) => other.groups.contains(&group),
        Remote::Addresses(id) => cloud.address_groups.iter().any(|group| group.id == id && group.holds(at)),
    }
}

fn carries(protocol: Protocol, payload: Payload) -> bool {
    match (protocol, payload) {
        (Protocol::Any, _)
        | (Protocol::Number(6), Payload::Tcp { .. })
        | (Protocol::Number(17), Payload::Udp { .. }) => true,
        (Protocol::Tcp(range), Payload::Tcp { target, .. }) | (Protocol::Udp(range), Payload::Udp { target, .. }) => {
            range.holds(target)
        }
        (Protocol::Icmp { kind: want, .. }, Payload::Icmp { kind, .. }) => want.is_none_or(|want| want == kind),
        (Protocol::Number(want), Payload::Protocol(number)) => want == number,
        _ => false,
    }
}

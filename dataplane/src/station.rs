//! Stations outside: which MAC addresses the neighbours on provider networks have, found out by ARP and neighbour discovery in the name of the addresses that
//! are here (floating IPs, routed addresses of ports, and those of routers whose gateway host this is), and who is told that those are here.
//!
//! Owns [`Finder`], which keeps no clock and sends nothing: it is told the time and says what to send. Never takes an answer to what was not asked.
//! What it found is for [`compile`](crate::compile()) to read, and is lost with the agent.
//! Invariant: at most [`STATIONS_MAX`] stations beside gateways; each is asked at most once in [`RETRY`]. Each
//! address that is here is announced, [`ANNOUNCEMENTS`] times when it comes and each [`ANNOUNCE_AGAIN`] then, so that switches settle on this host.
//!
//! ```text
//!           wanted                    answer                  TRIES_MAX unanswered, after FRESH
//!  nobody ---------> asked each RETRY --------> known -----------------------------------------> asked each RETRY
//!     ^------------------/ TRIES_MAX unanswered, and no gateway
//! ```
//!
//! Source: RFC 4861 §7.2 (IPv6), RFC 826, RFC 5227 §2.3 (announcements), RFC 1122 §2.3.2.1 (what is known is asked again).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use model::network::GatewayHost;
use model::provider::VlanId;
use model::spec::HostNetwork;
use model::{Mac, NetworkId, SubnetId};
use openflow::flow::PortNo;

use crate::compile::{PortNumbers, Stations};
use crate::peer::Peer;

mod neighbour;

use neighbour::{Said, Speaker};

/// The most stations that are known beside gateways.
pub const STATIONS_MAX: usize = 1024;
/// The time between two questions to a station that does not answer, and between announcements.
pub const RETRY: Duration = Duration::from_secs(1);
/// How long an answer is taken for true before it is asked again.
pub const FRESH: Duration = Duration::from_secs(30);
/// The same of a gateway: everybody leaves by it, and another router may take its address over.
pub const GATEWAY_FRESH: Duration = Duration::from_secs(5);
/// Questions without an answer after which a station is not known any more.
pub const TRIES_MAX: u32 = 3;
/// How often the arrival of an address is announced right away: switches may lose one.
pub const ANNOUNCEMENTS: u8 = 3;
/// How long after that, and again each time, it is announced while it is here: a host whose agent is dead may have it as well, and what it sends from
/// there must not lead switches astray for long.
pub const ANNOUNCE_AGAIN: Duration = Duration::from_secs(30);
/// The most of these repetitions at once; the rest follow in the order of their age.
pub const AGAIN_MAX: usize = 64;

/// The most arrivals that are announced at once; the rest follow.
pub const ARRIVALS_MAX: usize = 256;

const REQUEST: u16 = 1;
const REPLY: u16 = 2;
/// An ARP packet between Ethernet stations about IPv4: hardware, protocol and the lengths of both addresses (RFC 826).
const ARP_HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ETHER_ARP: [u8; 2] = [8, 6];
const ETHER_VLAN: [u8; 2] = [0x81, 0];
const ETHER_IPV4: [u8; 2] = [8, 0];
const ETHER_IPV6: [u8; 2] = [0x86, 0xdd];
/// Octets before the tag of a frame.
const MACS: usize = 12;

/// How a provider network is reached from here, and what is here of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlet {
    wire: PortNo,
    vlan: Option<VlanId>,
    gateways: BTreeSet<IpAddr>,
    /// Floating IPs and routed addresses of ports that are plugged in here, and addresses of routers that have theirs here.
    held: BTreeMap<IpAddr, Held>,
    /// Of addresses of routers the endpoints of the other gateways that are alive: one that comes back to life may have thought the same of us.
    rivals: BTreeMap<IpAddr, BTreeSet<Ipv4Addr>>,
}

/// An address that is here: its MAC address, and the subnet whose stations are asked for in its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    mac: Mac,
    near: IpNet,
    is_router: bool,
}

/// The networks outside that have addresses here.
pub type Outlets = BTreeMap<NetworkId, Outlet>;

/// A frame to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The OpenFlow port.
    pub port: PortNo,
    /// The frame, tagged where its network is a VLAN.
    pub frame: Vec<u8>,
}

/// What a frame says of stations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Somebody here wants to reach this address.
    Wanted(IpAddr),
    /// This address is at this MAC address.
    Told(IpAddr, Mac),
    /// A station outside asks who has this address of IPv6, from this address and MAC address. ARP is answered by flows.
    Asked(Ipv6Addr, (Ipv6Addr, Mac)),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Station {
    mac: Option<Mac>,
    /// Since when it is so: it answered, or was looked for first.
    heard: Duration,
    asked: Option<Duration>,
    tries: u32,
}

/// Finds stations.
#[derive(Debug, Default)]
pub struct Finder {
    stations: BTreeMap<(NetworkId, IpAddr), Station>,
    announced: BTreeMap<(NetworkId, IpAddr), (u8, Duration)>,
    /// The other gateways that were alive, of what is here.
    rivals: BTreeMap<(NetworkId, IpAddr), BTreeSet<Ipv4Addr>>,
}

/// What there is outside for a host: only networks that it is wired to, with floating IPs or routed addresses of ports that are plugged in here, or the
/// address of a router whose gateway this host is.
#[must_use]
pub fn outlets(host: &HostNetwork, numbers: &PortNumbers) -> Outlets {
    let mut outlets = Outlets::new();
    for router in host.routers.values() {
        let Some(external) = &router.external else { continue };
        let here = external.floating_ips.iter().filter(|floating| {
            let port = host.ports.get(&floating.port);
            port.is_some_and(|port| port.is_on(host.host) && numbers.of(port).is_some())
        });
        let held = here.map(|floating| (floating.address, floating.mac, false));
        let snat = external.snat.as_ref().filter(|snat| leads(host, &snat.gateways, numbers));
        let held = held.chain(snat.map(|snat| (snat.address, snat.mac, true)));
        let held: Vec<_> = held.map(|(address, mac, is_router)| (address.into(), mac, is_router)).collect();
        let Some(outlet) = outlet(&mut outlets, host, numbers, external.subnet, &held) else { continue };
        outlet.rivals.extend(snat.map(|snat| (snat.address.into(), living(host, &snat.gateways, numbers))));
    }
    let mut norths = BTreeMap::new();
    for router in host.routers.values() {
        let Some(gateway) = &router.ipv6_gateway else { continue };
        norths.extend(router.interfaces.iter().map(|foot| (foot.subnet, gateway.subnet)));
        if leads(host, &gateway.gateways, numbers) {
            let (address, mac) = (gateway.address, gateway.mac);
            let held = [address, mac.link_local()].map(|address| (address.into(), mac, true));
            let Some(outlet) = outlet(&mut outlets, host, numbers, gateway.subnet, &held) else { continue };
            outlet.rivals.insert(address.into(), living(host, &gateway.gateways, numbers));
        }
    }
    if norths.is_empty() {
        return outlets;
    }
    for port in host.local_ports().filter(|port| numbers.of(port).is_some()) {
        for fixed in &port.addresses {
            let routed = norths.get(&fixed.subnet).filter(|external| is_routed(host, **external, fixed.subnet));
            let (Some(external), mac) = (routed, port.routed_mac()) else { continue };
            let held = [fixed.address, mac.link_local().into()].map(|address| (address, mac, false));
            let _wired = outlet(&mut outlets, host, numbers, *external, &held);
        }
    }
    outlets
}

/// Whether what is in a subnet is routed on the network of an external one.
fn is_routed(host: &HostNetwork, external: SubnetId, subnet: SubnetId) -> bool {
    let outside = host.subnets.get(&external).and_then(|external| host.networks.get(&external.network));
    outside.zip(host.subnets.get(&subnet)).is_some_and(|(outside, subnet)| outside.routes(subnet.cidr))
}

/// The outlet of an external subnet, with these addresses of it here: each with its MAC address, and whether it is a router's. None where there are none, or no
/// wire.
fn outlet<'a>(
    outlets: &'a mut Outlets,
    host: &HostNetwork,
    numbers: &PortNumbers,
    external: SubnetId,
    held: &[(IpAddr, Mac, bool)],
) -> Option<&'a mut Outlet> {
    let subnet = host.subnets.get(&external)?;
    let provider = host.networks.get(&subnet.network).and_then(|network| network.provider.as_ref())?;
    let wire = numbers.physical.get(&provider.physical_network).filter(|_| !held.is_empty())?;
    let outlet = outlets.entry(subnet.network).or_insert_with(|| Outlet {
        wire: *wire,
        vlan: provider.segmentation.vlan(),
        gateways: BTreeSet::new(),
        held: BTreeMap::new(),
        rivals: BTreeMap::new(),
    });
    let near = subnet.cidr;
    outlet.held.extend(
        held.iter().map(|(address, mac, is_router)| (*address, Held { mac: *mac, near, is_router: *is_router })),
    );
    outlet.gateways.extend(subnet.gateway);
    Some(outlet)
}

/// Whether this host is the gateway that has an address: the first, or none before it is alive.
fn leads(host: &HostNetwork, gateways: &[GatewayHost], numbers: &PortNumbers) -> bool {
    let rank = gateways.iter().position(|gateway| gateway.host == host.host);
    let is_lost = |gateway: &GatewayHost| numbers.peers.get(&gateway.tunnel).is_some_and(Peer::is_lost);
    rank.and_then(|rank| gateways.get(..rank)).is_some_and(|before| before.iter().all(is_lost))
}

/// The endpoints of the other gateways that are alive.
fn living(host: &HostNetwork, gateways: &[GatewayHost], numbers: &PortNumbers) -> BTreeSet<Ipv4Addr> {
    let others = gateways.iter().filter(|gateway| gateway.host != host.host).map(|gateway| gateway.tunnel);
    others.filter(|endpoint| numbers.peers.get(endpoint).is_some_and(|peer| peer.is_alive)).collect()
}

impl Outlet {
    /// In whose name an address is asked for.
    fn asker(&self, target: IpAddr) -> Option<(IpAddr, Mac)> {
        let mut held = self.held.iter().filter(|(_, held)| held.near.contains(&target));
        held.next().map(|(address, held)| (*address, held.mac))
    }

    /// A request of one of ours: of ARP, or a solicitation.
    fn request(&self, asker: (IpAddr, Mac), target: IpAddr) -> Option<Probe> {
        match (asker, target) {
            ((IpAddr::V4(address), mac), IpAddr::V4(target)) => Some(self.request_v4((address, mac), target)),
            ((IpAddr::V6(_), mac), IpAddr::V6(target)) => self.tagged(neighbour::solicit(mac, target)?),
            _ => None,
        }
    }

    /// Tells all that an address is here.
    fn announcement(&self, address: IpAddr, held: Held) -> Option<Probe> {
        match address {
            IpAddr::V4(address) => Some(self.request_v4((address, held.mac), address)),
            IpAddr::V6(address) => {
                let speaker = Speaker { address, mac: held.mac, is_router: held.is_router };
                self.tagged(neighbour::announce(speaker)?)
            }
        }
    }

    /// Answers who asked for an address that is here.
    fn answer(&self, target: Ipv6Addr, asker: (Ipv6Addr, Mac)) -> Option<Probe> {
        let held = self.held.get(&IpAddr::V6(target))?;
        let speaker = Speaker { address: target, mac: held.mac, is_router: held.is_router };
        self.tagged(neighbour::answer(speaker, asker)?)
    }

    /// Puts the tag of the network on.
    fn tagged(&self, mut frame: Vec<u8>) -> Option<Probe> {
        if let Some(vlan) = self.vlan {
            let rest = frame.split_off(MACS.min(frame.len()));
            frame.extend(ETHER_VLAN);
            frame.extend(vlan.get().to_be_bytes());
            frame.extend(rest);
        }
        Some(Probe { port: self.wire, frame })
    }

    /// An ARP request of one of ours.
    fn request_v4(&self, (address, mac): (Ipv4Addr, Mac), target: Ipv4Addr) -> Probe {
        let mut frame = [Mac::BROADCAST.bytes(), mac.bytes()].concat();
        if let Some(vlan) = self.vlan {
            frame.extend(ETHER_VLAN);
            frame.extend(vlan.get().to_be_bytes());
        }
        frame.extend(ETHER_ARP);
        frame.extend(ARP_HEAD);
        frame.extend(REQUEST.to_be_bytes());
        frame.extend(mac.bytes());
        frame.extend(address.octets());
        frame.extend([0; 6]);
        frame.extend(target.octets());
        Probe { port: self.wire, frame }
    }
}

impl Finder {
    /// Takes what a frame of a network says, and gives the answer to a question.
    pub fn hear(&mut self, network: NetworkId, heard: Heard, outlets: &Outlets, now: Duration) -> Option<Probe> {
        match heard {
            Heard::Asked(target, asker) => return outlets.get(&network)?.answer(target, asker),
            Heard::Wanted(address) => {
                let has_asker = outlets.get(&network).is_some_and(|outlet| outlet.asker(address).is_some());
                if has_asker && !self.stations.contains_key(&(network, address)) {
                    self.make_room(outlets);
                    self.stations.insert((network, address), Station { heard: now, ..Station::default() });
                }
            }
            Heard::Told(address, mac) => {
                let asked = self.stations.get_mut(&(network, address)).filter(|station| station.asked.is_some());
                if let Some(station) = asked.filter(|_| mac.is_unicast()) {
                    *station = Station { mac: Some(mac), heard: now, asked: None, tries: 0 };
                }
            }
        }
        None
    }

    /// Forgets a station where there are too many: of those that have not answered the one that was looked for first, else the one whose answer is
    /// oldest. Whoever looks for many makes others be asked for again, and keeps nobody from being found.
    fn make_room(&mut self, outlets: &Outlets) {
        let is_gateway = |(network, address): &(NetworkId, IpAddr)| {
            outlets.get(network).is_some_and(|outlet| outlet.gateways.contains(address))
        };
        if self.stations.len() >= STATIONS_MAX {
            let others = self.stations.iter().filter(|(key, _)| !is_gateway(key));
            let oldest = others.min_by_key(|(_, station)| (station.mac.is_some(), station.heard)).map(|(key, _)| *key);
            oldest.map(|key| self.stations.remove(&key));
        }
    }

    /// What is to be sent now.
    pub fn tick(&mut self, outlets: &Outlets, now: Duration) -> Vec<Probe> {
        self.stations.retain(|(network, address), _| {
            outlets.get(network).is_some_and(|outlet| outlet.asker(*address).is_some())
        });
        for (network, outlet) in outlets {
            for gateway in outlet.gateways.iter().filter(|gateway| outlet.asker(**gateway).is_some()) {
                self.stations.entry((*network, *gateway)).or_default();
            }
        }
        let mut probes = self.announce(outlets, now);
        self.stations.retain(|(network, address), station| {
            let Some(outlet) = outlets.get(network) else { return false };
            let is_quiet = station.asked.is_none_or(|asked| now >= asked + RETRY);
            let fresh = if outlet.gateways.contains(address) { GATEWAY_FRESH } else { FRESH };
            if !is_quiet || station.mac.is_some() && now < station.heard + fresh {
                return true;
            }
            if station.tries >= TRIES_MAX {
                if station.mac.is_none() && !outlet.gateways.contains(address) {
                    return false;
                }
                (station.mac, station.tries) = (None, 0);
            }
            let Some(asker) = outlet.asker(*address) else { return false };
            (station.asked, station.tries) = (Some(now), station.tries + 1);
            probes.extend(outlet.request(asker, *address));
            true
        });
        probes
    }

    /// Tells switches and stations of addresses that came here. Those of a link alone are nobody's to be told.
    fn announce(&mut self, outlets: &Outlets, now: Duration) -> Vec<Probe> {
        let is_held = |network: &NetworkId, address: &IpAddr| {
            outlets.get(network).is_some_and(|outlet| outlet.held.contains_key(address))
        };
        self.announced.retain(|(network, address), _| is_held(network, address));
        self.meet_rivals(outlets);
        let mut probes = Vec::new();
        for (network, outlet) in outlets {
            for (address, held) in outlet.held.iter().filter(|(address, _)| !is_of_link(**address)) {
                let (times, last) = self.announced.entry((*network, *address)).or_default();
                if *times < ANNOUNCEMENTS && (*times == 0 || now >= *last + RETRY) && probes.len() < ARRIVALS_MAX {
                    (*times, *last) = (*times + 1, now);
                    probes.extend(outlet.announcement(*address, *held));
                }
            }
        }
        probes.extend(self.announce_again(outlets, now));
        probes
    }

    /// Begins anew with what another gateway may have announced: one that was silent for us until now may have taken us for dead.
    fn meet_rivals(&mut self, outlets: &Outlets) {
        let mut before = std::mem::take(&mut self.rivals);
        for (network, outlet) in outlets {
            for (address, living) in &outlet.rivals {
                let key = (*network, *address);
                let known = before.remove(&key);
                if known.is_some_and(|known| !living.is_subset(&known)) {
                    self.announced.remove(&key);
                }
                self.rivals.insert(key, living.clone());
            }
        }
    }

    /// Tells them again of those that they were told of longest ago.
    fn announce_again(&mut self, outlets: &Outlets, now: Duration) -> Vec<Probe> {
        let is_due = |(times, last): &(u8, Duration)| *times >= ANNOUNCEMENTS && now >= *last + ANNOUNCE_AGAIN;
        let due = self.announced.iter().filter(|(_, told)| is_due(told));
        let mut due: Vec<_> = due.map(|(key, (_, last))| (*last, *key)).collect();
        due.sort_unstable();
        due.truncate(AGAIN_MAX);
        let mut probes = Vec::new();
        for (_, key @ (network, address)) in due {
            let held = outlets.get(&network).and_then(|outlet| Some((outlet, outlet.held.get(&address)?)));
            let Some((outlet, held)) = held else { continue };
            self.announced.insert(key, (ANNOUNCEMENTS, now));
            probes.extend(outlet.announcement(address, *held));
        }
        probes
    }

    /// What is known.
    #[must_use]
    pub fn known(&self) -> Stations {
        self.stations.iter().filter_map(|(key, station)| Some((*key, station.mac?))).collect()
    }
}

/// Whether an address is of one link alone.
const fn is_of_link(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Reads a frame that a flow handed over, its tag taken off: an ARP reply, a neighbour message, or a packet that goes to an unknown station.
#[must_use]
pub fn read(frame: &[u8]) -> Option<Heard> {
    let address = |octets: &[u8]| <[u8; 4]>::try_from(octets).ok().map(Ipv4Addr::from);
    let kind = frame.get(12..14)?;
    if kind == ETHER_IPV4 {
        return Some(Heard::Wanted(address(frame.get(30..34)?)?.into()));
    }
    if kind == ETHER_IPV6 {
        return neighbour::read(frame).map(|said| match said {
            Said::Asked(target, asker) => Heard::Asked(target, asker),
            Said::Told(address, mac) => Heard::Told(address.into(), mac),
            Said::Sent(target) => Heard::Wanted(target.into()),
        });
    }
    let is_reply = kind == ETHER_ARP && frame.get(14..20)? == ARP_HEAD && frame.get(20..22)? == REPLY.to_be_bytes();
    let mac = Mac::new(frame.get(22..28)?.try_into().ok()?);
    is_reply.then_some(Heard::Told(address(frame.get(28..32)?)?.into(), mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));
    const NEAR: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));
    const HELD: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 50));
    const OURS: Mac = Mac::new([2, 3, 0, 0, 0, 1]);
    const THEIRS: Mac = Mac::new([2, 9, 0, 0, 0, 1]);

    fn network() -> NetworkId {
        NetworkId::from_uuid(uuid::Uuid::from_u128(1))
    }

    fn held(near: &str) -> Held {
        Held { mac: OURS, near: near.parse().unwrap(), is_router: false }
    }

    fn outlets() -> Outlets {
        let outlet = Outlet {
            wire: PortNo(2),
            vlan: Some(100.try_into().unwrap()),
            gateways: BTreeSet::from([GATEWAY]),
            held: BTreeMap::from([(HELD, held("203.0.113.0/24"))]),
            rivals: BTreeMap::new(),
        };
        BTreeMap::from([(network(), outlet)])
    }

    /// The addresses that are asked for; an announcement asks for its own.
    fn targets(probes: &[Probe]) -> Vec<IpAddr> {
        let last = |probe: &Probe| IpAddr::from(<[u8; 4]>::try_from(&probe.frame[probe.frame.len() - 4..]).unwrap());
        probes.iter().map(last).collect()
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn arrivals_are_announced_a_few_times_and_the_gateway_is_asked_until_it_answers() {
        let (mut finder, outlets) = (Finder::default(), outlets());
        for second in 0..3 {
            assert_eq!(targets(&finder.tick(&outlets, at(second))), [HELD, GATEWAY]);
            assert!(finder.tick(&outlets, at(second)).is_empty(), "once a second");
        }
        for second in 3..9 {
            assert_eq!(targets(&finder.tick(&outlets, at(second))), [GATEWAY]);
        }
        finder.hear(network(), Heard::Told(GATEWAY, THEIRS), &outlets, at(9));
        assert_eq!(finder.known(), Stations::from([((network(), GATEWAY), THEIRS)]));
        assert!(finder.tick(&outlets, at(13)).is_empty(), "fresh");
        for second in 14..17 {
            assert_eq!(targets(&finder.tick(&outlets, at(second))), [GATEWAY]);
            assert!(!finder.known().is_empty(), "still taken for true");
        }
        assert_eq!(targets(&finder.tick(&outlets, at(17))), [GATEWAY]);
        assert!(finder.known().is_empty(), "it did not answer");
        assert!(finder.tick(&Outlets::new(), at(18)).is_empty());
        assert_eq!(targets(&finder.tick(&outlets, at(19))), [HELD, GATEWAY], "it came back");
    }

    /// What is here is told again for as long as it is here, a few at a time, those first that were told longest ago.
    #[test]
    fn what_is_here_is_announced_again_and_again() {
        let (mut finder, mut outlets) = (Finder::default(), outlets());
        let count = u8::try_from(AGAIN_MAX).unwrap() + 6;
        let outlet = outlets.get_mut(&network()).unwrap();
        outlet.gateways.clear();
        outlet.held =
            (0..count).map(|last| (IpAddr::from([203, 0, 113, 100 + last]), held("203.0.113.0/24"))).collect();
        for second in 0..3 {
            assert_eq!(finder.tick(&outlets, at(second)).len(), usize::from(count));
        }
        let mut told: BTreeMap<IpAddr, Vec<u64>> = BTreeMap::new();
        for second in 3..100 {
            let targets = targets(&finder.tick(&outlets, at(second)));
            assert!(targets.len() <= AGAIN_MAX, "{targets:?}");
            targets.into_iter().for_each(|target| told.entry(target).or_default().push(second));
        }
        assert_eq!(told.len(), usize::from(count));
        for (address, seconds) in told {
            assert!(seconds == [32, 62, 92] || seconds == [33, 63, 93], "{address}: {seconds:?}");
        }
    }

    /// A gateway that is heard again may have announced the address meanwhile.
    #[test]
    fn what_is_here_is_announced_when_another_gateway_comes_back() {
        let (mut finder, mut outlets) = (Finder::default(), outlets());
        let outlet = outlets.get_mut(&network()).unwrap();
        outlet.gateways.clear();
        let other = Ipv4Addr::new(192, 0, 2, 2);
        outlet.rivals.insert(HELD, BTreeSet::from([other]));
        for second in 0..3 {
            assert_eq!(targets(&finder.tick(&outlets, at(second))), [HELD]);
        }
        assert!(finder.tick(&outlets, at(4)).is_empty());
        outlets.get_mut(&network()).unwrap().rivals.insert(HELD, BTreeSet::new());
        assert!(finder.tick(&outlets, at(5)).is_empty(), "it is silent");
        outlets.get_mut(&network()).unwrap().rivals.insert(HELD, BTreeSet::from([other]));
        for second in 6..9 {
            assert_eq!(targets(&finder.tick(&outlets, at(second))), [HELD], "it is back");
        }
        assert!(finder.tick(&outlets, at(10)).is_empty());
    }

    #[test]
    fn only_what_was_asked_is_believed_and_a_silent_station_is_forgotten() {
        let (mut finder, outlets) = (Finder::default(), outlets());
        finder.hear(network(), Heard::Told(NEAR, THEIRS), &outlets, at(0));
        finder.hear(network(), Heard::Wanted(IpAddr::from([198, 51, 100, 1])), &outlets, at(0));
        finder.tick(&outlets, at(0));
        assert!(finder.known().is_empty(), "nobody asked for it, or could");
        finder.hear(network(), Heard::Wanted(NEAR), &outlets, at(1));
        assert!(targets(&finder.tick(&outlets, at(1))).contains(&NEAR));
        finder.hear(network(), Heard::Told(NEAR, Mac::BROADCAST), &outlets, at(1));
        assert!(finder.known().is_empty(), "a group's MAC address is nobody's");
        for second in 2..4 {
            assert!(targets(&finder.tick(&outlets, at(second))).contains(&NEAR));
        }
        assert!(!targets(&finder.tick(&outlets, at(4))).contains(&NEAR), "silent");
        let mut wide = outlets;
        let held = wide.get_mut(&network()).unwrap().held.get_mut(&HELD).unwrap();
        held.near = "203.0.0.0/16".parse().unwrap();
        for number in 0..4 * u16::try_from(STATIONS_MAX).unwrap() {
            let address = Ipv4Addr::from_bits(u32::from_be_bytes([203, 0, 0, 0]) + u32::from(number));
            finder.hear(network(), Heard::Wanted(address.into()), &wide, at(5));
        }
        assert_eq!(finder.stations.len(), STATIONS_MAX);
        finder.hear(network(), Heard::Wanted(NEAR), &wide, at(6));
        let asked = targets(&finder.tick(&wide, at(6)));
        assert!(asked.contains(&NEAR) && asked.contains(&GATEWAY), "a flood keeps nobody from being looked for");
        finder.hear(network(), Heard::Told(NEAR, THEIRS), &wide, at(6));
        for number in 0..4 * u16::try_from(STATIONS_MAX).unwrap() {
            let address = Ipv4Addr::from_bits(u32::from_be_bytes([203, 0, 0, 0]) + u32::from(number));
            finder.hear(network(), Heard::Wanted(address.into()), &wide, at(7));
        }
        assert_eq!((finder.stations.len(), finder.known().len()), (STATIONS_MAX, 1), "nor from being known");
    }

    #[test]
    fn frames_read_as_they_were_written() {
        let probe = outlets()[&network()].request((HELD, OURS), GATEWAY).unwrap();
        assert_eq!(probe.frame.len(), 46, "an ARP request with a tag");
        assert_eq!(probe.frame[12..16], [0x81, 0, 0, 100]);
        let mut reply: Vec<u8> = probe.frame[..12].iter().chain(&probe.frame[16..]).copied().collect();
        assert_eq!(read(&reply), None, "a request tells nothing");
        reply[21] = 2;
        assert_eq!(read(&reply), Some(Heard::Told(HELD, OURS)));
        for length in 0..32 {
            assert_eq!(read(&reply[..length]), None, "{length} octets");
        }
    }
}

//! Floating IPs: addresses of a provider network that stand for ports behind a router, each on the host of its port, without a connection of its own.
//!
//! From outside the destination is rewritten before anything is tracked or judged; to outside the source is rewritten after that. So rules and
//! connections know the fixed address only, and security groups hold as they do inside. What leaves is, once rewritten, a frame on the provider
//! network as any other, looked up there again: a station here, another floating IP here and the wire are one case. What goes to a floating IP
//! of this host comes back in as if from the wire, so that its rules see the same sender wherever that is.
//!
//! ```text
//! wire -> identity -> forward: to the fixed address -> track ... output
//! port -> forward -> route -> beyond: the station's MAC address -> track ... output: from the floating IP --again--> forward -> wire
//! ```
//!
//! A floating IP has a MAC address of its own: it is seen at one host at a time, and physical switches follow it by its announcements. The MAC addresses
//! of stations are what the agent found out; it is asked for those that it has not. A packet whose TTL runs out is dropped. What an
//! ICMP error quotes is translated as well, by the agent ([`quoted`]).

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use model::Mac;
use model::network::{ExternalGateway, FloatingIp, Network, Port, Router, Subnet};
use openflow::flow::{Action, Controller, Field, Match, Meter, MeterUnit, VLAN_PRESENT};

use crate::compile::view::{Place, Segment, Spot, View};
use crate::cookie::{Cookie, Object};
use crate::family::{self, Family};
use crate::feature::failover::Gate;
use crate::feature::forward::towards;
use crate::feature::{Feature, arp, firewall, quoted};
use crate::flow_set::{MeterNumber, Part};
use crate::identity::NOBODY;
use crate::punt::Punt;
use crate::quoted::End;
use crate::register::{
    FLAG_BITS, FROM_OUTSIDE, FROM_PHYSICAL, Flag, LEAVING, NETWORK, ROUTER, SOURCE, SOURCE_IDENTITY, TARGET,
    TARGET_IDENTITY, TO_PHYSICAL, ZONE,
};
use crate::switch::bridge::VXLAN_UDP_PORT;
use crate::table::Table;

/// Above what names senders by their address alone.
const OWN: u16 = 130;
const HEARD_OF_GATEWAY: u16 = 125;
const HEARD: u16 = 120;
const EXPIRED: u16 = 120;
const PRETENDED: u16 = 115;
const ERRORS_INWARD: u16 = 112;
const INWARD: u16 = 110;
/// Above what the agent found out, which may be old.
const KNOWN: u16 = 110;
const STATION: u16 = 100;
const ASK: u16 = 50;
/// Above what leads out.
const NOT_OURS: u16 = 410;
/// Above what keeps packets from going back where they came from.
const ERRORS_OUTWARD: u16 = 402;
const OUTWARD: u16 = 400;
const STUCK: u16 = 390;
const BACK_IN: u16 = 380;

/// What is said of a packet that neither a floating IP nor its router's address leads out.
pub(crate) const NO_WAY_OUT: &str = "its address has no floating IP to leave by";

/// What is said of a packet from outside with an address from behind the router.
pub(crate) const NO_SENDER: &str = "no sender outside has an address of";

/// ARP replies of one network that the agent is handed in a second, and at once; the same for packets to stations that it does not know, and for
/// replies of gateways: whoever sends too much of one keeps none of the others from it.
const STATIONS_PER_SECOND: u32 = 100;
const STATIONS_BURST: u32 = 200;

const REQUEST: u16 = 1;
const REPLY: u16 = 2;

const PIPELINE: Cookie = Cookie { feature: Feature::Floating, object: Object::Pipeline };

/// A floating IP whose port is plugged in here.
pub(crate) struct Held<'a> {
    pub(crate) floating: &'a FloatingIp,
    pub(crate) port: &'a Port,
    /// The network outside.
    outside: Segment<'a>,
    /// The network of the port.
    inside: Segment<'a>,
    /// The router's MAC address there.
    foot: Mac,
    pub(crate) cookie: Cookie,
}

pub(crate) fn host(part: &mut Part) {
    part.add_miss(Table::Beyond);
    let stuck = Match::new().with_masked(FLAG_BITS.field, LEAVING.mask, LEAVING.mask);
    let note = NO_WAY_OUT.to_owned();
    // Where the data centre routes to the hosts' own network, a machine could reach their tunnel endpoints, which believe what network it says it is of.
    let tunnel = stuck.clone().udp().with(Field::UdpDst, VXLAN_UDP_PORT);
    part.add_noted(Table::Output, STUCK, stuck, Vec::new(), (PIPELINE, note));
    let note = format!("UDP port {VXLAN_UDP_PORT} is for tunnels between hosts, no machine leaves the cloud by it");
    part.add_noted(Table::Output, NOT_OURS, tunnel, Vec::new(), (PIPELINE, note));
}

/// The floating IPs of a router whose ports are plugged in here.
pub(crate) fn held<'a>(
    view: &View<'a>,
    router: &Router,
    network: &Network,
    external: &'a ExternalGateway,
) -> Vec<Held<'a>> {
    external.floating_ips.iter().filter_map(|floating| held_one(view, router, network, floating)).collect()
}

/// What is there for them.
pub(crate) fn add(view: &View<'_>, router: &Router, subnet: &Subnet, held: &[Held<'_>], part: &mut Part) {
    for held in held {
        let name = format!("floating IP {}", held.floating.address);
        held.station(&name).add_arp(subnet, Gate::OPEN, part);
        held.add_inward(view, router, part);
        held.add_outward(router, part);
    }
}

fn held_one<'a>(view: &View<'a>, router: &Router, network: &Network, floating: &'a FloatingIp) -> Option<Held<'a>> {
    let port = view.port(floating.port)?;
    if view.place(port) != Place::Here || view.number(port).is_none() {
        return None;
    }
    let fixed = port.addresses.iter().find(|fixed| fixed.address == IpAddr::V4(floating.fixed))?;
    let foot = router.interfaces.iter().find(|foot| foot.subnet == fixed.subnet)?;
    Some(Held {
        floating,
        port,
        outside: view.segment(network.id)?,
        inside: view.segment(port.network)?,
        foot: foot.mac,
        cookie: Cookie { feature: Feature::Floating, object: Object::Port(port.key) },
    })
}

impl Held<'_> {
    fn outside(&self) -> Match {
        Match::new().with(NETWORK.field, self.outside.vni())
    }

    fn station<'a>(&'a self, name: &'a str) -> Station<'a> {
        let FloatingIp { address, mac, .. } = *self.floating;
        Station { name, address, mac, outside: self.outside, cookie: self.cookie }
    }

    /// From outside to the port.
    fn add_inward(&self, view: &View<'_>, router: &Router, part: &mut Part) {
        let FloatingIp { address, mac, fixed, .. } = *self.floating;
        let from_wire = || self.outside().with_masked(FLAG_BITS.field, FROM_PHYSICAL.mask, FROM_PHYSICAL.mask);
        let to = || from_wire().eth_dst(mac.bytes()).ip().with(Field::Ipv4Dst, address);
        for ttl in [0_u8, 1] {
            let note = "its time to live ran out".to_owned();
            part.add_noted(Table::Forward, EXPIRED, to().with(Field::IpTtl, ttl), Vec::new(), (self.cookie, note));
        }
        add_pretended(feet(view, router), address, to, self.cookie, part);
        let mut steps = vec![
            Action::set(Field::Ipv4Dst, fixed),
            Action::set(Field::EthSrc, self.foot.bytes()),
            Action::set(Field::EthDst, self.port.mac.bytes()),
            Action::DecTtl,
            Action::set(NETWORK.field, self.inside.vni()),
            Action::set(ZONE.field, self.inside.zone),
        ];
        steps.extend(towards(view, self.port));
        steps.extend(firewall::inward(view, router, vec![Action::GotoTable(Table::Track.number())]));
        for error in quoted::errors(&to()) {
            let first = quoted::translated(self.port.key, End::Source, (address, fixed), part);
            let note = format!("floating IP {address} is {fixed}, also in what the error quotes");
            let steps = first.into_iter().chain(steps.clone()).collect();
            part.add_noted(Table::Forward, ERRORS_INWARD, error, steps, (self.cookie, note));
        }
        part.add_noted(Table::Forward, INWARD, to(), steps, (self.cookie, format!("floating IP {address} is {fixed}")));
        // What a station here sends to it was judged as its own by now; it goes on as if it came from the wire.
        let here = self.outside().eth_dst(mac.bytes()).with_masked(Field::VlanVid, 0, VLAN_PRESENT);
        let here = here.with_masked(FLAG_BITS.field, TO_PHYSICAL.mask, TO_PHYSICAL.mask | FROM_PHYSICAL.mask);
        let mut steps = vec![Action::CtClear, Action::set(SOURCE.field, 0_u32)];
        steps.extend(again(FROM_OUTSIDE.mask | FROM_PHYSICAL.mask));
        let note = format!("floating IP {address} is here");
        part.add_noted(Table::Output, BACK_IN, here, steps, (self.cookie, note));
    }

    /// From the port to outside, by this router: its network may have others, which lead out as somebody else.
    fn add_outward(&self, router: &Router, part: &mut Part) {
        let FloatingIp { address, mac, fixed, .. } = *self.floating;
        let near = self.outside().ip().with(Field::Ipv4Dst, address);
        let steps = vec![Action::set(Field::EthDst, mac.bytes()), Action::GotoTable(Table::Track.number())];
        part.add_noted(Table::Beyond, KNOWN, near, steps, (self.cookie, format!("floating IP {address} is here")));
        let leaving = self.outside().with_masked(FLAG_BITS.field, LEAVING.mask, LEAVING.mask);
        let leaving = leaving.with(ROUTER.field, router.key).with(SOURCE.field, self.port.key);
        let leaving = leaving.ip().with(Field::Ipv4Src, fixed);
        let mut steps = vec![
            Action::CtClear,
            Action::set(Field::Ipv4Src, address),
            Action::set(Field::EthSrc, mac.bytes()),
            Action::set(SOURCE.field, 0_u32),
            Action::set(SOURCE_IDENTITY.field, NOBODY),
            Action::set(ROUTER.field, 0_u32),
            Action::set(ZONE.field, self.outside.zone),
        ];
        steps.extend(again(0));
        for error in quoted::errors(&leaving) {
            let first = quoted::translated(self.port.key, End::Target, (fixed, address), part);
            let note = format!("{fixed} leaves as {address}, also in what the error quotes");
            let steps = first.into_iter().chain(steps.clone()).collect();
            part.add_noted(Table::Output, ERRORS_OUTWARD, error, steps, (self.cookie, note));
        }
        part.add_noted(Table::Output, OUTWARD, leaving, steps, (self.cookie, format!("{fixed} leaves as {address}")));
    }
}

/// The addresses of IPv4 on the networks that a router has feet in.
pub(crate) fn feet(view: &View<'_>, router: &Router) -> impl Iterator<Item = IpNet> {
    let feet = router.interfaces.iter().filter_map(|foot| view.subnet(foot.subnet)).map(|subnet| subnet.cidr);
    feet.filter(|range| matches!(range, IpNet::V4(_)))
}

/// Of what comes from outside to an address of a router, what says that it is from behind the router, or from that address: rules that name a range of
/// addresses, and the connections inside, believe the source.
pub(crate) fn add_pretended(
    inside: impl Iterator<Item = IpNet>,
    address: Ipv4Addr,
    to: impl Fn() -> Match,
    cookie: Cookie,
    part: &mut Part,
) {
    for range in inside.chain([IpNet::from(IpAddr::V4(address))]) {
        let note = format!("{NO_SENDER} {range}");
        part.add_noted(Table::Forward, PRETENDED, family::from_net(to(), range), Vec::new(), (cookie, note));
    }
}

/// An address outside that is here, by its name in words.
pub(crate) struct Station<'a> {
    pub(crate) name: &'a str,
    pub(crate) address: Ipv4Addr,
    pub(crate) mac: Mac,
    pub(crate) outside: Segment<'a>,
    pub(crate) cookie: Cookie,
}

impl Station<'_> {
    /// It is asked for, and hears answers to what the agent asked in its name.
    pub(crate) fn add_arp(&self, subnet: &Subnet, gate: Gate<'_>, part: &mut Part) {
        let Self { name, address, mac, .. } = *self;
        let arp = || Match::new().with(NETWORK.field, self.outside.vni()).arp();
        let own = arp().with(Field::ArpSpa, address);
        let note = format!("{name} is announced by another host");
        part.add_noted(Table::Identity, OWN, own, Vec::new(), (self.cookie, note));
        let asked = arp().with(Field::ArpOp, REQUEST).with(Field::ArpTpa, address);
        let goto = vec![Action::GotoTable(Table::Arp.number())];
        let note = format!("{name} is asked for");
        gate.add_or_drop(part, (Table::Identity, HEARD), asked, goto, (self.cookie, note));
        let vlan = self.outside.network.provider.as_ref().and_then(|provider| provider.segmentation.vlan());
        arp::answer_outside(self.outside, address, mac, vlan, self.cookie, part);
        let told = arp().with(Field::ArpOp, REPLY).with(Field::ArpTpa, address).eth_dst(mac.bytes());
        let vni = self.outside.vni();
        if let Some(IpAddr::V4(gateway)) = subnet.gateway {
            let of_gateway = told.clone().with(Field::ArpSpa, gateway);
            let note = format!("{name} is told of gateway {gateway}");
            let punt = hand_over(vni, MeterNumber::Gateways(vni));
            part.add_noted(Table::Identity, HEARD_OF_GATEWAY, of_gateway, punt, (self.cookie, note));
        }
        let note = format!("{name} is told of a station");
        let punt = hand_over(vni, MeterNumber::Stations(vni));
        part.add_noted(Table::Identity, HEARD, told, punt, (self.cookie, note));
    }
}

/// A network outside that has floating IPs here: what the agent knows of its stations.
pub(crate) fn network(view: &View<'_>, segment: Segment<'_>, part: &mut Part) {
    if !view.is_outside(segment.network.id) {
        return;
    }
    let cookie = Cookie { feature: Feature::Floating, object: Object::Network(segment.vni()) };
    let vni = segment.vni();
    for meter in [MeterNumber::Stations(vni), MeterNumber::Wanted(vni), MeterNumber::Gateways(vni)] {
        let meter = Meter::drop_above(meter.to_wire(), MeterUnit::Packets, STATIONS_PER_SECOND, STATIONS_BURST);
        part.add_meter(meter);
    }
    for (address, mac) in view.stations(segment.network.id) {
        let steps = vec![Action::set(Field::EthDst, mac.bytes()), Action::GotoTable(Table::Track.number())];
        let to = family::to(address).with(NETWORK.field, vni);
        part.add_noted(Table::Beyond, STATION, to, steps, (cookie, format!("{address} is at {mac}, as it told")));
    }
    let note = "the agent asks who has this address".to_owned();
    let six = Some(Family::V6).filter(|_| view.is_north(segment.network.id));
    for family in [Family::V4].into_iter().chain(six) {
        let on_it = family.packets().with(NETWORK.field, vni);
        part.add_noted(Table::Beyond, ASK, on_it, hand_over(vni, MeterNumber::Wanted(vni)), (cookie, note.clone()));
    }
}

/// A port of a network outside, as a station there.
pub(crate) fn port(view: &View<'_>, spot: Spot<'_>, part: &mut Part) {
    let (port, Some(segment)) = (spot.port, spot.segment) else { return };
    if spot.place == Place::Nowhere || segment.network.provider.is_none() || !view.is_outside(port.network) {
        return;
    }
    let cookie = Cookie { feature: Feature::Floating, object: Object::Port(port.key) };
    let has_six = view.is_north(port.network);
    for fixed in port.addresses.iter().filter(|fixed| has_six || fixed.address.is_ipv4()) {
        let to = family::to(fixed.address).with(NETWORK.field, segment.vni());
        let steps = vec![
            Action::set(Field::EthDst, port.mac.bytes()),
            Action::set(TARGET_IDENTITY.field, view.identity(port)),
            Action::GotoTable(Table::Track.number()),
        ];
        part.add(Table::Beyond, KNOWN, to, steps, cookie);
    }
}

/// Hands a packet to the agent, which finds a station by it.
pub(crate) fn hand_over(vni: u32, meter: MeterNumber) -> Vec<Action> {
    let controller = Controller::new().with_userdata(Punt::Station { network: vni }.to_user_data());
    vec![Action::Meter(meter.to_wire()), Action::Controller(controller)]
}

/// Looks a packet up on its network once more, with these flags and no destination yet.
pub(crate) fn again(flags: u32) -> [Action; 4] {
    [
        Action::set(FLAG_BITS.field, flags),
        Action::set(TARGET.field, 0_u32),
        Action::set(TARGET_IDENTITY.field, NOBODY),
        Action::resubmit(Table::Forward.number()),
    ]
}

pub(crate) fn raise(flag: Flag) -> Action {
    Action::set_masked(FLAG_BITS.field, flag.mask, flag.mask)
}

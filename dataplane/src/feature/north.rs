//! Routed IPv6: what leaves a router by IPv6 and comes in by it, with the addresses that ports have, each on the host of its port.
//!
//! Nothing is translated. A port whose subnet lies in what the data centre routes to a provider network is a station there by a MAC address of its own, which
//! goes where the port goes: solicitations for its addresses are answered by the agent of its host, and what leaves is sent with that MAC address. So
//! both directions pass that host alone, where security groups and the router's firewall judge them. Where the data centre routes by the router's own address
//! instead, the gateway host of the router has that, and passes what comes on to the port's host by tunnel, still unrouted and as of the network outside: there
//! it goes on as if it had come from the wire. What no port has is dropped, never sent back. Addresses that are not routed stay inside.
//! Two routers reach each other by way of the data centre, which may have its own word in it.
//! Invariant: what leaves has an address of its port, and one that is routed.
//!
//! ```text
//! port -> forward -> route -> (beyond: a station) -> track ... output: from the port's MAC address outside --again--> forward -> wire
//! wire -> identity -> forward: routed to the port -> track ... output
//! wire -> identity -> forward (to the router's own MAC address, gateway) -> beyond --again--> forward: routed to the port
//!                                                                              \--tunnel--> arrive -> forward: routed to the port
//! ```
//!
//! Source: RFC 4861 §7.2 (solicitations, advertisements), RFC 8200 §3 (hop limit), ADR 12.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use model::network::{Ipv6Gateway, Network, Port, ROUTED_MAC, Router, Subnet};
use openflow::flow::{Action, Field, Match, VLAN_PRESENT};
use openflow::wire::{Meter, MeterUnit};

use crate::compile::view::{North, Place, Segment, Spot, View};
use crate::cookie::{Cookie, Object};
use crate::family;
use crate::feature::failover::Seat;
use crate::feature::floating::{again, hand_over, raise};
use crate::feature::forward::towards;
use crate::feature::neighbour::{self, ADVERT, REDIRECT, ROUTER_SOLICIT, SOLICIT, UNROUTED};
use crate::feature::router::{ROUTE, UNROUTABLE};
use crate::feature::{Feature, firewall, way_out};
use crate::flow_set::{MeterNumber, Part};
use crate::identity::NOBODY;
use crate::register::{
    ENDPOINT, FLAG_BITS, FROM_OUTSIDE, FROM_PHYSICAL, LEAVING, NETWORK, ROUTER, SOURCE, SOURCE_IDENTITY, TO_PHYSICAL,
    TO_TUNNEL, ZONE,
};
use crate::table::Table;

const ARRIVAL: u16 = 110;
const HEARD_OF_GATEWAY: u16 = 125;
const HEARD: u16 = 120;
const EXPIRED: u16 = 120;
const OF_LINK: u16 = 118;
const PRETENDED: u16 = 115;
const INWARD: u16 = 110;
/// Above the stations of the network: these come from there.
const HOLDER: u16 = 230;
const NOBODY_HAS_IT: u16 = 225;
const OUTWARD: u16 = 400;
const STUCK: u16 = 395;
const BACK_IN: u16 = 380;
/// Below what leads out, above what says that there is no route.
const STAYS: u16 = 70;

/// Solicitations from one network that the agent is handed in a second, and at once: a router of the data centre that starts asks for all that it knew.
const ASKED_PER_SECOND: u32 = 500;
const ASKED_BURST: u32 = 1000;

/// What is said of a packet whose sender nobody outside could answer.
pub(crate) const NOT_ROUTED: &str = "its address is in no prefix that is routed outside, so it stays inside";
/// What is said of a packet from outside to an address that is routed here and that no port has.
pub(crate) const NO_PORT: &str = "no port behind the router has this address";
/// What is said of a packet that leaves with an address that is routed and not its port's.
pub(crate) const NOT_ITS_OWN: &str = "its port does not have this address, so no answer would come to it";

/// What is said of a packet that would leave its link for another one's own addresses (RFC 4291 §2.5.6, §2.7).
const OF_ONE_LINK: &str = "link-local and multicast addresses are of one link, and are not routed out";

const LINK_LOCAL: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);
const MULTICAST: (Ipv6Addr, u8) = (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8);
const UNSPECIFIED: (Ipv6Addr, u8) = (Ipv6Addr::UNSPECIFIED, 128);

/// A router's way out.
struct Exit<'a> {
    router: &'a Router,
    gateway: &'a Ipv6Gateway,
    /// Outside.
    subnet: &'a Subnet,
    network: &'a Network,
    cookie: Cookie,
}

impl<'a> Exit<'a> {
    fn of(view: &View<'a>, router: &'a Router) -> Option<Self> {
        let gateway = router.ipv6_gateway.as_ref()?;
        let subnet = view.subnet(gateway.subnet)?;
        let cookie = Cookie { feature: Feature::North, object: Object::Router(router.key.into()) };
        Some(Self { router, gateway, subnet, network: view.network(subnet.network)?, cookie })
    }

    fn of_router(&self) -> Match {
        Match::new().ipv6().with(ROUTER.field, self.router.key)
    }
}

/// All MAC addresses by which ports are stations outside.
fn to_ports(matching: Match) -> Match {
    let [a, b] = ROUTED_MAC;
    matching.with_masked(Field::EthDst, [a, b, 0, 0, 0, 0], [0xff, 0xff, 0, 0, 0, 0])
}

fn solicited(segment: Segment<'_>, target: Ipv6Addr) -> Match {
    message(segment, SOLICIT).with(Field::NdTarget, target)
}

/// A neighbour message on the link of a network outside.
fn message(segment: Segment<'_>, kind: u8) -> Match {
    let message = Match::new().icmp6().with(NETWORK.field, segment.vni()).with(Field::IpTtl, UNROUTED);
    message.with(Field::Icmpv6Type, kind).with(Field::Icmpv6Code, 0_u8)
}

/// A router with a way out, where ports may be behind it.
pub(crate) fn router(view: &View<'_>, router: &Router, part: &mut Part) {
    let Some(exit) = Exit::of(view, router) else { return };
    let routed: Vec<IpNet> = router
        .interfaces
        .iter()
        .filter_map(|foot| view.subnet(foot.subnet))
        .map(|subnet| subnet.cidr)
        .filter(|cidr| exit.network.routes(*cidr))
        .collect();
    for range in &routed {
        exit.add_routes(view, *range, part);
    }
    for (address, length) in [LINK_LOCAL, MULTICAST] {
        let of_link = exit.of_router().ipv6_dst_net(address, length);
        part.add_noted(Table::Route, UNROUTABLE, of_link, Vec::new(), (exit.cookie, OF_ONE_LINK.to_owned()));
    }
    part.add_noted(Table::Route, STAYS, exit.of_router(), Vec::new(), (exit.cookie, NOT_ROUTED.to_owned()));
    let leaving = exit.of_router().with_masked(FLAG_BITS.field, LEAVING.mask, LEAVING.mask);
    part.add_noted(Table::Output, STUCK, leaving, Vec::new(), (exit.cookie, NOT_ITS_OWN.to_owned()));
    let from_outside = Match::new().ipv6().with(NETWORK.field, exit.network.vni.get());
    let from_outside = to_ports(from_outside).with_masked(FLAG_BITS.field, FROM_OUTSIDE.mask, FROM_OUTSIDE.mask);
    for behind in view.inside(router.id).filter(|range| matches!(range, IpNet::V6(_))) {
        for range in &routed {
            let note = format!("{} {behind}", super::floating::NO_SENDER);
            let pretended = family::from_net(family::to_net(from_outside.clone(), *range), behind);
            part.add_noted(Table::Forward, PRETENDED, pretended, Vec::new(), (exit.cookie, note));
        }
    }
}

impl Exit<'_> {
    /// The ways to the external subnet and to everybody else, for senders of a routed subnet.
    fn add_routes(&self, view: &View<'_>, range: IpNet, part: &mut Part) {
        let from = || family::from_net(self.of_router(), range);
        let name = &self.subnet.name;
        let leave = [Action::DecTtl, Action::set(NETWORK.field, self.network.vni.get()), raise(LEAVING)];
        let near = family::to_net(from(), self.subnet.cidr);
        let steps = leave.iter().cloned().chain([Action::GotoTable(Table::Beyond.number())]).collect();
        let priority = ROUTE + u16::from(self.subnet.cidr.prefix_len());
        let note = format!("out to external subnet {name}, by IPv6");
        part.add_noted(Table::Route, priority, near, steps, (self.cookie, note));
        let Some(gateway) = self.subnet.gateway else { return };
        let (steps, note) = match way_out::station(view, self.network, gateway) {
            Some(mac) => {
                let to_it = [Action::set(Field::EthDst, mac.bytes()), Action::GotoTable(Table::Track.number())];
                (leave.into_iter().chain(to_it).collect(), format!("out by {gateway} of external subnet {name}"))
            }
            None => (Vec::new(), format!("the gateway {gateway} of external subnet {name} has not answered yet")),
        };
        part.add_noted(Table::Route, ROUTE, from(), steps, (self.cookie, note));
    }
}

/// The router's own address outside, where this host has it or may come to have it: what comes by it is passed on to the hosts of ports.
pub(crate) fn gate(view: &View<'_>, router: &Router, part: &mut Part) {
    let Some(exit) = Exit::of(view, router) else { return };
    let (gateway, cookie) = (exit.gateway, exit.cookie);
    if router.ipv6_gateway_among(view.here()).is_none() {
        return;
    }
    let (Some(seat), Some(segment)) = (Seat::among(view, &gateway.gateways), view.segment(exit.network.id)) else {
        return;
    };
    // Whoever comes before it is taken for alive until it was heard.
    if matches!(seat, Seat::Elsewhere(..)) {
        return;
    }
    let turn = seat.gate6(view, router.key);
    for address in [gateway.mac.link_local(), gateway.address] {
        let note = format!("the router's {address} is asked for");
        let asked = hand_over(segment.vni(), MeterNumber::Asked(segment.vni()));
        turn.add_or_drop(part, (Table::Identity, HEARD), solicited(segment, address), asked, (cookie, note));
        neighbour::answer(segment, address, gateway.mac, cookie, part);
    }
    let told = message(segment, ADVERT).eth_dst(gateway.mac.bytes());
    add_told(&told, segment, exit.subnet.gateway, cookie, part);
    let on_it = || Match::new().with(NETWORK.field, segment.vni()).eth_dst(gateway.mac.bytes());
    let arriving = on_it().ipv6().with_masked(FLAG_BITS.field, FROM_PHYSICAL.mask, FROM_PHYSICAL.mask);
    for kind in ROUTER_SOLICIT..=REDIRECT {
        let own = arriving.clone().ip_proto(openflow::flow::ip_proto::ICMPV6).with(Field::Icmpv6Type, kind);
        part.add_noted(Table::Forward, OF_LINK, own, Vec::new(), (cookie, OF_LINK_NOTE.to_owned()));
    }
    let steps = vec![Action::set(ROUTER.field, router.key), Action::GotoTable(Table::Beyond.number())];
    let note = "it is routed here by the router's own address".to_owned();
    turn.add_or_drop(part, (Table::Forward, INWARD), arriving, steps, (cookie, note));
    let here = on_it().with_masked(Field::VlanVid, 0, VLAN_PRESENT);
    let here = here.with_masked(FLAG_BITS.field, TO_PHYSICAL.mask, TO_PHYSICAL.mask | FROM_PHYSICAL.mask);
    let note = format!("the router's {} is here", gateway.address);
    turn.add(part, (Table::Output, BACK_IN), here, back_in(), (cookie, note));
    let lost = exit.of_router().with(NETWORK.field, segment.vni());
    let lost = lost.with_masked(FLAG_BITS.field, FROM_PHYSICAL.mask, FROM_PHYSICAL.mask);
    part.add_noted(Table::Beyond, NOBODY_HAS_IT, lost, Vec::new(), (cookie, NO_PORT.to_owned()));
}

const OF_LINK_NOTE: &str = "neighbour messages stay on their link";

/// What a station outside tells, and its gateway among them.
fn add_told(told: &Match, segment: Segment<'_>, gateway: Option<IpAddr>, cookie: Cookie, part: &mut Part) {
    let vni = segment.vni();
    if let Some(IpAddr::V6(gateway)) = gateway {
        let note = format!("this host is told of gateway {gateway}");
        let of_gateway = told.clone().with(Field::NdTarget, gateway);
        let punt = hand_over(vni, MeterNumber::Gateways(vni));
        part.add_noted(Table::Identity, HEARD_OF_GATEWAY, of_gateway, punt, (cookie, note));
    }
    let note = "this host is told of a station".to_owned();
    let punt = hand_over(vni, MeterNumber::Stations(vni));
    part.add_noted(Table::Identity, HEARD, told.clone(), punt, (cookie, note));
}

/// As if it came from the wire.
fn back_in() -> Vec<Action> {
    let first = [Action::CtClear, Action::set(SOURCE.field, 0_u32), Action::set(ROUTER.field, 0_u32)];
    first.into_iter().chain(again(FROM_OUTSIDE.mask | FROM_PHYSICAL.mask)).collect()
}

/// A network outside that routers lead out to by IPv6.
pub(crate) fn network(view: &View<'_>, segment: Segment<'_>, part: &mut Part) {
    if !view.is_north(segment.network.id) {
        return;
    }
    let vni = segment.vni();
    let cookie = Cookie { feature: Feature::North, object: Object::Network(vni) };
    let meter = MeterNumber::Asked(vni).to_wire();
    part.add_meter(Meter::drop_above(meter, MeterUnit::Packets, ASKED_PER_SECOND, ASKED_BURST));
    let gateways = view.north_gateways(segment.network.id);
    let told = to_ports(message(segment, ADVERT));
    add_told(&told, segment, None, cookie, part);
    for gateway in gateways {
        add_told(&told, segment, Some(gateway.into()), cookie, part);
    }
    let on_it = to_ports(Match::new().ipv6().with(NETWORK.field, vni));
    let arriving = || on_it.clone().with_masked(FLAG_BITS.field, FROM_OUTSIDE.mask, FROM_OUTSIDE.mask);
    let mut drop = |priority: u16, matching: Match, note: &str| {
        part.add_noted(Table::Forward, priority, matching, Vec::new(), (cookie, note.to_owned()));
    };
    for ttl in [0_u8, 1] {
        drop(EXPIRED, arriving().with(Field::IpTtl, ttl), "its hop limit ran out");
    }
    for kind in ROUTER_SOLICIT..=REDIRECT {
        let own = arriving().ip_proto(openflow::flow::ip_proto::ICMPV6).with(Field::Icmpv6Type, kind);
        drop(OF_LINK, own, OF_LINK_NOTE);
    }
    for (address, length) in [LINK_LOCAL, MULTICAST, UNSPECIFIED] {
        drop(OF_LINK, arriving().ipv6_src_net(address, length), "its source is none that is routed");
    }
    if view.tunnel().is_some() {
        let flags = FROM_OUTSIDE.mask | FROM_PHYSICAL.mask;
        let steps = vec![
            Action::set(NETWORK.field, vni),
            Action::set(ZONE.field, segment.zone),
            Action::set_masked(FLAG_BITS.field, flags, flags),
            Action::GotoTable(Table::Forward.number()),
        ];
        let arrival = to_ports(Match::new().ipv6().with(Field::TunId, vni));
        let note = "it came to a router's own address on another host".to_owned();
        part.add_noted(Table::Arrive, ARRIVAL, arrival, steps, (cookie, note));
    }
}

/// The routed addresses of a port.
pub(crate) fn port(view: &View<'_>, spot: Spot<'_>, part: &mut Part) {
    if spot.place == Place::Nowhere {
        return;
    }
    let port = spot.port;
    for fixed in &port.addresses {
        let IpAddr::V6(address) = fixed.address else { continue };
        let Some(north) = view.north(fixed.subnet) else { continue };
        let Some(outside) = view.segment(north.outside) else { continue };
        let cookie = Cookie { feature: Feature::North, object: Object::Port(port.key) };
        let held = Held { port, address, north, outside, cookie };
        if north.is_gate {
            held.add_way(spot.place, part);
        }
        if spot.place == Place::Here && view.number(port).is_some() {
            held.add_inward(view, part);
            held.add_outward(part);
            held.add_neighbour(part);
        }
    }
}

/// A routed address of a port.
struct Held<'a> {
    port: &'a Port,
    address: Ipv6Addr,
    north: North,
    outside: Segment<'a>,
    cookie: Cookie,
}

impl Held<'_> {
    fn mac(&self) -> [u8; 6] {
        self.port.routed_mac().bytes()
    }

    fn outside(&self) -> Match {
        Match::new().with(NETWORK.field, self.outside.vni())
    }

    /// From the router's own address on this host to the port's host.
    fn add_way(&self, place: Place, part: &mut Part) {
        let to = family::to(self.address.into()).with(NETWORK.field, self.outside.vni());
        let to = to.with(ROUTER.field, self.north.key);
        let to = to.with_masked(FLAG_BITS.field, FROM_PHYSICAL.mask, FROM_PHYSICAL.mask);
        let mut steps = vec![Action::set(Field::EthDst, self.mac()), Action::set(ROUTER.field, 0_u32)];
        let note = match place {
            Place::There(endpoint) => {
                steps.push(Action::set(FLAG_BITS.field, TO_TUNNEL.mask));
                steps.push(Action::set(ENDPOINT.field, endpoint));
                steps.push(Action::GotoTable(Table::Output.number()));
                "it goes on to the host of its port"
            }
            Place::Here | Place::Nowhere => {
                steps.push(Action::resubmit(Table::Forward.number()));
                "its port is here"
            }
        };
        part.add_noted(Table::Beyond, HOLDER, to, steps, (self.cookie, note.to_owned()));
    }

    /// From outside to the port.
    fn add_inward(&self, view: &View<'_>, part: &mut Part) {
        let Some(inside) = view.segment(self.port.network) else { return };
        let to = family::to(self.address.into()).with(NETWORK.field, self.outside.vni()).eth_dst(self.mac());
        let to = to.with_masked(FLAG_BITS.field, FROM_OUTSIDE.mask, FROM_OUTSIDE.mask);
        let mut steps = vec![
            Action::set(Field::EthSrc, self.north.foot.bytes()),
            Action::set(Field::EthDst, self.port.mac.bytes()),
            Action::DecTtl,
            Action::set(NETWORK.field, inside.vni()),
            Action::set(ZONE.field, inside.zone),
        ];
        steps.extend(towards(view, self.port));
        let onward = vec![Action::GotoTable(Table::Track.number())];
        let border = self.north.has_firewall.then_some((self.north.router, self.north.key));
        steps.extend(firewall::past(view, border, onward));
        let note = format!("{} is routed to it from outside", self.address);
        part.add_noted(Table::Forward, INWARD, to, steps, (self.cookie, note));
        // What a station here sends to it was judged as its own by now; it goes on as if it came from the wire.
        let here = self.outside().eth_dst(self.mac()).with_masked(Field::VlanVid, 0, VLAN_PRESENT);
        let here = here.with_masked(FLAG_BITS.field, TO_PHYSICAL.mask, TO_PHYSICAL.mask | FROM_PHYSICAL.mask);
        let note = "its routed addresses are here".to_owned();
        part.add_noted(Table::Output, BACK_IN, here, back_in(), (self.cookie, note));
    }

    /// From the port to outside.
    fn add_outward(&self, part: &mut Part) {
        let leaving = self.outside().with_masked(FLAG_BITS.field, LEAVING.mask, LEAVING.mask);
        let leaving = leaving.with(ROUTER.field, self.north.key).with(SOURCE.field, self.port.key);
        let leaving = leaving.ipv6().with(Field::Ipv6Src, self.address);
        let mut steps = vec![
            Action::CtClear,
            Action::set(Field::EthSrc, self.mac()),
            Action::set(SOURCE.field, 0_u32),
            Action::set(SOURCE_IDENTITY.field, NOBODY),
            Action::set(ROUTER.field, 0_u32),
            Action::set(ZONE.field, self.outside.zone),
        ];
        steps.extend(again(0));
        let note = format!("{} leaves as it is", self.address);
        part.add_noted(Table::Output, OUTWARD, leaving, steps, (self.cookie, note));
    }

    /// It is asked for, by stations outside and by those here.
    fn add_neighbour(&self, part: &mut Part) {
        let mac = self.port.routed_mac();
        let vni = self.outside.vni();
        for address in [mac.link_local(), self.address] {
            let note = format!("{address} is asked for");
            let asked = hand_over(vni, MeterNumber::Asked(vni));
            part.add_noted(Table::Identity, HEARD, solicited(self.outside, address), asked, (self.cookie, note));
            neighbour::answer(self.outside, address, mac, self.cookie, part);
        }
    }
}

//! Layer 2: the destination of a packet on its own network.
//!
//! Every port of the network is known by its MAC address, here or elsewhere; a router's MAC address leads to its routes. Broadcast and multicast go
//! to each port here and, once, to every other host that has a port on the network; what came from outside stays here. A unicast address that nobody
//! has is dropped, or sent to the physical network that the network is a part of. Rules are asked for every copy.

use model::network::{Port, Router};
use openflow::flow::{Action, Field, Match};

use crate::compile::view::{Place, Segment, Spot, View};
use crate::cookie::{Cookie, Object};
use crate::family::Family;
use crate::feature::{Feature, provider};
use crate::flow_set::{GroupNumber, Part};
use crate::register::{
    ENDPOINT, FLAG_BITS, FROM_OUTSIDE, NETWORK, ROUTER, TARGET, TARGET_GUARDED, TARGET_IDENTITY, TARGET_STATELESS,
    TO_ALL_HOSTS, TO_PHYSICAL, TO_TUNNEL,
};
use crate::table::Table;

const LINK_CONTROL: u16 = 320;
const KNOWN: u16 = 100;
/// Below the MAC addresses of ports, which a pair may repeat.
const SHARED_FROM_OUTSIDE: u16 = 80;
const SHARED: u16 = 70;
const FLOOD_FROM_OUTSIDE: u16 = 60;
const FLOOD: u16 = 50;
/// Copies in one group: a bucket takes about 70 octets, and a message must not have more than 65,535 (OpenFlow 1.5.1 §7.1.1). Parts may come out a
/// little larger than this.
const COPIES_MAX: usize = 400;
/// Parts that a network's ports here can be split into.
const PARTS_MAX: usize = 32;
/// The bit that makes a MAC address a group's.
const GROUP_BIT: [u8; 6] = [1, 0, 0, 0, 0, 0];
/// Spanning tree, LACP, 802.1X, LLDP: what a bridge never passes on (IEEE 802.1Q §8.6.3). A guest that speaks them must not reach a physical network,
/// whose switches take it for one of theirs, nor the other way round.
const LINK_CONTROL_MAC: ([u8; 6], [u8; 6]) = ([0x01, 0x80, 0xc2, 0, 0, 0], [0xff, 0xff, 0xff, 0xff, 0xff, 0xf0]);

pub(crate) fn host(part: &mut Part) {
    part.add_miss(Table::Forward);
    let (mac, mask) = LINK_CONTROL_MAC;
    let cookie = Cookie { feature: Feature::Forward, object: Object::Pipeline };
    let note = "link control frames stay on their link".to_owned();
    part.add_noted(
        Table::Forward,
        LINK_CONTROL,
        Match::new().with_masked(Field::EthDst, mac, mask),
        Vec::new(),
        (cookie, note),
    );
}

/// A port that is plugged in somewhere.
pub(crate) fn port(view: &View<'_>, spot: Spot<'_>, part: &mut Part) {
    let (port, Some(segment)) = (spot.port, spot.segment) else { return };
    if spot.place == Place::Nowhere {
        return;
    }
    let cookie = Cookie { feature: Feature::Forward, object: Object::Port(port.key) };
    let to = Match::new().with(NETWORK.field, segment.vni()).eth_dst(port.mac.bytes());
    let is_beyond = segment.network.provider.is_some() && spot.place != Place::Here;
    let mut steps = if is_beyond { provider::towards(view, port) } else { towards(view, port) };
    steps.push(Action::GotoTable(Table::Track.number()));
    part.add(Table::Forward, KNOWN, to, steps, cookie);
    add_shared(port, segment, cookie, part);
}

/// A MAC address of an allowed pair may be at several ports: who has it now is known to nobody here, so it is flooded. One flow for all of them.
fn add_shared(port: &Port, segment: Segment<'_>, cookie: Cookie, part: &mut Part) {
    for mac in port.pairs().map(|(_, mac)| mac).filter(|mac| *mac != port.mac) {
        let shared = || Match::new().with(NETWORK.field, segment.vni()).eth_dst(mac.bytes());
        let from_outside = shared().with_masked(FLAG_BITS.field, FROM_OUTSIDE.mask, FROM_OUTSIDE.mask);
        let copy = |group: GroupNumber| vec![Action::Group(group.to_wire())];
        part.add(
            Table::Forward,
            SHARED_FROM_OUTSIDE,
            from_outside,
            copy(GroupNumber::FloodHere(segment.vni())),
            cookie,
        );
        part.add(Table::Forward, SHARED, shared(), copy(GroupNumber::FloodEverywhere(segment.vni())), cookie);
    }
}

/// The feet of a router.
pub(crate) fn router(view: &View<'_>, router: &Router, part: &mut Part) {
    let cookie = Cookie { feature: Feature::Forward, object: Object::Router(router.key.into()) };
    for foot in &router.interfaces {
        let Some(segment) = view.subnet_of(foot).and_then(|(_, network)| view.segment(network.id)) else { continue };
        let family = Family::of(foot.address);
        let to = family.packets().with(NETWORK.field, segment.vni()).eth_dst(foot.mac.bytes()).with_masked(
            FLAG_BITS.field,
            0,
            FROM_OUTSIDE.mask,
        );
        let steps = vec![Action::set(ROUTER.field, router.key), Action::GotoTable(Table::Route.number())];
        part.add(Table::Forward, KNOWN, to, steps, cookie);
    }
}

/// What a packet knows once its destination is known.
pub(crate) fn towards(view: &View<'_>, port: &Port) -> Vec<Action> {
    let mut steps = vec![Action::set(TARGET.field, port.key), Action::set(TARGET_IDENTITY.field, view.identity(port))];
    match view.place(port) {
        Place::Here => return here(view, port),
        Place::Nowhere => {}
        Place::There(endpoint) => {
            steps.push(Action::set(ENDPOINT.field, endpoint));
            steps.push(raise(TO_TUNNEL.mask));
        }
    }
    steps
}

/// The same once it is known that it goes to the tap of this host.
pub(crate) fn here(view: &View<'_>, port: &Port) -> Vec<Action> {
    let steps = [Action::set(TARGET.field, port.key), Action::set(TARGET_IDENTITY.field, view.identity(port))];
    let guard = Some(guard(view, port)).filter(|flags| *flags != 0).map(raise);
    steps.into_iter().chain(guard).collect()
}

/// The flags of what is judged here for a port.
pub(crate) fn guard(view: &View<'_>, port: &Port) -> u32 {
    match port.port_security {
        true if view.is_stateless(port) => TARGET_GUARDED.mask | TARGET_STATELESS.mask,
        true => TARGET_GUARDED.mask,
        false => 0,
    }
}

/// The broadcasts of a network.
pub(crate) fn network(view: &View<'_>, segment: Segment<'_>, part: &mut Part) {
    let cookie = Cookie { feature: Feature::Forward, object: Object::Network(segment.vni()) };
    let (here, everywhere) = (GroupNumber::FloodHere(segment.vni()), GroupNumber::FloodEverywhere(segment.vni()));
    flood_here(view, segment, part);
    let all_here = vec![Action::Group(here.to_wire())];
    let away = if segment.network.provider.is_some() {
        Some(TO_PHYSICAL.mask)
    } else {
        let is_elsewhere = view.tunnel().is_some() && !view.endpoints(segment.network.id).is_empty();
        is_elsewhere.then_some(TO_ALL_HOSTS.mask)
    };
    let away = away.map(|flag| vec![raise(flag), Action::resubmit(Table::Track.number())]);
    part.add_group(everywhere, std::iter::once(all_here).chain(away).collect());
    let many = || Match::new().with(NETWORK.field, segment.vni()).with_masked(Field::EthDst, GROUP_BIT, GROUP_BIT);
    let from_outside = many().with_masked(FLAG_BITS.field, FROM_OUTSIDE.mask, FROM_OUTSIDE.mask);
    part.add(Table::Forward, FLOOD_FROM_OUTSIDE, from_outside, vec![Action::Group(here.to_wire())], cookie);
    part.add(Table::Forward, FLOOD, many(), vec![Action::Group(everywhere.to_wire())], cookie);
}

/// The group of all ports here; of several groups when they are too many for one message. Which part a port is in depends on its key and on how
/// many parts there are, so that a port more or less changes one part.
fn flood_here(view: &View<'_>, segment: Segment<'_>, part: &mut Part) {
    let locals = view.locals(segment.network.id);
    let plugged: Vec<_> = locals.iter().filter(|local| local.number.is_some()).map(|local| local.port).collect();
    let parts = plugged.len().div_ceil(COPIES_MAX).next_power_of_two().min(PARTS_MAX);
    let mut copies: Vec<Vec<Vec<Action>>> = vec![Vec::new(); parts];
    for port in plugged {
        let mut steps = self::here(view, port);
        steps.push(Action::resubmit(Table::Track.number()));
        let of = usize::try_from(port.key).unwrap_or_default() % parts;
        copies[of].push(steps);
    }
    let here = GroupNumber::FloodHere(segment.vni());
    if parts == 1 {
        part.add_group(here, copies.concat());
        return;
    }
    let mut all = Vec::with_capacity(parts);
    for (number, copies) in (0_u8..).zip(copies) {
        let group = GroupNumber::FloodPart(segment.vni(), number);
        part.add_group(group, copies);
        all.push(vec![Action::Group(group.to_wire())]);
    }
    part.add_group(here, all);
}

fn raise(mask: u32) -> Action {
    Action::set_masked(FLAG_BITS.field, mask, mask)
}

//! Neighbour discovery: guests speak for their own addresses only, and every known address is answered for in flows.
//!
//! Guarded ports (their source addresses are checked before) may solicit with their own MAC address or none, advertise their own addresses, and
//! are no routers: advertisements of routers and redirects are dropped. A probe for the port's own address gets no answer, for nobody else can
//! have it. A solicitation for an address of a port or a router on the network is handed to the agent, which answers it: the kernel's data path can
//! not turn it into the advertisement. What is not known is flooded, for the sake of ports with port security off, which may have any address.
//! Source: RFC 4861 §4.3, §4.4, §7.2; RFC 4862 §5.4 (probes come from the unspecified address); RFC 6980 is upheld by the switch, which reads no
//! neighbour message out of a fragment.

use std::net::Ipv6Addr;

use ipnet::IpNet;
use model::Mac;
use model::network::{Port, Router};
use openflow::flow::{Action, Field, Match};

use crate::compile::view::{Place, Segment, Spot, View};
use crate::cookie::{Cookie, Object};
use crate::feature::{Feature, mirror};
use crate::flow_set::Part;
use crate::register::{NETWORK, SOURCE};
use crate::table::Table;

const SERVICE: u16 = 200;
const PROBE: u16 = 120;
const CLAIM: u16 = 110;
const FALSE_CLAIM: u16 = 100;
const ANSWER: u16 = 100;

pub(crate) const ROUTER_SOLICIT: u8 = 133;
const ROUTER_ADVERT: u8 = 134;
pub(crate) const SOLICIT: u8 = 135;
pub(crate) const ADVERT: u8 = 136;
pub(crate) const REDIRECT: u8 = 137;
/// The hop limit that shows that no router has passed a message on.
pub(crate) const UNROUTED: u8 = 255;

const PIPELINE: Cookie = Cookie { feature: Feature::Neighbour, object: Object::Pipeline };

/// What holds for every port.
pub(crate) fn host(part: &mut Part) {
    let message = |kind: u8| Match::new().icmp6().with(Field::Icmpv6Type, kind);
    let mut drop = |table: Table, priority: u16, matching: Match, why: &str| {
        part.add_noted(table, priority, matching, Vec::new(), (PIPELINE, why.to_owned()));
    };
    drop(Table::Guard, SERVICE, message(ROUTER_ADVERT), "guests may not advertise routers");
    drop(Table::Guard, SERVICE, message(REDIRECT), "guests may not redirect others");
    let probe = message(SOLICIT).with(Field::Ipv6Src, Ipv6Addr::UNSPECIFIED);
    drop(Table::Guard, PROBE, probe.clone(), "it asks for its own address, which nobody else can have");
    drop(Table::Guard, FALSE_CLAIM, message(SOLICIT), "it solicits with a MAC address that is not its own");
    drop(Table::Guard, FALSE_CLAIM, message(ADVERT), "it advertises an address that is not its own");
    let bare = message(SOLICIT).with(Field::NdSll, [0; 6]);
    let to = |table: Table| vec![Action::GotoTable(table.number())];
    part.add(Table::Guard, CLAIM, bare, to(Table::Neighbour), PIPELINE);
    part.add_miss_to(Table::Guard, Table::Neighbour);
    let note = "whether an address is taken is for its owner to say".to_owned();
    part.add_noted(Table::Neighbour, PROBE, probe, to(Table::Forward), (PIPELINE, note));
    part.add_miss_to(Table::Neighbour, Table::Ask);
}

/// What a guarded port that is plugged in here may say of itself.
pub(crate) fn local(view: &View<'_>, spot: Spot<'_>, part: &mut Part) {
    let port = spot.port;
    if !port.port_security || view.number(port).is_none() {
        return;
    }
    add_pairs(view, port, part);
    let mut addresses = port.ipv6_addresses().peekable();
    if addresses.peek().is_none() {
        return;
    }
    let cookie = Cookie { feature: Feature::Neighbour, object: Object::Port(port.key) };
    let mac = port.mac.bytes();
    let message = |kind: u8| Match::new().icmp6().with(SOURCE.field, port.key).with(Field::Icmpv6Type, kind);
    let solicit = message(SOLICIT).with(Field::NdSll, mac);
    part.add(Table::Guard, CLAIM, solicit, mirror::past_guard(view, port, Table::Neighbour), cookie);
    for address in addresses {
        let advert = message(ADVERT).with(Field::NdTarget, address).with(Field::NdTll, mac);
        part.add(Table::Guard, CLAIM, advert, mirror::past_guard(view, port, Table::Forward), cookie);
    }
}

/// What a guarded port may say of the addresses of its allowed pairs.
fn add_pairs(view: &View<'_>, port: &Port, part: &mut Part) {
    let cookie = Cookie { feature: Feature::Neighbour, object: Object::Port(port.key) };
    for (range, mac) in port.pairs() {
        let IpNet::V6(range) = range else { continue };
        let message = |kind: u8| Match::new().icmp6().with(SOURCE.field, port.key).with(Field::Icmpv6Type, kind);
        let solicit = message(SOLICIT).with(Field::NdSll, mac.bytes());
        part.add(Table::Guard, CLAIM, solicit, mirror::past_guard(view, port, Table::Neighbour), cookie);
        let target = message(ADVERT).with_masked(Field::NdTarget, range.network(), range.netmask());
        let advert = target.with(Field::NdTll, mac.bytes());
        part.add(Table::Guard, CLAIM, advert, mirror::past_guard(view, port, Table::Forward), cookie);
    }
}

/// A port that is plugged in somewhere: its addresses are answered for.
pub(crate) fn port(spot: Spot<'_>, part: &mut Part) {
    let (port, Some(segment)) = (spot.port, spot.segment) else { return };
    if spot.place != Place::Nowhere {
        let cookie = Cookie { feature: Feature::Neighbour, object: Object::Port(port.key) };
        for address in port.ipv6_addresses() {
            answer(segment, address, port.mac, cookie, part);
        }
    }
}

/// The feet of a router.
pub(crate) fn router(view: &View<'_>, router: &Router, part: &mut Part) {
    let cookie = Cookie { feature: Feature::Neighbour, object: Object::Router(router.key.into()) };
    for foot in &router.interfaces {
        let Some(segment) = view.subnet_of(foot).and_then(|(_, network)| view.segment(network.id)) else { continue };
        for address in foot.ipv6_addresses() {
            answer(segment, address, foot.mac, cookie, part);
        }
    }
}

/// Answers solicitations for an address on a network.
pub(crate) fn answer(segment: Segment<'_>, address: Ipv6Addr, mac: Mac, cookie: Cookie, part: &mut Part) {
    let asked = asked(address).with(NETWORK.field, segment.vni());
    let note = format!("{address} is at {mac}");
    part.add_noted(Table::Neighbour, ANSWER, asked, handed_over(), (cookie, note));
}

/// Answers solicitations for an address on whatever network.
pub(crate) fn answer_anywhere(address: Ipv6Addr, mac: Mac, priority: u16, cookie: Cookie, part: &mut Part) {
    part.add_noted(
        Table::Neighbour,
        priority,
        asked(address),
        handed_over(),
        (cookie, format!("{address} is at {mac}")),
    );
}

fn asked(address: Ipv6Addr) -> Match {
    Match::new()
        .icmp6()
        .with(Field::IpTtl, UNROUTED)
        .with(Field::Icmpv6Type, SOLICIT)
        .with(Field::Icmpv6Code, 0_u8)
        .with(Field::NdTarget, address)
}

/// The agent makes the answer ([`crate::neighbour_advert`]), for the port that asks.
fn handed_over() -> Vec<Action> {
    vec![Action::GotoTable(Table::Punt.number())]
}

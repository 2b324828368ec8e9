//! Neighbour discovery: guests speak for their own addresses only, and every known address is answered for in flows.
//!
//! Guarded ports (their source addresses are checked before) may solicit with their own MAC address or none, advertise their own addresses, and
//! are no routers: advertisements of routers and redirects are dropped. A probe for the port's own address gets no answer, for nobody else can
//! have it. A solicitation for an address of a port or a router on the network is turned into the advertisement and sent back; what is not known
//! is flooded, for the sake of ports with port security off, which may have any address.
//! Source: RFC 4861 §4.3, §4.4, §7.2; RFC 4862 §5.4 (probes come from the unspecified address); RFC 6980 is upheld by the switch, which reads no
//! neighbour message out of a fragment.

use std::net::Ipv6Addr;

use ipnet::IpNet;
use model::Mac;
use model::network::{Port, Router};
use openflow::flow::{Action, Field, Match, PortNo};

use crate::compile::view::{Place, Segment, Spot, View};
use crate::cookie::{Cookie, Object};
use crate::feature::Feature;
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
const SOLICIT: u8 = 135;
const ADVERT: u8 = 136;
const REDIRECT: u8 = 137;
/// The hop limit that shows that no router has passed a message on.
const UNROUTED: u8 = 255;
/// Flags of an advertisement: it was asked for, and overrides what was known; the sender is a router.
const SOLICITED_OVERRIDE: u32 = 0x6000_0000;
const IS_ROUTER: u32 = 0x8000_0000;
/// The option that says the target's MAC address.
const TARGET_OPTION: u8 = 2;

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
    let advert = message(ADVERT).with(Field::Icmpv6Code, 0_u8);
    let send = vec![Action::copy(Field::EthSrc, Field::NdTll), Action::output(PortNo::IN_PORT)];
    part.add_noted(Table::Advert, ANSWER, advert, send, (PIPELINE, "the advertisement goes back".to_owned()));
    part.add_miss(Table::Advert);
}

/// What a guarded port that is plugged in here may say of itself.
pub(crate) fn local(view: &View<'_>, spot: Spot<'_>, part: &mut Part) {
    let port = spot.port;
    if !port.port_security || view.number(port.id).is_none() {
        return;
    }
    add_pairs(port, part);
    let mut addresses = port.ipv6_addresses().peekable();
    if addresses.peek().is_none() {
        return;
    }
    let cookie = Cookie { feature: Feature::Neighbour, object: Object::Port(port.key) };
    let mac = port.mac.bytes();
    let message = |kind: u8| Match::new().icmp6().with(SOURCE.field, port.key).with(Field::Icmpv6Type, kind);
    let solicit = message(SOLICIT).with(Field::NdSll, mac);
    part.add(Table::Guard, CLAIM, solicit, vec![Action::GotoTable(Table::Neighbour.number())], cookie);
    for address in addresses {
        let advert = message(ADVERT).with(Field::NdTarget, address).with(Field::NdTll, mac);
        part.add(Table::Guard, CLAIM, advert, vec![Action::GotoTable(Table::Forward.number())], cookie);
    }
}

/// What a guarded port may say of the addresses of its allowed pairs.
fn add_pairs(port: &Port, part: &mut Part) {
    let cookie = Cookie { feature: Feature::Neighbour, object: Object::Port(port.key) };
    for (range, mac) in port.pairs() {
        let IpNet::V6(range) = range else { continue };
        let message = |kind: u8| Match::new().icmp6().with(SOURCE.field, port.key).with(Field::Icmpv6Type, kind);
        let solicit = message(SOLICIT).with(Field::NdSll, mac.bytes());
        part.add(Table::Guard, CLAIM, solicit, vec![Action::GotoTable(Table::Neighbour.number())], cookie);
        let target = message(ADVERT).with_masked(Field::NdTarget, range.network(), range.netmask());
        let advert = target.with(Field::NdTll, mac.bytes());
        part.add(Table::Guard, CLAIM, advert, vec![Action::GotoTable(Table::Forward.number())], cookie);
    }
}

/// A port that is plugged in somewhere: its addresses are answered for.
pub(crate) fn port(spot: Spot<'_>, part: &mut Part) {
    let (port, Some(segment)) = (spot.port, spot.segment) else { return };
    if spot.place != Place::Nowhere {
        let cookie = Cookie { feature: Feature::Neighbour, object: Object::Port(port.key) };
        for address in port.ipv6_addresses() {
            answer(segment, address, (port.mac, 0), cookie, part);
        }
    }
}

/// The feet of a router.
pub(crate) fn router(view: &View<'_>, router: &Router, part: &mut Part) {
    let cookie = Cookie { feature: Feature::Neighbour, object: Object::Router(router.key.into()) };
    for foot in &router.interfaces {
        let Some(segment) = view.subnet_of(foot).and_then(|(_, network)| view.segment(network.id)) else { continue };
        for address in foot.ipv6_addresses() {
            answer(segment, address, (foot.mac, IS_ROUTER), cookie, part);
        }
    }
}

fn answer(segment: Segment<'_>, address: Ipv6Addr, (mac, flags): (Mac, u32), cookie: Cookie, part: &mut Part) {
    let asked = asked(address).with(NETWORK.field, segment.vni());
    let note = format!("{address} is at {mac}");
    part.add_noted(Table::Neighbour, ANSWER, asked, advertisement(address, (mac, flags)), (cookie, note));
}

/// Answers solicitations for an address on whatever network.
pub(crate) fn answer_anywhere(address: Ipv6Addr, mac: Mac, priority: u16, cookie: Cookie, part: &mut Part) {
    let steps = advertisement(address, (mac, 0));
    part.add_noted(Table::Neighbour, priority, asked(address), steps, (cookie, format!("{address} is at {mac}")));
}

fn asked(address: Ipv6Addr) -> Match {
    Match::new()
        .icmp6()
        .with(Field::IpTtl, UNROUTED)
        .with(Field::Icmpv6Type, SOLICIT)
        .with(Field::Icmpv6Code, 0_u8)
        .with(Field::NdTarget, address)
}

/// Turns a solicitation into its advertisement, all but the MAC address in its option: a switch lets only a flow that matches advertisements write
/// that, so it is done in the table that sends them.
fn advertisement(address: Ipv6Addr, (mac, flags): (Mac, u32)) -> Vec<Action> {
    vec![
        Action::copy(Field::EthSrc, Field::EthDst),
        Action::set(Field::EthSrc, mac.bytes()),
        Action::copy(Field::Ipv6Src, Field::Ipv6Dst),
        Action::set(Field::Ipv6Src, address),
        Action::set(Field::Icmpv6Type, ADVERT),
        Action::set(Field::NdReserved, SOLICITED_OVERRIDE | flags),
        Action::set(Field::NdOptionsType, TARGET_OPTION),
        Action::GotoTable(Table::Advert.number()),
    ]
}

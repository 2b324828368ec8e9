//! Which port and network a packet from this host is of, and whether its sender may say so.
//!
//! One lookup settles both: a guarded port passes with its own MAC address and one of its own addresses (in ARP the sender's hardware and
//! protocol addresses are held to the same), and with :: for the probes and router solicitations of ICMPv6. ARP probes (RFC 5227 §2.1.1) get no
//! answer, which says that the address is free. A port with an IPv6 address owns the link-local one that its MAC address makes, too. Everything
//! else of a guarded port is dropped, but for what its allowed pairs name (a VRRP pair). A port with port security off passes with anything. What is IPv6 goes by way of neighbour discovery.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::Mac;
use model::network::Port;
use openflow::flow::{Action, Field, Match, PortNo};

use crate::compile::view::{Segment, Spot, View};
use crate::cookie::{Cookie, Object};
use crate::feature::{Feature, arrival, mirror, qos, trunk};
use crate::flow_set::Part;
use crate::register::{FLAG_BITS, NETWORK, SOURCE, SOURCE_GUARDED, SOURCE_IDENTITY, SOURCE_STATELESS, ZONE};
use crate::table::Table;

const GUARDED: u16 = 100;
/// Below a port's own addresses, which a pair's range may cover.
const PAIR: u16 = 95;
const OPEN_SPECIAL: u16 = 90;
const OPEN: u16 = 80;
const PROBE: u16 = 70;
const ARP_REQUEST: u16 = 1;

pub(crate) fn host(part: &mut Part) {
    part.add_miss(Table::Classify);
    let probe = Match::new().arp().with(Field::ArpSpa, Ipv4Addr::UNSPECIFIED).with(Field::ArpOp, ARP_REQUEST);
    let note = "it asks whether an address is taken, which the switch knows better".to_owned();
    let cookie = Cookie { feature: Feature::Classify, object: Object::Pipeline };
    part.add_noted(Table::Classify, PROBE, probe, Vec::new(), (cookie, note));
}

/// A port that is plugged in here.
pub(crate) fn port(view: &View<'_>, spot: Spot<'_>, part: &mut Part) {
    let (Some(segment), Some(number)) = (spot.segment, view.number(spot.port)) else { return };
    if spot.port.port_security {
        add_guarded(view, segment, spot.port, number, part);
    } else {
        add_open(view, segment, spot.port, number, part);
    }
}

fn add_guarded(view: &View<'_>, segment: Segment<'_>, port: &Port, number: PortNo, part: &mut Part) {
    let cookie = Cookie { feature: Feature::Classify, object: Object::Port(port.key) };
    let mac = port.mac.bytes();
    let sender = || trunk::frames(port, number).eth_src(mac);
    let arp = |address: Ipv4Addr| sender().arp().with(Field::ArpSpa, address).with(Field::ArpSha, mac);
    // What goes by way of the guard is copied there, and marked behind that.
    let is_late = |table: Table| table == Table::Guard && mirror::sent(view, port).is_some();
    let to = |table: Table, matching: &Match| match steps(view, segment, port, table) {
        steps if is_late(table) || view.is_awaited(port) => steps,
        steps => qos::marked(port, matching, steps),
    };
    let mut pass = |matching: Match, table: Table| {
        let steps = to(table, &matching);
        part.add(Table::Classify, trunk::rank(port, GUARDED), matching, steps, cookie);
    };
    for fixed in &port.addresses {
        let IpAddr::V4(address) = fixed.address else { continue };
        pass(arp(address), Table::Arp);
        pass(sender().ip().with(Field::Ipv4Src, address), Table::Forward);
    }
    let mut addresses = port.ipv6_addresses().peekable();
    if addresses.peek().is_some() {
        pass(sender().icmp6().with(Field::Ipv6Src, Ipv6Addr::UNSPECIFIED), Table::Guard);
    }
    for address in addresses {
        pass(sender().ipv6().with(Field::Ipv6Src, address), Table::Guard);
    }
    for (range, mac) in port.pairs() {
        let sender = trunk::frames(port, number).eth_src(mac.bytes());
        add_pair(range, (mac, sender), trunk::rank(port, PAIR), to, part, cookie);
    }
}

/// Addresses that a guarded port may send from though they are not its own.
fn add_pair(
    range: IpNet,
    (mac, sender): (Mac, Match),
    priority: u16,
    to: impl Fn(Table, &Match) -> Vec<Action>,
    part: &mut Part,
    cookie: Cookie,
) {
    let mut pass = |matching: Match, table: Table| {
        let steps = to(table, &matching);
        part.add(Table::Classify, priority, matching, steps, cookie);
    };
    match range {
        IpNet::V4(range) => {
            let mask = range.netmask();
            let arp = sender.clone().arp().with_masked(Field::ArpSpa, range.network(), mask);
            let arp = arp.with(Field::ArpSha, mac.bytes());
            pass(arp, Table::Arp);
            pass(sender.ip().ipv4_src_net(range.network(), range.prefix_len()), Table::Forward);
        }
        IpNet::V6(range) => pass(sender.ipv6().ipv6_src_net(range.network(), range.prefix_len()), Table::Guard),
    }
}

fn add_open(view: &View<'_>, segment: Segment<'_>, port: &Port, number: PortNo, part: &mut Part) {
    let cookie = Cookie { feature: Feature::Classify, object: Object::Port(port.key) };
    let sender = || trunk::frames(port, number);
    let (special, any) = (trunk::rank(port, OPEN_SPECIAL), trunk::rank(port, OPEN));
    part.add(Table::Classify, special, sender().arp(), steps(view, segment, port, Table::Arp), cookie);
    let six = sender().ipv6();
    let onward = qos::marked(port, &six, steps(view, segment, port, Table::Neighbour));
    part.add(Table::Classify, special, six, onward, cookie);
    if port.qos.dscp_mark.is_some() {
        let ip = sender().ip();
        let onward = qos::marked(port, &ip, steps(view, segment, port, Table::Forward));
        part.add(Table::Classify, special, ip, onward, cookie);
    }
    part.add(Table::Classify, any, sender(), steps(view, segment, port, Table::Forward), cookie);
}

/// What a packet knows of itself from here on.
pub(crate) fn steps(view: &View<'_>, segment: Segment<'_>, port: &Port, next: Table) -> Vec<Action> {
    if view.is_awaited(port) {
        return arrival::hand_over(port.key);
    }
    let copy = mirror::sent(view, port).filter(|_| next != Table::Guard);
    let mut steps: Vec<Action> = qos::sending(port).chain(trunk::untag(port)).chain(copy).collect();
    steps.extend([
        Action::set(NETWORK.field, segment.vni()),
        Action::set(SOURCE.field, port.key),
        Action::set(ZONE.field, segment.zone),
        Action::set(SOURCE_IDENTITY.field, view.identity(port)),
    ]);
    let stateless = if view.is_stateless(port) { SOURCE_STATELESS.mask } else { 0 };
    if port.port_security {
        let flags = SOURCE_GUARDED.mask | stateless;
        steps.push(Action::set_masked(FLAG_BITS.field, flags, flags));
    }
    steps.push(Action::GotoTable(next.number()));
    steps
}

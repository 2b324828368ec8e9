//! Which port and network a packet from this host is of, and whether its sender may say so.
//!
//! One lookup settles both: a guarded port passes with its own MAC address and one of its own IPv4 addresses (in ARP the sender's hardware and
//! protocol addresses are held to the same), and with the address 0.0.0.0 for an ARP probe (RFC 5227 §2.1.1). Everything else of a guarded port is
//! dropped. A port with port security off passes with anything.

use std::net::{IpAddr, Ipv4Addr};

use openflow::flow::{Action, Field, Match, PortNo};

use crate::compile::{Local, Plan, Segment};
use crate::cookie::{Cookie, Object};
use crate::feature::Feature;
use crate::flow_set::FlowSet;
use crate::register::{FLAG_BITS, NETWORK, SOURCE, SOURCE_GUARDED, SOURCE_IDENTITY, ZONE};
use crate::table::Table;

const GUARDED: u16 = 100;
const OPEN_ARP: u16 = 90;
const OPEN: u16 = 80;
const ARP_REQUEST: u16 = 1;

pub(crate) fn add(plan: &Plan<'_>, set: &mut FlowSet) {
    set.add_miss(Table::Classify);
    for segment in &plan.segments {
        for local in &segment.local {
            let Some(number) = local.number else { continue };
            if local.port.port_security {
                add_guarded(plan, segment, *local, number, set);
            } else {
                add_open(plan, segment, *local, number, set);
            }
        }
    }
}

fn add_guarded(plan: &Plan<'_>, segment: &Segment<'_>, local: Local<'_>, number: PortNo, set: &mut FlowSet) {
    let cookie = Cookie { feature: Feature::Classify, object: Object::Port(local.port.key) };
    let mac = local.port.mac.bytes();
    let sender = || Match::new().in_port(number).eth_src(mac);
    let arp = |address: Ipv4Addr| sender().arp().with(Field::ArpSpa, address).with(Field::ArpSha, mac);
    let to = |table: Table| steps(plan, segment, local, table);
    let probe = arp(Ipv4Addr::UNSPECIFIED).with(Field::ArpOp, ARP_REQUEST);
    set.add(Table::Classify, GUARDED, probe, to(Table::Arp), cookie);
    for fixed in &local.port.addresses {
        let IpAddr::V4(address) = fixed.address else { continue };
        set.add(Table::Classify, GUARDED, arp(address), to(Table::Arp), cookie);
        let ip = sender().ip().with(Field::Ipv4Src, address);
        set.add(Table::Classify, GUARDED, ip, to(Table::Forward), cookie);
    }
}

fn add_open(plan: &Plan<'_>, segment: &Segment<'_>, local: Local<'_>, number: PortNo, set: &mut FlowSet) {
    let cookie = Cookie { feature: Feature::Classify, object: Object::Port(local.port.key) };
    let sender = || Match::new().in_port(number);
    set.add(Table::Classify, OPEN_ARP, sender().arp(), steps(plan, segment, local, Table::Arp), cookie);
    set.add(Table::Classify, OPEN, sender(), steps(plan, segment, local, Table::Forward), cookie);
}

/// What a packet knows of itself from here on.
fn steps(plan: &Plan<'_>, segment: &Segment<'_>, local: Local<'_>, next: Table) -> Vec<Action> {
    let mut steps = vec![
        Action::set(NETWORK.field, segment.vni()),
        Action::set(SOURCE.field, local.port.key),
        Action::set(ZONE.field, segment.zone),
        Action::set(SOURCE_IDENTITY.field, plan.identities.of_port(local.port)),
    ];
    if local.port.port_security {
        steps.push(Action::set_masked(FLAG_BITS.field, SOURCE_GUARDED.mask, SOURCE_GUARDED.mask));
    }
    steps.push(Action::GotoTable(next.number()));
    steps
}

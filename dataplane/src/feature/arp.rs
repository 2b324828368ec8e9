//! Answers to ARP requests: every address of every port and router on a network is known, so that no request for one leaves its host.
//!
//! A request for the sender's own address (a probe or an announcement, RFC 5227) gets no answer, or the sender would take it for a conflict. What is
//! not known is flooded, for the sake of ports with port security off, which may have any address.

use std::net::{IpAddr, Ipv4Addr};

use model::Mac;
use openflow::flow::{Action, Field, Match, PortNo};

use crate::compile::{Plan, Segment};
use crate::cookie::{Cookie, Object};
use crate::feature::Feature;
use crate::flow_set::FlowSet;
use crate::register::{NETWORK, SOURCE};
use crate::table::Table;

const OWN: u16 = 110;
const ANSWER: u16 = 100;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

const PIPELINE: Cookie = Cookie { feature: Feature::Arp, object: Object::Pipeline };

pub(crate) fn add(plan: &Plan<'_>, set: &mut FlowSet) {
    let onward = vec![Action::GotoTable(Table::Forward.number())];
    set.add_noted(Table::Arp, 0, Match::new(), onward, (PIPELINE, "nobody known has this address".to_owned()));
    for segment in &plan.segments {
        for local in segment.local.iter().filter(|local| local.number.is_some()) {
            let cookie = Cookie { feature: Feature::Arp, object: Object::Port(local.port.key) };
            for address in local.port.addresses.iter().filter_map(|fixed| v4(fixed.address)) {
                let own = Match::new().arp().with(SOURCE.field, local.port.key).with(Field::ArpTpa, address);
                set.add_noted(Table::Arp, OWN, own, Vec::new(), (cookie, "it asks for its own address".to_owned()));
            }
        }
        for port in segment.ports() {
            let cookie = Cookie { feature: Feature::Arp, object: Object::Port(port.key) };
            for address in port.addresses.iter().filter_map(|fixed| v4(fixed.address)) {
                answer(segment, address, port.mac, cookie, set);
            }
        }
        for (router, foot) in &segment.feet {
            if let Some(address) = v4(foot.address) {
                let cookie = Cookie { feature: Feature::Arp, object: Object::Router(router.key.into()) };
                answer(segment, address, foot.mac, cookie, set);
            }
        }
    }
}

/// Turns a request into its reply and sends it back.
fn answer(segment: &Segment<'_>, address: Ipv4Addr, mac: Mac, cookie: Cookie, set: &mut FlowSet) {
    let asked =
        Match::new().arp().with(NETWORK.field, segment.vni()).with(Field::ArpOp, REQUEST).with(Field::ArpTpa, address);
    let steps = vec![
        Action::copy(Field::EthSrc, Field::EthDst),
        Action::set(Field::EthSrc, mac.bytes()),
        Action::set(Field::ArpOp, REPLY),
        Action::copy(Field::ArpSha, Field::ArpTha),
        Action::set(Field::ArpSha, mac.bytes()),
        Action::copy(Field::ArpSpa, Field::ArpTpa),
        Action::set(Field::ArpSpa, address),
        Action::output(PortNo::IN_PORT),
    ];
    set.add_noted(Table::Arp, ANSWER, asked, steps, (cookie, format!("{address} is at {mac}")));
}

const fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

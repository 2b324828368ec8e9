//! Answers to ARP requests: every address of every port and router on a network is known, so that no request for one leaves its host.
//!
//! A request for the sender's own address (a probe or an announcement, RFC 5227) gets no answer, or the sender would take it for a conflict. What is
//! not known is flooded, for the sake of ports with port security off, which may have any address.

use std::net::{IpAddr, Ipv4Addr};

use model::Mac;
use model::network::Router;
use model::provider::VlanId;
use openflow::flow::{Action, Field, Match, PortNo};

use crate::compile::view::{Place, Segment, Spot, View};
use crate::cookie::{Cookie, Object};
use crate::feature::{Feature, provider};
use crate::flow_set::Part;
use crate::register::{FLAG_BITS, FROM_PHYSICAL, NETWORK, SOURCE};
use crate::table::Table;

const OWN: u16 = 110;
const OUTSIDE: u16 = 105;
const ANSWER: u16 = 100;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

const PIPELINE: Cookie = Cookie { feature: Feature::Arp, object: Object::Pipeline };

pub(crate) fn host(part: &mut Part) {
    let onward = vec![Action::GotoTable(Table::Forward.number())];
    part.add_noted(Table::Arp, 0, Match::new(), onward, (PIPELINE, "nobody known has this address".to_owned()));
}

/// A port that is plugged in somewhere.
pub(crate) fn port(view: &View<'_>, spot: Spot<'_>, part: &mut Part) {
    let (port, Some(segment)) = (spot.port, spot.segment) else { return };
    if spot.place == Place::Nowhere {
        return;
    }
    let is_working = spot.place == Place::Here && view.number(port).is_some();
    let cookie = Cookie { feature: Feature::Arp, object: Object::Port(port.key) };
    for address in port.addresses.iter().filter_map(|fixed| v4(fixed.address)) {
        if is_working {
            let own = Match::new().arp().with(SOURCE.field, port.key).with(Field::ArpTpa, address);
            part.add_noted(Table::Arp, OWN, own, Vec::new(), (cookie, "it asks for its own address".to_owned()));
        }
        answer(segment, address, port.mac, cookie, part);
    }
}

/// The feet of a router.
pub(crate) fn router(view: &View<'_>, router: &Router, part: &mut Part) {
    let cookie = Cookie { feature: Feature::Arp, object: Object::Router(router.key.into()) };
    for foot in &router.interfaces {
        let Some((_, network)) = view.subnet_of(foot) else { continue };
        if let (Some(segment), Some(address)) = (view.segment(network.id), v4(foot.address)) {
            answer(segment, address, foot.mac, cookie, part);
        }
    }
}

/// Turns a request into its reply and sends it back.
pub(crate) fn answer(segment: Segment<'_>, address: Ipv4Addr, mac: Mac, cookie: Cookie, part: &mut Part) {
    add(asked(address).with(NETWORK.field, segment.vni()), address, mac, (ANSWER, cookie), part);
}

/// Answers requests for an address on whatever network.
pub(crate) fn answer_anywhere(address: Ipv4Addr, mac: Mac, priority: u16, cookie: Cookie, part: &mut Part) {
    add(asked(address), address, mac, (priority, cookie), part);
}

fn asked(address: Ipv4Addr) -> Match {
    Match::new().arp().with(Field::ArpOp, REQUEST).with(Field::ArpTpa, address)
}

/// Answers requests for an address outside that is here: of ports here, and of stations outside by a reply with the tag of their network.
pub(crate) fn answer_outside(
    segment: Segment<'_>,
    address: Ipv4Addr,
    mac: Mac,
    vlan: Option<VlanId>,
    cookie: Cookie,
    part: &mut Part,
) {
    answer(segment, address, mac, cookie, part);
    let asked = asked(address).with(NETWORK.field, segment.vni());
    let asked = asked.with_masked(FLAG_BITS.field, FROM_PHYSICAL.mask, FROM_PHYSICAL.mask);
    let mut steps = reply(address, mac);
    steps.extend(vlan.into_iter().flat_map(provider::tag));
    steps.push(Action::output(PortNo::IN_PORT));
    part.add_noted(Table::Arp, OUTSIDE, asked, steps, (cookie, format!("{address} is at {mac}")));
}

fn add(asked: Match, address: Ipv4Addr, mac: Mac, (priority, cookie): (u16, Cookie), part: &mut Part) {
    let mut steps = reply(address, mac);
    steps.push(Action::GotoTable(Table::Reply.number()));
    part.add_noted(Table::Arp, priority, asked, steps, (cookie, format!("{address} is at {mac}")));
}

/// What turns a request into its reply.
fn reply(address: Ipv4Addr, mac: Mac) -> Vec<Action> {
    vec![
        Action::copy(Field::EthSrc, Field::EthDst),
        Action::set(Field::EthSrc, mac.bytes()),
        Action::set(Field::ArpOp, REPLY),
        Action::copy(Field::ArpSha, Field::ArpTha),
        Action::set(Field::ArpSha, mac.bytes()),
        Action::copy(Field::ArpSpa, Field::ArpTpa),
        Action::set(Field::ArpSpa, address),
    ]
}

const fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

//! Path MTU: what a router is to send into a network that carries less than another of its networks is measured, and its sender is told.
//!
//! Where all networks of a router carry the same there is nothing to measure, and no flow. Otherwise what is routed into a smaller network is asked for
//! its length, once its next station is known, so that only what could be delivered is told of; that costs no pass through the data path. The
//! agent then says so in the name of the router, in ICMP or ICMPv6 (see [`too_large`](crate::too_large)), whether or not an IPv4 packet would
//! allow to be split: hosts split or resend, routers do not. The rules are not asked before: who sends into such a network learns what it carries.
//! What comes from a physical network is nobody's here to be told, and what leaves by a floating IP or as its router is not measured.
//!
//! Open vSwitch leaves the measuring action out of buckets of groups, without a word (3.1), so it stands where all ways meet.

use model::network::{Network, Router};
use openflow::flow::{Action, Controller, Match, Meter, MeterUnit, Subfield};

use crate::compile::view::View;
use crate::cookie::{Cookie, Object};
use crate::feature::Feature;
use crate::flow_set::{MeterNumber, Part};
use crate::punt::Punt;
use crate::register::{ANSWERING, FLAG_BITS, Flag, MEASURED, NETWORK, ROUTER, TOO_LARGE};
use crate::table::Table;

/// Above all that leads through the connection tracker or round it.
const TOLD: u16 = 510;
const MEASURE: u16 = 500;
/// Packets of one router that the agent is handed in a second, and at once: a sender that was told sends no more of them.
const TOLD_PER_SECOND: u32 = 100;
const TOLD_BURST: u32 = 200;
/// Octets of an Ethernet header without a tag: lengths are measured with it.
pub(crate) const ETHERNET: u16 = 14;

/// The networks of a router that carry less than another of them.
pub(crate) fn router(view: &View<'_>, router: &Router, part: &mut Part) {
    let networks: Vec<&Network> = router.interfaces.iter().filter_map(|foot| Some(view.subnet_of(foot)?.1)).collect();
    let largest = networks.iter().map(|network| network.mtu).max().unwrap_or_default();
    for network in networks.into_iter().filter(|network| network.mtu < largest) {
        add(router, network, part);
    }
}

fn add(router: &Router, network: &Network, part: &mut Part) {
    let cookie = Cookie { feature: Feature::PathMtu, object: Object::Router(router.key.into()) };
    let vni = network.vni.get();
    let routed = |set: u32, among: u32| {
        Match::new().with_masked(FLAG_BITS.field, set, among).with(ROUTER.field, router.key).with(NETWORK.field, vni)
    };
    let measure = vec![
        Action::CheckPacketLarger { octets: network.mtu.saturating_add(ETHERNET), target: bit(TOO_LARGE) },
        Action::set_masked(FLAG_BITS.field, MEASURED.mask, MEASURED.mask),
        Action::resubmit(Table::Track.number()),
    ];
    let note = format!("network {} carries {} octets, less than another of the router's", network.name, network.mtu);
    part.add_noted(Table::Track, MEASURE, routed(0, MEASURED.mask | ANSWERING.mask), measure, (cookie, note));
    let meter = MeterNumber::TooLarge(router.key.into()).to_wire();
    part.add_meter(Meter::drop_above(meter, MeterUnit::Packets, TOLD_PER_SECOND, TOLD_BURST));
    let punt = Punt::TooLarge { network: vni, router: router.key };
    let told = vec![Action::Meter(meter), Action::Controller(Controller::new().with_userdata(punt.to_user_data()))];
    let note = format!("larger than the {} octets that network {} carries", network.mtu, network.name);
    part.add_noted(Table::Track, TOLD, routed(TOO_LARGE.mask, TOO_LARGE.mask), told, (cookie, note));
}

fn bit(flag: Flag) -> Subfield {
    let number = u8::try_from(flag.mask.trailing_zeros()).unwrap_or_default();
    Subfield::new(FLAG_BITS.field, number, 1).unwrap_or(Subfield::whole(FLAG_BITS.field))
}

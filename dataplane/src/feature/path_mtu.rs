//! Path MTU: what a router is to send into a network that carries less is measured on the way, and its sender is told.
//!
//! Where all networks of a router carry the same there is nothing to measure, and no flow. Otherwise a route into a smaller network asks for the
//! packet's length, which costs no pass through the data path; a packet that is too large keeps its fate until its next station is known, so that only
//! what could be delivered is told of. The agent then says so in the name of the router, in ICMP or ICMPv6 (see
//! [`too_large`](crate::too_large)), whether or not an IPv4 packet would allow to be split: hosts split or resend, routers do not.
//! Not measured is what comes from a physical network to a floating IP, and what leaves by one.

use model::network::{Network, Router};
use openflow::flow::{Action, Controller, Match, Meter, MeterUnit, Subfield};

use crate::compile::view::View;
use crate::cookie::{Cookie, Object};
use crate::feature::Feature;
use crate::flow_set::{MeterNumber, Part};
use crate::punt::Punt;
use crate::register::{FLAG_BITS, NETWORK, ROUTER, TOO_LARGE};
use crate::table::Table;

/// Above all that leads through the connection tracker or round it.
const TOLD: u16 = 500;
/// Packets of one router that the agent is handed in a second, and at once: a sender that was told sends no more of them.
const TOLD_PER_SECOND: u32 = 100;
const TOLD_BURST: u32 = 200;
/// Octets of an Ethernet header without a tag: lengths are measured with it.
pub(crate) const ETHERNET: u16 = 14;

/// The step that measures what goes into one of these networks; none when all of the router's networks carry as much as the smallest of them does.
pub(crate) fn measure(view: &View<'_>, router: &Router, into: &[&Network]) -> Option<Action> {
    let smallest = into.iter().map(|network| network.mtu).min()?;
    let is_smaller = networks(view, router).any(|network| network.mtu > smallest);
    let bit = u8::try_from(TOO_LARGE.mask.trailing_zeros()).ok()?;
    let target = Subfield::new(FLAG_BITS.field, bit, 1).ok()?;
    is_smaller.then(|| Action::CheckPacketLarger { octets: smallest.saturating_add(ETHERNET), target })
}

/// What is said of packets that are too large.
pub(crate) fn router(view: &View<'_>, router: &Router, part: &mut Part) {
    let cookie = Cookie { feature: Feature::PathMtu, object: Object::Router(router.key.into()) };
    for network in networks(view, router) {
        if measure(view, router, &[network]).is_none() {
            continue;
        }
        let vni = network.vni.get();
        let too_large = Match::new()
            .with_masked(FLAG_BITS.field, TOO_LARGE.mask, TOO_LARGE.mask)
            .with(ROUTER.field, router.key)
            .with(NETWORK.field, vni);
        let meter = MeterNumber::TooLarge(router.key.into()).to_wire();
        part.add_meter(Meter::drop_above(meter, MeterUnit::Packets, TOLD_PER_SECOND, TOLD_BURST));
        let punt = Punt::TooLarge { network: vni, router: router.key };
        let steps =
            vec![Action::Meter(meter), Action::Controller(Controller::new().with_userdata(punt.to_user_data()))];
        let note = format!("larger than the {} octets that network {} carries", network.mtu, network.name);
        part.add_noted(Table::Track, TOLD, too_large, steps, (cookie, note));
    }
}

/// The networks that a router has a foot on; one that it has two on comes twice.
fn networks<'a>(view: &View<'a>, router: &Router) -> impl Iterator<Item = &'a Network> {
    router.interfaces.iter().filter_map(|foot| Some(view.subnet_of(foot)?.1))
}

//! Trunks: ports without a tap of their own, whose frames come and go on that of their parent with the tag of a VLAN.
//!
//! The tag is taken off where a frame is classified and put on where one is delivered or answered, so that nothing between knows of it; the parent has
//! the frames without a tag. A tag that no sub-port has is dropped, and so is a frame that is tagged already when it is to be delivered to any port of
//! a trunk: who could send one to the parent could speak on the networks of its sub-ports. So is one with a second tag, which Open vSwitch takes for
//! its payload (`vlan-limit` 1): no rule would see what is behind it. Ports of one trunk talk to each other by way of their
//! common tap, which Open vSwitch lets nothing back out of unless it is told to; a flood must not come back to its sender that way.
//!
//! Every flow is made by the unit of a sub-port, those of its parent too: a port that is no part of a trunk has none of them.
//! Source: IEEE 802.1Q §9.6 (tags), ovs-actions(7) "in_port".

use model::network::Port;
use openflow::flow::{Action, Field, Match, PortNo, VLAN_PRESENT};

use crate::compile::view::{Spot, View};
use crate::cookie::{Cookie, Object};
use crate::feature::{Feature, deliver, mirror, provider};
use crate::flow_set::Part;
use crate::register::{SOURCE, TARGET};
use crate::table::Table;

/// Above all flows of the parent in the table, which look at no tag.
const OTHER_TAG: u16 = 130;
/// How much higher than those of other ports the flows of sub-ports stand: the lowest of them above the drop of other tags.
const RAISED: u16 = 60;
/// Above all flows of a sub-port.
const TWO_TAGS: u16 = 190;
const TAGGED: u16 = 130;
/// What a tag says that another follows (IEEE 802.1Q §9.6).
const TAG_TYPES: [u16; 2] = [0x8100, 0x88a8];
const OWN: u16 = 120;
/// Above delivery to a port by its number.
const SAME_TAP: u16 = 110;
const TAGGED_ANSWER: u16 = 100;

/// What is said of a frame of a trunk with the tag of no sub-port, or of one that does not send such frames.
pub(crate) const OTHER_TAG_NOTE: &str = "no sub-port of it has this VLAN and may send this";

const PIPELINE: Cookie = Cookie { feature: Feature::Trunk, object: Object::Pipeline };

/// What holds for every port.
pub(crate) fn host(part: &mut Part) {
    let back = vec![Action::output(PortNo::IN_PORT)];
    part.add_noted(Table::Reply, 0, Match::new(), back, (PIPELINE, "back to who asked".to_owned()));
}

/// The frames that come in from a port.
pub(crate) fn frames(port: &Port, number: PortNo) -> Match {
    let from = Match::new().in_port(number);
    match port.tag() {
        Some(vlan) => from.with(Field::VlanVid, VLAN_PRESENT | vlan.get()),
        None => from,
    }
}

/// The priority of a flow for such frames.
pub(crate) const fn rank(port: &Port, priority: u16) -> u16 {
    if port.trunk.is_some() { priority + RAISED } else { priority }
}

/// What takes the tag off that a port's frames have.
pub(crate) fn untag(port: &Port) -> Option<Action> {
    port.trunk.map(|_| Action::PopVlan)
}

/// What puts it on.
pub(crate) fn tag(port: &Port) -> impl Iterator<Item = Action> {
    port.tag().into_iter().flat_map(provider::tag)
}

/// A sub-port that is plugged in here.
pub(crate) fn port(view: &View<'_>, spot: Spot<'_>, part: &mut Part) {
    let (Some(_), Some(trunk), Some(number)) = (spot.segment, spot.port.trunk, view.number(spot.port)) else { return };
    let Some(parent) = view.port(trunk.parent) else { return };
    let cookie = Cookie { feature: Feature::Trunk, object: Object::Port(parent.key) };
    let tagged = Match::new().in_port(number).with_masked(Field::VlanVid, VLAN_PRESENT, VLAN_PRESENT);
    part.add_noted(Table::Classify, OTHER_TAG, tagged, Vec::new(), (cookie, OTHER_TAG_NOTE.to_owned()));
    for kind in TAG_TYPES {
        let twice = frames(spot.port, number).with(Field::EthType, kind);
        part.add_noted(Table::Classify, TWO_TAGS, twice, Vec::new(), (cookie, "it has two tags".to_owned()));
    }
    for port in [parent, spot.port] {
        add_delivery(view, port, number, part);
    }
    let asked = Match::new().with(SOURCE.field, spot.port.key);
    let copy = mirror::received(view, spot.port);
    let answer = copy.into_iter().chain(tag(spot.port)).chain([Action::output(PortNo::IN_PORT)]).collect();
    // Who answers is known by now: this flow is nobody's.
    let note = format!("back to who asked, sub-port {} in VLAN {}", spot.port.name, trunk.vlan.get());
    part.add_noted(Table::Reply, TAGGED_ANSWER, asked, answer, (PIPELINE, note));
}

/// What a trunk needs for the delivery to one of its ports.
fn add_delivery(view: &View<'_>, port: &Port, number: PortNo, part: &mut Part) {
    let cookie = Cookie { feature: Feature::Trunk, object: Object::Port(port.key) };
    let to = || Match::new().with(TARGET.field, port.key);
    let tagged = to().with_masked(Field::VlanVid, VLAN_PRESENT, VLAN_PRESENT);
    let note = "a frame with a tag is for no port of a trunk".to_owned();
    part.add_noted(Table::Output, TAGGED, tagged, Vec::new(), (cookie, note));
    for kind in TAG_TYPES {
        let second = to().with(Field::EthType, kind);
        let note = "a frame with a second tag is for no port of a trunk".to_owned();
        part.add_noted(Table::Output, TAGGED, second, Vec::new(), (cookie, note));
    }
    let own = to().with(SOURCE.field, port.key);
    part.add_noted(Table::Output, OWN, own, Vec::new(), (cookie, "it is from there".to_owned()));
    let steps = deliver::steps(view, port, PortNo::IN_PORT);
    part.add_noted(Table::Output, SAME_TAP, to().in_port(number), steps, (cookie, "by the same tap".to_owned()));
}

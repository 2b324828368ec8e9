//! Provider networks: flat and VLAN, on any number of physical networks, each a port of our one bridge.
//!
//! What comes from a physical network has its tag taken off and is on the network of that VLAN, or on the flat one; what no network here has is
//! dropped. It is delivered here only: never sent on by tunnel, routed, or back. What leaves gets the tag of its network, and only frames that have
//! none yet: a guest can not choose a VLAN. A destination that no port has is a station of the data centre; broadcasts go there in one copy,
//! whatever the number of hosts. Other hosts' ports are reached the same way, but routed packets by tunnel, so that a router's MAC address is never
//! seen in two places by physical switches. ARP and neighbour solicitations from outside are left for guests to answer: every host would.
//!
//! A sender outside is in no group, unless it has MAC and IP address of a port of the network.

use model::network::Port;
use model::provider::{Provider, VlanId};
use openflow::flow::{Action, Field, Match, PortNo, VLAN_PRESENT};

use crate::compile::view::{Segment, View};
use crate::cookie::{Cookie, Object};
use crate::feature::Feature;
use crate::flow_set::Part;
use crate::register::{FLAG_BITS, FROM_OUTSIDE, FROM_PHYSICAL, NETWORK, TARGET, TARGET_IDENTITY, TO_PHYSICAL, ZONE};
use crate::table::Table;

const ARRIVAL: u16 = 100;
const NO_ARRIVAL: u16 = 60;
/// Between the ways that ask for a MAC address and those that go by the IP address alone.
const ANYBODY: u16 = 105;
const UNKNOWN: u16 = 40;
const NO_RETURN: u16 = 310;
pub(crate) const EXIT: u16 = 160;
const TAGGED: u16 = 155;

/// What is said of a physical network that no port is of.
pub(crate) const NOT_WIRED: &str = "is not plugged in on this host";

/// The EtherType of a VLAN tag (IEEE 802.1Q §9.4).
const CUSTOMER_TAG: u16 = 0x8100;

const PIPELINE: Cookie = Cookie { feature: Feature::Provider, object: Object::Pipeline };

/// What holds for every physical network that is plugged in.
pub(crate) fn host(view: &View<'_>, part: &mut Part) {
    let physical = view.physical_ports();
    if physical.is_empty() {
        return;
    }
    for (name, number) in physical {
        part.plug_physical(*number, name.as_str());
        let note = format!("no network here has this VLAN of physical network {name}");
        part.add_noted(Table::Classify, NO_ARRIVAL, Match::new().in_port(*number), Vec::new(), (PIPELINE, note));
    }
    let anybody = Match::new().with_masked(FLAG_BITS.field, FROM_PHYSICAL.mask, FROM_PHYSICAL.mask);
    let onward = vec![Action::GotoTable(Table::Forward.number())];
    let note = "it came from a physical network: its address alone says nothing of its groups".to_owned();
    part.add_noted(Table::Identity, ANYBODY, anybody, onward, (PIPELINE, note));
    let both = FROM_PHYSICAL.mask | TO_PHYSICAL.mask;
    let back = Match::new().with_masked(FLAG_BITS.field, both, both);
    let note = "it came from the physical network that its destination is on".to_owned();
    part.add_noted(Table::Output, NO_RETURN, back, Vec::new(), (PIPELINE, note));
}

/// A provider network with a port here.
pub(crate) fn network(view: &View<'_>, segment: Segment<'_>, part: &mut Part) {
    let Some(provider) = &segment.network.provider else { return };
    let cookie = Cookie { feature: Feature::Provider, object: Object::Network(segment.vni()) };
    let on_it = || Match::new().with(NETWORK.field, segment.vni());
    let stranger = on_it().with_masked(FLAG_BITS.field, 0, FROM_OUTSIDE.mask);
    let steps = vec![raise(TO_PHYSICAL.mask), Action::GotoTable(Table::Track.number())];
    let note = "no port has this MAC address: a station of the physical network may".to_owned();
    part.add_noted(Table::Forward, UNKNOWN, stranger, steps, (cookie, note));
    let leaving = || leaving(segment);
    let Some(number) = view.physical(&provider.physical_network) else {
        let note = format!("physical network {} {NOT_WIRED}", provider.physical_network);
        part.add_noted(Table::Output, EXIT, leaving(), Vec::new(), (cookie, note));
        return;
    };
    add_arrival(segment, provider, number, cookie, part);
    let steps = out(provider, number).collect();
    part.add_noted(Table::Output, EXIT, untagged(segment), steps, (cookie, format!("out to {provider}")));
    let note = "guests may not choose a VLAN of a physical network".to_owned();
    part.add_noted(Table::Output, TAGGED, leaving(), Vec::new(), (cookie, note));
}

/// What goes to the physical network that a network is a part of.
fn leaving(segment: Segment<'_>) -> Match {
    let on_it = Match::new().with(NETWORK.field, segment.vni());
    on_it.with_masked(FLAG_BITS.field, TO_PHYSICAL.mask, TO_PHYSICAL.mask)
}

/// What of that may: it has no tag.
pub(crate) fn untagged(segment: Segment<'_>) -> Match {
    leaving(segment).with_masked(Field::VlanVid, 0, VLAN_PRESENT)
}

/// What lets it out by the interface that leads there.
pub(crate) fn out(provider: &Provider, number: PortNo) -> impl Iterator<Item = Action> + use<> {
    provider.segmentation.vlan().into_iter().flat_map(tag).chain([Action::output(number)])
}

fn add_arrival(segment: Segment<'_>, provider: &Provider, number: PortNo, cookie: Cookie, part: &mut Part) {
    let from = Match::new().in_port(number);
    let flags = FROM_OUTSIDE.mask | FROM_PHYSICAL.mask;
    let known = [
        Action::set(NETWORK.field, segment.vni()),
        Action::set(ZONE.field, segment.zone),
        Action::set_masked(FLAG_BITS.field, flags, flags),
        Action::GotoTable(Table::Identity.number()),
    ];
    let (arrival, untag) = match provider.segmentation.vlan() {
        Some(vlan) => (from.with(Field::VlanVid, VLAN_PRESENT | vlan.get()), Some(Action::PopVlan)),
        None => (from.with_masked(Field::VlanVid, 0, VLAN_PRESENT), None),
    };
    let steps = untag.into_iter().chain(known).collect();
    part.add_noted(Table::Classify, ARRIVAL, arrival, steps, (cookie, format!("in from {provider}")));
}

/// Puts the tag of a VLAN on.
pub(crate) fn tag(vlan: VlanId) -> [Action; 2] {
    [Action::PushVlan(CUSTOMER_TAG), Action::set(Field::VlanVid, VLAN_PRESENT | vlan.get())]
}

/// What a packet knows that goes to a port of a provider network on another host.
pub(crate) fn towards(view: &View<'_>, port: &Port) -> Vec<Action> {
    vec![
        Action::set(TARGET.field, port.key),
        Action::set(TARGET_IDENTITY.field, view.identity(port)),
        raise(TO_PHYSICAL.mask),
    ]
}

fn raise(mask: u32) -> Action {
    Action::set_masked(FLAG_BITS.field, mask, mask)
}

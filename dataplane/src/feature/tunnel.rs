//! VXLAN between hosts, in and out: the VNI is the network, the sending host knows which endpoint has the destination. Only what known hosts send is
//! taken in. A host whose life is watched has a port of its own, by which only comes what it sends.
//!
//! Broadcast is replicated by the sending host, one copy for each other host with a port on the network. Nothing that came by tunnel leaves by one. Of a
//! provider network only routed packets come and go here.

use std::net::Ipv4Addr;

use openflow::flow::{Action, Field, Match, PortNo, Subfield};

use crate::compile::view::{Segment, View};
use crate::cookie::{Cookie, Object};
use crate::feature::Feature;
use crate::flow_set::{GroupNumber, Part};
use crate::register::{ENDPOINT, FLAG_BITS, FROM_OUTSIDE, NETWORK, TO_ALL_HOSTS, TO_TUNNEL, ZONE};
use crate::table::Table;

const ARRIVAL: u16 = 100;
const STRANGE: u16 = 90;
const NO_RETURN: u16 = 300;
const TO_ONE: u16 = 200;
const TO_ALL: u16 = 150;
/// Bits of a VNI (RFC 7348 §5).
const VNI_BITS: u8 = 24;

const PIPELINE: Cookie = Cookie { feature: Feature::Tunnel, object: Object::Pipeline };

pub(crate) fn host(view: &View<'_>, part: &mut Part) {
    part.add_miss(Table::Arrive);
    part.plug_tunnel(view.tunnel());
    let Some(vxlan) = view.tunnel() else { return };
    let note = "it came by tunnel, and from no host that this one knows".to_owned();
    part.add_noted(Table::Classify, STRANGE, Match::new().in_port(vxlan), Vec::new(), (PIPELINE, note));
    for (endpoint, peer) in view.peers() {
        part.plug_peer(peer.number, *endpoint, peer.is_alive);
    }
    let note = "it came by tunnel, and its destination is on another host".to_owned();
    let back = flagged(FROM_OUTSIDE.mask | TO_TUNNEL.mask);
    part.add_noted(Table::Output, NO_RETURN, back, Vec::new(), (PIPELINE, note));
    let mut steps = number();
    steps.push(Action::copy(ENDPOINT.field, Field::TunDst));
    steps.push(Action::output(vxlan));
    let note = "to the host that has the destination".to_owned();
    part.add_noted(Table::Output, TO_ONE, flagged(TO_TUNNEL.mask), steps, (PIPELINE, note));
}

/// Another host: what comes from it, by whichever tunnel port, for one of its own appears before any flow can name it.
pub(crate) fn endpoint(view: &View<'_>, endpoint: Ipv4Addr, part: &mut Part) {
    if view.tunnel().is_none() {
        return;
    }
    let steps = vec![Action::GotoTable(Table::Arrive.number())];
    let note = format!("by tunnel from {endpoint}");
    let from = Match::new().with(Field::TunSrc, endpoint);
    part.add_noted(Table::Classify, ARRIVAL, from, steps, (PIPELINE, note));
}

/// A network with a port here.
pub(crate) fn network(view: &View<'_>, segment: Segment<'_>, part: &mut Part) {
    arrivals(view, segment, part);
    let Some(vxlan) = view.tunnel() else { return };
    let cookie = Cookie { feature: Feature::Tunnel, object: Object::Network(segment.vni()) };
    if segment.network.provider.is_some() {
        return;
    }
    let endpoints = view.endpoints(segment.network.id);
    if endpoints.is_empty() {
        return;
    }
    let group = GroupNumber::OtherHosts(segment.vni());
    part.add_group(group, endpoints.iter().map(|endpoint| copy_to(*endpoint, vxlan)).collect());
    let to_all = flagged(TO_ALL_HOSTS.mask).with(NETWORK.field, segment.vni());
    let mut steps = number();
    steps.push(Action::Group(group.to_wire()));
    part.add(Table::Output, TO_ALL, to_all, steps, cookie);
}

/// What comes from other hosts: of a network with a port here, or one whose packets leave here.
pub(crate) fn arrivals(view: &View<'_>, segment: Segment<'_>, part: &mut Part) {
    if view.tunnel().is_none() {
        return;
    }
    let cookie = Cookie { feature: Feature::Tunnel, object: Object::Network(segment.vni()) };
    let arrival = Match::new().with(Field::TunId, segment.vni());
    let steps = vec![
        Action::set(NETWORK.field, segment.vni()),
        Action::set(ZONE.field, segment.zone),
        Action::set_masked(FLAG_BITS.field, FROM_OUTSIDE.mask, FROM_OUTSIDE.mask),
        Action::GotoTable(Table::Identity.number()),
    ];
    part.add(Table::Arrive, ARRIVAL, arrival, steps, cookie);
}

fn flagged(mask: u32) -> Match {
    Match::new().with_masked(FLAG_BITS.field, mask, mask)
}

fn copy_to(endpoint: Ipv4Addr, vxlan: PortNo) -> Vec<Action> {
    vec![Action::set(Field::TunDst, endpoint), Action::output(vxlan)]
}

/// Writes the network into the tunnel header.
pub(crate) fn number() -> Vec<Action> {
    let bits = |field| Subfield::new(field, 0, VNI_BITS).unwrap_or(Subfield::whole(field));
    vec![Action::copy(bits(NETWORK.field), bits(Field::TunId))]
}

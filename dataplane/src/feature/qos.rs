//! Quality of service: meters on what a port sends and is sent, and the DSCP mark.
//!
//! Owns no flows: what a port sends is metered and marked by the flow that classifies it, once, before it is copied to anybody; what it is sent by the
//! flow that delivers it. So a port without limits costs nothing, and one with limits costs its meters. What exceeds a meter is dropped and counted.
//! Invariant: one meter in a flow, which is what Open vSwitch 3.1 takes from its own tools ("duplicate meter instruction not allowed").
//! Source: OpenFlow 1.5.1 §5.8 (meters), RFC 2474 §3 (DSCP).

use model::network::Port;
use model::qos::{Limit, Limits};
use openflow::flow::{Action, Field, Match, Meter, MeterUnit, eth_type};

use crate::compile::view::{Spot, View};
use crate::flow_set::{MeterNumber, Part};

/// The meters of a port that is plugged in here.
pub(crate) fn port(view: &View<'_>, spot: Spot<'_>, part: &mut Part) {
    if spot.segment.is_some() && view.number(spot.port).is_some() {
        let port = spot.port;
        let both = [limits(port.qos.egress, egress(port)), limits(port.qos.ingress, ingress(port))];
        for (number, unit, limit) in both.into_iter().flatten() {
            part.add_meter(Meter::drop_above(number.to_wire(), unit, limit.rate(), limit.burst()));
        }
    }
}

/// What holds what the machine sends to its limits.
pub(crate) fn sending(port: &Port) -> Option<Action> {
    limits(port.qos.egress, egress(port)).map(|(number, ..)| Action::Meter(number.to_wire()))
}

/// What holds what the machine is sent to its limits.
pub(crate) fn receiving(port: &Port) -> Option<Action> {
    limits(port.qos.ingress, ingress(port)).map(|(number, ..)| Action::Meter(number.to_wire()))
}

/// These steps to another table, with the mark where the match lets only packets by that can have one.
pub(crate) fn marked(port: &Port, matching: &Match, mut steps: Vec<Action>) -> Vec<Action> {
    let kinds = [eth_type::IPV4, eth_type::IPV6].map(u128::from);
    let is_ip = matching.exact(Field::EthType).is_some_and(|kind| kinds.contains(&kind));
    if let Some(mark) = mark(port).filter(|_| is_ip) {
        // Behind a meter, which has to be first, and before the way on.
        steps.insert(steps.len().saturating_sub(1), mark);
    }
    steps
}

/// What puts the mark of a port on a packet of IP.
pub(crate) fn mark(port: &Port) -> Option<Action> {
    port.qos.dscp_mark.map(|mark| Action::set(Field::IpDscp, mark.get()))
}

const fn egress(port: &Port) -> [MeterNumber; 2] {
    [MeterNumber::EgressBits(port.key), MeterNumber::EgressPackets(port.key)]
}

const fn ingress(port: &Port) -> [MeterNumber; 2] {
    [MeterNumber::IngressBits(port.key), MeterNumber::IngressPackets(port.key)]
}

fn limits(limits: Limits, [bits, packets]: [MeterNumber; 2]) -> Option<(MeterNumber, MeterUnit, Limit)> {
    match limits {
        Limits::None => None,
        Limits::Kbps(limit) => Some((bits, MeterUnit::Kilobits, limit)),
        Limits::Pps(limit) => Some((packets, MeterUnit::Packets, limit)),
    }
}

//! Quality of service: meters on what a port sends and is sent, and the DSCP mark.
//!
//! What a port sends is metered and marked by the flow that classifies it, once, before it is copied to anybody; what it is sent by the flow that
//! delivers it. So a port without limits costs nothing, and one with a limit in a direction costs its meter. What exceeds a meter is dropped and counted.
//!
//! Invariant: one meter in a flow, which is what Open vSwitch 3.1 takes from its own tools ("duplicate meter instruction not allowed"). Where a port has
//! two limits in one direction the flow that has the first meter looks into table limit for the other, and goes on: what either meter drops is dropped
//! for all that follows, for Open vSwitch puts the actions of both into one list.
//!
//! What a port with a minimum sends on its own network, a part of a physical one, leaves by its queue there; so has it a share of the link while others
//! send, too. The queue is set where the packet leaves, so that neither taps nor tunnels see it, and only if the host has made one (`switch::bridge`).
//! Its flows are these and those of table limit.
//! Source: OpenFlow 1.5.1 §5.8 (meters), RFC 2474 §3 (DSCP).

use model::network::Port;
use model::qos::{Limit, Limits};
use openflow::flow::{Action, Field, Match, Meter, MeterUnit, eth_type};

use crate::compile::view::{Segment, Spot, View};
use crate::cookie::{Cookie, Object};
use crate::feature::{Feature, provider, trunk};
use crate::flow_set::{MeterNumber, Part};
use crate::register::{SOURCE, TARGET};
use crate::table::Table;

/// What a port sends is looked at before its destination is known.
const SENT: u16 = 50;
/// Above all of those: what is delivered came from a port, too.
const RECEIVED: u16 = 200;
/// Above what leaves without a queue.
const QUEUED: u16 = provider::EXIT + 4;

/// The meters of a port that is plugged in here, and the flows of those that are second in their direction.
pub(crate) fn port(view: &View<'_>, spot: Spot<'_>, part: &mut Part) {
    let (Some(segment), Some(number), port) = (spot.segment, view.number(spot.port), spot.port) else { return };
    add_queued(view, segment, port, part);
    let sent = (trunk::rank(port, SENT), trunk::frames(port, number));
    let received = (RECEIVED, Match::new().with(TARGET.field, port.key));
    for (meters, (priority, matching)) in [(egress(port), sent), (ingress(port), received)] {
        for (number, unit, limit) in meters.iter().flatten() {
            part.add_meter(Meter::drop_above(number.to_wire(), *unit, limit.rate(), limit.burst()));
        }
        if let [Some(_), Some((second, ..))] = meters {
            let cookie = Cookie { feature: Feature::Qos, object: Object::Port(port.key) };
            part.add(Table::Limit, priority, matching, vec![Action::Meter(second.to_wire())], cookie);
        }
    }
}

/// What leaves by the queue of a port that has one.
fn add_queued(view: &View<'_>, segment: Segment<'_>, port: &Port, part: &mut Part) {
    let (Some(minimum), Some(provider)) = (port.qos.egress_min_kbps, &segment.network.provider) else { return };
    let physical = &provider.physical_network;
    let (Some(queue), Some(exit)) = (view.queue(port), view.physical(physical)) else { return };
    let cookie = Cookie { feature: Feature::Qos, object: Object::Port(port.key) };
    let matching = provider::untagged(segment).with(SOURCE.field, port.key);
    let steps = [Action::SetQueue(queue)].into_iter().chain(provider::out(provider, exit)).collect();
    let note = format!("out to {provider}, queue {queue}, at least {minimum} kbit/s of physical network {physical}");
    part.add_noted(Table::Output, QUEUED, matching, steps, (cookie, note));
}

/// What holds what the machine sends to its limits.
pub(crate) fn sending(port: &Port) -> impl Iterator<Item = Action> + use<> {
    held(egress(port))
}

/// What holds what the machine is sent to its limits.
pub(crate) fn receiving(port: &Port) -> impl Iterator<Item = Action> + use<> {
    held(ingress(port))
}

fn held(meters: Meters) -> impl Iterator<Item = Action> {
    let [first, second] = meters;
    let meter = first.map(|(number, ..)| Action::Meter(number.to_wire()));
    meter.into_iter().chain(second.map(|_| Action::resubmit(Table::Limit.number())))
}

/// These steps to another table, with the mark where the match lets only packets by that can have one.
pub(crate) fn marked(port: &Port, matching: &Match, mut steps: Vec<Action>) -> Vec<Action> {
    let kinds = [eth_type::IPV4, eth_type::IPV6].map(u128::from);
    let is_ip = matching.exact(Field::EthType).is_some_and(|kind| kinds.contains(&kind));
    if let Some(mark) = mark(port).filter(|_| is_ip) {
        // Behind the meters, which have to be first, and before the way on.
        steps.insert(steps.len().saturating_sub(1), mark);
    }
    steps
}

/// What puts the mark of a port on a packet of IP.
pub(crate) fn mark(port: &Port) -> Option<Action> {
    port.qos.dscp_mark.map(|mark| Action::set(Field::IpDscp, mark.get()))
}

/// The meters of one direction, in their order: none, one or two.
type Meters = [Option<(MeterNumber, MeterUnit, Limit)>; 2];

fn egress(port: &Port) -> Meters {
    meters(port.qos.egress, [MeterNumber::EgressBits(port.key), MeterNumber::EgressPackets(port.key)])
}

fn ingress(port: &Port) -> Meters {
    meters(port.qos.ingress, [MeterNumber::IngressBits(port.key), MeterNumber::IngressPackets(port.key)])
}

fn meters(limits: Limits, [bits, packets]: [MeterNumber; 2]) -> Meters {
    let of_bits = limits.kbps.map(|limit| (bits, MeterUnit::Kilobits, limit));
    let of_packets = limits.pps.map(|limit| (packets, MeterUnit::Packets, limit));
    if of_bits.is_some() { [of_bits, of_packets] } else { [of_packets, None] }
}

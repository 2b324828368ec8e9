//! ICMP errors through floating IPs: what they quote is made to fit by the agent, and they go on as any packet does.
//!
//! Flows rewrite headers, and not what an error quotes. The connection tracker could, of connections that it translates itself; floating IPs keep none,
//! and to keep one for each of their packets would cost all of them a pass. So errors, which are few, are handed to the agent, which gives them back
//! to the flow that handed them over (`pause` of ovs-actions(7), [`quoted`](crate::quoted)). All else of a floating IP stays as it was. What is too much
//! for the agent is dropped: errors may be lost on any way (RFC 1812 §4.3.2.8).

use std::net::Ipv4Addr;

use openflow::flow::{Action, Controller, Field, Match, Meter, MeterUnit};

use crate::flow_set::{MeterNumber, Part};
use crate::punt::Punt;
use crate::quoted::{ERRORS, End};

/// Errors of one port, each way, that the agent is handed in a second, and at once. Kernels send one a second to each station (icmp(7),
/// `icmp_ratelimit`); whoever floods a port with errors keeps no other port's from it.
const ERRORS_PER_SECOND: u32 = 50;
const ERRORS_BURST: u32 = 100;

/// The same of all ports together: the agent parses each, and has other things to do.
const ALL_PER_SECOND: u32 = 500;
const ALL_BURST: u32 = 1000;

/// What every host has.
pub(crate) fn host(part: &mut Part) {
    let all = MeterNumber::Errors.to_wire();
    part.add_meter(Meter::drop_above(all, MeterUnit::Packets, ALL_PER_SECOND, ALL_BURST));
}

/// Errors among packets that otherwise match.
pub(crate) fn errors(among: &Match) -> impl Iterator<Item = Match> {
    ERRORS.into_iter().map(|kind| among.clone().icmp().with(Field::IcmpType, kind))
}

/// Has what an error quotes translated at one end, from one address to another, before the steps that follow.
pub(crate) fn translated(key: u32, end: End, (from, to): (Ipv4Addr, Ipv4Addr), part: &mut Part) -> [Action; 2] {
    let meter = match end {
        End::Source => MeterNumber::ErrorsIn(key),
        End::Target => MeterNumber::ErrorsOut(key),
    };
    let meter = meter.to_wire();
    part.add_meter(Meter::drop_above(meter, MeterUnit::Packets, ERRORS_PER_SECOND, ERRORS_BURST));
    let user_data = Punt::Quoted { end, from, to }.to_user_data();
    // Open vSwitch takes one meter among a flow's actions, and another one where a packet is handed over.
    let hand = Controller::new().with_userdata(user_data).paused().metered(MeterNumber::Errors.to_wire());
    [Action::Meter(meter), Action::Controller(hand)]
}

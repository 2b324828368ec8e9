//! Answers to health checks: what a member on this host says to the address of its load balancer, where a monitor asked, is handed to the agent.
//!
//! Checks are sent straight out of the member's port, from the load balancer's own address: the one that a member can answer whatever it knows of the
//! network, for its clients come from there or from behind the same router. The answer is met here, before it could go anywhere, with the port that sent it,
//! so that no other port can speak for a member; anti-spoofing has been asked, security groups are not: they say who may be a client, and the host's own
//! questions, as those of DHCP, are none of a client's. Ports from [`FIRST_PORT`] on are those that checks come from: nothing that is balanced goes to them.
//! Each member has a meter, and all of them together one more. Never asks whether an answer is right: that is [`crate::health`]'s.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::balancer::Balancer;
use model::balancer::monitor::Check;
use openflow::flow::{Action, Controller, Field, Match, Meter, MeterUnit, ip_proto};

use super::balancer::Front;
use crate::compile::view::{Place, View};
use crate::family::{self, Family};
use crate::flow_set::{MeterNumber, Part};
use crate::punt::Punt;
use crate::register::{NETWORK, SOURCE};
use crate::table::Table;

/// The first of the ports that checks come from; the last is 65535.
pub(crate) const FIRST_PORT: u16 = 0xfc00;
/// Above every MAC address, and above services: neither is at the address of a load balancer.
const ANSWERED: u16 = 320;
/// Packets in a second, and at once, for each check of a member in a second: a page of one segment takes about 5.
const PACKETS: u32 = 20;
/// The same of all members of the host together: the agent parses each. It takes more than a hundred ports that flood to keep others' answers from it, and
/// [`CHECKS_MAX`](crate::health::CHECKS_MAX) connections at once are answered with less.
const ALL_PACKETS: u32 = 2000;

/// What a member may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    /// A segment from this port.
    Tcp(u16),
    /// A datagram from this port, or an error that says that it is closed.
    Udp(u16),
    /// An ICMP echo reply.
    Echo,
}

/// What every host has.
pub(crate) fn host(part: &mut Part) {
    let all = MeterNumber::AllChecks.to_wire();
    part.add_meter(Meter::drop_above(all, MeterUnit::Packets, ALL_PACKETS, ALL_PACKETS));
}

/// A load balancer that has members here which are checked.
pub(crate) fn balancer(view: &View<'_>, balancer: &Balancer, part: &mut Part) {
    if balancer.listeners.iter().all(|listener| listener.checks().is_none()) {
        return;
    }
    let Some(front) = Front::of(view, balancer) else { return };
    let checked = balancer.listeners.iter().flat_map(|listener| {
        let each = |monitor| listener.members.iter().map(move |member| (monitor, member));
        listener.checks().into_iter().flat_map(each)
    });
    let mut here: BTreeMap<u32, (u32, BTreeSet<(IpAddr, Answer)>)> = BTreeMap::new();
    let mut networks = BTreeMap::new();
    for (monitor, member) in checked {
        let Some(seat) = front.seat(view, member.address) else { continue };
        let Some(segment) = view.segment(seat.port.network) else { continue };
        if view.place(seat.port) != Place::Here {
            continue;
        }
        networks.insert(seat.port.key, segment.vni());
        let (checks, answers) = here.entry(seat.port.key).or_default();
        *checks += 1;
        answers.insert((member.address, answer(&monitor.check, member.port)));
    }
    for (place, (port, (checks, answers))) in (0..).zip(here) {
        let meter = MeterNumber::Checks(balancer.key.into(), place).to_wire();
        let most = checks.saturating_mul(PACKETS);
        part.add_meter(Meter::drop_above(meter, MeterUnit::Packets, most, most));
        let sender = Match::new().with(SOURCE.field, port);
        let sender = networks.get(&port).map_or(sender.clone(), |vni| sender.with(NETWORK.field, *vni));
        for (address, matching) in answers.into_iter().flat_map(|(address, answer)| {
            matches(&front, &sender, (address, balancer.address), answer).into_iter().map(move |it| (address, it))
        }) {
            // Open vSwitch takes one meter among a flow's actions, and another one where a packet is handed over.
            let hand_over = Controller::new().with_userdata(Punt::Health { port }.to_user_data());
            let hand_over = hand_over.metered(MeterNumber::AllChecks.to_wire());
            let steps = vec![Action::Meter(meter), Action::Controller(hand_over)];
            let note = format!("what {address} answers to a health check");
            part.add_noted(Table::Forward, ANSWERED, matching, steps, (front.cookie, note));
        }
    }
}

const fn answer(check: &Check, port: u16) -> Answer {
    match check {
        Check::Tcp | Check::Http { .. } => Answer::Tcp(port),
        Check::Ping => Answer::Echo,
        Check::UdpConnect => Answer::Udp(port),
    }
}

fn matches(front: &Front<'_>, sender: &Match, (from, to): (IpAddr, IpAddr), answer: Answer) -> Vec<Match> {
    let family = front.family;
    let packets = match family {
        Family::V4 => sender.clone().ip(),
        Family::V6 => sender.clone().ipv6(),
    };
    let packets = packets.with(family.source(), family::value(from)).with(family.target(), family::value(to));
    let icmp = |kind: u8| packets.clone().ip_proto(family.icmp()).with(family.icmp_type(), kind);
    match answer {
        Answer::Tcp(port) => {
            let segments = packets.ip_proto(ip_proto::TCP).with(Field::TcpSrc, port);
            vec![segments.with_masked(Field::TcpDst, FIRST_PORT, FIRST_PORT)]
        }
        Answer::Udp(port) => {
            let datagrams = packets.clone().ip_proto(ip_proto::UDP).with(Field::UdpSrc, port);
            vec![datagrams.with_masked(Field::UdpDst, FIRST_PORT, FIRST_PORT), icmp(unreachable(family))]
        }
        Answer::Echo => vec![icmp(family.echo().1)],
    }
}

/// The ICMP type that says that a port is closed, among other things (RFC 792; RFC 4443 §3.1).
const fn unreachable(family: Family) -> u8 {
    match family {
        Family::V4 => 3,
        Family::V6 => 1,
    }
}

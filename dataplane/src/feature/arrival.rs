//! Ports that are awaited on another host: wired there ahead of their machine, and switched by the first frame that it sends from there (ADR 9).
//!
//! Until then the port is where it was, for the host that awaits it as for all others. Who sends to it sends one frame to its host and a copy to the one
//! that awaits it, which gives that to the tap: what comes between the machine's resumption and the switch is not lost. Broadcasts have their own ways:
//! the host that awaits is one of those that get them. From a physical network frames come to the port's host alone, which passes a copy on. A copy is
//! judged where it is delivered, and apart: what is said of it there is nothing to the frame that goes to the port's host.
//!
//! What the port may send from the tap where it is awaited goes to the agent, behind anti-spoofing, and nowhere else; the agent makes the port local and
//! lets the frame in again. The tracker there knows none of its connections, so that their segments in the middle count as new: rules are asked, and take
//! one for a beginning where they allow it. Where they do not, it is let pass for a while, unremembered: its answer, which the rules allow if anything does,
//! makes the connection known. A SYN is never let pass that way.
//!
//! ```text
//! sender's host: output: to a port awaited elsewhere --> tunnel to its host, tunnel to the other
//! its host:      output: from here, or off the wire  --> its tap, tunnel to the other
//! awaiting host: arrive .. forward: a copy --> track .. output: the tap        output: from here --> tunnel to its host, again from track: the tap
//!                classify: from the tap, not spoofed --> the agent
//! ```

use std::net::Ipv4Addr;

use openflow::flow::{Action, Controller, Field, Match, Meter, MeterUnit, PortNo, ct_state};

use crate::compile::view::{Place, Segment, Spot, View};
use crate::cookie::{Cookie, Object};
use crate::feature::{Feature, classify, deliver, forward, qos, trunk, tunnel};
use crate::flow_set::{MeterNumber, Part};
use crate::punt::Punt;
use crate::register::{
    ENDPOINT, FLAG_BITS, FROM_OUTSIDE, FROM_PHYSICAL, NETWORK, SOURCE, TARGET, TARGET_GUARDED, TARGET_STATELESS,
    TO_TUNNEL,
};
use crate::table::Table;

/// Above the way to a port by its MAC address.
const COPIED: u16 = 101;
/// Above delivery by the number of the port, below what a trunk or a mirror holds back.
const PASSED_ON: u16 = 102;
const OFF_THE_WIRE: u16 = 103;
const OWN: u16 = 104;
/// Above the way to another host, below what must not go back there.
const DOUBLED: u16 = 210;
/// As what a guarded port may send; above the drop of ARP probes.
const SAID: u16 = 100;
const PROBE: u16 = 75;
/// Below all rules.
const UNDER_WAY: u16 = 50;

/// The EtherType of a reverse ARP request (RFC 903): how hypervisors announce a machine that came.
const RARP: u16 = 0x8035;
const ARP_REQUEST: u16 = 1;
/// UDP ports of a DHCP client and its server.
const DHCP: (u16, u16) = (68, 67);
/// The bits of TCP's flags that tell a segment in the middle from one that begins a connection (RFC 9293 §3.1): all but the first acknowledge something.
const ACK: u16 = 0x010;
const SYN: u16 = 0x002;

/// Frames of one port that the agent is handed in a second, and at once: they come until flows are in place, which takes milliseconds.
const FRAMES_PER_SECOND: u32 = 500;
const FRAMES_BURST: u32 = 500;
/// The same of all ports together.
const ALL_PER_SECOND: u32 = 2000;
const ALL_BURST: u32 = 2000;

/// What every host has.
pub(crate) fn host(part: &mut Part) {
    let all = MeterNumber::AllArrivals.to_wire();
    part.add_meter(Meter::drop_above(all, MeterUnit::Packets, ALL_PER_SECOND, ALL_BURST));
}

/// A port, wherever it is.
pub(crate) fn port(view: &View<'_>, spot: Spot<'_>, part: &mut Part) {
    let port = spot.port;
    if let Some(segment) = spot.segment {
        let is_awaited = view.is_awaited(port);
        if is_awaited {
            awaited(view, spot, segment, part);
        }
        let is_settling = spot.place == Place::Here && view.is_settling(port);
        if is_settling {
            announced(view, spot, segment, part);
        }
        if (is_awaited || is_settling) && port.port_security && !view.is_stateless(port) {
            add_under_way(port.key, part);
        }
    }
    let (Some(endpoint), Some(vxlan)) = (view.awaited_at(port), view.tunnel()) else { return };
    match spot.place {
        Place::Here => pass_on(view, spot, (endpoint, vxlan), part),
        Place::There(_) if spot.segment.is_some() || view.is_routed(port.network) => {
            let mut steps = home(vxlan);
            steps.extend([Action::set(Field::TunDst, endpoint), Action::output(vxlan)]);
            let note = format!("to its host, and a copy to {endpoint}, where it is awaited");
            part.add_noted(Table::Output, DOUBLED, leaving(port.key), steps, (cookie(port.key), note));
        }
        Place::There(_) | Place::Nowhere => {}
    }
}

/// A port of this host that is awaited elsewhere: what does not come from a host that sends a copy itself is passed on.
fn pass_on(view: &View<'_>, spot: Spot<'_>, (endpoint, vxlan): (Ipv4Addr, PortNo), part: &mut Part) {
    let port = spot.port;
    let (Some(_), Some(number)) = (spot.segment, view.number(port)) else { return };
    let mut steps = deliver::steps(view, port, number);
    // Behind the meters, which have to be first, and before the tag of a trunk.
    let at = steps.iter().take_while(|step| matches!(step, Action::Meter(_) | Action::Resubmit { .. })).count();
    let copy = tunnel::number().into_iter().chain([Action::set(Field::TunDst, endpoint), Action::output(vxlan)]);
    steps.splice(at..at, copy);
    let note = || format!("here, and a copy to {endpoint}, where it is awaited");
    // What is flooded has a way of its own to the other host, be it to a MAC address that several have.
    let to = || Match::new().with(TARGET.field, port.key).eth_dst(port.mac.bytes());
    let own = to().with(SOURCE.field, port.key);
    part.add_noted(Table::Output, OWN, own, Vec::new(), (cookie(port.key), "it is from there".to_owned()));
    let from_here = to().with_masked(FLAG_BITS.field, 0, FROM_OUTSIDE.mask);
    part.add_noted(Table::Output, PASSED_ON, from_here, steps.clone(), (cookie(port.key), note()));
    let wire = to().with_masked(FLAG_BITS.field, FROM_PHYSICAL.mask, FROM_PHYSICAL.mask);
    part.add_noted(Table::Output, OFF_THE_WIRE, wire, steps, (cookie(port.key), note()));
}

/// A port that is awaited here: it is wired, and what it sends goes to the agent.
fn awaited(view: &View<'_>, spot: Spot<'_>, segment: Segment<'_>, part: &mut Part) {
    let port = spot.port;
    let Some(number) = view.number(port) else { return };
    classify::port(view, spot, part);
    qos::port(view, spot, part);
    deliver::port(view, spot, part);
    trunk::port(view, spot, part);
    let meter = MeterNumber::Arrivals(port.key).to_wire();
    part.add_meter(Meter::drop_above(meter, MeterUnit::Packets, FRAMES_PER_SECOND, FRAMES_BURST));
    if port.port_security {
        let from = || trunk::frames(port, number).eth_src(port.mac.bytes());
        let probe = from().arp().with(Field::ArpSpa, Ipv4Addr::UNSPECIFIED).with(Field::ArpOp, ARP_REQUEST);
        let probe = probe.with(Field::ArpSha, port.mac.bytes());
        let request = from().udp().with(Field::UdpSrc, DHCP.0).with(Field::UdpDst, DHCP.1);
        let announcement = from().with(Field::EthType, RARP);
        for (priority, said) in [(PROBE, probe), (SAID, request), (SAID, announcement)] {
            let note = "its machine has come".to_owned();
            part.add_noted(
                Table::Classify,
                trunk::rank(port, priority),
                said,
                hand_over(port.key),
                (cookie(port.key), note),
            );
        }
    }
    let both = FROM_OUTSIDE.mask | FROM_PHYSICAL.mask;
    let copy = Match::new().with(NETWORK.field, segment.vni()).eth_dst(port.mac.bytes());
    let copy = copy.with_masked(FLAG_BITS.field, FROM_OUTSIDE.mask, both);
    let mut steps = forward::here(view, port);
    steps.push(Action::GotoTable(Table::Track.number()));
    let note = "a copy, for the port is awaited here".to_owned();
    part.add_noted(Table::Forward, COPIED, copy, steps, (cookie(port.key), note));
    // From here to its host first, whatever is said of the copy.
    let mut steps = view.tunnel().map(home).unwrap_or_default();
    let guard = forward::guard(view, port);
    let all = TO_TUNNEL.mask | TARGET_GUARDED.mask | TARGET_STATELESS.mask;
    steps.push(Action::set(Field::TunDst, Ipv4Addr::UNSPECIFIED));
    steps.push(Action::set_masked(FLAG_BITS.field, guard, all));
    steps.push(Action::resubmit(Table::Track.number()));
    let note = "to its host, and a copy here, where it is awaited".to_owned();
    part.add_noted(Table::Output, DOUBLED, leaving(port.key), steps, (cookie(port.key), note));
}

/// Has the agent switch the port, and let the frame in again then.
pub(crate) fn hand_over(key: u32) -> Vec<Action> {
    let hand = Controller::new().with_userdata(Punt::Arrival { port: key }.to_user_data());
    let hand = hand.metered(MeterNumber::AllArrivals.to_wire());
    vec![Action::Meter(MeterNumber::Arrivals(key).to_wire()), Action::Controller(hand)]
}

/// What tells the switches of a physical network where a machine is that came a while ago at most.
fn announced(view: &View<'_>, spot: Spot<'_>, segment: Segment<'_>, part: &mut Part) {
    let port = spot.port;
    let Some(number) = view.number(port).filter(|_| segment.network.provider.is_some() && port.port_security) else {
        return;
    };
    let said = trunk::frames(port, number).eth_src(port.mac.bytes()).with(Field::EthType, RARP);
    let steps = classify::steps(view, segment, port, Table::Forward);
    let note = "it says that it has come".to_owned();
    part.add_noted(Table::Classify, trunk::rank(port, SAID), said, steps, (cookie(port.key), note));
}

/// Segments of connections that are under way, which no rule allows as a beginning.
fn add_under_way(key: u32, part: &mut Part) {
    let onward = || vec![Action::GotoTable(Table::Output.number())];
    for segment in [Match::new().tcp(), Match::new().tcp6()] {
        let segment =
            segment.ct_state(ct_state::TRACKED | ct_state::NEW, 0).with_masked(Field::TcpFlags, ACK, ACK | SYN);
        let out = segment.clone().with(SOURCE.field, key).with_masked(FLAG_BITS.field, 0, TARGET_GUARDED.mask);
        let note = "the port has come from another host: its connections are under way".to_owned();
        part.add_noted(Table::Egress, UNDER_WAY, out, onward(), (cookie(key), note.clone()));
        part.add_noted(Table::Ingress, UNDER_WAY, segment.with(TARGET.field, key), onward(), (cookie(key), note));
    }
}

/// What leaves for the host of a port.
fn leaving(key: u32) -> Match {
    Match::new().with(TARGET.field, key).with_masked(FLAG_BITS.field, TO_TUNNEL.mask, TO_TUNNEL.mask)
}

/// By tunnel to the host of the port.
fn home(vxlan: PortNo) -> Vec<Action> {
    let mut steps = tunnel::number();
    steps.extend([Action::copy(ENDPOINT.field, Field::TunDst), Action::output(vxlan)]);
    steps
}

const fn cookie(key: u32) -> Cookie {
    Cookie { feature: Feature::Arrival, object: Object::Port(key) }
}

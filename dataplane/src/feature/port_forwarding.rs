//! Port forwardings: ports of a router's own address outside that lead to ports of addresses behind it, on the router's gateway host.
//!
//! Owns the first packet of such a connection, and who goes on with one. The first packet has been through the tracker already, as all that comes to the
//! address ([`snat`](mod@super::snat)); it goes through once more, in the same zone, to be translated, and its connection is given a label that says what
//! was forwarded to where. From then on the tracker translates both ways in the pass that every packet there has. The label is asked for each way:
//! what the specification does not forward any more goes nowhere, whoever sends it. Past the gateway it is a packet of the station outside, with its
//! own address, which the groups of the port judge where the port is.
//! Invariant: nothing begins a connection from outside but by a forwarding, and no answer to such a connection leaves but by the same.
//!
//! What a machine begins from a port that others reach it by leaves by the port that is forwarded: so connections from outside go on when the gateway moves
//! and the machine speaks first, and a machine that has one port for all is known by one port outside.
//!
//! SNAT may give a connection a source port that is forwarded: the tracker holds each pair of ends once, so that only what that one station sends from
//! that one port belongs to it. Ports below 1024 it never gives.
//!
//! ```text
//! wire -> forward --ct(nat)--> nat: new --ct(commit,nat(dst))--> nat: labelled -> route -> host -> track ... output -> port, here or by tunnel
//!                               \--> nat: labelled -> route ...
//! port or tunnel -> ... output --ct(nat)--> nat: an answer, labelled --again--> forward -> wire
//! ```
//!
//! Source: RFC 3022 §2.2, ovs-actions(7) "The ct action"; the words of a forwarding are those of OpenStack Neutron.

use std::net::IpAddr;

use model::network::{ForwardedProtocol, PortForwarding};
use openflow::flow::{Action, Ct, CtZone, Field, Match, Nat, NatRange, NatSide, ct_state, ip_proto};

use crate::compile::view::View;
use crate::cookie::{Cookie, Object};
use crate::feature::snat::{Gate, OUTWARD};
use crate::feature::{Feature, firewall};
use crate::flow_set::Part;
use crate::identity::NOBODY;
use crate::register::{ANSWERING, FLAG_BITS, LEAVING, SOURCE_IDENTITY};
use crate::table::Table;

/// Above what leaves as the router.
const ANSWERS: u16 = 130;
const STALE: u16 = 125;
/// Above what nobody has asked for.
const FIRST: u16 = 108;
const FORWARDED: u16 = 106;

/// The ports that a router forwards, and the end of connections by others.
pub(crate) fn add(view: &View<'_>, gate: &Gate<'_>, part: &mut Part) {
    let cookie = Cookie { feature: Feature::PortForwarding, object: Object::Router(gate.exit.router.key.into()) };
    for forwarding in &gate.snat.forwardings {
        Way { gate, forwarding, cookie }.add(view, part);
    }
    add_errors(gate, cookie, part);
    let note = format!("no port of {} is forwarded to it any more", gate.snat.address);
    part.add_noted(Table::Nat, STALE, answering(gate).ip(), Vec::new(), (cookie, note));
}

/// Errors about what a machine answered are of the direction that the connection began in: the kernel translates those only when it commits
/// (`ovs_ct_nat` in net/openvswitch/conntrack.c). One that stays as it was is dropped: it comes here once.
fn add_errors(gate: &Gate<'_>, cookie: Cookie, part: &mut Part) {
    use ct_state::{INVALID, RELATED, TRACKED};
    let about = gate.of_router().with_masked(FLAG_BITS.field, ANSWERING.mask, ANSWERING.mask).ip();
    let about = about.with(Field::Ipv4Dst, gate.snat.address).ct_state(TRACKED | RELATED, INVALID);
    let ct = Ct::track(CtZone::Fixed(gate.zone), Table::Nat.number());
    let translate = Action::ct(Ct { commit: true, actions: vec![Action::Nat(Nat::default())], ..ct });
    let steps = vec![Action::set_masked(FLAG_BITS.field, 0_u32, ANSWERING.mask), translate];
    part.add_noted(
        Table::Nat,
        FIRST,
        about,
        steps,
        (cookie, "about an answer to a connection from outside".to_owned()),
    );
}

/// Answers from behind the router to connections from outside.
fn answering(gate: &Gate<'_>) -> Match {
    use ct_state::{ESTABLISHED, INVALID, NEW, REPLY, TRACKED};
    let leaving = gate.of_router().with_masked(FLAG_BITS.field, LEAVING.mask, LEAVING.mask);
    leaving.ct_state(TRACKED | ESTABLISHED | REPLY, NEW | INVALID)
}

/// What connections by a forwarding are known by: all of it that they depend on.
///
/// ```text
/// 71     64 63          48 47                    16 15           0
/// protocol | external port | internal IP address   | internal port
/// ```
fn label(forwarding: &PortForwarding) -> u128 {
    let PortForwarding { external_port, internal_ip_address, internal_port, .. } = *forwarding;
    let address = u128::from(internal_ip_address.to_bits());
    u128::from(number(forwarding.protocol)) << 64
        | u128::from(external_port) << 48
        | address << 16
        | u128::from(internal_port)
}

const fn number(protocol: ForwardedProtocol) -> u8 {
    match protocol {
        ForwardedProtocol::Tcp => ip_proto::TCP,
        ForwardedProtocol::Udp => ip_proto::UDP,
    }
}

/// One forwarding.
struct Way<'a> {
    gate: &'a Gate<'a>,
    forwarding: &'a PortForwarding,
    cookie: Cookie,
}

impl Way<'_> {
    fn add(&self, view: &View<'_>, part: &mut Part) {
        use ct_state::{INVALID, NEW, RELATED, REPLY, TRACKED};
        let PortForwarding { protocol, external_port, internal_ip_address, internal_port, .. } = *self.forwarding;
        let address = self.gate.snat.address;
        let from = format!("{} port {external_port} of {address}", protocol.name().to_uppercase());
        let to = format!("{internal_ip_address}, port {internal_port}");

        let first = self.gate.of_router().with_masked(FLAG_BITS.field, ANSWERING.mask, ANSWERING.mask);
        let first = self.at(first, (Field::TcpDst, Field::UdpDst), external_port);
        let first = first.with(Field::Ipv4Dst, address).ct_state(TRACKED | NEW, INVALID | RELATED);
        let note = format!("{from} is forwarded to {to}");
        part.add_noted(Table::Nat, FIRST, first, vec![self.translate()], (self.cookie, note));

        // A connection that nobody has answered yet gets the label of its newest packet, and goes where it went before: only there does that count.
        let inside = self.at(self.gate.of_router(), (Field::TcpDst, Field::UdpDst), internal_port);
        let inside = inside.with(Field::Ipv4Dst, internal_ip_address);
        let forwarded = self.labelled(inside.ct_state(TRACKED, INVALID | REPLY | RELATED));
        let onward = firewall::inward(view, self.gate.exit.router, vec![Action::GotoTable(Table::Route.number())]);
        let steps = [Action::set(SOURCE_IDENTITY.field, NOBODY)].into_iter().chain(onward).collect();
        part.add_noted(Table::Nat, FORWARDED, forwarded, steps, (self.cookie, format!("from {from}")));

        let leaving = self.gate.of_router().with_masked(FLAG_BITS.field, LEAVING.mask, LEAVING.mask);
        let leaving = self.at(leaving, (Field::TcpSrc, Field::UdpSrc), internal_port);
        let leaving = leaving.with(Field::Ipv4Src, internal_ip_address);
        let note = format!("it leaves by {from}, which is forwarded to it");
        let steps = self.gate.translate((external_port, None));
        part.add_noted(Table::Output, OUTWARD + 1, leaving, steps, (self.cookie, note));

        let answer = self.at(answering(self.gate), (Field::TcpSrc, Field::UdpSrc), external_port);
        let answer = self.labelled(answer).with(Field::Ipv4Src, address);
        let note = format!("an answer by {from}");
        part.add_noted(Table::Nat, ANSWERS, answer, self.gate.leave(), (self.cookie, note));
    }

    /// Packets of its protocol, with this port at an end.
    fn at(&self, matching: Match, (tcp, udp): (Field, Field), port: u16) -> Match {
        match self.forwarding.protocol {
            ForwardedProtocol::Tcp => matching.tcp().with(tcp, port),
            ForwardedProtocol::Udp => matching.udp().with(udp, port),
        }
    }

    fn labelled(&self, matching: Match) -> Match {
        matching.with(Field::CtLabel, label(self.forwarding))
    }

    /// Through the tracker once more, with another destination.
    fn translate(&self) -> Action {
        let PortForwarding { internal_ip_address, internal_port, .. } = *self.forwarding;
        let range = NatRange {
            side: NatSide::Destination,
            addresses: Some((IpAddr::V4(internal_ip_address), None)),
            ports: Some((internal_port, None)),
        };
        let translate = Action::Nat(Nat { range: Some(range), ..Nat::default() });
        let remember = Action::set(Field::CtLabel, label(self.forwarding));
        let ct = Ct::track(CtZone::Fixed(self.gate.zone), Table::Nat.number());
        Action::ct(Ct { commit: true, actions: vec![translate, remember], ..ct })
    }
}

//! Shared SNAT: the address of a router outside, which all ports behind it without a floating IP leave as, on the router's gateway host.
//!
//! Owns both directions of the translation and the address itself, which answers ARP on that host only. What leaves has been judged and tracked by
//! its sender's host, with the fixed address; the gateway translates it in a zone that is the router's own, so that tenants with the same addresses
//! never meet, and puts it on the network outside like any other frame there. What comes to the address goes on only as an answer, or an error about
//! one, of a connection that was begun behind the router: it is translated back, routed, and judged as a reply where its port is. All else there is
//! [`port_forwarding`]'s. Nobody outside speaks with an address from behind the router, and an answer to an address that is not behind it does not leave
//! again.
//! A gateway that stands by has all of this behind a [`Gate`](failover::Gate).
//! Invariant: no packet leaves with an address of a port, whatever the connection tracker makes of it.
//!
//! ```text
//! port, here -> forward -> route -> beyond -> track ... output --ct(nat)--> nat --again--> forward -> wire
//! tunnel -> forward (to the router) ----/
//! wire -> identity -> forward --ct(nat)--> nat -> route -> host -> track ... output -> port, here or by tunnel
//! ```
//!
//! Source: RFC 3022 §2.2 (NAPT), RFC 5382 and RFC 4787 (ports above 1023, answers of the station asked only).

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use model::network::Snat;
use openflow::flow::{Action, Ct, CtZone, Field, Match, Nat, NatRange, NatSide, VLAN_PRESENT, ct_state};

use crate::compile::view::{Segment, View};
use crate::cookie::{Cookie, Object};
use crate::family;
use crate::feature::failover;
use crate::feature::floating::{Station, add_pretended, again, feet};
use crate::feature::way_out::Exit;
use crate::feature::{Feature, firewall, port_forwarding};
use crate::flow_set::Part;
use crate::identity::NOBODY;
use crate::register::{
    ANSWERING, FLAG_BITS, FROM_OUTSIDE, FROM_PHYSICAL, LEAVING, NETWORK, ROUTER, SOURCE, SOURCE_IDENTITY, TO_PHYSICAL,
    ZONE,
};
use crate::table::Table;

const INWARD: u16 = 110;
/// What comes by tunnel to a router, which is nothing else's to take.
const ARRIVED_NEAR: u16 = 105;
const ARRIVED: u16 = 100;
/// Above what the agent found out, which may be old.
const KNOWN: u16 = 110;
/// Below floating IPs, above what has no way out.
pub(crate) const OUTWARD: u16 = 395;
const BACK_IN: u16 = 380;
const LEFT: u16 = 120;
const NOT_LEFT: u16 = 110;
const UNASKED: u16 = 105;
const ANSWER: u16 = 100;
const ASTRAY: u16 = 95;

/// Source ports that connections leave by: those that no service of the router's address could be taken for.
const PORTS: (u16, u16) = (1024, 65_535);

/// What is said where a router has an address outside and no host to have it.
pub(crate) const NO_GATEWAY_HOST: &str = "no host is up and wired to be the router's gateway";

/// What is said of what comes to a router's address and is for nobody.
pub(crate) const NOT_FORWARDED: &str = ", and no port forwarding is for it";

/// The address of a router, on its gateway host.
pub(crate) struct Gate<'a> {
    pub(crate) snat: &'a Snat,
    pub(crate) exit: &'a Exit<'a>,
    /// The network outside.
    outside: Segment<'a>,
    /// The zone in which addresses are translated.
    pub(crate) zone: u16,
    cookie: Cookie,
    /// What holds this back while a gateway before this host is alive.
    turn: failover::Gate<'a>,
}

pub(crate) fn host(part: &mut Part) {
    part.add_miss(Table::Nat);
}

/// A router whose gateway host this is, or may come to be.
pub(crate) fn add<'a>(view: &View<'a>, exit: &'a Exit<'a>, snat: &'a Snat, turn: failover::Gate<'a>, part: &mut Part) {
    let (Some(outside), Some(zone)) = (view.segment(exit.network.id), view.snat_zone(exit.router.id)) else { return };
    let cookie = Cookie { feature: Feature::Snat, object: Object::Router(exit.router.key.into()) };
    let gate = Gate { snat, exit, outside, zone, cookie, turn };
    let (address, mac) = (snat.address, snat.mac);
    let name = format!("external address {address}");
    Station { name: &name, address, mac, outside, cookie }.add_arp(exit.subnet, turn, part);
    gate.add_arrivals(view, part);
    gate.add_outward(part);
    gate.add_inward(view, part);
    port_forwarding::add(view, &gate, part);
}

fn is_ipv4(range: &IpNet) -> bool {
    matches!(range, IpNet::V4(_))
}

impl Gate<'_> {
    pub(crate) fn of_router(&self) -> Match {
        Match::new().with(ROUTER.field, self.exit.router.key)
    }

    fn outside(&self) -> Match {
        Match::new().with(NETWORK.field, self.outside.vni())
    }

    /// What other hosts have routed out: it is addressed to the router still.
    fn add_arrivals(&self, view: &View<'_>, part: &mut Part) {
        for foot in &self.exit.router.interfaces {
            let (Some((_, network)), true) = (view.subnet_of(foot), foot.address.is_ipv4()) else { continue };
            let both = FROM_OUTSIDE.mask | FROM_PHYSICAL.mask;
            let by_tunnel = Match::new().with(NETWORK.field, network.vni.get()).eth_dst(foot.mac.bytes()).ip();
            let by_tunnel = by_tunnel.with_masked(FLAG_BITS.field, FROM_OUTSIDE.mask, both);
            let near = family::to_net(by_tunnel.clone(), self.exit.subnet.cidr);
            let far = self.exit.far().map(|far| (ARRIVED, by_tunnel, far));
            for (priority, matching, (steps, note)) in [(ARRIVED_NEAR, near, self.exit.near())].into_iter().chain(far) {
                let of_router = (!steps.is_empty()).then(|| Action::set(ROUTER.field, self.exit.router.key));
                let steps = of_router.into_iter().chain(steps).collect();
                let note = format!("from a port on another host, {note}");
                self.turn.add_or_drop(part, (Table::Forward, priority), matching, steps, (self.cookie, note));
            }
        }
    }

    /// From a port to outside.
    fn add_outward(&self, part: &mut Part) {
        let address = self.snat.address;
        let leaving = || self.of_router().with_masked(FLAG_BITS.field, LEAVING.mask, LEAVING.mask);
        let steps = self.translate((PORTS.0, Some(PORTS.1)));
        part.add_noted(Table::Output, OUTWARD, leaving().ip(), steps, (self.cookie, format!("it leaves as {address}")));
        let left = leaving().ip().with(Field::Ipv4Src, address);
        part.add_noted(Table::Nat, LEFT, left, self.leave(), (self.cookie, format!("out as {address}")));
        let note = format!("the connection tracker gives it no port of {address} to leave by");
        part.add_noted(Table::Nat, NOT_LEFT, leaving(), Vec::new(), (self.cookie, note));
    }

    /// Has a source translated, where a connection is begun to the address and one of these ports.
    pub(crate) fn translate(&self, ports: (u16, Option<u16>)) -> Vec<Action> {
        let addresses = Some((IpAddr::V4(self.snat.address), None));
        let range = NatRange { side: NatSide::Source, addresses, ports: Some(ports) };
        let translate = Action::Nat(Nat { range: Some(range), ..Nat::default() });
        vec![
            Action::set(Field::EthSrc, self.snat.mac.bytes()),
            Action::set(SOURCE.field, 0_u32),
            Action::set(SOURCE_IDENTITY.field, NOBODY),
            Action::set(ZONE.field, self.outside.zone),
            self.track(true, translate),
        ]
    }

    /// What has been translated goes out on the network outside.
    pub(crate) fn leave(&self) -> Vec<Action> {
        let steps = [Action::CtClear, Action::set(ROUTER.field, 0_u32)];
        steps.into_iter().chain(again(0)).collect()
    }

    /// From outside to a port.
    fn add_inward(&self, view: &View<'_>, part: &mut Part) {
        let (address, mac) = (self.snat.address, self.snat.mac);
        let feet = self.exit.router.interfaces.iter().filter_map(|foot| view.subnet_of(foot));
        if let Some(inside) = feet.filter_map(|(_, network)| view.zone(network.id)).next() {
            let from_wire = self.outside().with_masked(FLAG_BITS.field, FROM_PHYSICAL.mask, FROM_PHYSICAL.mask);
            let to = from_wire.eth_dst(mac.bytes()).ip().with(Field::Ipv4Dst, address);
            // The host of a port that it goes on to names its sender by the address alone.
            let inside_v4 = view.inside(self.exit.router.id).filter(is_ipv4);
            add_pretended(inside_v4, address, || to.clone(), self.cookie, part);
            let steps = vec![
                Action::set(FLAG_BITS.field, ANSWERING.mask),
                Action::set(ROUTER.field, self.exit.router.key),
                Action::set(ZONE.field, inside),
                self.track(false, Action::Nat(Nat::default())),
            ];
            let note = format!("{address} is the address of the router's connections");
            self.turn.add_or_drop(part, (Table::Forward, INWARD), to, steps, (self.cookie, note));
        }
        self.add_answers(view, part);
        let near = self.outside().ip().with(Field::Ipv4Dst, address);
        let steps = vec![Action::set(Field::EthDst, mac.bytes()), Action::GotoTable(Table::Track.number())];
        let note = format!("external address {address} is here");
        part.add_noted(Table::Beyond, KNOWN, near, steps, (self.cookie, note.clone()));
        let here = self.outside().eth_dst(mac.bytes()).with_masked(Field::VlanVid, 0, VLAN_PRESENT);
        let here = here.with_masked(FLAG_BITS.field, TO_PHYSICAL.mask, TO_PHYSICAL.mask | FROM_PHYSICAL.mask);
        let mut steps = vec![Action::CtClear, Action::set(SOURCE.field, 0_u32)];
        steps.extend(again(FROM_OUTSIDE.mask | FROM_PHYSICAL.mask));
        self.turn.add(part, (Table::Output, BACK_IN), here, steps, (self.cookie, note));
    }

    /// What was translated back goes on, and nothing else.
    fn add_answers(&self, view: &View<'_>, part: &mut Part) {
        use ct_state::{ESTABLISHED, INVALID, NEW, RELATED, REPLY, TRACKED};
        let address = self.snat.address;
        let unasked = self.of_router().ip().with(Field::Ipv4Dst, address);
        let note =
            format!("nobody behind the router has begun a connection as {address} that it belongs to{NOT_FORWARDED}");
        part.add_noted(Table::Nat, UNASKED, unasked, Vec::new(), (self.cookie, note));
        let answers = [
            (TRACKED | ESTABLISHED | REPLY, "an answer to a connection from behind the router"),
            (TRACKED | RELATED, "about a connection from behind the router"),
        ];
        let beyond = self.exit.router.routes.iter().map(|route| route.destination);
        let behind: BTreeSet<IpNet> = feet(view, self.exit.router).chain(beyond.filter(is_ipv4)).collect();
        for ((state, note), range) in answers.into_iter().flat_map(|it| behind.iter().map(move |range| (it, *range))) {
            let answer = family::to_net(self.of_router().ip().ct_state(state, NEW | INVALID), range);
            let steps = firewall::inward(view, self.exit.router, vec![Action::GotoTable(Table::Route.number())]);
            part.add_noted(Table::Nat, ANSWER, answer, steps, (self.cookie, note.to_owned()));
        }
        let note = "it is for no address behind the router".to_owned();
        part.add_noted(Table::Nat, ASTRAY, self.of_router().ip(), Vec::new(), (self.cookie, note));
    }

    /// Through the connection tracker in the router's zone, and on.
    fn track(&self, commit: bool, translate: Action) -> Action {
        let ct = Ct::track(CtZone::Fixed(self.zone), Table::Nat.number());
        Action::ct(Ct { commit, actions: vec![translate], ..ct })
    }
}

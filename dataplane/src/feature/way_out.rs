//! Ways out of a router: which packets leave the cloud, and on which host.
//!
//! Owns the routes to the external subnet and, by its gateway, to everybody else. A port with a floating IP leaves where it is ([`floating`]); others
//! leave on the router's gateway host ([`snat`](mod@snat)), the first that is alive ([`failover`]): straight, when the port is there, otherwise by tunnel
//! to it, on their own network and still addressed to the router, so that neither the network nor the router is in doubt at the other end. They are routed once, by their sender's host; the
//! gateway finds the station that is next. On one host all senders take one way, but where some have a floating IP and the gateway is elsewhere.
//!
//! ```text
//!                  gateway is here, or only floating IPs         gateway elsewhere     both
//! route (leaving) -> beyond | the gateway's MAC address          tunnel                beyond, by sender: one or the other
//!                    stands by: beyond, tunnel to the gateway that is alive, or as if the gateway were here
//! ```

use std::net::{IpAddr, Ipv4Addr};

use model::Mac;
use model::network::{ExternalGateway, Network, Router, Snat, Subnet};
use openflow::flow::{Action, Field, Match};

use crate::compile::view::{Place, View};
use crate::cookie::{Cookie, Object};
use crate::family;
use crate::feature::failover::{self, Seat};
use crate::feature::floating::{self, Held, raise};
use crate::feature::router::ROUTE;
use crate::feature::{Feature, snat};
use crate::flow_set::Part;
use crate::register::{FLAG_BITS, LEAVING, NETWORK, ROUTER, SOURCE};
use crate::table::Table;

/// Above what finds stations: these have not left yet.
const HOLDER_NEAR: u16 = 220;
const HOLDER: u16 = 210;
/// This host has the address, for no gateway before it is alive.
const TAKEN_NEAR: u16 = 208;
const TAKEN: u16 = 204;
const OTHERS: u16 = 200;

/// What is said where neither a floating IP nor the router's address leads out.
pub(crate) const NO_FLOATING_IP: &str = "no port here has a floating IP of the router to leave by";

/// Where ports without a floating IP leave.
enum Others<'a> {
    /// Nowhere, and why.
    Nowhere(&'static str),
    /// From a gateway, as this address.
    By(Seat, &'a Snat),
}

impl<'a> Others<'a> {
    fn of(view: &View<'_>, external: &'a ExternalGateway) -> Self {
        let Some(snat) = &external.snat else { return Self::Nowhere(NO_FLOATING_IP) };
        Seat::of(view, snat).map_or(Self::Nowhere(snat::NO_GATEWAY_HOST), |seat| Self::By(seat, snat))
    }

    /// Whether they leave from here, or may have to.
    const fn are_here(&self) -> bool {
        matches!(self, Self::By(Seat::First | Seat::Standby(_), _))
    }
}

/// A router's way out.
pub(crate) struct Exit<'a> {
    pub(crate) router: &'a Router,
    pub(crate) subnet: &'a Subnet,
    pub(crate) network: &'a Network,
    /// The subnet's gateway, and its MAC address as far as it is known.
    gateway: Option<(Ipv4Addr, Option<Mac>)>,
}

/// A router with a way out.
pub(crate) fn router<'a>(view: &View<'a>, router: &'a Router, part: &mut Part) {
    let Some(external) = &router.external else { return };
    let Some(subnet) = view.subnet(external.subnet) else { return };
    let Some(network) = view.network(subnet.network) else { return };
    let held: Vec<Held<'_>> = floating::held(view, router, network, external);
    let others = Others::of(view, external);
    let gateway = match subnet.gateway {
        Some(IpAddr::V4(gateway)) if held.is_empty() && !others.are_here() => Some((gateway, None)),
        Some(IpAddr::V4(gateway)) => Some((gateway, station(view, network, gateway.into()))),
        _ => None,
    };
    let exit = Exit { router, subnet, network, gateway };
    exit.add_routes(view, &held, &others, part);
    floating::add(view, router, subnet, &held, part);
    if let Others::By(seat @ (Seat::First | Seat::Standby(_)), snat) = &others {
        snat::add(view, &exit, snat, seat.gate(view, router.key), part);
    }
}

/// The MAC address of a station of a provider network: of a port, or as the agent found out.
pub(crate) fn station(view: &View<'_>, network: &Network, address: IpAddr) -> Option<Mac> {
    let ports = view.ports_at(address).into_iter();
    let port = ports.filter(|port| port.network == network.id).find(|port| view.place(port) != Place::Nowhere);
    port.map(|port| port.mac).or_else(|| view.station(network.id, address))
}

impl Exit<'_> {
    /// The ways to the external subnet and to everybody else.
    fn add_routes(&self, view: &View<'_>, held: &[Held<'_>], others: &Others<'_>, part: &mut Part) {
        let cookie = Cookie { feature: Feature::Floating, object: Object::Router(self.router.key.into()) };
        let near = (family::to_net(Match::new().ip(), self.subnet.cidr), self.subnet.cidr.prefix_len(), self.near());
        let far = self.far().map(|far| (Match::new().ip(), 0, far));
        for (to, length, (steps, note)) in [near].into_iter().chain(far) {
            let (steps, note) = match others {
                Others::Nowhere(why) if held.is_empty() => (Vec::new(), (*why).to_owned()),
                Others::Nowhere(_) | Others::By(Seat::First, _) => (routed(steps), note),
                Others::By(seat @ Seat::Elsewhere(..), _) if held.is_empty() => {
                    (routed(seat.leave(view, self.router.key, Table::Route, part)), self.by_tunnel(seat))
                }
                Others::By(..) => {
                    let by_sender = vec![Action::GotoTable(Table::Beyond.number())];
                    (routed(by_sender), format!("out to external subnet {}, by who sends it", self.subnet.name))
                }
            };
            let to = to.with(ROUTER.field, self.router.key);
            part.add_noted(Table::Route, ROUTE + u16::from(length), to, steps, (cookie, note));
        }
        match others {
            Others::By(seat @ Seat::Elsewhere(..), _) if !held.is_empty() => self.add_split(view, held, seat, part),
            Others::By(seat @ Seat::Standby(_), _) => {
                self.add_split(view, held, seat, part);
                self.add_taken(cookie, part);
            }
            _ => {}
        }
    }

    /// Of those who leave, ports with a floating IP do so from here, the others from the gateway host.
    fn add_split(&self, view: &View<'_>, held: &[Held<'_>], seat: &Seat, part: &mut Part) {
        let cookie = Cookie { feature: Feature::Floating, object: Object::Router(self.router.key.into()) };
        for held in held {
            let own =
                || self.staying().with(SOURCE.field, held.port.key).ip().with(Field::Ipv4Src, held.floating.fixed);
            let (_, note) = self.near();
            let again = vec![self.enter(), raise(LEAVING), Action::resubmit(Table::Beyond.number())];
            part.add_noted(
                Table::Beyond,
                HOLDER_NEAR,
                family::to_net(own(), self.subnet.cidr),
                again,
                (held.cookie, note),
            );
            if let Some((steps, note)) = self.far() {
                part.add_noted(Table::Beyond, HOLDER, own(), steps, (held.cookie, note));
            }
        }
        let steps = seat.leave(view, self.router.key, Table::Beyond, part);
        part.add_noted(Table::Beyond, OTHERS, self.staying().ip(), steps, (cookie, self.by_tunnel(seat)));
    }

    /// What leaves from here after all, for no gateway before this host is alive.
    fn add_taken(&self, cookie: Cookie, part: &mut Part) {
        let taken = failover::taken(&self.staying().ip());
        let leaving = failover::settle(LEAVING.mask);
        let (_, note) = self.near();
        let near = [self.enter()].into_iter().chain(leaving.clone()).chain([Action::resubmit(Table::Beyond.number())]);
        let to_near = family::to_net(taken.clone(), self.subnet.cidr);
        part.add_noted(Table::Beyond, TAKEN_NEAR, to_near, near.collect(), (cookie, note));
        if let Some((steps, note)) = self.far() {
            // A list without steps drops.
            let settled = leaving.into_iter().filter(|_| !steps.is_empty());
            let steps = settled.chain(steps.iter().cloned()).collect();
            part.add_noted(Table::Beyond, TAKEN, taken, steps, (cookie, note));
        }
    }

    /// What is routed out and not on its way yet.
    fn staying(&self) -> Match {
        Match::new().with_masked(FLAG_BITS.field, 0, LEAVING.mask).with(ROUTER.field, self.router.key)
    }

    /// The way to a station of the external subnet.
    pub(crate) fn near(&self) -> (Vec<Action>, String) {
        let steps = vec![self.enter(), raise(LEAVING), Action::GotoTable(Table::Beyond.number())];
        (steps, format!("out to external subnet {}", self.subnet.name))
    }

    /// The way to everybody else, if there is one.
    pub(crate) fn far(&self) -> Option<(Vec<Action>, String)> {
        let name = &self.subnet.name;
        Some(match self.gateway? {
            (gateway, Some(mac)) => {
                let mut steps = vec![self.enter(), raise(LEAVING), Action::set(Field::EthDst, mac.bytes())];
                steps.push(Action::GotoTable(Table::Track.number()));
                (steps, format!("out by {gateway} of external subnet {name}"))
            }
            (gateway, None) => {
                (Vec::new(), format!("the gateway {gateway} of external subnet {name} has not answered yet"))
            }
        })
    }

    fn enter(&self) -> Action {
        Action::set(NETWORK.field, self.network.vni.get())
    }

    fn by_tunnel(&self, seat: &Seat) -> String {
        let which =
            if matches!(seat, Seat::Elsewhere(watched, _) if watched.is_empty()) { "" } else { ", the first alive" };
        format!("out to external subnet {}, from the router's gateway host{which}", self.subnet.name)
    }
}

/// With the time to live lowered, when it goes on at all.
fn routed(steps: Vec<Action>) -> Vec<Action> {
    let first = (!steps.is_empty()).then_some(Action::DecTtl);
    first.into_iter().chain(steps).collect()
}

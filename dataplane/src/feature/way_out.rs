//! Ways out of a router: which packets leave the cloud, and on which host.
//!
//! Owns the routes to the external subnet and, by its gateway, to everybody else. A port with a floating IP leaves where it is ([`floating`]); others
//! leave on the router's gateway host ([`snat`](mod@snat)): straight, when the port is there, otherwise by tunnel to it, on their own network and still
//! addressed to the router, so that neither the network nor the router is in doubt at the other end. They are routed once, by their sender's host; the
//! gateway finds the station that is next. On one host all senders take one way, but where some have a floating IP and the gateway is elsewhere.
//!
//! ```text
//!                  gateway is here, or only floating IPs         gateway elsewhere     both
//! route (leaving) -> beyond | the gateway's MAC address          tunnel                beyond, by sender: one or the other
//! ```

use std::net::{IpAddr, Ipv4Addr};

use model::Mac;
use model::network::{ExternalGateway, GatewayHost, Network, Router, Snat, Subnet};
use openflow::flow::{Action, Field, Match};

use crate::compile::view::{Place, View};
use crate::cookie::{Cookie, Object};
use crate::family;
use crate::feature::floating::{self, Held, raise};
use crate::feature::router::ROUTE;
use crate::feature::{Feature, snat};
use crate::flow_set::Part;
use crate::register::{ENDPOINT, FLAG_BITS, LEAVING, NETWORK, ROUTER, SOURCE, TO_TUNNEL};
use crate::table::Table;

/// Above what finds stations: these have not left yet.
const HOLDER_NEAR: u16 = 220;
const HOLDER: u16 = 210;
const OTHERS: u16 = 200;

/// What is said where neither a floating IP nor the router's address leads out.
pub(crate) const NO_FLOATING_IP: &str = "no port here has a floating IP of the router to leave by";

/// Where ports without a floating IP leave.
#[derive(Clone, Copy)]
enum Others {
    /// Nowhere, and why.
    Nowhere(&'static str),
    /// From this host.
    Here,
    /// From another one.
    There(GatewayHost),
}

impl Others {
    fn of(view: &View<'_>, router: &Router, external: &ExternalGateway) -> Self {
        match external.snat.as_ref().map(Snat::gateway) {
            None => Self::Nowhere(NO_FLOATING_IP),
            Some(None) => Self::Nowhere(snat::NO_GATEWAY_HOST),
            Some(Some(_)) if view.snat_here(router).is_some() => Self::Here,
            Some(Some(gateway)) => Self::There(gateway),
        }
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
    let others = Others::of(view, router, external);
    let gateway = match subnet.gateway {
        Some(IpAddr::V4(gateway)) if held.is_empty() && !matches!(others, Others::Here) => Some((gateway, None)),
        Some(IpAddr::V4(gateway)) => Some((gateway, station(view, network, gateway))),
        _ => None,
    };
    let exit = Exit { router, subnet, network, gateway };
    exit.add_routes(&held, others, part);
    floating::add(view, router, subnet, &held, part);
    if let Some(snat) = view.snat_here(router) {
        snat::add(view, &exit, snat, part);
    }
}

/// The MAC address of a station of a provider network: of a port, or as the agent found out.
fn station(view: &View<'_>, network: &Network, address: Ipv4Addr) -> Option<Mac> {
    let ports = view.ports_at(address.into()).into_iter();
    let port = ports.filter(|port| port.network == network.id).find(|port| view.place(port) != Place::Nowhere);
    port.map(|port| port.mac).or_else(|| view.station(network.id, address))
}

impl Exit<'_> {
    /// The ways to the external subnet and to everybody else.
    fn add_routes(&self, held: &[Held<'_>], others: Others, part: &mut Part) {
        let cookie = Cookie { feature: Feature::Floating, object: Object::Router(self.router.key.into()) };
        let near = (family::to_net(Match::new().ip(), self.subnet.cidr), self.subnet.cidr.prefix_len(), self.near());
        let far = self.far().map(|far| (Match::new().ip(), 0, far));
        for (to, length, (steps, note)) in [near].into_iter().chain(far) {
            let (steps, note) = match others {
                Others::Nowhere(why) if held.is_empty() => (Vec::new(), why.to_owned()),
                Others::Nowhere(_) | Others::Here => (routed(steps), note),
                Others::There(gateway) if held.is_empty() => (routed(tunnelled(gateway)), self.by_tunnel()),
                Others::There(_) => {
                    let by_sender = vec![Action::GotoTable(Table::Beyond.number())];
                    (routed(by_sender), format!("out to external subnet {}, by who sends it", self.subnet.name))
                }
            };
            let to = to.with(ROUTER.field, self.router.key);
            part.add_noted(Table::Route, ROUTE + u16::from(length), to, steps, (cookie, note));
        }
        if let (Others::There(gateway), false) = (others, held.is_empty()) {
            self.add_split(held, gateway, part);
        }
    }

    /// Of those who leave, ports with a floating IP do so from here, the others from the gateway host.
    fn add_split(&self, held: &[Held<'_>], gateway: GatewayHost, part: &mut Part) {
        let cookie = Cookie { feature: Feature::Floating, object: Object::Router(self.router.key.into()) };
        let staying = Match::new().with_masked(FLAG_BITS.field, 0, LEAVING.mask).with(ROUTER.field, self.router.key);
        for held in held {
            let own =
                || staying.clone().with(SOURCE.field, held.port.key).ip().with(Field::Ipv4Src, held.floating.fixed);
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
        part.add_noted(Table::Beyond, OTHERS, staying.ip(), tunnelled(gateway), (cookie, self.by_tunnel()));
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

    fn by_tunnel(&self) -> String {
        format!("out to external subnet {}, from the router's gateway host", self.subnet.name)
    }
}

/// With the time to live lowered, when it goes on at all.
fn routed(steps: Vec<Action>) -> Vec<Action> {
    let first = (!steps.is_empty()).then_some(Action::DecTtl);
    first.into_iter().chain(steps).collect()
}

/// To the gateway host, as it is.
fn tunnelled(gateway: GatewayHost) -> Vec<Action> {
    vec![Action::set(ENDPOINT.field, gateway.tunnel), raise(TO_TUNNEL), Action::GotoTable(Table::Track.number())]
}

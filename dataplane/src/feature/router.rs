//! Layer 3 between the subnets of a router, on the host of the sender: no packet goes through a third host.
//!
//! The route rewrites the MAC source, lowers the TTL and moves the packet to the destination's network; the neighbour's MAC address is known, as
//! all of its network are. A router answers pings to any of its own addresses and nothing else. A packet whose TTL runs out is dropped, and one
//! from a link-local address (RFC 4291 §2.5.6).
//! Routes of a connected subnet are longest-prefix by priority.

use std::net::{IpAddr, Ipv6Addr};

use model::network::{Router, RouterInterface};
use openflow::flow::{Action, Field, Match, Subfield};

use crate::compile::view::{Place, Spot, View};
use crate::cookie::{Cookie, Object};
use crate::family::{self, FAMILIES, Family};
use crate::feature::Feature;
use crate::feature::forward::towards;
use crate::flow_set::Part;
use crate::register::{NETWORK, ROUTER};
use crate::table::Table;

pub(crate) const PING: u16 = 410;
const OWN: u16 = 400;
pub(crate) const UNROUTABLE: u16 = 310;
const EXPIRED: u16 = 300;
/// Priority of the default route; each bit of prefix length adds one.
pub(crate) const ROUTE: u16 = 100;
const NO_ROUTE: u16 = 50;
/// What is said of a packet that no route of its router is for.
pub(crate) const LOST: &str = "it has no route to this destination";
const HOST: u16 = 100;

const LINK_LOCAL: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);
const ANSWER_TTL: u8 = 64;

const PIPELINE: Cookie = Cookie { feature: Feature::Router, object: Object::Pipeline };

pub(crate) fn host(part: &mut Part) {
    part.add_miss(Table::Route);
    part.add_miss(Table::Host);
    for (family, ttl) in FAMILIES.iter().flat_map(|family| [(family, 0_u8), (family, 1)]) {
        let expired = family.packets().with(Field::IpTtl, ttl);
        part.add_noted(Table::Route, EXPIRED, expired, Vec::new(), (PIPELINE, "its time to live ran out".to_owned()));
    }
    let link_local = Match::new().ipv6().ipv6_src_net(LINK_LOCAL.0, LINK_LOCAL.1);
    let note = "link-local addresses are not routed".to_owned();
    part.add_noted(Table::Route, UNROUTABLE, link_local, Vec::new(), (PIPELINE, note));
}

/// The feet of a router.
pub(crate) fn router(view: &View<'_>, router: &Router, part: &mut Part) {
    for foot in &router.interfaces {
        add_foot(view, router, foot, part);
    }
    let cookie = Cookie { feature: Feature::Router, object: Object::Router(router.key.into()) };
    let lost = Match::new().with(ROUTER.field, router.key);
    let note = LOST.to_owned();
    part.add_noted(Table::Route, NO_ROUTE, lost, Vec::new(), (cookie, note));
}

fn add_foot(view: &View<'_>, router: &Router, foot: &RouterInterface, part: &mut Part) {
    let cookie = Cookie { feature: Feature::Router, object: Object::Router(router.key.into()) };
    let Some((subnet, network)) = view.subnet_of(foot) else { return };
    let at = |address: IpAddr| family::to(address).with(ROUTER.field, router.key);
    let link_local = Some(foot.mac.link_local()).filter(|_| foot.address.is_ipv6());
    for address in [foot.address].into_iter().chain(link_local.map(IpAddr::V6)) {
        let family = Family::of(address);
        let ping = at(address)
            .ip_proto(family.icmp())
            .with(family.icmp_type(), family.echo().0)
            .with(family.icmp_code(), 0_u8);
        part.add_noted(Table::Route, PING, ping, answer(address), (cookie, "the router answers the ping".to_owned()));
        let note = format!("nothing listens on the router's {address}");
        part.add_noted(Table::Route, OWN, at(address), Vec::new(), (cookie, note));
    }
    let prefix = subnet.cidr;
    let priority = ROUTE + u16::from(prefix.prefix_len());
    let route = family::to_net(Family::of(foot.address).packets().with(ROUTER.field, router.key), prefix);
    let steps = vec![
        Action::set(Field::EthSrc, foot.mac.bytes()),
        Action::DecTtl,
        Action::set(NETWORK.field, network.vni.get()),
        Action::GotoTable(Table::Host.number()),
    ];
    part.add_noted(Table::Route, priority, route, steps, (cookie, format!("routed to subnet {}", subnet.name)));
}

/// Turns an echo request into its reply and sends it back. The addresses change places by way of the stack of the switch.
pub(crate) fn answer(address: IpAddr) -> Vec<Action> {
    let (whole, family) = (Subfield::whole, Family::of(address));
    vec![
        Action::Push(whole(Field::EthSrc)),
        Action::Push(whole(Field::EthDst)),
        Action::Pop(whole(Field::EthSrc)),
        Action::Pop(whole(Field::EthDst)),
        Action::copy(family.source(), family.target()),
        Action::set(family.source(), family::value(address)),
        Action::set(Field::IpTtl, ANSWER_TTL),
        Action::set(family.icmp_type(), family.echo().1),
        Action::GotoTable(Table::Reply.number()),
    ]
}

/// A port that is plugged in somewhere, as a neighbour of routers.
pub(crate) fn port(view: &View<'_>, spot: Spot<'_>, part: &mut Part) {
    let port = spot.port;
    if spot.place == Place::Nowhere || !view.is_routed(port.network) {
        return;
    }
    let Some(network) = view.network(port.network) else { return };
    let cookie = Cookie { feature: Feature::Router, object: Object::Port(port.key) };
    for fixed in &port.addresses {
        let to = family::to(fixed.address).with(NETWORK.field, network.vni.get());
        let mut steps = vec![Action::set(Field::EthDst, port.mac.bytes())];
        steps.extend(towards(view, port));
        steps.push(Action::GotoTable(Table::Track.number()));
        part.add(Table::Host, HOST, to, steps, cookie);
    }
}

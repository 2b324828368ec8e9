//! Layer 3 between the subnets of a router, on the host of the sender: no packet goes through a third host.
//!
//! The route rewrites the MAC source, lowers the TTL and moves the packet to the destination's network; the neighbour's MAC address is known, as
//! all of its network are. A router answers pings to any of its own addresses and nothing else. A packet whose TTL runs out is dropped.
//! Routes of a connected subnet are longest-prefix by priority.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use model::network::{Router, RouterInterface};
use openflow::flow::{Action, Field, Match, PortNo, Subfield};

use crate::compile::view::{Place, Spot, View};
use crate::cookie::{Cookie, Object};
use crate::feature::Feature;
use crate::feature::forward::towards;
use crate::flow_set::Part;
use crate::register::{NETWORK, ROUTER};
use crate::table::Table;

const PING: u16 = 410;
const OWN: u16 = 400;
const EXPIRED: u16 = 300;
/// Priority of the default route; each bit of prefix length adds one.
const ROUTE: u16 = 100;
const HOST: u16 = 100;

const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ANSWER_TTL: u8 = 64;

const PIPELINE: Cookie = Cookie { feature: Feature::Router, object: Object::Pipeline };

pub(crate) fn host(part: &mut Part) {
    part.add_miss(Table::Route);
    part.add_miss(Table::Host);
    for ttl in [0_u8, 1] {
        let expired = Match::new().ip().with(Field::IpTtl, ttl);
        part.add_noted(Table::Route, EXPIRED, expired, Vec::new(), (PIPELINE, "its time to live ran out".to_owned()));
    }
}

/// The feet of a router.
pub(crate) fn router(view: &View<'_>, router: &Router, part: &mut Part) {
    for foot in &router.interfaces {
        add_foot(view, router, foot, part);
    }
}

fn add_foot(view: &View<'_>, router: &Router, foot: &RouterInterface, part: &mut Part) {
    let cookie = Cookie { feature: Feature::Router, object: Object::Router(router.key.into()) };
    let (IpAddr::V4(address), Some((subnet, network))) = (foot.address, view.subnet_of(foot)) else { return };
    let IpNet::V4(prefix) = subnet.cidr else { return };
    let here = || Match::new().with(ROUTER.field, router.key);
    let ping =
        here().icmp().with(Field::Ipv4Dst, address).with(Field::IcmpType, ECHO_REQUEST).with(Field::IcmpCode, 0_u8);
    part.add_noted(Table::Route, PING, ping, answer(address), (cookie, "the router answers the ping".to_owned()));
    let own = here().ip().with(Field::Ipv4Dst, address);
    part.add_noted(Table::Route, OWN, own, Vec::new(), (cookie, format!("nothing listens on the router's {address}")));
    let priority = ROUTE + u16::from(prefix.prefix_len());
    let route = here().ipv4_dst_net(prefix.network(), prefix.prefix_len());
    let steps = vec![
        Action::set(Field::EthSrc, foot.mac.bytes()),
        Action::DecTtl,
        Action::set(NETWORK.field, network.vni.get()),
        Action::GotoTable(Table::Host.number()),
    ];
    part.add_noted(Table::Route, priority, route.ip(), steps, (cookie, format!("routed to subnet {}", subnet.name)));
}

/// Turns an echo request into its reply and sends it back. The addresses change places by way of the stack of the switch.
fn answer(address: Ipv4Addr) -> Vec<Action> {
    let whole = Subfield::whole;
    vec![
        Action::Push(whole(Field::EthSrc)),
        Action::Push(whole(Field::EthDst)),
        Action::Pop(whole(Field::EthSrc)),
        Action::Pop(whole(Field::EthDst)),
        Action::copy(Field::Ipv4Src, Field::Ipv4Dst),
        Action::set(Field::Ipv4Src, address),
        Action::set(Field::IpTtl, ANSWER_TTL),
        Action::set(Field::IcmpType, ECHO_REPLY),
        Action::output(PortNo::IN_PORT),
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
        let IpAddr::V4(address) = fixed.address else { continue };
        let to = Match::new().ip().with(NETWORK.field, network.vni.get()).with(Field::Ipv4Dst, address);
        let mut steps = vec![Action::set(Field::EthDst, port.mac.bytes())];
        steps.extend(towards(view, port));
        steps.push(Action::GotoTable(Table::Track.number()));
        part.add(Table::Host, HOST, to, steps, cookie);
    }
}

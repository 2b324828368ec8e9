//! Static routes: ways of a router to addresses beyond its subnets, by a neighbour in one of them.
//!
//! The neighbour is a port, so its MAC address and its host are known: the packet goes there as if it were addressed to it, whoever sends, from
//! whichever host. Longest prefix by priority, among connected subnets too. Several next hops for one destination share its connections by a select
//! group: the data path hashes addresses and ports (`dp_hash`), so that one connection keeps to one way; a next hop that no port has is left out.
//! The packet goes through the data path once more for that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use model::network::Router;
use openflow::flow::{Action, Field};

use crate::compile::view::{Place, View};
use crate::cookie::{Cookie, Object};
use crate::family;
use crate::feature::Feature;
use crate::feature::forward::towards;
use crate::feature::router::ROUTE;
use crate::flow_set::{GroupNumber, Part};
use crate::register::{NETWORK, ROUTER};
use crate::table::Table;

/// The routes of a router.
pub(crate) fn router(view: &View<'_>, router: &Router, part: &mut Part) {
    let cookie = Cookie { feature: Feature::StaticRoute, object: Object::Router(router.key.into()) };
    let mut ways: BTreeMap<IpNet, BTreeSet<IpAddr>> = BTreeMap::new();
    for route in &router.routes {
        ways.entry(route.destination).or_default().insert(route.next_hop);
    }
    let mut groups = 0_u8;
    for (destination, hops) in ways {
        let matching = family::to_net(family::packets(destination).with(ROUTER.field, router.key), destination);
        let priority = ROUTE + u16::from(destination.prefix_len());
        let live: Vec<_> = hops.iter().filter_map(|hop| Some((*hop, by(view, router, *hop)?))).collect();
        let names =
            |hops: &mut dyn Iterator<Item = IpAddr>| hops.map(|hop| hop.to_string()).collect::<Vec<_>>().join(", ");
        let (steps, note) = match live.as_slice() {
            [] => {
                let names = names(&mut hops.iter().copied());
                (
                    Vec::new(),
                    format!("the route to {destination} leads nowhere: no port that is plugged in has {names}"),
                )
            }
            [(hop, steps)] => {
                let goto = Action::GotoTable(Table::Track.number());
                let steps = [Action::DecTtl].into_iter().chain(steps.iter().cloned()).chain([goto]);
                (steps.collect(), format!("routed to {destination} by {hop}"))
            }
            several => {
                let group = GroupNumber::NextHops(router.key, groups);
                groups = groups.wrapping_add(1);
                let names = names(&mut several.iter().map(|(hop, _)| *hop));
                let resubmit = Action::resubmit(Table::Track.number());
                let ways = several.iter().map(|(_, steps)| steps.iter().chain([&resubmit]).cloned().collect());
                part.add_select_group(group, ways.collect());
                let steps = vec![Action::DecTtl, Action::Group(group.to_wire())];
                (steps, format!("routed to {destination} by one of {names}"))
            }
        };
        part.add_noted(Table::Route, priority, matching, steps, (cookie, note));
    }
}

/// What leads a packet to a next hop, when a port that is plugged in somewhere has the address.
fn by(view: &View<'_>, router: &Router, hop: IpAddr) -> Option<Vec<Action>> {
    let feet = router.interfaces.iter().filter_map(|foot| Some((foot, view.subnet_of(foot)?)));
    let (foot, (_, network)) = feet.into_iter().find(|(_, (subnet, _))| subnet.cidr.contains(&hop))?;
    let here = |network| move |port: &&model::network::Port| port.network == network;
    let port =
        view.ports_at(hop).into_iter().filter(here(network.id)).find(|port| view.place(port) != Place::Nowhere)?;
    let mut steps = vec![
        Action::set(Field::EthSrc, foot.mac.bytes()),
        Action::set(Field::EthDst, port.mac.bytes()),
        Action::set(NETWORK.field, network.vni.get()),
    ];
    steps.extend(towards(view, port));
    Some(steps)
}

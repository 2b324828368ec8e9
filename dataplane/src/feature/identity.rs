//! The groups of senders on other hosts. VXLAN carries no identity, so it is found again from the sender's address, which the sender's own host
//! has checked.
//!
//! One flow per member, and only for members that a rule here asks for as a remote group: neither the number of rules nor of networks multiplies
//! them. Where two ports that routers join have the same address, the network and the MAC address the packet came with tell them apart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use model::network::Port;
use model::security::{Direction, Remote};
use model::{Mac, NetworkId, SecurityGroupId};
use openflow::flow::{Action, Field, Match};

use crate::compile::{Place, Plan};
use crate::cookie::{Cookie, Object};
use crate::feature::Feature;
use crate::flow_set::FlowSet;
use crate::identity::groups;
use crate::register::{NETWORK, SOURCE_IDENTITY, ZONE};
use crate::table::Table;
use crate::zone::zones;

const AMBIGUOUS: u16 = 110;
const MEMBER: u16 = 100;

const PIPELINE: Cookie = Cookie { feature: Feature::Identity, object: Object::Pipeline };

pub(crate) fn add(plan: &Plan<'_>, set: &mut FlowSet) {
    let onward = vec![Action::GotoTable(Table::Forward.number())];
    set.add_noted(Table::Identity, 0, Match::new(), onward, (PIPELINE, "its groups are not asked for here".to_owned()));
    let zones = zones(plan.host);
    let near: BTreeSet<u16> = plan.segments.iter().map(|segment| segment.zone).collect();
    let mut owners: BTreeMap<(u16, Ipv4Addr), Vec<&Port>> = BTreeMap::new();
    for port in plan.host.ports.values().filter(|port| plan.place(port) != Place::Nowhere) {
        let Some(zone) = zones.get(&port.network).filter(|zone| near.contains(zone)) else { continue };
        for fixed in &port.addresses {
            if let IpAddr::V4(address) = fixed.address {
                owners.entry((*zone, address)).or_default().push(port);
            }
        }
    }
    let asked = asked_groups(plan);
    let is_asked = |port: &Port| matches!(plan.place(port), Place::There(_)) && !groups(port).is_disjoint(&asked);
    for ((zone, address), ports) in owners {
        for port in ports.iter().filter(|port| is_asked(port)) {
            let source = Match::new().ip().with(Field::Ipv4Src, address);
            if ports.len() == 1 {
                set.add(Table::Identity, MEMBER, source.with(ZONE.field, zone), steps(plan, port), cookie(port));
            } else {
                add_ambiguous(plan, port, address, &source, set);
            }
        }
    }
}

/// The groups that ingress rules of ports here name as the other side.
fn asked_groups(plan: &Plan<'_>) -> BTreeSet<SecurityGroupId> {
    let local = plan.segments.iter().flat_map(|segment| &segment.local).filter(|local| local.port.port_security);
    let own: BTreeSet<SecurityGroupId> = local.flat_map(|local| local.port.groups.iter().copied()).collect();
    let rules = own.iter().filter_map(|id| plan.host.groups.get(id)).flat_map(|group| &group.rules);
    rules
        .filter(|rule| rule.direction == Direction::Ingress)
        .filter_map(|rule| if let Remote::Group(group) = rule.remote { Some(group) } else { None })
        .collect()
}

/// One flow for each way that a packet of this port can come: on its own network, and through each router of its subnet.
fn add_ambiguous(plan: &Plan<'_>, port: &Port, address: Ipv4Addr, source: &Match, set: &mut FlowSet) {
    let mut ways: BTreeSet<(NetworkId, Mac)> = BTreeSet::from([(port.network, port.mac)]);
    let subnet = port.addresses.iter().find(|fixed| fixed.address == IpAddr::V4(address)).map(|fixed| fixed.subnet);
    for router in &plan.routers {
        if router.interfaces.iter().any(|foot| Some(foot.subnet) == subnet) {
            let feet = router.interfaces.iter();
            ways.extend(feet.filter_map(|foot| plan.subnet_of(foot).map(|(_, network)| (network.id, foot.mac))));
        }
    }
    for segment in &plan.segments {
        for (_, mac) in ways.iter().filter(|(network, _)| *network == segment.network.id) {
            let way = source.clone().with(NETWORK.field, segment.vni()).eth_src(mac.bytes());
            set.add(Table::Identity, AMBIGUOUS, way, steps(plan, port), cookie(port));
        }
    }
}

const fn cookie(port: &Port) -> Cookie {
    Cookie { feature: Feature::Identity, object: Object::Port(port.key) }
}

fn steps(plan: &Plan<'_>, port: &Port) -> Vec<Action> {
    vec![Action::set(SOURCE_IDENTITY.field, plan.identities.of_port(port)), Action::GotoTable(Table::Forward.number())]
}

//! The groups of senders on other hosts. VXLAN carries no identity, so it is found again from the sender's address, which the sender's own host
//! has checked.
//!
//! One flow per member, and only for members that a rule here asks for as a remote group: neither the number of rules nor of networks multiplies
//! them. Where two ports that routers join have the same address, the network and the MAC address the packet came with tell them apart.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use model::network::{FixedIp, Port};
use model::{Mac, NetworkId};
use openflow::flow::{Action, Match};

use crate::compile::view::{Place, Spot, View};
use crate::cookie::{Cookie, Object};
use crate::family;
use crate::feature::Feature;
use crate::flow_set::Part;
use crate::register::{NETWORK, SOURCE_IDENTITY, ZONE};
use crate::table::Table;

const AMBIGUOUS: u16 = 110;
const MEMBER: u16 = 100;
const PAIR: u16 = 90;

const PIPELINE: Cookie = Cookie { feature: Feature::Identity, object: Object::Pipeline };

pub(crate) fn host(part: &mut Part) {
    let onward = vec![Action::GotoTable(Table::Forward.number())];
    part.add_noted(
        Table::Identity,
        0,
        Match::new(),
        onward,
        (PIPELINE, "its groups are not asked for here".to_owned()),
    );
}

/// A port on another host, or one that may be there soon.
pub(crate) fn port(view: &View<'_>, spot: Spot<'_>, part: &mut Part) {
    let port = spot.port;
    let may_be_elsewhere = matches!(spot.place, Place::There(_)) || view.awaited_at(port).is_some();
    if !may_be_elsewhere {
        return;
    }
    let Some(zone) = view.zone(port.network).filter(|zone| view.is_near_zone(*zone)) else { return };
    if !port.groups.iter().any(|group| view.is_asked(*group)) {
        return;
    }
    for fixed in &port.addresses {
        let source = family::from(fixed.address);
        // From a physical network, anybody may send with this address: the MAC address must be the port's, too.
        if let Some(segment) = spot.segment.filter(|segment| segment.network.provider.is_some()) {
            let way = source.clone().with(NETWORK.field, segment.vni()).eth_src(port.mac.bytes());
            part.add(Table::Identity, AMBIGUOUS, way, steps(view, port), cookie(port));
        }
        if is_alone(view, fixed, zone) {
            part.add(Table::Identity, MEMBER, source.with(ZONE.field, zone), steps(view, port), cookie(port));
        } else {
            add_ambiguous(view, port, fixed, &source, part);
        }
    }
    // An address of an allowed pair may be another's as well; on its own network the port's own MAC address tells whose packet it is. What was
    // routed has lost that, and a MAC address of the pair's may be several ports': such packets count as nobody's.
    for (range, _) in port.pairs().filter(|(_, mac)| *mac == port.mac) {
        let Some(segment) = spot.segment else { continue };
        let source = family::from_net(family::packets(range), range).with(NETWORK.field, segment.vni());
        part.add(Table::Identity, PAIR, source.eth_src(port.mac.bytes()), steps(view, port), cookie(port));
    }
    // A link-local address belongs to one network: another may have the same one.
    let link_local = port.ipv6_addresses().find(Ipv6Addr::is_unicast_link_local);
    if let (Some(segment), Some(address)) = (spot.segment, link_local) {
        let source = family::from(address.into()).with(NETWORK.field, segment.vni());
        part.add(Table::Identity, MEMBER, source, steps(view, port), cookie(port));
    }
}

/// Whether no other port that is plugged in somewhere has this address in this zone.
fn is_alone(view: &View<'_>, fixed: &FixedIp, zone: u16) -> bool {
    let plugged = view.ports_at(fixed.address).into_iter().filter(|port| view.place(port) != Place::Nowhere);
    plugged.filter(|port| view.zone(port.network) == Some(zone)).count() == 1
}

/// One flow for each way that a packet of this port can come: on its own network, and through each router of its subnet.
fn add_ambiguous(view: &View<'_>, port: &Port, fixed: &FixedIp, source: &Match, part: &mut Part) {
    let mut ways: BTreeSet<(NetworkId, Mac)> = BTreeSet::from([(port.network, port.mac)]);
    for router in view.routers_of(port.network) {
        if view.is_near_router(router.id) && router.interfaces.iter().any(|foot| foot.subnet == fixed.subnet) {
            let feet = router.interfaces.iter();
            ways.extend(feet.filter_map(|foot| view.subnet_of(foot).map(|(_, network)| (network.id, foot.mac))));
        }
    }
    for (network, mac) in ways {
        let Some(segment) = view.segment(network) else { continue };
        let way = source.clone().with(NETWORK.field, segment.vni()).eth_src(mac.bytes());
        part.add(Table::Identity, AMBIGUOUS, way, steps(view, port), cookie(port));
    }
}

const fn cookie(port: &Port) -> Cookie {
    Cookie { feature: Feature::Identity, object: Object::Port(port.key) }
}

fn steps(view: &View<'_>, port: &Port) -> Vec<Action> {
    vec![Action::set(SOURCE_IDENTITY.field, view.identity(port)), Action::GotoTable(Table::Forward.number())]
}

//! Connection tracking zones: one per set of networks that routers join.
//!
//! Two ports that can speak to each other share a zone, so that a reply finds its connection whichever network it left by; two that cannot never
//! do, so that tenants with the same addresses stay apart. A zone is the smallest router key in the set, and for a network that no router has a
//! foot in, a number made from its VNI. A router that translates addresses on this host has another zone for that alone, and so have the balanced
//! connections of networks with load balancers that share a zone, and what crosses the border of a router with a firewall. Zones mean something on one host only.
//! Invariant: the same networks and routers give the same zones, and another set does not move a zone (but for two VNIs that meet modulo 2^15, or a
//! VNI and the key of a router that translates).

use std::collections::{BTreeMap, BTreeSet};

use model::network::{FloatingIp, RouterInterface};
use model::spec::HostNetwork;
use model::{NetworkId, RouterId};

/// Where zones of networks without a router begin to be looked for.
const LONE_ZONES: u32 = 1 << 15;
/// Where zones of balanced connections begin to be looked for, for networks that have a router and for those that have none: each a range of its own, among
/// the numbers that neither the first routers, nor those that translate, nor networks without one have.
const BALANCED_JOINED: u16 = 1 << 14;
const BALANCED_LONE: u16 = BALANCED_JOINED + BALANCED_RANGE;
const BALANCED_RANGE: u16 = 1 << 13;
/// Where zones of firewalls begin to be looked for: as long a range below those.
const WALLED: u16 = BALANCED_JOINED - BALANCED_RANGE;

/// The zone of each network. A network is missing only when all 65,535 zones are taken; nothing is then let through for it.
#[must_use]
pub fn zones(host: &HostNetwork) -> BTreeMap<NetworkId, u16> {
    let mut zones = joined(host);
    let mut taken: BTreeSet<u16> = zones.values().copied().collect();
    taken.extend(translating(host, &taken).into_values());
    for network in host.networks.values() {
        if zones.contains_key(&network.id) {
            continue;
        }
        let start = LONE_ZONES | (network.vni.get() % LONE_ZONES);
        let candidates = (start..=u32::from(u16::MAX)).chain(1..start);
        let free = candidates.filter_map(|zone| u16::try_from(zone).ok()).find(|zone| !taken.contains(zone));
        if let Some(zone) = free {
            taken.insert(zone);
            zones.insert(network.id, zone);
        }
    }
    zones
}

/// The zones in which routers translate addresses on this host, or would if it took their address over, for connections that leave by their own
/// address outside. A router is missing only when all zones are taken; nothing leaves by it then.
#[must_use]
pub fn snat_zones(host: &HostNetwork) -> BTreeMap<RouterId, u16> {
    translating(host, &joined(host).into_values().collect())
}

/// The zones of balanced connections, of each network with load balancers: one for all that share a zone, made from that. A network is missing only when
/// all zones are taken; nothing is balanced there then.
#[must_use]
pub fn balancer_zones(
    host: &HostNetwork,
    zones: &BTreeMap<NetworkId, u16>,
    snat: &BTreeMap<RouterId, u16>,
) -> BTreeMap<NetworkId, u16> {
    let subnets = host.balancers.values().filter_map(|balancer| host.subnets.get(&balancer.subnet));
    let networks: BTreeSet<NetworkId> = subnets.map(|subnet| subnet.network).collect();
    let shared: BTreeSet<u16> = networks.iter().filter_map(|network| zones.get(network).copied()).collect();
    let mut taken: BTreeSet<u16> = zones.values().chain(snat.values()).copied().collect();
    let mut balanced: BTreeMap<u16, u16> = BTreeMap::new();
    for zone in shared {
        let range = if u32::from(zone) < LONE_ZONES { BALANCED_JOINED } else { BALANCED_LONE };
        let start = range + zone % BALANCED_RANGE;
        let mut candidates = (start..=u16::MAX).chain(1..start);
        balanced.extend(candidates.find(|candidate| taken.insert(*candidate)).map(|own| (zone, own)));
    }
    let own = |network: NetworkId| Some((network, *balanced.get(zones.get(&network)?)?));
    networks.into_iter().filter_map(own).collect()
}

/// The zones of what crosses the borders of routers with firewalls, where this host translates or, by IPv6, may have ports (`near` are the networks that have some): each has its own. A router is missing only when all zones
/// are taken; nothing crosses its border then.
#[must_use]
pub fn firewall_zones(
    host: &HostNetwork,
    near: &BTreeSet<NetworkId>,
    taken: impl IntoIterator<Item = u16>,
) -> BTreeMap<RouterId, u16> {
    let (mut taken, mut zones): (BTreeSet<u16>, _) = (taken.into_iter().collect(), BTreeMap::new());
    let is_here = |floating: &FloatingIp| host.ports.get(&floating.port).is_some_and(|port| port.is_on(host.host));
    let is_near = |foot: &RouterInterface| host.subnets.get(&foot.subnet).is_some_and(|it| near.contains(&it.network));
    for router in host.routers.values().filter(|router| router.firewall.is_some()) {
        let mut floating = router.external.iter().flat_map(|external| &external.floating_ips);
        let leads_out = router.ipv6_gateway.is_some() && router.interfaces.iter().any(is_near);
        if router.snat_among(host.host).is_none() && !leads_out && !floating.any(is_here) {
            continue;
        }
        let start = WALLED + router.key % BALANCED_RANGE;
        let mut candidates = (start..=u16::MAX).chain(1..start);
        zones.extend(candidates.find(|zone| taken.insert(*zone)).map(|zone| (router.id, zone)));
    }
    zones
}

/// From the top down, where the zones of lone networks are few.
fn translating(host: &HostNetwork, taken: &BTreeSet<u16>) -> BTreeMap<RouterId, u16> {
    let (mut taken, mut zones) = (taken.clone(), BTreeMap::new());
    for router in host.routers.values().filter(|router| router.snat_among(host.host).is_some()) {
        let start = u16::MAX - router.key;
        let mut candidates = (1..=start).rev().chain((start + 1..=u16::MAX).rev());
        if let Some(zone) = candidates.find(|zone| taken.insert(*zone)) {
            zones.insert(router.id, zone);
        }
    }
    zones
}

/// The zones of the networks that have a router.
fn joined(host: &HostNetwork) -> BTreeMap<NetworkId, u16> {
    let mut zones: BTreeMap<NetworkId, u16> = BTreeMap::new();
    for router in host.routers.values() {
        let feet: BTreeSet<NetworkId> =
            router.interfaces.iter().filter_map(|foot| host.subnets.get(&foot.subnet)).map(|s| s.network).collect();
        let met: BTreeSet<u16> = feet.iter().filter_map(|network| zones.get(network).copied()).collect();
        let least = met.iter().copied().chain([router.key]).min().unwrap_or(router.key);
        for zone in zones.values_mut().filter(|zone| met.contains(zone)) {
            *zone = least;
        }
        zones.extend(feet.into_iter().map(|network| (network, least)));
    }
    zones
}

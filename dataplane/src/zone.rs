//! Connection tracking zones: one per set of networks that routers join.
//!
//! Two ports that can speak to each other share a zone, so that a reply finds its connection whichever network it left by; two that cannot never
//! do, so that tenants with the same addresses stay apart. A zone is the smallest router key in the set, and for a network that no router has a
//! foot in, a number made from its VNI. Zones mean something on one host only.
//! Invariant: the same networks and routers give the same zones, and another set does not move a zone (but for two VNIs that meet modulo 2^15).

use std::collections::{BTreeMap, BTreeSet};

use model::NetworkId;
use model::spec::HostNetwork;

/// Where zones of networks without a router begin to be looked for.
const LONE_ZONES: u32 = 1 << 15;

/// The zone of each network. A network is missing only when all 65,535 zones are taken; nothing is then let through for it.
#[must_use]
pub fn zones(host: &HostNetwork) -> BTreeMap<NetworkId, u16> {
    let mut zones = joined(host);
    let mut taken: BTreeSet<u16> = zones.values().copied().collect();
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

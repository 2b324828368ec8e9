//! Which hosts lead routers out: for each router with an address of its own outside, the host that has it, and those that stand by.
//!
//! Pure: the same intent and the same reports give the same hosts. Invariant: a host that is the gateway stays it while it is up and wired; when it is
//! not, the next in order takes over, and nothing moves back. Silence right after a start of the scheduler says nothing of a host.
//!
//! ```text
//! chosen, stands by --those before it are down or unwired--> is the gateway --down or unwired, and another can--> chosen no more
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::network::{GatewayHost, Router, Snat};
use model::provider::PhysicalNetwork;
use model::{HostId, RouterId};

use crate::cluster::{Cluster, Life};
use crate::intent::Intent;

/// How many hosts are chosen for a router: the gateway and those that stand by. More would be told to every host and seldom used.
const CHOSEN: usize = 3;

/// Chooses the hosts of all routers.
pub(crate) fn choose(intent: &mut Intent, cluster: &Cluster) {
    let routers: Vec<RouterId> = intent.routers.keys().copied().collect();
    let mut load: BTreeMap<HostId, usize> = BTreeMap::new();
    for gateway in intent.routers.values().filter_map(|router| snat(router)?.gateway()) {
        *load.entry(gateway.host).or_default() += 1;
    }
    for id in routers {
        let Some(router) = intent.routers.get(&id) else { continue };
        let (Some(before), Some(wire)) = (snat(router), wire(intent, router)) else { continue };
        let gateways = among(intent, cluster, &before.gateways, &wire, &load);
        if gateways == before.gateways {
            continue;
        }
        if let Some(first) = gateways.first().filter(|_| before.gateways.is_empty()) {
            *load.entry(first.host).or_default() += 1;
        }
        let external = intent.routers.get_mut(&id).and_then(|router| Arc::make_mut(router).external.as_mut());
        if let Some(snat) = external.and_then(|external| external.snat.as_mut()) {
            snat.gateways = gateways;
        }
    }
}

fn snat(router: &Arc<Router>) -> Option<&Snat> {
    router.external.as_ref()?.snat.as_ref()
}

/// The physical network that a router leads out to.
fn wire(intent: &Intent, router: &Router) -> Option<PhysicalNetwork> {
    let subnet = intent.subnets.get(&router.external.as_ref()?.subnet)?;
    Some(intent.networks.get(&subnet.subnet.network)?.provider.as_ref()?.physical_network.clone())
}

/// The hosts of a router: those before that still can, in their order, then others, those that lead few routers out first. When none can, those before.
fn among(
    intent: &Intent,
    cluster: &Cluster,
    before: &[GatewayHost],
    wire: &PhysicalNetwork,
    load: &BTreeMap<HostId, usize>,
) -> Vec<GatewayHost> {
    let gateway = |id: HostId| intent.hosts.get(&id).map(|host| GatewayHost { host: id, tunnel: host.tunnel });
    let is_wired = |id: HostId| cluster.resources(id).physical_networks.contains(wire);
    let stays = |id: HostId| match cluster.sight(id).life {
        // A switch that does not answer its agent goes on with the flows that it has.
        Life::Up => is_wired(id) || !cluster.resources(id).switch,
        Life::Unheard => true,
        Life::Down => false,
    };
    let known: Vec<GatewayHost> = before.iter().filter_map(|gateway_before| gateway(gateway_before.host)).collect();
    let kept: Vec<GatewayHost> = known.iter().filter(|gateway| stays(gateway.host)).copied().collect();
    let taken: BTreeSet<HostId> = kept.iter().map(|gateway| gateway.host).collect();
    let able = intent.hosts.values().filter(|host| host.enabled && cluster.sight(host.id).life == Life::Up);
    let mut able: Vec<HostId> = able.map(|host| host.id).filter(|id| is_wired(*id) && !taken.contains(id)).collect();
    able.sort_by_key(|id| (load.get(id).copied().unwrap_or_default(), *id));
    let chosen: Vec<GatewayHost> = kept.into_iter().chain(able.into_iter().filter_map(gateway)).take(CHOSEN).collect();
    if chosen.is_empty() { known } else { chosen }
}

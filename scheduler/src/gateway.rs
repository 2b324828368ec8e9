//! Which hosts lead routers out, and in: for each address of a router's own outside, of either version of IP, the host that has it, and those that stand by.
//!
//! Pure: the same intent and the same reports give the same hosts. Invariant: a host that is the gateway stays it while it is up, wired and enabled; when
//! it is not, the next in order takes over, and nothing moves back. A host that is being drained gives way to one that can. A host whose switch does
//! not stand translating is never chosen. Silence right after a start of the scheduler says nothing of a host.
//!
//! ```text
//! chosen, stands by --those before it are down, unwired or drained--> is the gateway --down or unwired, and another can--> chosen no more
//!        ^--------------------------------drained, and another can---------------------------/
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::network::{GatewayHost, Router};
use model::observed::Resources;
use model::provider::PhysicalNetwork;
use model::{HostId, RouterId, SubnetId};

use crate::cluster::{Cluster, Life};
use crate::intent::Intent;
use crate::intent::host::Host;

/// How many hosts are chosen for a router: the gateway and those that stand by. More would be told to every host and seldom used.
const CHOSEN: usize = 3;

/// A host, as far as leading out goes.
#[derive(Debug)]
struct Standing<'a> {
    gateway: GatewayHost,
    enabled: bool,
    life: Life,
    resources: Option<&'a Resources>,
}

impl Standing<'_> {
    fn is_wired(&self, wire: &PhysicalNetwork) -> bool {
        self.resources.is_some_and(|resources| resources.physical_networks.contains(wire))
    }

    fn translates(&self) -> bool {
        self.resources.is_none_or(|resources| !resources.no_snat)
    }

    /// Whether it may be chosen.
    fn is_able(&self, wire: &PhysicalNetwork) -> bool {
        self.enabled && self.life == Life::Up && self.is_wired(wire) && self.translates()
    }

    /// Whether it goes on when it was chosen before.
    fn stays(&self, wire: &PhysicalNetwork) -> bool {
        let is_up = match self.life {
            // A switch that does not answer its agent goes on with the flows that it has.
            Life::Up => self.is_wired(wire) || self.resources.is_some_and(|resources| !resources.switch),
            Life::Unheard => true,
            Life::Down => false,
        };
        is_up && self.translates()
    }
}

/// All hosts, and those that can lead out to a physical network, found once for each.
#[derive(Debug)]
struct Field<'a> {
    hosts: BTreeMap<HostId, Standing<'a>>,
    able: BTreeMap<PhysicalNetwork, Vec<HostId>>,
    /// How many routers each leads out.
    load: BTreeMap<HostId, usize>,
}

/// Chooses the hosts of all routers.
pub(crate) fn choose(intent: &mut Intent, cluster: &Cluster) {
    let with =
        |way: Way| intent.routers.values().filter(move |it| way.gateways(it).is_some()).map(move |it| (it.id, way));
    let shared: Vec<(RouterId, Way)> = WAYS.into_iter().flat_map(with).collect();
    if shared.is_empty() {
        return;
    }
    let mut field = Field::look(intent, cluster);
    for (id, way) in shared {
        let Some(router) = intent.routers.get(&id) else { continue };
        let (Some(before), Some(wire)) = (way.gateways(router), wire(intent, router, way)) else { continue };
        if field.is_settled(before, &wire) {
            continue;
        }
        let gateways = field.among(before, &wire);
        if gateways == *before {
            continue;
        }
        if let Some(first) = gateways.first().filter(|_| before.is_empty()) {
            *field.load.entry(first.host).or_default() += 1;
        }
        if let Some(before) = intent.routers.get_mut(&id).and_then(|router| way.gateways_mut(Arc::make_mut(router))) {
            *before = gateways;
        }
    }
}

/// An address of a router's own outside.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// That which its ports share.
    Snat,
    /// That by which the data centre may route IPv6.
    Ipv6,
}

const WAYS: [Way; 2] = [Way::Snat, Way::Ipv6];

impl Way {
    /// The hosts that may have it; none where the router has no such address.
    fn gateways(self, router: &Router) -> Option<&Vec<GatewayHost>> {
        match self {
            Self::Snat => router.external.as_ref()?.snat.as_ref().map(|snat| &snat.gateways),
            Self::Ipv6 => router.ipv6_gateway.as_ref().map(|gateway| &gateway.gateways),
        }
    }

    fn gateways_mut(self, router: &mut Router) -> Option<&mut Vec<GatewayHost>> {
        match self {
            Self::Snat => router.external.as_mut()?.snat.as_mut().map(|snat| &mut snat.gateways),
            Self::Ipv6 => router.ipv6_gateway.as_mut().map(|gateway| &mut gateway.gateways),
        }
    }

    fn subnet(self, router: &Router) -> Option<SubnetId> {
        match self {
            Self::Snat => router.external.as_ref().map(|external| external.subnet),
            Self::Ipv6 => router.ipv6_gateway.as_ref().map(|gateway| gateway.subnet),
        }
    }
}

/// The physical network that a router leads out to.
fn wire(intent: &Intent, router: &Router, way: Way) -> Option<PhysicalNetwork> {
    let subnet = intent.subnets.get(&way.subnet(router)?)?;
    Some(intent.networks.get(&subnet.subnet.network)?.provider.as_ref()?.physical_network.clone())
}

impl<'a> Field<'a> {
    fn look(intent: &Intent, cluster: &'a Cluster) -> Self {
        let standing = |host: &Host| Standing {
            gateway: GatewayHost { host: host.id, tunnel: host.tunnel },
            enabled: host.enabled,
            life: cluster.life(host.id),
            resources: cluster.report(host.id).map(|report| &report.resources),
        };
        let hosts = intent.hosts.values().map(|host| (host.id, standing(host))).collect();
        let mut load: BTreeMap<HostId, usize> = BTreeMap::new();
        let firsts =
            intent.routers.values().flat_map(|router| WAYS.into_iter().filter_map(|way| way.gateways(router)?.first()));
        for gateway in firsts {
            *load.entry(gateway.host).or_default() += 1;
        }
        Self { hosts, able: BTreeMap::new(), load }
    }

    /// Whether a router has all the hosts that it may, and each is as good as any.
    fn is_settled(&self, before: &[GatewayHost], wire: &PhysicalNetwork) -> bool {
        let is_good = |gateway: &GatewayHost| {
            let host = self.hosts.get(&gateway.host);
            host.is_some_and(|host| host.gateway == *gateway && host.enabled && host.stays(wire))
        };
        before.len() == CHOSEN && before.iter().all(is_good)
    }

    /// The hosts that can lead out to a physical network.
    fn able(&mut self, wire: &PhysicalNetwork) -> &[HostId] {
        if !self.able.contains_key(wire) {
            let able = self.hosts.iter().filter(|(_, host)| host.is_able(wire)).map(|(id, _)| *id).collect();
            self.able.insert(wire.clone(), able);
        }
        self.able.get(wire).map_or(&[], Vec::as_slice)
    }

    /// The hosts of a router: those before that still can, in their order, then others, those that lead few routers out first, then those that are being
    /// drained. When none can, those before.
    fn among(&mut self, before: &[GatewayHost], wire: &PhysicalNetwork) -> Vec<GatewayHost> {
        let able: BTreeSet<HostId> = self.able(wire).iter().copied().collect();
        let known: Vec<&Standing<'_>> = before.iter().filter_map(|gateway| self.hosts.get(&gateway.host)).collect();
        let kept: Vec<&Standing<'_>> = known.iter().filter(|host| host.stays(wire)).copied().collect();
        let is_new = |id: &&HostId| !kept.iter().any(|host| host.gateway.host == **id);
        let mut others: Vec<&Standing<'_>> = able.iter().filter(is_new).filter_map(|id| self.hosts.get(id)).collect();
        others.sort_by_key(|host| self.load.get(&host.gateway.host).copied().unwrap_or_default());
        let first = kept.first().map(|host| host.gateway.host);
        let gives_way = kept.first().is_some_and(|host| !host.enabled) && !able.is_empty();
        let rank = |host: &&Standing<'_>| match () {
            () if able.contains(&host.gateway.host) => 0,
            () if host.enabled || Some(host.gateway.host) == first && !gives_way => u8::from(gives_way),
            () => 2,
        };
        let mut chosen: Vec<&Standing<'_>> = kept.into_iter().chain(others).collect();
        chosen.sort_by_key(rank);
        chosen.truncate(CHOSEN);
        if chosen.is_empty() {
            chosen = known.into_iter().filter(|host| host.translates()).collect();
        }
        chosen.into_iter().map(|host| host.gateway).collect()
    }
}

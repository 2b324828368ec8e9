//! Minimum bandwidth: what hosts have promised ports of their links to physical networks, and what of that is free.
//!
//! Pure. A port is promised something where its machine is, also as a sub-port of one of its ports, and only of the physical network that its own is a
//! part of. Placement goes by the same sums ([`crate::place`]).
//! Invariant: no request makes a host promise more than its link carries; a host that says less later keeps its machines, and gets no more.

use std::collections::{BTreeMap, BTreeSet};

use model::network::Port;
use model::provider::PhysicalNetwork;
use model::{HostId, PortId};

use crate::cluster::Cluster;
use crate::intent::Intent;
use crate::refusal::Refusal;

/// Thousands of bits a second by physical network.
pub(crate) type Kbps = BTreeMap<PhysicalNetwork, u64>;

/// What a port is promised, if anything.
pub(crate) fn minimum(intent: &Intent, port: &Port) -> Option<(PhysicalNetwork, u64)> {
    let kbps = port.qos.egress_min_kbps?;
    let provider = intent.networks.get(&port.network)?.provider.as_ref()?;
    Some((provider.physical_network.clone(), kbps.get().into()))
}

/// What the ports of each host are promised together.
pub(crate) fn promised(intent: &Intent) -> BTreeMap<HostId, Kbps> {
    let mut sums: BTreeMap<HostId, Kbps> = BTreeMap::new();
    for (port, host) in with_minimums(intent) {
        if let Some((network, kbps)) = minimum(intent, port) {
            *sums.entry(host).or_default().entry(network).or_default() += kbps;
        }
    }
    sums
}

/// Refuses a change by which a host would promise more than before, and more than it can keep.
pub(crate) fn check(before: &Intent, after: &Intent, cluster: &Cluster) -> Result<(), Refusal> {
    let (old, new) = (promised(before), promised(after));
    for (host, sums) in &new {
        for (network, sum) in sums {
            let had = old.get(host).and_then(|sums| sums.get(network)).copied().unwrap_or_default();
            if *sum <= had {
                continue;
            }
            let capacity = cluster.resources(*host).bandwidth_kbps.get(network).map(|kbps| u64::from(kbps.get()));
            if capacity.is_some_and(|capacity| *sum <= capacity) {
                continue;
            }
            let has_reported = cluster.report(*host).is_some();
            return Err(refusal(
                before,
                after,
                (*host, network, has_reported),
                capacity.map(|capacity| (capacity, *sum)),
            ));
        }
    }
    Ok(())
}

fn refusal(
    before: &Intent,
    after: &Intent,
    (host, network, has_reported): (HostId, &PhysicalNetwork, bool),
    room: Option<(u64, u64)>,
) -> Refusal {
    let had = |id: PortId| before.ports.get(&id).and_then(|it| minimum(before, &it.port)).map_or(0, |(_, kbps)| kbps);
    let of = |port: &Port| minimum(after, port).filter(|(of, _)| of == network).map(|(_, kbps)| kbps);
    let here = with_minimums(after).into_iter().filter(|(_, at)| *at == host);
    let wanting = here.filter_map(|(port, _)| Some((port, of(port)?)));
    let most = wanting.max_by_key(|(port, kbps)| (kbps.saturating_sub(had(port.id)), port.id));
    let (port, needed) = most.map_or(("?", 0), |(port, kbps)| (port.name.as_str(), kbps));
    let name = after.hosts.get(&host).map_or_else(|| host.to_string(), |host| host.name.clone());
    let problem = match room {
        Some((capacity, sum)) => {
            let free = capacity.saturating_sub(sum.saturating_sub(needed));
            format!(
                "it is on host {name}, where {free} of {capacity} kbit/s of physical network {network} are free, less than the {needed} wanted"
            )
        }
        None if !has_reported => {
            format!("it is on host {name}, which has not reported since the scheduler started: try again once it has")
        }
        None => format!(
            "it is on host {name}, which keeps no minimum bandwidth on physical network {network}: bandwidth_kbps of [[physical]] in its agent.toml \
             says what the link carries, and its switch has to be in the kernel"
        ),
    };
    Refusal::State { object: format!("port {port}"), problem, field: Some("qos.egress_min_kbps".to_owned()) }
}

/// The ports with minimums that are on a host, and on which.
fn with_minimums(intent: &Intent) -> Vec<(&Port, HostId)> {
    let ports = intent.ports.values().map(|it| &it.port).filter(|port| port.qos.egress_min_kbps.is_some());
    let ports: Vec<&Port> = ports.collect();
    let taps: BTreeSet<PortId> = ports.iter().map(|port| port.tap_port()).collect();
    if ports.is_empty() {
        return Vec::new();
    }
    let machines = intent.machines.values().filter_map(|vm| Some((vm, vm.host?)));
    let plugged = machines.flat_map(|(vm, host)| vm.machine.ports.iter().map(move |port| (*port, host)));
    let hosts: BTreeMap<PortId, HostId> = plugged.filter(|(port, _)| taps.contains(port)).collect();
    ports.into_iter().filter_map(|port| Some((port, *hosts.get(&port.tap_port())?))).collect()
}

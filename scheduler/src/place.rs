//! Placement: which host gets a machine, and why not the others.
//!
//! [`place`] is pure and deterministic: filters refuse hosts, weighers rank those that are left, and a tie goes to the lowest id. Every host that
//! was looked at is in the [`Decision`], with each reason for which it was refused or with its weights.

use std::collections::{BTreeMap, BTreeSet};

use model::HostId;
use model::observed::Resources;
use model::provider::PhysicalNetwork;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::bandwidth::Kbps;

/// What a machine costs its host besides the guest's memory.
pub(crate) const MACHINE_OVERHEAD_MIB: u64 = 16;
/// What weights are counted in: thousandths.
const WEIGHT_FULL: u64 = 1000;

/// What a machine needs of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) vcpus: u64,
    pub(crate) memory_mib: u64,
    /// Whether one of its volumes is an RBD image.
    pub(crate) rbd: bool,
    /// Space for local volumes that are still to be made.
    pub(crate) storage_mib: u64,
    /// The physical networks that its ports are on.
    pub(crate) physical_networks: BTreeSet<PhysicalNetwork>,
    /// What its ports are promised of them.
    pub(crate) minimums: Kbps,
    /// Hosts outside of this set can not take it, each with the reason: a local volume is elsewhere, or its owner said so.
    pub(crate) only: BTreeMap<HostId, String>,
    /// Machines that it must not meet, by the host that each is on.
    pub(crate) avoid: BTreeMap<HostId, String>,
    /// What has to happen before it can go anywhere.
    pub(crate) waits: Option<String>,
}

/// A host as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) id: HostId,
    pub(crate) name: String,
    pub(crate) enabled: bool,
    /// Why it counts as not up; none: it is up.
    pub(crate) down: Option<String>,
    pub(crate) resources: Resources,
    /// What machines that are placed there have been promised already.
    pub(crate) promised: Promised,
}

/// What is promised to machines already.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Promised {
    pub(crate) vcpus: u64,
    pub(crate) memory_mib: u64,
    pub(crate) storage_mib: u64,
    pub(crate) machines: u64,
    pub(crate) bandwidth: Kbps,
}

/// What hosts may be promised beyond what they have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overcommit {
    /// vCPUs for each logical CPU.
    pub(crate) vcpus_per_cpu: u64,
}

/// Where a machine goes and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Decision {
    /// The host that was chosen.
    #[schema(value_type = Option<String>)]
    pub(crate) host: Option<HostId>,
    /// Every host that was looked at.
    pub(crate) verdicts: Vec<Verdict>,
}

/// What was found of one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Verdict {
    /// The host.
    #[schema(value_type = String)]
    pub(crate) host: HostId,
    /// Its name.
    pub(crate) name: String,
    /// Why it can not take the machine; empty: it can.
    pub(crate) refused: Vec<String>,
    /// What speaks for it, in thousandths.
    pub(crate) weights: BTreeMap<String, u64>,
}

impl Decision {
    /// Why no host takes the machine, in one line.
    pub(crate) fn problem(&self) -> String {
        if self.verdicts.is_empty() {
            return "no host has joined: run `scheduler token --host NAME` and join one".to_owned();
        }
        let hosts = self.verdicts.iter().map(|verdict| format!("{}: {}", verdict.name, verdict.refused.join(", ")));
        format!("no host takes it: {}", hosts.collect::<Vec<_>>().join("; "))
    }
}

/// Chooses a host.
pub(crate) fn place(request: &Request, hosts: &[Candidate], overcommit: Overcommit) -> Decision {
    let most_free = hosts.iter().map(free_memory).max().unwrap_or(0).max(1);
    let mut verdicts: Vec<Verdict> = hosts
        .iter()
        .map(|host| {
            let refused = refuse(request, host, overcommit);
            let weights = if refused.is_empty() { weigh(host, most_free) } else { BTreeMap::new() };
            Verdict { host: host.id, name: host.name.clone(), refused, weights }
        })
        .collect();
    verdicts.sort_by_key(|verdict| verdict.host);
    let total = |verdict: &Verdict| verdict.weights.values().sum::<u64>();
    let fit = verdicts.iter().filter(|verdict| verdict.refused.is_empty());
    let host = fit.max_by_key(|verdict| (total(verdict), std::cmp::Reverse(verdict.host))).map(|verdict| verdict.host);
    Decision { host, verdicts }
}

fn refuse(request: &Request, host: &Candidate, overcommit: Overcommit) -> Vec<String> {
    if let Some(down) = &host.down {
        return vec![down.clone()];
    }
    let mut reasons = Vec::new();
    let mut demand = |met: bool, reason: String| {
        if !met {
            reasons.push(reason);
        }
    };
    let Resources { cpus, kvm, rbd, switch, storage_mib, .. } = host.resources;
    demand(host.enabled, "it is disabled".to_owned());
    demand(kvm, "it has no working /dev/kvm".to_owned());
    demand(switch, "its Open vSwitch does not answer".to_owned());
    demand(rbd || !request.rbd, "it can not open RBD volumes".to_owned());
    for network in request.physical_networks.difference(&host.resources.physical_networks) {
        demand(false, format!("it is not wired to physical network {network}"));
    }
    for (network, needed) in &request.minimums {
        let Some(capacity) = host.resources.bandwidth_kbps.get(network).map(|kbps| u64::from(kbps.get())) else {
            demand(false, format!("it keeps no minimum bandwidth on physical network {network}"));
            continue;
        };
        let left = capacity.saturating_sub(host.promised.bandwidth.get(network).copied().unwrap_or_default());
        let of = format!("{left} of {capacity} kbit/s of physical network {network}");
        demand(left >= *needed, format!("{of} are left, {needed} are needed"));
    }
    let room = u64::from(cpus) * overcommit.vcpus_per_cpu;
    let left = room.saturating_sub(host.promised.vcpus);
    demand(left >= request.vcpus, format!("{} of {room} vCPUs are left, {} are needed", left, request.vcpus));
    let (needed, free) = (request.memory_mib + MACHINE_OVERHEAD_MIB, free_memory(host));
    demand(free >= needed, format!("{free} MiB of memory are left, {needed} are needed"));
    let space = storage_mib.saturating_sub(host.promised.storage_mib);
    demand(
        space >= request.storage_mib,
        format!("{space} MiB are left for local volumes, {} are needed", request.storage_mib),
    );
    if let Some(waits) = &request.waits {
        demand(false, waits.clone());
    }
    let elsewhere = request.only.iter().find(|(only, _)| **only != host.id);
    if let Some((_, reason)) = elsewhere {
        demand(false, reason.clone());
    }
    if let Some(peer) = request.avoid.get(&host.id) {
        demand(false, format!("vm {peer} of the same anti-affinity group is on it"));
    }
    reasons
}

fn free_memory(host: &Candidate) -> u64 {
    host.resources.memory_mib.saturating_sub(host.promised.memory_mib)
}

fn weigh(host: &Candidate, most_free: u64) -> BTreeMap<String, u64> {
    BTreeMap::from([
        ("free_memory".to_owned(), free_memory(host) * WEIGHT_FULL / most_free),
        ("spread".to_owned(), WEIGHT_FULL / (1 + host.promised.machines)),
    ])
}

#[cfg(test)]
mod tests;

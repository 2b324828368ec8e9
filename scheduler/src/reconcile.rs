//! Brings the intent forward by what hosts report: frees what is gone, chooses keepers of volumes and gateways of routers, places machines, and makes
//! a new specification for each host whose content changed. What a host found out of members of load balancers goes to all hosts that way.
//!
//! Pure and idempotent: with the same intent and the same reports a second pass changes nothing. A generation grows only when content does.
//!
//! What is freed is freed on evidence alone: the host is up, it has accepted a specification without the object, and it does not see it any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::balancer::{Balancer, MemberHealth, MemberRef};
use model::network::Binding;
use model::observed::{MachineState, Report, VolumeState};
use model::provider::PhysicalNetwork;
use model::spec::{Generation, NodeSpec};
use model::volume::VolumeBackend;
use model::{HostId, MachineId, NetworkId, PortId, VolumeId};

use crate::assign::{assign, bindings};
use crate::bandwidth;
use crate::cluster::{Cluster, Life};
use crate::gateway;
use crate::intent::Intent;
use crate::intent::host::Assigned;
use crate::intent::machine::MachineIntent;
use crate::place::{Candidate, MACHINE_OVERHEAD_MIB, Overcommit, Promised, Request, place};
use crate::seat::Seats;
use crate::standing::{Standing, Unable};

/// A host whose specification contradicts itself: a fault of ours. The host keeps the one that it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contradiction {
    pub(crate) host: HostId,
    pub(crate) error: model::spec::SpecError,
}

/// Brings `intent` forward.
pub(crate) fn reconcile(intent: &mut Intent, cluster: &Cluster, overcommit: Overcommit) -> Vec<Contradiction> {
    free_machines(intent, cluster);
    note_volumes(intent, cluster);
    keep_volumes(intent, cluster);
    place_machines(intent, cluster, overcommit);
    keep_volumes(intent, cluster);
    intent.note_arrivals(cluster);
    gateway::choose(intent, cluster);
    let bindings = bindings(intent);
    note_health(intent, cluster, &bindings);
    assign_all(intent, &bindings)
}

/// A host's report, if it speaks of the specification that the host was given last.
fn caught_up(intent: &Intent, cluster: &Cluster, host: HostId) -> Option<Arc<Report>> {
    cluster.fresh(host).filter(|report| report.accepted >= intent.generation(host))
}

fn free_machines(intent: &mut Intent, cluster: &Cluster) {
    let gone = |vm: &MachineIntent| {
        let Some(host) = vm.host else { return true };
        let told = intent.assigned.get(&host).is_none_or(|it| !it.spec.machines().contains_key(&vm.machine.id));
        let seen = |report: &Report| {
            report.machines.iter().any(|seen| seen.id == vm.machine.id && seen.state != MachineState::Absent)
        };
        told && caught_up(intent, cluster, host).is_some_and(|report| !seen(&report))
    };
    let deleting = intent.machines.values().filter(|vm| vm.deleting);
    let gone: Vec<MachineId> = deleting.filter(|vm| gone(vm)).map(|vm| vm.machine.id).collect();
    for id in gone {
        intent.forget_machine(id);
    }
}

fn note_volumes(intent: &mut Intent, cluster: &Cluster) {
    let mut created = Vec::new();
    let mut gone = Vec::new();
    for volume in intent.volumes.values() {
        let (id, Some(host)) = (volume.volume.id, volume.keeper) else { continue };
        let Some(report) = cluster.fresh(host) else { continue };
        let state = report.volumes.iter().find(|seen| seen.id == id).map(|seen| seen.state);
        match state {
            Some(VolumeState::Available | VolumeState::InUse) if !volume.created => created.push(id),
            Some(VolumeState::Absent) if volume.retired => {
                let told = intent.assigned.get(&host).is_some_and(|it| it.spec.retired_volumes().contains_key(&id));
                if told && report.accepted >= intent.generation(host) {
                    gone.push(id);
                }
            }
            _ => {}
        }
    }
    for id in created {
        if let Some(volume) = intent.volumes.get_mut(&id) {
            Arc::make_mut(volume).created = true;
        }
    }
    for id in gone {
        intent.volumes.remove(&id);
    }
}

fn keep_volumes(intent: &mut Intent, cluster: &Cluster) {
    let users: BTreeMap<VolumeId, HostId> = intent
        .machines
        .values()
        .filter_map(|vm| vm.host.map(|host| (vm, host)))
        .flat_map(|(vm, host)| vm.machine.disks.iter().map(move |disk| (disk.volume, host)))
        .collect();
    // A new volume of a machine that is about to be placed is made where the machine goes, not before.
    let claimed: BTreeSet<VolumeId> = intent
        .machines
        .values()
        .filter(|vm| vm.host.is_none())
        .flat_map(|vm| vm.machine.disks.iter().map(|disk| disk.volume))
        .collect();
    let able = |host: HostId| cluster.fresh(host).is_some_and(|report| report.resources.rbd);
    let any = intent.hosts.keys().copied().find(|host| able(*host));
    for (id, volume) in &mut intent.volumes {
        let wanted = match (users.get(id), &volume.volume.backend) {
            (Some(host), VolumeBackend::Rbd { .. }) => Some(*host),
            (Some(host), VolumeBackend::Local) => volume.keeper.or(Some(*host)),
            (None, VolumeBackend::Local) => volume.keeper,
            (None, VolumeBackend::Rbd { .. }) if volume.keeper.is_none() && claimed.contains(id) => None,
            (None, VolumeBackend::Rbd { .. }) => {
                let settled = volume.created && !volume.retired;
                let lost = volume.keeper.is_none_or(|host| {
                    let sight = cluster.sight(host);
                    sight.life == Life::Down || (sight.life == Life::Up && !able(host))
                });
                if lost && !settled { any.or(volume.keeper) } else { volume.keeper }
            }
        };
        if wanted != volume.keeper {
            Arc::make_mut(volume).keeper = wanted;
        }
    }
}

fn place_machines(intent: &mut Intent, cluster: &Cluster, overcommit: Overcommit) {
    let waiting = intent.machines.values().filter(|vm| vm.host.is_none() && !vm.deleting);
    let waiting: Vec<MachineId> = waiting.map(|vm| vm.machine.id).collect();
    for id in waiting {
        let Some(vm) = intent.machines.get(&id) else { continue };
        let decision = place(&request(intent, vm), &candidates(intent, cluster), overcommit);
        if vm.host == decision.host && vm.decision.as_ref() == Some(&decision) {
            continue;
        }
        if let Some(vm) = intent.machines.get_mut(&id) {
            let vm = Arc::make_mut(vm);
            vm.host = decision.host;
            vm.decision = Some(decision);
        }
        // A local volume stays where its machine was put, also in the eyes of the next machine to be placed.
        keep_volumes(intent, cluster);
    }
}

/// The physical network that the addresses of a port are routed on by IPv6.
fn routed(intent: &Intent, port: PortId) -> Option<PhysicalNetwork> {
    let addresses = &intent.ports.get(&port)?.port.addresses;
    let subnets = || addresses.iter().filter_map(|fixed| intent.subnets.get(&fixed.subnet));
    let networks = intent.routers.values().filter_map(|router| Some((router, intent.outside6(router)?)));
    let mut networks = networks.filter(|(router, outside)| {
        let stands = |id| router.interfaces.iter().any(|foot| foot.subnet == id);
        subnets().any(|subnet| stands(subnet.subnet.id) && outside.routes(subnet.subnet.cidr))
    });
    networks.find_map(|(_, outside)| Some(outside.provider.as_ref()?.physical_network.clone()))
}

fn request(intent: &Intent, vm: &MachineIntent) -> Request {
    let host_name = |id: HostId| intent.hosts.get(&id).map_or_else(|| id.to_string(), |host| host.name.clone());
    let wire = |id: &NetworkId| Some(intent.networks.get(id)?.provider.as_ref()?.physical_network.clone());
    let physical = |port: &PortId| {
        let own = intent.ports.get(port).and_then(|it| wire(&it.port.network));
        let externals = intent.routers.values().filter_map(|router| router.external.as_ref());
        let floating = externals.filter(|external| external.floating_ips.iter().any(|it| it.port == *port));
        let outside = floating.filter_map(|external| wire(&intent.subnets.get(&external.subnet)?.subnet.network));
        own.into_iter().chain(outside).chain(routed(intent, *port)).collect::<Vec<_>>()
    };
    // A sub-port is where its parent is, which has to be wired for it, too.
    let own = vm.machine.ports.iter();
    let all = own.flat_map(|port| std::iter::once(*port).chain(intent.sub_ports(*port).map(|sub| sub.id)));
    let all: Vec<PortId> = all.collect();
    let mut request = Request {
        vcpus: u64::from(vm.machine.vcpus),
        memory_mib: vm.machine.memory.get(),
        rbd: false,
        storage_mib: 0,
        physical_networks: all.iter().flat_map(physical).collect(),
        minimums: BTreeMap::new(),
        only: BTreeMap::new(),
        avoid: BTreeMap::new(),
        waits: None,
    };
    for port in all.iter().filter_map(|port| intent.ports.get(port)) {
        if let Some((network, kbps)) = bandwidth::minimum(intent, &port.port) {
            *request.minimums.entry(network).or_default() += kbps;
        }
    }
    for volume in vm.machine.disks.iter().filter_map(|disk| intent.volumes.get(&disk.volume)) {
        let name = &volume.volume.name;
        match (&volume.volume.backend, volume.keeper) {
            (VolumeBackend::Rbd { .. }, keeper) => {
                request.rbd = true;
                if let Some(host) = keeper.filter(|_| !volume.created) {
                    request.waits = Some(format!("volume {name} is still being made by host {}", host_name(host)));
                }
            }
            (VolumeBackend::Local, Some(host)) => {
                request.only.insert(host, format!("its volume {name} is on host {}", host_name(host)));
            }
            (VolumeBackend::Local, None) => request.storage_mib += volume.volume.size.get(),
        }
    }
    if let Some(host) = vm.wanted_host {
        request.only.entry(host).or_insert_with(|| format!("only host {} was asked for", host_name(host)));
    }
    if let Some(word) = &vm.anti_affinity {
        let peers = intent.machines.values().filter(|peer| {
            peer.machine.id != vm.machine.id && peer.anti_affinity.as_ref() == Some(word) && !peer.deleting
        });
        request.avoid = peers.filter_map(|peer| peer.host.map(|host| (host, peer.machine.name.clone()))).collect();
    }
    request
}

fn candidates(intent: &Intent, cluster: &Cluster) -> Vec<Candidate> {
    let mut promised: BTreeMap<HostId, Promised> = BTreeMap::new();
    for vm in intent.machines.values() {
        let Some(host) = vm.host else { continue };
        let sum = promised.entry(host).or_default();
        sum.vcpus += u64::from(vm.machine.vcpus);
        sum.memory_mib += vm.machine.memory.get() + MACHINE_OVERHEAD_MIB;
        sum.machines += 1;
    }
    for volume in intent.volumes.values().filter(|volume| volume.volume.backend == VolumeBackend::Local) {
        if let Some(host) = volume.keeper {
            promised.entry(host).or_default().storage_mib += volume.volume.size.get();
        }
    }
    for (host, sums) in bandwidth::promised(intent) {
        promised.entry(host).or_default().bandwidth = sums;
    }
    let down = |host: HostId| match cluster.sight(host).life {
        Life::Up => None,
        Life::Unheard => Some("it has not reported since the scheduler started".to_owned()),
        Life::Down => Some("it is down: it does not report".to_owned()),
    };
    let candidate = |host: &Arc<crate::intent::host::Host>| Candidate {
        id: host.id,
        name: host.name.clone(),
        enabled: host.enabled,
        down: down(host.id),
        resources: cluster.resources(host.id),
        promised: promised.get(&host.id).cloned().unwrap_or_default(),
    };
    intent.hosts.values().map(candidate).collect()
}

/// Believes what a host reports of members of load balancers that are plugged into it, once it knows what it was given last: a verdict from before
/// the monitor is none of it. Who can not serve is in error, and stays it until its host has found otherwise. What nobody knows of stays as it was: a host
/// that has just started has nobody go or come back.
fn note_health(intent: &mut Intent, cluster: &Cluster, bindings: &BTreeMap<PortId, Binding>) {
    if !intent.balancers.values().any(|it| it.listeners.iter().any(|listener| listener.checks().is_some())) {
        return;
    }
    let (seats, standing) = (Seats::of(intent, bindings), Standing::of(intent, cluster));
    let told = |host: &HostId| Some((*host, caught_up(intent, cluster, *host)?));
    let told: Vec<(HostId, Arc<Report>)> = intent.hosts.keys().filter_map(told).collect();
    let is_there = |host: HostId, about: &MemberRef| {
        let balancer = intent.balancers.get(&about.balancer);
        let seat = balancer.and_then(|it| seats.of_member(it, about.address));
        seat.is_some_and(|at| at.host == host && standing.unable(at).is_none())
    };
    let found = told.iter().flat_map(|(host, report)| report.members.iter().map(move |health| (*host, health)));
    let believed: Vec<&MemberHealth> =
        found.filter(|(host, health)| is_there(*host, &health.member)).map(|(_, health)| health).collect();
    let unable = unable(intent, &seats, &standing);
    for health in believed {
        intent.note_health(health);
    }
    let (still, silent): (Vec<_>, Vec<_>) = unable.into_iter().partition(|(_, why)| *why == Unable::MachineDown);
    for (member, _) in &still {
        intent.note_verdict(member, false);
    }
    // A silent host is no proof: it takes nobody out where nobody else is left.
    let gone: BTreeSet<MemberRef> = silent.into_iter().map(|(member, _)| member).collect();
    let spared: Vec<MemberRef> = gone.iter().filter(|about| intent.others_serve(about, &gone)).copied().collect();
    for member in &spared {
        intent.note_verdict(member, false);
    }
}

/// The members that are checked and can not serve.
fn unable(intent: &Intent, seats: &Seats<'_>, standing: &Standing<'_>) -> Vec<(MemberRef, Unable)> {
    let listeners = intent.balancers.values().flat_map(|it| it.listeners.iter().map(move |listener| (it, listener)));
    let checked = listeners.filter(|(_, listener)| listener.checks().is_some());
    let members = checked.flat_map(|(balancer, listener)| {
        listener.members.iter().map(move |member| (balancer, MemberRef::of(balancer, listener, member)))
    });
    let why = |(balancer, member): (&Arc<Balancer>, MemberRef)| {
        Some((member, standing.unable(seats.of_member(balancer, member.address)?)?))
    };
    members.filter_map(why).collect()
}

fn assign_all(intent: &mut Intent, bindings: &BTreeMap<PortId, Binding>) -> Vec<Contradiction> {
    let mut contradictions = Vec::new();
    let arrivals = intent.arrivals();
    for host in intent.hosts.keys().copied().collect::<Vec<_>>() {
        let mut parts = assign(intent, (bindings, &arrivals), host);
        parts.generation = intent.generation(host);
        let spec = match NodeSpec::check(parts.clone()) {
            Ok(spec) => spec,
            Err(error) => {
                contradictions.push(Contradiction { host, error });
                continue;
            }
        };
        if intent.assigned.get(&host).is_some_and(|assigned| assigned.spec == spec) {
            continue;
        }
        parts.generation = Generation(parts.generation.0 + 1);
        match NodeSpec::check(parts) {
            Ok(spec) => {
                intent.assigned.insert(host, Arc::new(Assigned { spec }));
            }
            Err(error) => contradictions.push(Contradiction { host, error }),
        }
    }
    contradictions
}

#[cfg(test)]
mod tests;

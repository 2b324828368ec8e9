//! What machines look like to an operator, their sizes, and where they were placed.

use std::sync::Arc;

use model::machine::Power;
use model::observed::MachineState;
use serde::Serialize;
use utoipa::ToSchema;

use super::{BootView, NamedRef, ProblemView, named, problem};
use crate::centre::World;
use crate::cluster::Life;
use crate::intent::flavor::Flavor;
use crate::intent::machine::MachineIntent;
use crate::place::Verdict;

/// A flavor.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FlavorView {
    id: String,
    name: String,
    vcpus: u8,
    memory_mib: u64,
}

impl FlavorView {
    pub(super) fn of(_: &World, flavor: &Flavor) -> Self {
        Self {
            id: flavor.id.to_string(),
            name: flavor.name.clone(),
            vcpus: flavor.vcpus.get(),
            memory_mib: flavor.memory.get(),
        }
    }
}

/// A machine.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MachineView {
    id: String,
    name: String,
    /// `running`, `starting`, `stopping`, `stopped`, `paused`, `crashed`, `deleting`, `error` when no host takes it, or `unknown`.
    state: &'static str,
    /// What it is told to be: `running` or `stopped`.
    power: &'static str,
    host: Option<NamedRef>,
    flavor: String,
    vcpus: u8,
    memory_mib: u64,
    ports: Vec<MachinePortView>,
    volumes: Vec<NamedRef>,
    boot: BootView,
    anti_affinity: Option<String>,
    /// Public SSH keys that the metadata service tells it.
    ssh_keys: Vec<String>,
    /// Octets of its user data, which is not shown; 0: it has none.
    user_data_bytes: usize,
    /// How many times it was told to start.
    starts: u32,
    problem: Option<ProblemView>,
}

/// A port of a machine.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MachinePortView {
    id: String,
    name: String,
    network: NamedRef,
    mac: String,
    addresses: Vec<String>,
}

impl MachineView {
    pub(super) fn of(world: &World, vm: &MachineIntent) -> Self {
        let (intent, machine) = (&world.intent, &vm.machine);
        let (state, problem) = machine_state(world, vm);
        let ports = machine.ports.iter().filter_map(|id| intent.ports.get(id)).map(|port| MachinePortView {
            id: port.port.id.to_string(),
            name: port.port.name.clone(),
            network: named(&intent.networks, &port.port.network),
            mac: port.port.mac.to_string(),
            addresses: port.port.addresses.iter().map(|fixed| fixed.address.to_string()).collect(),
        });
        Self {
            id: machine.id.to_string(),
            name: machine.name.clone(),
            state,
            power: match machine.power {
                Power::Running => "running",
                Power::Stopped => "stopped",
            },
            host: vm.host.map(|host| named(&intent.hosts, &host)),
            flavor: vm.flavor.clone(),
            vcpus: machine.vcpus.get(),
            memory_mib: machine.memory.get(),
            ports: ports.collect(),
            volumes: machine.disks.iter().map(|disk| named(&intent.volumes, &disk.volume)).collect(),
            boot: BootView {
                kernel: Some(named(&intent.images, &machine.boot.kernel)),
                initrd: machine.boot.initrd.map(|id| named(&intent.images, &id)),
                cmdline: Some(machine.boot.cmdline.clone()),
            },
            anti_affinity: vm.anti_affinity.clone(),
            ssh_keys: machine.metadata.ssh_keys.iter().map(|key| key.as_str().to_owned()).collect(),
            user_data_bytes: machine.metadata.user_data.as_ref().map_or(0, |data| data.octets().len()),
            starts: machine.starts,
            problem,
        }
    }
}

fn machine_state(world: &World, vm: &MachineIntent) -> (&'static str, Option<ProblemView>) {
    let Some(host) = vm.host else {
        let message = vm.decision.as_ref().map(crate::place::Decision::problem).unwrap_or_default();
        return ("error", Some(problem(message, "it is placed as soon as a host takes it: make room or join a host")));
    };
    let name = world.intent.hosts.get(&host).map_or_else(|| host.to_string(), |host| host.name.clone());
    let Some(report) = world.cluster.fresh(host) else {
        let life = world.cluster.sight(host).life;
        let message = match life {
            Life::Down => format!("host {name} is down: it does not report"),
            Life::Up | Life::Unheard => format!("host {name} has not reported since the scheduler started"),
        };
        let remedy = if life == Life::Down {
            format!("look after the host and its agent; if it is dead for good: flowctl host evacuate {name} --force")
        } else {
            "wait for its report".to_owned()
        };
        let state = if vm.deleting { "deleting" } else { "unknown" };
        return (state, Some(problem(message, &remedy)));
    };
    let seen = report.machines.iter().find(|seen| seen.id == vm.machine.id);
    let trouble = seen.and_then(|seen| seen.problem.as_ref()).map(ProblemView::from);
    let running = vm.machine.power == Power::Running;
    let state = match seen.map(|seen| &seen.state) {
        _ if vm.deleting => "deleting",
        Some(MachineState::Running) => "running",
        Some(MachineState::Starting) => "starting",
        Some(MachineState::Stopping) => "stopping",
        Some(MachineState::Stopped) => "stopped",
        Some(MachineState::Paused) => "paused",
        Some(MachineState::Crashed) => "crashed",
        Some(MachineState::Unknown) => "unknown",
        Some(MachineState::Absent) | None if running => "starting",
        Some(MachineState::Absent) | None => "stopped",
    };
    (state, trouble)
}

/// Where a machine goes, and why not elsewhere.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PlacementView {
    /// The host that was chosen.
    host: Option<String>,
    /// Why no host takes it.
    problem: Option<String>,
    /// Every host that was looked at when it was placed, or last tried.
    verdicts: Vec<Verdict>,
}

impl PlacementView {
    pub(crate) fn of(vm: &Arc<MachineIntent>) -> Self {
        let decision = vm.decision.as_ref();
        Self {
            host: vm.host.map(|host| host.to_string()),
            problem: decision.filter(|_| vm.host.is_none()).map(crate::place::Decision::problem),
            verdicts: decision.map(|decision| decision.verdicts.clone()).unwrap_or_default(),
        }
    }
}

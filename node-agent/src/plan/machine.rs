//! Machines: which process to launch, configure, start, stop, reap and forget.
//!
//! Never two processes for one machine: a launch is planned only where the look said that nobody holds the machine's lock, and the launcher takes
//! that lock before it becomes the VMM. The same look is what makes a fence right: locks in Ceph are released only of a process that is gone, and
//! only those that it was seen to have while it lived.

use std::collections::BTreeSet;

use model::MachineId;
use model::machine::{Machine, Power};
use model::network::Port;
use model::observed::Problem;
use model::spec::NodeSpec;
use model::volume::{Volume, VolumeBackend};
use vmm::state::State;

use super::{Context, Lane, Plan, Step};
use crate::driver::{MachineNet, MachineParts};
use crate::record::{End, Launch, MachineRecord};
use crate::seen::{Look, MachineSeen, Process, Seen};

/// How often a machine whose process was lost is launched again within [`LOSSES_WINDOW_MS`]; then it stays down until it is told to start.
pub(super) const LOSSES_MAX: usize = 3;
/// The time in which losses count together, milliseconds.
pub(super) const LOSSES_WINDOW_MS: u64 = 600_000;

/// Plans every machine that is wanted or has a record.
pub(super) fn plan(plan: &mut Plan, spec: &NodeSpec, seen: &Seen, context: &Context) {
    let machines = match &seen.machines {
        Look::Known(machines) => machines,
        Look::Unknown(problem) => {
            for id in spec.machines().keys() {
                plan.block(Lane::Machine(*id), problem.clone());
            }
            return;
        }
    };
    let mut uids: BTreeSet<u32> =
        machines.values().filter_map(|look| look.known()).map(|seen| seen.record.uid).collect();
    // A record that cannot be read may hold any user id: nothing new is registered beside it.
    let uids_known = machines.values().all(|look| look.known().is_some());
    let ids: BTreeSet<MachineId> = spec.machines().keys().chain(machines.keys()).copied().collect();
    for id in ids {
        match (machines.get(&id), spec.machines().get(&id)) {
            (Some(Look::Unknown(problem)), _) => plan.block(Lane::Machine(id), problem.clone()),
            (None, Some(_)) if uids_known => register(plan, id, &mut uids, context),
            (None, Some(_)) => plan.wait(Lane::Machine(id), "the record of another machine cannot be read"),
            (Some(Look::Known(MachineSeen { record, process: Process::Gone })), _) if !record.holders().is_empty() => {
                plan.step(Step::ReleaseHolders { id, holders: record.holders().to_vec() });
            }
            (Some(Look::Known(seen_machine)), Some(machine)) if machine.power == Power::Running => {
                run(plan, spec, seen, context, machine, seen_machine);
            }
            (Some(Look::Known(seen_machine)), wanted) => stop(plan, context, seen_machine, wanted.is_some()),
            (None, None) => {}
        }
    }
}

fn register(plan: &mut Plan, id: MachineId, uids: &mut BTreeSet<u32>, context: &Context) {
    if let Some(uid) = context.uids.clone().find(|uid| !uids.contains(uid)) {
        uids.insert(uid);
        plan.step(Step::RegisterMachine { id, uid });
    } else {
        let message = format!("register vm {id}: all {} user ids are in use", context.uids.len());
        plan.block(Lane::Machine(id), Problem { message, remedy: "raise machines.uid_count".to_owned() });
    }
}

fn run(plan: &mut Plan, spec: &NodeSpec, seen: &Seen, context: &Context, machine: &Machine, look: &MachineSeen) {
    let lane = Lane::Machine(machine.id);
    match &look.process {
        Process::Gone => match next_launch(&look.record, machine, context) {
            NextLaunch::After(losses) => launch(plan, spec, seen, context, (machine, losses)),
            NextLaunch::RecordFirst(end) => plan.step(Step::RecordEnd { id: machine.id, end }),
            NextLaunch::No => plan.right(lane),
        },
        Process::Silent { why } => plan.wait(lane, format!("its VMM does not answer: {why}")),
        Process::Alive { state: State::Created, .. } => match parts(spec, look.record.uid, machine) {
            Some(parts) => plan.step(Step::ConfigureMachine(Box::new(parts))),
            None => plan.wait(lane, "the spec does not hold all its parts"),
        },
        Process::Alive { state: State::Configured, .. } => plan.step(Step::StartMachine(machine.id)),
        Process::Alive { state: State::Running | State::Paused, .. } => match unnoted(spec, machine, &look.record) {
            volumes if volumes.is_empty() => plan.right(lane),
            volumes => plan.step(Step::NoteHolders { id: machine.id, volumes }),
        },
        Process::Alive { state, reason, .. } => reap(plan, machine.id, *state, reason.as_deref()),
    }
}

/// The volumes in Ceph that a running machine writes to, if its locks there have not been noted.
fn unnoted(spec: &NodeSpec, machine: &Machine, record: &MachineRecord) -> Vec<Volume> {
    if record.launch.as_ref().is_none_or(|launch| launch.holders.is_some()) {
        return Vec::new();
    }
    let disks = machine.disks.iter().filter(|disk| !disk.read_only);
    let volumes = disks.filter_map(|disk| spec.volumes().get(&disk.volume));
    volumes.filter(|volume| volume.backend != VolumeBackend::Local).cloned().collect()
}

enum NextLaunch {
    /// Launch it, after processes lost at these times.
    After(Vec<u64>),
    RecordFirst(End),
    No,
}

/// Whether a machine without a process is to be launched. It is when its guest never ran, when it was told to start anew, when the host was
/// restarted under it and, a few times, when it lost its process; not when it shut itself down or crashed.
fn next_launch(record: &MachineRecord, machine: &Machine, context: &Context) -> NextLaunch {
    let Some(launch) = &record.launch else { return NextLaunch::After(Vec::new()) };
    if launch.machine.starts < machine.starts {
        return NextLaunch::After(Vec::new());
    }
    match launch {
        Launch { started: false, .. } => NextLaunch::After(launch.losses.clone()),
        Launch { end: Some(_), .. } => NextLaunch::No,
        _ if launch.boot_id != context.boot_id => NextLaunch::After(launch.losses.clone()),
        _ => {
            let recent = launch.losses.iter().filter(|at| context.now_ms.saturating_sub(**at) < LOSSES_WINDOW_MS);
            let mut losses: Vec<u64> = recent.copied().collect();
            if launch.shutdown_asked_ms.is_some() || losses.len() >= LOSSES_MAX {
                return NextLaunch::RecordFirst(lost(launch));
            }
            losses.push(context.now_ms);
            NextLaunch::After(losses)
        }
    }
}

fn lost(launch: &Launch) -> End {
    match (launch.shutdown_asked_ms, launch.losses.len()) {
        (Some(_), _) => End { crashed: false, reason: "its process ended after it was told to shut down".to_owned() },
        (None, 0) => End { crashed: true, reason: "its VMM process is gone".to_owned() },
        (None, more) => {
            let reason = format!("its VMM process is gone, and so were {more} before it: see its logs, then start it");
            End { crashed: true, reason }
        }
    }
}

/// Launches a machine, after processes of it that were lost at some times.
fn launch(plan: &mut Plan, spec: &NodeSpec, seen: &Seen, context: &Context, (machine, losses): (&Machine, Vec<u64>)) {
    let lane = Lane::Machine(machine.id);
    let ports: Vec<&Port> = machine.ports.iter().filter_map(|id| spec.network().ports.get(id)).collect();
    if let Some(port) = ports.iter().find(|port| !port.is_on(spec.host()) && !port.is_awaited_on(spec.host())) {
        let away =
            format!("its port {} is plugged in on another host: flowctl port bind {0} brings it back", port.name);
        return plan.wait(lane, away);
    }
    let taps: Vec<String> = ports.into_iter().map(Port::tap_name).collect();
    let needs = machine
        .disks
        .iter()
        .map(|disk| Lane::Volume(disk.volume))
        .chain(std::iter::once(Lane::Image(machine.boot.kernel)))
        .chain(machine.boot.initrd.map(Lane::Image))
        .chain(taps.iter().cloned().map(Lane::Tap));
    let missing: Vec<String> = needs.filter_map(|need| plan.unready(&need)).collect();
    if !missing.is_empty() {
        return plan.wait(lane, missing.join("; "));
    }
    if let Some(disk) = machine.disks.iter().find(|disk| seen.may_use_volume(disk.volume)) {
        return plan.wait(lane, format!("volume {} is still open in another machine", disk.volume));
    }
    let launch = Launch {
        machine: machine.clone(),
        taps,
        boot_id: context.boot_id.clone(),
        started: false,
        shutdown_asked_ms: None,
        end: None,
        losses,
        holders: None,
    };
    plan.step(Step::LaunchMachine { id: machine.id, launch: Box::new(launch) });
}

/// What a machine is made of; none when the spec lacks a part, which a checked spec does not.
fn parts(spec: &NodeSpec, uid: u32, machine: &Machine) -> Option<MachineParts> {
    let network = spec.network();
    let nets = machine.ports.iter().map(|id| {
        let port = network.ports.get(id)?;
        let mtu = network.networks.get(&port.network)?.mtu;
        Some(MachineNet { port: *id, tap: port.tap_name(), mac: port.mac, mtu })
    });
    let initrd = match machine.boot.initrd {
        Some(id) => Some(spec.images().get(&id)?.clone()),
        None => None,
    };
    Some(MachineParts {
        machine: machine.clone(),
        uid,
        kernel: spec.images().get(&machine.boot.kernel)?.clone(),
        initrd,
        volumes: machine.disks.iter().map(|disk| spec.volumes().get(&disk.volume).cloned()).collect::<Option<_>>()?,
        nets: nets.collect::<Option<_>>()?,
    })
}

fn stop(plan: &mut Plan, context: &Context, look: &MachineSeen, wanted: bool) {
    let id = look.record.id;
    let lane = Lane::Machine(id);
    let asked = look.record.launch.as_ref().and_then(|launch| launch.shutdown_asked_ms);
    let grace_is_over = asked.map(|at| context.now_ms.saturating_sub(at) >= context.shutdown_grace_ms);
    match (&look.process, grace_is_over) {
        (Process::Gone, _) => match &look.record.launch {
            Some(launch) if launch.started && launch.end.is_none() => {
                plan.step(Step::RecordEnd { id, end: lost(launch) })
            }
            _ if wanted => plan.right(lane),
            _ => plan.step(Step::ForgetMachine(id)),
        },
        (Process::Alive { state: state @ (State::Shutdown | State::Crashed), reason, .. }, _) => {
            reap(plan, id, *state, reason.as_deref());
        }
        (Process::Alive { state: State::Created | State::Configured, .. }, _) => {
            let end = End { crashed: false, reason: "it was stopped before it ran".to_owned() };
            plan.step(Step::ReapMachine { id, end });
        }
        (Process::Alive { state: State::Running | State::Paused, .. } | Process::Silent { .. }, None) => {
            plan.step(Step::AskShutdown(id));
        }
        (_, Some(false)) => plan.wait(lane, "it was told to shut down"),
        (_, Some(true)) => plan.step(Step::ForceStop(id)),
    }
}

fn reap(plan: &mut Plan, id: MachineId, state: State, reason: Option<&str>) {
    let crashed = state == State::Crashed;
    let reason = reason.unwrap_or(if crashed { "it crashed" } else { "it shut down" }).to_owned();
    plan.step(Step::ReapMachine { id, end: End { crashed, reason } });
}

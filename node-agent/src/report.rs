//! What the scheduler is told: the last look, in its words.

use model::HostId;
use model::balancer::{MemberHealth, MemberRef};
use model::machine::Power;
use model::observed::{ImageState, MachineState, Observed, PortState, Problem, Report, Resources, VolumeState};
use model::spec::{Generation, NodeSpec};
use model::{ImageId, MachineId, PortId, VolumeId};
use vmm::state::State;

use crate::plan::Lane;
use crate::reconcile::Snapshot;
use crate::seen::{Look, MachineSeen, Process, Seen};

/// The report of a host.
#[must_use]
pub fn report(host: HostId, snapshot: &Snapshot, resources: Resources) -> Report {
    let mut report = Report {
        host,
        accepted: Generation(0),
        settled: snapshot.settled,
        resources,
        machines: Vec::new(),
        ports: Vec::new(),
        volumes: Vec::new(),
        images: Vec::new(),
        members: Vec::new(),
        arrived: Vec::new(),
        problems: Vec::new(),
    };
    let (Some(spec), Some(seen)) = (&snapshot.spec, &snapshot.seen) else {
        report.accepted = snapshot.spec.as_ref().map_or(Generation(0), |spec| spec.generation());
        return report;
    };
    report.accepted = spec.generation();
    report.machines = machines(spec, seen, snapshot);
    report.ports = ports(spec, seen, snapshot);
    report.volumes = volumes(spec, seen, snapshot);
    report.images = images(spec, seen, snapshot);
    report.members = members(spec, seen);
    report.arrived = seen.arrived.iter().copied().filter(|arrived| spec.network().awaits(*arrived)).collect();
    report.problems = host_problems(seen, snapshot);
    report
}

/// What keeps a lane from being as it should.
fn problem(snapshot: &Snapshot, lane: &Lane) -> Option<Problem> {
    let failed = snapshot.resting.get(lane).map(|resting| resting.problem.clone());
    failed.or_else(|| snapshot.plan.blocked.get(lane).cloned())
}

fn machines(spec: &NodeSpec, seen: &Seen, snapshot: &Snapshot) -> Vec<Observed<MachineId, MachineState>> {
    let found = seen.machines.known();
    let ids: std::collections::BTreeSet<MachineId> =
        spec.machines().keys().chain(found.into_iter().flat_map(|found| found.keys())).copied().collect();
    let states = ids.into_iter().map(|id| {
        let look = found.map(|found| found.get(&id));
        let wanted = spec.machines().get(&id).is_some_and(|machine| machine.power == Power::Running);
        let state = match look {
            None | Some(Some(Look::Unknown(_))) => MachineState::Unknown,
            Some(None) if wanted => MachineState::Starting,
            Some(None) => MachineState::Absent,
            Some(Some(Look::Known(machine))) => machine_state(machine, wanted, snapshot),
        };
        let lane = Lane::Machine(id);
        let ended = look.flatten().and_then(Look::known).and_then(crash);
        // What it waits for is most often an object with a problem of its own: say that one.
        let waits = snapshot
            .plan
            .waiting
            .get(&lane)
            .filter(|_| state == MachineState::Starting)
            .map(|reason| Problem { message: format!("waits: {reason}"), remedy: String::new() });
        Observed { id, state, problem: problem(snapshot, &lane).or(ended).or(waits) }
    });
    states.collect()
}

/// How a machine with a record is.
#[must_use]
pub fn machine_state(machine: &MachineSeen, wanted: bool, snapshot: &Snapshot) -> MachineState {
    let launch = machine.record.launch.as_ref();
    let asked = launch.is_some_and(|launch| launch.shutdown_asked_ms.is_some());
    let to_be_launched = snapshot.plan.steps.contains_key(&Lane::Machine(machine.record.id))
        || snapshot.plan.waiting.contains_key(&Lane::Machine(machine.record.id));
    match &machine.process {
        Process::Alive { state: State::Created | State::Configured, .. } => MachineState::Starting,
        Process::Alive { state: State::Running, .. } if asked => MachineState::Stopping,
        Process::Alive { state: State::Running, .. } => MachineState::Running,
        Process::Alive { state: State::Paused, .. } => MachineState::Paused,
        Process::Alive { state: State::Shutdown, .. } => MachineState::Stopped,
        Process::Alive { state: State::Crashed, .. } => MachineState::Crashed,
        Process::Silent { .. } if launch.is_some_and(|launch| !launch.started) => MachineState::Starting,
        Process::Silent { .. } => MachineState::Unknown,
        Process::Gone if wanted && to_be_launched => MachineState::Starting,
        Process::Gone => match launch.and_then(|launch| launch.end.as_ref()) {
            Some(end) if end.crashed => MachineState::Crashed,
            _ => MachineState::Stopped,
        },
    }
}

fn crash(machine: &MachineSeen) -> Option<Problem> {
    let end = machine.record.launch.as_ref()?.end.as_ref().filter(|end| end.crashed)?;
    Some(Problem {
        message: format!("vm {} crashed: {}", machine.record.id, end.reason),
        remedy: "look at its console and VMM log; start it again to bring it back".to_owned(),
    })
}

fn ports(spec: &NodeSpec, seen: &Seen, snapshot: &Snapshot) -> Vec<Observed<PortId, PortState>> {
    let wired = spec.network().local_ports().chain(spec.network().awaited_ports());
    let states = wired.map(|port| {
        let tap = spec.network().tap_of(port).tap_name();
        let lane = Lane::Tap(tap.clone());
        let state = match (&seen.taps, &seen.switch) {
            (Look::Known(taps), Look::Known(bridge)) => {
                let plugged = taps.contains_key(&tap) && bridge.ports.get(&tap).is_some_and(Option::is_some);
                if plugged && bridge.changes_pending == 0 { PortState::Up } else { PortState::Down }
            }
            _ => PortState::Unknown,
        };
        Observed { id: port.id, state, problem: problem(snapshot, &lane).or_else(|| problem(snapshot, &Lane::Flows)) }
    });
    states.collect()
}

fn volumes(spec: &NodeSpec, seen: &Seen, snapshot: &Snapshot) -> Vec<Observed<VolumeId, VolumeState>> {
    let wanted = spec.volumes().values().chain(spec.retired_volumes().values());
    let states = wanted.map(|volume| {
        let lane = Lane::Volume(volume.id);
        let state = match seen.volumes.get(&volume.id) {
            None | Some(Look::Unknown(_)) => VolumeState::Unknown,
            Some(Look::Known(Some(_))) if seen.machines.known().is_some() && seen.may_use_volume(volume.id) => {
                VolumeState::InUse
            }
            Some(Look::Known(Some(_))) => VolumeState::Available,
            Some(Look::Known(None)) if spec.volumes().contains_key(&volume.id) => VolumeState::Creating,
            Some(Look::Known(None)) => VolumeState::Absent,
        };
        let base = match volume.source {
            model::volume::VolumeSource::Image(image) => {
                let base = crate::seen::Base { image, backend: volume.backend.clone() };
                problem(snapshot, &Lane::Base(base)).or_else(|| problem(snapshot, &Lane::Image(image)))
            }
            model::volume::VolumeSource::Empty => None,
        };
        Observed {
            id: volume.id,
            state,
            problem: problem(snapshot, &lane).or(base.filter(|_| state == VolumeState::Creating)),
        }
    });
    states.collect()
}

fn images(spec: &NodeSpec, seen: &Seen, snapshot: &Snapshot) -> Vec<Observed<ImageId, ImageState>> {
    let states = spec.images().keys().map(|id| {
        let lane = Lane::Image(*id);
        let state = match &seen.images {
            Look::Unknown(_) => ImageState::Unknown,
            Look::Known(here) if here.contains(id) => ImageState::Present,
            Look::Known(_) if snapshot.busy.contains_key(&lane) => ImageState::Fetching,
            Look::Known(_) => ImageState::Absent,
        };
        Observed { id: *id, state, problem: problem(snapshot, &lane) }
    });
    states.collect()
}

/// What was found out of members that the specification has checked: what was found before it came is of no use with the generation that is said.
fn members(spec: &NodeSpec, seen: &Seen) -> Vec<MemberHealth> {
    let is_checked = |about: &MemberRef| {
        let balancer = spec.network().balancers.get(&about.balancer);
        let mut listeners = balancer.into_iter().flat_map(|it| &it.listeners);
        let listener = listeners.find(|it| (it.protocol, it.port) == (about.protocol, about.listener));
        let members = listener.filter(|it| it.checks().is_some()).map(|it| &it.members);
        members.into_iter().flatten().any(|it| (it.address, it.port) == (about.address, about.port))
    };
    seen.health.iter().filter(|health| is_checked(&health.member)).cloned().collect()
}

fn host_problems(seen: &Seen, snapshot: &Snapshot) -> Vec<Problem> {
    let mut problems: Vec<Problem> =
        [seen.switch.problem(), seen.taps.problem(), seen.images.problem(), seen.machines.problem()]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
    problems.extend(snapshot.resting.get(&Lane::Flows).map(|resting| resting.problem.clone()));
    problems
}

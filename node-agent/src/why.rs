//! What stops a packet or a machine, in one line with the way out (`flowctl why`).
//!
//! A packet is asked about five times: by the model of the flows that should be ([`dataplane::trace::blame`]), by Open vSwitch, which has the flows
//! that are, by what this host knows of the machine that would take it, by the switch's count where a listener has a limit, and by a question to the host that it would go to. The first that objects is the
//! answer.

use std::net::Ipv4Addr;
use std::path::Path;

use dataplane::switch::counters;
use dataplane::trace::{Blame, Cause, Connection, Packet, PacketError, Room, Verdict, blame};
use model::MachineId;
use model::network::{Binding, Port};
use model::observed::{MachineState, Observed, Resources};
use model::spec::NodeSpec;
use serde::Serialize;

use crate::ask::{self, AskError, Flows, Question, Traced};
use crate::plan::Lane;
use crate::probe::{Reach, probe};
use crate::reconcile::Snapshot;
use crate::report;

/// What stops a packet or a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Why {
    /// The answer in one line.
    pub line: String,
    /// Whether anything stops it.
    pub stopped: bool,
    /// What is to blame, for a packet that is stopped: `no_rule`, `no_route`, `spoofed_source`, `stale_flows`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub cause: Option<Cause>,
    /// The way out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// What led to it, in order.
    pub details: Vec<String>,
}

fn machine_report(spec: &NodeSpec, snapshot: &Snapshot, id: MachineId) -> Option<Observed<MachineId, MachineState>> {
    snapshot.spec.as_ref()?;
    let report = report::report(spec.host(), snapshot, Resources::default());
    report.machines.into_iter().find(|entry| entry.id == id)
}

/// What stops a machine from running.
///
/// # Errors
/// [`AskError::Unknown`].
pub fn machine(spec: &NodeSpec, snapshot: &Snapshot, name: &str) -> Result<Why, AskError> {
    let found = spec.machines().values().find(|vm| vm.id.to_string() == name || vm.name == name);
    let machine = found.ok_or_else(|| AskError::Unknown { what: "vm", name: name.to_owned() })?;
    let entry = machine_report(spec, snapshot, machine.id);
    let lane = Lane::Machine(machine.id);
    let mut details = Vec::new();
    if let Some(step) = snapshot.busy.get(&lane) {
        details.push(format!("under way: {step}"));
    }
    if let Some(reason) = snapshot.plan.waiting.get(&lane) {
        details.push(format!("waits: {reason}"));
    }
    for (lane, resting) in &snapshot.resting {
        details
            .push(format!("{lane}: {} failed {} times: {}", resting.step, resting.failures, resting.problem.message));
        if !resting.problem.remedy.is_empty() {
            details.push(format!("way out: {}", resting.problem.remedy));
        }
    }
    let state =
        entry.as_ref().map_or_else(|| "unknown".to_owned(), |entry| format!("{:?}", entry.state).to_lowercase());
    let problem = entry.as_ref().and_then(|entry| entry.problem.as_ref());
    let wanted = format!("{:?}", machine.power).to_lowercase();
    let line = match problem {
        Some(problem) => format!("vm {} is {state}: {}", machine.name, problem.message),
        None if state == wanted => format!("vm {} is {state}, as it should be", machine.name),
        None => format!("vm {} is {state} and should be {wanted}", machine.name),
    };
    let stopped = problem.is_some() || state != wanted;
    Ok(Why { line, stopped, cause: None, remedy: problem.map(|problem| problem.remedy.clone()), details })
}

/// A packet that is asked about.
#[derive(Debug)]
pub struct Asked<'a> {
    /// The question.
    pub question: &'a Question,
    /// How large it is, with its IP header; none: small enough.
    pub octets: Option<u32>,
    /// Its sender.
    pub sender: &'a Port,
    /// Where its sender is plugged in, if that is another host.
    pub elsewhere: Option<&'a Binding>,
}

/// What stops a packet.
///
/// # Errors
/// [`AskError`] when the question has no meaning.
pub async fn packet(
    spec: &NodeSpec,
    snapshot: &Snapshot,
    flows: &Flows<'_>,
    asked: &Asked<'_>,
    switch: (&Path, &str),
) -> Result<Why, AskError> {
    let (packet, connection) = match ask::packet(spec, flows, asked.question) {
        Ok(made) => made,
        Err(AskError::Packet(error)) => return asked.unmade(error),
        Err(error) => return Err(error),
    };
    let traced = ask::traced(flows, &packet, connection, switch).await;
    let found = asked.found(spec, snapshot, flows, (&packet, connection), &traced);
    let found = match found {
        None => of_room(&traced, switch).await,
        found => found,
    };
    let (blame, heard) = match (found, host_after(&traced)) {
        (None, Some((host, name))) => of_host(&name, host, probe(flows.network.tunnel, host).await),
        (found, _) => (found, None),
    };
    Ok(asked.answer(&traced, blame, heard))
}

impl Asked<'_> {
    /// The first that objects.
    fn found(
        &self,
        spec: &NodeSpec,
        snapshot: &Snapshot,
        flows: &Flows<'_>,
        (packet, _): (&Packet, Connection),
        traced: &Traced,
    ) -> Option<Blame> {
        let too_large = self.octets.and_then(|octets| Blame::of_size(flows.network, self.sender, octets));
        let refused = || blame(flows.network, flows.numbers, packet, &traced.path);
        let too_large = too_large.or_else(|| Blame::of_way(&traced.path, self.octets?));
        too_large.or_else(refused).or_else(|| of_switch(traced)).or_else(|| of_receiver(spec, snapshot, traced))
    }

    fn answer(&self, traced: &Traced, blame: Option<Blame>, heard: Option<String>) -> Why {
        let asked = self.words();
        let note = self.elsewhere.map(|at| {
            let (port, host, tunnel) = (&self.question.port, at.host, at.tunnel);
            format!(
                "{port} is on host {host} at {tunnel}: ask there whether the packet leaves it; this is what happens to it here"
            )
        });
        let hops = traced.path.hops.iter().map(|hop| format!("table {} {}: {}", hop.table, hop.name, hop.meaning));
        let details = note.into_iter().chain(hops).chain(traced.copies.iter().cloned()).chain(heard).collect();
        match blame {
            Some(blame) => stopped(&asked, blame, details),
            None => Why {
                line: format!("{asked} passes on this host: {}", traced.line),
                stopped: false,
                cause: None,
                remedy: None,
                details,
            },
        }
    }

    /// No packet can be made: that is an answer where the network is to blame, and an error where the question is.
    fn unmade(&self, error: PacketError) -> Result<Why, AskError> {
        let found = Blame::of_error(&error).ok_or(error)?;
        Ok(stopped(&self.words(), found, Vec::new()))
    }

    fn words(&self) -> String {
        let question = self.question;
        let asked = match question.dst_port {
            Some(port) => format!("{} from {} to {} port {port}", question.proto, question.port, question.dst),
            None => format!("{} from {} to {}", question.proto, question.port, question.dst),
        };
        match self.elsewhere {
            Some(at) => format!("{asked}, out of the tunnel from {},", at.tunnel),
            None => asked,
        }
    }
}

fn stopped(asked: &str, blame: Blame, details: Vec<String>) -> Why {
    let line = format!("{asked} is stopped: {}", blame.line);
    Why { line, stopped: true, cause: Some(blame.cause), remedy: Some(blame.remedy), details }
}

/// The model lets it out; what of the switch?
fn of_switch(traced: &Traced) -> Option<Blame> {
    if let Some(problem) = &traced.problem {
        let remedy = "systemctl status openvswitch-switch; flowctl doctor";
        return Some(Blame::new(Cause::SwitchDown, format!("Open vSwitch does not answer: {problem}"), remedy));
    }
    let difference = traced.disagreement.as_ref()?;
    let line = format!("the flows in the switch are not those that should be: {difference}");
    Some(Blame::new(
        Cause::StaleFlows,
        line,
        "flowctl flow diff shows the flows; those that are ours the agent puts right",
    ))
}

/// A listener gives it to a member; has that listener room?
async fn of_room(traced: &Traced, (run_dir, bridge): (&Path, &str)) -> Option<Blame> {
    let room = Room::of(&traced.path).filter(|_| traced.path.connection == Connection::New)?;
    // A switch that does not answer was blamed before.
    let open = counters::open_connections(&run_dir.join(format!("{bridge}.mgmt")), room.cookie).await.ok()?;
    room.blame(open)
}

/// The switch gives it to a port here; does its machine run?
fn of_receiver(spec: &NodeSpec, snapshot: &Snapshot, traced: &Traced) -> Option<Blame> {
    let delivered = traced.path.outcomes.iter().find_map(|outcome| match &outcome.verdict {
        Verdict::Delivered { port, .. } => Some(*port),
        _ => None,
    })?;
    let port = spec.network().ports.values().find(|port| port.key == delivered)?;
    let machine = port.binding.as_ref()?.machine;
    let entry = machine_report(spec, snapshot, machine).filter(|entry| entry.state != MachineState::Running)?;
    let name = spec.machines().get(&machine).map_or_else(|| machine.to_string(), |machine| machine.name.clone());
    let state = format!("{:?}", entry.state).to_lowercase();
    let line = format!("it reaches port {}, but vm {name} is {state}", port.name);
    Some(Blame::new(Cause::MachineDown, line, format!("flowctl vm start {name}; flowctl why --from {name}")))
}

/// The one host that it goes to by tunnel, and how it is called.
fn host_after(traced: &Traced) -> Option<(Ipv4Addr, String)> {
    let [outcome] = traced.path.outcomes.as_slice() else { return None };
    match &outcome.verdict {
        Verdict::Tunnelled { endpoint, host: Some(host), .. } => {
            Some((*endpoint, format!("host {host} at {endpoint}")))
        }
        Verdict::Tunnelled { endpoint, host: None, .. } => Some((*endpoint, format!("the host at {endpoint}"))),
        _ => None,
    }
}

/// It leaves for another host; is that one there? What was heard of it otherwise is a detail.
fn of_host(name: &str, endpoint: Ipv4Addr, reach: Reach) -> (Option<Blame>, Option<String>) {
    match reach {
        Reach::Unreachable(error) => {
            let line = format!("it leaves for {name}, which cannot be reached: {error}");
            let remedy = format!(
                "flowctl host list; ping {endpoint}; flowctl host evacuate NAME --force places its machines on others"
            );
            (Some(Blame::new(Cause::HostDown, line, remedy)), None)
        }
        Reach::Answers => (None, Some(format!("{name} answers"))),
        Reach::Silent => {
            (None, Some(format!("{name} does not answer, nor does the network say that it is down: ping {endpoint}")))
        }
        Reach::NotAsked(error) => (None, Some(format!("{name} was not asked whether it is up: {error}"))),
    }
}

//! The bodies of the local API.

use std::path::PathBuf;

use dataplane::{Changes, FlowSet, Installed, Step};
use model::machine::Power;
use model::observed::Problem;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Api, ApiError};
use crate::ask::Question;
use crate::config::{Config, SpecSource};
use crate::process::MachineDir;
use crate::reconcile::Snapshot;
use crate::report::machine_state;
use crate::seen::{Look, Process};

/// How the agent is.
#[derive(Debug, Serialize, ToSchema)]
pub struct Status {
    /// The host's id, once it is known.
    host: Option<String>,
    /// The host's name, once joined.
    name: Option<String>,
    /// The agent's version.
    version: &'static str,
    /// Where specs come from: scheduler, file or api.
    source: &'static str,
    /// The generation in force.
    generation: u64,
    /// The newest generation that nothing is left to do for.
    settled_generation: u64,
    /// Whether the generation in force is settled.
    settled: bool,
    /// The link to the scheduler.
    #[schema(value_type = Option<Object>)]
    link: Option<crate::link::LinkStatus>,
    /// Machines in the spec.
    machines: usize,
    /// Machines that run.
    running: usize,
    /// What is under way.
    busy: Vec<Line>,
    /// What waits, and for what.
    waiting: Vec<Line>,
    /// What failed last, and what could not be seen.
    failing: Vec<Failing>,
    /// How long the last look took, milliseconds.
    look_ms: u64,
    /// How many looks there were.
    looks: u64,
    /// Seconds since the agent started.
    uptime_seconds: u64,
    /// Resident memory, KiB.
    resident_kib: u64,
}

/// An object and a word about it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Line {
    object: String,
    what: String,
}

/// An object that is not as it should be.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Failing {
    object: String,
    step: Option<&'static str>,
    message: String,
    remedy: String,
    failures: u32,
    retry_at_ms: Option<u64>,
}

fn failing(snapshot: &Snapshot) -> Vec<Failing> {
    let rested = snapshot.resting.iter().map(|(lane, resting)| Failing {
        object: lane.to_string(),
        step: Some(resting.step),
        message: resting.problem.message.clone(),
        remedy: resting.problem.remedy.clone(),
        failures: resting.failures,
        retry_at_ms: Some(resting.retry_at_ms),
    });
    let blocked = snapshot.plan.blocked.iter().map(|(lane, Problem { message, remedy })| Failing {
        object: lane.to_string(),
        step: None,
        message: message.clone(),
        remedy: remedy.clone(),
        failures: 0,
        retry_at_ms: None,
    });
    rested.chain(blocked).collect()
}

impl Status {
    pub(super) fn new(api: &Api, snapshot: &Snapshot) -> Self {
        let line = |object: String, what: &str| Line { object, what: what.to_owned() };
        let spec = snapshot.spec.as_deref();
        let generation = spec.map_or(0, |spec| spec.generation().0);
        let host =
            api.identity.as_ref().map(|identity| identity.host).or_else(|| spec.map(model::spec::NodeSpec::host));
        let vms = vms(&api.config, snapshot);
        Self {
            host: host.map(|host| host.to_string()),
            name: api.identity.as_ref().map(|identity| identity.name.clone()),
            version: env!("CARGO_PKG_VERSION"),
            source: match api.config.spec.source {
                SpecSource::Scheduler => "scheduler",
                SpecSource::File(_) => "file",
                SpecSource::Api => "api",
            },
            generation,
            settled_generation: snapshot.settled.0,
            settled: generation > 0 && snapshot.settled.0 == generation && snapshot.plan.is_settled(),
            link: api.link.borrow().clone(),
            machines: spec.map_or(0, |spec| spec.machines().len()),
            running: vms.iter().filter(|vm| vm.state == "running").count(),
            busy: snapshot.busy.iter().map(|(lane, step)| line(lane.to_string(), step)).collect(),
            waiting: snapshot.plan.waiting.iter().map(|(lane, why)| line(lane.to_string(), why)).collect(),
            failing: failing(snapshot),
            look_ms: snapshot.look_ms,
            looks: snapshot.looks,
            uptime_seconds: api.started.elapsed().as_secs(),
            resident_kib: crate::metrics::resident_kib(),
        }
    }
}

/// A machine of this host.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Vm {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: String,
    /// How it should be: running, stopped, or absent.
    pub wanted: &'static str,
    /// Its VMM process.
    pub pid: Option<u32>,
    /// How many times it was told to start.
    pub starts: u32,
    /// Its user id.
    pub uid: Option<u32>,
    /// How it ended, if it did.
    pub ended: Option<String>,
    /// Its ports.
    pub ports: Vec<String>,
    /// Its volumes.
    pub volumes: Vec<String>,
    /// Its console, while it has a process.
    pub console: Option<Console>,
}

/// Where a console is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Console {
    /// A unix stream socket: raw bytes both ways.
    #[schema(value_type = String)]
    pub socket: PathBuf,
    /// What the guest wrote.
    #[schema(value_type = String)]
    pub log: PathBuf,
}

/// The machines of a snapshot.
pub(super) fn vms(config: &Config, snapshot: &Snapshot) -> Vec<Vm> {
    let Some(spec) = &snapshot.spec else { return Vec::new() };
    let found = snapshot.seen.as_ref().and_then(|seen| seen.machines.known());
    let ids: std::collections::BTreeSet<_> =
        spec.machines().keys().chain(found.into_iter().flat_map(|found| found.keys())).copied().collect();
    let vm = |id: model::MachineId| {
        let wanted = spec.machines().get(&id);
        let seen = found.and_then(|found| found.get(&id)).and_then(Look::known);
        let launched = seen.and_then(|seen| seen.record.launch.as_ref());
        let machine = wanted.or(launched.map(|launch| &launch.machine));
        let dir = MachineDir::new(&config.paths.run, id);
        let to_run = wanted.is_some_and(|machine| machine.power == Power::Running);
        let state = match seen {
            Some(seen) => format!("{:?}", machine_state(seen, to_run, snapshot)).to_lowercase(),
            None if found.is_none_or(|found| found.contains_key(&id)) => "unknown".to_owned(),
            None if to_run => "starting".to_owned(),
            None => "absent".to_owned(),
        };
        let console = || Console { socket: dir.console(), log: dir.console_log() };
        Vm {
            id: id.to_string(),
            name: machine.map_or_else(String::new, |machine| machine.name.clone()),
            state,
            wanted: match wanted.map(|machine| machine.power) {
                Some(Power::Running) => "running",
                Some(Power::Stopped) => "stopped",
                None => "absent",
            },
            pid: seen.and_then(|seen| match seen.process {
                Process::Alive { pid, .. } => Some(pid),
                _ => None,
            }),
            starts: machine.map_or(0, |machine| machine.starts),
            uid: seen.map(|seen| seen.record.uid),
            ended: launched.and_then(|launch| launch.end.as_ref()).map(|end| end.reason.clone()),
            ports: machine.into_iter().flat_map(|machine| &machine.ports).map(ToString::to_string).collect(),
            volumes: machine.into_iter().flat_map(|m| &m.disks).map(|disk| disk.volume.to_string()).collect(),
            console: seen.filter(|seen| seen.has_process()).map(|_| console()),
        }
    };
    ids.into_iter().map(vm).collect()
}

/// A port on this host.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PortBody {
    id: String,
    pub(super) name: String,
    vm: String,
    pub(super) hostname: String,
    network: String,
    vni: u32,
    mac: String,
    addresses: Vec<String>,
    groups: Vec<String>,
    key: u32,
    tap: String,
    /// The OpenFlow port number, once it works.
    pub(super) ofport: Option<u32>,
    /// The VLAN of a sub-port on that tap, which is its parent's; none: it has the tap, and the frames without a tag.
    pub(super) vlan: Option<u16>,
}

/// The local ports of a snapshot.
pub(super) fn ports(snapshot: &Snapshot) -> Vec<PortBody> {
    let Some(spec) = &snapshot.spec else { return Vec::new() };
    let network = spec.network();
    let numbers = snapshot.seen.as_ref().and_then(|seen| seen.switch.known()).map(|bridge| &bridge.ports);
    let body = |port: &model::network::Port| PortBody {
        id: port.id.to_string(),
        name: port.name.clone(),
        vm: port.binding.as_ref().map_or_else(String::new, |binding| binding.machine.to_string()),
        hostname: port.binding.as_ref().map_or_else(String::new, |binding| binding.hostname.clone()),
        network: port.network.to_string(),
        vni: network.networks.get(&port.network).map_or(0, |network| network.vni.get()),
        mac: port.mac.to_string(),
        addresses: port.addresses.iter().map(|fixed| fixed.address.to_string()).collect(),
        groups: port
            .groups
            .iter()
            .map(|id| network.groups.get(id).map_or_else(|| id.to_string(), |group| group.name.clone()))
            .collect(),
        key: port.key,
        tap: network.tap_of(port).tap_name(),
        ofport: numbers.and_then(|numbers| numbers.get(&network.tap_of(port).tap_name()).copied().flatten()),
        vlan: port.tag().map(model::provider::VlanId::get),
    };
    network.local_ports().map(body).collect()
}

/// Flows and groups.
#[derive(Debug, Serialize, ToSchema)]
pub struct FlowsBody {
    /// Flows in order of table and priority.
    pub flows: Vec<FlowBody>,
    /// Groups, in ovs-ofctl's syntax.
    pub groups: Vec<String>,
}

/// One flow.
#[derive(Debug, Serialize, ToSchema)]
pub struct FlowBody {
    /// Number of its table.
    pub table: u8,
    /// Name of its table.
    pub name: String,
    /// The flow in ovs-ofctl's syntax.
    pub flow: String,
    /// Whose it is and what it means.
    pub meaning: String,
}

impl FlowBody {
    /// A flow that is installed, in the words of the set that wants it, if it does.
    pub(super) fn installed(flow: &openflow::flow::Flow, set: &FlowSet) -> Self {
        Self {
            table: flow.table,
            name: table_name(flow.table),
            flow: flow.to_string(),
            meaning: set.describe(flow, set.entry(&flow.key()).and_then(|entry| entry.note.as_deref())),
        }
    }
}

pub(super) fn table_name(number: u8) -> String {
    let info = dataplane::table::TABLES.iter().find(|info| info.number == number);
    info.map_or_else(|| number.to_string(), |info| info.name.to_owned())
}

impl FlowsBody {
    pub(super) fn desired(set: &FlowSet) -> Self {
        let body = |entry: &dataplane::flow_set::Entry| FlowBody {
            table: entry.flow.table,
            name: table_name(entry.flow.table),
            flow: entry.flow.to_string(),
            meaning: set.describe(&entry.flow, entry.note.as_deref()),
        };
        Self { flows: set.entries().map(body).collect(), groups: set.groups().map(ToString::to_string).collect() }
    }

    pub(super) fn installed(installed: &Installed, set: &FlowSet) -> Self {
        Self {
            flows: installed.flows.iter().map(|flow| FlowBody::installed(flow, set)).collect(),
            groups: installed.groups.iter().map(ToString::to_string).collect(),
        }
    }
}

/// What differs.
#[derive(Debug, Serialize, ToSchema)]
pub struct FlowsDiff {
    /// Whether nothing differs.
    pub same: bool,
    /// What is missing or says something else.
    pub missing: Vec<String>,
    /// What is ours and should not be there.
    pub surplus: Vec<String>,
    /// What is not ours; left alone.
    pub foreign: Vec<String>,
    /// How many flows are right.
    pub unchanged: usize,
}

impl FlowsDiff {
    pub(super) fn new(changes: &Changes) -> Self {
        let (mut missing, mut surplus) = (Vec::new(), Vec::new());
        for step in changes.steps() {
            match step {
                Step::AddMeter(meter) | Step::ModifyMeter(meter) => missing.push(format!("meter {meter:?}")),
                Step::AddGroup(group) | Step::ModifyGroup(group) => missing.push(format!("group {group}")),
                Step::AddFlow(flow) => missing.push(flow.to_string()),
                Step::DeleteFlow(key) => {
                    surplus.push(format!("table={}, priority={}, {}", key.table, key.priority, key.matching));
                }
                Step::DeleteGroup(id) => surplus.push(format!("group {id}")),
                Step::DeleteMeter(id) => surplus.push(format!("meter {id}")),
            }
        }
        let groups = changes.foreign.groups.iter().map(|id| format!("group {id}"));
        Self {
            same: changes.is_empty(),
            missing,
            surplus,
            foreign: changes.foreign.flows.iter().map(ToString::to_string).chain(groups).collect(),
            unchanged: changes.unchanged_flows,
        }
    }
}

/// What stops a machine, or with a destination, a packet.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WhyQuestion {
    /// A machine, by id or name.
    #[serde(default)]
    pub vm: Option<String>,
    /// A port, by id or name.
    #[serde(default)]
    pub port: Option<String>,
    /// Where a packet goes: address, port or machine.
    #[serde(default)]
    pub dst: Option<String>,
    /// icmp, tcp, udp, or a number.
    #[serde(default)]
    pub proto: Option<String>,
    /// The destination port.
    #[serde(default, alias = "port_dst")]
    pub dst_port: Option<u16>,
    /// A source address other than the sender's own.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub src: Option<std::net::IpAddr>,
    /// How large the packet is, with its IP header.
    #[serde(default)]
    pub octets: Option<u32>,
}

impl WhyQuestion {
    /// The packet asked about; none when the question is about a machine.
    pub(super) fn packet(&self) -> Result<Option<Question>, ApiError> {
        let Some(name) = self.port.as_ref().or(self.vm.as_ref()) else {
            let mut error = ApiError::new(axum::http::StatusCode::BAD_REQUEST, "invalid", "name a vm or a port");
            error.field = Some("vm");
            return Err(error);
        };
        let Some(dst) = &self.dst else { return Ok(None) };
        Ok(Some(Question {
            port: name.clone(),
            dst: dst.clone(),
            proto: self.proto.clone().unwrap_or_else(|| "icmp".to_owned()),
            dst_port: self.dst_port,
            src_port: None,
            src: self.src,
            connection: None,
        }))
    }
}

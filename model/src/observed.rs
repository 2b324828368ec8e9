//! What a host is: what its agent saw when it last looked, as it reports it.
//!
//! "Unknown" is a value: what could not be seen is not taken for absent.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::arrival::Arrived;
use crate::balancer::MemberHealth;
use crate::id::{HostId, ImageId, MachineId, PortId, VolumeId};
use crate::provider::PhysicalNetwork;
use crate::spec::Generation;

/// One report of a host; also its heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The host.
    pub host: HostId,
    /// The newest spec that the agent accepted; 0 before the first.
    pub accepted: Generation,
    /// The newest spec that nothing is left to do for; 0 before the first.
    pub settled: Generation,
    /// What the host can give.
    pub resources: Resources,
    /// Every machine that is wanted or was found.
    pub machines: Vec<Observed<MachineId, MachineState>>,
    /// Every local port that is wanted.
    pub ports: Vec<Observed<PortId, PortState>>,
    /// Every volume that is wanted or retired.
    pub volumes: Vec<Observed<VolumeId, VolumeState>>,
    /// Every image that is wanted.
    pub images: Vec<Observed<ImageId, ImageState>>,
    /// Every member of a load balancer here that is checked and of which there is a verdict. Written only where there are some: a scheduler from before
    /// them refuses what it does not know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberHealth>,
    /// Every port that was awaited here and whose machine spoke here, until a specification has it here. Written only where there are some, as members.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arrived: Vec<Arrived>,
    /// What keeps the host as a whole from being what it should.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Whether it says anything but what the report before said. Why a member is as it is, is no news: a machine could make it another at each check.
    #[must_use]
    pub fn is_news_after(&self, before: &Self) -> bool {
        let verdicts = |report: &Self| report.members.iter().map(|it| (it.member, it.online)).collect::<Vec<_>>();
        let rest = |report: &Self| Self { members: Vec::new(), ..report.clone() };
        self != before && (verdicts(self) != verdicts(before) || rest(self) != rest(before))
    }
}

/// One object as seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Observed<I, S> {
    /// Which object.
    pub id: I,
    /// How it is.
    pub state: S,
    /// What keeps it from being what it should, if anything does.
    pub problem: Option<Problem>,
}

/// What a host can give, its own use already taken off.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Logical CPUs.
    pub cpus: u32,
    /// Memory for machines, in MiB.
    pub memory_mib: u64,
    /// Space for local volumes, in MiB.
    pub storage_mib: u64,
    /// Whether machines can run: /dev/kvm opens and answers.
    pub kvm: bool,
    /// Whether RBD volumes can be opened: librbd loads and the cluster answers.
    pub rbd: bool,
    /// Whether flows can be programmed: Open vSwitch answers.
    pub switch: bool,
    /// The physical networks that it is wired to.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub physical_networks: BTreeSet<PhysicalNetwork>,
    /// Thousands of bits a second of its link to a physical network that may be promised, where it keeps minimums of ports there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bandwidth_kbps: BTreeMap<PhysicalNetwork, NonZeroU32>,
    /// Whether it must not be the gateway of routers with an address outside, because its switch does not stand translating (Open vSwitch 3.1 in user
    /// space ends when many connections that are translated come and go). Written only where it is so; agents that do not say are able.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_snat: bool,
    /// The agent's version.
    pub version: String,
}

/// How a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineState {
    /// It could not be seen.
    Unknown,
    /// There is no process for it.
    Absent,
    /// It is being brought up: volumes, ports, process.
    Starting,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs are held.
    Paused,
    /// It was told to shut down and has not yet.
    Stopping,
    /// It is shut down.
    Stopped,
    /// Its VMM ended without being told to.
    Crashed,
}

/// How a port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortState {
    /// It could not be seen.
    Unknown,
    /// Its tap or its flows are missing.
    Down,
    /// Its tap is on the bridge and its flows are installed.
    Up,
}

/// How a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// It could not be seen.
    Unknown,
    /// It does not exist.
    Absent,
    /// It is being made.
    Creating,
    /// It exists and can be opened.
    Available,
    /// A machine here has it open.
    InUse,
}

/// How an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageState {
    /// It could not be seen.
    Unknown,
    /// It is not here.
    Absent,
    /// It is being fetched.
    Fetching,
    /// It is here and its digest is right.
    Present,
}

/// Something that is not as it should be, with the way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Problem {
    /// What was attempted and why it failed, the whole chain of causes in one line.
    pub message: String,
    /// What an operator can do about it; empty when nothing is known.
    pub remedy: String,
}

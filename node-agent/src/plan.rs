//! What to do next: a pure function from what should be and what was seen.
//!
//! A [`Plan`] holds the steps that can be taken now, at most one for each [`Lane`], so that they do not depend on each other; what has to wait
//! for them is named with its reason, and what is right already is named too. Taking the steps and looking again leads to the next plan, until
//! there is nothing left: then the spec is settled. A step repeated is harmless. What could not be seen leads to no step.
//!
//! ```text
//! image fetched -> base imported -> volume made --+
//! machine registered -> tap made -> tap plugged --+-> process launched -> configured -> started -> locks noted -> (ended) -> reaped
//!                          (flows programmed)        power button -> after the grace: force -> reaped -> forgotten -> tap unplugged -> deleted
//!                                                    process lost -> locks released -> launched again
//! ```

use std::collections::{BTreeMap, BTreeSet};

use model::image::Image;
use model::observed::Problem;
use model::spec::{HostNetwork, NodeSpec};
use model::volume::Volume;
use model::{ImageId, MachineId, PortId, VolumeId};
use serde::Serialize;

use crate::driver::{BaseImage, MachineParts, Plug};
use crate::record::{End, Holder, Launch};
use crate::seen::{Base, Seen, Tap};

mod machine;
mod network;
mod volume;

/// What a step is about; steps of different lanes do not disturb each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// An image in the cache.
    Image(ImageId),
    /// An image on a backend.
    Base(Base),
    /// A volume.
    Volume(VolumeId),
    /// A tap, by name, and its place on the bridge.
    Tap(String),
    /// The flows of the bridge.
    Flows,
    /// A machine and its process.
    Machine(MachineId),
}

impl std::fmt::Display for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Image(id) => write!(f, "image {id}"),
            Self::Base(base) => write!(f, "image {} on {:?}", base.image, base.backend),
            Self::Volume(id) => write!(f, "volume {id}"),
            Self::Tap(name) => write!(f, "tap {name}"),
            Self::Flows => f.write_str("flows"),
            Self::Machine(id) => write!(f, "vm {id}"),
        }
    }
}

/// One thing to do. It holds all that doing it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Bring an image here; `keep` must not be thrown out for it.
    FetchImage {
        /// The image.
        image: Image,
        /// What the spec wants.
        keep: Vec<Image>,
    },
    /// Make an image ready on a backend.
    ImportImage(BaseImage),
    /// Make a volume.
    CreateVolume {
        /// The volume.
        volume: Volume,
        /// The image whose base it is cloned from; none makes it empty.
        image: Option<Image>,
    },
    /// Make a volume larger.
    GrowVolume(Volume),
    /// Delete a retired volume.
    DeleteVolume(Volume),
    /// Make a tap or put it right.
    SetTap {
        /// Its name.
        tap: String,
        /// The port that it is for.
        port: PortId,
        /// How it should be.
        want: Tap,
    },
    /// Put a tap on the bridge.
    PlugTap(Plug),
    /// Take a tap off the bridge.
    UnplugTap(String),
    /// Delete a tap.
    DeleteTap(String),
    /// Bring the installed flows to what the network wants.
    ProgramFlows(Box<HostNetwork>),
    /// Give a machine its user id and its record.
    RegisterMachine {
        /// The machine.
        id: MachineId,
        /// Its user id.
        uid: u32,
    },
    /// Record a launch, then start the VMM process.
    LaunchMachine {
        /// The machine.
        id: MachineId,
        /// What is launched.
        launch: Box<Launch>,
    },
    /// Tell the process what the machine is made of.
    ConfigureMachine(Box<MachineParts>),
    /// Start a configured machine.
    StartMachine(MachineId),
    /// Record the time, then press the power button.
    AskShutdown(MachineId),
    /// End a machine now.
    ForceStop(MachineId),
    /// Record how a machine ended, then end its process.
    ReapMachine {
        /// The machine.
        id: MachineId,
        /// How it ended.
        end: End,
    },
    /// Record that a machine's process is gone.
    RecordEnd {
        /// The machine.
        id: MachineId,
        /// How it ended.
        end: End,
    },
    /// Record which locks a machine's process has on volumes in Ceph.
    NoteHolders {
        /// The machine.
        id: MachineId,
        /// Its volumes there.
        volumes: Vec<Volume>,
    },
    /// Fence the Ceph clients of a process that is gone, so that their locks are in nobody's way, then forget them.
    ReleaseHolders {
        /// The machine.
        id: MachineId,
        /// The locks that its process had.
        holders: Vec<Holder>,
    },
    /// Remove what a machine left, then its record.
    ForgetMachine(MachineId),
}

impl Step {
    /// What it is about.
    #[must_use]
    pub fn lane(&self) -> Lane {
        match self {
            Self::FetchImage { image, .. } => Lane::Image(image.id),
            Self::ImportImage(base) => Lane::Base(base.base()),
            Self::CreateVolume { volume, .. } | Self::GrowVolume(volume) | Self::DeleteVolume(volume) => {
                Lane::Volume(volume.id)
            }
            Self::PlugTap(plug) => Lane::Tap(plug.tap.clone()),
            Self::SetTap { tap, .. } | Self::UnplugTap(tap) | Self::DeleteTap(tap) => Lane::Tap(tap.clone()),
            Self::ProgramFlows(_) => Lane::Flows,
            Self::ConfigureMachine(parts) => Lane::Machine(parts.machine.id),
            Self::RegisterMachine { id, .. }
            | Self::LaunchMachine { id, .. }
            | Self::StartMachine(id)
            | Self::AskShutdown(id)
            | Self::ForceStop(id)
            | Self::ReapMachine { id, .. }
            | Self::RecordEnd { id, .. }
            | Self::NoteHolders { id, .. }
            | Self::ReleaseHolders { id, .. }
            | Self::ForgetMachine(id) => Lane::Machine(*id),
        }
    }

    /// Its verb, for logs, metrics and status.
    #[must_use]
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::FetchImage { .. } => "fetch image",
            Self::ImportImage(_) => "import image",
            Self::CreateVolume { .. } => "create volume",
            Self::GrowVolume(_) => "grow volume",
            Self::DeleteVolume(_) => "delete volume",
            Self::SetTap { .. } => "set tap",
            Self::PlugTap(_) => "plug tap",
            Self::UnplugTap(_) => "unplug tap",
            Self::DeleteTap(_) => "delete tap",
            Self::ProgramFlows(_) => "program flows",
            Self::RegisterMachine { .. } => "register vm",
            Self::LaunchMachine { .. } => "launch vm",
            Self::ConfigureMachine(_) => "configure vm",
            Self::StartMachine(_) => "start vm",
            Self::AskShutdown(_) => "ask vm to shut down",
            Self::ForceStop(_) => "stop vm by force",
            Self::ReapMachine { .. } => "reap vm",
            Self::RecordEnd { .. } => "record end of vm",
            Self::NoteHolders { .. } => "note locks of vm",
            Self::ReleaseHolders { .. } => "release locks of vm",
            Self::ForgetMachine(_) => "forget vm",
        }
    }
}

/// What to do, what waits and what is right.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// What can be done now, in order of lanes.
    pub steps: BTreeMap<Lane, Step>,
    /// What waits, and for what.
    pub waiting: BTreeMap<Lane, String>,
    /// What cannot be as it should, and what could not be seen.
    pub blocked: BTreeMap<Lane, Problem>,
    /// What is right.
    pub unchanged: BTreeSet<Lane>,
}

impl Plan {
    /// Whether the host is what the spec wants, as far as it can be seen.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.steps.is_empty() && self.waiting.is_empty() && self.blocked.is_empty()
    }

    fn step(&mut self, step: Step) {
        let lane = step.lane();
        debug_assert!(!self.steps.contains_key(&lane), "two steps in lane {lane}");
        self.steps.insert(lane, step);
    }

    fn wait(&mut self, lane: Lane, reason: impl Into<String>) {
        self.waiting.insert(lane, reason.into());
    }

    fn block(&mut self, lane: Lane, problem: Problem) {
        self.blocked.insert(lane, problem);
    }

    fn right(&mut self, lane: Lane) {
        self.unchanged.insert(lane);
    }

    /// Why a lane is not yet as it should be, if it is not.
    fn unready(&self, lane: &Lane) -> Option<String> {
        if let Some(step) = self.steps.get(lane) {
            return Some(format!("{lane}: to {}", step.verb()));
        }
        if let Some(reason) = self.waiting.get(lane) {
            return Some(format!("{lane}: {reason}"));
        }
        self.blocked.get(lane).map(|problem| format!("{lane}: {}", problem.message))
    }
}

/// What a plan needs to know besides spec and host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Milliseconds since 1970.
    pub now_ms: u64,
    /// Which boot of the host this is.
    pub boot_id: String,
    /// How long a machine may take to shut down, milliseconds.
    pub shutdown_grace_ms: u64,
    /// The user ids that machines may have.
    pub uids: std::ops::Range<u32>,
}

/// The next plan for a host.
#[must_use]
pub fn plan(spec: &NodeSpec, seen: &Seen, context: &Context) -> Plan {
    let mut plan = Plan::default();
    volume::plan(&mut plan, spec, seen);
    network::plan(&mut plan, spec, seen);
    machine::plan(&mut plan, spec, seen, context);
    plan
}

/// The images and the bases to look at for a spec.
#[must_use]
pub fn bases(spec: &NodeSpec) -> Vec<BaseImage> {
    let mut bases = BTreeMap::new();
    for volume in spec.volumes().values() {
        if let model::volume::VolumeSource::Image(id) = volume.source
            && let Some(image) = spec.images().get(&id)
        {
            let base = BaseImage { image: image.clone(), backend: volume.backend.clone() };
            bases.insert(base.base(), base);
        }
    }
    bases.into_values().collect()
}

#[cfg(test)]
mod tests;

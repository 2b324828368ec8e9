//! What was there at the last look: plain data, one value for the whole host.
//!
//! What could not be seen is [`Look::Unknown`] with its problem, never absent: [`crate::plan`] does nothing about it but look again.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use model::arrival::Arrived;
use model::balancer::MemberHealth;
use model::observed::Problem;
use model::provider::PhysicalNetwork;
use model::volume::VolumeBackend;
use model::{ImageId, MachineId, VolumeId};
use serde::Serialize;
use vmm::state::State;

use crate::record::MachineRecord;

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Look<T> {
    /// It could be seen.
    Known(T),
    /// It could not, and why.
    Unknown(Problem),
}

impl<T> Look<T> {
    /// What was seen, if it could be.
    pub const fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown(_) => None,
        }
    }

    /// Why it could not be seen.
    pub const fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Known(_) => None,
            Self::Unknown(problem) => Some(problem),
        }
    }
}

impl<T, E: Into<Problem>> From<Result<T, E>> for Look<T> {
    fn from(result: Result<T, E>) -> Self {
        result.map_or_else(|error| Self::Unknown(error.into()), Self::Known)
    }
}

/// An image made ready on a backend, so that volumes can be cloned from it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Base {
    /// The image.
    pub image: ImageId,
    /// Where its data is.
    pub backend: VolumeBackend,
}

/// The host at the last look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Images whose bytes are here and have the right digest.
    pub images: Look<BTreeSet<ImageId>>,
    /// For each base that a wanted volume needs: whether it is there.
    #[serde(serialize_with = "as_pairs")]
    pub bases: BTreeMap<Base, Look<bool>>,
    /// For each wanted or retired volume: its size in bytes, if it exists.
    pub volumes: BTreeMap<VolumeId, Look<Option<u64>>>,
    /// The taps that this agent made, by name.
    pub taps: Look<BTreeMap<String, Tap>>,
    /// The integration bridge.
    pub switch: Look<Bridge>,
    /// What health checks found out of the members of load balancers here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub health: Vec<MemberHealth>,
    /// Ports that were awaited here and whose machine spoke here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub arrived: Vec<Arrived>,
    /// Machines with a record, wanted or not.
    pub machines: Look<BTreeMap<MachineId, Look<MachineSeen>>>,
}

fn as_pairs<S: serde::Serializer>(bases: &BTreeMap<Base, Look<bool>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(bases.iter())
}

/// A tap as seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tap {
    /// Who may attach to it.
    pub owner: Option<u32>,
    /// Its MTU, bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
}

/// The integration bridge as seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Bridge {
    /// The taps that are plugged in by this agent, with their OpenFlow port number once they work.
    pub ports: BTreeMap<String, Option<u32>>,
    /// How many changes bring the installed flows to what the spec wants.
    pub changes_pending: usize,
    /// How many flows are installed.
    pub flows: usize,
    /// The physical networks whose interface is plugged in and works.
    pub physical: BTreeSet<PhysicalNetwork>,
    /// What of links to those may be promised, in thousands of bits a second, where minimums of ports are kept.
    pub bandwidth: BTreeMap<PhysicalNetwork, NonZeroU32>,
}

/// A machine as seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MachineSeen {
    /// What was remembered of it.
    pub record: MachineRecord,
    /// Its VMM process.
    pub process: Process,
}

/// A VMM process as seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Process {
    /// There is none: nobody holds the machine's lock.
    Gone,
    /// It is there and does not answer.
    Silent {
        /// Why, in words.
        why: String,
    },
    /// It answers.
    Alive {
        /// The process.
        pid: u32,
        /// Where the machine is in its life.
        state: State,
        /// Why it ended.
        reason: Option<String>,
    },
}

impl MachineSeen {
    /// Whether a VMM process exists, answering or not.
    #[must_use]
    pub fn has_process(&self) -> bool {
        self.process != Process::Gone
    }
}

impl Seen {
    /// Whether a machine's process may have this volume open: yes, too, when that cannot be seen.
    #[must_use]
    pub fn may_use_volume(&self, volume: VolumeId) -> bool {
        self.may_use(|record| {
            let machine = record.launch.as_ref().map(|launch| &launch.machine);
            machine.is_some_and(|machine| machine.disks.iter().any(|disk| disk.volume == volume))
        })
    }

    /// Whether a machine's process may have this tap open: yes, too, when that cannot be seen.
    #[must_use]
    pub fn may_use_tap(&self, tap: &str) -> bool {
        self.may_use(|record| record.launch.as_ref().is_some_and(|launch| launch.taps.iter().any(|used| used == tap)))
    }

    fn may_use(&self, uses: impl Fn(&MachineRecord) -> bool) -> bool {
        self.machines.known().is_none_or(|machines| {
            machines.values().any(|look| look.known().is_none_or(|seen| seen.has_process() && uses(&seen.record)))
        })
    }
}

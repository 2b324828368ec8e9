//! What the agent remembers of one machine between two looks and across its own restarts.
//!
//! A record is written before the step that it announces, so that an agent killed in between finds the step begun, never undone. The wire form
//! is versioned; unknown fields are refused.

use model::MachineId;
use model::machine::Machine;
use serde::{Deserialize, Serialize};

/// What the agent remembers of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineRecord {
    /// The machine.
    pub id: MachineId,
    /// The user and group id that its VMM runs as, its own on this host.
    pub uid: u32,
    /// The newest launch.
    pub launch: Option<Launch>,
}

impl MachineRecord {
    /// The locks in Ceph that the newest process was seen to have.
    #[must_use]
    pub fn holders(&self) -> &[Holder] {
        self.launch.as_ref().and_then(|launch| launch.holders.as_deref()).unwrap_or_default()
    }
}

/// One launch of a machine: one VMM process, from its start to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// The machine as it was launched; its `starts` numbers the launch.
    pub machine: Machine,
    /// The taps that it has, in the order of its ports; until it is started, those behind them that it was launched with and may have still.
    pub taps: Vec<String>,
    /// Which boot of the host it was in (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// Whether guest code may have run: set before the machine is started. A launch that got no further is simply tried again.
    pub started: bool,
    /// When it was told to shut down, milliseconds since 1970.
    pub shutdown_asked_ms: Option<u64>,
    /// How it ended, once it has.
    pub end: Option<End>,
    /// When earlier processes of this very start were lost, milliseconds since 1970, newest last.
    #[serde(default)]
    pub losses: Vec<u64>,
    /// The locks that its process has on volumes in Ceph; none before they were noted and after they were released.
    #[serde(default)]
    pub holders: Option<Vec<Holder>>,
}

/// A lock that a process has on a volume in Ceph. It outlives a process that is killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    /// The pool.
    pub pool: String,
    /// The RBD image.
    pub image: String,
    /// The address of the process's Ceph client, unlike that of any other client there ever is.
    pub address: String,
}

/// How a launch ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// Whether that was a failure.
    pub crashed: bool,
    /// In words.
    pub reason: String,
}

/// A record as it is stored, under its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "version")]
pub enum RecordEnvelope {
    /// The first version.
    #[serde(rename = "1")]
    V1(MachineRecord),
}

impl From<MachineRecord> for RecordEnvelope {
    fn from(record: MachineRecord) -> Self {
        Self::V1(record)
    }
}

impl From<RecordEnvelope> for MachineRecord {
    fn from(RecordEnvelope::V1(record): RecordEnvelope) -> Self {
        record
    }
}

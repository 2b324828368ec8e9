//! Virtual machines, as a host should run them.

use serde::{Deserialize, Serialize};

use crate::id::{ImageId, MachineId, PortId, VolumeId};
use crate::metadata::Metadata;
use crate::units::{Mib, Vcpus};

/// A virtual machine that should exist on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Identity.
    pub id: MachineId,
    /// Its name, and its host name inside: a DNS label (RFC 1123 §2.1).
    pub name: String,
    /// Virtual CPUs.
    pub vcpus: Vcpus,
    /// Guest memory.
    pub memory: Mib,
    /// What it boots.
    pub boot: Boot,
    /// Its disks in order: the first is /dev/vda.
    pub disks: Vec<Disk>,
    /// Its network interfaces in order.
    pub ports: Vec<PortId>,
    /// Whether it should run.
    pub power: Power,
    /// How many times it was told to start, 1 and up. A machine that shut itself down or crashed is started again when this has grown.
    pub starts: u32,
    /// What the metadata service tells it beside its names and addresses.
    #[serde(default)]
    pub metadata: Metadata,
}

/// What a machine boots: a Linux kernel given from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// An image of kind kernel.
    pub kernel: ImageId,
    /// An image of kind initrd.
    pub initrd: Option<ImageId>,
    /// The kernel command line: at most 2047 bytes of printable ASCII.
    pub cmdline: String,
}

/// A volume as a machine's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The volume.
    pub volume: VolumeId,
    /// Whether the guest may write.
    pub read_only: bool,
}

/// Whether a machine should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Power {
    /// It should run. If it shut itself down or crashed it stays down and says so, until [`Machine::starts`] grows.
    Running,
    /// It should be shut down: by the power button first, by force when that has no effect.
    Stopped,
}

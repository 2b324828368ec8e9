//! What the agent needs of a host: four narrow traits, and the real drivers below.
//!
//! Drivers hold no policy: they look, or do the one thing that a [`crate::plan::Step`] names. Every call ends within a bound of its own, may be
//! repeated, and may be cut off at any point; what it left is seen at the next look. A simulated host for tests is in `sim.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use model::arrival::Arrived;
use model::balancer::MemberHealth;
use model::image::Image;
use model::machine::Machine;
use model::observed::Problem;
use model::spec::HostNetwork;
use model::volume::{Volume, VolumeBackend};
use model::{ImageId, MachineId, PortId, VolumeId};

use crate::record::{Holder, MachineRecord};
use crate::seen::{Base, Bridge, Look, MachineSeen, Tap};

pub mod bridge;
pub mod images;
pub mod machines;
pub mod taps;
pub mod vm_config;
pub mod volumes;

/// What went wrong in a driver, with the way out.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Failure {
    what: String,
    remedy: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Failure {
    /// A failure without a deeper cause; `what` says what was attempted and why it failed.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into(), source: None }
    }

    /// A failure of something that was attempted, with its cause.
    pub fn caused(
        what: impl Into<String>,
        remedy: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { what: what.into(), remedy: remedy.into(), source: Some(source.into()) }
    }

    /// As status data.
    #[must_use]
    pub fn problem(&self) -> Problem {
        Problem { message: chain(self), remedy: self.remedy.clone() }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        failure.problem()
    }
}

/// An error and its causes in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Transparent wrappers repeat what they wrap.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// Runs a call that blocks on a thread for such calls.
///
/// # Errors
/// What the call gives.
pub async fn blocking<T, F>(call: F) -> Result<T, Failure>
where
    F: FnOnce() -> Result<T, Failure> + Send + 'static,
    T: Send + 'static,
{
    let broken = |error| Failure::caused("run a blocking call", "report this: it is a bug in the agent", error);
    tokio::task::spawn_blocking(call).await.map_err(broken)?
}

/// VMM processes.
pub trait Machines: Send + Sync + 'static {
    /// Looks at the processes behind `records`.
    fn look(&self, records: Vec<MachineRecord>) -> impl Future<Output = BTreeMap<MachineId, Look<MachineSeen>>> + Send;
    /// Starts the VMM process of a machine that has none, without a machine in it yet.
    fn launch(&self, record: &MachineRecord) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Tells the process what the machine is made of.
    fn configure(&self, parts: &MachineParts) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Starts a configured machine.
    fn start(&self, id: MachineId) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Presses the power button.
    fn press_power_button(&self, id: MachineId) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Ends the machine now, and its process if that does not answer.
    fn force_stop(&self, id: MachineId) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Ends the process of a machine that has ended.
    fn reap(&self, id: MachineId) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Removes what a machine without a process left on the host.
    fn forget(&self, id: MachineId) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// All that goes into a machine's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineParts {
    /// The machine.
    pub machine: Machine,
    /// The user and group that its VMM becomes.
    pub uid: u32,
    /// Its kernel.
    pub kernel: Image,
    /// Its initrd.
    pub initrd: Option<Image>,
    /// Its volumes, in the order of its disks.
    pub volumes: Vec<Volume>,
    /// Its interfaces, in the order of its ports.
    pub nets: Vec<MachineNet>,
}

/// An interface of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineNet {
    /// Its port.
    pub port: PortId,
    /// Its tap.
    pub tap: String,
    /// Its address.
    pub mac: model::Mac,
    /// Its MTU, bytes.
    pub mtu: u16,
}

/// Images in the host's cache.
pub trait Images: Send + Sync + 'static {
    /// Which of `wanted` are here with the right digest.
    fn look(&self, wanted: &[Image]) -> impl Future<Output = Result<BTreeSet<ImageId>, Failure>> + Send;
    /// Brings one here. `keep` is what must not be thrown out to make room.
    fn fetch(&self, image: &Image, keep: &[Image]) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// Volumes and the bases that they are cloned from.
pub trait Volumes: Send + Sync + 'static {
    /// Looks at volumes (the size in bytes of each that exists) and at bases.
    fn look(&self, volumes: Vec<Volume>, bases: Vec<BaseImage>) -> impl Future<Output = VolumesSeen> + Send;
    /// Makes an image that is here ready on a backend.
    fn import(&self, base: &BaseImage) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Makes a volume that does not exist: empty, or a clone of the base of `image`.
    fn create(&self, volume: &Volume, image: Option<&Image>) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Makes a volume as large as it should be.
    fn grow(&self, volume: &Volume) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Deletes a volume and its data.
    fn delete(&self, volume: &Volume) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Who has the locks of these volumes in Ceph.
    fn holders(&self, volumes: &[Volume]) -> impl Future<Output = Result<Vec<Holder>, Failure>> + Send;
    /// Takes these locks from these holders, who are dead; another holder keeps what it has.
    fn release(&self, holders: &[Holder]) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// An image and the backend that it is to be ready on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseImage {
    /// The image.
    pub image: Image,
    /// The backend.
    pub backend: VolumeBackend,
}

impl BaseImage {
    /// Its identity.
    #[must_use]
    pub fn base(&self) -> Base {
        Base { image: self.image.id, backend: self.backend.clone() }
    }
}

/// What a look at volumes gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumesSeen {
    /// Sizes in bytes of the volumes that exist.
    pub volumes: BTreeMap<VolumeId, Look<Option<u64>>>,
    /// Which bases are there.
    pub bases: BTreeMap<Base, Look<bool>>,
}

/// A tap and the port that it is on the bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plug {
    /// The tap's name.
    pub tap: String,
    /// The port.
    pub port: PortId,
    /// The machine that has it.
    pub machine: MachineId,
    /// The address by which the machine is known.
    pub mac: model::Mac,
}

/// Taps, the bridge and its flows.
pub trait Network: Send + Sync + 'static {
    /// The taps that this agent made.
    fn look_taps(&self) -> impl Future<Output = Result<BTreeMap<String, Tap>, Failure>> + Send;
    /// The bridge, held against what `network` wants.
    fn look_bridge(&self, network: &HostNetwork) -> impl Future<Output = Result<Bridge, Failure>> + Send;
    /// Makes a tap or puts it right.
    fn set_tap(&self, tap: &str, port: PortId, want: Tap) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Deletes a tap.
    fn delete_tap(&self, tap: &str) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Puts a tap on the bridge.
    fn plug(&self, plug: &Plug) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Takes a tap off the bridge.
    fn unplug(&self, tap: &str) -> impl Future<Output = Result<(), Failure>> + Send;
    /// What health checks found out of the members of load balancers here.
    fn health(&self) -> Vec<MemberHealth>;

    /// Ports that were awaited here and whose machine spoke here, until what is programmed has them here.
    fn arrived(&self) -> Vec<Arrived>;

    /// Goes on with such ports of before, ahead of the first that is programmed.
    fn resume_arrivals(&self, arrived: Vec<Arrived>);
    /// Takes note of what the machines of this host are, for the metadata service to tell them.
    fn describe(&self, machines: &BTreeMap<MachineId, Machine>);
    /// Brings the installed flows to what `network` wants, at once or not at all.
    fn program(&self, network: &HostNetwork) -> impl Future<Output = Result<(), Failure>> + Send;
}

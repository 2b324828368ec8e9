//! A simulated host for tests: memory in place of processes, files and a switch. Never part of the program.
//!
//! Every operation yields before and after its effect, so that a test can cut the agent off between any two, and can be told to fail. The world
//! checks what no agent may ever do: two processes for one machine, a volume deleted that was not retired, a tap removed under a running machine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use model::arrival::Arrived;
use model::balancer::MemberHealth;
use model::image::Image;
use model::machine::Machine;
use model::spec::HostNetwork;
use model::volume::{Volume, VolumeBackend};
use model::{ImageId, MachineId, PortId, VolumeId};
use vmm::state::State;

use crate::apply::Drivers;
use crate::driver::{BaseImage, Failure, Images, MachineParts, Machines, Network, Plug, Volumes, VolumesSeen};
use crate::record::{Holder, MachineRecord};
use crate::seen::{Base, Bridge, Look, MachineSeen, Process, Tap};

/// A VMM process that is not one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SimProcess {
    pub(crate) state: State,
    pub(crate) taps: Vec<String>,
    pub(crate) disks: Vec<VolumeId>,
    /// Whether the guest heeds the power button.
    pub(crate) obedient: bool,
    /// Its process number, and its client's address in the cluster.
    pub(crate) client: u32,
}

/// All that is on the simulated host.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) images: BTreeSet<ImageId>,
    pub(crate) bases: BTreeSet<Base>,
    pub(crate) volumes: BTreeMap<VolumeId, u64>,
    pub(crate) taps: BTreeMap<String, Tap>,
    pub(crate) ports: BTreeSet<String>,
    pub(crate) flows_of: Option<HostNetwork>,
    /// The machines that the metadata service knows.
    pub(crate) described: BTreeSet<MachineId>,
    /// What health checks found out.
    pub(crate) health: Vec<MemberHealth>,
    /// Ports that were awaited and came.
    pub(crate) arrived: Vec<Arrived>,
    pub(crate) processes: BTreeMap<MachineId, SimProcess>,
    /// How often each machine was started.
    pub(crate) starts: BTreeMap<MachineId, u32>,
    /// What may be deleted.
    pub(crate) retired: BTreeSet<VolumeId>,
    /// The switch does not answer.
    pub(crate) switch_down: bool,
    /// The cluster does not answer.
    pub(crate) ceph_down: bool,
    /// Guests that ignore the power button.
    pub(crate) stubborn: BTreeSet<MachineId>,
    /// Operations that fail, by number from now on: `true` fails.
    pub(crate) faults: std::collections::VecDeque<bool>,
    /// Which client has the lock of a volume in Ceph: outlives a process that is killed.
    pub(crate) locks: BTreeMap<String, u32>,
    /// How many processes there ever were.
    pub(crate) clients: u32,
    /// Names of the operations done.
    pub(crate) log: Vec<&'static str>,
}

/// The drivers of the simulated host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sim {
    world: Arc<Mutex<World>>,
}

impl Sim {
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    async fn act<T>(
        &self,
        name: &'static str,
        act: impl FnOnce(&mut World) -> Result<T, Failure> + Send,
    ) -> Result<T, Failure> {
        tokio::task::yield_now().await;
        let result = {
            let mut world = self.world();
            if world.faults.pop_front().unwrap_or(false) {
                Err(Failure::new(format!("{name}: told to fail"), "none"))
            } else {
                world.log.push(name);
                act(&mut world)
            }
        };
        tokio::task::yield_now().await;
        result
    }
}

impl World {
    fn process(&mut self, id: MachineId) -> Result<&mut SimProcess, Failure> {
        self.processes.get_mut(&id).ok_or_else(|| Failure::new("no process", ""))
    }

    fn switch(&self) -> Result<(), Failure> {
        if self.switch_down { Err(Failure::new("reach the switch", "start it")) } else { Ok(()) }
    }

    fn in_use(&self, volume: VolumeId) -> bool {
        self.processes.values().any(|process| process.disks.contains(&volume))
    }
}

impl Machines for Sim {
    async fn look(&self, records: Vec<MachineRecord>) -> BTreeMap<MachineId, Look<MachineSeen>> {
        let world = self.world();
        let look = |record: MachineRecord| {
            let process = match world.processes.get(&record.id) {
                None => Process::Gone,
                Some(process) => Process::Alive { pid: process.client, state: process.state, reason: None },
            };
            (record.id, Look::Known(MachineSeen { record, process }))
        };
        records.into_iter().map(look).collect()
    }

    async fn launch(&self, record: &MachineRecord) -> Result<(), Failure> {
        self.act("launch", |world| {
            let launch = record.launch.as_ref().unwrap();
            world.clients += 1;
            let process = SimProcess {
                client: world.clients,
                state: State::Created,
                taps: launch.taps.clone(),
                disks: launch.machine.disks.iter().map(|disk| disk.volume).collect(),
                obedient: !world.stubborn.contains(&record.id),
            };
            for tap in &process.taps {
                assert!(world.ports.contains(tap), "launched without its port");
                assert_eq!(world.taps[tap].owner, Some(record.uid), "launched with a tap of another");
            }
            for disk in &process.disks {
                assert!(world.volumes.contains_key(disk), "launched without its volume");
                assert!(!world.in_use(*disk), "launched with a volume that is open");
            }
            assert!(world.processes.insert(record.id, process).is_none(), "two processes for {:?}", record.id);
            Ok(())
        })
        .await
    }

    async fn configure(&self, parts: &MachineParts) -> Result<(), Failure> {
        self.act("configure", |world| {
            let images = world.images.clone();
            let client = world.process(parts.machine.id)?.client;
            for volume in parts.volumes.iter().filter(|volume| volume.backend != VolumeBackend::Local) {
                if *world.locks.entry(volume.storage_name()).or_insert(client) != client {
                    return Err(Failure::new("open a volume: another holds its lock", "wait"));
                }
            }
            let process = world.process(parts.machine.id)?;
            assert!(images.contains(&parts.kernel.id), "configured without its kernel");
            process.taps = parts.nets.iter().map(|net| net.tap.clone()).collect();
            process.disks = parts.volumes.iter().map(|volume| volume.id).collect();
            process.state = State::Configured;
            Ok(())
        })
        .await
    }

    async fn start(&self, id: MachineId) -> Result<(), Failure> {
        self.act("start", |world| {
            let process = world.process(id)?;
            assert_eq!(process.state, State::Configured);
            process.state = State::Running;
            *world.starts.entry(id).or_default() += 1;
            Ok(())
        })
        .await
    }

    async fn press_power_button(&self, id: MachineId) -> Result<(), Failure> {
        self.act("press", |world| {
            let process = world.process(id)?;
            if process.obedient {
                process.state = State::Shutdown;
            }
            Ok(())
        })
        .await
    }

    async fn force_stop(&self, id: MachineId) -> Result<(), Failure> {
        self.act("force", |world| {
            world.process(id)?.state = State::Shutdown;
            Ok(())
        })
        .await
    }

    async fn reap(&self, id: MachineId) -> Result<(), Failure> {
        self.act("reap", |world| {
            if let Some(process) = world.processes.remove(&id) {
                world.locks.retain(|_, client| *client != process.client);
            }
            Ok(())
        })
        .await
    }

    async fn forget(&self, id: MachineId) -> Result<(), Failure> {
        self.act("forget", |world| {
            assert!(!world.processes.contains_key(&id), "forgot a machine with a process");
            Ok(())
        })
        .await
    }
}

impl Images for Sim {
    async fn look(&self, wanted: &[Image]) -> Result<BTreeSet<ImageId>, Failure> {
        let world = self.world();
        Ok(wanted.iter().map(|image| image.id).filter(|id| world.images.contains(id)).collect())
    }

    async fn fetch(&self, image: &Image, _keep: &[Image]) -> Result<(), Failure> {
        self.act("fetch", |world| {
            world.images.insert(image.id);
            Ok(())
        })
        .await
    }
}

impl Volumes for Sim {
    async fn look(&self, volumes: Vec<Volume>, bases: Vec<BaseImage>) -> VolumesSeen {
        let world = self.world();
        let mut seen = VolumesSeen::default();
        let down = |down: bool| down.then(|| Failure::new("reach the cluster", "start it").problem());
        for volume in volumes {
            let remote = volume.backend != model::volume::VolumeBackend::Local;
            let look = match down(world.ceph_down && remote) {
                Some(problem) => Look::Unknown(problem),
                None => Look::Known(world.volumes.get(&volume.id).copied()),
            };
            seen.volumes.insert(volume.id, look);
        }
        for base in bases {
            let remote = base.backend != model::volume::VolumeBackend::Local;
            let look = match down(world.ceph_down && remote) {
                Some(problem) => Look::Unknown(problem),
                None => Look::Known(world.bases.contains(&base.base())),
            };
            seen.bases.insert(base.base(), look);
        }
        seen
    }

    async fn import(&self, base: &BaseImage) -> Result<(), Failure> {
        self.act("import", |world| {
            assert!(world.images.contains(&base.image.id), "imported an image that is not here");
            world.bases.insert(base.base());
            Ok(())
        })
        .await
    }

    async fn create(&self, volume: &Volume, _image: Option<&Image>) -> Result<(), Failure> {
        self.act("create", |world| {
            let twice = world.volumes.insert(volume.id, volume.size.bytes());
            assert!(twice.is_none(), "made a volume over another");
            Ok(())
        })
        .await
    }

    async fn grow(&self, volume: &Volume) -> Result<(), Failure> {
        self.act("grow", |world| {
            assert!(!world.in_use(volume.id), "grew an open volume");
            world.volumes.insert(volume.id, volume.size.bytes());
            Ok(())
        })
        .await
    }

    async fn delete(&self, volume: &Volume) -> Result<(), Failure> {
        self.act("delete", |world| {
            assert!(world.retired.contains(&volume.id), "deleted a volume that nobody retired");
            assert!(!world.in_use(volume.id), "deleted an open volume");
            world.volumes.remove(&volume.id);
            Ok(())
        })
        .await
    }

    async fn holders(&self, volumes: &[Volume]) -> Result<Vec<Holder>, Failure> {
        let names: Vec<String> = volumes.iter().map(Volume::storage_name).collect();
        self.act("note locks", |world| {
            let held =
                names.into_iter().filter_map(|name| world.locks.get(&name).map(|client| (name.clone(), *client)));
            Ok(held.map(|(name, client)| Self::holder(name, client)).collect())
        })
        .await
    }

    async fn release(&self, holders: &[Holder]) -> Result<(), Failure> {
        self.act("release", |world| {
            for holder in holders {
                let alive = |process: &SimProcess| process.client.to_string() == holder.address;
                assert!(!world.processes.values().any(alive), "fenced a machine that runs");
                world.locks.retain(|name, client| Self::holder(name.clone(), *client) != *holder);
            }
            Ok(())
        })
        .await
    }
}

impl Sim {
    fn holder(image: String, client: u32) -> Holder {
        Holder { pool: "p".to_owned(), image, address: client.to_string() }
    }
}

impl Network for Sim {
    async fn look_taps(&self) -> Result<BTreeMap<String, Tap>, Failure> {
        Ok(self.world().taps.clone())
    }

    async fn look_bridge(&self, network: &HostNetwork) -> Result<Bridge, Failure> {
        let world = self.world();
        world.switch()?;
        let ports = world.ports.iter().map(|name| (name.clone(), world.taps.contains_key(name).then_some(1))).collect();
        let changes_pending = usize::from(world.flows_of.as_ref() != Some(network));
        Ok(Bridge { ports, changes_pending, flows: 1, ..Bridge::default() })
    }

    async fn set_tap(&self, tap: &str, _port: PortId, want: Tap) -> Result<(), Failure> {
        self.act("set tap", |world| {
            world.taps.insert(tap.to_owned(), want);
            Ok(())
        })
        .await
    }

    async fn delete_tap(&self, tap: &str) -> Result<(), Failure> {
        self.act("delete tap", |world| {
            assert!(!world.processes.values().any(|process| process.taps.iter().any(|used| used == tap)));
            world.taps.remove(tap);
            Ok(())
        })
        .await
    }

    async fn plug(&self, plug: &Plug) -> Result<(), Failure> {
        self.act("plug", |world| {
            world.switch()?;
            world.ports.insert(plug.tap.clone());
            Ok(())
        })
        .await
    }

    async fn unplug(&self, tap: &str) -> Result<(), Failure> {
        self.act("unplug", |world| {
            world.switch()?;
            assert!(!world.processes.values().any(|process| process.taps.iter().any(|used| used == tap)));
            world.ports.remove(tap);
            Ok(())
        })
        .await
    }

    fn health(&self) -> Vec<MemberHealth> {
        self.world().health.clone()
    }

    fn arrived(&self) -> Vec<Arrived> {
        self.world().arrived.clone()
    }

    fn resume_arrivals(&self, arrived: Vec<Arrived>) {
        self.world().arrived = arrived;
    }

    fn describe(&self, machines: &BTreeMap<MachineId, Machine>) {
        self.world().described = machines.keys().copied().collect();
    }

    async fn program(&self, network: &HostNetwork) -> Result<(), Failure> {
        self.act("program", |world| {
            world.switch()?;
            world.flows_of = Some(network.clone());
            Ok(())
        })
        .await
    }
}

impl Drivers for Sim {
    type Machines = Self;
    type Images = Self;
    type Volumes = Self;
    type Network = Self;

    fn machines(&self) -> &Self {
        self
    }
    fn images(&self) -> &Self {
        self
    }
    fn volumes(&self) -> &Self {
        self
    }
    fn network(&self) -> &Self {
        self
    }
}

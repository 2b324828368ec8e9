//! Machines: what was launched, where it was placed and why, and whether it should run.
//!
//! ```text
//! launched ──placed──> on a host ──delete──> deleting ──its host reports it absent──> forgotten
//!     └── no host takes it: error, tried again whenever hosts change
//! ```
//! Ports and volumes of a machine belong to it until it is forgotten: only then can the same data be opened elsewhere.

use std::sync::Arc;

use model::image::ImageKind;
use model::machine::{Boot, Disk, Machine, Power};
use model::metadata::{Metadata, SSH_KEYS_MAX, SshKey, UserData};
use model::volume::VolumeSource;
use model::{HostId, MachineId, PortId, VolumeId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::image::check_cmdline;
use super::port::{NewPort, PortIntent};
use super::volume::{Backend, NewVolume};
use super::{Context, Intent, check_label, check_name, find, refuse_users};
use crate::place::Decision;
use crate::refusal::Refusal;

/// The kernel command line of machines that no one gave another.
const CMDLINE: &str = "root=/dev/vda rw console=ttyS0";
/// The most disks that a machine can have: one PCI bus holds them with the ports and the rest.
const DISKS_MAX: usize = 12;
/// The most ports that a machine can have.
const PORTS_MAX: usize = 12;

/// A machine that was launched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MachineIntent {
    /// What its host is to run.
    pub(crate) machine: Machine,
    /// The flavor's name when it was launched.
    pub(crate) flavor: String,
    /// Where it is placed.
    pub(crate) host: Option<HostId>,
    /// The one host that its owner asked for.
    pub(crate) wanted_host: Option<HostId>,
    /// Machines with the same word are kept on different hosts.
    pub(crate) anti_affinity: Option<String>,
    /// The last decision on where it goes.
    pub(crate) decision: Option<Decision>,
    /// Whether it is on its way out.
    pub(crate) deleting: bool,
}

/// A machine to launch.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewMachine {
    /// Its name, and its host name inside: a DNS label.
    name: String,
    /// Its size, by name or id of a flavor.
    flavor: String,
    /// A disk image: a volume is made from it for this machine, and goes with it.
    image: Option<String>,
    /// An existing volume as first disk, by name or id; not with `image`.
    volume: Option<String>,
    /// The size of the volume made from `image`, in MiB.
    volume_size_mib: Option<u64>,
    /// Where the volume made from `image` is: `local` or `rbd`.
    volume_backend: Option<Backend>,
    /// More existing volumes as further disks, by name or id.
    #[serde(default)]
    disks: Vec<String>,
    /// Existing ports, by name or id.
    #[serde(default)]
    ports: Vec<String>,
    /// Networks to make a port on for this machine, by name or id; after `ports`.
    #[serde(default)]
    networks: Vec<String>,
    /// Security groups of the ports made on `networks`.
    groups: Option<Vec<String>>,
    /// Machines with the same word here are kept on different hosts.
    anti_affinity: Option<String>,
    /// The one host that may run it, by name or id.
    host: Option<String>,
    /// What it boots, where that is not what its image says.
    boot: Option<NewBoot>,
    /// What the metadata service tells it to run or read at its first boot, in base64: at most 16 KiB.
    #[schema(value_type = Option<String>)]
    user_data: Option<UserData>,
    /// Public SSH keys that the metadata service tells it, a line each: at most 16.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    ssh_keys: Vec<SshKey>,
    /// Whether it runs at once; true unless said.
    start: Option<bool>,
}

/// What a machine boots.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewBoot {
    /// A kernel image, by name or id.
    kernel: Option<String>,
    /// An initrd image, by name or id.
    initrd: Option<String>,
    /// The kernel command line.
    cmdline: Option<String>,
}

impl Intent {
    /// Launches a machine: with its disks and ports, not yet placed.
    pub(crate) fn launch(&mut self, context: &mut Context<'_>, new: NewMachine) -> Result<MachineId, Refusal> {
        check_label(&new.name)?;
        check_name(&self.machines, &new.name)?;
        let (_, flavor) = find(&self.flavors, &new.flavor, Some("flavor"))?;
        let wanted_host = new.host.as_deref().map(|name| find(&self.hosts, name, Some("host"))).transpose()?;
        if let Some(word) = new.anti_affinity.as_deref().filter(|word| word.is_empty() || word.len() > 63) {
            return Err(Refusal::invalid("anti_affinity", format!("{:?} is not 1 to 63 bytes", super::clip(word))));
        }
        if new.ssh_keys.len() > SSH_KEYS_MAX {
            return Err(Refusal::invalid("ssh_keys", format!("a machine has {SSH_KEYS_MAX} keys at most")));
        }
        let disks = self.launch_disks(context, &new)?;
        let boot = self.choose_boot(&new, disks.first())?;
        let ports = self.launch_ports(context, &new)?;
        let id = MachineId::from_uuid((context.draw)());
        let power = if new.start.unwrap_or(true) { Power::Running } else { Power::Stopped };
        let (vcpus, memory) = (flavor.vcpus, flavor.memory);
        let metadata = Metadata { user_data: new.user_data, ssh_keys: new.ssh_keys };
        let machine = Machine { id, name: new.name, vcpus, memory, boot, disks, ports, power, starts: 1, metadata };
        let vm = MachineIntent {
            machine,
            flavor: flavor.name.clone(),
            host: None,
            wanted_host: wanted_host.map(|(id, _)| id),
            anti_affinity: new.anti_affinity,
            decision: None,
            deleting: false,
        };
        self.machines.insert(id, Arc::new(vm));
        Ok(id)
    }

    fn launch_disks(&mut self, context: &mut Context<'_>, new: &NewMachine) -> Result<Vec<Disk>, Refusal> {
        let mut volumes: Vec<VolumeId> = Vec::new();
        match (&new.image, &new.volume) {
            (Some(_), Some(_)) => return Err(Refusal::invalid("volume", "it is given, and image too")),
            (None, None) => {}
            (None, Some(name)) => volumes.push(self.free_volume(name, "volume")?),
            (Some(image), None) => {
                let size = new.volume_size_mib.map(model::Mib::try_from).transpose();
                let size_mib = size.map_err(|error| Refusal::invalid("volume_size_mib", error.to_string()))?;
                let volume = NewVolume {
                    name: self.free_name(&new.name),
                    size_mib,
                    backend: new.volume_backend,
                    pool: None,
                    image: Some(image.clone()),
                };
                let made = self.create_volume_for(context, volume, true).map_err(|refusal| match refusal {
                    Refusal::Invalid { field, problem } if field == "size_mib" => {
                        Refusal::Invalid { field: "volume_size_mib".to_owned(), problem }
                    }
                    other => other,
                })?;
                volumes.push(made);
            }
        }
        for (index, name) in new.disks.iter().enumerate() {
            let field = format!("disks[{index}]");
            let volume = self.free_volume(name, &field)?;
            if volumes.contains(&volume) {
                return Err(Refusal::invalid(field, format!("volume {name:?} is given twice")));
            }
            volumes.push(volume);
        }
        if volumes.len() > DISKS_MAX {
            return Err(Refusal::invalid("disks", format!("a machine has {DISKS_MAX} disks at most")));
        }
        Ok(volumes.into_iter().map(|volume| Disk { volume, read_only: false }).collect())
    }

    /// A name for a machine's own volume that no volume has yet.
    fn free_name(&self, machine: &str) -> String {
        let taken = |name: &str| self.volumes.values().any(|volume| volume.volume.name == name);
        let plain: String = format!("{machine}-disk").chars().take(50).collect();
        let numbered = (2..).map(|number: u32| format!("{plain}-{number}"));
        std::iter::once(plain.clone()).chain(numbered).find(|name| !taken(name)).unwrap_or(plain)
    }

    fn free_volume(&self, name: &str, field: &str) -> Result<VolumeId, Refusal> {
        let (id, volume) = find(&self.volumes, name, Some(field))?;
        let state = |problem: String| Refusal::State {
            object: format!("volume {}", volume.volume.name),
            problem,
            field: Some(field.to_owned()),
        };
        if volume.retired {
            return Err(state("it is being deleted".to_owned()));
        }
        match self.volume_user(id) {
            None => Ok(id),
            Some((_, vm)) => Err(state(format!("it belongs to vm {vm}"))),
        }
    }

    fn launch_ports(&mut self, context: &mut Context<'_>, new: &NewMachine) -> Result<Vec<PortId>, Refusal> {
        let mut ports: Vec<PortId> = Vec::new();
        for (index, name) in new.ports.iter().enumerate() {
            let field = format!("ports[{index}]");
            let (id, port) = find(&self.ports, name, Some(&field))?;
            if port.port.trunk.is_some() {
                let problem = "it is a sub-port: it is where its parent is".to_owned();
                return Err(Refusal::State { object: format!("port {name}"), problem, field: Some(field) });
            }
            if ports.contains(&id) {
                return Err(Refusal::invalid(field, format!("port {name:?} is given twice")));
            }
            if let Some((_, vm)) = self.port_user(id) {
                let problem = format!("it belongs to vm {vm}");
                return Err(Refusal::State { object: format!("port {name}"), problem, field: Some(field) });
            }
            ports.push(id);
        }
        if new.ports.len() + new.networks.len() > PORTS_MAX {
            return Err(Refusal::invalid("ports", format!("a machine has {PORTS_MAX} ports at most")));
        }
        for (index, network) in new.networks.iter().enumerate() {
            let field = format!("networks[{index}]");
            find(&self.networks, network, Some(&field))?;
            let port = NewPort { network: network.clone(), groups: new.groups.clone(), ..NewPort::default() };
            ports.push(self.create_port_for(context, port, true).map_err(|refusal| match refusal {
                Refusal::Invalid { field: inner, problem } if inner == "network" => Refusal::Invalid { field, problem },
                other => other,
            })?);
        }
        Ok(ports)
    }

    fn choose_boot(&self, new: &NewMachine, first: Option<&Disk>) -> Result<Boot, Refusal> {
        let source = first.and_then(|disk| self.volumes.get(&disk.volume)).map(|volume| volume.volume.source);
        let image = match source {
            Some(VolumeSource::Image(id)) => self.images.get(&id),
            _ => None,
        };
        let said = image.map(|image| image.boot.clone()).unwrap_or_default();
        let asked = new.boot.clone().unwrap_or_default();
        let kernel = match &asked.kernel {
            Some(name) => Some(self.find_kind(name, ImageKind::Kernel, "boot.kernel")?),
            None => said.kernel,
        };
        let kernel = kernel.ok_or_else(|| {
            Refusal::invalid("boot.kernel", "neither the request nor the disk's image says which kernel to boot")
        })?;
        // An initrd belongs to its kernel: another kernel does not take over the image's initrd.
        let initrd = match (&asked.initrd, &asked.kernel) {
            (Some(name), _) => Some(self.find_kind(name, ImageKind::Initrd, "boot.initrd")?),
            (None, Some(_)) => None,
            (None, None) => said.initrd,
        };
        self.ready_image(kernel, "boot.kernel")?;
        if let Some(initrd) = initrd {
            self.ready_image(initrd, "boot.initrd")?;
        }
        let cmdline = asked.cmdline.map(|text| check_cmdline(text, "boot.cmdline")).transpose()?;
        Ok(Boot { kernel, initrd, cmdline: cmdline.or(said.cmdline).unwrap_or_else(|| CMDLINE.to_owned()) })
    }

    /// Tells a machine to run: one more start, so that one that shut itself down comes up again.
    pub(crate) fn start_machine(&mut self, name: &str) -> Result<MachineId, Refusal> {
        self.set_power(name, Power::Running)
    }

    /// Tells a machine to shut down.
    pub(crate) fn stop_machine(&mut self, name: &str) -> Result<MachineId, Refusal> {
        self.set_power(name, Power::Stopped)
    }

    fn set_power(&mut self, name: &str, power: Power) -> Result<MachineId, Refusal> {
        let (id, vm) = find(&self.machines, name, None)?;
        if vm.deleting {
            let problem = "it is being deleted".to_owned();
            return Err(Refusal::State { object: format!("vm {}", vm.machine.name), problem, field: None });
        }
        let mut vm = (*vm).clone();
        vm.machine.power = power;
        if power == Power::Running {
            vm.machine.starts = vm.machine.starts.saturating_add(1);
        }
        self.machines.insert(id, Arc::new(vm));
        Ok(id)
    }

    /// Has a machine deleted. It is forgotten when its host reports it absent; at once when it has no host. The ports that would go with it must
    /// have no sub-ports, and get no copies of ports that stay.
    pub(crate) fn delete_machine(&mut self, name: &str) -> Result<MachineId, Refusal> {
        let (id, vm) = find(&self.machines, name, None)?;
        let going = vm.machine.ports.iter().filter_map(|port| self.ports.get(port)).filter(|port| port.goes_with_vm);
        for port in going {
            let goes_too = |it: &PortIntent| it.goes_with_vm && vm.machine.ports.contains(&it.port.id);
            let mirrored = self.mirrored_to(port.port.id).filter(|it| !goes_too(it));
            let mirrors = mirrored.map(|it| format!("the mirror of port {}", it.port.name));
            let users = self.sub_ports_of(port.port.id).chain(mirrors);
            refuse_users(format!("port {}, which goes with the vm,", port.port.name), users)?;
        }
        if vm.host.is_none() {
            self.forget_machine(id);
        } else {
            self.machines.insert(id, Arc::new(MachineIntent { deleting: true, ..(*vm).clone() }));
        }
        Ok(id)
    }

    /// Forgets a machine that no host runs, with the ports and volumes that were made for it.
    pub(crate) fn forget_machine(&mut self, id: MachineId) {
        let Some(vm) = self.machines.remove(&id) else { return };
        for port in &vm.machine.ports {
            if self.ports.get(port).is_some_and(|port| port.goes_with_vm) {
                self.drop_floating_ips(*port);
                self.drop_port_forwardings(*port);
                self.drop_mirrors_to(*port);
                self.ports.remove(port);
            }
        }
        for disk in &vm.machine.disks {
            if self.volumes.get(&disk.volume).is_some_and(|volume| volume.goes_with_vm) {
                self.retire_volume(disk.volume);
            }
        }
    }
}

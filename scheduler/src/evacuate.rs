//! Taking machines away from a host that is down: what may be moved, what stays, and when this is refused.
//!
//! Nothing here proves that the host is dead; the caller says so. What the word cannot make wrong: a volume in Ceph has one writer, because the next
//! VMM gets its lock only once the old client has been silent for 30 s or is fenced. What it can: two machines with one address, if the host lives on
//! where the scheduler does not see it. So a host that reports is never evacuated, and one that does not only by force. When it comes back, its
//! specification no longer names these machines, and its agent ends them.

use std::sync::Arc;

use model::volume::VolumeBackend;
use model::{HostId, MachineId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::cluster::{Cluster, Life};
use crate::intent::host::Host;
use crate::intent::machine::MachineIntent;
use crate::intent::{Intent, find};
use crate::refusal::Refusal;

/// How a host is evacuated.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Evacuation {
    /// The caller knows that the host runs nothing any more: it has no power, or is cut off from the networks.
    pub(crate) force: bool,
}

/// What came of it, by names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Evacuated {
    /// Machines that are placed anew; the host takes no further ones until it is enabled again.
    pub(crate) moved: Vec<String>,
    /// Machines that were being deleted, and are gone now.
    pub(crate) forgotten: Vec<String>,
    /// Machines that stay.
    pub(crate) left: Vec<Left>,
}

/// A machine that stays on its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Left {
    /// The machine.
    pub(crate) vm: String,
    /// Why.
    pub(crate) reason: String,
}

impl Intent {
    /// Takes the machines of a host away from it, as far as their volumes are elsewhere.
    pub(crate) fn evacuate(&mut self, cluster: &Cluster, name: &str, how: &Evacuation) -> Result<Evacuated, Refusal> {
        let (id, host) = find(&self.hosts, name, None)?;
        refuse_unless_dead(cluster, &host, how)?;
        self.hosts.insert(id, Arc::new(Host { enabled: false, ..(*host).clone() }));
        // Ports that went there ahead of their machines are where those are.
        self.forget_journeys_to(id);
        let there: Vec<Arc<MachineIntent>> = self.machines.values().filter(|vm| vm.host == Some(id)).cloned().collect();
        let mut done = Evacuated::default();
        for vm in there {
            let (machine, name) = (vm.machine.id, vm.machine.name.clone());
            match self.bound_to(id, &vm) {
                _ if vm.deleting => {
                    self.forget_machine(machine);
                    done.forgotten.push(name);
                }
                Some(reason) => done.left.push(Left { vm: name, reason }),
                None => {
                    self.unplace(machine);
                    done.moved.push(name);
                }
            }
        }
        // What was to be deleted with the host's own disk is as gone as the host.
        self.volumes.retain(|_, volume| {
            !(volume.retired && volume.keeper == Some(id) && volume.volume.backend == VolumeBackend::Local)
        });
        Ok(done)
    }

    /// Why a machine cannot leave its host, if it cannot.
    fn bound_to(&self, host: HostId, vm: &MachineIntent) -> Option<String> {
        let mut volumes = vm.machine.disks.iter().filter_map(|disk| self.volumes.get(&disk.volume));
        let local = volumes.find(|it| it.volume.backend == VolumeBackend::Local && it.keeper == Some(host))?;
        Some(format!(
            "its volume {} is on the host's own disk: bring the host back, or delete the vm and evacuate again",
            local.volume.name
        ))
    }

    fn unplace(&mut self, id: MachineId) {
        if let Some(vm) = self.machines.get_mut(&id) {
            let vm = Arc::make_mut(vm);
            (vm.host, vm.decision) = (None, None);
        }
    }
}

fn refuse_unless_dead(cluster: &Cluster, host: &Host, how: &Evacuation) -> Result<(), Refusal> {
    let problem = match cluster.sight(host.id).life {
        Life::Up => "it is up: it ends its machines itself; stop or delete them".to_owned(),
        Life::Unheard => {
            "the scheduler started a moment ago and does not know yet whether it is down: try again".to_owned()
        }
        Life::Down if how.force => return Ok(()),
        Life::Down => {
            "it does not report, which does not prove that its machines are off: were they started elsewhere, two \
                       would have one address. Cut its power or its networks, then say force"
                .to_owned()
        }
    };
    Err(Refusal::State { object: format!("host {}", host.name), problem, field: None })
}

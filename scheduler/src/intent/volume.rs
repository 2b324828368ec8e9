//! Volumes: the data that machines keep, and which host looks after each.
//!
//! ```text
//! wanted ──delete──> retired ──its keeper reports it absent──> forgotten
//! ```
//! The keeper is the one host that has the volume in its specification, so that no two hosts ever make or delete the same data. A local volume
//! never changes its keeper; an RBD volume follows its machine.

use std::sync::Arc;

use model::volume::{Volume, VolumeBackend, VolumeSource};
use model::{HostId, MachineId, Mib, VolumeId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Context, Intent, check_name, clip, find, refuse_users};
use crate::refusal::Refusal;

/// A volume and who looks after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VolumeIntent {
    pub(crate) volume: Volume,
    /// The host that has it in its specification.
    pub(crate) keeper: Option<HostId>,
    /// Whether a host has reported that its data exists.
    pub(crate) created: bool,
    /// Whether its data is to be deleted.
    pub(crate) retired: bool,
    /// Whether it was made for a machine and goes with it.
    pub(crate) goes_with_vm: bool,
}

/// Where a volume's data is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Backend {
    /// A file on one host.
    Local,
    /// A Ceph RBD image.
    Rbd,
}

/// A volume to make.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewVolume {
    /// Its name.
    pub(crate) name: String,
    /// Its size in MiB; the image's size unless said.
    #[schema(value_type = Option<u64>)]
    pub(crate) size_mib: Option<Mib>,
    /// `local` or `rbd`; the scheduler's default unless said.
    pub(crate) backend: Option<Backend>,
    /// The RBD pool; the scheduler's default unless said.
    pub(crate) pool: Option<String>,
    /// The disk image that it is made from, by name or id; zeros unless said.
    pub(crate) image: Option<String>,
}

impl Intent {
    /// Makes a volume.
    pub(crate) fn create_volume(&mut self, context: &mut Context<'_>, new: NewVolume) -> Result<VolumeId, Refusal> {
        self.create_volume_for(context, new, false)
    }

    pub(super) fn create_volume_for(
        &mut self,
        context: &mut Context<'_>,
        new: NewVolume,
        goes_with_vm: bool,
    ) -> Result<VolumeId, Refusal> {
        check_name(&self.volumes, &new.name)?;
        let backend = choose_backend(context, &new)?;
        let (source, size) = match &new.image {
            None => {
                let size =
                    new.size_mib.ok_or_else(|| Refusal::invalid("size_mib", "a volume without image needs it"))?;
                (VolumeSource::Empty, size)
            }
            Some(name) => self.choose_source(name, new.size_mib)?,
        };
        let id = VolumeId::from_uuid((context.draw)());
        let volume = Volume { id, name: new.name, size, backend, source };
        let volume = VolumeIntent { volume, keeper: None, created: false, retired: false, goes_with_vm };
        self.volumes.insert(id, Arc::new(volume));
        Ok(id)
    }

    fn choose_source(&self, name: &str, wanted: Option<Mib>) -> Result<(VolumeSource, Mib), Refusal> {
        let (id, image) = find(&self.images, name, Some("image"))?;
        if !image.kind.is_disk() {
            let problem = format!("image {} is of kind {:?}, want a disk", image.name, image.kind);
            return Err(Refusal::invalid("image", problem));
        }
        let (_, content) = self.ready_image(id, "image")?;
        let least =
            Mib::holding(content.virtual_size_bytes).map_err(|error| Refusal::invalid("image", error.to_string()))?;
        let size = wanted.unwrap_or(least);
        if size < least {
            let problem = format!("{size} is too small: image {} holds a disk of {least}", image.name);
            return Err(Refusal::invalid("size_mib", problem));
        }
        Ok((VolumeSource::Image(id), size))
    }

    /// Has a volume's data deleted.
    pub(crate) fn delete_volume(&mut self, name: &str) -> Result<(), Refusal> {
        let (id, volume) = find(&self.volumes, name, None)?;
        let user = self.volume_user(id).map(|(_, name)| format!("vm {name}"));
        refuse_users(format!("volume {}", volume.volume.name), user)?;
        self.retire_volume(id);
        Ok(())
    }

    /// Marks a volume for deletion; forgets it at once when no host can have made it.
    pub(super) fn retire_volume(&mut self, id: VolumeId) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        if volume.keeper.is_none() && !volume.created {
            self.volumes.remove(&id);
        } else {
            Arc::make_mut(volume).retired = true;
        }
    }

    /// The machine that has a volume, also one that is being deleted, with its name.
    pub(crate) fn volume_user(&self, volume: VolumeId) -> Option<(MachineId, String)> {
        let has = |vm: &super::machine::MachineIntent| vm.machine.disks.iter().any(|disk| disk.volume == volume);
        let vm = self.machines.values().find(|vm| has(vm))?;
        Some((vm.machine.id, vm.machine.name.clone()))
    }
}

fn choose_backend(context: &Context<'_>, new: &NewVolume) -> Result<VolumeBackend, Refusal> {
    match (new.backend.unwrap_or(context.defaults.backend), &new.pool) {
        (Backend::Local, Some(_)) => Err(Refusal::invalid("pool", "a local volume is in no pool")),
        (Backend::Local, None) => Ok(VolumeBackend::Local),
        (Backend::Rbd, pool) => {
            let pool = pool.clone().unwrap_or_else(|| context.defaults.pool.clone());
            let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            if pool.is_empty() || pool.len() > 128 || !pool.chars().all(legal) {
                return Err(Refusal::invalid("pool", format!("{:?} is no name of a pool", clip(&pool))));
            }
            Ok(VolumeBackend::Rbd { pool })
        }
    }
}

//! Block volumes: what data a machine keeps.

use serde::{Deserialize, Serialize};

use crate::id::{ImageId, VolumeId};
use crate::units::Mib;

/// A block volume that should exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Identity.
    pub id: VolumeId,
    /// Name given by its owner.
    pub name: String,
    /// Its size; at least the virtual size of the image that it is made from.
    pub size: Mib,
    /// Where its data is.
    pub backend: VolumeBackend,
    /// What is in it when it is new.
    pub source: VolumeSource,
}

/// Where a volume's data is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum VolumeBackend {
    /// A sparse file on the host: the volume lives and dies with that host.
    Local,
    /// A Ceph RBD image: any host can open it.
    Rbd {
        /// The pool.
        pool: String,
    },
}

/// What is in a new volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeSource {
    /// Zeros.
    Empty,
    /// The disk image.
    Image(ImageId),
}

impl Volume {
    /// The name of the RBD image or the stem of the file that holds this volume.
    #[must_use]
    pub fn storage_name(&self) -> String {
        format!("volume-{}", self.id)
    }
}

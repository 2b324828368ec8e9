//! Volumes and images in a Ceph cluster, through librbd in user space.
//!
//! librados and librbd are loaded at run time: a host without Ceph pays nothing for them, and one that lacks them gets an
//! error that names the Debian package. Every call is bounded in time (see [`cluster::Timeouts`]): an unreachable
//! cluster is an error, never a hang.
//!
//! | part | what it owns |
//! |---|---|
//! | [`cluster`] | a connection and a pool |
//! | [`image`] | create, clone, snapshot, grow, rename, remove |
//! | [`fence`] | who holds an image, and taking it from a dead holder |
//! | `lease` | what only one host may do at a time |
//! | [`volume`] | an open image as a volume |
//! | `ffi`, `handle`, `completion` | the C interface: declarations, owners of handles, I/O in flight |
//!
//! Never fork without exec in a process that has used this module: the child would draw the same client nonce and be
//! taken for its parent.

pub mod cluster;
mod completion;
pub mod fence;
mod ffi;
mod handle;
pub mod image;
pub(crate) mod lease;
pub mod volume;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use cluster::{Pool, Timeouts};
pub use fence::Owner;
pub use volume::RbdVolume;

/// What can go wrong with Ceph.
#[derive(Debug, thiserror::Error)]
pub enum RbdError {
    /// librados or librbd is not installed, or too old.
    #[error("cannot load {library}: install the Debian package {package} (apt-get install {package})")]
    Library {
        /// The shared library.
        library: &'static str,
        /// The Debian package that has it.
        package: &'static str,
        /// Why.
        #[source]
        source: libloading::Error,
    },
    /// The configuration file cannot be used.
    #[error("cannot use the Ceph configuration {}", conf.display())]
    Configuration {
        /// The file.
        conf: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A name has a zero byte in it.
    #[error("{text:?} is no name for Ceph: it has a zero byte")]
    Name {
        /// The name.
        text: String,
    },
    /// The cluster did not answer in time.
    #[error(
        "cannot reach the Ceph cluster of {} within {} s: are its monitors up, and is the network to them?",
        conf.display(), waited.as_secs()
    )]
    Unreachable {
        /// The configuration that names the monitors.
        conf: PathBuf,
        /// How long was waited.
        waited: Duration,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The cluster knows no such user, or its key or rights do not do.
    #[error("the Ceph cluster of {} refuses client.{user}: check its keyring and its rights", conf.display())]
    Refused {
        /// The configuration.
        conf: PathBuf,
        /// The user.
        user: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no such pool.
    #[error("the Ceph cluster has no pool {pool}")]
    NoPool {
        /// The pool.
        pool: String,
    },
    /// There is no such image or snapshot.
    #[error("cannot {attempt} {image}: there is no such image or snapshot")]
    NotFound {
        /// What was attempted.
        attempt: &'static str,
        /// The image, as `pool/image` or `pool/image@snapshot`.
        image: String,
    },
    /// The name is taken.
    #[error("cannot {attempt} {image}: the name is taken")]
    Exists {
        /// What was attempted.
        attempt: &'static str,
        /// The image.
        image: String,
    },
    /// Another client has the image's exclusive lock.
    #[error("{image} is in use by {owner}")]
    Held {
        /// The image.
        image: String,
        /// Who has it.
        owner: Owner,
    },
    /// Others have the image open, or clones live on the snapshot.
    #[error("cannot {attempt} {image}: it is in use by {users}")]
    InUse {
        /// What was attempted.
        attempt: &'static str,
        /// The image.
        image: String,
        /// Client addresses or clones.
        users: String,
    },
    /// The image has snapshots, which live on it.
    #[error("cannot {attempt} {image}: it has snapshots")]
    HasSnapshots {
        /// What was attempted.
        attempt: &'static str,
        /// The image.
        image: String,
    },
    /// The image cannot have an exclusive lock.
    #[error("{image} was made without the exclusive-lock feature: `rbd feature enable {image} exclusive-lock`")]
    NoLock {
        /// The image.
        image: String,
    },
    /// The image would become smaller.
    #[error("{image} cannot have {to_bytes} bytes: it has {from_bytes} already")]
    Shrink {
        /// The image.
        image: String,
        /// Its size.
        from_bytes: u64,
        /// The size that was asked for.
        to_bytes: u64,
    },
    /// The size is zero or not a multiple of a sector.
    #[error("{image} cannot have {size_bytes} bytes: not a positive multiple of 512")]
    Size {
        /// The image.
        image: String,
        /// The size.
        size_bytes: u64,
    },
    /// This client has been fenced.
    #[error("cannot {attempt} {image}: the cluster has fenced this client; another has taken over")]
    Fenced {
        /// What was attempted.
        attempt: &'static str,
        /// The image.
        image: String,
    },
    /// The cluster was reached before but gave no answer in time.
    #[error("cannot {attempt} {image}: the cluster gave no answer in time; is it up, and has it room? (ceph -s)")]
    TimedOut {
        /// What was attempted.
        attempt: &'static str,
        /// The image.
        image: String,
    },
    /// The pool or the cluster is full.
    #[error("cannot {attempt} {image}: the pool is full")]
    NoSpace {
        /// What was attempted.
        attempt: &'static str,
        /// The image.
        image: String,
    },
    /// Any other error.
    #[error("cannot {attempt} {image}")]
    Failed {
        /// What was attempted.
        attempt: &'static str,
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl RbdError {
    /// Gives the errno of a failed attempt on `image` its meaning, as far as it is the same for every attempt.
    fn from_errno(attempt: &'static str, image: &str, errno: handle::Errno) -> Self {
        let image = image.to_owned();
        match errno.0 {
            libc::ENOENT => Self::NotFound { attempt, image },
            libc::EEXIST => Self::Exists { attempt, image },
            libc::ENOTEMPTY => Self::HasSnapshots { attempt, image },
            libc::ESHUTDOWN => Self::Fenced { attempt, image },
            libc::ETIMEDOUT => Self::TimedOut { attempt, image },
            libc::ENOSPC | libc::EDQUOT => Self::NoSpace { attempt, image },
            _ => Self::Failed { attempt, image, source: errno.into() },
        }
    }
}

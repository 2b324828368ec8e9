//! Where a volume lives, in the form that configurations carry, and the one door to an open volume.
//!
//! It never makes or removes a volume: see [`crate::file`] and [`crate::rbd`] for that.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::file::{FileError, PreparedFile};
use crate::rbd::cluster::files_read;
use crate::rbd::{RbdError, RbdVolume};
use crate::volume::Volume;

/// Where a volume lives: `{"file": {…}}` or `{"rbd": {…}}`. Unknown fields are refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// A raw file on a local file system.
    File(FileSource),
    /// An image in a Ceph pool, through librbd.
    Rbd(RbdSource),
}

/// A raw file on a local file system.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSource {
    /// The file; its length is the volume's size.
    pub path: PathBuf,
    /// Whether I/O passes the page cache by (`O_DIRECT`).
    #[serde(default)]
    pub direct: bool,
}

/// An image in a Ceph pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RbdSource {
    /// The cluster's configuration file, which also names the keyring.
    pub conf: PathBuf,
    /// The cephx user without its `client.` prefix, for example `admin`.
    pub user: String,
    /// The pool.
    pub pool: String,
    /// The image.
    pub image: String,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => write!(f, "file {}", file.path.display()),
            Self::Rbd(rbd) => write!(f, "rbd {}/{}", rbd.pool, rbd.image),
        }
    }
}

/// What to do where another holds a volume's lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Takeover {
    /// Fail with an error that names the holder. A holder known to be gone (its client watches the image no more) is
    /// not in the way.
    #[default]
    Refuse,
    /// RBD only: block the holder's client at the cluster, break its lock and take it (about 1.5 s). The old holder's
    /// next write fails as fenced. Only for a caller that knows the holder to be dead or unwanted.
    Fence,
}

/// How to open a volume.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Refuse every change, and share the volume with other readers.
    pub read_only: bool,
    /// Most requests in flight at once, 1 to [`OpenOptions::IN_FLIGHT_LIMIT`].
    pub in_flight_max: u16,
    /// What to do where another holds the lock.
    pub takeover: Takeover,
    /// A word on who opens it (a VM, a host), shown to the next one who finds the volume locked. RBD only.
    pub holder: String,
    /// How long one RBD request may take before it fails with [`crate::volume::Fault::TimedOut`]; `None` waits for ever.
    pub io_timeout: Option<Duration>,
    /// How long reaching the Ceph cluster may take.
    pub connect_timeout: Duration,
    /// How file I/O is done.
    pub engine: Engine,
}

/// How I/O on a file is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// io_uring, or a bounded pool of threads where the kernel refuses it.
    #[default]
    Automatic,
    /// The pool of threads.
    Threads,
}

impl OpenOptions {
    /// The upper bound of [`OpenOptions::in_flight_max`].
    pub const IN_FLIGHT_LIMIT: u16 = 1024;
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            // One virtqueue of 128 descriptors' worth of single-sector requests; more only adds latency.
            in_flight_max: 128,
            takeover: Takeover::Refuse,
            holder: String::new(),
            // Longer than an OSD's failure is noticed and repaired (some 20 s), shorter than a guest's 180 s patience.
            io_timeout: Some(Duration::from_secs(60)),
            // Several round trips and a cold start of the library; emulated hosts take seconds for it.
            connect_timeout: Duration::from_secs(20),
            engine: Engine::Automatic,
        }
    }
}

/// Why a volume could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// An option is out of its range.
    #[error("cannot open {volume}: in_flight_max {in_flight_max} is not within 1 to {}", OpenOptions::IN_FLIGHT_LIMIT)]
    Options {
        /// The volume, as text.
        volume: String,
        /// The value that was asked for.
        in_flight_max: u16,
    },
    /// The file backend failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The RBD backend failed.
    #[error(transparent)]
    Rbd(#[from] RbdError),
}

/// A volume that is all but open: what took the caller's rights is done, and no thread has been started yet. For a process that gives up those
/// rights in between.
#[derive(Debug)]
pub struct Prepared {
    backend: PreparedBackend,
    options: OpenOptions,
}

#[derive(Debug)]
enum PreparedBackend {
    File(PreparedFile),
    Rbd { source: RbdSource, reads: Vec<PathBuf> },
}

impl Prepared {
    /// Opens and locks a file; loads the libraries of Ceph and finds out what they will read, without speaking to the cluster.
    ///
    /// # Errors
    /// [`OpenError`]: no such file, another holds it, no library, no usable configuration, …
    pub fn new(source: &Source, options: &OpenOptions) -> Result<Self, OpenError> {
        if !(1..=OpenOptions::IN_FLIGHT_LIMIT).contains(&options.in_flight_max) {
            return Err(OpenError::Options { volume: source.to_string(), in_flight_max: options.in_flight_max });
        }
        let backend = match source {
            Source::File(file) => PreparedBackend::File(PreparedFile::open(file, options)?),
            Source::Rbd(rbd) => PreparedBackend::Rbd { source: rbd.clone(), reads: files_read(&rbd.conf, &rbd.user)? },
        };
        Ok(Self { backend, options: options.clone() })
    }

    /// The files and directories that [`Prepared::open`] and the threads that it starts read.
    #[must_use]
    pub fn reads(&self) -> &[PathBuf] {
        match &self.backend {
            PreparedBackend::File(_) => &[],
            PreparedBackend::Rbd { reads, .. } => reads,
        }
    }

    /// Opens the volume: starts its threads, takes an image's lock, learns its size.
    ///
    /// # Errors
    /// [`OpenError`]: the cluster cannot be reached in time, another holds the image, …
    pub fn open(self) -> Result<Volume, OpenError> {
        match self.backend {
            PreparedBackend::File(file) => Ok(Volume::from(file.start(&self.options)?)),
            PreparedBackend::Rbd { source, .. } => Ok(Volume::from(RbdVolume::open(&source, &self.options)?)),
        }
    }
}

/// Opens the volume at `source`: takes its lock, learns its size and makes it ready for requests.
///
/// # Errors
/// [`OpenError`]: the volume does not exist, another holds it, the cluster cannot be reached in time, …
pub fn open(source: &Source, options: &OpenOptions) -> Result<Volume, OpenError> {
    Prepared::new(source, options)?.open()
}

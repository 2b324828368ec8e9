//! A connection to a Ceph cluster and one of its pools.
//!
//! Connecting is bounded, and so is every later operation: librados would wait for ever by default. The handles are kept
//! alive by whatever was opened through them.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::RbdError;
use super::ffi;
use super::handle::{Errno, PoolOwner, RadosOwner, c_string};
use crate::volume::SECTOR_BYTES;

/// How long Ceph may take for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Reaching the cluster and being let in.
    pub connect: Duration,
    /// One operation on a connected cluster; `None` waits for ever.
    pub operation: Option<Duration>,
}

impl Default for Timeouts {
    /// For management calls: 10 s to connect, 30 s for an operation, which spans the failure of an OSD.
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), operation: Some(Duration::from_secs(30)) }
    }
}

/// The health checks that say that writes wait for space (docs.ceph.com, "Health checks").
const FULL_CHECKS: [&str; 2] = ["OSD_FULL", "POOL_FULL"];

/// What librados and the C library look up on their own (seen by strace): names of monitors, the time zone of logs, OpenSSL's defaults, the
/// processors, and parts of the libraries that are loaded late.
const LOOKED_UP: [&str; 13] = [
    "/etc/ssl/openssl.cnf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/localtime",
    "/etc/ld.so.cache",
    "/sys/devices/system",
    "/usr/share/zoneinfo",
    "/usr/lib",
    "/lib",
    "/lib64",
];

/// A pool of a connected cluster. Cheap to clone; the connection ends with the last clone and the last open image.
#[derive(Clone)]
pub struct Pool {
    name: String,
    owner: Arc<PoolOwner>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Pool {
    /// Connects to the cluster of `conf` as `client.user` and opens the pool.
    ///
    /// # Errors
    /// [`RbdError`]: librbd is missing, the cluster cannot be reached in time or refuses the user, there is no such pool.
    pub fn connect(conf: &Path, user: &str, pool: &str, timeouts: Timeouts) -> Result<Self, RbdError> {
        let configuration = |errno: Errno| unusable(conf, errno.into());
        let rados = configured(conf, user)?;
        for (option, value) in settings(timeouts) {
            rados.set(&c_string(option)?, &c_string(&value)?).map_err(configuration)?;
        }
        rados.connect().map_err(|errno| refusal(conf, user, timeouts.connect, errno))?;
        let rados = Arc::new(rados);
        match PoolOwner::new(&rados, &c_string(pool)?) {
            Ok(owner) => Ok(Self { name: pool.to_owned(), owner: Arc::new(owner) }),
            Err(Errno(libc::ENOENT)) => Err(RbdError::NoPool { pool: pool.to_owned() }),
            Err(errno) => Err(RbdError::from_errno("open the pool", pool, errno)),
        }
    }

    /// The pool's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster's id.
    ///
    /// # Errors
    /// [`RbdError`].
    pub fn fsid(&self) -> Result<String, RbdError> {
        self.owner.rados().fsid().map_err(|errno| RbdError::from_errno("ask for the cluster id of", &self.name, errno))
    }

    /// Whether the cluster says that it, or one of its pools, takes no more writes for want of space. Writes to a full
    /// pool do not fail, they wait; this tells such a wait from others.
    ///
    /// # Errors
    /// [`RbdError`].
    pub fn is_full(&self) -> Result<bool, RbdError> {
        let answer = self.owner.rados().ask_monitors(c"{\"prefix\": \"health\", \"format\": \"json\"}");
        let answer = answer.map_err(|errno| RbdError::from_errno("ask for the health of", &self.name, errno))?;
        let health: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
        Ok(FULL_CHECKS.iter().any(|check| health["checks"].get(check).is_some()))
    }

    /// librbd leaves alone what a discard does not cover in whole pieces of this size (`rbd_discard_granularity_bytes`, a power of two); 0 there
    /// means that it frees whatever it is asked to.
    pub(super) fn discard_granularity_bytes(&self) -> Result<u64, RbdError> {
        let failed = |errno| RbdError::from_errno("ask for the discard granularity of", &self.name, errno);
        let text = self.owner.rados().option(c"rbd_discard_granularity_bytes").map_err(failed)?;
        Ok(text.trim().parse::<u64>().unwrap_or(0).max(SECTOR_BYTES))
    }

    pub(super) fn owner(&self) -> &Arc<PoolOwner> {
        &self.owner
    }

    /// The image's name as people write it.
    pub(super) fn image_name(&self, image: &str) -> String {
        format!("{}/{image}", self.name)
    }
}

/// A handle that has read its configuration and is not connected.
fn configured(conf: &Path, user: &str) -> Result<RadosOwner, RbdError> {
    let configuration = |errno: Errno| unusable(conf, errno.into());
    let rados = RadosOwner::new(ffi::functions()?, &c_string(user)?).map_err(configuration)?;
    let path = CString::new(conf.as_os_str().as_bytes()).map_err(|error| unusable(conf, error.into()))?;
    rados.read_configuration(&path).map_err(configuration)?;
    Ok(rados)
}

fn unusable(conf: &Path, source: io::Error) -> RbdError {
    RbdError::Configuration { conf: conf.to_owned(), source }
}

/// The files that connecting and opening images reads: the configuration, the keyrings that it names, and what the libraries look up.
/// Those that are not there are left out.
pub(crate) fn files_read(conf: &Path, user: &str) -> Result<Vec<PathBuf>, RbdError> {
    let rados = configured(conf, user)?;
    let mut paths = vec![conf.to_owned()];
    for option in [c"keyring", c"keyfile"] {
        let value = rados.option(option).map_err(|errno| unusable(conf, errno.into()))?;
        // A list of candidates; Ceph splits it at these (`get_str_list`).
        paths.extend(value.split([';', ',', ' ', '\t']).filter(|path| !path.is_empty()).map(PathBuf::from));
    }
    paths.extend(LOOKED_UP.iter().map(PathBuf::from));
    paths.retain(|path| path.exists());
    Ok(paths)
}

/// What is set on every connection, over what the configuration file says.
fn settings(timeouts: Timeouts) -> Vec<(&'static str, String)> {
    // Ceph counts in whole seconds; 0 would mean for ever.
    let seconds = |duration: Duration| duration.as_secs().max(1).to_string();
    let operation = timeouts.operation.map_or_else(|| "0".to_owned(), seconds);
    vec![
        ("client_mount_timeout", seconds(timeouts.connect)),
        ("rados_mon_op_timeout", operation.clone()),
        ("rados_osd_op_timeout", operation),
        // A completed write is on the OSDs, and memory stays what the guest was given: the guest has a cache of its own.
        ("rbd_cache", "false".to_owned()),
    ]
}

/// The meaning of a failed connect.
fn refusal(conf: &Path, user: &str, waited: Duration, errno: Errno) -> RbdError {
    let conf = conf.to_owned();
    let source = io::Error::from(errno);
    match errno.0 {
        libc::ETIMEDOUT => RbdError::Unreachable { conf, waited, source },
        libc::EACCES | libc::EPERM | libc::ENOENT => RbdError::Refused { conf, user: user.to_owned(), source },
        _ => RbdError::Configuration { conf, source },
    }
}

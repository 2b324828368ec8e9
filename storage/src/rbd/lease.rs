//! A lease: the right to do something that only one host may do at a time, until it is given back or runs out.
//!
//! It is an advisory lock with a time limit on an object of the pool (librados, `rados_lock_exclusive`): the OSD holds
//! it, so it outlives no holder for longer than [`LEASE_SECONDS`]. A holder renews it while it works, and learns then
//! whether it still has it.

use std::time::{Duration, Instant};

use super::handle::{Errno, c_string};
use super::{Pool, RbdError};

/// How long a lease lasts without being renewed: longer than one operation on the cluster may take.
const LEASE_SECONDS: u32 = 60;

/// How often a holder that works renews it.
const RENEW_INTERVAL: Duration = Duration::from_secs(10);

/// A lease that this process holds. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Lease {
    pool: Pool,
    name: String,
    cookie: String,
    renewed: Instant,
}

impl Lease {
    /// Takes the lease of that name; `None` where another has it.
    pub(crate) fn take(pool: &Pool, name: &str) -> Result<Option<Self>, RbdError> {
        // Tells the leases of one client apart.
        let cookie = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default().trim().to_owned();
        let mut lease = Self { pool: pool.clone(), name: name.to_owned(), cookie, renewed: Instant::now() };
        match lease.lock() {
            Ok(()) => Ok(Some(lease)),
            Err(Errno(libc::EBUSY | libc::EEXIST)) => {
                lease.name.clear();
                Ok(None)
            }
            Err(errno) => {
                lease.name.clear();
                Err(pool.failed("take the lease", name, errno))
            }
        }
    }

    /// Renews the lease, if it is time.
    ///
    /// # Errors
    /// Where another has it by now, or the cluster gives no answer.
    pub(crate) fn renew(&mut self) -> Result<(), RbdError> {
        if self.renewed.elapsed() < RENEW_INTERVAL { Ok(()) } else { self.renew_now() }
    }

    /// Renews the lease.
    ///
    /// # Errors
    /// As [`Lease::renew`].
    pub(crate) fn renew_now(&mut self) -> Result<(), RbdError> {
        self.lock().map_err(|errno| self.pool.failed("renew the lease", &self.name, errno))
    }

    fn lock(&mut self) -> Result<(), Errno> {
        let (Ok(object), Ok(cookie)) = (c_string(&self.name), c_string(&self.cookie)) else {
            return Err(Errno(libc::EINVAL));
        };
        self.pool.owner().lock_object(&object, &cookie, LEASE_SECONDS)?;
        self.renewed = Instant::now();
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Removing the object gives the lock back too. Only while it is surely ours.
        let ours = self.renewed.elapsed() < Duration::from_secs(LEASE_SECONDS.into());
        let Ok(object) = c_string(&self.name) else { return };
        if self.name.is_empty() || !ours {
            return;
        }
        if let Err(errno) = self.pool.owner().remove_object(&object) {
            tracing::warn!(lease = self.name, error = %std::io::Error::from(errno), "a lease was not given back");
        }
    }
}

//! Who holds an image's exclusive lock, and taking it from a holder that is dead or unwanted.
//!
//! A holder that dies stays a watcher of its image for 30 s, in which Ceph cannot tell it from one that is slow. Waiting
//! is safe and needs nothing; fencing is at once: the cluster is told to refuse every later word of the old client
//! (block list), and only then its lock is broken, so that a holder that was alive after all can do no harm. Its next
//! write fails with ESHUTDOWN. (docs.ceph.com, "RBD Exclusive Locks"; the order is what makes it a fence.)

use std::fmt;

use super::handle::{Errno, ImageOwner, c_string};
use super::{Pool, RbdError};
use crate::source::Takeover;

/// Where an image keeps the word of whoever opened it last.
pub(super) const HOLDER_KEY: &std::ffi::CStr = c"basalt.holder";

/// How long the cluster refuses a fenced client. A client that comes back later has lost its watch and its lock long
/// since, and finds that out first.
const BLOCK_SECONDS: u32 = 3600;

/// Who has an image's exclusive lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The address of its client, with the nonce that makes it unique: `10.0.0.1:0/123`.
    pub address: String,
    /// What it said of itself when it opened the image; empty where it said nothing.
    pub holder: String,
    /// Whether its client watched the image in the last 30 s.
    pub is_watching: bool,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the client at {}", self.address)?;
        if !self.holder.is_empty() {
            write!(f, " ({})", self.holder)?;
        }
        if self.is_watching { f.write_str(", seen in the last 30 s") } else { f.write_str(", not seen for 30 s") }
    }
}

impl Pool {
    /// Who has the image's exclusive lock.
    ///
    /// # Errors
    /// [`RbdError`].
    pub fn lock_owner(&self, image: &str) -> Result<Option<Owner>, RbdError> {
        // An image opened read-only knows no lock: librbd answers EINVAL.
        owner_of(self, image, &self.open_to_change(image)?)
    }

    /// Fences the client that has the image's exclusive lock, if any, and breaks the lock. Returns who it was.
    ///
    /// Only for a caller that knows the holder to be dead or unwanted: whatever it has not written yet is lost.
    ///
    /// # Errors
    /// [`RbdError`].
    pub fn fence(&self, image: &str) -> Result<Option<Owner>, RbdError> {
        let open = self.open_to_change(image)?;
        let owner = owner_of(self, image, &open)?;
        if let Some(owner) = &owner {
            expel(self, image, &open, owner)?;
        }
        Ok(owner)
    }
}

impl Pool {
    /// Fences the client at `address`, and no other, if it has the image's exclusive lock; says whether it had.
    ///
    /// Only for a caller that knows this client to be dead: another that took the image over meanwhile has another address and is left alone.
    ///
    /// # Errors
    /// [`RbdError`].
    pub fn fence_client(&self, image: &str, address: &str) -> Result<bool, RbdError> {
        let open = self.open_to_change(image)?;
        match owner_of(self, image, &open)? {
            Some(owner) if owner.address == address => expel(self, image, &open, &owner).map(|()| true),
            _ => Ok(false),
        }
    }
}

/// Takes the exclusive lock of an open image, as far as `takeover` allows.
pub(super) fn acquire(pool: &Pool, image: &str, open: &ImageOwner, takeover: Takeover) -> Result<(), RbdError> {
    if let Some(owner) = owner_of(pool, image, open)? {
        match takeover {
            Takeover::Refuse if owner.is_watching => {
                return Err(RbdError::Held { image: pool.image_name(image), owner });
            }
            // librbd itself fences an owner that does not watch any more.
            Takeover::Refuse => {}
            Takeover::Fence => expel(pool, image, open, &owner)?,
        }
    }
    match open.acquire_lock() {
        Ok(()) => Ok(()),
        // Another was faster.
        Err(errno @ Errno(libc::EROFS | libc::EBUSY | libc::EAGAIN | libc::EPERM)) => {
            match owner_of(pool, image, open)? {
                Some(owner) => Err(RbdError::Held { image: pool.image_name(image), owner }),
                None => Err(pool.failed("lock", image, errno)),
            }
        }
        Err(Errno(libc::EINVAL)) => Err(RbdError::NoLock { image: pool.image_name(image) }),
        Err(errno) => Err(pool.failed("lock", image, errno)),
    }
}

/// Blocks the owner's client, then breaks its lock. The order matters: see the module.
fn expel(pool: &Pool, image: &str, open: &ImageOwner, owner: &Owner) -> Result<(), RbdError> {
    let address = c_string(&owner.address)?;
    let rados = open.rados();
    rados.block(&address, BLOCK_SECONDS).map_err(|errno| pool.failed("block the holder of", image, errno))?;
    rados.wait_for_newest_map().map_err(|errno| pool.failed("wait for the fence of", image, errno))?;
    tracing::warn!(image, owner = %owner, "fenced the holder of an image");
    match open.break_lock(&address) {
        // Gone meanwhile is as good.
        Ok(()) | Err(Errno(libc::ENOENT)) => Ok(()),
        Err(errno) => Err(pool.failed("break the lock of", image, errno)),
    }
}

fn owner_of(pool: &Pool, image: &str, open: &ImageOwner) -> Result<Option<Owner>, RbdError> {
    let Some(address) = open.lock_owner().map_err(|errno| pool.failed("ask who holds", image, errno))? else {
        return Ok(None);
    };
    let watchers = open.watchers().map_err(|errno| pool.failed("ask who watches", image, errno))?;
    let is_watching = watchers.contains(&address);
    // Only for the message: an image that was opened by others has none.
    let holder = open.metadata(HOLDER_KEY).unwrap_or_default();
    Ok(Some(Owner { address, holder, is_watching }))
}

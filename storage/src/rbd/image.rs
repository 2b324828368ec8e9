//! Images of a pool: create, clone, snapshot, grow, rename, remove. Blocking calls for a thread of the caller's own.
//!
//! Every image gets the features that Basalt relies on ([`FEATURES`]): the exclusive lock above all, which is what
//! fences a dead holder. Changes that others would suffer from are refused with the names of those others.

use super::ffi::feature;
use super::handle::{Errno, ImageOwner, c_string};
use super::{Pool, RbdError};
use crate::volume::SECTOR_BYTES;

/// The features of every image that Basalt makes.
pub const FEATURES: u64 =
    feature::LAYERING | feature::EXCLUSIVE_LOCK | feature::OBJECT_MAP | feature::FAST_DIFF | feature::DEEP_FLATTEN;

/// What is known of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Its size.
    pub size_bytes: u64,
    /// The size of the objects that it is cut into.
    pub object_bytes: u64,
    /// Whether it can have an exclusive lock.
    pub has_exclusive_lock: bool,
}

/// A snapshot of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// The image's size when it was taken.
    pub size_bytes: u64,
    /// Whether it is protected, so that it can have clones and cannot be removed.
    pub is_protected: bool,
}

impl Pool {
    /// Makes an empty image.
    ///
    /// # Errors
    /// [`RbdError`]: the name is taken, the size is not a positive multiple of 512, …
    pub fn create(&self, image: &str, size_bytes: u64) -> Result<(), RbdError> {
        self.check_size(image, size_bytes)?;
        let created = self.owner().create(&c_string(image)?, size_bytes, FEATURES);
        created.map_err(|errno| self.failed("create", image, errno))
    }

    /// Makes `child` a copy-on-write clone of the snapshot `parent@snapshot`, grown to `size_bytes`.
    ///
    /// # Errors
    /// [`RbdError`]: no such snapshot, the name is taken, the size is smaller than the parent's, …
    pub fn clone_image(&self, parent: &str, snapshot: &str, child: &str, size_bytes: u64) -> Result<(), RbdError> {
        self.check_size(child, size_bytes)?;
        let from_bytes = self.snapshot(parent, snapshot)?.size_bytes;
        if size_bytes < from_bytes {
            return Err(RbdError::Shrink { image: self.image_name(child), from_bytes, to_bytes: size_bytes });
        }
        let cloned = self.owner().clone_image(&c_string(parent)?, &c_string(snapshot)?, &c_string(child)?, FEATURES);
        cloned.map_err(|errno| match errno {
            Errno(libc::ENOENT) => self.failed("clone from", &format!("{parent}@{snapshot}"), errno),
            errno => self.failed("clone into", child, errno),
        })?;
        if size_bytes == from_bytes {
            return Ok(());
        }
        self.grow(child, size_bytes).inspect_err(|_| {
            // Half a clone is worse than none.
            if let Err(error) = self.remove(child) {
                tracing::warn!(%error, child, "a clone that could not be grown could not be removed either");
            }
        })
    }

    /// The names of all images, sorted.
    ///
    /// # Errors
    /// [`RbdError`].
    pub fn list(&self) -> Result<Vec<String>, RbdError> {
        let mut names =
            self.owner().list().map_err(|errno| RbdError::from_errno("list the images of", self.name(), errno))?;
        names.sort_unstable();
        Ok(names)
    }

    /// What is known of the image.
    ///
    /// # Errors
    /// [`RbdError`].
    pub fn stat(&self, image: &str) -> Result<Stat, RbdError> {
        let open = self.open_to_look(image)?;
        let (size_bytes, object_bytes) = open.stat().map_err(|errno| self.failed("stat", image, errno))?;
        let features = open.features().map_err(|errno| self.failed("ask for the features of", image, errno))?;
        Ok(Stat { size_bytes, object_bytes, has_exclusive_lock: features & feature::EXCLUSIVE_LOCK != 0 })
    }

    /// Grows the image. Shrinking is refused: it would cut data off.
    ///
    /// # Errors
    /// [`RbdError`].
    pub fn grow(&self, image: &str, size_bytes: u64) -> Result<(), RbdError> {
        self.check_size(image, size_bytes)?;
        let open = self.open_to_change(image)?;
        let (from_bytes, _) = open.stat().map_err(|errno| self.failed("stat", image, errno))?;
        if size_bytes < from_bytes {
            return Err(RbdError::Shrink { image: self.image_name(image), from_bytes, to_bytes: size_bytes });
        }
        open.resize(size_bytes).map_err(|errno| self.failed("grow", image, errno))
    }

    /// Renames an image.
    ///
    /// # Errors
    /// [`RbdError::Exists`] where the new name is taken, and others.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), RbdError> {
        let renamed = self.owner().rename(&c_string(from)?, &c_string(to)?);
        renamed.map_err(|errno| match errno {
            Errno(libc::EEXIST) => self.failed("rename to", to, errno),
            errno => self.failed("rename", from, errno),
        })
    }

    /// Removes an image that nobody has open and that has no snapshots.
    ///
    /// # Errors
    /// [`RbdError::InUse`] with the clients that have it open, [`RbdError::HasSnapshots`], and others.
    pub fn remove(&self, image: &str) -> Result<(), RbdError> {
        match self.owner().remove(&c_string(image)?) {
            Ok(()) => Ok(()),
            Err(Errno(libc::EBUSY)) => {
                let watchers = self.open_to_look(image)?.watchers().unwrap_or_default();
                let users = format!("clients at {}", watchers.join(", "));
                Err(RbdError::InUse { attempt: "remove", image: self.image_name(image), users })
            }
            Err(errno) => Err(self.failed("remove", image, errno)),
        }
    }

    /// Takes a snapshot.
    ///
    /// # Errors
    /// [`RbdError`].
    pub fn create_snapshot(&self, image: &str, snapshot: &str) -> Result<(), RbdError> {
        let created = self.open_to_change(image)?.create_snapshot(&c_string(snapshot)?);
        created.map_err(|errno| self.failed("snapshot", &format!("{image}@{snapshot}"), errno))
    }

    /// Protects a snapshot, so that it can be cloned and not removed. Protecting it again is harmless.
    ///
    /// # Errors
    /// [`RbdError`].
    pub fn protect(&self, image: &str, snapshot: &str) -> Result<(), RbdError> {
        match self.open_to_change(image)?.protect(&c_string(snapshot)?) {
            // It is protected already.
            Ok(()) | Err(Errno(libc::EBUSY)) => Ok(()),
            Err(errno) => Err(self.failed("protect", &format!("{image}@{snapshot}"), errno)),
        }
    }

    /// Removes a snapshot, protected or not.
    ///
    /// # Errors
    /// [`RbdError::InUse`] with the clones that live on it, and others.
    pub fn remove_snapshot(&self, image: &str, snapshot: &str) -> Result<(), RbdError> {
        let label = format!("{image}@{snapshot}");
        let name = c_string(snapshot)?;
        let open = self.open_to_change(image)?;
        let protected = open.is_protected(&name).map_err(|errno| self.failed("remove", &label, errno))?;
        if protected {
            match open.unprotect(&name) {
                Ok(()) => {}
                Err(Errno(libc::EBUSY)) => {
                    open.show_snapshot(&name).map_err(|errno| self.failed("look at", &label, errno))?;
                    let clones = open.children().map_err(|errno| self.failed("list the clones of", &label, errno))?;
                    let users = format!("clones {}", clones.join(", "));
                    return Err(RbdError::InUse { attempt: "remove", image: self.image_name(&label), users });
                }
                Err(errno) => return Err(self.failed("unprotect", &label, errno)),
            }
        }
        open.remove_snapshot(&name).map_err(|errno| self.failed("remove", &label, errno))
    }

    /// All snapshots of the image.
    ///
    /// # Errors
    /// [`RbdError`].
    pub fn snapshots(&self, image: &str) -> Result<Vec<Snapshot>, RbdError> {
        let open = self.open_to_look(image)?;
        let found = open.snapshots().map_err(|errno| self.failed("list the snapshots of", image, errno))?;
        found
            .into_iter()
            .map(|(name, size_bytes)| {
                let protected = open.is_protected(&c_string(&name)?);
                let is_protected = protected.map_err(|errno| self.failed("look at a snapshot of", image, errno))?;
                Ok(Snapshot { name, size_bytes, is_protected })
            })
            .collect()
    }

    /// One snapshot of the image.
    ///
    /// # Errors
    /// [`RbdError::NotFound`] where there is none of that name, and others.
    pub fn snapshot(&self, image: &str, snapshot: &str) -> Result<Snapshot, RbdError> {
        let found = self.snapshots(image)?.into_iter().find(|found| found.name == snapshot);
        found.ok_or_else(|| self.failed("look at", &format!("{image}@{snapshot}"), Errno(libc::ENOENT)))
    }

    /// Opens the image for a look: takes no lock and is no watcher.
    pub(super) fn open_to_look(&self, image: &str) -> Result<ImageOwner, RbdError> {
        ImageOwner::open(self.owner(), &c_string(image)?, true).map_err(|errno| self.failed("open", image, errno))
    }

    /// Opens the image for a change; librbd asks the lock's owner, if there is one, to let it happen.
    pub(super) fn open_to_change(&self, image: &str) -> Result<ImageOwner, RbdError> {
        ImageOwner::open(self.owner(), &c_string(image)?, false).map_err(|errno| self.failed("open", image, errno))
    }

    pub(super) fn failed(&self, attempt: &'static str, image: &str, errno: Errno) -> RbdError {
        RbdError::from_errno(attempt, &self.image_name(image), errno)
    }

    fn check_size(&self, image: &str, size_bytes: u64) -> Result<(), RbdError> {
        if size_bytes > 0 && size_bytes.is_multiple_of(SECTOR_BYTES) && i64::try_from(size_bytes).is_ok() {
            Ok(())
        } else {
            Err(RbdError::Size { image: self.image_name(image), size_bytes })
        }
    }
}

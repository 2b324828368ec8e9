//! A file in the making: nobody sees it until it is whole, and nothing of it is left where making it fails.
//!
//! ```text
//!   Draft::new(path) ──write──▶ publish() ──▶ the file at `path`, on disk
//!        │ drop, or death of the process: gone
//! ```
//!
//! Where the file system can, a draft has no name at all (open(2), `O_TMPFILE`), so that even SIGKILL leaves nothing.
//! Elsewhere it has a hidden name beside its target, which a later draft of the same target removes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, RenameFlags, renameat2};
use nix::unistd::linkat;

use super::FileError;
use super::lock::{self, LockedFile};

/// Volumes hold tenants' data: only the owner reads them.
const MODE: u32 = 0o600;

/// A file in the making.
#[derive(Debug)]
pub(crate) struct Draft {
    file: File,
    target: PathBuf,
    /// The hidden name, where it needs one.
    name: Option<PathBuf>,
    /// Tells a named draft that is being written from one that a dead process left.
    _lock: Option<LockedFile>,
}

impl Draft {
    /// Starts an empty draft of the file `target`.
    pub(crate) fn new(target: &Path) -> Result<Self, FileError> {
        if fs::symlink_metadata(target).is_ok() {
            return Err(FileError::Exists { path: target.to_owned() });
        }
        let nameless = OpenOptions::new()
            .read(true)
            .write(true)
            .mode(MODE)
            .custom_flags(libc::O_TMPFILE | libc::O_CLOEXEC)
            .open(directory_of(target));
        match nameless {
            Ok(file) => Ok(Self { file, target: target.to_owned(), name: None, _lock: None }),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {
                Self::named(target)
            }
            Err(source) => Err(FileError::from_io("make a file in the directory of", target, source)),
        }
    }

    /// A draft with a hidden name, for file systems without `O_TMPFILE`.
    fn named(target: &Path) -> Result<Self, FileError> {
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(target.file_name().unwrap_or_default());
        hidden.push(".draft");
        let name = directory_of(target).join(hidden);
        let failed = |source| FileError::from_io("make a draft of", target, source);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(MODE)
            .open(&name)
            .map_err(failed)?;
        let lock = match LockedFile::acquire(file.try_clone().map_err(failed)?, true).map_err(failed)? {
            Ok(lock) => lock,
            Err(file) => return Err(FileError::Locked { path: name, holder: lock::find_holder(&file) }),
        };
        file.set_len(0).map_err(failed)?;
        Ok(Self { file, target: target.to_owned(), name: Some(name), _lock: Some(lock) })
    }

    /// The open file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Puts the file on disk and gives it its name.
    pub(crate) fn publish(mut self) -> Result<(), FileError> {
        let failed = |source| FileError::from_io("finish", &self.target, source);
        self.file.sync_all().map_err(failed)?;
        let named = match &self.name {
            None => {
                let descriptor = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                linkat(AT_FDCWD, descriptor.as_str(), AT_FDCWD, &self.target, AtFlags::AT_SYMLINK_FOLLOW)
            }
            Some(name) => renameat2(AT_FDCWD, name, AT_FDCWD, &self.target, RenameFlags::RENAME_NOREPLACE),
        };
        named.map_err(|errno| failed(errno.into()))?;
        File::open(directory_of(&self.target)).and_then(|directory| directory.sync_all()).map_err(failed)?;
        self.name = None;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(name) = &self.name
            && let Err(error) = fs::remove_file(name)
        {
            tracing::warn!(%error, name = %name.display(), "a draft could not be removed");
        }
    }
}

/// The directory that a path's file is in.
fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Sets the length of a draft or volume; new bytes are a hole.
pub(super) fn set_length(file: &File, path: &Path, size_bytes: u64) -> Result<(), FileError> {
    file.set_len(size_bytes).map_err(|source: io::Error| FileError::from_io("set the size of", path, source))
}

#[cfg(test)]
mod tests {
    //! Shows both kinds of draft: whole under their name, or gone.
    use super::*;

    #[test]
    fn a_draft_appears_whole_or_not_at_all() {
        let home = tempfile::tempdir().unwrap();
        let files = || fs::read_dir(home.path()).unwrap().count();
        for (target, start) in [("a", Draft::new as fn(&Path) -> _), ("b", Draft::named)] {
            let target = home.path().join(target);
            let before = files();
            drop(start(&target).unwrap());
            assert_eq!(files(), before);
            start(&target).unwrap().publish().unwrap();
            assert!(target.exists());
            assert_eq!(files(), before + 1);
            assert!(matches!(Draft::new(&target), Err(FileError::Exists { .. })));
            // Another made the target meanwhile: theirs stays, and ours is gone.
            let late = home.path().join("late");
            let draft = start(&late).unwrap();
            fs::write(&late, "theirs").unwrap();
            assert!(matches!(draft.publish(), Err(FileError::Exists { .. })));
            assert_eq!(fs::read_to_string(&late).unwrap(), "theirs");
            fs::remove_file(&late).unwrap();
            assert_eq!(files(), before + 1);
        }
    }

    #[test]
    fn a_draft_that_a_dead_process_left_is_taken_over_and_a_living_one_is_not() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join(".v.draft"), "left behind").unwrap();
        let target = home.path().join("v");
        let draft = Draft::named(&target).unwrap();
        assert!(matches!(Draft::named(&target), Err(FileError::Locked { .. })));
        draft.publish().unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "");
    }
}

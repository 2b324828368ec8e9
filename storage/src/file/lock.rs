//! One writer or many readers: the lock on a volume's file.
//!
//! The lock is an open-file-description lock over the whole file (fcntl(2), `F_OFD_SETLK`): the kernel drops it with the
//! last descriptor, so a killed holder leaves nothing behind, and QEMU's own image locks, of the same kind, conflict
//! with it. It never waits.
//!
//! [`LockedFile`] gives the lock back itself: by its last descriptor the lock would outlive a volume that is closed for
//! as long as a child that was just forked has not yet called exec(2), or the kernel has not yet put away the last
//! io_uring request, and the next opener would be refused.
//!
//! The kernel does not tell who holds such a lock, so [`find_holder`] looks for a process that has the file open with a
//! lock in `/proc`. That is for the message only: no decision rests on it.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// Who has a volume open, as far as it can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A process of this machine.
    Process {
        /// Its id, as this process sees it.
        pid: u32,
        /// Its command name.
        command: String,
    },
    /// Nobody that this process may look at.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, command } => write!(f, "process {pid} ({command})"),
            Self::Unknown => f.write_str("another process (which one cannot be seen from here)"),
        }
    }
}

/// A file that is locked until this is dropped, whoever else has its descriptor then.
#[derive(Debug)]
pub(super) struct LockedFile(File);

impl LockedFile {
    /// Takes the lock on `file`, exclusive or shared; the file comes back where another holds it.
    pub(super) fn acquire(file: File, exclusive: bool) -> io::Result<Result<Self, File>> {
        let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
        match set_lock(&file, kind) {
            Ok(()) => Ok(Ok(Self(file))),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(Err(file)),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Deref for LockedFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        if let Err(error) = set_lock(&self.0, libc::F_UNLCK) {
            tracing::warn!(%error, "a volume's lock could not be given back; it ends with the last descriptor");
        }
    }
}

/// Sets or removes the lock over the whole file.
fn set_lock(file: &File, kind: libc::c_int) -> Result<(), Errno> {
    let narrow = |value: libc::c_int| libc::c_short::try_from(value).map_err(|_| Errno::EINVAL);
    let lock = libc::flock { l_type: narrow(kind)?, l_whence: narrow(libc::SEEK_SET)?, l_start: 0, l_len: 0, l_pid: 0 };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(drop)
}

/// Looks for a process that has `file` open and locked.
pub(super) fn find_holder(file: &File) -> Holder {
    let Ok(wanted) = file.metadata() else { return Holder::Unknown };
    let Ok(processes) = fs::read_dir("/proc") else { return Holder::Unknown };
    processes
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())))
        .find(|(_, process)| has_locked(process, &wanted))
        .map_or(Holder::Unknown, |(pid, process)| {
            let command = fs::read_to_string(process.join("comm")).unwrap_or_default();
            Holder::Process { pid, command: command.trim_end().to_owned() }
        })
}

/// Whether a descriptor of the process is open on the wanted file and carries a lock.
fn has_locked(process: &Path, wanted: &fs::Metadata) -> bool {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else { return false };
    descriptors.flatten().any(|entry| {
        let same_file =
            fs::metadata(entry.path()).is_ok_and(|found| found.dev() == wanted.dev() && found.ino() == wanted.ino());
        same_file
            && fs::read_to_string(process.join("fdinfo").join(entry.file_name()))
                .is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A descriptor that is still open elsewhere, as in a child between fork and exec, keeps no lock.
    #[test]
    fn a_lock_ends_with_its_holder_and_not_with_the_last_descriptor() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let open = || fs::OpenOptions::new().read(true).write(true).open(path.path()).unwrap();
        let held = LockedFile::acquire(open(), true).unwrap().unwrap();
        let elsewhere = held.try_clone().unwrap();
        assert!(LockedFile::acquire(open(), true).unwrap().is_err());
        assert!(LockedFile::acquire(open(), false).unwrap().is_err());
        drop(held);
        let next = LockedFile::acquire(open(), true).unwrap();
        assert!(next.is_ok(), "{elsewhere:?} keeps the lock");
    }
}

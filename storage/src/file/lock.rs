//! One writer or many readers: the lock on a volume's file.
//!
//! The lock is an open-file-description lock over the whole file (fcntl(2), `F_OFD_SETLK`): the kernel drops it with the
//! last descriptor, so a killed holder leaves nothing behind, and QEMU's own image locks, of the same kind, conflict
//! with it. It never waits.
//!
//! The kernel does not tell who holds such a lock, so [`find_holder`] looks for a process that has the file open with a
//! lock in `/proc`. That is for the message only: no decision rests on it.

use std::fmt;
use std::fs::{self, File};
use std::io;
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

/// Takes the lock on `file`, exclusive or shared; `false` where another holds it.
pub(super) fn acquire(file: &File, exclusive: bool) -> io::Result<bool> {
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    let lock = libc::flock {
        l_type: libc::c_short::try_from(kind).map_err(|_| io::ErrorKind::InvalidInput)?,
        l_whence: libc::c_short::try_from(libc::SEEK_SET).map_err(|_| io::ErrorKind::InvalidInput)?,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
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

//! One VMM process per machine: the lock that makes it one, and how it is found again.
//!
//! A machine's directory `<run>/vm/<id>` holds `lock`, `process.json`, `control.sock`, `console.sock` and logs. The launcher takes an
//! open-file-description lock (fcntl(2), `F_OFD_SETLK`) on `lock`, writes who it is and becomes the VMM, which keeps the descriptor without
//! knowing. The kernel drops the lock when the last such process ends, however it ends. So: locked means there is a process, and a second
//! launcher can not get past the lock.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use model::MachineId;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Exit code of a launcher that found the machine locked (`EX_TEMPFAIL` of sysexits.h).
pub const EXIT_LOCKED: u8 = 75;
/// Exit code of a launcher that could not become the VMM, as shells have it.
pub const EXIT_NOT_FOUND: u8 = 127;

/// Why something about a process failed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The machine has a process already.
    #[error("lock {path}: another process of this machine holds it")]
    Locked {
        /// The lock.
        path: PathBuf,
    },
    /// A file could not be used.
    #[error("{verb} {path}")]
    File {
        /// What was attempted.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Who the process is could not be read.
    #[error("read {path}: not the account of a process")]
    Account {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// It could not be signalled.
    #[error("send {signal} to process {pid}")]
    Signal {
        /// The process.
        pid: i32,
        /// The signal.
        signal: &'static str,
        /// What the system said.
        #[source]
        source: nix::Error,
    },
}

fn file(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ProcessError {
    let path = path.to_owned();
    move |source| ProcessError::File { verb, path, source }
}

/// The directory of one machine and the files in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineDir {
    /// The directory.
    pub path: PathBuf,
}

impl MachineDir {
    /// The directory of `id` below the run directory.
    #[must_use]
    pub fn new(run: &Path, id: MachineId) -> Self {
        Self { path: run.join("vm").join(id.to_string()) }
    }

    /// The VMM's control socket.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// The guest's console.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.path.join("console.sock")
    }

    /// What the guest wrote to its console.
    #[must_use]
    pub fn console_log(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// What the VMM logs.
    #[must_use]
    pub fn vmm_log(&self) -> PathBuf {
        self.path.join("vmm.log")
    }

    /// What the launcher and a VMM without a log wrote.
    #[must_use]
    pub fn launch_log(&self) -> PathBuf {
        self.path.join("launch.log")
    }

    fn lock(&self) -> PathBuf {
        self.path.join("lock")
    }

    fn account(&self) -> PathBuf {
        self.path.join("process.json")
    }

    /// Whether a process of this machine exists.
    ///
    /// # Errors
    /// [`ProcessError::File`] when that cannot be found out.
    pub fn is_locked(&self) -> Result<bool, ProcessError> {
        let path = self.lock();
        let lock = match File::options().read(true).write(true).open(&path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(ProcessError::File { verb: "open", path, source }),
        };
        let mut query = whole_file_write_lock();
        fcntl(&lock, FcntlArg::F_OFD_GETLK(&mut query)).map_err(|errno| file("query", &path)(errno.into()))?;
        Ok(i32::from(query.l_type) != libc::F_UNLCK)
    }

    /// Who the process is, as it wrote itself.
    ///
    /// # Errors
    /// [`ProcessError`] when that cannot be read.
    pub fn account_of_process(&self) -> Result<Option<Account>, ProcessError> {
        let path = self.account();
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Some).map_err(|source| ProcessError::Account { path, source })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ProcessError::File { verb: "read", path, source }),
        }
    }

    /// Sends SIGKILL to the process, if it is still the one that wrote the account.
    ///
    /// # Errors
    /// [`ProcessError`] when it is not known or not to be signalled.
    pub fn kill(&self) -> Result<(), ProcessError> {
        let Some(account) = self.account_of_process()? else { return Ok(()) };
        let (Ok(pid), true) = (i32::try_from(account.pid), account.is_alive()) else { return Ok(()) };
        kill(Pid::from_raw(pid), Signal::SIGKILL).map_err(|source| ProcessError::Signal {
            pid,
            signal: "SIGKILL",
            source,
        })
    }

    /// Takes the lock and leaves it to this process and whatever it becomes; removes the sockets of an earlier process; writes the account.
    ///
    /// # Errors
    /// [`ProcessError::Locked`] when there is a process already.
    pub fn become_process(&self) -> Result<File, ProcessError> {
        let path = self.lock();
        let lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(file("open", &path))?;
        let taken = whole_file_write_lock();
        match fcntl(&lock, FcntlArg::F_OFD_SETLK(&taken)) {
            Ok(_) => {}
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => return Err(ProcessError::Locked { path }),
            Err(errno) => return Err(file("lock", &path)(errno.into())),
        }
        fcntl(&lock, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|errno| file("keep open", &path)(errno.into()))?;
        for socket in [self.control(), self.console()] {
            match fs::remove_file(&socket) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file("remove", &socket)(error)),
                _ => {}
            }
        }
        let account = Account::of(std::process::id()).map_err(file("read", Path::new("/proc/self/stat")))?;
        let path = self.account();
        let bytes =
            serde_json::to_vec(&account).map_err(|source| ProcessError::Account { path: path.clone(), source })?;
        fs::write(&path, bytes).map_err(file("write", &path))?;
        Ok(lock)
    }
}

fn whole_file_write_lock() -> libc::flock {
    // Cast-free: both constants fit i16 on Linux, and a failed conversion would make the kernel refuse the call.
    let l_type = i16::try_from(libc::F_WRLCK).unwrap_or(-1);
    let l_whence = i16::try_from(libc::SEEK_SET).unwrap_or(-1);
    libc::flock { l_type, l_whence, l_start: 0, l_len: 0, l_pid: 0 }
}

/// Who a process is: its number alone may be given again, number and start time are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// Its number.
    pub pid: u32,
    /// When it started, clock ticks since boot (proc(5), field 22 of stat).
    pub started_ticks: u64,
}

impl Account {
    /// The process `pid` as it is now.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let started_ticks = start_time(&stat).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { pid, started_ticks })
    }

    /// Whether this very process still exists.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == *self)
    }
}

/// Field 22 of a stat line; the second field is in parentheses and may hold anything.
fn start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> (tempfile::TempDir, MachineDir) {
        let temporary = tempfile::tempdir().unwrap();
        let dir = MachineDir { path: temporary.path().to_owned() };
        (temporary, dir)
    }

    /// Waits until the lock is let go: a child that another test starts meanwhile has it, too, until it ends.
    fn gets_free(dir: &MachineDir) {
        let is_free = || Ok((!dir.is_locked()?).then_some(()));
        basalt_tests::process::wait_for("the end of the lock", std::time::Duration::from_secs(20), is_free).unwrap();
    }

    #[test]
    fn only_one_process_gets_the_lock_and_it_ends_with_it() {
        let (_temporary, dir) = directory();
        assert!(!dir.is_locked().unwrap());
        let held = dir.become_process().unwrap();
        assert!(dir.is_locked().unwrap());
        assert!(matches!(dir.become_process(), Err(ProcessError::Locked { .. })));
        drop(held);
        gets_free(&dir);
    }

    /// The child has the descriptor from its parent, as a VMM has it from its launcher: the parent's end changes nothing.
    #[test]
    fn the_lock_lives_as_long_as_the_child() {
        let (_temporary, dir) = directory();
        let held = dir.become_process().unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        drop(held);
        assert!(dir.is_locked().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        gets_free(&dir);
    }

    #[test]
    fn an_account_is_of_one_process_only() {
        let mine = Account::of(std::process::id()).unwrap();
        assert!(mine.is_alive());
        assert!(!Account { started_ticks: mine.started_ticks + 1, ..mine }.is_alive());
        assert_eq!(start_time("1 (a) b) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 0"), Some(4242));
    }
}

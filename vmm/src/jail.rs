//! The jail: what is left to a VMM process once its descriptors are open, so that a guest that breaks it owns nothing else.
//!
//! Three walls, each by itself enough for most of what a broken device could try:
//! 1. [`privilege`]: an unprivileged user and group, no supplementary group, no capability in any set, and no way to gain one.
//! 2. [`filesystem`]: landlock lets it reach only the paths of its own VM.
//! 3. [`seccomp`]: a filter of system calls per kind of thread, under one for the whole process.
//!
//! They go up in two steps, because a library that opens a volume starts threads of its own, and only what starts behind a wall is held by it:
//!
//! ```text
//!  taps, kernel, files, console opened ── surround ──> images opened, I/O threads start ── enter ──> vCPUs run
//!  any right                              files that the libraries read, filter of the process        own directory only, nobody
//! ```
//!
//! Both are one-way and called on the main thread. Every thread that exists after [`enter`] is nobody, without a capability, under the filter of
//! the process and inside a landlock domain: the main thread and those that it makes later inside of the narrow one, those that a library
//! started in between inside of the one of [`surround`]. Threads of our own narrow themselves with [`seccomp::narrow`].

pub mod filesystem;
pub mod privilege;
pub mod seccomp;

use std::path::PathBuf;

use filesystem::{FilesystemError, Wall};
use privilege::{Identity, PrivilegeError};
use seccomp::{SeccompError, Stage};

/// What a VMM process may still do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jail {
    /// Who it becomes; none: it stays who it is, which must be nobody with a capability.
    pub identity: Option<Identity>,
    /// Directories in which it may make, write and rename files: its log and its console socket.
    pub writable: Vec<PathBuf>,
}

/// Why a process could not be jailed. It must end then: it may be half in.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The file system wall.
    #[error("confine the process to its own paths")]
    Filesystem(#[from] FilesystemError),
    /// The identity.
    #[error("give up privileges")]
    Privilege(#[from] PrivilegeError),
    /// The system call filter.
    #[error("hold the process to its system calls")]
    Seccomp(#[from] SeccompError),
}

/// What the jail came to, for the log and for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entered {
    /// Whether the kernel holds the file system wall; an old kernel has no landlock, and the other walls stand alone.
    pub filesystem: bool,
}

/// Puts up what can be while volumes are still to be opened: only the `readable` paths and the jail's own stay within reach, capabilities that
/// opening does not take are gone, and a filter holds every thread of the process to the calls that opening takes.
///
/// The wall is to be kept until the volumes are open.
///
/// # Errors
/// [`JailError`]; the process is to end then.
pub fn surround(jail: &Jail, readable: &[PathBuf]) -> Result<Wall, JailError> {
    privilege::forbid_gaining()?;
    let wall = filesystem::confine(&jail.writable, readable)?;
    privilege::keep_for_opening()?;
    seccomp::guard_process(Stage::Opening)?;
    Ok(wall)
}

/// Puts up the narrow file system wall and gives up privileges.
///
/// # Errors
/// [`JailError`]; the process is to end then.
pub fn enter(jail: &Jail) -> Result<Entered, JailError> {
    privilege::forbid_gaining()?;
    let filesystem = filesystem::confine(&jail.writable, &[])?.is_held;
    privilege::drop_to(jail.identity)?;
    seccomp::guard_process(Stage::Running)?;
    Ok(Entered { filesystem })
}

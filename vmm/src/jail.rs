//! The jail: what is left to a VMM process once its descriptors are open, so that a guest that breaks it owns nothing else.
//!
//! Three walls, each by itself enough for most of what a broken device could try:
//! 1. [`privilege`]: an unprivileged user and group, no supplementary group, no capability in any set, and no way to gain one.
//! 2. [`filesystem`]: landlock lets it reach only the paths of its own VM.
//! 3. [`seccomp`]: a filter of system calls per kind of thread, under one for the whole process.
//!
//! [`enter`] is called once on the main thread after everything is open and before a vCPU runs: the walls are inherited by each thread made
//! later, and each of those narrows itself with [`seccomp::narrow`]. Entering is one-way.
//!
//! Known gap: landlock and seccomp bind the calling thread and its children, and an RBD volume is opened before both. The threads that librados
//! started by then lose user and capabilities with the rest, but stand outside of the second and third wall.

pub mod filesystem;
pub mod privilege;
pub mod seccomp;

use std::path::PathBuf;

use filesystem::FilesystemError;
use privilege::{Identity, PrivilegeError};

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
}

/// What the jail came to, for the log and for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entered {
    /// Whether the kernel holds the file system wall; an old kernel has no landlock, and the other walls stand alone.
    pub filesystem: bool,
}

/// Puts up the file system wall and gives up privileges, on the main thread.
///
/// # Errors
/// [`JailError`]; the process is to end then.
pub fn enter(jail: &Jail) -> Result<Entered, JailError> {
    privilege::forbid_gaining()?;
    let filesystem = filesystem::confine(&jail.writable)?;
    privilege::drop_to(jail.identity)?;
    Ok(Entered { filesystem })
}

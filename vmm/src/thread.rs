//! The threads of the process: each has a kind, a name, and the jail's filter installed before its first instruction of work.

use crate::jail::seccomp::{self, SeccompError, ThreadKind};
use std::io;
use std::sync::mpsc::channel;
use std::thread::{Builder, JoinHandle};

/// A thread could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// The kernel refused.
    #[error("start the thread {name}")]
    Spawn {
        /// Its name.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It could not be confined.
    #[error("confine the thread {name}")]
    Confine {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: SeccompError,
    },
}

/// Whether the threads of this process take on the filters of their kind. A process without a jail leaves them off, so that a developer can attach
/// and trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confinement {
    /// No filter.
    Off,
    /// The filter of the thread's kind.
    On,
}

/// Starts a thread that confines itself as `kind`, then does `work`. Returns once it is confined.
///
/// # Errors
/// [`ThreadError`]; `work` was not started.
pub fn spawn(
    confinement: Confinement,
    kind: ThreadKind,
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, ThreadError> {
    let (sender, confined) = channel();
    let thread = Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let result = confine(confinement, kind);
            let go_on = result.is_ok();
            // The starter waits for this message.
            sender.send(result).ok();
            if go_on {
                work();
            }
        })
        .map_err(|source| ThreadError::Spawn { name: name.to_owned(), source })?;
    match confined.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(source)) => Err(ThreadError::Confine { name: name.to_owned(), source }),
        Err(_) => Err(ThreadError::Spawn { name: name.to_owned(), source: io::ErrorKind::BrokenPipe.into() }),
    }
}

/// Holds the calling thread to what its kind needs, where confinement is on.
///
/// # Errors
/// [`SeccompError`]: the thread must not go on.
pub fn confine(confinement: Confinement, kind: ThreadKind) -> Result<(), SeccompError> {
    match confinement {
        Confinement::Off => Ok(()),
        Confinement::On => seccomp::narrow(kind),
    }
}

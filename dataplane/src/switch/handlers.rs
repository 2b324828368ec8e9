//! Whether the switch daemon has threads that take packets from the kernel.
//!
//! Open vSwitch 3.1 counts the CPU cores only once the host has been up for 10 s. A daemon that starts earlier runs with
//! no handler thread on the kernel datapath and forwards no new connection, until its configuration changes the next
//! time. Its log then says `Overriding n-handler-threads to 0`. This module counts the threads themselves, because logs
//! are rotated. `Bridge::reconfigure` ends the state.
//!
//! Source: lib/ovs-thread.c `count_cpu_cores`, ofproto/ofproto-dpif-upcall.c; threads are named `handler1`, `handler2`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Where Debian's switch daemon keeps its process id.
pub const PID_FILE: &str = "/run/openvswitch/ovs-vswitchd.pid";

/// Why the threads cannot be counted.
#[derive(Debug, Error)]
pub enum HandlersError {
    /// The file with the process id cannot be read: most often the daemon does not run.
    #[error("read the process id of the switch daemon from {}", path.display())]
    PidFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file has something else.
    #[error("{}: {text:?} is no process id", path.display())]
    Pid {
        /// The file.
        path: PathBuf,
        /// Its contents, cut short.
        text: String,
    },
    /// There is no such process, or it cannot be looked at.
    #[error("look at the threads of the switch daemon (pid {pid})")]
    Process {
        /// The process id.
        pid: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The number of handler threads of the switch daemon whose process id is in `pid_file`. With the kernel datapath 0 means
/// that nothing is forwarded; the userspace datapath needs none.
///
/// # Errors
/// When the daemon does not run or cannot be looked at.
pub fn count(pid_file: &Path) -> Result<usize, HandlersError> {
    let path = pid_file.to_owned();
    let text = fs::read_to_string(pid_file).map_err(|source| HandlersError::PidFile { path: path.clone(), source })?;
    let pid: u32 =
        text.trim().parse().map_err(|_| HandlersError::Pid { path, text: text.chars().take(32).collect() })?;
    let threads = || -> io::Result<usize> {
        let mut handlers = 0;
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread that ended while we looked is none.
            let name = fs::read_to_string(thread?.path().join("comm")).unwrap_or_default();
            handlers += usize::from(is_handler(name.trim()));
        }
        Ok(handlers)
    };
    threads().map_err(|source| HandlersError::Process { pid, source })
}

fn is_handler(name: &str) -> bool {
    name.strip_prefix("handler").is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbered_handlers_count() {
        assert!(is_handler("handler2"));
        for other in ["handler", "handlerX", "revalidator3", "ovs-vswitchd"] {
            assert!(!is_handler(other), "{other}");
        }
    }

    #[test]
    fn a_daemon_that_is_not_there_is_named() {
        let error = count(Path::new("/nonexistent/ovs.pid")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/ovs.pid"), "{error}");
    }
}

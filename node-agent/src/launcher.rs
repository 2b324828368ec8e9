//! `node-agent exec-vm`: the short life between the agent and a VMM.
//!
//! It leaves the agent's session, takes the machine's lock, enters the machine's cgroup and becomes the VMM by exec(2), so that the VMM's process
//! number is known before its first instruction and the agent's end never reaches it.

use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::process::{MachineDir, ProcessError};

/// What the launcher is told.
#[derive(Debug, Clone, clap::Args)]
pub struct LauncherArgs {
    /// The machine's run directory.
    #[arg(long)]
    pub directory: PathBuf,
    /// A cgroup v2 directory to enter.
    #[arg(long)]
    pub cgroup: Option<PathBuf>,
    /// The VMM with its arguments.
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// Why the launcher did not become the VMM.
#[derive(Debug, thiserror::Error)]
pub enum LauncherError {
    /// The lock was taken, or a file failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The cgroup could not be entered.
    #[error("enter cgroup {path}")]
    Cgroup {
        /// The cgroup.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The program could not be run.
    #[error("run {program}")]
    Exec {
        /// The program.
        program: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// Becomes the VMM.
///
/// # Errors
/// [`LauncherError`]; there is no other way to return.
pub fn run(args: &LauncherArgs) -> Result<Infallible, LauncherError> {
    // Fails only for the leader of a group, which then has a session of its own to itself already.
    let _ = nix::unistd::setsid();
    let dir = MachineDir { path: args.directory.clone() };
    let _lock = dir.become_process()?;
    if let Some(path) = &args.cgroup {
        std::fs::create_dir_all(path)
            .and_then(|()| std::fs::write(path.join("cgroup.procs"), std::process::id().to_string()))
            .map_err(|source| LauncherError::Cgroup { path: path.clone(), source })?;
    }
    let mut words = args.command.iter();
    let program = words.next().cloned().unwrap_or_default();
    let source = Command::new(&program).args(words).exec();
    Err(LauncherError::Exec { program, source })
}

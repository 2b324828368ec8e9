//! The product's programs as built, by path: what runs here and, under the same path, in the hosts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use basalt_tests::process;

use crate::lab::artifact::{lab_directory, workspace};

/// Names a directory with programs that were built elsewhere, such as those of a package.
pub const PROGRAMS_VARIABLE: &str = "BASALT_PROGRAMS";
/// The packages with the programs, which bear the same names.
const PACKAGES: &[&str] = &["vmm", "node-agent", "scheduler", "flowctl"];
/// A release build of everything from nothing on two slow cores.
const BUILD_LIMIT: Duration = Duration::from_secs(2400);

/// Cargo, which ends with us: it is in no terminal's process group, so Ctrl-C would not reach it.
#[must_use]
pub fn cargo() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]).arg(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
}

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    directory: PathBuf,
}

impl Programs {
    /// Builds all of them, optimised; takes those of the directory that `BASALT_PROGRAMS` names instead.
    ///
    /// # Errors
    /// cargo fails; its messages are in the error.
    pub fn build() -> Result<Self> {
        if let Some(directory) = std::env::var_os(PROGRAMS_VARIABLE) {
            return Self::at(Path::new(&directory));
        }
        let mut command = cargo();
        command.args(["build", "--release", "--locked", "--quiet"]).current_dir(workspace());
        command.args(PACKAGES.iter().flat_map(|name| ["--package", *name]));
        process::run(&mut command, BUILD_LIMIT).context("building the programs")?;
        Self::at(&lab_directory().parent().unwrap_or(Path::new("/")).join("release"))
    }

    /// The programs in `directory`.
    ///
    /// # Errors
    /// One is not there.
    pub fn at(directory: &Path) -> Result<Self> {
        let directory = directory.canonicalize().with_context(|| format!("the directory {}", directory.display()))?;
        if let Some(missing) = PACKAGES.iter().find(|name| !directory.join(name).exists()) {
            bail!("{} has no program {missing}", directory.display());
        }
        Ok(Self { directory })
    }

    /// The path of the program called `name`.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// Their names with their sizes, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        let size = |name: &&str| std::fs::metadata(self.directory.join(name)).map_or(0, |file| file.len() >> 20);
        PACKAGES.iter().map(|name| format!("{name} {} MiB", size(name))).collect::<Vec<_>>().join(", ")
    }
}

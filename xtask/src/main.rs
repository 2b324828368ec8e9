//! The project's own commands. Each one sets up what it needs and says what it does.
//!
//! Owns the command line only: each command's work is in the module of its name.

mod bench;
mod ceph;
mod check;
mod fuzz;
mod lab;
mod packages;
mod test;
mod tidy;
mod up;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use hw_tests::lab::progress::{Audience, Progress};

/// Basalt's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Hold the tree to its rules: format, clippy, docs, licences, tidiness.
    Check,
    /// Install what the tests need, then run every one on the real things.
    Test,
    /// Bring up a whole cloud on this machine: hosts, storage, networks and virtual machines.
    Up(up::Up),
    /// Emulated hosts with real KVM and a kernel data path.
    #[command(subcommand)]
    Lab(lab::LabCommand),
    /// Measure next to the peers.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Run a private Ceph cluster to try things on.
    Ceph(ceph::Ceph),
    /// Fuzz what comes off a wire: OpenFlow and OVSDB.
    Fuzz(fuzz::Fuzz),
    /// Install the Debian packages that are missing; start no service.
    Packages {
        /// Only these groups: build, lab, network, systemd, ceph, bench. All but bench when none is named.
        groups: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            Progress::new("xtask", Audience::Stderr).say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Task::Check => {
            check::run(root(), &Progress::new("check", Audience::Stderr))?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Test => {
            test::run(root(), &Progress::new("test", Audience::Stderr))?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Up(arguments) => up::run(&arguments, &Progress::new("up", Audience::Stderr)),
        Task::Lab(command) => lab::run(command),
        Task::Bench(bench) => bench::run(root(), &bench, &Progress::new("bench", Audience::Stderr)),
        Task::Ceph(command) => {
            ceph::run(root(), &command, &Progress::new("ceph", Audience::Stderr))?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Fuzz(arguments) => {
            fuzz::run(root(), &arguments, &Progress::new("fuzz", Audience::Stderr))?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Packages { groups } => {
            let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
            packages::ensure(&groups, &Progress::new("packages", Audience::Stderr))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The top of the tree that this program was built from.
fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

//! `cargo xtask ceph`: a private Ceph cluster to try things on, in one directory.
//!
//! Owns the command's words only; the cluster is `basalt_tests::ceph`.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use basalt_tests::ceph::{Cluster, Name, Settings, Store};
use clap::{Args, Subcommand, ValueEnum};
use hw_tests::lab::progress::Progress;

use crate::packages;

/// Where the cluster is, and what to do with it.
#[derive(Debug, Args)]
pub(crate) struct Ceph {
    /// The cluster's directory; `target/ceph` of the checkout by default.
    #[arg(long, global = true)]
    directory: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install what is missing, make the cluster or start what does not run, and wait until it is clean.
    Up(Up),
    /// Stop all daemons; the data stays.
    Down,
    /// Kill all daemons and remove everything.
    Destroy,
    /// Show the daemons and the cluster's health.
    Status,
    /// Print the line that makes a shell's `ceph` and `rbd` speak to the cluster.
    Env,
    /// Kill one daemon (mon.a, mgr.x, osd.N) with SIGKILL.
    Kill {
        /// The daemon.
        name: Name,
    },
    /// Stop one daemon in order.
    Stop {
        /// The daemon.
        name: Name,
    },
    /// Start one daemon.
    Start {
        /// The daemon.
        name: Name,
    },
}

/// Settings of a new cluster; they stay with it.
#[derive(Debug, Args)]
struct Up {
    /// Number of OSDs, 1 to 9.
    #[arg(long, default_value_t = 1)]
    osds: u16,
    /// Where OSDs keep their data.
    #[arg(long, value_enum, default_value_t = StoreKind::Bluestore)]
    store: StoreKind,
    /// Most GiB that one OSD holds, in a sparse file.
    #[arg(long, default_value_t = 10)]
    osd_gib: u32,
    /// The address that all daemons listen on.
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    /// The network namespace (a name under /run/netns) to run in.
    #[arg(long)]
    netns: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StoreKind {
    /// A file: data survives a restart.
    Bluestore,
    /// Memory: fast, and gone with the daemon.
    Memstore,
}

/// Does what was asked.
///
/// # Errors
/// When there is no cluster to do it with, or the cluster fails at it.
pub(crate) fn run(root: &Path, command: &Ceph, progress: &Progress) -> Result<()> {
    let directory = command.directory.clone().unwrap_or_else(|| root.join("target/ceph"));
    let made = || {
        Cluster::at(&directory)?
            .with_context(|| format!("no cluster in {}: `cargo xtask ceph up` makes one", directory.display()))
    };
    match &command.verb {
        Verb::Up(up) => {
            packages::ensure(&["ceph"], progress)?;
            Cluster::up(&directory, &settings(up), &|line| progress.say(line)).map(drop)
        }
        Verb::Down => made()?.down(),
        Verb::Destroy => Cluster::destroy(&directory),
        Verb::Status => status(&made()?),
        Verb::Env => show(&format!("export CEPH_CONF={}", made()?.conf().display())),
        Verb::Kill { name } => made()?.kill(*name),
        Verb::Stop { name } => made()?.stop(*name),
        Verb::Start { name } => made()?.start(*name),
    }
}

fn settings(up: &Up) -> Settings {
    Settings {
        osds: up.osds,
        store: match up.store {
            StoreKind::Bluestore => Store::Bluestore,
            StoreKind::Memstore => Store::Memstore,
        },
        osd_bytes: u64::from(up.osd_gib) << 30,
        address: up.address,
        port: None,
        netns: up.netns.clone(),
    }
}

fn status(cluster: &Cluster) -> Result<()> {
    for daemon in cluster.status() {
        match (daemon.pid, daemon.resident_mib) {
            (Some(pid), Some(mib)) => show(&format!("{} runs as pid {pid} with {mib} MiB resident", daemon.name))?,
            _ => show(&format!("{} is stopped", daemon.name))?,
        }
    }
    show(&cluster.health()?)
}

/// Standard output is the result of this command.
fn show(line: &str) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{line}").context("write to standard output")
}

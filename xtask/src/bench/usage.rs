//! What processes spend, from /proc, and the conditions of a run.
//!
//! Source: proc(5), `stat` fields 14 and 15, `status` line `VmRSS`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use basalt_tests::process;
use serde::Serialize;

/// Clock ticks a second in /proc: `USER_HZ`, the same on every Linux that runs this.
const TICKS: f64 = 100.0;
/// A process rests that spent no more than [`REST_CPU_S`] in this time.
const REST_TIME: Duration = Duration::from_millis(500);
/// A switch looks at the counters of thousands of ports now and then.
const REST_CPU_S: f64 = 0.05;
const REST_LIMIT: Duration = Duration::from_secs(120);

/// A process that is watched.
#[derive(Debug, Clone)]
pub(super) struct Process {
    name: &'static str,
    pid: u32,
    since: f64,
}

/// What a process has spent since it was watched, and what it holds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Spent {
    pub(super) name: String,
    pub(super) cpu_s: f64,
    pub(super) rss_mb: f64,
}

impl Process {
    /// Watches a process from now on.
    pub(super) fn watch(name: &'static str, pid: u32) -> Result<Self> {
        Ok(Self { name, pid, since: cpu_s(pid)? })
    }

    /// Watches the process whose id is in a file.
    pub(super) fn watch_file(name: &'static str, path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read the process id in {}", path.display()))?;
        Self::watch(name, text.trim().parse().with_context(|| format!("{}: {text:?}", path.display()))?)
    }

    /// Waits until the process rests: what it was given before is done.
    pub(super) fn rest(&self) -> Result<()> {
        let mut before = cpu_s(self.pid)?;
        let mut since = Instant::now();
        process::wait_for(&format!("{} to rest", self.name), REST_LIMIT, || {
            if since.elapsed() < REST_TIME {
                return Ok(None);
            }
            let spent = cpu_s(self.pid)? - before;
            (before, since) = (before + spent, Instant::now());
            Ok((spent <= REST_CPU_S).then_some(()))
        })
    }

    pub(super) fn spent(&self) -> Result<Spent> {
        Ok(Spent { name: self.name.to_owned(), cpu_s: cpu_s(self.pid)? - self.since, rss_mb: rss_mb(self.pid)? })
    }
}

/// What all of them spent.
pub(super) fn spent(processes: &[Process]) -> Result<Vec<Spent>> {
    processes.iter().map(Process::spent).collect()
}

fn cpu_s(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("read what {pid} spent"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    let total = ticks(11).zip(ticks(12)).map(|(user, system)| user + system);
    Ok(total.with_context(|| format!("read /proc/{pid}/stat: {stat}"))? / TICKS)
}

fn rss_mb(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("read what {pid} holds"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("read /proc/{pid}/status"))? / 1024.0)
}

/// What else the machine was doing.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Conditions {
    pub(super) cores: usize,
    pub(super) load: String,
    pub(super) date: String,
    pub(super) kernel: String,
}

impl Conditions {
    pub(super) fn now() -> Result<Self> {
        let first = |path: &str, count: usize| -> Result<String> {
            let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
            Ok(text.split_whitespace().take(count).collect::<Vec<_>>().join(" "))
        };
        let mut date = std::process::Command::new("date");
        date.args(["-u", "+%Y-%m-%d %H:%M UTC"]);
        let date = process::run(&mut date, process::COMMAND_TIMEOUT)?.trim().to_owned();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self { cores, load: first("/proc/loadavg", 3)?, date, kernel: first("/proc/sys/kernel/osrelease", 1)? })
    }
}

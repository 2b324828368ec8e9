//! The processes of a private cluster: start, find again, stop.
//!
//! A Ceph daemon forks itself into the background and writes its pid; any later process can find it by that file. A pid
//! counts only while its command line is that of the daemon with our configuration: a recycled pid is never signalled.

use std::fmt;
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Error, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Cluster;
use crate::process;

/// How long a daemon may take to be ready, in seconds.
const START_SECONDS: &str = "120";
/// How long a daemon may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the kernel may take to end a daemon after SIGKILL: its disk may be busy.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);

/// A daemon of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// The monitor, `mon.a`.
    Mon,
    /// The manager, `mgr.x`.
    Mgr,
    /// An OSD, `osd.N`.
    Osd(u16),
}

impl Name {
    fn program(self) -> &'static str {
        match self {
            Self::Mon => "ceph-mon",
            Self::Mgr => "ceph-mgr",
            Self::Osd(_) => "ceph-osd",
        }
    }

    fn id(self) -> String {
        match self {
            Self::Mon => "a".to_owned(),
            Self::Mgr => "x".to_owned(),
            Self::Osd(id) => id.to_string(),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mon => f.write_str("mon.a"),
            Self::Mgr => f.write_str("mgr.x"),
            Self::Osd(id) => write!(f, "osd.{id}"),
        }
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let osd = text.strip_prefix("osd.").and_then(|id| id.parse().ok()).map(Self::Osd);
        match text {
            "mon.a" => Ok(Self::Mon),
            "mgr.x" => Ok(Self::Mgr),
            _ => osd.with_context(|| format!("{text:?} is no daemon: mon.a, mgr.x or osd.N")),
        }
    }
}

/// The daemon's process, while it runs.
pub(super) fn pid(directory: &Path, name: Name) -> Option<i32> {
    let text = fs::read_to_string(directory.join(format!("run/{name}.pid"))).ok()?;
    let pid: i32 = text.trim().parse().ok()?;
    let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
    let conf = directory.join("ceph.conf");
    let ours = words.contains(&conf.as_os_str().as_encoded_bytes()) && words.contains(&name.id().as_bytes());
    (pid > 1 && ours).then_some(pid)
}

/// The memory that process `pid` has resident.
pub(super) fn resident_mib(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? / 1024)
}

/// Starts the daemon, if it does not run, and waits until it has gone into the background.
pub(super) fn start(cluster: &Cluster, name: Name) -> Result<()> {
    let directory = cluster.directory();
    if pid(directory, name).is_some() {
        return Ok(());
    }
    forget(directory, name);
    let path = directory.join(format!("log/{name}.out"));
    let log =
        || File::options().create(true).append(true).open(&path).with_context(|| format!("open {}", path.display()));
    // `timeout` bounds the start only: the daemon itself leaves it behind by forking.
    let mut command = cluster.program("timeout");
    command.args([START_SECONDS, name.program(), "-i", &name.id(), "-c"]).arg(cluster.conf());
    command.arg("--pid-file").arg(directory.join(format!("run/{name}.pid")));
    command.env("CEPH_ARGS", "").stdin(Stdio::null()).stdout(log()?).stderr(log()?);
    let status = command.status().with_context(|| format!("start {name}"))?;
    if status.success() {
        return Ok(());
    }
    bail!("{name} did not start ({status}): {}", last_errors(&path));
}

/// Ends the daemon, if it runs: by SIGTERM, or by SIGKILL where `at_once` or where it does not go in time.
pub(super) fn stop(directory: &Path, name: Name, at_once: bool) -> Result<()> {
    let Some(life) = pid(directory, name).and_then(Life::of) else {
        forget(directory, name);
        return Ok(());
    };
    let gone = |timeout| process::wait_for(&format!("the end of {name}"), timeout, || Ok(life.is_over().then_some(())));
    if !at_once {
        signal(directory, name, Signal::SIGTERM)?;
        if gone(STOP_TIMEOUT).is_ok() {
            forget(directory, name);
            return Ok(());
        }
    }
    signal(directory, name, Signal::SIGKILL)?;
    gone(KILL_TIMEOUT)?;
    forget(directory, name);
    Ok(())
}

/// One process, told from a later one with the same number. Its command line is gone before its files and their locks are: only its state tells
/// when it has ended (proc(5), `stat`).
struct Life {
    pid: i32,
    started: String,
}

impl Life {
    fn of(pid: i32) -> Option<Self> {
        let (_, started) = state_and_start(pid)?;
        Some(Self { pid, started })
    }

    fn is_over(&self) -> bool {
        let Some((state, started)) = state_and_start(self.pid) else { return true };
        // The first thread may be over while others still hold the files.
        let threads = || fs::read_dir(format!("/proc/{}/task", self.pid)).map_or(0, Iterator::count);
        started != self.started || ("ZX".contains(&state) && threads() <= 1)
    }
}

/// The third and the 22nd word of a process' `stat`: the second is a name in parentheses, which may hold anything.
fn state_and_start(pid: i32) -> Option<(String, String)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    let mut words = rest.split_whitespace();
    Some((words.next()?.to_owned(), words.nth(18)?.to_owned()))
}

fn signal(directory: &Path, name: Name, signal: Signal) -> Result<()> {
    let Some(pid) = pid(directory, name) else { return Ok(()) };
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("send {signal} to {name} (pid {pid})")),
    }
}

/// Removes the pid file and socket of a daemon that does not run.
fn forget(directory: &Path, name: Name) {
    for kind in ["pid", "asok"] {
        // Missing already is as good.
        let _missing = fs::remove_file(directory.join(format!("run/{name}.{kind}")));
    }
}

/// What a daemon called an error last, or its last words where it called nothing so: a stack trace names no cause.
fn last_errors(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let errors: Vec<&str> = text.lines().filter(|line| line.contains(" -1 ") || line.contains("FAILED")).collect();
    let lines = if errors.is_empty() { text.lines().collect() } else { errors };
    lines[lines.len().saturating_sub(5)..].join("\n")
}

#[cfg(test)]
mod tests {
    //! Shows when a process counts as gone.
    use super::*;

    #[test]
    fn errors_are_shown_before_the_trace_that_follows_them() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let cause = "2026-01-01T00:00:00 7f -1 osd.0 0 failed to load OSD map for epoch 122, got 0 bytes";
        fs::write(log.path(), format!("starting\n{cause}\n{}", " 1: _start()\n".repeat(10))).unwrap();
        assert_eq!(last_errors(log.path()), cause);
        fs::write(log.path(), "one\ntwo\n").unwrap();
        assert_eq!(last_errors(log.path()), "one\ntwo");
    }

    #[test]
    fn a_process_is_over_when_its_files_are_closed() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let life = Life::of(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(!life.is_over());
        child.kill().unwrap();
        process::wait_for("its end", std::time::Duration::from_secs(10), || Ok(life.is_over().then_some(()))).unwrap();
        child.wait().unwrap();
        assert!(life.is_over());
    }
}

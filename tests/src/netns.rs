//! Network namespaces with links of their own, for tests that send real packets.
//!
//! A [`Namespace`] is named `bt<pid>-<n>`, where pid is ours, so that parallel tests never meet and the next run can
//! take away what a killed one left. Dropping it removes it with all links inside. Everything goes through `ip` from
//! iproute2 (ip-netns(8)), whose messages end up in our errors.

use std::ffi::OsStr;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::process::{self, COMMAND_TIMEOUT, Daemon};

/// Where ip-netns(8) keeps the handles.
const HANDLE_DIRECTORY: &str = "/run/netns";

/// The first letters of every namespace made here.
const NAME_PREFIX: &str = "bt";

/// A network namespace of our own.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes an empty namespace with its loopback up.
    ///
    /// # Errors
    /// When `ip netns add` fails, most often for want of root.
    pub fn new() -> Result<Self> {
        static SWEEP: Once = Once::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(remove_orphans);
        let name = format!("{NAME_PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        process::run(Command::new("ip").args(["netns", "add", &name]), COMMAND_TIMEOUT)?;
        let namespace = Self { name };
        namespace.up("lo")?;
        Ok(namespace)
    }

    /// The name that ip-netns(8) knows it by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The handle that setns(2) takes.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(HANDLE_DIRECTORY).join(&self.name)
    }

    /// A command that will run `program` inside; the caller adds arguments.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a program inside and returns its standard output.
    ///
    /// # Errors
    /// As [`process::run`], with the default time limit.
    pub fn run<S: AsRef<OsStr>>(&self, words: &[S]) -> Result<String> {
        self.run_for(words, COMMAND_TIMEOUT)
    }

    /// Runs a program inside with a time limit of its own.
    ///
    /// # Errors
    /// As [`process::run`].
    pub fn run_for<S: AsRef<OsStr>>(&self, words: &[S], timeout: Duration) -> Result<String> {
        let (program, arguments) = words.split_first().ok_or_else(|| anyhow!("run: no program named"))?;
        process::run(self.command(program).args(arguments), timeout)
    }

    /// Starts a program inside that stays.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start<S: AsRef<OsStr>>(&self, name: &str, words: &[S], log: &Path) -> Result<Daemon> {
        let (program, arguments) = words.split_first().ok_or_else(|| anyhow!("start {name}: no program named"))?;
        Daemon::start(name, self.command(program).args(arguments), log)
    }

    /// Runs `body` on a thread inside: sockets it opens stay in this namespace wherever they are moved.
    ///
    /// # Errors
    /// When the namespace cannot be entered. A panic in `body` goes on in the caller.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        let handle = File::open(&path).with_context(|| format!("open namespace {}", path.display()))?;
        let inside = || {
            setns(&handle, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter namespace {}", self.name))?;
            Ok(body())
        };
        thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Makes a veth pair: `link` here and `peer_link` in `peer`, both up, checksums computed in software.
    ///
    /// The userspace datapath reads frames from the link as they are; a checksum left to hardware would arrive wrong.
    ///
    /// # Errors
    /// When `ip` or `ethtool` refuse.
    pub fn add_veth(&self, link: &str, peer: &Namespace, peer_link: &str) -> Result<()> {
        let pair = ["link", "add", link, "type", "veth", "peer", "name", peer_link, "netns", &peer.name];
        self.ip(&pair)?;
        for (namespace, link) in [(self, link), (peer, peer_link)] {
            namespace.run(&["ethtool", "-K", link, "tx", "off"])?;
            namespace.up(link)?;
        }
        Ok(())
    }

    /// Makes a persistent tap device, up, with a virtio-net header as the VMM expects.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn add_tap(&self, link: &str) -> Result<()> {
        self.ip(&["tuntap", "add", "dev", link, "mode", "tap", "vnet_hdr"])?;
        self.up(link)
    }

    /// Brings a link up.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn up(&self, link: &str) -> Result<()> {
        self.ip(&["link", "set", "dev", link, "up"])
    }

    /// Sets the hardware address of a link, written `02:00:00:00:00:01`.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn set_mac(&self, link: &str, mac: &str) -> Result<()> {
        self.ip(&["link", "set", "dev", link, "address", mac])
    }

    /// Sets the MTU of a link in bytes.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn set_mtu(&self, link: &str, bytes: u32) -> Result<()> {
        self.ip(&["link", "set", "dev", link, "mtu", &bytes.to_string()])
    }

    /// Gives a link an address with prefix length, `10.0.0.1/24` or `fd00::1/64` (usable at once: no duplicate check).
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn add_address(&self, link: &str, address: &str) -> Result<()> {
        let mut words = vec!["address", "add", address, "dev", link];
        if address.contains(':') {
            words.push("nodad");
        }
        self.ip(&words)
    }

    /// Adds a route; `destination` may be `default`.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn add_route(&self, destination: &str, via: &str) -> Result<()> {
        self.ip(&["route", "add", destination, "via", via])
    }

    /// Sends `count` echo requests, ten a second, and returns how many were answered within `timeout` after the last.
    ///
    /// # Errors
    /// When `ping` cannot be run or prints no summary; lost packets are a result, not an error.
    pub fn ping(&self, target: IpAddr, count: u32, timeout: Duration) -> Result<u32> {
        let wait = timeout.as_secs().max(1).to_string();
        let mut command = self.command("ping");
        command.args(["-n", "-i", "0.1", "-c", &count.to_string(), "-W", &wait, &target.to_string()]);
        let limit = timeout + Duration::from_millis(200) * count + COMMAND_TIMEOUT;
        let output = process::output(&mut command, limit)?;
        let summary = output.stdout.lines().find(|line| line.contains("packets transmitted"));
        let received = summary.and_then(|line| line.split(", ").nth(1)).and_then(|part| part.split(' ').next());
        let received = received.and_then(|word| word.parse().ok());
        received.with_context(|| format!("{}: no summary: {}{}", process::line(&command), output.stdout, output.stderr))
    }

    fn ip(&self, words: &[&str]) -> Result<()> {
        process::run(Command::new("ip").args(["-n", &self.name]).args(words), COMMAND_TIMEOUT).map(drop)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Nobody is left to hear of a failure; the next run removes what stays.
        let _gone = process::run(Command::new("ip").args(["netns", "delete", &self.name]), COMMAND_TIMEOUT);
    }
}

/// Removes the namespaces of test processes that are gone. Failures are left to the next run.
fn remove_orphans() {
    let Ok(entries) = std::fs::read_dir(HANDLE_DIRECTORY) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(owner_pid);
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            let _gone = process::run(Command::new("ip").args(["netns", "delete"]).arg(&name), COMMAND_TIMEOUT);
        }
    }
}

/// The pid in a name made by [`Namespace::new`], `None` for everybody else's names.
fn owner_pid(name: &str) -> Option<u32> {
    let (pid, count) = name.strip_prefix(NAME_PREFIX)?.split_once('-')?;
    count.parse::<u32>().ok()?;
    pid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::require;
    use crate::skip::Need;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    #[test]
    fn only_names_made_here_have_an_owner() {
        assert_eq!(owner_pid("bt12-0"), Some(12));
        for other in ["bt12", "btx-1", "bt1-x", "lab-12-0", "bt-1", "ovn-1-2"] {
            assert_eq!(owner_pid(other), None, "{other}");
        }
    }

    /// Two namespaces joined by a veth pair reach each other, by ping and by a socket opened inside.
    #[test]
    fn a_veth_pair_carries_packets() {
        require!(Need::Root, Need::Program("ping"), Need::Program("ethtool"));
        let (left, right) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        left.add_veth("eth0", &right, "eth0").unwrap();
        left.add_address("eth0", "10.9.0.1/24").unwrap();
        right.add_address("eth0", "10.9.0.2/24").unwrap();
        let target = Ipv4Addr::new(10, 9, 0, 2);
        assert_eq!(left.ping(target.into(), 2, Duration::from_secs(2)).unwrap(), 2);
        let listener = right.enter(|| TcpListener::bind((target, 7)).unwrap()).unwrap();
        left.enter(|| TcpStream::connect((target, 7)).unwrap()).unwrap();
        listener.accept().unwrap();
    }

    /// A namespace is gone after the panic of the thread that owned it.
    #[test]
    fn a_panic_removes_the_namespace() {
        require!(Need::Root);
        let namespace = Namespace::new().unwrap();
        namespace.add_tap("tap0").unwrap();
        let path = namespace.path();
        assert!(path.exists());
        let outcome = thread::spawn(move || {
            let _owned = namespace;
            std::panic::resume_unwind(Box::new("on purpose"));
        })
        .join();
        assert!(outcome.is_err());
        assert!(!path.exists());
    }
}

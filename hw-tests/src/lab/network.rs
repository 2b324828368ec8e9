//! The lab's own network: one namespace with three bridges, management, underlay and physical, and a tap for each host on all of them.
//!
//! Owns the addresses, the namespace's life and the keeper: a small shell that outlives us and takes everything away when
//! we go without saying that the lab should stay. Taking away means: end every process in the namespace, then remove it,
//! and with it all its links. No process outside the namespace is ever touched.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use basalt_tests::process;
use nix::sched::{CloneFlags, setns};

/// The outer machine on the management network: Ceph and the scheduler listen here.
pub const OUTER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The management bridge's name in the namespace.
pub const MANAGEMENT: &str = "management";
/// The underlay bridge's name in the namespace: VXLAN packets between hosts cross it.
pub const UNDERLAY: &str = "underlay";
/// The physical network's bridge in the namespace: what provider networks are parts of.
pub const PHYSICAL: &str = "physical";
/// Frames of the underlay carry a full tenant packet of 1500 bytes and the VXLAN headers.
pub const UNDERLAY_MTU: u32 = 1700;

const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// Longest time that taking a lab away may need: 3 s of patience, then SIGKILL, then the links.
const TEARDOWN_LIMIT: Duration = Duration::from_secs(30);
const KEEPER: &str = include_str!("init/keeper.sh");

/// The management address of host `index` (1 to 3).
#[must_use]
pub fn management_address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + index)
}

/// The underlay address of host `index` (1 to 3).
#[must_use]
pub fn underlay_address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, 0, 10 + index)
}

/// A lab's network namespace by name; the handle itself owns nothing.
#[derive(Debug, Clone)]
pub struct Network {
    name: String,
}

impl Network {
    /// The handle of the namespace called `name`, whether it exists or not.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// The namespace's name for ip-netns(8).
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the namespace exists.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Makes the namespace, its bridges and the taps of `hosts` hosts.
    ///
    /// # Errors
    /// No right to do so, or `ip` refuses.
    pub fn create(&self, hosts: u8) -> Result<()> {
        process::run(Command::new("ip").args(["netns", "add", &self.name]), COMMAND_LIMIT)?;
        let mut lines = vec![
            "link set lo up".to_owned(),
            format!("link add {MANAGEMENT} type bridge"),
            format!("link add {UNDERLAY} type bridge"),
            format!("link add {PHYSICAL} type bridge"),
        ];
        for index in 1..=hosts {
            for (tap, bridge, mtu) in [
                (management_tap(index), MANAGEMENT, 1500),
                (underlay_tap(index), UNDERLAY, UNDERLAY_MTU),
                (physical_tap(index), PHYSICAL, 1500),
            ] {
                lines.push(format!("tuntap add dev {tap} mode tap vnet_hdr"));
                lines.push(format!("link set {tap} mtu {mtu} master {bridge} up"));
            }
        }
        lines.push(format!("addr add {OUTER}/24 dev {MANAGEMENT}"));
        lines.push(format!("link set {MANAGEMENT} up"));
        lines.push(format!("link set {UNDERLAY} mtu {UNDERLAY_MTU} up"));
        lines.push(format!("link set {PHYSICAL} up"));
        let script = tempfile::NamedTempFile::new()?;
        std::fs::write(script.path(), lines.join("\n") + "\n")?;
        let mut batch = Command::new("ip");
        batch.args(["-n", &self.name, "-batch"]).arg(script.path());
        process::run(&mut batch, COMMAND_LIMIT).context("making the lab's bridges and taps")?;
        Ok(())
    }

    /// A command of the outer machine that runs in the namespace.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Opens a TCP connection from inside the namespace.
    ///
    /// # Errors
    /// The namespace is gone or nobody answers within `limit`.
    pub fn connect(&self, address: SocketAddr, limit: Duration) -> Result<TcpStream> {
        self.inside(move || Ok(TcpStream::connect_timeout(&address, limit)?))
    }

    /// Runs `body` on a thread inside: the sockets that it opens stay there.
    fn inside<T: Send + 'static>(&self, body: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let handle = File::open(self.path()).with_context(|| format!("the lab {} is not running", self.name))?;
        let inside = move || {
            setns(&handle, CloneFlags::CLONE_NEWNET).context("entering the lab's network namespace")?;
            body()
        };
        let thread = thread::Builder::new().name("lab-inside".to_owned()).spawn(inside)?;
        thread.join().map_err(|_| anyhow!("the thread inside the lab's namespace panicked"))?
    }

    /// Every process in the namespace.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn processes(&self) -> Result<Vec<u32>> {
        if !self.exists() {
            return Ok(Vec::new());
        }
        let text = process::run(Command::new("ip").args(["netns", "pids", &self.name]), COMMAND_LIMIT)?;
        Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect())
    }

    /// Ends every process in the namespace and removes it.
    ///
    /// # Errors
    /// Something could not be ended or removed in time.
    pub fn remove(&self) -> Result<()> {
        process::run(Command::new("sh").args(["-c", KEEPER, "keeper", &self.name]), TEARDOWN_LIMIT).map(drop)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }
}

/// The host's tap on the management bridge.
#[must_use]
pub fn management_tap(index: u8) -> String {
    format!("host{index}-m")
}

/// The host's tap on the underlay bridge.
#[must_use]
pub fn underlay_tap(index: u8) -> String {
    format!("host{index}-u")
}

/// The host's tap on the physical network's bridge.
#[must_use]
pub fn physical_tap(index: u8) -> String {
    format!("host{index}-p")
}

/// The watcher that removes the namespace when this process goes, in whatever way.
#[derive(Debug)]
pub struct Keeper {
    child: Option<Child>,
}

impl Keeper {
    /// Starts watching over `network`.
    ///
    /// # Errors
    /// The shell cannot be started.
    pub fn watch(network: &Network) -> Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "keeper", network.name()]);
        // A process group of its own, so that Ctrl-C ends us and leaves the keeper to clean up.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { child: Some(command.spawn().context("starting the lab's keeper")?) })
    }

    /// Ends the watch and leaves the lab running.
    ///
    /// # Errors
    /// The keeper is gone already.
    pub fn release(mut self) -> Result<()> {
        let mut child = self.child.take().ok_or_else(|| anyhow!("the keeper is gone"))?;
        let mut pipe = child.stdin.take().ok_or_else(|| anyhow!("the keeper has no pipe"))?;
        pipe.write_all(b"keep\n").context("telling the keeper that the lab stays")?;
        drop(pipe);
        child.wait()?;
        Ok(())
    }

    /// Lets the keeper take everything away and waits for it.
    ///
    /// # Errors
    /// It could not, or took too long.
    pub fn clean(mut self) -> Result<()> {
        self.clean_now()
    }

    fn clean_now(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        drop(child.stdin.take());
        let status = process::wait_for("the lab to be taken away", TEARDOWN_LIMIT, || Ok(child.try_wait()?))?;
        if status.success() { Ok(()) } else { Err(anyhow!("taking the lab away failed: {status}")) }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // On the way out of a failure there is nobody left to tell.
        self.clean_now().ok();
    }
}

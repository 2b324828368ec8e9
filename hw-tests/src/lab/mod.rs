//! The lab: one to three emulated hosts with real KVM and a real kernel data path, on any machine.
//!
//! Each host is a QEMU machine with a stock Debian kernel, kvm-amd and openvswitch, whose root file system is the outer
//! machine's own: read-only over 9p, made writable in memory. What is installed or built here runs there under the same
//! path. All machines live in one network namespace of the lab, which is also how they are found and taken away again.
//!
//! ```text
//!  outer machine ── network namespace of the lab ─────────────────────────────────┐
//!   target/lab/     10.77.0.1 on "management": Ceph, scheduler, exec connections  │
//!                      ├── host1 eth0 10.77.0.11        ├── host2 eth0 10.77.0.12  │
//!                   "underlay", MTU 1700: VXLAN between hosts                      │
//!                      └── host1 eth1 10.78.0.11        └── host2 eth1 10.78.0.12  │
//!                   "physical": provider networks                                  │
//!                      └── host1 eth2                   └── host2 eth2             │
//! ```
//!
//! Invariant: after [`Lab::down`], a failure, Ctrl-C or SIGKILL of the owner, no process and no link of the lab is left,
//! unless [`Lab::keep`] was called. Every step has a time limit.

pub mod acceleration;
pub mod artifact;
mod boot;
pub mod console;
pub mod cpio;
pub mod debian;
pub mod emulator;
pub mod exec;
pub mod guest_image;
pub mod host;
pub mod initrd;
pub mod kernel;
pub mod network;
pub mod progress;
pub mod stock_image;
pub mod timestamp;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use acceleration::Acceleration;
use artifact::{Cache, lab_directory};
pub use host::Host;
use kernel::Kernel;
use network::{Keeper, Network};
use progress::Progress;

/// Most hosts in a lab.
pub const HOSTS_MAX: u8 = 3;
const STATE: &str = "lab.json";

/// What lab to bring up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Its name: labs of different names run side by side.
    pub name: String,
    /// Number of hosts, 1 to [`HOSTS_MAX`].
    pub hosts: u8,
    /// Memory of each host; taken as it is touched.
    pub memory_mib: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { name: "lab".to_owned(), hosts: 2, memory_mib: 3072 }
    }
}

/// What a running lab is, on disk for the next command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    hosts: u8,
    network: String,
    acceleration: Acceleration,
    hand: PathBuf,
    started_unix_seconds: u64,
}

/// A running lab. Dropping it takes it away, unless it was kept or only opened.
#[derive(Debug)]
pub struct Lab {
    directory: PathBuf,
    state: State,
    network: Network,
    hosts: Vec<Host>,
    machines: Vec<Child>,
    keeper: Option<Keeper>,
    _lock: Option<Flock<File>>,
}

impl Lab {
    /// Brings up a lab that lives as long as the value.
    ///
    /// # Errors
    /// What is missing on this machine, or the step that failed with the end of the console that shows why.
    pub fn up(config: &Config, progress: &Progress) -> Result<Self> {
        Self::up_and(config, progress, |_| Ok(())).map(|(lab, ())| lab)
    }

    /// As [`Lab::up`], and does `meanwhile` in the lab's network while the hosts boot.
    ///
    /// # Errors
    /// As [`Lab::up`], and what `meanwhile` fails with.
    pub fn up_and<T: Send>(
        config: &Config,
        progress: &Progress,
        meanwhile: impl FnOnce(&Network) -> Result<T> + Send,
    ) -> Result<(Self, T)> {
        if !(1..=HOSTS_MAX).contains(&config.hosts) {
            bail!("a lab has 1 to {HOSTS_MAX} hosts, not {}", config.hosts);
        }
        let directory = run_directory(&config.name);
        fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        let lock = lock(&directory, &config.name)?;
        let hand = hand_binary()?;
        let cache = Cache::open()?;

        let step = progress.step("kernel and initrd");
        let kernel = Kernel::get(&cache, kernel::HOST_PACKAGE)?;
        let initrd = initrd::host(&cache, &kernel)?;
        step.done(&format!("Debian {}", kernel.release()));
        let step = progress.step("acceleration");
        let (acceleration, reason) = Acceleration::decide(&cache, &kernel.image(), &initrd)?;
        step.done(&format!("{acceleration:?}: {reason}"));

        let step = progress.step("network");
        let network = Network::named(&network_name(&directory));
        if network.exists() {
            step.note("taking away what an earlier run left");
            network.remove()?;
        }
        let keeper = Keeper::watch(&network)?;
        let started = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let state = State {
            hosts: config.hosts,
            network: network.name().to_owned(),
            acceleration,
            hand,
            started_unix_seconds: started,
        };
        let mut lab = Self::assemble(directory, state, Some(keeper), Some(lock));
        lab.network.create(config.hosts)?;
        step.done(&format!("namespace {}, 10.77.0.0/24 and 10.78.0.0/24", lab.network.name()));
        let network = lab.network.clone();
        let other = std::thread::scope(|scope| -> Result<T> {
            let other = scope.spawn(|| meanwhile(&network));
            lab.boot(config, &kernel, &initrd, progress)?;
            other.join().map_err(|_| anyhow!("what was done while the hosts booted panicked"))?
        })?;
        artifact::write_atomically(&lab.directory.join(STATE), &serde_json::to_vec_pretty(&lab.state)?)?;
        Ok((lab, other))
    }

    /// The running lab called `name`; dropping the value leaves it running.
    ///
    /// # Errors
    /// There is none.
    pub fn open(name: &str) -> Result<Self> {
        let directory = run_directory(name);
        let file = directory.join(STATE);
        let bytes = fs::read(&file).with_context(|| format!("the lab {name:?} is not up"))?;
        let state: State = serde_json::from_slice(&bytes).with_context(|| format!("reading {}", file.display()))?;
        let lab = Self::assemble(directory, state, None, None);
        if !lab.network.exists() {
            bail!("the lab {name:?} is not up any more");
        }
        Ok(lab)
    }

    /// Leaves the lab running after the value is gone.
    ///
    /// # Errors
    /// The keeper cannot be told.
    pub fn keep(&mut self) -> Result<()> {
        self.keeper.take().map_or(Ok(()), Keeper::release)
    }

    /// Takes a lab away, in whatever state it is; nothing happens when there is none.
    ///
    /// # Errors
    /// A process or link could not be removed, or the lab belongs to a process that still runs.
    pub fn down(name: &str) -> Result<()> {
        let directory = run_directory(name);
        if !directory.exists() {
            return Ok(());
        }
        let _lock = lock(&directory, name)?;
        Network::named(&network_name(&directory)).remove()?;
        fs::remove_dir_all(&directory).with_context(|| format!("removing {}", directory.display()))
    }

    /// Its hosts in order.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host called `name`, or its number.
    ///
    /// # Errors
    /// There is no such host.
    pub fn host(&self, name: &str) -> Result<&Host> {
        let found = self.hosts.iter().find(|host| host.name() == name || host.index().to_string() == name);
        found.ok_or_else(|| {
            let names = self.hosts.iter().map(Host::name).collect::<Vec<_>>().join(", ");
            anyhow!("no host {name:?} in the lab; there are {names}")
        })
    }

    /// Its network namespace, where programs of the outer machine reach the hosts.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// How its hosts' instructions run.
    #[must_use]
    pub fn acceleration(&self) -> Acceleration {
        self.state.acceleration
    }

    /// Its directory: a sub-directory for each host with its console log and QEMU's messages.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Time since it was started.
    #[must_use]
    pub fn age(&self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.saturating_sub(Duration::from_secs(self.state.started_unix_seconds))
    }

    fn assemble(directory: PathBuf, state: State, keeper: Option<Keeper>, lock: Option<Flock<File>>) -> Self {
        let network = Network::named(&state.network);
        let host = |index| Host::new(index, &network, directory.join(host::host_name(index)), state.hand.clone());
        let hosts = (1..=state.hosts).map(host).collect();
        Self { network: network.clone(), hosts, directory, state, machines: Vec::new(), keeper, _lock: lock }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let Some(keeper) = self.keeper.take() else { return };
        // Nobody is left to hear of an error; the next run of the same name takes away what this one could not.
        keeper.clean().ok();
        for machine in &mut self.machines {
            machine.wait().ok();
        }
        if !std::thread::panicking() {
            fs::remove_dir_all(&self.directory).ok();
        }
    }
}

/// The directory of the lab called `name`, whether it runs or not.
#[must_use]
pub fn run_directory(name: &str) -> PathBuf {
    lab_directory().join("run").join(name)
}

/// The namespace of the lab in `directory`: different for each working copy.
fn network_name(directory: &Path) -> String {
    format!("basalt-{}", &debian::sha256_hex(directory.as_os_str().as_encoded_bytes())[..8])
}

fn lock(directory: &Path, name: &str) -> Result<Flock<File>> {
    let file = File::create(directory.join("lock"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, error)| anyhow!("the lab {name:?} belongs to another running command ({error})"))
}

/// The program `lab-hand` beside the running one, where cargo puts it.
fn hand_binary() -> Result<PathBuf> {
    let own = std::env::current_exe()?.canonicalize()?;
    let places = own.ancestors().skip(1).take(2).map(|directory| directory.join("lab-hand"));
    let found = places.into_iter().find(|path| path.exists());
    found.with_context(|| format!("no lab-hand beside {}: cargo build -p hw-tests --bins", own.display()))
}

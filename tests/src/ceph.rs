//! A private Ceph cluster for tests and the lab: one monitor, one manager, some OSDs, the pool `volumes` ready for RBD.
//!
//! Everything lives in one directory: configuration, keys, data, logs, pid files. Nothing touches `/etc`, `/var` or
//! systemd, and no daemon of another cluster is ever signalled: a pid counts as ours only while its command line names
//! our configuration. Settings are fixed when the cluster is made and remembered with it.
//!
//! ```text
//!   (nothing) ──up──▶ running ──down, SIGKILL, reboot──▶ stopped ──up──▶ running ──destroy──▶ (nothing)
//! ```
//!
//! [`Cluster::up`] may be called in any state, also over a half-made cluster, which it makes anew. All waits are
//! bounded. Tests share one cluster through [`shared`]; the parts are `conf` (the configuration file) and `daemon`
//! (processes). The daemons can run in a network namespace, listening on an address of that namespace.

mod conf;
mod daemon;
pub mod shared;

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::process;

pub use daemon::Name;

/// The pool that RBD images go to.
pub const POOL: &str = "volumes";

/// The cephx user that clients use, without its `client.` prefix.
pub const USER: &str = "admin";

/// Longest path of a cluster's directory: a unix socket's path has 107 bytes, and ours end in `run/client.admin.asok`.
const DIRECTORY_LENGTH_MAX: usize = 80;

/// How long one question to the cluster may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the placement groups may take to be clean after the daemons were started.
const CLEAN_TIMEOUT: Duration = Duration::from_secs(180);

/// How long another process may take to bring the same cluster up or down.
const LOCK_TIMEOUT: Duration = Duration::from_secs(300);

/// Where OSDs keep their data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// In a sparse file: it survives a restart.
    Bluestore,
    /// In memory: gone with the daemon.
    Memstore,
}

/// What a cluster is made with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Number of OSDs, 1 to 9.
    pub osds: u16,
    /// Where OSDs keep their data.
    pub store: Store,
    /// Most bytes that one OSD holds.
    pub osd_bytes: u64,
    /// The address that all daemons listen on.
    pub address: IpAddr,
    /// The monitor's port; the first free one from [`FIRST_PORT`] where none is named.
    pub port: Option<u16>,
    /// The network namespace (a name under `/run/netns`) that daemons and commands run in.
    pub netns: Option<String>,
}

/// Where the search for a free monitor port begins.
pub const FIRST_PORT: u16 = 13300;

impl Default for Settings {
    fn default() -> Self {
        Self {
            osds: 1,
            store: Store::Bluestore,
            osd_bytes: 10 << 30,
            address: IpAddr::from([127, 0, 0, 1]),
            port: None,
            netns: None,
        }
    }
}

impl Settings {
    /// Copies that the pool keeps of each object.
    fn replicas(&self) -> u16 {
        self.osds.min(3)
    }

    /// All daemons in the order of their start: the others wait for the monitor.
    fn daemons(&self) -> impl Iterator<Item = Name> {
        [Name::Mon, Name::Mgr].into_iter().chain((0..self.osds).map(Name::Osd))
    }
}

/// A made cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    directory: PathBuf,
    settings: Settings,
}

/// What one daemon does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonStatus {
    /// Which one.
    pub name: Name,
    /// Its process, while it runs.
    pub pid: Option<i32>,
    /// The memory that it has resident, while it runs.
    pub resident_mib: Option<u64>,
}

impl Cluster {
    /// Makes the cluster in `directory` where there is none, starts what does not run, and waits until all data is
    /// reachable. `say` hears one line per step.
    ///
    /// # Errors
    /// When a program is missing, the settings differ from those the cluster was made with, a daemon does not start or
    /// the cluster is not clean in time.
    pub fn up(directory: &Path, settings: &Settings, say: &dyn Fn(&str)) -> Result<Self> {
        ensure!((1..10).contains(&settings.osds), "{} OSDs asked for: 1 to 9 are possible", settings.osds);
        if let Some(missing) = crate::skip::Need::Ceph.missing() {
            bail!("a private Ceph needs {missing}");
        }
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        let directory = fs::canonicalize(directory).with_context(|| format!("find {}", directory.display()))?;
        ensure!(
            directory.as_os_str().len() <= DIRECTORY_LENGTH_MAX,
            "{}: too long for unix sockets ({DIRECTORY_LENGTH_MAX} bytes at most)",
            directory.display()
        );
        let _lock = lock(&directory)?;
        let start = Instant::now();
        let cluster = match Self::at(&directory)? {
            Some(made) => {
                made.check_settings(settings)?;
                made.start_all(say)?;
                made
            }
            None => Self::create(&directory, settings, say)?,
        };
        cluster.wait_clean(say)?;
        fs::write(cluster.clean_stamp(), "").context("note that the cluster is clean")?;
        say(&format!("up in {:.1} s: CEPH_CONF={}", start.elapsed().as_secs_f64(), cluster.conf().display()));
        Ok(cluster)
    }

    /// The cluster that was made in `directory`, running or not.
    ///
    /// # Errors
    /// When its settings cannot be read.
    pub fn at(directory: &Path) -> Result<Option<Self>> {
        if !directory.join("made").exists() {
            return Ok(None);
        }
        let path = directory.join("settings.json");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let settings = serde_json::from_str(&text).with_context(|| format!("understand {}", path.display()))?;
        Ok(Some(Self { directory: directory.to_owned(), settings }))
    }

    /// The configuration file: all that a client needs.
    #[must_use]
    pub fn conf(&self) -> PathBuf {
        self.directory.join("ceph.conf")
    }

    /// The directory that everything is in.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the cluster was made with; the port is known.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Runs `ceph` with `words` against the cluster and returns its output.
    ///
    /// # Errors
    /// When it fails or gives no answer within a minute.
    pub fn ceph(&self, words: &[&str]) -> Result<String> {
        let mut command = self.client("ceph");
        command.args(["--connect-timeout", "30"]).args(words);
        process::run(&mut command, COMMAND_TIMEOUT)
    }

    /// Runs `rbd` with `words` against the cluster and returns its output.
    ///
    /// # Errors
    /// When it fails or takes more than a minute.
    pub fn rbd(&self, words: &[&str]) -> Result<String> {
        let mut command = self.client("rbd");
        command.args(words);
        process::run(&mut command, COMMAND_TIMEOUT)
    }

    /// A client program set up to speak to this cluster, in its namespace.
    #[must_use]
    pub fn client(&self, program: &str) -> Command {
        let mut command = self.program(program);
        command.args(["--conf".as_ref(), self.conf().as_os_str()]).env("CEPH_CONF", self.conf()).env("CEPH_ARGS", "");
        command
    }

    /// Stops all daemons; their data stays (memstore: is lost).
    ///
    /// # Errors
    /// When one cannot be stopped.
    pub fn down(&self) -> Result<()> {
        let _lock = lock(&self.directory)?;
        self.soil()?;
        let mut names: Vec<Name> = self.settings.daemons().collect();
        names.reverse();
        for name in names {
            daemon::stop(&self.directory, name, false)?;
        }
        Ok(())
    }

    /// Kills what runs and removes all that the cluster made in `directory`. Does nothing where there is none.
    ///
    /// # Errors
    /// When a daemon survives or a file cannot be removed.
    pub fn destroy(directory: &Path) -> Result<()> {
        if !directory.exists() {
            return Ok(());
        }
        let directory = fs::canonicalize(directory).with_context(|| format!("find {}", directory.display()))?;
        let _lock = lock(&directory)?;
        remove(&directory)?;
        // Whatever else its owner keeps there stays, and the directory with it.
        let _kept = fs::remove_dir(&directory);
        Ok(())
    }

    /// Kills one daemon (SIGKILL).
    ///
    /// # Errors
    /// When it survives.
    pub fn kill(&self, name: Name) -> Result<()> {
        self.soil()?;
        daemon::stop(&self.directory, name, true)
    }

    /// Stops one daemon in order (SIGTERM).
    ///
    /// # Errors
    /// When it survives.
    pub fn stop(&self, name: Name) -> Result<()> {
        self.soil()?;
        daemon::stop(&self.directory, name, false)
    }

    /// Starts one daemon, if it does not run.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(&self, name: Name) -> Result<()> {
        self.soil()?;
        daemon::start(self, name)
    }

    /// What each daemon does.
    #[must_use]
    pub fn status(&self) -> Vec<DaemonStatus> {
        let look = |name| {
            let pid = daemon::pid(&self.directory, name);
            DaemonStatus { name, pid, resident_mib: pid.and_then(daemon::resident_mib) }
        };
        self.settings.daemons().map(look).collect()
    }

    /// Whether every daemon runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.status().iter().all(|daemon| daemon.pid.is_some())
    }

    /// The cluster's word on its health, like `HEALTH_OK`.
    ///
    /// # Errors
    /// When the cluster gives no answer.
    pub fn health(&self) -> Result<String> {
        Ok(self.ceph(&["health"])?.trim().to_owned())
    }

    /// Whether all daemons run and nothing has disturbed them since the last look that found the cluster clean.
    fn is_known_clean(&self) -> bool {
        self.clean_stamp().exists() && self.is_running()
    }

    fn clean_stamp(&self) -> PathBuf {
        self.directory.join("run/clean")
    }

    /// Notes that the cluster may not be clean from now on.
    fn soil(&self) -> Result<()> {
        match fs::remove_file(self.clean_stamp()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("remove the clean stamp"),
            _ => Ok(()),
        }
    }

    fn check_settings(&self, wanted: &Settings) -> Result<()> {
        let made = &self.settings;
        let wanted = Settings { port: wanted.port.or(made.port), ..wanted.clone() };
        ensure!(
            *made == wanted,
            "the cluster in {} was made with {made:?}, not with {wanted:?}: destroy it to make it anew",
            self.directory.display()
        );
        Ok(())
    }

    /// A program that runs in the cluster's network namespace.
    fn program(&self, program: &str) -> Command {
        match &self.settings.netns {
            None => Command::new(program),
            Some(name) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{name}")).arg(program);
                command
            }
        }
    }

    /// Makes a new cluster; its daemons run afterwards.
    fn create(directory: &Path, settings: &Settings, say: &dyn Fn(&str)) -> Result<Self> {
        // What a killed run left half made goes first.
        remove(directory)?;
        let port = settings.port.map_or_else(|| free_port(settings), Ok)?;
        let cluster =
            Self { directory: directory.to_owned(), settings: Settings { port: Some(port), ..settings.clone() } };
        for part in ["run", "log", "crash", "mon.a", "mgr.x"] {
            fs::create_dir_all(directory.join(part)).with_context(|| format!("make {part} of the cluster"))?;
        }
        let fsid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("make an fsid")?;
        let fsid = fsid.trim();
        fs::write(cluster.conf(), conf::text(directory, &cluster.settings, port, fsid)).context("write ceph.conf")?;
        say("making the monitor");
        cluster.make_monitor(port, fsid)?;
        daemon::start(&cluster, Name::Mon)?;
        // The module looks for real disks' health data and would only log errors.
        cluster.ceph(&["config", "set", "mgr", "mgr/devicehealth/enable_monitoring", "false", "--force"])?;
        let keyring = directory.join("mgr.x/keyring");
        let caps = ["auth", "get-or-create", "mgr.x", "mon", "allow profile mgr", "osd", "allow *", "-o"];
        cluster.ceph(&[&caps[..], &[path_text(&keyring)?]].concat())?;
        daemon::start(&cluster, Name::Mgr)?;
        say(&format!("making {} OSDs", settings.osds));
        for id in 0..settings.osds {
            cluster.make_osd(id).with_context(|| format!("make osd.{id}"))?;
            daemon::start(&cluster, Name::Osd(id))?;
        }
        cluster.ceph(&["osd", "pool", "create", POOL, "32", "32"])?;
        cluster.rbd(&["pool", "init", POOL])?;
        let text = serde_json::to_string_pretty(&cluster.settings).context("write the settings down")?;
        fs::write(directory.join("settings.json"), text).context("write settings.json")?;
        fs::write(directory.join("made"), "").context("note that the cluster is made")?;
        Ok(cluster)
    }

    fn make_monitor(&self, port: u16, fsid: &str) -> Result<()> {
        let keyring = self.directory.join("keyring");
        let keyring = path_text(&keyring)?;
        let all = |who: &str| [who, "allow *"].map(str::to_owned);
        let mut make = Command::new("ceph-authtool");
        make.args(["--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap"]).args(all("mon"));
        process::run(&mut make, COMMAND_TIMEOUT)?;
        let mut add = Command::new("ceph-authtool");
        add.args([keyring, "--gen-key", "-n", &format!("client.{USER}")]);
        for who in ["mon", "osd", "mgr"] {
            add.arg("--cap").args(all(who));
        }
        process::run(&mut add, COMMAND_TIMEOUT)?;
        let monmap = self.directory.join("monmap");
        let address = conf::monitor(self.settings.address, port);
        let mut map = Command::new("monmaptool");
        map.args(["--create", "--clobber", "--addv", "a", &address, "--fsid", fsid]).arg(&monmap);
        process::run(&mut map, COMMAND_TIMEOUT)?;
        let mut make = self.program("ceph-mon");
        make.args(["-i", "a", "--mkfs", "--keyring", keyring, "-c"]).arg(self.conf()).arg("--monmap").arg(&monmap);
        process::run(&mut make, COMMAND_TIMEOUT)?;
        Ok(())
    }

    fn make_osd(&self, id: u16) -> Result<()> {
        let home = self.directory.join(format!("osd.{id}"));
        fs::create_dir_all(&home).with_context(|| format!("make {}", home.display()))?;
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("make a uuid")?;
        let uuid = uuid.trim();
        let secret = process::run(Command::new("ceph-authtool").arg("--gen-print-key"), COMMAND_TIMEOUT)?;
        let request = home.join("new.json");
        fs::write(&request, serde_json::json!({ "cephx_secret": secret.trim() }).to_string())?;
        self.ceph(&["osd", "new", uuid, &id.to_string(), "-i", path_text(&request)?])?;
        fs::remove_file(&request)?;
        let keyring = home.join("keyring");
        let mut make = Command::new("ceph-authtool");
        make.arg("--create-keyring").arg(&keyring).args(["-n", &format!("osd.{id}"), "--add-key", secret.trim()]);
        process::run(&mut make, COMMAND_TIMEOUT)?;
        let mut format = self.program("ceph-osd");
        format.args(["-i", &id.to_string(), "--mkfs", "--osd-uuid", uuid, "-c"]).arg(self.conf());
        process::run(&mut format, COMMAND_TIMEOUT)?;
        Ok(())
    }

    fn start_all(&self, say: &dyn Fn(&str)) -> Result<()> {
        for name in self.settings.daemons() {
            if daemon::pid(&self.directory, name).is_none() {
                say(&format!("starting {name}"));
                self.soil()?;
                daemon::start(self, name)?;
            }
        }
        Ok(())
    }

    /// Waits until every OSD says itself that it is active (the monitor may not know yet of a crash) and every
    /// placement group is active and clean.
    fn wait_clean(&self, say: &dyn Fn(&str)) -> Result<()> {
        if self.is_known_clean() {
            return Ok(());
        }
        say("waiting for all placement groups to be clean");
        let mut last = String::new();
        process::wait_for("a clean cluster", CLEAN_TIMEOUT, || {
            last = self.unclean().unwrap_or_else(|error| Some(format!("{error:#}"))).unwrap_or_default();
            Ok(last.is_empty().then_some(()))
        })
        .with_context(|| format!("the last look said: {last}"))
    }

    /// What keeps the cluster from being clean.
    fn unclean(&self) -> Result<Option<String>> {
        for id in 0..self.settings.osds {
            let state = self.osd_state(id)?;
            if state != "active" {
                return Ok(Some(format!("osd.{id} is {state}")));
            }
        }
        let status: serde_json::Value = serde_json::from_str(&self.ceph(&["status", "--format", "json"])?)?;
        let up = status["osdmap"]["num_up_osds"].as_u64();
        if up != Some(u64::from(self.settings.osds)) {
            return Ok(Some(format!("{} of {} OSDs are up", up.unwrap_or(0), self.settings.osds)));
        }
        let states = status["pgmap"]["pgs_by_state"].as_array().cloned().unwrap_or_default();
        let clean = |state: &&serde_json::Value| {
            state["state_name"].as_str().is_some_and(|name| name.starts_with("active+clean"))
        };
        let groups: u64 = states.iter().filter(clean).filter_map(|state| state["count"].as_u64()).sum();
        let all = status["pgmap"]["num_pgs"].as_u64().unwrap_or(0);
        Ok((all == 0 || groups != all).then(|| format!("{groups} of {all} placement groups are clean")))
    }

    fn osd_state(&self, id: u16) -> Result<String> {
        let socket = self.directory.join(format!("run/osd.{id}.asok"));
        let answer = self.ceph(&["daemon", path_text(&socket)?, "status"])?;
        let answer: serde_json::Value = serde_json::from_str(&answer).context("understand an OSD's status")?;
        Ok(answer["state"].as_str().unwrap_or("in no state").to_owned())
    }
}

/// Kills what runs in `directory` and removes what a cluster makes there.
fn remove(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let entry = entry?;
        if let Some(name) = entry.file_name().to_str().and_then(|text| text.parse::<Name>().ok()) {
            daemon::stop(directory, name, true)?;
            fs::remove_dir_all(entry.path()).with_context(|| format!("remove the data of {name}"))?;
        }
    }
    for part in ["run", "log", "crash"] {
        let path = directory.join(part);
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    for part in ["made", "settings.json", "ceph.conf", "keyring", "monmap"] {
        let path = directory.join(part);
        if path.exists() {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// The lock of `up`, `down` and `destroy`, beside the directory.
fn lock(directory: &Path) -> Result<File> {
    let path = directory.with_extension("lock");
    let file = File::create(&path).with_context(|| format!("open {}", path.display()))?;
    process::wait_for(&format!("the lock {}", path.display()), LOCK_TIMEOUT, || {
        Ok(file.try_lock().is_ok().then_some(()))
    })?;
    Ok(file)
}

/// The first port that nobody listens on. In a namespace of its own the monitor takes Ceph's usual port.
fn free_port(settings: &Settings) -> Result<u16> {
    if settings.netns.is_some() {
        return Ok(3300);
    }
    (FIRST_PORT..FIRST_PORT + 500)
        .find(|&port| std::net::TcpListener::bind((settings.address, port)).is_ok())
        .with_context(|| format!("no free port from {FIRST_PORT} on {}", settings.address))
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

//! The agent's configuration: one TOML file, unknown keys refused, every default visible with `node-agent config`.
//!
//! [`Config::read`] is the one door: what it gives has been checked, paths are absolute and ranges hold. Nothing else here opens a file.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::provider::PhysicalNetwork;
use serde::{Deserialize, Serialize};

mod ipfix;

pub use ipfix::Ipfix;

use crate::upstream::{UPSTREAMS_MAX, Upstream};

/// Where packages put the file.
pub const DEFAULT_PATH: &str = "/etc/basalt/agent.toml";
/// The longest a unix socket path may be, bytes (unix(7): `sun_path` less its closing zero).
const SOCKET_PATH_MAX: usize = 107;
/// Room that `/vm/<uuid>/control.sock` takes behind the run directory, bytes.
const SOCKET_TAIL: usize = 4 + 36 + 13;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("read configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, an unknown key or a value of another type.
    #[error("parse configuration {path}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value that cannot work.
    #[error("check configuration: {key} = {value}: {want}")]
    Value {
        /// The key, with its section.
        key: &'static str,
        /// What it held.
        value: String,
        /// What would work.
        want: String,
    },
}

/// Everything that an operator can set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directories.
    pub paths: Paths,
    /// Where the spec comes from.
    pub spec: Spec,
    /// This host on the network that carries tenants' packets.
    pub underlay: Underlay,
    /// Open vSwitch.
    pub switch: Switch,
    /// The physical networks that this host is wired to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub physical: Vec<Physical>,
    /// Flow records for collectors; none: no packet is looked at for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipfix: Option<Ipfix>,
    /// The Ceph cluster; none: only local volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ceph: Option<Ceph>,
    /// Names that machines ask for.
    pub dns: Dns,
    /// Virtual machines.
    pub machines: Machines,
    /// Images.
    pub images: Images,
    /// The local API.
    pub api: Api,
    /// What is left for the host itself.
    pub reserve: Reserve,
    /// Logs.
    pub log: Log,
}

/// Directories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Paths {
    /// What must survive a reboot: ledger, identity, local volumes.
    pub state: PathBuf,
    /// What ends with a reboot: sockets of machines.
    pub run: PathBuf,
    /// What can be fetched again: images.
    pub cache: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self { state: "/var/lib/basalt".into(), run: "/run/basalt".into(), cache: "/var/cache/basalt".into() }
    }
}

/// Where the spec comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spec {
    /// The source.
    pub source: SpecSource,
}

/// Where the spec comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpecSource {
    /// The scheduler that this host joined.
    #[default]
    Scheduler,
    /// A file with a node specification; a change is taken in within a second or two.
    File(PathBuf),
    /// Only what is put through the local API.
    Api,
}

/// This host on the network that carries tenants' packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Underlay {
    /// The tunnel endpoint of this host; none: a single host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ipv4Addr>,
    /// The interface that has it; looked at by `doctor`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The least MTU it should have: a tenant's 1500 bytes and 50 of VXLAN at the least.
    pub mtu_min: u32,
    /// Whether gateways of routers, those that stand by and hosts that depend on them watch each other by BFD.
    pub bfd: bool,
}

impl Default for Underlay {
    fn default() -> Self {
        Self { ip: None, interface: None, mtu_min: 1550, bfd: true }
    }
}

/// Open vSwitch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Switch {
    /// The database's unix socket.
    pub database: PathBuf,
    /// Where `ovs-vswitchd` has its sockets: `<bridge>.mgmt` and the control socket.
    pub run_dir: PathBuf,
    /// The integration bridge; made when it is missing.
    pub bridge: String,
    /// Which datapath a new bridge gets.
    pub datapath: Datapath,
    /// Whether flows and groups on the bridge that are not ours are removed; otherwise they are reported only.
    pub remove_foreign: bool,
}

impl Default for Switch {
    fn default() -> Self {
        Self {
            database: "/run/openvswitch/db.sock".into(),
            run_dir: "/run/openvswitch".into(),
            bridge: "br-int".to_owned(),
            datapath: Datapath::System,
            remove_foreign: false,
        }
    }
}

impl Switch {
    /// The bridge's management socket, where it speaks OpenFlow.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join(format!("{}.mgmt", self.bridge))
    }
}

/// A physical network that this host is wired to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Physical {
    /// Its name: what provider networks are made on.
    pub name: PhysicalNetwork,
    /// The interface that leads there. It becomes a port of the bridge, so it must have no address and no other master.
    pub interface: String,
    /// Thousands of bits a second that this link carries, without which no minimum bandwidth of ports is kept there. In user space none is kept at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_kbps: Option<NonZeroU32>,
}

/// A datapath of Open vSwitch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Datapath {
    /// openvswitch.ko.
    System,
    /// In user space.
    Netdev,
}

impl Datapath {
    /// The word that the database uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Netdev => "netdev",
        }
    }
}

/// The Ceph cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ceph {
    /// The cluster's configuration file, which names the keyring.
    pub conf: PathBuf,
    /// The user, without `client.`.
    pub user: String,
    /// The pool whose answer tells whether the cluster is reachable.
    pub pool: String,
}

/// Names that machines ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// Who is asked for names that are no machine's, in this order; an empty list: nobody, such questions are refused; none: whom the host itself asks,
    /// by `/etc/resolv.conf`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Vec<Upstream>>,
}

/// Virtual machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Machines {
    /// The VMM program.
    pub vmm: PathBuf,
    /// The first user id that a VMM may run as; each machine has its own.
    pub uid_first: u32,
    /// How many user ids there are: the most machines on this host.
    pub uid_count: u32,
    /// A cgroup v2 directory for machines, used where systemd does not run; none: machines stay in the agent's group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// Whether machines become systemd scopes: "auto" looks whether systemd runs.
    pub systemd: Systemd,
    /// How long a machine may take to shut down before it is stopped by force, seconds.
    pub shutdown_grace_seconds: u64,
}

impl Default for Machines {
    fn default() -> Self {
        Self {
            vmm: "/usr/bin/vmm".into(),
            uid_first: 700_000,
            uid_count: 1024,
            cgroup: Some("/sys/fs/cgroup/basalt".into()),
            systemd: Systemd::Auto,
            shutdown_grace_seconds: 60,
        }
    }
}

impl Machines {
    /// How long a machine may take to shut down.
    #[must_use]
    pub const fn shutdown_grace(&self) -> Duration {
        Duration::from_secs(self.shutdown_grace_seconds)
    }
}

/// Whether machines become systemd scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Systemd {
    /// When systemd runs.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Images {
    /// The most that fetched images may take, MiB. What the spec wants is never thrown out.
    pub cache_mib: u64,
    /// A directory with images in files named by their id, looked in before the scheduler is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
}

impl Default for Images {
    fn default() -> Self {
        Self { cache_mib: 20 * 1024, directory: None }
    }
}

/// The local API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// Its unix socket, mode 0660.
    pub socket: PathBuf,
}

impl Default for Api {
    fn default() -> Self {
        Self { socket: "/run/basalt/agent.sock".into() }
    }
}

/// What is left for the host itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reserve {
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Disk below `paths.state`, MiB.
    pub storage_mib: u64,
}

impl Default for Reserve {
    fn default() -> Self {
        Self { memory_mib: 512, storage_mib: 1024 }
    }
}

/// Logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// What is logged, as `tracing` filters are written: `info`, `node_agent=debug,info`.
    pub filter: String,
    /// Text for people or JSON for machines.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::Text }
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

impl Config {
    /// What links to physical networks carry, in thousands of bits a second, where minimums of ports are kept: a switch in user space keeps none.
    #[must_use]
    pub fn bandwidth(&self) -> BTreeMap<PhysicalNetwork, NonZeroU32> {
        let kept = self.physical.iter().filter(|_| self.switch.datapath == Datapath::System);
        kept.filter_map(|it| Some((it.name.clone(), it.bandwidth_kbps?))).collect()
    }

    /// Reads and checks the file; a file that is not there stands for all defaults when `path` is the default one.
    ///
    /// # Errors
    /// [`ConfigError`], with the key that is wrong.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && path == Path::new(DEFAULT_PATH) => {
                String::new()
            }
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        Self::parse(&text, path)
    }

    /// Reads and checks text; `path` is what errors call it.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        config.check()?;
        Ok(config)
    }

    /// The configuration in full, as TOML.
    ///
    /// # Errors
    /// What the TOML writer refuses; none with these types.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }

    fn check(&self) -> Result<(), ConfigError> {
        for (key, path) in [
            ("paths.state", &self.paths.state),
            ("paths.run", &self.paths.run),
            ("paths.cache", &self.paths.cache),
            ("switch.database", &self.switch.database),
            ("switch.run_dir", &self.switch.run_dir),
            ("machines.vmm", &self.machines.vmm),
            ("api.socket", &self.api.socket),
        ] {
            expect(path.is_absolute(), key, path.display(), "an absolute path")?;
        }
        let room = SOCKET_PATH_MAX - SOCKET_TAIL;
        let run = self.paths.run.as_os_str().len();
        expect(run <= room, "paths.run", self.paths.run.display(), format!("at most {room} bytes, for socket paths"))?;
        let socket = self.api.socket.as_os_str().len();
        expect(
            socket <= SOCKET_PATH_MAX,
            "api.socket",
            self.api.socket.display(),
            format!("at most {SOCKET_PATH_MAX} bytes"),
        )?;
        let machines = &self.machines;
        expect(
            machines.uid_first >= 1000,
            "machines.uid_first",
            machines.uid_first,
            "1000 or more, never a system user",
        )?;
        expect((1..=65_536).contains(&machines.uid_count), "machines.uid_count", machines.uid_count, "1 to 65536")?;
        expect(
            machines.uid_first.checked_add(machines.uid_count).is_some(),
            "machines.uid_first",
            machines.uid_first,
            "room for uid_count ids below 2^32",
        )?;
        let grace = machines.shutdown_grace_seconds;
        expect((1..=3600).contains(&grace), "machines.shutdown_grace_seconds", grace, "1 to 3600")?;
        let bridge = &self.switch.bridge;
        expect(is_link_name(bridge), "switch.bridge", bridge, LINK_NAME)?;
        let upstreams = self.dns.upstream.as_ref().map_or(0, Vec::len);
        let few = format!("{UPSTREAMS_MAX} resolvers at most");
        expect(upstreams <= UPSTREAMS_MAX, "dns.upstream", format!("{upstreams} resolvers"), few)?;
        self.ipfix.as_ref().map_or(Ok(()), Ipfix::check)?;
        for (index, physical) in self.physical.iter().enumerate() {
            let (name, interface) = (&physical.name, &physical.interface);
            expect(is_link_name(interface), "physical.interface", interface, LINK_NAME)?;
            let is_other = interface != bridge && Some(interface) != self.underlay.interface.as_ref();
            expect(is_other, "physical.interface", interface, "neither the bridge nor the underlay's interface")?;
            let kbps = physical.bandwidth_kbps.map_or(0, NonZeroU32::get);
            let range = format!("{BANDWIDTH_KBPS_MAX} at most, which is what Open vSwitch 3.1 can count");
            expect(kbps <= BANDWIDTH_KBPS_MAX, "physical.bandwidth_kbps", kbps, range)?;
            let mut before = self.physical.iter().take(index);
            let is_new = before.all(|other| other.name != *name && other.interface != *interface);
            expect(is_new, "physical.name", name, "each name and each interface once")?;
        }
        Ok(())
    }
}

/// The largest bandwidth of a link: the switch keeps octets a second in 32 bits (`lib/netdev-linux.c`, `struct htb_class`).
const BANDWIDTH_KBPS_MAX: u32 = 34_359_738;

/// What a link may be called.
const LINK_NAME: &str = "a link name of 1 to 15 letters, digits, '-', '_', '.'";

fn is_link_name(name: &str) -> bool {
    (1..=15).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn expect(
    holds: bool,
    key: &'static str,
    value: impl std::fmt::Display,
    want: impl Into<String>,
) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::Value { key, value: value.to_string(), want: want.into() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("agent.toml"))
    }

    #[test]
    fn nothing_at_all_is_a_configuration_and_prints_as_it_parses() {
        for text in [
            "",
            "[[physical]]\nname = \"dc\"\ninterface = \"eth2\"",
            "[[physical]]\nname = \"dc\"\ninterface = \"eth2\"\nbandwidth_kbps = 10000000",
            "[dns]\nupstream = []",
            "[ipfix]\ncollectors = [\"192.0.2.9:4739\", \"[2001:db8::9]:4739\"]\nsampling = 64",
            "[dns]\nupstream = [\"192.0.2.53\", \"[2001:db8::53]:5353\"]",
        ] {
            let config = parse(text).unwrap();
            assert_eq!(parse(&config.to_toml().unwrap()).unwrap(), config);
        }
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        for text in ["colour = 1", "[switch]\nbridg = \"br-int\"", "[ceph]\nconf=\"/c\"\nuser=\"u\"\npool=\"p\"\nx=1"] {
            let error = parse(text).unwrap_err();
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains("unknown field"), "{source}");
        }
    }

    #[test]
    fn values_that_cannot_work_are_refused_with_their_key() {
        for (text, key) in [
            ("[paths]\nstate = \"var\"", "paths.state"),
            ("[machines]\nuid_first = 0", "machines.uid_first"),
            ("[machines]\nuid_first = 4294967295\nuid_count = 2", "machines.uid_first"),
            ("[switch]\nbridge = \"a bridge\"", "switch.bridge"),
            ("[machines]\nshutdown_grace_seconds = 0", "machines.shutdown_grace_seconds"),
            ("[dns]\nupstream = [\"1.1.1.1\", \"1.1.1.2\", \"1.1.1.3\", \"1.1.1.4\"]", "dns.upstream"),
            ("[ipfix]\ncollectors = []", "ipfix.collectors"),
            ("[ipfix]\ncollectors = [\"192.0.2.9:0\"]", "ipfix.collectors"),
            ("[ipfix]\ncollectors = [\"192.0.2.9:4739\"]\nactive_seconds = 4201", "ipfix.active_seconds"),
            ("[ipfix]\ncollectors = [\"192.0.2.9:4739\"]\ncounters_seconds = 4", "ipfix.counters_seconds"),
            ("[[physical]]\nname = \"dc\"\ninterface = \"\"", "physical.interface"),
            ("[[physical]]\nname = \"dc\"\ninterface = \"br-int\"", "physical.interface"),
            ("[[physical]]\nname = \"dc\"\ninterface = \"eth2\"\nbandwidth_kbps = 40000000", "physical.bandwidth_kbps"),
            (
                "[[physical]]\nname = \"a\"\ninterface = \"eth2\"\n[[physical]]\nname = \"b\"\ninterface = \"eth2\"",
                "physical.name",
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        let long = format!("[paths]\nrun = \"/{}\"", "r".repeat(80));
        assert!(parse(&long).unwrap_err().to_string().contains("paths.run"));
    }

    #[test]
    fn the_packaged_example_parses() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/basalt/agent.toml");
        let config = Config::read(&path).unwrap();
        assert_eq!(config.spec.source, SpecSource::Scheduler);
    }
}

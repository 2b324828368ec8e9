//! A private Open vSwitch: its own database server and switch daemon, in its own directory and network namespace.
//!
//! [`Switch::start`] gives a running pair with the userspace datapath (`datapath_type=netdev`), which needs no kernel
//! module. It never touches the machine's own Open vSwitch. Both daemons end on drop, and are killed with the test
//! process. The daemons can be killed and started again one by one, to show how others survive that.
//!
//! Sources: ovsdb-server(1), ovs-vswitchd(8), ovs-ofctl(8), ovs-appctl(8).

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;

use crate::netns::Namespace;
use crate::process::{self, COMMAND_TIMEOUT, Daemon};

/// The schema that Debian's openvswitch-common installs.
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// How long a daemon may take until it answers; loaded machines take seconds.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// The first letters of every switch's directory; the pid of the process that made it follows.
const DIRECTORY_PREFIX: &str = "bt-ovs-";

/// A private `ovsdb-server` and `ovs-vswitchd`.
#[derive(Debug)]
pub struct Switch {
    // Declared in the order in which they have to go: daemons, then the namespace, then the directory.
    vswitchd: Option<Daemon>,
    ovsdb: Option<Daemon>,
    namespace: Namespace,
    directory: TempDir,
    /// Whether the switch daemon knows devices that exist in its memory only.
    has_dummies: bool,
}

/// A link to be plugged into a bridge.
#[derive(Debug, Clone)]
pub struct Plugged {
    /// Its name.
    pub link: String,
    /// Whether the switch makes it in its memory; otherwise it is there already.
    pub is_dummy: bool,
    /// What the database shall have of it under `external_ids`.
    pub ids: Vec<(&'static str, String)>,
}

/// How many links are plugged in by one command, which the database takes in one transaction.
const PLUGGED_AT_ONCE: usize = 1000;
/// How long that may take: with thousands of links there already the switch keeps the database waiting.
const PLUG_TIMEOUT: Duration = Duration::from_secs(300);

impl Switch {
    /// Starts both daemons in a fresh directory and namespace.
    ///
    /// # Errors
    /// When a program is missing or a daemon does not come up; its log is in the message.
    pub fn start() -> Result<Self> {
        Self::start_in(Namespace::new()?)
    }

    /// Starts both daemons; the switch can be given thousands of ports that cost no device.
    ///
    /// # Errors
    /// As [`Switch::start`].
    pub fn start_with_dummies() -> Result<Self> {
        Self::start_as(Namespace::new()?, true)
    }

    /// Starts both daemons, with the switch inside `namespace`, which it owns from then on.
    ///
    /// # Errors
    /// As [`Switch::start`].
    pub fn start_in(namespace: Namespace) -> Result<Self> {
        Self::start_as(namespace, false)
    }

    fn start_as(namespace: Namespace, has_dummies: bool) -> Result<Self> {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(remove_orphans);
        // Socket paths may have 107 bytes (unix(7)), so the directory is directly below the temporary one.
        let prefix = format!("{DIRECTORY_PREFIX}{}-", std::process::id());
        let directory = tempfile::Builder::new().prefix(&prefix).tempdir().context("make a directory for a switch")?;
        let mut switch = Self { vswitchd: None, ovsdb: None, namespace, directory, has_dummies };
        let database = switch.dir().join("conf.db");
        process::run(Command::new("ovsdb-tool").arg("create").arg(&database).arg(SCHEMA), COMMAND_TIMEOUT)?;
        switch.start_ovsdb()?;
        switch.vsctl(&["--no-wait", "init"])?;
        switch.start_vswitchd()?;
        Ok(switch)
    }

    /// The directory with sockets, database and logs.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.directory.path()
    }

    /// The namespace in which the switch has its links.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The database's unix socket.
    #[must_use]
    pub fn db_socket(&self) -> PathBuf {
        self.dir().join("db.sock")
    }

    /// The OpenFlow management socket of a bridge.
    #[must_use]
    pub fn bridge_socket(&self, bridge: &str) -> PathBuf {
        self.dir().join(format!("{bridge}.mgmt"))
    }

    /// The log of `ovs-vswitchd`.
    #[must_use]
    pub fn vswitchd_log(&self) -> PathBuf {
        self.dir().join("ovs-vswitchd.log")
    }

    /// A command with the environment in which the OVS tools find this switch and no other.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.with_environment(Command::new(program))
    }

    /// Runs `ovs-vsctl` on this switch's database; it waits for the switch for at most 20 s unless told `--no-wait`.
    ///
    /// # Errors
    /// As [`process::run`].
    pub fn vsctl<S: AsRef<OsStr>>(&self, words: &[S]) -> Result<String> {
        process::run(self.vsctl_command().arg("--timeout=20").args(words), COMMAND_TIMEOUT)
    }

    fn vsctl_command(&self) -> Command {
        let mut command = self.command("ovs-vsctl");
        command.arg(self.database_argument());
        command
    }

    /// Runs `ovs-ofctl -O OpenFlow15`, for example `&["dump-flows", "br-int"]`.
    ///
    /// # Errors
    /// As [`process::run`].
    pub fn ofctl<S: AsRef<OsStr>>(&self, words: &[S]) -> Result<String> {
        process::run(self.command("ovs-ofctl").args(["-O", "OpenFlow15", "--timeout=20"]).args(words), COMMAND_TIMEOUT)
    }

    /// Waits until the data path has taken up the flow tables as they are: what it cached before is gone then. A barrier does not wait for that. Three
    /// rounds of the revalidators, for the first may have begun before the change, and the second before the main loop has told them of it.
    ///
    /// # Errors
    /// When `ovs-appctl` refuses.
    pub fn settle(&self) -> Result<()> {
        (0..3).try_for_each(|_| self.appctl(&["revalidator/wait"]).map(drop))
    }

    /// Runs `ovs-appctl` on the switch daemon, for example `&["ofproto/trace", "br-int", "in_port=1"]`.
    ///
    /// # Errors
    /// As [`process::run`].
    pub fn appctl<S: AsRef<OsStr>>(&self, words: &[S]) -> Result<String> {
        let mut command = self.command("ovs-appctl");
        command.arg("--timeout=20").arg("-t").arg(self.control_socket("ovs-vswitchd")).args(words);
        process::run(&mut command, COMMAND_TIMEOUT)
    }

    /// Adds a bridge that drops everything until it has flows (`fail_mode=secure`) and speaks OpenFlow 1.0 to 1.5.
    ///
    /// # Errors
    /// As [`Switch::vsctl`].
    pub fn add_bridge(&self, bridge: &str) -> Result<()> {
        let words = ["--may-exist", "add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev"];
        let more = ["fail_mode=secure", "protocols=[OpenFlow10,OpenFlow13,OpenFlow14,OpenFlow15]"];
        self.vsctl(&[words.as_slice(), more.as_slice()].concat()).map(drop)
    }

    /// Adds a link of the switch's namespace to a bridge and returns its OpenFlow port number.
    ///
    /// # Errors
    /// When the switch cannot use the link.
    pub fn add_port(&self, bridge: &str, link: &str) -> Result<u32> {
        self.vsctl(&["--may-exist", "add-port", bridge, link])?;
        self.ofport(link)
    }

    /// Plugs links into a bridge, many at once, and does not wait for the switch.
    ///
    /// # Errors
    /// As [`Switch::vsctl`].
    pub fn add_dummies(&self, bridge: &str, ports: &[Plugged]) -> Result<()> {
        for some in ports.chunks(PLUGGED_AT_ONCE) {
            let mut words = vec!["--no-wait".to_owned()];
            for port in some {
                words.extend(["--", "add-port", bridge, &port.link].map(str::to_owned));
                words.extend(["--", "set", "interface", &port.link].map(str::to_owned));
                words.extend(port.is_dummy.then(|| "type=dummy".to_owned()));
                words.extend(port.ids.iter().map(|(key, value)| format!("external_ids:\"{key}\"={value}")));
            }
            process::run(self.vsctl_command().args(words), PLUG_TIMEOUT)?;
        }
        Ok(())
    }

    /// How many flows a bridge holds.
    ///
    /// # Errors
    /// As [`Switch::ofctl`], and when the answer has no count.
    pub fn flow_count(&self, bridge: &str) -> Result<usize> {
        let text = self.ofctl(&["dump-aggregate", bridge])?;
        let count = text.split("flow_count=").nth(1).and_then(|rest| rest.split_whitespace().next());
        count.and_then(|count| count.parse().ok()).with_context(|| format!("no flow count in {text}"))
    }

    /// The OpenFlow port number that the switch gave to an interface.
    ///
    /// # Errors
    /// When it has none, or one that says that the interface does not work.
    pub fn ofport(&self, interface: &str) -> Result<u32> {
        let text = self.vsctl(&["get", "interface", interface, "ofport"])?;
        text.trim().parse().with_context(|| format!("ofport of interface {interface}: {}", text.trim()))
    }

    /// Joins `machine` to a bridge as if it were a VM: a veth pair, `link` on the switch and `eth0` inside.
    ///
    /// # Errors
    /// When a step fails.
    pub fn plug(&self, bridge: &str, link: &str, machine: &Namespace, mac: &str) -> Result<u32> {
        self.namespace.add_veth(link, machine, "eth0")?;
        machine.set_mac("eth0", mac)?;
        self.add_port(bridge, link)
    }

    /// Starts the switch daemon; does nothing when it runs. Returns when it has taken over the database's contents.
    ///
    /// # Errors
    /// When it does not come up in time.
    pub fn start_vswitchd(&mut self) -> Result<()> {
        if is_running(self.vswitchd.as_mut())? {
            return Ok(());
        }
        let control = self.control_socket("ovs-vswitchd");
        let mut command = self.with_environment(self.namespace.command("ovs-vswitchd"));
        let remote = format!("unix:{}", self.db_socket().display());
        command.arg(remote).args(daemon_arguments(&control, &self.vswitchd_log()));
        if self.has_dummies {
            command.arg("--enable-dummy");
        }
        let mut daemon = Daemon::start("ovs-vswitchd", &command, &self.dir().join("ovs-vswitchd.out"))?;
        daemon.wait_ready("the switch to take over its configuration", START_TIMEOUT, || {
            Ok(self.answers(&control)?.then_some(()))
        })?;
        self.vswitchd = Some(daemon);
        // ovs-vsctl without --no-wait returns when the switch has caught up with the database.
        self.vsctl(&["list-br"])
            .and_then(|_| self.vsctl(&["set", "open_vswitch", ".", "other_config:started=true"]))?;
        Ok(())
    }

    /// Kills the switch daemon with SIGKILL: flows are lost, the database stays.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill_vswitchd(&mut self) -> Result<()> {
        self.vswitchd.take().map_or(Ok(()), |mut daemon| daemon.kill().map(drop))
    }

    /// Stops the switch daemon in its tracks (SIGSTOP), as a host is that hangs, or has it go on (SIGCONT).
    ///
    /// # Errors
    /// When it does not run or cannot be signalled.
    pub fn freeze_vswitchd(&self, is_frozen: bool) -> Result<()> {
        let daemon = self.vswitchd.as_ref().context("the switch daemon does not run")?;
        let signal = if is_frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        kill(daemon.pid(), signal).with_context(|| format!("send {signal} to the switch daemon"))
    }

    /// Kills the switch daemon and starts it again with empty tables.
    ///
    /// # Errors
    /// As [`Switch::start_vswitchd`].
    pub fn restart_vswitchd(&mut self) -> Result<()> {
        self.kill_vswitchd()?;
        self.start_vswitchd()
    }

    /// Starts the database server; does nothing when it runs.
    ///
    /// # Errors
    /// When it does not come up in time.
    pub fn start_ovsdb(&mut self) -> Result<()> {
        if is_running(self.ovsdb.as_mut())? {
            return Ok(());
        }
        let control = self.control_socket("ovsdb-server");
        let mut command = self.command("ovsdb-server");
        command.arg(self.dir().join("conf.db")).arg(format!("--remote=punix:{}", self.db_socket().display()));
        command.args(daemon_arguments(&control, &self.dir().join("ovsdb-server.log")));
        let mut daemon = Daemon::start("ovsdb-server", &command, &self.dir().join("ovsdb-server.out"))?;
        daemon.wait_ready("the database to answer", START_TIMEOUT, || Ok(self.answers(&control)?.then_some(())))?;
        self.ovsdb = Some(daemon);
        Ok(())
    }

    /// Kills the database server with SIGKILL; its file stays.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill_ovsdb(&mut self) -> Result<()> {
        self.ovsdb.take().map_or(Ok(()), |mut daemon| daemon.kill().map(drop))
    }

    fn with_environment(&self, mut command: Command) -> Command {
        for variable in ["OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR", "OVS_SYSCONFDIR"] {
            command.env(variable, self.dir());
        }
        command
    }

    fn database_argument(&self) -> String {
        format!("--db=unix:{}", self.db_socket().display())
    }

    fn control_socket(&self, program: &str) -> PathBuf {
        self.dir().join(format!("{program}.ctl"))
    }

    fn answers(&self, control: &Path) -> Result<bool> {
        if !control.exists() {
            return Ok(false);
        }
        let mut command = self.command("ovs-appctl");
        command.arg("--timeout=5").arg("-t").arg(control).arg("version");
        Ok(process::output(&mut command, COMMAND_TIMEOUT)?.status.success())
    }
}

/// Removes the directories of test processes that are gone. Failures are left to the next run.
fn remove_orphans() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner =
            name.to_str().and_then(|name| name.strip_prefix(DIRECTORY_PREFIX)?.split_once('-')?.0.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            let _gone = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn is_running(daemon: Option<&mut Daemon>) -> Result<bool> {
    daemon.map_or(Ok(false), |daemon| Ok(daemon.ended()?.is_none()))
}

fn daemon_arguments(control: &Path, log: &Path) -> [String; 5] {
    [
        "--no-chdir".to_owned(),
        "--pidfile".to_owned(),
        format!("--unixctl={}", control.display()),
        format!("--log-file={}", log.display()),
        "-vconsole:off".to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::require;
    use crate::skip::Need;
    use std::net::Ipv4Addr;

    /// Two namespaces on one private bridge reach each other once there is a flow, and again after the switch daemon
    /// was killed and got its flow back: it forgets flows and keeps ports.
    #[test]
    fn a_private_switch_forwards_and_survives_kill() {
        require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
        let mut switch = Switch::start().unwrap();
        switch.add_bridge("br-int").unwrap();
        let machines = [Namespace::new().unwrap(), Namespace::new().unwrap()];
        for (index, machine) in machines.iter().enumerate() {
            let mac = format!("02:00:00:00:00:0{}", index + 1);
            switch.plug("br-int", &format!("vm{index}"), machine, &mac).unwrap();
            machine.add_address("eth0", &format!("10.9.0.{}/24", index + 1)).unwrap();
        }
        let target = Ipv4Addr::new(10, 9, 0, 2).into();
        assert_eq!(machines[0].ping(target, 1, Duration::from_secs(1)).unwrap(), 0, "no flow, no packet");
        switch.ofctl(&["add-flow", "br-int", "actions=NORMAL"]).unwrap();
        assert_eq!(machines[0].ping(target, 2, Duration::from_secs(2)).unwrap(), 2);

        let port = switch.ofport("vm0").unwrap();
        switch.restart_vswitchd().unwrap();
        assert_eq!(switch.ofport("vm0").unwrap(), port);
        assert!(!switch.ofctl(&["dump-flows", "br-int"]).unwrap().contains("NORMAL"));
        switch.ofctl(&["add-flow", "br-int", "actions=NORMAL"]).unwrap();
        assert_eq!(machines[0].ping(target, 2, Duration::from_secs(2)).unwrap(), 2);
    }

    /// An error of a tool says what the tool said.
    #[test]
    fn errors_carry_the_tools_words() {
        require!(Need::Root, Need::OpenVswitch);
        let switch = Switch::start().unwrap();
        let error = switch.ofctl(&["dump-flows", "no-such-bridge"]).unwrap_err().to_string();
        assert!(error.contains("no-such-bridge is not a bridge"), "{error}");
    }
}

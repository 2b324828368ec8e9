//! OVN from Debian on a private switch: northbound and southbound databases, northd and the controller, with the same ports and rules.
//!
//! Sources: ovn-nbctl(8), ovn-sbctl(8), ovn-controller(8). The controller says that a port is installed in
//! `external_ids:ovn-installed` of its interface, and `ovn-nbctl --wait=hv` returns once the controller has installed all that came before.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use basalt_tests::ovs::{Plugged, Switch};
use basalt_tests::process::{self, COMMAND_TIMEOUT, Daemon};

use super::Side;
use super::datapath::{Machines, median};
use super::topology::{MACHINES, Topology};
use super::usage::{Process, spent};

/// Where Debian's package has the schemas.
const SCHEMAS: &str = "/usr/share/ovn";
/// How long everything may take at the largest size.
const LIMIT: Duration = Duration::from_secs(1500);
/// How long a daemon may take to answer.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Commands of one call of ovn-nbctl.
const AT_ONCE: usize = 300;
/// How often each small change is made.
const REPEATS: u32 = 3;

/// A switch and OVN.
#[derive(Debug)]
pub(super) struct Host {
    // The controller goes first, the switch last.
    controller: Option<Daemon>,
    _northd: Daemon,
    _nbctl: Resident,
    _databases: [Daemon; 2],
    machines: Machines,
    switch: Switch,
}

/// Words for `ovn-nbctl` that become one command of many.
type Words = Vec<String>;

macro_rules! words {
    ($($text:tt)*) => { format!($($text)*).split(' ').map(str::to_owned).collect::<Words>() };
}

impl Host {
    pub(super) fn start(topology: &Topology) -> Result<Self> {
        let switch = Switch::start_with_dummies()?;
        let databases = [database(&switch, "nb")?, database(&switch, "sb")?];
        switch.add_bridge("br-int")?;
        let ids = [
            ("system-id", "hv1".to_owned()),
            ("ovn-remote", socket(&switch, "sb")),
            ("ovn-encap-type", "geneve".to_owned()),
            ("ovn-encap-ip", "127.0.0.1".to_owned()),
            ("ovn-bridge-datapath-type", "netdev".to_owned()),
            ("ovn-monitor-all", "true".to_owned()),
            ("ovn-enable-lflow-cache", "true".to_owned()),
            ("ovn-remote-probe-interval", "0".to_owned()),
            ("ovn-openflow-probe-interval", "0".to_owned()),
        ];
        let ids = ids.map(|(key, value)| format!("external_ids:{key}={value}"));
        switch.vsctl(&[&["set".to_owned(), "open_vswitch".to_owned(), ".".to_owned()], ids.as_slice()].concat())?;
        let machines = Machines::new(&switch, topology)?;
        run(&switch, "ovn-nbctl", "nb", &["init"])?;
        run(&switch, "ovn-sbctl", "sb", &["init"])?;
        let northd = daemon(
            &switch,
            "ovn-northd",
            &[format!("--ovnnb-db={}", socket(&switch, "nb")), format!("--ovnsb-db={}", socket(&switch, "sb"))],
        )?;
        // A client that stays, as the benchmark of OVN itself uses it: else each call reads the whole database first.
        let nbctl = Resident::start(&switch)?;
        let mut host =
            Self { controller: None, _northd: northd, _nbctl: nbctl, _databases: databases, machines, switch };
        host.start_controller()?;
        let ports: Vec<Plugged> = topology.here().map(plugged).collect();
        host.switch.add_dummies("br-int", &ports)?;
        host.nbctl(&["--wait=hv", "sync"])?;
        Ok(host)
    }

    pub(super) const fn machines(&self) -> &Machines {
        &self.machines
    }

    pub(super) const fn switch(&self) -> &Switch {
        &self.switch
    }

    /// Everything but packets.
    pub(super) fn measure(&mut self, topology: &Topology) -> Result<Side> {
        let file = |name: &'static str, file: &str| Process::watch_file(name, &self.switch.dir().join(file));
        file("ovs-vswitchd", "ovs-vswitchd.pid")?.rest()?;
        let processes = [
            file("ovn-controller", "ovn-controller.pid")?,
            file("ovs-vswitchd", "ovs-vswitchd.pid")?,
            file("ovn-northd", "ovn-northd.pid")?,
            file("ovsdb-server (north)", "nb.pid")?,
            file("ovsdb-server (south)", "sb.pid")?,
        ];
        let start = Instant::now();
        self.populate(topology)?;
        let install_s = start.elapsed().as_secs_f64();
        let daemons = spent(&processes)?;
        let flows = self.switch.flow_count("br-int")?;
        let add_port_ms = self.add_ports(topology)?;
        let change_rule_ms = self.change_rules()?;
        let delete_port_ms = self.delete_ports(topology)?;
        let restart_s = self.restart(flows)?;
        Ok(Side {
            flows,
            install_s,
            cpu_s: daemons.iter().map(|daemon| daemon.cpu_s).sum(),
            agent_rss_mb: daemons[0].rss_mb,
            switch_rss_mb: daemons[1].rss_mb,
            daemons,
            add_port_ms,
            change_rule_ms,
            delete_port_ms,
            restart_s,
            compile_port_ms: None,
            compile_rule_ms: None,
            compile_all_ms: None,
            passes_l2: 0.0,
            passes_routed: 0.0,
            megaflows_l2: 0,
            megaflows_routed: 0,
            gbps: 0.0,
            latency_us: 0.0,
        })
    }

    /// Says what should be, binds the ports of the other host, and waits until all is installed.
    fn populate(&self, topology: &Topology) -> Result<()> {
        self.nbctl_all(networks(*topology))?;
        self.nbctl_all(rules()?)?;
        self.nbctl_all((0..topology.ports).flat_map(|port| port_words(*topology, port)).collect())?;
        let members: Vec<String> = (0..topology.ports).map(|port| format!("lp{port}")).collect();
        for group in ["sg0", "pg_drop"] {
            let words = [&["pg-set-ports".to_owned(), group.to_owned()], members.as_slice()].concat();
            self.nbctl(&words)?;
        }
        self.nbctl(&["--wait=sb", "sync"])?;
        run(&self.switch, "ovn-sbctl", "sb", &["chassis-add", "hv2", "geneve", "127.0.0.2"])?;
        let binds: Vec<Words> = topology.there().map(|port| words!("lsp-bind lp{port} hv2")).collect();
        for some in binds.chunks(AT_ONCE) {
            run(&self.switch, "ovn-sbctl", "sb", &joined(some))?;
        }
        self.wait_installed(topology.here().count())?;
        self.nbctl(&["--wait=hv", "sync"]).map(drop)
    }

    fn wait_installed(&self, count: usize) -> Result<()> {
        process::wait_for("OVN to install its ports", LIMIT, || {
            let find =
                ["--no-wait", "--bare", "--columns=name", "find", "interface", "external_ids:ovn-installed=true"];
            let names = self.switch.vsctl(&find)?;
            Ok((names.lines().filter(|line| line.starts_with('d')).count() >= count).then_some(()))
        })
    }

    fn add_ports(&self, topology: &Topology) -> Result<f64> {
        let mut times = Vec::new();
        for port in topology.ports..topology.ports + REPEATS {
            self.switch.add_dummies("br-int", &[plugged(port)])?;
            let start = Instant::now();
            self.nbctl(&joined(&port_words(*topology, port)))?;
            let row =
                self.nbctl(&["--bare", "--columns=_uuid", "find", "logical_switch_port", &format!("name=lp{port}")])?;
            let row = row.trim();
            self.nbctl(&[
                "add",
                "port_group",
                "sg0",
                "ports",
                row,
                "--",
                "add",
                "port_group",
                "pg_drop",
                "ports",
                row,
            ])?;
            process::wait_for("OVN to install a port", LIMIT, || {
                let get = ["--no-wait", "--if-exists", "get", "interface", &Topology::link(port), "external_ids"];
                Ok(self.switch.vsctl(&get)?.contains("ovn-installed=\"true\"").then_some(()))
            })?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
            self.nbctl(&["--wait=hv", "sync"])?;
        }
        Ok(median(&times))
    }

    fn change_rules(&self) -> Result<f64> {
        let mut times = Vec::new();
        for number in 0..REPEATS {
            let rule = format!("outport==@sg0 && ip4 && tcp && tcp.dst=={}", 9000 + number);
            let start = Instant::now();
            self.nbctl(&["--wait=hv", "acl-add", "sg0", "to-lport", "1002", &rule, "allow-related"])?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
            let start = Instant::now();
            self.nbctl(&["--wait=hv", "acl-del", "sg0", "to-lport", "1002", &rule])?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        Ok(median(&times))
    }

    fn delete_ports(&self, topology: &Topology) -> Result<f64> {
        let mut times = Vec::new();
        for port in topology.ports..topology.ports + REPEATS {
            let start = Instant::now();
            self.nbctl(&["--wait=hv", "lsp-del", &format!("lp{port}")])?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        Ok(median(&times))
    }

    /// The controller is ended and the flows are deleted: how long until a new one has all installed again.
    fn restart(&mut self, flows: usize) -> Result<f64> {
        if let Some(mut controller) = self.controller.take() {
            controller.kill()?;
        }
        self.switch.ofctl(&["del-flows", "br-int"])?;
        let start = Instant::now();
        self.start_controller()?;
        self.nbctl(&["--wait=hv", "sync"])?;
        // The controller speaks of the databases' newest change, which was there before it: flows may still be on their way.
        process::wait_for("OVN to install all flows again", LIMIT, || {
            Ok((self.switch.flow_count("br-int")? * 100 >= flows * 99).then_some(()))
        })?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn start_controller(&mut self) -> Result<()> {
        let remote = format!("unix:{}", self.switch.db_socket().display());
        self.controller = Some(daemon(&self.switch, "ovn-controller", &[remote])?);
        Ok(())
    }

    fn nbctl_all(&self, commands: Vec<Words>) -> Result<()> {
        commands.chunks(AT_ONCE).try_for_each(|some| self.nbctl(&joined(some)).map(drop))
    }

    fn nbctl<S: AsRef<OsStr>>(&self, words: &[S]) -> Result<String> {
        let mut command = command(&self.switch, "ovn-nbctl");
        command.env("OVN_NB_DAEMON", nbctl_control(&self.switch)).args(words);
        process::run(&mut command, LIMIT)
    }
}

fn networks(topology: Topology) -> Vec<Words> {
    let mut commands = vec![words!("lr-add lr0")];
    for number in 0..topology.networks() {
        let (mac, gateway) = (Topology::router_mac(number), Topology::gateway(number));
        commands.push(words!("ls-add sw{number}"));
        commands.push(words!("lrp-add lr0 lr0-sw{number} {mac} {gateway}/24"));
        commands.push(words!("lsp-add sw{number} sw{number}-lr0"));
        commands.push(words!("lsp-set-type sw{number}-lr0 router"));
        commands.push(words!("lsp-set-addresses sw{number}-lr0 router"));
        commands.push(words!("lsp-set-options sw{number}-lr0 router-port=lr0-sw{number}"));
    }
    commands
}

/// What no rule allows is dropped, and the ten rules.
fn rules() -> Result<Vec<Words>> {
    let mut commands = vec![words!("pg-add pg_drop"), words!("pg-add sg0")];
    let mut add = |group: &str, direction: &str, priority: &str, rule: &str, verdict: &str| {
        commands.push(["acl-add", group, direction, priority, rule, verdict].map(str::to_owned).to_vec());
    };
    add("pg_drop", "from-lport", "1001", "inport==@pg_drop && ip", "drop");
    add("pg_drop", "to-lport", "1001", "outport==@pg_drop && ip", "drop");
    for rule in ["inport==@sg0 && ip4", "inport==@sg0 && ip6"] {
        add("sg0", "from-lport", "1002", rule, "allow-related");
    }
    let ingress = [
        "ip4.src==$sg0_ip4",
        "tcp && tcp.dst==22",
        "tcp && tcp.dst==80",
        "tcp && tcp.dst==443",
        "tcp && tcp.dst>=8000 && tcp.dst<=8999",
        "icmp4",
        "udp && udp.dst==53",
        "ip4.src==10.0.0.0/8 && tcp && tcp.dst==5432",
    ];
    for rule in ingress {
        add("sg0", "to-lport", "1002", &format!("outport==@sg0 && ip4 && {rule}"), "allow-related");
    }
    Ok(commands)
}

fn port_words(topology: Topology, port: u32) -> Vec<Words> {
    let own = format!("{} {}", topology.mac(port), topology.address(port));
    let with_own = |verb: &str| vec![verb.to_owned(), format!("lp{port}"), own.clone()];
    let network = topology.network_of(port);
    vec![words!("lsp-add sw{network} lp{port}"), with_own("lsp-set-addresses"), with_own("lsp-set-port-security")]
}

/// Several commands as the words of one call.
fn joined(commands: &[Words]) -> Words {
    commands.join(&"--".to_owned())
}

fn plugged(port: u32) -> Plugged {
    let is_dummy = !MACHINES.contains(&port);
    Plugged { link: Topology::link(port), is_dummy, ids: vec![("iface-id", format!("lp{port}"))] }
}

fn socket(switch: &Switch, database: &str) -> String {
    format!("unix:{}/{database}.sock", switch.dir().display())
}

fn nbctl_control(switch: &Switch) -> PathBuf {
    switch.dir().join("nbctl.ctl")
}

/// A command with the environment in which OVN's tools find this switch and no other.
fn command(switch: &Switch, program: &str) -> Command {
    let mut command = switch.command(program);
    for variable in ["OVN_RUNDIR", "OVN_DBDIR", "OVN_LOGDIR", "OVN_SYSCONFDIR"] {
        command.env(variable, switch.dir());
    }
    command
}

fn run<S: AsRef<OsStr>>(switch: &Switch, program: &str, database: &str, words: &[S]) -> Result<String> {
    let mut command = command(switch, program);
    command.arg(format!("--db={}", socket(switch, database))).args(words);
    process::run(&mut command, LIMIT)
}

/// One of OVN's databases and its server.
fn database(switch: &Switch, name: &str) -> Result<Daemon> {
    let path = switch.dir().join(format!("{name}.db"));
    let mut create = command(switch, "ovsdb-tool");
    create.arg("create").arg(&path).arg(Path::new(SCHEMAS).join(format!("ovn-{name}.ovsschema")));
    process::run(&mut create, COMMAND_TIMEOUT)?;
    let mut server = command(switch, "ovsdb-server");
    server.arg(&path).arg(format!("--remote=p{}", socket(switch, name)));
    started(switch, name, server, &switch.dir().join(format!("{name}.sock")))
}

/// One of OVN's daemons. The controller names its control socket itself, so the file with the process id is waited for.
fn daemon(switch: &Switch, name: &str, arguments: &[String]) -> Result<Daemon> {
    let mut program = command(switch, name);
    program.args(arguments);
    let file = switch.dir().join(format!("{name}.pid"));
    if file.exists() {
        std::fs::remove_file(&file)?;
    }
    started(switch, name, program, &file)
}

/// A client that keeps its copy of the northbound database, and ends on drop. It leaves its process group by itself, so it is told to end.
#[derive(Debug)]
struct Resident {
    exit: Command,
}

impl Resident {
    fn start(switch: &Switch) -> Result<Self> {
        let mut program = command(switch, "ovn-nbctl");
        program.arg(format!("--db={}", socket(switch, "nb"))).args(["--detach", "--no-chdir", "-vconsole:off"]);
        program.arg(format!("--unixctl={}", nbctl_control(switch).display()));
        program.arg(format!("--log-file={}", switch.dir().join("nbctl.log").display()));
        process::run(&mut program, START_LIMIT)?;
        let mut exit = command(switch, "ovs-appctl");
        exit.arg("--timeout=5").arg("-t").arg(nbctl_control(switch)).arg("exit");
        Ok(Self { exit })
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        // One that does not hear is gone already.
        let _ = process::output(&mut self.exit, COMMAND_TIMEOUT);
    }
}

/// Starts a daemon and waits until a socket or file of it is there.
fn started(switch: &Switch, name: &str, mut program: Command, socket: &Path) -> Result<Daemon> {
    let file = |ending: &str| switch.dir().join(format!("{name}.{ending}")).display().to_string();
    program.arg(format!("--pidfile={}", file("pid"))).arg(format!("--log-file={}", file("log"))).arg("-vconsole:off");
    if name != "ovn-controller" {
        program.arg(format!("--unixctl={}", file("ctl")));
    }
    let mut daemon = Daemon::start(name, &program, Path::new(&file("out")))?;
    daemon
        .wait_ready(&format!("{name} to answer"), START_LIMIT, || Ok(socket.exists().then_some(())))
        .with_context(|| format!("start {name} (is ovn-central and ovn-host installed?)"))?;
    Ok(daemon)
}

//! Our side: the agent's network half as a process of its own, in a release build, on a private switch.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use basalt_tests::ovs::Switch;
use basalt_tests::process::{self, Daemon};
use hw_tests::lab::progress::Progress;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Side;
use super::datapath::{Machines, median};
use super::topology::{MACHINES, Topology};
use super::usage::{Process, spent};

/// How long a release build may take.
const BUILD_LIMIT: Duration = Duration::from_secs(3600);
/// How long the agent may take for a command.
const COMMAND_LIMIT: Duration = Duration::from_secs(300);
/// How often each small change is made.
const REPEATS: u32 = 5;

/// What the agent says of a command.
#[derive(Debug, Deserialize)]
struct Answer {
    compile_ms: f64,
    total_ms: f64,
    messages: usize,
    flows: usize,
}

/// A switch and its agent.
#[derive(Debug)]
pub(super) struct Host {
    // The agent goes before its switch.
    agent: Agent,
    machines: Machines,
    program: PathBuf,
    spec: PathBuf,
    switch: Switch,
}

/// The agent and the line to it.
#[derive(Debug)]
struct Agent {
    line: BufReader<UnixStream>,
    daemon: Daemon,
}

/// Builds the agent as it is shipped, and says where it is.
pub(super) fn build(root: &Path, progress: &Progress) -> Result<PathBuf> {
    let step = progress.step("release build of the agent's network half");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).args(["build", "--release", "--package", "dataplane", "--example", "host_agent"]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    let output = process::run(&mut cargo, BUILD_LIMIT)?;
    let messages = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut programs = messages.filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from));
    let program = programs.next_back().context("cargo named no program")?;
    step.done(&program.display().to_string());
    Ok(program)
}

impl Agent {
    fn start(program: &Path, switch: &Switch) -> Result<Self> {
        let socket = switch.dir().join("agent.sock");
        if socket.exists() {
            std::fs::remove_file(&socket)?;
        }
        let mut command = Command::new(program);
        // As the agent's unit has it.
        command.env("MALLOC_ARENA_MAX", "1");
        command.arg(switch.db_socket()).arg(switch.bridge_socket("br-int")).arg(&socket);
        let mut daemon = Daemon::start("host_agent", &command, &switch.dir().join("agent.log"))?;
        let connect = || Ok(UnixStream::connect(&socket).ok());
        let stream = daemon.wait_ready("the agent to listen", COMMAND_LIMIT, connect)?;
        stream.set_read_timeout(Some(COMMAND_LIMIT))?;
        Ok(Self { line: BufReader::new(stream), daemon })
    }

    fn ask(&mut self, command: &Value) -> Result<Answer> {
        writeln!(self.line.get_mut(), "{command}").context("send a command to the agent")?;
        let mut answer = String::new();
        self.line.read_line(&mut answer).with_context(|| format!("wait for the agent: {}", self.daemon.log_tail()))?;
        serde_json::from_str(&answer).with_context(|| format!("read {answer:?}: {}", self.daemon.log_tail()))
    }

    fn pid(&self) -> u32 {
        self.daemon.pid().as_raw().unsigned_abs()
    }
}

impl Host {
    /// Starts a switch with all ports of this host and an agent that has been told nothing yet.
    pub(super) fn start(topology: &Topology, program: &Path) -> Result<Self> {
        let switch = Switch::start_with_dummies()?;
        switch.add_bridge("br-int")?;
        let agent = Agent::start(program, &switch)?;
        let machines = Machines::new(&switch, topology)?;
        let ports: Vec<_> = topology.here().map(plugged).collect();
        switch.add_dummies("br-int", &ports)?;
        let spec = switch.dir().join("spec.json");
        std::fs::write(&spec, model::spec::wire::encode(&topology.spec()?)?)?;
        let mut host = Self { agent, machines, program: program.to_owned(), spec, switch };
        host.agent.ask(&json!({ "ready": ports.len() }))?;
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
        let pid = self.switch.dir().join("ovs-vswitchd.pid");
        Process::watch_file("ovs-vswitchd", &pid)?.rest()?;
        let switch = Process::watch_file("ovs-vswitchd", &pid)?;
        let processes = [Process::watch("agent", self.agent.pid())?, switch];
        let start = Instant::now();
        let all = self.agent.ask(&json!({ "spec": self.spec }))?;
        let install_s = start.elapsed().as_secs_f64();
        let daemons = spent(&processes)?;
        let flows = self.switch.flow_count("br-int")?;
        anyhow::ensure!(flows == all.flows, "the agent says {} flows, the switch {flows}", all.flows);
        let changes = self.change(topology)?;
        let restart_s = self.restart()?;
        Ok(Side {
            flows,
            install_s,
            cpu_s: daemons.iter().map(|daemon| daemon.cpu_s).sum(),
            agent_rss_mb: daemons[0].rss_mb,
            switch_rss_mb: daemons[1].rss_mb,
            daemons,
            add_port_ms: changes.add.total(),
            change_rule_ms: changes.rule.total(),
            delete_port_ms: changes.delete.total(),
            restart_s,
            compile_port_ms: Some(changes.add.compile()),
            compile_rule_ms: Some(changes.rule.compile()),
            compile_all_ms: Some(all.compile_ms),
            passes_l2: 0.0,
            passes_routed: 0.0,
            megaflows_l2: 0,
            megaflows_routed: 0,
            gbps: 0.0,
            latency_us: 0.0,
        })
    }

    /// One port more, one rule more and less, one port less, a few times each.
    fn change(&mut self, topology: &Topology) -> Result<Changes> {
        let mut changes = Changes::default();
        let here = topology.here().count();
        for number in 0..REPEATS {
            let port = topology.ports + number;
            self.switch.add_dummies("br-int", &[plugged(port)])?;
            self.agent.ask(&json!({ "ready": here + usize::try_from(number)? + 1 }))?;
            changes.add.take(self.agent.ask(&json!({ "put_port": topology.port(port) }))?)?;
        }
        for number in 0..REPEATS {
            let more = [9000 + u16::try_from(number)?];
            changes.rule.take(self.agent.ask(&json!({ "put_group": Topology::group(&more)? }))?)?;
            changes.rule.take(self.agent.ask(&json!({ "put_group": Topology::group(&[])? }))?)?;
        }
        for number in 0..REPEATS {
            let port = Topology::port_id(topology.ports + number);
            changes.delete.take(self.agent.ask(&json!({ "remove_port": port }))?)?;
        }
        Ok(changes)
    }

    /// The agent is killed and the flows are deleted: how long until a new one has all installed again.
    fn restart(&mut self) -> Result<f64> {
        self.agent.daemon.kill()?;
        self.switch.ofctl(&["del-flows", "br-int"])?;
        self.switch.ofctl(&["del-groups", "br-int"])?;
        let start = Instant::now();
        self.agent = Agent::start(&self.program, &self.switch)?;
        self.agent.ask(&json!({ "spec": self.spec }))?;
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Changes of each kind.
#[derive(Debug, Default)]
struct Changes {
    add: Kind,
    rule: Kind,
    delete: Kind,
}

#[derive(Debug, Default)]
struct Kind {
    total_ms: Vec<f64>,
    compile_ms: Vec<f64>,
}

impl Kind {
    fn take(&mut self, answer: Answer) -> Result<()> {
        anyhow::ensure!(answer.messages > 0, "a change that changed nothing: {answer:?}");
        self.total_ms.push(answer.total_ms);
        self.compile_ms.push(answer.compile_ms);
        Ok(())
    }

    fn total(&self) -> f64 {
        median(&self.total_ms)
    }

    fn compile(&self) -> f64 {
        median(&self.compile_ms)
    }
}

/// How a port is plugged in: its device, whether that is a dummy, and what the database has of it.
fn plugged(port: u32) -> basalt_tests::ovs::Plugged {
    basalt_tests::ovs::Plugged {
        link: Topology::link(port),
        is_dummy: !MACHINES.contains(&port),
        ids: vec![
            ("iface-id", Topology::port_id(port).to_string()),
            ("basalt:vm", Topology::machine_id(port).to_string()),
        ],
    }
}

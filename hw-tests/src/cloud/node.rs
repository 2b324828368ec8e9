//! One node of the cloud: a lab host with Open vSwitch and our agent, joined to the scheduler.

use std::time::Duration;

use anyhow::{Context, Result};
use basalt_tests::process;

use super::centre::Centre;
use super::program::Programs;
use crate::guest::Shell;
use crate::lab::Host;
use crate::lab::exec::client::{Finished, InputStream};
use crate::lab::network::PHYSICAL;

/// The agent's configuration in the host.
const CONFIG: &str = "/etc/basalt/agent.toml";
/// Where the agent's process number and words are.
const PID: &str = "/run/basalt-agent.pid";
const LOG: &str = "/var/log/basalt-agent.log";
const START_LIMIT: Duration = Duration::from_secs(60);
/// Thousands of bits a second that a host's link to the physical network is said to carry, which holds while a port has a minimum there: so few that
/// machines on emulated processors fill it.
pub const LINK_KBPS: u32 = 240;

/// The agent in a host.
#[derive(Debug, Clone)]
pub struct Node {
    host: Host,
    program: String,
    flowctl: String,
}

impl Node {
    /// The node on `host`.
    #[must_use]
    pub fn new(host: &Host, programs: &Programs) -> Self {
        Self { host: host.clone(), program: programs.path("node-agent"), flowctl: programs.path("flowctl") }
    }

    /// Its host.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Writes the configuration, joins with `token` and starts the agent.
    ///
    /// # Errors
    /// A step fails in the host; the message has the agent's last words.
    pub fn join(&self, centre: &Centre, token: &str, programs: &Programs, ceph_conf: &str) -> Result<()> {
        let (name, underlay) = (self.host.name(), self.host.underlay());
        let vmm = programs.path("vmm");
        let config = format!(
            "[paths]\ncache = \"/var/lib/basalt/cache\"\n\n\
             [underlay]\nip = \"{underlay}\"\ninterface = \"eth1\"\n\n\
             [[physical]]\nname = \"{PHYSICAL}\"\ninterface = \"eth2\"\nbandwidth_kbps = {LINK_KBPS}\n\n\
             [ceph]\nconf = \"{ceph_conf}\"\nuser = \"{}\"\npool = \"{}\"\n\n\
             [machines]\nvmm = \"{vmm}\"\n",
            basalt_tests::ceph::USER,
            basalt_tests::ceph::POOL,
        );
        let write = format!("mkdir -p /etc/basalt; cat >{CONFIG}");
        self.host.command("sh").args(["-ec", write.as_str()]).input(config).ok()?;
        let mut join = self.host.command(&self.program).args(["join", "--config", CONFIG, "--name", name]);
        // In the environment: a token on a command line is there for all to see.
        join = join.args(["--scheduler", centre.url().as_str()]).env("BASALT_JOIN_TOKEN", token);
        join.limit(START_LIMIT).ok().with_context(|| format!("{name} joins"))?;
        self.start()
    }

    /// Starts the agent.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(&self) -> Result<()> {
        let program = &self.program;
        let script = format!(
            "setsid {program} run --config {CONFIG} </dev/null >>{LOG} 2>&1 &\n echo $! >{PID}; sleep 0.2; kill -0 $!"
        );
        self.host.sh(&script).map(drop).with_context(|| self.log_tail())
    }

    /// Kills the agent with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// It was not running, or stays.
    pub fn kill(&self) -> Result<String> {
        let pid = self.host.sh(&format!("cat {PID}"))?.trim().to_owned();
        self.host.sh(&format!("kill -9 {pid}"))?;
        process::wait_for("the agent's end", START_LIMIT, || {
            Ok(self.host.try_sh(&format!("kill -0 {pid}"))?.success().then_some(()).map_or(Some(()), |()| None))
        })?;
        Ok(pid)
    }

    /// The agent's resident set as the kernel counts it, KiB (proc(5), status).
    ///
    /// # Errors
    /// The agent does not run.
    pub fn resident_kib(&self) -> Result<u64> {
        let line = self.host.sh(&format!("grep VmRSS /proc/$(cat {PID})/status"))?;
        let number = line.split_whitespace().nth(1).and_then(|word| word.parse().ok());
        number.with_context(|| format!("a resident set that is none: {line}"))
    }

    /// Whether the agent has nothing left to do.
    ///
    /// # Errors
    /// It does not answer.
    pub fn is_settled(&self) -> Result<bool> {
        let text = self.host.command(&self.program).args(["status", "--config", CONFIG]).limit(START_LIMIT).ok()?;
        let status: serde_json::Value = serde_json::from_str(&text).context("the agent's status")?;
        Ok(status["settled"] == true)
    }

    /// Runs flowctl on the node, as an operator there would.
    ///
    /// # Errors
    /// The host does not answer; how flowctl ended is in the result.
    pub fn flowctl(&self, words: &[&str]) -> Result<Finished> {
        self.host.command(&self.flowctl).args(words.iter().copied()).limit(START_LIMIT).finish()
    }

    /// The process numbers of its virtual machines, sorted.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn machine_processes(&self) -> Result<Vec<u32>> {
        let text = self.host.sh("pidof -x vmm || true")?;
        let mut pids: Vec<u32> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        pids.sort_unstable();
        Ok(pids)
    }

    /// The shell of the guest with identity `id` on this node.
    ///
    /// # Errors
    /// No shell answers on its console in time; the message has the logs of machine and agent.
    pub fn shell(&self, id: &str, limit: Duration) -> Result<Shell<InputStream>> {
        let (reader, writer) = self.host.relay(&format!("/run/basalt/vm/{id}/console.sock"))?;
        Shell::attach(reader, writer, limit).with_context(|| {
            let (host, machine) = (self.host.name(), self.machine_log(id));
            format!("the machine {id} on {host}\n{machine}\n{}", self.log_tail())
        })
    }

    /// The last words of a machine's VMM, for errors.
    fn machine_log(&self, id: &str) -> String {
        let text = self.host.sh(&format!("tail -n 8 /run/basalt/vm/{id}/*.log")).unwrap_or_default();
        format!("the machine's logs:\n{text}")
    }

    /// The agent's last words, for errors.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = self.host.sh(&format!("tail -n 15 {LOG}")).unwrap_or_default();
        format!("the agent's log on {}:\n{text}", self.host.name())
    }
}

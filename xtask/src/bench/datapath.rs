//! Machines as network namespaces, and what packets between them cost.
//!
//! Owns three machines on a switch: two on one network, one behind the router. Counts come from the datapath's own counters over one TCP connection
//! and its ARP; throughput and latency come in rounds, so that each side has the machine's good and bad moments alike.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use basalt_tests::netns::Namespace;
use basalt_tests::ovs::Switch;
use basalt_tests::process::Daemon;

use super::topology::{MACHINES, SERVICE, Topology};

/// How often each side has its turn.
pub(super) const ROUNDS: usize = 3;
/// Length of one throughput measurement in seconds.
const SECONDS: u32 = 2;
/// Pings of one latency measurement, and their distance in seconds.
const PINGS: (&str, &str) = ("200", "0.002");
/// The port of the throughput server: inside of the range that a rule allows.
const THROUGHPUT: u16 = 8081;
/// Octets sent over the connection that is counted, one way and as many back.
const COUNTED_OCTETS: usize = 1 << 20;
/// How long a connection may take to come about.
const REACH: Duration = Duration::from_secs(20);

/// The machines of one side.
#[derive(Debug)]
pub(super) struct Machines {
    machines: BTreeMap<u32, Namespace>,
    _server: Daemon,
}

/// What one connection cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path {
    pub(super) passes: f64,
    pub(super) megaflows: usize,
}

/// What connections cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paths {
    pub(super) l2: Path,
    pub(super) routed: Path,
}

/// Measurements in turns.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    gbps: Vec<f64>,
    latency_us: Vec<f64>,
}

impl Machines {
    /// Makes the machines and their links in the switch's namespace; the links are for the caller to plug in.
    pub(super) fn new(switch: &Switch, topology: &Topology) -> Result<Self> {
        let mut machines = BTreeMap::new();
        for port in MACHINES {
            let machine = Namespace::new()?;
            switch.namespace().add_veth(&Topology::link(port), &machine, "eth0")?;
            machine.set_mac("eth0", &topology.mac(port).to_string())?;
            machine.set_mtu("eth0", 1400)?;
            // What IPv6 says by itself when a link comes up would be counted as part of a connection.
            machine.run(&["sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1"])?;
            machine.add_address("eth0", &format!("{}/24", topology.address(port)))?;
            machine.add_route("default", &Topology::gateway(topology.network_of(port)).to_string())?;
            machines.insert(port, machine);
        }
        let log = switch.dir().join("iperf3.log");
        let server = machines[&MACHINES[1]].start("iperf3", &["iperf3", "-s", "-p", &THROUGHPUT.to_string()], &log)?;
        Ok(Self { machines, _server: server })
    }

    /// Passes and megaflows of one connection on the network, and of one through the router.
    pub(super) fn count(&self, switch: &Switch, topology: &Topology) -> Result<Paths> {
        let l2 = self.count_one(switch, topology, MACHINES[1]).context("count on one network")?;
        let routed = self.count_one(switch, topology, MACHINES[2]).context("count through the router")?;
        Ok(Paths { l2, routed })
    }

    fn count_one(&self, switch: &Switch, topology: &Topology, to: u32) -> Result<Path> {
        // Once before, so that what is only needed the first time (the switch's own start) is not counted.
        self.converse(topology, to)?;
        for machine in [MACHINES[0], to] {
            self.machines[&machine].run(&["ip", "neigh", "flush", "all"])?;
        }
        switch.appctl(&["dpctl/del-flows"])?;
        switch.appctl(&["dpif-netdev/pmd-stats-clear"])?;
        self.converse(topology, to)?;
        let stats = switch.appctl(&["dpif-netdev/pmd-stats-show"])?;
        let passes = stats.lines().filter_map(|line| line.trim().strip_prefix("avg. datapath passes per packet:"));
        let passes = passes.filter_map(|number| number.trim().parse::<f64>().ok()).fold(0.0, f64::max);
        let flows = switch.appctl(&["dpctl/dump-flows"])?;
        let megaflows = flows.lines().filter(|line| line.contains("actions:")).count();
        if let Some(path) = std::env::var_os("BASALT_BENCH_FLOWS") {
            let name = std::path::Path::new(&path).join(format!("{}-{to}.txt", switch.namespace().name()));
            std::fs::write(&name, format!("{flows}\n{stats}")).with_context(|| format!("write {}", name.display()))?;
        }
        Ok(Path { passes, megaflows })
    }

    /// One TCP connection that carries a mebibyte each way.
    fn converse(&self, topology: &Topology, to: u32) -> Result<()> {
        let address = SocketAddr::from((topology.address(to), SERVICE));
        let listener =
            self.machines[&to].enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, SERVICE)))?.context("listen")?;
        std::thread::scope(|scope| -> Result<()> {
            let server = scope.spawn(move || -> Result<()> {
                let (mut stream, _) = listener.accept()?;
                stream.set_read_timeout(Some(REACH))?;
                let mut octets = vec![0; COUNTED_OCTETS];
                stream.read_exact(&mut octets)?;
                stream.write_all(&octets)?;
                Ok(())
            });
            let client = self.machines[&MACHINES[0]].enter(|| TcpStream::connect_timeout(&address, REACH))?;
            // A server that nobody reaches would wait for ever: the error below ends the program, and the server with it.
            let mut client = client.with_context(|| format!("connect to {address}"))?;
            client.set_read_timeout(Some(REACH))?;
            let mut octets = vec![7; COUNTED_OCTETS];
            client.write_all(&octets)?;
            client.read_exact(&mut octets)?;
            server.join().map_err(|_| anyhow!("the server panicked"))?
        })
    }
}

impl Rounds {
    /// One turn.
    pub(super) fn add(&mut self, machines: &Machines, topology: &Topology) -> Result<()> {
        let (from, to) = (&machines.machines[&MACHINES[0]], topology.address(MACHINES[1]).to_string());
        let (port, seconds) = (THROUGHPUT.to_string(), SECONDS.to_string());
        let limit = Duration::from_secs(30);
        let text = from.run_for(&["iperf3", "-c", &to, "-p", &port, "-t", &seconds, "-J"], limit)?;
        let report: serde_json::Value = serde_json::from_str(&text).context("read iperf3's report")?;
        let bits = report.pointer("/end/sum_received/bits_per_second").and_then(serde_json::Value::as_f64);
        self.gbps.push(bits.with_context(|| format!("no throughput in {text}"))? / 1e9);
        let text = from.run_for(&["ping", "-q", "-c", PINGS.0, "-i", PINGS.1, &to], limit)?;
        let average = text.lines().find_map(|line| line.split_once("= ")?.1.split('/').nth(1)?.parse::<f64>().ok());
        self.latency_us.push(average.with_context(|| format!("no latency in {text}"))? * 1e3);
        Ok(())
    }

    pub(super) fn gbps(&self) -> f64 {
        median(&self.gbps)
    }

    pub(super) fn latency_us(&self) -> f64 {
        median(&self.latency_us)
    }
}

/// The middle of some measurements; 0 of none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

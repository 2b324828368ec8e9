//! `cargo xtask bench`: measures what the project promises, next to its peers, in one run.
//!
//! Owns the command's words and the order of a run; the parts are in the modules below. Never judges: it prints and writes what was measured, with
//! the conditions. Everything it starts is private and ends with it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand, ValueEnum};
use hw_tests::lab::progress::Progress;
use serde::Serialize;

mod datapath;
mod normal;
mod ours;
mod ovn;
mod report;
mod topology;
mod usage;

use datapath::{Paths, Rounds};
use topology::Topology;

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Flows, time, memory and packets, held against OVN from Debian on the same topology.
    Net(Net),
}

/// How the network is measured.
#[derive(Debug, Args)]
pub(crate) struct Net {
    /// The number of ports, half of them on this host; several with commas.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,4000,20000",
          value_parser = clap::value_parser!(u32).range(100..=40_000))]
    ports: Vec<u32>,
    /// The largest number of ports that OVN is measured at; 0 leaves it out. At 4000 it takes minutes, beyond it hours.
    #[arg(long, default_value_t = 4000)]
    ovn_ports_max: u32,
    /// Writes docs/bench.md and its chart.
    #[arg(long)]
    write: bool,
    /// This build of the agent's network half (`host_agent`) instead of a fresh release build.
    #[arg(long)]
    agent: Option<PathBuf>,
    /// What stands on standard output; with json the last line is one object.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// One side of a run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Side {
    flows: usize,
    /// From the first word of what should be until every flow of it is installed.
    install_s: f64,
    /// Of all daemons together in that time.
    cpu_s: f64,
    switch_rss_mb: f64,
    agent_rss_mb: f64,
    /// The processes that took part, one by one.
    daemons: Vec<usage::Spent>,
    add_port_ms: f64,
    change_rule_ms: f64,
    delete_port_ms: f64,
    /// From nothing installed and no agent until all is installed.
    restart_s: f64,
    /// What compiling one port took; ours only.
    #[serde(skip_serializing_if = "Option::is_none")]
    compile_port_ms: Option<f64>,
    /// The same for one rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    compile_rule_ms: Option<f64>,
    /// And for all from nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    compile_all_ms: Option<f64>,
    passes_l2: f64,
    passes_routed: f64,
    megaflows_l2: usize,
    megaflows_routed: usize,
    gbps: f64,
    latency_us: f64,
}

impl Side {
    fn take(mut self, paths: &Paths, rounds: &Rounds) -> Self {
        (self.passes_l2, self.megaflows_l2) = (paths.l2.passes, paths.l2.megaflows);
        (self.passes_routed, self.megaflows_routed) = (paths.routed.passes, paths.routed.megaflows);
        (self.gbps, self.latency_us) = (rounds.gbps(), rounds.latency_us());
        self
    }
}

/// A run at one size.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    ports: u32,
    ours: Side,
    #[serde(skip_serializing_if = "Option::is_none")]
    ovn: Option<Side>,
    /// The learning switch built into Open vSwitch: what the data path can do at most.
    normal: Normal,
    conditions: usage::Conditions,
}

#[derive(Debug, Clone, Serialize)]
struct Normal {
    gbps: f64,
    latency_us: f64,
}

/// Runs what was asked for.
pub(crate) fn run(root: &Path, bench: &Bench, progress: &Progress) -> Result<ExitCode> {
    let Bench::Net(net) = bench;
    let with_ovn = |ports: u32| ports <= net.ovn_ports_max;
    crate::packages::ensure(&["network"], progress)?;
    if net.ports.iter().any(|ports| with_ovn(*ports)) {
        crate::packages::ensure(&["bench"], progress)?;
    }
    let agent = net.agent.clone().map_or_else(|| ours::build(root, progress), Ok)?;
    let mut runs = Vec::new();
    for ports in net.ports.iter().copied() {
        let run = measure(ports, with_ovn(ports), &agent, progress);
        runs.push(run.with_context(|| format!("measure {ports} ports"))?);
    }
    print(&runs, net.output)?;
    if net.write {
        report::write(root, &runs)?;
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "the measurements are what this program is run for")]
fn print(runs: &[Run], output: Output) -> Result<()> {
    match output {
        Output::Table => print!("{}", report::table(runs)),
        Output::Json => {
            for run in runs {
                println!("{}", serde_json::to_string(run)?);
            }
        }
    }
    Ok(())
}

/// One size: both are set up one after the other, then take turns with packets.
fn measure(ports: u32, with_ovn: bool, agent: &Path, progress: &Progress) -> Result<Run> {
    let topology = Topology::new(ports);
    let step = progress.step(&format!("ours, {ports} ports"));
    let mut ours = ours::Host::start(&topology, agent)?;
    let mut side = ours.measure(&topology)?;
    step.done(&format!("{} flows in {:.2} s", side.flows, side.install_s));
    let mut ovn = None;
    if with_ovn {
        let step = progress.step(&format!("OVN, {ports} ports"));
        let mut host = ovn::Host::start(&topology)?;
        let side = host.measure(&topology)?;
        step.done(&format!("{} flows in {:.2} s", side.flows, side.install_s));
        ovn = Some((host, side));
    }
    let step = progress.step("packets");
    let normal = normal::Host::start(&topology)?;
    let paths = ours.machines().count(ours.switch(), &topology)?;
    let mut rounds = [Rounds::default(), Rounds::default(), Rounds::default()];
    let ovn_paths = ovn.as_ref().map(|(host, _)| host.machines().count(host.switch(), &topology)).transpose()?;
    for _ in 0..datapath::ROUNDS {
        rounds[0].add(ours.machines(), &topology)?;
        if let Some((host, _)) = &ovn {
            rounds[1].add(host.machines(), &topology)?;
        }
        rounds[2].add(normal.machines(), &topology)?;
    }
    step.done(&format!("{} rounds", datapath::ROUNDS));
    side = side.take(&paths, &rounds[0]);
    let ovn = ovn.zip(ovn_paths).map(|((_, side), paths)| side.take(&paths, &rounds[1]));
    let normal = Normal { gbps: rounds[2].gbps(), latency_us: rounds[2].latency_us() };
    Ok(Run { ports, ours: side, ovn, normal, conditions: usage::Conditions::now()? })
}

//! `cargo xtask up`: from a fresh machine to a running cloud with machines in it, shown to work.
//!
//! Owns the command's words and the order of its steps; the cloud and its proofs are `hw_tests::cloud`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use hw_tests::cloud::evidence::{Examiner, Report};
use hw_tests::cloud::program::Programs;
use hw_tests::cloud::{Cloud, HostLost, proof, tenant};
use hw_tests::lab::Config;
use hw_tests::lab::progress::Progress;

use crate::{lab, packages};

/// Bring up a whole cloud on this machine: hosts, storage, networks and virtual machines.
#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Number of hosts, 2 or 3.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=3))]
    hosts: u8,
    /// Prove that everything works, then take the cloud away. Without it the cloud stays up.
    #[arg(long)]
    check: bool,
    /// What goes to standard output. With `json` its last line is one object: ok, seconds, hosts, checks.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Take a cloud away that was left up.
    #[arg(long, conflicts_with_all = ["check", "hosts"])]
    down: bool,
}

/// How often a check is begun anew because a host was lost.
const HOSTS_LOST_MAX: usize = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Runs the command.
///
/// # Errors
/// The step that failed. Checks that fail are no error here: they are in the report and in the exit code.
pub(crate) fn run(up: &Up, progress: &Progress) -> Result<ExitCode> {
    if up.down {
        let step = progress.step("down");
        Cloud::down(lab::NAME)?;
        step.done("no process and no link is left");
        return Ok(ExitCode::SUCCESS);
    }
    packages::ensure(&[], progress)?;
    lab::build(progress)?;
    let step = progress.step("programs");
    let programs = Programs::build()?;
    step.done(&programs.describe());
    let config = Config { name: lab::NAME.to_owned(), hosts: up.hosts, ..Config::default() };
    if up.check {
        let report = prove(&config, &programs, progress)?;
        show(&report, up.output)?;
        return Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let mut cloud = Cloud::up(&config, &programs, progress)?;
    let vms = tenant::make(cloud.centre(), cloud.guest(), progress)?;
    cloud.keep()?;
    progress.say(&format!("the cloud is up after {:.0} s", progress.elapsed().as_secs_f64()));
    tell(&cloud, &vms, up.output, progress.elapsed().as_secs_f64())?;
    Ok(ExitCode::SUCCESS)
}

/// Brings a cloud up, proves it and takes it away; once more where the emulator lost a host on the way, which says nothing about the product.
fn prove(config: &Config, programs: &Programs, progress: &Progress) -> Result<Report> {
    for _ in 0..HOSTS_LOST_MAX {
        match prove_once(config, programs, progress) {
            Ok((report, Some(lost))) if !report.ok => say_lost(&lost, progress),
            Err(error) => match error.downcast_ref::<HostLost>() {
                Some(lost) => say_lost(lost, progress),
                None => return Err(error),
            },
            Ok((report, _)) => return Ok(report),
        }
    }
    Ok(prove_once(config, programs, progress)?.0)
}

fn say_lost(lost: &HostLost, progress: &Progress) {
    progress.say(&format!("{lost}: everything is brought up once more"));
}

/// The report, and the host that was lost meanwhile.
fn prove_once(config: &Config, programs: &Programs, progress: &Progress) -> Result<(Report, Option<HostLost>)> {
    let cloud = Cloud::up(config, programs, progress)?;
    let mut examiner = Examiner::new(progress);
    match tenant::make(cloud.centre(), cloud.guest(), progress) {
        Ok(vms) => proof::examine(&cloud, &vms, &mut examiner),
        Err(error) => {
            examiner.check("the tenant's machines run", || Err(error));
        }
    }
    Ok((examiner.report(config.hosts), cloud.lost_host()))
}

/// Prints the report on standard output.
fn show(report: &Report, output: Output) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match output {
        Output::Json => writeln!(stdout, "{}", serde_json::to_string(report)?)?,
        Output::Text => {
            for check in &report.checks {
                let verdict = if check.ok { "ok    " } else { "FAILED" };
                writeln!(
                    stdout,
                    "{verdict} {:>6.1} s  {}\n                 {}",
                    check.seconds, check.name, check.evidence
                )?;
            }
            let passed = report.checks.iter().filter(|check| check.ok).count();
            let (all, hosts) = (report.checks.len(), report.hosts);
            writeln!(stdout, "{passed} of {all} checks passed on {hosts} hosts in {:.0} s", report.seconds)?;
        }
    }
    Ok(())
}

/// Says how to look around and how to stop.
fn tell(cloud: &Cloud, vms: &[tenant::Vm], output: Output, seconds: f64) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    if output == Output::Json {
        let hosts = cloud.lab().hosts().len();
        let Ok(hosts) = u8::try_from(hosts) else { bail!("{hosts} hosts") };
        let report = Report { ok: true, seconds, hosts, checks: Vec::new() };
        writeln!(stdout, "{}", serde_json::to_string(&report)?)?;
        return Ok(());
    }
    for vm in vms {
        writeln!(stdout, "{:8} {:12} on {}  ({})", vm.name, vm.address, vm.host, vm.id)?;
    }
    writeln!(stdout, "In a host:  cargo xtask lab exec host1 -- ovs-ofctl -O OpenFlow15 dump-flows br-int")?;
    writeln!(stdout, "Its console: cargo xtask lab console host1")?;
    writeln!(stdout, "Stop:       cargo xtask up --down")?;
    Ok(())
}

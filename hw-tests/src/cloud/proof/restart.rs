//! Proof that the agent's death is nothing to what runs.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use basalt_tests::process;

use super::Machines;
use crate::cloud::Cloud;
use crate::cloud::evidence::Examiner;

/// Pings sent while agents are killed and started again, five each second.
const PINGS: u32 = 60;
/// How long agents stay dead.
const DEAD_TIME: Duration = Duration::from_secs(3);
const PING_LIMIT: Duration = Duration::from_secs(90);
const BACK_LIMIT: Duration = Duration::from_secs(60);

/// Runs the proof of this module.
pub(super) fn examine(cloud: &Cloud, machines: &Machines, examiner: &mut Examiner<'_>) {
    let name = "agents killed with SIGKILL and started again lose no packet and no machine";
    examiner.check(name, || agents_killed(cloud, machines));
}

fn agents_killed(cloud: &Cloud, machines: &Machines) -> Result<String> {
    let (one, two) = (machines.get("web1")?, machines.get("web2")?);
    let pids = || cloud.nodes().iter().map(super::super::node::Node::machine_processes).collect::<Result<Vec<_>>>();
    let before = pids()?;
    let ping = format!("ping -c {PINGS} -i 0.2 -W 10 {}", two.vm.address);
    let text = std::thread::scope(|scope| -> Result<String> {
        let ping = scope.spawn(|| one.shell().ok(&ping, PING_LIMIT));
        for node in cloud.nodes() {
            node.kill()?;
        }
        // The time without any agent, during which pings go on.
        let start = std::time::Instant::now();
        process::wait_for("some time without agents", DEAD_TIME * 2, || {
            Ok((start.elapsed() >= DEAD_TIME).then_some(()))
        })?;
        cloud.nodes().iter().try_for_each(super::super::node::Node::start)?;
        ping.join().map_err(|_| anyhow!("the ping panicked"))?
    })?;
    let line = text.lines().find(|line| line.contains("packets transmitted")).context("ping printed no sum")?;
    if !line.contains(" 0% packet loss") {
        bail!("{line}");
    }
    for node in cloud.nodes() {
        let path = format!("/v1/hosts/{}", node.host().name());
        let look = || Ok((cloud.centre().get(&path)?["state"] == "up").then_some(()));
        process::wait_for("the host to be up again", BACK_LIMIT, look).with_context(|| node.log_tail())?;
    }
    let after = pids()?;
    if before != after {
        bail!("VMM processes were {before:?} and are {after:?}");
    }
    Ok(format!("{} agents dead for {} s: {line}; VMM processes {after:?} as before", before.len(), DEAD_TIME.as_secs()))
}

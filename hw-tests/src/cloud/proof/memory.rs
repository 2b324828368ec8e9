//! Proof that the agent stays small: its resident set on a host with ten ports of machines, when nothing is left to do.
//!
//! What is measured is the program as users run it (a release build, with its link to the scheduler, its switch and its volumes in Ceph), after
//! it has imported, launched and traced, so that what it keeps of its work counts too. The kernel's account is read, not the agent's own.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use basalt_tests::process;
use serde_json::json;

use crate::cloud::Cloud;
use crate::cloud::evidence::Examiner;
use crate::cloud::node::Node;
use crate::cloud::tenant::{self, BLUE, WEB};

const PORTS: usize = 10;
/// What an idle agent may take with so many ports, KiB: 30 MiB.
const RESIDENT_MAX_KIB: u64 = 30 * 1024;
/// The machine that has the ports. It is not started: ports are ready before their machine runs.
const OWNER: &str = "many-ports";
const READY_LIMIT: Duration = Duration::from_secs(60);
/// For how long the agent is looked at, and how often.
const WATCH: Duration = Duration::from_secs(5);
const WATCH_LIMIT: Duration = Duration::from_secs(30);

/// Runs the proof of this module.
pub(super) fn examine(cloud: &Cloud, examiner: &mut Examiner<'_>) {
    let name = "an idle agent with ten ports takes 30 MiB of memory or less";
    examiner.check(name, || stays_small(cloud));
}

fn stays_small(cloud: &Cloud) -> Result<String> {
    let [node, ..] = cloud.nodes() else { bail!("this needs a host") };
    let host = node.host().name();
    let (before, used) = (node.resident_kib()?, ports_of(node)?);
    let networks = vec![BLUE; PORTS];
    let request = json!({"name": OWNER, "flavor": tenant::FLAVOR, "boot": {"kernel": "debian-kernel"}, "networks": networks,
        "groups": [WEB], "host": host, "start": false});
    cloud.centre().post("/v1/vms", &request)?;
    let measured = measure(node, used + PORTS);
    let path = format!("/v1/vms/{OWNER}");
    cloud.centre().delete(&path)?;
    tenant::wait_gone(cloud.centre(), &path, READY_LIMIT)?;
    let (ports, most) = measured?;
    if most > RESIDENT_MAX_KIB {
        bail!("{most} KiB resident on {host} with {ports} ports, {before} KiB before");
    }
    Ok(format!("{most} KiB resident at most on {host} with {ports} ports ({before} KiB before), release build"))
}

/// How many ports of machines the bridge has.
fn ports_of(node: &Node) -> Result<usize> {
    let text = node.host().sh("ovs-vsctl list-ports br-int | grep -c '^tap' || true")?;
    text.trim().parse().context("count ports")
}

/// Waits until the ports are there and nothing is left to do; gives their number and the most memory that was seen.
fn measure(node: &Node, wanted: usize) -> Result<(usize, u64)> {
    let ports = process::wait_for("ten more ports on the bridge", READY_LIMIT, || {
        let count = ports_of(node)?;
        Ok((count >= wanted && node.is_settled()?).then_some(count))
    })
    .with_context(|| node.log_tail())?;
    let (start, mut most) = (Instant::now(), 0);
    process::wait_for("a look at the idle agent", WATCH_LIMIT, || {
        most = most.max(node.resident_kib()?);
        Ok((start.elapsed() >= WATCH).then_some(()))
    })?;
    Ok((ports, most))
}

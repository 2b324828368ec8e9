//! Proof that a mirrored port's frames get to the port that watches, on its own host and across hosts, in the kernel's data path.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use basalt_tests::process;
use serde_json::{Value, json};

use super::{Machines, Occupied};
use crate::cloud::Cloud;
use crate::cloud::capture::Capture;
use crate::cloud::evidence::Examiner;

/// Pings of one try.
const PINGS: u64 = 10;
/// The first of the VXLAN network identifiers that are kept for copies.
const FIRST_VNI: u32 = 0x00f0_0000;
const SEEN_LIMIT: Duration = Duration::from_secs(15);
/// From a change of a mirror to its host copying by it.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);

/// Runs the proof of this module.
pub(super) fn examine(cloud: &Cloud, machines: &Machines, examiner: &mut Examiner<'_>) {
    examiner.check(
        "a machine that watches gets copies of what another sends and is sent, here and across hosts",
        || {
            let seen = watched(cloud, machines);
            for name in ["web1", "web2"] {
                mirror(cloud, machines.get(name)?, None)?;
            }
            seen
        },
    );
}

fn watched(cloud: &Cloud, machines: &Machines) -> Result<String> {
    let database = machines.get("db1")?;
    let (one, two) = (machines.get("web1")?, machines.get("web2")?);
    // One of them is where the data base is, the other is not.
    let (near, far) = if one.vm.host == database.vm.host { (one, two) } else { (two, one) };

    let capture = Capture::start(cloud.lab().network())?;
    mirror(cloud, near, Some(far))?;
    let across = copies(far, || talk(near, database))?;
    for (from, to, what) in [(near, database, "request"), (database, near, "reply")] {
        let wanted = format!("{} > {}: ICMP echo {what}", from.vm.address, to.vm.address);
        let is_copy = |vni: u32, inside: &str| vni >= FIRST_VNI && inside.contains(&wanted);
        capture
            .wait("the copy on the underlay", SEEN_LIMIT, |packet| is_copy(packet.vni, &packet.inside))
            .with_context(|| format!("a copy of the echo {what}, between two machines of {}", near.vm.host))?;
    }

    mirror(cloud, near, Some(database))?;
    let here = copies(database, || talk(near, far))?;

    mirror(cloud, near, None)?;
    let quiet = || {
        let before = received(database)?;
        talk(near, far)?;
        Ok(Some(received(database)? - before).filter(|count| *count < PINGS))
    };
    let after = process::wait_for("the end of the copies", CHANGE_LIMIT, quiet)?;
    Ok(format!(
        "of {PINGS} pings by each version of IP between {} and db1 on {}, {} on {} gets {across} frames, by VXLAN; of as many to {}, db1 gets {here}, \
         and {after} once the mirror has ended; every ping is answered",
        near.vm.name, near.vm.host, far.vm.name, far.vm.host, far.vm.name
    ))
}

/// Has a machine's port mirrored to another's, or to nobody.
fn mirror(cloud: &Cloud, machine: &Occupied, to: Option<&Occupied>) -> Result<Value> {
    let mirror = to.map(|to| json!({"to": to.vm.port, "direction": "both"}));
    cloud.centre().patch(&format!("/v1/ports/{}", machine.vm.port), &json!({"mirror": mirror}))
}

/// Pings by both versions of IP, all of which must be answered.
fn talk(from: &Occupied, to: &Occupied) -> Result<()> {
    for (program, address) in [("ping", &to.vm.address), ("ping -6", &to.vm.address6)] {
        let text = from.ok(&format!("{program} -c {PINGS} -i 0.05 -W 10 {address} || true"))?;
        ensure!(text.contains(" 0% packet loss"), "{} to {}: {text}", from.vm.name, to.vm.name);
    }
    Ok(())
}

/// How many frames a machine's interface has taken in, whoever they are for.
fn received(machine: &Occupied) -> Result<u64> {
    let text = machine.ok("cat /sys/class/net/eth0/statistics/rx_packets")?;
    text.trim().parse().with_context(|| format!("rx_packets of {}: {text}", machine.vm.name))
}

/// How many frames a machine gets while others talk: a copy of each request and of each reply, by each version of IP.
fn copies(watcher: &Occupied, talk: impl Fn() -> Result<()>) -> Result<u64> {
    let look = || {
        let before = received(watcher)?;
        talk()?;
        Ok(Some(received(watcher)? - before).filter(|count| *count >= 4 * PINGS))
    };
    process::wait_for("the copies to reach the machine that watches", CHANGE_LIMIT, look)
}

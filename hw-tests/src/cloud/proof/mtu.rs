//! Proof that a sender is told what a network carries that its packet is routed to, and heeds it, in the kernel's data path.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use basalt_tests::process;

use super::{Machines, Occupied};
use crate::cloud::evidence::Examiner;
use crate::cloud::tenant::GREEN_MTU;

/// Octets that a ping carries: more than the green network carries, and not more than the blue one.
const OCTETS: u32 = 1440;
const HEEDED_LIMIT: Duration = Duration::from_secs(30);

/// Runs the proof of this module.
pub(super) fn examine(machines: &Machines, examiner: &mut Examiner<'_>) {
    examiner.check("a router tells senders what the next network carries, and they heed it", || {
        let (web, database) = (machines.get("web1")?, machines.get("db1")?);
        let four = heeds(web, &database.vm.address, || web.icmp("InDestUnreachs"))?;
        let six = heeds(web, &database.vm.address6, || too_big(web))?;
        Ok(format!("web1 pings db1 with {OCTETS} octets where {GREEN_MTU} fit: told {four} times, by IPv6 {six} times, then answered"))
    });
}

/// Pings until an answer comes, which takes packets of the right size; gives how often the machine was told.
fn heeds(from: &Occupied, to: &str, told: impl Fn() -> Result<u32>) -> Result<u32> {
    let before = told()?;
    let ping = format!("ping -c 1 -W 2 -s {OCTETS} {to}");
    ensure!(!from.succeeds(&ping)?, "the first ping is answered though it does not fit");
    process::wait_for(&format!("an answer from {to}"), HEEDED_LIMIT, || Ok(from.succeeds(&ping)?.then_some(())))?;
    let told = told()? - before;
    ensure!(told > 0, "nobody told the sender");
    Ok(told)
}

/// How many ICMPv6 messages have told the machine's kernel that a packet was too big.
fn too_big(machine: &Occupied) -> Result<u32> {
    let text = machine.ok("grep Icmp6InPktTooBigs /proc/net/snmp6")?;
    let count = text.split_whitespace().nth(1).and_then(|count| count.parse().ok());
    count.with_context(|| format!("no count of packets that were too big: {text}"))
}

//! Proof that the next gateway of a router leads out when the first falls silent, told by BFD alone, in the kernel's data path.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use basalt_tests::process;
use serde_json::json;

use super::{Machines, Occupied};
use crate::cloud::Cloud;
use crate::cloud::evidence::Examiner;
use crate::cloud::outside::{self, Outside};
use crate::cloud::tenant::OUTSIDE;
use crate::lab::Host;

const ROUTER: &str = "/v1/routers/router";
/// From a change to what comes of it, on hosts of one emulated processor.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);
/// What a host is wired to others and to the physical network by.
const LINKS: [&str; 2] = ["eth1", "eth2"];

/// Runs the proof of this module.
pub(super) fn examine(cloud: &Cloud, machines: &Machines, examiner: &mut Examiner<'_>) {
    examiner.check("the next gateway of a router leads out while the first is silent, and hands back", || {
        cloud.centre().post(&format!("{ROUTER}/gateway"), &json!({"subnet": OUTSIDE}))?;
        let seen = taken_over(cloud, machines);
        cloud.centre().delete(&format!("{ROUTER}/gateway")).and(seen)
    });
}

fn taken_over(cloud: &Cloud, machines: &Machines) -> Result<String> {
    let [first, next] = gateways(cloud)?;
    let machine = machines.on(&next)?;
    let (first, next) = (cloud.node(&first)?.host(), cloud.node(&next)?.host());
    let _station = Outside::start(cloud.lab().network())?;
    process::wait_for("a ping out by the first gateway", CHANGE_LIMIT, || Ok(pings(machine)?.then_some(())))?;
    let until_heard = |is_heard: bool| {
        let what = if is_heard { "the first gateway to be heard" } else { "the first gateway to be missed" };
        process::wait_for(what, CHANGE_LIMIT, || Ok((hears(next, first)? == is_heard).then_some(())))
    };
    until_heard(true)?;
    {
        let _cut = Cut::off(first)?;
        until_heard(false)?;
        process::wait_for("a ping out by the next gateway", CHANGE_LIMIT, || Ok(pings(machine)?.then_some(())))?;
        ensure!(gateways(cloud)? == [first.name(), next.name()], "the scheduler has moved the gateway itself");
    }
    until_heard(true)?;
    process::wait_for("a ping out by the first gateway again", CHANGE_LIMIT, || Ok(pings(machine)?.then_some(())))?;
    Ok(format!(
        "{} on {} pings {} while {} is cut off, which BFD tells, and after",
        machine.vm.name,
        next.name(),
        outside::ADDRESS,
        first.name()
    ))
}

/// The hosts that lead the router out, in their order.
fn gateways(cloud: &Cloud) -> Result<[String; 2]> {
    let router = cloud.centre().get(ROUTER)?;
    let name = |index: u8| router.pointer(&format!("/gateway/hosts/{index}/name")).and_then(|name| name.as_str());
    let names = name(0).zip(name(1)).with_context(|| format!("less than two gateway hosts in {router}"))?;
    Ok([names.0.to_owned(), names.1.to_owned()])
}

fn pings(machine: &Occupied) -> Result<bool> {
    machine.succeeds(&format!("ping -c 1 -W 3 {}", outside::ADDRESS))
}

/// Whether the switch of a host hears that of another.
fn hears(host: &Host, other: &Host) -> Result<bool> {
    let find = format!(
        "ovs-vsctl --bare --columns=bfd_status find interface external_ids:'\"basalt:peer\"'={}",
        other.underlay()
    );
    Ok(host.sh(&find)?.contains("forwarding=true"))
}

/// A host without its links but that by which it is managed, until the value ends.
struct Cut<'a>(&'a Host);

impl<'a> Cut<'a> {
    fn off(host: &'a Host) -> Result<Self> {
        let cut = Self(host);
        cut.set("down")?;
        Ok(cut)
    }

    fn set(&self, state: &str) -> Result<()> {
        let steps = LINKS.map(|link| format!("ip link set {link} {state}"));
        self.0.sh(&steps.join("; ")).map(drop)
    }
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        // The proof that follows says what is missing when this fails.
        self.set("up").ok();
    }
}

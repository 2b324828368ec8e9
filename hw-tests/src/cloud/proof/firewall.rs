//! Proof that a router's firewall judges what crosses its border, by a floating IP and by the router's own address, in the kernel's data path, and that
//! replies pass.

use std::time::Duration;

use anyhow::{Context, Result};
use basalt_tests::process;
use serde_json::json;

use super::{Machines, Occupied};
use crate::cloud::Cloud;
use crate::cloud::evidence::Examiner;
use crate::cloud::outside::{self, Outside};
use crate::cloud::tenant::OUTSIDE;

const ROUTER: &str = "/v1/routers/router";
const POLICIES: &str = "/v1/firewall-policies";
/// What listens on port 80 of web2 since the proof of ports says.
const SERVED: &str = "port-80";
/// From a change of a policy to hosts doing so.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);

/// Runs the proof of this module.
pub(super) fn examine(cloud: &Cloud, machines: &Machines, examiner: &mut Examiner<'_>) {
    examiner.check(
        "a router's firewall lets in and out what its rules allow, in their order, and replies to that",
        || {
            let (served, quiet) = (machines.get("web2")?, machines.get("db1")?);
            let centre = cloud.centre();
            centre.post(&format!("{ROUTER}/gateway"), &json!({"subnet": OUTSIDE}))?;
            let seen = with_floating(cloud, served, quiet);
            centre.delete(&format!("{ROUTER}/gateway")).and(seen)
        },
    );
}

fn with_floating(cloud: &Cloud, served: &Occupied, quiet: &Occupied) -> Result<String> {
    let centre = cloud.centre();
    let router = centre.post(&format!("{ROUTER}/floating-ips"), &json!({"port": served.vm.port}))?;
    let address = router.pointer("/gateway/floating_ips/0/address").and_then(|address| address.as_str());
    let address = address.with_context(|| format!("no floating IP in {router}"))?;
    let seen = (|| {
        for (name, rule) in [
            ("wall-in", json!({"name": "web", "action": "allow", "protocol": "tcp", "destination_port": "80"})),
            ("wall-out", json!({"name": "pings", "action": "allow", "protocol": "icmp"})),
        ] {
            centre.post(POLICIES, &json!({"name": name}))?;
            centre.post(&format!("{POLICIES}/{name}/rules"), &rule)?;
        }
        let seen = walled(cloud, address, served, quiet);
        centre.delete(&format!("{ROUTER}/firewall")).and(seen)
    })();
    for name in ["wall-in", "wall-out"] {
        centre.delete(&format!("{POLICIES}/{name}"))?;
    }
    centre.delete(&format!("{ROUTER}/floating-ips/{address}")).and(seen)
}

fn walled(cloud: &Cloud, address: &str, served: &Occupied, quiet: &Occupied) -> Result<String> {
    let centre = cloud.centre();
    let station = Outside::start(cloud.lab().network())?;
    let ping = format!("ping -c 1 -W 10 {}", outside::ADDRESS);
    process::wait_for("a ping to the floating IP", CHANGE_LIMIT, || Ok(station.ping(address, 1).ok()))?;
    process::wait_for("a ping out by SNAT", CHANGE_LIMIT, || Ok(quiet.succeeds(&ping)?.then_some(())))?;

    let firewall = json!({"ingress_firewall_policy": "wall-in", "egress_firewall_policy": "wall-out"});
    centre.post(&format!("{ROUTER}/firewall"), &firewall)?;
    let is_shut = || Ok(station.ping(address, 1).is_err().then_some(()));
    process::wait_for("an end of pings that no rule lets in", CHANGE_LIMIT, is_shut)?;
    station.hears_often(address, 80, SERVED)?;
    for machine in [served, quiet] {
        machine.ok(&ping).with_context(|| format!("pings of {} are let out, and their replies in", machine.vm.name))?;
    }

    let rules = format!("{POLICIES}/wall-in/rules");
    centre.post(&rules, &json!({"name": "echo", "action": "allow", "protocol": "icmp"}))?;
    let is_open = || Ok(station.ping(address, 1).ok());
    process::wait_for("pings that a rule lets in", CHANGE_LIMIT, is_open)?;
    centre.post(&rules, &json!({"name": "nobody", "action": "deny", "insert_before": "echo"}))?;
    process::wait_for("an end of what an earlier rule denies", CHANGE_LIMIT, is_shut)?;
    centre.delete(&format!("{rules}/nobody"))?;
    process::wait_for("pings again", CHANGE_LIMIT, is_open)?;

    centre.post(&rules, &json!({"name": "nobody", "action": "deny", "insert_before": "web"}))?;
    let is_denied = || Ok(station.hears(address, 80)?.is_none().then_some(()));
    process::wait_for("an end of connections that an earlier rule denies", CHANGE_LIMIT, is_denied)?;
    centre.delete(&format!("{rules}/nobody"))?;
    process::wait_for("port 80 again", CHANGE_LIMIT, || station.hears(address, 80))?;
    station.hears_often(address, 80, SERVED)?;

    centre.delete(&format!("{POLICIES}/wall-out/rules/pings"))?;
    for machine in [served, quiet] {
        let is_shut = || Ok((!machine.succeeds(&format!("ping -c 1 -W 2 {}", outside::ADDRESS))?).then_some(()));
        process::wait_for("an end of pings that no rule lets out", CHANGE_LIMIT, is_shut)?;
    }
    Ok(format!(
        "{} as {address}: TCP 80 in and pings as far as rules go, in their order; pings out, of {} by the router's address too, until the rule goes",
        served.vm.name, quiet.vm.name
    ))
}

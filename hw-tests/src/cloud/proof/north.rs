//! Proof that machines with routed IPv6 addresses are reached from outside and get out, each by its own host and untranslated, whether the router outside
//! has their prefix on its link or routes it by the cloud's router, and that others are not, in the kernel's data path.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use basalt_tests::process;
use serde_json::json;

use super::{Machines, Occupied};
use crate::cloud::Cloud;
use crate::cloud::capture::Capture;
use crate::cloud::evidence::Examiner;
use crate::cloud::outside::{self, Outside};
use crate::cloud::tenant::{OUTSIDE, OUTSIDE6};
use crate::lab::network::PHYSICAL;

const ROUTER: &str = "/v1/routers/router";
/// What is routed to the cloud: the prefix of the blue network, and not that of the green one.
const ROUTED: &str = "fd00:1::/64";
const INSIDE: &str = "fd00:2::/64";
/// What listens on port 80 of web2 since the proof of ports says.
const SERVED: &str = "port-80";
const SEEN_LIMIT: Duration = Duration::from_secs(15);
/// From a change of a router to its hosts doing so, and to the stations outside knowing the addresses.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);

/// Runs the proof of this module.
pub(super) fn examine(cloud: &Cloud, machines: &Machines, examiner: &mut Examiner<'_>) {
    examiner.check("IPv6 leads in and out by each machine's own host, and only where it is routed", || {
        let centre = cloud.centre();
        let network = format!("/v1/networks/{OUTSIDE}");
        centre.patch(&network, &json!({"routed_prefixes": [ROUTED]}))?;
        let seen = centre.post(&format!("{ROUTER}/ipv6-gateway"), &json!({"subnet": OUTSIDE6})).and_then(|router| {
            let address = router.pointer("/ipv6_gateway/address").and_then(|value| value.as_str());
            let address = address.with_context(|| format!("no address outside by IPv6 in {router}"))?;
            let seen = routed(cloud, machines, address);
            centre.delete(&format!("{ROUTER}/ipv6-gateway")).and(seen)
        });
        centre.patch(&network, &json!({"routed_prefixes": []})).and(seen)
    });
}

fn routed(cloud: &Cloud, machines: &Machines, router: &str) -> Result<String> {
    let (one, two, database) = (machines.get("web1")?, machines.get("web2")?, machines.get("db1")?);
    let network = cloud.lab().network();
    let station = Outside::start(network)?;
    for prefix in [ROUTED, INSIDE] {
        station.route6(prefix, None)?;
    }
    let out = format!("ping -6 -c 2 -W 5 {}", outside::ADDRESS6);
    for machine in [one, two] {
        let what = format!("a ping of {} out by IPv6", machine.vm.name);
        process::wait_for(&what, CHANGE_LIMIT, || Ok(machine.succeeds(&out)?.then_some(())))?;
    }
    let [first, second] = [sender(cloud, one)?, sender(cloud, two)?];
    ensure!(first != second, "both send with the MAC address {first}");

    let by_link = from_outside(&station, one, two).context("with the prefix on the link of the station")?;
    station.route6(ROUTED, Some(router))?;
    from_outside(&station, one, two).with_context(|| format!("with the prefix routed by {router}"))?;

    ensure!(!database.succeeds(&out)?, "{} gets out, and its prefix is not routed", database.vm.name);
    ensure!(
        station.ping(&database.vm.address6, 1).is_err(),
        "{} is reached, and its prefix is not routed",
        database.vm.name
    );
    Ok(format!(
        "{} at {first} and {} at {second} outside: {by_link}, on the station's link and by {router}; {} stays inside",
        one.vm.name, two.vm.name, database.vm.name
    ))
}

/// The MAC address that a machine has on the wire outside, where its packets go with the machine's own address.
fn sender(cloud: &Cloud, machine: &Occupied) -> Result<String> {
    let filter = ["vlan", &outside::VLAN.to_string(), "and", "icmp6"];
    let capture = Capture::listen(cloud.lab().network(), PHYSICAL, &filter)?;
    machine.ok(&format!("ping -6 -c 3 -W 10 {}", outside::ADDRESS6))?;
    let wanted = format!("{} > {}: ICMP6, echo request", machine.vm.address6, outside::ADDRESS6);
    let line = capture.wait_line("the ping outside", SEEN_LIMIT, |line| line.contains(&wanted))?;
    let mac = line.split(' ').find(|word| word.split(':').count() == 6).map(str::to_owned);
    mac.with_context(|| format!("no MAC address in {line}"))
}

/// Pings both, and hears what web2 serves by an allowed port and nothing by another.
fn from_outside(station: &Outside, one: &Occupied, two: &Occupied) -> Result<String> {
    for machine in [one, two] {
        let address = &machine.vm.address6;
        process::wait_for(&format!("an answer of {address}"), CHANGE_LIMIT, || Ok(station.ping(address, 1).ok()))?;
        station.ping(address, 3)?;
    }
    station.hears_often(&two.vm.address6, 80, SERVED)?;
    ensure!(station.hears(&two.vm.address6, 81)?.is_none(), "port 81 is not allowed and connects");
    Ok("pinged, and heard on port 80 and not on 81".to_owned())
}

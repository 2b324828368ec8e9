//! Proof that a machine on a tenant network is reached from outside by its floating IP, and goes out as that, and that one without gets out as its
//! router, with ports of its router's address forwarded to it, in the kernel's data path.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use basalt_tests::process;
use serde_json::json;

use super::{Machines, Occupied};
use crate::cloud::Cloud;
use crate::cloud::capture::Capture;
use crate::cloud::evidence::Examiner;
use crate::cloud::outside::{self, Outside};
use crate::cloud::tenant::OUTSIDE;
use crate::lab::network::PHYSICAL;

const ROUTER: &str = "/v1/routers/router";
/// What listens on port 80 of web2 since the proof of ports says.
const SERVED: &str = "port-80";
const SEEN_LIMIT: Duration = Duration::from_secs(15);
/// From a change of a router to its hosts doing so, and to the stations outside knowing the address.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);

/// Runs the proof of this module.
pub(super) fn examine(cloud: &Cloud, machines: &Machines, examiner: &mut Examiner<'_>) {
    examiner.check("a floating IP leads in and out, and security groups hold behind it", || {
        // What listens on web2 since the proof of ports is reached from outside now.
        let machine = machines.get("web2")?;
        cloud.centre().post(&format!("{ROUTER}/gateway"), &json!({"subnet": OUTSIDE}))?;
        let seen = with_floating(cloud, machine);
        cloud.centre().delete(&format!("{ROUTER}/gateway")).and(seen)
    });
    examiner.check("a machine without a floating IP gets out as its router, and nobody gets in by that", || {
        let machine = machines.get("db1")?;
        cloud.centre().post(&format!("{ROUTER}/gateway"), &json!({"subnet": OUTSIDE}))?;
        let seen = as_router(cloud, machine);
        cloud.centre().delete(&format!("{ROUTER}/gateway")).and(seen)
    });
    examiner.check(
        "a forwarded port of the router's address leads to a machine, and no longer when it is taken away",
        || {
            let machine = machines.get("web2")?;
            cloud.centre().post(&format!("{ROUTER}/gateway"), &json!({"subnet": OUTSIDE}))?;
            let seen = by_forwarding(cloud, machine);
            cloud.centre().delete(&format!("{ROUTER}/gateway")).and(seen)
        },
    );
}

fn by_forwarding(cloud: &Cloud, machine: &Occupied) -> Result<String> {
    let forwardings = format!("{ROUTER}/port-forwardings");
    let forwarding = json!({"protocol": "tcp", "external_port": 8080, "port": machine.vm.port, "internal_port": 80});
    let router = cloud.centre().post(&forwardings, &forwarding)?;
    let address = router.pointer("/gateway/address").and_then(|value| value.as_str());
    let address = address.with_context(|| format!("no address outside in {router}"))?;
    let seen = (|| {
        let station = Outside::start(cloud.lab().network())?;
        let is_through = || station.hears(address, 8080);
        process::wait_for("a connection by the forwarded port", CHANGE_LIMIT, is_through)?;
        station.hears_often(address, 8080, SERVED)?;
        ensure!(station.hears(address, 80)?.is_none(), "port 80 of {address} is not forwarded and connects");
        Ok(station)
    })();
    let station = cloud.centre().delete(&format!("{forwardings}/tcp/8080")).and(seen)?;
    let is_cut = || Ok(station.hears(address, 8080)?.is_none().then_some(()));
    process::wait_for("an end of what is forwarded no more", CHANGE_LIMIT, is_cut)?;
    Ok(format!("TCP port 8080 of {address} leads to port 80 of {}, until it is forwarded no more", machine.vm.name))
}

fn as_router(cloud: &Cloud, machine: &Occupied) -> Result<String> {
    let router = cloud.centre().get(ROUTER)?;
    let text = |pointer: &str| router.pointer(pointer).and_then(|value| value.as_str()).map(str::to_owned);
    let address = text("/gateway/address").with_context(|| format!("no address outside in {router}"))?;
    let gateway = text("/gateway/hosts/0/name").with_context(|| format!("no gateway host in {router}"))?;
    let network = cloud.lab().network();
    let station = Outside::start(network)?;
    let ping = format!("ping -c 1 -W 10 {}", outside::ADDRESS);
    process::wait_for("a ping out by SNAT", CHANGE_LIMIT, || Ok(machine.succeeds(&ping)?.then_some(())))?;
    let capture = Capture::listen(network, PHYSICAL, &["vlan", &outside::VLAN.to_string(), "and", "icmp"])?;
    machine.ok(&format!("ping -c 3 -W 10 {}", outside::ADDRESS))?;
    let wanted = format!("{address} > {}: ICMP echo request", outside::ADDRESS);
    capture.wait_line("the ping with the router's address", SEEN_LIMIT, |line| line.contains(&wanted))?;
    reach_out(machine)?;
    ensure!(station.ping(&address, 1).is_err(), "{address} answers a ping that nobody asked for");
    ensure!(station.hears(&address, 5432)?.is_none(), "port 5432 of {address} connects from outside");
    Ok(format!(
        "{} leaves by host {gateway}: {wanted}, and TCP; pings and connections to {address} go nowhere",
        machine.vm.name
    ))
}

fn with_floating(cloud: &Cloud, machine: &Occupied) -> Result<String> {
    let router = cloud.centre().post(&format!("{ROUTER}/floating-ips"), &json!({"port": machine.vm.port}))?;
    let address = router.pointer("/gateway/floating_ips/0/address").and_then(|address| address.as_str());
    let address = address.with_context(|| format!("no floating IP in {router}"))?;
    let seen = in_and_out(cloud, machine, address);
    cloud.centre().delete(&format!("{ROUTER}/floating-ips/{address}")).and(seen)
}

fn in_and_out(cloud: &Cloud, machine: &Occupied, address: &str) -> Result<String> {
    let network = cloud.lab().network();
    let station = Outside::start(network)?;
    process::wait_for("a ping to the floating IP", CHANGE_LIMIT, || Ok(station.ping(address, 1).ok()))?;
    station.ping(address, 3)?;
    station.hears_often(address, 80, SERVED)?;
    ensure!(station.hears(address, 81)?.is_none(), "port 81 is not allowed and connects");
    let capture = Capture::listen(network, PHYSICAL, &["vlan", &outside::VLAN.to_string(), "and", "icmp"])?;
    machine.ok(&format!("ping -c 3 -W 10 {}", outside::ADDRESS))?;
    let wanted = format!("{address} > {}: ICMP echo request", outside::ADDRESS);
    capture.wait_line("the ping with the floating IP", SEEN_LIMIT, |line| line.contains(&wanted))?;
    reach_out(machine)?;
    Ok(format!(
        "{} is {address} outside: pinged and heard on port 80, not on 81; out: {wanted}, and TCP",
        machine.vm.name
    ))
}

/// Has a machine hear the station's service, several times: the first packets of a flow go another way through switches than later ones.
fn reach_out(machine: &Occupied) -> Result<()> {
    for turn in 1..=4 {
        let hear = format!(
            "timeout 15 nc -w 10 {} {} </dev/null | grep -q {}",
            outside::ADDRESS,
            outside::PORT,
            outside::WORD
        );
        machine.ok(&hear).with_context(|| format!("connection {turn} of {} to the station", machine.vm.name))?;
    }
    Ok(())
}

//! Proof that a machine on a VLAN of a physical network and a machine outside of the cloud reach each other, and that what it sends is
//! marked as its port says.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use basalt_tests::process;
use serde_json::json;

use super::Occupied;
use crate::cloud::Cloud;
use crate::cloud::capture::Capture;
use crate::cloud::outside::{self, Outside};
use crate::lab::network::PHYSICAL;

const SEEN_LIMIT: Duration = Duration::from_secs(15);
/// From a change of a port to its host marking by it.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);
/// Expedited forwarding (RFC 3246 §2.7).
const MARK: u8 = 46;
/// The byte of the header that the mark is the upper six bits of, in tcpdump's filter.
const MARKED: &str = "ip[1] & 0xfc == 184";

/// Pings in both directions and looks at the VLAN between.
pub(super) fn reached(cloud: &Cloud, machine: &Occupied) -> Result<String> {
    let network = cloud.lab().network();
    let station = Outside::start(network)?;
    let vlan = outside::VLAN.to_string();
    let capture = Capture::listen(network, PHYSICAL, &["vlan", &vlan, "and", "icmp"])?;
    ping(machine, 3)?;
    let request = format!("{} > {}: ICMP echo request", machine.vm.address, outside::ADDRESS);
    let tag = format!("vlan {vlan},");
    let line = capture
        .wait_line("the ping on the VLAN", SEEN_LIMIT, |line| line.contains(&tag) && line.contains(&request))
        .context("from the machine")?;
    if !line.contains(&machine.vm.mac) {
        bail!("the ping was not sent from {}: {line}", machine.vm.mac);
    }
    station.ping(&machine.vm.address, 3)?;

    let marked = Capture::listen(network, PHYSICAL, &["vlan", &vlan, "and", "icmp", "and", MARKED])?;
    ping(machine, 1)?;
    let qos = |value| cloud.centre().patch(&format!("/v1/ports/{}", machine.vm.port), &json!({"qos": value}));
    qos(json!({"dscp_mark": MARK}))?;
    let seen = process::wait_for("a marked ping on the VLAN", CHANGE_LIMIT, || {
        ping(machine, 1)?;
        Ok(marked.wait_line("a marked ping", Duration::ZERO, |line| line.contains(&request)).ok())
    });
    qos(json!({}))?;
    seen?;
    Ok(format!("VLAN {vlan}: {request}, and from outside; DSCP {MARK} once the port says so"))
}

fn ping(machine: &Occupied, count: u32) -> Result<String> {
    machine.ok(&format!("ping -c {count} -W 10 {}", outside::ADDRESS))
}

//! Proof that a port's limits hold in the kernel's data path, and ends when it is lifted.

use std::time::Duration;

use anyhow::{Context, Result};
use basalt_tests::process;
use serde_json::{Value, json};

use super::{Machines, Occupied};
use crate::cloud::Cloud;
use crate::cloud::evidence::Examiner;

/// Pings of one try, 50 ms apart: twenty a second.
const PINGS: u32 = 40;
/// Packets that the limited port may send in a second.
const RATE: u32 = 4;
/// Thousands of bits that it may be sent in a second: about as many pings of [`OCTETS`].
const KBPS: u32 = 50;
/// Octets that a ping carries.
const OCTETS: u32 = 1400;
/// The most that may be answered then: five seconds' worth where the pings take two.
const PASS_MAX: u32 = 20;
/// From a change of a port to its host limiting by it.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);

/// Runs the proof of this module.
pub(super) fn examine(cloud: &Cloud, machines: &Machines, examiner: &mut Examiner<'_>) {
    examiner.check("a port's rates are held to their limits, and free again without", || limited(cloud, machines));
}

fn limited(cloud: &Cloud, machines: &Machines) -> Result<String> {
    let (one, two) = (machines.get("web1")?, machines.get("web2")?);
    let set = |qos: Value| cloud.centre().patch(&format!("/v1/ports/{}", one.vm.port), &json!({"qos": qos}));
    let held = |qos: Value| -> Result<u32> {
        set(qos)?;
        wait("pings to be dropped above the limit", || answered(one, two), |count| count <= PASS_MAX)
    };
    let packets = held(json!({"egress": {"pps": {"rate": RATE, "burst": RATE}}}));
    // Only what is free again shows that the next limit is another one.
    set(json!({}))?;
    wait("all pings to be answered between two limits", || answered(one, two), |count| count == PINGS)?;
    let bits = held(json!({"ingress": {"kbps": {"rate": KBPS, "burst": KBPS}}}));
    set(json!({}))?;
    let (packets, bits) = (packets?, bits?);
    let free = wait("all pings to be answered without a limit", || answered(one, two), |count| count == PINGS)?;
    Ok(format!(
        "of {PINGS} pings of {OCTETS} octets in 2 s {packets} are answered where {RATE} packets a second may leave, \
         {bits} where {KBPS} kb/s may come, {free} without a limit"
    ))
}

fn wait(what: &str, mut look: impl FnMut() -> Result<u32>, right: fn(u32) -> bool) -> Result<u32> {
    process::wait_for(what, CHANGE_LIMIT, || Ok(Some(look()?).filter(|count| right(*count))))
}

/// How many of the pings were answered.
fn answered(from: &Occupied, to: &Occupied) -> Result<u32> {
    let text = from.ok(&format!("ping -c {PINGS} -i 0.05 -s {OCTETS} -W 1 {} || true", to.vm.address))?;
    let count = text.split(", ").find_map(|part| part.strip_suffix(" packets received")?.parse().ok());
    count.with_context(|| format!("ping printed no sum: {text}"))
}

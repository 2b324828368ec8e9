//! Proof that a static route with two next hops spreads flows over both, and keeps each with one, in the kernel's data path.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use basalt_tests::process;
use serde_json::json;

use super::{Machines, Occupied};
use crate::cloud::Cloud;
use crate::cloud::evidence::Examiner;

/// Where the route leads: for documentation (RFC 5737), so that nobody is there.
const DESTINATION: &str = "198.51.100.0/24";
const PREFIX: &str = "198.51.100.";
/// One flow for each address: all of them on one of two hops is once in 32,768 runs.
const FLOWS: u32 = 16;
const PINGS_EACH: u32 = 2;
/// Kernels' names of what they count.
const REQUESTS: &str = "InEchos";
const ANSWERS: &str = "InEchoReps";
/// From a change of a router to every host routing by it.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);

/// Runs the proof of this module.
pub(super) fn examine(cloud: &Cloud, machines: &Machines, examiner: &mut Examiner<'_>) {
    examiner.check("a static route with two next hops spreads flows over both", || {
        let hops = [machines.get("web1")?, machines.get("web2")?];
        let seen = wire(cloud, hops).and_then(|()| spread(machines.get("db1")?, hops));
        unwire(cloud, hops)?;
        seen
    });
}

/// Both hops take in whatever goes to the destination, and answer for it.
fn wire(cloud: &Cloud, hops: [&Occupied; 2]) -> Result<()> {
    for hop in hops {
        let pairs = json!({"allowed_pairs": [{"addresses": DESTINATION}]});
        cloud.centre().patch(&format!("/v1/ports/{}", hop.vm.port), &pairs)?;
        hop.ok(&format!("ip route replace local {DESTINATION} dev lo"))?;
        let route = json!({"destination": DESTINATION, "next_hop": hop.vm.address});
        cloud.centre().post("/v1/routers/router/routes", &route)?;
    }
    Ok(())
}

fn unwire(cloud: &Cloud, hops: [&Occupied; 2]) -> Result<()> {
    for hop in hops {
        let route = format!("/v1/routers/router/routes/{}/{}", DESTINATION.replace('/', "%2F"), hop.vm.address);
        cloud.centre().delete(&route)?;
        cloud.centre().patch(&format!("/v1/ports/{}", hop.vm.port), &json!({"allowed_pairs": []}))?;
        hop.ok(&format!("ip route del local {DESTINATION} dev lo"))?;
    }
    Ok(())
}

fn spread(from: &Occupied, hops: [&Occupied; 2]) -> Result<String> {
    // Each host takes up a change in its own time: until then all flows may go by one hop, or to one that may not answer yet.
    let both = || {
        Ok(Some(round(from, hops)?).filter(|round| round.answered == FLOWS * PINGS_EACH && !round.taken.contains(&0)))
    };
    process::wait_for("pings to every address to be answered, by both hops", CHANGE_LIMIT, both)?;
    let Round { answered, taken } = round(from, hops)?;
    ensure!(answered == FLOWS * PINGS_EACH, "{answered} of {} pings were answered", FLOWS * PINGS_EACH);
    if taken.contains(&0) || taken.iter().any(|count| count % PINGS_EACH != 0) {
        bail!("of {FLOWS} flows of {PINGS_EACH} pings the hops took {taken:?} pings");
    }
    let flows = taken.map(|count| count / PINGS_EACH);
    Ok(format!("of {FLOWS} flows {} go by web1 and {} by web2; all pings answered", flows[0], flows[1]))
}

/// What came of pinging every address at once, as the kernels counted it.
struct Round {
    /// Answers that came back.
    answered: u32,
    /// Requests by each of the hops.
    taken: [u32; 2],
}

fn round(from: &Occupied, hops: [&Occupied; 2]) -> Result<Round> {
    let count = || Ok::<_, anyhow::Error>([from.icmp(ANSWERS)?, hops[0].icmp(REQUESTS)?, hops[1].icmp(REQUESTS)?]);
    let before = count()?;
    ping_all(from)?;
    let after = count()?;
    Ok(Round { answered: after[0] - before[0], taken: [after[1] - before[1], after[2] - before[2]] })
}

/// Pings every address at once. What ping says of answers is not asked: each has a copy of those of all others in a buffer for a few.
fn ping_all(from: &Occupied) -> Result<()> {
    let one = format!("ping -c {PINGS_EACH} -W 10 {PREFIX}$n >/tmp/ping.$n 2>&1 &");
    from.ok(&format!("sh -c 'for n in $(seq 1 {FLOWS}); do {one} done; wait'")).map(drop)
}

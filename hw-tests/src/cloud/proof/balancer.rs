//! Proof that a load balancer shares connections out among members on two hosts, for clients on its network and behind its router, and that a connection
//! stays with its member while others go elsewhere, in the kernel's data path; and that a member whose service dies gets no more until it is back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use basalt_tests::process;
use serde_json::json;

use super::{Machines, Occupied};
use crate::cloud::Cloud;
use crate::cloud::evidence::Examiner;
use crate::cloud::tenant::BLUE;

const BALANCERS: &str = "/v1/load-balancers";
const MEMBERS: &str = "/v1/load-balancers/front/listeners/tcp/80/members";
/// Connections at once: all of them at one of two members is once in 2,048 runs.
const CONNECTIONS: u32 = 12;
/// What the listeners of the members say: that of web2 stands since the proof of ports.
const WORDS: [&str; 2] = ["from-web1", "port-80"];
const LAST_WORD: &str = "still-web1";
/// What is said of a member that nobody has asked yet.
const NOT_CHECKED: &str = "not checked yet";
/// How long the member's side of a connection waits before its last word, in seconds: longer than a change takes to be everywhere.
const PAUSE: u32 = 50;
/// From a change of a load balancer to every host balancing by it.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);
const LAST_WORD_LIMIT: Duration = Duration::from_secs(90);

/// Runs the proof of this module.
pub(super) fn examine(cloud: &Cloud, machines: &Machines, examiner: &mut Examiner<'_>) {
    examiner.check("a load balancer shares connections out, and each stays with its member", || {
        let (one, two) = (machines.get("web1")?, machines.get("web2")?);
        let say = format!("sh -c 'echo {}; sleep {PAUSE}; echo {LAST_WORD}'", WORDS[0]);
        one.ok(&format!("nc -ll -p 80 -e {say} >/dev/null 2>&1 & echo $! >/tmp/front.pid"))?;
        let made = cloud.centre().post(BALANCERS, &json!({"name": "front", "subnet": BLUE}));
        let seen = made.and_then(|front| {
            let address = front["address"].as_str().with_context(|| format!("no address in {front}"))?;
            balanced(cloud, address, (one, two, machines.get("db1")?))
        });
        cloud.centre().delete(&format!("{BALANCERS}/front"))?;
        one.ok("kill $(cat /tmp/front.pid)")?;
        seen
    });
    examiner.check("a member whose service dies gets no connections until it is back", || {
        let (one, two) = (machines.get("web1")?, machines.get("web2")?);
        let made = cloud.centre().post(BALANCERS, &json!({"name": "front", "subnet": BLUE}));
        let seen = made.and_then(|front| {
            let address = front["address"].as_str().with_context(|| format!("no address in {front}"))?;
            checked(cloud, address, (one, two, machines.get("db1")?))
        });
        cloud.centre().delete(&format!("{BALANCERS}/front"))?;
        // It runs unless the proof failed between its end and its return.
        one.ok("kill $(cat /tmp/front.pid) 2>/dev/null || true")?;
        seen
    });
}

/// Has the member on web1 serve, in words that come at once.
fn serve(one: &Occupied) -> Result<()> {
    let say = format!("sh -c 'echo {}'", WORDS[0]);
    one.ok(&format!("nc -ll -p 80 -e {say} >/dev/null 2>&1 & echo $! >/tmp/front.pid")).map(drop)
}

fn checked(cloud: &Cloud, address: &str, (one, two, far): (&Occupied, &Occupied, &Occupied)) -> Result<String> {
    let centre = cloud.centre();
    centre.post(&format!("{BALANCERS}/front/listeners"), &json!({"protocol": "tcp", "port": 80}))?;
    for member in [one, two] {
        centre.post(MEMBERS, &json!({"address": member.vm.address}))?;
    }
    let monitor = json!({"type": "TCP", "delay": 2, "timeout": 2, "max_retries": 2, "max_retries_down": 2});
    centre.put(&format!("{BALANCERS}/front/listeners/tcp/80/health-monitor"), &monitor)?;
    let found = |wanted: &str| {
        process::wait_for(&format!("web1 to be {wanted}"), CHANGE_LIMIT, || {
            let front = centre.get(&format!("{BALANCERS}/front"))?;
            let members = front["listeners"][0]["members"].as_array().cloned().unwrap_or_default();
            let one = members.into_iter().find(|member| member["address"] == one.vm.address.as_str());
            let one = one.with_context(|| format!("web1 is no member of {front}"))?;
            let reason = one["status_reason"].as_str().unwrap_or_default().to_owned();
            Ok((one["operating_status"] == wanted && reason != NOT_CHECKED).then_some(reason))
        })
    };
    let shared = |from: &Occupied, what: &str, wanted: &dyn Fn([u32; 2]) -> bool| {
        let look = || Ok(Some(shares(from, address)?).filter(|shares| wanted(*shares)));
        process::wait_for(what, CHANGE_LIMIT, look)
    };
    // Its service does not run yet.
    let dead = found("ERROR")?;
    for from in [far, one] {
        shared(from, "all connections at web2 while web1 has no service", &|shares| shares == [0, CONNECTIONS])?;
    }
    serve(one)?;
    let alive = found("ONLINE")?;
    let both = shared(far, "connections at both members", &|[a, b]| a > 0 && b > 0 && a + b == CONNECTIONS)?;
    one.ok("kill $(cat /tmp/front.pid)")?;
    found("ERROR")?;
    shared(far, "all connections at web2 once the service of web1 died", &|shares| shares == [0, CONNECTIONS])?;
    serve(one)?;
    found("ONLINE")?;
    shared(far, "connections at both members again", &|[a, b]| a > 0 && b > 0 && a + b == CONNECTIONS)?;
    Ok(format!(
        "web1 in error ({dead}): all {CONNECTIONS} connections from db1 reach web2; web1 online ({alive}): {} reach it and {} web2; again so after its \
         service died and came back",
        both[0], both[1]
    ))
}

fn balanced(cloud: &Cloud, address: &str, (one, two, far): (&Occupied, &Occupied, &Occupied)) -> Result<String> {
    let centre = cloud.centre();
    centre.post(&format!("{BALANCERS}/front/listeners"), &json!({"protocol": "tcp", "port": 80}))?;
    for member in [one, two] {
        centre.post(MEMBERS, &json!({"address": member.vm.address}))?;
    }
    let weigh = |member: &Occupied, weight: u32| {
        centre.patch(&format!("{MEMBERS}/{}/80", member.vm.address), &json!({"weight": weight})).map(drop)
    };
    let wait = |what: &str, from: &Occupied, wanted: &dyn Fn([u32; 2]) -> bool| {
        let look = || Ok(Some(shares(from, address)?).filter(|shares| wanted(*shares)));
        process::wait_for(what, CHANGE_LIMIT, look)
    };
    let both = wait("all connections at both members", far, &|[a, b]| a > 0 && b > 0 && a + b == CONNECTIONS)?;
    weigh(two, 0)?;
    wait("all connections at web1", far, &|shares| shares == [CONNECTIONS, 0])?;
    far.ok(&format!("nc {address} 80 </dev/null >/tmp/front.kept 2>&1 &"))?;
    let heard = |word: &str| far.succeeds(&format!("grep -q {word} /tmp/front.kept"));
    process::wait_for("the first word of the connection that is kept", CHANGE_LIMIT, || {
        Ok(heard(WORDS[0])?.then_some(()))
    })?;
    weigh(two, 1)?;
    weigh(one, 0)?;
    wait("all connections at web2", far, &|shares| shares == [0, CONNECTIONS])?;
    ensure!(!heard(LAST_WORD)?, "the connection ended before its member had weight 0");
    // A client on the load balancer's own network, which is a member that gets nothing new.
    wait("all connections of web1 at web2", one, &|shares| shares == [0, CONNECTIONS])?;
    let last = || Ok(heard(LAST_WORD)?.then_some(()));
    process::wait_for("the last word of the connection that is kept", LAST_WORD_LIMIT, last)?;
    Ok(format!(
        "of {CONNECTIONS} connections from db1 to {address} {} reach web1 and {} web2; one of web1's goes on while all new ones reach web2, from \
         web1 as well",
        both[0], both[1]
    ))
}

/// How many of some connections at once each member answered.
fn shares(from: &Occupied, address: &str) -> Result<[u32; 2]> {
    let one = format!("(timeout 8 nc -w 6 {address} 80 </dev/null | head -n 1 >/tmp/front.$n) 2>/dev/null &");
    from.ok(&format!("sh -c 'rm -f /tmp/front.[0-9]*; for n in $(seq 1 {CONNECTIONS}); do {one} done; wait'"))?;
    let count = |word: &str| {
        let text = from.ok(&format!("cat /tmp/front.[0-9]* | grep -c {word} || true"))?;
        text.trim().parse::<u32>().with_context(|| format!("count answers of {word} in {text:?}"))
    };
    Ok([count(WORDS[0])?, count(WORDS[1])?])
}

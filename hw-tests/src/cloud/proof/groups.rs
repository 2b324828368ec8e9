//! Proofs about security groups in the kernel's data path beside those of [`super::network`]: groups without state, address groups, and what a rule that
//! goes does to a connection that lives.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use basalt_tests::process;
use serde_json::{Value, json};

use super::{Machines, Occupied, network};
use crate::cloud::Cloud;
use crate::cloud::centre::Centre;
use crate::cloud::evidence::Examiner;
use crate::cloud::tenant::WEB;

const GROUPS: &str = "/v1/security-groups";
const ADDRESSES: &str = "/v1/address-groups";
/// From a change of a group to every host filtering by it.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);
/// The port of a service that never stops talking.
const TALK: u16 = 82;
/// How long it may be silent without being cut off, in seconds: it says a word each second.
const SILENCE: u32 = 5;

/// Runs the proofs of this module.
pub(super) fn examine(cloud: &Cloud, machines: &Machines, examiner: &mut Examiner<'_>) {
    examiner.check("a group without state lets replies in by their own rules alone", || stateless(cloud, machines));
    examiner.check("a rule for an address group follows its addresses", || addresses(cloud, machines));
    examiner.check("a rule that goes cuts the connections that it allowed, and no other", || revoked(cloud, machines));
}

/// Has a machine be in `groups` for as long as `seen` takes.
fn while_in<T>(centre: &Centre, machine: &Occupied, groups: &[&str], seen: impl FnOnce() -> Result<T>) -> Result<T> {
    let path = format!("/v1/ports/{}", machine.vm.port);
    centre.patch(&path, &json!({"groups": groups}))?;
    let seen = seen();
    centre.patch(&path, &json!({"groups": [WEB]}))?;
    seen
}

/// Makes a group for as long as `seen` takes.
fn with_group<T>(centre: &Centre, group: &Value, seen: impl FnOnce(&str) -> Result<T>) -> Result<T> {
    centre.post(GROUPS, group)?;
    let name = group["name"].as_str().context("a group without a name")?;
    let seen = seen(name);
    centre.delete(&format!("{GROUPS}/{name}")).and(seen)
}

fn allow(centre: &Centre, group: &str, rule: &Value) -> Result<Value> {
    centre.post(&format!("{GROUPS}/{group}/rules"), rule)
}

fn until(what: &str, is_so: impl Fn() -> Result<bool>) -> Result<()> {
    process::wait_for(what, CHANGE_LIMIT, || Ok(is_so()?.then_some(())))
}

/// Pings by both versions of IP; whether all or none are answered.
fn pings(from: &Occupied, to: &Occupied, wanted: bool) -> Result<bool> {
    for (program, address) in [("ping", &to.vm.address), ("ping -6", &to.vm.address6)] {
        if from.succeeds(&format!("{program} -c 1 -W 3 {address}"))? != wanted {
            return Ok(false);
        }
    }
    Ok(true)
}

fn stateless(cloud: &Cloud, machines: &Machines) -> Result<String> {
    let (centre, one, two) = (cloud.centre(), machines.get("web1")?, machines.get("web2")?);
    with_group(centre, &json!({"name": "plain", "stateless": true}), |group| {
        for ethertype in ["IPv4", "IPv6"] {
            let web = json!({"direction": "ingress", "ethertype": ethertype, "protocol": "tcp", "port_min": 80});
            allow(centre, group, &web)?;
        }
        while_in(centre, two, &[group], || {
            // Group web of the peer has state: it answers web2's pings, and only web2's own rules can be in the way.
            until("replies to web2 to want a rule", || pings(two, one, false))?;
            ensure!(network::connects(one, two, 80)?, "port 80 is allowed, and what answers may leave");
            for (ethertype, kind) in [("IPv4", 0), ("IPv6", 129)] {
                let reply =
                    json!({"direction": "ingress", "ethertype": ethertype, "protocol": "icmp", "icmp_type": kind});
                allow(centre, group, &reply)?;
            }
            until("replies to web2 to pass by their rule", || pings(two, one, true))?;
            ensure!(pings(one, two, false)?, "web2 answers pings, whose requests no rule lets in");
            Ok("web2: port 80 answers; its pings are answered once a rule lets replies in, and requests are not"
                .to_owned())
        })
    })
}

fn addresses(cloud: &Cloud, machines: &Machines) -> Result<String> {
    let (centre, one, two, other) =
        (cloud.centre(), machines.get("web1")?, machines.get("web2")?, machines.get("db1")?);
    let all = |machine: &Occupied| json!([machine.vm.address, machine.vm.address6]);
    centre.post(ADDRESSES, &json!({"name": "friends", "addresses": all(one)}))?;
    let seen = with_group(centre, &json!({"name": "admin"}), |group| {
        for ethertype in ["IPv4", "IPv6"] {
            let rule = json!({"direction": "ingress", "ethertype": ethertype, "protocol": "tcp", "port_min": 81, "remote_address_group": "friends"});
            allow(centre, group, &rule)?;
        }
        while_in(centre, two, &[WEB, group], || {
            let reach = |from: &Occupied| network::connects_both(from, two, 81);
            until("an address of the group to connect", || Ok(reach(one)? == [true, true]))?;
            ensure!(reach(other)? == [false, false], "db1 is not in the address group and connects");
            centre.patch(&format!("{ADDRESSES}/friends"), &json!({"add": all(other), "remove": all(one)}))?;
            until("an address that was added to connect", || Ok(reach(other)? == [true, true]))?;
            until("an address that was taken away to be refused", || Ok(reach(one)? == [false, false]))?;
            Ok("web2:81 answers web1 and not db1, and the other way round when the group has db1 for web1; IPv4 and IPv6".to_owned())
        })
    });
    centre.delete(&format!("{ADDRESSES}/friends")).and(seen)
}

/// Words that `from` has heard of the talker so far, by IPv4 and IPv6.
fn heard(from: &Occupied) -> Result<[u32; 2]> {
    let text = from.ok("wc -l </tmp/talk.4; wc -l </tmp/talk.6")?;
    let mut counts = text.lines().map(|line| line.trim().parse::<u32>());
    let (Some(Ok(four)), Some(Ok(six))) = (counts.next(), counts.next()) else {
        anyhow::bail!("wc printed no two counts: {text}");
    };
    Ok([four, six])
}

/// Whether each of the two connections says something within [`SILENCE`].
fn talks(from: &Occupied) -> Result<[bool; 2]> {
    let before = heard(from)?;
    from.ok(&format!("sleep {SILENCE}"))?;
    let after = heard(from)?;
    Ok([after[0] > before[0], after[1] > before[1]])
}

fn revoked(cloud: &Cloud, machines: &Machines) -> Result<String> {
    let (centre, one, two) = (cloud.centre(), machines.get("web1")?, machines.get("web2")?);
    let talk = "sh -c 'while echo word; do sleep 1; done'";
    two.ok(&format!("nc -ll -p {TALK} -e {talk} >/dev/null 2>&1 & echo $! >/tmp/talk.pid"))?;
    let seen = with_group(centre, &json!({"name": "talk"}), |group| {
        let rule = |ethertype: &str| json!({"direction": "ingress", "ethertype": ethertype, "protocol": "tcp", "port_min": TALK});
        allow(centre, group, &rule("IPv6"))?;
        let made = allow(centre, group, &rule("IPv4"))?;
        while_in(centre, two, &[WEB, group], || {
            for (version, address) in [(4, &two.vm.address), (6, &two.vm.address6)] {
                // What is written to it is held open, or the connection would be half closed.
                let hold = format!("mkfifo /tmp/talk.{version}.hold; exec 3<>/tmp/talk.{version}.hold");
                let hear = format!("until nc -w 5 {address} {TALK} <&3; do sleep 1; done");
                let log = format!("/tmp/talk.{version} 2>/dev/null & echo $! >/tmp/talk.{version}.pid");
                one.ok(&format!("sh -c '{hold}; {hear}' >{log}"))?;
            }
            until("words by IPv4 and IPv6", || Ok(talks(one)? == [true, true]))?;
            centre.delete(&format!("{GROUPS}/{group}/rules/{}", rule_of(&made, "IPv4")?))?;
            until("silence by IPv4", || Ok(talks(one)? == [false, true]))?;
            Ok(format!(
                "a connection to web2:{TALK} that lives falls silent when its rule goes; the one by IPv6, whose rule stays, goes on"
            ))
        })
    });
    one.ok("kill $(cat /tmp/talk.4.pid /tmp/talk.6.pid); pkill -f 'nc -w 5' || true; rm -f /tmp/talk.*")?;
    two.ok("kill $(cat /tmp/talk.pid); pkill -f 'echo word' || true; rm /tmp/talk.pid")?;
    seen
}

/// The identity of a group's rule for TCP to the talker by one version of IP.
fn rule_of(group: &Value, ethertype: &str) -> Result<String> {
    let rules = group["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = rules.iter().find(|rule| rule["ethertype"] == ethertype && rule["port_min"] == TALK);
    let id = found.and_then(|rule| rule["id"].as_str());
    id.map(str::to_owned).with_context(|| format!("no rule of {ethertype} for port {TALK} in {group}"))
}

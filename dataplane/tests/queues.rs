//! Minimum bandwidth of ports on provider networks: the queues that a host makes on the interface to a physical network, what Open vSwitch and the kernel's
//! traffic control have of them, the flows that lead there, and that all of it goes with the last minimum.
//!
//! Open vSwitch in user space makes the queues and sends by none of them: who gets what of a link is shown by the lab.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod outside;
#[cfg(test)]
mod topology;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use basalt_tests::netns::Namespace;
use basalt_tests::ovs::Switch;
use basalt_tests::process::wait_for;
use basalt_tests::require;
use basalt_tests::skip::Need;
use dataplane::compile::Minimums;
use dataplane::trace::ofproto::{Report, arguments, compare};
use dataplane::trace::{Connection, Packet, Payload};
use dataplane::{compile, trace};
use hosts::{Host, Machine};
use model::provider::PhysicalNetwork;
use model::security::{Direction, Ethertype, Protocol, Remote};
use model::spec::HostNetwork;
use outside::datacentre;
use topology::{Cloud, PING, endpoint, host_id};

const LIMIT: Duration = Duration::from_secs(20);
const FIRST: usize = 0;
const SECOND: usize = 1;
const PLAIN: usize = 2;
const TENANT: usize = 3;
/// Thousands of bits a second that the link carries.
const CAPACITY: u32 = 10_000;
/// The station of the data centre.
const STATION: [&str; 2] = ["10.0.1.200", "fd00:0:0:1::c8"];
const ECHO: [Payload; 2] = [Payload::Icmp { kind: 8, code: 0 }, Payload::Icmp { kind: 128, code: 0 }];

/// Three ports in a VLAN of a physical network, one of a tenant.
fn cloud() -> Cloud {
    let mut cloud = Cloud::default();
    let office = cloud.network("office", "10.0.1.0/24");
    cloud.ipv6(office, "fd00:0:0:1::/64");
    cloud.provide(office, "dc", Some(100));
    let blue = cloud.network("blue", "10.0.2.0/24");
    let all = cloud.group("all");
    cloud.rule_of(Ethertype::IPv6, all, Direction::Egress, Protocol::Any, Remote::Any);
    cloud.allow(all, PING, Remote::Any);
    cloud.allow6(all, PING, Remote::Any);
    for (name, network, last) in [("first", office, 11), ("second", office, 12), ("plain", office, 13), ("t", blue, 14)]
    {
        cloud.port(name, network, 0, last, &[all]);
    }
    cloud
}

#[cfg(test)]
fn capacity() -> Result<BTreeMap<PhysicalNetwork, NonZeroU32>> {
    Ok(BTreeMap::from([("dc".parse()?, NonZeroU32::new(CAPACITY).context("a capacity")?)]))
}

#[cfg(test)]
fn promise(cloud: &mut Cloud, port: usize, kbps: u32) {
    cloud.ports[port].qos.egress_min_kbps = NonZeroU32::new(kbps);
}

/// Wants the cloud, and waits until exactly these ports have these queues, in the flows, too.
#[cfg(test)]
async fn program(host: &Host, cloud: &Cloud, queues: &[(usize, u32)]) -> Result<()> {
    host.program(cloud.host(0)).await?;
    let wanted: BTreeMap<_, _> = queues.iter().map(|(port, queue)| (cloud.ports[*port].id, *queue)).collect();
    wait_for("the queues", LIMIT, || {
        let numbers = host.host.bridge().numbers()?;
        let is_there = numbers.queues == wanted && host.host.flows() == compile(&cloud.host(0), &numbers);
        Ok(is_there.then_some(()))
    })?;
    wait_for("the flows of the queues", LIMIT, || {
        let flows = host.switch.ofctl(&["-O", "OpenFlow15", "dump-flows", "br-int"])?;
        Ok((flows.matches("set_queue").count() == queues.len()).then_some(()))
    })?;
    host.switch.settle()
}

/// The rates of the queues as traffic control has them: rate and ceiling by the number of the queue.
#[cfg(test)]
fn classes(switch: &Switch) -> Result<BTreeMap<u32, (String, String)>> {
    let text = switch.namespace().run(&["tc", "class", "show", "dev", "wire0"])?;
    let mut classes = BTreeMap::new();
    for words in text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()) {
        let after = |word: &str| words.iter().skip_while(|other| **other != word).nth(1).copied();
        let minor = words.get(2).and_then(|id| u32::from_str_radix(id.strip_prefix("1:")?, 16).ok());
        if let (Some(minor), Some(rate), Some(most)) = (minor.filter(|id| *id < 0xf000), after("rate"), after("ceil")) {
            classes.insert(minor - 1, (rate.to_owned(), most.to_owned()));
        }
    }
    Ok(classes)
}

#[cfg(test)]
fn class(rate: &str) -> (String, String) {
    (rate.to_owned(), "10Mbit".to_owned())
}

/// What ports send to the station leaves by their queue, if they have one, in the walk and in the switch alike; what a tenant's port sends never does.
#[cfg(test)]
fn assert_queued(host: &Host, cloud: &Cloud, queues: &[(usize, u32, u32)]) -> Result<()> {
    let (set, numbers) = (host.host.flows(), host.host.bridge().numbers()?);
    let vxlan = numbers.vxlan.map(|number| number.0);
    for port in [FIRST, SECOND, PLAIN] {
        for (at, payload) in STATION.into_iter().zip(ECHO) {
            let packet =
                Packet::from_port(&cloud.host(0), &numbers, &cloud.ports[port], at.parse::<IpAddr>()?, payload)?;
            let path = trace(&set, &packet, Connection::New);
            let said = host.switch.appctl(&arguments("br-int", &packet, Connection::New))?;
            assert_eq!(compare(&set, &path, &Report::parse(&said, vxlan)?), None, "{path}\n{said}");
            let told = path.to_string();
            ensure!(told.contains("sent out to physical network dc in VLAN 100"), "{told}");
            match queues.iter().find(|(queued, ..)| *queued == port) {
                Some((_, queue, kbps)) => {
                    let wanted = format!("queue {queue}, at least {kbps} kbit/s of physical network dc");
                    ensure!(told.contains(&wanted), "{wanted}: {told}");
                    ensure!(said.contains(&format!("set_queue:{queue}\n")), "{said}");
                }
                None => ensure!(!told.contains("queue") && !said.contains("set_queue"), "{told}\n{said}"),
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minimum_is_a_queue_of_the_link() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("tc"), Need::Program("ping"), Need::Program("ethtool"));
    let mut cloud = cloud();
    let dc = datacentre()?;
    let nothing = || HostNetwork::empty(host_id(0), endpoint(0));
    let host = Host::start_shaped(nothing(), &[("dc", &dc)], capacity()?).await?;
    let outside = Machine { namespace: Namespace::new()? };
    dc.plug("dc", "station", &outside.namespace, "02:09:00:00:00:01")?;
    dc.vsctl(&["set", "port", "station", "tag=100"])?;
    outside.restart_link()?;
    outside.namespace.add_address("eth0", &format!("{}/24", STATION[0]))?;
    outside.namespace.run(&["ip", "address", "add", &format!("{}/64", STATION[1]), "dev", "eth0", "nodad"])?;
    let machine = host.plug(&cloud.ports[FIRST]).await?;
    machine.configure_both(cloud.address(FIRST), cloud.address6(FIRST))?;
    for port in [SECOND, PLAIN, TENANT] {
        host.plug(&cloud.ports[port]).await?;
    }

    program(&host, &cloud, &[]).await?;
    ensure!(classes(&host.switch)?.is_empty(), "the link is not touched before the first minimum");

    promise(&mut cloud, FIRST, 2000);
    promise(&mut cloud, SECOND, 500);
    // Nothing is kept where no physical network is.
    promise(&mut cloud, TENANT, 700);
    program(&host, &cloud, &[(FIRST, 1), (SECOND, 2)]).await?;
    let all = BTreeMap::from([(0, class("7500Kbit")), (1, class("2Mbit")), (2, class("500Kbit"))]);
    assert_eq!(classes(&host.switch)?, all);
    let numbers = host.switch.ofctl(&["-O", "OpenFlow15", "queue-get-config", "br-int", "wire0"])?;
    ensure!(["queue 0:", "queue 1:", "queue 2:"].iter().all(|queue| numbers.contains(queue)), "{numbers}");
    let counted = host.switch.ofctl(&["-O", "OpenFlow15", "queue-stats", "br-int", "wire0"])?;
    ensure!(counted.contains("3 queues"), "{counted}");
    assert_queued(&host, &cloud, &[(FIRST, 1, 2000), (SECOND, 2, 500)])?;
    for at in STATION {
        assert_eq!(machine.pings(at.parse::<IpAddr>()?)?, 3, "{at} by a queue");
    }
    assert_eq!(host.host.bridge().ensure_queues(&minimums(&cloud)?).await?, Vec::<String>::new());

    // One keeps its number when the other goes, and the next one has the lowest that is free.
    promise(&mut cloud, FIRST, 0);
    promise(&mut cloud, SECOND, 800);
    program(&host, &cloud, &[(SECOND, 2)]).await?;
    assert_eq!(classes(&host.switch)?, BTreeMap::from([(0, class("9200Kbit")), (2, class("800Kbit"))]));
    promise(&mut cloud, PLAIN, 300);
    program(&host, &cloud, &[(SECOND, 2), (PLAIN, 1)]).await?;
    assert_queued(&host, &cloud, &[(SECOND, 2, 800), (PLAIN, 1, 300)])?;
    let rows = host.switch.vsctl(&["--columns=_uuid", "--bare", "list", "queue"])?;
    let again = host.again(nothing());
    again.bridge().connected(LIMIT).await?;
    again.program(cloud.host(0), LIMIT).await?;
    assert_eq!(again.bridge().ensure_queues(&minimums(&cloud)?).await?, Vec::<String>::new());
    assert_eq!(host.switch.vsctl(&["--columns=_uuid", "--bare", "list", "queue"])?, rows, "an agent that starts again");
    drop(again);

    // A link that carries less than is promised gives each its part of nine tenths.
    promise(&mut cloud, SECOND, 12_000);
    promise(&mut cloud, PLAIN, 6000);
    program(&host, &cloud, &[(SECOND, 2), (PLAIN, 1)]).await?;
    wait_for("rates that the link can keep", LIMIT, || {
        let wanted = BTreeMap::from([(0, class("1Mbit")), (1, class("3Mbit")), (2, class("6Mbit"))]);
        Ok((classes(&host.switch)? == wanted).then_some(()))
    })?;

    for port in [SECOND, PLAIN, TENANT] {
        promise(&mut cloud, port, 0);
    }
    program(&host, &cloud, &[]).await?;
    for table in ["qos", "queue"] {
        assert_eq!(host.switch.vsctl(&["--columns=_uuid", "--bare", "list", table])?.trim(), "", "{table}");
    }
    ensure!(classes(&host.switch)?.is_empty(), "the link is as it was");
    for at in STATION {
        assert_eq!(machine.pings(at.parse::<IpAddr>()?)?, 3, "{at} without queues");
    }
    Ok(())
}

/// What the agent works out of the cloud for the database.
#[cfg(test)]
fn minimums(cloud: &Cloud) -> Result<Minimums> {
    let office = cloud.ports.iter().filter(|port| port.network == cloud.networks[0].id);
    let promised = office.filter_map(|port| Some((port.id, port.qos.egress_min_kbps?)));
    Ok(Minimums::from([("dc".parse()?, promised.collect())]))
}

/// What somebody else has put on the link stays, whatever is promised there; so do their rows once ours are gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_else_has_shaped_stays() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("tc"));
    let mut cloud = cloud();
    let dc = datacentre()?;
    let host = Host::start_shaped(HostNetwork::empty(host_id(0), endpoint(0)), &[("dc", &dc)], capacity()?).await?;
    host.plug(&cloud.ports[FIRST]).await?;
    let theirs = "type=linux-htb other-config:max-rate=4000000 queues=7=@q -- --id=@q create queue other-config:max-rate=1000000";
    let set = ["set", "port", "wire0", "qos=@x", "--", "--id=@x", "create", "qos"].into_iter().chain(theirs.split(' '));
    host.switch.vsctl(&set.collect::<Vec<_>>())?;
    let rows = |table: &str| host.switch.vsctl(&["list", table]);
    let before = (rows("qos")?, rows("queue")?);
    promise(&mut cloud, FIRST, 2000);
    program(&host, &cloud, &[]).await?;
    assert_eq!(host.host.bridge().ensure_queues(&minimums(&cloud)?).await?, Vec::<String>::new());
    ensure!(host.host.bridge().ports()?.get("wire0").is_some_and(|port| port.is_shaped), "it is said");
    assert_eq!((rows("qos")?, rows("queue")?), before);

    host.switch.vsctl(&["clear", "port", "wire0", "qos"])?;
    program(&host, &cloud, &[(FIRST, 1)]).await?;
    // A queue of theirs in the place of one of ours is put out of it, and stays a row of theirs.
    let theirs = host.switch.vsctl(&["--columns=_uuid", "--bare", "find", "queue", "external_ids={}"])?;
    let (qos, place) = (host.switch.vsctl(&["get", "port", "wire0", "qos"])?, format!("queues:0={}", theirs.trim()));
    host.switch.vsctl(&["set", "qos", qos.trim(), &place])?;
    wait_for("a queue of ours again", LIMIT, || {
        Ok((!host.switch.vsctl(&["get", "qos", qos.trim(), "queues"])?.contains(theirs.trim())).then_some(()))
    })?;
    ensure!(!host.host.bridge().ports()?.get("wire0").is_some_and(|port| port.is_shaped), "and what is ours is not");
    promise(&mut cloud, FIRST, 0);
    program(&host, &cloud, &[]).await?;
    assert_eq!((rows("qos")?, rows("queue")?), before);
    Ok(())
}

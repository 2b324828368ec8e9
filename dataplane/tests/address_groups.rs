//! Address groups: rules that name a list of addresses. In the model's words, with prefixes within one another and everyone, and with real packets
//! while the list changes.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod topology;

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use basalt_tests::require;
use basalt_tests::skip::Need;
use basalt_tests::tcp::{Pair, REACH, arrives};
use dataplane::trace::{Cause, Connection, Packet, Path, Payload, blame};
use dataplane::{compile, trace};
use hosts::{Host, Machine};
use model::security::{Direction, Ethertype, Protocol, Remote};
use model::spec::HostNetwork;
use topology::{Cloud, endpoint, host_id, tcp};

const SERVER: usize = 0;
const DESK: usize = 1;
const OTHER: usize = 2;

/// How long is waited for bytes that should not arrive.
const SILENCE: Duration = Duration::from_millis(900);

/// A server that lets tcp 80 in from the addresses of `office`, and two machines that might be there, on one network of both versions of IP.
fn office(addresses: &[&str]) -> Cloud {
    let mut cloud = Cloud::default();
    let network = cloud.network("blue", "10.0.1.0/24");
    cloud.ipv6(network, "fd00:0:0:1::/64");
    cloud.addresses("office", addresses);
    let (server, client) = (cloud.group("server"), cloud.group("client"));
    let office = cloud.within(0);
    cloud.allow(server, tcp(80, 80), office);
    cloud.allow6(server, tcp(80, 80), office);
    for group in [server, client] {
        cloud.rule_of(Ethertype::IPv6, group, Direction::Egress, Protocol::Any, Remote::Any);
    }
    cloud.port("server", network, 0, 11, &[server]);
    cloud.port("desk", network, 0, 12, &[client]);
    cloud.port("other", network, 0, 13, &[client]);
    cloud
}

#[cfg(test)]
fn http(cloud: &Cloud, from: usize, target: u16, to: IpAddr) -> (Packet, Path) {
    let (host, numbers) = (cloud.host(0), cloud.numbers(0));
    let payload = Payload::Tcp { source: 40_000, target };
    let packet = Packet::from_port(&host, &numbers, &cloud.ports[from], to, payload).unwrap();
    let path = trace(&compile(&host, &numbers), &packet, Connection::New);
    (packet, path)
}

#[cfg(test)]
fn reaches(cloud: &Cloud, from: usize, target: u16) -> [bool; 2] {
    let to = [cloud.address(SERVER).into(), cloud.address6(SERVER).unwrap().into()];
    to.map(|to| http(cloud, from, target, to).1.reaches(1))
}

/// Each version of IP sees its own addresses; one prefix within another needs either; everyone is everyone, for one protocol and for any.
#[test]
fn just_the_addresses_of_the_group_are_let_in() {
    for (addresses, desk, other) in [
        (vec!["10.0.1.12/32"], [true, false], [false, false]),
        (vec!["fd00:0:0:1::c/128"], [false, true], [false, false]),
        (vec!["10.0.1.12/30", "fd00:0:0:1::/64"], [true, true], [true, true]),
        (vec!["10.0.0.0/8", "10.0.1.13/32", "10.0.1.0/24"], [true, false], [true, false]),
        (vec!["0.0.0.0/0", "10.0.1.13/32"], [true, false], [true, false]),
        (vec!["::/0"], [false, true], [false, true]),
        (vec!["192.0.2.0/24"], [false, false], [false, false]),
    ] {
        let mut cloud = office(&addresses);
        assert_eq!((reaches(&cloud, DESK, 80), reaches(&cloud, OTHER, 80)), (desk, other), "{addresses:?}");
        assert_eq!(reaches(&cloud, DESK, 81), [false, false], "{addresses:?}");
        let office = cloud.within(0);
        cloud.allow(0, Protocol::Any, office);
        cloud.allow6(0, Protocol::Any, office);
        assert_eq!((reaches(&cloud, DESK, 81), reaches(&cloud, OTHER, 81)), (desk, other), "any: {addresses:?}");
    }
    let mut cloud = office(&["10.0.1.12/32"]);
    cloud.groups[1].rules.retain(|rule| rule.ethertype == Ethertype::IPv6);
    let office = cloud.within(0);
    cloud.rule(1, Direction::Egress, tcp(80, 80), office);
    assert_eq!(
        reaches(&cloud, DESK, 80),
        [false, false],
        "the server is not one of the addresses that the desk may speak to"
    );
    cloud.address_groups[0].addresses.push("10.0.1.11/32".parse().unwrap());
    assert_eq!(reaches(&cloud, DESK, 80), [true, false]);
}

/// Who is let in, and who is not, in the words of those who own the groups.
#[test]
fn an_address_group_is_told_by_its_name() {
    let cloud = office(&["10.0.1.12/32", "10.0.1.8/30"]);
    let (_, path) = http(&cloud, DESK, 80, cloud.address(SERVER).into());
    let text = path.to_string();
    for part in [
        "a rule between it and office",
        "allow tcp port 80 from addresses of office",
        "10.0.1.12/32 is in address group office",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let (packet, path) = http(&cloud, OTHER, 80, cloud.address(SERVER).into());
    let blame = blame(&cloud.host(0), &cloud.numbers(0), &packet, &path).unwrap();
    assert_eq!(blame.cause, Cause::WrongRemote);
    assert_eq!(
        blame.line,
        "allow tcp port 80 from addresses of office (rule 00000003) does not have this other side (port server: server)"
    );
    assert_eq!(blame.remedy, "flowctl address-group add office PREFIX, or add a rule for the other side");
}

/// Whether nothing gets there any more, and then nothing back either.
fn is_cut(pair: &mut Pair) -> Result<bool> {
    pair.client.write_all(b"x")?;
    let there = arrives(&mut pair.server, b'x', SILENCE)?;
    pair.server.write_all(b"y")?;
    Ok(!there && !arrives(&mut pair.client, b'y', SILENCE)?)
}

async fn run(cloud: &Cloud) -> Result<(Host, Vec<Machine>)> {
    let host = Host::start(HostNetwork::empty(host_id(0), endpoint(0))).await?;
    let mut machines = Vec::new();
    for (index, port) in cloud.ports.iter().enumerate() {
        let machine = host.plug(port).await?;
        machine.namespace.add_address("eth0", &format!("{}/24", cloud.address(index)))?;
        let six = cloud.address6(index).context("no IPv6 address")?;
        machine.namespace.add_address("eth0", &format!("{six}/64"))?;
        machines.push(machine);
    }
    program(&host, cloud).await?;
    Ok((host, machines))
}

async fn program(host: &Host, cloud: &Cloud) -> Result<()> {
    host.program(cloud.host(0)).await
}

fn keep(cloud: &mut Cloud, addresses: &[&str]) {
    cloud.address_groups[0].addresses = addresses.iter().filter_map(|address| address.parse().ok()).collect();
}

/// An address added is let in at once; one taken away cuts its live connections, over both versions of IP, and no other's; while another prefix has
/// it, it is not away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_taken_away_cuts_its_live_connections() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ethtool"));
    let mut cloud = office(&["10.0.1.12/32", "fd00:0:0:1::c/128"]);
    let (host, machines) = run(&cloud).await?;
    let listener = machines[SERVER].listen(80)?;
    let (plain, six) = (cloud.address(SERVER).into(), cloud.address6(SERVER).context("no IPv6 address")?.into());
    let mut desk = Pair::connect(&machines[DESK].namespace, &listener, plain)?;
    let mut desk6 = Pair::connect(&machines[DESK].namespace, &listener, six)?;
    assert!(!machines[OTHER].intrudes(cloud.address(SERVER), &listener)?, "it is not in the group");

    keep(&mut cloud, &["10.0.1.12/32", "10.0.1.8/29", "fd00:0:0:1::c/128"]);
    program(&host, &cloud).await?;
    let mut other = Pair::connect(&machines[OTHER].namespace, &listener, plain)?;
    assert!(desk.speaks()? && desk6.speaks()? && other.speaks()?);

    keep(&mut cloud, &["10.0.1.12/32", "fd00:0:0:1::/80"]);
    program(&host, &cloud).await?;
    assert!(is_cut(&mut other)?, "the prefix that it was in is gone");
    assert!(desk.speaks()? && desk6.speaks()?, "another prefix has the desk");

    keep(&mut cloud, &["192.0.2.0/24"]);
    program(&host, &cloud).await?;
    assert!(is_cut(&mut desk)? && is_cut(&mut desk6)?);

    keep(&mut cloud, &["10.0.0.0/8"]);
    program(&host, &cloud).await?;
    assert!(arrives(&mut desk.server, b'x', REACH)? && arrives(&mut desk.client, b'y', REACH)?, "allowed again");
    assert!(desk.speaks()?);
    Ok(())
}

/// A stateless group asks for the addresses with each packet, of replies too, and remembers nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateless_group_judges_each_packet_by_the_addresses() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ethtool"));
    let mut cloud = office(&["10.0.1.12/32"]);
    let office = cloud.within(0);
    for group in [0, 1] {
        cloud.groups[group].stateful = false;
        cloud.groups[group].rules.retain(|rule| rule.ethertype == Ethertype::IPv6);
    }
    cloud.allow(0, tcp(80, 80), office);
    cloud.rule(0, Direction::Egress, tcp(1024, 65535), office);
    cloud.rule(1, Direction::Egress, Protocol::Any, Remote::Any);
    cloud.allow(1, Protocol::Any, Remote::Any);
    let (host, machines) = run(&cloud).await?;
    let listener = machines[SERVER].listen(80)?;
    let plain = cloud.address(SERVER);
    let mut desk = Pair::connect(&machines[DESK].namespace, &listener, plain.into())?;
    assert!(desk.speaks()?);
    assert!(!machines[OTHER].intrudes(plain, &listener)?);
    let tracked = host.switch.appctl(&["dpctl/dump-conntrack"])?;
    assert!(!tracked.contains(&Ipv4Addr::new(10, 0, 1, 12).to_string()), "{tracked}");

    keep(&mut cloud, &["10.0.1.13/32"]);
    program(&host, &cloud).await?;
    assert!(is_cut(&mut desk)?);
    assert!(machines[OTHER].reaches(plain, &listener)?);
    Ok(())
}

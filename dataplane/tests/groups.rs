//! What ports may do beyond the ordinary: send from allowed pairs, be guarded by stateless groups. In the model's words, and with real packets.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod topology;

use std::net::Ipv4Addr;

use anyhow::Result;
use basalt_tests::require;
use basalt_tests::skip::Need;
use dataplane::trace::{Connection, Packet, Payload};
use dataplane::{compile, trace};
use hosts::{Host, Machine};
use model::Mac;
use model::network::AllowedPair;
use model::security::{Direction, Ethertype, Protocol, Remote};
use model::spec::HostNetwork;
use openflow::flow::{Field, PortNo};
use topology::{Cloud, PING, endpoint, host_id, tcp};

const CLIENT: usize = 0;
const FIRST: usize = 1;
const SECOND: usize = 2;
const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 100);

/// A client and two members of a VRRP group on one network, the second member on another host.
fn pair() -> Cloud {
    let mut cloud = Cloud::default();
    let network = cloud.network("blue", "10.0.1.0/24");
    cloud.ipv6(network, "fd00:0:0:1::/64");
    let group = cloud.group("all");
    cloud.allow(group, PING, Remote::Any);
    cloud.rule_of(Ethertype::IPv6, group, Direction::Egress, Protocol::Any, Remote::Any);
    for (name, host, last) in [("client", 0, 11), ("first", 0, 12), ("second", 1, 13)] {
        cloud.port(name, network, host, last, &[group]);
    }
    for member in [FIRST, SECOND] {
        let ranges = ["10.0.1.100/32", "fd00:0:0:1::100/128"];
        let pairs = ranges.map(|range| range.parse().map(|addresses| AllowedPair { addresses, mac: None }));
        cloud.ports[member].allowed_pairs = pairs.into_iter().flatten().collect();
    }
    cloud
}

#[cfg(test)]
fn says(cloud: &Cloud, packet: &Packet) -> String {
    let path = trace(&compile(&cloud.host(0), &cloud.numbers(0)), packet, Connection::New);
    path.verdicts().iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
}

/// A member may send from the shared address, by ARP and by neighbour advertisement; nobody else may; a MAC address that members share is found
/// wherever it is.
#[test]
fn an_allowed_pair_lets_just_its_addresses_by() {
    let mut cloud = pair();
    let (number, mac) = (PortNo(11), cloud.mac(FIRST));
    let ping = Payload::Icmp { kind: 8, code: 0 };
    let from = |mac: Mac, source: Ipv4Addr| {
        Packet::ip(number, (mac, pair().mac(CLIENT)), (source, pair().address(CLIENT)), ping)
    };
    assert_eq!(says(&cloud, &from(mac, VIRTUAL)), "delivered to port client");
    assert!(says(&cloud, &from(mac, Ipv4Addr::new(10, 0, 1, 101))).starts_with("dropped in classify"));
    let announcement = Packet::arp_request(number, (mac, VIRTUAL), VIRTUAL);
    let heard = says(&cloud, &announcement);
    assert!(heard.contains("delivered to port client") && heard.contains("VNI 5001"), "{heard}");
    let stolen = announcement.with(Field::InPort, PortNo(10)).with(Field::EthSrc, cloud.mac(CLIENT).bytes());
    assert!(says(&cloud, &stolen.with(Field::ArpSha, cloud.mac(CLIENT).bytes())).starts_with("dropped in classify"));
    let shared = "fd00:0:0:1::100".parse().unwrap();
    let advert = Packet::neighbour_advert(number, (mac, mac.link_local()), shared);
    assert!(says(&cloud, &advert).contains("delivered to port client"));
    let thief = cloud.mac(CLIENT);
    let advert = Packet::neighbour_advert(PortNo(10), (thief, thief.link_local()), shared);
    assert_eq!(says(&cloud, &advert), "dropped in guard: it advertises an address that is not its own");

    let group_mac = Mac::new([0, 0, 0x5e, 0, 1, 7]);
    for member in [FIRST, SECOND] {
        cloud.ports[member].allowed_pairs[0].mac = Some(group_mac);
    }
    assert_eq!(says(&cloud, &from(group_mac, VIRTUAL)), "delivered to port client");
    assert!(says(&cloud, &from(mac, VIRTUAL)).starts_with("dropped in classify"));
    let to = Packet::ip(PortNo(10), (cloud.mac(CLIENT), group_mac), (cloud.address(CLIENT), VIRTUAL), ping);
    let heard = says(&cloud, &to);
    assert!(heard.contains("delivered to port first") && heard.contains("VNI 5001"), "{heard}");
}

/// A stateless side asks its rules of every packet, replies too; a stateful one on the same path does not; no connection is remembered where both
/// are stateless.
#[test]
fn stateless_groups_judge_each_packet() {
    let mut cloud = Cloud::default();
    let network = cloud.network("blue", "10.0.1.0/24");
    let (open, shut) = (cloud.group("open"), cloud.group("shut"));
    cloud.allow(open, tcp(80, 80), Remote::Any);
    cloud.groups[open].stateful = false;
    cloud.port("server", network, 0, 11, &[open]);
    cloud.port("stateful", network, 0, 12, &[shut]);
    let also = cloud.port("stateless", network, 0, 13, &[shut]);
    let (host, numbers) = (cloud.host(0), cloud.numbers(0));
    let set = compile(&host, &numbers);
    let path = |from: usize, to: usize, ports: (u16, u16), connection| {
        let payload = Payload::Tcp { source: ports.0, target: ports.1 };
        let packet = Packet::from_port(&host, &numbers, &cloud.ports[from], cloud.address(to), payload).unwrap();
        trace(&set, &packet, connection)
    };
    assert!(path(1, 0, (40_000, 80), Connection::New).reaches(1));
    assert!(path(0, 1, (80, 40_000), Connection::Reply).reaches(2), "the stateful side knows the connection");
    assert!(!path(0, 1, (80, 40_000), Connection::New).reaches(2));
    assert!(!path(1, 0, (40_000, 81), Connection::Reply).reaches(1), "the stateless side asks its rules of replies");

    cloud.groups[shut].stateful = false;
    let (host, numbers) = (cloud.host(0), cloud.numbers(0));
    let set = compile(&host, &numbers);
    let payload = Payload::Tcp { source: 40_000, target: 80 };
    let packet = Packet::from_port(&host, &numbers, &cloud.ports[also], cloud.address(0), payload).unwrap();
    let path = trace(&set, &packet, Connection::New);
    assert!(path.reaches(1) && path.hops.iter().all(|hop| hop.name != "state"), "{path}");
}

async fn run(cloud: &Cloud) -> Result<([Host; 2], Vec<Machine>)> {
    let start = |host| Host::start(HostNetwork::empty(host_id(host), endpoint(host)));
    let hosts = [start(0).await?, start(1).await?];
    hosts[0].link(&hosts[1])?;
    let mut machines = Vec::new();
    for (index, port) in cloud.ports.iter().enumerate() {
        let machine = hosts[usize::from(port.is_on(host_id(1)))].plug(port).await?;
        machine.namespace.add_address("eth0", &format!("{}/24", cloud.address(index)))?;
        machines.push(machine);
    }
    program(&hosts, cloud).await?;
    Ok((hosts, machines))
}

async fn program(hosts: &[Host; 2], cloud: &Cloud) -> Result<()> {
    for (number, host) in hosts.iter().enumerate() {
        host.program(cloud.host(number)).await?;
    }
    Ok(())
}

/// The shared address of a VRRP pair moves from a machine on one host to one on another by gratuitous ARP, as the client sees at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vrrp_pair_fails_over_by_gratuitous_arp() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"), Need::Program("busybox"));
    let cloud = pair();
    let (_hosts, machines) = run(&cloud).await?;
    let shared = format!("{VIRTUAL}/32");
    machines[CLIENT].namespace.add_address("eth0", &shared)?;
    assert!(!machines[FIRST].leaks(VIRTUAL)?, "the client may not take the address");
    machines[CLIENT].namespace.run(&["ip", "address", "del", &shared, "dev", "eth0"])?;
    for member in [FIRST, SECOND] {
        let before = machines[CLIENT].namespace.run(&["ip", "neighbour", "show", "dev", "eth0"])?;
        machines[member].namespace.add_address("eth0", &shared)?;
        let address = VIRTUAL.to_string();
        machines[member]
            .namespace
            .run(&["busybox", "arping", "-U", "-c", "2", "-I", "eth0", "-s", &address, &address])?;
        assert_eq!(machines[CLIENT].pings(VIRTUAL)?, 3, "{}, before: {before}", cloud.ports[member].name);
        let neighbours = machines[CLIENT].namespace.run(&["ip", "neighbour", "show", &address, "dev", "eth0"])?;
        assert!(neighbours.contains(&cloud.mac(member).to_string()), "{neighbours}");
        // The first is cut off as a crash would: it says nothing any more.
        machines[member].namespace.run(&["ip", "address", "del", &shared, "dev", "eth0"])?;
    }
    Ok(())
}

/// Between stateless groups a connection needs a rule each way, and the connection tracker never hears of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stateless_groups_need_a_rule_each_way() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let mut cloud = Cloud::default();
    let network = cloud.network("blue", "10.0.1.0/24");
    let (server, client) = (cloud.group("server"), cloud.group("client"));
    for group in [server, client] {
        cloud.groups[group].stateful = false;
    }
    cloud.allow(server, tcp(80, 80), Remote::Any);
    cloud.port("server", network, 0, 11, &[server]);
    cloud.port("client", network, 0, 12, &[client]);
    let (hosts, machines) = run(&cloud).await?;
    let listener = machines[0].listen(80)?;
    assert!(!machines[1].intrudes(cloud.address(0), &listener)?, "no rule lets the answers in");
    cloud.allow(client, tcp(1024, 65535), Remote::Any);
    program(&hosts, &cloud).await?;
    assert!(machines[1].reaches(cloud.address(0), &listener)?);
    let tracked = hosts[0].switch.appctl(&["dpctl/dump-conntrack"])?;
    assert!(!tracked.contains("10.0.1.12"), "{tracked}");
    Ok(())
}

//! Path MTU: a router between networks that do not carry the same, seen in the model, in a real switch, and by the kernels of real senders.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod topology;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use basalt_tests::process::wait_for;
use basalt_tests::require;
use basalt_tests::skip::Need;
use basalt_tests::tcp::accept;
use dataplane::too_large::{Handed, TooLargeError, tell};
use dataplane::trace::{Blame, Cause, Connection, Packet, Path, Payload, Verdict};
use dataplane::{PortNumbers, compile, trace};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use hosts::{Host, Machine};
use model::network::AllowedPair;
use model::security::{Direction, Ethertype, Protocol, Remote};
use model::spec::HostNetwork;
use openflow::flow::Action;
use rig::Rig;
use topology::{Cloud, PING, VXLAN, endpoint, host_id, tcp};

const CLIENT: usize = 0;
const NEAR: usize = 1;
const FAR: usize = 2;
const LARGE: u16 = 1450;
const SMALL: u16 = 1400;
const MIDDLE: u16 = 1430;
/// That connections to all of them hash to one of two ways is one in 2,048.
const ADDRESSES: u8 = 12;
/// Behind the port near, for documentation (RFC 5737, RFC 3849).
const BEYOND: [&str; 2] = ["198.51.100.1", "2001:db8:16::1"];
const RANGES: [&str; 2] = ["198.51.100.0/24", "2001:db8:16::/48"];
const LIMIT: Duration = Duration::from_secs(30);

/// A client on a network that carries more than the next, behind a router, where one port is on each host; the near one leads on.
#[cfg(test)]
fn cloud() -> Cloud {
    let mut cloud = Cloud::default();
    let large = cloud.network("large", "10.0.1.0/24");
    let small = cloud.network("small", "10.0.2.0/24");
    cloud.ipv6(large, "fd00:0:0:1::/64");
    cloud.ipv6(small, "fd00:0:0:2::/64");
    cloud.networks[small].mtu = SMALL;
    cloud.router("main", &[large, small]);
    let group = cloud.group("all");
    cloud.rule_of(Ethertype::IPv6, group, Direction::Egress, Protocol::Any, Remote::Any);
    for protocol in [PING, tcp(80, 80)] {
        cloud.allow(group, protocol, Remote::Any);
        cloud.allow6(group, protocol, Remote::Any);
    }
    for (name, network, host, last) in [("client", large, 0, 11), ("near", small, 0, 21), ("far", small, 1, 22)] {
        cloud.port(name, network, host, last, &[group]);
    }
    let pairs = RANGES.map(|range| range.parse().map(|addresses| AllowedPair { addresses, mac: None }));
    cloud.ports[NEAR].allowed_pairs = pairs.into_iter().flatten().collect();
    cloud.route(0, RANGES[0], cloud.address(NEAR));
    let six = cloud.address6(NEAR).unwrap();
    cloud.route(0, RANGES[1], six);
    cloud
}

#[cfg(test)]
fn both(cloud: &Cloud, port: usize) -> [IpAddr; 2] {
    [cloud.address(port).into(), cloud.address6(port).unwrap().into()]
}

#[cfg(test)]
fn walk(cloud: &Cloud, from: usize, to: IpAddr) -> Path {
    let (host, numbers) = (cloud.host(0), cloud.numbers(0));
    let packet = Packet::from_port(&host, &numbers, &cloud.ports[from], to, Payload::ping(to)).unwrap();
    trace(&compile(&host, &numbers), &packet, Connection::New)
}

#[test]
fn what_is_too_large_is_told_in_the_users_words() {
    let cloud = cloud();
    let beyond = BEYOND.map(|address| address.parse().unwrap());
    for to in both(&cloud, NEAR).into_iter().chain(both(&cloud, FAR)).chain(beyond) {
        let path = walk(&cloud, CLIENT, to);
        let [verdict] = path.verdicts().try_into().unwrap();
        assert!(matches!(verdict, Verdict::Delivered { .. } | Verdict::Tunnelled { .. }), "{path}");
        let (octets, verdict) = path.too_large().unwrap();
        assert_eq!(
            (octets, verdict.to_string().as_str()),
            (SMALL + 14, "handed to the agent: it tells the sender what network small carries",)
        );
        let blame = Blame::of_way(&path, u32::from(SMALL) + 1).unwrap();
        assert_eq!(blame.cause, Cause::TooLarge);
        assert!(blame.line.contains("larger than the 1400"), "{blame}");
        assert_eq!(Blame::of_way(&path, u32::from(SMALL)), None);
    }
    for to in both(&cloud, CLIENT) {
        assert_eq!(walk(&cloud, NEAR, to).too_large(), None, "the other network carries more");
    }
    let nobody: IpAddr = "10.0.2.99".parse().unwrap();
    let path = walk(&cloud, CLIENT, nobody);
    assert!(path.why_not().is_some() && Blame::of_way(&path, 9000).is_none(), "no size would get there: {path}");
}

#[test]
fn what_carries_the_same_is_not_measured() {
    let mut cloud = cloud();
    let measures = |cloud: &Cloud| {
        let set = compile(&cloud.host(0), &cloud.numbers(0));
        let count = set
            .flows()
            .filter(|flow| flow.actions.iter().any(|action| matches!(action, Action::CheckPacketLarger { .. })))
            .count();
        (count, set.counts().meters)
    };
    let (count, meters) = measures(&cloud);
    assert_eq!(count, 1, "one for the small network");
    cloud.networks[1].mtu = LARGE;
    assert_eq!(measures(&cloud), (0, meters - 1));
}

#[test]
fn the_model_and_the_switch_agree() {
    require!(Need::Root, Need::OpenVswitch);
    let cloud = cloud();
    let rig = Rig::start(&cloud, 0).unwrap();
    let set = rig.install(&cloud).unwrap();
    let (host, numbers) = (cloud.host(0), cloud.numbers(0));
    let beyond = BEYOND.map(|address| address.parse().unwrap());
    let nobody: IpAddr = "10.0.2.99".parse().unwrap();
    let from_client = both(&cloud, NEAR).into_iter().chain(both(&cloud, FAR)).chain(beyond).chain([nobody]);
    let from_near = both(&cloud, CLIENT);
    for (from, to) in from_client.map(|to| (CLIENT, to)).chain(from_near.map(|to| (NEAR, to))) {
        let packet = Packet::from_port(&host, &numbers, &cloud.ports[from], to, Payload::ping(to)).unwrap();
        rig.ask(&set, &packet, Connection::New);
    }
}

const SOURCE: [u8; 4] = [10, 0, 1, 11];
const TARGET: [u8; 4] = [10, 0, 2, 21];

/// A UDP packet as flows hand it over: with the MAC addresses of the next hop.
#[cfg(test)]
fn udp(source: [u8; 4], target: [u8; 4], length: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(source, target, 63).udp(1000, 2000);
    builder.write(&mut frame, &vec![7; length]).unwrap();
    frame
}

#[cfg(test)]
fn told(cloud: &Cloud, frame: &[u8]) -> Result<Vec<u8>, TooLargeError> {
    let (host, numbers) = (cloud.host(0), cloud.numbers(0));
    let handed = Handed {
        in_port: numbers.ports[&cloud.ports[CLIENT].id],
        network: cloud.networks[1].vni.get(),
        router: cloud.routers[0].key,
        frame,
    };
    tell(&host, &numbers, &handed).map(|told| told.frame)
}

/// The message names the MTU, quotes the packet, and comes from the router that the sender knows.
#[test]
fn the_message_is_that_of_rfc_1191() {
    let cloud = cloud();
    let frame = udp(SOURCE, TARGET, 1400);
    let answer = told(&cloud, &frame).unwrap();
    let packet = SlicedPacket::from_ethernet(&answer).unwrap();
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Icmpv4(icmp))) = (&packet.net, &packet.transport) else {
        panic!("{packet:?}");
    };
    assert_eq!((ip.header().source(), ip.header().destination()), ([10, 0, 1, 1], SOURCE));
    assert_eq!((icmp.type_u8(), icmp.code_u8()), (3, 4));
    assert_eq!(icmp.bytes5to8(), [0, 0, 5, 120], "an MTU of 1400");
    assert_eq!(icmp.payload(), &frame[14..14 + 548]);
    assert_eq!(usize::from(ip.header().total_len()), 576);
    let ethernet = packet.link.unwrap().to_header().unwrap().ethernet2().unwrap();
    assert_eq!(ethernet.destination, cloud.ports[CLIENT].mac.bytes());
    assert_eq!(ethernet.source, cloud.routers[0].interfaces[0].mac.bytes());
}

#[test]
fn what_must_not_be_answered_is_not() {
    let cloud = cloud();
    let silent = |frame: &[u8]| match told(&cloud, frame) {
        Err(TooLargeError::Silent { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    let mut error = Vec::new();
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(SOURCE, TARGET, 63).icmpv4_raw(3, 1, [0; 4]);
    builder.write(&mut error, &[7; 1400]).unwrap();
    assert_eq!(silent(&error), "errors are not answered by errors");
    let mut later = udp(SOURCE, TARGET, 1400);
    later[14 + 7] = 9;
    assert_eq!(silent(&later), "only first fragments are answered");
    assert_eq!(silent(&udp([0; 4], TARGET, 1400)), "its source is no station");
    assert_eq!(silent(&udp(SOURCE, [255; 4], 1400)), "it was sent to many");
    for length in 0..20 {
        assert_eq!(silent(&udp(SOURCE, TARGET, 1400)[..length]), "it is no whole packet");
    }
    let frame = udp(SOURCE, TARGET, 1400);
    let handed =
        Handed { in_port: VXLAN, network: cloud.networks[1].vni.get(), router: cloud.routers[0].key, frame: &frame };
    assert!(matches!(tell(&cloud.host(0), &PortNumbers::default(), &handed), Err(TooLargeError::Gone { .. })));
}

async fn plug(host: &Host, cloud: &Cloud, port: usize) -> Result<Machine> {
    let machine = host.plug(&cloud.ports[port]).await?;
    // A router that is advertised, too, would be a second way, which the kernel takes in turns.
    machine.namespace.run(&["sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=0"])?;
    machine.restart_link()?;
    machine.configure_both(cloud.address(port), cloud.address6(port))?;
    if port == NEAR {
        machine.also_has(&BEYOND)?;
    }
    Ok(machine)
}

/// The kernel of a sender learns the path's MTU from what it is told, by both versions of IP, to here, to another host and along a static route; a connection
/// that began with larger segments goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn senders_learn_the_mtu_of_the_path() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let cloud = cloud();
    let start = |host| Host::start(HostNetwork::empty(host_id(host), endpoint(host)));
    let hosts = [start(0).await?, start(1).await?];
    hosts[0].link(&hosts[1])?;
    let mut machines = Vec::new();
    for port in [CLIENT, NEAR, FAR] {
        machines.push(plug(&hosts[usize::from(port == FAR)], &cloud, port).await?);
    }
    for (number, host) in hosts.iter().enumerate() {
        host.program(cloud.host(number)).await?;
    }
    let client = &machines[CLIENT].namespace;
    let [four, six]: [IpAddr; 2] = [BEYOND[0].parse()?, BEYOND[1].parse()?];
    let near = both(&cloud, NEAR).map(|to| (to, NEAR));
    let far = both(&cloud, FAR).map(|to| (to, FAR));
    for (to, at) in near.into_iter().chain(far).chain([(four, NEAR), (six, NEAR)]) {
        assert_eq!(machines[CLIENT].pings(to)?, 3, "{to}");
        let known = |wanted: &str| -> Result<bool> {
            Ok(client.run(&["ip", "route", "get", &to.to_string()])?.contains(wanted))
        };
        assert!(!known("mtu 1400")?, "{to}");
        let listener = machines[at].listen(80)?;
        let target = SocketAddr::from((to, 80));
        let stream =
            client.enter(|| TcpStream::connect_timeout(&target, LIMIT))?.with_context(|| format!("connect to {to}"))?;
        transfer(stream, accept(&listener, LIMIT)?).with_context(|| format!("to {to}"))?;
        // What ICMP said while the socket was in use is heard once it is not.
        wait_for(&format!("the path to {to} to be known"), LIMIT, || Ok(known("mtu 1400")?.then_some(())))?;
    }
    Ok(())
}

/// Sends much over a connection and looks at what arrives.
#[cfg(test)]
fn transfer(mut stream: TcpStream, mut accepted: TcpStream) -> Result<()> {
    accepted.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let sent = vec![42; 100_000];
    let mut received = vec![0; sent.len()];
    let sender = std::thread::spawn(move || stream.write_all(&sent).map(|()| (stream, sent)));
    accepted.read_exact(&mut received).context("receive")?;
    let (_open, sent) = sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    anyhow::ensure!(received == sent, "something else arrived than was sent");
    Ok(())
}

/// Two next hops of one route, in networks that do not carry the same: whichever a connection takes, its sender is told what that one carries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_several_ways_is_measured() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ethtool"));
    let mut cloud = cloud();
    let middle = cloud.network("middle", "10.0.3.0/24");
    cloud.networks[middle].mtu = MIDDLE;
    cloud.routers.clear();
    cloud.router("main", &[0, 1, middle]);
    let second = cloud.port("second", middle, 1, 31, &[0]);
    cloud.ports[second].allowed_pairs = cloud.ports[NEAR].allowed_pairs.clone();
    for hop in [NEAR, second] {
        cloud.route(0, RANGES[0], cloud.address(hop));
    }
    let start = |host| Host::start(HostNetwork::empty(host_id(host), endpoint(host)));
    let hosts = [start(0).await?, start(1).await?];
    hosts[0].link(&hosts[1])?;
    let client = plug(&hosts[0], &cloud, CLIENT).await?;
    let hops = [plug(&hosts[0], &cloud, NEAR).await?, plug(&hosts[1], &cloud, second).await?];
    for (number, host) in hosts.iter().enumerate() {
        host.program(cloud.host(number)).await?;
    }
    let listeners = [hops[0].listen(80)?, hops[1].listen(80)?];
    let mut taken = [0, 0];
    for last in 1..=ADDRESSES {
        let to = format!("198.51.100.{last}");
        for hop in &hops {
            hop.namespace.run(&["ip", "address", "replace", &format!("{to}/32"), "dev", "lo"])?;
        }
        let target: SocketAddr = format!("{to}:80").parse()?;
        let stream = client.namespace.enter(|| TcpStream::connect_timeout(&target, LIMIT))??;
        let (way, accepted) = wait_for("a connection at one of the hops", LIMIT, || {
            let came = |way: usize| accept(&listeners[way], Duration::ZERO).ok().map(|accepted| (way, accepted));
            Ok(came(0).or_else(|| came(1)))
        })?;
        transfer(stream, accepted).with_context(|| format!("to {to}"))?;
        let wanted = format!("mtu {}", [SMALL, MIDDLE][way]);
        let known = || Ok(client.namespace.run(&["ip", "route", "get", &to])?.contains(&wanted).then_some(()));
        wait_for(&format!("{wanted} to {to}"), LIMIT, known)?;
        taken[way] += 1;
    }
    assert!(taken.iter().all(|count| *count > 0), "all connections took one way: {taken:?}");
    Ok(())
}

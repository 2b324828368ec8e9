//! Mirroring in the model, in a real switch, and with real packets: who gets copies sees, octet for octet, what the mirrored machine sent and was
//! sent, on the same host and on another one.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod outside;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod topology;
#[cfg(test)]
mod world;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use basalt_tests::process::{Daemon, wait_for};
use basalt_tests::require;
use basalt_tests::skip::Need;
use dataplane::trace::{Cause, Connection, Packet, Path, Payload, Verdict, blame};
use dataplane::{FlowSet, PortNumbers, compile, trace};
use hosts::{Host, Machine};
use model::Mac;
use model::mirror::MirrorDirection;
use model::network::Port;
use model::qos::DscpMark;
use model::security::{Direction, Ethertype, Protocol, Remote};
use model::spec::HostNetwork;
use openflow::flow::Field;
use outside::{FAR as BEYOND, GATEWAY_AT, eventually};
use proptest::prelude::{any, proptest};
use rig::{BRIDGE, Rig};
use topology::random::{self, HOSTS, Random};
use topology::{Cloud, PING, VXLAN, endpoint, host_id, tcp};
use world::World;

const WEB: usize = 0;
const NEAR: usize = 1;
const FAR: usize = 2;
/// On a network of their own, in no group: who gets copies, on either host.
const EYE: usize = 3;
const OTHER_EYE: usize = 4;
/// A sub-port of near, on green.
const SUB: usize = 5;
const BLUE: usize = 0;
const GREEN: usize = 1;
const ECHO: Payload = Payload::Icmp { kind: 8, code: 0 };
const HTTP: Payload = Payload::Tcp { source: 40_000, target: 80 };
const DIRECTIONS: [MirrorDirection; 3] = [MirrorDirection::In, MirrorDirection::Out, MirrorDirection::Both];
const LIMIT: Duration = Duration::from_secs(30);

/// Blue and green have a router that leads out, and both versions of IP; web and near are on blue and host 0, far is on green and host 1. Web has a
/// floating IP. All may be pinged, and asked on TCP port 80 by each other.
fn cloud() -> Cloud {
    let mut cloud = Cloud::default();
    let blue = cloud.network("blue", "10.0.1.0/24");
    let green = cloud.network("green", "10.0.2.0/24");
    let watch = cloud.network("watch", "10.0.9.0/24");
    let outer = cloud.network("outer", "203.0.113.0/24");
    cloud.provide(outer, "dc", Some(100));
    cloud.ipv6(blue, "fd00:0:0:1::/64");
    cloud.ipv6(green, "fd00:0:0:2::/64");
    let main = cloud.router("main", &[blue, green]);
    let all = cloud.group("all");
    cloud.rule_of(Ethertype::IPv6, all, Direction::Egress, Protocol::Any, Remote::Any);
    cloud.allow(all, PING, Remote::Any);
    cloud.allow6(all, PING, Remote::Any);
    let members = cloud.members(all);
    cloud.allow(all, tcp(80, 80), members);
    cloud.allow6(all, tcp(80, 80), members);
    cloud.port("web", blue, 0, 11, &[all]);
    cloud.port("near", blue, 0, 12, &[all]);
    cloud.port("far", green, 1, 13, &[all]);
    cloud.port("eye", watch, 0, 21, &[]);
    cloud.port("other-eye", watch, 1, 22, &[]);
    cloud.lead_out(main, outer);
    cloud.float(main, WEB, 50);
    cloud
}

/// The same, with a sub-port of near.
fn trunked() -> Cloud {
    let mut cloud = cloud();
    cloud.port("near.7", GREEN, 0, 14, &[0]);
    cloud.trunk(SUB, NEAR, 7);
    cloud
}

struct Host0 {
    cloud: Cloud,
    network: HostNetwork,
    numbers: PortNumbers,
    set: FlowSet,
}

#[cfg(test)]
impl Host0 {
    fn of(cloud: Cloud) -> Self {
        let (network, numbers) = (cloud.host(0), cloud.numbers(0));
        let set = compile(&network, &numbers);
        Self { cloud, network, numbers, set }
    }

    fn packet(&self, from: usize, to: impl Into<IpAddr>, payload: Payload) -> Packet {
        Packet::from_port(&self.network, &self.numbers, &self.cloud.ports[from], to, payload).unwrap()
    }

    fn arp(&self, from: usize, sender: Ipv4Addr, to: Ipv4Addr) -> Packet {
        let port = &self.cloud.ports[from];
        Packet::arp_request(self.numbers.of(port).unwrap(), (port.mac, sender), to).sent_by(port)
    }

    fn path(&self, packet: &Packet) -> Path {
        trace(&self.set, packet, Connection::New)
    }

    /// What becomes of a packet, and of its copies.
    fn says(&self, packet: &Packet) -> (String, String) {
        let path = self.path(packet);
        let verdicts = path.verdicts().iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ");
        (verdicts, path.copies().join(" | "))
    }
}

/// Copies go where they are asked for, of what was asked for, and change nothing for the packet.
#[test]
fn a_copy_goes_to_the_port_that_was_named() {
    let here = "a copy goes to port eye of this host";
    let there = format!("a copy goes to port other-eye of host {} at 172.20.0.2", host_id(1));
    for (to, words) in [(EYE, here), (OTHER_EYE, there.as_str())] {
        for direction in DIRECTIONS {
            let plain = Host0::of(cloud());
            let mut mirrored = cloud();
            mirrored.mirror(WEB, to, direction);
            let world = Host0::of(mirrored);
            let copied = |is: bool| if is { words.to_owned() } else { String::new() };
            let (out, into) = (direction.has_out(), direction.has_in());
            let near_6 = world.cloud.address6(NEAR).unwrap();
            let web_6 = world.cloud.address6(WEB).unwrap();
            let gateway = Ipv4Addr::new(10, 0, 1, 1);
            for (name, packet, is_copied) in [
                ("to near", world.packet(WEB, world.cloud.address(NEAR), ECHO), out),
                ("to near by IPv6", world.packet(WEB, near_6, Payload::ping(near_6.into())), out),
                ("to far", world.packet(WEB, world.cloud.address(FAR), HTTP), out),
                ("beyond", world.packet(WEB, BEYOND, ECHO), out),
                ("what no rule lets in", world.packet(WEB, world.cloud.address(NEAR), Payload::Protocol(47)), out),
                ("from near", world.packet(NEAR, world.cloud.address(WEB), ECHO), into),
                ("from near by IPv6", world.packet(NEAR, web_6, Payload::ping(web_6.into())), into),
                ("shut out", world.packet(NEAR, world.cloud.address(WEB), Payload::Protocol(47)), false),
                ("to the router, which answers", world.packet(WEB, gateway, ECHO), out || into),
                ("an ARP request", world.arp(WEB, world.cloud.address(WEB), gateway), out || into),
                ("an ARP probe", world.arp(WEB, Ipv4Addr::UNSPECIFIED, world.cloud.address(WEB)), out),
                ("spoofed", world.packet(WEB, gateway, ECHO).with(Field::Ipv4Src, gateway), false),
                (
                    "spoofed by IPv6",
                    world.packet(WEB, near_6, Payload::ping(near_6.into())).with(Field::Ipv6Src, near_6),
                    false,
                ),
                ("of others", world.packet(NEAR, world.cloud.address(FAR), HTTP), false),
            ] {
                let (verdict, copies) = world.says(&packet);
                assert_eq!(copies, copied(is_copied), "{name}, {direction}: {}", world.path(&packet));
                // What is met with silence is the port's own flow now.
                let verdict = verdict.replace("classify: port web: ", "classify: ");
                assert_eq!(verdict, plain.says(&packet).0, "{name}, {direction}");
                let blamed = |world: &Host0| {
                    blame(&world.network, &world.numbers, &packet, &world.path(&packet)).map(|blame| blame.cause)
                };
                assert_eq!(blamed(&world), blamed(&plain), "{name}, {direction}");
            }
        }
    }
}

/// What a guarded port may say of itself in IPv6's own messages is copied where it may, and what it may not is not.
#[test]
fn neighbour_messages_are_copied_once_they_may_pass() {
    let mut mirrored = cloud();
    mirrored.mirror(WEB, EYE, MirrorDirection::Out);
    mirrored.ports[WEB].qos.dscp_mark = DscpMark::try_from(46).ok();
    let world = Host0::of(mirrored);
    let port = &world.cloud.ports[WEB];
    let number = world.numbers.of(port).unwrap();
    let (mac, own) = (port.mac, port.mac.link_local());
    let near = world.cloud.address6(NEAR).unwrap();
    let solicit = Packet::neighbour_solicit(number, (mac, own), near);
    for (name, packet, is_copied) in [
        ("it asks for near", solicit.clone(), true),
        ("it asks as another", solicit.with(Field::NdSll, [2, 9, 9, 9, 9, 9]), false),
        ("it asks for itself", Packet::neighbour_solicit(number, (mac, Ipv6Addr::UNSPECIFIED), own), true),
        ("it asks for routers", Packet::router_solicit(number, (mac, own)), true),
        ("it is no router", Packet::router_advert(number, (mac, own)), false),
        ("its own address", Packet::neighbour_advert(number, (mac, own), own), true),
        ("another's", Packet::neighbour_advert(number, (mac, own), near), false),
        ("DHCPv6", Packet::dhcp6_solicit(number, mac), true),
    ] {
        let path = world.path(&packet);
        assert_eq!(path.copies().len(), usize::from(is_copied), "{name}: {path}");
    }
    // The packet is marked, its copy is as the machine sent it: by either version of IP.
    for to in [IpAddr::from(world.cloud.address(FAR)), near.into()] {
        let path = world.path(&world.packet(WEB, to, Payload::ping(to)));
        let mark = |packet: &Packet| packet.get(Field::IpDscp);
        assert_eq!(path.mirrored.iter().map(|copy| mark(&copy.outcome.leaving)).collect::<Vec<_>>(), [0], "{path}");
        assert!(path.outcomes.iter().all(|outcome| mark(&outcome.leaving) == 46), "{path}");
    }
}

/// A copy of a sub-port's frame has no tag; one for a sub-port has the tag of that. Who sent a frame gets the copy of it back, though Open vSwitch
/// sends nothing out of the port that it came in by; what is flooded is no copy for its own sender.
#[test]
fn tags_and_ways_back() {
    let mut mirrored = trunked();
    mirrored.mirror(SUB, EYE, MirrorDirection::Both);
    mirrored.mirror(WEB, NEAR, MirrorDirection::Both);
    let world = Host0::of(mirrored);
    let tags = |path: &Path| path.mirrored.iter().map(|copy| copy.outcome.leaving.vlan()).collect::<Vec<_>>();
    let path = world.path(&world.packet(SUB, world.cloud.address(FAR), HTTP));
    assert_eq!((path.copies(), tags(&path)), (vec!["a copy goes to port eye of this host".to_owned()], vec![None]));
    let path = world.path(&world.packet(WEB, world.cloud.address(SUB), HTTP));
    assert_eq!(tags(&path), [None, None], "{path}");
    let path = world.path(&world.arp(SUB, world.cloud.address(SUB), Ipv4Addr::new(10, 0, 2, 1)));
    assert_eq!(tags(&path), [None, None], "{path}");

    let path = world.path(&world.packet(NEAR, world.cloud.address(WEB), ECHO));
    assert_eq!(path.copies(), ["a copy goes to port near of this host"], "{path}");
    let path = world.path(&world.arp(WEB, world.cloud.address(WEB), Ipv4Addr::new(10, 0, 1, 99)));
    assert_eq!(path.mirrored.len(), 1, "nothing that it sent is delivered to it: {path}");

    let mut mirrored = trunked();
    mirrored.mirror(WEB, SUB, MirrorDirection::Both);
    let world = Host0::of(mirrored);
    let path = world.path(&world.packet(WEB, world.cloud.address(FAR), HTTP));
    assert_eq!(
        (path.copies(), tags(&path)),
        (vec!["a copy goes to port near.7 of this host".to_owned()], vec![Some(7)])
    );
}

/// A copy that comes by tunnel goes straight to its port, whatever that port's groups say; where the port is not, nothing is known of it.
#[test]
fn a_copy_out_of_the_tunnel_is_not_judged() {
    let mut cloud = trunked();
    for (port, to) in [(FAR, EYE), (OTHER_EYE, SUB)] {
        cloud.mirror(port, to, MirrorDirection::Both);
    }
    let vnis = [EYE, SUB].map(|to| cloud.mirror_vni(to));
    let world = Host0::of(cloud);
    let packet = world.packet(NEAR, world.cloud.address(FAR), HTTP);
    let arrived = world.path(&packet.out_of_tunnel(VXLAN, (endpoint(1), vnis[0])));
    assert_eq!(arrived.verdicts().iter().map(ToString::to_string).collect::<Vec<_>>(), ["delivered to port eye"]);
    assert_eq!(arrived.hops.iter().map(|hop| hop.name.as_str()).collect::<Vec<_>>(), ["classify", "arrive"]);
    let arrived = world.path(&packet.out_of_tunnel(VXLAN, (endpoint(1), vnis[1])));
    assert_eq!(arrived.outcomes[0].leaving.vlan(), Some(7), "{arrived}");
    let elsewhere = compile(&world.cloud.host(1), &world.cloud.numbers(1));
    let lost = trace(&elsewhere, &packet.out_of_tunnel(VXLAN, (endpoint(0), vnis[0])), Connection::New);
    assert!(matches!(lost.why_not(), Some(Verdict::Dropped { table, .. }) if table == "arrive"), "{lost}");
    let guarded = world.packet(EYE, world.cloud.address(OTHER_EYE), ECHO);
    let guarded = blame(&world.network, &world.numbers, &guarded, &world.path(&guarded)).unwrap();
    assert_eq!(guarded.cause, Cause::NoGroup, "what it sends is judged as ever");
}

/// A host that knows of the mirrored port's host by nothing but the mirror takes in its copies, and nobody else's.
#[test]
fn copies_come_from_hosts_of_mirrored_ports_only() {
    let mut cloud = cloud();
    cloud.mirror(WEB, OTHER_EYE, MirrorDirection::Both);
    let own = cloud.ports[OTHER_EYE].id;
    let mut network = cloud.host(1);
    network.ports.retain(|id, _| *id == own);
    network.routers.clear();
    network.check().unwrap();
    let packet = Host0::of(cloud.clone()).packet(WEB, cloud.address(NEAR), ECHO);
    let arrives = |network: &HostNetwork, from: Ipv4Addr| {
        let set = compile(network, &cloud.numbers(1));
        let copy = packet.out_of_tunnel(VXLAN, (from, cloud.mirror_vni(OTHER_EYE)));
        trace(&set, &copy, Connection::New).reaches(cloud.ports[OTHER_EYE].key)
    };
    assert!(arrives(&network, endpoint(0)) && !arrives(&network, endpoint(2)));
    network.mirrors.values_mut().for_each(|target| target.senders.clear());
    assert!(!arrives(&network, endpoint(0)));
}

/// A packet of any kind from any port of a random cloud.
#[cfg(test)]
fn random_packet(cloud: &Cloud, numbers: &PortNumbers, from: usize, random: &mut Random) -> Option<Packet> {
    let port = &cloud.ports[from];
    let number = numbers.of(port)?;
    let to = random.below(cloud.ports.len());
    let source = if random.once_in(8) { random.below(cloud.ports.len()) } else { from };
    let feet = cloud.routers.iter().flat_map(|router| &router.interfaces).map(|foot| foot.mac);
    let macs: Vec<Mac> = cloud.ports.iter().map(|port| port.mac).chain(feet).chain([Mac::BROADCAST]).collect();
    let target = if random.once_in(2) { cloud.mac(to) } else { *random.pick(&macs) };
    let six = cloud.address6(source).zip(cloud.address6(to)).filter(|_| random.once_in(2));
    let packet = match six {
        Some((_, at)) if random.once_in(4) => {
            let sender = *random.pick(&[Ipv6Addr::UNSPECIFIED, port.mac.link_local(), cloud.mac(to).link_local()]);
            Packet::neighbour_solicit(number, (port.mac, sender), at)
        }
        Some(addresses) => Packet::ip(number, (port.mac, target), addresses, random.payload(Ethertype::IPv6)),
        None if random.once_in(5) => {
            let sender = *random.pick(&[cloud.address(source), Ipv4Addr::UNSPECIFIED]);
            Packet::arp_request(number, (port.mac, sender), cloud.address(to))
        }
        None => {
            let addresses = (cloud.address(source), cloud.address(to));
            Packet::ip(number, (port.mac, target), addresses, random.payload(Ethertype::IPv4))
        }
    };
    Some(packet.sent_by(port))
}

/// Who is delivered a packet, and who gets copies of it, by number of the port, in the end and by all hosts.
#[cfg(test)]
fn receivers(world: &World, host: usize, packet: &Packet, connection: Connection) -> (Vec<usize>, Vec<usize>) {
    let (mut delivered, mut copied) = (Vec::new(), Vec::new());
    let path = trace(&world.sets[host], packet, connection);
    for outcome in &path.outcomes {
        match &outcome.verdict {
            // Where a port is awaited only, nothing of it is copied.
            Verdict::Delivered { port, .. } if outcome.larger_than.is_none() => {
                let port = world.cloud.ports.iter().find(|it| it.key == *port).unwrap();
                delivered.extend(port.is_on(topology::host_id(host)).then_some(port.key));
            }
            Verdict::Answered { .. } => {
                let number = outcome.leaving.get(Field::InPort);
                let number = openflow::flow::PortNo(u32::try_from(number).unwrap_or_default());
                delivered.extend(world.sets[host].port_at(number, outcome.leaving.vlan()));
            }
            Verdict::Tunnelled { endpoint: at, vni, .. } if outcome.larger_than.is_none() => {
                let other = (0..world.sets.len()).find(|other| endpoint(*other) == *at).unwrap();
                let arrival = world.arrival(host, other, outcome, *vni);
                let (more, copies) = receivers(world, other, &arrival, connection);
                delivered.extend(more.into_iter().map(|port| world.cloud.ports[port].key));
                copied.extend(copies);
            }
            _ => {}
        }
    }
    let number_of = |key: u32| world.cloud.ports.iter().position(|port| port.key == key).unwrap();
    for copy in path.mirrored.iter().filter(|copy| copy.outcome.larger_than.is_none()) {
        match &copy.outcome.verdict {
            Verdict::Delivered { port, .. } => copied.push(number_of(*port)),
            Verdict::Tunnelled { endpoint: at, vni, .. } => {
                let other = (0..world.sets.len()).find(|other| endpoint(*other) == *at).unwrap();
                let arrival = world.arrival(host, other, &copy.outcome, *vni);
                let arrived = trace(&world.sets[other], &arrival, connection);
                let [outcome] = arrived.outcomes.as_slice() else { panic!("one copy for one port: {arrived}") };
                assert!(arrived.mirrored.is_empty(), "a copy is copied: {arrived}");
                let Verdict::Delivered { port, .. } = outcome.verdict else { panic!("a copy is lost: {arrived}") };
                copied.push(number_of(port));
            }
            other => panic!("a copy is {other}"),
        }
    }
    copied.sort_unstable();
    (delivered.into_iter().map(number_of).collect(), copied)
}

/// Whether a port may send a packet: it got past the two tables that ask, or they meet it with silence.
#[cfg(test)]
fn may_send(path: &Path) -> bool {
    let refused = |verdict: &Verdict| match verdict {
        Verdict::Dropped { table, why } => {
            (table == "classify" || table == "guard") && !why.contains("it asks whether")
        }
        _ => false,
    };
    !path.outcomes.iter().any(|outcome| refused(&outcome.verdict))
}

proptest! {
    /// In random clouds, with mirrors within and across hosts: just who was named gets a copy, one for what a mirrored port may send and one for what
    /// it is delivered, and a packet goes where it goes without mirrors.
    #[test]
    fn copies_go_to_the_named_port_and_to_nobody_else(seed in any::<u64>()) {
        let mut random = Random::new(seed);
        let cloud = random::cloud(&mut random);
        let mut bare = cloud.clone();
        bare.ports.iter_mut().for_each(|port| port.mirror = None);
        let numbers = |cloud: &Cloud, host: usize| cloud.numbers(host);
        let (world, plain) = (World::of(cloud, HOSTS, numbers), World::of(bare, HOSTS, numbers));
        let target = |port: &Port| {
            let to = port.mirror.map(|mirror| mirror.to);
            world.cloud.ports.iter().position(|other| Some(other.id) == to)
        };
        for _ in 0..40 {
            let from = random.below(world.cloud.ports.len());
            let host = world.host_of(from);
            let Some(packet) = random_packet(&world.cloud, &world.numbers[host], from, &mut random) else { continue };
            let connection = *random.pick(&[Connection::New, Connection::Established, Connection::Reply]);
            let (delivered, copied) = receivers(&world, host, &packet, connection);
            let path = trace(&world.sets[host], &packet, connection);
            let sender = &world.cloud.ports[from];
            let is_out = |port: &Port| port.mirror.is_some_and(|mirror| mirror.direction.has_out());
            let is_in = |port: &Port| port.mirror.is_some_and(|mirror| mirror.direction.has_in());
            let sent = target(sender).filter(|_| is_out(sender) && may_send(&path));
            let received = delivered.iter().map(|port| &world.cloud.ports[*port]).filter(|port| is_in(port));
            let mut wanted: Vec<usize> = sent.into_iter().chain(received.filter_map(target)).collect();
            wanted.sort_unstable();
            assert_eq!(copied, wanted, "{} of {}\n{path}", packet.to_text(), sender.name);
            let kept = |path: &Path| {
                let mut verdicts = path.verdicts();
                verdicts.retain(|verdict| !matches!(verdict, Verdict::Dropped { .. }));
                verdicts
            };
            let without = trace(&plain.sets[host], &packet, connection);
            assert_eq!(kept(&path), kept(&without), "{} of {}", packet.to_text(), sender.name);
        }
    }
}

/// The switch takes the flows, and says of packets and their copies what the model says; for a port that is not mirrored the data path gets what it
/// gets without any mirror.
#[test]
fn the_model_and_the_switch_agree() {
    require!(Need::Root, Need::OpenVswitch);
    let plain = trunked();
    let rig = Rig::start(&plain, 0).unwrap();
    let set = rig.install(&plain).unwrap();
    let others = |network: &HostNetwork| {
        let packet = |from: usize, to: usize| {
            Packet::from_port(network, &rig.numbers, &plain.ports[from], plain.address(to), HTTP).unwrap()
        };
        let says = |packet: Packet| {
            let said = rig.switch.appctl(&["ofproto/trace", BRIDGE, &packet.to_text()]).unwrap();
            let of_data_path = |line: &&str| line.starts_with("Megaflow:") || line.starts_with("Datapath actions:");
            let lines: Vec<String> = said.lines().filter(of_data_path).map(str::to_owned).collect();
            assert!(lines.len() > 1, "{said}");
            // Which recirculation it is differs each time.
            lines.iter().map(|line| line.split("recirc").next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        };
        [(NEAR, FAR), (SUB, FAR), (NEAR, SUB)].map(|(from, to)| says(packet(from, to)))
    };
    let before = others(&plain.host(0));
    assert!(dataplane::diff(&set, &rig.installed().unwrap()).is_empty());
    let clouds = [
        vec![(WEB, EYE, MirrorDirection::Both)],
        vec![(WEB, OTHER_EYE, MirrorDirection::Both), (FAR, EYE, MirrorDirection::In)],
        vec![(WEB, SUB, MirrorDirection::Both), (EYE, NEAR, MirrorDirection::In)],
        vec![(SUB, OTHER_EYE, MirrorDirection::Both), (NEAR, EYE, MirrorDirection::Out)],
        vec![(SUB, NEAR, MirrorDirection::Both), (WEB, NEAR, MirrorDirection::Both), (FAR, NEAR, MirrorDirection::In)],
    ];
    for (round, mirrors) in clouds.iter().enumerate() {
        let mut cloud = plain.clone();
        for (port, to, direction) in mirrors {
            cloud.mirror(*port, *to, *direction);
        }
        cloud.ports[WEB].port_security = round % 2 == 0;
        let set = rig.install(&cloud).unwrap();
        let changes = dataplane::diff(&set, &rig.installed().unwrap());
        assert!(changes.is_empty(), "{changes:#?}");
        if round < 2 {
            assert_eq!(others(&cloud.host(0)), before, "what is not mirrored is as it was");
        }
        let packets = all_packets(Host0::of(cloud));
        assert!(packets.len() > 100, "{} packets", packets.len());
        rig.ask_all(&set, &packets);
    }
}

/// Packets of every kind between all ports, and out of the tunnel with the VNIs of networks and mirrors.
#[cfg(test)]
fn all_packets(world: Host0) -> Vec<Packet> {
    let cloud = &world.cloud;
    let mut packets = Vec::new();
    for from in [WEB, NEAR, EYE, SUB] {
        let (port, number) = (&cloud.ports[from], world.numbers.of(&cloud.ports[from]).unwrap());
        for to in (0..cloud.ports.len()).filter(|to| *to != from) {
            let addresses = [Some(IpAddr::from(cloud.address(to))), cloud.address6(to).map(IpAddr::from)];
            for address in addresses.into_iter().flatten() {
                let carried = [Payload::ping(address), HTTP, Payload::Protocol(47)];
                let sent = |payload| Packet::from_port(&world.network, &world.numbers, port, address, payload).ok();
                packets.extend(carried.into_iter().filter_map(sent));
            }
            packets.push(world.arp(from, cloud.address(from), cloud.address(to)));
        }
        packets.push(world.arp(from, Ipv4Addr::UNSPECIFIED, cloud.address(from)));
        for last in [1, 99] {
            packets.push(world.arp(from, cloud.address(from), Ipv4Addr::new(10, 0, 1, last)));
        }
        let (mac, own) = (port.mac, port.mac.link_local());
        for sender in [own, Ipv6Addr::UNSPECIFIED] {
            packets.push(Packet::neighbour_solicit(number, (mac, sender), own).sent_by(port));
            packets.push(Packet::router_solicit(number, (mac, sender)).sent_by(port));
        }
        packets.push(Packet::neighbour_advert(number, (mac, own), own).sent_by(port));
        packets.push(Packet::dhcp_discover(number, mac).sent_by(port));
        packets.extend(Packet::from_port(&world.network, &world.numbers, port, Ipv4Addr::new(10, 0, 1, 1), ECHO));
    }
    let arriving = world.packet(NEAR, cloud.address(FAR), HTTP).with(Field::EthDst, cloud.mac(WEB).bytes());
    let arriving = arriving.with(Field::Ipv4Dst, cloud.address(WEB)).with(Field::Ipv4Src, cloud.address(FAR));
    let vnis = (0..cloud.ports.len()).map(|port| cloud.mirror_vni(port)).chain([cloud.networks[BLUE].vni.get()]);
    packets.extend(vnis.map(|vni| arriving.out_of_tunnel(VXLAN, (endpoint(1), vni))));
    packets
}

/// Frames as tcpdump writes them down.
struct Capture {
    file: PathBuf,
    _tcpdump: Daemon,
}

impl Capture {
    /// Listens to what a machine sends (`out`) or gets (`in`).
    fn start(machine: &Machine, side: &str, dir: &FilePath, name: &str) -> Result<Self> {
        let (file, log) = (dir.join(format!("{name}.pcap")), dir.join(format!("{name}.log")));
        let path = file.to_str().context("path of the capture")?;
        let words = ["tcpdump", "-Z", "root", "-n", "-U", "-s", "0", "-Q", side, "-i", "eth0", "-w", path];
        let tcpdump = machine.namespace.start(name, &words, &log)?;
        wait_for("tcpdump to listen", LIMIT, || {
            Ok(fs::read_to_string(&log).unwrap_or_default().contains("listening on").then_some(()))
        })?;
        Ok(Self { file, _tcpdump: tcpdump })
    }

    /// The frames so far, in order. Source: pcap-savefile(5).
    fn frames(&self) -> Result<Vec<Vec<u8>>> {
        let octets = fs::read(&self.file)?;
        let mut rest = octets.get(24..).unwrap_or_default();
        let mut frames = Vec::new();
        while let Some((header, behind)) = rest.split_at_checked(16) {
            let length = usize::try_from(u32::from_le_bytes(header[8..12].try_into()?))?;
            let Some((frame, behind)) = behind.split_at_checked(length) else { break };
            frames.push(frame.to_vec());
            rest = behind;
        }
        Ok(frames)
    }
}

/// What marks the beginning of what is compared: the content of one ping.
const MARK: &str = "ba5a17";

/// The frames behind the last one with the mark, sorted.
fn behind_mark(frames: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
    let mark = [0xba, 0x5a, 0x17].repeat(8);
    let at = frames.iter().rposition(|frame| frame.windows(mark.len()).any(|part| part == mark))?;
    let mut behind = frames[at + 1..].to_vec();
    behind.sort_unstable();
    Some(behind)
}

/// Has a machine speak in all ways, and holds what its mirror saw against what it sent and was sent itself.
struct Stage<'a> {
    web: &'a Machine,
    near: &'a Machine,
    far: &'a Machine,
    outside: &'a Machine,
    cloud: &'a Cloud,
}

impl Stage<'_> {
    fn compare(&self, eye: &Machine, direction: MirrorDirection) -> Result<usize> {
        let dir = tempfile::tempdir()?;
        let copies = Capture::start(eye, "in", dir.path(), "copies")?;
        let sent = Capture::start(self.web, "out", dir.path(), "sent")?;
        let received = Capture::start(self.web, "in", dir.path(), "received")?;
        let near = self.cloud.address(NEAR).to_string();
        self.web.namespace.run(&["ping", "-q", "-c", "1", "-W", "3", "-p", MARK, &near])?;
        // What is seen late must not be before the mark.
        let marked = |capture: &Capture| wait_for("the mark", LIMIT, || Ok(behind_mark(&capture.frames()?)));
        marked(&sent)?;
        marked(&received)?;
        marked(&copies)?;
        self.speak()?;
        let wanted = || -> Result<Vec<Vec<u8>>> {
            let mut wanted = Vec::new();
            for capture in [&sent, &received].into_iter().zip([direction.has_out(), direction.has_in()]) {
                if let (capture, true) = capture {
                    wanted.extend(behind_mark(&capture.frames()?).context("the mark is gone")?);
                }
            }
            wanted.sort_unstable();
            Ok(wanted)
        };
        let found = wait_for("the mirror to have seen what the machine did", LIMIT, || {
            let (wanted, seen) = (wanted()?, behind_mark(&copies.frames()?).context("the mark is gone")?);
            Ok((wanted == seen).then_some(seen.len()))
        });
        found.with_context(|| {
            let seen = copies.frames().ok().and_then(|frames| behind_mark(&frames)).unwrap_or_default();
            let wanted = wanted().unwrap_or_default();
            let only = |mine: &[Vec<u8>], other: &[Vec<u8>]| {
                mine.iter()
                    .filter(|frame| !other.contains(frame))
                    .map(|frame| format!("{frame:02x?}"))
                    .collect::<Vec<_>>()
            };
            format!(
                "{direction}: {} frames, {} copies\nnot copied: {:#?}\nnot of the machine: {:#?}",
                wanted.len(),
                seen.len(),
                only(&wanted, &seen),
                only(&seen, &wanted)
            )
        })
    }

    /// Pings and connections both ways, within the network, routed, to another host and out by a floating IP, by both versions of IP; ARP, a probe,
    /// and what the host answers itself.
    fn speak(&self) -> Result<()> {
        let Self { web, near, far, outside, cloud } = self;
        let (web_6, near_6, far_6) = (cloud.address6(WEB), cloud.address6(NEAR), cloud.address6(FAR));
        let six = |address: Option<Ipv6Addr>| address.context("an IPv6 address").map(IpAddr::from);
        for target in [cloud.address(NEAR).into(), cloud.address(FAR).into(), six(near_6)?, six(far_6)?] {
            ensure!(web.pings(target)? == 3, "web to {target}");
        }
        for target in [cloud.address(WEB).into(), six(web_6)?] {
            ensure!(near.pings(target)? == 3 && far.pings(target)? == 3, "near and far to {target}");
        }
        ensure!(web.pings(Ipv4Addr::new(10, 0, 1, 1))? == 3, "the router answers");
        ensure!(web.pings(BEYOND)? == 3 && outside.pings(Ipv4Addr::new(203, 0, 113, 50))? == 3, "the floating IP");
        let there = far.listen(80)?;
        ensure!(web.reaches(cloud.address(FAR), &there)? && web.reaches(six(far_6)?, &there)?, "web by TCP");
        let (here, shut) = (web.listen(80)?, web.listen(22)?);
        ensure!(far.reaches(cloud.address(WEB), &here)? && far.reaches(six(web_6)?, &here)?, "far by TCP");
        ensure!(!far.intrudes(cloud.address(WEB), &shut)?, "no rule lets that in");
        web.ask_dhcp()?;
        let _nobody =
            web.namespace.run(&["busybox", "arping", "-q", "-D", "-c", "1", "-w", "1", "-I", "eth0", "10.0.1.99"]);
        Ok(())
    }
}

/// Two hosts and the data centre: who gets copies, on either host, sees exactly what it should of a machine that is busy, whichever direction; and
/// the machine is as well off when nobody is there to get them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_copies_are_what_the_machine_sent_and_was_sent() -> Result<()> {
    require!(
        Need::Root,
        Need::OpenVswitch,
        Need::Program("ping"),
        Need::Program("busybox"),
        Need::Program("tcpdump"),
        Need::Program("ethtool")
    );
    let mut cloud = cloud();
    let dc = outside::datacentre()?;
    let nothing = |host| HostNetwork::empty(host_id(host), endpoint(host));
    let wires = [("dc", &dc)];
    let hosts = [Host::start_wired(nothing(0), &wires).await?, Host::start_wired(nothing(1), &wires).await?];
    hosts[0].link(&hosts[1])?;
    for host in &hosts {
        // The host's end of a link to a machine must not speak to it by itself.
        let off = ["all", "default"].map(|which| format!("net.ipv6.conf.{which}.disable_ipv6=1"));
        host.switch.namespace().run(&["sysctl", "-qw", &off[0], &off[1]])?;
    }
    let outside = outside::gateway(&dc)?;
    let mut machines = Vec::new();
    for (port, host) in [(WEB, 0), (NEAR, 0), (FAR, 1), (EYE, 0), (OTHER_EYE, 1)] {
        let machine = hosts[host].plug(&cloud.ports[port]).await?;
        // What it sends by the address of its former MAC address would be no business of the mirror.
        machine.restart_link()?;
        machine.configure_both(cloud.address(port), cloud.address6(port))?;
        machines.push(machine);
    }
    let [web, near, far, eye, other_eye] = machines.as_slice() else { anyhow::bail!("five machines") };
    for (number, host) in hosts.iter().enumerate() {
        host.program(cloud.host(number)).await?;
    }
    eventually("does the gateway answer", || Ok(web.pings(GATEWAY_AT)? == 3))?;
    let all = cloud.clone();
    let stage = Stage { web, near, far, outside: &outside, cloud: &all };
    stage.speak()?;
    for (to, monitor) in [(EYE, eye), (OTHER_EYE, other_eye)] {
        for direction in DIRECTIONS {
            cloud.mirror(WEB, to, direction);
            for (number, host) in hosts.iter().enumerate() {
                host.program(cloud.host(number)).await?;
            }
            let count = stage.compare(monitor, direction)?;
            assert!(count > 20, "{direction}: {count} frames");
        }
    }

    // Who gets the copies may be on a host that is not there, be nowhere, or have been unplugged.
    let gone = |cloud: &mut Cloud, host: Option<usize>| {
        let binding = &mut cloud.ports[OTHER_EYE].binding;
        match (binding.as_mut(), host) {
            (Some(binding), Some(host)) => (binding.host, binding.tunnel) = (host_id(host), endpoint(host)),
            _ => *binding = None,
        }
    };
    for host in [Some(7), None] {
        gone(&mut cloud, host);
        for (number, host) in hosts.iter().enumerate() {
            host.program(cloud.host(number)).await?;
        }
        stage.speak().with_context(|| format!("copies go to {host:?}"))?;
    }
    cloud.mirror(WEB, EYE, MirrorDirection::Both);
    hosts[0].program(cloud.host(0)).await?;
    hosts[0].host.remove_port(&cloud.ports[EYE].tap_name()).await?;
    hosts[0].switch.settle()?;
    stage.speak().context("who gets copies is unplugged")?;
    Ok(())
}

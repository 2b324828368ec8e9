//! Shared SNAT: in the model, in a real switch, and with real packets of two hosts, one of which is the gateway of routers, to a station of the data
//! centre.

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

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use basalt_tests::require;
use basalt_tests::skip::Need;
use basalt_tests::tcp::accept;
use dataplane::compile::Stations;
use dataplane::trace::{Cause, Connection, Outcome, Packet, Path, Payload, Verdict, blame};
use dataplane::zone::{snat_zones, zones};
use dataplane::{PortNumbers, compile, trace};
use hosts::{Host, Machine};
use model::Mac;
use model::network::StaticRoute;
use model::security::{Direction, Ethertype, Remote};
use model::spec::HostNetwork;
use openflow::flow::Field;
use outside::{DC, FAR, GATEWAY, GATEWAY_AT, eventually, plug, wide};
use proptest::prelude::{ProptestConfig, any, proptest};
use rig::Rig;
use topology::random::{self, HOSTS, Random, lets_stranger};
use topology::{Cloud, PING, VXLAN, endpoint, host_id, tcp, udp};
use world::World;

const BLUE_1: usize = 0;
const BLUE_2: usize = 1;
const BLUE_3: usize = 2;
const BLUE_4: usize = 3;
const RED_1: usize = 4;
const OUTER_1: usize = 5;
/// The routers of blue and red, and the last octets of their addresses outside.
const MAIN: usize = 0;
const OTHER: usize = 1;
const MAIN_AT: u8 = 40;
const OTHER_AT: u8 = 41;
const NEAR: Ipv4Addr = at(9);
const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const HTTP: Payload = Payload::Tcp { source: 40_000, target: 80 };
const SSH: Payload = Payload::Tcp { source: 40_000, target: 22 };
const DNS: Payload = Payload::Udp { source: 40_000, target: 53 };
const ECHO: Payload = Payload::Icmp { kind: 8, code: 0 };
/// How long an answer may take, and how long is waited for one that must not come.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
const SILENCE: Duration = Duration::from_millis(700);

const fn at(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, last)
}

const fn mac(last: u8) -> Mac {
    Mac::new([2, 3, 0, 0, 0, last])
}

/// Blue and red are tenants with the same addresses, each with a router that leads out to VLAN 100 and has an address there; host 0 is the gateway of
/// both. Of blue, 1 and 4 are on host 0, 2 and 3 on host 1, 3 and 4 with floating IPs; red-1 on host 1 has the address of blue-2. outer-1 is on the
/// network outside. All may be pinged, and asked on TCP port 80.
fn cloud() -> Cloud {
    let mut cloud = Cloud::default();
    let blue = cloud.network("blue", "10.0.1.0/24");
    let red = cloud.network("red", "10.0.1.0/24");
    let outer = cloud.network("outer", "203.0.113.0/24");
    cloud.provide(outer, "dc", Some(100));
    cloud.router("main", &[blue]);
    cloud.router("other", &[red]);
    let all = cloud.group("all");
    cloud.allow(all, PING, Remote::Any);
    cloud.allow(all, tcp(80, 80), Remote::Any);
    cloud.allow(all, udp(9000, 9000), Remote::Any);
    let plugged = [
        ("blue-1", blue, 0, 11),
        ("blue-2", blue, 1, 12),
        ("blue-3", blue, 1, 13),
        ("blue-4", blue, 0, 14),
        ("red-1", red, 1, 12),
        ("outer-1", outer, 0, 60),
    ];
    for (name, network, host, last) in plugged {
        cloud.port(name, network, host, last, &[all]);
    }
    for (router, last) in [(MAIN, MAIN_AT), (OTHER, OTHER_AT)] {
        cloud.lead_out(router, outer);
        cloud.share(router, &[0, 1], last);
    }
    cloud.float(MAIN, BLUE_3, 50);
    cloud.float(MAIN, BLUE_4, 51);
    cloud
}

impl World {
    #[cfg(test)]
    fn new(cloud: Cloud, hosts: usize) -> Self {
        let outer = cloud.networks.last().unwrap().id;
        let mut stations = Stations::from([
            ((outer, GATEWAY_AT.into()), GATEWAY),
            ((outer, NEAR.into()), Mac::new([2, 9, 0, 0, 0, 9])),
        ]);
        for floating in cloud.routers.iter().filter_map(|it| it.external.as_ref()).flat_map(|it| &it.floating_ips) {
            stations.insert((outer, floating.address.into()), floating.mac);
        }
        Self::of(cloud, hosts, |cloud, host| PortNumbers { stations: stations.clone(), ..cloud.numbers(host) })
    }

    /// From the wire to the address of a router: an answer to a connection of `to`, or what nobody asked for.
    #[cfg(test)]
    fn answer(&self, last: u8, to: Ipv4Addr, payload: Payload) -> Packet {
        let packet = Packet::ip(DC, (GATEWAY, mac(last)), (FAR, at(last)), payload).in_vlan(100);
        packet.with(Field::CtNwSrc, to)
    }

    #[cfg(test)]
    fn path(&self, host: usize, packet: &Packet, connection: Connection) -> Path {
        trace(&self.sets[host], packet, connection)
    }
}

/// Ports without a floating IP leave on the gateway host as their router, wherever they are; one with a floating IP leaves where it is, as that.
#[test]
fn ports_leave_as_their_router() {
    let world = World::new(cloud(), 2);
    let cases = [(BLUE_1, 0, MAIN_AT), (BLUE_2, 0, MAIN_AT), (RED_1, 0, OTHER_AT), (BLUE_3, 1, 50), (BLUE_4, 0, 51)];
    for (port, gateway, last) in cases {
        for (to, station) in [(FAR, GATEWAY), (NEAR, Mac::new([2, 9, 0, 0, 0, 9]))] {
            for payload in [ECHO, HTTP, DNS] {
                let name = &world.cloud.ports[port].name;
                let ends = world.ends(world.host_of(port), &world.from(port, to, payload), Connection::New);
                let [(host, out)] = &ends[..] else { panic!("{name} to {to}: {ends:?}") };
                let said = out.verdict.to_string();
                assert_eq!((*host, said.as_str()), (gateway, "sent out to physical network dc in VLAN 100"), "{name}");
                let (source, target) = (out.leaving.address(Field::Ipv4Src), out.leaving.address(Field::Ipv4Dst));
                assert_eq!((source, target), (at(last), to), "{name}");
                assert_eq!(out.leaving.get(Field::EthSrc), u128::from_be_bytes(wide(mac(last))), "{name}");
                assert_eq!(out.leaving.get(Field::EthDst), u128::from_be_bytes(wide(station)), "{name} to {to}");
                assert_eq!(out.leaving.get(Field::IpTtl), 63, "routed once: {name}");
            }
        }
    }
    let path = world.path(0, &world.from(BLUE_1, FAR, HTTP), Connection::New).to_string();
    assert!(path.contains("it leaves as 203.0.113.40"), "{path}");
    assert!(path.contains("translates source 10.0.1.11 to 203.0.113.40, ports 1024 to 65535"), "{path}");
    let tunnel = world.path(1, &world.from(BLUE_2, FAR, HTTP), Connection::New);
    assert!(tunnel.to_string().contains("from the router's gateway host"), "{tunnel}");
    let out = &tunnel.outcomes[0].leaving;
    assert_eq!(out.address(Field::Ipv4Src), world.cloud.address(BLUE_2), "it is the gateway that translates");
    let expired = world.from(BLUE_2, FAR, ECHO).with(Field::IpTtl, 1_u8);
    assert!(world.says(1, &expired, Connection::New).ends_with("its time to live ran out"));
}

/// Answers find the port that asked, here or by tunnel; of two tenants with the same addresses each its own. What nobody asked for goes nowhere.
#[test]
fn answers_come_back_and_nothing_else() {
    let world = World::new(cloud(), 2);
    let reply = Payload::Tcp { source: 443, target: 40_000 };
    for (last, port) in [(MAIN_AT, BLUE_1), (MAIN_AT, BLUE_2), (OTHER_AT, RED_1)] {
        let (name, fixed, home) = (&world.cloud.ports[port].name, world.cloud.address(port), world.host_of(port));
        let packet = world.answer(last, fixed, reply);
        for connection in [Connection::Reply, Connection::Related] {
            assert_eq!(world.says(0, &packet, connection), format!("host {home}: delivered to port {name}"));
        }
        let (_, end) = &world.ends(0, &packet, Connection::Reply)[0];
        assert_eq!((end.leaving.address(Field::Ipv4Dst), end.leaving.get(Field::IpTtl)), (fixed, 63));
        for connection in [Connection::New, Connection::Established, Connection::Invalid] {
            let said = world.says(0, &packet, connection);
            assert!(said.starts_with("host 0: dropped in nat: "), "{said}");
        }
        let at_the_other = world.says(1, &packet, Connection::Reply);
        assert!(at_the_other.starts_with("host 1: dropped in forward"), "not its gateway: {at_the_other}");
    }
    let path = world.path(0, &world.answer(MAIN_AT, world.cloud.address(BLUE_2), reply), Connection::Reply);
    assert!(path.to_string().contains("translates destination 203.0.113.40 back to 10.0.1.12"), "{path}");
    let unasked = world.says(0, &world.answer(MAIN_AT, FAR, SSH), Connection::New);
    assert!(unasked.ends_with("that it belongs to, and no port forwarding is for it"));
    let said = world.says(0, &world.from(OUTER_1, at(MAIN_AT), HTTP), Connection::New);
    assert!(said.contains("nobody behind the router has begun"), "from a machine on the network outside: {said}");
}

/// Hosts take what comes to UDP port 4789 for tunnels of other hosts: nothing leaves for it, neither by a floating IP nor by a router's address.
#[test]
fn no_machine_speaks_outside_as_hosts_do_among_themselves() {
    let world = World::new(cloud(), 2);
    let tunnel = |target| Payload::Udp { source: 40_000, target };
    for (port, leaves_on) in [(BLUE_1, 0), (BLUE_2, 0), (BLUE_3, 1), (BLUE_4, 0), (RED_1, 0)] {
        let said = |target| world.says(world.host_of(port), &world.from(port, FAR, tunnel(target)), Connection::New);
        let drop = "dropped in output: UDP port 4789 is for tunnels between hosts, no machine leaves the cloud by it";
        assert_eq!(said(4789), format!("host {leaves_on}: {drop}"));
        assert!(said(4790).contains("sent out to physical network dc"), "{}", said(4790));
    }
    let inside = Payload::Udp { source: 40_000, target: 4789 };
    let inside = world.from(BLUE_1, Ipv4Addr::new(10, 0, 1, 14), inside);
    assert!(!world.says(0, &inside, Connection::New).contains("tunnels between hosts"), "machines among themselves");
}

/// From outside nobody speaks with an address from behind the router, not even about a connection, and what is translated back to an address that is
/// not behind the router does not leave again.
#[test]
fn nobody_outside_pretends_to_be_inside() {
    let mut world = World::new(cloud(), 2);
    let unreachable = Payload::Icmp { kind: 3, code: 3 };
    let from =
        |source: [u8; 4]| Packet::ip(DC, (GATEWAY, mac(MAIN_AT)), (Ipv4Addr::from(source), at(MAIN_AT)), unreachable);
    let fixed = world.cloud.address(BLUE_2);
    let to_blue_2 = |source| from(source).in_vlan(100).with(Field::CtNwSrc, fixed);
    for (source, range) in [([10, 0, 1, 11], "10.0.1.0/24"), ([203, 0, 113, MAIN_AT], "203.0.113.40/32")] {
        for connection in [Connection::Reply, Connection::Related] {
            let said = world.says(0, &to_blue_2(source), connection);
            assert_eq!(
                said,
                format!("host 0: dropped in forward: router main: no sender outside has an address of {range}")
            );
        }
    }
    let honest = world.says(0, &to_blue_2(FAR.octets()), Connection::Related);
    assert_eq!(honest, "host 1: delivered to port blue-2");
    let elsewhere = Ipv4Addr::new(198, 51, 100, 9);
    let lost = world.answer(MAIN_AT, elsewhere, HTTP);
    for connection in [Connection::Reply, Connection::Related] {
        let said = world.says(0, &lost, connection);
        assert_eq!(said, "host 0: dropped in nat: router main: it is for no address behind the router");
    }
    // A network behind a machine is behind the router as well.
    let route =
        StaticRoute { destination: "198.51.100.0/28".parse().unwrap(), next_hop: world.cloud.address(BLUE_2).into() };
    world.cloud.routers[MAIN].routes.push(route);
    let world = World::new(world.cloud, 2);
    assert!(!world.says(0, &lost, Connection::Reply).contains("in nat"), "{}", world.says(0, &lost, Connection::Reply));
}

/// From behind one router to what else has an address outside: a floating IP here, a port on that network, another router.
#[test]
fn what_leaves_finds_its_way_among_neighbours_outside() {
    let world = World::new(cloud(), 2);
    let seen = |port: usize, to: Ipv4Addr| {
        let ends = world.ends(world.host_of(port), &world.from(port, to, HTTP), Connection::New);
        let (host, end) = ends.last().unwrap();
        (format!("host {host}: {}", end.verdict), end.leaving.address(Field::Ipv4Src))
    };
    let to_blue_4 = "host 0: delivered to port blue-4".to_owned();
    assert_eq!(seen(BLUE_1, at(51)), (to_blue_4.clone(), at(MAIN_AT)));
    assert_eq!(seen(RED_1, at(51)), (to_blue_4, at(OTHER_AT)), "another tenant");
    let outer = world.cloud.address(OUTER_1);
    assert_eq!(seen(BLUE_2, outer), ("host 0: delivered to port outer-1".to_owned(), at(MAIN_AT)));
    assert!(seen(BLUE_2, at(OTHER_AT)).0.contains("nobody behind the router has begun"), "{:?}", {
        seen(BLUE_2, at(OTHER_AT))
    });
    // Answers of the floating IP go back the same way.
    let reply = Payload::Tcp { source: 80, target: 40_000 };
    let back = world.from(BLUE_4, at(OTHER_AT), reply).with(Field::CtNwSrc, world.cloud.address(RED_1));
    assert_eq!(world.says(0, &back, Connection::Reply), "host 1: delivered to port red-1");
}

/// ARP for the address of a router is answered on its gateway host only.
#[test]
fn the_gateway_host_answers_arp() {
    let mut world = World::new(cloud(), 2);
    let ask = |sender: (Mac, Ipv4Addr)| Packet::arp_request(DC, sender, at(MAIN_AT)).in_vlan(100);
    let stranger = || ask((GATEWAY, GATEWAY_AT));
    let path = world.path(0, &stranger(), Connection::New);
    assert_eq!(path.verdicts()[0].to_string(), "answered by router main", "{path}");
    let reply = &path.outcomes[0].leaving;
    assert_eq!((reply.vlan(), reply.address(Field::ArpSpa)), (Some(100), at(MAIN_AT)));
    assert_eq!(reply.get(Field::ArpSha), u128::from_be_bytes(wide(mac(MAIN_AT))));
    let elsewhere = world.says(1, &stranger(), Connection::New);
    assert!(!elsewhere.contains("answered"), "{elsewhere}");
    let own = world.says(0, &ask((mac(MAIN_AT), at(MAIN_AT))), Connection::New);
    assert!(own.contains("external address 203.0.113.40 is announced by another host"), "{own}");
    // The second host of the list takes over.
    world.cloud.share(MAIN, &[1, 0], MAIN_AT);
    let moved = World::new(world.cloud, 2);
    assert_eq!(moved.says(1, &stranger(), Connection::New), "host 1: answered by router main");
    assert!(!moved.says(0, &stranger(), Connection::New).contains("answered"));
    assert!(moved.says(0, &moved.from(BLUE_1, FAR, ECHO), Connection::New).starts_with("host 1: sent out"));
}

/// What a packet that can not leave is told.
#[test]
fn what_does_not_leave_is_told_why() {
    let mut world = World::new(cloud(), 2);
    world.numbers[0].physical.clear();
    world.sets[0] = compile(&world.cloud.host(0), &world.numbers[0]);
    let unwired = world.says(1, &world.from(BLUE_2, FAR, ECHO), Connection::New);
    assert_eq!(unwired, "host 0: dropped in output: network outer: physical network dc is not plugged in on this host");
    let blamed = |world: &World, packet: &Packet| {
        let (host, home) = (world.cloud.host(0), 0);
        let found = blame(&host, &world.numbers[home], packet, &trace(&world.sets[home], packet, Connection::New));
        found.map(|found| (found.cause, found.line)).unwrap()
    };
    let (cause, line) = blamed(&world, &world.from(BLUE_1, FAR, ECHO));
    assert_eq!(cause, Cause::NotWired);
    assert!(
        line.ends_with("is not plugged in on this host, which is the gateway of router main (203.0.113.40)"),
        "{line}"
    );
    world.cloud.share(MAIN, &[], MAIN_AT);
    let mut world = World::new(world.cloud, 2);
    let (cause, line) = blamed(&world, &world.from(BLUE_1, FAR, ECHO));
    assert_eq!(cause, Cause::NoGatewayHost);
    assert!(line.contains("router main has 203.0.113.40 outside, and no host to be its gateway"), "{line}");
    let nobody = world.says(0, &world.from(BLUE_1, FAR, ECHO), Connection::New);
    assert_eq!(nobody, "host 0: dropped in output: its address has no floating IP to leave by", "blue-4 has one here");
    world.cloud.routers[MAIN].external.as_mut().unwrap().floating_ips.clear();
    let mut world = World::new(world.cloud, 2);
    let nobody = world.says(1, &world.from(BLUE_2, FAR, ECHO), Connection::New);
    assert_eq!(nobody, "host 1: dropped in route: router main: no host is up and wired to be the router's gateway");
    world.cloud.routers[MAIN].external.as_mut().unwrap().snat = None;
    let world = World::new(world.cloud, 2);
    let off = world.says(1, &world.from(BLUE_2, FAR, ECHO), Connection::New);
    assert_eq!(off, "host 1: dropped in route: router main: no port here has a floating IP of the router to leave by");
}

/// A host that is the gateway and has no port has one flow for each port that may leave by it, and a host that is not and does not stand by has none for SNAT but
/// its routes.
#[test]
fn flows_are_where_they_are_needed() {
    let mut plain = cloud();
    for router in &mut plain.routers {
        router.external.as_mut().unwrap().floating_ips.clear();
    }
    let mut shared = plain.clone();
    for router in 0..2 {
        shared.share(router, &[0], MAIN_AT + u8::try_from(router).unwrap());
    }
    for router in &mut plain.routers {
        router.external.as_mut().unwrap().snat = None;
    }
    let flows = |cloud: &Cloud, host: usize| compile(&cloud.host(host), &cloud.numbers(host)).flows().len();
    assert_eq!(flows(&shared, 1), flows(&plain, 1), "the routes lead by tunnel, and that is all");
    let mut idle = shared.clone();
    for router in 0..2 {
        idle.share(router, &[2], MAIN_AT + u8::try_from(router).unwrap());
    }
    let before = flows(&idle, 2);
    let mut more = idle.clone();
    for last in 100..110 {
        more.port(&format!("blue-{last}"), 0, 1, last, &[0]);
    }
    assert_eq!(flows(&more, 2), before + 10, "one flow for each port behind it");
    assert_eq!(flows(&more, 1) - flows(&idle, 1), {
        let more_plain = |cloud: &Cloud| {
            let mut cloud = cloud.clone();
            cloud.routers.iter_mut().for_each(|router| router.external = None);
            flows(&cloud, 1)
        };
        more_plain(&more) - more_plain(&idle)
    });
}

/// Each router translates in a zone of its own, which no network here has: of random clouds, in which routers share networks or stand alone.
#[test]
fn routers_translate_in_zones_of_their_own() {
    let world = World::new(cloud(), 2);
    let host = world.cloud.host(0);
    let both = snat_zones(&host);
    assert_eq!(both.len(), 2, "both are translated for here");
    assert_eq!(snat_zones(&world.cloud.host(1)).len(), 2, "it stands by");
    assert_eq!(snat_zones(&world.cloud.host(2)), BTreeMap::new(), "and not there");
    let mut count = 0;
    for seed in 0..400 {
        let cloud = outgoing(&mut Random::new(seed));
        for host in (0..HOSTS).map(|host| cloud.host(host)) {
            let (networks, routers) = (zones(&host), snat_zones(&host));
            let own: BTreeSet<u16> = routers.values().copied().collect();
            assert_eq!(own.len(), routers.len(), "seed {seed}: {routers:?}");
            assert!(!own.contains(&0), "seed {seed}: the zone that everybody else uses");
            assert!(networks.values().all(|zone| !own.contains(zone)), "seed {seed}: {networks:?} {routers:?}");
            count += usize::from(routers.len() > 1);
        }
    }
    assert!(count > 10, "{count} hosts with several routers");
    let (main, other) = (both[&world.cloud.routers[MAIN].id], both[&world.cloud.routers[OTHER].id]);
    for (port, zone) in [(BLUE_1, main), (BLUE_4, main), (RED_1, other)] {
        let vni = world.cloud.networks[usize::from(port == RED_1)].vni.get();
        let packet = if world.host_of(port) == 0 {
            world.from(port, FAR, HTTP)
        } else {
            let path = world.path(1, &world.from(port, FAR, HTTP), Connection::New);
            path.outcomes[0].leaving.clone().out_of_tunnel(VXLAN, (endpoint(1), vni))
        };
        let path = world.path(0, &packet, Connection::New).to_string();
        assert_eq!(path.contains(&format!("zone {zone}")), port != BLUE_4, "{path}");
    }
}

/// The switches of both hosts take the flows, and say of packets in and out what the model says.
#[test]
fn the_model_and_the_switch_agree() {
    require!(Need::Root, Need::OpenVswitch);
    let world = World::new(cloud(), 2);
    for host in 0..2 {
        let mut packets = Vec::new();
        for payload in [ECHO, HTTP, SSH, DNS] {
            let local = (0..world.cloud.ports.len()).filter(|port| world.host_of(*port) == host);
            for port in local {
                let targets = [FAR, NEAR, GATEWAY_AT, at(99), world.cloud.address(OUTER_1)].into_iter();
                let targets = targets.chain([MAIN_AT, OTHER_AT, 50, 51].map(at));
                packets
                    .extend(targets.filter(|to| port != OUTER_1 || *to != FAR).map(|to| world.from(port, to, payload)));
            }
            for last in [MAIN_AT, OTHER_AT, 50] {
                let packet = Packet::ip(DC, (GATEWAY, mac(last)), (FAR, at(last)), payload).in_vlan(100);
                packets.push(packet.clone().with(Field::IpTtl, 1_u8));
                packets.push(packet);
            }
            for port in [BLUE_1, BLUE_2, RED_1] {
                let vni = world.cloud.networks[usize::from(port == RED_1)].vni.get();
                for to in [FAR, NEAR, at(99), at(51)] {
                    packets.push(world.from(port, to, payload).out_of_tunnel(VXLAN, (endpoint(1 - host), vni)));
                }
            }
        }
        for last in [MAIN_AT, OTHER_AT] {
            for sender in [(GATEWAY, GATEWAY_AT), (mac(last), at(last))] {
                let ask = Packet::arp_request(DC, sender, at(last));
                let told = ask.clone().with(Field::ArpOp, 2_u16).with(Field::EthDst, mac(last).bytes());
                packets.extend([ask.clone(), ask.in_vlan(100), told.in_vlan(100)]);
            }
        }
        agree(&world, host, &packets);
    }
}

#[cfg(test)]
/// Asks a real switch about packets and holds its word against the model's.
fn agree(world: &World, host: usize, packets: &[Packet]) {
    let mut rig = Rig::start(&world.cloud, host).unwrap();
    rig.numbers = world.numbers[host].clone();
    let set = rig.install(&world.cloud).unwrap();
    let changes = dataplane::diff(&set, &rig.installed().unwrap());
    assert!(changes.is_empty(), "{changes:#?}");
    rig.ask_all(&set, packets);
}

#[cfg(test)]
/// A random cloud whose routers lead out, most with an address for all, with a floating IP for about every third port.
fn outgoing(random: &mut Random) -> Cloud {
    let mut cloud = random::cloud(random);
    let outer = cloud.network("outer", "203.0.113.0/24");
    cloud.provide(outer, "dc", Some(100));
    for router in 0..cloud.routers.len() {
        cloud.lead_out(router, outer);
        if !random.once_in(4) {
            let first = random.below(HOSTS);
            let hosts = [first, (first + 1) % HOSTS];
            cloud.share(router, &hosts[..random.below(3)], 40 + u8::try_from(router).unwrap());
        }
        let feet: Vec<_> = cloud.routers[router].interfaces.iter().map(|foot| foot.subnet).collect();
        for port in 0..cloud.ports.len() {
            if feet.contains(&cloud.ports[port].addresses[0].subnet) && random.once_in(3) {
                cloud.float(router, port, 100 + u8::try_from(port).unwrap());
            }
        }
    }
    cloud
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Of random tenants with the same addresses each port leaves as its floating IP from its host, else as its router from the gateway host, and never
    /// as itself; answers reach the port that asked and no other; what nobody asked for reaches nobody.
    #[test]
    fn each_leaves_as_it_should_and_answers_are_its_own(seed in any::<u64>()) {
        let mut random = Random::new(seed);
        let world = World::new(outgoing(&mut random), HOSTS);
        for (number, port) in world.cloud.ports.iter().enumerate() {
            let home = world.host_of(number);
            let payload = random.payload(Ethertype::IPv4);
            let subnet = port.addresses[0].subnet;
            let router = world.cloud.routers.iter().find(|router| router.interfaces.iter().any(|foot| foot.subnet == subnet));
            let external = router.and_then(|router| router.external.as_ref());
            let floating = external.and_then(|external| external.floating_ips.iter().find(|it| it.port == port.id));
            let snat = external.and_then(|external| external.snat.as_ref()).filter(|_| floating.is_none());
            let gateway = snat.and_then(|snat| snat.gateway()).and_then(|it| (0..HOSTS).find(|host| host_id(*host) == it.host));
            if let Ok(packet) = Packet::from_port(&world.cloud.host(home), &world.numbers[home], port, FAR, payload) {
                let ends = world.ends(home, &packet, Connection::New);
                let left: Vec<_> = ends.iter().filter(|(_, end)| matches!(end.verdict, Verdict::Physical { .. })).collect();
                let lets = !port.port_security || lets_stranger(&world.cloud, port, FAR.into(), Direction::Egress, payload);
                let want = floating.map(|it| (home, it.address)).or(gateway.zip(snat.map(|it| it.address))).filter(|_| lets);
                let seen: Vec<_> = left.iter().map(|(host, end)| (*host, end.leaving.address(Field::Ipv4Src))).collect();
                assert_eq!(seen, want.into_iter().collect::<Vec<_>>(), "seed {seed}, {}: {ends:#?}", port.name);
                let inside = ends.iter().any(|(_, end)| matches!(end.verdict, Verdict::Delivered { .. }));
                assert!(!inside, "seed {seed}, {}: {ends:#?}", port.name);
            }
            let (Some(snat), Some(gateway)) = (snat, gateway) else { continue };
            let IpAddr::V4(fixed) = port.addresses[0].address else { continue };
            let packet = Packet::ip(DC, (GATEWAY, snat.mac), (FAR, snat.address), payload).in_vlan(100);
            let packet = packet.with(Field::CtNwSrc, fixed);
            let groups: Vec<_> = world.cloud.groups.iter().filter(|group| port.groups.contains(&group.id)).collect();
            let is_stateless = port.port_security && !groups.is_empty() && groups.iter().all(|group| !group.stateful);
            let lets = !is_stateless || lets_stranger(&world.cloud, port, FAR.into(), Direction::Ingress, payload);
            for host in 0..HOSTS {
                let reached = |connection| -> Vec<String> {
                    let ends = world.ends(host, &packet, connection).into_iter();
                    let delivered = |end: Outcome| if let Verdict::Delivered { name, .. } = end.verdict { Some(name) } else { None };
                    let mut names: Vec<String> = ends.filter_map(|(_, end)| delivered(end)).collect();
                    // On the host that awaits it, too.
                    names.dedup();
                    names
                };
                let want = (host == gateway && lets).then(|| format!("port {}", port.name));
                assert_eq!(reached(Connection::Reply), want.into_iter().collect::<Vec<_>>(), "seed {seed}, {}", port.name);
                assert_eq!(reached(Connection::New), [""; 0], "seed {seed}, {}: nobody asked", port.name);
            }
        }
    }
}

/// Real switches say the same of random clouds.
#[test]
fn the_model_and_the_switch_agree_on_random_clouds() {
    require!(Need::Root, Need::OpenVswitch);
    for seed in 1..=6 {
        let mut random = Random::new(seed);
        let world = World::new(outgoing(&mut random), HOSTS);
        let host = random.below(HOSTS);
        let mut packets = Vec::new();
        for port in &world.cloud.ports {
            let payload = random.payload(Ethertype::IPv4);
            let home = (0..HOSTS).find(|host| port.is_on(host_id(*host))).unwrap();
            for to in [FAR, NEAR, at(40), at(41), at(100)] {
                let packet = Packet::from_port(&world.cloud.host(home), &world.numbers[home], port, to, payload);
                let Ok(packet) = packet else { continue };
                if home == host {
                    packets.push(packet);
                    continue;
                }
                for outcome in trace(&world.sets[home], &packet, Connection::New).outcomes {
                    if let Verdict::Tunnelled { vni, .. } = outcome.verdict {
                        packets.push(outcome.leaving.out_of_tunnel(VXLAN, (endpoint(home), vni)));
                    }
                }
            }
            for last in [40, 41] {
                packets.push(Packet::ip(DC, (GATEWAY, mac(last)), (FAR, at(last)), payload).in_vlan(100));
            }
        }
        agree(&world, host, &packets);
    }
}

/// A socket inside a machine, at an address of it.
fn socket(machine: &Machine, address: Ipv4Addr, port: u16) -> Result<UdpSocket> {
    let socket = machine.namespace.enter(|| UdpSocket::bind((address, port)))?.context("bind inside a machine")?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(socket)
}

/// Sends a datagram to a server and back: gives who the server saw.
fn ask(client: &UdpSocket, server: &UdpSocket) -> Result<SocketAddr> {
    let mut octets = [0; 16];
    client.send_to(b"?", (FAR, server.local_addr()?.port()))?;
    let (_, seen) = server.recv_from(&mut octets).context("hear the question")?;
    server.send_to(b"!", seen)?;
    let (count, from) = client.recv_from(&mut octets).context("hear the answer")?;
    ensure!(octets[..count] == *b"!" && from.ip() == IpAddr::V4(FAR), "{from} said {:?}", &octets[..count]);
    Ok(seen)
}

/// Connects by TCP and stays: gives both ends and who the server saw.
fn connect(machine: &Machine, server: &TcpListener) -> Result<(TcpStream, TcpStream, SocketAddr)> {
    let address = SocketAddr::from((FAR, server.local_addr()?.port()));
    let client =
        machine.namespace.enter(|| TcpStream::connect_timeout(&address, ANSWER_TIMEOUT))?.context("connect")?;
    let accepted = accept(server, ANSWER_TIMEOUT)?;
    let seen = accepted.peer_addr()?;
    Ok((client, accepted, seen))
}

/// Two hosts on the wire of the data centre, one the gateway of both routers: machines on it and on the other host ping, ask by UDP and connect by TCP
/// as the address of their router, also two at once from the same port and two tenants with the same address; nothing comes in unasked; the
/// gateway moves to the other host, and the switch of the data centre follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_leave_by_the_gateway_host() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let mut cloud = cloud();
    let dc = outside::datacentre()?;
    let nothing = |host| HostNetwork::empty(host_id(host), endpoint(host));
    let wires = [("dc", &dc)];
    let hosts = [Host::start_wired(nothing(0), &wires).await?, Host::start_wired(nothing(1), &wires).await?];
    hosts[0].link(&hosts[1])?;
    let station = outside::gateway(&dc)?;
    let blue_1 = plug(&hosts[0], &cloud, BLUE_1).await?;
    let blue_2 = plug(&hosts[1], &cloud, BLUE_2).await?;
    let blue_3 = plug(&hosts[1], &cloud, BLUE_3).await?;
    let red_1 = plug(&hosts[1], &cloud, RED_1).await?;
    for (number, host) in hosts.iter().enumerate() {
        host.program(cloud.host(number)).await?;
    }
    for (name, machine) in [("blue-1", &blue_1), ("blue-2", &blue_2), ("blue-3", &blue_3), ("red-1", &red_1)] {
        eventually(&format!("does {name} get out"), || Ok(machine.pings(FAR)? == 3))?;
        assert_eq!(machine.pings(GATEWAY_AT)?, 3, "{name} to a station nearby");
    }
    let address = |last: u8| IpAddr::V4(at(last));

    // By UDP, all from one port at once, two of them from one address; the answers come back in the end, when all have asked.
    let server = socket(&station, FAR, 9000)?;
    let clients = [(&blue_1, MAIN_AT), (&blue_2, MAIN_AT), (&red_1, OTHER_AT), (&blue_3, 50)];
    let mut seen = Vec::new();
    for (machine, last) in clients {
        let client = socket(machine, ANY, 5000)?;
        let as_seen = ask(&client, &server)?;
        assert_eq!(as_seen.ip(), address(last));
        seen.push((client, as_seen));
    }
    assert_ne!(seen[0].1, seen[1].1, "two of one router");
    for (number, (_, as_seen)) in seen.iter().enumerate() {
        server.send_to(&[u8::try_from(number)?], as_seen)?;
    }
    for (number, (client, _)) in seen.iter().enumerate() {
        let mut octets = [0; 16];
        assert_eq!((client.recv(&mut octets)?, usize::from(octets[0])), (1, number), "each its own");
    }

    // Where nobody listens, the station says so, and who asked hears it: the error quotes the packet as it left.
    for (name, machine) in [("blue-1", &blue_1), ("blue-2", &blue_2), ("red-1", &red_1)] {
        let client = socket(machine, ANY, 5002)?;
        client.connect((FAR, 9999))?;
        let is_told = || {
            let told = client.send(b"?").and_then(|_| client.recv(&mut [0; 16]));
            Ok(told.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused))
        };
        eventually(&format!("is {name} told that nobody listens"), is_told)?;
    }

    // By TCP, both tenants at once.
    let listener = station.listen(443)?;
    let kept = [(&blue_1, MAIN_AT), (&blue_2, MAIN_AT), (&red_1, OTHER_AT)];
    let kept: Vec<_> =
        kept.into_iter().map(|(machine, last)| Ok((connect(machine, &listener)?, last))).collect::<Result<_>>()?;
    for ((client, accepted, as_seen), last) in &kept {
        let seen = as_seen.ip().to_canonical();
        assert_eq!(seen, address(*last));
        talk(client, accepted)?;
        talk(accepted, client)?;
    }

    // Nobody asked for this: a ping, a connection, and a datagram to a port that is in use, from another one.
    assert!(!station.leaks(at(MAIN_AT))? && !station.leaks(at(OTHER_AT))?, "pings from outside");
    let (open, other) = (blue_1.listen(80)?, socket(&station, FAR, 9001)?);
    assert!(!station.intrudes(at(MAIN_AT), &open)?, "a connection from outside");
    other.send_to(b"unasked", seen[0].1)?;
    seen[0].0.set_read_timeout(Some(SILENCE))?;
    assert!(seen[0].0.recv(&mut [0; 16]).is_err(), "a datagram from where nobody was asked");

    // The gateway moves.
    for (router, last) in [(MAIN, MAIN_AT), (OTHER, OTHER_AT)] {
        cloud.share(router, &[1, 0], last);
    }
    for (number, host) in hosts.iter().enumerate() {
        host.program(cloud.host(number)).await?;
    }
    for (name, machine) in [("blue-1", &blue_1), ("blue-2", &blue_2), ("blue-3", &blue_3), ("red-1", &red_1)] {
        eventually(&format!("does {name} get out by the other host"), || Ok(machine.pings(FAR)? == 3))?;
    }
    assert_eq!(ask(&socket(&blue_1, ANY, 5001)?, &server)?.ip(), address(MAIN_AT));
    assert_eq!(ask(&socket(&red_1, ANY, 5001)?, &server)?.ip(), address(OTHER_AT));
    let (client, accepted, as_seen) = connect(&blue_1, &listener)?;
    assert_eq!(as_seen.ip().to_canonical(), address(MAIN_AT));
    talk(&client, &accepted)
}

/// A router takes another address outside: a connection that never pauses leaves as that from then on, though the connection tracker knew the old one;
/// so it does when the router had none for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_follows_its_router_to_another_address() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let mut cloud = cloud();
    let dc = outside::datacentre()?;
    let host = Host::start_wired(HostNetwork::empty(host_id(0), endpoint(0)), &[("dc", &dc)]).await?;
    let station = outside::gateway(&dc)?;
    let blue_1 = plug(&host, &cloud, BLUE_1).await?;
    host.program(cloud.host(0)).await?;
    eventually("does it get out", || Ok(blue_1.pings(FAR)? == 3))?;
    let (server, client) = (socket(&station, FAR, 9000)?, socket(&blue_1, ANY, 5000)?);
    assert_eq!(ask(&client, &server)?.ip(), IpAddr::V4(at(MAIN_AT)));
    let is_seen = |last: u8| ask(&client, &server).is_ok_and(|seen| seen.ip() == IpAddr::V4(at(last)));
    let follows = |last: u8| (0..8).any(|_| is_seen(last));
    cloud.share(MAIN, &[0], 42);
    host.program(cloud.host(0)).await?;
    assert!(follows(42), "as the new address");
    cloud.share(MAIN, &[1], 42);
    host.program(cloud.host(0)).await?;
    assert!(ask(&client, &server).is_err(), "the gateway is another host, which is down");
    cloud.share(MAIN, &[0], 43);
    host.program(cloud.host(0)).await?;
    assert!(follows(43), "back with another address");
    Ok(())
}

/// Octets from one end to the other.
fn talk(mut from: &TcpStream, mut to: &TcpStream) -> Result<()> {
    use std::io::{Read, Write};
    let mut octets = [0; 5];
    to.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    from.write_all(b"hello")?;
    to.read_exact(&mut octets)?;
    ensure!(octets == *b"hello", "{octets:?}");
    Ok(())
}

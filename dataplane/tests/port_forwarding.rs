//! Port forwardings: in the model, in a real switch, and with real packets of two hosts, one of which is the gateway of routers, and a station of the
//! data centre, who reaches machines by ports of their router's address.

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

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use basalt_tests::require;
use basalt_tests::skip::Need;
use basalt_tests::tcp::accept;
use dataplane::compile::Stations;
use dataplane::table::Table;
use dataplane::trace::{Cause, Connection, Packet, Payload, Verdict, blame};
use dataplane::{PortNumbers, compile, diff, trace};
use hosts::{Host, Machine};
use model::network::ForwardedProtocol::{self, Tcp, Udp};
use model::network::{RouterInterface, Subnet};
use model::security::{Direction, Ethertype, Remote};
use model::spec::HostNetwork;
use model::{Mac, SubnetId};
use openflow::flow::{Action, Field, ct_state};
use outside::{DC, FAR, GATEWAY, GATEWAY_AT, eventually, plug};
use proptest::prelude::{ProptestConfig, any, proptest};
use rig::Rig;
use topology::random::{self, HOSTS, Random, lets_stranger};
use topology::{Cloud, PING, VXLAN, endpoint, host_id, tcp, udp};
use world::World;

const BLUE_1: usize = 0;
const BLUE_2: usize = 1;
const SHUT: usize = 2;
const RED_1: usize = 3;
/// The routers of blue and red, and the last octets of their addresses outside.
const MAIN: usize = 0;
const OTHER: usize = 1;
const MAIN_AT: u8 = 40;
const OTHER_AT: u8 = 41;
const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
/// How long an answer may take, and how long is waited for one that must not come.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
const SILENCE: Duration = Duration::from_millis(700);

const fn at(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, last)
}

const fn mac(last: u8) -> Mac {
    Mac::new([2, 3, 0, 0, 0, last])
}

const fn to_tcp(target: u16) -> Payload {
    Payload::Tcp { source: 40_000, target }
}

const fn to_udp(target: u16) -> Payload {
    Payload::Udp { source: 40_000, target }
}

/// Blue and red are tenants with the same addresses, each with a router that has an address on VLAN 100; host 0 is the gateway of both. Of blue, 1 is on
/// host 0, 2 and shut on host 1; red-1 on host 1 has the address of blue-2. All but shut let in TCP port 80, UDP port 9000 and pings.
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
    let none = cloud.group("none");
    cloud.port("blue-1", blue, 0, 11, &[all]);
    cloud.port("blue-2", blue, 1, 12, &[all]);
    cloud.port("shut", blue, 1, 13, &[none]);
    cloud.port("red-1", red, 1, 12, &[all]);
    for (router, last) in [(MAIN, MAIN_AT), (OTHER, OTHER_AT)] {
        cloud.lead_out(router, outer);
        cloud.share(router, &[0, 1], last);
    }
    cloud.forward(MAIN, (Tcp, 8080), (BLUE_1, 80));
    cloud.forward(MAIN, (Tcp, 8081), (BLUE_2, 80));
    cloud.forward(MAIN, (Udp, 5000), (BLUE_2, 9000));
    cloud.forward(MAIN, (Tcp, 8082), (SHUT, 80));
    cloud.forward(MAIN, (Udp, 5001), (BLUE_1, 9000));
    cloud.forward(OTHER, (Tcp, 8080), (RED_1, 80));
    cloud
}

impl World {
    #[cfg(test)]
    fn new(cloud: Cloud, hosts: usize) -> Self {
        let outer = cloud.networks.last().unwrap().id;
        let mut stations = Stations::from([((outer, GATEWAY_AT.into()), GATEWAY)]);
        for snat in cloud.routers.iter().filter_map(|it| it.external.as_ref()?.snat.as_ref()) {
            stations.insert((outer, snat.address.into()), snat.mac);
        }
        Self::of(cloud, hosts, |cloud, host| PortNumbers { stations: stations.clone(), ..cloud.numbers(host) })
    }
}

/// From the wire to the address of a router.
fn knock(source: Ipv4Addr, last: u8, payload: Payload) -> Packet {
    Packet::ip(DC, (GATEWAY, mac(last)), (source, at(last)), payload).in_vlan(100)
}

/// What connections by a forwarding are known by: protocol, external port, internal address and port.
fn label(protocol: u8, external: u16, address: Ipv4Addr, internal: u16) -> u128 {
    let [low, high] = [u64::from(address.to_bits()) << 16 | u64::from(internal), u64::from(external) << 48];
    u128::from(protocol) << 64 | u128::from(high | low)
}

/// A forwarded port leads to its machine, here or by tunnel, as a packet of the station that is judged where the port is; of two tenants each has its own
/// ports. Another port, another protocol and another host lead nowhere.
#[test]
fn forwarded_ports_lead_to_their_machines() {
    let world = World::new(cloud(), 2);
    let cases = [
        (MAIN_AT, to_tcp(8080), BLUE_1, Field::TcpDst, 80),
        (MAIN_AT, to_tcp(8081), BLUE_2, Field::TcpDst, 80),
        (MAIN_AT, to_udp(5000), BLUE_2, Field::UdpDst, 9000),
        (OTHER_AT, to_tcp(8080), RED_1, Field::TcpDst, 80),
    ];
    for (last, payload, port, field, target) in cases {
        let (name, fixed) = (&world.cloud.ports[port].name, world.cloud.address(port));
        let ends = world.ends(0, &knock(FAR, last, payload), Connection::New);
        let [(host, end)] = &ends[..] else { panic!("{name}: {ends:?}") };
        assert_eq!(end.verdict.to_string(), format!("delivered to port {name}"));
        assert!(world.cloud.ports[port].is_on(host_id(*host)), "{name}");
        let leaving = &end.leaving;
        assert_eq!((leaving.address(Field::Ipv4Src), leaving.address(Field::Ipv4Dst)), (FAR, fixed), "{name}");
        assert_eq!((leaving.get(field), leaving.get(Field::IpTtl)), (target, 63), "{name}: routed once");
        let at_the_other = world.says(1, &knock(FAR, last, payload), Connection::New);
        assert!(at_the_other.starts_with("host 1: dropped in forward"), "not its gateway: {at_the_other}");
    }
    let path = trace(&world.sets[0], &knock(FAR, MAIN_AT, to_tcp(8081)), Connection::New).to_string();
    assert!(path.contains("TCP port 8081 of 203.0.113.40 is forwarded to 10.0.1.12, port 80"), "{path}");
    assert!(path.contains("translates destination 203.0.113.40 to 10.0.1.12, port 80"), "{path}");
    let refused = world.says(0, &knock(FAR, MAIN_AT, to_tcp(8082)), Connection::New);
    assert!(
        refused.starts_with("host 1: dropped in ingress: no rule of the receiver's"),
        "where the port is: {refused}"
    );
    let nothing = "host 0: dropped in nat: router main: nobody behind the router has begun a connection as 203.0.113.40 \
                   that it belongs to, and no port forwarding is for it";
    let ping = Payload::Icmp { kind: 8, code: 0 };
    for payload in [to_tcp(80), to_tcp(5000), to_udp(8080), to_udp(9000), ping] {
        assert_eq!(world.says(0, &knock(FAR, MAIN_AT, payload), Connection::New), nothing, "{payload:?}");
    }
    let other = world.says(0, &knock(FAR, OTHER_AT, to_tcp(8081)), Connection::New);
    assert!(other.starts_with("host 0: dropped in nat: router other: "), "{other}");
    // The tenant next door reaches it as anybody outside does, from the address of its own router.
    let ends = world.ends(1, &world.from(RED_1, at(MAIN_AT), to_tcp(8080)), Connection::New);
    let [(0, end)] = &ends[..] else { panic!("{ends:?}") };
    assert_eq!(end.verdict.to_string(), "delivered to port blue-1");
    assert_eq!(end.leaving.address(Field::Ipv4Src), at(OTHER_AT));
}

/// What a machine begins from a port that is forwarded to it leaves by that one, and from another as anything does.
#[test]
fn machines_leave_by_the_port_that_leads_to_them() {
    let world = World::new(cloud(), 2);
    let leaves = |port, source, is_tcp| {
        let target = 443;
        let payload = if is_tcp { Payload::Tcp { source, target } } else { Payload::Udp { source, target } };
        let field = if is_tcp { Field::TcpSrc } else { Field::UdpSrc };
        let home = usize::from(port != BLUE_1);
        let ends = world.ends(home, &world.from(port, FAR, payload), Connection::New);
        let [(0, end)] = &ends[..] else { panic!("{ends:?}") };
        (end.leaving.address(Field::Ipv4Src), end.leaving.get(field))
    };
    assert_eq!(leaves(BLUE_1, 80, true), (at(MAIN_AT), 8080));
    assert_eq!(leaves(BLUE_2, 80, true), (at(MAIN_AT), 8081), "through the tunnel");
    assert_eq!(leaves(BLUE_2, 9000, false), (at(MAIN_AT), 5000));
    assert_eq!(leaves(RED_1, 80, true), (at(OTHER_AT), 8080));
    assert_eq!(leaves(BLUE_2, 9000, true), (at(MAIN_AT), 9000), "another protocol: the tracker finds one");
    assert_eq!(leaves(BLUE_1, 81, true), (at(MAIN_AT), 81), "another port: the tracker finds one");
}

/// Nobody outside begins a connection by a forwarded port with an address from behind the router, or with the router's own.
#[test]
fn nobody_outside_pretends_to_be_inside() {
    let world = World::new(cloud(), 2);
    for (source, range) in [([10, 0, 1, 12], "10.0.1.0/24"), ([203, 0, 113, MAIN_AT], "203.0.113.40/32")] {
        for connection in [Connection::New, Connection::Established, Connection::Reply] {
            let said = world.says(0, &knock(source.into(), MAIN_AT, to_tcp(8080)), connection);
            let want = format!("host 0: dropped in forward: router main: no sender outside has an address of {range}");
            assert_eq!(said, want, "{connection:?}");
        }
    }
    // The host of a port names a sender that comes by tunnel by its address alone: that of a machine in another subnet of the network, or on a network
    // that another router joins to it there, and what a static route leads to, are nobody's outside either.
    let mut joined = cloud();
    let green = joined.network("green", "10.0.2.0/24");
    let second = Subnet {
        id: SubnetId::from_uuid(uuid::Uuid::from_u128(77)),
        cidr: "10.0.3.0/24".parse().unwrap(),
        gateway: Some(Ipv4Addr::new(10, 0, 3, 1).into()),
        ..joined.subnets[0].clone()
    };
    joined.router("joins", &[green]);
    let joins = joined.routers.len() - 1;
    let (address, mac) = (Ipv4Addr::new(10, 0, 3, 1).into(), Mac::new([2, 1, 0, 9, 9, 9]));
    joined.routers[joins].interfaces.push(RouterInterface { subnet: second.id, address, mac });
    joined.subnets.push(second);
    joined.route(MAIN, "10.9.0.0/16", joined.address(BLUE_1));
    joined.networks.swap(2, 3);
    let world = World::new(joined, 2);
    let said = |source: [u8; 4]| world.says(0, &knock(source.into(), MAIN_AT, to_tcp(8081)), Connection::New);
    for (source, range) in
        [([10, 0, 3, 5], "10.0.3.0/24"), ([10, 0, 2, 5], "10.0.2.0/24"), ([10, 9, 1, 1], "10.9.0.0/16")]
    {
        let want = format!("host 0: dropped in forward: router main: no sender outside has an address of {range}");
        assert_eq!(said(source), want);
    }
    assert!(!said(FAR.octets()).contains("no sender outside"), "{}", said(FAR.octets()));
}

/// What goes on with a connection from outside, and what answers it, passes while just that is forwarded; nothing else that comes in unasked does.
#[test]
fn connections_live_as_long_as_their_forwarding() {
    let http = label(6, 8080, Ipv4Addr::new(10, 0, 1, 11), 80);
    // As the tracker has translated it.
    let goes_on = |world: &World, label: u128, (to, port): (Ipv4Addr, u16)| {
        let inward = knock(FAR, MAIN_AT, to_tcp(port)).with(Field::Ipv4Dst, to).with(Field::CtLabel, label);
        let state = ct_state::TRACKED | ct_state::ESTABLISHED;
        let inward = inward.with(Field::CtState, state).with(Field::Reg7, u32::from(world.cloud.routers[MAIN].key));
        let mut met = world.sets[0].flows().filter(|flow| flow.table == Table::Nat.number() && flow.priority > 0);
        let route = Action::GotoTable(Table::Route.number());
        met.any(|flow| flow.matching.is_met(|field| inward.get(field)) && flow.actions.last() == Some(&route))
    };
    let said = |cloud: &Cloud, label: u128| {
        let world = World::new(cloud.clone(), 2);
        let goes_on = goes_on(&world, label, (Ipv4Addr::new(10, 0, 1, 11), 80));
        let answer = world.from(BLUE_1, FAR, Payload::Tcp { source: 80, target: 40_000 });
        let answer = world.says(0, &answer.with(Field::CtLabel, label), Connection::Reply);
        (goes_on, answer)
    };
    let cut = "host 0: dropped in nat: router main: no port of 203.0.113.40 is forwarded to it any more".to_owned();
    let mut cloud = cloud();
    assert_eq!(said(&cloud, http), (true, "host 0: sent out to physical network dc in VLAN 100".to_owned()));
    for other in [0, http + 1, http + (1 << 16), http + (1 << 48), http + (11 << 64)] {
        assert_eq!(said(&cloud, other), (false, cut.clone()), "{other:x}");
    }
    let snat = cloud.routers[MAIN].external.as_mut().unwrap().snat.as_mut().unwrap();
    let removed = snat.forwardings.remove(0);
    assert_eq!((removed.external_port, said(&cloud, http)), (8080, (false, cut.clone())));
    cloud.forward(MAIN, (Tcp, 8080), (BLUE_2, 8080));
    assert_eq!(said(&cloud, http), (false, cut), "it leads elsewhere now");
    // Nobody has answered yet: the connection gets the new label, and the tracker goes on translating to where it went.
    let (world, there) = (World::new(cloud, 2), Ipv4Addr::new(10, 0, 1, 12));
    let new = label(6, 8080, there, 8080);
    assert!(goes_on(&world, new, (there, 8080)));
    assert!(!goes_on(&world, new, (Ipv4Addr::new(10, 0, 1, 11), 80)), "not to the former machine");
    assert!(!goes_on(&world, new, (there, 80)), "nor to the former port");
}

/// A forwarding is four flows on the gateway host and none elsewhere. One more or less makes no connection of others be forgotten.
#[test]
fn flows_are_where_they_are_needed() {
    let before = cloud();
    let mut after = before.clone();
    after.forward(MAIN, (Udp, 53), (BLUE_2, 53));
    let set = |cloud: &Cloud, host: usize| compile(&cloud.host(host), &cloud.numbers(host));
    assert_eq!(set(&after, 0).flows().len(), set(&before, 0).flows().len() + 4);
    assert_eq!(set(&after, 1).flows().len(), set(&before, 1).flows().len());
    for (from, to) in [(&before, &after), (&after, &before)] {
        let installed = dataplane::Installed {
            flows: set(from, 0).flows().cloned().collect(),
            groups: set(from, 0).groups().cloned().collect(),
            meters: set(from, 0).meters().cloned().collect(),
        };
        let changes = diff(&set(to, 0), &installed);
        assert_eq!((changes.add_flows.len() + changes.delete_flows.len(), changes.stale_zones.len()), (4, 0));
    }
}

/// Who is to blame when nothing is forwarded, or not to those behind the router itself.
#[test]
fn what_is_not_forwarded_is_told_so() {
    let world = World::new(cloud(), 1);
    let blamed = |packet: &Packet| {
        let path = trace(&world.sets[0], packet, Connection::New);
        let found = blame(&world.cloud.host(0), &world.numbers[0], packet, &path).unwrap();
        (found.cause, found.line, found.remedy)
    };
    let (cause, line, remedy) = blamed(&knock(FAR, MAIN_AT, to_udp(8080)));
    assert_eq!((cause, line.as_str()), (Cause::NotForwarded, "router main forwards no udp port 8080 of 203.0.113.40"));
    let want = "flowctl router add-port-forwarding main --protocol udp --external-port 8080 --port PORT --internal-port NUMBER";
    assert_eq!(remedy, want);
    let (cause, line, _) = blamed(&knock(FAR, MAIN_AT, Payload::Icmp { kind: 8, code: 0 }));
    let want = "router main forwards ports of TCP and UDP to its 203.0.113.40, nothing else";
    assert_eq!((cause, line.as_str()), (Cause::NotForwarded, want));
    let (cause, line, remedy) = blamed(&world.from(BLUE_1, at(MAIN_AT), to_tcp(8080)));
    let want = "port blue-1 is behind router main, whose 203.0.113.40 is for those outside";
    assert_eq!((cause, line.as_str()), (Cause::NotForwarded, want));
    assert_eq!(remedy, "ask the port behind the router by its own address");
}

/// The switches of both hosts take the flows, and say of packets in and out what the model says.
#[test]
fn the_model_and_the_switch_agree() {
    require!(Need::Root, Need::OpenVswitch);
    let world = World::new(cloud(), 2);
    let mut packets = [Vec::new(), Vec::new()];
    for last in [MAIN_AT, OTHER_AT] {
        for payload in [8080, 8081, 8082, 5000, 80].into_iter().flat_map(|port| [to_tcp(port), to_udp(port)]) {
            for source in [FAR, GATEWAY_AT, world.cloud.address(BLUE_2)] {
                packets[0].push(knock(source, last, payload));
                packets[1].push(knock(source, last, payload));
            }
            packets[0].push(knock(FAR, last, payload).with(Field::IpTtl, 1_u8));
            let ends = trace(&world.sets[0], &knock(FAR, last, payload), Connection::New).outcomes;
            for outcome in ends {
                if let Verdict::Tunnelled { vni, .. } = outcome.verdict {
                    packets[1]
                        .push(outcome.leaving.with(Field::CtLabel, 0_u128).out_of_tunnel(VXLAN, (endpoint(0), vni)));
                }
            }
        }
    }
    for payload in [Payload::Tcp { source: 80, target: 40_000 }, Payload::Udp { source: 9000, target: 40_000 }] {
        packets[0].push(world.from(BLUE_1, FAR, payload));
        packets[1].push(world.from(BLUE_2, FAR, payload));
        packets[1].push(world.from(RED_1, at(MAIN_AT), payload));
    }
    let unreachable = knock(FAR, MAIN_AT, Payload::Icmp { kind: 3, code: 4 });
    for (host, packets) in packets.iter().enumerate() {
        let mut rig = Rig::start(&world.cloud, host).unwrap();
        rig.numbers = world.numbers[host].clone();
        let set = rig.install(&world.cloud).unwrap();
        let changes = diff(&set, &rig.installed().unwrap());
        assert!(changes.is_empty(), "{changes:#?}");
        rig.ask_all(&set, packets);
        rig.ask(&set, &unreachable, Connection::Related);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Of random clouds whose routers forward some ports to some of their machines: a packet to a router's address reaches the machine that its port
    /// is forwarded to, from the gateway host, when the groups of that port let it in as it is there, and nobody else.
    #[test]
    fn a_port_leads_where_it_is_forwarded_and_nowhere_else(seed in any::<u64>()) {
        let mut random = Random::new(seed);
        let mut cloud = random::cloud(&mut random);
        let outer = cloud.network("outer", "203.0.113.0/24");
        cloud.provide(outer, "dc", Some(100));
        for router in 0..cloud.routers.len() {
            cloud.lead_out(router, outer);
            cloud.share(router, &[random.below(HOSTS)], 40 + u8::try_from(router).unwrap());
            let feet: Vec<_> = cloud.routers[router].interfaces.iter().map(|foot| foot.subnet).collect();
            let behind = |port: &usize| feet.contains(&cloud.ports[*port].addresses[0].subnet);
            let behind: Vec<usize> = (0..cloud.ports.len()).filter(behind).collect();
            for (external, port) in behind.into_iter().enumerate() {
                if random.once_in(2) {
                    continue;
                }
                let inner = *random.pick(&[22, 80, 1000, 9000]);
                for protocol in [Tcp, Udp] {
                    cloud.forward(router, (protocol, 80 + u16::try_from(external).unwrap()), (port, inner));
                }
            }
        }
        let world = World::new(cloud, HOSTS);
        for router in &world.cloud.routers {
            let Some(snat) = router.external.as_ref().and_then(|external| external.snat.as_ref()) else { continue };
            for _ in 0..8 {
                let payload = random.payload(Ethertype::IPv4);
                let aimed = match payload {
                    Payload::Tcp { target, .. } => Some((Tcp, target)),
                    Payload::Udp { target, .. } => Some((Udp, target)),
                    _ => None,
                };
                let found = snat.forwardings.iter().find(|it| Some((it.protocol, it.external_port)) == aimed);
                let inside = found.map(|it| (it, it.internal_port)).map(|(it, target)| match it.protocol {
                    ForwardedProtocol::Tcp => Payload::Tcp { source: 30_000, target },
                    ForwardedProtocol::Udp => Payload::Udp { source: 30_000, target },
                });
                let port = found.and_then(|it| world.cloud.ports.iter().find(|port| port.id == it.port));
                let lets = port.zip(inside).is_some_and(|(port, inside)| {
                    !port.port_security || lets_stranger(&world.cloud, port, FAR.into(), Direction::Ingress, inside)
                });
                let packet = Packet::ip(DC, (GATEWAY, snat.mac), (FAR, snat.address), payload).in_vlan(100);
                for host in 0..HOSTS {
                    let is_gateway = snat.gateway().is_some_and(|gateway| gateway.host == host_id(host));
                    let ends = world.ends(host, &packet, Connection::New).into_iter();
                    let mut reached: Vec<_> = ends.filter_map(|(_, end)| match end.verdict {
                        Verdict::Delivered { name, .. } => Some(name),
                        _ => None,
                    }).collect();
                    // On the host that awaits it, too.
                    reached.dedup();
                    let want: Vec<_> = port.filter(|_| is_gateway && lets).map(|port| format!("port {}", port.name)).into_iter().collect();
                    assert_eq!(reached, want, "seed {seed}, host {host}, {} {payload:?}: {found:?}", router.name);
                }
            }
        }
    }
}

/// A socket inside a machine.
fn socket(machine: &Machine, address: Ipv4Addr, port: u16) -> Result<UdpSocket> {
    let socket = machine.namespace.enter(|| UdpSocket::bind((address, port)))?.context("bind inside a machine")?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(socket)
}

/// Sends octets to a server and has them back: gives who each end saw.
fn ask(client: &UdpSocket, target: (Ipv4Addr, u16), server: &UdpSocket, count: usize) -> Result<[SocketAddr; 2]> {
    let (sent, mut octets) = (vec![7; count], vec![0; count + 1]);
    client.send_to(&sent, target)?;
    let (heard, seen) = server.recv_from(&mut octets).context("hear the question")?;
    ensure!(heard == count, "{heard} octets of {count}");
    server.send_to(&octets[..heard], seen)?;
    let (heard, from) = client.recv_from(&mut octets).context("hear the answer")?;
    ensure!(octets[..heard] == sent, "{heard} octets came back");
    Ok([seen, from])
}

/// Connects from the station and stays: gives both ends and who the server saw.
fn connect(station: &Machine, port: u16, server: &TcpListener) -> Result<(TcpStream, TcpStream, IpAddr)> {
    let address = SocketAddr::from((at(MAIN_AT), port));
    let client =
        station.namespace.enter(|| TcpStream::connect_timeout(&address, ANSWER_TIMEOUT))?.context("connect")?;
    let accepted = accept(server, ANSWER_TIMEOUT)?;
    let seen = accepted.peer_addr()?.ip().to_canonical();
    Ok((client, accepted, seen))
}

/// Octets from one end to the other.
fn talk(mut from: &TcpStream, mut to: &TcpStream, patience: Duration) -> Result<()> {
    use std::io::{Read, Write};
    let mut octets = [0; 5];
    to.set_read_timeout(Some(patience))?;
    from.write_all(b"hello")?;
    to.read_exact(&mut octets)?;
    ensure!(octets == *b"hello", "{octets:?}");
    Ok(())
}

/// A machine begins connections from the port that is forwarded to another: the two never meet.
fn beside_snat(station: &Machine, machine: &Machine, server: &UdpSocket) -> Result<()> {
    // A machine asks from the port that is forwarded, another station than who came in by it, then that one.
    let (asking, stranger) = (socket(machine, ANY, 5000)?, socket(station, GATEWAY_AT, 7002)?);
    let [seen, _] = ask(&asking, (GATEWAY_AT, 7002), &stranger, 3)?;
    assert_eq!(seen.ip(), IpAddr::V4(at(MAIN_AT)));
    stranger.send_to(b"more", seen)?;
    assert_eq!(asking.recv(&mut [0; 9])?, 4, "what answers it is its own, at whatever port it left by");
    let met = socket(station, GATEWAY_AT, 7003)?;
    ask(&met, (at(MAIN_AT), 5000), server, 3)?;
    let [seen, _] = ask(&asking, (GATEWAY_AT, 7003), &met, 3)?;
    assert_ne!(seen.port(), 5000, "that is taken, between these two");
    for _ in 0..3 {
        ask(&met, (at(MAIN_AT), 5000), server, 3).context("and stays so")?;
    }
    Ok(())
}

/// Has all hosts do as the cloud says.
async fn program(hosts: &[Host], cloud: &Cloud) -> Result<()> {
    for (number, host) in hosts.iter().enumerate() {
        host.program(cloud.host(number)).await?;
    }
    Ok(())
}

/// Nobody listens at the machine: it says so, and who asked hears it of the port that was asked.
fn hears_of_a_closed_port(station: &Machine) -> Result<()> {
    let asking = socket(station, ANY, 0)?;
    asking.connect((at(MAIN_AT), 5001))?;
    eventually("is the station told that nobody listens", || {
        let told = asking.send(b"?").and_then(|_| asking.recv(&mut [0; 16]));
        Ok(told.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused))
    })
}

/// A machine that speaks first after the gateway has moved is heard by the port that it is known by, by UDP and TCP.
fn go_on(
    (client, server, seen): (&UdpSocket, &UdpSocket, SocketAddr),
    kept: &(TcpStream, TcpStream, IpAddr),
) -> Result<()> {
    server.send_to(b"still here", seen)?;
    let mut octets = [0; 16];
    assert_eq!(client.recv_from(&mut octets)?, (10, (at(MAIN_AT), 5000).into()), "by the port that it knows");
    talk(&kept.1, &kept.0, ANSWER_TIMEOUT).context("a connection goes on")?;
    talk(&kept.0, &kept.1, ANSWER_TIMEOUT).context("and back")?;
    Ok(())
}

/// Two hosts on the wire of the data centre, one the gateway of both routers. A station outside reaches machines on both hosts by forwarded ports, by TCP
/// and UDP, and is seen with its own address; groups hold; SNAT goes on beside it and the two never meet; the gateway moves; what is not forwarded any more is cut, and nothing else is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_station_reaches_machines_by_forwarded_ports() -> Result<()> {
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
    let shut = plug(&hosts[1], &cloud, SHUT).await?;
    let red_1 = plug(&hosts[1], &cloud, RED_1).await?;
    program(&hosts, &cloud).await?;
    let main = IpAddr::V4(at(MAIN_AT));
    for (name, machine) in [("blue-1", &blue_1), ("blue-2", &blue_2), ("red-1", &red_1)] {
        eventually(&format!("does {name} get out"), || Ok(machine.pings(GATEWAY_AT)? == 3))?;
    }

    let (http_1, http_2) = (blue_1.listen(80)?, blue_2.listen(80)?);
    let first = connect(&station, 8080, &http_1)?;
    let second = connect(&station, 8081, &http_2)?;
    for (client, accepted, seen) in [&first, &second] {
        assert_eq!(*seen, IpAddr::V4(GATEWAY_AT), "its own address");
        talk(client, accepted, ANSWER_TIMEOUT)?;
        talk(accepted, client, ANSWER_TIMEOUT)?;
    }
    let (refusing, tenant) = (shut.listen(80)?, red_1.listen(80)?);
    assert!(station.reaches_by(at(OTHER_AT), 8080, &tenant)?, "another tenant, by the same port");
    assert!(!station.intrudes_by(at(MAIN_AT), 8082, &refusing)?, "no rule lets that in");
    assert!(!station.intrudes_by(at(MAIN_AT), 8083, &http_1)?, "it is not forwarded");
    assert!(!station.leaks(at(MAIN_AT))?, "pings from outside");

    let server = socket(&blue_2, ANY, 9000)?;
    let client = socket(&station, ANY, 7001)?;
    for octets in [1, 1200] {
        let [seen, from] = ask(&client, (at(MAIN_AT), 5000), &server, octets).with_context(|| format!("{octets}"))?;
        assert_eq!((seen, from), ((GATEWAY_AT, 7001).into(), (main, 5000).into()), "{octets} octets");
    }

    hears_of_a_closed_port(&station)?;
    beside_snat(&station, &blue_1, &server)?;

    // A machine that begins a connection, which others must not end.
    let listener = station.listen(443)?;
    let out = blue_1.namespace.enter(|| TcpStream::connect_timeout(&(GATEWAY_AT, 443).into(), ANSWER_TIMEOUT))??;
    let accepted = accept(&listener, ANSWER_TIMEOUT)?;
    talk(&out, &accepted, ANSWER_TIMEOUT)?;

    // One is taken away, one leads elsewhere, the third stays.
    let snat = |cloud: &mut Cloud| cloud.routers[MAIN].external.as_mut().and_then(|it| it.snat.take()).unwrap();
    let mut changed = snat(&mut cloud);
    changed.forwardings.retain(|it| it.external_port != 8081);
    for forwarding in changed.forwardings.iter_mut().filter(|it| it.external_port == 8080) {
        (forwarding.port, forwarding.internal_ip_address) = (cloud.ports[BLUE_2].id, cloud.address(BLUE_2));
    }
    cloud.routers[MAIN].external.as_mut().unwrap().snat = Some(changed);
    program(&hosts, &cloud).await?;
    for (client, accepted, _) in [&first, &second] {
        assert!(talk(client, accepted, SILENCE).is_err(), "what is not forwarded any more is cut on its way in");
        assert!(talk(accepted, client, SILENCE).is_err(), "and out");
    }
    talk(&out, &accepted, ANSWER_TIMEOUT).context("a connection that a machine began lives on")?;
    ask(&client, (at(MAIN_AT), 5000), &server, 3).context("so does what is forwarded as before")?;
    assert!(!station.intrudes_by(at(MAIN_AT), 8081, &http_2)?);
    drop(connect(&station, 8080, &http_2)?);

    // The gateway moves. Whoever speaks first, connections by forwarded ports go on.
    let [seen, _] = ask(&client, (at(MAIN_AT), 5000), &server, 3)?;
    let kept = connect(&station, 8080, &http_2)?;
    talk(&kept.0, &kept.1, ANSWER_TIMEOUT)?;
    for (router, last) in [(MAIN, MAIN_AT), (OTHER, OTHER_AT)] {
        cloud.share(router, &[1, 0], last);
    }
    cloud.forward(MAIN, (Tcp, 8081), (BLUE_1, 80));
    program(&hosts, &cloud).await?;
    eventually("does blue-1 get out by the other host", || Ok(blue_1.pings(FAR)? == 3))?;
    go_on((&client, &server, seen), &kept)?;
    for (port, server) in [(8080, &http_2), (8081, &http_1)] {
        let (client, accepted, _) = connect(&station, port, server)?;
        talk(&client, &accepted, ANSWER_TIMEOUT)?;
        talk(&accepted, &client, ANSWER_TIMEOUT)?;
    }
    ask(&client, (at(MAIN_AT), 5000), &server, 3)?;
    Ok(())
}

//! Floating IPs: in the model, in a real switch, and with real packets between two hosts and a station of the data centre, which is their gateway.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod outside;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod topology;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use basalt_tests::require;
use basalt_tests::skip::Need;
use basalt_tests::snmp;
use dataplane::compile::Stations;
use dataplane::table::Table;
use dataplane::trace::{Cause, Connection, Packet, Path, Payload, Verdict, blame};
use dataplane::{FlowSet, PortNumbers, compile, trace};
use hosts::{Host, Machine};
use model::security::{Direction, Ethertype, Remote};
use model::spec::HostNetwork;
use model::{Mac, SubnetId};
use openflow::flow::{Action, Field};
use outside::{DC, FAR, GATEWAY, GATEWAY_AT, eventually, plug, wide};
use proptest::prelude::{ProptestConfig, any, proptest};
use rig::Rig;
use topology::random::{self, HOSTS, Random};
use topology::{Cloud, PING, VXLAN, endpoint, host_id, tcp, udp};
use uuid::Uuid;

const BLUE_1: usize = 0;
const BLUE_2: usize = 1;
const BLUE_3: usize = 2;
const BLUE_4: usize = 3;
const RED_1: usize = 4;
const OUTER_1: usize = 5;
const BLUE: usize = 0;
const OUTER: usize = 2;
/// The router of blue.
const MAIN: usize = 0;
const HTTP: Payload = Payload::Tcp { source: 40_000, target: 80 };
const SSH: Payload = Payload::Tcp { source: 40_000, target: 22 };
const ECHO: Payload = Payload::Icmp { kind: 8, code: 0 };

/// Blue and red are tenants with the same addresses, each with a router that leads out to the network outside, VLAN 100. All may be pinged, and
/// asked on TCP port 80 and UDP port 9000. Of blue, 1 and 4 have floating IPs on host 0, 2 on host 1, and 3 has none; red-1 has one, and outer-1 is on the network outside.
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
        ("blue-3", blue, 0, 13),
        ("blue-4", blue, 0, 14),
        ("red-1", red, 0, 11),
        ("outer-1", outer, 0, 60),
    ];
    for (name, network, host, last) in plugged {
        cloud.port(name, network, host, last, &[all]);
    }
    for router in 0..2 {
        cloud.lead_out(router, outer);
    }
    for (router, port, last) in [(0, BLUE_1, 50), (0, BLUE_2, 51), (0, BLUE_4, 52), (1, RED_1, 53)] {
        cloud.float(router, port, last);
    }
    cloud
}

fn floating(last: u8) -> (Mac, Ipv4Addr) {
    (Mac::new([2, 3, 0, 0, 0, last]), Ipv4Addr::new(203, 0, 113, last))
}

fn gateway(cloud: &Cloud) -> Stations {
    Stations::from([((cloud.networks[OUTER].id, GATEWAY_AT.into()), GATEWAY)])
}

/// The cloud, and a router called side with a foot in another subnet of blue, which leads out as itself.
#[cfg(test)]
fn beside() -> Cloud {
    let mut cloud = cloud();
    let side = cloud.router("side", &[BLUE]);
    let mut subnet = cloud.subnets[BLUE].clone();
    subnet.id = SubnetId::from_uuid(Uuid::from_u128(9));
    (subnet.cidr, subnet.gateway) = ("10.0.9.0/24".parse().unwrap(), "10.0.9.1".parse().ok());
    let foot = &mut cloud.routers[side].interfaces[0];
    (foot.subnet, foot.address) = (subnet.id, subnet.gateway.unwrap());
    cloud.subnets.push(subnet);
    cloud.lead_out(side, OUTER);
    cloud.share(side, &[0], 41);
    cloud
}

struct Host0 {
    cloud: Cloud,
    numbers: PortNumbers,
    set: FlowSet,
}

impl Host0 {
    #[cfg(test)]
    fn new() -> Self {
        Self::of(cloud())
    }

    #[cfg(test)]
    fn of(cloud: Cloud) -> Self {
        let numbers = PortNumbers { stations: gateway(&cloud), ..cloud.numbers(0) };
        let set = compile(&cloud.host(0), &numbers);
        Self { cloud, numbers, set }
    }

    /// From a port to an address, as its machine would send it.
    #[cfg(test)]
    fn from(&self, port: usize, to: Ipv4Addr, payload: Payload) -> Packet {
        Packet::from_port(&self.cloud.host(0), &self.numbers, &self.cloud.ports[port], to, payload).unwrap()
    }

    /// From the wire to a floating IP.
    #[cfg(test)]
    fn to(&self, last: u8, payload: Payload) -> Packet {
        let (mac, address) = floating(last);
        Packet::ip(DC, (GATEWAY, mac), (FAR, address), payload).in_vlan(100)
    }

    #[cfg(test)]
    fn path(&self, packet: &Packet) -> Path {
        trace(&self.set, packet, Connection::New)
    }

    #[cfg(test)]
    fn says(&self, packet: &Packet) -> String {
        self.path(packet).verdicts().iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
    }
}

/// A machine leaves by its floating IP through the router that has it, not through another one of its network: that leads out as itself.
#[test]
fn each_router_leads_out_by_its_own() {
    let host = Host0::of(beside());
    let leaves_as = |packet: &Packet| {
        let outcomes = host.path(packet).outcomes;
        let out = outcomes.iter().filter(|outcome| matches!(outcome.verdict, Verdict::Physical { .. }));
        out.map(|outcome| outcome.leaving.address(Field::Ipv4Src)).collect::<Vec<_>>()
    };
    let by_main = host.from(BLUE_1, FAR, HTTP);
    assert_eq!(leaves_as(&by_main), [floating(50).1]);
    let by_side = by_main.with(Field::EthDst, host.cloud.routers[2].interfaces[0].mac.bytes());
    assert_eq!(leaves_as(&by_side), [floating(41).1]);
    require!(Need::Root, Need::OpenVswitch);
    let mut rig = Rig::start(&host.cloud, 0).unwrap();
    rig.numbers = host.numbers.clone();
    let set = rig.install(&host.cloud).unwrap();
    for payload in [HTTP, ECHO] {
        let packet = host.from(BLUE_1, FAR, payload);
        rig.ask(&set, &packet, Connection::New);
        rig.ask(&set, &packet.with(Field::EthDst, host.cloud.routers[2].interfaces[0].mac.bytes()), Connection::New);
    }
}

/// Both directions rewrite what they should and nothing else, and rules hold.
#[test]
fn both_directions_are_rewritten() {
    let host = Host0::new();
    let path = host.path(&host.from(BLUE_1, FAR, ECHO));
    assert_eq!(path.verdicts()[0].to_string(), "sent out to physical network dc in VLAN 100", "{path}");
    let (leaving, (mac, address)) = (&path.outcomes[0].leaving, floating(50));
    assert_eq!((leaving.address(Field::Ipv4Src), leaving.address(Field::Ipv4Dst)), (address, FAR));
    assert_eq!(leaving.get(Field::EthSrc), u128::from_be_bytes(wide(mac)));
    assert_eq!(leaving.get(Field::EthDst), u128::from_be_bytes(wide(GATEWAY)));
    assert_eq!(leaving.get(Field::IpTtl), 63);

    let path = host.path(&host.to(50, ECHO));
    assert_eq!(path.verdicts()[0].to_string(), "delivered to port blue-1", "{path}");
    let arriving = &path.outcomes[0].leaving;
    let fixed = host.cloud.address(BLUE_1);
    assert_eq!((arriving.address(Field::Ipv4Src), arriving.address(Field::Ipv4Dst)), (FAR, fixed));
    assert_eq!(arriving.get(Field::EthDst), u128::from_be_bytes(wide(host.cloud.mac(BLUE_1))));
    assert_eq!((arriving.get(Field::IpTtl), arriving.vlan()), (63, None));
    assert!(host.says(&host.to(50, SSH)).starts_with("dropped in ingress: no rule of the receiver's"));
    assert_eq!(host.says(&host.to(53, HTTP)), "delivered to port red-1");
    let expired = host.to(50, ECHO).with(Field::IpTtl, 1_u8);
    assert!(host.says(&expired).ends_with("its time to live ran out"), "{}", host.says(&expired));
    let elsewhere = host.says(&host.to(51, ECHO));
    assert_eq!(elsewhere, "dropped in forward: no port of the network has this destination MAC address");
    let untagged = host.to(50, ECHO).in_vlan(200);
    assert!(host.says(&untagged).starts_with("dropped in classify"));
}

/// What a packet that can not leave is told.
#[test]
fn what_does_not_leave_is_told_why() {
    let mut host = Host0::new();
    let none = host.says(&host.from(BLUE_3, FAR, ECHO));
    assert_eq!(none, "dropped in output: its address has no floating IP to leave by");
    let packet = host.from(BLUE_3, FAR, ECHO);
    let found = blame(&host.cloud.host(0), &host.numbers, &packet, &host.path(&packet)).unwrap();
    let line = "port blue-3 has no floating IP, and router main does no SNAT";
    assert_eq!((found.cause, found.line.as_str()), (Cause::SnatOff, line));
    assert_eq!(host.says(&host.from(BLUE_1, Ipv4Addr::new(203, 0, 113, 9), ECHO)), {
        "handed to the agent: who has 203.0.113.9 on network outer"
    });
    host.numbers.stations.clear();
    host.set = compile(&host.cloud.host(0), &host.numbers);
    let silent = host.says(&host.from(BLUE_1, FAR, ECHO));
    assert!(
        silent.contains("the gateway 203.0.113.1 of external subnet outer-subnet has not answered yet"),
        "{silent}"
    );
    for router in &mut host.cloud.routers {
        router.external.as_mut().unwrap().floating_ips.clear();
    }
    host.set = compile(&host.cloud.host(0), &host.numbers);
    let closed = host.says(&host.from(BLUE_1, FAR, ECHO));
    assert!(closed.contains("no port here has a floating IP of the router to leave by"), "{closed}");
    host.cloud.routers[MAIN].external = None;
    host.set = compile(&host.cloud.host(0), &host.numbers);
    assert!(host.says(&host.from(BLUE_1, FAR, ECHO)).contains("it has no route to this destination"));
}

/// Rules believe the source of what comes in, and so do the connections of those inside.
#[test]
fn outside_may_not_speak_as_inside() {
    let host = Host0::new();
    let (mac, address) = floating(50);
    for source in [host.cloud.address(BLUE_3), address] {
        let packet = Packet::ip(DC, (GATEWAY, mac), (source, address), ECHO).in_vlan(100);
        let said = host.says(&packet);
        assert!(said.contains("no sender outside has an address of"), "{said}");
    }
    assert!(host.says(&host.to(50, ECHO)).starts_with("delivered to"), "a stranger's ping");
}

/// What machines send to stations nobody knows takes nothing of what the agent hears of stations and gateways.
#[test]
fn no_flood_of_questions_drowns_the_answers() {
    let host = Host0::new();
    let meters = |table: Table| -> BTreeSet<u32> {
        let flows = host.set.table(table.number()).flat_map(|entry| &entry.flow.actions);
        flows.filter_map(|action| if let Action::Meter(meter) = action { Some(*meter) } else { None }).collect()
    };
    let (asked, heard) = (meters(Table::Beyond), meters(Table::Identity));
    assert_eq!((asked.len(), heard.len()), (1, 2), "{asked:?} {heard:?}");
    assert!(asked.is_disjoint(&heard));
}

/// Between machines by their floating IPs, of one tenant and of two, each sees the other's floating IP.
#[test]
fn machines_reach_each_other_by_floating_ips() {
    let host = Host0::new();
    let seen = |from: usize, to: u8| {
        let path = host.path(&host.from(from, floating(to).1, HTTP));
        let outcome = path.outcomes.last().unwrap();
        (outcome.verdict.to_string(), outcome.leaving.address(Field::Ipv4Src))
    };
    assert_eq!(seen(BLUE_1, 52), ("delivered to port blue-4".to_owned(), floating(50).1));
    assert_eq!(
        seen(BLUE_1, 50).0,
        "dropped in forward: port blue-1: no sender outside has an address of 203.0.113.50/32",
        "its own: no switch sends back where it came from"
    );
    assert_eq!(seen(RED_1, 50), ("delivered to port blue-1".to_owned(), floating(53).1), "another tenant");
    assert_eq!(seen(OUTER_1, 50), ("delivered to port blue-1".to_owned(), host.cloud.address(OUTER_1)));
    let path = host.path(&host.from(BLUE_1, host.cloud.address(OUTER_1), HTTP));
    assert_eq!(path.verdicts()[0].to_string(), "delivered to port outer-1", "{path}");
    assert_eq!(path.outcomes[0].leaving.address(Field::Ipv4Src), floating(50).1);
    assert!(host.says(&host.from(RED_1, floating(50).1, SSH)).starts_with("dropped in ingress"));
    assert_eq!(seen(BLUE_1, 51).0, "handed to the agent: who has 203.0.113.51 on network outer");
}

/// ARP for a floating IP is answered on the host of its port only, outside with the tag of the network; announcements are not.
#[test]
fn the_host_of_the_port_answers_arp() {
    let host = Host0::new();
    let ask = |sender: (Mac, Ipv4Addr), last: u8| Packet::arp_request(DC, sender, floating(last).1).in_vlan(100);
    let path = host.path(&ask((GATEWAY, GATEWAY_AT), 50));
    assert_eq!(path.verdicts()[0].to_string(), "answered by this host for port blue-1", "{path}");
    let reply = &path.outcomes[0].leaving;
    assert_eq!((reply.vlan(), reply.address(Field::ArpSpa)), (Some(100), floating(50).1));
    assert_eq!(reply.get(Field::ArpSha), u128::from_be_bytes(wide(floating(50).0)));
    let elsewhere = host.says(&ask((GATEWAY, GATEWAY_AT), 51));
    assert_eq!(elsewhere, "delivered to port outer-1", "a broadcast that no floating IP here is asked by");
    let own = host.says(&ask(floating(50), 50));
    assert!(own.contains("floating IP 203.0.113.50 is announced by another host"), "{own}");
    let number = host.numbers.ports[&host.cloud.ports[OUTER_1].id];
    let near = Packet::arp_request(number, (host.cloud.mac(OUTER_1), host.cloud.address(OUTER_1)), floating(50).1);
    let path = host.path(&near);
    assert_eq!(path.outcomes[0].leaving.vlan(), None);
    assert_eq!(path.verdicts()[0].to_string(), "answered by this host for port blue-1");
    let told = ask((GATEWAY, GATEWAY_AT), 50).with(Field::ArpOp, 2_u16).with(Field::EthDst, floating(50).0.bytes());
    assert_eq!(host.says(&told), "handed to the agent: who has 203.0.113.1 on network outer, as it tells");
}

/// The switch takes the flows, and says of packets in and out what the model says.
#[test]
fn the_model_and_the_switch_agree() {
    require!(Need::Root, Need::OpenVswitch);
    let mut host = Host0::new();
    let mut rig = Rig::start(&host.cloud, 0).unwrap();
    rig.numbers = host.numbers.clone();
    host.set = rig.install(&host.cloud).unwrap();
    let changes = dataplane::diff(&host.set, &rig.installed().unwrap());
    assert!(changes.is_empty(), "{changes:#?}");
    let near = Ipv4Addr::new(203, 0, 113, 9);
    let mut packets = Vec::new();
    for payload in [ECHO, HTTP, SSH] {
        for port in [BLUE_1, BLUE_3, BLUE_4, RED_1, OUTER_1] {
            let to = [FAR, near, GATEWAY_AT, host.cloud.address(OUTER_1)].into_iter();
            let to = to.chain([50, 51, 52, 53].map(|last| floating(last).1));
            let to = to.filter(|to| port != OUTER_1 || *to != FAR);
            packets.extend(to.map(|to| host.from(port, to, payload)));
        }
        for last in [50, 51, 52, 53, 54] {
            let packet = host.to(last, payload);
            packets.push(packet.clone().with(Field::IpTtl, 1_u8));
            packets.push(packet.clone().with(Field::InPort, VXLAN));
            packets.push(packet);
        }
    }
    for last in [50, 51, 52] {
        for sender in [(GATEWAY, GATEWAY_AT), floating(50)] {
            let ask = Packet::arp_request(DC, sender, floating(last).1);
            let told = ask.clone().with(Field::ArpOp, 2_u16).with(Field::EthDst, floating(last).0.bytes());
            packets.extend([ask.clone(), ask.in_vlan(100), told.in_vlan(100)]);
        }
    }
    rig.ask_all(&host.set, &packets);
}

#[cfg(test)]
/// A random cloud whose routers lead out, with a floating IP for about every other port, and all stations known.
fn outgoing(random: &mut Random) -> (Cloud, usize, Stations) {
    let mut cloud = random::cloud(random);
    let outer = cloud.network("outer", "203.0.113.0/24");
    cloud.provide(outer, "dc", Some(100));
    let mut stations = Stations::from([((cloud.networks[outer].id, GATEWAY_AT.into()), GATEWAY)]);
    for router in 0..cloud.routers.len() {
        cloud.lead_out(router, outer);
        let feet: Vec<_> = cloud.routers[router].interfaces.iter().map(|foot| foot.subnet).collect();
        for port in 0..cloud.ports.len() {
            if feet.contains(&cloud.ports[port].addresses[0].subnet) && random.once_in(2) {
                let floating = cloud.float(router, port, 100 + u8::try_from(port).unwrap());
                stations.insert((cloud.networks[outer].id, floating.address.into()), floating.mac);
            }
        }
    }
    (cloud, outer, stations)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Just those packets from outside arrive at the port of a floating IP that its rules let in, at it alone and as they were sent; without a
    /// floating IP nothing gets out; and no packet leaves with an address that is not its sender's floating IP.
    #[test]
    fn floating_ips_lead_to_their_ports_only(seed in any::<u64>()) {
        let mut random = Random::new(seed);
        let (cloud, _, stations) = outgoing(&mut random);
        let sets: Vec<FlowSet> = (0..HOSTS)
            .map(|host| compile(&cloud.host(host), &PortNumbers { stations: stations.clone(), ..cloud.numbers(host) }))
            .collect();
        let all: Vec<_> =
            cloud.routers.iter().filter_map(|router| router.external.as_ref()).flat_map(|it| &it.floating_ips).collect();
        for (number, port) in cloud.ports.iter().enumerate() {
            let host = (0..HOSTS).find(|host| port.is_on(host_id(*host))).unwrap();
            let own = all.iter().find(|floating| floating.port == port.id);
            let payload = random.payload(Ethertype::IPv4);
            let numbers = cloud.numbers(host);
            if let Ok(packet) = Packet::from_port(&cloud.host(host), &numbers, port, FAR, payload) {
                let path = trace(&sets[host], &packet, Connection::New);
                let lets = !port.port_security || lets(&cloud, number, Direction::Egress, payload);
                let left: Vec<_> = path.outcomes.iter().filter(|it| it.verdict.to_string().starts_with("sent out")).collect();
                assert_eq!(left.len(), usize::from(own.is_some() && lets), "seed {seed}, port {number}: {path}");
                for outcome in left {
                    assert_eq!(Some(outcome.leaving.address(Field::Ipv4Src)), own.map(|it| it.address), "seed {seed}");
                }
            }
            let Some(own) = own else { continue };
            let packet = Packet::ip(DC, (GATEWAY, own.mac), (FAR, own.address), payload).in_vlan(100);
            for (other, set) in sets.iter().enumerate() {
                let path = trace(set, &packet, Connection::New);
                let lets = !port.port_security || lets(&cloud, number, Direction::Ingress, payload);
                assert_eq!(path.reaches(port.key), other == host && lets, "seed {seed}, port {number}, host {other}: {path}");
                let keys: Vec<_> = cloud.ports.iter().filter(|it| it.key != port.key && path.reaches(it.key)).collect();
                assert!(keys.is_empty(), "seed {seed}: {path}");
            }
        }
    }
}

/// Whether the rules of a port let a packet pass between it and somebody far away, told without flows.
fn lets(cloud: &Cloud, port: usize, direction: Direction, payload: Payload) -> bool {
    random::lets_stranger(cloud, &cloud.ports[port], FAR.into(), direction, payload)
}

/// Sends a datagram.
fn knock(machine: &Machine, target: SocketAddr) -> Result<()> {
    let sent =
        machine.namespace.enter(|| UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(b"?", target)))?;
    sent.map(drop).context("send a datagram")
}

/// How many messages of an unreachable destination a machine was told (ICMP type 3, which the kernel counts whoever it is for).
fn unreachables(machine: &Machine) -> Result<u32> {
    snmp::icmp(&machine.namespace.run(&["cat", "/proc/net/snmp"])?, "InDestUnreachs")
}

/// Two hosts on the wire of the data centre: machines with floating IPs reach the gateway and what is beyond, and are reached, by TCP and pings, from
/// there and from each other; rules hold; errors of machines get out; a floating IP that moves to the other host is followed by the switch of the data
/// centre.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_take_floating_ips_both_ways() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let mut cloud = cloud();
    let dc = outside::datacentre()?;
    let nothing = |host| HostNetwork::empty(host_id(host), endpoint(host));
    let wires = [("dc", &dc)];
    let hosts = [Host::start_wired(nothing(0), &wires).await?, Host::start_wired(nothing(1), &wires).await?];
    let outside = outside::gateway(&dc)?;
    let blue_1 = plug(&hosts[0], &cloud, BLUE_1).await?;
    let blue_2 = plug(&hosts[1], &cloud, BLUE_2).await?;
    let blue_3 = plug(&hosts[0], &cloud, BLUE_3).await?;
    let blue_4 = plug(&hosts[0], &cloud, BLUE_4).await?;
    for (number, host) in hosts.iter().enumerate() {
        host.program(cloud.host(number)).await?;
    }
    eventually("does the gateway answer blue-1", || Ok(blue_1.pings(GATEWAY_AT)? == 3))?;
    eventually("does the gateway answer blue-2", || Ok(blue_2.pings(GATEWAY_AT)? == 3))?;
    for (name, machine) in [("blue-1", &blue_1), ("blue-2", &blue_2), ("blue-4", &blue_4)] {
        assert_eq!(machine.pings(FAR)?, 3, "{name} to what is beyond the gateway");
    }
    assert!(!blue_3.leaks(FAR)?, "it has no floating IP");
    for last in [50, 51, 52] {
        assert_eq!(outside.pings(floating(last).1)?, 3, "{last} from outside");
    }
    assert!(!outside.leaks(floating(53).1)?, "its port is not plugged in");
    let beyond = outside.listen(443)?;
    assert!(blue_1.reaches(FAR, &beyond)?, "out by TCP");
    let (open, shut) = (blue_1.listen(80)?, blue_1.listen(22)?);
    assert!(outside.reaches(floating(50).1, &open)?, "in by TCP");
    assert!(!outside.intrudes(floating(50).1, &shut)?, "no rule lets that in");
    assert!(blue_4.reaches(floating(50).1, &open)?, "from a neighbour by its floating IP");
    eventually("is the other host's floating IP found", || Ok(blue_2.pings(floating(50).1)? == 3))?;
    assert!(blue_2.reaches(floating(50).1, &open)?, "from the other host");

    // Nothing listens on the port: the machine says so, and its word gets out.
    eventually("is a closed port told of outside", || {
        let before = unreachables(&outside)?;
        knock(&outside, SocketAddr::from((floating(50).1, 9000)))?;
        Ok(outside.pings(floating(50).1)? == 3 && unreachables(&outside)? > before)
    })?;
    eventually("is a closed port outside told of inside", || {
        let before = unreachables(&blue_1)?;
        knock(&blue_1, SocketAddr::from((FAR, 9000)))?;
        Ok(blue_1.pings(FAR)? == 3 && unreachables(&blue_1)? > before)
    })?;

    // The address of blue-2 goes away, and that of blue-1 comes to blue-2 on the other host.
    let external = cloud.routers[MAIN].external.as_mut();
    let floating_ips = external.map(|external| &mut external.floating_ips).into_iter().flatten();
    for (floating, (port, fixed)) in floating_ips.zip([(BLUE_2, 12), (BLUE_1, 11)]) {
        (floating.port, floating.fixed) = (cloud.ports[port].id, Ipv4Addr::new(10, 0, 1, fixed));
    }
    ensure!(cloud.networks[BLUE].provider.is_none());
    let moved = blue_2.listen(80)?;
    for (number, host) in hosts.iter().enumerate().rev() {
        host.program(cloud.host(number)).await?;
    }
    eventually("does the gateway reach it on the other host", || Ok(outside.pings(floating(50).1)? == 3))?;
    assert!(outside.reaches(floating(50).1, &moved)?, "its new holder answers");
    eventually("does blue-1 leave by its new address", || Ok(blue_1.pings(FAR)? == 3))?;
    Ok(())
}

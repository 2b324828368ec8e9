//! Routed IPv6 between machines and the data centre: in the model, in a real switch, and with real packets of two hosts and a router outside that has the
//! prefix on its link, or routes it by the address of a router of the cloud.

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

use std::net::{IpAddr, Ipv6Addr};

use anyhow::Result;
use basalt_tests::require;
use basalt_tests::skip::Need;
use dataplane::PortNumbers;
use dataplane::compile::Stations;
use dataplane::peer::Peers;
use dataplane::trace::{Connection, Packet, Payload, Verdict};
use hosts::{Host, Machine};
use model::Mac;
use model::firewall::FirewallAction::{Allow, Deny};
use model::firewall::{Carried, FirewallAction};
use model::network::Router;
use model::security::{Direction, Ethertype, Protocol, Remote};
use model::spec::HostNetwork;
use openflow::flow::Field;
use outside::{DC, GATEWAY, eventually, wide};
use proptest::prelude::{ProptestConfig, any, proptest};
use rig::Rig;
use topology::random::{self, HOSTS, Random};
use topology::{Cloud, carried_tcp, endpoint, host_id, tcp};
use world::World;

const BLUE_1: usize = 0;
const BLUE_2: usize = 1;
const GREEN_1: usize = 2;
const RED_1: usize = 3;
const OPEN: usize = 4;
const OUTER_1: usize = 5;
const MAIN: usize = 0;
const OUTER: usize = 3;
const GATEWAY_AT: &str = "2001:db8:ffff::1";
const FAR: &str = "2001:db8:f::7";
const ECHO: Payload = Payload::Icmp { kind: 128, code: 0 };
const HTTP: Payload = Payload::Tcp { source: 40_000, target: 80 };
const SSH: Payload = Payload::Tcp { source: 40_000, target: 22 };

#[cfg(test)]
fn six(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// Two routers with a way out by IPv6 to one network. Of the first one's networks blue is routed and green is not; red is behind the second. `gateways` may have
/// the address of the first router outside.
#[cfg(test)]
fn cloud(gateways: &[usize]) -> Cloud {
    let mut cloud = Cloud::default();
    let blue = cloud.network("blue", "10.0.1.0/24");
    let green = cloud.network("green", "10.0.2.0/24");
    let red = cloud.network("red", "10.0.4.0/24");
    let outer = cloud.network("outer", "203.0.113.0/24");
    cloud.ipv6(blue, "2001:db8:100:1::/64");
    cloud.ipv6(green, "fd00:0:0:2::/64");
    cloud.ipv6(red, "2001:db8:100:4::/64");
    cloud.ipv6(outer, "2001:db8:ffff::/64");
    cloud.provide(outer, "dc", Some(100));
    cloud.networks[outer].mtu = 1500;
    cloud.routed(outer, &["2001:db8:100::/40"]);
    let main = cloud.router("main", &[blue, green]);
    let side = cloud.router("side", &[red]);
    cloud.lead_out6(main, outer, gateways, 40);
    cloud.lead_out6(side, outer, &[0], 41);
    let web = cloud.group("web");
    cloud.rule_of(Ethertype::IPv6, web, Direction::Egress, Protocol::Any, Remote::Any);
    cloud.allow6(web, tcp(80, 80), Remote::Any);
    cloud.allow6(web, Protocol::Icmp { kind: Some(128), code: None }, Remote::Any);
    cloud.port("blue-1", blue, 0, 11, &[web]);
    cloud.port("blue-2", blue, 1, 12, &[web]);
    cloud.port("green-1", green, 0, 13, &[web]);
    cloud.port("red-1", red, 1, 14, &[web]);
    let open = cloud.port("open-1", blue, 0, 15, &[]);
    cloud.ports[open].port_security = false;
    cloud.port("outer-1", outer, 0, 60, &[web]);
    cloud
}

/// All hosts, which know the gateway outside.
#[cfg(test)]
fn world(cloud: Cloud) -> World {
    let outer = cloud.networks[OUTER].id;
    let stations = Stations::from([((outer, IpAddr::V6(six(GATEWAY_AT))), GATEWAY)]);
    World::of(cloud, 2, |cloud, host| PortNumbers { stations: stations.clone(), ..cloud.numbers(host) })
}

/// From somebody far away, by the gateway outside, to the MAC address of a port there.
#[cfg(test)]
fn inbound(cloud: &Cloud, port: usize, payload: Payload) -> Packet {
    let at = cloud.address6(port).unwrap();
    Packet::ip(DC, (GATEWAY, cloud.ports[port].routed_mac()), (six(FAR), at), payload).in_vlan(100)
}

/// The same to the address of the first router.
#[cfg(test)]
fn by_router(to: Ipv6Addr, payload: Payload) -> Packet {
    Packet::ip(DC, (GATEWAY, Mac::new([2, 3, 0, 6, 0, 40])), (six(FAR), to), payload).in_vlan(100)
}

/// A routed port leaves from its own host, as it is, from its own MAC address outside; what is not routed stays, and so does what is not its port's.
#[test]
fn what_is_routed_leaves_as_it_is() {
    let world = world(cloud(&[1]));
    for (port, host) in [(BLUE_1, 0), (BLUE_2, 1), (RED_1, 1), (OPEN, 0)] {
        let ends = world.ends(host, &world.from(port, six(FAR), HTTP), Connection::New);
        let [(at, end)] = &ends[..] else { panic!("{ends:?}") };
        assert_eq!((*at, end.verdict.to_string().as_str()), (host, "sent out to physical network dc in VLAN 100"));
        let leaving = &end.leaving;
        assert_eq!(leaving.get(Field::Ipv6Src), world.cloud.address6(port).unwrap().to_bits());
        assert_eq!(leaving.get(Field::EthSrc), u128::from_be_bytes(wide(world.cloud.ports[port].routed_mac())));
        assert_eq!(leaving.get(Field::EthDst), u128::from_be_bytes(wide(GATEWAY)));
        assert_eq!(leaving.get(Field::IpTtl), 63);
    }
    let says = |packet: &Packet| world.says(0, packet, Connection::New);
    let inside = says(&world.from(GREEN_1, six(FAR), HTTP));
    assert!(inside.ends_with("its address is in no prefix that is routed outside, so it stays inside"), "{inside}");
    let other = world.from(OPEN, six(FAR), HTTP).with(Field::Ipv6Src, six("2001:db8:100:1::99"));
    assert!(says(&other).ends_with("its port does not have this address, so no answer would come to it"));
    for to in ["fe80::1", "ff02::1:2", "ff05::2"] {
        let says = says(&world.from(BLUE_1, six(FAR), HTTP).with(Field::Ipv6Dst, six(to)));
        assert!(says.ends_with("of one link, and are not routed out"), "{to}: {says}");
    }
    assert_eq!(
        says(&world.from(BLUE_1, world.cloud.address6(GREEN_1).unwrap(), HTTP)),
        "host 0: delivered to port green-1"
    );
    let near = says(&world.from(BLUE_1, six("2001:db8:ffff::9"), HTTP));
    assert_eq!(near, "host 0: handed to the agent: who has 2001:db8:ffff::9 on network outer");
    assert_eq!(
        says(&world.from(BLUE_1, world.cloud.address6(OUTER_1).unwrap(), HTTP)),
        "host 0: delivered to port outer-1"
    );
    let other_router = says(&world.from(BLUE_1, world.cloud.address6(RED_1).unwrap(), HTTP));
    assert_eq!(other_router, "host 0: sent out to physical network dc in VLAN 100", "by way of the data centre");
}

/// What comes from outside reaches a port on its own host alone, if its rules let it in; by a router's own address it is passed on to that host, as it was.
#[test]
fn what_comes_from_outside_reaches_its_port() {
    let world = world(cloud(&[1]));
    for (port, host) in [(BLUE_1, 0), (BLUE_2, 1), (RED_1, 1), (OPEN, 0)] {
        for other in 0..2 {
            let says = world.says(other, &inbound(&world.cloud, port, HTTP), Connection::New);
            let name = &world.cloud.ports[port].name;
            let delivered = format!("host {host}: delivered to port {name}");
            assert_eq!(says == delivered, other == host, "{says}");
        }
    }
    let says = |packet: &Packet| world.says(0, packet, Connection::New);
    assert!(says(&inbound(&world.cloud, BLUE_1, SSH)).contains("dropped in ingress"));
    assert!(says(&inbound(&world.cloud, BLUE_1, HTTP).with(Field::IpTtl, 1_u8)).ends_with("its hop limit ran out"));
    let pretended = inbound(&world.cloud, BLUE_1, HTTP).with(Field::Ipv6Src, six("fd00:0:0:2::d"));
    assert!(says(&pretended).ends_with("no sender outside has an address of fd00:0:0:2::/64"), "{}", says(&pretended));
    let of_other = inbound(&world.cloud, BLUE_1, HTTP).with(Field::Ipv6Src, world.cloud.address6(RED_1).unwrap());
    assert_eq!(says(&of_other), "host 0: delivered to port blue-1", "the other router's is one as any outside");
    let delivered = &world.ends(0, &inbound(&world.cloud, BLUE_1, HTTP), Connection::New)[0].1.leaving;
    assert_eq!(delivered.get(Field::IpTtl), 63);

    let gateway = |to: usize, payload| {
        let packet = by_router(world.cloud.address6(to).unwrap(), payload);
        [0, 1].map(|host| world.says(host, &packet, Connection::New))
    };
    let [other, here] = gateway(BLUE_1, HTTP);
    assert_eq!(here, "host 0: delivered to port blue-1", "by tunnel");
    assert!(other.starts_with("host 0: dropped in forward"), "it does not have the router's address: {other}");
    assert!(gateway(BLUE_1, SSH)[1].starts_with("host 0: dropped in ingress"));
    assert_eq!(gateway(BLUE_2, HTTP)[1], "host 1: delivered to port blue-2", "its port is here");
    let passed_on = world.ends(1, &by_router(world.cloud.address6(BLUE_1).unwrap(), HTTP), Connection::New);
    assert_eq!(passed_on[0].1.leaving.get(Field::IpTtl), 63, "routed once");
    for to in
        ["2001:db8:100:1::99", "2001:db8:100:77::1", "2001:db8:100:4::e", "fd00:0:0:2::d", "2001:db8:ffff::28", FAR]
    {
        let says = world.says(1, &by_router(six(to), HTTP), Connection::New);
        assert_eq!(says, "host 1: dropped in beyond: router main: no port behind the router has this address", "{to}");
    }
}

/// Solicitations from outside are handed to the agent of the port's host, those for the router's address to that of its gateway host.
#[test]
fn who_is_asked_for_is_known_on_one_host() {
    let world = world(cloud(&[1]));
    let ask = |target: Ipv6Addr| {
        let ask = Packet::neighbour_solicit(DC, (GATEWAY, six(GATEWAY_AT)), target).in_vlan(100);
        [0, 1].map(|host| world.says(host, &ask, Connection::New).contains("it says who has"))
    };
    let at = |port: usize| world.cloud.address6(port).unwrap();
    assert_eq!(ask(at(BLUE_1)), [true, false]);
    assert_eq!(ask(at(BLUE_2)), [false, true]);
    assert_eq!(ask(world.cloud.ports[BLUE_1].routed_mac().link_local()), [true, false]);
    assert_eq!(ask(at(GREEN_1)), [false, false]);
    assert_eq!(ask(six("2001:db8:ffff::28")), [false, true]);
    assert_eq!(ask(six("2001:db8:ffff::29")), [true, false]);
}

/// A host that comes after one that it has not heard yet does nothing by the router's address: what the wire floods is passed on once.
#[test]
fn who_stands_by_unheard_passes_nothing_on() {
    let cloud = cloud(&[0, 1]);
    let packet = by_router(cloud.address6(BLUE_1).unwrap(), HTTP);
    let world = World::of(cloud, 2, |cloud, host| PortNumbers { peers: Peers::default(), ..cloud.numbers(host) });
    let says = world.says(1, &packet, Connection::New);
    assert!(says.starts_with("host 1: dropped in forward"), "{says}");
}

/// The switch takes the flows, and says of packets in and out what the model says.
#[test]
fn the_model_and_the_switch_agree() {
    require!(Need::Root, Need::OpenVswitch);
    let mut cloud = cloud(&[0, 1]);
    walled(&mut cloud);
    let world = world(cloud);
    for host in 0..2 {
        let mut rig = Rig::start(&world.cloud, host).unwrap();
        rig.numbers = world.numbers[host].clone();
        let set = rig.install(&world.cloud).unwrap();
        let changes = dataplane::diff(&set, &rig.installed().unwrap());
        assert!(changes.is_empty(), "{changes:#?}");
        let mut packets = Vec::new();
        for payload in [ECHO, HTTP, SSH] {
            for port in [BLUE_1, BLUE_2, GREEN_1, RED_1, OPEN, OUTER_1] {
                let at = world.cloud.address6(port).unwrap();
                if world.host_of(port) == host {
                    let to = [six(FAR), six(GATEWAY_AT), six("2001:db8:ffff::9"), world.cloud.address6(RED_1).unwrap()];
                    let to = to.into_iter().filter(|to| port != OUTER_1 && *to != at);
                    packets.extend(to.map(|to| world.from(port, to, payload)));
                }
                for packet in [inbound(&world.cloud, port, payload), by_router(at, payload)] {
                    packets.push(packet.clone().with(Field::IpTtl, 1_u8));
                    packets.push(packet.clone().with(Field::Ipv6Src, six("fd00:0:0:2::d")));
                    packets.push(packet);
                }
            }
        }
        for target in ["2001:db8:100:1::b", "2001:db8:100:1::c", "2001:db8:ffff::28", "2001:db8:ffff::29"] {
            let sender = (GATEWAY, six(GATEWAY_AT));
            packets.push(Packet::neighbour_solicit(DC, sender, six(target)).in_vlan(100));
            let told = Packet::neighbour_advert(DC, sender, six(GATEWAY_AT)).in_vlan(100);
            packets.push(told.with(Field::EthDst, world.cloud.ports[BLUE_1].routed_mac().bytes()));
        }
        rig.ask_all(&set, &packets);
    }
}

/// Gives the first router a firewall: in TCP 80 and pings, out all but mail.
#[cfg(test)]
fn walled(cloud: &mut Cloud) -> (usize, usize) {
    let (ingress, egress) = cloud.wall(MAIN);
    let mut judge = |policy, at, action: FirewallAction, carried| {
        cloud.judge(policy, at, action, carried, (None, None)).ethertype = Ethertype::IPv6;
    };
    judge(ingress, 0, Allow, carried_tcp(80));
    judge(ingress, 1, Allow, Carried::Icmp);
    judge(egress, 0, Deny, carried_tcp(25));
    judge(egress, 1, Allow, Carried::Any);
    (ingress, egress)
}

/// A firewall judges both ways on the host of the port, whichever way a packet comes.
#[test]
fn a_firewall_judges_where_the_port_is() {
    let mut cloud = cloud(&[1]);
    let (ingress, _) = walled(&mut cloud);
    let open = |cloud: &mut Cloud| {
        cloud.rule_of(Ethertype::IPv6, 0, Direction::Ingress, Protocol::Any, Remote::Any);
    };
    open(&mut cloud);
    let world = world(cloud);
    let says = |host, packet: &Packet| world.says(host, packet, Connection::New);
    let at = world.cloud.address6(BLUE_1).unwrap();
    for (host, packet) in [(0, inbound(&world.cloud, BLUE_1, HTTP)), (1, by_router(at, HTTP))] {
        assert_eq!(says(host, &packet), "host 0: delivered to port blue-1");
    }
    for (host, packet) in [(0, inbound(&world.cloud, BLUE_1, SSH)), (1, by_router(at, SSH))] {
        let says = says(host, &packet);
        assert!(says.starts_with("host 0: dropped in firewall: router main"), "{says}");
    }
    let mail = Payload::Tcp { source: 40_000, target: 25 };
    let refused = says(0, &world.from(BLUE_1, six(FAR), mail));
    assert!(refused.contains("does not allow it out"), "{refused}");
    assert_eq!(says(0, &world.from(BLUE_1, six(FAR), HTTP)), "host 0: sent out to physical network dc in VLAN 100");
    let other = says(1, &inbound(&world.cloud, RED_1, SSH));
    assert_eq!(other, "host 1: delivered to port red-1", "the other router has none");
    assert!(ingress < world.cloud.firewall_policies.len());
}

/// A router without a way out by IPv6 costs nothing, and what one port costs is its own.
#[test]
fn flows_are_as_many_as_ports() {
    let count = |cloud: &Cloud, host: usize| dataplane::compile(&cloud.host(host), &cloud.numbers(host)).flows().len();
    let with = cloud(&[1]);
    let mut more = with.clone();
    more.port("blue-9", 0, 0, 99, &[]);
    let mut without = more.clone();
    without.routers.iter_mut().for_each(|router| router.ipv6_gateway = None);
    let mut before = with.clone();
    before.routers.iter_mut().for_each(|router| router.ipv6_gateway = None);
    let here = (count(&more, 0) - count(&with, 0)) - (count(&without, 0) - count(&before, 0));
    // In, back in, out, and solicitations of its address and the link-local one, from outside and from here.
    assert_eq!(here, 7);
    let gateway = (count(&more, 1) - count(&with, 1)) - (count(&without, 1) - count(&before, 1));
    assert_eq!(gateway, 1, "the gateway host knows where it is");
}

/// The router of the data centre: the gateway of VLAN 100 by IPv6, with somebody beyond.
#[cfg(test)]
fn upstream(datacentre: &basalt_tests::ovs::Switch) -> Result<Machine> {
    let outside = outside::gateway(datacentre)?;
    let run = |words: &[&str]| outside.namespace.run(words).map(drop);
    run(&["sysctl", "-qw", "net.ipv6.conf.all.forwarding=1"])?;
    run(&["ip", "address", "add", &format!("{GATEWAY_AT}/64"), "dev", "eth0", "nodad"])?;
    run(&["ip", "address", "add", &format!("{FAR}/128"), "dev", "lo", "nodad"])?;
    Ok(outside)
}

#[cfg(test)]
async fn plug(host: &Host, cloud: &Cloud, port: usize) -> Result<Machine> {
    let machine = host.plug(&cloud.ports[port]).await?;
    machine.configure_both(cloud.address(port), cloud.address6(port))?;
    Ok(machine)
}

/// Two hosts on the wire of the data centre, whose router has the prefix on its link: machines reach what is beyond it and are reached, by pings and TCP;
/// rules and the firewall hold, both ways; routers reach each other that way; what is not routed stays inside; a port that moves to the other host is
/// reached there. Then that router routes the prefix by the address of a router of the cloud, which the other host has: the same again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_are_routed_both_ways() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let mut cloud = cloud(&[1]);
    let dc = outside::datacentre()?;
    let nothing = |host| HostNetwork::empty(host_id(host), endpoint(host));
    let wires = [("dc", &dc)];
    let hosts = [Host::start_wired(nothing(0), &wires).await?, Host::start_wired(nothing(1), &wires).await?];
    hosts[0].link(&hosts[1])?;
    let outside = upstream(&dc)?;
    let route = |words: &[&str]| outside.namespace.run(&[&["ip", "-6", "route"], words].concat()).map(drop);
    route(&["add", "2001:db8:100::/40", "dev", "eth0"])?;
    let blue_1 = plug(&hosts[0], &cloud, BLUE_1).await?;
    let blue_2 = plug(&hosts[1], &cloud, BLUE_2).await?;
    let green_1 = plug(&hosts[0], &cloud, GREEN_1).await?;
    let red_1 = plug(&hosts[1], &cloud, RED_1).await?;
    for (number, host) in hosts.iter().enumerate() {
        host.program(cloud.host(number)).await?;
    }
    let [at_1, at_2, at_red] = [BLUE_1, BLUE_2, RED_1].map(|port| cloud.address6(port).unwrap());
    eventually("does blue-1 reach what is beyond", || Ok(blue_1.pings(six(FAR))? == 3))?;
    eventually("does blue-2 reach what is beyond", || Ok(blue_2.pings(six(FAR))? == 3))?;
    assert_eq!(outside.pings(at_1)?, 3, "blue-1 from outside");
    assert_eq!(outside.pings(at_2)?, 3, "blue-2 from outside");
    assert!(!green_1.leaks(six(FAR))?, "its addresses are not routed");
    let beyond = outside.listen(443)?;
    assert!(blue_1.reaches(six(FAR), &beyond)?, "out by TCP");
    let (open, shut) = (blue_1.listen(80)?, blue_1.listen(22)?);
    assert!(outside.reaches(at_1, &open)?, "in by TCP");
    assert!(!outside.intrudes(at_1, &shut)?, "no rule lets that in");
    let open_2 = blue_2.listen(80)?;
    assert!(red_1.reaches(at_2, &open_2)?, "from behind another router on the same host, by way of the data centre");
    assert!(red_1.reaches(at_1, &open)?, "and on another");
    assert_eq!(blue_1.pings(at_red)?, 3);

    // By the router's own address, which host 1 has.
    route(&["del", "2001:db8:100::/40", "dev", "eth0"])?;
    route(&["add", "2001:db8:100:1::/64", "via", "2001:db8:ffff::28"])?;
    route(&["add", "2001:db8:100:4::/64", "via", "2001:db8:ffff::29"])?;
    eventually("is blue-1 reached by the gateway host", || Ok(outside.pings(at_1)? == 3))?;
    assert_eq!(outside.pings(at_2)?, 3, "the port is on the gateway host");
    assert!(outside.reaches(at_1, &open)? && outside.reaches(at_2, &open_2)?);
    assert!(!outside.intrudes(at_1, &shut)?, "no rule lets that in, by tunnel either");
    assert!(blue_1.reaches(six(FAR), &beyond)?, "answers come by the gateway host");
    assert!(red_1.reaches(at_1, &open)? && blue_1.pings(at_red)? == 3, "the other router's is on host 0");
    assert!(!outside.leaks(six("2001:db8:100:1::99"))?);

    // A firewall sees both directions, though packets come in by another host.
    walled(&mut cloud);
    cloud.rule_of(Ethertype::IPv6, 0, Direction::Ingress, Protocol::Any, Remote::Any);
    for (number, host) in hosts.iter().enumerate() {
        host.program(cloud.host(number)).await?;
    }
    let mail = outside.listen(25)?;
    assert!(outside.reaches(at_1, &open)? && !outside.intrudes(at_1, &shut)?, "the firewall's word on what comes in");
    assert!(blue_1.reaches(six(FAR), &beyond)? && !blue_1.intrudes(six(FAR), &mail)?, "and on what goes out");
    route(&["del", "2001:db8:100:1::/64", "via", "2001:db8:ffff::28"])?;
    route(&["add", "2001:db8:100::/40", "dev", "eth0"])?;
    eventually("is blue-1 reached on the link again", || Ok(outside.pings(at_1)? == 3))?;
    assert!(outside.reaches(at_1, &open)? && !outside.intrudes(at_1, &shut)?, "the same on the link");
    assert!(blue_1.reaches(six(FAR), &beyond)? && !blue_1.intrudes(six(FAR), &mail)?);

    // Blue-1 goes to the other host; stations outside know its MAC address still.
    drop((blue_1, open, shut));
    let port = cloud.ports[BLUE_1].clone();
    hosts[0].host.remove_port(&port.tap_name()).await?;
    let binding = cloud.ports[BLUE_1].binding.as_mut().unwrap();
    (binding.host, binding.tunnel) = (host_id(1), endpoint(1));
    let blue_1 = plug(&hosts[1], &cloud, BLUE_1).await?;
    for (number, host) in hosts.iter().enumerate() {
        host.program(cloud.host(number)).await?;
    }
    let open = blue_1.listen(80)?;
    eventually("is it reached on the other host", || Ok(outside.pings(at_1)? == 3))?;
    assert!(outside.reaches(at_1, &open)? && blue_1.reaches(six(FAR), &beyond)?);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Over random tenants whose routers lead out, of which what is routed is of one, of both or of none: a packet leaves just from ports whose address is routed
    /// and whose rules let it out, with that address; one from outside reaches its port alone, on its host, if its rules let it in, whichever way it comes; and
    /// none of either reaches another port.
    #[test]
    fn routed_addresses_lead_to_their_ports_only(seed in any::<u64>()) {
        let mut random = Random::new(seed);
        let mut cloud = random::cloud(&mut random);
        // A port that is awaited elsewhere is sent copies there.
        cloud.ports.iter_mut().for_each(|port| port.arriving = None);
        for (network, cidr) in [(2, "fd01:0:0:1::/64"), (3, "fd01:0:0:2::/64")] {
            cloud.renumber6(network, cidr);
        }
        let outer = cloud.network("outer", "203.0.113.0/24");
        cloud.ipv6(outer, "2001:db8:ffff::/64");
        cloud.provide(outer, "dc", Some(100));
        let routed = *random.pick(&[&["fd00::/16", "fd01::/16"][..], &["fd00::/16"], &["fd01:0:0:2::/64"], &[]]);
        cloud.routed(outer, routed);
        for router in 0..cloud.routers.len() {
            cloud.lead_out6(router, outer, &[random.below(HOSTS)], 40 + u8::try_from(router).unwrap());
        }
        let stations = Stations::from([((cloud.networks[outer].id, IpAddr::V6(six(GATEWAY_AT))), GATEWAY)]);
        let numbers = |cloud: &Cloud, host| PortNumbers { stations: stations.clone(), ..cloud.numbers(host) };
        let world = World::of(cloud, HOSTS, numbers);
        for (number, port) in world.cloud.ports.iter().enumerate() {
            let Some(at) = world.cloud.address6(number) else { continue };
            let (host, payload) = (world.host_of(number), random.payload(Ethertype::IPv6));
            let subnet = port.addresses.iter().find(|fixed| fixed.address == IpAddr::V6(at)).unwrap().subnet;
            let behind = |router: &&Router| router.interfaces.iter().any(|foot| foot.subnet == subnet);
            let router = world.cloud.routers.iter().find(behind);
            let is_routed = router.is_some() && world.cloud.networks[outer].routes(ipnet::IpNet::from(IpAddr::V6(at)));
            let lets = |direction| {
                !port.port_security || random::lets_stranger(&world.cloud, port, six(FAR).into(), direction, payload)
            };
            let near = &world.numbers[host];
            if let Ok(packet) = Packet::from_port(&world.cloud.host(host), near, port, six(FAR), payload) {
                let ends = world.ends(host, &packet, Connection::New);
                let left: Vec<_> = ends.iter().filter(|(_, it)| it.verdict.to_string().starts_with("sent out")).collect();
                assert_eq!(left.len(), usize::from(is_routed && lets(Direction::Egress)), "seed {seed}, {}: {ends:?}", port.name);
                for (_, outcome) in left {
                    assert_eq!(outcome.leaving.get(Field::Ipv6Src), at.to_bits(), "seed {seed}");
                }
            }
            let straight = Packet::ip(DC, (GATEWAY, port.routed_mac()), (six(FAR), at), payload).in_vlan(100);
            let gateway = router.and_then(|router| router.ipv6_gateway.as_ref());
            let by_router = gateway.map(|gateway| Packet::ip(DC, (GATEWAY, gateway.mac), (six(FAR), at), payload).in_vlan(100));
            for packet in [Some(straight), by_router].into_iter().flatten() {
                let mut reached = 0;
                for first in 0..HOSTS {
                    for (end, outcome) in world.ends(first, &packet, Connection::New) {
                        let Verdict::Delivered { .. } = outcome.verdict else { continue };
                        let words = outcome.verdict.to_string();
                        assert_eq!((end, words), (host, format!("delivered to port {}", port.name)), "seed {seed}");
                        reached += 1;
                    }
                }
                assert_eq!(reached, usize::from(is_routed && lets(Direction::Ingress)), "seed {seed}, {}", port.name);
            }
        }
    }
}

//! Firewalls of routers: in the model, in a real switch, and with real packets of two hosts, one of which is the gateway of the router, and a station of
//! the data centre: by floating IPs, by the router's own address and by ports forwarded from that.

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

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use basalt_tests::require;
use basalt_tests::skip::Need;
use basalt_tests::tcp::accept;
use dataplane::compile::{Compiler, Edit, Stations};
use dataplane::table::Table;
use dataplane::trace::{Cause, Connection, Packet, Payload, Verdict, blame};
use dataplane::{PortNumbers, compile, diff, trace};
use hosts::{Host, Machine};
use model::firewall::{Carried, Ends, FirewallAction, FirewallPolicy, RANK_MAX};
use model::network::ForwardedProtocol::{Tcp, Udp};
use model::network::{RouterInterface, Subnet};
use model::security::{Direction, Ethertype, PortRange, Remote};
use model::spec::HostNetwork;
use model::{Mac, SubnetId};
use openflow::flow::Field;
use outside::{DC, FAR, GATEWAY, GATEWAY_AT, eventually, plug};
use proptest::prelude::{ProptestConfig, any, proptest};
use rig::Rig;
use topology::random::{self, HOSTS, Random, lets_stranger};
use topology::{Cloud, PING, carried_tcp, carried_udp, endpoint, host_id, tcp, udp};
use world::World;

use FirewallAction::{Allow, Deny};

const BLUE_1: usize = 0;
const BLUE_2: usize = 1;
const OPEN: usize = 2;
const LESS: usize = 3;
const GREEN: usize = 4;
const MAIN: usize = 0;
/// The last octets of the router's address outside, and of floating IPs.
const MAIN_AT: u8 = 40;
const BLUE_1_AT: u8 = 50;
const OPEN_AT: u8 = 51;
const LESS_AT: u8 = 52;
const IN: usize = 0;
const OUT: usize = 1;
const NOBODY: (Option<&str>, Option<&str>) = (None, None);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
const SILENCE: Duration = Duration::from_millis(700);

const fn at(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, last)
}

const fn to_tcp(target: u16) -> Payload {
    Payload::Tcp { source: 40_000, target }
}

const fn to_udp(target: u16) -> Payload {
    Payload::Udp { source: 40_000, target }
}

/// Blue and green are behind a router that leads out, with an address on host 0 and a firewall without a rule. blue-1 on host 0 has a floating IP; blue-2 on host 1 has
/// none, and TCP 8080 and UDP 5000 of the router lead to its 80 and 9000. open on host 1 has a floating IP and no port security, less on host 0 one and a stateless group.
/// All may be pinged, and asked on TCP ports 22 and 80 and UDP 9000.
fn cloud() -> Cloud {
    let mut cloud = Cloud::default();
    let blue = cloud.network("blue", "10.0.1.0/24");
    let green = cloud.network("green", "10.0.2.0/24");
    let outer = cloud.network("outer", "203.0.113.0/24");
    cloud.provide(outer, "dc", Some(100));
    cloud.router("main", &[blue, green]);
    let [all, stateless] = ["all", "stateless"].map(|name| {
        let group = cloud.group(name);
        cloud.allow(group, PING, Remote::Any);
        for port in [22, 80] {
            cloud.allow(group, tcp(port, port), Remote::Any);
        }
        cloud.allow(group, udp(9000, 9000), Remote::Any);
        group
    });
    cloud.groups[stateless].stateful = false;
    // Replies, which a stateless group asks its rules of.
    cloud.allow(stateless, tcp(32_768, 65_535), Remote::Any);
    cloud.allow(stateless, udp(33_000, 33_000), Remote::Any);
    cloud.port("blue-1", blue, 0, 11, &[all]);
    cloud.port("blue-2", blue, 1, 12, &[all]);
    cloud.port("open", blue, 1, 13, &[]);
    cloud.ports[OPEN].port_security = false;
    cloud.port("less", blue, 0, 14, &[stateless]);
    cloud.port("green-1", green, 1, 21, &[all]);
    cloud.lead_out(MAIN, outer);
    cloud.share(MAIN, &[0], MAIN_AT);
    for (port, last) in [(BLUE_1, BLUE_1_AT), (OPEN, OPEN_AT), (LESS, LESS_AT)] {
        cloud.float(MAIN, port, last);
    }
    cloud.forward(MAIN, (Tcp, 8080), (BLUE_2, 80));
    cloud.forward(MAIN, (Udp, 5000), (BLUE_2, 9000));
    cloud.wall(MAIN);
    cloud
}

impl World {
    #[cfg(test)]
    fn new(cloud: Cloud, hosts: usize) -> Self {
        let outer = cloud.networks.last().unwrap().id;
        let mut stations = Stations::from([((outer, GATEWAY_AT.into()), GATEWAY)]);
        for external in cloud.routers.iter().filter_map(|it| it.external.as_ref()) {
            stations.extend(external.snat.iter().map(|snat| ((outer, snat.address.into()), snat.mac)));
            stations.extend(external.floating_ips.iter().map(|it| ((outer, it.address.into()), it.mac)));
        }
        Self::of(cloud, hosts, |cloud, host| PortNumbers { stations: stations.clone(), ..cloud.numbers(host) })
    }
}

/// From the wire to an address outside.
fn knock(last: u8, payload: Payload) -> Packet {
    Packet::ip(DC, (GATEWAY, Mac::new([2, 3, 0, 0, 0, last])), (FAR, at(last)), payload).in_vlan(100)
}

/// The host that has an address outside.
const fn holder(last: u8) -> usize {
    if last == OPEN_AT { 1 } else { 0 }
}

/// What becomes of a packet from outside, and of one to there.
fn inward(cloud: &Cloud, last: u8, payload: Payload) -> String {
    World::new(cloud.clone(), 2).says(holder(last), &knock(last, payload), Connection::New)
}

fn outward(cloud: &Cloud, port: usize, payload: Payload) -> String {
    let world = World::new(cloud.clone(), 2);
    world.says(world.host_of(port), &world.from(port, FAR, payload), Connection::New)
}

const GONE: &str = "sent out to physical network dc in VLAN 100";

/// A firewall without a rule lets nothing cross; one without a policy for a direction says so. Who is to blame is named.
#[test]
fn what_no_rule_is_for_does_not_cross() {
    let mut cloud = cloud();
    let closed = "dropped in firewall: router main: no firewall rule of it is for this";
    for last in [BLUE_1_AT, OPEN_AT, LESS_AT] {
        assert_eq!(inward(&cloud, last, to_tcp(80)), format!("host {}: {closed}", holder(last)));
    }
    assert_eq!(inward(&cloud, MAIN_AT, to_tcp(8080)), format!("host 0: {closed}"));
    for (port, host) in [(BLUE_1, 0), (BLUE_2, 0), (OPEN, 1), (LESS, 0)] {
        assert_eq!(outward(&cloud, port, to_tcp(443)), format!("host {host}: {closed}"), "{port}: where it leaves");
    }
    cloud.routers[MAIN].firewall.as_mut().unwrap().egress = None;
    let none = "host 0: dropped in firewall: router main: its firewall has no policy for this direction";
    assert_eq!(outward(&cloud, BLUE_1, to_tcp(443)), none);
    cloud.routers[MAIN].firewall = None;
    assert_eq!(outward(&cloud, BLUE_1, to_tcp(443)), format!("host 0: {GONE}"));
    assert_eq!(inward(&cloud, BLUE_1_AT, to_tcp(80)), "host 0: delivered to port blue-1");
}

/// Addresses and ports of rules are those behind the router: for a floating IP, for the router's own address, and for a forwarded port.
#[test]
fn rules_speak_of_addresses_behind_the_router() {
    let allowed = |policy: usize, protocol: Carried, source: Option<&str>, destination: Option<&str>| {
        let mut cloud = cloud();
        cloud.judge(policy, 0, Allow, protocol, (source, destination));
        cloud
    };
    let to = |port: u16, destination: &str| allowed(IN, carried_tcp(port), None, Some(destination));
    assert_eq!(inward(&to(80, "10.0.1.11/32"), BLUE_1_AT, to_tcp(80)), "host 0: delivered to port blue-1");
    assert!(inward(&to(80, "203.0.113.50/32"), BLUE_1_AT, to_tcp(80)).starts_with("host 0: dropped in firewall"));
    assert_eq!(inward(&to(80, "10.0.1.12/32"), MAIN_AT, to_tcp(8080)), "host 1: delivered to port blue-2");
    assert!(inward(&to(8080, "10.0.1.12/32"), MAIN_AT, to_tcp(8080)).starts_with("host 0: dropped in firewall"));
    assert!(inward(&to(80, "203.0.113.40/32"), MAIN_AT, to_tcp(8080)).starts_with("host 0: dropped in firewall"));
    let seen = allowed(IN, carried_tcp(80), Some("198.51.100.0/24"), None);
    assert_eq!(inward(&seen, BLUE_1_AT, to_tcp(80)), "host 0: delivered to port blue-1");
    for (port, source, outer) in
        [(BLUE_1, "10.0.1.11/32", "203.0.113.50/32"), (BLUE_2, "10.0.1.12/32", "203.0.113.40/32")]
    {
        let from = |source: &str| allowed(OUT, carried_tcp(443), Some(source), Some("198.51.100.7/32"));
        assert_eq!(outward(&from(source), port, to_tcp(443)), format!("host 0: {GONE}"));
        assert!(outward(&from(outer), port, to_tcp(443)).starts_with("host 0: dropped in firewall"), "{outer}");
    }
    // Who has a floating IP is judged by it like anybody: ports without security and with stateless groups, too.
    for (last, name) in [(OPEN_AT, "open"), (LESS_AT, "less")] {
        let host = holder(last);
        assert_eq!(inward(&seen, last, to_tcp(80)), format!("host {host}: delivered to port {name}"));
        assert!(inward(&seen, last, to_udp(9000)).starts_with(&format!("host {host}: dropped in firewall")));
    }
    // Security groups judge beside it.
    let wide = allowed(IN, Carried::Any, None, None);
    assert_eq!(inward(&wide, OPEN_AT, to_tcp(23)), "host 1: delivered to port open");
    assert!(inward(&wide, BLUE_1_AT, to_tcp(23)).starts_with("host 0: dropped in ingress: no rule of the receiver's"));
    assert!(inward(&wide, BLUE_1_AT, to_tcp(22)).starts_with("host 0: delivered"));
}

/// The first rule that is for a packet decides, and one that is switched off is none. The rule is named.
#[test]
fn the_first_rule_for_a_packet_decides() {
    let mut cloud = cloud();
    cloud.judge(IN, 0, Allow, carried_tcp(80), NOBODY);
    let arrives = "host 0: delivered to port blue-1";
    assert_eq!(inward(&cloud, BLUE_1_AT, to_tcp(80)), arrives);
    cloud.judge(IN, 1, Deny, Carried::Any, NOBODY);
    assert_eq!(inward(&cloud, BLUE_1_AT, to_tcp(80)), arrives, "it comes after");
    let denied = "host 0: dropped in firewall: firewall rule rule-2 of policy in-0: router main does not allow it in";
    assert_eq!(inward(&cloud, BLUE_1_AT, to_tcp(22)), denied);
    cloud.judge(IN, 0, Deny, Carried::Any, (Some("198.51.100.0/24"), None));
    assert_eq!(inward(&cloud, BLUE_1_AT, to_tcp(80)), denied.replace("rule-2", "rule-3"), "it comes before");
    cloud.firewall_policies[IN].rules[0].enabled = false;
    assert_eq!(inward(&cloud, BLUE_1_AT, to_tcp(80)), arrives);
    let world = World::new(cloud.clone(), 1);
    let (host, packet) = (world.cloud.host(0), knock(BLUE_1_AT, to_tcp(22)));
    let found = blame(&host, &world.numbers[0], &packet, &trace(&world.sets[0], &packet, Connection::New)).unwrap();
    let want = "firewall rule rule-2 of policy in-0: router main does not allow it in";
    assert_eq!((found.cause, found.line.as_str()), (Cause::Firewall, want));
    let path = trace(&world.sets[0], &knock(BLUE_1_AT, to_tcp(80)), Connection::New).to_string();
    assert!(path.contains("firewall rule rule-1 of policy in-0: router main lets it in"), "{path}");
}

/// Replies pass in both directions, whatever the rules; an invalid packet does not.
#[test]
fn replies_need_no_rule() {
    let world = World::new(cloud(), 2);
    for last in [BLUE_1_AT, LESS_AT, OPEN_AT] {
        let answer = Payload::Tcp { source: 443, target: 40_000 };
        let said = world.says(holder(last), &knock(last, answer), Connection::Reply);
        assert!(said.contains("delivered to port"), "{said}");
        let stray = world.says(holder(last), &knock(last, to_tcp(80)), Connection::Invalid);
        assert!(stray.contains("dropped in firewall: router main: the connection tracker finds"), "{stray}");
    }
    let answer = knock(MAIN_AT, Payload::Tcp { source: 443, target: 40_000 });
    let answer = answer.with(Field::CtNwSrc, world.cloud.address(BLUE_2));
    assert_eq!(world.says(0, &answer, Connection::Reply), "host 1: delivered to port blue-2");
    let from = world.from(BLUE_1, FAR, Payload::Tcp { source: 80, target: 40_000 });
    assert_eq!(world.says(0, &from, Connection::Reply), format!("host 0: {GONE}"));
}

/// What does not cross a border with a firewall never comes to its tables, and a host that does not translate has none of its rules.
#[test]
fn what_stays_inside_pays_nothing() {
    let mut cloud = cloud();
    for number in 0..50 {
        cloud.judge(IN, number, Allow, carried_tcp(1000 + u16::try_from(number).unwrap()), NOBODY);
    }
    let world = World::new(cloud.clone(), 2);
    for port in [BLUE_2, GREEN] {
        let packet = world.from(BLUE_1, world.cloud.address(port), to_tcp(80));
        let path = trace(&world.sets[0], &packet, Connection::New);
        assert!(path.hops.iter().all(|hop| hop.name != "firewall" && hop.name != "border"), "{path}");
    }
    let of = |set: &dataplane::FlowSet, table: Table| set.table(table.number()).count();
    let count = |cloud: &Cloud, host: usize| {
        let set = compile(&cloud.host(host), &cloud.numbers(host));
        (of(&set, Table::Firewall), of(&set, Table::Border))
    };
    assert_eq!(count(&cloud, 0), (56, 16));
    cloud.routers[MAIN].external.as_mut().unwrap().floating_ips.retain(|it| it.address != at(OPEN_AT));
    assert_eq!(count(&cloud, 1), (1, 1), "it is not the gateway, and has no floating IP");
    cloud.routers[MAIN].firewall = None;
    assert_eq!(count(&cloud, 0), (1, 1));
}

/// Of a policy of 1,000 rules, one more in the middle is one flow, one with a range of ports its masks, and nothing else is touched. A firewall that goes
/// leaves no connection behind.
#[test]
fn one_rule_touches_its_own_flows() {
    let mut cloud = cloud();
    for number in 0..1000 {
        cloud.judge(IN, number, Allow, carried_tcp(1 + u16::try_from(number).unwrap()), (Some("192.0.2.0/24"), None));
    }
    cloud.firewall_policies[IN].spread();
    let numbers = cloud.numbers(0);
    let mut compiler = Compiler::new(cloud.host(0));
    compiler.update(cloud.host(0), &numbers);
    let put = |cloud: &Cloud| vec![Edit::PutFirewallPolicy(Box::new(cloud.firewall_policies[IN].clone()))];
    cloud.judge(IN, 500, Deny, carried_udp(53), NOBODY);
    assert_eq!(compiler.edit(put(&cloud)).flows.len(), 1);
    let ends = Ends { source: PortRange::ALL, destination: PortRange::new(1000, 1999).unwrap() };
    cloud.judge(IN, 500, Deny, Carried::Tcp(ends), NOBODY);
    assert_eq!(compiler.edit(put(&cloud)).flows.len(), ends.destination.masks().len());
    cloud.firewall_policies[IN].rules.remove(500);
    cloud.firewall_policies[IN].rules[500].action = Allow;
    assert_eq!(compiler.edit(put(&cloud)).flows.len(), ends.destination.masks().len() + 1);
    assert_eq!(*compiler.flows(), compile(&cloud.host(0), &numbers));
    let before = compiler.flows();
    let installed = dataplane::Installed {
        flows: before.flows().cloned().collect(),
        groups: before.groups().cloned().collect(),
        meters: before.meters().cloned().collect(),
    };
    assert_eq!(diff(before, &installed).stale_zones.len(), 0);
    cloud.routers[MAIN].firewall = None;
    let changes = diff(&compile(&cloud.host(0), &numbers), &installed);
    assert_eq!(changes.stale_zones.len(), 1, "{:?}", changes.stale_zones);
}

/// A cloud whose network blue has a second router, without a firewall, that leads out to the same network; gives that router's number.
#[cfg(test)]
fn beside() -> (Cloud, usize) {
    let mut cloud = cloud();
    let second = Subnet {
        id: SubnetId::from_uuid(uuid::Uuid::from_u128(77)),
        cidr: "10.0.3.0/24".parse().unwrap(),
        gateway: Some(Ipv4Addr::new(10, 0, 3, 1).into()),
        ..cloud.subnets[0].clone()
    };
    let other = cloud.router("other", &[]);
    let (address, mac) = (Ipv4Addr::new(10, 0, 3, 1).into(), Mac::new([2, 1, 0, 9, 9, 9]));
    cloud.routers[other].interfaces.push(RouterInterface { subnet: second.id, address, mac });
    cloud.subnets.push(second);
    let outer = cloud.networks.len() - 1;
    cloud.lead_out(other, outer);
    (cloud, other)
}

/// A machine that sends its packet to another router of its network, which has no firewall, does not leave by the floating IP of the first.
#[test]
fn another_router_leads_out_by_its_own_addresses() {
    let (mut cloud, other) = beside();
    let mac = cloud.routers[other].interfaces[0].mac;
    let said = |cloud: &Cloud| {
        let world = World::new(cloud.clone(), 2);
        world.says(0, &world.from(BLUE_1, FAR, to_tcp(443)).with(Field::EthDst, mac.bytes()), Connection::New)
    };
    assert_eq!(
        said(&cloud),
        "host 0: dropped in route: router other: no port here has a floating IP of the router to leave by"
    );
    cloud.share(other, &[0], 45);
    let world = World::new(cloud.clone(), 2);
    let packet = world.from(BLUE_1, FAR, to_tcp(443)).with(Field::EthDst, mac.bytes());
    let [(0, end)] = &world.ends(0, &packet, Connection::New)[..] else { panic!("one end") };
    assert_eq!((end.verdict.to_string().as_str(), end.leaving.address(Field::Ipv4Src)), (GONE, at(45)));
}

/// An error about what a forwarded port's machine answered is one about a connection that was allowed: it goes on to the machine.
#[test]
fn errors_about_forwarded_ports_come_in() {
    let world = World::new(cloud(), 2);
    let error = knock(MAIN_AT, Payload::Icmp { kind: 3, code: 4 }).with(Field::CtNwSrc, world.cloud.address(BLUE_2));
    assert_eq!(world.says(0, &error, Connection::Related), "host 1: delivered to port blue-2");
    let error = knock(BLUE_1_AT, Payload::Icmp { kind: 3, code: 1 });
    let said = world.says(0, &error, Connection::Related);
    assert!(said.contains("handed to the agent: it puts 10.0.1.11 in the place of 203.0.113.50"), "{said}");
}

/// A firewall that allows less has what it remembers of UDP and other protocols without acknowledgements forgotten; one that allows more forgets nothing;
/// and a zone that goes from one router to another is forgotten whole.
#[test]
fn less_is_allowed_and_silence_forgotten() {
    let compiled = |cloud: &Cloud| compile(&cloud.host(0), &cloud.numbers(0));
    let changes = |from: &Cloud, to: &Cloud| {
        let before = compiled(from);
        let installed = dataplane::Installed {
            flows: before.flows().cloned().collect(),
            groups: before.groups().cloned().collect(),
            meters: before.meters().cloned().collect(),
        };
        let changes = diff(&compiled(to), &installed);
        let protocols: Vec<u8> = changes.stale_connections.iter().map(|flush| flush.proto).collect();
        assert!(changes.stale_connections.iter().all(|flush| flush.zone == Some(8193)));
        (protocols, changes.stale_zones.len())
    };
    let mut allowed = cloud();
    allowed.judge(OUT, 0, Allow, Carried::Any, NOBODY);
    assert_eq!(changes(&cloud(), &allowed), (vec![], 0), "more");
    assert_eq!(changes(&allowed, &cloud()), (vec![1, 17, 47, 50], 0), "less");
    let mut denied = allowed.clone();
    denied.judge(OUT, 0, Deny, carried_udp(53), NOBODY);
    assert_eq!(changes(&allowed, &denied), (vec![1, 17, 47, 50], 0), "another less");
    assert_eq!(changes(&denied, &allowed), (vec![], 0), "and again");
    let mut other = cloud();
    other.routers[MAIN].key += 8192;
    let (_, stale) = changes(&cloud(), &other);
    assert!(stale >= 1, "the same zone, of another router");
}

/// Two routers share policies: each judges by them what crosses its own border.
#[test]
fn routers_share_policies() {
    let mut cloud = Cloud::default();
    let networks = [cloud.network("blue", "10.0.1.0/24"), cloud.network("red", "10.0.1.0/24")];
    let outer = cloud.network("outer", "203.0.113.0/24");
    cloud.provide(outer, "dc", Some(100));
    for (number, network) in networks.into_iter().enumerate() {
        let router = cloud.router(["main", "other"][number], &[network]);
        let port = cloud.port(["blue-1", "red-1"][number], network, 0, 11, &[]);
        cloud.ports[port].port_security = false;
        cloud.lead_out(router, outer);
        cloud.float(router, port, [50, 51][number]);
    }
    let (ingress, _) = cloud.wall(0);
    cloud.routers[1].firewall = cloud.routers[0].firewall;
    cloud.judge(ingress, 0, Allow, carried_tcp(80), NOBODY);
    cloud.judge(ingress, 1, Deny, carried_tcp(22), NOBODY);
    let world = World::new(cloud, 1);
    for (last, name, router) in [(50, "blue-1", "main"), (51, "red-1", "other")] {
        assert_eq!(
            world.says(0, &knock(last, to_tcp(80)), Connection::New),
            format!("host 0: delivered to port {name}")
        );
        let denied = format!("firewall rule rule-2 of policy in-0: router {router} does not allow it in");
        assert!(world.says(0, &knock(last, to_tcp(22)), Connection::New).ends_with(&denied));
    }
}

#[cfg(test)]
/// A random cloud whose routers lead out, most of them with a firewall, with floating IPs and forwarded ports.
fn walled(random: &mut Random) -> Cloud {
    let mut cloud = random::cloud(random);
    let outer = cloud.network("outer", "203.0.113.0/24");
    cloud.provide(outer, "dc", Some(100));
    for router in 0..cloud.routers.len() {
        cloud.lead_out(router, outer);
        cloud.share(router, &[random.below(HOSTS)], 40 + u8::try_from(router).unwrap());
        let feet: Vec<_> = cloud.routers[router].interfaces.iter().map(|foot| foot.subnet).collect();
        for port in 0..cloud.ports.len() {
            let number = u8::try_from(port).unwrap();
            if !feet.contains(&cloud.ports[port].addresses[0].subnet) {
                continue;
            }
            match random.below(3) {
                0 => drop(cloud.float(router, port, 100 + number)),
                1 => cloud.forward(router, (Tcp, 80 + u16::from(number)), (port, *random.pick(&[22, 80, 1000, 9000]))),
                _ => {}
            }
        }
        if random.once_in(5) {
            continue;
        }
        let policies = cloud.wall(router);
        for policy in [policies.0, policies.1] {
            for _ in 0..random.below(6) {
                let rules = cloud.firewall_policies[policy].rules.len();
                let range = |random: &mut Random| {
                    let ranges = [(0, u16::MAX), (80, 80), (22, 1100), (30_000, 30_000), (1000, 9000)];
                    let (first, last) = *random.pick(&ranges);
                    PortRange::new(first, last).unwrap()
                };
                let ends = Ends { source: range(random), destination: range(random) };
                let protocols =
                    [Carried::Any, Carried::Tcp(ends), Carried::Udp(ends), Carried::Icmp, Carried::Number(47)];
                let protocol = *random.pick(&protocols);
                let prefixes =
                    [None, Some("10.0.0.0/16"), Some("10.0.1.0/24"), Some("10.0.2.11/32"), Some("198.51.100.0/24")];
                let (action, at) = (*random.pick(&[Allow, Allow, Deny]), random.below(rules + 1));
                let sides = (*random.pick(&prefixes), *random.pick(&prefixes));
                cloud.judge(policy, at, action, protocol, sides).enabled = !random.once_in(6);
            }
        }
    }
    cloud
}

/// Whether a firewall lets a new connection cross, told without flows.
fn crosses(cloud: &Cloud, router: usize, direction: Direction, ends: [Ipv4Addr; 2], payload: Payload) -> bool {
    let Some(firewall) = cloud.routers[router].firewall else { return true };
    let policy = firewall.policy(direction).and_then(|id| cloud.firewall_policies.iter().find(|it| it.id == id));
    let holds = |range: PortRange, port: u16| range.holds(port);
    let is_for = |policy: &FirewallPolicy| {
        policy
            .rules
            .iter()
            .filter(|rule| rule.enabled)
            .find(|rule| {
                let carried = match (rule.protocol, payload) {
                    (Carried::Any, _) | (Carried::Icmp, Payload::Icmp { .. }) => true,
                    (Carried::Tcp(both), Payload::Tcp { source, target })
                    | (Carried::Udp(both), Payload::Udp { source, target }) => {
                        holds(both.source, source) && holds(both.destination, target)
                    }
                    (Carried::Number(want), Payload::Protocol(number)) => want == number,
                    _ => false,
                };
                let sides = [rule.source, rule.destination].into_iter().zip(ends);
                let mut sides =
                    sides.map(|(prefix, end)| prefix.is_none_or(|prefix| prefix.contains(&std::net::IpAddr::V4(end))));
                rule.ethertype == Ethertype::IPv4 && carried && sides.all(|is_in| is_in)
            })
            .map(|rule| rule.action)
    };
    policy.and_then(is_for) == Some(Allow)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Of random clouds, just those packets cross a border that its firewall and the groups of the port let by; and nobody but whom they are for has them.
    #[test]
    fn only_what_both_allow_crosses(seed in any::<u64>()) {
        let mut random = Random::new(seed);
        let world = World::new(walled(&mut random), HOSTS);
        let cloud = &world.cloud;
        for (router, way) in cloud.routers.iter().enumerate() {
            let external = way.external.as_ref().unwrap();
            let snat = external.snat.as_ref().unwrap();
            for (number, port) in cloud.ports.iter().enumerate() {
                if !way.interfaces.iter().any(|foot| foot.subnet == port.addresses[0].subnet) {
                    continue;
                }
                let (payload, fixed, home) = (random.payload(Ethertype::IPv4), cloud.address(number), world.host_of(number));
                let lets = |direction, payload| !port.port_security || lets_stranger(cloud, port, FAR.into(), direction, payload);
                let floating = external.floating_ips.iter().find(|it| it.port == port.id);
                let Ok(packet) = Packet::from_port(&cloud.host(home), &world.numbers[home], port, FAR, payload) else { continue };
                let left = world.ends(home, &packet, Connection::New);
                let left = left.iter().filter(|(_, end)| matches!(end.verdict, Verdict::Physical { .. })).count();
                let want = lets(Direction::Egress, payload) && crosses(cloud, router, Direction::Egress, [fixed, FAR], payload);
                assert_eq!(left, usize::from(want), "seed {seed}: {} {payload:?} out", port.name);
                let forwarded = snat.forwardings.iter().find(|it| it.port == port.id);
                let (address, mac, sent, arrives, host) = match (floating, forwarded) {
                    (Some(it), _) => (it.address, it.mac, payload, payload, home),
                    (None, Some(it)) => {
                        let sent = Payload::Tcp { source: 30_000, target: it.external_port };
                        let gateway = (0..HOSTS).find(|host| snat.gateway().is_some_and(|it| it.host == host_id(*host)));
                        (snat.address, snat.mac, sent, Payload::Tcp { source: 30_000, target: it.internal_port }, gateway.unwrap())
                    }
                    _ => continue,
                };
                let packet = Packet::ip(DC, (GATEWAY, mac), (FAR, address), sent).in_vlan(100);
                let mut reached: Vec<_> = world.ends(host, &packet, Connection::New).into_iter().filter_map(|(_, end)| match end.verdict {
                    Verdict::Delivered { name, .. } => Some(name),
                    _ => None,
                }).collect();
                // On the host that awaits it, too.
                reached.dedup();
                let may = lets(Direction::Ingress, arrives) && crosses(cloud, router, Direction::Ingress, [FAR, fixed], arrives);
                let want: Vec<_> = may.then(|| format!("port {}", port.name)).into_iter().collect();
                assert_eq!(reached, want, "seed {seed}: {} {arrives:?} in", port.name);
            }
        }
    }
}

/// The switches of hosts take the flows of random clouds, and say of packets that cross borders what the model says.
#[test]
fn the_model_and_the_switch_agree() {
    require!(Need::Root, Need::OpenVswitch);
    let mut clouds: Vec<Cloud> = (1..=5).map(|seed| walled(&mut Random::new(seed))).collect();
    let mut own = cloud();
    own.judge(IN, 0, Allow, carried_tcp(80), (Some("198.51.100.0/24"), Some("10.0.1.0/24")));
    own.judge(IN, 1, Deny, Carried::Icmp, NOBODY);
    own.judge(OUT, 0, Allow, Carried::Any, (Some("10.0.1.0/24"), None));
    clouds.push(own);
    clouds.push(beside().0);
    for (number, cloud) in clouds.into_iter().enumerate() {
        let mut random = Random::new(number as u64);
        let world = World::new(cloud, 2);
        for host in 0..2 {
            let mut packets = Vec::new();
            for (port, it) in world.cloud.ports.iter().enumerate().filter(|(_, port)| port.is_on(host_id(host))) {
                let payload = random.payload(Ethertype::IPv4);
                packets.extend(Packet::from_port(&world.cloud.host(host), &world.numbers[host], it, FAR, payload).ok());
                let (source, target) = (80, 40_000);
                let answer = Payload::Tcp { source, target };
                packets.extend(Packet::from_port(&world.cloud.host(host), &world.numbers[host], it, FAR, answer).ok());
                let _ = port;
            }
            for external in world.cloud.routers.iter().filter_map(|router| router.external.as_ref()) {
                for floating in &external.floating_ips {
                    let ends = ((GATEWAY, floating.mac), (FAR, floating.address));
                    for payload in [to_tcp(80), to_udp(9000), random.payload(Ethertype::IPv4)] {
                        packets.push(Packet::ip(DC, ends.0, ends.1, payload).in_vlan(100));
                    }
                }
                if let Some(snat) = &external.snat {
                    for payload in snat.forwardings.iter().map(|it| to_tcp(it.external_port)).chain([to_tcp(9)]) {
                        packets.push(Packet::ip(DC, (GATEWAY, snat.mac), (FAR, snat.address), payload).in_vlan(100));
                    }
                }
            }
            let mut rig = Rig::start(&world.cloud, host).unwrap();
            rig.numbers = world.numbers[host].clone();
            let set = rig.install(&world.cloud).unwrap();
            let changes = diff(&set, &rig.installed().unwrap());
            assert!(changes.is_empty(), "{changes:#?}");
            rig.ask_all(&set, &packets);
        }
    }
    assert_eq!(RANK_MAX, 60_000, "ranks become priorities");
}

/// A socket inside a machine.
fn socket(machine: &Machine, address: Ipv4Addr, port: u16) -> Result<UdpSocket> {
    let socket = machine.namespace.enter(|| UdpSocket::bind((address, port)))?.context("bind inside a machine")?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(socket)
}

/// Connects to a port outside of the machine and stays.
fn connect(machine: &Machine, to: (Ipv4Addr, u16), server: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let address = SocketAddr::from(to);
    let client =
        machine.namespace.enter(|| TcpStream::connect_timeout(&address, ANSWER_TIMEOUT))?.context("connect")?;
    Ok((client, accept(server, ANSWER_TIMEOUT)?))
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

/// Both ways.
fn both((one, other): &(TcpStream, TcpStream)) -> Result<()> {
    talk(one, other, ANSWER_TIMEOUT)?;
    talk(other, one, ANSWER_TIMEOUT)
}

/// Has all hosts do as the cloud says.
async fn program(hosts: &[Host], cloud: &Cloud) -> Result<()> {
    for (number, host) in hosts.iter().enumerate() {
        host.program(cloud.host(number)).await?;
    }
    Ok(())
}

/// Who asked something by UDP, and as whom it was seen.
type Asked<'a> = (&'a str, UdpSocket, SocketAddr);

/// Has machines ask a server by UDP and hear it.
fn ask<'a>(server: &UdpSocket, machines: &[(&'a str, &Machine)]) -> Result<Vec<Asked<'a>>> {
    let mut asked = Vec::new();
    for (name, machine) in machines {
        let client = socket(machine, Ipv4Addr::UNSPECIFIED, 33_000)?;
        client.send_to(b"?", (FAR, 7000))?;
        let (_, seen) = server.recv_from(&mut [0; 16]).with_context(|| format!("{name} asks"))?;
        server.send_to(b"!", seen)?;
        client.recv(&mut [0; 16]).with_context(|| format!("{name} hears"))?;
        asked.push((*name, client, seen));
    }
    Ok(asked)
}

/// The server goes on without a word of theirs, and is heard no more.
fn hear_no_more(server: &UdpSocket, asked: &[Asked<'_>]) -> Result<()> {
    for (name, client, seen) in asked {
        client.set_read_timeout(Some(SILENCE))?;
        eventually(&format!("is {name} told nothing more"), || {
            server.send_to(b"!", seen)?;
            Ok(client.recv(&mut [0; 16]).is_err())
        })?;
    }
    Ok(())
}

/// An error about a datagram that was allowed in comes back: nobody listens there.
fn hears_of_a_closed_port(station: &Machine) -> Result<()> {
    let asking = socket(station, Ipv4Addr::UNSPECIFIED, 0)?;
    asking.connect((at(BLUE_1_AT), 9000))?;
    eventually("is the station told that nobody listens", || {
        let told = asking.send(b"?").and_then(|_| asking.recv(&mut [0; 16]));
        Ok(told.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused))
    })
}

/// Two hosts on the wire of the data centre, one the gateway. Connections cross both ways by floating IP, the router's own address and a forwarded port, as
/// the rules say, from ports that are guarded, stateless or without security; their replies pass, and errors about them; what is revoked is cut at once,
/// and nothing else is; the order of rules decides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_cross_as_the_rules_say() -> Result<()> {
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
    let open = plug(&hosts[1], &cloud, OPEN).await?;
    let less = plug(&hosts[0], &cloud, LESS).await?;
    let machines = [("blue-1", &blue_1), ("blue-2", &blue_2), ("open", &open), ("less", &less)];

    // Out: pings, and TCP to port 443; in: TCP to port 80 only.
    cloud.judge(OUT, 0, Allow, Carried::Icmp, NOBODY);
    cloud.judge(OUT, 1, Allow, carried_tcp(443), (Some("10.0.1.0/24"), None));
    cloud.judge(OUT, 2, Allow, carried_udp(7000), NOBODY);
    cloud.judge(IN, 0, Allow, carried_tcp(80), (None, Some("10.0.1.0/24")));
    cloud.judge(IN, 1, Allow, carried_udp(9000), NOBODY);
    program(&hosts, &cloud).await?;
    for (name, machine) in machines {
        eventually(&format!("does {name} get out"), || Ok(machine.pings(GATEWAY_AT)? == 3))?;
    }
    let (https, other) = (station.listen(443)?, station.listen(444)?);
    let mut out = Vec::new();
    for (name, machine) in machines {
        let pair = connect(machine, (FAR, 443), &https).with_context(|| format!("{name} out"))?;
        both(&pair).with_context(|| format!("{name} out, both ways"))?;
        out.push((name, pair));
        assert!(!machine.intrudes(FAR, &other)?, "{name}: no rule is for that");
    }
    let served = [(&blue_1, BLUE_1_AT, 80), (&blue_2, MAIN_AT, 8080), (&open, OPEN_AT, 80), (&less, LESS_AT, 80)];
    let mut inward = Vec::new();
    for (machine, last, port) in served {
        let listener = machine.listen(80)?;
        let pair = connect(&station, (at(last), port), &listener).with_context(|| format!("in by {last}"))?;
        both(&pair).with_context(|| format!("in by {last}, both ways"))?;
        inward.push((last, pair, listener));
    }
    for (machine, last) in [(&blue_1, BLUE_1_AT), (&open, OPEN_AT), (&less, LESS_AT)] {
        assert!(!station.intrudes(at(last), &machine.listen(22)?)?, "{last}: groups allow it, the firewall does not");
        assert!(!station.leaks(at(last))?, "{last}: pings out are allowed, in they are not");
    }

    hears_of_a_closed_port(&station)?;

    // Between two floating IPs of one router, out and in again.
    let listener = &inward[0].2;
    assert!(!less.intrudes(at(BLUE_1_AT), listener)?, "it may not go out to port 80");
    cloud.judge(OUT, 0, Allow, carried_tcp(80), (Some("10.0.1.14/32"), None));
    program(&hosts, &cloud).await?;
    assert!(less.reaches(at(BLUE_1_AT), listener)?, "hairpin");
    for (name, pair) in &out {
        both(pair).with_context(|| format!("{name}: a change that does not concern it"))?;
    }

    let names = socket(&station, FAR, 7000)?;
    let asked = ask(&names, &machines)?;

    // What is revoked is cut both ways, and nothing else is; given back, it goes on.
    let before = cloud.firewall_policies.clone();
    cloud.judge(OUT, 0, Deny, carried_tcp(443), (None, Some("198.51.100.0/24")));
    program(&hosts, &cloud).await?;
    cloud.judge(OUT, 0, Deny, carried_udp(7000), NOBODY);
    program(&hosts, &cloud).await?;
    hear_no_more(&names, &asked)?;
    for (name, (machine, station)) in &out {
        assert!(talk(machine, station, SILENCE).is_err(), "{name}: cut on its way out");
        assert!(talk(station, machine, SILENCE).is_err(), "{name}: and back");
    }
    for (last, pair, _) in &inward {
        both(pair).with_context(|| format!("{last}: what came in lives on"))?;
    }
    cloud.judge(IN, 0, Deny, Carried::Any, (Some("203.0.113.1/32"), None));
    program(&hosts, &cloud).await?;
    for (last, (station, machine), _) in &inward {
        // What the machine says first arrives once: it is not acknowledged, and that is the end.
        let is_cut = || Ok(talk(machine, station, SILENCE).is_err());
        eventually(&format!("is {last} cut on its way back"), is_cut)?;
        assert!(talk(station, machine, SILENCE).is_err(), "{last}: and in");
    }
    cloud.firewall_policies = before;
    program(&hosts, &cloud).await?;
    for (last, port) in [(BLUE_1_AT, 80), (MAIN_AT, 8080)] {
        let listener = inward.iter().find(|it| it.0 == last).map(|it| &it.2).context("a listener")?;
        both(&connect(&station, (at(last), port), listener)?).with_context(|| format!("{last}: allowed again"))?;
    }
    Ok(())
}

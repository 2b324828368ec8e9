//! What the model says of packets: in words, for known packets; and for random clouds, that just those packets arrive that the rules allow.

#[cfg(test)]
mod topology;

use std::net::Ipv4Addr;

use dataplane::trace::{Connection, Origin, Packet, Path, Payload, Question, Verdict, explain};
use dataplane::{FlowSet, compile, trace};
use model::Mac;
use model::security::{Direction, Ethertype, Protocol, Remote};
use openflow::flow::{Field, PortNo};
use proptest::prelude::{any, proptest};
use topology::random::{self, HOSTS, Random, is_allowed};
use topology::{Cloud, VXLAN, endpoint, host_id, two_subnets};

const WEB_1: usize = 0;
const WEB_2: usize = 1;
const DB_1: usize = 2;
const DB_2: usize = 3;
const OPEN_1: usize = 4;

const HTTP: Payload = Payload::Tcp { source: 40_000, target: 80 };
const SQL: Payload = Payload::Tcp { source: 40_000, target: 5432 };
const ECHO: Payload = Payload::Icmp { kind: 8, code: 0 };

/// All hosts of a cloud with their flows.
struct World {
    cloud: Cloud,
    sets: Vec<FlowSet>,
}

impl World {
    fn new(cloud: Cloud, hosts: usize) -> Self {
        let sets = (0..hosts).map(|host| compile(&cloud.host(host), &cloud.numbers(host))).collect();
        Self { cloud, sets }
    }

    fn host_of(&self, port: usize) -> usize {
        (0..self.sets.len()).find(|host| self.cloud.ports[port].is_on(host_id(*host))).unwrap_or(0)
    }

    #[cfg(test)]
    fn packet(&self, from: usize, to: Ipv4Addr, payload: Payload) -> Packet {
        let host = self.host_of(from);
        let (network, numbers) = (self.cloud.host(host), self.cloud.numbers(host));
        Packet::from_port(&network, &numbers, &self.cloud.ports[from], to, payload).unwrap()
    }

    /// The keys of the ports that a packet put in at a host reaches, over tunnels too.
    fn arrivals(&self, host: usize, packet: &Packet, connection: Connection) -> Vec<u32> {
        let mut keys = Vec::new();
        for outcome in trace(&self.sets[host], packet, connection).outcomes {
            match outcome.verdict {
                Verdict::Delivered { port, .. } => keys.push(port),
                Verdict::Tunnelled { endpoint: at, vni, .. } => {
                    let other = (0..self.sets.len()).find(|other| endpoint(*other) == at);
                    let Some(other) = other else { panic!("no host has endpoint {at}") };
                    keys.extend(self.arrivals(
                        other,
                        &outcome.leaving.out_of_tunnel(VXLAN, (endpoint(host), vni)),
                        connection,
                    ));
                }
                _ => {}
            }
        }
        keys.sort_unstable();
        keys
    }

    #[cfg(test)]
    fn path(&self, from: usize, to: Ipv4Addr, payload: Payload, connection: Connection) -> Path {
        trace(&self.sets[self.host_of(from)], &self.packet(from, to, payload), connection)
    }
}

#[cfg(test)]
fn words(path: &Path) -> String {
    path.verdicts().iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
}

/// The verdicts of the two-subnet cloud, as an operator reads them.
#[test]
fn verdicts_are_in_the_users_words() {
    let world = World::new(two_subnets(), 2);
    let to = |port: usize| world.cloud.address(port);
    let new = Connection::New;
    let says = |from, to, payload, connection| words(&world.path(from, to, payload, connection));
    assert_eq!(says(OPEN_1, to(WEB_1), HTTP, new), "delivered to port web-1");
    assert_eq!(
        says(OPEN_1, to(WEB_1), Payload::Tcp { source: 1, target: 81 }, new),
        "dropped in ingress: no rule of the receiver's security groups lets this in (port web-1: members of web)"
    );
    let host_2 = host_id(1);
    assert_eq!(says(WEB_1, to(WEB_2), ECHO, new), format!("sent to host {host_2} at 172.20.0.2 with VNI 5001"));
    assert_eq!(says(WEB_1, to(DB_2), SQL, new), format!("sent to host {host_2} at 172.20.0.2 with VNI 5002"));
    assert_eq!(says(WEB_1, to(DB_1), SQL, new), "delivered to port db-1");
    assert!(says(OPEN_1, to(DB_1), SQL, new).starts_with("dropped in ingress: "), "open-1 is in no group");
    assert_eq!(says(DB_1, to(OPEN_1), SQL, Connection::Reply), "delivered to port open-1");
    assert_eq!(
        says(WEB_1, to(DB_1), SQL, Connection::Invalid),
        "dropped in state: the connection tracker finds the packet invalid"
    );
    assert_eq!(says(WEB_1, Ipv4Addr::new(10, 0, 2, 1), ECHO, new), "answered by router main");
    assert_eq!(says(WEB_1, Ipv4Addr::new(10, 0, 2, 77), ECHO, new), {
        "dropped in host: no port on the destination subnet has this address"
    });
    assert_eq!(says(WEB_1, Ipv4Addr::new(8, 8, 8, 8), ECHO, new), {
        "dropped in route: router main: it has no route to this destination"
    });
}

/// ARP is answered, DHCP handed over, spoofing dropped, broadcast copied to each port but the sender's, and to the other host.
#[test]
fn arp_dhcp_spoofing_and_broadcast() {
    let world = World::new(two_subnets(), 2);
    let cloud = &world.cloud;
    let (number, mac, mine) = (PortNo(10), cloud.mac(WEB_1), cloud.address(WEB_1));
    let says = |packet: Packet| words(&trace(&world.sets[0], &packet, Connection::New));
    let arp = |target| Packet::arp_request(number, (mac, mine), target);
    assert_eq!(says(arp(cloud.address(WEB_2))), "answered by this host for port web-2");
    assert_eq!(says(arp(Ipv4Addr::new(10, 0, 1, 1))), "answered by router main");
    assert_eq!(says(arp(mine)), "dropped in arp: port web-1: it asks for its own address");
    let probe = Packet::arp_request(number, (mac, Ipv4Addr::UNSPECIFIED), mine);
    assert_eq!(says(probe), "dropped in classify: it asks whether an address is taken, which the switch knows better");
    let unknown = trace(&world.sets[0], &arp(Ipv4Addr::new(10, 0, 1, 99)), Connection::New);
    assert!(unknown.reaches(5) && !unknown.reaches(1), "{unknown}");
    assert_eq!(
        unknown.outcomes.iter().filter(|o| matches!(o.verdict, Verdict::Tunnelled { vni: 5001, .. })).count(),
        1
    );
    assert_eq!(says(Packet::dhcp_discover(number, mac)), "handed to the agent: DHCP request of port web-1");
    let spoofed =
        "dropped in classify: the sender may not use this source address, or its port or network is not known here";
    let gateway = Mac::new([2, 1, 0, 0, 0, 0]);
    let stolen = Packet::ip(number, (mac, gateway), (cloud.address(WEB_2), cloud.address(DB_1)), SQL);
    assert_eq!(says(stolen), spoofed);
    let stolen = Packet::ip(number, (cloud.mac(WEB_2), gateway), (mine, cloud.address(DB_1)), SQL);
    assert_eq!(says(stolen), spoofed);
    assert_eq!(says(arp(cloud.address(WEB_2)).with(Field::ArpSpa, cloud.address(OPEN_1))), spoofed);
    let expired = world.packet(WEB_1, cloud.address(DB_1), SQL).with(Field::IpTtl, 1);
    assert_eq!(says(expired), "dropped in route: its time to live ran out");
    let server = world.packet(WEB_1, cloud.address(OPEN_1), Payload::Udp { source: 67, target: 68 });
    assert_eq!(says(server), "dropped in egress: guests may not serve DHCP (port web-1: members of web)");
}

/// A routed packet arrives with the router's MAC address, one hop less to live, on the destination's network; the whole path reads well.
#[test]
fn a_routed_packet_is_rewritten_on_the_sending_host() {
    let world = World::new(two_subnets(), 2);
    let path = world.path(WEB_1, world.cloud.address(DB_2), SQL, Connection::New);
    let leaving = &path.outcomes[0].leaving;
    assert_eq!(leaving.get(Field::IpTtl), 63);
    assert_eq!(leaving.to_text().split(",eth_src=").nth(1).map(|rest| &rest[..17]), Some("02:01:00:00:00:01"));
    let arrival = trace(&world.sets[1], &leaving.out_of_tunnel(VXLAN, (endpoint(0), 5002)), Connection::New);
    assert_eq!(arrival.verdicts().len(), 1);
    assert!(arrival.reaches(4), "{arrival}");
    let text = arrival.to_string();
    for part in ["port web-1", "sender identity: members of web", "allow tcp port 5432 from members of web"] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let json = serde_json::to_value(&arrival).unwrap();
    assert_eq!(json["outcomes"][0]["verdict"]["delivered"]["name"], "port db-2");

    // The same from a host that has no part in this cloud.
    let strange = trace(&world.sets[1], &leaving.out_of_tunnel(VXLAN, (endpoint(7), 5002)), Connection::New);
    assert_eq!(words(&strange), "dropped in classify: it came by tunnel, and from no host that this one knows");
}

/// Questions and answers travel as JSON, the packet that left one host among them, and are answered at the next.
#[test]
fn a_question_follows_a_packet_from_host_to_host() {
    let cloud = two_subnets();
    let world = World::new(cloud.clone(), 2);
    let ask = |host: usize, question: &Question| {
        let json = serde_json::to_string(question).unwrap();
        let question: Question = serde_json::from_str(&json).unwrap();
        let (network, numbers) = (cloud.host(host), cloud.numbers(host));
        let (_, path) = explain(&network, &numbers, &world.sets[host], &question).unwrap();
        let path: Path = serde_json::from_str(&serde_json::to_string(&path).unwrap()).unwrap();
        path
    };
    let port = cloud.ports[WEB_1].id;
    let target = cloud.address(DB_2);
    let origin = |pretend| Origin::Port { port, target: target.into(), payload: SQL, pretend };
    let connection = Connection::New;
    let sent = ask(0, &Question { origin: origin(None), connection });
    let Verdict::Tunnelled { vni, .. } = sent.outcomes[0].verdict else { panic!("{sent}") };
    assert_eq!(sent.why_not(), None);
    let packet = sent.outcomes[0].leaving.clone();
    assert!(ask(1, &Question { origin: Origin::Tunnel { packet, from: endpoint(0), vni }, connection }).reaches(4));
    let spoofed = ask(0, &Question { origin: origin(Some(cloud.address(WEB_2).into())), connection });
    assert!(matches!(spoofed.why_not(), Some(Verdict::Dropped { table, .. }) if table == "classify"), "{spoofed}");
    let arp = ask(0, &Question { origin: Origin::Arp { port, target: cloud.address(WEB_2) }, connection });
    assert_eq!(words(&arp), "answered by this host for port web-2");
    let dhcp = ask(0, &Question { origin: Origin::Dhcp { port }, connection });
    assert_eq!(words(&dhcp), "handed to the agent: DHCP request of port web-1");
    let elsewhere = Question { origin: Origin::Dhcp { port: cloud.ports[WEB_2].id }, connection };
    let error = elsewhere.packet(&cloud.host(0), &cloud.numbers(0)).unwrap_err();
    assert_eq!(error.to_string(), "make a packet from port web-2: it is not plugged in on this host");
    let bad = r#"{"no_such_field": "0x1"}"#;
    assert!(serde_json::from_str::<Packet>(bad).is_err());
}

/// A rule that is taken away stops the connections that it had allowed, in both directions, and a group joined opens at once.
#[test]
fn rules_and_memberships_hold_at_once() {
    let mut cloud = two_subnets();
    let (web_2, db_1) = (cloud.address(WEB_2), cloud.address(DB_1));
    let open = World::new(cloud.clone(), 2);
    assert_eq!(words(&open.path(WEB_1, db_1, SQL, Connection::Established)), "delivered to port db-1");
    cloud.groups[1].rules.retain(|rule| rule.direction == Direction::Egress);
    let closed = World::new(cloud.clone(), 2);
    let path = closed.path(WEB_1, db_1, SQL, Connection::Established);
    assert!(path.to_string().contains("marks the connection dead"), "{path}");
    assert!(words(&path).starts_with("dropped in ingress: "));

    cloud.ports[WEB_2].groups.clear();
    cloud.allow(1, Protocol::Any, Remote::Group(cloud.groups[0].id));
    let sql_from_web_2 = |cloud: &Cloud| {
        let world = World::new(cloud.clone(), 2);
        let packet = Packet::ip(VXLAN, (Mac::new([2, 1, 0, 0, 0, 1]), cloud.mac(DB_1)), (web_2, db_1), SQL);
        world.arrivals(0, &packet.out_of_tunnel(VXLAN, (endpoint(1), 5002)), Connection::New)
    };
    assert_eq!(sql_from_web_2(&cloud), [0; 0]);
    cloud.ports[WEB_2].groups.push(cloud.groups[0].id);
    assert_eq!(sql_from_web_2(&cloud), [3]);
}

proptest! {
    /// In random clouds of two tenants with the same addresses, a new connection arrives just where the rules say, and nowhere else: within a
    /// subnet, routed, on one host and across hosts.
    #[test]
    fn just_what_the_rules_allow_arrives(seed in any::<u64>()) {
        let mut random = Random::new(seed);
        let world = World::new(random::cloud(&mut random), HOSTS);
        for _ in 0..40 {
            let (from, to) = (random.below(world.cloud.ports.len()), random.below(world.cloud.ports.len()));
            if from == to {
                continue;
            }
            let at = random.pick(&world.cloud.ports[to].addresses).address;
            let payload = random.payload(random::version(at));
            let host = world.host_of(from);
            let (network, numbers) = (world.cloud.host(host), world.cloud.numbers(host));
            let packet = Packet::from_port(&network, &numbers, &world.cloud.ports[from], at, payload);
            let Ok(packet) = packet else { continue };
            let mut keys = world.arrivals(host, &packet, Connection::New);
            // On the host that awaits it, too.
            keys.dedup();
            // The other tenant has the same addresses: what the sender's own tenant has there is meant.
            let meant = (0..world.cloud.ports.len()).find(|port| {
                *port != from
                    && world.cloud.ports[*port].addresses.iter().any(|fixed| fixed.address == at)
                    && world.cloud.ports[*port].name.split('-').next() == world.cloud.ports[from].name.split('-').next()
            });
            let want: Vec<u32> = meant
                .filter(|port| is_allowed(&world.cloud, from, (*port, at), payload))
                .map(|port| world.cloud.ports[port].key)
                .into_iter()
                .collect();
            assert_eq!(keys, want, "{} to {} with {payload:?}\n{}", world.cloud.ports[from].name, packet.to_text(),
                trace(&world.sets[host], &packet, Connection::New));
        }
    }

    /// Whatever a guest sends, with any source and destination, it never reaches a port of the other tenant, not as a reply either.
    #[test]
    fn tenants_never_reach_each_other(seed in any::<u64>()) {
        let mut random = Random::new(seed);
        let world = World::new(random::cloud(&mut random), HOSTS);
        let tenant = |port: usize| world.cloud.ports[port].name.split('-').next().map(str::to_owned);
        let mut macs: Vec<Mac> = world.cloud.ports.iter().map(|port| port.mac).collect();
        macs.extend(world.cloud.routers.iter().flat_map(|router| &router.interfaces).map(|foot| foot.mac));
        macs.push(Mac::BROADCAST);
        for _ in 0..40 {
            let from = random.below(world.cloud.ports.len());
            let host = world.host_of(from);
            let number = world.cloud.numbers(host).of(&world.cloud.ports[from]).unwrap();
            let to = random.below(world.cloud.ports.len());
            let source = if random.once_in(2) { from } else { random.below(world.cloud.ports.len()) };
            let mac = *random.pick(&macs);
            let macs = (world.cloud.mac(source), mac);
            let six = world.cloud.address6(source).zip(world.cloud.address6(to)).filter(|_| random.once_in(2));
            let packet = match six {
                Some((_, target)) if random.once_in(5) => {
                    Packet::neighbour_solicit(number, (macs.0, macs.0.link_local()), target)
                }
                Some(addresses) => Packet::ip(number, macs, addresses, random.payload(Ethertype::IPv6)),
                None if random.once_in(5) => {
                    let target = world.cloud.address(to);
                    Packet::arp_request(number, (macs.0, world.cloud.address(source)), target)
                }
                None => {
                    let addresses = (world.cloud.address(source), world.cloud.address(to));
                    Packet::ip(number, macs, addresses, random.payload(Ethertype::IPv4))
                }
            };
            let connection = *random.pick(&[Connection::New, Connection::Established, Connection::Reply, Connection::Related]);
            let packet = match random.below(6) {
                0 => packet,
                1 => packet.in_vlan(u16::try_from(random.below(20)).unwrap() + 1),
                _ => packet.sent_by(&world.cloud.ports[from]),
            };
            for key in world.arrivals(host, &packet, connection) {
                let reached = usize::try_from(key).map_or(0, |key| key - 1);
                assert_eq!(tenant(reached), tenant(from), "{} reached by {}", world.cloud.ports[reached].name, packet.to_text());
            }
        }
    }
}

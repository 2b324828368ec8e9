//! Load balancers: in the model's words, in a real switch, and with real packets of two hosts, in both versions of IP: clients and members on one
//! network and behind a router, connections kept and cut, connections beside the load balancer.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod topology;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use basalt_tests::process::wait_for;
use basalt_tests::require;
use basalt_tests::skip::Need;
use basalt_tests::tcp::{Pair, REACH, arrives};
use dataplane::trace::{Cause, Connection, Packet, Path, Payload, blame};
use dataplane::zone::{balancer_zones, snat_zones, zones};
use dataplane::{Installed, compile, trace};
use hosts::{Host, Machine};
use model::balancer::{Listener, Persistence, Transport};
use model::security::{Direction, Ethertype, Protocol, Remote};
use model::spec::HostNetwork;
use openflow::flow::Field;
use openflow::wire::{CtFlush, CtTuple};
use rig::Rig;
use topology::{Cloud, PING, endpoint, host_id, tcp, udp};

const CLIENT: usize = 0;
const NEAR: usize = 1;
const FAR: usize = 2;
const STRANGER: usize = 3;
const OUTER: usize = 4;
/// The load balancers of IPv4 and of IPv6.
const FRONTS: [usize; 2] = [0, 1];
const HTTP: Payload = Payload::Tcp { source: 40_000, target: 80 };
/// Connections of which each member gets some: that one of two gets none is one chance in 2^39.
const CONNECTIONS: usize = 40;
/// Exchanges of an octet each way: what else passes meanwhile counts little.
const EXCHANGES: usize = 200;
const SILENCE: Duration = Duration::from_millis(900);

/// A client and a member on one host, another member on the next, on one network; behind a router a client on another network, and a member there. All
/// may be pinged and asked on TCP port 8080 and UDP port 5353; the load balancers listen on TCP port 80 and UDP port 53.
fn cloud() -> Cloud {
    let mut cloud = Cloud::default();
    let blue = cloud.network("blue", "10.0.1.0/24");
    let green = cloud.network("green", "10.0.2.0/24");
    cloud.ipv6(blue, "fd00:0:0:1::/64");
    cloud.ipv6(green, "fd00:0:0:2::/64");
    cloud.router("main", &[blue, green]);
    let group = cloud.group("all");
    cloud.rule_of(Ethertype::IPv6, group, Direction::Egress, Protocol::Any, Remote::Any);
    for protocol in [PING, tcp(8080, 8080), udp(5353, 5353)] {
        cloud.allow(group, protocol, Remote::Any);
        cloud.allow6(group, protocol, Remote::Any);
    }
    for (name, network, host, last) in [
        ("client", blue, 0, 11),
        ("near", blue, 0, 12),
        ("far", blue, 1, 13),
        ("stranger", green, 0, 21),
        ("outer", green, 1, 22),
    ] {
        cloud.port(name, network, host, last, &[group]);
    }
    for six in [false, true] {
        let front = cloud.balancer(if six { "front6" } else { "front" }, blue, 100, six);
        cloud.listen(front, Transport::Tcp, 80, &[(NEAR, 8080, 1), (FAR, 8080, 1)]);
        cloud.listen(front, Transport::Udp, 53, &[(NEAR, 5353, 1), (FAR, 5353, 1)]);
    }
    cloud
}

/// The same address of both versions of a port.
#[cfg(test)]
fn both(cloud: &Cloud, port: usize) -> [IpAddr; 2] {
    [cloud.address(port).into(), cloud.address6(port).unwrap().into()]
}

#[cfg(test)]
fn fronts(cloud: &Cloud) -> [IpAddr; 2] {
    FRONTS.map(|front| cloud.balancers[front].address)
}

#[cfg(test)]
fn walk(cloud: &Cloud, from: usize, to: IpAddr, payload: Payload, connection: Connection) -> (Packet, Path) {
    let (host, numbers) = (cloud.host(0), cloud.numbers(0));
    let packet = Packet::from_port(&host, &numbers, &cloud.ports[from], to, payload).unwrap();
    let path = trace(&compile(&host, &numbers), &packet, connection);
    (packet, path)
}

#[cfg(test)]
fn says(path: &Path) -> String {
    path.verdicts().iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
}

/// A new connection may go to each member, an established one to the one that has it; its rules are asked of client and member; the words tell.
#[test]
fn connections_are_shared_among_members() {
    let cloud = cloud();
    let far = "sent to host 00000000-0000-0001-0000-000000000001 at 172.20.0.2 with VNI 5001";
    for to in fronts(&cloud) {
        for from in [CLIENT, STRANGER] {
            for connection in [Connection::New, Connection::Established] {
                let (_, path) = walk(&cloud, from, to, HTTP, connection);
                assert_eq!(says(&path), format!("delivered to port near | {far}"), "{path}");
                for outcome in &path.outcomes {
                    assert_eq!(outcome.leaving.get(Field::TcpDst), 8080, "{path}");
                    let mac = outcome.leaving.get(Field::EthDst);
                    assert!([NEAR, FAR].map(|port| mac_of(&cloud, port)).contains(&mac), "{path}");
                }
            }
        }
        let (_, path) = walk(&cloud, CLIENT, to, HTTP, Connection::New);
        let text = path.to_string();
        assert!(text.contains("gives it to one of the members of load balancer front"), "{text}");
        assert!(text.contains("translates destination") && text.contains(", port 8080"), "{text}");
        let (_, path) = walk(&cloud, CLIENT, to, Payload::ping(to), Connection::New);
        assert!(says(&path).starts_with("answered by load balancer front"), "{path}");
        let (_, path) = walk(&cloud, STRANGER, to, Payload::ping(to), Connection::New);
        assert!(says(&path).starts_with("answered by load balancer front"), "{path}");
    }
}

#[cfg(test)]
fn mac_of(cloud: &Cloud, port: usize) -> u128 {
    number(cloud.mac(port).bytes())
}

#[cfg(test)]
fn number([a, b, c, d, e, f]: [u8; 6]) -> u128 {
    u64::from_be_bytes([0, 0, a, b, c, d, e, f]).into()
}

/// An answer of a member goes to the client as from the load balancer; what a member says beside that, as it is.
#[test]
fn answers_come_from_the_load_balancer() {
    let cloud = cloud();
    let began = [Field::CtNwDst, Field::CtIpv6Dst];
    for (at, to) in both(&cloud, CLIENT).into_iter().enumerate() {
        let (host, numbers) = (cloud.host(0), cloud.numbers(0));
        let payload = Payload::Tcp { source: 8080, target: 40_000 };
        let answer = Packet::from_port(&host, &numbers, &cloud.ports[NEAR], to, payload).unwrap();
        let front = &cloud.balancers[FRONTS[at]];
        let balanced = match front.address {
            IpAddr::V4(address) => answer.clone().with(began[at], address),
            IpAddr::V6(address) => answer.clone().with(began[at], address),
        };
        let balanced = balanced.with(Field::CtTpDst, 80_u16);
        let source = [Field::Ipv4Src, Field::Ipv6Src][at];
        let set = compile(&host, &numbers);
        let path = trace(&set, &balanced, Connection::Reply);
        let seen = &path.outcomes[0].leaving;
        assert_eq!(says(&path), "delivered to port client", "{path}");
        assert_eq!((seen.get(source), seen.get(Field::TcpSrc)), (bits(front.address), 80), "{path}");
        assert_eq!(seen.get(Field::EthSrc), number(front.mac.bytes()), "{path}");
        let path = trace(&set, &answer, Connection::Reply);
        let seen = &path.outcomes[0].leaving;
        assert_eq!(says(&path), "delivered to port client", "{path}");
        assert_eq!((seen.get(source), seen.get(Field::TcpSrc)), (answer.get(source), 8080), "{path}");
        assert_eq!(seen.get(Field::EthSrc), mac_of(&cloud, NEAR), "{path}");
    }
}

#[cfg(test)]
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Why a packet goes nowhere is said in the words of load balancers, or of the groups of the member that it was given to.
#[test]
fn what_goes_nowhere_says_why() {
    let why = |cloud: &Cloud, from: usize, payload: Payload| {
        let to = cloud.balancers[0].address;
        let (packet, path) = walk(cloud, from, to, payload, Connection::New);
        let blame = blame(&cloud.host(0), &cloud.numbers(0), &packet, &path).unwrap();
        (blame.cause, blame.line)
    };
    let mut cloud = cloud();
    for from in [CLIENT, STRANGER] {
        let other = Payload::Tcp { source: 40_000, target: 81 };
        let line = "load balancer front: nothing listens for that there".to_owned();
        assert_eq!(why(&cloud, from, other), (Cause::NoListener, line.clone()));
        assert_eq!(why(&cloud, from, Payload::Protocol(47)), (Cause::NoListener, line));
    }
    cloud.balancers[0].listeners[0].members[1].weight = 0;
    let line =
        "load balancer front: port near: a member does not reach itself by its load balancer, and there is no other";
    let line = line.to_owned();
    assert_eq!(why(&cloud, NEAR, HTTP), (Cause::NoMember, line));
    cloud.groups[0].rules.retain(|rule| rule.protocol != tcp(8080, 8080));
    let (cause, line) = why(&cloud, CLIENT, HTTP);
    assert_eq!(cause, Cause::NoRule);
    assert!(line.starts_with("no rule lets it in to port near"), "{line}");
    cloud.ports[NEAR].binding = None;
    let line = "load balancer front: tcp port 80: no member of the listener is plugged in and has a weight".to_owned();
    assert_eq!(why(&cloud, CLIENT, HTTP), (Cause::NoMember, line));
}

/// Networks without load balancers have the flows that they had, and the zones of balanced connections are nobody else's.
#[test]
fn others_do_not_notice() {
    let mut with = cloud();
    let red = with.network("red", "10.0.1.0/24");
    with.port("red-1", red, 0, 12, &[0]);
    let mut without = with.clone();
    without.balancers.clear();
    let flows = |cloud: &Cloud| compile(&cloud.host(0), &cloud.numbers(0));
    let (with_set, without_set) = (flows(&with), flows(&without));
    let kept = without_set.flows().all(|flow| with_set.flows().any(|other| other == flow));
    assert!(kept, "a load balancer changes no flow of others");
    let more: Vec<String> = with_set
        .flows()
        .filter(|flow| !without_set.flows().any(|other| other == *flow))
        .map(ToString::to_string)
        .collect();
    let of_red = |flow: &&String| flow.contains("metadata=0x138b") || flow.contains("reg3=0x938b");
    assert_eq!(more.iter().filter(of_red).count(), 0, "{more:#?}");
    assert!(more.iter().all(|flow| flow.contains("cookie=0xba5a1a08")), "{more:#?}");
    let host = with.host(0);
    let (plain, snat) = (zones(&host), snat_zones(&host));
    let balanced = balancer_zones(&host, &plain, &snat);
    assert_eq!(balanced.len(), 1, "{balanced:?}");
    // A network without a router has a zone by its VNI.
    let mut more = with.clone();
    let lone = more.network("lone", "10.0.9.0/24");
    more.networks[lone].vni = 16_385.try_into().unwrap();
    let host = more.host(0);
    assert_eq!(balancer_zones(&host, &zones(&host), &snat_zones(&host)), balanced, "no other network moves it");
    assert!(balanced.values().all(|zone| !plain.values().any(|other| other == zone)), "{balanced:?} {plain:?}");
}

/// The switch takes the flows and groups, and says of packets what the model says; a choice of members it leaves to its data path.
#[test]
fn the_model_and_the_switch_agree_on_load_balancers() {
    require!(Need::Root, Need::OpenVswitch);
    let whole = cloud();
    let rig = Rig::start(&whole, 0).unwrap();
    for member in [NEAR, FAR, STRANGER, OUTER] {
        let mut cloud = whole.clone();
        let six: Vec<bool> = cloud.balancers.iter().map(|balancer| balancer.address.is_ipv6()).collect();
        for (balancer, six) in six.into_iter().enumerate() {
            let address = both(&cloud, member)[usize::from(six)];
            for listener in &mut cloud.balancers[balancer].listeners {
                listener.members.truncate(1);
                listener.members[0].address = address;
            }
        }
        let set = rig.install(&cloud).unwrap();
        let changes = dataplane::diff(&set, &rig.installed().unwrap());
        assert!(changes.is_empty(), "{changes:#?}");
        let (host, numbers) = (cloud.host(0), cloud.numbers(0));
        for (from, to) in [CLIENT, NEAR, STRANGER].into_iter().flat_map(|from| fronts(&cloud).map(|to| (from, to))) {
            let other = Payload::Tcp { source: 40_000, target: 81 };
            let dns = Payload::Udp { source: 40_000, target: 53 };
            for payload in [HTTP, dns, other, Payload::ping(to), Payload::Protocol(47)] {
                let packet = Packet::from_port(&host, &numbers, &cloud.ports[from], to, payload).unwrap();
                // Its own trace does not remember what it gives a connection.
                let front = cloud.balancers.iter().find(|front| front.address == to).unwrap();
                let packet = packet.with(Field::CtLabel, label(front.key, payload));
                rig.ask(&set, &packet, Connection::New);
                rig.ask(&set, &packet, Connection::Invalid);
            }
        }
        for (to, from) in both(&cloud, CLIENT).into_iter().flat_map(|to| [NEAR, STRANGER].map(|from| (to, from))) {
            let payload = Payload::Tcp { source: 8080, target: 40_000 };
            let packet = Packet::from_port(&host, &numbers, &cloud.ports[from], to, payload).unwrap();
            rig.ask_all(&set, &[packet]);
        }
    }
    let mut cloud = whole;
    cloud.balancers[0].listeners[0].persistence = Persistence::SourceIp;
    cloud.balancers[1].listeners[0].persistence = Persistence::SourceIp;
    cloud.balancers[0].listeners[1].members[0].weight = 256;
    // Two members may be one port.
    let twice = model::balancer::Member { port: 8081, ..cloud.balancers[0].listeners[0].members[0] };
    cloud.balancers[0].listeners[0].members.push(twice);
    let set = rig.install(&cloud).unwrap();
    let changes = dataplane::diff(&set, &rig.installed().unwrap());
    assert!(changes.is_empty(), "{changes:#?}");
    assert_eq!(set.groups().filter(|group| group.selection.is_some()).count(), 4, "one for each listener");
    let (_, path) = walk(&cloud, NEAR, fronts(&cloud)[0], HTTP, Connection::New);
    assert_eq!(says(&path), "sent to host 00000000-0000-0001-0000-000000000001 at 172.20.0.2 with VNI 5001", "{path}");
}

#[cfg(test)]
fn label(key: u16, payload: Payload) -> u128 {
    let port = match payload {
        Payload::Tcp { target, .. } | Payload::Udp { target, .. } => target,
        _ => 0,
    };
    u128::from(key) << 16 | u128::from(port)
}

/// What a member sends that the tracker calls invalid does not reach a client that is not tracked, unless it begins or ends a connection; fragments without
/// ports, and errors, are asked about.
#[test]
fn what_could_be_of_a_balanced_connection_is_asked_about() {
    require!(Need::Root, Need::OpenVswitch);
    let mut cloud = cloud();
    for port in [CLIENT, NEAR] {
        cloud.ports[port].port_security = false;
    }
    let rig = Rig::start(&cloud, 0).unwrap();
    let set = rig.install(&cloud).unwrap();
    let (host, numbers) = (cloud.host(0), cloud.numbers(0));
    for (six, to) in both(&cloud, CLIENT).into_iter().enumerate() {
        let packet = |payload| Packet::from_port(&host, &numbers, &cloud.ports[NEAR], to, payload).unwrap();
        let answer = packet(Payload::Tcp { source: 8080, target: 40_000 });
        for (flags, kept) in [(0x10_u16, false), (0x18, false), (0x12, true), (0x14, true), (0x11, true)] {
            let answer = answer.clone().with(Field::TcpFlags, flags);
            let path = trace(&set, &answer, Connection::Invalid);
            assert_eq!(says(&path) == "delivered to port client", kept, "{flags:#x}: {path}");
            rig.ask(&set, &answer, Connection::Invalid);
            assert_eq!(says(&trace(&set, &answer, Connection::New)), "delivered to port client");
        }
        let later = packet(Payload::Udp { source: 0, target: 0 }).with(Field::IpFrag, 3_u8);
        let kind = if six == 1 { (Field::Icmpv6Type, 1_u8) } else { (Field::IcmpType, 3) };
        let error = packet(Payload::ping(to)).with(kind.0, kind.1);
        for packet in [later, error] {
            let path = trace(&set, &packet, Connection::New);
            assert!(path.hops.iter().any(|hop| hop.name.contains("balance")), "{path}");
            // Its trace reads no such fragment.
            if packet.get(Field::IpFrag) == 0 {
                rig.ask(&set, &packet, Connection::New);
            }
        }
    }
}

/// Who leaves a listener has the connections of that listener forgotten, and no others; another weight changes nothing.
#[test]
fn connections_of_who_leaves_are_forgotten() {
    let mut before = cloud();
    before.listen(0, Transport::Tcp, 81, &[(FAR, 8080, 1)]);
    let flows = |cloud: &Cloud| compile(&cloud.host(0), &cloud.numbers(0));
    let stale = |after: &Cloud| {
        let set = flows(&before);
        let installed = Installed { flows: set.flows().cloned().collect(), ..Installed::default() };
        let (read, known) = (dataplane::diff(&flows(after), &installed).stale_connections, flows(after));
        let touched = set.differences(&known);
        assert_eq!(dataplane::diff::between(&set, &known, &touched).stale_connections, read);
        read.into_iter().collect::<Vec<_>>()
    };
    let mut after = before.clone();
    after.balancers[0].listeners[0].members[1].weight = 0;
    assert_eq!(stale(&after), [], "it keeps its connections");
    let member = after.balancers[0].listeners[0].members.remove(1);
    let host = before.host(0);
    let plain = zones(&host);
    let zone = balancer_zones(&host, &plain, &snat_zones(&host)).into_values().next();
    let side = |address, port| CtTuple { target: Some(address), target_port: port, ..CtTuple::default() };
    let of_member = CtTuple { source: Some(member.address), source_port: 8080, ..CtTuple::default() };
    let original = Some(side(before.balancers[0].address, 80));
    assert_eq!(stale(&after), [CtFlush { zone, proto: 6, original, reply: Some(of_member) }]);
    after.ports[FAR].binding = None;
    assert_eq!(stale(&after).len(), 5, "of all listeners, when it stops");
}

/// Of clients that keep to their member, members get the shares that their weights say; one less moves nobody else's clients.
#[test]
fn clients_are_shared_by_weight() {
    let mut cloud = cloud();
    let buckets = |cloud: &Cloud| {
        let set = compile(&cloud.host(0), &cloud.numbers(0));
        let group = set.groups().find(|group| group.selection.as_ref().is_some_and(|by| by.method == "hash")).cloned();
        let group = group.unwrap();
        assert!(group.buckets.iter().all(|bucket| bucket.weight == 1), "{group}");
        group.buckets.into_iter().map(|bucket| (bucket.id, format!("{:?}", bucket.actions))).collect::<BTreeMap<_, _>>()
    };
    let third = model::balancer::Member { port: 8081, ..cloud.balancers[0].listeners[0].members[0] };
    let listener = &mut cloud.balancers[0].listeners[0];
    listener.persistence = Persistence::SourceIp;
    listener.members.push(third);
    for (weights, shares) in
        [([10_u16, 20, 30], [1, 2, 3]), ([256, 256, 256], [1, 1, 1]), ([256, 1, 255], [127, 1, 127])]
    {
        for (member, weight) in cloud.balancers[0].listeners[0].members.iter_mut().zip(weights) {
            member.weight = weight;
        }
        let mut got = BTreeMap::<String, usize>::new();
        buckets(&cloud).into_values().for_each(|actions| *got.entry(actions).or_default() += 1);
        let mut got: Vec<usize> = got.into_values().collect();
        let mut want = shares.to_vec();
        got.sort_unstable();
        want.sort_unstable();
        assert_eq!(got, want, "{weights:?}");
    }
    for (member, weight) in cloud.balancers[0].listeners[0].members.iter_mut().zip([10, 20, 30]) {
        member.weight = weight;
    }
    let all = buckets(&cloud);
    cloud.balancers[0].listeners[0].members.remove(2);
    let left = buckets(&cloud);
    assert!(left.len() == 3 && left.iter().all(|(id, actions)| all.get(id) == Some(actions)), "{left:?} of {all:?}");
}

/// Machines of all ports on two hosts.
struct World {
    cloud: Cloud,
    hosts: [Host; 2],
    machines: Vec<Machine>,
    /// The servers of TCP port 8080, by port.
    servers: BTreeMap<usize, TcpListener>,
}

impl World {
    #[cfg(test)]
    async fn start() -> Result<Self> {
        let cloud = cloud();
        let start = |host| Host::start(HostNetwork::empty(host_id(host), endpoint(host)));
        let hosts = [start(0).await?, start(1).await?];
        hosts[0].link(&hosts[1])?;
        let mut machines = Vec::new();
        for (number, port) in cloud.ports.iter().enumerate() {
            let machine = hosts[usize::from(port.is_on(host_id(1)))].plug(port).await?;
            machine.restart_link()?;
            machine.configure_both(cloud.address(number), cloud.address6(number))?;
            machines.push(machine);
        }
        let servers = [NEAR, FAR, OUTER].map(|port| Ok((port, machines[port].listen(8080)?)));
        let servers = servers.into_iter().collect::<Result<_>>()?;
        let world = Self { cloud, hosts, machines, servers };
        world.program().await?;
        Ok(world)
    }

    #[cfg(test)]
    async fn program(&self) -> Result<()> {
        for (number, host) in self.hosts.iter().enumerate() {
            host.program(self.cloud.host(number)).await?;
        }
        Ok(())
    }

    #[cfg(test)]
    async fn members(&mut self, members: &[(usize, u16)], persistence: Persistence) -> Result<()> {
        for (front, six) in FRONTS.into_iter().zip([false, true]) {
            let seats = members.iter().map(|(port, weight)| (both(&self.cloud, *port)[usize::from(six)], *weight));
            let seats: Vec<_> = seats.collect();
            for listener in &mut self.cloud.balancers[front].listeners {
                let own = if listener.protocol == Transport::Tcp { 8080 } else { 5353 };
                listener.persistence = persistence;
                listener.members = seats
                    .iter()
                    .map(|(address, weight)| model::balancer::Member {
                        address: *address,
                        port: own,
                        weight: *weight,
                        in_error: false,
                    })
                    .collect();
            }
        }
        self.program().await
    }

    /// A connection to the load balancer, and who has got it.
    #[cfg(test)]
    fn connect(&self, from: usize, to: IpAddr) -> Result<(usize, Pair)> {
        let to = SocketAddr::from((to, 80));
        let client = self.machines[from].namespace.enter(|| TcpStream::connect_timeout(&to, REACH))?;
        let client = client.with_context(|| format!("connect from {} to {to}", self.cloud.ports[from].name))?;
        let (server, stream) = wait_for("the connection at a member", REACH, || {
            for (port, server) in &self.servers {
                server.set_nonblocking(true)?;
                if let Ok((stream, _)) = server.accept() {
                    return Ok(Some((*port, stream)));
                }
            }
            Ok(None)
        })?;
        stream.set_nonblocking(false)?;
        assert_eq!(client.peer_addr()?, to);
        assert_eq!(stream.peer_addr()?.port(), client.local_addr()?.port(), "the client's port is its own");
        let seen = stream.peer_addr()?.ip().to_canonical();
        assert_eq!(seen, client.local_addr()?.ip().to_canonical(), "the client's address is its own");
        Ok((server, Pair { client, server: stream }))
    }

    /// How many of some connections each member got; all of them carry octets both ways.
    #[cfg(test)]
    fn shares(&self, from: usize, to: IpAddr, count: usize) -> Result<BTreeMap<usize, usize>> {
        let mut shares = BTreeMap::new();
        let mut open = Vec::new();
        for _ in 0..count {
            let (server, mut pair) = self.connect(from, to)?;
            assert!(pair.speaks()?, "{} to {to}", self.cloud.ports[from].name);
            *shares.entry(server).or_default() += 1;
            open.push(pair);
        }
        Ok(shares)
    }

    /// A UDP socket of a machine, for the version of an address.
    #[cfg(test)]
    fn socket(&self, machine: usize, port: u16, like: IpAddr) -> Result<UdpSocket> {
        let any: IpAddr = if like.is_ipv4() { "0.0.0.0".parse()? } else { "::".parse()? };
        let socket = self.machines[machine].namespace.enter(|| UdpSocket::bind((any, port)))??;
        socket.set_read_timeout(Some(REACH))?;
        Ok(socket)
    }

    /// Whether a datagram to the load balancer gets an answer from its address.
    #[cfg(test)]
    fn asks(&self, from: usize, to: IpAddr, member: usize) -> Result<bool> {
        let (client, server) = (self.socket(from, 0, to)?, self.socket(member, 5353, to)?);
        client.connect((to, 53))?;
        client.send(b"q")?;
        let mut octet = [0];
        let (_, asker) = server.recv_from(&mut octet)?;
        server.send_to(b"a", asker)?;
        Ok(client.recv(&mut octet)? == 1 && octet == *b"a")
    }
}

/// Clients on its network and behind its router, on any host, reach members here and elsewhere by both protocols; each member gets some, and members
/// are reached beside the load balancer as ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_are_shared_out() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let mut world = World::start().await?;
    for (at, to) in fronts(&world.cloud).into_iter().enumerate() {
        for from in [CLIENT, STRANGER, OUTER] {
            let shares = world.shares(from, to, CONNECTIONS)?;
            let got = |port: usize| shares.get(&port).copied().unwrap_or_default();
            assert!(got(NEAR) > 0 && got(FAR) > 0 && got(NEAR) + got(FAR) == CONNECTIONS, "{to}: {shares:?}");
            assert_eq!(world.machines[from].pings(to)?, 3, "{to}");
        }
        for member in [NEAR, FAR] {
            let direct = both(&world.cloud, member)[at];
            let mut pair = Pair::connect(&world.machines[CLIENT].namespace, &world.servers[&member], direct)?;
            assert!(pair.speaks()?, "{direct} itself");
        }
    }
    for member in [NEAR, FAR, OUTER] {
        world.members(&[(member, 1)], Persistence::None).await?;
        for (to, from) in fronts(&world.cloud).into_iter().flat_map(|to| [CLIENT, STRANGER].map(|from| (to, from))) {
            assert!(world.asks(from, to, member)?, "{to} by UDP");
            let shares = world.shares(from, to, 2)?;
            assert_eq!(shares, BTreeMap::from([(member, 2)]), "{to}: a member on any network of the router");
        }
    }
    world.members(&[(NEAR, 1), (FAR, 1), (OUTER, 1)], Persistence::None).await?;
    for to in fronts(&world.cloud) {
        let shares = world.shares(NEAR, to, CONNECTIONS)?;
        let got: Vec<usize> = shares.into_keys().collect();
        assert_eq!(got, [FAR, OUTER], "{to}: a member reaches the others");
    }
    world.members(&[(NEAR, 1), (FAR, 1), (OUTER, 1)], Persistence::SourceIp).await?;
    for to in fronts(&world.cloud) {
        let shares = world.shares(CLIENT, to, 12)?;
        assert_eq!(shares.len(), 1, "{to}: one client, one member: {shares:?}");
    }
    Ok(())
}

/// A connection stays with its member when others come, and when it is to get no more; taken out it is cut, and new connections go to who is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_keep_to_their_members() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let mut world = World::start().await?;
    world.members(&[(FAR, 1)], Persistence::None).await?;
    let mut open = Vec::new();
    for (to, from) in fronts(&world.cloud).into_iter().flat_map(|to| [CLIENT, STRANGER].map(|from| (to, from))) {
        let (server, mut pair) = world.connect(from, to)?;
        assert!(server == FAR && pair.speaks()?, "{to}");
        open.push(pair);
    }
    for members in [&[(FAR, 1), (NEAR, 256)][..], &[(NEAR, 1), (FAR, 0)]] {
        world.members(members, Persistence::None).await?;
        for pair in &mut open {
            assert!(pair.speaks()?, "{members:?}");
        }
    }
    for to in fronts(&world.cloud) {
        assert_eq!(world.shares(CLIENT, to, 4)?, BTreeMap::from([(NEAR, 4)]), "weight 0 gets nothing new");
    }
    let far = both(&world.cloud, FAR);
    for (front, far) in FRONTS.into_iter().zip(far) {
        let listeners = &mut world.cloud.balancers[front].listeners;
        listeners.push(Listener { port: 81, ..listeners[0].clone() });
        listeners[0].members.retain(|member| member.address != far);
    }
    // Another listener has the same member.
    world.program().await?;
    for pair in &mut open {
        pair.client.write_all(b"x")?;
        assert!(!arrives(&mut pair.server, b'x', SILENCE)?, "its member is gone");
    }
    for front in FRONTS {
        world.cloud.balancers[front].listeners.truncate(2);
    }
    world.members(&[(NEAR, 1)], Persistence::None).await?;
    for to in fronts(&world.cloud) {
        assert_eq!(world.shares(CLIENT, to, 4)?, BTreeMap::from([(NEAR, 4)]));
    }
    world.members(&[], Persistence::None).await?;
    let to = SocketAddr::from((fronts(&world.cloud)[0], 80));
    let refused = world.machines[CLIENT].namespace.enter(|| TcpStream::connect_timeout(&to, SILENCE))?;
    assert!(refused.is_err(), "there is no member");
    Ok(())
}

/// A client that asks by one port again and again is given another member when its own is taken away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_pauses_gets_another_member() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let mut world = World::start().await?;
    for to in fronts(&world.cloud) {
        world.members(&[(FAR, 1)], Persistence::None).await?;
        let [client, near, far] = [(CLIENT, 0), (NEAR, 5353), (FAR, 5353)].map(|(of, port)| world.socket(of, port, to));
        let (client, near, far) = (client?, near?, far?);
        client.connect((to, 53))?;
        client.send(b"q")?;
        let mut octet = [0];
        far.recv_from(&mut octet)?;
        world.members(&[(NEAR, 1)], Persistence::None).await?;
        near.set_nonblocking(true)?;
        wait_for("a datagram at the other member", REACH, || {
            client.send(b"q")?;
            Ok(near.recv_from(&mut octet).ok())
        })?;
    }
    Ok(())
}

/// Datagrams of a member in fragments reach a client that is not tracked, of the load balancer and beside it; that its port is closed, the client hears.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fragments_and_errors_come_back() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let mut world = World::start().await?;
    world.cloud.ports[CLIENT].port_security = false;
    world.members(&[(FAR, 1)], Persistence::None).await?;
    for (at, to) in fronts(&world.cloud).into_iter().enumerate() {
        for (to, port) in [(both(&world.cloud, FAR)[at], 5353), (to, 53)] {
            let (client, server) = (world.socket(CLIENT, 0, to)?, world.socket(FAR, 5353, to)?);
            client.connect((to, port))?;
            client.send(b"q")?;
            let mut large = [0; 4096];
            let (_, asker) = server.recv_from(&mut large)?;
            server.send_to(&[7; 4000], asker)?;
            assert_eq!(client.recv(&mut large).with_context(|| format!("4000 octets from {to}"))?, 4000);
            drop(server);
            client.send(b"q")?;
            let heard = client.recv(&mut large).map_err(|error| error.kind());
            assert_eq!(heard, Err(std::io::ErrorKind::ConnectionRefused), "{to} port {port}");
        }
    }
    Ok(())
}

/// Passes through the data path of the client's host, for each packet of a connection that carries octets both ways.
#[cfg(test)]
fn passes(host: &Host, pair: &mut Pair) -> Result<f64> {
    assert!(pair.speaks()?);
    host.switch.appctl(&["dpif-netdev/pmd-stats-clear"])?;
    for _ in 0..EXCHANGES {
        assert!(pair.speaks()?);
    }
    let stats = host.switch.appctl(&["dpif-netdev/pmd-stats-show"])?;
    let passes = stats.lines().filter_map(|line| line.trim().strip_prefix("avg. datapath passes per packet:"));
    let passes = passes.filter_map(|number| number.trim().parse::<f64>().ok()).fold(0.0, f64::max);
    anyhow::ensure!(passes >= 1.0, "no passes in {stats}");
    Ok(passes)
}

/// A balanced connection costs one pass more each way, what its member sends beside that one more, and where there is no load balancer nothing does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balanced_packet_costs_one_pass_more() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let mut world = World::start().await?;
    world.members(&[(NEAR, 1)], Persistence::None).await?;
    for at in FRONTS {
        let to = world.cloud.balancers[at].address;
        let (_, mut balanced) = world.connect(CLIENT, to)?;
        let direct = both(&world.cloud, NEAR)[at];
        let mut direct = Pair::connect(&world.machines[CLIENT].namespace, &world.servers[&NEAR], direct)?;
        let with = passes(&world.hosts[0], &mut balanced)?;
        let beside = passes(&world.hosts[0], &mut direct)?;
        eprintln!("{to}: {with} passes a packet, {beside} beside it");
        assert!((2.9..3.1).contains(&with) && (2.4..2.6).contains(&beside), "{to}: {with}, {beside}");
    }
    let mut without = world.cloud.clone();
    without.balancers.clear();
    let fronts = std::mem::replace(&mut world.cloud, without).balancers;
    world.program().await?;
    let direct = both(&world.cloud, NEAR)[0];
    let mut direct = Pair::connect(&world.machines[CLIENT].namespace, &world.servers[&NEAR], direct)?;
    let without = passes(&world.hosts[0], &mut direct)?;
    eprintln!("without: {without} passes a packet");
    assert!((1.9..2.1).contains(&without), "{without} passes without any of {} load balancers", fronts.len());
    Ok(())
}

//! Limits of connections of listeners: in flows and their meaning, in a real switch, and with real packets of two hosts, in both versions of IP: who is one
//! too many, what ends a connection, and what outlives a change, an agent and a switch.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod topology;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use basalt_tests::process::wait_for;
use basalt_tests::require;
use basalt_tests::skip::Need;
use basalt_tests::tcp::{Pair, REACH, accept};
use dataplane::switch::counters::open_connections;
use dataplane::table::Table;
use dataplane::trace::{Cause, Connection, Packet, Payload, Room};
use dataplane::{compile, trace};
use hosts::{Host, Machine};
use model::balancer::Transport;
use model::security::{Direction, Ethertype, Protocol, Remote};
use model::spec::HostNetwork;
use openflow::flow::{Field, Flow};
use rig::Rig;
use topology::{Cloud, endpoint, host_id, tcp, udp};

const CLIENT: usize = 0;
const NEAR: usize = 1;
const FAR: usize = 2;
const STRANGER: usize = 3;
const LIMIT: u32 = 3;
/// How long after its client a member ends a connection.
const LATE: Duration = Duration::from_secs(8);
/// How long is waited for who is not let in: a client asks again after a second.
const SILENCE: Duration = Duration::from_millis(900);
/// How long UDP may be silent and count, with what a loaded machine takes to see it.
const FORGOTTEN: Duration = Duration::from_secs(90);
const HTTP: Payload = Payload::Tcp { source: 40_000, target: 80 };
const DNS: Payload = Payload::Udp { source: 40_000, target: 53 };

/// A client and a member on one host, a member on the next, and a client on another network behind a router; load balancers of both versions of IP, whose
/// TCP port 80 and UDP port 53 are TCP port 8080 and UDP port 5353 of the members.
fn cloud() -> Cloud {
    let mut cloud = Cloud::default();
    let blue = cloud.network("blue", "10.0.1.0/24");
    let green = cloud.network("green", "10.0.2.0/24");
    cloud.ipv6(blue, "fd00:0:0:1::/64");
    cloud.ipv6(green, "fd00:0:0:2::/64");
    cloud.router("main", &[blue, green]);
    let group = cloud.group("all");
    cloud.rule_of(Ethertype::IPv6, group, Direction::Egress, Protocol::Any, Remote::Any);
    for protocol in [tcp(8080, 8080), udp(5353, 5353)] {
        cloud.allow(group, protocol, Remote::Any);
        cloud.allow6(group, protocol, Remote::Any);
    }
    for (name, network, host, last) in
        [("client", blue, 0, 11), ("near", blue, 0, 12), ("far", blue, 1, 13), ("stranger", green, 0, 21)]
    {
        cloud.port(name, network, host, last, &[group]);
    }
    for six in [false, true] {
        let front = cloud.balancer(if six { "front6" } else { "front" }, blue, 100, six);
        cloud.listen(front, Transport::Tcp, 80, &[(FAR, 8080, 1)]);
        cloud.listen(front, Transport::Udp, 53, &[(FAR, 5353, 1)]);
    }
    cloud
}

#[cfg(test)]
fn limited(limit: u32) -> Cloud {
    let mut cloud = cloud();
    limit_all(&mut cloud, Some(limit));
    cloud
}

#[cfg(test)]
fn limit_all(cloud: &mut Cloud, limit: Option<u32>) {
    let listeners = cloud.balancers.iter_mut().flat_map(|front| &mut front.listeners);
    listeners.for_each(|listener| listener.connection_limit = limit);
}

#[cfg(test)]
fn fronts(cloud: &Cloud) -> [IpAddr; 2] {
    [cloud.balancers[0].address, cloud.balancers[1].address]
}

/// A limit adds flows for its own listener, changes none, and no flow of the others looks anything up.
#[test]
fn only_who_has_a_limit_pays() {
    let flows = |cloud: &Cloud| -> BTreeSet<String> {
        compile(&cloud.host(0), &cloud.numbers(0)).flows().map(ToString::to_string).collect()
    };
    let plain = cloud();
    let mut with = plain.clone();
    with.balancers[0].listeners[0].connection_limit = Some(LIMIT);
    let (plain, with) = (flows(&plain), flows(&with));
    assert!(plain.is_subset(&with), "{:#?}", plain.difference(&with));
    assert!(!plain.iter().any(|flow| flow.contains("learn(") || flow.contains("resubmit(,62)")));
    let more: Vec<&String> = with.difference(&plain).collect();
    assert!(!more.is_empty());
    for flow in more {
        assert!(
            flow.contains("ct_label=0x10050") || flow.contains("reg8=0x1,") && flow.contains("tp_dst=80"),
            "{flow}"
        );
    }
}

/// A new connection passes while there is room, which a trace takes for given, and is refused in words when there is none; one that is known passes always.
#[test]
fn the_flows_tell_what_they_count() {
    let cloud = limited(LIMIT);
    let (host, numbers) = (cloud.host(0), cloud.numbers(0));
    let set = compile(&host, &numbers);
    for to in fronts(&cloud) {
        for (payload, what) in [(HTTP, "tcp port 80"), (DNS, "udp port 53")] {
            for connection in [Connection::New, Connection::Established] {
                let packet = Packet::from_port(&host, &numbers, &cloud.ports[CLIENT], to, payload).unwrap();
                let text = trace(&set, &packet, connection).to_string();
                assert!(text.contains("sent to host"), "{text}");
                let room = format!("{what}: no more than 3 connections may be open from this host");
                assert_eq!(text.contains(&room), connection == Connection::New, "{text}");
                assert!(text.contains("it is not counted yet"), "{text}");
            }
            let refusal = format!("{what}: 3 connections are open from this host, as many as its limit allows");
            let entries: Vec<_> = set.entries().filter(|entry| entry.note.as_deref() == Some(&refusal)).collect();
            assert!(entries.iter().all(|entry| entry.flow.actions.is_empty()) && entries.len() == 2, "{refusal}");
        }
    }
}

/// The switch takes the flows as they are, and says of packets what the model says.
#[test]
fn the_model_and_the_switch_agree_on_limits() {
    require!(Need::Root, Need::OpenVswitch);
    let mut cloud = limited(LIMIT);
    let near = cloud.address(NEAR).into();
    let rig = Rig::start(&cloud, 0).unwrap();
    for several in [false, true] {
        if several {
            let member = model::balancer::Member { address: near, ..cloud.balancers[0].listeners[0].members[0] };
            cloud.balancers[0].listeners[0].members = vec![member];
        }
        let set = rig.install(&cloud).unwrap();
        let changes = dataplane::diff(&set, &rig.installed().unwrap());
        assert!(changes.is_empty(), "{changes:#?}");
        let (host, numbers) = (cloud.host(0), cloud.numbers(0));
        for (from, to) in [CLIENT, NEAR, STRANGER].into_iter().flat_map(|from| fronts(&cloud).map(|to| (from, to))) {
            for (payload, port) in [(HTTP, 80), (DNS, 53)] {
                let packet = Packet::from_port(&host, &numbers, &cloud.ports[from], to, payload).unwrap();
                let front = cloud.balancers.iter().find(|front| front.address == to).unwrap();
                // Its own trace does not remember what it gives a connection.
                let packet = packet.with(Field::CtLabel, u128::from(front.key) << 16 | port);
                rig.ask(&set, &packet, Connection::New);
                rig.ask(&set, &packet, Connection::Invalid);
                if payload == HTTP {
                    rig.ask(&set, &packet.with(Field::TcpFlags, 0x11_u16), Connection::New);
                }
            }
        }
    }
}

/// Machines of all ports on two hosts.
struct World {
    cloud: Cloud,
    hosts: [Host; 2],
    machines: Vec<Machine>,
    /// The server of TCP port 8080 of the far member.
    server: TcpListener,
}

#[cfg(test)]
impl World {
    async fn start(cloud: Cloud) -> Result<Self> {
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
        let server = machines[FAR].listen(8080)?;
        let world = Self { cloud, hosts, machines, server };
        world.program().await?;
        Ok(world)
    }

    async fn program(&self) -> Result<()> {
        for (number, host) in self.hosts.iter().enumerate() {
            host.program(self.cloud.host(number)).await?;
        }
        Ok(())
    }

    /// A connection to a load balancer; none where it is not let in for a time.
    fn try_connect(&self, from: usize, to: IpAddr, within: Duration) -> Result<Option<Pair>> {
        let to = SocketAddr::from((to, 80));
        let Ok(client) = self.machines[from].namespace.enter(|| TcpStream::connect_timeout(&to, within))? else {
            return Ok(None);
        };
        let server = accept(&self.server, REACH)?;
        let mut pair = Pair { client, server };
        assert!(pair.speaks()?, "{to}");
        Ok(Some(pair))
    }

    fn connect(&self, from: usize, to: IpAddr) -> Result<Pair> {
        self.try_connect(from, to, REACH)?.with_context(|| format!("connect to {to}"))
    }

    /// Connects as soon as there is room.
    fn connect_at_last(&self, from: usize, to: IpAddr) -> Result<Pair> {
        wait_for("room for a connection", REACH, || self.try_connect(from, to, SILENCE))
    }

    fn is_refused(&self, from: usize, to: IpAddr) -> Result<bool> {
        Ok(self.try_connect(from, to, SILENCE)?.is_none())
    }

    /// What the switch of the clients' host has learned.
    fn learned(&self) -> Result<Vec<Flow>> {
        let table = format!("table={}", Table::Open.number());
        let dump = self.hosts[0].switch.ofctl(&["--no-stats", "dump-flows", "br-int", &table])?;
        let lines = dump.lines().filter(|line| line.contains("actions="));
        lines.map(|line| line.trim().parse().with_context(|| format!("read {line}"))).collect()
    }

    fn socket(&self, machine: usize, port: u16, like: IpAddr) -> Result<UdpSocket> {
        let any: IpAddr = if like.is_ipv4() { "0.0.0.0".parse()? } else { "::".parse()? };
        let socket = self.machines[machine].namespace.enter(|| UdpSocket::bind((any, port)))??;
        Ok(socket)
    }
}

/// Has the server reset a connection: it goes away without having read what came. The client is left, and says nothing more.
#[cfg(test)]
fn reset(Pair { mut client, server }: Pair) -> Result<TcpStream> {
    client.write_all(b"z")?;
    server.set_read_timeout(Some(REACH))?;
    server.peek(&mut [0])?;
    Ok(client)
}

/// As many as the limit, from any client of the host together; one more gets nothing until one of them is closed, by its client or reset by its member, and
/// another listener with the same member is not concerned.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_too_many_waits_for_one_to_end() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let mut cloud = limited(LIMIT);
    for front in &mut cloud.balancers {
        let other = model::balancer::Listener { port: 81, ..front.listeners[0].clone() };
        front.listeners.push(other);
    }
    let world = World::start(cloud).await?;
    for to in fronts(&world.cloud) {
        let mut open = Vec::new();
        for from in [CLIENT, STRANGER, CLIENT] {
            open.push(world.connect(from, to)?);
        }
        assert!(world.is_refused(CLIENT, to)? && world.is_refused(STRANGER, to)?, "{to}: a fourth");
        let beside = SocketAddr::from((to, 81));
        let beside = world.machines[CLIENT].namespace.enter(|| TcpStream::connect_timeout(&beside, REACH))??;
        open.push(Pair { client: beside, server: accept(&world.server, REACH)? });
        for pair in &mut open {
            assert!(pair.speaks()?, "{to}");
        }
        drop(open.remove(0));
        open.push(world.connect_at_last(STRANGER, to)?);
        assert!(world.is_refused(CLIENT, to)?, "{to}: as many again");
        // Of a client on the network of the load balancer, and of one behind a router.
        for at in [0, 0] {
            let silent = reset(open.remove(at))?;
            open.push(world.connect_at_last(CLIENT, to)?);
            drop(silent);
            assert!(world.is_refused(CLIENT, to)?, "{to}: as many again");
        }
        for pair in &mut open {
            assert!(pair.speaks()?, "{to}");
        }
    }
    Ok(())
}

/// A client that ends its own direction long before its member ends the other does not count, not even by its last acknowledgement; and where all are taken and
/// their member goes away, they are reset and make room, though nobody remembers them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_a_late_end_nor_a_lost_member_keeps_a_place() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let mut world = World::start(limited(1)).await?;
    for to in fronts(&world.cloud) {
        let Pair { client, server } = world.connect(CLIENT, to)?;
        client.shutdown(Shutdown::Write)?;
        let _next = world.connect_at_last(STRANGER, to)?;
        // Longer than an end was remembered once.
        wait_for("time to pass", LATE * 2, {
            let begin = Instant::now();
            move || Ok((begin.elapsed() > LATE).then_some(()))
        })?;
        drop(server);
        client.set_read_timeout(Some(REACH))?;
        assert_eq!((&client).read(&mut [0])?, 0, "{to}: the member's end arrives");
    }
    for to in fronts(&world.cloud) {
        world.connect_at_last(CLIENT, to)?;
    }
    let stuck = fronts(&world.cloud).map(|to| world.connect_at_last(CLIENT, to));
    let mut stuck: Vec<Pair> = stuck.into_iter().collect::<Result<_>>()?;
    let six = world.cloud.address6(NEAR).context("an address of IPv6")?;
    let near: [IpAddr; 2] = [world.cloud.address(NEAR).into(), six.into()];
    for (front, address) in world.cloud.balancers.iter_mut().zip(near) {
        front.listeners[0].members[0].address = address;
    }
    world.server = world.machines[NEAR].listen(8080)?;
    world.program().await?;
    for (pair, to) in stuck.iter_mut().zip(fronts(&world.cloud)) {
        // It is not heard, and says so again and again until somebody else resets it.
        wait_for("the end of who has lost its member", REACH, || {
            Ok(pair.client.write_all(b"x").is_err().then_some(()))
        })?;
        drop(world.connect_at_last(STRANGER, to)?);
    }
    Ok(())
}

/// Connections that come one after the other never are one too many, however short.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_connections_one_after_the_other_all_pass() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let world = World::start(limited(LIMIT)).await?;
    for to in fronts(&world.cloud) {
        for count in 1..=50 {
            let pair = world.try_connect(CLIENT, to, SILENCE)?;
            drop(pair.with_context(|| format!("{to}: connection {count}, with nothing open"))?);
        }
    }
    Ok(())
}

/// Clients of UDP that go on have the places; when one falls silent another gets its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_ends_what_has_no_end() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let world = World::start(limited(2)).await?;
    for to in fronts(&world.cloud) {
        let server = world.socket(FAR, 5353, to)?;
        server.set_read_timeout(Some(SILENCE))?;
        let clients = [0; 3].map(|_| world.socket(CLIENT, 0, to));
        let [one, two, three] = clients;
        let (one, two, three) = (one?, two?, three?);
        for client in [&one, &two, &three] {
            client.connect((to, 53))?;
            client.set_read_timeout(Some(SILENCE))?;
        }
        let asks = |client: &UdpSocket| -> Result<bool> {
            client.send(b"q")?;
            let Ok((_, asker)) = server.recv_from(&mut [0]) else { return Ok(false) };
            server.send_to(b"a", asker)?;
            Ok(client.recv(&mut [0]).is_ok())
        };
        assert!(asks(&one)? && asks(&two)?, "{to}");
        assert!(!asks(&three)? && asks(&one)? && asks(&two)?, "{to}: a third");
        wait_for("the place of who is silent", FORGOTTEN, || {
            assert!(asks(&one)?, "{to}: who goes on keeps its place");
            Ok(asks(&three)?.then_some(()))
        })?;
        assert!(!asks(&two)?, "{to}: and that is taken");
    }
    Ok(())
}

/// Another agent finds what the switch has learned and leaves it; another limit cuts nothing; what the switch has forgotten goes on, and is counted again; a
/// listener without a limit leaves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_open_is_cut_or_forgotten() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let mut world = World::start(limited(LIMIT)).await?;
    let fronts = fronts(&world.cloud);
    let mut open = Vec::new();
    for (to, from) in fronts.into_iter().flat_map(|to| [CLIENT, STRANGER, CLIENT].map(|from| (to, from))) {
        open.push(world.connect(from, to)?);
    }
    let (host, set) = (world.cloud.host(0), world.hosts[0].host.flows());
    for to in fronts {
        let numbers = world.hosts[0].host.bridge().numbers()?;
        let packet = Packet::from_port(&host, &numbers, &world.cloud.ports[CLIENT], to, HTTP)?;
        let room = Room::of(&trace(&set, &packet, Connection::New)).context("nothing counts")?;
        let open = open_connections(&world.hosts[0].switch.bridge_socket("br-int"), room.cookie).await?;
        let blamed = |open| room.blame(open).map(|blame| blame.cause);
        assert_eq!((open, blamed(open), blamed(open - 1)), (3, Some(Cause::ConnectionLimit), None), "{to}");
    }
    let learned = world.learned()?;
    assert!(learned.len() >= 6, "{learned:#?}");
    let agent = world.hosts[0].again(HostNetwork::empty(host_id(0), endpoint(0)));
    agent.ensure().await?;
    let applied = agent.program(world.cloud.host(0), REACH).await?;
    assert_eq!((applied.messages, agent.status().borrow().foreign_count), (0, 0), "{applied:?}");
    drop(agent);
    world.hosts[0].switch.settle()?;
    for to in fronts {
        assert!(world.is_refused(CLIENT, to)?, "{to}: they count on");
    }
    for limit in [4, 1] {
        limit_all(&mut world.cloud, Some(limit));
        world.program().await?;
        for to in fronts {
            if limit == 4 {
                open.push(world.connect(STRANGER, to)?);
            }
            assert!(world.is_refused(CLIENT, to)?, "{to}: a limit of {limit}");
        }
        for pair in &mut open {
            assert!(pair.speaks()?, "a limit of {limit} cuts nothing");
        }
    }
    // As a switch that is started again, whose kernel remembers connections.
    let cookie = format!("table={}", Table::Open.number());
    world.hosts[0].switch.ofctl(&["del-flows", "br-int", &cookie])?;
    for pair in &mut open {
        assert!(pair.speaks()?, "what is known goes on");
    }
    for to in fronts {
        assert!(world.is_refused(CLIENT, to)?, "{to}: they count again");
    }
    limit_all(&mut world.cloud, None);
    world.program().await?;
    wait_for("nothing learned", REACH, || Ok(world.learned()?.is_empty().then_some(())))?;
    for to in fronts {
        open.push(world.connect(CLIENT, to)?);
    }
    for pair in &mut open {
        assert!(pair.speaks()?, "without a limit");
    }
    Ok(())
}

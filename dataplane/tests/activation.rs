//! A port that is wired on two hosts and switched by the first frame of its machine on the second: in the model, in a real switch, and with real packets
//! between three hosts.

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

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use basalt_tests::netns::Namespace;
use basalt_tests::process::{Daemon, wait_for};
use basalt_tests::require;
use basalt_tests::skip::Need;
use basalt_tests::tcp::{Pair, REACH, arrives};
use dataplane::switch::bridge::TapPort;
use dataplane::trace::{Connection, Packet, Payload, Verdict};
use dataplane::{Compiler, compile, trace};
use hosts::{Host, Machine};
use model::Mac;
use model::arrival::Arrived;
use model::network::AllowedPair;
use model::security::{Direction, Ethertype, Protocol, Remote};
use model::spec::HostNetwork;
use openflow::flow::Field;
use rig::Rig;
use topology::{Cloud, VXLAN, endpoint, host_id, tcp};
use world::World;

const HOSTS: usize = 3;
/// Where the machine is, where it goes to, and where nothing changes.
const HOME: usize = 0;
const NEXT: usize = 1;
const AWAY: usize = 2;
/// The ports: the one that moves, and one on each host.
const MOVING: usize = 0;
const ON_HOME: usize = 1;
const ON_NEXT: usize = 2;
const ON_AWAY: usize = 3;
const SUB: usize = 4;
const SERIAL: u64 = 7;
const SSH: Payload = Payload::Tcp { source: 40_000, target: 22 };
const HTTP: Payload = Payload::Tcp { source: 40_000, target: 80 };

/// Two networks behind a router, in both versions of IP. The port that moves may be pinged and reached by TCP to port 80 from members of the group of
/// the others; what it begins itself is let out. It has a sub-port on the other network.
fn cloud() -> Cloud {
    let mut cloud = Cloud::default();
    let blue = cloud.network("blue", "10.0.1.0/24");
    let green = cloud.network("green", "10.0.2.0/24");
    cloud.ipv6(blue, "fd00:0:0:1::/64");
    cloud.ipv6(green, "fd00:0:0:2::/64");
    cloud.router("main", &[blue, green]);
    let (servers, clients) = (cloud.group("servers"), cloud.group("clients"));
    let from = cloud.members(clients);
    for (ethertype, echo) in [(Ethertype::IPv4, 8), (Ethertype::IPv6, 128)] {
        let ping = Protocol::Icmp { kind: Some(echo), code: Some(0) };
        cloud.rule_of(ethertype, servers, Direction::Ingress, ping, from);
        cloud.rule_of(ethertype, servers, Direction::Ingress, tcp(80, 80), from);
        cloud.rule_of(ethertype, clients, Direction::Ingress, tcp(80, 80), Remote::Any);
    }
    for group in [servers, clients] {
        cloud.rule_of(Ethertype::IPv6, group, Direction::Egress, Protocol::Any, Remote::Any);
    }
    cloud.port("moving", blue, HOME, 11, &[servers]);
    cloud.port("on-home", blue, HOME, 12, &[clients]);
    cloud.port("on-next", blue, NEXT, 13, &[clients]);
    cloud.port("on-away", green, AWAY, 14, &[clients]);
    let sub = cloud.port("sub", green, HOME, 15, &[servers]);
    cloud.trunk(sub, MOVING, 30);
    cloud
}

fn awaited() -> Cloud {
    let mut cloud = cloud();
    cloud.await_on(MOVING, NEXT, SERIAL);
    cloud
}

#[cfg(test)]
impl World {
    fn new(cloud: Cloud) -> Self {
        Self::of(cloud, HOSTS, Cloud::numbers)
    }

    /// The hosts where a packet from a port reaches a port.
    fn reached(&self, from: usize, to: usize, payload: Payload) -> Vec<usize> {
        let packet = self.from(from, self.cloud.address(to), payload);
        let ends = self.ends(self.host_of(from), &packet, Connection::New);
        let key = self.cloud.ports[to].key;
        let there = |verdict: &Verdict| matches!(verdict, Verdict::Delivered { port, .. } if *port == key);
        let mut hosts: Vec<usize> = ends.iter().filter(|(_, end)| there(&end.verdict)).map(|(host, _)| *host).collect();
        hosts.sort_unstable();
        hosts
    }
}

/// A frame of the port that moves, at its tap on the host that awaits it.
#[cfg(test)]
fn from_next(world: &World, to: Ipv4Addr) -> Packet {
    let cloud = &world.cloud;
    let number = world.numbers[NEXT].of(&cloud.ports[MOVING]).unwrap();
    let home = world.numbers[HOME].of(&cloud.ports[MOVING]).unwrap();
    let packet = world.from(MOVING, to, HTTP);
    assert_eq!(packet.get(Field::InPort), u128::from(home.0));
    packet.with(Field::InPort, number.0)
}

/// Whoever sends to it reaches both hosts, and nobody whom the rules keep out reaches one; the machine's own frames there go to the agent.
#[test]
fn while_it_is_awaited_both_hosts_get_what_is_sent_to_it() {
    let plain = World::new(cloud());
    let world = World::new(awaited());
    for from in [ON_HOME, ON_NEXT, ON_AWAY] {
        for port in [MOVING, SUB] {
            assert_eq!(plain.reached(from, port, HTTP), [HOME], "from {from} to {port}");
            assert_eq!(world.reached(from, port, HTTP), [HOME, NEXT], "from {from} to {port}");
            assert_eq!(world.reached(from, port, SSH), Vec::<usize>::new(), "from {from} to {port}");
        }
    }
    let packet = from_next(&world, world.cloud.address(ON_AWAY));
    let said = world.says(NEXT, &packet, Connection::New);
    assert!(said.contains("handed to the agent: port moving has come"), "{said}");
    for spoofed in [
        packet.clone().with(Field::Ipv4Src, Ipv4Addr::new(10, 0, 1, 99).to_bits()),
        packet.with(Field::EthSrc, [2, 9, 9, 9, 9, 9]),
    ] {
        let said = world.says(NEXT, &spoofed, Connection::New);
        assert!(said.contains("dropped in classify"), "{said}");
    }
    // Nobody has come as long as it has not said so: the answer for its address leads where it was.
    let said = world.says(HOME, &world.from(MOVING, world.cloud.address(ON_AWAY), HTTP), Connection::New);
    assert!(said.contains("delivered to port on-away"), "{said}");
}

/// Without a number of the tap no flow names it, and the frame goes to the port's host as ever.
#[test]
fn a_tap_that_is_not_plugged_in_yet_holds_nothing_up() {
    let mut world = World::new(awaited());
    let moving = world.cloud.ports[MOVING].id;
    world.numbers[NEXT].ports.remove(&moving);
    let numbers = world.numbers.clone();
    let world = World::of(world.cloud, HOSTS, |_, host| numbers[host].clone());
    for from in [ON_HOME, ON_NEXT, ON_AWAY] {
        assert_eq!(world.reached(from, MOVING, HTTP), [HOME], "from {from}");
    }
}

/// What goes to a MAC address that several ports have is flooded, to the host that awaits one of them as well: nobody gets it twice.
#[test]
fn what_several_may_have_comes_once() {
    let mac = Mac::new([0, 0, 0x5e, 0, 1, 1]);
    let mut cloud = awaited();
    for port in [MOVING, ON_NEXT] {
        let addresses = "10.0.1.100/32".parse().unwrap();
        cloud.ports[port].allowed_pairs.push(AllowedPair { addresses, mac: Some(mac) });
    }
    let world = World::new(cloud);
    let packet = world.from(ON_HOME, world.cloud.address(MOVING), HTTP).with(Field::EthDst, mac.bytes());
    let ends = world.ends(HOME, &packet.with(Field::Ipv4Dst, Ipv4Addr::new(10, 0, 1, 100)), Connection::New);
    let delivered = ends.into_iter().filter_map(|(host, end)| match end.verdict {
        Verdict::Delivered { name, .. } => Some((host, name)),
        _ => None,
    });
    let mut delivered: Vec<_> = delivered.collect();
    delivered.sort_unstable();
    let port = |host, name: &str| (host, format!("port {name}"));
    assert_eq!(delivered, [port(HOME, "moving"), port(NEXT, "moving"), port(NEXT, "on-next")]);
}

/// A frame of one that is let in at its old host's address only: what the receiver's rules say on one host is nothing to the other.
#[test]
fn what_is_said_of_the_copy_is_nothing_to_the_frame() {
    let mut cloud = awaited();
    cloud.ports[ON_NEXT].port_security = false;
    let world = World::new(cloud);
    // Unguarded, it is no member that anybody could name: the copy is refused where it is judged, which is on each of the hosts.
    let packet = world.from(ON_NEXT, world.cloud.address(MOVING), SSH);
    let path = trace(&world.sets[NEXT], &packet, Connection::New);
    let tunnelled =
        |verdict: &Verdict| matches!(verdict, Verdict::Tunnelled { endpoint: at, .. } if *at == endpoint(HOME));
    assert!(path.outcomes.iter().any(|outcome| tunnelled(&outcome.verdict)), "{path}");
    assert!(!path.reaches(world.cloud.ports[MOVING].key), "{path}");
}

/// Once it has come, the host that awaited it makes of it what a specification that has it there does, but for connections that are under way.
#[test]
fn what_came_is_as_if_it_had_always_been_there() {
    let mut after = awaited();
    after.arrive(NEXT);
    assert!(after.ports[MOVING].is_on(host_id(NEXT)) && after.ports[SUB].is_on(host_id(NEXT)));
    let came = [(after.ports[MOVING].id, SERIAL)].into();
    assert_eq!(awaited().host(NEXT).with_arrived(&came), after.host(NEXT));
    let stale = [(after.ports[MOVING].id, SERIAL - 1)].into();
    assert_eq!(awaited().host(NEXT).with_arrived(&stale), awaited().host(NEXT), "news of another attempt");
    let world = World::new(after.clone());
    for from in [ON_HOME, ON_NEXT, ON_AWAY] {
        assert_eq!(world.reached(from, MOVING, HTTP), [NEXT], "from {from}");
    }
    // By turns, in one compiler, and back: the sets are those made from nothing.
    let numbers = awaited().numbers(NEXT);
    let mut settling = numbers.clone();
    settling.settling.insert(after.ports[MOVING].id);
    let mut compiler = Compiler::new(cloud().host(NEXT));
    for (cloud, numbers) in [(awaited(), &numbers), (after, &settling), (cloud(), &numbers), (awaited(), &settling)] {
        compiler.update(cloud.host(NEXT), numbers);
        assert_eq!(*compiler.flows(), compile(&cloud.host(NEXT), numbers));
    }
}

/// A real switch says the same as the model, on each host.
#[test]
fn the_model_and_the_switch_agree() {
    require!(Need::Root, Need::OpenVswitch);
    let mut came = awaited();
    came.arrive(NEXT);
    for (cloud, is_settling) in [(awaited(), false), (came, true)] {
        for host in 0..HOSTS {
            let mut rig = Rig::start(&cloud, host).unwrap();
            if is_settling && host == NEXT {
                rig.numbers.settling.insert(cloud.ports[MOVING].id);
            }
            let set = rig.install(&cloud).unwrap();
            let changes = dataplane::diff(&set, &rig.installed().unwrap());
            assert!(changes.is_empty(), "{changes:#?}");
            let world = World::new(cloud.clone());
            let mut packets = Vec::new();
            for from in [MOVING, ON_HOME, ON_NEXT, ON_AWAY] {
                for to in [MOVING, ON_HOME, ON_AWAY] {
                    let packet = world.from(from, world.cloud.address(to), HTTP);
                    if world.host_of(from) == host {
                        packets.push(packet.clone());
                    }
                    for outcome in trace(&world.sets[world.host_of(from)], &packet, Connection::New).outcomes {
                        if let Verdict::Tunnelled { vni, .. } = outcome.verdict {
                            packets.push(outcome.leaving.out_of_tunnel(VXLAN, (endpoint(world.host_of(from)), vni)));
                        }
                    }
                }
            }
            rig.ask_all(&set, &packets);
        }
    }
}

const LIMIT: Duration = Duration::from_secs(30);
/// Pings a millisecond apart of the third host, in each version of IP; those on the other hosts are ten.
const PINGS: u32 = 6000;
/// How long the machine has no interface, at least.
const PAUSE: Duration = Duration::from_millis(30);

/// A machine whose interface can be at the tap of either host: a bridge of its own, with the port's addresses, that has one of two links.
struct Guest {
    namespace: Namespace,
}

impl Guest {
    async fn new(cloud: &Cloud, (home, next): (&Host, &Host)) -> Result<Self> {
        let port = &cloud.ports[MOVING];
        let namespace = Namespace::new()?;
        namespace.run(&["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"])?;
        for (host, link) in [(home, "eth0"), (next, "eth1")] {
            host.switch.namespace().add_veth(&port.tap_name(), &namespace, link)?;
            namespace.set_mtu(link, 1450)?;
            let machine = port.binding.as_ref().context("plugged in nowhere")?.machine;
            let tap = TapPort { tap: port.tap_name(), port: port.id, machine, mac: port.mac };
            host.host.ensure_port(&tap).await?;
        }
        namespace.run(&["ip", "link", "add", "br0", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0"])?;
        namespace.set_mac("br0", &port.mac.to_string())?;
        namespace.run(&["ip", "link", "set", "eth0", "master", "br0"])?;
        namespace.up("br0")?;
        namespace.add_address("br0", &format!("{}/24", cloud.address(MOVING)))?;
        namespace.add_route("default", "10.0.1.1")?;
        namespace.run(&["sysctl", "-qw", "net.ipv6.conf.br0.disable_ipv6=0"])?;
        namespace.add_address("br0", &format!("{}/64", cloud.address6(MOVING).context("IPv6")?))?;
        namespace.run(&["ip", "-6", "route", "add", "default", "via", "fd00:0:0:1::1"])?;
        Ok(Self { namespace })
    }

    /// The moment without an interface, and then the other one.
    async fn resume(&self, from: &str, to: &str) -> Result<()> {
        self.namespace.run(&["ip", "link", "set", from, "nomaster"])?;
        tokio::time::sleep(PAUSE).await;
        self.namespace.run(&["ip", "link", "set", to, "master", "br0"]).map(drop)
    }

    /// Says what it may not say, by the tap where it is awaited: as somebody else, and with an address of somebody else.
    fn pretend(&self, mac: &str) -> Result<()> {
        for is_own in [false, true] {
            if is_own {
                self.namespace.set_mac("eth1", mac)?;
            }
            self.namespace.add_address("eth1", "10.0.1.99/32")?;
            self.namespace.run(&["ip", "route", "add", "10.0.1.98/32", "dev", "eth1", "src", "10.0.1.99"])?;
            assert_eq!(self.namespace.ping("10.0.1.98".parse()?, 2, Duration::from_secs(1))?, 0);
            self.namespace.run(&["ip", "address", "flush", "dev", "eth1"])?;
        }
        // With the address of the port it would take what is for the machine: this one's own, and the copies.
        self.namespace.set_mac("eth1", "02:08:00:00:00:08")
    }
}

/// Echo requests as they arrive somewhere.
struct Watch {
    log: PathBuf,
    daemon: Daemon,
}

impl Watch {
    fn start(namespace: &Namespace, link: &str, directory: &std::path::Path) -> Result<Self> {
        let log = directory.join(format!("watch-{link}"));
        let kinds = "icmp[icmptype] == icmp-echo or icmp6[icmp6type] == icmp6-echo";
        let words =
            ["tcpdump", "-Z", "root", "-n", "-l", "--immediate-mode", "-B", "16384", "-Q", "in", "-i", link, kinds];
        let daemon = namespace.start(&format!("tcpdump-{link}"), &words, &log)?;
        wait_for("tcpdump to listen", LIMIT, || {
            Ok(std::fs::read_to_string(&log)?.contains("listening on").then_some(()))
        })?;
        Ok(Self { log, daemon })
    }

    /// Stops it, and gives the numbers of the requests of one that it saw.
    fn seen(&self, from: IpAddr) -> Result<BTreeSet<u32>> {
        let text = std::fs::read_to_string(&self.log)?;
        let mine = text.lines().filter(|line| line.contains(&format!(" {from} > ")) && line.contains("echo request"));
        let number = |line: &str| line.split("seq ").nth(1)?.split(',').next()?.parse().ok();
        Ok(mine.filter_map(number).collect())
    }

    fn stop(&mut self) -> Result<()> {
        self.daemon.stop().map(drop)?;
        let text = std::fs::read_to_string(&self.log)?;
        anyhow::ensure!(text.contains("0 packets dropped by kernel"), "{}", self.daemon.log_tail());
        Ok(())
    }
}

/// Pings that go on.
struct Pings {
    from: IpAddr,
    log: PathBuf,
    daemon: Daemon,
    count: u32,
}

impl Pings {
    fn start(machine: &Machine, (from, to): (IpAddr, IpAddr), rate: u32, directory: &std::path::Path) -> Result<Self> {
        let log = directory.join(format!("pings-{from}").replace(':', "-"));
        let (pause, count) = (format!("{:.3}", 1.0 / f64::from(rate)), PINGS / 1000 * rate);
        let words =
            ["ping", "-n", "-i", &pause, "-W", "3", "-c", &count.to_string(), &to.to_string()].map(str::to_owned);
        let daemon = machine.namespace.start("ping", &words, &log)?;
        wait_for("pings to go", LIMIT, || Ok(std::fs::read_to_string(&log)?.contains("seq=20 ").then_some(())))?;
        Ok(Self { from, log, daemon, count })
    }

    /// Waits for the end, and gives the numbers of those that were answered, once each.
    fn answered(&mut self) -> Result<BTreeSet<u32>> {
        wait_for("pings to end", LIMIT, || self.daemon.ended().map(|ended| ended.map(drop)))?;
        let text = std::fs::read_to_string(&self.log)?;
        anyhow::ensure!(!text.contains("DUP!"), "an answer came twice");
        let number = |line: &str| line.split("seq=").nth(1)?.split(' ').next()?.parse().ok();
        Ok(text.lines().filter(|line| line.contains("bytes from")).filter_map(number).collect())
    }
}

/// Three hosts, with their machines and the one that moves.
struct Scene {
    cloud: Cloud,
    hosts: [Host; HOSTS],
    guest: Guest,
    others: [Machine; HOSTS],
    _underlay: basalt_tests::ovs::Switch,
}

impl Scene {
    async fn start() -> Result<Self> {
        let cloud = cloud();
        let underlay = outside::datacentre()?;
        let nothing = |host| HostNetwork::empty(host_id(host), endpoint(host));
        let hosts =
            [Host::start(nothing(HOME)).await?, Host::start(nothing(NEXT)).await?, Host::start(nothing(AWAY)).await?];
        Host::link_by(&underlay, &[&hosts[HOME], &hosts[NEXT], &hosts[AWAY]])?;
        let guest = Guest::new(&cloud, (&hosts[HOME], &hosts[NEXT])).await?;
        let others = [
            plug(&hosts[HOME], &cloud, ON_HOME).await?,
            plug(&hosts[NEXT], &cloud, ON_NEXT).await?,
            plug(&hosts[AWAY], &cloud, ON_AWAY).await?,
        ];
        let scene = Self { cloud, hosts, guest, others, _underlay: underlay };
        scene.program().await?;
        for (number, machine) in scene.others.iter().enumerate() {
            for target in [IpAddr::V4(scene.cloud.address(MOVING)), IpAddr::V6(scene.six(MOVING)?)] {
                outside::eventually(&format!("does {number} reach {target}"), || Ok(machine.pings(target)? == 3))?;
            }
        }
        Ok(scene)
    }

    /// What a scheduler would do: all hosts are told.
    async fn program(&self) -> Result<()> {
        for (number, host) in self.hosts.iter().enumerate() {
            host.program(self.cloud.host(number)).await?;
        }
        Ok(())
    }

    fn six(&self, port: usize) -> Result<Ipv6Addr> {
        self.cloud.address6(port).context("a port without IPv6")
    }

    fn arrived(&self) -> Vec<Arrived> {
        self.arrived_on(NEXT)
    }

    fn arrived_on(&self, host: usize) -> Vec<Arrived> {
        let arrived = self.hosts[host].host.arrived().borrow().clone();
        arrived.into_iter().map(|(port, serial)| Arrived { port, serial }).collect()
    }
}

async fn plug(host: &Host, cloud: &Cloud, port: usize) -> Result<Machine> {
    let machine = host.plug(&cloud.ports[port]).await?;
    machine.configure_both(cloud.address(port), cloud.address6(port))?;
    Ok(machine)
}

/// Sends as many times 64 KiB one way.
fn transfer(from: &mut TcpStream, to: &mut TcpStream, times: u32) -> Result<()> {
    to.set_read_timeout(Some(LIMIT))?;
    let mut read = vec![0; 64 << 10];
    for _ in 0..times {
        from.write_all(&read)?;
        to.read_exact(&mut read)?;
    }
    Ok(())
}

/// It is awaited, called off and awaited again, while much goes one way: what the host that awaited it saw of that is of no use to it, and no harm.
async fn await_again(scene: &mut Scene, served: &mut Pair, fetched: &mut Pair) -> Result<()> {
    for serial in [SERIAL - 1, SERIAL] {
        scene.cloud.await_on(MOVING, NEXT, serial);
        scene.program().await?;
        transfer(&mut served.client, &mut served.server, 1)?;
        transfer(&mut fetched.server, &mut fetched.client, 1)?;
        if serial < SERIAL {
            scene.cloud.ports.iter_mut().for_each(|port| port.arriving = None);
            scene.program().await?;
            transfer(&mut served.client, &mut served.server, 64)?;
            transfer(&mut fetched.server, &mut fetched.client, 64)?;
        }
    }
    Ok(())
}

/// A machine goes on on another host while it is pinged from the hosts where it was, where it comes to, and a third one, a thousand times a second in
/// both versions of IP. What is lost is what came while it had no interface, not a ping more; connections of both directions go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_but_what_comes_while_the_machine_is_paused() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"), Need::Program("tcpdump"));
    let mut scene = Scene::start().await?;
    let directory = tempfile::tempdir()?;
    let away = &scene.others[AWAY];
    let (four, six) = (IpAddr::V4(scene.cloud.address(MOVING)), IpAddr::V6(scene.six(MOVING)?));
    let listen = |namespace: &Namespace| namespace.enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)));
    let mut served = Pair::connect(&away.namespace, &listen(&scene.guest.namespace)??, four)?;
    let mut fetched =
        Pair::connect(&scene.guest.namespace, &listen(&away.namespace)??, scene.cloud.address(ON_AWAY).into())?;
    let mut fetched_six =
        Pair::connect(&scene.guest.namespace, &listen(&scene.others[HOME].namespace)??, scene.six(ON_HOME)?.into())?;
    assert!(served.speaks()? && fetched.speaks()? && fetched_six.speaks()?);

    await_again(&mut scene, &mut served, &mut fetched).await?;
    scene.guest.pretend(&scene.cloud.mac(MOVING).to_string())?;
    assert_eq!(scene.arrived(), [], "what is spoofed brings nobody");

    let taken = Watch::start(&scene.guest.namespace, "br0", directory.path())?;
    let copied = Watch::start(&scene.guest.namespace, "eth1", directory.path())?;
    let mut watches = [taken, copied];
    let from = |port: usize| -> Result<[IpAddr; 2]> { Ok([scene.cloud.address(port).into(), scene.six(port)?.into()]) };
    let mut pings = Vec::new();
    for (machine, port, rate) in [(AWAY, ON_AWAY, 1000), (HOME, ON_HOME, 100), (NEXT, ON_NEXT, 100)] {
        for (from, to) in from(port)?.into_iter().zip([four, six]) {
            pings.push(Pings::start(&scene.others[machine], (from, to), rate, directory.path())?);
        }
    }
    assert_eq!(scene.arrived(), [], "it has said nothing there");
    assert!(fetched.speaks()?, "it is where it was");

    scene.guest.resume("eth0", "eth1").await?;
    let mut arrived = scene.hosts[NEXT].host.arrived();
    tokio::time::timeout(LIMIT, arrived.wait_for(|arrived| !arrived.is_empty())).await??;
    assert_eq!(scene.arrived(), [Arrived { port: scene.cloud.ports[MOVING].id, serial: SERIAL }]);
    // Before anybody else is told. The machine is silent in these connections, and hears what it did not ask for there.
    for pair in [&mut fetched, &mut fetched_six] {
        pair.server.write_all(b"x")?;
        assert!(arrives(&mut pair.client, b'x', REACH)?, "what it began goes on");
        assert!(pair.speaks()?);
    }
    served.client.write_all(b"y")?;
    assert!(arrives(&mut served.server, b'y', REACH)?, "what others began goes on");
    assert!(served.speaks()?, "what others began goes on");
    scene.cloud.arrive(NEXT);
    scene.program().await?;
    assert_eq!(scene.arrived(), [], "the specification says it by now");

    let answers = pings.iter_mut().map(Pings::answered).collect::<Result<Vec<_>>>()?;
    for (watch, pings) in watches.iter().flat_map(|watch| pings.iter().map(move |pings| (watch, pings))) {
        let last = || Ok(watch.seen(pings.from)?.contains(&pings.count).then_some(()));
        wait_for("the last ping to be written down", LIMIT, last)?;
    }
    watches.iter_mut().try_for_each(Watch::stop)?;
    for (pings, answered) in pings.iter().zip(answers) {
        let [taken, copied] = [&watches[0], &watches[1]].map(|watch| watch.seen(pings.from));
        let (taken, copied) = (taken?, copied?);
        let all: BTreeSet<u32> = (1..=pings.count).collect();
        let lost: Vec<u32> = all.difference(&answered).copied().collect();
        println!(
            "from {}: lost {} of {} pings: {:?} to {:?}",
            pings.from,
            lost.len(),
            all.len(),
            lost.first(),
            lost.last()
        );
        // It pings often enough to lose some while there is no interface, which is how it is known that losses are seen.
        assert!(pings.count < PINGS || !lost.is_empty(), "from {}: nothing is lost", pings.from);
        let uncopied: Vec<&u32> = all.difference(&copied).collect();
        assert_eq!(uncopied, Vec::<&u32>::new(), "from {}: no copy came where it was awaited", pings.from);
        assert_eq!(answered, taken, "from {}: what the machine took is what was answered", pings.from);
        let span = lost.last().zip(lost.first()).map_or(0, |(last, first)| last - first + 1);
        assert_eq!(usize::try_from(span)?, lost.len(), "from {}: one pause", pings.from);
    }
    assert!(served.speaks()? && fetched.speaks()? && fetched_six.speaks()?);
    Ok(())
}

/// The agent of the host that it came to is started again before the scheduler knows: with what it noted nothing changes. Then the machine goes back to
/// where it was, whose tracker knows its connections as they stood long ago.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_stays_where_it_came_and_can_go_back() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let mut scene = Scene::start().await?;
    let four = IpAddr::V4(scene.cloud.address(MOVING));
    let listen = |namespace: &Namespace| namespace.enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)));
    let away = &scene.others[AWAY].namespace;
    let mut served = Pair::connect(away, &listen(&scene.guest.namespace)??, four)?;
    let mut fetched = Pair::connect(&scene.guest.namespace, &listen(away)??, scene.cloud.address(ON_AWAY).into())?;
    assert!(served.speaks()? && fetched.speaks()?);
    scene.cloud.await_on(MOVING, NEXT, SERIAL);
    scene.program().await?;
    scene.guest.resume("eth0", "eth1").await?;
    assert!(served.speaks()? && fetched.speaks()?, "it has come");
    let came = scene.arrived();
    assert_eq!(came.len(), 1);

    let again = scene.hosts[NEXT].again(HostNetwork::empty(host_id(NEXT), endpoint(NEXT)));
    again.bridge().connected(LIMIT).await?;
    again.resume_arrivals(came.clone());
    let applied = again.program(scene.cloud.host(NEXT), LIMIT).await?;
    assert_eq!(applied.messages, 0, "what is noted is what was installed: {applied:?}");
    scene.hosts[NEXT].host = again;
    assert_eq!(scene.arrived(), came);
    assert!(served.speaks()? && fetched.speaks()?);

    scene.cloud.arrive(NEXT);
    scene.program().await?;
    transfer(&mut served.client, &mut served.server, 64)?;
    transfer(&mut fetched.server, &mut fetched.client, 64)?;
    scene.cloud.await_on(MOVING, HOME, SERIAL + 1);
    scene.program().await?;
    assert_eq!(scene.arrived_on(HOME), []);
    scene.guest.resume("eth1", "eth0").await?;
    // Something has to be said for it to be known that it is back.
    assert!(scene.guest.namespace.ping("10.0.1.1".parse()?, 3, REACH)? > 0);
    assert_eq!(scene.arrived_on(HOME), [Arrived { port: scene.cloud.ports[MOVING].id, serial: SERIAL + 1 }]);
    served.client.write_all(b"y")?;
    fetched.server.write_all(b"x")?;
    assert!(arrives(&mut served.server, b'y', REACH)? && arrives(&mut fetched.client, b'x', REACH)?);
    assert!(served.speaks()? && fetched.speaks()?);
    scene.cloud.arrive(HOME);
    scene.program().await?;
    assert!(served.speaks()? && fetched.speaks()?);
    Ok(())
}

//! Health checks of members of load balancers: what the flows hand over, in the model's words and in a real switch; and real services in namespaces that
//! come and go, asked by every type of monitor, in both versions of IP, on the load balancer's network and behind its router.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod topology;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use basalt_tests::process::{Daemon, wait_for};
use basalt_tests::require;
use basalt_tests::skip::Need;
use basalt_tests::tcp::REACH;
use dataplane::switch::host::HostSwitch;
use dataplane::switch::openflow::OpenFlow;
use dataplane::table::Table;
use dataplane::trace::{Cause, Connection, Packet, Payload, blame};
use dataplane::{compile, trace};
use hosts::{Host, Machine};
use model::balancer::monitor::{Check, Method, Monitor};
use model::balancer::{MemberHealth, Transport};
use model::security::{Direction, Ethertype, Protocol, Remote};
use model::spec::HostNetwork;
use openflow::flow::Field;
use rig::Rig;
use tempfile::TempDir;
use topology::{Cloud, endpoint, host_id, tcp, udp};

const CLIENT: usize = 0;
const ONE: usize = 1;
const TWO: usize = 2;
const FORGER: usize = 3;
const OUTER: usize = 4;
const STRANGER: usize = 5;
/// The load balancers of IPv4 and of IPv6.
const FRONTS: [usize; 2] = [0, 1];
/// Where TCP and UDP are in their listeners.
const TCP: usize = 0;
const UDP: usize = 1;
/// Connections of which each member gets some.
const CONNECTIONS: usize = 40;
/// From a service that comes or goes to its verdict: three checks at most, a second apart, each of a second at most, on a machine with much else to do.
const VERDICT_LIMIT: Duration = Duration::from_secs(40);
const HTTP: Payload = Payload::Tcp { source: 40_000, target: 80 };

/// A client and two members on one host and one network, one more member behind the router; a client behind the router on another host. Members take connections
/// to TCP port 8080 and datagrams to UDP port 5353 and nothing else.
fn cloud() -> Cloud {
    let mut cloud = Cloud::default();
    let blue = cloud.network("blue", "10.0.1.0/24");
    let green = cloud.network("green", "10.0.2.0/24");
    cloud.ipv6(blue, "fd00:0:0:1::/64");
    cloud.ipv6(green, "fd00:0:0:2::/64");
    cloud.router("main", &[blue, green]);
    let group = cloud.group("served");
    cloud.rule_of(Ethertype::IPv6, group, Direction::Egress, Protocol::Any, Remote::Any);
    for protocol in [tcp(8080, 8080), udp(5353, 5353)] {
        cloud.allow(group, protocol, Remote::Any);
        cloud.allow6(group, protocol, Remote::Any);
    }
    for (name, network, host, last) in [
        ("client", blue, 0, 11),
        ("one", blue, 0, 12),
        ("two", blue, 0, 13),
        ("forger", blue, 0, 14),
        ("outer", green, 0, 22),
        ("stranger", green, 1, 21),
    ] {
        cloud.port(name, network, host, last, &[group]);
    }
    cloud.ports[FORGER].port_security = false;
    cloud.ports[FORGER].groups.clear();
    for six in [false, true] {
        let front = cloud.balancer(if six { "front6" } else { "front" }, blue, 100, six);
        cloud.listen(front, Transport::Tcp, 80, &[(ONE, 8080, 1), (TWO, 8080, 1), (OUTER, 8080, 1)]);
        cloud.listen(front, Transport::Udp, 53, &[(ONE, 5353, 1), (TWO, 5353, 1), (OUTER, 5353, 1)]);
    }
    cloud
}

/// A monitor that makes up its mind soon.
#[cfg(test)]
fn quick(check: Check) -> Monitor {
    Monitor { delay_seconds: 1, timeout_seconds: 1, max_retries: 2, max_retries_down: 2, ..Monitor::new(check) }
}

#[cfg(test)]
fn http(path: &str) -> Check {
    Check::Http {
        method: Method::Get,
        url_path: path.to_owned().try_into().unwrap(),
        expected_codes: "200-299".to_owned().try_into().unwrap(),
    }
}

#[cfg(test)]
fn watch(cloud: &mut Cloud, listener: usize, check: &Check) {
    for front in FRONTS {
        cloud.balancers[front].listeners[listener].monitor = Some(quick(check.clone()));
    }
}

#[cfg(test)]
fn both(cloud: &Cloud, port: usize) -> [IpAddr; 2] {
    [cloud.address(port).into(), cloud.address6(port).unwrap().into()]
}

#[cfg(test)]
fn says(cloud: &Cloud, packet: &Packet) -> String {
    let path = trace(&compile(&cloud.host(0), &cloud.numbers(0)), packet, Connection::New);
    path.verdicts().iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
}

/// What a member answers to a check is handed to the agent and goes nowhere else, whatever its groups say; what any other port sends in its name is not, and
/// neither is anything else of the member. The switch says the same.
#[test]
fn only_the_member_answers_and_only_to_the_agent() {
    require!(Need::Root, Need::OpenVswitch);
    let mut cloud = cloud();
    cloud.groups[0].rules.clear();
    let rig = Rig::start(&cloud, 0).unwrap();
    for (listener, check) in [(TCP, Check::Tcp), (TCP, http("/")), (TCP, Check::Ping), (UDP, Check::UdpConnect)] {
        for listener in [TCP, UDP] {
            FRONTS.into_iter().for_each(|front| cloud.balancers[front].listeners[listener].monitor = None);
        }
        watch(&mut cloud, listener, &check);
        let set = rig.install(&cloud).unwrap();
        let changes = dataplane::diff(&set, &rig.installed().unwrap());
        assert!(changes.is_empty(), "{changes:#?}");
        let (host, numbers) = (cloud.host(0), cloud.numbers(0));
        for (six, front) in FRONTS.into_iter().enumerate() {
            let to = cloud.balancers[front].address;
            let (reply, closed) = if six == 1 { (129, (1, 4)) } else { (0, (3, 3)) };
            let answers = match &check {
                Check::Tcp | Check::Http { .. } => vec![Payload::Tcp { source: 8080, target: 64_512 }],
                Check::Ping => vec![Payload::Icmp { kind: reply, code: 0 }],
                Check::UdpConnect => vec![
                    Payload::Udp { source: 5353, target: 65_535 },
                    Payload::Icmp { kind: closed.0, code: closed.1 },
                ],
            };
            for payload in answers {
                for member in [ONE, OUTER] {
                    let name = &cloud.ports[member].name;
                    let answer = Packet::from_port(&host, &numbers, &cloud.ports[member], to, payload).unwrap();
                    let wanted = format!("handed to the agent: answer of port {name} to a health check");
                    assert_eq!(says(&cloud, &answer), wanted, "{check:?}");
                    rig.ask(&set, &answer, Connection::New);
                    let spoofed = answer.clone().with(Field::EthSrc, [2, 9, 9, 9, 9, 9]);
                    assert!(says(&cloud, &spoofed).starts_with("dropped in classify"));
                }
                // Who is held to no address of its own, with everything as the member would have it but the port.
                let own = Packet::from_port(&host, &numbers, &cloud.ports[ONE], to, payload).unwrap();
                let forged = Packet::from_port(&host, &numbers, &cloud.ports[FORGER], to, payload).unwrap();
                let source = [Field::Ipv4Src, Field::Ipv6Src][six];
                let forged = match both(&cloud, ONE)[six] {
                    IpAddr::V4(address) => forged.with(source, address),
                    IpAddr::V6(address) => forged.with(source, address),
                };
                let forged = forged.with(Field::EthSrc, cloud.mac(ONE).bytes());
                assert!(says(&cloud, &forged).starts_with("dropped"), "{check:?}: {}", says(&cloud, &forged));
                assert_eq!(own.get(source), forged.get(source));
                rig.ask(&set, &forged, Connection::New);
            }
            for other in [Payload::Tcp { source: 8081, target: 64_512 }, Payload::Tcp { source: 8080, target: 81 }] {
                let packet = Packet::from_port(&host, &numbers, &cloud.ports[ONE], to, other).unwrap();
                assert!(!says(&cloud, &packet).contains("agent"), "{}", says(&cloud, &packet));
                rig.ask(&set, &packet, Connection::New);
            }
        }
    }
}

/// Who is in error gets nothing new, keeps what it has, and is named where nobody is left.
#[test]
fn who_is_in_error_gets_nothing_new() {
    let mut cloud = cloud();
    watch(&mut cloud, TCP, &Check::Tcp);
    let new = |cloud: &Cloud| {
        let (host, numbers) = (cloud.host(0), cloud.numbers(0));
        let to = cloud.balancers[0].address;
        let packet = Packet::from_port(&host, &numbers, &cloud.ports[CLIENT], to, HTTP).unwrap();
        let path = trace(&compile(&host, &numbers), &packet, Connection::New);
        let blame = blame(&host, &numbers, &packet, &path);
        (path.verdicts().iter().map(ToString::to_string).collect::<BTreeSet<_>>(), blame)
    };
    let all = new(&cloud).0;
    assert_eq!(all.len(), 3, "{all:?}");
    let known = |cloud: &Cloud| {
        let set = compile(&cloud.host(0), &cloud.numbers(0));
        let known = set.flows().filter(|flow| flow.table == Table::Member.number()).cloned();
        known.collect::<Vec<_>>()
    };
    let before = known(&cloud);
    cloud.balancers[0].listeners[TCP].members[0].in_error = true;
    let left = new(&cloud).0;
    assert!(left.len() == 2 && !left.contains("delivered to port one"), "{left:?}");
    assert_eq!(known(&cloud), before, "a connection that is there goes on");
    cloud.balancers[0].listeners[UDP].monitor = Some(quick(Check::UdpConnect));
    let set_before = compile(&cloud.host(0), &cloud.numbers(0));
    cloud.balancers[0].listeners[UDP].members[0].in_error = true;
    let after = known(&cloud);
    let lost: Vec<_> = before.iter().filter(|flow| !after.contains(flow)).collect();
    assert!(lost.len() == 1 && after.len() + 1 == before.len(), "over UDP it does not: {lost:?}");
    let set = compile(&cloud.host(0), &cloud.numbers(0));
    let changes = dataplane::diff::between(&set_before, &set, &set_before.differences(&set));
    assert_eq!(changes.stale_connections.len(), 1, "and is forgotten");
    cloud.balancers[0].listeners[TCP].members.iter_mut().for_each(|member| member.in_error = true);
    let blame = new(&cloud).1.unwrap();
    let line = "load balancer front: tcp port 80: every member that is plugged in and has a weight is in error, as its health monitor found: \
                10.0.1.12 port 8080, 10.0.1.13 port 8080, 10.0.2.22 port 8080";
    assert_eq!((blame.cause, blame.line.as_str()), (Cause::NoMember, line));
}

/// Hosts with machines of all ports.
struct World {
    cloud: Cloud,
    hosts: Vec<Host>,
    machines: Vec<Machine>,
    /// Pages of web servers, by machine, and what they say of themselves.
    pages: TempDir,
}

/// A service of a member that can be stopped.
enum Service {
    Tcp(#[expect(dead_code, reason = "it listens as long as it is held")] TcpListener),
    Udp(#[expect(dead_code, reason = "it is open as long as it is held")] UdpSocket),
    Web(Daemon),
}

impl World {
    #[cfg(test)]
    async fn start(cloud: Cloud) -> Result<Self> {
        let mut hosts = Vec::new();
        for host in [0, 1] {
            hosts.push(Host::start(HostNetwork::empty(host_id(host), endpoint(host))).await?);
        }
        hosts[0].link(&hosts[1])?;
        let mut machines = Vec::new();
        for (number, port) in cloud.ports.iter().enumerate() {
            let machine = hosts[usize::from(port.is_on(host_id(1)))].plug(port).await?;
            machine.restart_link()?;
            machine.configure_both(cloud.address(number), cloud.address6(number))?;
            machines.push(machine);
        }
        let world = Self { cloud, hosts, machines, pages: tempfile::tempdir()? };
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

    /// Gives all hosts what the agent of the members' host found, as the scheduler does.
    #[cfg(test)]
    async fn learn(&mut self) -> Result<()> {
        let found = self.hosts[0].host.health().borrow().clone();
        for verdict in found.iter() {
            let about = verdict.member;
            let front = self.cloud.balancers.iter_mut().find(|front| front.id == about.balancer).context("no such")?;
            let listeners =
                front.listeners.iter_mut().filter(|it| (it.protocol, it.port) == (about.protocol, about.listener));
            let mut members = listeners.flat_map(|it| &mut it.members);
            let member = members.find(|it| (it.address, it.port) == (about.address, about.port)).context("no such")?;
            member.in_error = !verdict.online;
        }
        self.program().await
    }

    /// What is known of a member in a listener of both load balancers.
    #[cfg(test)]
    fn verdicts(&self, port: usize, listener: usize) -> [Option<MemberHealth>; 2] {
        let found = self.hosts[0].host.health().borrow().clone();
        FRONTS.map(|front| {
            let (address, balancer) = (both(&self.cloud, port)[front], &self.cloud.balancers[front]);
            let number = balancer.listeners[listener].port;
            let is_it = |it: &&MemberHealth| {
                (it.member.balancer, it.member.listener, it.member.address) == (balancer.id, number, address)
            };
            found.iter().find(is_it).cloned()
        })
    }

    /// Waits until both load balancers have this verdict on a member.
    #[cfg(test)]
    fn becomes(&self, port: usize, listener: usize, online: bool, reason: &str) -> Result<()> {
        let what = format!("{} to be online={online}: {reason:?}", self.cloud.ports[port].name);
        let mut seen = Default::default();
        let waited = wait_for(&what, VERDICT_LIMIT, || {
            seen = self.verdicts(port, listener);
            let is_so = |it: &Option<MemberHealth>| {
                it.as_ref().is_some_and(|it| it.online == online && it.reason.contains(reason))
            };
            Ok(seen.iter().all(is_so).then_some(()))
        });
        waited.with_context(|| format!("found {seen:?}"))
    }

    #[cfg(test)]
    fn serve(&self, port: usize, check: &Check) -> Result<Service> {
        let namespace = &self.machines[port].namespace;
        Ok(match check {
            Check::UdpConnect => Service::Udp(namespace.enter(|| UdpSocket::bind("[::]:5353"))??),
            Check::Http { .. } => {
                let pages = self.pages(port);
                std::fs::create_dir_all(&pages)?;
                let directory = pages.to_str().context("path of the pages")?;
                let words = ["python3", "-m", "http.server", "8080", "--bind", "::", "--directory", directory];
                Service::Web(namespace.start("http.server", &words, &pages.with_extension("log"))?)
            }
            Check::Tcp | Check::Ping => Service::Tcp(self.machines[port].listen(8080)?),
        })
    }

    /// Where the pages of a member are.
    #[cfg(test)]
    fn pages(&self, port: usize) -> PathBuf {
        self.pages.path().join(&self.cloud.ports[port].name)
    }

    /// Has a member answer pings, or not.
    #[cfg(test)]
    fn pinged(&self, port: usize, answers: bool) -> Result<()> {
        let value = u8::from(!answers);
        let [four, six] =
            ["net.ipv4.icmp_echo_ignore_all", "net.ipv6.icmp.echo_ignore_all"].map(|it| format!("{it}={value}"));
        self.machines[port].namespace.run(&["sysctl", "-qw", &four, &six]).map(drop)
    }

    /// Which members get connections of a client, each by the word that it is known by.
    #[cfg(test)]
    fn reached(&self, from: usize, servers: &BTreeMap<usize, TcpListener>) -> Result<[BTreeSet<usize>; 2]> {
        let mut reached = [BTreeSet::new(), BTreeSet::new()];
        for (front, reached) in FRONTS.into_iter().zip(&mut reached) {
            let to = SocketAddr::from((self.cloud.balancers[front].address, 80));
            for _ in 0..CONNECTIONS {
                let client = self.machines[from].namespace.enter(|| TcpStream::connect_timeout(&to, REACH))??;
                let port = client.local_addr()?.port();
                let got = wait_for("the connection at a member", REACH, || {
                    for (member, server) in servers {
                        server.set_nonblocking(true)?;
                        // Connections of checks are there, too, and over.
                        while let Ok((_, peer)) = server.accept() {
                            if peer.port() == port {
                                return Ok(Some(*member));
                            }
                        }
                    }
                    Ok(None)
                })?;
                reached.insert(got);
            }
        }
        Ok(reached)
    }

    /// Another agent takes over the switch of the first host, as after a restart.
    #[cfg(test)]
    async fn restart(&mut self) -> Result<()> {
        let Host { host, switch } = self.hosts.remove(0);
        let settings = host.bridge().settings().clone();
        drop(host);
        let nothing = HostNetwork::empty(host_id(0), endpoint(0));
        let host = HostSwitch::start(settings, OpenFlow::unix(switch.bridge_socket("br-int")), nothing);
        host.ensure().await?;
        self.hosts.insert(0, Host { host, switch });
        self.program().await
    }
}

/// Services are seen to go and to come back by every type of monitor, whether the member is on the load balancer's network or behind its router, with the reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_of_monitor_sees_services_go_and_come_back() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("python3"), Need::Program("ethtool"));
    let mut world = World::start(cloud()).await?;
    let types = [
        (TCP, Check::Tcp, "connection refused"),
        (TCP, http("/"), "connection refused"),
        (UDP, Check::UdpConnect, "its port is closed (ICMP port unreachable)"),
    ];
    for (listener, check, refused) in types {
        world.cloud.balancers.iter_mut().flat_map(|it| &mut it.listeners).for_each(|it| it.monitor = None);
        watch(&mut world.cloud, listener, &check);
        let mut services = BTreeMap::new();
        for member in [ONE, OUTER] {
            services.insert(member, world.serve(member, &check)?);
        }
        world.program().await?;
        for member in [ONE, OUTER] {
            world.becomes(member, listener, true, &format!("answers checks by {}", check.name()))?;
        }
        world.becomes(TWO, listener, false, refused)?;
        for (member, service) in services {
            match service {
                Service::Web(mut daemon) => drop(daemon.kill()?),
                other => drop(other),
            }
            world.becomes(member, listener, false, refused)?;
        }
        let _again = world.serve(OUTER, &check)?;
        world.becomes(OUTER, listener, true, "answers checks")?;
    }
    world.cloud.balancers.iter_mut().flat_map(|it| &mut it.listeners).for_each(|it| it.monitor = None);
    watch(&mut world.cloud, TCP, &Check::Ping);
    world.program().await?;
    for member in [ONE, OUTER] {
        world.becomes(member, TCP, true, "answers checks by PING")?;
        world.pinged(member, false)?;
        world.becomes(member, TCP, false, "timed out after 1 s")?;
        world.pinged(member, true)?;
        world.becomes(member, TCP, true, "answers checks by PING")?;
    }
    Ok(())
}

/// A page that is not there any more is another answer than expected; a machine that says nothing is late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_answer_is_told_from_none() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("python3"), Need::Program("ethtool"));
    let mut cloud = cloud();
    watch(&mut cloud, TCP, &http("/live?deep=1"));
    let world = World::start(cloud).await?;
    let namespace = &world.machines[ONE].namespace;
    let _web = world.serve(ONE, &http("/"))?;
    let page = world.pages(ONE).join("live");
    std::fs::write(&page, "well")?;
    world.becomes(ONE, TCP, true, "answers checks by HTTP")?;
    std::fs::remove_file(&page)?;
    world.becomes(ONE, TCP, false, "HTTP 404, expected 200-299")?;
    std::fs::write(&page, "well")?;
    world.becomes(ONE, TCP, true, "answers checks by HTTP")?;
    namespace.run(&["ip", "link", "set", "dev", "eth0", "down"])?;
    world.becomes(ONE, TCP, false, "timed out after 1 s")?;
    // Whoever is there and says nothing.
    let _silent = world.machines[TWO].listen(8080)?;
    world.becomes(TWO, TCP, false, "timed out after 1 s")
}

/// Connections of clients on both hosts go to members that are online only, as soon as hosts know; another agent on the same switch goes on with what was
/// known, and a switch that restarts has nobody in error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_given_to_members_that_serve() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ethtool"));
    let mut cloud = cloud();
    watch(&mut cloud, TCP, &Check::Tcp);
    let mut world = World::start(cloud).await?;
    let mut servers: BTreeMap<usize, TcpListener> = BTreeMap::new();
    for member in [ONE, TWO, OUTER] {
        servers.insert(member, world.machines[member].listen(8080)?);
    }
    for member in [ONE, TWO, OUTER] {
        world.becomes(member, TCP, true, "answers checks by TCP")?;
    }
    world.learn().await?;
    let all = BTreeSet::from([ONE, TWO, OUTER]);
    for client in [CLIENT, STRANGER] {
        assert_eq!(world.reached(client, &servers)?, [all.clone(), all.clone()]);
    }
    servers.remove(&ONE);
    world.becomes(ONE, TCP, false, "connection refused")?;
    world.learn().await?;
    let left = BTreeSet::from([TWO, OUTER]);
    for client in [CLIENT, STRANGER] {
        assert_eq!(world.reached(client, &servers)?, [left.clone(), left.clone()], "all but the one in error");
    }
    world.restart().await?;
    for client in [CLIENT, STRANGER] {
        assert_eq!(world.reached(client, &servers)?, [left.clone(), left.clone()], "what was known before holds");
    }
    // The first check agrees with what was known, and is enough.
    world.becomes(ONE, TCP, false, "connection refused")?;
    world.becomes(TWO, TCP, true, "answers checks by TCP")?;
    world.hosts[0].switch.restart_vswitchd()?;
    servers.insert(ONE, world.machines[ONE].listen(8080)?);
    wait_for("a check after the switch is back", VERDICT_LIMIT, || {
        let others = [TWO, OUTER].map(|member| world.verdicts(member, TCP));
        assert!(others.iter().flatten().flatten().all(|it| it.online), "{others:?}");
        let one = world.verdicts(ONE, TCP);
        Ok(one.iter().flatten().all(|it| it.online).then_some(()))
    })?;
    world.learn().await?;
    assert_eq!(world.reached(CLIENT, &servers)?, [all.clone(), all], "back among the others");
    Ok(())
}

/// What sends echo replies of every number, each in its own name or in another's, again and again.
const FORGE: &str = r"
import socket, struct, sys, time
mac, target, source, front = sys.argv[1:]
octets = lambda mac: bytes(int(part, 16) for part in mac.split(':'))
def sum16(data):
    total = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(('eth0', 0))
frames = []
for number in range(0xfc00, 0x10000):
    icmp = struct.pack('!BBHHH', 0, 0, 0, number, 1)
    icmp = struct.pack('!BBHHH', 0, 0, sum16(icmp), number, 1)
    ip = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 28, 0, 0, 64, 1, 0, socket.inet_aton(source), socket.inet_aton(front))
    ip = ip[:10] + struct.pack('!H', sum16(ip)) + ip[12:]
    frames.append(octets(target) + octets(mac) + b'\x08\x00' + ip + icmp)
print('ready', flush=True)
# A member has a meter of its own for what it answers: fewer at a time than that lets by.
while True:
    for frame in frames:
        wire.send(frame)
        time.sleep(0.0002)
";

/// A machine on the same network that is held to no address can not answer in a member's name: the member is in error still.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_answers_for_another() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("python3"), Need::Program("ethtool"));
    let mut cloud = cloud();
    watch(&mut cloud, TCP, &Check::Ping);
    cloud.balancers[0].listeners[TCP].members.truncate(1);
    let world = World::start(cloud).await?;
    world.becomes(ONE, TCP, true, "answers checks by PING")?;
    let front = &world.cloud.balancers[0];
    let (source, to) = (world.cloud.address(ONE).to_string(), front.address.to_string());
    let (mac, front_mac) = (world.cloud.mac(ONE).to_string(), front.mac.to_string());
    let words = ["python3", "-c", FORGE, &mac, &front_mac, &source, &to];
    let log = world.pages.path().join("forger.log");
    let mut forger = world.machines[FORGER].namespace.start("forger", &words, &log)?;
    wait_for("the forger to begin", VERDICT_LIMIT, || {
        Ok(std::fs::read_to_string(&log)?.contains("ready").then_some(()))
    })?;
    world.pinged(ONE, false)?;
    world.becomes(ONE, TCP, false, "timed out after 1 s")?;
    forger.kill().map(drop)
}

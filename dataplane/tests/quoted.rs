//! ICMP errors through floating IPs: what they quote, octet by octet; the model against a real switch; and the kernels of machines and stations, which
//! hear of closed ports and of the path's MTU by them.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod outside;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod topology;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use basalt_tests::netns::Namespace;
use basalt_tests::ovs::Switch;
use basalt_tests::process::wait_for;
use basalt_tests::require;
use basalt_tests::skip::Need;
use basalt_tests::tcp::accept;
use dataplane::compile::Stations;
use dataplane::quoted::{ERRORS, End, other_end, translate};
use dataplane::trace::{Connection, Packet, Payload};
use dataplane::{Compiler, PortNumbers, compile, trace};
use etherparse::{PacketBuilder, VlanId};
use hosts::{Host, Machine};
use model::Mac;
use model::security::Remote;
use model::spec::HostNetwork;
use openflow::flow::Field;
use outside::{DC, FAR, GATEWAY, GATEWAY_AT, eventually, plug};
use proptest::prelude::{any, prop, proptest};
use rig::Rig;
use topology::{Cloud, PING, endpoint, host_id, tcp, udp};

const BLUE_1: usize = 0;
const BLUE_2: usize = 1;
const BLUE_3: usize = 2;
const MAIN: usize = 0;
const FIXED: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 11);
const FLOATING: Ipv4Addr = floating(50);
/// Beyond the gateway, on a link that carries less.
const BEYOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const SMALL: u16 = 1300;
const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const LIMIT: Duration = Duration::from_secs(30);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

const fn floating(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, last)
}

/// Three machines with floating IPs on VLAN 100, 1 and 3 on host 0, 2 on host 1. All may be pinged, and asked on TCP port 80 and UDP port 9000.
fn cloud() -> Cloud {
    let mut cloud = Cloud::default();
    let blue = cloud.network("blue", "10.0.1.0/24");
    let outer = cloud.network("outer", "203.0.113.0/24");
    cloud.provide(outer, "dc", Some(100));
    cloud.router("main", &[blue]);
    let all = cloud.group("all");
    for protocol in [PING, tcp(80, 80), udp(9000, 9000)] {
        cloud.allow(all, protocol, Remote::Any);
    }
    for (name, host, last) in [("blue-1", 0, 11), ("blue-2", 1, 12), ("blue-3", 0, 13)] {
        cloud.port(name, blue, host, last, &[all]);
    }
    cloud.lead_out(MAIN, outer);
    for (port, last) in [(BLUE_1, 50), (BLUE_2, 51), (BLUE_3, 52)] {
        cloud.float(MAIN, port, last);
    }
    cloud
}

/// A packet as an error quotes it: this much of it, without an Ethernet header.
#[cfg(test)]
fn quoted(is_tcp: bool, source: Ipv4Addr, target: Ipv4Addr, octets: usize) -> Vec<u8> {
    let builder = PacketBuilder::ipv4(source.octets(), target.octets(), 61);
    let (mut packet, payload) = (Vec::new(), [0x5a; 64]);
    if is_tcp {
        builder.tcp(40_000, 80, 7, 1024).write(&mut packet, &payload).unwrap();
    } else {
        builder.udp(40_000, 53).write(&mut packet, &payload).unwrap();
    }
    packet.truncate(octets);
    packet
}

/// An ICMP error that quotes this, from a router on the way.
#[cfg(test)]
fn error(kind: u8, quoted: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([198, 51, 100, 1], FLOATING.octets(), 60);
    builder.icmpv4_raw(kind, 4, [0, 0, 5, 20]).write(&mut frame, quoted).unwrap();
    frame
}

/// What comes out is the error that would have been written about the packet with the other address, checksums and all, however much of it is quoted.
#[test]
fn the_error_is_what_it_would_have_been() {
    for (is_tcp, octets) in [true, false].into_iter().flat_map(|is_tcp| [28, 30, 36, 38, 40, 92].map(|it| (is_tcp, it)))
    {
        for kind in ERRORS {
            let [outside, inside] = [FLOATING, FIXED].map(|at| error(kind, &quoted(is_tcp, at, FAR, octets)));
            assert_eq!(translate(&outside, End::Source, FLOATING, FIXED), Ok(inside), "{is_tcp} {octets}");
            let [inside, outside] = [FIXED, FLOATING].map(|at| error(kind, &quoted(is_tcp, FAR, at, octets)));
            assert_eq!(translate(&inside, End::Target, FIXED, FLOATING), Ok(outside), "{is_tcp} {octets}");
        }
    }
    // A later fragment has no checksum at that place, and UDP may have none at all.
    let mut later = quoted(false, FLOATING, FAR, 92);
    later[7] = 9;
    let before = error(3, &later);
    let after = translate(&before, End::Source, FLOATING, FIXED).unwrap();
    assert_eq!(after[14 + 20 + 8 + 20..], before[14 + 20 + 8 + 20..]);
    assert_eq!(after[14 + 20..14 + 28], before[14 + 20..14 + 28], "the sum over all of it stays");
    let mut without = quoted(false, FLOATING, FAR, 92);
    without[26..28].fill(0);
    let after = translate(&error(3, &without), End::Source, FLOATING, FIXED).unwrap();
    assert_eq!(after[14 + 28 + 26..14 + 28 + 28], [0, 0]);
}

/// An error from outside about a packet between machines behind the router is none that a station there can have met.
#[test]
fn who_the_quoted_packet_was_with() {
    for is_tcp in [true, false] {
        let frame = error(3, &quoted(is_tcp, FLOATING, cloud().address(BLUE_2), 40));
        assert_eq!(other_end(&frame, End::Source), Some(cloud().address(BLUE_2)));
        assert_eq!(other_end(&frame, End::Target), Some(FLOATING));
        for length in 0..14 + 20 + 8 + 20 {
            assert_eq!(other_end(&frame[..length], End::Source), None, "{length}");
        }
    }
    let cloud = cloud();
    for host in 0..2 {
        let compiler = Compiler::new(cloud.host(host));
        for (far, is_behind) in
            [(cloud.address(BLUE_2), true), (FAR, false), (floating(51), false), (GATEWAY_AT, false)]
        {
            assert_eq!(compiler.is_behind(FLOATING, far), is_behind, "{far} at host {host}");
        }
        assert!(!compiler.is_behind(floating(99), cloud.address(BLUE_2)), "nobody has it");
    }
}

#[test]
fn what_is_no_error_of_it_is_left_alone() {
    let why = |frame: &[u8]| translate(frame, End::Source, FLOATING, FIXED).unwrap_err().reason;
    let whole = error(3, &quoted(false, FLOATING, FAR, 92));
    assert_eq!(why(&error(8, &quoted(false, FLOATING, FAR, 92))), "it is no ICMP error");
    assert_eq!(why(&error(3, &quoted(false, FAR, FLOATING, 92))), "the packet that it quotes is another's");
    assert_eq!(why(&error(3, &quoted(false, floating(51), FAR, 92))), "the packet that it quotes is another's");
    assert_eq!(why(&whole[..14]), "it is cut short");
    for length in 0..whole.len() {
        assert!(translate(&whole[..length], End::Source, FLOATING, FIXED).is_err(), "{length}");
    }
    let said = translate(&whole, End::Target, FIXED, FLOATING).unwrap_err().to_string();
    let want = "translate 10.0.1.11 to 203.0.113.50 in what an ICMP error of 134 octets quotes: the packet that it quotes is another's";
    assert_eq!(said, want);
}

proptest! {
    /// No frame makes it panic, and what it takes has the length that it had.
    #[test]
    fn nothing_is_too_strange(octets in prop::collection::vec(any::<u8>(), 0..120), at in 0_usize..134, value in any::<u8>()) {
        let mut spoiled = error(3, &quoted(true, FLOATING, FAR, 92));
        spoiled[at] = value;
        for frame in [octets, spoiled] {
            if let Ok(after) = translate(&frame, End::Source, FLOATING, FIXED) {
                assert_eq!(after.len(), frame.len());
            }
        }
    }
}

/// Errors go to the agent, each way, and nothing else does; what is no error about a connection of the machine is dropped before.
#[test]
fn the_model_and_the_switch_agree() {
    let cloud = cloud();
    let numbers = |host| PortNumbers {
        stations: Stations::from([((cloud.networks[1].id, GATEWAY_AT.into()), GATEWAY)]),
        ..cloud.numbers(host)
    };
    let set = compile(&cloud.host(0), &numbers(0));
    let to = |kind, code| {
        let mac = Mac::new([2, 3, 0, 0, 0, 50]);
        Packet::ip(DC, (GATEWAY, mac), (FAR, FLOATING), Payload::Icmp { kind, code }).in_vlan(100)
    };
    let from = |kind, to| {
        let payload = Payload::Icmp { kind, code: 3 };
        Packet::from_port(&cloud.host(0), &numbers(0), &cloud.ports[BLUE_1], to, payload).unwrap()
    };
    let says = |packet: &Packet, connection| {
        let path = trace(&set, packet, connection);
        path.outcomes.iter().map(|outcome| outcome.verdict.to_string()).collect::<Vec<_>>().join(" | ")
    };
    let inward = "handed to the agent: it puts 10.0.1.11 in the place of 203.0.113.50 in what the error quotes, and lets it go on";
    let outward = "handed to the agent: it puts 203.0.113.50 in the place of 10.0.1.11 in what the error quotes, and lets it go on";
    for kind in ERRORS {
        assert_eq!(says(&to(kind, 4), Connection::Related), inward);
        assert_eq!(says(&from(kind, FAR), Connection::Related), outward);
        let unasked = says(&from(kind, FAR), Connection::Invalid);
        assert_eq!(unasked, "dropped in state: the connection tracker finds the packet invalid");
        let pretended = to(kind, 4).with(Field::Ipv4Src, cloud.address(BLUE_2));
        assert!(says(&pretended, Connection::Related).starts_with("dropped in forward: "));
    }
    assert_eq!(says(&to(8, 0), Connection::New), "delivered to port blue-1");
    assert_eq!(says(&from(8, FAR), Connection::New), "sent out to physical network dc in VLAN 100");

    require!(Need::Root, Need::OpenVswitch);
    let mut rig = Rig::start(&cloud, 0).unwrap();
    rig.numbers = numbers(0);
    let set = rig.install(&cloud).unwrap();
    let changes = dataplane::diff(&set, &rig.installed().unwrap());
    assert!(changes.is_empty(), "{changes:#?}");
    for kind in ERRORS.into_iter().chain([0, 5, 8]) {
        for packet in [to(kind, 1), from(kind, FAR), from(kind, GATEWAY_AT), from(kind, floating(52))] {
            for connection in [Connection::New, Connection::Related, Connection::Invalid] {
                rig.ask(&set, &packet, connection);
            }
        }
    }
}

/// Whether a socket of a machine hears that nobody listens.
fn is_refused(machine: &Machine, target: (Ipv4Addr, u16)) -> Result<bool> {
    let socket = machine.namespace.enter(|| UdpSocket::bind((ANY, 0)))?.context("bind inside a machine")?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    socket.connect(target)?;
    let told = socket.send(b"?").and_then(|_| socket.recv(&mut [0; 16]));
    Ok(told.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused))
}

/// Machines with floating IPs on two hosts and a station: whoever asks a port where nobody listens is told so, in each direction and among neighbours; and
/// a machine learns that a link beyond the gateway carries less than its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kernels_hear_of_errors_through_floating_ips() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let cloud = cloud();
    let dc = outside::datacentre()?;
    let nothing = |host| HostNetwork::empty(host_id(host), endpoint(host));
    let wires = [("dc", &dc)];
    let hosts = [Host::start_wired(nothing(0), &wires).await?, Host::start_wired(nothing(1), &wires).await?];
    let station = outside::gateway(&dc)?;
    let blue_1 = plug(&hosts[0], &cloud, BLUE_1).await?;
    let blue_2 = plug(&hosts[1], &cloud, BLUE_2).await?;
    let blue_3 = plug(&hosts[0], &cloud, BLUE_3).await?;
    for (number, host) in hosts.iter().enumerate() {
        host.program(cloud.host(number)).await?;
    }
    let machines = [("blue-1", &blue_1, 50), ("blue-2", &blue_2, 51), ("blue-3", &blue_3, 52)];
    for (name, machine, last) in machines {
        eventually(&format!("does {name} get out"), || Ok(machine.pings(FAR)? == 3))?;
        for target in [FAR, GATEWAY_AT] {
            eventually(&format!("is {name} told by {target}"), || is_refused(machine, (target, 9999)))?;
        }
        eventually(&format!("is the station told by {name}"), || is_refused(&station, (floating(last), 9000)))?;
    }
    eventually("are neighbours of one host told", || is_refused(&blue_1, (floating(52), 9000)))?;
    eventually("are machines of two hosts told", || is_refused(&blue_1, (floating(51), 9000)))?;
    eventually("and back", || is_refused(&blue_2, (floating(50), 9000)))?;

    let beyond = Machine { namespace: Namespace::new()? };
    beyond_the_gateway(&station, &beyond)?;
    for (name, machine, _) in machines {
        learns_the_mtu(machine, &beyond).with_context(|| name.to_owned())?;
    }
    ensure!(is_told(&blue_1, &dc, FAR)?, "an error about a packet that left is not heard");
    ensure!(!is_told(&blue_1, &dc, cloud.address(BLUE_2))?, "a station ends a connection that it is no part of");
    Ok(())
}

/// Whether a machine that speaks to a port hears of an error that somebody outside has made about that.
fn is_told(machine: &Machine, dc: &Switch, far: Ipv4Addr) -> Result<bool> {
    const PORT: u16 = 9000;
    let socket = machine.namespace.enter(|| UdpSocket::bind((ANY, 0)))?.context("bind inside a machine")?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    socket.connect((far, PORT))?;
    socket.send(b"?")?;
    // Who is spoken to may tell by itself that nobody listens.
    while socket.recv(&mut [0; 16]).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) {}
    let mut quoted = Vec::new();
    let builder = PacketBuilder::ipv4(FLOATING.octets(), far.octets(), 61);
    builder.udp(socket.local_addr()?.port(), PORT).write(&mut quoted, b"?")?;
    let mut frame = Vec::new();
    let ethernet = PacketBuilder::ethernet2(GATEWAY.bytes(), [2, 3, 0, 0, 0, 50]).single_vlan(VlanId::try_new(100)?);
    let builder = ethernet.ipv4(FAR.octets(), FLOATING.octets(), 60);
    builder.icmpv4_raw(3, 3, [0; 4]).write(&mut frame, &quoted)?;
    let octets: String = frame.iter().map(|octet| format!("{octet:02x}")).collect();
    let port = dc.ofport(&format!("host{}", endpoint(0).octets()[3]))?;
    dc.ofctl(&["packet-out", "dc", &format!("in_port=local packet={octets} actions=output:{port}")])?;
    Ok(socket.recv(&mut [0; 16]).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused))
}

/// Puts a machine behind the station, on a link that carries less.
fn beyond_the_gateway(station: &Machine, beyond: &Machine) -> Result<()> {
    station.namespace.add_veth("beyond0", &beyond.namespace, "eth0")?;
    // The other end knows nothing of that, or it would ask for segments that fit.
    station.namespace.set_mtu("beyond0", SMALL.into())?;
    for (namespace, link, address) in
        [(&station.namespace, "beyond0", Ipv4Addr::new(192, 0, 2, 1)), (&beyond.namespace, "eth0", BEYOND)]
    {
        namespace.add_address(link, &format!("{address}/24"))?;
        namespace.up(link)?;
    }
    station.namespace.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
    beyond.namespace.add_route("default", "192.0.2.1")
}

/// A machine sends much to what is beyond: its kernel learns what the way carries, and all of it arrives.
fn learns_the_mtu(machine: &Machine, beyond: &Machine) -> Result<()> {
    let (to, wanted) = (BEYOND.to_string(), format!("mtu {SMALL}"));
    let knows = || -> Result<bool> { Ok(machine.namespace.run(&["ip", "route", "get", &to])?.contains(&wanted)) };
    ensure!(!knows()?, "it knows before");
    let listener = beyond.listen(80)?;
    let address = SocketAddr::from((BEYOND, 80));
    let mut client = machine.namespace.enter(|| TcpStream::connect_timeout(&address, LIMIT))?.context("connect")?;
    let mut server = accept(&listener, LIMIT)?;
    server.set_read_timeout(Some(LIMIT))?;
    client.set_write_timeout(Some(LIMIT))?;
    let sent = vec![42; 100_000];
    let mut received = vec![0; sent.len()];
    let sender = std::thread::spawn(move || client.write_all(&sent).map(|()| (client, sent)));
    server.read_exact(&mut received).context("receive")?;
    let (_open, sent) = sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    ensure!(received == sent, "something else arrived than was sent");
    wait_for("the path to be known", LIMIT, || Ok(knows()?.then_some(())))
}

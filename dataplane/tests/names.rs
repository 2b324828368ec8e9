//! The name service: what the model says of packets to it, that Open vSwitch says the same, and what machines get from it over real packets, asked with
//! BIND's `dig` and the C library's resolver, with dnsmasq as the host's resolver; two tenants with the same addresses among them.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod topology;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use basalt_tests::loopback;
use basalt_tests::process::Daemon;
use basalt_tests::require;
use basalt_tests::skip::Need;
use dataplane::feature::service::{ADDRESS_V4, ADDRESS_V6};
use dataplane::trace::{Connection, Packet, Payload};
use dataplane::{compile, trace};
use hosts::{Host, Machine};
use model::spec::HostNetwork;
use openflow::flow::Field;
use rig::Rig;
use topology::{Cloud, VXLAN, endpoint, host_id};

const LIMIT: Duration = Duration::from_secs(30);
const QUESTION: Payload = Payload::Udp { source: 40_000, target: 53 };
/// `red-2.red.test`, A.
const QUESTION_OCTETS: &[u8] =
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05red-2\x03red\x04test\x00\x00\x01\x00\x01";
/// The host's addresses as a machine writes them.
const V4: &str = "169.254.169.254";
const V6: &str = "fe80::a9fe:a9fe%eth0";

/// Two tenants with the same ranges and addresses: the first has a router and a domain, the second is alone on its network. No group lets anything
/// through, and no subnet names a server.
fn tenants() -> Cloud {
    let mut cloud = Cloud::default();
    let (red, blue) = (cloud.network("red", "10.0.1.0/24"), cloud.network("blue", "10.0.1.0/24"));
    cloud.ipv6(red, "fd00:0:0:1::/64");
    cloud.ipv6(blue, "fd00:0:0:1::/64");
    cloud.router("main", &[red]);
    for subnet in cloud.subnets.iter_mut().chain(&mut cloud.subnets6) {
        subnet.dns.clear();
        if subnet.network == cloud.networks[red].id {
            subnet.announced.domain = "red.test".parse().ok();
        }
    }
    let group = cloud.group("shut");
    cloud.groups[group].rules.clear();
    for (name, network, address) in [("red-1", red, 11), ("red-2", red, 12), ("blue-1", blue, 11)] {
        cloud.port(name, network, 0, address, &[group]);
    }
    cloud
}

#[cfg(test)]
fn says(cloud: &Cloud, packet: &Packet) -> String {
    let path = trace(&compile(&cloud.host(0), &cloud.numbers(0)), packet, Connection::New);
    path.verdicts().iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
}

/// Questions are handed to the agent at the port's own rate though no rule allows them; spoofed ones and those of other hosts are not; Open vSwitch
/// agrees.
#[test]
fn the_model_and_the_switch_agree_on_who_is_answered() {
    require!(Need::Root, Need::OpenVswitch);
    let mut cloud = tenants();
    cloud.port("red-3", 0, 1, 13, &[0]);
    let (host, numbers) = (cloud.host(0), cloud.numbers(0));
    let rig = Rig::start(&cloud, 0).unwrap();
    let set = rig.install(&cloud).unwrap();
    for (from, to) in
        [(0, IpAddr::V4(ADDRESS_V4)), (2, ADDRESS_V4.into()), (0, ADDRESS_V6.into()), (2, ADDRESS_V6.into())]
    {
        let port = &cloud.ports[from];
        let packet = |payload| Packet::from_port(&host, &numbers, port, to, payload).unwrap();
        let asked = packet(QUESTION);
        assert_eq!(says(&cloud, &asked), format!("handed to the agent: DNS question of port {}", port.name));
        let effects: Vec<String> =
            trace(&set, &asked, Connection::New).hops.into_iter().flat_map(|hop| hop.effects).collect();
        assert!(effects.iter().any(|effect| effect == "drops what exceeds 200 packets a second"), "{effects:?}");
        let other = packet(Payload::Udp { source: 40_000, target: 5353 });
        assert_eq!(says(&cloud, &other), format!("dropped in forward: no service of {to} listens there"));
        let spoofed = asked.clone().with(Field::EthSrc, [2, 9, 9, 9, 9, 9]);
        assert!(says(&cloud, &spoofed).starts_with("dropped in classify"));
        let away = asked.clone().out_of_tunnel(VXLAN, (endpoint(1), cloud.networks[0].vni.get()));
        assert!(says(&cloud, &away).starts_with("dropped in service"), "{}", says(&cloud, &away));
        let long = packet(Payload::Tcp { source: 40_000, target: 53 });
        assert_eq!(says(&cloud, &long), says(&cloud, &asked), "over TCP");
        for packet in [asked, long, other, spoofed, away] {
            rig.ask(&set, &packet, Connection::New);
        }
    }
}

/// What `dig` prints for these words: the status, whether records were left out, and the data of the answer, sorted.
#[cfg(test)]
fn dig(machine: &Machine, server: &str, words: &[&str]) -> Result<String> {
    let at = format!("@{server}");
    let fixed = ["dig", &at, "+tries=1", "+time=10", "+noall", "+comments", "+answer", "+ignore"];
    let said = machine.namespace.run(&[&fixed[..], words].concat())?;
    let header = said.lines().find(|line| line.contains("status: ")).with_context(|| said.clone())?;
    let status = header.split("status: ").nth(1).and_then(|rest| rest.split(',').next()).context("status")?;
    let flags = said.lines().find(|line| line.starts_with(";; flags:")).context("flags")?;
    let cut = if flags.split(';').nth(2).is_some_and(|flags| flags.split(' ').any(|flag| flag == "tc")) {
        " cut"
    } else {
        ""
    };
    let records = said.lines().filter(|line| !line.starts_with(';') && !line.is_empty());
    let mut data: Vec<&str> = records.filter_map(|line| line.split_ascii_whitespace().nth(4)).collect();
    data.sort_unstable();
    Ok(format!("{status}{cut} {}", data.join(" ")).trim_end().to_owned())
}

/// The first network's machines in a private switch, each with the addresses that DHCP and router advertisements give it.
#[cfg(test)]
async fn start(cloud: &Cloud) -> Result<(Host, Vec<Machine>)> {
    let host = Host::start(HostNetwork::empty(host_id(0), endpoint(0))).await?;
    let mut guests = Vec::new();
    for port in &cloud.ports {
        guests.push(host.plug(port).await?);
    }
    host.program(cloud.host(0)).await?;
    for guest in &guests {
        // A link that comes up has the address that its MAC address makes, to be used at once.
        guest.namespace.run(&["sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=0"])?;
    }
    for guest in &guests[..2] {
        let (_, servers) = guest.ask_ipv6()?;
        assert_eq!(servers, [ADDRESS_V6], "DHCPv6 says who answers");
        guest.ask_dhcp()?;
    }
    guests[2].restart_link()?;
    guests[2].configure(cloud.address(2), Ipv4Addr::new(10, 0, 1, 1))?;
    // What DHCP's option 121 says to a machine whose gateway is none of our routers.
    guests[2].namespace.run(&["ip", "route", "add", "169.254.169.254/32", "dev", "eth0"])?;
    Ok((host, guests))
}

/// dnsmasq as the host's resolver, with names of its own, at a port of the loopback.
#[cfg(test)]
fn dnsmasq(directory: &std::path::Path) -> Result<(Daemon, SocketAddr)> {
    let free = SocketAddr::from(loopback::address());
    let at = format!("--listen-address={}", free.ip());
    let big = format!("--txt-record=big.example.org,{}", vec!["x".repeat(200); 4].join(","));
    let huge = format!("--txt-record=huge.example.org,{}", vec!["x".repeat(200); 100].join(","));
    let port = format!("--port={}", free.port());
    let mut command = Command::new("dnsmasq");
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"]);
    command.args(["--bind-interfaces", &at, "--pid-file=", "--log-facility=-", &port, &big, &huge]);
    command.args(["--address=/www.example.org/192.0.2.80", "--address=/www.example.org/2001:db8::80"]);
    command.args(["--ptr-record=80.2.0.192.in-addr.arpa,www.example.org", "--local=/example.org/"]);
    let daemon = Daemon::start("dnsmasq", &command, &directory.join("dnsmasq.log"))?;
    Ok((daemon, free))
}

/// Machines know those of their own network by name and address, over both versions of IP, and nobody else's, whatever names and addresses others have;
/// other names are refused until there is a resolver to ask, then asked of that; the C library finds what `dig` finds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_look_names_up() -> Result<()> {
    require!(
        Need::Root,
        Need::OpenVswitch,
        Need::Program("dig"),
        Need::Program("dnsmasq"),
        Need::Program("busybox"),
        Need::Program("ethtool"),
        Need::Program("unshare")
    );
    let cloud = tenants();
    let (host, guests) = start(&cloud).await?;
    let six = cloud.address6(0).context("IPv6")?.to_string();
    for at in [V4, V6] {
        for (guest, words, want) in [
            (0, &["red-2.red.test", "A"][..], "NOERROR 10.0.1.12".to_owned()),
            (0, &["RED-2.Red.Test", "AAAA"], format!("NOERROR {}", cloud.address6(1).context("IPv6")?)),
            (1, &["red-1", "A"], "NOERROR 10.0.1.11".to_owned()),
            (1, &["-x", "10.0.1.11"], "NOERROR red-1.red.test.".to_owned()),
            (1, &["-x", &six], "NOERROR red-1.red.test.".to_owned()),
            (0, &["red-9.red.test", "A"], "NXDOMAIN".to_owned()),
            (0, &["red-2.red.test", "MX"], "NOERROR".to_owned()),
            (0, &["blue-1", "A"], "NXDOMAIN".to_owned()),
            (2, &["blue-1", "A"], "NOERROR 10.0.1.11".to_owned()),
            (2, &["red-1", "A"], "NXDOMAIN".to_owned()),
            (2, &["-x", "10.0.1.11"], "NOERROR blue-1.".to_owned()),
            (2, &["red-1.red.test", "A"], "REFUSED".to_owned()),
            (0, &["www.example.org", "A"], "REFUSED".to_owned()),
            (0, &["version.bind", "CH", "TXT"], "REFUSED".to_owned()),
            (0, &["+edns=1", "+noednsnegotiation", "red-2.red.test"], "BADVERS".to_owned()),
        ] {
            assert_eq!(dig(&guests[guest], at, words)?, want, "{words:?} of guest {guest} at {at}");
        }
    }
    let directory = tempfile::tempdir()?;
    let (_resolver, upstream) = dnsmasq(directory.path())?;
    host.host.ask_names_of(vec![upstream]);
    // Until dnsmasq listens its port refuses, and the host says so.
    basalt_tests::process::wait_for("the host's resolver", LIMIT, || {
        Ok((dig(&guests[0], V4, &["www.example.org", "A"])? != "SERVFAIL").then_some(()))
    })?;
    // The first of its strings.
    let big = format!("NOERROR \"{}\"", "x".repeat(200));
    for (guest, at) in [(0, V4), (0, V6), (2, V4), (2, V6)] {
        let own = cloud.ports[guest].name.clone();
        let own_address = format!("NOERROR {}", cloud.address(guest));
        for (words, want) in [
            (&["www.example.org", "A"][..], "NOERROR 192.0.2.80"),
            (&["www.example.org", "AAAA"], "NOERROR 2001:db8::80"),
            (&["-x", "192.0.2.80"], "NOERROR www.example.org."),
            (&["none.example.org", "A"], "NXDOMAIN"),
            (&["big.example.org", "TXT"], &big),
            (&["+noedns", "big.example.org", "TXT"], "NOERROR cut"),
            (&["+noedns", "+noignore", "big.example.org", "TXT"], &big),
            (&["+tcp", "none.example.org", "A"], "NXDOMAIN"),
            (&["+tcp", "-x", "192.0.2.80"], "NOERROR www.example.org."),
            (&["+tcp", "huge.example.org", "TXT"], &big),
            (&["+tcp", "+keepopen", "+noedns", &own, "A"], &own_address),
            (&["red-1.red.test", "TXT"], if guest == 0 { "NOERROR" } else { "REFUSED" }),
        ] {
            assert_eq!(dig(&guests[guest], at, words)?, want, "{words:?} of guest {guest} at {at}");
        }
    }
    assert_eq!(library(&guests[0], "red-2")?, "10.0.1.12");
    assert_eq!(library(&guests[0], "www.example.org")?, "192.0.2.80");
    assert!(library(&guests[0], "blue-1").is_err());
    stream(&guests[0])?;
    let counts = host.host.names();
    assert!(counts.answered > 20 && counts.relayed > 20 && counts.disbelieved == 0, "{counts:?}");
    flood(&host, &guests)
}

/// The IPv4 address that the C library finds, with what DHCP said in `resolv.conf`.
#[cfg(test)]
fn library(machine: &Machine, name: &str) -> Result<String> {
    let mut conf = tempfile::NamedTempFile::new()?;
    writeln!(conf, "nameserver {V4}\nsearch red.test")?;
    let look = format!("mount --bind {} /etc/resolv.conf && getent ahostsv4 {name}", conf.path().display());
    let said = machine.namespace.run(&["unshare", "--mount", "sh", "-c", &look])?;
    Ok(said.split_ascii_whitespace().next().context("an address")?.to_owned())
}

/// Two questions at once on one connection, as the C library asks them, are answered one after the other; what is no question ends a connection, and
/// others that were left open do not keep new ones from being answered.
#[cfg(test)]
fn stream(machine: &Machine) -> Result<()> {
    let connect = || -> Result<TcpStream> {
        let stream = machine.namespace.enter(|| TcpStream::connect((ADDRESS_V4, 53)))??;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(stream)
    };
    let mut both = connect()?;
    let framed = [&[0, 32][..], QUESTION_OCTETS].concat();
    both.write_all(&[framed.clone(), framed].concat())?;
    for _ in 0..2 {
        let mut length = [0; 2];
        both.read_exact(&mut length)?;
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        both.read_exact(&mut answer)?;
        ensure!(answer[..2] == QUESTION_OCTETS[..2] && answer.ends_with(&[10, 0, 1, 12]), "{answer:?}");
    }
    for octets in [&[0xff, 0xff, 0][..], &[0, 3, 1, 2, 3]] {
        let mut stream = connect()?;
        stream.write_all(octets)?;
        let ended = stream.read(&mut [0; 16]);
        ensure!(!matches!(ended, Ok(1..)), "{ended:?}");
    }
    drop(both);
    assert_eq!(dig(machine, V4, &["+tcp", "red-2.red.test", "A"])?, "NOERROR 10.0.1.12");
    Ok(())
}

/// A machine that asks without pause is answered at its rate, in part, and another is answered meanwhile.
#[cfg(test)]
fn flood(host: &Host, guests: &[Machine]) -> Result<()> {
    const QUESTIONS: usize = 3000;
    let before = host.host.names();
    let socket = guests[0].namespace.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    socket.connect((ADDRESS_V4, 53))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    for _ in 0..QUESTIONS {
        socket.send(QUESTION_OCTETS)?;
    }
    assert_eq!(dig(&guests[2], V4, &["blue-1", "A"])?, "NOERROR 10.0.1.11");
    let (mut answers, mut octets) = (0, [0; 512]);
    while socket.recv(&mut octets).is_ok() {
        answers += 1;
    }
    ensure!((1..QUESTIONS).contains(&answers), "{answers} of {QUESTIONS} answered");
    let asked = host.host.names().questions - before.questions;
    ensure!(asked < u64::try_from(QUESTIONS)?, "{asked} questions reached the agent");
    Ok(())
}

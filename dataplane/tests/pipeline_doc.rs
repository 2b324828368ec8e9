//! docs/pipeline.md is made from the tables themselves and from packets traced through the flows of a small cloud, and is held against them here:
//! it can not be untrue. `UPDATE_GOLDEN=1` writes it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper of a test may panic as the test may")]

#[cfg(test)]
mod topology;

use std::fmt::Write;
use std::path::Path;

use dataplane::compile;
use dataplane::flow_set::FlowSet;
use dataplane::table::{TABLES, Table, TableInfo};
use dataplane::trace::{self, Connection, Packet, Payload, Verdict};
use model::balancer::Transport;
use model::balancer::monitor::{Check, Monitor};
use model::firewall::{Carried, FirewallAction};
use model::mirror::MirrorDirection;
use model::network::ForwardedProtocol;
use model::qos::{Limit, Limits};
use openflow::flow::Field;
use topology::{Cloud, VXLAN, dual_stack, endpoint};

const HEAD: &str = "\
# The pipeline

Made from the tables and flows themselves by `UPDATE_GOLDEN=1 cargo test -p dataplane --test pipeline_doc`, which also holds this page to them.

One bridge, `br-int`, and these tables. A packet enters at table 0 and moves to higher numbers only, but for one that leaves by a floating IP or the
address of its router: with its new source it begins again at table 10, on the network outside. A load balancer looks at what goes to it and comes back
in table 16, before the one goes on to its member and after the other was let in. What crosses the border of a router with a firewall is judged in
table 18, before it leaves or once its destination is the one behind the router. Table 32 is asked on the way, for the second limit of a port that
has two in one direction. What no flow of a table matches is dropped there, for the reason said.
Registers carry what is known so far (`dataplane/src/register.rs`): the network in `metadata`, source and destination port, the identity of the
sender's and the receiver's groups.

The examples are of one host with two networks, blue and green, that have both versions of IP and a router between them: web-1 and open-1 (no port
security) on blue and db-1 on green are here, web-2 and db-2 on another host, cam-1 on a VLAN of a physical network, where web-1 has a floating IP
and the router an address for everybody else, whose gateway this host is, with TCP port 5433 forwarded to port 5432 of db-1.
The firewall of the router lets in TCP 80 and, to db-1, TCP 5432, and TCP 8443 from the addresses of the office, and lets out all but mail.
Load balancer front is 10.0.1.100, whose TCP 8000 is TCP 80 of web-2 and open-1, and TCP 5432 that of db-1, which is checked
and takes no more than 100 connections from a host.
What open-1 sends and is sent is mirrored to db-2, what web-2 is sent to db-1. What cam-1 sends is held to 20,000 kb/s and 4,000 packets a second, and
promised 5,000 kb/s of the physical network.
app-1, of group web, is on the other host, and awaited on this one.
Group web lets in TCP 80 and pings, and TCP 8443 from the addresses of office, which are 10.0.3.192/26; group db TCP 5432 from members of web.
";

/// A packet of which the page shows the way.
struct Example {
    name: &'static str,
    packet: Packet,
    connection: Connection,
}

fn cloud() -> Cloud {
    let mut cloud = dual_stack();
    // The network of db-1 carries less, which its router measures.
    cloud.networks[1].mtu = 1400;
    let lot = cloud.network("lot", "10.0.3.0/24");
    cloud.provide(lot, "dc", Some(100));
    let web = 0;
    let cam_1 = cloud.port("cam-1", lot, 0, 31, &[web]);
    let limit = |rate| Limit::new(rate, None).ok();
    cloud.ports[cam_1].qos.egress = Limits { kbps: limit(20_000), pps: limit(4000) };
    cloud.ports[cam_1].qos.egress_min_kbps = std::num::NonZeroU32::new(5000);
    cloud.lead_out(0, lot);
    cloud.addresses("office", &["10.0.3.192/26", "2001:db8::/32"]);
    let office = cloud.within(0);
    cloud.allow(web, topology::tcp(8443, 8443), office);
    cloud.float(0, port(&cloud, "web-1"), 50);
    cloud.share(0, &[0, 1], 60);
    cloud.forward(0, (ForwardedProtocol::Tcp, 5433), (port(&cloud, "db-1"), 5432));
    let (ingress, egress) = cloud.wall(0);
    let allow = FirewallAction::Allow;
    cloud.judge(ingress, 0, allow, topology::carried_tcp(80), (None, None)).name = "web".to_owned();
    let database = (None, Some("10.0.2.0/24"));
    cloud.judge(ingress, 1, allow, topology::carried_tcp(5432), database).name = "database".to_owned();
    let office = (Some("10.0.3.192/26"), None);
    cloud.judge(ingress, 2, allow, topology::carried_tcp(8443), office).name = "office".to_owned();
    cloud.judge(egress, 0, FirewallAction::Deny, topology::carried_tcp(25), (None, None)).name = "mail".to_owned();
    cloud.judge(egress, 1, allow, Carried::Any, (Some("10.0.0.0/16"), None)).name = "out".to_owned();
    for policy in &mut cloud.firewall_policies {
        policy.name = "border".to_owned();
    }
    let front = cloud.balancer("front", 0, 100, false);
    let [web_2, open_1, db_1] = ["web-2", "open-1", "db-1"].map(|name| port(&cloud, name));
    cloud.listen(front, Transport::Tcp, 8000, &[(web_2, 80, 1), (open_1, 80, 1)]);
    cloud.listen(front, Transport::Tcp, 5432, &[(db_1, 5432, 1)]);
    cloud.balancers[front].listeners[1].monitor = Some(Monitor::new(Check::Tcp));
    cloud.balancers[front].listeners[1].connection_limit = Some(100);
    cloud.mirror(open_1, port(&cloud, "db-2"), MirrorDirection::Both);
    cloud.mirror(web_2, db_1, MirrorDirection::In);
    let app = cloud.port("app-1", 0, 1, 14, &[web]);
    cloud.await_on(app, 0, 1);
    cloud
}

fn port(cloud: &Cloud, name: &str) -> usize {
    cloud.ports.iter().position(|port| port.name == name).unwrap()
}

fn examples(cloud: &Cloud) -> Vec<Example> {
    let (host, numbers) = (cloud.host(0), cloud.numbers(0));
    let at = |name: &str| port(cloud, name);
    let number = |name: &str| numbers.ports[&cloud.ports[at(name)].id];
    let tcp = |target| Payload::Tcp { source: 40_000, target };
    let from = |name: &str, to: std::net::IpAddr, payload| {
        Packet::from_port(&host, &numbers, &cloud.ports[at(name)], to, payload).unwrap()
    };
    let v4 = |name: &str| std::net::IpAddr::V4(cloud.address(at(name)));
    let v6 = |name: &str| std::net::IpAddr::V6(cloud.address6(at(name)).unwrap());
    let (mac, link_local) = (|name: &str| cloud.mac(at(name)), |name: &str| cloud.mac(at(name)).link_local());
    let new = |name, packet| Example { name, packet, connection: Connection::New };
    let outside = |target| {
        let macs = (mac("web-2"), model::Mac::new([2, 3, 0, 0, 0, 50]));
        let addresses = (std::net::Ipv4Addr::new(10, 0, 3, 200), std::net::Ipv4Addr::new(10, 0, 3, 50));
        Packet::ip(openflow::flow::PortNo(2), macs, addresses, tcp(target)).in_vlan(100)
    };
    let (away, plugged) = (cloud.host(1), cloud.numbers(1));
    let sent = Packet::from_port(&away, &plugged, &cloud.ports[at("web-2")], v4("web-1"), tcp(80)).unwrap();
    let way = trace::trace(&compile(&away, &plugged), &sent, Connection::New);
    let [Verdict::Tunnelled { vni, .. }] = way.verdicts()[..] else { panic!("{way}") };
    vec![
        new("web-1 connects to a neighbour on another host", from("web-1", v4("web-2"), tcp(80))),
        new("a connection from another host arrives", sent.out_of_tunnel(VXLAN, (endpoint(1), vni))),
        Example {
            name: "an answer passes without a rule",
            packet: from("db-1", v4("web-1"), Payload::Tcp { source: 5432, target: 40_000 }),
            connection: Connection::Reply,
        },
        new("web-1 connects to db-1 by the router", from("web-1", v4("db-1"), tcp(5432))),
        new("the same over IPv6", from("web-1", v6("db-1"), tcp(5432))),
        new("no rule lets it in", from("web-1", v4("db-1"), tcp(22))),
        new("a port without security is not tracked", from("open-1", v4("web-2"), tcp(80))),
        new(
            "web-1 asks who has an address",
            Packet::arp_request(
                number("web-1"),
                (mac("web-1"), cloud.address(at("web-1"))),
                cloud.address(at("web-2")),
            ),
        ),
        new(
            "and over IPv6",
            Packet::neighbour_solicit(
                number("web-1"),
                (mac("web-1"), link_local("web-1")),
                cloud.address6(at("web-2")).unwrap(),
            ),
        ),
        new("web-1 asks for its address", Packet::dhcp_discover(number("web-1"), mac("web-1"))),
        new("web-1 asks for a router", Packet::router_solicit(number("web-1"), (mac("web-1"), link_local("web-1")))),
        new("web-1 reads its metadata", from("web-1", "169.254.169.254".parse().unwrap(), tcp(80))),
        new(
            "web-1 looks up a name",
            from("web-1", "169.254.169.254".parse().unwrap(), Payload::Udp { source: 40_000, target: 53 }),
        ),
        new(
            "web-1 sends from an address that is not its own",
            from("web-1", v4("web-2"), tcp(80)).with(Field::Ipv4Src, std::net::Ipv4Addr::new(10, 0, 1, 99)),
        ),
        new("web-1 connects to cam-1 by its floating IP", from("web-1", v4("cam-1"), tcp(80))),
        new("somebody on that VLAN connects to the floating IP of web-1", outside(80)),
        new("and to a port that the firewall does not let in", outside(22)),
        new("db-1 sends mail to cam-1, which the firewall does not let out", from("db-1", v4("cam-1"), tcp(25))),
        new("db-1, without a floating IP, connects to cam-1 as its router", from("db-1", v4("cam-1"), tcp(80))),
        answer(cloud),
        new(
            "somebody there connects to a forwarded port of the router, which db-1 does not let in",
            to_router(cloud, tcp(5433)),
        ),
        new("cam-1 speaks to somebody on its VLAN", from("cam-1", "10.0.3.200".parse().unwrap(), tcp(80))),
        new("somebody in the office connects to what only the office may", outside(8443)),
        new("web-1 connects to a load balancer", from("web-1", cloud.balancers[0].address, tcp(8000))),
        new(
            "web-1 connects to one whose member is on another network",
            from("web-1", cloud.balancers[0].address, tcp(5432)),
        ),
        balanced(cloud),
        checked(cloud),
        copied(cloud),
    ]
}

/// From somebody on the VLAN to the address of the router.
fn to_router(cloud: &Cloud, payload: Payload) -> Packet {
    let stranger = (cloud.mac(port(cloud, "web-2")), model::Mac::new([2, 3, 0, 0, 0, 60]));
    let addresses = (std::net::Ipv4Addr::new(10, 0, 3, 200), std::net::Ipv4Addr::new(10, 0, 3, 60));
    Packet::ip(openflow::flow::PortNo(2), stranger, addresses, payload).in_vlan(100)
}

/// What comes back to the address of the router.
fn answer(cloud: &Cloud) -> Example {
    Example {
        name: "somebody on that VLAN answers db-1",
        packet: Packet::ip(
            openflow::flow::PortNo(2),
            (cloud.mac(port(cloud, "web-2")), model::Mac::new([2, 3, 0, 0, 0, 60])),
            (std::net::Ipv4Addr::new(10, 0, 3, 200), std::net::Ipv4Addr::new(10, 0, 3, 60)),
            Payload::Tcp { source: 80, target: 40_000 },
        )
        .in_vlan(100)
        .with(Field::CtNwSrc, cloud.address(port(cloud, "db-1"))),
        connection: Connection::Reply,
    }
}

/// What a member of a load balancer says to its host, which asked.
fn checked(cloud: &Cloud) -> Example {
    let (host, numbers) = (cloud.host(0), cloud.numbers(0));
    let (member, front) = (&cloud.ports[port(cloud, "db-1")], cloud.balancers[0].address);
    let payload = Payload::Tcp { source: 5432, target: 64_600 };
    let packet = Packet::from_port(&host, &numbers, member, front, payload).unwrap();
    Example { name: "db-1 answers a health check", packet, connection: Connection::New }
}

/// A copy, as it comes from another host.
fn copied(cloud: &Cloud) -> Example {
    let (host, numbers) = (cloud.host(0), cloud.numbers(0));
    let (sender, receiver) = (&cloud.ports[port(cloud, "open-1")], cloud.address(port(cloud, "web-2")));
    let payload = Payload::Tcp { source: 40_000, target: 80 };
    let sent = Packet::from_port(&host, &numbers, sender, receiver, payload).unwrap();
    let vni = cloud.mirror_vni(port(cloud, "db-1"));
    let packet = sent.out_of_tunnel(VXLAN, (topology::endpoint(1), vni));
    Example { name: "what web-2 was sent arrives for db-1, as a copy", packet, connection: Connection::New }
}

/// A packet to a port that is awaited here.
fn awaited(cloud: &Cloud) -> Example {
    let (host, numbers) = (cloud.host(0), cloud.numbers(0));
    let (sender, to) = (&cloud.ports[port(cloud, "web-1")], cloud.address(port(cloud, "app-1")));
    let packet = Packet::from_port(&host, &numbers, sender, to, Payload::Tcp { source: 40_000, target: 80 }).unwrap();
    Example { name: "web-1 connects to app-1, which is awaited here", packet, connection: Connection::New }
}

/// The first frame of a port that is awaited here.
fn arriving(cloud: &Cloud) -> Example {
    let (away, plugged, here) = (cloud.host(1), cloud.numbers(1), cloud.numbers(0));
    let port_of = |name: &str| &cloud.ports[port(cloud, name)];
    let (app, to) = (port_of("app-1"), cloud.address(port(cloud, "web-1")));
    let packet = Packet::from_port(&away, &plugged, app, to, Payload::Tcp { source: 80, target: 40_000 }).unwrap();
    let packet = packet.with(Field::InPort, here.of(app).unwrap().0);
    Example { name: "the machine of app-1 has come, and speaks", packet, connection: Connection::New }
}

/// What a member of a load balancer says to a client.
fn balanced(cloud: &Cloud) -> Example {
    let (host, numbers) = (cloud.host(0), cloud.numbers(0));
    let (member, client) = (&cloud.ports[port(cloud, "db-1")], cloud.address(port(cloud, "web-1")));
    let payload = Payload::Tcp { source: 5432, target: 40_000 };
    let answer = Packet::from_port(&host, &numbers, member, client, payload).unwrap();
    let std::net::IpAddr::V4(began) = cloud.balancers[0].address else { panic!("IPv4 only") };
    let packet = answer.with(Field::CtNwDst, began).with(Field::CtTpDst, 5432_u16);
    Example { name: "and the member answers", packet, connection: Connection::Reply }
}

/// One table: what it is for, one of its flows, and which examples cross it.
fn section(page: &mut String, info: &TableInfo, set: &FlowSet, ways: &[(usize, &'static str, trace::Path)]) {
    writeln!(page, "\n### {} {}\n", info.number, info.name).unwrap();
    writeln!(page, "Feature {}: {}. Without a matching flow: {}.\n", info.feature, info.doc, info.miss).unwrap();
    let crossing = ways.iter().filter(|(.., way)| way.hops.iter().any(|hop| hop.table == info.number));
    let crossing: Vec<&(usize, &str, trace::Path)> = crossing.collect();
    let mut met = crossing.iter().flat_map(|(.., way)| &way.hops).filter(|hop| hop.table == info.number);
    // The flow for whatever is left says least.
    let says_something = |flow: &String| !flow.contains("priority=0 ");
    let told = met.find_map(|hop| hop.flow.clone().filter(says_something));
    match told.or_else(|| set.table(info.number).next().map(|entry| entry.flow.to_string())) {
        Some(flow) => writeln!(page, "    {flow}\n").unwrap(),
        None => {
            assert_eq!(info.table, Table::Open);
            writeln!(page, "No flow is put here: the switch learns its own, by the flows of table 16.\n").unwrap();
        }
    }
    assert!(info.table == Table::Canary || !crossing.is_empty(), "no example crosses {}", info.name);
    let numbers: Vec<String> = crossing.iter().map(|(number, ..)| number.to_string()).collect();
    if !numbers.is_empty() {
        writeln!(page, "Crossed by examples {}.", numbers.join(", ")).unwrap();
    }
}

#[test]
fn the_page_is_what_the_tables_say() {
    let cloud = cloud();
    let mut numbers = cloud.numbers(0);
    numbers.queues.insert(cloud.ports[port(&cloud, "cam-1")].id, 1);
    let set = compile(&cloud.host(0), &numbers);
    let mut ways = Vec::new();
    let examples = examples(&cloud).into_iter().chain([awaited(&cloud), arriving(&cloud)]);
    for (index, example) in examples.enumerate() {
        ways.push((index + 1, example.name, trace::trace(&set, &example.packet, example.connection)));
    }
    let mut page = HEAD.to_owned();
    page.push_str("\n## Tables\n");
    for info in TABLES {
        section(&mut page, info, &set, &ways);
    }
    page.push_str("\n## Examples\n");
    for (number, name, way) in &ways {
        write!(page, "\n### {number}. {name}\n\n").unwrap();
        for line in way.to_string().lines() {
            writeln!(page, "    {line}").unwrap();
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/pipeline.md");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &page).unwrap();
        return;
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/pipeline.md differs from the tables; set UPDATE_GOLDEN=1, run again and review the diff"
    );
}

//! IPv6 all the way: what the model says of neighbour discovery and of routed packets, what the servers answer, and real packets between
//! machines on two hosts.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod topology;

use std::net::{IpAddr, Ipv6Addr};

use anyhow::Result;
use basalt_tests::require;
use basalt_tests::skip::Need;
use dataplane::dhcp6::{self, Dhcp6Error, server_id};
use dataplane::respond::answer;
use dataplane::trace::{Connection, Packet, Payload, Verdict};
use dataplane::{compile, trace};
use dhcproto::v6::{DhcpOption, DhcpOptions, IAAddr, IANA, Message, MessageType, NtpSuboption, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use hosts::Host;
use model::Mac;
use model::network::FixedIp;
use model::spec::HostNetwork;
use openflow::flow::{Field, PortNo};
use proptest::prelude::{any, proptest};
use topology::{dual_stack, endpoint, host_id};

const WEB_1: usize = 0;
const WEB_2: usize = 1;
const DB_1: usize = 2;
const DB_2: usize = 3;
const OPEN_1: usize = 4;
const NUMBER: PortNo = PortNo(10);
const SPOOFED: &str =
    "dropped in classify: the sender may not use this source address, or its port or network is not known here";

#[cfg(test)]
fn says(packet: &Packet) -> String {
    let cloud = dual_stack();
    let set = compile(&cloud.host(0), &cloud.numbers(0));
    let verdicts = trace(&set, packet, Connection::New).verdicts();
    verdicts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap_or(Ipv6Addr::UNSPECIFIED)
}

/// Neighbours are answered for, false claims and routers in guests dropped, and what is unknown is asked on the network.
#[test]
fn neighbour_discovery_in_the_users_words() {
    let cloud = dual_stack();
    let (mac, own) = (cloud.mac(WEB_1), cloud.mac(WEB_1).link_local());
    let solicit = |target: Ipv6Addr| Packet::neighbour_solicit(NUMBER, (mac, own), target);
    let asks = "handed to the agent: neighbour solicitation of port web-1";
    assert_eq!(says(&solicit(cloud.address6(WEB_2).unwrap())), asks);
    assert_eq!(says(&solicit(cloud.mac(WEB_2).link_local())), asks);
    assert_eq!(says(&solicit(v6("fd00:0:0:1::1"))), asks);
    let foot = cloud.routers[0].interfaces.iter().find(|foot| foot.address == IpAddr::V6(v6("fd00:0:0:1::1"))).unwrap();
    assert_eq!(says(&solicit(foot.mac.link_local())), asks);
    let unknown = says(&solicit(v6("fd00:0:0:1::99")));
    assert!(
        unknown.contains("delivered to port open-1") && unknown.contains("at 172.20.0.2 with VNI 5001"),
        "{unknown}"
    );

    let probe = Packet::neighbour_solicit(NUMBER, (mac, Ipv6Addr::UNSPECIFIED), own);
    assert_eq!(says(&probe), "dropped in guard: it asks for its own address, which nobody else can have");
    let lie = solicit(v6("fd00:0:0:1::1")).with(Field::NdSll, cloud.mac(WEB_2).bytes());
    assert_eq!(says(&lie), "dropped in guard: it solicits with a MAC address that is not its own");
    let claim = Packet::neighbour_advert(NUMBER, (mac, own), v6("fd00:0:0:1::1"));
    assert_eq!(says(&claim), "dropped in guard: it advertises an address that is not its own");
    let honest = says(&Packet::neighbour_advert(NUMBER, (mac, own), cloud.address6(WEB_1).unwrap()));
    assert!(honest.contains("delivered to port open-1"), "{honest}");
    let advert = Packet::router_advert(NUMBER, (mac, own));
    assert_eq!(says(&advert), "dropped in guard: guests may not advertise routers");
    let stolen = Packet::neighbour_solicit(NUMBER, (mac, cloud.mac(WEB_2).link_local()), v6("fd00:0:0:1::1"));
    assert_eq!(says(&stolen), SPOOFED);
    let solicit = Packet::router_solicit(NUMBER, (mac, Ipv6Addr::UNSPECIFIED));
    assert_eq!(says(&solicit), "handed to the agent: router solicitation of port web-1");
    assert_eq!(says(&Packet::dhcp6_solicit(NUMBER, mac)), "handed to the agent: DHCPv6 request of port web-1");
}

/// Rules, routes and anti-spoofing hold for IPv6 as for IPv4, and link-local traffic stays on its network.
#[test]
fn rules_and_routes_hold_for_ipv6() {
    let cloud = dual_stack();
    let (network, numbers) = (cloud.host(0), cloud.numbers(0));
    let packet = |from: usize, to: Ipv6Addr, payload| {
        Packet::from_port(&network, &numbers, &cloud.ports[from], to, payload).unwrap()
    };
    let at = |port: usize| cloud.address6(port).unwrap();
    let (sql, ping) = (Payload::Tcp { source: 40_000, target: 5432 }, Payload::Icmp { kind: 128, code: 0 });
    assert_eq!(says(&packet(WEB_1, at(DB_1), sql)), "delivered to port db-1");
    assert!(says(&packet(OPEN_1, at(DB_1), sql)).starts_with("dropped in ingress: "));
    assert_eq!(says(&packet(OPEN_1, at(WEB_1), ping)), "delivered to port web-1");
    assert_eq!(says(&packet(WEB_1, at(DB_2), sql)), format!("sent to host {} at 172.20.0.2 with VNI 5002", host_id(1)));
    assert_eq!(says(&packet(WEB_1, v6("fd00:0:0:2::1"), ping)), "answered by router main");
    assert_eq!(says(&packet(WEB_1, v6("2001:db8::1"), ping)), {
        "dropped in route: router main: it has no route to this destination"
    });
    assert_eq!(says(&packet(WEB_1, at(DB_1), sql).with(Field::IpTtl, 1)), "dropped in route: its time to live ran out");
    assert_eq!(says(&packet(WEB_1, at(DB_1), sql).with(Field::Ipv6Src, at(WEB_2))), SPOOFED);
    let local = packet(WEB_1, at(DB_1), sql).with(Field::Ipv6Src, cloud.mac(WEB_1).link_local());
    assert_eq!(says(&local), "dropped in route: link-local addresses are not routed");
    let server = packet(WEB_1, at(OPEN_1), Payload::Udp { source: 547, target: 546 });
    assert_eq!(says(&server), "dropped in egress: guests may not serve DHCP (port web-1: members of web)");

    // A member of web on another host, by its address and by the one of the link.
    let set = compile(&network, &numbers);
    let mac = cloud.mac(DB_1);
    let from_tunnel = |source: Ipv6Addr, vni: u32| {
        let packet = Packet::ip(PortNo(1), (cloud.mac(WEB_2), mac), (source, at(DB_1)), sql);
        trace(&set, &packet.out_of_tunnel(PortNo(1), (endpoint(1), vni)), Connection::New).reaches(3)
    };
    assert!(from_tunnel(at(WEB_2), 5002));
    assert!(!from_tunnel(at(DB_2), 5002));
    let ours = cloud.mac(WEB_2).link_local();
    let arrival =
        Packet::ip(PortNo(1), (cloud.mac(WEB_2), cloud.mac(WEB_1)), (ours, cloud.mac(WEB_1).link_local()), ping);
    let path = trace(&set, &arrival.out_of_tunnel(PortNo(1), (endpoint(1), 5001)), Connection::New);
    assert!(matches!(path.verdicts()[..], [Verdict::Delivered { port: 1, .. }]), "{path}");
}

/// A message of a client as it comes in from port web-1.
#[cfg(test)]
fn frame(message: &Message) -> Vec<u8> {
    let (mut payload, mut frame) = (Vec::new(), Vec::new());
    message.encode(&mut Encoder::new(&mut payload)).unwrap();
    let mac = dual_stack().mac(WEB_1);
    let builder = PacketBuilder::ethernet2(mac.bytes(), [0x33, 0x33, 0, 1, 0, 2])
        .ipv6(mac.link_local().octets(), v6("ff02::1:2").octets(), 1)
        .udp(546, 547);
    builder.write(&mut frame, &payload).unwrap();
    frame
}

#[cfg(test)]
fn ask(host: &HostNetwork, message: &Message) -> Option<Message> {
    let reply = answer(host, 1, &frame(message)).unwrap()?;
    let packet = SlicedPacket::from_ethernet(&reply).unwrap();
    let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Udp(udp))) = (&packet.net, &packet.transport) else {
        panic!("{packet:?}")
    };
    assert_eq!((udp.source_port(), udp.destination_port()), (547, 546));
    assert_eq!(ip.header().destination_addr(), dual_stack().mac(WEB_1).link_local());
    let header = udp.to_header();
    assert_eq!(header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload()).unwrap(), udp.checksum());
    Some(Message::decode(&mut Decoder::new(udp.payload())).unwrap())
}

#[cfg(test)]
fn client(kind: MessageType, options: &[DhcpOption]) -> Message {
    let mut message = Message::new_with_id(kind, [1, 2, 3]);
    message.opts_mut().insert(DhcpOption::ClientId(vec![0, 3, 0, 1, 9, 9]));
    for option in options {
        message.opts_mut().insert(option.clone());
    }
    message
}

#[cfg(test)]
fn association(addresses: &[Ipv6Addr]) -> DhcpOption {
    let entry =
        |addr| DhcpOption::IAAddr(IAAddr { addr, preferred_life: 0, valid_life: 0, opts: DhcpOptions::default() });
    DhcpOption::IANA(IANA { id: 7, t1: 0, t2: 0, opts: addresses.iter().map(|address| entry(*address)).collect() })
}

/// The addresses of a reply with how long they are good for.
#[cfg(test)]
fn granted(reply: &Message) -> Vec<(Ipv6Addr, u32)> {
    let Some(DhcpOption::IANA(association)) = reply.opts().get(OptionCode::IANA) else { return Vec::new() };
    assert_eq!(association.id, 7);
    let entries = association.opts.iter().filter_map(|option| match option {
        DhcpOption::IAAddr(entry) => Some((entry.addr, entry.valid_life)),
        _ => None,
    });
    entries.collect()
}

/// A neighbour solicitation of port web-1 for `target`.
#[cfg(test)]
fn solicitation(target: Ipv6Addr) -> Vec<u8> {
    let (mac, mut frame) = (dual_stack().mac(WEB_1), Vec::new());
    let payload = [&target.octets()[..], &[1, 1], &mac.bytes()].concat();
    let builder = PacketBuilder::ethernet2(mac.bytes(), [0x33, 0x33, 0xff, 0, 0, 1])
        .ipv6(mac.link_local().octets(), v6("ff02::1:ff00:1").octets(), 255)
        .icmpv6_raw(135, 0, [0; 4]);
    builder.write(&mut frame, &payload).unwrap();
    frame
}

/// Ports and routers of the asker's own network and the host's services are answered for, as RFC 4861 has it, and nobody else is.
#[test]
fn solicitations_are_answered_for_the_askers_network() {
    let cloud = dual_stack();
    let host = cloud.host(0);
    let foot = cloud.routers[0].interfaces.iter().find(|foot| foot.address == IpAddr::V6(v6("fd00:0:0:1::1"))).unwrap();
    let service = Mac::new([0x02, 0xba, 0x5a, 0, 0, 0x80]);
    for (target, mac, flags) in [
        (cloud.address6(WEB_2).unwrap(), cloud.mac(WEB_2), 0x60),
        (cloud.mac(WEB_2).link_local(), cloud.mac(WEB_2), 0x60),
        (v6("fd00:0:0:1::1"), foot.mac, 0xe0),
        (foot.mac.link_local(), foot.mac, 0xe0),
        (v6("fe80::a9fe:a9fe"), service, 0x60),
    ] {
        let reply = answer(&host, 1, &solicitation(target)).unwrap().unwrap();
        let packet = SlicedPacket::from_ethernet(&reply).unwrap();
        let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) = (&packet.net, &packet.transport) else {
            panic!("{packet:?}")
        };
        assert_eq!((ip.header().source_addr(), ip.header().hop_limit()), (target, 255));
        assert_eq!(ip.header().destination_addr(), cloud.mac(WEB_1).link_local());
        assert_eq!((icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8()), (136, 0, [flags, 0, 0, 0]), "{target}");
        assert_eq!(icmp.payload(), [&target.octets()[..], &[2, 1], &mac.bytes()].concat(), "{target}");
        assert_eq!((&reply[..6], &reply[6..12]), (&cloud.mac(WEB_1).bytes()[..], &mac.bytes()[..]));
    }
    for target in [cloud.address6(DB_1).unwrap(), v6("fd00:0:0:1::99")] {
        assert!(answer(&host, 1, &solicitation(target)).is_err(), "{target}");
    }
    let mut whole = solicitation(v6("fd00:0:0:1::1"));
    // A machine behind a bridge in the guest asks: it is the one that is answered.
    let behind = [2, 9, 9, 9, 9, 9];
    whole[6..12].copy_from_slice(&behind);
    assert_eq!(answer(&host, 1, &whole).unwrap().unwrap()[..6], behind);
    for length in 0..whole.len() - 8 {
        assert!(answer(&host, 1, &whole[..length]).is_err(), "{length} octets of a solicitation");
    }
}

/// The whole exchange of DHCPv6, renewal, rapid commit, addresses that are wrong, and what is to be ignored.
#[test]
fn dhcpv6_gives_the_port_its_own_addresses_only() {
    let host = dual_stack().host(0);
    let own = v6("fd00:0:0:1::b");
    let ours = DhcpOption::ServerId(server_id());
    let offer = ask(&host, &client(MessageType::Solicit, &[association(&[])])).unwrap();
    assert_eq!((offer.msg_type(), granted(&offer)), (MessageType::Advertise, vec![(own, 86_400)]));
    assert_eq!(offer.opts().get(OptionCode::ServerId), Some(&ours));
    assert_eq!(offer.opts().get(OptionCode::ClientId), Some(&DhcpOption::ClientId(vec![0, 3, 0, 1, 9, 9])));
    let servers = DhcpOption::DomainNameServers(vec![v6("2620:fe::9")]);
    assert_eq!(offer.opts().get(OptionCode::DomainNameServers), Some(&servers));
    let reply = ask(&host, &client(MessageType::Request, &[ours.clone(), association(&[own])])).unwrap();
    assert_eq!((reply.msg_type(), granted(&reply)), (MessageType::Reply, vec![(own, 86_400)]));
    let rapid = ask(&host, &client(MessageType::Solicit, &[DhcpOption::RapidCommit, association(&[])])).unwrap();
    assert_eq!((rapid.msg_type(), granted(&rapid)), (MessageType::Reply, vec![(own, 86_400)]));
    let wrong = v6("fd00:0:0:1::77");
    let renewed = ask(&host, &client(MessageType::Renew, &[ours.clone(), association(&[wrong])])).unwrap();
    assert_eq!(granted(&renewed), [(own, 86_400), (wrong, 0)], "a wrong address is taken back");
    let confirm = |address| {
        let reply = ask(&host, &client(MessageType::Confirm, &[association(&[address])])).unwrap();
        let Some(DhcpOption::StatusCode(code)) = reply.opts().get(OptionCode::StatusCode) else { panic!("{reply:?}") };
        u16::from(code.status)
    };
    assert_eq!((confirm(own), confirm(wrong)), (0, 4));
    let foreign = DhcpOption::ServerId(vec![0, 3, 0, 1, 1, 1]);
    for silent in [
        client(MessageType::Request, &[foreign, association(&[own])]),
        client(MessageType::Request, &[association(&[own])]),
        client(MessageType::Solicit, &[ours.clone(), association(&[])]),
        client(MessageType::Confirm, &[]),
    ] {
        assert!(ask(&host, &silent).is_none(), "{silent:?}");
    }
    let mut announcing = dual_stack();
    announcing.subnets6[0].announced.domain = Some("cloud.test".parse().unwrap());
    announcing.subnets6[0].announced.search = vec!["cloud.test".parse().unwrap(), "b.test".parse().unwrap()];
    announcing.subnets6[0].announced.ntp = vec![v6("2001:db8::123").into()];
    let facts = ask(&announcing.host(0), &client(MessageType::InformationRequest, &[])).unwrap();
    let Some(DhcpOption::DomainSearchList(names)) = facts.opts().get(OptionCode::DomainSearchList) else {
        panic!("{facts:?}")
    };
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["cloud.test.", "b.test."]);
    let time = DhcpOption::NtpServer(vec![NtpSuboption::ServerAddress(v6("2001:db8::123"))]);
    assert_eq!(facts.opts().get(OptionCode::NtpServer), Some(&time));
    let facts = ask(&host, &client(MessageType::InformationRequest, &[])).unwrap();
    assert_eq!((granted(&facts).len(), facts.opts().get(OptionCode::DomainNameServers)), (0, Some(&servers)));

    let mut cloud = dual_stack();
    cloud.subnets6[0].dhcp = false;
    let none = ask(&cloud.host(0), &client(MessageType::Solicit, &[association(&[])])).unwrap();
    assert_eq!(granted(&none), []);
    let error = dhcp6::answer(&host, 99, &frame(&client(MessageType::Solicit, &[]))).unwrap_err();
    assert_eq!(error, Dhcp6Error::NoPort { key: 99 });
}

/// The options of an advertisement: type and value.
#[cfg(test)]
fn advert(host: &HostNetwork) -> ([u8; 8], Vec<(u8, Vec<u8>)>) {
    let mac = dual_stack().mac(WEB_1);
    let builder = PacketBuilder::ethernet2(mac.bytes(), [0x33, 0x33, 0, 0, 0, 2])
        .ipv6(mac.link_local().octets(), v6("ff02::2").octets(), 255)
        .icmpv6_raw(133, 0, [0; 4]);
    let mut frame = Vec::new();
    builder.write(&mut frame, &[]).unwrap();
    let reply = answer(host, 1, &frame).unwrap().unwrap();
    let packet = SlicedPacket::from_ethernet(&reply).unwrap();
    let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) = (&packet.net, &packet.transport) else {
        panic!("{packet:?}")
    };
    assert_eq!((ip.header().hop_limit(), icmp.type_u8()), (255, 134));
    assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
    let (head, mut rest) = icmp.slice().split_first_chunk::<16>().unwrap();
    let mut options = Vec::new();
    while let [kind, units, ..] = rest {
        let (option, more) = rest.split_at(usize::from(*units) * 8);
        options.push((*kind, option[2..].to_vec()));
        rest = more;
    }
    (head[..8].try_into().unwrap(), options)
}

/// A port is told of its router, prefix, MTU and name servers; of no router where there is none; to configure itself only where that gives its
/// own address.
#[test]
fn a_router_is_advertised_to_the_port_that_asks() {
    let mut cloud = dual_stack();
    let (head, options) = advert(&cloud.host(0));
    assert_eq!(head[4..], [64, 0xc0, 0xff, 0xff], "hop limit, managed and other, lifetime");
    let foot = cloud.routers[0].interfaces[2].mac;
    assert_eq!(options[0], (1, foot.bytes().to_vec()));
    assert_eq!(options[1], (5, vec![0, 0, 0, 0, 0x05, 0xaa]), "MTU 1450");
    assert_eq!((options[2].0, &options[2].1[..2]), (3, &[64, 0x80][..]), "on link, not for autoconfiguration");
    assert_eq!(options[2].1[14..], v6("fd00:0:0:1::").octets());
    assert_eq!((options[3].0, &options[3].1[6..]), (25, &v6("2620:fe::9").octets()[..]));

    let mac = cloud.mac(WEB_1);
    cloud.ports[WEB_1].addresses[1].address = mac.autoconfigured(v6("fd00:0:0:1::")).into();
    cloud.routers.clear();
    cloud.subnets6[0].dhcp = false;
    cloud.subnets6[0].announced.search = vec!["a.test".parse().unwrap()];
    let (head, options) = advert(&cloud.host(0));
    assert_eq!(head[4..], [64, 0x40, 0, 0], "no router, nothing managed");
    assert_eq!(options[2].1[..2], [64, 0xc0]);
    assert_eq!((options[4].0, &options[4].1[6..]), (31, &b"\x01a\x04test\0"[..]));
}

proptest! {
    /// Whatever a guest sends, somebody answers or says why not; nothing panics.
    #[test]
    fn any_octets_are_survived(
        changes in proptest::collection::vec((0..300_usize, any::<u8>()), 0..12),
        cut in 0..300_usize,
        octets in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let host = dual_stack().host(0);
        let _either = answer(&host, 1, &octets);
        let asked = association(&[v6("fd00:0:0:1::b"), v6("::7")]);
        let mut damaged = frame(&client(MessageType::Renew, &[DhcpOption::ServerId(server_id()), asked]));
        let length = damaged.len();
        for (at, value) in changes {
            damaged[at % length] = value;
        }
        damaged.truncate(length - cut % length);
        let _either = answer(&host, 1, &damaged);
    }
}

/// Machines on two hosts take their IPv6 addresses by router advertisement and DHCPv6 and speak as the rules say: inside a subnet and routed, on
/// one host and across; a foreign source goes nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_speak_ipv6_on_two_hosts() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let cloud = dual_stack();
    let start = |host| Host::start(HostNetwork::empty(host_id(host), endpoint(host)));
    let hosts = [start(0).await?, start(1).await?];
    hosts[0].link(&hosts[1])?;
    let mut machines = Vec::new();
    for port in &cloud.ports {
        machines.push(hosts[usize::from(port.is_on(host_id(1)))].plug(port).await?);
    }
    for (number, host) in hosts.iter().enumerate() {
        host.program(cloud.host(number)).await?;
    }
    let at = |port: usize| cloud.address6(port).unwrap_or(Ipv6Addr::UNSPECIFIED);
    for (index, machine) in machines.iter().enumerate() {
        let (addresses, servers) = machine.ask_ipv6()?;
        assert_eq!((addresses, servers), (vec![at(index)], vec![v6("2620:fe::9")]), "{}", cloud.ports[index].name);
    }
    assert_eq!(machines[DB_1].pings(at(WEB_1))?, 3, "routed, on one host");
    assert_eq!(machines[DB_1].pings(at(WEB_2))?, 3, "routed, across hosts");
    assert_eq!(machines[WEB_1].pings(at(WEB_2))?, 3, "inside a subnet, across hosts");
    assert_eq!(machines[OPEN_1].pings(at(WEB_1))?, 3, "inside a subnet, on one host");
    assert_eq!(machines[WEB_1].pings(v6("fd00:0:0:2::1"))?, 3, "the router answers");
    assert!(!machines[WEB_1].leaks(at(DB_2))?, "db lets no ping in");
    let (postgres, other) = (machines[DB_2].listen(5432)?, machines[DB_2].listen(5433)?);
    assert!(machines[WEB_1].reaches(at(DB_2), &postgres)?, "members of web may use tcp 5432, across hosts");
    assert!(!machines[WEB_1].intrudes(at(DB_2), &other)?, "and no other port");
    assert!(!machines[DB_1].intrudes(at(DB_2), &postgres)?, "db is no member of web");
    let neighbours = machines[WEB_1].namespace.run(&["ip", "-6", "neighbour", "show", "dev", "eth0"])?;
    let web_2 = format!("{} lladdr {}", at(WEB_2), cloud.mac(WEB_2));
    let routed = neighbours.lines().any(|line| line.contains(" router "));
    assert!(neighbours.contains(&web_2) || routed, "answered in flows: {neighbours}");

    let (asked, answered) = machines[WEB_1].flood_dhcp6()?;
    assert!((1..=asked / 4).contains(&answered), "{answered} of {asked} questions answered: a port has a rate");
    machines[WEB_2].ask_ipv6()?;

    machines[WEB_1].namespace.add_address("eth0", "fd00:0:0:1::99/128")?;
    let words = ["ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-I", "fd00:0:0:1::99", &at(WEB_2).to_string()];
    assert!(machines[WEB_1].namespace.run(&words).is_err(), "a source that the port does not own");
    Ok(())
}

/// Several addresses of both versions on one port: all answered for, all granted, all usable.
#[test]
fn a_port_may_have_several_addresses() {
    let mut cloud = dual_stack();
    let (subnet, more) = (cloud.subnets6[0].id, v6("fd00:0:0:1::1:1"));
    cloud.ports[WEB_2].addresses.push(FixedIp { subnet, address: more.into() });
    cloud.ports[WEB_1].addresses.push(FixedIp { subnet, address: v6("fd00:0:0:1::2:2").into() });
    let (host, numbers) = (cloud.host(0), cloud.numbers(0));
    let offer = ask(&host, &client(MessageType::Solicit, &[association(&[])])).unwrap();
    assert_eq!(granted(&offer).len(), 2);
    let set = compile(&host, &numbers);
    let solicit = Packet::neighbour_solicit(NUMBER, (cloud.mac(WEB_1), cloud.mac(WEB_1).link_local()), more);
    assert_eq!(
        trace(&set, &solicit, Connection::New).verdicts()[0].to_string(),
        "handed to the agent: neighbour solicitation of port web-1"
    );
    let payload = Payload::Tcp { source: 1, target: 80 };
    let packet = Packet::from_port(&host, &numbers, &cloud.ports[WEB_1], more, payload).unwrap();
    let second = packet.with(Field::Ipv6Src, v6("fd00:0:0:1::2:2"));
    assert!(matches!(trace(&set, &second, Connection::New).verdicts()[..], [Verdict::Tunnelled { vni: 5001, .. }]));
    assert_ne!(cloud.mac(WEB_1), Mac::BROADCAST);
}

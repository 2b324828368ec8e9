//! What machines are told of names: their neighbours and nobody else, in good form; what is asked elsewhere; and that no octets break anything.

use std::net::Ipv4Addr;

use etherparse::PacketBuilder;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::{Name, RData, RecordType};
use ipnet::IpNet;
use model::network::{Announced, Binding, FixedIp, Network, Subnet};
use model::qos::Qos;
use model::{HostId, Mac, MachineId, NetworkId, PortId, SubnetId, Vni};
use proptest::prelude::{any, prop_assert, proptest};
use uuid::Uuid;

use super::envelope::Envelope;
use super::*;

const ROOM: usize = 1422;

fn id(kind: u128, number: u32) -> Uuid {
    Uuid::from_u128(kind << 64 | u128::from(number))
}

/// Adds a network with its number in its addresses, under a domain.
fn add_network(host: &mut HostNetwork, number: u8, domain: Option<&str>) {
    let network = NetworkId::from_uuid(id(1, number.into()));
    let vni = Vni::try_from(u32::from(number) + 1).unwrap();
    let name = format!("net-{number}");
    host.networks
        .insert(network, Network { id: network, name, vni, mtu: 1450, provider: None, routed_prefixes: Vec::new() });
    let announced = Announced { domain: domain.map(|name| name.parse().unwrap()), ..Announced::default() };
    for (kind, cidr) in [(2, format!("10.0.{number}.0/24")), (3, format!("fd00:0:0:{number}::/64"))] {
        let (id, cidr) = (SubnetId::from_uuid(id(kind, number.into())), cidr.parse::<IpNet>().unwrap());
        let (name, announced) = (String::new(), announced.clone());
        let subnet = Subnet { id, name, network, cidr, gateway: None, dhcp: true, dns: vec![], announced };
        host.subnets.insert(id, subnet);
    }
}

fn add_machine(host: &mut HostNetwork, key: u32, network: u8, name: &str) {
    let [.., last] = key.to_be_bytes();
    let fixed = |kind, address| FixedIp { subnet: SubnetId::from_uuid(id(kind, network.into())), address };
    let port = Port {
        id: PortId::from_uuid(id(4, key)),
        name: format!("port-{key}"),
        network: NetworkId::from_uuid(id(1, network.into())),
        key,
        mac: Mac::new([2, 0, 0, 0, 0, last]),
        addresses: vec![
            fixed(2, Ipv4Addr::new(10, 0, network, last).into()),
            fixed(3, std::net::Ipv6Addr::new(0xfd00, 0, 0, network.into(), 0, 0, 0, last.into()).into()),
        ],
        groups: vec![],
        allowed_pairs: vec![],
        qos: Qos::default(),
        port_security: true,
        trunk: None,
        mirror: None,
        arriving: None,
        binding: Some(Binding {
            machine: MachineId::from_uuid(id(5, key)),
            hostname: name.to_owned(),
            host: HostId::from_uuid(id(6, 1)),
            tunnel: Ipv4Addr::new(192, 0, 2, 1),
        }),
    };
    host.ports.insert(port.id, port);
}

/// Two networks with a machine `web` each; only the first has a domain.
fn world() -> HostNetwork {
    let mut host = HostNetwork::empty(HostId::from_uuid(id(6, 1)), Ipv4Addr::new(192, 0, 2, 1));
    add_network(&mut host, 1, Some("cloud.test"));
    add_network(&mut host, 2, None);
    add_machine(&mut host, 11, 1, "web");
    add_machine(&mut host, 12, 1, "db");
    add_machine(&mut host, 21, 2, "web");
    host
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0xabcd, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

#[track_caller]
fn ask(host: &HostNetwork, key: u32, name: &str, kind: RecordType) -> Option<Message> {
    match answer(host, key, &question(name, kind).to_vec().unwrap(), ROOM) {
        Verdict::Answer(octets) => Some(Message::from_vec(&octets).unwrap()),
        Verdict::Forward(_) => None,
        Verdict::Unreadable(_, error) => panic!("{error}"),
    }
}

/// The answer in short: its code, its records, and whether it says how long an answer no may be kept.
#[track_caller]
fn told(host: &HostNetwork, key: u32, name: &str, kind: RecordType) -> String {
    let Some(message) = ask(host, key, name, kind) else { return "forwarded".to_owned() };
    assert_eq!((message.metadata.id, message.metadata.message_type), (0xabcd, MessageType::Response));
    assert!(message.metadata.recursion_available && message.metadata.recursion_desired);
    assert!(message.answers.iter().all(|record| record.ttl == TTL && record.name == *message.queries[0].name()));
    let records = message.answers.iter().map(|record| record.data.to_string()).collect::<Vec<_>>().join(" ");
    let soa = message.authorities.iter().map(|record| format!(" soa {}", record.name)).collect::<String>();
    format!("{:?} {records}{soa}", message.metadata.response_code)
}

#[test]
fn machines_of_the_same_network_are_known_by_name_and_by_address() {
    let host = world();
    for (name, kind, want) in [
        ("web.cloud.test.", RecordType::A, "NoError 10.0.1.11"),
        ("WEB.Cloud.Test.", RecordType::AAAA, "NoError fd00:0:0:1::b"),
        ("db.cloud.test.", RecordType::ANY, "NoError 10.0.1.12 fd00:0:0:1::c"),
        ("web.", RecordType::A, "NoError 10.0.1.11"),
        ("db.", RecordType::AAAA, "NoError fd00:0:0:1::c"),
        ("11.1.0.10.in-addr.arpa.", RecordType::PTR, "NoError web.cloud.test."),
        ("cloud.test.", RecordType::SOA, "NoError cloud.test. hostmaster.cloud.test. 1 3600 600 86400 10"),
    ] {
        assert_eq!(told(&host, 12, name, kind), want, "{name} {kind}");
    }
    let digits = Name::from("fd00:0:0:1::c".parse::<std::net::Ipv6Addr>().unwrap()).to_ascii();
    assert_eq!(told(&host, 11, &digits, RecordType::PTR), "NoError db.cloud.test.");
    assert_eq!(told(&host, 21, "21.2.0.10.in-addr.arpa.", RecordType::PTR), "NoError web.", "without a domain");
    assert!(ask(&host, 11, "web.cloud.test.", RecordType::A).unwrap().metadata.authoritative);
}

#[test]
fn what_is_not_there_is_denied_and_never_asked_elsewhere() {
    let host = world();
    for (name, kind, want) in [
        ("none.cloud.test.", RecordType::A, "NXDomain  soa cloud.test."),
        ("a.web.cloud.test.", RecordType::A, "NXDomain  soa cloud.test."),
        ("*.cloud.test.", RecordType::A, "NXDomain  soa cloud.test."),
        ("web.cloud.test.", RecordType::MX, "NoError  soa cloud.test."),
        ("cloud.test.", RecordType::A, "NoError  soa cloud.test."),
        ("none.", RecordType::A, "NXDomain "),
        ("web.", RecordType::TXT, "NoError "),
        ("99.1.0.10.in-addr.arpa.", RecordType::PTR, "NXDomain  soa 1.0.10.in-addr.arpa."),
        ("11.1.0.10.in-addr.arpa.", RecordType::A, "NoError  soa 1.0.10.in-addr.arpa."),
        ("1.0.10.in-addr.arpa.", RecordType::PTR, "NoError  soa 1.0.10.in-addr.arpa."),
        ("254.169.254.169.in-addr.arpa.", RecordType::PTR, "NXDomain  soa 254.169.254.169.in-addr.arpa."),
    ] {
        assert_eq!(told(&host, 11, name, kind), want, "{name} {kind}");
    }
}

/// The network of the asker decides; a router between two makes no difference, and names of another's domain are not known.
#[test]
fn machines_of_other_networks_are_not_known() {
    let host = world();
    assert_eq!(told(&host, 21, "web.", RecordType::A), "NoError 10.0.2.21");
    assert_eq!(told(&host, 21, "db.", RecordType::A), "NXDomain ");
    assert_eq!(told(&host, 21, "db.cloud.test.", RecordType::A), "forwarded");
    assert_eq!(told(&host, 21, "12.1.0.10.in-addr.arpa.", RecordType::PTR), "forwarded");
    assert_eq!(told(&host, 99, "web.", RecordType::A), "ServFail ", "a port that is not known");
}

#[test]
fn other_names_are_for_other_resolvers() {
    let host = world();
    for (name, kind) in [
        ("example.org.", RecordType::A),
        ("test.", RecordType::DS),
        (".", RecordType::NS),
        ("notcloud.test.", RecordType::A),
        ("8.8.8.8.in-addr.arpa.", RecordType::PTR),
        ("10.in-addr.arpa.", RecordType::SOA),
    ] {
        assert_eq!(told(&host, 11, name, kind), "forwarded", "{name} {kind}");
    }
}

/// A name that two machines have stands for both; what is too long for the asker is left out, and said to be.
#[test]
fn an_answer_is_as_long_as_its_asker_takes() {
    let mut host = world();
    for key in 30..90 {
        add_machine(&mut host, key, 1, "many");
    }
    let sizes = [(None, 512, true), (Some(512), 512, true), (Some(4096), 1232, false), (Some(4096), 700, true)];
    for (edns, room, is_cut) in sizes {
        let mut message = question("many.cloud.test.", RecordType::A);
        if let Some(size) = edns {
            message.set_edns(Edns::new().set_max_payload(size).clone());
        }
        let Verdict::Answer(octets) = answer(&host, 11, &message.to_vec().unwrap(), room) else { panic!("forwarded") };
        let told = Message::from_vec(&octets).unwrap();
        assert!(octets.len() <= room, "{} octets", octets.len());
        assert_eq!((told.metadata.truncation, told.answers.len()), (is_cut, if is_cut { 0 } else { 60 }), "{edns:?}");
        assert_eq!(told.edns.is_some(), edns.is_some());
    }
}

#[test]
fn what_is_no_plain_question_is_refused_in_kind() {
    let host = world();
    let said = |octets: &[u8]| match answer(&host, 11, octets, ROOM) {
        Verdict::Answer(octets) | Verdict::Unreadable(Some(octets), _) => {
            format!("{:?}", Message::from_vec(&octets).unwrap().metadata.response_code)
        }
        Verdict::Unreadable(None, _) => "silence".to_owned(),
        Verdict::Forward(_) => "forwarded".to_owned(),
    };
    let plain = question("web.cloud.test.", RecordType::A).to_vec().unwrap();
    assert_eq!(said(&plain), "NoError");
    assert_eq!(said(&[]), "silence");
    assert_eq!(said(&plain[..11]), "silence");
    assert_eq!(said(&plain[..20]), "FormErr");
    let with = |place: usize, octet: u8| {
        let mut octets = plain.clone();
        octets[place] = octet;
        octets
    };
    assert_eq!(said(&with(2, 0x80)), "silence", "an answer");
    assert_eq!(said(&with(2, 0x28)), "NotImp", "an update");
    assert_eq!(said(&with(4, 0xff)), "FormErr", "65281 questions");
    assert_eq!(said(&with(7, 1)), "FormErr", "an answer beside the question");
    assert_eq!(said(&with(plain.len() - 1, 3)), "Refused", "class CH");
    // A name that points at itself, and one that points ahead.
    for target in [12, 14] {
        let looped = [&plain[..12], &[0xc0, target, 0, 1, 0, 1]].concat();
        assert_eq!(said(&looped), "FormErr");
    }
    let mut later = question("web.cloud.test.", RecordType::A);
    later.set_edns(Edns::new().set_version(1).clone());
    // Code 16 has two names, of which the reader takes the other.
    assert_eq!(said(&later.to_vec().unwrap()), "BADSIG");
}

fn forwarded(message: &Message) -> Question {
    match answer(&world(), 11, &message.to_vec().unwrap(), ROOM) {
        Verdict::Forward(question) => question,
        other => panic!("{other:?}"),
    }
}

/// Others are asked with another id and without what the guest put beside the question; their answer is taken for the same question and id only, and
/// reaches the guest with the id that it asked with.
#[test]
fn an_answer_from_elsewhere_is_believed_for_its_own_question_only() {
    let mut guest = question("Example.org.", RecordType::TXT);
    guest.set_edns(Edns::new().set_max_payload(4096).set_dnssec_ok(true).clone());
    let question = forwarded(&guest);
    let asked = Message::from_vec(&question.asked_as(0x1111)).unwrap();
    assert_eq!((asked.metadata.id, &asked.queries), (0x1111, &guest.queries));
    assert_eq!(asked.edns.as_ref().map(|edns| (edns.max_payload(), edns.flags().dnssec_ok)), Some((1232, true)));
    let mut answer = Message::response(0x1111, OpCode::Query);
    answer.add_query(Query::query(Name::from_ascii("eXAMPLE.org.").unwrap(), RecordType::TXT));
    let text = RData::TXT(TXT::new(vec!["x".repeat(200); 4]));
    answer.add_answer(Record::from_rdata(guest.queries[0].name().clone(), 300, text));
    let good = answer.to_vec().unwrap();
    let relayed = question.relay(0x1111, &good).unwrap();
    assert_eq!((&relayed.octets[..2], &relayed.octets[2..]), (&[0xab, 0xcd][..], &good[2..]));
    assert!(question.relay(0x1112, &good).is_err(), "another id");
    for change in [
        |message: &mut Message| {
            message.queries[0] = Query::query(Name::from_ascii("example.net.").unwrap(), RecordType::TXT)
        },
        |message: &mut Message| message.queries[0].query_type = RecordType::A,
        |message: &mut Message| message.queries.clear(),
        |message: &mut Message| message.metadata.message_type = MessageType::Query,
    ] {
        let mut other = answer.clone();
        change(&mut other);
        assert!(question.relay(0x1111, &other.to_vec().unwrap()).is_err());
    }
    for length in 0..good.len() {
        assert!(question.relay(0x1111, &good[..length]).is_err(), "cut to {length}");
    }
    // One who takes 512 octets is told that there is more.
    let plain = forwarded(&question_without_edns());
    let cut = Message::from_vec(&plain.relay(0x1111, &good).unwrap().octets).unwrap();
    assert!(cut.metadata.truncation && cut.answers.is_empty() && cut.metadata.id == 0xabcd);
}

fn question_without_edns() -> Message {
    question("example.org.", RecordType::TXT)
}

#[test]
fn an_envelope_goes_back_to_whom_it_came_from() {
    let message = [7; 40];
    let built = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 1, 11], [169, 254, 169, 254], 64).udp(5000, 53);
    let mut frame = Vec::new();
    built.write(&mut frame, &message).unwrap();
    let (envelope, inside) = Envelope::open(&frame).unwrap();
    assert_eq!((inside, envelope.service()), (&message[..], Ipv4Addr::new(169, 254, 169, 254).into()));
    assert_eq!((envelope.room(1450), envelope.room(20)), (1422, 0));
    let back = envelope.seal(&[9; 30]).unwrap();
    let read = etherparse::SlicedPacket::from_ethernet(&back).unwrap();
    let (Some(etherparse::NetSlice::Ipv4(ip)), Some(etherparse::TransportSlice::Udp(udp))) = (read.net, read.transport)
    else {
        panic!("no datagram")
    };
    assert_eq!((&back[..6], &back[6..12]), (&[2; 6][..], &[4; 6][..]));
    assert_eq!((ip.header().source(), ip.header().destination()), ([169, 254, 169, 254], [10, 0, 1, 11]));
    assert_eq!((udp.source_port(), udp.destination_port(), udp.payload()), (53, 5000, &[9; 30][..]));
    let header = udp.to_header();
    assert_eq!(header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload()).unwrap(), header.checksum);
    assert!(Envelope::open(&frame[..30]).is_none());
}

#[test]
fn only_a_port_whose_subnets_name_no_server_is_sent_here() {
    let mut host = world();
    let port = host.ports.values().next().unwrap().clone();
    assert!(is_resolver(&host, &port));
    host.subnets.get_mut(&port.addresses[1].subnet).unwrap().dns = vec!["2620:fe::9".parse().unwrap()];
    assert!(!is_resolver(&host, &port), "one of its two subnets does");
}

proptest! {
    /// Whatever a guest sends, what is said to it is short enough and reads as an answer with its id.
    #[test]
    fn no_octets_of_a_guest_break_anything(mut octets in proptest::collection::vec(any::<u8>(), 0..600), tidy in any::<bool>()) {
        if let (true, Some(head)) = (tidy, octets.first_chunk_mut::<12>()) {
            head[2..].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
        }
        let host = world();
        if let Verdict::Answer(said) | Verdict::Unreadable(Some(said), _) = answer(&host, 11, &octets, ROOM) {
            prop_assert!(said.len() <= ROOM && said[..2] == octets[..2]);
            prop_assert!(Message::from_vec(&said).unwrap().metadata.message_type == MessageType::Response);
        }
        let _unopened = Envelope::open(&octets);
    }

    /// Whatever a resolver sends, it is passed on whole and short enough, or not at all.
    #[test]
    fn no_octets_of_a_resolver_break_anything(place in 0..60usize, octet in any::<u8>(), more in proptest::collection::vec(any::<u8>(), 0..900)) {
        let question = forwarded(&question_without_edns());
        let mut octets = question.asked_as(7);
        octets[2] |= 0x80;
        octets.extend(&more);
        if let Some(changed) = octets.get_mut(place) {
            *changed = octet;
        }
        if let Ok(relayed) = question.relay(7, &octets) {
            prop_assert!(relayed.octets.len() <= 512);
            prop_assert!(Message::from_vec(&relayed.octets).unwrap().metadata.id == 0xabcd);
        }
    }
}

//! The DHCP server against messages that clients send: the whole exchange, renewal, refusal, and what must not be answered.

#[cfg(test)]
mod topology;

use std::net::{IpAddr, Ipv4Addr};

use dataplane::dhcp::{DhcpError, LEASE_SECONDS, SERVER_MAC, answer};
use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use model::Mac;
use model::network::{Announced, StaticRoute};
use model::spec::HostNetwork;
use proptest::prelude::{Strategy as _, any, proptest};
use topology::two_subnets;

const WEB_1: u32 = 1;
const MAC: [u8; 6] = [2, 2, 0, 0, 0, 1];
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 11);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);

fn host() -> HostNetwork {
    two_subnets().host(0)
}

/// A message of the client with this MAC address.
fn request(kind: MessageType, options: &[DhcpOption]) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(0x1234, none, none, none, none, &MAC);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    for option in options {
        message.opts_mut().insert(option.clone());
    }
    message
}

/// The message as the client would send it.
fn frame(message: &Message) -> Vec<u8> {
    let mut payload = Vec::new();
    let mut frame = Vec::new();
    assert!(message.encode(&mut Encoder::new(&mut payload)).is_ok());
    let source = message.ciaddr().octets();
    let builder = PacketBuilder::ethernet2(MAC, [0xff; 6]).ipv4(source, [255; 4], 64).udp(68, 67);
    assert!(builder.write(&mut frame, &payload).is_ok());
    frame
}

/// A reply with what carried it.
#[derive(Debug)]
struct Reply {
    mac: [u8; 6],
    server_mac: [u8; 6],
    address: Ipv4Addr,
    message: Message,
}

impl Reply {
    fn kind(&self) -> Option<MessageType> {
        self.message.opts().msg_type()
    }

    fn option(&self, code: OptionCode) -> Option<&DhcpOption> {
        self.message.opts().get(code)
    }
}

#[cfg(test)]
fn read(frame: &[u8]) -> Reply {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &packet.net else { panic!("no IPv4: {packet:?}") };
    let Some(TransportSlice::Udp(udp)) = &packet.transport else { panic!("no UDP: {packet:?}") };
    assert_eq!((udp.source_port(), udp.destination_port()), (67, 68));
    let header = udp.to_header();
    assert_eq!(header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload()).unwrap(), udp.checksum());
    let message = Message::decode(&mut Decoder::new(udp.payload())).unwrap();
    assert_eq!((message.opcode(), message.xid(), message.chaddr()), (Opcode::BootReply, 0x1234, &MAC[..]));
    let Some(etherparse::LinkSlice::Ethernet2(ethernet)) = &packet.link else { panic!("no Ethernet: {packet:?}") };
    Reply {
        mac: ethernet.destination(),
        server_mac: ethernet.source(),
        address: ip.header().destination_addr(),
        message,
    }
}

#[cfg(test)]
fn ask(host: &HostNetwork, message: &Message) -> Option<Reply> {
    answer(host, WEB_1, &frame(message)).unwrap().map(|reply| read(&reply))
}

/// DISCOVER gives an OFFER with everything that the client needs; REQUEST for it an ACK that says the same.
#[test]
fn a_client_gets_its_address_and_the_facts_of_its_subnet() {
    let offer = ask(&host(), &request(MessageType::Discover, &[])).unwrap();
    assert_eq!(offer.kind(), Some(MessageType::Offer));
    assert_eq!((offer.mac, offer.address), (MAC, ADDRESS));
    assert_eq!(offer.server_mac, [2, 1, 0, 0, 0, 0], "the gateway's");
    let chosen = [DhcpOption::RequestedIpAddress(ADDRESS), DhcpOption::ServerIdentifier(GATEWAY)];
    let ack = ask(&host(), &request(MessageType::Request, &chosen)).unwrap();
    assert_eq!(ack.kind(), Some(MessageType::Ack));
    for reply in [&offer, &ack] {
        assert_eq!(reply.message.yiaddr(), ADDRESS);
        for option in [
            DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
            DhcpOption::Router(vec![GATEWAY]),
            DhcpOption::DomainNameServer(vec![Ipv4Addr::new(9, 9, 9, 9)]),
            DhcpOption::Hostname("web-1".to_owned()),
            DhcpOption::InterfaceMtu(1450),
            DhcpOption::AddressLeaseTime(LEASE_SECONDS),
            DhcpOption::ServerIdentifier(GATEWAY),
        ] {
            assert_eq!(reply.option(OptionCode::from(&option)), Some(&option));
        }
        assert_eq!(reply.option(OptionCode::ClasslessStaticRoute), None, "the gateway leads everywhere");
    }
}

/// A port whose subnets name no server is told to ask the host.
#[test]
fn without_name_servers_the_host_is_one() {
    let mut host = host();
    for subnet in host.subnets.values_mut() {
        subnet.dns.clear();
    }
    let offer = ask(&host, &request(MessageType::Discover, &[])).unwrap();
    let server = DhcpOption::DomainNameServer(vec![Ipv4Addr::new(169, 254, 169, 254)]);
    assert_eq!(offer.option(OptionCode::DomainNameServer), Some(&server));
}

/// A renewal comes from the leased address and is answered there; a client that asks for broadcast gets broadcast.
#[test]
fn a_renewal_is_answered_at_the_leased_address() {
    let mut renewal = request(MessageType::Request, &[]);
    renewal.set_ciaddr(ADDRESS);
    let ack = ask(&host(), &renewal).unwrap();
    assert_eq!((ack.kind(), ack.mac, ack.address), (Some(MessageType::Ack), MAC, ADDRESS));
    let mut discover = request(MessageType::Discover, &[]);
    discover.set_flags(dhcproto::v4::Flags::default().set_broadcast());
    let offer = ask(&host(), &discover).unwrap();
    assert_eq!((offer.mac, offer.address), ([0xff; 6], Ipv4Addr::BROADCAST));
}

/// Another address than the port's is refused aloud, by broadcast and without options; another server's client is left alone.
#[test]
fn a_foreign_address_is_refused_and_a_foreign_server_ignored() {
    let other = Ipv4Addr::new(192, 168, 0, 7);
    let nak = ask(&host(), &request(MessageType::Request, &[DhcpOption::RequestedIpAddress(other)])).unwrap();
    assert_eq!((nak.kind(), nak.mac, nak.address), (Some(MessageType::Nak), [0xff; 6], Ipv4Addr::BROADCAST));
    assert_eq!((nak.message.yiaddr(), nak.option(OptionCode::Router)), (Ipv4Addr::UNSPECIFIED, None));
    let chosen = [DhcpOption::RequestedIpAddress(ADDRESS), DhcpOption::ServerIdentifier(other)];
    assert!(ask(&host(), &request(MessageType::Request, &chosen)).is_none());
    assert!(ask(&host(), &request(MessageType::Release, &[])).is_none());
}

/// INFORM gets the facts but no address and no lease.
#[test]
fn a_client_with_an_address_of_its_own_gets_the_facts_only() {
    let mut inform = request(MessageType::Inform, &[]);
    inform.set_ciaddr(ADDRESS);
    let ack = ask(&host(), &inform).unwrap();
    assert_eq!((ack.kind(), ack.message.yiaddr()), (Some(MessageType::Ack), Ipv4Addr::UNSPECIFIED));
    assert_eq!(ack.option(OptionCode::AddressLeaseTime), None);
    assert!(ack.option(OptionCode::SubnetMask).is_some());
}

/// A router that is not the gateway is announced with the subnets behind it, beside the default route.
#[test]
fn routers_beside_the_gateway_are_announced() {
    let mut cloud = two_subnets();
    cloud.routers[0].interfaces[0].address = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 254));
    let offer = ask(&cloud.host(0), &request(MessageType::Discover, &[])).unwrap();
    let behind = ("10.0.2.0/24".parse().unwrap(), Ipv4Addr::new(10, 0, 1, 254));
    let services = ("169.254.169.254/32".parse().unwrap(), Ipv4Addr::UNSPECIFIED);
    let routes = vec![behind, services, ("0.0.0.0/0".parse().unwrap(), GATEWAY)];
    assert_eq!(offer.option(OptionCode::ClasslessStaticRoute), Some(&DhcpOption::ClasslessStaticRoute(routes)));
    assert_eq!(offer.server_mac, SERVER_MAC.bytes());
}

/// What the subnet's owner announces is said: domain, search list with the domain first, time servers, routes beside the default one.
#[test]
fn what_a_subnet_announces_is_said() {
    let mut cloud = two_subnets();
    let next_hop = Ipv4Addr::new(10, 0, 1, 77);
    cloud.subnets[0].announced = Announced {
        domain: Some("cloud.test".parse().unwrap()),
        search: vec!["b.test".parse().unwrap()],
        ntp: vec![Ipv4Addr::new(10, 0, 1, 9).into()],
        routes: vec![StaticRoute { destination: "192.168.0.0/16".parse().unwrap(), next_hop: next_hop.into() }],
    };
    let offer = ask(&cloud.host(0), &request(MessageType::Discover, &[])).unwrap();
    let routes = vec![("192.168.0.0/16".parse().unwrap(), next_hop), ("0.0.0.0/0".parse().unwrap(), GATEWAY)];
    for option in [
        DhcpOption::DomainName("cloud.test".to_owned()),
        DhcpOption::NtpServers(vec![Ipv4Addr::new(10, 0, 1, 9)]),
        DhcpOption::ClasslessStaticRoute(routes),
    ] {
        assert_eq!(offer.option(OptionCode::from(&option)), Some(&option));
    }
    let Some(DhcpOption::DomainSearch(names)) = offer.option(OptionCode::DomainSearch) else { panic!("{offer:?}") };
    assert_eq!(names.iter().map(ToString::to_string).collect::<Vec<_>>(), ["cloud.test.", "b.test."]);

    cloud.subnets[0].announced.routes[0].next_hop = Ipv4Addr::new(10, 0, 2, 1).into();
    let host =
        HostNetwork { subnets: cloud.subnets.iter().map(|s| (s.id, s.clone())).collect(), ..two_subnets().host(0) };
    let error = host.check().unwrap_err().to_string();
    assert!(error.ends_with("its route to 192.168.0.0/16 by 10.0.2.1 does not begin in 10.0.1.0/24"), "{error}");
}

/// What is no request of the port gets no answer, and the error says why.
#[test]
fn what_is_no_request_of_the_port_is_refused_with_a_reason() {
    let good = frame(&request(MessageType::Discover, &[]));
    let says = |key: u32, frame: &[u8]| answer(&host(), key, frame).unwrap_err().to_string();
    assert_eq!(says(99, &good), "answer DHCP request of port 99: no port here has this key");
    assert_eq!(
        says(3, &good),
        format!(
            "answer DHCP request of port db-1: its hardware address is {}, want {}",
            Mac::new(MAC),
            two_subnets().mac(2)
        )
    );
    assert!(says(WEB_1, &good[..40]).starts_with("read DHCP request of 40 octets: "));
    let mut long_address = good.clone();
    long_address[14 + 20 + 8 + 2] = 255;
    let error = answer(&host(), WEB_1, &long_address).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(cause, "its hardware address length is 0xff, want 0x6");
    let mut cloud = two_subnets();
    cloud.subnets[0].dhcp = false;
    let error = answer(&cloud.host(0), WEB_1, &good).unwrap_err();
    assert!(matches!(&error, DhcpError::NoAddress { port } if port == "web-1"), "{error}");
    assert_eq!(cloud.mac(0), Mac::new(MAC));
}

proptest! {
    /// Whatever a guest sends, the server answers or says why not; it never panics.
    #[test]
    fn any_octets_are_survived(octets in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _either = answer(&host(), WEB_1, &octets);
    }

    /// The same for requests with some octets changed and the end cut off.
    #[test]
    fn any_damage_is_survived(
        changes in proptest::collection::vec((0..400_usize, any::<u8>()), 0..12),
        cut in (0..400_usize).prop_map(|cut| 400 - cut),
    ) {
        let mut octets = frame(&request(MessageType::Request, &[
            DhcpOption::RequestedIpAddress(ADDRESS),
            DhcpOption::ClasslessStaticRoute(vec![]),
            DhcpOption::Hostname("a".to_owned()),
        ]));
        for (at, value) in changes {
            let at = at % octets.len();
            octets[at] = value;
        }
        octets.truncate(cut);
        let _either = answer(&host(), WEB_1, &octets);
    }
}

//! Seeded faults: for each, `blame` names the one cause in a line that has the objects to change; without the fault the packet arrives.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper of a test may panic as the test may")]

#[cfg(test)]
mod topology;

use std::net::IpAddr;

use dataplane::trace::{Blame, Cause, Connection, Packet, PacketError, Payload, blame};
use dataplane::{compile, trace};
use model::Mac;
use model::firewall::{Carried, FirewallAction};
use model::security::{Direction, Ethertype, Protocol, Remote};
use openflow::flow::Field;
use topology::{Cloud, dual_stack, tcp};

const TCP_80: Payload = Payload::Tcp { source: 40_000, target: 80 };
const TCP_5432: Payload = Payload::Tcp { source: 40_000, target: 5432 };

fn at(cloud: &Cloud, name: &str) -> usize {
    cloud.ports.iter().position(|port| port.name == name).unwrap()
}

fn v4(cloud: &Cloud, name: &str) -> IpAddr {
    IpAddr::V4(cloud.address(at(cloud, name)))
}

fn v6(cloud: &Cloud, name: &str) -> IpAddr {
    IpAddr::V6(cloud.address6(at(cloud, name)).unwrap())
}

fn from(cloud: &Cloud, name: &str, target: IpAddr, payload: Payload) -> Packet {
    Packet::from_port(&cloud.host(0), &cloud.numbers(0), &cloud.ports[at(cloud, name)], target, payload).unwrap()
}

fn asked(cloud: &Cloud, packet: &Packet, connection: Connection) -> Option<Blame> {
    let (host, numbers) = (cloud.host(0), cloud.numbers(0));
    let path = trace(&compile(&host, &numbers), packet, connection);
    let found = blame(&host, &numbers, packet, &path);
    assert_eq!(found.is_some(), path.why_not().is_some(), "{path}");
    found
}

/// The packet is dropped, for this cause, in a line with these words.
#[track_caller]
fn blamed(cloud: &Cloud, packet: &Packet, cause: Cause, words: &[&str]) {
    connected(cloud, packet, Connection::New, cause, words);
}

#[track_caller]
fn connected(cloud: &Cloud, packet: &Packet, connection: Connection, cause: Cause, words: &[&str]) {
    let Some(found) = asked(cloud, packet, connection) else { panic!("the packet arrives") };
    assert_eq!(found.cause, cause, "{found}");
    for word in words {
        assert!(found.line.contains(word), "no {word:?} in: {found}");
    }
    assert!(!found.remedy.is_empty() && !found.line.contains('\n'));
}

#[track_caller]
fn arrives(cloud: &Cloud, packet: &Packet) {
    let found = asked(cloud, packet, Connection::New);
    assert_eq!(found, None, "the same without the fault");
}

#[test]
fn a_spoofed_ipv4_source() {
    let cloud = dual_stack();
    let packet = from(&cloud, "web-1", v4(&cloud, "web-2"), TCP_80);
    arrives(&cloud, &packet);
    let packet = packet.with(Field::Ipv4Src, std::net::Ipv4Addr::new(10, 0, 1, 99));
    blamed(&cloud, &packet, Cause::SpoofedSource, &["web-1", "10.0.1.11", "10.0.1.99"]);
}

#[test]
fn a_spoofed_ipv6_source() {
    let cloud = dual_stack();
    let packet = from(&cloud, "web-1", v6(&cloud, "web-2"), TCP_80);
    arrives(&cloud, &packet);
    let packet = packet.with(Field::Ipv6Src, "fd00:0:0:1::99".parse::<std::net::Ipv6Addr>().unwrap());
    blamed(&cloud, &packet, Cause::SpoofedSource, &["web-1", "fd00:0:0:1::99"]);
}

#[test]
fn a_spoofed_mac_address() {
    let cloud = dual_stack();
    let other = Mac::new([2, 9, 9, 9, 9, 9]);
    let packet = from(&cloud, "web-1", v4(&cloud, "web-2"), TCP_80).with(Field::EthSrc, other.bytes());
    blamed(&cloud, &packet, Cause::SpoofedSource, &["web-1", "02:09:09:09:09:09"]);
}

#[test]
fn an_arp_request_for_somebody_else() {
    let cloud = dual_stack();
    let number = cloud.numbers(0).ports[&cloud.ports[at(&cloud, "web-1")].id];
    let mac = cloud.mac(at(&cloud, "web-1"));
    let packet = Packet::arp_request(number, (mac, "10.0.1.99".parse().unwrap()), cloud.address(at(&cloud, "web-2")));
    blamed(&cloud, &packet, Cause::ForbiddenMessage, &["web-1"]);
}

#[test]
fn a_router_advertisement_of_a_guest() {
    let cloud = dual_stack();
    let number = cloud.numbers(0).ports[&cloud.ports[at(&cloud, "web-1")].id];
    let mac = cloud.mac(at(&cloud, "web-1"));
    let packet = Packet::router_advert(number, (mac, mac.link_local()));
    blamed(&cloud, &packet, Cause::ForbiddenMessage, &["web-1", "routers"]);
}

#[test]
fn nobody_in_the_own_subnet_has_the_address() {
    let cloud = dual_stack();
    let packet = from(&cloud, "web-1", "10.0.1.99".parse().unwrap(), TCP_80);
    blamed(&cloud, &packet, Cause::NoSuchAddress, &["10.0.1.99"]);
}

#[test]
fn nobody_in_another_subnet_has_the_address() {
    let cloud = dual_stack();
    for target in ["10.0.2.99", "fd00:0:0:2::99"] {
        let packet = from(&cloud, "web-1", target.parse().unwrap(), TCP_80);
        blamed(&cloud, &packet, Cause::NoSuchAddress, &[target]);
    }
}

#[test]
fn no_route_leads_there() {
    let mut cloud = dual_stack();
    let target = "203.0.113.9".parse().unwrap();
    let packet = from(&cloud, "web-1", target, TCP_80);
    blamed(&cloud, &packet, Cause::NoRoute, &["router main", "10.0.1.0/24", "203.0.113.9 and no external gateway"]);
    let hop = cloud.address(at(&cloud, "open-1"));
    cloud.route(0, "203.0.113.0/24", hop);
    arrives(&cloud, &packet);
}

#[test]
fn the_next_hop_is_nobody() {
    let mut cloud = dual_stack();
    cloud.route(0, "203.0.113.0/24", "10.0.1.99".parse::<IpAddr>().unwrap());
    let packet = from(&cloud, "web-1", "203.0.113.9".parse().unwrap(), TCP_80);
    blamed(&cloud, &packet, Cause::NoNextHop, &["router main", "10.0.1.99"]);
}

#[test]
fn the_senders_subnet_has_no_router() {
    let mut cloud = dual_stack();
    cloud.routers.clear();
    let target = v4(&cloud, "db-1");
    let port = &cloud.ports[at(&cloud, "web-1")];
    let error = Packet::from_port(&cloud.host(0), &cloud.numbers(0), port, target, TCP_80).unwrap_err();
    assert!(matches!(error, PacketError::NoGateway { .. }));
    let found = Blame::of_error(&error).unwrap();
    assert_eq!(found.cause, Cause::NoRouter);
    assert!(found.line.contains("web-1") && found.line.contains("10.0.2.21"), "{found}");
    assert_eq!(Blame::of_error(&PacketError::NotHere("web-9".to_owned())), None);
}

#[test]
fn the_receivers_subnet_left_the_router() {
    let mut cloud = dual_stack();
    let green = cloud.subnets[1].id;
    cloud.routers[0].interfaces.retain(|foot| foot.subnet != green);
    let packet = from(&cloud, "web-1", v4(&cloud, "db-1"), TCP_5432);
    blamed(&cloud, &packet, Cause::NoRoute, &["router main", "10.0.2.21"]);
}

#[test]
fn a_closed_port() {
    let cloud = dual_stack();
    let packet = from(&cloud, "web-1", v4(&cloud, "db-1"), Payload::Tcp { source: 40_000, target: 22 });
    blamed(&cloud, &packet, Cause::NoRule, &["in to port db-1", "(db)", "tcp port 5432 from members of web"]);
}

#[test]
fn a_member_of_the_wrong_group() {
    let mut cloud = dual_stack();
    let packet = from(&cloud, "web-1", v4(&cloud, "db-1"), TCP_5432);
    arrives(&cloud, &packet);
    let (web, db) = (at(&cloud, "web-1"), at(&cloud, "db-1"));
    cloud.ports[web].groups = cloud.ports[db].groups.clone();
    blamed(&cloud, &packet, Cause::WrongRemote, &["tcp port 5432 from members of web", "db-1"]);
}

#[test]
fn an_address_outside_of_the_prefix() {
    let mut cloud = dual_stack();
    let closed = cloud.group("closed");
    cloud.allow(closed, tcp(443, 443), Remote::Prefix("192.0.2.0/24".parse().unwrap()));
    let id = cloud.groups[closed].id;
    let db = at(&cloud, "db-1");
    cloud.ports[db].groups = vec![id];
    let packet = from(&cloud, "web-1", v4(&cloud, "db-1"), Payload::Tcp { source: 40_000, target: 443 });
    blamed(&cloud, &packet, Cause::WrongRemote, &["192.0.2.0/24", "closed"]);
}

#[test]
fn a_receiver_without_a_group() {
    let mut cloud = dual_stack();
    let db = at(&cloud, "db-1");
    cloud.ports[db].groups.clear();
    let packet = from(&cloud, "web-1", v4(&cloud, "db-1"), TCP_5432);
    blamed(&cloud, &packet, Cause::NoGroup, &["db-1", "in to"]);
}

#[test]
fn a_sender_without_a_group() {
    let mut cloud = dual_stack();
    let web = at(&cloud, "web-1");
    cloud.ports[web].groups.clear();
    let packet = from(&cloud, "web-1", v4(&cloud, "web-2"), TCP_80);
    blamed(&cloud, &packet, Cause::NoGroup, &["web-1", "out of"]);
}

#[test]
fn a_sender_that_may_send_something_else_only() {
    let mut cloud = dual_stack();
    let quiet = cloud.group("quiet");
    cloud.groups[quiet].rules.clear();
    cloud.rule(quiet, Direction::Egress, Protocol::Udp(model::security::PortRange::new(53, 53).unwrap()), Remote::Any);
    let id = cloud.groups[quiet].id;
    let web = at(&cloud, "web-1");
    cloud.ports[web].groups = vec![id];
    let packet = from(&cloud, "web-1", v4(&cloud, "web-2"), TCP_80);
    blamed(&cloud, &packet, Cause::NoRule, &["out of port web-1", "(quiet)", "udp port 53 to anyone"]);
}

#[test]
fn a_rule_for_ipv4_alone() {
    let mut cloud = dual_stack();
    let packet = from(&cloud, "web-1", v6(&cloud, "db-1"), TCP_5432);
    arrives(&cloud, &packet);
    for group in &mut cloud.groups {
        group.rules.retain(|rule| rule.ethertype == Ethertype::IPv4 || rule.direction == Direction::Egress);
    }
    blamed(&cloud, &packet, Cause::NoRule, &["in to port db-1", "no ingress rule at all"]);
}

#[test]
fn another_kind_of_icmp() {
    let cloud = dual_stack();
    let open = v4(&cloud, "web-1");
    arrives(&cloud, &from(&cloud, "db-1", open, Payload::ping(open)));
    let packet = from(&cloud, "db-1", open, Payload::Icmp { kind: 13, code: 0 });
    blamed(&cloud, &packet, Cause::NoRule, &["in to port web-1", "icmp type 8"]);
}

#[test]
fn another_protocol() {
    let cloud = dual_stack();
    let packet = from(&cloud, "db-1", v4(&cloud, "web-1"), Payload::Protocol(47));
    blamed(&cloud, &packet, Cause::NoRule, &["in to port web-1", "(web)"]);
}

#[test]
fn a_packet_of_no_connection() {
    let cloud = dual_stack();
    let packet = from(&cloud, "web-1", v4(&cloud, "db-1"), TCP_5432);
    connected(&cloud, &packet, Connection::Invalid, Cause::InvalidConnection, &["no connection"]);
}

#[test]
fn a_rule_that_was_taken_away_under_a_connection() {
    let mut cloud = dual_stack();
    let packet = from(&cloud, "web-1", v4(&cloud, "db-1"), TCP_5432);
    assert_eq!(asked(&cloud, &packet, Connection::Established), None);
    for group in &mut cloud.groups {
        group.rules.retain(|rule| rule.protocol != tcp(5432, 5432));
    }
    connected(&cloud, &packet, Connection::Established, Cause::NoRule, &["in to port db-1"]);
}

#[test]
fn a_firewall_that_does_not_let_it_out() {
    let mut cloud = dual_stack();
    let outer = cloud.network("outer", "203.0.113.0/24");
    cloud.provide(outer, "dc", Some(100));
    cloud.lead_out(0, outer);
    let web = at(&cloud, "web-1");
    cloud.float(0, web, 50);
    cloud.port("station", outer, 0, 9, &[0]);
    let packet = from(&cloud, "web-1", v4(&cloud, "station"), TCP_80);
    arrives(&cloud, &packet);
    let (_, egress) = cloud.wall(0);
    blamed(&cloud, &packet, Cause::Firewall, &["router main", "no firewall rule of it is for this"]);
    cloud.judge(egress, 0, FirewallAction::Allow, Carried::Any, (None, None));
    arrives(&cloud, &packet);
    let carried = topology::carried_tcp(80);
    cloud.judge(egress, 0, FirewallAction::Deny, carried, (None, None)).name = "no-web".to_owned();
    blamed(
        &cloud,
        &packet,
        Cause::Firewall,
        &["firewall rule no-web of policy out-1", "router main does not allow it out"],
    );
}

#[test]
fn a_port_that_no_machine_has() {
    let mut cloud = dual_stack();
    for name in ["web-2", "db-2"] {
        let packet = from(&cloud, "web-1", v4(&cloud, name), if name == "web-2" { TCP_80 } else { TCP_5432 });
        arrives(&cloud, &packet);
        let port = at(&cloud, name);
        cloud.ports[port].binding = None;
        blamed(&cloud, &packet, Cause::NotPluggedIn, &[name, "no running machine"]);
    }
}

#[test]
fn a_packet_that_is_too_large() {
    let cloud = dual_stack();
    let (host, port) = (cloud.host(0), &cloud.ports[at(&cloud, "web-1")]);
    let mtu = u32::from(host.networks[&port.network].mtu);
    assert_eq!(Blame::of_size(&host, port, mtu), None);
    let found = Blame::of_size(&host, port, mtu + 1).unwrap();
    assert_eq!(found.cause, Cause::TooLarge);
    assert!(found.line.contains("blue") && found.line.contains(&mtu.to_string()), "{found}");
}

#[test]
fn a_router_leads_no_ipv6_out() {
    let mut cloud = dual_stack();
    let far: IpAddr = "2001:db8:f::7".parse().unwrap();
    let packet = from(&cloud, "web-1", far, TCP_80);
    blamed(&cloud, &packet, Cause::NoIpv6Gateway, &["router main", "2001:db8:f::7", "nor a gateway of IPv6"]);
    let outer = cloud.network("outer", "203.0.113.0/24");
    cloud.ipv6(outer, "2001:db8:ffff::/64");
    cloud.provide(outer, "dc", Some(100));
    cloud.lead_out6(0, outer, &[0], 40);
    blamed(&cloud, &packet, Cause::NotRouted, &["port web-1 has fd00:0:0:1::b", "network outer", "nothing is"]);
    cloud.routed(outer, &["2001:db8::/32"]);
    blamed(&cloud, &packet, Cause::NotRouted, &["port web-1 has fd00:0:0:1::b", "2001:db8::/32 is"]);
    cloud.routed(outer, &["fd00::/16"]);
    cloud.port("station", outer, 0, 9, &[0]);
    let station = v6(&cloud, "station");
    arrives(&cloud, &from(&cloud, "web-1", station, TCP_80));
}

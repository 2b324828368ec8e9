//! Questions to the agent, handed over with the key of the port that asks: DHCPv4 and DHCPv6 requests, router and neighbour
//! solicitations. And no DHCP servers
//! in guests.
//!
//! DHCPv4 requests of a guarded port must carry its MAC address as their Ethernet source; they come from no address and are met where ports are.
//! Each port has a meter: what it asks beyond its rate is dropped in the switch and troubles nobody else. IPv6 questions come from addresses that were checked before. What a port asks that the agent has no answer for is ordinary traffic.

use std::net::{IpAddr, Ipv6Addr};

use model::network::Port;
use openflow::flow::{Action, Controller, Field, Match, Meter, MeterUnit, ip_proto};

use crate::compile::view::{Spot, View};
use crate::cookie::{Cookie, Object};
use crate::family::{FAMILIES, Family};
use crate::feature::neighbour::ROUTER_SOLICIT;
use crate::feature::{Feature, classify, trunk};
use crate::flow_set::{MeterNumber, Part};
use crate::punt::Punt;
use crate::register::{FLAG_BITS, SOURCE, SOURCE_GUARDED};
use crate::table::Table;

const REQUEST: u16 = 120;
const QUESTION: u16 = 100;
const NO_SERVER: u16 = 300;

/// Questions that one port may put to the agent in a second, and at once: a booting machine asks less than ten, one that begins to talk to a whole
/// subnet asks for each neighbour.
const QUESTIONS_PER_SECOND: u32 = 50;
const QUESTIONS_BURST: u32 = 100;

/// The group of all DHCPv6 servers of a link (RFC 8415 §7.1).
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

const PIPELINE: Cookie = Cookie { feature: Feature::Dhcp, object: Object::Pipeline };

/// UDP ports of clients and servers.
const fn ports(family: Family) -> (u16, u16) {
    match family {
        Family::V4 => (68, 67),
        Family::V6 => (546, 547),
    }
}

/// What holds for every port.
pub(crate) fn host(part: &mut Part) {
    let punt = || vec![Action::GotoTable(Table::Punt.number())];
    let routers = Match::new().icmp6().with(Field::Icmpv6Type, ROUTER_SOLICIT);
    part.add_noted(Table::Ask, QUESTION, routers, punt(), (PIPELINE, "it asks for routers".to_owned()));
    let (client, server) = ports(Family::V6);
    let request =
        Match::new().udp6().with(Field::Ipv6Dst, SERVERS).with(Field::UdpSrc, client).with(Field::UdpDst, server);
    part.add_noted(Table::Ask, QUESTION, request, punt(), (PIPELINE, "a DHCPv6 request".to_owned()));
    part.add_miss_to(Table::Ask, Table::Forward);
    part.add_miss_to(Table::Punt, Table::Forward);
    for family in FAMILIES {
        let (client, server) = ports(family);
        let served = family
            .packets()
            .ip_proto(ip_proto::UDP)
            .with_masked(FLAG_BITS.field, SOURCE_GUARDED.mask, SOURCE_GUARDED.mask)
            .with(Field::UdpSrc, server)
            .with(Field::UdpDst, client);
        let deny = vec![Action::GotoTable(Table::Deny.number())];
        part.add_noted(Table::Egress, NO_SERVER, served, deny, (PIPELINE, "guests may not serve DHCP".to_owned()));
    }
}

/// A port that is plugged in here.
pub(crate) fn port(view: &View<'_>, spot: Spot<'_>, part: &mut Part) {
    let port = spot.port;
    let (Some(segment), Some(number)) = (spot.segment, view.number(port)) else { return };
    let cookie = Cookie { feature: Feature::Dhcp, object: Object::Port(port.key) };
    let plain = is_served(view, port);
    if plain {
        let (client, server) = ports(Family::V4);
        let request = trunk::frames(port, number).udp().with(Field::UdpSrc, client).with(Field::UdpDst, server);
        let request = if port.port_security { request.eth_src(port.mac.bytes()) } else { request };
        let onward = classify::steps(view, segment, port, Table::Punt);
        part.add(Table::Classify, trunk::rank(port, REQUEST), request, onward, cookie);
    }
    if plain || port.ipv6_addresses().next().is_some() {
        let asked = Match::new().with(SOURCE.field, port.key);
        let punt = Punt::Question { port: port.key };
        let meter = MeterNumber::Questions(port.key).to_wire();
        part.add_meter(Meter::drop_above(meter, MeterUnit::Packets, QUESTIONS_PER_SECOND, QUESTIONS_BURST));
        let controller = Controller::new().with_userdata(punt.to_user_data());
        let steps = vec![Action::Meter(meter), Action::Controller(controller)];
        part.add(Table::Punt, QUESTION, asked, steps, cookie);
    }
}

fn is_served(view: &View<'_>, port: &Port) -> bool {
    port.addresses.iter().any(|fixed| {
        matches!(fixed.address, IpAddr::V4(_)) && view.subnet(fixed.subnet).is_some_and(|subnet| subnet.dhcp)
    })
}

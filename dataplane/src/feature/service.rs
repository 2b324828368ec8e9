//! Services of the host to its machines at 169.254.169.254 and fe80::a9fe:a9fe: metadata on TCP port 80, names on port 53.
//!
//! The addresses are the same on every network and belong to no subnet: ARP requests and solicitations for them are answered here, and a packet to
//! them that came by way of a router is met before it is routed. What reaches a service is handed to the agent with the port that sent it, so that
//! tenants with the same addresses stay apart; each port has a meter. Nothing else is at these addresses: what is sent there otherwise is dropped.
//! No security group is asked, as with DHCP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::Mac;
use openflow::flow::{Action, Controller, Field, Match, Meter, MeterUnit, ip_proto};

use crate::compile::view::{Spot, View};
use crate::cookie::{Cookie, Object};
use crate::dns;
use crate::family;
use crate::feature::{Feature, arp, neighbour};
use crate::flow_set::{MeterNumber, Part};
use crate::punt::Punt;
use crate::register::SOURCE;
use crate::table::Table;

/// Where services are for IPv4.
pub const ADDRESS_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Where services are for IPv6.
pub const ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe);
/// The TCP port of the metadata service.
pub const METADATA_PORT: u16 = 80;
/// Their MAC address, the same on every network and host.
pub const SERVICE_MAC: Mac = Mac::new([0x02, 0xba, 0x5a, 0x00, 0x00, 0x80]);

/// Packets that one port may send to services in a second, and at once: reading 16 KiB of user data takes about 20.
const PACKETS_PER_SECOND: u32 = 200;
const PACKETS_BURST: u32 = 200;

/// Below the answers for ports and routers. A port that is given one of the addresses answers ARP with its own MAC address, and hears nothing else there.
const ANSWER: u16 = 90;
/// Above every MAC address.
const SERVED: u16 = 310;
const NOT_SERVED: u16 = 300;
const ASKED: u16 = 100;

const PIPELINE: Cookie = Cookie { feature: Feature::Service, object: Object::Pipeline };

/// What holds for every port.
pub(crate) fn host(part: &mut Part) {
    arp::answer_anywhere(ADDRESS_V4, SERVICE_MAC, ANSWER, PIPELINE, part);
    neighbour::answer_anywhere(ADDRESS_V6, SERVICE_MAC, ANSWER, PIPELINE, part);
    for address in [IpAddr::V4(ADDRESS_V4), IpAddr::V6(ADDRESS_V6)] {
        let metadata = family::to(address).ip_proto(ip_proto::TCP).with(Field::TcpDst, METADATA_PORT);
        let names = family::to(address).ip_proto(ip_proto::UDP).with(Field::UdpDst, dns::PORT);
        let long_names = family::to(address).ip_proto(ip_proto::TCP).with(Field::TcpDst, dns::PORT);
        let to_names = "to the name service";
        for (asked, note) in [(metadata, "to the metadata service"), (names, to_names), (long_names, to_names)] {
            let serve = vec![Action::GotoTable(Table::Service.number())];
            part.add_noted(Table::Forward, SERVED, asked, serve, (PIPELINE, note.to_owned()));
        }
        let note = format!("no service of {address} listens there");
        part.add_noted(Table::Forward, NOT_SERVED, family::to(address), Vec::new(), (PIPELINE, note));
    }
    part.add_miss(Table::Service);
}

/// A port that is plugged in here.
pub(crate) fn port(view: &View<'_>, spot: Spot<'_>, part: &mut Part) {
    let port = spot.port;
    if spot.segment.is_none() || view.number(port).is_none() || port.addresses.is_empty() {
        return;
    }
    let cookie = Cookie { feature: Feature::Service, object: Object::Port(port.key) };
    let meter = MeterNumber::Services(port.key).to_wire();
    part.add_meter(Meter::drop_above(meter, MeterUnit::Packets, PACKETS_PER_SECOND, PACKETS_BURST));
    let controller = Controller::new().with_userdata(Punt::Question { port: port.key }.to_user_data());
    let steps = vec![Action::Meter(meter), Action::Controller(controller)];
    part.add(Table::Service, ASKED, Match::new().with(SOURCE.field, port.key), steps, cookie);
}

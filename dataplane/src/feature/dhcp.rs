//! DHCPv4 requests, handed to the agent with the key of the port they are from; and no DHCP servers in guests.
//!
//! Requests of a guarded port must carry its MAC address as their Ethernet source. Ports without an address on a subnet with DHCP are not punted:
//! what they send is ordinary traffic.

use std::net::IpAddr;

use model::network::Port;
use openflow::flow::{Action, Controller, Field, Match};

use crate::compile::view::{Spot, View};
use crate::cookie::{Cookie, Object};
use crate::feature::Feature;
use crate::flow_set::Part;
use crate::punt::Punt;
use crate::register::{FLAG_BITS, SOURCE_GUARDED};
use crate::table::Table;

const REQUEST: u16 = 120;
const NO_SERVER: u16 = 300;
const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;

pub(crate) fn host(part: &mut Part) {
    let cookie = Cookie { feature: Feature::Dhcp, object: Object::Pipeline };
    let served = Match::new()
        .udp()
        .with_masked(FLAG_BITS.field, SOURCE_GUARDED.mask, SOURCE_GUARDED.mask)
        .with(Field::UdpSrc, SERVER_PORT)
        .with(Field::UdpDst, CLIENT_PORT);
    let deny = vec![Action::GotoTable(Table::Deny.number())];
    part.add_noted(Table::Egress, NO_SERVER, served, deny, (cookie, "guests may not serve DHCP".to_owned()));
}

/// A port that is plugged in here.
pub(crate) fn port(view: &View<'_>, spot: Spot<'_>, part: &mut Part) {
    let port = spot.port;
    let (Some(_), Some(number), true) = (spot.segment, view.number(port.id), is_served(view, port)) else { return };
    let cookie = Cookie { feature: Feature::Dhcp, object: Object::Port(port.key) };
    let request = Match::new().udp().in_port(number).with(Field::UdpSrc, CLIENT_PORT).with(Field::UdpDst, SERVER_PORT);
    let request = if port.port_security { request.eth_src(port.mac.bytes()) } else { request };
    let punt = Punt::Dhcp { port: port.key };
    let steps = vec![Action::Controller(Controller::new().with_userdata(punt.to_user_data()))];
    part.add(Table::Classify, REQUEST, request, steps, cookie);
}

fn is_served(view: &View<'_>, port: &Port) -> bool {
    port.addresses.iter().any(|fixed| {
        matches!(fixed.address, IpAddr::V4(_)) && view.subnet(fixed.subnet).is_some_and(|subnet| subnet.dhcp)
    })
}

//! Neighbour advertisements: who has an IPv6 address on the network of the port that asks.
//!
//! Flows know which addresses there are and hand over the solicitations for them; what is said is made here, because the kernel's data path can
//! write none of what tells an advertisement from a solicitation (flags, the option's type). Answers for the ports, routers and load balancers of the asking
//! port's own network and for the services of the host, never for anybody else. Never panics on what a guest sends.
//! Source: RFC 4861 §4.3, §4.4, §7.2.4.

use std::net::Ipv6Addr;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use model::Mac;
use model::network::{FixedIp, Port, Router};
use model::spec::HostNetwork;

use crate::feature::neighbour::{ADVERT, SOLICIT};
use crate::feature::service::{ADDRESS_V6, SERVICE_MAC};

/// Neighbour discovery is never routed.
const UNROUTED: u8 = 255;
/// Flags: it was asked for, and overrides what was known; the sender is a router.
const SOLICITED_OVERRIDE: u8 = 0x60;
const IS_ROUTER: u8 = 0x80;
/// The option that says the target's MAC address, and its length in units of 8 octets.
const TARGET_OPTION: [u8; 2] = [2, 1];

/// Why a solicitation gets no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NeighbourError {
    /// The port is not known here any more.
    #[error("answer a neighbour solicitation of port {key}: no port here has this key")]
    NoPort {
        /// The key that the switch named.
        key: u32,
    },
    /// It is no whole solicitation.
    #[error("answer a neighbour solicitation of port {port}: {reason}")]
    Malformed {
        /// The port's name.
        port: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The networks have changed since the flow that handed it over.
    #[error("answer a neighbour solicitation of port {port}: nobody on its network has {target}")]
    Nobody {
        /// The port's name.
        port: String,
        /// Who was asked for.
        target: Ipv6Addr,
    },
    /// The advertisement does not fit its form; our own fault.
    #[error("write the advertisement of {target} for port {port}: {reason}")]
    Write {
        /// The port's name.
        port: String,
        /// Who was asked for.
        target: Ipv6Addr,
        /// What does not fit.
        reason: String,
    },
}

/// A neighbour that is answered for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Neighbour {
    mac: Mac,
    flags: u8,
}

/// The advertisement that answers a solicitation of the port with this key.
///
/// # Errors
/// [`NeighbourError`] says why there is none.
pub fn advertise(host: &HostNetwork, port_key: u32, frame: &[u8]) -> Result<Vec<u8>, NeighbourError> {
    let port = host.ports.values().find(|port| port.key == port_key).ok_or(NeighbourError::NoPort { key: port_key })?;
    let (station, asker, target) = solicitation(frame)
        .map_err(|reason| NeighbourError::Malformed { port: port.name.clone(), reason: reason.to_owned() })?;
    let neighbour =
        find(host, port, target).ok_or_else(|| NeighbourError::Nobody { port: port.name.clone(), target })?;
    write((station, asker), target, neighbour).map_err(|reason| NeighbourError::Write {
        port: port.name.clone(),
        target,
        reason,
    })
}

/// Who asks, from which MAC address and from which of its own, and for whom. The MAC address need not be the port's: there are allowed pairs, and
/// bridges behind ports without security.
fn solicitation(frame: &[u8]) -> Result<(Mac, Ipv6Addr, Ipv6Addr), &'static str> {
    let packet = SlicedPacket::from_ethernet(frame).map_err(|_| "it is no IPv6 packet")?;
    let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) = (&packet.net, &packet.transport) else {
        return Err("it is no ICMPv6 message");
    };
    if icmp.type_u8() != SOLICIT || icmp.code_u8() != 0 || ip.header().hop_limit() != UNROUTED {
        return Err("it is no neighbour solicitation of this link");
    }
    let asker = ip.header().source_addr();
    if asker.is_unspecified() {
        return Err("it is a probe, which its owner answers");
    }
    // What follows the first eight octets, whose last four are reserved.
    let target = icmp.payload().first_chunk::<16>().ok_or("it ends before its target")?;
    let station = packet.link.as_ref().and_then(|link| link.to_header()?.ethernet2()).ok_or("it has no sender")?;
    Ok((Mac::new(station.source), asker, Ipv6Addr::from(*target)))
}

fn find(host: &HostNetwork, port: &Port, target: Ipv6Addr) -> Option<Neighbour> {
    let mut ports = host.ports.values().filter(|other| other.network == port.network);
    let on_port = ports.find(|other| other.ipv6_addresses().any(|address| address == target));
    let feet = host.routers.values().flat_map(|router| &router.interfaces);
    let mut feet = feet.filter(|foot| host.subnets.get(&foot.subnet).is_some_and(|it| it.network == port.network));
    let mut on_router = || feet.find(|foot| foot.ipv6_addresses().any(|address| address == target));
    let mut balancers = host.balancers.values().filter(|it| it.address == target);
    let mut on_balancer =
        || balancers.find(|it| host.subnets.get(&it.subnet).is_some_and(|subnet| subnet.network == port.network));
    on_port
        .map(|other| Neighbour { mac: other.mac, flags: 0 })
        .or_else(|| on_router().map(|foot| Neighbour { mac: foot.mac, flags: IS_ROUTER }))
        .or_else(|| on_balancer().map(|it| Neighbour { mac: it.mac, flags: 0 }))
        .or_else(|| outside(host, port, target))
        .or_else(|| (target == ADDRESS_V6).then_some(Neighbour { mac: SERVICE_MAC, flags: 0 }))
}

/// Who has a routed address, or that of a router, on a network outside where this port is a station as well.
fn outside(host: &HostNetwork, port: &Port, target: Ipv6Addr) -> Option<Neighbour> {
    let leads_there = |router: &&Router| {
        let external = router.ipv6_gateway.as_ref().and_then(|gateway| host.subnets.get(&gateway.subnet));
        external.is_some_and(|external| external.network == port.network)
    };
    let outside = host.networks.get(&port.network)?;
    host.routers.values().filter(leads_there).find_map(|router| {
        let gateway = router.ipv6_gateway.as_ref()?;
        if gateway.address == target || gateway.mac.link_local() == target {
            return Some(Neighbour { mac: gateway.mac, flags: IS_ROUTER });
        }
        let is_behind = |fixed: &FixedIp| {
            let is_foot = router.interfaces.iter().any(|foot| foot.subnet == fixed.subnet);
            is_foot && host.subnets.get(&fixed.subnet).is_some_and(|subnet| outside.routes(subnet.cidr))
        };
        let has = |other: &&Port| {
            let mut routed = other.addresses.iter().filter(|fixed| is_behind(fixed));
            routed.any(|fixed| fixed.address == target || other.routed_mac().link_local() == target)
        };
        host.local_ports().find(has).map(|other| Neighbour { mac: other.routed_mac(), flags: 0 })
    })
}

fn write(
    (station, asker): (Mac, Ipv6Addr),
    target: Ipv6Addr,
    Neighbour { mac, flags }: Neighbour,
) -> Result<Vec<u8>, String> {
    let payload = [&target.octets()[..], &TARGET_OPTION, &mac.bytes()].concat();
    let builder = PacketBuilder::ethernet2(mac.bytes(), station.bytes())
        .ipv6(target.octets(), asker.octets(), UNROUTED)
        .icmpv6_raw(ADVERT, 0, [SOLICITED_OVERRIDE | flags, 0, 0, 0]);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, &payload).map_err(|error| error.to_string())?;
    Ok(frame)
}

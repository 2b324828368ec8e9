//! What the agent answers to packets that the switch hands over: finds the server that a frame is for.
//!
//! Owns [`answer`]. Which port asked is the switch's word; what it asks is read from the frame.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use model::spec::HostNetwork;

use crate::dhcp::{self, DhcpError};
use crate::dhcp6::{self, Dhcp6Error};
use crate::dns;
use crate::feature::neighbour::{ROUTER_SOLICIT, SOLICIT};
use crate::feature::service::{ADDRESS_V4, ADDRESS_V6, METADATA_PORT};
use crate::neighbour_advert::{self, NeighbourError};
use crate::router_advert::{AdvertError, advertise};

/// Why a packet gets no answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// DHCPv4.
    #[error(transparent)]
    Dhcp(#[from] DhcpError),
    /// DHCPv6.
    #[error(transparent)]
    Dhcp6(#[from] Dhcp6Error),
    /// Router advertisements.
    #[error(transparent)]
    Advert(#[from] AdvertError),
    /// Neighbour advertisements.
    #[error(transparent)]
    Neighbour(#[from] NeighbourError),
    /// Nothing that we serve.
    #[error("answer a packet of {length} octets from port {key}: {reason}")]
    Unknown {
        /// The port's key.
        key: u32,
        /// Octets of the frame.
        length: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// What a frame asks for.
enum Question {
    Dhcp,
    Dhcp6,
    Routers(Ipv6Addr),
    Neighbour,
}

/// Answers a frame that the port with this key sent; none when its protocol wants silence.
///
/// # Errors
/// [`AnswerError`] says why there is no answer.
pub fn answer(host: &HostNetwork, port_key: u32, frame: &[u8]) -> Result<Option<Vec<u8>>, AnswerError> {
    let unknown = |reason: String| AnswerError::Unknown { key: port_key, length: frame.len(), reason };
    match question(frame).map_err(unknown)? {
        Question::Dhcp => Ok(dhcp::answer(host, port_key, frame)?),
        Question::Dhcp6 => Ok(dhcp6::answer(host, port_key, frame)?),
        Question::Routers(asker) => Ok(Some(advertise(host, port_key, asker)?)),
        Question::Neighbour => Ok(Some(neighbour_advert::advertise(host, port_key, frame)?)),
    }
}

/// Whether a frame is for one of the services at link-local addresses, which answer later.
#[must_use]
pub fn is_for_service(frame: &[u8]) -> bool {
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else { return false };
    let to = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => IpAddr::V4(ip.header().destination_addr()),
        Some(NetSlice::Ipv6(ip)) => IpAddr::V6(ip.header().destination_addr()),
        _ => return false,
    };
    [IpAddr::V4(ADDRESS_V4), IpAddr::V6(ADDRESS_V6)].contains(&to)
        && match &packet.transport {
            Some(TransportSlice::Tcp(tcp)) => [METADATA_PORT, dns::PORT].contains(&tcp.destination_port()),
            Some(TransportSlice::Udp(udp)) => udp.destination_port() == dns::PORT,
            _ => false,
        }
}

fn question(frame: &[u8]) -> Result<Question, String> {
    let packet = SlicedPacket::from_ethernet(frame).map_err(|error| error.to_string())?;
    match (&packet.net, &packet.transport) {
        (Some(NetSlice::Ipv4(_)), Some(TransportSlice::Udp(udp))) if udp.destination_port() == 67 => Ok(Question::Dhcp),
        (Some(NetSlice::Ipv6(_)), Some(TransportSlice::Udp(udp))) if udp.destination_port() == 547 => {
            Ok(Question::Dhcp6)
        }
        (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) if icmp.type_u8() == ROUTER_SOLICIT => {
            Ok(Question::Routers(ip.header().source_addr()))
        }
        (Some(NetSlice::Ipv6(_)), Some(TransportSlice::Icmpv6(icmp))) if icmp.type_u8() == SOLICIT => {
            Ok(Question::Neighbour)
        }
        _ => Err("no server here is asked by such a packet".to_owned()),
    }
}

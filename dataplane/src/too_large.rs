//! Packet too big: what a router says to the sender of a packet that the next network does not carry.
//!
//! Flows measure and hand over (`feature/path_mtu.rs`); what is said is made here. Answers the port that sent it, in the name of the
//! router's address on that port's network, never anybody else; never an ICMP error, a later fragment or what was sent to many. Never panics on what a
//! guest sends.
//! Source: RFC 1191 §4, RFC 1122 §3.2.2, RFC 1812 §4.3.2.3, RFC 4443 §2.4 and §3.2.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{Ipv4Slice, Ipv6Slice, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use model::network::{Port, RouterInterface};
use model::spec::HostNetwork;
use openflow::flow::PortNo;

use crate::compile::PortNumbers;
use crate::exit::Exit;

const TTL: u8 = 64;
/// Destination unreachable: fragmentation needed (RFC 792, RFC 1191).
const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
/// Packet too big (RFC 4443 §3.2).
const TOO_BIG: u8 = 2;
/// Octets of the packet that are quoted: the message must not have more than 576, or 1280 with IPv6.
const QUOTED_MAX_V4: usize = 576 - 20 - 8;
const QUOTED_MAX_V6: usize = 1280 - 40 - 8;
/// ICMP messages that ask or answer; all others are errors, or nothing that a host sends to another.
const QUERIES: [u8; 6] = [0, 8, 13, 14, 17, 18];
/// ICMPv6 messages below this are errors.
const INFORMATIONAL: u8 = 128;

/// Why nothing is said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TooLargeError {
    /// The networks have changed since the flow that handed it over.
    #[error(
        "tell the sender of a packet too large for network {network}: router {router}, the network or the sender's port are not here any more"
    )]
    Gone {
        /// The network's VNI.
        network: u32,
        /// The router's key.
        router: u16,
    },
    /// It is nothing to answer.
    #[error("tell the sender of a packet of {length} octets that it is too large: {reason}")]
    Silent {
        /// Octets of the frame.
        length: usize,
        /// Why not.
        reason: &'static str,
    },
    /// The message does not fit its form; our own fault.
    #[error("write that a packet of {length} octets is too large: {reason}")]
    Write {
        /// Octets of the frame.
        length: usize,
        /// What does not fit.
        reason: String,
    },
}

/// What is handed over with such a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handed<'a> {
    /// Where it came in.
    pub in_port: PortNo,
    /// VNI of the network that it is too large for.
    pub network: u32,
    /// Key of the router.
    pub router: u16,
    /// The frame.
    pub frame: &'a [u8],
}

/// What to send back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// What is done with it before it leaves.
    pub exit: Exit,
    /// The frame, without the tag.
    pub frame: Vec<u8>,
}

/// What to send back out of the port that the packet came in on; `numbers` says which port that is.
///
/// # Errors
/// [`TooLargeError`] says why there is nothing to send.
pub fn tell(host: &HostNetwork, numbers: &PortNumbers, handed: &Handed<'_>) -> Result<Told, TooLargeError> {
    let length = handed.frame.len();
    let silent = |reason| TooLargeError::Silent { length, reason };
    let packet = SlicedPacket::from_ethernet(handed.frame).map_err(|_| silent("it is no whole packet"))?;
    if packet.vlan().is_some() {
        return Err(silent("it carries a tag"));
    }
    let gone = || TooLargeError::Gone { network: handed.network, router: handed.router };
    let mtu = host.networks.values().find(|network| network.vni.get() == handed.network).ok_or_else(gone)?.mtu;
    let net = packet.net.as_ref().ok_or_else(|| silent("it is no IP packet"))?;
    let is_error = match &packet.transport {
        Some(TransportSlice::Icmpv4(icmp)) => !QUERIES.contains(&icmp.type_u8()),
        Some(TransportSlice::Icmpv6(icmp)) => icmp.type_u8() < INFORMATIONAL,
        _ => false,
    };
    if is_error {
        return Err(silent("errors are not answered by errors"));
    }
    let write = |reason: String| TooLargeError::Write { length, reason };
    match net {
        NetSlice::Ipv4(ip) => {
            let source = answerable_v4(ip).map_err(silent)?;
            let (foot, port) = sender(host, numbers, handed, source.into()).ok_or_else(gone)?;
            let IpAddr::V4(router) = foot.address else { return Err(gone()) };
            let frame = write_v4((foot, router), (port, source), mtu, quoted(handed.frame, QUOTED_MAX_V4));
            Ok(Told { exit: Exit::to(host, numbers, port), frame: frame.map_err(write)? })
        }
        NetSlice::Ipv6(ip) => {
            let source = answerable_v6(ip).map_err(silent)?;
            let (foot, port) = sender(host, numbers, handed, source.into()).ok_or_else(gone)?;
            let IpAddr::V6(router) = foot.address else { return Err(gone()) };
            let frame = write_v6((foot, router), (port, source), mtu, quoted(handed.frame, QUOTED_MAX_V6));
            Ok(Told { exit: Exit::to(host, numbers, port), frame: frame.map_err(write)? })
        }
        NetSlice::Arp(_) => Err(silent("it is no IP packet")),
    }
}

/// The sender, when it may be answered.
fn answerable_v4(ip: &Ipv4Slice<'_>) -> Result<Ipv4Addr, &'static str> {
    let (source, target) = (ip.header().source_addr(), ip.header().destination_addr());
    if ip.header().fragments_offset().value() != 0 {
        return Err("only first fragments are answered");
    }
    if source.is_unspecified() || source.is_multicast() || source.is_broadcast() || source.is_loopback() {
        return Err("its source is no station");
    }
    if target.is_multicast() || target.is_broadcast() {
        return Err("it was sent to many");
    }
    Ok(source)
}

fn answerable_v6(ip: &Ipv6Slice<'_>) -> Result<Ipv6Addr, &'static str> {
    let source = ip.header().source_addr();
    if source.is_unspecified() || source.is_multicast() || source.is_loopback() {
        Err("its source is no station")
    } else {
        Ok(source)
    }
}

/// The port that the packet came from, and the foot of the router that it knows: of several ports at one tap that which has the source, or whose subnet
/// has it.
fn sender<'a>(
    host: &'a HostNetwork,
    numbers: &PortNumbers,
    handed: &Handed<'_>,
    source: IpAddr,
) -> Option<(&'a RouterInterface, &'a Port)> {
    let router = host.routers.values().find(|router| router.key == handed.router)?;
    let here = host.local_ports().filter(|port| numbers.of(port) == Some(handed.in_port));
    let mut found: Vec<_> = here
        .flat_map(|port| router.interfaces.iter().map(move |foot| (foot, port)))
        .filter(|(foot, _)| foot.address.is_ipv4() == source.is_ipv4())
        .filter_map(|(foot, port)| Some((foot, port, host.subnets.get(&foot.subnet)?)))
        .filter(|(_, port, subnet)| subnet.network == port.network)
        .collect();
    let has_it = |port: &Port| port.addresses.iter().any(|fixed| fixed.address == source);
    found.sort_by_key(|(_, port, subnet)| (!has_it(port), !subnet.cidr.contains(&source)));
    found.first().map(|(foot, port, _)| (*foot, *port))
}

/// The beginning of the packet, without its Ethernet header.
fn quoted(frame: &[u8], octets_max: usize) -> &[u8] {
    let packet = frame.get(usize::from(crate::feature::path_mtu::ETHERNET)..).unwrap_or_default();
    packet.get(..octets_max).unwrap_or(packet)
}

fn write_v4(
    (foot, router): (&RouterInterface, Ipv4Addr),
    (port, source): (&Port, Ipv4Addr),
    mtu: u16,
    quoted: &[u8],
) -> Result<Vec<u8>, String> {
    let [high, low] = mtu.to_be_bytes();
    let builder = PacketBuilder::ethernet2(foot.mac.bytes(), port.mac.bytes())
        .ipv4(router.octets(), source.octets(), TTL)
        .icmpv4_raw(UNREACHABLE, FRAGMENTATION_NEEDED, [0, 0, high, low]);
    let mut frame = Vec::with_capacity(builder.size(quoted.len()));
    builder.write(&mut frame, quoted).map_err(|error| error.to_string())?;
    Ok(frame)
}

fn write_v6(
    (foot, router): (&RouterInterface, Ipv6Addr),
    (port, source): (&Port, Ipv6Addr),
    mtu: u16,
    quoted: &[u8],
) -> Result<Vec<u8>, String> {
    let builder = PacketBuilder::ethernet2(foot.mac.bytes(), port.mac.bytes())
        .ipv6(router.octets(), source.octets(), TTL)
        .icmpv6_raw(TOO_BIG, 0, u32::from(mtu).to_be_bytes());
    let mut frame = Vec::with_capacity(builder.size(quoted.len()));
    builder.write(&mut frame, quoted).map_err(|error| error.to_string())?;
    Ok(frame)
}

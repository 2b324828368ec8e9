//! What carries a question: Ethernet, IP and UDP of the frame that it came in, turned round for the answer.
//!
//! Owns [`Envelope`]. Answers go to the MAC and IP address and the port that asked; which tap they go out of is the shell's to know.
//! Source: RFC 768, RFC 791 §3.1, RFC 8200 §3.

use std::net::IpAddr;

use etherparse::{LinkSlice, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

use super::PORT;

/// Octets of the headers of IP without options and of UDP.
const HEADERS_V4: usize = 20 + 8;
const HEADERS_V6: usize = 40 + 8;
const TTL: u8 = 64;

/// Who asked, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    mac: [u8; 6],
    service_mac: [u8; 6],
    addresses: Addresses,
    port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Addresses {
    V4 { asker: [u8; 4], service: [u8; 4] },
    V6 { asker: [u8; 16], service: [u8; 16] },
}

impl Envelope {
    /// Opens a frame that carries a DNS message in a datagram; none when it does not.
    #[must_use]
    pub fn open(frame: &[u8]) -> Option<(Self, &[u8])> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let Some(LinkSlice::Ethernet2(link)) = &packet.link else { return None };
        let addresses = match &packet.net {
            Some(NetSlice::Ipv4(ip)) => {
                Addresses::V4 { asker: ip.header().source(), service: ip.header().destination() }
            }
            Some(NetSlice::Ipv6(ip)) => {
                Addresses::V6 { asker: ip.header().source(), service: ip.header().destination() }
            }
            _ => return None,
        };
        let Some(TransportSlice::Udp(udp)) = packet.transport else { return None };
        if udp.destination_port() != PORT {
            return None;
        }
        let envelope = Self { mac: link.source(), service_mac: link.destination(), addresses, port: udp.source_port() };
        Some((envelope, udp.payload()))
    }

    /// The address that was asked.
    #[must_use]
    pub fn service(&self) -> IpAddr {
        match self.addresses {
            Addresses::V4 { service, .. } => service.into(),
            Addresses::V6 { service, .. } => service.into(),
        }
    }

    /// Octets of a message that goes back in one packet of a network with this MTU.
    #[must_use]
    pub fn room(&self, mtu: u16) -> usize {
        let headers = match self.addresses {
            Addresses::V4 { .. } => HEADERS_V4,
            Addresses::V6 { .. } => HEADERS_V6,
        };
        usize::from(mtu).saturating_sub(headers)
    }

    /// The frame that carries an answer back; none when it is longer than a packet can be.
    #[must_use]
    pub fn seal(&self, message: &[u8]) -> Option<Vec<u8>> {
        let builder = PacketBuilder::ethernet2(self.service_mac, self.mac);
        let builder = match self.addresses {
            Addresses::V4 { asker, service } => builder.ipv4(service, asker, TTL),
            Addresses::V6 { asker, service } => builder.ipv6(service, asker, TTL),
        };
        let builder = builder.udp(PORT, self.port);
        let mut frame = Vec::with_capacity(builder.size(message.len()));
        builder.write(&mut frame, message).ok()?;
        Some(frame)
    }
}

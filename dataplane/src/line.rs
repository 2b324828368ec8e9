//! The line between a port and a TCP stack of ours: packets of IP in and out, no socket of the host in between.
//!
//! Owns [`Wire`], which a stack takes for its device, and what frames and times look like on either side. Reads no clock: times count from any one
//! moment.

use std::time::Duration;

use smoltcp::phy::{self, Checksum, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

/// Octets of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// What IPv4 takes at least (RFC 791 §3.1), and networks have at most.
const MTU: (u16, u16) = (576, 9000);
/// Packets that one look may make for one port.
pub(crate) const PACKETS_MAX: usize = 64;

/// A frame for a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// The key of the port.
    pub port: u32,
    /// The frame.
    pub frame: Vec<u8>,
}

pub(crate) fn instant(now: Duration) -> Instant {
    Instant::from_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX))
}

/// One packet in, a few out.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) received: Option<Vec<u8>>,
    pub(crate) sent: Vec<Vec<u8>>,
    mtu: usize,
}

impl Wire {
    /// A line to a port on a network with this MTU.
    pub(crate) fn new(mtu: u16) -> Self {
        Self { received: None, sent: Vec::new(), mtu: usize::from(mtu.clamp(MTU.0, MTU.1)) }
    }
}

pub(crate) struct Received(Vec<u8>);

pub(crate) struct Sending<'a>(&'a mut Vec<Vec<u8>>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut packet = vec![0; length];
        let result = fill(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let packet = self.received.take()?;
        Some((Received(packet), Sending(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        (self.sent.len() < PACKETS_MAX).then_some(Sending(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // Packets of guests come over no wire: their cards leave the sums to hardware that is not there.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

//! Ports of a switch as it describes them, and what they counted.
//!
//! Owns [`Port`], [`PortMod`], [`PortStatus`] and [`PortCounters`]. Never knows what is plugged in.
//! Source: OpenFlow 1.5.1 §7.2.1, §7.3.4.3, §7.3.5.7, §7.4.4.

use super::{
    action::begin,
    buffer::{Reader, Writer, padding},
    error::{DecodeError, EncodeError},
};
use crate::flow::PortNo;

const NAME_OCTETS: usize = 16;
const ETHERNET: u16 = 0;

/// A port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// Its number.
    pub number: PortNo,
    /// Its Ethernet address.
    pub address: [u8; 6],
    /// Its name, at most 15 octets.
    pub name: String,
    /// What was set: see the constants.
    pub config: u32,
    /// What is: see the constants.
    pub state: u32,
    /// Current speed in kilobits per second; 0 when not known.
    pub speed_kbps: u32,
}

impl Port {
    /// Config bit: set down.
    pub const DOWN: u32 = 1 << 0;
    /// State bit: no link.
    pub const LINK_DOWN: u32 = 1 << 0;

    /// Whether it was not set down and has a link.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.config & Self::DOWN == 0 && self.state & Self::LINK_DOWN == 0
    }

    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        let start = to.len();
        to.u32(self.number.0);
        to.zeros(4);
        to.bytes(&self.address);
        to.zeros(2);
        to.text(&self.name, NAME_OCTETS);
        to.u32(self.config);
        to.u32(self.state);
        let at = begin(to, ETHERNET);
        to.zeros(4 + 16);
        to.u32(self.speed_kbps);
        to.zeros(4);
        to.patch_length(at + 2, at, "port property")?;
        to.patch_length(start + 4, start, "port")
    }

    pub(super) fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (number, length) = (PortNo(from.u32()?), from.u16()?);
        let mut body = from.body(length, 6, "port")?;
        body.skip(2)?;
        let address = body.mac()?;
        body.skip(2)?;
        let (name, config, state) = (body.text(NAME_OCTETS)?, body.u32()?, body.u32()?);
        let mut port = Self { number, address, name, config, state, speed_kbps: 0 };
        while !body.is_empty() {
            let (kind, length) = (body.u16()?, body.u16()?);
            let mut property = body.body(length, 4, "port property")?;
            body.skip_padding(padding(length.into()));
            if kind == ETHERNET {
                property.skip(4 + 16)?;
                port.speed_kbps = property.u32()?;
            }
        }
        Ok(port)
    }
}

/// Sets a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortMod {
    /// Its number.
    pub number: PortNo,
    /// Its Ethernet address: the switch refuses another one.
    pub address: [u8; 6],
    /// Config bits: see [`Port`].
    pub config: u32,
    /// Which config bits are set.
    pub mask: u32,
    /// Link modes to advertise; 0 leaves them.
    pub advertise: u32,
}

impl PortMod {
    pub(super) fn encode(self, to: &mut Writer) {
        to.u32(self.number.0);
        to.zeros(4);
        to.bytes(&self.address);
        to.zeros(2);
        to.u32(self.config);
        to.u32(self.mask);
        to.u16(ETHERNET);
        to.u16(8);
        to.u32(self.advertise);
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let number = PortNo(from.u32()?);
        from.skip(4)?;
        let address = from.mac()?;
        from.skip(2)?;
        let mut change = Self { number, address, config: from.u32()?, mask: from.u32()?, advertise: 0 };
        while !from.is_empty() {
            let (kind, length) = (from.u16()?, from.u16()?);
            let mut body = from.body(length, 4, "port property")?;
            from.skip_padding(padding(length.into()));
            if kind == ETHERNET {
                change.advertise = body.u32()?;
            }
        }
        Ok(change)
    }
}

/// What happened to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortChange {
    /// It is new.
    Added,
    /// It is gone.
    Deleted,
    /// Something about it changed.
    Modified,
}

const CHANGES: [PortChange; 3] = [PortChange::Added, PortChange::Deleted, PortChange::Modified];

/// A port changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortStatus {
    /// What happened.
    pub change: PortChange,
    /// The port as it is now.
    pub port: Port,
}

impl PortStatus {
    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        let number = CHANGES.iter().position(|change| *change == self.change);
        to.u8(number.and_then(|at| u8::try_from(at).ok()).unwrap_or(0));
        to.zeros(7);
        self.port.encode(to)
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let number = from.u8()?;
        let change = CHANGES.get(usize::from(number)).copied();
        let change = change.ok_or(DecodeError::BadValue { what: "port change", value: number.into() })?;
        from.skip(7)?;
        Ok(Self { change, port: Port::decode(&mut from)? })
    }
}

/// What a port counted. All ones means that the switch does not count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortCounters {
    /// The port.
    pub number: PortNo,
    /// Packets received and sent.
    pub packets: (u64, u64),
    /// Octets received and sent.
    pub octets: (u64, u64),
    /// Packets dropped on receipt and on sending.
    pub dropped: (u64, u64),
    /// Errors on receipt and on sending.
    pub errors: (u64, u64),
}

impl PortCounters {
    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        let start = to.len();
        to.zeros(4);
        to.u32(self.number.0);
        to.zeros(8);
        for (received, sent) in [self.packets, self.octets, self.dropped, self.errors] {
            to.u64(received);
            to.u64(sent);
        }
        to.patch_length(start, start, "port counters")
    }

    pub(super) fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let length = from.u16()?;
        let mut body = from.body(length, 2, "port counters")?;
        body.skip(2)?;
        let number = PortNo(body.u32()?);
        body.skip(8)?;
        let mut pair = || Ok::<_, DecodeError>((body.u64()?, body.u64()?));
        Ok(Self { number, packets: pair()?, octets: pair()?, dropped: pair()?, errors: pair()? })
    }
}

//! Making a switch forget tracked connections.
//!
//! Owns [`CtFlush`] and [`CtTuple`]. Never lists connections: OpenFlow has no message for that.
//! Source: ovs-ofctl(8) "ct-flush", and what `ovs-ofctl` 3.1 sends for it.

use std::net::{IpAddr, Ipv6Addr};

use super::{
    action::begin,
    buffer::{Reader, Writer, padding},
    error::{DecodeError, EncodeError},
};

/// One direction of a connection. What is `None` or 0 counts as any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CtTuple {
    /// Source address.
    pub source: Option<IpAddr>,
    /// Destination address; of the same family.
    pub target: Option<IpAddr>,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub target_port: u16,
    /// Identifier, type and code of an ICMP query.
    pub icmp: Option<(u16, u8, u8)>,
}

/// Forgets connections: those of a zone, those of a tuple, or those of both. Without either it forgets all.
///
/// ```
/// use openflow::wire::{self, CtFlush, CtTuple, Message};
/// let source = Some([10, 0, 0, 1].into());
/// let flush = CtFlush { zone: Some(5), proto: 6, original: Some(CtTuple { source, ..CtTuple::default() }), reply: None };
/// let message = Message::CtFlush(flush);
/// assert_eq!(wire::decode(&wire::encode(&message, 1)?)?, (1, message));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CtFlush {
    /// The zone.
    pub zone: Option<u16>,
    /// The IP protocol, which a tuple needs; 0 is any.
    pub proto: u8,
    /// The direction in which the connection was opened.
    pub original: Option<CtTuple>,
    /// The other direction.
    pub reply: Option<CtTuple>,
}

mod property {
    pub(super) const ORIGINAL: u16 = 0;
    pub(super) const REPLY: u16 = 1;
    pub(super) const ZONE: u16 = 2;
    pub(super) const SOURCE: u16 = 0;
    pub(super) const TARGET: u16 = 1;
    pub(super) const SOURCE_PORT: u16 = 2;
    pub(super) const TARGET_PORT: u16 = 3;
    pub(super) const ICMP_ID: u16 = 4;
    pub(super) const ICMP_TYPE: u16 = 5;
    pub(super) const ICMP_CODE: u16 = 6;
}

fn put_u16(to: &mut Writer, kind: u16, value: u16) {
    to.u16(kind);
    to.u16(8);
    to.u16(value);
    to.zeros(2);
}

fn put_u8(to: &mut Writer, kind: u16, value: u8) {
    to.u16(kind);
    to.u16(5);
    to.u8(value);
    to.zeros(3);
}

impl CtTuple {
    fn encode(&self, kind: u16, to: &mut Writer) -> Result<(), EncodeError> {
        let start = begin(to, kind);
        to.zeros(4);
        for (kind, address) in [(property::SOURCE, self.source), (property::TARGET, self.target)] {
            if let Some(address) = address {
                let address = match address {
                    IpAddr::V4(address) => address.to_ipv6_mapped(),
                    IpAddr::V6(address) => address,
                };
                to.u16(kind);
                to.u16(20);
                to.bytes(&address.octets());
                to.zeros(4);
            }
        }
        for (kind, port) in [(property::SOURCE_PORT, self.source_port), (property::TARGET_PORT, self.target_port)] {
            if port != 0 {
                put_u16(to, kind, port);
            }
        }
        if let Some((id, number, code)) = self.icmp {
            put_u16(to, property::ICMP_ID, id);
            put_u8(to, property::ICMP_TYPE, number);
            put_u8(to, property::ICMP_CODE, code);
        }
        to.patch_length(start + 2, start, "connection tuple")
    }

    fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let mut tuple = Self::default();
        from.skip(4)?;
        while !from.is_empty() {
            let (kind, length) = (from.u16()?, from.u16()?);
            let mut body = from.body(length, 4, "connection tuple property")?;
            from.skip_padding(padding(length.into()));
            let icmp = tuple.icmp.unwrap_or_default();
            match kind {
                property::SOURCE => tuple.source = Some(take_address(&mut body)?),
                property::TARGET => tuple.target = Some(take_address(&mut body)?),
                property::SOURCE_PORT => tuple.source_port = body.u16()?,
                property::TARGET_PORT => tuple.target_port = body.u16()?,
                property::ICMP_ID => tuple.icmp = Some((body.u16()?, icmp.1, icmp.2)),
                property::ICMP_TYPE => tuple.icmp = Some((icmp.0, body.u8()?, icmp.2)),
                property::ICMP_CODE => tuple.icmp = Some((icmp.0, icmp.1, body.u8()?)),
                other => return Err(DecodeError::BadValue { what: "connection tuple property", value: other.into() }),
            }
        }
        Ok(tuple)
    }
}

fn take_address(body: &mut Reader<'_>) -> Result<IpAddr, DecodeError> {
    let address = Ipv6Addr::from_bits(body.uint(16)?);
    Ok(address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4))
}

impl CtFlush {
    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        to.u8(self.proto);
        to.zeros(7);
        for (kind, tuple) in [(property::ORIGINAL, self.original), (property::REPLY, self.reply)] {
            if let Some(tuple) = tuple {
                tuple.encode(kind, to)?;
            }
        }
        if let Some(zone) = self.zone {
            put_u16(to, property::ZONE, zone);
        }
        Ok(())
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let mut flush = Self { proto: from.u8()?, ..Self::default() };
        from.skip(7)?;
        while !from.is_empty() {
            let (kind, length) = (from.u16()?, from.u16()?);
            let mut body = from.body(length, 4, "connection flush property")?;
            from.skip_padding(padding(length.into()));
            match kind {
                property::ORIGINAL => flush.original = Some(CtTuple::decode(body)?),
                property::REPLY => flush.reply = Some(CtTuple::decode(body)?),
                property::ZONE => flush.zone = Some(body.u16()?),
                other => return Err(DecodeError::BadValue { what: "connection flush property", value: other.into() }),
            }
        }
        Ok(flush)
    }
}

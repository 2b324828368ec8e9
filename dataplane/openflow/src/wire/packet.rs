//! Packets on their way to the controller and back.
//!
//! Owns [`PacketIn`] in both of its wire forms, [`PacketOut`] and [`Resume`]. Never looks into a packet.
//! Invariant: a continuation is handed back octet by octet.
//! Source: OpenFlow 1.5.1 §7.3.6 and §7.4.1; Nicira `NXT_PACKET_IN2` and `NXT_RESUME` as in ovs-actions(7) "pause".

use super::{
    action::{begin, put_list, take_list},
    buffer::{Reader, Writer, padding},
    error::{DecodeError, EncodeError},
    oxm,
};
use crate::flow::{Action, Field, Match, PacketInReason, PortNo};

const NO_BUFFER: u32 = 0xffff_ffff;

/// A packet that the switch sent to the controller.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketIn {
    /// The packet, perhaps only its beginning.
    pub packet: Vec<u8>,
    /// Length of the whole packet.
    pub octets_total: u32,
    /// Why it was sent.
    pub reason: PacketInReason,
    /// The table of the flow that sent it; Open vSwitch leaves it 0 for paused packets.
    pub table: u8,
    /// The cookie of the flow that sent it; Open vSwitch leaves it 0 for paused packets, which userdata can tell apart.
    pub cookie: u64,
    /// Ingress port, tunnel, registers and other metadata.
    pub metadata: Match,
    /// What the `controller` action carried.
    pub userdata: Vec<u8>,
    /// The state of a paused packet, for [`Resume`].
    pub continuation: Option<Vec<u8>>,
}

impl PacketIn {
    /// The port that the packet came in on.
    #[must_use]
    pub fn in_port(&self) -> Option<PortNo> {
        self.metadata.exact(Field::InPort).and_then(|port| u32::try_from(port).ok()).map(PortNo)
    }

    /// The message that lets a paused packet go on; `None` when it was not paused.
    #[must_use]
    pub fn resume(self) -> Option<Resume> {
        self.continuation.is_some().then_some(Resume(self))
    }

    /// Whether the standard message can say all of it.
    pub(super) fn is_standard(&self) -> bool {
        self.userdata.is_empty() && self.continuation.is_none() && self.octets_total <= u32::from(u16::MAX)
    }

    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        to.u32(NO_BUFFER);
        to.u16(u16::try_from(self.octets_total).unwrap_or(u16::MAX));
        to.u8(self.reason.0);
        to.u8(self.table);
        to.u64(self.cookie);
        oxm::put_match(to, &self.metadata)?;
        to.zeros(2);
        to.bytes(&self.packet);
        Ok(())
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        from.skip(4)?;
        let octets_total = from.u16()?.into();
        let (reason, table, cookie) = (PacketInReason(from.u8()?), from.u8()?, from.u64()?);
        let metadata = oxm::take_match(&mut from)?;
        from.skip(2)?;
        let packet = from.rest().to_vec();
        Ok(Self { packet, octets_total, reason, table, cookie, metadata, userdata: Vec::new(), continuation: None })
    }
}

/// Properties of a packet-in, by type.
mod property {
    pub(super) const PACKET: u16 = 0;
    pub(super) const OCTETS_TOTAL: u16 = 1;
    pub(super) const TABLE: u16 = 3;
    pub(super) const COOKIE: u16 = 4;
    pub(super) const REASON: u16 = 5;
    pub(super) const METADATA: u16 = 6;
    pub(super) const USERDATA: u16 = 7;
    pub(super) const CONTINUATION: u16 = 8;
}

impl PacketIn {
    pub(super) fn encode_properties(&self, to: &mut Writer) -> Result<(), EncodeError> {
        put_property(to, property::PACKET, &self.packet)?;
        put_property(to, property::OCTETS_TOTAL, &self.octets_total.to_be_bytes())?;
        put_property(to, property::TABLE, &[self.table])?;
        let mut cookie = vec![0; 4];
        cookie.extend_from_slice(&self.cookie.to_be_bytes());
        put_property(to, property::COOKIE, &cookie)?;
        put_property(to, property::REASON, &[self.reason.0])?;
        let mut metadata = Writer::default();
        oxm::put_all(&mut metadata, &self.metadata);
        put_property(to, property::METADATA, &metadata.into_octets())?;
        if !self.userdata.is_empty() {
            put_property(to, property::USERDATA, &self.userdata)?;
        }
        match &self.continuation {
            Some(continuation) => put_property(to, property::CONTINUATION, continuation),
            None => Ok(()),
        }
    }

    pub(super) fn decode_properties(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let mut packet_in = Self {
            packet: Vec::new(),
            octets_total: 0,
            reason: PacketInReason::NO_MATCH,
            table: 0,
            cookie: 0,
            metadata: Match::new(),
            userdata: Vec::new(),
            continuation: None,
        };
        let mut octets_total = None;
        while !from.is_empty() {
            let (kind, length) = (from.u16()?, from.u16()?);
            let mut body = from.body(length, 4, "packet-in property")?;
            from.skip_padding(padding(length.into()));
            match kind {
                property::PACKET => packet_in.packet = body.rest().to_vec(),
                property::OCTETS_TOTAL => octets_total = Some(body.u32()?),
                property::TABLE => packet_in.table = body.u8()?,
                property::COOKIE => {
                    body.skip(4)?;
                    packet_in.cookie = body.u64()?;
                }
                property::REASON => packet_in.reason = PacketInReason(body.u8()?),
                property::METADATA => packet_in.metadata = oxm::take_all(body)?,
                property::USERDATA => packet_in.userdata = body.rest().to_vec(),
                property::CONTINUATION => packet_in.continuation = Some(body.rest().to_vec()),
                _ => {}
            }
        }
        let length = u32::try_from(packet_in.packet.len()).unwrap_or(u32::MAX);
        packet_in.octets_total = octets_total.unwrap_or(length);
        Ok(packet_in)
    }
}

fn put_property(to: &mut Writer, kind: u16, octets: &[u8]) -> Result<(), EncodeError> {
    let start = begin(to, kind);
    to.bytes(octets);
    to.patch_length(start + 2, start, "packet-in property")?;
    to.align(start);
    Ok(())
}

/// Lets a paused packet go on, with the packet and metadata as they now are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resume(pub PacketIn);

/// A packet that the controller sends.
///
/// ```
/// use openflow::{flow::{Action, PortNo}, wire::PacketOut};
/// let reply = PacketOut::new(PortNo::CONTROLLER, vec![Action::output(PortNo(3))], vec![0; 60]);
/// assert_eq!(reply.in_port(), Some(PortNo::CONTROLLER));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketOut {
    /// The port that it counts as having come in on, and other metadata.
    pub metadata: Match,
    /// What to do with it; `Action::Output(PortNo::TABLE)` or a resubmit runs it through the flows.
    pub actions: Vec<Action>,
    /// The packet.
    pub packet: Vec<u8>,
}

impl PacketOut {
    /// A packet with an ingress port.
    #[must_use]
    pub fn new(in_port: PortNo, actions: Vec<Action>, packet: Vec<u8>) -> Self {
        Self { metadata: Match::new().in_port(in_port), actions, packet }
    }

    /// The port that it counts as having come in on.
    #[must_use]
    pub fn in_port(&self) -> Option<PortNo> {
        self.metadata.exact(Field::InPort).and_then(|port| u32::try_from(port).ok()).map(PortNo)
    }

    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        to.u32(NO_BUFFER);
        let at = to.len();
        to.zeros(4);
        oxm::put_match(to, &self.metadata)?;
        let start = to.len();
        put_list(to, &self.actions)?;
        to.patch_length(at, start, "packet-out actions")?;
        to.bytes(&self.packet);
        Ok(())
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        from.skip(4)?;
        let length = from.u16()?;
        from.skip(2)?;
        let metadata = oxm::take_match(&mut from)?;
        let actions = take_list(from.sub(length.into(), "packet-out actions")?, 0)?;
        Ok(Self { metadata, actions, packet: from.rest().to_vec() })
    }
}

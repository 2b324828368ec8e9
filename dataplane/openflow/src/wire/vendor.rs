//! Messages that Nicira added, as Open vSwitch speaks them inside OpenFlow 1.5.
//!
//! Owns their numbers, and hands their bodies to the module of each. Never keeps state.
//! Source: what `ovs-ofctl` 3.1 sends and prints; ovs-actions(7), ovs-fields(7).

use super::{
    Message,
    buffer::{Reader, Writer},
    conntrack::CtFlush,
    error::{DecodeError, EncodeError},
    nicira::NICIRA,
    packet::{PacketIn, Resume},
    tlv_table::{TlvTable, TlvTableMod},
};

const SET_PACKET_IN_FORMAT: u32 = 16;
const SET_CONTROLLER_ID: u32 = 20;
const TLV_TABLE_MOD: u32 = 24;
const TLV_TABLE_REQUEST: u32 = 25;
const TLV_TABLE_REPLY: u32 = 26;
const RESUME: u32 = 28;
const CT_FLUSH_ZONE: u32 = 29;
const PACKET_IN2: u32 = 30;
const CT_FLUSH: u32 = 32;

/// How packet-ins come: the extended form carries userdata and continuations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PacketInFormat {
    /// The standard message.
    Standard,
    /// Nicira's extended message, version 2.
    Extended,
}

/// Writes the body of a message that Nicira added.
pub(super) fn put(to: &mut Writer, message: &Message) -> Result<(), EncodeError> {
    let mut begin = |subtype: u32| {
        to.u32(NICIRA);
        to.u32(subtype);
    };
    match message {
        Message::PacketIn(packet_in) => {
            begin(PACKET_IN2);
            packet_in.encode_properties(to)?;
        }
        Message::Resume(Resume(packet_in)) => {
            begin(RESUME);
            packet_in.encode_properties(to)?;
        }
        Message::SetPacketInFormat(format) => {
            begin(SET_PACKET_IN_FORMAT);
            to.u32(if *format == PacketInFormat::Extended { 2 } else { 0 });
        }
        Message::SetControllerId(id) => {
            begin(SET_CONTROLLER_ID);
            to.zeros(6);
            to.u16(*id);
        }
        Message::TlvTableMod(change) => {
            begin(TLV_TABLE_MOD);
            change.encode(to);
        }
        Message::TlvTableReply(table) => {
            begin(TLV_TABLE_REPLY);
            table.encode(to);
        }
        Message::CtFlushZone(zone) => {
            begin(CT_FLUSH_ZONE);
            to.zeros(6);
            to.u16(*zone);
        }
        Message::CtFlush(flush) => {
            begin(CT_FLUSH);
            flush.encode(to)?;
        }
        // The caller hands on only what Nicira added, of which one is left.
        _ => begin(TLV_TABLE_REQUEST),
    }
    Ok(())
}

/// Reads the body of an experimenter's message; `None` when it is not known.
pub(super) fn take(mut from: Reader<'_>) -> Result<Option<Message>, DecodeError> {
    if from.u32()? != NICIRA {
        return Ok(None);
    }
    Ok(Some(match from.u32()? {
        PACKET_IN2 => Message::PacketIn(PacketIn::decode_properties(from)?),
        RESUME => Message::Resume(Resume(PacketIn::decode_properties(from)?)),
        SET_PACKET_IN_FORMAT => Message::SetPacketInFormat(match from.u32()? {
            0 => PacketInFormat::Standard,
            2 => PacketInFormat::Extended,
            other => return Err(DecodeError::BadValue { what: "packet-in format", value: other.into() }),
        }),
        SET_CONTROLLER_ID => {
            from.skip(6)?;
            Message::SetControllerId(from.u16()?)
        }
        TLV_TABLE_MOD => Message::TlvTableMod(TlvTableMod::decode(from)?),
        TLV_TABLE_REQUEST => Message::TlvTableRequest,
        TLV_TABLE_REPLY => Message::TlvTableReply(TlvTable::decode(from)?),
        CT_FLUSH_ZONE => {
            from.skip(6)?;
            Message::CtFlushZone(from.u16()?)
        }
        CT_FLUSH => Message::CtFlush(CtFlush::decode(from)?),
        _ => return Ok(None),
    }))
}

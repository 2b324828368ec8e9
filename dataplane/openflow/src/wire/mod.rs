//! Messages of OpenFlow 1.5 and their octets.
//!
//! Owns [`Message`], [`encode`], [`decode`] and the header. Never waits, connects or remembers: that is the session's.
//! Invariant: any octets give a message or a [`DecodeError`], never a panic, and no more memory than a small multiple of their
//! number; what was encoded decodes to the same value.
//! Source: OpenFlow 1.5.1 §7; Nicira extensions as Open vSwitch 3.1 speaks them.

mod action;
mod buffer;
mod bundle;
mod control;
mod error;
mod flow_mod;
mod group_mod;
mod learn;
mod multipart;
mod nicira;
mod oxm;
mod packet;
mod port;
mod stats;

use buffer::{Reader, Writer};
pub use bundle::{BundleAdd, BundleControl, BundleFlags, BundleStep};
pub use control::{AsyncConfig, Features, Hello, Role, RoleKind, SwitchConfig, VERSION};
pub use error::{DecodeError, EncodeError, SwitchError};
pub use flow_mod::{FlowCommand, FlowMod, FlowRemoved, GROUP_ANY, RemovedReason, TABLE_ALL};
pub use group_mod::{GROUP_ALL, GroupMod, METER_ALL, Meter, MeterMod, MeterUnit};
pub use multipart::{
    Description, FlowFilter, FlowStats, GroupCounters, MultipartReply, MultipartRequest, TableCounters,
};
use nicira::NICIRA;
pub use packet::{PacketIn, PacketOut, Resume};
pub use port::{Port, PortChange, PortCounters, PortStatus};
pub use stats::FlowCounters;

/// Octets of the header that every message begins with.
pub const HEADER_OCTETS: usize = 8;

/// Message types.
mod kind {
    pub(super) const HELLO: u8 = 0;
    pub(super) const ERROR: u8 = 1;
    pub(super) const ECHO_REQUEST: u8 = 2;
    pub(super) const ECHO_REPLY: u8 = 3;
    pub(super) const EXPERIMENTER: u8 = 4;
    pub(super) const FEATURES_REQUEST: u8 = 5;
    pub(super) const FEATURES_REPLY: u8 = 6;
    pub(super) const GET_CONFIG_REQUEST: u8 = 7;
    pub(super) const GET_CONFIG_REPLY: u8 = 8;
    pub(super) const SET_CONFIG: u8 = 9;
    pub(super) const PACKET_IN: u8 = 10;
    pub(super) const FLOW_REMOVED: u8 = 11;
    pub(super) const PORT_STATUS: u8 = 12;
    pub(super) const PACKET_OUT: u8 = 13;
    pub(super) const FLOW_MOD: u8 = 14;
    pub(super) const GROUP_MOD: u8 = 15;
    pub(super) const MULTIPART_REQUEST: u8 = 18;
    pub(super) const MULTIPART_REPLY: u8 = 19;
    pub(super) const BARRIER_REQUEST: u8 = 20;
    pub(super) const BARRIER_REPLY: u8 = 21;
    pub(super) const ROLE_REQUEST: u8 = 24;
    pub(super) const ROLE_REPLY: u8 = 25;
    pub(super) const GET_ASYNC_REQUEST: u8 = 26;
    pub(super) const GET_ASYNC_REPLY: u8 = 27;
    pub(super) const SET_ASYNC: u8 = 28;
    pub(super) const METER_MOD: u8 = 29;
    pub(super) const BUNDLE_CONTROL: u8 = 33;
    pub(super) const BUNDLE_ADD: u8 = 34;
}

/// Nicira message subtypes.
mod subtype {
    pub(super) const SET_PACKET_IN_FORMAT: u32 = 16;
    pub(super) const SET_CONTROLLER_ID: u32 = 20;
    pub(super) const RESUME: u32 = 28;
    pub(super) const PACKET_IN2: u32 = 30;
}

/// The number that ties an answer to its question.
pub type Xid = u32;

/// How packet-ins come: the extended form carries userdata and continuations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PacketInFormat {
    /// The standard message.
    Standard,
    /// Nicira's extended message, version 2.
    Extended,
}

/// A message in either direction.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Message {
    /// First message of each side.
    Hello(Hello),
    /// The other side refused something.
    Error(SwitchError),
    /// Asks whether the other side lives.
    EchoRequest(Vec<u8>),
    /// It does.
    EchoReply(Vec<u8>),
    /// Asks what the switch is.
    FeaturesRequest,
    /// What it is.
    FeaturesReply(Features),
    /// Asks for the configuration.
    GetConfigRequest,
    /// The configuration.
    GetConfigReply(SwitchConfig),
    /// Sets the configuration.
    SetConfig(SwitchConfig),
    /// A packet for the controller, in either form.
    PacketIn(PacketIn),
    /// A flow went.
    FlowRemoved(FlowRemoved),
    /// A port changed.
    PortStatus(PortStatus),
    /// A packet from the controller.
    PacketOut(PacketOut),
    /// Lets a paused packet go on.
    Resume(Resume),
    /// Changes flows.
    FlowMod(FlowMod),
    /// Changes groups.
    GroupMod(GroupMod),
    /// Changes meters.
    MeterMod(MeterMod),
    /// A question with an answer in parts.
    MultipartRequest(MultipartRequest),
    /// A part of the answer.
    MultipartReply {
        /// The part.
        reply: MultipartReply,
        /// Whether another one follows.
        more: bool,
    },
    /// Asks for an answer once all before it is done.
    BarrierRequest,
    /// All before it is done.
    BarrierReply,
    /// Asks for a role.
    RoleRequest(Role),
    /// The role.
    RoleReply(Role),
    /// Asks which asynchronous messages come.
    GetAsyncRequest,
    /// Which do.
    GetAsyncReply(AsyncConfig),
    /// Sets which come.
    SetAsync(AsyncConfig),
    /// A step in the life of a bundle.
    BundleControl(BundleControl),
    /// A message for a bundle.
    BundleAdd(BundleAdd),
    /// Chooses how packet-ins come.
    SetPacketInFormat(PacketInFormat),
    /// Says which `controller` actions this connection answers to.
    SetControllerId(u16),
    /// Something else, as octets.
    Unknown {
        /// The message type.
        kind: u8,
        /// Its body.
        body: Vec<u8>,
    },
}

impl Message {
    fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => kind::HELLO,
            Self::Error(_) => kind::ERROR,
            Self::EchoRequest(_) => kind::ECHO_REQUEST,
            Self::EchoReply(_) => kind::ECHO_REPLY,
            Self::FeaturesRequest => kind::FEATURES_REQUEST,
            Self::FeaturesReply(_) => kind::FEATURES_REPLY,
            Self::GetConfigRequest => kind::GET_CONFIG_REQUEST,
            Self::GetConfigReply(_) => kind::GET_CONFIG_REPLY,
            Self::SetConfig(_) => kind::SET_CONFIG,
            Self::PacketIn(packet_in) if packet_in.is_standard() => kind::PACKET_IN,
            Self::PacketIn(_) | Self::Resume(_) | Self::SetPacketInFormat(_) | Self::SetControllerId(_) => {
                kind::EXPERIMENTER
            }
            Self::FlowRemoved(_) => kind::FLOW_REMOVED,
            Self::PortStatus(_) => kind::PORT_STATUS,
            Self::PacketOut(_) => kind::PACKET_OUT,
            Self::FlowMod(_) => kind::FLOW_MOD,
            Self::GroupMod(_) => kind::GROUP_MOD,
            Self::MeterMod(_) => kind::METER_MOD,
            Self::MultipartRequest(_) => kind::MULTIPART_REQUEST,
            Self::MultipartReply { .. } => kind::MULTIPART_REPLY,
            Self::BarrierRequest => kind::BARRIER_REQUEST,
            Self::BarrierReply => kind::BARRIER_REPLY,
            Self::RoleRequest(_) => kind::ROLE_REQUEST,
            Self::RoleReply(_) => kind::ROLE_REPLY,
            Self::GetAsyncRequest => kind::GET_ASYNC_REQUEST,
            Self::GetAsyncReply(_) => kind::GET_ASYNC_REPLY,
            Self::SetAsync(_) => kind::SET_ASYNC,
            Self::BundleControl(_) => kind::BUNDLE_CONTROL,
            Self::BundleAdd(_) => kind::BUNDLE_ADD,
            Self::Unknown { kind, .. } => *kind,
        }
    }
}

/// The octets of a message.
///
/// ```
/// use openflow::wire::{self, Message};
/// let octets = wire::encode(&Message::BarrierRequest, 7)?;
/// assert_eq!(octets, [6, 20, 0, 8, 0, 0, 0, 7]);
/// assert_eq!(wire::decode(&octets)?, (7, Message::BarrierRequest));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When a flow or group does not pass its check, or a length does not fit its field.
pub fn encode(message: &Message, xid: Xid) -> Result<Vec<u8>, EncodeError> {
    let mut to = Writer::default();
    put_message(&mut to, message, xid)?;
    Ok(to.into_octets())
}

fn put_message(to: &mut Writer, message: &Message, xid: Xid) -> Result<(), EncodeError> {
    let start = to.len();
    to.u8(VERSION);
    to.u8(message.kind());
    to.u16(0);
    to.u32(xid);
    put_body(to, message, xid)?;
    to.patch_length(start + 2, start, "message")
}

fn put_body(to: &mut Writer, message: &Message, xid: Xid) -> Result<(), EncodeError> {
    match message {
        Message::Hello(hello) => hello.encode(to),
        Message::Error(error) => error.encode(to),
        Message::EchoRequest(octets) | Message::EchoReply(octets) | Message::Unknown { body: octets, .. } => {
            to.bytes(octets);
        }
        Message::FeaturesReply(features) => features.encode(to),
        Message::GetConfigReply(config) | Message::SetConfig(config) => config.encode(to),
        Message::PacketIn(packet_in) if packet_in.is_standard() => packet_in.encode(to)?,
        Message::PacketIn(packet_in) => {
            put_vendor(to, subtype::PACKET_IN2);
            packet_in.encode_properties(to)?;
        }
        Message::Resume(Resume(packet_in)) => {
            put_vendor(to, subtype::RESUME);
            packet_in.encode_properties(to)?;
        }
        Message::FlowRemoved(removed) => removed.encode(to)?,
        Message::PortStatus(status) => status.encode(to)?,
        Message::PacketOut(packet_out) => packet_out.encode(to)?,
        Message::FlowMod(change) => change.encode(to)?,
        Message::GroupMod(change) => change.encode(to)?,
        Message::MeterMod(change) => change.encode(to),
        Message::MultipartRequest(request) => request.encode(to)?,
        Message::MultipartReply { reply, more } => reply.encode(*more, to)?,
        Message::RoleRequest(role) | Message::RoleReply(role) => role.encode(to),
        Message::GetAsyncReply(config) | Message::SetAsync(config) => config.encode(to)?,
        Message::BundleControl(control) => control.encode(to),
        Message::BundleAdd(add) => add.encode(to, xid)?,
        Message::SetPacketInFormat(format) => {
            put_vendor(to, subtype::SET_PACKET_IN_FORMAT);
            to.u32(if *format == PacketInFormat::Extended { 2 } else { 0 });
        }
        Message::SetControllerId(id) => {
            put_vendor(to, subtype::SET_CONTROLLER_ID);
            to.zeros(6);
            to.u16(*id);
        }
        Message::FeaturesRequest
        | Message::GetConfigRequest
        | Message::BarrierRequest
        | Message::BarrierReply
        | Message::GetAsyncRequest => {}
    }
    Ok(())
}

fn put_vendor(to: &mut Writer, subtype: u32) {
    to.u32(NICIRA);
    to.u32(subtype);
}

/// How long the message that begins with these octets is; `None` while too few octets are there to tell.
///
/// # Errors
/// When the length it says is less than a header.
pub fn message_length(octets: &[u8]) -> Result<Option<usize>, DecodeError> {
    let [_, _, high, low, ..] = octets else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if length < HEADER_OCTETS {
        return Err(DecodeError::BadLength { what: "message", length });
    }
    Ok(Some(length))
}

/// The message that exactly these octets hold.
///
/// # Errors
/// Names what is wrong with the octets.
pub fn decode(octets: &[u8]) -> Result<(Xid, Message), DecodeError> {
    let mut from = Reader::new(octets, "message");
    let (version, number, length, xid) = (from.u8()?, from.u8()?, from.u16()?, from.u32()?);
    if usize::from(length) != octets.len() {
        return Err(DecodeError::BadLength { what: "message", length: length.into() });
    }
    // Before the versions are agreed on, hello and its refusal may come in any of them.
    if version != VERSION && !matches!(number, kind::HELLO | kind::ERROR) {
        return Err(DecodeError::Version { version });
    }
    Ok((xid, take_body(version, number, from)?))
}

fn take_body(version: u8, number: u8, mut from: Reader<'_>) -> Result<Message, DecodeError> {
    Ok(match number {
        kind::HELLO => Message::Hello(Hello::decode(version, from)?),
        kind::ERROR => Message::Error(SwitchError::decode(from)?),
        kind::ECHO_REQUEST => Message::EchoRequest(from.rest().to_vec()),
        kind::ECHO_REPLY => Message::EchoReply(from.rest().to_vec()),
        kind::FEATURES_REQUEST => Message::FeaturesRequest,
        kind::FEATURES_REPLY => Message::FeaturesReply(Features::decode(from)?),
        kind::GET_CONFIG_REQUEST => Message::GetConfigRequest,
        kind::GET_CONFIG_REPLY => Message::GetConfigReply(SwitchConfig::decode(from)?),
        kind::SET_CONFIG => Message::SetConfig(SwitchConfig::decode(from)?),
        kind::PACKET_IN => Message::PacketIn(PacketIn::decode(from)?),
        kind::FLOW_REMOVED => Message::FlowRemoved(FlowRemoved::decode(from)?),
        kind::PORT_STATUS => Message::PortStatus(PortStatus::decode(from)?),
        kind::PACKET_OUT => Message::PacketOut(PacketOut::decode(from)?),
        kind::FLOW_MOD => Message::FlowMod(FlowMod::decode(from)?),
        kind::GROUP_MOD => Message::GroupMod(GroupMod::decode(from)?),
        kind::METER_MOD => Message::MeterMod(MeterMod::decode(from)?),
        kind::MULTIPART_REQUEST => Message::MultipartRequest(MultipartRequest::decode(from)?),
        kind::MULTIPART_REPLY => {
            let (reply, more) = MultipartReply::decode(from)?;
            Message::MultipartReply { reply, more }
        }
        kind::BARRIER_REQUEST => Message::BarrierRequest,
        kind::BARRIER_REPLY => Message::BarrierReply,
        kind::ROLE_REQUEST => Message::RoleRequest(Role::decode(from)?),
        kind::ROLE_REPLY => Message::RoleReply(Role::decode(from)?),
        kind::GET_ASYNC_REQUEST => Message::GetAsyncRequest,
        kind::GET_ASYNC_REPLY => Message::GetAsyncReply(AsyncConfig::decode(from)?),
        kind::SET_ASYNC => Message::SetAsync(AsyncConfig::decode(from)?),
        kind::BUNDLE_CONTROL => Message::BundleControl(BundleControl::decode(from)?),
        kind::BUNDLE_ADD => Message::BundleAdd(BundleAdd::decode(from)?),
        kind::EXPERIMENTER => {
            let body = from.rest();
            let vendor = (from.u32()?, from.u32()?);
            match vendor {
                (NICIRA, subtype::PACKET_IN2) => Message::PacketIn(PacketIn::decode_properties(from)?),
                (NICIRA, subtype::RESUME) => Message::Resume(Resume(PacketIn::decode_properties(from)?)),
                (NICIRA, subtype::SET_PACKET_IN_FORMAT) => Message::SetPacketInFormat(match from.u32()? {
                    0 => PacketInFormat::Standard,
                    2 => PacketInFormat::Extended,
                    other => return Err(DecodeError::BadValue { what: "packet-in format", value: other.into() }),
                }),
                (NICIRA, subtype::SET_CONTROLLER_ID) => {
                    from.skip(6)?;
                    Message::SetControllerId(from.u16()?)
                }
                _ => Message::Unknown { kind: number, body: body.to_vec() },
            }
        }
        kind => Message::Unknown { kind, body: from.rest().to_vec() },
    })
}

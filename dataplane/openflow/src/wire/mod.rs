//! Messages of OpenFlow 1.5 and their octets.
//!
//! Owns [`Message`], [`encode`], [`decode`] and the header. Never waits, connects or remembers: that is the session's.
//! Invariant: any octets give a message or a [`DecodeError`], never a panic, and no more memory than a small multiple of their
//! number; what was encoded decodes to the same value.
//! Source: OpenFlow 1.5.1 §7; Nicira extensions as Open vSwitch 3.1 speaks them.

mod action;
mod buffer;
mod bundle;
mod conntrack;
mod control;
mod error;
mod flow_mod;
mod flow_stats;
mod group_mod;
mod group_stats;
mod learn;
mod meter;
mod monitor;
mod multipart;
mod nicira;
mod oxm;
mod packet;
mod port;
mod queue;
mod stats;
mod table;
mod tlv_table;
mod vendor;

use buffer::{Reader, Writer};
pub use bundle::{BundleAdd, BundleControl, BundleFlags, BundleStep};
pub use conntrack::{CtFlush, CtTuple};
pub use control::{AsyncConfig, Features, Hello, Role, RoleKind, RoleStatus, SwitchConfig, VERSION};
pub use error::{DecodeError, EncodeError, SwitchError};
pub use flow_mod::{FlowCommand, FlowMod, FlowRemoved, GROUP_ANY, RemovedReason, TABLE_ALL};
pub use flow_stats::{FlowFilter, FlowStats};
pub use group_mod::{BucketPlace, GROUP_ALL, GroupMod};
pub use group_stats::{GroupCounters, GroupFeatures};
pub use meter::{METER_ALL, MeterCounters, MeterFeatures, MeterMod};
pub use monitor::{FlowMonitor, FlowUpdate, MonitorCommand, MonitorFlags, WatchedFlow};
pub use multipart::{Description, MultipartReply, MultipartRequest};
pub use packet::{PacketIn, PacketOut, Resume};
pub use port::{Port, PortChange, PortCounters, PortMod, PortStatus};
pub use queue::{QUEUE_ALL, Queue, QueueCounters, QueueFilter};
pub use stats::FlowCounters;
pub use table::{Table, TableCounters, TableFeatures, TableMod, TableStatus, Vacancy};
pub use tlv_table::{TlvMap, TlvTable, TlvTableMod};
pub use vendor::PacketInFormat;

pub use crate::flow::{Meter, MeterUnit};

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
    pub(super) const PORT_MOD: u8 = 16;
    pub(super) const TABLE_MOD: u8 = 17;
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
    pub(super) const ROLE_STATUS: u8 = 30;
    pub(super) const TABLE_STATUS: u8 = 31;
    pub(super) const REQUEST_FORWARD: u8 = 32;
    pub(super) const BUNDLE_CONTROL: u8 = 33;
    pub(super) const BUNDLE_ADD: u8 = 34;
}

/// Room for most messages: one flow takes 100 to 300 octets.
const MESSAGE_OCTETS_USUAL: usize = 256;

/// The number that ties an answer to its question.
pub type Xid = u32;

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
    /// Sets a port.
    PortMod(PortMod),
    /// Sets a table.
    TableMod(TableMod),
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
    /// The switch changed the role.
    RoleStatus(RoleStatus),
    /// A table fills up, or has room again.
    TableStatus(TableStatus),
    /// A change of groups or meters that another controller made.
    RequestForward(Box<Message>),
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
    /// Changes the map of tunnel options.
    TlvTableMod(TlvTableMod),
    /// Asks for the map of tunnel options.
    TlvTableRequest,
    /// The map of tunnel options.
    TlvTableReply(TlvTable),
    /// Forgets the tracked connections of a zone.
    CtFlushZone(u16),
    /// Forgets tracked connections.
    CtFlush(CtFlush),
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
            Self::PacketIn(_)
            | Self::Resume(_)
            | Self::SetPacketInFormat(_)
            | Self::SetControllerId(_)
            | Self::TlvTableMod(_)
            | Self::TlvTableRequest
            | Self::TlvTableReply(_)
            | Self::CtFlushZone(_)
            | Self::CtFlush(_) => kind::EXPERIMENTER,
            Self::FlowRemoved(_) => kind::FLOW_REMOVED,
            Self::PortStatus(_) => kind::PORT_STATUS,
            Self::PacketOut(_) => kind::PACKET_OUT,
            Self::FlowMod(_) => kind::FLOW_MOD,
            Self::GroupMod(_) => kind::GROUP_MOD,
            Self::MeterMod(_) => kind::METER_MOD,
            Self::PortMod(_) => kind::PORT_MOD,
            Self::TableMod(_) => kind::TABLE_MOD,
            Self::MultipartRequest(_) => kind::MULTIPART_REQUEST,
            Self::MultipartReply { .. } => kind::MULTIPART_REPLY,
            Self::BarrierRequest => kind::BARRIER_REQUEST,
            Self::BarrierReply => kind::BARRIER_REPLY,
            Self::RoleRequest(_) => kind::ROLE_REQUEST,
            Self::RoleReply(_) => kind::ROLE_REPLY,
            Self::RoleStatus(_) => kind::ROLE_STATUS,
            Self::TableStatus(_) => kind::TABLE_STATUS,
            Self::RequestForward(_) => kind::REQUEST_FORWARD,
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
    let mut to = Writer::with_capacity(MESSAGE_OCTETS_USUAL);
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
        Message::PortMod(change) => change.encode(to),
        Message::TableMod(change) => change.encode(to),
        Message::RoleStatus(status) => status.encode(to),
        Message::TableStatus(status) => status.encode(to)?,
        Message::RequestForward(change) => put_message(to, change, xid)?,
        Message::PacketIn(_)
        | Message::Resume(_)
        | Message::SetPacketInFormat(_)
        | Message::SetControllerId(_)
        | Message::TlvTableMod(_)
        | Message::TlvTableRequest
        | Message::TlvTableReply(_)
        | Message::CtFlushZone(_)
        | Message::CtFlush(_) => vendor::put(to, message)?,
        Message::FeaturesRequest
        | Message::GetConfigRequest
        | Message::BarrierRequest
        | Message::BarrierReply
        | Message::GetAsyncRequest => {}
    }
    Ok(())
}

/// How long the message that begins with these octets is; `None` while too few octets are there to tell.
///
/// # Errors
/// When the length it says is less than a header, or its version is not ours: what follows is not worth waiting for.
pub fn message_length(octets: &[u8]) -> Result<Option<usize>, DecodeError> {
    let [version, number, high, low, ..] = octets else { return Ok(None) };
    check_version(*version, *number)?;
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if length < HEADER_OCTETS {
        return Err(DecodeError::BadLength { what: "message", length });
    }
    Ok(Some(length))
}

/// Before the versions are agreed on, hello and its refusal may come in any of them.
fn check_version(version: u8, number: u8) -> Result<(), DecodeError> {
    if version != VERSION && !matches!(number, kind::HELLO | kind::ERROR) {
        return Err(DecodeError::Version { version });
    }
    Ok(())
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
    check_version(version, number)?;
    Ok((xid, take_body(version, number, from)?))
}

fn take_body(version: u8, number: u8, from: Reader<'_>) -> Result<Message, DecodeError> {
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
        kind::PORT_MOD => Message::PortMod(PortMod::decode(from)?),
        kind::TABLE_MOD => Message::TableMod(TableMod::decode(from)?),
        kind::ROLE_STATUS => Message::RoleStatus(RoleStatus::decode(from)?),
        kind::TABLE_STATUS => Message::TableStatus(TableStatus::decode(from)?),
        kind::REQUEST_FORWARD => {
            let inner = from.rest();
            if !matches!(inner.get(1), Some(&(kind::GROUP_MOD | kind::METER_MOD))) {
                let value = inner.get(1).copied().unwrap_or(0).into();
                return Err(DecodeError::BadValue { what: "type of a forwarded request", value });
            }
            Message::RequestForward(Box::new(decode(inner)?.1))
        }
        kind::EXPERIMENTER => match vendor::take(from)? {
            Some(known) => known,
            None => Message::Unknown { kind: number, body: from.rest().to_vec() },
        },
        kind => Message::Unknown { kind, body: from.rest().to_vec() },
    })
}

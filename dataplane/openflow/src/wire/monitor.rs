//! Watching flows: being told of each change that somebody makes.
//!
//! Owns [`FlowMonitor`] and [`FlowUpdate`]. Never keeps a copy of the flows.
//! Source: OpenFlow 1.5.1 §7.3.5.20.

use super::{
    action::{put_instructions, take_instructions},
    buffer::{Reader, Writer},
    error::{DecodeError, EncodeError},
    flow_mod::{GROUP_ANY, RemovedReason, TABLE_ALL},
    oxm,
};
use crate::flow::{Action, FlowKey, Match, PortNo};

bitflags::bitflags! {
    /// What a monitor tells.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
    pub struct MonitorFlags: u16 {
        /// The flows that are there when it begins.
        const INITIAL = 1 << 0;
        /// Flows that come.
        const ADD = 1 << 1;
        /// Flows that go.
        const REMOVED = 1 << 2;
        /// Flows that change.
        const MODIFY = 1 << 3;
        /// Their actions too.
        const INSTRUCTIONS = 1 << 4;
        /// This connection's own changes in full, not abbreviated. Open vSwitch 3.1 refuses it, with an error that names no request.
        const NO_ABBREV = 1 << 5;
        /// Only this connection's own changes.
        const ONLY_OWN = 1 << 6;
    }
}

/// What becomes of a monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MonitorCommand {
    /// It begins.
    Add,
    /// It watches something else.
    Modify,
    /// It ends.
    Delete,
}

const COMMANDS: [MonitorCommand; 3] = [MonitorCommand::Add, MonitorCommand::Modify, MonitorCommand::Delete];

/// Asks to be told of changes to flows.
///
/// ```
/// use openflow::wire::{FlowMonitor, MonitorFlags};
/// let all = FlowMonitor::new(1);
/// assert!(all.flags.contains(MonitorFlags::INITIAL | MonitorFlags::INSTRUCTIONS));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowMonitor {
    /// Its number, chosen by the controller.
    pub id: u32,
    /// What becomes of it.
    pub command: MonitorCommand,
    /// What it tells.
    pub flags: MonitorFlags,
    /// The table; [`TABLE_ALL`] is every one.
    pub table: u8,
    /// Only flows that output here; `ANY` is any.
    pub out_port: PortNo,
    /// Only flows that use this group; [`GROUP_ANY`] is any.
    pub out_group: u32,
    /// Only flows that this covers.
    pub matching: Match,
}

impl FlowMonitor {
    /// Begins to watch every flow: those that are there, and every change, with actions. This connection's own changes come
    /// abbreviated, as [`FlowUpdate::Own`].
    #[must_use]
    pub fn new(id: u32) -> Self {
        Self {
            id,
            command: MonitorCommand::Add,
            flags: MonitorFlags::all() - MonitorFlags::ONLY_OWN - MonitorFlags::NO_ABBREV,
            table: TABLE_ALL,
            out_port: PortNo::ANY,
            out_group: GROUP_ANY,
            matching: Match::new(),
        }
    }

    /// Ends a monitor.
    #[must_use]
    pub fn delete(id: u32) -> Self {
        Self { command: MonitorCommand::Delete, ..Self::new(id) }
    }

    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        to.u32(self.id);
        to.u32(self.out_port.0);
        to.u32(self.out_group);
        to.u16(self.flags.bits());
        to.u8(self.table);
        let number = COMMANDS.iter().position(|command| *command == self.command);
        to.u8(number.and_then(|at| u8::try_from(at).ok()).unwrap_or(0));
        oxm::put_match(to, &self.matching)
    }

    pub(super) fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (id, out_port, out_group) = (from.u32()?, PortNo(from.u32()?), from.u32()?);
        let flags = MonitorFlags::from_bits_truncate(from.u16()?);
        let (table, number) = (from.u8()?, from.u8()?);
        let command = COMMANDS.get(usize::from(number)).copied();
        let command = command.ok_or(DecodeError::BadValue { what: "flow monitor command", value: number.into() })?;
        let matching = oxm::take_match(from)?;
        Ok(Self { id, command, flags, table, out_port, out_group, matching })
    }
}

/// A flow as a monitor tells of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchedFlow {
    /// Which flow.
    pub key: FlowKey,
    /// Its cookie.
    pub cookie: u64,
    /// Its idle timeout in seconds.
    pub idle_timeout: u16,
    /// Its hard timeout in seconds.
    pub hard_timeout: u16,
    /// What it does, where the monitor asked for that.
    pub actions: Vec<Action>,
}

/// What happened to a flow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowUpdate {
    /// It was there when the monitor began.
    Initial(WatchedFlow),
    /// It came.
    Added(WatchedFlow),
    /// It went.
    Removed(WatchedFlow, RemovedReason),
    /// It changed.
    Modified(WatchedFlow),
    /// What this connection's own message of this transaction id said was done.
    Own(u32),
    /// Too much happens: nothing is told until [`Resumed`](Self::Resumed).
    Paused,
    /// All that happened since [`Paused`](Self::Paused) has been told.
    Resumed,
}

const INITIAL: u16 = 0;
const ADDED: u16 = 1;
const REMOVED: u16 = 2;
const MODIFIED: u16 = 3;
const OWN: u16 = 4;
const PAUSED: u16 = 5;
const RESUMED: u16 = 6;

impl FlowUpdate {
    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        let start = to.len();
        to.zeros(2);
        let (event, flow, reason) = match self {
            Self::Initial(flow) => (INITIAL, flow, 0),
            Self::Added(flow) => (ADDED, flow, 0),
            Self::Removed(flow, reason) => (REMOVED, flow, reason.0),
            Self::Modified(flow) => (MODIFIED, flow, 0),
            Self::Own(xid) => {
                to.u16(OWN);
                to.u32(*xid);
                return to.patch_length(start, start, "flow update");
            }
            Self::Paused | Self::Resumed => {
                to.u16(if *self == Self::Paused { PAUSED } else { RESUMED });
                to.zeros(4);
                return to.patch_length(start, start, "flow update");
            }
        };
        to.u16(event);
        to.u8(flow.key.table);
        to.u8(reason);
        to.u16(flow.idle_timeout);
        to.u16(flow.hard_timeout);
        to.u16(flow.key.priority);
        to.zeros(4);
        to.u64(flow.cookie);
        oxm::put_match(to, &flow.key.matching)?;
        put_instructions(to, &flow.actions)?;
        to.patch_length(start, start, "flow update")
    }

    pub(super) fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (length, event) = (from.u16()?, from.u16()?);
        let mut body = from.body(length, 4, "flow update")?;
        match event {
            OWN => return Ok(Self::Own(body.u32()?)),
            PAUSED => return Ok(Self::Paused),
            RESUMED => return Ok(Self::Resumed),
            INITIAL | ADDED | REMOVED | MODIFIED => {}
            other => return Err(DecodeError::BadValue { what: "flow update event", value: other.into() }),
        }
        let (table, reason) = (body.u8()?, RemovedReason(body.u8()?));
        let (idle_timeout, hard_timeout, priority) = (body.u16()?, body.u16()?, body.u16()?);
        body.skip(4)?;
        let cookie = body.u64()?;
        let matching = oxm::take_match(&mut body)?;
        let actions = take_instructions(body)?;
        let key = FlowKey { table, priority, matching };
        let flow = WatchedFlow { key, cookie, idle_timeout, hard_timeout, actions };
        Ok(match event {
            INITIAL => Self::Initial(flow),
            ADDED => Self::Added(flow),
            REMOVED => Self::Removed(flow, reason),
            _ => Self::Modified(flow),
        })
    }
}

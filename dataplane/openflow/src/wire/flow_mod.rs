//! Changing flows, and hearing that one went.
//!
//! Owns [`FlowMod`] and [`FlowRemoved`]. Never decides what should change.
//! Invariant: a flow that is added has passed its check.
//! Source: OpenFlow 1.5.1 §7.3.4.3 and §7.4.3.

use super::{
    action::{put_instructions, take_instructions},
    buffer::{Reader, Writer},
    error::{DecodeError, EncodeError},
    oxm,
    stats::FlowCounters,
};
use crate::flow::{Flow, FlowFlags, FlowKey, Match, PortNo};

/// Any group: a wildcard in requests.
pub const GROUP_ANY: u32 = 0xffff_ffff;
/// All tables: a wildcard in requests.
pub const TABLE_ALL: u8 = 0xff;
const NO_BUFFER: u32 = 0xffff_ffff;
const CHECK_OVERLAP: u16 = 1 << 1;
const RESET_COUNTS: u16 = 1 << 2;

/// What a [`FlowMod`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowCommand {
    /// Adds the flow, in place of one with the same key.
    Add,
    /// Changes the actions of all flows that the match covers.
    Modify,
    /// Changes the actions of the flow with this key.
    ModifyStrict,
    /// Deletes all flows that the match covers.
    Delete,
    /// Deletes the flow with this key.
    DeleteStrict,
}

const COMMANDS: [FlowCommand; 5] =
    [FlowCommand::Add, FlowCommand::Modify, FlowCommand::ModifyStrict, FlowCommand::Delete, FlowCommand::DeleteStrict];

/// A change to flows.
///
/// ```
/// use openflow::{flow::Flow, wire::FlowMod};
/// let flow: Flow = "table=3, priority=7,ip actions=drop".parse()?;
/// let (add, remove) = (FlowMod::add(flow.clone()), FlowMod::delete_strict(flow.key()));
/// assert_eq!(add.flow.key(), remove.flow.key());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowMod {
    /// What it does.
    pub command: FlowCommand,
    /// The flow; for deletions only table, priority, match and cookie count. Table 255 is every table in deletions.
    pub flow: Flow,
    /// For modifications and deletions: only flows whose cookie equals the flow's under this mask; 0 is any.
    pub cookie_mask: u64,
    /// For deletions: only flows that output here; `ANY` is any.
    pub out_port: PortNo,
    /// For deletions: only flows that use this group; [`GROUP_ANY`] is any.
    pub out_group: u32,
    /// Refuses to add a flow that overlaps one of the same priority.
    pub check_overlap: bool,
    /// Zeroes the counters.
    pub reset_counts: bool,
}

impl FlowMod {
    fn new(command: FlowCommand, flow: Flow) -> Self {
        Self {
            command,
            flow,
            cookie_mask: 0,
            out_port: PortNo::ANY,
            out_group: GROUP_ANY,
            check_overlap: false,
            reset_counts: false,
        }
    }

    /// Adds a flow, in place of one with the same key.
    #[must_use]
    pub fn add(flow: Flow) -> Self {
        Self::new(FlowCommand::Add, flow)
    }

    /// Changes the actions of the flow with the same key; its cookie and timeouts stay.
    #[must_use]
    pub fn modify_strict(flow: Flow) -> Self {
        Self::new(FlowCommand::ModifyStrict, flow)
    }

    /// Deletes the flow with this key.
    #[must_use]
    pub fn delete_strict(key: FlowKey) -> Self {
        Self::new(FlowCommand::DeleteStrict, Flow::new(key.table, key.priority, key.matching, Vec::new()))
    }

    /// Deletes all flows of one table, or of every table with [`TABLE_ALL`].
    #[must_use]
    pub fn delete_table(table: u8) -> Self {
        Self::new(FlowCommand::Delete, Flow::new(table, 0, Match::new(), Vec::new()))
    }

    /// Deletes all flows, in every table, whose cookie under `mask` is `cookie`.
    #[must_use]
    pub fn delete_cookie(cookie: u64, mask: u64) -> Self {
        Self { cookie_mask: mask, ..Self::delete_table(TABLE_ALL).with_cookie(cookie) }
    }

    fn with_cookie(mut self, cookie: u64) -> Self {
        self.flow.cookie = cookie;
        self
    }

    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        let flow = &self.flow;
        let is_deletion = matches!(self.command, FlowCommand::Delete | FlowCommand::DeleteStrict);
        if !is_deletion {
            flow.check().map_err(|source| EncodeError::Flow { flow: flow.to_string(), source: Box::new(source) })?;
        }
        to.u64(flow.cookie);
        to.u64(self.cookie_mask);
        to.u8(flow.table);
        let command = COMMANDS.iter().position(|command| *command == self.command);
        to.u8(command.and_then(|at| u8::try_from(at).ok()).unwrap_or(0));
        to.u16(flow.idle_timeout);
        to.u16(flow.hard_timeout);
        to.u16(flow.priority);
        to.u32(NO_BUFFER);
        to.u32(self.out_port.0);
        to.u32(self.out_group);
        let overlap = if self.check_overlap { CHECK_OVERLAP } else { 0 };
        let reset = if self.reset_counts { RESET_COUNTS } else { 0 };
        to.u16(flow.flags.bits() | overlap | reset);
        to.u16(flow.importance);
        oxm::put_match(to, &flow.matching)?;
        if is_deletion { Ok(()) } else { put_instructions(to, &flow.actions) }
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let (cookie, cookie_mask, table) = (from.u64()?, from.u64()?, from.u8()?);
        let command = from.u8()?;
        let command = COMMANDS.get(usize::from(command)).copied();
        let command = command.ok_or(DecodeError::BadValue { what: "flow_mod command", value: 5 })?;
        let (idle_timeout, hard_timeout, priority) = (from.u16()?, from.u16()?, from.u16()?);
        from.skip(4)?;
        let (out_port, out_group) = (PortNo(from.u32()?), from.u32()?);
        let (flags, importance) = (from.u16()?, from.u16()?);
        let matching = oxm::take_match(&mut from)?;
        // What a deletion says that a flow does counts for nothing.
        let is_deletion = matches!(command, FlowCommand::Delete | FlowCommand::DeleteStrict);
        let actions = if is_deletion { Vec::new() } else { take_instructions(from)? };
        let known = FlowFlags::from_bits_truncate(flags);
        let flow =
            Flow { table, priority, matching, cookie, actions, idle_timeout, hard_timeout, flags: known, importance };
        let (check_overlap, reset_counts) = (flags & CHECK_OVERLAP != 0, flags & RESET_COUNTS != 0);
        Ok(Self { command, flow, cookie_mask, out_port, out_group, check_overlap, reset_counts })
    }
}

/// Why a flow went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemovedReason(pub u8);

impl RemovedReason {
    /// No traffic for too long.
    pub const IDLE_TIMEOUT: Self = Self(0);
    /// Its time was over.
    pub const HARD_TIMEOUT: Self = Self(1);
    /// It was deleted.
    pub const DELETE: Self = Self(2);
    /// A group that it used was deleted.
    pub const GROUP_DELETE: Self = Self(3);
    /// A meter that it used was deleted.
    pub const METER_DELETE: Self = Self(4);
    /// The table was full.
    pub const EVICTION: Self = Self(5);
}

/// A flow with [`FlowFlags::SEND_FLOW_REMOVED`] went.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowRemoved {
    /// Which flow.
    pub key: FlowKey,
    /// Its cookie.
    pub cookie: u64,
    /// Why.
    pub reason: RemovedReason,
    /// Its idle timeout in seconds.
    pub idle_timeout: u16,
    /// Its hard timeout in seconds.
    pub hard_timeout: u16,
    /// What it counted.
    pub counters: FlowCounters,
}

impl FlowRemoved {
    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        to.u8(self.key.table);
        to.u8(self.reason.0);
        to.u16(self.key.priority);
        to.u16(self.idle_timeout);
        to.u16(self.hard_timeout);
        to.u64(self.cookie);
        oxm::put_match(to, &self.key.matching)?;
        self.counters.encode(to)
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let (table, reason, priority) = (from.u8()?, RemovedReason(from.u8()?), from.u16()?);
        let (idle_timeout, hard_timeout, cookie) = (from.u16()?, from.u16()?, from.u64()?);
        let matching = oxm::take_match(&mut from)?;
        let counters = FlowCounters::decode(&mut from)?;
        let key = FlowKey { table, priority, matching };
        Ok(Self { key, cookie, reason, idle_timeout, hard_timeout, counters })
    }
}

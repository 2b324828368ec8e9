//! Flows as a switch holds them, and which of them are asked for.
//!
//! Owns [`FlowFilter`] and [`FlowStats`]. Never compares flows.
//! Source: OpenFlow 1.5.1 §7.3.5.2 and §7.3.5.3.

use super::{
    action::{put_instructions, take_instructions},
    buffer::{Reader, Writer},
    error::{DecodeError, EncodeError},
    flow_mod::{GROUP_ANY, TABLE_ALL},
    oxm,
    stats::FlowCounters,
};
use crate::flow::{Flow, FlowFlags, Match, PortNo};

/// Which flows are asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowFilter {
    /// The table; [`TABLE_ALL`] is every one.
    pub table: u8,
    /// Only flows that output here; `ANY` is any.
    pub out_port: PortNo,
    /// Only flows that use this group; [`GROUP_ANY`] is any.
    pub out_group: u32,
    /// Only flows with this cookie under the mask.
    pub cookie: u64,
    /// The mask; 0 is any cookie.
    pub cookie_mask: u64,
    /// Only flows that this covers.
    pub matching: Match,
}

impl Default for FlowFilter {
    fn default() -> Self {
        Self {
            table: TABLE_ALL,
            out_port: PortNo::ANY,
            out_group: GROUP_ANY,
            cookie: 0,
            cookie_mask: 0,
            matching: Match::new(),
        }
    }
}

impl FlowFilter {
    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        to.u8(self.table);
        to.zeros(3);
        to.u32(self.out_port.0);
        to.u32(self.out_group);
        to.zeros(4);
        to.u64(self.cookie);
        to.u64(self.cookie_mask);
        oxm::put_match(to, &self.matching)
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let table = from.u8()?;
        from.skip(3)?;
        let (out_port, out_group) = (PortNo(from.u32()?), from.u32()?);
        from.skip(4)?;
        let (cookie, cookie_mask) = (from.u64()?, from.u64()?);
        let matching = oxm::take_match(&mut from)?;
        Ok(Self { table, out_port, out_group, cookie, cookie_mask, matching })
    }
}

/// A flow as installed, with what it counted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowStats {
    /// The flow.
    pub flow: Flow,
    /// Its counters.
    pub counters: FlowCounters,
}

impl FlowStats {
    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        let (start, flow) = (to.len(), &self.flow);
        to.zeros(4);
        to.u8(flow.table);
        to.zeros(1);
        to.u16(flow.priority);
        to.u16(flow.idle_timeout);
        to.u16(flow.hard_timeout);
        to.u16(flow.flags.bits());
        to.u16(flow.importance);
        to.u64(flow.cookie);
        oxm::put_match(to, &flow.matching)?;
        self.counters.encode(to)?;
        put_instructions(to, &flow.actions)?;
        to.patch_length(start, start, "flow description")
    }

    pub(super) fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let length = from.u16()?;
        let mut body = from.body(length, 2, "flow description")?;
        body.skip(2)?;
        let table = body.u8()?;
        body.skip(1)?;
        let priority = body.u16()?;
        let (idle_timeout, hard_timeout) = (body.u16()?, body.u16()?);
        let (flags, importance, cookie) = (FlowFlags::from_bits_truncate(body.u16()?), body.u16()?, body.u64()?);
        let matching = oxm::take_match(&mut body)?;
        let counters = FlowCounters::decode(&mut body)?;
        let actions = take_instructions(body)?;
        let flow = Flow { table, priority, matching, cookie, actions, idle_timeout, hard_timeout, flags, importance };
        Ok(Self { flow, counters })
    }
}

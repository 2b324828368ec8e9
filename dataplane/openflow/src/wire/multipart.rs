//! Questions whose answers may come in several messages.
//!
//! Owns requests and replies. Never puts the parts together: that is the session's.
//! Invariant: a reply of a kind that is not known is kept as octets.
//! Source: OpenFlow 1.5.1 §7.3.5.

use std::time::Duration;

use super::{
    action::{put_instructions, take_instructions},
    buffer::{Reader, Writer},
    error::{DecodeError, EncodeError},
    flow_mod::{GROUP_ANY, TABLE_ALL},
    group_mod::{GROUP_ALL, Meter, kind_number, put_buckets_and_properties, take_buckets_and_properties},
    oxm,
    port::{Port, PortCounters},
    stats::FlowCounters,
};
use crate::flow::{Flow, FlowFlags, Group, Match, PortNo};

pub(super) const MORE: u16 = 1;

mod kind {
    pub(super) const DESCRIPTION: u16 = 0;
    pub(super) const FLOW: u16 = 1;
    pub(super) const AGGREGATE: u16 = 2;
    pub(super) const TABLE: u16 = 3;
    pub(super) const PORT_STATS: u16 = 4;
    pub(super) const GROUP_STATS: u16 = 6;
    pub(super) const GROUP_DESCRIPTION: u16 = 7;
    pub(super) const METER_DESCRIPTION: u16 = 10;
    pub(super) const PORT_DESCRIPTION: u16 = 13;
}

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
    fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        to.u8(self.table);
        to.zeros(3);
        to.u32(self.out_port.0);
        to.u32(self.out_group);
        to.zeros(4);
        to.u64(self.cookie);
        to.u64(self.cookie_mask);
        oxm::put_match(to, &self.matching)
    }

    fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let table = from.u8()?;
        from.skip(3)?;
        let (out_port, out_group) = (PortNo(from.u32()?), from.u32()?);
        from.skip(4)?;
        let (cookie, cookie_mask) = (from.u64()?, from.u64()?);
        let matching = oxm::take_match(&mut from)?;
        Ok(Self { table, out_port, out_group, cookie, cookie_mask, matching })
    }
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MultipartRequest {
    /// What the switch is.
    Description,
    /// Flows one by one.
    Flows(FlowFilter),
    /// What flows counted together.
    Aggregate(FlowFilter),
    /// What tables counted.
    Tables,
    /// What ports counted; `ANY` is every port.
    PortStats(PortNo),
    /// What groups counted; [`GROUP_ALL`] is every group.
    GroupStats(u32),
    /// Groups; [`GROUP_ALL`] is every group.
    Groups(u32),
    /// Meters; [`METER_ALL`] is every meter.
    Meters(u32),
    /// Ports; `ANY` is every port.
    Ports(PortNo),
}

impl MultipartRequest {
    /// Every flow.
    #[must_use]
    pub fn all_flows() -> Self {
        Self::Flows(FlowFilter::default())
    }

    /// Every group.
    #[must_use]
    pub fn all_groups() -> Self {
        Self::Groups(GROUP_ALL)
    }

    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        let (number, argument) = match self {
            Self::Description => (kind::DESCRIPTION, None),
            Self::Flows(_) => (kind::FLOW, None),
            Self::Aggregate(_) => (kind::AGGREGATE, None),
            Self::Tables => (kind::TABLE, None),
            Self::PortStats(port) => (kind::PORT_STATS, Some(port.0)),
            Self::GroupStats(group) => (kind::GROUP_STATS, Some(*group)),
            Self::Groups(group) => (kind::GROUP_DESCRIPTION, Some(*group)),
            Self::Meters(meter) => (kind::METER_DESCRIPTION, Some(*meter)),
            Self::Ports(port) => (kind::PORT_DESCRIPTION, Some(port.0)),
        };
        to.u16(number);
        to.zeros(6);
        if let Self::Flows(filter) | Self::Aggregate(filter) = self {
            filter.encode(to)?;
        }
        if let Some(argument) = argument {
            to.u32(argument);
            to.zeros(4);
        }
        Ok(())
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let number = from.u16()?;
        from.skip(6)?;
        Ok(match number {
            kind::DESCRIPTION => Self::Description,
            kind::FLOW => Self::Flows(FlowFilter::decode(from)?),
            kind::AGGREGATE => Self::Aggregate(FlowFilter::decode(from)?),
            kind::TABLE => Self::Tables,
            kind::PORT_STATS => Self::PortStats(PortNo(from.u32()?)),
            kind::GROUP_STATS => Self::GroupStats(from.u32()?),
            kind::GROUP_DESCRIPTION => Self::Groups(from.u32()?),
            kind::METER_DESCRIPTION => Self::Meters(from.u32()?),
            kind::PORT_DESCRIPTION => Self::Ports(PortNo(from.u32()?)),
            other => return Err(DecodeError::BadValue { what: "multipart request", value: other.into() }),
        })
    }
}

/// What the switch is, in its own words.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Description {
    /// Who made it.
    pub manufacturer: String,
    /// Its hardware.
    pub hardware: String,
    /// Its software, with version.
    pub software: String,
    /// Its serial number.
    pub serial: String,
    /// What a human calls it.
    pub datapath: String,
}

/// A flow as installed, with what it counted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowStats {
    /// The flow.
    pub flow: Flow,
    /// Its counters.
    pub counters: FlowCounters,
}

/// What a table counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableCounters {
    /// The table.
    pub table: u8,
    /// Flows in it.
    pub active: u32,
    /// Packets looked up.
    pub lookups: u64,
    /// Packets that matched.
    pub matched: u64,
}

/// What a group counted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupCounters {
    /// The group.
    pub group: u32,
    /// Flows and groups that use it.
    pub references: u32,
    /// Packets.
    pub packets: u64,
    /// Octets.
    pub octets: u64,
    /// Time since it was added.
    pub duration: Duration,
    /// Packets and octets of each bucket.
    pub buckets: Vec<(u64, u64)>,
}

/// An answer, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MultipartReply {
    /// What the switch is.
    Description(Box<Description>),
    /// Flows.
    Flows(Vec<FlowStats>),
    /// What flows counted together.
    Aggregate(FlowCounters),
    /// What tables counted.
    Tables(Vec<TableCounters>),
    /// What ports counted.
    PortStats(Vec<PortCounters>),
    /// What groups counted.
    GroupStats(Vec<GroupCounters>),
    /// Groups.
    Groups(Vec<Group>),
    /// Meters.
    Meters(Vec<Meter>),
    /// Ports.
    Ports(Vec<Port>),
    /// Something else, as octets.
    Unknown {
        /// The type of the answer.
        kind: u16,
        /// Its body.
        body: Vec<u8>,
    },
}

impl MultipartReply {
    /// Appends the next part of the same answer; false when it is of another kind.
    pub(crate) fn append(&mut self, next: Self) -> bool {
        match (self, next) {
            (Self::Flows(all), Self::Flows(mut next)) => all.append(&mut next),
            (Self::Tables(all), Self::Tables(mut next)) => all.append(&mut next),
            (Self::PortStats(all), Self::PortStats(mut next)) => all.append(&mut next),
            (Self::GroupStats(all), Self::GroupStats(mut next)) => all.append(&mut next),
            (Self::Groups(all), Self::Groups(mut next)) => all.append(&mut next),
            (Self::Meters(all), Self::Meters(mut next)) => all.append(&mut next),
            (Self::Ports(all), Self::Ports(mut next)) => all.append(&mut next),
            (Self::Unknown { kind, body }, Self::Unknown { kind: next_kind, body: mut next }) if *kind == next_kind => {
                body.append(&mut next);
            }
            _ => return false,
        }
        true
    }

    pub(super) fn encode(&self, more: bool, to: &mut Writer) -> Result<(), EncodeError> {
        let number = match self {
            Self::Description(_) => kind::DESCRIPTION,
            Self::Flows(_) => kind::FLOW,
            Self::Aggregate(_) => kind::AGGREGATE,
            Self::Tables(_) => kind::TABLE,
            Self::PortStats(_) => kind::PORT_STATS,
            Self::GroupStats(_) => kind::GROUP_STATS,
            Self::Groups(_) => kind::GROUP_DESCRIPTION,
            Self::Meters(_) => kind::METER_DESCRIPTION,
            Self::Ports(_) => kind::PORT_DESCRIPTION,
            Self::Unknown { kind, .. } => *kind,
        };
        to.u16(number);
        to.u16(if more { MORE } else { 0 });
        to.zeros(4);
        match self {
            Self::Description(description) => {
                for (text, octets) in description.parts() {
                    to.text(text, octets);
                }
                Ok(())
            }
            Self::Flows(flows) => flows.iter().try_for_each(|stats| stats.encode(to)),
            Self::Aggregate(counters) => counters.encode(to),
            Self::Tables(tables) => {
                tables.iter().for_each(|table| table.encode(to));
                Ok(())
            }
            Self::PortStats(ports) => ports.iter().try_for_each(|port| port.encode(to)),
            Self::GroupStats(groups) => groups.iter().try_for_each(|group| group.encode(to)),
            Self::Groups(groups) => groups.iter().try_for_each(|group| encode_group(group, to)),
            Self::Meters(meters) => {
                meters.iter().for_each(|meter| meter.encode_description(to));
                Ok(())
            }
            Self::Ports(ports) => ports.iter().try_for_each(|port| port.encode(to)),
            Self::Unknown { body, .. } => {
                to.bytes(body);
                Ok(())
            }
        }
    }

    /// Reads a reply, with whether more parts follow.
    pub(super) fn decode(mut from: Reader<'_>) -> Result<(Self, bool), DecodeError> {
        let (number, flags) = (from.u16()?, from.u16()?);
        from.skip(4)?;
        let reply = match number {
            kind::DESCRIPTION => Self::Description(Box::new(Description::decode(&mut from)?)),
            kind::FLOW => Self::Flows(all(from, FlowStats::decode)?),
            kind::AGGREGATE => Self::Aggregate(FlowCounters::decode(&mut from)?),
            kind::TABLE => Self::Tables(all(from, TableCounters::decode)?),
            kind::PORT_STATS => Self::PortStats(all(from, PortCounters::decode)?),
            kind::GROUP_STATS => Self::GroupStats(all(from, GroupCounters::decode)?),
            kind::GROUP_DESCRIPTION => Self::Groups(all(from, decode_group)?),
            kind::METER_DESCRIPTION => Self::Meters(all(from, Meter::decode_description)?),
            kind::PORT_DESCRIPTION => Self::Ports(all(from, Port::decode)?),
            kind => Self::Unknown { kind, body: from.rest().to_vec() },
        };
        Ok((reply, flags & MORE != 0))
    }
}

/// Reads entries up to the end. Every entry reader takes at least its own header, so this ends.
fn all<T>(
    mut from: Reader<'_>,
    entry: impl Fn(&mut Reader<'_>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let mut entries = Vec::new();
    while !from.is_empty() {
        entries.push(entry(&mut from)?);
    }
    Ok(entries)
}

impl Description {
    fn parts(&self) -> [(&str, usize); 5] {
        [
            (&self.manufacturer, 256),
            (&self.hardware, 256),
            (&self.software, 256),
            (&self.serial, 32),
            (&self.datapath, 256),
        ]
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            manufacturer: from.text(256)?,
            hardware: from.text(256)?,
            software: from.text(256)?,
            serial: from.text(32)?,
            datapath: from.text(256)?,
        })
    }
}

impl FlowStats {
    fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
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

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
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

impl TableCounters {
    fn encode(&self, to: &mut Writer) {
        to.u8(self.table);
        to.zeros(3);
        to.u32(self.active);
        to.u64(self.lookups);
        to.u64(self.matched);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let table = from.u8()?;
        from.skip(3)?;
        Ok(Self { table, active: from.u32()?, lookups: from.u64()?, matched: from.u64()? })
    }
}

impl GroupCounters {
    fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        let start = to.len();
        to.zeros(4);
        to.u32(self.group);
        to.u32(self.references);
        to.zeros(4);
        to.u64(self.packets);
        to.u64(self.octets);
        to.u32(u32::try_from(self.duration.as_secs()).unwrap_or(u32::MAX));
        to.u32(self.duration.subsec_nanos());
        for (packets, octets) in &self.buckets {
            to.u64(*packets);
            to.u64(*octets);
        }
        to.patch_length(start, start, "group counters")
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let length = from.u16()?;
        let mut body = from.body(length, 2, "group counters")?;
        body.skip(2)?;
        let (group, references) = (body.u32()?, body.u32()?);
        body.skip(4)?;
        let (packets, octets) = (body.u64()?, body.u64()?);
        let duration = Duration::new(body.u32()?.into(), body.u32()?.min(999_999_999));
        let mut buckets = Vec::new();
        while !body.is_empty() {
            buckets.push((body.u64()?, body.u64()?));
        }
        Ok(Self { group, references, packets, octets, duration, buckets })
    }
}

fn encode_group(group: &Group, to: &mut Writer) -> Result<(), EncodeError> {
    let start = to.len();
    to.zeros(2);
    to.u8(kind_number(group.kind));
    to.zeros(1);
    to.u32(group.id);
    let at = to.len();
    to.zeros(8);
    put_buckets_and_properties(to, group, at)?;
    to.patch_length(start, start, "group description")
}

fn decode_group(from: &mut Reader<'_>) -> Result<Group, DecodeError> {
    let length = from.u16()?;
    let mut body = from.body(length, 2, "group description")?;
    let kind = body.u8()?;
    body.skip(1)?;
    let (id, buckets) = (body.u32()?, body.u16()?);
    body.skip(6)?;
    take_buckets_and_properties(&mut body, id, kind, buckets)
}

//! Questions whose answers may come in several messages.
//!
//! Owns requests and replies. Never puts the parts together: that is the session's.
//! Invariant: a request or reply of a kind that is not known is kept as octets.
//! Source: OpenFlow 1.5.1 §7.3.5.

use super::{
    buffer::{Reader, Writer},
    error::{DecodeError, EncodeError},
    flow_stats::{FlowFilter, FlowStats},
    group_mod::GROUP_ALL,
    group_stats::{self, GroupCounters, GroupFeatures},
    meter::{self, METER_ALL, MeterCounters, MeterFeatures},
    monitor::{FlowMonitor, FlowUpdate},
    port::{Port, PortCounters},
    queue::{Queue, QueueCounters, QueueFilter},
    stats::FlowCounters,
    table::{Table, TableCounters, TableFeatures},
};
use crate::flow::{Group, Meter, PortNo};

pub(super) const MORE: u16 = 1;

mod kind {
    pub(super) const DESCRIPTION: u16 = 0;
    pub(super) const FLOW: u16 = 1;
    pub(super) const AGGREGATE: u16 = 2;
    pub(super) const TABLE: u16 = 3;
    pub(super) const PORT_STATS: u16 = 4;
    pub(super) const QUEUE_STATS: u16 = 5;
    pub(super) const GROUP_STATS: u16 = 6;
    pub(super) const GROUP_DESCRIPTION: u16 = 7;
    pub(super) const GROUP_FEATURES: u16 = 8;
    pub(super) const METER_STATS: u16 = 9;
    pub(super) const METER_DESCRIPTION: u16 = 10;
    pub(super) const METER_FEATURES: u16 = 11;
    pub(super) const TABLE_FEATURES: u16 = 12;
    pub(super) const PORT_DESCRIPTION: u16 = 13;
    pub(super) const TABLE_DESCRIPTION: u16 = 14;
    pub(super) const QUEUE_DESCRIPTION: u16 = 15;
    pub(super) const FLOW_MONITOR: u16 = 16;
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
    /// Ports; `ANY` is every port.
    Ports(PortNo),
    /// What queues counted.
    QueueStats(QueueFilter),
    /// How queues are set.
    Queues(QueueFilter),
    /// What the switch can do with groups.
    GroupFeatures,
    /// What meters counted; [`METER_ALL`] is every meter.
    MeterStats(u32),
    /// Meters; [`METER_ALL`] is every meter.
    Meters(u32),
    /// What the switch can meter.
    MeterFeatures,
    /// How tables are set.
    TableSettings,
    /// What tables can do; an empty list only asks.
    TableFeatures(Vec<TableFeatures>),
    /// Watches flows. Changes come unasked, after the first answer.
    FlowMonitor(Vec<FlowMonitor>),
    /// Something else, as octets.
    Unknown {
        /// The type of the question.
        kind: u16,
        /// Its body.
        body: Vec<u8>,
    },
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

    /// Every meter.
    #[must_use]
    pub fn all_meters() -> Self {
        Self::Meters(METER_ALL)
    }

    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        let (number, argument) = match self {
            Self::Description => (kind::DESCRIPTION, None),
            Self::QueueStats(_) => (kind::QUEUE_STATS, None),
            Self::Queues(_) => (kind::QUEUE_DESCRIPTION, None),
            Self::GroupFeatures => (kind::GROUP_FEATURES, None),
            Self::MeterStats(meter) => (kind::METER_STATS, Some(*meter)),
            Self::Meters(meter) => (kind::METER_DESCRIPTION, Some(*meter)),
            Self::MeterFeatures => (kind::METER_FEATURES, None),
            Self::TableSettings => (kind::TABLE_DESCRIPTION, None),
            Self::TableFeatures(_) => (kind::TABLE_FEATURES, None),
            Self::FlowMonitor(_) => (kind::FLOW_MONITOR, None),
            Self::Unknown { kind, .. } => (*kind, None),
            Self::Flows(_) => (kind::FLOW, None),
            Self::Aggregate(_) => (kind::AGGREGATE, None),
            Self::Tables => (kind::TABLE, None),
            Self::PortStats(port) => (kind::PORT_STATS, Some(port.0)),
            Self::GroupStats(group) => (kind::GROUP_STATS, Some(*group)),
            Self::Groups(group) => (kind::GROUP_DESCRIPTION, Some(*group)),
            Self::Ports(port) => (kind::PORT_DESCRIPTION, Some(port.0)),
        };
        to.u16(number);
        to.zeros(6);
        match self {
            Self::Flows(filter) | Self::Aggregate(filter) => filter.encode(to)?,
            Self::QueueStats(filter) | Self::Queues(filter) => filter.encode(to),
            Self::TableFeatures(tables) => tables.iter().try_for_each(|table| table.encode(to))?,
            Self::FlowMonitor(monitors) => monitors.iter().try_for_each(|monitor| monitor.encode(to))?,
            Self::Unknown { body, .. } => to.bytes(body),
            _ => {}
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
            kind::PORT_DESCRIPTION => Self::Ports(PortNo(from.u32()?)),
            kind::QUEUE_STATS => Self::QueueStats(QueueFilter::decode(from)?),
            kind::QUEUE_DESCRIPTION => Self::Queues(QueueFilter::decode(from)?),
            kind::GROUP_FEATURES => Self::GroupFeatures,
            kind::METER_STATS => Self::MeterStats(from.u32()?),
            kind::METER_DESCRIPTION => Self::Meters(from.u32()?),
            kind::METER_FEATURES => Self::MeterFeatures,
            kind::TABLE_DESCRIPTION => Self::TableSettings,
            kind::TABLE_FEATURES => Self::TableFeatures(all(from, TableFeatures::decode)?),
            kind::FLOW_MONITOR => Self::FlowMonitor(all(from, FlowMonitor::decode)?),
            kind => Self::Unknown { kind, body: from.rest().to_vec() },
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
    /// Ports.
    Ports(Vec<Port>),
    /// What queues counted.
    QueueStats(Vec<QueueCounters>),
    /// How queues are set.
    Queues(Vec<Queue>),
    /// What the switch can do with groups.
    GroupFeatures(GroupFeatures),
    /// What meters counted.
    MeterStats(Vec<MeterCounters>),
    /// Meters.
    Meters(Vec<Meter>),
    /// What the switch can meter.
    MeterFeatures(MeterFeatures),
    /// How tables are set.
    TableSettings(Vec<Table>),
    /// What tables can do.
    TableFeatures(Vec<TableFeatures>),
    /// What happened to flows that are watched.
    FlowUpdates(Vec<FlowUpdate>),
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
            (Self::Ports(all), Self::Ports(mut next)) => all.append(&mut next),
            (Self::QueueStats(all), Self::QueueStats(mut next)) => all.append(&mut next),
            (Self::Queues(all), Self::Queues(mut next)) => all.append(&mut next),
            (Self::MeterStats(all), Self::MeterStats(mut next)) => all.append(&mut next),
            (Self::Meters(all), Self::Meters(mut next)) => all.append(&mut next),
            (Self::TableSettings(all), Self::TableSettings(mut next)) => all.append(&mut next),
            (Self::TableFeatures(all), Self::TableFeatures(mut next)) => all.append(&mut next),
            (Self::FlowUpdates(all), Self::FlowUpdates(mut next)) => all.append(&mut next),
            (Self::Unknown { kind, body }, Self::Unknown { kind: next_kind, body: mut next }) if *kind == next_kind => {
                body.append(&mut next);
            }
            _ => return false,
        }
        true
    }

    fn number(&self) -> u16 {
        match self {
            Self::Description(_) => kind::DESCRIPTION,
            Self::Flows(_) => kind::FLOW,
            Self::Aggregate(_) => kind::AGGREGATE,
            Self::Tables(_) => kind::TABLE,
            Self::PortStats(_) => kind::PORT_STATS,
            Self::GroupStats(_) => kind::GROUP_STATS,
            Self::Groups(_) => kind::GROUP_DESCRIPTION,
            Self::Ports(_) => kind::PORT_DESCRIPTION,
            Self::QueueStats(_) => kind::QUEUE_STATS,
            Self::Queues(_) => kind::QUEUE_DESCRIPTION,
            Self::GroupFeatures(_) => kind::GROUP_FEATURES,
            Self::MeterStats(_) => kind::METER_STATS,
            Self::Meters(_) => kind::METER_DESCRIPTION,
            Self::MeterFeatures(_) => kind::METER_FEATURES,
            Self::TableSettings(_) => kind::TABLE_DESCRIPTION,
            Self::TableFeatures(_) => kind::TABLE_FEATURES,
            Self::FlowUpdates(_) => kind::FLOW_MONITOR,
            Self::Unknown { kind, .. } => *kind,
        }
    }

    pub(super) fn encode(&self, more: bool, to: &mut Writer) -> Result<(), EncodeError> {
        to.u16(self.number());
        to.u16(if more { MORE } else { 0 });
        to.zeros(4);
        match self {
            Self::Description(description) => {
                description.parts().into_iter().for_each(|(text, octets)| to.text(text, octets));
            }
            Self::Flows(flows) => flows.iter().try_for_each(|stats| stats.encode(to))?,
            Self::Aggregate(counters) => counters.encode(to)?,
            Self::Tables(tables) => tables.iter().for_each(|table| table.encode(to)),
            Self::PortStats(ports) => ports.iter().try_for_each(|port| port.encode(to))?,
            Self::GroupStats(groups) => groups.iter().try_for_each(|group| group.encode(to))?,
            Self::Groups(groups) => groups.iter().try_for_each(|group| group_stats::put_description(group, to))?,
            Self::Ports(ports) => ports.iter().try_for_each(|port| port.encode(to))?,
            Self::QueueStats(queues) => queues.iter().try_for_each(|queue| queue.encode(to))?,
            Self::Queues(queues) => queues.iter().try_for_each(|queue| queue.encode(to))?,
            Self::GroupFeatures(features) => features.encode(to),
            Self::MeterStats(meters) => meters.iter().try_for_each(|meter| meter.encode(to))?,
            Self::Meters(meters) => meters.iter().try_for_each(|meter| meter::put_description(meter, to))?,
            Self::MeterFeatures(features) => features.encode(to),
            Self::TableSettings(tables) => tables.iter().try_for_each(|table| table.encode(to))?,
            Self::TableFeatures(tables) => tables.iter().try_for_each(|table| table.encode(to))?,
            Self::FlowUpdates(updates) => updates.iter().try_for_each(|update| update.encode(to))?,
            Self::Unknown { body, .. } => to.bytes(body),
        }
        Ok(())
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
            kind::GROUP_DESCRIPTION => Self::Groups(all(from, group_stats::take_description)?),
            kind::PORT_DESCRIPTION => Self::Ports(all(from, Port::decode)?),
            kind::QUEUE_STATS => Self::QueueStats(all(from, QueueCounters::decode)?),
            kind::QUEUE_DESCRIPTION => Self::Queues(all(from, Queue::decode)?),
            kind::GROUP_FEATURES => Self::GroupFeatures(GroupFeatures::decode(&mut from)?),
            kind::METER_STATS => Self::MeterStats(all(from, MeterCounters::decode)?),
            kind::METER_DESCRIPTION => Self::Meters(all(from, meter::take_description)?),
            kind::METER_FEATURES => Self::MeterFeatures(MeterFeatures::decode(&mut from)?),
            kind::TABLE_DESCRIPTION => Self::TableSettings(all(from, Table::decode)?),
            kind::TABLE_FEATURES => Self::TableFeatures(all(from, TableFeatures::decode)?),
            kind::FLOW_MONITOR => Self::FlowUpdates(all(from, FlowUpdate::decode)?),
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

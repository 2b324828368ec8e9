//! Tables of a switch: what they counted, how they are set, what they can do.
//!
//! Owns [`TableCounters`], [`Table`], [`TableFeatures`], [`TableMod`] and [`TableStatus`]. Never knows the flows in them.
//! Invariant: properties of features are kept octet by octet.
//! Source: OpenFlow 1.5.1 §7.3.4.1, §7.3.5.4, §7.3.5.18, §7.3.5.19, §7.4.5.

use super::{
    action::begin,
    buffer::{Reader, Writer, padding},
    error::{DecodeError, EncodeError},
};

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

impl TableCounters {
    pub(super) fn encode(&self, to: &mut Writer) {
        to.u8(self.table);
        to.zeros(3);
        to.u32(self.active);
        to.u64(self.lookups);
        to.u64(self.matched);
    }

    pub(super) fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let table = from.u8()?;
        from.skip(3)?;
        Ok(Self { table, active: from.u32()?, lookups: from.u64()?, matched: from.u64()? })
    }
}

const EVICTION: u16 = 2;
const VACANCY: u16 = 3;

/// When a switch tells that a table fills up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vacancy {
    /// Tells when less than so many per cent are free.
    pub down_percent: u8,
    /// Tells when more than so many per cent are free again.
    pub up_percent: u8,
    /// Per cent that are free now.
    pub now_percent: u8,
}

/// How a table is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Table {
    /// The table; in a change [`super::TABLE_ALL`] is every one.
    pub id: u8,
    /// Bits: 2 evicts flows of low importance, 3 tells of vacancy.
    pub config: u32,
    /// How flows to evict are chosen: bits 0 other, 1 importance, 2 lifetime.
    pub eviction: Option<u32>,
    /// When vacancy is told.
    pub vacancy: Option<Vacancy>,
}

impl Table {
    /// Config bit: flows of low importance make room.
    pub const EVICTION: u32 = 1 << 2;
    /// Config bit: vacancy is told.
    pub const VACANCY_EVENTS: u32 = 1 << 3;

    fn put_properties(&self, to: &mut Writer) {
        if let Some(flags) = self.eviction {
            to.u16(EVICTION);
            to.u16(8);
            to.u32(flags);
        }
        if let Some(vacancy) = self.vacancy {
            to.u16(VACANCY);
            to.u16(8);
            to.bytes(&[vacancy.down_percent, vacancy.up_percent, vacancy.now_percent, 0]);
        }
    }

    fn take_properties(&mut self, mut from: Reader<'_>) -> Result<(), DecodeError> {
        while !from.is_empty() {
            let (kind, length) = (from.u16()?, from.u16()?);
            let mut body = from.body(length, 4, "table property")?;
            from.skip_padding(padding(length.into()));
            match kind {
                EVICTION => self.eviction = Some(body.u32()?),
                VACANCY => {
                    let (down_percent, up_percent, now_percent) = (body.u8()?, body.u8()?, body.u8()?);
                    self.vacancy = Some(Vacancy { down_percent, up_percent, now_percent });
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        let start = to.len();
        to.zeros(2);
        to.u8(self.id);
        to.zeros(1);
        to.u32(self.config);
        self.put_properties(to);
        to.patch_length(start, start, "table description")
    }

    pub(super) fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let length = from.u16()?;
        let mut body = from.body(length, 2, "table description")?;
        let id = body.u8()?;
        body.skip(1)?;
        let mut table = Self { id, config: body.u32()?, eviction: None, vacancy: None };
        table.take_properties(body)?;
        Ok(table)
    }
}

/// Sets a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableMod(pub Table);

impl TableMod {
    pub(super) fn encode(self, to: &mut Writer) {
        to.u8(self.0.id);
        to.zeros(3);
        to.u32(self.0.config);
        self.0.put_properties(to);
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let id = from.u8()?;
        from.skip(3)?;
        let mut table = Table { id, config: from.u32()?, eviction: None, vacancy: None };
        table.take_properties(from)?;
        Ok(Self(table))
    }
}

/// A table's vacancy passed one of its thresholds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableStatus {
    /// Why it is told: 3 vacancy down, 4 vacancy up.
    pub reason: u8,
    /// The table.
    pub table: Table,
}

impl TableStatus {
    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        to.u8(self.reason);
        to.zeros(7);
        self.table.encode(to)
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let reason = from.u8()?;
        from.skip(7)?;
        Ok(Self { reason, table: Table::decode(&mut from)? })
    }
}

/// What a table can do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableFeatures {
    /// The table.
    pub table: u8,
    /// In a request: 0 replaces the pipeline, 1 enables the table, 2 disables it.
    pub command: u8,
    /// Feature bits: 0 ingress table, 1 egress table, 4 first egress table.
    pub features: u32,
    /// Its name, at most 31 octets.
    pub name: String,
    /// Bits of the metadata that it can match.
    pub metadata_match: u64,
    /// Bits of the metadata that it can write.
    pub metadata_write: u64,
    /// Capability bits, as in [`Table::config`].
    pub capabilities: u32,
    /// Flows that it takes.
    pub entries_max: u32,
    /// Property types and bodies, in order: 0 instructions, 2 next tables, 4 write actions, 6 apply actions, 8 match fields.
    pub properties: Vec<(u16, Vec<u8>)>,
}

const NAME_OCTETS: usize = 32;

impl TableFeatures {
    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        let start = to.len();
        to.zeros(2);
        to.u8(self.table);
        to.u8(self.command);
        to.u32(self.features);
        to.text(&self.name, NAME_OCTETS);
        to.u64(self.metadata_match);
        to.u64(self.metadata_write);
        to.u32(self.capabilities);
        to.u32(self.entries_max);
        for (kind, body) in &self.properties {
            let at = begin(to, *kind);
            to.bytes(body);
            to.patch_length(at + 2, at, "table feature")?;
            to.align(at);
        }
        to.patch_length(start, start, "table features")
    }

    pub(super) fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let length = from.u16()?;
        let mut body = from.body(length, 2, "table features")?;
        let (table, command, features) = (body.u8()?, body.u8()?, body.u32()?);
        let name = body.text(NAME_OCTETS)?;
        let (metadata_match, metadata_write) = (body.u64()?, body.u64()?);
        let (capabilities, entries_max) = (body.u32()?, body.u32()?);
        let mut properties = Vec::new();
        while !body.is_empty() {
            let (kind, length) = (body.u16()?, body.u16()?);
            properties.push((kind, body.body(length, 4, "table feature")?.rest().to_vec()));
            body.skip_padding(padding(length.into()));
        }
        Ok(Self {
            table,
            command,
            features,
            name,
            metadata_match,
            metadata_write,
            capabilities,
            entries_max,
            properties,
        })
    }
}

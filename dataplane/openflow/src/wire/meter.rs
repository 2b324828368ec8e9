//! Changing meters, and what they counted.
//!
//! Owns [`MeterMod`], [`MeterCounters`] and [`MeterFeatures`]. Never decides what should change.
//! Source: OpenFlow 1.5.1 §7.3.4.4 and §7.3.5.13 to §7.3.5.15.

use std::{fmt, time::Duration};

use super::{
    buffer::{Reader, Writer},
    error::{DecodeError, EncodeError},
    stats::{put_time, take_time},
};
use crate::flow::{Band, BandAction, Meter, MeterUnit};

/// All meters: a wildcard in requests and deletions.
pub const METER_ALL: u32 = 0xffff_ffff;

const ADD: u16 = 0;
const MODIFY: u16 = 1;
const DELETE: u16 = 2;

const KILOBITS: u16 = 1;
const PACKETS: u16 = 2;
const BURST: u16 = 4;
const STATS: u16 = 8;

const BAND_DROP: u16 = 1;
const BAND_DSCP_REMARK: u16 = 2;

/// A change to meters.
///
/// ```
/// use openflow::{flow::{Meter, MeterUnit}, wire::{self, Message, MeterMod}};
/// let add = Message::MeterMod(MeterMod::Add(Meter::drop_above(5, MeterUnit::Packets, 100, 0)));
/// assert_eq!(wire::decode(&wire::encode(&add, 1)?)?, (1, add));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MeterMod {
    /// Adds a meter whose number is free.
    Add(Meter),
    /// Changes a meter that is there.
    Modify(Meter),
    /// Deletes a meter and the flows that use it. [`METER_ALL`] deletes all.
    Delete(u32),
}

impl fmt::Display for MeterMod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(meter) => write!(f, "add {meter}"),
            Self::Modify(meter) => write!(f, "modify {meter}"),
            Self::Delete(METER_ALL) => write!(f, "delete all meters"),
            Self::Delete(id) => write!(f, "delete meter={id}"),
        }
    }
}

impl MeterMod {
    /// The meter's number.
    #[must_use]
    pub fn id(&self) -> u32 {
        match self {
            Self::Add(meter) | Self::Modify(meter) => meter.id,
            Self::Delete(id) => *id,
        }
    }

    pub(super) fn encode(&self, to: &mut Writer) {
        let (command, meter) = match self {
            Self::Add(meter) => (ADD, meter),
            Self::Modify(meter) => (MODIFY, meter),
            Self::Delete(id) => {
                to.u16(DELETE);
                to.u16(KILOBITS);
                to.u32(*id);
                return;
            }
        };
        to.u16(command);
        put_meter(to, meter);
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let command = from.u16()?;
        if command == DELETE {
            from.skip(2)?;
            return Ok(Self::Delete(from.u32()?));
        }
        let meter = take_meter(from)?;
        match command {
            ADD => Ok(Self::Add(meter)),
            MODIFY => Ok(Self::Modify(meter)),
            other => Err(DecodeError::BadValue { what: "meter_mod command", value: other.into() }),
        }
    }
}

/// Writes flags, number and bands.
fn put_meter(to: &mut Writer, meter: &Meter) {
    let unit = if meter.unit == MeterUnit::Packets { PACKETS } else { KILOBITS };
    let burst = if meter.has_burst() { BURST } else { 0 };
    to.u16(unit | burst | if meter.has_stats { STATS } else { 0 });
    to.u32(meter.id);
    for band in &meter.bands {
        let (kind, levels) = match band.action {
            BandAction::Drop => (BAND_DROP, 0),
            BandAction::DscpRemark { levels } => (BAND_DSCP_REMARK, levels),
        };
        to.u16(kind);
        to.u16(16);
        to.u32(band.rate);
        to.u32(band.burst);
        to.u8(levels);
        to.zeros(3);
    }
}

/// Reads flags, number and bands up to the end.
fn take_meter(mut from: Reader<'_>) -> Result<Meter, DecodeError> {
    let (flags, id) = (from.u16()?, from.u32()?);
    let unit = if flags & PACKETS == 0 { MeterUnit::Kilobits } else { MeterUnit::Packets };
    let mut meter = Meter { id, unit, has_stats: flags & STATS != 0, bands: Vec::new() };
    while !from.is_empty() {
        let (kind, length) = (from.u16()?, from.u16()?);
        let mut body = from.body(length, 4, "meter band")?;
        let (rate, burst) = (body.u32()?, body.u32()?);
        let burst = if flags & BURST == 0 { 0 } else { burst };
        let action = match kind {
            BAND_DROP => BandAction::Drop,
            BAND_DSCP_REMARK => BandAction::DscpRemark { levels: body.u8()? },
            other => return Err(DecodeError::BadValue { what: "meter band", value: other.into() }),
        };
        meter.bands.push(Band { rate, burst, action });
    }
    Ok(meter)
}

/// Writes one meter as the switch describes it.
pub(super) fn put_description(meter: &Meter, to: &mut Writer) -> Result<(), EncodeError> {
    let start = to.len();
    to.zeros(2);
    put_meter(to, meter);
    to.patch_length(start, start, "meter description")
}

/// Reads one meter as the switch describes it.
pub(super) fn take_description(from: &mut Reader<'_>) -> Result<Meter, DecodeError> {
    let length = from.u16()?;
    take_meter(from.body(length, 2, "meter description")?)
}

/// What a meter counted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeterCounters {
    /// The meter.
    pub meter: u32,
    /// Flows that use it; Open vSwitch 3.1 always says 0.
    pub references: u32,
    /// Packets that came to it.
    pub packets: u64,
    /// Octets that came to it.
    pub octets: u64,
    /// Time since it was added.
    pub duration: Duration,
    /// Packets and octets that exceeded each band.
    pub bands: Vec<(u64, u64)>,
}

impl MeterCounters {
    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        let start = to.len();
        to.u32(self.meter);
        to.zeros(8);
        to.u32(self.references);
        to.u64(self.packets);
        to.u64(self.octets);
        put_time(to, self.duration);
        for (packets, octets) in &self.bands {
            to.u64(*packets);
            to.u64(*octets);
        }
        to.patch_length(start + 4, start, "meter counters")
    }

    pub(super) fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (meter, length) = (from.u32()?, from.u16()?);
        let mut body = from.body(length, 6, "meter counters")?;
        body.skip(6)?;
        let (references, packets, octets) = (body.u32()?, body.u64()?, body.u64()?);
        let duration = take_time(&mut body)?;
        let mut bands = Vec::new();
        while !body.is_empty() {
            bands.push((body.u64()?, body.u64()?));
        }
        Ok(Self { meter, references, packets, octets, duration, bands })
    }
}

/// What a switch can meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeterFeatures {
    /// Meters that it takes.
    pub meters_max: u32,
    /// Kinds of band: bit `n` is the kind of wire number `n` (1 drop, 2 remark).
    pub band_kinds: u32,
    /// Bits: 0 kilobits, 1 packets, 2 burst, 3 counters.
    pub capabilities: u32,
    /// Bands to a meter.
    pub bands_max: u8,
    /// Colours.
    pub colours_max: u8,
    /// Whether meters may be an action (bit 0), anywhere in the list (bit 1), several times (bit 2).
    pub features: u32,
}

impl MeterFeatures {
    pub(super) fn encode(self, to: &mut Writer) {
        to.u32(self.meters_max);
        to.u32(self.band_kinds);
        to.u32(self.capabilities);
        to.u8(self.bands_max);
        to.u8(self.colours_max);
        to.zeros(2);
        to.u32(self.features);
        to.zeros(4);
    }

    /// Open vSwitch leaves out the last 8 octets.
    pub(super) fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (meters_max, band_kinds, capabilities) = (from.u32()?, from.u32()?, from.u32()?);
        let (bands_max, colours_max) = (from.u8()?, from.u8()?);
        from.skip(2)?;
        let features = if from.left() >= 4 { from.u32()? } else { 0 };
        Ok(Self { meters_max, band_kinds, capabilities, bands_max, colours_max, features })
    }
}

//! Meters: rates above which packets are dropped or marked.
//!
//! Owns [`Meter`], its bands and their text. Never knows which flows use it.
//! Invariant: text and value convert both ways without loss.
//! Source: OpenFlow 1.5.1 §7.3.4.4, ovs-ofctl(8) "Meter Table Commands".

use std::{fmt, str::FromStr};

use super::text::{self, TextError};

/// What a meter counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MeterUnit {
    /// Packets.
    Packets,
    /// Thousands of bits.
    Kilobits,
}

/// What happens to packets above the rate of a band.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BandAction {
    /// They are dropped.
    Drop,
    /// Their drop precedence rises by so many levels. Open vSwitch 3.1 refuses it.
    DscpRemark {
        /// The levels.
        levels: u8,
    },
}

/// One rate of a meter, and what happens above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Band {
    /// The rate, in the meter's unit per second.
    pub rate: u32,
    /// The burst, in the meter's unit; 0 leaves it to the switch.
    pub burst: u32,
    /// What happens above.
    pub action: BandAction,
}

/// A meter.
///
/// ```
/// use openflow::flow::{Meter, MeterUnit};
/// let meter = Meter::drop_above(5, MeterUnit::Packets, 100, 20);
/// assert_eq!(meter.to_string(), "meter=5 pktps burst stats bands=type=drop rate=100 burst_size=20");
/// assert_eq!("meter=5,pktps,burst,stats,band=type=drop,rate=100,burst_size=20".parse::<Meter>()?, meter);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Meter {
    /// Its number, from 1.
    pub id: u32,
    /// What it counts.
    pub unit: MeterUnit,
    /// Whether packets and octets are counted.
    pub has_stats: bool,
    /// Its bands; at least one, and Open vSwitch takes at most 8.
    pub bands: Vec<Band>,
}

impl Meter {
    /// A meter that drops what exceeds `rate` with `burst` (0 leaves it to the switch), and counts.
    #[must_use]
    pub fn drop_above(id: u32, unit: MeterUnit, rate: u32, burst: u32) -> Self {
        Self { id, unit, has_stats: true, bands: vec![Band { rate, burst, action: BandAction::Drop }] }
    }

    /// Whether a band names a burst: the bands of a meter do so together.
    #[must_use]
    pub fn has_burst(&self) -> bool {
        self.bands.iter().any(|band| band.burst != 0)
    }
}

impl fmt::Display for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "meter={}", self.id)?;
        f.write_str(if self.unit == MeterUnit::Packets { " pktps" } else { " kbps" })?;
        f.write_str(if self.has_burst() { " burst" } else { "" })?;
        f.write_str(if self.has_stats { " stats" } else { "" })?;
        f.write_str(" bands=")?;
        for (index, band) in self.bands.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { " " })?;
            let kind = if band.action == BandAction::Drop { "drop" } else { "dscp_remark" };
            write!(f, "type={kind} rate={}", band.rate)?;
            if self.has_burst() {
                write!(f, " burst_size={}", band.burst)?;
            }
            if let BandAction::DscpRemark { levels } = band.action {
                write!(f, " prec_level={levels}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Meter {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let (head, bands) = text.split_once("band").ok_or_else(|| TextError::MissingValue("band".to_owned()))?;
        let bands = bands.strip_prefix('s').unwrap_or(bands);
        let bands = bands.strip_prefix('=').ok_or_else(|| text::bad("band", bands))?;
        let mut meter = Self { id: 0, unit: MeterUnit::Kilobits, has_stats: false, bands: Vec::new() };
        let mut has_burst = false;
        for item in text::items(head)? {
            match text::key_value(item) {
                ("meter", Some(value)) => meter.id = text::number("meter", value)?,
                ("pktps", None) => meter.unit = MeterUnit::Packets,
                ("kbps", None) => meter.unit = MeterUnit::Kilobits,
                ("burst", None) => has_burst = true,
                ("stats", None) => meter.has_stats = true,
                (key, _) => return Err(TextError::UnknownKey { key: key.to_owned(), context: "meter" }),
            }
        }
        for item in text::items(bands)? {
            meter.take_band_item(item, has_burst)?;
        }
        if meter.id == 0 || meter.bands.is_empty() {
            return Err(TextError::Invalid("a meter has a number from 1 and at least one band".to_owned()));
        }
        Ok(meter)
    }
}

impl Meter {
    fn take_band_item(&mut self, item: &str, has_burst: bool) -> Result<(), TextError> {
        let (key, value) = text::key_value(item);
        let value = value.ok_or_else(|| TextError::MissingValue(key.to_owned()))?;
        if key == "type" {
            let action = match value {
                "drop" => BandAction::Drop,
                "dscp_remark" => BandAction::DscpRemark { levels: 0 },
                _ => return Err(text::bad(key, value)),
            };
            self.bands.push(Band { rate: 0, burst: 0, action });
            return Ok(());
        }
        let band = self.bands.last_mut().ok_or_else(|| TextError::MissingValue("type".to_owned()))?;
        match (key, &mut band.action) {
            ("rate", _) => band.rate = text::number(key, value)?,
            ("burst_size", _) if has_burst => band.burst = text::number(key, value)?,
            ("prec_level", BandAction::DscpRemark { levels }) => *levels = text::number(key, value)?,
            _ => return Err(TextError::UnknownKey { key: key.to_owned(), context: "meter band" }),
        }
        Ok(())
    }
}

//! The `learn` action: a flow that installs flows.
//!
//! Owns [`Learn`], its specifications and their text. Never runs it.
//! Invariant: text and value convert both ways without loss.
//! Source: ovs-actions(7) "The learn action".

use std::fmt;

use super::{
    PortNo,
    field::{Field, Format, ones},
    subfield::Subfield,
    text::{self, AltHex, Place, TextError},
};

/// Installs a flow made from the packet at hand.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Learn {
    /// Table of the new flow.
    pub table: u8,
    /// Seconds without traffic after which it goes; 0 is never.
    pub idle_timeout: u16,
    /// Seconds after which it goes; 0 is never.
    pub hard_timeout: u16,
    /// Its priority.
    pub priority: u16,
    /// Its cookie.
    pub cookie: u64,
    /// Whether its end is told to the controller.
    pub send_flow_removed: bool,
    /// Whether learned flows go when the learning flow goes.
    pub delete_learned: bool,
    /// Idle timeout once a TCP FIN or RST was seen; 0 is none.
    pub fin_idle_timeout: u16,
    /// Hard timeout once a TCP FIN or RST was seen; 0 is none.
    pub fin_hard_timeout: u16,
    /// How many flows it may learn; 0 is any number.
    pub limit: u32,
    /// Bit that says whether the flow was learned within the limit.
    pub result: Option<Subfield>,
    /// What the new flow matches and does.
    pub specs: Vec<LearnSpec>,
}

/// The priority of flows for which none is named.
pub const DEFAULT_PRIORITY: u16 = 0x8000;

impl Default for Learn {
    fn default() -> Self {
        Self {
            table: 1,
            idle_timeout: 0,
            hard_timeout: 0,
            priority: DEFAULT_PRIORITY,
            cookie: 0,
            send_flow_removed: false,
            delete_learned: false,
            fin_idle_timeout: 0,
            fin_hard_timeout: 0,
            limit: 0,
            result: None,
            specs: Vec::new(),
        }
    }
}

/// Where a specification takes its bits from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LearnSource {
    /// From the packet at hand.
    Field(Subfield),
    /// A constant.
    Value(u128),
}

/// One part of a learned flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LearnSpec {
    /// The new flow matches the target.
    Match {
        /// The value to match.
        source: LearnSource,
        /// What is matched.
        target: Subfield,
    },
    /// The new flow writes the target.
    Load {
        /// The value to write.
        source: LearnSource,
        /// What is written.
        target: Subfield,
    },
    /// The new flow outputs to the port in these bits.
    Output {
        /// The bits that hold the port number.
        source: Subfield,
    },
}

impl fmt::Display for LearnSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Match { source: LearnSource::Field(source), target } if source == target => write!(f, "{target}"),
            Self::Match { source: LearnSource::Field(source), target } => write!(f, "{target}={source}"),
            Self::Match { source: LearnSource::Value(value), target } if is_named_whole(*target) => {
                write!(f, "{}=", target.field())?;
                text::format_value(f, target.field(), (*value, target.field().full_mask()), Place::Match)
            }
            Self::Match { source: LearnSource::Value(value), target } => write!(f, "{target}={}", AltHex(*value)),
            Self::Load { source: LearnSource::Field(source), target } => write!(f, "load:{source}->{target}"),
            Self::Load { source: LearnSource::Value(value), target } => write!(f, "load:{}->{target}", AltHex(*value)),
            Self::Output { source } => write!(f, "output:{source}"),
        }
    }
}

/// Whether a constant for these bits can be written in the field's own format.
fn is_named_whole(bits: Subfield) -> bool {
    bits.is_whole() && bits.bits() == bits.field().info().bits
}

impl LearnSpec {
    fn parse(item: &str) -> Result<Self, TextError> {
        if let Some(rest) = item.strip_prefix("load:") {
            let (source, target) = rest.split_once("->").ok_or_else(|| text::bad("load", rest))?;
            let target: Subfield = target.parse()?;
            return Ok(Self::Load { source: parse_source("load", source, target)?, target });
        }
        if let Some(rest) = item.strip_prefix("output:") {
            return Ok(Self::Output { source: rest.parse()? });
        }
        let Some((target, source)) = item.split_once('=') else {
            let target: Subfield = item.parse()?;
            return Ok(Self::Match { source: LearnSource::Field(target), target });
        };
        let target = Subfield::from(match target {
            "dl_type" => Field::EthType,
            "in_port" => Field::InPort16,
            _ => return Self::parse_match(target.parse()?, source),
        });
        Self::parse_match(target, source)
    }

    fn parse_match(target: Subfield, source: &str) -> Result<Self, TextError> {
        Ok(Self::Match { source: parse_source("learn", source, target)?, target })
    }
}

fn parse_source(key: &str, source: &str, target: Subfield) -> Result<LearnSource, TextError> {
    if let Ok(bits) = source.parse::<Subfield>() {
        if bits.bits() != target.bits() {
            return Err(TextError::Invalid(format!("{key}: {source} and {target} differ in length")));
        }
        return Ok(LearnSource::Field(bits));
    }
    let plain = matches!(target.field().info().format, Format::Decimal | Format::Hexadecimal) || !target.is_whole();
    let value = if plain || source.starts_with("0x") {
        text::number(key, source)?
    } else {
        text::parse_value(target.field(), key, source)?.0
    };
    if value & !ones(target.bits()) != 0 {
        return Err(text::bad(key, source));
    }
    Ok(LearnSource::Value(value))
}

impl fmt::Display for Learn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "learn(table={}", self.table)?;
        let timeouts = [
            ("idle_timeout", self.idle_timeout),
            ("hard_timeout", self.hard_timeout),
            ("fin_idle_timeout", self.fin_idle_timeout),
            ("fin_hard_timeout", self.fin_hard_timeout),
        ];
        for (name, seconds) in timeouts.into_iter().filter(|(_, seconds)| *seconds != 0) {
            write!(f, ",{name}={seconds}")?;
        }
        if self.priority != DEFAULT_PRIORITY {
            write!(f, ",priority={}", self.priority)?;
        }
        if self.send_flow_removed {
            f.write_str(",send_flow_rem")?;
        }
        if self.delete_learned {
            f.write_str(",delete_learned")?;
        }
        if self.cookie != 0 {
            write!(f, ",cookie={:#x}", self.cookie)?;
        }
        if self.limit != 0 {
            write!(f, ",limit={}", self.limit)?;
        }
        if let Some(result) = self.result {
            write!(f, ",result_dst={result}")?;
        }
        self.specs.iter().try_for_each(|spec| write!(f, ",{spec}"))?;
        f.write_str(")")
    }
}

impl Learn {
    pub(super) fn parse(text: &str) -> Result<Self, TextError> {
        let mut learn = Self::default();
        for item in text::items(text)? {
            let (key, value) = item.split_once('=').unwrap_or((item, ""));
            match key {
                "table" => learn.table = text::number(key, value)?,
                "idle_timeout" => learn.idle_timeout = text::number(key, value)?,
                "hard_timeout" => learn.hard_timeout = text::number(key, value)?,
                "fin_idle_timeout" => learn.fin_idle_timeout = text::number(key, value)?,
                "fin_hard_timeout" => learn.fin_hard_timeout = text::number(key, value)?,
                "priority" => learn.priority = text::number(key, value)?,
                "cookie" => learn.cookie = text::number(key, value)?,
                "limit" => learn.limit = text::number(key, value)?,
                "result_dst" => learn.result = Some(value.parse()?),
                "send_flow_rem" => learn.send_flow_removed = true,
                "delete_learned" => learn.delete_learned = true,
                _ => learn.specs.push(LearnSpec::parse(item)?),
            }
        }
        Ok(learn)
    }

    /// The specification that matches the packet's ingress port.
    #[must_use]
    pub fn match_in_port(port: PortNo) -> Option<LearnSpec> {
        let value = u128::from(port.to_u16()?);
        Some(LearnSpec::Match { source: LearnSource::Value(value), target: Subfield::whole(Field::InPort16) })
    }
}

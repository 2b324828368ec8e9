//! Queues of ports: how they are set and what they counted.
//!
//! Owns [`Queue`], [`QueueCounters`] and [`QueueFilter`]. Never sets a queue: that is done through the database of Open vSwitch.
//! Source: OpenFlow 1.5.1 §7.3.5.8 and §7.3.5.9.

use std::time::Duration;

use super::{
    buffer::{Reader, Writer, padding},
    error::{DecodeError, EncodeError},
    stats::{put_time, take_time},
};
use crate::flow::PortNo;

/// All queues: a wildcard in requests.
pub const QUEUE_ALL: u32 = 0xffff_ffff;
const RATE_MIN: u16 = 1;
const RATE_MAX: u16 = 2;

/// Which queues are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueFilter {
    /// The port; `ANY` is every one.
    pub port: PortNo,
    /// The queue; [`QUEUE_ALL`] is every one.
    pub queue: u32,
}

impl QueueFilter {
    pub(super) fn encode(self, to: &mut Writer) {
        to.u32(self.port.0);
        to.u32(self.queue);
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { port: PortNo(from.u32()?), queue: from.u32()? })
    }
}

/// How a queue is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Queue {
    /// Its port.
    pub port: PortNo,
    /// Its number.
    pub queue: u32,
    /// The rate that it is sure of, in tenths of a per cent of the port's.
    pub rate_min_permille: Option<u16>,
    /// The rate that it may not exceed, in tenths of a per cent of the port's.
    pub rate_max_permille: Option<u16>,
}

impl Queue {
    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        let start = to.len();
        to.u32(self.port.0);
        to.u32(self.queue);
        to.zeros(8);
        for (kind, rate) in [(RATE_MIN, self.rate_min_permille), (RATE_MAX, self.rate_max_permille)] {
            if let Some(rate) = rate {
                to.u16(kind);
                to.u16(8);
                to.u16(rate);
                to.zeros(2);
            }
        }
        to.patch_length(start + 8, start, "queue description")
    }

    pub(super) fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (port, queue, length) = (PortNo(from.u32()?), from.u32()?, from.u16()?);
        let mut body = from.body(length, 10, "queue description")?;
        body.skip(6)?;
        let mut described = Self { port, queue, rate_min_permille: None, rate_max_permille: None };
        while !body.is_empty() {
            let (kind, length) = (body.u16()?, body.u16()?);
            let mut value = body.body(length, 4, "queue property")?;
            body.skip_padding(padding(length.into()));
            match kind {
                RATE_MIN => described.rate_min_permille = Some(value.u16()?),
                RATE_MAX => described.rate_max_permille = Some(value.u16()?),
                _ => {}
            }
        }
        Ok(described)
    }
}

/// What a queue counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueCounters {
    /// Its port.
    pub port: PortNo,
    /// Its number.
    pub queue: u32,
    /// Octets sent.
    pub octets: u64,
    /// Packets sent.
    pub packets: u64,
    /// Packets dropped because the queue was full.
    pub errors: u64,
    /// Time since it was set.
    pub duration: Duration,
}

impl QueueCounters {
    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        let start = to.len();
        to.zeros(8);
        to.u32(self.port.0);
        to.u32(self.queue);
        to.u64(self.octets);
        to.u64(self.packets);
        to.u64(self.errors);
        put_time(to, self.duration);
        to.patch_length(start, start, "queue counters")
    }

    pub(super) fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let length = from.u16()?;
        let mut body = from.body(length, 2, "queue counters")?;
        body.skip(6)?;
        let (port, queue) = (PortNo(body.u32()?), body.u32()?);
        let (octets, packets, errors) = (body.u64()?, body.u64()?, body.u64()?);
        Ok(Self { port, queue, octets, packets, errors, duration: take_time(&mut body)? })
    }
}

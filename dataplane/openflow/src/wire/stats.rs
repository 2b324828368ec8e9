//! Counters of flows as OXS TLVs.
//!
//! Owns [`FlowCounters`]. Never sums them up.
//! Source: OpenFlow 1.5.1 §7.2.4.

use std::time::Duration;

use super::{
    buffer::{Reader, Writer, padding},
    error::{DecodeError, EncodeError},
};

const OXS_CLASS: u16 = 0x8002;
const DURATION: u8 = 0;
const IDLE_TIME: u8 = 1;
const FLOW_COUNT: u8 = 3;
const PACKET_COUNT: u8 = 4;
const BYTE_COUNT: u8 = 5;

/// What a flow, or a set of flows, has counted. What the switch did not say is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FlowCounters {
    /// Time since it was installed.
    pub duration: Option<Duration>,
    /// Time since it was last used.
    pub idle: Option<Duration>,
    /// Number of flows.
    pub flows: Option<u32>,
    /// Packets.
    pub packets: Option<u64>,
    /// Octets.
    pub octets: Option<u64>,
}

fn put_duration(to: &mut Writer, field: u8, duration: Option<Duration>) {
    if let Some(duration) = duration {
        put_header(to, field, 8);
        put_time(to, duration);
    }
}

/// Writes seconds and nanoseconds.
pub(super) fn put_time(to: &mut Writer, duration: Duration) {
    to.u32(u32::try_from(duration.as_secs()).unwrap_or(u32::MAX));
    to.u32(duration.subsec_nanos());
}

fn put_header(to: &mut Writer, field: u8, length: u8) {
    to.u16(OXS_CLASS);
    to.u8(field << 1);
    to.u8(length);
}

/// Reads seconds and nanoseconds.
pub(super) fn take_time(from: &mut Reader<'_>) -> Result<Duration, DecodeError> {
    let (seconds, nanoseconds) = (from.u32()?, from.u32()?);
    Ok(Duration::new(seconds.into(), nanoseconds.min(999_999_999)))
}

impl FlowCounters {
    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        let start = to.len();
        to.zeros(4);
        put_duration(to, DURATION, self.duration);
        put_duration(to, IDLE_TIME, self.idle);
        if let Some(flows) = self.flows {
            put_header(to, FLOW_COUNT, 4);
            to.u32(flows);
        }
        for (field, count) in [(PACKET_COUNT, self.packets), (BYTE_COUNT, self.octets)] {
            if let Some(count) = count {
                put_header(to, field, 8);
                to.u64(count);
            }
        }
        to.patch_length(start + 2, start, "flow counters")?;
        to.align(start);
        Ok(())
    }

    pub(super) fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        from.skip(2)?;
        let length = from.u16()?;
        let mut body = from.body(length, 4, "flow counters")?;
        from.skip_padding(padding(length.into()));
        let mut counters = Self::default();
        while !body.is_empty() {
            let (class, field, length) = (body.u16()?, body.u8()? >> 1, body.u8()?);
            let mut value = body.sub(length.into(), "flow counter")?;
            match (class, field) {
                (OXS_CLASS, DURATION) => counters.duration = Some(take_time(&mut value)?),
                (OXS_CLASS, IDLE_TIME) => counters.idle = Some(take_time(&mut value)?),
                (OXS_CLASS, FLOW_COUNT) => counters.flows = Some(value.u32()?),
                (OXS_CLASS, PACKET_COUNT) => counters.packets = Some(value.u64()?),
                (OXS_CLASS, BYTE_COUNT) => counters.octets = Some(value.u64()?),
                _ => {}
            }
        }
        Ok(counters)
    }
}

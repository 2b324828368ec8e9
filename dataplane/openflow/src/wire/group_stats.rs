//! Groups as a switch holds them, what they counted and what the switch can do with them.
//!
//! Owns [`GroupCounters`], [`GroupFeatures`] and the description of a group. Never changes one.
//! Source: OpenFlow 1.5.1 §7.3.5.10 to §7.3.5.12.

use std::time::Duration;

use super::{
    buffer::{Reader, Writer},
    error::{DecodeError, EncodeError},
    group_mod::{kind_number, put_buckets_and_properties, take_buckets_and_properties},
    stats::{put_time, take_time},
};
use crate::flow::Group;

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

impl GroupCounters {
    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        let start = to.len();
        to.zeros(4);
        to.u32(self.group);
        to.u32(self.references);
        to.zeros(4);
        to.u64(self.packets);
        to.u64(self.octets);
        put_time(to, self.duration);
        for (packets, octets) in &self.buckets {
            to.u64(*packets);
            to.u64(*octets);
        }
        to.patch_length(start, start, "group counters")
    }

    pub(super) fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let length = from.u16()?;
        let mut body = from.body(length, 2, "group counters")?;
        body.skip(2)?;
        let (group, references) = (body.u32()?, body.u32()?);
        body.skip(4)?;
        let (packets, octets) = (body.u64()?, body.u64()?);
        let duration = take_time(&mut body)?;
        let mut buckets = Vec::new();
        while !body.is_empty() {
            buckets.push((body.u64()?, body.u64()?));
        }
        Ok(Self { group, references, packets, octets, duration, buckets })
    }
}

/// Writes one group as the switch describes it.
pub(super) fn put_description(group: &Group, to: &mut Writer) -> Result<(), EncodeError> {
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

/// Reads one group as the switch describes it.
pub(super) fn take_description(from: &mut Reader<'_>) -> Result<Group, DecodeError> {
    let length = from.u16()?;
    let mut body = from.body(length, 2, "group description")?;
    let kind = body.u8()?;
    body.skip(1)?;
    let (id, buckets) = (body.u32()?, body.u16()?);
    body.skip(6)?;
    take_buckets_and_properties(&mut body, id, kind, buckets)
}

/// What a switch can do with groups. Places in the lists are kinds: all, select, indirect, fast failover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GroupFeatures {
    /// Kinds that it takes: bit `n` is place `n` in the lists.
    pub kinds: u32,
    /// Bits: 0 weights, 1 liveness, 2 chaining, 3 chaining with a check for loops.
    pub capabilities: u32,
    /// Groups of each kind that it takes.
    pub groups_max: [u32; 4],
    /// Actions in buckets of each kind: bit `n` is the action of wire number `n`.
    pub actions: [u32; 4],
}

impl GroupFeatures {
    pub(super) fn encode(self, to: &mut Writer) {
        to.u32(self.kinds);
        to.u32(self.capabilities);
        self.groups_max.iter().chain(&self.actions).for_each(|word| to.u32(*word));
    }

    pub(super) fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut features = Self { kinds: from.u32()?, capabilities: from.u32()?, ..Self::default() };
        for word in features.groups_max.iter_mut().chain(&mut features.actions) {
            *word = from.u32()?;
        }
        Ok(features)
    }
}

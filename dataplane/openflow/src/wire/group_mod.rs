//! Changing groups.
//!
//! Owns [`GroupMod`] and the wire form of buckets. Never decides what should change.
//! Source: OpenFlow 1.5.1 §7.3.4.3; selection methods by the Netronome property that Open vSwitch takes.

use std::collections::BTreeMap;

use super::{
    action::{begin, put_list, take_list},
    buffer::{Reader, Writer, padding},
    error::{DecodeError, EncodeError},
    flow_mod::GROUP_ANY,
    oxm::{self, Oxm},
};
use crate::flow::{Bucket, Group, GroupKind, PortNo, Selection};

/// All groups: a wildcard in requests.
pub const GROUP_ALL: u32 = 0xffff_fffc;
/// All buckets: a wildcard in requests.
const BUCKET_ALL: u32 = 0xffff_ffff;
const NETRONOME: u32 = 0x0000_154d;
const SELECTION_METHOD: u32 = 1;
const SELECTION_NAME_OCTETS: usize = 16;

const BUCKET_WEIGHT: u16 = 0;
const BUCKET_WATCH_PORT: u16 = 1;
const BUCKET_WATCH_GROUP: u16 = 2;
const EXPERIMENTER: u16 = 0xffff;

/// A change to groups.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupMod {
    /// Adds a group whose number is free.
    Add(Group),
    /// Changes a group that is there.
    Modify(Group),
    /// Adds a group, or changes the one of that number (an extension of Open vSwitch).
    AddOrModify(Group),
    /// Deletes a group and the flows that use it. [`GROUP_ALL`] deletes all.
    Delete(u32),
    /// Adds the buckets of this group to those that the switch has.
    InsertBuckets(BucketPlace, Group),
    /// Takes buckets out of the group of this number.
    RemoveBuckets(BucketPlace, u32),
}

/// Where buckets are inserted, or which are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BucketPlace {
    /// Before the first one; the first one.
    First,
    /// After the last one; the last one.
    Last,
    /// After the bucket of this number; the bucket of this number.
    Bucket(u32),
    /// All of them.
    All,
}

const BUCKET_FIRST: u32 = 0xffff_fffd;
const BUCKET_LAST: u32 = 0xffff_fffe;

impl BucketPlace {
    fn number(self) -> u32 {
        match self {
            Self::First => BUCKET_FIRST,
            Self::Last => BUCKET_LAST,
            Self::Bucket(id) => id,
            Self::All => BUCKET_ALL,
        }
    }

    fn from_number(number: u32) -> Self {
        match number {
            BUCKET_FIRST => Self::First,
            BUCKET_LAST => Self::Last,
            BUCKET_ALL => Self::All,
            id => Self::Bucket(id),
        }
    }
}

const ADD: u16 = 0;
const MODIFY: u16 = 1;
const DELETE: u16 = 2;
const INSERT_BUCKETS: u16 = 3;
const REMOVE_BUCKETS: u16 = 5;
const ADD_OR_MODIFY: u16 = 0x8000;

impl GroupMod {
    /// The group's number.
    #[must_use]
    pub fn id(&self) -> u32 {
        match self {
            Self::Add(group) | Self::Modify(group) | Self::AddOrModify(group) | Self::InsertBuckets(_, group) => {
                group.id
            }
            Self::Delete(id) | Self::RemoveBuckets(_, id) => *id,
        }
    }

    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        let (command, place, group) = match self {
            Self::Add(group) => (ADD, BucketPlace::All, group),
            Self::Modify(group) => (MODIFY, BucketPlace::All, group),
            Self::AddOrModify(group) => (ADD_OR_MODIFY, BucketPlace::All, group),
            Self::InsertBuckets(place, group) => (INSERT_BUCKETS, *place, group),
            Self::Delete(id) => {
                put_bare(to, DELETE, *id, BucketPlace::All);
                return Ok(());
            }
            Self::RemoveBuckets(place, id) => {
                put_bare(to, REMOVE_BUCKETS, *id, *place);
                return Ok(());
            }
        };
        group.check().map_err(|source| EncodeError::Group { group: group.to_string(), source: Box::new(source) })?;
        to.u16(command);
        to.u8(kind_number(group.kind));
        to.zeros(1);
        to.u32(group.id);
        let at = to.len();
        to.zeros(4);
        to.u32(place.number());
        put_buckets_and_properties(to, group, at)
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let (command, kind) = (from.u16()?, from.u8()?);
        from.skip(1)?;
        let id = from.u32()?;
        let buckets = from.u16()?;
        from.skip(2)?;
        let place = BucketPlace::from_number(from.u32()?);
        let mut group = || take_buckets_and_properties(&mut from, id, kind, buckets);
        match command {
            ADD => group().map(Self::Add),
            MODIFY => group().map(Self::Modify),
            ADD_OR_MODIFY => group().map(Self::AddOrModify),
            DELETE => Ok(Self::Delete(id)),
            INSERT_BUCKETS => group().map(|group| Self::InsertBuckets(place, group)),
            REMOVE_BUCKETS => Ok(Self::RemoveBuckets(place, id)),
            other => Err(DecodeError::BadValue { what: "group_mod command", value: other.into() }),
        }
    }
}

/// A change that needs no buckets.
fn put_bare(to: &mut Writer, command: u16, group: u32, place: BucketPlace) {
    to.u16(command);
    to.zeros(2);
    to.u32(group);
    to.zeros(4);
    to.u32(place.number());
}

pub(super) fn kind_number(kind: GroupKind) -> u8 {
    GroupKind::ALL.iter().find(|(one, ..)| *one == kind).map_or(0, |(_, number, _)| *number)
}

/// Writes buckets and properties; the length of the buckets goes to `length_at`.
pub(super) fn put_buckets_and_properties(to: &mut Writer, group: &Group, length_at: usize) -> Result<(), EncodeError> {
    let start = to.len();
    group.buckets.iter().try_for_each(|bucket| put_bucket(to, bucket, group.kind))?;
    to.patch_length(length_at, start, "buckets")?;
    let Some(selection) = &group.selection else { return Ok(()) };
    let start = begin(to, EXPERIMENTER);
    to.u32(NETRONOME);
    to.u32(SELECTION_METHOD);
    to.zeros(4);
    to.text(&selection.method, SELECTION_NAME_OCTETS);
    to.u64(selection.parameter);
    for (field, mask) in &selection.fields {
        oxm::put(to, *field, *mask, field.full_mask());
    }
    to.patch_length(start + 2, start, "selection method")?;
    to.align(start);
    Ok(())
}

fn put_bucket(to: &mut Writer, bucket: &Bucket, kind: GroupKind) -> Result<(), EncodeError> {
    let start = to.len();
    to.zeros(4);
    to.u32(bucket.id);
    let actions = to.len();
    put_list(to, &bucket.actions)?;
    to.patch_length(start + 2, actions, "bucket actions")?;
    if kind == GroupKind::Select {
        let at = begin(to, BUCKET_WEIGHT);
        to.u16(bucket.weight);
        to.zeros(2);
        to.patch_length(at + 2, at, "bucket property")?;
    }
    let port = bucket.watch_port.map(|port| port.0);
    for (property, watched) in [(BUCKET_WATCH_PORT, port), (BUCKET_WATCH_GROUP, bucket.watch_group)] {
        if let Some(watched) = watched {
            let at = begin(to, property);
            to.u32(watched);
            to.patch_length(at + 2, at, "bucket property")?;
        }
    }
    to.patch_length(start, start, "bucket")
}

/// Reads `length` octets of buckets, and properties up to the end.
pub(super) fn take_buckets_and_properties(
    from: &mut Reader<'_>,
    id: u32,
    kind: u8,
    length: u16,
) -> Result<Group, DecodeError> {
    let known = GroupKind::ALL.iter().find(|(_, number, _)| *number == kind);
    let kind = known.ok_or(DecodeError::BadValue { what: "group type", value: kind.into() })?.0;
    let mut group = Group { id, kind, selection: None, buckets: Vec::new() };
    let mut buckets = from.sub(length.into(), "buckets")?;
    while !buckets.is_empty() {
        group.buckets.push(take_bucket(&mut buckets, kind)?);
    }
    while !from.is_empty() {
        let (property, length) = (from.u16()?, from.u16()?);
        let mut body = from.body(length, 4, "group property")?;
        from.skip_padding(padding(length.into()));
        if property == EXPERIMENTER && (body.u32()?, body.u32()?) == (NETRONOME, SELECTION_METHOD) {
            group.selection = Some(take_selection(&mut body)?);
        }
    }
    Ok(group)
}

fn take_selection(body: &mut Reader<'_>) -> Result<Selection, DecodeError> {
    body.skip(4)?;
    let (method, parameter) = (body.text(SELECTION_NAME_OCTETS)?, body.u64()?);
    let mut fields = BTreeMap::new();
    while !body.is_empty() {
        if let Oxm::Known(field, masked) = oxm::take(body)? {
            fields.insert(field, masked.value);
        }
    }
    Ok(Selection { method, parameter, fields })
}

fn take_bucket(from: &mut Reader<'_>, kind: GroupKind) -> Result<Bucket, DecodeError> {
    let (length, actions_length) = (from.u16()?, from.u16()?);
    let mut body = from.body(length, 4, "bucket")?;
    let id = body.u32()?;
    let actions = take_list(body.sub(actions_length.into(), "bucket actions")?, 0)?;
    let weight = u16::from(kind == GroupKind::Select);
    let mut bucket = Bucket { weight, ..Bucket::new(id, actions) };
    while !body.is_empty() {
        let (property, length) = (body.u16()?, body.u16()?);
        let mut value = body.body(length, 4, "bucket property")?;
        body.skip_padding(padding(length.into()));
        match property {
            BUCKET_WEIGHT => bucket.weight = value.u16()?,
            BUCKET_WATCH_PORT => bucket.watch_port = Some(PortNo(value.u32()?)).filter(|port| *port != PortNo::ANY),
            BUCKET_WATCH_GROUP => bucket.watch_group = Some(value.u32()?).filter(|group| *group != GROUP_ANY),
            _ => {}
        }
    }
    Ok(bucket)
}

//! Groups: lists of action buckets that flows share.
//!
//! Owns [`Group`] and its text. Never knows which flows use it.
//! Invariant: text and value convert both ways without loss; buckets have explicit ids, as Open vSwitch dumps them.
//! Source: OpenFlow 1.5.1 §7.3.4.2; selection methods from Nicira's `NTR` property.

use std::{collections::BTreeMap, fmt, str::FromStr};

use thiserror::Error;

use super::{
    Action, ActionError, Field, PortNo,
    action_text::{ActionList, parse_actions},
    check::check_plain,
    text::{self, Place, TextError},
};

/// The highest group number; those above are reserved.
pub(crate) const GROUP_MAX: u32 = 0xffff_ff00;
/// The highest bucket number; those above are reserved.
pub(crate) const BUCKET_MAX: u32 = 0xffff_feff;

/// What a group does with its buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupKind {
    /// Runs all of them, each on its own copy.
    All,
    /// Runs one, chosen by weight.
    Select,
    /// Runs the only one.
    Indirect,
    /// Runs the first live one.
    FastFailover,
}

impl GroupKind {
    /// Wire number and name of each.
    pub(crate) const ALL: [(Self, u8, &'static str); 4] = [
        (Self::All, 0, "all"),
        (Self::Select, 1, "select"),
        (Self::Indirect, 2, "indirect"),
        (Self::FastFailover, 3, "ff"),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, ..)| *kind == self).map_or("", |(.., name)| name)
    }
}

/// How a `select` group chooses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selection {
    /// `hash` or `dp_hash`; at most 15 characters.
    pub method: String,
    /// Parameter of the method.
    pub parameter: u64,
    /// Fields that are hashed, with their masks.
    pub fields: BTreeMap<Field, u128>,
}

/// One list of actions in a group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket {
    /// Number of the bucket in its group.
    pub id: u32,
    /// Share of the traffic in a `select` group; 0 elsewhere.
    pub weight: u16,
    /// The port that must be up.
    pub watch_port: Option<PortNo>,
    /// The group that must be live.
    pub watch_group: Option<u32>,
    /// What it does.
    pub actions: Vec<Action>,
}

impl Bucket {
    /// A bucket that watches nothing, of weight 1 in `select` groups.
    #[must_use]
    pub fn new(id: u32, actions: Vec<Action>) -> Self {
        Self { id, weight: 0, watch_port: None, watch_group: None, actions }
    }
}

/// A group.
///
/// ```
/// use openflow::flow::{Action, Group, GroupKind, PortNo};
/// let flood = Group::new(7, GroupKind::All, [vec![Action::output(PortNo(1))], vec![Action::output(PortNo(2))]]);
/// assert_eq!(
///     flood.to_string(),
///     "group_id=7,type=all,bucket=bucket_id:0,actions=output:1,bucket=bucket_id:1,actions=output:2"
/// );
/// assert_eq!(flood.to_string().parse::<Group>()?, flood);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    /// Its number.
    pub id: u32,
    /// What it does with its buckets.
    pub kind: GroupKind,
    /// How a `select` group chooses; `None` leaves it to the switch.
    pub selection: Option<Selection>,
    /// The buckets.
    pub buckets: Vec<Bucket>,
}

/// A group that no switch would take.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GroupError {
    /// A reserved group number.
    #[error("group {id:#x} is a reserved number")]
    ReservedId {
        /// The number.
        id: u32,
    },
    /// Two buckets of one number, or a reserved one.
    #[error("bucket {bucket:#x} of group {group} is reserved or stands twice")]
    BucketId {
        /// The group.
        group: u32,
        /// The bucket.
        bucket: u32,
    },
    /// A part that this kind of group does not have.
    #[error("group {group}: {why}")]
    Invalid {
        /// The group.
        group: u32,
        /// What is wrong.
        why: &'static str,
    },
    /// An action is wrong.
    #[error("bucket {bucket} of group {group}: bad action")]
    Action {
        /// The group.
        group: u32,
        /// The bucket.
        bucket: u32,
        /// What is wrong.
        #[source]
        source: ActionError,
    },
}

impl Group {
    /// A group with one bucket per list of actions, numbered from 0; in a `select` group each weighs 1.
    pub fn new(id: u32, kind: GroupKind, buckets: impl IntoIterator<Item = Vec<Action>>) -> Self {
        let weight = u16::from(kind == GroupKind::Select);
        let buckets = (0_u32..).zip(buckets).map(|(id, actions)| Bucket { weight, ..Bucket::new(id, actions) });
        Self { id, kind, selection: None, buckets: buckets.collect() }
    }

    /// Checks numbers, weights and actions.
    ///
    /// # Errors
    /// Names the first thing that a switch would refuse.
    pub fn check(&self) -> Result<(), GroupError> {
        let group = self.id;
        let invalid = |why| Err(GroupError::Invalid { group, why });
        if group > GROUP_MAX {
            return Err(GroupError::ReservedId { id: group });
        }
        if self.kind == GroupKind::Indirect && self.buckets.len() != 1 {
            return invalid("an indirect group has exactly one bucket");
        }
        if self.selection.is_some() && self.kind != GroupKind::Select {
            return invalid("only a select group has a selection method");
        }
        let is_name =
            |name: &str| matches!(name.len(), 1..=15) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if self.selection.as_ref().is_some_and(|by| !is_name(&by.method)) {
            return invalid("the name of a selection method has 1 to 15 letters, digits and underscores");
        }
        let mut seen = std::collections::BTreeSet::new();
        for bucket in &self.buckets {
            if bucket.id > BUCKET_MAX || !seen.insert(bucket.id) {
                return Err(GroupError::BucketId { group, bucket: bucket.id });
            }
            if bucket.weight != 0 && self.kind != GroupKind::Select {
                return invalid("only buckets of a select group have a weight");
            }
            check_plain(&bucket.actions).map_err(|source| GroupError::Action { group, bucket: bucket.id, source })?;
        }
        Ok(())
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group_id={},type={}", self.id, self.kind.name())?;
        if let Some(selection) = &self.selection {
            write!(f, ",selection_method={}", selection.method)?;
            if selection.parameter != 0 {
                write!(f, ",selection_method_param={}", selection.parameter)?;
            }
            format_selection_fields(f, &selection.fields)?;
        }
        for bucket in &self.buckets {
            write!(f, ",bucket=bucket_id:{},", bucket.id)?;
            if self.kind == GroupKind::Select && bucket.weight != 1 {
                write!(f, "weight:{},", bucket.weight)?;
            }
            if let Some(port) = bucket.watch_port {
                write!(f, "watch_port:{port},")?;
            }
            if let Some(group) = bucket.watch_group {
                write!(f, "watch_group:{group},")?;
            }
            write!(f, "actions={}", ActionList(&bucket.actions))?;
        }
        Ok(())
    }
}

fn format_selection_fields(f: &mut fmt::Formatter<'_>, fields: &BTreeMap<Field, u128>) -> fmt::Result {
    match fields.first_key_value() {
        None => Ok(()),
        Some((field, mask)) if fields.len() == 1 && *mask == field.full_mask() => write!(f, ",fields={field}"),
        Some(_) => {
            let parts = fields.iter().map(|(field, mask)| {
                let mut part = field.to_string();
                if *mask != field.full_mask() {
                    part.push('=');
                    // Writing to a String cannot fail.
                    let _ = text::format_value(&mut part, *field, (*mask, field.full_mask()), Place::Action);
                }
                part
            });
            write!(f, ",fields({})", parts.collect::<Vec<_>>().join(","))
        }
    }
}

impl FromStr for Group {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let mut pieces = text.split("bucket=");
        let mut group = Self { id: 0, kind: GroupKind::All, selection: None, buckets: Vec::new() };
        let mut has_kind = false;
        for item in text::items(pieces.next().unwrap_or(""))? {
            let (key, value) = text::key_value(item);
            let value = value.ok_or_else(|| TextError::MissingValue(key.to_owned()))?;
            match key {
                "group_id" => group.id = text::number(key, value)?,
                "type" => {
                    let name = if value == "fast_failover" { "ff" } else { value };
                    let known = GroupKind::ALL.iter().find(|(.., known)| *known == name);
                    group.kind = known.map(|(kind, ..)| *kind).ok_or_else(|| text::bad(key, value))?;
                    has_kind = true;
                }
                "selection_method" => selection(&mut group).method = value.to_owned(),
                "selection_method_param" => selection(&mut group).parameter = text::number(key, value)?,
                "fields" => selection(&mut group).fields = parse_selection_fields(value)?,
                _ => return Err(TextError::UnknownKey { key: key.to_owned(), context: "group" }),
            }
        }
        if !has_kind {
            return Err(TextError::MissingValue("type".to_owned()));
        }
        for (index, piece) in (0_u32..).zip(pieces) {
            let bucket = parse_bucket(index, group.kind, piece.trim_end_matches([',', ' ']))?;
            group.buckets.push(bucket);
        }
        group.check().map_err(|error| TextError::Invalid(error.to_string()))?;
        Ok(group)
    }
}

fn selection(group: &mut Group) -> &mut Selection {
    group.selection.get_or_insert_with(|| Selection { method: String::new(), parameter: 0, fields: BTreeMap::new() })
}

fn parse_selection_fields(text: &str) -> Result<BTreeMap<Field, u128>, TextError> {
    let parse = |item: &str| {
        let (name, mask) = item.split_once('=').map_or((item, None), |(name, mask)| (name, Some(mask)));
        let field = Field::by_name(name).ok_or_else(|| TextError::UnknownField(name.to_owned()))?;
        let mask =
            mask.map_or(Ok(field.full_mask()), |mask| text::parse_value(field, name, mask).map(|(mask, _)| mask));
        Ok((field, mask?))
    };
    text::items(text)?.into_iter().map(parse).collect()
}

fn parse_bucket(index: u32, kind: GroupKind, text: &str) -> Result<Bucket, TextError> {
    let weight = u16::from(kind == GroupKind::Select);
    let (head, actions) = match text.find("actions=") {
        Some(at) => (&text[..at], &text[at + "actions=".len()..]),
        None => ("", text),
    };
    let mut bucket = Bucket { weight, ..Bucket::new(index, parse_actions(actions)?) };
    for item in text::items(head)? {
        let (key, value) = text::key_value(item);
        let value = value.ok_or_else(|| TextError::MissingValue(key.to_owned()))?;
        match key {
            "bucket_id" => bucket.id = text::number(key, value)?,
            "weight" => bucket.weight = text::number(key, value)?,
            "watch_port" => bucket.watch_port = Some(value.parse().map_err(|_| text::bad(key, value))?),
            "watch_group" => bucket.watch_group = Some(text::number(key, value)?),
            _ => return Err(TextError::UnknownKey { key: key.to_owned(), context: "bucket" }),
        }
    }
    Ok(bucket)
}

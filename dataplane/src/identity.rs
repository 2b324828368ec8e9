//! Identities: one number for each set of security groups that a port can be in.
//!
//! Rules match identities, so that a port more or less in a group changes that port's flows only. The number of one group alone is its key; a
//! larger set gets a number made from its keys, with the top bit set; no group at all is 0, which no rule names.
//! Invariant: two sets never share a number on a host, and numbers depend on the sets that there are, never on which came first (ADR 7). A number
//! depends on its own set only, but for sets whose hashes meet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::SecurityGroupId;
use model::network::Port;
use model::security::SecurityGroup;

/// The identity of ports without groups, and of senders that are not known.
pub const NOBODY: u32 = 0;

/// Numbers of sets of two groups and more have this bit, keys of groups do not.
const SET: u32 = 1 << 31;

/// A set of groups, in order and each once.
pub(crate) type Groups = Arc<[SecurityGroupId]>;

/// The groups of a port as a set.
pub(crate) fn groups(port: &Port) -> Groups {
    let set: BTreeSet<SecurityGroupId> = port.groups.iter().copied().collect();
    set.into_iter().collect()
}

/// The numbers of the sets that there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identities {
    numbers: BTreeMap<Groups, u32>,
    taken: BTreeSet<u32>,
    /// Whether some set did not get the number that it would have alone: then one set more or less may move others.
    is_crowded: bool,
}

impl Identities {
    /// Gives each of these sets its number; the empty one has none.
    pub(crate) fn of<'a>(
        sets: impl Iterator<Item = &'a Groups>,
        all: &BTreeMap<SecurityGroupId, SecurityGroup>,
    ) -> Self {
        let mut identities = Self::default();
        let sets: BTreeSet<&Groups> = sets.filter(|set| !set.is_empty()).collect();
        for set in sets {
            let alone = preferred(set, all);
            let mut number = alone;
            while !identities.taken.insert(number) {
                number = number.wrapping_add(1) | SET;
            }
            identities.is_crowded |= number != alone;
            identities.numbers.insert(Arc::clone(set), number);
        }
        identities
    }

    /// The number of a set.
    pub(crate) fn get(&self, set: &Groups) -> Option<u32> {
        self.numbers.get(set).copied()
    }

    /// Gives one more set its number; false when that could move others, and all have to be numbered again.
    pub(crate) fn add(&mut self, set: &Groups, all: &BTreeMap<SecurityGroupId, SecurityGroup>) -> bool {
        if set.is_empty() {
            return true;
        }
        let number = preferred(set, all);
        if self.is_crowded || !self.taken.insert(number) {
            return false;
        }
        self.numbers.insert(Arc::clone(set), number);
        true
    }

    /// Takes back the number of a set that is no more; false when that could move others, and all have to be numbered again.
    pub(crate) fn remove(&mut self, set: &Groups) -> bool {
        if self.is_crowded {
            return false;
        }
        if let Some(number) = self.numbers.remove(set) {
            self.taken.remove(&number);
        }
        true
    }

    /// Whether a set that both know has another number in the other.
    pub(crate) fn moved_from(&self, before: &Self) -> bool {
        self.numbers.iter().any(|(set, number)| before.get(set).is_some_and(|other| other != *number))
    }

    /// The sets with their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Groups, u32)> {
        self.numbers.iter().map(|(set, number)| (set, *number))
    }
}

/// The number that a set has when no other wants it: the key of its only group, or FNV-1a over the keys in ascending order.
fn preferred(set: &Groups, all: &BTreeMap<SecurityGroupId, SecurityGroup>) -> u32 {
    let mut keys: Vec<u32> = set.iter().filter_map(|id| all.get(id)).map(|group| group.key).collect();
    if let ([key], 1) = (keys.as_slice(), set.len()) {
        return *key;
    }
    keys.sort_unstable();
    let octets = keys.iter().flat_map(|key| key.to_be_bytes());
    octets.fold(0x811c_9dc5_u32, |hash, octet| (hash ^ u32::from(octet)).wrapping_mul(0x0100_0193)) | SET
}

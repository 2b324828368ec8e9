//! Identities: one number for each set of security groups that a port can be in.
//!
//! Rules match identities, so that a port more or less in a group changes that port's flows only. The number of one group alone is its key; a
//! larger set gets a number made from its keys, with the top bit set; no group at all is 0, which no rule names.
//! Invariant: two sets never share a number on a host, and a number depends on its own set only (but for two sets whose hashes meet).

use std::collections::{BTreeMap, BTreeSet};

use model::SecurityGroupId;
use model::network::Port;
use model::spec::HostNetwork;

/// The identity of ports without groups, and of senders that are not known.
pub const NOBODY: u32 = 0;

/// Numbers of sets of two groups and more have this bit, keys of groups do not.
const SET: u32 = 1 << 31;

/// The groups of a port, as a set.
type Groups = BTreeSet<SecurityGroupId>;

/// The identities of all ports of a host's networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identities {
    numbers: BTreeMap<Groups, u32>,
}

impl Identities {
    /// Gives every set of groups that a port has its number.
    #[must_use]
    pub fn of(host: &HostNetwork) -> Self {
        let sets: BTreeSet<Groups> = host.ports.values().map(groups).filter(|set| !set.is_empty()).collect();
        let mut numbers = BTreeMap::new();
        let mut taken: BTreeSet<u32> = host.groups.values().map(|group| group.key).collect();
        for set in sets {
            let number = match set.iter().next().and_then(|id| host.groups.get(id)) {
                Some(only) if set.len() == 1 => only.key,
                _ => hashed(host, &set, &taken),
            };
            taken.insert(number);
            numbers.insert(set, number);
        }
        Self { numbers }
    }

    /// The identity of a port.
    #[must_use]
    pub fn of_port(&self, port: &Port) -> u32 {
        self.numbers.get(&groups(port)).copied().unwrap_or(NOBODY)
    }

    /// Every identity with its groups, in order of the sets.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &BTreeSet<SecurityGroupId>)> {
        self.numbers.iter().map(|(set, number)| (*number, set))
    }
}

/// The groups of a port as a set.
#[must_use]
pub fn groups(port: &Port) -> BTreeSet<SecurityGroupId> {
    port.groups.iter().copied().collect()
}

/// FNV-1a over the keys, then the next number that is free.
fn hashed(host: &HostNetwork, set: &Groups, taken: &BTreeSet<u32>) -> u32 {
    let keys: BTreeSet<u32> = set.iter().filter_map(|id| host.groups.get(id)).map(|group| group.key).collect();
    let octets = keys.iter().flat_map(|key| key.to_be_bytes());
    let hash = octets.fold(0x811c_9dc5_u32, |hash, octet| (hash ^ u32::from(octet)).wrapping_mul(0x0100_0193));
    let mut number = hash | SET;
    while taken.contains(&number) {
        number = number.wrapping_add(1) | SET;
    }
    number
}

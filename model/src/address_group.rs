//! Address groups: named sets of addresses outside of the cloud's own objects, which rules of security groups name as their other side.
//!
//! Owns [`AddressGroup`] and what a list of addresses must be. Never says who may use one: that is a rule's to say. Addresses of both versions of IP may
//! stand in one group; a rule sees those of its own version.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::id::AddressGroupId;

/// The most addresses of one group.
pub const ADDRESSES_MAX: usize = 4096;

/// A named set of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressGroup {
    /// Identity.
    pub id: AddressGroupId,
    /// Name given by its owner.
    pub name: String,
    /// Number of this group in flows: unique among address groups of the cloud, 1 and up, never used again for another group.
    pub key: u32,
    /// The addresses: prefixes without host bits, each once. One may lie within another.
    pub addresses: Vec<IpNet>,
}

/// Why a list of addresses can not be a group's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressesError {
    /// There is none: a rule that names the group would allow nothing, which nobody would see.
    #[error("it has no address, want at least one")]
    Empty,
    /// There are too many.
    #[error("it has {count} addresses, want {ADDRESSES_MAX} at most")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// A prefix names more than its length says.
    #[error("its address {prefix} has host bits set, want {}", prefix.trunc())]
    HostBits {
        /// The prefix as given.
        prefix: IpNet,
    },
    /// One is given twice.
    #[error("its address {prefix} is given twice")]
    Twice {
        /// The prefix.
        prefix: IpNet,
    },
}

impl AddressGroup {
    /// Whether an address is in the group.
    #[must_use]
    pub fn holds(&self, address: std::net::IpAddr) -> bool {
        self.addresses.iter().any(|prefix| prefix.contains(&address))
    }

    /// Whether its list of addresses is one that a group can have.
    ///
    /// # Errors
    /// The first [`AddressesError`] found.
    pub fn check(&self) -> Result<(), AddressesError> {
        check(&self.addresses)
    }
}

/// Whether a list of addresses is one that a group can have.
///
/// # Errors
/// The first [`AddressesError`] found.
pub fn check(addresses: &[IpNet]) -> Result<(), AddressesError> {
    if addresses.is_empty() {
        return Err(AddressesError::Empty);
    }
    if addresses.len() > ADDRESSES_MAX {
        return Err(AddressesError::TooMany { count: addresses.len() });
    }
    let mut seen = BTreeSet::new();
    for prefix in addresses {
        if *prefix != prefix.trunc() {
            return Err(AddressesError::HostBits { prefix: *prefix });
        }
        if !seen.insert(*prefix) {
            return Err(AddressesError::Twice { prefix: *prefix });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(addresses: &[&str]) -> String {
        let addresses: Vec<IpNet> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        check(&addresses).map_or_else(|error| error.to_string(), |()| "fits".to_owned())
    }

    #[test]
    fn a_list_has_something_and_each_prefix_once_without_host_bits() {
        assert_eq!(says(&["10.0.0.0/8", "10.1.0.0/16", "fd00::/8", "192.0.2.7/32"]), "fits");
        assert_eq!(says(&[]), "it has no address, want at least one");
        assert_eq!(says(&["10.0.0.1/8"]), "its address 10.0.0.1/8 has host bits set, want 10.0.0.0/8");
        assert_eq!(says(&["fd00::/8", "::/0", "fd00::/8"]), "its address fd00::/8 is given twice");
        let prefix = |number: u32| IpNet::from(std::net::IpAddr::V4(number.into()));
        let many: Vec<IpNet> = (0..4097).map(prefix).collect();
        assert_eq!(check(&many), Err(AddressesError::TooMany { count: 4097 }));
        assert_eq!(check(&many[1..]), Ok(()));
    }
}

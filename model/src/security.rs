//! Security groups: which traffic a port may take and send, said by rules that many ports share.
//!
//! Rules only allow; what no rule allows is dropped. Replies and related traffic of an allowed connection are allowed where a group is stateful.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::id::{AddressGroupId, RuleId, SecurityGroupId};

/// A named set of rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecurityGroup {
    /// Identity.
    pub id: SecurityGroupId,
    /// Name given by its owner.
    pub name: String,
    /// Number of this group in flows: unique in the cloud, 1 and up, never used again for another group.
    pub key: u32,
    /// Whether replies of allowed connections pass by themselves. Without, each direction needs a rule of its own and no connection is remembered;
    /// a port that is also in a stateful group is treated as stateful.
    #[serde(default = "stateful")]
    pub stateful: bool,
    /// The rules, each allowing some traffic.
    pub rules: Vec<Rule>,
}

const fn stateful() -> bool {
    true
}

/// Which way traffic goes, as seen from the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the VM.
    Ingress,
    /// From the VM.
    Egress,
}

/// The IP version that a rule speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Ethertype {
    /// IPv4.
    IPv4,
    /// IPv6.
    IPv6,
}

impl Ethertype {
    /// Whether a prefix is of this version.
    #[must_use]
    pub const fn holds(self, prefix: IpNet) -> bool {
        matches!((self, prefix), (Self::IPv4, IpNet::V4(_)) | (Self::IPv6, IpNet::V6(_)))
    }
}

/// One kind of traffic that is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Identity.
    pub id: RuleId,
    /// To or from the VM.
    pub direction: Direction,
    /// IP version.
    pub ethertype: Ethertype,
    /// What is carried.
    pub protocol: Protocol,
    /// The other side.
    pub remote: Remote,
}

/// What an IP packet carries, with its selectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Protocol {
    /// Anything.
    Any,
    /// TCP with a destination port in the range.
    Tcp(PortRange),
    /// UDP with a destination port in the range.
    Udp(PortRange),
    /// ICMP for IPv4 rules, ICMPv6 for IPv6 rules.
    Icmp {
        /// Message type; none is any.
        #[serde(default)]
        kind: Option<u8>,
        /// Message code; none is any; given only with a type.
        #[serde(default)]
        code: Option<u8>,
    },
    /// Any other protocol by its number.
    Number(u8),
}

/// An inclusive range of transport ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u16, u16)", into = "(u16, u16)")]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// A range of ports that ends before it starts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("take {first} to {last} as a range of ports: it ends before it starts")]
pub struct PortRangeError {
    /// The start as given.
    pub first: u16,
    /// The end as given.
    pub last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };

    /// From `first` to `last`, both included.
    ///
    /// # Errors
    /// [`PortRangeError`] when it ends before it starts.
    pub const fn new(first: u16, last: u16) -> Result<Self, PortRangeError> {
        if first <= last { Ok(Self { first, last }) } else { Err(PortRangeError { first, last }) }
    }

    /// The first port.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The last port.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Whether `port` lies inside.
    #[must_use]
    pub const fn holds(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// The least set of (value, mask) pairs that together match exactly this range, in ascending order: at most 30.
    #[must_use]
    pub fn masks(self) -> Vec<(u16, u16)> {
        let (mut start, end) = (u32::from(self.first), u32::from(self.last) + 1);
        let mut masks = Vec::new();
        while start < end {
            let aligned = if start == 0 { 16 } else { start.trailing_zeros().min(16) };
            let bits = aligned.min((end - start).ilog2());
            let mask = u16::MAX.checked_shl(bits).unwrap_or(0);
            masks.push((u16::try_from(start).unwrap_or(u16::MAX), mask));
            start += 1 << bits;
        }
        masks
    }
}

impl TryFrom<(u16, u16)> for PortRange {
    type Error = PortRangeError;

    fn try_from((first, last): (u16, u16)) -> Result<Self, PortRangeError> {
        Self::new(first, last)
    }
}

impl From<PortRange> for (u16, u16) {
    fn from(range: PortRange) -> Self {
        (range.first, range.last)
    }
}

/// Who is on the other side of the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Remote {
    /// Anyone.
    Any,
    /// An address in this prefix.
    Prefix(IpNet),
    /// A port that is in this group.
    Group(SecurityGroupId),
    /// An address in this address group.
    Addresses(AddressGroupId),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    proptest! {
        #[test]
        fn masks_match_just_the_ports_of_the_range(a in any::<u16>(), b in any::<u16>(), probe in any::<u16>()) {
            let range = PortRange::new(a.min(b), a.max(b)).unwrap();
            let masks = range.masks();
            assert!(masks.len() <= 30);
            for port in [probe, a, b, a.wrapping_sub(1), b.wrapping_add(1)] {
                let hits = masks.iter().filter(|(value, mask)| port & mask == *value).count();
                assert_eq!(hits, usize::from(range.holds(port)), "port {port} of {range:?}");
            }
        }
    }

    #[test]
    fn the_whole_range_is_one_mask_and_a_reversed_one_is_refused() {
        assert_eq!(PortRange::ALL.masks(), [(0, 0)]);
        assert_eq!(
            PortRange::new(90, 80).unwrap_err().to_string(),
            "take 90 to 80 as a range of ports: it ends before it starts"
        );
    }
}

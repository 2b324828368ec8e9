//! Provider networks: networks of the data centre that ports are put on directly, without a tunnel.
//!
//! Owns [`Provider`] and the names and numbers in it. A physical network is a name that each host that is wired to it knows an interface for.
//! Invariant: a name is 1 to 63 letters, digits, '.', '_' and '-'; a VLAN has 12 bits and is neither 0 nor 4095 (IEEE 802.1Q §9.6).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Characters of a name.
const NAME_MAX: usize = 63;

/// Where a provider network is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// The physical network.
    pub physical_network: PhysicalNetwork,
    /// Which part of it.
    pub segmentation: Segmentation,
}

/// Which part of a physical network a network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Segmentation {
    /// What has no VLAN tag.
    Flat,
    /// What has the tag of this VLAN.
    Vlan(VlanId),
}

/// The name of a physical network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PhysicalNetwork(String);

/// The number of a VLAN: 1 to 4094.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct VlanId(u16);

/// What names no physical network, or no part of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// A name of another shape.
    #[error("take {0:?} as the name of a physical network: want 1 to {NAME_MAX} letters, digits, '.', '_' and '-'")]
    Name(String),
    /// A number that no VLAN has.
    #[error("take {0} as a VLAN: want 1 to 4094")]
    Vlan(u16),
}

impl PhysicalNetwork {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PhysicalNetwork {
    type Err = ProviderError;

    fn from_str(text: &str) -> Result<Self, ProviderError> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if (1..=NAME_MAX).contains(&text.len()) && text.chars().all(legal) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ProviderError::Name(text.chars().take(NAME_MAX).collect()))
        }
    }
}

impl TryFrom<String> for PhysicalNetwork {
    type Error = ProviderError;

    fn try_from(text: String) -> Result<Self, ProviderError> {
        text.parse()
    }
}

impl From<PhysicalNetwork> for String {
    fn from(name: PhysicalNetwork) -> Self {
        name.0
    }
}

impl fmt::Display for PhysicalNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl VlanId {
    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for VlanId {
    type Error = ProviderError;

    fn try_from(number: u16) -> Result<Self, ProviderError> {
        if (1..=4094).contains(&number) { Ok(Self(number)) } else { Err(ProviderError::Vlan(number)) }
    }
}

impl From<VlanId> for u16 {
    fn from(vlan: VlanId) -> Self {
        vlan.0
    }
}

impl Segmentation {
    /// The VLAN; none: what has no tag.
    #[must_use]
    pub const fn vlan(self) -> Option<VlanId> {
        match self {
            Self::Flat => None,
            Self::Vlan(vlan) => Some(vlan),
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.segmentation {
            Segmentation::Flat => write!(f, "physical network {}, untagged", self.physical_network),
            Segmentation::Vlan(vlan) => write!(f, "VLAN {} of physical network {}", vlan.get(), self.physical_network),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_vlans_have_bounds() {
        assert!("physnet1".parse::<PhysicalNetwork>().is_ok());
        for text in ["", "a b", "a/b", "\u{e9}", &"a".repeat(64)] {
            assert_eq!(text.parse::<PhysicalNetwork>(), Err(ProviderError::Name(text.chars().take(63).collect())));
        }
        for number in [0, 4095, u16::MAX] {
            assert_eq!(VlanId::try_from(number), Err(ProviderError::Vlan(number)));
        }
        assert_eq!(VlanId::try_from(4094).map(VlanId::get), Ok(4094));
    }

    #[test]
    fn a_provider_reads_as_it_was_written() {
        for json in [
            r#"{"physical_network":"dc","segmentation":"flat"}"#,
            r#"{"physical_network":"dc","segmentation":{"vlan":100}}"#,
        ] {
            let provider: Provider = serde_json::from_str(json).unwrap();
            assert_eq!(serde_json::to_string(&provider).unwrap(), json);
        }
        assert!(serde_json::from_str::<Provider>(r#"{"physical_network":"dc","segmentation":{"vlan":0}}"#).is_err());
    }
}

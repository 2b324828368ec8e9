//! Sizes with their unit and their range.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A number outside of the range that its unit allows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("take {value} as {what}: want {least} to {most}")]
pub struct RangeError {
    /// What was to be measured.
    pub what: &'static str,
    /// The number given.
    pub value: u64,
    /// The least allowed.
    pub least: u64,
    /// The most allowed.
    pub most: u64,
}

/// An amount of memory or storage in mebibytes (2^20 bytes): 1 to 2^40.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Mib(u64);

impl Mib {
    /// The most that can be asked for: 2^40 MiB, so that the size in bytes has room in 64 bits.
    pub const MAX: u64 = 1 << 40;

    /// The number of mebibytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 << 20
    }

    /// The least whole number of mebibytes that holds `bytes`; at least 1.
    ///
    /// # Errors
    /// [`RangeError`] when that is more than [`Mib::MAX`].
    pub fn holding(bytes: u64) -> Result<Self, RangeError> {
        Self::try_from(bytes.div_ceil(1 << 20).max(1))
    }
}

impl TryFrom<u64> for Mib {
    type Error = RangeError;

    fn try_from(value: u64) -> Result<Self, RangeError> {
        if (1..=Self::MAX).contains(&value) {
            Ok(Self(value))
        } else {
            Err(RangeError { what: "a size in MiB", value, least: 1, most: Self::MAX })
        }
    }
}

impl From<Mib> for u64 {
    fn from(size: Mib) -> Self {
        size.0
    }
}

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// A number of virtual CPUs: 1 to 254 (the xAPIC has 8-bit identifiers, and 255 is broadcast).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Vcpus(u8);

impl Vcpus {
    /// The most one machine can have.
    pub const MAX: u8 = 254;

    /// The number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u64> for Vcpus {
    type Error = RangeError;

    fn try_from(value: u64) -> Result<Self, RangeError> {
        let refuse = RangeError { what: "a number of vCPUs", value, least: 1, most: u64::from(Self::MAX) };
        match u8::try_from(value) {
            Ok(number) if (1..=Self::MAX).contains(&number) => Ok(Self(number)),
            _ => Err(refuse),
        }
    }
}

impl From<Vcpus> for u64 {
    fn from(vcpus: Vcpus) -> Self {
        Self::from(vcpus.0)
    }
}

impl fmt::Display for Vcpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_outside_their_range_are_refused_by_name() {
        assert_eq!(Vcpus::try_from(0).unwrap_err().to_string(), "take 0 as a number of vCPUs: want 1 to 254");
        assert!(Vcpus::try_from(255).is_err());
        assert!(Mib::try_from(0).is_err());
        assert!(Mib::try_from(Mib::MAX + 1).is_err());
    }

    #[test]
    fn bytes_round_up_to_whole_mebibytes() {
        assert_eq!(Mib::holding(0).map(Mib::get), Ok(1));
        assert_eq!(Mib::holding(1 << 20).map(Mib::get), Ok(1));
        assert_eq!(Mib::holding((1 << 20) + 1).map(Mib::get), Ok(2));
        assert_eq!(Mib::try_from(Mib::MAX).map(Mib::bytes), Ok(1 << 60));
    }
}

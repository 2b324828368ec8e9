//! Domain names in the form that hosts use.
//!
//! Owns [`Domain`]. Invariant: labels of letters, digits and inner hyphens, at most 63 octets each and 253 in all, without a final dot; in lower
//! case, so that equal names are equal values.
//! Source: RFC 1035 §2.3.1 and §2.3.4, RFC 1123 §2.1.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Octets of a label.
const LABEL_MAX: usize = 63;
/// Octets of a name as text.
const NAME_MAX: usize = 253;

/// A domain name, such as `example.org`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Domain(String);

/// Text that is no domain name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "take {0:?} as a domain name: want labels of letters, digits and hyphens of 1 to {LABEL_MAX} characters, {NAME_MAX} in all"
)]
pub struct DomainError(pub String);

impl Domain {
    /// The labels from the left.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.0.split('.')
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as DNS messages carry it: each label behind its length, then an empty one (RFC 1035 §3.1).
    #[must_use]
    pub fn to_wire(&self) -> Vec<u8> {
        let mut octets = Vec::with_capacity(self.0.len() + 2);
        for label in self.labels() {
            octets.extend(u8::try_from(label.len()));
            octets.extend(label.as_bytes());
        }
        octets.push(0);
        octets
    }
}

impl FromStr for Domain {
    type Err = DomainError;

    fn from_str(text: &str) -> Result<Self, DomainError> {
        let is_inner = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let is_label = |label: &str| {
            (1..=LABEL_MAX).contains(&label.len())
                && label.chars().all(is_inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.len() <= NAME_MAX && name.split('.').all(is_label) {
            Ok(Self(name.to_ascii_lowercase()))
        } else {
            Err(DomainError(text.chars().take(NAME_MAX).collect()))
        }
    }
}

impl TryFrom<String> for Domain {
    type Error = DomainError;

    fn try_from(text: String) -> Result<Self, DomainError> {
        text.parse()
    }
}

impl From<Domain> for String {
    fn from(domain: Domain) -> Self {
        domain.0
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_hosts_are_taken_and_others_refused() {
        let domain: Domain = "Cloud.Example.org.".parse().unwrap();
        assert_eq!(domain.as_str(), "cloud.example.org");
        assert_eq!(domain.to_wire(), b"\x05cloud\x07example\x03org\0");
        let long = "a".repeat(64);
        for text in ["", ".", "a..b", "-a", "a-", "a_b", "a b", "\u{e9}", &long, &["a"; 128].join(".")] {
            assert!(text.parse::<Domain>().is_err(), "{text:?}");
        }
        assert!("a".repeat(63).parse::<Domain>().is_ok());
    }
}

//! Images: what volumes are made from and what machines boot.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::ImageId;

/// A disk, kernel or initrd, known by what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Identity.
    pub id: ImageId,
    /// Name given by its owner.
    pub name: String,
    /// What the bytes are.
    pub kind: ImageKind,
    /// SHA-256 of the bytes as uploaded.
    pub sha256: Sha256,
    /// How many bytes were uploaded.
    pub size_bytes: u64,
}

/// What an image's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageKind {
    /// A disk, byte for byte.
    Raw,
    /// A disk in QEMU's copy-on-write format.
    Qcow2,
    /// A Linux kernel: bzImage or vmlinux.
    Kernel,
    /// An initial RAM file system.
    Initrd,
}

impl ImageKind {
    /// Whether a volume can be made from it.
    #[must_use]
    pub const fn is_disk(self) -> bool {
        matches!(self, Self::Raw | Self::Qcow2)
    }
}

/// A SHA-256 digest; prints as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256([u8; 32]);

/// Text that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parse SHA-256 from {0:?}: want 64 hexadecimal digits")]
pub struct Sha256Error(String);

impl Sha256 {
    /// Wraps the 32 bytes of a digest.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn bytes(self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

impl FromStr for Sha256 {
    type Err = Sha256Error;

    fn from_str(text: &str) -> Result<Self, Sha256Error> {
        let refuse = || Sha256Error(text.chars().take(80).collect());
        if text.len() != 64 || !text.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(refuse());
        }
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or_else(refuse)?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Sha256 {
    type Error = Sha256Error;

    fn try_from(text: String) -> Result<Self, Sha256Error> {
        text.parse()
    }
}

impl From<Sha256> for String {
    fn from(digest: Sha256) -> Self {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    proptest! {
        #[test]
        fn a_digest_parses_from_its_own_text(bytes in any::<[u8; 32]>()) {
            let digest = Sha256::new(bytes);
            assert_eq!(digest.to_string().parse(), Ok(digest));
        }

        #[test]
        fn no_text_makes_the_digest_parser_panic(text in "\\PC{0,80}") {
            let _ = text.parse::<Sha256>();
        }
    }
}

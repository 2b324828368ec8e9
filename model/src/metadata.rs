//! What a machine is told about itself by the metadata service, beside its names and addresses.
//!
//! Owns [`UserData`] and [`SshKey`]. User data may hold passwords: it is written as base64 where it has to be carried, and never by `Debug`.
//! Invariant: both are bounded, a key is one line of printable ASCII, so that neither can grow a specification or break a listing.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

/// Octets of user data: what EC2 takes.
pub const USER_DATA_MAX: usize = 16 * 1024;
/// Octets of one SSH key with its comment: an RSA key of 16,384 bits takes 2,800.
pub const SSH_KEY_MAX: usize = 4096;
/// Keys of one machine.
pub const SSH_KEYS_MAX: usize = 16;

/// What a machine is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// What its first boot runs or reads, mostly for cloud-init.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<UserData>,
    /// Keys that may log in: at most [`SSH_KEYS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<SshKey>,
}

/// Octets that its owner wants a machine to read, at most [`USER_DATA_MAX`] of them; base64 in text.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserData(Vec<u8>);

/// A public key as `authorized_keys` has it, without options: a type, the key in base64, and mostly a comment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SshKey(String);

/// What is no metadata. Never says what was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// User data that is too long.
    #[error("take {octets} octets of user data: want 1 to {USER_DATA_MAX} (compress it: cloud-init reads gzip)")]
    UserDataLength {
        /// How many there are.
        octets: usize,
    },
    /// User data that cannot be read.
    #[error("read user data of {characters} characters: it is no base64")]
    UserDataText {
        /// How many there are.
        characters: usize,
    },
    /// A key that is none.
    #[error("take an SSH key of {octets} octets: {problem}")]
    SshKey {
        /// How many there are.
        octets: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl UserData {
    /// The octets.
    #[must_use]
    pub fn octets(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for UserData {
    type Error = MetadataError;

    fn try_from(octets: Vec<u8>) -> Result<Self, MetadataError> {
        if (1..=USER_DATA_MAX).contains(&octets.len()) {
            Ok(Self(octets))
        } else {
            Err(MetadataError::UserDataLength { octets: octets.len() })
        }
    }
}

impl TryFrom<String> for UserData {
    type Error = MetadataError;

    fn try_from(text: String) -> Result<Self, MetadataError> {
        let characters = text.len();
        if characters > USER_DATA_MAX.div_ceil(3) * 4 {
            return Err(MetadataError::UserDataLength { octets: characters / 4 * 3 });
        }
        let octets = BASE64_STANDARD.decode(text).map_err(|_| MetadataError::UserDataText { characters })?;
        Self::try_from(octets)
    }
}

impl From<UserData> for String {
    fn from(data: UserData) -> Self {
        BASE64_STANDARD.encode(data.0)
    }
}

impl fmt::Debug for UserData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserData({} octets)", self.0.len())
    }
}

impl SshKey {
    /// The line.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands behind the key, mostly whose it is.
    #[must_use]
    pub fn comment(&self) -> Option<&str> {
        self.0.splitn(3, ' ').nth(2)
    }
}

impl FromStr for SshKey {
    type Err = MetadataError;

    fn from_str(text: &str) -> Result<Self, MetadataError> {
        let line = text.trim();
        let refuse = |problem| Err(MetadataError::SshKey { octets: text.len(), problem });
        if line.len() > SSH_KEY_MAX {
            return refuse("it is longer than 4096");
        }
        if !line.chars().all(|c| c == ' ' || c.is_ascii_graphic()) {
            return refuse("it is not one line of printable ASCII");
        }
        let mut words = line.split(' ');
        let (kind, key) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let known = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"].iter().any(|prefix| kind.starts_with(prefix));
        if !known {
            return refuse("it does not begin with a type of key, such as ssh-ed25519");
        }
        // The octets begin with the type once more (RFC 4253 §6.6).
        let octets = BASE64_STANDARD.decode(key).unwrap_or_default();
        let length = u32::try_from(kind.len()).unwrap_or(u32::MAX).to_be_bytes();
        if !octets.strip_prefix(&length).is_some_and(|rest| rest.starts_with(kind.as_bytes())) {
            return refuse("its second word is no key of that type in base64");
        }
        Ok(Self(line.to_owned()))
    }
}

impl TryFrom<String> for SshKey {
    type Error = MetadataError;

    fn try_from(text: String) -> Result<Self, MetadataError> {
        text.parse()
    }
}

impl From<SshKey> for String {
    fn from(key: SshKey) -> Self {
        key.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqf6zk0v2xTOf3JeXnTl7VYvfzvqY4kqYSw8PpJr8hK ann@example";

    #[test]
    fn user_data_is_bounded_carried_as_base64_and_never_printed() {
        let data = UserData::try_from(b"#cloud-config\npassword: hunter2\n".to_vec()).unwrap();
        let text = serde_json::to_string(&data).unwrap();
        assert_eq!(serde_json::from_str::<UserData>(&text).unwrap(), data);
        assert_eq!(format!("{data:?}"), "UserData(32 octets)");
        assert!(UserData::try_from(vec![0; USER_DATA_MAX]).is_ok());
        for octets in [0, USER_DATA_MAX + 1] {
            let error = UserData::try_from(vec![7; octets]).unwrap_err();
            assert_eq!(error, MetadataError::UserDataLength { octets });
        }
        let error = UserData::try_from("hunter2!".to_owned()).unwrap_err();
        assert_eq!(error.to_string(), "read user data of 8 characters: it is no base64");
        assert!(UserData::try_from("A".repeat(1 << 20)).is_err());
    }

    #[test]
    fn a_key_is_one_line_with_its_type_inside() {
        let key: SshKey = format!("{KEY}\n").parse().unwrap();
        assert_eq!((key.as_str(), key.comment()), (KEY, Some("ann@example")));
        let blob = KEY.split(' ').nth(1).unwrap();
        for text in ["", "ssh-ed25519", "ssh-rsa AAAA", &format!("ssh-rsa {blob}"), &format!("{KEY}\n{KEY}"), blob] {
            assert!(text.parse::<SshKey>().is_err(), "{text:?}");
        }
        let long = format!("{KEY}{}", "x".repeat(SSH_KEY_MAX));
        assert!(long.parse::<SshKey>().unwrap_err().to_string().ends_with("it is longer than 4096"));
    }
}

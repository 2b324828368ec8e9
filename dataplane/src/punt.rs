//! What the switch hands to the agent, and how a packet-in says what it is: the user data of our controller actions.
//!
//! The user data names the port that asks; what it asks is in the packet.
//!
//! ```text
//! octet 0: kind (1 = a question of a port)   octets 1 to 4: key of the port, big-endian
//! ```

/// A packet that the agent is asked to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Punt {
    /// The key of the port that asks.
    pub port: u32,
}

/// User data that none of our controller actions carries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read packet-in: its user data {0:02x?} is not ours")]
pub struct PuntError(pub Vec<u8>);

const QUESTION: u8 = 1;

impl Punt {
    /// The user data that the controller action carries.
    #[must_use]
    pub fn to_user_data(self) -> Vec<u8> {
        let mut data = vec![QUESTION];
        data.extend(self.port.to_be_bytes());
        data
    }

    /// Reads the user data of a packet-in.
    ///
    /// # Errors
    /// [`PuntError`] when it is not of our making.
    pub fn from_user_data(data: &[u8]) -> Result<Self, PuntError> {
        match data {
            [QUESTION, port @ ..] => <[u8; 4]>::try_from(port).map(|port| Self { port: u32::from_be_bytes(port) }).ok(),
            _ => None,
        }
        .ok_or_else(|| PuntError(data.iter().copied().take(16).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_reads_as_it_was_written() {
        let punt = Punt { port: 0x0102_0304 };
        assert_eq!(punt.to_user_data(), [1, 1, 2, 3, 4]);
        assert_eq!(Punt::from_user_data(&punt.to_user_data()), Ok(punt));
        for data in [&[][..], &[2], &[1, 2, 3], &[1, 0, 0, 0, 0, 0]] {
            assert!(Punt::from_user_data(data).is_err(), "{data:?}");
        }
    }
}

//! What the switch hands to the agent, and how a packet-in says what it is: the user data of our controller actions.
//!
//! The user data names the port that asks, or the network outside that a station is looked for on; the rest is in the packet.
//!
//! ```text
//! octet 0: kind (1 = a question of a port, 2 = of a station, 3 = a packet that is too large)
//! octets 1 to 4: key of the port, or VNI of the network, big-endian
//! octets 5 and 6, of a packet that is too large only: key of the router, big-endian
//! ```

/// A packet that the agent is asked to answer, or to learn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Punt {
    /// A port of this host asks something.
    Question {
        /// The key of the port that asks.
        port: u32,
    },
    /// A packet is larger than what the network that it is routed to carries.
    TooLarge {
        /// The VNI of that network.
        network: u32,
        /// The key of the router.
        router: u16,
    },
    /// A station outside is looked for, or tells who it is.
    Station {
        /// The VNI of the network.
        network: u32,
    },
}

/// User data that none of our controller actions carries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read packet-in: its user data {0:02x?} is not ours")]
pub struct PuntError(pub Vec<u8>);

const QUESTION: u8 = 1;
const STATION: u8 = 2;
const TOO_LARGE: u8 = 3;

impl Punt {
    /// The user data that the controller action carries.
    #[must_use]
    pub fn to_user_data(self) -> Vec<u8> {
        let (kind, number, more) = match self {
            Self::Question { port } => (QUESTION, port, None),
            Self::Station { network } => (STATION, network, None),
            Self::TooLarge { network, router } => (TOO_LARGE, network, Some(router.to_be_bytes())),
        };
        std::iter::once(kind).chain(number.to_be_bytes()).chain(more.into_iter().flatten()).collect()
    }

    /// Reads the user data of a packet-in.
    ///
    /// # Errors
    /// [`PuntError`] when it is not of our making.
    pub fn from_user_data(data: &[u8]) -> Result<Self, PuntError> {
        let unknown = || PuntError(data.iter().copied().take(16).collect());
        let Some(([kind, number @ ..], more)) = data.split_first_chunk::<5>() else { return Err(unknown()) };
        let number = u32::from_be_bytes(*number);
        match (*kind, more) {
            (QUESTION, []) => Ok(Self::Question { port: number }),
            (STATION, []) => Ok(Self::Station { network: number }),
            (TOO_LARGE, [high, low]) => {
                Ok(Self::TooLarge { network: number, router: u16::from_be_bytes([*high, *low]) })
            }
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_reads_as_it_was_written() {
        let punt = Punt::Question { port: 0x0102_0304 };
        assert_eq!(punt.to_user_data(), [1, 1, 2, 3, 4]);
        let too_large = Punt::TooLarge { network: 0x0102_0304, router: 0x0506 };
        assert_eq!(too_large.to_user_data(), [3, 1, 2, 3, 4, 5, 6]);
        for punt in [punt, too_large, Punt::Station { network: 0x00ff_ffff }] {
            assert_eq!(Punt::from_user_data(&punt.to_user_data()), Ok(punt));
        }
        for data in [&[][..], &[2], &[1, 2, 3], &[1, 0, 0, 0, 0, 0], &[3, 0, 0, 0, 0]] {
            assert!(Punt::from_user_data(data).is_err(), "{data:?}");
        }
    }
}

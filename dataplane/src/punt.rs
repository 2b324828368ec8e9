//! What the switch hands to the agent, and how a packet-in says what it is: the user data of our controller actions.
//!
//! The user data names the port that asks, or the network outside that a station is looked for on; the rest is in the packet.
//!
//! ```text
//! octet 0: kind (1 = a question of a port, 2 = of a station)   octets 1 to 4: key of the port, or VNI of the network, big-endian
//! ```

/// A packet that the agent is asked to answer, or to learn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Punt {
    /// A port of this host asks something.
    Question {
        /// The key of the port that asks.
        port: u32,
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

impl Punt {
    /// The user data that the controller action carries.
    #[must_use]
    pub fn to_user_data(self) -> Vec<u8> {
        let (kind, number) = match self {
            Self::Question { port } => (QUESTION, port),
            Self::Station { network } => (STATION, network),
        };
        std::iter::once(kind).chain(number.to_be_bytes()).collect()
    }

    /// Reads the user data of a packet-in.
    ///
    /// # Errors
    /// [`PuntError`] when it is not of our making.
    pub fn from_user_data(data: &[u8]) -> Result<Self, PuntError> {
        let unknown = || PuntError(data.iter().copied().take(16).collect());
        let [kind, number @ ..] = data else { return Err(unknown()) };
        let number = <[u8; 4]>::try_from(number).map(u32::from_be_bytes).map_err(|_| unknown())?;
        match *kind {
            QUESTION => Ok(Self::Question { port: number }),
            STATION => Ok(Self::Station { network: number }),
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
        for punt in [punt, Punt::Station { network: 0x00ff_ffff }] {
            assert_eq!(Punt::from_user_data(&punt.to_user_data()), Ok(punt));
        }
        for data in [&[][..], &[2], &[1, 2, 3], &[1, 0, 0, 0, 0, 0], &[3, 0, 0, 0, 0]] {
            assert!(Punt::from_user_data(data).is_err(), "{data:?}");
        }
    }
}

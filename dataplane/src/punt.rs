//! What the switch hands to the agent, and how a packet-in says what it is: the user data of our controller actions.
//!
//! The user data names the port that asks, or the network outside that a station is looked for on; the rest is in the packet.
//!
//! ```text
//! octet 0: kind (1 = a question of a port, 2 = of a station, 3 = a packet that is too large, 4 and 5 = an error that quotes the source, the target,
//!          6 = an answer of a port to a health check, 7 = a frame of a port that is awaited here)
//! octets 1 to 4: key of the port, or VNI of the network, big-endian; of an error the address that is quoted
//! octets 5 and 6, of a packet that is too large only: key of the router, big-endian
//! octets 5 to 8, of an error only: the address to put in its place
//! ```

use std::net::Ipv4Addr;

use crate::quoted::End;

/// A packet that the agent is asked to answer, or to learn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Punt {
    /// A port of this host asks something.
    Question {
        /// The key of the port that asks.
        port: u32,
    },
    /// A port of this host answers a health check.
    Health {
        /// The key of the port that answers.
        port: u32,
    },
    /// A packet is larger than what the network that it is routed to carries.
    TooLarge {
        /// The VNI of that network.
        network: u32,
        /// The key of the router.
        router: u16,
    },
    /// An ICMP error that waits for another address in the packet that it quotes, and goes on then.
    Quoted {
        /// Which end of the packet.
        end: End,
        /// The address that is there.
        from: Ipv4Addr,
        /// The one to put in its place.
        to: Ipv4Addr,
    },
    /// A port that is awaited here sends: its machine has come.
    Arrival {
        /// The key of the port.
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
const TOO_LARGE: u8 = 3;
const QUOTED_SOURCE: u8 = 4;
const QUOTED_TARGET: u8 = 5;
const HEALTH: u8 = 6;
const ARRIVAL: u8 = 7;

impl Punt {
    /// The user data that the controller action carries.
    #[must_use]
    pub fn to_user_data(self) -> Vec<u8> {
        let (kind, number, more) = match self {
            Self::Question { port } => (QUESTION, port, Vec::new()),
            Self::Station { network } => (STATION, network, Vec::new()),
            Self::Health { port } => (HEALTH, port, Vec::new()),
            Self::Arrival { port } => (ARRIVAL, port, Vec::new()),
            Self::TooLarge { network, router } => (TOO_LARGE, network, router.to_be_bytes().to_vec()),
            Self::Quoted { end, from, to } => {
                let kind = if end == End::Source { QUOTED_SOURCE } else { QUOTED_TARGET };
                (kind, from.to_bits(), to.octets().to_vec())
            }
        };
        std::iter::once(kind).chain(number.to_be_bytes()).chain(more).collect()
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
            (HEALTH, []) => Ok(Self::Health { port: number }),
            (ARRIVAL, []) => Ok(Self::Arrival { port: number }),
            (STATION, []) => Ok(Self::Station { network: number }),
            (TOO_LARGE, [high, low]) => {
                Ok(Self::TooLarge { network: number, router: u16::from_be_bytes([*high, *low]) })
            }
            (QUOTED_SOURCE | QUOTED_TARGET, [a, b, c, d]) => {
                let end = if *kind == QUOTED_SOURCE { End::Source } else { End::Target };
                Ok(Self::Quoted { end, from: Ipv4Addr::from_bits(number), to: Ipv4Addr::new(*a, *b, *c, *d) })
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
        let (from, to) = (Ipv4Addr::new(203, 0, 113, 50), Ipv4Addr::new(10, 0, 1, 11));
        let [source, target] = [End::Source, End::Target].map(|end| Punt::Quoted { end, from, to });
        assert_eq!(target.to_user_data(), [5, 203, 0, 113, 50, 10, 0, 1, 11]);
        let arrival = Punt::Arrival { port: 7 };
        assert_eq!(arrival.to_user_data(), [7, 0, 0, 0, 7]);
        let more = [arrival, Punt::Health { port: 7 }, Punt::Station { network: 0x00ff_ffff }];
        for punt in [punt, too_large, source, target].into_iter().chain(more) {
            assert_eq!(Punt::from_user_data(&punt.to_user_data()), Ok(punt));
        }
        for data in [&[][..], &[2], &[1, 2, 3], &[1, 0, 0, 0, 0, 0], &[3, 0, 0, 0, 0]] {
            assert!(Punt::from_user_data(data).is_err(), "{data:?}");
        }
    }
}

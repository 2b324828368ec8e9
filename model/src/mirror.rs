//! Mirroring: another port gets a copy of what a port sends, of what it is sent, or of both.
//!
//! Owns what is asked of a port ([`Mirror`]) and what hosts know of the port that gets the copies ([`MirrorTarget`]). Never says how a copy travels.
//! Invariant, held by [`HostNetwork::check`](crate::spec::HostNetwork::check): what gets copies is not mirrored itself, so no copy is ever copied.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::address::Vni;
use crate::id::{HostId, PortId};

/// What of a port is copied, and to which port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// The port that gets the copies: another one, not mirrored itself.
    pub to: PortId,
    /// Which frames are copied.
    pub direction: MirrorDirection,
}

/// Which frames of a port are copied, as its machine sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MirrorDirection {
    /// What comes in to the machine: all that it is sent.
    In,
    /// What goes out of the machine: all that it may send.
    Out,
    /// Both.
    Both,
}

impl MirrorDirection {
    /// Whether what the machine is sent is copied.
    #[must_use]
    pub const fn has_in(self) -> bool {
        matches!(self, Self::In | Self::Both)
    }

    /// Whether what the machine sends is copied.
    #[must_use]
    pub const fn has_out(self) -> bool {
        matches!(self, Self::Out | Self::Both)
    }

    /// Its name, as it is written in requests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
            Self::Both => "both",
        }
    }
}

/// A word that names no direction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read the direction of a mirror from {0:?}: want in, out or both")]
pub struct DirectionError(String);

impl FromStr for MirrorDirection {
    type Err = DirectionError;

    fn from_str(word: &str) -> Result<Self, DirectionError> {
        let known = [Self::In, Self::Out, Self::Both].into_iter().find(|direction| direction.name() == word);
        known.ok_or_else(|| DirectionError(word.chars().take(64).collect()))
    }
}

impl fmt::Display for MirrorDirection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A port that gets copies, as a host needs to know it: where a port is mirrored to it, and where it is. It may be on a network that the host knows
/// nothing else of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MirrorTarget {
    /// The port.
    pub port: PortId,
    /// Its name.
    pub name: String,
    /// What copies for it carry in tunnels: its own, of [`Vni::MIRRORS`], and no network's.
    pub vni: Vni,
    /// Where it is plugged in; none: nowhere, and no copy is made.
    pub place: Option<MirrorPlace>,
    /// The other hosts that send copies to it: those of ports that are mirrored to it. Said to its own host, which takes in nothing by tunnel but what
    /// hosts send that it knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub senders: Vec<MirrorPlace>,
}

/// Where a port is plugged in: one that gets copies, or one that is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MirrorPlace {
    /// The host.
    pub host: HostId,
    /// That host's tunnel endpoint on the underlay.
    pub tunnel: Ipv4Addr,
}

impl MirrorTarget {
    /// Whether it is plugged in on `host`.
    #[must_use]
    pub fn is_on(&self, host: HostId) -> bool {
        self.place.is_some_and(|place| place.host == host)
    }
}

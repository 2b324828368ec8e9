//! A port on its way to another host: wired there ahead of its machine, and switched by the first frame that the machine sends from there.
//!
//! Owns [`Arrival`] and [`Arrived`]. Never says when the machine moves: until it speaks on the other host its port is where it was, and every host that
//! sends to it sends a copy to the other one (ADR 9). Invariant: a serial number is of one attempt, so that news of an attempt that was called off is
//! told from news of the next.
//!
//! ```text
//! plugged in --bind--> awaited elsewhere --first frame there, reported--> plugged in there
//!                             \--unbind--> plugged in where it was
//! ```

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::id::{HostId, PortId};

/// Where a port is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arrival {
    /// The host: another than the one that the port is plugged in on.
    pub host: HostId,
    /// That host's tunnel endpoint on the underlay.
    pub tunnel: Ipv4Addr,
    /// Which attempt this is: 1 and up, never used again for the port.
    pub serial: u64,
}

/// What a host says of a port that it awaited: the machine spoke there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arrived {
    /// The port: the one that has the tap, whose sub-ports came with it.
    pub port: PortId,
    /// The attempt, as the specification says it.
    pub serial: u64,
}

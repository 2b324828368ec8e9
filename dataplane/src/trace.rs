//! What our flows do with a packet, found by walking it through them: no switch is asked.
//!
//! Owns [`trace`] and what it gives: a [`Path`] of [`Hop`]s with an [`Outcome`] for each copy of the packet, in the names that owners gave to
//! ports, groups and routers. The walk follows OpenFlow as Open vSwitch does it (priorities, conjunctions, groups, `ct` with recirculation); what the
//! connection tracker would say is assumed by the caller. [`ofproto`] reads what Open vSwitch says of the same packet and compares.
//! Invariant: the same flows, packet and assumption give the same path; every copy of the packet ends in exactly one outcome.

use std::fmt;
use std::net::Ipv4Addr;

use model::HostId;
use serde::{Deserialize, Serialize};

use crate::flow_set::FlowSet;

mod blame;
pub mod ofproto;
mod packet;
mod question;
mod room;
mod walk;
mod words;

pub use blame::{Blame, Cause, blame};
pub use packet::{Packet, PacketError, Payload};
pub use question::{Origin, Question, explain};
pub use room::Room;

/// What the connection tracker says of the packet, and of what stands in the connection's mark.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Connection {
    /// The first packet of a connection.
    #[default]
    New,
    /// A later packet in the direction of the first.
    Established,
    /// A packet in the other direction.
    Reply,
    /// An error about a connection.
    Related,
    /// Nothing that fits any connection.
    Invalid,
}

/// The way of a packet through the flows of one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// The packet as it came in, in ovs-ofctl's syntax.
    pub packet: String,
    /// What the connection tracker was assumed to say.
    pub connection: Connection,
    /// The flows it met, in order. Copies made by a group follow each other.
    pub hops: Vec<Hop>,
    /// What became of it: one for each copy.
    pub outcomes: Vec<Outcome>,
    /// Where mirroring sent copies of it, whatever became of the packet itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrored: Vec<Mirrored>,
}

/// A copy of the packet for another port, which got it on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirrored {
    /// The name of the port that it is for.
    pub to: String,
    /// What became of the copy.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// One flow that the packet met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// Which copy of the packet: 0 is the packet itself, each bucket of a group makes a new one.
    pub copy: usize,
    /// Number of the table.
    pub table: u8,
    /// Name of the table.
    pub name: String,
    /// The flow, as ovs-ofctl prints it; none when no flow matched.
    pub flow: Option<String>,
    /// Whose flow it is and what it means.
    pub meaning: String,
    /// What it did to the packet.
    pub effects: Vec<String>,
}

/// The end of one copy of the packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Which copy.
    pub copy: usize,
    /// What became of it.
    pub verdict: Verdict,
    /// It becomes that only of packets with more octets than this, Ethernet header included; none: of packets of any size, or of smaller ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub larger_than: Option<u16>,
    /// The copy as it ended, in ovs-ofctl's syntax.
    pub packet: String,
    /// The same as values: what a question at the next host takes.
    pub leaving: Packet,
}

/// What became of a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Given to a port of this host.
    Delivered {
        /// Its key.
        port: u32,
        /// Its name.
        name: String,
    },
    /// Sent to another host.
    Tunnelled {
        /// Its tunnel endpoint.
        endpoint: Ipv4Addr,
        /// Which host that is.
        host: Option<HostId>,
        /// The VNI in the header.
        vni: u32,
    },
    /// Sent out to a physical network.
    Physical {
        /// Its name.
        network: String,
        /// The VLAN that it is tagged with; none: it has no tag.
        vlan: Option<u16>,
        /// The OpenFlow port.
        port: u32,
    },
    /// Turned into an answer and sent back where it came from.
    Answered {
        /// Who answers.
        by: String,
    },
    /// Handed to the agent.
    Punted {
        /// What for.
        what: String,
    },
    /// Sent out of a port that is none of ours.
    Output {
        /// The OpenFlow port.
        port: u32,
    },
    /// Dropped.
    Dropped {
        /// Name of the table.
        table: String,
        /// Why.
        why: String,
    },
}

/// Walks a packet through the flows, with the connection tracker saying `connection` when it is asked.
#[must_use]
pub fn trace(set: &FlowSet, packet: &Packet, connection: Connection) -> Path {
    walk::walk(set, packet, connection)
}

impl Path {
    /// The verdicts on a packet of ordinary size in order, each once.
    #[must_use]
    pub fn verdicts(&self) -> Vec<Verdict> {
        let mut verdicts: Vec<Verdict> = self.ordinary().map(|outcome| outcome.verdict.clone()).collect();
        verdicts.sort_unstable();
        verdicts.dedup();
        verdicts
    }

    /// Why no copy of it leaves the switch: the first drop, when there is nothing but drops.
    #[must_use]
    pub fn why_not(&self) -> Option<&Verdict> {
        let all = self.ordinary().all(|outcome| matches!(outcome.verdict, Verdict::Dropped { .. }));
        self.ordinary().next().filter(|_| all).map(|outcome| &outcome.verdict)
    }

    /// What becomes of a packet that is large enough to be told so, with the octets that it must not exceed; Ethernet header included.
    #[must_use]
    pub fn too_large(&self) -> Option<(u16, &Verdict)> {
        self.outcomes.iter().find_map(|outcome| Some((outcome.larger_than?, &outcome.verdict)))
    }

    /// Where mirroring sends copies of a packet of ordinary size, in words, each once.
    #[must_use]
    pub fn copies(&self) -> Vec<String> {
        let ordinary = self.mirrored.iter().filter(|copy| copy.outcome.larger_than.is_none());
        let mut copies: Vec<String> = ordinary.map(ToString::to_string).collect();
        copies.sort_unstable();
        copies.dedup();
        copies
    }

    fn ordinary(&self) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(|outcome| outcome.larger_than.is_none())
    }

    /// Whether a copy reaches the port with this key on this host.
    #[must_use]
    pub fn reaches(&self, key: u32) -> bool {
        self.outcomes.iter().any(|outcome| matches!(outcome.verdict, Verdict::Delivered { port, .. } if port == key))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delivered { name, .. } => write!(f, "delivered to {name}"),
            Self::Tunnelled { endpoint, host: Some(host), vni } => {
                write!(f, "sent to host {host} at {endpoint} with VNI {vni}")
            }
            Self::Tunnelled { endpoint, host: None, vni } => write!(f, "sent to {endpoint} with VNI {vni}"),
            Self::Physical { network, vlan: Some(vlan), .. } => {
                write!(f, "sent out to physical network {network} in VLAN {vlan}")
            }
            Self::Physical { network, vlan: None, .. } => write!(f, "sent out to physical network {network}"),
            Self::Answered { by } => write!(f, "answered by {by}"),
            Self::Punted { what } => write!(f, "handed to the agent: {what}"),
            Self::Output { port } => write!(f, "sent out of OpenFlow port {port}"),
            Self::Dropped { table, why } => write!(f, "dropped in {table}: {why}"),
        }
    }
}

impl fmt::Display for Mirrored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome.verdict {
            Verdict::Delivered { .. } => write!(f, "a copy goes to {} of this host", self.to),
            Verdict::Tunnelled { endpoint, host: Some(host), .. } => {
                write!(f, "a copy goes to {} of host {host} at {endpoint}", self.to)
            }
            Verdict::Tunnelled { endpoint, host: None, .. } => {
                write!(f, "a copy goes to {} of the host at {endpoint}", self.to)
            }
            other => write!(f, "a copy for {} is {other}", self.to),
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.packet)?;
        for hop in &self.hops {
            let copy = if hop.copy == 0 { String::new() } else { format!(" (copy {})", hop.copy) };
            writeln!(f, "{:>3} {}{copy}: {}", hop.table, hop.name, hop.meaning)?;
            for effect in &hop.effects {
                writeln!(f, "      {effect}")?;
            }
        }
        for outcome in &self.outcomes {
            match outcome.larger_than {
                None => writeln!(f, "=> {}", outcome.verdict)?,
                Some(octets) => writeln!(f, "=> {}, when it has more than {octets} octets", outcome.verdict)?,
            }
        }
        for copy in self.copies() {
            writeln!(f, "=> {copy}")?;
        }
        Ok(())
    }
}

//! What a flow does with a packet.
//!
//! Owns [`Action`] and its parts, and the checks that do not need a switch. Never orders or merges actions.
//! Invariant: one meaning has one value: `load` and `mod_*` are `set_field`, an output to the controller is [`Controller`],
//! a note is padded as the switch pads it. So what is dumped back compares equal to what was sent.
//! Source: OpenFlow 1.5.1 §7.2.5, ovs-actions(7) of Open vSwitch 3.1.

use thiserror::Error;

use super::{
    PortNo,
    ct::{Ct, Nat},
    field::Field,
    learn::Learn,
    matching::MatchError,
    sample::Sample,
    spread::Spread,
    subfield::{FieldValue, Subfield},
};

/// How deep `clone`, `ct` and `write_actions` may nest.
pub const NESTING_MAX: usize = 16;

/// One action, or one instruction of OpenFlow 1.5 written as an action, as ovs-ofctl does. An empty list drops the packet.
///
/// ```
/// use openflow::flow::{Action, Field, parse_actions, print_actions};
/// let actions = vec![Action::set(Field::Reg2, 7), Action::GotoTable(15)];
/// assert_eq!(print_actions(&actions), "set_field:0x7->reg2,goto_table:15");
/// assert_eq!(parse_actions("load:7->NXM_NX_REG2[],goto_table:15")?, actions);
/// assert_eq!(parse_actions("drop")?, []);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Sends the packet out of a port. For the controller use [`Action::Controller`].
    Output(PortNo),
    /// Sends the packet out of the port whose number stands in a field.
    OutputField(Subfield),
    /// Sends the first octets of the packet out of a port.
    OutputTruncated {
        /// The port.
        port: PortNo,
        /// Octets to keep, at least 14.
        octets_max: u32,
    },
    /// Sends the packet to the controller.
    Controller(Controller),
    /// Runs a group.
    Group(u32),
    /// Writes a value into a field.
    SetField(SetField),
    /// Copies bits; both runs have the same length.
    Move {
        /// Where the bits come from.
        source: Subfield,
        /// Where they go.
        target: Subfield,
    },
    /// Pushes bits onto the stack.
    Push(Subfield),
    /// Pops bits from the stack.
    Pop(Subfield),
    /// Pushes a VLAN tag with this EtherType (0x8100 or 0x88a8).
    PushVlan(u16),
    /// Removes the outermost VLAN tag.
    PopVlan,
    /// Decrements the TTL or hop limit; at zero the packet goes to the controller that asked for such packets.
    DecTtl,
    /// The same, with the ids of the controllers to tell.
    DecTtlFor(Vec<u16>),
    /// Looks the packet up again.
    Resubmit {
        /// As if it came in on this port; `IN_PORT` leaves it as it is.
        port: PortNo,
        /// In this table; `None` is the current one.
        table: Option<u8>,
        /// With the connection's original tuple in place of the packet's own.
        original_tuple: bool,
    },
    /// Sends the packet through connection tracking.
    Ct(Box<Ct>),
    /// Forgets what connection tracking said of the packet.
    CtClear,
    /// Translates addresses: only inside [`Ct`].
    Nat(Nat),
    /// Says that this flow is one clause of a conjunctive match.
    Conjunction {
        /// The value that `conj_id` gets once all clauses are met.
        id: u32,
        /// Which clause this is, counted from 1.
        clause: u8,
        /// How many clauses there are, at least 2.
        clauses: u8,
    },
    /// Does nothing, and carries octets.
    Note(Note),
    /// Runs actions on a copy of the packet.
    Clone(Vec<Self>),
    /// Installs a flow made from the packet.
    Learn(Box<Learn>),
    /// Writes 1 into a bit when the packet is larger than a number of octets, else 0.
    CheckPacketLarger {
        /// Octets, with the Ethernet header.
        octets: u16,
        /// One bit.
        target: Subfield,
    },
    /// Hashes the packet and writes the chosen link.
    Multipath(Multipath),
    /// Sends the packet out of one of several ports, or writes which.
    Spread(Spread),
    /// Tells IPFIX collectors of some packets.
    Sample(Sample),
    /// Gives the flow other timeouts once a TCP FIN or RST was seen.
    FinTimeout {
        /// Idle timeout in seconds; 0 leaves it.
        idle: u16,
        /// Hard timeout in seconds; 0 leaves it.
        hard: u16,
    },
    /// Pushes an MPLS label with this EtherType (0x8847 or 0x8848).
    PushMpls(u16),
    /// Removes the outermost MPLS label; the packet gets this EtherType.
    PopMpls(u16),
    /// Decrements the TTL of the outermost MPLS label.
    DecMplsTtl,
    /// Sets the queue for later output.
    SetQueue(u32),
    /// Goes back to the queue that the packet began with.
    PopQueue,
    /// Ends the pipeline.
    Exit,
    /// Passes the packet through a meter.
    Meter(u32),
    /// Empties the action set.
    ClearActions,
    /// Puts actions into the action set.
    WriteActions(Vec<Self>),
    /// Writes the bits of the metadata under a mask.
    WriteMetadata {
        /// The bits.
        value: u64,
        /// Which bits.
        mask: u64,
    },
    /// Continues in a later table.
    GotoTable(u8),
    /// An action that this crate does not know, kept as received so that a foreign flow can still be named and deleted.
    Unknown(Vec<u8>),
}

/// Writes a value into a field, or into some of its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetField {
    field: Field,
    value: u128,
    mask: u128,
}

impl SetField {
    /// Writes `value` under `mask`; bits of the value that the mask leaves out are dropped, bits that the field does not have
    /// are kept for the check to refuse.
    pub fn new(field: Field, value: impl Into<FieldValue>, mask: impl Into<FieldValue>) -> Self {
        let mask = mask.into().0;
        Self { field, value: value.into().0 & (mask | !field.full_mask()), mask }
    }

    /// The field written.
    #[must_use]
    pub fn field(self) -> Field {
        self.field
    }

    /// The value, inside the mask.
    #[must_use]
    pub fn value(self) -> u128 {
        self.value
    }

    /// The bits written.
    #[must_use]
    pub fn mask(self) -> u128 {
        self.mask
    }

    /// Whether the whole field is written.
    #[must_use]
    pub fn is_whole(self) -> bool {
        self.mask == self.field.full_mask()
    }
}

/// Octets carried by a `note`: padded with zeros to 6, 14, 22 ... octets, as the wire form is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Note(Vec<u8>);

impl Note {
    /// A note with these octets, padded.
    #[must_use]
    pub fn new(octets: &[u8]) -> Self {
        let mut padded = octets.to_vec();
        while padded.len() % 8 != 6 {
            padded.push(0);
        }
        Self(padded)
    }

    /// The octets with their padding.
    #[must_use]
    pub fn octets(&self) -> &[u8] {
        &self.0
    }
}

/// Why a packet is sent to the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketInReason(pub u8);

impl PacketInReason {
    /// No flow matched.
    pub const NO_MATCH: Self = Self(0);
    /// An action said so.
    pub const ACTION: Self = Self(1);
    /// The TTL ran out.
    pub const INVALID_TTL: Self = Self(2);
    /// An action of the action set said so.
    pub const ACTION_SET: Self = Self(3);
    /// A group bucket said so.
    pub const GROUP: Self = Self(4);
    /// A packet-out said so.
    pub const PACKET_OUT: Self = Self(5);

    /// Names in ovs-ofctl syntax, by number.
    pub(crate) const NAMES: [&'static str; 6] =
        ["no_match", "action", "invalid_ttl", "action_set", "group", "packet_out"];
}

/// Sends the packet to the controller.
///
/// With `pause` the switch keeps the state of the packet: the packet-in carries a continuation that
/// a resume message hands back. `userdata` comes back in the packet-in, and says which flow it was.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Controller {
    /// Octets of the packet to send; 65535 sends all.
    pub octets_max: u16,
    /// The reason that the packet-in names.
    pub reason: PacketInReason,
    /// Which controller connection.
    pub id: u16,
    /// Octets that the packet-in repeats.
    pub userdata: Vec<u8>,
    /// Whether the packet waits for the controller.
    pub pause: bool,
    /// The meter that limits the rate, when it is not the switch's own.
    pub meter: Option<u32>,
}

impl Controller {
    /// Sends whole packets to controller 0, because an action said so.
    #[must_use]
    pub fn new() -> Self {
        Self {
            octets_max: u16::MAX,
            reason: PacketInReason::ACTION,
            id: 0,
            userdata: Vec::new(),
            pause: false,
            meter: None,
        }
    }

    /// With userdata.
    #[must_use]
    pub fn with_userdata(mut self, userdata: impl Into<Vec<u8>>) -> Self {
        self.userdata = userdata.into();
        self
    }

    /// Paused until resumed.
    #[must_use]
    pub fn paused(mut self) -> Self {
        self.pause = true;
        self
    }

    /// Metered.
    #[must_use]
    pub fn metered(mut self, meter: u32) -> Self {
        self.meter = Some(meter);
        self
    }

    /// Whether the plain `output` action can say it.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        let plain = Self { octets_max: self.octets_max, ..Self::new() };
        *self == plain
    }
}

impl Default for Controller {
    fn default() -> Self {
        Self::new()
    }
}

/// Which header fields a hash takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashFields {
    /// Ethernet source.
    EthSrc,
    /// Ethernet, VLAN, IP and transport, the same in both directions.
    SymmetricL4,
    /// IP and transport, the same in both directions; not UDP.
    SymmetricL3L4,
    /// IP and transport, the same in both directions.
    SymmetricL3L4Udp,
    /// IP source.
    NwSrc,
    /// IP destination.
    NwDst,
    /// IP addresses, the same in both directions.
    SymmetricL3,
}

impl HashFields {
    /// Wire number and name of each.
    pub(crate) const ALL: [(Self, u16, &'static str); 7] = [
        (Self::EthSrc, 0, "eth_src"),
        (Self::SymmetricL4, 1, "symmetric_l4"),
        (Self::SymmetricL3L4, 2, "symmetric_l3l4"),
        (Self::SymmetricL3L4Udp, 3, "symmetric_l3l4+udp"),
        (Self::NwSrc, 4, "nw_src"),
        (Self::NwDst, 5, "nw_dst"),
        (Self::SymmetricL3, 6, "symmetric_l3"),
    ];
}

/// How a hash becomes a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MultipathAlgorithm {
    /// Hash modulo the number of links.
    ModuloN,
    /// Hash divided by the range per link.
    HashThreshold,
    /// Highest random weight.
    Hrw,
    /// Hash again until it falls on a link.
    IterHash,
}

impl MultipathAlgorithm {
    /// Wire number and name of each.
    pub(crate) const ALL: [(Self, u16, &'static str); 4] = [
        (Self::ModuloN, 0, "modulo_n"),
        (Self::HashThreshold, 1, "hash_threshold"),
        (Self::Hrw, 2, "hrw"),
        (Self::IterHash, 3, "iter_hash"),
    ];
}

/// Hashes the packet and writes the chosen link into a field.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Multipath {
    /// What is hashed.
    pub fields: HashFields,
    /// Seed of the hash.
    pub basis: u16,
    /// How the hash becomes a link.
    pub algorithm: MultipathAlgorithm,
    /// The highest link number: one less than the number of links.
    pub link_max: u16,
    /// Argument of `IterHash`.
    pub argument: u32,
    /// Where the link goes; wide enough for `link_max`.
    pub target: Subfield,
}

/// An action that no switch would take.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ActionError {
    /// The field is read-only in this place.
    #[error("{field} cannot be written here")]
    ReadOnly {
        /// The field.
        field: Field,
    },
    /// A bit outside the field, or a mask on a field that takes none.
    #[error("{field} cannot take value {value:#x} under mask {mask:#x}")]
    BadValue {
        /// The field.
        field: Field,
        /// The value.
        value: u128,
        /// The mask.
        mask: u128,
    },
    /// The match does not say what the action presupposes.
    #[error("the match does not allow the action")]
    Prerequisite(#[source] MatchError),
    /// Two runs of bits differ in length.
    #[error("move from {source_bits} bits to {target_bits} bits")]
    MoveLength {
        /// Bits read.
        source_bits: u8,
        /// Bits written.
        target_bits: u8,
    },
    /// An action in a place where it means nothing.
    #[error("{action} cannot stand {place}")]
    Misplaced {
        /// The action.
        action: String,
        /// Where it stood.
        place: &'static str,
    },
    /// Nested deeper than is ever useful.
    #[error("actions nested deeper than {limit}")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// A part of the action is out of its range.
    #[error("{action}: {why}")]
    Invalid {
        /// The action.
        action: String,
        /// What is wrong.
        why: &'static str,
    },
}

impl Action {
    /// Writes a whole field.
    pub fn set(field: Field, value: impl Into<FieldValue>) -> Self {
        Self::SetField(SetField::new(field, value, field.full_mask()))
    }

    /// Writes the bits of a field under a mask.
    pub fn set_masked(field: Field, value: impl Into<FieldValue>, mask: impl Into<FieldValue>) -> Self {
        Self::SetField(SetField::new(field, value, mask))
    }

    /// Writes a run of bits.
    pub fn set_bits(bits: Subfield, value: impl Into<FieldValue>) -> Self {
        if bits.is_whole() {
            return Self::set(bits.field(), value);
        }
        Self::SetField(SetField::new(bits.field(), value.into().0 << bits.start(), bits.mask()))
    }

    /// Copies a whole field or a run of bits.
    pub fn copy(source: impl Into<Subfield>, target: impl Into<Subfield>) -> Self {
        Self::Move { source: source.into(), target: target.into() }
    }

    /// Sends the packet out of a port, or to the controller where that is what the number says.
    #[must_use]
    pub fn output(port: PortNo) -> Self {
        if port == PortNo::CONTROLLER { Self::Controller(Controller::new()) } else { Self::Output(port) }
    }

    /// Looks the packet up in another table and comes back.
    #[must_use]
    pub fn resubmit(table: u8) -> Self {
        Self::Resubmit { port: PortNo::IN_PORT, table: Some(table), original_tuple: false }
    }

    /// A note with these octets.
    #[must_use]
    pub fn note(octets: &[u8]) -> Self {
        Self::Note(Note::new(octets))
    }

    /// Sends the packet through connection tracking.
    #[must_use]
    pub fn ct(ct: Ct) -> Self {
        Self::Ct(Box::new(ct))
    }
}

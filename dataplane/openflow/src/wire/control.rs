//! Messages about the connection and the switch as a whole.
//!
//! Owns hello, features, configuration, role and the choice of asynchronous messages. Never keeps state.
//! Source: OpenFlow 1.5.1 §7.1.3, §7.3.1, §7.3.2, §7.3.8, §7.3.10, §7.5.1.

use super::{
    buffer::{Reader, Writer, padding},
    error::{DecodeError, EncodeError},
};

/// The wire version of OpenFlow 1.5.
pub const VERSION: u8 = 6;
/// The first of the two property types that experimenters have.
const EXPERIMENTER_SECONDARY: u16 = 0xfffe;
const HELLO_VERSION_BITMAP: u16 = 1;

/// The versions that a side speaks, as a bitmap: bit `n` is wire version `n`, 0 to 31.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hello {
    /// The bitmap.
    pub versions: u32,
}

impl Hello {
    /// Only OpenFlow 1.5.
    #[must_use]
    pub fn new() -> Self {
        Self { versions: 1 << VERSION }
    }

    /// Whether the other side speaks OpenFlow 1.5.
    #[must_use]
    pub fn speaks_ours(self) -> bool {
        self.versions & (1 << VERSION) != 0
    }

    pub(super) fn encode(self, to: &mut Writer) {
        to.u16(HELLO_VERSION_BITMAP);
        to.u16(8);
        to.u32(self.versions);
    }

    /// A hello may come in any version of the header; without a bitmap the header's version and all before it are meant.
    pub(super) fn decode(version: u8, mut from: Reader<'_>) -> Result<Self, DecodeError> {
        while !from.is_empty() {
            let (kind, length) = (from.u16()?, from.u16()?);
            let mut body = from.body(length, 4, "hello element")?;
            from.skip_padding(padding(length.into()));
            if kind == HELLO_VERSION_BITMAP && body.left() >= 4 {
                return Ok(Self { versions: body.u32()? });
            }
        }
        let all = (1_u64 << (u32::from(version.min(31)) + 1)) - 1;
        Ok(Self { versions: u32::try_from(all).unwrap_or(u32::MAX) })
    }
}

impl Default for Hello {
    fn default() -> Self {
        Self::new()
    }
}

/// What a switch is and can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Features {
    /// The switch's identity.
    pub datapath_id: u64,
    /// Packets that it can hold for the controller.
    pub buffers: u32,
    /// Number of tables.
    pub tables: u8,
    /// Which of several connections this is; 0 is the main one.
    pub auxiliary_id: u8,
    /// Capability bits.
    pub capabilities: u32,
}

impl Features {
    pub(super) fn encode(self, to: &mut Writer) {
        to.u64(self.datapath_id);
        to.u32(self.buffers);
        to.u8(self.tables);
        to.u8(self.auxiliary_id);
        to.zeros(2);
        to.u32(self.capabilities);
        to.zeros(4);
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let (datapath_id, buffers) = (from.u64()?, from.u32()?);
        let (tables, auxiliary_id) = (from.u8()?, from.u8()?);
        from.skip(2)?;
        Ok(Self { datapath_id, buffers, tables, auxiliary_id, capabilities: from.u32()? })
    }
}

/// How the switch treats fragments, and how much of a packet it sends where no flow says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SwitchConfig {
    /// Fragment handling: 0 normal, 1 drop, 2 reassemble, 3 match on fragments (Nicira).
    pub flags: u16,
    /// Octets of a packet sent on a table miss.
    pub miss_octets_max: u16,
}

impl SwitchConfig {
    pub(super) fn encode(self, to: &mut Writer) {
        to.u16(self.flags);
        to.u16(self.miss_octets_max);
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { flags: from.u16()?, miss_octets_max: from.u16()? })
    }
}

/// What a controller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RoleKind {
    /// Asks, changes nothing.
    NoChange,
    /// May change the switch, beside others.
    Equal,
    /// May change the switch; only one controller is this.
    Primary,
    /// May only look.
    Secondary,
}

const ROLES: [RoleKind; 4] = [RoleKind::NoChange, RoleKind::Equal, RoleKind::Primary, RoleKind::Secondary];

impl RoleKind {
    fn number(self) -> u32 {
        let number = ROLES.iter().position(|role| *role == self);
        number.and_then(|at| u32::try_from(at).ok()).unwrap_or(0)
    }

    fn from_number(number: u32) -> Result<Self, DecodeError> {
        let kind = usize::try_from(number).ok().and_then(|at| ROLES.get(at)).copied();
        kind.ok_or(DecodeError::BadValue { what: "role", value: number.into() })
    }
}

/// A role and the generation of its election.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Role {
    /// The role.
    pub kind: RoleKind,
    /// Grows with each election; older ones are refused.
    pub generation: u64,
}

impl Role {
    pub(super) fn encode(self, to: &mut Writer) {
        to.u32(self.kind.number());
        to.zeros(4);
        to.u64(self.generation);
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let kind = RoleKind::from_number(from.u32()?)?;
        from.skip(4)?;
        Ok(Self { kind, generation: from.u64()? })
    }
}

/// The switch changed a controller's role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoleStatus {
    /// The role as it now is.
    pub role: Role,
    /// Why: 0 another controller asked to be primary, 1 the switch was reconfigured, 2 an experiment.
    pub reason: u8,
}

impl RoleStatus {
    pub(super) fn encode(self, to: &mut Writer) {
        to.u32(self.role.kind.number());
        to.u8(self.reason);
        to.zeros(3);
        to.u64(self.role.generation);
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let (kind, reason) = (RoleKind::from_number(from.u32()?)?, from.u8()?);
        from.skip(3)?;
        Ok(Self { role: Role { kind, generation: from.u64()? }, reason })
    }
}

/// Which asynchronous messages a controller gets: one mask of reasons per property type.
///
/// Property types come in pairs, for secondary and for other controllers: packet-in 0 and 1, port-status 2 and 3,
/// flow-removed 4 and 5, role-status 6 and 7.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct AsyncConfig {
    /// Property type and mask.
    pub masks: Vec<(u16, u32)>,
}

impl AsyncConfig {
    /// Packet-ins for these reasons, for a controller that is not secondary.
    pub const PACKET_IN: u16 = 1;
    /// Port changes (bits: 0 added, 1 deleted, 2 modified), for a controller that is not secondary.
    pub const PORT_STATUS: u16 = 3;
    /// Flows that went, for a controller that is not secondary.
    pub const FLOW_REMOVED: u16 = 5;

    pub(super) fn encode(&self, to: &mut Writer) -> Result<(), EncodeError> {
        for (kind, mask) in &self.masks {
            to.u16(*kind);
            to.u16(8);
            to.u32(*mask);
        }
        Ok(())
    }

    pub(super) fn decode(mut from: Reader<'_>) -> Result<Self, DecodeError> {
        let mut masks = Vec::new();
        while !from.is_empty() {
            let (kind, length) = (from.u16()?, from.u16()?);
            let mut body = from.body(length, 4, "async property")?;
            from.skip_padding(padding(length.into()));
            // Properties of experimenters are longer, and say nothing to us.
            if kind < EXPERIMENTER_SECONDARY {
                masks.push((kind, body.u32()?));
            }
        }
        Ok(Self { masks })
    }
}

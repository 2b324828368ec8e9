//! Port numbers of a switch and the reserved ones.
//!
//! Owns [`PortNo`], its 16-bit NXM form and its names. Never knows which ports a switch has.
//! Source: OpenFlow 1.5.1 §7.2.1 `ofp_port_no`; Nicira 16-bit forms as in ovs-fields(7).

use std::{fmt, str::FromStr};

use thiserror::Error;

/// An OpenFlow port number.
///
/// ```
/// use openflow::flow::PortNo;
/// assert_eq!("LOCAL".parse::<PortNo>()?, PortNo::LOCAL);
/// assert_eq!(PortNo(7).to_string(), "7");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortNo(pub u32);

const NAMES: [(PortNo, &str); 10] = [
    (PortNo::UNSET, "UNSET"),
    (PortNo::IN_PORT, "IN_PORT"),
    (PortNo::TABLE, "TABLE"),
    (PortNo::NORMAL, "NORMAL"),
    (PortNo::FLOOD, "FLOOD"),
    (PortNo::ALL, "ALL"),
    (PortNo::CONTROLLER, "CONTROLLER"),
    (PortNo::LOCAL, "LOCAL"),
    (PortNo::ANY, "ANY"),
    (PortNo::ANY, "NONE"),
];

/// What reserved 16-bit numbers gain when they become 32-bit ones.
const RESERVED_OFFSET: u32 = 0xffff_0000;
/// The largest number of an ordinary port in the 16-bit form.
const MAX_16: u16 = 0xff00;

impl PortNo {
    /// No output port was set in the action set.
    pub const UNSET: Self = Self(0xffff_fff7);
    /// The port that the packet came in on.
    pub const IN_PORT: Self = Self(0xffff_fff8);
    /// Run the flow tables (packet-out only).
    pub const TABLE: Self = Self(0xffff_fff9);
    /// Forward as an ordinary learning switch.
    pub const NORMAL: Self = Self(0xffff_fffa);
    /// All ports that flooding is enabled on, but the ingress port.
    pub const FLOOD: Self = Self(0xffff_fffb);
    /// All ports but the ingress port.
    pub const ALL: Self = Self(0xffff_fffc);
    /// The controller.
    pub const CONTROLLER: Self = Self(0xffff_fffd);
    /// The switch's own port.
    pub const LOCAL: Self = Self(0xffff_fffe);
    /// Any port, or none: a wildcard in requests.
    pub const ANY: Self = Self(0xffff_ffff);

    /// Whether it is one of the reserved numbers.
    #[must_use]
    pub fn is_reserved(self) -> bool {
        self.0 > u32::from(MAX_16)
    }

    /// The 16-bit form; `None` when the number does not fit.
    #[must_use]
    pub fn to_u16(self) -> Option<u16> {
        let low = if self.0 >= Self::UNSET.0 { self.0 - RESERVED_OFFSET } else { self.0 };
        u16::try_from(low).ok()
    }

    /// From the 16-bit form.
    #[must_use]
    pub fn from_u16(number: u16) -> Self {
        let number = u32::from(number);
        if number >= Self::UNSET.0 - RESERVED_OFFSET { Self(number + RESERVED_OFFSET) } else { Self(number) }
    }
}

impl From<u32> for PortNo {
    fn from(number: u32) -> Self {
        Self(number)
    }
}

impl fmt::Display for PortNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(port, _)| port == self) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Text that names no port.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is neither a port number nor a reserved port name")]
pub struct PortNoError {
    /// The text.
    pub text: String,
}

impl FromStr for PortNo {
    type Err = PortNoError;

    fn from_str(text: &str) -> Result<Self, PortNoError> {
        if let Some((port, _)) = NAMES.iter().find(|(_, name)| name.eq_ignore_ascii_case(text)) {
            return Ok(*port);
        }
        let number = match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => text.parse(),
        };
        number.map(Self).map_err(|_| PortNoError { text: text.to_owned() })
    }
}

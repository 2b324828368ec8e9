//! What can go wrong between octets and messages, and the error message itself.
//!
//! Owns [`DecodeError`], [`EncodeError`] and [`SwitchError`] with the names of its codes. Never acts on one.
//! Source: OpenFlow 1.5.1 §7.5.4, Nicira error codes as `ovs-ofctl` prints them.

use std::fmt;

use thiserror::Error;

use super::buffer::{Reader, Writer};
use crate::flow::{FlowError, GroupError};

/// Octets that are not a message.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Another version of the protocol.
    #[error("message of OpenFlow wire version {version}, not 6 (OpenFlow 1.5)")]
    Version {
        /// The version octet.
        version: u8,
    },
    /// A structure ends too early.
    #[error("{what} is cut short: {needed} octets needed, {left} left")]
    Truncated {
        /// The structure.
        what: &'static str,
        /// Octets needed.
        needed: usize,
        /// Octets there.
        left: usize,
    },
    /// A length that cannot be.
    #[error("{what} cannot have length {length}")]
    BadLength {
        /// The structure.
        what: &'static str,
        /// The length it says.
        length: usize,
    },
    /// A value outside its range.
    #[error("{what} cannot be {value:#x}")]
    BadValue {
        /// What it stands for.
        what: &'static str,
        /// The value.
        value: u64,
    },
    /// Nested deeper than is ever useful.
    #[error("actions nested deeper than {limit}")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
}

/// A message that cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// Longer than its length field can say.
    #[error("{what} of {length} octets does not fit 65535")]
    TooLong {
        /// The structure.
        what: &'static str,
        /// Its length.
        length: usize,
    },
    /// A flow that no switch would take.
    #[error("flow {flow} cannot be sent")]
    Flow {
        /// The flow as text.
        flow: String,
        /// What is wrong with it.
        #[source]
        source: Box<FlowError>,
    },
    /// A group that no switch would take.
    #[error("group {group} cannot be sent")]
    Group {
        /// The group as text.
        group: String,
        /// What is wrong with it.
        #[source]
        source: Box<GroupError>,
    },
    /// An action with a value that has no wire form.
    #[error("action {action} has no wire form")]
    Action {
        /// The action as text.
        action: String,
    },
}

/// An error message: what the switch says of a request that it refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Error)]
pub struct SwitchError {
    /// Error type, such as 5 for a failed flow_mod.
    pub kind: u16,
    /// Code within the type.
    pub code: u16,
    /// The vendor of an experimenter error (`kind` 0xffff).
    pub experimenter: Option<u32>,
    /// The beginning of the refused request, or text.
    pub data: Vec<u8>,
}

/// Error type of experimenters.
const EXPERIMENTER: u16 = 0xffff;

/// Names of error types and codes.
const NAMES: &[(u16, &[&str])] = &[
    (0, &["OFPHFC_INCOMPATIBLE", "OFPHFC_EPERM"]),
    (
        1,
        &[
            "OFPBRC_BAD_VERSION",
            "OFPBRC_BAD_TYPE",
            "OFPBRC_BAD_MULTIPART",
            "OFPBRC_BAD_EXPERIMENTER",
            "OFPBRC_BAD_EXP_TYPE",
            "OFPBRC_EPERM",
            "OFPBRC_BAD_LEN",
            "OFPBRC_BUFFER_EMPTY",
            "OFPBRC_BUFFER_UNKNOWN",
            "OFPBRC_BAD_TABLE_ID",
            "OFPBRC_IS_SLAVE",
            "OFPBRC_BAD_PORT",
            "OFPBRC_BAD_PACKET",
            "OFPBRC_MULTIPART_BUFFER_OVERFLOW",
            "OFPBRC_MULTIPART_REQUEST_TIMEOUT",
            "OFPBRC_MULTIPART_REPLY_TIMEOUT",
            "OFPBRC_MULTIPART_BAD_SCHED",
            "OFPBRC_PIPELINE_FIELDS_ONLY",
            "OFPBRC_UNKNOWN",
        ],
    ),
    (
        2,
        &[
            "OFPBAC_BAD_TYPE",
            "OFPBAC_BAD_LEN",
            "OFPBAC_BAD_EXPERIMENTER",
            "OFPBAC_BAD_EXP_TYPE",
            "OFPBAC_BAD_OUT_PORT",
            "OFPBAC_BAD_ARGUMENT",
            "OFPBAC_EPERM",
            "OFPBAC_TOO_MANY",
            "OFPBAC_BAD_QUEUE",
            "OFPBAC_BAD_OUT_GROUP",
            "OFPBAC_MATCH_INCONSISTENT",
            "OFPBAC_UNSUPPORTED_ORDER",
            "OFPBAC_BAD_TAG",
            "OFPBAC_BAD_SET_TYPE",
            "OFPBAC_BAD_SET_LEN",
            "OFPBAC_BAD_SET_ARGUMENT",
            "OFPBAC_BAD_SET_MASK",
            "OFPBAC_BAD_METER",
        ],
    ),
    (
        3,
        &[
            "OFPBIC_UNKNOWN_INST",
            "OFPBIC_UNSUP_INST",
            "OFPBIC_BAD_TABLE_ID",
            "OFPBIC_UNSUP_METADATA",
            "OFPBIC_UNSUP_METADATA_MASK",
            "OFPBIC_BAD_EXPERIMENTER",
            "OFPBIC_BAD_EXP_TYPE",
            "OFPBIC_BAD_LEN",
            "OFPBIC_EPERM",
            "OFPBIC_DUP_INST",
        ],
    ),
    (
        4,
        &[
            "OFPBMC_BAD_TYPE",
            "OFPBMC_BAD_LEN",
            "OFPBMC_BAD_TAG",
            "OFPBMC_BAD_DL_ADDR_MASK",
            "OFPBMC_BAD_NW_ADDR_MASK",
            "OFPBMC_BAD_WILDCARDS",
            "OFPBMC_BAD_FIELD",
            "OFPBMC_BAD_VALUE",
            "OFPBMC_BAD_MASK",
            "OFPBMC_BAD_PREREQ",
            "OFPBMC_DUP_FIELD",
            "OFPBMC_EPERM",
        ],
    ),
    (
        5,
        &[
            "OFPFMFC_UNKNOWN",
            "OFPFMFC_TABLE_FULL",
            "OFPFMFC_BAD_TABLE_ID",
            "OFPFMFC_OVERLAP",
            "OFPFMFC_EPERM",
            "OFPFMFC_BAD_TIMEOUT",
            "OFPFMFC_BAD_COMMAND",
            "OFPFMFC_BAD_FLAGS",
            "OFPFMFC_CANT_SYNC",
            "OFPFMFC_BAD_PRIORITY",
            "OFPFMFC_IS_SYNC",
        ],
    ),
    (
        6,
        &[
            "OFPGMFC_GROUP_EXISTS",
            "OFPGMFC_INVALID_GROUP",
            "OFPGMFC_WEIGHT_UNSUPPORTED",
            "OFPGMFC_OUT_OF_GROUPS",
            "OFPGMFC_OUT_OF_BUCKETS",
            "OFPGMFC_CHAINING_UNSUPPORTED",
            "OFPGMFC_WATCH_UNSUPPORTED",
            "OFPGMFC_LOOP",
            "OFPGMFC_UNKNOWN_GROUP",
            "OFPGMFC_CHAINED_GROUP",
            "OFPGMFC_BAD_TYPE",
            "OFPGMFC_BAD_COMMAND",
            "OFPGMFC_BAD_BUCKET",
            "OFPGMFC_BAD_WATCH",
            "OFPGMFC_EPERM",
            "OFPGMFC_UNKNOWN_BUCKET",
            "OFPGMFC_BUCKET_EXISTS",
        ],
    ),
    (7, &["OFPPMFC_BAD_PORT", "OFPPMFC_BAD_HW_ADDR", "OFPPMFC_BAD_CONFIG", "OFPPMFC_BAD_ADVERTISE", "OFPPMFC_EPERM"]),
    (8, &["OFPTMFC_BAD_TABLE", "OFPTMFC_BAD_CONFIG", "OFPTMFC_EPERM"]),
    (9, &["OFPQOFC_BAD_PORT", "OFPQOFC_BAD_QUEUE", "OFPQOFC_EPERM"]),
    (10, &["OFPSCFC_BAD_FLAGS", "OFPSCFC_BAD_LEN", "OFPSCFC_EPERM"]),
    (11, &["OFPRRFC_STALE", "OFPRRFC_UNSUP", "OFPRRFC_BAD_ROLE", "OFPRRFC_ID_UNSUP", "OFPRRFC_ID_IN_USE"]),
    (
        12,
        &[
            "OFPMMFC_UNKNOWN",
            "OFPMMFC_METER_EXISTS",
            "OFPMMFC_INVALID_METER",
            "OFPMMFC_UNKNOWN_METER",
            "OFPMMFC_BAD_COMMAND",
            "OFPMMFC_BAD_FLAGS",
            "OFPMMFC_BAD_RATE",
            "OFPMMFC_BAD_BURST",
            "OFPMMFC_BAD_BAND",
            "OFPMMFC_BAD_BAND_VALUE",
            "OFPMMFC_OUT_OF_METERS",
            "OFPMMFC_OUT_OF_BANDS",
        ],
    ),
    (
        14,
        &[
            "OFPBPC_BAD_TYPE",
            "OFPBPC_BAD_LEN",
            "OFPBPC_BAD_VALUE",
            "OFPBPC_TOO_MANY",
            "OFPBPC_DUP_TYPE",
            "OFPBPC_BAD_EXPERIMENTER",
            "OFPBPC_BAD_EXP_TYPE",
            "OFPBPC_BAD_EXP_VALUE",
            "OFPBPC_EPERM",
        ],
    ),
    (15, &["OFPACFC_INVALID", "OFPACFC_UNSUPPORTED", "OFPACFC_EPERM"]),
    (
        17,
        &[
            "OFPBFC_UNKNOWN",
            "OFPBFC_EPERM",
            "OFPBFC_BAD_ID",
            "OFPBFC_BUNDLE_EXIST",
            "OFPBFC_BUNDLE_CLOSED",
            "OFPBFC_OUT_OF_BUNDLES",
            "OFPBFC_BAD_TYPE",
            "OFPBFC_BAD_FLAGS",
            "OFPBFC_MSG_BAD_LEN",
            "OFPBFC_MSG_BAD_XID",
            "OFPBFC_MSG_UNSUP",
            "OFPBFC_MSG_CONFLICT",
            "OFPBFC_MSG_TOO_MANY",
            "OFPBFC_MSG_FAILED",
            "OFPBFC_TIMEOUT",
            "OFPBFC_BUNDLE_IN_PROGRESS",
        ],
    ),
];

impl SwitchError {
    /// Whether this is the error of a bundle whose commit failed because of one of its messages.
    #[must_use]
    pub fn is_bundle_message_failed(&self) -> bool {
        (self.kind, self.code) == (17, 13)
    }

    /// The symbolic name of the code, where it has one.
    #[must_use]
    pub fn name(&self) -> Option<&'static str> {
        let (_, codes) = NAMES.iter().find(|(kind, _)| *kind == self.kind)?;
        codes.get(usize::from(self.code)).copied()
    }

    pub(super) fn decode(mut body: Reader<'_>) -> Result<Self, DecodeError> {
        let (kind, code) = (body.u16()?, body.u16()?);
        let experimenter = if kind == EXPERIMENTER { Some(body.u32()?) } else { None };
        Ok(Self { kind, code, experimenter, data: body.rest().to_vec() })
    }

    pub(super) fn encode(&self, to: &mut Writer) {
        to.u16(self.kind);
        to.u16(self.code);
        if let Some(experimenter) = self.experimenter.filter(|_| self.kind == EXPERIMENTER) {
            to.u32(experimenter);
        }
        to.bytes(&self.data);
    }
}

impl fmt::Display for SwitchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name(), self.experimenter) {
            (Some(name), _) => f.write_str(name),
            (None, Some(vendor)) => write!(f, "error {} of experimenter {vendor:#x}", self.code),
            (None, None) => write!(f, "error type {} code {}", self.kind, self.code),
        }
    }
}

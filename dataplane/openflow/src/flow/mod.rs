//! Flows, groups and meters as values: what a switch should hold, without a switch.
//!
//! Owns [`Flow`], [`Match`], [`Action`], [`Group`] and [`Meter`], their text in ovs-ofctl syntax and their checks. Never opens a connection.
//! Invariant: values are canonical. What Open vSwitch dumps back after taking a flow equals the flow, so that two sets of flows
//! can be compared with `==`, sorted and hashed.
//! Source: OpenFlow 1.5.1 §7, ovs-ofctl(8), ovs-fields(7), ovs-actions(7).

mod action;
mod action_text;
mod check;
mod ct;
mod field;
mod flow_text;
mod group;
mod learn;
mod match_text;
mod matching;
mod meter;
mod port;
mod sample;
mod spread;
mod subfield;
mod text;

pub use action::{
    Action, ActionError, Controller, HashFields, Multipath, MultipathAlgorithm, NESTING_MAX, Note, PacketInReason,
    SetField,
};
pub use action_text::{parse_actions, print_actions};
pub use check::FlowError;
pub use ct::{Ct, CtZone, Nat, NatChoice, NatRange, NatSide};
pub use field::{CodePoint, FIELDS, Field, FieldInfo, Format, Prerequisite};
pub use group::{Bucket, Group, GroupError, GroupKind, Selection};
pub use learn::{DEFAULT_PRIORITY, Learn, LearnSource, LearnSpec};
pub use matching::{Masked, Match, MatchError, VLAN_PRESENT, eth_type, ip_proto};
pub use meter::{Band, BandAction, Meter, MeterUnit};
pub use port::{PortNo, PortNoError};
pub use sample::{Sample, SampleSide};
pub use spread::{Spread, SpreadAlgorithm};
pub use subfield::{FieldValue, Subfield, SubfieldError};
pub use text::{TextError, ct_state};

bitflags::bitflags! {
    /// Options of a flow that the switch keeps.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
    pub struct FlowFlags: u16 {
        /// Tell the controller when the flow goes.
        const SEND_FLOW_REMOVED = 1 << 0;
        /// Do not count packets.
        const NO_PACKET_COUNTS = 1 << 3;
        /// Do not count octets.
        const NO_BYTE_COUNTS = 1 << 4;
    }
}

/// A flow: where it stands, what it matches, what it does.
///
/// ```
/// use openflow::flow::{Action, Flow, Match, PortNo};
/// let flow = Flow::new(10, 100, Match::new().ip().in_port(PortNo(1)), vec![Action::output(PortNo(2))]).with_cookie(7);
/// assert_eq!(flow.to_string(), "cookie=0x7, table=10, priority=100,ip,in_port=1 actions=output:2");
/// assert_eq!(flow.to_string().parse::<Flow>()?, flow);
/// flow.check()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// The table, 0 to 254.
    pub table: u8,
    /// The highest matching priority wins.
    pub priority: u16,
    /// What it matches.
    pub matching: Match,
    /// The controller's own mark on the flow.
    pub cookie: u64,
    /// What it does; empty drops.
    pub actions: Vec<Action>,
    /// Seconds without traffic after which it goes; 0 is never.
    pub idle_timeout: u16,
    /// Seconds after which it goes; 0 is never.
    pub hard_timeout: u16,
    /// Options.
    pub flags: FlowFlags,
    /// Flows of low importance go first when a table is full.
    pub importance: u16,
}

/// What makes a flow a place of its own in a switch: two flows with one key cannot both be installed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// The table.
    pub table: u8,
    /// The priority.
    pub priority: u16,
    /// The match.
    pub matching: Match,
}

impl Flow {
    /// A flow without cookie, timeouts or options.
    #[must_use]
    pub fn new(table: u8, priority: u16, matching: Match, actions: Vec<Action>) -> Self {
        Self {
            table,
            priority,
            matching,
            cookie: 0,
            actions,
            idle_timeout: 0,
            hard_timeout: 0,
            flags: FlowFlags::empty(),
            importance: 0,
        }
    }

    /// With this cookie.
    #[must_use]
    pub fn with_cookie(mut self, cookie: u64) -> Self {
        self.cookie = cookie;
        self
    }

    /// With these timeouts in seconds; 0 is never.
    #[must_use]
    pub fn with_timeouts(mut self, idle: u16, hard: u16) -> Self {
        self.idle_timeout = idle;
        self.hard_timeout = hard;
        self
    }

    /// Its place in the switch.
    #[must_use]
    pub fn key(&self) -> FlowKey {
        FlowKey { table: self.table, priority: self.priority, matching: self.matching.clone() }
    }
}

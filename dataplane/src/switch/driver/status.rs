//! How the driver is, and what its last round did: what its owner, metrics and the operator read.

use std::time::Duration;

/// What one round of changes did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Flows that were missing.
    pub added_flows: usize,
    /// Flows that said something else.
    pub replaced_flows: usize,
    /// Flows of ours that should not have been there.
    pub deleted_flows: usize,
    /// Flows that were right.
    pub unchanged_flows: usize,
    /// Groups added, changed or deleted.
    pub changed_groups: usize,
    /// Meters added, changed or deleted.
    pub changed_meters: usize,
    /// OpenFlow messages sent; none when all was right.
    pub messages: usize,
    /// How long reading, comparing and applying took.
    pub took: Duration,
    /// How long the flows took to compile, where the driver's owner knows.
    pub compile: Duration,
}

/// How the driver is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DriverStatus {
    /// Whether there is a connection.
    pub connected: bool,
    /// The version of flows wanted; 0 before the first.
    pub wanted: u64,
    /// The version known to be installed; 0 before the first.
    pub applied: u64,
    /// Flows of ours installed.
    pub flows: usize,
    /// Groups of ours installed.
    pub groups: usize,
    /// Connections made. All but the first began with a restart of the switch, or of its network.
    pub connections: u64,
    /// The one of these on which all that is wanted was found or put in place last; 0 before the first.
    pub settled: u64,
    /// Rounds that found flows of ours missing or changed that had been installed: a switch restart, or somebody else.
    pub repairs: u64,
    /// The last round.
    pub last: Option<Applied>,
    /// Flows that are not ours, in ovs-ofctl's syntax; the first few.
    pub foreign: Vec<String>,
    /// How many flows and groups are not ours.
    pub foreign_count: usize,
    /// What keeps the flows from being as they should, with all causes.
    pub problem: Option<String>,
}

impl DriverStatus {
    /// Whether all that is wanted is installed, as far as is known: what was installed over a connection from before, a switch that was started again may not
    /// have.
    #[must_use]
    pub const fn is_in_place(&self) -> bool {
        self.connected && self.settled == self.connections && self.wanted > 0 && self.applied == self.wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_connection_proves_nothing_before_it_was_looked_at() {
        let at = |connections, settled| DriverStatus {
            connected: true,
            wanted: 7,
            applied: 7,
            connections,
            settled,
            ..DriverStatus::default()
        };
        assert!(at(2, 2).is_in_place() && !at(2, 1).is_in_place());
        assert!(!DriverStatus { connected: false, ..at(2, 2) }.is_in_place());
        assert!(!DriverStatus { wanted: 8, ..at(2, 2) }.is_in_place());
        assert!(!DriverStatus::default().is_in_place());
    }
}

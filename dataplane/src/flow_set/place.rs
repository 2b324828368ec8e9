//! Where a flow stands in a switch, as the order of flow sets: by table, then priority, then match.
//!
//! Owns the order. Invariant: entries, flows and keys of one place compare equal, so that an entry is found by a key that was not taken from it
//! and a set of flows needs no second copy of each match.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::sync::Arc;

use openflow::flow::{FlowKey, Match};

use super::Entry;

/// What stands at a place of its own.
pub(super) trait Placed {
    fn table(&self) -> u8;
    fn priority(&self) -> u16;
    fn matching(&self) -> &Match;
}

impl Placed for FlowKey {
    fn table(&self) -> u8 {
        self.table
    }

    fn priority(&self) -> u16 {
        self.priority
    }

    fn matching(&self) -> &Match {
        &self.matching
    }
}

impl Placed for Place {
    fn table(&self) -> u8 {
        self.0.flow.table
    }

    fn priority(&self) -> u16 {
        self.0.flow.priority
    }

    fn matching(&self) -> &Match {
        &self.0.flow.matching
    }
}

/// An entry, ordered by the place of its flow.
#[derive(Debug, Clone)]
pub(super) struct Place(pub(super) Arc<Entry>);

impl<'a> Borrow<dyn Placed + 'a> for Place {
    fn borrow(&self) -> &(dyn Placed + 'a) {
        self
    }
}

impl Ord for dyn Placed + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        let table = self.table().cmp(&other.table());
        let rank = table.then_with(|| self.priority().cmp(&other.priority()));
        rank.then_with(|| self.matching().cmp(other.matching()))
    }
}

impl PartialOrd for dyn Placed + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Placed + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for dyn Placed + '_ {}

impl Ord for Place {
    fn cmp(&self, other: &Self) -> Ordering {
        (self as &dyn Placed).cmp(other as &dyn Placed)
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Place {}

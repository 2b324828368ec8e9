//! Whether a listener has room for one connection more: what no flow of ours knows, and the switch that counts does.
//!
//! Owns [`Room`]: which counter of the switch to ask, and what its answer means. Never asks.

use openflow::flow::{Action, Flow};

use super::{Blame, Cause, Path};
use crate::feature::connection_limit::NO_ROOM;

/// The limit of a listener that a new connection is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// The cookie of the flows that the switch has learned, one for each connection that counts, in [`Table::Open`](crate::table::Table::Open).
    pub cookie: u64,
    /// How many there may be.
    pub limit: u32,
    /// The flow that counts, in words.
    meaning: String,
}

impl Room {
    /// None where nothing on the way of the packet is counted.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        path.hops.iter().find_map(|hop| {
            let flow: Flow = hop.flow.as_deref()?.parse().ok()?;
            flow.actions.iter().find_map(|action| match action {
                Action::Learn(learn) if learn.limit > 0 => {
                    Some(Self { cookie: learn.cookie, limit: learn.limit, meaning: hop.meaning.clone() })
                }
                _ => None,
            })
        })
    }

    /// What is to blame when so many connections count already; none where there is room.
    #[must_use]
    pub fn blame(&self, open: u64) -> Option<Blame> {
        let remedy = "close connections, or wait for one to end: the client asks again; flowctl load-balancer set-listener gives it another limit";
        let line = || format!("{}, and {open} are {NO_ROOM}", self.meaning);
        (open >= u64::from(self.limit)).then(|| Blame::new(Cause::ConnectionLimit, line(), remedy))
    }
}

//! Connections that the connection tracker is to forget, because addresses are translated in another way now: whole zones, or those of one member of a
//! load balancer.
//!
//! Owns [`Stale`]. They are flushed as soon as the flows are in place, and once more a little later: the data path goes on for a moment with what it
//! cached, and a connection that it brings back would be translated as before for as long as it lives.

use std::collections::BTreeMap;
use std::time::Duration;

use openflow::wire::CtFlush;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::chain;
use crate::diff::Changes;
use crate::switch::channel::{Channel, ChannelError};

/// How much later. Open vSwitch looks through its cached flows within 0.5 s (`max-revalidator`, ovs-vswitchd.conf.db(5)).
const LAG: Duration = Duration::from_secs(2);
/// The most that may wait: each costs the switch a look through a zone. As many as a network has members of load balancers.
const WAITING_MAX: usize = model::balancer::MEMBERS_OF_NETWORK_MAX;

/// What is still to be flushed.
#[derive(Debug, Default)]
pub(super) struct Stale {
    waiting: BTreeMap<Which, Due>,
}

/// Which connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Which {
    /// All of a zone.
    Zone(u16),
    /// Those of one member, or of one protocol behind a firewall.
    Balanced(CtFlush),
}

#[derive(Debug, Clone, Copy)]
struct Due {
    at: Instant,
    is_last: bool,
}

impl Stale {
    /// More of them, from now on.
    pub(super) fn add(&mut self, changes: &Changes) {
        let due = Due { at: Instant::now(), is_last: false };
        self.waiting.extend(changes.stale_zones.iter().map(|zone| (Which::Zone(*zone), due)));
        let room = WAITING_MAX.saturating_sub(self.waiting.len());
        let balanced = &changes.stale_connections;
        if balanced.len() > room {
            warn!(
                count = balanced.len() - room,
                "members leave at once whose connections are not forgotten but dropped"
            );
        }
        self.waiting.extend(balanced.iter().take(room).map(|which| (Which::Balanced(*which), due)));
    }

    /// When the next one is to be flushed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.values().map(|due| due.at).min()
    }

    /// Makes the switch forget connections that are due. One that refuses goes on with them.
    pub(super) async fn forget(&mut self, channel: &mut impl Channel) -> Result<(), ChannelError> {
        while let Some(which) = self.next() {
            let forgotten = match which {
                Which::Zone(zone) => channel.forget(zone).await,
                Which::Balanced(which) => channel.forget_connections(which).await,
            };
            match (forgotten, which) {
                (Ok(()), Which::Zone(zone)) => info!(zone, "connections of a zone forgotten"),
                (Ok(()), Which::Balanced(which)) => debug!(?which, "connections of a member forgotten"),
                (Err(error @ ChannelError::Refused { .. }), which) => {
                    warn!(?which, problem = chain(&error), "connections not forgotten");
                }
                (Err(error), _) => return Err(error),
            }
            self.done(which);
        }
        Ok(())
    }

    /// One that is to be flushed now.
    fn next(&self) -> Option<Which> {
        let now = Instant::now();
        self.waiting.iter().find(|(_, due)| due.at <= now).map(|(which, _)| *which)
    }

    /// It was flushed.
    fn done(&mut self, which: Which) {
        match self.waiting.remove(&which) {
            Some(due) if !due.is_last => {
                self.waiting.insert(which, Due { at: Instant::now() + LAG, is_last: true });
            }
            _ => {}
        }
    }
}

/// Waits until then, or forever.
pub(super) async fn reached(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

//! Zones of the connection tracker whose connections are to be forgotten, because addresses are translated there in another way now.
//!
//! Owns [`Stale`]. A zone is flushed as soon as the flows are in place, and once more a little later: the data path goes on for a moment with what it
//! cached, and a connection that it brings back would be translated as before for as long as it lives.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::chain;
use crate::switch::channel::{Channel, ChannelError};

/// How much later. Open vSwitch looks through its cached flows within 0.5 s (`max-revalidator`, ovs-vswitchd.conf.db(5)).
const LAG: Duration = Duration::from_secs(2);

/// The zones that are still to be flushed.
#[derive(Debug, Default)]
pub(super) struct Stale {
    zones: BTreeMap<u16, Due>,
}

#[derive(Debug, Clone, Copy)]
struct Due {
    at: Instant,
    is_last: bool,
}

impl Stale {
    /// More of them, from now on.
    pub(super) fn add(&mut self, zones: impl IntoIterator<Item = u16>) {
        let due = Due { at: Instant::now(), is_last: false };
        self.zones.extend(zones.into_iter().map(|zone| (zone, due)));
    }

    /// When the next one is to be flushed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.zones.values().map(|due| due.at).min()
    }

    /// Makes the switch forget connections of zones that are due. One that refuses goes on with them.
    pub(super) async fn forget(&mut self, channel: &mut impl Channel) -> Result<(), ChannelError> {
        while let Some(zone) = self.next() {
            match channel.forget(zone).await {
                Ok(()) => info!(zone, "connections of a zone forgotten"),
                Err(error @ ChannelError::Refused { .. }) => {
                    warn!(zone, problem = chain(&error), "connections of a zone not forgotten");
                }
                Err(error) => return Err(error),
            }
            self.done(zone);
        }
        Ok(())
    }

    /// One that is to be flushed now.
    fn next(&self) -> Option<u16> {
        let now = Instant::now();
        self.zones.iter().find(|(_, due)| due.at <= now).map(|(zone, _)| *zone)
    }

    /// It was flushed.
    fn done(&mut self, zone: u16) {
        match self.zones.remove(&zone) {
            Some(due) if !due.is_last => {
                self.zones.insert(zone, Due { at: Instant::now() + LAG, is_last: true });
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

//! `[ipfix]`: flow records for collectors.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use dataplane::switch::bridge::FlowExport;
use serde::{Deserialize, Serialize};

use super::{ConfigError, expect};

/// The most collectors, each of which gets all records.
const COLLECTORS_MAX: usize = 8;
/// The most that Open vSwitch takes (ovs-vswitchd.conf.db(5)).
const ACTIVE_SECONDS_MAX: u32 = 4200;
/// How often the agent tells what ports and rules counted, at most and at least: reading a switch of many flows is work.
const COUNTERS_SECONDS: std::ops::RangeInclusive<u32> = 5..=86_400;

/// Flow records for collectors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ipfix {
    /// Where they listen, by UDP.
    pub collectors: BTreeSet<SocketAddr>,
    /// One packet of so many is looked at.
    #[serde(default = "Ipfix::default_sampling")]
    pub sampling: NonZeroU32,
    /// Seconds for which packets of a flow are counted until a record is sent; 0: each sampled packet is a record.
    #[serde(default = "Ipfix::default_active_seconds")]
    pub active_seconds: u32,
    /// Seconds between records of what ports and rules counted; 0: none are sent.
    #[serde(default = "Ipfix::default_counters_seconds")]
    pub counters_seconds: u32,
    /// The observation domain, by which a collector tells this host from others.
    #[serde(default)]
    pub domain: u32,
}

impl Ipfix {
    const fn default_sampling() -> NonZeroU32 {
        // What Open vSwitch takes when nothing is said.
        NonZeroU32::MIN.saturating_add(399)
    }

    const fn default_active_seconds() -> u32 {
        60
    }

    const fn default_counters_seconds() -> u32 {
        60
    }

    /// The time between records of what ports and rules counted; none: none are wanted.
    #[must_use]
    pub fn counters_period(&self) -> Option<Duration> {
        (self.counters_seconds != 0).then(|| Duration::from_secs(self.counters_seconds.into()))
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let count = self.collectors.len();
        let some = format!("1 to {COLLECTORS_MAX} collectors");
        expect((1..=COLLECTORS_MAX).contains(&count), "ipfix.collectors", format!("{count} collectors"), some)?;
        for collector in &self.collectors {
            let is_somewhere = collector.port() != 0 && !collector.ip().is_unspecified();
            expect(is_somewhere, "ipfix.collectors", collector, "an address and a port, such as 192.0.2.9:4739")?;
        }
        let (every, range) = (self.counters_seconds, COUNTERS_SECONDS);
        let want = format!("0, or {} to {}", range.start(), range.end());
        expect(every == 0 || range.contains(&every), "ipfix.counters_seconds", every, want)?;
        let active = self.active_seconds;
        expect(active <= ACTIVE_SECONDS_MAX, "ipfix.active_seconds", active, format!("{ACTIVE_SECONDS_MAX} at most"))
    }

    /// What the switch is told.
    #[must_use]
    pub fn export(&self) -> FlowExport {
        FlowExport {
            collectors: self.collectors.clone(),
            sampling: self.sampling,
            active: Duration::from_secs(self.active_seconds.into()),
            domain: self.domain,
        }
    }
}

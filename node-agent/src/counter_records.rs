//! Tells the collectors of flow records what ports and rules counted, from time to time, by IPFIX over UDP.
//!
//! The switch itself tells of flows ([`crate::config::Ipfix`]); it knows neither ports nor rules by name. Reads the counters as `flowctl top` does, on a
//! connection of its own; what fails is said once in the log and tried again at the next turn. Nothing is kept for a collector that is away.

mod message;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::net::UdpSocket;
use tokio::time::{MissedTickBehavior, interval};

use crate::api::{Api, CountersBody};
use crate::config::Ipfix;
use crate::driver::chain;
use message::Stamp;

/// Messages after which other tasks get their turn, and the links theirs.
const BURST: usize = 32;

/// Tells for as long as the agent runs, if the configuration wants it.
pub async fn keep(api: Arc<Api>) {
    let Some(ipfix) = api.config.ipfix.clone() else { return };
    let Some(period) = ipfix.counters_period() else { return };
    let mut turns = interval(period);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first turn comes at once, before there is anything to tell.
    turns.tick().await;
    let mut teller = Teller { ipfix, sequence: 0, failed: false };
    loop {
        turns.tick().await;
        let told = match api.counters().await {
            Ok(counted) => teller.tell(&counted).await,
            Err(problem) => Err(problem),
        };
        teller.note(told);
    }
}

/// One stream of records: all collectors get the same.
struct Teller {
    ipfix: Ipfix,
    /// Records sent so far.
    sequence: u32,
    /// Whether the last turn failed, as the log has said.
    failed: bool,
}

impl Teller {
    /// Sends all collectors what was counted; one that fails does not keep it from others.
    async fn tell(&mut self, counted: &CountersBody) -> Result<(), String> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        // RFC 7011 §3.1: seconds of 32 bits.
        let time = u32::try_from(time & u64::from(u32::MAX)).unwrap_or_default();
        let stamp = Stamp { time, domain: self.ipfix.domain, sequence: self.sequence };
        let (messages, records) = message::messages(counted, stamp);
        self.sequence = self.sequence.wrapping_add(records);
        let mut problem = None;
        for collector in &self.ipfix.collectors {
            if let Err(error) = send(*collector, &messages).await {
                problem = Some(format!("tell the collector {collector}: {}", chain(&error)));
            }
        }
        problem.map_or(Ok(()), Err)
    }

    /// Says in the log that records do not go out, or go out again: once.
    fn note(&mut self, told: Result<(), String>) {
        match (told, std::mem::take(&mut self.failed)) {
            (Ok(()), true) => tracing::info!("records of counters are sent again"),
            (Err(problem), before) => {
                if !before {
                    tracing::warn!(
                        problem,
                        remedy = "look at [ipfix] in the configuration",
                        "records of counters are not sent"
                    );
                }
                self.failed = true;
            }
            (Ok(()), false) => {}
        }
    }
}

async fn send(collector: SocketAddr, messages: &[Vec<u8>]) -> std::io::Result<()> {
    let any: SocketAddr = match collector {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    for (index, message) in messages.iter().enumerate() {
        if index % BURST == BURST - 1 {
            tokio::task::yield_now().await;
        }
        socket.send_to(message, collector).await?;
    }
    Ok(())
}

//! Ports that are awaited here: the first frame of one switches it, and is let in again.
//!
//! Owns `Arrivals`: which ports have come, and the frames that wait until the flows of that are in place. Never judges a frame: the flow that handed it
//! over did. Invariant: the frames that wait are bounded, for each port and for all; a frame beyond that is lost, as on any wire.
//!
//! ```text
//! awaited --frame--> its flows are wanted, frames wait --installed--> local: frames are let in again, in order
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::PortId;
use model::arrival::Arrived;
use model::spec::HostNetwork;
use openflow::flow::PortNo;
use tokio::sync::{Notify, mpsc, watch};
use tracing::{info, warn};

use super::channel::Reply;

/// Frames of one port that wait at once.
pub const WAITING_MAX: usize = 512;
/// The same of all ports.
pub const ALL_WAITING_MAX: usize = 2048;
/// How long connections may go on that the host's tracker does not know, after their port came: longer than a sender of TCP waits until it repeats itself
/// (RFC 6298 §2.5 has it wait 60 s at least before it may give up waiting longer).
pub const SETTLING: Duration = Duration::from_secs(60);

/// A frame and the port that it came in by.
type Frame = (PortNo, Vec<u8>);

#[derive(Debug, Default)]
struct State {
    /// By the key of their port. A port stays here until its frames are let in again, be there none.
    waiting: BTreeMap<u32, VecDeque<Frame>>,
    lost: u64,
    /// When ports came.
    settling: BTreeMap<PortId, Instant>,
}

/// What is known of ports that came, in the hands of those who take frames and of those who change flows.
#[derive(Debug, Clone)]
pub(super) struct Arrivals {
    state: Arc<Mutex<State>>,
    rung: Arc<Notify>,
    arrived: Arc<watch::Sender<BTreeMap<PortId, u64>>>,
    replies: mpsc::Sender<Reply>,
}

impl Arrivals {
    /// Nothing has come; frames that are let in again are received from the other end.
    pub(super) fn new() -> (Self, mpsc::Receiver<Reply>) {
        let (replies, let_in) = mpsc::channel(ALL_WAITING_MAX);
        let (arrived, _) = watch::channel(BTreeMap::new());
        (Self { state: Arc::default(), rung: Arc::default(), arrived: Arc::new(arrived), replies }, let_in)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a frame of a port; gives it back when it is not to wait, for the port has come.
    pub(super) fn take(&self, key: u32, is_awaited: bool, frame: Frame) -> Option<Frame> {
        let mut state = self.state();
        if !is_awaited && !state.waiting.contains_key(&key) {
            return Some(frame);
        }
        let all: usize = state.waiting.values().map(VecDeque::len).sum();
        let queue = state.waiting.entry(key).or_default();
        if queue.len() < WAITING_MAX && all < ALL_WAITING_MAX {
            queue.push_back(frame);
        } else {
            state.lost += 1;
        }
        self.rung.notify_one();
        None
    }

    /// Waits for a frame of a port.
    pub(super) async fn rung(&self) {
        self.rung.notified().await;
    }

    /// The keys of ports whose frames wait.
    pub(super) fn waiting(&self) -> BTreeSet<u32> {
        self.state().waiting.keys().copied().collect()
    }

    /// Lets the frames of a port in again, in order.
    pub(super) fn let_in(&self, key: u32) {
        let (frames, lost) = {
            let mut state = self.state();
            (state.waiting.remove(&key).unwrap_or_default(), std::mem::take(&mut state.lost))
        };
        if lost > 0 {
            warn!(lost, "frames of ports that came: too many at once");
        }
        for (port, frame) in frames {
            // As many fit as can wait.
            let _lost = self.replies.try_send(Reply::Again { port, frame });
        }
    }

    /// Forgets the frames of a port that is not awaited.
    pub(super) fn turn_away(&self, key: u32) {
        self.state().waiting.remove(&key);
    }

    /// Notes that ports have come.
    pub(super) fn note(&self, came: impl IntoIterator<Item = Arrived>, now: Instant) {
        let came: Vec<Arrived> = came.into_iter().collect();
        self.state().settling.extend(came.iter().map(|it| (it.port, now)));
        self.arrived.send_if_modified(|arrived| {
            let before = arrived.clone();
            arrived.extend(came.iter().map(|it| (it.port, it.serial)));
            *arrived != before
        });
    }

    /// These networks with the ports that came here; forgets those that are not awaited any more, be they here by now or elsewhere.
    pub(super) fn apply(&self, network: HostNetwork) -> HostNetwork {
        self.arrived.send_if_modified(|arrived| {
            let before = arrived.len();
            arrived.retain(|port, serial| network.awaits(Arrived { port: *port, serial: *serial }));
            arrived.len() != before
        });
        let network = self.seen_by(network);
        let is_here = |port: &PortId| network.ports.get(port).is_some_and(|port| port.is_on(network.host));
        self.state().settling.retain(|port, _| is_here(port));
        network
    }

    /// The same, and forgets nothing.
    pub(super) fn seen_by(&self, network: HostNetwork) -> HostNetwork {
        network.with_arrived(&self.arrived.borrow())
    }

    /// Whether any port has come that is still said to be elsewhere.
    pub(super) fn is_empty(&self) -> bool {
        self.arrived.borrow().is_empty()
    }

    /// Follows which ports have come, with their attempts, until a specification has them here.
    pub(super) fn follow(&self) -> watch::Receiver<BTreeMap<PortId, u64>> {
        self.arrived.subscribe()
    }

    /// The ports that came a while ago at most.
    pub(super) fn settling(&self, now: Instant) -> BTreeSet<PortId> {
        let mut state = self.state();
        state.settling.retain(|_, came| now < *came + SETTLING);
        state.settling.keys().copied().collect()
    }

    /// When the next of them is no longer one.
    pub(super) fn due(&self) -> Option<Instant> {
        self.state().settling.values().min().map(|came| *came + SETTLING)
    }
}

/// The port with this key, or the one that has its tap, when it is awaited here.
pub(super) fn awaited(network: &HostNetwork, key: u32) -> Option<Arrived> {
    let port = network.awaited_ports().find(|port| port.key == key)?;
    let arrived = Arrived { port: port.tap_port(), serial: port.arriving?.serial };
    info!(port = %arrived.port, serial = arrived.serial, "a port that was awaited has come");
    Some(arrived)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames wait up to a bound for each port and for all, come out in order, and those of a port that has come do not wait.
    #[test]
    fn frames_wait_within_bounds_and_are_let_in_in_order() {
        let (arrivals, mut let_in) = Arrivals::new();
        let frame = |number: usize| (PortNo(3), number.to_be_bytes().to_vec());
        assert_eq!(arrivals.take(7, false, frame(0)), Some(frame(0)), "it is here");
        for number in 0..2 * WAITING_MAX {
            assert_eq!(arrivals.take(7, true, frame(number)), None);
        }
        for key in 8..8 + 2 * u32::try_from(ALL_WAITING_MAX / WAITING_MAX).unwrap() {
            for number in 0..WAITING_MAX {
                assert_eq!(arrivals.take(key, true, frame(number)), None);
            }
        }
        let all: usize = arrivals.state().waiting.values().map(VecDeque::len).sum();
        assert_eq!(all, ALL_WAITING_MAX);
        assert_eq!(arrivals.take(7, false, frame(999)), None, "those before it wait");
        arrivals.let_in(7);
        for number in 0..WAITING_MAX {
            let (port, frame) = frame(number);
            assert_eq!(let_in.try_recv().unwrap(), Reply::Again { port, frame });
        }
        assert!(let_in.try_recv().is_err());
        assert_eq!(arrivals.take(7, false, frame(1)), Some(frame(1)), "none wait");
    }
}

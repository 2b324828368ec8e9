//! The gate that a machine's threads pass: open while it runs, shut while it is paused, and the way out when it ends.
//!
//! vCPU and device threads ask [`Gate::pass`] before each turn; the owner gives an order and waits until every thread has obeyed. A thread that is
//! inside the kernel is kicked again and again until it has, so a kick that comes a moment too early is not lost.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time between two kicks of threads that did not obey yet.
const KICK_INTERVAL: Duration = Duration::from_millis(2);

/// What the threads shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Order {
    /// Go on.
    Run,
    /// Wait at the gate.
    Pause,
    /// End.
    Stop,
}

#[derive(Debug)]
struct State {
    order: Order,
    parked: usize,
    gone: usize,
}

/// Not all threads obeyed in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{missing} of {members} threads did not {order:?} within {timeout:?}")]
pub struct Disobeyed {
    /// The order.
    pub order: Order,
    /// How many did not obey.
    pub missing: usize,
    /// How many there are.
    pub members: usize,
    /// How long was waited.
    pub timeout: Duration,
}

/// The gate of one machine.
#[derive(Debug)]
pub struct Gate {
    order: AtomicU8,
    state: Mutex<State>,
    changed: Condvar,
    members: usize,
}

impl Gate {
    /// A gate for `members` threads, shut.
    #[must_use]
    pub const fn new(members: usize) -> Self {
        Self {
            order: AtomicU8::new(Order::Pause as u8),
            state: Mutex::new(State { order: Order::Pause, parked: 0, gone: 0 }),
            changed: Condvar::new(),
            members,
        }
    }

    /// Passes at once while the order is to run, waits while it is to pause; false when the thread shall end.
    pub fn pass(&self) -> bool {
        if self.order.load(Ordering::Acquire) == Order::Run as u8 {
            return true;
        }
        self.park(Order::Pause)
    }

    /// Waits until the machine ends, for a thread that has nothing left to do; false when it shall end, which is the only way back.
    pub fn rest(&self) -> bool {
        self.park(Order::Run)
    }

    /// The thread ends, by order or not.
    pub fn leave(&self) {
        self.lock().gone += 1;
        self.changed.notify_all();
    }

    /// Gives an order and waits until all threads obey. `kick` gets them out of the kernel; it is called every few milliseconds.
    ///
    /// # Errors
    /// [`Disobeyed`] after `timeout`. The order stands.
    pub fn order(&self, order: Order, timeout: Duration, kick: impl FnMut()) -> Result<(), Disobeyed> {
        self.order_started(order, self.members, timeout, kick)
    }

    /// As [`Gate::order`], for a machine of which only `members` threads were started.
    ///
    /// # Errors
    /// [`Disobeyed`] after `timeout`. The order stands.
    pub fn order_started(
        &self,
        order: Order,
        members: usize,
        timeout: Duration,
        mut kick: impl FnMut(),
    ) -> Result<(), Disobeyed> {
        let end = Instant::now() + timeout;
        let mut state = self.lock();
        state.order = order;
        self.order.store(order as u8, Ordering::Release);
        self.changed.notify_all();
        loop {
            let obeyed = match order {
                Order::Run => return Ok(()),
                Order::Pause => state.parked + state.gone,
                Order::Stop => state.gone,
            };
            if obeyed >= members {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(Disobeyed { order, missing: members - obeyed, members, timeout });
            }
            drop(state);
            kick();
            state = self.wait(self.lock());
        }
    }

    /// Waits while the order is `while_order` or to pause.
    fn park(&self, while_order: Order) -> bool {
        let mut state = self.lock();
        state.parked += 1;
        self.changed.notify_all();
        while state.order == Order::Pause || state.order == while_order {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked -= 1;
        state.order != Order::Stop
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, KICK_INTERVAL).unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn threads_run_pause_and_end_by_order() {
        let (gate, turns) = (Arc::new(Gate::new(3)), Arc::new(AtomicU64::new(0)));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (gate, turns) = (Arc::clone(&gate), Arc::clone(&turns));
                std::thread::spawn(move || {
                    while gate.pass() {
                        turns.fetch_add(1, Ordering::SeqCst);
                        std::thread::yield_now();
                    }
                    gate.leave();
                })
            })
            .collect();
        gate.order(Order::Pause, SOON, || {}).unwrap();
        assert_eq!(turns.load(Ordering::SeqCst), 0);
        for _ in 0..20 {
            gate.order(Order::Run, SOON, || {}).unwrap();
            while turns.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            gate.order(Order::Pause, SOON, || {}).unwrap();
            let before = turns.swap(0, Ordering::SeqCst);
            assert!(before > 0);
            assert_eq!(turns.load(Ordering::SeqCst), 0);
        }
        gate.order(Order::Stop, SOON, || {}).unwrap();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn a_thread_that_does_not_obey_is_counted() {
        let gate = Gate::new(1);
        let error = gate.order(Order::Pause, Duration::from_millis(5), || {}).unwrap_err();
        assert_eq!((error.missing, error.members), (1, 1));
    }
}

//! How often a machine may triple-fault and start again: a bound, so that a guest that cannot start does not try for ever.
//!
//! Hardware answers a triple fault by a reset (AMD64 Architecture Programmer's Manual, volume 2, "Shutdown"), some guests use it on purpose, and so
//! the machine resets, as QEMU's does. One that faults again and again is broken and ends, with its reason.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// This many triple faults within [`WINDOW`] are answered by a reset; one more is a crash.
pub const RESETS_MAX: usize = 3;
/// The time in which triple faults count together.
pub const WINDOW: Duration = Duration::from_secs(120);

/// When a machine's last triple faults were.
#[derive(Debug, Default)]
pub struct TripleFaults {
    recent: VecDeque<Instant>,
}

impl TripleFaults {
    /// Takes note of one; whether the machine may start again.
    pub fn may_reset(&mut self, now: Instant) -> bool {
        self.recent.retain(|earlier| now.saturating_duration_since(*earlier) < WINDOW);
        if self.recent.len() >= RESETS_MAX {
            return false;
        }
        self.recent.push_back(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_forgiven_and_more_only_after_a_while() {
        let (mut faults, start) = (TripleFaults::default(), Instant::now());
        assert!((0..RESETS_MAX).all(|_| faults.may_reset(start)));
        assert!(!faults.may_reset(start + WINDOW / 2));
        assert!(faults.may_reset(start + WINDOW));
    }
}

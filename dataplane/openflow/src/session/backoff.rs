//! How long to wait before trying to connect again.
//!
//! Owns [`Backoff`]. Never waits.

use std::time::Duration;

/// Waits that double from a minimum to a maximum, and start over after a success.
///
/// ```
/// use std::time::Duration;
/// use openflow::session::Backoff;
/// let mut backoff = Backoff::default();
/// assert_eq!(backoff.wait(), Duration::from_millis(100));
/// assert_eq!(backoff.wait(), Duration::from_millis(200));
/// backoff.succeeded();
/// assert_eq!(backoff.wait(), Duration::from_millis(100));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits between `min` and `max`.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min }
    }

    /// The next wait.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = wait.saturating_mul(2).min(self.max);
        wait
    }

    /// A connection came about: the next wait is short again.
    pub fn succeeded(&mut self) {
        self.next = self.min;
    }
}

impl Default for Backoff {
    /// From 100 ms to 8 s.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(8))
    }
}

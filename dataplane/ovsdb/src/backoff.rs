//! How long to wait before connecting again: doubled after each failure, and back to the start after a success.
//!
//! It owns no clock: the caller waits for what [`Backoff::next_pause`] returns.

use std::time::Duration;

/// The pause before the next attempt.
#[derive(Debug, Clone)]
pub struct Backoff {
    pause_min: Duration,
    pause_max: Duration,
    next: Duration,
}

impl Default for Backoff {
    /// From 100 ms, so that a restarted local server is found at once, to 8 s.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(8))
    }
}

impl Backoff {
    /// Pauses from `pause_min` to `pause_max`.
    #[must_use]
    pub fn new(pause_min: Duration, pause_max: Duration) -> Self {
        Self { pause_min, pause_max, next: pause_min }
    }

    /// The pause after one more failure.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = pause.saturating_mul(2).min(self.pause_max);
        pause
    }

    /// Notes a success.
    pub fn reset(&mut self) {
        self.next = self.pause_min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(500));
        let pauses: Vec<u128> = (0..5).map(|_| backoff.next_pause().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 500, 500]);
        backoff.reset();
        assert_eq!(backoff.next_pause().as_millis(), 100);
    }
}

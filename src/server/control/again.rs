//! When to try again what failed for a reason that may pass: soon, then less and less often.

use std::time::{Duration, Instant};

/// What failed, and when it is due.
pub(super) struct Again {
    first: Duration,
    last: Duration,
    next: Option<(Instant, Duration)>,
}

impl Again {
    /// Waits `first` after the first failure in a row, twice as long after each, `last` at most.
    pub(super) const fn new(first: Duration, last: Duration) -> Self {
        Self {
            first,
            last,
            next: None,
        }
    }

    /// It failed; returns how long to wait.
    pub(super) fn failed(&mut self, now: Instant) -> Duration {
        let wait = self
            .next
            .map_or(self.first, |(_, wait)| (wait * 2).min(self.last));
        self.next = Some((now + wait, wait));
        wait
    }

    /// Whether it failed and has waited.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next.is_some_and(|(at, _)| at <= now)
    }

    /// Whether it failed and nothing has come of it since.
    pub(super) fn has_failed(&self) -> bool {
        self.next.is_some()
    }

    /// It came to a result.
    pub(super) fn settled(&mut self) {
        self.next = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_last_and_begin_anew() {
        let second = Duration::from_secs(1);
        let mut again = Again::new(second, 3 * second);
        let now = Instant::now();
        assert!(!again.has_failed() && !again.is_due(now));
        assert_eq!([0; 4].map(|_| again.failed(now).as_secs()), [1, 2, 3, 3]);
        assert!(again.has_failed() && !again.is_due(now + 2 * second));
        assert!(again.is_due(now + 3 * second));
        again.settled();
        assert!(!again.is_due(now + 9 * second));
        assert_eq!(again.failed(now), second);
    }
}

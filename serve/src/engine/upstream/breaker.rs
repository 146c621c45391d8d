//! A circuit breaker: whoever failed several times in a row is left alone for a while, then tried with one request.
//!
//! Pure: the time comes in with each call.

use std::time::{Duration, Instant};

/// Failures in a row that open it.
const FAILURES: u32 = 5;
/// How long it stays open, and how long a trial may take before there is another one.
const PAUSE: Duration = Duration::from_secs(10);

/// Whether requests go through.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    state: State,
}

#[derive(Debug)]
enum State {
    /// All go through.
    Closed { failures: u32 },
    /// None goes through until then; after it, one.
    Open { until: Instant },
    /// One has gone through. If nobody tells what became of it, another one may from then on.
    Trial { until: Instant },
}

impl Default for State {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

impl Breaker {
    /// Whether a request may go through now; if so in a trial, it is the trial.
    pub(super) fn lets_through(&mut self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until } | State::Trial { until } if now >= until => {
                self.state = State::Trial { until: now + PAUSE };
                true
            }
            State::Open { .. } | State::Trial { .. } => false,
        }
    }

    /// Whether nothing may go through now, not even a trial.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => false,
            State::Open { until } | State::Trial { until } => now < until,
        }
    }

    /// A request that had gone through went well.
    pub(super) fn succeeded(&mut self) {
        self.state = State::default();
    }

    /// A request that had gone through failed; true if this opened it.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        let opens = match &mut self.state {
            State::Closed { failures } => {
                *failures += 1;
                *failures >= FAILURES
            }
            State::Trial { .. } => true,
            // One that began before.
            State::Open { .. } => false,
        };
        if opens {
            self.state = State::Open { until: now + PAUSE };
        }
        opens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        for i in 1..=FAILURES {
            assert!(breaker.lets_through(now));
            assert_eq!(breaker.failed(now), i == FAILURES);
        }
        breaker
    }

    #[test]
    fn it_opens_after_failures_in_a_row_alone() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            for _ in 1..FAILURES {
                assert!(!breaker.failed(now));
            }
            breaker.succeeded();
        }
        assert!(!breaker.is_open(now));
        let mut breaker = opened(now);
        assert!(breaker.is_open(now) && !breaker.lets_through(now));
        assert!(!breaker.lets_through(now + PAUSE - Duration::from_millis(1)));
    }

    #[test]
    fn one_trial_decides() {
        let now = Instant::now();
        let later = now + PAUSE;
        let mut breaker = opened(now);
        assert!(!breaker.is_open(later));
        assert!(breaker.lets_through(later));
        assert!(!breaker.lets_through(later) && breaker.is_open(later));
        breaker.succeeded();
        assert!(breaker.lets_through(later) && breaker.lets_through(later));

        let mut breaker = opened(now);
        assert!(breaker.lets_through(later));
        assert!(breaker.failed(later));
        assert!(!breaker.lets_through(later + PAUSE - Duration::from_millis(1)));
        assert!(breaker.lets_through(later + PAUSE));
    }

    #[test]
    fn a_trial_of_which_nobody_tells_is_followed_by_another() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert!(breaker.lets_through(now + PAUSE));
        assert!(!breaker.lets_through(now + PAUSE + Duration::from_secs(1)));
        assert!(breaker.lets_through(now + 2 * PAUSE));
    }

    #[test]
    fn a_late_failure_does_not_keep_it_open_longer() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert!(!breaker.failed(now + PAUSE / 2));
        assert!(breaker.lets_through(now + PAUSE));
    }
}

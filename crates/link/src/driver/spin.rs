//! Polling for a moment before sleeping, where that pays.

use std::time::{Duration, Instant};

/// Failures in a row after which polling is given up for a while: the peer shares this core, or is
/// slow, and polling only delays it.
const GIVE_UP: u32 = 4;
/// Sleeps for which it is then given up.
const RECOVER: u32 = 256;
/// Looks between two looks at the clock.
const LOOKS: u32 = 16;

/// How long to poll, learnt from what happened last.
#[derive(Debug)]
pub(crate) struct Spin {
    longest: Duration,
    now: Duration,
    failures: u32,
    resting: u32,
}

impl Spin {
    pub(crate) fn new(longest: Duration) -> Self {
        Self { longest, now: Duration::ZERO, failures: 0, resting: 0 }
    }

    /// Polls; whether `ready` came true.
    pub(crate) fn until(&mut self, ready: impl Fn() -> bool) -> bool {
        if self.now.is_zero() || self.resting > 0 {
            return false;
        }
        let started = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if ready() {
                    self.now = self.longest;
                    self.failures = 0;
                    return true;
                }
                std::hint::spin_loop();
            }
            if started.elapsed() >= self.now {
                break;
            }
        }
        self.now /= 2;
        self.failures += 1;
        if self.failures >= GIVE_UP {
            (self.failures, self.resting) = (0, RECOVER);
        }
        false
    }

    /// Learns from a sleep: one that was shorter than the longest poll would have been polled away.
    pub(crate) fn slept(&mut self, slept: Duration) {
        self.resting = self.resting.saturating_sub(1);
        self.now = if slept < self.longest { self.longest } else { Duration::ZERO };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spin_begins_when_it_would_pay_and_rests_when_it_does_not() {
        let long = Duration::from_micros(20);
        let mut spin = Spin::new(long);
        assert!(!spin.until(|| true), "nothing is known yet");
        spin.slept(Duration::from_micros(5));
        assert!(spin.until(|| true));
        for _ in 0..GIVE_UP {
            spin.slept(Duration::from_micros(5));
            assert!(!spin.until(|| false));
        }
        spin.slept(Duration::from_micros(5));
        assert!(!spin.until(|| true), "it rests");
        for _ in 0..RECOVER {
            spin.slept(Duration::from_micros(5));
        }
        assert!(spin.until(|| true));
        spin.slept(Duration::from_millis(5));
        assert!(!spin.until(|| true), "the peer is slow");
    }

    #[test]
    fn spin_of_zero_never_polls() {
        let mut spin = Spin::new(Duration::ZERO);
        spin.slept(Duration::ZERO);
        assert!(!spin.until(|| true));
    }
}

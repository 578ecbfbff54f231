//! A bound on bells that bring nothing.

use std::time::{Duration, Instant};

/// A token bucket: an honest peer rings for nothing now and then, when a find and its bell cross.
#[derive(Debug)]
pub(crate) struct Storm {
    tokens: f64,
    filled: Instant,
}

impl Storm {
    /// Fruitless bells at once.
    const BURST: f64 = 1000.0;
    /// Fruitless bells a second.
    const RATE: f64 = 10_000.0;
    /// How long bells are not listened to when the bucket is empty.
    pub(crate) const PAUSE: Duration = Duration::from_millis(1);

    pub(crate) fn new(now: Instant) -> Self {
        Self { tokens: Self::BURST, filled: now }
    }

    /// Whether one more is tolerated.
    pub(crate) fn allows(&mut self, now: Instant) -> bool {
        let refill = now.saturating_duration_since(self.filled).as_secs_f64() * Self::RATE;
        self.tokens = (self.tokens + refill).min(Self::BURST);
        self.filled = now;
        let allowed = self.tokens >= 1.0;
        if allowed {
            self.tokens -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storm_is_bounded_and_passes() {
        let start = Instant::now();
        let mut storm = Storm::new(start);
        let allowed = (0..5000).filter(|_| storm.allows(start)).count();
        assert_eq!(allowed, 1000);
        assert!(storm.allows(start + Duration::from_millis(1)));
    }
}

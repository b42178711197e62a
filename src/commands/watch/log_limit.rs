//! How often something may be said that can happen without end. Pure.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// So many lines may be said at once …
pub const AT_ONCE: u32 = 20;
/// … and one more after each of these.
pub const PACE: Duration = Duration::from_secs(30);

/// Lines that may still be said, and how many were not.
#[derive(Debug)]
pub struct RateLimiter {
    left: u32,
    since: Instant,
    unsaid: u64,
}

impl RateLimiter {
    /// Nothing was said yet.
    pub fn new(now: Instant) -> Self {
        Self {
            left: AT_ONCE,
            since: now,
            unsaid: 0,
        }
    }

    /// Whether a line may be said now; then also how many before it were not.
    pub fn allow(&mut self, now: Instant) -> Option<u64> {
        while self.left < AT_ONCE && now.saturating_duration_since(self.since) >= PACE {
            self.left += 1;
            self.since += PACE;
        }
        if self.left == AT_ONCE {
            self.since = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.unsaid))
            }
            None => {
                self.unsaid += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_becomes_a_few_lines_and_a_number() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(start);
        let said = (0..1000).filter(|_| limiter.allow(start).is_some()).count();
        assert_eq!(said, 20);
        assert_eq!(limiter.allow(start + PACE), Some(980));
        assert_eq!(limiter.allow(start + PACE), None);
        // What is said now and then is said in full.
        for hour in 1..100 {
            let now = start + Duration::from_secs(3600) * hour;
            assert!(limiter.allow(now).is_some());
        }
    }
}

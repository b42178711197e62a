//! Rate limit for log lines that could repeat without end. Pure.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// Maximum number of lines in one burst.
pub const BURST: u32 = 20;
/// The time after which one more line may be logged.
pub const INTERVAL: Duration = Duration::from_secs(30);

/// A token bucket that counts the lines it suppresses.
#[derive(Debug)]
pub struct RateLimiter {
    left: u32,
    since: Instant,
    suppressed: u64,
}

impl RateLimiter {
    pub fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            since: now,
            suppressed: 0,
        }
    }

    /// If a line may be logged now: the number of lines suppressed since the last one.
    pub fn allow(&mut self, now: Instant) -> Option<u64> {
        while self.left < BURST && now.saturating_duration_since(self.since) >= INTERVAL {
            self.left += 1;
            self.since += INTERVAL;
        }
        if self.left == BURST {
            self.since = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.suppressed))
            }
            None => {
                self.suppressed += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_is_cut_to_one_burst_and_a_count_of_suppressed_lines() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(start);
        let logged = (0..1000).filter(|_| limiter.allow(start).is_some()).count();
        assert_eq!(logged, 20);
        assert_eq!(limiter.allow(start + INTERVAL), Some(980));
        assert_eq!(limiter.allow(start + INTERVAL), None);
        // Lines that are an hour apart are all logged.
        for hour in 1..100 {
            let now = start + Duration::from_secs(3600) * hour;
            assert!(limiter.allow(now).is_some());
        }
    }
}

//! Rate limiter (token bucket) for wake-ups that any user can cause indefinitely. Pure.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// Burst size: number of wake-ups that are handled without delay.
const BURST: u32 = 20;
/// Interval after which one more wake-up is allowed. A flood of events causes at most twenty wake-ups a second, and a
/// change of the device during the flood is delayed by at most this.
const EVERY: Duration = Duration::from_millis(50);
/// Number of events in one wake-up that cost as much as one more wake-up: reading a full queue
/// (fs.inotify.max_queued_events, 16384) takes some milliseconds.
const EVENTS: u32 = 4096;
/// Longest delay of a wake-up, whatever the cost of the previous ones.
const LONGEST: Duration = Duration::from_millis(300);

/// The remaining wake-ups, and the time since which they are counted.
#[derive(Debug)]
pub struct Pace {
    left: u32,
    since: Instant,
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        let left = BURST;
        Self { left, since: now }
    }

    /// Takes one wake-up. Returns the time until which it must be delayed, or `None` if it can be handled at once.
    pub fn take(&mut self, now: Instant) -> Option<Instant> {
        while self.left < BURST && now.saturating_duration_since(self.since) >= EVERY {
            self.left += 1;
            self.since += EVERY;
        }
        if self.left == BURST {
            self.since = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                None
            }
            None => {
                self.since = (self.since + EVERY).min(now + LONGEST);
                Some(self.since)
            }
        }
    }

    /// Charges the cost of a wake-up that read this many events.
    pub fn charge(&mut self, events: u32) {
        let cost = events / EVENTS;
        self.since += EVERY * cost.saturating_sub(self.left);
        self.left = self.left.saturating_sub(cost);
    }

    /// Restores the full burst.
    pub fn renew(&mut self) {
        self.left = BURST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number of wake-ups, with this many events each, that are handled in ten seconds.
    fn handled_with(events: u32) -> u32 {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut now = start;
        let mut handled = 0;
        while now < start + Duration::from_secs(10) {
            if let Some(next) = pace.take(now) {
                assert!(next > now && next <= now + LONGEST);
                now = next;
            }
            pace.charge(events);
            handled += 1;
        }
        handled
    }

    #[test]
    fn a_flood_causes_at_most_twenty_wake_ups_a_second() {
        assert_eq!(handled_with(1), 20 + 200);
        assert_eq!(handled_with(16_384), 5 + 40);
        assert_eq!(handled_with(u32::MAX), 1 + 34);
    }

    #[test]
    fn occasional_wake_ups_are_not_delayed() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut now = start;
        for _ in 0..1000 {
            assert_eq!(pace.take(now), None);
            now += EVERY;
        }
        // A wake-up that led to a change restores the burst.
        for _ in 0..100 {
            pace.renew();
            for _ in 0..BURST {
                assert_eq!(pace.take(now), None);
            }
        }
        assert!(pace.take(now).is_some());
    }

    #[test]
    fn no_delay_is_longer_than_the_limit_even_if_none_is_waited_for() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..1000 {
            let next = pace.take(now);
            assert!(next.is_none_or(|next| next <= now + LONGEST));
        }
    }
}

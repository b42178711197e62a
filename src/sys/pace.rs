//! How often something may be answered that anybody can cause without end. Pure.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// So many wake-ups are answered at once …
const AT_ONCE: u32 = 20;
/// … and one more after each of these. A flood costs no more than twenty wake-ups a second, and a change
/// of the device that comes with it waits no longer than this.
const EVERY: Duration = Duration::from_millis(50);
/// So many events that come at once cost as much as one wake-up more: to read a full queue
/// (fs.inotify.max_queued_events, 16384) takes some milliseconds.
const EVENTS: u32 = 4096;
/// Nothing waits longer, whatever it had cost.
const LONGEST: Duration = Duration::from_millis(300);

/// How many wake-ups may be answered at once.
#[derive(Debug)]
pub struct Pace {
    left: u32,
    since: Instant,
}

impl Pace {
    /// None was answered yet.
    pub fn new(now: Instant) -> Self {
        let left = AT_ONCE;
        Self { left, since: now }
    }

    /// Takes one, and returns when it may be answered: `None` for at once.
    pub fn take(&mut self, now: Instant) -> Option<Instant> {
        while self.left < AT_ONCE && now.saturating_duration_since(self.since) >= EVERY {
            self.left += 1;
            self.since += EVERY;
        }
        if self.left == AT_ONCE {
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

    /// So many events were read at once.
    pub fn charge(&mut self, events: u32) {
        let cost = events / EVENTS;
        self.since += EVERY * cost.saturating_sub(self.left);
        self.left = self.left.saturating_sub(cost);
    }

    /// As if none was answered yet.
    pub fn renew(&mut self) {
        self.left = AT_ONCE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many wake-ups of so many events each are answered in ten seconds.
    fn answered(events: u32) -> u32 {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut now = start;
        let mut answered = 0;
        while now < start + Duration::from_secs(10) {
            if let Some(next) = pace.take(now) {
                assert!(next > now && next <= now + LONGEST);
                now = next;
            }
            pace.charge(events);
            answered += 1;
        }
        answered
    }

    #[test]
    fn a_flood_is_answered_twenty_times_a_second_or_less() {
        assert_eq!(answered(1), 20 + 200);
        assert_eq!(answered(16_384), 5 + 40);
        assert_eq!(answered(u32::MAX), 1 + 34);
    }

    #[test]
    fn what_comes_now_and_then_is_answered_at_once() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut now = start;
        for _ in 0..1000 {
            assert_eq!(pace.take(now), None);
            now += EVERY;
        }
        // What was needed makes room for more.
        for _ in 0..100 {
            pace.renew();
            for _ in 0..AT_ONCE {
                assert_eq!(pace.take(now), None);
            }
        }
        assert!(pace.take(now).is_some());
    }

    #[test]
    fn a_wait_that_is_cut_short_makes_no_later_one_endless() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..1000 {
            let next = pace.take(now);
            assert!(next.is_none_or(|next| next <= now + LONGEST));
        }
    }
}

//! What to do about another process that undoes every change at once. Pure.
//!
//! Both sides are dated by the device's ctime, so that it does not matter how long this process took
//! to learn of it.
#![forbid(unsafe_code)]

use std::time::Duration;

/// An undo counts if it comes this soon after the change: later ones are events like any other.
pub const SOON: Duration = Duration::from_millis(20);
/// From this many in a row on, each change waits longer than the one before.
pub const PATIENCE: u32 = 20;
/// The longest wait between two changes.
pub const LONGEST: Duration = Duration::from_secs(30);

/// How often changes were undone. Times are since 1970.
#[derive(Debug, Default)]
pub struct Backoff {
    /// When the device was last changed by this process.
    changed: Option<Duration>,
    /// How many changes in a row were undone at once.
    undone: u32,
}

/// What to do about a device that is not as it is wanted.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Repair it now.
    Now,
    /// Repair it after this time: the device has been undone this often in a row.
    After(Duration, u32),
}

impl Backoff {
    /// The device was changed by this process.
    pub fn changed(&mut self, at: Duration) {
        self.changed = Some(at);
    }

    /// The device was found as another process left it at that time. After a wait it is to be repaired
    /// without asking again.
    pub fn found_undone(&mut self, at: Duration) -> Action {
        // Each change is undone only once.
        let since = self.changed.take().and_then(|own| at.checked_sub(own));
        let soon = since.is_some_and(|since| since <= SOON);
        self.undone = if soon { self.undone + 1 } else { 0 };
        let Some(doublings) = self.undone.checked_sub(PATIENCE) else {
            return Action::Now;
        };
        let factor = 1 << doublings.min(16);
        Action::After((SOON * factor).min(LONGEST), self.undone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn war(backoff: &mut Backoff, now: &mut Duration, after: Duration) -> Action {
        backoff.changed(*now);
        *now += after;
        backoff.found_undone(*now)
    }

    #[test]
    fn the_twentieth_undo_in_a_row_and_all_later_ones_wait_longer_and_longer() {
        let (mut backoff, mut now) = (Backoff::default(), Duration::from_secs(1));
        for _ in 1..20 {
            assert_eq!(war(&mut backoff, &mut now, MS), Action::Now);
        }
        for (count, millis) in [(20, 20), (21, 40), (22, 80), (23, 160)] {
            let want = Action::After(MS * millis, count);
            assert_eq!(war(&mut backoff, &mut now, SOON), want);
        }
        for _ in 0..40 {
            war(&mut backoff, &mut now, MS);
        }
        assert_eq!(war(&mut backoff, &mut now, MS), Action::After(LONGEST, 64));
        // One that held is the end of it.
        assert_eq!(war(&mut backoff, &mut now, SOON + MS), Action::Now);
        assert_eq!(war(&mut backoff, &mut now, MS), Action::Now);
    }

    #[test]
    fn what_was_not_changed_here_is_not_undone() {
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            assert_eq!(backoff.found_undone(MS), Action::Now);
        }
        // Nor is what is older than the change.
        for _ in 0..100 {
            backoff.changed(MS * 2);
            assert_eq!(backoff.found_undone(MS), Action::Now);
        }
    }
}

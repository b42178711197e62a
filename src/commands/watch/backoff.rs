//! Backoff for a device that another process changes back right after each repair. Pure.
//!
//! The device's ctime dates both the repair and the change, so it does not matter how late this process
//! reads the event.
#![forbid(unsafe_code)]

use std::time::Duration;

/// A change that follows a repair within this time reverts it; a later one is an event like any other.
pub const SOON: Duration = Duration::from_millis(20);
/// From this many reversals in a row on, each repair waits twice as long as the one before.
pub const PATIENCE: u32 = 20;
/// The longest wait before a repair.
pub const LONGEST: Duration = Duration::from_secs(30);

/// Counts reverted repairs. Times are Unix timestamps.
#[derive(Debug, Default)]
pub struct Backoff {
    /// When this process last changed the device.
    repaired: Option<Duration>,
    /// The number of repairs in a row that were reverted within [`SOON`].
    reversals: u32,
}

/// When to repair a device that differs from its target.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    Now,
    /// After this time, since this many repairs in a row were reverted.
    After(Duration, u32),
}

impl Backoff {
    /// Records that this process changed the device.
    pub fn record_repair(&mut self, at: Duration) {
        self.repaired = Some(at);
    }

    /// Decides when to repair a device that another process changed at that time. Once the wait is over,
    /// the caller repairs it without another call.
    pub fn next_action(&mut self, changed: Duration) -> Action {
        // Each repair can be reverted only once.
        let since = self.repaired.take().and_then(|at| changed.checked_sub(at));
        let soon = since.is_some_and(|since| since <= SOON);
        self.reversals = if soon { self.reversals + 1 } else { 0 };
        let Some(doublings) = self.reversals.checked_sub(PATIENCE) else {
            return Action::Now;
        };
        let factor = 1 << doublings.min(16);
        Action::After((SOON * factor).min(LONGEST), self.reversals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn repair_and_revert(backoff: &mut Backoff, now: &mut Duration, after: Duration) -> Action {
        backoff.record_repair(*now);
        *now += after;
        backoff.next_action(*now)
    }

    #[test]
    fn wait_doubles_from_the_twentieth_reversal_in_a_row() {
        let (mut backoff, mut now) = (Backoff::default(), Duration::from_secs(1));
        for _ in 1..20 {
            assert_eq!(repair_and_revert(&mut backoff, &mut now, MS), Action::Now);
        }
        for (count, millis) in [(20, 20), (21, 40), (22, 80), (23, 160)] {
            let want = Action::After(MS * millis, count);
            assert_eq!(repair_and_revert(&mut backoff, &mut now, SOON), want);
        }
        for _ in 0..40 {
            repair_and_revert(&mut backoff, &mut now, MS);
        }
        let longest = Action::After(LONGEST, 64);
        assert_eq!(repair_and_revert(&mut backoff, &mut now, MS), longest);
        // A repair that holds resets the count.
        let action = repair_and_revert(&mut backoff, &mut now, SOON + MS);
        assert_eq!(action, Action::Now);
        assert_eq!(repair_and_revert(&mut backoff, &mut now, MS), Action::Now);
    }

    #[test]
    fn changes_that_do_not_follow_a_repair_are_not_reversals() {
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            assert_eq!(backoff.next_action(MS), Action::Now);
        }
        // Neither is a change that is older than the repair.
        for _ in 0..100 {
            backoff.record_repair(MS * 2);
            assert_eq!(backoff.next_action(MS), Action::Now);
        }
    }
}

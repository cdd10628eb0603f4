//! A token bucket in virtual time: how fast background work may go.
//!
//! Work is done first and paid afterwards, so that one piece larger than a burst still gets through; the
//! next one then waits until the debt is paid.

use crate::foreground::WHOLE;
use crate::time::{Mono, SECOND};

/// The bucket holds what may be used in so long a time, in microseconds.
const BURST: u64 = SECOND / 4;
/// However small the share, so much may be used, in bytes per second, if the rate is not less.
const LEAST: u64 = 1 << 20;

/// Bytes that may be used.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    /// Bytes per second; 0 for no limit.
    rate: u64,
    /// The part of the rate that may be used now.
    share: u32,
    /// When all that was used will be paid.
    paid: Mono,
}

impl Budget {
    pub(crate) fn new(rate: u64) -> Self {
        Self {
            rate,
            share: WHOLE,
            paid: Mono(0),
        }
    }

    /// From now on that part of the rate may be used, of [`WHOLE`].
    pub(crate) fn set_share(&mut self, share: u32) {
        self.share = share.min(WHOLE);
    }

    /// Uses bytes, more than there are too.
    pub(crate) fn take(&mut self, bytes: u64, now: Mono) {
        if self.rate == 0 {
            return;
        }
        let part = self.rate.saturating_mul(u64::from(self.share)) / u64::from(WHOLE);
        let rate = part.max(self.rate.min(LEAST));
        let cost = bytes.saturating_mul(SECOND) / rate;
        let floor = Mono(now.0.saturating_sub(BURST));
        self.paid = self.paid.max(floor).plus(cost);
    }

    /// Microseconds until more may be used; 0 for now.
    pub(crate) fn wait(&self, now: Mono) -> u64 {
        self.paid.since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_time_no_more_is_used_than_the_rate_allows() {
        let mut budget = Budget::new(1_000);
        let (mut now, mut used) = (Mono(10 * SECOND), 0);
        while now < Mono(20 * SECOND) {
            if budget.wait(now) == 0 {
                budget.take(300, now);
                used += 300;
            }
            now = now.plus(1_000);
        }
        assert!((9_900..=10_600).contains(&used), "{used}");
    }

    /// How long what a rate allows in a second takes with a share of it.
    fn cost_of_a_second(rate: u64, share: u32) -> u64 {
        let mut budget = Budget::new(rate);
        budget.set_share(share);
        budget.take(rate, Mono(10 * SECOND));
        budget.wait(Mono(10 * SECOND)) + BURST
    }

    #[test]
    fn half_of_the_share_makes_twice_the_wait() {
        assert_eq!(cost_of_a_second(8 * LEAST, WHOLE), SECOND);
        assert_eq!(cost_of_a_second(8 * LEAST, WHOLE / 2), 2 * SECOND);
    }

    #[test]
    fn a_rate_that_is_low_already_is_not_made_lower() {
        assert_eq!(cost_of_a_second(8 * LEAST, WHOLE / 32), 8 * SECOND);
        assert_eq!(cost_of_a_second(1_000, WHOLE / 32), SECOND);
    }

    #[test]
    fn a_rate_of_nothing_is_no_limit() {
        let mut budget = Budget::new(0);
        budget.take(u64::MAX, Mono(0));
        assert_eq!(budget.wait(Mono(0)), 0);
    }
}

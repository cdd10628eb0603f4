//! I10: the books balance. I13: what is bounded keeps its bound.

use super::{Invariant, Violation};

/// Hints of one node over all of its lives.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hints {
    /// Removed from disk while the target had the record.
    pub handed_over: u64,
    /// Removed while it had not.
    pub given_up: u64,
    /// Reported as delivered.
    pub delivered: u64,
    /// Reported as dropped from disk.
    pub dropped: u64,
    /// Reported as dropped before they were stored.
    pub refused: u64,
}

impl Hints {
    /// At rest `stored` hints are on disk, and the node says that `told` wait. Where lives have ended
    /// without a warning, what was removed before it could be told is in nobody's books.
    ///
    /// # Errors
    /// When something was counted that did not happen, or happened and was not counted.
    pub fn balance(&self, stored: u64, told: u64, lives_ended: bool) -> Result<(), Violation> {
        let removed = self.handed_over + self.given_up;
        let told_removed = self.delivered + self.dropped;
        let wrong = told != stored
            || told_removed > removed
            || (!lives_ended && told_removed != removed)
            || (!lives_ended && self.given_up > self.dropped);
        if !wrong {
            return Ok(());
        }
        let what = format!("{stored} hints on disk, {told} in the books, {self:?}");
        Err(Violation::new(Invariant::Books, what))
    }
}

/// So many requests were handed to shards, of which so many were reported as over, and so many were lost
/// with their node.
///
/// # Errors
/// When some are missing, or were counted twice.
pub fn requests(asked: u64, reported: u64, lost: u64) -> Result<(), Violation> {
    if reported <= asked && asked <= reported + lost {
        return Ok(());
    }
    let what =
        format!("{asked} requests, {reported} reported as over, {lost} lost with their nodes");
    Err(Violation::new(Invariant::Books, what))
}

/// Something holds `now`, and may hold `most`.
///
/// # Errors
/// When it holds more.
pub fn bound(what: &str, now: u64, most: u64) -> Result<(), Violation> {
    if now <= most {
        return Ok(());
    }
    let what = format!("{what}: {now}, and the bound is {most}");
    Err(Violation::new(Invariant::Bounded, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_that_do_not_balance_are_found() {
        let books = Hints {
            handed_over: 3,
            given_up: 1,
            delivered: 3,
            dropped: 1,
            refused: 0,
        };
        assert!(books.balance(2, 2, false).is_ok());
        assert!(books.balance(2, 1, false).is_err(), "one is not told of");
        let silent = Hints {
            dropped: 0,
            ..books
        };
        assert!(silent.balance(0, 0, false).is_err(), "dropped silently");
        assert!(silent.balance(0, 0, true).is_ok());
        let invented = Hints {
            delivered: 9,
            ..books
        };
        assert!(invented.balance(0, 0, true).is_err());
    }

    #[test]
    fn requests_that_nobody_reports_are_found() {
        assert!(requests(5, 5, 0).is_ok());
        assert!(requests(5, 4, 1).is_ok());
        assert!(requests(5, 4, 0).is_err());
        assert!(requests(5, 6, 0).is_err());
    }

    #[test]
    fn what_grows_beyond_its_bound_is_found() {
        assert!(bound("x", 3, 3).is_ok());
        assert!(bound("x", 4, 3).is_err());
    }
}

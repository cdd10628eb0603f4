//! A bound on warnings that may come by the thousand: so many a second are said, the rest is counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// Warnings of one kind. Threads may share it; then a few more may be said in the second that begins.
#[derive(Debug)]
pub(crate) struct Quiet {
    a_second: u64,
    second: AtomicU64,
    said: AtomicU64,
    left_out: AtomicU64,
}

impl Quiet {
    /// At most so many are said in a second.
    pub(crate) fn of(a_second: u64) -> Self {
        Self {
            a_second,
            second: AtomicU64::new(0),
            said: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
        }
    }

    /// `Some(n)`: say it, and that `n` were left out before; `None`: say nothing. `second` is the present one,
    /// counted from any moment.
    pub(crate) fn admits(&self, second: u64) -> Option<u64> {
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.said.store(0, Ordering::Relaxed);
        }
        if self.said.fetch_add(1, Ordering::Relaxed) < self.a_second {
            return Some(self.left_out.swap(0, Ordering::Relaxed));
        }
        self.left_out.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_warnings_in_a_second_are_said_twice_and_the_rest_is_counted() {
        let quiet = Quiet::of(2);
        let said = |second| {
            (0..1000)
                .filter_map(|_| quiet.admits(second))
                .collect::<Vec<_>>()
        };
        assert_eq!(said(7), [0, 0]);
        assert_eq!(said(8), [998, 0], "the next says how many there were");
        assert_eq!(quiet.admits(20), Some(998));
    }
}

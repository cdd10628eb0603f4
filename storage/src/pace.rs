//! Whether a read that the block cache cannot answer is made on the caller's thread.
//!
//! Most of what the block cache lacks the system still has in memory, and gives it in microseconds: less than
//! it costs to hand a read to another thread and its answer back. Only the attempt shows where a block is.
//! So the attempt is made, and the kernel tells whether the thread had to wait: it counts the times that a
//! thread gave up its processor (`getrusage(2)`, `ru_nvcsw`); being pushed off it by others does not count.
//! A read that waited keeps further ones off the thread for [`REST`] times as long.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

/// With the disk always slow, a thread waits for it in one part of the time of so many (and one).
const REST: u64 = 50;
/// Longest time without an attempt, in microseconds: what is read meanwhile may have come into memory.
const REST_MAX: u64 = 1_000_000;

/// Shared by the threads that read from one store.
#[derive(Debug)]
pub(crate) struct Pace {
    start: Instant,
    /// Microseconds after `start`.
    rests_until: AtomicU64,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            rests_until: AtomicU64::new(0),
        }
    }

    /// Makes the read here, or not at all while the disk makes its readers wait.
    pub(crate) fn read<T>(&self, read: impl FnOnce() -> T) -> Option<T> {
        let begin = self.now();
        if begin < self.rests_until.load(Ordering::Relaxed) {
            return None;
        }
        let before = waits();
        let result = read();
        let after = waits();
        // Without the count every read is taken for one that waited.
        if before.is_none() || before != after {
            let end = self.now();
            let rest = (end - begin).saturating_mul(REST).min(REST_MAX);
            self.rests_until.fetch_max(end + rest, Ordering::Relaxed);
        }
        Some(result)
    }

    fn now(&self) -> u64 {
        let since: Duration = self.start.elapsed();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }
}

/// How often this thread has waited so far.
fn waits() -> Option<i64> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).ok()?;
    Some(usage.voluntary_context_switches())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_waited_keeps_others_off_for_a_multiple_of_its_time() {
        let pace = Pace::new();
        let wait = Duration::from_millis(2);
        assert_eq!(pace.read(|| std::thread::sleep(wait)), Some(()));
        let begin = Instant::now();
        assert_eq!(pace.read(|| ()), None);
        while pace.read(|| ()).is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // A part of the rest may have passed before `begin` was read.
        assert!(begin.elapsed() >= wait * 25, "{:?}", begin.elapsed());
    }

    #[test]
    fn a_read_that_only_took_long_keeps_nobody_off() {
        let pace = Pace::new();
        // Others may push the thread off its processor meanwhile: that is no wait.
        let spin = || {
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_millis(20) {
                std::hint::spin_loop();
            }
        };
        assert_eq!(pace.read(spin), Some(()));
        assert_eq!(pace.read(|| ()), Some(()));
    }

    #[test]
    fn no_wait_keeps_others_off_for_long() {
        let pace = Pace::new();
        pace.read(|| std::thread::sleep(Duration::from_millis(40)));
        let until = pace.rests_until.load(Ordering::Relaxed);
        assert!(until <= pace.now() + REST_MAX);
    }
}

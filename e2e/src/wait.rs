//! Waiting for a condition with a deadline: the only way in which these tests wait.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

/// Pause between two looks; short against every deadline used, long enough to leave the CPU alone.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A condition did not come true in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("waited {waited:?} for {what}; last seen: {last}")]
pub struct TimedOut {
    /// What was waited for.
    pub what: String,
    /// For how long.
    pub waited: Duration,
    /// What the last look showed instead.
    pub last: String,
}

/// Looks until `look` answers `Ok`. Its error says what it saw instead.
///
/// # Errors
/// When the deadline passes; carries the last thing seen.
pub fn try_until<T, E: fmt::Display>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<T, E>,
) -> Result<T, TimedOut> {
    let began = Instant::now();
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(seen) if began.elapsed() >= deadline => {
                let (what, last) = (what.to_owned(), seen.to_string());
                return Err(TimedOut {
                    what,
                    waited: began.elapsed(),
                    last,
                });
            }
            Err(_) => thread::sleep(LOOK_AGAIN),
        }
    }
}

/// Like [`try_until`], but a deadline that passes fails the test.
#[track_caller]
pub fn until<T, E: fmt::Display>(
    what: &str,
    deadline: Duration,
    look: impl FnMut() -> Result<T, E>,
) -> T {
    match try_until(what, deadline, look) {
        Ok(found) => found,
        Err(timed_out) => panic!("{timed_out}"),
    }
}

//! When operations are due in an open loop.
//!
//! The runtime's own timer counts in milliseconds, which is as long as an operation takes; a timer of the
//! kernel wakes within some ten microseconds.

use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use rand::Rng as _;
use rand::rngs::SmallRng;
use serde::Serialize;
use tokio::net::unix::pipe;

/// How operations follow each other in an open loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// At equal distances.
    Constant,
    /// Independently of each other, as the requests of many users.
    Poisson,
}

/// What decides when the next operation begins.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "loop")]
pub enum Pace {
    /// The end of the one before, on each connection: as many operations as the target can do.
    Closed,
    /// The clock, whatever the target does; latency counts from the time at which the operation was due, so
    /// that a target that falls behind shows its queue (no coordinated omission).
    Open {
        /// Operations in a second, all connections together.
        per_second: f64,
        /// How they follow each other.
        arrivals: Arrivals,
    },
}

/// The times at which one worker's operations are due.
#[derive(Debug)]
pub(crate) struct Schedule {
    next: Instant,
    end: Instant,
    /// Mean distance in seconds.
    distance: f64,
    arrivals: Arrivals,
    rng: SmallRng,
}

impl Schedule {
    /// Between two times, so many in a second; `phase` from 0 to 1 shifts it by that part of a distance.
    pub(crate) fn new(
        (begin, end): (Instant, Instant),
        per_second: f64,
        (arrivals, phase): (Arrivals, f64),
        rng: SmallRng,
    ) -> Self {
        let distance = 1.0 / per_second;
        Self {
            next: begin + Duration::from_secs_f64(distance * phase),
            end,
            distance,
            arrivals,
            rng,
        }
    }
}

impl Iterator for Schedule {
    type Item = Instant;

    fn next(&mut self) -> Option<Instant> {
        let due = self.next;
        let distance = match self.arrivals {
            Arrivals::Constant => self.distance,
            // 1 - u is never 0.
            Arrivals::Poisson => -self.distance * (1.0 - self.rng.random::<f64>()).ln(),
        };
        self.next += Duration::from_secs_f64(distance);
        (due < self.end).then_some(due)
    }
}

/// A timer of the kernel.
#[derive(Debug)]
pub(crate) struct Ticker {
    timer: TimerFd,
    /// The same timer, as the runtime waits for it: what expires is read from it as from a pipe.
    rings: pipe::Receiver,
}

impl Ticker {
    /// Needs a running runtime.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let same = timer.as_fd().try_clone_to_owned()?;
        let rings = pipe::Receiver::from_owned_fd_unchecked(same)?;
        Ok(Self { timer, rings })
    }

    /// Waits until then.
    pub(crate) async fn until(&self, due: Instant) -> io::Result<()> {
        loop {
            let wait = due.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return Ok(());
            }
            let expiration = Expiration::OneShot(wait.into());
            self.timer.set(expiration, TimerSetTimeFlags::empty())?;
            self.rings.readable().await?;
            // How often it has expired; when it has not, the loop waits again.
            let mut times = [0; 8];
            match self.rings.try_read(&mut times) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    fn count(arrivals: Arrivals) -> usize {
        let begin = Instant::now();
        let span = (begin, begin + Duration::from_secs(10));
        Schedule::new(span, 1_000.0, (arrivals, 0.5), SmallRng::seed_from_u64(5)).count()
    }

    #[test]
    fn as_many_operations_are_due_as_the_rate_says() {
        assert_eq!(count(Arrivals::Constant), 10_000);
        let poisson = count(Arrivals::Poisson);
        assert!((9_500..10_500).contains(&poisson), "{poisson}");
    }

    #[tokio::test]
    async fn the_ticker_never_rings_early() {
        let ticker = Ticker::new().expect("a timer");
        for micros in [0, 1, 50, 300, 2_000] {
            let due = Instant::now() + Duration::from_micros(micros);
            ticker.until(due).await.expect("rung");
            assert!(Instant::now() >= due, "{micros}");
        }
    }
}

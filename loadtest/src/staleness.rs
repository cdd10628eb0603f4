//! Measured staleness: the probability that a read misses the last acknowledged write, by the time since
//! that write was acknowledged.
//!
//! Source: Bailis et al., "Probabilistically bounded staleness for practical partial quorums" (VLDB 2012),
//! where it is called t-visibility. One probe: write a numbered value; at a chosen time after its
//! acknowledgement read it once, through another coordinator where there is one, and look at the number.
//! A write is read once only, because a read repairs what it finds, and would flatter the next.
//!
//! Invariant: each key has one writer, which waits for each probe before it writes again; so the last
//! acknowledged write is known without a doubt.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use serde::Serialize;

use crate::drive::{CONNECTIONS_MAX, Progress};
use crate::error::Error;
use crate::pace::Ticker;
use crate::target::{Connection, Connector, Done, Request, Target};

/// When probes read, in microseconds after the acknowledgement. The first moments are where replicas
/// differ, so they are looked at more closely; the ladder goes up to half a second.
const DELAYS_US: [u64; 20] = [
    0, 0, 0, 0, 0, 0, 50, 100, 150, 200, 300, 400, 500, 700, 1_000, 1_500, 2_000, 3_000, 5_000,
    10_000,
];
/// Of so many probes, one reads late: after one of the long delays.
const LONG_EVERY: u64 = 200;
const LONG_DELAYS_US: [u64; 4] = [20_000, 50_000, 100_000, 500_000];
/// Upper ends of the bins of the curve, in microseconds, by the time that really went by.
const BINS_US: [u64; 16] = [
    50, 100, 200, 300, 500, 700, 1_000, 1_500, 2_000, 3_000, 5_000, 10_000, 20_000, 50_000,
    100_000, 1_000_000,
];
/// Acknowledgements of one key that are remembered, to tell how old an old value is.
const REMEMBERED: usize = 64;
/// Bytes of a value that carry its number.
const STAMP_LEN: usize = 16;

/// How staleness is measured.
#[derive(Clone, Debug)]
pub struct StalenessPlan {
    /// Probes to make.
    pub probes: u64,
    /// End after this time, however many were made.
    pub duration: Duration,
    /// Keys that are probed at a time, each with a connection to write and one to read.
    pub lanes: usize,
    /// Threads.
    pub workers: usize,
    /// Length of values in bytes, 16 at least.
    pub value_len: usize,
    /// Names the keys, so that two measurements do not share any.
    pub seed: u64,
}

/// A part of the curve.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Bin {
    /// Time since the acknowledgement when the read was sent: up to this, in microseconds.
    pub up_to_us: u64,
    /// Mean of those times.
    pub mean_us: f64,
    /// Reads that were answered.
    pub probes: u64,
    /// Of those, reads that missed the write.
    pub misses: u64,
    /// misses / probes.
    pub probability: f64,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Staleness {
    /// Reads that were answered.
    pub probes: u64,
    /// Of those, reads that missed the last acknowledged write.
    pub misses: u64,
    /// misses / probes.
    pub probability: f64,
    /// The probability is below this, at 95 % confidence; with no misses 3 / probes.
    pub probability_at_most: f64,
    /// Writes and reads that failed; they say nothing of staleness.
    pub failed: u64,
    /// The oldest value that was seen had been overwritten, acknowledged, for this long.
    pub oldest_value_ms: f64,
    /// The oldest value that was seen was this many acknowledged writes behind.
    pub versions_behind_max: u64,
    /// By the time since the acknowledgement.
    pub curve: Vec<Bin>,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    bins: Vec<(u64, u64, u64)>,
    failed: u64,
    oldest: Duration,
    behind: u64,
}

impl Seen {
    fn new() -> Self {
        Self {
            bins: vec![(0, 0, 0); BINS_US.len()],
            ..Self::default()
        }
    }

    fn add(&mut self, since: Duration, miss: Option<(u64, Duration)>) {
        let micros = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        let at = BINS_US
            .partition_point(|end| *end < micros)
            .min(BINS_US.len() - 1);
        let (probes, misses, sum) = &mut self.bins[at];
        *probes += 1;
        *sum = sum.saturating_add(micros);
        if let Some((behind, age)) = miss {
            *misses += 1;
            self.behind = self.behind.max(behind);
            self.oldest = self.oldest.max(age);
        }
    }

    fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.bins.iter_mut().zip(&other.bins) {
            mine.0 += theirs.0;
            mine.1 += theirs.1;
            mine.2 = mine.2.saturating_add(theirs.2);
        }
        self.failed += other.failed;
        self.oldest = self.oldest.max(other.oldest);
        self.behind = self.behind.max(other.behind);
    }

    fn result(&self) -> Staleness {
        let part = |some: u64, of: u64| {
            if of == 0 {
                0.0
            } else {
                some as f64 / of as f64
            }
        };
        let bins = self.bins.iter().zip(BINS_US);
        let curve: Vec<Bin> = bins
            .filter(|((probes, ..), _)| *probes > 0)
            .map(|(&(probes, misses, sum), up_to_us)| Bin {
                up_to_us,
                mean_us: part(sum, probes),
                probes,
                misses,
                probability: part(misses, probes),
            })
            .collect();
        let probes = curve.iter().map(|bin| bin.probes).sum();
        let misses = curve.iter().map(|bin| bin.misses).sum();
        Staleness {
            probes,
            misses,
            probability: part(misses, probes),
            probability_at_most: at_most(misses, probes),
            failed: self.failed,
            oldest_value_ms: self.oldest.as_secs_f64() * 1e3,
            versions_behind_max: self.behind,
            curve,
        }
    }
}

/// Upper end of the 95 % confidence interval: the rule of three for none, Wilson's score otherwise.
fn at_most(misses: u64, probes: u64) -> f64 {
    if probes == 0 {
        return 1.0;
    }
    let (n, z) = (probes as f64, 1.645_f64);
    if misses == 0 {
        return (3.0 / n).min(1.0);
    }
    let p = misses as f64 / n;
    let centre = p + z * z / (2.0 * n);
    let spread = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    ((centre + spread) / (1.0 + z * z / n)).min(1.0)
}

/// Measures. Blocks until the end.
///
/// # Errors
/// When it cannot run; failed writes and reads are counted instead.
pub fn measure(
    plan: &StalenessPlan,
    target: &Target,
    progress: &Progress,
) -> Result<Staleness, Error> {
    if plan.lanes == 0
        || plan.lanes * 2 > CONNECTIONS_MAX
        || plan.workers == 0
        || plan.value_len < STAMP_LEN
    {
        return Err(Error::Unfit(
            "staleness needs 1 to 2048 keys, a worker, and values of 16 bytes at least",
        ));
    }
    let end = Instant::now() + plan.duration;
    let claimed = AtomicU64::new(0);
    let workers = plan.workers.min(plan.lanes);
    let seen = thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|number| {
                let probing = Probing {
                    plan,
                    target,
                    progress,
                    claimed: &claimed,
                    end,
                };
                thread::Builder::new()
                    .name(format!("probe-{number}"))
                    .spawn_scoped(scope, move || probing.work(number, workers))
                    .map_err(Error::Worker)
            })
            .collect();
        let mut whole = Seen::new();
        for thread in threads {
            whole.merge(&thread?.join().unwrap_or(Err(Error::Fault))?);
        }
        Ok::<_, Error>(whole)
    })?;
    Ok(seen.result())
}

/// What a worker needs.
#[derive(Clone, Copy)]
struct Probing<'a> {
    plan: &'a StalenessPlan,
    target: &'a Target,
    progress: &'a Progress,
    claimed: &'a AtomicU64,
    end: Instant,
}

impl Probing<'_> {
    fn work(self, number: usize, workers: usize) -> Result<Seen, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::Worker)?;
        let connector = Connector::new(self.target)?;
        let seen = RefCell::new(Seen::new());
        let fault = Cell::new(None);
        runtime.block_on(async {
            let (connector, seen) = (&connector, &seen);
            let lanes = (number..self.plan.lanes).step_by(workers);
            let mut lanes: FuturesUnordered<_> = lanes
                .map(|lane| async move {
                    let lane = Lane {
                        key: format!("staleness-{}-{lane}", self.plan.seed),
                        // Where there are several coordinators, another one reads than the one that wrote.
                        writer: connector.connection(lane),
                        reader: connector.connection(lane + 1),
                        ticker: Ticker::new().map_err(Error::Worker)?,
                        written: 0,
                        acknowledged: VecDeque::with_capacity(REMEMBERED),
                    };
                    self.probe(lane, seen).await
                })
                .collect();
            while let Some(done) = lanes.next().await {
                if let Err(error) = done {
                    fault.set(Some(error));
                    self.progress.stop();
                }
            }
        });
        match fault.into_inner() {
            Some(error) => Err(error),
            None => Ok(seen.into_inner()),
        }
    }

    async fn probe(self, mut lane: Lane, seen: &RefCell<Seen>) -> Result<(), Error> {
        while !self.progress.is_stopped() && Instant::now() < self.end {
            let number = self.claimed.fetch_add(1, Ordering::Relaxed);
            if number >= self.plan.probes {
                break;
            }
            self.progress.step();
            let Some(acknowledged) = lane.write(self.plan.value_len).await else {
                seen.borrow_mut().failed += 1;
                continue;
            };
            let due = acknowledged + delay(number);
            lane.ticker.until(due).await.map_err(Error::Worker)?;
            let sent = Instant::now();
            match lane.read(sent).await {
                Some(miss) => seen.borrow_mut().add(sent - acknowledged, miss),
                None => seen.borrow_mut().failed += 1,
            }
        }
        Ok(())
    }
}

fn delay(number: u64) -> Duration {
    let at = |delays: &[u64], number: u64| delays[(number % delays.len() as u64) as usize];
    let micros = if number % LONG_EVERY == LONG_EVERY - 1 {
        at(&LONG_DELAYS_US, number / LONG_EVERY)
    } else {
        at(&DELAYS_US, number)
    };
    Duration::from_micros(micros)
}

/// One key and who writes and reads it.
struct Lane {
    key: String,
    writer: Connection,
    reader: Connection,
    ticker: Ticker,
    /// Number of the last write, acknowledged or not.
    written: u64,
    /// The last acknowledged writes: number and time.
    acknowledged: VecDeque<(u64, Instant)>,
}

impl Lane {
    /// Writes the next value; answers when it was acknowledged.
    async fn write(&mut self, len: usize) -> Option<Instant> {
        self.written += 1;
        let mut value = BytesMut::with_capacity(len);
        value.put_u64(self.written);
        value.resize(len, b'.');
        let value: Bytes = value.freeze();
        let request = Request::Put {
            key: &self.key,
            value: &value,
        };
        self.writer.perform(request).await.ok()?;
        let now = Instant::now();
        if self.acknowledged.len() == REMEMBERED {
            self.acknowledged.pop_front();
        }
        self.acknowledged.push_back((self.written, now));
        Some(now)
    }

    /// Reads; answers nothing when that failed, otherwise how far behind what was read is, if it is.
    async fn read(&mut self, sent: Instant) -> Option<Option<(u64, Duration)>> {
        let number = match self.reader.perform(Request::Get { key: &self.key }).await {
            Ok(Done::Value(bytes)) => bytes
                .first_chunk::<8>()
                .map(|bytes| u64::from_be_bytes(*bytes))?,
            Ok(Done::Missing) => 0,
            Ok(Done::Written) | Err(_) => return None,
        };
        let newer = self
            .acknowledged
            .iter()
            .filter(|(written, _)| *written > number);
        let behind = newer.clone().count() as u64;
        // It was overwritten when the first write after it was acknowledged.
        Some(
            newer
                .map(|(_, at)| *at)
                .next()
                .map(|overwritten| (behind, sent - overwritten)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_fall_into_the_bin_of_their_time() {
        let mut seen = Seen::new();
        seen.add(
            Duration::from_micros(10),
            Some((2, Duration::from_millis(3))),
        );
        seen.add(Duration::from_micros(50), None);
        seen.add(Duration::from_micros(51), None);
        seen.add(Duration::from_secs(9), None);
        let result = seen.result();
        let bins: Vec<_> = result
            .curve
            .iter()
            .map(|bin| (bin.up_to_us, bin.probes, bin.misses))
            .collect();
        assert_eq!(bins, [(50, 2, 1), (100, 1, 0), (1_000_000, 1, 0)]);
        assert_eq!(
            (result.probes, result.misses, result.versions_behind_max),
            (4, 1, 2)
        );
        assert!((result.oldest_value_ms - 3.0).abs() < 1e-9);
    }

    #[test]
    fn no_misses_are_no_proof_of_none() {
        assert!((at_most(0, 1_000_000) - 3e-6).abs() < 1e-12);
        assert!(at_most(0, 0) >= 1.0);
        let some = at_most(10, 1_000);
        assert!(some > 0.01 && some < 0.02, "{some}");
    }

    #[test]
    fn all_delays_are_used() {
        let used: std::collections::BTreeSet<_> = (0..1_000).map(delay).collect();
        for micros in DELAYS_US.iter().chain(&LONG_DELAYS_US) {
            assert!(used.contains(&Duration::from_micros(*micros)), "{micros}");
        }
    }
}

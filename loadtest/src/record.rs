//! What is written down while a load runs: latencies by kind, and how it went from moment to moment.
//!
//! Invariant: nothing grows with the number of operations; the series grow with time, which is bounded.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::target::Failure;
use crate::workload::{KINDS, Kind};

/// Longest latency that is told apart, in nanoseconds: ten minutes. A longer one counts as this.
const LATENCY_MAX: u64 = 600_000_000_000;
/// Precision of totals and of the series, in digits.
const DIGITS: u8 = 3;
const SERIES_DIGITS: u8 = 2;
/// Length of a moment: availability is judged by these.
pub(crate) const MOMENT: Duration = Duration::from_millis(100);
/// Points of the series of latencies; of a longer run, a point stands for more than a second.
const POINTS_MAX: u64 = 900;

/// Operations of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// Latencies of what was answered, in nanoseconds.
    pub(crate) latency: Histogram<u64>,
    /// Reads of a record that is not there; they are answered too.
    pub(crate) missing: u64,
    pub(crate) errors: BTreeMap<Failure, u64>,
}

/// One point of the series.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) latency: Histogram<u32>,
    pub(crate) errors: u64,
}

/// A moment, as far as availability is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) answered: u32,
    pub(crate) failed: u32,
}

/// What one worker, or all of them together, have seen.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) kinds: Vec<Tally>,
    pub(crate) points: Vec<Point>,
    /// Length of a point.
    pub(crate) point: Duration,
    pub(crate) moments: Vec<Moment>,
    /// How much later than intended operations were sent (open loop), in nanoseconds.
    pub(crate) lateness: Histogram<u64>,
    begin: Instant,
    moments_max: usize,
}

impl Record {
    /// Of a measurement that begins then and lasts that long.
    pub(crate) fn new(begin: Instant, length: Duration) -> Self {
        let point = Duration::from_secs(length.as_secs().div_ceil(POINTS_MAX).max(1));
        let tally = Tally {
            latency: histogram(DIGITS),
            missing: 0,
            errors: BTreeMap::new(),
        };
        Self {
            kinds: vec![tally; KINDS.len()],
            points: Vec::new(),
            point,
            moments: Vec::new(),
            lateness: histogram(DIGITS),
            begin,
            // What is answered after the end, within the deadline, still has its moment.
            moments_max: (length + Duration::from_secs(600)).as_millis() as usize
                / MOMENT.as_millis() as usize,
        }
    }

    /// An operation was answered (`Ok(missing)`) or failed. What was intended before the beginning, while
    /// the target warmed up, does not count.
    pub(crate) fn add(
        &mut self,
        kind: Kind,
        intended: Instant,
        ended: Instant,
        result: Result<bool, Failure>,
    ) {
        if intended < self.begin {
            return;
        }
        let nanos = saturated(ended.saturating_duration_since(intended));
        let since = ended.saturating_duration_since(self.begin);
        let at = (since.as_nanos() / self.point.as_nanos()) as usize;
        let at = at.min(self.moments_max);
        while self.points.len() <= at {
            self.points.push(Point {
                latency: histogram(SERIES_DIGITS),
                errors: 0,
            });
        }
        let moment = ((since.as_nanos() / MOMENT.as_nanos()) as usize).min(self.moments_max);
        if self.moments.len() <= moment {
            self.moments.resize(moment + 1, Moment::default());
        }
        let tally = &mut self.kinds[kind as usize];
        match result {
            Ok(missing) => {
                tally.latency.saturating_record(nanos);
                tally.missing += u64::from(missing);
                self.points[at].latency.saturating_record(nanos);
                self.moments[moment].answered += 1;
            }
            Err(failure) => {
                *tally.errors.entry(failure).or_default() += 1;
                self.points[at].errors += 1;
                self.moments[moment].failed += 1;
            }
        }
    }

    /// An operation was sent that much after its time.
    pub(crate) fn sent_late(&mut self, intended: Instant, by: Duration) {
        if intended >= self.begin {
            self.lateness.saturating_record(saturated(by));
        }
    }

    /// Takes in what another worker saw of the same measurement.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.kinds.iter_mut().zip(&other.kinds) {
            add(&mut mine.latency, &theirs.latency);
            mine.missing += theirs.missing;
            for (failure, count) in &theirs.errors {
                *mine.errors.entry(*failure).or_default() += count;
            }
        }
        add(&mut self.lateness, &other.lateness);
        for (at, theirs) in other.points.iter().enumerate() {
            match self.points.get_mut(at) {
                Some(mine) => {
                    mine.errors += theirs.errors;
                    add(&mut mine.latency, &theirs.latency);
                }
                None => self.points.push(theirs.clone()),
            }
        }
        if self.moments.len() < other.moments.len() {
            self.moments.resize(other.moments.len(), Moment::default());
        }
        for (mine, theirs) in self.moments.iter_mut().zip(&other.moments) {
            mine.answered += theirs.answered;
            mine.failed += theirs.failed;
        }
    }
}

fn saturated(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

pub(crate) fn histogram<C: hdrhistogram::Counter>(digits: u8) -> Histogram<C> {
    // The bounds are constants, and sound.
    Histogram::new_with_bounds(1, LATENCY_MAX, digits)
        .unwrap_or_else(|error| panic!("constant bounds: {error}"))
}

fn add<C: hdrhistogram::Counter>(mine: &mut Histogram<C>, theirs: &Histogram<C>) {
    // All are of the same bounds.
    let added = mine.add(theirs);
    assert!(
        added.is_ok(),
        "histograms of one shape do not add up: {added:?}"
    );
}

//! What is asked for: kinds of operations and their shares, which keys, how large values are.
//!
//! Source: the core workloads of YCSB (Cooper et al., SoCC 2010; `workloads/workload[a-f]`), with records
//! of one field of 1 KiB.

mod size;
mod zipf;

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use serde::Serialize;

pub use size::{VALUE_BYTES_MAX, ValueSize};
use zipf::{Scrambled, Zipfian};

use crate::error::Error;

/// Records in one scan: uniform from 1 to this, as YCSB's workload E has it.
pub const SCAN_MAX: u64 = 100;
/// Bytes of random data that values are cut from, besides the length of the largest value.
const POOL_BYTES: usize = 1 << 20;

/// Kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Read a record (YCSB: read).
    Get,
    /// Write a record that is there (YCSB: update).
    Put,
    /// Write a record that was not there.
    Insert,
    /// Read some records that follow each other.
    Scan,
    /// Read a record and write it: one operation, timed as one.
    Rmw,
    /// Delete a record.
    Delete,
}

/// All kinds, in the order of [`Kind`]'s numbers.
pub const KINDS: [Kind; 6] = [
    Kind::Get,
    Kind::Put,
    Kind::Insert,
    Kind::Scan,
    Kind::Rmw,
    Kind::Delete,
];

impl Kind {
    /// Its name in results and in mixes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Insert => "insert",
            Self::Scan => "scan",
            Self::Rmw => "rmw",
            Self::Delete => "delete",
        }
    }
}

/// Shares of the kinds, as weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix([u32; KINDS.len()]);

impl Mix {
    /// Of these weights; their sum must fit.
    fn of(weights: &[(Kind, u32)]) -> Self {
        let mut mix = Self([0; KINDS.len()]);
        for (kind, weight) in weights {
            mix.0[*kind as usize] += weight;
        }
        mix
    }

    fn draw(&self, rng: &mut SmallRng) -> Kind {
        let mut at = rng.random_range(0..self.0.iter().sum::<u32>());
        for (kind, weight) in KINDS.into_iter().zip(self.0) {
            if at < weight {
                return kind;
            }
            at -= weight;
        }
        Kind::Get
    }

    /// Whether any operation is of this kind.
    #[must_use]
    pub fn has(&self, kind: Kind) -> bool {
        self.0[kind as usize] > 0
    }
}

impl FromStr for Mix {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::BadMix {
            given: text.chars().take(100).collect(),
        };
        let mut weights = Vec::new();
        for part in text.split(',') {
            let (name, weight) = part.split_once('=').ok_or_else(bad)?;
            let kind = KINDS.into_iter().find(|kind| kind.name() == name.trim());
            let weight = weight.trim().parse::<u32>().map_err(|_| bad())?;
            if weight > 1_000_000 || weights.len() == KINDS.len() {
                return Err(bad());
            }
            weights.push((kind.ok_or_else(bad)?, weight));
        }
        let mix = Self::of(&weights);
        if mix.0.iter().all(|weight| *weight == 0) {
            return Err(bad());
        }
        Ok(mix)
    }
}

impl std::fmt::Display for Mix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = KINDS
            .into_iter()
            .zip(self.0)
            .filter(|(_, weight)| *weight > 0);
        let parts: Vec<String> = parts
            .map(|(kind, weight)| format!("{}={weight}", kind.name()))
            .collect();
        f.write_str(&parts.join(","))
    }
}

/// Which records are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// A few often, most seldom; which ones has nothing to do with their age.
    Zipfian,
    /// The newest often.
    Latest,
    /// All alike.
    Uniform,
}

impl FromStr for Choice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "zipfian" => Ok(Self::Zipfian),
            "latest" => Ok(Self::Latest),
            "uniform" => Ok(Self::Uniform),
            _ => Err(Error::UnknownName {
                what: "distribution",
                given: text.chars().take(100).collect(),
                known: "zipfian, latest, uniform",
            }),
        }
    }
}

/// A workload.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Its name in reports.
    pub name: String,
    /// Shares of operations.
    pub mix: Mix,
    /// Which records.
    pub choice: Choice,
    /// Records that the load phase writes.
    pub records: u64,
    /// Their values.
    pub value_size: ValueSize,
}

impl Workload {
    /// One of YCSB's core workloads, `a` to `f`, as published.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn ycsb(letter: &str, records: u64, value_size: ValueSize) -> Result<Self, Error> {
        use Kind::{Get, Insert, Put, Rmw, Scan};
        let (mix, choice) = match letter {
            "a" => (&[(Get, 50), (Put, 50)][..], Choice::Zipfian),
            "b" => (&[(Get, 95), (Put, 5)][..], Choice::Zipfian),
            "c" => (&[(Get, 100)][..], Choice::Zipfian),
            "d" => (&[(Get, 95), (Insert, 5)][..], Choice::Latest),
            "e" => (&[(Scan, 95), (Insert, 5)][..], Choice::Zipfian),
            "f" => (&[(Get, 50), (Rmw, 50)][..], Choice::Zipfian),
            _ => {
                return Err(Error::UnknownName {
                    what: "workload",
                    given: letter.chars().take(100).collect(),
                    known: "a, b, c, d, e, f",
                });
            }
        };
        Ok(Self {
            name: format!("YCSB {}", letter.to_uppercase()),
            mix: Mix::of(mix),
            choice,
            records,
            value_size,
        })
    }
}

/// The key of a record, as YCSB makes it with `insertorder=hashed`.
#[must_use]
pub fn key(record: u64) -> String {
    format!("user{}", zipf::hash(record))
}

/// Counts records as they are inserted, by all workers together.
///
/// Invariant: all records below `known` are written, so that reads ask for nothing that is still to come
/// (YCSB's `AcknowledgedCounterGenerator`).
#[derive(Debug)]
pub(crate) struct Records {
    next: AtomicU64,
    known: AtomicU64,
    early: Mutex<BTreeSet<u64>>,
}

impl Records {
    pub(crate) fn new(written: u64) -> Self {
        Self {
            next: AtomicU64::new(written),
            known: AtomicU64::new(written),
            early: Mutex::default(),
        }
    }

    /// A record to insert.
    fn begin(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// It is written, or never will be.
    pub(crate) fn end(&self, record: u64) {
        let mut early = self.early.lock();
        early.insert(record);
        let mut known = self.known.load(Ordering::Relaxed);
        while early.remove(&known) {
            known += 1;
        }
        self.known.store(known, Ordering::Relaxed);
    }

    fn known(&self) -> u64 {
        self.known.load(Ordering::Relaxed).max(1)
    }
}

/// What one operation asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drawn {
    pub(crate) kind: Kind,
    pub(crate) record: u64,
    /// Records of a scan; 1 for others.
    pub(crate) count: u64,
}

/// Draws operations for one worker.
#[derive(Debug)]
pub(crate) struct Generator {
    rng: SmallRng,
    workload: Arc<Workload>,
    records: Arc<Records>,
    scrambled: Scrambled,
    latest: Zipfian,
    pool: Bytes,
}

impl Generator {
    /// Of this workload. `seed` decides all draws.
    pub(crate) fn new(workload: Arc<Workload>, records: Arc<Records>, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut pool = vec![0; workload.value_size.most() + POOL_BYTES];
        rng.fill_bytes(&mut pool);
        let latest = match workload.choice {
            Choice::Latest => workload.records,
            // Not used.
            Choice::Zipfian | Choice::Uniform => 1,
        };
        Self {
            rng,
            workload,
            records,
            scrambled: Scrambled::new(),
            latest: Zipfian::new(latest),
            pool: pool.into(),
        }
    }

    /// The next operation.
    pub(crate) fn draw(&mut self) -> Drawn {
        let kind = self.workload.mix.draw(&mut self.rng);
        let record = match kind {
            Kind::Insert => self.records.begin(),
            _ => self.record(),
        };
        let count = match kind {
            Kind::Scan => self.rng.random_range(1..=SCAN_MAX),
            _ => 1,
        };
        Drawn {
            kind,
            record,
            count,
        }
    }

    fn record(&mut self) -> u64 {
        let known = self.records.known();
        match self.workload.choice {
            Choice::Uniform => self.rng.random_range(0..known),
            Choice::Zipfian => self.scrambled.draw(&mut self.rng, known),
            Choice::Latest => {
                self.latest.grow(known);
                let back = self.latest.draw(&mut self.rng);
                known - 1 - back.min(known - 1)
            }
        }
    }

    /// A value: random bytes, which do not compress.
    pub(crate) fn value(&mut self) -> Bytes {
        let len = self.workload.value_size.draw(&mut self.rng);
        let start = self.rng.random_range(0..POOL_BYTES);
        self.pool.slice(start..start + len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(letter: &str, records: u64, count: usize) -> Vec<Drawn> {
        let size = "1KiB".parse().expect("a size");
        let workload = Arc::new(Workload::ycsb(letter, records, size).expect("a workload"));
        let written = Arc::new(Records::new(records));
        let mut generator = Generator::new(workload, Arc::clone(&written), 11);
        (0..count)
            .map(|_| {
                let drawn = generator.draw();
                if drawn.kind == Kind::Insert {
                    written.end(drawn.record);
                }
                drawn
            })
            .collect()
    }

    fn share(drawn: &[Drawn], of: impl Fn(&Drawn) -> bool) -> f64 {
        drawn.iter().filter(|drawn| of(drawn)).count() as f64 / drawn.len() as f64
    }

    #[test]
    fn the_core_workloads_have_their_published_shares() {
        for (letter, kind, expected) in [
            ("a", Kind::Put, 0.5),
            ("b", Kind::Put, 0.05),
            ("c", Kind::Get, 1.0),
            ("d", Kind::Insert, 0.05),
            ("e", Kind::Scan, 0.95),
            ("f", Kind::Rmw, 0.5),
        ] {
            let seen = share(&draws(letter, 1_000, 20_000), |drawn| drawn.kind == kind);
            assert!(
                (seen - expected).abs() < 0.02,
                "{letter}: {seen} of {expected}"
            );
        }
    }

    #[test]
    fn zipfian_has_a_hot_record_and_latest_prefers_the_newest() {
        let drawn = draws("c", 1_000, 50_000);
        let mut counts = vec![0_u32; 1_000];
        for drawn in &drawn {
            counts[drawn.record as usize] += 1;
        }
        // 1 / zeta of ten thousand million items, and what else falls on the same record.
        let hottest = f64::from(counts.iter().max().copied().unwrap_or(0)) / 50_000.0;
        assert!((0.03..0.06).contains(&hottest), "{hottest}");
        let newest = share(&draws("d", 1_000, 20_000), |drawn| drawn.record >= 990);
        assert!(newest > 0.35, "{newest}");
    }

    #[test]
    fn reads_ask_for_nothing_that_is_not_written_yet() {
        let records = Records::new(10);
        let (first, second) = (records.begin(), records.begin());
        records.end(second);
        assert_eq!(records.known(), 10);
        records.end(first);
        assert_eq!(records.known(), 12);
    }

    #[test]
    fn scans_are_as_long_as_published() {
        let scans = draws("e", 1_000, 20_000);
        let lengths = || {
            scans
                .iter()
                .filter(|drawn| drawn.kind == Kind::Scan)
                .map(|drawn| drawn.count)
        };
        assert_eq!(
            (lengths().min(), lengths().max()),
            (Some(1), Some(SCAN_MAX))
        );
    }

    #[test]
    fn the_same_seed_draws_the_same() {
        assert_eq!(draws("e", 50, 500), draws("e", 50, 500));
    }

    #[test]
    fn mixes_are_read_and_printed() {
        let mix: Mix = "get=90, put=9,delete=1".parse().expect("valid");
        assert_eq!(mix.to_string(), "get=90,put=9,delete=1");
        for bad in ["", "get", "get=x", "read=1", "get=0", "get=1;put=2"] {
            assert!(bad.parse::<Mix>().is_err(), "{bad}");
        }
    }
}

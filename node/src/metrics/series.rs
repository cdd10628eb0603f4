//! The instruments: counters and histograms of plain atomics, and the few families whose labels are only
//! known at run time, each bounded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use http::Method;
use parking_lot::RwLock;
use torc_ring::NodeId;
use torc_ring::config::REPLICAS_MAX;

use super::Route;

/// Upper bounds of time buckets in microseconds: 50 µs to 10 s, about doubling.
pub(super) const TIME_BOUNDS: &[u64] = &[
    50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_500, 25_000, 50_000, 100_000, 200_000, 400_000,
    800_000, 1_600_000, 3_200_000, 10_000_000,
];
/// Upper bounds of the sizes of group commits.
pub(super) const BATCH_BOUNDS: &[u64] = &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024];

const BUCKETS_MAX: usize = 20;
const _: () = assert!(TIME_BOUNDS.len() < BUCKETS_MAX && BATCH_BOUNDS.len() < BUCKETS_MAX);

/// A number that only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// What it has come to.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that rises and falls.
#[derive(Debug, Default)]
pub(super) struct Gauge(AtomicI64);

impl Gauge {
    pub(super) fn add(&self, change: i64) {
        self.0.fetch_add(change, Ordering::Relaxed);
    }

    pub(super) fn value(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A distribution over fixed buckets.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    counts: [AtomicU64; BUCKETS_MAX],
    sum: AtomicU64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [u64]) -> Self {
        Self {
            bounds,
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            sum: AtomicU64::new(0),
        }
    }

    /// Counts one value, in microseconds where it is a time.
    pub fn observe(&self, value: u64) {
        let at = self.bounds.partition_point(|&bound| bound < value);
        self.counts[at].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// Sum, count, and the count of each bucket with its upper bound, in units of `unit`.
    pub(super) fn snapshot(&self, unit: f64) -> (f64, u64, Vec<(f64, u64)>) {
        let counts = self
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        let bounds = self
            .bounds
            .iter()
            .map(|&bound| bound as f64 / unit)
            // Without a bucket of this bound Prometheus computes no quantile at all.
            .chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|&(_, count)| count).sum();
        (
            self.sum.load(Ordering::Relaxed) as f64 / unit,
            count,
            buckets,
        )
    }
}

/// Counts by operation, number of replicas and outcome. `ok` is an atomic that stands ready; other
/// outcomes are rare and take a lock.
#[derive(Debug)]
pub struct Tally {
    ops: &'static [&'static str],
    ok: Vec<[AtomicU64; REPLICAS_MAX as usize + 1]>,
    other: RwLock<BTreeMap<(&'static str, u8, &'static str), AtomicU64>>,
}

impl Tally {
    pub(super) fn new(ops: &'static [&'static str]) -> Self {
        let ok = ops
            .iter()
            .map(|_| std::array::from_fn(|_| AtomicU64::new(0)))
            .collect();
        Self {
            ops,
            ok,
            other: RwLock::default(),
        }
    }

    /// Counts one.
    pub fn add(&self, op: &'static str, required: u8, outcome: &'static str) {
        if outcome == "ok"
            && let Some(at) = self.ops.iter().position(|known| *known == op)
            && let Some(count) = self.ok[at].get(usize::from(required))
        {
            count.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let key = (op, required, outcome);
        if let Some(count) = self.other.read().get(&key) {
            count.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.other
            .write()
            .entry(key)
            .or_default()
            .fetch_add(1, Ordering::Relaxed);
    }

    /// Everything that was counted.
    pub(super) fn snapshot(&self) -> Vec<(&'static str, u8, &'static str, u64)> {
        let mut all = Vec::new();
        for (op, row) in self.ops.iter().zip(&self.ok) {
            let counted = row
                .iter()
                .enumerate()
                .map(|(required, n)| (required, n.load(Ordering::Relaxed)));
            all.extend(
                counted
                    .filter(|&(_, n)| n > 0)
                    .map(|(required, n)| (*op, required as u8, "ok", n)),
            );
        }
        let other = self.other.read();
        all.extend(other.iter().map(|(&(op, required, outcome), n)| {
            (op, required, outcome, n.load(Ordering::Relaxed))
        }));
        all
    }
}

/// Counts by a word of the program's own, so that there are only a few.
#[derive(Debug, Default)]
pub(super) struct ByName(RwLock<BTreeMap<&'static str, AtomicU64>>);

impl ByName {
    pub(super) fn add(&self, name: &'static str, count: u64) {
        if let Some(known) = self.0.read().get(name) {
            known.fetch_add(count, Ordering::Relaxed);
            return;
        }
        self.0
            .write()
            .entry(name)
            .or_default()
            .fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> Vec<(&'static str, u64)> {
        self.0
            .read()
            .iter()
            .map(|(name, count)| (*name, count.load(Ordering::Relaxed)))
            .collect()
    }
}

/// One instrument for each peer; only authenticated members become peers, which bounds them.
#[derive(Debug)]
pub(super) struct ByPeer<T> {
    make: fn() -> T,
    peers: RwLock<BTreeMap<NodeId, Arc<T>>>,
}

impl<T> ByPeer<T> {
    pub(super) fn new(make: fn() -> T) -> Self {
        Self {
            make,
            peers: RwLock::default(),
        }
    }

    pub(super) fn of(&self, peer: NodeId) -> Arc<T> {
        if let Some(known) = self.peers.read().get(&peer) {
            return Arc::clone(known);
        }
        Arc::clone(
            self.peers
                .write()
                .entry(peer)
                .or_insert_with(|| Arc::new((self.make)())),
        )
    }

    pub(super) fn snapshot(&self) -> Vec<(NodeId, Arc<T>)> {
        self.peers
            .read()
            .iter()
            .map(|(peer, each)| (*peer, Arc::clone(each)))
            .collect()
    }
}

const METHODS: [&str; 6] = ["GET", "HEAD", "PUT", "DELETE", "POST", "other"];
/// Every status that the facade answers with; the last place is for any other.
const STATUSES: [u16; 24] = [
    200, 204, 206, 300, 304, 400, 404, 405, 406, 408, 409, 412, 413, 414, 415, 416, 417, 429, 431,
    500, 501, 503, 507, 0,
];

/// Requests by route, method and status: a table of atomics.
#[derive(Debug)]
pub(super) struct HttpCounts(Vec<AtomicU64>);

impl Default for HttpCounts {
    fn default() -> Self {
        let size = Route::ALL.len() * METHODS.len() * STATUSES.len();
        Self((0..size).map(|_| AtomicU64::new(0)).collect())
    }
}

impl HttpCounts {
    pub(super) fn add(&self, route: Route, method: &Method, status: u16) {
        let method = match *method {
            Method::GET => 0,
            Method::HEAD => 1,
            Method::PUT => 2,
            Method::DELETE => 3,
            Method::POST => 4,
            _ => 5,
        };
        let status = STATUSES
            .iter()
            .position(|&known| known == status)
            .unwrap_or(STATUSES.len() - 1);
        let at = (route as usize * METHODS.len() + method) * STATUSES.len() + status;
        self.0[at].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> Vec<(&'static str, &'static str, String, u64)> {
        let mut all = Vec::new();
        for (at, count) in self.0.iter().enumerate() {
            let count = count.load(Ordering::Relaxed);
            if count == 0 {
                continue;
            }
            let (rest, status) = (at / STATUSES.len(), STATUSES[at % STATUSES.len()]);
            let (route, method) = (
                Route::ALL[rest / METHODS.len()],
                METHODS[rest % METHODS.len()],
            );
            let status = if status == 0 {
                "other".to_owned()
            } else {
                status.to_string()
            };
            all.push((method, route.label(), status, count));
        }
        all
    }
}

//! The load of the show: writers that know what each of their keys must hold, and count what does not.
//!
//! Each key belongs to one worker, which writes rising numbers to it and reads it in between. So it is known
//! at every moment which number was acknowledged last, and a read below it is a lost write.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinSet;
use torc_client::{Client, ClientConfig, Error, ReadOptions, Routing, WriteOptions};

/// Workers, each with one request at a time.
const WORKERS: u32 = 8;
/// Kept of one moment's latencies.
const SAMPLES_MAX: usize = 100_000;
/// Failures that are kept with their words.
const WORDS_MAX: usize = 20;
/// Time in which a request that met a killed node may fail: its connections break, and those that come
/// right after find nobody listening.
const KILL_WINDOW: Duration = Duration::from_secs(5);

/// What has been counted so far.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) done: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// Failed in the hands of a node that was killed at that moment.
    pub(crate) killed: AtomicU64,
    pub(crate) acknowledged: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) checked: AtomicU64,
    latencies: Mutex<Vec<u32>>,
    words: Mutex<Vec<String>>,
}

impl Counts {
    /// The latencies since the last call, in microseconds, in order.
    pub(crate) fn take_latencies(&self) -> Vec<u32> {
        let mut taken = std::mem::take(&mut *self.latencies.lock());
        taken.sort_unstable();
        taken
    }

    /// The first failures, and the first lost writes, in words.
    pub(crate) fn words(&self) -> Vec<String> {
        self.words.lock().clone()
    }

    fn say(&self, text: impl FnOnce() -> String) {
        let mut words = self.words.lock();
        if words.len() < WORDS_MAX {
            words.push(text());
        }
    }
}

/// The value at a quantile, in microseconds.
pub(crate) fn quantile(sorted: &[u32], quantile: f64) -> u32 {
    let at = ((sorted.len() as f64 * quantile) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(0)
}

/// The data address of a node that was killed, and when.
type Killed = Arc<Mutex<Option<(String, Instant)>>>;

/// A load under way.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) counts: Arc<Counts>,
    workers: JoinSet<BTreeMap<String, u64>>,
    stop: Arc<AtomicBool>,
    killed: Killed,
    client: Client,
}

impl Load {
    /// Begins; `keys` in all, values of `value_bytes`.
    pub(crate) fn start(
        addresses: &[String],
        keys: u32,
        value_bytes: usize,
    ) -> anyhow::Result<Self> {
        let mut config = ClientConfig::new(addresses.iter().cloned());
        config.routing = Routing::Ring;
        config.deadline = Duration::from_secs(10);
        // Each key has one writer, so that a repetition buries nothing.
        config.retry_unknown = true;
        config.ring_refresh = Duration::from_secs(1);
        let client = Client::new(config)?;
        let counts = Arc::<Counts>::default();
        let stop = Arc::<AtomicBool>::default();
        let killed = Killed::default();
        let mut workers = JoinSet::new();
        for worker in 0..WORKERS {
            let worker = Worker {
                client: client.clone(),
                counts: Arc::clone(&counts),
                stop: Arc::clone(&stop),
                killed: Arc::clone(&killed),
                keys: (worker..keys).step_by(WORKERS as usize).collect(),
                value_bytes,
                known: BTreeMap::new(),
            };
            workers.spawn(worker.run());
        }
        Ok(Self {
            counts,
            workers,
            stop,
            killed,
            client,
        })
    }

    /// A node is killed now: what is in its hands may fail.
    pub(crate) fn on_kill(&self, http: &str) {
        *self.killed.lock() = Some((http.to_owned(), Instant::now()));
    }

    /// Ends the load, then reads every key once more: the number of keys that lack an acknowledged write
    /// is in [`Counts::lost`].
    pub(crate) async fn finish(mut self) -> anyhow::Result<Arc<Counts>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut expected = BTreeMap::new();
        while let Some(known) = self.workers.join_next().await {
            expected.extend(known?);
        }
        for (key, number) in expected {
            let read = self
                .client
                .get("default", key.as_bytes(), &ReadOptions::default())
                .await?;
            let found = read.value.and_then(|value| number_of(&value.bytes));
            check(&self.counts, &key, number, found);
        }
        Ok(self.counts)
    }
}

struct Worker {
    client: Client,
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    killed: Killed,
    keys: Vec<u32>,
    value_bytes: usize,
    /// What was acknowledged last, of each key.
    known: BTreeMap<String, u64>,
}

impl Worker {
    async fn run(mut self) -> BTreeMap<String, u64> {
        let mut number = 0_u64;
        while !self.stop.load(Ordering::Relaxed) && !self.keys.is_empty() {
            let key = self.keys[rand::random_range(0..self.keys.len())];
            let key = format!("show/{key}");
            let began = Instant::now();
            let result = if rand::random() {
                number += 1;
                self.write(&key, number).await
            } else {
                self.read(&key).await
            };
            self.counts.done.fetch_add(1, Ordering::Relaxed);
            match result {
                Ok(()) => {
                    let mut latencies = self.counts.latencies.lock();
                    if latencies.len() < SAMPLES_MAX {
                        latencies.push(began.elapsed().as_micros() as u32);
                    }
                }
                Err(error) => self.on_error(&error, began),
            }
        }
        self.known
    }

    async fn write(&mut self, key: &str, number: u64) -> Result<(), Error> {
        let mut value = format!("{number:020} ").into_bytes();
        value.resize(self.value_bytes.max(value.len()), b'.');
        let options = WriteOptions::default();
        self.client
            .put("default", key.as_bytes(), value, &options)
            .await?;
        self.counts.acknowledged.fetch_add(1, Ordering::Relaxed);
        self.known.insert(key.to_owned(), number);
        Ok(())
    }

    async fn read(&self, key: &str) -> Result<(), Error> {
        let read = self
            .client
            .get("default", key.as_bytes(), &ReadOptions::default())
            .await?;
        if let Some(&expected) = self.known.get(key) {
            let found = read.value.and_then(|value| number_of(&value.bytes));
            check(&self.counts, key, expected, found);
        }
        Ok(())
    }

    fn on_error(&self, error: &Error, began: Instant) {
        let in_its_hands = self.killed.lock().as_ref().is_some_and(|(http, at)| {
            let met = match error {
                Error::Unknown { node, .. } | Error::Unreachable { node, .. } => node == http,
                _ => false,
            };
            met && began < *at + KILL_WINDOW
        });
        if in_its_hands {
            self.counts.killed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.counts.failed.fetch_add(1, Ordering::Relaxed);
        self.counts.say(|| format!("failed: {error}"));
    }
}

/// Whether what was found is not older than what was acknowledged.
fn check(counts: &Counts, key: &str, expected: u64, found: Option<u64>) {
    counts.checked.fetch_add(1, Ordering::Relaxed);
    if found.is_none_or(|found| found < expected) {
        counts.lost.fetch_add(1, Ordering::Relaxed);
        counts.say(|| format!("lost: {key} must hold {expected} and holds {found:?}"));
    }
}

fn number_of(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value.get(..20)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_below_what_was_acknowledged_is_a_lost_write() {
        let counts = Counts::default();
        check(&counts, "a", 3, Some(3));
        check(&counts, "a", 3, Some(4));
        assert_eq!(counts.lost.load(Ordering::Relaxed), 0);
        check(&counts, "a", 3, Some(2));
        check(&counts, "b", 3, None);
        assert_eq!(counts.lost.load(Ordering::Relaxed), 2);
        assert_eq!(counts.words().len(), 2);
        assert_eq!(number_of(b"00000000000000000017 ...."), Some(17));
        assert_eq!(number_of(b"short"), None);
    }

    #[test]
    fn quantiles_of_nothing_are_nothing() {
        assert_eq!(quantile(&[], 0.99), 0);
        assert_eq!(quantile(&[1, 2, 3, 4], 0.5), 3);
        assert_eq!(quantile(&[7], 1.0), 7);
    }
}

//! Group commit and cached reads, side by side with RocksDB alone: 1 KiB values, 200,000 keys.
//!
//! - `commit/store`: one-record batches through the committer, a fixed number of them waiting at any time.
//! - `commit/rocksdb_threads`: the same number of threads that each put one value (RocksDB's own grouping).
//! - `commit/rocksdb_batches`: one thread that puts batches of that many values: the limit of this design.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
#[allow(unused)]
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rocksdb::{DB, WriteBatch, WriteOptions};
use torc_protocol::hlc::Hlc;
use torc_protocol::message::RecordKey;
use torc_protocol::record::{Parts, Record};
use torc_protocol::store::{Batch, CommitId, Query, Sync, Write};
use torc_protocol::version::Version;
use torc_ring::{BucketId, NodeId, Token};
use torc_storage::{Committer, Durability, Options, Store};

const KEYS: u64 = 200_000;
const WAITING: [u64; 2] = [64, 256];

/// Spreads numbers over the keys without a generator's cost.
fn key_number(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS
}

fn key(n: u64) -> RecordKey {
    let number = key_number(n);
    let key = Bytes::from(format!("user:{number:012}"));
    RecordKey {
        bucket: BucketId(1),
        token: Token(number.wrapping_mul(0xd6e8_feb8_6659_fd93)),
        key,
    }
}

fn record(n: u64) -> Record {
    let version = Version {
        hlc: Hlc(n + 1),
        node: NodeId(1),
    };
    Record::value(Parts {
        version,
        expiry: None,
        content_type: b"",
        value: &[7; 1024],
    })
}

fn batch(n: u64) -> Batch {
    Batch {
        writes: vec![Write::Merge {
            key: key(n),
            record: record(n),
        }],
        sync: Sync::Policy,
    }
}

/// A store and what it answers.
struct Bed {
    _dir: tempfile::TempDir,
    store: Store,
    committer: Committer,
    done: Receiver<usize>,
    next: u64,
}

impl Bed {
    fn new(durability: Durability) -> Self {
        let dir = tempfile::tempdir_in(folder()).unwrap();
        let mut options = Options::new(dir.path().join("data"));
        options.durability = durability;
        options.reserve = 1 << 20;
        let (store, _) = Store::open(options).unwrap();
        let (sender, done) = channel();
        let deliver = move |_, outcomes: Vec<(CommitId, Result<(), _>)>| {
            assert!(outcomes.iter().all(|(_, outcome)| outcome.is_ok()));
            let _ = sender.send(outcomes.len());
        };
        let committer = store.committer(Arc::new(deliver)).unwrap();
        Self {
            _dir: dir,
            store,
            committer,
            done,
            next: 0,
        }
    }

    fn submit(&mut self, count: usize) {
        for _ in 0..count {
            self.next += 1;
            self.committer
                .submit(0, CommitId(self.next), batch(self.next))
                .unwrap();
        }
    }

    /// Commits `total` batches, `waiting` at a time.
    fn run(&mut self, total: u64, waiting: u64) -> Duration {
        let start = Instant::now();
        let (mut submitted, mut done) = (waiting.min(total), 0);
        self.submit(submitted as usize);
        while done < total {
            let outcomes = self.done.recv().unwrap();
            done += outcomes as u64;
            let more = (outcomes as u64).min(total - submitted);
            self.submit(more as usize);
            submitted += more;
        }
        start.elapsed()
    }
}

/// On the disk that the checkout's build lies on: the temporary folder may be in memory.
fn folder() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

fn raw() -> (tempfile::TempDir, DB) {
    let dir = tempfile::tempdir_in(folder()).unwrap();
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    options.set_recycle_log_file_num(4);
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    options.set_write_buffer_size(32 << 20);
    let db = DB::open(&options, dir.path().join("raw")).unwrap();
    (dir, db)
}

fn raw_key(n: u64) -> Vec<u8> {
    let at = key(n);
    [at.token.0.to_be_bytes().as_slice(), &at.key].concat()
}

fn run_threads(db: &DB, write: &WriteOptions, total: u64, threads: u64) -> Duration {
    let each = total.div_ceil(threads);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for n in thread * each..(thread + 1) * each {
                    db.put_opt(raw_key(n), record(n).as_bytes(), write).unwrap();
                }
            });
        }
    });
    // What was rounded up is not for free.
    start
        .elapsed()
        .mul_f64(total as f64 / (each * threads) as f64)
}

fn run_batches(db: &DB, write: &WriteOptions, total: u64, size: u64) -> Duration {
    let start = Instant::now();
    let mut n = 0;
    while n < total {
        let mut batch = WriteBatch::default();
        for _ in 0..size.min(total - n) {
            batch.put(raw_key(n), record(n).as_bytes());
            n += 1;
        }
        db.write_opt(batch, write).unwrap();
    }
    start.elapsed()
}

fn cpu() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

fn timed(name: &str, total: u64, mut f: impl FnMut(u64)) {
    let (c, t) = (cpu(), Instant::now());
    for n in 0..total {
        f(n);
    }
    println!(
        "{name}: cpu {} ns, wall {} ns",
        (cpu() - c) / total,
        t.elapsed().as_nanos() as u64 / total
    );
}

fn process_cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = text
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) * 10_000.0
}

fn main() {
    let total = 300_000;
    for round in 0..2 {
        for (name, durability) in [("os", Durability::Os), ("fsync", Durability::Fsync)] {
            for waiting in [1_u64, 64, 256] {
                if waiting == 1 && name == "fsync" {
                    continue;
                }
                let total = if name == "fsync" { total / 4 } else { total };
                let mut bed = Bed::new(durability);
                let (c, t) = (process_cpu(), Instant::now());
                bed.run(total, waiting);
                println!(
                    "{round} store {name}/{waiting}: cpu {:.1} us, wall {:.1} us, {:.0}/s",
                    (process_cpu() - c) / total as f64,
                    t.elapsed().as_micros() as f64 / total as f64,
                    total as f64 / t.elapsed().as_secs_f64()
                );
                drop(bed);
                let mut write = WriteOptions::default();
                write.set_sync(durability == Durability::Fsync);
                let (_dir, db) = raw();
                let (c, t) = (process_cpu(), Instant::now());
                run_batches(&db, &write, total, waiting);
                println!(
                    "{round} raw batches {name}/{waiting}: cpu {:.1} us, wall {:.1} us, {:.0}/s",
                    (process_cpu() - c) / total as f64,
                    t.elapsed().as_micros() as f64 / total as f64,
                    total as f64 / t.elapsed().as_secs_f64()
                );
                if waiting == 64 {
                    let (_dir, db) = raw();
                    let (c, t) = (process_cpu(), Instant::now());
                    run_threads(&db, &write, total, waiting);
                    println!(
                        "{round} raw threads {name}/{waiting}: cpu {:.1} us, wall {:.1} us, {:.0}/s",
                        (process_cpu() - c) / total as f64,
                        t.elapsed().as_micros() as f64 / total as f64,
                        total as f64 / t.elapsed().as_secs_f64()
                    );
                }
            }
        }
    }
}

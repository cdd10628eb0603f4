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

fn commits(c: &mut Criterion) {
    let mut group = c.benchmark_group("commit");
    group
        .throughput(Throughput::Elements(1))
        .sample_size(10)
        .measurement_time(Duration::from_secs(4));
    for (name, durability) in [("os", Durability::Os), ("fsync", Durability::Fsync)] {
        let mut write = WriteOptions::default();
        write.set_sync(durability == Durability::Fsync);
        for waiting in WAITING {
            let parameter = format!("{name}/{waiting}");
            let mut bed = Bed::new(durability);
            group.bench_function(BenchmarkId::new("store", &parameter), |b| {
                b.iter_custom(|total| bed.run(total, waiting));
            });
            drop(bed);
            let (_dir, db) = raw();
            group.bench_function(BenchmarkId::new("rocksdb_threads", &parameter), |b| {
                b.iter_custom(|total| run_threads(&db, &write, total, waiting));
            });
            let (_dir, db) = raw();
            group.bench_function(BenchmarkId::new("rocksdb_batches", &parameter), |b| {
                b.iter_custom(|total| run_batches(&db, &write, total, waiting));
            });
        }
    }
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

fn gets(c: &mut Criterion) {
    let mut bed = Bed::new(Durability::Os);
    // In the write buffer and the cache together; every key once more than once.
    let keys = 20_000;
    bed.run(keys * 2, 256);
    // Until flush and compaction have come to rest, blocks move.
    while (1..=keys).any(|n| bed.store.query_cached(&Query::Record(key(n))).is_none()) {
        for n in 1..=keys {
            bed.store.query(&Query::Record(key(n))).unwrap();
        }
    }
    let mut group = c.benchmark_group("get");
    group
        .throughput(Throughput::Elements(1))
        .measurement_time(Duration::from_secs(3));
    let mut n = 0;
    group.bench_function("store_cached", |b| {
        b.iter(|| {
            n = n % keys + 1;
            bed.store
                .query_cached(&Query::Record(key(n)))
                .unwrap()
                .unwrap()
        });
    });
    group.bench_function("store_cached_missing", |b| {
        b.iter(|| {
            n += 1;
            let mut at = key(n);
            at.bucket = BucketId(2);
            bed.store.query_cached(&Query::Record(at)).unwrap().unwrap()
        });
    });
    let (_dir, db) = raw();
    run_batches(&db, &WriteOptions::default(), keys * 2, 256);
    n = 0;
    group.bench_function("rocksdb", |b| {
        b.iter(|| {
            n = n % keys + 1;
            db.get_pinned(raw_key(n)).unwrap().unwrap().len()
        });
    });
    group.finish();

    // A key that is written all the time: what its operands cost a reader.
    let hot = key(0);
    for n in 0..100_000 {
        let writes = vec![Write::Merge {
            key: hot.clone(),
            record: record(n),
        }];
        let one = Batch {
            writes,
            sync: Sync::Policy,
        };
        while bed.committer.submit(0, CommitId(n), one.clone()).is_err() {
            bed.done.recv().unwrap();
        }
    }
    while bed.committer.waiting() > 0 {
        bed.done.recv().unwrap();
    }
    let mut group = c.benchmark_group("get");
    group.bench_function("store_hot_key", |b| {
        b.iter(|| {
            bed.store
                .query_cached(&Query::Record(hot.clone()))
                .unwrap()
                .unwrap()
        });
    });
    group.finish();
}

criterion_group!(benches, commits, gets);
criterion_main!(benches);

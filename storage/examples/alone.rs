//! RocksDB alone: one thread that puts batches of 1 KiB values, and what that costs. Prints one line of
//! JSON. The limit that the committer is measured against, with batches as large as those that it made.
//!
//! `cargo run --release -p torc-storage --example alone -- FOLDER BATCH SECONDS os|fsync`

// A measurement prints its result, and has nobody to report an error to but its caller.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use rocksdb::{DB, DBCompressionType, Options, WriteBatch, WriteOptions};

const KEYS: u64 = 100_000;
const VALUE_LEN: usize = 1024;
/// Puts before the measurement.
const WARM_UP: u64 = 20_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, batch, seconds, durability] = &args[..] else {
        panic!("usage: alone FOLDER BATCH SECONDS os|fsync");
    };
    let batch = batch.parse::<u64>().unwrap().max(1);
    // As the store sets it up.
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_recycle_log_file_num(4);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(32 << 20);
    let db = DB::open(&options, Path::new(folder).join("alone")).unwrap();
    let mut write = WriteOptions::default();
    write.set_sync(durability == "fsync");
    let pool = random(VALUE_LEN * 64);
    let mut number = 0_u64;
    let mut put = |count: u64| {
        let mut writes = WriteBatch::default();
        for _ in 0..count {
            number += 1;
            let key = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS;
            let at = (number as usize * 17) % (pool.len() - VALUE_LEN);
            writes.put(format!("user{key:020}"), &pool[at..at + VALUE_LEN]);
        }
        db.write_opt(writes, &write).unwrap();
    };
    (0..WARM_UP / batch).for_each(|_| put(batch));
    let (begin, cpu) = (Instant::now(), cpu_seconds());
    let end = begin + Duration::from_secs_f64(seconds.parse().unwrap());
    let mut puts = 0;
    while Instant::now() < end {
        put(batch);
        puts += batch;
    }
    let (elapsed, cpu) = (begin.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let (rate, each) = (puts as f64 / elapsed, cpu * 1e6 / puts as f64);
    println!(r#"{{"per_second":{rate:.0},"cpu_us":{each:.2},"batch":{batch}}}"#);
}

/// Bytes that do not compress, as the load generator's.
fn random(len: usize) -> Vec<u8> {
    let next = |state: &mut u64| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        Some((*state >> 32) as u8)
    };
    (0..len)
        .scan(0x9e37_79b9_7f4a_7c15, |state, _| next(state))
        .collect()
}

/// User and system time of this process so far, background work of RocksDB included.
fn cpu_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

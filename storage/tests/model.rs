//! Random sequences of batches, queries and restarts against a model: plain maps and `Record::merge`.
//!
//! 10^6 operations by default, 10^7 with `TORC_LONG=1`. A failure prints its seed.

// Helpers of tests panic and print like tests.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use torc_protocol::hlc::Hlc;
use torc_protocol::message::RecordKey;
use torc_protocol::record::{Parts, Record};
use torc_protocol::store::{
    Batch, Found, Hint, HintKey, HintTotal, Leftover, Query, StateKey, Sync, Write,
};
use torc_protocol::version::Version;
use torc_ring::{BucketId, ConfigVersion, NodeId, Token};
use torc_storage::{Durability, Opened, Options, States};

use common::rng::{Rng, seed};
use common::*;

const OPERATIONS: u64 = 1_000_000;
const SEQUENCES: u64 = 40;

#[derive(Default)]
struct Model {
    records: BTreeMap<RecordKey, Record>,
    hints: BTreeMap<HintKey, Hint>,
    states: BTreeMap<StateKey, Bytes>,
}

impl Model {
    fn apply(&mut self, write: &Write) {
        match write {
            Write::Merge { key, record } => {
                let merged = match self.records.get(key) {
                    Some(stored) => stored.clone().merge(record.clone()).expect("of one mode"),
                    None => record.clone(),
                };
                self.records.insert(key.clone(), merged);
            }
            Write::Drop(range) => self.records.retain(|key, _| {
                key.bucket != range.bucket || !(range.first..=range.last).contains(&key.token)
            }),
            Write::Remove { key } => drop(self.records.remove(key)),
            Write::HintPut { at, hint } => drop(self.hints.insert(*at, hint.clone())),
            Write::HintDelete { at } => drop(self.hints.remove(at)),
            Write::StatePut { key, value } => drop(self.states.insert(*key, value.clone())),
            Write::StateDelete { key } => drop(self.states.remove(key)),
        }
    }

    fn totals(&self) -> Vec<HintTotal> {
        let mut totals: BTreeMap<(NodeId, u8), HintTotal> = BTreeMap::new();
        for (at, hint) in &self.hints {
            let none = HintTotal {
                target: at.target,
                slot: at.slot,
                count: 0,
                counted: 0,
                bytes: 0,
                last_seq: 0,
            };
            let total = totals.entry((at.target, at.slot)).or_insert(none);
            total.count += 1;
            total.counted += u64::from(hint.counted);
            total.bytes += hint.weight();
            total.last_seq = at.seq;
        }
        totals.into_values().collect()
    }
}

/// Few places, so that writes meet.
fn some_key(rng: &mut Rng) -> RecordKey {
    let token = [0, 1, 2, 1 << 40, u64::MAX][rng.below(5) as usize];
    let len = rng.below(3);
    let name: Vec<u8> = (0..len)
        .map(|_| [0, b'a', b'b', 0xff][rng.below(4) as usize])
        .collect();
    let number = (rng.below(40) as u8).to_be_bytes();
    key(
        1 + rng.below(3) as u32,
        token,
        &[name.as_slice(), number.as_slice()].concat(),
    )
}

fn some_record(rng: &mut Rng) -> Record {
    let version = Version {
        hlc: Hlc(rng.below(1000)),
        node: NodeId(rng.below(3)),
    };
    if rng.below(5) == 0 {
        return Record::tombstone(version);
    }
    // Mostly small; now and then so large that a record spans blocks of log and table.
    let len = if rng.below(200) == 0 {
        rng.below(60_000)
    } else {
        rng.below(40)
    };
    let expiry = (rng.below(4) == 0).then(|| rng.below(100) + 1);
    Record::value(Parts {
        version,
        expiry,
        content_type: b"t/x",
        value: &rng.bytes(len),
    })
}

fn some_write(rng: &mut Rng) -> Write {
    let at = hint_at(rng.below(3), rng.below(2) as u8, 1 + rng.below(200));
    match rng.below(20) {
        0..12 => Write::Merge {
            key: some_key(rng),
            record: some_record(rng),
        },
        12..15 => {
            let counted = rng.below(2) == 0;
            Write::HintPut {
                at,
                hint: Hint {
                    key: some_key(rng),
                    record: some_record(rng),
                    counted,
                },
            }
        }
        15..17 => Write::HintDelete { at },
        17..19 => {
            let len = rng.below(30);
            Write::StatePut {
                key: some_state(rng),
                value: rng.bytes(len).into(),
            }
        }
        19 if rng.below(20) == 0 => {
            let RecordKey { bucket, token, .. } = some_key(rng);
            let width = rng.below(1 << 60);
            Write::Drop(Leftover {
                bucket,
                first: token,
                last: Token(token.0.saturating_add(width)),
            })
        }
        19 if rng.below(2) == 0 => Write::Remove { key: some_key(rng) },
        _ => Write::StateDelete {
            key: some_state(rng),
        },
    }
}

fn some_state(rng: &mut Rng) -> StateKey {
    match rng.below(6) {
        0 => StateKey::Identity,
        1 => StateKey::Applied,
        2 => StateKey::HlcBound(rng.below(6) as u8),
        3 => StateKey::PeerBound(NodeId(rng.below(6) << 60)),
        4 => StateKey::Acceptor(ConfigVersion(rng.below(300))),
        _ => StateKey::Decided(ConfigVersion(rng.below(300))),
    }
}

/// One query, its answer compared with the model's.
fn check_one(rng: &mut Rng, disk: &impl Disk, model: &Model) {
    match rng.below(10) {
        0..6 => {
            let at = some_key(rng);
            let expected = Ok(Found::Record(model.records.get(&at).cloned()));
            let query = Query::Record(at);
            assert_eq!(disk.query(&query), expected);
            if let Some(cached) = disk.query_cached(&query) {
                assert_eq!(cached, expected);
            }
        }
        6..8 => check_listing(rng, disk, model),
        8 => {
            let (target, slot) = (rng.below(3), rng.below(2) as u8);
            let (after, limit) = (rng.below(200), 1 + rng.below(50) as usize);
            let from = hint_at(target, slot, after + 1);
            let waiting = model
                .hints
                .range(from..=hint_at(target, slot, u64::MAX))
                .take(limit);
            let expected: Vec<_> = waiting.map(|(at, hint)| (*at, hint.clone())).collect();
            assert_eq!(hints(disk, target, slot, after, limit), expected);
        }
        _ => {
            let at = some_state(rng);
            assert_eq!(disk.state(at).unwrap(), model.states.get(&at).cloned());
        }
    }
}

fn check_listing(rng: &mut Rng, disk: &impl Disk, model: &Model) {
    let ends = [0, 1, 2, 1 << 40, u64::MAX];
    let (first, last) = (ends[rng.below(5) as usize], ends[rng.below(5) as usize]);
    let bucket = BucketId(1 + rng.below(4) as u32);
    let after = (rng.below(2) == 0)
        .then(|| some_key(rng))
        .map(|key| (key.token, key.key));
    let prefix: &[u8] = [b"".as_slice(), b"a", b"\xff", b"ab"][rng.below(4) as usize];
    let limit = 1 + rng.below(30) as usize;
    let query = Query::Records {
        bucket,
        first: Token(first),
        last: Token(last),
        after: after.clone(),
        prefix: Bytes::copy_from_slice(prefix),
        limit,
    };
    let Ok(Found::Records { entries, reached }) = disk.query(&query) else {
        panic!("a page")
    };
    // From behind `after` to where the store stopped, or to the end.
    let from = match after.clone().filter(|(token, _)| token.0 >= first) {
        Some((token, key)) => Bound::Excluded(RecordKey { bucket, token, key }),
        None => Bound::Included(key(bucket.0, first, b"")),
    };
    let in_range: Vec<_> = model
        .records
        .range((from, Bound::Unbounded))
        .take_while(|(key, _)| key.bucket == bucket && key.token.0 <= last)
        .take_while(|(key, _)| {
            reached
                .as_ref()
                .is_none_or(|(token, name)| (key.token, &key.key) <= (*token, name))
        })
        .filter(|(key, _)| key.key.starts_with(prefix))
        .map(|(key, record)| (key.clone(), record.clone()))
        .collect();
    assert!(in_range.len() <= limit);
    assert_eq!(entries, in_range);
    // It makes progress.
    if let (Some(reached), Some(after)) = (&reached, &after) {
        assert!(reached > after);
    }
}

fn check_all(disk: &impl Disk, model: &Model, opened: &Opened) {
    for (at, record) in &model.records {
        assert_eq!(read(disk, at).as_ref(), Ok(&Some(record.clone())));
    }
    assert_eq!(opened.hints, model.totals());
    for which in [
        States::Acceptor,
        States::Decided,
        States::HlcBound,
        States::PeerBound,
    ] {
        let found: BTreeMap<_, _> = disk.states(which).unwrap().into_iter().collect();
        let expected: BTreeMap<_, _> = model
            .states
            .iter()
            .filter(|(key, _)| match which {
                States::Acceptor => matches!(key, StateKey::Acceptor(_)),
                States::Decided => matches!(key, StateKey::Decided(_)),
                States::HlcBound => matches!(key, StateKey::HlcBound(_)),
                States::PeerBound => matches!(key, StateKey::PeerBound(_)),
                States::Tree => matches!(key, StateKey::Tree(..)),
                States::Floor => matches!(key, StateKey::Floor(..)),
            })
            .map(|(key, value)| (*key, value.clone()))
            .collect();
        assert_eq!(found, expected);
    }
    assert_eq!(
        disk.is_empty().unwrap(),
        model.records.is_empty() && model.hints.is_empty()
    );
}

fn sequence(place: &impl Place, seed: u64, operations: u64) {
    println!("sequence {seed}");
    let mut rng = Rng::new(seed);
    let mut model = Model::default();
    let (mut disk, opened) = place.open();
    check_all(&disk, &model, &opened);
    let mut commits = Commits::of(&disk);
    let mut done = 0;
    while done < operations {
        // Several batches wait at once, so that groups form.
        let count = 1 + rng.below(12);
        for _ in 0..count {
            let writes: Vec<Write> = (0..=rng.below(12)).map(|_| some_write(&mut rng)).collect();
            done += writes.len() as u64;
            for write in &writes {
                model.apply(write);
            }
            let sync = if rng.below(50) == 0 {
                Sync::Fsync
            } else {
                Sync::Policy
            };
            commits.submit(Batch { writes, sync });
        }
        assert!(
            commits
                .wait(count as usize)
                .iter()
                .all(|(_, (_, outcome))| outcome.is_ok())
        );
        for _ in 0..rng.below(30) {
            check_one(&mut rng, &disk, &model);
            done += 1;
        }
        if rng.below(operations / 100) < 4 {
            drop(commits);
            place.close(disk);
            let (again, opened) = place.open();
            check_all(&again, &model, &opened);
            disk = again;
            commits = Commits::of(&disk);
        }
    }
    drop(commits);
    place.close(disk);
    let (disk, opened) = place.open();
    check_all(&disk, &model, &opened);
    place.close(disk);
}

/// Small buffers, so that tables are written and compacted all the time.
fn small(options: &mut Options) {
    options.write_buffer = 1 << 20;
    options.block_cache = 1 << 20;
    options.durability = Durability::Os;
}

fn small_and_synced(options: &mut Options) {
    small(options);
    options.durability = Durability::Fsync;
}

fn small_and_synced_in_time(options: &mut Options) {
    small(options);
    options.durability = Durability::Interval(Duration::from_millis(3));
}

fn scale() -> u64 {
    if std::env::var_os("TORC_LONG").is_some() {
        10
    } else {
        1
    }
}

#[test]
fn a_store_is_its_model() {
    let first = seed();
    let next = AtomicU64::new(0);
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= SEQUENCES * scale() {
                return;
            }
            let place = match number % 8 {
                0 => OnDisk::in_memory(small_and_synced),
                1 => OnDisk::in_memory(small_and_synced_in_time),
                _ => OnDisk::in_memory(small),
            };
            sequence(&place, first.wrapping_add(number), OPERATIONS / SEQUENCES);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(work);
        }
    });
}

#[test]
fn the_twin_is_its_model() {
    let first = seed();
    for number in 0..scale() * 4 {
        sequence(
            &InMemory::default(),
            first.wrapping_add(number),
            OPERATIONS / SEQUENCES,
        );
    }
}

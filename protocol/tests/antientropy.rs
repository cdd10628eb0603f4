//! How copies of a partition become equal without a read or a hint: transcripts.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod nodes;

use std::collections::BTreeMap;

use bytes::Bytes;
use nodes::{A, B, C, Cluster, D};
use proptest::prelude::*;
use torc_protocol::message::RecordKey;
use torc_protocol::record::{Parts, Record};
use torc_protocol::shard_io::Event;
use torc_protocol::time::{MS, SECOND};
use torc_protocol::version::{Digest, Version};
use torc_ring::NodeId;

/// Long enough for a round of comparisons of everything.
const ROUND: u64 = 400 * SECOND;

fn name(number: usize) -> Vec<u8> {
    format!("key-{number:06}").into_bytes()
}

/// A record whose version is that number.
fn record(hlc: u64, value: &[u8]) -> Record {
    Record::value(Parts {
        version: Version {
            hlc: torc_protocol::hlc::Hlc(hlc),
            node: A,
        },
        expiry: None,
        content_type: b"",
        value,
    })
}

fn digests(cluster: &Cluster, id: NodeId) -> BTreeMap<RecordKey, Digest> {
    let records = cluster.records(id).iter();
    records
        .map(|(key, record)| (key.clone(), record.digest()))
        .collect()
}

fn age(cluster: &Cluster, id: NodeId) -> u64 {
    let ages = cluster.events(id).iter().rev();
    let age = ages.filter_map(|event| match event {
        Event::Agreement { age_us, .. } => Some(*age_us),
        _ => None,
    });
    age.into_iter().next().expect("the age is told")
}

fn repaired(cluster: &Cluster, id: NodeId) -> u64 {
    let keys = cluster.events(id).iter().map(|event| match event {
        Event::Synced { keys, .. } => *keys,
        _ => 0,
    });
    keys.sum()
}

#[test]
fn a_write_that_two_owners_missed_reaches_them_without_a_read() {
    let mut cluster = Cluster::with_bits(3, 2);
    cluster.plant(A, b"k", record(5, b"v"));
    cluster.repair();
    cluster.advance(ROUND);
    for id in [A, B, C] {
        assert_eq!(cluster.value(id, b"k").as_deref(), Some(&b"v"[..]), "{id}");
        assert!(age(&cluster, id) <= ROUND, "the copies are known to agree");
    }
    assert!(repaired(&cluster, B) >= 1 && repaired(&cluster, C) >= 1);
}

#[test]
fn the_newer_state_wins_in_both_directions_and_deletions_are_states() {
    let mut cluster = Cluster::with_bits(3, 0);
    cluster.plant(A, b"mine", record(9, b"new"));
    cluster.plant(B, b"mine", record(3, b"old"));
    cluster.plant(A, b"theirs", record(3, b"old"));
    cluster.plant(B, b"theirs", record(9, b"new"));
    cluster.plant(A, b"gone", record(3, b"alive"));
    let version = Version {
        hlc: torc_protocol::hlc::Hlc(4),
        node: B,
    };
    cluster.plant(B, b"gone", Record::tombstone(version));
    cluster.repair();
    cluster.advance(ROUND);
    for id in [A, B, C] {
        assert_eq!(cluster.value(id, b"mine").as_deref(), Some(&b"new"[..]));
        assert_eq!(cluster.value(id, b"theirs").as_deref(), Some(&b"new"[..]));
        let gone = cluster.stored(id, b"gone").expect("a tombstone");
        assert_eq!(gone.version(), version);
    }
}

#[test]
fn two_equal_partitions_of_many_keys_are_compared_by_their_roots_alone() {
    let mut cluster = Cluster::build(3, 0, |_, settings| settings.scrub_rate = 0);
    for number in 0..100_000 {
        for id in [A, B, C] {
            cluster.plant(id, &name(number), record(7, b"v"));
        }
    }
    cluster.repair();
    cluster.advance(ROUND);
    let (bytes, scanned) = (cluster.sync_bytes, cluster.scanned(A));
    assert!(scanned >= 100_000, "the first comparison reads everything");
    for _ in 0..2 {
        cluster.advance(ROUND);
    }
    let spent = cluster.sync_bytes - bytes;
    assert!(spent > 0, "compared again");
    assert!(spent <= 8 << 10, "{spent} bytes for several comparisons");
    assert_eq!(cluster.scanned(A), scanned, "and nothing was read");

    // One more key on one side: little is sent, and little is read.
    cluster.plant_behind_the_back(B, b"one more", record(8, b"v"));
    let bytes = cluster.sync_bytes;
    cluster.advance(ROUND);
    let value = cluster.value(A, b"one more");
    assert_eq!(value.as_deref(), Some(&b"v"[..]));
    let spent = cluster.sync_bytes - bytes;
    assert!(spent <= 64 << 10, "{spent} bytes to find one key");
    let read = cluster.scanned(A) - scanned;
    assert!(read <= 2_000, "{read} keys read to find one");
}

#[test]
fn a_node_that_lost_everything_is_filled_again() {
    let mut cluster = Cluster::with_bits(3, 1);
    for number in 0..3_000 {
        cluster.plant(A, &name(number), record(7, &[7; 500]));
        cluster.plant(C, &name(number), record(7, &[7; 500]));
    }
    cluster.repair();
    cluster.advance(ROUND);
    assert_eq!(digests(&cluster, A), digests(&cluster, B));
    let came = repaired(&cluster, B);
    assert!(
        (3_000..=6_000).contains(&came),
        "{came}: once from each side at most"
    );
}

#[test]
fn a_dropped_hint_has_its_partition_compared_at_once() {
    let mut cluster = Cluster::build(3, 4, |_, settings| settings.hint_bytes_max = 10);
    cluster.repair();
    cluster.advance(ROUND);
    // C is cut off for a moment; nobody believes it dead, so nobody sees it come back.
    cluster.isolate(C);
    cluster.write(A, b"k", b"v");
    cluster.advance(3 * SECOND);
    assert!(
        cluster.events(A).iter().any(|event| matches!(
            event,
            Event::HintsDropped {
                reason: "bytes",
                ..
            }
        )),
        "the hint did not fit"
    );
    cluster.heal();
    cluster.advance(40 * SECOND);
    assert_eq!(cluster.value(C, b"k").as_deref(), Some(&b"v"[..]));
}

#[test]
fn a_coordinator_that_owns_nothing_tells_the_owners_of_a_dropped_hint() {
    let mut cluster = Cluster::build(4, 4, |_, settings| settings.hint_bytes_max = 10);
    cluster.repair();
    cluster.advance(ROUND);
    let key = (0..10_000)
        .map(name)
        .find(|key| cluster.placement(key).1 == D)
        .expect("a key that D does not own");
    cluster.isolate(C);
    cluster.write(D, &key, b"v");
    cluster.advance(3 * SECOND);
    cluster.heal();
    cluster.advance(40 * SECOND);
    assert_eq!(cluster.value(C, &key).as_deref(), Some(&b"v"[..]));
}

#[test]
fn a_node_that_comes_back_is_compared_before_its_turn() {
    let mut cluster = Cluster::with_bits(3, 3);
    cluster.repair();
    cluster.advance(ROUND);
    for id in [A, B] {
        cluster.believe_dead(id, &[C]);
        cluster.plant_behind_the_back(id, b"k", record(9, b"v"));
    }
    for id in [A, B] {
        cluster.believe_dead(id, &[]);
    }
    cluster.advance(2 * SECOND);
    assert_eq!(cluster.value(C, b"k").as_deref(), Some(&b"v"[..]));
}

#[test]
fn a_session_that_loses_messages_is_held_again() {
    let mut cluster = Cluster::with_bits(3, 0);
    for number in 0..500 {
        cluster.plant(A, &name(number), record(7, b"v"));
    }
    cluster.isolate(B);
    cluster.repair();
    cluster.advance(ROUND / 2);
    assert_eq!(cluster.records(B).len(), 0);
    cluster.heal();
    cluster.advance(ROUND);
    assert_eq!(digests(&cluster, A), digests(&cluster, B));
    let failed = |event: &Event| {
        matches!(
            event,
            Event::SyncFailed {
                reason: "timeout",
                ..
            }
        )
    };
    assert!(cluster.events(A).iter().any(failed));
}

#[test]
fn messages_that_come_twice_change_nothing() {
    let mut cluster = Cluster::with_bits(3, 0);
    cluster.duplicate = true;
    for number in 0..300 {
        cluster.plant([A, B, C][number % 3], &name(number), record(7, b"v"));
    }
    cluster.repair();
    cluster.advance(ROUND);
    assert_eq!(cluster.records(A).len(), 300);
    assert_eq!(digests(&cluster, A), digests(&cluster, B));
    assert_eq!(digests(&cluster, A), digests(&cluster, C));
}

#[test]
fn nobody_compares_across_ring_versions_or_before_a_version_is_durable() {
    let mut cluster = Cluster::with_bits(3, 0);
    cluster.plant(A, b"k", record(7, b"v"));
    cluster.repair();
    cluster.repairs = false;
    for id in [A, B, C] {
        cluster.raise_ring(id);
    }
    cluster.advance(ROUND);
    for id in [B, C] {
        assert_eq!(cluster.value(id, b"k"), None, "the version is not durable");
    }
    cluster.raise_ring(A);
    cluster.repair();
    cluster.advance(ROUND);
    assert_eq!(cluster.value(B, b"k"), None, "A is at another version");
    cluster.raise_ring(B);
    cluster.advance(ROUND);
    assert_eq!(cluster.value(B, b"k").as_deref(), Some(&b"v"[..]));
    assert_eq!(cluster.value(C, b"k"), None, "C is at another version");
}

#[test]
fn trees_survive_a_stop_in_order_and_are_built_anew_after_a_crash() {
    let mut cluster = Cluster::build(3, 1, |_, settings| settings.scrub_rate = 0);
    for number in 0..2_000 {
        for id in [A, B, C] {
            cluster.plant(id, &name(number), record(7, b"v"));
        }
    }
    cluster.repair();
    cluster.advance(ROUND);
    let scanned = cluster.scanned(A);
    cluster.restart_cleanly(A);
    cluster.advance(ROUND);
    assert_eq!(
        cluster.scanned(A),
        0,
        "the stored trees served (counted anew)"
    );
    assert!(age(&cluster, A) <= ROUND);
    cluster.restart(A);
    cluster.advance(ROUND);
    assert_eq!(cluster.scanned(A), scanned, "everything was read again");
}

#[test]
fn what_rots_unseen_is_found_by_the_slow_scan_and_repaired() {
    let mut cluster = Cluster::build(3, 0, |_, settings| {
        settings.antientropy_age_target = 8 * SECOND;
    });
    for number in 0..1_000 {
        for id in [A, B, C] {
            cluster.plant(id, &name(number), record(7, b"v"));
        }
    }
    cluster.repair();
    cluster.advance(20 * SECOND);
    cluster.lose(B, &name(500));
    cluster.advance(60 * SECOND);
    assert!(cluster.stored(B, &name(500)).is_some());
}

#[test]
fn no_more_is_sent_in_a_second_than_the_rate_allows() {
    let mut cluster = Cluster::build(3, 0, |_, settings| settings.repair_rate = 100_000);
    for number in 0..1_000 {
        cluster.plant(A, &name(number), record(7, &[7; 1_000]));
        cluster.plant(C, &name(number), record(7, &[7; 1_000]));
    }
    cluster.repair();
    let mut seconds = 0;
    while cluster.records(B).len() < 1_000 {
        cluster.advance(SECOND);
        seconds += 1;
        assert!(seconds < 400);
    }
    // Each owner reads a megabyte for its tree first, and then sends or takes one.
    assert!(seconds >= 10, "a megabyte at 100 kB/s took {seconds} s");
}

/// Writes, crashes, losses and comparisons in any order.
#[derive(Clone, Debug)]
enum Step {
    Write(usize, usize, u64),
    Lose(usize, usize),
    Rest(u64),
    Restart(usize),
    CleanRestart(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0..3_usize;
    prop_oneof![
        6 => (node.clone(), 0..60_usize, 1..1_000_u64).prop_map(|(n, k, v)| Step::Write(n, k, v)),
        1 => (node.clone(), 0..60_usize).prop_map(|(n, k)| Step::Lose(n, k)),
        2 => (1..40_u64).prop_map(Step::Rest),
        1 => node.clone().prop_map(Step::Restart),
        1 => node.prop_map(Step::CleanRestart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn whatever_happened_all_owners_end_up_with_the_same_newest_states(steps in prop::collection::vec(step(), 1..40)) {
        let mut cluster = Cluster::build(3, 1, |_, settings| settings.antientropy_age_target = 8 * SECOND);
        cluster.repair();
        let mut newest: BTreeMap<usize, u64> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Write(node, key, version) => {
                    let value = version.to_be_bytes();
                    cluster.plant_behind_the_back([A, B, C][node], &name(key), record(version, &value));
                    let known = newest.entry(key).or_default();
                    *known = version.max(*known);
                }
                // A rotten page: the slow scan must find it. (Never of the last copy.)
                Step::Lose(node, key) => {
                    let held = [A, B, C].iter().filter(|&&id| {
                        let stored = cluster.stored(id, &name(key));
                        stored.is_some_and(|r| r.version().hlc.0 == newest.get(&key).copied().unwrap_or(0))
                    });
                    if held.count() == 3 {
                        cluster.lose([A, B, C][node], &name(key));
                    }
                }
                Step::Rest(tenths) => cluster.advance(tenths * 100 * MS),
                Step::Restart(node) => cluster.restart([A, B, C][node]),
                Step::CleanRestart(node) => cluster.restart_cleanly([A, B, C][node]),
            }
        }
        cluster.advance(120 * SECOND);
        let expected: BTreeMap<Bytes, u64> = newest.iter().map(|(&key, &version)| (name(key).into(), version)).collect();
        for id in [A, B, C] {
            let have: BTreeMap<Bytes, u64> = cluster.records(id).iter().map(|(key, r)| (key.key.clone(), r.version().hlc.0)).collect();
            prop_assert_eq!(&have, &expected, "node {}", id);
        }
    }
}

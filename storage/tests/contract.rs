//! What every store promises, run on RocksDB and on its twin.

// Helpers of tests panic and print like tests.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use bytes::Bytes;
use torc_protocol::changes::Lane;
use torc_protocol::hlc::Hlc;
use torc_protocol::record::Record;
use torc_protocol::siblings::{Causal, Dot, Sibling, Siblings};
use torc_protocol::store::{
    Batch, CommitId, Found, HintTotal, Query, StateKey, StoreError, Sync, Write,
};
use torc_ring::{BucketId, ConfigVersion, NodeId, PartitionId, Token};
use torc_storage::{ChangeTotal, States};

use common::*;

macro_rules! contract {
    ($($name:ident)*) => {
        mod rocks {
            $(#[test] fn $name() { super::$name(&super::OnDisk::new()); })*
        }
        mod memory {
            $(#[test] fn $name() { super::$name(&super::InMemory::default()); })*
        }
    };
}

contract! {
    a_merged_record_is_read_and_an_older_one_changes_nothing
    a_tombstone_is_a_record
    outcomes_come_once_each_in_order_per_shard
    a_batch_sees_all_of_its_writes
    a_listing_walks_a_range_in_order_and_resumes
    a_listing_looks_at_a_bounded_number_of_keys
    a_listing_ends_with_its_bucket_and_its_last_token
    hints_come_in_order_and_go_when_deleted
    hints_are_counted_at_the_next_start
    states_are_found_again_after_a_restart
    notes_of_changes_come_in_order_by_lane_and_outlast_a_restart
    what_a_node_does_not_own_is_found_and_dropped_and_nothing_else
    an_empty_store_says_so
    states_alone_leave_a_store_empty
    concurrent_siblings_are_merged
    what_can_never_be_merged_is_corrupt_and_stays_so
    an_empty_batch_is_committed
    what_was_submitted_before_the_committer_ended_is_committed
    a_caller_commits_what_it_submitted
    a_batch_that_is_to_be_synced_is_committed_all_the_same
    callers_and_the_thread_commit_side_by_side
}

fn a_merged_record_is_read_and_an_older_one_changes_nothing(place: &impl Place) {
    let (disk, _) = place.open();
    let mut commits = Commits::of(&disk);
    let at = key(1, 5, b"k");
    assert_eq!(read(&disk, &at), Ok(None));
    commits.write(vec![merge(&at, &value(2, b"two"))]).unwrap();
    commits.write(vec![merge(&at, &value(1, b"one"))]).unwrap();
    assert_eq!(read(&disk, &at), Ok(Some(value(2, b"two"))));
    assert_eq!(
        disk.query_cached(&Query::Record(at.clone())),
        Some(Ok(Found::Record(Some(value(2, b"two")))))
    );
    commits
        .write(vec![
            merge(&at, &value(3, b"")),
            merge(&at, &value(9, b"nine")),
        ])
        .unwrap();
    assert_eq!(read(&disk, &at), Ok(Some(value(9, b"nine"))));
    assert_eq!(read(&disk, &key(2, 5, b"k")), Ok(None));
    assert_eq!(read(&disk, &key(1, 6, b"k")), Ok(None));
}

fn a_tombstone_is_a_record(place: &impl Place) {
    let (disk, _) = place.open();
    let mut commits = Commits::of(&disk);
    let at = key(1, 5, b"k");
    commits
        .write(vec![merge(&at, &value(2, b"v")), merge(&at, &tombstone(3))])
        .unwrap();
    assert_eq!(read(&disk, &at), Ok(Some(tombstone(3))));
    assert!(!disk.is_empty().unwrap());
}

fn outcomes_come_once_each_in_order_per_shard(place: &impl Place) {
    let (disk, _) = place.open();
    let commits = Commits::of(&disk);
    let (shards, each) = (5_usize, 400_u64);
    for number in 0..each {
        for shard in 0..shards {
            let at = key(1, number, &[shard as u8]);
            let one = batch(vec![merge(&at, &value(1, b"v"))]);
            commits
                .committer
                .submit(shard, CommitId(number), one)
                .expect("room");
        }
    }
    let outcomes = commits.wait(shards * each as usize);
    for shard in 0..shards {
        let of_shard: Vec<_> = outcomes
            .iter()
            .filter(|(s, _)| *s == shard)
            .map(|(_, outcome)| *outcome)
            .collect();
        let expected: Vec<_> = (0..each).map(|number| (CommitId(number), Ok(()))).collect();
        assert_eq!(of_shard, expected);
    }
}

fn a_batch_sees_all_of_its_writes(place: &impl Place) {
    let (disk, _) = place.open();
    let mut commits = Commits::of(&disk);
    let at = key(1, 5, b"k");
    let writes = vec![
        merge(&at, &value(1, b"v")),
        Write::HintPut {
            at: hint_at(9, 1, 1),
            hint: hint(&at, &value(1, b"v")),
        },
        Write::StatePut {
            key: StateKey::Applied,
            value: Bytes::from_static(b"first"),
        },
        Write::StatePut {
            key: StateKey::Applied,
            value: Bytes::from_static(b"second"),
        },
        Write::StatePut {
            key: StateKey::Acceptor(ConfigVersion(9)),
            value: Bytes::from_static(b"gone"),
        },
        Write::StateDelete {
            key: StateKey::Acceptor(ConfigVersion(9)),
        },
    ];
    commits
        .commit(Batch {
            writes,
            sync: Sync::Fsync,
        })
        .unwrap();
    assert_eq!(read(&disk, &at), Ok(Some(value(1, b"v"))));
    assert_eq!(hints(&disk, 9, 1, 0, 10).len(), 1);
    assert_eq!(
        disk.state(StateKey::Applied).unwrap(),
        Some(Bytes::from_static(b"second"))
    );
    assert_eq!(
        disk.state(StateKey::Acceptor(ConfigVersion(9))).unwrap(),
        None
    );
}

fn list(
    disk: &impl Disk,
    first: u64,
    last: u64,
    after: Option<(Token, Bytes)>,
    prefix: &[u8],
    limit: usize,
) -> (Vec<Vec<u8>>, Option<(Token, Bytes)>) {
    let query = Query::Records {
        bucket: BucketId(7),
        first: Token(first),
        last: Token(last),
        after,
        prefix: Bytes::copy_from_slice(prefix),
        limit,
    };
    match disk.query(&query) {
        Ok(Found::Records { entries, reached }) => (
            entries
                .into_iter()
                .map(|(key, _)| key.key.to_vec())
                .collect(),
            reached,
        ),
        other => panic!("records were asked for, {other:?} came"),
    }
}

fn a_listing_walks_a_range_in_order_and_resumes(place: &impl Place) {
    let (disk, _) = place.open();
    let mut commits = Commits::of(&disk);
    let keys: [(u64, &[u8]); 6] = [
        (1, b"b"),
        (1, b"ba"),
        (2, b"a"),
        (3, b""),
        (3, b"\0"),
        (9, b"bz"),
    ];
    let writes = keys
        .iter()
        .rev()
        .map(|(token, k)| merge(&key(7, *token, k), &value(1, b"v")))
        .collect();
    commits.write(writes).unwrap();
    let expected: Vec<Vec<u8>> = keys.iter().map(|(_, k)| k.to_vec()).collect();
    assert_eq!(
        list(&disk, 0, u64::MAX, None, b"", 100),
        (expected.clone(), None)
    );
    for limit in 1..=6 {
        let (mut all, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let (page, reached) = list(&disk, 0, u64::MAX, after, b"", limit);
            assert!(page.len() <= limit);
            all.extend(page);
            pages += 1;
            assert!(pages < 20);
            match reached {
                Some(place) => after = Some(place),
                None => break,
            }
        }
        assert_eq!(all, expected, "limit {limit}");
    }
    assert_eq!(
        list(&disk, 0, u64::MAX, None, b"b", 100).0,
        vec![b"b".to_vec(), b"ba".to_vec(), b"bz".to_vec()]
    );
    assert_eq!(
        list(&disk, 2, 3, None, b"", 100).0,
        vec![b"a".to_vec(), b"".to_vec(), b"\0".to_vec()]
    );
    assert_eq!(
        list(
            &disk,
            2,
            2,
            Some((Token(1), Bytes::from_static(b"zz"))),
            b"",
            100
        )
        .0,
        vec![b"a".to_vec()]
    );
}

fn a_listing_looks_at_a_bounded_number_of_keys(place: &impl Place) {
    let (disk, _) = place.open();
    let mut commits = Commits::of(&disk);
    for chunk in 0..5_u64 {
        let writes = (0..1000_u64)
            .map(|n| merge(&key(7, chunk * 1000 + n, b"other"), &value(1, b"v")))
            .collect();
        commits.write(writes).unwrap();
    }
    commits
        .write(vec![merge(&key(7, 99_999, b"wanted"), &value(1, b"v"))])
        .unwrap();
    let (page, reached) = list(&disk, 0, u64::MAX, None, b"wanted", 10);
    assert_eq!(page, Vec::<Vec<u8>>::new());
    assert_eq!(reached, Some((Token(1999), Bytes::from_static(b"other"))));
    let (mut found, mut after, mut calls) = (Vec::new(), reached, 1);
    while let Some(place) = after {
        let (page, reached) = list(&disk, 0, u64::MAX, Some(place), b"wanted", 10);
        found.extend(page);
        (after, calls) = (reached, calls + 1);
    }
    assert_eq!((found, calls), (vec![b"wanted".to_vec()], 3));

    let large = vec![0; 1 << 20];
    commits
        .write(
            (0..10)
                .map(|n| merge(&key(8, n, b"k"), &value(1, &large)))
                .collect(),
        )
        .unwrap();
    let query = Query::Records {
        bucket: BucketId(8),
        first: Token(0),
        last: Token(u64::MAX),
        after: None,
        prefix: Bytes::new(),
        limit: 100,
    };
    let Ok(Found::Records { entries, reached }) = disk.query(&query) else {
        panic!("a page")
    };
    assert_eq!(
        (entries.len(), reached),
        (4, Some((Token(3), Bytes::from_static(b"k"))))
    );
}

fn a_listing_ends_with_its_bucket_and_its_last_token(place: &impl Place) {
    let (disk, _) = place.open();
    let mut commits = Commits::of(&disk);
    let places = [
        (6, u64::MAX),
        (7, 0),
        (7, u64::MAX),
        (8, 0),
        (u32::MAX, u64::MAX),
    ];
    commits
        .write(
            places
                .iter()
                .map(|(b, t)| merge(&key(*b, *t, b"k"), &value(1, b"v")))
                .collect(),
        )
        .unwrap();
    assert_eq!(
        list(&disk, 0, u64::MAX, None, b"", 100),
        (vec![b"k".to_vec(); 2], None)
    );
    assert_eq!(
        list(&disk, 0, 0, None, b"", 100),
        (vec![b"k".to_vec()], None)
    );
    assert_eq!(list(&disk, 1, u64::MAX - 1, None, b"", 100), (vec![], None));
    let after = Some((Token(u64::MAX), Bytes::from_static(b"k")));
    assert_eq!(list(&disk, 0, u64::MAX, after, b"", 100), (vec![], None));
    let last = Query::Records {
        bucket: BucketId(u32::MAX),
        first: Token(0),
        last: Token(u64::MAX),
        after: None,
        prefix: Bytes::new(),
        limit: 100,
    };
    let Ok(Found::Records {
        entries,
        reached: None,
    }) = disk.query(&last)
    else {
        panic!("the last bucket")
    };
    assert_eq!(entries.len(), 1);
}

fn hints_come_in_order_and_go_when_deleted(place: &impl Place) {
    let (disk, _) = place.open();
    let mut commits = Commits::of(&disk);
    let at = key(1, 5, b"k");
    let kept = |target, slot, seq: u64| Write::HintPut {
        at: hint_at(target, slot, seq),
        hint: hint(&at, &value(seq, b"v")),
    };
    commits
        .write(vec![
            kept(9, 1, 30),
            kept(9, 1, 10),
            kept(9, 1, 20),
            kept(9, 2, 1),
            kept(8, 1, 1),
            kept(10, 1, u64::MAX),
        ])
        .unwrap();
    let seqs = |target, slot, after, limit| -> Vec<u64> {
        hints(&disk, target, slot, after, limit)
            .iter()
            .map(|(at, _)| at.seq)
            .collect()
    };
    assert_eq!(seqs(9, 1, 0, 10), [10, 20, 30]);
    assert_eq!(seqs(9, 1, 10, 10), [20, 30]);
    assert_eq!(seqs(9, 1, 0, 2), [10, 20]);
    assert_eq!(seqs(10, 1, 0, 2), [u64::MAX]);
    assert_eq!(seqs(10, 1, u64::MAX, 2), [0_u64; 0]);
    assert_eq!(hints(&disk, 9, 1, 0, 1)[0].1, hint(&at, &value(10, b"v")));
    commits
        .write(vec![
            Write::HintDelete {
                at: hint_at(9, 1, 10),
            },
            Write::HintDelete {
                at: hint_at(9, 1, 77),
            },
        ])
        .unwrap();
    assert_eq!(seqs(9, 1, 0, 10), [20, 30]);
}

fn hints_are_counted_at_the_next_start(place: &impl Place) {
    let (disk, opened) = place.open();
    assert_eq!(opened.hints, []);
    let mut commits = Commits::of(&disk);
    let at = key(1, 5, b"some key");
    let counted = torc_protocol::store::Hint {
        counted: true,
        ..hint(&at, &value(1, b"value"))
    };
    let writes = vec![
        Write::HintPut {
            at: hint_at(9, 1, 10),
            hint: counted.clone(),
        },
        Write::HintPut {
            at: hint_at(9, 1, 11),
            hint: counted.clone(),
        },
        Write::HintPut {
            at: hint_at(9, 63, 5),
            hint: counted.clone(),
        },
    ];
    commits.write(writes).unwrap();
    drop(commits);
    place.close(disk);
    let (disk, opened) = place.open();
    let total = |slot, count, last_seq| HintTotal {
        target: NodeId(9),
        slot,
        count,
        counted: count,
        bytes: count * counted.weight(),
        last_seq,
    };
    assert_eq!(opened.hints, [total(1, 2, 11), total(63, 1, 5)]);
    assert_eq!(hints(&disk, 9, 63, 0, 9), [(hint_at(9, 63, 5), counted)]);
}

fn states_are_found_again_after_a_restart(place: &impl Place) {
    let (disk, _) = place.open();
    let mut commits = Commits::of(&disk);
    let put = |key, value: &'static [u8]| Write::StatePut {
        key,
        value: Bytes::from_static(value),
    };
    let writes = vec![
        put(StateKey::Identity, b"id"),
        put(StateKey::HlcBound(255), b"c"),
        put(StateKey::HlcBound(0), b"s0"),
        put(StateKey::PeerBound(NodeId(300)), b"p300"),
        put(StateKey::PeerBound(NodeId(2)), b"p2"),
        put(StateKey::Decided(ConfigVersion(256)), b"d256"),
        put(StateKey::Decided(ConfigVersion(1)), b""),
        put(StateKey::Acceptor(ConfigVersion(1)), b"a1"),
    ];
    commits
        .commit(Batch {
            writes,
            sync: Sync::Fsync,
        })
        .unwrap();
    drop(commits);
    place.close(disk);
    let (disk, _) = place.open();
    let bytes = Bytes::from_static;
    assert_eq!(disk.state(StateKey::Identity).unwrap(), Some(bytes(b"id")));
    assert_eq!(disk.state(StateKey::Applied).unwrap(), None);
    let decided = vec![
        (StateKey::Decided(ConfigVersion(1)), bytes(b"")),
        (StateKey::Decided(ConfigVersion(256)), bytes(b"d256")),
    ];
    assert_eq!(disk.states(States::Decided).unwrap(), decided);
    let peers = vec![
        (StateKey::PeerBound(NodeId(2)), bytes(b"p2")),
        (StateKey::PeerBound(NodeId(300)), bytes(b"p300")),
    ];
    assert_eq!(disk.states(States::PeerBound).unwrap(), peers);
    let own = vec![
        (StateKey::HlcBound(0), bytes(b"s0")),
        (StateKey::HlcBound(255), bytes(b"c")),
    ];
    assert_eq!(disk.states(States::HlcBound).unwrap(), own);
    assert_eq!(
        disk.states(States::Acceptor).unwrap(),
        vec![(StateKey::Acceptor(ConfigVersion(1)), bytes(b"a1"))]
    );
}

fn notes_of_changes_come_in_order_by_lane_and_outlast_a_restart(place: &impl Place) {
    let (disk, _) = place.open();
    let mut commits = Commits::of(&disk);
    let note = |lane, number: u64| Write::StatePut {
        key: StateKey::Change(lane, number),
        value: Bytes::from(format!("note {number}")),
    };
    assert_eq!(
        disk.count_changes(Lane::First).unwrap(),
        ChangeTotal::default()
    );
    for number in [256, 1, 7] {
        commits.write(vec![note(Lane::First, number)]).unwrap();
    }
    commits.write(vec![note(Lane::Later, 3)]).unwrap();
    let numbers = |disk: &_, after, limit| -> Vec<u64> {
        let found = Disk::changes(disk, Lane::First, after, limit).unwrap();
        found.into_iter().map(|(number, _)| number).collect()
    };
    assert_eq!(numbers(&disk, None, 9), [1, 7, 256]);
    assert_eq!(numbers(&disk, Some(1), 1), [7]);
    assert_eq!(numbers(&disk, Some(u64::MAX), 9), []);
    commits
        .write(vec![Write::StateDelete {
            key: StateKey::Change(Lane::First, 1),
        }])
        .unwrap();
    drop(commits);
    place.close(disk);
    let (disk, _) = place.open();
    assert_eq!(
        disk.changes(Lane::First, None, 1).unwrap(),
        [(7, Bytes::from_static(b"note 7"))]
    );
    let total = ChangeTotal {
        count: 2,
        last: 256,
    };
    assert_eq!(disk.count_changes(Lane::First).unwrap(), total);
    let total = ChangeTotal { count: 1, last: 3 };
    assert_eq!(disk.count_changes(Lane::Later).unwrap(), total);
    place.close(disk);
}

fn what_a_node_does_not_own_is_found_and_dropped_and_nothing_else(place: &impl Place) {
    const EACH: u64 = 1 << 60; // sixteen partitions
    let (disk, _) = place.open();
    let mut commits = Commits::of(&disk);
    let all: Vec<_> = [1, 2, u32::MAX]
        .into_iter()
        .flat_map(|bucket| (0..16).map(move |part| (bucket, part)))
        .flat_map(|(bucket, part)| {
            let tokens = [part * EACH, part * EACH + (EACH - 1)];
            tokens.map(|token| key(bucket, token, b"k"))
        })
        .collect();
    for at in &all {
        commits.write(vec![merge(at, &value(1, b"v"))]).unwrap();
    }
    let keeps = |bucket: BucketId, partition: PartitionId| bucket.0 == 1 && partition.0 % 4 != 3;
    let everything = |_, _| true;
    assert_eq!(disk.leftovers(10, &everything), Ok(vec![]));
    let found = disk.leftovers(100, &keeps).unwrap();
    assert_eq!(found.len(), 4 + 2, "a range for each stretch without a gap");
    assert_eq!(disk.leftovers(3, &keeps), Ok(found[..3].to_vec()));
    commits
        .write(found.into_iter().map(Write::Drop).collect())
        .unwrap();
    assert_eq!(disk.leftovers(100, &keeps), Ok(vec![]));
    place.close(disk);
    let (disk, _) = place.open();
    for at in &all {
        let kept = keeps(at.bucket, at.token.partition(4));
        let expected = kept.then(|| value(1, b"v"));
        assert_eq!(read(&disk, at), Ok(expected), "{at:?}");
    }
    let at = all.last().unwrap();
    Commits::of(&disk)
        .write(vec![merge(at, &value(1, b"again"))])
        .unwrap();
    assert_eq!(read(&disk, at), Ok(Some(value(1, b"again"))), "gained anew");
}

fn an_empty_store_says_so(place: &impl Place) {
    let (disk, _) = place.open();
    assert!(disk.is_empty().unwrap());
    let mut commits = Commits::of(&disk);
    let at = key(1, 5, b"k");
    commits
        .write(vec![Write::HintPut {
            at: hint_at(9, 1, 1),
            hint: hint(&at, &value(1, b"v")),
        }])
        .unwrap();
    assert!(!disk.is_empty().unwrap());
    commits
        .write(vec![Write::HintDelete {
            at: hint_at(9, 1, 1),
        }])
        .unwrap();
    assert!(disk.is_empty().unwrap());
    commits.write(vec![merge(&at, &value(1, b"v"))]).unwrap();
    assert!(!disk.is_empty().unwrap());
}

fn states_alone_leave_a_store_empty(place: &impl Place) {
    let (disk, _) = place.open();
    let mut commits = Commits::of(&disk);
    commits
        .write(vec![Write::StatePut {
            key: StateKey::Identity,
            value: Bytes::from_static(b"id"),
        }])
        .unwrap();
    assert!(disk.is_empty().unwrap());
}

fn concurrent_siblings_are_merged(place: &impl Place) {
    let (disk, _) = place.open();
    let mut commits = Commits::of(&disk);
    let at = key(1, 5, b"k");
    let mut expected = Siblings::default();
    for number in 1..=3_u64 {
        let mut set = Siblings::default();
        let dot = Dot {
            node: NodeId(number),
            epoch: 1,
            hlc: Hlc(number),
        };
        set.write(
            &Causal::new(),
            dot,
            Sibling {
                write: number.into(),
                expiry: None,
                content: None,
            },
        );
        expected.merge(set.clone());
        commits
            .write(vec![merge(&at, &set.to_record().unwrap())])
            .unwrap();
    }
    assert_eq!(read(&disk, &at), Ok(Some(expected.to_record().unwrap())));
}

fn what_can_never_be_merged_is_corrupt_and_stays_so(place: &impl Place) {
    let (disk, _) = place.open();
    let mut commits = Commits::of(&disk);
    let (at, other) = (key(1, 5, b"k"), key(1, 5, b"other"));
    commits
        .write(vec![
            merge(&at, &value(1, b"v")),
            merge(&other, &value(1, b"v")),
        ])
        .unwrap();
    commits.write(vec![merge(&at, &siblings())]).unwrap();
    let corrupt = Err(StoreError::Corrupt);
    assert_eq!(read(&disk, &at), corrupt);
    commits
        .write(vec![merge(&at, &value(7, b"newer"))])
        .unwrap();
    assert_eq!(read(&disk, &at), corrupt);
    assert_eq!(read(&disk, &other), Ok(Some(value(1, b"v"))));
    drop(commits);
    place.close(disk);
    let (disk, _) = place.open();
    assert_eq!(read(&disk, &at), corrupt);
    assert_eq!(read(&disk, &other), Ok(Some(value(1, b"v"))));
}

fn siblings() -> Record {
    let mut set = Siblings::default();
    let dot = Dot {
        node: NodeId(1),
        epoch: 1,
        hlc: Hlc(1),
    };
    set.write(
        &Causal::new(),
        dot,
        Sibling {
            write: 1,
            expiry: None,
            content: None,
        },
    );
    set.to_record().unwrap()
}

fn an_empty_batch_is_committed(place: &impl Place) {
    let (disk, _) = place.open();
    let mut commits = Commits::of(&disk);
    commits.write(vec![]).unwrap();
    commits
        .commit(Batch {
            writes: vec![],
            sync: Sync::Fsync,
        })
        .unwrap();
}

fn what_was_submitted_before_the_committer_ended_is_committed(place: &impl Place) {
    let (disk, _) = place.open();
    let mut commits = Commits::of(&disk);
    for number in 0..1000 {
        commits.submit(batch(vec![merge(&key(1, number, b"k"), &value(1, b"v"))]));
    }
    let Commits {
        committer,
        outcomes,
        ..
    } = commits;
    drop(committer);
    let mut done = 0;
    while let Ok(page) = outcomes.recv_timeout(PATIENCE) {
        done += page
            .into_iter()
            .filter(|(_, (_, outcome))| outcome.is_ok())
            .count();
    }
    assert_eq!(done, 1000);
    assert_eq!(read(&disk, &key(1, 999, b"k")), Ok(Some(value(1, b"v"))));
}

fn quietly(commits: &Commits, shard: usize, number: u64, batch: Batch) {
    commits
        .committer
        .submit_quietly(shard, CommitId(number), batch)
        .expect("room");
}

fn a_caller_commits_what_it_submitted(place: &impl Place) {
    let (disk, _) = place.open();
    let commits = Commits::of(&disk);
    let at = |number| key(1, number, b"k");
    for (shard, number) in [(0, 1), (1, 2), (0, 3)] {
        let one = batch(vec![merge(&at(number), &value(1, b"v"))]);
        quietly(&commits, shard, number, one);
    }
    assert_eq!(commits.committer.waiting(), 3);
    let mut outcomes = Vec::new();
    commits.committer.commit_here(0, &mut outcomes);
    assert_eq!(outcomes, [(CommitId(1), Ok(())), (CommitId(3), Ok(()))]);
    assert_eq!(commits.wait(1), [(1, (CommitId(2), Ok(())))]);
    for number in 1..=3 {
        assert_eq!(read(&disk, &at(number)), Ok(Some(value(1, b"v"))));
    }
    // With nothing to do, nothing is done.
    outcomes.clear();
    commits.committer.commit_here(0, &mut outcomes);
    assert_eq!(outcomes, []);
}

fn a_batch_that_is_to_be_synced_is_committed_all_the_same(place: &impl Place) {
    let (disk, _) = place.open();
    let commits = Commits::of(&disk);
    let at = |number| key(1, number, b"k");
    for number in 1..=2 {
        let mut one = batch(vec![merge(&at(number), &value(1, b"v"))]);
        if number == 2 {
            one.sync = Sync::Fsync;
        }
        quietly(&commits, 0, number, one);
    }
    let mut outcomes = Vec::new();
    commits.committer.commit_here(0, &mut outcomes);
    if outcomes.is_empty() {
        outcomes.extend(commits.wait(2).into_iter().map(|(_, outcome)| outcome));
    }
    assert_eq!(outcomes, [(CommitId(1), Ok(())), (CommitId(2), Ok(()))]);
    assert_eq!(read(&disk, &at(2)), Ok(Some(value(1, b"v"))));
}

fn callers_and_the_thread_commit_side_by_side(place: &impl Place) {
    let (disk, _) = place.open();
    let commits = Commits::of(&disk);
    let (shards, each) = (4_usize, 300_u64);
    let here: Vec<_> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..shards)
            .map(|shard| {
                let committer = commits.committer.clone();
                scope.spawn(move || {
                    let mut outcomes = Vec::new();
                    for number in 0..each {
                        let at = key(1, number, &[shard as u8]);
                        let one = batch(vec![merge(&at, &value(1, b"v"))]);
                        committer
                            .submit_quietly(shard, CommitId(number), one)
                            .expect("room");
                        if number % 3 == 0 {
                            committer.commit_there();
                        } else {
                            committer.commit_here(shard, &mut outcomes);
                        }
                    }
                    committer.commit_there();
                    (shard, outcomes)
                })
            })
            .collect();
        callers.into_iter().map(|c| c.join().unwrap()).collect()
    });
    let done: usize = here.iter().map(|(_, outcomes)| outcomes.len()).sum();
    let there = commits.wait(shards * each as usize - done);
    for (shard, outcomes) in here {
        let there = there.iter().filter(|(of, _)| *of == shard);
        let mut all: Vec<_> = outcomes
            .into_iter()
            .chain(there.map(|(_, outcome)| *outcome))
            .collect();
        all.sort_unstable_by_key(|(id, _)| id.0);
        let expected: Vec<_> = (0..each).map(|number| (CommitId(number), Ok(()))).collect();
        assert_eq!(all, expected);
    }
}

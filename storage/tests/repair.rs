//! What anti-entropy and transfer ask of every store, run on RocksDB and on its twin.

// Helpers of tests panic and print like tests.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use bytes::Bytes;
use torc_protocol::message::RecordKey;
use torc_protocol::store::{Found, Query, StateKey, Write};
use torc_protocol::version::Digest;
use torc_ring::{BucketId, PartitionId, Token};
use torc_storage::States;

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
    digests_come_in_order_by_pages_and_are_those_of_the_records
    pages_are_bounded_by_bytes_and_hold_at_least_one_record
    keys_are_read_by_name_and_those_that_are_not_there_left_out
    trees_are_found_until_they_are_deleted
}

type Place3 = (Token, Bytes, Digest);

fn digests(
    disk: &impl Disk,
    (first, last): (u64, u64),
    after: Option<(Token, Bytes)>,
    limit: usize,
) -> (Vec<Place3>, Option<(Token, Bytes)>) {
    let query = Query::Digests {
        bucket: BucketId(1),
        first: Token(first),
        last: Token(last),
        after,
        limit,
    };
    match disk.query(&query) {
        Ok(Found::Digests {
            entries,
            reached,
            bytes,
        }) => {
            assert_eq!(entries.is_empty(), bytes == 0, "what is read is counted");
            let entries = entries
                .into_iter()
                .map(|e| (e.token, e.key, e.digest))
                .collect();
            (entries, reached)
        }
        other => panic!("no digests: {other:?}"),
    }
}

fn digests_come_in_order_by_pages_and_are_those_of_the_records(place: &impl Place) {
    let (disk, _) = place.open();
    let mut commits = Commits::of(&disk);
    let mut expected: Vec<Place3> = Vec::new();
    for token in [3_u64, 5, 5, 7, 9, u64::MAX] {
        let name = format!("k{}", expected.len());
        let at = key(1, token, name.as_bytes());
        // Merged from two writes, of which the newer came first.
        let newest = value(9, name.as_bytes());
        commits.write(vec![merge(&at, &newest)]).unwrap();
        commits.write(vec![merge(&at, &value(2, b"old"))]).unwrap();
        expected.push((at.token, at.key.clone(), newest.digest()));
    }
    commits
        .write(vec![merge(&key(2, 5, b"another bucket"), &value(1, b"x"))])
        .unwrap();
    assert_eq!(
        digests(&disk, (0, u64::MAX), None, 100),
        (expected.clone(), None)
    );
    assert_eq!(
        digests(&disk, (5, 7), None, 100),
        (expected[1..4].to_vec(), None)
    );
    assert_eq!(digests(&disk, (10, 20), None, 100), (Vec::new(), None));
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let (page, reached) = digests(&disk, (0, u64::MAX), after, 2);
        assert!(page.len() <= 2);
        found.extend(page);
        match reached {
            Some(reached) => after = Some(reached),
            None => break,
        }
    }
    assert_eq!(found, expected);
}

fn pages_are_bounded_by_bytes_and_hold_at_least_one_record(place: &impl Place) {
    let (disk, _) = place.open();
    let mut commits = Commits::of(&disk);
    for token in 0..20 {
        let record = value(1, &[7; 1_000]);
        commits
            .write(vec![merge(&key(1, token, b"k"), &record)])
            .unwrap();
    }
    let page = |after: Option<(Token, Bytes)>, bytes| {
        let query = Query::Page {
            bucket: BucketId(1),
            first: Token(2),
            last: Token(18),
            after,
            bytes,
        };
        match disk.query(&query) {
            Ok(Found::Records { entries, reached }) => {
                let tokens: Vec<u64> = entries.iter().map(|(at, _)| at.token.0).collect();
                (tokens, reached)
            }
            other => panic!("no records: {other:?}"),
        }
    };
    let at = |token| Some((Token(token), Bytes::from_static(b"k")));
    assert_eq!(page(None, 2_000), (vec![2, 3], at(3)));
    assert_eq!(page(at(3), 1), (vec![4], at(4)), "one record however long");
    assert_eq!(page(at(16), 1 << 20), (vec![17, 18], None));
    assert_eq!(page(at(18), 1 << 20), (vec![], None));
}

fn keys_are_read_by_name_and_those_that_are_not_there_left_out(place: &impl Place) {
    let (disk, _) = place.open();
    let mut commits = Commits::of(&disk);
    for token in [1, 3, 5] {
        let record = value(1, &[7; 1_000]);
        commits
            .write(vec![merge(&key(1, token, b"k"), &record)])
            .unwrap();
    }
    let names: Vec<RecordKey> = (0..6).map(|token| key(1, token, b"k")).collect();
    let read = |bytes| match disk.query(&Query::Keys {
        keys: names.clone(),
        bytes,
    }) {
        Ok(Found::Records { entries, reached }) => {
            let tokens: Vec<u64> = entries.iter().map(|(at, _)| at.token.0).collect();
            (tokens, reached.map(|(token, _)| token.0))
        }
        other => panic!("no records: {other:?}"),
    };
    assert_eq!(read(1 << 20), (vec![1, 3, 5], None));
    assert_eq!(read(2_000), (vec![1, 3], Some(3)));
    assert_eq!(read(1), (vec![1], Some(1)));
}

fn trees_are_found_until_they_are_deleted(place: &impl Place) {
    let (disk, _) = place.open();
    let mut commits = Commits::of(&disk);
    let tree = |partition, bytes: &'static [u8]| {
        let at = StateKey::Tree(BucketId(3), PartitionId(partition));
        (at, Bytes::from_static(bytes))
    };
    let trees = vec![tree(4, b"four"), tree(700, b"")];
    for (key, value) in &trees {
        let (key, value) = (*key, value.clone());
        commits.write(vec![Write::StatePut { key, value }]).unwrap();
    }
    assert_eq!(disk.states(States::Tree).unwrap(), trees);
    let deletes = trees
        .iter()
        .map(|&(key, _)| Write::StateDelete { key })
        .collect();
    commits.write(deletes).unwrap();
    assert_eq!(disk.states(States::Tree).unwrap(), Vec::new());
    assert!(disk.is_empty().unwrap(), "trees are no records");
}

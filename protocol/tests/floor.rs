//! How tombstones and expired values are collected, and that nothing comes back afterwards: transcripts.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod nodes;

use bytes::Bytes;
use nodes::{A, B, C, Cluster, get, put, stored};
use torc_protocol::client::{ClientOp, Value};
use torc_protocol::floor::{FloorHeld, FloorStatus};
use torc_protocol::hlc::Hlc;
use torc_protocol::message::{Refusal, ReplyKind, WritePurpose};
use torc_protocol::record::{Parts, Record};
use torc_protocol::shard_io::Event;
use torc_protocol::time::SECOND;
use torc_protocol::version::Version;
use torc_ring::NodeId;

/// Long enough for several raises.
const WHILE: u64 = 60 * SECOND;

/// Three owners of one partition that collect what is older than five seconds.
fn cluster() -> Cluster {
    let mut cluster = Cluster::build(3, 0, |_, settings| {
        settings.floor_interval = 4 * SECOND;
        settings.floor_margin = 5 * SECOND;
        settings.antientropy_age_target = 20 * SECOND;
    });
    cluster.repair();
    cluster
}

fn delete(key: &[u8]) -> ClientOp {
    ClientOp::Put {
        key: Bytes::copy_from_slice(key),
        value: None,
        w: None,
        sloppy: None,
        fsync: false,
        context: None,
    }
}

fn delete_at(cluster: &mut Cluster, node: NodeId, key: &[u8]) {
    let request = cluster.client(node, delete(key));
    cluster.settle();
    assert!(stored(cluster.reply(request)).is_some(), "it is deleted");
}

fn read_at(cluster: &mut Cluster, node: NodeId, key: &[u8]) -> Option<Bytes> {
    let request = cluster.client(node, get(key));
    cluster.settle();
    cluster.found(request)
}

/// A value of a time before everything else.
fn old_value(value: &[u8]) -> Record {
    Record::value(Parts {
        version: Version {
            hlc: Hlc::from_micros(1_000),
            node: A,
        },
        expiry: None,
        content_type: b"",
        value,
    })
}

#[test]
fn a_tombstone_is_gone_from_every_disk_once_the_floor_has_passed() {
    let mut cluster = cluster();
    cluster.write(A, b"kept", b"v");
    cluster.write(A, b"gone", b"v");
    cluster.advance(SECOND);
    delete_at(&mut cluster, B, b"gone");
    assert!(cluster.stored(A, b"gone").is_some(), "a tombstone");
    cluster.advance(WHILE);
    for id in [A, B, C] {
        assert_eq!(cluster.stored(id, b"gone"), None, "node {id}");
        assert!(cluster.mark(id).floor > Hlc(0));
        assert_eq!(read_at(&mut cluster, id, b"gone"), None);
        assert_eq!(
            read_at(&mut cluster, id, b"kept").as_deref(),
            Some(&b"v"[..])
        );
    }
    cluster.write(C, b"gone", b"anew");
    cluster.advance(WHILE);
    assert_eq!(
        read_at(&mut cluster, A, b"gone").as_deref(),
        Some(&b"anew"[..])
    );
}

#[test]
fn an_expired_value_goes_when_its_version_and_its_expiry_are_below_the_floor() {
    let mut cluster = cluster();
    let mut op = put(b"short", b"v");
    if let ClientOp::Put { value, .. } = &mut op {
        *value = Some(Value {
            bytes: Bytes::from_static(b"v"),
            content_type: Bytes::new(),
            ttl_ms: Some(30_000),
        });
    }
    let request = cluster.client(A, op);
    cluster.settle();
    assert!(stored(cluster.reply(request)).is_some());
    cluster.advance(25 * SECOND);
    assert!(cluster.stored(B, b"short").is_some(), "still alive");
    cluster.advance(WHILE);
    for id in [A, B, C] {
        assert_eq!(cluster.stored(id, b"short"), None, "node {id}");
    }
}

#[test]
fn a_dead_owner_freezes_the_floor_and_misses_nothing() {
    let mut cluster = cluster();
    cluster.write(A, b"k", b"v");
    cluster.advance(WHILE);
    cluster.isolate(C);
    for id in [A, B] {
        cluster.believe_dead(id, &[C]);
    }
    delete_at(&mut cluster, A, b"k");
    cluster.advance(600 * SECOND);
    assert!(cluster.stored(A, b"k").is_some(), "the tombstone waits");
    assert_eq!(cluster.mark(A).floor, Hlc(0));
    assert_eq!(cluster.value(C, b"k").as_deref(), Some(&b"v"[..]));
    cluster.heal();
    for id in [A, B] {
        cluster.believe_dead(id, &[]);
    }
    cluster.advance(3 * WHILE);
    for id in [A, B, C] {
        assert_eq!(cluster.stored(id, b"k"), None, "node {id}");
    }
}

#[test]
fn a_shard_says_what_waits_to_be_collected_and_for_whom() {
    let mut cluster = cluster();
    delete_at(&mut cluster, A, b"k");
    cluster.advance(2 * SECOND);
    let young = cluster.floor_status(B);
    assert_eq!((young.young, young.due), (1, 0));
    assert_eq!(
        young.uncounted, 1,
        "what was there before is looked through later"
    );
    assert_eq!(young.lag_us, 0);
    cluster.isolate(C);
    for id in [A, B] {
        cluster.believe_dead(id, &[C]);
    }
    cluster.advance(600 * SECOND);
    let leads: Vec<FloorStatus> = [A, B].map(|id| cluster.floor_status(id)).into();
    for status in &leads {
        assert_eq!((status.young, status.due, status.collecting), (0, 1, 0));
        assert_eq!(status.partitions_due, 1);
        assert!(status.lag_us > 590 * SECOND, "{status:?}");
    }
    let held: Vec<&FloorHeld> = leads.iter().flat_map(|status| &status.held).collect();
    assert_eq!(held.len(), 1, "only the first owner leads");
    assert_eq!((held[0].step, held[0].reason), ("begin", "dead"));
    assert_eq!((held[0].node, held[0].partitions), (C, 1));
    assert!(held[0].since_us > 580 * SECOND);
    cluster.heal();
    for id in [A, B] {
        cluster.believe_dead(id, &[]);
    }
    cluster.advance(3 * WHILE);
    for id in [A, B, C] {
        let after = cluster.floor_status(id);
        let left = (after.young, after.due, after.collecting);
        assert_eq!(left, (0, 0, 0), "node {id}");
        assert!(after.held.is_empty() && after.lag_us == 0, "{after:?}");
    }
}

#[test]
fn what_is_older_than_the_close_comes_only_from_owners_with_the_floor() {
    let mut cluster = cluster();
    cluster.write(A, b"k", b"v");
    delete_at(&mut cluster, A, b"k");
    cluster.advance(WHILE);
    for purpose in [
        WritePurpose::Client,
        WritePurpose::Hint,
        WritePurpose::Repair,
    ] {
        let answer = cluster.ask_write(B, A, b"k", old_value(b"late"), purpose);
        assert_eq!(
            answer,
            Some(ReplyKind::Refused(Refusal::Closed)),
            "{purpose:?}"
        );
    }
    cluster.heal();
    assert_eq!(cluster.stored(B, b"k"), None);
}

#[test]
fn a_copy_that_lost_its_floor_is_nobodys_source_and_is_rebuilt() {
    let mut cluster = cluster();
    cluster.write(A, b"k", b"v");
    cluster.advance(SECOND);
    delete_at(&mut cluster, A, b"k");
    cluster.advance(WHILE);
    let floor = cluster.mark(A).floor;
    // An older file comes to light: what was deleted is there again, and the floor is known to be lost.
    cluster.plant(C, b"k", old_value(b"back"));
    cluster.lose_floor(C);
    cluster.restart_unconfigured(C);
    cluster.configure(C);
    cluster.settle();
    for id in [A, B, C] {
        assert_eq!(read_at(&mut cluster, id, b"k"), None, "read at {id}");
    }
    cluster.repair();
    cluster.advance(3 * WHILE);
    for id in [A, B, C] {
        assert_eq!(cluster.stored(id, b"k"), None, "node {id}");
    }
    assert!(cluster.mark(C).floor >= floor);
    let rebuilt = |event: &Event| matches!(event, Event::Rebuilt { .. });
    assert!(cluster.events(C).iter().any(rebuilt));
}

#[test]
fn closes_and_floors_outlive_a_crash() {
    let mut cluster = cluster();
    cluster.write(A, b"k", b"v");
    delete_at(&mut cluster, A, b"k");
    cluster.advance(WHILE);
    let before = cluster.mark(B);
    cluster.restart(B);
    cluster.advance(SECOND);
    let answer = cluster.ask_write(B, A, b"k", old_value(b"late"), WritePurpose::Client);
    assert_eq!(answer, Some(ReplyKind::Refused(Refusal::Closed)));
    assert!(cluster.mark(B).floor >= before.floor);
}

#[test]
fn a_floor_on_its_way_to_disk_is_not_overwritten_by_the_one_before_it() {
    let mut cluster = cluster();
    cluster.write(A, b"k", b"v");
    delete_at(&mut cluster, A, b"k");
    let raised = |event: &Event| matches!(event, Event::FloorRaised { .. });
    // B's disk is slow: while it stores a floor, all else that B does goes on, ticks as well.
    let mut before = Hlc(0);
    for _ in 0..2_000 {
        cluster.hold_commits(&[B]);
        cluster.advance(SECOND / 4);
        while cluster.commit(B, Ok(())).is_some() {
            assert!(cluster.mark(B).floor >= before, "it has fallen");
            before = cluster.mark(B).floor;
            cluster.settle();
        }
        if cluster
            .events(B)
            .iter()
            .filter(|event| raised(event))
            .count()
            >= 3
        {
            return;
        }
        delete_at_held(&mut cluster, b"k");
    }
    panic!("the floor does not rise");
}

/// Deletes a key while one owner's disk is slow: two others take it.
fn delete_at_held(cluster: &mut Cluster, key: &[u8]) {
    cluster.client(A, delete(key));
    cluster.settle();
}

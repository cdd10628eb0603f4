//! Floors and ring changes together: what new owners and stand-ins must take over. Transcripts.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod nodes;

use nodes::{A, B, C, Cluster, D, E, get};
use torc_protocol::floor::Mark;
use torc_protocol::hlc::Hlc;
use torc_protocol::message::{Refusal, ReplyKind};
use torc_protocol::record::{Parts, Record};
use torc_protocol::time::SECOND;
use torc_protocol::version::Version;
use torc_ring::{NodeId, RingVersion};

/// Five nodes, of which A, B and C own the one partition.
fn cluster() -> Cluster {
    let mut cluster = Cluster::build(5, 0, |_, settings| {
        settings.antientropy_age_target = 20 * SECOND;
    });
    cluster.repair();
    cluster.rings(&[A, B, C], None);
    cluster
}

fn record(micros: u64, value: &[u8]) -> Record {
    Record::value(Parts {
        version: Version {
            hlc: Hlc::from_micros(micros),
            node: A,
        },
        expiry: None,
        content_type: b"",
        value,
    })
}

/// An owner that has raised its floor to `floor`, after all have closed it.
fn raised(floor: Hlc) -> Mark {
    Mark {
        floor,
        close: floor,
        promise: floor,
    }
}

/// An owner that has closed `close`, and missed the end of the raise.
fn closed(close: Hlc) -> Mark {
    Mark {
        floor: Hlc(0),
        close,
        promise: close,
    }
}

fn covered(cluster: &Cluster, ring: RingVersion) -> Vec<NodeId> {
    let said = cluster.covered.iter().filter(|(_, of)| *of == ring);
    let mut nodes: Vec<NodeId> = said.map(|(node, _)| *node).collect();
    nodes.sort();
    nodes
}

#[test]
fn new_owners_take_over_the_floor_before_they_are_complete() {
    // A value was deleted, and its tombstone collected. C has lost a file: the value is there again, and its
    // floor is not.
    let mut cluster = cluster();
    let floor = Hlc::from_micros(1_000_000);
    cluster.set_mark(A, raised(floor));
    cluster.set_mark(B, raised(floor));
    cluster.plant(C, b"gone", record(1_000, b"back"));
    cluster.set_mark(C, closed(floor));
    for id in [A, B, C] {
        cluster.plant(id, b"kept", record(2_000, b"v"));
    }
    cluster.rings(&[A, B, C], Some(&[C, D, E]));
    cluster.advance(30 * SECOND);
    let ring = cluster.ring(A);
    assert_eq!(covered(&cluster, ring), cluster.ids());
    for id in [C, D, E] {
        assert_eq!(cluster.mark(id).floor, floor, "{id}");
        assert_eq!(cluster.value(id, b"gone"), None, "{id}");
        assert_eq!(
            cluster.value(id, b"kept").as_deref(),
            Some(&b"v"[..]),
            "{id}"
        );
    }
}

#[test]
fn a_floor_that_nobody_has_who_can_be_reached_does_not_hold_up_a_change() {
    // Of three owners that have compared their copies for a raise only A has raised its floor, and is dead.
    let mut cluster = cluster();
    let floor = Hlc::from_micros(1_000_000);
    cluster.set_mark(A, raised(floor));
    for id in [B, C] {
        cluster.set_mark(id, closed(floor));
    }
    for id in [A, B, C] {
        cluster.plant(id, b"kept", record(2_000, b"v"));
    }
    cluster.rings(&[A, B, C], Some(&[B, D, E]));
    cluster.isolate(A);
    cluster.advance(60 * SECOND);
    let ring = cluster.ring(B);
    for id in [B, D, E] {
        assert!(covered(&cluster, ring).contains(&id), "{id}");
        assert_eq!(
            cluster.value(id, b"kept").as_deref(),
            Some(&b"v"[..]),
            "{id}"
        );
        assert_eq!(cluster.mark(id).close, floor, "{id}");
    }
}

#[test]
fn new_owners_are_not_complete_before_they_know_the_closes() {
    let mut cluster = cluster();
    let floor = Hlc::from_micros(1_000_000);
    cluster.set_mark(A, raised(floor));
    for id in [B, C] {
        cluster.set_mark(id, closed(floor));
    }
    cluster.lose_floor_messages = true;
    cluster.rings(&[A, B, C], Some(&[A, D, E]));
    cluster.advance(30 * SECOND);
    let ring = cluster.ring(A);
    for id in [D, E] {
        assert!(!covered(&cluster, ring).contains(&id), "{id}");
    }
    cluster.lose_floor_messages = false;
    cluster.advance(10 * SECOND);
    assert_eq!(covered(&cluster, ring), cluster.ids());
    for id in [D, E] {
        assert_eq!(cluster.mark(id).close, floor, "{id}");
    }
}

#[test]
fn a_node_that_begins_to_stand_in_asks_how_far_the_owners_have_closed() {
    // The owners' clocks were ahead when they closed: its own says nothing about theirs.
    let mut cluster = cluster();
    cluster.rings(&[A, B, C, D, E], None);
    let (owners, stand_in) = cluster.placement(b"k");
    let micros = cluster.now.wall.0 + 5 * SECOND;
    for &id in &owners {
        cluster.set_mark(id, closed(Hlc::from_micros(micros)));
    }
    let late = record(micros - SECOND, b"late");
    let (from, target) = (owners[0], owners[2]);
    let mut ask =
        |record: &Record| cluster.ask_stand_in(stand_in, (from, target), b"k", record.clone());
    assert_eq!(ask(&late), Some(ReplyKind::Refused(Refusal::Inheriting)));
    assert_eq!(ask(&late), Some(ReplyKind::Refused(Refusal::Closed)));
    let later = record(micros + SECOND, b"later");
    assert_eq!(ask(&later), Some(ReplyKind::StoodIn));
}

#[test]
fn a_read_does_not_go_by_the_floor_of_an_answer_that_it_has_put_aside() {
    // A has raised its floor past a value that lives; B and C have missed the end of the raise. D has nothing yet.
    let mut cluster = cluster();
    let floor = Hlc::from_micros(1_000_000);
    cluster.set_mark(A, raised(floor));
    for id in [B, C] {
        cluster.set_mark(id, closed(floor));
    }
    for id in [A, B, C] {
        cluster.plant(id, b"k", record(2_000, b"v"));
    }
    cluster.hold_commits(&[D]);
    cluster.rings(&[A, B, C], Some(&[A, B, D]));
    cluster.believe_dead(D, &[C]);
    cluster.hold_reads(A);
    let request = cluster.client(D, get(b"k"));
    cluster.settle();
    while cluster.answer_read(A) {}
    // A's digest shows that copies differ; when it is asked for the value, its disk is slow.
    cluster.settle();
    cluster.release_commits(D);
    cluster.advance(SECOND);
    assert!(cluster.reply(request).is_some());
    assert_eq!(cluster.found(request).as_deref(), Some(&b"v"[..]));
}

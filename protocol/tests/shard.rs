//! Transcripts of the shard machine: whole nodes in memory, every message and every commit by hand.

mod nodes;

use bytes::Bytes;
use torc_protocol::client::{ClientError, ClientOp, ClientReply};
use torc_protocol::hlc::Hlc;
use torc_protocol::message::{
    PeerBody, PeerMessage, Refusal, Reply, ReplyKind, RequestKind, WritePurpose,
};
use torc_protocol::record::{Kind, Parts, Record};
use torc_protocol::shard_io::{Event, Input};
use torc_protocol::store::{StateKey, StoreError, Sync, Write};
use torc_protocol::time::{MS, SECOND};
use torc_protocol::version::Version;
use torc_ring::{NodeId, Quorum, ReadRepair, RingVersion};

use nodes::{A, B, C, Cluster, D, get, put, put_with, stored};

const KEY: &[u8] = b"k";

// ---- writes

#[test]
fn a_write_is_acknowledged_only_after_enough_commits() {
    let mut cluster = Cluster::new(3);
    cluster.hold_commits(&[A, B, C]);
    let write = cluster.client(A, put(KEY, b"v"));
    cluster.settle();
    assert_eq!(cluster.reply(write), None, "nobody has committed");
    cluster.commit(A, Ok(()));
    cluster.settle();
    assert_eq!(
        cluster.reply(write),
        None,
        "the coordinator's own replica is one of two"
    );
    cluster.commit(C, Ok(()));
    cluster.settle();
    assert!(matches!(
        cluster.reply(write),
        Some(ClientReply::Stored {
            superseded: false,
            ..
        })
    ));
    assert_eq!(cluster.stored(B, KEY), None, "the third may come later");
    cluster.commit(B, Ok(()));
    cluster.settle();
    assert_eq!(cluster.value(B, KEY).as_deref(), Some(&b"v"[..]));
    assert_eq!(cluster.hints_waiting(A), 0, "nobody missed it");
}

#[test]
fn nothing_is_sent_when_too_few_owners_are_alive() {
    let mut cluster = Cluster::new(3);
    cluster.believe_dead(A, &[C]);
    let write = cluster.client(A, put_with(KEY, b"v", Quorum::All));
    let read = cluster.client(
        A,
        ClientOp::Get {
            key: Bytes::from_static(KEY),
            r: Some(Quorum::All),
        },
    );
    let error = ClientError::Unavailable {
        required: 3,
        alive: 2,
    };
    assert_eq!(cluster.reply(write), Some(ClientReply::Failed(error)));
    assert_eq!(cluster.reply(read), Some(ClientReply::Failed(error)));
    cluster.settle();
    assert_eq!(cluster.sent, 0);
    assert_eq!(cluster.stored(A, KEY), None);
}

#[test]
fn a_write_that_misses_its_quorum_says_how_many_came_and_that_it_may_take_effect() {
    let mut cluster = Cluster::new(3);
    cluster.cut(A, B);
    cluster.cut(A, C);
    let write = cluster.client(A, put(KEY, b"v"));
    cluster.settle();
    cluster.advance(1_900 * MS);
    assert_eq!(cluster.reply(write), None);
    cluster.advance(200 * MS);
    let error = ClientError::Quorum {
        required: 2,
        received: 1,
        maybe_applied: true,
    };
    assert_eq!(cluster.reply(write), Some(ClientReply::Failed(error)));
    assert_eq!(
        cluster.hints_waiting(A),
        2,
        "one owner has it, so the others shall get it"
    );
}

#[test]
fn a_write_that_every_owner_refuses_says_that_it_has_no_effect() {
    let mut cluster = Cluster::new(3);
    cluster.hold_commits(&[A, B, C]);
    let write = cluster.client(A, put_with(KEY, b"v", Quorum::One));
    for node in [A, B, C] {
        cluster.settle();
        cluster.commit(node, Err(StoreError::Full));
    }
    cluster.settle();
    let error = ClientError::DiskFull {
        required: 1,
        received: 0,
        maybe_applied: false,
    };
    assert_eq!(cluster.reply(write), Some(ClientReply::Failed(error)));
    assert_eq!(cluster.hints_waiting(A), 0);
}

#[test]
fn a_disk_that_fails_in_the_middle_of_a_write_leaves_its_outcome_open() {
    let mut cluster = Cluster::new(1);
    cluster.hold_commits(&[A]);
    let write = cluster.client(A, put(KEY, b"v"));
    cluster.settle();
    cluster.commit(A, Err(StoreError::Failed));
    cluster.settle();
    let error = ClientError::Quorum {
        required: 1,
        received: 0,
        maybe_applied: true,
    };
    assert_eq!(cluster.reply(write), Some(ClientReply::Failed(error)));
}

#[test]
fn a_write_that_lost_to_a_newer_one_is_told_so() {
    let mut cluster = Cluster::new(3);
    let far = Version {
        hlc: Hlc::from_micros(cluster.now.wall.0 + 30 * SECOND),
        node: NodeId(99),
    };
    let newer = Record::value(Parts {
        version: far,
        expiry: None,
        content_type: b"",
        value: b"newer",
    });
    for node in [A, B, C] {
        cluster.plant(node, KEY, newer.clone());
    }
    let write = cluster.client(A, put(KEY, b"older"));
    cluster.settle();
    assert!(matches!(
        cluster.reply(write),
        Some(ClientReply::Stored {
            superseded: true,
            ..
        })
    ));
    assert_eq!(cluster.stored(B, KEY), Some(newer));
}

#[test]
fn a_superseded_write_that_asks_for_an_fsync_is_not_acknowledged_from_memory() {
    let mut cluster = Cluster::new(1);
    let far = Version {
        hlc: Hlc::from_micros(cluster.now.wall.0 + 30 * SECOND),
        node: NodeId(99),
    };
    cluster.plant(A, KEY, Record::tombstone(far));
    cluster.hold_commits(&[A]);
    let mut op = put(KEY, b"older");
    if let ClientOp::Put { fsync, .. } = &mut op {
        *fsync = true;
    }
    let write = cluster.client(A, op);
    cluster.settle();
    assert_eq!(cluster.reply(write), None);
    assert_eq!(cluster.commit(A, Ok(())), Some(Sync::Fsync));
    cluster.settle();
    assert!(matches!(
        cluster.reply(write),
        Some(ClientReply::Stored {
            superseded: true,
            ..
        })
    ));
}

#[test]
fn a_write_with_a_context_orders_after_what_its_author_saw() {
    let mut cluster = Cluster::new(3);
    let seen = Version {
        hlc: Hlc::from_micros(cluster.now.wall.0 + 7 * SECOND),
        node: NodeId(99),
    };
    let mut op = put(KEY, b"after");
    if let ClientOp::Put { context, .. } = &mut op {
        *context = Some(seen);
    }
    let write = cluster.client(A, op.clone());
    cluster.settle();
    assert!(stored(cluster.reply(write)).is_some_and(|digest| digest.version > seen));
    if let ClientOp::Put { context, .. } = &mut op {
        *context = Some(Version {
            hlc: Hlc::from_micros(cluster.now.wall.0 + 61 * SECOND),
            node: A,
        });
    }
    let write = cluster.client(A, op);
    assert_eq!(
        cluster.reply(write),
        Some(ClientReply::Failed(ClientError::ContextFromFuture))
    );
}

#[test]
fn a_duplicated_ack_is_one_ack() {
    let mut cluster = Cluster::new(3);
    cluster.cut(A, C);
    cluster.hold_commits(&[A]);
    let write = cluster.client(A, put(KEY, b"v"));
    cluster.duplicate = true;
    cluster.settle();
    assert_eq!(
        cluster.reply(write),
        None,
        "B's ack came twice, which makes one of two"
    );
}

// ---- reads

#[test]
fn a_read_asks_for_one_value_and_otherwise_digests() {
    let mut cluster = Cluster::new(3);
    cluster.write(A, KEY, b"v");
    let before = cluster.sent;
    let read = cluster.client(A, get(KEY));
    cluster.settle();
    assert_eq!(cluster.found(read).as_deref(), Some(&b"v"[..]));
    assert_eq!(
        cluster.sent - before,
        2,
        "one question to one peer, one answer; its own replica costs nothing"
    );
    let replica = cluster
        .events(B)
        .iter()
        .chain(cluster.events(C))
        .any(|event| {
            matches!(
                event,
                Event::Replica {
                    op: "digest",
                    outcome: "ok",
                    ..
                }
            )
        });
    assert!(replica, "the second owner was asked for its digest only");
}

#[test]
fn owners_that_differ_are_mended_before_the_answer() {
    let mut cluster = Cluster::new(3);
    cluster.write(A, KEY, b"old");
    cluster.advance(MS);
    let newer = cluster.record(9, b"new");
    cluster.plant(B, KEY, newer.clone());
    cluster.cut(A, C);
    cluster.hold_commits(&[A]);
    let read = cluster.client(A, get(KEY));
    cluster.settle();
    assert_eq!(
        cluster.reply(read),
        None,
        "only one owner has the new value: it is written back first"
    );
    cluster.commit(A, Ok(()));
    cluster.settle();
    assert_eq!(cluster.found(read).as_deref(), Some(&b"new"[..]));
    assert_eq!(cluster.stored(A, KEY), Some(newer));
    let repairs = cluster.events(A).iter().filter(|e| {
        matches!(
            e,
            Event::ReadRepair {
                mode: ReadRepair::Blocking
            }
        )
    });
    assert_eq!(repairs.count(), 1);
}

#[test]
fn a_read_of_nothing_is_found_empty() {
    let mut cluster = Cluster::new(3);
    let read = cluster.client(B, get(KEY));
    cluster.settle();
    assert!(matches!(
        cluster.reply(read),
        Some(ClientReply::Found { record: None, .. })
    ));
}

#[test]
fn a_deleted_key_is_found_as_a_tombstone() {
    let mut cluster = Cluster::new(3);
    cluster.write(A, KEY, b"v");
    let delete = ClientOp::Put {
        key: Bytes::from_static(KEY),
        value: None,
        w: None,
        sloppy: None,
        fsync: false,
        context: None,
    };
    cluster.client(B, delete);
    cluster.settle();
    let read = cluster.client(C, get(KEY));
    cluster.settle();
    let Some(ClientReply::Found {
        record: Some(record),
        now_micros,
    }) = cluster.reply(read)
    else {
        panic!("a tombstone is a state")
    };
    assert_eq!(record.kind(), Kind::Tombstone);
    assert!(!record.is_visible(now_micros));
}

#[test]
fn a_slow_replica_is_overtaken_by_the_next_one() {
    let mut cluster = Cluster::new(3);
    cluster.write(A, KEY, b"v");
    // Whoever is asked first besides A does not answer.
    cluster.cut(A, B);
    let read = cluster.client(A, get(KEY));
    cluster.settle();
    let waited = cluster.reply(read).is_none();
    cluster.advance(600 * MS);
    assert_eq!(cluster.found(read).as_deref(), Some(&b"v"[..]));
    let hedged = cluster.events(A).contains(&Event::Hedged);
    assert_eq!(
        waited, hedged,
        "one replica more was asked exactly when the first was slow"
    );
    assert!(waited, "B is asked before C: equal latency, lower id");
}

#[test]
fn a_read_without_answers_fails_at_its_deadline_with_numbers() {
    let mut cluster = Cluster::new(3);
    cluster.cut(A, B);
    cluster.cut(A, C);
    let read = cluster.client(A, get(KEY));
    cluster.settle();
    cluster.advance(2_001 * MS);
    let error = ClientError::Quorum {
        required: 2,
        received: 1,
        maybe_applied: false,
    };
    assert_eq!(cluster.reply(read), Some(ClientReply::Failed(error)));
}

#[test]
fn a_value_is_invisible_once_its_time_to_live_is_over() {
    let mut cluster = Cluster::new(3);
    let mut op = put(KEY, b"v");
    if let ClientOp::Put {
        value: Some(value), ..
    } = &mut op
    {
        value.ttl_ms = Some(1_000);
    }
    cluster.client(A, op);
    cluster.settle();
    cluster.advance(900 * MS);
    let read = cluster.client(A, get(KEY));
    cluster.settle();
    assert_eq!(cluster.found(read).as_deref(), Some(&b"v"[..]));
    cluster.advance(200 * MS);
    let read = cluster.client(A, get(KEY));
    cluster.settle();
    assert_eq!(cluster.found(read), None);
}

// ---- hints

#[test]
fn a_dead_owner_gets_its_hint_when_it_is_alive_and_the_hint_goes_after_the_ack() {
    let mut cluster = Cluster::new(3);
    for node in [A, B] {
        cluster.believe_dead(node, &[C]);
    }
    cluster.isolate(C);
    cluster.write(A, KEY, b"v");
    assert_eq!(cluster.hints_on_disk(A), 1);
    cluster.advance(3 * SECOND);
    assert_eq!(cluster.hints_on_disk(A), 1, "it is dead: nothing is tried");

    cluster.heal();
    cluster.hold_commits(&[C]);
    cluster.believe_dead(A, &[]);
    cluster.settle();
    cluster.advance(SECOND);
    assert_eq!(cluster.hints_on_disk(A), 1, "sent, but not acknowledged");
    cluster.commit(C, Ok(()));
    cluster.settle();
    cluster.advance(SECOND);
    assert_eq!(cluster.value(C, KEY).as_deref(), Some(&b"v"[..]));
    assert_eq!(cluster.hints_on_disk(A), 0);
    assert_eq!(cluster.books(A), (1, 0, 0), "delivered, dropped, waiting");
}

#[test]
fn a_hint_whose_removal_fails_is_delivered_again_and_counted_once() {
    let mut cluster = Cluster::new(3);
    cluster.believe_dead(A, &[C]);
    cluster.write(A, KEY, b"v");
    cluster.hold_commits(&[A]);
    cluster.believe_dead(A, &[]);
    cluster.settle();
    cluster.commit(A, Err(StoreError::Full));
    cluster.settle();
    assert_eq!(cluster.books(A), (0, 0, 1));
    cluster.release_commits(A);
    cluster.advance(3 * SECOND);
    assert_eq!(cluster.books(A), (1, 0, 0));
    assert_eq!(cluster.hints_on_disk(A), 0);
}

#[test]
fn a_hint_that_is_committed_while_the_disk_is_being_read_is_not_forgotten() {
    let mut cluster = Cluster::new(3);
    cluster.believe_dead(A, &[C]);
    cluster.cut(A, C);
    cluster.write(A, KEY, b"1");
    assert_eq!(cluster.hints_on_disk(A), 1);
    // The target comes back for a moment: the first hint is delivered, and its slot empties.
    cluster.heal();
    cluster.believe_dead(A, &[]);
    cluster.advance(SECOND);
    assert_eq!(cluster.hints_on_disk(A), 0);

    // A second hint is on its way to disk when the target comes back: the disk answers from before it.
    cluster.believe_dead(A, &[C]);
    cluster.write_holding_hint(A, KEY, b"2");
    cluster.hold_reads(A);
    cluster.believe_dead(A, &[]);
    cluster.settle();
    cluster.snapshot_reads(A);
    cluster.release_commits(A);
    cluster.settle();
    cluster.release_reads(A);
    cluster.advance(5 * SECOND);
    assert_eq!(
        cluster.hints_on_disk(A),
        0,
        "the second hint was delivered too"
    );
    assert_eq!(cluster.value(C, KEY).as_deref(), Some(&b"2"[..]));
}

#[test]
fn hints_beyond_their_bound_are_dropped_and_counted() {
    let mut cluster = Cluster::with(3, |_, settings| settings.hint_bytes_max = 150);
    cluster.believe_dead(A, &[C]);
    for at in 0..3_u8 {
        cluster.write(A, &[b'k', at], b"v");
    }
    assert_eq!(cluster.books(A), (0, 2, 1));
    let dropped = cluster.events(A).iter().filter(|e| {
        matches!(
            e,
            Event::HintsDropped {
                reason: "bytes",
                count: 1,
                target: C,
                ..
            }
        )
    });
    assert_eq!(dropped.count(), 2);
}

#[test]
fn a_corrupt_hint_is_dropped_and_counted_and_does_not_hold_up_those_behind_it() {
    let mut cluster = Cluster::new(3);
    cluster.believe_dead(A, &[C]);
    // Of one key, so that all lie in one slot.
    for value in [&b"1"[..], b"2", b"3"] {
        cluster.write(A, KEY, value);
    }
    cluster.damage_oldest_hint(A);
    cluster.believe_dead(A, &[]);
    cluster.advance(3 * SECOND);
    assert_eq!(cluster.books(A), (2, 1, 0));
    assert_eq!(cluster.hints_on_disk(A), 0);
    assert_eq!(cluster.stored(C, KEY), cluster.stored(A, KEY));
    let named = cluster.events(A).iter().any(|event| {
        matches!(
            event,
            Event::HintsDropped {
                reason: "corrupt",
                count: 1,
                target: C,
                ..
            }
        )
    });
    assert!(named, "the log and a counter say so");
}

#[test]
fn hints_that_are_too_old_are_dropped_and_counted() {
    let mut cluster = Cluster::with(3, |_, settings| settings.hint_age_max = 10 * SECOND);
    cluster.believe_dead(A, &[C]);
    cluster.write(A, KEY, b"v");
    cluster.advance(11 * SECOND);
    cluster.believe_dead(A, &[]);
    cluster.advance(SECOND);
    assert_eq!(cluster.books(A), (0, 1, 0));
    assert_eq!(cluster.stored(C, KEY), None);
}

#[test]
fn hints_survive_a_restart() {
    let mut cluster = Cluster::new(3);
    cluster.believe_dead(A, &[C]);
    cluster.write(A, KEY, b"v");
    cluster.restart(A);
    cluster.advance(2 * SECOND);
    assert_eq!(cluster.value(C, KEY).as_deref(), Some(&b"v"[..]));
    assert_eq!(cluster.hints_on_disk(A), 0);
}

#[test]
fn an_owner_that_is_slow_gets_a_hint() {
    let mut cluster = Cluster::new(3);
    cluster.cut(A, C);
    let write = cluster.client(A, put(KEY, b"v"));
    cluster.settle();
    assert!(stored(cluster.reply(write)).is_some());
    assert_eq!(cluster.hints_waiting(A), 0, "it may still answer");
    cluster.advance(1_100 * MS);
    assert_eq!(cluster.hints_waiting(A), 1);
}

#[test]
fn without_a_config_no_hint_is_judged() {
    let mut cluster = Cluster::new(3);
    cluster.believe_dead(A, &[C]);
    cluster.write(A, KEY, b"v");
    cluster.restart_unconfigured(A);
    cluster.input(A, Input::Serve);
    cluster.advance(2 * SECOND);
    assert_eq!(cluster.hints_on_disk(A), 1);
}

// ---- sloppy quorums

fn sloppy(key: &[u8], value: &'static [u8], w: Quorum) -> ClientOp {
    let mut op = put_with(key, value, w);
    if let ClientOp::Put { sloppy, .. } = &mut op {
        *sloppy = Some(true);
    }
    op
}

#[test]
fn a_stand_in_counts_once_its_hint_is_durable_and_hands_it_over() {
    let mut cluster = Cluster::new(4);
    let (owners, stand_in) = cluster.placement(KEY);
    let (coordinator, dead) = (owners[0], owners[2]);
    for node in [A, B, C, D] {
        cluster.believe_dead(node, &[dead]);
    }
    cluster.isolate(dead);
    cluster.hold_commits(&[stand_in]);
    let write = cluster.client(coordinator, sloppy(KEY, b"v", Quorum::All));
    cluster.settle();
    assert_eq!(cluster.hints_on_disk(stand_in), 0);
    // What the owners had closed before it could stand in is on disk first.
    assert_eq!(cluster.commit(stand_in, Ok(())), Some(Sync::Fsync));
    cluster.advance(50 * MS);
    assert_eq!(cluster.reply(write), None);
    assert_eq!(cluster.commit(stand_in, Ok(())), Some(Sync::Fsync));
    cluster.settle();
    assert!(stored(cluster.reply(write)).is_some());
    assert_eq!(cluster.hints_on_disk(stand_in), 1);
    assert_eq!(cluster.hints_on_disk(coordinator), 0, "one hint is enough");
    cluster.release_commits(stand_in);
    cluster.heal();
    cluster.believe_dead(stand_in, &[]);
    cluster.advance(SECOND);
    assert_eq!(cluster.value(dead, KEY).as_deref(), Some(&b"v"[..]));
    assert_eq!(cluster.hints_on_disk(stand_in), 0);
}

#[test]
fn a_stand_in_with_an_older_ring_is_asked_again_as_a_stand_in() {
    let mut cluster = Cluster::new(4);
    let (owners, stand_in) = cluster.placement(KEY);
    let (coordinator, dead) = (owners[0], owners[2]);
    for node in [A, B, C, D] {
        cluster.believe_dead(node, &[dead]);
    }
    for node in [coordinator, owners[1]] {
        cluster.raise_ring(node);
    }
    let write = cluster.client(coordinator, sloppy(KEY, b"v", Quorum::All));
    cluster.settle();
    assert_eq!(cluster.reply(write), None);
    cluster.raise_ring(stand_in);
    cluster.advance(100 * MS);
    assert!(stored(cluster.reply(write)).is_some());
}

// ---- ring versions

#[test]
fn a_write_starts_again_under_a_newer_ring_with_the_same_version_and_no_acks() {
    let mut cluster = Cluster::new(3);
    cluster.hold_commits(&[A, B, C]);
    let write = cluster.client(A, put(KEY, b"v"));
    cluster.settle();
    cluster.commit(A, Ok(()));
    cluster.settle();
    let version = cluster.stored(A, KEY).map(|record| record.version());
    for node in [A, B, C] {
        cluster.raise_ring(node);
    }
    cluster.settle();
    // B's ack speaks of the old ring; it would be the second of two.
    cluster.commit(B, Ok(()));
    cluster.settle();
    assert_eq!(cluster.reply(write), None);
    for node in [A, B, C] {
        cluster.release_commits(node);
    }
    cluster.settle();
    assert_eq!(
        stored(cluster.reply(write)).map(|digest| digest.version),
        version
    );
}

#[test]
fn a_write_that_was_sent_under_an_earlier_ring_never_claims_to_have_no_effect() {
    let mut cluster = Cluster::new(1);
    cluster.hold_commits(&[A]);
    let write = cluster.client(A, put(KEY, b"v"));
    cluster.settle();
    cluster.raise_ring(A);
    cluster.settle();
    cluster.commit(A, Ok(()));
    cluster.settle();
    cluster.commit(A, Err(StoreError::Full));
    cluster.settle();
    let error = ClientError::DiskFull {
        required: 1,
        received: 0,
        maybe_applied: true,
    };
    assert_eq!(cluster.reply(write), Some(ClientReply::Failed(error)));
}

#[test]
fn replicas_of_another_ring_version_are_waited_for() {
    let mut cluster = Cluster::new(3);
    cluster.raise_ring(A);
    let write = cluster.client(A, put(KEY, b"v"));
    let read = cluster.client(A, get(KEY));
    cluster.settle();
    assert_eq!((cluster.reply(write), cluster.reply(read)), (None, None));
    cluster.raise_ring(B);
    cluster.advance(600 * MS);
    assert!(stored(cluster.reply(write)).is_some());
    assert!(cluster.reply(read).is_some());
}

#[test]
fn a_coordinator_behind_is_told_of_the_newer_config() {
    let mut cluster = Cluster::new(3);
    cluster.raise_ring(B);
    let write = cluster.client(A, put_with(KEY, b"v", Quorum::All));
    cluster.settle();
    assert!(cluster.newer.contains(&(A, B)), "A shall fetch from B");
    assert_eq!(cluster.reply(write), None);
    cluster.raise_ring(A);
    cluster.raise_ring(C);
    cluster.settle();
    assert!(stored(cluster.reply(write)).is_some());
}

#[test]
fn a_shard_says_when_the_writes_of_older_rings_are_over() {
    let mut cluster = Cluster::new(3);
    cluster.hold_commits(&[B]);
    cluster.client(A, put(KEY, b"v"));
    cluster.settle();
    cluster.raise_ring(B);
    cluster.settle();
    assert!(!cluster.drained.contains(&(B, cluster.ring(B))));
    cluster.commit(B, Ok(()));
    cluster.settle();
    assert!(cluster.drained.contains(&(B, cluster.ring(B))));
}

#[test]
fn an_old_config_that_comes_late_does_not_take_the_ring_back() {
    let mut cluster = Cluster::new(3);
    let old = cluster.view(A);
    cluster.raise_ring(A);
    let ring = cluster.ring(A);
    cluster.input(A, Input::Config(old));
    let write = cluster.client(A, put_with(KEY, b"v", Quorum::One));
    cluster.settle();
    assert!(
        cluster.sent_rings.iter().all(|&sent| sent == ring),
        "requests carry the newer ring version"
    );
    assert!(stored(cluster.reply(write)).is_some());
}

#[test]
fn a_hint_acknowledged_under_an_older_ring_is_delivered_again() {
    let mut cluster = Cluster::new(3);
    cluster.believe_dead(A, &[C]);
    cluster.write(A, KEY, b"v");
    cluster.hold_commits(&[C]);
    cluster.believe_dead(A, &[]);
    cluster.settle();
    for node in [A, B, C] {
        cluster.raise_ring(node);
    }
    cluster.commit(C, Ok(()));
    cluster.settle();
    assert_eq!(cluster.hints_on_disk(A), 1);
    cluster.release_commits(C);
    cluster.advance(3 * SECOND);
    assert_eq!(cluster.hints_on_disk(A), 0);
}

#[test]
fn a_node_that_stops_writes_down_what_slow_owners_lack() {
    let mut cluster = Cluster::new(3);
    cluster.hold_commits(&[C]);
    let write = cluster.client(A, put(KEY, b"v"));
    cluster.settle();
    assert!(
        stored(cluster.reply(write)).is_some(),
        "two of three have it"
    );
    assert_eq!(cluster.hints_on_disk(A), 0, "the third may still answer");
    cluster.input(A, Input::Stop);
    cluster.settle();
    assert_eq!(cluster.hints_on_disk(A), 1);
}

// ---- clocks

#[test]
fn nothing_is_minted_before_the_clocks_bound_is_durable() {
    let mut cluster = Cluster::new(1);
    cluster.now.wall.0 += 2 * SECOND;
    cluster.restart_unconfigured(A);
    cluster.hold_commits(&[A]);
    cluster.configure(A);
    let write = cluster.client(A, put(KEY, b"v"));
    cluster.settle();
    assert_eq!(
        cluster.waiting_writes(A).len(),
        1,
        "only the bound is on its way to disk"
    );
    assert!(matches!(
        cluster.waiting_writes(A)[0],
        Write::StatePut {
            key: StateKey::HlcBound(0),
            ..
        }
    ));
    assert_eq!(cluster.commit(A, Ok(())), Some(Sync::Fsync));
    cluster.release_commits(A);
    cluster.settle();
    assert!(stored(cluster.reply(write)).is_some());
}

#[test]
fn a_request_that_waited_for_the_bound_in_vain_is_answered() {
    let mut cluster = Cluster::new(1);
    cluster.restart_unconfigured(A);
    cluster.hold_commits(&[A]);
    cluster.configure(A);
    let write = cluster.client(A, put(KEY, b"v"));
    cluster.advance(2_300 * MS);
    assert_eq!(
        cluster.reply(write),
        Some(ClientReply::Failed(ClientError::Overloaded))
    );
    assert_eq!(cluster.open(A), 0);
}

#[test]
fn a_bound_that_a_slow_disk_has_let_pass_serves_the_writes_that_waited_for_it() {
    let mut cluster = Cluster::new(3);
    // Nobody has written for long: the bound has passed, and the disk takes longer than it reaches.
    cluster.advance(60 * SECOND);
    cluster.hold_commits(&[A]);
    let begun = cluster.now.wall;
    let write = cluster.client(A, put(KEY, b"v"));
    cluster.advance(1_500 * MS);
    assert_eq!(cluster.commit(A, Ok(())), Some(Sync::Fsync), "the bound");
    cluster.settle();
    let version = stored(cluster.reply(write)).expect("stored").version;
    assert!(
        version.hlc.micros() >= begun.0,
        "after all that was acknowledged before"
    );
    assert!(version.hlc < cluster.durable_bound(A));
}

#[test]
fn writes_go_on_though_each_commit_takes_longer_than_a_bound_reaches() {
    let mut cluster = Cluster::new(3);
    cluster.advance(60 * SECOND);
    cluster.hold_commits(&[A]);
    for round in 0..8 {
        let write = cluster.client(A, put(KEY, b"v"));
        cluster.settle();
        let begun = cluster.waiting_commits(A);
        cluster.advance(1_100 * MS);
        // Others go on, and A hears of later times than its own bound.
        cluster.write(B, b"other", b"v");
        for _ in 0..begun {
            cluster.commit(A, Ok(()));
        }
        cluster.settle();
        let reply = cluster.reply(write);
        // What was never slow before is a surprise once.
        assert!(
            stored(reply.clone()).is_some() || round == 0,
            "{round}: {reply:?}"
        );
    }
}

#[test]
fn a_restarted_node_mints_above_its_earlier_life_though_its_clock_went_back() {
    let mut cluster = Cluster::new(1);
    let write = cluster.client(A, put(KEY, b"1"));
    cluster.settle();
    let before = stored(cluster.reply(write)).map(|digest| digest.version);
    cluster.now.wall.0 -= 60 * SECOND;
    cluster.restart(A);
    // The node waits for its clock to pass the earlier life, but not for ever.
    cluster.advance(4 * SECOND);
    let write = cluster.client(A, put(KEY, b"2"));
    cluster.settle();
    assert!(stored(cluster.reply(write)).map(|digest| digest.version) > before);
}

#[test]
fn a_node_that_is_restarted_at_once_writes_when_the_clock_has_passed_its_earlier_life() {
    let mut cluster = Cluster::new(2);
    cluster.restart(A);
    let write = cluster.client(A, put(KEY, b"1"));
    cluster.settle();
    assert_eq!(cluster.reply(write), None, "nothing may be minted yet");
    cluster.advance(1_500 * MS);
    let minted = stored(cluster.reply(write)).expect("stored").version.hlc;
    assert!(
        minted.micros() <= cluster.now.wall.0,
        "not ahead of the physical clock"
    );
}

#[test]
fn a_node_whose_clock_is_off_writes_nothing_and_its_bound_stays() {
    let mut cluster = Cluster::new(1);
    cluster.input(A, Input::ClockTrusted(false));
    cluster.now.wall.0 += 365 * 86_400 * SECOND;
    let write = cluster.client(A, put(KEY, b"v"));
    assert_eq!(
        cluster.reply(write),
        Some(ClientReply::Failed(ClientError::ClockDrift))
    );
    let bound = cluster.durable_bound(A);
    cluster.advance(20 * SECOND);
    assert_eq!(
        cluster.durable_bound(A),
        bound,
        "no bound from a clock that is off"
    );
}

#[test]
fn a_replica_refuses_fresh_writes_from_beyond_the_drift_and_takes_old_ones() {
    let mut cluster = Cluster::new(2);
    let version = Version {
        hlc: Hlc::from_micros(cluster.now.wall.0 + 61 * SECOND),
        node: B,
    };
    let record = Record::tombstone(version);
    let fresh = cluster.ask_write(A, B, KEY, record.clone(), WritePurpose::Client);
    assert_eq!(fresh, Some(ReplyKind::Refused(Refusal::ClockDrift)));
    let old = cluster.ask_write(A, B, KEY, record, WritePurpose::Repair);
    assert_eq!(old, Some(ReplyKind::Written { stored: version }));
}

// ---- watches, lists

fn watch(known: Option<torc_protocol::version::Digest>) -> ClientOp {
    ClientOp::Watch {
        key: Bytes::from_static(KEY),
        r: None,
        known,
    }
}

#[test]
fn a_watch_answers_when_the_key_changes() {
    let mut cluster = Cluster::new(3);
    cluster.write(A, KEY, b"1");
    let known = cluster.stored(A, KEY).map(|record| record.digest());
    let waiting = cluster.client(B, watch(known));
    cluster.settle();
    assert_eq!(cluster.reply(waiting), None);
    cluster.write(C, KEY, b"2");
    assert_eq!(cluster.found(waiting).as_deref(), Some(&b"2"[..]));
    let at_once = cluster.client(B, watch(known));
    cluster.settle();
    assert_eq!(cluster.found(at_once).as_deref(), Some(&b"2"[..]));
}

#[test]
fn a_watch_whose_client_has_gone_is_forgotten() {
    let mut cluster = Cluster::new(3);
    cluster.write(A, KEY, b"1");
    let known = cluster.stored(A, KEY).map(|record| record.digest());
    let waiting = cluster.client(B, watch(known));
    cluster.settle();
    assert_eq!(cluster.open(B), 1);
    cluster.input(B, Input::Cancel(waiting));
    cluster.settle();
    assert_eq!(cluster.open(B), 0);
    cluster.write(C, KEY, b"2");
    assert_eq!(
        cluster.reply(waiting),
        None,
        "nobody is there to be answered"
    );
}

#[test]
fn a_node_that_stops_answers_its_watches_at_once() {
    let mut cluster = Cluster::new(3);
    cluster.write(A, KEY, b"1");
    let known = cluster.stored(A, KEY).map(|record| record.digest());
    let waiting = cluster.client(B, watch(known));
    cluster.settle();
    cluster.input(B, Input::Stop);
    assert_eq!(cluster.found(waiting).as_deref(), Some(&b"1"[..]));
    assert_eq!(cluster.open(B), 0);
}

#[test]
fn a_watch_of_a_key_that_does_not_change_answers_before_its_deadline() {
    let mut cluster = Cluster::new(3);
    cluster.write(A, KEY, b"1");
    let known = cluster.stored(A, KEY).map(|record| record.digest());
    let waiting = cluster.client(B, watch(known));
    cluster.advance(2 * SECOND);
    assert_eq!(cluster.found(waiting).as_deref(), Some(&b"1"[..]));
    cluster.advance(SECOND);
    assert_eq!(cluster.open(B), 0);
}

#[test]
fn a_list_merges_its_owners_and_goes_on_where_a_page_ended() {
    let mut cluster = Cluster::with_bits(3, 0);
    for at in 0..10_u8 {
        cluster.write(A, &[b'k', at], b"v");
    }
    let dead = cluster.record(1, b"");
    cluster.plant_key(B, &[b'k', 4], Record::tombstone(dead.version()));
    let mut after = None;
    let mut keys = Vec::new();
    for _ in 0..10 {
        let op = ClientOp::List {
            partition: torc_ring::PartitionId(0),
            after: after.clone(),
            prefix: Bytes::new(),
            limit: 4,
        };
        let list = cluster.client(B, op);
        cluster.settle();
        let Some(ClientReply::Listed { keys: page, next }) = cluster.reply(list) else {
            panic!("a page")
        };
        assert!(page.len() <= 4);
        keys.extend(page.into_iter().map(|key| key.key[1]));
        after = next;
        if after.is_none() {
            break;
        }
    }
    keys.sort_unstable();
    assert_eq!(keys, [0, 1, 2, 3, 5, 6, 7, 8, 9], "each live key once");
}

#[test]
fn a_refusal_that_comes_twice_does_not_end_a_list() {
    let mut cluster = Cluster::with_bits(3, 0);
    cluster.write(A, KEY, b"v");
    cluster.cut(A, B);
    cluster.cut(A, C);
    let op = ClientOp::List {
        partition: torc_ring::PartitionId(0),
        after: None,
        prefix: Bytes::new(),
        limit: 4,
    };
    let list = cluster.client(A, op);
    cluster.settle();
    let (asked, request) = cluster.lost_requests(A).remove(0);
    assert!(matches!(request.kind, RequestKind::List { .. }));
    let refusal = Reply {
        op: request.op,
        ring: request.ring,
        floor: Hlc(0),
        kind: ReplyKind::Refused(Refusal::Storage),
    };
    for _ in 0..2 {
        let message = PeerMessage {
            hlc: Hlc(0),
            body: PeerBody::Reply(refusal.clone()),
        };
        cluster.input(asked, Input::Tick);
        cluster.input(A, Input::Peer(asked, message));
    }
    assert_eq!(
        cluster.reply(list),
        None,
        "two of three owners may still answer"
    );
    cluster.heal();
    cluster.advance(600 * MS);
    assert!(matches!(
        cluster.reply(list),
        Some(ClientReply::Listed { .. })
    ));
}

#[test]
fn requests_beyond_the_bound_are_refused_at_once() {
    let mut cluster = Cluster::with(3, |_, settings| settings.ops_max = 2);
    cluster.isolate(A);
    let ids = [
        cluster.client(A, get(KEY)),
        cluster.client(A, get(KEY)),
        cluster.client(A, get(KEY)),
    ];
    assert_eq!(cluster.reply(ids[0]), None);
    assert_eq!(
        cluster.reply(ids[2]),
        Some(ClientReply::Failed(ClientError::Overloaded))
    );
    cluster.advance(3 * SECOND);
    assert!(ids.iter().all(|&id| cluster.reply(id).is_some()));
    assert_eq!(cluster.open(A), 0);
}

#[test]
fn requests_of_other_ring_versions_are_not_served() {
    let mut cluster = Cluster::new(2);
    let record = cluster.record(1, b"v");
    let reply = cluster.ask_write_at(A, B, RingVersion(77), KEY, record);
    assert!(matches!(
        reply,
        Some(ReplyKind::Refused(Refusal::RingVersion { .. }))
    ));
}

//! Operations while the ring changes: each needs its quorum in the current ring and in the target ring.
//! The rings are those that small moves hide nothing in: ABC→ADE, ABC→DEF, ABC→A.
#![allow(missing_docs)]

mod nodes;

use bytes::Bytes;
use torc_protocol::client::{ClientError, ClientOp, ClientReply};
use torc_protocol::record::Record;
use torc_protocol::shard_io::Input;
use torc_protocol::time::{MS, SECOND};
use torc_ring::{NodeId, PartitionId, Quorum};

use nodes::{A, B, C, Cluster, D, E, F, get, put, put_with, stored};

const KEY: &[u8] = b"k";

/// `current` is the ring, and it is changing to `target`.
fn moving(current: &[NodeId], target: &[NodeId]) -> Cluster {
    let mut cluster = Cluster::ring_of(6, current);
    cluster.rings(current, Some(target));
    cluster
}

fn cut_off(cluster: &mut Cluster, nodes: &[NodeId]) {
    for node in nodes {
        cluster.isolate(*node);
    }
}

fn quorum(required: u8, received: u8, maybe_applied: bool) -> ClientReply {
    ClientReply::Failed(ClientError::Quorum {
        required,
        received,
        maybe_applied,
    })
}

#[test]
fn owners_to_come_that_do_not_serve_yet_are_waited_for() {
    let mut cluster = moving(&[A, B, C], &[A, D, E]);
    cluster.write(A, KEY, b"v");
    for node in [D, E] {
        cluster.restart_unconfigured(node);
        let view = cluster.view(A);
        cluster.apply_view(node, &view);
    }
    let list = ClientOp::List {
        partition: PartitionId(0),
        after: None,
        prefix: Bytes::new(),
        limit: 4,
    };
    let asked = [
        cluster.client(A, put(KEY, b"w")),
        cluster.client(B, get(KEY)),
        cluster.client(B, list),
    ];
    cluster.settle();
    cluster.advance(300 * MS);
    for request in asked {
        assert_eq!(cluster.reply(request), None, "they may serve in time");
    }
    cluster.configure(D);
    cluster.advance(300 * MS);
    assert!(stored(cluster.reply(asked[0])).is_some(), "A and D are two");
    assert!(cluster.found(asked[1]).is_some());
    assert!(matches!(
        cluster.reply(asked[2]),
        Some(ClientReply::Listed { .. })
    ));
}

// ---- writes

#[test]
fn a_write_needs_a_majority_of_each_ring_and_not_of_both_together() {
    let mut cluster = moving(&[A, B, C], &[A, D, E]);
    cut_off(&mut cluster, &[D, E]);
    let write = cluster.client(A, put(KEY, b"v"));
    cluster.settle();
    assert_eq!(
        cluster.reply(write),
        None,
        "three of five have it, one of the target ring"
    );
    cluster.advance(3 * SECOND);
    assert_eq!(cluster.reply(write), Some(quorum(2, 1, true)));
    cluster.heal();
    let again = cluster.client(A, put(KEY, b"w"));
    cluster.settle();
    assert!(stored(cluster.reply(again)).is_some());
    for node in [A, B, C, D, E] {
        assert_eq!(cluster.value(node, KEY).as_deref(), Some(&b"w"[..]));
    }
}

#[test]
fn a_write_that_only_the_target_ring_has_is_not_acknowledged() {
    let mut cluster = moving(&[A, B, C], &[D, E, F]);
    cut_off(&mut cluster, &[A, B, C]);
    let write = cluster.client(D, put(KEY, b"v"));
    cluster.advance(3 * SECOND);
    assert_eq!(cluster.reply(write), Some(quorum(2, 0, true)));
}

#[test]
fn quorums_come_from_each_rings_own_number_of_owners() {
    let mut cluster = moving(&[A, B, C], &[A]);
    cut_off(&mut cluster, &[C]);
    cluster.write(B, KEY, b"two of three, and one of one");
    let all = cluster.client(B, put_with(KEY, b"v", Quorum::All));
    cluster.advance(3 * SECOND);
    assert_eq!(cluster.reply(all), Some(quorum(3, 2, true)));
    cluster.heal();
    cut_off(&mut cluster, &[A]);
    let write = cluster.client(B, put(KEY, b"w"));
    cluster.advance(3 * SECOND);
    assert_eq!(
        cluster.reply(write),
        Some(quorum(1, 0, true)),
        "the only owner of the target is away"
    );
}

#[test]
fn nothing_is_sent_when_the_target_ring_has_too_few_alive() {
    let mut cluster = moving(&[A, B, C], &[A, D, E]);
    cluster.believe_dead(B, &[D, E]);
    let write = cluster.client(B, put(KEY, b"v"));
    let read = cluster.client(B, get(KEY));
    let error = ClientReply::Failed(ClientError::Unavailable {
        required: 2,
        alive: 1,
    });
    assert_eq!(cluster.reply(write), Some(error.clone()));
    assert_eq!(cluster.reply(read), Some(error));
}

#[test]
fn a_partition_that_stays_where_it_is_needs_one_quorum() {
    let mut cluster = moving(&[A, B, C], &[A, B, C]);
    cluster.believe_dead(A, &[C]);
    let before = cluster.sent;
    cluster.write(A, KEY, b"v");
    assert_eq!(cluster.sent - before, 2, "to B and back");
}

// ---- reads

#[test]
fn a_read_sees_what_was_written_before_the_change() {
    let mut cluster = Cluster::ring_of(6, &[A, B, C]);
    cluster.cut(A, C);
    cluster.write(A, KEY, b"old");
    cluster.heal();
    cluster.rings(&[A, B, C], Some(&[D, E, F]));
    for node in [A, C, D, F] {
        let read = cluster.client(node, get(KEY));
        cluster.settle();
        assert_eq!(cluster.found(read).as_deref(), Some(&b"old"[..]), "{node}");
    }
}

#[test]
fn a_read_writes_back_into_both_rings_before_it_answers() {
    let mut cluster = moving(&[A, B, C], &[D, E, F]);
    let newer = cluster.record(9, b"newer");
    cluster.plant(A, KEY, newer.clone());
    let read = cluster.client(A, get(KEY));
    cluster.settle();
    assert_eq!(cluster.found(read).as_deref(), Some(&b"newer"[..]));
    let has = |nodes: &[NodeId]| {
        let count = |node: &&NodeId| cluster.stored(**node, KEY).as_ref() == Some(&newer);
        nodes.iter().filter(count).count()
    };
    assert!(has(&[A, B, C]) >= 2, "so that a later read finds it");
    assert!(has(&[D, E, F]) >= 2, "also if the change is made meanwhile");
}

#[test]
fn a_write_back_that_the_target_ring_cannot_take_is_not_answered() {
    let mut cluster = moving(&[A, B, C], &[A, D, E]);
    let newer = cluster.record(9, b"newer");
    cluster.plant(B, KEY, newer);
    cluster.hold_commits(&[D, E]);
    let read = cluster.client(B, get(KEY));
    cluster.settle();
    assert_eq!(cluster.reply(read), None);
    cluster.release_commits(D);
    cluster.settle();
    assert_eq!(cluster.found(read).as_deref(), Some(&b"newer"[..]));
}

#[test]
fn a_read_needs_a_majority_of_each_ring() {
    let mut cluster = moving(&[A, B, C], &[A, D, E]);
    cut_off(&mut cluster, &[B, C]);
    let read = cluster.client(D, get(KEY));
    cluster.advance(3 * SECOND);
    assert_eq!(cluster.reply(read), Some(quorum(2, 1, false)));
}

#[test]
fn one_owner_of_both_rings_that_refuses_is_replaced_by_one_of_each() {
    let mut cluster = Cluster::ring_of(6, &[A, B, C]);
    cluster.rings(&[A, B, C], Some(&[A, D, E]));
    cluster.write(D, KEY, b"v");
    // A has not started its service: it refuses every question.
    cluster.restart_unconfigured(A);
    let view = cluster.view(A);
    cluster.apply_view(A, &view);
    let read = cluster.client(F, get(KEY));
    cluster.settle();
    assert_eq!(cluster.found(read).as_deref(), Some(&b"v"[..]));
}

#[test]
fn a_joiner_that_does_not_serve_yet_is_waited_for_and_fails_no_request() {
    let mut cluster = Cluster::ring_of(2, &[A]);
    cluster.write(A, KEY, b"old");
    cluster.rings(&[A], Some(&[A, B]));
    // B knows the joint ring already, and is still making sure that it has forgotten nothing.
    cluster.restart_unconfigured(B);
    let view = cluster.view(B);
    cluster.apply_view(B, &view);
    let list = ClientOp::List {
        partition: PartitionId(0),
        after: None,
        prefix: Bytes::new(),
        limit: 10,
    };
    let requests = [put(KEY, b"new"), get(KEY), list].map(|op| cluster.client(A, op));
    cluster.advance(200 * MS);
    for request in requests {
        assert_eq!(cluster.reply(request), None, "two of two must answer");
    }
    cluster.input(B, Input::Serve);
    cluster.advance(200 * MS);
    for request in requests {
        let reply = cluster.reply(request);
        let is_ok = matches!(&reply, Some(reply) if !matches!(reply, ClientReply::Failed(_)));
        assert!(is_ok, "{reply:?}");
    }
    assert_eq!(cluster.value(B, KEY).as_deref(), Some(&b"new"[..]));
}

#[test]
fn a_list_is_made_of_a_majority_of_each_ring() {
    let mut cluster = Cluster::ring_of(6, &[A, B, C]);
    cluster.write(A, KEY, b"v");
    cluster.rings(&[A, B, C], Some(&[D, E, F]));
    let op = |index| ClientOp::List {
        partition: PartitionId(index),
        after: None,
        prefix: Bytes::new(),
        limit: 10,
    };
    let listed = |cluster: &mut Cluster, node| {
        let pages: Vec<_> = (0..16).map(|p| cluster.client(node, op(p))).collect();
        cluster.advance(3 * SECOND);
        let page = |id| match cluster.reply(id) {
            Some(ClientReply::Listed { keys, .. }) => Some(keys.len()),
            _ => None,
        };
        pages.into_iter().map(page).collect::<Option<Vec<usize>>>()
    };
    assert_eq!(listed(&mut cluster, D).map(|n| n.iter().sum()), Some(1));
    cut_off(&mut cluster, &[E, F]);
    assert_eq!(listed(&mut cluster, D), None, "the target has no majority");
}

#[test]
fn a_watch_hears_of_a_write_through_either_ring() {
    let mut cluster = moving(&[A, B, C], &[D, E, F]);
    let watch = ClientOp::Watch {
        key: Bytes::from_static(KEY),
        r: None,
        known: None,
    };
    let watch = cluster.client(B, watch);
    cluster.settle();
    assert_eq!(cluster.reply(watch), None);
    cluster.write(E, KEY, b"v");
    assert_eq!(cluster.found(watch).as_deref(), Some(&b"v"[..]));
}

// ---- across versions

#[test]
fn a_write_that_the_joint_phase_overtakes_needs_both_rings() {
    let mut cluster = Cluster::ring_of(6, &[A, B, C]);
    cluster.cut(A, B);
    cluster.cut(A, C);
    let write = cluster.client(A, put(KEY, b"v"));
    cluster.settle();
    cluster.heal();
    cut_off(&mut cluster, &[D, E]);
    cluster.rings(&[A, B, C], Some(&[A, D, E]));
    assert_eq!(cluster.reply(write), None, "A, B and C are not enough");
    cluster.heal();
    cluster.rings(&[A, B, C], None);
    assert!(
        stored(cluster.reply(write)).is_some(),
        "the change was taken back, and the write starts again"
    );
}

#[test]
fn a_read_that_the_switch_overtakes_starts_again_in_the_new_ring() {
    let mut cluster = moving(&[A, B, C], &[D, E, F]);
    cluster.write(A, KEY, b"v");
    for node in [D, E, F] {
        cluster.hold_reads(node);
    }
    let read = cluster.client(A, get(KEY));
    cluster.settle();
    assert_eq!(cluster.reply(read), None);
    cluster.rings(&[D, E, F], None);
    for node in [D, E, F] {
        cluster.release_reads(node);
    }
    cluster.settle();
    assert_eq!(cluster.found(read).as_deref(), Some(&b"v"[..]));
}

// ---- hints and stand-ins

#[test]
fn an_owner_of_the_target_that_misses_a_write_gets_a_hint() {
    let mut cluster = moving(&[A, B, C], &[A, D, E]);
    cluster.believe_dead(A, &[E]);
    cut_off(&mut cluster, &[E]);
    cluster.write(A, KEY, b"v");
    cluster.advance(2 * SECOND);
    assert_eq!(cluster.hints_waiting(A), 1);
    cluster.heal();
    cluster.believe_dead(A, &[]);
    cluster.advance(2 * SECOND);
    assert_eq!(cluster.value(E, KEY).as_deref(), Some(&b"v"[..]));
    assert_eq!(cluster.hints_waiting(A), 0);
}

#[test]
fn the_hints_of_a_target_owner_go_to_the_present_owners_when_the_change_is_taken_back() {
    let mut cluster = moving(&[A, B, C], &[A, D, E]);
    cut_off(&mut cluster, &[E]);
    cluster.believe_dead(B, &[E]);
    cluster.hold_commits(&[C]);
    cluster.write(B, KEY, b"v");
    cluster.advance(2 * SECOND);
    cluster.rings(&[A, B, C], None);
    cluster.release_commits(C);
    cluster.advance(3 * SECOND);
    assert_eq!(cluster.hints_on_disk(B), 0, "delivered to A, B and C");
    assert_eq!(cluster.value(C, KEY).as_deref(), Some(&b"v"[..]));
    assert_eq!(cluster.stored(E, KEY), None);
}

/// A hint that made a quorum, for an owner that leaves: its target owners have covered the partition
/// already, and the write is nowhere else.
#[test]
fn a_hint_delivered_while_the_partition_moves_reaches_its_target_owners_too() {
    let mut cluster = Cluster::ring_of(6, &[A, B, C]);
    cluster.isolate(C);
    cluster.believe_dead(A, &[C]);
    cluster.write(A, KEY, b"v");
    cluster.advance(2 * SECOND);
    assert_eq!(cluster.hints_on_disk(A), 1);
    cluster.heal();
    cluster.rings(&[A, B, C], Some(&[D, E, F]));
    cluster.believe_dead(A, &[]);
    cluster.advance(2 * SECOND);
    assert_eq!(cluster.hints_on_disk(A), 0);
    for node in [C, D, E, F] {
        assert_eq!(cluster.value(node, KEY).as_deref(), Some(&b"v"[..]));
    }
}

#[test]
fn nobody_stands_in_while_a_partition_moves() {
    let mut cluster = Cluster::ring_of(6, &[A, B, C, D]);
    let (owners, stand_in) = cluster.placement(KEY);
    let rest: Vec<NodeId> = [E, F].into_iter().chain([owners[0], owners[1]]).collect();
    let mut sloppy = put(KEY, b"v");
    if let ClientOp::Put { sloppy, .. } = &mut sloppy {
        *sloppy = Some(true);
    }
    let dead = [owners[1], owners[2]];
    cut_off(&mut cluster, &dead);
    let coordinator = owners[0];
    cluster.believe_dead(coordinator, &dead);
    let write = cluster.client(coordinator, sloppy.clone());
    // It asks the owners first how far they have closed.
    cluster.advance(SECOND / 2);
    assert!(
        stored(cluster.reply(write)).is_some(),
        "{stand_in} stands in"
    );
    let mut target = rest;
    target.sort_unstable();
    cluster.rings(&[A, B, C, D], Some(&target));
    cluster.believe_dead(coordinator, &dead);
    let write = cluster.client(coordinator, sloppy);
    cluster.advance(3 * SECOND);
    assert!(
        matches!(cluster.reply(write), Some(ClientReply::Failed(_))),
        "what a stand-in holds is not where the others look for it"
    );
}

#[test]
fn a_partition_is_kept_by_the_owners_of_either_ring_and_by_nobody_else() {
    let cluster = moving(&[A, B, C], &[A, D, E]);
    let view = cluster.view(A);
    let bucket = view.config.buckets[0].id;
    let keeps: Vec<NodeId> = [A, B, C, D, E, F]
        .into_iter()
        .filter(|node| view.keeps(*node, bucket, PartitionId(0)))
        .collect();
    assert_eq!(keeps, [A, B, C, D, E]);
    let gone = torc_ring::BucketId(77);
    assert!(!view.keeps(A, gone, PartitionId(0)), "a deleted bucket's");
}

#[test]
fn a_deleted_value_stays_deleted_through_a_full_move() {
    let mut cluster = moving(&[A, B, C], &[D, E, F]);
    let mut old: Option<Record> = None;
    cluster.write(A, KEY, b"v");
    old.clone_from(&cluster.stored(A, KEY));
    let delete = ClientOp::Put {
        key: Bytes::from_static(KEY),
        value: None,
        w: None,
        sloppy: None,
        fsync: false,
        context: None,
    };
    let delete = cluster.client(B, delete);
    cluster.advance(10 * MS);
    assert!(stored(cluster.reply(delete)).is_some());
    // A copy of the old value comes late to one of the new owners.
    cluster.plant(D, KEY, old.expect("written"));
    cluster.rings(&[D, E, F], None);
    let read = cluster.client(E, get(KEY));
    cluster.settle();
    assert_eq!(cluster.found(read), None);
}

//! What a ring change brings to the owners of its target ring before it may switch: transcripts.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod nodes;

use nodes::{A, B, C, Cluster, D, E, F, put_with, stored};
use torc_protocol::client::ClientOp;
use torc_protocol::record::{Parts, Record};
use torc_protocol::shard_io::{Event, View};
use torc_protocol::store::{Sync, Write};
use torc_protocol::time::SECOND;
use torc_protocol::version::Version;
use torc_ring::{NodeId, Quorum, RingVersion};

fn name(number: usize) -> Vec<u8> {
    format!("key-{number:06}").into_bytes()
}

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

/// The target owners of a change that have said, at that version, that they have everything.
fn covered(cluster: &Cluster, ring: RingVersion) -> Vec<NodeId> {
    let said = cluster.covered.iter().filter(|(_, of)| *of == ring);
    let mut nodes: Vec<NodeId> = said.map(|(node, _)| *node).collect();
    nodes.sort();
    nodes
}

/// A ring of these nodes, six in all.
fn ring(current: &[NodeId]) -> Cluster {
    let mut cluster = Cluster::ring_of(6, current);
    cluster.repair();
    cluster
}

#[test]
fn a_write_that_any_majority_has_reaches_every_target_owner_new_or_retained() {
    for (holders, target) in [
        ([A, B], [A, D, E]),
        ([B, C], [A, D, E]),
        ([A, C], [A, D, E]),
        ([B, C], [A, B, D]),
        ([A, B], [D, E, F]),
        ([A, C], [D, E, F]),
        ([B, C], [D, E, F]),
    ] {
        let mut cluster = ring(&[A, B, C]);
        for id in holders {
            cluster.plant_behind_the_back(id, b"k", record(9, b"v"));
        }
        cluster.rings(&[A, B, C], Some(&target));
        cluster.advance(20 * SECOND);
        let version = cluster.ring(A);
        let all: Vec<NodeId> = cluster.ids();
        assert_eq!(
            covered(&cluster, version),
            all,
            "everybody says so once, those that gain nothing too"
        );
        for id in target {
            let value = cluster.value(id, b"k");
            assert_eq!(
                value.as_deref(),
                Some(&b"v"[..]),
                "{id} of {target:?}, held by {holders:?}"
            );
        }
    }
}

#[test]
fn many_keys_come_by_pages_from_one_source_and_the_rest_by_comparison() {
    let mut cluster = ring(&[A, B, C]);
    for number in 0..2_000 {
        for id in [A, B, C] {
            cluster.plant(id, &name(number), record(7, &[7; 400]));
        }
    }
    for number in 2_000..2_040 {
        let holders = [[A, B], [B, C], [A, C]][number % 3];
        for id in holders {
            cluster.plant(id, &name(number), record(8, b"by a majority"));
        }
    }
    cluster.rings(&[A, B, C], Some(&[A, B, D]));
    cluster.advance(30 * SECOND);
    for id in [A, B, D] {
        assert_eq!(cluster.records(id).len(), 2_040, "{id}");
    }
    let bytes: u64 = cluster
        .events(D)
        .iter()
        .map(|event| match event {
            Event::Synced {
                bytes,
                transfer: true,
                ..
            } => *bytes,
            _ => 0,
        })
        .sum();
    let held: usize = cluster
        .records(D)
        .iter()
        .map(|(key, record)| key.key.len() + record.len())
        .sum();
    assert!(
        bytes as usize <= held * 5 / 4,
        "{bytes} bytes came for {held} that are held"
    );
    let progress = cluster
        .events(D)
        .iter()
        .rev()
        .find_map(|event| match event {
            Event::Progress { done, total, .. } => Some((*done, *total)),
            _ => None,
        });
    assert_eq!(progress, Some((16, 16)), "all partitions are complete");
}

#[test]
fn nothing_counts_before_the_source_has_durably_applied_the_joint_version() {
    let mut cluster = ring(&[A, B, C]);
    cluster.plant(A, b"k", record(9, b"v"));
    cluster.repairs = false;
    cluster.rings(&[A, B, C], Some(&[D, E, F]));
    let version = cluster.ring(A);
    for id in [A, D, E, F] {
        cluster.input(id, torc_protocol::shard_io::Input::Applied(version));
    }
    cluster.advance(30 * SECOND);
    assert!(cluster.value(D, b"k").is_some(), "A is a source");
    assert!(
        !covered(&cluster, version).contains(&D),
        "but A alone is no majority"
    );
    cluster.input(B, torc_protocol::shard_io::Input::Applied(version));
    cluster.advance(30 * SECOND);
    assert_eq!(
        covered(&cluster, version),
        [A, B, D, E, F],
        "C has not applied it"
    );
}

#[test]
fn a_source_that_has_not_drained_is_asked_again() {
    let mut cluster = ring(&[A, B, C]);
    // A write of the old version is on its way to B's and C's disks.
    cluster.hold_commits(&[B, C]);
    for id in [B, C] {
        cluster.plant_behind_the_back(id, b"k", record(9, b"v"));
    }
    cluster.rings(&[A, B, C], Some(&[D, E, F]));
    cluster.advance(10 * SECOND);
    let version = cluster.ring(A);
    assert!(!covered(&cluster, version).contains(&D));
    assert_eq!(cluster.value(D, b"k"), None);
    for id in [B, C] {
        cluster.release_commits(id);
    }
    cluster.advance(30 * SECOND);
    for id in [D, E, F] {
        assert_eq!(cluster.value(id, b"k").as_deref(), Some(&b"v"[..]), "{id}");
        assert!(covered(&cluster, version).contains(&id));
    }
}

#[test]
fn what_is_received_is_fsynced_before_it_counts() {
    let mut cluster = ring(&[A, B, C]);
    for id in [A, B, C] {
        cluster.plant(id, b"k", record(9, b"v"));
    }
    cluster.hold_commits(&[D]);
    cluster.rings(&[A, B, C], Some(&[D, E, F]));
    cluster.advance(10 * SECOND);
    let version = cluster.ring(A);
    assert!(!covered(&cluster, version).contains(&D));
    let mut fsynced = 0;
    while !covered(&cluster, version).contains(&D) {
        let merges = cluster
            .waiting_writes(D)
            .iter()
            .any(|write| matches!(write, Write::Merge { .. }));
        match cluster.commit(D, Ok(())) {
            Some(sync) => fsynced += usize::from(merges && sync == Sync::Fsync),
            None => cluster.advance(SECOND),
        }
        cluster.settle();
    }
    assert!(fsynced > 0);
    assert!(cluster.value(D, b"k").is_some());
}

#[test]
fn what_a_comparison_found_equal_is_synced_before_it_counts() {
    let mut cluster = ring(&[A, B, C]);
    for id in [A, B, C, D] {
        cluster.plant(id, b"k", record(9, b"v"));
    }
    cluster.hold_commits(&[D]);
    cluster.rings(&[A, B, C], Some(&[D, E, F]));
    cluster.advance(10 * SECOND);
    let version = cluster.ring(A);
    assert!(
        !covered(&cluster, version).contains(&D),
        "the write that brought it may not be synced yet"
    );
    let mut last = None;
    while let Some(sync) = cluster.commit(D, Ok(())) {
        last = Some(sync);
        cluster.settle();
    }
    assert_eq!(last, Some(Sync::Fsync));
    assert!(covered(&cluster, version).contains(&D));
}

#[test]
fn hints_that_counted_are_delivered_before_their_keeper_calls_itself_complete() {
    let mut cluster = ring(&[A, B, C, D]);
    let (owners, stand_in) = cluster.placement(b"k");
    let (coordinator, dead) = (owners[0], owners[1]);
    cluster.isolate(dead);
    let living: Vec<NodeId> = cluster.ids();
    for id in living.into_iter().filter(|id| *id != dead) {
        cluster.believe_dead(id, &[dead]);
    }
    let mut op = put_with(b"k", b"v", Quorum::All);
    if let ClientOp::Put { sloppy, .. } = &mut op {
        *sloppy = Some(true);
    }
    let request = cluster.client(coordinator, op);
    // It asks the owners first how far they have closed.
    cluster.advance(SECOND / 2);
    assert!(stored(cluster.reply(request)).is_some());
    assert_eq!(cluster.hints_on_disk(stand_in), 1);
    // It is known after a restart, too.
    cluster.restart(stand_in);
    cluster.believe_dead(stand_in, &[dead]);

    cluster.rings(&[A, B, C, D], Some(&[A, B, C, D, E]));
    cluster.advance(30 * SECOND);
    let version = cluster.ring(A);
    assert!(!covered(&cluster, version).contains(&stand_in));
    assert!(covered(&cluster, version).contains(&E));
    cluster.heal();
    for id in cluster.ids() {
        cluster.believe_dead(id, &[]);
    }
    cluster.advance(30 * SECOND);
    assert!(covered(&cluster, version).contains(&stand_in));
    assert_eq!(cluster.hints_on_disk(stand_in), 0);
    assert!(cluster.value(dead, b"k").is_some());
}

#[test]
fn a_bucket_that_goes_meanwhile_is_waited_for_no_more() {
    let mut cluster = ring(&[A, B, C]);
    for id in [A, B] {
        cluster.plant(id, b"k", record(9, b"v"));
    }
    cluster.isolate(D);
    cluster.rings(&[A, B, C], Some(&[D, E, F]));
    cluster.advance(5 * SECOND);
    let version = cluster.ring(A);
    assert!(!covered(&cluster, version).contains(&D));
    let mut config = cluster.view(A).config.clone();
    config.version.0 += 1;
    config.buckets.clear();
    let view = View::new(config);
    for id in cluster.ids() {
        cluster.apply_view(id, &view);
    }
    cluster.advance(SECOND);
    assert!(covered(&cluster, version).contains(&D));
}

#[test]
fn a_transfer_goes_on_after_a_crash_of_either_side() {
    let mut cluster = ring(&[A, B, C]);
    for number in 0..1_500 {
        for id in [A, B, C] {
            cluster.plant(id, &name(number), record(7, &[7; 400]));
        }
    }
    cluster.rings(&[A, B, C], Some(&[A, B, D]));
    cluster.restart(D);
    cluster.restart(A);
    cluster.isolate(B);
    cluster.advance(SECOND);
    cluster.heal();
    cluster.restart(D);
    cluster.advance(60 * SECOND);
    let version = cluster.ring(A);
    assert!(covered(&cluster, version).contains(&D));
    assert_eq!(cluster.records(D).len(), 1_500);
}

#[test]
fn completion_belongs_to_one_joint_version() {
    let mut cluster = ring(&[A, B, C]);
    for id in [A, B] {
        cluster.plant(id, b"k", record(9, b"v"));
    }
    cluster.rings(&[A, B, C], Some(&[D, E, F]));
    cluster.advance(20 * SECOND);
    let first = cluster.ring(A);
    assert!(covered(&cluster, first).contains(&D));
    // Aborted; a write is acknowledged by A and C alone; then the same change again.
    cluster.rings(&[A, B, C], None);
    for id in [A, C] {
        cluster.plant_behind_the_back(id, b"later", record(11, b"w"));
    }
    cluster.rings(&[A, B, C], Some(&[D, E, F]));
    let second = cluster.ring(A);
    assert!(!covered(&cluster, second).contains(&D) || cluster.value(D, b"later").is_some());
    cluster.advance(20 * SECOND);
    assert!(covered(&cluster, second).contains(&D));
    for id in [D, E, F] {
        assert_eq!(cluster.value(id, b"later").as_deref(), Some(&b"w"[..]));
    }
}

#[test]
fn shrinking_makes_those_that_stay_cover_too() {
    let mut cluster = ring(&[A, B, C]);
    for id in [B, C] {
        cluster.plant(id, b"k", record(9, b"v"));
    }
    cluster.rings(&[A, B, C], Some(&[A]));
    cluster.advance(20 * SECOND);
    assert_eq!(cluster.value(A, b"k").as_deref(), Some(&b"v"[..]));
    let version = cluster.ring(A);
    assert!(covered(&cluster, version).contains(&A));
}

#[test]
fn a_source_that_is_dead_is_passed_over_as_long_as_a_majority_lives() {
    let mut cluster = ring(&[A, B, C]);
    for id in [A, B] {
        cluster.plant(id, b"k", record(9, b"v"));
    }
    cluster.isolate(C);
    for id in [A, B, D, E, F] {
        cluster.believe_dead(id, &[C]);
    }
    cluster.rings(&[A, B, C], Some(&[D, E, F]));
    cluster.advance(30 * SECOND);
    let version = cluster.ring(A);
    for id in [D, E, F] {
        assert!(covered(&cluster, version).contains(&id), "{id}");
        assert!(cluster.value(id, b"k").is_some(), "{id}");
    }
}

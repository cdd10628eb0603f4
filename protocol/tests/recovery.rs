//! A node that may have lost records which it had stored (a power cut without fsync): what it counts for, and
//! what it covers before it counts again. Transcripts of whole nodes, then laws.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod nodes;

use nodes::{A, B, C, Cluster, D, E, get, put, put_with, stored};
use proptest::prelude::*;
use torc_protocol::client::{ClientError, ClientOp, ClientReply};
use torc_protocol::floor::Mark;
use torc_protocol::hlc::Hlc;
use torc_protocol::record::{Parts, Record};
use torc_protocol::shard_io::{Input, View};
use torc_protocol::time::SECOND;
use torc_protocol::version::Version;
use torc_ring::{NodeId, Quorum, RingVersion};

const KEY: &[u8] = b"k";

fn record(hlc: u64, value: &[u8]) -> Record {
    Record::value(Parts {
        version: Version {
            hlc: Hlc(hlc),
            node: A,
        },
        expiry: None,
        content_type: b"",
        value,
    })
}

/// Everybody applies a config of the same ring under a new ring version, in which these recover.
fn recover(cluster: &mut Cluster, nodes: &[NodeId]) -> RingVersion {
    let mut config = cluster.view(A).config.reissued();
    config.recovering = nodes.to_vec();
    config.validate().expect("members, in order");
    let ring = config.ring_version;
    let view = View::new(config);
    for id in cluster.ids() {
        cluster.apply_view(id, &view);
    }
    cluster.settle();
    ring
}

fn has_covered(cluster: &Cluster, id: NodeId, ring: RingVersion) -> bool {
    cluster.covered.contains(&(id, ring))
}

fn get_with(r: Quorum) -> ClientOp {
    let mut op = get(KEY);
    if let ClientOp::Get { r: asked, .. } = &mut op {
        *asked = Some(r);
    }
    op
}

#[test]
fn an_owner_that_recovers_counts_for_no_read_and_is_not_asked() {
    let mut cluster = Cluster::new(3);
    cluster.write(A, KEY, b"v");
    // A majority has it, and one of the two loses it.
    cluster.lose(C, KEY);
    cluster.lose(B, KEY);
    recover(&mut cluster, &[B]);
    for id in [A, B, C] {
        let read = cluster.client(id, get(KEY));
        cluster.settle();
        let found = cluster.found(read);
        assert_eq!(found.as_deref(), Some(&b"v"[..]), "through {id}");
    }
    let all = cluster.client(A, get_with(Quorum::All));
    cluster.settle();
    let few = ClientReply::Failed(ClientError::Unavailable {
        required: 3,
        alive: 2,
    });
    assert_eq!(cluster.reply(all), Some(few));
    // Without one of the others there is no quorum.
    cluster.isolate(C);
    let read = cluster.client(A, get(KEY));
    cluster.advance(3 * SECOND);
    assert!(matches!(
        cluster.reply(read),
        Some(ClientReply::Failed(ClientError::Quorum {
            required: 2,
            received: 1,
            ..
        }))
    ));
}

#[test]
fn a_write_counts_at_an_owner_that_recovers_and_is_read_elsewhere() {
    let mut cluster = Cluster::new(3);
    recover(&mut cluster, &[B]);
    cluster.isolate(C);
    let write = cluster.client(A, put(KEY, b"v"));
    cluster.settle();
    assert!(stored(cluster.reply(write)).is_some(), "by A and B");
    cluster.heal();
    let read = cluster.client(C, get(KEY));
    cluster.settle();
    assert_eq!(cluster.found(read).as_deref(), Some(&b"v"[..]), "of A");
}

#[test]
fn it_covers_half_of_the_others_before_it_says_so() {
    for holder in [A, C] {
        let mut cluster = Cluster::new(3);
        cluster.repairs = true;
        // What A or C has, and B had: a majority acknowledged it.
        cluster.plant_behind_the_back(holder, KEY, record(9, b"v"));
        for other in [A, C] {
            cluster.cut(B, other);
        }
        let ring = recover(&mut cluster, &[B]);
        cluster.heal();
        cluster.cut(B, holder);
        cluster.advance(20 * SECOND);
        assert!(!has_covered(&cluster, B, ring), "one of them is not enough");
        assert_eq!(cluster.value(B, KEY), None);
        cluster.heal();
        cluster.advance(20 * SECOND);
        assert!(has_covered(&cluster, B, ring));
        assert_eq!(cluster.value(B, KEY).as_deref(), Some(&b"v"[..]));
        assert!(
            cluster.covered.iter().all(|(id, _)| *id == B),
            "nobody else has to"
        );
    }
}

#[test]
fn of_five_owners_it_covers_three_that_do_not_recover_themselves_or_all() {
    let mut cluster = Cluster::build(5, 0, |_, settings| settings.antientropy_age_target = SECOND);
    let mut config = cluster.view(A).config.clone();
    config.buckets[0].n = 5;
    config.version.0 += 1;
    config.ring_version.0 = config.version.0;
    let view = View::new(config);
    for id in cluster.ids() {
        cluster.apply_view(id, &view);
    }
    cluster.repair();
    // D recovers, too: what only D has counts for nothing, what C has comes.
    cluster.plant_behind_the_back(C, KEY, record(9, b"v"));
    for other in [A, B, C, D] {
        cluster.cut(E, other);
    }
    let ring = recover(&mut cluster, &[D, E]);
    cluster.heal();
    cluster.cut(E, C);
    cluster.advance(20 * SECOND);
    assert!(!has_covered(&cluster, E, ring), "A and B are two of three");
    assert!(has_covered(&cluster, D, ring));
    cluster.heal();
    cluster.advance(20 * SECOND);
    assert!(has_covered(&cluster, E, ring));
    assert!(cluster.value(E, KEY).is_some());
    // Where too few others are sound, all of them are covered.
    for other in [A, B, C, D] {
        cluster.cut(E, other);
    }
    let ring = recover(&mut cluster, &[A, B, C, D, E]);
    cluster.heal();
    cluster.cut(E, D);
    cluster.advance(20 * SECOND);
    assert!(!has_covered(&cluster, E, ring));
    cluster.heal();
    cluster.advance(20 * SECOND);
    assert!(has_covered(&cluster, E, ring));
}

#[test]
fn what_it_covered_under_an_older_ring_version_does_not_count() {
    let mut cluster = Cluster::new(3);
    cluster.repair();
    let first = recover(&mut cluster, &[B]);
    cluster.advance(20 * SECOND);
    assert!(has_covered(&cluster, B, first));
    cluster.isolate(B);
    let second = recover(&mut cluster, &[B]);
    cluster.advance(20 * SECOND);
    assert!(!has_covered(&cluster, B, second));
    cluster.heal();
    cluster.advance(20 * SECOND);
    assert!(has_covered(&cluster, B, second));
}

#[test]
fn it_is_no_source_of_a_ring_change_and_covers_the_others_as_a_current_owner_too() {
    let mut cluster = Cluster::ring_of(6, &[A, B, C]);
    cluster.repair();
    // By a majority, A and B; and B has lost it.
    cluster.plant_behind_the_back(A, KEY, record(9, b"v"));
    let mut config = cluster
        .next_rings(&[A, B, C], Some(&[B, D, E]))
        .config
        .clone();
    config.recovering = vec![B];
    let ring = config.ring_version;
    let view = View::new(config);
    for id in [B, D, E] {
        cluster.cut(id, A);
    }
    for id in cluster.ids() {
        cluster.apply_view(id, &view);
    }
    cluster.advance(20 * SECOND);
    for id in [B, D, E] {
        assert!(!has_covered(&cluster, id, ring), "{id}: B and C are no two");
    }
    cluster.heal();
    cluster.advance(20 * SECOND);
    for id in [B, D, E] {
        assert!(has_covered(&cluster, id, ring), "{id}");
        assert_eq!(cluster.value(id, KEY).as_deref(), Some(&b"v"[..]), "{id}");
    }
}

#[test]
fn its_floor_falls_with_its_records_and_comes_back_from_an_owner_that_lost_none() {
    let mut cluster = Cluster::build(3, 0, |id, settings| settings.lost = id == B);
    let at = Hlc::from_micros(1_700_000_000 * SECOND);
    let mark = Mark {
        floor: at,
        close: at,
        promise: Hlc(7),
    };
    for id in [A, B, C] {
        cluster.set_mark(id, mark);
    }
    let fallen = Mark {
        floor: Hlc(0),
        ..mark
    };
    assert_eq!(cluster.mark(B), fallen, "closes and promises stay");
    assert_eq!((cluster.mark(A), cluster.mark(C)), (mark, mark));

    // A value below the floor that B has lost is no deletion; one that the others have collected is dead.
    cluster.plant(A, b"kept", record(9, b"v"));
    cluster.plant(C, b"kept", record(9, b"v"));
    cluster.plant(B, b"gone", record(9, b"old"));
    cluster.repair();
    let ring = recover(&mut cluster, &[B]);
    cluster.advance(60 * SECOND);
    assert!(has_covered(&cluster, B, ring));
    assert_eq!(cluster.mark(B).floor, at, "taken over from another owner");
    assert_eq!(cluster.value(B, b"kept").as_deref(), Some(&b"v"[..]));
    assert_eq!(cluster.value(B, b"gone"), None);
    for id in [A, C] {
        assert!(cluster.value(id, b"kept").is_some());
        assert_eq!(cluster.value(id, b"gone"), None, "not brought back");
    }
}

#[test]
fn a_read_that_waits_starts_again_without_the_answers_of_the_life_before() {
    let mut cluster = Cluster::new(3);
    cluster.write(A, KEY, b"v");
    cluster.lose(B, KEY);
    cluster.hold_reads(A);
    cluster.hold_reads(C);
    let read = cluster.client(B, get(KEY));
    cluster.settle();
    recover(&mut cluster, &[B]);
    cluster.input(B, Input::Tick);
    cluster.release_reads(A);
    cluster.release_reads(C);
    cluster.settle();
    assert_eq!(cluster.found(read).as_deref(), Some(&b"v"[..]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever write quorum acknowledged a value, whichever of its owners lost it, and whichever others miss it:
    /// every quorum reads it while it recovers, and it has it when it has covered.
    #[test]
    fn what_a_majority_acknowledged_is_read_and_comes_back(
        n in 1_u8..=5,
        holders in prop::collection::vec(any::<prop::sample::Index>(), 5),
        loser in any::<prop::sample::Index>(),
        reader in any::<prop::sample::Index>(),
    ) {
        let mut cluster = Cluster::build(u64::from(n), 0, |_, _| {});
        let mut config = cluster.view(A).config.clone();
        config.buckets[0].n = n;
        config.version.0 += 1;
        config.ring_version.0 = config.version.0;
        let view = View::new(config);
        let all = cluster.ids();
        for &id in &all {
            cluster.apply_view(id, &view);
        }
        cluster.repair();
        let mut left = all.clone();
        let majority = all.len() / 2 + 1;
        let mut has: Vec<NodeId> = Vec::new();
        for index in &holders[..majority] {
            let at = index.index(left.len());
            has.push(left.swap_remove(at));
        }
        let loser = has.remove(loser.index(has.len()));
        for &id in &has {
            cluster.plant_behind_the_back(id, KEY, record(9, b"v"));
        }
        let ring = recover(&mut cluster, &[loser]);
        if n >= 3 {
            let reader = all[reader.index(all.len())];
            let read = cluster.client(reader, get(KEY));
            cluster.settle();
            let found = cluster.found(read);
            prop_assert_eq!(found.as_deref(), Some(&b"v"[..]));
        }
        cluster.advance(30 * SECOND);
        prop_assert!(has_covered(&cluster, loser, ring));
        prop_assert_eq!(cluster.value(loser, KEY).is_some(), n > 1);
        let config = cluster.view(A).config.recovered(loser).expect("it recovers");
        let view = View::new(config);
        for &id in &all {
            cluster.apply_view(id, &view);
        }
        cluster.settle();
        let write = cluster.client(loser, put_with(KEY, b"w", Quorum::All));
        cluster.settle();
        prop_assert!(stored(cluster.reply(write)).is_some());
        let read = cluster.client(loser, get_with(Quorum::All));
        cluster.settle();
        let found = cluster.found(read);
        prop_assert_eq!(found.as_deref(), Some(&b"w"[..]));
    }
}

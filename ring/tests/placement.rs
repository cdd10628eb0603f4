//! The laws of placement, and the placement itself, pinned: a change here moves every user's data.

mod support;

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use support::{config, even, id, member};
use torc_ring::config::{REPLICAS_MAX, WEIGHT_MAX};
use torc_ring::{BucketId, Member, NodeId, PartitionId, Ring};
use xxhash_rust::xxh3::Xxh3;

fn partitions(ring: &Ring) -> impl Iterator<Item = PartitionId> {
    (0..ring.partitions()).map(|index| PartitionId(u16::try_from(index).expect("at most 65,536")))
}

/// One number for a whole table, owners and stand-ins.
fn fingerprint(ring: &Ring, n: u8) -> u64 {
    let mut hash = Xxh3::new();
    for partition in partitions(ring) {
        for row in [ring.owners(n, partition), ring.stand_ins(n, partition)] {
            hash.update(&[u8::try_from(row.len()).expect("at most 16")]);
            for node in row {
                hash.update(&node.0.to_be_bytes());
            }
        }
    }
    hash.digest()
}

#[test]
fn a_small_table_is_pinned() {
    let members = (1..=5)
        .map(|id| member(id, if id == 5 { 200 } else { 100 }, id as usize % 3))
        .collect();
    let ring = Ring::compute(&config(3, 3, members));
    let table: Vec<(Vec<u64>, Vec<u64>)> = partitions(&ring)
        .map(|p| {
            let ids = |row: &[NodeId]| row.iter().map(|node| node.0).collect();
            (ids(ring.owners(3, p)), ids(ring.stand_ins(3, p)))
        })
        .collect();
    let expected = SMALL_TABLE.map(|(owners, others)| (owners.to_vec(), others.to_vec()));
    assert_eq!(table, expected, "owners and stand-ins of eight partitions");
}

// Node 3 is alone in its zone and hence an owner everywhere; node 5 has twice the weight of the others.
const SMALL_TABLE: [([u64; 3], [u64; 2]); 8] = [
    ([2, 4, 3], [5, 1]),
    ([3, 4, 5], [2, 1]),
    ([4, 5, 3], [1, 2]),
    ([1, 3, 5], [4, 2]),
    ([1, 3, 5], [4, 2]),
    ([3, 1, 2], [5, 4]),
    ([5, 3, 1], [4, 2]),
    ([4, 3, 2], [1, 5]),
];

#[test]
fn tables_are_pinned() {
    let zones = |count: u64, zones: usize| -> Vec<Member> {
        (0..count)
            .map(|i| member(id(2, i), [50, 100, 400][i as usize % 3], i as usize % zones))
            .collect()
    };
    let found = [
        fingerprint(&Ring::compute(&config(0, 3, even(1, 0..3))), 3),
        fingerprint(&Ring::compute(&config(10, 3, even(1, 0..3))), 3),
        fingerprint(&Ring::compute(&config(10, 3, even(1, 0..10))), 3),
        fingerprint(&Ring::compute(&config(10, 5, even(1, 0..100))), 5),
        fingerprint(&Ring::compute(&config(10, 3, zones(9, 3))), 3),
        fingerprint(&Ring::compute(&config(8, 3, zones(40, 2))), 3),
        fingerprint(&Ring::compute(&config(10, 3, zones(100, 7))), 3),
        fingerprint(&Ring::compute(&config(10, 3, even(1, 0..1000))), 3),
    ];
    let shown: Vec<String> = found.iter().map(|hash| format!("{hash:016x}")).collect();
    assert_eq!(
        shown, FINGERPRINTS,
        "placement has changed: every cluster would move its data"
    );
}

const FINGERPRINTS: [&str; 8] = [
    "c7d3c06b9b3386bf",
    "0be47bfe369a212c",
    "43b6d2bdee8a6915",
    "6ea65087bb155263",
    "1548740de8aa7127",
    "7904e4a4c2fe23a2",
    "5e8827d8a5ae19c2",
    "c77ed986b1e519d9",
];

fn members() -> impl Strategy<Value = Vec<Member>> {
    let weight = prop_oneof![3 => Just(100), 2 => 1..=400_u32, 1 => 1..=WEIGHT_MAX];
    vec((any::<u64>(), weight, 0..6_usize), 1..40).prop_map(|drawn| {
        let mut seen = BTreeSet::new();
        let fresh = drawn.into_iter().filter(|(id, ..)| seen.insert(*id));
        fresh
            .map(|(id, weight, zone)| member(id, weight, zone))
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn owners_are_distinct_nodes_in_distinct_zones(members in members(), n in 1..=REPLICAS_MAX, bits in 0..8_u8) {
        let ring = Ring::compute(&config(bits, n, members.clone()));
        let zone = |node: &NodeId| &members.iter().find(|m| m.id == *node).expect("a member").zone;
        let zones: BTreeSet<&String> = members.iter().map(|m| &m.zone).collect();
        for partition in partitions(&ring) {
            let owners = ring.owners(n, partition);
            prop_assert_eq!(owners.len(), members.len().min(usize::from(n)));
            let spread = zones.len().min(owners.len());
            let first: BTreeSet<&String> = owners[..spread].iter().map(zone).collect();
            prop_assert_eq!(first.len(), spread, "the first owners stand in as many zones as there are");
            let stand_ins = ring.stand_ins(n, partition);
            prop_assert_eq!(stand_ins.len(), (members.len() - owners.len()).min(usize::from(n)));
            let all: BTreeSet<&NodeId> = owners.iter().chain(stand_ins).collect();
            prop_assert_eq!(all.len(), owners.len() + stand_ins.len(), "nobody stands there twice");
        }
    }

    #[test]
    fn the_order_of_members_does_not_matter(members in members(), n in 1..6_u8) {
        let one = config(7, n, members);
        let mut other = one.clone();
        other.current.reverse();
        let (one, other) = (Ring::compute(&one), Ring::compute(&other));
        prop_assert_eq!(fingerprint(&one, n), fingerprint(&other, n));
    }

    #[test]
    fn no_node_holds_more_than_its_bound(members in members(), n in 1..6_u8, bits in 4..9_u8) {
        let ring = Ring::compute(&config(bits, n, members));
        for load in ring.loads(n) {
            let bound = (1.1 * load.fair + 1e-6).ceil();
            prop_assert!(f64::from(load.replicas) <= bound, "{:?} of at most {}", load, bound);
        }
    }

    #[test]
    fn shares_and_partitions_agree_with_the_table(members in members(), n in 1..6_u8) {
        let ring = Ring::compute(&config(6, n, members.clone()));
        let total: f64 = members.iter().map(|m| ring.share(n, m.id)).sum();
        prop_assert!((total - 1.0).abs() < 1e-9, "{}", total);
        for load in ring.loads(n) {
            prop_assert_eq!(ring.partitions_of(n, load.node).count(), load.replicas as usize);
            prop_assert!(ring.partitions_of(n, load.node).all(|p| ring.owns(n, p, load.node)));
        }
    }
}

#[test]
fn a_number_of_replicas_without_a_bucket_has_no_owners() {
    let mut config = config(4, 3, even(1, 0..5));
    let ring = Ring::compute(&config);
    assert_eq!(ring.replica_counts().collect::<Vec<_>>(), [3]);
    for n in [0, 2, 4, 16, 17, 255] {
        assert!(ring.owners(n, PartitionId(0)).is_empty());
        assert!(ring.stand_ins(n, PartitionId(0)).is_empty());
        assert!(ring.loads(n).is_empty() && ring.fullest(n).is_none());
        assert!(ring.share(n, NodeId(1)).abs() < f64::EPSILON);
    }
    assert!(
        ring.owners(3, PartitionId(16)).is_empty(),
        "there are 16 partitions"
    );
    config.current.clear();
    assert!(
        Ring::compute(&config).owners(3, PartitionId(0)).is_empty(),
        "no member, no owner"
    );
}

#[test]
fn the_target_ring_is_there_only_while_a_change_is_joint() {
    let before = config(6, 3, even(1, 0..5));
    let after = before.with_members(even(1, 0..6));
    let mut joint = before.clone();
    joint.target = Some(after.current.clone());
    let [before, joint, after] = [before, joint, after].map(|config| Ring::compute(&config));
    let mut moving = 0;
    for partition in partitions(&joint) {
        assert_eq!(before.target_owners(3, partition), None);
        assert!(!before.is_moving(3, partition));
        assert_eq!(joint.owners(3, partition), before.owners(3, partition));
        assert_eq!(
            joint.target_owners(3, partition),
            Some(after.owners(3, partition))
        );
        moving += u32::from(joint.is_moving(3, partition));
    }
    assert!(moving > 0 && moving < 64, "{moving} of 64 partitions move");
    assert_eq!(joint.target_loads(3), Some(after.loads(3)));
}

#[test]
fn a_key_finds_its_partition_by_the_seed_of_the_configuration() {
    let config = config(10, 3, even(1, 0..3));
    let ring = Ring::compute(&config);
    let token = ring.token(BucketId(1), b"key");
    assert_eq!(
        token,
        torc_ring::Token::of(config.seed, BucketId(1), b"key")
    );
    assert_eq!(ring.partition(token), token.partition(10));
    assert_eq!((ring.partitions(), ring.partition_bits()), (1024, 10));
}

#[test]
fn extreme_clusters_have_owners_too() {
    // One node that must hold everything, among a thousand that hold next to nothing.
    let lopsided: Vec<Member> = (0..1000)
        .map(|i| member(id(3, i), if i == 0 { WEIGHT_MAX } else { 1 }, 0))
        .collect();
    let ring = Ring::compute(&config(10, 3, lopsided));
    assert_eq!(ring.partitions_of(3, NodeId(id(3, 0))).count(), 1024);
    // Two zones of one node each, and one of all the others.
    let lonely: Vec<Member> = (0..1000)
        .map(|i| member(id(4, i), 100, (i as usize).min(2)))
        .collect();
    let ring = Ring::compute(&config(10, 3, lonely));
    assert_eq!(ring.partitions_of(3, NodeId(id(4, 0))).count(), 1024);
    assert!(
        ring.fullest(3)
            .is_some_and(|load| f64::from(load.replicas) <= (1.1 * load.fair).ceil())
    );
    // More zones than replicas, one of them with nearly all nodes; and the greatest n.
    let crowded: Vec<Member> = (0..500)
        .map(|i| member(id(5, i), 100, (i as usize).min(17)))
        .collect();
    let ring = Ring::compute(&config(10, REPLICAS_MAX, crowded));
    assert_eq!(ring.owners(REPLICAS_MAX, PartitionId(1023)).len(), 16);
}

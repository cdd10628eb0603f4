//! Clusters that change for a long time: however a ring came about, every single change moves little more
//! than it must, every node stays within its bound, and zones are spread as well as they can be.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use support::{History, config, even, id, member};
use torc_ring::plan::LayoutPlan;
use torc_ring::{Config, Member, PartitionId, Ring, RingChange};

/// What a node of that fair share may hold: 1.10 of it, or that rounded up to a whole replica.
fn bound(fair: f64) -> f64 {
    (1.1_f64 * fair + 1e-6).floor().max((fair - 1e-3).ceil())
}

/// Checks what every ring must be, whatever came before it.
fn assert_sound(config: &Config, plan: &LayoutPlan) {
    let ring = Ring::compute(config);
    let n = config.buckets[0].n;
    let zones: BTreeMap<_, _> = config.current.iter().map(|m| (m.id, &m.zone)).collect();
    let all: BTreeSet<_> = zones.values().collect();
    for partition in 0..ring.partitions() {
        let owners = ring.owners(n, PartitionId(partition as u16));
        assert_eq!(owners.len(), usize::from(n).min(zones.len()));
        let distinct: BTreeSet<_> = owners.iter().collect();
        assert_eq!(distinct.len(), owners.len(), "nobody owns it twice");
        let spread = all.len().min(owners.len());
        let first: BTreeSet<_> = owners[..spread].iter().map(|node| zones[node]).collect();
        assert_eq!(first.len(), spread, "as many zones as there are, first");
    }
    for load in &plan.nodes {
        let most = bound(load.fair_after);
        assert!(f64::from(load.after) <= most, "{load:?} of at most {most}");
    }
}

/// What changes have cost, in multiples of the unavoidable.
#[derive(Default)]
struct Cost {
    total: f64,
    count: f64,
    worst: f64,
}

impl Cost {
    fn add(&mut self, plan: &LayoutPlan) {
        let overhead = plan.overhead().unwrap_or(1.0);
        self.total += overhead;
        self.count += 1.0;
        self.worst = self.worst.max(overhead);
    }

    fn mean(&self) -> f64 {
        self.total / self.count.max(1.0)
    }
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % bound as u64) as usize
    }
}

const EVEN: &[u32] = &[100];
const UNEVEN: &[u32] = &[50, 100, 200, 400];

/// Nodes come and go one by one, around a size; each time everything is checked.
fn come_and_go((nodes, zones, weights): (usize, usize, &[u32]), n: u8, steps: usize) -> Cost {
    let seed = nodes as u64 * 31 + zones as u64;
    let mut dice = Dice(seed);
    let mut named = 0;
    let mut newcomer = |dice: &mut Dice| {
        named += 1;
        let weight = weights[dice.below(weights.len())];
        member(id(seed, named), weight, dice.below(zones))
    };
    let members = (0..nodes).map(|_| newcomer(&mut dice)).collect();
    let mut history = History::of(10, n, members);
    let mut cost = Cost::default();
    for _ in 0..steps {
        let count = history.config.current.len();
        let grows = count <= 2 || (count < 1000 && dice.below(2) == 0);
        let plan = if grows {
            history.join(&[newcomer(&mut dice)])
        } else {
            let node = history.config.current[dice.below(count)].id;
            history.change(&[RingChange::Leave { node }], &[])
        };
        assert_sound(&history.config, &plan);
        cost.add(&plan);
    }
    cost
}

#[test]
fn a_single_join_or_leave_moves_at_most_a_quarter_more_than_it_must() {
    for (nodes, zones, weights, steps) in [
        (3, 1, EVEN, 40),
        (10, 1, EVEN, 60),
        (100, 1, EVEN, 80),
        (300, 1, EVEN, 12),
        (990, 1, EVEN, 12),
        (12, 3, EVEN, 60),
        (99, 3, EVEN, 60),
        (990, 3, EVEN, 6),
        (10, 2, EVEN, 60),
        (10, 5, EVEN, 60),
        (100, 4, EVEN, 60),
        (100, 5, EVEN, 60),
        (10, 1, UNEVEN, 60),
        (100, 1, UNEVEN, 60),
        (990, 1, UNEVEN, 6),
        (100, 3, UNEVEN, 60),
        (100, 5, UNEVEN, 60),
    ] {
        let cost = come_and_go((nodes, zones, weights), 3, steps);
        let what = format!("{nodes} nodes in {zones} zones, {} weights", weights.len());
        assert!(cost.worst <= 1.25, "{what}: worst {:.3}", cost.worst);
        assert!(cost.mean() <= 1.05, "{what}: mean {:.3}", cost.mean());
    }
    for (nodes, zones, n) in [(40, 1, 1), (40, 3, 5), (8, 2, 4)] {
        let cost = come_and_go((nodes, zones, EVEN), n, 30);
        assert!(cost.worst <= 1.25, "n = {n}: worst {:.3}", cost.worst);
    }
}

#[test]
fn a_leaver_of_a_thousand_nodes_hands_over_what_it_holds_and_a_joiner_takes_its_share() {
    let mut history = History::of(10, 3, even(1, 0..1000));
    let node = history.config.current[17].id;
    let plan = history.change(&[RingChange::Leave { node }], &[]);
    assert!((3..=4).contains(&plan.moved), "{} replicas", plan.moved);
    let plan = history.join(&even(1, 1000..1001));
    assert_eq!(plan.moved, 3, "of a fair share of 3.07");
    let fullest = plan.nodes.iter().map(|node| node.after).max();
    assert_eq!(fullest, Some(4), "the least possible");
}

#[test]
fn a_node_that_replaces_a_dead_one_gets_what_that_one_had() {
    let mut history = History::of(10, 3, even(1, 0..20));
    let dead = history.config.current[7].id;
    let newcomer = member(id(1, 99), 100, 0);
    let by = newcomer.id;
    let plan = history.change(&[RingChange::Replace { dead, by }], &[newcomer]);
    for node in &plan.nodes {
        let moves = (node.gains, node.loses);
        let others_stay = node.node == by || node.node == dead || moves == (0, 0);
        assert!(others_stay, "{node:?}");
    }
}

/// From a configuration of an older version, whose owners are all computed.
#[test]
fn a_ring_without_tables_goes_on_from_what_it_has() {
    let before = config(10, 3, even(1, 0..100));
    assert!(before.tables.is_empty());
    let mut history = History {
        config: before.clone(),
        plan: None,
    };
    let plan = history.join(&even(1, 100..101));
    assert_eq!(history.config.tables.len(), 1);
    let overhead = plan.overhead().expect("something moves");
    assert!(overhead <= 1.25, "{overhead:.3}");
    assert_sound(&history.config, &plan);
    let rings = [&before, &history.config].map(Ring::compute);
    let unchanged = (0..1024_u16)
        .map(PartitionId)
        .filter(|&partition| rings[0].owners(3, partition) == rings[1].owners(3, partition))
        .count();
    assert!(unchanged > 700, "{unchanged} of 1024 stay as they are");
}

#[test]
fn a_ring_without_keys_is_spread_evenly_from_the_start() {
    let alone = config(10, 3, even(1, 0..1));
    let config = alone.regrouped(even(1, 0..100));
    config.validate().expect("valid");
    for load in Ring::compute(&config).loads(3) {
        assert!((30..=31).contains(&load.replicas), "{load:?}");
        assert!((10..=11).contains(&load.firsts), "{load:?}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Join(u32, usize),
    Leave(usize),
    Reweigh(usize, u32),
    Rezone(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let weight = || prop_oneof![2 => Just(100_u32), 1 => 50..400_u32];
    let step = prop_oneof![
        3 => (weight(), 0..4_usize).prop_map(|(weight, zone)| Step::Join(weight, zone)),
        3 => any::<usize>().prop_map(Step::Leave),
        1 => (any::<usize>(), weight()).prop_map(|(at, weight)| Step::Reweigh(at, weight)),
        1 => (any::<usize>(), 0..5_usize).prop_map(|(at, zone)| Step::Rezone(at, zone)),
    ];
    proptest::collection::vec(step, 100..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn hundreds_of_changes_leave_a_sound_ring_and_move_little(
        first in 1..24_u64,
        zones in 1..5_usize,
        steps in steps(),
    ) {
        let members: Vec<Member> =
            (0..first).map(|at| member(id(3, at), 100, at as usize % zones)).collect();
        let mut history = History::of(9, 3, members);
        let mut cost = Cost::default();
        for (step, named) in steps.into_iter().zip(first..) {
            let current = &history.config.current;
            let nth = |at: usize| &current[at % current.len()];
            let change = match step {
                Step::Join(weight, zone) => {
                    let newcomer = member(id(3, named), weight, zone % zones);
                    let plan = history.join(&[newcomer]);
                    assert_sound(&history.config, &plan);
                    cost.add(&plan);
                    continue;
                }
                Step::Leave(at) if current.len() > 1 => RingChange::Leave { node: nth(at).id },
                Step::Reweigh(at, weight) if nth(at).weight != weight => {
                    RingChange::Reweigh { node: nth(at).id, weight }
                }
                Step::Rezone(at, zone) if nth(at).zone != format!("z{zone}") => {
                    RingChange::Rezone { node: nth(at).id, zone: format!("z{zone}") }
                }
                _ => continue,
            };
            let plan = history.change(&[change], &[]);
            assert_sound(&history.config, &plan);
            cost.add(&plan);
        }
        prop_assert!(cost.mean() <= 1.1, "mean {:.3}", cost.mean());
        prop_assert!(cost.worst <= 2.0, "worst {:.3}", cost.worst);
    }
}

/// One number for the owners of a ring: the way that a history leads must never change.
fn fingerprint(config: &Config) -> u64 {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    for table in &config.tables {
        hash.update(&[table.n()]);
        hash.update(table.as_bytes());
    }
    hash.digest()
}

#[test]
fn the_owners_that_histories_lead_to_are_pinned() {
    let mut history = History::of(10, 3, even(5, 0..10));
    let mut found = vec![fingerprint(&history.config)];
    history.join(&even(5, 10..12));
    found.push(fingerprint(&history.config));
    let node = history.config.current[3].id;
    history.change(&[RingChange::Leave { node }], &[]);
    found.push(fingerprint(&history.config));
    let node = history.config.current[5].id;
    history.change(&[RingChange::Reweigh { node, weight: 250 }], &[]);
    let zone = "elsewhere".to_owned();
    history.change(&[RingChange::Rezone { node, zone }], &[]);
    found.push(fingerprint(&history.config));
    found.push(fingerprint(
        &config(10, 5, even(1, 0..1)).regrouped(even(1, 0..100)),
    ));
    let shown: Vec<String> = found.iter().map(|hash| format!("{hash:016x}")).collect();
    assert_eq!(shown, HISTORIES);
}

const HISTORIES: [&str; 5] = [
    "72fd6814c9c74467",
    "b391847d500304c7",
    "249b64b3d0454796",
    "59ead23ceccc37ee",
    "ece2dba53f7201a0",
];

#[test]
fn the_order_in_which_members_are_listed_does_not_matter() {
    let history = History::of(10, 3, even(1, 0..30));
    let mut turned: Vec<Member> = even(1, 0..30);
    turned.reverse();
    // The first one begins alone; so it is the same here.
    let first = turned.pop().expect("a member");
    turned.insert(0, first);
    assert_eq!(History::of(10, 3, turned).config, history.config);
}

#[test]
fn buckets_with_another_n_have_tables_of_their_own() {
    let mut start = config(10, 3, even(1, 0..1));
    let logs = torc_ring::Bucket {
        n: 2,
        ..torc_ring::Bucket::new(torc_ring::BucketId(2), "logs")
    };
    start.buckets.push(logs);
    start.next_bucket = torc_ring::BucketId(3);
    let mut history = History {
        config: start,
        plan: None,
    };
    history.join(&even(1, 1..12));
    let counts = |config: &Config| {
        config
            .tables
            .iter()
            .map(torc_ring::OwnerTable::n)
            .collect::<Vec<_>>()
    };
    assert_eq!(counts(&history.config), [2, 3]);
    let bucket = "logs".to_owned();
    // The only bucket with n = 2 goes to an n that no other has: its owners stay owners.
    let plan = history.change(&[RingChange::Replicas { bucket, n: 4 }], &[]);
    assert_eq!(counts(&history.config), [3, 4]);
    assert_eq!((plan.n_before, plan.n_after, plan.moved), (2, 4, 2048));
    let layouts = &history.plan.as_ref().expect("a plan").layouts;
    assert!(layouts[1].moves.is_empty(), "n = 3 is left alone");
    let mut buckets = history.config.buckets.clone();
    buckets.retain(|bucket| bucket.name != "logs");
    let next = history.config.with_buckets(buckets, torc_ring::BucketId(3));
    assert_eq!(counts(&next), [3]);
    next.validate().expect("valid");
}

#[test]
fn where_a_table_would_be_too_large_owners_are_computed() {
    let mut history = History::of(15, 3, even(1, 0..2));
    history.join(&even(1, 2..5));
    assert_eq!(
        history.config.tables.len(),
        1,
        "3 owners of 32,768 partitions are written down"
    );
    let mut history = History::of(15, 4, even(1, 0..2));
    history.join(&even(1, 2..6));
    assert!(history.config.tables.is_empty(), "4 are computed");
    let ring = Ring::compute(&history.config);
    assert_eq!(ring.owners(4, PartitionId(0)).len(), 4);
}

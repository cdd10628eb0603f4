//! Prints how evenly the ring spreads replicas, and how many move when a node joins or leaves.
//!
//! `cargo run --release -p torc-ring --example balance [SEEDS] [computed]` repeats the tables of
//! `docs/ring-balance.md`: owners as a cluster writes them down, or with `computed` as placement computes
//! them from the members alone. SEEDS (default 10) is the number of clusters with random node ids in each row
//! (at most 10 in those with the greatest tables).

use std::collections::BTreeMap;
use std::io::Write;

use torc_ring::change::stage;
use torc_ring::plan::LayoutPlan;
use torc_ring::{ClusterId, Config, Member, NodeId, Plan, RingChange, Secret};
use xxhash_rust::xxh3::xxh3_64_with_seed;

struct Case {
    nodes: u64,
    bits: u8,
    n: u8,
    weights: &'static [u32],
    zones: u64,
}

const EVEN: &[u32] = &[100];
const UNEVEN: &[u32] = &[50, 100, 200, 400];

const fn case(nodes: u64, bits: u8, weights: &'static [u32], zones: u64) -> Case {
    Case {
        nodes,
        bits,
        n: 3,
        weights,
        zones,
    }
}

const CASES: &[Case] = &[
    case(3, 10, EVEN, 1),
    case(4, 10, EVEN, 1),
    case(5, 10, EVEN, 1),
    case(10, 10, EVEN, 1),
    case(30, 10, EVEN, 1),
    case(40, 10, EVEN, 1),
    case(60, 10, EVEN, 1),
    case(99, 10, EVEN, 1),
    case(100, 10, EVEN, 1),
    case(101, 10, EVEN, 1),
    case(300, 10, EVEN, 1),
    case(1000, 10, EVEN, 1),
    case(100, 12, EVEN, 1),
    case(10, 10, UNEVEN, 1),
    case(100, 10, UNEVEN, 1),
    case(1000, 10, UNEVEN, 1),
    case(6, 10, EVEN, 3),
    case(12, 10, EVEN, 3),
    case(99, 10, EVEN, 3),
    case(1000, 10, EVEN, 3),
    case(10, 10, EVEN, 2),
    case(10, 10, EVEN, 5),
    case(100, 10, EVEN, 5),
    case(100, 10, UNEVEN, 5),
    case(100, 13, EVEN, 1),
    case(300, 13, EVEN, 1),
    case(1000, 15, EVEN, 1),
    case(1000, 16, EVEN, 1),
];

fn member(seed: u64, index: u64, case: &Case) -> Member {
    Member {
        id: NodeId(xxh3_64_with_seed(&index.to_be_bytes(), seed)),
        name: format!("n{index}"),
        zone: format!("z{}", index % case.zones),
        weight: case.weights[(index / case.zones) as usize % case.weights.len()],
        peer: format!("n{index}:7001"),
        http: format!("n{index}:8081"),
    }
}

fn config(seed: u64, nodes: std::ops::Range<u64>, case: &Case) -> Config {
    let first = member(seed, nodes.start, case);
    let mut config = Config::bootstrap(ClusterId(1), (seed, Secret([0; 32])), case.bits, first);
    config.buckets[0].n = case.n;
    config.with_members(nodes.map(|index| member(seed, index, case)).collect())
}

/// A join and a leave of a cluster whose owners are written down. The cluster has grown by one change, then
/// another `nodes` / 10 members (20 at most, and 2 where tables are great) have come and gone one by one.
fn written(seed: u64, case: &Case) -> (LayoutPlan, LayoutPlan) {
    let first = member(seed, 0, case);
    let mut start = Config::bootstrap(ClusterId(1), (seed, Secret([0; 32])), case.bits, first);
    start.buckets[0].n = case.n;
    let mut cluster = start;
    let turns = if case.bits < 13 {
        (case.nodes / 10).min(20)
    } else {
        2
    };
    // The cluster needs room for a joiner of each turn.
    let size = case.nodes - 1;
    let mut joins: Vec<Member> = (1..size).map(|at| member(seed, at, case)).collect();
    change(&mut cluster, &mut joins, None);
    for turn in 0..turns {
        let mut newcomer = vec![member(seed, size + turn, case)];
        change(&mut cluster, &mut newcomer, None);
        change(&mut cluster, &mut Vec::new(), Some(turn as usize));
    }
    let mut last = vec![member(seed, size + turns, case)];
    let joined = change(&mut cluster, &mut last, None);
    let left = change(&mut cluster, &mut Vec::new(), Some(0));
    (joined, left)
}

/// These members join, and the one at that place of the list leaves.
fn change(cluster: &mut Config, joins: &mut Vec<Member>, leaver: Option<usize>) -> LayoutPlan {
    let join = |m: &Member| RingChange::Join { node: m.id };
    let leave = |at: usize| RingChange::Leave {
        node: cluster.current[at].id,
    };
    let changes: Vec<RingChange> = joins.iter().map(join).chain(leaver.map(leave)).collect();
    let waiting: BTreeMap<NodeId, Member> = joins.drain(..).map(|m| (m.id, m)).collect();
    let joint = stage(cluster, &changes, &waiting).expect("members of the cluster's own");
    let mut plan = Plan::running(&joint).expect("a joint configuration");
    *cluster = joint.switched().expect("a joint configuration");
    plan.layouts.remove(0)
}

/// The same two changes where owners follow from the members.
fn computed(seed: u64, case: &Case) -> (LayoutPlan, LayoutPlan) {
    let present = config(seed, 0..case.nodes, case);
    // Ids are random, so the last one is any one.
    let before = config(seed, 0..case.nodes - 1, case);
    let after = config(seed, 1..case.nodes, case);
    (
        Plan::between(&before, &present).layouts.remove(0),
        Plan::between(&present, &after).layouts.remove(0),
    )
}

#[derive(Default)]
struct Sum {
    total: f64,
    worst: f64,
    count: f64,
}

impl Sum {
    fn add(&mut self, value: f64) {
        self.total += value;
        self.worst = self.worst.max(value);
        self.count += 1.0;
    }

    fn mean(&self) -> f64 {
        self.total / self.count.max(1.0)
    }
}

/// The most replicas that a fair share allows: 1.10 of it, or the next whole replica where that is more.
fn allowed(fair: f64) -> f64 {
    (1.1 * fair + 1e-6).floor().max((fair - 1e-3).ceil())
}

fn main() -> std::io::Result<()> {
    let seeds: u64 = std::env::args()
        .nth(1)
        .and_then(|given| given.parse().ok())
        .unwrap_or(10);
    let compute = std::env::args().any(|given| given == "computed");
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "| nodes | partitions | weights | zones | fair share | fullest, worst | × fair, mean | × fair, worst | \
         over the bound | join, mean | join, worst | leave, mean | leave, worst |"
    )?;
    writeln!(out, "|{}", "---:|".repeat(13))?;
    for case in CASES {
        let (mut fullest, mut join, mut leave) = (Sum::default(), Sum::default(), Sum::default());
        let (mut fair, mut replicas, mut over) = (0.0, 0, 0);
        // The greatest tables take seconds each.
        let clusters = if case.bits < 15 { seeds } else { seeds.min(10) };
        for seed in 0..clusters {
            let (joining, leaving) = if compute {
                computed(seed, case)
            } else {
                written(seed, case)
            };
            fullest.add(leaving.fullest_before);
            join.add(joining.overhead().unwrap_or(1.0));
            leave.add(leaving.overhead().unwrap_or(1.0));
            for node in &leaving.nodes {
                over += u32::from(f64::from(node.before) > allowed(node.fair_before));
                if node.before > replicas {
                    (replicas, fair) = (node.before, node.fair_before);
                }
            }
        }
        writeln!(
            out,
            "| {} | {} | {} | {} | {fair:.2} | {replicas} | {:.3} | {:.3} | {over} | {:.2} | {:.2} | {:.2} | {:.2} |",
            case.nodes,
            1_u32 << case.bits,
            if case.weights.len() > 1 {
                "50–400"
            } else {
                "equal"
            },
            case.zones,
            fullest.mean(),
            fullest.worst,
            join.mean(),
            join.worst,
            leave.mean(),
            leave.worst,
        )?;
    }
    Ok(())
}

//! The short form of the simulation: what `make test` can afford. The long form is
//! `cargo run --release -p torc-sim -- --seeds 0..100000 --ops 5000`.

use torc_sim::swarm::swarm;
use torc_sim::{Plan, run};

const SEEDS: std::ops::Range<u64> = 0..2_000;
const OPS: u64 = 2_000;

/// States that few runs reach; a swarm that no longer reaches them would prove nothing.
const RARE: [&str; 32] = [
    "fault: data lost",
    "fault: disk corrupt",
    "fault: disk set back",
    "fault: change taken back",
    "fault: crash at a step of a change",
    "fault: equal versions",
    "fault: node removed by force",
    "fault: other members",
    "fault: power cut",
    "fault: started with old data",
    "fault: switch not heard of",
    "rare: amnesia noticed",
    "rare: change postponed",
    "rare: clock judged anew",
    "rare: cluster state not stored",
    "rare: corruption detected",
    "rare: copy rebuilt while a change runs",
    "rare: floor raised",
    "rare: floor raised while a change runs",
    "rare: hedged read",
    "rare: hint delivered",
    "rare: hint dropped",
    "rare: left",
    "rare: read repair",
    "rare: recovered",
    "rare: replica refused a version for drift",
    "rare: replica refused another ring",
    "rare: ring change aborted",
    "rare: stand-in",
    "rare: superseded write",
    "rare: tombstone below the floor",
    "rare: tombstone collected",
];

#[test]
fn no_seed_breaks_a_promise() {
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let plan = |seed| Plan::draw(seed, OPS);
    let summary = swarm(SEEDS, plan, (threads, 5), |_, _, _| {});
    for (seed, what) in &summary.failures {
        println!("cargo run --release -p torc-sim -- --seed {seed} --ops {OPS}\n  {what}");
    }
    assert!(
        summary.failures.is_empty(),
        "{} of {} seeds failed",
        summary.failures.len(),
        summary.runs
    );
    println!(
        "{} seeds, {} operations, {} faults, {} s of virtual time",
        summary.runs,
        summary.operations(),
        summary.faults(),
        summary.micros / 1_000_000
    );
    assert!(
        summary.faults() * 20 > summary.operations(),
        "at least one fault for each 20 operations"
    );
    let at_least = |name, percent: f64| {
        let reached = summary.percent(name);
        println!("{reached:>6.1} % of seeds: {name}");
        assert!(
            reached >= percent,
            "`{name}` was reached by {reached:.1} % of seeds, not by {percent} %"
        );
    };
    at_least("ring change switched", 30.0);
    at_least("liveness checked", 20.0);
    at_least("fault: clock jump", 10.0);
    for name in RARE {
        at_least(name, 1.0);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..50 {
        let plan = Plan::draw(seed, 500);
        let (first, second) = (run(&plan, false), run(&plan, true));
        assert_eq!(
            first.hash, second.hash,
            "seed {seed}; tracing changes nothing either"
        );
        assert_eq!(first.counts, second.counts, "seed {seed}");
        assert_eq!(first.micros, second.micros, "seed {seed}");
    }
}

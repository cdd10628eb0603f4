//! The short form of the simulation: a few hundred seeds, and the same seed twice.

use torc_sim::swarm::swarm;
use torc_sim::{Plan, run};

const SEEDS: std::ops::Range<u64> = 0..1_000;
const OPS: u64 = 500;

#[test]
fn no_seed_breaks_a_promise() {
    let summary = swarm(SEEDS, OPS, (2, 5, None), |_, _| {});
    for (seed, what) in &summary.failures {
        println!("cargo run --release -p torc-sim -- --seed {seed} --ops {OPS} --trace\n  {what}");
    }
    assert!(
        summary.failures.is_empty(),
        "{} of {} seeds failed",
        summary.failures.len(),
        summary.runs
    );

    // A swarm that no longer reaches the rare paths would prove nothing.
    let faults: u64 = summary
        .counts
        .iter()
        .filter(|(name, _)| name.starts_with("fault"))
        .map(|(_, n)| n)
        .sum();
    assert!(
        faults > OPS * summary.runs / 20,
        "only {faults} faults in {} runs",
        summary.runs
    );
    for rare in [
        "rare: frozen",
        "rare: hedged read",
        "rare: hint delivered",
        "rare: hint dropped",
        "rare: read repair",
        "rare: replica refused a version for drift",
        "rare: replica refused another ring",
        "rare: stand-in",
        "rare: superseded write",
    ] {
        let reached = summary.reached.get(rare).copied().unwrap_or(0);
        assert!(
            reached * 100 >= summary.runs,
            "`{rare}` was reached in {reached} of {} runs",
            summary.runs
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..20 {
        let plan = Plan::draw(seed, 200);
        let (first, second) = (run(&plan, false), run(&plan, true));
        assert_eq!(
            first.hash, second.hash,
            "seed {seed}; tracing changes nothing either"
        );
        assert_eq!(first.counts, second.counts, "seed {seed}");
    }
}

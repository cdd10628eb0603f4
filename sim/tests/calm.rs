//! Worlds in which nothing goes wrong, but operators change the ring again and again while clients work: no
//! request may fail then (a majority of each set of owners is asked, and every one of them is there).

use torc_protocol::time::MS;
use torc_ring::Quorum;
use torc_sim::plan::{Formation, Plan};
use torc_sim::run;

const SEEDS: u64 = 300;
const OPS: u64 = 500;

/// What a seed draws, without anything that goes wrong by itself.
fn calm(seed: u64) -> Plan {
    let mut plan = Plan::draw_without_floors(seed, OPS);
    for name in [
        "loss",
        "duplicates",
        "slow",
        "read_errors",
        "lies",
        "cuts",
        "crashes",
        "pauses",
        "full",
        "jumps",
        "configs",
        "power",
        "wipes",
        "images",
        "refusals",
        "rot",
        "lags",
        "twins",
        "drift_ppm",
        "relics",
        "force",
    ] {
        plan.set(name, 0)
            .unwrap_or_else(|_| panic!("{name} is a fault"));
    }
    plan.orderly = true;
    plan.faults.changes = 10;
    plan.faults.every = 300 * MS;
    plan.spares = plan.spares.max(2);
    plan.formation = Formation::Joined;
    (plan.r, plan.w) = (Quorum::Quorum, Quorum::Quorum);
    plan.own_quorums = false;
    plan.ops_max = 1_000;
    plan.clients = plan.clients.max(3);
    plan.think = plan.think.max(20 * MS);
    plan
}

#[test]
fn no_request_fails_while_operators_change_the_ring_and_nothing_is_wrong() {
    let (mut changes, mut asked) = (0, 0);
    let mut failed = Vec::new();
    for seed in 0..SEEDS {
        let outcome = run(&calm(seed), false);
        assert!(
            outcome.violation.is_none(),
            "seed {seed}: {:?}",
            outcome.violation
        );
        let count = |name| outcome.counts.get(name).copied().unwrap_or(0);
        changes += count("ring change switched");
        asked += outcome.issued;
        let refused: Vec<_> = outcome
            .counts
            .iter()
            .filter(|(name, _)| name.starts_with("refused: "))
            .collect();
        if !refused.is_empty() {
            failed.push((seed, format!("{refused:?}")));
        }
    }
    eprintln!("{asked} requests, {changes} changes of the ring");
    if let Some((seed, _)) = failed.first() {
        show(*seed);
    }
    assert!(changes > SEEDS, "{changes} changes");
    assert!(
        failed.is_empty(),
        "{} seeds: {:?}",
        failed.len(),
        &failed[..failed.len().min(10)]
    );
}

/// What happened before the first refusals of a seed.
fn show(seed: u64) {
    let trace: Vec<String> = run(&calm(seed), true).trace.into();
    let refused = trace
        .iter()
        .position(|line| line.contains("Failed(") && !line.contains("NotReady"));
    let at = refused.unwrap_or(trace.len());
    for line in &trace[at.saturating_sub(60)..(at + 5).min(trace.len())] {
        eprintln!("{line}");
    }
}

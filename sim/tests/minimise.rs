//! A failing run is made smaller, and the smaller one fails in the same way each time.

use torc_protocol::mutant::Mutant;
use torc_sim::check::Invariant;
use torc_sim::minimise::minimise;
use torc_sim::{Plan, run};

#[test]
fn a_failing_run_is_made_smaller_and_fails_again() {
    let failing = (0..100).find_map(|seed| {
        let plan = Plan {
            mutant: Some(Mutant::SupersededUntold),
            ..Plan::draw(seed, 500)
        };
        let outcome = run(&plan, false);
        outcome.violation.is_some().then_some((plan, outcome))
    });
    let (plan, outcome) = failing.expect("the bug is found");
    let (operations, faults) = (outcome.issued, outcome.faults);
    let shrunk = minimise(&plan, outcome, 200).expect("it failed");
    let left = shrunk.outcome.faults - shrunk.plan.skip.len() as u64;
    println!(
        "{operations} operations and {faults} faults became {} and {left}",
        shrunk.outcome.issued
    );
    assert!(shrunk.outcome.issued <= operations && left <= faults);
    assert!(shrunk.outcome.issued + left < operations + faults);
    let again = run(&shrunk.plan, true);
    assert_eq!(again.hash, shrunk.outcome.hash);
    let (_, violation) = again.violation.expect("it fails again");
    assert_eq!(violation.invariant, Invariant::Order);

    // What the printed command would run is the same.
    let mut replayed = Plan {
        mutant: plan.mutant,
        skip: shrunk.plan.skip.clone(),
        ..Plan::draw(plan.seed, plan.ops)
    };
    for (name, value) in shrunk.set {
        assert!(replayed.set(name, value).is_ok(), "{name}");
    }
    assert_eq!(run(&replayed, false).hash, shrunk.outcome.hash);
}

#[test]
fn a_run_that_does_not_fail_has_nothing_to_be_made_smaller() {
    let plan = Plan::draw(1, 50);
    let outcome = run(&plan, false);
    assert!(outcome.violation.is_none(), "{:?}", outcome.violation);
    assert!(minimise(&plan, outcome, 10).is_none());
}

#[test]
fn faults_at_no_distance_at_all_do_not_hold_a_world_for_ever() {
    let mut plan = Plan::draw(1, 50);
    assert!(plan.set("every", 0).is_ok());
    assert!(plan.faults.every > 0);
}

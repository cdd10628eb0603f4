//! Every deliberate bug is found, and by the invariant that it breaks.

use torc_protocol::mutant::Mutant;
use torc_sim::mutants::broken;
use torc_sim::{Plan, run};

const SEEDS_MAX: u64 = 1_000;
const OPS: u64 = 500;

#[test]
fn every_deliberate_bug_is_found() {
    let mut survivors = Vec::new();
    let shown = |mutant: &&Mutant| !broken(**mutant).is_empty();
    for &mutant in Mutant::ALL.iter().filter(shown) {
        let found = (0..SEEDS_MAX).find_map(|seed| {
            let plan = Plan {
                mutant: Some(mutant),
                ..Plan::draw(seed, OPS)
            };
            run(&plan, false)
                .violation
                .map(|(_, violation)| (seed, violation))
        });
        match found {
            Some((seed, violation)) => {
                println!("{mutant:?}: seed {seed}: {violation}");
                assert!(
                    broken(mutant).contains(&violation.invariant),
                    "{mutant:?}, seed {seed}: {violation}"
                );
            }
            None => survivors.push(mutant),
        }
    }
    assert!(
        survivors.is_empty(),
        "not found within {SEEDS_MAX} seeds: {survivors:?}"
    );
}

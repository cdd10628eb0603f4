//! Every deliberate bug is found, and by the invariant that it breaks.

use torc_protocol::mutant::Mutant;
use torc_sim::check::Violation;
use torc_sim::mutants::broken;
use torc_sim::{Plan, run};

/// Seeds within which the last one has to be found, and half of them.
const SEEDS_MAX: u64 = 1_000;
const MEDIAN_MAX: u64 = 50;
const OPS: u64 = 500;

/// Seeds that it took to find a mutant, and by what; `None` when it survives.
fn found(mutant: Mutant) -> Option<(u64, Violation)> {
    (0..SEEDS_MAX).find_map(|seed| {
        let plan = Plan {
            mutant: Some(mutant),
            ..Plan::draw(seed, OPS)
        };
        let (_, violation) = run(&plan, false).violation?;
        Some((seed + 1, violation))
    })
}

#[test]
fn every_deliberate_bug_is_found() {
    let shown: Vec<Mutant> = Mutant::ALL
        .iter()
        .copied()
        .filter(|mutant| !broken(*mutant).is_empty())
        .collect();
    let (first, second) = shown.split_at(shown.len() / 2);
    let search = |mutants: &[Mutant]| -> Vec<(Mutant, Option<(u64, Violation)>)> {
        mutants
            .iter()
            .map(|&mutant| (mutant, found(mutant)))
            .collect()
    };
    // Each thread runs whole worlds of its own.
    #[allow(clippy::disallowed_methods)]
    let results: Vec<_> = std::thread::scope(|scope| {
        let other = scope.spawn(|| search(second));
        let mut results = search(first);
        results.extend(other.join().expect("the other half"));
        results
    });
    let mut needed = Vec::new();
    let mut survivors = Vec::new();
    let mut mistaken = Vec::new();
    for (mutant, found) in results {
        let number = mutant as u8;
        match found {
            Some((seeds, violation)) => {
                println!("{number:>2} {mutant:?}: {seeds} seeds: {violation}");
                needed.push(seeds);
                if !broken(mutant).contains(&violation.invariant) {
                    mistaken.push((mutant, violation));
                }
            }
            None => survivors.push(mutant),
        }
    }
    assert!(
        survivors.is_empty(),
        "not found within {SEEDS_MAX} seeds: {survivors:?}"
    );
    assert!(
        mistaken.is_empty(),
        "found by another invariant than the one they break: {mistaken:?}"
    );
    needed.sort_unstable();
    let median = needed[needed.len() / 2];
    println!(
        "{} mutants, median {median} seeds, worst {:?}",
        needed.len(),
        needed.last()
    );
    assert!(median <= MEDIAN_MAX, "half of them need {median} seeds");
}

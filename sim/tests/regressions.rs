//! Runs that once failed. What a seed draws changes with every new kind of fault, so these tell little
//! about the bugs that they once showed; those have transcripts or mutants of their own.

use torc_sim::{Plan, run};

/// Seed, operations, and what it once showed.
const SEEDS: [(u64, u64, &str); 7] = [
    (3, 500, "a late promise was blamed on its sender"),
    (
        64,
        500,
        "a joiner lost its data while a decision about it was on its way",
    ),
    (
        217,
        500,
        "an image brought back without fsync was taken to have kept everything",
    ),
    (
        313,
        500,
        "a new node could not join while a member's data was lost",
    ),
    (
        541,
        500,
        "ballots of clocks that had been far ahead were waited for",
    ),
    (
        1192,
        500,
        "the newest config was lost with the one member that had told nobody",
    ),
    (
        100_709,
        1_000,
        "a write that lost to one from a clock far ahead was not told so",
    ),
];

#[test]
fn what_once_failed_does_not_fail() {
    for (seed, ops, what) in SEEDS {
        let outcome = run(&Plan::draw(seed, ops), false);
        let found = outcome.violation;
        assert!(
            found.is_none(),
            "seed {seed}, which once showed that {what}: {found:?}"
        );
    }
}

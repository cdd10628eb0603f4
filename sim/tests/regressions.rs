//! Runs that once failed. What a seed draws changes with every new kind of fault, so these tell little
//! about the bugs that they once showed; those have transcripts or mutants of their own.

use torc_sim::{Plan, run};

/// Seed, operations, and what it once showed.
const SEEDS: [(u64, u64, &str); 13] = [
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
        43,
        500,
        "a change waited for a bucket that was deleted meanwhile",
    ),
    (
        469,
        2_000,
        "a config that could not be stored, and came again meanwhile, was never asked for any more",
    ),
    (
        815,
        500,
        "something was wrong that was mended and not written down",
    ),
    (2_663, 500, "the same"),
    (
        900,
        2_000,
        "a read went by the floor of an answer that it had put aside",
    ),
    (
        1_716,
        2_000,
        "a floor on its way to disk was overwritten by the one before it",
    ),
    (
        100_709,
        1_000,
        "a write that lost to one from a clock far ahead was not told so",
    ),
];

/// The same of worlds in which partitions move. Seeds may raise floors by now, which such worlds do not: these
/// are run without.
const WITHOUT_FLOORS: [(u64, u64, &str); 4] = [
    (
        513,
        500,
        "the only member could not start again while a joiner was gone",
    ),
    (
        565,
        2_000,
        "a member could not catch up: those that remained had joined after what it lacked",
    ),
    (
        2_689,
        1_000,
        "a node did not believe the only nodes that knew the versions that it lacked",
    ),
    (
        0,
        500,
        "what a new owner had and had not synced counted as copied",
    ),
];

#[test]
fn what_once_failed_does_not_fail() {
    let drawn = SEEDS.map(|(seed, ops, what)| (Plan::draw(seed, ops), what));
    let moving =
        WITHOUT_FLOORS.map(|(seed, ops, what)| (Plan::draw_without_floors(seed, ops), what));
    for (plan, what) in drawn.into_iter().chain(moving) {
        let found = run(&plan, false).violation;
        assert!(
            found.is_none(),
            "seed {}, which once showed that {what}: {found:?}",
            plan.seed
        );
    }
}

//! Every deliberate bug is found, and by the invariant that it breaks.

use torc_protocol::mutant::Mutant;
use torc_sim::check::Invariant;
use torc_sim::{Plan, run};

const SEEDS_MAX: u64 = 1_000;
const OPS: u64 = 500;

/// Invariants that a mutant may break first.
fn broken(mutant: Mutant) -> &'static [Invariant] {
    use Invariant as I;
    match mutant {
        Mutant::AckBeforeCommit => &[I::Durable],
        Mutant::VoteBeforeDurable
        | Mutant::AcceptedIgnored
        | Mutant::VoteBeforeStartCheck
        | Mutant::ProposalOnUndecided => &[I::Agreed],
        Mutant::BallotReused => &[I::Agreed, I::Mint],
        Mutant::BoundNotPersisted | Mutant::RetryRemints => &[I::Mint],
        Mutant::WriteBackNotAwaited => &[I::Durable, I::Order],
        Mutant::HintRemovedBeforeAck | Mutant::HintForgotten => {
            &[I::Books, I::Converge, I::Progress]
        }
        Mutant::DuplicateAckCounts => &[I::Durable, I::OneRing],
        Mutant::HintDroppedSilently => &[I::Converge],
        Mutant::AcksKeptAcrossRings | Mutant::ServesAcrossRings => &[I::OneRing],
        Mutant::UnionQuorum => &[I::Durable],
        Mutant::TargetReadsOnly => &[I::Order],
        Mutant::DoubtForgotten => &[I::Genuine],
        Mutant::SupersededUntold => &[I::Order],
        Mutant::ReadQuorumShort => &[I::Order, I::Durable],
    }
}

#[test]
fn every_deliberate_bug_is_found() {
    let mut survivors = Vec::new();
    for mutant in Mutant::ALL {
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

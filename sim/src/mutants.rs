//! Which invariant has to find which deliberate bug.

use torc_protocol::mutant::Mutant;

use crate::check::Invariant;

/// Invariants of which a mutant breaks one first; none where worlds cannot show it yet.
#[must_use]
pub fn broken(mutant: Mutant) -> &'static [Invariant] {
    use Invariant as I;
    match mutant {
        Mutant::AckBeforeCommit | Mutant::ServesUncommitted => &[I::Durable],
        Mutant::BoundNotPersisted | Mutant::RetryRemints => &[I::Mint],
        Mutant::WriteBackNotAwaited | Mutant::ReadQuorumShort => &[I::Durable, I::Order],
        Mutant::HintRemovedBeforeAck | Mutant::HintForgotten => {
            &[I::Books, I::Converge, I::Progress]
        }
        Mutant::DuplicateAckCounts => &[I::Durable, I::OneRing],
        Mutant::HintDroppedSilently => &[I::Books, I::Converge],
        Mutant::AcksKeptAcrossRings
        | Mutant::ServesAcrossRings
        | Mutant::DrainSkipped
        | Mutant::AppliedUndrained => &[I::OneRing],
        Mutant::VoteBeforeDurable
        | Mutant::AcceptedIgnored
        | Mutant::VoteBeforeStartCheck
        | Mutant::LatePromiseBlamed => &[I::Agreed],
        Mutant::ProposalOnUndecided => &[I::Agreed, I::Progress],
        Mutant::BallotReused => &[I::Agreed, I::Mint],
        Mutant::ContextUnheard => &[I::Causal],
        Mutant::DigestOfVersion => &[I::Converge, I::Durable],
        // Reads notice that replicas disagree before the end does.
        Mutant::TieByArrival | Mutant::MergeByMillisecond => &[I::Converge, I::Order, I::Durable],
        Mutant::DoubtForgotten => &[I::Genuine],
        Mutant::SupersededUntold => &[I::Order],
        Mutant::LeafForgotten => &[I::Converge],
        // A copy that was left out may differ for ever before anybody reads what is wrong in it.
        Mutant::FloorSkipsOwner => &[I::Deleted, I::Order, I::Readable, I::Converge],
        Mutant::FloorSkipsHints => &[I::Progress, I::Readable, I::Order, I::Durable],
        Mutant::LowerFloorTrusted => &[I::Deleted],
        Mutant::LostFileKeepsFloor => &[I::Deleted, I::Readable],
        Mutant::MergeByExpiry => &[I::Converge, I::Order, I::Durable, I::Readable],
        // What the other rules of floors prevent hides these four; nobody moves partitions in the worlds yet.
        Mutant::FloorBeforeCloses
        | Mutant::ReadIgnoresFloor
        | Mutant::RebuildRaisesFirst
        | Mutant::SessionCountedEarly
        | Mutant::UnionQuorum
        | Mutant::TargetReadsOnly
        | Mutant::SingleSource
        | Mutant::RetainedNotCovered
        | Mutant::SwitchEarly
        | Mutant::StaleCompletion
        | Mutant::CleanedEarly
        | Mutant::LeftoversKept
        | Mutant::AcceptorsFromTarget
        | Mutant::AbortNeedsTarget
        | Mutant::VersionSkipped
        | Mutant::LeaverStopsEarly
        | Mutant::CountedHintsLeft
        | Mutant::CloseNotInherited => &[],
    }
}

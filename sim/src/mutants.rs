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
        | Mutant::VersionSkipped
        | Mutant::LatePromiseBlamed => &[I::Agreed],
        // Of these two the first that shows depends on how many nodes have the wrong idea.
        Mutant::ProposalOnUndecided | Mutant::AcceptorsFromTarget => &[I::Agreed, I::Progress],
        Mutant::BallotReused => &[I::Agreed, I::Mint],
        Mutant::ContextUnheard => &[I::Causal],
        Mutant::DigestOfVersion => &[I::Converge, I::Durable],
        // Reads notice that replicas disagree before the end does.
        Mutant::TieByArrival | Mutant::MergeByMillisecond => &[I::Converge, I::Order, I::Durable],
        Mutant::DoubtForgotten => &[I::Genuine],
        Mutant::SupersededUntold => &[I::Order],
        // What a comparison overlooks, a ring change does not bring either.
        Mutant::LeafForgotten => &[I::Converge, I::Covered, I::Floors],
        // A copy that was left out may differ for ever before anybody reads what is wrong in it.
        // Or it is never made equal to the others', and the change of the ring waits for it.
        Mutant::FloorSkipsOwner => &[
            I::Floors,
            I::Deleted,
            I::Order,
            I::Readable,
            I::Converge,
            I::Progress,
        ],
        Mutant::FloorSkipsHints => &[I::Floors, I::Progress, I::Readable, I::Order, I::Durable],
        // A value that comes back stands at the switch where a newer tombstone was collected.
        Mutant::LowerFloorTrusted => &[I::Floors, I::Deleted, I::Covered],
        Mutant::SessionCountedEarly => &[I::Floors, I::Deleted],
        Mutant::LostFileKeepsFloor => &[I::Deleted, I::Readable],
        Mutant::MergeByExpiry => &[I::Converge, I::Order, I::Durable, I::Readable],
        Mutant::UnionQuorum => &[I::Durable, I::OneRing, I::Order],
        Mutant::TargetReadsOnly => &[I::Order, I::Durable],
        Mutant::RetainedNotCovered | Mutant::SwitchEarly | Mutant::StaleCompletion => {
            &[I::Covered, I::Order, I::Readable]
        }
        Mutant::CleanedEarly => &[I::Covered, I::Order, I::Readable, I::Durable],
        Mutant::CountedHintsLeft | Mutant::SingleSource => &[I::Covered],
        Mutant::CoveredUnsynced => &[I::Covered, I::Floors, I::Durable, I::Order, I::Readable],
        Mutant::LeftoversKept => &[I::Cleaned],
        Mutant::AbortNeedsTarget | Mutant::LeaverStopsEarly => &[I::Progress],
        Mutant::CoveredAtLowerFloor => &[I::Covered, I::Deleted, I::Readable, I::Order],
        // Books: a floor that rises over a hint on its way has it taken for delivered where nothing is kept of it.
        Mutant::FloorBeforeCloses => &[
            I::Floors,
            I::Deleted,
            I::Converge,
            I::Readable,
            I::Order,
            I::Durable,
            I::Books,
            I::Covered,
        ],
        Mutant::ReadIgnoresFloor => &[I::Deleted, I::Order],
        Mutant::RecoveringCounts => &[I::Readable, I::Order, I::Durable, I::Covered],
        Mutant::RebuildRaisesFirst => &[I::Deleted],
        // What is on a disk is wrong before any value is lost by it.
        Mutant::CloseNotInherited
        | Mutant::ClosesNotAwaited
        | Mutant::RoleWithoutCloses
        | Mutant::FloorOverwritten => &[I::Floors],
        // It takes an owner that is alone with its floor, and silent the second time that it is asked.
        Mutant::FloorOfNoAnswer => &[],
    }
}

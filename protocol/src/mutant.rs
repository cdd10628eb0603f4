//! Deliberate bugs, one at a time, by which the simulator shows that its checkers see them.
//!
//! Invariant: without the feature `mutants`, which only the simulator asks for, no shard can have one:
//! the setting does not exist, and every question for one is answered `false` at compile time.

/// A deliberate bug. The numbers are those of the catalogue in `docs/testing.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// 1: a replica acks before the commit.
    AckBeforeCommit,
    /// 3: a moving partition has one quorum of the owners of both rings together.
    UnionQuorum,
    /// 4: a moving partition is read from its target owners alone.
    TargetReadsOnly,
    /// 12: a replica serves whatever ring version the coordinator is at.
    ServesAcrossRings,
    /// 16: the clock's bound is used before it is durable.
    BoundNotPersisted,
    /// 17: a retry under a new ring mints a new version.
    RetryRemints,
    /// 25: a read answers before its write-back is acknowledged.
    WriteBackNotAwaited,
    /// 28: a hint is removed when it is sent.
    HintRemovedBeforeAck,
    /// 37: a second ack of the same owner counts again.
    DuplicateAckCounts,
    /// 40: a hint beyond the bound is dropped without a word.
    HintDroppedSilently,
    /// 41: acks of an older ring count after a restart.
    AcksKeptAcrossRings,
    /// 52: an empty answer of the disk makes hints forgotten that were being stored meanwhile.
    HintForgotten,
    /// 53: a write that was sent under an earlier ring, or met a broken disk, is said to have no effect.
    DoubtForgotten,
    /// 54: a write that lost to a newer one is not told so.
    SupersededUntold,
    /// 55: a read is content with one answer fewer than it requires.
    ReadQuorumShort,
}

impl Mutant {
    /// Those that worlds without joint rings can show.
    pub const ALL: [Self; 12] = [
        Self::AckBeforeCommit,
        Self::BoundNotPersisted,
        Self::RetryRemints,
        Self::WriteBackNotAwaited,
        Self::HintRemovedBeforeAck,
        Self::DuplicateAckCounts,
        Self::HintDroppedSilently,
        Self::AcksKeptAcrossRings,
        Self::HintForgotten,
        Self::DoubtForgotten,
        Self::SupersededUntold,
        Self::ReadQuorumShort,
    ];
}

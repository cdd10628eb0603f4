//! Deliberate bugs, one at a time, by which the simulator shows that its checkers see them.
//!
//! Invariant: without the feature `mutants`, which only the simulator asks for, no machine can have one:
//! the setting does not exist, and every question for one is answered `false` at compile time.

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// A deliberate bug. The numbers are those of the catalogue in `docs/simulator.md`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mutant {
            $($(#[$doc])* $name = $number,)*
        }

        impl Mutant {
            /// All of them, in order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

// One line of text and one of code for each; nothing else lists them here.
mutants! {
    /// A replica acks before the commit.
    AckBeforeCommit = 1,
    /// A replica answers with what is still on its way to disk.
    ServesUncommitted = 2,
    /// A moving partition has one quorum of the owners of both rings together.
    UnionQuorum = 3,
    /// A moving partition is read from its target owners alone.
    TargetReadsOnly = 4,
    /// One source is enough for a partition in a ring change.
    SingleSource = 5,
    /// An owner that stays does not look at the others' copies.
    RetainedNotCovered = 6,
    /// A switch is proposed when one member is complete.
    SwitchEarly = 7,
    /// A completion counts for whatever joint phase is running.
    StaleCompletion = 8,
    /// What a node will not own is dropped when the joint phase begins.
    CleanedEarly = 9,
    /// What a node does not own any more stays on its disk.
    LeftoversKept = 10,
    /// A config counts as applied before the writes of the older one are over.
    AppliedUndrained = 11,
    /// A replica serves whatever ring version the coordinator is at.
    ServesAcrossRings = 12,
    /// A vote is told before it is durable.
    VoteBeforeDurable = 13,
    /// A proposer passes over what acceptors say that they have accepted.
    AcceptedIgnored = 14,
    /// In a joint phase the members of the target decide.
    AcceptorsFromTarget = 15,
    /// The clock's bound is used before it is durable.
    BoundNotPersisted = 16,
    /// A retry under a new ring mints a new version.
    RetryRemints = 17,
    /// The context of a write does not advance the clock.
    ContextUnheard = 18,
    /// The floor is raised without the owners' closes.
    FloorBeforeCloses = 19,
    /// A raise leaves one owner out.
    FloorSkipsOwner = 20,
    /// A member confirms although it holds counted hints.
    FloorSkipsHints = 21,
    /// A version below the floor is taken from an owner with a lower one.
    LowerFloorTrusted = 22,
    /// Reads do not look at floors.
    ReadIgnoresFloor = 23,
    /// The store takes, of two versions, the one that expires later. (In the simulator's disk.)
    MergeByExpiry = 24,
    /// A read answers before its write-back is acknowledged.
    WriteBackNotAwaited = 25,
    /// Reads compare versions alone.
    DigestOfVersion = 26,
    /// The store keeps, of two equal versions, the one that came first. (In the simulator's disk.)
    TieByArrival = 27,
    /// A hint is removed when it is sent.
    HintRemovedBeforeAck = 28,
    /// An abort waits for the members of the target.
    AbortNeedsTarget = 36,
    /// A second ack of the same owner counts again.
    DuplicateAckCounts = 37,
    /// The store keeps, of two versions of one millisecond, the one that came last. (In the simulator's
    /// disk.)
    MergeByMillisecond = 38,
    /// A write does not mark its leaf.
    LeafForgotten = 39,
    /// A hint beyond the bound is dropped without a word.
    HintDroppedSilently = 40,
    /// Acks of an older ring count after a restart.
    AcksKeptAcrossRings = 41,
    /// A node that was away applies the newest config at once.
    VersionSkipped = 42,
    /// A node that may have lost records counts for reads and as an owner that others cover.
    RecoveringCounts = 43,
    /// A node votes before its start check has passed.
    VoteBeforeStartCheck = 44,
    /// Ballots begin anew with each life.
    BallotReused = 45,
    /// A proposal is made on a version that is only accepted.
    ProposalOnUndecided = 46,
    /// A node that leaves stops as soon as it knows that it may.
    LeaverStopsEarly = 47,
    /// A rebuild raises its floor first, and discards afterwards.
    RebuildRaisesFirst = 48,
    /// A comparison for a raise counts before what it brought is fsynced.
    SessionCountedEarly = 49,
    /// New owners and stand-ins do not take over the closes of the others.
    CloseNotInherited = 50,
    /// A node that has lost a file keeps its floor. (In the simulator's disk.)
    LostFileKeepsFloor = 51,
    /// An empty answer of the disk makes hints forgotten that were being stored meanwhile.
    HintForgotten = 52,
    /// A write that was sent under an earlier ring, or met a broken disk, is said to have no effect.
    DoubtForgotten = 53,
    /// A write that lost to a newer one is not told so.
    SupersededUntold = 54,
    /// A read is content with one answer fewer than it requires.
    ReadQuorumShort = 55,
    /// A late answer to a round of a decided version is blamed on its sender.
    LatePromiseBlamed = 56,
    /// A shard says that it has drained while writes of the older ring are on their way to disk.
    DrainSkipped = 57,
    /// A switch does not wait for hints that counted towards a write quorum.
    CountedHintsLeft = 58,
    /// A copy is complete although a source has a higher floor.
    CoveredAtLowerFloor = 59,
    /// A copy is complete before the closes of the owners before are known.
    ClosesNotAwaited = 60,
    /// A node stands in without asking how far the owners have closed.
    RoleWithoutCloses = 61,
    /// A read goes by the floor of an answer that it has put aside.
    FloorOfNoAnswer = 62,
    /// A mark with the old floor is stored while a higher one is on its way to disk.
    FloorOverwritten = 63,
    /// A copy is complete before what was received is fsynced.
    CoveredUnsynced = 64,
}

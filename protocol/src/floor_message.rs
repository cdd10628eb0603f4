//! What nodes say to each other to raise the floor of a partition (see [`crate::message::PeerBody::Floor`]).
//!
//! Every question belongs to one ring version and is refused at any other one. Repeating a question does no
//! harm: whoever is asked answers when it is true, and it stays true as long as the ring version holds.

use torc_ring::{BucketId, PartitionId, RingVersion};

use crate::hlc::Hlc;
use crate::message::OpId;

/// One question or answer about the floor of a bucket's partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct FloorMessage {
    /// Names the step that it belongs to; the answer repeats it.
    pub op: OpId,
    /// Ring version of the sender when it was sent.
    #[bincode(with_serde)]
    pub ring: RingVersion,
    /// Bucket.
    #[bincode(with_serde)]
    pub bucket: BucketId,
    /// Partition: decides which shard takes the message, on both sides.
    #[bincode(with_serde)]
    pub partition: PartitionId,
    /// The sender's own floor there.
    pub floor: Hlc,
    /// What is said.
    pub body: FloorBody,
}

/// The two directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum FloorBody {
    /// A question.
    Ask(FloorAsk),
    /// An answer.
    Answer(FloorAnswer),
}

/// A step of a raise, or what a new owner wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum FloorAsk {
    /// To an owner: how far could the floor be raised, by your own clock?
    Limit,
    /// To a member: confirm, durably, that you hold, create and take no counted hint up to `to`.
    Confirm {
        /// Greatest timestamp, inclusive.
        to: Hlc,
    },
    /// To an owner: close up to `to`, durably.
    Close {
        /// Greatest timestamp, inclusive.
        to: Hlc,
    },
    /// To an owner: compare your copy with those of the owners whose ids are greater, now.
    Compare {
        /// What the owners have closed.
        to: Hlc,
    },
    /// To an owner: all have compared; raise your floor.
    Raise {
        /// The new floor.
        to: Hlc,
    },
    /// To a current owner, from one that gains the partition: how far have you closed?
    Inherit,
}

/// An answer to a [`FloorAsk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum FloorAnswer {
    /// To [`FloorAsk::Limit`].
    Limit {
        /// Greatest timestamp that this owner would close now.
        upto: Hlc,
    },
    /// It is done, and durable.
    Done,
    /// To [`FloorAsk::Inherit`].
    Closed {
        /// The highest close of this owner.
        upto: Hlc,
    },
    /// No.
    Refused(FloorRefusal),
}

/// Why a step is not done. The raise is given up; another one is tried later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub enum FloorRefusal {
    /// The two nodes are at different ring versions.
    RingVersion,
    /// Not an owner, or the partition moves.
    NotOwner,
    /// It does not serve, has not drained, is rebuilding its copy, or its clock is off.
    NotReady,
    /// Its floor is another one than the sender's.
    Uneven,
    /// By its own clock that is not old enough.
    TooYoung,
    /// It holds a hint that counted towards a write.
    Hints,
    /// It could not read or write, or a comparison failed.
    Failed,
}

impl FloorRefusal {
    /// For metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RingVersion => "ring_version",
            Self::NotOwner => "not_owner",
            Self::NotReady => "not_ready",
            Self::Uneven => "uneven",
            Self::TooYoung => "too_young",
            Self::Hints => "hints",
            Self::Failed => "failed",
        }
    }
}

//! What owners of a partition say to each other to become equal: anti-entropy and transfer.
//!
//! The side that began a session asks, the other one answers and remembers nothing between two questions,
//! so that a session survives nothing and costs nothing to begin anew. Every question is of one ring
//! version, and is refused at any other one, and by a node that has not yet drained and durably applied
//! that version: what it accepted under an older one may still be on its way to its disk.
//! Bound: a message is at most [`SYNC_BYTES_MAX`] and one record long.

use torc_ring::{BucketId, PartitionId, RingVersion, Token};

use crate::hlc::Hlc;
use crate::message::{Cursor, OpId};
use crate::record::Record;
use crate::version::Digest;

/// Bytes of records or digests in one message; the last record may go over it.
pub const SYNC_BYTES_MAX: usize = 256 << 10;
/// Sums of nodes that may be asked for at a time.
pub const SUMS_MAX: usize = 8_192;
/// Keys that may be asked for by name at a time.
pub const KEYS_MAX: usize = 1_024;
/// Keys in one page of digests.
pub const DIGESTS_MAX: usize = 2_000;

const _: () = assert!(SUMS_MAX * 16 <= SYNC_BYTES_MAX);

/// One question or answer about a partition.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::BorrowDecode)]
#[bincode(decode_context = "crate::wire::Frame")]
pub struct SyncMessage {
    /// The session; its name is the asking side's.
    pub session: OpId,
    /// Rises with each question of a session; the answer repeats it.
    pub number: u32,
    /// Ring version of the sender when it was sent.
    #[bincode(with_serde)]
    pub ring: RingVersion,
    /// The partition: decides which shard takes the message, on both sides.
    #[bincode(with_serde)]
    pub partition: PartitionId,
    /// The sender's floor at which what it says was read, where it speaks of one bucket; 0 otherwise.
    pub floor: Hlc,
    /// What is said.
    pub body: SyncBody,
}

/// The two directions.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::BorrowDecode)]
#[bincode(decode_context = "crate::wire::Frame")]
pub enum SyncBody {
    /// A question.
    Ask {
        /// Microseconds that are left until nobody waits for the answer any more.
        remaining_us: u32,
        /// The question.
        ask: SyncAsk,
    },
    /// An answer.
    Answer(SyncAnswer),
}

/// A question to another owner of a partition.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::BorrowDecode)]
#[bincode(decode_context = "crate::wire::Frame")]
pub enum SyncAsk {
    /// The roots of these buckets' trees.
    Roots {
        /// At most [`torc_ring::config::BUCKETS_MAX`].
        #[bincode(with_serde)]
        buckets: Vec<BucketId>,
    },
    /// The sums of some nodes of a tree.
    Sums {
        /// Bucket.
        #[bincode(with_serde)]
        bucket: BucketId,
        /// Levels below the root.
        depth: u8,
        /// Which of that level, at most [`SUMS_MAX`].
        nodes: Vec<u16>,
    },
    /// Keys and digests within a range, in order.
    Digests {
        /// Bucket.
        #[bincode(with_serde)]
        bucket: BucketId,
        /// First and last token, inclusive.
        #[bincode(with_serde)]
        range: (Token, Token),
        /// Only keys after this one.
        after: Option<Cursor>,
    },
    /// The records of these keys.
    Pull {
        /// Bucket.
        #[bincode(with_serde)]
        bucket: BucketId,
        /// In order, at most [`KEYS_MAX`].
        keys: Vec<Cursor>,
    },
    /// Merge these records, and answer when they are fsynced.
    Push {
        /// Bucket.
        #[bincode(with_serde)]
        bucket: BucketId,
        /// In any order.
        entries: Vec<SyncEntry>,
    },
    /// Records in order, for a node that has none.
    Page {
        /// Bucket.
        #[bincode(with_serde)]
        bucket: BucketId,
        /// Only keys after this one.
        after: Option<Cursor>,
    },
    /// The asking side has compared everything and found, or made, both sides equal.
    Verified {
        /// Since when, in microseconds before now.
        age_us: u64,
    },
    /// The partition's copy at this node may lack writes: compare it soon.
    Doubt {
        /// The node.
        #[bincode(with_serde)]
        node: torc_ring::NodeId,
    },
}

impl SyncAsk {
    /// The bucket that it is about, if it is about one.
    #[must_use]
    pub fn bucket(&self) -> Option<BucketId> {
        match self {
            Self::Sums { bucket, .. }
            | Self::Digests { bucket, .. }
            | Self::Pull { bucket, .. }
            | Self::Push { bucket, .. }
            | Self::Page { bucket, .. } => Some(*bucket),
            Self::Roots { .. } | Self::Verified { .. } | Self::Doubt { .. } => None,
        }
    }
}

/// An answer to a [`SyncAsk`].
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::BorrowDecode)]
#[bincode(decode_context = "crate::wire::Frame")]
pub enum SyncAnswer {
    /// To [`SyncAsk::Roots`], in the order of the question.
    Roots(Vec<Root>),
    /// To [`SyncAsk::Sums`], in the order of the question.
    Sums {
        /// Levels below the root that the tree has now; when it is less than what was asked for, there are
        /// no sums.
        depth: u8,
        /// The sums.
        sums: Vec<u128>,
    },
    /// To [`SyncAsk::Digests`].
    Digests {
        /// In order of (token, key).
        entries: Vec<(Cursor, Digest)>,
        /// Up to where it looked; `None` when it reached the end of the range.
        reached: Option<Cursor>,
    },
    /// To [`SyncAsk::Pull`] and [`SyncAsk::Page`].
    Records {
        /// In order of (token, key). Keys that are not there are left out.
        entries: Vec<SyncEntry>,
        /// Up to where it looked; `None` when it came to the end.
        reached: Option<Cursor>,
    },
    /// To [`SyncAsk::Push`]: they are fsynced.
    Stored,
    /// To [`SyncAsk::Verified`] and [`SyncAsk::Doubt`].
    Noted,
    /// No.
    Refused(SyncRefusal),
}

/// The root of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Root {
    /// The sum of all.
    pub sum: u128,
    /// Levels below the root.
    pub depth: u8,
    /// Number of keys.
    pub keys: u64,
    /// Floor of the copy.
    pub floor: Hlc,
    /// The copy is whole: its owner neither covers others in a ring change nor rebuilds it.
    pub whole: bool,
}

/// A key and its state.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::BorrowDecode)]
#[bincode(decode_context = "crate::wire::Frame")]
pub struct SyncEntry {
    /// Token and key.
    pub at: Cursor,
    /// The state.
    pub record: Record,
}

impl SyncEntry {
    /// What it counts for against [`SYNC_BYTES_MAX`] and a budget.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.at.key.0.len() + self.record.len() + 32
    }
}

/// Why a question is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub enum SyncRefusal {
    /// The two nodes are at different ring versions; this is the answering node's config version.
    RingVersion {
        /// Config version that it has applied.
        #[bincode(with_serde)]
        config: torc_ring::ConfigVersion,
    },
    /// It is of this ring version, but writes that it accepted before may still be on their way.
    NotDrained,
    /// It does not own the partition, or knows no such bucket.
    NotOwner,
    /// Not now: it has more to do than its budget allows. Ask the same again later.
    Busy {
        /// How much later, in microseconds.
        after_us: u32,
    },
    /// It could not read or write, or has no room, or the question makes no sense.
    Failed,
}

//! What the core asks of a disk, and what the disk answers: data, no trait and no I/O.
//!
//! A [`Batch`] is atomic: after a crash all of its writes are there or none. [`Batch::sync`] says what
//! must have happened before the shell may report it as committed.

use bytes::Bytes;
use torc_ring::{BucketId, ConfigVersion, NodeId, PartitionId, Token};

use crate::changes::Lane;
use crate::hlc::Hlc;
use crate::message::RecordKey;
use crate::record::Record;
use crate::version::Digest;

/// Names a read that the shell has been asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);

/// Names a batch that the shell has been asked to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitId(pub u64);

/// Writes that take effect together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// In order.
    pub writes: Vec<Write>,
    /// What "committed" means for it.
    pub sync: Sync,
}

/// When a batch counts as committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sync {
    /// As the node's `durability` says.
    #[default]
    Policy,
    /// After an fsync, whatever the node's durability says: what the protocol must not forget.
    Fsync,
}

/// One write of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Merge the record into the key's state (the semilattice of [`Record::merge`]); reads nothing first.
    Merge {
        /// The key.
        key: RecordKey,
        /// The record.
        record: Record,
    },
    /// Drop every record in the range.
    Drop(Leftover),
    /// Drop the record of this key.
    Remove {
        /// The key.
        key: RecordKey,
    },
    /// Keep a hint.
    HintPut {
        /// Where.
        at: HintKey,
        /// What.
        hint: Hint,
    },
    /// Drop a hint.
    HintDelete {
        /// Where.
        at: HintKey,
    },
    /// Set a piece of node state.
    StatePut {
        /// Which.
        key: StateKey,
        /// Bytes whose form belongs to the writer.
        value: Bytes,
    },
    /// Forget a piece of node state.
    StateDelete {
        /// Which.
        key: StateKey,
    },
}

/// Tokens of a bucket that a node has records of and does not own, as far as that goes on without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Leftover {
    /// Bucket; it may be deleted.
    pub bucket: BucketId,
    /// First token.
    pub first: Token,
    /// Last token, inclusive.
    pub last: Token,
}

/// Number of slots that hints are kept in; a multiple of every possible number of shards, so that a node
/// may restart with another number of them.
pub const HINT_SLOTS: u8 = 64;

/// Where a hint lies: ordered by target, slot, and the order in which hints came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HintKey {
    /// The owner that missed the write.
    pub target: NodeId,
    /// `partition % HINT_SLOTS`.
    pub slot: u8,
    /// Rises with each hint of a shard, also across restarts (an HLC timestamp).
    pub seq: u64,
}

/// A write that its target missed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The key.
    pub key: RecordKey,
    /// The record.
    pub record: Record,
    /// Whether it counted towards a write quorum (sloppy): then no bound may drop it.
    pub counted: bool,
}

impl Hint {
    /// What it counts for against the bound in bytes.
    #[must_use]
    pub fn weight(&self) -> u64 {
        (self.key.key.len() + self.record.len() + 64) as u64
    }
}

/// What waits for one target in one slot, as counted when the store is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HintTotal {
    /// Target.
    pub target: NodeId,
    /// Slot.
    pub slot: u8,
    /// Number of hints.
    pub count: u64,
    /// How many of them counted towards a write quorum.
    pub counted: u64,
    /// Sum of their [`Hint::weight`]s.
    pub bytes: u64,
    /// Greatest sequence number.
    pub last_seq: u64,
}

/// A piece of node state; each has its own key on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateKey {
    /// This node's identity and name: written once, when the data directory is made.
    Identity,
    /// Durable clock bound of one of this node's shards (its index), or of its cluster machine (255).
    HlcBound(u8),
    /// The clock bound that this node remembers of a peer.
    PeerBound(NodeId),
    /// What this node has promised and accepted as an acceptor of that config version.
    Acceptor(ConfigVersion),
    /// The decided config of that version.
    Decided(ConfigVersion),
    /// The config version that this node has applied.
    Applied,
    /// A note of a change that others are still to be told of, see [`crate::changes`]; numbered in the
    /// order in which they came.
    Change(Lane, u64),
    /// The hash tree of a bucket's partition, as it was when the node stopped. Consumed at the start, so that
    /// a life that ends without stopping leaves none.
    Tree(BucketId, PartitionId),
    /// Floor, close and promise of a bucket's partition, see [`crate::floor::Mark`].
    Floor(BucketId, PartitionId),
}

/// A question to the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// The state of a key.
    Record(RecordKey),
    /// Keys of a bucket within a range of tokens, in order of (token, key).
    Records {
        /// Bucket.
        bucket: BucketId,
        /// First token.
        first: Token,
        /// Last token, inclusive.
        last: Token,
        /// Only keys after this (token, key).
        after: Option<(Token, Bytes)>,
        /// Only keys that begin so.
        prefix: Bytes,
        /// At most this many entries; the disk may stop earlier, also after looking at many keys that do
        /// not begin with `prefix`, and says where it stopped.
        limit: usize,
    },
    /// Keys and digests of a bucket within a range of tokens, in order of (token, key), read from disk with
    /// all checksums checked.
    Digests {
        /// Bucket.
        bucket: BucketId,
        /// First token.
        first: Token,
        /// Last token, inclusive.
        last: Token,
        /// Only keys after this (token, key).
        after: Option<(Token, Bytes)>,
        /// At most this many; the disk may stop earlier, and says where it stopped.
        limit: usize,
    },
    /// Records of a bucket within a range of tokens, in order of (token, key).
    Page {
        /// Bucket.
        bucket: BucketId,
        /// First token.
        first: Token,
        /// Last token, inclusive.
        last: Token,
        /// Only keys after this (token, key).
        after: Option<(Token, Bytes)>,
        /// Bytes of records; one more record may go over it.
        bytes: usize,
    },
    /// The records of these keys; those that are not there are left out.
    Keys {
        /// In order, all of one bucket.
        keys: Vec<RecordKey>,
        /// Bytes of records, after which the disk stops; one more record may go over it.
        bytes: usize,
    },
    /// Hints of one target and slot from a sequence number on (exclusive), in order.
    Hints {
        /// Target.
        target: NodeId,
        /// Slot.
        slot: u8,
        /// Only those after this; 0 for all.
        after: u64,
        /// At most this many.
        limit: usize,
    },
}

/// The disk's answer to a [`Query`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// To [`Query::Record`].
    Record(Option<Record>),
    /// To [`Query::Records`], [`Query::Page`] and [`Query::Keys`].
    Records {
        /// In order.
        entries: Vec<(RecordKey, Record)>,
        /// Where the disk stopped; `None` at the end of the range, or after the last key.
        reached: Option<(Token, Bytes)>,
    },
    /// To [`Query::Digests`].
    Digests {
        /// In order.
        entries: Vec<DigestEntry>,
        /// Where the disk stopped; `None` at the end of the range.
        reached: Option<(Token, Bytes)>,
        /// Bytes of keys and records that were looked at.
        bytes: u64,
    },
    /// To [`Query::Hints`]; `None` in place of a hint that is corrupt.
    Hints(Vec<(HintKey, Option<Hint>)>),
}

/// A key in a page of digests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DigestEntry {
    /// Token.
    pub token: Token,
    /// Key.
    pub key: Bytes,
    /// Version and hash of its state.
    pub digest: Digest,
    /// The least floor at which the state is dead ([`Record::dead_at`]); `None` for never.
    pub dead_at: Option<Hlc>,
}

/// Why the disk could not do what it was asked. It has said the details in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum StoreError {
    /// No room: writes are refused, reads served.
    #[error("disk is full: writes are refused until there is room")]
    Full,
    /// A checksum does not match.
    #[error("stored data is corrupt")]
    Corrupt,
    /// Anything else.
    #[error("storage failed")]
    Failed,
}

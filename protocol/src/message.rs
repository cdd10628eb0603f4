//! What nodes say to each other. Requests and replies are separate enums, so that a mismatch of the two
//! does not compile.
//!
//! Every message carries the sender's clock. Everything about keys carries the ring version at which it
//! was sent, and the receiver refuses another one (protocol, section 4).

use bytes::Bytes;
use torc_ring::{BucketId, ConfigVersion, NodeId, PartitionId, RingVersion, Token};

use crate::cluster_message::ClusterMessage;
use crate::floor_message::FloorMessage;
use crate::hlc::Hlc;
use crate::record::Record;
use crate::sync_message::SyncMessage;
use crate::version::{Digest, Version};
use crate::wire::Blob;

/// Identity of one exchange, unique for its sender across restarts: the shard's index in the top
/// [`OpId::SHARD_BITS`] bits, then a number that starts at random.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode,
)]
pub struct OpId(pub u64);

impl OpId {
    /// Bits that hold the shard.
    pub const SHARD_BITS: u32 = 6;

    /// The id with that shard and number.
    #[must_use]
    pub fn new(shard: u8, number: u64) -> Self {
        Self(
            (u64::from(shard) << (64 - Self::SHARD_BITS))
                | (number & (u64::MAX >> Self::SHARD_BITS)),
        )
    }

    /// The sender's shard, to which replies go.
    #[must_use]
    pub fn shard(self) -> u8 {
        (self.0 >> (64 - Self::SHARD_BITS)) as u8
    }
}

/// A key as replicas know it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    /// Bucket; by id, so that a recreated bucket never sees old records.
    pub bucket: BucketId,
    /// Token of bucket and key.
    pub token: Token,
    /// 1..=1024 bytes.
    pub key: Bytes,
}

/// Greatest length of a request's id in logs, in bytes.
pub const TRACE_LEN_MAX: usize = 128;

/// A message between two nodes.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::BorrowDecode)]
#[bincode(decode_context = "crate::wire::Frame")]
pub struct PeerMessage {
    /// The sender's clock.
    pub hlc: Hlc,
    /// What it says.
    pub body: PeerBody,
}

/// The five conversations.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::BorrowDecode)]
#[bincode(decode_context = "crate::wire::Frame")]
pub enum PeerBody {
    /// A coordinator asks a replica.
    Request(Request),
    /// A replica answers.
    Reply(Reply),
    /// Between the cluster machines: config, agreement, joins, clocks. No ring version is checked.
    Cluster(ClusterMessage),
    /// Between two owners of a partition that make their copies equal.
    Sync(SyncMessage),
    /// Between the members that raise the floor of a partition.
    Floor(FloorMessage),
}

/// A coordinator's request to a replica.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::BorrowDecode)]
#[bincode(decode_context = "crate::wire::Frame")]
pub struct Request {
    /// Names the exchange; the reply repeats it.
    pub op: OpId,
    /// Ring version of the sender when it was sent.
    #[bincode(with_serde)]
    pub ring: RingVersion,
    /// Microseconds that are left until nobody waits for the reply any more.
    pub remaining_us: u32,
    /// The request's id in logs; at most [`TRACE_LEN_MAX`] bytes.
    pub trace: Blob,
    /// What is asked for.
    pub kind: RequestKind,
}

/// Why a record is sent; decides what the replica counts, nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub enum WritePurpose {
    /// A client's write. The only kind whose version must lie within the clock drift.
    Client,
    /// A hint that is delivered.
    Hint,
    /// A read's write-back.
    Repair,
}

/// What a coordinator asks for.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::BorrowDecode)]
#[bincode(decode_context = "crate::wire::Frame")]
pub enum RequestKind {
    /// Merge this record into the key's state and make it durable.
    Write {
        /// The key.
        key: RecordKey,
        /// The record.
        record: Record,
        /// Why.
        purpose: WritePurpose,
        /// Fsync before the ack, whatever the node's durability says.
        fsync: bool,
        /// For a read's write-back: the highest floor that the read has seen. 0 for everything else.
        floor: Hlc,
    },
    /// Keep this write for `target`, which is dead, and count as a replica of it (sloppy quorum).
    StandIn {
        /// The owner that missed it.
        #[bincode(with_serde)]
        target: NodeId,
        /// The key.
        key: RecordKey,
        /// The record.
        record: Record,
    },
    /// The state of a key.
    Read {
        /// The key.
        key: RecordKey,
        /// Only its digest.
        digest_only: bool,
    },
    /// Keys of one partition and bucket, in order of (token, key).
    List {
        /// Bucket.
        #[bincode(with_serde)]
        bucket: BucketId,
        /// Partition.
        #[bincode(with_serde)]
        partition: PartitionId,
        /// Only keys after this one.
        after: Option<Cursor>,
        /// Only keys that begin so.
        prefix: Blob,
        /// At most this many.
        limit: u32,
    },
    /// Say so once when the key's state is another one than `known`, or at once if it is already.
    Watch {
        /// The key.
        key: RecordKey,
        /// The state that the watcher knows.
        known: Option<Digest>,
    },
}

/// A place in a bucket's order of keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, bincode::Encode, bincode::BorrowDecode)]
#[bincode(decode_context = "crate::wire::Frame")]
pub struct Cursor {
    /// Token.
    #[bincode(with_serde)]
    pub token: Token,
    /// Key.
    pub key: Blob,
}

/// A replica's reply to a coordinator.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::BorrowDecode)]
#[bincode(decode_context = "crate::wire::Frame")]
pub struct Reply {
    /// The exchange that it belongs to.
    pub op: OpId,
    /// Ring version of the replica when it answered.
    #[bincode(with_serde)]
    pub ring: RingVersion,
    /// The replica's floor of the partition at which what it says was read.
    pub floor: Hlc,
    /// The answer.
    pub kind: ReplyKind,
}

/// What a replica answers.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::BorrowDecode)]
#[bincode(decode_context = "crate::wire::Frame")]
pub enum ReplyKind {
    /// The write is durable; this version is stored now.
    Written {
        /// Greatest version known to be stored.
        stored: Version,
    },
    /// The hint is durable.
    StoodIn,
    /// The key's state.
    Full {
        /// `None` when nothing is stored.
        record: Option<Record>,
    },
    /// The key's digest.
    Digest {
        /// `None` when nothing is stored.
        digest: Option<Digest>,
    },
    /// Keys.
    Listed(Listed),
    /// The watched key has another state now.
    Changed,
    /// No.
    Refused(Refusal),
}

/// One page of a replica's keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::BorrowDecode)]
#[bincode(decode_context = "crate::wire::Frame")]
pub struct Listed {
    /// In order of (token, key); tombstones and expired values included.
    pub entries: Vec<ListEntry>,
    /// Up to where the replica looked; `None` when it reached the end of the partition.
    pub reached: Option<Cursor>,
}

/// A key in a [`Listed`] page.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::BorrowDecode)]
#[bincode(decode_context = "crate::wire::Frame")]
pub struct ListEntry {
    /// Where it is.
    pub at: Cursor,
    /// Its state's digest.
    pub digest: Digest,
    /// Whether the state is a value (or siblings), not a tombstone.
    pub live: bool,
    /// Expiry in microseconds since 1970, 0 for never.
    pub expiry: u64,
    /// Length of the value in bytes.
    pub value_len: u64,
}

/// Why a replica does not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub enum Refusal {
    /// The two nodes are at different ring versions; this is the replica's config version.
    RingVersion {
        /// Config version that the replica has applied.
        #[bincode(with_serde)]
        config: ConfigVersion,
    },
    /// It does not own the partition.
    NotOwner,
    /// The time was over before the work began.
    Expired,
    /// Its disk is full: it serves reads and refuses writes.
    DiskFull,
    /// It has too much to do.
    Overloaded,
    /// The version lies further from its clock than the allowed drift.
    ClockDrift,
    /// It could not read or write; it says why in its own log.
    Storage,
    /// The version is not above what this owner has closed: such versions it takes only from other owners.
    Closed,
    /// It owns the partition newly, and does not know yet how far the others have closed it.
    Inheriting,
}

//! What a node's facade asks of the core, and what it is answered.

use bytes::Bytes;
use torc_ring::{BucketId, NodeId, PartitionId, Quorum};

use crate::hlc::Hlc;
use crate::message::{Cursor, Refusal};
use crate::record::{Parts, Record};
use crate::time::Mono;
use crate::version::{Digest, Version};

/// Names a client's request for the facade that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A client's request, parsed and checked for form by the facade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRequest {
    /// When nobody waits any more.
    pub deadline: Mono,
    /// The request's id in logs; at most [`crate::message::TRACE_LEN_MAX`] bytes.
    pub trace: Bytes,
    /// Bucket.
    pub bucket: BucketId,
    /// What is to be done.
    pub op: ClientOp,
}

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientOp {
    /// Store a value, or delete (`value` is `None`: a tombstone is written).
    Put {
        /// 1..=1024 bytes.
        key: Bytes,
        /// The value; `None` to delete.
        value: Option<Value>,
        /// Replicas to wait for; the bucket's default otherwise.
        w: Option<Quorum>,
        /// Whether stand-ins count; the bucket's default otherwise.
        sloppy: Option<bool>,
        /// Fsync on each replica before it counts, whatever its durability says.
        fsync: bool,
        /// What the author had read, if a context was sent: the write orders after it.
        context: Option<Version>,
    },
    /// Mint a version for a write that will be stored later by [`ClientOp::Store`], here or at any other
    /// node: answered by [`ClientReply::Prepared`]. Nothing is stored, nobody else is asked.
    Prepare {
        /// 1..=1024 bytes.
        key: Bytes,
        /// The value; `None` to delete.
        value: Option<Value>,
        /// What the author had read, if a context was sent: the write orders after it.
        context: Option<Version>,
    },
    /// Store what [`ClientOp::Prepare`] made. Storing it again changes nothing, however often and whatever
    /// was written since: the version is part of the record.
    Store {
        /// 1..=1024 bytes.
        key: Bytes,
        /// A value or a tombstone.
        record: Record,
        /// Replicas to wait for; the bucket's default otherwise.
        w: Option<Quorum>,
    },
    /// Read a key.
    Get {
        /// 1..=1024 bytes.
        key: Bytes,
        /// Replicas to wait for; the bucket's default otherwise.
        r: Option<Quorum>,
    },
    /// Read a key, but answer only when its state is another one than `known`; when the deadline comes
    /// first, answer with what is there.
    Watch {
        /// 1..=1024 bytes.
        key: Bytes,
        /// Replicas to wait for in each read.
        r: Option<Quorum>,
        /// The state that the client knows.
        known: Option<Digest>,
    },
    /// What each owner holds of a key, for an operator; answered by [`ClientReply::Verified`].
    Verify {
        /// 1..=1024 bytes.
        key: Bytes,
    },
    /// List keys of one partition, in order of (token, key).
    List {
        /// Partition.
        partition: PartitionId,
        /// Only keys after this one.
        after: Option<Cursor>,
        /// Only keys that begin so.
        prefix: Bytes,
        /// At most this many, 1..=10,000.
        limit: usize,
    },
}

/// A value to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The bytes.
    pub bytes: Bytes,
    /// Content type; empty for none.
    pub content_type: Bytes,
    /// Time to live in milliseconds; the bucket's default otherwise.
    pub ttl_ms: Option<u64>,
}

/// The record that a write under that version makes: a value, or a tombstone where there is none. A value
/// that names no time to live has the bucket's.
#[must_use]
pub fn record_of(version: Version, value: Option<&Value>, bucket_ttl_ms: Option<u64>) -> Record {
    let Some(value) = value else {
        return Record::tombstone(version);
    };
    let expiry = value.ttl_ms.or(bucket_ttl_ms).map(|ttl| {
        let micros = ttl.saturating_mul(1_000);
        version.hlc.micros().saturating_add(micros).max(1)
    });
    Record::value(Parts {
        version,
        expiry,
        content_type: &value.content_type,
        value: &value.bytes,
    })
}

/// What a client is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientReply {
    /// The write is durable on as many replicas as asked for.
    Stored {
        /// State that this write made.
        digest: Digest,
        /// A newer version was there already: this write is not what a reader sees.
        superseded: bool,
    },
    /// The write under its version, to be stored later.
    Prepared {
        /// A value or a tombstone.
        record: Record,
    },
    /// The state of the key as merged from the replicas asked; `None` when nothing was ever stored.
    Found {
        /// A tombstone or an expired value too: the facade shows neither, but uses their context.
        record: Option<Record>,
        /// Microseconds since 1970 by the coordinator's clock, against which expiry is judged.
        now_micros: u64,
    },
    /// What each owner holds: the current ones in order of preference, then those of the ring to come.
    Verified {
        /// One for each owner.
        held: Vec<Held>,
    },
    /// Live keys of one partition.
    Listed {
        /// In order of (token, key).
        keys: Vec<ListedKey>,
        /// Where to go on; `None` at the end of the partition.
        next: Option<Cursor>,
    },
    /// No.
    Failed(ClientError),
}

/// What one owner holds of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The owner.
    pub node: NodeId,
    /// Its floor of the key's partition; 0 for none, and where it did not say.
    pub floor: Hlc,
    /// What it said.
    pub holding: Holding,
}

/// What an owner said when it was asked what it holds of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// The digest of the state, a tombstone's too; `None` when nothing is stored, or what is stored is dead by
    /// the floor.
    State(Option<Digest>),
    /// It does not say.
    Refused(Refusal),
    /// Nothing, in time.
    Silent,
}

/// A key in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedKey {
    /// The key.
    pub key: Bytes,
    /// Digest of its state.
    pub digest: Digest,
    /// Length of the value in bytes.
    pub value_len: u64,
    /// Expiry in microseconds since 1970.
    pub expiry: Option<u64>,
}

/// Why a request was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ClientError {
    /// Too few replicas answered before the deadline.
    #[error("{received} of {required} replicas answered before the deadline")]
    Quorum {
        /// Replicas asked for.
        required: u8,
        /// Replicas that answered.
        received: u8,
        /// A write may still take effect.
        maybe_applied: bool,
    },
    /// Too few replicas are alive for it to be worth trying; nothing was sent.
    #[error("{alive} replicas are alive, {required} are required")]
    Unavailable {
        /// Replicas asked for.
        required: u8,
        /// Owners that are believed to be alive.
        alive: u8,
    },
    /// `r` or `w` is above the bucket's n.
    #[error("{given} replicas were asked for, but the bucket has n = {n}")]
    QuorumTooLarge {
        /// What was asked for.
        given: u8,
        /// Replicas of the bucket.
        n: u8,
    },
    /// The bucket's conflict mode is not served yet.
    #[error("the bucket's conflict mode is not supported by this version")]
    Mode,
    /// No such bucket (any more).
    #[error("no such bucket")]
    NoBucket,
    /// The disks of so many replicas are full that the quorum cannot be met.
    #[error("disk full: {received} of {required} replicas could store the write")]
    DiskFull {
        /// Replicas asked for.
        required: u8,
        /// Replicas that stored it.
        received: u8,
        /// The write may still take effect.
        maybe_applied: bool,
    },
    /// This node's clock is outside the allowed drift: it mints no versions.
    #[error("this node's clock is outside the allowed drift")]
    ClockDrift,
    /// The context lies so far in the future that no honest node can have made it.
    #[error("the context lies beyond the allowed clock drift")]
    ContextFromFuture,
    /// The node has too much to do, or is not ready; nothing was sent. Try again, or another node.
    #[error("the node refuses early instead of queueing without bound")]
    Overloaded,
    /// The node does not serve yet (no config, or still checking its start).
    #[error("the node does not serve yet")]
    NotReady,
}

//! Inputs and outputs of a [`crate::shard::Shard`].

use std::sync::Arc;

use bytes::Bytes;
use torc_ring::placement::Ring;
use torc_ring::{BucketId, Config, NodeId, PartitionId, ReadRepair};

use crate::client::{ClientReply, ClientRequest, RequestId};
use crate::floor::FloorStatus;
use crate::message::{PeerMessage, WritePurpose};
use crate::store::{Batch, CommitId, Found, Query, ReadId, StoreError};

/// A config and the ring that it makes, computed once and shared by all shards of a node.
#[derive(Debug)]
pub struct View {
    /// The configuration.
    pub config: Config,
    /// Its tables.
    pub ring: Ring,
}

impl View {
    /// Computes the ring of a valid configuration.
    #[must_use]
    pub fn new(config: Config) -> Arc<Self> {
        let ring = Ring::compute(&config);
        Arc::new(Self { config, ring })
    }

    /// Whether that node owns the partition of the bucket in either ring: what others may ask it for, and
    /// what it may keep on disk.
    #[must_use]
    pub fn keeps(&self, node: NodeId, bucket: BucketId, partition: PartitionId) -> bool {
        let bucket = self.config.bucket_by_id(bucket);
        bucket.is_some_and(|bucket| self.ring.owners_of(bucket, partition).contains(node))
    }

    /// Whether that node may stand in for others: not when it is about to leave, because what it holds for
    /// them would have to be delivered first.
    #[must_use]
    pub fn may_stand_in(&self, node: NodeId) -> bool {
        let target = self.config.target.as_ref();
        target.is_none_or(|target| target.iter().any(|member| member.id == node))
    }
}

/// What happens to a shard.
#[derive(Debug)]
pub enum Input {
    /// A client asks. Exactly one [`Output::Reply`] with the same id will follow, by its deadline.
    Client(RequestId, ClientRequest),
    /// A peer's request or reply. `from` is authenticated.
    Peer(NodeId, PeerMessage),
    /// The answer to [`Output::Read`].
    Read(ReadId, Result<Found, StoreError>),
    /// The outcome of [`Output::Commit`].
    Committed(CommitId, Result<(), StoreError>),
    /// Peers that are believed to be dead; replaces what was believed before. Everybody else is alive.
    Liveness(Vec<NodeId>),
    /// This node's clock is (not) within the allowed drift of the majority's.
    ClockTrusted(bool),
    /// A config was agreed on and is applied now. The shard answers [`Output::Drained`] when every write
    /// that it accepted under an older one is committed or refused.
    Config(Arc<View>),
    /// The config of that ring version is durably applied by this node. Until then no copy of a partition is
    /// compared or transferred: after a crash the node could take writes under the older version again.
    Applied(torc_ring::RingVersion),
    /// Compare all partitions of this shard with all their owners, before anything else.
    Repair,
    /// Nothing comes any more: write the hash trees down for the next start.
    /// [`crate::shard::Shard::is_idle`] says when they are.
    Save,
    /// The node may serve now: its start check has passed.
    Serve,
    /// The client of this request has gone away: a watch ends without a reply.
    Cancel(RequestId),
    /// The node stops: write down what is only remembered. [`crate::shard::Shard::is_idle`] says when.
    Stop,
    /// Time has passed: [`crate::shard::Shard::next_deadline`] was reached.
    Tick,
}

/// What a shard wants done.
#[derive(Debug)]
pub enum Output {
    /// Answer a client.
    Reply(RequestId, ClientReply),
    /// Send to a peer (never to this node itself). May be lost.
    Send(NodeId, PeerMessage),
    /// Ask the disk; answered by [`Input::Read`].
    Read(ReadId, Query),
    /// Write to disk; answered by [`Input::Committed`]. Batches of one shard are committed in order.
    Commit(CommitId, Batch),
    /// All writes accepted under ring versions below this one are committed or refused.
    Drained(torc_ring::RingVersion),
    /// Everything that this shard's partitions gain under that joint ring version is here, durably. Said once.
    Covered(torc_ring::RingVersion),
    /// A peer knows a newer config than this shard; the cluster machine should fetch it.
    NewerConfig(NodeId, torc_ring::ConfigVersion),
    /// For metrics and logs.
    Event(Event),
}

/// What the shell counts and logs. The core counts nothing itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A coordinated operation ended. Pairs with each [`Input::Client`].
    Coordinated {
        /// `put`, `delete`, `prepare`, `store`, `get`, `watch`, `list`.
        op: &'static str,
        /// Replicas waited for.
        required: u8,
        /// `ok` or the reason.
        outcome: &'static str,
        /// Microseconds that it took.
        micros: u64,
        /// The request's id.
        trace: Bytes,
    },
    /// This replica did, or refused, what it was asked.
    Replica {
        /// `write`, `hint`, `repair`, `read`, `digest`, `list`, `watch`, `stand_in`.
        op: &'static str,
        /// `ok` or the reason.
        outcome: &'static str,
        /// Who asked.
        from: NodeId,
        /// The request's id.
        trace: Bytes,
    },
    /// A peer answered after this many microseconds.
    PeerLatency {
        /// Who.
        peer: NodeId,
        /// How long.
        micros: u64,
    },
    /// A read asked one replica more, because another was slow.
    Hedged,
    /// A read found replicas that differ.
    ReadRepair {
        /// How it mends them.
        mode: ReadRepair,
    },
    /// Equal versions with different content were merged: a fault somewhere.
    VersionCollision {
        /// Partition of the key.
        partition: PartitionId,
    },
    /// A hint is to be stored. Pairs with delivered, dropped, and those that wait.
    HintStored {
        /// Target.
        target: NodeId,
    },
    /// So many hints wait for a target in this shard now.
    Hints {
        /// Target.
        target: NodeId,
        /// Waiting in this shard.
        waiting: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// Hints were dropped; their partition needs anti-entropy.
    HintsDropped {
        /// Target.
        target: NodeId,
        /// How many.
        count: u64,
        /// `bytes`, `age`, `full`, `left` (no owner is left to take it), `corrupt` (what it was is lost),
        /// `closed` (older than what its target takes from clients).
        reason: &'static str,
        /// Partition; of a corrupt hint one of those that it may have been about.
        partition: PartitionId,
    },
    /// A hint was delivered.
    HintDelivered {
        /// Target.
        target: NodeId,
    },
    /// A request was refused early.
    Shed {
        /// Which bound.
        reason: &'static str,
    },
    /// Records were stored, durably, because another owner had them.
    Synced {
        /// The other owner.
        from: NodeId,
        /// Keys.
        keys: u64,
        /// Bytes of keys and records.
        bytes: u64,
        /// For a ring change; else by anti-entropy.
        transfer: bool,
    },
    /// How far the shard's partitions are known to agree with their other owners.
    Agreement {
        /// Microseconds since which the least verified pair of owners is known to agree.
        age_us: u64,
        /// Pairs of a partition and another owner.
        pairs: u64,
        /// Pairs that are in doubt, and will be compared first.
        doubts: u64,
    },
    /// How far a ring change has come in this shard.
    Progress {
        /// The joint ring version.
        ring: torc_ring::RingVersion,
        /// Partitions of buckets that are complete.
        done: u64,
        /// Partitions of buckets that this shard gains or must check.
        total: u64,
        /// Bytes received for it so far.
        bytes: u64,
    },
    /// The floor of a partition of a bucket was raised, durably.
    FloorRaised {
        /// Partition.
        partition: PartitionId,
        /// The floor, in microseconds since 1970.
        floor_micros: u64,
    },
    /// A raise was given up; another one is tried later.
    FloorGivenUp {
        /// Partition.
        partition: PartitionId,
        /// `limit`, `confirm`, `close`, `compare`, `raise`.
        step: &'static str,
        /// `dead`, `timeout`, `uneven`, or what a member said.
        reason: &'static str,
    },
    /// So many records that were dead by their floor have been dropped from disk.
    Collected {
        /// How many.
        count: u64,
    },
    /// A copy that had missed a raise is equal to the others' again.
    Rebuilt {
        /// Partition.
        partition: PartitionId,
        /// Records that the others do not hold any more, and that were dropped.
        dropped: u64,
    },
    /// A rebuild ended early; it is tried again.
    RebuildFailed {
        /// Partition.
        partition: PartitionId,
        /// `storage`, `session`, `busy`.
        reason: &'static str,
    },
    /// What waits to be collected in this shard, and why it does; about once a second.
    Floors(FloorStatus),
    /// A session with another owner ended early; it is tried again.
    SyncFailed {
        /// The other owner.
        peer: NodeId,
        /// Partition.
        partition: PartitionId,
        /// `timeout`, `ring_version`, `not_drained`, `not_owner`, `storage`, `peer`, `tree`.
        reason: &'static str,
    },
    /// A write came for another purpose than a client's; how it was taken.
    Repaired {
        /// Why it was sent.
        purpose: WritePurpose,
    },
}

//! What an operator asks of a cluster machine, and what it answers: plans, commits, aborts, buckets, status.
//!
//! The shell hands requests in as [`crate::cluster_io::ClusterInput::Admin`] and gets exactly one
//! [`crate::cluster_io::ClusterOutput::AdminReply`] for each, within about ten seconds. Any member can be
//! asked, at any time.

use std::sync::Arc;

use torc_ring::change::StageError;
use torc_ring::{
    Bucket, Config, ConfigError, ConfigVersion, ConflictMode, LastChange, Member, NodeId, Quorum,
    ReadRepair, RingChange, RingVersion,
};

/// Names a request for the shell that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdminId(pub u64);

/// What an operator wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminRequest {
    /// What would these changes do? Answered by [`AdminReply::Planned`]; nothing is changed.
    Plan(Vec<RingChange>),
    /// Begin these changes, together. Answered by [`AdminReply::Committed`] when a majority of the current
    /// members has stored the decision: the data moves from then on.
    Commit {
        /// What.
        changes: Vec<RingChange>,
        /// The config version that the plan was made for; refused when it is another one by now.
        version: Option<ConfigVersion>,
    },
    /// Take the running change back.
    Abort,
    /// Make, change or delete a bucket. Answered by [`AdminReply::Committed`].
    Bucket(BucketChange),
    /// Where does the cluster stand? Answered by [`AdminReply::Status`].
    Status,
}

/// A change of one bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BucketChange {
    /// Make it, or give it these settings. Another n moves data as a change of the ring does, and must be
    /// the only difference; the conflict mode never changes.
    Put {
        /// Its name.
        name: String,
        /// All of its settings.
        settings: BucketSettings,
    },
    /// Delete it with all of its keys. A bucket of the same name that is made later does not see them.
    Delete {
        /// Its name.
        name: String,
    },
}

/// What a bucket is like, besides its name and its id.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // they are those of `torc_ring::Bucket`
pub struct BucketSettings {
    pub n: u8,
    pub r: Quorum,
    pub w: Quorum,
    pub conflict: ConflictMode,
    pub ttl_ms: Option<u64>,
    pub read_repair: ReadRepair,
    pub sloppy: bool,
}

impl BucketSettings {
    /// Those of that bucket.
    #[must_use]
    pub fn of(bucket: &Bucket) -> Self {
        Self {
            n: bucket.n,
            r: bucket.r,
            w: bucket.w,
            conflict: bucket.conflict,
            ttl_ms: bucket.ttl_ms,
            read_repair: bucket.read_repair,
            sloppy: bucket.sloppy,
        }
    }

    /// Gives them to a bucket.
    pub fn apply_to(&self, bucket: &mut Bucket) {
        (bucket.n, bucket.r, bucket.w) = (self.n, self.r, self.w);
        (bucket.conflict, bucket.ttl_ms) = (self.conflict, self.ttl_ms);
        (bucket.read_repair, bucket.sloppy) = (self.read_repair, self.sloppy);
    }
}

/// What an operator is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminReply {
    /// To [`AdminRequest::Plan`]. [`torc_ring::Plan::running`] of `joint` says what would move.
    Planned {
        /// The config that the plan was made for: its version goes into the commit.
        present: Arc<Config>,
        /// What a commit would propose.
        joint: Box<Config>,
    },
    /// The decision is stored by a majority.
    Committed {
        /// The config version that was decided.
        version: ConfigVersion,
        /// Its ring version.
        ring: RingVersion,
    },
    /// To [`AdminRequest::Status`].
    Status(Box<Status>),
}

/// Where the cluster stands, as this node knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The newest config.
    pub config: Arc<Config>,
    /// What is going on.
    pub phase: ChangePhase,
    /// Every member of both rings, ordered by id.
    pub nodes: Vec<NodeStatus>,
    /// How the last change of the ring ended.
    pub last: Option<LastChange>,
    /// Nodes that want to be taken in and have asked this node lately.
    pub waiting: Vec<Member>,
}

/// How far a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangePhase {
    /// No change is running.
    Idle,
    /// Something is proposed and not decided yet.
    Proposing,
    /// Data moves; operations need both rings.
    Joint,
    /// All data is where it belongs; the switch is being decided.
    Switching,
}

impl ChangePhase {
    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Proposing => "proposing",
            Self::Joint => "moving",
            Self::Switching => "switching",
        }
    }
}

/// One member in a [`Status`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// Who.
    pub member: Member,
    /// What the change does with it.
    pub role: Role,
    /// Microseconds since it was heard of; `None` if never. 0 for the node asked.
    pub silent_us: Option<u64>,
    /// Newest config version that it is known to have decided.
    pub version: ConfigVersion,
    /// What it has said of the running change; `None` outside one, and before it has said anything.
    pub progress: Option<Progress>,
}

/// What a change of the ring does with a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It is a member before and after.
    Stays,
    /// It becomes a member.
    Joins,
    /// It gives its data away and goes.
    Leaves,
    /// It is dead and is taken out.
    Removed,
}

impl Role {
    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stays => "stays",
            Self::Joins => "joins",
            Self::Leaves => "leaves",
            Self::Removed => "removed",
        }
    }
}

/// How far one member is with a joint phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Progress {
    /// Everything that it gains is there, durably.
    pub covered: bool,
    /// Partitions of buckets that are complete.
    pub done: u64,
    /// Partitions of buckets that it gains or must check.
    pub total: u64,
    /// Bytes that it has received for the change.
    pub bytes: u64,
}

/// Why an operator's wish is not fulfilled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// The node has no config, or still checks its start.
    #[error("this node does not serve yet: ask another one, or wait")]
    NotServing,
    /// The node is no member of the current ring.
    #[error("this node is no member of the current ring: ask a member")]
    NotMember,
    /// Something else is running.
    #[error("a change is running already ({}); see its status, and wait for it or abort it", .0.phase.name())]
    Busy(Box<Status>),
    /// Nothing is running.
    #[error("no change of the ring is running")]
    NothingToAbort,
    /// The config is another one than the plan was made for.
    #[error("the plan was made for config version {}, which is {} by now: plan again", .planned.0, .now.0)]
    Moved {
        /// The plan's.
        planned: ConfigVersion,
        /// The newest.
        now: ConfigVersion,
    },
    /// These changes cannot be made.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The config would not be valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another change was decided first.
    #[error("another change was decided first, as config version {}: look at it, and try again", .version.0)]
    Overtaken {
        /// The version.
        version: ConfigVersion,
    },
    /// No majority of the members has answered so far.
    #[error(
        "no majority of the members has answered; config version {} may still come through: ask for the status later",
        .version.0
    )]
    Unknown {
        /// The version that is proposed.
        version: ConfigVersion,
    },
    /// This node's clock is outside the allowed drift.
    #[error("this node's clock is outside the allowed drift: ask another one")]
    ClockDrift,
    /// No such bucket.
    #[error("there is no bucket `{name}`")]
    NoBucket {
        /// The name asked for.
        name: String,
    },
    /// The conflict mode is for ever.
    #[error("the conflict mode of bucket `{name}` cannot change: make another bucket")]
    ConflictMode {
        /// The bucket.
        name: String,
    },
    /// Another n moves data, which is a change of its own.
    #[error(
        "another n of bucket `{name}` moves data: change n alone, and the rest before or after it"
    )]
    ReplicasAlone {
        /// The bucket.
        name: String,
    },
    /// A member that is to be removed as dead is alive.
    #[error("node {node} was heard of a moment ago: let it leave, or stop it first")]
    Alive {
        /// Who.
        node: NodeId,
    },
    /// Too many operators at a time.
    #[error("too many requests are waiting: try again")]
    TooMany,
}

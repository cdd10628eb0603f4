//! Changes of the ring and of buckets, as a node's admin listener takes and shows them.

use serde::{Deserialize, Serialize};

/// One change of the ring. Nodes are named by their names or ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "lowercase")]
pub enum Change {
    /// A node that asks to be taken in becomes a member.
    Join {
        /// Who.
        node: String,
    },
    /// A member gives its data to the others and goes.
    Leave {
        /// Who.
        node: String,
    },
    /// A dead member is taken out.
    Remove {
        /// Who.
        node: String,
    },
    /// A dead member is taken out, and a node that asks to be taken in comes in its place.
    Replace {
        /// Who is dead.
        dead: String,
        /// Who comes.
        by: String,
    },
    /// A member gets another share.
    Reweigh {
        /// Who.
        node: String,
        /// 1..=10,000.
        weight: u32,
    },
    /// A member is in another failure domain.
    Rezone {
        /// Who.
        node: String,
        /// Where.
        zone: String,
    },
    /// A bucket gets another number of replicas.
    Replicas {
        /// Which.
        bucket: String,
        /// 1..=16.
        n: u8,
    },
}

/// `POST /ring/plan`: what changes would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanView {
    /// Version of the configuration that the plan was made for; 0 in a running change.
    #[serde(default)]
    pub config_version: u64,
    /// Number of partitions.
    pub partitions: u32,
    /// About how many bytes would be copied, where the node can tell.
    #[serde(default)]
    pub estimated_bytes: Option<u64>,
    /// What moves, for each kind of bucket.
    pub layouts: Vec<LayoutView>,
}

/// What moves in the buckets of one number of replicas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayoutView {
    /// Replicas of a key before.
    pub n_before: u8,
    /// Replicas of a key after.
    pub n_after: u8,
    /// The buckets.
    pub buckets: Vec<String>,
    /// Partitions that change hands.
    pub partitions_moving: u32,
    /// Replicas before.
    pub replicas_before: u32,
    /// Replicas after.
    pub replicas_after: u32,
    /// Replicas that are copied.
    pub replicas_moved: u32,
    /// The least that has to be copied, in replicas.
    pub unavoidable: f64,
    /// The fullest node's replicas as a multiple of its fair share, before.
    #[serde(default)]
    pub fullest_before: f64,
    /// The fullest node's replicas as a multiple of its fair share, after.
    #[serde(default)]
    pub fullest_after: f64,
    /// Nodes before and after.
    pub nodes: Vec<NodePlanView>,
}

/// What a plan means for a node, in replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePlanView {
    /// Identity.
    pub id: String,
    /// Name.
    pub name: String,
    /// Held before.
    pub before: u32,
    /// Held after.
    pub after: u32,
    /// Received.
    pub gains: u32,
    /// Given up.
    pub loses: u32,
}

/// `GET /ring/change`: where the ring stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChangeView {
    /// `idle`, `proposing`, `moving` or `switching`.
    pub phase: String,
    /// Version of the configuration.
    pub config_version: u64,
    /// Version of the ring.
    pub ring_version: u64,
    /// Every member of both rings.
    pub nodes: Vec<ChangeNode>,
    /// What moves; `None` while nothing does.
    pub plan: Option<PlanView>,
    /// How the last change ended.
    pub last: Option<LastView>,
    /// Nodes that ask to be taken in.
    pub waiting: Vec<WaitingView>,
}

/// A member in a [`ChangeView`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeNode {
    /// Identity.
    pub id: String,
    /// Name.
    pub name: String,
    /// `stays`, `joins`, `leaves` or `removed`.
    pub role: String,
    /// Milliseconds since it was heard of.
    pub silent_ms: Option<u64>,
    /// Newest configuration that it is known to have.
    pub config_version: u64,
    /// How far it is.
    pub progress: Option<ProgressView>,
}

/// How far a member is with a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressView {
    /// Everything that it gains is there, durably.
    pub covered: bool,
    /// Partitions that are complete.
    pub done: u64,
    /// Partitions that it gains or must check.
    pub total: u64,
    /// Bytes received.
    pub bytes: u64,
}

/// How the last change ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastView {
    /// The ring version of its joint phase.
    pub ring_version: u64,
    /// `switched`, `aborted` or `no_target_quorum`.
    pub end: String,
}

/// A node that asks to be taken in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingView {
    /// Identity.
    pub id: String,
    /// Name.
    pub name: String,
    /// Where other nodes reach it.
    pub peer: String,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// Version of the configuration.
    pub config_version: u64,
    /// Version of the ring.
    pub ring_version: u64,
}

impl ChangeView {
    /// Whether nothing is proposed and nothing moves.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.phase == "idle"
    }

    /// Names of the members that the change waits for: those that have not said to be complete.
    pub fn incomplete(&self) -> impl Iterator<Item = &str> {
        self.nodes
            .iter()
            .filter(|node| node.role != "removed" && node.progress.is_none_or(|p| !p.covered))
            .map(|node| node.name.as_str())
    }

    /// Partitions that are complete, those that have to be, and bytes received, all nodes together.
    #[must_use]
    pub fn progress(&self) -> ProgressView {
        let said = self.nodes.iter().filter_map(|node| node.progress);
        said.fold(ProgressView::default(), |sum, node| ProgressView {
            covered: false,
            done: sum.done + node.done,
            total: sum.total + node.total,
            bytes: sum.bytes + node.bytes,
        })
    }
}

/// A bucket with all of its settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketView {
    /// Name.
    pub name: String,
    /// Identity; `None` in the answer that made it.
    #[serde(default)]
    pub id: Option<u32>,
    /// Replicas of each key.
    pub n: u8,
    /// Replicas that a read waits for.
    pub r: String,
    /// Replicas that a write waits for.
    pub w: String,
    /// Conflict mode.
    pub conflict: String,
    /// Time to live of values that name none.
    pub ttl: Option<String>,
    /// `blocking`, `async` or `off`.
    pub read_repair: String,
    /// Whether others may stand in for dead owners.
    pub sloppy: bool,
}

/// What a bucket is to be like; what is `None` stays as it is, or gets its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BucketWish {
    /// Replicas of each key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<u8>,
    /// `one`, `quorum`, `all` or a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r: Option<String>,
    /// Likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub w: Option<String>,
    /// `lww`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conflict: Option<String>,
    /// `Some(None)` takes it away.
    #[allow(clippy::option_option)] // left out is another thing than null
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Option<String>>,
    /// `blocking`, `async` or `off`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_repair: Option<String>,
    /// Whether others may stand in for dead owners.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sloppy: Option<bool>,
}

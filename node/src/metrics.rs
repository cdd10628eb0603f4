//! Every metric of a node: one struct, one file. Names and labels are an interface.
//!
//! What is counted per request or per message is an atomic that stands ready, so that counting takes no
//! lock and no memory; what can be read off the node when somebody asks (members, hints, drift) is read
//! then, by [`Scrape`]. The core counts nothing itself: it returns events, and [`Metrics::on_event`]
//! counts them. There is never a label per key.

mod process;
mod scrape;
mod series;
mod side;

use crate::transport::TransportMetrics;
use std::sync::Arc;
use std::time::Duration;

use torc_protocol::shard_io::Event;
use torc_ring::{NodeId, ReadRepair};

pub(crate) use self::process::process_text;
pub use self::scrape::Scrape;
pub use self::series::{Counter, Histogram, Tally};
pub use self::side::CacheResult;

use self::series::{BATCH_BOUNDS, ByName, ByPeer, Gauge, HttpCounts, TIME_BOUNDS};

/// A resource of the facade, as the label `route` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the label says it
pub enum Route {
    Key,
    Bucket,
    Batch,
    Compatible,
    CacheStats,
    Writes,
    Write,
    Page,
    HealthLive,
    HealthReady,
    Health,
    Metrics,
    Ring,
    RingOwners,
    RingVerify,
    Cluster,
    BucketInfo,
    Asset,
    Docs,
    DocsFile,
    OpenApi,
    Repair,
    Buckets,
    RingPlan,
    RingCommit,
    RingAbort,
    RingChange,
    None,
}

impl Route {
    pub(crate) const ALL: [Self; 28] = [
        Self::Key,
        Self::Bucket,
        Self::Batch,
        Self::Compatible,
        Self::CacheStats,
        Self::Writes,
        Self::Write,
        Self::Page,
        Self::HealthLive,
        Self::HealthReady,
        Self::Health,
        Self::Metrics,
        Self::Ring,
        Self::RingOwners,
        Self::RingVerify,
        Self::Cluster,
        Self::BucketInfo,
        Self::Asset,
        Self::Docs,
        Self::DocsFile,
        Self::OpenApi,
        Self::Repair,
        Self::Buckets,
        Self::RingPlan,
        Self::RingCommit,
        Self::RingAbort,
        Self::RingChange,
        Self::None,
    ];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Key => "/kv/{bucket}/{key}",
            Self::Bucket => "/kv/{bucket}",
            Self::Batch => "/kv/{bucket}/_batch",
            Self::Compatible => "/kv",
            Self::CacheStats => "/cache/stats",
            Self::Writes => "/writes",
            Self::Write => "/writes/{id}",
            Self::Page => "/",
            Self::HealthLive => "/health/live",
            Self::HealthReady => "/health/ready",
            Self::Health => "/health",
            Self::Metrics => "/metrics",
            Self::Ring => "/ring",
            Self::RingOwners => "/ring/owners",
            Self::RingVerify => "/ring/verify",
            Self::Cluster => "/cluster",
            Self::BucketInfo => "/buckets/{bucket}",
            Self::Asset => "/assets/{file}",
            Self::Docs => "/docs",
            Self::DocsFile => "/docs/{file}",
            Self::OpenApi => "/openapi.json",
            Self::Repair => "/repair",
            Self::Buckets => "/buckets",
            Self::RingPlan => "/ring/plan",
            Self::RingCommit => "/ring/commit",
            Self::RingAbort => "/ring/abort",
            Self::RingChange => "/ring/change",
            Self::None => "none",
        }
    }
}

/// What the facade refuses early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shed {
    /// A connection beyond `limits.connections`: 503.
    Connections,
    /// A request beyond `limits.requests`: 429.
    Requests,
    /// A watch beyond the same number: 429.
    Watches,
}

impl Shed {
    fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Requests => "requests",
            Self::Watches => "watches",
        }
    }
}

/// Which way bytes go between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the peer.
    Sent,
    /// From the peer.
    Received,
}

/// All metrics that are counted as things happen.
#[derive(Debug)]
pub struct Metrics {
    /// `torc_http_requests_total{method,route,status}`: answers whose head was made, of both listeners.
    /// Pairs with the count of `torc_http_request_seconds`, which lacks the watches. What hyper refuses
    /// before it is a request is not among them.
    http: HttpCounts,
    /// `torc_http_request_seconds`: from a request's head to its answer's head, of all but watches.
    http_seconds: Histogram,
    /// `torc_http_connections{listener}`: open now: data, admin. Pairs with `limits.connections`.
    connections: [Gauge; 2],
    /// `torc_coordinator_ops_total{op,consistency,outcome}`: operations that this node coordinated;
    /// `consistency` is the number of replicas waited for. Pairs with `torc_coordinator_seconds`.
    coordinated: Tally,
    /// `torc_coordinator_seconds{op}`: from the request's arrival at the shard to its reply, of all but watches.
    coordinator_seconds: [Histogram; 4],
    /// `torc_replica_ops_total{op,outcome}`: what coordinators, this node's own included, asked of this replica.
    replica: Tally,
    /// `torc_replica_commit_seconds`: one group commit, from write to durable. Its count pairs with that of
    /// `torc_commit_batch_size`.
    commit_seconds: Histogram,
    /// `torc_commit_batch_size`: batches of shards that one group commit made durable together.
    commit_batch: Histogram,
    /// `torc_peer_reply_seconds{peer}`: from a coordinator's request to that peer's reply, the peer's disk
    /// included. `torc_peer_rtt_seconds{peer}`, which is read off the connections, is the network's part of it.
    peer_reply: ByPeer<Histogram>,
    /// `torc_peer_bytes_total{direction,peer}`: payload of peer connections, before encryption.
    peer_bytes: ByPeer<[Counter; 2]>,
    /// The same of all nodes that are no members, which may be any number: peer `guests`.
    guest_bytes: [Counter; 2],
    /// `torc_peer_refused_total{reason}`: connections, frames and messages of peers that were not accepted.
    peer_refused: ByName,
    /// `torc_hedged_reads_total`: reads that asked one replica more because another was slow. Pairs with
    /// `torc_coordinator_ops_total{op="get"}`.
    hedged: Counter,
    /// `torc_read_repairs_total{mode}`: reads that found replicas that differ; pairs with the same.
    read_repairs: [Counter; 3],
    /// `torc_hints_stored_total`: hints written. Pairs with delivered, dropped, and those that wait.
    hints_stored: Counter,
    /// `torc_hints_delivered_total`: hints that their targets have acknowledged.
    hints_delivered: Counter,
    /// `torc_hints_dropped_total{reason}`: hints that a bound has dropped; their keys wait for repair.
    hints_dropped: ByName,
    /// `torc_antientropy_keys_repaired_total`: keys that were stored here because another owner had them,
    /// outside of ring changes.
    keys_repaired: Counter,
    /// `torc_antientropy_sessions_failed_total{reason}`: comparisons that ended early and are tried again,
    /// those of ring changes included.
    sessions_failed: ByName,
    /// `torc_transfer_bytes_total`: bytes of keys and values received in ring changes.
    transfer_bytes: Counter,
    /// `torc_tombstones_collected_total`: records that were dead by their floor and dropped from disk. Pairs
    /// with `torc_tombstones{state}`, what is still there.
    collected: Counter,
    /// `torc_floor_raises_total`: floors of partitions raised here, as owner.
    raises: Counter,
    /// `torc_floor_raises_failed_total{reason}`: raises that this node led and gave up.
    raises_failed: ByName,
    /// `torc_version_collisions_total`: equal versions with different values were merged. Anything but 0
    /// is a fault somewhere.
    collisions: Counter,
    /// `torc_shed_total{reason}`: work refused early, by the facade or a shard.
    shed: ByName,
    /// `torc_cache_requests_total{result}`: reads that may use the cache: answered by it, not answered, or
    /// gone on without it because it was down or slow.
    cache: [Counter; 3],
    /// `torc_changes_total{result}`: changes told to the feed, and those that a bound has left out.
    changes: [Counter; 2],
}

impl Default for Metrics {
    fn default() -> Self {
        let times = || Histogram::new(TIME_BOUNDS);
        Self {
            http: HttpCounts::default(),
            http_seconds: times(),
            connections: Default::default(),
            coordinated: Tally::new(&["put", "delete", "prepare", "store", "get", "watch", "list"]),
            coordinator_seconds: std::array::from_fn(|_| times()),
            replica: Tally::new(&[
                "write", "hint", "repair", "read", "digest", "list", "watch", "stand_in",
            ]),
            commit_seconds: times(),
            commit_batch: Histogram::new(BATCH_BOUNDS),
            peer_reply: ByPeer::new(|| Histogram::new(TIME_BOUNDS)),
            peer_bytes: ByPeer::new(Default::default),
            guest_bytes: Default::default(),
            peer_refused: ByName::default(),
            hedged: Counter::default(),
            read_repairs: Default::default(),
            hints_stored: Counter::default(),
            hints_delivered: Counter::default(),
            hints_dropped: ByName::default(),
            keys_repaired: Counter::default(),
            sessions_failed: ByName::default(),
            transfer_bytes: Counter::default(),
            collected: Counter::default(),
            raises: Counter::default(),
            raises_failed: ByName::default(),
            collisions: Counter::default(),
            shed: ByName::default(),
            cache: Default::default(),
            changes: Default::default(),
        }
    }
}

/// Operations that `torc_coordinator_seconds` knows; a watch waits by design and would hide the others.
const TIMED: [&str; 4] = ["put", "delete", "get", "list"];
const MODES: [&str; 3] = ["blocking", "async", "off"];

impl Metrics {
    /// A request was answered after `took`; `None` for a watch, which waits by design.
    pub fn on_http(
        &self,
        route: Route,
        method: &http::Method,
        status: u16,
        took: Option<Duration>,
    ) {
        self.http.add(route, method, status);
        if let Some(took) = took {
            self.http_seconds.observe(took.as_micros() as u64);
        }
    }

    /// Connections of a listener were opened (or closed, as a negative number).
    pub fn on_connections(&self, admin: bool, change: i64) {
        self.connections[usize::from(admin)].add(change);
    }

    /// The facade refused something early.
    pub fn on_shed(&self, what: Shed) {
        self.shed.add(what.label(), 1);
    }

    /// So much work was refused early for that reason, one of a few fixed words.
    pub fn on_shed_count(&self, reason: &'static str, count: u64) {
        self.shed.add(reason, count);
    }

    /// One group commit of `batches` became durable after `took`.
    pub fn on_commit(&self, batches: usize, took: Duration) {
        self.commit_seconds.observe(took.as_micros() as u64);
        self.commit_batch.observe(batches as u64);
    }

    /// Bytes went to a peer or came from it; `None` for a node that is no member. Whoever counts often should
    /// keep what [`Self::peer_bytes`] hands out.
    pub fn on_peer_bytes(&self, peer: Option<NodeId>, direction: Direction, bytes: u64) {
        match peer {
            Some(member) => self.peer_bytes(member)[direction as usize].add(bytes),
            None => self.guest_bytes[direction as usize].add(bytes),
        }
    }

    /// The counters of one peer: sent, received.
    #[must_use]
    pub fn peer_bytes(&self, peer: NodeId) -> Arc<[Counter; 2]> {
        self.peer_bytes.of(peer)
    }

    /// Something of a peer was refused; `reason` is one of a few fixed words.
    pub fn on_peer_refused(&self, reason: &'static str) {
        self.peer_refused.add(reason, 1);
    }

    /// Counts what the core reports.
    pub fn on_event(&self, event: &Event) {
        match event {
            Event::Coordinated {
                op,
                required,
                outcome,
                micros,
                ..
            } => {
                self.coordinated.add(op, *required, outcome);
                if let Some(at) = TIMED.iter().position(|timed| timed == op) {
                    self.coordinator_seconds[at].observe(*micros);
                }
            }
            Event::Replica { op, outcome, .. } => self.replica.add(op, 0, outcome),
            Event::PeerLatency { peer, micros } => self.peer_reply.of(*peer).observe(*micros),
            Event::Hedged => self.hedged.add(1),
            Event::ReadRepair { mode } => {
                let at = match mode {
                    ReadRepair::Blocking => 0,
                    ReadRepair::Async => 1,
                    ReadRepair::Off => 2,
                };
                self.read_repairs[at].add(1);
            }
            Event::VersionCollision { .. } => self.collisions.add(1),
            Event::HintStored { .. } => self.hints_stored.add(1),
            Event::HintsDropped { count, reason, .. } => self.hints_dropped.add(reason, *count),
            Event::HintDelivered { .. } => self.hints_delivered.add(1),
            Event::Shed { reason } => self.shed.add(reason, 1),
            Event::Synced {
                bytes,
                transfer: true,
                ..
            } => self.transfer_bytes.add(*bytes),
            Event::Synced { keys, .. } => self.keys_repaired.add(*keys),
            Event::SyncFailed { reason, .. } => self.sessions_failed.add(reason, 1),
            // Gauges, which `Handle` keeps; the last one the replica has counted by its purpose.
            Event::Collected { count } => self.collected.add(*count),
            Event::FloorRaised { .. } => self.raises.add(1),
            Event::FloorGivenUp { reason, .. } => self.raises_failed.add(reason, 1),
            Event::Hints { .. }
            | Event::Rebuilt { .. }
            | Event::RebuildFailed { .. }
            | Event::Floors { .. }
            | Event::Agreement { .. }
            | Event::Progress { .. }
            | Event::Repaired { .. } => {}
        }
    }
}

impl TransportMetrics for Metrics {
    fn sent(&self, peer: Option<NodeId>, bytes: u64) {
        self.on_peer_bytes(peer, Direction::Sent, bytes);
    }

    fn received(&self, peer: Option<NodeId>, bytes: u64) {
        self.on_peer_bytes(peer, Direction::Received, bytes);
    }

    fn refused(&self, reason: &'static str) {
        self.on_peer_refused(reason);
    }

    fn shed(&self, reason: &'static str, messages: u64) {
        self.on_shed_count(reason, messages);
    }

    fn lost(&self, _peer: NodeId, messages: u64) {
        self.on_shed_count("peer_link_lost", messages);
    }
}

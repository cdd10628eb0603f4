//! What the facade knows of the node: submit a request, look at the ring, ask for the node's state.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot};
use torc_protocol::client::{ClientError, ClientOp, ClientReply, ClientRequest};
use torc_protocol::cluster_admin::{AdminError, AdminReply, AdminRequest};
use torc_protocol::floor::FloorStatus;
use torc_protocol::shard_io::{Input, View};
use torc_protocol::time::{Mono, Now, Wall};
use torc_ring::{ConflictMode, NodeId, PartitionId, RingVersion, Token};
use torc_storage::Store;

use crate::cluster_task::ClusterMail;
use crate::config::Settings;
use crate::metrics::Metrics;
use crate::shard_task::Mail;
use crate::side::Side;
use crate::side::cache::{Cache, Written};
use crate::transport::Transport;

/// The cluster machine answers earlier than this; a node that is stopping may not.
const ADMIN_WAIT: Duration = Duration::from_secs(20);

/// A request on its way to a shard.
#[derive(Debug)]
pub struct Submission {
    /// What is asked.
    pub request: ClientRequest,
    /// Where the answer goes.
    pub reply: oneshot::Sender<ClientReply>,
}

/// The node as others in the process see it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Arc<Settings>,
    metrics: Arc<Metrics>,
    node: NodeId,
    started: Instant,
    shards: Vec<mpsc::Sender<Submission>>,
    view: RwLock<Option<Arc<View>>>,
    state: RwLock<State>,
    /// Hints that wait in each shard for each target: count, bytes.
    hints: Mutex<BTreeMap<(usize, NodeId), (u64, u64)>>,
    /// Of each shard: age of agreement in microseconds, pairs, pairs in doubt.
    agreement: Mutex<BTreeMap<usize, (u64, u64, u64)>>,
    /// What waits to be collected in each shard.
    floors: Mutex<BTreeMap<usize, FloorStatus>>,
    /// Of each shard: joint ring version, partitions complete, of how many, bytes received.
    progress: Mutex<BTreeMap<usize, (u64, u64, u64, u64)>>,
    /// Ways to tell the shards something.
    inlets: OnceLock<Vec<mpsc::UnboundedSender<Mail>>>,
    parts: OnceLock<Parts>,
    operators: OnceLock<mpsc::UnboundedSender<ClusterMail>>,
    side: OnceLock<Side>,
}

/// How far the copies of partitions at this node are known to agree with their other owners'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Time since which the least verified pair is known to agree.
    pub age: Duration,
    /// Pairs of a partition and another owner of it.
    pub pairs: u64,
    /// Pairs that are in doubt and compared first.
    pub doubts: u64,
}

/// How far the present ring change has come at this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransferProgress {
    /// Partitions of buckets that have arrived and are verified.
    pub done: u64,
    /// Partitions of buckets that this node gains or must check.
    pub total: u64,
    /// Bytes received.
    pub bytes: u64,
}

/// Parts of the node that status and metrics look into.
#[derive(Clone)]
pub struct Parts {
    /// The store.
    pub store: Store,
    /// The peer transport.
    pub transport: Transport,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// The node's state as health checks and status pages show it.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Why the node does not serve; `None` when it does.
    pub not_ready: Option<NotReady>,
    /// Nodes that are believed to be dead, as seen from here.
    pub dead: Vec<NodeId>,
    /// The disk is full.
    pub disk_full: bool,
    /// This node's clock is within the allowed drift.
    pub clock_trusted: bool,
    /// Measured offset of each peer's clock in microseconds.
    pub drift: Vec<(NodeId, i64)>,
    /// Hints waiting: target, count, bytes.
    pub hints: Vec<(NodeId, u64, u64)>,
    /// The node is stopping.
    pub stopping: bool,
    /// The read cache. Requests go on without it.
    pub cache: Condition,
    /// The queue of writes. Everything but asynchronous writes goes on without it.
    pub queue: Condition,
}

/// How a side service is, as `/health` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// None is configured.
    #[default]
    Absent,
    /// It works.
    Ok,
    /// It works in part.
    Degraded {
        /// What does not, in words.
        reason: String,
    },
    /// It does not answer, and is passed over.
    Down {
        /// Why, in words.
        reason: String,
    },
}

/// Why a node does not serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// It has no config yet.
    #[error("this node has not joined a cluster yet")]
    NoConfig,
    /// It checks with its peers whether its disk is the newest one.
    #[error("this node is checking with its peers that its disk is not an old copy")]
    StartCheck,
    /// It sees too few members.
    #[error("this node sees {alive} of {members} members alive, which is no majority")]
    NoMajority {
        /// Members that are believed to be alive, this node included.
        alive: usize,
        /// Members.
        members: usize,
    },
    /// It is stopping.
    #[error("this node is stopping")]
    Stopping,
    /// It was removed from the ring.
    #[error("this node is not a member of the ring any more")]
    Removed,
}

impl Handle {
    /// A handle over these shards.
    #[must_use]
    pub fn new(
        settings: Arc<Settings>,
        metrics: Arc<Metrics>,
        node: NodeId,
        shards: Vec<mpsc::Sender<Submission>>,
    ) -> Self {
        let state = State {
            not_ready: Some(NotReady::NoConfig),
            clock_trusted: true,
            ..State::default()
        };
        Self(Arc::new(Inner {
            settings,
            metrics,
            node,
            started: Instant::now(),
            shards,
            view: RwLock::new(None),
            state: RwLock::new(state),
            hints: Mutex::default(),
            agreement: Mutex::default(),
            floors: Mutex::default(),
            progress: Mutex::default(),
            inlets: OnceLock::new(),
            parts: OnceLock::new(),
            operators: OnceLock::new(),
            side: OnceLock::new(),
        }))
    }

    /// Says where operators' requests go; only the first call counts.
    pub(crate) fn set_operators(&self, mail: mpsc::UnboundedSender<ClusterMail>) {
        let _ = self.0.operators.set(mail);
    }

    /// Asks the cluster machine what an operator wants; answered within about ten seconds.
    ///
    /// # Errors
    /// Says why it is not done. [`AdminError::NotServing`] also while the node starts or stops.
    pub async fn admin(&self, request: AdminRequest) -> Result<AdminReply, AdminError> {
        let (reply, answer) = oneshot::channel();
        let mail = self.0.operators.get().ok_or(AdminError::NotServing)?;
        let sent = mail.send(ClusterMail::Admin(request, reply));
        sent.map_err(|_| AdminError::NotServing)?;
        match tokio::time::timeout(ADMIN_WAIT, answer).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(_)) | Err(_) => Err(AdminError::NotServing),
        }
    }

    /// Hands in the parts that status and metrics look into; only the first call counts.
    pub fn set_parts(&self, parts: Parts) {
        let _ = self.0.parts.set(parts);
    }

    /// Those parts; `None` in tests of the facade alone.
    #[must_use]
    pub fn parts(&self) -> Option<&Parts> {
        self.0.parts.get()
    }

    /// Hands in the side services; only the first call counts, and none before it finds any.
    pub fn set_side(&self, side: Side) {
        let _ = self.0.side.set(side);
    }

    /// The side services.
    #[must_use]
    pub fn side(&self) -> &Side {
        static NONE: Side = Side::NONE;
        self.0.side.get().unwrap_or(&NONE)
    }

    /// So many hints, of so many bytes, wait in that shard for that target.
    pub fn set_hints(&self, shard: usize, target: NodeId, waiting: u64, bytes: u64) {
        self.0
            .hints
            .lock()
            .insert((shard, target), (waiting, bytes));
    }

    /// How far a shard's copies are known to agree: age in microseconds, pairs, pairs in doubt.
    pub fn set_agreement(&self, shard: usize, agreement: (u64, u64, u64)) {
        self.0.agreement.lock().insert(shard, agreement);
    }

    /// The least known agreement of all shards.
    #[must_use]
    pub fn agreement(&self) -> Agreement {
        let shards = self.0.agreement.lock();
        let mut sum = Agreement::default();
        for &(age, pairs, doubts) in shards.values() {
            sum.age = sum.age.max(Duration::from_micros(age));
            sum.pairs += pairs;
            sum.doubts += doubts;
        }
        sum
    }

    /// What waits to be collected in a shard.
    pub fn set_floors(&self, shard: usize, floors: FloorStatus) {
        self.0.floors.lock().insert(shard, floors);
    }

    /// What waits to be collected in all shards together.
    #[must_use]
    pub fn floors(&self) -> FloorStatus {
        let shards = self.0.floors.lock();
        let mut sum = FloorStatus::default();
        for shard in shards.values() {
            sum.young += shard.young;
            sum.due += shard.due;
            sum.collecting += shard.collecting;
            sum.partitions_due += shard.partitions_due;
            sum.uncounted += shard.uncounted;
            sum.behind += shard.behind;
            sum.lag_us = sum.lag_us.max(shard.lag_us);
            sum.held.extend(shard.held.iter().cloned());
        }
        sum
    }

    /// How far a ring change has come in a shard: joint ring version, done, total, bytes.
    pub fn set_progress(&self, shard: usize, progress: (u64, u64, u64, u64)) {
        self.0.progress.lock().insert(shard, progress);
    }

    /// How far the change to that joint ring version has come at this node.
    #[must_use]
    pub fn progress(&self, ring: RingVersion) -> TransferProgress {
        let shards = self.0.progress.lock();
        let mut sum = TransferProgress::default();
        for &(_, done, total, bytes) in shards.values().filter(|of| of.0 == ring.0) {
            sum.done += done;
            sum.total += total;
            sum.bytes += bytes;
        }
        sum
    }

    /// Hands in the ways to the shards; only the first call counts.
    pub(crate) fn set_inlets(&self, inlets: Vec<mpsc::UnboundedSender<Mail>>) {
        let _ = self.0.inlets.set(inlets);
    }

    /// Has all copies of this node's partitions compared with their other owners', before anything else.
    pub fn repair(&self) {
        for inlet in self.0.inlets.get().into_iter().flatten() {
            // A shard ends only when the node stops.
            let _ = inlet.send(Mail::Control(Input::Repair));
        }
        // Until the shards have told how much there is to do.
        for agreement in self.0.agreement.lock().values_mut() {
            agreement.2 = agreement.1;
        }
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// The metrics.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// The metrics, to be kept by whoever counts.
    #[must_use]
    pub fn shared_metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.0.metrics)
    }

    /// This node's identity.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.0.node
    }

    /// Config and ring that are applied; `None` before the node has joined.
    #[must_use]
    pub fn view(&self) -> Option<Arc<View>> {
        self.0.view.read().clone()
    }

    /// Puts another view in place.
    pub fn set_view(&self, view: Arc<View>) {
        *self.0.view.write() = Some(view);
    }

    /// A copy of the state.
    #[must_use]
    pub fn state(&self) -> State {
        let mut state = self.0.state.read().clone();
        let mut sums: BTreeMap<NodeId, (u64, u64)> = BTreeMap::new();
        for (&(_, target), &(waiting, bytes)) in self.0.hints.lock().iter() {
            let sum = sums.entry(target).or_default();
            *sum = (sum.0 + waiting, sum.1 + bytes);
        }
        state.hints = sums
            .into_iter()
            .map(|(target, (waiting, bytes))| (target, waiting, bytes))
            .collect();
        if let Some(cache) = &self.side().cache {
            state.cache = cache.condition();
        }
        if let Some(queue) = &self.side().queue {
            state.queue = queue.condition();
        }
        state
    }

    /// Changes the state.
    pub fn update_state(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.state.write());
    }

    /// Both clocks, as the core counts them.
    #[must_use]
    pub fn now(&self) -> Now {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        Now {
            mono: Mono(self.0.started.elapsed().as_micros() as u64),
            wall: Wall(wall.as_micros() as u64),
        }
    }

    /// Whether the node serves, and why not.
    ///
    /// # Errors
    /// Says what it lacks: a config, the start check, or a majority of members that are alive.
    pub fn ready(&self) -> Result<(), NotReady> {
        let state = self.0.state.read();
        if state.stopping {
            return Err(NotReady::Stopping);
        }
        if let Some(reason) = &state.not_ready {
            return Err(reason.clone());
        }
        let members = self
            .0
            .view
            .read()
            .as_ref()
            .map_or(0, |view| view.config.current.len());
        let alive = members.saturating_sub(state.dead.len());
        if 2 * alive > members {
            Ok(())
        } else {
            Err(NotReady::NoMajority { alive, members })
        }
    }

    /// Has the request done, and answers by its deadline. A full queue is answered with
    /// [`ClientError::Overloaded`] at once. Reads that may be, are answered by the cache.
    pub async fn submit(&self, request: ClientRequest) -> ClientReply {
        match &self.side().cache {
            None => self.dispatch(request).await,
            Some(cache) => self.submit_beside(cache, request, false).await.0,
        }
    }

    /// The same for a read that may be answered by the cache whatever its bucket says. Answers also
    /// whether it was.
    pub async fn submit_to_cache(&self, request: ClientRequest) -> (ClientReply, bool) {
        match &self.side().cache {
            None => (self.dispatch(request).await, false),
            Some(cache) => self.submit_beside(cache, request, true).await,
        }
    }

    async fn submit_beside(
        &self,
        cache: &Cache,
        request: ClientRequest,
        always: bool,
    ) -> (ClientReply, bool) {
        let Some(view) = self.view() else {
            return (self.dispatch(request).await, false);
        };
        let (bucket, begun) = (request.bucket, self.now().wall.0);
        if let Some(written) = Written::of(&request) {
            let reply = self.dispatch(request).await;
            cache.on_write(&view, (&written, begun), &reply).await;
            return (reply, false);
        }
        let key = match &request.op {
            ClientOp::Get { key, r } => view
                .config
                .bucket_by_id(bucket)
                .filter(|known| known.conflict == ConflictMode::Lww)
                .filter(|known| always || cache.allows(known, *r))
                .map(|_| key.clone()),
            _ => None,
        };
        let Some(key) = key else {
            return (self.dispatch(request).await, false);
        };
        if let Some(record) = cache.find((&view, bucket), &key, begun).await {
            let found = ClientReply::Found {
                record: Some(record),
                now_micros: begun,
            };
            return (found, true);
        }
        let reply = self.dispatch(request).await;
        if let ClientReply::Found {
            record: Some(record),
            ..
        } = &reply
        {
            cache.fill((&view, bucket), &key, record, begun);
        }
        (reply, false)
    }

    /// Hands the request to the shard that owns its partition and waits for the answer.
    async fn dispatch(&self, request: ClientRequest) -> ClientReply {
        let Some(partition) = self.partition_of(&request) else {
            return ClientReply::Failed(ClientError::NotReady);
        };
        let shard = usize::from(partition.0) & (self.0.shards.len() - 1);
        let left = request.deadline.since(self.now().mono);
        let (reply, answer) = oneshot::channel();
        let Some(queue) = self.0.shards.get(shard) else {
            return ClientReply::Failed(ClientError::NotReady);
        };
        if queue.try_send(Submission { request, reply }).is_err() {
            return ClientReply::Failed(ClientError::Overloaded);
        }
        // The shard answers by the deadline; the margin is for a shard that is late or gone.
        let margin = Duration::from_micros(left) + Duration::from_secs(1);
        match tokio::time::timeout(margin, answer).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(_)) | Err(_) => ClientReply::Failed(ClientError::Quorum {
                required: 0,
                received: 0,
                maybe_applied: true,
            }),
        }
    }

    fn partition_of(&self, request: &ClientRequest) -> Option<PartitionId> {
        let view = self.0.view.read();
        let config = &view.as_ref()?.config;
        Some(match &request.op {
            ClientOp::Put { key, .. }
            | ClientOp::Prepare { key, .. }
            | ClientOp::Store { key, .. }
            | ClientOp::Get { key, .. }
            | ClientOp::Watch { key, .. }
            | ClientOp::Verify { key } => {
                Token::of(config.seed, request.bucket, key).partition(config.partition_bits)
            }
            ClientOp::List { partition, .. } => *partition,
        })
    }
}

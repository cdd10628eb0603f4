//! What the facade knows of the node: submit a request, look at the ring, ask for the node's state.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot};
use torc_protocol::client::{ClientError, ClientOp, ClientReply, ClientRequest};
use torc_protocol::shard_io::View;
use torc_protocol::time::{Mono, Now, Wall};
use torc_ring::{NodeId, PartitionId, Token};

use crate::config::Settings;
use crate::metrics::Metrics;

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
        let state = State { not_ready: Some(NotReady::NoConfig), clock_trusted: true, ..State::default() };
        Self(Arc::new(Inner {
            settings,
            metrics,
            node,
            started: Instant::now(),
            shards,
            view: RwLock::new(None),
            state: RwLock::new(state),
        }))
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
        self.0.state.read().clone()
    }

    /// Changes the state.
    pub fn update_state(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.state.write());
    }

    /// Both clocks, as the core counts them.
    #[must_use]
    pub fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Now { mono: Mono(self.0.started.elapsed().as_micros() as u64), wall: Wall(wall.as_micros() as u64) }
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
        match &state.not_ready {
            Some(reason) => Err(reason.clone()),
            None => Ok(()),
        }
    }

    /// Hands the request to the shard that owns its partition and waits for the answer, which comes by
    /// the request's deadline. A full queue is answered with [`ClientError::Overloaded`] at once.
    pub async fn submit(&self, request: ClientRequest) -> ClientReply {
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
            ClientOp::Put { key, .. } | ClientOp::Get { key, .. } | ClientOp::Watch { key, .. } => {
                Token::of(config.seed, request.bucket, key).partition(config.partition_bits)
            }
            ClientOp::List { partition, .. } => *partition,
        })
    }
}

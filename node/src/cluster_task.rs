//! The shell of the cluster machine: config, agreement, joins, liveness.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use torc_protocol::cluster::Cluster;
use torc_protocol::cluster_admin::{AdminError, AdminId, AdminReply, AdminRequest, Progress};
use torc_protocol::cluster_io::{ClusterEvent, ClusterInput, ClusterOutput, LEFTOVERS_MAX};
use torc_protocol::message::{PeerBody, PeerMessage};
use torc_protocol::shard_io::{Input, View};
use torc_protocol::store::{CommitId, StoreError};
use torc_protocol::time::Mono;
use torc_ring::{Config, ConfigVersion, Member, NodeId, RingVersion};
use torc_storage::{Committer, Store};
use tracing::{debug, info, warn};

use crate::gossip::{Arrivals, Gossip, GossipSettings, GossipView, News};
use crate::handle::{Handle, NotReady};
use crate::node::NodeError;
use crate::shard_task::{Inlets, Mail, ShardNews};
use crate::transport::Transport;

/// Peers' messages that may wait for the cluster machine.
pub(crate) const PEERS_MAX: usize = 4_096;
/// Rounds of silence after which a member counts as dead.
const PATIENCE_ROUNDS: u32 = 10;
/// How long a dial on the machine's behalf may take.
const DIAL: Duration = Duration::from_secs(3);

/// What reaches the cluster machine besides peers' messages and shards' news.
#[derive(Debug)]
pub(crate) enum ClusterMail {
    Committed(Vec<(CommitId, Result<(), StoreError>)>),
    Input(ClusterInput),
    /// An operator asks.
    Admin(
        AdminRequest,
        oneshot::Sender<Result<AdminReply, AdminError>>,
    ),
    /// The node may not go on.
    Fatal(Box<NodeError>),
}

/// The other ends of the cluster machine's ways in.
pub(crate) struct ClusterOutlets {
    pub(crate) peers: mpsc::Receiver<(NodeId, PeerMessage)>,
    pub(crate) mail: mpsc::UnboundedReceiver<ClusterMail>,
    pub(crate) news: mpsc::UnboundedReceiver<ShardNews>,
}

/// What the cluster machine uses.
pub(crate) struct ClusterTools {
    pub(crate) handle: Handle,
    pub(crate) store: Store,
    pub(crate) committer: Committer,
    pub(crate) transport: Transport,
    pub(crate) shards: Vec<Inlets>,
    pub(crate) mail: mpsc::UnboundedSender<ClusterMail>,
    /// Index under which the committer reports to this task.
    pub(crate) commit_index: usize,
    /// Rises with each start of this node.
    pub(crate) generation: u64,
    /// Gossip that has arrived; taken when gossip starts.
    pub(crate) gossip: Option<Arrivals>,
    /// Receives partition bits as soon as they are known.
    pub(crate) routing: Arc<crate::switchboard::Routing>,
}

/// Runs until the node stops, or until it must.
///
/// # Errors
/// When the node may not go on: amnesia, a refused join or bootstrap, removal.
pub(crate) async fn run(
    cluster: Cluster,
    tools: ClusterTools,
    mut outlets: ClusterOutlets,
) -> Result<Left, NodeError> {
    let mut task = ClusterTask {
        cluster,
        tools,
        view: None,
        drained: Gather::default(),
        gossip: None,
        dead: Vec::new(),
        applied: ConfigVersion(0),
        covered: Gather::default(),
        progress: Shares::default(),
        operators: BTreeMap::new(),
        next_operator: 0,
        left: None,
    };
    let mut beat = tokio::time::interval(Duration::from_millis(500));
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        task.flush().await?;
        if let Some(left) = task.left.take() {
            return Ok(left);
        }
        let due = task.due();
        let mut view = task.gossip.as_ref().map(|(_, view)| view.clone());
        tokio::select! {
            Some((from, message)) = outlets.peers.recv() => {
                if let PeerBody::Cluster(body) = message.body {
                    task.input(ClusterInput::Peer { from, hlc: message.hlc, message: body });
                }
            }
            Some(mail) = outlets.mail.recv() => match mail {
                ClusterMail::Committed(results) => {
                    for (id, result) in results {
                        task.input(ClusterInput::Committed(id, result));
                    }
                }
                ClusterMail::Input(input) => task.input(input),
                ClusterMail::Admin(request, reply) => task.on_admin(request, reply),
                ClusterMail::Fatal(error) => return Err(*error),
            },
            Some(news) = outlets.news.recv() => task.on_shard(&news),
            () = changed(&mut view) => task.on_gossip(),
            _ = beat.tick() => task.on_gossip(),
            () = tokio::time::sleep_until(due) => task.input(ClusterInput::Tick),
        }
    }
}

async fn changed(view: &mut Option<watch::Receiver<GossipView>>) {
    if let Some(view) = view
        && view.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// Which shards have said the same thing.
#[derive(Default)]
struct Gather {
    ring: RingVersion,
    shards: BTreeSet<usize>,
}

impl Gather {
    /// Counts a shard; answers whether all have said it now.
    fn add(&mut self, shard: usize, ring: RingVersion, of: usize) -> bool {
        if ring > self.ring {
            self.ring = ring;
            self.shards.clear();
        }
        ring == self.ring && self.shards.insert(shard) && self.shards.len() == of
    }
}

/// The node has left the ring of its own will, and its data is elsewhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    pub(crate) version: ConfigVersion,
}

/// How far each shard is with a joint phase.
#[derive(Default)]
struct Shares {
    ring: RingVersion,
    shards: BTreeMap<usize, Progress>,
}

impl Shares {
    /// Takes a shard's share; answers the sum.
    fn add(&mut self, shard: usize, ring: RingVersion, share: Progress) -> Progress {
        if ring > self.ring {
            self.ring = ring;
            self.shards.clear();
        }
        if ring == self.ring {
            self.shards.insert(shard, share);
        }
        let mut sum = Progress::default();
        for share in self.shards.values() {
            sum.done += share.done;
            sum.total += share.total;
            sum.bytes += share.bytes;
        }
        sum
    }
}

struct ClusterTask {
    cluster: Cluster,
    tools: ClusterTools,
    view: Option<Arc<View>>,
    drained: Gather,
    gossip: Option<(Gossip, watch::Receiver<GossipView>)>,
    dead: Vec<NodeId>,
    applied: ConfigVersion,
    covered: Gather,
    progress: Shares,
    operators: BTreeMap<AdminId, oneshot::Sender<Result<AdminReply, AdminError>>>,
    next_operator: u64,
    left: Option<Left>,
}

impl ClusterTask {
    fn input(&mut self, input: ClusterInput) {
        self.cluster.handle(self.tools.handle.now(), input);
    }

    fn due(&self) -> Instant {
        let now: Mono = self.tools.handle.now().mono;
        let micros = self
            .cluster
            .next_deadline()
            .map_or(1_000_000, |due| due.since(now));
        Instant::now() + Duration::from_micros(micros)
    }

    fn on_shard(&mut self, news: &ShardNews) {
        let count = self.tools.shards.len();
        match *news {
            ShardNews::Drained(shard, ring) => {
                if self.drained.add(shard, ring, count) {
                    self.input(ClusterInput::Drained(ring));
                }
            }
            ShardNews::Covered(shard, ring) => {
                if self.covered.add(shard, ring, count) {
                    self.input(ClusterInput::Covered(ring));
                }
            }
            ShardNews::Progress(shard, ring, share) => {
                let progress = self.progress.add(shard, ring, share);
                self.input(ClusterInput::Progress { ring, progress });
            }
            ShardNews::NewerConfig(peer, version) => {
                self.input(ClusterInput::NewerConfig(peer, version));
            }
        }
    }

    async fn flush(&mut self) -> Result<(), NodeError> {
        while let Some(output) = self.cluster.next_output() {
            self.perform(output).await?;
        }
        Ok(())
    }

    async fn perform(&mut self, output: ClusterOutput) -> Result<(), NodeError> {
        match output {
            ClusterOutput::Send(to, message) => self.tools.transport.send(to, message),
            ClusterOutput::Commit(id, batch) => {
                if let Err((id, _)) =
                    self.tools
                        .committer
                        .submit(self.tools.commit_index, id, batch)
                {
                    self.input(ClusterInput::Committed(id, Err(StoreError::Failed)));
                }
            }
            ClusterOutput::Apply(config) => self.apply(&config).await?,
            ClusterOutput::FindLeftovers(config) => self.find_leftovers(config),
            ClusterOutput::AdminReply(id, reply) => {
                if let Some(operator) = self.operators.remove(&id) {
                    // Who has gone away does not want to know any more.
                    let _ = operator.send(reply);
                }
            }
            ClusterOutput::Dial(member) => self.dial(member),
            ClusterOutput::Serve => {
                self.to_shards(|| Input::Serve);
                self.tools
                    .handle
                    .update_state(|state| state.not_ready = None);
                info!("this node serves");
            }
            ClusterOutput::Recovered => self.settle_dirty_boot(),
            ClusterOutput::ClockTrusted(trusted) => {
                self.to_shards(|| Input::ClockTrusted(trusted));
                self.tools
                    .handle
                    .update_state(|state| state.clock_trusted = trusted);
                if trusted {
                    info!("this node's clock is within the allowed drift again: it takes writes");
                } else {
                    warn!(
                        "this node's clock is outside the allowed drift of the majority's: it takes no fresh writes; set its clock"
                    );
                }
            }
            ClusterOutput::JoinRefused(refusal) if !refusal.is_final() => {
                warn!(%refusal, "cannot join yet, trying again");
            }
            ClusterOutput::JoinRefused(refusal) => return Err(NodeError::JoinRefused(refusal)),
            ClusterOutput::BootstrapRefused(refusal) => {
                return Err(NodeError::BootstrapRefused(refusal));
            }
            ClusterOutput::Amnesia {
                peer,
                remembered,
                own,
            } => {
                return Err(NodeError::Amnesia {
                    peer,
                    remembered,
                    own,
                });
            }
            ClusterOutput::Removed {
                version,
                graceful: true,
            } => {
                let not_ready = Some(NotReady::Removed);
                self.tools
                    .handle
                    .update_state(|state| state.not_ready = not_ready);
                info!(
                    version = version.0,
                    "this node has left the ring, and its data is elsewhere: it stops"
                );
                self.left = Some(Left { version });
            }
            ClusterOutput::Removed { version, .. } => {
                self.tools
                    .handle
                    .update_state(|state| state.not_ready = Some(NotReady::Removed));
                return Err(NodeError::Removed { version: version.0 });
            }
            ClusterOutput::Event(event) => self.on_event(event),
        }
        Ok(())
    }

    fn to_shards(&self, input: impl Fn() -> Input) {
        for shard in &self.tools.shards {
            // A shard ends only when the node stops.
            let _ = shard.mail.send(Mail::Control(input()));
        }
    }

    async fn apply(&mut self, config: &Arc<Config>) -> Result<(), NodeError> {
        let owned = Config::clone(config);
        // A thousand members take a while to place: not on a thread that serves.
        let view = tokio::task::spawn_blocking(move || View::new(owned))
            .await
            .map_err(|_| NodeError::Stopped)?;
        self.tools.transport.set_cluster(config.cluster);
        let members: Vec<Member> = config.all_members().cloned().collect();
        self.tools.transport.set_members(&members);
        self.tools.routing.set_partition_bits(config.partition_bits);
        self.tools.handle.set_view(Arc::clone(&view));
        self.tools.handle.update_state(|state| {
            if state.not_ready == Some(NotReady::NoConfig) {
                state.not_ready = Some(NotReady::StartCheck);
            }
        });
        self.to_shards(|| Input::Config(Arc::clone(&view)));
        if config.version <= self.cluster.applied() {
            self.to_shards(|| Input::Applied(config.ring_version));
        }
        self.view = Some(view);
        self.applied = config.version;
        self.gossip_about(config).await?;
        self.on_gossip();
        Ok(())
    }

    /// Starts gossip with the first config, and tells it the members and the news of each.
    async fn gossip_about(&mut self, config: &Config) -> Result<(), NodeError> {
        if let Some(arrivals) = self.tools.gossip.take() {
            let interval = self.tools.handle.settings().gossip_interval;
            let settings = GossipSettings {
                node: self.tools.handle.node(),
                cluster: config.cluster,
                interval,
                patience: interval * PATIENCE_ROUNDS,
                generation: self.tools.generation,
            };
            let gossip =
                crate::gossip::start(settings, self.tools.transport.clone(), arrivals).await?;
            let view = gossip.subscribe();
            self.gossip = Some((gossip, view));
        }
        if let Some((gossip, _)) = &self.gossip {
            let members: Vec<NodeId> = config.all_members().map(|member| member.id).collect();
            gossip.set_members(&members);
            gossip.set_news(News {
                applied: config.version,
                known: config.version,
                ..News::default()
            });
        }
        Ok(())
    }

    /// Takes in who is alive and what they know.
    fn on_gossip(&mut self) {
        let (Some((_, receiver)), Some(view)) = (&mut self.gossip, &self.view) else {
            return;
        };
        let seen = receiver.borrow_and_update().clone();
        let own = self.tools.handle.node();
        let heard: BTreeMap<NodeId, bool> = seen
            .dead
            .iter()
            .map(|&n| (n, false))
            .chain(seen.live.iter().map(|&n| (n, true)))
            .collect();
        let dead: Vec<NodeId> = view
            .config
            .all_members()
            .map(|member| member.id)
            // A new member is neither alive nor dead at first: it gets the benefit of the doubt.
            .filter(|id| *id != own && !heard.get(id).copied().unwrap_or(true))
            .collect();
        let newer: Vec<(NodeId, ConfigVersion)> = seen
            .news
            .iter()
            .filter(|(_, news)| news.known > self.applied)
            .map(|(&node, news)| (node, news.known))
            .collect();
        if dead != self.dead {
            for node in &self.dead {
                if !dead.contains(node) {
                    info!(peer = %node, "peer is alive again");
                }
            }
            for node in &dead {
                if !self.dead.contains(node) {
                    warn!(peer = %node, "peer is believed to be dead");
                }
            }
            self.dead.clone_from(&dead);
            self.to_shards(|| Input::Liveness(dead.clone()));
            self.tools.handle.update_state(|state| state.dead = dead);
        }
        for (node, version) in newer {
            self.input(ClusterInput::NewerConfig(node, version));
        }
    }

    fn on_admin(
        &mut self,
        request: AdminRequest,
        reply: oneshot::Sender<Result<AdminReply, AdminError>>,
    ) {
        self.next_operator += 1;
        let id = AdminId(self.next_operator);
        self.operators.insert(id, reply);
        self.input(ClusterInput::Admin(id, request));
    }

    /// Looks for records that are not this node's by that config.
    fn find_leftovers(&self, config: Arc<Config>) {
        let (store, mail) = (self.tools.store.clone(), self.tools.mail.clone());
        let node = self.tools.handle.node();
        let same = |view: &&Arc<View>| view.config.version == config.version;
        let view = self.view.as_ref().filter(same).cloned();
        tokio::task::spawn_blocking(move || {
            let view = view.unwrap_or_else(|| View::new(Config::clone(&config)));
            let keeps = |bucket, partition| view.keeps(node, bucket, partition);
            let found = store.leftovers(config.partition_bits, LEFTOVERS_MAX, keeps);
            if let Ok(found) = &found
                && !found.is_empty()
            {
                info!(
                    version = config.version.0,
                    ranges = found.len(),
                    "drops what this node does not own any more"
                );
            }
            let input = ClusterInput::Leftovers(config.version, found);
            let _ = mail.send(ClusterMail::Input(input));
        });
    }

    /// What a power cut may have cost is here again. Where that cannot be noted, the next life finds it out anew.
    fn settle_dirty_boot(&self) {
        let store = self.tools.store.clone();
        tokio::task::spawn_blocking(move || match store.settle_dirty_boot() {
            Ok(()) => info!("everything that may have been lost has come back from other nodes"),
            Err(error) => warn!(%error, "that nothing is missing any more could not be noted"),
        });
    }

    fn dial(&self, member: Member) {
        let (transport, mail) = (self.tools.transport.clone(), self.tools.mail.clone());
        tokio::spawn(async move {
            let ok = match tokio::time::timeout(DIAL, transport.dial(&member.peer)).await {
                Ok(Ok(id)) if id == member.id => true,
                Ok(Ok(id)) => {
                    warn!(joiner = %member.name, address = %member.peer, found = %id, "another node answers at the address of one that wants to join");
                    false
                }
                Ok(Err(error)) => {
                    warn!(joiner = %member.name, address = %member.peer, %error, "cannot reach a node that wants to join");
                    false
                }
                Err(_) => {
                    warn!(joiner = %member.name, address = %member.peer, "a node that wants to join does not answer at its address");
                    false
                }
            };
            let _ = mail.send(ClusterMail::Input(ClusterInput::Dialled(member.id, ok)));
        });
    }

    fn on_event(&self, event: ClusterEvent) {
        match event {
            ClusterEvent::Applied {
                version,
                ring,
                members,
            } => {
                self.to_shards(|| Input::Applied(ring));
                info!(
                    version = version.0,
                    ring = ring.0,
                    members,
                    "config is applied"
                );
            }
            ClusterEvent::PeerClock {
                peer, offset_us, ..
            } => {
                self.tools.handle.update_state(|state| {
                    state.drift.retain(|(node, _)| *node != peer);
                    state.drift.push((peer, offset_us));
                });
            }
            ClusterEvent::ClockDrift {
                drift_us,
                warn: true,
            } => {
                warn!(
                    drift_us,
                    "this node's clock differs from the majority's; check its time synchronisation"
                );
            }
            ClusterEvent::ClockDrift {
                drift_us,
                warn: false,
            } => info!(drift_us, "this node's clock is near the majority's again"),
            ClusterEvent::StartWaits { confirmed, members } => {
                info!(
                    confirmed,
                    members,
                    "start check: waiting for members to confirm that this disk is the newest"
                );
            }
            ClusterEvent::JoinerRefused { joiner, refusal } => {
                warn!(%joiner, %refusal, "a node was refused");
            }
            ClusterEvent::Change { joiners, outcome } => {
                let joiners: Vec<String> = joiners.iter().map(ToString::to_string).collect();
                info!(?joiners, ?outcome, "change of members");
            }
            ClusterEvent::Switching { ring } => {
                info!(ring = ring.0, "everybody is complete: the ring is switched");
            }
            ClusterEvent::TargetLost { ring } => {
                warn!(
                    ring = ring.0,
                    "too few owners of the target ring have been heard of for too long: the change of the ring is taken back"
                );
            }
            ClusterEvent::Recovering { ring } => {
                info!(
                    ring = ring.0,
                    "the cluster knows that this node may have lost writes: it gets them back from the other owners, and counts for no read until then"
                );
            }
            ClusterEvent::Foreign { peer, cluster } => {
                warn!(%peer, %cluster, "a node of another cluster talks to this one; it is refused");
            }
            ClusterEvent::BadConfig { peer } => {
                warn!(%peer, "peer sent a config that cannot be used");
            }
            ClusterEvent::FarBehind { peer, have, oldest } => {
                warn!(%peer, have = have.0, oldest = oldest.0, "this node was away for so long that no peer keeps the configs that it lacks; it can only come back as a new node: empty its data directory and join");
            }
            ClusterEvent::StoreFailed { error } => {
                debug!(%error, "cluster state could not be stored, trying again");
            }
        }
    }
}

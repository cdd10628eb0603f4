//! Starts a node's parts in order, and stops them in order.

mod options;
mod restore;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::TryRngCore;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use torc_protocol::cluster::Cluster;
use torc_protocol::cluster_io::{
    BootstrapRefusal, CLUSTER_BOUND, ClusterInput, ClusterSettings, Persisted, PersistedError,
};
use torc_protocol::cluster_message::JoinRefusal;
use torc_protocol::hlc::Hlc;
use torc_protocol::shard::{Shard, ShardSettings};
use torc_protocol::shard_io::Input;
use torc_protocol::store::{Batch, CommitId, StateKey, StoreError, Sync, Write};
use torc_ring::config::Secret;
use torc_ring::{ClusterId, Member, NodeId};
use torc_storage::{Committer, Deliver, Observe, States, StorageError, Store};
use tracing::{info, warn};

use self::restore::{restore, take_trees};
use crate::cluster_task::{self, ClusterMail, ClusterOutlets, ClusterTools};
use crate::config::{Settings, Start};
use crate::gossip::GossipError;
use crate::handle::{Handle, Parts};
use crate::http::{HttpError, Servers};
use crate::join;
use crate::metrics::Metrics;
use crate::pki::{self, PkiError};
use crate::shard_task::{self, Inlets, Mail, Outlets, PEER_BATCHES_MAX, SUBMISSIONS_MAX, Tools};
use crate::side::{self, SideError, changes};
use crate::switchboard::{Routing, Switchboard};
use crate::transport::{Transport, TransportError, TransportSettings};

/// Why a node cannot start, or may not go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its disk.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Its cluster state.
    #[error(transparent)]
    Persisted(#[from] PersistedError),
    /// Its certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// Its peer listener.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Its gossip.
    #[error(transparent)]
    Gossip(#[from] GossipError),
    /// Its HTTP listeners.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// No identity could be drawn or stored.
    #[error("no identity could be stored in the data directory: {0}")]
    Identity(StoreError),
    /// The operating system gives no random numbers.
    #[error("the operating system gives no random numbers")]
    Random,
    /// The data directory is another node's.
    #[error(
        "this data directory belongs to the node `{found}`, not to `{given}`: give it its own --data, or start it under its old --name"
    )]
    OtherName {
        /// Name in the directory.
        found: String,
        /// Name given.
        given: String,
    },
    /// The stored identity cannot be read.
    #[error(
        "the identity in the data directory cannot be read: the directory is damaged or of a newer version"
    )]
    DamagedIdentity,
    /// The node has no cluster and was not told of one.
    #[error(
        "this data directory knows no cluster: start it with --bootstrap to make one, or with --join ADDRESS to join one"
    )]
    NoCluster,
    /// The addresses in the config are others than those given.
    #[error(
        "the cluster knows this node at {known}, but it was started at {given}: give it its old address (a change of addresses needs a ring change)"
    )]
    OtherAddress {
        /// In the config.
        known: String,
        /// Given.
        given: String,
    },
    /// No cluster takes it in.
    #[error("the cluster does not take this node in: {0}")]
    JoinRefused(JoinRefusal),
    /// There is no new cluster here.
    #[error(transparent)]
    BootstrapRefused(BootstrapRefusal),
    /// It has forgotten what it once had on disk.
    #[error(
        "this node's disk is older than what peer {peer} remembers of it (clock bound {own} on disk, {remembered} remembered): it is an old copy or has lost writes. Empty the data directory and let it join as a new node"
    )]
    Amnesia {
        /// Who remembers more.
        peer: NodeId,
        /// What the peer remembers.
        remembered: Hlc,
        /// What is on disk.
        own: Hlc,
    },
    /// It is no member any more.
    #[error(
        "this node was removed from the ring by config version {version}; its data directory can be emptied"
    )]
    Removed {
        /// By which version.
        version: u64,
    },
    /// The address for others cannot be resolved.
    #[error(
        "the address {address}, which other nodes are to reach this one at, cannot be resolved: check --advertise-peer"
    )]
    Advertise {
        /// The address.
        address: String,
    },
    /// A side service cannot be set up.
    #[error(transparent)]
    Side(#[from] SideError),
    /// A part of it has ended unexpectedly.
    #[error("a part of the node has ended unexpectedly; the log says why")]
    Stopped,
}

/// Names of nodes that this one is cut off from, as they change: a fault that is played, for
/// demonstrations and tests. See [`Transport::set_cut`].
pub type Cuts = watch::Receiver<BTreeSet<String>>;

// size: the order in which the parts begin and end is one story.
/// Runs a node until `stop` is ready, then stops it in order. `cuts` are followed meanwhile.
///
/// # Errors
/// When it cannot start or may not go on; the message says what to do.
pub async fn run(
    settings: Settings,
    stop: impl Future<Output = ()>,
    cuts: Option<Cuts>,
) -> Result<(), NodeError> {
    let settings = Arc::new(settings);
    let options = options::storage(&settings);
    let (store, opened) = tokio::task::spawn_blocking(move || Store::open(options))
        .await
        .map_err(|_| NodeError::Stopped)??;
    let metrics = Arc::new(Metrics::default());

    let count = settings.shards;
    let routing = Arc::new(Routing::new(count));
    let (inlets, submissions, outlets) = channels(count);
    let (cluster_peers, cluster_peers_rx) = mpsc::channel(cluster_task::PEERS_MAX);
    let (cluster_mail, mut cluster_mail_rx) = mpsc::unbounded_channel();
    let (news, news_rx) = mpsc::unbounded_channel();
    let committer = start_committer(&store, &inlets, &cluster_mail, &metrics)?;
    let node = identity(&store, &settings, (&committer, &mut cluster_mail_rx)).await?;
    let persisted = read_state(&store, own_member(&settings, node))?;
    check_start(&settings, &persisted)?;
    let handle = Handle::new(
        Arc::clone(&settings),
        Arc::clone(&metrics),
        node,
        submissions,
    );

    let (gossip_inbox, gossip_arrivals) = crate::gossip::inbox();
    let switchboard = Switchboard {
        routing: Arc::clone(&routing),
        shards: inlets.clone(),
        cluster: cluster_peers,
        gossip: gossip_inbox,
        metrics: Arc::clone(&metrics),
    };
    let transport = start_transport(&settings, node, switchboard).await?;
    if let Some(known) = persisted.decided.last() {
        // Before the first dial: a node of this cluster greets as one.
        transport.set_cluster(known.cluster);
    }
    handle.set_inlets(inlets.iter().map(|inlet| inlet.mail.clone()).collect());
    handle.set_parts(Parts {
        store: store.clone(),
        transport: transport.clone(),
    });

    let _side = side::start(&settings, &handle, (&store, &committer)).await?;

    let bounds = own_bounds(&store)?;
    let now = handle.now();
    let tools = |index: usize| Tools {
        index,
        handle: handle.clone(),
        store: store.clone(),
        committer: committer.clone(),
        transport: transport.clone(),
        mail: inlets[index].mail.clone(),
        news: news.clone(),
    };
    // Without its floors and closes the node could take what all others have forgotten: it does not start.
    let floors = store.states(States::Floor)?;
    let trees = take_trees(&store, &settings, (&committer, &mut cluster_mail_rx)).await?;
    let store_empty = store.is_empty()?;
    let mut shards = JoinSet::new();
    for (index, outlets) in outlets.into_iter().enumerate() {
        let of_shard = ShardSettings {
            store_empty,
            lost: opened.dirty_boot,
            ..shard_settings(&settings, node, index, bounds.shards)?
        };
        let mut shard = Shard::new(of_shard, &opened.hints, now);
        restore(&mut shard, &trees, &floors);
        shards.spawn(shard_task::run(shard, tools(index), outlets));
    }

    let fresh = persisted.decided.is_empty();
    let of_cluster = ClusterSettings {
        lost: opened.dirty_boot,
        ..cluster_settings(&settings)?
    };
    if opened.dirty_boot {
        warn!(
            "the machine was switched off while acknowledged writes were not synced: some may be gone, and come back from the other owners before this node counts again"
        );
    }
    let cluster = Cluster::new(persisted, of_cluster, now);
    let tools = ClusterTools {
        handle: handle.clone(),
        store: store.clone(),
        committer,
        transport: transport.clone(),
        shards: inlets.clone(),
        mail: cluster_mail.clone(),
        commit_index: count,
        generation: generation(bounds.all),
        gossip: Some(gossip_arrivals),
        routing,
    };
    let outlets = ClusterOutlets {
        peers: cluster_peers_rx,
        mail: cluster_mail_rx,
        news: news_rx,
    };
    handle.set_operators(cluster_mail.clone());
    begin(&settings, fresh, &cluster_mail, (&transport, &handle))?;
    let mut cluster_run = tokio::spawn(cluster_task::run(cluster, tools, outlets));
    let watcher = tokio::spawn(watch_disk(handle.clone(), store.clone()));
    follow_cuts(&transport, cuts);

    let (stop_http, stopping) = watch::channel(false);
    let servers = crate::http::serve(handle.clone(), stopping).await?;
    info!(node = %node, name = %settings.name, http = %servers.addresses.http, admin = %servers.addresses.admin, peer = %transport.local_addr(), "node started");

    let result = tokio::select! {
        () = stop => Ok(()),
        ended = &mut cluster_run => match ended {
            Ok(ended) => ended.map(|left| info!(version = left.version.0, "left the ring")),
            Err(_) => Err(NodeError::Stopped),
        },
        // A shard that panicked takes its partitions with it: better no node than one that half serves.
        _ = shards.join_next() => Err(NodeError::Stopped),
    };
    watcher.abort();
    let _ = stop_http.send(true);
    let parts = Stopping {
        handle,
        servers,
        inlets,
        transport,
        store,
    };
    parts
        .stop(settings.limits.shutdown, || cluster_run.abort())
        .await;
    result
}

/// What is stopped in order.
struct Stopping {
    handle: Handle,
    servers: Servers,
    inlets: Vec<Inlets>,
    transport: Transport,
    store: Store,
}

impl Stopping {
    /// No new request, then no open one, then no message, then no write.
    async fn stop(self, limit: Duration, end_cluster: impl FnOnce()) {
        info!("stopping");
        self.handle.update_state(|state| state.stopping = true);
        let until = tokio::time::Instant::now() + limit;
        // Watches are answered now: nobody must wait for the end of theirs.
        for inlet in &self.inlets {
            let _ = inlet.mail.send(Mail::Control(Input::Stop));
        }
        if tokio::time::timeout_at(until, self.servers.done)
            .await
            .is_err()
        {
            warn!("the HTTP listeners did not end in time");
        }
        drain(&self.inlets, until).await;
        end_cluster();
        self.transport.stop().await;
        // Nothing comes any more: what the shards know of their partitions is written down.
        for inlet in &self.inlets {
            let _ = inlet.mail.send(Mail::Control(Input::Save));
        }
        drain(&self.inlets, until).await;
        let store = self.store;
        let closed = tokio::task::spawn_blocking(move || store.close()).await;
        if let Ok(Err(error)) = closed {
            warn!(%error, "the store could not be closed in order; it will recover at the next start");
        }
        info!("stopped");
    }
}

type Channels = (
    Vec<Inlets>,
    Vec<mpsc::Sender<crate::handle::Submission>>,
    Vec<Outlets>,
);

fn channels(count: usize) -> Channels {
    let (mut inlets, mut submissions, mut outlets) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..count {
        let (submit, submit_rx) = mpsc::channel(SUBMISSIONS_MAX);
        let (peers, peers_rx) = mpsc::channel(PEER_BATCHES_MAX);
        let (mail, mail_rx) = mpsc::unbounded_channel();
        inlets.push(Inlets { peers, mail });
        submissions.push(submit);
        outlets.push(Outlets {
            submissions: submit_rx,
            peers: peers_rx,
            mail: mail_rx,
        });
    }
    (inlets, submissions, outlets)
}

fn start_committer(
    store: &Store,
    inlets: &[Inlets],
    cluster: &mpsc::UnboundedSender<ClusterMail>,
    metrics: &Arc<Metrics>,
) -> Result<Committer, NodeError> {
    let (shards, cluster, metrics) = (inlets.to_vec(), cluster.clone(), Arc::clone(metrics));
    let deliver: Deliver = Arc::new(move |index: usize, results| {
        // A receiver is gone only when the node has stopped.
        let _ = match shards.get(index) {
            Some(shard) => shard.mail.send(Mail::Committed(results)).is_ok(),
            // The change feed waits for no outcome.
            None if index == changes::COMMIT_INDEX => true,
            None => cluster.send(ClusterMail::Committed(results)).is_ok(),
        };
    });
    let observe: Observe = Arc::new(move |batches, took| metrics.on_commit(batches, took));
    Ok(store.committer_observed(deliver, Some(observe))?)
}

async fn start_transport(
    settings: &Settings,
    node: NodeId,
    switchboard: Switchboard,
) -> Result<Transport, NodeError> {
    let identity = match &settings.pki {
        Some(dir) => pki::Identity::load(dir, &settings.name)?,
        None => pki::Identity::development(&settings.name)?,
    };
    let advertise = Some(resolve(&settings.advertise_peer).await?);
    let usual = TransportSettings::new(settings.peer, node, identity);
    let metrics = Arc::clone(&switchboard.metrics);
    let of_node = TransportSettings { advertise, ..usual };
    Ok(Transport::start(of_node, metrics, Arc::new(switchboard))?)
}

async fn resolve(address: &str) -> Result<std::net::SocketAddr, NodeError> {
    let failed = || NodeError::Advertise {
        address: address.to_owned(),
    };
    tokio::net::lookup_host(address)
        .await
        .map_err(|_| failed())?
        .next()
        .ok_or_else(failed)
}

/// The node's identity, which lives in its data directory; drawn and stored when there is none.
async fn identity(
    store: &Store,
    settings: &Settings,
    (committer, results): (&Committer, &mut mpsc::UnboundedReceiver<ClusterMail>),
) -> Result<NodeId, NodeError> {
    if let Some(stored) = store.state(StateKey::Identity)? {
        let (id, name) = stored
            .split_at_checked(8)
            .ok_or(NodeError::DamagedIdentity)?;
        let id = u64::from_be_bytes(id.try_into().map_err(|_| NodeError::DamagedIdentity)?);
        if name != settings.name.as_bytes() {
            let found = String::from_utf8_lossy(name).into_owned();
            return Err(NodeError::OtherName {
                found,
                given: settings.name.clone(),
            });
        }
        return Ok(NodeId(id));
    }
    let node = NodeId(random_u64()?);
    let mut value = node.0.to_be_bytes().to_vec();
    value.extend_from_slice(settings.name.as_bytes());
    let write = Write::StatePut {
        key: StateKey::Identity,
        value: value.into(),
    };
    let batch = Batch {
        writes: vec![write],
        sync: Sync::Fsync,
    };
    // Nothing else commits yet: the only result that can come is this one's.
    if committer
        .submit(settings.shards, CommitId(0), batch)
        .is_err()
    {
        return Err(NodeError::Identity(StoreError::Failed));
    }
    match tokio::time::timeout(Duration::from_secs(10), results.recv()).await {
        Ok(Some(ClusterMail::Committed(results))) => match results.first() {
            Some((_, Ok(()))) => Ok(node),
            Some((_, Err(error))) => Err(NodeError::Identity(*error)),
            None => Err(NodeError::Stopped),
        },
        _ => Err(NodeError::Stopped),
    }
}

fn own_member(settings: &Settings, node: NodeId) -> Member {
    Member {
        id: node,
        name: settings.name.clone(),
        zone: settings.zone.clone(),
        weight: settings.weight,
        peer: settings.advertise_peer.clone(),
        http: settings.advertise_http.clone(),
    }
}

fn read_state(store: &Store, member: Member) -> Result<Persisted, NodeError> {
    let mut state = Vec::new();
    for which in [
        States::Acceptor,
        States::Decided,
        States::HlcBound,
        States::PeerBound,
    ] {
        state.extend(store.states(which)?);
    }
    let key = StateKey::Applied;
    state.extend(store.state(key)?.map(|value| (key, value)));
    Ok(Persisted::read(member, state)?)
}

/// Whether what the node was told fits what its disk knows.
fn check_start(settings: &Settings, persisted: &Persisted) -> Result<(), NodeError> {
    let Some(latest) = persisted.decided.last() else {
        return if settings.start == Start::Resume {
            Err(NodeError::NoCluster)
        } else {
            Ok(())
        };
    };
    if let Some(known) = latest.member(persisted.node)
        && known.peer != persisted.member.peer
    {
        return Err(NodeError::OtherAddress {
            known: known.peer.clone(),
            given: persisted.member.peer.clone(),
        });
    }
    if settings.start == Start::Bootstrap {
        return Err(NodeError::BootstrapRefused(BootstrapRefusal::Used {
            cluster: latest.cluster,
            version: latest.version,
        }));
    }
    Ok(())
}

/// Clock bounds that earlier lives made durable.
struct Bounds {
    /// The highest of the shards': versions are minted above it, once the clock has passed it. The cluster
    /// machine's own lies seconds further ahead and is none of theirs.
    shards: Hlc,
    /// The highest of all.
    all: Hlc,
}

fn own_bounds(store: &Store) -> Result<Bounds, NodeError> {
    let mut bounds = Bounds {
        shards: Hlc(0),
        all: Hlc(0),
    };
    for (key, value) in store.states(States::HlcBound)? {
        let bytes = value
            .as_ref()
            .try_into()
            .map_err(|_| NodeError::DamagedIdentity)?;
        let bound = Hlc(u64::from_be_bytes(bytes));
        bounds.all = bounds.all.max(bound);
        if key != StateKey::HlcBound(CLUSTER_BOUND) {
            bounds.shards = bounds.shards.max(bound);
        }
    }
    Ok(bounds)
}

/// Rises with each start, in tenths of a second: a start raises the cluster machine's bound by half a
/// second at least.
fn generation(bound: Hlc) -> u64 {
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    (bound.micros() / 100_000 + 1).max(wall.as_millis() as u64 / 100)
}

fn cluster_settings(settings: &Settings) -> Result<ClusterSettings, NodeError> {
    Ok(ClusterSettings {
        drift_max: settings.clock_drift_max.as_micros() as u64,
        drift_warn: settings.clock_drift_warn.as_micros() as u64,
        replaces: settings.replace.clone(),
        ..ClusterSettings::new(random_u64()?)
    })
}

/// Memory of all hash trees of a node.
const TREE_BYTES_MAX: usize = 64 << 20;

fn shard_settings(
    settings: &Settings,
    node: NodeId,
    index: usize,
    bound: Hlc,
) -> Result<ShardSettings, NodeError> {
    let count = settings.shards;
    debug_assert!(count <= usize::from(CLUSTER_BOUND));
    Ok(ShardSettings {
        zone: settings.zone.clone(),
        durable_bound: bound,
        seed: random_u64()?,
        drift_max: settings.clock_drift_max.as_micros() as u64,
        hint_bytes_max: settings.hints.bytes_per_target / count as u64,
        hint_age_max: settings.hints.age.as_micros() as u64,
        hint_rate: (settings.hints.rate / count as u64).max(1),
        ops_max: settings.limits.requests.max(64),
        transfer_rate: settings.transfer_rate.div_ceil(count as u64),
        repair_rate: settings.antientropy.rate.div_ceil(count as u64),
        scrub_rate: settings.antientropy.scan_rate.div_ceil(count as u64),
        antientropy_age_target: settings.antientropy.age_target.as_micros() as u64,
        floor_interval: settings.floor_interval.as_micros() as u64,
        floor_margin: settings.floor_margin().as_micros() as u64,
        tree_bytes_max: TREE_BYTES_MAX / count,
        ..ShardSettings::new(node, index as u8, count as u8)
    })
}

/// Tells the cluster machine what the user asked for.
fn begin(
    settings: &Settings,
    fresh: bool,
    mail: &mpsc::UnboundedSender<ClusterMail>,
    (transport, handle): (&Transport, &Handle),
) -> Result<(), NodeError> {
    match &settings.start {
        Start::Bootstrap if fresh => {
            let mut secret = [0_u8; 32];
            fill_random(&mut secret)?;
            let input = ClusterInput::Bootstrap {
                cluster: ClusterId(random_u64()?),
                seed: random_u64()?,
                secret: Secret(secret),
                partition_bits: settings.partition_bits,
            };
            let _ = mail.send(ClusterMail::Input(input));
        }
        Start::Join(addresses) => {
            tokio::spawn(join::contact(
                transport.clone(),
                addresses.clone(),
                mail.clone(),
                handle.clone(),
            ));
        }
        Start::Resume | Start::Bootstrap => {}
    }
    Ok(())
}

fn follow_cuts(transport: &Transport, cuts: Option<Cuts>) {
    let (Some(mut cuts), transport) = (cuts, transport.clone()) else {
        return;
    };
    tokio::spawn(async move {
        while cuts.changed().await.is_ok() {
            let names = cuts.borrow_and_update().clone();
            warn!(nodes = ?names, "links are cut or mended: a fault that is played");
            transport.set_cut(names);
        }
    });
}

/// Follows the disk's state: full or not, and what RocksDB says of itself.
async fn watch_disk(handle: Handle, store: Store) {
    let mut beat = tokio::time::interval(Duration::from_millis(500));
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        let full = store.properties().disk_full;
        let before = handle.state().disk_full;
        if full != before {
            handle.update_state(|state| state.disk_full = full);
            if full {
                warn!("the disk is full: writes are refused, reads are served; make room");
            } else {
                info!("there is room on the disk again: writes are taken");
            }
        }
    }
}

async fn drain(inlets: &[Inlets], until: tokio::time::Instant) {
    let waits: Vec<oneshot::Receiver<()>> = inlets
        .iter()
        .filter_map(|inlet| {
            let (done, wait) = oneshot::channel();
            inlet.mail.send(Mail::Drain(done)).ok().map(|()| wait)
        })
        .collect();
    let all = futures_util::future::join_all(waits);
    if tokio::time::timeout_at(until, all).await.is_err() {
        warn!("some requests were still open when the time to stop was over");
    }
}

fn random_u64() -> Result<u64, NodeError> {
    let mut bytes = [0_u8; 8];
    fill_random(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn fill_random(bytes: &mut [u8]) -> Result<(), NodeError> {
    rand::rngs::OsRng
        .try_fill_bytes(bytes)
        .map_err(|_| NodeError::Random)
}

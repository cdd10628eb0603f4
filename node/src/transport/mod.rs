//! Messages between nodes over QUIC: mutual TLS, one long-lived connection per pair, small messages
//! multiplexed and batched on one stream, large ones and gossip on streams of their own.
//!
//! Invariants: [`Transport::send`] never waits; every queue, connection and wait is bounded; only members
//! talk about keys, and a certificate's name is bound to its member's node id. Delivery is not promised:
//! a message may be lost, and may overtake another one (the protocol is made for that).
//! Measurements behind this shape: docs/architecture.md. Nothing here knows what messages mean, beyond
//! which of them a node that is not a member may send.

mod connection;
mod error;
mod frame;
mod hello;
mod listener;
mod peer;
mod queue;
mod sender;
mod tls;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use torc_protocol::message::PeerMessage;
use torc_protocol::wire::WIRE_VERSION;
use torc_ring::{ClusterId, Member, NodeId};

pub use self::error::{Reason, TransportError};
use self::hello::Hello;
use self::peer::{Link, Peer, Role};
use self::queue::{Bounds, Rejected};
use crate::pki::Identity;

/// Label of `torc_shed_total` for messages that a peer's queue had no room or time for.
pub const SHED_PEER_QUEUE: &str = "peer_queue";

/// Bytes of large messages that may be on their way in, from all peers together.
const BULK_ROOM: usize = 512 << 20;
/// A connection that is not sent on is closed when nothing has come on it for this long.
const SPARE_IDLE: Duration = Duration::from_secs(3);
/// A connection with a guest is closed when nothing has come on it for this long.
const GUEST_IDLE: Duration = Duration::from_secs(300);
/// How often idle connections are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// The same thing about the same peer is logged again after this long.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Things that are remembered as logged.
const LOGGED_MAX: usize = 1024;
/// Time for what is queued to leave when the transport stops.
const STOP_TIME: Duration = Duration::from_secs(2);

/// What the transport is told when it starts.
#[derive(Clone, Debug)]
pub struct TransportSettings {
    /// UDP address to listen on.
    pub listen: SocketAddr,
    /// Address at which others reach it; `None`: the one that it listens on.
    pub advertise: Option<SocketAddr>,
    /// This node.
    pub node: NodeId,
    /// This node's certificate, with its name.
    pub identity: Identity,
    /// Messages that may wait for one peer.
    pub queue_messages: usize,
    /// Bytes that may wait for one peer; one message may always.
    pub queue_bytes: usize,
    /// Open connections.
    pub connections: usize,
    /// Handshakes in progress at a time.
    pub handshakes: usize,
    /// Connected nodes that are not members.
    pub guests: usize,
}

impl TransportSettings {
    /// The usual bounds: 16,384 messages or 64 MiB per peer, 4,096 connections, 64 handshakes, 64 guests.
    #[must_use]
    pub fn new(listen: SocketAddr, node: NodeId, identity: Identity) -> Self {
        Self {
            listen,
            advertise: None,
            node,
            identity,
            queue_messages: 16_384,
            queue_bytes: 64 << 20,
            connections: 4_096,
            handshakes: 64,
            guests: 64,
        }
    }
}

/// Where what arrives goes. Called from the connections' tasks: must not block, and must not call
/// [`Transport::set_members`].
pub trait Inbound: Send + Sync + 'static {
    /// Messages from one read, in order.
    fn on_messages(&self, from: NodeId, messages: Vec<PeerMessage>);
    /// A gossip message of a member, and the address that the member advertises.
    fn on_gossip(&self, from: SocketAddr, bytes: Bytes);
    /// The first connection with a node is there, or the last one gone. A restarted node goes and comes.
    fn on_link(&self, peer: NodeId, up: bool);
}

/// What the transport counts.
pub trait TransportMetrics: Send + Sync + 'static {
    /// Bytes handed to QUIC (`torc_peer_bytes_total{direction="out"}`).
    /// `None` stands for all nodes that are no members.
    fn sent(&self, peer: Option<NodeId>, bytes: u64);
    /// Bytes taken from QUIC (`torc_peer_bytes_total{direction="in"}`).
    /// `None` stands for all nodes that are no members.
    fn received(&self, peer: Option<NodeId>, bytes: u64);
    /// A peer or a message of one was refused (`torc_peer_refused_total{reason}`).
    fn refused(&self, reason: &'static str);
    /// Messages for which there was no room or time (`torc_shed_total{reason}`).
    fn shed(&self, reason: &'static str, messages: u64);
    /// Messages that were lost with a connection.
    fn lost(&self, peer: NodeId, messages: u64);
}

/// A peer at one moment.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// The node.
    pub node: NodeId,
    /// Whether it is a member.
    pub member: bool,
    /// Measured round-trip time (`torc_peer_rtt_seconds{peer}`); `None` without a connection.
    pub rtt: Option<Duration>,
    /// Messages that wait to be sent.
    pub queued_messages: usize,
    /// Bytes that wait to be sent.
    pub queued_bytes: usize,
}

/// The transport. Cheap to clone; all clones are the same one.
#[derive(Clone)]
pub struct Transport(Arc<Inner>);

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("node", &self.0.settings.node)
            .finish_non_exhaustive()
    }
}

struct Inner {
    settings: TransportSettings,
    advertise: SocketAddr,
    local: SocketAddr,
    /// This process, drawn at random.
    process: u64,
    started: Instant,
    endpoint: quinn::Endpoint,
    metrics: Arc<dyn TransportMetrics>,
    inbound: Arc<dyn Inbound>,
    state: RwLock<State>,
    next_link: AtomicU64,
    handshakes: Arc<Semaphore>,
    /// Room for large messages on their way in, in KiB.
    bulk_room: Semaphore,
    logged: Mutex<HashMap<(String, &'static str), Instant>>,
}

#[derive(Default)]
struct State {
    cluster: Option<ClusterId>,
    peers: HashMap<NodeId, Arc<Peer>>,
    /// Names of nodes that this one is cut off from.
    cut: BTreeSet<String>,
    stopped: bool,
}

impl State {
    /// Tells the peers whether they are cut off.
    fn apply_cut(&self) {
        for peer in self.peers.values() {
            peer.set_cut(!self.cut.is_empty() && peer.is_called(&self.cut));
        }
    }
}

impl Transport {
    /// Listens, inside a tokio runtime. Nobody is connected to before [`Transport::set_members`] or
    /// [`Transport::dial`].
    ///
    /// # Errors
    /// When the address cannot be listened on, or the identity is unusable.
    pub fn start(
        settings: TransportSettings,
        metrics: Arc<dyn TransportMetrics>,
        inbound: Arc<dyn Inbound>,
    ) -> Result<Self, TransportError> {
        let listen = settings.listen;
        let endpoint = tls::endpoint(listen, &settings.identity, tls::ALPN)?;
        let local = endpoint
            .local_addr()
            .map_err(|source| TransportError::Listen {
                addr: listen,
                source,
            })?;
        let inner = Arc::new(Inner {
            advertise: settings.advertise.unwrap_or(local),
            local,
            process: rand::random(),
            started: Instant::now(),
            endpoint,
            metrics,
            inbound,
            state: RwLock::default(),
            next_link: AtomicU64::new(0),
            handshakes: Arc::new(Semaphore::new(settings.handshakes)),
            bulk_room: Semaphore::new(BULK_ROOM >> 10),
            logged: Mutex::default(),
            settings,
        });
        tokio::spawn(listener::run(inner.clone()));
        tokio::spawn(sweep(Arc::downgrade(&inner)));
        Ok(Self(inner))
    }

    /// The address that it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.0.local
    }

    /// The address at which others reach it, as it tells them.
    #[must_use]
    pub fn advertised(&self) -> SocketAddr {
        self.0.advertise
    }

    /// From now on nodes of another cluster are refused.
    pub fn set_cluster(&self, cluster: ClusterId) {
        self.0.state.write().cluster = Some(cluster);
    }

    /// The members (with or without this node). Keeps a connection with each of the others; whoever is
    /// not among them is a guest from now on, also on connections that are open.
    pub fn set_members(&self, members: &[Member]) {
        let inner = &self.0;
        let own = inner.settings.node;
        let members: BTreeMap<NodeId, &Member> = members
            .iter()
            .filter(|member| member.id != own)
            .map(|member| (member.id, member))
            .collect();
        let mut state = inner.state.write();
        if state.stopped {
            return;
        }
        let mut unlinked = Vec::new();
        for (node, peer) in &state.peers {
            if !members.contains_key(node) {
                peer.set_role(Role::Guest);
                if peer.chosen.borrow().is_none() {
                    unlinked.push(peer.clone());
                }
            }
        }
        let mut impostors = Vec::new();
        for (node, member) in members {
            let role = Role::Member {
                name: member.name.clone(),
                addr: member.peer.clone(),
            };
            if let Some(peer) = state.peers.get(&node) {
                impostors.extend(
                    peer.links()
                        .into_iter()
                        .filter(|link| link.name != member.name),
                );
                peer.set_role(role);
            } else {
                let peer = inner.new_peer(node, role);
                state.peers.insert(node, peer);
            }
        }
        state.apply_cut();
        drop(state);
        for link in impostors {
            let what = format!("certificate of `{}`", link.name);
            inner.refuse_link(&link, Reason::CertificateName, what);
        }
        for peer in unlinked {
            inner.forget(&peer);
        }
    }

    /// From now on everything to and from the nodes of these names is thrown away, as if the cables
    /// between them were cut; an empty set mends them all. For demonstrations and tests: connections stay
    /// open, so that mending takes effect at once.
    pub fn set_cut(&self, names: BTreeSet<String>) {
        let mut state = self.0.state.write();
        state.cut = names;
        state.apply_cut();
    }

    /// Queues the message for that node. Never waits: what has no room is dropped and counted, as is
    /// what waits for more than a second.
    pub fn send(&self, to: NodeId, message: PeerMessage) {
        let inner = &self.0;
        let rejected = match inner.state.read().peers.get(&to) {
            Some(peer) if peer.is_cut() => Ok(()),
            Some(peer) => peer.queue.push(message),
            None => Err(Rejected::Full),
        };
        match rejected {
            Ok(()) => {}
            Err(Rejected::Full) => inner.shed(1),
            Err(Rejected::Encode(error)) => {
                tracing::error!(%to, %error, "a message for a peer is dropped");
                inner.shed(1);
            }
        }
    }

    /// Connects to a node by address (`host:port`) and says who it is; [`Transport::send`] reaches it
    /// from then on, for as long as the connection lasts.
    ///
    /// # Errors
    /// When nobody answers within a few seconds, or one of the two refuses the other.
    pub async fn dial(&self, addr: &str) -> Result<NodeId, TransportError> {
        if self.0.state.read().stopped {
            return Err(TransportError::Stopped);
        }
        connection::dial(&self.0, addr, None).await
    }

    /// Sends gossip to the member that advertises `addr`; dropped when there is no connection with it.
    pub fn send_gossip(&self, addr: SocketAddr, bytes: Bytes) {
        let advertises = |peer: &&Arc<Peer>| {
            peer.is_member()
                && !peer.is_cut()
                && peer
                    .chosen
                    .borrow()
                    .as_ref()
                    .is_some_and(|link| link.advertise == addr)
        };
        // A few looks per second, and no table that somebody who is no member could write into.
        let peer = self.0.state.read().peers.values().find(advertises).cloned();
        if let Some(peer) = peer {
            sender::send_gossip(&self.0, &peer, bytes);
        }
    }

    /// The address that a connected node advertises.
    #[must_use]
    pub fn address_of(&self, node: NodeId) -> Option<SocketAddr> {
        let peer = self.0.state.read().peers.get(&node).cloned()?;
        let link = peer.chosen.borrow();
        link.as_ref().map(|link| link.advertise)
    }

    /// All peers, ordered by node.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerStatus> {
        let peers: Vec<_> = self.0.state.read().peers.values().cloned().collect();
        let mut all: Vec<_> = peers.iter().map(|peer| peer.status()).collect();
        all.sort_by_key(|status| status.node);
        all
    }

    /// Lets what is queued leave, for two seconds at most, and closes all connections.
    pub async fn stop(&self) {
        let inner = &self.0;
        let peers: Vec<_> = {
            let mut state = inner.state.write();
            state.stopped = true;
            state.peers.values().cloned().collect()
        };
        inner.endpoint.set_server_config(None);
        for peer in &peers {
            peer.set_role(Role::Guest);
        }
        let flush = futures_util::future::join_all(peers.iter().map(|peer| peer.flush()));
        let _ = timeout(STOP_TIME, flush).await;
        inner.endpoint.close(Reason::Stopping.code(), b"");
        for peer in &peers {
            peer.chosen.send_replace(None);
            peer.set_role(Role::Retired);
        }
        inner.bulk_room.close();
        let _ = timeout(STOP_TIME, inner.endpoint.wait_idle()).await;
    }
}

impl Inner {
    fn hello(&self) -> Hello {
        Hello {
            wire: WIRE_VERSION,
            node: self.settings.node,
            process: self.process,
            cluster: self.state.read().cluster,
            name: self.settings.identity.name().to_owned(),
            advertise: self.advertise,
        }
    }

    fn clock_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn shed(&self, messages: u64) {
        if messages > 0 {
            self.metrics.shed(SHED_PEER_QUEUE, messages);
        }
    }

    fn new_peer(self: &Arc<Self>, node: NodeId, role: Role) -> Arc<Peer> {
        let bounds = Bounds {
            messages: self.settings.queue_messages,
            bytes: self.settings.queue_bytes,
        };
        let peer = Arc::new(Peer::new(node, role, bounds));
        sender::start(self, &peer);
        peer
    }

    /// The peer that a new connection is with, as a guest when it is not known.
    fn peer_for(
        self: &Arc<Self>,
        node: NodeId,
        link: &Link,
    ) -> Result<Arc<Peer>, (Reason, String)> {
        let mut state = self.state.write();
        if state.stopped {
            return Err((Reason::Stopping, String::new()));
        }
        let peer = if let Some(peer) = state.peers.get(&node) {
            if let Role::Member { name, .. } = &*peer.role.borrow()
                && *name != link.name
            {
                let what = format!("certificate of `{}`, node {node} is `{name}`", link.name);
                return Err((Reason::CertificateName, what));
            }
            peer.clone()
        } else {
            let guests = state
                .peers
                .values()
                .filter(|peer| !peer.is_member())
                .count();
            if guests >= self.settings.guests {
                return Err((
                    Reason::TooMany,
                    format!("{guests} nodes that are not members"),
                ));
            }
            let peer = self.new_peer(node, Role::Guest);
            state.peers.insert(node, peer.clone());
            peer
        };
        Ok(peer)
    }

    /// Forgets a guest that has no connection any more.
    fn forget(&self, peer: &Peer) {
        let mut state = self.state.write();
        let same = state
            .peers
            .get(&peer.node)
            .is_some_and(|known| std::ptr::eq(Arc::as_ptr(known), peer));
        if same && !peer.is_member() && peer.retire() {
            state.peers.remove(&peer.node);
        }
    }

    /// Closes a connection for a reason that its peer has given.
    fn refuse_link(&self, link: &Link, reason: Reason, what: String) {
        self.metrics.refused(reason.label());
        link.close(reason, &what);
        let addr = link.connection.remote_address();
        self.log_failure(&link.name, &TransportError::Refused { addr, reason, what });
    }

    /// Logs a failed connection, once in a while per peer and kind.
    fn log_failure(&self, peer: &str, error: &TransportError) {
        let kind = match error.reason() {
            Some(reason) if reason.is_ordinary() => return,
            Some(reason) => reason.label(),
            None => "unreachable",
        };
        {
            let mut logged = self.logged.lock();
            let now = Instant::now();
            let key = (peer.to_owned(), kind);
            if logged
                .get(&key)
                .is_some_and(|at| now.duration_since(*at) < LOG_INTERVAL)
            {
                return;
            }
            if logged.len() >= LOGGED_MAX {
                logged.retain(|_, at| now.duration_since(*at) < LOG_INTERVAL);
            }
            if logged.len() >= LOGGED_MAX {
                return;
            }
            logged.insert(key, now);
        }
        if error.reason().is_some() {
            tracing::warn!(peer, %error, "no peer connection");
        } else {
            tracing::info!(peer, %error, "no peer connection; trying again");
        }
    }
}

impl Peer {
    fn status(&self) -> PeerStatus {
        let (queued_messages, queued_bytes) = self.queue.depth();
        PeerStatus {
            node: self.node,
            member: self.is_member(),
            rtt: self
                .chosen
                .borrow()
                .as_ref()
                .map(|link| link.connection.rtt()),
            queued_messages,
            queued_bytes,
        }
    }

    /// Waits until what was queued has been received by the other side.
    async fn flush(&self) {
        if self.chosen.borrow().is_none() {
            return;
        }
        while self.queue.depth().0 > 0 {
            sleep(Duration::from_millis(2)).await;
        }
        // Slots come back when the other side has all of a message.
        let _slots = self.bulk.acquire_many(peer::BULK_STREAMS_MAX as u32).await;
        // The writer lets go of its stream.
        self.chosen.send_replace(None);
        for link in self.links() {
            // What QUIC has acknowledged may still be unread, and would be thrown away by our close: the
            // other side closes when it has read all.
            let mut out = link.out.lock().await;
            if out.finish().is_ok() {
                link.connection.closed().await;
            }
        }
    }
}

/// Closes connections that nobody needs.
async fn sweep(inner: std::sync::Weak<Inner>) {
    loop {
        sleep(SWEEP_INTERVAL).await;
        let Some(inner) = inner.upgrade() else { return };
        let peers: Vec<_> = {
            let state = inner.state.read();
            if state.stopped {
                return;
            }
            state.peers.values().cloned().collect()
        };
        let now = inner.clock_ms();
        for peer in peers {
            let chosen = peer.chosen.borrow().as_ref().map(|link| link.id);
            for link in peer.links() {
                let idle = Duration::from_millis(
                    now.saturating_sub(link.active_ms.load(Ordering::Relaxed)),
                );
                // The side that dialled a spare connection closes it, and only once.
                let spare = link.dialled && chosen != Some(link.id) && idle > SPARE_IDLE;
                if spare || (!peer.is_member() && !link.dialled && idle > GUEST_IDLE) {
                    link.close(Reason::Idle, "");
                }
            }
        }
    }
}

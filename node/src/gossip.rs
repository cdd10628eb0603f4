//! Gossip: who is alive, and a few dozen bytes of news per node. It decides nothing (protocol, section 4).
//!
//! chitchat (scuttlebutt reconciliation) spreads heartbeats and news; its messages travel as streams of
//! the authenticated peer connections, never as plain UDP, and only between members (docs/adr/0003).
//! A member whose heartbeat has not moved within the patience is reported dead. chitchat's own server is
//! watched and started anew when it ends, under a higher generation.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use chitchat::transport::{Socket, Transport as ChitchatTransport};
use chitchat::{
    Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, ChitchatMessage, Deserializable,
    FailureDetectorConfig, Serializable, spawn_chitchat,
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use torc_ring::{ClusterId, ConfigVersion, NodeId};
use tracing::warn;

use crate::transport::Transport;

/// Gossip messages that wait to be looked at; what comes beyond is dropped, the next round repeats it.
const ARRIVALS_MAX: usize = 256;
/// The key under which a node tells its news.
const NEWS_KEY: &str = "news";
/// Bits of a generation that count restarts of chitchat within one process.
const RESTART_BITS: u32 = 16;
/// Wait before chitchat is started again.
const RESTART_WAIT: Duration = Duration::from_millis(200);
/// How long chitchat remembers a node that does not speak any more.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// Time for an orderly end.
const STOP_TIME: Duration = Duration::from_secs(1);
/// Intervals' worth of samples in chitchat's own failure detector, which only paces its rounds.
const SAMPLES: usize = 100;

/// What gossip is told when it starts.
#[derive(Clone, Debug)]
pub struct GossipSettings {
    /// This node.
    pub node: NodeId,
    /// Its cluster; messages of another one are refused.
    pub cluster: ClusterId,
    /// Time between rounds.
    pub interval: Duration,
    /// Silence after which a node counts as dead; ten intervals are usual.
    pub patience: Duration,
    /// Must rise at each start of the node, below 2^48: a counter on disk, or seconds since 1970.
    pub generation: u64,
}

/// What a node tells all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Config version that it has applied.
    pub applied: ConfigVersion,
    /// Highest config version that it knows to be decided.
    pub known: ConfigVersion,
    /// Its durable clock bound, as a number; 0 when it has none yet.
    pub hlc_bound: u64,
    /// When its oldest waiting hint was written, in microseconds since 1970; 0 when none waits.
    pub oldest_hint: u64,
}

/// The other members as gossip sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GossipView {
    /// Members that were heard of within the patience, ordered.
    pub live: Vec<NodeId>,
    /// Members that were not, ordered; a new member is neither for the first patience.
    pub dead: Vec<NodeId>,
    /// The last news of each, dead ones too.
    pub news: BTreeMap<NodeId, News>,
}

/// Why gossip does not start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum GossipError {
    #[error(
        "gossip generation {generation} is not below 2^48; it must be a counter or seconds since 1970"
    )]
    Generation { generation: u64 },
    #[error("gossip interval is zero; set it to some 200 ms")]
    NoInterval,
}

/// Takes what the transport hands over, without waiting.
#[derive(Clone, Debug)]
pub struct Inbox(mpsc::Sender<(SocketAddr, Bytes)>);

/// What an [`Inbox`] has taken; goes into [`start`].
#[derive(Debug)]
pub struct Arrivals(mpsc::Receiver<(SocketAddr, Bytes)>);

/// A place for arriving gossip, which exists before gossip starts.
#[must_use]
pub fn inbox() -> (Inbox, Arrivals) {
    let (sender, receiver) = mpsc::channel(ARRIVALS_MAX);
    (Inbox(sender), Arrivals(receiver))
}

impl Inbox {
    /// Takes a message, or drops it when too many wait.
    pub fn deliver(&self, from: SocketAddr, bytes: Bytes) {
        let _ = self.0.try_send((from, bytes));
    }
}

/// Running gossip. Cheap to clone; all clones are the same one.
#[derive(Clone, Debug)]
pub struct Gossip(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    news: watch::Sender<News>,
    members: watch::Sender<Vec<NodeId>>,
    view: watch::Receiver<GossipView>,
    stop: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// Starts gossip over the transport's connections. It speaks with the members of
/// [`Gossip::set_members`], none at first.
///
/// # Errors
/// When the settings make no sense.
#[expect(
    clippy::unused_async,
    reason = "starting spawns a task: the runtime is part of the contract"
)]
pub async fn start(
    settings: GossipSettings,
    transport: Transport,
    arrivals: Arrivals,
) -> Result<Gossip, GossipError> {
    if settings.generation >= 1 << (64 - RESTART_BITS) {
        return Err(GossipError::Generation {
            generation: settings.generation,
        });
    }
    if settings.interval.is_zero() {
        return Err(GossipError::NoInterval);
    }
    let (view, view_receiver) = watch::channel(GossipView::default());
    let shared = Arc::new(Shared {
        news: watch::channel(News::default()).0,
        members: watch::channel(Vec::new()).0,
        view: view_receiver,
        stop: watch::channel(false).0,
        task: Mutex::new(None),
    });
    let runner = Runner {
        carrier: Carrier {
            transport: transport.clone(),
            arrivals: Arc::new(tokio::sync::Mutex::new(arrivals.0)),
        },
        transport,
        news: shared.news.subscribe(),
        members: shared.members.subscribe(),
        stop: shared.stop.subscribe(),
        view,
        heartbeats: BTreeMap::new(),
        looked_at: Instant::now(),
        settings,
    };
    *shared.task.lock() = Some(tokio::spawn(runner.run()));
    Ok(Gossip(shared))
}

impl Gossip {
    /// Tells the others, with the next round.
    pub fn set_news(&self, news: News) {
        self.0
            .news
            .send_if_modified(|current| std::mem::replace(current, news) != news);
    }

    /// The members to speak with and to judge, with or without this node.
    pub fn set_members(&self, members: &[NodeId]) {
        let mut members = members.to_vec();
        members.sort_unstable();
        members.dedup();
        self.0.members.send_if_modified(|current| {
            let changed = *current != members;
            *current = members;
            changed
        });
    }

    /// The view, now and whenever it changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<GossipView> {
        self.0.view.clone()
    }

    /// Ends gossip; the others will take this node for dead.
    pub async fn stop(&self) {
        self.0.stop.send_replace(true);
        let task = self.0.task.lock().take();
        if let Some(mut task) = task
            && timeout(STOP_TIME, &mut task).await.is_err()
        {
            task.abort();
        }
    }
}

/// A member's heartbeat as it was last seen to move.
#[derive(Debug)]
struct Heartbeat {
    /// Generation of the node's chitchat and its heartbeat, once heard.
    value: Option<(u64, chitchat::Heartbeat)>,
    moved_at: Instant,
    /// It has moved while we looked; what is first heard may be an old story about a dead node.
    moved: bool,
}

struct Runner {
    settings: GossipSettings,
    transport: Transport,
    carrier: Carrier,
    news: watch::Receiver<News>,
    members: watch::Receiver<Vec<NodeId>>,
    stop: watch::Receiver<bool>,
    view: watch::Sender<GossipView>,
    heartbeats: BTreeMap<NodeId, Heartbeat>,
    looked_at: Instant,
}

impl Runner {
    async fn run(mut self) {
        let mut restarts = 0;
        while !*self.stop.borrow() {
            match spawn_chitchat(self.config(restarts), Vec::new(), &self.carrier).await {
                Ok(handle) => {
                    let outcome = self.watch_over(&handle).await;
                    handle.abort();
                    match outcome {
                        Ok(()) => return,
                        Err(error) => warn!(%error, restarts, "gossip ended; it is started again"),
                    }
                }
                Err(error) => warn!(%error, "gossip cannot be started; trying again"),
            }
            restarts = (restarts + 1).min((1 << RESTART_BITS) - 1);
            sleep(RESTART_WAIT).await;
        }
    }

    fn config(&self, restarts: u64) -> ChitchatConfig {
        let advertise = self.transport.advertised();
        let generation = (self.settings.generation << RESTART_BITS) | restarts;
        ChitchatConfig {
            chitchat_id: ChitchatId::new(self.settings.node.to_string(), generation, advertise),
            cluster_id: self.settings.cluster.to_string(),
            gossip_interval: self.settings.interval,
            listen_addr: advertise,
            // Members that chitchat does not know are greeted by `greet`, at the addresses of their connections.
            seed_nodes: Vec::new(),
            failure_detector_config: FailureDetectorConfig {
                sampling_window_size: SAMPLES,
                initial_interval: self.settings.interval,
                max_interval: self.settings.patience,
                dead_node_grace_period: FORGET_AFTER,
                ..FailureDetectorConfig::default()
            },
            marked_for_deletion_grace_period: FORGET_AFTER,
            catchup_callback: None,
            extra_liveness_predicate: None,
        }
    }

    /// Keeps the view until gossip is to stop, or its server has ended by itself.
    async fn watch_over(&mut self, handle: &ChitchatHandle) -> Result<(), anyhow::Error> {
        let ended = handle.termination_watcher();
        tokio::pin!(ended);
        let mut tick = interval(self.settings.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                result = &mut ended => return result.and_then(|()| Err(anyhow::anyhow!("no reason given"))),
                _ = self.stop.changed() => {
                    let _ = handle.initiate_shutdown();
                    return Ok(());
                }
                _ = tick.tick() => {}
                _ = self.news.changed() => {}
                _ = self.members.changed() => {}
            }
            let news = self.news.borrow_and_update().encode();
            let members = self.members.borrow_and_update().clone();
            let own = self.settings.node;
            let view = handle
                .with_chitchat(|chitchat| {
                    chitchat.self_node_state().set(NEWS_KEY, &news);
                    self.look(
                        chitchat,
                        members.iter().copied().filter(|node| *node != own),
                    )
                })
                .await;
            self.greet(handle, &view, &members);
            self.view.send_if_modified(|current| {
                let changed = *current != view;
                *current = view;
                changed
            });
        }
    }

    /// Judges the members by what chitchat knows of them.
    fn look(&mut self, chitchat: &Chitchat, members: impl Iterator<Item = NodeId>) -> GossipView {
        let now = Instant::now();
        // When this process itself stood still, the others' silence meanwhile says nothing about them.
        let pause = now
            .duration_since(self.looked_at)
            .saturating_sub(self.settings.interval);
        self.looked_at = now;
        let mut states = BTreeMap::new();
        for (id, state) in chitchat.node_states() {
            if let Ok(node) = id.node_id.parse::<NodeId>() {
                let newest = states.entry(node).or_insert((id.generation_id, state));
                if newest.0 <= id.generation_id {
                    *newest = (id.generation_id, state);
                }
            }
        }
        let mut view = GossipView::default();
        let mut heartbeats = BTreeMap::new();
        for node in members {
            let state = states.get(&node);
            let value = state.map(|(generation, state)| (*generation, state.heartbeat()));
            let mut heartbeat = self.heartbeats.remove(&node).unwrap_or(Heartbeat {
                value,
                moved_at: now,
                moved: false,
            });
            if pause > self.settings.interval {
                heartbeat.moved_at = (heartbeat.moved_at + pause).min(now);
            }
            if value > heartbeat.value {
                let moved = heartbeat.value.is_some();
                heartbeat = Heartbeat {
                    value,
                    moved_at: now,
                    moved,
                };
            }
            let silent = now.duration_since(heartbeat.moved_at) > self.settings.patience;
            if silent {
                heartbeat.moved = false;
                view.dead.push(node);
            } else if heartbeat.moved {
                view.live.push(node);
            }
            if let Some(news) = state
                .and_then(|(_, state)| state.get(NEWS_KEY))
                .and_then(News::decode)
            {
                view.news.insert(node, news);
            }
            heartbeats.insert(node, heartbeat);
        }
        self.heartbeats = heartbeats;
        view
    }

    /// Starts a round with one member that is not live, so that newcomers and those that come back are
    /// heard within a few intervals.
    fn greet(&self, handle: &ChitchatHandle, view: &GossipView, members: &[NodeId]) {
        let silent: Vec<_> = members
            .iter()
            .filter(|node| **node != self.settings.node && view.live.binary_search(node).is_err())
            .filter_map(|node| self.transport.address_of(*node))
            .collect();
        if !silent.is_empty() {
            let _ = handle.gossip(silent[rand::random_range(0..silent.len())]);
        }
    }
}

impl News {
    /// Decimal numbers; later versions append more.
    fn encode(self) -> String {
        format!(
            "{} {} {} {}",
            self.applied.0, self.known.0, self.hlc_bound, self.oldest_hint
        )
    }

    fn decode(text: &str) -> Option<Self> {
        let mut numbers = text.split(' ').map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        Some(Self {
            applied: ConfigVersion(next()?),
            known: ConfigVersion(next()?),
            hlc_bound: next()?,
            oldest_hint: next()?,
        })
    }
}

/// chitchat's way to the peer connections.
#[derive(Clone)]
struct Carrier {
    transport: Transport,
    /// Outlives a restart of chitchat.
    arrivals: Arc<tokio::sync::Mutex<mpsc::Receiver<(SocketAddr, Bytes)>>>,
}

#[async_trait]
impl ChitchatTransport for Carrier {
    async fn open(&self, _listen: SocketAddr) -> Result<Box<dyn Socket>, anyhow::Error> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl Socket for Carrier {
    async fn send(
        &mut self,
        to: SocketAddr,
        message: ChitchatMessage,
    ) -> Result<(), anyhow::Error> {
        self.transport
            .send_gossip(to, message.serialize_to_vec().into());
        Ok(())
    }

    async fn recv(&mut self) -> Result<(SocketAddr, ChitchatMessage), anyhow::Error> {
        let mut arrivals = self.arrivals.lock().await;
        loop {
            let Some((from, bytes)) = arrivals.recv().await else {
                // The node is going down; the end comes by `stop`.
                return std::future::pending().await;
            };
            match ChitchatMessage::deserialize(&mut &bytes[..]) {
                Ok(message) => return Ok((from, message)),
                Err(error) => tracing::debug!(%from, %error, "gossip cannot be read"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use tempfile::TempDir;
    use torc_protocol::message::PeerMessage;
    use torc_ring::Member;

    use super::*;
    use crate::pki::{self, Identity};
    use crate::transport::{Inbound, TransportMetrics, TransportSettings};

    const PATIENCE: Duration = Duration::from_secs(10);

    struct Uncounted;

    impl TransportMetrics for Uncounted {
        fn sent(&self, _: Option<NodeId>, _: u64) {}
        fn received(&self, _: Option<NodeId>, _: u64) {}
        fn refused(&self, _: &'static str) {}
        fn shed(&self, _: &'static str, _: u64) {}
        fn lost(&self, _: NodeId, _: u64) {}
    }

    struct GossipOnly(OnceLock<Inbox>);

    impl Inbound for GossipOnly {
        fn on_messages(&self, _: NodeId, _: Vec<PeerMessage>) {}
        fn on_gossip(&self, from: SocketAddr, bytes: Bytes) {
            if let Some(inbox) = self.0.get() {
                inbox.deliver(from, bytes);
            }
        }
        fn on_link(&self, _: NodeId, _: bool) {}
    }

    struct Node {
        transport: Transport,
        gossip: Gossip,
        view: watch::Receiver<GossipView>,
        member: Member,
    }

    async fn node(dir: &TempDir, id: u64, generation: u64, listen: SocketAddr) -> Node {
        let name = format!("n{id}");
        let identity = Identity::load(dir.path(), &name).unwrap();
        let (inbox, arrivals) = inbox();
        let settings = TransportSettings::new(listen, NodeId(id), identity);
        let inbound = Arc::new(GossipOnly(OnceLock::from(inbox)));
        let transport = Transport::start(settings, Arc::new(Uncounted), inbound).unwrap();
        let settings = GossipSettings {
            node: NodeId(id),
            cluster: ClusterId(7),
            interval: Duration::from_millis(100),
            patience: Duration::from_secs(1),
            generation,
        };
        let gossip = start(settings, transport.clone(), arrivals).await.unwrap();
        let peer = transport.local_addr().to_string();
        let member = Member {
            id: NodeId(id),
            name,
            zone: String::new(),
            weight: 100,
            peer,
            http: String::new(),
        };
        Node {
            view: gossip.subscribe(),
            transport,
            gossip,
            member,
        }
    }

    impl Node {
        fn know(&self, members: &[Member]) {
            self.transport.set_members(members);
            self.gossip
                .set_members(&members.iter().map(|member| member.id).collect::<Vec<_>>());
        }

        async fn sees(&mut self, what: &str, condition: impl FnMut(&GossipView) -> bool) {
            let seen = timeout(PATIENCE, self.view.wait_for(condition)).await;
            assert!(
                seen.is_ok_and(|view| view.is_ok()),
                "{what}, seen by {}",
                self.member.name
            );
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn news_arrive_and_a_death_and_a_return_are_seen() {
        let dir = TempDir::new().unwrap();
        pki::init(dir.path()).unwrap();
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        let mut nodes = Vec::new();
        for id in 1..=3 {
            nodes.push(node(&dir, id, 1, any).await);
        }
        let members: Vec<_> = nodes.iter().map(|node| node.member.clone()).collect();
        for node in &nodes {
            node.know(&members);
        }
        for (index, node) in nodes.iter_mut().enumerate() {
            let others: Vec<_> = (1..=3)
                .map(NodeId)
                .filter(|id| id.0 != index as u64 + 1)
                .collect();
            node.sees("all live", |view| view.live == others).await;
        }
        let news = News {
            applied: ConfigVersion(5),
            hlc_bound: 6,
            ..News::default()
        };
        nodes[2].gossip.set_news(news);
        for node in &mut nodes[..2] {
            node.sees("news", |view| view.news.get(&NodeId(3)) == Some(&news))
                .await;
        }

        let gone = nodes.pop().unwrap();
        let listen = gone.transport.local_addr();
        let died = Instant::now();
        gone.gossip.stop().await;
        gone.transport.stop().await;
        drop(gone);
        for node in &mut nodes {
            node.sees("death", |view| {
                view.dead == [NodeId(3)] && view.live.len() == 1
            })
            .await;
            assert!(
                died.elapsed() < Duration::from_secs(3),
                "{:?}",
                died.elapsed()
            );
        }

        let free = async {
            while std::net::UdpSocket::bind(listen).is_err() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, free).await.unwrap();
        let back = node(&dir, 3, 2, listen).await;
        back.know(&members);
        let news = News {
            applied: ConfigVersion(6),
            ..News::default()
        };
        back.gossip.set_news(news);
        for node in &mut nodes {
            node.sees("return", |view| {
                view.dead.is_empty() && view.news.get(&NodeId(3)) == Some(&news)
            })
            .await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn garbage_is_survived_and_a_member_that_never_spoke_is_dead_in_the_end() {
        let dir = TempDir::new().unwrap();
        pki::init(dir.path()).unwrap();
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        let (mut a, mut b) = (node(&dir, 1, 1, any).await, node(&dir, 2, 1, any).await);
        let absent = Member {
            id: NodeId(9),
            name: "n9".into(),
            peer: "127.0.0.1:9".into(),
            ..a.member.clone()
        };
        let members = [a.member.clone(), b.member.clone(), absent];
        a.know(&members);
        b.know(&members);
        a.sees("b live", |view| view.live == [NodeId(2)]).await;
        for len in 0..200 {
            a.transport
                .send_gossip(b.transport.advertised(), vec![len as u8; len].into());
        }
        for node in [&mut a, &mut b] {
            node.sees("n9 dead", |view| {
                view.dead == [NodeId(9)] && view.live.len() == 1
            })
            .await;
        }
    }

    #[test]
    fn news_survive_the_way_and_ignore_what_later_versions_add() {
        let news = News {
            applied: ConfigVersion(3),
            known: ConfigVersion(4),
            hlc_bound: u64::MAX,
            oldest_hint: 5,
        };
        assert_eq!(News::decode(&news.encode()), Some(news));
        assert_eq!(News::decode(&format!("{} 9 x", news.encode())), Some(news));
        for bad in ["", "1", "1 2 3", "1 2 3 x", "-1 2 3 4"] {
            assert_eq!(News::decode(bad), None, "{bad:?}");
        }
    }
}

//! Transports on loopback, with real sockets and certificates.

use std::sync::atomic::AtomicU64;

use tempfile::TempDir;
use tokio::sync::mpsc;
use torc_protocol::cluster_message::ClusterMessage;
use torc_protocol::hlc::Hlc;
use torc_protocol::message::{OpId, PeerBody, Reply, ReplyKind};
use torc_protocol::record::{Parts, Record};
use torc_protocol::version::Version;
use torc_ring::RingVersion;

use super::*;
use crate::pki;

const PATIENCE: Duration = Duration::from_secs(10);

/// What one transport saw.
#[derive(Debug)]
enum Event {
    Message(NodeId, PeerMessage),
    Gossip(SocketAddr, Bytes),
    Link(NodeId, bool),
}

#[derive(Default)]
struct Counts {
    refused: Mutex<BTreeMap<&'static str, u64>>,
    shed: AtomicU64,
    lost: AtomicU64,
}

impl TransportMetrics for Counts {
    fn sent(&self, _: NodeId, _: u64) {}
    fn received(&self, _: NodeId, _: u64) {}
    fn refused(&self, reason: &'static str) {
        *self.refused.lock().entry(reason).or_default() += 1;
    }
    fn shed(&self, _: &'static str, messages: u64) {
        self.shed.fetch_add(messages, Ordering::Relaxed);
    }
    fn lost(&self, _: NodeId, messages: u64) {
        self.lost.fetch_add(messages, Ordering::Relaxed);
    }
}

struct Sink(mpsc::UnboundedSender<Event>);

impl Inbound for Sink {
    fn on_messages(&self, from: NodeId, messages: Vec<PeerMessage>) {
        for message in messages {
            let _ = self.0.send(Event::Message(from, message));
        }
    }
    fn on_gossip(&self, from: SocketAddr, bytes: Bytes) {
        let _ = self.0.send(Event::Gossip(from, bytes));
    }
    fn on_link(&self, peer: NodeId, up: bool) {
        let _ = self.0.send(Event::Link(peer, up));
    }
}

struct Node {
    transport: Transport,
    counts: Arc<Counts>,
    events: mpsc::UnboundedReceiver<Event>,
    member: Member,
}

/// One CA and what is issued from it.
struct Cluster {
    dir: TempDir,
}

impl Cluster {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        pki::init(dir.path()).unwrap();
        Self { dir }
    }

    fn settings(&self, id: u64) -> TransportSettings {
        let identity = Identity::load(self.dir.path(), &format!("n{id}")).unwrap();
        TransportSettings::new(([127, 0, 0, 1], 0).into(), NodeId(id), identity)
    }

    fn node(&self, id: u64) -> Node {
        Node::start(self.settings(id))
    }

    /// Nodes that are all members of one another's cluster.
    fn nodes(&self, count: u64) -> Vec<Node> {
        let nodes: Vec<_> = (1..=count).map(|id| self.node(id)).collect();
        let members: Vec<_> = nodes.iter().map(|node| node.member.clone()).collect();
        for node in &nodes {
            node.transport.set_cluster(ClusterId(7));
            node.transport.set_members(&members);
        }
        nodes
    }
}

impl Node {
    fn start(settings: TransportSettings) -> Self {
        let (events, receiver) = mpsc::unbounded_channel();
        let counts = Arc::new(Counts::default());
        let (id, name) = (settings.node, settings.identity.name().to_owned());
        let transport = Transport::start(settings, counts.clone(), Arc::new(Sink(events))).unwrap();
        let peer = transport.local_addr().to_string();
        let member = Member { id, name, zone: String::new(), weight: 100, peer, http: String::new() };
        Self { transport, counts, events: receiver, member }
    }

    async fn next<T>(&mut self, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        let wait = async {
            loop {
                let event = self.events.recv().await.expect("the transport holds the sender");
                if let Some(found) = pick(event) {
                    return found;
                }
            }
        };
        timeout(PATIENCE, wait).await.expect("an event in time")
    }

    async fn message(&mut self) -> (NodeId, PeerMessage) {
        self.next(|event| match event {
            Event::Message(from, message) => Some((from, message)),
            _ => None,
        })
        .await
    }

    async fn link(&mut self, node: u64, up: bool) {
        self.next(|event| match event {
            Event::Link(peer, now) if peer == NodeId(node) && now == up => Some(()),
            _ => None,
        })
        .await;
    }

    fn refused(&self, reason: Reason) -> u64 {
        self.counts.refused.lock().get(reason.label()).copied().unwrap_or(0)
    }

    fn queued(&self) -> usize {
        self.transport.peers().iter().map(|peer| peer.queued_messages).sum()
    }
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(PATIENCE, wait).await.is_ok(), "{what} in time");
}

/// A message about keys, with a value of `len` bytes.
fn value(number: u64, len: usize) -> PeerMessage {
    let version = Version { hlc: Hlc(number), node: NodeId(1) };
    let value = vec![number as u8; len];
    let record = Record::value(Parts { version, expiry: None, content_type: b"", value: &value });
    let kind = ReplyKind::Full { record: Some(record) };
    PeerMessage {
        hlc: Hlc(number),
        body: PeerBody::Reply(Reply { op: OpId(number), ring: RingVersion(1), kind }),
    }
}

fn membership(number: u64) -> PeerMessage {
    let body = PeerBody::Cluster(ClusterMessage::Fetch { after: None });
    PeerMessage { hlc: Hlc(number), body }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_pass_both_ways_in_order() {
    let cluster = Cluster::new();
    let mut nodes = cluster.nodes(2);
    let (mut b, mut a) = (nodes.pop().unwrap(), nodes.pop().unwrap());
    a.link(2, true).await;
    b.link(1, true).await;
    for number in 0..5_000 {
        a.transport.send(NodeId(2), value(number, (number % 3_000) as usize));
        b.transport.send(NodeId(1), value(number, 10));
    }
    for number in 0..5_000 {
        assert_eq!(b.message().await, (NodeId(1), value(number, (number % 3_000) as usize)));
        assert_eq!(a.message().await, (NodeId(2), value(number, 10)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_messages_do_not_wait_behind_a_large_value() {
    let cluster = Cluster::new();
    let mut nodes = cluster.nodes(2);
    let (mut b, mut a) = (nodes.pop().unwrap(), nodes.pop().unwrap());
    a.link(2, true).await;
    b.link(1, true).await;
    let large: Vec<_> = (0..2).map(|number| value(number, 31 << 20)).collect();
    for message in &large {
        a.transport.send(NodeId(2), message.clone());
    }
    for number in 100..200 {
        a.transport.send(NodeId(2), value(number, 100));
    }
    for number in 100..200 {
        assert_eq!(b.message().await.1.hlc, Hlc(number), "a small one comes first, and in order");
    }
    let mut left: Vec<u64> = (0..2).collect();
    while !left.is_empty() {
        let (_, message) = b.message().await;
        left.retain(|number| *number != message.hlc.0);
        assert!(message == large[message.hlc.0 as usize], "it comes whole");
    }
}

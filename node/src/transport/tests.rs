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

mod guests;

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
    received: AtomicU64,
    /// Under whom bytes were counted that came.
    counted: Mutex<BTreeSet<Option<NodeId>>>,
    shed: AtomicU64,
    lost: AtomicU64,
}

impl TransportMetrics for Counts {
    fn sent(&self, _: Option<NodeId>, _: u64) {}
    fn received(&self, peer: Option<NodeId>, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
        self.counted.lock().insert(peer);
    }
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
        let member = Member {
            id,
            name,
            zone: String::new(),
            weight: 100,
            peer,
            http: String::new(),
        };
        Self {
            transport,
            counts,
            events: receiver,
            member,
        }
    }

    async fn next<T>(&mut self, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        let wait = async {
            loop {
                let event = self
                    .events
                    .recv()
                    .await
                    .expect("the transport holds the sender");
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
        self.counts
            .refused
            .lock()
            .get(reason.label())
            .copied()
            .unwrap_or(0)
    }

    fn counted(&self) -> Vec<Option<NodeId>> {
        self.counts.counted.lock().iter().copied().collect()
    }

    fn queued(&self) -> usize {
        self.transport
            .peers()
            .iter()
            .map(|peer| peer.queued_messages)
            .sum()
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
    let version = Version {
        hlc: Hlc(number),
        node: NodeId(1),
    };
    let value = vec![number as u8; len];
    let record = Record::value(Parts {
        version,
        expiry: None,
        content_type: b"",
        value: &value,
    });
    let kind = ReplyKind::Full {
        record: Some(record),
    };
    PeerMessage {
        hlc: Hlc(number),
        body: PeerBody::Reply(Reply {
            op: OpId(number),
            ring: RingVersion(1),
            floor: Hlc(0),
            kind,
        }),
    }
}

fn membership(number: u64) -> PeerMessage {
    let body = PeerBody::Cluster(ClusterMessage::Fetch { after: None });
    PeerMessage {
        hlc: Hlc(number),
        body,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_pass_both_ways_in_order() {
    let cluster = Cluster::new();
    let mut nodes = cluster.nodes(2);
    let (mut b, mut a) = (nodes.pop().unwrap(), nodes.pop().unwrap());
    a.link(2, true).await;
    b.link(1, true).await;
    for number in 0..5_000 {
        a.transport
            .send(NodeId(2), value(number, (number % 3_000) as usize));
        b.transport.send(NodeId(1), value(number, 10));
    }
    for number in 0..5_000 {
        assert_eq!(
            b.message().await,
            (NodeId(1), value(number, (number % 3_000) as usize))
        );
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
        assert_eq!(
            b.message().await.1.hlc,
            Hlc(number),
            "a small one comes first, and in order"
        );
    }
    let mut left: Vec<u64> = (0..2).collect();
    while !left.is_empty() {
        let (_, message) = b.message().await;
        left.retain(|number| *number != message.hlc.0);
        assert!(message == large[message.hlc.0 as usize], "it comes whole");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simultaneous_dials_settle_on_the_lower_nodes_connection() {
    let cluster = Cluster::new();
    let mut a = cluster.node(1);
    let mut b = cluster.node(2);
    let (to_a, to_b) = (a.member.peer.clone(), b.member.peer.clone());
    let (first, second) = tokio::join!(a.transport.dial(&to_b), b.transport.dial(&to_a));
    assert_eq!((first.unwrap(), second.unwrap()), (NodeId(2), NodeId(1)));
    for node in [&a, &b] {
        eventually("both connections are known", || {
            node.transport
                .0
                .state
                .read()
                .peers
                .values()
                .next()
                .is_some_and(|peer| peer.links().len() == 2)
        })
        .await;
    }
    let chosen = |node: &Node| {
        let peer = node
            .transport
            .0
            .state
            .read()
            .peers
            .values()
            .next()
            .cloned()
            .unwrap();
        let link = peer.chosen.borrow().clone().unwrap();
        (link.dialled, link.connection.stable_id())
    };
    assert!(chosen(&a).0 && !chosen(&b).0);
    a.transport.send(NodeId(2), membership(1));
    b.transport.send(NodeId(1), membership(2));
    assert_eq!(b.message().await, (NodeId(1), membership(1)));
    assert_eq!(a.message().await, (NodeId(2), membership(2)));
    // The other connection goes when it has been idle; nobody is told that a peer went.
    for node in [&a, &b] {
        eventually("the spare connection is closed", || {
            node.transport
                .0
                .state
                .read()
                .peers
                .values()
                .next()
                .is_some_and(|peer| peer.links().len() == 1)
        })
        .await;
    }
    a.transport.send(NodeId(2), membership(3));
    let next = b.next(|event| match event {
        Event::Message(_, message) => Some(Some(message)),
        Event::Link(_, false) => Some(None),
        _ => None,
    });
    assert_eq!(next.await, Some(membership(3)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_peer_is_linked_again_by_either_side() {
    let cluster = Cluster::new();
    for (stays, restarts) in [(1, 2), (2, 1)] {
        let mut nodes: Vec<_> = cluster.nodes(2);
        let at = nodes
            .iter()
            .position(|node| node.member.id.0 == restarts)
            .unwrap();
        let gone = nodes.remove(at);
        let mut stays_node = nodes.pop().unwrap();
        stays_node.link(restarts, true).await;
        let member = gone.member.clone();
        gone.transport.stop().await;
        stays_node.link(restarts, false).await;
        drop(gone);
        eventually("the port is free", || {
            std::net::UdpSocket::bind(&member.peer).is_ok()
        })
        .await;
        // The same address, another process; it knows no members, so it does not dial.
        let mut settings = cluster.settings(restarts);
        settings.listen = member.peer.parse().unwrap();
        let mut back = Node::start(settings);
        stays_node.link(restarts, true).await;
        back.link(stays, true).await;
        stays_node.transport.send(NodeId(restarts), membership(1));
        assert_eq!(back.message().await, (NodeId(stays), membership(1)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_passes_between_members() {
    let cluster = Cluster::new();
    let mut nodes = cluster.nodes(2);
    let (mut b, mut a) = (nodes.pop().unwrap(), nodes.pop().unwrap());
    a.link(2, true).await;
    b.link(1, true).await;
    let to = a.transport.address_of(NodeId(2)).unwrap();
    a.transport.send_gossip(to, Bytes::from(vec![9; 65_507]));
    let got = b.next(|event| match event {
        Event::Gossip(from, bytes) => Some((from, bytes)),
        _ => None,
    });
    assert_eq!(
        got.await,
        (a.transport.advertised(), Bytes::from(vec![9; 65_507]))
    );
}

/// Both sides' errors of a dial that must be refused: the dialler's, and what the other one counted.
async fn refusal(from: &Node, to: &Node) -> Reason {
    let error = from
        .transport
        .dial(&to.member.peer)
        .await
        .expect_err("it is refused");
    error
        .reason()
        .unwrap_or_else(|| panic!("typed, not: {error}"))
}

/// The same where the other side greets before it refuses: what it says first may arrive first, and then the
/// connection is there for a moment.
async fn late_refusal(from: &Node, to: &Node) -> Reason {
    let refused = async {
        loop {
            match from.transport.dial(&to.member.peer).await {
                Ok(_) => sleep(Duration::from_millis(5)).await,
                Err(error) => {
                    return error
                        .reason()
                        .unwrap_or_else(|| panic!("typed, not: {error}"));
                }
            }
        }
    };
    timeout(PATIENCE, refused).await.expect("a refusal in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_ca_is_refused() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let (inside, stranger) = (ours.node(1), theirs.node(2));
    assert_eq!(refusal(&stranger, &inside).await, Reason::Certificate);
    assert_eq!(refusal(&inside, &stranger).await, Reason::Certificate);
    eventually("it is counted on both sides", || {
        inside.refused(Reason::Certificate) > 0 && stranger.refused(Reason::Certificate) > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_cluster_is_refused() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node(1), cluster.node(2));
    a.transport.set_cluster(ClusterId(1));
    b.transport.set_cluster(ClusterId(2));
    let error = a.transport.dial(&b.member.peer).await.expect_err("refused");
    assert!(
        matches!(&error, TransportError::RefusedByPeer { reason: Reason::OtherCluster, said, .. }
        if said.contains("0000000000000001")),
        "{error}"
    );
    assert_eq!(b.refused(Reason::OtherCluster), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_bound_to_its_members_node_id() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.node(1), cluster.node(2));
    let mut settings = cluster.settings(3);
    settings.node = NodeId(2);
    let impostor = Node::start(settings);
    a.transport
        .set_members(&[a.member.clone(), b.member.clone()]);
    assert_eq!(refusal(&impostor, &a).await, Reason::CertificateName);
    assert!(a.refused(Reason::CertificateName) >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_data_directory_is_noticed() {
    let cluster = Cluster::new();
    let (a, mut b) = (cluster.node(1), cluster.node(2));
    // The copy meets the node itself.
    let copy = cluster.node(1);
    assert_eq!(refusal(&copy, &a).await, Reason::OwnId);
    // It closes the connection first, and counts then.
    eventually("it is counted", || a.refused(Reason::OwnId) == 1).await;
    // And both meet a third one: the later one wins, the earlier one is told.
    a.transport.dial(&b.member.peer).await.unwrap();
    b.link(1, true).await;
    copy.transport.dial(&b.member.peer).await.unwrap();
    b.link(1, false).await;
    b.link(1, true).await;
    assert_eq!(late_refusal(&a, &b).await, Reason::DuplicateId);
    // A node that dials itself is told so.
    assert_eq!(refusal(&b, &b).await, Reason::SelfDial);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_drops_and_counts() {
    let cluster = Cluster::new();
    let mut settings = cluster.settings(1);
    settings.queue_messages = 100;
    settings.queue_bytes = 50_000;
    let a = Node::start(settings);
    // Nobody listens there.
    let absent = Member {
        id: NodeId(2),
        name: "n2".into(),
        peer: "127.0.0.1:9".into(),
        ..a.member.clone()
    };
    a.transport.set_members(&[absent]);
    for number in 0..150 {
        a.transport.send(NodeId(2), value(number, 10));
    }
    assert_eq!(
        (a.queued(), a.counts.shed.load(Ordering::Relaxed)),
        (100, 50)
    );
    // What nobody came for is dropped by its age.
    eventually("the queue is cleared", || a.queued() == 0).await;
    assert_eq!(a.counts.shed.load(Ordering::Relaxed), 150);
    for number in 0..10 {
        a.transport.send(NodeId(2), value(number, 8_000));
    }
    assert_eq!(a.queued(), 6);
    a.transport.send(NodeId(3), value(1, 1));
    assert_eq!(a.counts.shed.load(Ordering::Relaxed), 155);
}

/// A greeting as `id`, and then whatever the test wants, by hand.
async fn raw(
    cluster: &Cluster,
    id: u64,
    to: &Node,
) -> (quinn::Endpoint, quinn::Connection, quinn::SendStream) {
    let settings = cluster.settings(id);
    let endpoint = tls::endpoint(settings.listen, &settings.identity, tls::ALPN).unwrap();
    let addr = to.member.peer.parse().unwrap();
    let connection = endpoint
        .connect(addr, pki::PEER_DNS_NAME)
        .unwrap()
        .await
        .unwrap();
    let (mut out, mut from) = connection.open_bi().await.unwrap();
    greeting(id).send(&mut out).await.unwrap();
    Hello::receive(&mut from).await.unwrap().unwrap();
    // Dropping it would tell the other side to stop sending.
    tokio::spawn(async move {
        let _ = from.read_to_end(1 << 20).await;
    });
    (endpoint, connection, out)
}

fn greeting(id: u64) -> Hello {
    Hello {
        wire: WIRE_VERSION,
        node: NodeId(id),
        process: 99,
        cluster: None,
        name: format!("n{id}"),
        advertise: ([127, 0, 0, 1], 1).into(),
    }
}

async fn closed_for(connection: &quinn::Connection) -> Option<Reason> {
    let error = timeout(PATIENCE, connection.closed())
        .await
        .expect("it is closed in time");
    Reason::of(&error)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_ends_the_connection_and_harms_nothing() {
    let cluster = Cluster::new();
    let mut victim = cluster.node(1);
    let other = cluster.node(3);
    other.transport.dial(&victim.member.peer).await.unwrap();
    let frame = |body: &[u8]| {
        let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
        bytes.extend(body);
        bytes
    };
    let cases: [(Vec<u8>, Reason); 5] = [
        (
            frame(&[WIRE_VERSION, 0xff, 0xff, 0xff]),
            Reason::MalformedFrame,
        ),
        (frame(&[]), Reason::MalformedFrame),
        (frame(&[WIRE_VERSION + 1, 1, 2, 3]), Reason::WireVersion),
        (u32::MAX.to_le_bytes().to_vec(), Reason::FrameTooLong),
        (vec![0xaa; 5_000], Reason::FrameTooLong),
    ];
    for (bytes, reason) in cases {
        let (_endpoint, connection, mut out) = raw(&cluster, 2, &victim).await;
        let before = victim.refused(reason);
        out.write_all(&bytes).await.unwrap();
        assert_eq!(closed_for(&connection).await, Some(reason), "{bytes:x?}");
        assert_eq!(victim.refused(reason), before + 1);
    }
    // The same on streams of single messages.
    let long = [&[1][..], &u32::MAX.to_le_bytes()].concat();
    let cases: [(&[u8], Reason); 4] = [
        (&[77], Reason::MalformedFrame),
        (&long, Reason::FrameTooLong),
        (&[1, 3, 0, 0, 0, 9, 9, 9], Reason::WireVersion),
        (&[1, 3, 0, 0, 0, 9], Reason::MalformedFrame),
    ];
    for (bytes, reason) in cases {
        let (_endpoint, connection, _out) = raw(&cluster, 2, &victim).await;
        let mut stream = connection.open_uni().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.finish().unwrap();
        assert_eq!(closed_for(&connection).await, Some(reason), "{bytes:x?}");
    }
    other.transport.send(NodeId(1), membership(1));
    assert_eq!(victim.message().await, (NodeId(3), membership(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_greetings_are_refused() {
    let cluster = Cluster::new();
    let victim = cluster.node(1);
    let cases: [(Vec<u8>, Reason); 5] = [
        (
            Hello {
                wire: WIRE_VERSION + 1,
                ..greeting(2)
            }
            .encode()
            .to_vec(),
            Reason::WireVersion,
        ),
        (
            Hello {
                name: "n3".into(),
                ..greeting(2)
            }
            .encode()
            .to_vec(),
            Reason::CertificateName,
        ),
        (
            Hello {
                node: NodeId(1),
                ..greeting(2)
            }
            .encode()
            .to_vec(),
            Reason::OwnId,
        ),
        (vec![0xff; 100], Reason::MalformedHello),
        (b"\x04\x00GET ".to_vec(), Reason::MalformedHello),
    ];
    for (before, (bytes, reason)) in (0..).zip(cases) {
        let settings = cluster.settings(2);
        let endpoint = tls::endpoint(settings.listen, &settings.identity, tls::ALPN).unwrap();
        let addr = victim.member.peer.parse().unwrap();
        let connection = endpoint
            .connect(addr, pki::PEER_DNS_NAME)
            .unwrap()
            .await
            .unwrap();
        let (mut out, _from) = connection.open_bi().await.unwrap();
        out.write_all(&bytes).await.unwrap();
        assert_eq!(closed_for(&connection).await, Some(reason));
        let all = || victim.counts.refused.lock().values().sum::<u64>();
        eventually("it is counted", || {
            all() == before + 1 && victim.refused(reason) > 0
        })
        .await;
    }
    assert!(victim.transport.peers().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_handshake_is_refused_by_tls_on_both_sides() {
    let cluster = Cluster::new();
    let ours = cluster.node(1);
    let settings = cluster.settings(2);
    let theirs = tls::endpoint(settings.listen, &settings.identity, b"torc-peer/0").unwrap();
    let addr = ours.member.peer.parse().unwrap();
    let error = theirs
        .connect(addr, pki::PEER_DNS_NAME)
        .unwrap()
        .await
        .expect_err("refused");
    assert_eq!(Reason::of(&error), Some(Reason::WireVersion), "{error}");
    eventually("it is counted", || ours.refused(Reason::WireVersion) == 1).await;
    let listening = theirs.clone();
    tokio::spawn(async move { listening.accept().await.unwrap().await });
    let error = ours
        .transport
        .dial(&theirs.local_addr().unwrap().to_string())
        .await
        .expect_err("refused");
    assert_eq!(error.reason(), Some(Reason::WireVersion), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_link_carries_nothing_until_it_is_mended() {
    let cluster = Cluster::new();
    let mut nodes = cluster.nodes(2);
    let (mut b, mut a) = (nodes.pop().unwrap(), nodes.pop().unwrap());
    a.link(2, true).await;
    b.link(1, true).await;
    // One side is enough for both directions.
    b.transport.set_cut(BTreeSet::from([a.member.name.clone()]));
    let before = b.counts.received.load(Ordering::Relaxed);
    a.transport.send(NodeId(2), value(1, 10));
    b.transport.send(NodeId(1), value(2, 10));
    eventually("what was sent has come, and was thrown away", || {
        b.counts.received.load(Ordering::Relaxed) > before
    })
    .await;
    b.transport.set_cut(BTreeSet::new());
    a.transport.send(NodeId(2), value(3, 10));
    b.transport.send(NodeId(1), value(4, 10));
    assert_eq!(b.message().await.1, value(3, 10));
    assert_eq!(a.message().await.1, value(4, 10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_where_nobody_answers_is_an_error_that_says_so() {
    let cluster = Cluster::new();
    let a = cluster.node(1);
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = silent.local_addr().unwrap();
    let error = a
        .transport
        .dial(&addr.to_string())
        .await
        .expect_err("nobody is there");
    assert!(error.to_string().contains(&addr.to_string()), "{error}");
    let error = a.transport.dial("no-port").await.expect_err("no address");
    assert!(matches!(error, TransportError::Resolve { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_queued_is_sent_before_the_transport_stops() {
    let cluster = Cluster::new();
    let mut nodes = cluster.nodes(2);
    let (mut b, mut a) = (nodes.pop().unwrap(), nodes.pop().unwrap());
    a.link(2, true).await;
    b.link(1, true).await;
    for number in 0..1_000 {
        a.transport.send(NodeId(2), value(number, 1_000));
    }
    for number in 1_000..1_003 {
        a.transport.send(NodeId(2), value(number, 3 << 20));
    }
    a.transport.stop().await;
    let mut left: Vec<u64> = (0..1_003).collect();
    while !left.is_empty() {
        let (_, message) = b.message().await;
        left.retain(|number| *number != message.hlc.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dialling_again_loses_nothing() {
    let cluster = Cluster::new();
    let mut nodes = cluster.nodes(2);
    let (mut b, mut a) = (nodes.pop().unwrap(), nodes.pop().unwrap());
    a.link(2, true).await;
    b.link(1, true).await;
    let mut number = 0;
    for _ in 0..3 {
        for _ in 0..50 {
            a.transport.send(NodeId(2), value(number, 500));
            b.transport.send(NodeId(1), value(number, 500));
            number += 1;
        }
        assert_eq!(a.transport.dial(&b.member.peer).await.unwrap(), NodeId(2));
    }
    for node in [&mut a, &mut b] {
        let mut left: Vec<u64> = (0..number).collect();
        while !left.is_empty() {
            let (_, message) = node.message().await;
            left.retain(|number| *number != message.hlc.0);
        }
    }
}

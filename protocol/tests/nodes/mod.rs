//! Whole nodes in memory for transcripts: one shard each, nothing happens unless the test says so.

#![allow(
    clippy::unwrap_used,
    dead_code, // each test file uses its part
    clippy::expect_used,
    missing_docs,
    unreachable_pub
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use torc_protocol::client::{ClientOp, ClientReply, ClientRequest, RequestId, Value};
use torc_protocol::floor::{FloorStatus, Mark};
use torc_protocol::hlc::Hlc;
use torc_protocol::message::{
    OpId, PeerBody, PeerMessage, RecordKey, Reply, ReplyKind, Request, RequestKind, WritePurpose,
};
use torc_protocol::record::{Parts, Record};
use torc_protocol::shard::{Shard, ShardSettings};
use torc_protocol::shard_io::{Event, Input, Output, View};
use torc_protocol::store::{
    Batch, CommitId, DigestEntry, Found, Hint, HintKey, HintTotal, Query, ReadId, StateKey,
    StoreError, Sync, Write,
};
use torc_protocol::sync_message::SYNC_BYTES_MAX;
use torc_protocol::time::{Mono, Now, SECOND, Wall};
use torc_protocol::version::{Digest, Version};
use torc_protocol::wire::{self, Blob};
use torc_ring::{
    BucketId, ClusterId, Config, ConfigVersion, Member, NodeId, Quorum, RingVersion, Secret, Token,
};

pub const A: NodeId = NodeId(1);
pub const B: NodeId = NodeId(2);
pub const C: NodeId = NodeId(3);
pub const D: NodeId = NodeId(4);
pub const E: NodeId = NodeId(5);
pub const F: NodeId = NodeId(6);

pub type Tune = fn(NodeId, &mut ShardSettings);

struct Node {
    id: NodeId,
    shard: Shard,
    view: Arc<View>,
    records: BTreeMap<RecordKey, Record>,
    hints: BTreeMap<HintKey, Hint>,
    bad_hints: BTreeSet<HintKey>,
    states: BTreeMap<StateKey, Bytes>,
    commits: VecDeque<(CommitId, Batch)>,
    hold_commits: bool,
    reads: VecDeque<(ReadId, Query, Option<Found>)>,
    hold_reads: bool,
    events: Vec<Event>,
    /// Keys that scans have looked at.
    scanned: usize,
}

pub struct Cluster {
    nodes: Vec<Node>,
    tune: Tune,
    pub now: Now,
    replies: BTreeMap<RequestId, ClientReply>,
    requests: u64,
    cuts: BTreeSet<(NodeId, NodeId)>,
    lost: Vec<(NodeId, NodeId, PeerMessage)>,
    inbox: VecDeque<(NodeId, NodeId, PeerMessage)>,
    /// Messages between nodes, lost ones included.
    pub sent: usize,
    pub sent_rings: Vec<RingVersion>,
    /// Every message is delivered twice.
    pub duplicate: bool,
    pub newer: BTreeSet<(NodeId, NodeId)>,
    pub drained: BTreeSet<(NodeId, RingVersion)>,
    pub covered: Vec<(NodeId, RingVersion)>,
    /// Nodes that have drained a config make it durable at once, so that their copies are compared.
    pub repairs: bool,
    /// Bytes of messages between owners that make their copies equal.
    pub sync_bytes: usize,
    /// What nodes say about floors is lost.
    pub lose_floor_messages: bool,
}

impl Cluster {
    pub fn new(count: u64) -> Self {
        Self::with(count, |_, _| {})
    }

    pub fn with(count: u64, tune: Tune) -> Self {
        Self::build(count, 4, tune)
    }

    pub fn with_bits(count: u64, bits: u8) -> Self {
        Self::build(count, bits, |_, _| {})
    }

    pub fn build(count: u64, bits: u8, tune: Tune) -> Self {
        let mut config = Config::bootstrap(ClusterId(1), (7, Secret([0; 32])), bits, member(1));
        config.current = (1..=count).map(member).collect();
        config.validate().expect("valid");
        let view = View::new(config);
        let now = Now {
            mono: Mono(SECOND),
            wall: Wall(1_800_000_000 * SECOND),
        };
        let nodes = (1..=count)
            .map(|id| Node::new(NodeId(id), view.clone(), now, tune))
            .collect();
        let mut cluster = Self {
            nodes,
            tune,
            now,
            replies: BTreeMap::new(),
            requests: 0,
            cuts: BTreeSet::new(),
            lost: Vec::new(),
            inbox: VecDeque::new(),
            sent: 0,
            sent_rings: Vec::new(),
            duplicate: false,
            newer: BTreeSet::new(),
            drained: BTreeSet::new(),
            covered: Vec::new(),
            repairs: false,
            sync_bytes: 0,
            lose_floor_messages: false,
        };
        for id in 1..=count {
            cluster.configure(NodeId(id));
        }
        cluster.settle();
        cluster
    }

    fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes
            .iter_mut()
            .find(|node| node.id == id)
            .expect("a node")
    }

    fn peek(&self, id: NodeId) -> &Node {
        self.nodes
            .iter()
            .find(|node| node.id == id)
            .expect("a node")
    }

    // ---- what happens

    pub fn input(&mut self, id: NodeId, input: Input) {
        let now = self.now;
        self.node(id).shard.handle(now, input);
        self.collect(id);
    }

    pub fn configure(&mut self, id: NodeId) {
        let view = self.view(id);
        self.input(id, Input::Config(view));
        self.input(id, Input::Serve);
    }

    pub fn client(&mut self, id: NodeId, op: ClientOp) -> RequestId {
        self.requests += 1;
        let request = RequestId(self.requests);
        let deadline = self.now.mono.plus(2 * SECOND);
        let body = ClientRequest {
            deadline,
            trace: Bytes::from_static(b"t"),
            bucket: BucketId(1),
            op,
        };
        self.input(id, Input::Client(request, body));
        request
    }

    /// Writes and sees it acknowledged.
    pub fn write(&mut self, id: NodeId, key: &[u8], value: &[u8]) {
        let request = self.client(id, put(key, value));
        self.settle();
        assert!(
            stored(self.reply(request)).is_some(),
            "the write succeeds: {:?}",
            self.reply(request)
        );
    }

    /// Writes; the hint that the write leaves stays on its way to disk.
    pub fn write_holding_hint(&mut self, id: NodeId, key: &[u8], value: &[u8]) {
        self.node(id).hold_commits = true;
        let request = self.client(id, put(key, value));
        self.settle();
        self.commit(id, Ok(()));
        self.settle();
        assert!(stored(self.reply(request)).is_some(), "the write succeeds");
        assert!(matches!(
            self.waiting_writes(id)[..],
            [Write::HintPut { .. }]
        ));
    }

    pub fn believe_dead(&mut self, id: NodeId, dead: &[NodeId]) {
        self.input(id, Input::Liveness(dead.to_vec()));
    }

    pub fn raise_ring(&mut self, id: NodeId) {
        let mut config = self.peek(id).view.config.clone();
        config.version = ConfigVersion(config.version.0 + 1);
        config.ring_version = RingVersion(config.version.0);
        let view = View::new(config);
        self.node(id).view = view.clone();
        self.input(id, Input::Config(view));
    }

    /// Nodes that a test's rings are made of; all of them are members at first.
    pub fn ring_of(count: u64, current: &[NodeId]) -> Self {
        let mut cluster = Self::new(count);
        cluster.rings(current, None);
        cluster
    }

    /// Everybody applies the next ring version, with these members and with this target.
    pub fn rings(&mut self, current: &[NodeId], target: Option<&[NodeId]>) {
        let view = self.next_rings(current, target);
        for id in self.nodes.iter().map(|node| node.id).collect::<Vec<_>>() {
            self.node(id).view = view.clone();
            self.input(id, Input::Config(view.clone()));
        }
        self.settle();
    }

    pub fn next_rings(&self, current: &[NodeId], target: Option<&[NodeId]>) -> Arc<View> {
        let newest = self.nodes.iter().map(|node| &node.view.config);
        let newest = newest.max_by_key(|config| config.version).expect("nodes");
        let members =
            |ids: &[NodeId]| -> Vec<Member> { ids.iter().map(|id| member(id.0)).collect() };
        let mut config = newest.reissued();
        config.current = members(current);
        config.target = target.map(members);
        config.validate().expect("valid");
        View::new(config)
    }

    pub fn apply_view(&mut self, id: NodeId, view: &Arc<View>) {
        self.node(id).view = view.clone();
        self.input(id, Input::Config(view.clone()));
    }

    pub fn restart(&mut self, id: NodeId) {
        self.restart_unconfigured(id);
        self.configure(id);
        self.settle();
    }

    pub fn restart_unconfigured(&mut self, id: NodeId) {
        let (now, tune) = (self.now, self.tune);
        let node = self.node(id);
        let fresh = Node::new(id, node.view.clone(), now, tune);
        let old = std::mem::replace(node, fresh);
        (node.records, node.hints, node.states) = (old.records, old.hints, old.states);
        node.events = old.events;
        node.shard = Shard::new(settings(id, tune, node.bound()), &node.totals(), now);
        for (key, mark) in &node.states {
            if let StateKey::Floor(bucket, partition) = key {
                node.shard.restore_floor(*bucket, *partition, mark);
            }
        }
    }

    /// What a node has stored of the floor of the one partition.
    pub fn mark(&self, id: NodeId) -> Mark {
        let key = StateKey::Floor(BucketId(1), torc_ring::PartitionId(0));
        let stored = self.peek(id).states.get(&key);
        stored
            .and_then(|bytes| Mark::decode(bytes))
            .unwrap_or_default()
    }

    pub fn floor_status(&self, id: NodeId) -> FloorStatus {
        self.peek(id).shard.floor_status()
    }

    /// The node restarts, and finds that stored of the one partition.
    pub fn set_mark(&mut self, id: NodeId, mark: Mark) {
        let key = StateKey::Floor(BucketId(1), torc_ring::PartitionId(0));
        self.node(id).states.insert(key, mark.encode());
        self.restart(id);
    }

    /// A file of that node is lost, and its floor falls with it.
    pub fn lose_floor(&mut self, id: NodeId) {
        let mark = Mark {
            floor: Hlc(0),
            ..self.mark(id)
        };
        let key = StateKey::Floor(BucketId(1), torc_ring::PartitionId(0));
        self.node(id).states.insert(key, mark.encode());
    }

    pub fn advance(&mut self, micros: u64) {
        let end = self.now.mono.plus(micros);
        self.settle();
        loop {
            let next = self
                .nodes
                .iter()
                .filter_map(|node| node.shard.next_deadline())
                .min();
            let at = next
                .filter(|&at| at <= end)
                .unwrap_or(end)
                .max(self.now.mono);
            self.now.wall.0 += at.since(self.now.mono);
            self.now.mono = at;
            for id in self.nodes.iter().map(|node| node.id).collect::<Vec<_>>() {
                self.input(id, Input::Tick);
            }
            self.settle();
            if at == end {
                return;
            }
        }
    }

    /// Delivers messages, commits and reads that nobody holds, until nothing is left.
    pub fn settle(&mut self) {
        loop {
            if let Some((from, to, message)) = self.inbox.pop_front() {
                for _ in 0..=usize::from(self.duplicate) {
                    self.input(to, Input::Peer(from, message.clone()));
                }
                continue;
            }
            let ids: Vec<NodeId> = self.nodes.iter().map(|node| node.id).collect();
            let mut quiet = true;
            for id in ids {
                if !self.peek(id).hold_commits && !self.peek(id).commits.is_empty() {
                    self.commit(id, Ok(()));
                    quiet = false;
                }
                if !self.peek(id).hold_reads {
                    quiet &= !self.answer_read(id);
                }
            }
            if quiet && self.inbox.is_empty() {
                return;
            }
        }
    }

    fn collect(&mut self, id: NodeId) {
        let mut applied = None;
        while let Some(output) = self.node(id).shard.next_output() {
            match output {
                Output::Reply(request, reply) => {
                    assert!(
                        self.replies.insert(request, reply).is_none(),
                        "answered twice"
                    );
                }
                Output::Send(to, message) => {
                    self.sent += 1;
                    if let PeerBody::Request(request) = &message.body {
                        self.sent_rings.push(request.ring);
                    }
                    if let PeerBody::Sync(_) = &message.body {
                        let mut frame = BytesMut::new();
                        let len = wire::encode(&message, &mut frame).expect("encodes");
                        assert!(len <= SYNC_BYTES_MAX + (64 << 10), "{len} bytes");
                        self.sync_bytes += len;
                    }
                    let floor = matches!(message.body, PeerBody::Floor(_));
                    if self.cuts.contains(&(id, to)) || (floor && self.lose_floor_messages) {
                        self.lost.push((id, to, message));
                    } else {
                        self.inbox.push_back((id, to, message));
                    }
                }
                Output::Read(read, query) => self.node(id).reads.push_back((read, query, None)),
                Output::Commit(commit, batch) => self.node(id).commits.push_back((commit, batch)),
                Output::Drained(ring) => {
                    self.drained.insert((id, ring));
                    applied = Some(ring).filter(|_| self.repairs);
                }
                Output::Covered(ring) => self.covered.push((id, ring)),
                Output::NewerConfig(from, _) => {
                    self.newer.insert((id, from));
                }
                Output::Event(event) => self.node(id).events.push(event),
            }
        }
        if let Some(ring) = applied {
            self.input(id, Input::Applied(ring));
        }
    }

    /// From now on copies are compared.
    pub fn repair(&mut self) {
        self.repairs = true;
        for id in self.ids() {
            let ring = self.ring(id);
            self.input(id, Input::Applied(ring));
        }
        self.settle();
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    /// The next config: a change from the present members to these is in its joint phase.
    pub fn joint(&self, target: &[u64]) -> Arc<View> {
        let mut config = self.nodes[0].view.config.clone();
        config.version = ConfigVersion(config.version.0 + 1);
        config.ring_version = RingVersion(config.version.0);
        config.target = Some(target.iter().copied().map(member).collect());
        config.validate().expect("valid");
        View::new(config)
    }

    /// Gives a node that config; one that is new is made.
    pub fn apply(&mut self, id: NodeId, view: &Arc<View>) {
        if !self.nodes.iter().any(|node| node.id == id) {
            let node = Node::new(id, view.clone(), self.now, self.tune);
            self.nodes.push(node);
        }
        self.node(id).view = view.clone();
        self.configure(id);
    }

    /// Everything that a node has stored.
    pub fn records(&self, id: NodeId) -> &BTreeMap<RecordKey, Record> {
        &self.peek(id).records
    }

    pub fn forget_everything(&mut self, id: NodeId) {
        self.node(id).records.clear();
    }

    pub fn scanned(&self, id: NodeId) -> usize {
        self.peek(id).scanned
    }

    /// Stops a node in order and starts it again.
    pub fn restart_cleanly(&mut self, id: NodeId) {
        self.input(id, Input::Stop);
        self.settle();
        self.input(id, Input::Save);
        self.settle();
        assert!(self.peek(id).shard.is_idle(), "everything is written down");
        let node = self.node(id);
        let (trees, others) = std::mem::take(&mut node.states)
            .into_iter()
            .partition(|(key, _)| matches!(key, StateKey::Tree(..)));
        node.states = others;
        let trees: BTreeMap<StateKey, Bytes> = trees;
        self.restart_unconfigured(id);
        let node = self.node(id);
        for (key, bytes) in trees {
            if let StateKey::Tree(bucket, partition) = key {
                node.shard.restore_tree(bucket, partition, bytes);
            }
        }
        self.configure(id);
        self.settle();
    }

    // ---- disks

    pub fn hold_commits(&mut self, ids: &[NodeId]) {
        for &id in ids {
            self.node(id).hold_commits = true;
        }
    }

    pub fn release_commits(&mut self, id: NodeId) {
        self.node(id).hold_commits = false;
    }

    /// Ends the oldest commit; answers how durable it had to be.
    pub fn commit(&mut self, id: NodeId, result: Result<(), StoreError>) -> Option<Sync> {
        let node = self.node(id);
        let (commit, batch) = node.commits.pop_front()?;
        let sync = batch.sync;
        if result.is_ok() {
            batch.writes.into_iter().for_each(|write| node.apply(write));
        }
        self.input(id, Input::Committed(commit, result));
        Some(sync)
    }

    pub fn hold_reads(&mut self, id: NodeId) {
        self.node(id).hold_reads = true;
    }

    /// The disk has read, but its answers are still on their way.
    pub fn snapshot_reads(&mut self, id: NodeId) {
        let node = self.node(id);
        for at in 0..node.reads.len() {
            let found = node.find(&node.reads[at].1);
            node.reads[at].2 = Some(found);
        }
    }

    pub fn release_reads(&mut self, id: NodeId) {
        self.node(id).hold_reads = false;
    }

    /// Answers the oldest question to that node's disk, though they are held; `false` when there is none.
    pub fn answer_read(&mut self, id: NodeId) -> bool {
        let node = self.node(id);
        let Some((read, query, found)) = node.reads.pop_front() else {
            return false;
        };
        let found = found.unwrap_or_else(|| node.find(&query));
        if let Found::Digests { entries, .. } = &found {
            node.scanned += entries.len();
        }
        self.input(id, Input::Read(read, Ok(found)));
        true
    }

    pub fn waiting_commits(&self, id: NodeId) -> usize {
        self.peek(id).commits.len()
    }

    pub fn waiting_writes(&self, id: NodeId) -> Vec<Write> {
        self.peek(id)
            .commits
            .iter()
            .flat_map(|(_, batch)| batch.writes.clone())
            .collect()
    }

    pub fn stored(&self, id: NodeId, key: &[u8]) -> Option<Record> {
        self.peek(id).records.get(&record_key(key)).cloned()
    }

    pub fn value(&self, id: NodeId, key: &[u8]) -> Option<Bytes> {
        self.stored(id, key).map(|record| record.value_bytes())
    }

    pub fn plant(&mut self, id: NodeId, key: &[u8], record: Record) {
        self.plant_key(id, key, record);
    }

    pub fn plant_key(&mut self, id: NodeId, key: &[u8], record: Record) {
        self.node(id).apply(Write::Merge {
            key: record_key(key),
            record,
        });
    }

    /// A write of the replica that is committed, as a hint delivers it; nobody else hears of it.
    pub fn plant_behind_the_back(&mut self, id: NodeId, key: &[u8], record: Record) {
        let ring = self.ring(id);
        let kind = RequestKind::Write {
            key: record_key(key),
            record,
            purpose: WritePurpose::Hint,
            fsync: false,
            floor: Hlc(0),
        };
        let request = Request {
            op: OpId::new(0, 4_712),
            ring,
            remaining_us: 1_000_000,
            trace: Blob::default(),
            kind,
        };
        let message = PeerMessage {
            hlc: Hlc(0),
            body: PeerBody::Request(request),
        };
        let other = self.ids().into_iter().find(|&other| other != id);
        self.input(id, Input::Peer(other.expect("another node"), message));
        self.settle();
    }

    /// The disk loses a key, and nobody notices.
    pub fn lose(&mut self, id: NodeId, key: &[u8]) {
        self.node(id).records.remove(&record_key(key));
    }

    /// A record newer than everything minted so far.
    pub fn record(&self, node: u64, value: &[u8]) -> Record {
        let hlc = Hlc::from_micros(self.now.wall.0 + SECOND);
        let version = Version {
            hlc,
            node: NodeId(node),
        };
        Record::value(Parts {
            version,
            expiry: None,
            content_type: b"",
            value,
        })
    }

    pub fn durable_bound(&self, id: NodeId) -> Hlc {
        self.peek(id).bound()
    }

    pub fn hints_on_disk(&self, id: NodeId) -> usize {
        self.peek(id).hints.len()
    }

    /// The oldest hint on that node's disk is damaged.
    pub fn damage_oldest_hint(&mut self, id: NodeId) {
        let node = self.node(id);
        let oldest = node.hints.keys().min_by_key(|at| at.seq).copied();
        node.bad_hints.extend(oldest);
    }

    pub fn hints_waiting(&self, id: NodeId) -> u64 {
        self.books(id).2
    }

    /// Hints delivered, dropped, waiting, as the events tell.
    pub fn books(&self, id: NodeId) -> (u64, u64, u64) {
        let (mut delivered, mut dropped) = (0, 0);
        let mut waiting = BTreeMap::new();
        for event in &self.peek(id).events {
            match event {
                Event::HintDelivered { .. } => delivered += 1,
                Event::HintsDropped { count, .. } => dropped += count,
                Event::Hints {
                    target,
                    waiting: now,
                    ..
                } => {
                    waiting.insert(*target, *now);
                }
                _ => {}
            }
        }
        (delivered, dropped, waiting.values().sum())
    }

    // ---- network

    pub fn cut(&mut self, a: NodeId, b: NodeId) {
        self.cuts.extend([(a, b), (b, a)]);
    }

    pub fn isolate(&mut self, id: NodeId) {
        for other in self.nodes.iter().map(|node| node.id).collect::<Vec<_>>() {
            self.cut(id, other);
        }
    }

    pub fn heal(&mut self) {
        self.cuts.clear();
    }

    /// Requests of that node which a cut swallowed.
    pub fn lost_requests(&self, id: NodeId) -> Vec<(NodeId, Request)> {
        let of = |(from, to, message): &(NodeId, NodeId, PeerMessage)| match &message.body {
            PeerBody::Request(request) if *from == id => Some((*to, request.clone())),
            _ => None,
        };
        self.lost.iter().filter_map(of).collect()
    }

    /// Asks a replica by hand and takes its answer from the wire.
    pub fn ask_write(
        &mut self,
        to: NodeId,
        from: NodeId,
        key: &[u8],
        record: Record,
        purpose: WritePurpose,
    ) -> Option<ReplyKind> {
        let ring = self.ring(to);
        let kind = RequestKind::Write {
            key: record_key(key),
            record,
            purpose,
            fsync: false,
            floor: Hlc(0),
        };
        self.ask((to, from), ring, kind)
    }

    pub fn ask_write_at(
        &mut self,
        to: NodeId,
        from: NodeId,
        ring: RingVersion,
        key: &[u8],
        record: Record,
    ) -> Option<ReplyKind> {
        let purpose = WritePurpose::Client;
        let kind = RequestKind::Write {
            key: record_key(key),
            record,
            purpose,
            fsync: false,
            floor: Hlc(0),
        };
        self.ask((to, from), ring, kind)
    }

    /// Asks a node by hand to stand in for `target`.
    pub fn ask_stand_in(
        &mut self,
        to: NodeId,
        (from, target): (NodeId, NodeId),
        key: &[u8],
        record: Record,
    ) -> Option<ReplyKind> {
        let ring = self.ring(to);
        let kind = RequestKind::StandIn {
            target,
            key: record_key(key),
            record,
        };
        self.ask((to, from), ring, kind)
    }

    fn ask(
        &mut self,
        (to, from): (NodeId, NodeId),
        ring: RingVersion,
        kind: RequestKind,
    ) -> Option<ReplyKind> {
        self.settle();
        self.cut(to, from);
        let before = self.lost.len();
        let op = OpId::new(0, 4_711);
        let request = Request {
            op,
            ring,
            remaining_us: 1_000_000,
            trace: Blob::default(),
            kind,
        };
        let message = PeerMessage {
            hlc: Hlc(0),
            body: PeerBody::Request(request),
        };
        self.input(to, Input::Peer(from, message));
        self.settle();
        self.heal();
        self.lost[before..]
            .iter()
            .find_map(|(_, _, message)| match &message.body {
                PeerBody::Reply(Reply {
                    op: answered, kind, ..
                }) if *answered == op => Some(kind.clone()),
                _ => None,
            })
    }

    // ---- what came of it

    pub fn reply(&self, request: RequestId) -> Option<ClientReply> {
        self.replies.get(&request).cloned()
    }

    /// The value that a read found, if it is visible.
    pub fn found(&self, request: RequestId) -> Option<Bytes> {
        match self.reply(request) {
            Some(ClientReply::Found { record, now_micros }) => record
                .filter(|record| record.is_visible(now_micros))
                .map(|record| record.value_bytes()),
            other => panic!("the read is not answered with a state: {other:?}"),
        }
    }

    pub fn events(&self, id: NodeId) -> &[Event] {
        &self.peek(id).events
    }

    pub fn open(&self, id: NodeId) -> usize {
        self.peek(id).shard.open_requests()
    }

    pub fn view(&self, id: NodeId) -> Arc<View> {
        self.peek(id).view.clone()
    }

    pub fn ring(&self, id: NodeId) -> RingVersion {
        self.peek(id).view.config.ring_version
    }

    /// Owners of a key and the first node that may stand in.
    pub fn placement(&self, key: &[u8]) -> (Vec<NodeId>, NodeId) {
        let view = &self.nodes[0].view;
        let partition = record_key(key).token.partition(view.config.partition_bits);
        (
            view.ring.owners(3, partition).to_vec(),
            view.ring.stand_ins(3, partition)[0],
        )
    }
}

impl Node {
    fn new(id: NodeId, view: Arc<View>, now: Now, tune: Tune) -> Self {
        Self {
            id,
            shard: Shard::new(settings(id, tune, Hlc(0)), &[], now),
            view,
            records: BTreeMap::new(),
            hints: BTreeMap::new(),
            bad_hints: BTreeSet::new(),
            states: BTreeMap::new(),
            commits: VecDeque::new(),
            hold_commits: false,
            reads: VecDeque::new(),
            hold_reads: false,
            events: Vec::new(),
            scanned: 0,
        }
    }

    fn bound(&self) -> Hlc {
        let bytes = self.states.get(&StateKey::HlcBound(0));
        bytes.map_or(Hlc(0), |bytes| {
            Hlc(u64::from_be_bytes(
                bytes[..].try_into().expect("eight bytes"),
            ))
        })
    }

    fn totals(&self) -> Vec<HintTotal> {
        let mut totals: BTreeMap<(NodeId, u8), HintTotal> = BTreeMap::new();
        for (at, hint) in &self.hints {
            let (target, slot) = (at.target, at.slot);
            let empty = HintTotal {
                target,
                slot,
                count: 0,
                counted: 0,
                bytes: 0,
                last_seq: 0,
            };
            let total = totals.entry((target, slot)).or_insert(empty);
            total.count += 1;
            total.counted += u64::from(hint.counted);
            total.bytes += hint.weight();
            total.last_seq = total.last_seq.max(at.seq);
        }
        totals.into_values().collect()
    }

    fn apply(&mut self, write: Write) {
        match write {
            Write::Merge { key, record } => {
                let merged = match self.records.remove(&key) {
                    Some(old) => old.merge(record).expect("one conflict mode"),
                    None => record,
                };
                self.records.insert(key, merged);
            }
            Write::Remove { key } => {
                self.records.remove(&key);
            }
            Write::Drop(range) => self.records.retain(|key, _| {
                key.bucket != range.bucket || !(range.first..=range.last).contains(&key.token)
            }),
            Write::HintPut { at, hint } => {
                self.hints.insert(at, hint);
            }
            Write::HintDelete { at } => {
                self.hints.remove(&at);
            }
            Write::StatePut { key, value } => {
                self.states.insert(key, value);
            }
            Write::StateDelete { key } => {
                self.states.remove(&key);
            }
        }
    }

    #[allow(clippy::type_complexity)]
    fn range(
        &self,
        (bucket, first, last): (BucketId, Token, Token),
        after: Option<&(Token, Bytes)>,
        limit: usize,
        bytes: usize,
    ) -> (Vec<(RecordKey, Record)>, Option<(Token, Bytes)>) {
        let (mut found, mut sum) = (Vec::new(), 0);
        let (token, name) = after.cloned().unwrap_or((first, Bytes::new()));
        let start = RecordKey {
            bucket,
            token: token.max(first),
            key: name,
        };
        for (key, record) in self.records.range(start..) {
            if key.bucket != bucket || key.token > last {
                break;
            }
            if after.is_some_and(|after| (key.token, key.key.clone()) <= *after) {
                continue;
            }
            sum += record.len();
            found.push((key.clone(), record.clone()));
            if found.len() >= limit || sum >= bytes {
                return (found, Some((key.token, key.key.clone())));
            }
        }
        (found, None)
    }

    fn find(&self, query: &Query) -> Found {
        match query {
            Query::Record(key) => Found::Record(self.records.get(key).cloned()),
            Query::Records {
                bucket,
                first,
                last,
                after,
                prefix,
                limit,
            } => {
                let all = self.records.iter().filter(|(key, _)| {
                    let place = (key.token, key.key.clone());
                    key.bucket == *bucket
                        && (*first..=*last).contains(&key.token)
                        && after.as_ref().is_none_or(|after| place > *after)
                        && key.key.starts_with(prefix)
                });
                let mut entries: Vec<_> = all
                    .map(|(key, record)| (key.clone(), record.clone()))
                    .collect();
                let more = entries.len() > *limit;
                entries.truncate(*limit);
                let end = entries.last().map(|(key, _)| (key.token, key.key.clone()));
                Found::Records {
                    entries,
                    reached: end.filter(|_| more),
                }
            }
            Query::Digests {
                bucket,
                first,
                last,
                after,
                limit,
            } => {
                let (found, reached) =
                    self.range((*bucket, *first, *last), after.as_ref(), *limit, usize::MAX);
                let bytes = found
                    .iter()
                    .map(|(key, record)| key.key.len() + record.len());
                Found::Digests {
                    bytes: bytes.sum::<usize>() as u64,
                    entries: found
                        .into_iter()
                        .map(|(key, record)| DigestEntry {
                            token: key.token,
                            key: key.key,
                            digest: record.digest(),
                            dead_at: record.dead_at(),
                        })
                        .collect(),
                    reached,
                }
            }
            Query::Page {
                bucket,
                first,
                last,
                after,
                bytes,
            } => {
                let (entries, reached) =
                    self.range((*bucket, *first, *last), after.as_ref(), usize::MAX, *bytes);
                Found::Records { entries, reached }
            }
            Query::Keys { keys, bytes } => {
                let (mut entries, mut reached, mut sum) = (Vec::new(), None, 0);
                for (at, key) in keys.iter().enumerate() {
                    if let Some(record) = self.records.get(key) {
                        sum += record.len();
                        entries.push((key.clone(), record.clone()));
                    }
                    if sum >= *bytes && at + 1 < keys.len() {
                        reached = Some((key.token, key.key.clone()));
                        break;
                    }
                }
                Found::Records { entries, reached }
            }
            Query::Hints {
                target,
                slot,
                after,
                limit,
            } => {
                let of = |at: &HintKey| at.target == *target && at.slot == *slot && at.seq > *after;
                let found = self.hints.iter().filter(|(at, _)| of(at)).take(*limit);
                let whole = |(at, hint): (&HintKey, &Hint)| {
                    let hint = (!self.bad_hints.contains(at)).then(|| hint.clone());
                    (*at, hint)
                };
                Found::Hints(found.map(whole).collect())
            }
        }
    }
}

pub fn member(id: u64) -> Member {
    Member {
        id: NodeId(id),
        name: format!("n{id}"),
        zone: format!("z{id}"),
        weight: 100,
        peer: format!("h:{id}"),
        http: format!("h:{}", 100 + id),
    }
}

fn settings(id: NodeId, tune: Tune, bound: Hlc) -> ShardSettings {
    let mut settings = ShardSettings::new(id, 0, 1);
    settings.zone = format!("z{}", id.0);
    settings.durable_bound = bound;
    settings.seed = bound.0 ^ id.0;
    tune(id, &mut settings);
    settings
}

fn record_key(key: &[u8]) -> RecordKey {
    let bucket = BucketId(1);
    RecordKey {
        bucket,
        token: Token::of(7, bucket, key),
        key: Bytes::copy_from_slice(key),
    }
}

pub fn put(key: &[u8], value: &[u8]) -> ClientOp {
    let value = Value {
        bytes: Bytes::copy_from_slice(value),
        content_type: Bytes::new(),
        ttl_ms: None,
    };
    let key = Bytes::copy_from_slice(key);
    ClientOp::Put {
        key,
        value: Some(value),
        w: None,
        sloppy: None,
        fsync: false,
        context: None,
    }
}

pub fn put_with(key: &[u8], value: &[u8], quorum: Quorum) -> ClientOp {
    let mut op = put(key, value);
    if let ClientOp::Put { w, .. } = &mut op {
        *w = Some(quorum);
    }
    op
}

pub fn get(key: &[u8]) -> ClientOp {
    ClientOp::Get {
        key: Bytes::copy_from_slice(key),
        r: None,
    }
}

#[allow(clippy::needless_pass_by_value)] // takes what `reply` gives
pub fn stored(reply: Option<ClientReply>) -> Option<Digest> {
    match reply {
        Some(ClientReply::Stored { digest, .. }) => Some(digest),
        _ => None,
    }
}

//! The world: nodes, network, disks and time, as one queue of events.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use torc_protocol::client::{ClientReply, ClientRequest, RequestId};
use torc_protocol::message::{PeerBody, RecordKey, Request, RequestKind};
use torc_protocol::record::{Kind, Record};
use torc_protocol::shard::Shard;
use torc_protocol::shard_io::{Input, View};
use torc_protocol::store::{CommitId, Found, Query, ReadId, StoreError};
use torc_protocol::time::{MS, SECOND};
use torc_ring::{
    BucketId, ClusterId, Config, ConfigVersion, Member, NodeId, RingVersion, Secret, Token,
};

use crate::check::mint::Mint;
use crate::check::rounds::Rounds;
use crate::check::{Invariant, Violation};
use crate::client::Clients;
use crate::disk::Disk;
use crate::plan::{Faults, Plan};
use crate::rng::Rng;

mod drive;

/// The one bucket of a run.
pub(crate) const BUCKET: BucketId = BucketId(1);
/// Wall clock at the start of a run, in microseconds since 1970.
const EPOCH: u64 = 1_800_000_000 * SECOND;
/// Typical time that a message takes, in microseconds.
const HOP: u64 = 300;
/// Typical time that the disk takes, in microseconds.
const DISK: u64 = 200;
/// Lines of trace that are kept.
const TRACE_MAX: usize = 200_000;
/// Events after which a run is taken to be stuck in a loop.
const EVENTS_PER_OP_MAX: u64 = 20_000;

/// What is counted, by name.
pub type Counts = BTreeMap<&'static str, u64>;

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// What went wrong first, and when, in microseconds.
    pub violation: Option<(u64, Violation)>,
    /// Hash of everything that happened.
    pub hash: u64,
    /// Operations by outcome, faults by kind, rare paths taken.
    pub counts: Counts,
    /// Virtual time of the run in microseconds.
    pub micros: u64,
    /// What happened, if that was asked for.
    pub trace: VecDeque<String>,
}

/// Runs a plan to its end, or to the first violation.
#[must_use]
pub fn run(plan: &Plan, trace: bool) -> Outcome {
    let mut world = World::new(plan, trace);
    world.live();
    if world.violation.is_none() {
        world.finish();
    }
    Outcome {
        violation: world.violation,
        hash: world.hash,
        counts: world.counts,
        micros: world.now,
        trace: world.trace,
    }
}

#[derive(Debug)]
pub(crate) enum Ev {
    Deliver {
        from: usize,
        to: usize,
        frame: Bytes,
    },
    Tick {
        at: Place,
    },
    ReadRun {
        at: Place,
        id: ReadId,
        query: Query,
    },
    ReadDone {
        at: Place,
        id: ReadId,
        result: Result<Found, StoreError>,
    },
    Flushed {
        node: usize,
        life: u32,
    },
    Committed {
        at: Place,
        id: CommitId,
        result: Result<(), StoreError>,
    },
    Sync {
        node: usize,
        life: u32,
    },
    Apply {
        node: usize,
        life: u32,
    },
    Serve {
        node: usize,
        life: u32,
    },
    Gossip {
        node: usize,
    },
    Restart {
        node: usize,
    },
    Fault,
    Mend(Mend),
    NewRing,
    Client {
        client: usize,
    },
}

/// The end of a fault.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mend {
    Cut(usize, usize),
    Full(usize),
    Clock(usize),
}

/// One shard of one life of a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) node: usize,
    pub(crate) life: u32,
    pub(crate) shard: u8,
}

pub(crate) struct Slot {
    pub(crate) shard: Shard,
    tick_at: Option<u64>,
    pub(crate) drained: RingVersion,
    /// Hints waiting by target, as last told.
    pub(crate) waiting: BTreeMap<NodeId, u64>,
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) life: u32,
    /// Empty while the node is down.
    pub(crate) slots: Vec<Slot>,
    pub(crate) serving: bool,
    pub(crate) disk: Disk,
    /// Index of the config that it has applied.
    pub(crate) applied: usize,
    pub(crate) offset: i64,
    pub(crate) trusted: bool,
    pub(crate) paused_until: u64,
    pub(crate) believed_dead: BTreeSet<NodeId>,
    pub(crate) books: Books,
}

/// Hints of one node over all of its lives.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Books {
    /// Removed from disk while the target had the record.
    pub(crate) handed_over: u64,
    /// Removed while it had not.
    pub(crate) given_up: u64,
    /// Reported as delivered.
    pub(crate) delivered: u64,
    /// Reported as dropped from disk.
    pub(crate) dropped: u64,
    /// Reported as dropped before they were stored.
    pub(crate) refused: u64,
}

impl Node {
    pub(crate) fn is_up(&self) -> bool {
        !self.slots.is_empty()
    }
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    /// Faults as they are now: those of the plan, or none.
    pub(crate) faults: Faults,
    pub(crate) rng: Rng,
    pub(crate) now: u64,
    seq: u64,
    queue: BTreeMap<(u64, u64), Ev>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) configs: Vec<Arc<View>>,
    pub(crate) cuts: BTreeSet<(usize, usize)>,
    pub(crate) clients: Clients,
    pub(crate) mint: Mint,
    pub(crate) rounds: Rounds,
    pub(crate) counts: Counts,
    pub(crate) violation: Option<(u64, Violation)>,
    hash: u64,
    tracing: bool,
    trace: VecDeque<String>,
    events: u64,
}

impl World {
    fn new(plan: &Plan, tracing: bool) -> Self {
        let mut rng = Rng::new(plan.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 1);
        let zones = rng.between(1, 3);
        let members = (0..plan.nodes as u64).map(|at| member(at, zones)).collect();
        let seeds = (rng.word(), Secret([0; 32]));
        let mut config = Config::bootstrap(ClusterId(1), seeds, plan.bits, member(0, zones));
        config.current = members;
        let bucket = &mut config.buckets[0];
        (bucket.n, bucket.r, bucket.w) = (plan.n, plan.r, plan.w);
        bucket.read_repair = plan.repair;
        let nodes = config
            .current
            .iter()
            .map(|member| Node::new(member.id, plan))
            .collect();
        let mut world = Self {
            plan: plan.clone(),
            faults: plan.faults.clone(),
            rng,
            now: SECOND,
            seq: 0,
            queue: BTreeMap::new(),
            nodes,
            configs: vec![View::new(config)],
            cuts: BTreeSet::new(),
            clients: Clients::default(),
            mint: Mint::default(),
            rounds: Rounds::default(),
            counts: Counts::new(),
            violation: None,
            hash: 0,
            tracing,
            trace: VecDeque::new(),
            events: 0,
        };
        for node in 0..plan.nodes {
            world.start(node);
            world.schedule(100 * MS, Ev::Gossip { node });
        }
        for client in 0..plan.clients as usize {
            let after = world.rng.below(100 * MS);
            world.schedule(after, Ev::Client { client });
        }
        let after = world.rng.below(plan.faults.every);
        world.schedule(after, Ev::Fault);
        world
    }

    /// The safety phase: until the clients have had all their operations.
    fn live(&mut self) {
        while self.violation.is_none() && !self.clients.finished(&self.plan) {
            self.step();
        }
    }

    pub(crate) fn schedule(&mut self, after: u64, event: Ev) {
        self.seq += 1;
        self.queue.insert((self.now + after, self.seq), event);
    }

    pub(crate) fn count(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
    }

    pub(crate) fn fail(&mut self, violation: Violation) {
        self.note(format_args!("VIOLATION {violation}"));
        self.violation.get_or_insert((self.now, violation));
    }

    pub(crate) fn check(&mut self, result: Result<(), Violation>) {
        if let Err(violation) = result {
            self.fail(violation);
        }
    }

    pub(crate) fn note(&mut self, what: fmt::Arguments<'_>) {
        if self.tracing {
            let line = format!("{:>12} {what}", self.now);
            if self.trace.len() == TRACE_MAX {
                self.trace.pop_front();
            }
            self.trace.push_back(line);
        }
    }

    fn mix(&mut self, word: u64) {
        self.hash = (self.hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn mix_bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    /// Lets the next event happen.
    pub(crate) fn step(&mut self) {
        let Some(((at, seq), event)) = self.queue.pop_first() else {
            return;
        };
        self.now = at;
        self.events += 1;
        if self.events > EVENTS_PER_OP_MAX * (self.plan.ops + 100) {
            self.fail(Violation::new(Invariant::Progress, "events without end"));
        }
        if let Some(node) = subject(&event)
            && self.nodes[node].paused_until > at
        {
            self.queue
                .insert((self.nodes[node].paused_until, seq), event);
            return;
        }
        self.mix(at);
        self.happen(event);
    }

    fn happen(&mut self, event: Ev) {
        match event {
            Ev::Deliver { from, to, frame } => self.deliver(from, to, &frame),
            Ev::Tick { at } => {
                let now = self.now;
                // A tick that an earlier one has replaced is none.
                if let Some(slot) = self
                    .slot(at)
                    .filter(|slot| slot.tick_at.is_some_and(|due| due <= now))
                {
                    slot.tick_at = None;
                    self.input(at, Input::Tick);
                }
            }
            Ev::ReadRun { at, id, query } => {
                if self.slot(at).is_some() {
                    let failed = self.rng.chance(self.faults.read_errors);
                    let result = if failed {
                        self.count("fault: read error");
                        Err(StoreError::Corrupt)
                    } else {
                        Ok(self.nodes[at.node].disk.visible.find(&query))
                    };
                    let after = if self.rng.chance(100) {
                        self.rng.below(2 * MS)
                    } else {
                        0
                    };
                    self.schedule(after, Ev::ReadDone { at, id, result });
                }
            }
            Ev::ReadDone { at, id, result } => self.input_if_alive(at, Input::Read(id, result)),
            Ev::Flushed { node, life } => self.flushed(node, life),
            Ev::Committed { at, id, result } => {
                self.input_if_alive(at, Input::Committed(id, result));
            }
            Ev::Sync { node, life } => {
                if self.alive(node, life) {
                    self.nodes[node].disk.sync();
                    let after = self.rng.tailed(100 * MS);
                    self.schedule(after, Ev::Sync { node, life });
                }
            }
            Ev::Apply { node, life } => self.apply_config(node, life),
            Ev::Serve { node, life } => {
                if self.alive(node, life) {
                    self.nodes[node].serving = true;
                    self.input_all(node, || Input::Serve);
                }
            }
            Ev::Gossip { node } => self.gossip(node),
            Ev::Restart { node } => self.start(node),
            Ev::Fault => self.fault(),
            Ev::Mend(mend) => self.mend(mend),
            Ev::NewRing => self.new_config(true),
            Ev::Client { client } => self.client_turn(client),
        }
    }

    fn alive(&self, node: usize, life: u32) -> bool {
        self.nodes[node].life == life && self.nodes[node].is_up()
    }

    fn slot(&mut self, at: Place) -> Option<&mut Slot> {
        if !self.alive(at.node, at.life) {
            return None;
        }
        self.nodes[at.node].slots.get_mut(usize::from(at.shard))
    }

    fn input_if_alive(&mut self, at: Place, input: Input) {
        if self.slot(at).is_some() {
            self.input(at, input);
        }
    }

    pub(crate) fn input_all(&mut self, node: usize, mut input: impl FnMut() -> Input) {
        let life = self.nodes[node].life;
        for shard in 0..self.nodes[node].slots.len() {
            self.input_if_alive(
                Place {
                    node,
                    life,
                    shard: shard as u8,
                },
                input(),
            );
        }
    }

    pub(crate) fn new_config(&mut self, ring: bool) {
        let last = &self.configs[self.configs.len() - 1].config;
        let mut config = last.clone();
        config.version = ConfigVersion(last.version.0 + 1);
        if ring {
            config.ring_version = RingVersion(config.version.0);
        }
        self.note(format_args!(
            "config {} ring {}",
            config.version.0, config.ring_version.0
        ));
        self.configs.push(View::new(config));
        for node in 0..self.nodes.len() {
            let life = self.nodes[node].life;
            let after = self.rng.tailed(5 * MS);
            self.schedule(after, Ev::Apply { node, life });
        }
    }

    pub(crate) fn ring_of(&self, node: usize) -> RingVersion {
        self.configs[self.nodes[node].applied].config.ring_version
    }

    pub(crate) fn record_key(&self, number: u64) -> RecordKey {
        let key = key_bytes(number);
        let seed = self.configs[0].config.seed;
        RecordKey {
            bucket: BUCKET,
            token: Token::of(seed, BUCKET, &key),
            key,
        }
    }

    pub(crate) fn owners(&self, key: &RecordKey) -> Vec<usize> {
        let view = &self.configs[0];
        let owners = view
            .ring
            .owners(self.plan.n, key.token.partition(self.plan.bits));
        owners
            .iter()
            .filter_map(|id| self.nodes.iter().position(|node| node.id == *id))
            .collect()
    }

    pub(crate) fn hand_over(
        &mut self,
        node: usize,
        partition: u16,
        id: RequestId,
        request: ClientRequest,
    ) {
        let this = &self.nodes[node];
        let shard = usize::from(partition) % this.slots.len().max(1);
        let at = Place {
            node,
            life: this.life,
            shard: shard as u8,
        };
        self.input_if_alive(at, Input::Client(id, request));
    }
}

impl Node {
    fn new(id: NodeId, plan: &Plan) -> Self {
        Self {
            id,
            life: 0,
            slots: Vec::new(),
            serving: false,
            disk: Disk::new(plan.fsync),
            applied: 0,
            offset: 0,
            trusted: true,
            paused_until: 0,
            believed_dead: BTreeSet::new(),
            books: Books::default(),
        }
    }
}

fn member(at: u64, zones: u64) -> Member {
    Member {
        id: NodeId(at + 1),
        name: format!("n{at}"),
        zone: format!("z{}", at % zones),
        weight: 100,
        peer: format!("n{at}:1"),
        http: format!("n{at}:2"),
    }
}

/// The node whose pause holds an event up.
fn subject(event: &Ev) -> Option<usize> {
    match event {
        Ev::Deliver { to, .. } => Some(*to),
        Ev::Tick { at }
        | Ev::ReadRun { at, .. }
        | Ev::ReadDone { at, .. }
        | Ev::Committed { at, .. } => Some(at.node),
        Ev::Flushed { node, .. }
        | Ev::Sync { node, .. }
        | Ev::Apply { node, .. }
        | Ev::Serve { node, .. }
        | Ev::Gossip { node } => Some(*node),
        Ev::Restart { .. } | Ev::Fault | Ev::Mend(_) | Ev::NewRing | Ev::Client { .. } => None,
    }
}

fn partition_of(request: &Request, bits: u8) -> u16 {
    match &request.kind {
        RequestKind::Write { key, .. }
        | RequestKind::StandIn { key, .. }
        | RequestKind::Read { key, .. }
        | RequestKind::Watch { key, .. } => key.token.partition(bits).0,
        RequestKind::List { partition, .. } => partition.0,
    }
}

pub(crate) fn key_bytes(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

pub(crate) fn number_of(key: &RecordKey) -> u64 {
    number_of_bytes(&key.key)
}

pub(crate) fn number_of_bytes(key: &[u8]) -> u64 {
    key.try_into().map_or(u64::MAX, u64::from_be_bytes)
}

/// The client's operation that made this record; tombstones do not tell.
pub(crate) fn write_of(record: &Record) -> Option<u64> {
    if record.kind() != Kind::Value {
        return None;
    }
    record
        .value_bytes()
        .get(..8)
        .and_then(|id| id.try_into().ok())
        .map(u64::from_be_bytes)
}

/// An input on one line.
struct Brief<'a>(&'a Input);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Input::Config(view) => write!(f, "Config({})", view.config.version.0),
            Input::Peer(from, message) => match &message.body {
                PeerBody::Request(r) => write!(
                    f,
                    "{from} asks {:?} ring {}: {:.200}",
                    r.op,
                    r.ring.0,
                    format!("{:?}", r.kind)
                ),
                PeerBody::Reply(r) => write!(
                    f,
                    "{from} says {:?} ring {}: {:.200}",
                    r.op,
                    r.ring.0,
                    format!("{:?}", r.kind)
                ),
                PeerBody::Cluster(_) => write!(f, "{from} cluster"),
            },
            other => write!(f, "{:.200}", format!("{other:?}")),
        }
    }
}

/// Whether a reply says that a write may not have happened for certain.
pub(crate) fn is_ok(reply: &ClientReply) -> bool {
    !matches!(reply, ClientReply::Failed(_))
}

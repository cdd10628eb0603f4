//! The world: nodes, network, disks and time, as one queue of events.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use torc_protocol::client::{ClientReply, ClientRequest, RequestId};
use torc_protocol::message::{
    PeerBody, PeerMessage, RecordKey, ReplyKind, Request, RequestKind, WritePurpose,
};
use torc_protocol::record::{Kind, Record};
use torc_protocol::shard::{Shard, ShardSettings};
use torc_protocol::shard_io::{Event, Input, Output, View};
use torc_protocol::store::{CommitId, Found, Query, ReadId, StoreError};
use torc_protocol::time::{MS, Mono, Now, SECOND, Wall};
use torc_protocol::wire;
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
                self.input_if_alive(at, Input::Committed(id, result))
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

    pub(crate) fn clock(&self, node: usize) -> Now {
        let wall = (EPOCH + self.now).saturating_add_signed(self.nodes[node].offset);
        Now {
            mono: Mono(self.now),
            wall: Wall(wall),
        }
    }

    /// Hands an input to a shard that is there, and does what it wants.
    fn input(&mut self, at: Place, input: Input) {
        let now = self.clock(at.node);
        if self.tracing {
            self.note(format_args!(
                "n{} s{} <- {}",
                at.node,
                at.shard,
                Brief(&input)
            ));
        }
        self.mix(((at.node as u64) << 8) | u64::from(at.shard));
        let Some(slot) = self.slot(at) else { return };
        slot.shard.handle(now, input);
        while let Some(output) = self.slot(at).and_then(|slot| slot.shard.next_output()) {
            self.output(at, output);
        }
        let Some(slot) = self.slot(at) else { return };
        if let Some(Mono(due)) = slot.shard.next_deadline()
            && slot.tick_at.is_none_or(|scheduled| due < scheduled)
        {
            slot.tick_at = Some(due);
            let after = due.saturating_sub(self.now);
            self.schedule(after, Ev::Tick { at });
        }
    }

    fn output(&mut self, at: Place, output: Output) {
        match output {
            Output::Reply(request, reply) => self.on_reply(at, request, &reply),
            Output::Send(to, message) => self.send(at, to, &message),
            Output::Read(id, query) => {
                let after = self.disk_time() / 4;
                self.schedule(after, Ev::ReadRun { at, id, query });
            }
            Output::Commit(id, batch) => {
                if self.nodes[at.node].disk.push((at.shard, id, batch)) {
                    self.flush(at.node);
                }
            }
            Output::Drained(ring) => {
                if let Some(slot) = self.slot(at) {
                    slot.drained = slot.drained.max(ring);
                }
            }
            Output::Frozen(_) => self.count("rare: frozen"),
            Output::NewerConfig(_, version) => {
                let node = &self.nodes[at.node];
                let life = node.life;
                if self.configs[node.applied].config.version < version {
                    let after = self.rng.tailed(MS);
                    self.schedule(
                        after,
                        Ev::Apply {
                            node: at.node,
                            life,
                        },
                    );
                }
            }
            Output::Event(event) => self.on_event(at, &event),
        }
    }

    fn on_event(&mut self, at: Place, event: &Event) {
        let books = &mut self.nodes[at.node].books;
        match event {
            Event::HintDelivered { .. } => books.delivered += 1,
            Event::HintsDropped {
                reason: "bytes" | "full",
                count,
                ..
            } => books.refused += count,
            Event::HintsDropped { count, .. } => books.dropped += count,
            Event::Hints {
                target, waiting, ..
            } => {
                if let Some(slot) = self.slot(at) {
                    slot.waiting.insert(*target, *waiting);
                }
            }
            _ => {}
        }
        let name = match event {
            Event::HintDelivered { .. } => "rare: hint delivered",
            Event::HintsDropped { .. } => "rare: hint dropped",
            Event::Hedged => "rare: hedged read",
            Event::ReadRepair { .. } => "rare: read repair",
            Event::VersionCollision { .. } => "rare: version collision",
            Event::Shed { .. } => "rare: shed",
            Event::Replica {
                outcome: "expired", ..
            } => "rare: replica refused expired work",
            Event::Replica {
                outcome: "ring_version",
                ..
            } => "rare: replica refused another ring",
            Event::Replica {
                outcome: "clock", ..
            } => "rare: replica refused a version for drift",
            Event::Replica {
                outcome: "frozen", ..
            } => "rare: replica refused while frozen",
            Event::Replica { op: "stand_in", .. } => "rare: stand-in",
            _ => return,
        };
        self.count(name);
    }

    // ---- network

    fn send(&mut self, at: Place, to: NodeId, message: &PeerMessage) {
        self.observe_sent(at, message);
        let Some(to) = self.nodes.iter().position(|node| node.id == to) else {
            return;
        };
        let mut frame = BytesMut::new();
        if let Err(error) = wire::encode(message, &mut frame) {
            self.fail(Violation::new(
                Invariant::Genuine,
                format!("a message cannot be encoded: {error}"),
            ));
            return;
        }
        let frame = frame.freeze();
        self.count("messages");
        if self.cuts.contains(&(at.node, to)) || self.rng.chance(self.faults.loss) {
            self.count("fault: message lost");
            return;
        }
        let copies = if self.rng.chance(self.faults.duplicates) {
            2
        } else {
            1
        };
        for copy in 0..copies {
            let mut after = self.rng.between(HOP / 4, HOP);
            if self.rng.chance(self.faults.slow) {
                self.count("fault: message late");
                after = self.rng.tailed(20 * MS);
            }
            if copy > 0 {
                self.count("fault: message duplicated");
            }
            self.schedule(
                after,
                Ev::Deliver {
                    from: at.node,
                    to,
                    frame: frame.clone(),
                },
            );
        }
    }

    fn deliver(&mut self, from: usize, to: usize, frame: &Bytes) {
        self.mix_bytes(frame);
        let message = match wire::decode(frame) {
            Ok(message) => message,
            Err(error) => {
                self.fail(Violation::new(
                    Invariant::Genuine,
                    format!("a message cannot be decoded: {error}"),
                ));
                return;
            }
        };
        let node = &self.nodes[to];
        if !node.is_up() {
            return;
        }
        let shards = node.slots.len();
        let shard = match &message.body {
            PeerBody::Request(request) => {
                usize::from(partition_of(request, self.plan.bits)) % shards
            }
            PeerBody::Reply(reply) => usize::from(reply.op.shard()),
            PeerBody::Cluster(_) => return,
        };
        if shard < shards {
            let at = Place {
                node: to,
                life: node.life,
                shard: shard as u8,
            };
            let from_id = self.nodes[from].id;
            if let PeerBody::Reply(reply) = &message.body
                && let ReplyKind::Written { .. } = reply.kind
                && let Some(&write) = self.clients.exchanges.get(&(to, node.life, reply.op))
            {
                self.rounds.ack(write, from_id, reply.ring);
            }
            self.input(at, Input::Peer(from_id, message));
        }
    }

    /// Learns from what goes over the wire: which version a write got, and what exchange carries it.
    fn observe_sent(&mut self, at: Place, message: &PeerMessage) {
        let PeerBody::Request(Request { op, kind, .. }) = &message.body else {
            return;
        };
        let (key, record, purpose) = match kind {
            RequestKind::Write {
                key,
                record,
                purpose,
                ..
            } => (key, record, *purpose),
            RequestKind::StandIn { key, record, .. } => (key, record, WritePurpose::Client),
            _ => return,
        };
        let write = write_of(record);
        let seen = self.mint.seen(number_of(key), record.digest(), write);
        self.check(seen);
        if purpose == WritePurpose::Client {
            self.clients
                .exchanges
                .insert((at.node, at.life, *op), record.version());
        }
    }

    // ---- disks

    fn disk_time(&mut self) -> u64 {
        if self.rng.chance(self.faults.slow) {
            self.count("fault: slow disk");
            self.rng.tailed(20 * MS)
        } else {
            self.rng.between(DISK / 4, DISK)
        }
    }

    fn flush(&mut self, node: usize) {
        if self.nodes[node].disk.begin() {
            let life = self.nodes[node].life;
            let after = self.disk_time();
            self.schedule(after, Ev::Flushed { node, life });
        }
    }

    fn flushed(&mut self, node: usize, life: u32) {
        if !self.alive(node, life) {
            return;
        }
        let (outcomes, removed) = self.nodes[node].disk.end();
        for (at, hint) in removed {
            let there = self
                .nodes
                .iter()
                .find(|node| node.id == at.target)
                .is_some_and(|target| {
                    let stored = target.disk.visible.records.get(&hint.key);
                    stored.is_some_and(|stored| stored.digest() >= hint.record.digest())
                });
            let books = &mut self.nodes[node].books;
            if there {
                books.handed_over += 1;
            } else {
                books.given_up += 1;
            }
        }
        let after = self.rng.below(DISK / 4);
        for (shard, id, result) in outcomes {
            if result.is_err() {
                self.count("fault: commit refused, disk full");
            }
            self.schedule(
                after,
                Ev::Committed {
                    at: Place { node, life, shard },
                    id,
                    result,
                },
            );
        }
        self.flush(node);
    }

    // ---- lives

    fn start(&mut self, node: usize) {
        if self.nodes[node].is_up() {
            return;
        }
        let count = self.rng.pick(&[1, 1, 2, 4]);
        let now = self.clock(node);
        let seed = self.rng.word();
        let plan = &self.plan;
        let this = &mut self.nodes[node];
        this.life += 1;
        this.serving = false;
        this.trusted = true;
        this.believed_dead.clear();
        let totals = this.disk.visible.totals();
        let bound = this.disk.visible.bound();
        let zone = self.configs[0].config.current[node].zone.clone();
        for index in 0..count {
            let mut settings = ShardSettings::new(this.id, index, count);
            settings.zone.clone_from(&zone);
            settings.durable_bound = bound;
            settings.seed = seed.wrapping_add(u64::from(index) << 32);
            settings.drift_max = plan.drift_max;
            settings.hint_bytes_max = plan.hint_bytes_max;
            settings.hint_age_max = plan.hint_age_max;
            settings.ops_max = plan.ops_max;
            settings.lingering_max = plan.lingering_max;
            settings.mutant = plan.mutant;
            this.slots.push(Slot {
                shard: Shard::new(settings, &totals, now),
                tick_at: None,
                drained: RingVersion(0),
                waiting: BTreeMap::new(),
            });
            for total in totals.iter().filter(|total| total.slot % count == index) {
                let slot = this.slots.last_mut();
                *slot
                    .map(|slot| slot.waiting.entry(total.target).or_default())
                    .expect("just pushed") += total.count;
            }
        }
        let (life, view) = (this.life, self.configs[this.applied].clone());
        self.note(format_args!(
            "n{node} starts life {life} with {count} shards"
        ));
        self.input_all(node, || Input::Config(view.clone()));
        let after = self.rng.below(50 * MS);
        self.schedule(after, Ev::Serve { node, life });
        if !self.plan.fsync {
            self.schedule(50 * MS, Ev::Sync { node, life });
        }
    }

    pub(crate) fn crash(&mut self, node: usize) {
        self.note(format_args!("n{node} crashes"));
        let rng = &mut self.rng;
        let this = &mut self.nodes[node];
        this.slots.clear();
        this.disk.crash(rng);
        this.paused_until = 0;
        self.clients_lost(node);
    }

    /// Applies the next config, if there is one. (The cluster machine keeps the order; here it is given.)
    fn apply_config(&mut self, node: usize, life: u32) {
        if !self.alive(node, life) || self.nodes[node].applied + 1 >= self.configs.len() {
            return;
        }
        self.nodes[node].applied += 1;
        let view = self.configs[self.nodes[node].applied].clone();
        self.input_all(node, || Input::Config(view.clone()));
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

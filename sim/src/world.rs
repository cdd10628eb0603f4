//! The world: nodes, network, disks and time, as one queue of events.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use torc_protocol::cluster_io::ClusterInput;
use torc_protocol::shard_io::Input;
use torc_protocol::store::{CommitId, Found, Query, ReadId, StoreError};
use torc_protocol::time::{MS, SECOND};
use torc_ring::{BucketId, Config, NodeId, Token};

use crate::check::agreed::Agreed;
use crate::check::deleted::Deleted;
use crate::check::exchanges::Exchanges;
use crate::check::floors::Marks;
use crate::check::mint::Mint;
use crate::check::rounds::Rounds;
use crate::check::{Invariant, Violation};
use crate::client::Clients;
use crate::moves::{Act, Moving};
use crate::place::{Placed, Places};
use crate::plan::{Faults, Plan};
use crate::rng::Rng;

pub(crate) use self::node::{EPOCH, Fate, Node, Place};
use torc_protocol::message::{OpId, RecordKey};

mod cluster;
mod disks;
mod network;
mod node;
mod shards;
mod text;

/// The one bucket of a run.
pub(crate) const BUCKET: BucketId = BucketId(1);
/// Virtual time in which a cluster usually forms, in microseconds; clients do not wait for longer.
const FORMING_MAX: u64 = 60 * SECOND;
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
    /// Operations that were begun.
    pub issued: u64,
    /// Faults that were drawn.
    pub faults: u64,
    /// What happened, if that was asked for.
    pub trace: VecDeque<String>,
}

/// Runs a plan to its end, or to the first violation.
#[must_use]
pub fn run(plan: &Plan, trace: bool) -> Outcome {
    let mut world = World::new(plan, trace);
    let lived = catch_unwind(AssertUnwindSafe(|| {
        world.form();
        world.live();
        if world.goes_on() {
            world.finish();
        }
    }));
    if let Err(panic) = lived {
        let what = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
        world.fail(Violation::new(
            Invariant::Asserted,
            what.unwrap_or_default(),
        ));
    }
    Outcome {
        violation: world.violation,
        hash: world.hash,
        counts: world.counts,
        micros: world.now,
        issued: world.clients.issued(),
        faults: world.next_fault,
        trace: world.trace,
    }
}

/// What can happen next.
#[derive(Debug)]
pub(crate) enum Ev {
    /// A message arrives.
    Deliver {
        from: NodeId,
        to: NodeId,
        frame: Bytes,
    },
    /// A shard's timer.
    Tick { at: Place },
    /// The cluster machine's timer.
    ClusterTick { node: usize, life: u32 },
    /// Something within a node reaches one of its shards.
    Mail { at: Place, input: Input },
    /// Something within a node reaches its cluster machine.
    ClusterMail {
        node: usize,
        life: u32,
        input: ClusterInput,
    },
    /// The disk looks something up.
    ReadRun { at: Place, id: ReadId, query: Query },
    /// The disk answers.
    ReadDone {
        at: Place,
        id: ReadId,
        result: Result<Found, StoreError>,
    },
    /// The disk has written a group of commits.
    Flushed { node: usize, life: u32 },
    /// The outcome of a commit reaches whoever asked for it.
    Committed {
        at: Place,
        id: CommitId,
        result: Result<(), StoreError>,
    },
    /// The disk syncs by itself, where commits are not fsynced.
    Sync { node: usize, life: u32 },
    /// A node looks at what gossip tells it.
    Gossip { node: usize },
    /// A node starts.
    Restart { node: usize },
    /// A node crashes at a step of a change.
    Crash { node: usize, life: u32 },
    /// An operator does what was planned for now.
    Operate(Act),
    /// Something goes wrong.
    Fault,
    /// A fault ends.
    Mend(Mend),
    /// A client asks for something.
    Client { client: usize },
}

/// The end of a fault.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mend {
    Cut(usize, usize),
    Full(usize),
    Clock(usize),
    Lag(usize, usize),
    Rot(usize),
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
    /// Seed of the token hash.
    token_seed: u64,
    pub(crate) places: Places,
    pub(crate) cuts: BTreeSet<(usize, usize)>,
    /// Links that are slow, and by how much.
    pub(crate) lags: BTreeMap<(usize, usize), u64>,
    /// Number of the next fault.
    pub(crate) next_fault: u64,
    /// Number of the operators' last request.
    pub(crate) next_wish: u64,
    /// The change of the ring that runs.
    pub(crate) moving: Option<Moving>,
    pub(crate) clients: Clients,
    /// When a machine lost its power last.
    pub(crate) cut_at: Option<u64>,
    pub(crate) agreed: Agreed,
    pub(crate) mint: Mint,
    pub(crate) deleted: Deleted,
    pub(crate) marks: Marks,
    /// Questions of reads that were put, where the same one may be lost the second time.
    pub(crate) asked: BTreeSet<(usize, u32, OpId, NodeId)>,
    pub(crate) rounds: Rounds,
    pub(crate) exchanges: Exchanges,
    pub(crate) counts: Counts,
    pub(crate) violation: Option<(u64, Violation)>,
    /// Something has happened that is outside the fault model: what follows says nothing.
    pub(crate) void: bool,
    /// The furthest that any clock ever was ahead of time, in microseconds.
    pub(crate) ahead_max: u64,
    hash: u64,
    tracing: bool,
    trace: VecDeque<String>,
    events: u64,
}

impl World {
    fn new(plan: &Plan, tracing: bool) -> Self {
        let run = plan.run.wrapping_mul(0x9e37_79b9);
        let mut rng = Rng::new(plan.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 1 ^ run);
        let zones = rng.between(1, 3);
        let nodes = (0..plan.nodes + plan.spares).map(|at| Node::new(at, zones, plan));
        let mut world = Self {
            plan: plan.clone(),
            faults: plan.faults.clone(),
            token_seed: rng.word(),
            rng,
            now: SECOND,
            seq: 0,
            queue: BTreeMap::new(),
            nodes: nodes.collect(),
            places: Places::default(),
            cuts: BTreeSet::new(),
            lags: BTreeMap::new(),
            next_fault: 0,
            next_wish: 0,
            moving: None,
            clients: Clients::default(),
            cut_at: None,
            agreed: Agreed::default(),
            mint: Mint::default(),
            deleted: Deleted::default(),
            marks: Marks::default(),
            asked: BTreeSet::new(),
            rounds: Rounds::default(),
            exchanges: Exchanges::default(),
            counts: Counts::new(),
            violation: None,
            void: false,
            ahead_max: 0,
            hash: 0,
            tracing,
            trace: VecDeque::new(),
            events: 0,
        };
        world.prepare_disks();
        world.set_rates();
        for node in 0..plan.nodes + plan.spares {
            world.schedule(0, Ev::Restart { node });
            world.schedule(100 * MS, Ev::Gossip { node });
        }
        let after = world.rng.below(plan.faults.every);
        world.schedule(after, Ev::Fault);
        world
    }

    /// Before the clients come: until all nodes are members and serve, or for as long as one would wait.
    fn form(&mut self) {
        let end = self.now + FORMING_MAX;
        while self.goes_on() && self.now < end && !self.is_formed() {
            if self.plan.early && self.nodes.iter().any(|node| node.serving) {
                break;
            }
            self.step();
        }
        for client in 0..self.plan.clients as usize {
            let after = self.rng.below(100 * MS);
            self.schedule(after, Ev::Client { client });
        }
    }

    /// The safety phase: until the clients have had all their operations.
    fn live(&mut self) {
        while self.goes_on() && !self.clients.finished(&self.plan) {
            self.step();
        }
    }

    /// Nothing has been found, and there is still something to be found.
    pub(crate) fn goes_on(&self) -> bool {
        self.violation.is_none() && !self.void
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
        if let Some(node) = self.subject(&event)
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
            Ev::Tick { at } => self.tick(at),
            Ev::ClusterTick { node, life } => self.cluster_tick(node, life),
            Ev::Mail { at, input } => self.input_if_alive(at, input),
            Ev::ClusterMail { node, life, input } => {
                if self.alive(node, life) {
                    self.cluster_input(node, input);
                }
            }
            Ev::ReadRun { at, id, query } => self.read(at, id, &query),
            Ev::ReadDone { at, id, result } => self.input_if_alive(at, Input::Read(id, result)),
            Ev::Flushed { node, life } => self.flushed(node, life),
            Ev::Committed { at, id, result } => self.committed(at, id, result),
            Ev::Sync { node, life } => self.sync(node, life),
            Ev::Gossip { node } => self.gossip(node),
            Ev::Restart { node } => self.start(node),
            Ev::Crash { node, life } => self.crash_now(node, life),
            Ev::Operate(act) => self.operate(&act),
            Ev::Fault => self.fault(),
            Ev::Mend(mend) => self.mend(mend),
            Ev::Client { client } => self.client_turn(client),
        }
    }

    /// The node whose pause holds an event up.
    fn subject(&self, event: &Ev) -> Option<usize> {
        match event {
            Ev::Deliver { to, .. } => self.index_of(*to),
            Ev::Tick { at }
            | Ev::Mail { at, .. }
            | Ev::ReadRun { at, .. }
            | Ev::ReadDone { at, .. }
            | Ev::Committed { at, .. } => Some(at.node),
            Ev::ClusterTick { node, .. }
            | Ev::ClusterMail { node, .. }
            | Ev::Flushed { node, .. }
            | Ev::Sync { node, .. }
            | Ev::Gossip { node } => Some(*node),
            Ev::Restart { .. }
            | Ev::Crash { .. }
            | Ev::Operate(_)
            | Ev::Fault
            | Ev::Mend(_)
            | Ev::Client { .. } => None,
        }
    }

    /// Where the node of that identity lives; nowhere once it has lost its data.
    pub(crate) fn index_of(&self, id: NodeId) -> Option<usize> {
        self.nodes.iter().position(|node| node.member.id == id)
    }

    pub(crate) fn record_key(&self, number: u64) -> RecordKey {
        let key = key_bytes(number);
        RecordKey {
            bucket: BUCKET,
            token: Token::of(self.token_seed, BUCKET, &key),
            key,
        }
    }

    /// The tables of a config.
    pub(crate) fn placed(&mut self, config: &Config) -> Arc<Placed> {
        self.places.of(config)
    }

    /// Somebody says that this config is decided.
    pub(crate) fn decided(&mut self, config: Config) {
        let news = self
            .agreed
            .at(config.version.0)
            .is_none()
            .then(|| config.clone());
        let decided = self.agreed.decided(config);
        self.check(decided);
        if let Some(config) = news {
            self.newly_decided(&config);
        }
    }

    /// The tables of the newest decided config, if there is any.
    pub(crate) fn newest(&mut self) -> Option<Arc<Placed>> {
        let latest = self.agreed.latest().cloned()?;
        Some(self.placed(&latest))
    }
}

pub(crate) fn key_bytes(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

pub(crate) fn number_of_bytes(key: &[u8]) -> u64 {
    key.try_into().map_or(u64::MAX, u64::from_be_bytes)
}

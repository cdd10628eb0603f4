//! What the machines of one shard share: clock, view, beliefs about peers, timers, and the way out.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use torc_ring::{Bucket, NodeId, Owners, PartitionId, RingVersion};

use crate::client::{ClientReply, RequestId};
use crate::floor::Floors;
use crate::foreground::Foreground;
use crate::hlc::{Hlc, HlcClock, Pace, SLOW_AHEAD_MAX};
use crate::latency::Latencies;
use crate::merkle::TreeKey;
use crate::message::{
    OpId, PeerBody, PeerMessage, RecordKey, Reply, ReplyKind, Request, RequestKind,
};
use crate::mutant::Mutant;
use crate::quorum::Need;
use crate::shard_io::{Event, Output, View};
use crate::store::{Batch, CommitId, Query, ReadId, StateKey, Sync, Write};
use crate::time::{JumpGuard, MS, Mono, Now, SECOND};
use crate::trees::Trees;
use crate::wire::Blob;

/// What a shard is told once, when its node starts.
#[derive(Clone, Debug)]
pub struct ShardSettings {
    /// This node.
    pub node: NodeId,
    /// This node's zone: replicas in it are asked first.
    pub zone: String,
    /// Index of the shard, below `count`.
    pub index: u8,
    /// Number of shards of the node, a power of two below [`crate::hlc::SHARDS_MAX`], whose
    /// last index is the cluster machine's.
    pub count: u8,
    /// Highest clock bound that any earlier life of this node made durable.
    pub durable_bound: Hlc,
    /// The store holds no record as the shard starts, so that no write has to look for a newer version.
    pub store_empty: bool,
    /// This node may have lost records that it had stored: below its floors absence is no information.
    pub lost: bool,
    /// Random number, new at each start: exchanges of an earlier life are not mistaken for present ones.
    pub seed: u64,
    /// Allowed clock drift, in microseconds.
    pub drift_max: u64,
    /// An owner that has not acked a write after this many microseconds gets a hint.
    pub hint_after: u64,
    /// Greatest sum of hint weights kept for one target by this shard, in bytes.
    pub hint_bytes_max: u64,
    /// Hints older than this many microseconds are dropped.
    pub hint_age_max: u64,
    /// Greatest rate at which this shard delivers hints to one target, in bytes per second.
    pub hint_rate: u64,
    /// Greatest number of clients' requests in work; further ones are refused.
    pub ops_max: usize,
    /// Greatest number of answered writes that still wait for slow owners; beyond, the oldest get hints.
    pub lingering_max: usize,
    /// Greatest number of watches that this shard keeps for coordinators.
    pub watchers_max: usize,
    /// Greatest rate at which this shard receives, and at which it hands out, partitions in a ring change, in
    /// bytes per second, less where clients notice it; 0 for no limit, whoever notices.
    pub transfer_rate: u64,
    /// Rate at which anti-entropy reads and sends, in bytes per second; 0 for no limit.
    pub repair_rate: u64,
    /// Rate of the scan that rereads everything, in bytes per second; 0 for none.
    pub scrub_rate: u64,
    /// Age of agreement that anti-entropy aims at, in microseconds.
    pub antientropy_age_target: u64,
    /// How often a partition's floor is raised at most, on average, in microseconds; 0 for never.
    pub floor_interval: u64,
    /// Only versions older than this by each owner's own clock, in microseconds, are collected: longer than
    /// any write of a client can be on its way ([`crate::floor::margin`]).
    pub floor_margin: u64,
    /// Memory of all hash trees, in bytes; beyond it, new ones get few leaves.
    pub tree_bytes_max: usize,
    /// A deliberate bug.
    #[cfg(feature = "mutants")]
    pub mutant: Option<Mutant>,
}

impl ShardSettings {
    /// Defaults for that shard of that node; the shell overrides what its configuration says.
    #[must_use]
    pub fn new(node: NodeId, index: u8, count: u8) -> Self {
        Self {
            node,
            zone: String::new(),
            index,
            count,
            durable_bound: Hlc(0),
            store_empty: false,
            lost: false,
            seed: 0,
            drift_max: 60 * SECOND,
            hint_after: SECOND,
            hint_bytes_max: 256 << 20,
            hint_age_max: 3 * 3_600 * SECOND,
            hint_rate: 32 << 20,
            ops_max: 8_192,
            lingering_max: 8_192,
            watchers_max: 10_000,
            transfer_rate: 64 << 20,
            repair_rate: 16 << 20,
            scrub_rate: 1 << 20,
            antientropy_age_target: 600 * SECOND,
            floor_interval: 0,
            floor_margin: 180 * SECOND,
            tree_bytes_max: 64 << 20,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }
}

/// Whether an operation goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It waits for something.
    Wait,
    /// It is over, and everybody has been told.
    Done,
}

/// A deadline of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// A coordinated operation, or a delivery of hints.
    Op(OpId),
    /// The clock bound, hints, watches and parked requests are looked after.
    Housekeeping,
    /// Trees that had to wait for their budget are read on.
    Trees,
}

/// How long a start waits for the physical clock to pass the bound of the earlier life, in microseconds.
const CLOCK_WAIT: u64 = 3 * SECOND;
const _: () = assert!(SLOW_AHEAD_MAX < CLOCK_WAIT && Pace::WRITES.ahead < CLOCK_WAIT);

/// Interval of housekeeping, in microseconds.
pub(crate) const HOUSEKEEPING: u64 = 250 * MS;

/// The shared part of a shard.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) settings: ShardSettings,
    pub(crate) clock: HlcClock,
    pub(crate) view: Option<Arc<View>>,
    pub(crate) dead: BTreeSet<NodeId>,
    /// What the cluster machine says of this node's clock.
    pub(crate) clock_trusted: bool,
    pub(crate) jump: JumpGuard,
    /// The wall clock has not just jumped.
    pub(crate) clock_steady: bool,
    pub(crate) serving: bool,
    /// Nothing is written any more: the node has stopped.
    pub(crate) closing: bool,
    /// Ring version that this node has durably applied.
    pub(crate) applied: RingVersion,
    /// Ring version below which no write is on its way any more.
    pub(crate) drained: RingVersion,
    pub(crate) trees: Trees,
    pub(crate) floors: Floors,
    pub(crate) tree_key: Option<TreeKey>,
    /// Partitions of which a node may lack writes, since a hint for it was dropped.
    pub(crate) doubts: BTreeSet<(PartitionId, NodeId)>,
    /// Hints here, on disk or on their way to it, that counted towards a write quorum.
    pub(crate) counted_hints: u64,
    pub(crate) latency: Latencies,
    pub(crate) foreground: Foreground,
    pub(crate) now: Now,
    pub(crate) out: VecDeque<Output>,
    /// Messages of this node to itself: taken like any other, but never encoded.
    pub(crate) loopback: VecDeque<PeerMessage>,
    pub(crate) timers: BTreeSet<(Mono, Timer)>,
    bound_commit: Option<CommitId>,
    born: Mono,
    next_op: u64,
    next_read: u64,
    next_commit: u64,
}

impl Core {
    pub(crate) fn new(settings: ShardSettings, now: Now) -> Self {
        assert!(
            settings.count.is_power_of_two(),
            "the number of shards is a power of two"
        );
        assert!(
            settings.index < settings.count,
            "a shard's index is below their number"
        );
        let jump = JumpGuard::new(now, settings.drift_max);
        let clock = HlcClock::new(
            settings.index,
            settings.durable_bound,
            settings.drift_max,
            Pace::WRITES,
        );
        let next_op = settings.seed;
        Self {
            settings,
            clock,
            view: None,
            dead: BTreeSet::new(),
            clock_trusted: true,
            jump,
            clock_steady: true,
            serving: false,
            closing: false,
            applied: RingVersion(0),
            drained: RingVersion(0),
            trees: Trees::default(),
            floors: Floors::default(),
            tree_key: None,
            doubts: BTreeSet::new(),
            counted_hints: 0,
            latency: Latencies::default(),
            foreground: Foreground::default(),
            now,
            out: VecDeque::new(),
            loopback: VecDeque::new(),
            timers: BTreeSet::new(),
            bound_commit: None,
            born: now.mono,
            next_op,
            next_read: 0,
            next_commit: 0,
        }
    }

    #[cfg(feature = "mutants")]
    pub(crate) fn has(&self, mutant: Mutant) -> bool {
        self.settings.mutant == Some(mutant)
    }

    #[cfg(not(feature = "mutants"))]
    #[allow(clippy::unused_self)]
    pub(crate) const fn has(&self, _: Mutant) -> bool {
        false
    }

    pub(crate) fn node(&self) -> NodeId {
        self.settings.node
    }

    /// Ring version that this shard has applied; 0 before it has one.
    pub(crate) fn ring_version(&self) -> RingVersion {
        self.view
            .as_ref()
            .map_or(RingVersion(0), |view| view.config.ring_version)
    }

    /// Whether this node has durably applied its ring version, and no write of an older one is on its way.
    pub(crate) fn is_settled(&self) -> bool {
        let ring = self.ring_version();
        ring != RingVersion(0) && self.applied >= ring && self.drained >= ring
    }

    pub(crate) fn partition_bits(&self) -> u8 {
        self.view
            .as_ref()
            .map_or(0, |view| view.config.partition_bits)
    }

    pub(crate) fn partition(&self, key: &RecordKey) -> PartitionId {
        key.token.partition(self.partition_bits())
    }

    /// Whom an operation on that partition concerns, and how many must answer in each ring.
    pub(crate) fn need(
        &self,
        bucket: &Bucket,
        partition: PartitionId,
        required: impl Fn(usize) -> usize,
    ) -> Need {
        let Some(view) = self.view.as_ref() else {
            return Need::default();
        };
        let owners = view.ring.owners_of(bucket, partition);
        if owners.target.is_some() && self.has(Mutant::UnionQuorum) {
            let union = Need::new(owners, &required).nodes();
            let current = &union;
            let target = None;
            return Need::new(Owners { current, target }, required);
        }
        Need::new(owners, required)
    }

    /// The same for a read: owners that may lack what they had stored do not count, however many there are
    /// left. (A write to them counts: what they have stored since is there.)
    pub(crate) fn need_to_read(
        &self,
        bucket: &Bucket,
        partition: PartitionId,
        required: impl Fn(usize) -> usize,
    ) -> Need {
        let need = self.need_to_repair(bucket, partition, required);
        match self.view.as_ref() {
            Some(view)
                if !view.config.recovering.is_empty() && !self.has(Mutant::RecoveringCounts) =>
            {
                need.only(|node| !view.config.recovers(node))
            }
            _ => need,
        }
    }

    /// The same for what a read writes back.
    pub(crate) fn need_to_repair(
        &self,
        bucket: &Bucket,
        partition: PartitionId,
        required: impl Fn(usize) -> usize,
    ) -> Need {
        let targets = self.view.as_ref().and_then(|view| {
            let target = view.ring.owners_of(bucket, partition).target;
            target.filter(|_| self.has(Mutant::TargetReadsOnly))
        });
        match targets {
            Some(current) => {
                let target = None;
                Need::new(Owners { current, target }, required)
            }
            None => self.need(bucket, partition, required),
        }
    }

    pub(crate) fn new_op(&mut self) -> OpId {
        self.next_op = self.next_op.wrapping_add(1);
        OpId::new(self.settings.index, self.next_op)
    }

    /// Sends to a peer, or to this node itself without encoding anything.
    pub(crate) fn send(&mut self, to: NodeId, body: PeerBody) {
        let message = PeerMessage {
            hlc: self.clock.last(),
            body,
        };
        if to == self.settings.node {
            self.loopback.push_back(message);
        } else {
            self.out.push_back(Output::Send(to, message));
        }
    }

    /// Asks a replica, telling it how much time is left.
    pub(crate) fn request(&mut self, to: NodeId, ask: &Ask, kind: RequestKind) {
        let remaining = ask.deadline.since(self.now.mono).min(u64::from(u32::MAX));
        let request = Request {
            op: ask.op,
            ring: ask.ring,
            remaining_us: remaining as u32,
            trace: Blob(ask.trace.clone()),
            kind,
        };
        self.send(to, PeerBody::Request(request));
    }

    pub(crate) fn answer(&mut self, to: NodeId, op: OpId, ring: RingVersion, kind: ReplyKind) {
        self.answer_at(to, (op, ring, Hlc(0)), kind);
    }

    /// Answers with what was read at that floor.
    pub(crate) fn answer_at(
        &mut self,
        to: NodeId,
        (op, ring, floor): (OpId, RingVersion, Hlc),
        kind: ReplyKind,
    ) {
        let reply = Reply {
            op,
            ring,
            floor,
            kind,
        };
        self.send(to, PeerBody::Reply(reply));
    }

    pub(crate) fn reply(&mut self, request: RequestId, reply: ClientReply) {
        self.out.push_back(Output::Reply(request, reply));
    }

    pub(crate) fn event(&mut self, event: Event) {
        if let Event::HintsDropped {
            target, partition, ..
        } = event
        {
            self.doubts.insert((partition, target));
        }
        self.out.push_back(Output::Event(event));
    }

    pub(crate) fn read(&mut self, query: Query) -> ReadId {
        self.next_read += 1;
        let id = ReadId(self.next_read);
        self.out.push_back(Output::Read(id, query));
        id
    }

    pub(crate) fn commit(&mut self, write: Write, sync: Sync) -> CommitId {
        self.commit_all(vec![write], sync)
    }

    pub(crate) fn commit_all(&mut self, writes: Vec<Write>, sync: Sync) -> CommitId {
        self.next_commit += 1;
        let id = CommitId(self.next_commit);
        self.out
            .push_back(Output::Commit(id, Batch { writes, sync }));
        id
    }

    /// Moves the timer of an operation from one moment to another.
    pub(crate) fn set_timer(&mut self, op: OpId, from: Option<Mono>, to: Option<Mono>) {
        if from == to {
            return;
        }
        if let Some(at) = from {
            self.timers.remove(&(at, Timer::Op(op)));
        }
        if let Some(at) = to {
            self.timers.insert((at, Timer::Op(op)));
        }
    }

    /// Takes the clocks' present reading.
    pub(crate) fn set_now(&mut self, now: Now) {
        self.now = now;
        self.clock_steady = self.jump.look(now);
    }

    /// Whether versions may be minted and fresh ones taken by this node's clock.
    pub(crate) fn clock_is_fit(&self) -> bool {
        self.clock_trusted && self.clock_steady
    }

    /// A clock that was set back is not waited for longer than [`CLOCK_WAIT`].
    pub(crate) fn stop_waiting_for_clock(&mut self) {
        if self.now.mono.since(self.born) > CLOCK_WAIT {
            self.clock.stop_waiting();
        }
    }

    /// Asks for the clock's next durable bound when it is time. Not while the clock is off: a bound far in
    /// the future would outlive the clock's repair, and the node could mint nothing that others accept.
    pub(crate) fn renew_bound(&mut self) {
        if !self.clock_is_fit() {
            return;
        }
        if let Some(bound) = self.clock.renewal(self.now.wall) {
            let key = StateKey::HlcBound(self.settings.index);
            let value = Bytes::copy_from_slice(&bound.0.to_be_bytes());
            if self.has(Mutant::BoundNotPersisted) {
                self.clock.on_bound_durable(self.now.wall);
                return;
            }
            self.bound_commit = Some(self.commit(Write::StatePut { key, value }, Sync::Fsync));
        }
    }

    /// Takes the outcome of a commit if it is the clock bound's; answers whether it was.
    pub(crate) fn on_bound_committed(&mut self, id: CommitId, ok: bool) -> bool {
        if self.bound_commit != Some(id) {
            return false;
        }
        self.bound_commit = None;
        if ok {
            self.clock.on_bound_durable(self.now.wall);
        } else {
            self.clock.on_bound_failed();
        }
        true
    }
}

/// What the messages of one operation have in common.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) op: OpId,
    pub(crate) ring: RingVersion,
    pub(crate) deadline: Mono,
    pub(crate) trace: Bytes,
}

/// Who asked, since when, and whether they are still waiting.
#[derive(Debug)]
pub(crate) struct Caller {
    /// Taken when the answer is given.
    pub(crate) request: Option<RequestId>,
    pub(crate) started: Mono,
    /// `put`, `delete`, `prepare`, `store`, `get`, `watch`, `verify`, `list`.
    pub(crate) op: &'static str,
}

impl Caller {
    /// Answers once; later answers go nowhere.
    pub(crate) fn answer(&mut self, core: &mut Core, ask: &Ask, required: u8, reply: ClientReply) {
        let Some(request) = self.request.take() else {
            return;
        };
        let outcome = outcome_of(&reply);
        let micros = core.now.mono.since(self.started);
        core.event(Event::Coordinated {
            op: self.op,
            required,
            outcome,
            micros,
            trace: ask.trace.clone(),
        });
        if outcome == "ok" && matches!(self.op, "put" | "delete" | "get" | "store" | "prepare") {
            core.foreground.observe(core.now.mono, micros);
        }
        core.reply(request, reply);
    }
}

fn outcome_of(reply: &ClientReply) -> &'static str {
    use crate::client::ClientError as E;
    match reply {
        ClientReply::Failed(error) => match error {
            E::Quorum { .. } => "quorum",
            E::Unavailable { .. } => "unavailable",
            E::QuorumTooLarge { .. } | E::Mode | E::NoBucket | E::ContextFromFuture => "invalid",
            E::DiskFull { .. } => "disk_full",
            E::ClockDrift => "clock",
            E::Overloaded => "overloaded",
            E::NotReady => "not_ready",
        },
        ClientReply::Stored { .. }
        | ClientReply::Prepared { .. }
        | ClientReply::Found { .. }
        | ClientReply::Verified { .. }
        | ClientReply::Listed { .. } => "ok",
    }
}

//! The asking side of a session: compares this node's copy of a partition with another owner's, and brings
//! over what is missing.
//!
//! Roots first, then the nodes that differ, level by level, then keys and digests of the leaves that differ,
//! then records. What either side held when the session began is on this side at its end, fsynced (in a
//! transfer: when the whole of it has come), and on the other side too when the session is for anti-entropy:
//! concurrent writes only make it compare more. One question is open at a time, so that both sides need little
//! memory; whatever goes wrong ends the session, and another one finds what is left to do.

use std::collections::{BTreeMap, VecDeque};

use torc_ring::{BucketId, ConflictMode, NodeId, PartitionId, RingVersion};

use super::diff::{self, Diff};
use super::{Asker, Cx, Reader, Then};
use crate::core::Step;
use crate::floor::{Doom, Why};
use crate::hlc::Hlc;
use crate::merkle::Span;
use crate::message::{Cursor, OpId, PeerBody};
use crate::mutant::Mutant;
use crate::store::{DigestEntry, Found, StoreError};
use crate::sync_message::{
    Root, SyncAnswer, SyncAsk, SyncBody, SyncEntry, SyncMessage, SyncRefusal,
};
use crate::time::{Mono, SECOND};
use crate::trees::Ended;

/// How long an answer may take, in microseconds: the other side may have to read a tree.
const ASK_DEADLINE: u64 = 15 * SECOND;
/// How long this node's own trees may take, in microseconds; reading goes on in the background after that.
const TREES_DEADLINE: u64 = 60 * SECOND;
/// Times that the other side may be busy in a row.
const PATIENCE: u32 = 100;
/// Levels of a tree that are gone down at a time.
const LEVELS: u8 = 5;

/// Why a session is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Anti-entropy: both sides get what they lack.
    Compare,
    /// A ring change: this side gets what it lacks.
    Cover,
    /// For a floor: a raise, in which both sides get what they lack, or a rebuild of this side.
    Floor(Why),
}

impl Purpose {
    fn rebuilds(self) -> Option<Hlc> {
        match self {
            Self::Floor(Why::Rebuild(floor)) => Some(floor),
            Self::Compare | Self::Cover | Self::Floor(Why::Raise) => None,
        }
    }
}

/// How it went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Going,
    Over,
    Failed(&'static str),
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(super) id: OpId,
    pub(super) peer: NodeId,
    pub(super) partition: PartitionId,
    pub(super) ring: RingVersion,
    pub(super) purpose: Purpose,
    pub(super) started: Mono,
    pub(super) buckets: Vec<BucketId>,
    pub(super) stage: Stage,
    /// Buckets that differ, with the other side's root.
    todo: VecDeque<(BucketId, Root)>,
    number: u32,
    /// What was asked and is not answered, or waits to be asked.
    open: Option<SyncAsk>,
    /// The open question waits for a budget, this side's or the other's.
    waits: bool,
    patience: u32,
    timer: Option<Mono>,
    /// What a rebuild will drop.
    pub(super) doom: Doom,
    /// The two sides have different floors somewhere, so that they need not have become equal.
    uneven: bool,
    /// The greatest floor of the other side in each bucket, while the session lasted.
    heard: BTreeMap<BucketId, Hlc>,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// This side's trees are being read.
    Trees(BTreeMap<BucketId, u64>),
    Roots,
    Sums(Descent),
    Diff(Box<Diff>),
    Bulk(Bulk),
    Closing,
}

/// Going down a tree.
#[derive(Debug)]
pub(super) struct Descent {
    bucket: BucketId,
    /// Greatest depth that both trees have.
    deepest: u8,
    /// The level that is being compared, and its nodes.
    level: u8,
    nodes: Vec<u16>,
}

/// Taking everything, page by page: one is stored while the next one is on its way.
#[derive(Debug)]
pub(super) struct Bulk {
    bucket: BucketId,
    storing: bool,
    held: Option<(Hlc, Vec<SyncEntry>)>,
    /// Where the next page begins; `None` when there is none.
    after: Option<Cursor>,
}

impl Session {
    pub(super) fn new(
        cx: &mut Cx<'_>,
        (purpose, peer, partition): (Purpose, NodeId, PartitionId),
        buckets: Vec<BucketId>,
    ) -> Self {
        let id = cx.core.new_op();
        let mut session = Self {
            id,
            peer,
            partition,
            ring: cx.core.ring_version(),
            purpose,
            started: cx.core.now.mono,
            buckets,
            stage: Stage::Closing,
            todo: VecDeque::new(),
            number: 0,
            open: None,
            waits: false,
            patience: 0,
            timer: None,
            doom: Doom::new(),
            uneven: false,
            heard: BTreeMap::new(),
        };
        let mut missing = BTreeMap::new();
        for &bucket in &session.buckets {
            if let Some(round) = cx.shared.refresher.refresh(cx.core, (bucket, partition)) {
                missing.insert(bucket, round);
            }
        }
        let due = session.started.plus(TREES_DEADLINE);
        session.stage = Stage::Trees(missing);
        session.arm(cx, Some(due));
        session
    }

    /// Goes on if nothing is missing.
    pub(super) fn begin(&mut self, cx: &mut Cx<'_>) -> Flow {
        match &self.stage {
            Stage::Trees(missing) if missing.is_empty() => {
                self.stage = Stage::Roots;
                let buckets = self.buckets.clone();
                self.ask(cx, SyncAsk::Roots { buckets })
            }
            _ => Flow::Going,
        }
    }

    /// A tree of this side was brought up to date.
    pub(super) fn on_tree(&mut self, cx: &mut Cx<'_>, ended: &Ended) -> Flow {
        let Stage::Trees(missing) = &mut self.stage else {
            return Flow::Going;
        };
        let awaited = ended.id.1 == self.partition
            && missing
                .get(&ended.id.0)
                .is_some_and(|&round| round <= ended.round);
        if !awaited {
            return Flow::Going;
        }
        if !ended.ok {
            return Flow::Failed("storage");
        }
        missing.remove(&ended.id.0);
        self.begin(cx)
    }

    pub(super) fn on_answer(
        &mut self,
        cx: &mut Cx<'_>,
        (number, floor): (u32, Hlc),
        answer: SyncAnswer,
    ) -> Flow {
        if number != self.number || self.waits || self.open.is_none() {
            return Flow::Going;
        }
        if let SyncAnswer::Refused(refusal) = answer {
            return self.on_refusal(cx, refusal);
        }
        let bucket = self.open.take().and_then(|ask| ask.bucket());
        if let Some(bucket) = bucket {
            self.hear(bucket, floor);
        }
        self.patience = 0;
        self.arm(cx, None);
        match (answer, &mut self.stage) {
            (SyncAnswer::Roots(roots), Stage::Roots) => self.on_roots(cx, &roots),
            (SyncAnswer::Sums { depth, sums }, Stage::Sums(_)) => self.on_sums(cx, depth, &sums),
            // What it says belongs to the floor that the rebuild is for, or it is of no use.
            (SyncAnswer::Digests { .. } | SyncAnswer::Records { .. }, _)
                if self.purpose.rebuilds().is_some_and(|at| at != floor) =>
            {
                Flow::Failed("floor")
            }
            (SyncAnswer::Digests { entries, reached }, Stage::Diff(diff)) => {
                diff.hear(floor);
                cx.shared
                    .budget(self.purpose)
                    .take(64 * entries.len() as u64, cx.core.now.mono);
                diff.on_theirs(entries, reached);
                self.go_on(cx)
            }
            (SyncAnswer::Records { entries, reached }, Stage::Diff(diff)) => {
                diff.on_pulled(reached.as_ref());
                for entry in &entries {
                    if let Some(doomed) = diff.doom.get_mut(&entry.at) {
                        doomed.instead = Some(entry.record.clone());
                    }
                }
                self.store(cx, floor, entries)
            }
            (SyncAnswer::Stored, Stage::Diff(diff)) => {
                diff.on_pushed();
                self.go_on(cx)
            }
            (SyncAnswer::Records { entries, reached }, Stage::Bulk(_)) => {
                self.on_page(cx, floor, (entries, reached))
            }
            (SyncAnswer::Noted, Stage::Closing) => Flow::Over,
            _ => Flow::Failed("peer"),
        }
    }

    fn on_refusal(&mut self, cx: &mut Cx<'_>, refusal: SyncRefusal) -> Flow {
        match refusal {
            SyncRefusal::Busy { after_us } if self.patience < PATIENCE => {
                self.patience += 1;
                self.waits = true;
                let wait = u64::from(after_us).clamp(1_000, 5 * SECOND);
                let due = cx.core.now.mono.plus(wait);
                self.arm(cx, Some(due));
                Flow::Going
            }
            SyncRefusal::Busy { .. } => Flow::Failed("timeout"),
            SyncRefusal::RingVersion { .. } => Flow::Failed("ring_version"),
            SyncRefusal::NotDrained => Flow::Failed("not_drained"),
            SyncRefusal::NotOwner => Flow::Failed("not_owner"),
            SyncRefusal::Failed => Flow::Failed("peer"),
        }
    }

    fn on_roots(&mut self, cx: &mut Cx<'_>, roots: &[Root]) -> Flow {
        if roots.len() != self.buckets.len() {
            return Flow::Failed("peer");
        }
        for (bucket, theirs) in self.buckets.clone().into_iter().zip(roots) {
            let Some(ours) = cx.root((bucket, self.partition)) else {
                return Flow::Failed("tree");
            };
            cx.core
                .floors
                .hear((bucket, self.partition), self.peer, theirs.floor);
            self.hear(bucket, theirs.floor);
            self.uneven |= theirs.floor != ours.floor;
            let of_use = match self.purpose {
                Purpose::Floor(Why::Raise) => theirs.floor == ours.floor,
                Purpose::Floor(Why::Rebuild(floor)) => theirs.whole && theirs.floor == floor,
                Purpose::Compare | Purpose::Cover => true,
            };
            if !of_use {
                return Flow::Failed("floor");
            }
            if ours.sum != theirs.sum {
                self.todo.push_back((bucket, *theirs));
            }
        }
        self.next_bucket(cx)
    }

    fn hear(&mut self, bucket: BucketId, floor: Hlc) {
        let heard = self.heard.entry(bucket).or_default();
        *heard = floor.max(*heard);
    }

    /// Whether the other side has a higher floor somewhere. What it holds is no whole copy then: deleted
    /// values of which it has forgotten the tombstones may be here, from another owner.
    fn is_lower(&self, cx: &Cx<'_>) -> bool {
        let lower = |(&bucket, &floor): (&BucketId, &Hlc)| {
            floor > cx.core.floors.floor((bucket, self.partition))
        };
        self.heard.iter().any(lower) && !cx.core.has(Mutant::CoveredAtLowerFloor)
    }

    fn next_bucket(&mut self, cx: &mut Cx<'_>) -> Flow {
        let Some((bucket, theirs)) = self.todo.pop_front() else {
            self.stage = Stage::Closing;
            match self.purpose {
                Purpose::Cover if self.is_lower(cx) => return Flow::Failed("floor"),
                Purpose::Cover | Purpose::Floor(_) => return Flow::Over,
                // They agree only as far as the lower floor goes: the side that has it rebuilds.
                Purpose::Compare if self.uneven => return Flow::Failed("floor"),
                Purpose::Compare => {}
            }
            let age_us = cx.core.now.mono.since(self.started);
            return self.ask(cx, SyncAsk::Verified { age_us });
        };
        let Some(ours) = cx.core.trees.root((bucket, self.partition)) else {
            return Flow::Failed("tree");
        };
        if ours.keys == 0 && cx.core.trees.is_fresh((bucket, self.partition)) {
            self.stage = Stage::Bulk(Bulk {
                bucket,
                storing: false,
                held: None,
                after: None,
            });
            return self.ask(
                cx,
                SyncAsk::Page {
                    bucket,
                    after: None,
                },
            );
        }
        self.descend(
            cx,
            Descent {
                bucket,
                deepest: ours.depth.min(theirs.depth),
                level: 0,
                nodes: vec![0],
            },
        )
    }

    /// The nodes of that level differ: asks for their children, or compares keys if they are leaves.
    fn descend(&mut self, cx: &mut Cx<'_>, differing: Descent) -> Flow {
        let Descent {
            bucket,
            deepest,
            level,
            nodes,
        } = differing;
        if nodes.is_empty() {
            return self.next_bucket(cx);
        }
        if level >= deepest {
            let span = Span {
                partition: self.partition,
                bits: cx.core.partition_bits(),
            };
            let ranges = ranges(span, level, &nodes);
            let both = cx.mode(bucket) == Some(ConflictMode::Siblings);
            let tree = (bucket, self.partition);
            let push_too = self.purpose != Purpose::Cover;
            let floors = diff::Floors {
                intake: cx.core.floors.intake(tree),
                // Until it says so.
                theirs: Hlc(u64::MAX),
                ours: cx.core.floors.floor(tree),
                rebuild: self.purpose.rebuilds(),
            };
            let what = (both, push_too);
            self.stage = Stage::Diff(Box::new(Diff::new(bucket, ranges, what, floors)));
            return self.go_on(cx);
        }
        let next = (level + LEVELS).min(deepest);
        let width = 1_u16 << (next - level);
        let children: Vec<u16> = nodes
            .iter()
            .flat_map(|&node| node * width..(node + 1) * width)
            .collect();
        self.stage = Stage::Sums(Descent {
            bucket,
            deepest,
            level: next,
            nodes: children.clone(),
        });
        self.ask(
            cx,
            SyncAsk::Sums {
                bucket,
                depth: next,
                nodes: children,
            },
        )
    }

    fn on_sums(&mut self, cx: &mut Cx<'_>, depth: u8, sums: &[u128]) -> Flow {
        let Stage::Sums(descent) = &mut self.stage else {
            return Flow::Failed("peer");
        };
        let id = (descent.bucket, self.partition);
        if depth < descent.level || sums.len() != descent.nodes.len() {
            return Flow::Failed("tree");
        }
        let mut differing = Vec::new();
        for (&node, &theirs) in descent.nodes.iter().zip(sums) {
            match cx.core.trees.sum(id, descent.level, usize::from(node)) {
                None => return Flow::Failed("tree"),
                Some(ours) if ours != theirs => differing.push(node),
                Some(_) => {}
            }
        }
        let next = Descent {
            nodes: differing,
            ..*descent
        };
        self.descend(cx, next)
    }

    /// Does what comes next in a comparison of keys.
    fn go_on(&mut self, cx: &mut Cx<'_>) -> Flow {
        let Stage::Diff(diff) = &mut self.stage else {
            return Flow::Failed("peer");
        };
        let bucket = diff.bucket;
        match diff.next(cx, self.id) {
            diff::Next::Wait => Flow::Going,
            diff::Next::Ask(ask) => self.ask(cx, ask),
            diff::Next::Done => {
                if diff.overflowed {
                    return Flow::Failed("floor");
                }
                self.doom.append(&mut diff.doom);
                debug_assert!(
                    self.open.is_none(),
                    "bucket {} has an open question",
                    bucket.0
                );
                self.next_bucket(cx)
            }
        }
    }

    /// This side's disk answered.
    pub(super) fn on_read(
        &mut self,
        cx: &mut Cx<'_>,
        push: bool,
        result: Result<Found, StoreError>,
    ) -> Flow {
        let Stage::Diff(diff) = &mut self.stage else {
            return Flow::Going;
        };
        match result {
            Ok(Found::Digests {
                entries,
                reached,
                bytes,
            }) if !push => {
                let now = cx.core.now.mono;
                cx.shared.budget(self.purpose).take(bytes, now);
                let floor = cx.core.floors.floor((diff.bucket, self.partition));
                let alive = |entry: &DigestEntry| entry.dead_at.is_none_or(|at| at > floor);
                diff.on_ours(entries.into_iter().filter(alive).collect(), reached);
                if self.open.is_some() {
                    return Flow::Going;
                }
                self.go_on(cx)
            }
            Ok(Found::Records { entries, reached }) if push => {
                let bucket = diff.bucket;
                diff.on_push_read(reached);
                let entries = cx.entries((bucket, self.partition), entries);
                if entries.is_empty() {
                    diff.on_pushed();
                    return self.go_on(cx);
                }
                let bytes: usize = entries.iter().map(SyncEntry::weight).sum();
                let now = cx.core.now.mono;
                cx.shared.budget(self.purpose).take(bytes as u64, now);
                self.ask(cx, SyncAsk::Push { bucket, entries })
            }
            Ok(_) | Err(_) => Flow::Failed("storage"),
        }
    }

    fn on_page(
        &mut self,
        cx: &mut Cx<'_>,
        floor: Hlc,
        (entries, reached): (Vec<SyncEntry>, Option<Cursor>),
    ) -> Flow {
        let Stage::Bulk(bulk) = &mut self.stage else {
            return Flow::Failed("peer");
        };
        // A page that does not get further would be asked for for ever. One that holds only what is dead is
        // empty and gets further all the same.
        if reached.is_some() && reached <= bulk.after {
            return Flow::Failed("peer");
        }
        bulk.after = reached;
        if bulk.storing {
            bulk.held = Some((floor, entries));
            return Flow::Going;
        }
        bulk.storing = true;
        let (bucket, after) = (bulk.bucket, bulk.after.clone());
        let stored = self.store(cx, floor, entries);
        match after {
            Some(_) if stored == Flow::Going => self.ask(cx, SyncAsk::Page { bucket, after }),
            _ => stored,
        }
    }

    fn store(&mut self, cx: &mut Cx<'_>, floor: Hlc, entries: Vec<SyncEntry>) -> Flow {
        let bucket = match &self.stage {
            Stage::Diff(diff) => diff.bucket,
            Stage::Bulk(bulk) => bulk.bucket,
            _ => return Flow::Failed("peer"),
        };
        if entries.is_empty() && matches!(self.stage, Stage::Diff(_)) {
            return self.on_stored(cx, true);
        }
        let bytes: usize = entries.iter().map(SyncEntry::weight).sum();
        let now = cx.core.now.mono;
        cx.shared.budget(self.purpose).take(bytes as u64, now);
        let place = (bucket, self.partition, self.peer);
        let transfer = self.purpose == Purpose::Cover;
        let early = self.purpose == Purpose::Floor(Why::Raise)
            && cx.core.has(Mutant::SessionCountedEarly)
            && matches!(self.stage, Stage::Diff(_));
        match cx.store((place, floor), transfer, entries, Then::Session(self.id)) {
            Step::Wait if early => self.on_stored(cx, true),
            Step::Wait => Flow::Going,
            Step::Done => Flow::Failed("peer"),
        }
    }

    /// What was received is stored: fsynced, but for a transfer.
    pub(super) fn on_stored(&mut self, cx: &mut Cx<'_>, ok: bool) -> Flow {
        if !ok {
            return Flow::Failed("storage");
        }
        match &mut self.stage {
            Stage::Diff(diff) => {
                diff.on_stored();
                self.go_on(cx)
            }
            Stage::Bulk(bulk) => {
                bulk.storing = false;
                let bucket = bulk.bucket;
                let Some((floor, entries)) = bulk.held.take() else {
                    let over = bulk.after.is_none();
                    return if over {
                        self.next_bucket(cx)
                    } else {
                        Flow::Going
                    };
                };
                bulk.storing = true;
                let after = bulk.after.clone();
                let stored = self.store(cx, floor, entries);
                match after {
                    Some(_) if stored == Flow::Going => {
                        self.ask(cx, SyncAsk::Page { bucket, after })
                    }
                    _ => stored,
                }
            }
            _ => Flow::Going,
        }
    }

    pub(super) fn on_timer(&mut self, cx: &mut Cx<'_>) -> Flow {
        self.timer = None;
        match self.open.take() {
            Some(ask) if self.waits => {
                self.waits = false;
                self.ask(cx, ask)
            }
            Some(_) => Flow::Failed("timeout"),
            None => Flow::Failed("tree"),
        }
    }

    /// Asks now, or when the budget allows it.
    fn ask(&mut self, cx: &mut Cx<'_>, ask: SyncAsk) -> Flow {
        let now = cx.core.now.mono;
        let costs = matches!(ask, SyncAsk::Page { .. } | SyncAsk::Pull { .. });
        let wait = cx.shared.budget(self.purpose).wait(now);
        if costs && wait > 0 {
            self.waits = true;
            self.open = Some(ask);
            self.arm(cx, Some(now.plus(wait)));
            return Flow::Going;
        }
        self.number = self.number.wrapping_add(1);
        let message = SyncMessage {
            session: self.id,
            number: self.number,
            ring: self.ring,
            partition: self.partition,
            floor: self.floor_of(cx, &ask),
            body: SyncBody::Ask {
                remaining_us: ASK_DEADLINE as u32,
                ask: ask.clone(),
            },
        };
        self.open = Some(ask);
        self.arm(cx, Some(now.plus(ASK_DEADLINE)));
        cx.core.send(self.peer, PeerBody::Sync(message));
        Flow::Going
    }

    /// This side's floor in the bucket that the question is about.
    fn floor_of(&self, cx: &Cx<'_>, ask: &SyncAsk) -> Hlc {
        let floor = |bucket: BucketId| cx.core.floors.floor((bucket, self.partition));
        ask.bucket().map_or(Hlc(0), floor)
    }

    fn arm(&mut self, cx: &mut Cx<'_>, due: Option<Mono>) {
        cx.core.set_timer(self.id, self.timer, due);
        self.timer = due;
    }

    /// Forgets its timer; to be called when it is over.
    pub(super) fn disarm(&mut self, cx: &mut Cx<'_>) {
        self.arm(cx, None);
    }
}

/// Token ranges of nodes in order, neighbours joined.
fn ranges(span: Span, level: u8, nodes: &[u16]) -> VecDeque<(torc_ring::Token, torc_ring::Token)> {
    let mut rows: Vec<(u16, u16)> = Vec::new();
    for &node in nodes {
        match rows.last_mut() {
            Some(row) if row.1 + 1 == node => row.1 = node,
            _ => rows.push((node, node)),
        }
    }
    rows.into_iter()
        .map(|(first, last)| span.tokens(level, usize::from(first), usize::from(last)))
        .collect()
}

impl Asker {
    /// Whether the question is still of this ring version and in time.
    pub(super) fn is_waiting(&self, cx: &Cx<'_>) -> bool {
        self.ring == cx.core.ring_version() && cx.core.now.mono < self.deadline
    }
}

impl Reader {
    /// The session that it is of.
    pub(super) fn session(&self) -> Option<OpId> {
        match self {
            Self::Ours(id) | Self::Push(id) => Some(*id),
            Self::Answer(_) => None,
        }
    }
}

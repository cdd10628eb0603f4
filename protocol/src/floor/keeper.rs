//! The machine that raises floors, answers those who raise them, and keeps up with owners that have.
//!
//! Bounds: [`RAISES_MAX`] raises and [`REBUILDS_MAX`] rebuilds at a time, one collection; every step has a
//! deadline, every failure a pause.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use torc_ring::{BucketId, NodeId, PartitionId};

use super::collect::Collect;
use super::inherit::Inherit;
use super::owner::{Asker, Compare, Scan};
use super::raise::Raise;
use super::rebuild::Rebuild;
use super::status::Held;
use super::{Over, Why};
use crate::core::Core;
use crate::floor_message::{FloorAnswer, FloorAsk, FloorBody, FloorMessage, FloorRefusal};
use crate::hints::Hints;
use crate::hlc::Hlc;
use crate::message::{OpId, PeerBody};
use crate::mutant::Mutant;
use crate::rng::Rng;
use crate::shard_io::{Event, View};
use crate::store::{CommitId, Found, ReadId, StateKey, StoreError, Sync, Write};
use crate::time::{Mono, SECOND};
use crate::trees::TreeId;

/// Raises that this shard leads at a time.
pub(super) const RAISES_MAX: usize = 4;
/// Copies that this shard rebuilds at a time.
pub(super) const REBUILDS_MAX: usize = 4;
/// How often what is going on is told, in microseconds.
const REPORT_EVERY: u64 = SECOND;

#[derive(Debug)]
pub(crate) struct Keeper {
    pub(super) raises: BTreeMap<TreeId, Raise>,
    /// Floors that this shard leads and that do not rise.
    pub(super) held: BTreeMap<TreeId, Held>,
    /// When this shard looks again whether a floor that it leads should be raised.
    pub(super) due: BTreeSet<(Mono, TreeId)>,
    pub(super) compares: BTreeMap<TreeId, Compare>,
    pub(super) scans: BTreeMap<ReadId, Scan>,
    pub(super) rebuilds: BTreeMap<TreeId, Rebuild>,
    /// After a failed rebuild it is tried again then.
    pub(super) pauses: BTreeMap<TreeId, Mono>,
    pub(super) inherits: BTreeMap<TreeId, Inherit>,
    /// Questions about closes of a ring version that this node has not applied yet.
    pub(super) early: Vec<Asker>,
    pub(super) collect: Option<Collect>,
    pub(super) uncollected: VecDeque<TreeId>,
    pub(super) pending: BTreeMap<CommitId, Pending>,
    pub(super) budget: crate::budget::Budget,
    pub(super) rng: Rng,
    reported: Mono,
    /// The next config finds floors that belong to records which may be gone.
    lost: bool,
}

/// What a commit was for.
#[derive(Debug)]
pub(super) enum Pending {
    Promise(Asker, Hlc),
    Close(Asker),
    Raise(Asker, Hlc),
    /// A partition is not this node's any more.
    Cleared,
    Inherit(TreeId),
    Barrier(TreeId),
    Rebuild(TreeId, Hlc, Vec<crate::message::RecordKey>),
    CollectBarrier(TreeId),
    Remove(TreeId, Vec<crate::message::RecordKey>),
}

impl Pending {
    /// The partition whose mark it is.
    pub(super) fn tree(&self) -> Option<TreeId> {
        match self {
            Self::Promise(asker, _) | Self::Close(asker) | Self::Raise(asker, _) => {
                Some(asker.tree)
            }
            Self::Inherit(tree)
            | Self::Barrier(tree)
            | Self::CollectBarrier(tree)
            | Self::Rebuild(tree, ..)
            | Self::Remove(tree, _) => Some(*tree),
            Self::Cleared => None,
        }
    }

    /// Whether it raises a floor.
    fn raises(&self, tree: TreeId) -> bool {
        matches!(self, Self::Raise(..) | Self::Rebuild(..)) && self.tree() == Some(tree)
    }
}

impl Keeper {
    pub(crate) fn new(core: &Core) -> Self {
        Self {
            raises: BTreeMap::new(),
            held: BTreeMap::new(),
            due: BTreeSet::new(),
            compares: BTreeMap::new(),
            scans: BTreeMap::new(),
            rebuilds: BTreeMap::new(),
            pauses: BTreeMap::new(),
            inherits: BTreeMap::new(),
            early: Vec::new(),
            collect: None,
            uncollected: VecDeque::new(),
            pending: BTreeMap::new(),
            budget: crate::budget::Budget::new(core.settings.repair_rate),
            rng: Rng::new(core.settings.seed ^ 0x666c_6f6f),
            reported: core.now.mono,
            lost: core.settings.lost,
        }
    }

    pub(super) fn send(core: &mut Core, to: NodeId, (op, tree): (OpId, TreeId), body: FloorBody) {
        let message = FloorMessage {
            op,
            ring: core.ring_version(),
            bucket: tree.0,
            partition: tree.1,
            floor: core.floors.floor(tree),
            body,
        };
        core.send(to, PeerBody::Floor(message));
    }

    // ---- what happens

    pub(crate) fn on_message(&mut self, core: &mut Core, from: NodeId, message: FloorMessage) {
        let FloorMessage {
            op,
            ring,
            bucket,
            partition,
            floor,
            body,
        } = message;
        let mine = usize::from(partition.0) & (usize::from(core.settings.count) - 1)
            == usize::from(core.settings.index);
        let known = core
            .view
            .as_ref()
            .is_some_and(|view| view.config.bucket_by_id(bucket).is_some());
        let tree = (bucket, partition);
        if !mine || (!known && ring == core.ring_version()) {
            return;
        }
        if ring == core.ring_version() {
            Self::hear(core, tree, from, floor);
        }
        match body {
            FloorBody::Ask(ask) => {
                let asker = Asker {
                    node: from,
                    op,
                    ring,
                    tree,
                };
                if ring > core.ring_version() {
                    let version = torc_ring::ConfigVersion(ring.0);
                    core.out
                        .push_back(crate::shard_io::Output::NewerConfig(from, version));
                }
                if ask == FloorAsk::Inherit {
                    self.on_inherit(core, asker);
                    return;
                }
                let refusal = if ring != core.ring_version() {
                    Some(FloorRefusal::RingVersion)
                } else if !core.serving || core.closing || !core.is_settled() {
                    Some(FloorRefusal::NotReady)
                } else {
                    None
                };
                match refusal {
                    Some(refusal) => asker.refuse(core, refusal),
                    None => self.on_ask(core, asker, floor, ask),
                }
            }
            FloorBody::Answer(answer) if ring == core.ring_version() => {
                self.on_answer(core, from, (op, tree, floor), answer);
            }
            FloorBody::Answer(_) => {}
        }
    }

    fn on_ask(&mut self, core: &mut Core, asker: Asker, floor: Hlc, ask: FloorAsk) {
        match ask {
            FloorAsk::Limit => Self::on_limit(core, asker),
            FloorAsk::Confirm { to } => self.on_confirm(core, asker, to),
            FloorAsk::Close { to } => self.on_close(core, asker, floor, to),
            FloorAsk::Compare { to } => self.on_compare(core, asker, floor, to),
            FloorAsk::Raise { to } => self.on_raise(core, asker, floor, to),
            FloorAsk::Inherit => self.on_inherit(core, asker),
        }
    }

    fn on_answer(
        &mut self,
        core: &mut Core,
        from: NodeId,
        (op, tree, floor): (OpId, TreeId, Hlc),
        answer: FloorAnswer,
    ) {
        if self.inherits.get(&tree).is_some_and(|i| i.op == op) {
            self.on_inherited(core, tree, from, answer);
        } else if self.raises.get(&tree).is_some_and(|raise| raise.op == op) {
            self.on_step(core, tree, (from, floor), answer);
        }
    }

    /// An owner has said which floor it has.
    pub(crate) fn hear(core: &mut Core, tree: TreeId, from: NodeId, floor: Hlc) {
        if core.owns_both(tree, from) {
            core.floors.hear(tree, from, floor);
        }
    }

    /// A commit ended; answers whether it was one of ours.
    pub(crate) fn on_committed(
        &mut self,
        core: &mut Core,
        hints: &Hints,
        (id, ok): (CommitId, bool),
    ) -> bool {
        let Some(pending) = self.pending.remove(&id) else {
            return false;
        };
        match pending {
            Pending::Promise(asker, to) if ok => self.scan_hints(core, hints, asker, to),
            Pending::Close(asker) if ok => asker.answer(core, FloorAnswer::Done),
            Pending::Promise(asker, _) | Pending::Close(asker) => {
                asker.refuse(core, FloorRefusal::Failed);
            }
            Pending::Raise(asker, to) => self.on_raised(core, asker, to, ok),
            // What could not be written now is written with the next mark; it is right in memory.
            Pending::Cleared => {}
            Pending::Inherit(tree) => self.on_inherit_stored(core, tree, ok),
            Pending::Barrier(tree) => self.on_barrier(core, tree, ok),
            Pending::Rebuild(tree, floor, keys) => self.on_rebuilt(core, (tree, floor), &keys, ok),
            Pending::CollectBarrier(tree) => self.collect_on(core, tree, ok),
            Pending::Remove(tree, keys) => self.on_removed(core, tree, &keys, ok),
        }
        true
    }

    /// The disk answered; hands the result back when it was no question of ours.
    pub(crate) fn on_read(
        &mut self,
        core: &mut Core,
        id: ReadId,
        result: Result<Found, StoreError>,
    ) -> Option<Result<Found, StoreError>> {
        if let Some(scan) = self.scans.remove(&id) {
            self.on_scanned(core, scan, &result);
            return None;
        }
        if self.collect.as_ref().is_some_and(|c| c.reads(id)) {
            self.on_collected(core, result);
            return None;
        }
        Some(result)
    }

    /// Another config holds; `before` is the one until now. Whatever belonged to another ring version is over.
    pub(crate) fn on_config(&mut self, core: &mut Core, before: Option<&Arc<View>>) {
        let Some(view) = core.view.clone() else {
            return;
        };
        let same = before.is_some_and(|b| b.config.ring_version == view.config.ring_version);
        if !same {
            self.raises.clear();
            self.held.clear();
            self.compares.clear();
            self.scans.clear();
            self.inherits.clear();
            self.pauses.clear();
            let rebuilding: Vec<TreeId> = self.rebuilds.keys().copied().collect();
            for tree in rebuilding {
                self.end_rebuild(core, tree);
            }
            core.floors.wanted.clear();
            core.floors.over.clear();
            core.floors.unhear_all();
        }
        Self::take_roles(core, before);
        self.clear_lost(core, &view);
        if !same {
            self.begin_inheriting(core);
            for asker in std::mem::take(&mut self.early) {
                self.on_inherit(core, asker);
            }
        }
        self.due.clear();
        if core.settings.floor_interval > 0 {
            for tree in core.own_trees() {
                let leads = core
                    .steady_owners(tree)
                    .is_some_and(|owners| owners.first() == Some(&core.node()));
                if leads {
                    self.look_again(core, tree);
                }
            }
        }
    }

    /// From the moment at which this node becomes a stand-in for a partition it takes only later writes.
    fn take_roles(core: &mut Core, before: Option<&Arc<View>>) {
        let Some(view) = core.view.clone() else {
            return;
        };
        let since = core.clock.peek(core.now.wall);
        let (node, first) = (core.node(), u32::from(core.settings.index));
        let step = usize::from(core.settings.count);
        for bucket in &view.config.buckets {
            for index in (first..view.ring.partitions()).step_by(step) {
                let partition = PartitionId(index as u16);
                let stands_in =
                    |view: &View, n: u8| view.ring.stand_ins(n, partition).contains(&node);
                if !stands_in(&view, bucket.n) {
                    continue;
                }
                let held = before.is_some_and(|before| {
                    before
                        .config
                        .bucket_by_id(bucket.id)
                        .is_some_and(|bucket| stands_in(before, bucket.n))
                });
                if !held {
                    core.floors.take_role((bucket.id, partition), since);
                }
            }
        }
    }

    /// What this node does not own, or may lack records of, has no floor here; its closes and promises stay.
    fn clear_lost(&mut self, core: &mut Core, view: &View) {
        let node = core.node();
        let lost = std::mem::take(&mut self.lost);
        let exists = |tree: &TreeId| view.config.bucket_by_id(tree.0).is_some();
        core.floors.inheriting.retain(exists);
        self.inherits.retain(|tree, _| exists(tree));
        self.held.retain(|tree, _| exists(tree));
        for tree in core.floors.trees() {
            let exists = view.config.bucket_by_id(tree.0).is_some();
            if !exists {
                core.floors.forget(tree);
                let key = StateKey::Floor(tree.0, tree.1);
                let id = core.commit(Write::StateDelete { key }, Sync::Fsync);
                self.pending.insert(id, Pending::Cleared);
            } else if (lost || !view.keeps(node, tree.0, tree.1))
                && (core.floors.fall(tree) || self.pending.values().any(|p| p.raises(tree)))
            {
                let id = core.store_mark(tree);
                self.pending.insert(id, Pending::Cleared);
            }
        }
    }

    /// Whether a floor that has fallen is still on its way to disk: until then the node may not say that it
    /// has drained, since it could find the old floor again after it has gained the partition anew.
    pub(crate) fn has_falling(&self) -> bool {
        self.pending
            .values()
            .any(|pending| matches!(pending, Pending::Cleared))
    }

    /// Whether a higher floor of that partition is on its way to disk. Until it is there the mark in memory has the
    /// old one, and may not be stored: it would come after the new one and take its place.
    pub(super) fn is_rising(&self, core: &Core, tree: TreeId) -> bool {
        !core.has(Mutant::FloorOverwritten)
            && self.pending.values().any(|pending| pending.raises(tree))
    }

    /// Whether a floor is on its way to disk.
    pub(crate) fn has_writes(&self) -> bool {
        !self.pending.is_empty()
    }

    /// What has come to be possible: called whenever something happened.
    pub(crate) fn settle(&mut self, core: &mut Core) {
        while let Some(Over { wanted, found }) = core.floors.over.pop_front() {
            match wanted.why {
                Why::Raise => self.on_compared(core, wanted, found.is_some()),
                Why::Rebuild(floor) => self.on_session(core, wanted.tree, floor, found),
            }
        }
    }

    pub(crate) fn housekeeping(&mut self, core: &mut Core) {
        self.go_on_inheriting(core);
        if !core.serving || core.closing || !core.is_settled() {
            return;
        }
        self.ask_again(core);
        self.compare_again(core);
        self.begin_raises(core);
        self.begin_rebuilds(core);
        self.begin_collection(core);
        self.report(core);
    }

    fn report(&mut self, core: &mut Core) {
        let now = core.now.mono;
        if now.since(self.reported) < REPORT_EVERY {
            return;
        }
        self.reported = now;
        for tree in core.own_trees() {
            let dying = core.floors.dying(tree);
            // It was written to while the rest was collected, or a crash came between raise and collection.
            let floor = core.floors.floor(tree);
            let left = !dying.known || dying.earliest.is_some_and(|at| at <= floor);
            if floor > Hlc(0) && left {
                self.want_collection(tree);
            }
        }
        let status = self.status(core);
        core.event(Event::Floors(status));
    }
}

/// Names a tree in messages of the shell.
impl Keeper {
    pub(crate) fn restore(core: &mut Core, bucket: BucketId, partition: PartitionId, bytes: &[u8]) {
        if let Some((tree, mark)) = super::parse_mark(bucket, partition, bytes) {
            core.floors.restore(tree, mark);
        }
    }
}

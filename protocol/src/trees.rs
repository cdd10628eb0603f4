//! The hash trees of a shard's partitions: marked by every write, read anew when they are next compared.
//!
//! Invariants: each commit of a record marks its leaf when it has ended, whatever way the record came; a
//! refresh reads each leaf that was dirty when it was asked for at least once after that. A leaf that is
//! written to while it is read keeps the sum of some moment of that reading and stays dirty.
//! Bounds: a page of [`DIGESTS_MAX`] keys for each reading, [`READS_MAX`] readings at a time, and
//! `tree_bytes_max` for all trees, beyond which new ones get few leaves.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use torc_ring::{BucketId, PartitionId, Token};

use crate::budget::Budget;
use crate::core::Core;
use crate::hlc::Hlc;
use crate::merkle::{DEPTH_MAX, Span, Tree};
use crate::message::RecordKey;
use crate::mutant::Mutant;
use crate::store::{Found, Query, ReadId, StoreError};
use crate::sync_message::{DIGESTS_MAX, Root};

/// Pages that may be read at a time.
const READS_MAX: usize = 4;
/// Depth of trees that are built when there is no room for more.
const DEPTH_CRAMPED: u8 = 2;

/// Names a tree.
pub(crate) type TreeId = (BucketId, PartitionId);

/// The trees, as far as they are known.
#[derive(Debug, Default)]
pub(crate) struct Trees {
    trees: BTreeMap<TreeId, Slot>,
    weight: usize,
}

#[derive(Debug)]
enum Slot {
    /// Read, and no key was there.
    Empty,
    Full(Box<Tree>),
}

impl Slot {
    fn weight(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Full(tree) => tree.weight(),
        }
    }
}

impl Trees {
    /// A record of that key was, or may have been, stored.
    pub(crate) fn mark(&mut self, key: &RecordKey, bits: u8) {
        let partition = key.token.partition(bits);
        match self.trees.get_mut(&(key.bucket, partition)) {
            None => {}
            Some(Slot::Full(tree)) => {
                let span = Span { partition, bits };
                tree.mark(span.leaf(key.token, tree.depth()));
            }
            Some(slot @ Slot::Empty) => {
                let mut tree = Tree::empty();
                tree.mark(0);
                self.weight += tree.weight();
                *slot = Slot::Full(Box::new(tree));
            }
        }
    }

    /// Makes the next reading of the leaf a reading from disk, whether or not it was written to.
    pub(crate) fn distrust(&mut self, id: TreeId, leaf: usize) {
        if let Some(Slot::Full(tree)) = self.trees.get_mut(&id) {
            tree.mark(leaf);
        }
    }

    /// Number of leaves; 0 where nothing is known or nothing is stored.
    pub(crate) fn leaves(&self, id: TreeId) -> usize {
        match self.trees.get(&id) {
            Some(Slot::Full(tree)) => tree.leaves(),
            Some(Slot::Empty) | None => 0,
        }
    }

    /// The next tree in order that has leaves.
    pub(crate) fn after(&self, id: TreeId) -> Option<TreeId> {
        let next = (id.0, PartitionId(id.1.0.saturating_add(1)));
        let mut behind = self.trees.range(next..);
        let full = behind.find(|&(&at, slot)| at != id && matches!(slot, Slot::Full(_)));
        full.map(|(&at, _)| at)
    }

    pub(crate) fn is_fresh(&self, id: TreeId) -> bool {
        match self.trees.get(&id) {
            None => false,
            Some(Slot::Empty) => true,
            Some(Slot::Full(tree)) => tree.dirty() == 0,
        }
    }

    fn contains(&self, id: TreeId) -> bool {
        self.trees.contains_key(&id)
    }

    /// As it was last read; `None` when it never was.
    pub(crate) fn root(&self, id: TreeId) -> Option<Root> {
        Some(match self.trees.get(&id)? {
            Slot::Empty => Root {
                sum: 0,
                depth: 0,
                keys: 0,
                floor: Hlc(0),
                whole: true,
            },
            Slot::Full(tree) => Root {
                sum: tree.sum(0, 0)?,
                depth: tree.depth(),
                keys: tree.keys(),
                floor: Hlc(0),
                whole: true,
            },
        })
    }

    /// The sum of a node; `None` where there is none such.
    pub(crate) fn sum(&self, id: TreeId, depth: u8, at: usize) -> Option<u128> {
        match self.trees.get(&id)? {
            Slot::Empty => (depth == 0 && at == 0).then_some(0),
            Slot::Full(tree) => tree.sum(depth, at),
        }
    }

    /// Drops what is not wanted any more.
    pub(crate) fn retain(&mut self, keep: impl Fn(TreeId) -> bool) {
        self.trees.retain(|&id, _| keep(id));
        self.weight = self.trees.values().map(Slot::weight).sum();
    }

    /// All trees for the disk.
    pub(crate) fn encode(&self) -> impl Iterator<Item = (TreeId, Bytes)> {
        self.trees.iter().filter_map(|(&id, slot)| match slot {
            Slot::Empty => Some((id, Bytes::new())),
            Slot::Full(tree) => Some((id, tree.encode()?)),
        })
    }

    /// Takes over a tree that an earlier life wrote down when it stopped; one that is malformed is not there.
    pub(crate) fn restore(&mut self, id: TreeId, bytes: Bytes) {
        if bytes.is_empty() {
            self.put(id, Slot::Empty);
        } else if let Some(tree) = Tree::decode(bytes) {
            self.put(id, Slot::Full(Box::new(tree)));
        }
    }

    fn put(&mut self, id: TreeId, slot: Slot) {
        self.weight += slot.weight();
        let old = self.trees.insert(id, slot);
        self.weight -= old.map_or(0, |old| old.weight());
    }

    fn full(&mut self, id: TreeId) -> Option<&mut Tree> {
        match self.trees.get_mut(&id) {
            Some(Slot::Full(tree)) => Some(tree),
            Some(Slot::Empty) | None => None,
        }
    }
}

/// Brings trees up to date.
#[derive(Debug, Default)]
pub(crate) struct Refresher {
    jobs: BTreeMap<TreeId, Job>,
    /// Jobs whose next page waits to be read.
    queue: VecDeque<TreeId>,
    reads: BTreeMap<ReadId, TreeId>,
    rounds: u64,
    ended: Vec<Ended>,
}

/// One round of bringing a tree up to date is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) id: TreeId,
    pub(crate) round: u64,
    pub(crate) ok: bool,
    /// Bytes that were read for it.
    pub(crate) bytes: u64,
}

#[derive(Debug)]
struct Job {
    round: u64,
    /// Somebody asked while it was running: another round follows.
    next: Option<u64>,
    started: bool,
    /// The leaf that is being read, and the last one of its row.
    leaf: usize,
    last: Option<usize>,
    sum: u128,
    keys: u32,
    after: Option<(Token, Bytes)>,
    bytes: u64,
}

impl Job {
    fn new(round: u64) -> Self {
        Self {
            round,
            next: None,
            started: false,
            leaf: 0,
            last: None,
            sum: 0,
            keys: 0,
            after: None,
            bytes: 0,
        }
    }

    fn finish_leaf(&mut self, tree: &mut Tree) {
        tree.set(self.leaf, self.sum, self.keys);
        (self.sum, self.keys) = (0, 0);
        self.leaf += 1;
    }
}

impl Refresher {
    /// Asks for a tree without dirty leaves; `None` when it is so already, else the round to wait for.
    pub(crate) fn refresh(&mut self, core: &mut Core, id: TreeId) -> Option<u64> {
        if core.trees.is_fresh(id) && !self.jobs.contains_key(&id) {
            return None;
        }
        if !core.trees.contains(id) {
            let tree = Tree::unknown(depth_max(core));
            core.trees.put(id, Slot::Full(Box::new(tree)));
        }
        if let Some(job) = self.jobs.get_mut(&id) {
            if !job.started {
                return Some(job.round);
            }
            if job.next.is_none() {
                self.rounds += 1;
                job.next = Some(self.rounds);
            }
            return job.next;
        }
        self.rounds += 1;
        self.jobs.insert(id, Job::new(self.rounds));
        self.queue.push_back(id);
        Some(self.rounds)
    }

    /// Reads the next pages, as far as the budget allows; answers how long it has to wait otherwise.
    pub(crate) fn pump(&mut self, core: &mut Core, budget: &Budget) -> Option<u64> {
        while self.reads.len() < READS_MAX {
            if self.queue.is_empty() {
                return None;
            }
            let wait = budget.wait(core.now.mono);
            if wait > 0 {
                return Some(wait);
            }
            if let Some(id) = self.queue.pop_front() {
                self.read(core, id);
            }
        }
        None
    }

    /// What has come to an end since it was last asked.
    pub(crate) fn take_ended(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
    }

    fn read(&mut self, core: &mut Core, id: TreeId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.started = true;
        let span = span(core, id);
        let Some(tree) = core.trees.full(id) else {
            self.end(core, id, true);
            return;
        };
        if job.last.is_none() {
            let Some((first, last)) = tree.dirty_run(job.leaf) else {
                self.complete(core, id);
                return;
            };
            (job.leaf, job.last) = (first, Some(last));
        }
        let last = job.last.unwrap_or(job.leaf);
        // A leaf of which a part has been read goes on being watched since its beginning.
        let unread = job.leaf + usize::from(job.after.is_some());
        tree.begin(unread, last);
        let (first, last) = span.tokens(tree.depth(), job.leaf, last);
        let query = Query::Digests {
            bucket: id.0,
            first,
            last,
            after: job.after.clone(),
            limit: DIGESTS_MAX,
        };
        let read = core.read(query);
        self.reads.insert(read, id);
    }

    /// The disk answered; answers whether it was a question of ours.
    pub(crate) fn on_read(
        &mut self,
        core: &mut Core,
        budget: &mut Budget,
        read: ReadId,
        result: &Result<Found, StoreError>,
    ) -> bool {
        let Some(id) = self.reads.remove(&read) else {
            return false;
        };
        let Ok(Found::Digests {
            entries,
            reached,
            bytes,
        }) = result
        else {
            self.end(core, id, false);
            return true;
        };
        budget.take(*bytes, core.now.mono);
        let span = span(core, id);
        let key = core.tree_key.clone();
        let (Some(job), Some(tree), Some(key)) = (self.jobs.get_mut(&id), core.trees.full(id), key)
        else {
            self.end(core, id, false);
            return true;
        };
        job.bytes += *bytes;
        let last = job.last.unwrap_or(job.leaf);
        let floor = core.floors.floor(id);
        for entry in entries {
            if entry.dead_at.is_some_and(|at| at <= floor) {
                continue;
            }
            let leaf = span.leaf(entry.token, tree.depth());
            while job.leaf < leaf.min(last) {
                job.finish_leaf(tree);
            }
            job.sum = job.sum.wrapping_add(key.hash(&entry.key, &entry.digest));
            job.keys = job.keys.saturating_add(1);
        }
        job.after.clone_from(reached);
        if reached.is_none() {
            while job.leaf <= last {
                job.finish_leaf(tree);
            }
            job.last = None;
        }
        self.queue.push_back(id);
        true
    }

    /// All dirty leaves have been read: gives the tree the leaves that its keys need.
    fn complete(&mut self, core: &mut Core, id: TreeId) {
        let depth_max = depth_max(core);
        let Some(tree) = core.trees.full(id) else {
            self.end(core, id, true);
            return;
        };
        if tree.is_outgrown(depth_max) {
            core.trees
                .put(id, Slot::Full(Box::new(Tree::unknown(depth_max))));
            if let Some(job) = self.jobs.get_mut(&id) {
                let (round, next, bytes) = (job.round, job.next, job.bytes);
                *job = Job {
                    next,
                    started: true,
                    bytes,
                    ..Job::new(round)
                };
                self.queue.push_back(id);
            }
            return;
        }
        let keys = tree.keys();
        let fitting = Tree::fitting(keys.saturating_mul(2), DEPTH_MAX);
        if keys == 0 && tree.dirty() == 0 {
            core.trees.put(id, Slot::Empty);
        } else if fitting < tree.depth() {
            let folded = tree.clone().folded(fitting);
            core.trees.put(id, Slot::Full(Box::new(folded)));
        }
        self.end(core, id, true);
    }

    fn end(&mut self, core: &mut Core, id: TreeId, ok: bool) {
        let Some(job) = self.jobs.remove(&id) else {
            return;
        };
        self.ended.push(Ended {
            id,
            round: job.round,
            ok,
            bytes: job.bytes,
        });
        if let Some(round) = job.next {
            if core.trees.is_fresh(id) {
                self.ended.push(Ended {
                    id,
                    round,
                    ok: true,
                    bytes: 0,
                });
            } else {
                self.jobs.insert(id, Job::new(round));
                self.queue.push_back(id);
            }
        }
    }
}

fn span(core: &Core, id: TreeId) -> Span {
    Span {
        partition: id.1,
        bits: core.partition_bits(),
    }
}

fn depth_max(core: &Core) -> u8 {
    if core.trees.weight < core.settings.tree_bytes_max {
        DEPTH_MAX
    } else {
        DEPTH_CRAMPED
    }
}

/// A write has ended: every way of writing records comes by here.
pub(crate) fn wrote(core: &mut Core, key: &RecordKey) {
    if core.has(Mutant::LeafForgotten) {
        return;
    }
    let bits = core.partition_bits();
    core.trees.mark(key, bits);
}

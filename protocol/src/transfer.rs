//! What a shard must receive before a ring change may switch: for each partition that it gains or keeps in
//! the target ring and that moves, a majority of the current owners is covered. And what it must receive before
//! a node that may have lost records counts again: for each partition that it owns, half of the owners (rounded
//! up) and none of them itself, or all others.
//!
//! Invariant: a source counts only after a whole session with it, at this joint ring version, each side
//! having durably applied and drained it; a node that is a current owner itself counts itself. It counts only
//! for a copy whose floor is no higher than this one's: a higher one is taken over first, by a rebuild, since
//! below it absence is information that this copy would not have. A shard is complete when all its copies are,
//! the closes of the owners before are known, and one fsync has put everything that was received on disk.
//! Progress is of this ring version only and is not stored: after a crash the trees tell what is still missing.
//! Source: protocol, section 4, step 3. One source alone may lack acknowledged writes, and so may an owner
//! that stays.

use std::collections::{BTreeMap, BTreeSet};

use torc_ring::{BucketId, Config, NodeId, PartitionId, RingVersion};

use crate::antientropy::PairId;
use crate::core::Core;
use crate::mutant::Mutant;
use crate::shard_io::{Event, Output};
use crate::store::{CommitId, Sync};
use crate::time::{Mono, SECOND};
use crate::trees::TreeId;

/// After a failed session its source waits so long, in microseconds.
const BACKOFF: u64 = SECOND / 2;
/// How often progress is told, in microseconds.
const REPORT_EVERY: u64 = SECOND;

#[derive(Debug)]
pub(crate) struct Coverage {
    ring: RingVersion,
    items: BTreeMap<(PartitionId, BucketId), Item>,
    /// The same, by their trees.
    open: BTreeSet<TreeId>,
    total: u64,
    backoff: BTreeMap<PairId, Mono>,
    /// Received so far.
    pub(crate) bytes: u64,
    reported: Option<Mono>,
    end: End,
}

/// How far the end of it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Something is missing.
    Open,
    /// All is here; the disk is asked to sync it: what pages brought, and what a comparison found equal, which
    /// may have come as a write under `interval` or `os`. The former owners are about to drop theirs.
    Syncing(CommitId),
    /// It was said.
    Announced,
}

/// A partition of a bucket that is not complete.
#[derive(Debug)]
struct Item {
    /// Sources that are still missing.
    missing: usize,
    /// Current owners that are not covered yet, in the order in which they are tried.
    sources: Vec<NodeId>,
}

impl Coverage {
    /// What there is to do in the present config; `None` when it is not a joint one, and this node lacks
    /// nothing.
    pub(crate) fn new(core: &mut Core) -> Option<Self> {
        let view = core.view.clone()?;
        let node = core.node();
        let recovers = view.config.recovers(node);
        if view.config.target.is_none() && !recovers {
            return None;
        }
        let mut items = BTreeMap::new();
        let shard = u32::from(core.settings.index);
        let step = usize::from(core.settings.count);
        for index in (shard..view.ring.partitions()).step_by(step) {
            let partition = PartitionId(index as u16);
            for bucket in &view.config.buckets {
                // There are target owners only where it moves.
                let owners = view.ring.owners_of(bucket, partition);
                let gains = owners.target.is_some_and(|target| target.contains(&node));
                let lacks = recovers && owners.current.contains(&node);
                if !(gains || lacks) || !crate::repair::is_merged(bucket.conflict) {
                    continue;
                }
                let owners = (owners.current, &view.config);
                if let Some(item) = Item::new(core, owners, usize::from(partition.0)) {
                    items.insert((partition, bucket.id), item);
                }
            }
        }
        let mut coverage = Self {
            ring: view.config.ring_version,
            total: items.len() as u64,
            open: items.keys().map(|&(p, bucket)| (bucket, p)).collect(),
            items,
            backoff: BTreeMap::new(),
            bytes: 0,
            reported: None,
            end: End::Open,
        };
        coverage.announce(core);
        Some(coverage)
    }

    /// Copies that are not complete.
    pub(crate) fn open(&self) -> &BTreeSet<TreeId> {
        &self.open
    }

    /// A config of the same ring version holds: nothing has to come of buckets that are gone. (One that is new
    /// has had joint quorums from its first write on.)
    pub(crate) fn forget_buckets(&mut self, core: &mut Core) {
        let Some(view) = core.view.clone() else {
            return;
        };
        self.items
            .retain(|(_, bucket), _| view.config.bucket_by_id(*bucket).is_some());
        self.announce(core);
    }

    /// The next session: a partition that none is held about, one of its sources, and the buckets that need
    /// it.
    pub(crate) fn next(
        &self,
        core: &Core,
        busy: &BTreeSet<PartitionId>,
    ) -> Option<(PairId, Vec<BucketId>)> {
        let now = core.now.mono;
        let may = |pair: PairId| {
            !core.dead.contains(&pair.1) && self.backoff.get(&pair).is_none_or(|&at| at <= now)
        };
        let rebuilding = |partition: PartitionId| {
            let all = (partition, BucketId(0))..=(partition, BucketId(u32::MAX));
            let mut items = self.items.range(all);
            items.any(|(&(_, bucket), _)| core.floors.is_rebuilding((bucket, partition)))
        };
        let wanted = self
            .items
            .iter()
            .filter(|((partition, _), _)| !busy.contains(partition) && !rebuilding(*partition));
        for (&(partition, _), item) in wanted {
            let source = item
                .sources
                .iter()
                .find(|&&source| may((partition, source)));
            let Some(&source) = source else { continue };
            let all = (partition, BucketId(0))..=(partition, BucketId(u32::MAX));
            let buckets = self
                .items
                .range(all)
                .filter(|(_, item)| item.sources.contains(&source))
                .map(|(&(_, bucket), _)| bucket)
                .collect();
            return Some(((partition, source), buckets));
        }
        None
    }

    /// A session with a source ended.
    pub(crate) fn ended(&mut self, core: &mut Core, pair: PairId, buckets: &[BucketId], ok: bool) {
        let (partition, source) = pair;
        if !ok {
            let again = core.now.mono.plus(BACKOFF);
            self.backoff.insert(pair, again);
            return;
        }
        for &bucket in buckets {
            let at = (partition, bucket);
            let Some(item) = self.items.get_mut(&at) else {
                continue;
            };
            let before = item.sources.len();
            item.sources.retain(|&other| other != source);
            item.missing = item.missing.saturating_sub(before - item.sources.len());
            if item.missing == 0 {
                self.items.remove(&at);
                self.open.remove(&(bucket, partition));
            }
        }
        self.announce(core);
    }

    /// Says once that everything is here, when it is on disk for good.
    pub(crate) fn announce(&mut self, core: &mut Core) {
        // A write that counted because of a hint may be at no owner: it is delivered, to the target owners
        // too, before any of them calls itself complete by what the others have, and before a leaver goes.
        if self.end != End::Open {
            return;
        }
        let owes = core.counted_hints > 0 && !core.has(Mutant::CountedHintsLeft);
        let inherits = !core.floors.inheriting.is_empty() && !core.has(Mutant::ClosesNotAwaited);
        if !self.items.is_empty() || owes || inherits {
            return;
        }
        if self.total == 0 || core.has(Mutant::CoveredUnsynced) {
            self.say(core);
        } else {
            self.end = End::Syncing(core.commit_all(Vec::new(), Sync::Fsync));
        }
    }

    fn say(&mut self, core: &mut Core) {
        self.end = End::Announced;
        self.tell(core);
        core.out.push_back(Output::Covered(self.ring));
    }

    /// A commit ended; answers whether it was the one that ends this.
    pub(crate) fn on_committed(&mut self, core: &mut Core, id: CommitId, ok: bool) -> bool {
        if self.end != End::Syncing(id) {
            return false;
        }
        if ok {
            self.say(core);
        } else {
            self.end = End::Open;
        }
        true
    }

    pub(crate) fn report(&mut self, core: &mut Core) {
        self.announce(core);
        let now = core.now.mono;
        if self.end != End::Announced
            && self.reported.is_none_or(|at| now.since(at) >= REPORT_EVERY)
        {
            self.reported = Some(now);
            self.tell(core);
        }
    }

    fn tell(&self, core: &mut Core) {
        core.event(Event::Progress {
            ring: self.ring,
            done: self.total - self.items.len() as u64,
            total: self.total,
            bytes: self.bytes,
        });
    }
}

impl Item {
    /// `None` when nothing has to come.
    fn new(core: &Core, (owners, config): (&[NodeId], &Config), rotation: usize) -> Option<Self> {
        let node = core.node();
        let counts = |o: NodeId| !config.recovers(o) || core.has(Mutant::RecoveringCounts);
        let retained = owners.contains(&node);
        let others = || owners.iter().copied().filter(|&other| other != node);
        let mut sources: Vec<NodeId> = others().filter(|&other| counts(other)).collect();
        let mut missing = owners.len() / 2 + 1;
        if retained && counts(node) {
            missing -= 1;
        } else if retained {
            // Of what a majority has acknowledged, this node among them, every half of the owners holds a copy.
            missing = owners.len().div_ceil(2);
            if sources.len() < missing {
                sources = others().collect();
                missing = sources.len();
            }
        }
        if core.has(Mutant::SingleSource) {
            missing = missing.min(1);
        }
        if retained && core.has(Mutant::RetainedNotCovered) {
            missing = 0;
        }
        if !sources.is_empty() {
            let first = rotation % sources.len();
            sources.rotate_left(first);
        }
        (missing > 0).then_some(Self { missing, sources })
    }
}

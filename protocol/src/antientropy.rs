//! When which partition is compared with which other owner: continuously, the newest doubt first, then what
//! has been unverified for longest.
//!
//! A pair is a partition and another owner of it; a session compares all buckets that the two share there.
//! Pairs are spread over time so that a round of all of them takes a fraction of the age that is aimed at;
//! doubts (a dropped hint, a node that came back, a finished ring change, somebody's wish) do not wait.
//! Bounds: one entry for each pair; [`NOTICES_MAX`] notices for other nodes, beyond which the oldest is
//! given up (the round finds what it spoke of); a slow scan makes one leaf after the other be read anew.

use std::collections::{BTreeMap, BTreeSet};

use torc_ring::{Bucket, BucketId, NodeId, PartitionId, RingVersion};

use crate::budget::Budget;
use crate::core::Core;
use crate::hlc::Hlc;
use crate::message::{OpId, PeerBody};
use crate::shard_io::Event;
use crate::sync_message::{SyncAsk, SyncBody, SyncMessage};
use crate::time::{Mono, Now, SECOND};
use crate::trees::{Ended, Refresher, TreeId};

/// A round of all pairs takes the aimed-at age divided by this, when nothing is in doubt.
const ROUNDS: u64 = 4;
/// After a failed session the pair waits so long, doubled each time up to the greatest, in microseconds.
const BACKOFF: u64 = SECOND / 2;
const BACKOFF_MAX: u64 = 30 * SECOND;
/// Notices to other nodes that wait for an answer.
const NOTICES_MAX: usize = 4_096;
/// A notice is repeated after so long, in microseconds, and given up after so many times.
const NOTICE_EVERY: u64 = 5 * SECOND;
const NOTICE_TRIES: u32 = 60;
/// Notices that are sent in one go.
const NOTICES_AT_ONCE: usize = 64;
/// How often the age is told, in microseconds.
const REPORT_EVERY: u64 = SECOND;
/// Leaves that the slow scan has read anew in one go.
const SCRUB_LEAVES: usize = 16;
/// A round of the slow scan takes at least so many times the aimed-at age, however little there is to read.
const SCRUB_ROUND: u64 = 6;

/// Another owner of a partition.
pub(crate) type PairId = (PartitionId, NodeId);

#[derive(Debug)]
pub(crate) struct Schedule {
    pairs: BTreeMap<PairId, Pair>,
    /// Partitions of which a session is held: two at a time would bring over the same keys twice.
    busy: BTreeSet<PartitionId>,
    /// Doubts by time, the newest last, so that it is found at once.
    doubts: BTreeSet<(Mono, PairId)>,
    notices: BTreeMap<(PartitionId, NodeId, NodeId), Notice>,
    last_start: Mono,
    reported: Mono,
    scrub: Scrub,
}

#[derive(Clone, Copy, Debug)]
struct Pair {
    /// Both copies are known to have agreed at that moment.
    verified: Mono,
    doubt: Option<Mono>,
    not_before: Mono,
    failures: u32,
}

/// Tells an owner that another one's copy may lack writes.
#[derive(Clone, Copy, Debug)]
struct Notice {
    session: OpId,
    due: Mono,
    tries: u32,
}

#[derive(Debug)]
struct Scrub {
    budget: Budget,
    on: bool,
    at: (TreeId, usize),
    round: Mono,
    reading: Option<(TreeId, u64)>,
}

impl Schedule {
    pub(crate) fn new(core: &Core) -> Self {
        let rate = core.settings.scrub_rate;
        Self {
            pairs: BTreeMap::new(),
            busy: BTreeSet::new(),
            doubts: BTreeSet::new(),
            notices: BTreeMap::new(),
            last_start: core.now.mono,
            reported: core.now.mono,
            scrub: Scrub {
                budget: Budget::new(rate),
                on: rate > 0,
                at: (FIRST_TREE, 0),
                round: core.now.mono,
                reading: None,
            },
        }
    }

    /// Takes over the pairs of the present config. In a ring change, partitions that move are left to its
    /// coverage.
    pub(crate) fn rebuild(&mut self, core: &Core) {
        let Some(view) = core.view.as_ref() else {
            return;
        };
        let (node, now) = (core.node(), core.now.mono);
        let mut before = std::mem::take(&mut self.pairs);
        let shard = u32::from(core.settings.index);
        let step = usize::from(core.settings.count);
        // One of those that have the same owners everywhere.
        let kinds: BTreeMap<(u8, u8), &Bucket> = view
            .config
            .buckets
            .iter()
            .map(|bucket| ((bucket.n, view.config.target_replicas(bucket)), bucket))
            .collect();
        for index in (shard..view.ring.partitions()).step_by(step) {
            let partition = PartitionId(index as u16);
            for bucket in kinds.values() {
                let owners = view.ring.owners_of(bucket, partition);
                if !owners.current.contains(&node) || owners.target.is_some() {
                    continue;
                }
                for &peer in owners.current.iter().filter(|&&peer| peer != node) {
                    let id = (partition, peer);
                    let fresh = Pair {
                        verified: now,
                        doubt: None,
                        not_before: now,
                        failures: 0,
                    };
                    let pair = before.remove(&id).unwrap_or(fresh);
                    self.pairs.entry(id).or_insert(pair);
                }
            }
        }
        let pairs = &self.pairs;
        self.doubts.retain(|(_, id)| pairs.contains_key(id));
    }

    // ---- doubts

    pub(crate) fn doubt(&mut self, now: Now, id: PairId) {
        let Some(pair) = self.pairs.get_mut(&id) else {
            return;
        };
        if let Some(old) = pair.doubt.replace(now.mono) {
            self.doubts.remove(&(old, id));
        }
        (pair.failures, pair.not_before) = (0, now.mono);
        self.doubts.insert((now.mono, id));
    }

    /// The node was away, and may have missed anything.
    pub(crate) fn doubt_node(&mut self, now: Now, node: NodeId) {
        self.doubt_where(now, |(_, peer)| peer == node);
    }

    pub(crate) fn doubt_all(&mut self, now: Now) {
        self.doubt_where(now, |_| true);
    }

    fn doubt_where(&mut self, now: Now, which: impl Fn(PairId) -> bool) {
        let ids: Vec<PairId> = self.pairs.keys().copied().filter(|&id| which(id)).collect();
        for id in ids {
            self.doubt(now, id);
        }
    }

    /// The other side has compared.
    pub(crate) fn verified(&mut self, core: &Core, id: PairId, age_us: u64) {
        let since = Mono(core.now.mono.0.saturating_sub(age_us));
        self.settle(id, since);
    }

    fn settle(&mut self, id: PairId, since: Mono) {
        let Some(pair) = self.pairs.get_mut(&id) else {
            return;
        };
        pair.verified = pair.verified.max(since);
        // A doubt that came up after the session had begun stays.
        if let Some(doubt) = pair.doubt.filter(|&doubt| doubt <= since) {
            pair.doubt = None;
            self.doubts.remove(&(doubt, id));
        }
    }

    // ---- sessions

    /// The pair that is to be compared next, and the buckets that both own there.
    pub(crate) fn next(&mut self, core: &Core) -> Option<(PairId, Vec<BucketId>)> {
        let now = core.now.mono;
        let may = |id: PairId, pair: &Pair| {
            !self.busy.contains(&id.0) && pair.not_before <= now && !core.dead.contains(&id.1)
        };
        let doubted = self
            .doubts
            .iter()
            .rev()
            .map(|&(_, id)| id)
            .find(|&id| self.pairs.get(&id).is_some_and(|pair| may(id, pair)));
        let id = match doubted {
            Some(id) => id,
            None => self.longest_unverified(core, may)?,
        };
        let buckets = shared_buckets(core, id);
        self.busy.insert(id.0);
        self.last_start = now;
        Some((id, buckets))
    }

    fn longest_unverified(
        &self,
        core: &Core,
        may: impl Fn(PairId, &Pair) -> bool,
    ) -> Option<PairId> {
        let target = core.settings.antientropy_age_target;
        let now = core.now.mono;
        let pace = target / ROUNDS / (self.pairs.len() as u64 + 1);
        if now.since(self.last_start) < pace {
            return None;
        }
        let (&id, _) = self
            .pairs
            .iter()
            .filter(|&(&id, pair)| {
                // The greater of the two begins only what the lesser has not.
                let patience = if core.node() < id.1 { 4 } else { 2 };
                now.since(pair.verified) >= target / patience && may(id, pair)
            })
            .min_by_key(|(_, pair)| pair.verified)?;
        Some(id)
    }

    /// A session ended; `started` when both sides agree since then.
    pub(crate) fn ended(&mut self, core: &Core, id: PairId, started: Option<Mono>) {
        self.busy.remove(&id.0);
        if let Some(pair) = self.pairs.get_mut(&id) {
            if started.is_some() {
                pair.failures = 0;
            } else {
                let wait = (BACKOFF << pair.failures.min(8)).min(BACKOFF_MAX);
                pair.failures += 1;
                pair.not_before = core.now.mono.plus(wait);
            }
        }
        if let Some(started) = started {
            self.settle(id, started);
        }
    }

    // ---- from time to time

    pub(crate) fn housekeeping(&mut self, core: &mut Core) {
        self.take_doubts(core);
        self.send_notices(core);
        let now = core.now.mono;
        if now.since(self.reported) < REPORT_EVERY {
            return;
        }
        self.reported = now;
        let oldest = self.pairs.values().map(|pair| pair.verified).min();
        core.event(Event::Agreement {
            age_us: oldest.map_or(0, |verified| now.since(verified)),
            pairs: self.pairs.len() as u64,
            doubts: self.doubts.len() as u64,
        });
    }

    /// Hints were dropped: the copy of their target is compared with each other owner's.
    fn take_doubts(&mut self, core: &mut Core) {
        let Some(view) = core.view.clone() else {
            return;
        };
        let now = core.now;
        for (partition, target) in std::mem::take(&mut core.doubts) {
            let owners: BTreeSet<NodeId> = view
                .ring
                .replica_counts()
                .flat_map(|n| view.ring.owners(n, partition))
                .copied()
                .collect();
            if !owners.contains(&target) {
                continue;
            }
            for &owner in owners.iter().filter(|&&owner| owner != target) {
                if owner == core.node() {
                    self.doubt(now, (partition, target));
                    continue;
                }
                if self.notices.len() >= NOTICES_MAX {
                    self.notices.pop_first();
                }
                let notice = Notice {
                    session: core.new_op(),
                    due: now.mono,
                    tries: 0,
                };
                self.notices.insert((partition, target, owner), notice);
            }
        }
    }

    fn send_notices(&mut self, core: &mut Core) {
        let now = core.now.mono;
        let due: Vec<_> = self
            .notices
            .iter()
            .filter(|(_, notice)| notice.due <= now)
            .map(|(&id, _)| id)
            .take(NOTICES_AT_ONCE)
            .collect();
        for id in due {
            let Some(notice) = self.notices.get_mut(&id) else {
                continue;
            };
            notice.due = now.plus(NOTICE_EVERY);
            notice.tries += 1;
            let (partition, node, owner) = id;
            let message = SyncMessage {
                session: notice.session,
                number: 0,
                ring: core.ring_version(),
                partition,
                floor: Hlc(0),
                body: SyncBody::Ask {
                    remaining_us: NOTICE_EVERY as u32,
                    ask: SyncAsk::Doubt { node },
                },
            };
            if notice.tries >= NOTICE_TRIES {
                self.notices.remove(&id);
            }
            core.send(owner, PeerBody::Sync(message));
        }
    }

    /// An owner has taken note.
    pub(crate) fn noted(&mut self, session: OpId, from: NodeId) {
        self.notices
            .retain(|&(_, _, owner), notice| (notice.session, owner) != (session, from));
    }

    // ---- the slow scan

    /// Has the next leaves read from disk although nothing was written to them: what is lost or rotten there
    /// shows in the sums, or as an error.
    pub(crate) fn scrub(&mut self, core: &mut Core, refresher: &mut Refresher) {
        let scrub = &mut self.scrub;
        if !scrub.on
            || core.ring_version() == RingVersion(0)
            || scrub.reading.is_some()
            || scrub.budget.wait(core.now.mono) > 0
        {
            return;
        }
        let (id, first) = scrub.at;
        let leaves = core.trees.leaves(id);
        if first >= leaves {
            if let Some(next) = core.trees.after(id) {
                scrub.at = (next, 0);
                return;
            }
            let least = core.settings.antientropy_age_target * SCRUB_ROUND;
            if core.now.mono.since(scrub.round) >= least {
                (scrub.at, scrub.round) = ((FIRST_TREE, 0), core.now.mono);
            }
            return;
        }
        let end = (first + SCRUB_LEAVES).min(leaves);
        for leaf in first..end {
            core.trees.distrust(id, leaf);
        }
        scrub.at.1 = end;
        scrub.reading = refresher.refresh(core, id).map(|round| (id, round));
    }

    /// A tree was brought up to date.
    pub(crate) fn on_tree(&mut self, core: &Core, ended: &Ended) {
        if self
            .scrub
            .reading
            .is_some_and(|(id, round)| id == ended.id && round <= ended.round)
        {
            self.scrub.reading = None;
            self.scrub.budget.take(ended.bytes, core.now.mono);
        }
    }
}

const FIRST_TREE: TreeId = (BucketId(0), PartitionId(0));

/// The buckets of which both this node and the other one own the partition.
fn shared_buckets(core: &Core, (partition, peer): PairId) -> Vec<BucketId> {
    let Some(view) = core.view.as_ref() else {
        return Vec::new();
    };
    let shared = view.config.buckets.iter().filter(|bucket| {
        let owners = view.ring.owners_of(bucket, partition);
        crate::repair::is_merged(bucket.conflict)
            && owners.target.is_none()
            && owners.contains(core.node())
            && owners.contains(peer)
    });
    shared.map(|bucket| bucket.id).collect()
}

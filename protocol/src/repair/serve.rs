//! The answering side of a session. It remembers a question only until it is answered.

use std::collections::BTreeMap;

use torc_ring::{BucketId, ConflictMode, NodeId, PartitionId, RingVersion, Token};

use super::diff::{cursor, record_key};
use super::{Asker, Cx, Purpose, Reader, Then};
use crate::core::{Core, Step};
use crate::hlc::Hlc;
use crate::message::{Cursor, OpId, PeerBody};
use crate::store::{DigestEntry, Found, Query, StoreError};
use crate::sync_message::{
    DIGESTS_MAX, KEYS_MAX, Root, SUMS_MAX, SYNC_BYTES_MAX, SyncAnswer, SyncAsk, SyncBody,
    SyncEntry, SyncMessage, SyncRefusal,
};
use crate::time::{MS, SECOND};
use crate::trees::Ended;

/// Questions that may wait for trees; further ones are put off.
const WAITERS_MAX: usize = 256;
/// Questions that may wait for the disk; further ones are put off.
const ANSWERS_MAX: usize = 64;

/// A question that waits for trees to be read.
#[derive(Debug)]
pub(super) struct Waiter {
    asker: Asker,
    buckets: Vec<BucketId>,
    missing: BTreeMap<BucketId, u64>,
}

/// A question in work.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) from: NodeId,
    pub(super) session: OpId,
    pub(super) number: u32,
    pub(super) ring: RingVersion,
    pub(super) partition: PartitionId,
    pub(super) remaining_us: u32,
    /// The asking side's floor.
    pub(super) floor: Hlc,
    pub(super) ask: SyncAsk,
}

impl Asker {
    fn new(core: &Core, question: &Question) -> Self {
        Self {
            node: question.from,
            session: question.session,
            number: question.number,
            ring: question.ring,
            partition: question.partition,
            bucket: question.ask.bucket(),
            deadline: core.now.mono.plus(u64::from(question.remaining_us)),
        }
    }

    pub(super) fn answer(&self, core: &mut Core, answer: SyncAnswer) {
        let floor = |bucket| core.floors.floor((bucket, self.partition));
        let floor = self.bucket.map_or(Hlc(0), floor);
        let message = SyncMessage {
            session: self.session,
            number: self.number,
            ring: self.ring,
            partition: self.partition,
            floor,
            body: SyncBody::Answer(answer),
        };
        core.send(self.node, PeerBody::Sync(message));
    }
}

/// Takes a question; answers a question that has to wait for trees.
pub(super) fn on_question(cx: &mut Cx<'_>, waiters: &mut Vec<Waiter>, question: Question) {
    let asker = Asker::new(cx.core, &question);
    if let Err(refusal) = admit(cx, &question) {
        asker.answer(cx.core, SyncAnswer::Refused(refusal));
        return;
    }
    let partition = question.partition;
    match question.ask {
        SyncAsk::Roots { buckets } => {
            let mut missing = BTreeMap::new();
            for &bucket in &buckets {
                if let Some(round) = cx.shared.refresher.refresh(cx.core, (bucket, partition)) {
                    missing.insert(bucket, round);
                }
            }
            let waiter = Waiter {
                asker,
                buckets,
                missing,
            };
            if waiter.missing.is_empty() {
                answer_roots(cx, &waiter);
            } else if waiters.len() < WAITERS_MAX {
                waiters.push(waiter);
            } else {
                asker_of(waiter).answer(cx.core, busy(SECOND));
            }
        }
        SyncAsk::Sums {
            bucket,
            depth,
            nodes,
        } => {
            let id = (bucket, partition);
            let answer = match cx.core.trees.root(id) {
                None => SyncAnswer::Refused(SyncRefusal::Failed),
                Some(root) => {
                    let sum = |&node: &u16| cx.core.trees.sum(id, depth, usize::from(node));
                    let sums: Option<Vec<u128>> = nodes.iter().map(sum).collect();
                    SyncAnswer::Sums {
                        depth: root.depth,
                        sums: sums.unwrap_or_default(),
                    }
                }
            };
            asker.answer(cx.core, answer);
        }
        SyncAsk::Digests {
            bucket,
            range: (first, last),
            after,
        } => {
            let query = Query::Digests {
                bucket,
                first,
                last,
                after: after.map(|at| (at.token, at.key.0)),
                limit: DIGESTS_MAX,
            };
            read(cx, asker, query);
        }
        SyncAsk::Pull { bucket, keys } => {
            let query = Query::Keys {
                keys: keys.iter().map(|at| record_key(bucket, at)).collect(),
                bytes: SYNC_BYTES_MAX,
            };
            read(cx, asker, query);
        }
        SyncAsk::Page { bucket, after } => {
            let bits = cx.core.partition_bits();
            let query = Query::Page {
                bucket,
                first: partition.first_token(bits),
                last: partition.last_token(bits),
                after: after.map(|at| (at.token, at.key.0)),
                bytes: SYNC_BYTES_MAX,
            };
            read(cx, asker, query);
        }
        SyncAsk::Push { bucket, entries } => {
            let place = ((bucket, partition, asker.node), question.floor);
            if let Step::Done = cx.store(place, false, entries, Then::Answer(asker.clone())) {
                asker.answer(cx.core, SyncAnswer::Refused(SyncRefusal::Failed));
            }
        }
        // The schedule has taken note of these.
        SyncAsk::Verified { .. } | SyncAsk::Doubt { .. } => {
            asker.answer(cx.core, SyncAnswer::Noted);
        }
    }
}

fn asker_of(waiter: Waiter) -> Asker {
    waiter.asker
}

fn busy(after: u64) -> SyncAnswer {
    SyncAnswer::Refused(SyncRefusal::Busy {
        after_us: after.min(5 * SECOND) as u32,
    })
}

fn read(cx: &mut Cx<'_>, asker: Asker, query: Query) {
    let id = cx.core.read(query);
    cx.shared.reads.insert(id, Reader::Answer(asker));
}

/// Whether a question is of this ring version, about what this node owns, and can be answered now.
fn admit(cx: &mut Cx<'_>, question: &Question) -> Result<(), SyncRefusal> {
    if matches!(question.ask, SyncAsk::Doubt { .. }) {
        return Ok(());
    }
    let core = &*cx.core;
    if question.ring != core.ring_version() {
        let config = core
            .view
            .as_ref()
            .map(|view| view.config.version)
            .unwrap_or_default();
        return Err(SyncRefusal::RingVersion { config });
    }
    if !core.is_settled() {
        return Err(SyncRefusal::NotDrained);
    }
    let later = |us: u64| SyncRefusal::Busy {
        after_us: us.min(5 * SECOND) as u32,
    };
    if !core.serving {
        return Err(later(SECOND));
    }
    let partition = question.partition;
    let owns = |bucket: BucketId| cx.owns(bucket, partition);
    let owned = match &question.ask {
        SyncAsk::Roots { buckets } => buckets.iter().all(|&bucket| owns(bucket)),
        SyncAsk::Sums { bucket, .. }
        | SyncAsk::Digests { bucket, .. }
        | SyncAsk::Pull { bucket, .. }
        | SyncAsk::Push { bucket, .. }
        | SyncAsk::Page { bucket, .. } => owns(*bucket),
        SyncAsk::Verified { .. } | SyncAsk::Doubt { .. } => true,
    };
    if !owned {
        return Err(SyncRefusal::NotOwner);
    }
    let bits = core.partition_bits();
    let inside = |token: Token| token.partition(bits) == partition;
    let sound = match &question.ask {
        SyncAsk::Sums { nodes, .. } => nodes.len() <= SUMS_MAX,
        SyncAsk::Digests { range, .. } => range.0 <= range.1 && inside(range.0) && inside(range.1),
        SyncAsk::Pull { keys, .. } => {
            keys.len() <= KEYS_MAX
                && keys
                    .iter()
                    .all(|at| inside(at.token) && super::is_key(&at.key.0))
        }
        _ => true,
    };
    if !sound {
        return Err(SyncRefusal::Failed);
    }
    let costs = matches!(
        question.ask,
        SyncAsk::Digests { .. }
            | SyncAsk::Pull { .. }
            | SyncAsk::Page { .. }
            | SyncAsk::Push { .. }
    );
    if costs {
        if cx.shared.reads.len() + cx.shared.commits.len() >= ANSWERS_MAX {
            return Err(later(50 * MS));
        }
        if matches!(question.ask, SyncAsk::Push { .. }) && !cx.may_store() {
            return Err(later(SECOND));
        }
        let now = cx.core.now.mono;
        let wait = cx.shared.handing_out(cx.core).wait(now);
        if wait > 0 {
            return Err(later(wait));
        }
    }
    Ok(())
}

fn answer_roots(cx: &mut Cx<'_>, waiter: &Waiter) {
    let root = |&bucket: &BucketId| cx.root((bucket, waiter.asker.partition));
    let roots: Option<Vec<Root>> = waiter.buckets.iter().map(root).collect();
    let answer = roots.map_or(SyncAnswer::Refused(SyncRefusal::Failed), SyncAnswer::Roots);
    waiter.asker.answer(cx.core, answer);
}

/// A tree was brought up to date: answers those who waited for it last.
pub(super) fn on_tree(cx: &mut Cx<'_>, waiters: &mut Vec<Waiter>, ended: &Ended) {
    let mut still = Vec::with_capacity(waiters.len());
    for mut waiter in std::mem::take(waiters) {
        if !waiter.asker.is_waiting(cx) {
            continue;
        }
        let awaited = waiter.asker.partition == ended.id.1
            && waiter
                .missing
                .get(&ended.id.0)
                .is_some_and(|&round| round <= ended.round);
        if awaited && !ended.ok {
            let refused = SyncAnswer::Refused(SyncRefusal::Failed);
            waiter.asker.answer(cx.core, refused);
            continue;
        }
        if awaited {
            waiter.missing.remove(&ended.id.0);
        }
        if waiter.missing.is_empty() {
            answer_roots(cx, &waiter);
        } else {
            still.push(waiter);
        }
    }
    *waiters = still;
}

/// The disk answered.
pub(super) fn on_read(cx: &mut Cx<'_>, asker: &Asker, result: Result<Found, StoreError>) {
    if !asker.is_waiting(cx) {
        return;
    }
    let now = cx.core.now.mono;
    let tree = asker.bucket.map(|bucket| (bucket, asker.partition));
    let answer = match result {
        Ok(Found::Digests {
            entries,
            reached,
            bytes,
        }) => {
            cx.shared.handing_out(cx.core).take(bytes, now);
            let floor = tree.map_or(Hlc(0), |tree| cx.core.floors.floor(tree));
            let alive = |entry: &DigestEntry| entry.dead_at.is_none_or(|at| at > floor);
            digests(entries.into_iter().filter(alive).collect(), reached)
        }
        Ok(Found::Records { entries, reached }) => {
            let entries: Vec<SyncEntry> = match tree {
                Some(tree) => cx.entries(tree, entries),
                None => Vec::new(),
            };
            let bytes: usize = entries.iter().map(SyncEntry::weight).sum();
            cx.shared.handing_out(cx.core).take(bytes as u64, now);
            SyncAnswer::Records {
                entries,
                reached: reached.map(|(token, key)| cursor(token, key)),
            }
        }
        Ok(_) | Err(_) => SyncAnswer::Refused(SyncRefusal::Failed),
    };
    asker.answer(cx.core, answer);
}

/// As many as fit into a message.
fn digests(found: Vec<DigestEntry>, reached: Option<(Token, bytes::Bytes)>) -> SyncAnswer {
    let mut reached = reached.map(|(token, key)| cursor(token, key));
    let count = found.len();
    let mut entries: Vec<(Cursor, crate::version::Digest)> = Vec::with_capacity(count);
    let mut bytes = 0;
    for entry in found {
        bytes += entry.key.len() + 48;
        entries.push((cursor(entry.token, entry.key), entry.digest));
        if bytes >= SYNC_BYTES_MAX && entries.len() < count {
            reached = entries.last().map(|(at, _)| at.clone());
            break;
        }
    }
    SyncAnswer::Digests { entries, reached }
}

/// Whether the bucket's records are merged at all: registers of consensus are not.
pub(crate) fn is_merged(mode: ConflictMode) -> bool {
    mode != ConflictMode::Linearizable
}

impl super::Shared {
    /// The budget from which this node answers others.
    pub(super) fn handing_out(&mut self, core: &Core) -> &mut crate::budget::Budget {
        let joint = core
            .view
            .as_ref()
            .is_some_and(|view| view.config.target.is_some());
        if joint {
            &mut self.given
        } else {
            self.budget(Purpose::Compare)
        }
    }
}

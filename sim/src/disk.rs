//! A disk: what is visible, what would survive a crash, and the group of commits that is being written.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use torc_protocol::cluster_io::CLUSTER_BOUND;
use torc_protocol::floor::Mark;
use torc_protocol::hlc::Hlc;
use torc_protocol::message::RecordKey;
use torc_protocol::mutant::Mutant;
use torc_protocol::record::{Kind, Record};
use torc_protocol::store::{
    Batch, CommitId, DigestEntry, Found, Hint, HintKey, HintTotal, Query, StateKey, StoreError,
    Sync, Write,
};
use torc_ring::{BucketId, NodeId, PartitionId, Token};

use crate::rng::Rng;

/// Entries of a page at most, so that lists need several.
const PAGE_MAX: usize = 7;
/// Keys of a page of digests at most.
const SCAN_MAX: usize = 20;

/// What is stored.
#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    pub(crate) records: BTreeMap<RecordKey, Record>,
    pub(crate) hints: BTreeMap<HintKey, Hint>,
    pub(crate) states: BTreeMap<StateKey, Bytes>,
    /// Values that were deleted: an old file may still hold them.
    graves: BTreeMap<RecordKey, Record>,
}

/// One shard's commit on its way.
pub(crate) type Commit = (u8, CommitId, Batch);

/// How a commit ended.
pub(crate) type Ended = (u8, CommitId, Result<(), StoreError>);

/// What a group of commits came to.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) outcomes: Vec<Ended>,
    /// Hints that are gone.
    pub(crate) removed: Vec<(HintKey, Hint)>,
    /// Node state that is there.
    pub(crate) states: Vec<Write>,
}

/// The disk of one node.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    /// Whether every commit is fsynced.
    fsync: bool,
    pub(crate) visible: Store,
    /// What survives a crash; kept apart only where commits are not fsynced.
    durable: Store,
    unsynced: Vec<Write>,
    queue: VecDeque<Commit>,
    group: Vec<Commit>,
    pub(crate) full: bool,
    /// Keys with even tokens, or those with odd ones, cannot be read any more.
    pub(crate) rotten: Option<u64>,
    /// The power was cut, and what that cost has not come back yet; the store knows.
    pub(crate) lost: bool,
    mutant: Option<Mutant>,
}

impl Disk {
    pub(crate) fn new(fsync: bool, mutant: Option<Mutant>) -> Self {
        Self {
            fsync,
            visible: Store::default(),
            durable: Store::default(),
            unsynced: Vec::new(),
            queue: VecDeque::new(),
            group: Vec::new(),
            full: false,
            rotten: None,
            lost: false,
            mutant,
        }
    }

    /// What would be there after a crash now.
    pub(crate) fn durable(&self) -> &Store {
        if self.fsync {
            &self.visible
        } else {
            &self.durable
        }
    }

    /// Takes a commit; answers whether the disk was idle, so that a group may begin.
    pub(crate) fn push(&mut self, commit: Commit) -> bool {
        self.queue.push_back(commit);
        self.group.is_empty()
    }

    /// Everything that waits becomes the group that is being written; answers whether there is one.
    pub(crate) fn begin(&mut self) -> bool {
        self.group = self.queue.drain(..).collect();
        !self.group.is_empty()
    }

    /// Whether marks of floors are in the group that is being written.
    pub(crate) fn writes_marks(&self) -> bool {
        let is_mark = |write: &Write| {
            matches!(
                write,
                Write::StatePut {
                    key: StateKey::Floor(..),
                    ..
                }
            )
        };
        let mut batches = self.group.iter();
        batches.any(|(_, _, batch)| batch.writes.iter().any(is_mark))
    }

    /// The group is written: it is visible, and durable as far as somebody asked for that. `refuse` says
    /// of each commit whether there is no room even for what has a reserve.
    pub(crate) fn end(&mut self, mut refuse: impl FnMut() -> bool) -> Done {
        let group = std::mem::take(&mut self.group);
        let sync = group.iter().any(|(_, _, batch)| batch.sync == Sync::Fsync);
        let mut done = Done::default();
        for (shard, id, batch) in group {
            if refuse() || (self.full && batch.writes.iter().any(needs_room)) {
                done.outcomes.push((shard, id, Err(StoreError::Full)));
                continue;
            }
            for write in batch.writes {
                match &write {
                    Write::HintDelete { at } => {
                        if let Some(hint) = self.visible.hints.get(at) {
                            done.removed.push((*at, hint.clone()));
                        }
                    }
                    Write::StatePut { .. } => done.states.push(write.clone()),
                    Write::Merge { key, record } => self.visible.bury(key, record),
                    _ => {}
                }
                if !self.fsync {
                    self.unsynced.push(write.clone());
                }
                self.visible.apply(write, self.mutant);
            }
            done.outcomes.push((shard, id, Ok(())));
        }
        if sync {
            self.sync();
        }
        done
    }

    /// Puts a record in the place of another, past all merges.
    pub(crate) fn replace(&mut self, key: &RecordKey, record: &Record) {
        for store in [&mut self.visible, &mut self.durable] {
            if store.records.contains_key(key) {
                store.records.insert(key.clone(), record.clone());
            }
        }
    }

    /// Whether an answer to this has to touch what cannot be read any more.
    pub(crate) fn is_rotten(&self, query: &Query) -> bool {
        let bad = |token: Token| self.rotten.is_some_and(|parity| token.0 & 1 == parity);
        match query {
            Query::Record(key) => bad(key.token),
            Query::Keys { keys, .. } => keys.iter().any(|key| bad(key.token)),
            Query::Records { first, last, .. }
            | Query::Digests { first, last, .. }
            | Query::Page { first, last, .. } => {
                let mut keys = self.visible.records.keys();
                keys.any(|key| (*first..=*last).contains(&key.token) && bad(key.token))
            }
            Query::Hints { .. } => false,
        }
    }

    /// Puts something there before the node's first life.
    pub(crate) fn plant(&mut self, write: Write) {
        self.durable.apply(write.clone(), self.mutant);
        self.visible.apply(write, self.mutant);
    }

    /// A file is lost, an older one comes to light in its place: deleted values whose tombstones were
    /// collected are there again. The store has noticed, and the floors fall to 0 with the data. Answers how
    /// many came back.
    pub(crate) fn lose_file(&mut self) -> usize {
        let mut back = 0;
        let keeps = self.mutant == Some(Mutant::LostFileKeepsFloor);
        for store in [&mut self.visible, &mut self.durable] {
            for (key, record) in store.graves.clone() {
                store.records.entry(key).or_insert_with(|| {
                    back += 1;
                    record
                });
            }
            for (key, value) in &mut store.states {
                if let (StateKey::Floor(..), Some(mark), false) = (key, Mark::decode(value), keeps)
                {
                    let floor = Hlc(0);
                    *value = Mark { floor, ..mark }.encode();
                }
            }
        }
        back
    }

    /// Whether [`Self::lose_file`] would bring anything back.
    pub(crate) fn has_relics(&self) -> bool {
        let store = self.durable();
        store
            .graves
            .keys()
            .any(|key| !store.records.contains_key(key))
    }

    /// What the disk holds now, as an image of it would.
    pub(crate) fn image(&self) -> Self {
        let mut image = Self::new(self.fsync, self.mutant);
        image.visible = self.durable().clone();
        image.durable.clone_from(&self.durable);
        image
    }

    /// Everything visible becomes durable.
    pub(crate) fn sync(&mut self) {
        for write in std::mem::take(&mut self.unsynced) {
            self.durable.apply(write, self.mutant);
        }
    }

    /// The process ends, and its machine goes on: what was written stays, and of the group that was being written
    /// some commits may be there.
    pub(crate) fn kill(&mut self, rng: &mut Rng) {
        let group = std::mem::take(&mut self.group);
        self.queue.clear();
        let kept = rng.below(group.len() as u64 + 1) as usize;
        if self.full {
            return;
        }
        for (_, _, batch) in group.into_iter().take(kept) {
            for write in batch.writes {
                if !self.fsync {
                    self.unsynced.push(write.clone());
                }
                self.visible.apply(write, self.mutant);
            }
        }
    }

    /// The machine stops: what was not synced survives only up to some point, and of the group that was
    /// being written some commits may be there though nobody was told.
    pub(crate) fn crash(&mut self, rng: &mut Rng) {
        let group = std::mem::take(&mut self.group);
        self.queue.clear();
        let mut tail: Vec<Write> = std::mem::take(&mut self.unsynced);
        let kept = group.len() as u64;
        let kept = rng.below(kept + 1) as usize;
        if !self.full {
            tail.extend(
                group
                    .into_iter()
                    .take(kept)
                    .flat_map(|(_, _, batch)| batch.writes),
            );
        }
        if self.fsync {
            for write in tail {
                self.visible.apply(write, self.mutant);
            }
        } else {
            let kept = rng.below(tail.len() as u64 + 1) as usize;
            for write in tail.into_iter().take(kept) {
                self.durable.apply(write, self.mutant);
            }
            self.visible = self.durable.clone();
        }
    }
}

/// Deliberate bug 27 of the store's merge: of two equal versions the first one stays.
fn keeps_wrongly(mutant: Option<Mutant>, old: &Record, new: &Record) -> bool {
    mutant == Some(Mutant::TieByArrival) && old.version() == new.version()
}

/// Deliberate bug 38 of the store's merge: within a millisecond the last one stays.
fn takes_wrongly(mutant: Option<Mutant>, old: &Record, new: &Record) -> bool {
    let millis = |record: &Record| record.version().hlc.micros() / 1_000;
    mutant == Some(Mutant::MergeByMillisecond) && millis(old) == millis(new)
}

/// Deliberate bug 24 of the store's merge: what expires later stays.
fn takes_by_expiry(mutant: Option<Mutant>, old: &Record, new: &Record) -> bool {
    let expiry = |record: &Record| record.expiry().unwrap_or(0);
    mutant == Some(Mutant::MergeByExpiry)
        && old.kind() == Kind::Value
        && new.kind() == Kind::Value
        && expiry(new) > 0
        && expiry(old) > expiry(new)
}

/// A full disk keeps room for the protocol's own state and for deletions.
fn needs_room(write: &Write) -> bool {
    matches!(write, Write::Merge { .. } | Write::HintPut { .. })
}

impl Store {
    pub(crate) fn apply(&mut self, write: Write, mutant: Option<Mutant>) {
        match write {
            Write::Merge { key, record } => {
                let merged = match self.records.remove(&key) {
                    Some(old) if keeps_wrongly(mutant, &old, &record) => old,
                    Some(old) if takes_wrongly(mutant, &old, &record) => record,
                    Some(old) if takes_by_expiry(mutant, &old, &record) => old,
                    Some(old) => old.clone().merge(record).unwrap_or(old),
                    None => record,
                };
                self.records.insert(key, merged);
            }
            Write::Drop(range) => {
                let stays = |key: &RecordKey| {
                    key.bucket != range.bucket || !(range.first..=range.last).contains(&key.token)
                };
                self.records.retain(|key, _| stays(key));
                self.graves.retain(|key, _| stays(key));
            }
            Write::Remove { key } => {
                self.records.remove(&key);
            }
            Write::HintPut { at, hint } => {
                self.hints.insert(at, hint);
            }
            Write::HintDelete { at } => {
                self.hints.remove(&at);
            }
            Write::StatePut { key, value } => {
                self.states.insert(key, value);
            }
            Write::StateDelete { key } => {
                self.states.remove(&key);
            }
        }
    }

    #[allow(clippy::type_complexity)]
    fn range(
        &self,
        (bucket, first, last): (BucketId, Token, Token),
        after: Option<&(Token, Bytes)>,
        limit: usize,
        bytes: usize,
    ) -> (Vec<(RecordKey, Record)>, Option<(Token, Bytes)>) {
        let (token, key) = after.cloned().unwrap_or((first, Bytes::new()));
        let token = token.max(first);
        let start = RecordKey { bucket, token, key };
        let (mut found, mut sum) = (Vec::new(), 0);
        for (key, record) in self.records.range(start..) {
            if key.bucket != bucket || key.token > last {
                break;
            }
            if after.is_some_and(|after| (key.token, key.key.clone()) <= *after) {
                continue;
            }
            sum += record.len();
            found.push((key.clone(), record.clone()));
            if found.len() >= limit || sum >= bytes {
                return (found, Some((key.token, key.key.clone())));
            }
        }
        (found, None)
    }

    pub(crate) fn find(&self, query: &Query) -> Found {
        match query {
            Query::Record(key) => Found::Record(self.records.get(key).cloned()),
            Query::Records {
                bucket,
                first,
                last,
                after,
                prefix,
                limit,
            } => {
                let all = self.records.iter().filter(|(key, _)| {
                    key.bucket == *bucket
                        && (*first..=*last).contains(&key.token)
                        && after
                            .as_ref()
                            .is_none_or(|(token, after)| (key.token, &key.key) > (*token, after))
                        && key.key.starts_with(prefix)
                });
                let limit = (*limit).min(PAGE_MAX);
                let mut entries: Vec<_> = all
                    .take(limit + 1)
                    .map(|(k, r)| (k.clone(), r.clone()))
                    .collect();
                let more = entries.len() > limit;
                entries.truncate(limit);
                let end = entries.last().map(|(key, _)| (key.token, key.key.clone()));
                Found::Records {
                    entries,
                    reached: end.filter(|_| more),
                }
            }
            Query::Digests {
                bucket,
                first,
                last,
                after,
                limit,
            } => {
                let limit = (*limit).min(SCAN_MAX);
                let (found, reached) =
                    self.range((*bucket, *first, *last), after.as_ref(), limit, usize::MAX);
                let bytes = found
                    .iter()
                    .map(|(key, record)| key.key.len() + record.len());
                Found::Digests {
                    bytes: bytes.sum::<usize>() as u64,
                    entries: found
                        .into_iter()
                        .map(|(key, record)| DigestEntry {
                            token: key.token,
                            key: key.key,
                            digest: record.digest(),
                            dead_at: record.dead_at(),
                        })
                        .collect(),
                    reached,
                }
            }
            Query::Page {
                bucket,
                first,
                last,
                after,
                bytes,
            } => {
                let range = (*bucket, *first, *last);
                let (entries, reached) = self.range(range, after.as_ref(), PAGE_MAX, *bytes);
                Found::Records { entries, reached }
            }
            Query::Keys { keys, .. } => {
                let some = &keys[..keys.len().min(PAGE_MAX)];
                let entries = some
                    .iter()
                    .filter_map(|key| Some((key.clone(), self.records.get(key)?.clone())))
                    .collect();
                let last = some.last().filter(|_| some.len() < keys.len());
                let reached = last.map(|key| (key.token, key.key.clone()));
                Found::Records { entries, reached }
            }
            Query::Hints {
                target,
                slot,
                after,
                limit,
            } => {
                let from = HintKey {
                    target: *target,
                    slot: *slot,
                    seq: after + 1,
                };
                let to = HintKey {
                    target: *target,
                    slot: *slot,
                    seq: u64::MAX,
                };
                let found = self.hints.range(from..=to).take(*limit);
                Found::Hints(found.map(|(at, hint)| (*at, Some(hint.clone()))).collect())
            }
        }
    }

    /// A tombstone takes the place of a value.
    fn bury(&mut self, key: &RecordKey, record: &Record) {
        if let Some(old) = self.records.get(key)
            && old.kind() == Kind::Value
            && record.kind() == Kind::Tombstone
            && record.version() > old.version()
        {
            self.graves.insert(key.clone(), old.clone());
        }
    }

    /// What is stored of floors.
    pub(crate) fn floors(&self) -> impl Iterator<Item = (BucketId, PartitionId, &Bytes)> {
        self.states.iter().filter_map(|(key, value)| match key {
            StateKey::Floor(bucket, partition) => Some((*bucket, *partition, value)),
            _ => None,
        })
    }

    /// The floor of a bucket's partition.
    pub(crate) fn floor(&self, bucket: BucketId, partition: PartitionId) -> Hlc {
        self.mark(bucket, partition).floor
    }

    /// How far a bucket's partition is closed.
    pub(crate) fn close(&self, bucket: BucketId, partition: PartitionId) -> Hlc {
        self.mark(bucket, partition).close
    }

    /// Up to where no hint that counts is taken of a bucket's partition.
    pub(crate) fn promise(&self, bucket: BucketId, partition: PartitionId) -> Hlc {
        self.mark(bucket, partition).promise
    }

    fn mark(&self, bucket: BucketId, partition: PartitionId) -> Mark {
        let value = self.states.get(&StateKey::Floor(bucket, partition));
        let mark = value.and_then(|value| Mark::decode(value));
        mark.unwrap_or_default()
    }

    pub(crate) fn totals(&self) -> Vec<HintTotal> {
        let mut totals: BTreeMap<(NodeId, u8), HintTotal> = BTreeMap::new();
        for (at, hint) in &self.hints {
            let (target, slot) = (at.target, at.slot);
            let none = HintTotal {
                target,
                slot,
                count: 0,
                counted: 0,
                bytes: 0,
                last_seq: 0,
            };
            let total = totals.entry((target, slot)).or_insert(none);
            total.count += 1;
            total.counted += u64::from(hint.counted);
            total.bytes += hint.weight();
            total.last_seq = total.last_seq.max(at.seq);
        }
        totals.into_values().collect()
    }

    /// The highest clock bound of any shard that this node ever had.
    pub(crate) fn shards_bound(&self) -> Hlc {
        let bounds = self.states.iter().filter_map(|(key, value)| match key {
            StateKey::HlcBound(CLUSTER_BOUND) => None,
            StateKey::HlcBound(_) => number(value),
            _ => None,
        });
        Hlc(bounds.max().unwrap_or(0))
    }

    /// The clock bound of the cluster machine.
    pub(crate) fn cluster_bound(&self) -> Hlc {
        let bound = self.states.get(&StateKey::HlcBound(CLUSTER_BOUND));
        Hlc(bound.and_then(number).unwrap_or(0))
    }

    /// The newest config version known to be decided; 0 for none.
    pub(crate) fn decided(&self) -> u64 {
        let decided = self.states.keys().filter_map(|key| match key {
            StateKey::Decided(version) => Some(version.0),
            _ => None,
        });
        decided.max().unwrap_or(0)
    }

    /// The config version applied last; 0 for none.
    pub(crate) fn applied(&self) -> u64 {
        let applied = self.states.get(&StateKey::Applied);
        applied.and_then(number).unwrap_or(0)
    }
}

fn number(value: &Bytes) -> Option<u64> {
    value[..].try_into().ok().map(u64::from_be_bytes)
}

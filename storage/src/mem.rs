//! The in-memory twin of [`crate::Store`]: the same answers, no disk, and failures on demand.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use torc_protocol::changes::Lane;
use torc_protocol::message::RecordKey;
use torc_protocol::record::Record;
use torc_protocol::store::{
    Found, Hint, HintKey, HintTotal, Leftover, Query, StateKey, StoreError, Write,
};
use torc_ring::{BucketId, NodeId, PartitionId, Token};

use crate::commit::{Backend, Committer, Deliver, Limits, Waiting};
use crate::error::StorageError;
use crate::options::Options;
use crate::read::{self, Digests, LIST_BYTES_MAX, LIST_KEYS_MAX, Listing, Page, Scan};
use crate::rocks::{ChangeTotal, Opened};
use crate::schema::States;
use crate::space::{self, Room};

/// A store in memory, for tests of what stands on a store. Clones share it; what was committed stays as
/// long as one of them lives, so that dropping the committer and asking for another one is a restart.
#[derive(Clone, Default)]
pub struct MemStore {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    data: Mutex<Data>,
    released: Condvar,
}

struct Data {
    records: BTreeMap<RecordKey, Slot>,
    hints: BTreeMap<HintKey, Hint>,
    states: BTreeMap<StateKey, Bytes>,
    room: Room,
    fails: bool,
    held: bool,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            records: BTreeMap::new(),
            hints: BTreeMap::new(),
            states: BTreeMap::new(),
            room: Room::All,
            fails: false,
            held: false,
        }
    }
}

/// What lies at a key.
#[derive(Clone)]
enum Slot {
    Good(Record),
    /// States that can never be of one key were merged.
    Corrupt,
}

impl MemStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// What a restart would find.
    pub fn opened(&self) -> Opened {
        let data = self.shared.data.lock();
        let mut totals: BTreeMap<(NodeId, u8), HintTotal> = BTreeMap::new();
        for (at, hint) in &data.hints {
            let none = HintTotal {
                target: at.target,
                slot: at.slot,
                count: 0,
                counted: 0,
                bytes: 0,
                last_seq: 0,
            };
            let total = totals.entry((at.target, at.slot)).or_insert(none);
            total.count += 1;
            total.counted += u64::from(hint.counted);
            total.bytes += hint.weight();
            total.last_seq = total.last_seq.max(at.seq);
        }
        Opened {
            hints: totals.into_values().collect(),
            dirty_boot: false,
            created: false,
            clean: true,
        }
    }

    /// As [`crate::Store::committer`], except that each committer is independent.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn committer(&self, deliver: Deliver) -> Result<Committer, StorageError> {
        let defaults = Options::new("memory");
        let limits = Limits {
            queue_batches: defaults.queue_batches,
            queue_bytes: defaults.queue_bytes,
            group_bytes: defaults.group_bytes,
        };
        let backend = MemWriter {
            shared: self.shared.clone(),
        };
        let (committer, _) = Committer::start(limits, backend, (deliver, None))
            .map_err(StorageError::io("start the committer for", "memory"))?;
        Ok(committer)
    }

    /// From now on commits are answered as on a full disk, or no more.
    pub fn set_full(&self, full: bool) {
        self.shared.data.lock().room = if full { Room::Deletes } else { Room::All };
    }

    /// From now on every commit fails, or none.
    pub fn set_failing(&self, fails: bool) {
        self.shared.data.lock().fails = fails;
    }

    /// From now on commits wait until they are released.
    pub fn set_held(&self, held: bool) {
        self.shared.data.lock().held = held;
        self.shared.released.notify_all();
    }

    /// As [`crate::Store::state`].
    ///
    /// # Errors
    /// None; the signature is the store's.
    pub fn state(&self, key: StateKey) -> Result<Option<Bytes>, StorageError> {
        Ok(self.shared.data.lock().states.get(&key).cloned())
    }

    /// As [`crate::Store::states`].
    ///
    /// # Errors
    /// None; the signature is the store's.
    pub fn states(&self, which: States) -> Result<Vec<(StateKey, Bytes)>, StorageError> {
        let data = self.shared.data.lock();
        let found = data.states.iter().filter(|(key, _)| which.contains(**key));
        Ok(found.map(|(key, value)| (*key, value.clone())).collect())
    }

    /// As [`crate::Store::changes`].
    ///
    /// # Errors
    /// None; the signature is the store's.
    pub fn changes(
        &self,
        lane: Lane,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<(u64, Bytes)>, StorageError> {
        let data = self.shared.data.lock();
        let of_lane = data.states.iter().filter_map(|(key, note)| match key {
            StateKey::Change(of, number) if *of == lane => Some((*number, note.clone())),
            _ => None,
        });
        let later = of_lane.filter(|(number, _)| after.is_none_or(|after| *number > after));
        Ok(later.take(limit).collect())
    }

    /// As [`crate::Store::count_changes`].
    ///
    /// # Errors
    /// None; the signature is the store's.
    pub fn count_changes(&self, lane: Lane) -> Result<ChangeTotal, StorageError> {
        let all = self.changes(lane, None, usize::MAX)?;
        Ok(ChangeTotal {
            count: all.len() as u64,
            last: all.last().map_or(0, |(number, _)| *number),
        })
    }

    /// As [`crate::Store::is_empty`].
    ///
    /// # Errors
    /// None; the signature is the store's.
    pub fn is_empty(&self) -> Result<bool, StorageError> {
        let data = self.shared.data.lock();
        Ok(data.records.is_empty() && data.hints.is_empty())
    }

    /// As [`crate::Store::leftovers`].
    ///
    /// # Errors
    /// None; the signature is the store's.
    pub fn leftovers(
        &self,
        bits: u8,
        limit: usize,
        keeps: impl Fn(BucketId, PartitionId) -> bool,
    ) -> Result<Vec<Leftover>, StoreError> {
        let data = self.shared.data.lock();
        read::leftovers(bits, limit, keeps, |bucket, token| {
            let from = RecordKey {
                bucket,
                token,
                key: Bytes::new(),
            };
            let first = data.records.range(from..).next();
            Ok(first.map(|(key, _)| (key.bucket, key.token)))
        })
    }

    /// As [`crate::Store::query_cached`]: everything is in memory.
    pub fn query_cached(&self, query: &Query) -> Option<Result<Found, StoreError>> {
        matches!(query, Query::Record(_)).then(|| self.query(query))
    }

    /// As [`crate::Store::query`].
    ///
    /// # Errors
    /// What the core is told.
    pub fn query(&self, query: &Query) -> Result<Found, StoreError> {
        let data = self.shared.data.lock();
        match query {
            Query::Record(key) => match data.records.get(key) {
                None => Ok(Found::Record(None)),
                Some(slot) => slot.read().map(|record| Found::Record(Some(record))),
            },
            Query::Records {
                bucket,
                first,
                last,
                after,
                prefix,
                limit,
            } => data.records(&Listing {
                bucket: *bucket,
                first: *first,
                last: *last,
                after: after.as_ref(),
                prefix,
                limit: *limit,
                bytes: LIST_BYTES_MAX,
            }),
            Query::Page {
                bucket,
                first,
                last,
                after,
                bytes,
            } => data.records(&Listing {
                bucket: *bucket,
                first: *first,
                last: *last,
                after: after.as_ref(),
                prefix: &[],
                limit: LIST_KEYS_MAX,
                bytes: (*bytes).min(LIST_BYTES_MAX),
            }),
            Query::Digests {
                bucket,
                first,
                last,
                after,
                limit,
            } => data.digests(&Scan {
                bucket: *bucket,
                first: *first,
                last: *last,
                after: after.as_ref(),
                limit: *limit,
            }),
            Query::Keys { keys, bytes } => read::keys(keys, *bytes, |key| {
                data.records.get(key).map(Slot::read).transpose()
            }),
            Query::Hints {
                target,
                slot,
                after,
                limit,
            } => Ok(data.hints(*target, *slot, *after, *limit)),
        }
    }
}

impl Slot {
    fn read(&self) -> Result<Record, StoreError> {
        match self {
            Self::Good(record) => Ok(record.clone()),
            Self::Corrupt => Err(StoreError::Corrupt),
        }
    }

    fn merge(self, record: Record) -> Self {
        match self {
            Self::Good(stored) => stored.merge(record).map_or(Self::Corrupt, Self::Good),
            Self::Corrupt => Self::Corrupt,
        }
    }
}

impl Data {
    fn range(
        &self,
        (bucket, first, last): (BucketId, Token, Token),
        after: Option<&(Token, Bytes)>,
    ) -> impl Iterator<Item = (&RecordKey, &Slot)> {
        let place = |token, key| RecordKey { bucket, token, key };
        let start = match after {
            Some((token, key)) if *token >= first => Bound::Excluded(place(*token, key.clone())),
            _ => Bound::Included(place(first, Bytes::new())),
        };
        self.records
            .range((start, Bound::Unbounded))
            .take_while(move |(key, _)| key.bucket == bucket && key.token <= last)
    }

    fn digests(&self, scan: &Scan<'_>) -> Result<Found, StoreError> {
        let mut found = Digests::default();
        let mut records = self.range((scan.bucket, scan.first, scan.last), scan.after);
        while found.goes_on(scan.limit) {
            let Some((key, slot)) = records.next() else {
                return Ok(found.finish(true));
            };
            let record = slot.read()?;
            let facts = (record.digest(), record.dead_at());
            found.look_at(key.clone(), record.len(), facts);
        }
        Ok(found.finish(false))
    }

    fn records(&self, listing: &Listing<'_>) -> Result<Found, StoreError> {
        let mut page = Page::default();
        let range = (listing.bucket, listing.first, listing.last);
        let mut records = self.range(range, listing.after);
        while page.goes_on(listing) {
            let Some((key, slot)) = records.next() else {
                return Ok(page.finish(true));
            };
            let len = slot.read().map_or(0, |record| record.len());
            page.look_at(key.clone(), len, listing, || slot.read())?;
        }
        Ok(page.finish(false))
    }

    fn hints(&self, target: NodeId, slot: u8, after: u64, limit: usize) -> Found {
        let (first, last) = (
            HintKey {
                target,
                slot,
                seq: after,
            },
            HintKey {
                target,
                slot,
                seq: u64::MAX,
            },
        );
        let mut bytes = 0;
        let found = self
            .hints
            .range((Bound::Excluded(first), Bound::Included(last.max(first))))
            .take(limit.max(1))
            .take_while(|(_, hint)| {
                let goes_on = bytes < LIST_BYTES_MAX;
                bytes += hint.record.len();
                goes_on
            });
        Found::Hints(found.map(|(at, hint)| (*at, Some(hint.clone()))).collect())
    }

    fn apply(&mut self, write: &Write) {
        match write {
            Write::Merge { key, record } => {
                let merged = match self.records.remove(key) {
                    Some(slot) => slot.merge(record.clone()),
                    None => Slot::Good(record.clone()),
                };
                self.records.insert(key.clone(), merged);
            }
            Write::Drop(range) => self.records.retain(|key, _| {
                key.bucket != range.bucket || !(range.first..=range.last).contains(&key.token)
            }),
            Write::Remove { key } => {
                self.records.remove(key);
            }
            Write::HintPut { at, hint } => {
                self.hints.insert(*at, hint.clone());
            }
            Write::HintDelete { at } => {
                self.hints.remove(at);
            }
            Write::StatePut { key, value } => {
                self.states.insert(*key, value.clone());
            }
            Write::StateDelete { key } => {
                self.states.remove(key);
            }
        }
    }
}

struct MemWriter {
    shared: Arc<Shared>,
}

impl Backend for MemWriter {
    fn write(&mut self, group: &[Waiting], outcomes: &mut Vec<Result<(), StoreError>>) {
        let mut data = self.shared.data.lock();
        while data.held {
            self.shared.released.wait(&mut data);
        }
        for waiting in group {
            outcomes.push(if data.fails {
                Err(StoreError::Failed)
            } else if space::needs(&waiting.batch) > data.room {
                Err(StoreError::Full)
            } else {
                waiting
                    .batch
                    .writes
                    .iter()
                    .for_each(|write| data.apply(write));
                Ok(())
            });
        }
    }

    fn may_be_quick(&self) -> bool {
        !self.shared.data.lock().held
    }

    fn write_at_once(
        &mut self,
        group: &[Waiting],
        outcomes: &mut Vec<Result<(), StoreError>>,
    ) -> bool {
        // Held since: then it waits as the thread would.
        self.write(group, outcomes);
        true
    }
}

impl std::fmt::Debug for MemStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemStore")
            .field("records", &self.shared.data.lock().records.len())
            .finish_non_exhaustive()
    }
}

//! The store on RocksDB: opening, closing, and the committer's writes.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::Mutex;
use rocksdb::{
    Cache, ColumnFamily, DB, DEFAULT_COLUMN_FAMILY_NAME, ErrorKind, FlushOptions, ReadOptions,
    ReadTier, WriteBatch, WriteOptions, properties,
};
use torc_protocol::changes::Lane;
use torc_protocol::store::{
    Found, HintTotal, Leftover, Query, StateKey, StoreError, Sync as SyncPolicy, Write,
};
use torc_ring::{BucketId, NodeId, PartitionId};

use crate::commit::{self, Backend, Committer, Deliver, Limits, Observe, Waiting};
use crate::error::{Fatal, FatalStep, StorageError};
use crate::keeper::Keeper;
use crate::manifest;
use crate::mark::{self, Mark, Progress};
use crate::options::{Durability, Options};
use crate::pace::Pace;
use crate::place::Place;
use crate::properties::Properties;
use crate::schema::{self, FAMILIES, HINTS, RECORDS, States};
use crate::space::{self, Room, Space};
use crate::tune;

/// A node's store. Clones share it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// What was found when a store was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Hints that wait, by target and slot.
    pub hints: Vec<HintTotal>,
    /// Whether acknowledged records may be missing, because the machine was switched off while they were
    /// not synced (`interval`, `os`). Stays set over restarts until [`Store::settle_dirty_boot`].
    pub dirty_boot: bool,
    /// Whether the directory is new.
    pub created: bool,
    /// Whether the last run closed the store in order.
    pub clean: bool,
}

/// Notes of changes in a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChangeTotal {
    /// How many there are.
    pub count: u64,
    /// The greatest number of one; 0 when there is none.
    pub last: u64,
}

pub(crate) struct Inner {
    // In the order in which they are dropped: the database before the directory's lock.
    pub(crate) db: DB,
    pub(crate) rocks: rocksdb::Options,
    pub(crate) cache: Cache,
    pub(crate) from_memory: ReadOptions,
    pub(crate) anywhere: ReadOptions,
    pub(crate) pace: Pace,
    pub(crate) mark: Mark,
    pub(crate) space: Space,
    pub(crate) options: Options,
    /// Set by a [`Fatal`] that did not end the process: nothing is written any more.
    pub(crate) broken: AtomicBool,
    pub(crate) corrupt: AtomicBool,
    committer: Mutex<Option<Running>>,
    keeper: Mutex<Option<Keeper>>,
    place: Place,
}

struct Running {
    shared: Arc<commit::Shared>,
    thread: JoinHandle<()>,
}

impl Store {
    /// Opens the data directory, making it when it is missing, and checks that nothing durable is lost.
    ///
    /// # Errors
    /// Says what is in the way and what to do. [`StorageError::Amnesia`] and [`StorageError::Corrupt`]
    /// mean that this data directory must not serve again: the node joins as a replacement.
    pub fn open(options: Options) -> Result<(Self, Opened), StorageError> {
        let place = Place::enter(&options.path)?;
        let prior = Mark::read(place.path())?;
        if prior.is_none() && (place.used || place.has_db()) {
            return Err(place.mark_missing());
        }
        let boot = mark::boot_id();
        let mut start = mark::State {
            counter: 0,
            written: 0,
            synced: 0,
            boot,
            always_synced: options.durability == Durability::Fsync,
            clean: false,
            suspect: false,
        };
        if prior.is_none() {
            Mark::begin(place.path(), start)?;
        }
        let cache = tune::cache(&options);
        let rocks = tune::database();
        // RocksDB's own family stays empty; left to its defaults, it would make recovery from a full disk
        // wait for 64 MiB of room.
        let names = FAMILIES.into_iter().chain([DEFAULT_COLUMN_FAMILY_NAME]);
        let families = names.map(|name| (name, tune::family(name, &options, &cache)));
        manifest::check(&place.db())?;
        let db = DB::open_cf_with_opts(&rocks, place.db(), families)
            .map_err(StorageError::rocks("open the database", place.path()))?;
        let found = db.latest_sequence_number();
        if let Some(prior) = prior {
            let expected = prior.expected(boot);
            if found < expected {
                return Err(StorageError::Amnesia {
                    path: options.path,
                    expected,
                    found,
                });
            }
            start.counter = prior.counter;
            start.suspect = prior.is_dirty(boot);
        }
        // Opening has written what it replayed from the log into tables, and synced those.
        (start.written, start.synced) = (found, found);
        let mark = Mark::begin(place.path(), start)?;
        if !place.used {
            place.complete()?;
        }
        let opened = Opened {
            hints: count_hints(&db, place.path())?,
            dirty_boot: start.suspect,
            created: !place.used,
            clean: prior.is_none_or(|state| state.clean),
        };
        let mut from_memory = ReadOptions::default();
        from_memory.set_read_tier(ReadTier::BlockCache);
        let inner = Arc::new(Inner {
            db,
            rocks,
            cache,
            from_memory,
            anywhere: ReadOptions::default(),
            pace: Pace::new(),
            mark,
            space: Space::new(options.path.clone(), options.reserve),
            options,
            broken: AtomicBool::new(false),
            corrupt: AtomicBool::new(false),
            committer: Mutex::new(None),
            keeper: Mutex::new(None),
            place,
        });
        let keeper = Keeper::start(&inner)
            .map_err(StorageError::io("start a thread for", inner.place.path()))?;
        *inner.keeper.lock() = Some(keeper);
        Ok((Self { inner }, opened))
    }

    /// Starts the node's committer; `deliver` is called once per shard and group.
    ///
    /// # Errors
    /// When it runs already, or the system gives no thread.
    pub fn committer(&self, deliver: Deliver) -> Result<Committer, StorageError> {
        self.committer_observed(deliver, None)
    }

    /// [`Store::committer`], with somebody who is told of each group.
    ///
    /// # Errors
    /// As there.
    pub fn committer_observed(
        &self,
        deliver: Deliver,
        observe: Option<Observe>,
    ) -> Result<Committer, StorageError> {
        let mut running = self.inner.committer.lock();
        if running.is_some() {
            return Err(StorageError::CommitterRuns);
        }
        let options = &self.inner.options;
        let limits = Limits {
            queue_batches: options.queue_batches,
            queue_bytes: options.queue_bytes,
            group_bytes: options.group_bytes,
        };
        let (committer, thread) =
            Committer::start(limits, Writer::new(self.inner.clone()), (deliver, observe))
                .map_err(StorageError::io("start the committer for", &options.path))?;
        *running = Some(Running {
            shared: committer.shared().clone(),
            thread,
        });
        Ok(committer)
    }

    /// A piece of node state. For the start of the node: may block.
    ///
    /// # Errors
    /// When it is corrupt or cannot be read.
    pub fn state(&self, key: StateKey) -> Result<Option<Bytes>, StorageError> {
        self.inner.state(key)
    }

    /// A group of pieces of node state, in order. For the start of the node: may block.
    ///
    /// # Errors
    /// When one is corrupt or cannot be read.
    pub fn states(&self, which: States) -> Result<Vec<(StateKey, Bytes)>, StorageError> {
        self.inner.states(which)
    }

    /// Notes of changes in a lane that come after that number, in order, at most `limit`. May block.
    ///
    /// # Errors
    /// When one is corrupt or cannot be read.
    pub fn changes(
        &self,
        lane: Lane,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<(u64, Bytes)>, StorageError> {
        self.inner.changes(lane, after, limit)
    }

    /// How many notes of changes a lane has. Reads all of their keys: for the start of the node.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn count_changes(&self, lane: Lane) -> Result<ChangeTotal, StorageError> {
        self.inner.count_changes(lane)
    }

    /// Whether there is neither a record (a tombstone is one) nor a hint. May block.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn is_empty(&self) -> Result<bool, StorageError> {
        self.inner.is_empty()
    }

    /// The first ranges of tokens, in order, that records lie in though `keeps` says of their bucket and
    /// partition that they should not; `bits` as in the config. Looks once at each such partition, not at
    /// each record. May block.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub fn leftovers(
        &self,
        bits: u8,
        limit: usize,
        keeps: impl Fn(BucketId, PartitionId) -> bool,
    ) -> Result<Vec<Leftover>, StoreError> {
        self.inner.leftovers(bits, limit, keeps)
    }

    /// The answer to a query when it can be given from memory alone; only [`Query::Record`] ever can.
    pub fn query_cached(&self, query: &Query) -> Option<Result<Found, StoreError>> {
        match query {
            Query::Record(key) => self.inner.record_in_memory(key),
            Query::Records { .. }
            | Query::Digests { .. }
            | Query::Page { .. }
            | Query::Keys { .. }
            | Query::Hints { .. } => None,
        }
    }

    /// The answer to a query for a thread that must not wait: from memory, or from a disk that has not made
    /// its readers wait of late. Only [`Query::Record`] is ever answered. A single read may block.
    pub fn query_here(&self, query: &Query) -> Option<Result<Found, StoreError>> {
        let cached = self.query_cached(query);
        if cached.is_some() || !matches!(query, Query::Record(_)) {
            return cached;
        }
        self.inner.pace.read(|| self.inner.query(query))
    }

    /// The answer to a query. May block on the disk.
    ///
    /// # Errors
    /// What the core is told; the log has the details.
    pub fn query(&self, query: &Query) -> Result<Found, StoreError> {
        self.inner.query(query)
    }

    /// Figures for metrics; cheap enough for once a second.
    pub fn properties(&self) -> Properties {
        Properties::of(&self.inner)
    }

    /// Notes durably that a possible loss of records ([`Opened::dirty_boot`]) has been dealt with: the
    /// node has covered what it may lack from its peers.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn settle_dirty_boot(&self) -> Result<(), StorageError> {
        let mark = &self.inner.mark;
        mark.settle()
            .map_err(StorageError::io("write", mark.path()))
    }

    /// Writes what waits, flushes, syncs, and notes that the store was closed in order. Other clones may
    /// go on reading; the directory is free when the last of them is gone.
    ///
    /// # Errors
    /// When the last writes could not be synced. (A full disk alone is no error: the log has them.)
    pub fn close(self) -> Result<(), StorageError> {
        if let Some(Running { shared, thread }) = self.inner.committer.lock().take() {
            shared.stop();
            join(thread);
        }
        if let Some(keeper) = self.inner.keeper.lock().take() {
            join(keeper.stop());
        }
        if self.inner.broken.load(Ordering::Acquire) {
            return Ok(());
        }
        self.inner.flush();
        let path = &self.inner.options.path;
        self.inner
            .db
            .flush_wal(true)
            .map_err(StorageError::rocks("sync the log", path))?;
        let mark = &self.inner.mark;
        mark.finish()
            .map_err(StorageError::io("write", mark.path()))
    }
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("a thread of the store panicked");
    }
}

impl Inner {
    pub(crate) fn family(&self, name: &str) -> &ColumnFamily {
        self.db
            .cf_handle(name)
            .expect("every family is opened with the database")
    }

    fn flush(&self) {
        let mut wait = FlushOptions::default();
        wait.set_wait(true);
        let families: Vec<_> = FAMILIES.iter().map(|name| self.family(name)).collect();
        if let Err(error) = self.db.flush_cfs_opt(&families, &wait) {
            // Nothing is lost: the next start replays the log instead.
            tracing::warn!(path = %self.options.path.display(), %error, "write buffers could not be flushed while closing");
        }
    }

    /// Ends the process, or (in tests) breaks the store.
    pub(crate) fn fatal(
        &self,
        step: FatalStep,
        reason: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) {
        if !self.broken.swap(true, Ordering::AcqRel) {
            let path = self.options.path.clone();
            (self.options.on_fatal)(&Fatal {
                step,
                path,
                reason: reason.into(),
            });
        }
    }

    pub(crate) fn injected(&self, step: FatalStep) -> io::Result<()> {
        self.options
            .inject
            .as_ref()
            .and_then(|inject| inject(step))
            .map_or(Ok(()), Err)
    }

    /// Syncs the log as far as it is written now. A failure is fatal unless the disk is full.
    pub(crate) fn sync_log(&self) -> Result<(), StoreError> {
        let written = self.mark.state().written;
        let synced = match self.injected(FatalStep::SyncLog) {
            Ok(()) => self.db.flush_wal(true).map_err(Failure::Rocks),
            Err(error) => Err(Failure::Injected(error)),
        };
        match synced {
            Ok(()) => self.advance(Progress::Synced(written)),
            Err(failure) => Err(self.judge(FatalStep::SyncLog, failure)),
        }
    }

    fn advance(&self, progress: Progress) -> Result<(), StoreError> {
        self.injected(FatalStep::Mark)
            .and_then(|()| self.mark.advance(progress))
            .map_err(|error| {
                self.fatal(FatalStep::Mark, error);
                StoreError::Failed
            })
    }

    /// Decides what a failed write means.
    fn judge(&self, step: FatalStep, failure: Failure) -> StoreError {
        match failure {
            // Some of the group may have reached the log, and come back with it after a restart: nobody may
            // be told that nothing was written, as a refusal beforehand tells them.
            failure if failure.is_no_space() => {
                self.space.note_refused();
                StoreError::Failed
            }
            Failure::Rocks(error) if error.kind() == ErrorKind::Corruption => {
                if !self.corrupt.swap(true, Ordering::AcqRel) {
                    let path = self.options.path.display();
                    tracing::error!(%path, %error, "RocksDB met corrupt data and takes no writes any more; reads go on. Move the data directory away and join as a replacement");
                }
                StoreError::Corrupt
            }
            Failure::Rocks(error) => {
                self.fatal(step, error);
                StoreError::Failed
            }
            Failure::Injected(error) => {
                self.fatal(step, error);
                StoreError::Failed
            }
        }
    }

    /// What may be written now; `None` when RocksDB would let a write wait until compaction has made room,
    /// which on a full disk it cannot.
    fn room(&self) -> Option<Room> {
        let room = self.space.room();
        if room == Room::All {
            return Some(room);
        }
        let stopped = self
            .db
            .property_int_value_cf(self.family(RECORDS), properties::IS_WRITE_STOPPED);
        if matches!(stopped, Ok(Some(1..))) {
            self.space.note_refused();
            return None;
        }
        Some(room)
    }

    /// Writes one group and notes how far the log reaches.
    fn write(
        &self,
        batch: WriteBatch,
        options: &WriteOptions,
        sync: bool,
    ) -> Result<(), StoreError> {
        if batch.is_empty() {
            // Nothing to write: what was written before may still have to reach the disk.
            return if sync { self.sync_log() } else { Ok(()) };
        }
        let bytes = batch.size_in_bytes() as u64;
        let written = self.put(batch, options);
        self.settle(written, bytes, sync)
    }

    /// Writes one group without syncing it; `None`, and nothing is written, where RocksDB would wait.
    fn write_unless_stalled(
        &self,
        batch: WriteBatch,
        options: &WriteOptions,
    ) -> Option<Result<(), StoreError>> {
        if batch.is_empty() {
            return Some(Ok(()));
        }
        let bytes = batch.size_in_bytes() as u64;
        match self.put(batch, options) {
            Err(Failure::Rocks(error)) if error.kind() == ErrorKind::Incomplete => None,
            written => Some(self.settle(written, bytes, false)),
        }
    }

    fn put(&self, batch: WriteBatch, options: &WriteOptions) -> Result<(), Failure> {
        self.injected(FatalStep::Commit)
            .map_err(Failure::Injected)?;
        self.db.write_opt(batch, options).map_err(Failure::Rocks)
    }

    fn settle(
        &self,
        written: Result<(), Failure>,
        bytes: u64,
        sync: bool,
    ) -> Result<(), StoreError> {
        written.map_err(|failure| self.judge(FatalStep::Commit, failure))?;
        self.space.note_written(bytes);
        // Whoever writes holds the committer's desk: nothing has been written since.
        let sequence = self.db.latest_sequence_number();
        self.advance(if sync {
            Progress::Synced(sequence)
        } else {
            Progress::Written(sequence)
        })
    }
}

enum Failure {
    Rocks(rocksdb::Error),
    Injected(io::Error),
}

impl Failure {
    fn is_no_space(&self) -> bool {
        match self {
            // The binding hands on RocksDB's words only; these are of its sub-code `kNoSpace`.
            Self::Rocks(error) => error.as_ref().contains("No space left on device"),
            Self::Injected(error) => error.kind() == io::ErrorKind::StorageFull,
        }
    }
}

/// The committer's side: turns groups into RocksDB's batches.
struct Writer {
    inner: Arc<Inner>,
    synced: WriteOptions,
    unsynced: WriteOptions,
    /// Not synced, and refused where RocksDB would have it wait.
    unwaiting: WriteOptions,
}

impl Writer {
    fn new(inner: Arc<Inner>) -> Self {
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        let mut unwaiting = WriteOptions::default();
        unwaiting.set_no_slowdown(true);
        Self {
            inner,
            synced,
            unsynced: WriteOptions::default(),
            unwaiting,
        }
    }

    fn batch(&self, group: &[Waiting], takes: impl Fn(&Waiting) -> bool) -> WriteBatch {
        let bytes: usize = group.iter().map(|waiting| waiting.bytes).sum();
        let mut batch = WriteBatch::with_capacity_bytes(bytes + 64);
        let taken = group.iter().filter(|waiting| takes(waiting));
        for write in taken.flat_map(|waiting| &waiting.batch.writes) {
            self.encode(write, &mut batch);
        }
        batch
    }

    fn encode(&self, write: &Write, out: &mut WriteBatch) {
        let inner = &self.inner;
        match write {
            Write::Merge { key, record } => {
                let at = schema::record_key(key.bucket, key.token, &key.key);
                out.merge_cf(inner.family(RECORDS), at, record.as_bytes());
            }
            Write::Drop(range) => {
                let from = schema::record_key(range.bucket, range.first, &[]);
                let to = schema::record_key_after(range.bucket, range.last)
                    .unwrap_or_else(schema::record_key_end);
                out.delete_range_cf(inner.family(RECORDS), from, to);
            }
            Write::Remove { key } => {
                let at = schema::record_key(key.bucket, key.token, &key.key);
                out.delete_cf(inner.family(RECORDS), at);
            }
            Write::HintPut { at, hint } => {
                out.put_cf(
                    inner.family(HINTS),
                    schema::hint_key(*at),
                    schema::hint_value(*at, hint),
                );
            }
            Write::HintDelete { at } => out.delete_cf(inner.family(HINTS), schema::hint_key(*at)),
            Write::StatePut { key, value } => {
                let (family, at) = schema::state_key(*key);
                let value = schema::state_value(&at, value);
                out.put_cf(inner.family(family), at, value);
            }
            Write::StateDelete { key } => {
                let (family, at) = schema::state_key(*key);
                out.delete_cf(inner.family(family), at);
            }
        }
    }
}

impl Backend for Writer {
    fn write(&mut self, group: &[Waiting], outcomes: &mut Vec<Result<(), StoreError>>) {
        let inner = &self.inner;
        if inner.broken.load(Ordering::Acquire) {
            outcomes.extend(group.iter().map(|_| Err(StoreError::Failed)));
            return;
        }
        let room = inner.room();
        if room.is_none() {
            outcomes.extend(group.iter().map(|_| Err(StoreError::Full)));
            return;
        }
        let fits = |waiting: &Waiting| Some(space::needs(&waiting.batch)) <= room;
        let sync = inner.options.durability == Durability::Fsync
            || group
                .iter()
                .any(|waiting| fits(waiting) && is_synced(waiting));
        let batch = self.batch(group, fits);
        outcomes.extend(group.iter().map(|waiting| {
            if fits(waiting) {
                Ok(())
            } else {
                Err(StoreError::Full)
            }
        }));
        let options = if sync { &self.synced } else { &self.unsynced };
        if let Err(error) = inner.write(batch, options, sync) {
            outcomes
                .iter_mut()
                .filter(|outcome| outcome.is_ok())
                .for_each(|outcome| *outcome = Err(error));
        }
    }

    fn may_be_quick(&self) -> bool {
        let inner = &self.inner;
        inner.options.durability != Durability::Fsync && !inner.broken.load(Ordering::Acquire)
    }

    fn write_at_once(
        &mut self,
        group: &[Waiting],
        outcomes: &mut Vec<Result<(), StoreError>>,
    ) -> bool {
        let inner = &self.inner;
        if group.iter().any(is_synced) || inner.space.room() != Room::All {
            return false;
        }
        let batch = self.batch(group, |_| true);
        let written = inner.write_unless_stalled(batch, &self.unwaiting);
        if let Some(outcome) = written {
            outcomes.extend(group.iter().map(|_| outcome));
        }
        written.is_some()
    }
}

fn is_synced(waiting: &Waiting) -> bool {
    waiting.batch.sync == SyncPolicy::Fsync
}

fn count_hints(db: &DB, path: &std::path::Path) -> Result<Vec<HintTotal>, StorageError> {
    let family = db
        .cf_handle(HINTS)
        .expect("every family is opened with the database");
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    options.set_readahead_size(1 << 20);
    let mut totals: BTreeMap<(NodeId, u8), HintTotal> = BTreeMap::new();
    let mut hints = db.raw_iterator_cf_opt(family, options);
    hints.seek_to_first();
    while let Some((key, value)) = hints.item() {
        if let Some(at) = schema::parse_hint_key(key) {
            let total = totals.entry((at.target, at.slot)).or_insert(HintTotal {
                target: at.target,
                slot: at.slot,
                count: 0,
                counted: 0,
                bytes: 0,
                last_seq: 0,
            });
            total.count += 1;
            total.counted += u64::from(schema::hint_counted(value));
            total.bytes += schema::hint_weight(value.len());
            total.last_seq = total.last_seq.max(at.seq);
        } else {
            tracing::error!(key = %key.escape_ascii(), "a hint has an unknown key and is left alone");
        }
        hints.next();
    }
    hints
        .status()
        .map_err(StorageError::rocks("count the hints", path))?;
    Ok(totals.into_values().collect())
}

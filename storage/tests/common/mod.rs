//! What the tests of the store share.
// Each test uses its part of it.
#![allow(dead_code, unreachable_pub)]

pub mod rng;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use torc_protocol::changes::Lane;
use torc_protocol::hlc::Hlc;
use torc_protocol::message::RecordKey;
use torc_protocol::record::{Parts, Record};
use torc_protocol::store::{
    Batch, CommitId, Found, Hint, HintKey, Leftover, Query, StateKey, StoreError, Sync, Write,
};
use torc_protocol::version::Version;
use torc_ring::{BucketId, NodeId, PartitionId, Token};
use torc_storage::{
    ChangeTotal, Committer, Deliver, MemStore, Opened, Options, States, StorageError, Store,
};

/// How long a test waits for an outcome before it fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

type Outcome = (CommitId, Result<(), StoreError>);

/// What the contract asks of a store; both kinds have it as plain methods.
pub trait Disk: Clone + 'static {
    fn committer(&self, deliver: Deliver) -> Result<Committer, StorageError>;
    fn state(&self, key: StateKey) -> Result<Option<Bytes>, StorageError>;
    fn states(&self, which: States) -> Result<Vec<(StateKey, Bytes)>, StorageError>;
    fn changes(
        &self,
        lane: Lane,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<(u64, Bytes)>, StorageError>;
    fn count_changes(&self, lane: Lane) -> Result<ChangeTotal, StorageError>;
    fn is_empty(&self) -> Result<bool, StorageError>;
    fn query_cached(&self, query: &Query) -> Option<Result<Found, StoreError>>;
    fn query(&self, query: &Query) -> Result<Found, StoreError>;
    fn leftovers(
        &self,
        limit: usize,
        keeps: &dyn Fn(BucketId, PartitionId) -> bool,
    ) -> Result<Vec<Leftover>, StoreError>;
}

macro_rules! disk {
    ($store:ty) => {
        impl Disk for $store {
            fn committer(&self, deliver: Deliver) -> Result<Committer, StorageError> {
                <$store>::committer(self, deliver)
            }
            fn state(&self, key: StateKey) -> Result<Option<Bytes>, StorageError> {
                <$store>::state(self, key)
            }
            fn states(&self, which: States) -> Result<Vec<(StateKey, Bytes)>, StorageError> {
                <$store>::states(self, which)
            }
            fn changes(
                &self,
                lane: Lane,
                after: Option<u64>,
                limit: usize,
            ) -> Result<Vec<(u64, Bytes)>, StorageError> {
                <$store>::changes(self, lane, after, limit)
            }
            fn count_changes(&self, lane: Lane) -> Result<ChangeTotal, StorageError> {
                <$store>::count_changes(self, lane)
            }
            fn is_empty(&self) -> Result<bool, StorageError> {
                <$store>::is_empty(self)
            }
            fn query_cached(&self, query: &Query) -> Option<Result<Found, StoreError>> {
                <$store>::query_cached(self, query)
            }
            fn query(&self, query: &Query) -> Result<Found, StoreError> {
                <$store>::query(self, query)
            }
            fn leftovers(
                &self,
                limit: usize,
                keeps: &dyn Fn(BucketId, PartitionId) -> bool,
            ) -> Result<Vec<Leftover>, StoreError> {
                <$store>::leftovers(self, 4, limit, keeps)
            }
        }
    };
}
disk!(Store);
disk!(MemStore);

/// A store that can be closed and opened again.
pub trait Place {
    type Disk: Disk;
    fn open(&self) -> (Self::Disk, Opened);
    fn close(&self, disk: Self::Disk);
}

/// RocksDB in a temporary folder.
pub struct OnDisk {
    pub dir: tempfile::TempDir,
    pub adjust: fn(&mut Options),
}

impl OnDisk {
    pub fn new() -> Self {
        Self::with(|options| options.durability = torc_storage::Durability::Os)
    }

    pub fn with(adjust: fn(&mut Options)) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            adjust,
        }
    }

    /// In a file system in memory where there is one: for tests of what is done, not of what lasts.
    pub fn in_memory(adjust: fn(&mut Options)) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        Self { dir, adjust }
    }

    pub fn options(&self) -> Options {
        let mut options = Options::new(self.dir.path().join("data"));
        options.reserve = 1 << 20;
        options.on_fatal = Arc::new(|fatal| panic!("{fatal}"));
        (self.adjust)(&mut options);
        options
    }
}

impl Place for OnDisk {
    type Disk = Store;

    fn open(&self) -> (Store, Opened) {
        Store::open(self.options()).unwrap()
    }

    fn close(&self, disk: Store) {
        disk.close().unwrap();
    }
}

/// The twin.
#[derive(Default)]
pub struct InMemory(MemStore);

impl Place for InMemory {
    type Disk = MemStore;

    fn open(&self) -> (MemStore, Opened) {
        (self.0.clone(), self.0.opened())
    }

    fn close(&self, disk: MemStore) {
        drop(disk);
    }
}

/// A committer whose outcomes are waited for, for one shard.
pub struct Commits {
    pub committer: Committer,
    pub outcomes: Receiver<Vec<(usize, Outcome)>>,
    next: u64,
}

impl Commits {
    pub fn of(disk: &impl Disk) -> Self {
        let (sender, outcomes) = channel();
        Self {
            committer: disk.committer(deliver_to(sender)).unwrap(),
            outcomes,
            next: 0,
        }
    }

    pub fn submit(&mut self, batch: Batch) -> CommitId {
        self.next += 1;
        self.committer
            .submit(0, CommitId(self.next), batch)
            .expect("room in the queue");
        CommitId(self.next)
    }

    /// Waits for the outcomes of that many batches.
    pub fn wait(&self, count: usize) -> Vec<(usize, Outcome)> {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(
                self.outcomes
                    .recv_timeout(PATIENCE)
                    .expect("an outcome in time"),
            );
        }
        all
    }

    pub fn commit(&mut self, batch: Batch) -> Result<(), StoreError> {
        let id = self.submit(batch);
        let outcomes = self.wait(1);
        assert_eq!(outcomes.len(), 1);
        assert_eq!(outcomes[0].1.0, id);
        outcomes[0].1.1
    }

    pub fn write(&mut self, writes: Vec<Write>) -> Result<(), StoreError> {
        self.commit(batch(writes))
    }
}

pub fn deliver_to(sender: Sender<Vec<(usize, Outcome)>>) -> Deliver {
    Arc::new(move |shard, outcomes| {
        // The receiver may be gone at the end of a test.
        let _ = sender.send(
            outcomes
                .into_iter()
                .map(|outcome| (shard, outcome))
                .collect(),
        );
    })
}

pub fn batch(writes: Vec<Write>) -> Batch {
    Batch {
        writes,
        sync: Sync::Policy,
    }
}

pub fn key(bucket: u32, token: u64, key: &[u8]) -> RecordKey {
    RecordKey {
        bucket: BucketId(bucket),
        token: Token(token),
        key: Bytes::copy_from_slice(key),
    }
}

pub fn value(hlc: u64, value: &[u8]) -> Record {
    let version = Version {
        hlc: Hlc(hlc),
        node: NodeId(1),
    };
    Record::value(Parts {
        version,
        expiry: None,
        content_type: b"",
        value,
    })
}

pub fn tombstone(hlc: u64) -> Record {
    Record::tombstone(Version {
        hlc: Hlc(hlc),
        node: NodeId(1),
    })
}

pub fn merge(key: &RecordKey, record: &Record) -> Write {
    Write::Merge {
        key: key.clone(),
        record: record.clone(),
    }
}

pub fn hint_at(target: u64, slot: u8, seq: u64) -> HintKey {
    HintKey {
        target: NodeId(target),
        slot,
        seq,
    }
}

pub fn hint(key: &RecordKey, record: &Record) -> Hint {
    Hint {
        key: key.clone(),
        record: record.clone(),
        counted: false,
    }
}

pub fn read(disk: &impl Disk, key: &RecordKey) -> Result<Option<Record>, StoreError> {
    match disk.query(&Query::Record(key.clone()))? {
        Found::Record(found) => Ok(found),
        other => panic!("a record was asked for, {other:?} came"),
    }
}

pub fn hints(
    disk: &impl Disk,
    target: u64,
    slot: u8,
    after: u64,
    limit: usize,
) -> Vec<(HintKey, Hint)> {
    match disk.query(&Query::Hints {
        target: NodeId(target),
        slot,
        after,
        limit,
    }) {
        Ok(Found::Hints(found)) => found
            .into_iter()
            .map(|(at, hint)| (at, hint.expect("whole")))
            .collect(),
        other => panic!("hints were asked for, {other:?} came"),
    }
}

//! Failures of single steps, put in from outside; and what a group is.

// Helpers of tests panic and print like tests.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use torc_protocol::store::{Batch, CommitId, StateKey, StoreError, Sync, Write};
use torc_storage::{Durability, FatalStep, MemStore, Options, Store};

use common::*;

/// Counts steps and fails those it is told to.
#[derive(Clone, Default)]
struct Saboteur {
    commits: Arc<AtomicUsize>,
    syncs: Arc<AtomicUsize>,
    fail: Arc<Mutex<Option<(FatalStep, io::ErrorKind)>>>,
    fatal: Arc<Mutex<Vec<FatalStep>>>,
}

impl Saboteur {
    fn open(&self, folder: &tempfile::TempDir, durability: Durability) -> Store {
        let mut options = Options::new(folder.path().join("data"));
        options.durability = durability;
        options.reserve = 1 << 20;
        let this = self.clone();
        options.inject = Some(Arc::new(move |step| {
            match step {
                FatalStep::Commit => this.commits.fetch_add(1, Ordering::SeqCst),
                FatalStep::SyncLog => this.syncs.fetch_add(1, Ordering::SeqCst),
                FatalStep::Mark => 0,
            };
            this.fail
                .lock()
                .filter(|(at, _)| *at == step)
                .map(|(_, kind)| io::Error::from(kind))
        }));
        let fatal = self.fatal.clone();
        options.on_fatal = Arc::new(move |reason| fatal.lock().push(reason.step));
        Store::open(options).unwrap().0
    }

    fn fail(&self, step: FatalStep, kind: io::ErrorKind) {
        *self.fail.lock() = Some((step, kind));
    }
}

fn put(number: u64) -> Batch {
    batch(vec![merge(&key(1, number, b"k"), &value(1, b"v"))])
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::yield_now();
    }
}

#[test]
fn after_a_failed_commit_nothing_of_it_is_read_and_nothing_is_written_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let saboteur = Saboteur::default();
    let store = saboteur.open(&folder, Durability::Fsync);
    let mut commits = Commits::of(&store);
    commits.commit(put(1)).unwrap();
    saboteur.fail(FatalStep::Commit, io::ErrorKind::Other);
    assert_eq!(commits.commit(put(2)), Err(StoreError::Failed));
    *saboteur.fail.lock() = None;
    assert_eq!(commits.commit(put(3)), Err(StoreError::Failed));
    assert_eq!(*saboteur.fatal.lock(), [FatalStep::Commit]);
    assert_eq!(read(&store, &key(1, 1, b"k")), Ok(Some(value(1, b"v"))));
    assert_eq!(read(&store, &key(1, 2, b"k")), Ok(None));
    assert_eq!(read(&store, &key(1, 3, b"k")), Ok(None));
}

#[test]
fn a_disk_that_fills_up_under_a_write_leaves_its_outcome_open_and_goes_on_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let saboteur = Saboteur::default();
    let store = saboteur.open(&folder, Durability::Fsync);
    let mut commits = Commits::of(&store);
    saboteur.fail(FatalStep::Commit, io::ErrorKind::StorageFull);
    // Not `Full`: that promises that nothing was written.
    assert_eq!(commits.commit(put(1)), Err(StoreError::Failed));
    assert!(store.properties().disk_full);
    assert_eq!(read(&store, &key(1, 1, b"k")), Ok(None));
    *saboteur.fail.lock() = None;
    assert_eq!(commits.commit(put(2)), Ok(()));
    assert!(!store.properties().disk_full);
    assert!(saboteur.fatal.lock().is_empty());
}

#[test]
fn the_log_is_synced_in_intervals_and_only_when_something_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let saboteur = Saboteur::default();
    let store = saboteur.open(&folder, Durability::Interval(Duration::from_millis(2)));
    let mut commits = Commits::of(&store);
    for number in 0..3 {
        let before = saboteur.syncs.load(Ordering::SeqCst);
        commits.commit(put(number)).unwrap();
        wait_until("a sync", || saboteur.syncs.load(Ordering::SeqCst) > before);
    }
    // A batch of its own standard is synced with its write: nothing is left for the timer.
    wait_until("rest", || {
        let before = saboteur.syncs.load(Ordering::SeqCst);
        commits.committer.waiting() == 0 && saboteur.syncs.load(Ordering::SeqCst) == before
    });
    saboteur.fail(FatalStep::SyncLog, io::ErrorKind::Other);
    let state = Write::StatePut {
        key: StateKey::Applied,
        value: Bytes::from_static(b"v"),
    };
    assert_eq!(
        commits.commit(Batch {
            writes: vec![state],
            sync: Sync::Fsync
        }),
        Ok(())
    );
    assert!(saboteur.fatal.lock().is_empty());
    assert_eq!(commits.commit(put(9)), Ok(()));
    wait_until("the failure of the timer's sync", || {
        *saboteur.fatal.lock() == [FatalStep::SyncLog]
    });
    assert_eq!(commits.commit(put(10)), Err(StoreError::Failed));
}

#[test]
fn a_mark_that_cannot_be_synced_is_fatal() {
    let folder = tempfile::tempdir().unwrap();
    let saboteur = Saboteur::default();
    let store = saboteur.open(&folder, Durability::Fsync);
    saboteur.fail(FatalStep::Mark, io::ErrorKind::Other);
    wait_until("the failure", || {
        *saboteur.fatal.lock() == [FatalStep::Mark]
    });
    assert_eq!(Commits::of(&store).commit(put(1)), Err(StoreError::Failed));
}

/// What waits while one group is written becomes one group, with one fsync.
#[test]
fn what_waits_is_written_as_one_group() {
    let folder = tempfile::tempdir().unwrap();
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let commits = Arc::new(AtomicUsize::new(0));
    let mut options = Options::new(folder.path().join("data"));
    options.reserve = 1 << 20;
    let (of_hook, count) = (gate.clone(), commits.clone());
    options.inject = Some(Arc::new(move |step| {
        if step == FatalStep::Commit && count.fetch_add(1, Ordering::SeqCst) == 0 {
            let mut open = of_hook.0.lock();
            while !*open {
                of_hook.1.wait(&mut open);
            }
        }
        None
    }));
    let (store, _) = Store::open(options).unwrap();
    let mut queue = Commits::of(&store);
    queue.submit(put(0));
    wait_until("the first write", || commits.load(Ordering::SeqCst) == 1);
    for number in 1..=500 {
        queue.submit(put(number));
    }
    // None of it can be read while it is not durable.
    assert_eq!(read(&store, &key(1, 0, b"k")), Ok(None));
    *gate.0.lock() = true;
    gate.1.notify_all();
    let outcomes = queue.wait(501);
    assert!(outcomes.iter().all(|(_, (_, outcome))| outcome.is_ok()));
    assert_eq!(commits.load(Ordering::SeqCst), 2);
}

#[test]
fn a_full_queue_gives_the_batch_back() {
    let store = MemStore::new();
    store.set_held(true);
    let (sender, outcomes) = channel();
    let committer = store.committer(deliver_to(sender)).unwrap();
    let mut taken = 0;
    let back = loop {
        match committer.submit(0, CommitId(taken), put(taken)) {
            Ok(()) => taken += 1,
            Err(back) => break back,
        }
        assert!(taken < 100_000, "the queue has a bound");
    };
    assert_eq!(back, (CommitId(taken), put(taken)));
    store.set_held(false);
    let mut done = 0;
    while done < taken {
        done += outcomes
            .recv_timeout(PATIENCE)
            .expect("an outcome in time")
            .len() as u64;
    }
    committer
        .submit(0, CommitId(0), put(0))
        .expect("room again");
}

#[test]
fn the_twin_fails_and_is_full_on_demand() {
    let store = MemStore::new();
    let mut commits = Commits::of(&store);
    store.set_full(true);
    assert_eq!(commits.commit(put(1)), Err(StoreError::Full));
    assert_eq!(
        commits.write(vec![merge(&key(1, 1, b"k"), &tombstone(1))]),
        Ok(())
    );
    store.set_full(false);
    assert_eq!(commits.commit(put(2)), Ok(()));
    store.set_failing(true);
    assert_eq!(commits.commit(put(3)), Err(StoreError::Failed));
    store.set_failing(false);
    assert_eq!(read(&store, &key(1, 3, b"k")), Ok(None));
}

#[test]
fn a_store_has_one_committer_and_takes_nothing_after_its_close() {
    let folder = tempfile::tempdir().unwrap();
    let store = Saboteur::default().open(&folder, Durability::Os);
    let mut commits = Commits::of(&store);
    assert!(store.committer(Arc::new(|_, _| ())).is_err());
    commits.commit(put(1)).unwrap();
    store.close().unwrap();
    let refused = commits.committer.submit(0, CommitId(9), put(9));
    assert_eq!(refused, Err((CommitId(9), put(9))));
}

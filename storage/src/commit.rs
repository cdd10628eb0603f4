//! Group commit: one thread per node writes what waits, all of it at once.
//!
//! While one group is being written and synced, the next one gathers in the queue; so one fsync serves
//! every batch that waited for it, and a lone batch waits for nobody. (Gray and Reuter, "Transaction
//! Processing", 1993, section 9.4.7: the log's group commit.)
//!
//! Where no fsync is asked for, a write costs less than waking a thread: then a shard writes what it has
//! gathered by itself ([`Committer::commit_here`]), unless the disk makes it wait.
//!
//! Order: batches are written in the order of [`Committer::submit`], so those of one shard are too.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use torc_protocol::store::{Batch, CommitId, StoreError, Write};

/// What became of a batch.
pub type Outcome = (CommitId, Result<(), StoreError>);

/// Takes the outcomes of one shard's batches of one group, in the order of their submission. Called on the
/// committer's thread, or on that of another shard: it must not block.
pub type Deliver = Arc<dyn Fn(usize, Vec<Outcome>) + Send + Sync>;

/// Is told of each group after it was written: how many batches it had, and how long the write took.
pub type Observe = Arc<dyn Fn(usize, Duration) + Send + Sync>;

/// Greatest number of batches in one write.
const GROUP_BATCHES_MAX: usize = 4096;
/// A write on the caller's thread that takes longer makes the disk count as slow.
const QUICK_MAX: Duration = Duration::from_millis(1);
/// For how long it does: then one more write on a caller's thread finds out.
const SLOW_PAUSE: Duration = Duration::from_millis(100);

/// The way to a store's committer. Clones share it; it ends when the store is closed, or when the last
/// clone is dropped, and writes what waits before that.
#[derive(Clone)]
pub struct Committer {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    limits: Limits,
    /// Held by whoever takes a group and writes it, so that groups are written in the order of the queue.
    /// Gone when the thread has ended.
    desk: Mutex<Option<Desk>>,
}

/// Bounds of the queue and of a group.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) queue_batches: usize,
    pub(crate) queue_bytes: usize,
    pub(crate) group_bytes: usize,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    stopping: bool,
    /// Whether the committer sleeps, and must be woken.
    asleep: bool,
}

pub(crate) struct Waiting {
    pub(crate) shard: usize,
    pub(crate) id: CommitId,
    pub(crate) batch: Batch,
    pub(crate) bytes: usize,
}

/// What a committer writes to.
pub(crate) trait Backend: Send + 'static {
    /// Writes a group as one; pushes one outcome per batch, in order.
    fn write(&mut self, group: &[Waiting], outcomes: &mut Vec<Result<(), StoreError>>);

    /// Whether [`Backend::write_at_once`] is worth a try.
    fn may_be_quick(&self) -> bool;

    /// The same if it takes no waiting; otherwise answers false and has done nothing.
    fn write_at_once(
        &mut self,
        group: &[Waiting],
        outcomes: &mut Vec<Result<(), StoreError>>,
    ) -> bool;
}

impl Committer {
    pub(crate) fn start(
        limits: Limits,
        backend: impl Backend,
        (deliver, observe): (Deliver, Option<Observe>),
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let desk = Desk {
            backend: Box::new(backend),
            deliver,
            observe,
            group: Vec::new(),
            outcomes: Vec::new(),
            by_shard: Vec::new(),
            slow_until: None,
        };
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: Condvar::new(),
            limits,
            desk: Mutex::new(Some(desk)),
        });
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("torc-commit".into())
            .spawn(move || of_thread.run())?;
        Ok((
            Self {
                handle: Arc::new(Handle { shared }),
            },
            thread,
        ))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// Hands over a batch; never blocks. The outcome comes through [`Deliver`].
    ///
    /// # Errors
    /// Gives the batch back when the queue is full or the store is being closed.
    pub fn submit(
        &self,
        shard: usize,
        commit: CommitId,
        batch: Batch,
    ) -> Result<(), (CommitId, Batch)> {
        self.submit_quietly(shard, commit, batch)?;
        self.handle.shared.rouse();
        Ok(())
    }

    /// As [`Committer::submit`], for a caller that calls [`Committer::commit_here`] or
    /// [`Committer::commit_there`] soon: before that, nobody may look at it.
    ///
    /// # Errors
    /// As there.
    pub fn submit_quietly(
        &self,
        shard: usize,
        commit: CommitId,
        batch: Batch,
    ) -> Result<(), (CommitId, Batch)> {
        self.handle.shared.push(shard, commit, batch)
    }

    /// Has the committer's thread write what waits.
    pub fn commit_there(&self) {
        self.handle.shared.rouse();
    }

    /// Writes what waits on the caller's thread, where that takes no waiting: a write that neither syncs
    /// nor meets a stall is over sooner than another thread would be awake. Otherwise, and when somebody
    /// else is writing, the committer's thread is woken. The outcomes of `shard` that are known then are
    /// pushed to `outcomes` in the order of submission; all others go through [`Deliver`].
    ///
    /// They would overtake outcomes of that shard that are being delivered: a caller that keeps to the
    /// order waits for those first, and calls [`Committer::commit_there`] meanwhile.
    pub fn commit_here(&self, shard: usize, outcomes: &mut Vec<Outcome>) {
        let shared = &self.handle.shared;
        let done = shared.desk.try_lock().is_some_and(|mut desk| {
            desk.as_mut()
                .is_some_and(|desk| desk.commit_at_once(shared, (shard, outcomes)))
        });
        if !done {
            shared.rouse();
        }
    }

    /// Batches that wait to be written, for metrics.
    pub fn waiting(&self) -> usize {
        self.handle.shared.queue.lock().waiting.len()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl Shared {
    /// Takes no more batches; the thread ends when those that wait are written.
    pub(crate) fn stop(&self) {
        self.queue.lock().stopping = true;
        self.wake.notify_one();
    }

    fn push(&self, shard: usize, commit: CommitId, batch: Batch) -> Result<(), (CommitId, Batch)> {
        let bytes = weight(&batch);
        let mut queue = self.queue.lock();
        let no_room = !queue.waiting.is_empty()
            && (queue.waiting.len() >= self.limits.queue_batches
                || queue.bytes + bytes > self.limits.queue_bytes);
        if queue.stopping || no_room {
            return Err((commit, batch));
        }
        queue.bytes += bytes;
        queue.waiting.push_back(Waiting {
            shard,
            id: commit,
            batch,
            bytes,
        });
        Ok(())
    }

    /// Wakes the thread if there is something for it to do.
    fn rouse(&self) {
        let mut queue = self.queue.lock();
        if !queue.waiting.is_empty() && std::mem::take(&mut queue.asleep) {
            drop(queue);
            self.wake.notify_one();
        }
    }

    /// Waits until there is something to write; false when there will be nothing any more.
    fn wait(&self) -> bool {
        let mut queue = self.queue.lock();
        while queue.waiting.is_empty() {
            if queue.stopping {
                return false;
            }
            queue.asleep = true;
            self.wake.wait(&mut queue);
            queue.asleep = false;
        }
        true
    }

    /// Takes the next group; empty when somebody else has taken all.
    fn take(&self, group: &mut Vec<Waiting>) {
        let mut queue = self.queue.lock();
        let mut bytes = 0;
        while let Some(next) = queue.waiting.front() {
            let full =
                bytes + next.bytes > self.limits.group_bytes || group.len() >= GROUP_BATCHES_MAX;
            if full && !group.is_empty() {
                break;
            }
            bytes += next.bytes;
            group.extend(queue.waiting.pop_front());
        }
        queue.bytes -= bytes;
    }

    /// Puts a group back to where it was taken from.
    fn give_back(&self, group: &mut Vec<Waiting>) {
        let mut queue = self.queue.lock();
        queue.bytes += group.iter().map(|waiting| waiting.bytes).sum::<usize>();
        for waiting in group.drain(..).rev() {
            queue.waiting.push_front(waiting);
        }
    }

    /// The committer's thread.
    fn run(&self) {
        while self.wait() {
            if let Some(desk) = self.desk.lock().as_mut() {
                desk.commit(self);
            }
        }
        // Whatever the backend holds open is closed, also while clones of the committer live.
        drop(self.desk.lock().take());
    }
}

/// Ends the process when a commit panics: what became of its group is unknown, and shards that wait for
/// ever would be worse than a restart.
struct EndOnPanic;

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a commit panicked; the process ends");
            std::process::abort();
        }
    }
}

/// What writing takes.
struct Desk {
    backend: Box<dyn Backend>,
    deliver: Deliver,
    observe: Option<Observe>,
    group: Vec<Waiting>,
    outcomes: Vec<Result<(), StoreError>>,
    by_shard: Vec<Vec<Outcome>>,
    /// Until then the disk counts as slow, and only the thread waits for it.
    slow_until: Option<Instant>,
}

impl Desk {
    fn commit(&mut self, shared: &Shared) {
        let _guard = EndOnPanic;
        shared.take(&mut self.group);
        if self.group.is_empty() {
            return;
        }
        let started = Instant::now();
        self.backend.write(&self.group, &mut self.outcomes);
        self.tell(started.elapsed(), None);
    }

    /// Writes one group on the thread of that shard; false when the thread has to see to what waits.
    fn commit_at_once(&mut self, shared: &Shared, own: (usize, &mut Vec<Outcome>)) -> bool {
        let started = Instant::now();
        if !self.backend.may_be_quick() || self.slow_until.is_some_and(|until| started < until) {
            return false;
        }
        let _guard = EndOnPanic;
        shared.take(&mut self.group);
        if self.group.is_empty() {
            return true;
        }
        if !self.backend.write_at_once(&self.group, &mut self.outcomes) {
            shared.give_back(&mut self.group);
            return false;
        }
        let took = started.elapsed();
        self.slow_until = (took > QUICK_MAX).then(|| started + took + SLOW_PAUSE);
        self.tell(took, Some(own));
        // What the group had no room for.
        shared.queue.lock().waiting.is_empty()
    }

    fn tell(&mut self, took: Duration, mut own: Option<(usize, &mut Vec<Outcome>)>) {
        if let Some(observe) = &self.observe {
            observe(self.group.len(), took);
        }
        assert_eq!(
            self.group.len(),
            self.outcomes.len(),
            "each batch has one outcome"
        );
        for (waiting, outcome) in self.group.drain(..).zip(self.outcomes.drain(..)) {
            if let Some((shard, outcomes)) = &mut own
                && *shard == waiting.shard
            {
                outcomes.push((waiting.id, outcome));
                continue;
            }
            if self.by_shard.len() <= waiting.shard {
                self.by_shard.resize_with(waiting.shard + 1, Vec::new);
            }
            self.by_shard[waiting.shard].push((waiting.id, outcome));
        }
        for (shard, outcomes) in self.by_shard.iter_mut().enumerate() {
            if !outcomes.is_empty() {
                (self.deliver)(shard, std::mem::take(outcomes));
            }
        }
    }
}

/// About the bytes that a batch takes in memory and log.
fn weight(batch: &Batch) -> usize {
    let each = |write: &Write| match write {
        Write::Merge { key, record } => key.key.len() + record.len(),
        Write::HintPut { hint, .. } => hint.key.key.len() + hint.record.len(),
        Write::StatePut { value, .. } => value.len(),
        Write::Remove { key } => key.key.len(),
        Write::Drop(_) | Write::HintDelete { .. } | Write::StateDelete { .. } => 0,
    };
    batch.writes.iter().map(|write| 64 + each(write)).sum()
}

//! Group commit: one thread per node writes what waits, all of it at once.
//!
//! While one group is being written and synced, the next one gathers in the queue; so one fsync serves
//! every batch that waited for it, and a lone batch waits for nobody. (Gray and Reuter, "Transaction
//! Processing", 1993, section 9.4.7: the log's group commit.)
//!
//! Order: batches are written in the order of [`Committer::submit`], so those of one shard are too.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use torc_protocol::store::{Batch, CommitId, StoreError, Write};

/// Takes the outcomes of one shard's batches of one group, in the order of their submission. Called on the
/// committer's thread: it must not block.
pub type Deliver = Arc<dyn Fn(usize, Vec<(CommitId, Result<(), StoreError>)>) + Send + Sync>;

/// Is told of each group after it was written: how many batches it had, and how long the write took.
pub type Observe = Arc<dyn Fn(usize, Duration) + Send + Sync>;

/// Greatest number of batches in one write.
const GROUP_BATCHES_MAX: usize = 4096;

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
}

impl Committer {
    pub(crate) fn start(
        limits: Limits,
        backend: impl Backend,
        (deliver, observe): (Deliver, Option<Observe>),
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: Condvar::new(),
            limits,
        });
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("torc-commit".into())
            .spawn(move || run(&of_thread, backend, &deliver, observe.as_ref()))?;
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
        let shared = &self.handle.shared;
        let bytes = weight(&batch);
        let mut queue = shared.queue.lock();
        let no_room = !queue.waiting.is_empty()
            && (queue.waiting.len() >= shared.limits.queue_batches
                || queue.bytes + bytes > shared.limits.queue_bytes);
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
        let wake = std::mem::take(&mut queue.asleep);
        drop(queue);
        if wake {
            shared.wake.notify_one();
        }
        Ok(())
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

    /// The next group; `None` when there will be none any more.
    fn next_group(&self, group: &mut Vec<Waiting>) -> Option<()> {
        let mut queue = self.queue.lock();
        while queue.waiting.is_empty() {
            if queue.stopping {
                return None;
            }
            queue.asleep = true;
            self.wake.wait(&mut queue);
            queue.asleep = false;
        }
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
        Some(())
    }
}

/// Ends the process when the committer panics: what became of its group is unknown, and shards that wait
/// for ever would be worse than a restart.
struct EndOnPanic;

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the committer panicked; the process ends");
            std::process::abort();
        }
    }
}

fn run(shared: &Shared, mut backend: impl Backend, deliver: &Deliver, observe: Option<&Observe>) {
    let _guard = EndOnPanic;
    let (mut group, mut outcomes) = (Vec::new(), Vec::new());
    let mut by_shard: Vec<Vec<(CommitId, Result<(), StoreError>)>> = Vec::new();
    while shared.next_group(&mut group).is_some() {
        let started = Instant::now();
        backend.write(&group, &mut outcomes);
        if let Some(observe) = observe {
            observe(group.len(), started.elapsed());
        }
        assert_eq!(group.len(), outcomes.len(), "each batch has one outcome");
        for (waiting, outcome) in group.drain(..).zip(outcomes.drain(..)) {
            if by_shard.len() <= waiting.shard {
                by_shard.resize_with(waiting.shard + 1, Vec::new);
            }
            by_shard[waiting.shard].push((waiting.id, outcome));
        }
        for (shard, outcomes) in by_shard.iter_mut().enumerate() {
            if !outcomes.is_empty() {
                deliver(shard, std::mem::take(outcomes));
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
        Write::Drop(_) | Write::HintDelete { .. } | Write::StateDelete { .. } => 0,
    };
    batch.writes.iter().map(|write| 64 + each(write)).sum()
}

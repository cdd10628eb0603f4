//! The shell of one shard: brings it what happens and does what it wants done.
//!
//! Everything that waits is taken in one go, under one reading of the clocks; what comes out is handed on
//! in the order in which it came. Bounds: clients' requests and peers' messages by their queues; results
//! of reads and commits by the work that was asked for.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use torc_protocol::client::{ClientReply, RequestId};
use torc_protocol::cluster_admin::Progress;
use torc_protocol::message::PeerMessage;
use torc_protocol::shard::Shard;
use torc_protocol::shard_io::{Event, Input, Output};
use torc_protocol::store::{Batch, CommitId, Found, Query, ReadId, StoreError};
use torc_protocol::time::{Mono, Now};
use torc_ring::{ConfigVersion, NodeId, RingVersion};
use torc_storage::{Committer, Outcome, Store};
use tracing::{debug, error, warn};

use crate::handle::{Handle, Submission};
use crate::quiet::Quiet;
use crate::transport::Transport;

/// Inputs taken in one go.
const BATCH_MAX: usize = 256;
/// Reads of one shard that may wait for the disk at a time; more of them wait in line.
const BLOCKING_READS_MAX: usize = 64;
/// How often clients that hung up are looked for, in microseconds.
const LOOK_EVERY: u64 = 250_000;
/// Rounds of commits of one turn, each of what came out of the one before; the thread does the rest.
const COMMITS_MAX: usize = 4;
/// Clients' requests that may wait for one shard.
pub(crate) const SUBMISSIONS_MAX: usize = 16_384;
/// Batches of peers' messages that may wait for one shard.
pub(crate) const PEER_BATCHES_MAX: usize = 4_096;

/// What reaches a shard besides requests and messages.
#[derive(Debug)]
pub(crate) enum Mail {
    /// Commits ended.
    Committed(Vec<(CommitId, Result<(), StoreError>)>),
    /// A read that had to wait for the disk.
    Read(ReadId, Result<Found, StoreError>),
    /// From the cluster task.
    Control(Input),
    /// The node stops: answer when no client waits any more.
    Drain(oneshot::Sender<()>),
}

/// What a shard tells the cluster task.
#[derive(Debug)]
pub(crate) enum ShardNews {
    Drained(usize, RingVersion),
    /// Everything that the shard gains under that joint ring version is there.
    Covered(usize, RingVersion),
    /// How far the shard is with that joint ring version.
    Progress(usize, RingVersion, Progress),
    NewerConfig(NodeId, ConfigVersion),
}

/// The ways into a shard.
#[derive(Clone, Debug)]
pub(crate) struct Inlets {
    pub(crate) peers: mpsc::Sender<(NodeId, Vec<PeerMessage>)>,
    pub(crate) mail: mpsc::UnboundedSender<Mail>,
}

/// The other ends of [`Inlets`] and of the submissions.
#[derive(Debug)]
pub(crate) struct Outlets {
    pub(crate) submissions: mpsc::Receiver<Submission>,
    pub(crate) peers: mpsc::Receiver<(NodeId, Vec<PeerMessage>)>,
    pub(crate) mail: mpsc::UnboundedReceiver<Mail>,
}

/// What a shard uses.
#[derive(Clone)]
pub(crate) struct Tools {
    pub(crate) index: usize,
    pub(crate) handle: Handle,
    pub(crate) store: Store,
    pub(crate) committer: Committer,
    pub(crate) transport: Transport,
    pub(crate) mail: mpsc::UnboundedSender<Mail>,
    pub(crate) news: mpsc::UnboundedSender<ShardNews>,
}

/// Runs until all ways in are closed.
pub(crate) async fn run(shard: Shard, tools: Tools, mut outlets: Outlets) {
    let mut task = Task {
        shard,
        tools,
        waiting: HashMap::new(),
        next_request: 0,
        blocking: Arc::new(Semaphore::new(BLOCKING_READS_MAX)),
        drains: Vec::new(),
        looked: Mono(0),
        commits: Commits::default(),
        quiet: Quiet::of(1),
    };
    let mut submissions = Vec::with_capacity(BATCH_MAX);
    let mut peers = Vec::with_capacity(BATCH_MAX);
    let mut mail = Vec::with_capacity(BATCH_MAX);
    let mut armed = Instant::now();
    let alarm = tokio::time::sleep_until(armed);
    tokio::pin!(alarm);
    loop {
        // An alarm that rings too early costs one turn; one that is set anew for every request costs more.
        if let Some(due) = task.due()
            && (due < armed || alarm.is_elapsed())
        {
            armed = due;
            alarm.as_mut().reset(due);
        }
        tokio::select! {
            biased;
            count = outlets.mail.recv_many(&mut mail, BATCH_MAX) => if count == 0 { return },
            _ = outlets.peers.recv_many(&mut peers, BATCH_MAX), if !outlets.peers.is_closed() => {}
            _ = outlets.submissions.recv_many(&mut submissions, BATCH_MAX), if !outlets.submissions.is_closed() => {}
            () = &mut alarm => {}
        }
        drain(&mut outlets, &mut mail, &mut peers, &mut submissions);
        let now = task.tools.handle.now();
        for item in mail.drain(..) {
            task.on_mail(now, item);
        }
        for (from, messages) in peers.drain(..) {
            for message in messages {
                task.handle(now, Input::Peer(from, message));
            }
        }
        for submission in submissions.drain(..) {
            task.on_submission(now, submission);
        }
        if alarm.is_elapsed() {
            task.handle(now, Input::Tick);
        }
        task.forget_the_gone(now);
        // After everything that may hand over a batch: nobody looks at it before the next turn otherwise.
        task.commit_all(now);
        task.answer_drains();
    }
}

/// Takes what else waits already: one turn for all of it.
fn drain(
    outlets: &mut Outlets,
    mail: &mut Vec<Mail>,
    peers: &mut Vec<(NodeId, Vec<PeerMessage>)>,
    submissions: &mut Vec<Submission>,
) {
    while mail.len() < BATCH_MAX
        && let Ok(item) = outlets.mail.try_recv()
    {
        mail.push(item);
    }
    while peers.len() < BATCH_MAX
        && let Ok(item) = outlets.peers.try_recv()
    {
        peers.push(item);
    }
    while submissions.len() < BATCH_MAX
        && let Ok(item) = outlets.submissions.try_recv()
    {
        submissions.push(item);
    }
}

/// A request's id as it stands in logs.
struct Printed<'a>(&'a [u8]);

impl fmt::Display for Printed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(self.0).unwrap_or("?"))
    }
}

struct Task {
    shard: Shard,
    tools: Tools,
    waiting: HashMap<RequestId, oneshot::Sender<ClientReply>>,
    next_request: u64,
    blocking: Arc<Semaphore>,
    drains: Vec<oneshot::Sender<()>>,
    looked: Mono,
    commits: Commits,
    /// Of warnings about dropped hints: with a full disk there is one for each write.
    quiet: Quiet,
}

/// What the committer has of this shard.
#[derive(Default)]
struct Commits {
    /// Batches without an outcome.
    open: usize,
    /// Of those, handed over in this turn.
    new: usize,
    outcomes: Vec<Outcome>,
}

impl Task {
    fn due(&self) -> Option<Instant> {
        let due = self.shard.next_deadline()?;
        let now: Mono = self.tools.handle.now().mono;
        Some(Instant::now() + Duration::from_micros(due.since(now)))
    }

    fn on_mail(&mut self, now: Now, mail: Mail) {
        match mail {
            Mail::Committed(results) => {
                self.commits.open -= results.len();
                for (id, result) in results {
                    self.handle(now, Input::Committed(id, result));
                }
            }
            Mail::Read(id, result) => self.handle(now, Input::Read(id, result)),
            Mail::Control(input) => self.handle(now, input),
            Mail::Drain(done) => {
                self.handle(now, Input::Stop);
                self.drains.push(done);
            }
        }
    }

    fn on_submission(&mut self, now: Now, submission: Submission) {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        self.waiting.insert(id, submission.reply);
        self.handle(now, Input::Client(id, submission.request));
    }

    fn handle(&mut self, now: Now, input: Input) {
        self.shard.handle(now, input);
        while let Some(output) = self.shard.next_output() {
            self.perform(now, output);
        }
    }

    fn perform(&mut self, now: Now, output: Output) {
        let index = self.tools.index;
        match output {
            Output::Reply(id, reply) => {
                if let Some(waiting) = self.waiting.remove(&id) {
                    // Whoever has gone away does not want the answer any more.
                    let _ = waiting.send(reply);
                }
            }
            Output::Send(to, message) => self.tools.transport.send(to, message),
            Output::Read(id, query) => self.read(now, id, query),
            Output::Commit(id, batch) => {
                if let Err((id, _)) = self.commit(id, batch) {
                    self.shard
                        .handle(now, Input::Committed(id, Err(StoreError::Failed)));
                } else {
                    self.commits.open += 1;
                    self.commits.new += 1;
                }
            }
            Output::Drained(ring) => self.tell(ShardNews::Drained(index, ring)),
            Output::Covered(ring) => self.tell(ShardNews::Covered(index, ring)),
            Output::NewerConfig(peer, version) => self.tell(ShardNews::NewerConfig(peer, version)),
            Output::Event(event) => self.on_event(&event),
        }
    }

    fn commit(&self, id: CommitId, batch: Batch) -> Result<(), (CommitId, Batch)> {
        let (index, committer) = (self.tools.index, &self.tools.committer);
        match &self.tools.handle.side().outbox {
            None => committer.submit_quietly(index, id, batch),
            Some(outbox) => {
                let view = self.tools.handle.view();
                let of = (view.as_deref(), &self.tools.handle);
                outbox.submit(of, committer, (index, id), batch)
            }
        }
    }

    /// Has the batches of this turn written: here, where the disk makes nobody wait and no outcome is on
    /// its way that these would overtake.
    fn commit_all(&mut self, now: Now) {
        let (index, committer) = (self.tools.index, self.tools.committer.clone());
        for _ in 0..COMMITS_MAX {
            if self.commits.new == 0 {
                return;
            }
            if self.commits.open > std::mem::take(&mut self.commits.new) {
                break;
            }
            let mut outcomes = std::mem::take(&mut self.commits.outcomes);
            committer.commit_here(index, &mut outcomes);
            self.commits.open -= outcomes.len();
            for (id, result) in outcomes.drain(..) {
                self.handle(now, Input::Committed(id, result));
            }
            self.commits.outcomes = outcomes;
        }
        self.commits.new = 0;
        committer.commit_there();
    }

    fn on_event(&self, event: &Event) {
        let handle = &self.tools.handle;
        handle.metrics().on_event(event);
        match event {
            Event::Hints {
                target,
                waiting,
                bytes,
            } => {
                handle.set_hints(self.tools.index, *target, *waiting, *bytes);
            }
            Event::HintsDropped {
                target,
                count,
                reason,
                partition,
            } => {
                let second = handle.now().mono.0 / torc_protocol::time::SECOND;
                if let Some(left_out) = self.quiet.admits(second) {
                    warn!(%target, count, reason, partition = partition.0, left_out, "hints are dropped; the partition needs repair");
                }
            }
            Event::Agreement {
                age_us,
                pairs,
                doubts,
            } => handle.set_agreement(self.tools.index, (*age_us, *pairs, *doubts)),
            Event::Floors(status) => handle.set_floors(self.tools.index, status.clone()),
            Event::FloorGivenUp {
                partition,
                step,
                reason,
            } => {
                debug!(
                    partition = partition.0,
                    step, reason, "a floor is not raised now, and is tried again"
                );
            }
            Event::Progress {
                ring,
                done,
                total,
                bytes,
            } => {
                handle.set_progress(self.tools.index, (ring.0, *done, *total, *bytes));
                let progress = Progress {
                    covered: false,
                    done: *done,
                    total: *total,
                    bytes: *bytes,
                };
                self.tell(ShardNews::Progress(self.tools.index, *ring, progress));
            }
            Event::SyncFailed {
                peer,
                partition,
                reason,
            } => {
                debug!(%peer, partition = partition.0, reason, "a comparison with another owner ended early and is tried again");
            }
            Event::VersionCollision { partition } => {
                error!(
                    partition = partition.0,
                    "two values under one version were merged: a fault; the greater hash was kept"
                );
            }
            Event::Coordinated {
                op,
                outcome,
                micros,
                trace,
                ..
            } => {
                debug!(op, outcome, micros, request_id = %Printed(trace), "coordinated");
            }
            Event::Replica {
                op,
                outcome,
                from,
                trace,
            } => {
                debug!(op, outcome, %from, request_id = %Printed(trace), "replica");
            }
            _ => {}
        }
    }

    fn tell(&self, news: ShardNews) {
        // The cluster task ends only when the node stops.
        let _ = self.tools.news.send(news);
    }

    /// At once where nobody has to wait for it; what does goes to the pool.
    fn read(&mut self, now: Now, id: ReadId, query: Query) {
        if let Some(result) = self.tools.store.query_here(&query) {
            self.shard.handle(now, Input::Read(id, result));
            return;
        }
        let (store, mail, blocking) = (
            self.tools.store.clone(),
            self.tools.mail.clone(),
            Arc::clone(&self.blocking),
        );
        tokio::spawn(async move {
            // The semaphore is never closed.
            let permit = blocking.acquire_owned().await;
            let result = tokio::task::spawn_blocking(move || store.query(&query)).await;
            drop(permit);
            let result = result.unwrap_or(Err(StoreError::Failed));
            let _ = mail.send(Mail::Read(id, result));
        });
    }

    /// Clients that hung up: what they waited for need not be kept. Looked at now and then, because only
    /// watches last long enough for it to matter.
    fn forget_the_gone(&mut self, now: Now) {
        if now.mono.since(self.looked) < LOOK_EVERY {
            return;
        }
        self.looked = now.mono;
        let closed = self.waiting.iter().filter(|(_, reply)| reply.is_closed());
        let gone: Vec<RequestId> = closed.map(|(&id, _)| id).collect();
        for id in gone {
            self.waiting.remove(&id);
            self.handle(now, Input::Cancel(id));
        }
    }

    fn answer_drains(&mut self) {
        if !self.drains.is_empty() && self.shard.is_idle() {
            for done in self.drains.drain(..) {
                let _ = done.send(());
            }
        }
    }
}

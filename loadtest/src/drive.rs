//! Runs a load: workers (a thread with a runtime of its own each), on each of them a part of the
//! connections, on each connection one operation at a time.
//!
//! Bounds: a run ends by its time or its count, whichever is first; each operation has a deadline; an open
//! loop's queue ends one deadline after the run.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tokio::sync::Notify;

use crate::error::Error;
use crate::pace::{Arrivals, Pace, Schedule, Ticker};
use crate::record::Record;
use crate::target::{Connection, Connector, Done, Failure, Request, Target};
use crate::usage::Usage;
use crate::workload::{Drawn, Generator, Kind, Records, Workload, key};

/// Connections of one run.
pub const CONNECTIONS_MAX: usize = 4_096;
/// Workers of one run.
pub const WORKERS_MAX: usize = 64;
/// Longest run.
pub const DURATION_MAX: Duration = Duration::from_secs(24 * 3_600);
/// Greatest rate of an open loop, in a second.
pub const RATE_MAX: f64 = 1_000_000.0;
/// Operations of one run.
pub const OPERATIONS_MAX: u64 = 10_000_000_000;
/// Operations of one worker that may be due and wait for a connection; what comes on top counts as failed.
const QUEUE_MAX: usize = 1_000_000;
/// Attempts to write one record in the load phase, and the wait between two.
const LOAD_ATTEMPTS: u32 = 20;
const LOAD_PAUSE: Duration = Duration::from_millis(100);
/// How often a wait is interrupted to see whether the run is stopped.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Time for all workers to be ready to begin.
const LEAD: Duration = Duration::from_millis(20);

/// How a run is done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Connections, all workers together.
    pub connections: usize,
    /// Threads.
    pub workers: usize,
    /// What decides when an operation begins.
    pub pace: Pace,
    /// Time before the measurement, in which the load runs already.
    pub warm_up: Duration,
    /// Length of the measurement.
    pub duration: Duration,
    /// Operations of the measurement, if that is reached sooner.
    pub operations: u64,
    /// Decides all draws.
    pub seed: u64,
}

impl Plan {
    /// Whether all numbers are in their ranges.
    ///
    /// # Errors
    /// Names the first that is not.
    pub fn check(&self) -> Result<(), Error> {
        let range = |what, given: String, fits, least: &str, most: String| {
            if fits {
                return Ok(());
            }
            Err(Error::OutOfRange {
                what,
                given,
                least: least.to_owned(),
                most,
            })
        };
        let connections = (1..=CONNECTIONS_MAX).contains(&self.connections);
        range(
            "the number of connections",
            self.connections.to_string(),
            connections,
            "1",
            CONNECTIONS_MAX.to_string(),
        )?;
        let workers = (1..=WORKERS_MAX).contains(&self.workers);
        range(
            "the number of workers",
            self.workers.to_string(),
            workers,
            "1",
            WORKERS_MAX.to_string(),
        )?;
        let time = !self.duration.is_zero()
            && self.duration <= DURATION_MAX
            && self.warm_up <= DURATION_MAX;
        range(
            "the time",
            format!("{:?}", self.duration),
            time,
            "1ms",
            format!("{DURATION_MAX:?}"),
        )?;
        let operations = (1..=OPERATIONS_MAX).contains(&self.operations);
        range(
            "the number of operations",
            self.operations.to_string(),
            operations,
            "1",
            OPERATIONS_MAX.to_string(),
        )?;
        if let Pace::Open { per_second, .. } = self.pace {
            let rate = per_second > 0.0 && per_second <= RATE_MAX;
            range(
                "the rate",
                per_second.to_string(),
                rate,
                "above 0",
                RATE_MAX.to_string(),
            )?;
        }
        Ok(())
    }
}

/// How far a run is; also the way to end it early.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    /// Operations that ended so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Ends the run after the operations that are under way.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether it was told to end.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn step(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Measured {
    pub(crate) record: Record,
    /// From the beginning of the measurement to the last answer.
    pub(crate) seconds: f64,
    pub(crate) usage: Usage,
    /// It was ended early.
    pub(crate) stopped: bool,
}

/// What all workers of a run share.
struct Shared<'a> {
    plan: &'a Plan,
    target: &'a Target,
    workload: Arc<Workload>,
    records: Arc<Records>,
    progress: &'a Progress,
    phase: Phase,
    /// The first operations begin; those before `begin` warm up, and do not count.
    start: Instant,
    begin: Instant,
    end: Instant,
    claimed: AtomicU64,
    failed: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Load,
    Run,
}

/// Writes all records of the workload, once each. Blocks until that is done.
///
/// # Errors
/// When some could not be written in several attempts, or the load cannot run.
pub fn load(
    plan: &Plan,
    target: &Target,
    workload: &Arc<Workload>,
    progress: &Progress,
) -> Result<Measured, Error> {
    plan.check()?;
    let begin = Instant::now();
    let shared = Shared {
        plan,
        target,
        workload: Arc::clone(workload),
        records: Arc::new(Records::new(0)),
        progress,
        phase: Phase::Load,
        start: begin,
        begin,
        end: begin + DURATION_MAX,
        claimed: AtomicU64::new(0),
        failed: AtomicU64::new(0),
    };
    let measured = work(&shared)?;
    let failed = shared.failed.load(Ordering::Relaxed);
    if failed > 0 {
        let errors = measured
            .record
            .kinds
            .iter()
            .flat_map(|tally| tally.errors.keys());
        return Err(Error::LoadFailed {
            failed,
            records: workload.records,
            reason: errors.last().map_or_else(String::new, Failure::to_string),
        });
    }
    Ok(measured)
}

/// Runs the workload on records that are there. Blocks until the end.
///
/// # Errors
/// When the load cannot run; failures of operations are counted instead.
pub fn run(
    plan: &Plan,
    target: &Target,
    workload: &Arc<Workload>,
    progress: &Progress,
) -> Result<Measured, Error> {
    plan.check()?;
    let start = Instant::now() + LEAD;
    let begin = start + plan.warm_up;
    let shared = Shared {
        plan,
        target,
        workload: Arc::clone(workload),
        records: Arc::new(Records::new(workload.records)),
        progress,
        phase: Phase::Run,
        start,
        begin,
        end: begin + plan.duration,
        claimed: AtomicU64::new(0),
        failed: AtomicU64::new(0),
    };
    work(&shared)
}

fn work(shared: &Shared<'_>) -> Result<Measured, Error> {
    let workers = shared.plan.workers.min(shared.plan.connections);
    let mut measured = thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|number| {
                thread::Builder::new()
                    .name(format!("load-{number}"))
                    .spawn_scoped(scope, move || worker(shared, number, workers))
                    .map_err(Error::Worker)
            })
            .collect();
        let mut whole: Option<Measured> = None;
        for thread in threads {
            let part = match thread {
                Ok(thread) => thread.join().unwrap_or(Err(Error::Fault)),
                Err(error) => Err(error),
            };
            if part.is_err() {
                shared.progress.stop();
            }
            let part = part?;
            match &mut whole {
                None => whole = Some(part),
                Some(whole) => {
                    whole.record.merge(&part.record);
                    whole.seconds = whole.seconds.max(part.seconds);
                    whole.usage = whole.usage.and(part.usage);
                }
            }
        }
        whole.ok_or(Error::Fault)
    })?;
    measured.stopped = shared.progress.is_stopped();
    Ok(measured)
}

fn worker(shared: &Shared<'_>, number: usize, workers: usize) -> Result<Measured, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Worker)?;
    let connector = Connector::new(shared.target)?;
    let seed = shared
        .plan
        .seed
        .wrapping_mul(1_000_003)
        .wrapping_add(number as u64);
    let generator = Generator::new(
        Arc::clone(&shared.workload),
        Arc::clone(&shared.records),
        seed,
    );
    let span = shared.end.saturating_duration_since(shared.begin);
    let lane = Lane {
        shared,
        generator: RefCell::new(generator),
        record: RefCell::new(Record::new(shared.begin, span)),
        last: Cell::new(shared.begin),
        queue: RefCell::default(),
        due: Notify::new(),
        all_queued: Cell::new(false),
    };
    let before = runtime.block_on(async {
        let rest = shared.begin.saturating_duration_since(Instant::now());
        // Of the warm-up nothing counts, so it does not matter when exactly this is read.
        let before = async {
            tokio::time::sleep(rest).await;
            Usage::of_thread()
        };
        let mut connections: FuturesUnordered<_> = (number..shared.plan.connections)
            .step_by(workers)
            .map(|at| lane.serve(connector.connection(at)))
            .collect();
        let all = async { while connections.next().await.is_some() {} };
        let (before, dispatched, ()) = tokio::join!(before, lane.dispatch(number, workers), all);
        dispatched.map_err(Error::Worker)?;
        Ok(before)
    })?;
    lane.count_unsent();
    let lasted = lane.last.get().saturating_duration_since(shared.begin);
    Ok(Measured {
        record: lane.record.into_inner(),
        seconds: lasted.as_secs_f64(),
        usage: Usage::of_thread().since(before),
        stopped: false,
    })
}

/// What the connections of one worker share.
struct Lane<'a> {
    shared: &'a Shared<'a>,
    generator: RefCell<Generator>,
    record: RefCell<Record>,
    /// When the last operation ended.
    last: Cell<Instant>,
    /// Open loop: the times of operations that are due and wait for a connection.
    queue: RefCell<VecDeque<Instant>>,
    due: Notify,
    all_queued: Cell<bool>,
}

impl Lane<'_> {
    /// Puts operations into the queue when they are due; at once done in a closed loop.
    async fn dispatch(&self, number: usize, workers: usize) -> io::Result<()> {
        let Some((per_second, arrivals)) = self.rate() else {
            return Ok(());
        };
        let ticker = Ticker::new()?;
        let plan = self.shared.plan;
        // The warm-up has the same rate.
        let span = (self.shared.start, self.shared.end);
        let phase = number as f64 / workers as f64;
        let rng = SmallRng::seed_from_u64(plan.seed ^ number as u64);
        let schedule = Schedule::new(span, per_second / workers as f64, (arrivals, phase), rng);
        for due in schedule {
            // A slow rate does not keep the end of a run that is stopped waiting.
            while !self.shared.progress.is_stopped() && Instant::now() < due {
                ticker.until(due.min(Instant::now() + LOOK_EVERY)).await?;
            }
            if self.shared.progress.is_stopped() || !self.claim(due) {
                break;
            }
            if self.queue.borrow().len() >= QUEUE_MAX {
                self.count_failure(due, Failure::NotSent);
                continue;
            }
            self.queue.borrow_mut().push_back(due);
            self.due.notify_one();
        }
        self.all_queued.set(true);
        self.due.notify_waiters();
        Ok(())
    }

    fn rate(&self) -> Option<(f64, Arrivals)> {
        match (self.shared.phase, self.shared.plan.pace) {
            (
                Phase::Run,
                Pace::Open {
                    per_second,
                    arrivals,
                },
            ) => Some((per_second, arrivals)),
            _ => None,
        }
    }

    /// Whether one more operation may be done.
    fn claim(&self, at: Instant) -> bool {
        let most = match self.shared.phase {
            Phase::Load => self.shared.workload.records,
            // The warm-up is bounded by its time.
            Phase::Run if at < self.shared.begin => return true,
            Phase::Run => self.shared.plan.operations,
        };
        self.shared.claimed.fetch_add(1, Ordering::Relaxed) < most
    }

    /// When the next operation was due, as soon as it is; nothing when there are no more.
    async fn next(&self) -> Option<Instant> {
        if self.rate().is_none() {
            let now = Instant::now();
            let goes_on = now < self.shared.end && !self.shared.progress.is_stopped();
            return (goes_on && self.claim(now)).then_some(now);
        }
        loop {
            let now = Instant::now();
            if now > self.shared.end + self.shared.target.asking.deadline {
                return None;
            }
            if let Some(due) = self.queue.borrow_mut().pop_front() {
                self.record
                    .borrow_mut()
                    .sent_late(due, now.saturating_duration_since(due));
                return Some(due);
            }
            if self.all_queued.get() || self.shared.progress.is_stopped() {
                return None;
            }
            self.due.notified().await;
        }
    }

    /// One connection: operations, one after the other.
    async fn serve(&self, mut connection: Connection) {
        let mut keys = Vec::new();
        if self.shared.phase == Phase::Load {
            return self.fill(connection).await;
        }
        tokio::time::sleep(self.shared.start.saturating_duration_since(Instant::now())).await;
        while let Some(due) = self.next().await {
            let (drawn, value) = {
                let mut generator = self.generator.borrow_mut();
                let drawn = generator.draw();
                let writes = matches!(drawn.kind, Kind::Put | Kind::Insert | Kind::Rmw);
                (
                    drawn,
                    if writes {
                        generator.value()
                    } else {
                        Bytes::new()
                    },
                )
            };
            let result = perform(&mut connection, drawn, &value, &mut keys).await;
            if drawn.kind == Kind::Insert {
                self.shared.records.end(drawn.record);
            }
            self.ended(drawn.kind, due, result);
        }
    }

    fn ended(&self, kind: Kind, due: Instant, result: Result<bool, Failure>) {
        let now = Instant::now();
        self.record.borrow_mut().add(kind, due, now, result);
        self.last.set(self.last.get().max(now));
        self.shared.progress.step();
    }

    /// Writes records of the load phase, each until it is written or has failed too often.
    async fn fill(&self, mut connection: Connection) {
        loop {
            if self.shared.progress.is_stopped() {
                return;
            }
            let record = self.shared.claimed.fetch_add(1, Ordering::Relaxed);
            if record >= self.shared.workload.records {
                return;
            }
            let key = key(record);
            let value = self.generator.borrow_mut().value();
            let mut attempt = 1;
            loop {
                let begin = Instant::now();
                let request = Request::Put {
                    key: &key,
                    value: &value,
                };
                let result = connection.perform(request).await.map(|_| false);
                self.ended(Kind::Insert, begin, result);
                if result.is_ok() {
                    break;
                }
                if attempt == LOAD_ATTEMPTS || self.shared.progress.is_stopped() {
                    self.shared.failed.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                attempt += 1;
                tokio::time::sleep(LOAD_PAUSE).await;
            }
        }
    }

    /// What is left in an open loop's queue at its end.
    fn count_unsent(&self) {
        let unsent = std::mem::take(&mut *self.queue.borrow_mut());
        for due in unsent {
            self.count_failure(due, Failure::NotSent);
        }
    }

    fn count_failure(&self, due: Instant, failure: Failure) {
        let drawn = self.generator.borrow_mut().draw();
        if drawn.kind == Kind::Insert {
            self.shared.records.end(drawn.record);
        }
        self.record
            .borrow_mut()
            .add(drawn.kind, due, Instant::now(), Err(failure));
    }
}

/// One operation; answers whether a record that was read is missing.
async fn perform(
    connection: &mut Connection,
    drawn: Drawn,
    value: &Bytes,
    keys: &mut Vec<String>,
) -> Result<bool, Failure> {
    let key = key(drawn.record);
    let read = Request::Get { key: &key };
    let write = Request::Put { key: &key, value };
    match drawn.kind {
        Kind::Get => Ok(connection.perform(read).await? == Done::Missing),
        Kind::Put | Kind::Insert => connection.perform(write).await.map(|_| false),
        Kind::Delete => connection
            .perform(Request::Delete { key: &key })
            .await
            .map(|_| false),
        Kind::Rmw => {
            let missing = connection.perform(read).await? == Done::Missing;
            connection.perform(write).await.map(|_| missing)
        }
        Kind::Scan => {
            keys.clear();
            keys.extend((drawn.record..drawn.record + drawn.count).map(self::key));
            let done = connection.perform(Request::Scan { keys }).await?;
            Ok(done == Done::Missing)
        }
    }
}

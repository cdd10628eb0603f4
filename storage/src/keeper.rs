//! The keeper: syncs the mark, and under [`Durability::Interval`] the log, beside the committer; and has
//! compactions give way to requests.

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::background;
use crate::error::FatalStep;
use crate::options::Durability;
use crate::rocks::Inner;

/// How often the mark is synced when it has changed: the window in which a power cut may hide a loss.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// How often threads that compact are looked for, until there are some.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(crate) struct Keeper {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Stop {
    now: Mutex<bool>,
    wake: Condvar,
}

impl Keeper {
    pub(crate) fn start(inner: &Arc<Inner>) -> std::io::Result<Self> {
        let stop = Arc::new(Stop::default());
        let (of_thread, inner) = (stop.clone(), Arc::downgrade(inner));
        let thread = std::thread::Builder::new()
            .name("torc-keeper".into())
            .spawn(move || run(&of_thread, &inner))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    pub(crate) fn stop(mut self) -> JoinHandle<()> {
        self.stop.set();
        self.thread.take().expect("a keeper is stopped once")
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Not joined: the keeper itself may be the one that drops the store's last reference.
        self.stop.set();
    }
}

impl Stop {
    fn set(&self) {
        *self.now.lock() = true;
        self.wake.notify_one();
    }
}

fn run(stop: &Stop, inner: &Weak<Inner>) {
    let interval = inner
        .upgrade()
        .and_then(|inner| match inner.options.durability {
            Durability::Interval(every) => Some(every.max(Duration::from_millis(1))),
            Durability::Fsync | Durability::Os => None,
        });
    let mut mark_due = Instant::now() + TICK;
    let mut log_due = interval.map(|every| Instant::now() + every);
    let mut look_due = Some(Instant::now());
    loop {
        let next = log_due.map_or(mark_due, |due| due.min(mark_due));
        {
            let mut now = stop.now.lock();
            while !*now && !stop.wake.wait_until(&mut now, next).timed_out() {}
            if *now {
                return;
            }
        }
        let Some(inner) = inner.upgrade() else { return };
        if let (Some(due), Some(every)) = (log_due, interval)
            && Instant::now() >= due
        {
            sync_log(&inner);
            // From now, not from when it was due: a slow disk is not asked ever more often.
            log_due = Some(Instant::now() + every);
        }
        if Instant::now() >= mark_due {
            if let Err(error) = inner
                .injected(FatalStep::Mark)
                .and_then(|()| inner.mark.sync())
            {
                inner.fatal(FatalStep::Mark, error);
            }
            mark_due = Instant::now() + TICK;
        }
        if look_due.is_some_and(|due| Instant::now() >= due) {
            look_due = match background::give_way() {
                Ok(0) => Some(Instant::now() + LOOK_EVERY),
                Ok(_) => None,
                Err(error) => {
                    tracing::info!(%error, "compactions run with the priority of requests: the system did not let it be lowered");
                    None
                }
            };
        }
    }
}

fn sync_log(inner: &Inner) {
    let state = inner.mark.state();
    if state.written > state.synced {
        // Its failure has been dealt with where it happened.
        let _ = inner.sync_log();
    }
}

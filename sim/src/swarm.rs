//! Many seeds on all cores.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use torc_protocol::mutant::Mutant;

use crate::{Counts, Outcome, Plan, run};

/// What many runs came to.
#[derive(Debug, Default)]
pub struct Summary {
    /// Runs.
    pub runs: u64,
    /// Sums of all counts.
    pub counts: Counts,
    /// Virtual time of all runs in microseconds.
    pub micros: u64,
    /// Seeds that failed, with what they found, in order of seeds.
    pub failures: Vec<(u64, String)>,
    /// Runs that reached each count at least once.
    pub reached: Counts,
}

impl Summary {
    fn add(&mut self, seed: u64, outcome: &Outcome) {
        self.runs += 1;
        self.micros += outcome.micros;
        for (&name, count) in &outcome.counts {
            *self.counts.entry(name).or_default() += count;
            *self.reached.entry(name).or_default() += 1;
        }
        if let Some((at, violation)) = &outcome.violation {
            self.failures
                .push((seed, format!("at {at} us: {violation}")));
        }
    }
}

/// Runs all seeds of `seeds` with `ops` operations each, on `threads` threads; stops early after
/// `failures_max` failures. `tell` hears of each run as it ends.
#[must_use]
pub fn swarm(
    seeds: std::ops::Range<u64>,
    ops: u64,
    (threads, failures_max, mutant): (usize, usize, Option<Mutant>),
    tell: impl Fn(u64, &Outcome) + Sync,
) -> Summary {
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let summary = Mutex::new(Summary::default());
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let outcome = run(
                &Plan {
                    mutant,
                    ..Plan::draw(seed, ops)
                },
                false,
            );
            tell(seed, &outcome);
            let mut summary = summary
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            summary.add(seed, &outcome);
            if summary.failures.len() >= failures_max {
                stop.store(true, Ordering::Relaxed);
            }
        }
    };
    // The worlds know no threads; each of these runs whole worlds of its own.
    #[allow(clippy::disallowed_methods)]
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(work);
        }
    });
    let mut summary = summary
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    summary.failures.sort_unstable();
    summary
}

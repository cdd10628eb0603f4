//! Many seeds on all cores.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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

    fn sum(&self, prefix: &str) -> u64 {
        let named = self
            .counts
            .iter()
            .filter(|(name, _)| name.starts_with(prefix));
        named.map(|(_, count)| count).sum()
    }

    /// Operations of clients, whatever came of them.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.sum("op: ")
    }

    /// Faults of all kinds.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.sum("fault: ")
    }

    /// The share of seeds that reached that count, in percent.
    #[must_use]
    pub fn percent(&self, name: &str) -> f64 {
        let reached = self.reached.get(name).copied().unwrap_or(0);
        100.0 * reached as f64 / self.runs.max(1) as f64
    }
}

/// Runs all seeds of `seeds` as `plan` says, on `threads` threads; stops early after `failures_max`
/// failures. `tell` hears of each run as it ends.
#[must_use]
pub fn swarm(
    seeds: std::ops::Range<u64>,
    plan: impl Fn(u64) -> Plan + Sync,
    (threads, failures_max): (usize, usize),
    tell: impl Fn(u64, &Plan, Outcome) + Sync,
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
            let plan = plan(seed);
            let outcome = run(&plan, false);
            let mut so_far = summary
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            so_far.add(seed, &outcome);
            if so_far.failures.len() >= failures_max {
                stop.store(true, Ordering::Relaxed);
            }
            drop(so_far);
            tell(seed, &plan, outcome);
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

//! Makes a failing run smaller: fewer operations, kinds of faults, single faults, nodes, clients and keys,
//! as long as the same invariant breaks.
//!
//! Source: Zeller, Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (2002). What is left is
//! no minimum: leaving something out shifts everything that is drawn after it, so each attempt is made in a
//! few variants.

use crate::check::Invariant;
use crate::plan::NAMES;
use crate::{Outcome, Plan, run};

/// Variants in which each attempt is made.
const VARIANTS: u64 = 3;
/// The first name of [`NAMES`] that is a kind of fault: it and those after it may be 0.
const FIRST_FAULT: &str = "loss";

/// A smaller failing run.
#[derive(Debug)]
pub struct Shrunk {
    /// Its plan.
    pub plan: Plan,
    /// What was changed, by name.
    pub set: Vec<(&'static str, u64)>,
    /// How it ends.
    pub outcome: Outcome,
}

struct Search {
    invariant: Invariant,
    best: Shrunk,
    runs_left: u32,
}

/// Shrinks a plan whose run ended in `outcome`, with so many runs at most. `None` when it did not fail.
#[must_use]
pub fn minimise(plan: &Plan, outcome: Outcome, runs_max: u32) -> Option<Shrunk> {
    let invariant = outcome.violation.as_ref()?.1.invariant;
    let mut search = Search {
        invariant,
        best: Shrunk {
            plan: plan.clone(),
            set: Vec::new(),
            outcome,
        },
        runs_left: runs_max,
    };
    loop {
        let before = search.best.set.len();
        let size = search.size();
        search.fewer_operations();
        for name in NAMES.into_iter().skip_while(|name| *name != FIRST_FAULT) {
            search.try_set(name, 0);
        }
        for name in ["reads", "deletes", "watches", "lists"] {
            search.try_set(name, 0);
        }
        for (name, least) in [("nodes", 1), ("clients", 1), ("keys", 1)] {
            search.lower(name, least);
        }
        search.skip_faults();
        if search.runs_left == 0 || (search.best.set.len() == before && search.size() == size) {
            return Some(search.best);
        }
    }
}

impl Search {
    fn size(&self) -> (u64, u64) {
        let outcome = &self.best.outcome;
        (
            outcome.issued,
            outcome.faults - self.best.plan.skip.len() as u64,
        )
    }

    fn value(&self, name: &str) -> u64 {
        let plan = &self.best.plan;
        match name {
            "nodes" => plan.nodes as u64,
            "ops" => plan.ops,
            "clients" => plan.clients,
            "keys" => plan.keys,
            _ => 1,
        }
    }

    /// Keeps a plan if it fails in the same way. Answers whether it does.
    fn attempt(&mut self, plan: &Plan, set: Option<(&'static str, u64)>) -> bool {
        for variant in 0..VARIANTS {
            if self.runs_left == 0 {
                return false;
            }
            self.runs_left -= 1;
            let mut plan = plan.clone();
            plan.run += variant;
            let outcome = run(&plan, false);
            let same = |(_, violation): &(u64, crate::check::Violation)| {
                violation.invariant == self.invariant
            };
            if outcome.violation.as_ref().is_some_and(same) {
                let run = plan.run;
                self.best.plan = plan;
                self.best.outcome = outcome;
                self.note(set);
                self.note(Some(("run", run)).filter(|(_, run)| *run > 0));
                return true;
            }
        }
        false
    }

    fn note(&mut self, set: Option<(&'static str, u64)>) {
        if let Some((name, value)) = set {
            self.best.set.retain(|(known, _)| *known != name);
            self.best.set.push((name, value));
        }
    }

    fn try_set(&mut self, name: &'static str, value: u64) -> bool {
        if self.best.set.contains(&(name, value)) {
            return false;
        }
        let mut plan = self.best.plan.clone();
        let before = format!("{plan:?}");
        let known = plan.set(name, value);
        known.is_ok() && before != format!("{plan:?}") && self.attempt(&plan, Some((name, value)))
    }

    /// As few operations as it takes: first those that were begun, then half of them, and so on.
    fn fewer_operations(&mut self) {
        let issued = self.best.outcome.issued.max(1);
        if issued < self.best.plan.ops {
            self.try_set("ops", issued);
        }
        self.lower("ops", 1);
    }

    /// Lowers a number by smaller and smaller steps.
    fn lower(&mut self, name: &'static str, least: u64) {
        let mut step = self.value(name) / 2;
        while step > 0 && self.runs_left > 0 {
            let lower = self.value(name).saturating_sub(step).max(least);
            if lower == self.value(name) || !self.try_set(name, lower) {
                step /= 2;
            }
        }
    }

    /// Leaves single faults out, in smaller and smaller groups.
    fn skip_faults(&mut self) {
        let mut size = self.best.outcome.faults;
        while size > 0 && self.runs_left > 0 {
            let mut from = 0;
            while from < self.best.outcome.faults && self.runs_left > 0 {
                let mut plan = self.best.plan.clone();
                plan.skip.extend(from..from + size);
                if plan.skip != self.best.plan.skip {
                    self.attempt(&plan, None);
                }
                from += size;
            }
            size /= 2;
        }
        let faults = self.best.outcome.faults;
        self.best.plan.skip.retain(|number| *number < faults);
    }
}

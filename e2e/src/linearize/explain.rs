//! Makes a counterexample short: what remains of it is impossible on its own.
//!
//! Only removals that cannot make a possible history impossible are tried: a read; a put together
//! with every read of its value; a delete that no read could have seen; all deletes together with all
//! reads that saw nothing. So whoever reads the result may trust it without the rest.

use std::sync::Arc;

use super::Violation;
use super::search::{Reason, search};
use crate::history::{Call, Operation, Outcome, Value};

/// Searches spent on shortening; a long counterexample is better than a test that hangs.
const ATTEMPTS_MAX: usize = 3_000;

pub(super) fn shorten(key: Arc<str>, operations: &[Operation], reason: Reason) -> Violation {
    let of = operations.len();
    let mut operations = match &reason {
        Reason::NoOrder => Shortening::new(operations).run(),
        Reason::NeverWritten { value }
        | Reason::WriteRefused { value }
        | Reason::ReadBeforeWritten { value }
        | Reason::NotUnique { value } => about(operations, value),
        Reason::TooConcurrent | Reason::TooManyConfigurations => Vec::new(),
    };
    operations.sort_by_key(|operation| (operation.invoked_ns, operation.returned_ns));
    Violation {
        key,
        reason,
        operations,
        of,
    }
}

fn about(operations: &[Operation], value: &Value) -> Vec<Operation> {
    operations
        .iter()
        .filter(|op| value_in(op) == Some(value))
        .cloned()
        .collect()
}

/// The value that an operation wrote or saw.
fn value_in(operation: &Operation) -> Option<&Value> {
    match (&operation.call, &operation.outcome) {
        (Call::Put(value), _) | (Call::Get, Outcome::Saw(Some(value))) => Some(value),
        _ => None,
    }
}

fn is_absent_read(operation: &Operation) -> bool {
    operation.outcome == Outcome::Saw(None)
}

/// What was known at a time: operations that had not begun are left out, those under way are open.
fn known_at(operations: &[Operation], now: u64) -> Vec<Operation> {
    operations
        .iter()
        .filter(|op| op.invoked_ns <= now)
        .filter(|op| op.returned_ns <= now || op.call != Call::Get)
        .map(|op| {
            let outcome = match op.outcome {
                Outcome::Written if op.returned_ns > now => Outcome::Unknown,
                _ => op.outcome.clone(),
            };
            Operation {
                outcome,
                ..op.clone()
            }
        })
        .collect()
}

struct Shortening {
    operations: Vec<Operation>,
    attempts: usize,
}

impl Shortening {
    fn new(operations: &[Operation]) -> Self {
        Self {
            operations: operations.to_vec(),
            attempts: 0,
        }
    }

    fn run(mut self) -> Vec<Operation> {
        self.cut_after_first_contradiction();
        self.operations.retain(|op| op.outcome != Outcome::Refused);
        self.drop_what_nobody_saw();
        self.without(|op| op.call == Call::Delete || is_absent_read(op));
        for _ in 0..3 {
            let before = self.operations.len();
            self.drop_values();
            self.drop_one_by_one();
            if self.operations.len() == before {
                break;
            }
        }
        self.operations
    }

    fn is_impossible(&mut self, operations: &[Operation]) -> bool {
        self.attempts += 1;
        self.attempts <= ATTEMPTS_MAX && search(operations) == Err(Reason::NoOrder)
    }

    /// Drops what `drops` names, unless the rest becomes possible.
    fn without(&mut self, drops: impl Fn(&Operation) -> bool) -> bool {
        let rest: Vec<_> = self
            .operations
            .iter()
            .filter(|op| !drops(op))
            .cloned()
            .collect();
        let dropped = rest.len() < self.operations.len() && self.is_impossible(&rest);
        if dropped {
            self.operations = rest;
        }
        dropped
    }

    /// A prefix that is impossible stays so in every longer one, so halving finds the shortest.
    fn cut_after_first_contradiction(&mut self) {
        let mut times: Vec<u64> = self.operations.iter().map(|op| op.returned_ns).collect();
        times.sort_unstable();
        let (mut possible, mut impossible) = (0, times.len() - 1);
        while possible < impossible {
            let middle = usize::midpoint(possible, impossible);
            let prefix = known_at(&self.operations, times[middle]);
            if self.is_impossible(&prefix) {
                impossible = middle;
            } else {
                possible = middle + 1;
            }
        }
        let prefix = known_at(&self.operations, times[impossible]);
        if self.is_impossible(&prefix) {
            self.operations = prefix;
        }
    }

    /// Writes of unknown outcome that nobody saw prove nothing.
    fn drop_what_nobody_saw(&mut self) {
        let seen: Vec<Value> = self
            .operations
            .iter()
            .filter(|op| op.call == Call::Get)
            .filter_map(|op| value_in(op).cloned())
            .collect();
        self.operations.retain(|op| {
            op.outcome != Outcome::Unknown
                || op.call == Call::Delete
                || value_in(op).is_some_and(|value| seen.contains(value))
        });
    }

    /// Drops puts with their reads, in chunks that are halved down to one.
    fn drop_values(&mut self) {
        let mut values: Vec<Value> = self
            .operations
            .iter()
            .filter(|op| matches!(op.call, Call::Put(_)))
            .filter_map(|op| value_in(op).cloned())
            .collect();
        let mut chunk = values.len().div_ceil(2);
        while chunk > 0 {
            let mut from = 0;
            while from < values.len() {
                let to = (from + chunk).min(values.len());
                let gone: Vec<Value> = values[from..to].to_vec();
                if self.without(|op| value_in(op).is_some_and(|value| gone.contains(value))) {
                    values.drain(from..to);
                } else {
                    from = to;
                }
            }
            chunk /= 2;
        }
    }

    /// Drops reads and deletes that explain nothing, one at a time.
    fn drop_one_by_one(&mut self) {
        let mut index = 0;
        while index < self.operations.len() {
            let operation = &self.operations[index];
            let may_go = match operation.call {
                Call::Get => true,
                Call::Delete => self.is_idle(operation),
                Call::Put(_) => false,
            };
            let mut rest = self.operations.clone();
            rest.remove(index);
            if may_go && self.is_impossible(&rest) {
                self.operations = rest;
            } else {
                index += 1;
            }
        }
    }

    /// Whether this delete explains nothing: no read that saw nothing could follow it, or an
    /// acknowledged put lies between it and every such read.
    fn is_idle(&self, delete: &Operation) -> bool {
        let mut reads = self
            .operations
            .iter()
            .filter(|op| is_absent_read(op) && op.returned_ns >= delete.invoked_ns)
            .peekable();
        if reads.peek().is_none() {
            return true;
        }
        let first = reads.map(|read| read.invoked_ns).min().unwrap_or(0);
        delete.outcome == Outcome::Written
            && self
                .operations
                .iter()
                .filter(|op| matches!(op.call, Call::Put(_)) && op.outcome == Outcome::Written)
                .any(|put| put.invoked_ns > delete.returned_ns && put.returned_ns < first)
    }
}

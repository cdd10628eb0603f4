//! Decides whether a history of one register per key is linearizable.
//!
//! Sources: Wing and Gong, "Testing and verifying concurrent objects" (1993); Lowe, "Testing for
//! linearizability" (2017), whose just-in-time search with memoised configurations this is; Gibbons
//! and Korach, "Testing shared memories" (1997), for what unique values allow.
//!
//! The search walks over invocations and returns in time order and keeps every *configuration* that
//! can explain what has returned: which pending operations took effect already, and the value now.
//! An operation is put into the order no earlier than it must be, when it returns. Because a value
//! is written once only, three rules keep the set of configurations small without losing an answer:
//!
//! - a pending read takes effect as soon as the register holds its value (this changes nothing for
//!   anybody else);
//! - a value that somebody will still ask for and see cannot be overwritten yet (it never returns);
//! - a pending put whose reads are all pending too (or that nobody reads) can hide, with its reads,
//!   directly before any other write, and it never harms to let it.
//!
//! Deletes are not unique; of several that could explain an absence the one that returns first is
//! used, and those with an unknown outcome last. `laws` compares all this with brute force.

mod explain;
mod search;

#[cfg(test)]
mod laws;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::history::Operation;

pub use search::Reason;

/// What was checked, for the report of a run that passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// Distinct keys.
    pub keys: usize,
    /// Operations over all keys, dropped ones included.
    pub operations: usize,
    /// The largest set of configurations that was held at a time.
    pub configurations_max: usize,
}

/// A key whose history no order of operations explains.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The key.
    pub key: Arc<str>,
    /// What is wrong.
    pub reason: Reason,
    /// A small part of the history that is already impossible, by time of invocation.
    pub operations: Vec<Operation>,
    /// How many operations the key's whole history has.
    pub of: usize,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "key {}: {}; {} of its {} operations show it:",
            self.key,
            self.reason,
            self.operations.len(),
            self.of
        )?;
        for operation in &self.operations {
            writeln!(f, "  {operation}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Violation {}

/// Checks every key's history on its own (linearizability is a local property). Keys are absent at
/// the beginning.
///
/// # Errors
/// The first key, in key order, whose history is impossible, with a shortened counterexample. Also
/// when the history cannot be judged (two puts of one value, too many operations at a time).
pub fn check(history: &[Operation]) -> Result<Checked, Box<Violation>> {
    let mut by_key: BTreeMap<Arc<str>, Vec<Operation>> = BTreeMap::new();
    for operation in history {
        by_key
            .entry(Arc::clone(&operation.key))
            .or_default()
            .push(operation.clone());
    }
    let mut checked = Checked {
        keys: by_key.len(),
        operations: history.len(),
        configurations_max: 0,
    };
    for (key, operations) in by_key {
        match search::search(&operations) {
            Ok(most) => checked.configurations_max = checked.configurations_max.max(most),
            Err(reason) => return Err(Box::new(explain::shorten(key, &operations, reason))),
        }
    }
    Ok(checked)
}

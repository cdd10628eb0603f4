//! Harness for end-to-end tests: real `torc` processes on loopback, raw HTTP, and a checker that
//! decides whether what clients saw can be explained by one order of operations.
//!
//! Nothing here links a node: the tests see what a user sees (ports, signals, files, logs). Helpers
//! that cannot go on panic with what they waited for and the end of the node's log, because a test
//! has nothing better to do with such an error.

pub mod binary;
pub mod browser;
pub mod cluster;
pub mod history;
pub mod http;
pub mod linearize;
pub mod netns;
pub mod node;
pub mod ports;
pub mod powercut;
pub mod process;
pub mod proxy;
pub mod services;
pub mod shim;
pub mod tmpfs;
pub mod wait;
pub mod workload;

use std::sync::{Mutex, MutexGuard, PoisonError};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Lets the tests of one file run one after the other: several clusters at a time on two cores would
/// only measure each other. Hold the guard for the whole test.
pub fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

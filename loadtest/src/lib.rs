//! Load generator and benchmark of stores with tunable consistency.
//!
//! - [`workload`]: YCSB A to F as published, and other mixes.
//! - [`drive`]: closed loop (as fast as the target answers) and open loop (at a rate of its own; latency
//!   counts from the time at which an operation was due, so that nothing hides a queue).
//! - [`target`]: torc over HTTP and by its own client, Redis, etcd.
//! - [`staleness`]: how often a read misses the last acknowledged write, by the time since.
//! - [`report`]: results as values, JSON, rows of a table, and an HTML page with plots.
//!
//! It sends nothing to another machine unless that is allowed ([`address`]), and ends by itself: every run
//! is bounded in time and in operations.

pub mod address;
pub mod drive;
pub mod error;
pub mod pace;
mod record;
pub mod report;
pub mod staleness;
pub mod target;
pub mod usage;
pub mod workload;

pub use error::Error;

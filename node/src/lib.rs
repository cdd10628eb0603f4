//! The torc server: the shell around the protocol's state machines.
//!
//! Nothing here decides anything about keys or membership; it moves bytes between the core, the network
//! and the disk.

pub mod config;
pub mod gossip;
pub mod handle;
pub mod http;
mod join;
pub mod logs;
pub mod metrics;
pub mod pki;
pub mod transport;
mod cluster_task;
pub mod node;
mod shard_task;

//! The torc server: the shell around the protocol's state machines.
//!
//! Nothing here decides anything about keys or membership; it moves bytes between the core, the network
//! and the disk.

mod cluster_task;
pub mod config;
pub mod gossip;
pub mod handle;
pub mod http;
mod join;
pub mod logs;
pub mod metrics;
pub mod node;
pub mod pki;
mod quiet;
mod shard_task;
pub mod side;
mod switchboard;
pub mod transport;

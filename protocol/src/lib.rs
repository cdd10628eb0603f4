//! The replication protocol of torc as state machines without I/O.
//!
//! Time is an argument, randomness a seed, messages and disk operations are data. The same code runs
//! in the server and in the simulator. Nothing here opens a file or a socket or reads a clock.

pub mod agree;
mod antientropy;
mod budget;
pub mod changes;
pub mod client;
pub mod clocks;
pub mod cluster;
pub mod cluster_admin;
pub mod cluster_io;
pub mod cluster_message;
pub mod context;
mod core;
pub mod floor;
pub mod floor_message;
mod foreground;
mod get;
mod hints;
pub mod hlc;
mod latency;
mod list;
pub mod merkle;
pub mod message;
pub mod mutant;
mod put;
pub mod queued;
pub mod quorum;
pub mod record;
mod repair;
mod replicate;
pub mod rng;
pub mod shard;
pub mod shard_io;
pub mod siblings;
pub mod store;
pub mod sync_message;
pub mod time;
mod transfer;
mod trees;
mod verify;
pub mod version;
mod watch;
pub mod wire;

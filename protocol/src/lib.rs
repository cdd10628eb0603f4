//! The replication protocol of torc as state machines without I/O.
//!
//! Time is an argument, randomness a seed, messages and disk operations are data. The same code runs
//! in the server and in the simulator. Nothing here opens a file or a socket or reads a clock.

pub mod client;
pub mod cluster_message;
pub mod hlc;
pub mod message;
pub mod record;
pub mod shard_io;
pub mod siblings;
pub mod store;
pub mod time;
pub mod version;
pub mod wire;

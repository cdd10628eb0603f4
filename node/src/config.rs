//! The node's settings: one validated value, made once from file, environment and flags, and handed down.
//!
//! `torc.toml` is overridden by `TORC_...` environment variables, and these by flags. Nothing here reads
//! files or the environment: [`Layers`] is handed their content.

mod error;
mod keys;
mod layers;
mod side;
#[cfg(test)]
mod tests;
mod units;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use error::{Origin, SettingsError};
pub use keys::default_config;
pub use layers::{FILE_BYTES_MAX, Layers};
pub use side::{Cache, CachePlace, Queue};
pub use units::{format_duration, format_size, parse_duration, parse_size};

/// Reads a configuration file alone, without environment and flags.
///
/// # Errors
/// When the text is not TOML, has an unknown key, or a value that is out of its range.
pub fn parse_config(text: &str) -> Result<Settings, SettingsError> {
    let mut layers = Layers::new();
    layers.file(text)?;
    layers.settings()
}

/// Everything that a node is told when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name for people, unique in the cluster.
    pub name: String,
    /// Data directory.
    pub data: PathBuf,
    /// Data listener: keys, health.
    pub http: SocketAddr,
    /// Admin listener: ring, buckets, metrics.
    pub admin: SocketAddr,
    /// Peer listener: QUIC over UDP.
    pub peer: SocketAddr,
    /// Address that other nodes reach `peer` at, `host:port`.
    pub advertise_peer: String,
    /// Address that clients reach `http` at, `host:port`.
    pub advertise_http: String,
    /// Failure domain.
    pub zone: String,
    /// Relative share of the ring.
    pub weight: u32,
    /// How this node comes by its cluster. A data directory that knows its cluster needs neither.
    pub start: Start,
    /// Folder of the cluster's CA certificate and this node's own; `None`: a development CA (loopback only).
    pub pki: Option<PathBuf>,
    /// When a write counts as durable.
    pub durability: Durability,
    /// Listen beyond loopback without tokens.
    pub insecure: bool,
    /// The dead member, by name or id, whose place this node takes when it joins.
    pub replace: Option<String>,
    /// Number of partitions as a power of two; only used at bootstrap.
    pub partition_bits: u8,
    /// Number of shards, a power of two of at most 32 (the clock's last index is the cluster machine's).
    pub shards: usize,
    /// Bounds of the HTTP facade.
    pub limits: Limits,
    /// Deadline of requests that name none.
    pub deadline: Duration,
    /// Greatest deadline that a request may ask for.
    pub deadline_max: Duration,
    /// Beyond this drift from the majority's clocks a node takes no fresh writes.
    pub clock_drift_max: Duration,
    /// Beyond this drift a node warns.
    pub clock_drift_warn: Duration,
    /// Greatest rate at which partitions are received, and handed out, in a ring change, in bytes per
    /// second; 0 for no limit.
    pub transfer_rate: u64,
    /// Bounds of hinted handoff.
    pub hints: Hints,
    /// Anti-entropy.
    pub antientropy: AntiEntropy,
    /// How often a partition's floor is raised at most, on average; zero for never.
    pub floor_interval: Duration,
    /// Interval of gossip rounds.
    pub gossip_interval: Duration,
    /// RocksDB.
    pub storage: Storage,
    /// The read cache, if there is one.
    pub cache: Option<Cache>,
    /// The write queue, if there is one.
    pub queue: Option<Queue>,
}

impl Settings {
    /// How old a tombstone has to be before it may be collected: older than any write of a client can be on
    /// its way, by the clocks of the coordinator and of each owner, and than any that waits in the queue.
    #[must_use]
    pub fn floor_margin(&self) -> Duration {
        let micros = |time: Duration| time.as_micros() as u64;
        let queued = self
            .queue
            .as_ref()
            .map_or(0, |queue| micros(queue.lifetime));
        let (deadline, drift) = (micros(self.deadline_max), micros(self.clock_drift_max));
        Duration::from_micros(torc_protocol::floor::margin(deadline, drift, queued))
    }
}

/// How a node comes by its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// The data directory knows.
    Resume,
    /// Make a new cluster with this node as its only member.
    Bootstrap,
    /// Join the cluster of the nodes at these peer addresses.
    Join(Vec<String>),
}

/// When a write counts as durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// After the WAL is on disk.
    Fsync,
    /// After the write; the WAL is fsynced this often.
    Interval(Duration),
    /// After the write; the operating system decides.
    Os,
}

/// Bounds of the HTTP facade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Greatest value in bytes, at most 64 MiB.
    pub value_bytes: usize,
    /// Greatest number of open connections of a listener.
    pub connections: usize,
    /// Greatest number of requests in work at a time.
    pub requests: usize,
    /// Time within which a request's head must have arrived.
    pub header_timeout: Duration,
    /// Time within which a request's body must have arrived.
    pub body_timeout: Duration,
    /// Greatest size of a request's head in bytes.
    pub header_bytes: usize,
    /// Time that a graceful stop may take.
    pub shutdown: Duration,
}

/// Bounds of hinted handoff.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hints {
    /// Greatest bytes of hints kept for one target.
    pub bytes_per_target: u64,
    /// Hints older than this are dropped.
    pub age: Duration,
    /// Greatest rate of delivery to one target, in bytes per second.
    pub rate: u64,
}

/// What keeps copies equal in the background.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AntiEntropy {
    /// Age of agreement that is aimed at.
    pub age_target: Duration,
    /// Greatest rate of reading and sending, in bytes per second; 0 for no limit.
    pub rate: u64,
    /// Rate of the scan that rereads everything, in bytes per second; 0 for none.
    pub scan_rate: u64,
}

/// RocksDB's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Block cache in bytes.
    pub block_cache: usize,
    /// Memtable in bytes.
    pub write_buffer: usize,
    /// Free space below which writes are refused, in bytes.
    pub reserve: u64,
}

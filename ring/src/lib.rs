//! The consistent-hash ring of torc as pure values: tokens, partitions, placement, members, the
//! cluster configuration, and what a change of it would move. No I/O, no clocks, no randomness.

pub mod config;
pub mod placement;
pub mod token;

pub use config::{
    Bucket, BucketId, ClusterId, Config, ConfigError, ConfigVersion, ConflictMode, Member, NodeId,
    Quorum, ReadRepair, RingVersion,
};
pub use placement::Ring;
pub use token::{PartitionId, Token};

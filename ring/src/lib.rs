//! The consistent-hash ring of torc as pure values: tokens, partitions, placement, members, the
//! cluster configuration, and what a change of it would move. No I/O, no clocks, no randomness.

mod assign;
pub mod change;
pub mod config;
mod fair;
mod next_tables;
pub mod owner_table;
pub mod placement;
pub mod plan;
mod rebalance;
pub mod token;
mod walk;

pub use change::{ChangeEnd, LastChange, RingChange, StageError};
pub use config::{
    Bucket, BucketId, ClusterId, Config, ConfigError, ConfigVersion, ConflictMode, Member, NodeId,
    Quorum, ReadRepair, RingVersion, Secret,
};
pub use owner_table::OwnerTable;
pub use placement::{NodeLoad, Owners, Ring};
pub use plan::Plan;
pub use token::{PartitionId, Token};

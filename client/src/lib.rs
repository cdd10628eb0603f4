//! Client of a torc cluster.
//!
//! Keeps connections to several nodes, sends a key's request to one of the key's owners (it computes them
//! from the ring, as the nodes do), and goes on to the next node where that cannot do harm:
//!
//! - a read is asked elsewhere after a failure, and (hedged) after a time without an answer;
//! - a write is repeated only when it is certain that nothing of it was stored: the connection was refused,
//!   or the node said so. A write whose fate is unknown ends in [`Error::Unknown`], because a repeated
//!   blind write gets a new version and may bury what somebody else wrote in between.
//!
//! Everything has a bound: a deadline on every operation, a limit on attempts, answers and connections.
//! Needs a tokio runtime.
//!
//! ```no_run
//! # async fn example() -> Result<(), torc_client::Error> {
//! use torc_client::{Client, ClientConfig, ReadOptions, WriteOptions};
//!
//! let client = Client::new(ClientConfig::new(["127.0.0.1:8081", "127.0.0.1:8082"]))?;
//! client.put("default", b"hello", "good morning", &WriteOptions::default()).await?;
//! let read = client.get("default", b"hello", &ReadOptions::default()).await?;
//! assert_eq!(read.value.map(|value| value.bytes), Some("good morning".into()));
//! # Ok(())
//! # }
//! ```

mod admin;
mod batch;
mod call;
mod change;
mod client;
mod error;
mod list;
mod nodes;
mod options;
mod problem;
mod ring;
mod status;
mod text;
mod transport;

pub use admin::{Admin, Agreement};
pub use batch::{BATCH_OPERATIONS_MAX, BatchOp, BatchReply};
pub use change::{
    BucketView, BucketWish, Change, ChangeNode, ChangeView, Decided, LastView, LayoutView,
    NodePlanView, PlanView, ProgressView, WaitingView,
};
pub use client::{Client, Meta, Read, Value, Watched, Written};
pub use error::{Cause, Error, Outcome};
pub use list::{ListOptions, ListedKey, Page, Pages};
pub use options::{ClientConfig, ReadOptions, Routing, WriteOptions};
pub use problem::Problem;
pub use ring::{
    CopyView, Owner, OwnersView, RingBucket, RingMember, RingTable, RingView, VerifyView,
};
pub use status::{ChangeStatus, NodeStatus, Status, Verdict};
pub use text::Text;
pub use torc_ring::Quorum;

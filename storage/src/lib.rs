//! Storage of a torc node: RocksDB behind group commit, and an in-memory twin of it.
//!
//! The core asks in the words of [`torc_protocol::store`]; this crate answers. [`Store`] answers queries
//! on the caller's thread, [`Committer`] gathers the batches of all shards into one write and one fsync.
//!
//! Invariants:
//! - A batch is answered only after it is durable to the standard of [`Durability`] or of its own
//!   [`torc_protocol::store::Sync`], and nothing of it is readable before.
//! - What fails its checksum is never served and never taken for "nothing there".
//! - After a failed fsync nothing is written any more: the process ends.
//! - A store that comes back with less than it had synced does not open: [`StorageError::Amnesia`].
//!
//! Bytes on disk are drawn in `docs/format.md` and written by `schema.rs` and `mark.rs` alone. Not here:
//! networking, protocol decisions, and any knowledge of what a state value means.

mod background;
mod commit;
mod error;
mod keeper;
mod manifest;
mod mark;
mod mem;
mod merge;
mod options;
mod pace;
mod place;
mod properties;
mod read;
mod rocks;
mod schema;
mod space;
mod tune;

pub use commit::{Committer, Deliver, Observe, Outcome};
pub use error::{Fatal, FatalStep, StorageError};
pub use mem::MemStore;
pub use options::{Durability, Inject, Options};
pub use properties::Properties;
pub use rocks::{ChangeTotal, Opened, Store};
pub use schema::States;

//! What can go wrong beyond what the core is told ([`torc_protocol::store::StoreError`]).

use std::io;
use std::path::PathBuf;

use torc_protocol::store::StateKey;

/// Why a store does not open, or does not do what the shell asked for.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// What an earlier life wrote down for this start could not be deleted.
    #[error(
        "the stored hash trees could not be deleted at the start: is there room on the disk? The log says why"
    )]
    TreesStay,
    /// Another process has it open.
    #[error(
        "data directory {path} is in use by another process; stop that node, or give this one a directory of its own"
    )]
    Locked {
        /// The data directory.
        path: PathBuf,
    },
    /// A directory that holds something else.
    #[error(
        "{path} is not empty and not a torc data directory; give the node an empty or a new directory"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// Written by another version of torc.
    #[error(
        "data directory {path} has format {found}, this version of torc knows format {known}; use a version that knows it"
    )]
    Format {
        /// The data directory.
        path: PathBuf,
        /// What its `FORMAT` file says.
        found: u32,
        /// What this version writes.
        known: u32,
    },
    /// A file of our own is missing or damaged.
    #[error(
        "{path} is missing or damaged; without it a loss of data would go unnoticed: move the data directory away and join as a replacement"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The store came back with less than it had made durable.
    #[error(
        "{path} came back without its last writes (recovered up to sequence {found}, but {expected} was durable): a disk or file lost data; move the directory away and join as a replacement"
    )]
    Amnesia {
        /// The data directory.
        path: PathBuf,
        /// Last sequence number that was durable.
        expected: u64,
        /// Last sequence number that was recovered.
        found: u64,
    },
    /// RocksDB found a file that contradicts its checksum or its place.
    #[error(
        "data in {path} is corrupt: {source}; move the directory away and join as a replacement"
    )]
    Corrupt {
        /// The data directory.
        path: PathBuf,
        /// What RocksDB says; it names the file.
        source: rocksdb::Error,
    },
    /// A piece of node state does not match its checksum.
    #[error(
        "stored state {key:?} is corrupt; move the data directory away and join as a replacement"
    )]
    CorruptState {
        /// Which.
        key: StateKey,
    },
    /// A key of the node state that this version does not know.
    #[error("stored state has an unknown key; it was written by a newer version or is corrupt")]
    UnknownState,
    /// The operating system refused.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// RocksDB refused.
    #[error("cannot {what} in {path}: {source}")]
    Rocks {
        /// What was tried.
        what: &'static str,
        /// The data directory.
        path: PathBuf,
        /// Why not.
        source: rocksdb::Error,
    },
    /// The committer of this store runs already.
    #[error("the store's committer has been started already")]
    CommitterRuns,
}

impl StorageError {
    pub(crate) fn io(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }

    /// Sorts RocksDB's errors: what it calls corruption keeps that name.
    pub(crate) fn rocks(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(rocksdb::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            rocksdb::ErrorKind::Corruption => Self::Corrupt { path, source },
            _ => Self::Rocks { what, path, source },
        }
    }
}

/// What was being made durable when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FatalStep {
    /// A group of batches was written to the log, and synced if it had to be.
    Commit,
    /// The log was synced by the timer of [`crate::Durability::Interval`], or on closing.
    SyncLog,
    /// The mark of what was synced was written or synced.
    Mark,
}

/// A failure after which the page cache cannot be trusted any more.
///
/// Linux reports a failed write-back once and then considers the pages clean: a second fsync that succeeds
/// says nothing about them (Rebello et al., "Can Applications Recover from fsync Failures?", 2020).
#[derive(Debug, thiserror::Error)]
#[error(
    "{step:?} in {path} failed: {reason}; the process ends, because what the page cache holds cannot be trusted now. Check the disk, then start the node again"
)]
pub struct Fatal {
    /// What was being done.
    pub step: FatalStep,
    /// The data directory.
    pub path: PathBuf,
    /// What failed.
    pub reason: Box<dyn std::error::Error + Send + Sync>,
}

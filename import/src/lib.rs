//! Brings the export of another store into a cluster.
//!
//! Three forms of export are read ([`Format`]), a record at a time, so that a file may be larger than
//! memory. Records are written in batches; after each, a checkpoint says how many are stored, and a run that
//! was interrupted goes on there. At the end every key is read back: the numbers of keys and a checksum over
//! keys and values must be equal on both sides.
//!
//! A record is stored without regard to what the key held before, and one whose fate is unknown is stored
//! again. So import before clients write to the same keys.

mod checkpoint;
mod read;
mod run;
#[cfg(test)]
mod samples;
mod sql;

pub use checkpoint::Checkpoint;
pub use read::{Columns, Format, Reader, Record};
pub use run::{Import, Progress, Store, Summary, run};

use std::io;
use std::path::PathBuf;

/// Why an import does not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The export is malformed.
    #[error("record {record} of the export: {reason}")]
    Malformed {
        /// Which record, from 1.
        record: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The checkpoint belongs to another import.
    #[error("the checkpoint {path} belongs to another import ({reason}); remove it to start from the beginning", path = path.display())]
    OtherImport {
        /// The checkpoint.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// The cluster refused a record.
    #[error("record {record} of the export was refused with status {status}: {detail}")]
    Refused {
        /// Which record, from 1.
        record: u64,
        /// HTTP status.
        status: u16,
        /// Why.
        detail: String,
    },
    /// The cluster could not be asked, after several tries.
    #[error(
        "the cluster does not take the records from {record} on; {stored} are stored, and the same command goes on from there"
    )]
    Unavailable {
        /// The first record that is not stored.
        record: u64,
        /// How many are.
        stored: u64,
        /// The last failure of a whole request; none where single records found no quorum.
        #[source]
        source: Option<Box<torc_client::Error>>,
    },
}

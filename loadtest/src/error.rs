//! What can go wrong before a load runs; failures of single operations are counted instead
//! ([`crate::target::Failure`]).

use std::io;

/// Why a load cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A size that is none.
    #[error(
        "`{given}` is no value size; give one such as 1KiB, 100B-10KiB, zipf:100B-10KiB or 1KiB*9,64KiB*1, up to 64MiB"
    )]
    BadValueSize {
        /// What was given.
        given: String,
    },
    /// A mix that is none.
    #[error(
        "`{given}` is no mix of operations; give weights such as get=95,put=5 (of get, put, insert, scan, rmw, delete)"
    )]
    BadMix {
        /// What was given.
        given: String,
    },
    /// A name that stands for nothing here.
    #[error("there is no {what} `{given}`; give one of {known}")]
    UnknownName {
        /// What kind of thing.
        what: &'static str,
        /// What was given.
        given: String,
        /// The names that there are.
        known: &'static str,
    },
    /// A number out of its range.
    #[error("{what} is {given}; give {least} to {most}")]
    OutOfRange {
        /// Which setting.
        what: &'static str,
        /// What was given.
        given: String,
        /// The least that is taken.
        least: String,
        /// The greatest that is taken.
        most: String,
    },
    /// An address that cannot be understood.
    #[error("`{given}` is no address; give host:port or http://host:port")]
    BadAddress {
        /// What was given.
        given: String,
    },
    /// An address that no name server knows.
    #[error("cannot look up `{address}`")]
    LookUp {
        /// The address.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A load against somebody else's machine, which nobody has allowed.
    #[error(
        "{address} is not this machine ({ip}); a load may harm what runs there: allow it with --allow-remote"
    )]
    Remote {
        /// The address.
        address: String,
        /// What it stands for.
        ip: std::net::IpAddr,
    },
    /// Nobody answers there.
    #[error("{target} cannot be reached at {address}: {reason}")]
    Unreachable {
        /// Which target.
        target: &'static str,
        /// Where.
        address: String,
        /// What the attempt ended with.
        reason: String,
    },
    /// The load phase left records unwritten.
    #[error(
        "{failed} of {records} records could not be written, the last for this reason: {reason}"
    )]
    LoadFailed {
        /// Records that are missing.
        failed: u64,
        /// Records wanted.
        records: u64,
        /// The last failure.
        reason: String,
    },
    /// A thread of the load could not be started.
    #[error("cannot start a worker")]
    Worker(#[source] io::Error),
    /// A worker ended by a fault of its own.
    #[error("a worker ended by a fault of its own; its message stands above")]
    Fault,
    /// The settings do not fit together.
    #[error("{0}")]
    Unfit(&'static str),
}

impl Error {
    /// Whether the command line is at fault, not the world.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::BadValueSize { .. }
                | Self::BadMix { .. }
                | Self::UnknownName { .. }
                | Self::OutOfRange { .. }
                | Self::BadAddress { .. }
                | Self::Remote { .. }
                | Self::Unfit(_)
        )
    }
}

//! What can go wrong, told apart by what the caller can do about it.

use std::time::Duration;

use crate::problem::Problem;

/// What became of a write that was not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was stored, nor will be.
    NotWritten,
    /// It may have been stored, or may still be.
    Unknown,
}

/// Why an attempt on one node came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// No connection was made, so nothing was sent.
    #[error("no connection: {0}")]
    Connect(#[source] hyper_util::client::legacy::Error),
    /// The connection broke while the request or the answer was under way.
    #[error("the connection broke: {0}")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No whole answer came in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Deadline(Duration),
    /// The answer has more bytes than the client takes.
    #[error("the answer has more than {limit} bytes")]
    TooLarge {
        /// `ClientConfig::answer_bytes_max`.
        limit: usize,
    },
    /// The answer is not what this version of the client knows.
    #[error("the answer is not understood: {what}")]
    NotUnderstood {
        /// What was looked for.
        what: &'static str,
    },
}

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client was given no nodes.
    #[error("no node was named; give at least one data address, such as 127.0.0.1:8081")]
    NoNodes,
    /// An address is none.
    #[error("`{given}` is not the address of a node; give HOST:PORT or http://HOST:PORT")]
    BadNode {
        /// What was given.
        given: String,
    },
    /// A request cannot be put into HTTP: for example a content type with a line break.
    #[error("the request cannot be sent: {0}")]
    BadRequest(#[from] http::Error),
    /// More operations than a batch may have.
    #[error("a batch has {given} operations; the limit is {limit}")]
    BatchTooLong {
        /// Operations given.
        given: usize,
        /// The limit.
        limit: usize,
    },
    /// A node refused, and asking another one would change nothing or might do harm.
    #[error("{node} refused: {problem}")]
    Refused {
        /// The node that answered, `host:port`.
        node: String,
        /// What it said.
        problem: Box<Problem>,
    },
    /// No node could be asked. Nothing was written.
    #[error("none of {tried} attempts reached a node, the last one {node}: {cause}")]
    Unreachable {
        /// Attempts made.
        tried: usize,
        /// The node of the last attempt.
        node: String,
        /// What happened there.
        cause: Cause,
    },
    /// A write was sent, and no answer came: it may have been stored, or may still be.
    #[error(
        "{node} did not say what became of the write: {cause}; it may or may not have been stored"
    )]
    Unknown {
        /// The node of the last attempt.
        node: String,
        /// What happened there.
        cause: Cause,
    },
    /// A node answered something that this version of the client does not know.
    #[error("{node} answered with something else than {what}; is it a torc node of this version?")]
    Malformed {
        /// The node that answered.
        node: String,
        /// What was expected.
        what: &'static str,
    },
}

impl Error {
    /// Whether the cluster could not be reached or had no quorum, rather than having said no.
    #[must_use]
    pub fn is_clusters_fault(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Unknown { .. } => true,
            Self::Refused { problem, .. } => problem.is_clusters_fault(),
            _ => false,
        }
    }

    /// For a write: what became of it.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Unknown { .. } | Self::Malformed { .. } => Outcome::Unknown,
            Self::Refused { problem, .. } => problem.outcome(),
            _ => Outcome::NotWritten,
        }
    }

    /// What the node said, if it is one that answered.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused { problem, .. } => Some(problem),
            _ => None,
        }
    }
}

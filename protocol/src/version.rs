//! Versions of stored values, and the digest by which replicas compare them.
//!
//! Source: Dynamo (2007), section 4.4, with hybrid logical clocks in place of vector clocks for `lww`;
//! dots and causal contexts for `siblings` after Preguiça, Baquero et al., "Dotted Version Vectors" (2010).

use std::fmt;

use torc_ring::NodeId;

use crate::hlc::Hlc;

/// Version of a write: ordered by time, then by the node that minted it. Never minted twice.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode,
)]
pub struct Version {
    /// When.
    pub hlc: Hlc,
    /// By whom.
    #[bincode(with_serde)]
    pub node: NodeId,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.hlc, self.node)
    }
}

/// What two replicas compare instead of values: version and hash of the content. Two records are the
/// same if and only if their digests are (but for collisions of a 64-bit hash within one version).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode,
)]
pub struct Digest {
    /// Version; of a set of siblings, the greatest of their dots.
    pub version: Version,
    /// Hash of the content, expiry and content type included.
    pub hash: u64,
}

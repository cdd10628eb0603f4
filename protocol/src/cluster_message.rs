//! What the cluster machines of two nodes say to each other.

use torc_ring::{ClusterId, ConfigVersion};

use crate::hlc::Hlc;

/// Between cluster machines.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::BorrowDecode)]
#[bincode(decode_context = "crate::wire::Frame")]
pub enum ClusterMessage {
    /// Are you there, and what do you know?
    Ping {
        /// Config version that the sender has applied.
        #[bincode(with_serde)]
        applied: ConfigVersion,
        /// Cluster of the sender.
        #[bincode(with_serde)]
        cluster: Option<ClusterId>,
        /// The sender's durable clock bound.
        bound: Hlc,
    },
}

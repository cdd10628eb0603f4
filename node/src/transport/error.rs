//! Why two nodes do not talk, typed on both sides: the one that refuses closes the connection with a
//! code, which the other one turns back into the same [`Reason`].

use std::io;
use std::net::SocketAddr;

use quinn::{ConnectionError, VarInt};
use torc_ring::NodeId;

use crate::pki::PkiError;

/// Longest text of a peer that is repeated in an error, in characters.
const SAID_LEN_MAX: usize = 200;

/// Why a node refuses another one, or closes a connection. The message says what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Reason {
    /// Another version of the wire format or of the handshake.
    #[error("the two nodes speak different wire versions; run the same release on both")]
    WireVersion,
    /// The certificate is of another CA, expired, or no node's certificate.
    #[error(
        "the certificate is not accepted; both nodes need one that the same CA issued and that is valid now"
    )]
    Certificate,
    /// Another cluster's id.
    #[error(
        "the two nodes belong to different clusters; check --join, --peer and the data directory"
    )]
    OtherCluster,
    /// The certificate's name is not the one that the node id is bound to.
    #[error(
        "the certificate's name is not the name of the member with this node id; start the node under its own --name and certificate"
    )]
    CertificateName,
    /// The other node has this node's id.
    #[error(
        "both nodes have the same node id; one data directory is a copy of the other: remove the copy and let that node join anew"
    )]
    OwnId,
    /// The address is this node's own.
    #[error("the address is the node's own; give --join the address of another node")]
    SelfDial,
    /// Another process with this node id took over.
    #[error(
        "another process with the same node id is connected; is a copy of the data directory in use?"
    )]
    DuplicateId,
    /// Another node answered than was meant.
    #[error("another node answers at this address than the member that is expected there")]
    OtherNode,
    /// The first frame is no greeting.
    #[error("the first frame is no greeting of a torc node")]
    MalformedHello,
    /// A frame that is longer than its kind may be.
    #[error("a frame is over the length limit")]
    FrameTooLong,
    /// A frame that cannot be decoded.
    #[error("a frame cannot be decoded")]
    MalformedFrame,
    /// A bulk stream stood still for too long.
    #[error("a stream did not move for too long")]
    Stalled,
    /// Too many connections or handshakes.
    #[error("the node has too many peer connections")]
    TooMany,
    /// Something about keys from a node that is not a member; the connection stays open.
    #[error("a node that is not a member may only talk about membership")]
    Guest,
    /// A newer connection took this one's place.
    #[error("a newer connection took this one's place")]
    Replaced,
    /// Not needed any more.
    #[error("the connection was idle")]
    Idle,
    /// The node stops.
    #[error("the node is stopping")]
    Stopping,
}

impl Reason {
    const ALL: [Self; 17] = [
        Self::WireVersion,
        Self::Certificate,
        Self::OtherCluster,
        Self::CertificateName,
        Self::OwnId,
        Self::SelfDial,
        Self::DuplicateId,
        Self::OtherNode,
        Self::MalformedHello,
        Self::FrameTooLong,
        Self::MalformedFrame,
        Self::Stalled,
        Self::TooMany,
        Self::Guest,
        Self::Replaced,
        Self::Idle,
        Self::Stopping,
    ];

    /// The label in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::WireVersion => "wire_version",
            Self::Certificate => "certificate",
            Self::OtherCluster => "other_cluster",
            Self::CertificateName => "certificate_name",
            Self::OwnId => "own_id",
            Self::SelfDial => "self_dial",
            Self::DuplicateId => "duplicate_id",
            Self::OtherNode => "other_node",
            Self::MalformedHello => "malformed_hello",
            Self::FrameTooLong => "frame_too_long",
            Self::MalformedFrame => "malformed_frame",
            Self::Stalled => "stalled",
            Self::TooMany => "too_many",
            Self::Guest => "guest",
            Self::Replaced => "replaced",
            Self::Idle => "idle",
            Self::Stopping => "stopping",
        }
    }

    /// Whether this ends a connection in the ordinary course of things.
    #[must_use]
    pub fn is_ordinary(self) -> bool {
        matches!(self, Self::Replaced | Self::Idle | Self::Stopping)
    }

    /// The application error code of a closed connection.
    pub(crate) fn code(self) -> VarInt {
        VarInt::from_u32(self as u32 + 1)
    }

    /// The reason behind a connection's end, if it has one of these.
    pub(crate) fn of(error: &ConnectionError) -> Option<Self> {
        match error {
            ConnectionError::ApplicationClosed(close) => Self::ALL
                .into_iter()
                .find(|reason| reason.code() == close.error_code),
            ConnectionError::ConnectionClosed(close) => Self::of_alert(close.error_code.into()),
            ConnectionError::TransportError(error) => Self::of_alert(error.code.into()),
            ConnectionError::VersionMismatch => Some(Self::WireVersion),
            _ => None,
        }
    }

    /// TLS alerts travel as QUIC error codes 0x100 + alert (RFC 9001, section 4.8).
    fn of_alert(code: u64) -> Option<Self> {
        match code.checked_sub(0x100)? {
            // no_application_protocol, protocol_version
            120 | 70 => Some(Self::WireVersion),
            // handshake_failure .. unknown_ca, access_denied, decrypt_error, certificate_required
            40..=49 | 51 | 116 => Some(Self::Certificate),
            _ => None,
        }
    }
}

/// What the transport cannot do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum TransportError {
    #[error("cannot listen for peers on {addr} (UDP): {source}; choose another --peer address")]
    Listen { addr: SocketAddr, source: io::Error },
    #[error("certificates: {0}")]
    Pki(#[from] PkiError),
    #[error("TLS between nodes cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the cipher suite that QUIC begins with is missing")]
    NoInitialCipher,
    #[error("cannot resolve the peer address `{addr}`: {source}; it must be host:port")]
    Resolve { addr: String, source: io::Error },
    #[error("the peer address `{addr}` resolves to nothing")]
    NoAddress { addr: String },
    #[error("cannot connect to {addr}: {source}")]
    Connect {
        addr: SocketAddr,
        source: quinn::ConnectError,
    },
    #[error(
        "no answer from {addr} (QUIC, UDP) within {seconds} s; is a node listening there, and does a firewall pass UDP?"
    )]
    Timeout { addr: SocketAddr, seconds: u64 },
    #[error("connection with {addr} failed: {source}")]
    Lost {
        addr: SocketAddr,
        source: ConnectionError,
    },
    #[error("{addr} is refused by this node: {reason} ({what})")]
    Refused {
        addr: SocketAddr,
        reason: Reason,
        what: String,
    },
    #[error("{addr} refuses this node: {reason} ({said})")]
    RefusedByPeer {
        addr: SocketAddr,
        reason: Reason,
        said: String,
    },
    #[error("another node answers at `{addr}`: {found} instead of {expected}")]
    OtherNode {
        addr: String,
        expected: NodeId,
        found: NodeId,
    },
    #[error("the transport has stopped")]
    Stopped,
}

impl TransportError {
    /// The reason, when one of the two nodes refused the other.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Refused { reason, .. } | Self::RefusedByPeer { reason, .. } => Some(*reason),
            Self::OtherNode { .. } => Some(Reason::OtherNode),
            _ => None,
        }
    }

    /// The error for a connection that ended with `source`.
    pub(crate) fn of(addr: SocketAddr, source: ConnectionError) -> Self {
        match (&source, Reason::of(&source)) {
            (ConnectionError::TransportError(error), Some(reason)) => Self::Refused {
                addr,
                reason,
                what: printable(&error.reason),
            },
            (ConnectionError::ApplicationClosed(close), Some(reason)) => Self::RefusedByPeer {
                addr,
                reason,
                said: printable(&String::from_utf8_lossy(&close.reason)),
            },
            (_, Some(reason)) => Self::RefusedByPeer {
                addr,
                reason,
                said: printable(&source.to_string()),
            },
            (_, None) => Self::Lost { addr, source },
        }
    }
}

/// What a peer said, fit for a log line.
pub(super) fn printable(said: &str) -> String {
    said.chars()
        .take(SAID_LEN_MAX)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_code_and_label() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason.code(), VarInt::from_u32(index as u32 + 1));
            let same = Reason::ALL
                .into_iter()
                .filter(|other| other.label() == reason.label())
                .count();
            assert_eq!(same, 1);
        }
    }
}

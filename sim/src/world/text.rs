//! What the trace says.

use std::fmt;

use torc_protocol::cluster_io::{ClusterInput, ClusterOutput};
use torc_protocol::message::{PeerBody, PeerMessage};
use torc_protocol::shard_io::Input;

/// An input of a shard on one line.
pub(super) struct Brief<'a>(pub(super) &'a Input);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Input::Config(view) => write!(f, "Config({})", view.config.version.0),
            Input::Peer(from, message) => match &message.body {
                PeerBody::Request(r) => write!(
                    f,
                    "{from} asks {:?} ring {}: {:.200}",
                    r.op,
                    r.ring.0,
                    format!("{:?}", r.kind)
                ),
                PeerBody::Reply(r) => write!(
                    f,
                    "{from} says {:?} ring {}: {:.200}",
                    r.op,
                    r.ring.0,
                    format!("{:?}", r.kind)
                ),
                PeerBody::Sync(s) => {
                    write!(
                        f,
                        "{from} syncs ring {}: {:.200}",
                        s.ring.0,
                        format!("{s:?}")
                    )
                }
                PeerBody::Floor(m) => {
                    write!(
                        f,
                        "{from} floor ring {}: {:.200}",
                        m.ring.0,
                        format!("{m:?}")
                    )
                }
                PeerBody::Cluster(_) => write!(f, "{from} cluster"),
            },
            other => write!(f, "{:.200}", format!("{other:?}")),
        }
    }
}

/// An input of a cluster machine on one line.
pub(super) struct BriefCluster<'a>(pub(super) &'a ClusterInput);

impl fmt::Display for BriefCluster<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ClusterInput::Peer { from, message, .. } => {
                write!(f, "{from} says {:.200}", format!("{message:?}"))
            }
            other => write!(f, "{:.200}", format!("{other:?}")),
        }
    }
}

/// An output of a cluster machine on one line; messages show where they arrive.
pub(super) struct BriefOutput<'a>(pub(super) &'a ClusterOutput);

impl fmt::Display for BriefOutput<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ClusterOutput::Send(to, PeerMessage { .. }) => write!(f, "Send({to})"),
            ClusterOutput::Apply(config) => write!(
                f,
                "Apply(version {}, ring {}, {} members)",
                config.version.0,
                config.ring_version.0,
                config.current.len()
            ),
            other => write!(f, "{:.200}", format!("{other:?}")),
        }
    }
}

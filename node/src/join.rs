//! Dialling the addresses of `--join`.

use std::time::Duration;

use tokio::sync::mpsc;
use torc_protocol::cluster_io::ClusterInput;
use torc_ring::NodeId;
use tracing::warn;

use crate::cluster_task::ClusterMail;
use crate::handle::Handle;
use crate::node::NodeError;
use crate::transport::{Reason, Transport, TransportError};

/// How long a dial may take.
const DIAL: Duration = Duration::from_secs(3);
/// Longest pause between rounds.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Dials each address until it has been reached once, and all of them again for as long as the node has
/// no config (those that it reached may have been restarted). An address where trying again cannot help
/// is given up; when none is left, or this node is of another cluster, the node ends.
pub(crate) async fn contact(
    transport: Transport,
    addresses: Vec<String>,
    mail: mpsc::UnboundedSender<ClusterMail>,
    handle: Handle,
) {
    let mut candidates = addresses;
    let mut left = candidates.clone();
    let mut reached: Vec<NodeId> = Vec::new();
    let mut pause = Duration::from_millis(50);
    loop {
        let mut still = Vec::new();
        for address in left {
            match tokio::time::timeout(DIAL, transport.dial(&address)).await {
                Ok(Ok(id)) => {
                    if !reached.contains(&id) {
                        reached.push(id);
                    }
                    let contacts = ClusterInput::Contacts(reached.clone());
                    if mail.send(ClusterMail::Input(contacts)).is_err() {
                        return;
                    }
                }
                Ok(Err(error)) if is_final(&error) => {
                    warn!(%address, %error, "this node cannot join through this address");
                    candidates.retain(|candidate| *candidate != address);
                    let foreign = error.reason() == Some(Reason::OtherCluster);
                    if foreign || (candidates.is_empty() && handle.view().is_none()) {
                        // The receiver is gone only when the node stops anyway.
                        let _ =
                            mail.send(ClusterMail::Fatal(Box::new(NodeError::Transport(error))));
                        return;
                    }
                }
                Ok(Err(error)) => {
                    warn!(%address, %error, "cannot reach a node to join, trying again");
                    still.push(address);
                }
                Err(_) => {
                    warn!(%address, "a node to join does not answer, trying again");
                    still.push(address);
                }
            }
        }
        if handle.view().is_some() {
            // A member needs nobody's address any more: the config has them all.
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
        left = if still.is_empty() {
            candidates.clone()
        } else {
            still
        };
    }
}

/// Whether trying again cannot help.
fn is_final(error: &TransportError) -> bool {
    matches!(
        error.reason(),
        Some(
            Reason::WireVersion
                | Reason::Certificate
                | Reason::OtherCluster
                | Reason::CertificateName
                | Reason::OwnId
                | Reason::SelfDial
        )
    )
}

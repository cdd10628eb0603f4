//! Takes in connections: a bounded number in all, and a bounded number of handshakes at a time.

use std::sync::Arc;

use super::error::Reason;
use super::{Inner, connection};

/// With more handshakes than this in progress, a sender must first prove its address.
const TRUSTING_MAX: usize = 16;

/// Runs until the endpoint closes.
pub(super) async fn run(inner: Arc<Inner>) {
    while let Some(incoming) = inner.endpoint.accept().await {
        let full = inner.endpoint.open_connections() >= inner.settings.connections;
        let slot = inner.handshakes.clone().try_acquire_owned();
        let (Ok(slot), false) = (slot, full) else {
            inner.metrics.refused(Reason::TooMany.label());
            incoming.refuse();
            continue;
        };
        let busy = inner
            .settings
            .handshakes
            .saturating_sub(inner.handshakes.available_permits());
        if busy > TRUSTING_MAX && !incoming.remote_address_validated() {
            // An error means that it has been validated after all; the peer tries again.
            let _ = incoming.retry();
            continue;
        }
        let inner = inner.clone();
        tokio::spawn(async move {
            connection::receive(&inner, incoming).await;
            drop(slot);
        });
    }
}

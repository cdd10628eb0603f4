//! A peer's sending side: one task that writes batches of small messages, one that hands large messages
//! to streams of their own, and one that keeps a member linked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use quinn::SendStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use torc_protocol::wire;

use super::Inner;
use super::connection::{self, KIND_GOSSIP, KIND_MESSAGE};
use super::error::Reason;
use super::frame::PREFIX_LEN;
use super::peer::{Link, Peer, Role};
use super::queue::Large;

/// First and last wait between attempts to connect.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A connection that lived for less counts as a failed attempt.
const LIVED: Duration = Duration::from_secs(5);
/// Head start of the node whose connection wins, so that two nodes seldom dial each other at once.
const HEAD_START: Duration = Duration::from_millis(100);
/// How often the queue of a peer without a connection is cleared of what is too old.
const DISCARD_INTERVAL: Duration = Duration::from_millis(250);
/// Longest time that a gossip message may take; the next one says the same and more.
const GOSSIP_TIME: Duration = Duration::from_secs(2);
/// Values longer than this many bytes are encoded off the threads that serve everything else.
const ENCODE_INLINE_MAX: usize = 1 << 20;

/// Starts a peer's tasks; they end when it is retired.
pub(super) fn start(inner: &Arc<Inner>, peer: &Arc<Peer>) {
    tokio::spawn(write_small(inner.clone(), peer.clone()));
    tokio::spawn(write_large(inner.clone(), peer.clone()));
    tokio::spawn(keep_linked(inner.clone(), peer.clone()));
}

/// Writes small messages to whichever connection is chosen, and announces its coming and going.
async fn write_small(inner: Arc<Inner>, peer: Arc<Peer>) {
    let mut chosen = peer.chosen.subscribe();
    let mut role = peer.role.subscribe();
    let mut announced = None;
    loop {
        let link = chosen.borrow_and_update().clone();
        announce(&inner, &peer, &mut announced, link.as_deref());
        let Some(link) = link else {
            if *role.borrow_and_update() == Role::Retired {
                return;
            }
            tokio::select! {
                _ = chosen.changed() => {}
                _ = role.changed() => {}
                () = sleep(DISCARD_INTERVAL) => inner.shed(peer.queue.discard_old(Instant::now())),
            }
            continue;
        };
        let mut out = link.out.lock().await;
        let broken = loop {
            if !drain(&inner, &peer, &mut out).await {
                break true;
            }
            tokio::select! {
                biased;
                _ = chosen.changed() => break false,
                () = peer.queue.small.notified() => {}
            }
        };
        drop(out);
        if broken {
            // Mostly it is closed already; a stream alone does not come back either.
            link.close(Reason::Idle, "the stream of small messages is closed");
            wait_for_other(&mut chosen, &link).await;
        }
    }
}

/// Writes until the queue is empty; false when the connection is broken.
async fn drain(inner: &Inner, peer: &Peer, out: &mut SendStream) -> bool {
    loop {
        let (batch, dropped) = peer.queue.take(Instant::now());
        inner.shed(dropped);
        let Some(batch) = batch else { return true };
        let len = batch.bytes.len() as u64;
        if out.write_chunk(batch.bytes).await.is_err() {
            inner.metrics.lost(peer.node, u64::from(batch.frames));
            return false;
        }
        inner.metrics.sent(peer.counted(), len);
    }
}

fn announce(inner: &Inner, peer: &Peer, announced: &mut Option<u64>, link: Option<&Link>) {
    let process = link.map(|link| link.process);
    if *announced == process {
        return;
    }
    if announced.is_some() {
        inner.inbound.on_link(peer.node, false);
    }
    if process.is_some() {
        inner.inbound.on_link(peer.node, true);
    }
    *announced = process;
}

/// Waits until another connection than the broken `link` is chosen; its own task will see to that.
async fn wait_for_other(chosen: &mut watch::Receiver<Option<Arc<Link>>>, link: &Link) {
    let other = chosen.wait_for(|now| now.as_ref().is_none_or(|now| now.id != link.id));
    let _ = timeout(Duration::from_secs(1), other).await;
}

/// Hands large messages to streams of their own, a few at a time.
async fn write_large(inner: Arc<Inner>, peer: Arc<Peer>) {
    let mut chosen = peer.chosen.subscribe();
    let mut role = peer.role.subscribe();
    loop {
        let link = chosen.borrow_and_update().clone();
        let Some(link) = link else {
            if *role.borrow_and_update() == Role::Retired {
                return;
            }
            tokio::select! {
                _ = chosen.changed() => {}
                _ = role.changed() => {}
            }
            continue;
        };
        let Ok(slot) = peer.bulk.clone().acquire_owned().await else {
            return;
        };
        let (next, dropped) = peer.queue.take_large(Instant::now());
        inner.shed(dropped);
        let Some((message, payload)) = next else {
            drop(slot);
            tokio::select! {
                _ = chosen.changed() => {}
                () = peer.queue.large.notified() => {}
            }
            continue;
        };
        let (inner, peer) = (inner.clone(), peer.clone());
        tokio::spawn(async move {
            match send_large(&link, message, payload).await {
                Some(len) => inner.metrics.sent(peer.counted(), len),
                None => inner.metrics.lost(peer.node, 1),
            }
            drop(slot);
        });
    }
}

/// Sends one message on its own stream; answers the bytes sent.
async fn send_large(link: &Link, message: Large, payload: usize) -> Option<u64> {
    let bytes = match message {
        Large::Encoded(bytes) => bytes,
        Large::Message(message) => {
            let encode = move || {
                let mut out = BytesMut::with_capacity(payload + (payload >> 3));
                out.put_u32_le(0);
                let len = wire::encode(&message, &mut out)?;
                out[..PREFIX_LEN].copy_from_slice(&(len as u32).to_le_bytes());
                Ok::<_, wire::WireError>(out.freeze())
            };
            let encoded = if payload > ENCODE_INLINE_MAX {
                tokio::task::spawn_blocking(encode).await.ok()?
            } else {
                encode()
            };
            match encoded {
                Ok(bytes) => bytes,
                Err(error) => {
                    tracing::error!(%error, "a message for a peer is dropped");
                    return None;
                }
            }
        }
    };
    let len = bytes.len() as u64 + 1;
    let mut out = link.connection.open_uni().await.ok()?;
    let mut chunks = [Bytes::from_static(&[KIND_MESSAGE]), bytes];
    out.write_all_chunks(&mut chunks).await.ok()?;
    out.finish().ok()?;
    // Only what has arrived makes room for the next one: that bounds what QUIC holds for this peer.
    out.stopped()
        .await
        .ok()
        .filter(Option::is_none)
        .map(|_| len)
}

/// Sends one gossip message on its own stream, or drops it when the last few are still on their way.
pub(super) fn send_gossip(inner: &Arc<Inner>, peer: &Arc<Peer>, bytes: Bytes) {
    let link = peer.chosen.borrow().clone();
    let (Some(link), Ok(slot)) = (link, peer.gossip.clone().try_acquire_owned()) else {
        return;
    };
    let (inner, counted) = (inner.clone(), peer.counted());
    tokio::spawn(async move {
        let len = bytes.len() as u64 + 1;
        let send = async {
            let mut out = link.connection.open_uni().await.ok()?;
            // Liveness must not wait behind values.
            let _ = out.set_priority(1);
            out.write_all_chunks(&mut [Bytes::from_static(&[KIND_GOSSIP]), bytes])
                .await
                .ok()?;
            out.finish().ok()
        };
        if let Ok(Some(())) = timeout(GOSSIP_TIME, send).await {
            inner.metrics.sent(counted, len);
        }
        drop(slot);
    });
}

/// Dials a member whenever no connection with it is there.
async fn keep_linked(inner: Arc<Inner>, peer: Arc<Peer>) {
    let mut chosen = peer.chosen.subscribe();
    let mut role = peer.role.subscribe();
    let mut backoff = BACKOFF_MIN;
    let mut linked_at = None;
    loop {
        let addr = match &*role.borrow_and_update() {
            Role::Retired => return,
            Role::Guest => None,
            Role::Member { addr, .. } => Some(addr.clone()),
        };
        let linked = chosen.borrow_and_update().is_some();
        let Some(addr) = addr.filter(|_| !linked) else {
            if linked {
                linked_at.get_or_insert_with(Instant::now);
            }
            tokio::select! {
                _ = chosen.changed() => {}
                _ = role.changed() => {}
            }
            continue;
        };
        let lived = linked_at.take().map(|at| at.elapsed());
        let wait = match lived {
            Some(lived) if lived < LIVED => grow(&mut backoff),
            Some(_) | None if inner.settings.node > peer.node && backoff == BACKOFF_MIN => {
                HEAD_START
            }
            Some(_) => Duration::ZERO,
            None if backoff == BACKOFF_MIN => Duration::ZERO,
            None => backoff,
        };
        let changed = tokio::select! {
            _ = chosen.changed() => true,
            _ = role.changed() => true,
            () = sleep(wait) => false,
        };
        if changed {
            continue;
        }
        match connection::dial(&inner, &addr, Some(peer.node)).await {
            Ok(_) => backoff = BACKOFF_MIN,
            Err(error) => {
                inner.log_failure(&peer.node.to_string(), &error);
                grow(&mut backoff);
            }
        }
    }
}

/// Doubles the wait, with jitter, so that nodes that lost each other do not dial in step.
fn grow(backoff: &mut Duration) -> Duration {
    let next = backoff.mul_f64(rand::random_range(1.5..2.5));
    *backoff = next.min(BACKOFF_MAX);
    *backoff
}

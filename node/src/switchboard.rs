//! Brings what the transport receives to the shards and to the cluster machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;
use torc_protocol::message::{PeerBody, PeerMessage, RequestKind};
use torc_ring::NodeId;

use crate::metrics::Metrics;
use crate::shard_task::Inlets;
use crate::transport::Inbound;

/// Number of partitions, as far as the transport needs it to find a message's shard.
#[derive(Debug)]
pub(crate) struct Routing {
    bits: AtomicU8,
    shards: usize,
}

/// No config yet.
const NO_BITS: u8 = u8::MAX;

impl Routing {
    pub(crate) fn new(shards: usize) -> Self {
        Self {
            bits: AtomicU8::new(NO_BITS),
            shards,
        }
    }

    pub(crate) fn set_partition_bits(&self, bits: u8) {
        self.bits.store(bits, Ordering::Release);
    }

    /// The shard that a message is for; `None` for one to the cluster machine.
    fn shard(&self, message: &PeerMessage) -> Option<usize> {
        match &message.body {
            PeerBody::Cluster(_) => None,
            PeerBody::Reply(reply) => Some(usize::from(reply.op.shard()) & (self.shards - 1)),
            PeerBody::Sync(message) => Some(usize::from(message.partition.0) & (self.shards - 1)),
            PeerBody::Floor(message) => Some(usize::from(message.partition.0) & (self.shards - 1)),
            PeerBody::Request(request) => {
                let bits = match self.bits.load(Ordering::Acquire) {
                    NO_BITS => 0,
                    bits => bits,
                };
                let partition = match &request.kind {
                    RequestKind::Write { key, .. }
                    | RequestKind::StandIn { key, .. }
                    | RequestKind::Read { key, .. }
                    | RequestKind::Watch { key, .. } => key.token.partition(bits),
                    RequestKind::List { partition, .. } => *partition,
                };
                Some(usize::from(partition.0) & (self.shards - 1))
            }
        }
    }
}

/// Brings what the transport receives to the shards and to the cluster machine.
pub(crate) struct Switchboard {
    pub(crate) routing: Arc<Routing>,
    pub(crate) shards: Vec<Inlets>,
    pub(crate) cluster: mpsc::Sender<(NodeId, PeerMessage)>,
    pub(crate) gossip: crate::gossip::Inbox,
    pub(crate) metrics: Arc<Metrics>,
}

impl Inbound for Switchboard {
    fn on_messages(&self, from: NodeId, messages: Vec<PeerMessage>) {
        if self.shards.len() == 1
            && messages
                .iter()
                .all(|m| !matches!(m.body, PeerBody::Cluster(_)))
        {
            self.deliver(0, from, messages);
            return;
        }
        let mut slots: Vec<Vec<PeerMessage>> = (0..self.shards.len()).map(|_| Vec::new()).collect();
        for message in messages {
            match self.routing.shard(&message) {
                Some(shard) => slots[shard].push(message),
                None => {
                    if self.cluster.try_send((from, message)).is_err() {
                        self.metrics.on_shed_count("cluster_queue", 1);
                    }
                }
            }
        }
        for (shard, batch) in slots.into_iter().enumerate() {
            if !batch.is_empty() {
                self.deliver(shard, from, batch);
            }
        }
    }

    fn on_gossip(&self, from: std::net::SocketAddr, bytes: Bytes) {
        self.gossip.deliver(from, bytes);
    }

    fn on_link(&self, _peer: NodeId, _up: bool) {}
}

impl Switchboard {
    /// A full queue drops: senders have deadlines and hints for that.
    fn deliver(&self, shard: usize, from: NodeId, batch: Vec<PeerMessage>) {
        let count = batch.len() as u64;
        if self.shards[shard].peers.try_send((from, batch)).is_err() {
            self.metrics.on_shed_count("shard_peers", count);
        }
    }
}

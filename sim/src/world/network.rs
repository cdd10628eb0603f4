//! The network: every message passes the real codec, and then gets lost, doubled, late or where it should.

use bytes::{Bytes, BytesMut};
use torc_protocol::cluster_io::ClusterInput;
use torc_protocol::message::{
    PeerBody, PeerMessage, Reply, ReplyKind, Request, RequestKind, WritePurpose,
};
use torc_protocol::record::Record;
use torc_protocol::shard_io::Input;
use torc_protocol::time::MS;
use torc_protocol::wire;
use torc_ring::{NodeId, RingVersion};

use super::node::Place;
use super::{Ev, World, number_of_bytes};
use crate::check::{Invariant, Violation, exchanges};
use crate::client::write_of;

/// Typical time that a message takes, in microseconds.
const HOP: u64 = 300;

impl World {
    /// Takes a message from a node to whoever has that identity when it arrives.
    pub(super) fn send(&mut self, node: usize, to: NodeId, message: &PeerMessage) {
        let mut frame = BytesMut::new();
        if let Err(error) = wire::encode(message, &mut frame) {
            self.fail(Violation::new(
                Invariant::Genuine,
                format!("a message cannot be encoded: {error}"),
            ));
            return;
        }
        let from = self.nodes[node].member.id;
        if from == to {
            let what = format!("{from} sends a message to itself");
            self.fail(Violation::new(Invariant::Genuine, what));
            return;
        }
        let Some(target) = self.index_of(to) else {
            return;
        };
        let frame = frame.freeze();
        self.count("messages");
        let cut = self.cuts.contains(&(node, target));
        if cut || self.rng.chance(self.faults.loss) || self.loses(node, to, message) {
            self.count("fault: message lost");
            return;
        }
        let copies = if self.rng.chance(self.faults.duplicates) {
            2
        } else {
            1
        };
        for copy in 0..copies {
            let mut after = self.rng.between(HOP / 4, HOP);
            if self.rng.chance(self.faults.slow) {
                self.count("fault: message late");
                after = self.rng.tailed(20 * MS);
            }
            if copy > 0 {
                self.count("fault: message duplicated");
            }
            if let Some(lag) = self.lags.get(&(node, target)) {
                after += lag;
            }
            let frame = frame.clone();
            self.schedule(after, Ev::Deliver { from, to, frame });
        }
    }

    pub(super) fn deliver(&mut self, from: NodeId, to: NodeId, frame: &Bytes) {
        self.mix_bytes(frame);
        let message = match wire::decode(frame) {
            Ok(message) => message,
            Err(error) => {
                self.fail(Violation::new(
                    Invariant::Genuine,
                    format!("a message cannot be decoded: {error}"),
                ));
                return;
            }
        };
        let Some(to) = self.index_of(to).filter(|&to| self.nodes[to].is_up()) else {
            return;
        };
        let shards = self.nodes[to].slots.len();
        let shard = match message.body {
            PeerBody::Cluster(body) => {
                self.note_remembered(to, &body);
                let input = ClusterInput::Peer {
                    from,
                    hlc: message.hlc,
                    message: body,
                };
                self.cluster_input(to, input);
                return;
            }
            PeerBody::Request(ref request) => {
                usize::from(partition_of(request, self.plan.bits)) % shards
            }
            PeerBody::Reply(ref reply) => usize::from(reply.op.shard()),
            PeerBody::Sync(ref sync) => usize::from(sync.partition.0) % shards,
            PeerBody::Floor(ref floor) => usize::from(floor.partition.0) % shards,
        };
        // Replies to an earlier life, which had more shards, are nobody's.
        if shard < shards {
            self.note_ack(to, from, &message);
            let life = self.nodes[to].life;
            let shard = shard as u8;
            let at = Place {
                node: to,
                life,
                shard,
            };
            self.note_asked(at, from, &message);
            self.input(at, Input::Peer(from, message));
        }
    }

    /// Learns from what goes over the wire which acks a coordinator has.
    fn note_ack(&mut self, to: usize, from: NodeId, message: &PeerMessage) {
        let life = self.nodes[to].life;
        if let PeerBody::Reply(reply) = &message.body
            && let ReplyKind::Written { .. } = reply.kind
            && let Some(&write) = self.clients.exchanges.get(&(to, life, reply.op))
        {
            self.rounds.ack(write, from, reply.ring);
        }
    }

    /// A request arrives at a shard.
    fn note_asked(&mut self, at: Place, from: NodeId, message: &PeerMessage) {
        let PeerBody::Request(request) = &message.body else {
            return;
        };
        let replica = self.nodes[at.node].member.id;
        let exchange = (replica, from, request.op, request.ring);
        let ring = self.slot(at).and_then(|slot| slot.placed.as_ref());
        let ring = ring.map_or(RingVersion(0), |placed| placed.view.config.ring_version);
        let key = match &request.kind {
            RequestKind::Write { key, .. } | RequestKind::Read { key, .. } => Some(key),
            _ => None,
        };
        self.exchanges.asked(exchange, ring, key);
    }

    /// A replica answers: with what it was asked for at its ring version, and with what its disk holds.
    fn observe_answer(&mut self, node: usize, to: NodeId, reply: &Reply) {
        if matches!(reply.kind, ReplyKind::Refused(_) | ReplyKind::Changed) {
            return;
        }
        let this = &self.nodes[node];
        let exchange = (this.member.id, to, reply.op, reply.ring);
        let result = self.exchanges.answered(exchange).and_then(|key| {
            let Some(key) = key else { return Ok(()) };
            let stored = this.disk.visible.records.get(key).map(Record::digest);
            match &reply.kind {
                // What was stored may be dead by now.
                ReplyKind::Written { stored: told } if self.is_collected(node, key, *told) => {
                    Ok(())
                }
                ReplyKind::Written { stored: told } => {
                    exchanges::acked(*told, stored.map(|digest| digest.version))
                }
                ReplyKind::Full {
                    record: Some(record),
                } => exchanges::served(record.digest(), stored),
                ReplyKind::Digest {
                    digest: Some(digest),
                } => exchanges::served(*digest, stored),
                _ => Ok(()),
            }
        });
        self.check(result);
    }

    /// Learns from what goes over the wire: which version a write got, and what exchange carries it.
    pub(super) fn observe_sent(&mut self, at: Place, to: NodeId, message: &PeerMessage) {
        if let PeerBody::Reply(reply) = &message.body {
            self.observe_answer(at.node, to, reply);
        }
        let PeerBody::Request(Request { op, kind, .. }) = &message.body else {
            return;
        };
        let (key, record, purpose) = match kind {
            RequestKind::Write {
                key,
                record,
                purpose,
                ..
            } => (key, record, *purpose),
            RequestKind::StandIn { key, record, .. } => (key, record, WritePurpose::Client),
            _ => return,
        };
        let write = write_of(record);
        self.deleted.saw(record);
        let seen = self
            .mint
            .seen(number_of_bytes(&key.key), record.digest(), write);
        self.check(seen);
        if purpose == WritePurpose::Client {
            self.clients
                .exchanges
                .insert((at.node, at.life, *op), record.version());
        }
    }
}

/// The partition by which the node's switchboard finds the shard.
fn partition_of(request: &Request, bits: u8) -> u16 {
    match &request.kind {
        RequestKind::Write { key, .. }
        | RequestKind::StandIn { key, .. }
        | RequestKind::Read { key, .. }
        | RequestKind::Watch { key, .. } => key.token.partition(bits).0,
        RequestKind::List { partition, .. } => partition.0,
    }
}

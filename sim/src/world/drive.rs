//! Drives the shards: hands them what happens, and does what they want with the world's network and disks.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use torc_protocol::message::{
    PeerBody, PeerMessage, ReplyKind, Request, RequestKind, WritePurpose,
};
use torc_protocol::shard::{Shard, ShardSettings};
use torc_protocol::shard_io::{Event, Input, Output};
use torc_protocol::time::{MS, Mono, Now, Wall};
use torc_protocol::wire;
use torc_ring::{NodeId, RingVersion};

use crate::check::{Invariant, Violation};

use super::{Brief, DISK, EPOCH, Ev, HOP, Place, Slot, World, number_of, partition_of, write_of};

impl World {
    pub(crate) fn clock(&self, node: usize) -> Now {
        let wall = (EPOCH + self.now).saturating_add_signed(self.nodes[node].offset);
        Now {
            mono: Mono(self.now),
            wall: Wall(wall),
        }
    }

    /// Hands an input to a shard that is there, and does what it wants.
    pub(super) fn input(&mut self, at: Place, input: Input) {
        let now = self.clock(at.node);
        if self.tracing {
            self.note(format_args!(
                "n{} s{} <- {}",
                at.node,
                at.shard,
                Brief(&input)
            ));
        }
        self.mix(((at.node as u64) << 8) | u64::from(at.shard));
        let Some(slot) = self.slot(at) else { return };
        slot.shard.handle(now, input);
        while let Some(output) = self.slot(at).and_then(|slot| slot.shard.next_output()) {
            self.output(at, output);
        }
        let Some(slot) = self.slot(at) else { return };
        if let Some(Mono(due)) = slot.shard.next_deadline()
            && slot.tick_at.is_none_or(|scheduled| due < scheduled)
        {
            slot.tick_at = Some(due);
            let after = due.saturating_sub(self.now);
            self.schedule(after, Ev::Tick { at });
        }
    }

    pub(super) fn output(&mut self, at: Place, output: Output) {
        match output {
            Output::Reply(request, reply) => self.on_reply(at, request, &reply),
            Output::Send(to, message) => self.send(at, to, &message),
            Output::Read(id, query) => {
                let after = self.disk_time() / 4;
                self.schedule(after, Ev::ReadRun { at, id, query });
            }
            Output::Commit(id, batch) => {
                if self.nodes[at.node].disk.push((at.shard, id, batch)) {
                    self.flush(at.node);
                }
            }
            Output::Drained(ring) => {
                if let Some(slot) = self.slot(at) {
                    slot.drained = slot.drained.max(ring);
                }
            }
            Output::Frozen(_) => self.count("rare: frozen"),
            Output::NewerConfig(_, version) => {
                let node = &self.nodes[at.node];
                let life = node.life;
                if self.configs[node.applied].config.version < version {
                    let after = self.rng.tailed(MS);
                    self.schedule(
                        after,
                        Ev::Apply {
                            node: at.node,
                            life,
                        },
                    );
                }
            }
            Output::Event(event) => self.on_event(at, &event),
        }
    }

    pub(super) fn on_event(&mut self, at: Place, event: &Event) {
        let books = &mut self.nodes[at.node].books;
        match event {
            Event::HintDelivered { .. } => books.delivered += 1,
            Event::HintsDropped {
                reason: "bytes" | "full",
                count,
                ..
            } => books.refused += count,
            Event::HintsDropped { count, .. } => books.dropped += count,
            Event::Hints {
                target, waiting, ..
            } => {
                if let Some(slot) = self.slot(at) {
                    slot.waiting.insert(*target, *waiting);
                }
            }
            _ => {}
        }
        let name = match event {
            Event::HintDelivered { .. } => "rare: hint delivered",
            Event::HintsDropped { .. } => "rare: hint dropped",
            Event::Hedged => "rare: hedged read",
            Event::ReadRepair { .. } => "rare: read repair",
            Event::VersionCollision { .. } => "rare: version collision",
            Event::Shed { .. } => "rare: shed",
            Event::Replica {
                outcome: "expired", ..
            } => "rare: replica refused expired work",
            Event::Replica {
                outcome: "ring_version",
                ..
            } => "rare: replica refused another ring",
            Event::Replica {
                outcome: "clock", ..
            } => "rare: replica refused a version for drift",
            Event::Replica {
                outcome: "frozen", ..
            } => "rare: replica refused while frozen",
            Event::Replica { op: "stand_in", .. } => "rare: stand-in",
            _ => return,
        };
        self.count(name);
    }

    // ---- network

    pub(super) fn send(&mut self, at: Place, to: NodeId, message: &PeerMessage) {
        self.observe_sent(at, message);
        let Some(to) = self.nodes.iter().position(|node| node.id == to) else {
            return;
        };
        let mut frame = BytesMut::new();
        if let Err(error) = wire::encode(message, &mut frame) {
            self.fail(Violation::new(
                Invariant::Genuine,
                format!("a message cannot be encoded: {error}"),
            ));
            return;
        }
        let frame = frame.freeze();
        self.count("messages");
        if self.cuts.contains(&(at.node, to)) || self.rng.chance(self.faults.loss) {
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
            self.schedule(
                after,
                Ev::Deliver {
                    from: at.node,
                    to,
                    frame: frame.clone(),
                },
            );
        }
    }

    pub(super) fn deliver(&mut self, from: usize, to: usize, frame: &Bytes) {
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
        let node = &self.nodes[to];
        if !node.is_up() {
            return;
        }
        let shards = node.slots.len();
        let shard = match &message.body {
            PeerBody::Request(request) => {
                usize::from(partition_of(request, self.plan.bits)) % shards
            }
            PeerBody::Reply(reply) => usize::from(reply.op.shard()),
            PeerBody::Cluster(_) => return,
        };
        if shard < shards {
            let at = Place {
                node: to,
                life: node.life,
                shard: shard as u8,
            };
            let from_id = self.nodes[from].id;
            if let PeerBody::Reply(reply) = &message.body
                && let ReplyKind::Written { .. } = reply.kind
                && let Some(&write) = self.clients.exchanges.get(&(to, node.life, reply.op))
            {
                self.rounds.ack(write, from_id, reply.ring);
            }
            self.input(at, Input::Peer(from_id, message));
        }
    }

    /// Learns from what goes over the wire: which version a write got, and what exchange carries it.
    pub(super) fn observe_sent(&mut self, at: Place, message: &PeerMessage) {
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
        let seen = self.mint.seen(number_of(key), record.digest(), write);
        self.check(seen);
        if purpose == WritePurpose::Client {
            self.clients
                .exchanges
                .insert((at.node, at.life, *op), record.version());
        }
    }

    // ---- disks

    pub(super) fn disk_time(&mut self) -> u64 {
        if self.rng.chance(self.faults.slow) {
            self.count("fault: slow disk");
            self.rng.tailed(20 * MS)
        } else {
            self.rng.between(DISK / 4, DISK)
        }
    }

    pub(super) fn flush(&mut self, node: usize) {
        if self.nodes[node].disk.begin() {
            let life = self.nodes[node].life;
            let after = self.disk_time();
            self.schedule(after, Ev::Flushed { node, life });
        }
    }

    pub(super) fn flushed(&mut self, node: usize, life: u32) {
        if !self.alive(node, life) {
            return;
        }
        let (outcomes, removed) = self.nodes[node].disk.end();
        for (at, hint) in removed {
            let there = self
                .nodes
                .iter()
                .find(|node| node.id == at.target)
                .is_some_and(|target| {
                    let stored = target.disk.visible.records.get(&hint.key);
                    stored.is_some_and(|stored| stored.digest() >= hint.record.digest())
                });
            let books = &mut self.nodes[node].books;
            if there {
                books.handed_over += 1;
            } else {
                books.given_up += 1;
            }
        }
        let after = self.rng.below(DISK / 4);
        for (shard, id, result) in outcomes {
            if result.is_err() {
                self.count("fault: commit refused, disk full");
            }
            self.schedule(
                after,
                Ev::Committed {
                    at: Place { node, life, shard },
                    id,
                    result,
                },
            );
        }
        self.flush(node);
    }

    // ---- lives

    pub(super) fn start(&mut self, node: usize) {
        if self.nodes[node].is_up() {
            return;
        }
        let count = self.rng.pick(&[1, 1, 2, 4]);
        let now = self.clock(node);
        let seed = self.rng.word();
        let plan = &self.plan;
        let this = &mut self.nodes[node];
        this.life += 1;
        this.serving = false;
        this.trusted = true;
        this.believed_dead.clear();
        let totals = this.disk.visible.totals();
        let bound = this.disk.visible.bound();
        let zone = self.configs[0].config.current[node].zone.clone();
        for index in 0..count {
            let mut settings = ShardSettings::new(this.id, index, count);
            settings.zone.clone_from(&zone);
            settings.durable_bound = bound;
            settings.seed = seed.wrapping_add(u64::from(index) << 32);
            settings.drift_max = plan.drift_max;
            settings.hint_bytes_max = plan.hint_bytes_max;
            settings.hint_age_max = plan.hint_age_max;
            settings.ops_max = plan.ops_max;
            settings.lingering_max = plan.lingering_max;
            settings.mutant = plan.mutant;
            this.slots.push(Slot {
                shard: Shard::new(settings, &totals, now),
                tick_at: None,
                drained: RingVersion(0),
                waiting: BTreeMap::new(),
            });
            for total in totals.iter().filter(|total| total.slot % count == index) {
                let slot = this.slots.last_mut();
                *slot
                    .map(|slot| slot.waiting.entry(total.target).or_default())
                    .expect("just pushed") += total.count;
            }
        }
        let (life, view) = (this.life, self.configs[this.applied].clone());
        self.note(format_args!(
            "n{node} starts life {life} with {count} shards"
        ));
        self.input_all(node, || Input::Config(view.clone()));
        let after = self.rng.below(50 * MS);
        self.schedule(after, Ev::Serve { node, life });
        if !self.plan.fsync {
            self.schedule(50 * MS, Ev::Sync { node, life });
        }
    }

    pub(crate) fn crash(&mut self, node: usize) {
        self.note(format_args!("n{node} crashes"));
        let rng = &mut self.rng;
        let this = &mut self.nodes[node];
        this.slots.clear();
        this.disk.crash(rng);
        this.paused_until = 0;
        self.clients_lost(node);
    }

    /// Applies the next config, if there is one. (The cluster machine keeps the order; here it is given.)
    pub(super) fn apply_config(&mut self, node: usize, life: u32) {
        if !self.alive(node, life) || self.nodes[node].applied + 1 >= self.configs.len() {
            return;
        }
        self.nodes[node].applied += 1;
        let view = self.configs[self.nodes[node].applied].clone();
        self.input_all(node, || Input::Config(view.clone()));
    }
}

//! Drives the shards: hands them what happens, and does what they want with the world's network and disks.

use torc_protocol::client::{ClientRequest, RequestId};
use torc_protocol::cluster_io::ClusterInput;
use torc_protocol::shard_io::{Event, Input, Output};
use torc_protocol::store::{StateKey, Write};
use torc_protocol::time::{MS, Mono};
use torc_ring::RingVersion;

use super::node::{Gather, Machine, Place, SHARDS_MAX, Slot};
use super::text::Brief;
use super::{Ev, World};
use crate::check::books;

impl World {
    pub(super) fn slot(&mut self, at: Place) -> Option<&mut Slot> {
        if !self.alive(at.node, at.life) {
            return None;
        }
        self.nodes[at.node].slots.get_mut(usize::from(at.shard))
    }

    pub(super) fn tick(&mut self, at: Place) {
        let now = self.now;
        // A tick that an earlier one has replaced is none.
        if let Some(slot) = self
            .slot(at)
            .filter(|slot| slot.tick_at.is_some_and(|due| due <= now))
        {
            slot.tick_at = None;
            self.input(at, Input::Tick);
        }
    }

    pub(super) fn input_if_alive(&mut self, at: Place, input: Input) {
        if self.slot(at).is_some() {
            self.input(at, input);
        }
    }

    /// From within a node to all of its shards; each takes it when it comes to that, in order.
    pub(crate) fn mail_all(&mut self, node: usize, mut input: impl FnMut() -> Input) {
        let life = self.nodes[node].life;
        for shard in 0..self.nodes[node].slots.len() {
            let after = if !self.plan.orderly && self.rng.chance(100) {
                self.rng.tailed(MS)
            } else {
                self.rng.below(20)
            };
            let slot = &mut self.nodes[node].slots[shard];
            slot.mail_at = slot.mail_at.max(self.now + after);
            let after = slot.mail_at - self.now;
            let shard = shard as u8;
            let at = Place { node, life, shard };
            let input = input();
            self.schedule(after, Ev::Mail { at, input });
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
        if let Input::Config(view) = &input {
            let placed = self.placed(&view.config.clone());
            if let Some(slot) = self.slot(at) {
                slot.placed = Some(placed);
            }
        }
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

    /// What a shard wants. A new kind of output goes here.
    fn output(&mut self, at: Place, output: Output) {
        match output {
            Output::Reply(request, reply) => self.on_reply(at, request, &reply),
            Output::Send(to, message) => {
                self.observe_sent(at, to, &message);
                self.send(at.node, to, &message);
            }
            Output::Read(id, query) => self.ask_disk(at, id, query),
            Output::Commit(id, batch) => {
                for write in &batch.writes {
                    match write {
                        Write::Merge { record, .. } => self.deleted.saw(record),
                        Write::HintPut { .. } => self.check_stand_in(at.node, write),
                        Write::Remove { .. }
                        | Write::StatePut {
                            key: StateKey::Floor(..),
                            ..
                        } => self.note(format_args!("n{} s{} -> {write:?}", at.node, at.shard)),
                        _ => {}
                    }
                }
                if let Some(slot) = self.slot(at)
                    && let Some(placed) = &slot.placed
                    && batch
                        .writes
                        .iter()
                        .any(|w| matches!(w, Write::Merge { .. }))
                {
                    slot.drain.begins(id, placed.view.config.ring_version);
                }
                self.commit(at, id, batch);
            }
            Output::Drained(ring) => {
                if let Some(slot) = self.slot(at) {
                    slot.drained = slot.drained.max(ring);
                    let drained = slot.drain.drained(ring);
                    self.check(drained);
                }
                self.gather(
                    at,
                    ring,
                    |machine| &mut machine.drained,
                    ClusterInput::Drained,
                );
            }
            Output::Covered(ring) => {
                self.count("rare: covered");
                self.check_inherited(at, ring);
                self.gather(
                    at,
                    ring,
                    |machine| &mut machine.covered,
                    ClusterInput::Covered,
                );
                self.crash_at_step(at.node);
            }
            Output::NewerConfig(from, version) => {
                self.mail_cluster(at.node, ClusterInput::NewerConfig(from, version));
            }
            Output::Event(event) => self.on_event(at, &event),
        }
    }

    /// One shard has drained, or has everything that it gains; once all have, the cluster machine hears of it.
    fn gather(
        &mut self,
        at: Place,
        ring: RingVersion,
        of: impl Fn(&mut Machine) -> &mut Gather,
        input: impl Fn(RingVersion) -> ClusterInput,
    ) {
        let this = &mut self.nodes[at.node];
        let count = this.slots.len();
        let Some(machine) = &mut this.machine else {
            return;
        };
        if of(machine).add(at.shard, ring, count) {
            self.mail_cluster(at.node, input(ring));
        }
    }

    fn on_event(&mut self, at: Place, event: &Event) {
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
                target,
                waiting,
                bytes,
            } => {
                if let Some(slot) = self.slot(at) {
                    slot.waiting.insert(*target, *waiting);
                }
                // Hints that count towards a quorum are exempt; and a node that starts with fewer shards
                // than before finds what several of them have kept.
                if !self.plan.sloppy {
                    let most = u64::from(SHARDS_MAX) * self.plan.hint_bytes_max;
                    let kept = books::bound("bytes of hints", *bytes, most);
                    self.check(kept);
                }
            }
            Event::Coordinated { .. } => self.clients.reported += 1,
            _ => {}
        }
        let changing = self.agreed.latest().is_some_and(|c| c.target.is_some());
        let name = match event {
            Event::Rebuilt { .. } if changing => "rare: copy rebuilt while a change runs",
            Event::FloorRaised { .. } if changing => "rare: floor raised while a change runs",
            Event::FloorRaised { .. } => "rare: floor raised",
            Event::FloorGivenUp { .. } => "rare: raise given up",
            Event::Collected { .. } => "rare: tombstone collected",
            Event::Rebuilt { .. } => "rare: copy rebuilt",
            Event::RebuildFailed { .. } => "rare: rebuild failed",
            Event::HintsDropped {
                reason: "closed", ..
            } => "rare: hint met a close",
            Event::Replica {
                outcome: "closed", ..
            } => "rare: replica refused a closed version",
            Event::HintDelivered { .. } => "rare: hint delivered",
            Event::HintsDropped { .. } => "rare: hint dropped",
            Event::Synced { .. } => "rare: repaired by comparison",
            Event::SyncFailed { .. } => "rare: comparison failed",
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
            Event::Replica { op: "stand_in", .. } => "rare: stand-in",
            _ => return,
        };
        self.count(name);
    }

    /// A client's request reaches the shard of its partition.
    pub(crate) fn hand_over(
        &mut self,
        node: usize,
        partition: u16,
        id: RequestId,
        request: ClientRequest,
    ) {
        let this = &self.nodes[node];
        let shard = usize::from(partition) % this.slots.len().max(1);
        let at = Place {
            node,
            life: this.life,
            shard: shard as u8,
        };
        self.input_if_alive(at, Input::Client(id, request));
        let most = 3 * self.plan.ops_max as u64;
        if let Some(slot) = self.slot(at) {
            let open = slot.shard.open_requests() as u64;
            let kept = books::bound("open requests of a shard", open, most);
            self.check(kept);
        }
    }
}

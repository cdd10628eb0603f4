//! Reads and commits on their way to the disks and back.

use torc_protocol::cluster_io::ClusterInput;
use torc_protocol::message::RecordKey;
use torc_protocol::shard_io::Input;
use torc_protocol::store::{Batch, CommitId, Hint, Query, ReadId, StateKey, StoreError, Write};
use torc_protocol::time::MS;
use torc_protocol::version::Version;
use torc_protocol::wire;
use torc_ring::{ConfigVersion, NodeId};

use super::node::{CLUSTER, Place};
use super::{Ev, World, number_of_bytes};
use crate::check::{Invariant, Violation};

/// Typical time that the disk takes, in microseconds.
const DISK: u64 = 200;

impl World {
    fn disk_time(&mut self) -> u64 {
        if self.rng.chance(self.faults.slow) {
            self.count("fault: slow disk");
            self.rng.tailed(20 * MS)
        } else {
            self.rng.between(DISK / 4, DISK)
        }
    }

    pub(super) fn ask_disk(&mut self, at: Place, id: ReadId, query: Query) {
        let after = self.disk_time() / 4;
        self.schedule(after, Ev::ReadRun { at, id, query });
    }

    pub(super) fn read(&mut self, at: Place, id: ReadId, query: &Query) {
        if !self.alive(at.node, at.life) {
            return;
        }
        let failed = self.rng.chance(self.faults.read_errors);
        let result = if failed {
            self.count("fault: read error");
            Err(StoreError::Corrupt)
        } else if self.nodes[at.node].disk.is_rotten(query) {
            self.count("rare: corruption detected");
            Err(StoreError::Corrupt)
        } else {
            Ok(self.nodes[at.node].disk.visible.find(query))
        };
        let after = if self.rng.chance(100) {
            self.rng.below(2 * MS)
        } else {
            0
        };
        self.schedule(after, Ev::ReadDone { at, id, result });
    }

    pub(super) fn commit(&mut self, at: Place, id: CommitId, batch: Batch) {
        if self.nodes[at.node].disk.push((at.shard, id, batch)) {
            self.flush(at.node);
        }
    }

    fn flush(&mut self, node: usize) {
        if self.nodes[node].disk.begin() {
            let life = self.nodes[node].life;
            let mut after = self.disk_time();
            let slow = self.nodes[node].slow_until > self.now;
            let permille = self.faults.slow_marks;
            if slow
                || (permille > 0
                    && self.nodes[node].disk.writes_marks()
                    && self.rng.chance(permille))
            {
                self.count("fault: slow disk");
                after = self.rng.tailed(if slow { 150 * MS } else { 50 * MS });
            }
            self.schedule(after, Ev::Flushed { node, life });
        }
    }

    pub(super) fn flushed(&mut self, node: usize, life: u32) {
        if !self.alive(node, life) {
            return;
        }
        let (rng, permille) = (&mut self.rng, self.faults.refusals);
        let done = self.nodes[node].disk.end(|| rng.chance(permille));
        for (at, hint) in done.removed {
            let there = self.is_handed_over(node, at.target, &hint);
            let books = &mut self.nodes[node].books;
            if there {
                books.handed_over += 1;
            } else {
                books.given_up += 1;
            }
        }
        for write in done.states {
            self.on_state(node, &write);
        }
        let after = self.rng.below(DISK / 4);
        for (shard, id, result) in done.outcomes {
            if result.is_err() {
                self.count("fault: commit refused");
            }
            let at = Place { node, life, shard };
            self.schedule(after, Ev::Committed { at, id, result });
        }
        self.flush(node);
    }

    /// A piece of node state is on a disk.
    fn on_state(&mut self, node: usize, write: &Write) {
        self.check_applied(node, write);
        self.note_mark(node, write);
        let Write::StatePut {
            key: StateKey::Decided(_),
            value,
        } = write
        else {
            return;
        };
        match wire::decode_config(value) {
            Ok(config) => {
                self.decided(config);
                self.crash_at_step(node);
            }
            Err(error) => {
                let what = format!("a config was stored that cannot be read: {error}");
                self.fail(Violation::new(Invariant::Agreed, what));
            }
        }
    }

    /// Whether the floor of that node has passed that version of a key, so that it need not hold it.
    pub(crate) fn is_collected(&self, node: usize, key: &RecordKey, version: Version) -> bool {
        let partition = key.token.partition(self.plan.bits);
        let floor = self.nodes[node].disk.visible.floor(key.bucket, partition);
        let number = number_of_bytes(&key.key);
        self.deleted.is_gone(number, version, floor)
    }

    /// A config that raises the ring counts as applied only when every shard has drained for it.
    fn check_applied(&mut self, node: usize, write: &Write) {
        let Write::StatePut {
            key: StateKey::Applied,
            value,
        } = write
        else {
            return;
        };
        let version = value[..].try_into().map_or(0, u64::from_be_bytes);
        let raises = self
            .agreed
            .at(version)
            .is_some_and(|config| config.ring_version.0 == version);
        let mut slots = self.nodes[node].slots.iter();
        if raises && slots.any(|slot| slot.drained.0 < version) {
            let what = format!("n{node} calls version {version} applied before it has drained");
            self.fail(Violation::new(Invariant::OneRing, what));
        }
        self.check_cleaned(node, version);
    }

    /// Whether the target of a hint has what it missed; when it owns the key no more, as far as the node that
    /// kept the hint knows, whether an owner has it.
    fn is_handed_over(&self, node: usize, target: NodeId, hint: &Hint) -> bool {
        let has = |id: NodeId| {
            self.index_of(id).is_some_and(|at| {
                let stored = self.nodes[at].disk.visible.records.get(&hint.key);
                stored.is_some_and(|stored| stored.digest() >= hint.record.digest())
            })
        };
        let this = &self.nodes[node];
        let partition = usize::from(hint.key.token.partition(self.plan.bits).0);
        let slot = this.slots.get(partition % this.slots.len().max(1));
        let placed = slot.and_then(|slot| slot.placed.as_ref());
        let sets = placed.map_or(Vec::new(), |placed| placed.sets(&hint.key));
        let owns = sets.iter().any(|set| set.nodes.contains(&target));
        let since = placed.map_or(ConfigVersion(0), |placed| placed.view.config.version);
        let since = ConfigVersion(since.0.saturating_sub(1));
        let dropped = self
            .index_of(target)
            .is_none_or(|at| self.may_have_dropped(at, &hint.key, since));
        has(target)
            || dropped
            || (!owns && sets.iter().any(|set| set.nodes.iter().any(|id| has(*id))))
    }

    pub(super) fn committed(&mut self, at: Place, id: CommitId, result: Result<(), StoreError>) {
        if at.shard == CLUSTER {
            if self.alive(at.node, at.life) {
                self.cluster_input(at.node, ClusterInput::Committed(id, result));
            }
        } else {
            if let Some(slot) = self.slot(at) {
                slot.drain.ends(id);
            }
            self.input_if_alive(at, Input::Committed(id, result));
        }
    }

    pub(super) fn sync(&mut self, node: usize, life: u32) {
        if self.alive(node, life) {
            self.nodes[node].disk.sync();
            let after = self.rng.tailed(100 * MS);
            self.schedule(after, Ev::Sync { node, life });
        }
    }
}

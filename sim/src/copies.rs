//! Which owners hold what, as far as the clients' checks count them.

use torc_protocol::message::RecordKey;
use torc_protocol::version::{Digest, Version};
use torc_ring::ConfigVersion;

use crate::check::order::Part;
use crate::place::Set;
use crate::world::{Fate, Node, World, number_of_bytes};

impl World {
    /// All present owners of the key hold that version or a later one, or have dropped it with its floor. (Those
    /// of a ring to come get it before that ring holds.)
    pub(crate) fn everywhere(&mut self, node: usize, key: &RecordKey, version: Version) {
        let mut slots = self.nodes[node].slots.iter();
        let Some(placed) = slots.find_map(|slot| slot.placed.clone()) else {
            return;
        };
        if self.plan.forgets() {
            return;
        }
        let all: Vec<Part> = placed
            .sets(key)
            .iter()
            .filter(|set| !set.id.target)
            .map(|set| Part {
                set: set.id,
                of: set.nodes.len(),
                count: set.nodes.len(),
            })
            .collect();
        self.raise(number_of_bytes(&key.key), &all, version);
    }

    /// Owners of a set, and stand-ins if they count, that have that state or a later one. Owners whose data
    /// is lost may have had it, and so may those that know a later config by which they are none.
    pub(crate) fn copies(
        &self,
        (key, digest): (&RecordKey, Digest),
        set: &Set<'_>,
        version: ConfigVersion,
        sloppy: bool,
    ) -> usize {
        let has = |at: usize| {
            let disk = &self.nodes[at].disk;
            let store = if self.plan.fsync {
                disk.durable()
            } else {
                &disk.visible
            };
            let stored = store.records.get(key).is_some_and(|r| r.digest() >= digest);
            stored
                || self.is_collected(at, key, digest.version)
                || self.nodes[at].fate != Fate::Stays
                || self.nodes[at].disk.lost
                || self.may_have_dropped(at, key, version)
        };
        let owners = set
            .nodes
            .iter()
            .filter(|id| self.index_of(**id).is_none_or(has))
            .count();
        if !sloppy {
            return owners;
        }
        let stands_in = |node: &&Node| {
            !set.nodes.contains(&node.member.id)
                && node
                    .disk
                    .visible
                    .hints
                    .values()
                    .any(|hint| hint.key == *key && hint.record.digest() >= digest)
        };
        owners + self.nodes.iter().filter(stands_in).count()
    }

    /// The same parts as they are known now, of an operation that began at that time: of few copies one may
    /// have been lost since.
    pub(crate) fn shaken(&self, begun: u64, mut parts: Vec<Part>) -> Vec<Part> {
        if self.cut_at.is_some_and(|at| at >= begun) {
            for part in &mut parts {
                part.count -= usize::from(2 * part.count <= part.of && part.count > 0);
            }
        }
        parts
    }

    /// What a read has asked of owners that have not lost a file.
    pub(crate) fn whole(&self, mut asked: Vec<Part>, sets: &[Set<'_>]) -> Vec<Part> {
        for (part, set) in asked.iter_mut().zip(sets) {
            let of = |node: &&Node| node.relics && set.nodes.contains(&node.member.id);
            part.count = part
                .count
                .saturating_sub(self.nodes.iter().filter(of).count());
        }
        asked
    }
}

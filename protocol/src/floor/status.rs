//! What a shard says about its floors: what waits to be collected, since when, and for whom.

use std::collections::BTreeMap;

use torc_ring::NodeId;

use super::keeper::Keeper;
use crate::core::Core;
use crate::hlc::Hlc;
use crate::time::{Mono, SECOND};
use crate::trees::TreeId;

/// Moments that are told apart in one partition; beyond, those nearest to each other become one.
const SLOTS_MAX: usize = 32;
/// Moments nearer than this are one, in microseconds.
const SLOT: u64 = SECOND;
/// Entries of [`FloorStatus::held`].
pub const HELD_MAX: usize = 16;

/// How far a shard has come with collecting what is dead. Records are tombstones and values with an expiry, and
/// are counted when their partition was last looked through and as they are written since: one that was
/// replaced meanwhile counts until the next look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FloorStatus {
    /// Records that are not old enough yet, by this node's clock.
    pub young: u64,
    /// Records that are old enough, and wait for their floor to rise.
    pub due: u64,
    /// Records below their floor: left out of every answer, not dropped from disk yet.
    pub collecting: u64,
    /// Partitions of buckets with records that are due.
    pub partitions_due: u64,
    /// Partitions of buckets that were not looked through since the start: of these only what was written since
    /// is counted. The first owner looks through a partition by itself, the others after its floor has risen.
    pub uncounted: u64,
    /// Partitions of buckets in which another owner has a higher floor; they are rebuilt.
    pub behind: u64,
    /// Age of the floors: for how long the oldest record has been due, in microseconds; 0 when none is.
    pub lag_us: u64,
    /// Why floors that this shard leads do not rise though records are due, most partitions first; at most
    /// [`HELD_MAX`]. The first owner of a partition leads it: of other partitions nothing is said here.
    pub held: Vec<FloorHeld>,
}

/// Why some floors do not rise, and who is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FloorHeld {
    /// The step that was not done: `begin`, `limit`, `confirm`, `close`, `compare`, `raise`.
    pub step: &'static str,
    /// `dead` (believed to be so), `moving` (a ring change), `rebuilding` (this copy), `timeout`, `uneven`
    /// (another floor than this node's), or the name of a [`crate::floor_message::FloorRefusal`].
    pub reason: &'static str,
    /// The node that it is about.
    pub node: NodeId,
    /// Partitions of buckets that wait for it.
    pub partitions: u64,
    /// For how long the one that has waited longest does, in microseconds.
    pub since_us: u64,
}

/// Why one floor does not rise.
#[derive(Debug)]
pub(super) struct Held {
    step: &'static str,
    reason: &'static str,
    nodes: Vec<NodeId>,
    since: Mono,
}

/// How many records die at which floor, roughly: a moment stands for those before it, back to the one before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ages(BTreeMap<u64, u64>);

impl Ages {
    pub(crate) fn add(&mut self, dead_at: Hlc, count: u64) {
        let slot = dead_at.micros().div_ceil(SLOT).saturating_mul(SLOT);
        *self.0.entry(slot).or_default() += count;
        if self.0.len() > SLOTS_MAX {
            self.join_nearest();
        }
    }

    pub(crate) fn add_all(&mut self, other: &Self) {
        for (&at, &count) in &other.0 {
            self.add(Hlc::from_micros(at), count);
        }
    }

    fn join_nearest(&mut self) {
        let moments = self.0.keys().zip(self.0.keys().skip(1));
        let nearest = moments.min_by_key(|&(earlier, later)| later - earlier);
        let Some((&earlier, &later)) = nearest else {
            return;
        };
        let count = self.0.remove(&earlier).unwrap_or_default();
        *self.0.entry(later).or_default() += count;
    }

    /// How many die at a floor up to that one.
    fn upto(&self, floor: Hlc) -> u64 {
        self.0
            .range(..=floor.micros())
            .map(|(_, count)| count)
            .sum()
    }

    fn all(&self) -> u64 {
        self.0.values().sum()
    }
}

impl Keeper {
    /// A floor that this node leads does not rise, because of these nodes.
    pub(super) fn hold(
        &mut self,
        core: &Core,
        tree: TreeId,
        (step, reason): (&'static str, &'static str),
        nodes: Vec<NodeId>,
    ) {
        let since = self.held.get(&tree).map_or(core.now.mono, |h| h.since);
        let held = Held {
            step,
            reason,
            nodes,
            since,
        };
        self.held.insert(tree, held);
    }

    pub(crate) fn status(&self, core: &Core) -> FloorStatus {
        let limit = core.limit();
        let mut status = FloorStatus::default();
        for tree in core.own_trees() {
            let (floor, dying) = (core.floors.floor(tree), core.floors.dying(tree));
            if let Some(ages) = core.floors.ages(tree) {
                let below = ages.upto(floor);
                let old = ages.upto(limit.max(floor));
                status.collecting += below;
                status.due += old - below;
                status.young += ages.all() - old;
            }
            status.uncounted += u64::from(!dying.known);
            status.behind += u64::from(core.floors.is_behind(tree));
            if let Some(earliest) = dying.earliest.filter(|&at| at <= limit && at > floor) {
                status.partitions_due += 1;
                let lag = limit.micros() - earliest.micros();
                status.lag_us = status.lag_us.max(lag);
            }
        }
        status.held = self.held_by(core, limit);
        status
    }

    fn held_by(&self, core: &Core, limit: Hlc) -> Vec<FloorHeld> {
        let mut by_cause = BTreeMap::new();
        for (&tree, held) in &self.held {
            let earliest = core.floors.dying(tree).earliest;
            if earliest.is_none_or(|at| at > limit || at <= core.floors.floor(tree)) {
                continue;
            }
            let since_us = core.now.mono.since(held.since);
            for &node in &held.nodes {
                let cause = (held.step, held.reason, node);
                let (partitions, longest) = by_cause.entry(cause).or_insert((0, 0));
                *partitions += 1;
                *longest = since_us.max(*longest);
            }
        }
        let mut all: Vec<FloorHeld> = by_cause
            .into_iter()
            .map(|((step, reason, node), (partitions, since_us))| FloorHeld {
                step,
                reason,
                node,
                partitions,
                since_us,
            })
            .collect();
        all.sort_by_key(|held| std::cmp::Reverse(held.partitions));
        all.truncate(HELD_MAX);
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ages_lose_no_record_and_call_none_old_too_early(
            moments in prop::collection::vec(0_u64..1 << 40, 0..300),
            floor in 0_u64..1 << 40,
        ) {
            let mut ages = Ages::default();
            for &at in &moments {
                ages.add(Hlc::from_micros(at), 1);
            }
            prop_assert_eq!(ages.all(), moments.len() as u64);
            prop_assert!(ages.0.len() <= SLOTS_MAX);
            let old = moments.iter().filter(|&&at| at <= floor).count() as u64;
            prop_assert!(ages.upto(Hlc::from_micros(floor)) <= old);
            prop_assert_eq!(ages.upto(Hlc(u64::MAX)), ages.all());
        }
    }
}

//! Clusters for tests.
#![allow(dead_code)] // each test file uses its part

use std::collections::BTreeMap;

use torc_ring::change::{follows, stage};
use torc_ring::plan::LayoutPlan;
use torc_ring::{ClusterId, Config, Member, NodeId, Plan, RingChange, Secret};
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub(crate) fn member(id: u64, weight: u32, zone: usize) -> Member {
    Member {
        id: NodeId(id),
        name: format!("n{id}"),
        zone: format!("z{zone}"),
        weight,
        peer: format!("n{id}:7001"),
        http: format!("n{id}:8081"),
    }
}

/// A configuration with one bucket of `n` replicas and these members.
pub(crate) fn config(bits: u8, n: u8, members: Vec<Member>) -> Config {
    let first = member(0, 100, 0);
    let mut config = Config::bootstrap(ClusterId(1), (7, Secret([0; 32])), bits, first);
    config.buckets[0].n = n;
    config.with_members(members)
}

/// The id that the `index`th node of cluster `seed` has drawn.
pub(crate) fn id(seed: u64, index: u64) -> u64 {
    xxh3_64_with_seed(&index.to_be_bytes(), seed)
}

/// Members of weight 100 in one zone, with ids as if drawn at random.
pub(crate) fn even(seed: u64, indexes: std::ops::Range<u64>) -> Vec<Member> {
    indexes
        .map(|index| member(id(seed, index), 100, 0))
        .collect()
}

/// A cluster that goes through changes of its ring, and the plan of the last one.
pub(crate) struct History {
    pub(crate) config: Config,
    pub(crate) plan: Option<Plan>,
}

impl History {
    /// One node, then all others in one change.
    pub(crate) fn of(bits: u8, n: u8, members: Vec<Member>) -> Self {
        let mut members = members.into_iter();
        let first = members.next().expect("a member");
        let mut history = Self {
            config: config(bits, n, vec![first]),
            plan: None,
        };
        let rest: Vec<Member> = members.collect();
        if !rest.is_empty() {
            history.join(&rest);
        }
        history
    }

    /// Makes these changes in one go, and answers what they moved in the buckets of the least n.
    pub(crate) fn change(&mut self, changes: &[RingChange], waiting: &[Member]) -> LayoutPlan {
        let waiting: BTreeMap<NodeId, Member> = waiting.iter().map(|m| (m.id, m.clone())).collect();
        let joint = stage(&self.config, changes, &waiting).expect("staged");
        assert!(follows(&self.config, &joint));
        let plan = Plan::running(&joint).expect("joint");
        let next = joint.switched().expect("joint");
        next.validate().expect("valid");
        assert!(follows(&joint, &next));
        self.config = next;
        let layout = plan.layouts[0].clone();
        self.plan = Some(plan);
        layout
    }

    pub(crate) fn join(&mut self, members: &[Member]) -> LayoutPlan {
        let joins = members.iter().map(|m| RingChange::Join { node: m.id });
        let changes: Vec<RingChange> = joins.collect();
        self.change(&changes, members)
    }
}

//! What a change of the ring would move, without doing it. Pure values: `torc ring plan` prints them, and
//! they travel as JSON.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::config::{Config, Member, NodeId};
use crate::owner_table::OwnerTable;
use crate::placement::{NodeLoad, Tables, fullest, sites};
use crate::rebalance::kept_most;
use crate::token::PartitionId;

/// What a change would move, for each kind of bucket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Number of partitions, 1..=65,536.
    pub partitions: u32,
    /// One entry for each pair (n before, n after) that buckets have, ascending. Buckets that are new or
    /// go away hold nothing that could move.
    pub layouts: Vec<LayoutPlan>,
}

/// What a change would move in the buckets that have the same n before, and the same n after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayoutPlan {
    /// Replicas of a key before.
    pub n_before: u8,
    /// Replicas of a key after.
    pub n_after: u8,
    /// Names of the buckets, ascending.
    pub buckets: Vec<String>,
    /// The partitions that change hands, ascending.
    pub moves: Vec<PartitionMove>,
    /// Every node that is a member before or after, ordered by id.
    pub nodes: Vec<NodePlan>,
    /// Replicas before, all partitions together.
    pub replicas_before: u32,
    /// Replicas after, all partitions together.
    pub replicas_after: u32,
    /// Replicas that have to be copied to a node that does not hold them.
    pub moved: u32,
    /// The least that has to be copied, in replicas, whatever the placement: the sum of what the nodes' fair
    /// shares gain; or, if those are more, the replicas whose owners are no members any more or cannot stay
    /// because another zone must have its turn.
    pub unavoidable: f64,
    /// The fullest node's replicas as a multiple of its fair share, before.
    pub fullest_before: f64,
    /// The fullest node's replicas as a multiple of its fair share, after.
    pub fullest_after: f64,
}

/// A partition that changes hands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionMove {
    /// The partition.
    pub partition: PartitionId,
    /// The nodes that become owners, in order of preference.
    pub gains: Vec<NodeId>,
    /// The nodes that are owners no longer, in their former order of preference.
    pub loses: Vec<NodeId>,
}

/// What a change means for one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodePlan {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Replicas that it holds before; 0 if it joins.
    pub before: u32,
    /// Replicas that it will hold; 0 if it leaves.
    pub after: u32,
    /// Replicas that it will receive.
    pub gains: u32,
    /// Replicas that it will give up.
    pub loses: u32,
    /// Its fair share before, in replicas.
    pub fair_before: f64,
    /// Its fair share after, in replicas.
    pub fair_after: f64,
}

impl Plan {
    /// What the way from `before` (its current ring) to `after` (its current ring) would move. Both are
    /// configurations of the same cluster, hence have the same number of partitions.
    #[must_use]
    pub fn between(before: &Config, after: &Config) -> Self {
        let mut layouts: BTreeMap<(u8, u8), Vec<String>> = BTreeMap::new();
        for bucket in &before.buckets {
            if let Some(later) = after.bucket_by_id(bucket.id) {
                layouts
                    .entry((bucket.n, later.n))
                    .or_default()
                    .push(bucket.name.clone());
            }
        }
        Self::new(
            before.partition_bits,
            (&before.current, &before.tables),
            (&after.current, &after.tables),
            layouts,
        )
    }

    /// What is moving in `config`'s joint phase: from its current ring to its target. `None` outside one.
    #[must_use]
    pub fn running(config: &Config) -> Option<Self> {
        let target = config.target.as_ref()?;
        let mut layouts: BTreeMap<(u8, u8), Vec<String>> = BTreeMap::new();
        for bucket in &config.buckets {
            layouts
                .entry((bucket.n, config.target_replicas(bucket)))
                .or_default()
                .push(bucket.name.clone());
        }
        Some(Self::new(
            config.partition_bits,
            (&config.current, &config.tables),
            (target, &config.target_tables),
            layouts,
        ))
    }

    /// Whether nothing would move.
    pub fn is_empty(&self) -> bool {
        self.layouts.iter().all(|layout| layout.moves.is_empty())
    }

    fn new(
        bits: u8,
        before: (&[Member], &[OwnerTable]),
        after: (&[Member], &[OwnerTable]),
        layouts: BTreeMap<(u8, u8), Vec<String>>,
    ) -> Self {
        let counts_before: Vec<u8> = layouts.keys().map(|n| n.0).collect();
        let counts_after: Vec<u8> = layouts.keys().map(|n| n.1).collect();
        let tables_before = Tables::compute(before, &counts_before, bits);
        let tables_after = Tables::compute(after, &counts_after, bits);
        let names: BTreeMap<NodeId, &str> = before
            .0
            .iter()
            .chain(after.0)
            .map(|member| (member.id, member.name.as_str()))
            .collect();
        let zones = sites(after.0);
        let zones = zones.iter().map(|site| (site.id, site.zone)).collect();
        let change = Change {
            bits,
            before: &tables_before,
            after: &tables_after,
            names: &names,
            zones: &zones,
        };
        let layouts = layouts
            .into_iter()
            .map(|(n, buckets)| change.layout(n, buckets))
            .collect();
        Self {
            partitions: 1 << bits,
            layouts,
        }
    }
}

impl LayoutPlan {
    /// Replicas copied, as a fraction of all replicas after the change.
    pub fn fraction_moved(&self) -> f64 {
        f64::from(self.moved) / f64::from(self.replicas_after.max(1))
    }

    /// Replicas copied, as a multiple of the unavoidable; `None` where nothing was unavoidable.
    pub fn overhead(&self) -> Option<f64> {
        // Below half a replica there is only rounding.
        (self.unavoidable >= 0.5).then(|| f64::from(self.moved) / self.unavoidable)
    }
}

struct Change<'a> {
    bits: u8,
    before: &'a Tables,
    after: &'a Tables,
    names: &'a BTreeMap<NodeId, &'a str>,
    /// Numbers of the zones of the members to come.
    zones: &'a BTreeMap<NodeId, usize>,
}

impl Change<'_> {
    fn layout(&self, (n_before, n_after): (u8, u8), buckets: Vec<String>) -> LayoutPlan {
        let moves: Vec<PartitionMove> = (0..1_u32 << self.bits)
            .filter_map(|index| self.moved((n_before, n_after), index))
            .collect();
        let loads = |tables: &Tables, n| {
            tables
                .table(n)
                .map_or_else(Vec::new, |table| table.loads.clone())
        };
        let (before, after) = (loads(self.before, n_before), loads(self.after, n_after));
        let nodes = self.nodes(&before, &after, &moves);
        let total = |loads: &[NodeLoad]| loads.iter().map(|load| load.replicas).sum();
        let ratio = |loads: &[NodeLoad]| fullest(loads).map_or(0.0, |load| load.ratio());
        LayoutPlan {
            n_before,
            n_after,
            buckets,
            replicas_before: total(&before),
            replicas_after: total(&after),
            moved: nodes.iter().map(|node| node.gains).sum(),
            unavoidable: f64::max(
                nodes
                    .iter()
                    .map(|node| (node.fair_after - node.fair_before).max(0.0))
                    .sum(),
                f64::from(self.homeless((n_before, n_after))),
            ),
            fullest_before: ratio(&before),
            fullest_after: ratio(&after),
            moves,
            nodes,
        }
    }

    fn moved(&self, (n_before, n_after): (u8, u8), index: u32) -> Option<PartitionMove> {
        let partition = PartitionId(index as u16);
        let before = self.before.owners(n_before, partition);
        let after = self.after.owners(n_after, partition);
        let without = |of: &[NodeId], other: &[NodeId]| -> Vec<NodeId> {
            of.iter()
                .copied()
                .filter(|node| !other.contains(node))
                .collect()
        };
        let (gains, loses) = (without(after, before), without(before, after));
        let changes = !gains.is_empty() || !loses.is_empty();
        changes.then_some(PartitionMove {
            partition,
            gains,
            loses,
        })
    }

    /// Replicas that have to be copied because too few of a partition's owners can stay.
    fn homeless(&self, (n_before, n_after): (u8, u8)) -> u32 {
        let each = usize::from(n_after).min(self.zones.len());
        let zones: BTreeSet<usize> = self.zones.values().copied().collect();
        let missing = |index: u32| {
            let owners = self.before.owners(n_before, PartitionId(index as u16));
            let stay: Vec<usize> = owners
                .iter()
                .filter_map(|node| self.zones.get(node).copied())
                .collect();
            let met = stay.iter().collect::<BTreeSet<_>>().len();
            (each - kept_most(stay.len(), met, each, zones.len().min(each))) as u32
        };
        (0..1_u32 << self.bits).map(missing).sum()
    }

    fn nodes(
        &self,
        before: &[NodeLoad],
        after: &[NodeLoad],
        moves: &[PartitionMove],
    ) -> Vec<NodePlan> {
        let blank = |(&node, &name): (&NodeId, &&str)| {
            let name = name.to_owned();
            let plan = NodePlan {
                node,
                name,
                before: 0,
                after: 0,
                gains: 0,
                loses: 0,
                fair_before: 0.0,
                fair_after: 0.0,
            };
            (node, plan)
        };
        let mut nodes: BTreeMap<NodeId, NodePlan> = self.names.iter().map(blank).collect();
        for load in before {
            if let Some(node) = nodes.get_mut(&load.node) {
                (node.before, node.fair_before) = (load.replicas, load.fair);
            }
        }
        for load in after {
            if let Some(node) = nodes.get_mut(&load.node) {
                (node.after, node.fair_after) = (load.replicas, load.fair);
            }
        }
        for part in moves {
            for id in &part.gains {
                nodes.entry(*id).and_modify(|node| node.gains += 1);
            }
            for id in &part.loses {
                nodes.entry(*id).and_modify(|node| node.loses += 1);
            }
        }
        nodes.into_values().collect()
    }
}

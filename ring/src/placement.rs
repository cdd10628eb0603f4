//! From a configuration to immutable tables of owners.
//!
//! Invariant: the tables are a pure function of the configuration: any two machines compute the same ones,
//! byte for byte, in whatever order they list the members. Owners stand in the configuration, or follow from
//! (node id, zone, weight) of the members, n and the number of partitions, as stand-ins always do. It is
//! computed once for each configuration; a request only indexes a table.
//!
//! Source: Dynamo (2007), sections 4.2 and 6.2 (fixed partitions, virtual nodes, preference lists);
//! Mirrokni, Thorup, Zadimoghaddam (2016) for the load bound. How they come together here, with numbers,
//! stands in `docs/ring-balance.md`.

use std::collections::BTreeMap;

use crate::assign::{Assignment, assign, assigned};
use crate::config::{Bucket, BucketId, Config, Member, NodeId, REPLICAS_MAX};
use crate::fair::{Fair, ONE};
use crate::owner_table::OwnerTable;
use crate::token::{PartitionId, Token};

/// The tables of one configuration. Immutable: share it in an `Arc`.
#[derive(Clone, Debug)]
pub struct Ring {
    seed: u64,
    partition_bits: u8,
    current: Tables,
    target: Option<Tables>,
    /// Of the buckets that will have another n.
    target_n: BTreeMap<BucketId, u8>,
}

/// The owners of one partition of one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owners<'a> {
    /// In the current ring, in order of preference.
    pub current: &'a [NodeId],
    /// In the target ring, in order of preference; only while the partition moves, which is when a change
    /// is in its joint phase and these are other nodes than the current ones.
    pub target: Option<&'a [NodeId]>,
}

impl Owners<'_> {
    /// Whether `node` owns the partition in either ring.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.current.contains(&node) || self.target.is_some_and(|target| target.contains(&node))
    }
}

/// What one node holds in one table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NodeLoad {
    /// The node.
    pub node: NodeId,
    /// Partitions of which it is an owner, 0..=partitions.
    pub replicas: u32,
    /// Partitions of which it is the first owner, 0..=replicas.
    pub firsts: u32,
    /// Replicas that it would hold if they could be cut at will: in proportion to its weight, as far as
    /// no node holds a partition twice and zones allow it.
    pub fair: f64,
}

impl NodeLoad {
    /// Replicas held as a multiple of the fair share; 1 is perfect, above 1 is too full. A fair share
    /// below one replica counts as one, since nothing smaller can be held.
    pub fn ratio(&self) -> f64 {
        f64::from(self.replicas) / self.fair.max(1.0)
    }
}

impl Ring {
    /// Computes the tables of the current ring, and of the target ring if there is one, for each n that a
    /// bucket of `config` has.
    #[must_use]
    pub fn compute(config: &Config) -> Self {
        let counts: Vec<u8> = config.buckets.iter().map(|bucket| bucket.n).collect();
        let target_counts: Vec<u8> = config
            .buckets
            .iter()
            .flat_map(|bucket| [bucket.n, config.target_replicas(bucket)])
            .collect();
        let bits = config.partition_bits;
        let target = |members: &[Member]| {
            Tables::compute((members, &config.target_tables), &target_counts, bits)
        };
        Self {
            seed: config.seed,
            partition_bits: bits,
            current: Tables::compute((&config.current, &config.tables), &counts, bits),
            target: config.target.as_deref().map(target),
            target_n: config.target_n.iter().copied().collect(),
        }
    }

    /// Who owns that partition of that bucket, in both rings. Empty where [`Ring::owners`] is.
    #[must_use]
    pub fn owners_of(&self, bucket: &Bucket, partition: PartitionId) -> Owners<'_> {
        let current = self.current.owners(bucket.n, partition);
        let target = self.target.as_ref().and_then(|tables| {
            let n = self.target_n.get(&bucket.id).copied().unwrap_or(bucket.n);
            let target = tables.owners(n, partition);
            let same =
                target.len() == current.len() && target.iter().all(|node| current.contains(node));
            (!same).then_some(target)
        });
        Owners { current, target }
    }

    /// Token of `key` in `bucket`, with the cluster's seed.
    #[must_use]
    pub fn token(&self, bucket: BucketId, key: &[u8]) -> Token {
        Token::of(self.seed, bucket, key)
    }

    /// Partition that `token` falls into.
    #[must_use]
    pub fn partition(&self, token: Token) -> PartitionId {
        token.partition(self.partition_bits)
    }

    /// Number of partitions, `2^partition_bits`.
    pub fn partitions(&self) -> u32 {
        1 << self.partition_bits
    }

    /// Number of partitions as a power of two, 0..=16.
    pub fn partition_bits(&self) -> u8 {
        self.partition_bits
    }

    /// Owners of a partition in the current ring, in order of preference: `min(n, members)` distinct nodes,
    /// the first ones in distinct zones, as many as there are.
    ///
    /// Empty where there is no table: no bucket has this `n`, or the partition is outside
    /// `0..partitions()`. Callers take both from the same configuration, so asking for such a thing is a
    /// bug of theirs, and no owners means that no quorum is met.
    #[must_use]
    pub fn owners(&self, n: u8, partition: PartitionId) -> &[NodeId] {
        self.current.owners(n, partition)
    }

    /// Owners of a partition in the target ring; `None` unless a change is in its joint phase.
    #[must_use]
    pub fn target_owners(&self, n: u8, partition: PartitionId) -> Option<&[NodeId]> {
        self.target
            .as_ref()
            .map(|tables| tables.owners(n, partition))
    }

    /// The nodes that may stand in for dead owners: up to `n` distinct nodes that follow them on the
    /// current ring, in order of preference. Empty where [`Ring::owners`] is, and where all are owners.
    #[must_use]
    pub fn stand_ins(&self, n: u8, partition: PartitionId) -> &[NodeId] {
        self.current.stand_ins(n, partition)
    }

    /// Whether `node` owns that partition in the current ring.
    #[must_use]
    pub fn owns(&self, n: u8, partition: PartitionId, node: NodeId) -> bool {
        self.owners(n, partition).contains(&node)
    }

    /// Whether a change is in its joint phase and gives that partition other owners. (Another order of
    /// preference alone moves nothing.)
    #[must_use]
    pub fn is_moving(&self, n: u8, partition: PartitionId) -> bool {
        let owners = self.owners(n, partition);
        let changes = |target: &[NodeId]| {
            target.len() != owners.len() || target.iter().any(|node| !owners.contains(node))
        };
        self.target_owners(n, partition).is_some_and(changes)
    }

    /// The values of n that have a table, ascending: those of the buckets.
    pub fn replica_counts(&self) -> impl Iterator<Item = u8> {
        (0..=REPLICAS_MAX).filter(|&n| self.current.table(n).is_some())
    }

    /// Share of all replicas that `node` holds in the current ring, 0..=1; 0 where there is no table.
    #[must_use]
    pub fn share(&self, n: u8, node: NodeId) -> f64 {
        let Some(table) = self.current.table(n) else {
            return 0.0;
        };
        let held = table.load(node).map_or(0, |load| load.replicas);
        f64::from(held) / table.owners.len().max(1) as f64
    }

    /// The partitions that `node` owns in the current ring, in order.
    pub fn partitions_of(&self, n: u8, node: NodeId) -> impl Iterator<Item = PartitionId> {
        let owned = move |&partition: &PartitionId| self.owns(n, partition, node);
        (0..self.partitions())
            .map(|index| PartitionId(index as u16))
            .filter(owned)
    }

    /// What each member holds in the current ring, ordered by node id; empty where there is no table.
    #[must_use]
    pub fn loads(&self, n: u8) -> &[NodeLoad] {
        self.current.table(n).map_or(&[], |table| &table.loads)
    }

    /// What each member of the target ring will hold; `None` unless a change is in its joint phase.
    #[must_use]
    pub fn target_loads(&self, n: u8) -> Option<&[NodeLoad]> {
        self.target
            .as_ref()
            .map(|tables| tables.table(n).map_or(&[][..], |table| &table.loads))
    }

    /// The node of the current ring that holds most in proportion to its fair share.
    ///
    /// It holds at most 1.10 of that, rounded up to a whole replica, unless zones leave no other choice.
    #[must_use]
    pub fn fullest(&self, n: u8) -> Option<NodeLoad> {
        fullest(self.loads(n))
    }
}

/// The load with the greatest [`NodeLoad::ratio`].
pub(crate) fn fullest(loads: &[NodeLoad]) -> Option<NodeLoad> {
    loads
        .iter()
        .copied()
        .max_by(|a, b| a.ratio().total_cmp(&b.ratio()))
}

/// What placement knows of a member.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    pub(crate) id: NodeId,
    pub(crate) weight: u32,
    /// Number of its zone, 0..zones.
    pub(crate) zone: usize,
}

pub(crate) fn sites(members: &[Member]) -> Vec<Site> {
    let mut zones: BTreeMap<&str, usize> = members.iter().map(|m| (m.zone.as_str(), 0)).collect();
    zones
        .values_mut()
        .enumerate()
        .for_each(|(at, number)| *number = at);
    let site = |m: &Member| Site {
        id: m.id,
        weight: m.weight.max(1),
        zone: zones[m.zone.as_str()],
    };
    let mut sites: Vec<Site> = members.iter().map(site).collect();
    sites.sort_by_key(|site| site.id);
    sites.dedup_by_key(|site| site.id);
    sites
}

/// The tables of one set of members, by n.
#[derive(Clone, Debug)]
pub(crate) struct Tables {
    by_n: [Option<Table>; REPLICAS_MAX as usize + 1],
}

impl Tables {
    /// Owners stand in `tables`; where none is for that n, they follow from the members.
    pub(crate) fn compute(
        (members, tables): (&[Member], &[OwnerTable]),
        counts: &[u8],
        partition_bits: u8,
    ) -> Self {
        let sites = sites(members);
        let written = |n: u8| {
            let table = tables.iter().find(|table| table.n() == n)?;
            table.unpack(sites.len(), partition_bits)
        };
        let mut by_n = [const { None }; REPLICAS_MAX as usize + 1];
        for &n in counts {
            if let Some(slot @ None) = by_n.get_mut(usize::from(n)) {
                let each = usize::from(n);
                let assignment = match written(n) {
                    Some(owners) => assigned(&sites, each, partition_bits, owners),
                    None => assign(&sites, each, partition_bits),
                };
                *slot = Some(Table::new(&sites, &assignment));
            }
        }
        Self { by_n }
    }

    pub(crate) fn table(&self, n: u8) -> Option<&Table> {
        self.by_n.get(usize::from(n)).and_then(Option::as_ref)
    }

    pub(crate) fn owners(&self, n: u8, partition: PartitionId) -> &[NodeId] {
        self.table(n).map_or(&[], |table| {
            row(&table.owners, table.owners_each, partition)
        })
    }

    fn stand_ins(&self, n: u8, partition: PartitionId) -> &[NodeId] {
        self.table(n).map_or(&[], |table| {
            row(&table.stand_ins, table.stand_ins_each, partition)
        })
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Table {
    owners_each: usize,
    owners: Vec<NodeId>,
    stand_ins_each: usize,
    stand_ins: Vec<NodeId>,
    pub(crate) loads: Vec<NodeLoad>,
}

impl Table {
    fn new(sites: &[Site], assignment: &Assignment) -> Self {
        let ids = |list: &[u32]| list.iter().map(|&site| sites[site as usize].id).collect();
        let owners_each = assignment.owners_each;
        let partitions = assignment.owners.len() / owners_each.max(1);
        let empty = |(site, fair): (&Site, &Fair)| {
            let fair = fair.share as f64 / ONE as f64 * partitions as f64;
            NodeLoad {
                node: site.id,
                replicas: 0,
                firsts: 0,
                fair,
            }
        };
        let mut loads: Vec<NodeLoad> = sites.iter().zip(&assignment.fair).map(empty).collect();
        for owners in assignment.owners.chunks(owners_each.max(1)) {
            loads[owners[0] as usize].firsts += 1;
            for &owner in owners {
                loads[owner as usize].replicas += 1;
            }
        }
        Self {
            owners_each,
            owners: ids(&assignment.owners),
            stand_ins_each: assignment.stand_ins_each,
            stand_ins: ids(&assignment.stand_ins),
            loads,
        }
    }

    pub(crate) fn load(&self, node: NodeId) -> Option<&NodeLoad> {
        let at = self
            .loads
            .binary_search_by_key(&node, |load| load.node)
            .ok()?;
        self.loads.get(at)
    }
}

fn row(nodes: &[NodeId], each: usize, partition: PartitionId) -> &[NodeId] {
    let start = usize::from(partition.0) * each;
    nodes.get(start..start + each).unwrap_or(&[])
}

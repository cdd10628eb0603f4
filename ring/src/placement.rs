//! From a configuration to immutable tables of owners.
//!
//! Invariant: the tables are a pure function of (node id, zone, weight) of the members, n and the number
//! of partitions: any two machines compute the same ones, byte for byte.
//! Source: Dynamo (2007), section 4.2 and 6.2.

use std::hash::{BuildHasher, Hash, Hasher};

use hashring::{DefaultHashBuilder, HashRing};

use crate::config::{BucketId, Config, Member, NodeId, REPLICAS_MAX};
use crate::token::{PartitionId, Token};

/// The tables of one configuration. Immutable: share it in an `Arc`.
#[derive(Clone, Debug)]
pub struct Ring {
    seed: u64,
    partition_bits: u8,
    current: Tables,
    target: Option<Tables>,
}

impl Ring {
    /// Computes the tables of the current ring, and of the target ring if there is one, for each n that a
    /// bucket of `config` has.
    #[must_use]
    pub fn compute(config: &Config) -> Self {
        let counts = config.buckets.iter().map(|b| b.n).collect::<Vec<_>>();
        let tables = |members: &[Member]| Tables::compute(members, &counts, config.partition_bits);
        Self {
            seed: config.seed,
            partition_bits: config.partition_bits,
            current: tables(&config.current),
            target: config.target.as_deref().map(tables),
        }
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

    /// Owners of a partition in the current ring, in order of preference: `min(n, members)` distinct nodes.
    ///
    /// Empty where there is no table: no bucket has this `n`, or the partition is outside
    /// `0..partitions()`. Callers take both from the same configuration, so this is a bug of theirs, and
    /// no owners means that no quorum is met.
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
    /// current ring, in order of preference. Empty where [`Ring::owners`] is.
    #[must_use]
    pub fn stand_ins(&self, n: u8, partition: PartitionId) -> &[NodeId] {
        self.current.stand_ins(n, partition)
    }

    /// Share of all replicas that `node` holds in the current ring, 0..=1; 0 where there is no table.
    #[must_use]
    pub fn share(&self, n: u8, node: NodeId) -> f64 {
        let Some(table) = self.current.table(n) else {
            return 0.0;
        };
        let held = table.owners.iter().filter(|&&owner| owner == node).count();
        held as f64 / table.owners.len().max(1) as f64
    }

    /// The partitions that `node` owns in the current ring, in order.
    pub fn partitions_of(&self, n: u8, node: NodeId) -> impl Iterator<Item = PartitionId> {
        (0..self.partitions())
            .map(|index| PartitionId(index as u16))
            .filter(move |&partition| self.owners(n, partition).contains(&node))
    }
}

#[derive(Clone, Debug)]
struct Tables {
    by_n: Vec<Option<Table>>,
}

impl Tables {
    fn compute(members: &[Member], counts: &[u8], partition_bits: u8) -> Self {
        let walk = Walk::new(members);
        let mut by_n = vec![None; usize::from(REPLICAS_MAX) + 1];
        for &n in counts {
            if let Some(slot) = by_n.get_mut(usize::from(n)) {
                slot.get_or_insert_with(|| walk.table(n, partition_bits));
            }
        }
        Self { by_n }
    }

    fn table(&self, n: u8) -> Option<&Table> {
        self.by_n.get(usize::from(n)).and_then(Option::as_ref)
    }

    fn owners(&self, n: u8, partition: PartitionId) -> &[NodeId] {
        self.table(n)
            .map_or(&[], |t| row(&t.owners, t.owners_each, partition))
    }

    fn stand_ins(&self, n: u8, partition: PartitionId) -> &[NodeId] {
        self.table(n)
            .map_or(&[], |t| row(&t.stand_ins, t.stand_ins_each, partition))
    }
}

#[derive(Clone, Debug)]
struct Table {
    owners_each: usize,
    owners: Vec<NodeId>,
    stand_ins_each: usize,
    stand_ins: Vec<NodeId>,
}

fn row(nodes: &[NodeId], each: usize, partition: PartitionId) -> &[NodeId] {
    let start = usize::from(partition.0) * each;
    nodes.get(start..start + each).unwrap_or(&[])
}

/// Virtual nodes of a member of weight 100.
const VNODES: u64 = 256;

#[derive(Clone, Copy)]
struct VNode {
    member: usize,
    id: NodeId,
    index: u64,
}

impl Hash for VNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // As bytes of a fixed order: integers and slices hash differently from machine to machine.
        let mut bytes = [0_u8; 16];
        bytes[..8].copy_from_slice(&self.id.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.index.to_be_bytes());
        state.write(&bytes);
    }
}

struct Walk<'a> {
    members: &'a [Member],
    tokens: Vec<(u64, usize)>,
}

impl<'a> Walk<'a> {
    fn new(members: &'a [Member]) -> Self {
        let mut ring = HashRing::new();
        let mut vnodes = Vec::new();
        for (at, member) in members.iter().enumerate() {
            let count = (u64::from(member.weight) * VNODES).div_ceil(100);
            vnodes.extend((0..count).map(|index| VNode {
                member: at,
                id: member.id,
                index,
            }));
        }
        ring.batch_add(vnodes);
        let mut tokens: Vec<_> = ring
            .into_iter()
            .map(|vnode| (DefaultHashBuilder.hash_one(vnode), vnode.id, vnode.member))
            .collect();
        tokens.sort_unstable();
        Self {
            members,
            tokens: tokens
                .into_iter()
                .map(|(token, _, member)| (token, member))
                .collect(),
        }
    }

    fn table(&self, n: u8, partition_bits: u8) -> Table {
        let owners_each = usize::from(n).min(self.members.len());
        let stand_ins_each = usize::from(n).min(self.members.len() - owners_each);
        let mut table = Table {
            owners_each,
            owners: Vec::new(),
            stand_ins_each,
            stand_ins: Vec::new(),
        };
        for index in 0..1_u32 << partition_bits {
            let point = PartitionId(index as u16).first_token(partition_bits).0;
            let start = self.tokens.partition_point(|&(token, _)| token < point);
            let mut order = Vec::new();
            for &(_, member) in self.tokens[start..].iter().chain(&self.tokens[..start]) {
                if !order.contains(&member) {
                    order.push(member);
                }
                if order.len() == self.members.len().min(64 + owners_each + stand_ins_each) {
                    break;
                }
            }
            let mut owners: Vec<usize> = Vec::new();
            for fresh_zone in [true, false] {
                for &member in &order {
                    let zone = &self.members[member].zone;
                    let known = owners.iter().any(|&o| self.members[o].zone == *zone);
                    if owners.len() < owners_each
                        && !owners.contains(&member)
                        && !(fresh_zone && known)
                    {
                        owners.push(member);
                    }
                }
            }
            let rest = order.iter().filter(|member| !owners.contains(member));
            table
                .stand_ins
                .extend(rest.take(stand_ins_each).map(|&m| self.members[m].id));
            table
                .owners
                .extend(owners.iter().map(|&m| self.members[m].id));
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ClusterId;

    #[test]
    fn owners_and_stand_ins_are_distinct() {
        let member = |id: u64| Member {
            id: NodeId(id),
            name: format!("n{id}"),
            zone: String::new(),
            weight: 100,
            peer: String::new(),
            http: String::new(),
        };
        for members in 1..9 {
            let mut config = Config::bootstrap(ClusterId(1), 7, 6, member(1));
            config.current = (1..=members).map(member).collect();
            let ring = Ring::compute(&config);
            for index in 0..64 {
                let partition = PartitionId(index);
                let mut all = ring.owners(3, partition).to_vec();
                assert_eq!(all.len(), 3.min(members as usize));
                all.extend_from_slice(ring.stand_ins(3, partition));
                assert_eq!(all.len(), 6.min(members as usize));
                all.sort_unstable();
                all.dedup();
                assert_eq!(all.len(), 6.min(members as usize));
                assert!(ring.owners(4, partition).is_empty());
            }
        }
    }
}

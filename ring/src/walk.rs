//! The ring itself: where the virtual nodes lie, and whom a walk from a partition's point meets.
//!
//! Virtual node `j` of a member gets its token from the `hashring` crate; the token names a partition. A
//! member never has two virtual nodes in one partition: where it has one already, the later one goes on
//! clockwise to the next partition without. Within the partition, virtual node `j` lies at distance
//! `(j + jitter) / pace` from the partition's point; the pace is the weight, but for limits (`fair.rs`).
//!
//! So the virtual nodes of a member are spread evenly over all distances, at a density proportional to its
//! weight: its share has a third of the variance that plain random tokens would give it.
//! A member with a virtual node in each partition is met by every walk; farther ones are placed only when
//! a walk needs them, which changes nothing nearer.

use std::hash::{BuildHasher, Hash, Hasher};

use hashring::{DefaultHashBuilder, HashRing};

use crate::config::NodeId;
use crate::fair::{Fair, ONE};
use crate::placement::Site;
use crate::token::{PartitionId, Token};

/// Bits of a virtual node's jitter.
const JITTER_BITS: u32 = 32;
/// What is added to them before a division by a pace, so that distances stay exact enough, and below 2^64
/// for the slowest pace: weight 1 among 1,000 members of weight 10,000.
const SCALE_BITS: u32 = 40;
/// More virtual nodes than this are placed only when a partition cannot have its owners otherwise.
const STOPS_MAX: usize = 8 << 20;

/// A virtual node as a walk meets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stop {
    /// From the partition's point.
    pub(crate) distance: u64,
    /// Position of the member in the list of sites.
    pub(crate) site: u32,
}

/// The walks from each partition's point, as far as they are known.
#[derive(Debug)]
pub(crate) struct Walks {
    bits: u8,
    paces: Vec<u64>,
    ids: Vec<NodeId>,
    taken: Vec<Taken>,
    stops: Vec<Vec<Stop>>,
    horizon: u64,
}

impl Walks {
    /// Walks to the distance within which `expected` members are met on average, where each partition has
    /// `owners_each` owners.
    pub(crate) fn new(
        sites: &[Site],
        fair: &[Fair],
        bits: u8,
        expected: usize,
        owners_each: usize,
    ) -> Self {
        let partitions = 1_usize << bits;
        let mut walks = Self {
            bits,
            paces: fair.iter().map(|fair| fair.pace).collect(),
            ids: sites.iter().map(|site| site.id).collect(),
            taken: vec![Taken::new(partitions); sites.len()],
            stops: vec![Vec::new(); partitions],
            horizon: 0,
        };
        // A pace of ONE places one virtual node per unit.
        let unit = 1_u64 << (JITTER_BITS + SCALE_BITS - ONE.trailing_zeros());
        let expected = expected.div_ceil(owners_each.max(1)) as u64;
        walks.extend_to(unit * expected * partitions as u64);
        walks
    }

    /// Whom the walk from `partition`'s point meets, nearest first, each member at most once.
    pub(crate) fn stops(&self, partition: usize) -> &[Stop] {
        &self.stops[partition]
    }

    pub(crate) fn partitions(&self) -> usize {
        self.stops.len()
    }

    /// Whether every walk meets every member.
    pub(crate) fn complete(&self) -> bool {
        self.taken.iter().all(|taken| taken.free == 0)
    }

    /// Whether there are so many stops that a walk should go farther only if it has to.
    pub(crate) fn long(&self) -> bool {
        self.stops.iter().map(Vec::len).sum::<usize>() >= STOPS_MAX
    }

    /// Walks twice as far.
    pub(crate) fn extend(&mut self) {
        self.extend_to(self.horizon.saturating_mul(2));
    }

    fn extend_to(&mut self, horizon: u64) {
        let known: Vec<usize> = self.stops.iter().map(Vec::len).collect();
        for vnode in self
            .place(horizon)
            .into_iter()
            .filter(|vnode| vnode.distance < horizon)
        {
            let partition = self.taken[vnode.site as usize].take(vnode.slice);
            self.stops[partition].push(Stop {
                distance: vnode.distance,
                site: vnode.site,
            });
        }
        // What is new lies beyond the old horizon, hence after all that was known.
        for (stops, known) in self.stops.iter_mut().zip(known) {
            stops[known..].sort_unstable();
        }
        self.horizon = horizon;
    }

    /// The virtual nodes up to a new horizon, and for each member perhaps one beyond it, each member's in
    /// order of index.
    fn place(&self, horizon: u64) -> Vec<Placed> {
        let mut vnodes = Vec::new();
        for (site, taken) in self.taken.iter().enumerate() {
            let placed = taken.used();
            for index in placed..placed + taken.free {
                if self.distance(site, (index as u64) << JITTER_BITS) >= horizon {
                    break;
                }
                vnodes.push(VNode {
                    id: self.ids[site],
                    site: site as u32,
                    index: index as u64,
                });
            }
        }
        let mut ring = HashRing::new();
        ring.batch_add(vnodes);
        let mut placed: Vec<Placed> = ring.into_iter().map(|vnode| self.read_out(vnode)).collect();
        placed.sort_unstable_by_key(|p| (p.site, p.index));
        placed
    }

    fn read_out(&self, vnode: VNode) -> Placed {
        let token = vnode.token();
        // The token's last bits are independent of its first ones, which name the partition.
        let jitter = token & ((1 << JITTER_BITS) - 1);
        let along = (vnode.index << JITTER_BITS) | jitter;
        Placed {
            site: vnode.site,
            index: vnode.index,
            slice: Token(token).partition(self.bits),
            distance: self.distance(vnode.site as usize, along),
        }
    }

    fn distance(&self, site: usize, along: u64) -> u64 {
        let distance = (u128::from(along) << SCALE_BITS) / u128::from(self.paces[site]);
        u64::try_from(distance).unwrap_or(u64::MAX)
    }
}

/// A number in 0..2^32 that depends on nothing but the node.
pub(crate) fn die(id: NodeId) -> u64 {
    VNode {
        id,
        site: 0,
        index: u64::MAX,
    }
    .token()
        >> 32
}

#[derive(Clone, Copy)]
struct VNode {
    id: NodeId,
    site: u32,
    index: u64,
}

impl VNode {
    fn token(&self) -> u64 {
        DefaultHashBuilder.hash_one(self)
    }
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

struct Placed {
    site: u32,
    index: u64,
    slice: PartitionId,
    distance: u64,
}

/// The partitions in which a member has a virtual node already.
#[derive(Clone, Debug)]
struct Taken {
    words: Vec<u64>,
    partitions: usize,
    free: usize,
}

impl Taken {
    fn new(partitions: usize) -> Self {
        Self {
            words: vec![0; partitions.div_ceil(64)],
            partitions,
            free: partitions,
        }
    }

    fn used(&self) -> usize {
        self.partitions - self.free
    }

    /// Takes `wanted`, or else the next free partition clockwise. There must be one.
    fn take(&mut self, wanted: PartitionId) -> usize {
        assert!(
            self.free > 0,
            "a member has at most one virtual node in each partition"
        );
        let start = usize::from(wanted.0);
        let at = self
            .free_from(start)
            .or_else(|| self.free_from(0))
            .unwrap_or(start);
        self.words[at / 64] |= 1 << (at % 64);
        self.free -= 1;
        at
    }

    fn free_from(&self, start: usize) -> Option<usize> {
        let mut mask = u64::MAX << (start % 64);
        for (at, word) in self.words.iter().enumerate().skip(start / 64) {
            let free = !word & mask;
            if free != 0 {
                let found = at * 64 + free.trailing_zeros() as usize;
                return (found < self.partitions).then_some(found);
            }
            mask = u64::MAX;
        }
        None
    }
}

//! A hash tree over one partition of one bucket: what two owners compare instead of their keys.
//!
//! A leaf covers an equal share of the partition's tokens and holds the wrapping sum of a keyed 128-bit
//! hash of each (key, version, value hash) in it. A node's sum is the sum of its children's, so that two
//! trees of different depth can be compared at every depth that both have.
//!
//! Invariants: sums do not depend on the order in which keys were met; a leaf that is not dirty has the sum
//! of what is stored. The hash is keyed with the cluster's secret: without it nobody can craft keys whose
//! hashes cancel out (Wagner, "A Generalized Birthday Problem", 2002, breaks unkeyed sums).
//! Source: Merkle (1987); Dynamo (2007), section 4.7; sums after Bellare and Micciancio, "AdHash" (1997).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use torc_ring::{PartitionId, Secret, Token};

use crate::version::Digest;

const KEY_PURPOSE: &str = "torc hash tree 2026 v1";

/// Greatest depth: 4,096 leaves.
pub const DEPTH_MAX: u8 = 12;
/// Keys of a leaf that a tree aims at.
const LEAF_KEYS: u64 = 64;
/// A tree whose leaves hold so many times more keys than that is built anew, with more leaves.
const LEAF_KEYS_GROWTH: u64 = 4;

/// Format of a stored tree.
const FORMAT: u8 = 1;
/// Bytes of a stored tree before its leaves, and of a leaf.
const HEAD_LEN: usize = 2;
const LEAF_LEN: usize = 21;

/// The key of the leaves' hashes. Made once per config from its secret.
#[derive(Clone)]
pub struct TreeKey([u8; 32]);

impl std::fmt::Debug for TreeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TreeKey(..)")
    }
}

impl TreeKey {
    /// Derives the key from the cluster's secret.
    #[must_use]
    pub fn new(secret: &Secret) -> Self {
        Self(blake3::derive_key(KEY_PURPOSE, &secret.0))
    }

    /// What one key adds to its leaf.
    #[must_use]
    pub fn hash(&self, key: &[u8], digest: &Digest) -> u128 {
        let mut fixed = [0; 24];
        fixed[..8].copy_from_slice(&digest.version.hlc.0.to_be_bytes());
        fixed[8..16].copy_from_slice(&digest.version.node.0.to_be_bytes());
        fixed[16..].copy_from_slice(&digest.hash.to_be_bytes());
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&fixed);
        hasher.update(key);
        let mut word = [0; 16];
        word.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        u128::from_be_bytes(word)
    }
}

/// Where a tree lies in the space of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The partition.
    pub partition: PartitionId,
    /// Number of partitions as a power of two.
    pub bits: u8,
}

impl Span {
    /// The leaf of a tree of that depth in which the token lies.
    #[must_use]
    pub fn leaf(self, token: Token, depth: u8) -> usize {
        if depth == 0 {
            return 0;
        }
        let within = token.0.checked_shl(u32::from(self.bits)).unwrap_or(0);
        (within >> (64 - u32::from(depth))) as usize
    }

    /// First and last token (inclusive) of the leaves `first..=last` of a tree of that depth.
    #[must_use]
    pub fn tokens(self, depth: u8, first: usize, last: usize) -> (Token, Token) {
        let start = self.partition.first_token(self.bits).0;
        let shift = 64 - u32::from(self.bits) - u32::from(depth);
        let low = start + ((first as u64).checked_shl(shift).unwrap_or(0));
        let high = start + ((last as u64).checked_shl(shift).unwrap_or(0));
        let width = 1_u64.checked_shl(shift).unwrap_or(0).wrapping_sub(1);
        (Token(low), Token(high | width))
    }
}

/// Sums, numbers of keys, and what of them is out of date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    depth: u8,
    leaves: Vec<Leaf>,
    dirty: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Leaf {
    sum: u128,
    keys: u32,
    /// What is stored may be something else by now.
    dirty: bool,
    /// Written to since its present reading began.
    touched: bool,
    /// Its sum was read at some time; without that it is no sum.
    read: bool,
}

impl Tree {
    /// A tree of which nothing is known yet.
    #[must_use]
    pub fn unknown(depth: u8) -> Self {
        let depth = depth.min(DEPTH_MAX);
        let leaf = Leaf {
            dirty: true,
            ..Leaf::default()
        };
        Self {
            depth,
            leaves: vec![leaf; 1 << depth],
            dirty: 1 << depth,
        }
    }

    /// The tree of a partition that is known to be empty.
    #[must_use]
    pub fn empty() -> Self {
        let leaf = Leaf {
            read: true,
            ..Leaf::default()
        };
        Self {
            depth: 0,
            leaves: vec![leaf],
            dirty: 0,
        }
    }

    /// Number of levels below the root, 0..=[`DEPTH_MAX`].
    pub fn depth(&self) -> u8 {
        self.depth
    }

    /// Number of leaves.
    pub fn leaves(&self) -> usize {
        self.leaves.len()
    }

    /// Memory that it takes, in bytes, about.
    pub fn weight(&self) -> usize {
        self.leaves.len() * size_of::<Leaf>()
    }

    /// Number of leaves that are out of date.
    pub fn dirty(&self) -> usize {
        self.dirty
    }

    /// Keys, as they were counted when their leaves were last read.
    #[must_use]
    pub fn keys(&self) -> u64 {
        self.leaves.iter().map(|leaf| u64::from(leaf.keys)).sum()
    }

    /// A key of that leaf was written.
    pub fn mark(&mut self, leaf: usize) {
        if let Some(leaf) = self.leaves.get_mut(leaf) {
            leaf.touched = true;
            if !leaf.dirty {
                leaf.dirty = true;
                self.dirty += 1;
            }
        }
    }

    /// The first leaves from `from` on that are out of date: the first of them and the last one in a row.
    #[must_use]
    pub fn dirty_run(&self, from: usize) -> Option<(usize, usize)> {
        let first = (from..self.leaves.len()).find(|&at| self.leaves[at].dirty)?;
        let last = (first..self.leaves.len())
            .take_while(|&at| self.leaves[at].dirty)
            .last()?;
        Some((first, last))
    }

    /// The reading of these leaves begins: what is written from now on makes them dirty again.
    pub fn begin(&mut self, first: usize, last: usize) {
        for leaf in self.leaves.iter_mut().take(last + 1).skip(first) {
            leaf.touched = false;
        }
    }

    /// A leaf was read from its first to its last token.
    pub fn set(&mut self, at: usize, sum: u128, keys: u32) {
        if let Some(leaf) = self.leaves.get_mut(at) {
            leaf.sum = sum;
            leaf.keys = keys;
            leaf.read = true;
            if leaf.dirty && !leaf.touched {
                leaf.dirty = false;
                self.dirty -= 1;
            }
        }
    }

    /// The sum of a node; `None` where the tree has none such, or has not read all of it yet.
    #[must_use]
    pub fn sum(&self, depth: u8, at: usize) -> Option<u128> {
        let width = 1_usize << self.depth.checked_sub(depth)?;
        let leaves = self.leaves.get(at * width..(at + 1) * width)?;
        leaves.iter().try_fold(0, |sum: u128, leaf| {
            leaf.read.then(|| sum.wrapping_add(leaf.sum))
        })
    }

    /// The depth that fits so many keys, at most `depth_max`.
    #[must_use]
    pub fn fitting(keys: u64, depth_max: u8) -> u8 {
        let leaves = keys.div_ceil(LEAF_KEYS).max(1).next_power_of_two();
        (leaves.trailing_zeros() as u8).min(depth_max)
    }

    /// Whether its leaves have become so full that a deeper tree should take its place.
    #[must_use]
    pub fn is_outgrown(&self, depth_max: u8) -> bool {
        self.depth < depth_max.min(DEPTH_MAX)
            && self.keys() > (self.leaves.len() as u64) * LEAF_KEYS * LEAF_KEYS_GROWTH
    }

    /// The same with fewer levels: leaves are joined.
    #[must_use]
    pub fn folded(self, depth: u8) -> Self {
        if depth >= self.depth {
            return self;
        }
        let width = 1_usize << (self.depth - depth);
        let whole = Leaf {
            read: true,
            ..Leaf::default()
        };
        let join = |leaves: &[Leaf]| {
            leaves.iter().fold(whole, |all, leaf| Leaf {
                sum: all.sum.wrapping_add(leaf.sum),
                keys: all.keys.saturating_add(leaf.keys),
                dirty: all.dirty | leaf.dirty,
                touched: all.touched | leaf.touched,
                read: all.read & leaf.read,
            })
        };
        let leaves: Vec<Leaf> = self.leaves.chunks(width).map(join).collect();
        let dirty = leaves.iter().filter(|leaf| leaf.dirty).count();
        Self {
            depth,
            leaves,
            dirty,
        }
    }

    /// For the disk; `None` when it was never read to its end.
    #[must_use]
    pub fn encode(&self) -> Option<Bytes> {
        self.sum(0, 0)?;
        let mut out = BytesMut::with_capacity(HEAD_LEN + self.leaves.len() * LEAF_LEN);
        out.put_u8(FORMAT);
        out.put_u8(self.depth);
        for leaf in &self.leaves {
            out.put_u128(leaf.sum);
            out.put_u32(leaf.keys);
            out.put_u8(u8::from(leaf.dirty));
        }
        Some(out.freeze())
    }

    /// What [`Tree::encode`] made; `None` for anything else.
    #[must_use]
    pub fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.len() < HEAD_LEN || bytes.get_u8() != FORMAT {
            return None;
        }
        let depth = bytes.get_u8();
        if depth > DEPTH_MAX || bytes.len() != LEAF_LEN << depth {
            return None;
        }
        let leaves: Vec<Leaf> = (0..1_usize << depth)
            .map(|_| Leaf {
                sum: bytes.get_u128(),
                keys: bytes.get_u32(),
                dirty: bytes.get_u8() != 0,
                touched: false,
                read: true,
            })
            .collect();
        let dirty = leaves.iter().filter(|leaf| leaf.dirty).count();
        Some(Self {
            depth,
            leaves,
            dirty,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use torc_ring::NodeId;

    use super::*;
    use crate::hlc::Hlc;
    use crate::version::Version;

    const SPAN: Span = Span {
        partition: PartitionId(5),
        bits: 4,
    };

    fn digest(hlc: u64, hash: u64) -> Digest {
        Digest {
            version: Version {
                hlc: Hlc(hlc),
                node: NodeId(1),
            },
            hash,
        }
    }

    type Stored = (u64, u8, u64, u64);

    /// States of keys by token within the partition, each key once.
    fn states() -> impl Strategy<Value = Vec<Stored>> {
        let one = (any::<u64>(), 0..4_u8, 0..3_u64, 0..2_u64);
        prop::collection::btree_map(any::<u64>(), one, 0..40).prop_map(|map| {
            map.into_iter()
                .map(|(token, (_, key, hlc, hash))| (token, key, hlc, hash))
                .collect()
        })
    }

    fn token(within: u64) -> Token {
        Token(SPAN.partition.first_token(SPAN.bits).0 | (within >> SPAN.bits))
    }

    fn tree(states: &[Stored], depth: u8) -> Tree {
        let key = TreeKey::new(&Secret([7; 32]));
        let mut tree = Tree::unknown(depth);
        tree.begin(0, tree.leaves() - 1);
        let mut sums = vec![(0_u128, 0_u32); tree.leaves()];
        for (at, name, hlc, hash) in states {
            let leaf = &mut sums[SPAN.leaf(token(*at), depth)];
            let name = [&at.to_be_bytes()[..], &[*name]].concat();
            leaf.0 = leaf.0.wrapping_add(key.hash(&name, &digest(*hlc, *hash)));
            leaf.1 += 1;
        }
        for (at, (sum, keys)) in sums.into_iter().enumerate() {
            tree.set(at, sum, keys);
        }
        tree
    }

    proptest! {
        #[test]
        fn trees_are_equal_if_and_only_if_states_are(a in states(), b in states(), depth in 0..6_u8) {
            prop_assert_eq!(tree(&a, depth) == tree(&b, depth), a == b);
            prop_assert_eq!(tree(&a, depth).sum(0, 0) == tree(&b, depth).sum(0, 0), a == b);
        }

        #[test]
        fn sums_do_not_depend_on_the_order(a in states(), depth in 0..6_u8) {
            let mut backwards = a.clone();
            backwards.reverse();
            prop_assert_eq!(tree(&a, depth), tree(&backwards, depth));
        }

        #[test]
        fn trees_of_different_depth_agree_wherever_both_have_nodes(a in states(), deep in 0..8_u8, less in 0..8_u8) {
            let shallow = deep.saturating_sub(less);
            let (full, small) = (tree(&a, deep), tree(&a, shallow));
            for depth in 0..=shallow {
                for at in 0..1_usize << depth {
                    prop_assert_eq!(full.sum(depth, at), small.sum(depth, at));
                }
            }
            prop_assert_eq!(small.sum(shallow + 1, 0), None);
            prop_assert_eq!(full.folded(shallow), small);
        }

        #[test]
        fn leaves_tile_the_partition(within in any::<u64>(), depth in 0..=DEPTH_MAX) {
            let at = SPAN.leaf(token(within), depth);
            let (first, last) = SPAN.tokens(depth, at, at);
            prop_assert!(first <= token(within) && token(within) <= last);
            let (start, _) = SPAN.tokens(depth, 0, 0);
            let (_, end) = SPAN.tokens(depth, 0, (1 << depth) - 1);
            prop_assert_eq!(start, SPAN.partition.first_token(SPAN.bits));
            prop_assert_eq!(end, SPAN.partition.last_token(SPAN.bits));
        }

        #[test]
        fn a_stored_tree_comes_back(a in states(), depth in 0..6_u8, dirty in prop::collection::vec(0..64_usize, 0..5)) {
            let mut tree = tree(&a, depth);
            for leaf in dirty {
                tree.mark(leaf);
            }
            let back = Tree::decode(tree.encode().expect("read")).expect("decodes");
            prop_assert_eq!(back.dirty(), tree.dirty());
            prop_assert_eq!(back.encode(), tree.encode());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Tree::decode(bytes.into());
        }
    }

    #[test]
    fn one_partition_of_the_whole_space_has_leaves_too() {
        let span = Span {
            partition: PartitionId(0),
            bits: 0,
        };
        assert_eq!(span.tokens(0, 0, 0), (Token(0), Token(u64::MAX)));
        assert_eq!(span.leaf(Token(u64::MAX), 3), 7);
        assert_eq!(span.tokens(1, 1, 1), (Token(1 << 63), Token(u64::MAX)));
    }

    #[test]
    fn a_write_during_the_reading_of_its_leaf_leaves_it_dirty() {
        let mut tree = Tree::unknown(2);
        assert_eq!(tree.dirty_run(0), Some((0, 3)));
        assert_eq!(
            (tree.sum(0, 0), tree.encode()),
            (None, None),
            "nothing is known yet"
        );
        tree.begin(0, 3);
        tree.mark(2);
        for at in 0..4 {
            tree.set(at, 1, 1);
        }
        assert_eq!((tree.dirty(), tree.dirty_run(0)), (1, Some((2, 2))));
        tree.begin(2, 2);
        tree.set(2, 2, 1);
        assert_eq!((tree.dirty(), tree.dirty_run(0)), (0, None));
        assert_eq!(tree.sum(0, 0), Some(5));
    }

    #[test]
    fn a_tree_has_about_as_many_leaves_as_its_keys_need() {
        assert_eq!(Tree::fitting(0, DEPTH_MAX), 0);
        assert_eq!(Tree::fitting(64, DEPTH_MAX), 0);
        assert_eq!(Tree::fitting(200, DEPTH_MAX), 2);
        assert_eq!(Tree::fitting(100_000, DEPTH_MAX), 11);
        assert_eq!(Tree::fitting(u64::MAX >> 1, DEPTH_MAX), DEPTH_MAX);
        assert_eq!(Tree::fitting(100_000, 3), 3);
    }
}

//! Tokens and partitions: where a key lies on the ring.
//!
//! Invariant: the same seed, bucket and key give the same token on every machine and in every version.
//! Source: Dynamo (2007), section 4.2; fixed equal partitions as in its "strategy 3" (section 6.2).

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::config::BucketId;

/// Position on the ring: the whole of `u64`, ordered clockwise, wrapping at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Token(pub u64);

/// One of `2^partition_bits` equal slices of the token space, counted from token 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartitionId(pub u16);

/// Greatest allowed `partition_bits`: 65,536 partitions.
pub const PARTITION_BITS_MAX: u8 = 16;
/// `partition_bits` of a cluster that says nothing else: 1,024 partitions.
pub const PARTITION_BITS_DEFAULT: u8 = 10;

impl Token {
    /// Token of `key` in `bucket`: `xxh3_64(seed, bucket id ‖ key)`, the id as four bytes, big endian.
    #[must_use]
    pub fn of(seed: u64, bucket: BucketId, key: &[u8]) -> Self {
        // Most keys fit into the small buffer, nearly all others into the large one, which costs more to
        // clear than such a key costs to hash; longer ones pay for one allocation.
        match 4 + key.len() {
            0..=48 => Self(hash_on_stack::<48>(seed, bucket, key)),
            49..=256 => Self(hash_on_stack::<256>(seed, bucket, key)),
            len => {
                let mut buf = Vec::with_capacity(len);
                buf.extend_from_slice(&bucket.0.to_be_bytes());
                buf.extend_from_slice(key);
                Self(xxh3_64_with_seed(&buf, seed))
            }
        }
    }

    /// Partition of this token where there are `2^bits` of them; `bits` is 0..=16.
    #[must_use]
    pub fn partition(self, bits: u8) -> PartitionId {
        debug_assert!(bits <= PARTITION_BITS_MAX);
        if bits == 0 {
            PartitionId(0)
        } else {
            PartitionId((self.0 >> (64 - u32::from(bits))) as u16)
        }
    }
}

#[inline]
fn hash_on_stack<const SIZE: usize>(seed: u64, bucket: BucketId, key: &[u8]) -> u64 {
    let mut buf = [0_u8; SIZE];
    let len = 4 + key.len();
    buf[..4].copy_from_slice(&bucket.0.to_be_bytes());
    buf[4..len].copy_from_slice(key);
    xxh3_64_with_seed(&buf[..len], seed)
}

impl PartitionId {
    /// First token of the partition.
    #[must_use]
    pub fn first_token(self, bits: u8) -> Token {
        if bits == 0 {
            Token(0)
        } else {
            Token(u64::from(self.0) << (64 - u32::from(bits)))
        }
    }

    /// Last token of the partition (inclusive).
    #[must_use]
    pub fn last_token(self, bits: u8) -> Token {
        if bits == 0 {
            Token(u64::MAX)
        } else {
            Token(self.first_token(bits).0 | (u64::MAX >> u32::from(bits)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_pinned() {
        assert_eq!(
            Token::of(0, BucketId(1), b"a"),
            Token::of(0, BucketId(1), b"a")
        );
        assert_ne!(
            Token::of(0, BucketId(1), b"a"),
            Token::of(0, BucketId(2), b"a")
        );
        assert_ne!(
            Token::of(0, BucketId(1), b"a"),
            Token::of(1, BucketId(1), b"a")
        );
        // Where the way of hashing changes, the token must not.
        for len in [0, 1, 43, 44, 45, 251, 252, 253, 1024] {
            let key: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let whole = [&[0, 0, 0, 1], key.as_slice()].concat();
            assert_eq!(
                Token::of(9, BucketId(1), &key),
                Token(xxh3_64_with_seed(&whole, 9)),
                "{len} bytes"
            );
        }
        assert_eq!(
            Token::of(0, BucketId(1), b"a"),
            Token(6_145_840_799_761_871_658)
        );
        let long = vec![7_u8; 1024];
        assert_eq!(
            Token::of(9, BucketId(1), &long),
            Token::of(9, BucketId(1), &long)
        );
    }

    #[test]
    fn partitions_tile_the_token_space() {
        for bits in [0, 1, 4, 10, 16] {
            let count = 1_u32 << bits;
            let mut next = 0_u64;
            for index in 0..count {
                let partition = PartitionId(index as u16);
                assert_eq!(partition.first_token(bits).0, next);
                assert_eq!(partition.first_token(bits).partition(bits), partition);
                assert_eq!(partition.last_token(bits).partition(bits), partition);
                next = partition.last_token(bits).0.wrapping_add(1);
            }
            assert_eq!(
                next, 0,
                "the last partition ends at the end of the token space"
            );
        }
    }
}

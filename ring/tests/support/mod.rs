//! Clusters for tests.
#![allow(dead_code)] // each test file uses its part

use torc_ring::{ClusterId, Config, Member, NodeId, Secret};
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

//! Which tables of owners the next configuration gets.
//!
//! A table is written down for each n that a bucket has, unless every member owns everything anyway, or the
//! tables would become too large ([`crate::owner_table::OWNERS_MAX`]). What the present owners are, a table
//! says or placement computes: so a configuration without tables goes on from what it has.

use std::collections::{BTreeMap, BTreeSet};

use crate::assign::assign;
use crate::config::{Config, Member};
use crate::owner_table::OwnerTable;
use crate::placement::sites;
use crate::rebalance::{Present, rebalance};

/// The tables of a joint configuration's target ring.
pub(crate) fn target_tables(joint: &Config) -> Vec<OwnerTable> {
    let Some(target) = &joint.target else {
        return Vec::new();
    };
    // For each n to come, the n that its owners are made from: the same if there are such buckets.
    let mut from: BTreeMap<u8, u8> = BTreeMap::new();
    for bucket in &joint.buckets {
        from.entry(joint.target_replicas(bucket))
            .or_insert(bucket.n);
    }
    let present: BTreeSet<u8> = joint.buckets.iter().map(|bucket| bucket.n).collect();
    for (n, from) in &mut from {
        if present.contains(n) {
            *from = *n;
        }
    }
    let table = |n: u8| joint.tables.iter().find(|table| table.n() == n);
    let same_ring = *target == joint.current;
    // Those that are written down already stay so: to compute them again would move most of the data.
    let mut order: Vec<(u8, u8)> = from.into_iter().collect();
    order.sort_by_key(|&(n, from)| (table(from).is_none(), n));
    let mut tables = Vec::new();
    let mut named = 0;
    for (n, from) in order {
        let next = if same_ring && n == from {
            table(n).cloned()
        } else {
            let rows = |from| owners(&joint.current, (table(from), from), joint.partition_bits);
            next_table(joint, (target, n), (rows, from), named)
        };
        named += next
            .as_ref()
            .map_or(0, |t| usize::from(t.n()) << joint.partition_bits);
        tables.extend(next);
    }
    tables.sort_by_key(OwnerTable::n);
    tables
}

/// The tables of a ring without keys.
pub(crate) fn fresh_tables(config: &Config) -> Vec<OwnerTable> {
    let counts: BTreeSet<u8> = config.buckets.iter().map(|bucket| bucket.n).collect();
    let (sites, bits) = (sites(&config.current), config.partition_bits);
    let mut tables = Vec::new();
    let mut named = 0;
    for n in counts {
        if sites.len() <= usize::from(n) || !OwnerTable::has_room(n, bits, named) {
            continue;
        }
        let each = usize::from(n);
        let present = Present {
            sites: &sites,
            rows: &assign(&sites, each, bits).owners,
            each,
            is_empty: true,
        };
        named += each << bits;
        tables.push(OwnerTable::pack(
            n,
            &rebalance(&present, &sites, each, bits),
            sites.len(),
        ));
    }
    tables
}

fn next_table(
    joint: &Config,
    (target, n): (&[Member], u8),
    (rows, from): (impl Fn(u8) -> Vec<u32>, u8),
    named: usize,
) -> Option<OwnerTable> {
    let bits = joint.partition_bits;
    if target.len() <= usize::from(n) || !OwnerTable::has_room(n, bits, named) {
        return None;
    }
    let (before, after) = (sites(&joint.current), sites(target));
    let present = Present {
        sites: &before,
        rows: &rows(from),
        each: usize::from(from).min(before.len()),
        is_empty: false,
    };
    let rows = rebalance(&present, &after, usize::from(n), bits);
    Some(OwnerTable::pack(n, &rows, after.len()))
}

/// The owners of each partition as positions in `members`.
fn owners(members: &[Member], (table, n): (Option<&OwnerTable>, u8), bits: u8) -> Vec<u32> {
    table
        .and_then(|table| table.unpack(members.len(), bits))
        .unwrap_or_else(|| assign(&sites(members), usize::from(n), bits).owners)
}

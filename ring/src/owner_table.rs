//! The owners of all partitions as a part of the configuration.
//!
//! A table that is written down can be changed as little as a change of the members demands; one that is
//! computed from the members alone cannot (`docs/ring-balance.md`). What it says is checked before it is
//! believed: the right number of owners for each partition, each of them a member, none of them twice.
//!
//! Bytes: for each partition in order, `min(n, members)` positions in the list of members (ordered by id),
//! in order of preference, each in as few bits as the last position needs, first bit first; the last byte is
//! filled with zeros.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::REPLICAS_MAX;

/// Owners that all tables of one ring may name together: n × partitions, summed over the values of n. At
/// 1,000 members that is 120 KiB. A table that finds no room is not written down, and its owners are
/// computed: with so many partitions this moves as little.
pub const OWNERS_MAX: usize = 3 << 15;

/// The owners of all partitions for one n.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerTable {
    n: u8,
    packed: Vec<u8>,
}

impl fmt::Debug for OwnerTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.packed.len();
        write!(f, "OwnerTable {{ n: {}, {bytes} bytes }}", self.n)
    }
}

impl OwnerTable {
    /// A table as somebody else sent it. Nothing is checked before [`crate::Config::validate`].
    #[must_use]
    pub fn from_bytes(n: u8, packed: Vec<u8>) -> Self {
        Self { n, packed }
    }

    /// Its bytes, as the module's text lays them out.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.packed
    }

    /// The number of replicas that it is for, 1..=16.
    #[must_use]
    pub fn n(&self) -> u8 {
        self.n
    }

    /// Whether a table of this n has room beside others that name `named` owners.
    pub(crate) fn has_room(n: u8, partition_bits: u8, named: usize) -> bool {
        named + (usize::from(n) << partition_bits) <= OWNERS_MAX
    }

    /// `rows` holds the owners of each partition as positions below `members`.
    pub(crate) fn pack(n: u8, rows: &[u32], members: usize) -> Self {
        let width = width(members);
        let mut packed = Vec::with_capacity((rows.len() * width as usize).div_ceil(8));
        let (mut pending, mut filled) = (0_u32, 0);
        for &owner in rows {
            pending = pending << width | owner;
            filled += width;
            while filled >= 8 {
                filled -= 8;
                packed.push((pending >> filled) as u8);
                pending &= (1 << filled) - 1;
            }
        }
        if filled > 0 {
            packed.push((pending << (8 - filled)) as u8);
        }
        Self { n, packed }
    }

    /// The owners of each partition as positions below `members`; `None` if this is no table for so many
    /// members and partitions.
    pub(crate) fn unpack(&self, members: usize, partition_bits: u8) -> Option<Vec<u32>> {
        let each = usize::from(self.n).min(members);
        if each == 0 || self.n > REPLICAS_MAX {
            return None;
        }
        let count = each << partition_bits;
        let width = width(members);
        if self.packed.len() != (count * width as usize).div_ceil(8) {
            return None;
        }
        let mut rows = Vec::with_capacity(count);
        let (mut pending, mut filled) = (0_u32, 0);
        for &byte in &self.packed {
            pending = pending << 8 | u32::from(byte);
            filled += 8;
            while filled >= width && rows.len() < count {
                filled -= width;
                rows.push(pending >> filled);
                pending &= (1 << filled) - 1;
            }
        }
        let is_row = |row: &[u32]| {
            (0_usize..)
                .zip(row)
                .all(|(at, &owner)| (owner as usize) < members && !row[..at].contains(&owner))
        };
        (pending == 0 && rows.chunks(each).all(is_row)).then_some(rows)
    }
}

/// Bits of a position in a list of `members`, 1..=10 for a valid configuration.
fn width(members: usize) -> u32 {
    let last = members.saturating_sub(1) as u32;
    (u32::BITS - last.leading_zeros()).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_survives_packing_at_every_width() {
        for members in [1_usize, 2, 3, 4, 5, 127, 128, 129, 999, 1000] {
            for n in [1_u8, 2, 3, 16] {
                let each = usize::from(n).min(members);
                let rows: Vec<u32> = (0..32_usize)
                    .flat_map(|p| (0..each).map(move |at| ((p * 7 + at) % members) as u32))
                    .collect();
                let table = OwnerTable::pack(n, &rows, members);
                assert_eq!(table.unpack(members, 5), Some(rows), "{members} members");
                assert_eq!(table.unpack(members, 4), None, "too long");
                assert_eq!(table.unpack(members, 6), None, "too short");
            }
        }
    }

    #[test]
    fn the_bytes_of_a_table_are_pinned() {
        // Four partitions, two owners each of five: three bits for each position.
        let table = OwnerTable::pack(2, &[0, 1, 4, 2, 3, 0, 1, 4], 5);
        assert_eq!(table.as_bytes(), [0b0000_0110, 0b0010_0110, 0b0000_1100]);
        let table = OwnerTable::pack(1, &[1, 0, 1], 2);
        assert_eq!(table.as_bytes(), [0b1010_0000]);
    }

    #[test]
    fn what_is_no_table_is_refused() {
        let good = OwnerTable::pack(2, &[0, 1, 2, 0], 3);
        assert!(good.unpack(3, 1).is_some());
        let twice = OwnerTable::pack(2, &[0, 1, 2, 2], 3);
        assert_eq!(twice.unpack(3, 1), None, "an owner stands there twice");
        let stranger = OwnerTable::pack(2, &[0, 1, 3, 0], 3);
        assert_eq!(stranger.unpack(3, 1), None, "3 is no position of three");
        let mut filled = OwnerTable::pack(1, &[0, 1], 2);
        filled.packed[0] |= 1;
        assert_eq!(filled.unpack(2, 1), None, "what fills the byte is not zero");
        assert_eq!(OwnerTable::from_bytes(0, Vec::new()).unpack(3, 1), None);
        assert_eq!(OwnerTable::from_bytes(17, vec![0; 64]).unpack(3, 1), None);
        assert_eq!(good.unpack(0, 1), None);
    }
}

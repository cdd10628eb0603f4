//! The merge operator of the records' column family: the semilattice of [`Record::merge`], applied by
//! RocksDB while it reads, flushes and compacts, so that a replicated write reads nothing first.
//!
//! An operand that is no record (a bug, another version's work, a broken memory) is neither dropped nor
//! allowed to fail the merge: RocksDB answers a failed merge by refusing every further write of the whole
//! database, because the flush that hit it cannot finish. It is *set aside* instead:
//!
//! ```text
//! 0x00 ‖ { length u32 ‖ bytes }*        the merged good operands first (if any), then each odd one
//! ```
//!
//! No record begins with 0x00, so that such a value fails [`Record::parse`] and is answered with `Corrupt`.
//! Whether the content of an operand matches its checksum is asked when it is read, not here: between the
//! two it is covered by the checksums of log and tables.

use bytes::{BufMut, Bytes};
use rocksdb::MergeOperands;
use torc_protocol::record::{Record, merge_picks_first};

/// Stands in the database; another name would make RocksDB refuse to open it.
pub(crate) const NAME: &str = "torc.record.1";

const SET_ASIDE: u8 = 0;

// RocksDB's callback asks for an `Option`; `None` would be the failure described above.
#[allow(clippy::unnecessary_wraps)]
pub(crate) fn full_merge(
    key: &[u8],
    existing: Option<&[u8]>,
    operands: &MergeOperands,
) -> Option<Vec<u8>> {
    Some(merge_all(key, existing.into_iter().chain(operands.iter())))
}

fn merge_all<'a>(key: &[u8], operands: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut sum = Sum::default();
    for operand in operands {
        sum.add(key, operand);
    }
    sum.into_bytes()
}

/// What has been merged so far. `Plain` borrows: values are copied once, when the merge is done.
#[derive(Default)]
struct Sum<'a> {
    plain: Option<&'a [u8]>,
    other: Option<Record>,
    odd: Vec<&'a [u8]>,
}

impl<'a> Sum<'a> {
    fn add(&mut self, key: &[u8], operand: &'a [u8]) {
        match (
            self.plain,
            merge_picks_first(operand, self.plain.unwrap_or(operand)),
        ) {
            (_, Some(picks_operand)) if self.other.is_none() => {
                if self.plain.is_none() || picks_operand {
                    self.plain = Some(operand);
                }
            }
            _ => self.add_slowly(key, operand),
        }
    }

    fn add_slowly(&mut self, key: &[u8], operand: &'a [u8]) {
        if operand.first() == Some(&SET_ASIDE)
            && let Some(parts) = parts_of(operand)
        {
            for part in parts {
                self.add_quietly(part);
            }
            return;
        }
        if !self.add_quietly(operand) {
            tracing::error!(
                key = %key.escape_ascii(),
                len = operand.len(),
                "stored state of a key is no record and is set aside; reads of the key fail until it is rebuilt from peers"
            );
        }
    }

    /// Whether the operand was merged; it is set aside when not.
    fn add_quietly(&mut self, operand: &'a [u8]) -> bool {
        let so_far = self
            .plain
            .map(|bytes| Record::parse(Bytes::copy_from_slice(bytes)));
        let so_far = match (so_far, self.other.take()) {
            (None, other) => other,
            (Some(Ok(plain)), _) => Some(plain),
            // It was taken unseen for its header; it is no record after all.
            (Some(Err(_)), _) => {
                self.odd.extend(self.plain);
                None
            }
        };
        self.plain = None;
        let (merged, sound) = match (so_far, Record::parse(Bytes::copy_from_slice(operand))) {
            (None, Ok(record)) => (Some(record), true),
            (Some(sum), Ok(record)) => match sum.clone().merge(record) {
                Ok(merged) => (Some(merged), true),
                Err(_) => (Some(sum), false),
            },
            (sum, Err(_)) => (sum, false),
        };
        self.other = merged;
        if !sound && !self.odd.contains(&operand) {
            self.odd.push(operand);
        }
        sound
    }

    fn into_bytes(mut self) -> Vec<u8> {
        let good = match (self.plain, &self.other) {
            (Some(plain), _) => Some(plain),
            (None, Some(record)) => Some(record.as_bytes().as_ref()),
            (None, None) => None,
        };
        if self.odd.is_empty() {
            return good.map(<[u8]>::to_vec).unwrap_or_default();
        }
        self.odd.sort_unstable();
        let mut out = vec![SET_ASIDE];
        for part in good.into_iter().chain(self.odd) {
            out.put_u32(part.len() as u32);
            out.put_slice(part);
        }
        out
    }
}

fn parts_of(bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let (_, mut rest) = bytes.split_first()?;
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let (len, tail) = rest.split_first_chunk::<4>()?;
        let (part, tail) = tail.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        parts.push(part);
        rest = tail;
    }
    (!parts.is_empty()).then_some(parts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use torc_protocol::hlc::Hlc;
    use torc_protocol::record::Parts;
    use torc_protocol::version::Version;
    use torc_ring::NodeId;

    use super::*;

    fn operand() -> impl Strategy<Value = Vec<u8>> {
        let good = (0..4_u64, 0..2_u64, prop::collection::vec(any::<u8>(), 0..3)).prop_map(
            |(hlc, node, value)| {
                let version = Version {
                    hlc: Hlc(hlc),
                    node: NodeId(node),
                };
                Record::value(Parts {
                    version,
                    expiry: None,
                    content_type: b"",
                    value: &value,
                })
                .as_bytes()
                .to_vec()
            },
        );
        prop_oneof![4 => good, 1 => prop::collection::vec(any::<u8>(), 0..50)]
    }

    fn merged(operands: &[Vec<u8>]) -> Vec<u8> {
        merge_all(b"k", operands.iter().map(Vec::as_slice))
    }

    proptest! {
        #[test]
        fn partial_merges_change_nothing(operands in prop::collection::vec(operand(), 1..8), cut in any::<prop::sample::Index>()) {
            let (left, right) = operands.split_at(cut.index(operands.len()));
            let mut parts: Vec<Vec<u8>> = Vec::new();
            if !left.is_empty() {
                parts.push(merged(left));
            }
            parts.push(merged(right));
            prop_assert_eq!(merged(&parts), merged(&operands));
        }

        #[test]
        fn good_operands_merge_as_records(operands in prop::collection::vec(operand(), 1..8)) {
            let records: Vec<Record> = operands.iter().filter_map(|o| Record::parse(Bytes::from(o.clone())).ok()).collect();
            let all_good = records.len() == operands.len();
            let merged_bytes = merged(&operands);
            match Record::parse(Bytes::from(merged_bytes.clone())) {
                Ok(record) if all_good => {
                    let expected = records.into_iter().reduce(|a, b| a.merge(b).expect("compatible")).expect("one");
                    prop_assert_eq!(record, expected);
                }
                Ok(_) => prop_assert!(false, "an odd operand vanished"),
                Err(_) => {
                    prop_assert!(!all_good);
                    for odd in operands.iter().filter(|o| Record::parse(Bytes::from((*o).clone())).is_err()) {
                        prop_assert!(odd.is_empty() || merged_bytes.windows(odd.len()).any(|w| w == odd.as_slice()));
                    }
                }
            }
        }
    }
}

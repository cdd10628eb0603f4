//! A look at RocksDB's manifest before RocksDB reads it.
//!
//! A manifest is a log that is never recycled. Where one bit makes a record's type that of a recycled log, RocksDB
//! 11.8 reads that record again and again, and opening never ends. Source: `Reader::ReadPhysicalRecord` in
//! db/log_reader.cc (`first_record_read_ && !recycled_` answers `kBadRecord` and stays where it is), and
//! db/log_format.h. All other damage is found by RocksDB itself, which has the checksums.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use crate::error::StorageError;

/// Records do not cross these, in bytes.
const BLOCK: usize = 32 << 10;
/// Checksum, length and type of a record, in bytes.
const HEADER: usize = 7;
/// Types of records in recycled logs.
const RECYCLED: [u8; 6] = [5, 6, 7, 8, 11, 131];

/// # Errors
/// When the manifest holds a record that RocksDB would not get past, or cannot be read. One that is not there is
/// RocksDB's business.
pub(crate) fn check(db: &Path) -> Result<(), StorageError> {
    let Ok(current) = fs::read_to_string(db.join("CURRENT")) else {
        return Ok(());
    };
    let path = db.join(current.trim_end());
    let Ok(file) = File::open(&path) else {
        return Ok(());
    };
    if is_sound(file).map_err(StorageError::io("read", &path))? {
        Ok(())
    } else {
        Err(StorageError::Damaged { path })
    }
}

fn is_sound(mut manifest: impl Read) -> io::Result<bool> {
    let mut block = Vec::with_capacity(BLOCK);
    loop {
        block.clear();
        manifest
            .by_ref()
            .take(BLOCK as u64)
            .read_to_end(&mut block)?;
        if block.is_empty() {
            return Ok(true);
        }
        let mut rest = &block[..];
        while let Some((header, after)) = rest.split_at_checked(HEADER) {
            if RECYCLED.contains(&header[6]) {
                return Ok(false);
            }
            let length = usize::from(u16::from_le_bytes([header[4], header[5]]));
            // Zeros were allocated and never written; a record that is longer than its block is torn.
            let Some(next) = after.get(length..).filter(|_| header[6] != 0) else {
                break;
            };
            rest = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, length: usize) -> Vec<u8> {
        let [low, high] = (length as u16).to_le_bytes();
        let mut bytes = vec![1, 2, 3, 4, low, high, kind];
        bytes.resize(HEADER + length, 0xff);
        bytes
    }

    #[test]
    fn records_of_a_log_that_is_not_recycled_are_sound() {
        for manifest in [
            Vec::new(),
            record(1, 20),
            [record(1, 20), record(1, 0), record(1, 300)].concat(),
            [record(2, BLOCK - HEADER), record(4, 9)].concat(),
            // The last five bytes of a block are too few for a record.
            [record(1, BLOCK - HEADER - 5), vec![5; 5], record(1, 1)].concat(),
            [record(1, 20), vec![0; 100]].concat(),
            [record(1, 20), record(1, 50)[..30].to_vec()].concat(),
        ] {
            assert!(is_sound(&manifest[..]).unwrap(), "{manifest:?}");
        }
    }

    #[test]
    fn a_record_of_a_recycled_log_is_damage() {
        for kind in RECYCLED {
            let manifest = [record(1, 20), record(kind, 20), record(1, 20)].concat();
            assert!(!is_sound(&manifest[..]).unwrap(), "{kind}");
        }
        let second = [record(1, BLOCK - HEADER), record(5, 1)].concat();
        assert!(!is_sound(&second[..]).unwrap());
    }
}

//! Damage on disk: noticed, named, never served and never taken for a clean end.
//!
//! A copy of the directory of a store that is open and at rest is what a killed process leaves behind.

// Helpers of tests panic and print like tests.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use torc_protocol::store::{Batch, Found, Query, StateKey, StoreError, Sync, Write};
use torc_ring::NodeId;
use torc_storage::{Durability, Options, StorageError, Store};
use xxhash_rust::xxh3::xxh3_64;

use common::rng::{Rng, seed};
use common::*;

const WRITES: u64 = 300;

fn options(path: PathBuf, durability: Durability) -> Options {
    let mut options = Options::new(path);
    options.durability = durability;
    options.reserve = 1 << 20;
    options
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// What a process leaves behind that was killed after `WRITES` acknowledged writes in batches of one.
struct Image {
    folder: tempfile::TempDir,
    durability: Durability,
    copies: u32,
}

impl Image {
    fn new(durability: Durability) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(options(folder.path().join("live"), durability)).unwrap();
        let mut commits = Commits::of(&store);
        for number in 0..WRITES {
            let value = value(1, &[number as u8; 200]);
            commits
                .write(vec![merge(&key(1, number, b"k"), &value)])
                .unwrap();
        }
        let state = Write::StatePut {
            key: StateKey::Applied,
            value: Bytes::from_static(b"applied"),
        };
        commits
            .commit(Batch {
                writes: vec![state],
                sync: Sync::Fsync,
            })
            .unwrap();
        copy(&folder.path().join("live"), &folder.path().join("image"));
        Self {
            folder,
            durability,
            copies: 0,
        }
    }

    /// A fresh copy to damage.
    fn copy(&mut self) -> PathBuf {
        self.copies += 1;
        let to = self.folder.path().join(format!("copy{}", self.copies));
        copy(&self.folder.path().join("image"), &to);
        to
    }

    fn open(&self, path: &Path) -> Result<Store, StorageError> {
        Store::open(options(path.into(), self.durability)).map(|(store, _)| store)
    }
}

/// Checks that each key reads as written or as corrupt; answers how many are corrupt.
fn count_corrupt(store: &Store) -> usize {
    let mut corrupt = 0;
    for number in 0..WRITES {
        match read(store, &key(1, number, b"k")) {
            Ok(Some(found)) => assert_eq!(found, value(1, &[number as u8; 200])),
            Ok(None) => panic!("write {number} is gone, and nobody noticed"),
            Err(error) => {
                assert_eq!(error, StoreError::Corrupt);
                corrupt += 1;
            }
        }
    }
    corrupt
}

fn files(path: &Path, suffix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(path.join("db"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = entries
        .filter(|path| path.to_string_lossy().ends_with(suffix))
        .collect();
    found.sort();
    found
}

/// The log that the writes went to.
fn log(path: &Path) -> PathBuf {
    files(path, ".log")
        .into_iter()
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap()
}

fn flip(path: &Path, at: u64, mask: u8) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ mask], at).unwrap();
}

fn written_len(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at as u64 + 1)
}

#[test]
fn an_undamaged_image_opens_with_everything() {
    for durability in [Durability::Fsync, Durability::Os] {
        let mut image = Image::new(durability);
        let path = image.copy();
        let store = image.open(&path).unwrap();
        assert_eq!(count_corrupt(&store), 0);
        assert_eq!(
            store.state(StateKey::Applied).unwrap(),
            Some(Bytes::from_static(b"applied"))
        );
    }
}

#[test]
fn a_flipped_bit_anywhere_in_the_log_is_noticed() {
    let mut image = Image::new(Durability::Fsync);
    let mut rng = Rng::new(seed());
    let template = image.copy();
    let len = written_len(&log(&template));
    assert!(len > WRITES * 200);
    for round in 0..30 {
        let path = image.copy();
        // The first and the last bytes, and others between them.
        let at = match round {
            0 => 0,
            1 => len - 1,
            _ => rng.below(len),
        };
        flip(&log(&path), at, 1 << rng.below(8));
        match image.open(&path) {
            Err(StorageError::Amnesia {
                expected, found, ..
            }) => assert!(found < expected),
            Err(StorageError::Corrupt { .. }) => {}
            Err(other) => panic!("byte {at} of {len}: {other}"),
            Ok(store) => panic!(
                "byte {at} of {len}: opens, {} corrupt",
                count_corrupt(&store)
            ),
        }
        // A second try finds no more than the first.
        assert!(image.open(&path).is_err());
        fs::remove_dir_all(path).unwrap();
    }
}

#[test]
fn a_log_that_ends_early_or_is_gone_is_amnesia() {
    for durability in [Durability::Fsync, Durability::Os] {
        let mut image = Image::new(durability);
        let path = image.copy();
        let len = written_len(&log(&path));
        for keep in [0, 7, len / 2, len - 1] {
            let path = image.copy();
            fs::File::options()
                .write(true)
                .open(log(&path))
                .unwrap()
                .set_len(keep)
                .unwrap();
            let error = image.open(&path).err().expect("noticed");
            assert!(
                matches!(error, StorageError::Amnesia { .. }),
                "{keep} of {len}: {error}"
            );
            assert!(
                error.to_string().contains("join as a replacement"),
                "{error}"
            );
        }
        fs::remove_file(log(&path)).unwrap();
        assert!(image.open(&path).is_err());
        let path = image.copy();
        fs::remove_dir_all(path.join("db")).unwrap();
        assert!(matches!(
            image.open(&path),
            Err(StorageError::Amnesia { found: 0, .. })
        ));
    }
}

#[test]
fn a_torn_last_write_that_nobody_was_told_of_is_no_damage() {
    let mut image = Image::new(Durability::Fsync);
    let mut rng = Rng::new(seed());
    for _ in 0..5 {
        let path = image.copy();
        let log = log(&path);
        let len = written_len(&log);
        let torn = rng.below(500) + 1;
        fs::File::options()
            .write(true)
            .open(&log)
            .unwrap()
            .write_all_at(&rng.bytes(torn), len)
            .unwrap();
        let store = image.open(&path).unwrap();
        assert_eq!(count_corrupt(&store), 0);
    }
}

#[test]
fn a_flipped_bit_anywhere_in_a_table_is_noticed_or_harmless() {
    let mut image = Image::new(Durability::Fsync);
    // Opening writes the log's content into tables.
    let flushed = image.copy();
    image.open(&flushed).unwrap().close().unwrap();
    let mut rng = Rng::new(seed());
    let mut noticed = 0;
    for round in 0..30 {
        let path = image.folder.path().join(format!("table{round}"));
        copy(&flushed, &path);
        let table = files(&path, ".sst")
            .into_iter()
            .max_by_key(|path| fs::metadata(path).unwrap().len())
            .unwrap();
        let at = rng.below(fs::metadata(&table).unwrap().len());
        flip(&table, at, 1 << rng.below(8));
        match image.open(&path) {
            Ok(store) => noticed += usize::from(count_corrupt(&store) > 0),
            Err(StorageError::Corrupt { source, .. }) => {
                noticed += 1;
                // It names a file: the table, or the manifest that leads to it.
                assert!(source.to_string().contains("/db/"), "{source}");
            }
            Err(other) => panic!("byte {at}: {other}"),
        }
        fs::remove_dir_all(path).unwrap();
    }
    // Nearly all of a table is data; some bytes of it nobody needs to read.
    assert!(noticed >= 18, "{noticed} of 30");
}

#[test]
fn a_flipped_bit_in_the_manifest_is_noticed_or_harmless() {
    let mut image = Image::new(Durability::Fsync);
    let mut rng = Rng::new(seed());
    for _ in 0..20 {
        let path = image.copy();
        let manifest = fs::read_dir(path.join("db"))
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let manifest = manifest
            .filter(|path| path.to_string_lossy().contains("MANIFEST"))
            .max()
            .unwrap();
        flip(
            &manifest,
            rng.below(written_len(&manifest)),
            1 << rng.below(8),
        );
        if let Ok(store) = image.open(&path) {
            assert_eq!(count_corrupt(&store), 0);
        }
    }
}

#[test]
fn a_record_in_the_manifest_that_looks_like_one_of_a_recycled_log_does_not_hold_the_start_for_ever()
{
    let mut image = Image::new(Durability::Fsync);
    let manifest = |path: &Path| {
        let current = fs::read_to_string(path.join("db/CURRENT")).unwrap();
        path.join("db").join(current.trim_end())
    };
    let path = image.copy();
    let bytes = fs::read(manifest(&path)).unwrap();
    let mut at = 0;
    let mut records = 0;
    while at + 7 <= bytes.len() && bytes[at + 6] == 1 {
        let path = image.copy();
        flip(&manifest(&path), at as u64 + 6, 4);
        let error = image.open(&path).err().expect("noticed");
        assert!(
            matches!(&error, StorageError::Damaged { path: of } if *of == manifest(&path)),
            "{error}"
        );
        at += 7 + usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
        records += 1;
    }
    assert!(records >= 5, "{records}");
}

#[test]
fn a_mark_that_is_missing_or_damaged_is_noticed() {
    let mut image = Image::new(Durability::Fsync);
    let path = image.copy();
    fs::remove_file(path.join("MARK")).unwrap();
    let error = image.open(&path).err().expect("noticed");
    assert!(
        matches!(&error, StorageError::Damaged { path } if path.ends_with("MARK")),
        "{error}"
    );
    let path = image.copy();
    flip(&path.join("MARK"), 30, 1);
    flip(&path.join("MARK"), 4096 + 30, 1);
    assert!(matches!(
        image.open(&path),
        Err(StorageError::Damaged { .. })
    ));
}

#[test]
fn a_directory_of_another_format_or_another_program_is_refused_and_left_alone() {
    let mut image = Image::new(Durability::Fsync);
    let path = image.copy();
    fs::write(path.join("FORMAT"), "torc data, format 99\n").unwrap();
    assert!(matches!(
        image.open(&path),
        Err(StorageError::Format {
            found: 99,
            known: 1,
            ..
        })
    ));
    fs::write(path.join("FORMAT"), "what?").unwrap();
    assert!(matches!(
        image.open(&path),
        Err(StorageError::Damaged { .. })
    ));
    let foreign = image.folder.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.tex"), "").unwrap();
    assert!(matches!(
        image.open(&foreign),
        Err(StorageError::Foreign { .. })
    ));
    assert_eq!(fs::read_dir(&foreign).unwrap().count(), 1);
}

#[test]
fn two_stores_cannot_have_one_directory() {
    let place = OnDisk::new();
    let (store, _) = place.open();
    let error = Store::open(place.options()).err().expect("refused");
    assert!(matches!(error, StorageError::Locked { .. }), "{error}");
    place.close(store);
    let (store, opened) = place.open();
    assert!(opened.clean);
    place.close(store);
}

/// Rewrites the mark as if the machine had been switched off and on since.
fn pretend_reboot(path: &Path) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path.join("MARK"))
        .unwrap();
    for slot in [0, 4096] {
        let mut bytes = [0; 64];
        file.read_exact_at(&mut bytes, slot).unwrap();
        bytes[40..56].fill(0xee);
        let sum = xxh3_64(&bytes[..56]);
        bytes[56..].copy_from_slice(&sum.to_be_bytes());
        file.write_all_at(&bytes, slot).unwrap();
    }
}

#[test]
fn after_a_power_cut_what_was_synced_must_be_there_and_the_rest_is_doubtful() {
    let mut image = Image::new(Durability::Os);
    // Everything up to the state's fsync was synced, whatever the durability: losing it is amnesia.
    let path = image.copy();
    pretend_reboot(&path);
    fs::File::options()
        .write(true)
        .open(log(&path))
        .unwrap()
        .set_len(1000)
        .unwrap();
    assert!(matches!(
        image.open(&path),
        Err(StorageError::Amnesia { .. })
    ));

    let path = image.copy();
    pretend_reboot(&path);
    let (store, opened) = Store::open(options(path.clone(), Durability::Os)).unwrap();
    assert!(opened.dirty_boot);
    // It stays so over restarts until it is dealt with.
    drop(store);
    let (store, opened) = Store::open(options(path.clone(), Durability::Os)).unwrap();
    assert!(opened.dirty_boot);
    store.settle_dirty_boot().unwrap();
    drop(store);
    let (_, opened) = Store::open(options(path, Durability::Os)).unwrap();
    assert!(!opened.dirty_boot);
}

#[test]
fn after_a_power_cut_with_fsync_nothing_is_doubtful_and_nothing_may_be_missing() {
    let mut image = Image::new(Durability::Fsync);
    let path = image.copy();
    pretend_reboot(&path);
    let (store, opened) = Store::open(options(path, Durability::Fsync)).unwrap();
    assert!(!opened.dirty_boot);
    assert_eq!(count_corrupt(&store), 0);
    let path = image.copy();
    pretend_reboot(&path);
    let len = written_len(&log(&path));
    fs::File::options()
        .write(true)
        .open(log(&path))
        .unwrap()
        .set_len(len - 1)
        .unwrap();
    assert!(matches!(
        image.open(&path),
        Err(StorageError::Amnesia { .. })
    ));
}

#[test]
fn unsynced_writes_that_a_power_cut_took_are_doubt_and_not_amnesia() {
    let folder = tempfile::tempdir().unwrap();
    let live = folder.path().join("live");
    let (store, _) = Store::open(options(live.clone(), Durability::Os)).unwrap();
    let mut commits = Commits::of(&store);
    let put = |number| batch(vec![merge(&key(1, number, b"k"), &value(1, b"v"))]);
    commits
        .commit(Batch {
            sync: Sync::Fsync,
            ..put(1)
        })
        .unwrap();
    let synced_len = written_len(&log(&live));
    commits.commit(put(2)).unwrap();
    for (reboot, len, fine) in [
        (true, synced_len, true),
        (true, synced_len - 1, false),
        (false, synced_len, false),
    ] {
        let path = folder.path().join(format!("image{reboot}{len}"));
        copy(&live, &path);
        if reboot {
            pretend_reboot(&path);
        }
        fs::File::options()
            .write(true)
            .open(log(&path))
            .unwrap()
            .set_len(len)
            .unwrap();
        match Store::open(options(path, Durability::Os)) {
            Ok((store, opened)) => {
                assert!(fine && opened.dirty_boot);
                assert_eq!(read(&store, &key(1, 1, b"k")), Ok(Some(value(1, b"v"))));
                assert_eq!(read(&store, &key(1, 2, b"k")), Ok(None));
            }
            Err(error) => assert!(
                !fine && matches!(error, StorageError::Amnesia { .. }),
                "{error}"
            ),
        }
    }
}

/// One hint among others whose bytes have turned: the others are found, and it is named as what it is.
#[test]
fn a_corrupt_hint_is_told_apart_from_those_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let (live, path) = (folder.path().join("live"), folder.path().join("image"));
    let at = key(1, 1, b"k");
    {
        let (store, _) = Store::open(options(live.clone(), Durability::Os)).unwrap();
        let mut commits = Commits::of(&store);
        for seq in 1..=3 {
            let put = Write::HintPut {
                at: hint_at(9, 1, seq),
                hint: hint(&at, &value(seq, b"v")),
            };
            commits.write(vec![put]).unwrap();
        }
        copy(&live, &path);
    }
    {
        let rocks = rocksdb::Options::default();
        let db = path.join("db");
        let families = rocksdb::DB::list_cf(&rocks, &db).unwrap();
        let db = rocksdb::DB::open_cf(&rocks, &db, families).unwrap();
        let hints = db.cf_handle("hints").unwrap();
        let first = db.iterator_cf(hints, rocksdb::IteratorMode::Start).next();
        let (key, value) = first.unwrap().unwrap();
        let mut turned = value.to_vec();
        *turned.last_mut().unwrap() ^= 1;
        db.put_cf(hints, key, turned).unwrap();
    }
    let (store, opened) = Store::open(options(path, Durability::Os)).unwrap();
    assert_eq!(opened.hints[0].count, 3, "it is still there");
    let query = Query::Hints {
        target: NodeId(9),
        slot: 1,
        after: 0,
        limit: 10,
    };
    let Ok(Found::Hints(found)) = store.query(&query) else {
        panic!("hints were asked for");
    };
    let whole: Vec<(u64, bool)> = found
        .iter()
        .map(|(at, hint)| (at.seq, hint.is_some()))
        .collect();
    assert_eq!(whole, [(1, false), (2, true), (3, true)]);
}

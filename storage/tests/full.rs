//! A full disk, for real: a small file system in memory, mounted for the test alone.
//!
//! Mounting takes a mount namespace of one's own, and so root or user namespaces; where neither is to be
//! had, these tests fail and say so.

// Helpers of tests panic and print like tests.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use bytes::Bytes;
use torc_protocol::store::{Batch, StateKey, StoreError, Sync, Write};
use torc_storage::{Options, Store};

use common::*;

const INSIDE: &str = "TORC_TEST_INSIDE";

/// Runs the test again inside a mount namespace with `mebibytes` of file system; answers with its place
/// there, and `None` outside, when it is done.
fn small_disk(test: &str, mebibytes: u32) -> Option<PathBuf> {
    if let Some(place) = std::env::var_os(INSIDE) {
        let place = PathBuf::from(place);
        let size = format!("size={mebibytes}m");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(&place)
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "cannot mount a file system for the test"
        );
        return Some(place);
    }
    let place = tempfile::tempdir().unwrap();
    let mut inside = Command::new("unshare");
    inside.arg("--mount");
    // Root needs no user namespace, and often is not given one.
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        inside.args(["--user", "--map-root-user"]);
    }
    let output = inside
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, place.path())
        .output()
        .expect("unshare (of util-linux) runs");
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "the test inside a mount namespace failed; it needs root, or user namespaces:\n{out}\n{err}"
    );
    print!("{out}");
    None
}

fn put(number: u64) -> Batch {
    batch(vec![merge(
        &key(1, number, b"k"),
        &value(1, &noise(number)),
    )])
}

/// 16 KiB that do not compress.
fn noise(number: u64) -> Vec<u8> {
    rng::Rng::new(number).bytes(16 << 10)
}

fn options(place: &Path, reserve: u64) -> Options {
    let mut options = Options::new(place.join("data"));
    options.write_buffer = 1 << 20;
    options.reserve = reserve;
    options
}

fn fill(place: &Path, leave: u64, name: &str) -> PathBuf {
    let ballast = place.join(name);
    let stat = nix::sys::statvfs::statvfs(place).unwrap();
    let free = stat.blocks_available() * stat.fragment_size();
    fs::write(&ballast, vec![1; free.saturating_sub(leave) as usize]).unwrap();
    ballast
}

/// Writes until the store is full; answers how many were acknowledged.
fn write_until_full(commits: &mut Commits, first: u64) -> u64 {
    for number in first..first + 100_000 {
        match commits.commit(put(number)) {
            Ok(()) => {}
            // Refused beforehand, or the room ended under the write.
            Err(StoreError::Full | StoreError::Failed) => return number,
            Err(error) => panic!("write {number}: {error}"),
        }
    }
    panic!("the disk does not fill up");
}

fn write_when_there_is_room(commits: &mut Commits, number: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match commits.commit(put(number)) {
            Ok(()) => return,
            Err(error) => assert_ne!(error, StoreError::Corrupt),
        }
        assert!(Instant::now() < deadline, "the store does not recover");
        std::thread::yield_now();
    }
}

fn check(store: &Store, numbers: impl Iterator<Item = u64>) {
    for number in numbers {
        assert_eq!(
            read(store, &key(1, number, b"k")),
            Ok(Some(value(1, &noise(number)))),
            "write {number}"
        );
    }
}

fn state(value: &'static [u8]) -> Batch {
    let writes = vec![Write::StatePut {
        key: StateKey::Applied,
        value: Bytes::from_static(value),
    }];
    Batch {
        writes,
        sync: Sync::Fsync,
    }
}

#[test]
fn at_the_reserve_writes_are_refused_and_reads_deletes_and_state_go_on() {
    let test = "at_the_reserve_writes_are_refused_and_reads_deletes_and_state_go_on";
    let Some(place) = small_disk(test, 96) else {
        return;
    };
    let (store, _) = Store::open(options(&place, 32 << 20)).unwrap();
    let mut commits = Commits::of(&store);
    write_when_there_is_room(&mut commits, 0);
    let ballast = fill(&place, 40 << 20, "ballast");
    let acked = write_until_full(&mut commits, 1);
    println!("{acked} writes acknowledged");
    let properties = store.properties();
    assert!(
        properties.disk_full && properties.free_bytes >= 8 << 20,
        "{properties:?}"
    );
    check(&store, 0..acked);
    // Below the reserve for certain: flushes and compactions give back some room now and then.
    let more = fill(&place, 24 << 20, "more");
    let at = key(1, 1, b"k");
    let hint_put = Write::HintPut {
        at: hint_at(9, 1, 1),
        hint: hint(&at, &value(1, b"v")),
    };
    assert_eq!(commits.write(vec![hint_put]), Err(StoreError::Full));
    assert_eq!(commits.write(vec![merge(&at, &tombstone(9))]), Ok(()));
    assert_eq!(read(&store, &at), Ok(Some(tombstone(9))));
    assert_eq!(commits.commit(state(b"voted")), Ok(()));
    // A batch is refused as a whole.
    let both = vec![
        merge(&key(1, 2, b"k"), &tombstone(9)),
        merge(&key(1, 3, b"k"), &value(9, b"")),
    ];
    assert_eq!(commits.write(both), Err(StoreError::Full));
    check(&store, 2..4);

    fs::remove_file(&ballast).unwrap();
    fs::remove_file(&more).unwrap();
    write_when_there_is_room(&mut commits, acked);
    assert!(!store.properties().disk_full);
    drop(commits);
    store.close().unwrap();
    let (store, _) = Store::open(options(&place, 32 << 20)).unwrap();
    check(&store, (0..=acked).filter(|number| *number != 1));
    assert_eq!(
        store.state(StateKey::Applied).unwrap(),
        Some(Bytes::from_static(b"voted"))
    );
}

/// Without a reserve RocksDB itself meets the end of the disk, in the log and in its flushes.
#[test]
fn a_disk_without_a_free_byte_refuses_writes_serves_reads_and_recovers() {
    let test = "a_disk_without_a_free_byte_refuses_writes_serves_reads_and_recovers";
    let Some(place) = small_disk(test, 64) else {
        return;
    };
    let (store, _) = Store::open(options(&place, 0)).unwrap();
    let mut commits = Commits::of(&store);
    write_when_there_is_room(&mut commits, 0);
    let mut next = 1;
    for round in 0..2 {
        let ballast = fill(&place, 3 << 20, "ballast");
        next = write_until_full(&mut commits, next);
        println!("round {round}: full after {next} writes");
        check(&store, 0..next);
        // More tries do no harm.
        for _ in 0..20 {
            let _ = commits.commit(put(1_000_000));
        }
        fs::remove_file(&ballast).unwrap();
        write_when_there_is_room(&mut commits, next);
        next += 1;
        check(&store, 0..next);
    }
    // Full once more, and the process dies: what was acknowledged is there when there is room again.
    let ballast = fill(&place, 1 << 20, "ballast");
    next = write_until_full(&mut commits, next);
    drop(commits);
    let image = place.join("image");
    fs::remove_file(&ballast).unwrap();
    copy(&place.join("data"), &image);
    drop(store);
    let mut again = options(&place, 0);
    again.path = image;
    let (store, _) = Store::open(again).unwrap();
    check(&store, 0..next);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

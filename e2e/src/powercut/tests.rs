//! The model of a disk against what POSIX allows, and against a real process behind the shim.

use std::process::Command;

use super::*;
use crate::shim;

fn entry(number: u64, inode: u64, change: Change) -> Entry {
    Entry {
        number,
        inode,
        change,
    }
}

fn create(number: u64, inode: u64, path: &str) -> Entry {
    let path = path.to_owned();
    entry(number, inode, Change::Create { path })
}

fn write(number: u64, inode: u64, offset: u64, data: &[u8]) -> Entry {
    let data = data.to_vec();
    entry(number, inode, Change::Write { offset, data })
}

fn sync_root(number: u64) -> Entry {
    let path = String::new();
    entry(number, 0, Change::SyncFolder { path })
}

fn content(disk: &Disk, path: &str) -> Option<Vec<u8>> {
    let mut all = BTreeMap::new();
    disk.list("", &mut all);
    all.remove(path)
}

/// Cuts the same disk in a thousand ways, and answers with what `path` held after each.
fn cuts(journal: &[Entry], path: &str) -> Vec<Option<Vec<u8>>> {
    let mut disk = Disk::default();
    disk.follow(journal);
    (0..1_000)
        .map(|seed| {
            let mut disk = disk.clone();
            disk.cut(&mut Random(seed));
            content(&disk, path)
        })
        .collect()
}

#[test]
fn what_was_synced_with_its_name_is_always_there() {
    let journal = [
        create(1, 7, "/a"),
        write(2, 7, 0, b"kept"),
        entry(2, 7, Change::SyncFile),
        sync_root(2),
        write(3, 7, 4, b" or not"),
    ];
    let seen = cuts(&journal, "/a");
    assert!(seen.iter().all(|bytes| {
        bytes
            .as_ref()
            .is_some_and(|bytes| bytes.starts_with(b"kept"))
    }));
    assert!(seen.contains(&Some(b"kept".to_vec())));
    assert!(seen.contains(&Some(b"kept or not".to_vec())));
    assert!(
        seen.contains(&Some(b"kept\0\0\0\0\0\0\0".to_vec())),
        "a length without its data"
    );
}

#[test]
fn an_fsync_covers_what_had_been_written_when_it_was_called() {
    let journal = [
        create(1, 7, "/a"),
        sync_root(1),
        write(2, 7, 0, b"a"),
        write(3, 7, 1, b"b"),
        entry(2, 7, Change::SyncFile),
    ];
    let seen = cuts(&journal, "/a");
    assert!(seen.contains(&Some(b"a".to_vec())) && seen.contains(&Some(b"ab".to_vec())));
    assert!(!seen.contains(&Some(Vec::new())));
}

#[test]
fn a_name_without_an_fsync_of_its_folder_may_be_gone() {
    let journal = [
        create(1, 7, "/new"),
        write(2, 7, 0, b"x"),
        entry(2, 7, Change::SyncFile),
    ];
    let seen = cuts(&journal, "/new");
    assert!(seen.contains(&None) && seen.contains(&Some(b"x".to_vec())));
}

#[test]
fn a_rename_happens_or_does_not() {
    let mut journal = vec![
        create(1, 7, "/current"),
        write(2, 7, 0, b"old"),
        entry(2, 7, Change::SyncFile),
        create(3, 8, "/temporary"),
        write(4, 8, 0, b"new"),
        entry(4, 8, Change::SyncFile),
        sync_root(4),
    ];
    let (from, to) = ("/temporary".to_owned(), "/current".to_owned());
    journal.push(entry(5, 0, Change::Rename { from, to }));
    let seen = cuts(&journal, "/current");
    assert!(seen.iter().all(Option::is_some));
    assert!(seen.contains(&Some(b"old".to_vec())) && seen.contains(&Some(b"new".to_vec())));
    journal.push(sync_root(5));
    assert!(
        cuts(&journal, "/current")
            .iter()
            .all(|bytes| bytes.as_deref() == Some(b"new"))
    );
}

#[test]
fn a_long_write_may_be_torn_anywhere() {
    let data = vec![1; 3 * PAGE];
    let journal = [create(1, 7, "/a"), sync_root(1), write(2, 7, 0, &data)];
    let seen = cuts(&journal, "/a");
    let torn = seen
        .iter()
        .flatten()
        .filter(|bytes| !bytes.is_empty() && **bytes != data);
    assert!(torn.count() > 100);
}

const SCRIPT: &str = "
import os
root = os.environ['ROOT']
os.mkdir(root + '/sub')
with open(root + '/sub/a', 'wb', buffering=0) as file: file.write(b'one')
with open(root + '/sub/a', 'ab', buffering=0) as file: file.write(b'two')
os.rename(root + '/sub/a', root + '//b')
file = os.open(root + '/b', os.O_RDWR); os.ftruncate(file, 4); os.close(file)
os.unlink(root + '/before')
file = os.open(root + '/c', os.O_RDWR | os.O_CREAT)
os.pwrite(file, b'x' * 9000, 1000); os.writev(file, [b'y', b'zz']); os.posix_fallocate(file, 0, 12000)
os.fsync(file); os.close(file)
os.link(root + '/c', root + '/d')
os.rmdir(root + '/sub')
folder = os.open(root, os.O_RDONLY); os.fsync(folder); os.close(folder)
";

#[test]
fn the_journal_of_a_real_process_tells_all_that_it_changed() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let (root, log) = (folder.path().join("root"), folder.path().join("log"));
    fs::create_dir(&root).expect("make the root");
    fs::write(root.join("before"), "was there").expect("write");
    let mut disk = Disk::of(&root).expect("take in");
    let status = Command::new("python3")
        .args(["-c", SCRIPT])
        .env("ROOT", &root)
        .env("LD_PRELOAD", shim::library())
        .env("SHIM_ROOT", &root)
        .env("SHIM_LOG", &log)
        .output()
        .expect("run python3");
    assert!(
        status.status.success(),
        "{}",
        String::from_utf8_lossy(&status.stderr)
    );
    let journal = read(&log).expect("a journal");
    assert!(journal.iter().any(|entry| entry.change == Change::SyncFile));
    disk.follow(&journal);
    disk.settle();
    assert_eq!(
        disk.differences(&root).expect("compare"),
        Vec::<String>::new()
    );
}

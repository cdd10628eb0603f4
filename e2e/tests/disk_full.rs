//! A full disk: writes are refused with 507, reads are served, and room brings the node back.
//!
//! The data folder lies on a small tmpfs of its own, so this test needs root and says so without it.

use std::fs;

use torc_e2e::cluster::{Cluster, Formation, Node, Options, READY_MAX, shown};
use torc_e2e::http::Request;
use torc_e2e::tmpfs::Tmpfs;
use torc_e2e::{alone, wait};

const DISK_MEBIBYTES: u32 = 192;
const BALLAST_BYTES: u64 = 64 * 1024 * 1024;
/// Less than the reserve, and enough for what the reserve is for.
const LEAVE_BYTES: u64 = 12 * 1024 * 1024;
const VALUE_BYTES: usize = 64 * 1024;
/// A small memtable, so that the log does not fill the disk before anything is flushed.
const CONFIG: &str = "[storage]\nwrite_buffer = \"4MiB\"\nreserve = \"24MiB\"\n";

fn value(number: usize) -> Vec<u8> {
    // Does not compress well, so that what is written takes the room that it seems to take.
    let mut random = torc_e2e::workload::Random(number as u64);
    (0..VALUE_BYTES / 8)
        .flat_map(|_| random.next_u64().to_le_bytes())
        .collect()
}

fn put(node: &Node, number: usize) -> Result<u16, String> {
    let request = Request::put(&format!("/kv/default/full-{number}"), value(number));
    let answer = node.ask(&request)?;
    match answer.status {
        204 => Ok(204),
        507 => answer.check_problem().map(|_| 507),
        // The room ended under a write: its outcome is open, and the answer says so.
        503 if answer.json()["outcome"] == "unknown" => Ok(503),
        _ => Err(shown(Ok(answer))),
    }
}

/// Writes until the node says that the disk is full; answers with how many writes it took.
#[track_caller]
fn fill(node: &Node, from: usize) -> usize {
    let most = from + (DISK_MEBIBYTES as usize * 1024 * 1024) / VALUE_BYTES + 1;
    let (mut number, mut open) = (from, 0);
    while number < most {
        assert!(open < 100, "write {number} stays open");
        match put(node, number) {
            Ok(204) => number += 1,
            // Open: the same value once more is the same write for whoever reads it.
            Ok(503) => open += 1,
            Ok(_) => return number,
            Err(wrong) => panic!("write {number} while the disk fills up: {wrong}"),
        }
    }
    panic!("{most} values of {VALUE_BYTES} bytes fitted on a disk of {DISK_MEBIBYTES} MiB");
}

#[track_caller]
fn assert_all_readable(node: &Node, count: usize) {
    for number in 0..count {
        let read = node.get(&format!("/kv/default/full-{number}"));
        assert!(
            read.as_ref() == Some(&value(number)),
            "value {number} of {count} is lost or wrong"
        );
    }
}

fn refuses_small(node: &Node) -> Result<(), String> {
    match node.ask(&Request::put("/kv/default/small", "x")) {
        Ok(answer) if answer.status == 507 => answer.check_problem().map(drop),
        other => Err(shown(other)),
    }
}

#[test]
fn a_full_disk_refuses_writes_serves_reads_and_recovers_when_there_is_room() {
    let _alone = alone();
    let disk = Tmpfs::mount(DISK_MEBIBYTES);
    let ballast = disk.ballast(BALLAST_BYTES);
    let options = Options {
        config: Some(CONFIG.to_owned()),
        ..Options::default()
    };
    let mut cluster = Cluster::empty(options);
    cluster.add_in("node-1", &disk.path().join("data"));
    cluster.nodes[0].start(&Formation::Bootstrap);

    let node = &cluster.nodes[0];
    let pid = node.pid();
    let written = fill(node, 0);
    eprintln!("507 after {written} values");
    assert!(written > 100, "507 after {written} values already");
    assert_all_readable(node, written);
    assert_eq!(node.pid(), pid);
    // Refused means refused: nothing of it may be seen later.
    assert_eq!(node.get(&format!("/kv/default/full-{written}")), None);
    // Small writes are refused too; what is kept back is for deletes, votes and bounds.
    let squeeze = disk.squeeze(LEAVE_BYTES, || refuses_small(node));
    let deleted = node.ask(&Request::delete("/kv/default/full-0"));
    assert!(
        matches!(&deleted, Ok(answer) if answer.status == 204),
        "{}",
        shown(deleted)
    );
    assert_eq!(node.get("/kv/default/full-0"), None);

    // A restart on the full disk serves what there is.
    cluster.nodes[0].kill();
    cluster.nodes[0].launch(&Formation::Known);
    let node = &cluster.nodes[0];
    wait::until(
        "reads on the full disk after a restart",
        READY_MAX,
        || match node.ask(&Request::get("/kv/default/full-1")) {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(shown(other)),
        },
    );
    disk.squeeze(LEAVE_BYTES, || refuses_small(node));

    for file in [ballast, squeeze] {
        fs::remove_file(&file).expect("make room");
    }
    wait::until("writes to be taken again", READY_MAX, || {
        match put(node, written) {
            Ok(204) => Ok(()),
            Ok(status) => Err(status.to_string()),
            Err(wrong) => Err(wrong),
        }
    });
    // And it notices the next time as well.
    let full_again = fill(node, written + 1);
    for number in 1..full_again {
        let read = node.get(&format!("/kv/default/full-{number}"));
        assert!(
            read.as_ref() == Some(&value(number)),
            "value {number} is lost or wrong"
        );
    }
}

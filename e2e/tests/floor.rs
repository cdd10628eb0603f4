//! What was deleted leaves the disks, and never comes back: not from a node that was away, not from one that
//! was removed, not from an old copy of a disk.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use torc_e2e::cluster::{Cluster, Formation, Node, Options, READY_MAX, shown};
use torc_e2e::http::Request;
use torc_e2e::{alone, wait};

/// Tombstones may be dropped after 1 s + 2 × 2 s; everybody looks about every second, at few partitions.
const CONFIG: &str = "partition_bits = 4\ndeadline = \"1s\"\ndeadline_max = \"1s\"\n[clock]\ndrift_warn = \"1s\"\ndrift_max = \"2s\"\n\
                      [floor]\ninterval = \"1s\"\n[antientropy]\nage_target = \"10s\"\n";
/// Margin, interval, comparisons and the way back of a node together, on a busy machine.
const COLLECTED_MAX: Duration = Duration::from_secs(120);
const KEYS: usize = 120;

fn target(kind: &str, number: usize) -> String {
    format!("/kv/default/{kind}-{number}")
}

#[track_caller]
fn delete(node: &Node, target: &str) {
    let deleted = node.ask(&Request::delete(target));
    assert!(
        matches!(&deleted, Ok(answer) if answer.status == 204),
        "{}",
        shown(deleted)
    );
}

fn tombstones(node: &Node) -> Result<f64, String> {
    Ok(node.metric("torc_tombstones", &[])?.unwrap_or(-1.0))
}

fn collected(node: &Node) -> f64 {
    let count = node.metric("torc_tombstones_collected_total", &[]);
    count.ok().flatten().unwrap_or(0.0)
}

/// Waits until these nodes, which own every key, have dropped [`KEYS`] tombstones more than they had `before`,
/// and have none left.
#[track_caller]
fn wait_collected(nodes: &[&Node], before: &[f64]) {
    for (node, before) in nodes.iter().zip(before) {
        let what = format!("all tombstones of {} to be dropped", node.name);
        wait::until(&what, COLLECTED_MAX, || {
            let (left, dropped) = (tombstones(node)?, collected(node) - before);
            if left == 0.0 && dropped >= KEYS as f64 {
                Ok(())
            } else {
                Err(format!("{left} are there, {dropped} were dropped"))
            }
        });
    }
}

fn all_collected(nodes: &[&Node]) -> Vec<f64> {
    nodes.iter().map(|node| collected(node)).collect()
}

/// Each node by itself says that these are not there, and the others are.
#[track_caller]
fn stay_deleted(nodes: &[&Node], kind: &str, count: usize) {
    for node in nodes {
        for number in 0..count {
            for query in ["r=one", "r=quorum"] {
                let target = format!("{}?{query}", target(kind, number));
                assert_eq!(node.get(&target), None, "{target} on {}", node.name);
            }
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-r").arg(from).arg(to).status();
    assert!(status.is_ok_and(|status| status.success()), "cp failed");
}

/// Starts a node that must refuse; answers with what it said.
#[track_caller]
fn refusal(node: &mut Node) -> String {
    let before = node.log().len();
    node.launch(&Formation::Known);
    let status = node.wait_exit(READY_MAX);
    let said = node.log_since(before);
    assert!(!status.success(), "it ended with success: {said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[test]
fn what_was_deleted_leaves_the_disks_and_never_comes_back() {
    let _alone = alone();
    let mut cluster = Cluster::start(
        3,
        Options {
            config: Some(CONFIG.to_owned()),
            ..Options::default()
        },
    );
    for kind in ["kept", "gone", "away", "snapshot", "removed"] {
        for number in 0..KEYS {
            cluster.nodes[number % 3].put(&target(kind, number), format!("{kind} {number}"));
        }
    }

    // With everybody there.
    for number in 0..KEYS {
        delete(&cluster.nodes[number % 3], &target("gone", number));
    }
    let all: Vec<&Node> = cluster.nodes.iter().collect();
    wait_collected(&all, &[0.0; 3]);
    stay_deleted(&all, "gone", KEYS);

    a_node_that_was_away(&mut cluster);
    an_old_copy_of_a_disk(&mut cluster);
    a_node_that_was_removed(&mut cluster);

    let left: Vec<&Node> = cluster.nodes[..2].iter().collect();
    for kind in ["gone", "away", "snapshot", "removed"] {
        stay_deleted(&left, kind, KEYS);
    }
    for node in &left {
        for number in 0..KEYS {
            let kept = node.get(&target("kept", number));
            assert_eq!(kept, Some(format!("kept {number}").into_bytes()));
        }
    }
}

/// The floor waits for it, says so, and goes on when it is back.
fn a_node_that_was_away(cluster: &mut Cluster) {
    cluster.nodes[2].kill();
    let dropped = all_collected(&cluster.nodes[..2].iter().collect::<Vec<_>>());
    for number in 0..KEYS {
        delete(&cluster.nodes[number % 2], &target("away", number));
    }
    for (node, &dropped) in cluster.nodes[..2].iter().zip(&dropped) {
        node.wait_metric("torc_floor_age_seconds", &[], |age| age > 5.0);
        assert!(tombstones(node).is_ok_and(|count| count >= KEYS as f64));
        assert!(
            (collected(node) - dropped).abs() < f64::EPSILON,
            "nothing is dropped while a member is away"
        );
    }
    cluster.nodes[2].start(&Formation::Known);
    let all: Vec<&Node> = cluster.nodes.iter().collect();
    wait_collected(&all, &[dropped[0], dropped[1], 0.0]);
    stay_deleted(&all, "away", KEYS);
    for node in &all {
        node.wait_metric("torc_floor_age_seconds", &[], |age| age < 5.0);
    }
}

/// A disk that was set back does not come back under its old name, whatever it holds.
fn an_old_copy_of_a_disk(cluster: &mut Cluster) {
    let snapshot = cluster.folder().join("snapshot");
    let newest = cluster.folder().join("newest");
    let node = &mut cluster.nodes[2];
    node.stop();
    copy(&node.data, &snapshot);
    node.start(&Formation::Known);
    let all: Vec<&Node> = cluster.nodes.iter().collect();
    let before = all_collected(&all);
    for number in 0..KEYS {
        delete(&cluster.nodes[number % 3], &target("snapshot", number));
    }
    // By the time that these are gone, the others remember more of the node than the copy does.
    wait_collected(&all, &before);
    cluster.nodes[2].kill();
    let node = &mut cluster.nodes[2];
    fs::rename(&node.data, &newest).expect("rename");
    fs::rename(&snapshot, &node.data).expect("rename");
    let said = refusal(node);
    assert!(
        said.contains("is older than what peer") && said.contains("Empty the data directory"),
        "{said}"
    );
    fs::remove_dir_all(&node.data).expect("remove");
    fs::rename(&newest, &node.data).expect("rename");
    let left: Vec<&Node> = cluster.nodes[..2].iter().collect();
    stay_deleted(&left, "snapshot", KEYS);
}

/// Removed by force while it was dead, it comes back with keys that nobody else remembers.
fn a_node_that_was_removed(cluster: &mut Cluster) {
    let body = json!({ "changes": [{ "change": "remove", "node": "node-3" }] }).to_string();
    let request = Request::new("POST", "/ring/commit")
        .header("content-type", "application/json")
        .body(body);
    wait::until("node-3 to be removed", READY_MAX, || {
        match cluster.nodes[0].ask_admin(&request) {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(shown(other)),
        }
    });
    cluster.wait_members(2);
    let left: Vec<&Node> = cluster.nodes[..2].iter().collect();
    let before = all_collected(&left);
    for number in 0..KEYS {
        delete(&cluster.nodes[number % 2], &target("removed", number));
    }
    wait_collected(&left, &before);
    let said = refusal(&mut cluster.nodes[2]);
    assert!(said.contains("was removed from the ring"), "{said}");
    let left: Vec<&Node> = cluster.nodes[..2].iter().collect();
    stay_deleted(&left, "removed", KEYS);
}

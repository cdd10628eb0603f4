//! Forming a cluster by hand, restarting it, and refusing who does not belong to it.

use std::time::Duration;

use nix::sys::signal::Signal;
use torc_e2e::cluster::{Cluster, Formation, Node, Options, READY_MAX, REQUEST_MAX, shown};
use torc_e2e::http::{Connection, Request};
use torc_e2e::{alone, wait};

/// Longer than a node that cannot join may take to say so.
const REFUSED_MAX: Duration = Duration::from_secs(30);

fn key(writer: usize) -> String {
    format!("/kv/default/written-on-{writer}")
}

fn every_key_is_on_every_node(cluster: &Cluster) {
    for writer in 0..cluster.nodes.len() {
        for reader in &cluster.nodes {
            let value = reader.get(&key(writer)).unwrap_or_default();
            let expected = format!("value of {writer}").into_bytes();
            assert_eq!(value, expected, "{} on {}", key(writer), reader.name);
        }
    }
}

#[test]
fn three_nodes_by_hand_serve_every_key_and_come_back_without_being_told_how() {
    let _alone = alone();
    let mut cluster = Cluster::start(3, Options::default());
    for (writer, node) in cluster.nodes.iter().enumerate() {
        node.put(&key(writer), format!("value of {writer}"));
    }
    every_key_is_on_every_node(&cluster);

    // A restart of one, then of all: the data folder knows the cluster.
    cluster.nodes[1].stop();
    cluster.nodes[1].start(&Formation::Known);
    cluster.wait_members(3);
    every_key_is_on_every_node(&cluster);
    for node in &mut cluster.nodes {
        node.stop();
    }
    cluster.restart_all();
    every_key_is_on_every_node(&cluster);

    let deleted = cluster.nodes[2].ask(&Request::delete(&key(0)));
    assert!(
        matches!(&deleted, Ok(answer) if answer.status == 204),
        "{}",
        shown(deleted)
    );
    for node in &cluster.nodes {
        assert_eq!(
            node.get(&key(0)),
            None,
            "deleted, but still on {}",
            node.name
        );
    }

    // `--bootstrap` on a used data folder would make a second cluster with the first one's data.
    cluster.nodes[0].stop();
    let log = refusal(&mut cluster, 0, &Formation::Bootstrap);
    assert!(
        log.to_lowercase().contains("bootstrap"),
        "does not say why: {log}"
    );
    cluster.nodes[0].start(&Formation::Known);
    assert_eq!(
        cluster.nodes[0].get(&key(1)).as_deref(),
        Some(&b"value of 1"[..])
    );
}

/// Starts a node that must refuse; answers with what it said.
#[track_caller]
fn refusal(cluster: &mut Cluster, node: usize, formation: &Formation) -> String {
    let node = &mut cluster.nodes[node];
    let before = node.log().len();
    node.launch(formation);
    let status = node.wait_exit(REFUSED_MAX);
    let said = node.log_since(before);
    assert!(
        !status.success(),
        "{} ended with success: {said}",
        node.name
    );
    assert!(!said.contains("panicked"), "{} panicked: {said}", node.name);
    said
}

#[test]
fn a_node_is_stopped_in_order_while_a_request_is_under_way() {
    let _alone = alone();
    let mut cluster = Cluster::start(3, Options::default());
    let node = &cluster.nodes[2];
    let mut slow = Connection::open(node.http, REQUEST_MAX).expect("connect");
    slow.send(b"PUT /kv/default/slow HTTP/1.1\r\nhost: t\r\ncontent-length: 10\r\n\r\n01234")
        .expect("send the first half");
    // An answer on another connection proves that the node has had time to read the first half.
    node.put("/kv/default/other", "x");
    node.signal(Signal::SIGTERM);
    wait::until(
        "the stopping node to accept no more",
        READY_MAX,
        || match Connection::open(node.http, REQUEST_MAX) {
            Err(_) => Ok(()),
            Ok(_) => Err("it accepts"),
        },
    );
    slow.send(b"56789").expect("send the second half");
    let answer = slow
        .receive(false, REQUEST_MAX)
        .expect("an answer to what was under way");
    assert_eq!(answer.status, 204, "{}", answer.text());
    let status = cluster.nodes[2].wait_exit(torc_e2e::cluster::STOP_MAX);
    assert!(status.success(), "ended with {status}");
    assert_eq!(
        cluster.nodes[0].get("/kv/default/slow").as_deref(),
        Some(&b"0123456789"[..])
    );
}

#[test]
fn a_node_that_joins_a_cluster_with_keys_has_them_before_the_other_may_die() {
    let _alone = alone();
    let mut cluster = Cluster::start(1, Options::default());
    let keys = (0..50).map(|n| format!("/kv/default/k{n}"));
    let keys: Vec<String> = keys.collect();
    for key in &keys {
        cluster.nodes[0].put(key, key.as_str());
    }
    let address = cluster.nodes[0].peer;
    cluster.add().start(&Formation::Join(vec![address]));
    cluster.wait_members(2);
    cluster.nodes[0].kill();
    for key in &keys {
        let own = cluster.nodes[1].get(&format!("{key}?r=one"));
        assert_eq!(own.as_deref(), Some(key.as_bytes()), "{key}");
    }
}

/// Starts a node that gets nowhere with its join: it may end or go on trying, but it says why and
/// never becomes part of that cluster.
#[track_caller]
fn gets_nowhere(cluster: &mut Cluster, formation: &Formation, why: &str) {
    let node = &mut cluster.nodes[0];
    let before = node.log().len();
    node.launch(formation);
    says(node, before, why);
    let members = node.members().unwrap_or_default();
    assert!(members.len() <= 1, "{} has got in: {members:?}", node.name);
    node.kill();
    let said = node.log_since(before);
    assert!(!said.contains("panicked"), "{} panicked: {said}", node.name);
}

/// Waits for a node to log `why`, after the first `before` bytes of its log.
#[track_caller]
fn says(node: &Node, before: usize, why: &str) {
    wait::until(
        &format!("{} to say {why:?}", node.name),
        REFUSED_MAX,
        || {
            let said = node.log_since(before).to_lowercase();
            if said.contains(why) {
                Ok(())
            } else {
                Err(said)
            }
        },
    );
}

#[test]
fn a_node_of_another_cluster_is_refused_on_both_sides() {
    let _alone = alone();
    let mut cluster = Cluster::start(1, Options::default());
    let address = cluster.nodes[0].peer;

    // Another certificate authority: it does not get as far as saying who it is.
    let mut strangers = Cluster::empty(Options::default());
    strangers.add();
    let here_before = cluster.nodes[0].log().len();
    let log = refusal(&mut strangers, 0, &Formation::Join(vec![address]));
    assert!(log.contains("certificate"), "does not say why: {log}");
    says(&cluster.nodes[0], here_before, "certificate");

    // The same authority, but a cluster of its own.
    let mut others = Cluster::empty(Options::default());
    others.use_pki_of(&cluster);
    others.add_in("other-1", &others.folder().join("other-1"));
    others.nodes[0].start(&Formation::Bootstrap);
    others.nodes[0].stop();
    let here_before = cluster.nodes[0].log().len();
    gets_nowhere(&mut others, &Formation::Join(vec![address]), "cluster");
    says(&cluster.nodes[0], here_before, "different cluster");

    // Neither harmed the cluster, and the other one still has its own.
    assert_eq!(cluster.nodes[0].members().expect("members").len(), 1);
    cluster.nodes[0].put("/kv/default/k", "v");
    others.nodes[0].start(&Formation::Known);
    cluster.nodes[0].stop();
}

//! Copies become equal in the background: no read, no hint.

use torc_e2e::cluster::{Cluster, Formation, Node, Options, READY_MAX, shown};
use torc_e2e::http::Request;
use torc_e2e::{alone, wait};

const KEYS: usize = 120;

fn target(number: usize) -> String {
    format!("/kv/default/away-{number}")
}

/// What the node itself has of every key, without asking others.
#[track_caller]
fn wait_for_own_copies(node: &Node, expected: impl Fn(usize) -> Option<Vec<u8>>) {
    for number in 0..KEYS {
        let target = format!("{}?r=one", target(number));
        let expected = expected(number);
        wait::until(
            &format!("{target} on {}", node.name),
            READY_MAX,
            || match node.get(&target) {
                own if own == expected => Ok(()),
                own => Err(format!("{own:?} instead of {expected:?}")),
            },
        );
    }
}

#[test]
fn a_node_that_was_away_while_its_hints_were_dropped_catches_up_without_a_read() {
    let _alone = alone();
    let config = "[hints]\nbytes_per_target = \"0B\"\n\n[antientropy]\nage_target = \"5s\"\n";
    let mut cluster = Cluster::start(
        3,
        Options {
            config: Some(config.to_owned()),
            ..Options::default()
        },
    );
    for number in 0..KEYS {
        cluster.nodes[number % 3].put(&target(number), "old");
    }
    cluster.nodes[2].kill();
    for number in 0..KEYS {
        let node = &cluster.nodes[number % 2];
        if number % 5 == 0 {
            let deleted = node.ask(&Request::delete(&target(number)));
            assert!(
                matches!(&deleted, Ok(answer) if answer.status == 204),
                "{}",
                shown(deleted)
            );
        } else {
            node.put(&target(number), format!("new {number}"));
        }
    }
    for node in &cluster.nodes[..2] {
        node.wait_metric("torc_hints_dropped_total", &[], |dropped| dropped > 0.0);
    }
    cluster.nodes[2].start(&Formation::Known);
    // Nobody reads before the node has it all by itself.
    cluster.nodes[2].wait_metric("torc_antientropy_keys_repaired_total", &[], |keys| {
        keys >= KEYS as f64
    });
    wait_for_own_copies(&cluster.nodes[2], |number| {
        (number % 5 != 0).then(|| format!("new {number}").into_bytes())
    });
    for node in &cluster.nodes {
        node.wait_metric("torc_antientropy_doubts", &[], |doubts| doubts == 0.0);
    }

    // Once all have been compared, the age says so, and goes on saying so.
    let answer = cluster.nodes[0].ask_admin(&Request::new("POST", "/repair"));
    assert!(
        matches!(&answer, Ok(answer) if answer.status == 202),
        "{}",
        shown(answer)
    );
    wait::until("all pairs to be compared", READY_MAX, || {
        let answer = cluster.nodes[0].ask_admin(&Request::get("/repair"));
        let state = answer?.json();
        match (state["pairs"].as_u64(), state["doubts"].as_u64()) {
            (Some(pairs), Some(0)) if pairs > 0 => Ok(()),
            _ => Err(state.to_string()),
        }
    });
    for node in &cluster.nodes {
        node.wait_metric("torc_antientropy_age_seconds", &[], |age| age < 60.0);
    }
}

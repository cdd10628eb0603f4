//! Nodes die under load; nothing that was acknowledged is lost.

use std::time::Duration;

use torc_e2e::cluster::{Cluster, Formation, Node, Options, READY_MAX, shown};
use torc_e2e::http::Request;
use torc_e2e::linearize::check;
use torc_e2e::workload::{Load, Mix, Seen, is_long, seed};
use torc_e2e::{alone, history, wait};

/// After this long, a dead node must not make any request fail.
const PATIENCE: Duration = Duration::from_secs(5);

#[track_caller]
fn assert_linearizable(seen: &Seen, cluster: &Cluster) {
    match check(&seen.operations) {
        Ok(checked) => eprintln!("{checked:?}, {} requests failed", seen.failures_count),
        Err(violation) => {
            let path = cluster.folder().join("history.txt");
            let kept = history::dump(&seen.operations, &path);
            panic!(
                "{violation}\nthe whole history: {} ({kept:?})",
                path.display()
            );
        }
    }
}

fn wait_operations(load: &Load, more: usize) {
    let target = load.operations_so_far() + more;
    wait::until(
        &format!("{more} more operations"),
        READY_MAX,
        || match load.operations_so_far() {
            now if now >= target => Ok(()),
            now => Err(format!("{now} of {target}")),
        },
    );
}

fn wait_until_ns(load: &Load, end: u64) {
    let allowed = Duration::from_nanos(end) + READY_MAX;
    wait::until("the observation time to pass", allowed, || {
        if load.now_ns() >= end {
            Ok(())
        } else {
            Err("not yet")
        }
    });
}

/// How the third node goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Away {
    Killed,
    Paused,
}

#[test]
fn a_node_killed_under_load_fails_no_request_after_the_patience_and_catches_up() {
    away_under_load(Away::Killed);
}

#[test]
fn a_node_paused_under_load_fails_no_request_after_the_patience_and_catches_up() {
    away_under_load(Away::Paused);
}

fn away_under_load(away: Away) {
    let _alone = alone();
    let mut cluster = Cluster::start(3, Options::default());
    let survivors = cluster.addresses()[..2].to_vec();
    let mix = Mix {
        clients: 8,
        keys: 40,
        pace: Duration::from_millis(2),
        ..Mix::default()
    };
    let load = Load::start(&survivors, &mix, seed());
    wait_operations(&load, 500);
    let failed_before = load.failures_so_far();
    assert_eq!(
        failed_before, 0,
        "requests failed while all nodes were well"
    );

    let gone_ns = load.now_ns();
    match away {
        Away::Killed => cluster.nodes[2].kill(),
        Away::Paused => cluster.nodes[2].pause(),
    }
    let patient_ns = gone_ns + PATIENCE.as_nanos() as u64;
    wait_until_ns(&load, patient_ns);
    all_three_are_refused(&cluster.nodes[0]);
    wait_operations(&load, 500);
    for node in &cluster.nodes[..2] {
        node.wait_metric("torc_hints_waiting", &[], |waiting| waiting > 0.0);
    }

    match away {
        Away::Killed => cluster.nodes[2].start(&Formation::Known),
        Away::Paused => cluster.nodes[2].resume(),
    }
    for node in &cluster.nodes[..2] {
        node.wait_metric("torc_hints_waiting", &[], |waiting| waiting == 0.0);
    }
    wait_operations(&load, 200);
    let seen = load.finish_reading(&cluster.addresses());
    for node in &cluster.nodes[..2] {
        the_books_balance(node);
    }
    let late: Vec<_> = seen
        .failures
        .iter()
        .filter(|one| one.invoked_ns > patient_ns)
        .collect();
    assert!(
        late.is_empty(),
        "failed after the patience ({patient_ns} ns): {late:#?}"
    );
    eprintln!(
        "{} of {} failed within the patience",
        seen.failures_count,
        seen.operations.len()
    );
    assert_linearizable(&seen, &cluster);
    the_third_has_the_newest(&cluster, &mix);
}

/// Hints stored = delivered + dropped + waiting, on a node that was not restarted meanwhile.
#[track_caller]
fn the_books_balance(node: &Node) {
    let count = |name: &str| node.metric(name, &[]).map(Option::unwrap_or_default);
    wait::until(
        &format!("the hints of {} to add up", node.name),
        READY_MAX,
        || {
            let stored = count("torc_hints_stored_total")?;
            let delivered = count("torc_hints_delivered_total")?;
            let dropped = count("torc_hints_dropped_total")?;
            let waiting = count("torc_hints_waiting")?;
            if stored > 0.0 && (stored - delivered - dropped - waiting).abs() < 0.5 {
                return Ok(());
            }
            Err(format!(
                "{stored} stored, {delivered} delivered, {dropped} dropped, {waiting} waiting"
            ))
        },
    );
}

#[test]
fn hints_survive_the_death_of_those_that_keep_them() {
    let _alone = alone();
    let mut cluster = Cluster::start(3, Options::default());
    let target = |number: usize| format!("/kv/default/hinted-{number}");
    for number in 0..50 {
        cluster.nodes[number % 3].put(&target(number), "old");
    }
    cluster.nodes[2].kill();
    for number in 0..50 {
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
    // A write is acknowledged before the replica that misses it is given up; only what is a hint by
    // now can survive as one.
    for node in &cluster.nodes[..2] {
        node.wait_metric("torc_hints_waiting", &[], |waiting| waiting >= 25.0);
    }
    cluster.kill_all();
    cluster.restart_all();
    for number in 0..50 {
        let target = format!("{}?r=one", target(number));
        let expected = (number % 5 != 0).then(|| format!("new {number}").into_bytes());
        wait::until(
            &format!("the hint for {target}"),
            READY_MAX,
            || match cluster.nodes[2].get(&target) {
                own if own == expected => Ok(()),
                own => Err(format!("{own:?} instead of {expected:?}")),
            },
        );
    }
    for node in &cluster.nodes[..2] {
        node.wait_metric("torc_hints_waiting", &[], |waiting| waiting == 0.0);
    }
}

#[track_caller]
fn all_three_are_refused(node: &Node) {
    for request in [
        Request::put("/kv/default/all?w=all", "x"),
        Request::delete("/kv/default/all?w=all"),
        Request::get("/kv/default/all?r=all"),
    ] {
        let asked = format!("{} with one node dead", request.method());
        let answer = node
            .ask(&request)
            .unwrap_or_else(|error| panic!("{asked}: {error}"));
        assert_eq!(answer.status, 503, "{asked}: {}", answer.text());
        let problem = answer
            .check_problem()
            .unwrap_or_else(|wrong| panic!("{asked}: {wrong}"));
        assert_eq!(problem["required"].as_u64(), Some(3), "{asked}: {problem}");
        assert_eq!(problem["received"].as_u64(), Some(2), "{asked}: {problem}");
        if request.method() != "GET" {
            let outcome = problem["outcome"].as_str().unwrap_or_default();
            assert!(
                ["unknown", "not-written"].contains(&outcome),
                "{asked}: {problem}"
            );
        }
        // What the node calls "not written" is not there.
        if request.method() == "PUT" && problem["outcome"] == "not-written" {
            assert_eq!(
                node.get("/kv/default/all?r=quorum"),
                None,
                "{asked}: {problem}"
            );
        }
    }
}

/// Asks only the node that was away.
#[track_caller]
fn the_third_has_the_newest(cluster: &Cluster, mix: &Mix) {
    for key in mix.keys() {
        let newest = cluster.nodes[0].get(&format!("/kv/default/{key}?r=all"));
        let own = cluster.nodes[2].get(&format!("/kv/default/{key}?r=one"));
        assert_eq!(own, newest, "{key} on the node that came back");
    }
}

#[test]
fn every_acknowledged_write_survives_the_death_of_all_nodes() {
    let _alone = alone();
    let rounds = if is_long() { 100 } else { 10 };
    let mut cluster = Cluster::start(
        3,
        Options {
            durability: "fsync",
            ..Options::default()
        },
    );
    let mix = Mix {
        clients: 8,
        keys: 24,
        puts: 70,
        deletes: 5,
        ..Mix::default()
    };
    let load = Load::start(&cluster.addresses(), &mix, seed());
    for round in 1..=rounds {
        let before = load.operations_so_far() - load.failures_so_far();
        wait::until("200 operations to succeed", READY_MAX, || {
            match load.operations_so_far() - load.failures_so_far() - before {
                now if now >= 200 => Ok(()),
                now => Err(format!("{now} in round {round}")),
            }
        });
        cluster.kill_all();
        cluster.restart_all();
    }
    let seen = load.finish_reading(&cluster.addresses());
    assert_linearizable(&seen, &cluster);
}

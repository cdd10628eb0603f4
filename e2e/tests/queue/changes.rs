//! The change feed: every applied change is told at least once, whatever is away meanwhile.

use torc_e2e::cluster::{Cluster, Formation};
use torc_e2e::http::Request;
use torc_e2e::services::rabbit::Rabbit;
use torc_e2e::{alone, wait};

use crate::support::{SOON, config, listen, options, wait_connected};

#[test]
fn every_applied_change_is_told_though_broker_and_nodes_are_away_meanwhile() {
    let _alone = alone();
    let mut rabbit = Rabbit::start(1);
    let config = config(&rabbit, "changes = true");
    let mut cluster = Cluster::start(3, options(&config));
    cluster.nodes.iter().for_each(wait_connected);
    let heard = listen(rabbit.addresses()[0], "default.#");

    // What is told, and under which name.
    let put = cluster.nodes[0].put("/kv/default/k%2e1?ttl=1h", "value");
    let etag = put.header("etag").unwrap_or("?").to_owned();
    let versions = heard.wait_versions("k.1", 1);
    assert!(versions.contains(&etag), "{versions:?} has no {etag}");
    let event = heard.events("k.1")[0].clone();
    assert_eq!(event["op"], "put");
    assert_eq!(event["bucket"], "default");
    assert_eq!(event["length"], 5);
    assert!(event["expires_us"].is_u64(), "{event}");
    let deletion = cluster.nodes[1].ask(&Request::delete("/kv/default/k%2e1"));
    assert_eq!(deletion.map(|answer| answer.status), Ok(204));
    heard.wait_versions("k.1", 2);
    assert!(
        heard
            .events("k.1")
            .iter()
            .any(|event| event["op"] == "delete")
    );

    // The broker is away: writes go on, and are told when it is back, also by nodes that were killed.
    rabbit.stop(0);
    let mut written = Vec::new();
    for number in 0..60 {
        let node = &cluster.nodes[number % 3];
        let put = node.put(&format!("/kv/default/away-{number}"), "x");
        written.push((number, put.header("etag").unwrap_or("?").to_owned()));
    }
    cluster.kill_all();
    cluster.restart_all();
    rabbit.restart(0);
    for (number, etag) in &written {
        let versions = heard.wait_versions(&format!("away-{number}"), 1);
        assert_eq!(versions.len(), 1, "one write, one version: {versions:?}");
        assert!(versions.contains(etag), "{versions:?} has no {etag}");
    }

    // A node that stays away: the others tell of what it should have told.
    cluster.nodes[2].kill();
    for number in 0..30 {
        cluster.nodes[number % 2].put(&format!("/kv/default/without-{number}"), "x");
    }
    for number in 0..30 {
        heard.wait_versions(&format!("without-{number}"), 1);
    }
    cluster.nodes[2].start(&Formation::Known);
    cluster.wait_members(3);
    // In the end nobody keeps a note.
    for node in &cluster.nodes {
        wait::until("no note to wait", SOON, || {
            match node.metric("torc_changes_waiting", &[])? {
                Some(waiting) if waiting < 0.5 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
}

#[test]
fn changes_beyond_the_bound_are_counted_and_told_as_a_gap() {
    let _alone = alone();
    let mut rabbit = Rabbit::start(1);
    let config = config(&rabbit, "changes = true\nchanges_max = 10");
    let cluster = Cluster::start(1, options(&config));
    let node = &cluster.nodes[0];
    wait_connected(node);
    let heard = listen(rabbit.addresses()[0], "#");
    rabbit.stop(0);
    wait::until("the loss to be seen", SOON, || {
        match node.metric("torc_queue_connected", &[])? {
            Some(connected) if connected < 0.5 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    for number in 0..25 {
        node.put(&format!("/kv/default/many-{number}"), "x");
    }
    let dropped = node.metric("torc_changes_total", &[("result", "dropped")]);
    assert_eq!(dropped, Ok(Some(15.0)));
    assert!(node.log().contains("changes are not noted"), "it is said");
    rabbit.restart(0);
    let gap = wait::until("the gap", SOON, || {
        // It is of no key.
        heard.events("?").first().cloned().ok_or("nothing")
    });
    assert_eq!((&gap["op"], &gap["dropped"]), (&"gap".into(), &15.into()));
    for number in 0..10 {
        heard.wait_versions(&format!("many-{number}"), 1);
    }
    // There is room again.
    node.put("/kv/default/later", "x");
    heard.wait_versions("later", 1);
}

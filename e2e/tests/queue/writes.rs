//! Asynchronous writes: accepted once, applied once in effect, whatever happens to broker and workers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use torc_e2e::cluster::{Cluster, Formation, Node, REQUEST_MAX};
use torc_e2e::http::{self, Request};
use torc_e2e::services::beside::Worker;
use torc_e2e::services::rabbit::Rabbit;
use torc_e2e::{alone, wait};

use crate::support::{
    SOON, config, location, options, publish, put_async, state, wait_connected, wait_drained,
    wait_state,
};

#[test]
fn a_queued_write_is_applied_by_a_worker_and_every_node_says_so() {
    let _alone = alone();
    let mut rabbit = Rabbit::start(1);
    let config = config(&rabbit, "");
    let mut cluster = Cluster::start(3, options(&config));
    cluster.nodes.iter().for_each(wait_connected);
    let [one, two, three] = &cluster.nodes[..] else {
        unreachable!("three nodes")
    };

    // Accepted while no worker is there: pending, on every node.
    let request = put_async("/kv/default/k?ttl=1h", "v").header("content-type", "text/x-test");
    let accepted = one.ask(&request).unwrap_or_else(|error| panic!("{error}"));
    let at = location(&accepted).unwrap_or_else(|| panic!("{accepted:?}"));
    assert_eq!(accepted.header("preference-applied"), Some("respond-async"));
    for node in &cluster.nodes {
        assert_eq!(state(node, &at)["state"], "pending");
        assert_eq!(node.get("/kv/default/k"), None, "nothing is stored yet");
    }
    let worker = Worker::start(cluster.folder(), &config, &cluster.addresses(), &[]);
    let said = wait_state(two, &at, "applied");
    assert_eq!(
        (&said["superseded"], &said["key"]),
        (&false.into(), &"k".into())
    );
    let read = three.ask(&Request::get("/kv/default/k"));
    let read = read.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((read.status, read.text().as_str()), (200, "v"));
    assert_eq!(read.header("content-type"), Some("text/x-test"));
    assert_eq!(
        read.header("etag"),
        accepted.header("etag"),
        "the version of its acceptance"
    );

    // A deletion; an id that nobody has made; a write after the queued one orders after it.
    let deletion = Request::delete("/kv/default/k").header("prefer", "respond-async");
    let deleted = two.ask(&deletion).unwrap_or_else(|error| panic!("{error}"));
    let deleted = location(&deleted).unwrap_or_else(|| panic!("{deleted:?}"));
    wait_state(three, &deleted, "applied");
    assert_eq!(one.get("/kv/default/k"), None);
    assert_eq!(state(one, &at)["superseded"], true);
    for bad in ["/writes/AQAA", "/writes/%00", "/writes/"] {
        let answer = one
            .ask(&Request::get(bad))
            .unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(answer.status, 404, "{bad}");
        answer
            .check_problem()
            .unwrap_or_else(|error| panic!("{bad}: {error}"));
    }

    compatible_clients_go_through_the_queue(one, two);
    poison_goes_to_the_dead_letters(&rabbit, one, &worker);
    a_broker_that_is_away_harms_only_asynchronous_writes(&mut rabbit, &cluster);

    // States outlast every node; the broker's messages outlast the broker.
    let survivor = one
        .ask(&put_async("/kv/default/again", "1"))
        .unwrap_or_else(|error| panic!("{error}"));
    let survivor = location(&survivor).unwrap_or_else(|| panic!("{survivor:?}"));
    wait_state(one, &survivor, "applied");
    cluster.kill_all();
    cluster.restart_all();
    assert_eq!(state(&cluster.nodes[2], &survivor)["state"], "applied");
    worker_stops_in_order(worker);
}

fn compatible_clients_go_through_the_queue(one: &Node, two: &Node) {
    let body = r#"{"data":{"key":"old","value":"client"}}"#;
    let put = one
        .ask(&Request::put("/kv", body))
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        (put.status, put.text().as_str()),
        (202, r#"{"detail":"queued"}"#)
    );
    wait::until("the compatible write", SOON, || {
        let got = two.ask(&Request::get("/kv?key=old"))?;
        let expected = serde_json::json!({"data": {"value": "client", "source": "database"}});
        if got.json() == expected {
            Ok(())
        } else {
            Err(got.text())
        }
    });
    let delete = two
        .ask(&Request::delete("/kv?key=old"))
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        (delete.status, delete.text().as_str()),
        (202, r#"{"detail":"queued"}"#)
    );
    wait::until("the compatible deletion", SOON, || {
        let got = one.ask(&Request::get("/kv?key=old"))?;
        if got.status == 404 {
            Ok(())
        } else {
            Err(got.text())
        }
    });
    let gone = two
        .ask(&Request::delete("/kv?key=old"))
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        (gone.status, gone.text().as_str()),
        (404, r#"{"detail":"Key not found"}"#)
    );
    let bad = one
        .ask(&Request::put("/kv", r#"{"data":{"key":"k"}}"#))
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        (bad.status, bad.text().as_str()),
        (400, r#"{"detail":"key & value required"}"#)
    );
}

fn poison_goes_to_the_dead_letters(rabbit: &Rabbit, node: &Node, worker: &Worker) {
    let broker = rabbit.addresses()[0];
    for poison in [&b""[..], b"no queued write", &[1; 100]] {
        publish(broker, poison);
    }
    wait::until("dead letters", SOON, || {
        match node.metric("torc_queue_dead", &[])? {
            Some(dead) if dead >= 3.0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let poison = worker.metric("torc_worker_messages_total{result=\"poison\"}");
    assert_eq!(poison, 3, "each was tried once");
}

fn a_broker_that_is_away_harms_only_asynchronous_writes(rabbit: &mut Rabbit, cluster: &Cluster) {
    let node = &cluster.nodes[0];
    rabbit.stop(0);
    let refused = wait::until("the loss to be seen", SOON, || {
        let answer = node.ask(&put_async("/kv/default/away", "1"))?;
        let kind = answer.json()["type"].clone();
        if kind == "urn:torc:problem:queue-away" {
            Ok(answer)
        } else {
            Err(answer.text())
        }
    });
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    let document = refused.check_problem().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(document["outcome"], "not-written");
    let began = Instant::now();
    let compatible = node
        .ask(&Request::put("/kv", r#"{"data":{"key":"a","value":"b"}}"#))
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(compatible.status, 503);
    assert!(
        compatible.json()["detail"].is_string(),
        "{}",
        compatible.text()
    );
    assert!(
        began.elapsed() < REQUEST_MAX,
        "nobody waits for a broker that is away"
    );
    // All else is unharmed.
    node.put("/kv/default/direct", "1");
    assert_eq!(node.get("/kv/default/direct").as_deref(), Some(&b"1"[..]));
    let health = node
        .ask(&Request::get("/health"))
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(health.status, 200);
    assert_eq!(health.json()["components"]["queue"]["status"], "down");
    rabbit.restart(0);
    cluster.nodes.iter().for_each(wait_connected);
    wait::until("asynchronous writes again", SOON, || {
        let answer = node.ask(&put_async("/kv/default/back", "1"))?;
        if answer.status == 202 {
            Ok(())
        } else {
            Err(answer.text())
        }
    });
}

fn worker_stops_in_order(mut worker: Worker) {
    let live = http::send(worker.http, &Request::get("/health/live"), REQUEST_MAX);
    assert_eq!(live.map(|response| response.status).ok(), Some(200));
    let began = Instant::now();
    worker.service.stop();
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    assert!(worker.service.log_end().contains("stopped"));
}

#[test]
fn a_write_that_waited_too_long_is_reported_as_failed_and_goes_to_the_dead_letters() {
    let _alone = alone();
    let rabbit = Rabbit::start(1);
    let config = config(&rabbit, "lifetime = \"15s\"");
    let cluster = Cluster::start(1, options(&config));
    let node = &cluster.nodes[0];
    wait_connected(node);
    let accepted = node
        .ask(&put_async("/kv/default/late", "1"))
        .unwrap_or_else(|error| panic!("{error}"));
    let at = location(&accepted).unwrap_or_else(|| panic!("{accepted:?}"));
    // Nothing is known of it any more once its time is over and nobody has taken it.
    wait::until("the write's time to be over", SOON, || {
        let answer = node.ask(&Request::get(&at))?;
        if answer.status == 404 {
            Ok(())
        } else {
            Err(answer.text())
        }
    });
    let worker = Worker::start(cluster.folder(), &config, &cluster.addresses(), &[]);
    let said = wait_state(node, &at, "failed");
    let reason = said["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("accepted more than"), "{said}");
    assert_eq!(node.get("/kv/default/late"), None);
    wait::until("the dead letter", SOON, || {
        match node.metric("torc_queue_dead", &[])? {
            Some(dead) if dead >= 1.0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    assert_eq!(
        worker.metric("torc_worker_messages_total{result=\"failed\"}"),
        1
    );
}

/// What writers know of their writes.
#[derive(Default)]
struct Made {
    /// Every accepted write: its key, the number that it writes, its tag.
    accepted: BTreeMap<(usize, u32), String>,
    /// Writes whose outcome is unknown: they may have been accepted all the same.
    unknown: BTreeSet<(usize, u32)>,
}

/// Writes numbers to keys of its own until `count` writes are accepted, each number once.
fn write_all(nodes: &[SocketAddr], writer: usize, count: u32) -> Made {
    let mut made = Made::default();
    let mut clients: Vec<_> = nodes
        .iter()
        .map(|&node| http::Client::new(node, REQUEST_MAX * 4))
        .collect();
    let (mut number, mut failures) = (0_u32, 0_u32);
    while made.accepted.len() < count as usize {
        number += 1;
        let key = writer * 1_000_000 + (number % 100) as usize;
        let request = put_async(&format!("/kv/default/w{key}"), number.to_string());
        let at = number as usize % clients.len();
        match clients[at].send(&request) {
            Ok(answer) if answer.status == 202 => {
                let etag = answer.header("etag").unwrap_or("?").to_owned();
                made.accepted.insert((key, number), etag);
                continue;
            }
            Ok(answer) => {
                assert_eq!(answer.status, 503, "{}", answer.text());
                assert!(answer.header("retry-after").is_some(), "{answer:?}");
                if answer.json()["outcome"] != "not-written" {
                    made.unknown.insert((key, number));
                }
            }
            Err(error) => {
                eprintln!("writer {writer}: {error}");
                made.unknown.insert((key, number));
            }
        }
        failures += 1;
        assert!(
            failures < 5_000,
            "writer {writer} gets nothing accepted any more"
        );
        thread::sleep(Duration::from_millis(50));
    }
    made
}

/// How many writes: a few for every run, very many when there is time (`TORC_LONG=1`).
fn count() -> u32 {
    if std::env::var_os("TORC_LONG").is_some() {
        100_000
    } else {
        1_200
    }
}

/// Clients that write at a time.
const WRITERS: usize = 4;

#[test]
fn every_accepted_write_is_applied_once_in_effect_whatever_happens_to_worker_and_broker() {
    let _alone = alone();
    let each = count() / WRITERS as u32;
    let mut rabbit = Rabbit::start(1);
    let config = config(&rabbit, "");
    let mut cluster = Cluster::start(3, options(&config));
    cluster.nodes.iter().for_each(wait_connected);
    let nodes = cluster.addresses();
    let mut worker = Worker::start(cluster.folder(), &config, &nodes, &["--prefetch", "32"]);
    let began = Instant::now();
    let made = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let nodes = &nodes;
                scope.spawn(move || write_all(nodes, writer, each))
            })
            .collect();
        let waited = |count: f64| {
            wait::until("writes to be applied", SOON, || {
                let labels = [("op", "store"), ("outcome", "ok")];
                let mut sum = 0.0;
                for node in cluster.nodes.iter().filter(|node| node.is_launched()) {
                    sum += node
                        .metric("torc_coordinator_ops_total", &labels)?
                        .unwrap_or(0.0);
                }
                if sum >= count {
                    Ok(())
                } else {
                    Err(sum.to_string())
                }
            });
        };
        // In the middle of it: a worker is killed with messages in work, then the broker restarts.
        waited(f64::from(count()) * 0.1);
        worker.service.kill();
        worker = Worker::start(cluster.folder(), &config, &nodes, &["--prefetch", "32"]);
        waited(f64::from(count()) * 0.3);
        rabbit.stop(0);
        rabbit.restart(0);
        let mut all = Made::default();
        for writer in writers {
            let made = writer.join().unwrap_or_else(|_| panic!("a writer failed"));
            all.accepted.extend(made.accepted);
            all.unknown.extend(made.unknown);
        }
        all
    });
    let Made { accepted, unknown } = made;
    let taken = began.elapsed();
    // And a node, after the writes were accepted.
    cluster.nodes[2].kill();
    wait_drained(&cluster.nodes[0]);
    cluster.nodes[2].start(&Formation::Known);
    cluster.wait_members(3);
    wait_drained(&cluster.nodes[0]);
    assert_eq!(accepted.len(), WRITERS * each as usize);
    eprintln!(
        "{} writes accepted in {taken:?}, all applied after {:?}",
        accepted.len(),
        began.elapsed()
    );
    // Of each key the newest version is there: the version of an acceptance, not one of an application.
    let mut newest: BTreeMap<usize, (&String, u32)> = BTreeMap::new();
    for ((key, number), etag) in &accepted {
        let entry = newest.entry(*key).or_insert((etag, *number));
        if etag > entry.0 {
            *entry = (etag, *number);
        }
    }
    for (at, (key, (etag, number))) in newest.iter().enumerate() {
        let node = &cluster.nodes[at % 3];
        wait::until("the newest version", SOON, || {
            let read = node.ask(&Request::get(&format!("/kv/default/w{key}")))?;
            let found = read.text().parse::<u32>().unwrap_or_default();
            let expected = read.header("etag") == Some(etag) && found == *number;
            // One whose outcome was unknown may be newer than all that were accepted.
            if expected || unknown.contains(&(*key, found)) {
                Ok(())
            } else {
                Err(format!("{read:?}, wanted {etag}"))
            }
        });
    }
    let buried = cluster.nodes[0].metric("torc_queue_dead", &[]);
    assert_eq!(buried, Ok(Some(0.0)), "nothing was given up");
    assert_eq!(
        worker.metric("torc_worker_messages_total{result=\"failed\"}"),
        0
    );
}

#[test]
fn a_queue_of_three_brokers_goes_on_when_one_is_killed() {
    let _alone = alone();
    let mut rabbit = Rabbit::start(3);
    let config = config(&rabbit, "");
    let cluster = Cluster::start(1, options(&config));
    let node = &cluster.nodes[0];
    wait_connected(node);
    let worker = Worker::start(cluster.folder(), &config, &cluster.addresses(), &[]);
    let nodes = cluster.addresses();
    let before = write_all(&nodes, 0, 50).accepted;
    rabbit.kill(0);
    let after = write_all(&nodes, 1, 50).accepted;
    worker.wait_ready();
    for ((key, number), etag) in before.iter().chain(&after) {
        // Each key was written once: 50 numbers are 50 keys.
        wait::until(&format!("w{key}"), SOON, || {
            let read = node.ask(&Request::get(&format!("/kv/default/w{key}")))?;
            let same = read.header("etag") == Some(etag) && read.text() == number.to_string();
            let newer = read
                .text()
                .parse::<u32>()
                .is_ok_and(|found| found > *number);
            if same || newer {
                Ok(())
            } else {
                Err(format!("{read:?}"))
            }
        });
    }
    rabbit.restart(0);
    let last = write_all(&nodes, 2, 20).accepted;
    wait::until("the last writes", SOON, || {
        let missing = last
            .keys()
            .find(|(key, _)| node.get(&format!("/kv/default/w{key}")).is_none());
        missing.map_or(Ok(()), |(key, _)| Err(format!("w{key}")))
    });
}

//! The read cache on real Redis servers and sentinels: what it may answer, how old, and that nobody
//! notices when it is away.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use torc_e2e::cluster::{Cluster, Formation, Node, Options, REQUEST_MAX};
use torc_e2e::http::{self, Request};
use torc_e2e::services::redis::{Redis, Sentinels};
use torc_e2e::{alone, wait};

const SOON: Duration = Duration::from_secs(60);

fn folder() -> TempDir {
    TempDir::with_prefix("torc-redis-").unwrap_or_else(|error| panic!("make a folder: {error}"))
}

/// Options of nodes that use this Redis.
fn with(lines: &str) -> Options {
    Options {
        config: Some(format!("[cache]\n{lines}\n")),
        ..Options::default()
    }
}

fn wait_connected(node: &Node) {
    node.wait_metric("torc_cache_connected", &[], |connected| connected > 0.0);
}

fn requests(node: &Node, result: &str) -> u64 {
    let labels = [("result", result)];
    node.metric("torc_cache_requests_total", &labels)
        .unwrap_or_else(|error| panic!("{error}"))
        .map_or(0, |count| count as u64)
}

/// Value and source as the older service's clients see them; `None` for 404.
#[track_caller]
fn compatible(node: &Node, key: &str) -> Option<(String, String)> {
    let response = node
        .ask(&Request::get(&format!("/kv?key={key}")))
        .unwrap_or_else(|error| panic!("{error}"));
    if response.status == 404 {
        return None;
    }
    let data = &response.json()["data"];
    let text = |name: &str| data[name].as_str().unwrap_or("?").to_owned();
    Some((text("value"), text("source")))
}

#[test]
fn the_cache_answers_what_may_be_cached_and_nothing_else() {
    let _alone = alone();
    let folder = folder();
    let redis = Redis::start(folder.path(), None);
    let address = redis.address;
    let cluster = Cluster::start(
        1,
        with(&format!(
            "redis = \"{address}\"\nttl = \"1h\"\nbudget = \"1s\"\nkeys = 20\nvalue_bytes = \"1KiB\""
        )),
    );
    let node = &cluster.nodes[0];
    wait_connected(node);

    // Written through: the first read finds it already.
    node.put("/kv/default/a", "one");
    assert_eq!(
        node.get("/kv/default/a?r=one").as_deref(),
        Some(&b"one"[..])
    );
    assert_eq!(compatible(node, "a"), Some(("one".into(), "cache".into())));
    assert_eq!(requests(node, "hit"), 2);

    // A quorum read never touches it, not even where one replica is the quorum.
    for target in [
        "/kv/default/a",
        "/kv/default/a?r=quorum",
        "/kv/default/a?r=all",
    ] {
        assert_eq!(node.get(target).as_deref(), Some(&b"one"[..]), "{target}");
    }
    assert_eq!((requests(node, "hit"), requests(node, "miss")), (2, 0));

    // Overwritten and deleted.
    node.put("/kv/default/a", "two");
    assert_eq!(
        node.get("/kv/default/a?r=one").as_deref(),
        Some(&b"two"[..])
    );
    let deleted = node.ask(&Request::delete("/kv/default/a"));
    assert_eq!(deleted.map(|response| response.status), Ok(204));
    assert_eq!(node.get("/kv/default/a?r=one"), None);
    assert_eq!(compatible(node, "a"), None);

    // What the cache has lost is read from the store, and kept again.
    node.put("/kv/default/b", "three");
    redis.ask(&["FLUSHALL"]);
    assert_eq!(
        compatible(node, "b"),
        Some(("three".into(), "database".into()))
    );
    wait::until("a read to fill the cache", SOON, || {
        match compatible(node, "b") {
            Some((_, source)) if source == "cache" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });

    // Capped in keys and in the size of a value; a large value ends what was cached.
    for number in 0..100 {
        node.put(&format!("/kv/default/many-{number}"), "x");
    }
    let size = redis.ask(&["DBSIZE"]);
    let keys: u64 = size.trim().trim_start_matches(':').parse().unwrap_or(99);
    assert!((1..=20).contains(&keys), "{size}");
    node.put("/kv/default/b", vec![b'y'; 2_000]);
    let (value, source) = compatible(node, "b").unwrap_or_default();
    assert_eq!((value.len(), source.as_str()), (2_000, "database"));

    let stats = node.ask(&Request::get("/cache/stats"));
    let stats = stats.unwrap_or_else(|error| panic!("{error}")).json();
    assert_eq!(stats["max_keys_limit"], 20);
    assert!(stats["hits"].as_u64() >= Some(4), "{stats}");
    assert!(stats["misses"].as_u64() >= Some(1), "{stats}");
    wait::until("figures of the cache", SOON, || {
        let response = node.ask(&Request::get("/cache/stats"))?;
        let stats = response.json();
        let counted = stats["keys_count"].as_u64() > Some(0);
        let weighed = stats["memory_used_bytes"].as_u64() > Some(0);
        if counted && weighed {
            Ok(())
        } else {
            Err(stats.to_string())
        }
    });
}

/// Greatest age of what that test's cache may answer.
const TTL: Duration = Duration::from_secs(2);

#[test]
fn nothing_is_older_than_the_cache_may_be() {
    let _alone = alone();
    let folder = folder();
    let redis = Redis::start(folder.path(), None);
    let config = format!(
        "redis = \"{}\"\nttl = \"2s\"\nbudget = \"1s\"\nbuckets = [\"default\"]",
        redis.address
    );
    let mut cluster = Cluster::empty(with(&config));
    cluster.add().start(&Formation::Bootstrap);
    let peer = cluster.nodes[0].peer;
    // A node without the cache: its writes do not reach it.
    let apart = cluster.add();
    apart.options = Options::default();
    apart.start(&Formation::Join(vec![peer]));
    cluster.wait_members(2);
    let (cached, apart) = (&cluster.nodes[0], &cluster.nodes[1]);
    wait_connected(cached);

    let mut hits = 0;
    for round in 0..3 {
        cached.put("/kv/default/k", format!("old {round}"));
        let (_, source) = compatible(cached, "k").unwrap_or_default();
        hits += u32::from(source == "cache");
        apart.put("/kv/default/k", format!("new {round}"));
        let written = Instant::now();
        let wanted = format!("new {round}").into_bytes();
        loop {
            let began = written.elapsed();
            let value = cached.get("/kv/default/k").unwrap_or_default();
            if value == wanted {
                break;
            }
            assert!(
                began < TTL,
                "{:?} after {began:?}",
                String::from_utf8_lossy(&value)
            );
            // A read at a quorum has seen it all along.
            let sure = cached.get("/kv/default/k?r=quorum").unwrap_or_default();
            assert_eq!(sure, wanted);
        }
    }
    assert!(hits > 0, "the cache was never used");
}

#[test]
fn a_redis_that_is_down_or_stands_still_is_not_noticed() {
    let _alone = alone();
    let folder = folder();
    let mut redis = Redis::start(folder.path(), None);
    let address = redis.address;
    let cluster = Cluster::start(1, with(&format!("redis = \"{address}\"\nttl = \"1h\"")));
    let node = &cluster.nodes[0];
    wait_connected(node);
    let serves = |value: &str| {
        node.put("/kv/default/k", value);
        for _ in 0..50 {
            let read = node.get("/kv/default/k?r=one").unwrap_or_default();
            assert_eq!(String::from_utf8_lossy(&read), value);
        }
    };
    let component = || {
        let response = node.ask(&Request::get("/health"))?;
        assert_eq!(response.status, 200, "a node without its cache serves");
        let status = response.json()["components"]["cache"]["status"].clone();
        Ok::<_, String>(status.as_str().unwrap_or("?").to_owned())
    };
    let wait_for = |wanted: &str| {
        wait::until(&format!("the cache to be {wanted}"), SOON, || {
            let seen = component()?;
            if seen == wanted { Ok(()) } else { Err(seen) }
        });
    };
    serves("there");

    redis.service.signal(Signal::SIGSTOP);
    serves("standing still");
    assert!(requests(node, "bypassed") > 0);
    wait_for("down");
    serves("still standing still");
    redis.service.signal(Signal::SIGCONT);
    wait_for("ok");
    // What it was told while it stood still must not come back from it as the newest.
    serves("going on");

    redis.service.kill();
    serves("down");
    wait_for("down");
    redis = Redis::start_at(folder.path(), address, None);
    wait_for("ok");
    serves("back");
    let hits = requests(node, "hit");
    wait::until("the cache to be used again", SOON, || {
        serves("again");
        let now = requests(node, "hit");
        if now > hits { Ok(()) } else { Err(now) }
    });
    drop(redis);
}

/// Ends the load, also when the test fails: the scope waits for it.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_failover_of_the_master_under_load_fails_no_request() {
    let _alone = alone();
    let folder = folder();
    let mut redis = Sentinels::start(folder.path());
    let config = format!("{}ttl = \"5s\"", redis.config());
    let cluster = Cluster::start(3, with(&config));
    cluster.nodes.iter().for_each(wait_connected);
    let old = redis.master_port();

    let stop = AtomicBool::new(false);
    let (done, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let hits = || -> u64 { cluster.nodes.iter().map(|node| requests(node, "hit")).sum() };
    let after = thread::scope(|scope| {
        let _stops = StopAtEnd(&stop);
        for (at, node) in cluster.nodes.iter().enumerate() {
            let (stop, done, failed, address) = (&stop, &done, &failed, node.http);
            scope.spawn(move || {
                let mut number = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    let target = format!("/kv/default/{at}-{}", number / 5 % 10);
                    let request = if number.is_multiple_of(5) {
                        Request::put(&target, number.to_string())
                    } else {
                        Request::get(&format!("{target}?r=one"))
                    };
                    let status = http::send(address, &request, REQUEST_MAX * 4)
                        .map(|response| response.status);
                    if !matches!(status, Ok(200 | 204 | 404)) {
                        eprintln!("{} {}: {status:?}", request.method(), request.target());
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let wait_done = |count: u64| {
            let from = done.load(Ordering::Relaxed);
            wait::until("requests to go on", SOON, || {
                let now = done.load(Ordering::Relaxed) - from;
                if now >= count { Ok(()) } else { Err(now) }
            });
        };
        wait_done(200);
        redis.servers[0].service.kill();
        wait::until("another master", SOON, || match redis.master_port() {
            port if port.is_some() && port != old => Ok(()),
            port => Err(format!("{port:?}")),
        });
        cluster.nodes.iter().for_each(wait_connected);
        let before = hits();
        wait_done(200);
        wait::until("the new master to be used", SOON, || {
            let now = hits();
            if now > before { Ok(()) } else { Err(now) }
        });
        // Sentinels that are away are no reason to leave a master that is there.
        redis.kill_sentinels();
        wait_done(200);
        let before = hits();
        wait_done(100);
        hits() - before
    });
    assert_eq!(failed.load(Ordering::Relaxed), 0);
    assert!(after > 0, "the master is not used without its sentinels");
}

//! Nginx in front of the nodes, with the configurations of `docker/nginx`: what clients see when nodes die
//! behind it, that keys pass unchanged, and that only reads are ever sent twice.

mod fake;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use torc_e2e::cluster::{Cluster, Formation, Options, READY_MAX};
use torc_e2e::http::Request;
use torc_e2e::linearize::check;
use torc_e2e::services::nginx::{BOTH, Proxy};
use torc_e2e::workload::{Load, Mix, seed};
use torc_e2e::{alone, wait};

use fake::{Fake, Manner};

fn wait_operations(load: &Load, more: usize) {
    let target = load.operations_so_far() + more;
    let what = format!("{more} more operations");
    wait::until(&what, READY_MAX, || match load.operations_so_far() {
        now if now >= target => Ok(()),
        now => Err(format!("{now} of {target}")),
    });
}

#[test]
fn no_get_fails_while_a_node_is_killed_and_comes_back_behind_nginx() {
    let _alone = alone();
    let mut cluster = Cluster::start(3, Options::default());
    for config in BOTH {
        let proxy = Proxy::start(config, &cluster.addresses());
        let mix = Mix {
            clients: 8,
            keys: 30,
            prefix: if config == "nginx.conf" { "a-" } else { "b-" },
            puts: 20,
            deletes: 2,
            timeout: Duration::from_secs(20),
            pace: Duration::from_millis(2),
            ..Mix::default()
        };
        let load = Load::start(&[proxy.address], &mix, seed());
        wait_operations(&load, 500);
        assert_eq!(load.failures_so_far(), 0, "{config}: before any fault");
        cluster.nodes[1].kill();
        wait_operations(&load, 1_500);
        cluster.nodes[1].start(&Formation::Known);
        wait_operations(&load, 500);
        let seen = load.finish_reading(&[proxy.address]);

        let (writes, reads): (Vec<_>, Vec<_>) = seen
            .failures
            .iter()
            .partition(|failure| !failure.what.starts_with("GET"));
        eprintln!(
            "{config}: {} operations, {} writes failed around the kill: {:?}",
            seen.operations.len(),
            writes.len(),
            writes
                .iter()
                .map(|failure| &failure.what)
                .take(3)
                .collect::<Vec<_>>()
        );
        assert!(reads.is_empty(), "{config}: GETs failed: {reads:?}");
        // A write that was on its way to the dying node fails, and nothing else: each client has one at a
        // time, and after 5 s nginx lets one request try the node again.
        assert!(
            writes.len() <= 40,
            "{config}: {} writes failed: {writes:?}",
            writes.len()
        );
        check(&seen.operations).unwrap_or_else(|violation| panic!("{config}: {violation}"));
        proxy.stop();
        cluster.wait_members(3);
    }
}

#[test]
fn keys_pass_nginx_unchanged() {
    let _alone = alone();
    let cluster = Cluster::start(1, Options::default());
    let node = &cluster.nodes[0];
    for config in BOTH {
        let proxy = Proxy::start(config, &cluster.addresses());
        for (number, target) in [
            "/kv/default/a%2Fb",
            "/kv/default/a/b",
            "/kv/default/a//b",
            "/kv/default/a%2F%2Fb",
            "/kv/default/a%252Fb",
            "/kv/default/100%25",
            "/kv/default/a%3Fb%23c",
            "/kv/default/a+b%20c",
            "/kv/default/%ff%fe",
            "/kv/default/x/%2E%2E/y",
            "/kv/default/%C3%BC",
            "/kv/default/trailing/",
        ]
        .into_iter()
        .enumerate()
        {
            let value = format!("{config} {number}");
            let put = proxy.ask(&Request::put(target, value.as_bytes()));
            assert_eq!(put.status, 204, "{config}: PUT {target}: {}", put.text());
            let direct = node
                .get(target)
                .map(|value| String::from_utf8_lossy(&value).into_owned());
            assert_eq!(
                direct.as_deref(),
                Some(value.as_str()),
                "{config}: {target} at the node"
            );
            let through = proxy.ask(&Request::get(target));
            assert_eq!(
                (through.status, through.text()),
                (200, value),
                "{config}: GET {target}"
            );
        }
        // What differs only in its escapes is another key: none of the puts above has replaced another's.
        let slash = proxy.ask(&Request::get("/kv/default/a%2Fb"));
        let plain = proxy.ask(&Request::get("/kv/default/a%2F%2Fb"));
        assert_ne!(slash.text(), plain.text());
        let request =
            Request::get("/kv/default/a%2Fb?r=one").header("X-Request-Id", "from-the-client");
        let answer = proxy.ask(&request);
        assert_eq!(answer.header("x-request-id"), Some("from-the-client"));
        let missing = proxy.ask(&Request::get("/kv/default/nothing-here"));
        assert_eq!(missing.status, 404);
        missing.check_problem().expect("the node's own document");
        proxy.stop();
    }
}

#[test]
fn only_reads_are_sent_twice() {
    let _alone = alone();
    for config in BOTH {
        for (method, sent) in [
            ("GET", 3),
            ("HEAD", 3),
            ("PUT", 1),
            ("DELETE", 1),
            ("POST", 1),
        ] {
            let nodes = [(); 3].map(|()| Fake::start(Manner::Drops));
            let proxy = Proxy::start(config, &nodes.each_ref().map(|node| node.address));
            let mut request = Request::new(method, "/kv/default/key?r=one");
            if matches!(method, "PUT" | "POST") {
                request = request.body(&b"value"[..]);
            }
            let answer = proxy.ask(&request);
            let asked: Vec<String> = nodes.iter().flat_map(Fake::asked).collect();
            assert_eq!(
                asked.len(),
                sent,
                "{config}: {method} was sent to nodes: {asked:?}"
            );
            if method == "HEAD" {
                assert_eq!(answer.status, 503);
            } else {
                let document = answer.check_problem().expect("a document of nginx's own");
                let outcome = document["outcome"].as_str();
                let expected = if sent == 1 {
                    (502, Some("unknown"))
                } else {
                    (503, None)
                };
                assert_eq!((answer.status, outcome), expected, "{config}: {method}");
            }
            proxy.stop();
        }
    }
}

#[test]
fn a_read_that_one_node_cannot_serve_is_asked_of_the_others_and_a_write_is_not() {
    let _alone = alone();
    for config in BOTH {
        let refusing = [Fake::start(Manner::Refuses), Fake::start(Manner::Refuses)];
        let good = Fake::start(Manner::Answers);
        let nodes = [refusing[0].address, refusing[1].address, good.address];
        let proxy = Proxy::start(config, &nodes);
        let good_port = good.address.port().to_string();
        let mut statuses = BTreeMap::new();
        for key in 0..30 {
            let target = format!("/kv/default/{key}");
            let read = proxy.ask(&Request::get(&target));
            assert_eq!(
                (read.status, read.text()),
                (200, good_port.clone()),
                "{config}"
            );
            let write = proxy.ask(&Request::put(&target, &b"value"[..]));
            *statuses.entry(write.status).or_insert(0) += 1;
        }
        // A node that answers 503 is not taken out: it may be one client's quorum that is not there.
        assert!(
            statuses.contains_key(&503) && statuses.contains_key(&200),
            "{config}: {statuses:?}"
        );
        assert_eq!(statuses.len(), 2, "{config}: {statuses:?}");
        proxy.stop();

        // When all of them refuse, the node's own answer arrives, with its numbers.
        let proxy = Proxy::start(config, &refusing.each_ref().map(|node| node.address));
        for _ in 0..5 {
            let answer = proxy.ask(&Request::get("/kv/default/key"));
            assert_eq!(answer.status, 503);
            let ports = refusing
                .each_ref()
                .map(|node| node.address.port().to_string());
            assert!(
                ports.contains(&answer.text()),
                "{config}: {}",
                answer.text()
            );
        }
        proxy.stop();
    }
}

#[test]
fn with_hashing_a_keys_requests_reach_one_node_and_keys_spread() {
    let _alone = alone();
    let nodes = [(); 3].map(|()| Fake::start(Manner::Answers));
    let proxy = Proxy::start(
        "nginx-hash.conf",
        &nodes.each_ref().map(|node| node.address),
    );
    let asked_of = |target: &str| {
        let answer = proxy.ask(&Request::get(target));
        assert_eq!(answer.status, 200);
        answer.text()
    };
    let mut used = [BTreeSet::new(), BTreeSet::new()];
    for key in 0..60 {
        // Parameters are no part of the key, but the compatible routes have it in one.
        for (form, target) in [
            format!("/kv/default/key-{key}"),
            format!("/kv?key=key-{key}"),
        ]
        .into_iter()
        .enumerate()
        {
            let first = asked_of(&target);
            assert_eq!(asked_of(&target), first);
            if form == 0 {
                assert_eq!(asked_of(&format!("{target}?r=one")), first);
            }
            used[form].insert(first);
        }
    }
    assert_eq!(
        used.map(|ports| ports.len()),
        [3, 3],
        "60 keys leave no node out"
    );
    let upstreams: BTreeSet<SocketAddr> = proxy
        .access_log()
        .iter()
        .filter_map(|line| line["upstream"].as_str()?.parse().ok())
        .collect();
    assert_eq!(upstreams.len(), 3, "the access log names the nodes");
    proxy.stop();
}

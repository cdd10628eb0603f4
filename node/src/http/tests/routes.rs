use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use torc_protocol::shard_io::{Event, View};
use torc_ring::NodeId;

use super::Facade;
use super::backend::{NODE, SEED, config};
use crate::handle::NotReady;

#[tokio::test]
async fn the_compatible_routes_answer_as_the_older_service_did() {
    let facade = Facade::start().await;
    let put = |text: &'static str| {
        facade.ask(
            "PUT",
            "/kv",
            &[("content-type", "application/json")],
            text.as_bytes(),
        )
    };
    let stored = put(r#"{"data":{"key":"k/1","value":"v"}}"#).await;
    assert_eq!(
        (stored.status, stored.json()),
        (200, json!({"detail": "stored"}))
    );
    for bad in [
        r#"{"data":{"key":"k"}}"#,
        r#"{"data":{"value":"v"}}"#,
        r#"{"data":{"key":"","value":"v"}}"#,
        r#"{"data":{"key":"k","value":""}}"#,
        r#"{"data":{"key":1,"value":"v"}}"#,
        r#"{"data":{}}"#,
        "{}",
        "[]",
        "",
        "nonsense",
    ] {
        let answer = put(bad).await;
        assert_eq!(
            (answer.status, answer.json()),
            (400, json!({"detail": "key & value required"})),
            "{bad}"
        );
    }
    let got = facade.get("/kv?key=k/1").await;
    assert_eq!(
        (got.status, got.json()),
        (200, json!({"data": {"value": "v", "source": "database"}}))
    );
    assert_eq!(
        facade.get("/kv/default/k/1").await.text(),
        "v",
        "on bucket default"
    );
    let not_found = json!({"detail": "Key not found"});
    let absent = facade.get("/kv?key=absent").await;
    assert_eq!((absent.status, absent.json()), (404, not_found.clone()));
    let deleted = facade.ask("DELETE", "/kv?key=k%2F1", &[], b"").await;
    assert_eq!(
        (deleted.status, deleted.json()),
        (200, json!({"detail": "deleted"}))
    );
    let again = facade.ask("DELETE", "/kv?key=k/1", &[], b"").await;
    assert_eq!((again.status, again.json()), (404, not_found));
    assert_eq!(facade.get("/kv").await.status, 400);
    assert_eq!(facade.get("/kv?key=%zz").await.status, 400);
    let method = facade.ask("POST", "/kv", &[], b"").await;
    assert_eq!(
        (method.status, method.must("allow").as_str()),
        (405, "GET, HEAD, PUT, DELETE")
    );
    let stats = facade.get("/cache/stats").await.json();
    let zeros = json!({"keys_count": 0, "max_keys_limit": 0, "memory_used_bytes": 0, "hits": 0, "misses": 0});
    assert_eq!(stats, zeros);
}

#[tokio::test]
async fn health_says_what_is_wrong() {
    let facade = Facade::start().await;
    for client in [&mut facade.client().await, &mut facade.admin().await] {
        assert_eq!(
            client.ask("GET", "/health/live", &[], b"").await.json(),
            json!({"status": "alive"})
        );
        assert_eq!(
            client.ask("GET", "/health/ready", &[], b"").await.json(),
            json!({"status": "ready"})
        );
        let health = client.ask("GET", "/health", &[], b"").await.json();
        assert_eq!(
            (&health["status"], &health["components"]["cache"]["status"]),
            (&json!("ok"), &json!("absent"))
        );
        let refused = client.ask("PUT", "/health", &[], b"").await;
        assert_eq!(
            (refused.status, refused.must("allow").as_str()),
            (405, "GET, HEAD")
        );
    }
    let handle = &facade.backend.handle;
    handle.update_state(|state| state.disk_full = true);
    let health = facade.get("/health").await;
    assert_eq!(
        (health.status, &health.json()["status"]),
        (200, &json!("degraded"))
    );
    assert_eq!(health.json()["components"]["store"]["status"], "degraded");
    assert_eq!(
        facade.get("/health/ready").await.status,
        200,
        "reads are served"
    );

    handle.set_view(View::new(config(3)));
    handle.update_state(|state| state.dead = vec![NodeId(NODE.0 + 1), NodeId(NODE.0 + 2)]);
    let alone = facade.get("/health/ready").await;
    assert_eq!((alone.status, alone.problem().as_str()), (503, "not-ready"));
    assert_eq!(
        (&alone.json()["required"], &alone.json()["received"]),
        (&2.into(), &1.into())
    );
    handle.update_state(|state| {
        state.dead.clear();
        state.not_ready = Some(NotReady::StartCheck);
    });
    let checking = facade.get("/health/ready").await;
    assert!(
        checking.status == 503 && checking.text().contains("old copy"),
        "{}",
        checking.text()
    );
    assert_eq!(facade.get("/health").await.status, 503);
    assert_eq!(facade.get("/health/live").await.status, 200);
}

#[tokio::test]
async fn the_ring_is_told_on_both_listeners_and_the_secret_on_none() {
    let facade = Facade::start().await;
    facade.backend.handle.set_view(View::new(config(4)));
    facade
        .backend
        .handle
        .update_state(|state| state.dead = vec![NodeId(NODE.0 + 2)]);
    let ring = facade.get("/ring").await;
    let document = ring.json();
    assert_eq!(
        facade
            .admin()
            .await
            .ask("GET", "/ring", &[], b"")
            .await
            .json(),
        document
    );
    assert_eq!(document["token_seed"], format!("{SEED:016x}"));
    assert_eq!(
        (&document["partition_bits"], &document["ring_version"]),
        (&4.into(), &2.into())
    );
    let members = document["members"].as_array().expect("members");
    assert_eq!(members.len(), 4);
    assert_eq!(members[2]["alive"], false);
    let shares: f64 = members
        .iter()
        .filter_map(|member| member["share"].as_f64())
        .sum();
    assert!((shares - 1.0).abs() < 1e-9, "{shares}");
    assert!(
        !ring.text().contains("cdcd") && !ring.text().contains("205,205"),
        "{}",
        ring.text()
    );
    let refused = facade
        .ask("GET", "/ring", &[("accept", "image/png")], b"")
        .await;
    assert_eq!(refused.status, 406);

    let mut admin = facade.admin().await;
    let owners = admin
        .ask("GET", "/ring/owners?bucket=default&key=a%2Fb", &[], b"")
        .await
        .json();
    assert_eq!((&owners["key"], &owners["n"]), (&json!("a/b"), &3.into()));
    let ids: BTreeSet<&str> = owners["owners"]
        .as_array()
        .expect("owners")
        .iter()
        .filter_map(|o| o["id"].as_str())
        .collect();
    assert_eq!(ids.len(), 3);
    facade.put("/kv/default/copied", b"v").await;
    let verified = admin
        .ask("GET", "/ring/verify?key=copied", &[], b"")
        .await
        .json();
    let copies = verified["owners"].as_array().expect("owners");
    assert_eq!(copies[0]["answer"], "holds");
    assert_eq!(copies[0]["floor_micros"], 1_000_000);
    let version = copies[0]["version"].as_str().expect("a version");
    assert!(version.ends_with("00000000000000a1"), "{version}");
    assert_eq!(
        (&copies[1]["answer"], &copies[1]["hash"]),
        (&json!("silent"), &serde_json::Value::Null)
    );
    assert_eq!(verified["agree"], false);
    for (target, status) in [
        ("/ring/verify?bucket=default", 400),
        ("/ring/verify?bucket=absent&key=k", 404),
        ("/ring/owners?bucket=default", 400),
        ("/ring/owners?key=", 400),
        ("/ring/owners?bucket=absent&key=k", 404),
        ("/ring/owners?bucket=B&key=k", 400),
        ("/buckets/absent", 404),
        ("/buckets/B", 400),
        ("/nothing", 404),
        ("/kv/default/k", 404),
    ] {
        let answer = admin.ask("GET", target, &[], b"").await;
        assert_eq!(answer.status, status, "{target}");
        answer.problem();
    }
    for (method, status) in [("GET", 200), ("POST", 202), ("PUT", 405)] {
        let answer = admin.ask(method, "/repair", &[], b"").await;
        assert_eq!(answer.status, status, "{method} /repair");
    }
    let cluster = admin.ask("GET", "/cluster", &[], b"").await.json();
    assert_eq!(
        (&cluster["members"], &cluster["alive"], &cluster["ready"]),
        (&4.into(), &3.into(), &json!(true))
    );
    let bucket = admin.ask("GET", "/buckets/default", &[], b"").await.json();
    assert_eq!(
        (&bucket["n"], &bucket["r"], &bucket["conflict"]),
        (&3.into(), &json!("quorum"), &json!("lww"))
    );
    let page = facade.get("/").await;
    assert!(page.must("content-type").starts_with("text/html") && page.text().contains("/health"));
    for target in [
        "/nope",
        "/kvs",
        "/ring/owners",
        "/ring/verify",
        "/metrics",
        "/repair",
        "/cluster",
        "//",
        "/kv2/x",
    ] {
        assert_eq!(facade.get(target).await.problem(), "not-found", "{target}");
    }
}

#[tokio::test]
async fn what_changes_the_cluster_says_to_be_json_and_is_refused_where_it_makes_no_sense() {
    let facade = Facade::start().await;
    let mut admin = facade.admin().await;
    let json = [("content-type", "application/json")];
    // A page of another site can make a browser post text, and must get nowhere.
    let leave = br#"{"changes":[{"change":"leave","node":"n1"}]}"#;
    for target in ["/ring/plan", "/ring/commit", "/ring/abort"] {
        let answer = admin
            .ask("POST", target, &[("content-type", "text/plain")], leave)
            .await;
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (415, "media-type"),
            "{target}"
        );
        assert_eq!(
            admin.ask("GET", target, &[], b"").await.status,
            405,
            "{target}"
        );
        // The cluster machine is not there in this test: its answer is that it does not serve.
        assert_eq!(
            admin.ask("POST", target, &json, leave).await.status,
            503,
            "{target}"
        );
    }
    for bad in [
        "",
        "{}",
        r#"{"changes":[]}"#,
        r#"{"changes":[{"change":"grow"}]}"#,
        r#"{"changes":1}"#,
    ] {
        let answer = admin.ask("POST", "/ring/plan", &json, bad.as_bytes()).await;
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (400, "body"),
            "{bad}"
        );
    }
    for bad in [
        r#"{"n":0}"#,
        r#"{"n":17}"#,
        r#"{"r":"most"}"#,
        r#"{"ttl":"30"}"#,
        r#"{"size":1}"#,
    ] {
        let answer = admin
            .ask("PUT", "/buckets/new", &json, bad.as_bytes())
            .await;
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (400, "body"),
            "{bad}"
        );
    }
    let siblings = admin
        .ask("PUT", "/buckets/new", &json, br#"{"conflict":"siblings"}"#)
        .await;
    assert_eq!(siblings.problem(), "conflict-mode");
    assert_eq!(
        admin.ask("PUT", "/buckets/new", &json, b"{}").await.status,
        503
    );
    assert_eq!(
        admin
            .ask("DELETE", "/buckets/default", &[], b"")
            .await
            .status,
        503
    );
    assert_eq!(
        admin
            .ask("PATCH", "/buckets/default", &[], b"")
            .await
            .status,
        405
    );
    let buckets = admin.ask("GET", "/buckets", &[], b"").await.json();
    assert_eq!(buckets["buckets"][0]["name"], "default");
}

#[tokio::test]
async fn a_traceparent_becomes_the_request_id() {
    let facade = Facade::start().await;
    let parent = [(
        "traceparent",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )];
    let answer = facade.ask("GET", "/kv/default/k", &parent, b"").await;
    assert_eq!(
        answer.must("x-request-id"),
        "0af7651916cd43dd8448eb211c80319c"
    );
    assert_eq!(
        facade.backend.last().trace,
        "0af7651916cd43dd8448eb211c80319c"
    );
}

/// The series of a scrape with their values; fails on whatever breaks the text format.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut series = BTreeMap::new();
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut family = "";
    assert_eq!(text.lines().last(), Some("# EOF"));
    for line in text.lines().take_while(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            family = rest.split_once(' ').expect("a name and a text").0;
            assert!(helped.insert(family), "{family} is described twice");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            assert_eq!(name, family, "HELP comes right before TYPE");
            kinds.insert(name, kind);
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            let bare = name.split('{').next().unwrap_or(name);
            let suffixes: &[&str] = match kinds[family] {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            assert!(
                suffixes
                    .iter()
                    .any(|suffix| bare == format!("{family}{suffix}")),
                "{line} in {family}"
            );
            assert!(
                bare.starts_with("torc_") || bare.starts_with("process_"),
                "{line}"
            );
            let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert_eq!(
                series.insert(name.to_owned(), value),
                None,
                "{name} stands there twice"
            );
        }
    }
    series
}

#[tokio::test]
async fn metrics_count_what_happened_in_a_form_that_prometheus_reads() {
    let facade = Facade::start().await;
    facade.put("/kv/default/k", b"v").await;
    facade.get("/kv/default/k").await;
    facade.get("/kv/default/k").await;
    facade.get("/nope").await;
    let metrics = facade.backend.handle.metrics();
    let done = |outcome, micros| Event::Coordinated {
        op: "put",
        required: 2,
        outcome,
        micros,
        trace: bytes::Bytes::new(),
    };
    metrics.on_event(&done("ok", 150));
    metrics.on_event(&done("ok", 90));
    metrics.on_event(&done("quorum", 2_000_000));
    metrics.on_event(&Event::PeerLatency {
        peer: NodeId(NODE.0 + 1),
        micros: 300,
    });
    metrics.on_event(&Event::Hedged);
    metrics.on_event(&Event::Shed { reason: "queue" });
    metrics.on_peer_refused("certificate");
    metrics.on_commit(12, std::time::Duration::from_micros(700));
    let scrape = facade.admin().await.ask("GET", "/metrics", &[], b"").await;
    assert!(
        scrape
            .must("content-type")
            .starts_with("application/openmetrics-text")
    );
    let series = parse(&scrape.text());
    let expected: &[(&str, f64)] = &[
        (
            r#"torc_http_requests_total{method="GET",route="/kv/{bucket}/{key}",status="200"}"#,
            2.0,
        ),
        (
            r#"torc_http_requests_total{method="PUT",route="/kv/{bucket}/{key}",status="204"}"#,
            1.0,
        ),
        (
            r#"torc_http_requests_total{method="GET",route="none",status="404"}"#,
            1.0,
        ),
        ("torc_http_request_seconds_count", 4.0),
        (
            r#"torc_coordinator_ops_total{op="put",consistency="2",outcome="ok"}"#,
            2.0,
        ),
        (
            r#"torc_coordinator_ops_total{op="put",consistency="2",outcome="quorum"}"#,
            1.0,
        ),
        (r#"torc_coordinator_seconds_count{op="put"}"#, 3.0),
        (
            r#"torc_coordinator_seconds_bucket{le="0.0001",op="put"}"#,
            1.0,
        ),
        (
            r#"torc_coordinator_seconds_bucket{le="+Inf",op="put"}"#,
            3.0,
        ),
        ("torc_hedged_reads_total", 1.0),
        (r#"torc_shed_total{reason="queue"}"#, 1.0),
        (r#"torc_peer_refused_total{reason="certificate"}"#, 1.0),
        ("torc_replica_commit_seconds_count", 1.0),
        (r#"torc_commit_batch_size_bucket{le="16.0"}"#, 1.0),
        (r#"torc_commit_batch_size_bucket{le="8.0"}"#, 0.0),
        ("torc_config_version", 1.0),
        ("torc_nodes_live", 1.0),
        ("torc_ring_share", 1.0),
        (r#"torc_partitions{state="owned"}"#, 16.0),
        (r#"torc_http_connections{listener="admin"}"#, 1.0),
    ];
    for (name, value) in expected {
        assert_eq!(
            series.get(*name),
            Some(value),
            "{name} in\n{}",
            scrape.text()
        );
    }
    assert!(series["process_resident_memory_bytes"] > 1e6);
}

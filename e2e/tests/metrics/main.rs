//! Rules and dashboards of `docker/`: checked by promtool, and every query run against a real Prometheus that
//! scrapes a real cluster in trouble. A query that finds nothing is an error: a metric that was renamed, a
//! label that is not there.

mod grafana;
mod queries;
mod side;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use torc_e2e::cluster::{Cluster, Formation, Options, REQUEST_MAX};
use torc_e2e::http::{Connection, Request};
use torc_e2e::services::beside::{Autoscaler, Worker};
use torc_e2e::services::program;
use torc_e2e::services::prometheus::{Prometheus, Scraped, files};
use torc_e2e::workload::{Load, Mix, seed};
use torc_e2e::{alone, ports, wait};

use queries::{Query, docker, of_dashboards, selectors};
use side::Side;

/// Values that are larger together than a node's write buffer.
const LARGE: usize = 40;
/// Until every query has found something: a few scrapes, on a machine that may be busy.
const FOUND_MAX: Duration = Duration::from_secs(120);

fn run(mut command: Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("run {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn promtool_accepts_configuration_and_rules_and_their_tests_pass() {
    let mut check = Command::new(program("promtool"));
    check
        .args(["check", "config"])
        .arg(docker().join("prometheus/prometheus.yml"));
    run(check);
    let mut rules = Command::new(program("promtool"));
    rules.args(["test", "rules"]).args(files("tests"));
    run(rules);
    // An alert without a test would go unnoticed when it stops working.
    let tests: String = files("tests")
        .iter()
        .map(|path| fs::read_to_string(path).expect("read"))
        .collect();
    for path in files("rules") {
        let text = fs::read_to_string(path).expect("read");
        for alert in text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("- alert: "))
        {
            assert!(
                tests.contains(&format!("alertname: {alert}\n")),
                "{alert} has no test"
            );
        }
    }
}

#[test]
fn the_dashboards_are_what_their_tables_say() {
    let mut check = Command::new(program("python3"));
    check
        .arg(docker().join("grafana/dashboards.py"))
        .arg("--check");
    run(check);
}

/// Everything that must find something: panels as they are, recording rules by what they record, and of
/// alerts, which are silent when all is well, the series that they read.
fn expected(rules: &[Value]) -> Vec<Query> {
    let mut all = of_dashboards();
    for rule in rules {
        let name = rule["name"].as_str().expect("a name");
        let expression = rule["query"].as_str().expect("a query");
        let origin = format!("rule {name}");
        if rule["type"] == "recording" {
            all.push(Query {
                origin,
                expression: name.to_owned(),
            });
        } else {
            let series = selectors(expression);
            assert!(!series.is_empty(), "{name} reads no series: {expression}");
            all.extend(series.into_iter().map(|expression| Query {
                origin: origin.clone(),
                expression,
            }));
        }
    }
    all
}

/// A node of another cluster with certificates of the same CA: it gets as far as the greeting.
fn strange_node(of: &Cluster) -> Cluster {
    let mut strange = Cluster::empty(Options::default());
    strange.use_pki_of(of);
    let node = strange.add();
    node.start(&Formation::Bootstrap);
    node.stop();
    node.launch(&Formation::Join(vec![of.nodes[0].peer]));
    strange
}

/// More watches at a time than `limits.requests` allows, so that some are refused.
fn too_many_watches(node: SocketAddr, count: usize) -> Vec<Connection> {
    let request = Request::get("/kv/default/watched?wait=60s").header("If-None-Match", "\"none\"");
    (0..count)
        .map(|_| {
            let mut connection = Connection::open(node, REQUEST_MAX).expect("connect");
            connection.send(&request.encode()).expect("send");
            connection
        })
        .collect()
}

#[test]
fn every_query_of_dashboards_and_rules_finds_something_in_a_live_cluster() {
    let _alone = alone();
    let side = Side::start();
    let mut cluster = Cluster::start(
        3,
        Options {
            // So little room that hints are dropped as soon as a node is away, so few requests at a time
            // that some are refused, and so small a write buffer that reads reach files.
            config: Some(
                "[hints]\nbytes_per_target = \"16KiB\"\n[limits]\nrequests = 32\n\
                 [storage]\nwrite_buffer = \"1MiB\"\n"
                    .to_owned()
                    + &side.settings(),
            ),
            ..Options::default()
        },
    );
    let admins: Vec<_> = cluster.nodes.iter().map(|node| node.admin).collect();
    let [worker, autoscaler] = [ports::free(), ports::free()];
    let prometheus = Prometheus::start(&Scraped {
        nodes: admins.clone(),
        workers: vec![worker],
        autoscaler: vec![autoscaler],
    });
    let config = fs::read_to_string(cluster.folder().join("torc.toml")).expect("read");
    let (folder, nodes) = (cluster.folder(), cluster.addresses());
    let _worker = Worker::launch(worker, (folder, &config), &nodes, &[]);
    let _autoscaler = Autoscaler::launch(autoscaler, folder, &admins, prometheus.address);
    let rules = prometheus.rules();
    let queries = expected(&rules);
    assert!(
        queries.len() > 60 && rules.len() > 20,
        "{} queries, {} rules",
        queries.len(),
        rules.len()
    );

    let mix = Mix {
        clients: 4,
        keys: 200,
        prefix: "metrics-",
        timeout: Duration::from_secs(10),
        pace: Duration::from_millis(5),
        ..Mix::default()
    };
    let load = Load::start(&cluster.addresses()[..2], &mix, seed());
    // More than the write buffer holds; read again below, from files and the block cache.
    let large = |number| format!("/kv/default/large-{number}");
    for number in 0..LARGE {
        cluster.nodes[0].put(&large(number), vec![b'x'; 64 << 10]);
    }
    let _strange = strange_node(&cluster);
    let _watches = too_many_watches(cluster.nodes[0].http, 100);
    cluster.nodes[2].kill();

    let mut left = queries.clone();
    let outcome = wait::try_until("every query to find something", FOUND_MAX, || {
        side::use_it(&cluster.nodes[0]);
        let listed = cluster.nodes[0].ask(&Request::get("/kv/default?prefix=metrics-&limit=10"));
        let listed = listed.map(|response| response.status);
        for number in 0..LARGE {
            let _ = cluster.nodes[0].ask(&Request::get(&large(number)));
        }
        left.retain(|query| prometheus.finds(&query.expression).is_err());
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{} left, listing: {listed:?}", left.len()))
        }
    });
    load.finish();
    let broken: Vec<_> = left
        .iter()
        .map(|query| {
            let found = prometheus.finds(&query.expression);
            format!("{}: {}\n    {found:?}", query.origin, query.expression)
        })
        .collect();
    assert!(
        outcome.is_ok(),
        "{outcome:?}; these find nothing:\n{}",
        broken.join("\n")
    );
    for rule in prometheus.rules() {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
    eprintln!("{} queries found something", queries.len());
}

#[test]
fn a_node_that_is_away_raises_its_alert() {
    let _alone = alone();
    let mut cluster = Cluster::start(1, Options::default());
    let prometheus = Prometheus::start(&Scraped {
        nodes: vec![cluster.nodes[0].admin],
        ..Scraped::default()
    });
    wait::until("the node to be scraped", FOUND_MAX, || {
        prometheus.finds("up{job=\"torc\"} == 1")
    });
    let state = |name: &str| {
        prometheus
            .rules()
            .into_iter()
            .find(|rule| rule["name"] == name)
            .map(|rule| rule["state"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(state("TorcNodeDown").as_deref(), Some("inactive"));
    cluster.nodes[0].kill();
    wait::until("the alert to notice", FOUND_MAX, || {
        match state("TorcNodeDown").as_deref() {
            Some("pending" | "firing") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn compose_mounts_what_prometheus_reads() {
    // The configuration names its rules relative to itself; Compose must put them there.
    let compose = fs::read_to_string(docker().join("compose.yaml")).expect("read");
    for (from, to) in [
        (
            "./prometheus/prometheus.yml",
            "/etc/prometheus/prometheus.yml",
        ),
        ("./prometheus/rules", "/etc/prometheus/rules"),
        ("./grafana/dashboards", "/var/lib/grafana-dashboards"),
    ] {
        assert!(
            compose.contains(&format!("{from}:{to}:ro")),
            "{from} is not mounted at {to}"
        );
        assert!(
            docker().join(Path::new(from)).exists(),
            "{from} is not there"
        );
    }
}

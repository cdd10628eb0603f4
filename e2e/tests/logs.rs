//! One request can be followed through the logs of all nodes that it touches.

use serde_json::Value;
use torc_e2e::cluster::{Cluster, Node, Options, READY_MAX, shown};
use torc_e2e::http::{Request, Response};
use torc_e2e::{alone, wait};

const TARGET: &str = "/kv/default/followed";

#[test]
fn a_request_id_stands_in_every_line_that_a_request_causes_on_every_node() {
    let _alone = alone();
    let cluster = talkative();
    let before: Vec<_> = cluster.nodes.iter().map(|node| node.log().len()).collect();

    // Three replicas on three nodes: whichever coordinates, the others have to do with each write.
    let put = Request::put(TARGET, "value").header("X-Request-Id", "abc-123");
    assert_eq!(echoed(&ask(&cluster.nodes[1], &put, 204)), "abc-123");
    every_node_names(&cluster, &before, "abc-123");
    some_line(&cluster.nodes[1], before[1], "abc-123", |line| {
        line["method"] == "PUT" && line["path"] == TARGET && line["status"] == 204
    });

    // A read with an id of its own is told apart from the write; `r=3` needs every replica.
    let get = Request::get(&format!("{TARGET}?r=3")).header("X-Request-Id", "read-4");
    assert_eq!(echoed(&ask(&cluster.nodes[2], &get, 200)), "read-4");
    every_node_names(&cluster, &before, "read-4");
    some_line(&cluster.nodes[2], before[2], "read-4", |line| {
        line["method"] == "GET" && line["status"] == 200
    });

    every_line_of_a_request_names_it(&cluster, &before);
}

#[test]
fn a_trace_id_is_taken_for_the_request_id_and_a_refusal_has_one_too() {
    let _alone = alone();
    let cluster = talkative();
    let before: Vec<_> = cluster.nodes.iter().map(|node| node.log().len()).collect();

    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let traced = Request::put(TARGET, "value").header("traceparent", &parent);
    assert_eq!(echoed(&ask(&cluster.nodes[0], &traced, 204)), trace);
    every_node_names(&cluster, &before, trace);

    // The client's own id goes before the trace's.
    let both = Request::get(TARGET)
        .header("traceparent", &parent)
        .header("X-Request-Id", "mine");
    assert_eq!(echoed(&ask(&cluster.nodes[0], &both, 200)), "mine");

    // Nothing fit was given: the store makes an id, and says which.
    let unfit = Request::get(TARGET).header("X-Request-Id", "two words");
    let made = echoed(&ask(&cluster.nodes[0], &unfit, 200));
    assert!(!made.is_empty() && made != "two words", "{made:?}");
    some_line(&cluster.nodes[0], before[0], &made, |_| true);

    let refused = Request::get("/kv/Not-A-Bucket/k").header("X-Request-Id", "refused-1");
    assert_eq!(echoed(&ask(&cluster.nodes[0], &refused, 400)), "refused-1");
    some_line(&cluster.nodes[0], before[0], "refused-1", |line| {
        line["message"] == "request refused" && line["detail"].is_string()
    });
}

/// Three nodes that log everything of their own.
fn talkative() -> Cluster {
    let environment = vec![("TORC_LOG".to_owned(), "torc_node=debug,info".to_owned())];
    Cluster::start(
        3,
        Options {
            environment,
            ..Options::default()
        },
    )
}

#[track_caller]
fn ask(node: &Node, request: &Request, status: u16) -> Response {
    match node.ask(request) {
        Ok(answer) if answer.status == status => answer,
        other => panic!("{} on {}: {}", request.target(), node.name, shown(other)),
    }
}

fn echoed(answer: &Response) -> String {
    answer.header("x-request-id").unwrap_or_default().to_owned()
}

/// Waits until each node has logged a line with this request id, and at least two did so as replicas.
#[track_caller]
fn every_node_names(cluster: &Cluster, before: &[usize], id: &str) {
    for (node, before) in cluster.nodes.iter().zip(before) {
        some_line(node, *before, id, |_| true);
    }
    wait::until(
        &format!("two replicas and a coordinator with the request id {id}"),
        READY_MAX,
        || {
            let says = |node: &Node, before: usize, what: &str| {
                lines(node, before).any(|line| line["request_id"] == id && line["message"] == what)
            };
            let count = |what| {
                let logs = cluster.nodes.iter().zip(before);
                logs.filter(|(node, before)| says(node, **before, what))
                    .count()
            };
            match (count("coordinated"), count("replica")) {
                (1, 2..) => Ok(()),
                counts => Err(format!("{counts:?} nodes say `coordinated` and `replica`")),
            }
        },
    );
}

/// Waits for a line with this request id on this node.
#[track_caller]
fn some_line(node: &Node, before: usize, id: &str, fits: impl Fn(&Value) -> bool) {
    wait::until(
        &format!("a line with the request id {id} on {}", node.name),
        READY_MAX,
        || match lines(node, before).find(|line| line["request_id"] == id && fits(line)) {
            Some(_) => Ok(()),
            None => Err(node.log_since(before)),
        },
    );
}

/// Lines about requests, as their messages tell, never lack the id.
#[track_caller]
fn every_line_of_a_request_names_it(cluster: &Cluster, before: &[usize]) {
    for (node, before) in cluster.nodes.iter().zip(before) {
        for line in lines(node, *before) {
            let message = line["message"].as_str().unwrap_or_default();
            let is_of_a_request =
                message.starts_with("request") || matches!(message, "coordinated" | "replica");
            let id = line["request_id"].as_str().unwrap_or_default();
            assert!(!is_of_a_request || !id.is_empty(), "{}: {line}", node.name);
        }
    }
}

/// The log as JSON. The last line may still be being written.
fn lines(node: &Node, before: usize) -> impl Iterator<Item = Value> {
    let log = node.log_since(before);
    let whole = log.rfind('\n').map_or(0, |end| end + 1);
    let parsed: Vec<_> = log[..whole]
        .lines()
        .map(|line| match serde_json::from_str(line) {
            Ok(line) => line,
            Err(error) => panic!("{}: not JSON ({error}): {line}", node.name),
        })
        .collect();
    parsed.into_iter()
}

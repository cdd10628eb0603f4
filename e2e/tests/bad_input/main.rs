//! What a client can send that it should not: refused as documented, and the node still serves.
//!
//! 503 is tested in `failures.rs` (it needs a dead node) and 507 in `disk_full.rs` (a full disk).

mod fuzz;
mod slow;
mod tables;
mod values;

use std::net::SocketAddr;
use std::time::Duration;

use tables::{Case, Shape};
use torc_e2e::alone;
use torc_e2e::cluster::{Cluster, Node, Options};
use torc_e2e::http::{Connection, HttpError, Request, Response};

/// An answer to a refused request must come at once; this leaves room for a busy machine.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// One node is enough: nothing here depends on the others.
fn one_node() -> Cluster {
    let cluster = Cluster::start(1, Options::default());
    cluster.nodes[0].put("/kv/default/here", "0123456789");
    cluster
}

/// The node is the same process as before and does its work.
#[track_caller]
fn assert_still_serves(node: &Node, pid: u32) {
    assert_eq!(node.pid(), pid);
    let ready = node.ask(&Request::get("/health/ready"));
    assert!(
        matches!(&ready, Ok(answer) if answer.status == 200),
        "{ready:?}"
    );
    node.put("/kv/default/after", "still here");
    assert_eq!(
        node.get("/kv/default/after").as_deref(),
        Some(&b"still here"[..])
    );
    let log = node.log();
    assert!(
        !log.contains("panicked"),
        "a task panicked:\n{}",
        node.log_end()
    );
}

/// Sends a case on a connection of its own. `None` when the other side closed without an answer.
fn send(address: SocketAddr, case: &Case) -> Result<Option<Response>, HttpError> {
    let mut connection = Connection::open(address, ANSWER_MAX)?;
    // The node may answer and close before it has read all of it.
    let _ = connection.send(&case.bytes);
    // What is not HTTP may look like the beginning of something; this says that nothing follows.
    if case.shape == Shape::ProblemOrNothing {
        connection.finish_sending();
    }
    match connection.receive(case.is_head, ANSWER_MAX) {
        Ok(response) => Ok(Some(response)),
        Err(HttpError::Closed { so_far }) if so_far.is_empty() => Ok(None),
        Err(HttpError::Io(_)) => Ok(None),
        // What answers in HTTP/2 frames was spoken to in HTTP/2.
        Err(HttpError::Malformed { .. } | HttpError::Closed { .. })
            if case.bytes.starts_with(b"PRI * HTTP/2.0") =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn judge(case: &Case, answer: Result<Option<Response>, HttpError>) -> Result<(), String> {
    let response = match answer {
        Ok(Some(response)) => response,
        Ok(None) if case.shape == Shape::ProblemOrNothing => return Ok(()),
        Ok(None) => return Err("closed without an answer".to_owned()),
        Err(error) => return Err(error.to_string()),
    };
    if !case.statuses.contains(&response.status) {
        let text: String = response.text().chars().take(200).collect();
        return Err(format!(
            "{} instead of {:?}: {text}",
            response.status, case.statuses
        ));
    }
    if case.shape == Shape::ProblemWithAllow && response.header("allow").is_none_or(str::is_empty) {
        return Err(format!("{} without Allow", response.status));
    }
    let needs_document = match case.shape {
        Shape::Problem | Shape::ProblemWithAllow => !case.is_head,
        Shape::ProblemOrNothing => !response.body.is_empty(),
        Shape::Any => false,
    };
    if needs_document {
        response.check_problem().map(drop)
    } else {
        Ok(())
    }
}

#[test]
fn every_tabled_request_is_refused_as_documented() {
    let _alone = alone();
    let cluster = one_node();
    let node = &cluster.nodes[0];
    let pid = node.pid();
    let cases = [
        tables::parameters(),
        tables::names_and_keys(),
        tables::headers(),
        tables::lists(),
        tables::routes(),
        tables::too_much(),
        tables::malformed(),
        tables::odd(),
    ]
    .concat();
    eprintln!("{} tabled requests", cases.len());
    assert!(
        cases.len() >= 500,
        "the tables have shrunk to {}",
        cases.len()
    );
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let verdict = judge(case, send(node.http, case));
            verdict
                .err()
                .map(|wrong| format!("{}\n    {wrong}", case.what))
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {} wrong:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    assert_still_serves(node, pid);
    for target in ["/kv/default/big", "/kv/default/m"] {
        assert_eq!(
            node.get(target),
            None,
            "{target}: a refused write took effect"
        );
    }
}

//! Senders that are slow, and those that only keep connections open.

use std::time::{Duration, Instant};

use torc_e2e::alone;
use torc_e2e::cluster::{Cluster, Options, REQUEST_MAX};
use torc_e2e::http::{Client, Connection, Request};
use torc_e2e::wait;

use super::{ANSWER_MAX, assert_still_serves};

/// Short limits, so that the test need not wait for the defaults.
const CONFIG: &str = "\
[limits]
header_timeout = \"2s\"
body_timeout = \"2s\"
connections = 64
";
const CUT_OFF_MAX: Duration = Duration::from_secs(15);

fn start() -> Cluster {
    let options = Options {
        config: Some(CONFIG.to_owned()),
        ..Options::default()
    };
    let cluster = Cluster::start(1, options);
    cluster.nodes[0].put("/kv/default/here", "0123456789");
    cluster
}

#[test]
fn slow_senders_are_cut_off_and_delay_nobody() {
    let _alone = alone();
    let cluster = start();
    let node = &cluster.nodes[0];
    let pid = node.pid();
    let open = || Connection::open(node.http, REQUEST_MAX).expect("connect");
    let mut heads: Vec<_> = (0..20).map(|_| Some(open())).collect();
    let mut bodies: Vec<_> = (0..20)
        .map(|number| {
            let mut connection = open();
            let head = format!(
                "PUT /kv/default/slow-{number} HTTP/1.1\r\nhost: t\r\ncontent-length: 100\r\n\r\n"
            );
            connection.send(head.as_bytes()).expect("send the head");
            Some(connection)
        })
        .collect();
    let head = b"GET /kv/default/here HTTP/1.1\r\nhost: t\r\nx-slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let mut healthy = Client::new(node.http, REQUEST_MAX);
    let mut slowest = Duration::ZERO;
    let mut answers = Vec::new();
    let mut sent = 0;
    wait::until("all slow senders to be cut off", CUT_OFF_MAX, || {
        let byte = [*head.get(sent).unwrap_or(&b'a')];
        sent += 1;
        drip(&mut heads, byte, &mut answers);
        drip(&mut bodies, *b"x", &mut answers);
        let began = Instant::now();
        let answer = healthy.send(&Request::get("/kv/default/here"));
        slowest = slowest.max(began.elapsed());
        assert!(
            matches!(&answer, Ok(answer) if answer.status == 200),
            "{answer:?}"
        );
        match heads.iter().chain(&bodies).flatten().count() {
            0 => Ok(()),
            open => Err(format!("{open} are still open")),
        }
    });
    assert!(
        slowest < Duration::from_secs(2),
        "a healthy request took {slowest:?}"
    );
    for answer in &answers {
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 408 "),
            "{answer}"
        );
    }
    let explained = answers
        .iter()
        .filter(|answer| answer.starts_with("HTTP/1.1 408 "))
        .count();
    assert!(
        explained >= 20,
        "408 for {explained} of 20 slow bodies: {answers:?}"
    );
    for number in 0..20 {
        assert_eq!(node.get(&format!("/kv/default/slow-{number}")), None);
    }
    assert_still_serves(node, pid);
}

/// One more byte on each connection; takes those away that the node has answered or closed.
fn drip(connections: &mut [Option<Connection>], byte: [u8; 1], answers: &mut Vec<String>) {
    for slot in connections {
        let Some(connection) = slot else { continue };
        if connection.is_stale() || connection.send(&byte).is_err() {
            let said = connection
                .receive_until_closed(ANSWER_MAX)
                .expect("the node to close");
            answers.push(String::from_utf8_lossy(&said).into_owned());
            *slot = None;
        }
    }
}

#[test]
fn more_connections_than_allowed_do_not_lock_out_those_that_work() {
    let _alone = alone();
    let cluster = start();
    let node = &cluster.nodes[0];
    let pid = node.pid();
    let mut healthy = Client::new(node.http, REQUEST_MAX);
    let mut is_served = || match healthy.send(&Request::get("/kv/default/here")) {
        Ok(answer) if answer.status == 200 => Ok(()),
        Ok(answer) => Err(format!("{} {}", answer.status, answer.text())),
        Err(error) => Err(error.to_string()),
    };
    is_served().expect("a healthy request before");
    let mut idle = Vec::new();
    for _ in 0..300 {
        // Beyond the limit a connection may be refused, closed, or left waiting: all are bounds.
        idle.extend(Connection::open(node.http, REQUEST_MAX));
    }
    is_served().expect("a healthy request on its old connection");
    drop(idle);
    wait::until("new connections to be served again", CUT_OFF_MAX, || {
        node.ask(&Request::get("/kv/default/here")).map(drop)
    });
    assert_still_serves(node, pid);
}

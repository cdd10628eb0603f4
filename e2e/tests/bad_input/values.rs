//! Odd but good input: it must work, byte for byte. And input that ends too early.

use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use torc_e2e::alone;
use torc_e2e::cluster::{REQUEST_MAX, shown};
use torc_e2e::http::{Connection, Request};

use super::{ANSWER_MAX, assert_still_serves, one_node};

#[test]
fn binary_keys_and_empty_values_are_kept_byte_for_byte() {
    let _alone = alone();
    let cluster = one_node();
    let node = &cluster.nodes[0];
    let mut keys: Vec<String> = (0..=255_u8).map(|byte| format!("%{byte:02X}")).collect();
    keys.extend(
        [
            "a/b/c",
            "a%2Fb%2Fd",
            "..",
            "a/../b",
            "a//b",
            "//",
            "%00%00",
            "_batchx",
            "a%3Fr=one",
            "a+b",
            "a%20b",
        ]
        .map(str::to_owned),
    );
    keys.push("%ff".repeat(1_024));
    for key in &keys {
        node.put(&format!("/kv/default/{key}"), format!("value of {key}"));
    }
    for key in &keys {
        let value = node.get(&format!("/kv/default/{key}"));
        assert_eq!(
            value,
            Some(format!("value of {key}").into_bytes()),
            "key {key}"
        );
    }
    // One key, two spellings.
    assert_eq!(
        node.get("/kv/default/a%2fb/c"),
        Some(b"value of a/b/c".to_vec())
    );

    let every_byte: Vec<u8> = (0..=255).collect();
    for value in [vec![], vec![0], every_byte, vec![b'x'; 1024 * 1024]] {
        node.put("/kv/default/value", value.clone());
        assert_eq!(node.get("/kv/default/value"), Some(value));
    }
    node.put("/kv/default/value", "");
    let head = node.ask(&Request::new("HEAD", "/kv/default/value"));
    assert!(
        matches!(&head, Ok(answer) if answer.status == 200),
        "{}",
        shown(head)
    );
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let _alone = alone();
    let cluster = one_node();
    let node = &cluster.nodes[0];
    let mut connection = Connection::open(node.http, REQUEST_MAX).expect("connect");
    let mut bytes = Vec::new();
    for number in 0..50 {
        let target = format!("/kv/default/pipelined-{number}");
        bytes.extend(Request::put(&target, format!("{number}")).encode());
        bytes.extend(Request::get(&target).encode());
        bytes.extend(Request::get("/kv/nosuch/k").encode());
    }
    connection.send(&bytes).expect("send all at once");
    for number in 0..50 {
        let put = connection
            .receive(false, ANSWER_MAX)
            .expect("an answer to PUT");
        assert_eq!(put.status, 204, "{number}: {}", put.text());
        let get = connection
            .receive(false, ANSWER_MAX)
            .expect("an answer to GET");
        assert_eq!((get.status, get.text()), (200, number.to_string()));
        let missing = connection
            .receive(false, ANSWER_MAX)
            .expect("an answer to the bad GET");
        assert_eq!(missing.status, 404, "{number}: {}", missing.text());
    }
}

#[test]
fn a_body_that_ends_too_early_writes_nothing() {
    let _alone = alone();
    let cluster = one_node();
    let node = &cluster.nodes[0];
    let pid = node.pid();
    let bodies = [
        "content-length: 100\r\n\r\nonly these",
        "content-length: 1\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n5\r\n",
        "transfer-encoding: chunked\r\n\r\n5\r\nabc",
        "transfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n",
        "transfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n",
        "transfer-encoding: chunked\r\n\r\n5\r\nabcdeX",
    ];
    for (number, body) in bodies.iter().enumerate() {
        let target = format!("/kv/default/truncated-{number}");
        let mut connection = Connection::open(node.http, REQUEST_MAX).expect("connect");
        let head = format!("PUT {target} HTTP/1.1\r\nhost: t\r\n{body}");
        connection.send(head.as_bytes()).expect("send");
        connection.finish_sending();
        let said = connection
            .receive_until_closed(ANSWER_MAX)
            .expect("the node to close");
        assert!(
            !said.starts_with(b"HTTP/1.1 2"),
            "{body:?}: {}",
            String::from_utf8_lossy(&said)
        );
        assert_eq!(node.get(&target), None, "{body:?} was written");
    }
    assert_still_serves(node, pid);
}

#[test]
fn a_client_that_asks_first_is_answered_before_it_sends() {
    let _alone = alone();
    let cluster = one_node();
    let node = &cluster.nodes[0];
    let head = |target: &str, length: usize| {
        format!(
            "PUT {target} HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let mut connection = Connection::open(node.http, REQUEST_MAX).expect("connect");
    connection
        .send(head("/kv/default/asked", 5).as_bytes())
        .expect("send");
    assert_eq!(
        connection
            .receive_status(ANSWER_MAX)
            .expect("leave to send"),
        100
    );
    connection.send(b"hello").expect("send");
    assert_eq!(
        connection
            .receive(false, ANSWER_MAX)
            .expect("an answer")
            .status,
        204
    );
    // What will be refused anyway is refused before it is sent.
    for (target, length, status) in [
        ("/kv/default/asked", 10_000_000, 413),
        ("/kv/Bad/asked", 5, 400),
        ("/kv/nosuch/asked", 5, 404),
    ] {
        let mut connection = Connection::open(node.http, REQUEST_MAX).expect("connect");
        connection
            .send(head(target, length).as_bytes())
            .expect("send");
        assert_eq!(
            connection.receive_status(ANSWER_MAX).expect("an answer"),
            status,
            "{target}"
        );
    }
}

#[test]
fn a_batch_answers_each_line_on_its_own() {
    let _alone = alone();
    let cluster = one_node();
    let node = &cluster.nodes[0];
    let lines = [
        ("{\"op\":\"put\",\"key\":\"b1\",\"value\":\"one\"}", 204),
        ("{\"op\":\"get\",\"key\":\"here\"}", 200),
        ("{\"op\":\"get\",\"key\":\"absent\"}", 404),
        ("not json", 400),
        ("{}", 400),
        ("{\"op\":\"frobnicate\",\"key\":\"k\"}", 400),
        ("{\"op\":\"get\"}", 400),
        ("{\"op\":\"get\",\"key\":\"\"}", 400),
        ("{\"op\":\"put\",\"key\":\"k\"}", 400),
        ("{\"op\":\"put\",\"key\":7,\"value\":\"x\"}", 400),
        (
            "{\"op\":\"put\",\"key\":\"%%%\",\"encoding\":\"base64\",\"value\":\"x\"}",
            400,
        ),
        ("{\"op\":\"delete\",\"key\":\"b1\"}", 204),
        ("{\"op\":\"get\",\"key\":\"b1\"}", 404),
    ];
    let body: String = lines.iter().flat_map(|(line, _)| [line, "\n"]).collect();
    let request = Request::new("POST", "/kv/default/_batch")
        .header("content-type", "application/x-ndjson")
        .body(body);
    let answer = node.ask(&request).expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let text = answer.text();
    let answers: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect();
    assert_eq!(answers.len(), lines.len(), "{text}");
    for ((line, status), answer) in lines.iter().zip(&answers) {
        assert_eq!(answer["status"].as_u64(), Some(*status), "{line}: {answer}");
    }
}

#[test]
fn http_2_by_prior_knowledge_serves_keys_and_problems() {
    let _alone = alone();
    let cluster = one_node();
    let node = &cluster.nodes[0];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let exchange = async {
        let stream = tokio::net::TcpStream::connect(node.http)
            .await
            .expect("connect");
        let io = TokioIo::new(stream);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                .await
                .expect("a handshake");
        tokio::spawn(connection);
        let mut answers = Vec::new();
        for (method, path, body) in [
            ("PUT", "/kv/default/two", "over h2"),
            ("GET", "/kv/default/two", ""),
            ("GET", "/kv/Bad/two", ""),
            ("POST", "/kv/default/two", "x"),
        ] {
            let request = http::Request::builder()
                .method(method)
                .uri(format!("http://{}{path}", node.http))
                .body(Full::new(bytes::Bytes::from(body)))
                .expect("a request");
            let response = sender.send_request(request).await.expect("an answer");
            let status = response.status().as_u16();
            let body = response
                .into_body()
                .collect()
                .await
                .expect("a body")
                .to_bytes();
            answers.push((status, String::from_utf8_lossy(&body).into_owned()));
        }
        answers
    };
    let answers = runtime
        .block_on(async { tokio::time::timeout(ANSWER_MAX, exchange).await })
        .expect("answers in time");
    assert_eq!(answers[0].0, 204, "{answers:?}");
    assert_eq!(answers[1], (200, "over h2".to_owned()));
    assert_eq!(answers[2].0, 400, "{answers:?}");
    assert_eq!(answers[3].0, 405, "{answers:?}");
    for (status, body) in &answers[2..] {
        let problem: serde_json::Value = serde_json::from_str(body).expect("a problem document");
        assert_eq!(problem["status"].as_u64(), Some(u64::from(*status)));
    }
}

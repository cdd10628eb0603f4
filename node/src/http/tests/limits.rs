use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use torc_protocol::client::ClientError;

use super::client::request;
use super::{Facade, PATIENCE, until};

fn quick(settings: &mut crate::config::Settings) {
    settings.limits.header_timeout = Duration::from_millis(100);
    settings.limits.body_timeout = Duration::from_millis(100);
    settings.limits.value_bytes = 10_000;
    settings.limits.header_bytes = 8_192;
}

#[tokio::test]
async fn a_value_over_the_limit_is_refused_however_it_is_sent() {
    let facade = Facade::with(quick).await;
    facade.put("/kv/default/k", &[b'x'; 10_000]).await;
    let mut announced = facade.client().await;
    announced
        .send("PUT /kv/default/k HTTP/1.1\r\nhost: t\r\ncontent-length: 10001\r\n\r\n")
        .await;
    let answer = announced.answer(false).await;
    assert_eq!(
        (answer.status, answer.problem().as_str()),
        (413, "too-large")
    );
    assert_eq!(answer.json()["limit"], 10_000);
    assert_eq!(answer.must("connection"), "close");
    assert!(announced.rest().await.is_empty());

    let mut chunked = facade.client().await;
    chunked
        .send("PUT /kv/default/k HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    chunked.send("1388\r\n").await;
    chunked.send([b'x'; 5_000]).await;
    chunked.send("\r\n1389\r\n").await;
    chunked.send([b'x'; 5_001]).await;
    let answer = chunked.answer(false).await;
    assert_eq!(
        (answer.status, answer.problem().as_str()),
        (413, "too-large")
    );
}

#[tokio::test]
async fn expect_100_continue_asks_for_the_body_only_when_it_is_wanted() {
    let facade = Facade::with(quick).await;
    let head = |len: usize, what: &str| {
        format!(
            "PUT /kv/default/{what} HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: {len}\r\n\r\n"
        )
    };
    let mut wanted = facade.client().await;
    wanted.send(head(3, "k")).await;
    wanted.until_text("HTTP/1.1 100 Continue\r\n\r\n").await;
    wanted.send("abc").await;
    assert_eq!(wanted.answer(false).await.status, 204);
    for (len, what, status) in [(10_001, "k", 413), (3, "%zz", 400)] {
        let mut unwanted = facade.client().await;
        unwanted.send(head(len, what)).await;
        let said = unwanted.rest().await;
        assert!(
            said.starts_with(format!("HTTP/1.1 {status}").as_bytes()),
            "{}",
            String::from_utf8_lossy(&said)
        );
    }
}

#[tokio::test]
async fn a_slow_sender_is_told_so_and_cut_off() {
    let facade = Facade::with(quick).await;
    // A head that never ends, after one that did and without one.
    for first in [&b""[..], &request("GET", "/health/live", &[], b"")] {
        let mut client = facade.client().await;
        if !first.is_empty() {
            client.send(first).await;
            assert_eq!(client.answer(false).await.status, 200);
        }
        client
            .send("GET /kv/default/k HTTP/1.1\r\nhost: t\r\nx-slow: ")
            .await;
        let answer = client.answer(false).await;
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (408, "too-slow")
        );
        assert!(client.rest().await.is_empty());
    }
    // Not even enough to tell which HTTP it is.
    let mut client = facade.client().await;
    client.send("PRI * HT").await;
    assert_eq!(client.answer(false).await.status, 408);
    // A body that stays away, and one that trickles.
    let mut client = facade.client().await;
    client
        .send("PUT /kv/default/k HTTP/1.1\r\nhost: t\r\ncontent-length: 5\r\n\r\nab")
        .await;
    let answer = client.answer(false).await;
    assert_eq!(
        (answer.status, answer.problem().as_str()),
        (408, "too-slow")
    );
    assert!(client.rest().await.is_empty());
    assert_eq!(
        facade.get("/kv/default/k").await.status,
        404,
        "nothing was written"
    );
    // Silence is not answered, only ended.
    assert!(facade.client().await.rest().await.is_empty());
}

#[tokio::test]
async fn a_truncated_body_is_no_value() {
    let facade = Facade::start().await;
    for body in [
        "content-length: 10\r\n\r\nabc",
        "transfer-encoding: chunked\r\n\r\n5\r\nab",
    ] {
        let mut client = facade.client().await;
        client
            .send(format!("PUT /kv/default/k HTTP/1.1\r\nhost: t\r\n{body}"))
            .await;
        client.finish().await;
        if let Some(answer) = client.answer_or_end().await {
            assert_eq!((answer.status, answer.problem().as_str()), (400, "body"));
        }
        assert_eq!(facade.get("/kv/default/k").await.status, 404, "{body}");
    }
    let mut client = facade.client().await;
    client
        .send("PUT /kv/default/k HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n")
        .await;
    let answer = client.answer(false).await;
    assert_eq!((answer.status, answer.problem().as_str()), (400, "body"));
}

#[tokio::test]
async fn what_is_no_http_gets_a_problem_document_all_the_same() {
    let facade = Facade::with(quick).await;
    let headers = (0..150)
        .map(|n| format!("x-{n}: y\r\n"))
        .collect::<Vec<_>>()
        .concat();
    let cases: Vec<(String, u16, &str)> = vec![
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n".into(), 400, "malformed"),
        ("GET / HTTP/9.9\r\n\r\n".into(), 400, "malformed"),
        ("nonsense\r\n\r\n".into(), 400, "malformed"),
        ("GET /a b HTTP/1.1\r\nhost: t\r\n\r\n".into(), 400, "malformed"),
        ("GET /kv/default/a<b HTTP/1.1\r\nhost: t\r\n\r\n".into(), 400, "malformed"),
        ("PUT /kv/default/k HTTP/1.1\r\nhost: t\r\ncontent-length: x\r\n\r\n".into(), 400, "malformed"),
        ("PUT /kv/default/k HTTP/1.1\r\nhost: t\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n".into(), 400, "malformed"),
        ("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".into(), 400, "malformed"),
        ("GET /health/live HTTP/1.1\r\n\r\n".into(), 400, "host"),
        (format!("GET / HTTP/1.1\r\nhost: t\r\nx: {}\r\n\r\n", "y".repeat(9_000)), 431, "header-too-large"),
        (format!("GET / HTTP/1.1\r\nhost: t\r\n{headers}\r\n"), 431, "header-too-large"),
        (format!("GET /kv/default/{} HTTP/1.1\r\nhost: t\r\n\r\n", "k".repeat(9_000)), 414, "uri-too-long"),
        (format!("GET /kv/default/{} HTTP/1.1\r\nhost: t\r\n\r\n", "k".repeat(70_000)), 414, "uri-too-long"),
    ];
    for (bytes, status, kind) in &cases {
        let shown: String = bytes.chars().take(70).collect();
        // Alone, after a request on the same connection, and in one piece with it.
        let good = request("GET", "/health/live", &[], b"");
        let mut alone = facade.client().await;
        alone.send(bytes).await;
        let mut after = facade.client().await;
        assert_eq!(after.ask("GET", "/health/live", &[], b"").await.status, 200);
        after.send(bytes).await;
        let mut pipelined = facade.client().await;
        pipelined.send([&good, bytes.as_bytes()].concat()).await;
        assert_eq!(pipelined.answer(false).await.status, 200);
        for client in [&mut alone, &mut after] {
            let answer = client.answer(false).await;
            assert_eq!(answer.status, *status, "{shown:?}: {}", answer.text());
            assert_eq!(answer.problem(), *kind, "{shown:?}");
        }
        // What of it had come with the request before it cannot be told apart by then.
        let answer = pipelined.answer(false).await;
        let fits = answer.status == *status || (*status, answer.status) == (414, 431);
        assert!(fits, "{shown:?}: {}", answer.text());
        answer.problem();
    }
}

#[tokio::test]
async fn a_stored_value_that_looks_like_a_refusal_is_left_alone() {
    let facade = Facade::start().await;
    let value =
        b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".repeat(1_000);
    facade.put("/kv/default/k", &value).await;
    let mut client = facade.client().await;
    let get = request("GET", "/kv/default/k", &[], b"");
    client.send(get.repeat(20)).await;
    for _ in 0..20 {
        assert_eq!(client.answer(false).await.body, value);
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let facade = Facade::start().await;
    let mut bytes = Vec::new();
    for number in 0..40 {
        let target = format!("/kv/default/{number}");
        bytes.extend(request("PUT", &target, &[], target.as_bytes()));
        bytes.extend(request("GET", &target, &[], b""));
        bytes.extend(request("GET", "/kv/absent/k", &[], b""));
    }
    let mut client = facade.client().await;
    client.send(&bytes).await;
    for number in 0..40 {
        assert_eq!(client.answer(false).await.status, 204);
        assert_eq!(
            client.answer(false).await.text(),
            format!("/kv/default/{number}")
        );
        assert_eq!(client.answer(false).await.problem(), "no-such-bucket");
    }
}

#[tokio::test]
async fn too_many_requests_are_refused_early_and_health_is_not() {
    let facade = Facade::with(|settings| settings.limits.requests = 3).await;
    let mut held = Vec::new();
    for number in 0..3 {
        let mut client = facade.client().await;
        client
            .send(request("GET", "/kv/default/held", &[], b""))
            .await;
        until("the request to be held", || facade.backend.count() > number).await;
        held.push(client);
    }
    let refused = facade.ask("PUT", "/kv/default/k", &[], b"v").await;
    assert_eq!(
        (refused.status, refused.problem().as_str()),
        (429, "too-many-requests")
    );
    assert_eq!(
        (
            refused.must("retry-after").as_str(),
            &refused.json()["limit"]
        ),
        ("1", &3.into())
    );
    assert_eq!(facade.get("/health/ready").await.status, 200);
    facade.backend.release();
    for client in &mut held {
        assert_eq!(client.answer(false).await.status, 404);
    }
    until("the places to be free again", || {
        facade.backend.count() == 3
    })
    .await;
    assert_eq!(facade.get("/kv/default/k").await.status, 404);
}

#[tokio::test]
async fn a_connection_too_many_is_told_so() {
    let facade = Facade::with(|settings| settings.limits.connections = 2).await;
    let (mut one, mut two) = (facade.client().await, facade.client().await);
    assert_eq!(one.ask("GET", "/health/live", &[], b"").await.status, 200);
    assert_eq!(two.ask("GET", "/health/live", &[], b"").await.status, 200);
    let mut three = facade.client().await;
    three.send(request("GET", "/health/live", &[], b"")).await;
    let answer = three.answer(false).await;
    assert_eq!(
        (answer.status, answer.problem().as_str()),
        (503, "too-many-connections")
    );
    assert_eq!(one.ask("GET", "/health/live", &[], b"").await.status, 200);
    drop(two);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let mut again = facade.client().await;
        again.send(request("GET", "/health/live", &[], b"")).await;
        if again.answer(false).await.status == 200 {
            break;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "a place is free again"
        );
    }
}

#[tokio::test]
async fn every_failure_of_the_core_has_its_status() {
    let facade = Facade::start().await;
    let quorum = |maybe_applied| ClientError::Quorum {
        required: 2,
        received: 1,
        maybe_applied,
    };
    let full = ClientError::DiskFull {
        required: 2,
        received: 0,
        maybe_applied: false,
    };
    let rows: &[(ClientError, u16, &str, Option<&str>, bool)] = &[
        (quorum(true), 503, "quorum", Some("unknown"), true),
        (quorum(false), 503, "quorum", Some("not-written"), true),
        (
            ClientError::Unavailable {
                required: 2,
                alive: 1,
            },
            503,
            "unavailable",
            Some("not-written"),
            true,
        ),
        (
            ClientError::QuorumTooLarge { given: 4, n: 3 },
            400,
            "quorum-size",
            None,
            false,
        ),
        (ClientError::Mode, 400, "conflict-mode", None, false),
        (ClientError::NoBucket, 404, "no-such-bucket", None, false),
        (full, 507, "disk-full", Some("not-written"), false),
        (
            ClientError::ClockDrift,
            503,
            "clock-drift",
            Some("not-written"),
            true,
        ),
        (ClientError::ContextFromFuture, 400, "context", None, false),
        (
            ClientError::Overloaded,
            503,
            "overloaded",
            Some("not-written"),
            true,
        ),
        (
            ClientError::NotReady,
            503,
            "not-ready",
            Some("not-written"),
            true,
        ),
    ];
    for &(error, status, kind, outcome, retries) in rows {
        facade.backend.fail(Some(error));
        let put = facade.ask("PUT", "/kv/default/k", &[], b"v").await;
        let get = facade.get("/kv/default/k").await;
        for answer in [&put, &get] {
            assert_eq!(
                (answer.status, answer.problem().as_str()),
                (status, kind),
                "{error:?}"
            );
            assert_eq!(answer.header("retry-after").is_some(), retries, "{error:?}");
        }
        assert_eq!(put.json()["outcome"].as_str(), outcome, "{error:?}");
        assert!(get.json()["outcome"].is_null(), "a read has no outcome");
        if status == 503
            && matches!(
                error,
                ClientError::Quorum { .. } | ClientError::Unavailable { .. }
            )
        {
            assert_eq!(
                (&put.json()["required"], &put.json()["received"]),
                (&2.into(), &1.into())
            );
        }
        let compatible = facade.get("/kv?key=k").await;
        assert_eq!(compatible.status, status);
        assert_eq!(
            compatible.json().as_object().map(serde_json::Map::len),
            Some(1),
            "{}",
            compatible.text()
        );
    }
}

#[tokio::test]
async fn a_stop_lets_requests_end_and_then_cuts_off() {
    let facade =
        Facade::with(|settings| settings.limits.shutdown = Duration::from_millis(300)).await;
    let mut idle = facade.client().await;
    assert_eq!(idle.ask("GET", "/health/live", &[], b"").await.status, 200);
    let mut silent = facade.client().await;
    let (mut ends, mut hangs) = (facade.client().await, facade.client().await);
    ends.send(request("GET", "/kv/default/held-1", &[], b""))
        .await;
    until("the request", || facade.backend.count() == 1).await;
    facade.stop.send(true).expect("the facade listens");
    assert!(idle.rest().await.is_empty());
    assert!(silent.rest().await.is_empty());
    facade.backend.release();
    assert_eq!(ends.answer(false).await.status, 404);
    assert!(ends.rest().await.is_empty());
    assert!(hangs.rest().await.is_empty());
    tokio::time::timeout(PATIENCE, facade.servers.done)
        .await
        .expect("it ends")
        .expect("in order");

    let facade =
        Facade::with(|settings| settings.limits.shutdown = Duration::from_millis(100)).await;
    hangs = facade.client().await;
    hangs
        .send(request("GET", "/kv/default/held-2", &[], b""))
        .await;
    until("the request", || facade.backend.count() == 1).await;
    drop(facade.stop);
    assert!(hangs.rest().await.is_empty(), "cut off without an answer");
    tokio::time::timeout(PATIENCE, facade.servers.done)
        .await
        .expect("it ends")
        .expect("in order");
}

#[tokio::test]
async fn http2_with_prior_knowledge() {
    let facade = Facade::with(quick).await;
    let stream = tokio::net::TcpStream::connect(facade.servers.addresses.http)
        .await
        .expect("connect");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("handshake");
    tokio::spawn(connection);
    let uri = format!("http://{}/kv/default/k", facade.servers.addresses.http);
    let put = http::Request::put(&uri)
        .body(Full::new(bytes::Bytes::from_static(b"two")))
        .expect("a request");
    assert_eq!(
        sender.send_request(put).await.expect("an answer").status(),
        204
    );
    let big = http::Request::put(&uri)
        .body(Full::new(bytes::Bytes::from(vec![b'x'; 10_001])))
        .expect("a request");
    assert_eq!(
        sender.send_request(big).await.expect("an answer").status(),
        413
    );
    let requests = (0..50).map(|_| {
        let get = http::Request::get(&uri)
            .body(Full::default())
            .expect("a request");
        let answer = sender.send_request(get);
        async move {
            let answer = answer.await.expect("an answer");
            let etag = answer.headers().get("etag").is_some();
            (
                answer.status().as_u16(),
                etag,
                answer
                    .into_body()
                    .collect()
                    .await
                    .expect("a body")
                    .to_bytes(),
            )
        }
    });
    for (status, etag, body) in futures_util::future::join_all(requests.collect::<Vec<_>>()).await {
        assert_eq!((status, etag, &body[..]), (200, true, &b"two"[..]));
    }
    let head = http::Request::head(&uri)
        .body(Full::default())
        .expect("a request");
    let head = sender.send_request(head).await.expect("an answer");
    assert_eq!(
        (
            head.status().as_u16(),
            head.headers()["content-length"].as_bytes()
        ),
        (200, &b"3"[..])
    );

    // A frame that is none ends the connection; the server goes on.
    let mut broken = facade.client().await;
    broken
        .send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nthis is no frame at all")
        .await;
    broken.rest().await;
    assert_eq!(facade.get("/kv/default/k").await.text(), "two");
}

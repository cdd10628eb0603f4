use std::time::Duration;

use bytes::Bytes;
use torc_protocol::client::ClientOp;
use torc_protocol::record::CONTENT_TYPE_MAX;
use torc_ring::Quorum;

use super::{Facade, until};

#[tokio::test]
async fn a_value_comes_back_as_it_was_put() {
    let facade = Facade::start().await;
    let put = facade
        .ask(
            "PUT",
            "/kv/default/a%2Fb/c",
            &[("content-type", "text/plain")],
            b"hello",
        )
        .await;
    assert_eq!((put.status, put.body.len()), (204, 0));
    let get = facade.get("/kv/default/a/b%2Fc").await;
    assert_eq!((get.status, get.text().as_str()), (200, "hello"));
    assert_eq!(get.must("content-type"), "text/plain");
    assert_eq!(get.must("etag"), put.must("etag"));
    assert_eq!(get.must("x-torc-context"), put.must("x-torc-context"));
    assert_eq!(get.must("accept-ranges"), "bytes");
    assert!(httpdate::parse_http_date(&get.must("last-modified")).is_ok());
    assert_eq!(put.header("x-torc-superseded"), None);
    let head = facade.ask("HEAD", "/kv/default/a/b/c", &[], b"").await;
    assert_eq!(
        (head.status, head.must("content-length").as_str()),
        (200, "5")
    );
    assert_eq!(head.must("etag"), put.must("etag"));
}

#[tokio::test]
async fn a_deleted_key_has_a_context_and_a_key_that_never_was_has_none() {
    let facade = Facade::start().await;
    let never = facade.get("/kv/default/k").await;
    assert_eq!(
        (never.status, never.problem().as_str()),
        (404, "no-such-key")
    );
    assert_eq!(never.header("x-torc-context"), None);
    facade.put("/kv/default/k", b"v").await;
    let deleted = facade.ask("DELETE", "/kv/default/k", &[], b"").await;
    assert_eq!(deleted.status, 204);
    let gone = facade.get("/kv/default/k").await;
    assert_eq!((gone.status, gone.problem().as_str()), (404, "no-such-key"));
    assert_eq!(gone.must("x-torc-context"), deleted.must("x-torc-context"));
    assert_eq!(
        facade
            .ask("DELETE", "/kv/default/never", &[], b"")
            .await
            .status,
        204
    );
}

#[tokio::test]
async fn empty_values_and_binary_keys_are_values_and_keys() {
    let facade = Facade::start().await;
    facade.put("/kv/default/empty", b"").await;
    let empty = facade.get("/kv/default/empty").await;
    assert_eq!(
        (empty.status, empty.must("content-length").as_str()),
        (200, "0")
    );
    assert_eq!(empty.must("content-type"), "application/octet-stream");
    for key in [
        "%00", "%FF%fe", "..", "a/../b", "/", "a//b", "%25", "_batch", "a+b", "a%20b",
    ] {
        facade
            .put(&format!("/kv/default/{key}"), key.as_bytes())
            .await;
        assert_eq!(facade.get(&format!("/kv/default/{key}")).await.text(), key);
    }
    let ClientOp::Get { key, .. } = facade.backend.last().op else {
        panic!("a get")
    };
    assert_eq!(key, Bytes::from_static(b"a b"));
}

#[tokio::test]
async fn what_the_query_says_reaches_the_core() {
    let facade = Facade::start().await;
    let query = "w=all&ttl=10m&sloppy=true&durability=fsync&deadline=500ms";
    let put = facade
        .ask(
            "PUT",
            &format!("/kv/default/k?{query}"),
            &[("x-request-id", "id-1")],
            b"v",
        )
        .await;
    assert_eq!(
        (put.status, put.must("x-request-id").as_str()),
        (204, "id-1")
    );
    let request = facade.backend.last();
    assert_eq!(request.trace, Bytes::from_static(b"id-1"));
    assert!(request.deadline.since(facade.backend.handle.now().mono) <= 500_000);
    let ClientOp::Put {
        value: Some(value),
        w,
        sloppy,
        fsync,
        context,
        ..
    } = request.op
    else {
        panic!("a put")
    };
    assert_eq!(
        (w, sloppy, fsync, context),
        (Some(Quorum::All), Some(true), true, None)
    );
    assert_eq!(value.ttl_ms, Some(600_000));
    let context = put.must("x-torc-context");
    let again = facade
        .ask(
            "PUT",
            "/kv/default/k",
            &[("x-torc-context", &context)],
            b"w",
        )
        .await;
    assert_eq!(again.status, 204, "{}", again.text());
    let ClientOp::Put {
        context: Some(seen),
        w: None,
        sloppy: None,
        fsync: false,
        ..
    } = facade.backend.last().op
    else {
        panic!("a put with a context")
    };
    let first = super::super::tags::etag_version(&put.must("etag"));
    assert_eq!(Some(seen), first, "the version that the author had seen");
    facade.get("/kv/default/k?r=one&deadline=1s").await;
    assert!(matches!(
        facade.backend.last().op,
        ClientOp::Get {
            r: Some(Quorum::One),
            ..
        }
    ));
    let lowered = [("x-torc-deadline", "100ms")];
    facade
        .ask("GET", "/kv/default/k?deadline=1s", &lowered, b"")
        .await;
    assert!(
        facade
            .backend
            .last()
            .deadline
            .since(facade.backend.handle.now().mono)
            <= 100_000
    );
}

#[tokio::test]
async fn a_write_that_lost_at_once_is_told_so() {
    let facade = Facade::start().await;
    facade.backend.supersede();
    assert_eq!(
        facade
            .put("/kv/default/k", b"v")
            .await
            .must("x-torc-superseded"),
        "true"
    );
}

#[tokio::test]
async fn a_value_vanishes_when_its_time_is_over() {
    let facade = Facade::start().await;
    facade.ask("PUT", "/kv/default/k?ttl=50ms", &[], b"v").await;
    let deadline = tokio::time::Instant::now() + super::PATIENCE;
    while facade.get("/kv/default/k").await.status == 200 {
        assert!(tokio::time::Instant::now() < deadline, "it stays");
    }
    let gone = facade.get("/kv/default/k").await;
    assert_eq!(
        (gone.status, gone.header("x-torc-context").is_some()),
        (404, true)
    );
}

#[tokio::test]
async fn conditional_reads() {
    let facade = Facade::start().await;
    let etag = facade.put("/kv/default/k", b"v").await.must("etag");
    let weak = format!("W/{etag}");
    let list = format!("\"other\", {etag}");
    let cases: &[(&str, &str, u16)] = &[
        ("if-none-match", &etag, 304),
        ("if-none-match", &weak, 304),
        ("if-none-match", &list, 304),
        ("if-none-match", "*", 304),
        ("if-none-match", "\"other\"", 200),
        ("if-none-match", "nonsense", 200),
        ("if-match", &etag, 200),
        ("if-match", "*", 200),
        ("if-match", &weak, 412),
        ("if-match", "\"other\"", 412),
        ("if-unmodified-since", "Mon, 01 Jan 2001 00:00:00 GMT", 412),
        ("if-unmodified-since", "Fri, 01 Jan 2100 00:00:00 GMT", 200),
        ("if-unmodified-since", "whenever", 200),
        ("if-modified-since", "Fri, 01 Jan 2100 00:00:00 GMT", 200),
    ];
    for &(name, value, status) in cases {
        for method in ["GET", "HEAD"] {
            let answer = facade
                .ask(method, "/kv/default/k", &[(name, value)], b"")
                .await;
            assert_eq!(answer.status, status, "{method} {name}: {value}");
            if status == 304 {
                assert_eq!(answer.must("etag"), etag);
                assert!(answer.body.is_empty());
            }
        }
    }
    for (name, _, _) in &cases[..14] {
        let missing = facade
            .ask("GET", "/kv/default/absent", &[(name, "*")], b"")
            .await;
        assert_eq!(
            missing.status, 404,
            "no condition turns a 404 into something else: {name}"
        );
    }
}

#[tokio::test]
async fn ranges() {
    let facade = Facade::start().await;
    let etag = facade
        .put("/kv/default/k", b"0123456789")
        .await
        .must("etag");
    let cases: &[(&str, u16, &str, Option<&str>)] = &[
        ("bytes=2-4", 206, "234", Some("bytes 2-4/10")),
        ("bytes=7-", 206, "789", Some("bytes 7-9/10")),
        ("bytes=-2", 206, "89", Some("bytes 8-9/10")),
        ("bytes=0-999", 206, "0123456789", Some("bytes 0-9/10")),
        ("bytes=0-1,4-5", 200, "0123456789", None),
        ("bytes=5-2", 200, "0123456789", None),
        ("pages=1-2", 200, "0123456789", None),
    ];
    for &(range, status, text, content_range) in cases {
        let answer = facade
            .ask("GET", "/kv/default/k", &[("range", range)], b"")
            .await;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (status, text),
            "{range}"
        );
        assert_eq!(answer.header("content-range"), content_range, "{range}");
        assert_eq!(answer.must("etag"), etag);
    }
    let beyond = facade
        .ask("GET", "/kv/default/k", &[("range", "bytes=10-")], b"")
        .await;
    assert_eq!((beyond.status, beyond.problem().as_str()), (416, "range"));
    assert_eq!(beyond.must("content-range"), "bytes */10");
    for (if_range, status) in [
        (etag.as_str(), 206),
        ("\"other\"", 200),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 200),
    ] {
        let headers = [("range", "bytes=0-0"), ("if-range", if_range)];
        assert_eq!(
            facade
                .ask("GET", "/kv/default/k", &headers, b"")
                .await
                .status,
            status,
            "{if_range}"
        );
    }
    let head = facade
        .ask("HEAD", "/kv/default/k", &[("range", "bytes=0-0")], b"")
        .await;
    assert_eq!(
        (head.status, head.must("content-length").as_str()),
        (200, "10")
    );
}

#[tokio::test]
async fn a_watch_answers_on_change_and_gives_up_in_time() {
    let facade = Facade::start().await;
    let etag = facade.put("/kv/default/k", b"old").await.must("etag");
    let known = [("if-none-match", etag.as_str())];
    let over = facade
        .ask("GET", "/kv/default/k?wait=30ms", &known, b"")
        .await;
    assert_eq!((over.status, over.must("etag")), (304, etag.clone()));

    let mut watcher = facade.client().await;
    watcher
        .send(super::client::request(
            "GET",
            "/kv/default/k?wait=30s",
            &known,
            b"",
        ))
        .await;
    until("the watch to begin", || {
        matches!(facade.backend.last().op, ClientOp::Watch { .. })
    })
    .await;
    facade.put("/kv/default/k", b"new").await;
    let news = watcher.answer(false).await;
    assert_eq!((news.status, news.text().as_str()), (200, "new"));
    let stale = facade
        .ask("GET", "/kv/default/k?wait=30s", &known, b"")
        .await;
    assert_eq!(
        (stale.status, stale.text().as_str()),
        (200, "new"),
        "at once: it has changed already"
    );

    let gone = facade
        .ask("DELETE", "/kv/default/k", &[], b"")
        .await
        .must("etag");
    let still_gone = facade
        .ask(
            "GET",
            "/kv/default/k?wait=30ms",
            &[("if-none-match", &gone)],
            b"",
        )
        .await;
    assert_eq!(still_gone.status, 304);
    for headers in [
        &[][..],
        &[("if-none-match", "*")],
        &[("if-none-match", "\"a\", \"b\"")],
    ] {
        let refused = facade
            .ask("GET", "/kv/default/k?wait=1s", headers, b"")
            .await;
        assert_eq!(
            (refused.status, refused.problem().as_str()),
            (400, "query"),
            "{headers:?}"
        );
    }
}

/// Method, target, headers; status and kind of problem.
pub(super) type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], u16, &'a str);

#[tokio::test]
async fn refused_requests_on_keys() {
    let facade = Facade::start().await;
    let long = "k".repeat(1_025);
    let longer = "k".repeat(9_000);
    let long_type = "t".repeat(CONTENT_TYPE_MAX + 1);
    let cases: &[Row<'_>] = &[
        ("GET", "/kv/default/", &[], 400, "key"),
        ("PUT", "/kv/default/", &[], 400, "key"),
        ("GET", &format!("/kv/default/{long}"), &[], 400, "key"),
        (
            "GET",
            &format!("/kv/default/{longer}"),
            &[],
            414,
            "uri-too-long",
        ),
        ("GET", "/kv/default/%zz", &[], 400, "percent-encoding"),
        ("PUT", "/kv/default/%4", &[], 400, "percent-encoding"),
        ("GET", "/kv/Default/k", &[], 400, "bucket-name"),
        ("GET", "/kv//k", &[], 400, "bucket-name"),
        ("GET", "/kv/absent/k", &[], 404, "no-such-bucket"),
        ("PUT", "/kv/absent/k", &[], 404, "no-such-bucket"),
        ("GET", "/kv/default/k?r=0", &[], 400, "query"),
        ("GET", "/kv/default/k?r=4", &[], 400, "quorum-size"),
        ("GET", "/kv/default/k?r=most", &[], 400, "query"),
        ("GET", "/kv/default/k?w=1", &[], 400, "query"),
        ("PUT", "/kv/default/k?r=1", &[], 400, "query"),
        ("PUT", "/kv/default/k?w=4", &[], 400, "quorum-size"),
        ("PUT", "/kv/default/k?ttl=10", &[], 400, "query"),
        ("PUT", "/kv/default/k?ttl=0s", &[], 400, "query"),
        ("DELETE", "/kv/default/k?ttl=10s", &[], 400, "query"),
        ("PUT", "/kv/default/k?deadline=1d", &[], 400, "deadline"),
        ("PUT", "/kv/default/k?deadline=soon", &[], 400, "query"),
        (
            "PUT",
            "/kv/default/k",
            &[("x-torc-deadline", "1d")],
            400,
            "deadline",
        ),
        ("PUT", "/kv/default/k?durability=os", &[], 400, "query"),
        ("PUT", "/kv/default/k?w=1&w=2", &[], 400, "query"),
        ("PUT", "/kv/default/k?x=%zz", &[], 400, "query"),
        (
            "PUT",
            "/kv/default/k",
            &[("if-match", "\"e\"")],
            400,
            "condition",
        ),
        (
            "PUT",
            "/kv/default/k",
            &[("if-none-match", "*")],
            400,
            "condition",
        ),
        (
            "DELETE",
            "/kv/default/k",
            &[("if-match", "*")],
            400,
            "condition",
        ),
        (
            "DELETE",
            "/kv/default/k",
            &[("if-unmodified-since", "x")],
            400,
            "condition",
        ),
        (
            "PUT",
            "/kv/default/k",
            &[("content-range", "bytes 0-0/1")],
            400,
            "content-range",
        ),
        (
            "PUT",
            "/kv/default/k",
            &[("content-encoding", "gzip")],
            415,
            "content-encoding",
        ),
        (
            "PUT",
            "/kv/default/k",
            &[("content-type", &long_type)],
            431,
            "header-too-large",
        ),
        (
            "PUT",
            "/kv/default/k",
            &[("x-torc-context", "nonsense")],
            400,
            "context",
        ),
        (
            "PUT",
            "/kv/default/k",
            &[("x-torc-context", "a"), ("x-torc-context", "b")],
            400,
            "context",
        ),
        (
            "PUT",
            "/kv/default/k",
            &[("expect", "miracles")],
            417,
            "expectation",
        ),
        ("GET", "/kv/default/k", &[("host", "again")], 400, "host"),
        ("POST", "/kv/default/k", &[], 405, "method"),
        ("PATCH", "/kv/default/k", &[], 405, "method"),
        ("OPTIONS", "/kv/default/k", &[], 405, "method"),
    ];
    for &(method, target, headers, status, kind) in cases {
        let answer = facade.ask(method, target, headers, b"").await;
        let shown: String = target.chars().take(60).collect();
        assert_eq!(
            answer.status,
            status,
            "{method} {shown} {headers:?}: {}",
            answer.text()
        );
        assert_eq!(
            answer.problem(),
            kind,
            "{method} {shown} {headers:?}: {}",
            answer.text()
        );
        assert_eq!(answer.must("x-request-id").len(), 16);
        if status == 405 {
            assert_eq!(answer.must("allow"), "GET, HEAD, PUT, DELETE");
        }
    }
    assert_eq!(
        facade.backend.count(),
        0,
        "nothing of this reached the core"
    );
    let misspelt = facade.get("/kv/default/k?deadlin=1s").await;
    assert!(
        misspelt.text().contains("did you mean `deadline`"),
        "{}",
        misspelt.text()
    );
    let limit = facade.get(&format!("/kv/default/{long}")).await.json();
    assert_eq!(
        (&limit["limit"], &limit["received"]),
        (&1024.into(), &1025.into())
    );
}

#[tokio::test]
async fn a_context_is_good_for_its_own_key_only() {
    let facade = Facade::start().await;
    let context = facade
        .put("/kv/default/a", b"v")
        .await
        .must("x-torc-context");
    let headers = [("x-torc-context", context.as_str())];
    assert_eq!(
        facade
            .ask("PUT", "/kv/default/a", &headers, b"w")
            .await
            .status,
        204
    );
    let other = facade.ask("PUT", "/kv/default/b", &headers, b"w").await;
    assert_eq!((other.status, other.problem().as_str()), (400, "context"));
}

#[tokio::test]
async fn large_values_pass_whole_and_in_pieces() {
    let facade = Facade::start().await;
    let value: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
    let mut client = facade.client().await;
    client
        .send(format!(
            "PUT /kv/default/k HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n\r\n",
            value.len()
        ))
        .await;
    for piece in value.chunks(77_777) {
        client.send(piece).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(client.answer(false).await.status, 204);
    assert_eq!(
        client.ask("GET", "/kv/default/k", &[], b"").await.body,
        value
    );
    client
        .send("PUT /kv/default/k HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    for piece in value.chunks(100_000) {
        client.send(format!("{:x}\r\n", piece.len())).await;
        client.send(piece).await;
        client.send("\r\n").await;
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(client.answer(false).await.status, 204);
    assert_eq!(
        client.ask("GET", "/kv/default/k", &[], b"").await.body,
        value
    );
}

//! The client against nodes that do as they are told.

mod fake;

use std::time::{Duration, Instant};

use fake::{Act, FakeNode, nobody, problem};
use torc_client::{
    Admin, BatchOp, Client, ClientConfig, Error, ListOptions, Outcome, Quorum, ReadOptions,
    Routing, Watched, WriteOptions,
};

/// A client that asks the nodes in turn; which one begins is drawn at random.
fn client(nodes: &[String], change: impl FnOnce(&mut ClientConfig)) -> Client {
    let mut config = ClientConfig::new(nodes.to_vec());
    config.routing = Routing::InTurn;
    config.hedge_after = None;
    change(&mut config);
    Client::new(config).expect("client")
}

async fn stored(client: &Client) -> Result<torc_client::Written, Error> {
    client
        .put("default", b"k", "v", &WriteOptions::default())
        .await
}

#[tokio::test]
async fn what_is_asked_and_answered_goes_over_the_wire_unchanged() {
    let headers = "etag: \"7\"\r\nx-torc-context: ctx\r\ncontent-type: text/plain\r\nx-torc-superseded: true\r\n";
    let headers_for = headers.to_owned();
    let node = FakeNode::start(move |line| match line.split(' ').next() {
        Some("PUT" | "DELETE") => Act::Answer(204, headers_for.clone(), String::new()),
        _ => Act::Answer(200, headers_for.clone(), "value".into()),
    })
    .await;
    let client = client(&[node.name()], |_| {});
    let options = WriteOptions {
        w: Some(Quorum::All),
        ttl: Some(Duration::from_secs(30)),
        deadline: Some(Duration::from_secs(1)),
        content_type: Some("text/plain".into()),
        context: Some("before".into()),
        ..WriteOptions::default()
    };
    let written = client
        .put("default", b"a/\xff", "v\0", &options)
        .await
        .expect("put");
    assert_eq!(written.etag.as_deref(), Some("\"7\""));
    assert!(written.superseded);
    let read_options = ReadOptions {
        r: Some(Quorum::One),
        deadline: None,
    };
    let read = client
        .get("default", b"a", &read_options)
        .await
        .expect("get");
    assert_eq!(read.context.as_deref(), Some("ctx"));
    let value = read.value.expect("there");
    assert_eq!(
        (value.bytes.as_ref(), value.meta.content_type.as_deref()),
        (&b"value"[..], Some("text/plain"))
    );
    let head = client
        .head("default", b"a", &ReadOptions::default())
        .await
        .expect("head");
    assert_eq!(head.value.and_then(|meta| meta.length), Some(5));
    client
        .delete("default", b"a", &WriteOptions::default())
        .await
        .expect("delete");

    let asked = node.asked();
    let lines: Vec<&str> = asked.iter().map(|(line, ..)| line.as_str()).collect();
    assert_eq!(
        lines,
        [
            "PUT /kv/default/a%2F%FF?w=all&ttl=30000ms",
            "GET /kv/default/a?r=one",
            "HEAD /kv/default/a",
            "DELETE /kv/default/a"
        ]
    );
    let (_, head, body) = &asked[0];
    assert_eq!(body, b"v\0");
    assert!(
        head.contains("x-torc-context: before") && head.contains("content-type: text/plain"),
        "{head}"
    );
    let deadline = head
        .lines()
        .find_map(|line| line.strip_prefix("x-torc-deadline: "))
        .expect("a deadline");
    let millis: u64 = deadline
        .trim_end_matches("ms")
        .parse()
        .expect("in milliseconds");
    assert!((1..=1000).contains(&millis), "{deadline}");
}

#[tokio::test]
async fn a_missing_key_is_no_error_and_a_missing_bucket_is_one() {
    let node = FakeNode::start(|line| match problem(404, "no-such-key", None) {
        Act::Answer(status, _, body) if line.contains("/default/") => {
            Act::Answer(status, "x-torc-context: deleted\r\n".into(), body)
        }
        _ => problem(404, "no-such-bucket", None),
    })
    .await;
    let client = client(&[node.name()], |_| {});
    let read = client
        .get("default", b"k", &ReadOptions::default())
        .await
        .expect("an answer");
    assert_eq!(
        (read.value, read.context.as_deref()),
        (None, Some("deleted"))
    );
    let error = client
        .get("other", b"k", &ReadOptions::default())
        .await
        .expect_err("no bucket");
    assert_eq!(error.problem().map(|problem| problem.status), Some(404));
    let error = client
        .put("other", b"k", "v", &WriteOptions::default())
        .await
        .expect_err("no bucket");
    assert_eq!(error.outcome(), Outcome::NotWritten);
    assert!(!error.is_clusters_fault());
}

#[tokio::test]
async fn a_refused_connection_sends_reads_and_writes_to_the_next_node() {
    let node = FakeNode::answering(204, "", "").await;
    let client = client(&[nobody().await, node.name()], |_| {});
    for _ in 0..4 {
        stored(&client)
            .await
            .expect("stored by the node that is there");
        client
            .delete("default", b"k", &WriteOptions::default())
            .await
            .expect("deleted");
    }
    assert_eq!(node.asked().len(), 8);
}

#[tokio::test]
async fn nobody_there_means_nothing_written() {
    let client = client(&[nobody().await, nobody().await], |config| {
        config.attempts_max = 3;
    });
    let error = stored(&client).await.expect_err("nobody");
    assert!(
        matches!(error, Error::Unreachable { tried: 3, .. }),
        "{error}"
    );
    assert_eq!(error.outcome(), Outcome::NotWritten);
    assert!(error.is_clusters_fault());
}

#[tokio::test]
async fn a_write_that_was_sent_is_not_repeated_blindly() {
    for act in [
        Act::HangUp,
        Act::Silence,
        problem(503, "quorum", Some("unknown")),
        problem(500, "bug", None),
    ] {
        let shown = format!("{act:?}");
        let nodes = [
            FakeNode::start({
                let act = act.clone();
                move |_| act.clone()
            })
            .await,
            FakeNode::start(move |_| act.clone()).await,
        ];
        let names = nodes.clone().map(|node| node.name());
        let client = client(&names, |config| {
            config.deadline = Duration::from_millis(200);
        });
        let error = stored(&client).await.expect_err("no");
        assert_eq!(error.outcome(), Outcome::Unknown, "{shown}: {error}");
        assert!(error.is_clusters_fault(), "{shown}");
        let asked: usize = nodes.iter().map(|node| node.asked().len()).sum();
        assert_eq!(asked, 1, "{shown}");
    }
}

#[tokio::test]
async fn a_caller_may_ask_for_blind_repetition() {
    let bad = FakeNode::start(|_| Act::HangUp).await;
    let good = FakeNode::answering(204, "", "").await;
    let client = client(&[bad.name(), good.name()], |config| {
        config.retry_unknown = true;
    });
    for _ in 0..4 {
        stored(&client).await.expect("stored by the second");
    }
    assert_eq!(good.asked().len(), 4);
}

#[tokio::test]
async fn a_write_that_certainly_stored_nothing_is_tried_elsewhere() {
    for refusal in [
        problem(503, "unavailable", Some("not-written")),
        problem(429, "too-many-requests", Some("not-written")),
        problem(503, "not-ready", None),
        problem(507, "disk-full", Some("not-written")),
    ] {
        let shown = format!("{refusal:?}");
        let full = FakeNode::start(move |_| refusal.clone()).await;
        let free = FakeNode::answering(204, "", "").await;
        let client = client(&[full.name(), free.name()], |_| {});
        for _ in 0..2 {
            stored(&client).await.expect(&shown);
        }
        assert_eq!(free.asked().len(), 2, "{shown}");
    }
}

#[tokio::test]
async fn attempts_are_bounded_and_the_last_refusal_is_told() {
    let node = FakeNode::start(|_| problem(503, "unavailable", Some("not-written"))).await;
    let client = client(&[node.name()], |config| config.attempts_max = 3);
    let error = stored(&client).await.expect_err("refused");
    assert_eq!(node.asked().len(), 3);
    let problem = error.problem().expect("a problem");
    assert_eq!((problem.required, problem.received), (Some(2), Some(1)));
}

#[tokio::test]
async fn what_the_request_itself_is_to_blame_for_is_asked_once() {
    let node = FakeNode::start(|_| problem(400, "quorum-size", None)).await;
    let client = client(&[node.name()], |_| {});
    let error = client
        .get("default", b"k", &ReadOptions::default())
        .await
        .expect_err("400");
    assert!(!error.is_clusters_fault());
    assert_eq!(node.asked().len(), 1);
}

#[tokio::test]
async fn a_read_goes_on_after_any_failure_of_a_node() {
    for act in [
        Act::HangUp,
        problem(503, "quorum", None),
        problem(500, "bug", None),
    ] {
        let bad = FakeNode::start(move |_| act.clone()).await;
        let good = FakeNode::answering(200, "", "v").await;
        let client = client(&[bad.name(), good.name()], |_| {});
        for _ in 0..2 {
            let read = client
                .get("default", b"k", &ReadOptions::default())
                .await
                .expect("from the second");
            assert!(read.value.is_some());
        }
    }
}

#[tokio::test]
async fn a_silent_node_is_hedged_around() {
    let silent = FakeNode::start(|_| Act::Silence).await;
    let good = FakeNode::answering(200, "", "v").await;
    let client = client(&[silent.name(), good.name()], |config| {
        config.hedge_after = Some(Duration::from_millis(20));
        config.deadline = Duration::from_secs(20);
    });
    let began = Instant::now();
    for _ in 0..2 {
        client
            .get("default", b"k", &ReadOptions::default())
            .await
            .expect("from the other");
    }
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    assert!(!silent.asked().is_empty());
}

#[tokio::test]
async fn a_deadline_ends_a_read_of_a_silent_node() {
    let silent = FakeNode::start(|_| Act::Silence).await;
    let client = client(&[silent.name()], |_| {});
    let options = ReadOptions {
        r: None,
        deadline: Some(Duration::from_millis(100)),
    };
    let began = Instant::now();
    let error = client
        .get("default", b"k", &options)
        .await
        .expect_err("silence");
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_refused() {
    let node = FakeNode::answering(200, "", &"x".repeat(1000)).await;
    let client = client(&[node.name()], |config| {
        config.answer_bytes_max = 999;
        config.attempts_max = 1;
    });
    let error = client
        .get("default", b"k", &ReadOptions::default())
        .await
        .expect_err("too long");
    assert!(error.to_string().contains("more than 999 bytes"), "{error}");
}

#[tokio::test]
async fn a_header_that_cannot_be_sent_is_refused_before_anything_is() {
    let node = FakeNode::answering(204, "", "").await;
    let client = client(&[node.name()], |_| {});
    let options = WriteOptions {
        content_type: Some("a\r\nb: c".into()),
        ..WriteOptions::default()
    };
    let error = client
        .put("default", b"k", "v", &options)
        .await
        .expect_err("smuggling");
    assert!(matches!(error, Error::BadRequest(_)), "{error}");
    assert!(node.asked().is_empty());
}

#[tokio::test]
async fn a_watch_tells_change_from_none() {
    let node = FakeNode::start(|line| {
        if line.contains("/same") {
            Act::Answer(304, String::new(), String::new())
        } else {
            Act::Answer(200, String::new(), "new".into())
        }
    })
    .await;
    let client = client(&[node.name()], |_| {});
    let known = ("\"1\"", Duration::from_secs(5));
    let same = client
        .watch("default", b"same", known, &ReadOptions::default())
        .await
        .expect("watch");
    assert_eq!(same, Watched::Unchanged);
    let other = client
        .watch("default", b"other", known, &ReadOptions::default())
        .await
        .expect("watch");
    assert!(matches!(other, Watched::Changed(_)));
    let (line, head, _) = &node.asked()[0];
    assert_eq!(line, "GET /kv/default/same?wait=5000ms");
    assert!(head.contains("if-none-match: \"1\""), "{head}");
}

#[tokio::test]
async fn a_list_follows_its_cursors() {
    let node = FakeNode::start(|line| {
        let body = if line.contains("cursor=next") {
            r#"{"keys":[{"key":"/w==","encoding":"base64","etag":"\"2\"","size":1}],"cursor":null}"#
        } else {
            r#"{"keys":[{"key":"a","etag":"\"1\"","size":3}],"cursor":"next"}"#
        };
        Act::Answer(200, String::new(), body.into())
    })
    .await;
    let client = client(&[node.name()], |_| {});
    let options = ListOptions {
        prefix: "a&b".into(),
        page: Some(1),
        ..ListOptions::default()
    };
    let mut pages = client.list("default", options);
    let mut keys = Vec::new();
    while let Some(page) = pages.next_page().await.expect("page") {
        keys.extend(page.keys.iter().filter_map(|key| key.key().bytes()));
    }
    assert_eq!(keys, [&b"a"[..], &[255]]);
    assert_eq!(
        node.asked_lines(),
        [
            "GET /kv/default?prefix=a%26b&limit=1",
            "GET /kv/default?prefix=a%26b&limit=1&cursor=next"
        ]
    );
}

#[tokio::test]
async fn a_batch_has_an_answer_for_each_operation() {
    let node = FakeNode::answering(200, "", "{\"status\":204}\n{\"status\":404}\n").await;
    let client = client(&[node.name()], |_| {});
    let operations = [
        BatchOp::Put {
            key: "a".into(),
            value: "1".into(),
        },
        BatchOp::Get { key: "b".into() },
    ];
    let replies = client.batch("default", &operations).await.expect("batch");
    assert_eq!(
        replies.iter().map(|reply| reply.status).collect::<Vec<_>>(),
        [204, 404]
    );
    let error = client
        .batch("default", &operations[..1])
        .await
        .expect_err("one answer too many");
    assert_eq!(error.outcome(), Outcome::Unknown);
    let many = vec![BatchOp::Get { key: "b".into() }; 1001];
    assert!(matches!(
        client.batch("default", &many).await,
        Err(Error::BatchTooLong { given: 1001, .. })
    ));
}

#[tokio::test]
async fn a_request_goes_to_an_owner_once_the_ring_is_known() {
    let owner = FakeNode::answering(204, "", "").await;
    let ring = format!(
        r#"{{"config_version":2,"ring_version":2,"partition_bits":4,"token_seed":"0000000000000007",
            "buckets":[{{"id":1,"name":"default","n":1}}],
            "members":[{{"id":"0000000000000001","name":"node-1","zone":"a","weight":100,
                         "http":"{}","peer":"127.0.0.1:7081","alive":true,"share":1.0}}]}}"#,
        owner.name()
    );
    let other = FakeNode::start(move |line| {
        if line == "GET /ring" {
            Act::Answer(200, String::new(), ring.clone())
        } else {
            Act::Answer(204, String::new(), String::new())
        }
    })
    .await;
    let client = client(&[other.name()], |config| config.routing = Routing::Ring);
    let end = Instant::now() + Duration::from_secs(10);
    while owner.asked().is_empty() {
        stored(&client).await.expect("stored");
        assert!(Instant::now() < end, "the ring was never used");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let before = other.asked().len();
    for _ in 0..5 {
        stored(&client).await.expect("stored");
    }
    assert_eq!(other.asked().len(), before);
}

#[tokio::test]
async fn an_admin_client_judges_what_a_node_shows() {
    let ring = r#"{"config_version":2,"ring_version":2,"partition_bits":4,"token_seed":"0000000000000007",
        "buckets":[{"id":1,"name":"default","n":1}],
        "members":[{"id":"0000000000000001","name":"node-1","zone":"a","weight":100,
                    "http":"127.0.0.1:8081","peer":"127.0.0.1:7081","alive":true,"share":1.0}]}"#;
    let node = FakeNode::start(move |line| match line {
        "GET /ring" => Act::Answer(200, String::new(), ring.into()),
        "GET /cluster" => Act::Answer(
            200,
            String::new(),
            r#"{"nodes":[],"anything":"else"}"#.into(),
        ),
        "GET /health/ready" => problem(503, "not-ready", None),
        _ => problem(404, "not-found", None),
    })
    .await;
    let admin = Admin::new(vec![node.name()], Duration::from_secs(2)).expect("client");
    let status = admin.status().await.expect("status");
    assert_eq!(status.verdict, torc_client::Verdict::Healthy);
    assert!(admin.ready().await.expect("an answer").is_err());
    assert!(admin.owners("default", b"k").await.is_err());
}

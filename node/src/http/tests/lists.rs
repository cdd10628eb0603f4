use std::collections::BTreeSet;

use serde_json::{Value, json};
use torc_protocol::client::ClientError;
use torc_protocol::shard_io::View;

use super::Facade;
use super::backend::config;

async fn fill(facade: &Facade, count: usize) -> BTreeSet<String> {
    let mut client = facade.client().await;
    let mut keys = BTreeSet::new();
    for number in 0..count {
        let key = format!("{}-{number}", if number % 3 == 0 { "a" } else { "b" });
        assert_eq!(
            client
                .ask("PUT", &format!("/kv/default/{key}"), &[], b"four")
                .await
                .status,
            204
        );
        keys.insert(key);
    }
    assert_eq!(
        client
            .ask("PUT", "/kv/default/a-dead", &[], b"v")
            .await
            .status,
        204
    );
    assert_eq!(
        client
            .ask("DELETE", "/kv/default/a-dead", &[], b"")
            .await
            .status,
        204
    );
    keys
}

fn names(page: &Value) -> Vec<String> {
    let keys = page["keys"].as_array().expect("keys");
    keys.iter()
        .map(|key| key["key"].as_str().expect("text").to_owned())
        .collect()
}

#[tokio::test]
async fn every_key_is_listed_once_over_pages_of_any_size() {
    let facade = Facade::start().await;
    let keys = fill(&facade, 120).await;
    for limit in [1, 7, 50, 1_000] {
        let mut seen = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = facade
                .get(&format!("/kv/default?limit={limit}&cursor={cursor}"))
                .await;
            assert_eq!(page.status, 200, "{}", page.text());
            let page = page.json();
            let listed = names(&page);
            assert!(listed.len() <= limit);
            seen.extend(listed);
            match page["cursor"].as_str() {
                Some(next) => cursor = next.to_owned(),
                None => break,
            }
        }
        assert_eq!(seen.len(), keys.len(), "limit {limit}: no key twice");
        assert_eq!(
            seen.into_iter().collect::<BTreeSet<_>>(),
            keys,
            "limit {limit}"
        );
    }
    let some = facade.get("/kv/default?prefix=a-&limit=1000").await.json();
    assert_eq!(names(&some).len(), 40);
    let one = &some["keys"][0];
    assert_eq!(one["size"], 4);
    let etag = facade
        .get(&format!(
            "/kv/default/{}",
            one["key"].as_str().expect("text")
        ))
        .await
        .must("etag");
    assert_eq!(json!(etag.trim_matches('"')), one["etag"]);
}

#[tokio::test]
async fn a_cursor_outlives_a_change_of_the_ring() {
    let facade = Facade::start().await;
    let keys = fill(&facade, 60).await;
    let first = facade.get("/kv/default?limit=25").await.json();
    facade.backend.handle.set_view(View::new(config(5)));
    let rest = facade
        .get(&format!(
            "/kv/default?cursor={}",
            first["cursor"].as_str().expect("more")
        ))
        .await
        .json();
    let seen: BTreeSet<String> = names(&first).into_iter().chain(names(&rest)).collect();
    assert_eq!(seen, keys);
    assert_eq!(names(&first).len() + names(&rest).len(), keys.len());
}

#[tokio::test]
async fn a_stream_has_a_line_for_each_key() {
    let facade = Facade::start().await;
    let keys = fill(&facade, 80).await;
    let ndjson = [("accept", "application/x-ndjson")];
    let all = facade.ask("GET", "/kv/default", &ndjson, b"").await;
    assert_eq!(all.must("content-type"), "application/x-ndjson");
    let lines = lines(&all.text());
    let listed: BTreeSet<String> = lines
        .iter()
        .map(|line| line["key"].as_str().expect("a key").to_owned())
        .collect();
    assert_eq!((lines.len(), listed), (80, keys));

    let some = facade
        .ask("GET", "/kv/default?limit=30", &ndjson, b"")
        .await;
    let some = self::lines(&some.text());
    assert_eq!(some.len(), 31);
    let cursor = some[30]["cursor"].as_str().expect("a cursor at the end");
    let rest = facade
        .ask("GET", &format!("/kv/default?cursor={cursor}"), &ndjson, b"")
        .await;
    assert_eq!(self::lines(&rest.text()).len(), 50);

    facade.backend.fail(Some(ClientError::Quorum {
        required: 2,
        received: 1,
        maybe_applied: false,
    }));
    let failed = facade.ask("GET", "/kv/default", &ndjson, b"").await;
    assert_eq!(
        failed.status, 200,
        "the head was sent before anything was known"
    );
    assert_eq!(
        self::lines(&failed.text())[0]["error"]["type"],
        "urn:torc:problem:quorum"
    );
    let failed = facade.get("/kv/default").await;
    assert_eq!((failed.status, failed.problem().as_str()), (503, "quorum"));
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect()
}

#[tokio::test]
async fn keys_that_are_no_text_are_listed_as_base64() {
    let facade = Facade::start().await;
    facade.put("/kv/default/%ff%00", b"v").await;
    let page = facade.get("/kv/default").await.json();
    assert_eq!(
        (&page["keys"][0]["key"], &page["keys"][0]["encoding"]),
        (&json!("/wA="), &json!("base64"))
    );
    let page = facade.get("/kv/default?prefix=%ff").await.json();
    assert_eq!(page["keys"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn refused_lists() {
    let facade = Facade::start().await;
    let long = format!("/kv/default?prefix={}", "p".repeat(1_025));
    let cases: &[super::keys::Row<'_>] = &[
        ("GET", "/kv/default?limit=0", &[], 400, "query"),
        ("GET", "/kv/default?limit=10001", &[], 400, "query"),
        ("GET", "/kv/default?limit=ten", &[], 400, "query"),
        ("GET", "/kv/default?cursor=garbage", &[], 400, "cursor"),
        ("GET", "/kv/default?cursor=AQAAAAE", &[], 400, "cursor"),
        ("GET", "/kv/default?cursor=%ff", &[], 400, "cursor"),
        (
            "GET",
            "/kv/default?prefix=%zz",
            &[],
            400,
            "percent-encoding",
        ),
        ("GET", &long, &[], 400, "key"),
        ("GET", "/kv/default?after=x", &[], 400, "query"),
        (
            "GET",
            "/kv/default",
            &[("accept", "text/html")],
            406,
            "not-acceptable",
        ),
        ("GET", "/kv/absent", &[], 404, "no-such-bucket"),
        ("GET", "/kv/B", &[], 400, "bucket-name"),
        ("GET", "/kv/", &[], 400, "bucket-name"),
        ("PUT", "/kv/default", &[], 405, "method"),
        ("POST", "/kv/default", &[], 405, "method"),
    ];
    for &(method, target, headers, status, kind) in cases {
        let answer = facade.ask(method, target, headers, b"").await;
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (status, kind),
            "{method} {target}: {}",
            answer.text()
        );
    }
}

async fn batch(facade: &Facade, text: &str) -> super::Answer {
    facade
        .ask(
            "POST",
            "/kv/default/_batch",
            &[("content-type", "application/x-ndjson")],
            text.as_bytes(),
        )
        .await
}

#[tokio::test]
async fn a_batch_answers_each_line_in_order() {
    let facade = Facade::start().await;
    let text = [
        r#"{"op":"put","key":"a","value":"1","content_type":"text/plain","ttl":"1h"}"#,
        r#"{"op":"get","key":"a"}"#,
        r#"{"op":"get","key":"absent"}"#,
        r#"{"op":"put","key":"/w==","value":"AP8=","encoding":"base64","w":"one"}"#,
        r#"{"op":"get","key":"/w==","encoding":"base64","r":"1"}"#,
        "",
        "nonsense",
        r#"{"op":"put","key":"a"}"#,
        r#"{"op":"get","key":"a","value":"x"}"#,
        r#"{"op":"get","key":""}"#,
        r#"{"op":"get","key":"a","r":"9"}"#,
        r#"{"op":"get","key":"a","colour":"red"}"#,
        r#"{"op":"get","key":"!","encoding":"base64"}"#,
        r#"{"op":"put","key":"a","value":"2"}"#,
        r#"{"op":"delete","key":"a"}"#,
        r#"{"op":"get","key":"a"}"#,
    ];
    let answer = batch(&facade, &text.join("\n")).await;
    assert_eq!(
        (answer.status, answer.must("x-torc-batch").as_str()),
        (200, "not-a-transaction")
    );
    let lines = lines(&answer.text());
    let statuses: Vec<u64> = lines
        .iter()
        .filter_map(|line| line["status"].as_u64())
        .collect();
    assert_eq!(
        statuses,
        [
            204, 200, 404, 204, 200, 400, 400, 400, 400, 400, 400, 400, 204, 204, 404
        ]
    );
    assert_eq!(
        (&lines[1]["value"], &lines[1]["content_type"]),
        (&json!("1"), &json!("text/plain"))
    );
    assert_eq!(lines[1]["etag"], lines[0]["etag"]);
    assert_eq!(
        (&lines[4]["value"], &lines[4]["encoding"]),
        (&json!("AP8="), &json!("base64"))
    );
    assert_eq!(lines[2]["error"]["type"], "urn:torc:problem:no-such-key");
}

#[tokio::test]
async fn operations_on_one_key_are_done_in_the_order_of_their_lines() {
    let facade = Facade::start().await;
    let mut text = String::new();
    for number in 0..300 {
        let key = format!("k{}", number % 5);
        text += &json!({"op": "put", "key": key, "value": number.to_string()}).to_string();
        text += "\n";
        text += &json!({"op": "get", "key": key}).to_string();
        text += "\n";
    }
    let lines = lines(&batch(&facade, &text).await.text());
    assert_eq!(lines.len(), 600);
    for (number, pair) in lines.chunks(2).enumerate() {
        assert_eq!(pair[1]["value"], json!(number.to_string()));
    }
}

#[tokio::test]
async fn refused_batches() {
    let facade = Facade::with(|settings| settings.limits.value_bytes = 100).await;
    let line = "{\"op\":\"get\",\"key\":\"k\"}\n";
    assert_eq!(batch(&facade, &line.repeat(1_000)).await.status, 200);
    let many = batch(&facade, &line.repeat(1_001)).await;
    assert_eq!((many.status, many.problem().as_str()), (413, "too-large"));
    assert_eq!(
        (&many.json()["limit"], &many.json()["received"]),
        (&1_000.into(), &1_001.into())
    );
    let value = json!({"op": "put", "key": "k", "value": "x".repeat(101)}).to_string();
    assert_eq!(
        lines(&batch(&facade, &value).await.text())[0]["status"],
        413
    );
    for kind in [
        &[][..],
        &[("content-type", "application/json")],
        &[("content-type", "text/plain")],
    ] {
        let answer = facade
            .ask("POST", "/kv/default/_batch", kind, line.as_bytes())
            .await;
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (415, "media-type"),
            "{kind:?}"
        );
    }
    let charset = [("content-type", "application/x-ndjson; charset=utf-8")];
    assert_eq!(
        facade
            .ask("POST", "/kv/default/_batch", &charset, b"")
            .await
            .status,
        200
    );
    assert_eq!(
        facade
            .ask("POST", "/kv/absent/_batch", &charset, b"")
            .await
            .status,
        404
    );
    assert_eq!(
        facade
            .ask("POST", "/kv/B/_batch", &charset, b"")
            .await
            .status,
        400
    );
    facade.backend.fail(Some(ClientError::Quorum {
        required: 2,
        received: 0,
        maybe_applied: true,
    }));
    let failed = lines(
        &batch(&facade, "{\"op\":\"put\",\"key\":\"k\",\"value\":\"v\"}")
            .await
            .text(),
    );
    assert_eq!(
        (&failed[0]["status"], &failed[0]["error"]["outcome"]),
        (&503.into(), &json!("unknown"))
    );
}

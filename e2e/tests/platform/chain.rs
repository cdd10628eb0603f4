//! A write through Nginx is queued, applied by a worker, read back from another node, cached, and
//! invalidated by a deletion: with requests, and by a person in a browser.

use std::path::{Path, PathBuf};

use serde_json::json;
use torc_e2e::browser::{Browser, result_says};
use torc_e2e::http::{Request, Response};
use torc_e2e::{alone, wait};

use crate::support::{Platform, SOON, Wish};

/// Entries live longer than the test: what goes from the cache goes because it was invalidated. And a
/// budget for a machine on which processes wait for each other: it is the chain that is tested.
const PATIENT: Wish = Wish {
    cache: "ttl = \"1h\"\nbudget = \"1s\"",
    brokers: 1,
};

fn location(response: &Response) -> String {
    assert_eq!(response.status, 202, "{}", response.text());
    let location = response.header("location");
    location
        .unwrap_or_else(|| panic!("no location: {response:?}"))
        .to_owned()
}

/// Value and source of `GET /kv?key=` through Nginx; `None` for 404.
fn compatible(platform: &Platform, key: &str) -> Option<(String, String)> {
    let answer = platform.ask(&Request::get(&format!("/kv?key={key}")));
    if answer.status == 404 {
        return None;
    }
    assert_eq!(answer.status, 200, "{}", answer.text());
    let data = &answer.json()["data"];
    let text = |name: &str| data[name].as_str().unwrap_or("?").to_owned();
    Some((text("value"), text("source")))
}

#[test]
fn a_write_goes_from_nginx_through_queue_and_worker_into_nodes_and_cache_and_its_deletion_too() {
    let _alone = alone();
    let mut platform = Platform::start(&PATIENT);

    let put = Request::put("/kv/default/chain", "first").header("prefer", "respond-async");
    let accepted = platform.ask(&put);
    let write = location(&accepted);
    // The compatible route goes the same way.
    let older = platform.ask(&Request::put(
        "/kv",
        r#"{"data":{"key":"older","value":"second"}}"#,
    ));
    assert_eq!(
        (older.status, &older.json()["detail"]),
        (202, &json!("queued"))
    );
    // Nobody has applied it yet, on no node.
    assert_eq!(platform.wait_state(&write, "pending")["key"], "chain");
    for node in &platform.cluster.nodes {
        assert_eq!(node.get("/kv/default/chain"), None, "{}", node.name);
    }
    assert_eq!(compatible(&platform, "older"), None);

    platform.start_worker();
    platform.wait_state(&write, "applied");
    for node in &platform.cluster.nodes {
        let read = node
            .ask(&Request::get("/kv/default/chain"))
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((read.status, read.text().as_str()), (200, "first"));
        assert_eq!(
            read.header("etag"),
            accepted.header("etag"),
            "{} has the version of its acceptance",
            node.name
        );
    }

    // Cached: whichever node Nginx asks, the answer comes from Redis.
    let hits = platform.hits();
    for _ in 0..6 {
        let found = compatible(&platform, "chain");
        assert_eq!(found, Some(("first".into(), "cache".into())));
    }
    assert_eq!(platform.hits(), hits + 6);
    wait::until("the compatible write", SOON, || {
        match compatible(&platform, "older") {
            Some((value, source)) if value == "second" && source == "cache" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });

    // Deleted through the queue: the cache knows it with the nodes.
    let delete = Request::delete("/kv/default/chain").header("prefer", "respond-async");
    let deletion = location(&platform.ask(&delete));
    platform.wait_state(&deletion, "applied");
    assert_eq!(platform.wait_state(&write, "applied")["superseded"], true);
    assert_eq!(compatible(&platform, "chain"), None);
    for node in &platform.cluster.nodes {
        for target in ["/kv/default/chain", "/kv/default/chain?r=one"] {
            assert_eq!(node.get(target), None, "{} {target}", node.name);
        }
    }
    let gone = platform.ask(&Request::delete("/kv?key=older"));
    assert_eq!(
        (gone.status, &gone.json()["detail"]),
        (202, &json!("queued"))
    );
    wait::until("the compatible deletion", SOON, || {
        match compatible(&platform, "older") {
            None => Ok(()),
            Some(found) => Err(format!("{found:?}")),
        }
    });
}

/// Where screenshots are kept.
fn pictures() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("platform")
}

#[test]
fn a_person_does_the_same_in_a_browser_through_nginx() {
    let _alone = alone();
    let mut platform = Platform::start(&PATIENT);
    let mut browser = Browser::start();
    browser.keep_pictures_in(pictures());
    browser.look((1280, 1000), "light");
    let origin = format!("http://{}", platform.nginx.address);
    browser.open(&format!("{origin}/"));
    browser.until(
        "a queue to write through",
        "document.querySelector('#health').innerText === 'healthy' && !document.querySelector('#queued-row').hidden",
    );

    browser.click("#queued");
    browser.fill("#key", "chain");
    browser.fill("#value", "from the page");
    browser.click("#put");
    browser.until("word that it is queued", &result_says("waits for a worker"));
    for node in &platform.cluster.nodes {
        assert_eq!(node.get("/kv/default/chain"), None, "{}", node.name);
    }
    browser.picture("1-queued.png");
    platform.start_worker();
    browser.until("word that it is stored", &result_says("by a worker"));
    for node in &platform.cluster.nodes {
        assert_eq!(
            node.get("/kv/default/chain").as_deref(),
            Some(&b"from the page"[..]),
            "{}",
            node.name
        );
    }
    browser.picture("2-stored-by-a-worker.png");

    let hits = platform.hits();
    browser.click("#one");
    browser.click("#get");
    browser.until(
        "the value",
        "document.querySelector('#result .shown')?.innerText === 'from the page'",
    );
    assert_eq!(platform.hits(), hits + 1, "the cache has answered");
    browser.picture("3-read-from-the-cache.png");

    browser.click("#delete");
    browser.until(
        "word of the deletion",
        &result_says("Deleted chain, by a worker"),
    );
    browser.click("#get");
    browser.until("word that it is gone", &result_says("It was deleted"));
    for node in &platform.cluster.nodes {
        assert_eq!(node.get("/kv/default/chain?r=one"), None, "{}", node.name);
    }
    browser.picture("4-deleted.png");
    assert_eq!(browser.complaints(), <&[String]>::default());
    for request in browser.requests() {
        let local = ["blob:", "data:", "about:"]
            .iter()
            .any(|scheme| request.starts_with(scheme));
        assert!(
            local || request.starts_with(&origin),
            "the page asked {request}"
        );
    }
}

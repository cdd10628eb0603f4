//! The web console and the documents, in a real browser on a real cluster.
//!
//! Screenshots are kept under `target/tmp/console/`.

use std::path::{Path, PathBuf};

use serde_json::json;
use torc_e2e::browser::{Browser, result_says};
use torc_e2e::cluster::{Cluster, Options};
use torc_e2e::http::Request;

const WIDE: (u32, u32) = (1280, 1000);
const NARROW: (u32, u32) = (390, 844);

/// Where screenshots are kept.
fn pictures() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("console")
}

#[test]
fn a_person_puts_gets_and_deletes_and_watches_the_cluster() {
    let _guard = torc_e2e::alone();
    let mut cluster = Cluster::start(3, Options::default());
    let mut browser = Browser::start();
    browser.keep_pictures_in(pictures());
    browser.look(WIDE, "light");
    let origin = format!("http://{}", cluster.nodes[0].http);
    browser.open(&format!("{origin}/"));
    browser.until(
        "three nodes",
        "document.querySelectorAll('#nodes tr').length === 3",
    );
    browser.until(
        "a healthy node",
        "document.querySelector('#health').innerText === 'healthy'",
    );

    put_and_get(&mut browser, &cluster);
    values_that_are_not_text(&mut browser, &cluster);
    browser.picture("light.png");
    errors_are_explained(&mut browser);
    delete(&mut browser, &cluster);

    // What the page shows is live: it needs no reload to see a node die.
    cluster.nodes[2].kill();
    let dead = "document.querySelector('#nodes').innerText.includes('does not answer')";
    browser.until("a node that does not answer", dead);
    browser.until(
        "a degraded node",
        "document.querySelector('#health').innerText === 'degraded'",
    );
    browser.look(NARROW, "dark");
    let fits = "document.documentElement.scrollWidth <= window.innerWidth";
    browser.until("a narrow page without a horizontal bar", fits);
    browser.picture("narrow-dark.png");
    browser.look(WIDE, "dark");
    browser.picture("dark.png");

    // The node itself goes away, and the page says so.
    cluster.nodes[0].kill();
    browser.until("word of the silence", "!document.querySelector('#offline').hidden && document.querySelector('#health').innerText === 'no answer'");

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

/// By keyboard alone; key and value are of the kind that must not become markup.
fn put_and_get(browser: &mut Browser, cluster: &Cluster) {
    let key = "a/ü <b>&\"'%2F";
    let value = "<img src=x onerror=\"document.title='owned'\">\n{{name}}";
    assert_eq!(
        browser.eval("document.activeElement.id"),
        "key",
        "the first field has the focus"
    );
    browser.write(key);
    let mut steps = 0;
    while browser.eval("document.activeElement.id") != "value" && steps < 10 {
        browser.press("Tab", 9, 0);
        steps += 1;
    }
    let focus = browser.eval("document.activeElement.id");
    assert_eq!(focus, "value", "the value is reached by Tab");
    browser.write(value);
    browser.press("Enter", 13, 2);
    browser.until("the put", &result_says("Stored"));
    let target = "/kv/default/a%2F%C3%BC%20%3Cb%3E%26%22%27%252F";
    assert_eq!(
        cluster.nodes[1].get(target).as_deref(),
        Some(value.as_bytes()),
        "read from another node"
    );

    browser.click("#key");
    browser.press("Enter", 13, 0);
    browser.until(
        "the value",
        "document.querySelector('#result .shown') !== null",
    );
    let shown = browser.eval("document.querySelector('#result .shown').textContent");
    assert_eq!(shown, value);
    assert_eq!(browser.text("#result .outcome"), key);
    assert_eq!(browser.eval("document.querySelectorAll('main b, main img').length - document.querySelectorAll('#parts b').length"), 0, "nothing became markup");
    assert!(
        !browser
            .eval("document.title")
            .as_str()
            .unwrap_or_default()
            .contains("owned")
    );
}

fn values_that_are_not_text(browser: &mut Browser, cluster: &Cluster) {
    let bytes: Vec<u8> = (0..=255).cycle().take(3_000).collect();
    cluster.nodes[1].put("/kv/default/binary/thing", bytes);
    cluster.nodes[1].put("/kv/default/binary/%FF%00", "a key that is no text");
    browser.fill("#prefix", "binary/t");
    browser.press("Enter", 13, 0);
    browser.until(
        "one key",
        "document.querySelectorAll('#keys li').length === 1",
    );
    browser.click("#keys button");
    browser.until("bytes as numbers", "document.querySelector('#result .hex')?.innerText.startsWith('000000  00 01 02 03') === true");
    browser.until("their number", &result_says("2.9 KiB"));
    browser.fill("#prefix", "");
    browser.click("#list");
    browser.until(
        "all keys", "(() => { const more = document.querySelector('#more'); if (!more.hidden && !more.disabled) more.click(); return document.querySelectorAll('#keys li').length === 3; })()");
    browser.eval("Array.from(document.querySelectorAll('#keys button')).find((b) => b.innerText.startsWith('base64')).id = 'odd'");
    browser.click("#odd");
    browser.until(
        "the value of a key that is no text",
        &result_says("a key that is no text"),
    );
    browser.eval("document.querySelector('#odd').id = ''");

    // Browsers take `..` for a step up, however it is written.
    browser.eval("document.querySelector('#key-form-of').value = 'text'");
    browser.fill("#key", "..");
    browser.fill("#value", "up");
    browser.click("#put");
    browser.until("a put of the key ..", &result_says("Stored 2 bytes as .."));
    assert_eq!(
        cluster.nodes[2].get("/kv/default/..").as_deref(),
        Some(&b"up"[..])
    );
    browser.click("#get");
    browser.until(
        "a get of the key ..",
        "document.querySelector('#result .shown')?.innerText === 'up'",
    );
    browser.fill("#key", "binary/thing");
    browser.click("#get");
    browser.until("the value again", &result_says("2.9 KiB"));
}

fn errors_are_explained(browser: &mut Browser) {
    browser.fill("#key", "");
    browser.click("#get");
    browser.until("a word on the empty key", &result_says("Which key?"));
    browser.fill("#key", "k");
    browser.fill("#value", "v");
    browser.fill("#ttl", "soon");
    browser.click("#put");
    browser.until("a word on the time to live", &result_says("a time such as"));
    browser.fill("#ttl", "");
    browser.fill("#key", "absent");
    browser.click("#get");
    browser.until("a word on the absent key", &result_says("404"));
}

fn delete(browser: &mut Browser, cluster: &Cluster) {
    browser.fill("#key", "gone");
    browser.fill("#value", "soon");
    browser.click("#put");
    browser.until("the put", &result_says("Stored 4 bytes as gone"));
    browser.click("#delete");
    browser.until("the deletion", &result_says("Deleted gone"));
    assert_eq!(
        cluster.nodes[2].get("/kv/default/gone"),
        None,
        "on another node"
    );
    browser.click("#get");
    browser.until("word that it was deleted", &result_says("It was deleted"));
}

#[test]
fn the_document_can_be_browsed_and_tried() {
    let _guard = torc_e2e::alone();
    let cluster = Cluster::start(1, Options::default());
    let mut browser = Browser::start();
    browser.keep_pictures_in(pictures());
    browser.look(WIDE, "light");
    for (address, routes) in [
        (cluster.nodes[0].http, "/kv/{bucket}/{key}"),
        (cluster.nodes[0].admin, "/cluster"),
    ] {
        browser.open(&format!("http://{address}/docs"));
        let listed = format!(
            "Array.from(document.querySelectorAll('.opblock-summary-path')).some((p) => p.dataset.path === {})",
            json!(routes)
        );
        browser.until("the routes", &listed);
        assert_eq!(
            browser.eval("document.querySelectorAll('.errors-wrapper').length"),
            0
        );
    }
    // Tried out: the request goes to this node and is answered.
    browser.eval("Array.from(document.querySelectorAll('.opblock-summary-path')).find((p) => p.dataset.path === '/ring').closest('.opblock').id = 'ring'");
    browser.click("#ring .opblock-summary-control");
    browser.click("#ring .try-out__btn");
    browser.click("#ring .execute");
    browser.until("an answer", "document.querySelector('#ring .live-responses-table .response .response-col_status')?.innerText.startsWith('200') === true");
    browser.picture("docs.png");

    // The console of the admin listener shows the cluster, and offers no keys.
    browser.open(&format!("http://{}/", cluster.nodes[0].admin));
    browser.until(
        "a node",
        "document.querySelectorAll('#nodes tr').length === 1",
    );
    assert_eq!(
        browser.eval("document.querySelector('#key-form').checkVisibility()"),
        false
    );
    browser.picture("admin.png");
    assert_eq!(browser.complaints(), <&[String]>::default());
    let page = cluster.nodes[0].ask(&Request::get("/"));
    assert!(page.is_ok_and(|page| page.header("content-security-policy").is_some()));
}

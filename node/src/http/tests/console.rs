//! The console, the documents, and what keeps a browser from being turned against the node.

use std::collections::BTreeSet;

use http::Method;
use serde_json::Value;

use super::client::{Answer, Client};
use super::{Facade, PATIENCE};
use crate::handle::Condition;
use crate::http::{Side, openapi, router};
use crate::metrics::Route;

const METHODS: [&str; 6] = ["GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"];

async fn open(facade: &Facade, side: Side) -> Client {
    match side {
        Side::Data => facade.client().await,
        Side::Admin => facade.admin().await,
    }
}

async fn get(facade: &Facade, side: Side, target: &str) -> Answer {
    open(facade, side).await.ask("GET", target, &[], b"").await
}

/// A path that a template stands for.
fn sample(template: &str) -> String {
    let file = if template.starts_with("/docs") {
        "swagger-ui.css"
    } else {
        "console.css"
    };
    template
        .replace("{bucket}", "default")
        .replace("{key}", "k")
        .replace("{id}", "1")
        .replace("{file}", file)
}

#[tokio::test]
async fn the_document_and_the_routes_are_equal() {
    let facade = Facade::start().await;
    for side in [Side::Data, Side::Admin] {
        let document = get(&facade, side, "/openapi.json").await.json();
        assert_eq!(document["openapi"], "3.1.0");
        let paths = document["paths"].as_object().expect("paths");
        let mut documented = BTreeSet::new();
        for (path, item) in paths {
            for method in item.as_object().expect("an item").keys() {
                documented.insert((path.as_str(), method.to_uppercase()));
            }
        }
        let mut served = BTreeSet::new();
        for route in Route::ALL {
            let target = sample(route.label());
            for method in METHODS {
                let asked = Method::from_bytes(method.as_bytes()).expect("a method");
                if route == Route::None || router::route(side, &target, &asked) != route {
                    continue;
                }
                let mut client = open(&facade, side).await;
                let answer = client.ask(method, &target, &[], b"").await;
                if answer.status != 405 {
                    served.insert((route.label(), method.to_owned()));
                }
            }
        }
        assert_eq!(
            documented, served,
            "{side:?}: left documented, right served"
        );
    }
}

/// Every `$ref` of a document.
fn references<'a>(value: &'a Value, into: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                match (name.as_str(), value) {
                    ("$ref", Value::String(target)) => {
                        into.insert(target);
                    }
                    _ => references(value, into),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, into)),
        _ => {}
    }
}

#[tokio::test]
async fn the_document_holds_together() {
    let facade = Facade::start().await;
    for side in [Side::Data, Side::Admin] {
        let text = get(&facade, side, "/openapi.json").await.text();
        serde_json::from_str::<utoipa::openapi::OpenApi>(&text).expect("OpenAPI");
        let document: Value = serde_json::from_str(&text).expect("JSON");
        let mut targets = BTreeSet::new();
        references(&document, &mut targets);
        assert!(targets.contains("#/components/schemas/Problem"));
        for target in targets {
            let pointer = target.trim_start_matches('#');
            assert!(
                document.pointer(pointer).is_some(),
                "{target} leads nowhere"
            );
        }
        let mut ids = BTreeSet::new();
        for (path, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("an item") {
                let id = operation["operationId"].as_str().expect("an id");
                assert!(ids.insert(id), "{id} stands there twice");
                let in_path: BTreeSet<&str> = operation["parameters"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|parameter| parameter["in"] == "path")
                    .filter_map(|parameter| parameter["name"].as_str())
                    .collect();
                let in_template: BTreeSet<&str> = path
                    .split('{')
                    .skip(1)
                    .filter_map(|part| part.split('}').next())
                    .collect();
                assert_eq!(in_path, in_template, "{method} {path}");
            }
        }
    }
}

#[tokio::test]
async fn answers_have_the_fields_that_the_document_promises() {
    let facade = Facade::start().await;
    facade.put("/kv/default/k", b"v").await;
    let cases: &[(Side, &str, &str, &str)] = &[
        (Side::Data, "/health", "", "Health"),
        (Side::Data, "/health", "/components", "Components"),
        (Side::Data, "/health", "/components/cache", "Component"),
        (Side::Data, "/health/live", "", "Status"),
        (Side::Data, "/ring", "", "Ring"),
        (Side::Data, "/ring", "/members/0", "Member"),
        (Side::Data, "/ring", "/buckets/0", "BucketBrief"),
        (Side::Data, "/kv/default", "", "Keys"),
        (Side::Data, "/kv/default", "/keys/0", "ListedKey"),
        (Side::Data, "/kv/default/absent", "", "Problem"),
        (Side::Data, "/kv?key=absent", "", "Detail"),
        (Side::Data, "/cache/stats", "", "CacheStats"),
        (Side::Admin, "/cluster", "", "Cluster"),
        (Side::Admin, "/cluster", "/nodes/0", "Member"),
        (Side::Admin, "/ring/owners?key=k", "", "Owners"),
        (Side::Admin, "/ring/owners?key=k", "/owners/0", "Owner"),
        (Side::Admin, "/ring/verify?key=k", "", "Verified"),
        (Side::Admin, "/ring/verify?key=k", "/owners/0", "Copy"),
        (Side::Admin, "/buckets/default", "", "Bucket"),
        (Side::Admin, "/repair", "", "Agreement"),
    ];
    for &(side, target, pointer, shape) in cases {
        let answer = get(&facade, side, target).await.json();
        let part = answer.pointer(pointer).unwrap_or(&Value::Null);
        let fields = openapi::always(shape);
        assert!(!fields.is_empty(), "no shape {shape}");
        for name in fields {
            assert!(part.get(name).is_some(), "{target}: no {name} in {part}");
        }
    }
}

#[tokio::test]
async fn pages_are_whole_without_any_other_host() {
    let facade = Facade::start().await;
    for side in [Side::Data, Side::Admin] {
        let mut seen = BTreeSet::new();
        for page in ["/", "/docs"] {
            let answer = get(&facade, side, page).await;
            assert_eq!(answer.must("content-type"), "text/html; charset=utf-8");
            let text = answer.text();
            for part in text.split(['"', '\'']) {
                assert!(
                    !part.contains("//"),
                    "{page} speaks of another host: {part}"
                );
                let is_file = part.starts_with("/assets/") || part.starts_with("/docs/");
                if is_file && seen.insert(part.to_owned()) {
                    let file = get(&facade, side, part).await;
                    assert_eq!(file.status, 200, "{part}");
                    assert!(!file.body.is_empty(), "{part}");
                }
            }
            assert!(
                !text.contains("<script>") && !text.contains(" style="),
                "{page}"
            );
        }
        assert!(seen.contains("/docs/swagger-ui-bundle.js") && seen.contains("/assets/console.js"));
    }
    for script in [
        "/assets/console.js",
        "/assets/docs.js",
        "/assets/console.css",
    ] {
        let text = facade.get(script).await.text();
        let others: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("http://") || line.contains("https://"))
            .filter(|line| !line.contains("http://www.w3.org/2000/svg"))
            .collect();
        assert_eq!(others, Vec::<&str>::new(), "{script}");
    }
    for absent in [
        "/assets/",
        "/assets/../Cargo.toml",
        "/docs/",
        "/docs/index.html",
        "/docs/swagger-initializer.js",
    ] {
        assert_eq!(facade.get(absent).await.problem(), "not-found", "{absent}");
    }
}

#[tokio::test]
async fn the_page_knows_its_listener_and_trusts_no_name() {
    let facade =
        Facade::with(|settings| settings.name = "<script>alert(1)</script>".to_owned()).await;
    for (side, word) in [(Side::Data, "data"), (Side::Admin, "admin")] {
        let text = get(&facade, side, "/").await.text();
        assert!(
            text.contains(&format!("data-listener=\"{word}\"")),
            "{text}"
        );
        assert!(!text.contains("alert(") && !text.contains("{{"), "{text}");
    }
    let named = Facade::with(|settings| settings.name = "node-7".to_owned()).await;
    assert!(named.get("/").await.text().contains("node-7"));
}

#[tokio::test]
async fn pages_let_a_browser_do_as_little_as_they_need() {
    let facade = Facade::start().await;
    for target in [
        "/",
        "/docs",
        "/assets/console.js",
        "/docs/swagger-ui.css",
        "/openapi.json",
    ] {
        let answer = facade.get(target).await;
        let policy = answer.must("content-security-policy");
        assert!(policy.contains("default-src 'none'"), "{target}: {policy}");
        assert!(
            policy.contains("frame-ancestors 'none'"),
            "{target}: {policy}"
        );
        assert_eq!(answer.must("x-content-type-options"), "nosniff", "{target}");
        assert_eq!(answer.must("x-frame-options"), "DENY", "{target}");
    }
    let page = facade.get("/").await.must("content-security-policy");
    assert!(
        !page.contains("unsafe") && page.contains("script-src 'self'"),
        "{page}"
    );
}

#[tokio::test]
async fn a_page_that_was_stored_as_a_value_is_confined_in_a_browser() {
    let facade = Facade::start().await;
    let html = [("content-type", "text/html")];
    let body = b"<script>fetch('/kv/default/x',{method:'DELETE'})</script>";
    let stored = facade.ask("PUT", "/kv/default/page", &html, body).await;
    assert_eq!(stored.status, 204);
    let browser = [("accept", "Text/HTML,application/xhtml+xml,*/*;q=0.8")];
    let shown = facade.ask("GET", "/kv/default/page", &browser, b"").await;
    assert_eq!((shown.status, shown.body.as_slice()), (200, &body[..]));
    assert!(
        shown
            .must("content-security-policy")
            .starts_with("sandbox;")
    );
    assert_eq!(shown.must("x-content-type-options"), "nosniff");
    let program = facade
        .ask("GET", "/kv/default/page", &[("accept", "*/*")], b"")
        .await;
    assert_eq!(program.header("content-security-policy"), None);
}

#[tokio::test]
async fn side_services_stand_in_the_health_of_a_node() {
    let facade = Facade::start().await;
    let handle = &facade.backend.handle;
    handle.update_state(|state| {
        state.cache = Condition::Ok;
        state.queue = Condition::Down {
            reason: "no broker answers".to_owned(),
        };
    });
    let health = tokio::time::timeout(PATIENCE, facade.get("/health")).await;
    let health = health.expect("in time");
    assert_eq!(health.status, 200, "keys are served without a queue");
    let document = health.json();
    assert_eq!(document["status"], "degraded");
    assert_eq!(document["components"]["cache"]["status"], "ok");
    assert_eq!(document["components"]["queue"]["status"], "down");
    assert_eq!(
        document["components"]["queue"]["reason"],
        "no broker answers"
    );
    handle.update_state(|state| state.queue = Condition::Ok);
    assert_eq!(facade.get("/health").await.json()["status"], "ok");
}

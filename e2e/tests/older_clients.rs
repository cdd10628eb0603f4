//! Clients of the earlier service, on a cluster of real nodes: every compatible route as `docs/http-api.md` has
//! it, each request at another node than the one before.

use serde_json::{Value, json};
use torc_e2e::alone;
use torc_e2e::cluster::{Cluster, Options};
use torc_e2e::http::{Request, Response};

const VALUE_BYTES_MAX: usize = 1 << 20;

/// Goes around the nodes.
struct Client {
    cluster: Cluster,
    asked: usize,
}

impl Client {
    fn new() -> Self {
        let cluster = Cluster::start(3, Options::default());
        Self { cluster, asked: 0 }
    }

    #[track_caller]
    fn send(&mut self, request: &Request) -> Response {
        self.asked += 1;
        let node = &self.cluster.nodes[self.asked % 3];
        let answer = node.ask(request);
        answer.unwrap_or_else(|error| panic!("{} {}: {error}", request.method(), request.target()))
    }

    /// Status and body, which is JSON in every answer of these routes.
    #[track_caller]
    fn says(&mut self, request: &Request) -> (u16, Value) {
        let answer = self.send(request);
        let media = answer.header("content-type");
        let (method, target) = (request.method(), request.target());
        assert_eq!(media, Some("application/json"), "{method} {target}");
        (answer.status, answer.json())
    }

    #[track_caller]
    fn put(&mut self, key: &str, value: &str) -> (u16, Value) {
        self.says(&put(
            &json!({"data": {"key": key, "value": value}}).to_string()
        ))
    }
}

fn put(body: &str) -> Request {
    Request::put("/kv", body).header("content-type", "application/json")
}

fn detail(text: &str) -> Value {
    json!({ "detail": text })
}

fn not_found() -> (u16, Value) {
    (404, detail("Key not found"))
}

fn fields(body: &Value) -> Vec<&str> {
    let object = body.as_object().expect("an object");
    object.keys().map(String::as_str).collect()
}

/// Every byte that is no letter or digit as an escape.
fn escaped(key: &str) -> String {
    let each = key.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    each.collect()
}

#[test]
fn a_value_is_put_read_and_deleted_through_any_node() {
    let _alone = alone();
    let mut client = Client::new();
    assert_eq!(client.says(&Request::get("/kv?key=k")), not_found());
    assert_eq!(client.says(&Request::delete("/kv?key=k")), not_found());
    assert_eq!(client.put("k", "v"), (200, detail("stored")));
    let stored = json!({"data": {"value": "v", "source": "database"}});
    assert_eq!(
        client.says(&Request::get("/kv?key=k")),
        (200, stored.clone())
    );
    assert_eq!(client.put("k", "v2"), (200, detail("stored")), "again");
    assert_eq!(
        client.send(&Request::get("/kv/default/k")).text(),
        "v2",
        "it is a key like any other, in the bucket default"
    );
    let head = client.send(&Request::new("HEAD", "/kv?key=k"));
    let length = head.header("content-length").map(str::to_owned);
    let whole = client.send(&Request::get("/kv?key=k")).body.len();
    assert_eq!((head.status, length), (200, Some(whole.to_string())));
    assert_eq!(
        client.says(&Request::delete("/kv?key=k")),
        (200, detail("deleted"))
    );
    assert_eq!(client.says(&Request::get("/kv?key=k")), not_found());
    assert_eq!(
        client.says(&Request::delete("/kv?key=k")),
        not_found(),
        "once more"
    );
    assert_eq!(client.send(&Request::new("HEAD", "/kv?key=k")).status, 404);

    for key in [
        "a b",
        "a+b",
        "a&b=c?d#e%",
        "/",
        "..",
        "m\u{fc}sli",
        "\u{65e5}\u{672c}",
        "\"\\",
        "x".repeat(1024).as_str(),
    ] {
        let value = format!("the value of {key} \u{1}\"\\");
        assert_eq!(client.put(key, &value), (200, detail("stored")), "{key}");
        // As a form is encoded, where a space is a plus, and as a URI is.
        let form = escaped(key).replace("%20", "+");
        for target in [escaped(key), form] {
            let (status, body) = client.says(&Request::get(&format!("/kv?key={target}")));
            assert_eq!(
                (status, &body["data"]["value"]),
                (200, &json!(value)),
                "{target}"
            );
        }
        let gone = client.says(&Request::delete(&format!("/kv?key={}", escaped(key))));
        assert_eq!(gone, (200, detail("deleted")), "{key}");
    }

    let longest = "v".repeat(VALUE_BYTES_MAX);
    assert_eq!(client.put("long", &longest), (200, detail("stored")));
    let (_, body) = client.says(&Request::get("/kv?key=long"));
    assert_eq!(
        body["data"]["value"].as_str().map(str::len),
        Some(VALUE_BYTES_MAX)
    );
}

#[test]
fn what_is_refused_is_refused_in_the_older_service_s_form() {
    let _alone = alone();
    let mut client = Client::new();
    for body in [
        "",
        "nonsense",
        "[]",
        "{}",
        r#"{"data":null}"#,
        r#"{"data":{}}"#,
        r#"{"data":{"key":"k"}}"#,
        r#"{"data":{"value":"v"}}"#,
        r#"{"data":{"key":"","value":"v"}}"#,
        r#"{"data":{"key":"k","value":""}}"#,
        r#"{"data":{"key":"k","value":null}}"#,
        r#"{"data":{"key":1,"value":"v"}}"#,
    ] {
        let refused = (400, detail("key & value required"));
        assert_eq!(client.says(&put(body)), refused, "{body}");
    }
    assert_eq!(
        client.says(&Request::get("/kv?key=k")),
        not_found(),
        "nothing of it was stored"
    );
    let more = put(r#"{"data":{"key":"k","value":"v","note":1},"more":[]}"#);
    assert_eq!(
        client.says(&more),
        (200, detail("stored")),
        "other fields are passed over"
    );

    let too_long = json!({"data": {"key": "k", "value": "v".repeat(VALUE_BYTES_MAX + 1)}});
    let key_too_long = json!({"data": {"key": "k".repeat(1025), "value": "v"}});
    for (request, status) in [
        (put(&too_long.to_string()), 413),
        (put(&key_too_long.to_string()), 400),
        (Request::get("/kv"), 400),
        (Request::get("/kv?key="), 400),
        (Request::delete("/kv?key="), 400),
        (Request::new("POST", "/kv").body("{}"), 405),
        (Request::delete("/cache/stats"), 405),
    ] {
        let (found, body) = client.says(&request);
        let fields = fields(&body);
        let (method, target) = (request.method(), request.target());
        assert_eq!(
            (found, fields),
            (status, vec!["detail"]),
            "{method} {target}: {body}"
        );
    }
    let allowed = client.send(&Request::new("POST", "/kv").body("{}"));
    assert_eq!(allowed.header("allow"), Some("GET, HEAD, PUT, DELETE"));
}

#[test]
fn health_and_numbers_are_told_and_a_lost_quorum_is_said_to_be_one() {
    let _alone = alone();
    let mut client = Client::new();
    assert_eq!(
        client.says(&Request::get("/health/live")),
        (200, json!({"status": "alive"}))
    );
    assert_eq!(
        client.says(&Request::get("/health/ready")),
        (200, json!({"status": "ready"}))
    );
    let (status, health) = client.says(&Request::get("/health"));
    assert_eq!((status, &health["status"]), (200, &json!("ok")));
    for (component, state) in [
        ("store", "ok"),
        ("membership", "ok"),
        ("cache", "absent"),
        ("queue", "absent"),
    ] {
        assert_eq!(
            health["components"][component]["status"], state,
            "{component}"
        );
    }
    for target in ["/health", "/health/live", "/health/ready", "/cache/stats"] {
        let head = client.send(&Request::new("HEAD", target));
        assert_eq!((head.status, head.body.len()), (200, 0), "{target}");
    }
    let (status, stats) = client.says(&Request::get("/cache/stats"));
    let zeros = json!({"keys_count": 0, "max_keys_limit": 0, "memory_used_bytes": 0, "hits": 0, "misses": 0});
    assert_eq!((status, stats), (200, zeros), "without a cache");

    assert_eq!(client.put("k", "v"), (200, detail("stored")));
    for number in [1, 2] {
        client.cluster.nodes[number].kill();
    }
    for request in [
        Request::get("/kv?key=k"),
        Request::delete("/kv?key=k"),
        put(r#"{"data":{"key":"k","value":"v2"}}"#),
    ] {
        let answer = client.cluster.nodes[0].ask(&request).expect("an answer");
        let body = answer.json();
        let fields = fields(&body);
        assert_eq!(
            (answer.status, fields),
            (503, vec!["detail"]),
            "{}: {body}",
            request.method()
        );
    }
    let live = client.cluster.nodes[0]
        .ask(&Request::get("/health/live"))
        .expect("an answer");
    assert_eq!(live.status, 200, "alive, though without a majority");
}

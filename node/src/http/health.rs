//! `/health/live`, `/health/ready`, `/health`, and the page at `/`.

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use super::Side;
use super::body::Body;
use super::problem::{Problem, Refused};
use crate::handle::Handle;

/// A JSON answer.
pub(super) fn json_response(value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::full(value.to_string()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The process answers.
pub(super) fn live() -> Response<Body> {
    json_response(&json!({"status": "alive"}))
}

/// Whether a load balancer should send requests here.
pub(super) fn ready(handle: &Handle) -> Result<Response<Body>, Refused> {
    check(handle)?;
    Ok(json_response(&json!({"status": "ready"})))
}

/// A config, a store that serves, and a majority of the members.
fn check(handle: &Handle) -> Result<(), Refused> {
    handle.ready().map_err(|reason| Problem::not_ready(&reason))?;
    let members = Members::seen_by(handle);
    if members.alive < members.majority() {
        return Err(Problem::no_majority(members.alive, members.majority()));
    }
    Ok(())
}

struct Members {
    total: usize,
    alive: usize,
}

impl Members {
    fn seen_by(handle: &Handle) -> Self {
        let Some(view) = handle.view() else { return Self { total: 0, alive: 0 } };
        let dead = handle.state().dead;
        let total = view.config.current.len();
        let alive = view.config.current.iter().filter(|m| !dead.contains(&m.id)).count();
        Self { total, alive }
    }

    fn majority(&self) -> usize {
        self.total / 2 + 1
    }
}

/// Every component with its own status: `ok`, `degraded`, `down`, or `absent` where none is configured.
pub(super) fn components(handle: &Handle) -> Response<Body> {
    let state = handle.state();
    let members = Members::seen_by(handle);
    let store = if state.disk_full {
        json!({"status": "degraded", "reason": "disk full: writes are refused, reads served"})
    } else {
        json!({"status": "ok"})
    };
    let membership = match handle.ready() {
        Err(reason) => json!({"status": "down", "reason": reason.to_string()}),
        Ok(()) => {
            let status = match members.alive {
                alive if alive < members.majority() => "down",
                alive if alive < members.total => "degraded",
                _ => "ok",
            };
            json!({"status": status, "members": members.total, "alive": members.alive})
        }
    };
    let clock = if state.clock_trusted {
        json!({"status": "ok"})
    } else {
        json!({"status": "degraded", "reason": "clock outside the allowed drift: fresh writes are refused"})
    };
    let serving = check(handle).is_ok();
    let whole = [&store, &membership, &clock].iter().all(|part| part["status"] == "ok");
    let status = match (serving, whole) {
        (true, true) => "ok",
        (true, false) => "degraded",
        (false, _) => "down",
    };
    let mut response = json_response(&json!({
        "status": status,
        "components": {
            "store": store,
            "membership": membership,
            "clock": clock,
            "cache": {"status": "absent"},
            "queue": {"status": "absent"},
        },
    }));
    if !serving {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

/// What a browser finds at `/`.
pub(super) fn page(handle: &Handle, side: Side) -> Response<Body> {
    let links: &[(&str, &str)] = match side {
        Side::Data => &[("/kv/default", "keys of the bucket default"), ("/ring", "ring"), ("/health", "health")],
        Side::Admin => {
            &[("/cluster", "cluster"), ("/ring", "ring"), ("/metrics", "metrics"), ("/health", "health")]
        }
    };
    let items: String = links.iter().map(|(to, what)| format!("<li><a href=\"{to}\">{what}</a></li>")).collect();
    // The name is checked to hold nothing that HTML would read otherwise.
    let name = Some(&handle.settings().name).filter(|name| torc_ring::config::is_node_name(name));
    let name = name.map_or("", String::as_str);
    let listener = if side == Side::Data { "data" } else { "admin" };
    let text = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>torc {name}</title>\
         <h1>torc</h1><p>Node {name} of a torc key-value cluster, {listener} listener. \
         Keys are at <code>/kv/{{bucket}}/{{key}}</code>.</p><ul>{items}</ul></html>\n"
    );
    let mut response = Response::new(Body::full(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}

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
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The process answers.
pub(super) fn live() -> Response<Body> {
    json_response(&json!({"status": "alive"}))
}

/// Whether a load balancer should send requests here.
pub(super) fn ready(handle: &Handle) -> Result<Response<Body>, Refused> {
    handle
        .ready()
        .map_err(|reason| Problem::not_ready(&reason))?;
    Ok(json_response(&json!({"status": "ready"})))
}

/// Every component with its own status: `ok`, `degraded`, `down`, or `absent` where none is configured.
pub(super) fn components(handle: &Handle) -> Response<Body> {
    let state = handle.state();
    let view = handle.view();
    let members = view.as_ref().map_or(&[][..], |view| &view.config.current);
    let alive = members
        .iter()
        .filter(|member| !state.dead.contains(&member.id))
        .count();
    let store = if state.disk_full {
        json!({"status": "degraded", "reason": "disk full: writes are refused, reads served"})
    } else {
        json!({"status": "ok"})
    };
    let membership = if let Err(reason) = handle.ready() {
        json!({"status": "down", "reason": reason.to_string()})
    } else {
        let status = if alive < members.len() {
            "degraded"
        } else {
            "ok"
        };
        json!({"status": status, "members": members.len(), "alive": alive})
    };
    let clock = if state.clock_trusted {
        json!({"status": "ok"})
    } else {
        json!({"status": "degraded", "reason": "clock outside the allowed drift: fresh writes are refused"})
    };
    let serving = handle.ready().is_ok();
    let whole = [&store, &membership, &clock]
        .iter()
        .all(|part| part["status"] == "ok");
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
        Side::Data => &[
            ("/kv/default", "keys of the bucket default"),
            ("/ring", "ring"),
            ("/health", "health"),
        ],
        Side::Admin => &[
            ("/cluster", "cluster"),
            ("/ring", "ring"),
            ("/metrics", "metrics"),
            ("/health", "health"),
        ],
    };
    let items: Vec<String> = links
        .iter()
        .map(|(to, what)| format!("<li><a href=\"{to}\">{what}</a></li>"))
        .collect();
    let items = items.concat();
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
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    response
}

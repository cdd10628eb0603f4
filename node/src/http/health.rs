//! `/health/live`, `/health/ready`, `/health`.

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use super::body::Body;
use super::problem::{Problem, Refused};
use crate::handle::{Condition, Handle};

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
        let recovering = view.as_ref().map_or(0, |view| view.config.recovering.len());
        let status = if alive < members.len() || recovering > 0 {
            "degraded"
        } else {
            "ok"
        };
        json!({"status": status, "members": members.len(), "alive": alive, "recovering": recovering})
    };
    let clock = if state.clock_trusted {
        json!({"status": "ok"})
    } else {
        json!({"status": "degraded", "reason": "clock outside the allowed drift: fresh writes are refused"})
    };
    let serving = handle.ready().is_ok();
    let (cache, queue) = (condition(&state.cache), condition(&state.queue));
    let whole = [&store, &membership, &clock, &cache, &queue]
        .iter()
        .all(|part| part["status"] == "ok" || part["status"] == "absent");
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
            "cache": cache,
            "queue": queue,
        },
    }));
    if !serving {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

fn condition(condition: &Condition) -> Value {
    match condition {
        Condition::Absent => json!({"status": "absent"}),
        Condition::Ok => json!({"status": "ok"}),
        Condition::Degraded { reason } => json!({"status": "degraded", "reason": reason}),
        Condition::Down { reason } => json!({"status": "down", "reason": reason}),
    }
}

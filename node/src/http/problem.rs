//! Errors as the client sees them: `application/problem+json` (RFC 9457).
//!
//! Every refusal of the facade is made by one of the constructors here, so that the same cause always has
//! the same type, title and numbers. `detail` says what was tried, on what, and what to do.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Map, Value, json};
use torc_protocol::client::ClientError;
use torc_protocol::context::{CONTEXT_TEXT_MAX, ContextError};
use torc_protocol::record::{CONTENT_TYPE_MAX, KEY_LEN_MAX};
use torc_ring::{ConflictMode, Quorum};

use super::body::Body;
use crate::handle::NotReady;

/// Media type of the documents.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// A refusal; boxed, because it is rare and large.
pub(super) type Refused = Box<Problem>;

/// One error document.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    /// Last part of the type, `urn:torc:problem:<kind>`.
    pub(super) kind: &'static str,
    title: &'static str,
    pub(super) detail: Cow<'static, str>,
    members: Vec<(&'static str, Value)>,
    allow: Option<&'static str>,
    content_range: Option<u64>,
    retry_after: Option<u32>,
    /// The connection cannot go on: unread bytes of this request may be on their way.
    close: bool,
}

/// What a failed write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// A read: there is no outcome to speak of.
    Read,
    /// A write.
    Write,
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, title: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            kind,
            title,
            detail: detail.into(),
            members: Vec::new(),
            allow: None,
            content_range: None,
            retry_after: None,
            close: false,
        }
    }

    fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.members.push((name, value.into()));
        self
    }

    fn retry(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    fn boxed(self) -> Refused {
        Box::new(self)
    }

    fn bad(kind: &'static str, title: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, kind, title, detail)
    }

    pub(super) fn no_host() -> Refused {
        Self::bad("host", "Missing or repeated Host", "an HTTP/1.1 request needs exactly one Host header").boxed()
    }

    pub(super) fn bad_bucket_name() -> Refused {
        Self::bad("bucket-name", "Bad bucket name", "a bucket name is 1-64 bytes of a-z 0-9 _ -").with("limit", 64).boxed()
    }

    pub(super) fn bad_escape() -> Refused {
        let detail = "the path or query holds a `%` that two hexadecimal digits do not follow; write a `%` itself as %25";
        Self::bad("percent-encoding", "Malformed percent-encoding", detail).boxed()
    }

    pub(super) fn empty_key() -> Refused {
        Self::bad("key", "Empty key", "a key is 1-1024 bytes; the path ends after the bucket's name").boxed()
    }

    pub(super) fn key_too_long(len: usize) -> Refused {
        let detail = format!("the key has {len} bytes; the limit is {KEY_LEN_MAX}");
        Self::bad("key", "Key too long", detail).with("received", len).with("limit", KEY_LEN_MAX).boxed()
    }

    pub(super) fn uri_too_long(limit: usize) -> Refused {
        let detail = format!("the request target is longer than the limit of {limit} bytes");
        Self::new(StatusCode::URI_TOO_LONG, "uri-too-long", "URI too long", detail).with("limit", limit).boxed()
    }

    pub(super) fn unknown_parameter(name: &str, nearest: Option<&'static str>, known: &[&'static str]) -> Refused {
        let name = shorten(name);
        let detail = match (nearest, known) {
            (Some(nearest), _) => format!("query parameter `{name}` is not known here; did you mean `{nearest}`?"),
            (None, []) => format!("query parameter `{name}` is not known here: this request takes none"),
            (None, known) => format!("query parameter `{name}` is not known here; known are {}", known.join(", ")),
        };
        Self::bad("query", "Unknown query parameter", detail).with("parameter", name).boxed()
    }

    pub(super) fn repeated_parameter(name: &str) -> Refused {
        let detail = format!("query parameter `{}` stands there more than once", shorten(name));
        Self::bad("query", "Repeated query parameter", detail).with("parameter", shorten(name)).boxed()
    }

    pub(super) fn missing_parameter(name: &'static str) -> Refused {
        let detail = format!("query parameter `{name}` is missing");
        Self::bad("query", "Missing query parameter", detail).with("parameter", name).boxed()
    }

    pub(super) fn bad_parameter(name: &'static str, given: &str, expected: &'static str) -> Refused {
        let detail = format!("`{name}` is `{}`; expected: {expected}", shorten(given));
        Self::bad("query", "Bad parameter", detail).with("parameter", name).boxed()
    }

    pub(super) fn deadline_too_long(given: Duration, max: Duration) -> Refused {
        let detail = format!(
            "a deadline of {} ms was asked for; this node allows at most {} ms",
            given.as_millis(),
            max.as_millis()
        );
        Self::bad("deadline", "Deadline too long", detail).with("limit_ms", max.as_millis() as u64).boxed()
    }

    pub(super) fn quorum_too_large(name: &'static str, given: Quorum, n: u8) -> Refused {
        let detail = format!("{name} = {given} replicas were asked for, but the bucket has n = {n}");
        Self::bad("quorum-size", "Quorum larger than n", detail).with("limit", n).boxed()
    }

    pub(super) fn bad_context(error: ContextError) -> Refused {
        let problem = Self::bad("context", "Malformed context", error.to_string());
        match error {
            ContextError::TooLong { len } => problem.with("received", len).with("limit", CONTEXT_TEXT_MAX).boxed(),
            _ => problem.boxed(),
        }
    }

    pub(super) fn repeated_context() -> Refused {
        Self::bad("context", "Repeated context", "X-Torc-Context stands there more than once").boxed()
    }

    pub(super) fn condition_refused(header: &str, mode: ConflictMode) -> Refused {
        let mode = match mode {
            ConflictMode::Lww => "lww",
            ConflictMode::Siblings => "siblings",
            ConflictMode::Linearizable => "linearizable",
        };
        let detail = format!(
            "`{header}` on a write cannot be honoured in a bucket with conflict mode `{mode}`: nodes accept writes \
             without asking each other, so another one may pass the same condition; buckets with conflict mode \
             `linearizable` keep such promises, and X-Torc-Context orders a write after what it has seen"
        );
        Self::bad("condition", "Condition cannot be honoured", detail).with("conflict", mode).boxed()
    }

    pub(super) fn partial_put() -> Refused {
        Self::bad("content-range", "Partial PUT", "Content-Range on PUT is not supported: send the whole value").boxed()
    }

    pub(super) fn bad_wait() -> Refused {
        let detail = "`wait` needs If-None-Match with the one ETag that you know, so that there is something to wait for";
        Self::bad("query", "Bad parameter", detail).with("parameter", "wait").boxed()
    }

    pub(super) fn bad_cursor() -> Refused {
        let detail = "`cursor` is not one that a list of this bucket gave out; begin again without it";
        Self::bad("cursor", "Malformed cursor", detail).boxed()
    }

    pub(super) fn truncated_body() -> Refused {
        Self::bad("body", "Truncated or malformed body", "the body ended early or its framing is broken").closing().boxed()
    }

    pub(super) fn bad_json(what: &'static str) -> Refused {
        Self::bad("body", "Malformed body", what).boxed()
    }

    pub(super) fn no_route(path: &str) -> Refused {
        let detail = format!("nothing is served at `{}`; keys are at /kv/{{bucket}}/{{key}}", shorten(path));
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail).boxed()
    }

    pub(super) fn no_bucket(name: &str) -> Refused {
        let detail = format!("there is no bucket `{}`", shorten(name));
        Self::new(StatusCode::NOT_FOUND, "no-such-bucket", "No such bucket", detail).boxed()
    }

    pub(super) fn no_key() -> Refused {
        Self::new(StatusCode::NOT_FOUND, "no-such-key", "No such key", "the key has no value").boxed()
    }

    pub(super) fn key_not_found() -> Refused {
        Self::new(StatusCode::NOT_FOUND, "no-such-key", "No such key", "Key not found").boxed()
    }

    pub(super) fn method(allow: &'static str) -> Refused {
        let detail = format!("this resource answers {allow}");
        let mut problem = Self::new(StatusCode::METHOD_NOT_ALLOWED, "method", "Method not allowed", detail);
        problem.allow = Some(allow);
        problem.boxed()
    }

    pub(super) fn not_acceptable(offered: &'static str) -> Refused {
        let detail = format!("none of the media types in Accept can be served; this resource offers {offered}");
        Self::new(StatusCode::NOT_ACCEPTABLE, "not-acceptable", "Not acceptable", detail).with("offered", offered).boxed()
    }

    pub(super) fn body_too_slow(limit: Duration) -> Refused {
        let detail = format!("the body did not arrive within {} ms", limit.as_millis());
        Self::new(StatusCode::REQUEST_TIMEOUT, "too-slow", "Too slow to send", detail)
            .with("limit_ms", limit.as_millis() as u64)
            .closing()
            .boxed()
    }

    fn head_too_slow(limit: Duration) -> Self {
        let detail = format!("the request's head did not arrive within {} ms", limit.as_millis());
        Self::new(StatusCode::REQUEST_TIMEOUT, "too-slow", "Too slow to send", detail)
            .with("limit_ms", limit.as_millis() as u64)
            .closing()
    }

    pub(super) fn precondition_failed() -> Refused {
        let detail = "the key's state is not the one that the condition names";
        Self::new(StatusCode::PRECONDITION_FAILED, "condition-failed", "Condition failed", detail).boxed()
    }

    pub(super) fn body_too_large(limit: usize) -> Refused {
        let detail = format!("the body is larger than the limit of {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "Value too large", detail)
            .with("limit", limit)
            .closing()
            .boxed()
    }

    pub(super) fn too_many_lines(received: usize, limit: usize) -> Refused {
        let detail = format!("the batch has {received} lines; the limit is {limit}; nothing was done");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "Batch too large", detail)
            .with("received", received)
            .with("limit", limit)
            .boxed()
    }

    pub(super) fn media_type(expected: &'static str) -> Refused {
        let detail = format!("the body's Content-Type has to be {expected}");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", "Unsupported media type", detail).boxed()
    }

    pub(super) fn content_encoding() -> Refused {
        let detail = "values are stored as they are sent and without a Content-Encoding; leave the header out";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-encoding", "Unsupported content encoding", detail).boxed()
    }

    pub(super) fn content_type_too_long(len: usize) -> Refused {
        let detail = format!("Content-Type has {len} bytes; the limit is {CONTENT_TYPE_MAX}");
        Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "header-too-large", "Header too large", detail)
            .with("limit", CONTENT_TYPE_MAX)
            .boxed()
    }

    pub(super) fn range(len: u64) -> Refused {
        let detail = format!("no part of the range lies within the value's {len} bytes");
        let mut problem = Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "range", "Range not satisfiable", detail);
        problem.content_range = Some(len);
        problem.with("limit", len).boxed()
    }

    pub(super) fn expectation() -> Refused {
        let detail = "the only expectation that is understood is 100-continue";
        Self::new(StatusCode::EXPECTATION_FAILED, "expectation", "Expectation failed", detail).boxed()
    }

    pub(super) fn too_many_requests(limit: usize) -> Refused {
        let detail = format!("this node works on {limit} requests already; try again, or another node");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", "Too many requests", detail)
            .with("limit", limit)
            .with("outcome", "not-written")
            .retry(1)
            .boxed()
    }

    pub(super) fn not_ready(reason: &NotReady) -> Refused {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", "Not ready", reason.to_string()).retry(1);
        match *reason {
            NotReady::NoMajority { alive, members } => {
                problem.with("required", members / 2 + 1).with("received", alive).boxed()
            }
            _ => problem.boxed(),
        }
    }

    pub(super) fn internal() -> Refused {
        let detail = "the node gave itself an answer that does not fit the question; its log and this request's id help to report it";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error", detail).boxed()
    }

    /// What the core answered.
    pub(super) fn client(error: ClientError, access: Access, now_ready: Result<(), NotReady>) -> Refused {
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        let text = error.to_string();
        let outcome = |maybe: bool| if maybe { "unknown" } else { "not-written" };
        let told = |problem: Self, maybe: bool| match access {
            Access::Read => problem,
            Access::Write => problem.with("outcome", outcome(maybe)),
        };
        let problem = match error {
            ClientError::Quorum { required, received, maybe_applied } => {
                let detail = match (access, maybe_applied) {
                    (Access::Write, true) => {
                        format!("{text}; the outcome is unknown: the write may still take effect")
                    }
                    (Access::Write, false) => format!("{text}; nothing was written"),
                    (Access::Read, _) => text,
                };
                let problem = Self::new(unavailable, "quorum", "Quorum not reached", detail);
                told(problem.with("required", required).with("received", received).retry(1), maybe_applied)
            }
            ClientError::Unavailable { required, alive } => {
                let problem = Self::new(unavailable, "unavailable", "Too few replicas alive", text);
                told(problem.with("required", required).with("received", alive).retry(1), false)
            }
            ClientError::QuorumTooLarge { n, .. } => {
                Self::bad("quorum-size", "Quorum larger than n", text).with("limit", n)
            }
            ClientError::Mode => Self::bad("conflict-mode", "Conflict mode not supported", text),
            ClientError::NoBucket => Self::new(StatusCode::NOT_FOUND, "no-such-bucket", "No such bucket", text),
            ClientError::DiskFull { required, received, maybe_applied } => {
                let detail = format!("{text}; reads are served; free or add disk space");
                let problem = Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk-full", "Disk full", detail);
                told(problem.with("required", required).with("received", received), maybe_applied)
            }
            ClientError::ClockDrift => {
                let detail = "this node's clock is outside the allowed drift from its peers, so it takes no writes; \
                              try another node, and see to this node's clock";
                told(Self::new(unavailable, "clock-drift", "Clock not trusted", detail).retry(5), false)
            }
            ClientError::ContextFromFuture => Self::bad("context", "Context from the future", text),
            ClientError::Overloaded => {
                let problem = Self::new(unavailable, "overloaded", "Overloaded", text).retry(1);
                told(problem.with("required", 1).with("received", 0), false)
            }
            ClientError::NotReady => {
                let detail = now_ready.err().map_or(text, |reason| reason.to_string());
                told(Self::new(unavailable, "not-ready", "Not ready", detail).retry(1), false)
            }
        };
        problem.boxed()
    }

    /// The document as one JSON object.
    pub(super) fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("type".to_owned(), json!(format!("urn:torc:problem:{}", self.kind)));
        map.insert("title".to_owned(), json!(self.title));
        map.insert("status".to_owned(), json!(self.status.as_u16()));
        map.insert("detail".to_owned(), json!(self.detail));
        for (name, value) in &self.members {
            map.insert((*name).to_owned(), value.clone());
        }
        Value::Object(map)
    }

    /// The document as a response.
    pub(super) fn into_response(self) -> Response<Body> {
        self.respond(PROBLEM_JSON, self.to_json().to_string())
    }

    /// The same refusal in the shape of the older service.
    pub(super) fn into_compatible_response(self) -> Response<Body> {
        self.respond("application/json", json!({ "detail": self.detail }).to_string())
    }

    fn respond(&self, media_type: &'static str, text: String) -> Response<Body> {
        let mut response = Response::new(Body::full(text));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(len) = self.content_range
            && let Ok(value) = HeaderValue::try_from(format!("bytes */{len}"))
        {
            headers.insert(CONTENT_RANGE, value);
        }
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// The whole HTTP/1.1 response, for where hyper is not in between.
    fn to_wire(&self) -> Bytes {
        let text = self.to_json().to_string();
        let reason = self.status.canonical_reason().unwrap_or("Error");
        let retry = self.retry_after.map_or_else(String::new, |s| format!("retry-after: {s}\r\n"));
        let head = format!(
            "HTTP/1.1 {} {reason}\r\ncontent-type: {PROBLEM_JSON}\r\ncontent-length: {}\r\n{retry}connection: close\r\ndate: {}\r\n\r\n",
            self.status.as_u16(),
            text.len(),
            httpdate::fmt_http_date(std::time::SystemTime::now()),
        );
        Bytes::from(head + &text)
    }
}

/// What a client is told whose request head hyper has refused.
pub(super) fn for_refused_head(status: u16, line_seen: bool, header_bytes: usize) -> Bytes {
    let problem = match status {
        431 if line_seen => {
            let detail = format!("the request's head is larger than {header_bytes} bytes or has more than 100 headers");
            Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "header-too-large", "Headers too large", detail)
                .with("limit", header_bytes)
        }
        414 | 431 => *Problem::uri_too_long(header_bytes),
        _ => {
            let detail = "this is no valid HTTP/1.1: request line, a header, or the body's length is malformed";
            Problem::bad("malformed", "Malformed request", detail)
        }
    };
    problem.to_wire()
}

/// What a client is told that did not send its head in time.
pub(super) fn for_slow_head(limit: Duration) -> Bytes {
    Problem::head_too_slow(limit).to_wire()
}

/// What a client is told that is one connection too many.
pub(super) fn for_connection_limit(limit: usize) -> Bytes {
    let detail = format!("this node has {limit} connections open already; try another node");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-connections", "Too many connections", detail)
        .with("limit", limit)
        .retry(1)
        .to_wire()
}

/// What a client gave, short enough to be repeated.
fn shorten(given: &str) -> String {
    const SHOWN_MAX: usize = 64;
    let mut shown: String = given.chars().take(SHOWN_MAX).collect();
    if shown.len() < given.len() {
        shown.push('…');
    }
    shown
}

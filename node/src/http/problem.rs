//! Errors as the client sees them: `application/problem+json` (RFC 9457).
//!
//! Every refusal of the facade is made by one of the constructors here, so that the same cause always has
//! the same type, title and numbers. `detail` says what was tried, on what, and what to do.

mod operator;
mod refusals;

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Map, Value, json};
use torc_protocol::client::ClientError;

use super::body::Body;
use crate::handle::NotReady;

/// Media type of the documents.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// Longest path and query in bytes: a key of percent-escapes only, and room for a prefix of the same length.
pub(super) const TARGET_MAX: usize = 8 << 10;

/// A refusal; boxed, because it is rare and large: every handler's result would be as large as it is.
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

#[allow(clippy::unnecessary_box_returns)] // see `Refused`
impl Problem {
    fn new(
        status: StatusCode,
        kind: &'static str,
        title: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
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

    /// What the core answered.
    pub(super) fn client(
        error: ClientError,
        access: Access,
        now_ready: Result<(), NotReady>,
    ) -> Refused {
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        let text = error.to_string();
        let outcome = |maybe: bool| if maybe { "unknown" } else { "not-written" };
        let told = |problem: Self, maybe: bool| match access {
            Access::Read => problem,
            Access::Write => problem.with("outcome", outcome(maybe)),
        };
        let problem = match error {
            ClientError::Quorum {
                required,
                received,
                maybe_applied,
            } => {
                let detail = match (access, maybe_applied) {
                    (Access::Write, true) => {
                        format!("{text}; the outcome is unknown: the write may still take effect")
                    }
                    (Access::Write, false) => format!("{text}; nothing was written"),
                    (Access::Read, _) => text,
                };
                let problem = Self::new(unavailable, "quorum", "Quorum not reached", detail);
                told(
                    problem
                        .with("required", required)
                        .with("received", received)
                        .retry(1),
                    maybe_applied,
                )
            }
            ClientError::Unavailable { required, alive } => {
                let problem = Self::new(unavailable, "unavailable", "Too few replicas alive", text);
                told(
                    problem
                        .with("required", required)
                        .with("received", alive)
                        .retry(1),
                    false,
                )
            }
            ClientError::QuorumTooLarge { n, .. } => {
                Self::bad("quorum-size", "Quorum larger than n", text).with("limit", n)
            }
            ClientError::Mode => Self::bad("conflict-mode", "Conflict mode not supported", text),
            ClientError::NoBucket => Self::new(
                StatusCode::NOT_FOUND,
                "no-such-bucket",
                "No such bucket",
                text,
            ),
            ClientError::DiskFull {
                required,
                received,
                maybe_applied,
            } => {
                let detail = format!("{text}; reads are served; free or add disk space");
                let problem = Self::new(
                    StatusCode::INSUFFICIENT_STORAGE,
                    "disk-full",
                    "Disk full",
                    detail,
                );
                told(
                    problem
                        .with("required", required)
                        .with("received", received),
                    maybe_applied,
                )
            }
            ClientError::ClockDrift => {
                let detail = "this node's clock is outside the allowed drift from its peers, so it takes no writes; \
                              try another node, and see to this node's clock";
                told(
                    Self::new(unavailable, "clock-drift", "Clock not trusted", detail).retry(5),
                    false,
                )
            }
            ClientError::ContextFromFuture => Self::bad("context", "Context from the future", text),
            ClientError::Overloaded => {
                let problem = Self::new(unavailable, "overloaded", "Overloaded", text).retry(1);
                told(problem.with("required", 1).with("received", 0), false)
            }
            ClientError::NotReady => {
                let detail = now_ready.err().map_or(text, |reason| reason.to_string());
                told(
                    Self::new(unavailable, "not-ready", "Not ready", detail).retry(1),
                    false,
                )
            }
        };
        problem.boxed()
    }

    /// The document as one JSON object.
    pub(super) fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert(
            "type".to_owned(),
            json!(format!("urn:torc:problem:{}", self.kind)),
        );
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
        self.respond(
            "application/json",
            json!({ "detail": self.detail }).to_string(),
        )
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
        let retry = self
            .retry_after
            .map_or_else(String::new, |s| format!("retry-after: {s}\r\n"));
        let head = format!(
            "HTTP/1.1 {} {reason}\r\ncontent-type: {PROBLEM_JSON}\r\ncontent-length: {}\r\n{retry}connection: close\r\ndate: {}\r\n\r\n",
            self.status.as_u16(),
            text.len(),
            httpdate::fmt_http_date(std::time::SystemTime::now()),
        );
        Bytes::from(head + &text)
    }
}

/// What a client is told whose request head hyper has refused; its first line is known to have this length.
pub(super) fn for_refused_head(status: u16, line: usize, header_bytes: usize) -> Bytes {
    let problem = match status {
        431 if line <= TARGET_MAX => {
            let detail = format!(
                "the request's head is larger than {header_bytes} bytes or has more than 100 headers"
            );
            Problem::new(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "header-too-large",
                "Headers too large",
                detail,
            )
            .with("limit", header_bytes)
        }
        414 | 431 => *Problem::uri_too_long(),
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
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "too-many-connections",
        "Too many connections",
        detail,
    )
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

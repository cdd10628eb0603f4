//! The refusals, each with its status, type, words and numbers, in the order of their statuses.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;
use torc_protocol::context::{CONTEXT_TEXT_MAX, ContextError};
use torc_protocol::record::{CONTENT_TYPE_MAX, KEY_LEN_MAX};
use torc_ring::{ConflictMode, Quorum};

use super::{Problem, Refused, TARGET_MAX, shorten};
use crate::handle::NotReady;
use crate::side::queue::PublishError;

#[allow(clippy::unnecessary_box_returns)] // see `Refused`
impl Problem {
    pub(in crate::http) fn no_host() -> Refused {
        Self::bad(
            "host",
            "Missing or repeated Host",
            "an HTTP/1.1 request needs exactly one Host header",
        )
        .boxed()
    }

    pub(in crate::http) fn bad_bucket_name() -> Refused {
        Self::bad(
            "bucket-name",
            "Bad bucket name",
            "a bucket name is 1-64 bytes of a-z 0-9 _ -",
        )
        .with("limit", 64)
        .boxed()
    }

    pub(in crate::http) fn bad_escape() -> Refused {
        let detail = "the path or query holds a `%` that two hexadecimal digits do not follow; write a `%` itself as %25";
        Self::bad("percent-encoding", "Malformed percent-encoding", detail).boxed()
    }

    pub(in crate::http) fn empty_key() -> Refused {
        Self::bad(
            "key",
            "Empty key",
            "a key is 1-1024 bytes; the path ends after the bucket's name",
        )
        .boxed()
    }

    pub(in crate::http) fn key_too_long(len: usize) -> Refused {
        let detail = format!("the key has {len} bytes; the limit is {KEY_LEN_MAX}");
        Self::bad("key", "Key too long", detail)
            .with("received", len)
            .with("limit", KEY_LEN_MAX)
            .boxed()
    }

    pub(in crate::http) fn uri_too_long() -> Refused {
        let limit = TARGET_MAX;
        let detail = format!("the request target is longer than the limit of {limit} bytes");
        Self::new(
            StatusCode::URI_TOO_LONG,
            "uri-too-long",
            "URI too long",
            detail,
        )
        .with("limit", limit)
        .boxed()
    }

    pub(in crate::http) fn unknown_parameter(
        name: &str,
        nearest: Option<&'static str>,
        known: &[&'static str],
    ) -> Refused {
        let name = shorten(name);
        let detail = match (nearest, known) {
            (Some(nearest), _) => {
                format!("query parameter `{name}` is not known here; did you mean `{nearest}`?")
            }
            (None, []) => {
                format!("query parameter `{name}` is not known here: this request takes none")
            }
            (None, known) => format!(
                "query parameter `{name}` is not known here; known are {}",
                known.join(", ")
            ),
        };
        Self::bad("query", "Unknown query parameter", detail)
            .with("parameter", name)
            .boxed()
    }

    pub(in crate::http) fn repeated_parameter(name: &str) -> Refused {
        let detail = format!(
            "query parameter `{}` stands there more than once",
            shorten(name)
        );
        Self::bad("query", "Repeated query parameter", detail)
            .with("parameter", shorten(name))
            .boxed()
    }

    pub(in crate::http) fn missing_parameter(name: &'static str) -> Refused {
        let detail = format!("query parameter `{name}` is missing");
        Self::bad("query", "Missing query parameter", detail)
            .with("parameter", name)
            .boxed()
    }

    pub(in crate::http) fn bad_parameter(
        name: &'static str,
        given: &str,
        expected: &'static str,
    ) -> Refused {
        let detail = format!("`{name}` is `{}`; expected: {expected}", shorten(given));
        Self::bad("query", "Bad parameter", detail)
            .with("parameter", name)
            .boxed()
    }

    pub(in crate::http) fn deadline_too_long(given: Duration, max: Duration) -> Refused {
        let detail = format!(
            "a deadline of {} ms was asked for; this node allows at most {} ms",
            given.as_millis(),
            max.as_millis()
        );
        Self::bad("deadline", "Deadline too long", detail)
            .with("limit_ms", max.as_millis() as u64)
            .boxed()
    }

    pub(in crate::http) fn quorum_too_large(name: &'static str, given: Quorum, n: u8) -> Refused {
        let detail =
            format!("{name} = {given} replicas were asked for, but the bucket has n = {n}");
        Self::bad("quorum-size", "Quorum larger than n", detail)
            .with("limit", n)
            .boxed()
    }

    pub(in crate::http) fn bad_context(error: ContextError) -> Refused {
        let problem = Self::bad("context", "Malformed context", error.to_string());
        match error {
            ContextError::TooLong { len } => problem
                .with("received", len)
                .with("limit", CONTEXT_TEXT_MAX)
                .boxed(),
            _ => problem.boxed(),
        }
    }

    pub(in crate::http) fn repeated_context() -> Refused {
        Self::bad(
            "context",
            "Repeated context",
            "X-Torc-Context stands there more than once",
        )
        .boxed()
    }

    pub(in crate::http) fn condition_refused(header: &str, mode: ConflictMode) -> Refused {
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
        Self::bad("condition", "Condition cannot be honoured", detail)
            .with("conflict", mode)
            .boxed()
    }

    pub(in crate::http) fn partial_put() -> Refused {
        Self::bad(
            "content-range",
            "Partial PUT",
            "Content-Range on PUT is not supported: send the whole value",
        )
        .boxed()
    }

    pub(in crate::http) fn bad_wait() -> Refused {
        let detail = "`wait` needs If-None-Match with the one ETag that you know, so that there is something to wait for";
        Self::bad("query", "Bad parameter", detail)
            .with("parameter", "wait")
            .boxed()
    }

    pub(in crate::http) fn bad_cursor() -> Refused {
        let detail =
            "`cursor` is not one that a list of this bucket gave out; begin again without it";
        Self::bad("cursor", "Malformed cursor", detail).boxed()
    }

    pub(in crate::http) fn truncated_body() -> Refused {
        Self::bad(
            "body",
            "Truncated or malformed body",
            "the body ended early or its framing is broken",
        )
        .closing()
        .boxed()
    }

    pub(in crate::http) fn bad_json(what: impl Into<Cow<'static, str>>) -> Refused {
        Self::bad("body", "Malformed body", what).boxed()
    }

    pub(in crate::http) fn no_route(path: &str) -> Refused {
        let detail = format!(
            "nothing is served at `{}`; keys are at /kv/{{bucket}}/{{key}}",
            shorten(path)
        );
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail).boxed()
    }

    pub(in crate::http) fn no_queue() -> Refused {
        let detail = "this node has no queue, so there are no asynchronous writes";
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail).boxed()
    }

    pub(in crate::http) fn no_write(why: &str) -> Refused {
        let detail = format!("nothing is known of a write with this id: {why}");
        Self::new(
            StatusCode::NOT_FOUND,
            "no-such-write",
            "No such write",
            detail,
        )
        .boxed()
    }

    pub(in crate::http) fn bad_message(why: &str) -> Refused {
        let detail = format!("this is no queued write: {why}");
        Self::bad("body", "Malformed body", detail).boxed()
    }

    pub(in crate::http) fn write_too_old(lifetime_ms: u64) -> Refused {
        let limit = super::super::writes::age(lifetime_ms);
        let detail = format!(
            "the write was accepted more than {limit} ago (queue.lifetime); it is not stored any more"
        );
        Self::new(StatusCode::GONE, "write-too-old", "Write too old", detail)
            .with("limit", limit)
            .boxed()
    }

    pub(in crate::http) fn not_asynchronous(name: &'static str) -> Refused {
        let detail =
            format!("`{name}` cannot go with Prefer: respond-async; leave out one of the two");
        Self::bad("parameter", "Bad parameter", detail).boxed()
    }

    pub(in crate::http) fn queue(error: PublishError) -> Refused {
        let (kind, outcome, seconds) = match error {
            PublishError::Away => ("queue-away", "not-written", 2),
            PublishError::Full => ("queue-full", "not-written", 5),
            PublishError::Unconfirmed => ("queue-unconfirmed", "unknown", 2),
        };
        let effect = match error {
            PublishError::Away => {
                "nothing was written; try again, or write without Prefer: respond-async"
            }
            PublishError::Full => {
                "nothing was written; try again later, or write without Prefer: respond-async"
            }
            PublishError::Unconfirmed => "the outcome is unknown: the write may still take effect",
        };
        let detail = format!("{error}; {effect}");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            kind,
            "Queue unavailable",
            detail,
        )
        .with("outcome", outcome)
        .retry(seconds)
        .boxed()
    }

    pub(in crate::http) fn no_bucket(name: &str) -> Refused {
        let detail = format!("there is no bucket `{}`", shorten(name));
        Self::new(
            StatusCode::NOT_FOUND,
            "no-such-bucket",
            "No such bucket",
            detail,
        )
        .boxed()
    }

    pub(in crate::http) fn no_key() -> Refused {
        Self::new(
            StatusCode::NOT_FOUND,
            "no-such-key",
            "No such key",
            "the key has no value",
        )
        .boxed()
    }

    pub(in crate::http) fn key_not_found() -> Refused {
        Self::new(
            StatusCode::NOT_FOUND,
            "no-such-key",
            "No such key",
            "Key not found",
        )
        .boxed()
    }

    pub(in crate::http) fn method(allow: &'static str) -> Refused {
        let detail = format!("this resource answers {allow}");
        let mut problem = Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method",
            "Method not allowed",
            detail,
        );
        problem.allow = Some(allow);
        problem.boxed()
    }

    pub(in crate::http) fn not_acceptable(offered: &'static str) -> Refused {
        let detail = format!(
            "none of the media types in Accept can be served; this resource offers {offered}"
        );
        Self::new(
            StatusCode::NOT_ACCEPTABLE,
            "not-acceptable",
            "Not acceptable",
            detail,
        )
        .with("offered", offered)
        .boxed()
    }

    pub(in crate::http) fn body_too_slow(limit: Duration) -> Refused {
        let detail = format!("the body did not arrive within {} ms", limit.as_millis());
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "too-slow",
            "Too slow to send",
            detail,
        )
        .with("limit_ms", limit.as_millis() as u64)
        .closing()
        .boxed()
    }

    pub(super) fn head_too_slow(limit: Duration) -> Self {
        let detail = format!(
            "the request's head did not arrive within {} ms",
            limit.as_millis()
        );
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "too-slow",
            "Too slow to send",
            detail,
        )
        .with("limit_ms", limit.as_millis() as u64)
        .closing()
    }

    pub(in crate::http) fn precondition_failed() -> Refused {
        let detail = "the key's state is not the one that the condition names";
        Self::new(
            StatusCode::PRECONDITION_FAILED,
            "condition-failed",
            "Condition failed",
            detail,
        )
        .boxed()
    }

    pub(in crate::http) fn body_too_large(limit: usize) -> Refused {
        let detail = format!("the body is larger than the limit of {limit} bytes");
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            "Value too large",
            detail,
        )
        .with("limit", limit)
        .closing()
        .boxed()
    }

    pub(in crate::http) fn too_many_lines(received: usize, limit: usize) -> Refused {
        let detail =
            format!("the batch has {received} lines; the limit is {limit}; nothing was done");
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            "Batch too large",
            detail,
        )
        .with("received", received)
        .with("limit", limit)
        .boxed()
    }

    pub(in crate::http) fn media_type(expected: &'static str) -> Refused {
        let detail = format!("the body's Content-Type has to be {expected}");
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "media-type",
            "Unsupported media type",
            detail,
        )
        .boxed()
    }

    pub(in crate::http) fn content_encoding() -> Refused {
        let detail = "values are stored as they are sent and without a Content-Encoding; leave the header out";
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "content-encoding",
            "Unsupported content encoding",
            detail,
        )
        .boxed()
    }

    pub(in crate::http) fn content_type_too_long(len: usize) -> Refused {
        let detail = format!("Content-Type has {len} bytes; the limit is {CONTENT_TYPE_MAX}");
        Self::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "header-too-large",
            "Header too large",
            detail,
        )
        .with("limit", CONTENT_TYPE_MAX)
        .boxed()
    }

    pub(in crate::http) fn range(len: u64) -> Refused {
        let detail = format!("no part of the range lies within the value's {len} bytes");
        let mut problem = Self::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            "range",
            "Range not satisfiable",
            detail,
        );
        problem.content_range = Some(len);
        problem.with("limit", len).boxed()
    }

    pub(in crate::http) fn expectation() -> Refused {
        let detail = "the only expectation that is understood is 100-continue";
        Self::new(
            StatusCode::EXPECTATION_FAILED,
            "expectation",
            "Expectation failed",
            detail,
        )
        .boxed()
    }

    pub(in crate::http) fn too_many_requests(limit: usize) -> Refused {
        let detail =
            format!("this node works on {limit} requests already; try again, or another node");
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too-many-requests",
            "Too many requests",
            detail,
        )
        .with("limit", limit)
        .with("outcome", "not-written")
        .retry(1)
        .boxed()
    }

    pub(in crate::http) fn not_ready(reason: &NotReady) -> Refused {
        let problem = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not-ready",
            "Not ready",
            reason.to_string(),
        )
        .retry(1);
        match *reason {
            NotReady::NoMajority { alive, members } => problem
                .with("required", members / 2 + 1)
                .with("received", alive)
                .boxed(),
            _ => problem.boxed(),
        }
    }

    pub(in crate::http) fn internal() -> Refused {
        let detail = "the node gave itself an answer that does not fit the question; its log and this request's id help to report it";
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "Internal error",
            detail,
        )
        .boxed()
    }
}

//! `POST /kv/{bucket}/_batch`: up to a thousand operations, a line of JSON each, answered a line each in
//! the same order, each with its own status.
//!
//! It is no transaction, and every answer says so in `X-Torc-Batch`: operations succeed and fail one by
//! one. Those on different keys run side by side, a few at a time; those on the same key one after the
//! other, in the order of their lines.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::{FuturesOrdered, StreamExt as _};
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Response};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use torc_protocol::client::{ClientError, ClientOp, ClientReply, Value};
use torc_protocol::record::{CONTENT_TYPE_MAX, KEY_LEN_MAX, Kind};
use torc_ring::{Bucket, BucketId, Quorum};

use super::admin::put_text;
use super::body::{self, Body};
use super::path::parse_bucket;
use super::problem::{Access, Problem, Refused};
use super::query::{self, KeyQuery};
use super::{Call, keys, submit, tags};
use crate::handle::Handle;

const NDJSON: &str = "application/x-ndjson";
const LINES_MAX: usize = 1_000;
/// Least bound of a whole batch in bytes; where one value may be larger, a batch may too.
const BYTES_MAX: usize = 16 << 20;
/// Operations in work at a time.
const IN_FLIGHT: usize = 32;
const BATCH: HeaderName = HeaderName::from_static("x-torc-batch");

/// One line.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    op: Op,
    key: String,
    value: Option<String>,
    /// `base64` when key and value are.
    encoding: Option<Encoding>,
    content_type: Option<String>,
    ttl: Option<String>,
    r: Option<String>,
    w: Option<String>,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Op {
    Put,
    Get,
    Delete,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    Base64,
}

pub(super) async fn serve(call: &Call<'_>, body: Incoming) -> Result<Response<Body>, Refused> {
    let path = call.parts.uri.path();
    let raw = path
        .strip_prefix("/kv/")
        .and_then(|rest| rest.strip_suffix("/_batch"))
        .unwrap_or_default();
    let name = parse_bucket(raw.as_bytes()).map_err(|error| keys::refuse_path(error, path))?;
    let asked = KeyQuery::parse(call.parts.uri.query(), &["deadline"])?;
    let time = call.deadline(asked.deadline)?;
    let media = call
        .heads
        .content_type
        .and_then(|value| value.to_str().ok()?.split(';').next());
    if !media.is_some_and(|media| media.trim().eq_ignore_ascii_case(NDJSON)) {
        return Err(Problem::media_type(NDJSON));
    }
    let view = call.view()?;
    let Some(&Bucket { id: bucket, n, .. }) = view.config.bucket(&name) else {
        return Err(Problem::no_bucket(&name));
    };
    let limits = &call.handle().settings().limits;
    let room = BYTES_MAX.max(limits.value_bytes.saturating_mul(3) / 2);
    let text = body::gather(body, room, limits.body_timeout).await?;
    let lines = split(&text);
    if lines.len() > LINES_MAX {
        return Err(Problem::too_many_lines(lines.len(), LINES_MAX));
    }
    let rules = Rules {
        n,
        value_bytes: limits.value_bytes,
    };
    let planned: Vec<Planned> = lines.into_iter().map(|line| plan(&line, &rules)).collect();
    let worker = Worker {
        handle: call.handle().clone(),
        trace: call.trace.clone(),
        bucket,
        time,
    };
    let mut response = Response::new(Body::stream(run(Arc::new(worker), planned)));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(NDJSON));
    response
        .headers_mut()
        .insert(BATCH, HeaderValue::from_static("not-a-transaction"));
    Ok(response)
}

/// Lines that hold anything, sharing the body's memory.
fn split(text: &Bytes) -> Vec<Bytes> {
    let lines = text
        .split(|&b| b == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty());
    lines.map(|line| text.slice_ref(line)).collect()
}

/// What a line comes to before the core is asked.
type Planned = Result<(Bytes, ClientOp), Refused>;

struct Rules {
    n: u8,
    value_bytes: usize,
}

fn plan(line: &[u8], rules: &Rules) -> Planned {
    const FORM: &str = "a line is {\"op\":\"put\"|\"get\"|\"delete\",\"key\":…} with \"value\" for put, and optionally \
                        \"encoding\":\"base64\", \"content_type\", \"ttl\", \"r\", \"w\"";
    let line: Line = serde_json::from_slice(line).map_err(|_| Problem::bad_json(FORM))?;
    let key = bytes(line.key, line.encoding)?;
    match key.len() {
        0 => return Err(Problem::empty_key()),
        len if len > KEY_LEN_MAX => return Err(Problem::key_too_long(len)),
        _ => {}
    }
    let op = match (line.op, line.value) {
        (Op::Get, None) => ClientOp::Get {
            key: key.clone(),
            r: quorum("r", line.r, rules.n)?,
        },
        (Op::Put, Some(text)) => {
            let value = bytes(text, line.encoding)?;
            if value.len() > rules.value_bytes {
                return Err(Problem::body_too_large(rules.value_bytes));
            }
            let content_type = Bytes::from(line.content_type.unwrap_or_default());
            if content_type.len() > CONTENT_TYPE_MAX {
                return Err(Problem::content_type_too_long(content_type.len()));
            }
            HeaderValue::from_bytes(&content_type)
                .map_err(|_| Problem::bad_json("content_type is no header value"))?;
            let ttl = line.ttl.as_deref().map(query::ttl).transpose()?;
            let value = Value {
                bytes: value,
                content_type,
                ttl_ms: ttl.map(|ttl| ttl.as_millis() as u64),
            };
            write(key.clone(), Some(value), quorum("w", line.w, rules.n)?)
        }
        (Op::Delete, None) => write(key.clone(), None, quorum("w", line.w, rules.n)?),
        (Op::Put, None) => return Err(Problem::bad_json("a put needs a \"value\"")),
        (Op::Get | Op::Delete, Some(_)) => {
            return Err(Problem::bad_json("only a put has a \"value\""));
        }
    };
    Ok((key, op))
}

fn write(key: Bytes, value: Option<Value>, w: Option<Quorum>) -> ClientOp {
    ClientOp::Put {
        key,
        value,
        w,
        sloppy: None,
        fsync: false,
        context: None,
    }
}

fn bytes(text: String, encoding: Option<Encoding>) -> Result<Bytes, Refused> {
    match encoding {
        None => Ok(Bytes::from(text)),
        Some(Encoding::Base64) => STANDARD.decode(text).map(Bytes::from).map_err(|_| {
            Problem::bad_json("key or value is not the base64 that \"encoding\" says")
        }),
    }
}

fn quorum(name: &'static str, text: Option<String>, n: u8) -> Result<Option<Quorum>, Refused> {
    let Some(text) = text else { return Ok(None) };
    let quorum = query::quorum(name, &text)?;
    if quorum.fits(n) {
        Ok(Some(quorum))
    } else {
        Err(Problem::quorum_too_large(name, quorum, n))
    }
}

/// What every operation of a batch has in common.
struct Worker {
    handle: Handle,
    trace: Bytes,
    bucket: BucketId,
    time: Duration,
}

/// Does the operations and hands out their answers in order, each as soon as those before it are done.
fn run(
    worker: Arc<Worker>,
    planned: Vec<Planned>,
) -> impl futures_util::Stream<Item = Bytes> + Send + 'static {
    struct Running<F: Future> {
        ahead: std::iter::Peekable<std::vec::IntoIter<Planned>>,
        working: FuturesOrdered<F>,
        /// Keys of what is in work: the next line on one of them waits until all of that is done.
        busy: BTreeSet<Bytes>,
    }
    let start = Running {
        ahead: planned.into_iter().peekable(),
        working: FuturesOrdered::new(),
        busy: BTreeSet::new(),
    };
    futures_util::stream::unfold(start, move |mut running| {
        let worker = Arc::clone(&worker);
        async move {
            if running.working.is_empty() {
                running.busy.clear();
            }
            while running.working.len() < IN_FLIGHT {
                let waits = |planned: &Planned| {
                    planned
                        .as_ref()
                        .is_ok_and(|(key, _)| running.busy.contains(key))
                };
                let Some(planned) = running.ahead.next_if(|planned| !waits(planned)) else {
                    break;
                };
                if let Ok((key, _)) = &planned {
                    running.busy.insert(key.clone());
                }
                running
                    .working
                    .push_back(answer(Arc::clone(&worker), planned));
            }
            let line = running.working.next().await?;
            Some((Bytes::from(line.to_string() + "\n"), running))
        }
    })
}

async fn answer(worker: Arc<Worker>, planned: Planned) -> Json {
    let (key, op) = match planned {
        Ok(planned) => planned,
        Err(refused) => {
            return json!({ "status": refused.status.as_u16(), "error": refused.to_json() });
        }
    };
    let access = if matches!(op, ClientOp::Get { .. }) {
        Access::Read
    } else {
        Access::Write
    };
    let reply = submit(
        &worker.handle,
        worker.trace.clone(),
        worker.bucket,
        op,
        worker.time,
    )
    .await;
    let mut line = match reply {
        ClientReply::Stored { digest, superseded } => {
            let mut line = json!({ "status": 204, "etag": tags::etag_text(&digest) });
            if superseded {
                line["superseded"] = json!(true);
            }
            line
        }
        ClientReply::Found {
            record: Some(record),
            now_micros,
        } if record.is_visible(now_micros) => {
            if record.kind() == Kind::Siblings {
                failed(&Problem::client(ClientError::Mode, access, Ok(())))
            } else {
                let mut line = json!({ "status": 200, "etag": tags::etag_text(&record.digest()) });
                line["content_type"] =
                    json!(std::str::from_utf8(record.content_type()).unwrap_or_default());
                return with_texts(line, &key, &record.value_bytes());
            }
        }
        ClientReply::Found { .. } => failed(&Problem::no_key()),
        ClientReply::Failed(error) => {
            failed(&Problem::client(error, access, worker.handle.ready()))
        }
        ClientReply::Listed { .. }
        | ClientReply::Verified { .. }
        | ClientReply::Prepared { .. } => failed(&Problem::internal()),
    };
    put_text(&mut line, "key", &key);
    line
}

fn failed(problem: &Problem) -> Json {
    json!({ "status": problem.status.as_u16(), "error": problem.to_json() })
}

/// Key and value in one line share one encoding: text only where both are.
fn with_texts(mut line: Json, key: &[u8], value: &[u8]) -> Json {
    if let (Ok(key), Ok(value)) = (std::str::from_utf8(key), std::str::from_utf8(value)) {
        line["key"] = json!(key);
        line["value"] = json!(value);
    } else {
        line["key"] = json!(STANDARD.encode(key));
        line["value"] = json!(STANDARD.encode(value));
        line["encoding"] = json!("base64");
    }
    line
}

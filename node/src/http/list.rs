//! `GET /kv/{bucket}`: a bucket's keys, in the order of their tokens, each once.
//!
//! Partitions are asked in order with a few in flight. A cursor is the last key that was handed out, with
//! its token: it names a place in the order of keys and not in a ring, so it outlives ring changes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, StreamExt as _};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Response};
use serde_json::{Value, json};
use torc_protocol::client::{ClientOp, ClientReply, ListedKey};
use torc_protocol::message::Cursor;
use torc_protocol::record::KEY_LEN_MAX;
use torc_protocol::shard_io::View;
use torc_protocol::wire::Blob;
use torc_ring::{BucketId, PartitionId, Token};

use super::admin::put_text;
use super::body::Body;
use super::health::json_response;
use super::path::parse_bucket;
use super::problem::{Access, Problem, Refused};
use super::{Call, keys, query, request, submit, tags};
use crate::handle::Handle;

const PARAMETERS: &[&str] = &["prefix", "limit", "cursor", "deadline"];
const MEDIA: [&str; 2] = ["application/json", "application/x-ndjson"];
/// Keys of a JSON answer that names no limit.
const LIMIT_USUAL: usize = 1_000;
/// Greatest number of keys that may be asked for.
const LIMIT_MAX: usize = 10_000;
/// Keys that the core is asked for at once: together with [`IN_FLIGHT`], what a list may hold in memory.
const PAGE: usize = 1_000;
/// Partitions that are asked at a time.
const IN_FLIGHT: usize = 16;
/// Keys of one chunk of a stream.
const CHUNK: usize = 256;

pub(super) async fn serve(call: &Call<'_>) -> Result<Response<Body>, Refused> {
    let path = call.parts.uri.path();
    let raw = path.strip_prefix("/kv/").unwrap_or_default();
    let name = parse_bucket(raw.as_bytes()).map_err(|error| keys::refuse_path(error, path))?;
    if !matches!(call.parts.method, Method::GET | Method::HEAD) {
        return Err(Problem::method("GET, HEAD"));
    }
    let asked = Asked::parse(call.parts.uri.query().unwrap_or(""))?;
    let media = request::accepts(call.heads.accept, &MEDIA)
        .ok_or_else(|| Problem::not_acceptable("application/json, application/x-ndjson"))?;
    let time = call.deadline(asked.deadline)?;
    let view = call.view()?;
    let bucket = view
        .config
        .bucket(&name)
        .map(|bucket| bucket.id)
        .ok_or_else(|| Problem::no_bucket(&name))?;
    let after = match &asked.cursor {
        None => None,
        Some(text) => {
            Some(parse_cursor(text, bucket, view.config.seed).ok_or_else(Problem::bad_cursor)?)
        }
    };
    let source = Source {
        handle: call.handle().clone(),
        trace: call.trace.clone(),
        bucket,
        prefix: asked.prefix,
    };
    if media == 1 {
        let walk = Walk::new(source, view, after, asked.limit.unwrap_or(usize::MAX));
        let mut response = Response::new(Body::stream(lines(walk, bucket, time)));
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA[1]));
        return Ok(response);
    }
    let limit = asked.limit.unwrap_or(LIMIT_USUAL).min(LIMIT_MAX);
    let mut walk = Walk::new(source, view, after, limit);
    let mut listed = Vec::new();
    let cursor = page(&mut walk, &mut listed, limit, time).await?;
    Ok(json_response(&json!({
        "keys": listed.iter().map(entry).collect::<Vec<_>>(),
        "cursor": cursor.map(|at| cursor_text(bucket, &at)),
    })))
}

/// Gathers up to `limit` keys within `time`. When the time is over and there is something to show, that is
/// a page too: the cursor goes on from there.
async fn page(
    walk: &mut Walk,
    listed: &mut Vec<ListedKey>,
    limit: usize,
    time: Duration,
) -> Result<Option<Cursor>, Refused> {
    let until = tokio::time::Instant::now() + time;
    while listed.len() < limit {
        match walk
            .next(until.saturating_duration_since(tokio::time::Instant::now()))
            .await
        {
            Ok(None) => return Ok(None),
            Ok(Some(keys)) => {
                listed.extend(keys);
                if listed.len() > limit {
                    listed.truncate(limit);
                }
            }
            Err(_) if !listed.is_empty() => break,
            Err(refused) => return Err(refused),
        }
    }
    Ok(listed.last().map(|key| walk.place(key)))
}

/// A line for each key; at the end a line with a cursor if there is more, or with what went wrong.
fn lines(
    walk: Walk,
    bucket: BucketId,
    time: Duration,
) -> impl futures_util::Stream<Item = Bytes> + Send + 'static {
    struct Streamed {
        walk: Walk,
        left: usize,
        last: Option<Cursor>,
        pending: VecDeque<ListedKey>,
    }
    let left = walk.limit;
    let start = Streamed {
        walk,
        left,
        last: None,
        pending: VecDeque::new(),
    };
    futures_util::stream::unfold(Some(start), move |state| async move {
        let mut state = state?;
        let mut chunk = String::new();
        let mut end = None;
        while state.pending.is_empty() && end.is_none() {
            match state.walk.next(time).await {
                Ok(Some(keys)) => state.pending.extend(keys),
                Ok(None) => end = Some(None),
                Err(refused) => {
                    let cursor = state.last.as_ref().map(|at| cursor_text(bucket, at));
                    end = Some(Some(
                        json!({ "error": refused.to_json(), "cursor": cursor }),
                    ));
                }
            }
        }
        let take = state.pending.len().min(CHUNK).min(state.left);
        for key in state.pending.drain(..take) {
            chunk.push_str(&entry(&key).to_string());
            chunk.push('\n');
            state.last = Some(state.walk.place(&key));
        }
        state.left -= take;
        if state.left == 0 && end.is_none() {
            end = Some(
                state
                    .last
                    .as_ref()
                    .map(|at| json!({ "cursor": cursor_text(bucket, at) })),
            );
        }
        match end {
            None => Some((Bytes::from(chunk), Some(state))),
            Some(last_line) => {
                if let Some(line) = last_line {
                    chunk.push_str(&line.to_string());
                    chunk.push('\n');
                }
                Some((Bytes::from(chunk), None))
            }
        }
    })
}

fn entry(key: &ListedKey) -> Value {
    let mut value = json!({ "size": key.value_len, "etag": tags::etag_text(&key.digest) });
    put_text(&mut value, "key", &key.key);
    if let Some(expiry) = key.expiry {
        value["expires_ms"] = json!(expiry / 1_000);
    }
    value
}

/// What the query asks for.
struct Asked {
    prefix: Bytes,
    limit: Option<usize>,
    cursor: Option<Bytes>,
    deadline: Option<Duration>,
}

impl Asked {
    fn parse(text: &str) -> Result<Self, Refused> {
        let mut asked = Self {
            prefix: Bytes::new(),
            limit: None,
            cursor: None,
            deadline: None,
        };
        query::for_each_bytes(text, PARAMETERS, |name, value| {
            let shown = || String::from_utf8_lossy(value).into_owned();
            match name {
                "prefix" if value.len() > KEY_LEN_MAX => {
                    return Err(Problem::key_too_long(value.len()));
                }
                "prefix" => asked.prefix = Bytes::copy_from_slice(value),
                "cursor" if value.is_empty() => {}
                "cursor" => asked.cursor = Some(Bytes::copy_from_slice(value)),
                "deadline" => asked.deadline = Some(query::deadline(&shown())?),
                _ => {
                    let limit = std::str::from_utf8(value)
                        .ok()
                        .and_then(|text| text.parse().ok());
                    let limit = limit.filter(|limit| (1..=LIMIT_MAX).contains(limit));
                    asked.limit =
                        Some(limit.ok_or_else(|| {
                            Problem::bad_parameter("limit", &shown(), "1 to 10000")
                        })?);
                }
            }
            Ok(())
        })?;
        Ok(asked)
    }
}

/// What every question to the core has in common.
#[derive(Clone)]
struct Source {
    handle: Handle,
    trace: Bytes,
    bucket: BucketId,
    prefix: Bytes,
}

type Asking = BoxFuture<'static, Result<(Vec<ListedKey>, Option<Cursor>), Refused>>;

/// Goes through the partitions in order.
struct Walk {
    source: Source,
    view: Arc<View>,
    limit: usize,
    /// The partition that is to be asked next, and where in it to begin.
    ahead: Option<(u32, Option<Cursor>)>,
    asking: FuturesOrdered<Asking>,
    /// The rest of a partition that did not fit one answer; comes before what is being asked.
    rest: Option<(PartitionId, Cursor)>,
    asked: VecDeque<PartitionId>,
}

impl Walk {
    fn new(source: Source, view: Arc<View>, after: Option<Cursor>, limit: usize) -> Self {
        let first = after
            .as_ref()
            .map_or(0, |at| u32::from(view.ring.partition(at.token).0));
        let ahead = Some((first, after));
        Self {
            source,
            view,
            limit,
            ahead,
            asking: FuturesOrdered::new(),
            rest: None,
            asked: VecDeque::new(),
        }
    }

    fn place(&self, key: &ListedKey) -> Cursor {
        Cursor {
            token: Token::of(self.view.config.seed, self.source.bucket, &key.key),
            key: Blob(key.key.clone()),
        }
    }

    /// The next keys in order, perhaps none; `None` after the last partition.
    async fn next(&mut self, time: Duration) -> Result<Option<Vec<ListedKey>>, Refused> {
        if let Some((partition, after)) = self.rest.take() {
            let (keys, next) = ask(
                self.source.clone(),
                partition,
                Some(after),
                self.limit.min(PAGE),
                time,
            )
            .await?;
            self.rest = next.map(|at| (partition, at));
            return Ok(Some(keys));
        }
        while self.asking.len() < IN_FLIGHT {
            let Some((index, after)) = self.ahead.take() else {
                break;
            };
            if index + 1 < self.view.ring.partitions() {
                self.ahead = Some((index + 1, None));
            }
            let partition = PartitionId(index as u16);
            self.asked.push_back(partition);
            let source = self.source.clone();
            self.asking.push_back(Box::pin(ask(
                source,
                partition,
                after,
                self.limit.min(PAGE),
                time,
            )));
        }
        let Some(answer) = self.asking.next().await else {
            return Ok(None);
        };
        let partition = self.asked.pop_front();
        let (keys, next) = answer?;
        self.rest = partition.zip(next);
        Ok(Some(keys))
    }
}

async fn ask(
    source: Source,
    partition: PartitionId,
    after: Option<Cursor>,
    limit: usize,
    time: Duration,
) -> Result<(Vec<ListedKey>, Option<Cursor>), Refused> {
    let op = ClientOp::List {
        partition,
        after,
        prefix: source.prefix,
        limit,
    };
    match submit(&source.handle, source.trace, source.bucket, op, time).await {
        ClientReply::Listed { keys, next } => Ok((keys, next)),
        ClientReply::Failed(error) => {
            Err(Problem::client(error, Access::Read, source.handle.ready()))
        }
        ClientReply::Found { .. }
        | ClientReply::Prepared { .. }
        | ClientReply::Stored { .. }
        | ClientReply::Verified { .. } => Err(Problem::internal()),
    }
}

const CURSOR_FORMAT: u8 = 1;

fn cursor_text(bucket: BucketId, at: &Cursor) -> String {
    let mut bytes = Vec::with_capacity(13 + at.key.0.len());
    bytes.push(CURSOR_FORMAT);
    bytes.extend_from_slice(&bucket.0.to_be_bytes());
    bytes.extend_from_slice(&at.token.0.to_be_bytes());
    bytes.extend_from_slice(&at.key.0);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A cursor that a list of this bucket gave out: its token is the one of its key.
fn parse_cursor(text: &[u8], bucket: BucketId, seed: u64) -> Option<Cursor> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (format, rest) = bytes.split_first()?;
    let (id, rest) = rest.split_first_chunk::<4>()?;
    let (token, key) = rest.split_first_chunk::<8>()?;
    let token = Token(u64::from_be_bytes(*token));
    let fits = *format == CURSOR_FORMAT
        && u32::from_be_bytes(*id) == bucket.0
        && (1..=KEY_LEN_MAX).contains(&key.len())
        && token == Token::of(seed, bucket, key);
    fits.then(|| Cursor {
        token,
        key: Blob(Bytes::copy_from_slice(key)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cursor_is_itself_again_and_nothing_else_is_one(key in prop::collection::vec(any::<u8>(), 1..64), noise in "[A-Za-z0-9_-]{0,80}") {
            let bucket = BucketId(7);
            let at = Cursor { token: Token::of(3, bucket, &key), key: Blob(Bytes::from(key)) };
            let text = cursor_text(bucket, &at);
            prop_assert_eq!(parse_cursor(text.as_bytes(), bucket, 3), Some(at));
            prop_assert_eq!(parse_cursor(text.as_bytes(), BucketId(8), 3), None);
            prop_assert_eq!(parse_cursor(noise.as_bytes(), bucket, 3), None);
        }
    }
}

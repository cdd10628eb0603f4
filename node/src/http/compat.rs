//! `/kv?key=` and `/cache/stats`: a drop-in for clients of the earlier service, on bucket `default`.
//! Errors have that service's shape, `{"detail": …}`.

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;
use torc_protocol::client::{ClientOp, ClientReply, Value};
use torc_protocol::record::{KEY_LEN_MAX, Kind, Record};
use torc_ring::config::DEFAULT_BUCKET;

use super::Call;
use super::admin::put_text;
use super::body::{self, Body};
use super::health::json_response;
use super::keys::Target;
use super::problem::{Access, Problem, Refused};
use super::query;
use super::writes;
use crate::handle::Handle;
use crate::side::cache::CacheState;

/// Room for the JSON around key and value, and for escapes in them.
const ENVELOPE_BYTES: usize = 64 << 10;

#[derive(Deserialize)]
struct Envelope {
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    key: Option<String>,
    value: Option<String>,
}

pub(super) async fn serve(call: &Call<'_>, body: Incoming) -> Result<Response<Body>, Refused> {
    match call.parts.method {
        Method::GET | Method::HEAD => get(call).await,
        Method::PUT => put(call, body).await,
        Method::DELETE => delete(call).await,
        _ => Err(Problem::method("GET, HEAD, PUT, DELETE")),
    }
}

/// What the cache is like; without one its numbers are zero.
pub(super) fn cache_stats(handle: &Handle) -> Response<Body> {
    let state = handle.side().cache.as_ref().map(|cache| cache.state());
    let of = |figure: fn(&CacheState) -> u64| state.as_ref().map_or(0, figure);
    json_response(&json!({
        "keys_count": of(|state| state.keys),
        "max_keys_limit": of(|state| state.keys_max),
        "memory_used_bytes": of(|state| state.bytes),
        "hits": of(|state| state.hits),
        "misses": of(|state| state.misses),
    }))
}

async fn put(call: &Call<'_>, body: Incoming) -> Result<Response<Body>, Refused> {
    query::for_each(call.parts.uri.query().unwrap_or(""), &[], |_, _| Ok(()))?;
    let limits = &call.handle().settings().limits;
    // A character of JSON may take six bytes to write one.
    let room = limits
        .value_bytes
        .saturating_mul(6)
        .saturating_add(ENVELOPE_BYTES);
    let text = body::gather(body, room, limits.body_timeout).await?;
    let missing = || Problem::bad_json("key & value required");
    let envelope: Envelope = serde_json::from_slice(&text).map_err(|_| missing())?;
    let data = envelope.data.ok_or_else(missing)?;
    let key = data.key.filter(|key| !key.is_empty()).ok_or_else(missing)?;
    let value = data
        .value
        .filter(|value| !value.is_empty())
        .ok_or_else(missing)?;
    if value.len() > limits.value_bytes {
        return Err(Problem::body_too_large(limits.value_bytes));
    }
    let value = Value {
        bytes: Bytes::from(value),
        content_type: Bytes::from_static(b"text/plain; charset=utf-8"),
        ttl_ms: None,
    };
    write(call, Bytes::from(key), Some(value), "stored").await
}

async fn get(call: &Call<'_>) -> Result<Response<Body>, Refused> {
    let (record, cached) = find(call, key(call)?, true).await?;
    let mut data = json!({"source": if cached { "cache" } else { "database" }});
    put_text(&mut data, "value", &record.value_bytes());
    Ok(json_response(&json!({ "data": data })))
}

async fn delete(call: &Call<'_>) -> Result<Response<Body>, Refused> {
    let key = key(call)?;
    // The cache may be behind: a key that was just put has to be found.
    find(call, key.clone(), false).await?;
    write(call, key, None, "deleted").await
}

fn key(call: &Call<'_>) -> Result<Bytes, Refused> {
    let mut key = Bytes::new();
    query::for_each_bytes(
        call.parts.uri.query().unwrap_or(""),
        &["key"],
        |_, value| {
            key = Bytes::copy_from_slice(value);
            Ok(())
        },
    )?;
    if key.is_empty() {
        Err(Problem::bad_json("key required"))
    } else {
        Ok(key)
    }
}

fn target(call: &Call<'_>, key: Bytes) -> Result<Target, Refused> {
    if key.len() > KEY_LEN_MAX {
        return Err(Problem::key_too_long(key.len()));
    }
    Target::new(call.view()?, DEFAULT_BUCKET, key)
}

/// The value and whether the cache had it, or the older service's 404.
async fn find(call: &Call<'_>, key: Bytes, may_be_cached: bool) -> Result<(Record, bool), Refused> {
    let target = target(call, key)?;
    let op = ClientOp::Get {
        key: target.key,
        r: None,
    };
    let time = call.deadline(None)?;
    let (reply, cached) = if may_be_cached {
        call.submit_to_cache(target.bucket, op, time).await
    } else {
        (call.submit(target.bucket, op, time).await, false)
    };
    match reply {
        ClientReply::Found {
            record: Some(record),
            now_micros,
        } if record.is_visible(now_micros) && record.kind() == Kind::Value => Ok((record, cached)),
        ClientReply::Found { .. } => Err(Problem::key_not_found()),
        ClientReply::Failed(error) => {
            Err(Problem::client(error, Access::Read, call.handle().ready()))
        }
        ClientReply::Stored { .. }
        | ClientReply::Prepared { .. }
        | ClientReply::Listed { .. }
        | ClientReply::Verified { .. } => Err(Problem::internal()),
    }
}

/// Through the queue where there is one, else at once, which is then called `done`.
async fn write(
    call: &Call<'_>,
    key: Bytes,
    value: Option<Value>,
    done: &'static str,
) -> Result<Response<Body>, Refused> {
    let target = target(call, key)?;
    if let Some(queue) = &call.handle().side().queue {
        let (at, time) = ((target.bucket, target.key), call.deadline(None)?);
        writes::accept(call, queue, at, (value, None, None), time).await?;
        let mut response = json_response(&json!({"detail": "queued"}));
        *response.status_mut() = StatusCode::ACCEPTED;
        return Ok(response);
    }
    let op = ClientOp::Put {
        key: target.key,
        value,
        w: None,
        sloppy: None,
        fsync: false,
        context: None,
    };
    match call.submit(target.bucket, op, call.deadline(None)?).await {
        ClientReply::Stored { .. } => Ok(json_response(&json!({ "detail": done }))),
        ClientReply::Failed(error) => {
            Err(Problem::client(error, Access::Write, call.handle().ready()))
        }
        ClientReply::Found { .. }
        | ClientReply::Prepared { .. }
        | ClientReply::Listed { .. }
        | ClientReply::Verified { .. } => Err(Problem::internal()),
    }
}

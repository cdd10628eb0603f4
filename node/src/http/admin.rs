//! What people and tools ask about the cluster: ring, owners of a key, members, buckets, metrics.
//!
//! `GET /ring` is served on the data listener too, so that a client that only has a data address can send
//! each request to an owner of its key. The seed of the token hash is part of it; the secret of the causal
//! contexts is not, and must never be.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Response, StatusCode};
use serde_json::{Value, json};
use torc_protocol::record::KEY_LEN_MAX;
use torc_protocol::shard_io::View;
use torc_ring::config::{DEFAULT_BUCKET, is_bucket_name};
use torc_ring::{Bucket, Member, NodeId, OwnerTable};

use super::Call;
use super::body::Body;
use super::health::json_response;
use super::path::parse_bucket;
use super::problem::{Problem, Refused};
use super::{keys, query, request};
use crate::handle::{Handle, State};
use crate::metrics::Scrape;

const JSON: &str = "application/json";

/// The metrics of this node, in the text format of OpenMetrics.
pub(super) fn metrics(handle: &Handle) -> Response<Body> {
    // Text is written to memory: that cannot fail.
    let text = Scrape::of(handle).encode().unwrap_or_default();
    let mut response = Response::new(Body::full(text));
    let kind =
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// `GET /ring`: members, their shares, versions, and what a client needs to find a key's owners itself.
pub(super) fn ring(call: &Call<'_>) -> Result<Response<Body>, Refused> {
    let view = plain(call)?;
    let config = &view.config;
    let state = call.handle().state();
    let n = config.bucket(DEFAULT_BUCKET).map_or(0, |bucket| bucket.n);
    let members: Vec<Value> = config
        .all_members()
        .map(|m| member(m, &view, &state, n))
        .collect();
    let buckets: Vec<Value> = config.buckets.iter().map(bucket_brief).collect();
    Ok(json_response(&json!({
        "cluster": config.cluster.to_string(),
        "node": call.handle().node().to_string(),
        "config_version": config.version.0,
        "ring_version": config.ring_version.0,
        "partition_bits": config.partition_bits,
        // As hexadecimal: JSON's numbers lose bits of a u64 in many languages.
        "token_seed": format!("{:016x}", config.seed),
        "changing": config.target.is_some(),
        "members": members,
        "buckets": buckets,
        "tables": config.tables.iter().map(table).collect::<Vec<_>>(),
    })))
}

fn table(table: &OwnerTable) -> Value {
    json!({ "n": table.n(), "owners": STANDARD.encode(table.as_bytes()) })
}

/// `GET /ring/owners?bucket=&key=`: who holds this key, in order of preference.
pub(super) fn owners(call: &Call<'_>) -> Result<Response<Body>, Refused> {
    let (name, key) = named_key(call)?;
    let view = call.view()?;
    let Some(bucket) = view.config.bucket(&name) else {
        return Err(Problem::no_bucket(&name));
    };
    let token = view.ring.token(bucket.id, &key);
    let partition = view.ring.partition(token);
    let state = call.handle().state();
    let list = |nodes: &[NodeId]| -> Vec<Value> {
        nodes.iter().map(|&id| owner(id, &view, &state)).collect()
    };
    let mut answer = json!({
        "bucket": name,
        "n": bucket.n,
        "token": format!("{:016x}", token.0),
        "partition": partition.0,
        "owners": list(view.ring.owners(bucket.n, partition)),
        "stand_ins": list(view.ring.stand_ins(bucket.n, partition)),
    });
    put_text(&mut answer, "key", &key);
    if let Some(next) = view.ring.target_owners(bucket.n, partition) {
        answer["next_owners"] = Value::Array(list(next));
    }
    Ok(json_response(&answer))
}

/// Bucket and key that the query names; the bucket is `default` without a name.
pub(super) fn named_key(call: &Call<'_>) -> Result<(String, Bytes), Refused> {
    let (mut name, mut key) = (None, None);
    query::for_each_bytes(
        call.parts.uri.query().unwrap_or(""),
        &["bucket", "key"],
        |parameter, value| {
            match parameter {
                "bucket" => name = Some(String::from_utf8_lossy(value).into_owned()),
                _ => key = Some(Bytes::copy_from_slice(value)),
            }
            Ok(())
        },
    )?;
    let key = key.ok_or_else(|| Problem::missing_parameter("key"))?;
    let name = name.unwrap_or_else(|| DEFAULT_BUCKET.to_owned());
    if !is_bucket_name(&name) {
        return Err(Problem::bad_bucket_name());
    }
    match key.len() {
        0 => return Err(Problem::empty_key()),
        len if len > KEY_LEN_MAX => return Err(Problem::key_too_long(len)),
        _ => {}
    }
    json_is_accepted(call)?;
    Ok((name, key))
}

/// `POST /repair`: has this node compare its copies with all other owners' before anything else. `GET
/// /repair`: how far it is.
pub(super) fn repair(call: &Call<'_>) -> Result<Response<Body>, Refused> {
    let handle = call.handle();
    match call.parts.method {
        Method::GET | Method::HEAD => {}
        Method::POST => {
            call.view()?;
            handle.repair();
        }
        _ => return Err(Problem::method("GET, HEAD, POST")),
    }
    let agreement = handle.agreement();
    let mut response = json_response(&json!({
        "node": handle.node().to_string(),
        "pairs": agreement.pairs,
        "doubts": agreement.doubts,
        "age_seconds": agreement.age.as_secs_f64(),
        "target_seconds": handle.settings().antientropy.age_target.as_secs_f64(),
    }));
    if call.parts.method == Method::POST {
        *response.status_mut() = StatusCode::ACCEPTED;
    }
    Ok(response)
}

/// `GET /cluster`: the cluster in one picture, as seen from here.
pub(super) fn cluster(call: &Call<'_>) -> Result<Response<Body>, Refused> {
    let view = plain(call)?;
    let config = &view.config;
    let handle = call.handle();
    let state = handle.state();
    let n = config.bucket(DEFAULT_BUCKET).map_or(0, |bucket| bucket.n);
    let nodes: Vec<Value> = config
        .all_members()
        .map(|m| {
            let mut node = member(m, &view, &state, n);
            let drift = state
                .drift
                .iter()
                .find(|(id, _)| *id == m.id)
                .map(|&(_, micros)| micros);
            let hints = state.hints.iter().find(|(id, ..)| *id == m.id);
            node["clock_offset_us"] = json!(drift);
            node["hints_waiting"] = json!(hints.map_or(0, |hint| hint.1));
            node["hint_bytes"] = json!(hints.map_or(0, |hint| hint.2));
            node
        })
        .collect();
    let members = config.current.len();
    let alive = config
        .current
        .iter()
        .filter(|m| !state.dead.contains(&m.id))
        .count();
    Ok(json_response(&json!({
        "cluster": config.cluster.to_string(),
        "config_version": config.version.0,
        "ring_version": config.ring_version.0,
        "seen_from": { "id": handle.node().to_string(), "name": handle.settings().name },
        "ready": handle.ready().is_ok(),
        "not_ready": handle.ready().err().map(|reason| reason.to_string()),
        "members": members,
        "alive": alive,
        "replicas": n,
        "under_replicated": members < usize::from(n),
        "disk_full": state.disk_full,
        "clock_trusted": state.clock_trusted,
        "nodes": nodes,
        "buckets": config.buckets.iter().map(bucket_brief).collect::<Vec<_>>(),
    })))
}

/// `GET /buckets/{bucket}`: a bucket's settings.
pub(super) fn bucket(call: &Call<'_>) -> Result<Response<Body>, Refused> {
    let name = bucket_name(call)?;
    let view = plain(call)?;
    let Some(bucket) = view.config.bucket(&name) else {
        return Err(Problem::no_bucket(&name));
    };
    Ok(json_response(&bucket_json(bucket)))
}

/// The bucket's name in `/buckets/{bucket}`.
pub(super) fn bucket_name(call: &Call<'_>) -> Result<String, Refused> {
    let path = call.parts.uri.path();
    let raw = path.strip_prefix("/buckets/").unwrap_or_default();
    parse_bucket(raw.as_bytes())
        .map(std::borrow::Cow::into_owned)
        .map_err(|error| keys::refuse_path(error, path))
}

/// A bucket with all of its settings.
pub(super) fn bucket_json(bucket: &Bucket) -> Value {
    json!({
        "name": bucket.name,
        "id": bucket.id.0,
        "n": bucket.n,
        "r": bucket.r.to_string(),
        "w": bucket.w.to_string(),
        "conflict": bucket.conflict,
        "ttl": bucket.ttl_ms.map(|ms| format!("{ms}ms")),
        "read_repair": bucket.read_repair,
        "sloppy": bucket.sloppy,
    })
}

/// The view, for resources that take no parameters and answer JSON.
fn plain(call: &Call<'_>) -> Result<std::sync::Arc<View>, Refused> {
    query::for_each(call.parts.uri.query().unwrap_or(""), &[], |_, _| Ok(()))?;
    json_is_accepted(call)?;
    call.view()
}

fn json_is_accepted(call: &Call<'_>) -> Result<(), Refused> {
    request::accepts(call.heads.accept, &[JSON])
        .map(|_| ())
        .ok_or_else(|| Problem::not_acceptable(JSON))
}

fn member(member: &Member, view: &View, state: &State, n: u8) -> Value {
    let config = &view.config;
    let in_target = config
        .target
        .as_ref()
        .is_none_or(|target| target.iter().any(|m| m.id == member.id));
    let phase = match (config.is_current(member.id), in_target) {
        (true, true) if config.recovers(member.id) => "recovering",
        (true, true) => "member",
        (true, false) => "leaving",
        (false, _) => "joining",
    };
    json!({
        "id": member.id.to_string(),
        "name": member.name,
        "zone": member.zone,
        "weight": member.weight,
        "share": view.ring.share(n, member.id),
        "peer": member.peer,
        "http": member.http,
        "alive": !state.dead.contains(&member.id),
        "state": phase,
    })
}

pub(super) fn owner(id: NodeId, view: &View, state: &State) -> Value {
    let member = view.config.member(id);
    json!({
        "id": id.to_string(),
        "name": member.map(|m| m.name.as_str()),
        "http": member.map(|m| m.http.as_str()),
        "zone": member.map(|m| m.zone.as_str()),
        "alive": !state.dead.contains(&id),
    })
}

fn bucket_brief(bucket: &Bucket) -> Value {
    json!({ "name": bucket.name, "id": bucket.id.0, "n": bucket.n, "conflict": bucket.conflict })
}

/// Puts bytes into JSON: as text where they are UTF-8, else as base64 and `"encoding":"base64"`.
pub(super) fn put_text(object: &mut Value, name: &str, bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        object[name] = json!(text);
    } else {
        object[name] = json!(STANDARD.encode(bytes));
        object["encoding"] = json!("base64");
    }
}

//! What operators ask for: plans, commits and aborts of ring changes, and buckets.
//!
//! JSON in, JSON out. Nodes are named by their names or ids. Every decision is the cluster machine's.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};
use torc_protocol::cluster_admin::{
    AdminReply, AdminRequest, BucketChange, BucketSettings, ChangePhase, NodeStatus, Status,
};
use torc_ring::config::REPLICAS_MAX;
use torc_ring::{
    Bucket, BucketId, Config, ConfigVersion, ConflictMode, Member, NodeId, Plan, Quorum,
    ReadRepair, RingChange,
};

use super::Call;
use super::admin;
use super::body::{self, Body};
use super::health::json_response;
use super::problem::{Problem, Refused};
use super::query;

/// Largest body.
const BODY_BYTES_MAX: usize = 256 << 10;
/// Changes in one plan.
const CHANGES_MAX: usize = 256;

/// One change as it is written: `{"change":"leave","node":"node-3"}`.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "change", rename_all = "lowercase", deny_unknown_fields)]
enum Written {
    Join { node: String },
    Leave { node: String },
    Remove { node: String },
    Replace { dead: String, by: String },
    Reweigh { node: String, weight: u32 },
    Rezone { node: String, zone: String },
    Replicas { bucket: String, n: u8 },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Changes {
    changes: Vec<Written>,
    /// Only for this version of the configuration.
    #[serde(default)]
    config_version: Option<u64>,
}

/// `POST /ring/plan`: what these changes would do; changes nothing.
pub(super) async fn plan(call: &Call<'_>, body: Incoming) -> Result<Response<Body>, Refused> {
    post(call)?;
    let asked: Changes = read(call, body).await?;
    let changes = resolve(call, asked.changes).await?;
    match ask(call, AdminRequest::Plan(changes)).await? {
        AdminReply::Planned { present, joint } => {
            let plan = Plan::running(&joint).unwrap_or(Plan {
                partitions: 0,
                layouts: Vec::new(),
            });
            let mut answer = show_plan(&plan);
            answer["config_version"] = json!(present.version.0);
            answer["estimated_bytes"] = json!(estimate(call, &present, &plan));
            Ok(json_response(&answer))
        }
        other => Err(unexpected(&other)),
    }
}

/// `POST /ring/commit`: begin these changes.
pub(super) async fn commit(call: &Call<'_>, body: Incoming) -> Result<Response<Body>, Refused> {
    post(call)?;
    let asked: Changes = read(call, body).await?;
    let changes = resolve(call, asked.changes).await?;
    let version = asked.config_version.map(ConfigVersion);
    committed(ask(call, AdminRequest::Commit { changes, version }).await?)
}

/// `POST /ring/abort`: take the running change back.
pub(super) async fn abort(call: &Call<'_>, body: Incoming) -> Result<Response<Body>, Refused> {
    post(call)?;
    gather(call, body).await?;
    committed(ask(call, AdminRequest::Abort).await?)
}

/// `GET /ring/change`: what is moving, how far each node is, and how the last change ended.
pub(super) async fn change(call: &Call<'_>) -> Result<Response<Body>, Refused> {
    no_parameters(call)?;
    let status = status(call).await?;
    Ok(json_response(&show_status(&status)))
}

/// `GET`, `PUT` and `DELETE /buckets/{bucket}`.
pub(super) async fn bucket(call: &Call<'_>, body: Incoming) -> Result<Response<Body>, Refused> {
    match call.parts.method {
        Method::GET | Method::HEAD => admin::bucket(call),
        Method::PUT => put_bucket(call, body).await,
        Method::DELETE => {
            no_parameters(call)?;
            let name = admin::bucket_name(call)?;
            let change = BucketChange::Delete { name };
            ask(call, AdminRequest::Bucket(change)).await?;
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            Ok(response)
        }
        _ => Err(Problem::method("GET, HEAD, PUT, DELETE")),
    }
}

/// `GET /buckets`: all of them.
pub(super) fn buckets(call: &Call<'_>) -> Result<Response<Body>, Refused> {
    no_parameters(call)?;
    let view = call.view()?;
    let buckets: Vec<Value> = view.config.buckets.iter().map(admin::bucket_json).collect();
    Ok(json_response(&json!({ "buckets": buckets })))
}

/// What a bucket is to be like; what is left out stays as it is, or gets its default.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenBucket {
    n: Option<u8>,
    r: Option<WrittenQuorum>,
    w: Option<WrittenQuorum>,
    conflict: Option<ConflictMode>,
    /// `null` takes it away.
    #[allow(clippy::option_option)] // left out is another thing than null
    #[serde(default, deserialize_with = "given")]
    ttl: Option<Option<String>>,
    read_repair: Option<ReadRepair>,
    sloppy: Option<bool>,
}

/// Tells `null` from what is left out.
#[allow(clippy::option_option)] // that is the difference
fn given<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(from).map(Some)
}

/// `"quorum"` or `2`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum WrittenQuorum {
    Number(u8),
    Word(String),
}

impl WrittenQuorum {
    fn read(self) -> Result<Quorum, Refused> {
        let text = match self {
            Self::Number(number) => number.to_string(),
            Self::Word(word) => word,
        };
        text.parse()
            .map_err(|error: torc_ring::ConfigError| Problem::bad_json(error.to_string()))
    }
}

async fn put_bucket(call: &Call<'_>, body: Incoming) -> Result<Response<Body>, Refused> {
    no_parameters(call)?;
    let name = admin::bucket_name(call)?;
    let written: WrittenBucket = read(call, body).await?;
    let before = call.view()?.config.bucket(&name).cloned();
    let created = before.is_none();
    let mut bucket = before.unwrap_or_else(|| Bucket::new(BucketId(0), &name));
    if let Some(n) = written.n {
        if n == 0 || n > REPLICAS_MAX {
            let error = torc_ring::ConfigError::BadReplicas { n };
            return Err(Problem::bad_json(error.to_string()));
        }
        bucket.n = n;
    }
    if let Some(r) = written.r {
        bucket.r = r.read()?;
    }
    if let Some(w) = written.w {
        bucket.w = w.read()?;
    }
    if let Some(ttl) = written.ttl {
        bucket.ttl_ms = ttl.map(|text| ttl_ms(&text)).transpose()?;
    }
    bucket.conflict = written.conflict.unwrap_or(bucket.conflict);
    bucket.read_repair = written.read_repair.unwrap_or(bucket.read_repair);
    bucket.sloppy = written.sloppy.unwrap_or(bucket.sloppy);
    if bucket.conflict != ConflictMode::Lww {
        return Err(Problem::conflict_mode_to_come());
    }
    let settings = BucketSettings::of(&bucket);
    let change = BucketChange::Put { name, settings };
    let reply = ask(call, AdminRequest::Bucket(change)).await?;
    let AdminReply::Committed { version, .. } = reply else {
        return Err(unexpected(&reply));
    };
    let mut answer = admin::bucket_json(&bucket);
    if let Some(object) = answer.as_object_mut().filter(|_| created) {
        // Drawn by whoever proposed it: to be read once it is applied.
        object.remove("id");
    }
    answer["config_version"] = json!(version.0);
    let mut response = json_response(&answer);
    if created {
        *response.status_mut() = StatusCode::CREATED;
    }
    Ok(response)
}

fn ttl_ms(text: &str) -> Result<u64, Refused> {
    crate::config::parse_duration(text)
        .filter(|ttl| !ttl.is_zero())
        .map(|ttl| ttl.as_millis() as u64)
        .ok_or_else(|| {
            Problem::bad_json("`ttl` is a time above zero with its unit, such as 30s, 10m or 7d")
        })
}

/// Asks the cluster machine; its refusals become documents.
async fn ask(call: &Call<'_>, request: AdminRequest) -> Result<AdminReply, Refused> {
    let answer = call.handle().admin(request).await;
    answer.map_err(Problem::operator)
}

async fn status(call: &Call<'_>) -> Result<Status, Refused> {
    match ask(call, AdminRequest::Status).await? {
        AdminReply::Status(status) => Ok(*status),
        other => Err(unexpected(&other)),
    }
}

/// A reply to another question: a fault of this node.
#[allow(clippy::unnecessary_box_returns)] // see `Refused`
fn unexpected(reply: &AdminReply) -> Refused {
    tracing::error!(
        ?reply,
        "the cluster machine answered another question: a fault"
    );
    Problem::operator_unanswered()
}

fn committed(reply: AdminReply) -> Result<Response<Body>, Refused> {
    match reply {
        AdminReply::Committed { version, ring } => Ok(json_response(
            &json!({ "config_version": version.0, "ring_version": ring.0 }),
        )),
        other => Err(unexpected(&other)),
    }
}

fn no_parameters(call: &Call<'_>) -> Result<(), Refused> {
    query::for_each(call.parts.uri.query().unwrap_or(""), &[], |_, _| Ok(()))
}

fn post(call: &Call<'_>) -> Result<(), Refused> {
    if call.parts.method != Method::POST {
        return Err(Problem::method("POST"));
    }
    no_parameters(call)
}

/// Gathers a body of JSON. That it says to be JSON is asked for, because a page of another site can make a
/// browser post anything but that.
async fn gather(call: &Call<'_>, body: Incoming) -> Result<Bytes, Refused> {
    let kind = call.heads.content_type.and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or("");
    if !kind.trim().eq_ignore_ascii_case("application/json") {
        return Err(Problem::media_type("application/json"));
    }
    let patience = call.handle().settings().limits.body_timeout;
    body::gather(body, BODY_BYTES_MAX, patience).await
}

async fn read<T: serde::de::DeserializeOwned>(
    call: &Call<'_>,
    body: Incoming,
) -> Result<T, Refused> {
    let text = gather(call, body).await?;
    serde_json::from_slice(&text).map_err(|error| Problem::bad_json(error.to_string()))
}

/// From names to ids.
async fn resolve(call: &Call<'_>, written: Vec<Written>) -> Result<Vec<RingChange>, Refused> {
    if written.is_empty() || written.len() > CHANGES_MAX {
        let detail = format!("`changes` holds 1 to {CHANGES_MAX} changes");
        return Err(Problem::bad_json(detail));
    }
    let status = status(call).await?;
    let names = Names::new(&status.config, &status.waiting);
    written
        .into_iter()
        .map(|change| {
            Ok(match change {
                Written::Join { node } => RingChange::Join {
                    node: names.find(&node)?,
                },
                Written::Leave { node } => RingChange::Leave {
                    node: names.find(&node)?,
                },
                Written::Remove { node } => RingChange::Remove {
                    node: names.find(&node)?,
                },
                Written::Replace { dead, by } => RingChange::Replace {
                    dead: names.find(&dead)?,
                    by: names.find(&by)?,
                },
                Written::Reweigh { node, weight } => RingChange::Reweigh {
                    node: names.find(&node)?,
                    weight,
                },
                Written::Rezone { node, zone } => RingChange::Rezone {
                    node: names.find(&node)?,
                    zone,
                },
                Written::Replicas { bucket, n } => RingChange::Replicas { bucket, n },
            })
        })
        .collect()
}

/// Members and nodes that want to be members, by name and by id.
struct Names<'a>(BTreeMap<&'a str, NodeId>, Vec<NodeId>);

impl<'a> Names<'a> {
    fn new(config: &'a Config, waiting: &'a [Member]) -> Self {
        // A member comes last and wins: a name is unique among members only.
        let all = || waiting.iter().chain(config.all_members());
        Self(
            all().map(|m| (m.name.as_str(), m.id)).collect(),
            all().map(|m| m.id).collect(),
        )
    }

    fn find(&self, given: &str) -> Result<NodeId, Refused> {
        let by_id = || self.1.iter().copied().find(|id| id.to_string() == given);
        self.0
            .get(given)
            .copied()
            .or_else(by_id)
            .ok_or_else(|| Problem::no_node(given))
    }
}

/// A plan as JSON. Which partitions move is left out: there may be thousands of them.
fn show_plan(plan: &Plan) -> Value {
    let layouts: Vec<Value> = plan
        .layouts
        .iter()
        .map(|layout| {
            json!({
                "n_before": layout.n_before,
                "n_after": layout.n_after,
                "buckets": layout.buckets,
                "partitions_moving": layout.moves.len(),
                "replicas_before": layout.replicas_before,
                "replicas_after": layout.replicas_after,
                "replicas_moved": layout.moved,
                "unavoidable": layout.unavoidable,
                "fullest_before": layout.fullest_before,
                "fullest_after": layout.fullest_after,
                "nodes": layout.nodes.iter().map(|node| json!({
                    "id": node.node.to_string(),
                    "name": node.name,
                    "before": node.before,
                    "after": node.after,
                    "gains": node.gains,
                    "loses": node.loses,
                })).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({ "partitions": plan.partitions, "layouts": layouts })
}

/// About how many bytes would be copied, from what this node holds for its share.
fn estimate(call: &Call<'_>, config: &Config, plan: &Plan) -> Option<u64> {
    let properties = call.handle().parts()?.store.properties();
    let own = call.handle().node();
    let bytes = properties.disk_bytes + properties.memtable_bytes;
    let held: u32 = plan
        .layouts
        .iter()
        .flat_map(|layout| &layout.nodes)
        .filter(|node| node.node == own && config.is_current(own))
        .map(|node| node.before)
        .sum();
    let moved: u32 = plan.layouts.iter().map(|layout| layout.moved).sum();
    (held > 0).then(|| bytes.saturating_mul(u64::from(moved)) / u64::from(held))
}

/// The status of a change as JSON.
fn show_status(status: &Status) -> Value {
    let nodes: Vec<Value> = status.nodes.iter().map(show_node).collect();
    let plan = (status.phase != ChangePhase::Idle)
        .then(|| Plan::running(&status.config))
        .flatten();
    json!({
        "phase": status.phase.name(),
        "config_version": status.config.version.0,
        "ring_version": status.config.ring_version.0,
        "nodes": nodes,
        "plan": plan.as_ref().map(show_plan),
        "last": status.last.map(|last| json!({
            "ring_version": last.ring.0,
            "end": last.end,
        })),
        "waiting": status.waiting.iter().map(|member| json!({
            "id": member.id.to_string(),
            "name": member.name,
            "peer": member.peer,
        })).collect::<Vec<_>>(),
    })
}

fn show_node(node: &NodeStatus) -> Value {
    json!({
        "id": node.member.id.to_string(),
        "name": node.member.name,
        "role": node.role.name(),
        "silent_ms": node.silent_us.map(|micros| micros / 1_000),
        "config_version": node.version.0,
        "progress": node.progress.map(|progress| json!({
            "covered": progress.covered,
            "done": progress.done,
            "total": progress.total,
            "bytes": progress.bytes,
        })),
    })
}

//! Asynchronous writes: accepted into the queue, asked for at `/writes/{id}`, and handed in by workers at
//! `POST /writes`.
//!
//! What is known of a write comes from its key, whose version tells whether it has been stored; only a
//! failure has to be noted, as a key of the bucket `default` that lives as long as anybody may ask. So
//! every node can answer, also after a restart.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value as Json, json};
use torc_protocol::client::{ClientOp, ClientReply, Value};
use torc_protocol::context::etag;
use torc_protocol::queued::{self, MESSAGE_LEN_MAX, Queued, WriteId, WriteState};
use torc_protocol::record::{Kind, Record};
use torc_protocol::time::MS;
use torc_protocol::version::Version;
use torc_ring::config::DEFAULT_BUCKET;
use torc_ring::{BucketId, Quorum};

use super::Call;
use super::admin::put_text;
use super::body::{self, Body};
use super::health::json_response;
use super::problem::{Access, Problem, Refused};
use super::query;
use crate::side::queue::{PublishError, Queue};
use crate::side::worker::MEDIA_TYPE;

const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
const SUPERSEDED: HeaderName = HeaderName::from_static("x-torc-superseded");
const PREFERENCE: &str = "respond-async";
/// Where failures are noted, in the bucket `default`.
const NOTES: &str = ".torc/writes/";
/// Bytes of a reason that are kept.
const REASON_MAX: usize = 400;

/// A write that the queue has taken.
pub(super) struct Accepted {
    pub(super) id: String,
    pub(super) record: Record,
}

/// The queue, when there is one and the client prefers not to wait.
pub(super) fn wanted<'a>(call: &'a Call<'_>) -> Option<&'a Arc<Queue>> {
    let queue = call.handle().side().queue.as_ref()?;
    let preferences = call.parts.headers.get_all("prefer");
    let mut each = preferences
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    each.any(|preference| {
        let name = preference.split([';', '=']).next().unwrap_or_default();
        name.trim().eq_ignore_ascii_case(PREFERENCE)
    })
    .then_some(queue)
}

/// Mints the write's version and puts it into the queue.
pub(super) async fn accept(
    call: &Call<'_>,
    queue: &Queue,
    (bucket, key): (BucketId, Bytes),
    (value, w, context): (Option<Value>, Option<Quorum>, Option<Version>),
    time: Duration,
) -> Result<Accepted, Refused> {
    let begun = call.handle().now().mono;
    // The queue's state is known: nobody needs to wait for a version that cannot go anywhere.
    if !queue.state().connected {
        return Err(Problem::queue(PublishError::Away));
    }
    let op = ClientOp::Prepare {
        key: key.clone(),
        value,
        context,
    };
    let record = match call.submit(bucket, op, time).await {
        ClientReply::Prepared { record } => record,
        ClientReply::Failed(error) => {
            return Err(Problem::client(error, Access::Write, call.handle().ready()));
        }
        ClientReply::Stored { .. }
        | ClientReply::Found { .. }
        | ClientReply::Listed { .. }
        | ClientReply::Verified { .. } => {
            return Err(Problem::internal());
        }
    };
    let keys = call.facade.queue_keys(&*call.view()?);
    let write = Queued {
        bucket,
        key,
        record,
        w,
    };
    let (message, id) = (keys.encode(&write), keys.id(&write));
    let spent = Duration::from_micros(call.handle().now().mono.since(begun));
    let left = time.saturating_sub(spent).max(Duration::from_millis(1));
    let put = queue.put(&message, &id, left).await;
    put.map_err(Problem::queue)?;
    Ok(Accepted {
        id,
        record: write.record,
    })
}

/// What the author of an accepted write is told; the caller adds its tags.
pub(super) fn accepted(accepted: &Accepted) -> Response<Body> {
    let id = &accepted.id;
    let mut response = json_response(&json!({"id": id, "state": "pending"}));
    *response.status_mut() = StatusCode::ACCEPTED;
    let headers = response.headers_mut();
    if let Ok(location) = HeaderValue::try_from(format!("/writes/{id}")) {
        headers.insert(LOCATION, location);
    }
    headers.insert(PREFERENCE_APPLIED, HeaderValue::from_static(PREFERENCE));
    response
}

/// `GET /writes/{id}`, `POST /writes`.
pub(super) async fn serve(call: &Call<'_>, body: Incoming) -> Result<Response<Body>, Refused> {
    let id = call.parts.uri.path().strip_prefix("/writes/");
    let allowed = match (id, &call.parts.method) {
        (Some(_), &(Method::GET | Method::HEAD)) | (None, &Method::POST) => None,
        (Some(_), _) => Some("GET, HEAD"),
        (None, _) => Some("POST"),
    };
    if let Some(allowed) = allowed {
        return Err(Problem::method(allowed));
    }
    let Some(queue) = call.handle().side().queue.clone() else {
        return Err(Problem::no_queue());
    };
    match id {
        Some(id) => tell(call, &queue, id).await,
        None => apply(call, &queue, body).await,
    }
}

async fn tell(call: &Call<'_>, queue: &Queue, text: &str) -> Result<Response<Body>, Refused> {
    query::for_each(call.parts.uri.query().unwrap_or(""), &[], |_, _| Ok(()))?;
    let view = call.view()?;
    let keys = call.facade.queue_keys(&view);
    let id = keys
        .parse_id(text.as_bytes())
        .map_err(|error| Problem::no_write(&error.to_string()))?;
    let mut said = json!({
        "id": text,
        "etag": etag(id.digest),
        "accepted_us": id.accepted_micros(),
    });
    put_text(&mut said, "key", &id.key);
    let Some(bucket) = view.config.bucket_by_id(id.bucket) else {
        said["state"] = json!("failed");
        said["reason"] = json!("its bucket is gone");
        return Ok(json_response(&said));
    };
    said["bucket"] = json!(bucket.name);
    let found = get(call, id.bucket, id.key.clone()).await?;
    let digest = found.as_ref().map(Record::digest);
    // A failure is looked for only where it could make a difference.
    let failure = if digest == Some(id.digest) {
        None
    } else {
        failure_of(call, &id).await?
    };
    let now = (call.handle().now().wall.0, queue.lifetime_ms());
    match queued::judge(&id, now, digest, failure.is_some()) {
        WriteState::Pending => said["state"] = json!("pending"),
        WriteState::Applied { superseded } => {
            said["state"] = json!("applied");
            said["superseded"] = json!(superseded);
        }
        WriteState::Failed => {
            said["state"] = json!("failed");
            said["reason"] = json!(failure.unwrap_or_default());
        }
        WriteState::Forgotten => {
            return Err(Problem::no_write("it was accepted too long ago"));
        }
    }
    Ok(json_response(&said))
}

/// The state of a key as a majority of its owners knows it.
async fn get(call: &Call<'_>, bucket: BucketId, key: Bytes) -> Result<Option<Record>, Refused> {
    let op = ClientOp::Get {
        key,
        r: Some(Quorum::Quorum),
    };
    match call.submit(bucket, op, call.deadline(None)?).await {
        ClientReply::Found { record, .. } => Ok(record),
        ClientReply::Failed(error) => {
            Err(Problem::client(error, Access::Read, call.handle().ready()))
        }
        ClientReply::Stored { .. }
        | ClientReply::Prepared { .. }
        | ClientReply::Listed { .. }
        | ClientReply::Verified { .. } => Err(Problem::internal()),
    }
}

async fn failure_of(call: &Call<'_>, id: &WriteId) -> Result<Option<String>, Refused> {
    let view = call.view()?;
    let Some(bucket) = view.config.bucket(DEFAULT_BUCKET) else {
        return Ok(None);
    };
    let note = get(call, bucket.id, note_key(id.digest.version)).await?;
    let note = note
        .filter(|note| note.kind() == Kind::Value && note.is_visible(call.handle().now().wall.0));
    Ok(note.map(|note| {
        let said: Json = serde_json::from_slice(&note.value_bytes()).unwrap_or_default();
        said["reason"].as_str().unwrap_or_default().to_owned()
    }))
}

fn note_key(version: Version) -> Bytes {
    format!("{NOTES}{:016x}-{:016x}", version.hlc.0, version.node.0).into()
}

/// A worker hands in what it took from the queue, to be stored or, with `give_up=REASON`, to be noted as
/// failed.
async fn apply(call: &Call<'_>, queue: &Queue, body: Incoming) -> Result<Response<Body>, Refused> {
    let mut given_up = None;
    query::for_each(
        call.parts.uri.query().unwrap_or(""),
        &["give_up"],
        |_, value| {
            given_up = Some(value.chars().take(REASON_MAX).collect::<String>());
            Ok(())
        },
    )?;
    let is_message = call
        .parts
        .headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes() == MEDIA_TYPE.as_bytes());
    if !is_message {
        return Err(Problem::media_type(MEDIA_TYPE));
    }
    let limits = &call.handle().settings().limits;
    let message = body::gather(body, MESSAGE_LEN_MAX, limits.body_timeout).await?;
    let view = call.view()?;
    let keys = call.facade.queue_keys(&view);
    let write = keys
        .decode(&message)
        .map_err(|error| Problem::bad_message(&error.to_string()))?;
    let accepted = write.record.version().hlc.micros();
    match given_up {
        Some(reason) => note(call, queue, &write, &reason).await,
        None if queued::is_too_old(accepted, (call.handle().now().wall.0, queue.lifetime_ms())) => {
            Err(Problem::write_too_old(queue.lifetime_ms()))
        }
        None => store(call, write).await,
    }
}

async fn store(call: &Call<'_>, write: Queued) -> Result<Response<Body>, Refused> {
    let op = ClientOp::Store {
        key: write.key,
        record: write.record,
        w: write.w,
    };
    match call.submit(write.bucket, op, call.deadline(None)?).await {
        ClientReply::Stored { superseded, .. } => {
            let mut response = done();
            if superseded {
                let yes = HeaderValue::from_static("true");
                response.headers_mut().insert(SUPERSEDED, yes);
            }
            Ok(response)
        }
        ClientReply::Failed(error) => {
            Err(Problem::client(error, Access::Write, call.handle().ready()))
        }
        ClientReply::Found { .. }
        | ClientReply::Prepared { .. }
        | ClientReply::Listed { .. }
        | ClientReply::Verified { .. } => Err(Problem::internal()),
    }
}

/// Notes that a write has failed, for as long as its author may ask.
async fn note(
    call: &Call<'_>,
    queue: &Queue,
    write: &Queued,
    reason: &str,
) -> Result<Response<Body>, Refused> {
    let view = call.view()?;
    let Some(bucket) = view.config.bucket(DEFAULT_BUCKET) else {
        return Ok(done());
    };
    let said = json!({"reason": reason, "noted_us": call.handle().now().wall.0});
    let value = Value {
        bytes: Bytes::from(said.to_string()),
        content_type: Bytes::from_static(b"application/json"),
        ttl_ms: Some(queue.lifetime_ms()),
    };
    let op = ClientOp::Put {
        key: note_key(write.record.version()),
        value: Some(value),
        w: None,
        sloppy: None,
        fsync: false,
        context: None,
    };
    match call.submit(bucket.id, op, call.deadline(None)?).await {
        ClientReply::Stored { .. } => Ok(done()),
        ClientReply::Failed(error) => {
            Err(Problem::client(error, Access::Write, call.handle().ready()))
        }
        ClientReply::Found { .. }
        | ClientReply::Prepared { .. }
        | ClientReply::Listed { .. }
        | ClientReply::Verified { .. } => Err(Problem::internal()),
    }
}

fn done() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// How old a write is that may not be stored any more, for people.
pub(super) fn age(lifetime_ms: u64) -> String {
    crate::config::format_duration(Duration::from_micros(lifetime_ms * MS))
}

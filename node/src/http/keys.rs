//! One key: `GET`, `HEAD`, `PUT`, `DELETE /kv/{bucket}/{key}`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use hyper::body::Incoming;
use torc_protocol::client::{ClientOp, ClientReply, Value};
use torc_protocol::record::{CONTENT_TYPE_MAX, Kind, Record};
use torc_protocol::shard_io::View;
use torc_protocol::version::{Digest, Version};
use torc_ring::{Bucket, BucketId, ConflictMode};

use super::body::{self, Body};
use super::path::{KeyPathError, parse_key_path};
use super::problem::{Access, Problem, Refused};
use super::query::{self, KeyQuery};
use super::range::{self, Asked};
use super::tags::{self, Known, Scope, Tags, Texts};
use super::{Call, console, writes};

const CONTEXT: HeaderName = HeaderName::from_static("x-torc-context");
const SUPERSEDED: HeaderName = HeaderName::from_static("x-torc-superseded");
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// A key of a bucket that there is.
pub(super) struct Target {
    view: Arc<View>,
    pub(super) bucket: BucketId,
    n: u8,
    conflict: ConflictMode,
    pub(super) key: Bytes,
}

impl Target {
    pub(super) fn new(view: Arc<View>, bucket: &str, key: Bytes) -> Result<Self, Refused> {
        let Some(&Bucket {
            id, n, conflict, ..
        }) = view.config.bucket(bucket)
        else {
            return Err(Problem::no_bucket(bucket));
        };
        Ok(Self {
            view,
            bucket: id,
            n,
            conflict,
            key,
        })
    }

    fn scope<'a>(&'a self, call: &'a Call<'_>) -> Scope<'a> {
        Scope {
            codec: call.facade.contexts(&self.view),
            bucket: self.bucket,
            key: &self.key,
        }
    }
}

/// What is wrong with a path, in words for the client.
#[allow(clippy::unnecessary_box_returns)] // see `Refused`
pub(super) fn refuse_path(error: KeyPathError, path: &str) -> Refused {
    match error {
        KeyPathError::Prefix => Problem::no_route(path),
        KeyPathError::Escape => Problem::bad_escape(),
        KeyPathError::Bucket => Problem::bad_bucket_name(),
        KeyPathError::EmptyKey => Problem::empty_key(),
        KeyPathError::KeyTooLong { len } => Problem::key_too_long(len),
    }
}

pub(super) async fn serve(call: &Call<'_>, body: Incoming) -> Result<Response<Body>, Refused> {
    let raw = call.parts.uri.path();
    let path = parse_key_path(raw.as_bytes()).map_err(|error| refuse_path(error, raw))?;
    let method = &call.parts.method;
    let known = match *method {
        Method::GET | Method::HEAD => query::READ,
        Method::PUT => query::PUT,
        Method::DELETE => query::DELETE,
        _ => return Err(Problem::method("GET, HEAD, PUT, DELETE")),
    };
    let query = KeyQuery::parse(call.parts.uri.query(), known)?;
    let time = call.deadline(query.deadline)?;
    let target = Target::new(
        call.view()?,
        &path.bucket,
        Bytes::copy_from_slice(&path.key),
    )?;
    if let Some(given) = query.quorum.filter(|quorum| !quorum.fits(target.n)) {
        let name = if matches!(*method, Method::GET | Method::HEAD) {
            "r"
        } else {
            "w"
        };
        return Err(Problem::quorum_too_large(name, given, target.n));
    }
    match *method {
        Method::GET | Method::HEAD => read(call, &target, &query, time).await,
        Method::PUT => put(call, target, &query, time, body).await,
        _ => {
            refuse_conditions(call, &target)?;
            let context = context(call, &target)?;
            store(call, &target, None, &query, (time, context)).await
        }
    }
}

async fn read(
    call: &Call<'_>,
    target: &Target,
    query: &KeyQuery,
    time: Duration,
) -> Result<Response<Body>, Refused> {
    let tags = call
        .heads
        .if_none_match
        .map(|_| Tags(call.parts.headers.get_all(http::header::IF_NONE_MATCH)));
    let (key, r) = (target.key.clone(), query.quorum);
    let (op, time, known) = match query.wait {
        None => (ClientOp::Get { key, r }, time, None),
        Some(wait) => {
            let known = match tags.as_ref().map_or(Known::NotOne, Tags::single) {
                Known::State(digest) => Some(digest),
                Known::Foreign => None,
                Known::NotOne => return Err(Problem::bad_wait()),
            };
            call.guard.watch()?;
            (ClientOp::Watch { key, r, known }, wait, known)
        }
    };
    match call.submit(target.bucket, op, time).await {
        ClientReply::Found { record, now_micros } => {
            let Some(record) = record else {
                return Err(Problem::no_key());
            };
            let (digest, visible) = (record.digest(), record.is_visible(now_micros));
            // A watch whose time is over: nothing has changed, be it a value or a deletion.
            if known == Some(digest) && (visible || record.kind() == Kind::Tombstone) {
                return Ok(unchanged(&target.scope(call), &digest));
            }
            if visible {
                found(call, target, &record, tags.as_ref())
            } else {
                Ok(gone(&target.scope(call), &digest))
            }
        }
        ClientReply::Failed(error) => {
            Err(Problem::client(error, Access::Read, call.handle().ready()))
        }
        ClientReply::Stored { .. }
        | ClientReply::Prepared { .. }
        | ClientReply::Listed { .. }
        | ClientReply::Verified { .. } => Err(Problem::internal()),
    }
}

/// A value: whole, in part, or only the news that it is still the one that the client knows.
fn found(
    call: &Call<'_>,
    target: &Target,
    record: &Record,
    known: Option<&Tags<'_>>,
) -> Result<Response<Body>, Refused> {
    if record.kind() == Kind::Siblings {
        return Err(Problem::client(
            torc_protocol::client::ClientError::Mode,
            Access::Read,
            Ok(()),
        ));
    }
    let digest = record.digest();
    let minted = tags::minted_at(digest.version);
    if call.heads.if_match.is_some() {
        if !Tags(call.parts.headers.get_all(http::header::IF_MATCH)).match_strongly(&digest) {
            return Err(Problem::precondition_failed());
        }
    } else if let Some(date) = call
        .heads
        .if_unmodified_since
        .and_then(|v| httpdate::parse_http_date(v.to_str().ok()?).ok())
        && minted > date
    {
        return Err(Problem::precondition_failed());
    }
    // If-Modified-Since is left alone on purpose: within one second a value can change many times, and a
    // client would be told that its old one is good.
    if known.is_some_and(|tags| tags.match_weakly(&digest)) {
        return Ok(unchanged(&target.scope(call), &digest));
    }
    let value = record.value_bytes();
    let len = value.len() as u64;
    let is_get = call.parts.method == Method::GET;
    let asked = match call.heads.range {
        Some(range)
            if is_get
                && call
                    .heads
                    .if_range
                    .is_none_or(|tag| tags::if_range_matches(tag, &digest)) =>
        {
            range::parse(range, len)
        }
        _ => Asked::Whole,
    };
    let (status, part, content_range) = match asked {
        Asked::Whole => (StatusCode::OK, value, None),
        Asked::Part { first, last } => {
            let part = value.slice(first as usize..=last as usize);
            (StatusCode::PARTIAL_CONTENT, part, Some((first, last)))
        }
        Asked::Unsatisfiable => return Err(Problem::range(len)),
    };
    let mut texts = Texts::new();
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CONTENT_TYPE, content_type(record));
    stamp(&mut headers, &target.scope(call), &digest);
    headers.insert(LAST_MODIFIED, texts.date(minted));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    console::confine(call.heads.accept, &mut headers);
    if let Some((first, last)) = content_range {
        headers.insert(CONTENT_RANGE, texts.content_range(first, last, len));
    }
    if !is_get {
        headers.insert(CONTENT_LENGTH, texts.number(len));
    }
    let mut response = Response::new(if is_get {
        Body::full(part)
    } else {
        Body::empty()
    });
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

fn content_type(record: &Record) -> HeaderValue {
    match record.content_type() {
        b"" => OCTETS,
        // It was a header's value when it came in.
        kept => HeaderValue::from_bytes(kept).unwrap_or(OCTETS),
    }
}

fn stamp(headers: &mut HeaderMap, scope: &Scope<'_>, digest: &Digest) {
    headers.insert(ETAG, tags::etag_header(digest));
    headers.insert(CONTEXT, scope.header(digest.version));
}

fn unchanged(scope: &Scope<'_>, digest: &Digest) -> Response<Body> {
    stamped(
        Response::new(Body::empty()),
        StatusCode::NOT_MODIFIED,
        scope,
        digest,
    )
}

/// The key was deleted, or its value has expired: its state still has an ETag, so that a watch can wait for
/// the next one, and a context, so that a write can follow it.
fn gone(scope: &Scope<'_>, digest: &Digest) -> Response<Body> {
    stamped(
        Problem::no_key().into_response(),
        StatusCode::NOT_FOUND,
        scope,
        digest,
    )
}

fn stamped(
    mut response: Response<Body>,
    status: StatusCode,
    scope: &Scope<'_>,
    digest: &Digest,
) -> Response<Body> {
    *response.status_mut() = status;
    stamp(response.headers_mut(), scope, digest);
    response
}

async fn put(
    call: &Call<'_>,
    target: Target,
    query: &KeyQuery,
    time: Duration,
    body: Incoming,
) -> Result<Response<Body>, Refused> {
    refuse_conditions(call, &target)?;
    if call.heads.content_range.is_some() {
        return Err(Problem::partial_put());
    }
    if call
        .heads
        .content_encoding
        .is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
        return Err(Problem::content_encoding());
    }
    let content_type = match call.heads.content_type {
        None => Bytes::new(),
        Some(kind) if kind.len() > CONTENT_TYPE_MAX => {
            return Err(Problem::content_type_too_long(kind.len()));
        }
        Some(kind) => Bytes::copy_from_slice(kind.as_bytes()),
    };
    // Before the body is read, so that nobody sends one in vain.
    let context = context(call, &target)?;
    let limits = &call.handle().settings().limits;
    let bytes = body::gather(body, limits.value_bytes, limits.body_timeout).await?;
    let ttl_ms = query.ttl.map(|ttl| ttl.as_millis() as u64);
    let value = Value {
        bytes,
        content_type,
        ttl_ms,
    };
    store(call, &target, Some(value), query, (time, context)).await
}

/// The deadline runs from here on: what it takes to send a large value has a limit of its own.
async fn store(
    call: &Call<'_>,
    target: &Target,
    value: Option<Value>,
    query: &KeyQuery,
    (time, context): (Duration, Option<Version>),
) -> Result<Response<Body>, Refused> {
    if let Some(queue) = writes::wanted(call) {
        for (given, name) in [
            (query.fsync, "durability"),
            (query.sloppy.is_some(), "sloppy"),
        ] {
            if given {
                return Err(Problem::not_asynchronous(name));
            }
        }
        let at = (target.bucket, target.key.clone());
        let what = (value, query.quorum, context);
        let taken = writes::accept(call, queue, at, what, time).await?;
        let mut response = writes::accepted(&taken);
        stamp(
            response.headers_mut(),
            &target.scope(call),
            &taken.record.digest(),
        );
        return Ok(response);
    }
    let op = ClientOp::Put {
        key: target.key.clone(),
        value,
        w: query.quorum,
        sloppy: query.sloppy,
        fsync: query.fsync,
        context,
    };
    match call.submit(target.bucket, op, time).await {
        ClientReply::Stored { digest, superseded } => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            let headers = response.headers_mut();
            stamp(headers, &target.scope(call), &digest);
            if superseded {
                headers.insert(SUPERSEDED, HeaderValue::from_static("true"));
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

fn context(call: &Call<'_>, target: &Target) -> Result<Option<Version>, Refused> {
    call.heads
        .context
        .map(|value| target.scope(call).parse(value))
        .transpose()
}

/// A condition on a write is honest or refused: only consensus could keep it (protocol, section 2).
fn refuse_conditions(call: &Call<'_>, target: &Target) -> Result<(), Refused> {
    let heads = &call.heads;
    let given = [
        ("If-Match", heads.if_match),
        ("If-None-Match", heads.if_none_match),
        ("If-Modified-Since", heads.if_modified_since),
        ("If-Unmodified-Since", heads.if_unmodified_since),
    ];
    match given.into_iter().find(|(_, value)| value.is_some()) {
        Some((name, _)) => Err(Problem::condition_refused(name, target.conflict)),
        None => Ok(()),
    }
}

//! From request to resource, and what every answer has in common: request id, metrics, log line.
//!
//! Routes are matched on the raw path, without a routing table: there are few of them, and keys are bytes
//! that a router of text would have to refuse.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderValue};
use http::{HeaderName, Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use super::body::Body;
use super::problem::{Problem, Refused, TARGET_MAX};
use super::request::Heads;
use super::{
    Call, Guard, Side, admin, batch, compat, console, health, keys, list, operate, verify, writes,
};
use crate::metrics::Route;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A request that takes longer is worth a line in the log.
const SLOW: Duration = Duration::from_secs(1);

/// The resource of a path.
pub(super) fn route(side: Side, path: &str, method: &Method) -> Route {
    match path {
        "/" => return Route::Page,
        "/health" => return Route::Health,
        "/health/live" => return Route::HealthLive,
        "/health/ready" => return Route::HealthReady,
        "/ring" => return Route::Ring,
        "/docs" => return Route::Docs,
        "/openapi.json" => return Route::OpenApi,
        _ if path.starts_with("/assets/") => return Route::Asset,
        _ if path.starts_with("/docs/") => return Route::DocsFile,
        _ => {}
    }
    match side {
        Side::Data => match path.strip_prefix("/kv") {
            Some("") => Route::Compatible,
            Some(rest) => match rest.strip_prefix('/').map(|rest| rest.split_once('/')) {
                Some(Some((_, "_batch"))) if *method == Method::POST => Route::Batch,
                Some(Some(_)) => Route::Key,
                Some(None) => Route::Bucket,
                None => Route::None,
            },
            None if path == "/cache/stats" => Route::CacheStats,
            None if path == "/writes" => Route::Writes,
            None if path.starts_with("/writes/") => Route::Write,
            None => Route::None,
        },
        Side::Admin => match path {
            "/metrics" => Route::Metrics,
            "/ring/owners" => Route::RingOwners,
            "/ring/verify" => Route::RingVerify,
            "/cluster" => Route::Cluster,
            "/repair" => Route::Repair,
            "/ring/plan" => Route::RingPlan,
            "/ring/commit" => Route::RingCommit,
            "/ring/abort" => Route::RingAbort,
            "/ring/change" => Route::RingChange,
            "/buckets" => Route::Buckets,
            _ if path.starts_with("/buckets/") => Route::BucketInfo,
            _ => Route::None,
        },
    }
}

/// Answers one request; never fails, for every failure has a document.
pub(super) async fn serve(guard: Guard, side: Side, request: Request<Incoming>) -> Response<Body> {
    let started = Instant::now();
    let facade = Arc::clone(&guard.facade);
    let (parts, body) = request.into_parts();
    let route = route(side, parts.uri.path(), &parts.method);
    let heads = Heads::scan(&parts.headers);
    let trace = facade.ids.of(&heads);
    let call = Call {
        side,
        facade: &facade,
        guard: &guard,
        parts: &parts,
        heads,
        trace: trace.clone(),
    };
    let mut response = match dispatch(&call, route, body).await {
        Ok(response) => response,
        Err(refused) if is_compatible(route) => refused.into_compatible_response(),
        Err(refused) => {
            tracing::debug!(request_id = %Text(&trace), kind = refused.kind, detail = %refused.detail, "request refused");
            refused.into_response()
        }
    };
    if parts.method == Method::HEAD {
        response = without_body(response);
    }
    if let Ok(id) = HeaderValue::from_maybe_shared(trace.clone()) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    let took = started.elapsed();
    let status = response.status();
    let watching = guard.watching.load(Ordering::Relaxed);
    facade.handle.metrics().on_http(
        route,
        &parts.method,
        status.as_u16(),
        (!watching).then_some(took),
    );
    log(&call, (status, took), watching);
    response.map(|body| body.guarded(guard))
}

fn is_compatible(route: Route) -> bool {
    matches!(route, Route::Compatible | Route::CacheStats)
}

async fn dispatch(
    call: &Call<'_>,
    route: Route,
    body: Incoming,
) -> Result<Response<Body>, Refused> {
    call.heads.check(call.parts)?;
    if call
        .parts
        .uri
        .path_and_query()
        .is_some_and(|target| target.as_str().len() > TARGET_MAX)
    {
        return Err(Problem::uri_too_long());
    }
    match route {
        Route::Key
        | Route::Bucket
        | Route::Batch
        | Route::Compatible
        | Route::Writes
        | Route::Write => call.guard.place()?,
        _ => {}
    }
    let handle = call.handle();
    match route {
        Route::Key => keys::serve(call, body).await,
        Route::Bucket => list::serve(call).await,
        Route::Batch => batch::serve(call, body).await,
        Route::Compatible => compat::serve(call, body).await,
        Route::BucketInfo => operate::bucket(call, body).await,
        Route::RingPlan => operate::plan(call, body).await,
        Route::RingCommit => operate::commit(call, body).await,
        Route::RingAbort => operate::abort(call, body).await,
        Route::Writes | Route::Write => writes::serve(call, body).await,
        Route::None => Err(Problem::no_route(call.parts.uri.path())),
        Route::Repair => admin::repair(call),
        _ if !matches!(call.parts.method, Method::GET | Method::HEAD) => {
            Err(Problem::method("GET, HEAD"))
        }
        Route::CacheStats => Ok(compat::cache_stats(handle)),
        Route::Page => Ok(console::page(handle, call.side)),
        Route::Asset => console::asset(call.parts.uri.path()),
        Route::Docs => Ok(console::docs()),
        Route::DocsFile => console::docs_file(call.parts.uri.path()),
        Route::OpenApi => console::openapi_json(call.side),
        Route::HealthLive => Ok(health::live()),
        Route::HealthReady => health::ready(handle),
        Route::Health => Ok(health::components(handle)),
        Route::Metrics => Ok(admin::metrics(handle)),
        Route::Ring => admin::ring(call),
        Route::RingOwners => admin::owners(call),
        Route::RingVerify => verify::verify(call).await,
        Route::Cluster => admin::cluster(call),
        Route::RingChange => operate::change(call).await,
        Route::Buckets => operate::buckets(call),
    }
}

/// An answer to `HEAD`: the same head, the length that the body would have, and no body.
fn without_body(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let silent = matches!(
        parts.status,
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
    );
    if let Some(len) = body
        .len()
        .filter(|_| !silent && !parts.headers.contains_key(CONTENT_LENGTH))
    {
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
    }
    Response::from_parts(parts, Body::empty())
}

fn log(call: &Call<'_>, (status, took): (StatusCode, Duration), watching: bool) {
    let notable = status.is_server_error() || (took > SLOW && !watching);
    // A readiness probe that says no says it every second, by design.
    let probe = call.parts.uri.path().starts_with("/health");
    let (method, path) = (&call.parts.method, call.parts.uri.path());
    let (request_id, took_us) = (Text(&call.trace), took.as_micros() as u64);
    if notable && !probe {
        let second = call.handle().now().mono.0 / torc_protocol::time::SECOND;
        if let Some(left_out) = call.facade.quiet.admits(second) {
            tracing::warn!(%request_id, %method, path, status = status.as_u16(), took_us, left_out, "request slow or failed");
        }
        return;
    }
    tracing::debug!(%request_id, %method, path, status = status.as_u16(), took_us, "request");
}

/// An id, which is visible ASCII, as text.
struct Text<'a>(&'a Bytes);

impl std::fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(std::str::from_utf8(self.0).unwrap_or("-"))
    }
}

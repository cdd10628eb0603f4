//! What a process beside the nodes shows of itself: `/health`, `/health/live`, `/health/ready` and `/metrics` on
//! a small HTTP/1.1 listener, for probes, Prometheus and people.
//!
//! Reads only, a bounded number of connections, each with a bounded life. Nodes have a facade of their own.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tracing::debug;

/// Open connections; more wait.
const CONNECTIONS_MAX: usize = 64;
const HEAD_MAX: Duration = Duration::from_secs(10);
/// For a whole connection: scrapes and probes are short.
const CONNECTION_MAX: Duration = Duration::from_secs(60);

const JSON: &str = "application/json";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// A process as others see it.
pub trait Face: Send + Sync + 'static {
    /// Whether it can do its work.
    ///
    /// # Errors
    /// Why it cannot, in words.
    fn ready(&self) -> Result<(), String>;

    /// Its state in detail; `status` is `ok` or `down`.
    fn health(&self) -> Value;

    /// Its figures, in Prometheus' text format.
    fn metrics(&self) -> String;

    /// A further route that answers with text, and what it answers now.
    fn more(&self) -> Option<(&'static str, String)> {
        None
    }
}

/// Listens until `stopping`; answers with the address.
///
/// # Errors
/// When it cannot listen there.
pub async fn serve(
    address: SocketAddr,
    face: Arc<impl Face>,
    mut stopping: watch::Receiver<bool>,
) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    tokio::spawn(async move {
        loop {
            // The semaphore is never closed.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let face = Arc::clone(&face);
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let answer = answer(request.method(), request.uri().path(), &*face);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_MAX)
                    .serve_connection(TokioIo::new(stream), service);
                match tokio::time::timeout(CONNECTION_MAX, connection).await {
                    Ok(Ok(())) | Err(_) => {}
                    Ok(Err(error)) => debug!(%error, "a connection ended"),
                }
                drop(place);
            });
        }
    });
    Ok(address)
}

fn answer(method: &Method, path: &str, face: &impl Face) -> Response<Full<Bytes>> {
    let json = |status, document: &Value| of(status, JSON, document.to_string());
    if !matches!(*method, Method::GET | Method::HEAD) {
        let detail = json!({"detail": "only GET and HEAD are served here"});
        let mut refused = json(StatusCode::METHOD_NOT_ALLOWED, &detail);
        let allowed = HeaderValue::from_static("GET, HEAD");
        refused.headers_mut().insert(header::ALLOW, allowed);
        return refused;
    }
    let ready = face.ready();
    let status = match ready {
        Ok(()) => StatusCode::OK,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let more = face.more();
    match (path, ready, more) {
        ("/health/live", ..) => json(StatusCode::OK, &json!({"status": "alive"})),
        ("/health/ready", Ok(()), _) => json(status, &json!({"status": "ready"})),
        ("/health/ready", Err(reason), _) => {
            json(status, &json!({"status": "not ready", "reason": reason}))
        }
        ("/health", ..) => json(status, &face.health()),
        ("/metrics", ..) => of(StatusCode::OK, PROMETHEUS, face.metrics()),
        (path, _, Some((known, text))) if path == known => of(StatusCode::OK, TEXT, text),
        (_, _, more) => {
            let more = more.map_or(String::new(), |(route, _)| format!(", {route}"));
            let detail =
                format!("there are /health, /health/live, /health/ready, /metrics{more} here");
            json(StatusCode::NOT_FOUND, &json!({ "detail": detail }))
        }
    }
}

fn of(status: StatusCode, media: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let media = HeaderValue::from_static(media);
    response.headers_mut().insert(header::CONTENT_TYPE, media);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Worker(Result<(), String>);

    impl Face for Worker {
        fn ready(&self) -> Result<(), String> {
            self.0.clone()
        }

        fn health(&self) -> Value {
            json!({"status": if self.0.is_ok() { "ok" } else { "down" }})
        }

        fn metrics(&self) -> String {
            "torc_x 1\n".to_owned()
        }

        fn more(&self) -> Option<(&'static str, String)> {
            Some(("/draining", "node-4\n".to_owned()))
        }
    }

    #[test]
    fn each_route_says_whether_the_process_can_work() {
        let (well, ill) = (Worker(Ok(())), Worker(Err("no broker".to_owned())));
        for (path, of_well, of_ill) in [
            ("/health/live", 200, 200),
            ("/health/ready", 200, 503),
            ("/health", 200, 503),
            ("/metrics", 200, 200),
            ("/draining", 200, 200),
            ("/", 404, 404),
        ] {
            let status = |worker| answer(&Method::GET, path, worker).status().as_u16();
            assert_eq!((status(&well), status(&ill)), (of_well, of_ill), "{path}");
        }
        let refused = answer(&Method::POST, "/health", &well);
        assert_eq!(refused.status(), 405);
        assert_eq!(refused.headers()[header::ALLOW], "GET, HEAD");
    }
}

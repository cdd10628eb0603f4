//! A worker's health and metrics.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tracing::debug;

use super::Book;
use crate::metrics::process_text;

/// Open connections; more wait.
const CONNECTIONS_MAX: usize = 64;
const HEAD_MAX: Duration = Duration::from_secs(10);
/// For a whole connection: scrapes and probes are short.
const CONNECTION_MAX: Duration = Duration::from_secs(60);

/// Listens until `stopping`; answers with the address.
pub(super) async fn serve(
    address: SocketAddr,
    book: Arc<Book>,
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
            let book = Arc::clone(&book);
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let answer = answer(&request, &book);
                    async move { Ok::<_, std::convert::Infallible>(answer) }
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

fn answer(request: &Request<Incoming>, book: &Book) -> Response<Full<Bytes>> {
    let connected = book.connected.load(Ordering::Relaxed);
    let stopping = book.stopping.load(Ordering::Relaxed);
    let ready = connected && !stopping;
    let json =
        |status, document: serde_json::Value| of(status, "application/json", document.to_string());
    let of_ready = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let detail = json!({"detail": "only GET and HEAD are served here"});
        return json(StatusCode::METHOD_NOT_ALLOWED, detail);
    }
    let reason = if stopping {
        "the worker is stopping"
    } else {
        "no broker is connected"
    };
    match request.uri().path() {
        "/health/live" => json(StatusCode::OK, json!({"status": "alive"})),
        "/health/ready" if ready => json(of_ready, json!({"status": "ready"})),
        "/health/ready" => json(of_ready, json!({"status": "not ready", "reason": reason})),
        "/health" => {
            let queue = if connected {
                json!({"status": "ok", "depth": book.depth.load(Ordering::Relaxed), "dead": book.dead.load(Ordering::Relaxed)})
            } else {
                json!({"status": "down", "reason": reason})
            };
            let status = if ready { "ok" } else { "down" };
            json(
                of_ready,
                json!({"status": status, "components": {"queue": queue}}),
            )
        }
        "/metrics" => of(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            metrics(book, connected),
        ),
        _ => {
            let detail = "there are /health, /health/live, /health/ready and /metrics here";
            json(StatusCode::NOT_FOUND, json!({ "detail": detail }))
        }
    }
}

fn of(status: StatusCode, media_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let value = HeaderValue::from_static(media_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

fn metrics(book: &Book, connected: bool) -> String {
    let results = [
        ("applied", &book.applied),
        ("superseded", &book.superseded),
        ("failed", &book.failed),
        ("poison", &book.poison),
    ];
    let mut text = String::from(
        "# HELP torc_worker_messages_total Queued writes that this worker is done with.\n# TYPE torc_worker_messages_total counter\n",
    );
    for (result, count) in results {
        let count = count.value();
        let _ = writeln!(
            text,
            "torc_worker_messages_total{{result=\"{result}\"}} {count}"
        );
    }
    let attempts = [("refused", &book.retried), ("unavailable", &book.waited)];
    text += "# HELP torc_worker_retries_total Attempts that were made again, by why.\n# TYPE torc_worker_retries_total counter\n";
    for (reason, count) in attempts {
        let count = count.value();
        let _ = writeln!(
            text,
            "torc_worker_retries_total{{reason=\"{reason}\"}} {count}"
        );
    }
    let redelivered = book.redelivered.value();
    let _ = write!(
        text,
        "# HELP torc_worker_redelivered_total Messages that had been delivered before.\n# TYPE torc_worker_redelivered_total counter\ntorc_worker_redelivered_total {redelivered}\n"
    );
    let gauges = [
        (
            "torc_worker_connected",
            "1 while a broker is connected",
            u64::from(connected),
        ),
        (
            "torc_worker_in_work",
            "Messages in work",
            book.in_work.load(Ordering::Relaxed) as u64,
        ),
        (
            "torc_queue_depth",
            "Queued writes that wait",
            book.depth.load(Ordering::Relaxed),
        ),
        (
            "torc_queue_dead",
            "Queued writes that were given up",
            book.dead.load(Ordering::Relaxed),
        ),
    ];
    for (name, help, value) in gauges {
        let _ = write!(
            text,
            "# HELP {name} {help}.\n# TYPE {name} gauge\n{name} {value}\n"
        );
    }
    text + &process_text()
}

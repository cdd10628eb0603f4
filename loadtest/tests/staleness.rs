//! Measured staleness, against a server whose replication lag is known.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use torc_loadtest::drive::Progress;
use torc_loadtest::staleness::{Staleness, StalenessPlan, measure};
use torc_loadtest::target::{Asking, Target};

/// Values of one key, with the time at which they were stored.
type Versions = Vec<(Instant, Bytes)>;

/// A server that shows a value only this long after it took it.
struct Lagging {
    lag: Duration,
    keys: Mutex<BTreeMap<String, Versions>>,
}

impl Lagging {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (method, key) = (request.method().clone(), request.uri().path().to_owned());
        let body = request
            .into_body()
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .unwrap_or_default();
        let now = Instant::now();
        let mut keys = self.keys.lock();
        let versions = keys.entry(key).or_default();
        let mut response = Response::new(Full::default());
        if method == Method::PUT {
            versions.push((now, body));
            *response.status_mut() = StatusCode::NO_CONTENT;
            return response;
        }
        let shown = versions
            .iter()
            .rev()
            .find(|(stored, _)| *stored + self.lag <= now);
        if let Some((_, value)) = shown {
            *response.body_mut() = Full::new(value.clone());
        } else {
            *response.status_mut() = StatusCode::NOT_FOUND;
            *response.body_mut() = Full::new(Bytes::from_static(br#"{"type":"no-such-key"}"#));
        }
        response
    }
}

fn serve(lag: Duration) -> SocketAddr {
    let (sender, address) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async move {
            let server = Arc::new(Lagging {
                lag,
                keys: Mutex::default(),
            });
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            sender
                .send(listener.local_addr().expect("an address"))
                .expect("somebody waits");
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                stream.set_nodelay(true).expect("no delay");
                let server = Arc::clone(&server);
                tokio::spawn(async move {
                    let service = service_fn(|request| {
                        let server = Arc::clone(&server);
                        async move { Ok::<_, Infallible>(server.answer(request).await) }
                    });
                    // A client that goes away ends its own connection only.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
    });
    address.recv().expect("the server listens")
}

fn probe(lag: Duration) -> Staleness {
    let spec = format!("torc={}", serve(lag)).parse().expect("a target");
    let target = Target::new(&spec, Asking::default(), false).expect("on this machine");
    let plan = StalenessPlan {
        probes: 2_000,
        duration: Duration::from_secs(60),
        lanes: 16,
        workers: 1,
        value_len: 64,
        seed: 1,
    };
    measure(&plan, &target, &Progress::default()).expect("measured")
}

#[test]
fn reads_within_the_lag_are_stale_and_later_ones_never() {
    let lag = Duration::from_millis(20);
    let seen = probe(lag);
    assert_eq!((seen.failed, seen.probes), (0, 2_000), "{seen:?}");
    for bin in &seen.curve {
        // A read that is sent after the lag cannot miss; one that is sent early, but arrives late on a busy
        // machine, may be lucky.
        let from = seen
            .curve
            .iter()
            .map(|other| other.up_to_us)
            .filter(|end| *end < bin.up_to_us)
            .max();
        if from.is_some_and(|from| Duration::from_micros(from) >= lag) {
            assert_eq!(bin.misses, 0, "{bin:?}");
        } else if bin.up_to_us <= 2_000 && bin.probes >= 50 {
            assert!(bin.probability > 0.5, "{bin:?}");
        }
    }
    assert!(seen.misses > 500, "{seen:?}");
    assert!(
        seen.oldest_value_ms < 20.0 + 1_000.0 && seen.versions_behind_max >= 1,
        "{seen:?}"
    );
}

#[test]
fn a_server_without_lag_is_never_stale() {
    let seen = probe(Duration::ZERO);
    assert_eq!(
        (seen.failed, seen.misses, seen.probes),
        (0, 0, 2_000),
        "{seen:?}"
    );
    assert_eq!((seen.oldest_value_ms, seen.versions_behind_max), (0.0, 0));
    assert!((seen.probability_at_most - 0.0015).abs() < 1e-9);
}

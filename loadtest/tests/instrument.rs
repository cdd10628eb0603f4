//! The instrument itself: what it says of a server whose times are known must be what that server did.
//!
//! A machine that is busy with other things delays both sides; so a measurement may be repeated, and a
//! wrong instrument is wrong each time.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use torc_loadtest::drive::{Plan, Progress, load, run};
use torc_loadtest::pace::{Arrivals, Pace};
use torc_loadtest::report::RunResult;
use torc_loadtest::target::{Asking, Target};
use torc_loadtest::workload::Workload;

const TRIES: usize = 6;

/// How a server behaves, and what it did.
#[derive(Debug)]
struct Behaviour {
    begun: Instant,
    delay: fn(u64) -> Duration,
    /// Whole server silent from then on, for that long.
    stall: Option<(Duration, Duration)>,
    requests: AtomicU64,
    /// Times from request to answer, as the server saw them.
    took: Mutex<Vec<Duration>>,
}

impl Behaviour {
    fn of(delay: fn(u64) -> Duration, stall: Option<(Duration, Duration)>) -> Arc<Self> {
        Arc::new(Self {
            begun: Instant::now(),
            delay,
            stall,
            requests: AtomicU64::new(0),
            took: Mutex::default(),
        })
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let begin = Instant::now();
        let is_read = request.method() == hyper::Method::GET;
        // A body that breaks off is the client's affair.
        let _ = request.into_body().collect().await;
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let mut delay = (self.delay)(number);
        if let Some((from, length)) = self.stall {
            let since = self.begun.elapsed();
            if since >= from && since < from + length {
                delay += (from + length).saturating_sub(since);
            }
        }
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.took.lock().push(begin.elapsed());
        let body = if is_read {
            Bytes::from_static(&[b'x'; 1024])
        } else {
            Bytes::new()
        };
        let mut response = Response::new(Full::new(body));
        if !is_read {
            *response.status_mut() = hyper::StatusCode::NO_CONTENT;
        }
        response
    }
}

/// A server on a thread of its own, which ends with the test.
fn serve(behaviour: Arc<Behaviour>) -> SocketAddr {
    let (sender, address) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            sender
                .send(listener.local_addr().expect("an address"))
                .expect("somebody waits");
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                stream.set_nodelay(true).expect("no delay");
                let behaviour = Arc::clone(&behaviour);
                tokio::spawn(async move {
                    let service = service_fn(|request| {
                        let behaviour = Arc::clone(&behaviour);
                        async move { Ok::<_, Infallible>(behaviour.answer(request).await) }
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

fn target(address: SocketAddr) -> Target {
    let spec = format!("torc={address}").parse().expect("a target");
    Target::new(&spec, Asking::default(), false).expect("on this machine")
}

fn plan(connections: usize, pace: Pace, duration: Duration) -> Plan {
    Plan {
        connections,
        workers: 1,
        pace,
        warm_up: Duration::ZERO,
        duration,
        operations: 1_000_000,
        seed: 1,
    }
}

fn reads() -> Arc<Workload> {
    let workload = Workload::ycsb("c", 100, "1KiB".parse().expect("a size"));
    Arc::new(workload.expect("a workload"))
}

fn measure(address: SocketAddr, plan: &Plan) -> RunResult {
    let (target, workload) = (target(address), reads());
    let measured = run(plan, &target, &workload, &Progress::default()).expect("measured");
    RunResult::of((&target, &workload, plan), None, &measured)
}

fn open(per_second: f64) -> Pace {
    Pace::Open {
        per_second,
        arrivals: Arrivals::Constant,
    }
}

/// The value that this part of `took` does not exceed, in microseconds.
fn quantile(took: &[Duration], part: f64) -> f64 {
    let mut sorted = took.to_vec();
    sorted.sort_unstable();
    let at = ((sorted.len() as f64 * part).ceil() as usize).clamp(1, sorted.len());
    sorted[at - 1].as_secs_f64() * 1e6
}

/// Of 100 requests 80 take 40 ms, 14 take 120 ms, and 6 take 300 ms.
fn mixed(number: u64) -> Duration {
    Duration::from_millis(match number * 37 % 100 {
        0..80 => 40,
        80..94 => 120,
        _ => 300,
    })
}

#[test]
fn percentiles_of_known_delays_are_right_within_five_percent() {
    for (name, pace) in [("closed", Pace::Closed), ("open", open(300.0))] {
        let mut seen = Vec::new();
        let right = (0..TRIES).any(|_| {
            let behaviour = Behaviour::of(mixed, None);
            let address = serve(Arc::clone(&behaviour));
            let result = measure(address, &plan(64, pace, Duration::from_secs(2)));
            assert_eq!(
                (result.totals.errors, result.totals.missing),
                (0, 0),
                "{result:?}"
            );
            let took = behaviour.took.lock().clone();
            assert_eq!(
                result.totals.operations,
                took.len() as u64,
                "each request counts once"
            );
            let latency = result.totals.latency_us;
            let pairs = [(latency.p50, 0.5), (latency.p90, 0.9), (latency.p99, 0.99)];
            let pairs = pairs.map(|(measured, part)| (measured, quantile(&took, part)));
            seen.push(pairs);
            pairs
                .iter()
                .all(|(measured, real)| (measured / real - 1.0).abs() <= 0.05)
        });
        assert!(right, "{name}: (measured, real) in us: {seen:?}");
    }
}

#[test]
fn an_open_loop_shows_the_queue_that_a_closed_loop_hides() {
    let stall = Some((Duration::from_millis(500), Duration::from_millis(600)));
    let p90 = |pace| {
        let address = serve(Behaviour::of(|_| Duration::from_millis(1), stall));
        let result = measure(address, &plan(4, pace, Duration::from_secs(2)));
        assert_eq!(result.totals.errors, 0, "{result:?}");
        assert!(
            result.totals.latency_us.max >= 300_000.0,
            "the stall was met: {result:?}"
        );
        result.totals.latency_us.p90 / 1_000.0
    };
    let mut seen = Vec::new();
    let shown = (0..TRIES).any(|_| {
        let (closed, open) = (p90(Pace::Closed), p90(open(400.0)));
        seen.push((closed, open));
        // During the stall three in ten of the due operations wait, half a second at most.
        closed < 50.0 && open > 100.0
    });
    assert!(shown, "p90 in ms (closed, open): {seen:?}");
}

#[test]
fn the_instrument_costs_little_enough_to_drive_three_times_what_torc_serves() {
    // Two cores of which it used every microsecond would do 60,000 operations a second: three times the
    // quorum reads of a cluster on two cores.
    let most = 33.0;
    let mut seen = Vec::new();
    let cheap = (0..TRIES).any(|_| {
        let address = serve(Behaviour::of(|_| Duration::ZERO, None));
        let result = measure(address, &plan(32, Pace::Closed, Duration::from_secs(1)));
        seen.push(result.instrument.cpu_us_per_operation);
        result.totals.operations > 0 && result.instrument.cpu_us_per_operation < most
    });
    assert!(cheap, "CPU us for an operation: {seen:?}");
}

#[test]
fn a_run_ends_at_its_count_and_the_load_phase_writes_every_record_once() {
    let behaviour = Behaviour::of(|_| Duration::ZERO, None);
    let address = serve(Arc::clone(&behaviour));
    let (target, workload) = (target(address), reads());
    let mut plan = plan(8, Pace::Closed, Duration::from_secs(60));
    plan.operations = 250;
    let progress = Progress::default();
    let loaded = load(&plan, &target, &workload, &progress).expect("loaded");
    assert_eq!(
        (progress.done(), behaviour.requests.load(Ordering::Relaxed)),
        (100, 100)
    );
    let measured = run(&plan, &target, &workload, &Progress::default()).expect("measured");
    let result = RunResult::of((&target, &workload, &plan), Some(&loaded), &measured);
    assert_eq!(result.totals.operations, 250);
    assert_eq!(behaviour.requests.load(Ordering::Relaxed), 350);
    let json = serde_json::to_value(&result).expect("JSON");
    for path in [
        "/operations",
        "/errors",
        "/seconds",
        "/throughput",
        "/latency_us/p50",
        "/latency_us/p90",
        "/latency_us/p99",
        "/latency_us/p999",
        "/latency_us/max",
        "/phases/load/kinds/insert/latency_us/p50",
        "/phases/run/kinds/get/throughput",
        "/availability/answered",
        "/series/0/p99",
        "/instrument/cpu_us_per_operation",
    ] {
        assert!(
            json.pointer(path).is_some_and(serde_json::Value::is_number),
            "{path} in {json}"
        );
    }
}

#[test]
fn a_server_that_is_not_there_is_counted_not_waited_for() {
    // A port that was free a moment ago.
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address")
    };
    let result = measure(address, &plan(2, Pace::Closed, Duration::from_millis(300)));
    assert!(result.totals.throughput <= 0.0);
    assert!(
        result.totals.errors > 0 && result.totals.errors < 1_000,
        "{:?}",
        result.totals
    );
    assert_eq!(
        result.totals.reasons.keys().collect::<Vec<_>>(),
        ["connection refused"]
    );
}

//! Redis and etcd as targets: real servers, on free ports, in folders of their own.
//! `scripts/services.sh` installs them.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use torc_loadtest::drive::{Plan, Progress, load, run};
use torc_loadtest::pace::Pace;
use torc_loadtest::report::RunResult;
use torc_loadtest::target::{Asking, Target};
use torc_loadtest::workload::{Choice, Workload};

const STARTED_MAX: Duration = Duration::from_secs(60);

/// A server that ends with the test.
struct Server {
    child: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

fn start(program: &str, arguments: impl Fn(SocketAddr, &str) -> Vec<String>) -> Server {
    let folder = tempfile::tempdir().expect("a folder");
    let address = free_port();
    let path = folder.path().to_str().expect("a plain path");
    let child = Command::new(program)
        .args(arguments(address, path))
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("cannot start {program} ({error}); scripts/services.sh installs it")
        });
    let server = Server {
        child,
        address,
        _folder: folder,
    };
    let begin = Instant::now();
    while TcpStream::connect(server.address).is_err() {
        assert!(begin.elapsed() < STARTED_MAX, "{program} does not listen");
        thread::sleep(Duration::from_millis(20));
    }
    server
}

fn redis(more: &[&str]) -> Server {
    start("redis-server", |address, folder| {
        let port = address.port().to_string();
        let fixed = [
            "--port",
            &port,
            "--bind",
            "127.0.0.1",
            "--dir",
            folder,
            "--save",
            "",
            "--appendonly",
            "no",
        ];
        fixed
            .iter()
            .chain(more)
            .map(|argument| (*argument).to_owned())
            .collect()
    })
}

fn etcd() -> Server {
    let peer = free_port();
    start("etcd", |address, folder| {
        let (client, peer) = (format!("http://{address}"), format!("http://{peer}"));
        [
            "--data-dir",
            folder,
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
            "--initial-cluster",
            &format!("default={peer}"),
        ]
        .map(str::to_owned)
        .to_vec()
    })
}

/// Loads records, then does some of everything; answers what came of it.
fn drive(spec: &str) -> RunResult {
    let target = Target::new(&spec.parse().expect("a target"), Asking::default(), false)
        .expect("on this machine");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let begin = Instant::now();
    while let Err(error) = runtime.block_on(target.probe(false)) {
        assert!(begin.elapsed() < STARTED_MAX, "{spec}: {error}");
        thread::sleep(Duration::from_millis(50));
    }
    let workload = Arc::new(Workload {
        name: "some of everything".to_owned(),
        mix: "get=5,put=4,insert=1,scan=1,rmw=2".parse().expect("a mix"),
        choice: Choice::Uniform,
        records: 300,
        value_size: "100B-3KiB".parse().expect("a size"),
    });
    let plan = Plan {
        connections: 4,
        workers: 1,
        pace: Pace::Closed,
        warm_up: Duration::ZERO,
        duration: Duration::from_secs(60),
        operations: 800,
        seed: 1,
    };
    let loaded = load(&plan, &target, &workload, &Progress::default()).expect("loaded");
    let measured = run(&plan, &target, &workload, &Progress::default()).expect("measured");
    RunResult::of((&target, &workload, &plan), Some(&loaded), &measured)
}

fn check(result: &RunResult) {
    assert_eq!(
        (result.totals.operations, result.totals.errors),
        (800, 0),
        "{result:?}"
    );
    // Nothing is deleted, so all that is read must be there.
    assert_eq!(result.totals.missing, 0, "{result:?}");
    for kind in ["get", "put", "insert", "scan", "rmw"] {
        assert!(
            result.phases["run"].kinds.contains_key(kind),
            "{kind} in {result:?}"
        );
    }
    assert_eq!(result.phases["load"].totals.operations, 300);
}

#[test]
fn redis_is_driven() {
    let server = redis(&[]);
    check(&drive(&format!("redis={}", server.address)));
}

#[test]
fn a_redis_cluster_is_driven() {
    let server = redis(&[
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        &free_port().port().to_string(),
    ]);
    let port = server.address.port().to_string();
    let slots = Command::new("redis-cli")
        .args(["-p", &port, "CLUSTER", "ADDSLOTSRANGE", "0", "16383"])
        .output()
        .expect("redis-cli runs");
    assert!(slots.status.success(), "{slots:?}");
    check(&drive(&format!("redis-cluster={}", server.address)));
}

#[test]
fn etcd_is_driven() {
    let server = etcd();
    check(&drive(&format!("etcd={}", server.address)));
}

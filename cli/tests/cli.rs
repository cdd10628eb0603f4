//! The binary as scripts see it: exit codes, one line of error, shapes of JSON.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const START_MAX: Duration = Duration::from_secs(60);

fn torc(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torc"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TORC_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    torc(arguments).output().expect("run torc")
}

/// Exit code, standard output, standard error.
fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn free_tcp() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.local_addr().expect("address").to_string()
}

fn free_udp() -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.local_addr().expect("address").to_string()
}

fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + START_MAX;
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) => assert!(Instant::now() < end, "no {what}: {seen}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that does not outlive the test.
struct Running(Child);

impl Running {
    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("send a signal");
    }

    fn exit_code(&mut self) -> Option<i32> {
        until("end", || match self.0.try_wait() {
            Ok(Some(status)) => Ok(status.code()),
            other => Err(format!("{other:?}")),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_default_configuration_is_accepted_unchanged() {
    let (code, defaults, _) = said(&run(&["config", "default"]));
    assert_eq!(code, Some(0));
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("torc.toml");
    fs::write(&file, &defaults).expect("write");
    let path = file.to_str().expect("a path");
    assert_eq!(said(&run(&["config", "check", path])).0, Some(0));

    fs::write(&file, "weigth = 3\n").expect("write");
    let (code, _, error) = said(&run(&["config", "check", path]));
    assert_eq!(code, Some(1));
    assert!(
        error.contains("line 1: unknown key `weigth`; did you mean `weight`?"),
        "{error}"
    );
    assert_eq!(said(&run(&["config", "check", "/nonexistent"])).0, Some(1));
}

#[test]
fn usage_errors_exit_with_two_before_anything_happens() {
    for arguments in [
        &["frobnicate"][..],
        &["get"],
        &["get", "k", "-r", "0"],
        &["get", "k", "--node", "nowhere"],
        &["put", "k", "v", "--node", "https://127.0.0.1:1"],
        &["status", "--admin", "x"],
        &["serve", "--http", "10.0.0.1:8081"],
        &["serve", "--weight", "0"],
        &["serve", "--set", "limit.value_bytes=1MiB"],
        &["serve", "--set", "nonsense"],
        &["serve", "--config", "/nonexistent"],
        &["serve", "--bootstrap", "--join", "127.0.0.1:1"],
        &["demo", "--keep", "../x"],
        &["demo", "--durability", "never"],
    ] {
        let (code, out, error) = said(&run(arguments));
        assert_eq!(code, Some(2), "{arguments:?}: {error}");
        assert_eq!(out, "", "{arguments:?}");
        assert!(!error.is_empty(), "{arguments:?}");
    }
    let mut command = torc(&["serve"]);
    command.env("TORC_WEIGTH", "3");
    let (code, _, error) = said(&command.output().expect("run torc"));
    assert_eq!(code, Some(2), "{error}");
    assert!(
        error.contains("TORC_WEIGTH") && error.contains("`weight`"),
        "{error}"
    );
}

#[test]
fn nobody_there_is_told_apart_from_a_refusal() {
    let nobody = free_tcp();
    for arguments in [
        &["get", "k", "--node", &nobody][..],
        &["put", "k", "v", "--node", &nobody],
        &["delete", "k", "--node", &nobody],
        &["ls", "--node", &nobody],
        &["status", "--admin", &nobody],
        &["ring", "show", "--admin", &nobody],
        &["health", "--node", &nobody],
        &[
            "status",
            "--admin",
            &nobody,
            "--until",
            "healthy",
            "--timeout",
            "300ms",
        ],
    ] {
        let (code, out, error) = said(&run(arguments));
        assert_eq!(
            (code, out.as_str()),
            (Some(3), ""),
            "{arguments:?}: {error}"
        );
        let last = error.lines().last().unwrap_or_default();
        assert!(last.starts_with("torc: "), "{arguments:?}: {error}");
    }
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Names of an object's members, in order of the alphabet, separated by spaces.
fn names(value: &serde_json::Value) -> String {
    let object = value
        .as_object()
        .unwrap_or_else(|| panic!("{value} is no object"));
    let mut names: Vec<&str> = object.keys().map(String::as_str).collect();
    names.sort_unstable();
    names.join(" ")
}

/// One node, ready.
fn one_node(folder: &Path) -> (Running, String, String) {
    let (http, admin) = (free_tcp(), free_tcp());
    let pki = folder.join("pki");
    let made = run(&["pki", "init", "--out", pki.to_str().expect("a path")]);
    assert!(made.status.success(), "{made:?}");
    let log = fs::File::create(folder.join("log")).expect("a log");
    let child = torc(&[
        "serve",
        "--bootstrap",
        "--http",
        &http,
        "--admin",
        &admin,
        "--peer",
        &free_udp(),
    ])
    .arg("--data")
    .arg(folder.join("data"))
    .arg("--pki")
    .arg(&pki)
    .args(["--set", "shards=1", "--set", "limits.value_bytes=1KiB"])
    .stdout(Stdio::null())
    .stderr(log)
    .spawn()
    .expect("start a node");
    let node = Running(child);
    until("node that is ready", || {
        let output = run(&["health", "--node", &http]);
        let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
        if output.status.success() {
            Ok(())
        } else {
            Err(format!("{output:?}\n{log}"))
        }
    });
    (node, http, admin)
}

#[test]
fn keys_go_in_and_out_as_they_are_and_sigterm_stops_a_node_in_order() {
    let folder = TempDir::new().expect("a folder");
    let (mut node, http, admin) = one_node(folder.path());
    let file = folder.path().join("value");
    let value: Vec<u8> = (0..=255).collect();
    fs::write(&file, &value).expect("write");
    let path = file.to_str().expect("a path");

    assert!(
        run(&["put", "k/1", "--node", &http, "--file", path])
            .status
            .success()
    );
    assert_eq!(run(&["get", "k/1", "--node", &http]).stdout, value);
    let mut child = torc(&["put", "k/2", "--node", &http])
        .stdin(Stdio::piped())
        .spawn()
        .expect("run torc");
    child
        .stdin
        .take()
        .expect("stdin")
        .write_all(b"from stdin")
        .expect("write");
    assert!(child.wait().expect("end").success());
    assert_eq!(run(&["get", "k/2", "--node", &http]).stdout, b"from stdin");
    assert!(
        run(&["put", "k/3", "argument", "--node", &http, "--ttl", "1h"])
            .status
            .success()
    );

    let (code, out, error) = said(&run(&["get", "absent", "--node", &http]));
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert_eq!(
        error,
        "torc: there is no key `absent` in bucket `default`\n"
    );
    assert_eq!(
        said(&run(&["get", "k/1", "--node", &http, "-b", "nosuch"])).0,
        Some(1)
    );
    fs::write(&file, vec![0; 2048]).expect("write");
    let (code, _, error) = said(&run(&["put", "big", "--node", &http, "--file", path]));
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("1024"), "names the limit: {error}");
    // A quorum above n is refused, not unreachable.
    assert_eq!(
        said(&run(&["get", "k/1", "-r", "9", "--node", &http])).0,
        Some(1)
    );

    let got = json(&run(&["get", "k/1", "--node", &http, "--output", "json"]));
    assert_eq!(
        names(&got),
        "content_type context encoding etag key last_modified value"
    );
    assert_eq!(got["encoding"], "base64");
    let put = json(&run(&[
        "put", "k/4", "v", "--node", &http, "--output", "json",
    ]));
    assert_eq!(names(&put), "context etag key superseded");
    let listed = json(&run(&["ls", "k/", "--node", &http, "--output", "json"]));
    assert_eq!(names(&listed), "keys");
    assert_eq!(listed["keys"].as_array().map(Vec::len), Some(4));
    let text = said(&run(&["ls", "k/", "-n", "2", "--node", &http])).1;
    assert_eq!(text.lines().count(), 2, "{text}");

    let status = json(&run(&["status", "--admin", &admin, "--output", "json"]));
    assert_eq!(
        names(&status),
        "agreement_age_seconds change config_version failures_survived nodes reasons seen_from verdict"
    );
    assert_eq!(
        names(&status["nodes"][0]),
        "alive hint_bytes hints_waiting http id name share zone"
    );
    let ring = json(&run(&[
        "ring", "show", "--admin", &admin, "--output", "json",
    ]));
    assert_eq!(
        names(&ring),
        "buckets changing cluster config_version members partition_bits ring_version token_seed"
    );
    assert_eq!(
        names(&ring["members"][0]),
        "alive http id name peer share state weight zone"
    );
    let owners = json(&run(&[
        "ring", "owners", "k/1", "--admin", &admin, "--output", "json",
    ]));
    assert_eq!(
        names(&owners),
        "bucket key n owners partition stand_ins token"
    );
    assert_eq!(names(&owners["owners"][0]), "alive http id name zone");

    assert!(
        run(&["delete", "k/1", "k/2", "--node", &http])
            .status
            .success()
    );
    assert_eq!(said(&run(&["get", "k/1", "--node", &http])).0, Some(1));
    node.signal(Signal::SIGTERM);
    assert_eq!(node.exit_code(), Some(0));
}

#[test]
fn a_batch_tells_what_was_refused() {
    let folder = TempDir::new().expect("a folder");
    let (_node, http, _) = one_node(folder.path());
    let file = folder.path().join("operations");
    let path = file.to_str().expect("a path");
    let mut lines = String::new();
    for number in 0..1_500 {
        writeln!(lines, r#"{{"op":"put","key":"b{number}","value":"v"}}"#).expect("memory");
    }
    fs::write(&file, lines).expect("write");
    let (code, out, error) = said(&run(&["batch", path, "--node", &http, "--deadline", "20s"]));
    assert_eq!(code, Some(0), "{error}");
    assert_eq!(out.lines().count(), 1_500);
    fs::write(
        &file,
        "{\"op\":\"get\",\"key\":\"b1\"}\n{\"op\":\"frobnicate\"}\n",
    )
    .expect("write");
    let (code, out, error) = said(&run(&["batch", path, "--node", &http]));
    assert_eq!((code, out.lines().count()), (Some(1), 2), "{error}");
    assert!(error.contains("1 of 2 operations were refused"), "{error}");
}

#[test]
fn completions_and_man_pages_are_made() {
    let (code, text, _) = said(&run(&["completions", "bash"]));
    assert_eq!(code, Some(0));
    assert!(text.contains("torc"));
    let folder = TempDir::new().expect("a folder");
    let out = folder.path().join("man");
    assert!(
        run(&["man", "--out", out.to_str().expect("a path")])
            .status
            .success()
    );
    assert!(out.join("torc.1").is_file() && out.join("torc-serve.1").is_file());
}

#[test]
fn whoever_reads_only_the_beginning_is_no_error() {
    let mut child = torc(&["config", "default"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run torc");
    drop(child.stdout.take());
    let mut error = String::new();
    child
        .stderr
        .take()
        .expect("stderr")
        .read_to_string(&mut error)
        .expect("read");
    assert_eq!(
        (child.wait().expect("end").code(), error.as_str()),
        (Some(0), "")
    );
}

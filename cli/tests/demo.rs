//! `torc demo` with its second terminal, and what is left when it is gone.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

const WAIT_MAX: Duration = Duration::from_secs(90);

/// A demo with folders of its own. Killed when the test is over.
struct Demo {
    home: TempDir,
    child: Child,
}

fn torc(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torc"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TORC_") {
            command.env_remove(name);
        }
    }
    command
        .args(arguments)
        .env("HOME", home)
        .env("TMPDIR", home.join("tmp"))
        .env_remove("XDG_DATA_HOME")
        .env_remove("XDG_RUNTIME_DIR")
        .stdin(Stdio::null());
    command
}

fn launch(home: &Path, arguments: &[&str]) -> Child {
    let output = File::create(home.join("output")).expect("a file");
    torc(home, arguments)
        .stdout(output.try_clone().expect("another handle"))
        .stderr(output)
        .spawn()
        .expect("start the demo")
}

impl Demo {
    /// Starts it and waits until it is ready. Each test has its own ports: between the moment at which a
    /// demo lets go of a node's ports and that at which the node takes them, another demo could.
    fn start(base_port: &str, arguments: &[&str]) -> Self {
        let home = TempDir::new().expect("a folder");
        fs::create_dir(home.path().join("tmp")).expect("a folder");
        let mut all = vec!["demo", "--durability", "os", "--base-port", base_port];
        all.extend(arguments);
        let child = launch(home.path(), &all);
        let mut demo = Self { home, child };
        demo.until("demo that is ready", |demo| {
            demo.output().contains("Ctrl-C stops")
        });
        demo
    }

    fn output(&self) -> String {
        fs::read_to_string(self.home.path().join("output")).unwrap_or_default()
    }

    fn until(&mut self, what: &str, is_met: impl Fn(&Self) -> bool) {
        let end = Instant::now() + WAIT_MAX;
        while !is_met(self) {
            let ended = self.child.try_wait().expect("look");
            assert!(
                ended.is_none() && Instant::now() < end,
                "no {what} ({ended:?}): {}",
                self.output()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn ask(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = torc(self.home.path(), arguments)
            .output()
            .expect("run torc");
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    fn nodes(&self) -> Vec<Value> {
        let (code, text) = self.ask(&["demo", "ls", "--output", "json"]);
        assert_eq!(code, Some(0), "{text}");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        value["nodes"].as_array().expect("nodes").clone()
    }

    fn pids(&self) -> Vec<i32> {
        let pid = |node: &Value| i32::try_from(node["pid"].as_u64()?).ok();
        self.nodes().iter().filter_map(pid).collect()
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("send a signal");
    }

    fn files_left(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.home.path().join("tmp")).expect("a folder");
        entries.flatten().map(|entry| entry.path()).collect()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_gone(pids: &[i32]) {
    let end = Instant::now() + WAIT_MAX;
    while pids
        .iter()
        .any(|pid| Path::new(&format!("/proc/{pid}")).exists())
    {
        assert!(Instant::now() < end, "some of {pids:?} live on");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_second_terminal_kills_pauses_and_restarts_nodes_and_ctrl_c_leaves_nothing() {
    let mut demo = Demo::start("22081", &["--nodes", "3", "--load"]);
    let state = |demo: &Demo, at: usize| demo.nodes()[at]["state"].as_str().map(str::to_owned);
    assert_eq!(demo.nodes().len(), 3);
    let http = demo.nodes()[0]["http"]
        .as_str()
        .expect("an address")
        .to_owned();
    assert_eq!(
        demo.ask(&["get", "hello", "--node", &http]).1,
        "good morning"
    );

    assert_eq!(demo.ask(&["demo", "kill", "3"]).0, Some(0));
    assert_eq!(state(&demo, 2).as_deref(), Some("killed"));
    assert_eq!(demo.ask(&["demo", "kill", "3"]).0, Some(1));
    let (code, text) = demo.ask(&["demo", "restart", "3"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(state(&demo, 2).as_deref(), Some("running"));

    assert_eq!(demo.ask(&["demo", "resume", "2"]).0, Some(1));
    assert_eq!(demo.ask(&["demo", "pause", "2"]).0, Some(0));
    assert_eq!(state(&demo, 1).as_deref(), Some("paused"));
    assert_eq!(demo.ask(&["demo", "resume", "2"]).0, Some(0));
    assert_eq!(demo.ask(&["demo", "pause", "0"]).0, Some(1));
    assert_eq!(demo.ask(&["demo", "pause", "4"]).0, Some(1));

    // A paused node is stopped too.
    assert_eq!(demo.ask(&["demo", "pause", "1"]).0, Some(0));
    let pids = demo.pids();
    assert_eq!(pids.len(), 3);
    demo.signal(Signal::SIGINT);
    assert_eq!(
        demo.child.wait().expect("end").code(),
        Some(0),
        "{}",
        demo.output()
    );
    wait_gone(&pids);
    assert_eq!(demo.files_left(), Vec::<PathBuf>::new());
    assert_eq!(demo.ask(&["demo", "ls"]).0, Some(3));
}

#[test]
fn a_partition_leaves_the_majority_at_work_and_the_minority_without_a_quorum() {
    let demo = Demo::start("27081", &["--nodes", "3"]);
    let http = |at: usize| demo.nodes()[at]["http"].as_str().map(str::to_owned);
    let (one, three) = (http(0).expect("an address"), http(2).expect("an address"));
    assert_eq!(demo.ask(&["demo", "partition", "1,2"]).0, Some(2));
    assert_eq!(demo.ask(&["demo", "partition", "1,2|4"]).0, Some(1));
    let (code, text) = demo.ask(&["demo", "partition", "1,2|3"]);
    assert_eq!(code, Some(0), "{text}");

    // Whoever is cut off has no quorum (3); the others go on.
    let put = |node: &str| demo.ask(&["put", "cut", "off", "--node", node]).0;
    let end = Instant::now() + WAIT_MAX;
    while put(&three) != Some(3) || put(&one) != Some(0) {
        assert!(Instant::now() < end, "the partition does not show");
    }
    assert_eq!(demo.ask(&["demo", "heal"]).0, Some(0));
    while put(&three) != Some(0) {
        assert!(Instant::now() < end, "the links are not mended");
    }
    assert_eq!(
        demo.ask(&["get", "cut", "-r", "all", "--node", &three]).1,
        "off"
    );
}

#[test]
fn nodes_do_not_outlive_a_demo_that_was_killed_and_the_next_one_tidies_up() {
    let mut demo = Demo::start("25081", &["--nodes", "2"]);
    assert_eq!(demo.ask(&["demo", "pause", "2"]).0, Some(0));
    let pids = demo.pids();
    demo.signal(Signal::SIGKILL);
    demo.child.wait().expect("end");
    wait_gone(&pids);
    assert!(!demo.files_left().is_empty());

    demo.child = launch(
        demo.home.path(),
        &["demo", "--nodes", "1", "--base-port", "25081"],
    );
    demo.until("demo that is ready", |demo| {
        demo.output().contains("Ctrl-C stops")
    });
    assert_eq!(demo.nodes().len(), 1);
    demo.signal(Signal::SIGTERM);
    assert_eq!(demo.child.wait().expect("end").code(), Some(0));
    assert_eq!(demo.files_left(), Vec::<PathBuf>::new());
}

#[test]
fn kept_data_is_there_the_next_time() {
    let mut demo = Demo::start("28081", &["--nodes", "2", "--keep", "mine"]);
    let http = demo.nodes()[0]["http"]
        .as_str()
        .expect("an address")
        .to_owned();
    assert_eq!(
        demo.ask(&["put", "own", "value", "--node", &http]).0,
        Some(0)
    );
    let (code, text) = demo.ask(&["demo", "--keep", "mine"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("another demo runs"), "{text}");
    demo.signal(Signal::SIGINT);
    assert_eq!(demo.child.wait().expect("end").code(), Some(0));

    demo.child = launch(demo.home.path(), &["demo", "--keep", "mine"]);
    demo.until("demo that is ready", |demo| {
        demo.output().contains("Ctrl-C stops")
    });
    assert_eq!(demo.nodes().len(), 2);
    assert_eq!(demo.ask(&["get", "own", "--node", &http]).1, "value");
}

#[test]
fn a_node_joins_one_dies_and_one_leaves_under_load_and_nothing_is_lost() {
    let home = TempDir::new().expect("a folder");
    fs::create_dir(home.path().join("tmp")).expect("a folder");
    let arguments = [
        "demo",
        "join-leave",
        "--keys",
        "500",
        "--pause",
        "1",
        "--durability",
        "os",
        "--base-port",
        "31081",
        "--output",
        "json",
    ];
    let output = torc(home.path(), &arguments).output().expect("run torc");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let verdict: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{said}"));
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert_eq!(verdict["kept"], true, "{text}");
    assert_eq!(verdict["lost_writes"], 0, "{text}");
    assert!(verdict["checks"].as_u64() > Some(100), "{text}");
    assert_eq!(verdict["steps"].as_array().map(Vec::len), Some(6), "{text}");
}

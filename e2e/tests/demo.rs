//! `torc demo`: a cluster without set-up, whose printed commands work, and that leaves nothing behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use torc_e2e::process::{spawn, torc};
use torc_e2e::{alone, wait};

/// Three unoptimised nodes on two cores, from nothing.
const STARTED_MAX: Duration = Duration::from_secs(60);
const STOPPED_MAX: Duration = Duration::from_secs(20);

/// Kills the demo when a test ends early.
struct Demo {
    child: Child,
    output: PathBuf,
}

impl Demo {
    fn output(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or_else(|_| panic!("{} is no pid", self.child.id()))
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            eprintln!("the demo still runs; it said:\n{}", self.output());
            for pid in children_of(self.pid()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Processes whose parent is `parent`.
fn children_of(parent: i32) -> Vec<i32> {
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the command's name, which may contain anything, come the state and the parent.
        let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        rest.split(' ').nth(1).and_then(|field| field.parse().ok()) == Some(parent)
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(is_child)
        .collect()
}

/// Every file below a folder.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files_below(&path)),
            _ => found.push(path),
        }
    }
    found
}

/// The curl commands that were printed, each from `curl` to the end of its line.
fn curl_lines(output: &str) -> Vec<String> {
    output
        .lines()
        .filter_map(|line| {
            line.find("curl ")
                .map(|start| line[start..].trim().to_owned())
        })
        .collect()
}

fn shell(command: &str, folder: &Path) -> Result<String, String> {
    let output = Command::new("sh")
        .current_dir(folder)
        .args(["-c", command])
        .output()
        .map_err(|error| format!("run sh: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        Ok(said)
    } else {
        Err(format!("{}: {said}{errors}", output.status))
    }
}

#[test]
fn the_demo_prints_commands_that_work_and_leaves_nothing_behind() {
    let _alone = alone();
    let home = TempDir::with_prefix("torc-e2e-demo-").expect("a folder");
    let temporary = home.path().join("tmp");
    fs::create_dir(&temporary).expect("a folder for temporary files");
    let output = home.path().join("output");
    let file = fs::File::create(&output).expect("a file for the output");
    let mut command = torc(home.path());
    command
        .args(["demo", "--nodes", "3"])
        .current_dir(home.path());
    command
        .env("TMPDIR", &temporary)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null());
    command
        .stderr(file.try_clone().expect("another handle"))
        .stdout(file);
    let mut demo = Demo {
        child: spawn(command),
        output,
    };

    let lines = wait::until("the demo to print curl commands", STARTED_MAX, || {
        let lines = curl_lines(&demo.output());
        if lines.len() >= 2 {
            Ok(lines)
        } else {
            Err(demo.output())
        }
    });
    let nodes = children_of(demo.pid());
    assert!(
        nodes.len() >= 3,
        "three node processes expected, found {nodes:?}"
    );
    assert!(
        demo.output().contains("http://127.0.0.1:"),
        "no address printed: {}",
        demo.output()
    );
    // They were printed when the cluster was ready: each must work at once, in the printed order.
    for line in &lines {
        let said = shell(
            &line.replacen(
                "curl ",
                "curl --fail --silent --show-error --max-time 10 ",
                1,
            ),
            home.path(),
        );
        assert!(said.is_ok(), "{line}\n{said:?}\n{}", demo.output());
        eprintln!(
            "{line}\n  -> {}",
            said.unwrap_or_default()
                .chars()
                .take(200)
                .collect::<String>()
        );
    }

    kill(Pid::from_raw(demo.pid()), Signal::SIGINT).expect("send SIGINT");
    let status = wait::until("the demo to stop", STOPPED_MAX, || {
        match demo.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it runs".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    });
    assert!(
        status.success(),
        "Ctrl-C ended the demo with {status}: {}",
        demo.output()
    );
    let left: Vec<_> = nodes
        .iter()
        .filter(|pid| Path::new(&format!("/proc/{pid}")).exists())
        .collect();
    assert!(left.is_empty(), "processes left behind: {left:?}");
    let files = files_below(&temporary);
    assert!(files.is_empty(), "files left behind: {files:?}");
    // What it keeps per user (a development CA) is not data.
    let data: Vec<_> = files_below(home.path())
        .into_iter()
        .filter(|path| {
            path.extension()
                .is_some_and(|kind| kind == "sst" || kind == "log")
        })
        .collect();
    assert!(data.is_empty(), "data left behind: {data:?}");
}

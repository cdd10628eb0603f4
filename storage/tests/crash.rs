//! Processes that die: killed at any moment, and ended by themselves when the disk cannot be trusted.
//!
//! The dying process is this test binary, started again for one test with a task in its environment.

// Helpers of tests panic and print like tests.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use torc_protocol::store::{Batch, CommitId, Sync};
use torc_storage::{Durability, FatalStep, Options, Store};

use common::rng::{Rng, seed};
use common::*;

const TASK: &str = "TORC_TEST_TASK";
const FOLDER: &str = "TORC_TEST_FOLDER";
const FIRST: &str = "TORC_TEST_FIRST";
const WAITING: u64 = 100;
const SIGABRT: i32 = 6;
const SIGKILL: i32 = 9;

/// Does nothing, unless this process was started by one of the tests below.
#[test]
fn child() {
    let (Ok(task), Ok(folder)) = (std::env::var(TASK), std::env::var(FOLDER)) else {
        return;
    };
    let first = std::env::var(FIRST).unwrap().parse().unwrap();
    let mut options = Options::new(Path::new(&folder).join("data"));
    options.reserve = 1 << 20;
    match task.as_str() {
        "fsync" => write_until_killed(options, first),
        "os" => options.durability = Durability::Os,
        "interval" => options.durability = Durability::Interval(Duration::from_millis(5)),
        "failed_fsync" => {
            options.inject = Some(Arc::new(|step| {
                (step == FatalStep::Commit).then(|| std::io::Error::other("the disk is on fire"))
            }));
        }
        other => panic!("unknown task {other}"),
    }
    write_until_killed(options, first);
}

/// Prints the number of each write that is acknowledged.
fn write_until_killed(options: Options, mut next: u64) -> ! {
    let (store, _) = Store::open(options).unwrap();
    let (sender, outcomes) = channel();
    let committer = store.committer(deliver_to(sender)).unwrap();
    let mut waiting = 0;
    let mut out = std::io::stdout().lock();
    loop {
        while waiting < WAITING {
            let mut writes = vec![merge(&key(1, next, b"k"), &value(1, &next.to_be_bytes()))];
            // Every third writes a hot key too: its batch must be there as a whole.
            if next.is_multiple_of(3) {
                writes.push(merge(&key(2, 0, b"hot"), &value(next, &next.to_be_bytes())));
            }
            committer
                .submit(
                    0,
                    CommitId(next),
                    Batch {
                        writes,
                        sync: Sync::Policy,
                    },
                )
                .expect("room");
            (next, waiting) = (next + 1, waiting + 1);
        }
        for (_, (id, outcome)) in outcomes.recv().expect("outcomes") {
            outcome.expect("a commit");
            waiting -= 1;
            writeln!(out, "ACK {}", id.0).expect("a reader");
        }
        out.flush().expect("a reader");
    }
}

fn start(task: &str, folder: &Path, first: u64, shell: Option<&str>) -> Child {
    let binary = std::env::current_exe().unwrap();
    let mut command = match shell {
        Some(limits) => {
            let mut shell = Command::new("sh");
            shell
                .arg("-c")
                .arg(format!("{limits}; exec \"$0\" \"$@\""))
                .arg(binary);
            shell
        }
        None => Command::new(binary),
    };
    command
        .args(["child", "--exact", "--nocapture"])
        .env(TASK, task)
        .env(FOLDER, folder)
        .env(FIRST, first.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn acknowledged(line: &str) -> Option<u64> {
    // The test harness prints on the same line first.
    let (_, number) = line.rsplit_once("ACK ")?;
    number.parse().ok()
}

/// Lets a child write until it has acknowledged `enough`, kills it, and answers with all that it
/// acknowledged.
fn run_and_kill(task: &str, folder: &Path, first: u64, enough: usize) -> Vec<u64> {
    let mut child = start(task, folder, first, None);
    let (sender, lines) = channel();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        // A line that the kill has cut off is no acknowledgement that anybody has seen; it has no end.
        let mut stdout = stdout;
        let mut line = String::new();
        while stdout.read_line(&mut line).is_ok_and(|len| len > 0) {
            if let Some(number) = line.strip_suffix('\n').and_then(acknowledged) {
                let _ = sender.send(number);
            }
            line.clear();
        }
    });
    let mut acked = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while acked.len() < enough {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(number) => acked.push(number),
            Err(error) => {
                let _ = child.kill();
                let mut stderr = String::new();
                let _ = child.stderr.take().unwrap().read_to_string(&mut stderr);
                panic!(
                    "the child wrote {} of {enough}: {error}; {stderr}",
                    acked.len()
                );
            }
        }
    }
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(SIGKILL));
    reader.join().unwrap();
    loop {
        match lines.try_recv() {
            Ok(number) => acked.push(number),
            Err(_) => return acked,
        }
    }
}

fn kill_often(task: &str, times: u64) {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(seed());
    let mut all: Vec<u64> = Vec::new();
    for run in 0..times {
        let enough = 1 + rng.below(4000) as usize;
        all.extend(run_and_kill(
            task,
            folder.path(),
            (run + 1) * 10_000_000,
            enough,
        ));
        let mut options = Options::new(folder.path().join("data"));
        options.reserve = 1 << 20;
        let (store, opened) = Store::open(options).unwrap();
        assert!(!opened.clean && !opened.dirty_boot);
        for number in &all {
            let found = read(&store, &key(1, *number, b"k")).unwrap();
            assert_eq!(
                found,
                Some(value(1, &number.to_be_bytes())),
                "write {number} was acknowledged"
            );
        }
        let hot = read(&store, &key(2, 0, b"hot")).unwrap();
        let hot = hot.map_or(0, |record| record.version().hlc.0);
        let acked = all.iter().filter(|number| number.is_multiple_of(3)).max();
        assert!(hot >= acked.copied().unwrap_or(0));
        // Whole batches: what the hot key has from one is not alone.
        assert!(hot == 0 || read(&store, &key(1, hot, b"k")).unwrap().is_some());
        drop(store);
    }
    println!("{} acknowledged writes over {times} kills", all.len());
}

#[test]
fn an_acknowledged_write_survives_kills_with_fsync() {
    kill_often("fsync", 10);
}

#[test]
fn an_acknowledged_write_survives_kills_without_fsync() {
    kill_often("os", 3);
}

#[test]
fn an_acknowledged_write_survives_kills_with_fsync_in_intervals() {
    kill_often("interval", 3);
}

/// Waits for the end of a child that ends itself.
fn wait_for_abort(mut child: Child) -> (Vec<u64>, String) {
    let (stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (done, ended) = channel();
    let output = std::thread::spawn(move || {
        let acked: Vec<u64> = BufReader::new(stdout)
            .lines()
            .map_while(Result::ok)
            .filter_map(|line| acknowledged(&line))
            .collect();
        let mut text = String::new();
        let _ = stderr.read_to_string(&mut text);
        let _ = done.send(());
        (acked, text)
    });
    if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
        let _ = child.kill();
    }
    let status = child.wait().unwrap();
    let (acked, text) = output.join().unwrap();
    assert_eq!(status.signal(), Some(SIGABRT), "{text}");
    (acked, text)
}

#[test]
fn a_failed_fsync_ends_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let (acked, text) = wait_for_abort(start("failed_fsync", folder.path(), 1, None));
    assert_eq!(acked, []);
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.contains("the disk is on fire"))
        .collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert!(lines[0].contains("page cache"), "{text}");
}

/// A real failure of a real write: the process may not make files longer than a limit.
#[test]
fn a_log_that_cannot_be_written_ends_the_process_and_nothing_acknowledged_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    // In units of 512 or 1024 bytes, as the shell likes; the signal would hide the error.
    let limits = "trap '' XFSZ; ulimit -f 400";
    let (acked, text) = wait_for_abort(start("fsync", folder.path(), 1, Some(limits)));
    assert!(
        text.contains("Commit in ") && text.contains("File too large"),
        "{text}"
    );
    assert!(!acked.is_empty());
    let (store, _) = Store::open(Options::new(folder.path().join("data"))).unwrap();
    for number in acked {
        assert_eq!(
            read(&store, &key(1, number, b"k")),
            Ok(Some(value(1, &number.to_be_bytes())))
        );
    }
}

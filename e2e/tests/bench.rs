//! `torc bench`: from one command to a report, with clusters of its own, and nothing left behind.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use torc_e2e::process::{spawn, torc};
use torc_e2e::{alone, wait};

/// Unoptimised nodes on a busy machine, started, loaded, killed and started again.
const DONE_MAX: Duration = Duration::from_secs(240);

/// Runs `torc bench` to its end; `home` holds all that it may leave.
fn bench(home: &Path, arguments: &[&str]) -> Output {
    let temporary = home.join("tmp");
    fs::create_dir_all(&temporary).expect("a folder for temporary files");
    let file = |name: &str| fs::File::create(home.join(name)).expect("a file for the output");
    let mut command = torc(home);
    command
        .arg("bench")
        .args(arguments)
        .current_dir(home)
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(file("stdout"))
        .stderr(file("stderr"));
    let mut child = spawn(command);
    let read = |name: &str| fs::read(home.join(name)).unwrap_or_default();
    let waited = wait::try_until("torc bench to end", DONE_MAX, || match child.try_wait() {
        Ok(Some(status)) => Ok(status),
        _ => Err(String::from_utf8_lossy(&read("stderr")).into_owned()),
    });
    let status = match waited {
        Ok(status) => status,
        Err(timed_out) => {
            // Its nodes see its pipe close, and stop.
            let _ = child.kill();
            let _ = child.wait();
            panic!("{timed_out}")
        }
    };
    let left: Vec<_> = fs::read_dir(&temporary)
        .expect("the folder")
        .flatten()
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    Output {
        status,
        stdout: read("stdout"),
        stderr: read("stderr"),
    }
}

fn json(output: &Output) -> Value {
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("JSON on standard output")
}

fn number(value: &Value, path: &str) -> f64 {
    value
        .pointer(path)
        .and_then(Value::as_f64)
        .unwrap_or_else(|| panic!("no number at {path} in {value}"))
}

#[test]
fn a_run_with_a_killed_node_ends_in_a_report() {
    let _alone = alone();
    let home = TempDir::with_prefix("torc-e2e-bench-").expect("a folder");
    let arguments = "run --start 3 --records 200 --connections 8 --warm-up 200ms --duration 6s --kill-after 1s \
                     --return-after 1s --output json --html report.html --json result.json";
    let output = bench(
        home.path(),
        &arguments.split_whitespace().collect::<Vec<_>>(),
    );
    let result = json(&output);
    assert!(number(&result, "/operations") > 0.0 && number(&result, "/throughput") > 0.0);
    assert!((number(&result, "/phases/load/operations") - 200.0).abs() < 0.5);
    for kind in ["get", "put"] {
        let p50 = number(&result, &format!("/phases/run/kinds/{kind}/latency_us/p50"));
        assert!(p50 > 0.0 && p50 <= number(&result, "/latency_us/max"));
    }
    // Two of three nodes are a quorum; what fails are the requests that the dead node was working on.
    assert!(number(&result, "/availability/answered") > 0.5, "{result}");
    let written: Value =
        serde_json::from_slice(&fs::read(home.path().join("result.json")).expect("a file"))
            .expect("JSON");
    assert_eq!(written, result);
    let page = fs::read_to_string(home.path().join("report.html")).expect("a page");
    assert!(page.contains("<svg") && page.contains("Availability") && !page.contains("<script"));
}

#[test]
fn a_sweep_finds_no_stale_read_where_quorums_overlap() {
    let _alone = alone();
    let home = TempDir::with_prefix("torc-e2e-bench-").expect("a folder");
    let arguments = "sweep --start 3 --r 1,2 --w 2 --records 100 --connections 8 --warm-up 100ms --duration 1s --probes 400 \
                     --kill-after 1s --return-after 1s --after-return 2s --output json --html sweep.html";
    let output = bench(
        home.path(),
        &arguments.split_whitespace().collect::<Vec<_>>(),
    );
    let result = json(&output);
    let combinations = result["combinations"].as_array().expect("combinations");
    let names: Vec<_> = combinations
        .iter()
        .map(|one| (one["n"].as_u64(), one["r"].as_u64(), one["w"].as_u64()))
        .collect();
    assert_eq!(
        names,
        [(Some(3), Some(1), Some(2)), (Some(3), Some(2), Some(2))]
    );
    for one in combinations {
        assert!(
            number(one, "/throughput") > 0.0 && number(one, "/staleness/probes") > 0.0,
            "{one}"
        );
        assert!(number(one, "/outage/availability/answered") > 0.0, "{one}");
    }
    assert_eq!(combinations[1]["overlaps"], true);
    assert!(number(&combinations[1], "/staleness/misses") <= 0.0);
    let page = fs::read_to_string(home.path().join("sweep.html")).expect("a page");
    assert!(page.contains("n=3 r=2 w=2") && page.contains("One node killed"));
}

#[test]
fn no_load_goes_to_another_machine_by_accident() {
    let home = TempDir::with_prefix("torc-e2e-bench-").expect("a folder");
    // An address that is set aside for documentation: nobody has it.
    for arguments in [
        &["run", "--node", "192.0.2.1:8081"][..],
        &["sweep", "--node", "192.0.2.1:8081"],
        &["compare", "--target", "redis=192.0.2.1:6379"],
    ] {
        let output = bench(home.path(), arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(
            said.contains("not this machine") && said.contains("--allow-remote"),
            "{said}"
        );
    }
}

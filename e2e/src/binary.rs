//! Which `torc` binary is tested.
//!
//! `TORC_BIN` names one; else it is built here, because cargo does not build another package's
//! binary for a test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

static TORC: OnceLock<PathBuf> = OnceLock::new();

/// Path of the binary; builds it on the first call in a process.
pub fn torc() -> &'static Path {
    TORC.get_or_init(|| match std::env::var_os("TORC_BIN") {
        Some(path) => {
            let path = PathBuf::from(path);
            assert!(path.is_file(), "TORC_BIN={} is not a file", path.display());
            eprintln!("testing {} (TORC_BIN)", path.display());
            path
        }
        None => build(),
    })
}

fn build() -> PathBuf {
    let _lock = lock();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(cargo);
    command
        .current_dir(&root)
        .args(["build", "--package", "torc", "--bin", "torc"])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit());
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    eprintln!("building the torc binary (set TORC_BIN to test another one)");
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("run {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} ended with {}",
        output.status
    );
    let path = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .unwrap_or_else(|| panic!("{command:?} named no executable"));
    eprintln!("testing {}", path.display());
    path
}

/// Waits for other test processes that build at the same time. Lives until it is dropped.
fn lock() -> File {
    let path = std::env::temp_dir().join("torc-e2e-build.lock");
    fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .and_then(|file| file.lock().map(|()| file))
        .unwrap_or_else(|error| panic!("lock {}: {error}", path.display()))
}

//! The library that stands between a node and its kernel (`shim/shim.c`): it moves the node's wall clock,
//! and keeps a journal of what the node changes on disk. Compiled here, once per process, with the
//! system's C compiler.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

const SOURCE: &str = include_str!("../shim/shim.c");

/// The compiled library. It stays in the system's folder for temporary files, named after its source, so
/// that test processes share it.
pub fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut hasher = DefaultHasher::new();
        SOURCE.hash(&mut hasher);
        let name = format!("torc-e2e-shim-{:016x}.so", hasher.finish());
        let library = std::env::temp_dir().join(name);
        if !library.is_file() {
            compile(&library);
        }
        library
    })
}

fn compile(library: &Path) {
    let folder = TempDir::with_prefix("torc-e2e-shim-")
        .unwrap_or_else(|error| panic!("make a folder for the shim: {error}"));
    let (source, fresh) = (folder.path().join("shim.c"), folder.path().join("shim.so"));
    fs::write(&source, SOURCE)
        .unwrap_or_else(|error| panic!("write {}: {error}", source.display()));
    let mut command = Command::new("gcc");
    command.args(["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-o"]);
    command.arg(&fresh).arg(&source).arg("-lpthread");
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("run {command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    // Whole or not at all: another process may look for it meanwhile.
    fs::rename(&fresh, library)
        .unwrap_or_else(|error| panic!("put {} into place: {error}", library.display()));
}

/// A wall clock that can be put wrong while a node runs.
#[derive(Debug)]
pub struct Clock {
    path: PathBuf,
    file: File,
}

impl Clock {
    /// A clock that is right, kept in this file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn in_file(path: PathBuf) -> io::Result<Self> {
        fs::write(&path, 0_i64.to_ne_bytes())?;
        let file = File::options().write(true).open(&path)?;
        Ok(Self { path, file })
    }

    /// What a node needs in its environment to follow this clock.
    pub fn environment(&self) -> [(String, String); 2] {
        [
            ("LD_PRELOAD".to_owned(), library().display().to_string()),
            ("SHIM_CLOCK".to_owned(), self.path.display().to_string()),
        ]
    }

    /// Puts the clock off by that much from now on.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_ms(&self, offset_ms: i64) -> io::Result<()> {
        self.file
            .write_all_at(&(offset_ms * 1_000_000).to_ne_bytes(), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    #[test]
    fn a_process_behind_the_shim_sees_the_clock_that_was_set() {
        let folder = TempDir::new().expect("a folder");
        let clock = Clock::in_file(folder.path().join("clock")).expect("a clock");
        clock.set_ms(-3_600_000).expect("set");
        let mut command = Command::new("date");
        let output = command.arg("+%s").envs(clock.environment()).output();
        let output = output.expect("run date");
        let seen: u64 = String::from_utf8_lossy(&output.stdout)
            .trim()
            .parse()
            .expect("seconds");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("now");
        let behind = now.as_secs() - seen;
        assert!((3_590..3_700).contains(&behind), "{behind} s behind");
    }
}

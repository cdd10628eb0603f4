//! A small file system of its own, to run a node out of disk without harming the machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A mounted tmpfs; unmounted when it is dropped.
#[derive(Debug)]
pub struct Tmpfs {
    folder: TempDir,
}

impl Tmpfs {
    /// Mounts a tmpfs of `mebibytes` on a new temporary folder. Fails the test when that is not
    /// allowed: a disk that cannot be filled must not look like a test that passed.
    pub fn mount(mebibytes: u32) -> Self {
        let folder = TempDir::with_prefix("torc-e2e-disk-")
            .unwrap_or_else(|error| panic!("make a folder to mount on: {error}"));
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"])
            .arg(folder.path())
            .output()
            .unwrap_or_else(|error| panic!("run mount: {error}"));
        assert!(
            output.status.success(),
            "cannot mount a tmpfs on {}: {}. The full-disk test needs root (CAP_SYS_ADMIN): run it \
             as root or in a privileged container.",
            folder.path().display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Self { folder }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Puts a file of that size on it and answers with its path; deleting it makes room again.
    pub fn ballast(&self, bytes: usize) -> PathBuf {
        let path = self.folder.path().join("ballast");
        std::fs::write(&path, vec![1_u8; bytes])
            .unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
        path
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazy, because a node that is being killed may still have files open.
        let unmounted = Command::new("umount")
            .arg("--lazy")
            .arg(self.folder.path())
            .status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("could not unmount {}", self.folder.path().display());
        }
    }
}

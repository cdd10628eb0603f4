//! A small file system of its own, to run a node out of disk without harming the machine.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

use crate::cluster::READY_MAX;
use crate::wait;

/// A mounted tmpfs; unmounted when it is dropped.
#[derive(Debug)]
pub struct Tmpfs {
    folder: TempDir,
}

impl Tmpfs {
    /// Mounts a tmpfs of `mebibytes` on a new temporary folder. Fails the test when that is not
    /// allowed: a disk that cannot be filled must not look like a test that passed.
    pub fn mount(mebibytes: u32) -> Self {
        Self::try_mount(mebibytes).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Like [`Self::mount`], for tests of which the full disk is a part only.
    ///
    /// # Errors
    /// When mounting is not allowed, as a sentence.
    pub fn try_mount(mebibytes: u32) -> Result<Self, String> {
        let folder = TempDir::with_prefix("torc-e2e-disk-")
            .unwrap_or_else(|error| panic!("make a folder to mount on: {error}"));
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"])
            .arg(folder.path())
            .output()
            .unwrap_or_else(|error| panic!("run mount: {error}"));
        if output.status.success() {
            return Ok(Self { folder });
        }
        Err(format!(
            "cannot mount a tmpfs on {}: {}. The full-disk test needs root (CAP_SYS_ADMIN): run it \
             as root or in a privileged container.",
            folder.path().display(),
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Puts a file of that size on it and answers with its path; deleting it makes room again.
    pub fn ballast(&self, bytes: u64) -> PathBuf {
        self.grow("ballast", bytes)
    }

    /// Takes all room but `leave` bytes away, again and again until `is_enough`: a store that is full
    /// may find room by compaction. Answers with the file that took it.
    #[track_caller]
    pub fn squeeze(
        &self,
        leave: u64,
        mut is_enough: impl FnMut() -> Result<(), String>,
    ) -> PathBuf {
        wait::until("the disk to stay full", READY_MAX, || {
            let free = self.free();
            if free > leave {
                self.grow("squeeze", free - leave);
            }
            is_enough()
        });
        self.folder.path().join("squeeze")
    }

    /// Free bytes.
    pub fn free(&self) -> u64 {
        let path = self.folder.path();
        let known =
            statvfs(path).unwrap_or_else(|error| panic!("statvfs {}: {error}", path.display()));
        known.blocks_available() * known.fragment_size()
    }

    fn grow(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.folder.path().join(name);
        let block = vec![1_u8; 64 * 1024];
        let grown = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| {
                let mut left = bytes as usize;
                while left > 0 {
                    left -= file.write(&block[..left.min(block.len())])?;
                }
                Ok(())
            });
        // The store may have been quicker; then there is no room to take.
        match grown {
            Err(error) if error.kind() != io::ErrorKind::StorageFull => {
                panic!("write {}: {error}", path.display())
            }
            _ => path,
        }
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

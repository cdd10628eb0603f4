//! The demo's folder: a temporary one, or a kept one under the user's data.

use std::cell::RefCell;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::ports::Ports;
use crate::exit::Usage;

/// What is remembered of a kept cluster: its nodes keep their addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) nodes: Vec<Ports>,
}

const PLAN_FILE: &str = "demo.json";
const LOCK_FILE: &str = "demo.lock";
/// Names of temporary folders begin so.
const PREFIX: &str = "torc-demo-";

/// Where a demo's nodes live.
#[derive(Debug)]
pub(crate) enum Home {
    /// Gone at the end, also when the demo panics. What a demo that was killed has left goes when the next
    /// one starts: nobody holds its lock any more.
    Temporary {
        /// Taken at the end.
        folder: RefCell<Option<TempDir>>,
        /// The folder's path.
        path: PathBuf,
        /// Held so that the next demo sees that this one lives.
        _lock: File,
    },
    /// Kept; the lock is held as long as this lives.
    Kept {
        /// Name under which it is kept.
        name: String,
        /// The folder.
        path: PathBuf,
        /// Held so that the same data is not used twice at a time.
        _lock: File,
    },
}

impl Home {
    pub(crate) fn open(keep: Option<&str>) -> anyhow::Result<Self> {
        let Some(name) = keep else {
            remove_leftovers();
            let folder = TempDir::with_prefix(PREFIX).context("cannot make a temporary folder")?;
            let path = folder.path().to_owned();
            let lock = lock(&path)?.context("a new folder is in use already")?;
            return Ok(Self::Temporary {
                folder: RefCell::new(Some(folder)),
                path,
                _lock: lock,
            });
        };
        let is_name = (1..=64).contains(&name.len())
            && !name.starts_with('.')
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if !is_name {
            return Err(Usage(format!(
                "--keep `{name}` is not a name of 1-64 letters, digits, - _ ."
            ))
            .into());
        }
        let path = data_home()?.join("torc/demo").join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let Some(lock) = lock(&path)? else {
            anyhow::bail!("another demo runs with --keep {name}; stop it, or use another name");
        };
        Ok(Self::Kept {
            name: name.to_owned(),
            path,
            _lock: lock,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Temporary { path, .. } | Self::Kept { path, .. } => path,
        }
    }

    /// The kept name, if it is kept.
    pub(crate) fn name(&self) -> Option<&str> {
        match self {
            Self::Temporary { .. } => None,
            Self::Kept { name, .. } => Some(name),
        }
    }

    /// The plan of the cluster that lives here already.
    pub(crate) fn plan(&self) -> anyhow::Result<Option<Plan>> {
        let path = self.path().join(PLAN_FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let plan = serde_json::from_slice(&text).with_context(|| {
            format!(
                "{} is damaged; remove {} to begin anew",
                path.display(),
                self.path().display()
            )
        })?;
        Ok(Some(plan))
    }

    /// Remembers the plan; called when the cluster has formed.
    pub(crate) fn remember(&self, plan: &Plan) -> anyhow::Result<()> {
        if self.name().is_none() {
            return Ok(());
        }
        let path = self.path().join(PLAN_FILE);
        let draft = path.with_extension("new");
        fs::write(&draft, serde_json::to_vec_pretty(plan)?)
            .and_then(|()| fs::rename(&draft, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes a temporary folder; without this it is removed too, but failures go unseen.
    pub(crate) fn close(&self) -> anyhow::Result<()> {
        if let Self::Temporary { folder, path, .. } = self
            && let Some(folder) = folder.borrow_mut().take()
        {
            folder
                .close()
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }
}

/// Takes a folder's lock; `None` when another process has it. It ends with the process.
fn lock(folder: &Path) -> anyhow::Result<Option<File>> {
    let path = folder.join(LOCK_FILE);
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// Removes temporary folders of demos that were killed. What cannot be removed is left to the next start.
fn remove_leftovers() {
    let own = nix::unistd::geteuid().as_raw();
    for entry in fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        let path = entry.path();
        let is_own = entry.file_name().to_string_lossy().starts_with(PREFIX)
            // Without the lock's file it may be one that is just being made.
            && path.join(LOCK_FILE).is_file()
            && fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir() && found.uid() == own);
        if is_own && let Ok(Some(_held)) = lock(&path) {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

fn data_home() -> anyhow::Result<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path: &PathBuf| path.is_absolute())
    };
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .context("neither XDG_DATA_HOME nor HOME is set: there is no place to keep data")
}

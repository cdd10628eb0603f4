//! The data directory: who may use it, and whether it is ours.
//!
//! ```text
//! LOCK      held with flock(2) as long as the store is open
//! FORMAT    "torc data, format 1\n"; written last when a directory is made
//! MARK      see mark.rs
//! db/       RocksDB
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::error::StorageError;
use crate::mark;
use crate::schema;

const LOCK: &str = "LOCK";
const FORMAT: &str = "FORMAT";
const DB: &str = "db";
const PREFIX: &str = "torc data, format ";

/// A locked data directory.
pub(crate) struct Place {
    path: PathBuf,
    /// Whether it was made by an earlier run.
    pub(crate) used: bool,
    // Dropped last among the store's parts: only then may another process begin.
    _lock: File,
}

impl Place {
    /// Locks the directory, making it when it is missing, and checks that it is empty or ours.
    pub(crate) fn enter(path: &Path) -> Result<Self, StorageError> {
        // It holds all values and the cluster's secret: nobody else's business.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(StorageError::io("create", path))?;
        // Looked at before our own LOCK is in it.
        let foreign = !path.join(LOCK).exists() && holds_anything(path)?;
        if foreign {
            return Err(StorageError::Foreign { path: path.into() });
        }
        let lock = lock(path)?;
        let used = match fs::read_to_string(path.join(FORMAT)) {
            Ok(text) => {
                check_format(path, &text)?;
                true
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(StorageError::io("read", path.join(FORMAT))(error)),
        };
        Ok(Self {
            path: path.into(),
            used,
            _lock: lock,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn db(&self) -> PathBuf {
        self.path.join(DB)
    }

    /// Whether RocksDB has been here, also when making the directory was cut short.
    pub(crate) fn has_db(&self) -> bool {
        self.db().join("CURRENT").exists()
    }

    /// Marks the directory as complete; everything in it must be durable before.
    pub(crate) fn complete(&self) -> Result<(), StorageError> {
        let (path, draft) = (self.path.join(FORMAT), self.path.join("FORMAT.new"));
        let write = || -> io::Result<()> {
            let mut file = File::create(&draft)?;
            writeln!(file, "{PREFIX}{}", schema::FORMAT)?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            File::open(&self.path)?.sync_all()?;
            // The directory's own entry, when it was made just now.
            match self.path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
                _ => Ok(()),
            }
        };
        write().map_err(StorageError::io("write", &path))
    }

    /// The error for a directory whose mark is gone.
    pub(crate) fn mark_missing(&self) -> StorageError {
        StorageError::Damaged {
            path: self.path.join(mark::FILE_NAME),
        }
    }
}

fn lock(path: &Path) -> Result<File, StorageError> {
    let file_path = path.join(LOCK);
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&file_path)
        .map_err(StorageError::io("create", &file_path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StorageError::Locked { path: path.into() }),
        Err(TryLockError::Error(error)) => Err(StorageError::io("lock", file_path)(error)),
    }
}

fn holds_anything(path: &Path) -> Result<bool, StorageError> {
    let entries = fs::read_dir(path).map_err(StorageError::io("list", path))?;
    // A disk of its own comes with this one.
    Ok(entries
        .flatten()
        .any(|entry| entry.file_name() != "lost+found"))
}

fn check_format(path: &Path, text: &str) -> Result<(), StorageError> {
    let found = text
        .trim_end()
        .strip_prefix(PREFIX)
        .and_then(|number| number.parse().ok());
    match found {
        Some(schema::FORMAT) => Ok(()),
        Some(found) => Err(StorageError::Format {
            path: path.into(),
            found,
            known: schema::FORMAT,
        }),
        None => Err(StorageError::Damaged {
            path: path.join(FORMAT),
        }),
    }
}

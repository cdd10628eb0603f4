//! How far an import is: a small file beside the export, replaced as a whole.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Error;

/// What a checkpoint says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Length of the export in bytes.
    pub bytes: u64,
    /// Bucket that is written to.
    pub bucket: String,
    /// How the export is read, in words: format, table, columns.
    pub reading: String,
    /// Records that are stored, from the beginning of the export.
    pub stored: u64,
    /// Checksum over these records, in their order.
    pub checksum: String,
}

impl Checkpoint {
    /// Reads it; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is no checkpoint.
    pub fn load(path: &Path) -> Result<Option<Self>, Error> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(file("read", path, source)),
        };
        let found = serde_json::from_slice(&text);
        found.map(Some).map_err(|error| Error::OtherImport {
            path: path.to_owned(),
            reason: format!("it cannot be understood: {error}"),
        })
    }

    /// Puts it in place of the one before, durably: what it says is stored must not be forgotten, and a
    /// crash must not leave half of it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let fresh = path.with_extension("new");
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        let written = File::create(&fresh)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&fresh, path));
        written.map_err(|source| file("write", path, source))
    }

    /// Whether it belongs to the same import as `other`, or what differs.
    ///
    /// # Errors
    /// Says what differs.
    pub fn check(&self, other: &Self, path: &Path) -> Result<(), Error> {
        let differs = [
            (self.bytes != other.bytes, "the export has another length"),
            (self.bucket != other.bucket, "it goes into another bucket"),
            (self.reading != other.reading, "it was read in another way"),
        ];
        match differs.iter().find(|(differs, _)| *differs) {
            None => Ok(()),
            Some((_, reason)) => Err(Error::OtherImport {
                path: path.to_owned(),
                reason: (*reason).to_owned(),
            }),
        }
    }
}

pub(crate) fn file(what: &'static str, path: &Path, source: io::Error) -> Error {
    let path = path.to_owned();
    Error::File { what, path, source }
}

//! The files of certificates and keys: read within a bound, written whole or not at all, looked at for who may
//! read them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tracing::warn;

use super::PkiError;

/// Greatest size of a certificate or key file in bytes.
const FILE_LEN_MAX: u64 = 1 << 20;

pub(super) fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(&read_file(path)?).map_err(|_| PkiError::Malformed {
        what: "certificate",
        path: path.to_owned(),
    })
}

pub(super) fn read_key_pair(path: &Path) -> Result<KeyPair, PkiError> {
    let malformed = || PkiError::Malformed {
        what: "private key",
        path: path.to_owned(),
    };
    let pem = String::from_utf8(read_file(path)?).map_err(|_| malformed())?;
    KeyPair::from_pem(&pem).map_err(|_| malformed())
}

pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, PkiError> {
    let failed = |source| PkiError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    };
    if fs::metadata(path).map_err(failed)?.len() > FILE_LEN_MAX {
        return Err(failed(io::Error::other(
            "the file is far too long for a certificate or key",
        )));
    }
    fs::read(path).map_err(failed)
}

/// Whole or not at all: written beside, synced, renamed.
pub(super) fn write_file(path: &Path, content: &str, mode: u32) -> Result<(), PkiError> {
    let beside = path.with_extension(format!("{:016x}.tmp", rand::random::<u64>()));
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&beside)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&beside);
        PkiError::Io {
            action: "write",
            path: path.to_owned(),
            source,
        }
    })
}

pub(super) fn make_dir(dir: &Path) -> Result<(), PkiError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| PkiError::Io {
            action: "make",
            path: dir.to_owned(),
            source,
        })
}

/// Held while files are made, so that several processes that start at once make one CA.
pub(super) fn lock(dir: &Path) -> Result<File, PkiError> {
    let path = dir.join(".lock");
    let open = || {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)?;
        file.lock()?;
        Ok(file)
    };
    open().map_err(|source| PkiError::Io {
        action: "lock",
        path: path.clone(),
        source,
    })
}

pub(super) fn check_own(path: &Path, forbidden: u32, wanted: u32) -> Result<(), PkiError> {
    let failed = |source| PkiError::Io {
        action: "look at",
        path: path.to_owned(),
        source,
    };
    let meta = fs::metadata(path).map_err(failed)?;
    // A process owns its own entry in /proc; there is no safe call for the user id in std.
    let own = fs::metadata("/proc/self").map_or(meta.uid(), |own| own.uid());
    let mode = meta.mode() & 0o777;
    if mode & forbidden != 0 || meta.uid() != own {
        return Err(PkiError::Unsafe {
            path: path.to_owned(),
            mode,
            uid: meta.uid(),
            wanted,
        });
    }
    Ok(())
}

pub(super) fn warn_if_readable(path: &Path) {
    if let Ok(meta) = fs::metadata(path)
        && meta.mode() & 0o007 != 0
    {
        warn!(path = %path.display(), "this private key can be read by everybody on this machine; chmod 600 it");
    }
}

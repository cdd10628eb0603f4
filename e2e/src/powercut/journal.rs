//! The journal that `shim/shim.c` writes, read back.

use std::fs;
use std::io;
use std::path::Path;

const MAGIC: u32 = 0x4c4f_4754;
const HEADER: usize = 40;

/// One change of a disk, or an fsync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Number of the change; of an fsync, that of the last change that it covers.
    pub number: u64,
    /// The file that it is about; 0 where it is about names.
    pub inode: u64,
    /// What happened.
    pub change: Change,
}

/// Paths begin with `/`, which is the root that is watched; the root itself is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // named after the system calls that make them
pub enum Change {
    Create { path: String },
    Write { offset: u64, data: Vec<u8> },
    Truncate { len: u64 },
    SyncFile,
    SyncFolder { path: String },
    Rename { from: String, to: String },
    Unlink { path: String },
    MakeFolder { path: String },
    RemoveFolder { path: String },
    Link { from: String, to: String },
}

/// The entries of a journal. A last one that is incomplete is left out: the process was killed while it
/// wrote it, before anybody could learn of the change.
///
/// # Errors
/// When the file cannot be read, or is no journal.
pub fn read(path: &Path) -> io::Result<Vec<Entry>> {
    let bytes = fs::read(path)?;
    let mut rest = bytes.as_slice();
    let mut entries = Vec::new();
    while let Some((header, after)) = rest.split_at_checked(HEADER) {
        let u32_at = |at: usize| u32::from_ne_bytes(array(header, at));
        let u64_at = |at: usize| u64::from_ne_bytes(array(header, at));
        let u16_at = |at: usize| u16::from_ne_bytes(array(header, at));
        if u32_at(0) != MAGIC {
            return Err(io::Error::other(format!(
                "no entry at byte {}",
                bytes.len() - rest.len()
            )));
        }
        let lengths = [
            u16_at(36) as usize,
            u16_at(38) as usize,
            u32_at(32) as usize,
        ];
        let Some((body, after)) = after.split_at_checked(lengths.iter().sum()) else {
            break;
        };
        rest = after;
        let (path, body) = body.split_at(lengths[0]);
        let (other, data) = body.split_at(lengths[1]);
        entries.push(Entry {
            number: u64_at(8),
            inode: u64_at(16),
            change: change(u32_at(4), u64_at(24), [path, other], data)?,
        });
    }
    Ok(entries)
}

fn array<const LEN: usize>(bytes: &[u8], at: usize) -> [u8; LEN] {
    let mut array = [0; LEN];
    array.copy_from_slice(&bytes[at..at + LEN]);
    array
}

fn change(kind: u32, offset: u64, paths: [&[u8]; 2], data: &[u8]) -> io::Result<Change> {
    let [path, other] = paths.map(tidy);
    Ok(match kind {
        1 => Change::Create { path },
        2 => Change::Write {
            offset,
            data: data.to_vec(),
        },
        3 => Change::Truncate { len: offset },
        4 => Change::SyncFile,
        5 => Change::SyncFolder { path },
        6 => Change::Rename {
            from: path,
            to: other,
        },
        7 => Change::Unlink { path },
        8 => Change::MakeFolder { path },
        9 => Change::RemoveFolder { path },
        10 => Change::Link {
            from: path,
            to: other,
        },
        _ => return Err(io::Error::other(format!("an entry of kind {kind}"))),
    })
}

/// A path without doubled or trailing slashes.
fn tidy(path: &[u8]) -> String {
    let path = String::from_utf8_lossy(path);
    path.split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .fold(String::new(), |path, part| path + "/" + part)
}

//! The mark: what was written and synced last, remembered outside RocksDB's log.
//!
//! A log that lost its end, or broke in the middle, looks to RocksDB like one whose last write was cut
//! short by a crash: it opens and goes on from there. The mark tells the two apart. It holds two sequence
//! numbers, `written` (the operating system has it) and `synced` (the disk has it), and the boot id of the
//! machine:
//!
//! - The same boot: the page cache lived on, so everything up to `written` must be there.
//! - Another boot: only what was synced must be; `written` says nothing.
//!
//! It costs a commit no fsync: after each group it is overwritten in place (64 bytes, page cache), which a
//! killed process cannot undo; a keeper syncs it every [`crate::keeper::TICK`]. So after a killed process
//! any loss is noticed, after a power cut any loss of what was synced more than that before the cut. What
//! the mark cannot notice: a loss within that window; a disk put back to an older state as a whole (that
//! is for the peers to notice, protocol section 4).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::error::StorageError;

pub(crate) const FILE_NAME: &str = "MARK";

const MAGIC: [u8; 8] = *b"torcmark";
const FORM: u8 = 1;
const SLOT_LEN: usize = 64;
/// Two slots, written in turn and far enough apart that no torn sector damages both.
const SLOT_DISTANCE: u64 = 4096;
const CLEAN: u8 = 1;
const SUSPECT: u8 = 2;

/// What a mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// Rises with each write of the mark.
    pub(crate) counter: u64,
    /// Last sequence number that the operating system has.
    pub(crate) written: u64,
    /// Last sequence number that the disk has.
    pub(crate) synced: u64,
    /// The machine's boot.
    pub(crate) boot: [u8; 16],
    /// Whether a group is answered only after an fsync.
    pub(crate) always_synced: bool,
    /// Whether the store was closed in order.
    pub(crate) clean: bool,
    /// Whether an earlier power cut may have cost acknowledged records, and nobody has dealt with it yet.
    pub(crate) suspect: bool,
}

impl State {
    /// Least sequence number that must be found now, when the machine's boot is `boot`.
    pub(crate) fn expected(&self, boot: [u8; 16]) -> u64 {
        if self.clean || self.boot == boot {
            self.written
        } else {
            self.synced
        }
    }

    /// Whether a power cut may have cost acknowledged records.
    pub(crate) fn is_dirty(&self, boot: [u8; 16]) -> bool {
        self.suspect || (!self.clean && !self.always_synced && self.boot != boot)
    }

    fn encode(&self) -> [u8; SLOT_LEN] {
        let mut out = [0; SLOT_LEN];
        out[..8].copy_from_slice(&MAGIC);
        out[8] = FORM;
        out[9] = u8::from(self.always_synced);
        out[10] = if self.clean { CLEAN } else { 0 } | if self.suspect { SUSPECT } else { 0 };
        out[16..24].copy_from_slice(&self.counter.to_be_bytes());
        out[24..32].copy_from_slice(&self.written.to_be_bytes());
        out[32..40].copy_from_slice(&self.synced.to_be_bytes());
        out[40..56].copy_from_slice(&self.boot);
        let sum = xxh3_64(&out[..56]);
        out[56..].copy_from_slice(&sum.to_be_bytes());
        out
    }

    fn decode(slot: &[u8; SLOT_LEN]) -> Option<Self> {
        let number = |at: usize| slot[at..at + 8].try_into().map(u64::from_be_bytes).ok();
        if slot[..8] != MAGIC || slot[8] != FORM || number(56)? != xxh3_64(&slot[..56]) {
            return None;
        }
        Some(Self {
            counter: number(16)?,
            written: number(24)?,
            synced: number(32)?,
            boot: slot[40..56].try_into().ok()?,
            always_synced: slot[9] != 0,
            clean: slot[10] & CLEAN != 0,
            suspect: slot[10] & SUSPECT != 0,
        })
    }
}

/// The open mark file.
pub(crate) struct Mark {
    file: Arc<File>,
    path: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    state: State,
    /// `synced` as far as the disk is known to have it.
    on_disk: u64,
}

/// What is asked of a mark that is written.
#[derive(Clone, Copy)]
pub(crate) enum Progress {
    /// A group went to the operating system.
    Written(u64),
    /// Everything up to here is on disk.
    Synced(u64),
}

impl Mark {
    /// What the last run left; `None` when there is no mark.
    pub(crate) fn read(directory: &Path) -> Result<Option<State>, StorageError> {
        let path = directory.join(FILE_NAME);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StorageError::io("open", path)(error)),
        };
        let slot = |number: u64| {
            let mut bytes = [0; SLOT_LEN];
            file.read_exact_at(&mut bytes, number * SLOT_DISTANCE)
                .ok()?;
            State::decode(&bytes)
        };
        match slot(0)
            .into_iter()
            .chain(slot(1))
            .max_by_key(|state| state.counter)
        {
            Some(state) => Ok(Some(state)),
            None => Err(StorageError::Damaged { path }),
        }
    }

    /// Writes `state` into both slots and syncs them: the start of a run, and the birth of a directory.
    pub(crate) fn begin(directory: &Path, mut state: State) -> Result<Self, StorageError> {
        let path = directory.join(FILE_NAME);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(StorageError::io("create", &path))?;
        for _ in 0..2 {
            state.counter += 1;
            write_slot(&file, &state).map_err(StorageError::io("write", &path))?;
            file.sync_all().map_err(StorageError::io("sync", &path))?;
        }
        let inner = Mutex::new(Inner {
            state,
            on_disk: state.synced,
        });
        Ok(Self {
            file: Arc::new(file),
            path,
            inner,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn state(&self) -> State {
        self.inner.lock().state
    }

    /// Notes progress; what is older than what the mark says already is ignored. No fsync.
    pub(crate) fn advance(&self, progress: Progress) -> std::io::Result<()> {
        let mut inner = self.inner.lock();
        let (written, synced) = match progress {
            Progress::Written(sequence) => (sequence, 0),
            Progress::Synced(sequence) => (sequence, sequence),
        };
        let mut state = inner.state;
        state.written = state.written.max(written);
        state.synced = state.synced.max(synced);
        if state == inner.state {
            return Ok(());
        }
        self.put(&mut inner, state)
    }

    /// Makes the mark itself durable, when what it says about the disk has changed since.
    pub(crate) fn sync(&self) -> std::io::Result<()> {
        let synced = {
            let inner = self.inner.lock();
            if inner.state.synced == inner.on_disk {
                return Ok(());
            }
            inner.state.synced
        };
        // Not under the lock: commits go on meanwhile.
        self.file.sync_data()?;
        let mut inner = self.inner.lock();
        inner.on_disk = inner.on_disk.max(synced);
        Ok(())
    }

    /// The last thing that is written on an orderly close: everything is synced.
    pub(crate) fn finish(&self) -> std::io::Result<()> {
        let mut inner = self.inner.lock();
        let mut state = inner.state;
        state.synced = state.written;
        state.clean = true;
        self.put(&mut inner, state)?;
        self.file.sync_all()
    }

    /// Forgets that records may have been lost.
    pub(crate) fn settle(&self) -> std::io::Result<()> {
        let mut inner = self.inner.lock();
        let state = State {
            suspect: false,
            ..inner.state
        };
        self.put(&mut inner, state)?;
        self.file.sync_all()
    }

    fn put(&self, inner: &mut Inner, mut state: State) -> std::io::Result<()> {
        state.counter += 1;
        write_slot(&self.file, &state)?;
        inner.state = state;
        Ok(())
    }
}

fn write_slot(file: &File, state: &State) -> std::io::Result<()> {
    file.write_all_at(&state.encode(), (state.counter % 2) * SLOT_DISTANCE)
}

/// Identity of the machine's present boot. Where the kernel does not tell, each call has another one: a
/// power cut is then assumed rather than overlooked.
pub(crate) fn boot_id() -> [u8; 16] {
    let path = "/proc/sys/kernel/random/boot_id";
    match std::fs::read(path) {
        Ok(text) if text.len() >= 32 => xxh3_128(text.trim_ascii()).to_be_bytes(),
        other => {
            tracing::warn!(path, error = ?other.err(), "the machine's boot id cannot be read; every restart counts as a power cut");
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default();
            now.as_nanos().to_be_bytes()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> State {
        State {
            counter: 0,
            written: 10,
            synced: 7,
            boot: [1; 16],
            always_synced: false,
            clean: false,
            suspect: false,
        }
    }

    #[test]
    fn a_mark_survives_and_only_rises() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Mark::read(dir.path()).unwrap(), None);
        let mark = Mark::begin(dir.path(), sample()).unwrap();
        mark.advance(Progress::Written(12)).unwrap();
        mark.advance(Progress::Synced(11)).unwrap();
        mark.advance(Progress::Written(3)).unwrap();
        mark.sync().unwrap();
        let read = Mark::read(dir.path()).unwrap().unwrap();
        assert_eq!((read.written, read.synced, read.clean), (12, 11, false));
        mark.finish().unwrap();
        let read = Mark::read(dir.path()).unwrap().unwrap();
        assert_eq!((read.written, read.synced, read.clean), (12, 12, true));
    }

    #[test]
    fn the_other_slot_serves_when_one_is_torn_and_both_torn_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let mark = Mark::begin(dir.path(), sample()).unwrap();
        mark.advance(Progress::Written(12)).unwrap();
        let newest = mark.state().counter % 2;
        mark.file
            .write_all_at(&[0xff; 8], newest * SLOT_DISTANCE + 20)
            .unwrap();
        assert_eq!(Mark::read(dir.path()).unwrap().unwrap().written, 10);
        mark.file
            .write_all_at(&[0xff; 8], (1 - newest) * SLOT_DISTANCE + 20)
            .unwrap();
        assert!(matches!(
            Mark::read(dir.path()),
            Err(StorageError::Damaged { .. })
        ));
    }

    #[test]
    fn what_must_be_there_depends_on_the_boot() {
        let state = sample();
        assert_eq!(
            (state.expected([1; 16]), state.is_dirty([1; 16])),
            (10, false)
        );
        assert_eq!(
            (state.expected([2; 16]), state.is_dirty([2; 16])),
            (7, true)
        );
        let synced = State {
            always_synced: true,
            ..state
        };
        assert!(!synced.is_dirty([2; 16]));
        let clean = State {
            clean: true,
            ..state
        };
        assert_eq!(
            (clean.expected([2; 16]), clean.is_dirty([2; 16])),
            (10, false)
        );
        assert!(
            State {
                suspect: true,
                ..clean
            }
            .is_dirty([1; 16])
        );
    }
}

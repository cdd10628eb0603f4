//! Room on the disk: what may still be written.
//!
//! The reserve is the main defence against a full disk: RocksDB that really runs out of room stops all
//! writes, votes and deletes too, until it has flushed again. So client writes are refused early.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;
use parking_lot::Mutex;
use torc_protocol::record::Kind;
use torc_protocol::store::{Batch, Write};

/// How long a measurement counts; bytes written meanwhile are subtracted from it.
const FRESH: Duration = Duration::from_millis(100);

/// What may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Room {
    /// Node state and deleted hints: what the protocol must not forget, and what frees room.
    State,
    /// Tombstones too.
    Deletes,
    /// Everything.
    All,
}

/// The least room that a batch needs; a batch is refused as a whole.
pub(crate) fn needs(batch: &Batch) -> Room {
    let each = |write: &Write| match write {
        Write::Merge { record, .. } if record.kind() == Kind::Tombstone => Room::Deletes,
        Write::Merge { .. } | Write::HintPut { .. } => Room::All,
        Write::Drop(_)
        | Write::Remove { .. }
        | Write::HintDelete { .. }
        | Write::StatePut { .. }
        | Write::StateDelete { .. } => Room::State,
    };
    batch.writes.iter().map(each).max().unwrap_or(Room::State)
}

/// Watches the free bytes of one file system.
pub(crate) struct Space {
    path: PathBuf,
    reserve: u64,
    sample: Mutex<Sample>,
}

struct Sample {
    at: Instant,
    free: u64,
    written_since: u64,
    /// Whether RocksDB itself ran out of room, and has not written since.
    refused: bool,
    /// What was logged last.
    full: bool,
}

impl Space {
    pub(crate) fn new(path: PathBuf, reserve: u64) -> Self {
        let sample = Sample {
            at: Instant::now(),
            free: u64::MAX,
            written_since: 0,
            refused: false,
            full: false,
        };
        let space = Self {
            path,
            reserve,
            sample: Mutex::new(sample),
        };
        let free = space.measure();
        space.sample.lock().free = free.unwrap_or(u64::MAX);
        space
    }

    /// What may be written now.
    pub(crate) fn room(&self) -> Room {
        let mut sample = self.sample.lock();
        if sample.at.elapsed() >= FRESH {
            self.refresh(&mut sample);
        }
        let free = sample.free.saturating_sub(sample.written_since);
        // Once full, only with some room to spare is it taken for free again: no flapping at the edge.
        let needed = if sample.full {
            self.reserve + self.reserve / 8
        } else {
            self.reserve
        };
        let room = match free {
            _ if free >= needed => Room::All,
            _ if free >= self.reserve / 4 => Room::Deletes,
            _ => Room::State,
        };
        self.log(&mut sample, free, room);
        room
    }

    /// Notes a group that was written.
    pub(crate) fn note_written(&self, bytes: u64) {
        let mut sample = self.sample.lock();
        sample.written_since += bytes;
        sample.refused = false;
    }

    /// Notes that RocksDB had no room for a group.
    pub(crate) fn note_refused(&self) {
        let mut sample = self.sample.lock();
        sample.refused = true;
        self.refresh(&mut sample);
        let free = sample.free;
        self.log(&mut sample, free, Room::State);
    }

    /// Free bytes, and whether client writes are refused for want of them.
    pub(crate) fn free_and_full(&self) -> (u64, bool) {
        let room = self.room();
        let sample = self.sample.lock();
        (sample.free, sample.refused || room != Room::All)
    }

    fn refresh(&self, sample: &mut Sample) {
        if let Some(free) = self.measure() {
            sample.free = free;
            sample.written_since = 0;
        }
        sample.at = Instant::now();
    }

    fn measure(&self) -> Option<u64> {
        match statvfs(&self.path) {
            // What ordinary users may use: the file system's own reserve is not ours.
            Ok(stat) => Some(stat.blocks_available() * stat.fragment_size()),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "free space cannot be measured");
                None
            }
        }
    }

    fn log(&self, sample: &mut Sample, free: u64, room: Room) {
        let full = sample.refused || room != Room::All;
        if full == sample.full {
            return;
        }
        sample.full = full;
        let path = self.path.display();
        if full {
            tracing::error!(%path, free, reserve = self.reserve, "disk is full: writes are refused, reads served; free some space or raise it, the node goes on by itself");
        } else {
            tracing::info!(%path, free, reserve = self.reserve, "disk has room again: writes are taken");
        }
    }
}

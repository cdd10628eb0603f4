//! How a store is opened.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Fatal, FatalStep};

/// When a batch counts as committed (protocol, section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// After an fsync of the log; one fsync serves all that wait.
    Fsync,
    /// When the operating system has it; the log is fsynced this often. A power cut may lose that much.
    Interval(Duration),
    /// When the operating system has it. Survives the death of the process, not of the machine.
    Os,
}

/// How a store is opened. Start from [`Options::new`].
#[derive(Clone)]
pub struct Options {
    /// The data directory; made when it is missing.
    pub path: PathBuf,
    /// When a batch counts as committed.
    pub durability: Durability,
    /// Bytes of blocks, indexes and filters that are kept in memory.
    pub block_cache: usize,
    /// Bytes of writes that are gathered in memory before a table is written from them, or up to a quarter
    /// less, by chance, so that replicas do not all flush at once; twice that and a little may be in use. At
    /// least 1 MiB.
    pub write_buffer: usize,
    /// Free bytes on the disk below which client writes are refused. Deletes go on down to a quarter of it,
    /// node state to the end. Should be several times [`Options::write_buffer`].
    pub reserve: u64,
    /// Greatest number of batches that may wait for the committer.
    pub queue_batches: usize,
    /// Greatest sum of their bytes; a batch that is larger by itself is taken when nothing else waits.
    pub queue_bytes: usize,
    /// Greatest number of bytes that one write gathers, unless a single batch has more.
    pub group_bytes: usize,
    /// Called once when a write or fsync has failed for another reason than a full disk. The default logs
    /// one line and aborts the process. When it returns, which is for tests, every further commit fails.
    pub on_fatal: Arc<dyn Fn(&Fatal) + Send + Sync>,
    /// For tests: asked before each step whether it is to fail, and how.
    pub inject: Option<Inject>,
}

/// Asked before each step that makes something durable; an error is taken as that step's outcome.
pub type Inject = Arc<dyn Fn(FatalStep) -> Option<std::io::Error> + Send + Sync>;

impl Options {
    /// The defaults: fsync, 128 MiB of cache, 32 MiB of write buffer, 512 MiB of reserve.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            durability: Durability::Fsync,
            block_cache: 128 << 20,
            write_buffer: 32 << 20,
            reserve: 512 << 20,
            queue_batches: 16_384,
            queue_bytes: 128 << 20,
            group_bytes: 4 << 20,
            on_fatal: Arc::new(end_process),
            inject: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("path", &self.path)
            .field("durability", &self.durability)
            .field("block_cache", &self.block_cache)
            .field("write_buffer", &self.write_buffer)
            .field("reserve", &self.reserve)
            .finish_non_exhaustive()
    }
}

fn end_process(fatal: &Fatal) {
    if tracing::dispatcher::has_been_set() {
        tracing::error!(path = %fatal.path.display(), "{fatal}");
    } else {
        eprintln!("torc: {fatal}");
    }
    std::process::abort();
}

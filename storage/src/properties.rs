//! What a store reports for metrics.

use std::sync::atomic::Ordering;

use rocksdb::properties as names;
use rocksdb::statistics::Ticker;

use crate::rocks::Inner;
use crate::schema::{FAMILIES, RECORDS};

/// A store's figures at one moment. Counters count from the opening of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// Bytes of write buffers, those that are being flushed included.
    pub memtable_bytes: u64,
    /// Bytes that compaction is estimated to have to rewrite.
    pub compaction_debt_bytes: u64,
    /// Whether writes are stopped or slowed down now, until flush or compaction catch up.
    pub stalled: bool,
    /// Microseconds that writes have waited for flush and compaction; counter.
    pub stall_us: u64,
    /// Blocks found in the cache; counter.
    pub block_cache_hits: u64,
    /// Blocks not found in the cache; counter.
    pub block_cache_misses: u64,
    /// Bytes in the block cache.
    pub block_cache_bytes: u64,
    /// Bytes of tables on disk, without the log.
    pub disk_bytes: u64,
    /// Free bytes of the file system, at most 100 ms old.
    pub free_bytes: u64,
    /// Whether client writes are refused for want of room.
    pub disk_full: bool,
    /// Estimated number of records, tombstones included.
    pub records: u64,
    /// Whether RocksDB refuses writes because it met corrupt data.
    pub corrupt: bool,
}

impl Properties {
    pub(crate) fn of(inner: &Inner) -> Self {
        let of_family = |name: &rocksdb::properties::PropName, family: &str| {
            inner
                .db
                .property_int_value_cf(inner.family(family), name)
                .ok()
                .flatten()
                .unwrap_or(0)
        };
        let sum = |name| FAMILIES.iter().map(|family| of_family(name, family)).sum();
        let (free_bytes, disk_full) = inner.space.free_and_full();
        Self {
            memtable_bytes: sum(names::SIZE_ALL_MEM_TABLES),
            compaction_debt_bytes: sum(names::ESTIMATE_PENDING_COMPACTION_BYTES),
            stalled: of_family(names::IS_WRITE_STOPPED, RECORDS) > 0
                || of_family(names::ACTUAL_DELAYED_WRITE_RATE, RECORDS) > 0,
            stall_us: inner.rocks.get_ticker_count(Ticker::StallMicros),
            block_cache_hits: inner.rocks.get_ticker_count(Ticker::BlockCacheHit),
            block_cache_misses: inner.rocks.get_ticker_count(Ticker::BlockCacheMiss),
            block_cache_bytes: inner.cache.get_usage() as u64,
            disk_bytes: sum(names::TOTAL_SST_FILES_SIZE),
            free_bytes,
            disk_full,
            records: of_family(names::ESTIMATE_NUM_KEYS, RECORDS),
            corrupt: inner.corrupt.load(Ordering::Acquire),
        }
    }
}

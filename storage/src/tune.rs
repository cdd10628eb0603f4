//! RocksDB's options, each with its reason.

use std::hash::{BuildHasher as _, RandomState};

use rocksdb::statistics::StatsLevel;
use rocksdb::{
    BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, LogLevel, Options as Rocks,
};

use crate::merge;
use crate::options::Options;
use crate::schema::{CHANGES, HINTS, RECORDS};

/// Successive merge operands of a key in the write buffer, from which on they are folded into one value:
/// bounds what a read of a hot key has to merge. Only done when all operands are in memory.
const SUCCESSIVE_MERGES_MAX: usize = 16;
/// Write buffer of the families that see few bytes.
const SMALL_BUFFER: usize = 1 << 20;
/// Tables of level 0 that start a compaction (RocksDB's default, named because sizes follow from it).
const LEVEL0_TABLES: u64 = 4;
const LOG_FILE_BYTES: usize = 4 << 20;

/// Without locks, so that readers of many threads do not meet in it (measured: 10 % of a cached read).
pub(crate) fn cache(options: &Options) -> Cache {
    Cache::new_hyper_clock_cache(options.block_cache, 0)
}

pub(crate) fn database() -> Rocks {
    let mut rocks = Rocks::default();
    rocks.create_if_missing(true);
    rocks.create_missing_column_families(true);
    // Any error while writing tables or log stops writes instead of being overlooked.
    rocks.set_paranoid_checks(true);
    // Overwriting blocks that exist already makes an fsync about twice as fast as appending.
    rocks.set_recycle_log_file_num(4);
    // The only strict mode that recycled logs allow: replay ends at the first record that is torn or does
    // not follow its predecessor. Whether it ended too early is for the mark to say.
    rocks.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    // Not pipelined and not unordered (the defaults, pinned because a promise rests on them): a write
    // becomes readable only after it is in the log, and synced if it asked for it. Source: WriteImpl in
    // db_impl_write.cc 11.8, WriteGroupToWAL, then InsertInto, then SetLastSequence, by which readers go.
    rocks.set_enable_pipelined_write(false);
    rocks.set_unordered_write(false);
    // There is one writer; folding of successive merges does not go together with concurrent ones.
    rocks.set_allow_concurrent_memtable_write(false);
    rocks.set_enable_write_thread_adaptive_yield(false);
    // All families together: wherever a crash hits, none of them is ahead of the others; and after a flush
    // no family keeps an old log alive.
    rocks.set_atomic_flush(true);
    rocks.set_max_background_jobs(2);
    rocks.set_bytes_per_sync(1 << 20);
    rocks.set_max_log_file_size(LOG_FILE_BYTES);
    rocks.set_keep_log_file_num(4);
    rocks.set_log_level(LogLevel::Info);
    rocks.set_stats_dump_period_sec(0);
    rocks.set_stats_persist_period_sec(0);
    rocks.enable_statistics();
    // Counters without timers: the clock is what makes statistics dear.
    rocks.set_statistics_level(StatsLevel::ExceptHistogramOrTimers);
    rocks
}

/// Options of one column family.
pub(crate) fn family(name: &str, options: &Options, cache: &Cache) -> Rocks {
    let mut rocks = Rocks::default();
    rocks.set_block_based_table_factory(&tables(cache));
    rocks.set_compression_type(DBCompressionType::Lz4);
    match name {
        RECORDS => {
            rocks.set_write_buffer_size(staggered(options.write_buffer).max(SMALL_BUFFER));
            rocks.set_merge_operator(merge::NAME, merge::full_merge, merge::full_merge);
            rocks.set_max_successive_merges(SUCCESSIVE_MERGES_MAX);
            // A read of a key that is in a table does not search the write buffer first.
            rocks.set_memtable_whole_key_filtering(true);
            rocks.set_memtable_prefix_bloom_ratio(0.05);
            // Level 1 as large as a full level 0: a compaction rewrites no more than needed, and needs no
            // more room than a few write buffers.
            let buffer = options.write_buffer.max(SMALL_BUFFER) as u64;
            rocks.set_target_file_size_base(buffer);
            rocks.set_max_bytes_for_level_base(LEVEL0_TABLES * buffer);
        }
        HINTS => {
            rocks.set_write_buffer_size((options.write_buffer / 4).max(SMALL_BUFFER));
            // A queue: replay starts where everything is deleted. Tables full of deletions go first.
            rocks.add_compact_on_deletion_collector_factory(1024, 256, 0.25);
        }
        CHANGES => {
            rocks.set_write_buffer_size((options.write_buffer / 8).max(SMALL_BUFFER));
            // A queue, too.
            rocks.add_compact_on_deletion_collector_factory(1024, 256, 0.25);
        }
        _ => rocks.set_write_buffer_size(SMALL_BUFFER),
    }
    rocks
}

/// That many bytes or up to a quarter less, by chance. Replicas take the same writes: with buffers of one
/// size they would all flush, and compact, in the same moment, and no quorum could do without the slow ones.
fn staggered(buffer: usize) -> usize {
    // Differs from process to process; nothing else is asked of it.
    let chance = RandomState::new().hash_one(0) % 256;
    buffer - buffer / 1024 * chance as usize
}

fn tables(cache: &Cache) -> BlockBasedOptions {
    let mut tables = BlockBasedOptions::default();
    tables.set_block_cache(cache);
    tables.set_block_size(8 << 10);
    tables.set_format_version(6);
    // A key that is not there costs no read.
    tables.set_bloom_filter(10.0, false);
    tables.set_whole_key_filtering(true);
    tables.set_optimize_filters_for_memory(true);
    // Index and filters count against the cache: memory has a bound, however large the data are.
    tables.set_cache_index_and_filter_blocks(true);
    tables.set_cache_index_and_filter_blocks_with_high_priority(true);
    tables.set_pin_l0_filter_and_index_blocks_in_cache(true);
    tables
}

//! The import itself: store, remember, read back.

use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::io::BufReader;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use torc_client::{BATCH_OPERATIONS_MAX, BatchOp, BatchReply, Client};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

use crate::checkpoint::file;
use crate::{Checkpoint, Columns, Error, Format, Reader, Record};

/// Bytes of keys and values after which a batch is sent, though it could hold more records.
const BATCH_BYTES: usize = 2 << 20;
/// Pauses between tries of a batch that the cluster does not take.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What is to be imported.
#[derive(Clone, Debug)]
pub struct Import {
    /// The export.
    pub export: PathBuf,
    /// How it is written.
    pub format: Format,
    /// Where key and value are.
    pub columns: Columns,
    /// Bucket to write to.
    pub bucket: String,
    /// Where the progress is kept.
    pub checkpoint: PathBuf,
    /// Store nothing, only compare.
    pub verify_only: bool,
    /// How long one batch is tried while the cluster is away or has no quorum.
    pub patience: Duration,
}

/// Where records go. Implemented by [`Client`].
pub trait Store {
    /// Does all of the operations; answers in their order.
    fn batch(
        &self,
        bucket: &str,
        operations: &[BatchOp],
    ) -> impl Future<Output = Result<Vec<BatchReply>, torc_client::Error>> + Send;
}

impl Store for Client {
    async fn batch(
        &self,
        bucket: &str,
        operations: &[BatchOp],
    ) -> Result<Vec<BatchReply>, torc_client::Error> {
        Self::batch(self, bucket, operations).await
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many records were stored by an earlier run.
    Resumed(u64),
    /// So many records are stored.
    Stored(u64),
    /// So many of so many keys were read back.
    Verified(u64, u64),
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Records of the export.
    pub records: u64,
    /// Different keys among them; of several records of a key the last one counts.
    pub keys: u64,
    /// Keys that the cluster holds with the value of the export.
    pub equal: u64,
    /// Keys that it does not hold.
    pub missing: u64,
    /// Keys that it holds with another value.
    pub different: u64,
    /// The first few keys that are missing or different, as text.
    pub examples: Vec<String>,
    /// Checksum over keys and values of the export, whatever their order.
    pub checksum_export: String,
    /// The same over what was read back.
    pub checksum_cluster: String,
}

impl Summary {
    /// Whether both sides hold the same.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.equal == self.keys && self.checksum_export == self.checksum_cluster
    }
}

/// Checksum of the value of each key, by checksum of the key: 32 bytes a key and the map's own room.
type Values = HashMap<u128, u64>;

/// Stores the records that are not stored yet, then reads every key back.
///
/// # Errors
/// When export or checkpoint cannot be read or do not fit each other, when the cluster refuses a record, or
/// does not take them for `patience`.
pub async fn run(
    import: &Import,
    store: &impl Store,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, Error> {
    let mut summary = Summary::default();
    let values = copy(import, store, progress, &mut summary).await?;
    verify(import, store, progress, (values, &mut summary)).await?;
    Ok(summary)
}

fn open(import: &Import) -> Result<Reader<BufReader<File>>, Error> {
    let export =
        File::open(&import.export).map_err(|source| file("open", &import.export, source))?;
    Reader::new(
        BufReader::with_capacity(256 << 10, export),
        import.format,
        &import.columns,
    )
}

fn fresh_checkpoint(import: &Import) -> Result<Checkpoint, Error> {
    let metadata = std::fs::metadata(&import.export);
    let bytes = metadata
        .map_err(|source| file("open", &import.export, source))?
        .len();
    let Columns { table, key, value } = &import.columns;
    Ok(Checkpoint {
        bytes,
        bucket: import.bucket.clone(),
        reading: format!("{} table={table} key={key} value={value}", import.format),
        stored: 0,
        checksum: text(0),
    })
}

async fn copy(
    import: &Import,
    store: &impl Store,
    progress: &mut dyn FnMut(Progress),
    summary: &mut Summary,
) -> Result<Values, Error> {
    let mut reader = open(import)?;
    let mut now = fresh_checkpoint(import)?;
    let before = match Checkpoint::load(&import.checkpoint)? {
        Some(found) if !import.verify_only => {
            found.check(&now, &import.checkpoint)?;
            progress(Progress::Resumed(found.stored));
            Some(found)
        }
        _ => None,
    };
    let stored_before = before.as_ref().map_or(0, |before| before.stored);
    let mut values = Values::new();
    let mut checksum = 0;
    let mut batch: Vec<BatchOp> = Vec::new();
    let mut bytes = 0;
    loop {
        let record = reader.next_record()?;
        let is_end = record.is_none();
        if let Some(record) = record {
            summary.records += 1;
            checksum = rolled(checksum, &record);
            values.insert(xxh3_128(&record.key), digest(&record.value));
            if summary.records > stored_before && !import.verify_only {
                bytes += record.key.len() + record.value.len();
                batch.push(BatchOp::Put {
                    key: record.key.into(),
                    value: record.value.into(),
                });
            } else if summary.records == stored_before
                && before
                    .as_ref()
                    .is_some_and(|b| b.checksum != text(checksum))
            {
                return Err(Error::OtherImport {
                    path: import.checkpoint.clone(),
                    reason: "the export's records that are stored have changed".to_owned(),
                });
            }
        }
        let is_full = batch.len() == BATCH_OPERATIONS_MAX || bytes >= BATCH_BYTES;
        if !batch.is_empty() && (is_full || is_end) {
            let first = summary.records - batch.len() as u64 + 1;
            done(store, import, &batch, first).await?;
            (now.stored, now.checksum) = (summary.records, text(checksum));
            now.save(&import.checkpoint)?;
            progress(Progress::Stored(summary.records));
            batch.clear();
            bytes = 0;
        }
        if is_end {
            summary.keys = values.len() as u64;
            return Ok(values);
        }
    }
}

async fn verify(
    import: &Import,
    store: &impl Store,
    progress: &mut dyn FnMut(Progress),
    (mut values, summary): (Values, &mut Summary),
) -> Result<(), Error> {
    let mut reader = open(import)?;
    let mut sums = (0_u64, 0_u64);
    let mut asked: Vec<(Bytes, u128, u64)> = Vec::new();
    let (mut bytes, mut number) = (0, 0);
    loop {
        let record = reader.next_record()?;
        let is_end = record.is_none();
        if let Some(record) = record {
            number += 1;
            let hash = xxh3_128(&record.key);
            // Each key is asked for once, wherever it stands first.
            if let Some(expected) = values.remove(&hash) {
                bytes += record.key.len() + record.value.len();
                asked.push((record.key.into(), hash, expected));
            }
        }
        let is_full = asked.len() == BATCH_OPERATIONS_MAX || bytes >= BATCH_BYTES;
        if !asked.is_empty() && (is_full || is_end) {
            let gets = asked
                .iter()
                .map(|(key, ..)| BatchOp::Get { key: key.clone() });
            let gets: Vec<BatchOp> = gets.collect();
            let replies = done(store, import, &gets, number).await?;
            for ((key, hash, expected), reply) in asked.drain(..).zip(replies) {
                sums.0 = sums.0.wrapping_add(pair(hash, expected));
                let found = reply.value().filter(|_| reply.status == 200);
                let Some(found) = found.map(|value| digest(&value)) else {
                    summary.missing += 1;
                    example(summary, &key);
                    continue;
                };
                sums.1 = sums.1.wrapping_add(pair(hash, found));
                if found == expected {
                    summary.equal += 1;
                } else {
                    summary.different += 1;
                    example(summary, &key);
                }
            }
            bytes = 0;
            let read = summary.equal + summary.missing + summary.different;
            progress(Progress::Verified(read, summary.keys));
        }
        if is_end {
            summary.checksum_export = text(sums.0);
            summary.checksum_cluster = text(sums.1);
            return Ok(());
        }
    }
}

fn example(summary: &mut Summary, key: &[u8]) {
    const EXAMPLES_MAX: usize = 10;
    if summary.examples.len() < EXAMPLES_MAX {
        let key = String::from_utf8_lossy(key).into_owned();
        summary.examples.push(key);
    }
}

/// Has a batch done, those operations again that the cluster could not do at the moment. `first` is the
/// number of the first record, for messages.
async fn done(
    store: &impl Store,
    import: &Import,
    operations: &[BatchOp],
    first: u64,
) -> Result<Vec<BatchReply>, Error> {
    let mut replies: Vec<Option<BatchReply>> = vec![None; operations.len()];
    let mut pause = PAUSE_MIN;
    let mut last = None;
    let began = Instant::now();
    loop {
        let open: Vec<usize> = (0..operations.len())
            .filter(|&at| replies[at].is_none())
            .collect();
        let again: Vec<BatchOp> = open.iter().map(|&at| operations[at].clone()).collect();
        match store.batch(&import.bucket, &again).await {
            Err(error) if error.is_clusters_fault() => last = Some(error),
            Err(source) => {
                return Err(Error::Unavailable {
                    record: first,
                    stored: first - 1,
                    source: Some(Box::new(source)),
                });
            }
            Ok(answers) => {
                for (&at, reply) in open.iter().zip(answers) {
                    match reply.status {
                        200..=299 | 404 => replies[at] = Some(reply),
                        // Shed, or no quorum: for now.
                        429 | 503 => {}
                        status => {
                            let detail = reply.more.get("detail").and_then(|d| d.as_str());
                            return Err(Error::Refused {
                                record: first + at as u64,
                                status,
                                detail: detail.unwrap_or("no reason given").to_owned(),
                            });
                        }
                    }
                }
            }
        }
        if replies.iter().all(Option::is_some) {
            return Ok(replies.into_iter().flatten().collect());
        }
        if began.elapsed() >= import.patience {
            return Err(Error::Unavailable {
                record: first,
                stored: first - 1,
                source: last.map(Box::new),
            });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn digest(bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, 0)
}

/// Of a key and its value. Sums of it do not depend on order.
fn pair(key: u128, value: u64) -> u64 {
    let mut bytes = [0; 24];
    bytes[..16].copy_from_slice(&key.to_le_bytes());
    bytes[16..].copy_from_slice(&value.to_le_bytes());
    digest(&bytes)
}

/// Over all records so far, in their order.
fn rolled(before: u64, record: &Record) -> u64 {
    xxh3_64_with_seed(&record.value, xxh3_64_with_seed(&record.key, before))
}

fn text(checksum: u64) -> String {
    format!("{checksum:016x}")
}

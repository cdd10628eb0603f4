//! The change feed: notes of changes, written in the batch that makes the change durable, and told to the
//! topic exchange `torc.changes` until the broker has confirmed each.
//!
//! Which replica notes and tells what is the core's to say (`torc_protocol::changes`). Bounded: beyond
//! `queue.changes_max` waiting notes a change is not noted; how many were left out is counted, logged, and
//! told as a gap once there is room again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::join_all;
use lapin::BasicProperties;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use torc_protocol::changes::{self, Change, Duty, Lane};
use torc_protocol::context::etag;
use torc_protocol::hlc::SHARDS_MAX;
use torc_protocol::shard_io::View;
use torc_protocol::store::{Batch, CommitId, StateKey, Sync, Write};
use torc_storage::{Committer, StorageError, Store};
use tracing::{debug, error, warn};

use super::broker::CHANGES;
use super::queue::{PublishError, Queue};
use crate::handle::Handle;

/// Notes that are told, or looked through, at a time.
const PAGE: usize = 256;
/// For the broker to confirm one page.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at the notes that wait for other owners.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// After a failure.
const PAUSE: Duration = Duration::from_millis(500);
/// Greatest length of a routing key in bytes, as AMQP has it.
const ROUTING_MAX: usize = 255;
/// Index under which the committer knows the feed, above those of shards and cluster machine: nobody waits
/// for its outcomes.
pub const COMMIT_INDEX: usize = SHARDS_MAX;

/// The notes of a node.
#[derive(Debug)]
pub struct Outbox {
    limit: u64,
    lanes: [LaneBook; 2],
    /// Changes that were not noted.
    dropped: AtomicU64,
    noted: Notify,
    /// Held while notes are numbered and handed to the committer, so that they become visible in the order
    /// of their numbers: whoever tells of one has seen all before it.
    order: Mutex<()>,
}

#[derive(Debug, Default)]
struct LaneBook {
    next: AtomicU64,
    waiting: AtomicU64,
}

impl LaneBook {
    fn forget(&self, count: u64) {
        let less = |waiting: u64| Some(waiting.saturating_sub(count));
        let _ = self
            .waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

impl Outbox {
    /// Counts what waits from an earlier life. May block.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn open(store: &Store, limit: u64) -> Result<Self, StorageError> {
        let outbox = Self {
            limit,
            lanes: Default::default(),
            dropped: AtomicU64::new(0),
            noted: Notify::new(),
            order: Mutex::new(()),
        };
        for lane in [Lane::First, Lane::Later] {
            let total = store.count_changes(lane)?;
            let book = outbox.lane(lane);
            book.next.store(total.last + 1, Ordering::Relaxed);
            book.waiting.store(total.count, Ordering::Relaxed);
        }
        Ok(outbox)
    }

    fn lane(&self, lane: Lane) -> &LaneBook {
        match lane {
            Lane::First => &self.lanes[0],
            Lane::Later => &self.lanes[1],
        }
    }

    /// Notes that wait to be told by this node, and in case another one dies.
    #[must_use]
    pub fn waiting(&self) -> (u64, u64) {
        let count = |lane| self.lane(lane).waiting.load(Ordering::Relaxed);
        (count(Lane::First), count(Lane::Later))
    }

    /// Hands a batch to the committer together with the notes of the changes that it makes; the caller has
    /// it committed.
    ///
    /// # Errors
    /// As [`Committer::submit_quietly`].
    pub fn submit(
        &self,
        (view, handle): (Option<&View>, &Handle),
        committer: &Committer,
        (index, id): (usize, CommitId),
        mut batch: Batch,
    ) -> Result<(), (CommitId, Batch)> {
        let _in_order = self.order.lock();
        if let Some(view) = view {
            self.note(view, handle, &mut batch);
        }
        committer.submit_quietly(index, id, batch)
    }

    fn note(&self, view: &View, handle: &Handle, batch: &mut Batch) {
        let (node, now_micros, metrics) = (handle.node(), handle.now().wall.0, handle.metrics());
        let mut notes = Vec::new();
        for write in &batch.writes {
            let Write::Merge { key, record } = write else {
                continue;
            };
            let Some(lane) = changes::lane(view, node, key) else {
                continue;
            };
            let book = self.lane(lane);
            if book.waiting.fetch_add(1, Ordering::Relaxed) >= self.limit {
                book.forget(1);
                metrics.on_change("dropped", 1);
                // Each power of two is worth a line; all of them would be a flood.
                if lane == Lane::First
                    && (self.dropped.fetch_add(1, Ordering::Relaxed) + 1).is_power_of_two()
                {
                    let dropped = self.dropped.load(Ordering::Relaxed);
                    warn!(
                        limit = self.limit,
                        dropped, "changes are not noted for the feed: too many wait for the broker"
                    );
                }
                continue;
            }
            let number = book.next.fetch_add(1, Ordering::Relaxed);
            notes.push(Write::StatePut {
                key: StateKey::Change(lane, number),
                value: Change::of(key, record, now_micros).encode(),
            });
        }
        if !notes.is_empty() {
            batch.writes.extend(notes);
            self.noted.notify_one();
        }
    }
}

/// Tells what is noted, until `stopping`.
pub async fn tell(
    (handle, queue, outbox): (Handle, Arc<Queue>, Arc<Outbox>),
    (store, committer): (Store, Committer),
    mut stopping: watch::Receiver<bool>,
) {
    let mut teller = Teller {
        handle,
        queue,
        outbox,
        store,
        committer,
        told_until: [None; 2],
        gaps_told: 0,
    };
    let telling = async {
        loop {
            teller.queue.wait_connected().await;
            match teller.turn().await {
                Ok(()) => {
                    // One page may have been all, or new notes have come: look again soon either way.
                    let _ = tokio::time::timeout(SWEEP_EVERY, teller.outbox.noted.notified()).await;
                }
                Err(TellError::Publish(error)) => {
                    debug!(%error, "changes are told later");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(TellError::Storage) => tokio::time::sleep(PAUSE * 10).await,
            }
        }
    };
    tokio::select! {
        _ = stopping.wait_for(|stop| *stop) => {}
        () = telling => {}
    }
}

struct Teller {
    handle: Handle,
    queue: Arc<Queue>,
    outbox: Arc<Outbox>,
    store: Store,
    committer: Committer,
    /// The last number of each lane whose note was done with; its removal may still be on its way to disk.
    told_until: [Option<u64>; 2],
    gaps_told: u64,
}

enum TellError {
    Publish(PublishError),
    Storage,
}

impl Teller {
    async fn turn(&mut self) -> Result<(), TellError> {
        while self.page(Lane::First).await? == PAGE {}
        self.tell_gap().await?;
        while self.page(Lane::Later).await? == PAGE {}
        Ok(())
    }

    /// Deals with the next notes of a lane; answers how many it has done with.
    async fn page(&mut self, lane: Lane) -> Result<usize, TellError> {
        let at = usize::from(lane == Lane::Later);
        let (store, after) = (self.store.clone(), self.told_until[at]);
        let found = tokio::task::spawn_blocking(move || store.changes(lane, after, PAGE)).await;
        let notes = match found {
            Ok(Ok(notes)) => notes,
            Ok(Err(error)) => {
                error!(%error, "notes of changes cannot be read; the feed stands still");
                return Err(TellError::Storage);
            }
            Err(_) => return Err(TellError::Storage),
        };
        if notes.is_empty() {
            // Notes whose batch was not committed were counted all the same.
            self.outbox.lane(lane).forget(u64::MAX);
        }
        let Some(view) = self.handle.view() else {
            return Ok(0);
        };
        let dead = self.handle.state().dead;
        let now = self.handle.now().wall.0;
        let (mut done, mut tell) = (Vec::new(), Vec::new());
        for (number, note) in notes {
            let Some(change) = Change::parse(&note) else {
                error!(
                    number,
                    "a note of a change cannot be understood and is left out"
                );
                done.push(number);
                continue;
            };
            let node = self.handle.node();
            match changes::duty(&view, node, (lane, &change), (now, &dead)) {
                Duty::Tell => tell.push(change),
                Duty::Forget => {}
                // Notes lie in the order in which they came: the later ones are younger still.
                Duty::Keep => break,
            }
            done.push(number);
        }
        self.publish(&view, &tell).await?;
        self.handle.metrics().on_change("told", tell.len() as u64);
        self.remove(lane, &done)?;
        Ok(done.len())
    }

    async fn publish(&self, view: &View, changes: &[Change]) -> Result<(), TellError> {
        let told = changes.iter().filter_map(|change| event_of(view, change));
        let sent = told.map(|event| async move {
            let properties = BasicProperties::default()
                .with_content_type("application/json".into())
                .with_message_id(event.id.into())
                .with_timestamp(event.seconds);
            self.queue
                .publish((CHANGES, &event.routing), &event.body, properties, PATIENCE)
                .await
        });
        for outcome in join_all(sent).await {
            outcome.map_err(TellError::Publish)?;
        }
        Ok(())
    }

    fn remove(&mut self, lane: Lane, done: &[u64]) -> Result<(), TellError> {
        let Some(&last) = done.last() else {
            return Ok(());
        };
        let writes = done.iter().map(|&number| Write::StateDelete {
            key: StateKey::Change(lane, number),
        });
        let batch = Batch {
            writes: writes.collect(),
            sync: Sync::Policy,
        };
        // What is told twice after a crash is no harm.
        if self
            .committer
            .submit(COMMIT_INDEX, CommitId(0), batch)
            .is_err()
        {
            return Err(TellError::Storage);
        }
        self.told_until[usize::from(lane == Lane::Later)] = Some(last);
        self.outbox.lane(lane).forget(done.len() as u64);
        Ok(())
    }

    /// Says that changes were left out, once there is room again.
    async fn tell_gap(&mut self) -> Result<(), TellError> {
        let dropped = self.outbox.dropped.load(Ordering::Relaxed);
        if dropped == self.gaps_told {
            return Ok(());
        }
        let name = &self.handle.settings().name;
        let left_out = dropped - self.gaps_told;
        let body = json!({"op": "gap", "node": name, "dropped": left_out}).to_string();
        let properties = BasicProperties::default().with_content_type("application/json".into());
        self.queue
            .publish((CHANGES, "torc.gap"), body.as_bytes(), properties, PATIENCE)
            .await
            .map_err(TellError::Publish)?;
        self.gaps_told = dropped;
        Ok(())
    }
}

struct Event {
    routing: String,
    id: String,
    seconds: u64,
    body: Vec<u8>,
}

/// What is told of a change; `None` when its bucket is gone.
fn event_of(view: &View, change: &Change) -> Option<Event> {
    let bucket = view.config.bucket_by_id(change.key.bucket)?;
    let etag = etag(change.digest);
    let mut told = json!({
        "op": if change.deleted { "delete" } else { "put" },
        "bucket": bucket.name,
        "etag": etag,
        "version": change.digest.version.to_string(),
        "time_us": change.digest.version.hlc.micros(),
    });
    put_key(&mut told, &change.key.key);
    if !change.deleted {
        told["length"] = json!(change.value_len);
    }
    if change.expiry > 0 {
        told["expires_us"] = json!(change.expiry);
    }
    Some(Event {
        routing: routing_key(&bucket.name, &change.key.key),
        id: etag.trim_matches('"').to_owned(),
        seconds: change.digest.version.hlc.micros() / 1_000_000,
        body: told.to_string().into_bytes(),
    })
}

fn put_key(told: &mut Value, key: &Bytes) {
    if let Ok(text) = std::str::from_utf8(key) {
        told["key"] = json!(text);
    } else {
        told["key"] = json!(STANDARD.encode(key));
        told["encoding"] = json!("base64");
    }
}

/// `bucket.key`; bytes that are no UTF-8 are replaced, and what AMQP has no room for is cut off: the body
/// has the whole key.
fn routing_key(bucket: &str, key: &[u8]) -> String {
    let mut routing = format!("{bucket}.{}", String::from_utf8_lossy(key));
    while routing.len() > ROUTING_MAX {
        routing.pop();
    }
    routing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_routing_key_fits_into_its_255_bytes() {
        assert_eq!(routing_key("default", b"a.b/c"), "default.a.b/c");
        assert_eq!(routing_key("b", b"\xff"), "b.\u{fffd}");
        let long = routing_key("default", "ü".repeat(512).as_bytes());
        assert!(long.len() <= ROUTING_MAX && long.ends_with('ü'), "{long}");
    }
}

//! What shards take over from the node's last life: hash trees, floors and closes.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use torc_protocol::shard::Shard;
use torc_protocol::store::{Batch, CommitId, StateKey, Sync, Write};
use torc_ring::{BucketId, PartitionId};
use torc_storage::{Committer, States, StorageError, Store};
use tracing::warn;

use super::NodeError;
use crate::cluster_task::ClusterMail;
use crate::config::Settings;

/// The hash trees that the last life wrote down when it stopped. They are deleted before this life writes
/// anything: if it ends without stopping, they are built anew.
pub(super) async fn take_trees(
    store: &Store,
    settings: &Settings,
    (committer, results): (&Committer, &mut mpsc::UnboundedReceiver<ClusterMail>),
) -> Result<Vec<(BucketId, PartitionId, Bytes)>, NodeError> {
    // A tree that cannot be read is built anew like one that is not there.
    let Ok(found) = store.states(States::Tree) else {
        warn!("the stored hash trees cannot be read; they are built anew");
        return Ok(Vec::new());
    };
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let writes = found
        .iter()
        .map(|&(key, _)| Write::StateDelete { key })
        .collect();
    let batch = Batch {
        writes,
        sync: Sync::Fsync,
    };
    // Nothing else commits yet: the only result that can come is this one's.
    let failed = StorageError::TreesStay;
    if committer
        .submit(settings.shards, CommitId(0), batch)
        .is_err()
    {
        return Err(failed.into());
    }
    match tokio::time::timeout(Duration::from_secs(30), results.recv()).await {
        Ok(Some(ClusterMail::Committed(results))) if results.iter().all(|(_, r)| r.is_ok()) => {}
        _ => return Err(failed.into()),
    }
    let trees = found.into_iter().filter_map(|(key, bytes)| match key {
        StateKey::Tree(bucket, partition) => Some((bucket, partition, bytes)),
        _ => None,
    });
    Ok(trees.collect())
}

/// Hands both to a shard before anything happens.
pub(super) fn restore(
    shard: &mut Shard,
    trees: &[(BucketId, PartitionId, Bytes)],
    floors: &[(StateKey, Bytes)],
) {
    for (key, mark) in floors {
        if let StateKey::Floor(bucket, partition) = key {
            shard.restore_floor(*bucket, *partition, mark);
        }
    }
    for (bucket, partition, bytes) in trees {
        shard.restore_tree(*bucket, *partition, bytes.clone());
    }
}

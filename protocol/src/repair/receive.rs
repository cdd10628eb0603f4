//! What a session reads of this copy, and how it stores what another owner has.

use bytes::Bytes;
use torc_ring::{BucketId, ConflictMode, NodeId, PartitionId};

use super::{Cx, Storing, Then, diff};
use crate::core::Step;
use crate::hlc::Hlc;
use crate::message::RecordKey;
use crate::record::{KEY_LEN_MAX, Kind, Record};
use crate::store::{Sync, Write};
use crate::sync_message::{Root, SyncEntry};
use crate::trees;

impl Cx<'_> {
    pub(super) fn mode(&self, bucket: BucketId) -> Option<ConflictMode> {
        let view = self.core.view.as_ref()?;
        view.config
            .bucket_by_id(bucket)
            .map(|bucket| bucket.conflict)
    }

    /// Whether this node owns the partition of that bucket, in either ring.
    pub(super) fn owns(&self, bucket: BucketId, partition: PartitionId) -> bool {
        let view = self.core.view.as_ref();
        view.is_some_and(|view| view.keeps(self.core.node(), bucket, partition))
    }

    /// The root of a tree, with what the other side must know of the copy.
    pub(super) fn root(&self, tree: trees::TreeId) -> Option<Root> {
        let mut root = self.core.trees.root(tree)?;
        root.floor = self.core.floors.floor(tree);
        root.whole = !self.covering.contains(&tree) && !self.core.floors.is_rebuilding(tree);
        Some(root)
    }

    /// What was read, without what is dead by the floor.
    pub(super) fn entries(
        &self,
        tree: trees::TreeId,
        found: Vec<(RecordKey, Record)>,
    ) -> Vec<SyncEntry> {
        let alive =
            |(_, record): &(RecordKey, Record)| !self.core.floors.is_dead(tree, record.dead_at());
        found.into_iter().filter(alive).map(entry).collect()
    }

    pub(super) fn may_store(&self) -> bool {
        !self.core.closing
    }

    /// Merges records that another owner has. They are fsynced, except in a transfer, which asks for one
    /// fsync at its end, so that clients' writes do not wait for one fsync a page. [`Step::Done`] when they are
    /// not of this partition or may not be stored now; nothing is stored then.
    pub(super) fn store(
        &mut self,
        ((bucket, partition, from), floor): ((BucketId, PartitionId, NodeId), Hlc),
        transfer: bool,
        entries: Vec<SyncEntry>,
        then: Then,
    ) -> Step {
        let bits = self.core.partition_bits();
        let siblings = self.mode(bucket) == Some(ConflictMode::Siblings);
        let sound = entries.iter().all(|entry| {
            entry.at.token.partition(bits) == partition
                && is_key(&entry.at.key.0)
                && (entry.record.kind() == Kind::Siblings) == siblings
        });
        if !sound || !self.may_store() {
            return Step::Done;
        }
        let bytes: usize = entries.iter().map(SyncEntry::weight).sum();
        let mut keys = Vec::with_capacity(entries.len());
        let mut writes = Vec::with_capacity(entries.len());
        let tree = (bucket, partition);
        for SyncEntry { at, record } in entries {
            let key = diff::record_key(bucket, &at);
            if !self.core.takes(tree, record.version(), floor) {
                continue;
            }
            self.core.floors.touch(tree, &key, &record);
            self.replica.foresee(&key, record.version());
            keys.push((key.clone(), record.digest()));
            writes.push(Write::Merge { key, record });
        }
        let sync = if transfer { Sync::Policy } else { Sync::Fsync };
        let id = self.core.commit_all(writes, sync);
        self.shared.commits.insert(
            id,
            Storing {
                ring: self.core.ring_version(),
                from,
                keys,
                bytes: bytes as u64,
                transfer,
                then,
            },
        );
        Step::Wait
    }
}

pub(super) fn is_key(key: &Bytes) -> bool {
    !key.is_empty() && key.len() <= KEY_LEN_MAX
}

pub(super) fn entry((key, record): (RecordKey, Record)) -> SyncEntry {
    SyncEntry {
        at: diff::cursor(key.token, key.key),
        record,
    }
}

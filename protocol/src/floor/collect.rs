//! Drops from disk what is dead by the floor, page by page, and counts what will be dead one day.
//!
//! Invariant: a key is dropped only when nothing was written to it since a barrier that lies before the
//! reading that found it dead: so nothing newer is dropped with it.

use bytes::Bytes;
use torc_ring::Token;

use super::Ages;
use super::keeper::{Keeper, Pending};
use crate::core::Core;
use crate::hlc::Hlc;
use crate::message::{Cursor, RecordKey};
use crate::shard_io::Event;
use crate::store::{Found, Query, ReadId, StoreError, Sync, Write};
use crate::sync_message::DIGESTS_MAX;
use crate::trees::{self, TreeId};
use crate::wire::Blob;

/// Partitions that may wait for their collection.
const WAITING_MAX: usize = 4_096;

/// One partition's records, looked at in order.
#[derive(Debug)]
pub(super) struct Collect {
    tree: TreeId,
    reading: Option<ReadId>,
    after: Option<(Token, Bytes)>,
    ended: bool,
    earliest: Option<Hlc>,
    ages: Ages,
}

impl Collect {
    pub(super) fn reads(&self, id: ReadId) -> bool {
        self.reading == Some(id)
    }
}

impl Keeper {
    pub(super) fn want_collection(&mut self, tree: TreeId) {
        if !self.uncollected.contains(&tree) && self.uncollected.len() < WAITING_MAX {
            self.uncollected.push_back(tree);
        }
    }

    /// Gives up a collection of that partition.
    pub(super) fn drop_collection(&mut self, core: &mut Core, tree: TreeId) {
        if self.collect.as_ref().is_some_and(|c| c.tree == tree) {
            self.collect = None;
            core.floors.unwatch(tree);
            core.floors.uncounted(tree);
            self.want_collection(tree);
        }
    }

    pub(super) fn begin_collection(&mut self, core: &mut Core) {
        if self.collect.is_some() {
            self.read_page(core);
            return;
        }
        let Some(tree) = self.uncollected.pop_front() else {
            return;
        };
        let view = core.view.as_ref();
        if !view.is_some_and(|view| view.keeps(core.node(), tree.0, tree.1)) {
            return;
        }
        if core.floors.is_rebuilding(tree) {
            // Its end asks for it again.
            return;
        }
        if self.is_rising(core, tree) {
            self.want_collection(tree);
            return;
        }
        core.floors.watch(tree);
        core.floors.begin_count(tree);
        self.collect = Some(Collect {
            tree,
            reading: None,
            after: None,
            ended: false,
            earliest: None,
            ages: Ages::default(),
        });
        // The barrier: what was written before is on disk when the mark is.
        let id = core.store_mark(tree);
        self.pending.insert(id, Pending::CollectBarrier(tree));
    }

    pub(super) fn collect_on(&mut self, core: &mut Core, tree: TreeId, ok: bool) {
        if self.collect.as_ref().is_none_or(|c| c.tree != tree) {
            return;
        }
        if ok {
            self.read_page(core);
        } else {
            self.drop_collection(core, tree);
        }
    }

    fn read_page(&mut self, core: &mut Core) {
        let Some(collect) = &mut self.collect else {
            return;
        };
        let waits = self
            .pending
            .values()
            .any(|pending| matches!(pending, Pending::CollectBarrier(_) | Pending::Remove(..)));
        if waits || collect.reading.is_some() || self.budget.wait(core.now.mono) > 0 {
            return;
        }
        let bits = core.partition_bits();
        let (bucket, partition) = collect.tree;
        let id = core.read(Query::Digests {
            bucket,
            first: partition.first_token(bits),
            last: partition.last_token(bits),
            after: collect.after.clone(),
            limit: DIGESTS_MAX,
        });
        collect.reading = Some(id);
    }

    pub(super) fn on_collected(&mut self, core: &mut Core, result: Result<Found, StoreError>) {
        let Some(collect) = &mut self.collect else {
            return;
        };
        collect.reading = None;
        let tree = collect.tree;
        let (
            Ok(Found::Digests {
                entries,
                reached,
                bytes,
            }),
            Some(touched),
        ) = (result, core.floors.touched(tree))
        else {
            self.drop_collection(core, tree);
            return;
        };
        self.budget.take(bytes, core.now.mono);
        let mut keys = Vec::new();
        for entry in entries {
            let Some(dead_at) = entry.dead_at else {
                continue;
            };
            let at = Cursor {
                token: entry.token,
                key: Blob(entry.key.clone()),
            };
            if core.floors.is_dead(tree, Some(dead_at)) && !touched.contains_key(&at) {
                keys.push(RecordKey {
                    bucket: tree.0,
                    token: entry.token,
                    key: entry.key,
                });
            } else {
                collect.ages.add(dead_at, 1);
                let earliest = collect.earliest.unwrap_or(dead_at);
                collect.earliest = Some(earliest.min(dead_at));
            }
        }
        collect.ended = reached.is_none();
        collect.after = reached;
        if keys.is_empty() {
            self.next_page(core);
            return;
        }
        let writes = keys.iter().cloned().map(|key| Write::Remove { key });
        let id = core.commit_all(writes.collect(), Sync::Policy);
        self.pending.insert(id, Pending::Remove(tree, keys));
    }

    pub(super) fn on_removed(
        &mut self,
        core: &mut Core,
        tree: TreeId,
        keys: &[RecordKey],
        ok: bool,
    ) {
        for key in keys {
            trees::wrote(core, key);
        }
        if ok {
            core.event(Event::Collected {
                count: keys.len() as u64,
            });
        }
        if self.collect.as_ref().is_none_or(|c| c.tree != tree) {
            return;
        }
        if ok {
            self.next_page(core);
        } else {
            self.drop_collection(core, tree);
        }
    }

    fn next_page(&mut self, core: &mut Core) {
        if self.collect.as_ref().is_some_and(|collect| !collect.ended) {
            self.read_page(core);
            return;
        }
        let Some(collect) = self.collect.take() else {
            return;
        };
        let Collect {
            tree,
            earliest,
            ages,
            ..
        } = collect;
        core.floors.unwatch(tree);
        core.floors.counted(tree, earliest, &ages);
    }
}

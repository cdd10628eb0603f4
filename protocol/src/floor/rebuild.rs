//! An owner that missed a raise: compares its whole copy with that of one owner that did not, merging
//! everything and discarding nothing; then, in one durable step, it raises its floor and drops every version
//! up to it which the other one does not hold.
//!
//! Until that step it announces its old floor, and takes versions up to the new one only from owners that
//! have it. Keys that are written to meanwhile under later versions stay.
//! Bound: [`DOOMED_MAX`] keys to be dropped; where there are more, the copy stays as it is, and says so.

use torc_ring::NodeId;

use super::keeper::{Keeper, Pending, REBUILDS_MAX};
use super::{Doom, Wanted, Why};
use crate::core::Core;
use crate::hlc::Hlc;
use crate::message::RecordKey;
use crate::mutant::Mutant;
use crate::shard_io::Event;
use crate::store::Write;
use crate::time::SECOND;
use crate::trees::{self, TreeId};

/// Keys that one rebuild may drop.
pub(crate) const DOOMED_MAX: usize = 262_144;
/// After a failed rebuild it is tried again after so long, in microseconds.
const PAUSE: u64 = SECOND;

#[derive(Debug)]
pub(super) struct Rebuild {
    floor: Hlc,
    peer: NodeId,
}

impl Keeper {
    pub(super) fn begin_rebuilds(&mut self, core: &mut Core) {
        let now = core.now.mono;
        self.pauses.retain(|_, until| *until > now);
        for (tree, (floor, peer)) in core.floors.behind() {
            if self.rebuilds.len() >= REBUILDS_MAX {
                return;
            }
            let busy = self.rebuilds.contains_key(&tree)
                || self.pauses.contains_key(&tree)
                || self.inherits.contains_key(&tree)
                || core.floors.covering.contains(&tree)
                || self
                    .pending
                    .values()
                    .any(|pending| pending.tree() == Some(tree));
            let keeps = |node| {
                let view = core.view.as_ref();
                view.is_some_and(|view| view.keeps(node, tree.0, tree.1))
            };
            // Whoever may have lost records is nobody's source of absence.
            let recovers = |node| {
                let view = core.view.as_ref();
                view.is_some_and(|view| view.config.recovers(node))
            };
            if !keeps(core.node()) || !keeps(peer) || recovers(peer) {
                core.floors.unhear(tree);
                continue;
            }
            if busy || core.dead.contains(&peer) {
                continue;
            }
            self.begin_rebuild(core, tree, (floor, peer));
        }
    }

    fn begin_rebuild(&mut self, core: &mut Core, tree: TreeId, (floor, peer): (Hlc, NodeId)) {
        self.drop_collection(core, tree);
        core.floors.begin_rebuild(tree, floor);
        if core.has(Mutant::RebuildRaisesFirst) {
            core.floors.raise(tree, floor);
        }
        self.rebuilds.insert(tree, Rebuild { floor, peer });
        let id = core.store_mark(tree);
        self.pending.insert(id, Pending::Barrier(tree));
    }

    /// Everything that was taken before the rebuild began is on disk.
    pub(super) fn on_barrier(&mut self, core: &mut Core, tree: TreeId, ok: bool) {
        let Some(&Rebuild { floor, peer }) = self.rebuilds.get(&tree) else {
            return;
        };
        if !ok {
            self.fail_rebuild(core, tree, "storage");
            return;
        }
        let why = Why::Rebuild(floor);
        core.floors.wanted.push_back(Wanted { why, tree, peer });
    }

    /// The comparison is over.
    pub(super) fn on_session(
        &mut self,
        core: &mut Core,
        tree: TreeId,
        floor: Hlc,
        found: Option<Doom>,
    ) {
        if self.rebuilds.get(&tree).is_none_or(|r| r.floor != floor) {
            return;
        }
        let Some(doom) = found else {
            // Whoever had that floor may have lost it since: who has one says so again.
            core.floors.unhear(tree);
            self.fail_rebuild(core, tree, "session");
            return;
        };
        let Some(touched) = core.floors.touched(tree) else {
            self.fail_rebuild(core, tree, "busy");
            return;
        };
        let (mut writes, mut keys) = (Vec::new(), Vec::new());
        for (at, doomed) in doom {
            match touched.get(&at) {
                // Something newer has taken its place.
                Some(&version) if version > floor => continue,
                Some(_) => {
                    self.fail_rebuild(core, tree, "busy");
                    return;
                }
                None => {}
            }
            let key = RecordKey {
                bucket: tree.0,
                token: at.token,
                key: at.key.0,
            };
            keys.push(key.clone());
            writes.push(Write::Remove { key: key.clone() });
            if let Some(record) = doomed.instead {
                writes.push(Write::Merge { key, record });
            }
        }
        let mut mark = core.floors.mark(tree);
        mark.floor = mark.floor.max(floor);
        let id = core.store_mark_as(tree, mark, writes);
        self.pending.insert(id, Pending::Rebuild(tree, floor, keys));
    }

    pub(super) fn on_rebuilt(
        &mut self,
        core: &mut Core,
        (tree, floor): (TreeId, Hlc),
        keys: &[RecordKey],
        ok: bool,
    ) {
        for key in keys {
            trees::wrote(core, key);
        }
        let ours = self.rebuilds.get(&tree).is_some_and(|r| r.floor == floor);
        if !ok {
            if ours {
                self.fail_rebuild(core, tree, "storage");
            }
            return;
        }
        // What was dropped is gone: the floor that says so holds, also when the ring has changed meanwhile.
        let view = core.view.as_ref();
        if view.is_some_and(|view| view.keeps(core.node(), tree.0, tree.1)) {
            core.floors.raise(tree, floor);
        }
        if ours {
            self.end_rebuild(core, tree);
        }
        core.event(Event::Rebuilt {
            partition: tree.1,
            dropped: keys.len() as u64,
        });
        self.want_collection(tree);
    }

    fn fail_rebuild(&mut self, core: &mut Core, tree: TreeId, reason: &'static str) {
        self.end_rebuild(core, tree);
        let wait = PAUSE + self.rng.between(0, PAUSE);
        self.pauses.insert(tree, core.now.mono.plus(wait));
        core.event(Event::RebuildFailed {
            partition: tree.1,
            reason,
        });
    }

    pub(super) fn end_rebuild(&mut self, core: &mut Core, tree: TreeId) {
        self.rebuilds.remove(&tree);
        core.floors.end_rebuild(tree);
    }
}

//! The answering side of a raise: what an owner, or any member, confirms.

use std::collections::BTreeSet;

use torc_ring::{NodeId, RingVersion};

use super::keeper::{Keeper, Pending};
use super::{Wanted, Why};
use crate::core::Core;
use crate::floor_message::{FloorAnswer, FloorBody, FloorRefusal};
use crate::hints::Hints;
use crate::hlc::Hlc;
use crate::message::OpId;
use crate::mutant::Mutant;
use crate::shard_io::Event;
use crate::store::{Found, HINT_SLOTS, Query, StoreError};
use crate::trees::TreeId;

/// Times that a comparison is tried before a raise is given up.
const TRIES: u32 = 6;
/// Hints that are looked at in one go.
const HINTS_AT_ONCE: usize = 256;

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asker {
    pub(super) node: NodeId,
    pub(super) op: OpId,
    pub(super) ring: RingVersion,
    pub(super) tree: TreeId,
}

impl Asker {
    pub(super) fn answer(self, core: &mut Core, answer: FloorAnswer) {
        let what = (self.op, self.tree);
        Keeper::send(core, self.node, what, FloorBody::Answer(answer));
    }

    pub(super) fn refuse(self, core: &mut Core, refusal: FloorRefusal) {
        self.answer(core, FloorAnswer::Refused(refusal));
    }
}

/// Comparisons with the owners of greater ids.
#[derive(Debug)]
pub(super) struct Compare {
    asker: Asker,
    left: BTreeSet<NodeId>,
    /// Failed, to be tried again.
    again: BTreeSet<NodeId>,
    tries: u32,
}

/// A look at the hints of a partition, target by target.
#[derive(Debug)]
pub(super) struct Scan {
    asker: Asker,
    to: Hlc,
    slot: u8,
    target: NodeId,
    after: u64,
    targets: Vec<NodeId>,
}

/// Whether an owner can take part in a raise that starts from `floor`.
fn fit(core: &Core, tree: TreeId, floor: Hlc) -> Result<(), FloorRefusal> {
    if core.steady_owners(tree).is_none() {
        Err(FloorRefusal::NotOwner)
    } else if core.floors.is_rebuilding(tree) || !core.clock_is_fit() {
        Err(FloorRefusal::NotReady)
    } else if core.floors.floor(tree) != floor {
        Err(FloorRefusal::Uneven)
    } else {
        Ok(())
    }
}

impl Keeper {
    pub(super) fn on_limit(core: &mut Core, asker: Asker) {
        // Uneven floors are the leader's to see: the answer carries this one.
        let floor = core.floors.floor(asker.tree);
        match fit(core, asker.tree, floor) {
            Ok(()) => {
                let upto = core.limit();
                asker.answer(core, FloorAnswer::Limit { upto });
            }
            Err(refusal) => asker.refuse(core, refusal),
        }
    }

    /// Promises durably to take no counted hint up to `to`, and looks whether it holds any.
    pub(super) fn on_confirm(&mut self, core: &mut Core, asker: Asker, to: Hlc) {
        if self.is_asked(asker) {
            return;
        }
        if self.is_rising(core, asker.tree) {
            asker.refuse(core, FloorRefusal::NotReady);
            return;
        }
        core.floors.promise(asker.tree, to);
        let id = core.store_mark(asker.tree);
        self.pending.insert(id, Pending::Promise(asker, to));
    }

    /// The same question again, while it is being answered.
    fn is_asked(&self, asker: Asker) -> bool {
        self.scans.values().any(|scan| scan.asker == asker)
            || self.pending.values().any(|pending| match pending {
                Pending::Promise(other, _) | Pending::Close(other) | Pending::Raise(other, _) => {
                    *other == asker
                }
                _ => false,
            })
    }

    /// Hints that were taken before the promise are on disk by now.
    pub(super) fn scan_hints(&mut self, core: &mut Core, hints: &Hints, asker: Asker, to: Hlc) {
        let slot = (asker.tree.1.0 % u16::from(HINT_SLOTS)) as u8;
        let mut targets = hints.targets_of(slot);
        if core.has(Mutant::FloorSkipsHints) {
            targets.clear();
        }
        let Some(target) = targets.pop() else {
            asker.answer(core, FloorAnswer::Done);
            return;
        };
        let scan = Scan {
            asker,
            to,
            slot,
            target,
            after: 0,
            targets,
        };
        self.scan(core, scan);
    }

    fn scan(&mut self, core: &mut Core, scan: Scan) {
        let id = core.read(Query::Hints {
            target: scan.target,
            slot: scan.slot,
            after: scan.after,
            limit: HINTS_AT_ONCE,
        });
        self.scans.insert(id, scan);
    }

    pub(super) fn on_scanned(
        &mut self,
        core: &mut Core,
        mut scan: Scan,
        result: &Result<Found, StoreError>,
    ) {
        let Ok(Found::Hints(found)) = result else {
            scan.asker.refuse(core, FloorRefusal::Failed);
            return;
        };
        // One that cannot be read may be of any partition.
        let held = found.iter().any(|(_, hint)| {
            hint.as_ref().is_none_or(|hint| {
                hint.counted
                    && hint.record.version().hlc <= scan.to
                    && core.tree_of(&hint.key) == scan.asker.tree
            })
        });
        if held {
            scan.asker.refuse(core, FloorRefusal::Hints);
            return;
        }
        match (found.last(), scan.targets.pop()) {
            (Some((at, _)), next) => {
                // The disk may stop early: only an empty answer is the end.
                scan.targets.extend(next);
                scan.after = at.seq;
                self.scan(core, scan);
            }
            (None, Some(target)) => {
                (scan.target, scan.after) = (target, 0);
                self.scan(core, scan);
            }
            (None, None) => scan.asker.answer(core, FloorAnswer::Done),
        }
    }

    /// From now on versions up to `to` come from other owners only. What was admitted before is on its way to
    /// disk before the mark, and so committed or refused when the mark is.
    pub(super) fn on_close(&mut self, core: &mut Core, asker: Asker, floor: Hlc, to: Hlc) {
        if self.is_asked(asker) {
            return;
        }
        let young = to > core.limit();
        match fit(core, asker.tree, floor) {
            Ok(()) if young => asker.refuse(core, FloorRefusal::TooYoung),
            Ok(()) if self.is_rising(core, asker.tree) => {
                asker.refuse(core, FloorRefusal::NotReady);
            }
            Ok(()) => {
                core.floors.close(asker.tree, to);
                let id = core.store_mark(asker.tree);
                self.pending.insert(id, Pending::Close(asker));
            }
            Err(refusal) => asker.refuse(core, refusal),
        }
    }

    pub(super) fn on_compare(&mut self, core: &mut Core, asker: Asker, floor: Hlc, to: Hlc) {
        if self
            .compares
            .get(&asker.tree)
            .is_some_and(|c| c.asker == asker)
        {
            return;
        }
        if let Err(refusal) = fit(core, asker.tree, floor) {
            asker.refuse(core, refusal);
            return;
        }
        let closed = core.floors.mark(asker.tree).close >= to;
        if !closed && !core.has(Mutant::FloorBeforeCloses) {
            asker.refuse(core, FloorRefusal::NotReady);
            return;
        }
        let node = core.node();
        let owners = core.steady_owners(asker.tree).unwrap_or_default();
        let left: BTreeSet<NodeId> = owners.iter().copied().filter(|&o| o > node).collect();
        for &peer in &left {
            let wanted = Wanted {
                why: Why::Raise,
                tree: asker.tree,
                peer,
            };
            core.floors.wanted.push_back(wanted);
        }
        let compare = Compare {
            asker,
            left,
            again: BTreeSet::new(),
            tries: 0,
        };
        self.compares.insert(asker.tree, compare);
        self.end_compare(core, asker.tree);
    }

    /// A session of a raise is over.
    pub(super) fn on_compared(&mut self, core: &mut Core, wanted: Wanted, ok: bool) {
        let Some(compare) = self.compares.get_mut(&wanted.tree) else {
            return;
        };
        if ok {
            compare.left.remove(&wanted.peer);
        } else {
            compare.tries += 1;
            compare.again.insert(wanted.peer);
        }
        self.end_compare(core, wanted.tree);
    }

    fn end_compare(&mut self, core: &mut Core, tree: TreeId) {
        let Some(compare) = self.compares.get(&tree) else {
            return;
        };
        let asker = compare.asker;
        if compare.left.is_empty() {
            self.compares.remove(&tree);
            asker.answer(core, FloorAnswer::Done);
        } else if compare.tries >= TRIES {
            self.compares.remove(&tree);
            asker.refuse(core, FloorRefusal::Failed);
        }
    }

    /// Failed comparisons are tried again.
    pub(super) fn compare_again(&mut self, core: &mut Core) {
        for (&tree, compare) in &mut self.compares {
            for peer in std::mem::take(&mut compare.again) {
                let why = Why::Raise;
                core.floors.wanted.push_back(Wanted { why, tree, peer });
            }
        }
    }

    pub(super) fn on_raise(&mut self, core: &mut Core, asker: Asker, floor: Hlc, to: Hlc) {
        if core.floors.floor(asker.tree) >= to {
            asker.answer(core, FloorAnswer::Done);
            return;
        }
        if self.is_asked(asker) {
            return;
        }
        // The leader may have raised its own floor already.
        let from = if floor == to {
            core.floors.floor(asker.tree)
        } else {
            floor
        };
        if let Err(refusal) = fit(core, asker.tree, from) {
            asker.refuse(core, refusal);
            return;
        }
        let mut mark = core.floors.mark(asker.tree);
        let closed = mark.close >= to || core.has(Mutant::FloorBeforeCloses);
        if !closed || self.is_rising(core, asker.tree) {
            asker.refuse(core, FloorRefusal::NotReady);
            return;
        }
        mark.floor = to;
        mark.close = mark.close.max(to);
        let id = core.store_mark_as(asker.tree, mark, Vec::new());
        self.pending.insert(id, Pending::Raise(asker, to));
    }

    /// The floor is on disk: from here on what is dead by it is not there any more.
    pub(super) fn on_raised(&mut self, core: &mut Core, asker: Asker, to: Hlc, ok: bool) {
        // A node that has lost the partition meanwhile has no floor, and has written so after this.
        let view = core.view.as_ref();
        let owns = view.is_some_and(|view| view.keeps(core.node(), asker.tree.0, asker.tree.1));
        if !ok || !owns {
            asker.refuse(core, FloorRefusal::Failed);
            return;
        }
        core.floors.raise(asker.tree, to);
        core.event(Event::FloorRaised {
            partition: asker.tree.1,
            floor_micros: to.micros(),
        });
        self.want_collection(asker.tree);
        asker.answer(core, FloorAnswer::Done);
    }
}

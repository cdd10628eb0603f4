//! A new owner takes over how far the owners before it have closed the partition, before its first write; and
//! so does a node that can stand in for owners from now on, before its first counted hint.
//!
//! A write that a majority of the current owners refused by their close could else be acknowledged by new
//! owners that know nothing of it, and be dropped when they take over the floor. A stand-in that was not a
//! member, or none, when a floor was raised has promised nothing; its own clock says nothing about that of
//! those who closed.
//! Invariant: every owner has closed before a floor rises, and whoever becomes an owner takes that over, so
//! that any of them knows. A new owner asks a majority all the same, which nothing may depend on; a stand-in is
//! needed when owners are down, and asks one.

use std::collections::{BTreeMap, BTreeSet};

use torc_ring::NodeId;

use super::keeper::{Keeper, Pending};
use super::owner::Asker;
use crate::core::Core;
use crate::floor_message::{FloorAnswer, FloorAsk, FloorBody};
use crate::hlc::Hlc;
use crate::message::OpId;
use crate::mutant::Mutant;
use crate::time::{Mono, SECOND};
use crate::trees::TreeId;

/// A question is repeated after so long, in microseconds.
const ASK_EVERY: u64 = SECOND / 4;
/// Partitions whose owners are asked because of a counted hint, at a time.
const INHERITS_MAX: usize = 4_096;
/// Questions that may wait for this node to apply their ring version; others are asked again.
const EARLY_MAX: usize = 4_096;

#[derive(Debug)]
pub(super) struct Inherit {
    pub(super) op: OpId,
    owners: Vec<NodeId>,
    /// So many of them have to say it.
    need: usize,
    told: BTreeSet<NodeId>,
    close: Hlc,
    ask_at: Mono,
    storing: bool,
}

impl Keeper {
    /// In a joint phase: asks about every partition that this node gains.
    pub(super) fn begin_inheriting(&mut self, core: &mut Core) {
        let Some(view) = core.view.clone() else {
            return;
        };
        let node = core.node();
        let mut gained = BTreeMap::new();
        for tree in core.own_trees() {
            let Some(bucket) = view.config.bucket_by_id(tree.0) else {
                continue;
            };
            let owners = view.ring.owners_of(bucket, tree.1);
            if owners.target.is_some() && !owners.current.contains(&node) {
                gained.insert(tree, owners.current.to_vec());
            }
        }
        core.floors.inherit_only(gained.keys().copied().collect());
        for (tree, owners) in gained {
            let need = owners.len() / 2 + 1;
            self.begin_inherit(core, tree, (owners, need));
        }
    }

    fn begin_inherit(
        &mut self,
        core: &mut Core,
        tree: TreeId,
        (owners, need): (Vec<NodeId>, usize),
    ) {
        let inherit = Inherit {
            op: core.new_op(),
            owners,
            need,
            told: BTreeSet::new(),
            close: Hlc(0),
            ask_at: core.now.mono,
            storing: false,
        };
        self.inherits.insert(tree, inherit);
        self.ask_owners(core, tree);
    }

    /// Somebody wants this node to stand in for an owner, and it does not know yet how far they have closed.
    pub(crate) fn ask_role(&mut self, core: &mut Core, tree: TreeId) {
        if self.inherits.contains_key(&tree) || self.inherits.len() >= INHERITS_MAX {
            return;
        }
        let Some(view) = core.view.clone() else {
            return;
        };
        let Some(bucket) = view.config.bucket_by_id(tree.0) else {
            return;
        };
        let owners = view.ring.owners_of(bucket, tree.1).current.to_vec();
        self.begin_inherit(core, tree, (owners, 1));
    }

    /// Says how far this node has closed: under this ring version no raise of an older one closes any more.
    pub(super) fn on_inherit(&mut self, core: &mut Core, asker: Asker) {
        if asker.ring > core.ring_version() && self.early.len() < EARLY_MAX {
            self.early.push(asker);
        } else if asker.ring == core.ring_version() {
            let upto = core.floors.mark(asker.tree).close;
            asker.answer(core, FloorAnswer::Closed { upto });
        }
    }

    fn ask_owners(&mut self, core: &mut Core, tree: TreeId) {
        let Some(inherit) = self.inherits.get_mut(&tree) else {
            return;
        };
        inherit.ask_at = core.now.mono.plus(ASK_EVERY);
        let op = inherit.op;
        let silent: Vec<NodeId> = inherit
            .owners
            .iter()
            .copied()
            .filter(|owner| !inherit.told.contains(owner))
            .collect();
        for owner in silent {
            Self::send(core, owner, (op, tree), FloorBody::Ask(FloorAsk::Inherit));
        }
    }

    pub(super) fn go_on_inheriting(&mut self, core: &mut Core) {
        let now = core.now.mono;
        let due = |inherit: &Inherit| !inherit.storing && inherit.ask_at <= now;
        let trees: Vec<TreeId> = self
            .inherits
            .iter()
            .filter(|(_, inherit)| due(inherit))
            .map(|(&tree, _)| tree)
            .collect();
        for tree in trees {
            self.ask_owners(core, tree);
            self.store_inherited(core, tree);
        }
    }

    pub(super) fn on_inherited(
        &mut self,
        core: &mut Core,
        tree: TreeId,
        from: NodeId,
        answer: FloorAnswer,
    ) {
        let Some(inherit) = self.inherits.get_mut(&tree) else {
            return;
        };
        if let FloorAnswer::Closed { upto } = answer
            && inherit.owners.contains(&from)
        {
            inherit.told.insert(from);
            inherit.close = inherit.close.max(upto);
            self.store_inherited(core, tree);
        }
    }

    fn store_inherited(&mut self, core: &mut Core, tree: TreeId) {
        if self.is_rising(core, tree) {
            // It is tried again.
            return;
        }
        let Some(inherit) = self.inherits.get_mut(&tree) else {
            return;
        };
        if inherit.storing || inherit.told.len() < inherit.need {
            return;
        }
        inherit.storing = true;
        let close = inherit.close;
        if !core.has(Mutant::CloseNotInherited) {
            core.floors.close(tree, close);
            core.floors.promise(tree, close);
        }
        let id = core.store_mark(tree);
        self.pending.insert(id, Pending::Inherit(tree));
    }

    pub(super) fn on_inherit_stored(&mut self, core: &mut Core, tree: TreeId, ok: bool) {
        let Some(inherit) = self.inherits.get_mut(&tree) else {
            return;
        };
        if ok {
            self.inherits.remove(&tree);
            core.floors.inherited(tree);
        } else {
            inherit.storing = false;
        }
    }
}

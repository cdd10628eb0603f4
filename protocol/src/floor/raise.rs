//! The side that leads a raise: asks every owner for what its clock allows, all members about counted hints,
//! then closes, compares, and raises.
//!
//! Invariant: a step begins when everybody has answered the one before; whatever else comes ends the raise,
//! and another one begins anew after a pause. Nothing of it is stored: closes stay, which is safe.
//! All members are asked about hints, not only those that may stand in now: one that could at an earlier time
//! may still hold some.

use std::collections::BTreeSet;

use torc_ring::NodeId;

use super::keeper::{Keeper, RAISES_MAX};
use crate::core::Core;
use crate::floor_message::{FloorAnswer, FloorAsk, FloorBody};
use crate::hlc::Hlc;
use crate::message::OpId;
use crate::mutant::Mutant;
use crate::shard_io::Event;
use crate::time::{Mono, SECOND};
use crate::trees::TreeId;

/// A question is repeated after so long, in microseconds.
const ASK_EVERY: u64 = SECOND;
/// How long a step may take, in microseconds.
const STEP_MAX: u64 = 30 * SECOND;
/// How long the owners may take to compare their copies, in microseconds.
const COMPARE_MAX: u64 = 600 * SECOND;

#[derive(Debug)]
pub(super) struct Raise {
    /// Names the present step.
    pub(super) op: OpId,
    step: Step,
    owners: Vec<NodeId>,
    members: Vec<NodeId>,
    waiting: BTreeSet<NodeId>,
    /// What the owners' clocks allow, then what the floor will be.
    to: Hlc,
    ask_at: Mono,
    deadline: Mono,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Limit,
    Confirm,
    Close,
    Compare,
    Raise,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Confirm => "confirm",
            Self::Close => "close",
            Self::Compare => "compare",
            Self::Raise => "raise",
        }
    }
}

impl Keeper {
    /// Looks at that partition again after about the interval, spread so that not all are raised at once.
    pub(super) fn look_again(&mut self, core: &Core, tree: TreeId) {
        let interval = core.settings.floor_interval;
        let wait = self.rng.between(interval / 2, interval + interval / 2 + 1);
        let at = core.now.mono.plus(wait);
        self.due.insert((at, tree));
    }

    /// Begins the raises that are due and worth it.
    pub(super) fn begin_raises(&mut self, core: &mut Core) {
        let now = core.now.mono;
        while self.raises.len() < RAISES_MAX
            && let Some(&(at, tree)) = self.due.first()
            && at <= now
        {
            self.due.pop_first();
            self.look_again(core, tree);
            let dying = core.floors.dying(tree);
            if !dying.known {
                self.want_collection(tree);
                continue;
            }
            if dying.earliest.is_none_or(|at| at > core.limit()) {
                continue;
            }
            self.begin_raise(core, tree);
        }
    }

    fn begin_raise(&mut self, core: &mut Core, tree: TreeId) {
        let Some(owners) = core.steady_owners(tree).map(<[NodeId]>::to_vec) else {
            self.hold(core, tree, ("begin", "moving"), vec![core.node()]);
            return;
        };
        let Some(view) = core.view.clone() else {
            return;
        };
        let members: Vec<NodeId> = view.config.all_members().map(|member| member.id).collect();
        let dead = members.iter().filter(|node| core.dead.contains(node));
        let dead: Vec<NodeId> = dead.copied().collect();
        if !dead.is_empty() {
            // It waits until all are there.
            self.hold(core, tree, ("begin", "dead"), dead);
            return;
        }
        if core.floors.is_rebuilding(tree) {
            self.hold(core, tree, ("begin", "rebuilding"), vec![core.node()]);
            return;
        }
        if self.raises.contains_key(&tree) {
            return;
        }
        let mut asked = owners.clone();
        if core.has(Mutant::FloorSkipsOwner) && asked.len() > 1 {
            asked.pop();
        }
        let raise = Raise {
            op: core.new_op(),
            step: Step::Limit,
            owners: asked,
            members,
            waiting: BTreeSet::new(),
            to: Hlc(u64::MAX),
            ask_at: core.now.mono,
            deadline: core.now.mono,
        };
        self.raises.insert(tree, raise);
        self.step(core, tree, Step::Limit);
    }

    fn step(&mut self, core: &mut Core, tree: TreeId, step: Step) {
        let op = core.new_op();
        let Some(raise) = self.raises.get_mut(&tree) else {
            return;
        };
        raise.op = op;
        raise.step = step;
        let whom = match step {
            Step::Confirm => &raise.members,
            _ => &raise.owners,
        };
        raise.waiting = whom.iter().copied().collect();
        let most = if step == Step::Compare {
            COMPARE_MAX
        } else {
            STEP_MAX
        };
        raise.deadline = core.now.mono.plus(most);
        self.ask(core, tree);
    }

    fn ask(&mut self, core: &mut Core, tree: TreeId) {
        let Some(raise) = self.raises.get_mut(&tree) else {
            return;
        };
        raise.ask_at = core.now.mono.plus(ASK_EVERY);
        let to = raise.to;
        let ask = match raise.step {
            Step::Limit => FloorAsk::Limit,
            Step::Confirm => FloorAsk::Confirm { to },
            Step::Close => FloorAsk::Close { to },
            Step::Compare => FloorAsk::Compare { to },
            Step::Raise => FloorAsk::Raise { to },
        };
        let (op, waiting) = (raise.op, raise.waiting.clone());
        for node in waiting {
            Self::send(core, node, (op, tree), FloorBody::Ask(ask));
        }
    }

    /// Somebody has answered the present step.
    pub(super) fn on_step(
        &mut self,
        core: &mut Core,
        tree: TreeId,
        (from, floor): (NodeId, Hlc),
        answer: FloorAnswer,
    ) {
        let ours = core.floors.floor(tree);
        let Some(raise) = self.raises.get_mut(&tree) else {
            return;
        };
        match (raise.step, answer) {
            (_, FloorAnswer::Refused(refusal)) => {
                self.give_up(core, tree, refusal.name(), vec![from]);
                return;
            }
            (Step::Limit, FloorAnswer::Limit { upto }) => {
                if floor != ours {
                    self.give_up(core, tree, "uneven", vec![from]);
                    return;
                }
                raise.to = raise.to.min(upto);
            }
            (Step::Limit, _) | (_, FloorAnswer::Limit { .. } | FloorAnswer::Closed { .. }) => {
                return;
            }
            (_, FloorAnswer::Done) => {}
        }
        raise.waiting.remove(&from);
        if !raise.waiting.is_empty() {
            return;
        }
        let (step, to) = (raise.step, raise.to);
        match step {
            Step::Limit => {
                let earliest = core.floors.dying(tree).earliest;
                if to > ours && earliest.is_some_and(|at| at <= to) {
                    self.step(core, tree, Step::Confirm);
                } else {
                    self.raises.remove(&tree);
                }
            }
            Step::Confirm if core.has(Mutant::FloorBeforeCloses) => {
                self.step(core, tree, Step::Compare);
            }
            Step::Confirm => self.step(core, tree, Step::Close),
            Step::Close => self.step(core, tree, Step::Compare),
            Step::Compare => self.step(core, tree, Step::Raise),
            Step::Raise => {
                self.raises.remove(&tree);
                self.held.remove(&tree);
            }
        }
    }

    fn give_up(&mut self, core: &mut Core, tree: TreeId, reason: &'static str, who: Vec<NodeId>) {
        if let Some(raise) = self.raises.remove(&tree) {
            self.hold(core, tree, (raise.step.name(), reason), who);
            core.event(Event::FloorGivenUp {
                partition: tree.1,
                step: raise.step.name(),
                reason,
            });
        }
    }

    /// Repeats questions that were not answered, and gives up what takes too long or has lost a member.
    pub(super) fn ask_again(&mut self, core: &mut Core) {
        let now = core.now.mono;
        let trees: Vec<TreeId> = self.raises.keys().copied().collect();
        for tree in trees {
            let Some(raise) = self.raises.get(&tree) else {
                continue;
            };
            let waiting = raise.waiting.iter().copied();
            let dead: Vec<NodeId> = waiting.filter(|node| core.dead.contains(node)).collect();
            if !dead.is_empty() {
                self.give_up(core, tree, "dead", dead);
            } else if raise.deadline <= now {
                let silent = raise.waiting.iter().copied().collect();
                self.give_up(core, tree, "timeout", silent);
            } else if raise.ask_at <= now {
                self.ask(core, tree);
            }
        }
    }
}

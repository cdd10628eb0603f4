//! The start check: has this node forgotten something that others remember?

use std::collections::BTreeSet;

use torc_ring::{ClusterId, NodeId};

use super::{Cluster, Phase};
use crate::cluster_io::{ClusterEvent, ClusterOutput};
use crate::cluster_message::ClusterMessage;
use crate::hlc::Hlc;
use crate::time::{MS, Mono, Now, SECOND};

/// Members are waited for at least this long, in microseconds, unless all have answered.
const WAIT: u64 = 3 * SECOND;
/// A member that was heard of but does not answer is waited for this long, in microseconds.
const WAIT_HEARD: u64 = 10 * SECOND;
const ASK_EVERY: u64 = 300 * MS;
const TELL_EVERY: u64 = 5 * SECOND;

#[derive(Debug)]
pub(super) struct StartCheck {
    /// The clock bound that was on disk.
    bound: Hlc,
    since: Mono,
    ask_at: Mono,
    tell_at: Mono,
    confirmed: BTreeSet<NodeId>,
    passed: bool,
}

impl StartCheck {
    pub(super) fn next_try(&self) -> Mono {
        self.ask_at
    }
}

impl Cluster {
    pub(super) fn begin_start_check(&mut self, now: Now) {
        let check = StartCheck {
            bound: self.clock.bound(),
            since: now.mono,
            ask_at: now.mono,
            tell_at: now.mono.plus(TELL_EVERY),
            confirmed: BTreeSet::new(),
            passed: false,
        };
        self.phase = Phase::Checking(check);
    }

    pub(super) fn on_start_check(&mut self, from: NodeId, bound: Hlc, cluster: ClusterId) {
        if !self.is_foreign(from, Some(cluster)) {
            let remembered = self.peers.remembered(from);
            self.send(from, ClusterMessage::StartChecked { bound, remembered });
        }
    }

    pub(super) fn on_start_checked(&mut self, from: NodeId, bound: Hlc, remembered: Hlc, now: Now) {
        // Only while nothing was raised in this life: later a member may remember the raised bound when a
        // late copy of the question reaches it.
        let Phase::Checking(check) = &mut self.phase else {
            return;
        };
        if bound != check.bound {
            return;
        }
        if remembered > bound {
            self.out.push_back(ClusterOutput::Amnesia {
                peer: from,
                remembered,
                own: bound,
            });
            self.phase = Phase::Halted;
            return;
        }
        check.confirmed.insert(from);
        self.judge_start(now);
    }

    fn others(&self) -> Vec<NodeId> {
        let members = self
            .configs
            .latest()
            .into_iter()
            .flat_map(|config| config.all_members());
        members
            .map(|member| member.id)
            .filter(|id| *id != self.node)
            .collect()
    }

    fn judge_start(&mut self, now: Now) {
        let others = self.others();
        // Those that are only about to join may never have been there: nobody has to wait for them.
        let latest = self.configs.latest();
        let alone = latest.is_some_and(|c| c.current.iter().all(|m| m.id == self.node));
        let Phase::Checking(check) = &mut self.phase else {
            return;
        };
        let silent: Vec<NodeId> = others
            .iter()
            .filter(|id| !check.confirmed.contains(id))
            .copied()
            .collect();
        let waited = now.mono.since(check.since);
        let nobody_is_late = || silent.iter().all(|id| !self.peers.was_heard(*id));
        let anybody = alone || silent.len() < others.len();
        check.passed |= silent.is_empty()
            || (anybody && waited >= WAIT && nobody_is_late())
            || (anybody && waited >= WAIT_HEARD);
        self.serve_if_ready(now);
    }

    pub(super) fn serve_if_ready(&mut self, now: Now) {
        let passed = matches!(&self.phase, Phase::Checking(check) if check.passed);
        if passed && self.configs.applied().0 > 0 {
            self.phase = Phase::Serving;
            self.let_shards_serve();
            self.drive_later(now);
        }
    }

    pub(super) fn tick_start(&mut self, now: Now) {
        let others = self.others();
        let Some(cluster) = self.configs.latest().map(|config| config.cluster) else {
            return;
        };
        let Phase::Checking(check) = &mut self.phase else {
            return;
        };
        if check.ask_at > now.mono {
            return;
        }
        check.ask_at = now.mono.plus(ASK_EVERY);
        let bound = check.bound;
        let silent: Vec<NodeId> = others
            .iter()
            .filter(|id| !check.confirmed.contains(id))
            .copied()
            .collect();
        let waits = (check.tell_at <= now.mono).then(|| {
            check.tell_at = now.mono.plus(TELL_EVERY);
            let confirmed = others.len() - silent.len();
            ClusterEvent::StartWaits {
                confirmed,
                members: others.len(),
            }
        });
        if let Some(event) = waits {
            self.event(event);
        }
        for member in silent {
            self.send(member, ClusterMessage::StartCheck { bound, cluster });
        }
        self.judge_start(now);
    }
}

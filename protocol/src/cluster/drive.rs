//! The joint phase: who is how far, the switch when everybody is complete, the end when the target ring
//! cannot be reached.
//!
//! Invariants:
//! - a switch is proposed only when **every** member of the target, and every member that leaves, has
//!   itself said, naming this ring version, that it is complete;
//! - an abort asks the current members alone;
//! - somebody drives: whoever committed the change, and when nothing is heard of a driver, any other
//!   current member after a jittered delay. Two of them do no harm: they propose the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use torc_ring::{ChangeEnd, Config, NodeId, PartitionId, Ring, RingVersion};

use super::{Cluster, RESEND};
use crate::cluster_admin::Progress;
use crate::cluster_io::ClusterEvent;
use crate::cluster_message::ClusterMessage;
use crate::mutant::Mutant;
use crate::time::{Mono, Now, SECOND};

/// A member drives a joint phase that nobody seems to drive after this time, in microseconds.
const DRIVE_AFTER: (u64, u64) = (2 * SECOND, 4 * SECOND);
/// Members that are asked at the usual rate; with more of them it falls.
const ASK_MEMBERS: u64 = 64;
/// A joint phase whose target owners cannot be reached is aborted after this time, in microseconds.
const PATIENCE: u64 = 10 * SECOND;
/// Whoever asks for the status keeps this node asking for so long, in microseconds.
const WATCH: u64 = 10 * SECOND;

#[derive(Debug)]
pub(super) struct Drive {
    /// The joint phase that this is about; 0 outside one.
    ring: RingVersion,
    since: Mono,
    driving: bool,
    /// When this node takes over, if it hears of no driver before.
    take_over_at: Mono,
    ask_at: Mono,
    /// Somebody looks at the status until then.
    watched_until: Mono,
    told: BTreeMap<NodeId, Progress>,
    /// The different sets of target owners that a moving partition has.
    owners: Vec<Vec<NodeId>>,
    judge_at: Mono,
    own: (RingVersion, Progress),
    changed: bool,
}

impl Drive {
    pub(super) fn new(now: Mono) -> Self {
        Self {
            ring: RingVersion(0),
            since: now,
            driving: false,
            take_over_at: now,
            ask_at: now,
            watched_until: Mono(0),
            told: BTreeMap::new(),
            owners: Vec::new(),
            judge_at: now,
            own: (RingVersion(0), Progress::default()),
            changed: false,
        }
    }

    pub(super) fn told(&self, node: NodeId) -> Option<Progress> {
        self.told.get(&node).copied()
    }

    pub(super) fn deadline(&self) -> Option<Mono> {
        if self.ring == RingVersion(0) {
            return None;
        }
        let asks = self.driving || self.watched_until > self.ask_at;
        let drive = (!self.driving).then_some(self.take_over_at);
        let timers = [asks.then_some(self.ask_at), drive, Some(self.judge_at)];
        timers.into_iter().flatten().min()
    }
}

/// The members whose word a switch needs: those of the target, and those that leave of their own will.
fn needed(config: &Config) -> impl Iterator<Item = NodeId> + '_ {
    let target = config.target.iter().flatten().map(|member| member.id);
    let stays = |id: NodeId| config.target.iter().flatten().any(|m| m.id == id);
    let leavers = config
        .current
        .iter()
        .map(|member| member.id)
        .filter(move |id| !stays(*id) && !config.abandoned.contains(id));
    target.chain(leavers)
}

impl Cluster {
    /// A config was decided, or found on disk at the start. `led` says that this node committed it.
    pub(super) fn drive_decided(&mut self, config: &Arc<Config>, led: bool, now: Now) {
        let ring = match config.target {
            Some(_) => config.ring_version,
            None => RingVersion(0),
        };
        if ring == self.drive.ring {
            return;
        }
        let take_over_at = if led {
            now.mono
        } else {
            self.jitter(now, DRIVE_AFTER.0, DRIVE_AFTER.1)
        };
        let own = self.drive.own;
        self.drive = Drive {
            ring,
            take_over_at,
            own,
            judge_at: now.mono.plus(SECOND),
            ..Drive::new(now.mono)
        };
        if ring > RingVersion(0) {
            self.drive.owners = moving_owners(config);
        }
    }

    /// This node's shards have everything that it gains under that ring version.
    pub(super) fn on_covered(&mut self, ring: RingVersion) {
        // What it had may be gone: there will be another ring version, under which its shards begin anew.
        if !self.recovery.may_serve() {
            return;
        }
        self.recovery_covered(ring);
        if self.drive.own.0 < ring {
            self.drive.own = (ring, Progress::default());
        }
        if self.drive.own.0 == ring {
            self.drive.own.1.covered = true;
            self.drive.changed = true;
        }
    }

    pub(super) fn on_own_progress(&mut self, ring: RingVersion, progress: Progress) {
        if self.drive.own.0 <= ring {
            let covered = self.drive.own.0 == ring && self.drive.own.1.covered;
            self.drive.own = (
                ring,
                Progress {
                    covered,
                    ..progress
                },
            );
        }
    }

    /// Somebody wants to know how far this node is.
    pub(super) fn on_ask(&mut self, from: NodeId, ring: RingVersion, drives: bool, now: Now) {
        if drives && from != self.node && ring == self.drive.ring && !self.drive.driving {
            self.drive.take_over_at = self.jitter(now, DRIVE_AFTER.0, DRIVE_AFTER.1);
        }
        let applied = self
            .configs
            .applied_config()
            .map(|config| config.ring_version);
        if applied != Some(ring) {
            return;
        }
        let progress = match self.drive.own {
            (own, progress) if own == ring || self.has(Mutant::StaleCompletion) => progress,
            _ => Progress::default(),
        };
        self.send(from, ClusterMessage::Progress { ring, progress });
    }

    pub(super) fn on_progress(&mut self, from: NodeId, ring: RingVersion, progress: Progress) {
        let this_one = ring == self.drive.ring || self.has(Mutant::StaleCompletion);
        if this_one && self.drive.ring > RingVersion(0) {
            let told = self.drive.told.entry(from).or_default();
            // It was complete once: that lasts, also when a restarted node counts anew.
            let covered = told.covered || progress.covered;
            *told = Progress {
                covered,
                ..progress
            };
            self.drive.changed |= covered;
        }
    }

    /// Keeps asking for a while: somebody looks at the status. Answers whether what is known is old.
    pub(super) fn watch_progress(&mut self, now: Now) -> bool {
        let stale = self.drive.ring > RingVersion(0)
            && !self.drive.driving
            && self.drive.watched_until <= now.mono;
        self.drive.watched_until = now.mono.plus(WATCH);
        if stale {
            self.drive.ask_at = now.mono;
        }
        stale
    }

    pub(super) fn is_complete(&self, config: &Config) -> bool {
        let covered = |id: &NodeId| self.drive.told(*id).is_some_and(|p| p.covered);
        if self.has(Mutant::SwitchEarly) {
            return needed(config).any(|id| covered(&id));
        }
        needed(config).all(|id| covered(&id))
    }

    pub(super) fn tick_drive(&mut self, now: Now) {
        if self.drive.ring == RingVersion(0) {
            return;
        }
        let Some(latest) = self.configs.latest().cloned() else {
            return;
        };
        // A joiner, and a node that does not serve yet, only looks on.
        let acts = self.acting().is_some();
        self.drive.driving &= acts;
        if !self.drive.driving && self.drive.take_over_at <= now.mono {
            self.drive.driving = acts;
            self.drive.ask_at = now.mono;
            self.drive.take_over_at = now.mono.plus(DRIVE_AFTER.1);
        }
        let asks = self.drive.driving || self.drive.watched_until > now.mono;
        if asks && self.drive.ask_at <= now.mono {
            self.ask_progress(&latest, now);
        } else if !asks {
            self.drive.ask_at = self.drive.ask_at.max(self.drive.watched_until);
        }
        if self.drive.driving && std::mem::take(&mut self.drive.changed) {
            self.propose_switch(&latest, now);
        }
        if self.drive.judge_at <= now.mono {
            self.drive.judge_at = now.mono.plus(SECOND);
            if acts {
                self.judge_target(&latest, now);
            }
            if self.drive.driving {
                self.propose_switch(&latest, now);
            }
        }
    }

    fn ask_progress(&mut self, latest: &Arc<Config>, now: Now) {
        let members: BTreeSet<NodeId> = needed(latest).collect();
        let every = RESEND * (1 + members.len() as u64 / ASK_MEMBERS);
        self.drive.ask_at = now.mono.plus(every);
        let (ring, drives) = (self.drive.ring, self.drive.driving);
        for member in members {
            if !self.drive.told(member).is_some_and(|p| p.covered) {
                self.send(member, ClusterMessage::Ask { ring, drives });
            }
        }
        // The other current members, too, shall know that somebody drives.
        let others: Vec<NodeId> = latest.current.iter().map(|member| member.id).collect();
        for member in others {
            if drives && self.drive.told(member).is_some_and(|p| p.covered) {
                self.send(member, ClusterMessage::Ask { ring, drives });
            }
        }
    }

    fn propose_switch(&mut self, latest: &Arc<Config>, now: Now) {
        if self.votes.is_proposing() || !self.is_complete(latest) {
            return;
        }
        let Some(next) = latest.switched() else {
            return;
        };
        if self.propose(Arc::new(next), now) {
            self.event(ClusterEvent::Switching {
                ring: latest.ring_version,
            });
        } else if !self.peers.clock_trusted() {
            // Somebody whose clock is right shall do it.
            self.drive.driving = false;
            self.drive.take_over_at = self.jitter(now, 2 * DRIVE_AFTER.0, 2 * DRIVE_AFTER.1);
        }
    }

    /// A partition whose target owners cannot be reached answers nobody: after a while the change is taken
    /// back. Only what this node itself hears counts, and only while it hears a majority that could decide.
    fn judge_target(&mut self, latest: &Arc<Config>, now: Now) {
        let waited = now.mono.since(self.drive.since) > PATIENCE;
        let lost = waited && self.hears_majority(latest.current.iter().map(|m| m.id), now) && {
            let reached = |set: &Vec<NodeId>| self.hears_majority(set.iter().copied(), now);
            !self.drive.owners.iter().all(reached)
        };
        let Some(back) = latest.aborted(ChangeEnd::NoTargetQuorum) else {
            return;
        };
        if !lost {
            // It can be reached after all.
            self.withdraw(&back);
        } else if !self.votes.is_proposing() && self.may_abort(latest, now) {
            self.event(ClusterEvent::TargetLost {
                ring: latest.ring_version,
            });
            self.propose(Arc::new(back), now);
        }
    }

    fn hears_majority(&self, nodes: impl Iterator<Item = NodeId>, now: Now) -> bool {
        let (mut heard, mut all) = (0, 0);
        for node in nodes {
            all += 1;
            heard += usize::from(self.hears(node, now));
        }
        heard > all / 2
    }

    pub(super) fn hears(&self, node: NodeId, now: Now) -> bool {
        let patience = PATIENCE.max(3 * self.peers.ping_every());
        node == self.node
            || self
                .peers
                .heard_at(node)
                .is_some_and(|at| now.mono.since(at) <= patience)
    }

    /// A deliberate bug: an abort waits for the members of the target.
    pub(super) fn may_abort(&self, latest: &Config, now: Now) -> bool {
        let target = latest.target.iter().flatten();
        !self.has(Mutant::AbortNeedsTarget)
            || target.into_iter().all(|member| self.hears(member.id, now))
    }
}

/// The different sets of target owners of the partitions that move.
fn moving_owners(config: &Config) -> Vec<Vec<NodeId>> {
    let ring = Ring::compute(config);
    let mut sets: BTreeSet<Vec<NodeId>> = BTreeSet::new();
    let mut seen: BTreeSet<(u8, u8)> = BTreeSet::new();
    for bucket in &config.buckets {
        if !seen.insert((bucket.n, config.target_replicas(bucket))) {
            continue;
        }
        for index in 0..ring.partitions() {
            let owners = ring.owners_of(bucket, PartitionId(index as u16));
            if let Some(target) = owners.target {
                let mut set = target.to_vec();
                set.sort_unstable();
                sets.insert(set);
            }
        }
    }
    sets.into_iter().collect()
}

//! What operators do to the ring while clients work: nodes join, leave, take another's place, are removed by
//! force and get other shares; changes are taken back, and some replace all members at once.
//!
//! A wish may be refused, or come to nothing because its node is busy: then nothing happens.

use std::collections::BTreeMap;
use std::sync::Arc;

use torc_protocol::cluster_admin::{AdminId, AdminRequest};
use torc_protocol::cluster_io::ClusterInput;
use torc_protocol::hlc::Hlc;
use torc_protocol::message::RecordKey;
use torc_protocol::time::{MS, SECOND};
use torc_protocol::version::Version;
use torc_ring::change::stage;
use torc_ring::{
    ChangeEnd, Config, ConfigVersion, Member, NodeId, PartitionId, RingChange, RingVersion,
};

use crate::check::covered;
use crate::world::{Ev, Fate, World};

/// A node that is to be removed by force is down for longer than the members take it to be alive, in
/// microseconds.
const DEAD_AFTER: u64 = 6 * SECOND;
/// Chance that a node crashes at a step of a change, in thousandths.
const CRASH_AT_STEP: u64 = 40;
/// The same when a close, a promise or a floor is on its disk.
const CRASH_AT_FLOOR: u64 = 8;

/// What operators want of the ring later.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Take that member out: it is dead.
    Remove(NodeId),
    /// Take the running change back, by way of that node.
    Abort(usize),
    /// Wish for something else, by way of that node.
    Again(usize),
    /// Let others be members, by way of that node.
    Others(usize),
    /// That node is away for long.
    Away(usize),
}

/// What was acknowledged before the change that runs.
#[derive(Clone, Debug)]
pub(crate) struct Moving {
    pub(crate) ring: RingVersion,
    pub(crate) version: ConfigVersion,
    must: BTreeMap<u64, Version>,
    /// By partition: how far its owners had closed it.
    pub(crate) closes: BTreeMap<u16, Hlc>,
}

impl World {
    /// An operator changes the ring, by way of that node if it can be.
    pub(crate) fn change_ring(&mut self, node: usize) {
        let most = if self.plan.orderly { 8 } else { 16 };
        match self.rng.below(most) {
            0 | 1 => self.wake_spares(),
            2 | 3 => self.some_leave(node),
            4 if self.faults.force > 0 => self.remove_by_force(node),
            5 if self.faults.force > 0 => self.lose_data(node),
            6 => self.other_share(node),
            7 => self.other_replicas(node),
            8 => self.abort(node),
            9 => self.go_away(node),
            _ if self.plan.orderly => self.some_leave(node),
            _ => self.other_members(node),
        }
    }

    /// Asks a node's cluster machine what an operator would.
    fn wish(&mut self, node: usize, request: AdminRequest) {
        self.next_wish += 1;
        let id = AdminId(self.next_wish);
        self.cluster_input(node, ClusterInput::Admin(id, request));
    }

    fn commit_changes(&mut self, node: usize, changes: Vec<RingChange>) {
        let version = None;
        self.wish(node, AdminRequest::Commit { changes, version });
    }

    /// Nodes that have not been started so far are, several at once.
    pub(crate) fn wake_spares(&mut self) {
        let spares: Vec<usize> = self.spares().collect();
        for spare in spares {
            if self.rng.chance(600) {
                self.count("fault: node joins");
                self.wake(spare);
            }
        }
    }

    fn spares(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|at| self.nodes[*at].dormant)
    }

    fn wake(&mut self, node: usize) {
        self.nodes[node].dormant = false;
        let after = self.rng.below(100 * MS);
        self.schedule(after, Ev::Restart { node });
    }

    fn some_leave(&mut self, node: usize) {
        let Some(latest) = self.nodes[node].latest().cloned() else {
            return;
        };
        let most = 1 + self.rng.below(2) as usize;
        let mut changes = Vec::new();
        for member in &latest.current {
            if changes.len() < most.min(latest.current.len() - 1) && self.rng.chance(500) {
                changes.push(RingChange::Leave { node: member.id });
            }
        }
        if !changes.is_empty() {
            self.count("fault: node leaves");
            self.commit_changes(node, changes);
        }
    }

    /// A member dies, and is taken out before it comes back, if it ever does.
    fn remove_by_force(&mut self, node: usize) {
        if !self.may_lose(node) {
            return;
        }
        self.count("fault: node removed by force");
        let id = self.nodes[node].member.id;
        self.nodes[node].doomed = true;
        self.crash(node);
        for tries in 0..3 {
            let after = DEAD_AFTER + tries * SECOND;
            self.schedule(after, Ev::Operate(Act::Remove(id)));
        }
        let down = DEAD_AFTER + self.rng.tailed(4 * SECOND);
        self.schedule(down, Ev::Restart { node });
    }

    pub(crate) fn operate(&mut self, act: &Act) {
        if self.faults.changes == 0 {
            return;
        }
        match act {
            Act::Remove(dead) => {
                let serving: Vec<usize> = (0..self.nodes.len())
                    .filter(|at| self.nodes[*at].serving)
                    .collect();
                let still = self.agreed.latest().is_some_and(|c| c.is_current(*dead));
                if still && !serving.is_empty() {
                    let node = self.rng.pick(&serving);
                    self.commit_changes(node, vec![RingChange::Remove { node: *dead }]);
                }
            }
            Act::Abort(node) => self.abort(*node),
            Act::Others(node) => self.other_members(*node),
            Act::Away(node) => self.go_away(*node),
            Act::Again(node) => match self.rng.below(3) {
                0 => self.some_leave(*node),
                1 => self.other_share(*node),
                _ => self.other_members(*node),
            },
        }
    }

    fn other_share(&mut self, node: usize) {
        let Some(latest) = self.nodes[node].latest().cloned() else {
            return;
        };
        self.count("fault: other share");
        let member = self
            .rng
            .pick(&latest.current.iter().map(|m| m.id).collect::<Vec<_>>());
        let change = if self.rng.chance(700) {
            let weight = self.rng.pick(&[10, 50, 100, 300]);
            RingChange::Reweigh {
                node: member,
                weight,
            }
        } else {
            let zone = format!("z{}", self.rng.below(3));
            RingChange::Rezone { node: member, zone }
        };
        self.commit_changes(node, vec![change]);
    }

    fn other_replicas(&mut self, node: usize) {
        self.count("fault: other n");
        let n = self.rng.between(1, 5) as u8;
        let bucket = torc_ring::config::DEFAULT_BUCKET.to_owned();
        self.commit_changes(node, vec![RingChange::Replicas { bucket, n }]);
    }

    fn abort(&mut self, node: usize) {
        let running = self.agreed.latest().is_some_and(|c| c.target.is_some());
        if running {
            self.count("fault: change taken back");
            self.wish(node, AdminRequest::Abort);
        }
    }

    /// A node is away for long: several versions are decided without it.
    fn go_away(&mut self, node: usize) {
        if self.nodes[node].is_up() && self.faults.crashes > 0 {
            self.count("fault: crash");
            self.crash(node);
            let down = self.rng.tailed(6 * SECOND);
            self.schedule(down, Ev::Restart { node });
        }
    }

    /// Other members, many at once: two go and two come, all go, one is left.
    fn other_members(&mut self, node: usize) {
        let Some(latest) = self.nodes[node]
            .latest()
            .cloned()
            .filter(|c| c.target.is_none())
        else {
            return;
        };
        let here: Vec<NodeId> = latest.current.iter().map(|m| m.id).collect();
        let coming: Vec<usize> = (0..self.nodes.len())
            .filter(|at| {
                let other = &self.nodes[*at];
                latest.member(other.member.id).is_none() && other.fate == Fate::Stays
            })
            .collect();
        let one = self.faults.halfway > 0 && self.rng.chance(500);
        let (go, come) = match self.rng.below(6) {
            _ if one => (1, 1.min(coming.len())),
            0 | 1 => (2.min(here.len()), 2.min(coming.len())),
            2 => (here.len(), coming.len()),
            3 | 4 => (here.len() - 1, 0),
            _ => (here.len() - 1, 1.min(coming.len())),
        };
        let come = self.some_of(&coming, come);
        let go = if come.is_empty() {
            go.min(here.len() - 1)
        } else {
            go
        };
        let go = self.some_of(&here, go);
        let leave = go.iter().map(|&node| RingChange::Leave { node });
        let joiners: BTreeMap<NodeId, Member> = come
            .iter()
            .map(|at| (self.nodes[*at].member.id, self.nodes[*at].member.clone()))
            .collect();
        let join = joiners.keys().map(|&node| RingChange::Join { node });
        let changes: Vec<RingChange> = leave.chain(join).collect();
        let Ok(joint) = stage(&latest, &changes, &joiners) else {
            return;
        };
        self.count("fault: other members");
        for at in come {
            if self.nodes[at].dormant {
                self.wake(at);
            }
        }
        self.cluster_input(node, ClusterInput::Propose(Arc::new(joint)));
    }

    fn some_of<T: Clone>(&mut self, all: &[T], count: usize) -> Vec<T> {
        let mut left: Vec<T> = all.to_vec();
        let mut some = Vec::new();
        while some.len() < count && !left.is_empty() {
            let at = self.rng.below(left.len() as u64) as usize;
            some.push(left.swap_remove(at));
        }
        some
    }

    /// A node has left, was removed or is not taken in: it is emptied, and may come as another one later. Now
    /// and then it is started with its old data first.
    pub(crate) fn retire(&mut self, node: usize) {
        self.crash(node);
        let again = !self.plan.orderly && self.rng.chance(300);
        if again && self.nodes[node].replaces.is_none() {
            self.count("fault: started with old data");
            let down = self.rng.tailed(SECOND);
            self.schedule(down, Ev::Restart { node });
            return;
        }
        self.wipe(node);
        self.nodes[node].replaces = None;
        self.nodes[node].dormant = true;
    }

    /// A step of a change is reached at a node: now and then that is when it crashes.
    pub(crate) fn crash_at_step(&mut self, node: usize) {
        self.crash_with_chance(node, CRASH_AT_STEP);
    }

    /// The same of a step of a floor, of which there are more.
    pub(crate) fn crash_at_floor(&mut self, node: usize) {
        self.crash_with_chance(node, CRASH_AT_FLOOR);
    }

    fn crash_with_chance(&mut self, node: usize, permille: u64) {
        if self.faults.crashes > 0 && self.rng.chance(permille) {
            let life = self.nodes[node].life;
            let after = self.rng.below(3 * MS);
            self.schedule(after, Ev::Crash { node, life });
        }
    }

    /// A ring is about to be switched to: now and then one member that stays does not hear of it for a while,
    /// and those that leave are all that could tell it.
    pub(crate) fn keep_from_one(&mut self, node: usize) {
        if self.faults.changes == 0 || self.plan.orderly || !self.rng.chance(300) {
            return;
        }
        let Some(target) = self.nodes[node].latest().and_then(|c| c.target.clone()) else {
            return;
        };
        let stays: Vec<NodeId> = target.iter().map(|member| member.id).collect();
        let id = self.rng.pick(&stays);
        if let Some(deaf) = self.index_of(id) {
            self.count("fault: switch not heard of");
            self.deafen(deaf);
        }
    }

    /// The node of that life crashes, if it is still there.
    pub(crate) fn crash_now(&mut self, node: usize, life: u32) {
        if self.nodes[node].life == life && self.nodes[node].is_up() {
            self.count("fault: crash at a step of a change");
            self.crash(node);
            let down = self.rng.tailed(300 * MS);
            self.schedule(down, Ev::Restart { node });
        }
    }

    /// A config is known to be decided for the first time.
    pub(crate) fn newly_decided(&mut self, config: &Config) {
        if config.target.is_some() {
            if config.ring_version.0 < config.version.0 {
                // A bucket comes or goes meanwhile.
                return;
            }
            self.count("ring change begun");
            let closes = self.closes_of(config);
            let keys = 0..self.plan.keys;
            let must = keys.filter_map(|key| Some((key, self.clients.floor(key).majority()?)));
            self.moving = Some(Moving {
                ring: config.ring_version,
                version: config.version,
                must: must.collect(),
                closes,
            });
            self.change_mind();
            return;
        }
        let Some(last) = config.last_change else {
            return;
        };
        if let Some(moving) = self.moving.take_if(|moving| moving.ring == last.ring) {
            self.count(match last.end {
                ChangeEnd::Switched => "ring change switched",
                ChangeEnd::Aborted => "rare: ring change aborted",
                ChangeEnd::NoTargetQuorum => "rare: target lost",
            });
            if last.end == ChangeEnd::Switched {
                self.go_after_switch();
            }
            if last.end == ChangeEnd::Switched && !self.plan.forgets() {
                self.check_complete(&moving);
            }
        }
    }

    /// Where raises are stopped halfway, now and then a node goes away as soon as others have come: these have
    /// promised nothing, and no floor rises until it is back.
    fn go_after_switch(&mut self) {
        if self.faults.halfway > 0 && self.rng.chance(400) {
            let node = self.rng.below(self.nodes.len() as u64) as usize;
            let after = self.rng.below(200 * MS);
            self.schedule(after, Ev::Operate(Act::Away(node)));
        }
    }

    /// Now and then an operator takes a change back while it moves data, and wants something else at once.
    fn change_mind(&mut self) {
        if self.faults.changes == 0 || self.plan.orderly || !self.rng.chance(250) {
            return;
        }
        let node = self.rng.below(self.nodes.len() as u64) as usize;
        let mut after = self.rng.below(600 * MS);
        self.schedule(after, Ev::Operate(Act::Abort(node)));
        for _ in 0..4 {
            after += self.rng.below(20 * MS);
            self.schedule(after, Ev::Operate(Act::Again(node)));
        }
    }

    /// Every owner of the new ring has what was acknowledged before the change began.
    fn check_complete(&mut self, moving: &Moving) {
        let Some(joint) = self.agreed.at(moving.version.0).cloned() else {
            return;
        };
        let placed = self.placed(&joint);
        for node in &self.nodes {
            let id = node.member.id;
            if joint.member(id).is_none() || joint.abandoned.contains(&id) {
                continue;
            }
            let hints = node.disk.visible.hints.values().filter(|hint| hint.counted);
            let moved = hints.filter(|hint| placed.sets(&hint.key).len() > 1);
            let owed = covered::delivered(id, moved.count());
            if let Err(violation) = owed {
                self.fail(violation);
                return;
            }
        }
        for (&key, &must) in &moving.must {
            let record_key = self.record_key(key);
            let sets = placed.sets(&record_key);
            let stays = |owner: NodeId| {
                let mut current = sets.iter().filter(|set| !set.id.target);
                current.any(|set| set.nodes.contains(&owner))
            };
            let target: Vec<NodeId> = sets
                .iter()
                .filter(|set| set.id.target)
                .flat_map(|set| set.nodes.iter().copied())
                .collect();
            for owner in target {
                let Some(at) = self.index_of(owner).filter(|at| self.has_its_data(*at)) else {
                    continue;
                };
                // An owner that stays need not have synced what it got in the ordinary way.
                let disk = &self.nodes[at].disk;
                let store = if self.plan.faults.power > 0 && stays(owner) {
                    &disk.visible
                } else {
                    disk.durable()
                };
                let found = store.records.get(&record_key);
                let has = found.map(torc_protocol::record::Record::version);
                // A copy with a floor need not hold what is dead by it.
                let gone = has.is_none() && self.is_collected(at, &record_key, must);
                if !gone {
                    let complete = covered::complete((owner, key), Some(must), has);
                    self.check(complete);
                }
            }
        }
    }

    /// A node calls that config applied: what it does not own by it is gone.
    pub(crate) fn check_cleaned(&mut self, node: usize, version: u64) {
        let Some(config) = self.agreed.at(version).cloned() else {
            return;
        };
        let view = Arc::clone(&self.placed(&config).view);
        let id = self.nodes[node].member.id;
        let bits = config.partition_bits;
        let cleaned = self.nodes[node]
            .disk
            .visible
            .records
            .keys()
            .try_for_each(|key| {
                let partition: PartitionId = key.token.partition(bits);
                covered::kept(id, key, view.keeps(id, key.bucket, partition))
            });
        self.check(cleaned);
    }

    /// Whether a node knows a config after that version by which it does not own the key.
    pub(crate) fn may_have_dropped(
        &self,
        node: usize,
        key: &RecordKey,
        version: ConfigVersion,
    ) -> bool {
        self.has_let_go(node, key.token.partition(self.plan.bits), version)
    }

    /// Once faults have ended, operators take out who is gone for good, and take back a change that waits for
    /// somebody who will never come.
    pub(crate) fn tidy_ring(&mut self) {
        let Some(latest) = self.agreed.latest().cloned() else {
            return;
        };
        let gone = |id: NodeId| self.index_of(id).is_none();
        let serving: Vec<usize> = (0..self.nodes.len())
            .filter(|at| self.nodes[*at].serving && latest.is_current(self.nodes[*at].member.id))
            .collect();
        if serving.is_empty() {
            return;
        }
        let target = latest.target.iter().flatten();
        let waits_in_vain = target.into_iter().any(|member| gone(member.id))
            || latest.target.as_ref().is_some_and(|_| {
                latest
                    .current
                    .iter()
                    .any(|m| gone(m.id) && !latest.abandoned.contains(&m.id))
            });
        let dead = latest.current.iter().filter(|member| gone(member.id));
        let dead: Vec<RingChange> = dead
            .map(|member| RingChange::Remove { node: member.id })
            .collect();
        let node = self.rng.pick(&serving);
        if waits_in_vain {
            self.wish(node, AdminRequest::Abort);
        } else if latest.target.is_none() && !dead.is_empty() {
            self.commit_changes(node, dead);
        }
    }

    /// One more change of the ring, which has to end.
    pub(crate) fn last_change(&mut self, node: usize) {
        match self.rng.below(3) {
            0 => self.wake_spares(),
            1 => self.some_leave(node),
            _ => self.other_share(node),
        }
    }
}

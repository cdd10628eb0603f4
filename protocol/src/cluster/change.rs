//! The member's side of joins: gathers joiners, makes sure that they can be reached, and proposes.
//!
//! One change at a time per node. Steps: gather (joins that arrive together) → probe (nothing is stored: are
//! they reachable?) → propose a joint config, which [`super::drive`] then sees through. Any step may fail; the
//! joiners then ask again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use torc_ring::change::stage;
use torc_ring::config::{MEMBERS_MAX, WEIGHT_MAX, is_node_name};
use torc_ring::{ClusterId, Config, ConfigVersion, Member, NodeId, RingChange};

use super::{Cluster, RESEND};
use crate::cluster_io::{ChangeOutcome, ClusterEvent};
use crate::cluster_message::{CLUSTER_PROTOCOL, ClusterMessage, JOINERS_MAX, JoinRefusal};
use crate::rng::Rng;
use crate::time::{MS, Mono, Now, SECOND};

/// Joins that arrive within this time become one change, in microseconds.
const GATHER: u64 = 100 * MS;
/// Members are given this long to reach the joiners, in microseconds.
const PROBE_WAIT: u64 = 5 * SECOND;
/// Greatest length of a zone, and of an address, in bytes.
const ZONE_LEN_MAX: usize = 64;
const ADDRESS_LEN_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct Changes {
    /// Joiners that wait to be made part of one change, and until when.
    gathered: BTreeMap<NodeId, Joiner>,
    gather_until: Option<Mono>,
    running: Option<Change>,
    ids: Rng,
}

/// A node that wants to be taken in.
#[derive(Debug)]
struct Joiner {
    member: Member,
    /// The dead member that it comes in place of.
    dead: Option<NodeId>,
}

/// A change that this node leads.
#[derive(Debug)]
struct Change {
    id: u64,
    base: Arc<Config>,
    joiners: BTreeMap<NodeId, Joiner>,
    /// What is proposed.
    wish: Option<Arc<Config>>,
    step: Step,
    deadline: Mono,
    resend_at: Mono,
}

#[derive(Debug)]
enum Step {
    /// Who reaches each joiner.
    Probing(BTreeMap<NodeId, BTreeSet<NodeId>>),
    Proposing,
}

impl Changes {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            gathered: BTreeMap::new(),
            gather_until: None,
            running: None,
            ids: Rng::new(seed),
        }
    }

    pub(super) fn leads(&self, config: &Config) -> bool {
        let wish = self.running.as_ref().and_then(|run| run.wish.as_ref());
        wish.is_some_and(|wish| **wish == *config)
    }

    pub(super) fn deadline(&self) -> Option<Mono> {
        let running = self
            .running
            .as_ref()
            .map(|change| change.deadline.min(change.resend_at));
        [self.gather_until, running].into_iter().flatten().min()
    }
}

/// Why `member` cannot become a member of `config`, if so; what `dead` has is free.
fn refusal_of(config: &Config, member: &Member, dead: Option<NodeId>) -> Option<JoinRefusal> {
    let address_is_valid = |address: &str| !address.is_empty() && address.len() <= ADDRESS_LEN_MAX;
    let is_valid = is_node_name(&member.name)
        && member.zone.len() <= ZONE_LEN_MAX
        && (1..=WEIGHT_MAX).contains(&member.weight)
        && address_is_valid(&member.peer)
        && address_is_valid(&member.http);
    if !is_valid {
        return Some(JoinRefusal::BadMember);
    }
    let others = || config.all_members().filter(|other| Some(other.id) != dead);
    if others().any(|other| other.name == member.name) {
        return Some(JoinRefusal::NameTaken {
            name: member.name.clone(),
        });
    }
    if others().any(|other| other.peer == member.peer) {
        return Some(JoinRefusal::AddressTaken {
            address: member.peer.clone(),
        });
    }
    let count = config.current.len();
    (count >= MEMBERS_MAX).then_some(JoinRefusal::TooManyMembers {
        count: count as u32,
    })
}

impl Cluster {
    pub(super) fn on_join(
        &mut self,
        from: NodeId,
        (protocol, version, cluster): (u32, ConfigVersion, ClusterId),
        (member, replaces): (Member, Option<String>),
        now: Now,
    ) {
        let Some(latest) = self.acting() else {
            self.send(from, ClusterMessage::JoinBusy);
            return;
        };
        if latest.member(from).is_some() {
            self.publish_to(from, &latest);
            return;
        }
        let other_protocol = (protocol != CLUSTER_PROTOCOL).then_some(JoinRefusal::Protocol {
            cluster: CLUSTER_PROTOCOL,
            joiner: protocol,
        });
        let other_cluster = (cluster != latest.cluster).then_some(JoinRefusal::OtherCluster {
            theirs: latest.cluster,
            ours: cluster,
        });
        let not_itself = (member.id != from).then_some(JoinRefusal::BadMember);
        let dead = match other_protocol.or(other_cluster).or(not_itself) {
            Some(refusal) => Err(refusal),
            None => self.replaced(&latest, replaces, now),
        };
        let dead = match dead {
            Ok(dead) => dead,
            Err(refusal) => {
                self.refuse(from, refusal);
                return;
            }
        };
        if let Some(refusal) = refusal_of(&latest, &member, dead) {
            self.refuse(from, refusal);
            return;
        }
        self.note_waiting(&member, now);
        let staged = self.changes.gathered.contains_key(&from)
            || self
                .changes
                .running
                .as_ref()
                .is_some_and(|run| run.joiners.contains_key(&from));
        if staged {
            return;
        }
        if let Some(refusal) = self.clash_with_gathered(&member) {
            self.refuse(from, refusal);
            return;
        }
        let can_begin = version == latest.version
            && latest.target.is_none()
            && self.configs.is_settled()
            && self.votes.is_quiet()
            && self.changes.running.is_none()
            && self.changes.gathered.len() < JOINERS_MAX.min(MEMBERS_MAX - latest.current.len());
        if !can_begin {
            self.send(from, ClusterMessage::JoinBusy);
            return;
        }
        self.changes.gathered.insert(from, Joiner { member, dead });
        self.changes
            .gather_until
            .get_or_insert(now.mono.plus(GATHER));
    }

    /// The dead member that a joiner comes in place of, if it does.
    fn replaced(
        &self,
        config: &Config,
        replaces: Option<String>,
        now: Now,
    ) -> Result<Option<NodeId>, JoinRefusal> {
        let Some(name) = replaces else {
            return Ok(None);
        };
        let id = name.parse::<NodeId>().ok();
        let mut members = config.current.iter();
        match members.find(|m| m.name == name || Some(m.id) == id) {
            None => Err(JoinRefusal::NoSuchMember { name }),
            Some(member) if self.is_alive(member.id, now) => Err(JoinRefusal::Alive { name }),
            Some(member) => Ok(Some(member.id)),
        }
    }

    fn clash_with_gathered(&self, member: &Member) -> Option<JoinRefusal> {
        let clash = self
            .changes
            .gathered
            .values()
            .map(|other| &other.member)
            .find(|other| other.name == member.name || other.peer == member.peer)?;
        Some(if clash.name == member.name {
            JoinRefusal::NameTaken {
                name: member.name.clone(),
            }
        } else {
            JoinRefusal::AddressTaken {
                address: member.peer.clone(),
            }
        })
    }

    fn refuse(&mut self, joiner: NodeId, refusal: JoinRefusal) {
        self.event(ClusterEvent::JoinerRefused {
            joiner,
            refusal: refusal.clone(),
        });
        self.send(joiner, ClusterMessage::JoinRefused { refusal });
    }

    fn begin_change(&mut self, now: Now) {
        let joiners = std::mem::take(&mut self.changes.gathered);
        let base = self.acting().filter(|latest| {
            self.configs.is_settled()
                && self.votes.is_quiet()
                && joiners
                    .values()
                    .all(|joiner| refusal_of(latest, &joiner.member, joiner.dead).is_none())
        });
        let Some(base) = base else {
            for joiner in joiners.keys() {
                self.send(*joiner, ClusterMessage::JoinBusy);
            }
            return;
        };
        let names = joiners.keys().copied().collect();
        self.event(ClusterEvent::Change {
            joiners: names,
            outcome: ChangeOutcome::Started,
        });
        self.changes.running = Some(Change {
            id: self.changes.ids.next_u64(),
            base,
            joiners,
            wish: None,
            step: Step::Probing(BTreeMap::new()),
            deadline: now.mono.plus(PROBE_WAIT),
            resend_at: now.mono.plus(RESEND),
        });
        self.ask_members();
    }

    /// Asks the members that have not reached all joiners yet.
    fn ask_members(&mut self) {
        let Some(change) = &self.changes.running else {
            return;
        };
        let Step::Probing(reached) = &change.step else {
            return;
        };
        let lacks = |id: &NodeId| {
            let by = |joiner| reached.get(joiner).is_some_and(|by| by.contains(id));
            !change.joiners.keys().all(by)
        };
        let members = change.base.current.iter().map(|member| member.id);
        let silent: Vec<NodeId> = members.filter(lacks).collect();
        let joiners = change.joiners.values().map(|j| j.member.clone()).collect();
        let message = ClusterMessage::Probe {
            change: change.id,
            joiners,
        };
        for member in silent {
            self.send(member, message.clone());
        }
    }

    pub(super) fn on_probed(&mut self, from: NodeId, id: u64, reached_by: &[NodeId]) {
        let running = self.changes.running.as_mut();
        let Some(change) = running.filter(|change| change.id == id) else {
            return;
        };
        let Step::Probing(reached) = &mut change.step else {
            return;
        };
        if !change.base.is_current(from) {
            return;
        }
        for joiner in reached_by
            .iter()
            .filter(|joiner| change.joiners.contains_key(joiner))
        {
            reached.entry(*joiner).or_default().insert(from);
        }
    }

    /// Goes from probing to proposing when enough members reach each joiner, or the time is over.
    fn judge_probing(&mut self, now: Now) {
        let Some(change) = &mut self.changes.running else {
            return;
        };
        let Step::Probing(reached) = &change.step else {
            return;
        };
        let members = change.base.current.len();
        let count = |joiner: &NodeId| reached.get(joiner).map_or(0, BTreeSet::len);
        let is_reached = |joiner: &NodeId| count(joiner) > members / 2;
        if change.deadline > now.mono && !change.joiners.keys().all(is_reached) {
            return;
        }
        let lost: Vec<(NodeId, JoinRefusal)> = change
            .joiners
            .values()
            .map(|joiner| &joiner.member)
            .filter(|joiner| !is_reached(&joiner.id))
            .map(|joiner| {
                let address = joiner.peer.clone();
                let (reached, members) = (count(&joiner.id) as u32, members as u32);
                (
                    joiner.id,
                    JoinRefusal::Unreachable {
                        address,
                        reached,
                        members,
                    },
                )
            })
            .collect();
        change
            .joiners
            .retain(|joiner, _| lost.iter().all(|(id, _)| id != joiner));
        if change.joiners.is_empty() {
            self.changes.running = None;
        } else {
            self.propose_joint(now);
        }
        for (joiner, refusal) in lost {
            self.refuse(joiner, refusal);
        }
    }

    /// Everybody is reached: the change begins with a joint config.
    fn propose_joint(&mut self, now: Now) {
        let Some(change) = &mut self.changes.running else {
            return;
        };
        let changes: Vec<RingChange> = change
            .joiners
            .iter()
            .map(|(&node, joiner)| match joiner.dead {
                None => RingChange::Join { node },
                Some(dead) => RingChange::Replace { dead, by: node },
            })
            .collect();
        let waiting = change
            .joiners
            .iter()
            .map(|(&node, joiner)| (node, joiner.member.clone()));
        let staged = stage(&change.base, &changes, &waiting.collect());
        let Ok(wish) = staged else {
            self.postpone_change();
            return;
        };
        let wish = Arc::new(wish);
        change.step = Step::Proposing;
        change.wish = Some(Arc::clone(&wish));
        let joiners = change.joiners.keys().copied().collect();
        if self.propose(wish, now) {
            self.event(ClusterEvent::Change {
                joiners,
                outcome: ChangeOutcome::Proposed,
            });
        } else {
            self.postpone_change();
        }
    }

    /// The proposal has run for long without a decision. It goes on, but nobody should wait for it.
    pub(super) fn change_unknown(&mut self) {
        if let Some(change) = &self.changes.running {
            let joiners = change.joiners.keys().copied().collect();
            self.event(ClusterEvent::Change {
                joiners,
                outcome: ChangeOutcome::Unknown,
            });
        }
    }

    /// A config was decided: a change that followed an older one is over.
    pub(super) fn change_decided(&mut self, config: &Config) {
        let Some(change) = self
            .changes
            .running
            .take_if(|c| c.base.version < config.version)
        else {
            return;
        };
        let (taken, left): (Vec<NodeId>, Vec<NodeId>) = change
            .joiners
            .into_keys()
            .partition(|joiner| config.member(*joiner).is_some());
        for joiner in &left {
            self.send(*joiner, ClusterMessage::JoinBusy);
        }
        if !taken.is_empty() {
            let outcome = ChangeOutcome::Committed;
            self.event(ClusterEvent::Change {
                joiners: taken,
                outcome,
            });
        }
        if !left.is_empty() {
            let outcome = ChangeOutcome::Postponed;
            self.event(ClusterEvent::Change {
                joiners: left,
                outcome,
            });
        }
    }

    /// The joiners of the running change ask again.
    fn postpone_change(&mut self) {
        let Some(change) = self.changes.running.take() else {
            return;
        };
        for joiner in change.joiners.keys() {
            self.send(*joiner, ClusterMessage::JoinBusy);
        }
        let joiners = change.joiners.into_keys().collect();
        let outcome = ChangeOutcome::Postponed;
        self.event(ClusterEvent::Change { joiners, outcome });
    }

    pub(super) fn tick_changes(&mut self, now: Now) {
        if self
            .changes
            .gather_until
            .is_some_and(|until| until <= now.mono)
        {
            self.changes.gather_until = None;
            self.begin_change(now);
        }
        self.judge_probing(now);
        let Some(change) = &mut self.changes.running else {
            return;
        };
        if matches!(change.step, Step::Proposing) {
            // The proposal has its own timers.
            change.resend_at = now.mono.plus(SECOND);
            change.deadline = now.mono.plus(SECOND);
        } else if change.resend_at <= now.mono {
            change.resend_at = now.mono.plus(RESEND);
            self.ask_members();
        }
    }
}

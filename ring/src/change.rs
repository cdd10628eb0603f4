//! The versions that a configuration may go through: staged changes of the ring become a joint
//! configuration, which ends in a switch or is taken back.
//!
//! Invariant: each of these functions yields the **next** version, and [`follows`] accepts exactly what
//! they can yield, so that a faulty proposal is refused by every acceptor. Who may propose which of them,
//! and when, is the protocol's business.
//!
//! Source: joint consensus (Ongaro, "Consensus: Bridging Theory and Practice", section 4.3).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::config::{
    Bucket, BucketId, Config, ConfigError, ConfigVersion, Member, NodeId, RingVersion,
};
use crate::next_tables::{fresh_tables, target_tables};
use crate::owner_table::OwnerTable;

/// One change of the ring; several may be staged into one plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "lowercase")]
pub enum RingChange {
    /// A node that has asked to be taken in becomes a member.
    Join {
        /// Who.
        node: NodeId,
    },
    /// A member gives its data to the others and goes.
    Leave {
        /// Who.
        node: NodeId,
    },
    /// A member that is dead is taken out: nobody waits for it.
    Remove {
        /// Who.
        node: NodeId,
    },
    /// A member that is dead is taken out, and a node that has asked to be taken in comes in its place.
    Replace {
        /// Who is dead.
        dead: NodeId,
        /// Who comes.
        by: NodeId,
    },
    /// A member gets another share of the ring.
    Reweigh {
        /// Who.
        node: NodeId,
        /// 1..=10,000.
        weight: u32,
    },
    /// A member is in another failure domain.
    Rezone {
        /// Who.
        node: NodeId,
        /// Where.
        zone: String,
    },
    /// A bucket gets another number of replicas.
    Replicas {
        /// Its name.
        bucket: String,
        /// 1..=16.
        n: u8,
    },
}

/// How the last change of the ring ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastChange {
    /// The ring version of its joint phase.
    pub ring: RingVersion,
    /// How.
    pub end: ChangeEnd,
}

/// How a change of the ring ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeEnd {
    /// The target is the ring now.
    Switched,
    /// An operator took it back.
    Aborted,
    /// Too few owners of the target ring could be reached for too long.
    NoTargetQuorum,
}

/// Why changes cannot be staged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum StageError {
    #[error("a change of the ring is running: wait for it, or abort it first")]
    Running,
    #[error("nothing would change")]
    Nothing,
    #[error("node {node} is no member of the ring")]
    NoMember { node: NodeId },
    #[error("node {node} is a member already")]
    IsMember { node: NodeId },
    #[error("node {node} has not asked to be taken in: start it with --join, and try again")]
    NotWaiting { node: NodeId },
    #[error("node {node} is named by two of the changes")]
    Twice { node: NodeId },
    #[error("nobody would be left in the ring")]
    NobodyLeft,
    #[error("there is no bucket `{bucket}`")]
    NoBucket { bucket: String },
    #[error("r or w of bucket `{bucket}` is a number above n = {n}: change that first")]
    QuorumAboveReplicas { bucket: String, n: u8 },
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// The joint configuration that `changes` make of `config`; `waiting` are the nodes that have asked to be
/// taken in.
///
/// # Errors
/// Says which change cannot be made, and why.
pub fn stage(
    config: &Config,
    changes: &[RingChange],
    waiting: &BTreeMap<NodeId, Member>,
) -> Result<Config, StageError> {
    if config.target.is_some() {
        return Err(StageError::Running);
    }
    let mut staged = Staged {
        members: config.current.iter().map(|m| (m.id, m.clone())).collect(),
        named: BTreeSet::new(),
        abandoned: BTreeSet::new(),
        target_n: BTreeMap::new(),
    };
    for change in changes {
        staged.add(config, change, waiting)?;
    }
    let target: Vec<Member> = staged.members.into_values().collect();
    if target.is_empty() {
        return Err(StageError::NobodyLeft);
    }
    if target == config.current && staged.target_n.is_empty() {
        return Err(StageError::Nothing);
    }
    let version = ConfigVersion(config.version.0 + 1);
    let mut joint = Config {
        version,
        ring_version: RingVersion(version.0),
        target: Some(target),
        target_n: staged.target_n.into_iter().collect(),
        abandoned: staged.abandoned.into_iter().collect(),
        ..config.clone()
    };
    // Also before the owners are worked out, which relies on it.
    joint.validate()?;
    joint.target_tables = target_tables(&joint);
    joint.validate()?;
    Ok(joint)
}

struct Staged {
    members: BTreeMap<NodeId, Member>,
    named: BTreeSet<NodeId>,
    abandoned: BTreeSet<NodeId>,
    target_n: BTreeMap<BucketId, u8>,
}

impl Staged {
    fn add(
        &mut self,
        config: &Config,
        change: &RingChange,
        waiting: &BTreeMap<NodeId, Member>,
    ) -> Result<(), StageError> {
        match change {
            RingChange::Join { node } => self.join(config, *node, waiting),
            RingChange::Leave { node } => self.take_out(*node),
            RingChange::Remove { node } => self.remove(*node),
            RingChange::Replace { dead, by } => {
                self.remove(*dead)?;
                self.join(config, *by, waiting)
            }
            RingChange::Reweigh { node, weight } => {
                self.member(*node)?.weight = *weight;
                Ok(())
            }
            RingChange::Rezone { node, zone } => {
                self.member(*node)?.zone.clone_from(zone);
                Ok(())
            }
            RingChange::Replicas { bucket, n } => self.replicas(config, bucket, *n),
        }
    }

    fn name(&mut self, node: NodeId) -> Result<(), StageError> {
        if self.named.insert(node) {
            Ok(())
        } else {
            Err(StageError::Twice { node })
        }
    }

    /// A member that stays; its weight and its zone may both change.
    fn member(&mut self, node: NodeId) -> Result<&mut Member, StageError> {
        self.members
            .get_mut(&node)
            .ok_or(StageError::NoMember { node })
    }

    fn join(
        &mut self,
        config: &Config,
        node: NodeId,
        waiting: &BTreeMap<NodeId, Member>,
    ) -> Result<(), StageError> {
        self.name(node)?;
        if config.is_current(node) {
            return Err(StageError::IsMember { node });
        }
        let member = waiting.get(&node).ok_or(StageError::NotWaiting { node })?;
        self.members.insert(node, member.clone());
        Ok(())
    }

    fn take_out(&mut self, node: NodeId) -> Result<(), StageError> {
        self.name(node)?;
        match self.members.remove(&node) {
            Some(_) => Ok(()),
            None => Err(StageError::NoMember { node }),
        }
    }

    fn remove(&mut self, node: NodeId) -> Result<(), StageError> {
        self.take_out(node)?;
        self.abandoned.insert(node);
        Ok(())
    }

    fn replicas(&mut self, config: &Config, name: &str, n: u8) -> Result<(), StageError> {
        let bucket = config.bucket(name).ok_or_else(|| StageError::NoBucket {
            bucket: name.to_owned(),
        })?;
        if n == 0 || n > crate::config::REPLICAS_MAX {
            return Err(ConfigError::BadReplicas { n }.into());
        }
        if !bucket.r.fits(n) || !bucket.w.fits(n) {
            return Err(StageError::QuorumAboveReplicas {
                bucket: name.to_owned(),
                n,
            });
        }
        if n != bucket.n {
            self.target_n.insert(bucket.id, n);
        }
        Ok(())
    }
}

impl Config {
    /// The number of replicas that a bucket will have in the target ring; its present one unless that
    /// changes.
    #[must_use]
    pub fn target_replicas(&self, bucket: &Bucket) -> u8 {
        let at = self
            .target_n
            .binary_search_by_key(&bucket.id, |(id, _)| *id);
        at.ok().map_or(bucket.n, |at| self.target_n[at].1)
    }

    /// The switch that ends the joint phase: the target is the ring. `None` outside one.
    #[must_use]
    pub fn switched(&self) -> Option<Self> {
        let target = self.target.clone()?;
        let mut next = self.ended(ChangeEnd::Switched);
        next.current = target;
        next.recovering.clone_from(&self.recovering);
        next.forget_strangers();
        next.tables.clone_from(&self.target_tables);
        for bucket in &mut next.buckets {
            bucket.n = self.target_replicas(bucket);
        }
        Some(next)
    }

    /// The joint phase is taken back: the current ring stays. `None` outside one.
    #[must_use]
    pub fn aborted(&self, why: ChangeEnd) -> Option<Self> {
        self.target.as_ref()?;
        Some(self.ended(why))
    }

    fn ended(&self, end: ChangeEnd) -> Self {
        let last = LastChange {
            ring: self.ring_version,
            end,
        };
        let mut next = Self {
            target: None,
            target_n: Vec::new(),
            abandoned: Vec::new(),
            target_tables: Vec::new(),
            last_change: Some(last),
            ..self.reissued()
        };
        next.forget_strangers();
        next
    }

    /// Who is no member any more does not recover either.
    fn forget_strangers(&mut self) {
        let mut recovering = std::mem::take(&mut self.recovering);
        recovering.retain(|&id| self.member(id).is_some());
        self.recovering = recovering;
    }

    /// The same ring, in whatever phase it is, under a new ring version, in which that member may lack records
    /// which it had stored: also when it is said to already, since it may have lost more. `None` when it is no
    /// member.
    #[must_use]
    pub fn with_recovering(&self, node: NodeId) -> Option<Self> {
        self.member(node)?;
        let mut next = self.reissued();
        if let Err(at) = next.recovering.binary_search(&node) {
            next.recovering.insert(at, node);
        }
        Some(next)
    }

    /// The same ring under a new ring version, in which that member has got back what it may have lost. `None`
    /// when it is not said to lack anything.
    #[must_use]
    pub fn recovered(&self, node: NodeId) -> Option<Self> {
        let at = self.recovering.binary_search(&node).ok()?;
        let mut next = self.reissued();
        next.recovering.remove(at);
        Some(next)
    }

    /// The same ring under a new ring version: acks and answers of the old one are void.
    #[must_use]
    pub fn reissued(&self) -> Self {
        let version = ConfigVersion(self.version.0 + 1);
        Self {
            version,
            ring_version: RingVersion(version.0),
            ..self.clone()
        }
    }

    /// The next version with these buckets (put in order here), which leaves the ring alone. Tables of
    /// owners that no bucket uses any more go; where a bucket is the first with its n, its owners are
    /// computed until the ring changes.
    #[must_use]
    pub fn with_buckets(&self, mut buckets: Vec<Bucket>, next_bucket: BucketId) -> Self {
        buckets.sort_by(|a, b| a.name.cmp(&b.name));
        let mut next = Self {
            version: ConfigVersion(self.version.0 + 1),
            buckets,
            next_bucket,
            ..self.clone()
        };
        next.tables = used(&self.tables, next.buckets.iter().map(|bucket| bucket.n));
        let target = next.buckets.iter().map(|b| next.target_replicas(b));
        next.target_tables = used(&self.target_tables, target);
        next
    }

    /// The next version with these members (put in order here) of a cluster without keys: nothing has to
    /// be copied, and owners are spread as evenly as they can be.
    #[must_use]
    pub fn regrouped(&self, members: Vec<Member>) -> Self {
        let mut next = self.with_members(members);
        next.tables = fresh_tables(&next);
        next
    }
}

/// The tables for these values of n.
fn used(tables: &[OwnerTable], counts: impl Iterator<Item = u8>) -> Vec<OwnerTable> {
    let counts: BTreeSet<u8> = counts.collect();
    let is_used = |table: &&OwnerTable| counts.contains(&table.n());
    tables.iter().filter(is_used).cloned().collect()
}

/// Whether `next` can be the version after `decided`.
#[must_use]
pub fn follows(decided: &Config, next: &Config) -> bool {
    let fixed = next.version == ConfigVersion(decided.version.0 + 1)
        && next.cluster == decided.cluster
        && next.seed == decided.seed
        && next.secret == decided.secret
        && next.partition_bits == decided.partition_bits;
    let allowed = [is_plain, is_joint, is_end, is_recovery];
    fixed && allowed.iter().any(|is_such| is_such(decided, next))
}

/// Buckets come, go, or change what moves nothing.
fn is_plain(decided: &Config, next: &Config) -> bool {
    let keeps = |bucket: &Bucket| match decided.bucket_by_id(bucket.id) {
        Some(before) => before.n == bucket.n,
        None => bucket.id >= decided.next_bucket && bucket.id < next.next_bucket,
    };
    decided.with_buckets(next.buckets.clone(), next.next_bucket) == *next
        && next.next_bucket >= decided.next_bucket
        && next.buckets.iter().all(keeps)
}

fn is_joint(decided: &Config, next: &Config) -> bool {
    let begun = Config {
        target: next.target.clone(),
        target_n: next.target_n.clone(),
        abandoned: next.abandoned.clone(),
        target_tables: next.target_tables.clone(),
        ..decided.reissued()
    };
    decided.target.is_none() && begun == *next
}

fn is_end(decided: &Config, next: &Config) -> bool {
    match next.last_change.map(|last| last.end) {
        _ if decided.target.is_none() => decided.reissued() == *next,
        Some(ChangeEnd::Switched) => decided.switched().as_ref() == Some(next),
        Some(why) => decided.aborted(why).as_ref() == Some(next),
        None => false,
    }
}

/// Others may lack records now; also in a joint phase.
fn is_recovery(decided: &Config, next: &Config) -> bool {
    let changed = Config {
        recovering: next.recovering.clone(),
        ..decided.reissued()
    };
    let concerns = !decided.recovering.is_empty() || !next.recovering.is_empty();
    concerns && changed == *next
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ClusterId, Secret};

    fn member(id: u64) -> Member {
        Member {
            id: NodeId(id),
            name: format!("node-{id}"),
            zone: String::new(),
            weight: 100,
            peer: format!("127.0.0.1:{}", 7000 + id),
            http: format!("127.0.0.1:{}", 8000 + id),
        }
    }

    fn three() -> Config {
        let alone = Config::bootstrap(ClusterId(1), (7, Secret([0; 32])), 4, member(1));
        alone.with_members((1..=3).map(member).collect())
    }

    fn waiting(ids: &[u64]) -> BTreeMap<NodeId, Member> {
        ids.iter().map(|id| (NodeId(*id), member(*id))).collect()
    }

    fn ids(members: &[Member]) -> Vec<u64> {
        members.iter().map(|m| m.id.0).collect()
    }

    #[test]
    fn several_changes_become_one_joint_configuration_and_one_ring() {
        let before = three();
        let changes = [
            RingChange::Join { node: NodeId(4) },
            RingChange::Replace {
                dead: NodeId(2),
                by: NodeId(5),
            },
            RingChange::Reweigh {
                node: NodeId(1),
                weight: 200,
            },
            RingChange::Replicas {
                bucket: "default".into(),
                n: 2,
            },
        ];
        let joint = stage(&before, &changes, &waiting(&[4, 5])).expect("staged");
        assert!(follows(&before, &joint));
        assert_eq!(joint.current, before.current, "the old ring goes on");
        assert_eq!(joint.abandoned, [NodeId(2)]);
        let after = joint.switched().expect("joint");
        assert!(follows(&joint, &after));
        assert_eq!(ids(&after.current), [1, 3, 4, 5]);
        assert_eq!(after.current[0].weight, 200);
        assert_eq!(after.bucket("default").map(|b| b.n), Some(2));
        assert_eq!(after.target, None);
        let taken_back = joint.aborted(ChangeEnd::NoTargetQuorum).expect("joint");
        assert!(follows(&joint, &taken_back));
        assert_eq!(taken_back.current, before.current);
        assert_eq!(taken_back.bucket("default").map(|b| b.n), Some(3));
        assert!(taken_back.ring_version > joint.ring_version);
    }

    #[test]
    fn what_cannot_be_staged_says_why() {
        let before = three();
        let stage = |changes: &[RingChange]| stage(&before, changes, &waiting(&[4]));
        let node = NodeId(9);
        let leave = |id| RingChange::Leave { node: NodeId(id) };
        assert_eq!(stage(&[leave(9)]), Err(StageError::NoMember { node }));
        assert_eq!(
            stage(&[RingChange::Join { node }]),
            Err(StageError::NotWaiting { node })
        );
        assert_eq!(
            stage(&[leave(1), leave(2), leave(3)]),
            Err(StageError::NobodyLeft)
        );
        assert_eq!(
            stage(&[leave(1), leave(1)]),
            Err(StageError::Twice { node: NodeId(1) })
        );
        assert_eq!(stage(&[]), Err(StageError::Nothing));
        let reweigh = RingChange::Reweigh {
            node: NodeId(1),
            weight: 0,
        };
        assert!(matches!(stage(&[reweigh]), Err(StageError::Config(_))));
    }

    #[test]
    fn a_member_recovers_under_a_ring_version_of_its_own_also_in_a_joint_phase() {
        let base = three();
        let lost = base.with_recovering(NodeId(2)).expect("a member");
        assert!(lost.recovers(NodeId(2)) && !lost.recovers(NodeId(1)));
        assert_eq!(lost.ring_version, RingVersion(lost.version.0));
        assert!(lost.validate().is_ok() && follows(&base, &lost));
        assert!(base.with_recovering(NodeId(9)).is_none(), "no member");

        // It may lose more: a new ring version says so again.
        let again = lost.with_recovering(NodeId(2)).expect("a member");
        assert_eq!(again.recovering, [NodeId(2)]);
        assert!(follows(&lost, &again) && again.ring_version > lost.ring_version);

        let leave = RingChange::Leave { node: NodeId(3) };
        let joint = stage(&lost, &[leave], &BTreeMap::new()).expect("staged");
        assert!(follows(&lost, &joint) && joint.recovers(NodeId(2)));
        let both = joint.with_recovering(NodeId(3)).expect("a member");
        assert_eq!(both.target, joint.target);
        assert!(follows(&joint, &both));

        // Who is no member any more does not recover either.
        let switched = both.switched().expect("joint");
        assert_eq!(switched.recovering, [NodeId(2)]);
        assert!(switched.validate().is_ok() && follows(&both, &switched));
        let aborted = both.aborted(ChangeEnd::Aborted).expect("joint");
        assert_eq!(aborted.recovering, [NodeId(2), NodeId(3)]);
        assert!(follows(&both, &aborted));

        let back = switched.recovered(NodeId(2)).expect("it recovers");
        assert!(back.recovering.is_empty() && follows(&switched, &back));
        assert!(back.recovered(NodeId(2)).is_none());
    }

    #[test]
    fn who_recovers_is_a_member_and_stands_in_order() {
        let mut config = three();
        config.recovering = vec![NodeId(2), NodeId(1)];
        assert_eq!(config.validate(), Err(ConfigError::BadRecovering));
        config.recovering = vec![NodeId(7)];
        assert_eq!(config.validate(), Err(ConfigError::BadRecovering));
        let base = three();
        let mut same_ring = base.with_recovering(NodeId(2)).expect("a member");
        same_ring.ring_version = base.ring_version;
        assert!(!follows(&base, &same_ring), "acks of before would count");
    }

    #[test]
    fn nothing_else_may_follow() {
        let before = three();
        let other_members = before.with_members(vec![member(1), member(2)]);
        assert!(
            !follows(&before, &other_members),
            "members change by way of a joint phase"
        );
        let joint = stage(
            &before,
            &[RingChange::Leave { node: NodeId(3) }],
            &waiting(&[]),
        )
        .expect("staged");
        let mut other_target = joint.reissued();
        other_target.target = Some(vec![member(1)]);
        assert!(!follows(&joint, &other_target), "one change at a time");
        let mut half = joint.switched().expect("joint");
        half.current = vec![member(1)];
        assert!(!follows(&joint, &half), "a switch goes to the target");
        let mut buckets = joint.buckets.clone();
        buckets[0].n = 2;
        let moved = joint.with_buckets(buckets, joint.next_bucket);
        assert!(!follows(&joint, &moved), "another n moves data");
        let mut buckets = joint.buckets.clone();
        buckets.push(Bucket::new(joint.next_bucket, "photos"));
        let next_bucket = BucketId(joint.next_bucket.0 + 1);
        let more = joint.with_buckets(buckets, next_bucket);
        assert!(follows(&joint, &more), "buckets may come at any time");
        assert_eq!(more.ring_version, joint.ring_version);
        assert!(follows(&before, &before.reissued()));
    }
}

//! Operators' requests: planned and checked here, carried out by [`super::vote`] and [`super::drive`].
//!
//! Invariant: a commit is answered only when a majority of the members that decided it has stored the
//! decision; one that is not decided in time is *unknown*, and says so.

use std::collections::BTreeMap;
use std::sync::Arc;

use torc_ring::change::{StageError, stage};
use torc_ring::config::is_bucket_name;
use torc_ring::{Bucket, BucketId, ChangeEnd, Config, ConfigError, Member, NodeId, RingChange};

use super::Cluster;
use crate::cluster_admin::{
    AdminError, AdminId, AdminReply, AdminRequest, BucketChange, BucketSettings, ChangePhase,
    NodeStatus, Role, Status,
};
use crate::cluster_io::ClusterOutput;
use crate::time::{MS, Mono, Now, SECOND};

/// Requests that may wait at a time.
const PENDING_MAX: usize = 64;
/// A commit that is not decided after this time is unknown, in microseconds.
const COMMIT_WAIT: u64 = 10 * SECOND;
/// A status waits this long for what the others say, in microseconds.
const STATUS_WAIT: u64 = 300 * MS;
/// Nodes that want to be taken in are remembered for so long, in microseconds.
const WAITING_AGE_MAX: u64 = 30 * SECOND;
/// A node that was heard of within this time is not dead, in microseconds.
const ALIVE: u64 = 5 * SECOND;

#[derive(Debug, Default)]
pub(super) struct Admin {
    commits: Vec<Commit>,
    statuses: Vec<(AdminId, Mono)>,
    waiting: BTreeMap<NodeId, (Member, Mono)>,
}

/// A commit on its way.
#[derive(Debug)]
struct Commit {
    id: AdminId,
    base: Arc<Config>,
    wish: Arc<Config>,
    decided: bool,
    until: Mono,
}

impl Admin {
    pub(super) fn deadline(&self) -> Option<Mono> {
        let commits = self.commits.iter().map(|commit| commit.until);
        let statuses = self.statuses.iter().map(|(_, at)| *at);
        commits.chain(statuses).min()
    }

    pub(super) fn leads(&self, config: &Config) -> bool {
        self.commits.iter().any(|commit| *commit.wish == *config)
    }
}

impl Cluster {
    pub(super) fn on_admin(&mut self, id: AdminId, request: AdminRequest, now: Now) {
        if let Err(error) = self.admin(id, request, now) {
            self.reply(id, Err(error));
        }
    }

    fn reply(&mut self, id: AdminId, reply: Result<AdminReply, AdminError>) {
        self.out.push_back(ClusterOutput::AdminReply(id, reply));
    }

    fn admin(&mut self, id: AdminId, request: AdminRequest, now: Now) -> Result<(), AdminError> {
        let waiting = self.admin.commits.len() + self.admin.statuses.len();
        if waiting >= PENDING_MAX {
            return Err(AdminError::TooMany);
        }
        if matches!(request, AdminRequest::Status) {
            return self.admin_status(id, now);
        }
        let latest = self.deciding()?;
        match request {
            AdminRequest::Status => Ok(()),
            AdminRequest::Plan(changes) => {
                let joint = self.staged(&latest, &changes, now)?;
                let reply = AdminReply::Planned {
                    present: latest,
                    joint: Box::new(joint),
                };
                self.reply(id, Ok(reply));
                Ok(())
            }
            AdminRequest::Commit { changes, version } => {
                if let Some(planned) = version.filter(|planned| *planned != latest.version) {
                    let now = latest.version;
                    return Err(AdminError::Moved { planned, now });
                }
                let joint = self.staged(&latest, &changes, now)?;
                self.commit_wish(id, (latest, joint), now)
            }
            AdminRequest::Abort => {
                let back = latest
                    .aborted(ChangeEnd::Aborted)
                    .ok_or(AdminError::NothingToAbort)?;
                if !self.may_abort(&latest, now) {
                    return Err(AdminError::Busy(Box::new(self.status(&latest, now))));
                }
                // An abort may overtake a switch that this node proposes: one of them is decided.
                self.withdraw_all();
                self.commit_wish(id, (latest, back), now)
            }
            AdminRequest::Bucket(change) => {
                let next = self.with_bucket(&latest, change, now)?;
                self.commit_wish(id, (latest, next), now)
            }
        }
    }

    /// The newest config, when this node may propose what follows it.
    fn deciding(&self) -> Result<Arc<Config>, AdminError> {
        if !self.is_serving() {
            return Err(AdminError::NotServing);
        }
        let latest = self.acting().ok_or(AdminError::NotMember)?;
        if self.peers.clock_trusted() {
            Ok(latest)
        } else {
            Err(AdminError::ClockDrift)
        }
    }

    fn staged(
        &mut self,
        latest: &Arc<Config>,
        changes: &[RingChange],
        now: Now,
    ) -> Result<Config, AdminError> {
        for change in changes {
            if let RingChange::Remove { node } | RingChange::Replace { dead: node, .. } = change
                && self.is_alive(*node, now)
            {
                return Err(AdminError::Alive { node: *node });
            }
        }
        let waiting = self.waiting(now);
        match stage(latest, changes, &waiting) {
            Err(StageError::Running) => Err(AdminError::Busy(Box::new(self.status(latest, now)))),
            staged => Ok(staged?),
        }
    }

    /// Whether that member was heard of a moment ago.
    pub(super) fn is_alive(&self, node: NodeId, now: Now) -> bool {
        let heard = self.peers.heard_at(node);
        node == self.node || heard.is_some_and(|at| now.mono.since(at) <= ALIVE)
    }

    /// Proposes `wish`, and remembers who waits for it.
    fn commit_wish(
        &mut self,
        id: AdminId,
        (base, wish): (Arc<Config>, Config),
        now: Now,
    ) -> Result<(), AdminError> {
        wish.validate()?;
        let wish = Arc::new(wish);
        if self.votes.is_proposing() || !self.propose(Arc::clone(&wish), now) {
            return Err(AdminError::Busy(Box::new(self.status(&base, now))));
        }
        self.admin.commits.push(Commit {
            id,
            base,
            wish,
            decided: false,
            until: now.mono.plus(COMMIT_WAIT),
        });
        Ok(())
    }

    /// A config was decided: it is what somebody waits for, or stands in its place.
    pub(super) fn admin_decided(&mut self, config: &Config) {
        let mut over = Vec::new();
        for commit in &mut self.admin.commits {
            if *commit.wish == *config {
                commit.decided = true;
            } else if commit.wish.version == config.version && !commit.decided {
                over.push(commit.id);
            }
        }
        self.admin
            .commits
            .retain(|commit| !over.contains(&commit.id));
        for id in over {
            let version = config.version;
            self.reply(id, Err(AdminError::Overtaken { version }));
        }
    }

    pub(super) fn tick_admin(&mut self, now: Now) {
        if self.admin.commits.is_empty() && self.admin.statuses.is_empty() {
            return;
        }
        let (node, peers) = (self.node, &self.peers);
        let mine = self.configs.latest_version();
        let is_stored = |commit: &Commit| {
            let version = commit.wish.version;
            let knows = |id: NodeId| {
                let known = if id == node { mine } else { peers.decided(id) };
                known >= version
            };
            let count = commit.base.current.iter().filter(|m| knows(m.id)).count();
            commit.decided && count > commit.base.current.len() / 2
        };
        let (done, rest): (Vec<Commit>, Vec<Commit>) = std::mem::take(&mut self.admin.commits)
            .into_iter()
            .partition(|commit| is_stored(commit) || commit.until <= now.mono);
        let replies: Vec<_> = done
            .iter()
            .map(|commit| {
                let (version, ring) = (commit.wish.version, commit.wish.ring_version);
                let reply = if is_stored(commit) {
                    Ok(AdminReply::Committed { version, ring })
                } else {
                    Err(AdminError::Unknown { version })
                };
                (commit.id, reply)
            })
            .collect();
        self.admin.commits = rest;
        for (id, reply) in replies {
            self.reply(id, reply);
        }
        let due: Vec<AdminId> = self
            .admin
            .statuses
            .iter()
            .filter(|(_, at)| *at <= now.mono)
            .map(|(id, _)| *id)
            .collect();
        self.admin.statuses.retain(|(id, _)| !due.contains(id));
        for id in due {
            if let Some(latest) = self.configs.latest().cloned() {
                let status = self.status(&latest, now);
                self.reply(id, Ok(AdminReply::Status(Box::new(status))));
            }
        }
    }

    fn admin_status(&mut self, id: AdminId, now: Now) -> Result<(), AdminError> {
        let latest = self
            .configs
            .latest()
            .cloned()
            .ok_or(AdminError::NotServing)?;
        if self.watch_progress(now) {
            self.admin.statuses.push((id, now.mono.plus(STATUS_WAIT)));
        } else {
            let status = self.status(&latest, now);
            self.reply(id, Ok(AdminReply::Status(Box::new(status))));
        }
        Ok(())
    }

    pub(super) fn status(&self, latest: &Arc<Config>, now: Now) -> Status {
        let mut members: Vec<&Member> = latest.all_members().collect();
        members.sort_by_key(|member| member.id);
        let phase = match (&latest.target, self.votes.is_proposing()) {
            (Some(_), true) if self.is_complete(latest) => ChangePhase::Switching,
            (Some(_), _) => ChangePhase::Joint,
            (None, true) => ChangePhase::Proposing,
            (None, false) => ChangePhase::Idle,
        };
        let nodes = members.into_iter().map(|member| {
            let own = member.id == self.node;
            NodeStatus {
                member: member.clone(),
                role: role(latest, member.id),
                silent_us: if own {
                    Some(0)
                } else {
                    self.peers.heard_at(member.id).map(|at| now.mono.since(at))
                },
                version: if own {
                    self.configs.latest_version()
                } else {
                    self.peers.decided(member.id)
                },
                progress: self.drive.told(member.id),
            }
        });
        Status {
            phase,
            nodes: nodes.collect(),
            last: latest.last_change,
            waiting: self
                .admin
                .waiting
                .values()
                .filter(|(member, at)| is_waiting(latest, member, *at, now))
                .map(|(member, _)| member.clone())
                .collect(),
            config: Arc::clone(latest),
        }
    }

    /// A node has asked to be taken in.
    pub(super) fn note_waiting(&mut self, member: &Member, now: Now) {
        if self.admin.waiting.len() < PENDING_MAX || self.admin.waiting.contains_key(&member.id) {
            let entry = (member.clone(), now.mono);
            self.admin.waiting.insert(member.id, entry);
        }
    }

    fn waiting(&mut self, now: Now) -> BTreeMap<NodeId, Member> {
        let fresh = |at: Mono| now.mono.since(at) <= WAITING_AGE_MAX;
        self.admin.waiting.retain(|_, (_, at)| fresh(*at));
        let waiting = self.admin.waiting.iter();
        waiting
            .map(|(id, (member, _))| (*id, member.clone()))
            .collect()
    }

    fn with_bucket(
        &mut self,
        latest: &Arc<Config>,
        change: BucketChange,
        now: Now,
    ) -> Result<Config, AdminError> {
        let mut buckets = latest.buckets.clone();
        let mut next_bucket = latest.next_bucket;
        match change {
            BucketChange::Delete { name } => {
                let before = buckets.len();
                buckets.retain(|bucket| bucket.name != name);
                if buckets.len() == before {
                    return Err(AdminError::NoBucket { name });
                }
            }
            BucketChange::Put { name, settings } => {
                if !is_bucket_name(&name) {
                    return Err(ConfigError::BadBucketName { name }.into());
                }
                match buckets.iter_mut().find(|bucket| bucket.name == name) {
                    None => {
                        let mut bucket = Bucket::new(next_bucket, &name);
                        settings.apply_to(&mut bucket);
                        buckets.push(bucket);
                        next_bucket = BucketId(next_bucket.0 + 1);
                    }
                    Some(bucket) if bucket.conflict != settings.conflict => {
                        return Err(AdminError::ConflictMode { name });
                    }
                    Some(bucket) if bucket.n != settings.n => {
                        let n = settings.n;
                        let only_n = BucketSettings {
                            n,
                            ..BucketSettings::of(bucket)
                        };
                        if only_n != settings {
                            return Err(AdminError::ReplicasAlone { name });
                        }
                        let bucket = name;
                        return self.staged(latest, &[RingChange::Replicas { bucket, n }], now);
                    }
                    Some(bucket) => settings.apply_to(bucket),
                }
            }
        }
        if buckets == latest.buckets {
            return Err(StageError::Nothing.into());
        }
        Ok(latest.with_buckets(buckets, next_bucket))
    }
}

/// Whether a node that asked at that time to be taken in still waits for it.
fn is_waiting(config: &Config, member: &Member, asked_at: Mono, now: Now) -> bool {
    now.mono.since(asked_at) <= WAITING_AGE_MAX && config.member(member.id).is_none()
}

fn role(config: &Config, node: NodeId) -> Role {
    let Some(target) = &config.target else {
        return Role::Stays;
    };
    let stays = target.iter().any(|member| member.id == node);
    match (config.is_current(node), stays) {
        (true, true) => Role::Stays,
        (false, _) => Role::Joins,
        (true, false) if config.abandoned.contains(&node) => Role::Removed,
        (true, false) => Role::Leaves,
    }
}

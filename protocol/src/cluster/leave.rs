//! The way out, and the way back to the door: members that a config names no more, and joiners whose
//! change was taken back.
//!
//! Invariant: a node that leaves stays until a majority of the ring that it leaves behind has stored the
//! config that lets it go; else those that are left might never learn that they may go on without it.

use torc_ring::{ChangeEnd, Config, ConfigVersion, NodeId};

use super::{Cluster, Phase};
use crate::cluster_io::ClusterOutput;
use crate::cluster_message::{CLUSTER_PROTOCOL, ClusterMessage, JoinRefusal};
use crate::mutant::Mutant;
use crate::time::{Mono, Now, SECOND};

/// Those that have not stored the config that lets this node go are told it this often, in microseconds.
const TELL_EVERY: u64 = SECOND;
/// A joiner whose change was taken back asks again after this time, in microseconds.
const ASK_AGAIN: (u64, u64) = (3 * SECOND, 6 * SECOND);

/// A member that no config names any more.
#[derive(Debug)]
pub(super) struct Leaver {
    version: ConfigVersion,
    tell_at: Mono,
}

impl Leaver {
    pub(super) fn tell_at(&self) -> Mono {
        self.tell_at
    }
}

impl Cluster {
    /// What it means that an applied config does not name this node.
    pub(super) fn note_removal(&mut self, now: Now) {
        let Some(applied) = self.configs.applied_config() else {
            return;
        };
        let version = applied.version;
        let newest = self.configs.latest_version() == version;
        let outside = applied.member(self.node).is_none();
        if !newest || !outside || !matches!(self.phase, Phase::Checking(_) | Phase::Serving) {
            return;
        }
        if self
            .configs
            .kept()
            .any(|config| config.is_current(self.node))
        {
            let tell_at = now.mono;
            self.phase = Phase::Leaving(Leaver { version, tell_at });
            return;
        }
        // A joiner that never was a member.
        let operator = applied
            .last_change
            .is_some_and(|last| last.end == ChangeEnd::Aborted);
        if operator {
            self.phase = Phase::Removed;
            self.out
                .push_back(ClusterOutput::JoinRefused(JoinRefusal::Aborted));
        } else if self.ask_again.is_none() {
            self.ask_again = Some(self.jitter(now, ASK_AGAIN.0, ASK_AGAIN.1));
        }
    }

    pub(super) fn tick_leave(&mut self, now: Now) {
        self.tick_outsider(now);
        let Phase::Leaving(leaver) = &mut self.phase else {
            return;
        };
        let version = leaver.version;
        let tell = leaver.tell_at <= now.mono;
        if tell {
            leaver.tell_at = now.mono.plus(TELL_EVERY);
        }
        let Some(latest) = self.configs.latest().cloned() else {
            return;
        };
        let knows = |id: &NodeId| self.peers.decided(*id) >= version;
        let members: Vec<NodeId> = latest.current.iter().map(|member| member.id).collect();
        let (know, silent): (Vec<NodeId>, Vec<NodeId>) = members.iter().partition(|id| knows(id));
        if know.len() > members.len() / 2 || self.has(Mutant::LeaverStopsEarly) {
            let graceful = !self.was_abandoned(version);
            self.phase = Phase::Removed;
            let removed = ClusterOutput::Removed { version, graceful };
            self.out.push_back(removed);
        } else if tell && let Some(config) = self.configs.at(version).cloned() {
            for member in silent {
                self.publish_to(member, &config);
            }
        }
    }

    /// Whether the change that ended with that version took this node out as dead.
    fn was_abandoned(&self, version: ConfigVersion) -> bool {
        let mut before = self
            .configs
            .kept()
            .filter(|config| config.version < version);
        let is_last = |config: &&std::sync::Arc<Config>| config.target.is_some();
        before
            .by_ref()
            .filter(is_last)
            .last()
            .is_some_and(|config| config.abandoned.contains(&self.node))
    }

    /// A node that follows the cluster without being named by it asks to be taken in.
    fn tick_outsider(&mut self, now: Now) {
        let Some(at) = self.ask_again else {
            return;
        };
        let Some(latest) = self.configs.latest().cloned() else {
            return;
        };
        if latest.member(self.node).is_some()
            || !matches!(self.phase, Phase::Checking(_) | Phase::Serving)
        {
            self.ask_again = None;
            return;
        }
        if at > now.mono {
            return;
        }
        self.ask_again = Some(self.jitter(now, ASK_AGAIN.0, ASK_AGAIN.1));
        let pick = self.rng.between(0, latest.current.len() as u64) as usize;
        let Some(member) = latest.current.get(pick) else {
            return;
        };
        let join = ClusterMessage::Join {
            protocol: CLUSTER_PROTOCOL,
            version: latest.version,
            cluster: latest.cluster,
            member: self.member.clone(),
            replaces: self.settings.replaces.clone(),
        };
        self.send(member.id, join);
    }
}

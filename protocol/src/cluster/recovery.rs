//! A member that may have lost records which it had stored: a power cut without fsync, or a damaged file.
//!
//! Invariants:
//! - it serves only under a ring version above every one that was on its disk when this life began, in a config
//!   that says that it recovers: so nothing counts that it acknowledged or answered before;
//! - a config takes it off the list only on its own word, naming the ring version that is the newest, that it
//!   has covered the others ([`crate::transfer`]).
//!
//! Each life that may have lost records asks for a ring version of its own. A member that is said to recover
//! without knowing why (a late copy of a question that was answered already) covers the others all the same,
//! and is taken off.
//! Source: protocol, section 4, "Recovering".

use std::sync::Arc;

use torc_ring::{Config, NodeId, RingVersion};

use super::Cluster;
use crate::cluster_io::{ClusterEvent, ClusterOutput};
use crate::cluster_message::ClusterMessage;
use crate::time::{MS, Mono, Now};

/// What is not decided yet is asked for again after this time, in microseconds.
const ASK_AGAIN: (u64, u64) = (300 * MS, 700 * MS);

#[derive(Debug)]
pub(super) struct Recovery {
    lost: Lost,
    /// The shards were told to serve.
    serves: bool,
    /// The ring version under which this node's shards have covered everything.
    covered: RingVersion,
    ask_at: Option<Mono>,
    asked: u64,
}

/// What this life has lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    Nothing,
    /// Perhaps something, and no config above that ring version says so yet.
    Untold(RingVersion),
    /// Perhaps something, and all know it.
    Told,
}

impl Recovery {
    /// `lost` is the newest ring version on the disk of a node that may have lost records.
    pub(super) fn new(lost: Option<RingVersion>) -> Self {
        Self {
            lost: lost.map_or(Lost::Nothing, Lost::Untold),
            serves: false,
            covered: RingVersion(0),
            ask_at: None,
            asked: 0,
        }
    }

    /// Whether what the shards hold and say counts for anything.
    pub(super) fn may_serve(&self) -> bool {
        !matches!(self.lost, Lost::Untold(_))
    }

    pub(super) fn deadline(&self) -> Option<Mono> {
        self.ask_at
    }
}

impl Cluster {
    /// Tells the shards to serve, once, as soon as they may.
    pub(super) fn let_shards_serve(&mut self) {
        if self.is_serving() && self.recovery.may_serve() && !self.recovery.serves {
            self.recovery.serves = true;
            self.out.push_back(ClusterOutput::Serve);
        }
    }

    /// A config is applied, durably.
    pub(super) fn recovery_applied(&mut self, config: &Config) {
        let recovers = config.recovers(self.node);
        match self.recovery.lost {
            Lost::Untold(above) if recovers && config.ring_version > above => {
                self.recovery.lost = Lost::Told;
                let ring = config.ring_version;
                self.event(ClusterEvent::Recovering { ring });
            }
            Lost::Told if !recovers => {
                self.recovery.lost = Lost::Nothing;
                self.out.push_back(ClusterOutput::Recovered);
            }
            Lost::Nothing | Lost::Untold(_) | Lost::Told => {}
        }
    }

    /// This node's shards have everything under that ring version.
    pub(super) fn recovery_covered(&mut self, ring: RingVersion) {
        self.recovery.covered = self.recovery.covered.max(ring);
    }

    /// What the next config should say of this node.
    fn wish_of_recovery(&self) -> Option<ClusterMessage> {
        let latest = self.configs.latest().filter(|_| self.is_serving())?;
        let (ring, recovers) = (latest.ring_version, latest.recovers(self.node));
        latest.member(self.node)?;
        match self.recovery.lost {
            Lost::Untold(above) => {
                let told = recovers && ring > above;
                (!told).then_some(ClusterMessage::Lost { above })
            }
            Lost::Nothing | Lost::Told => {
                let covered = recovers && self.recovery.covered == ring;
                covered.then_some(ClusterMessage::Recovered { ring })
            }
        }
    }

    pub(super) fn tick_recovery(&mut self, now: Now) {
        let Some(wish) = self.wish_of_recovery() else {
            self.recovery.ask_at = None;
            return;
        };
        if self.recovery.ask_at.is_some_and(|at| at > now.mono) {
            return;
        }
        self.recovery.ask_at = Some(self.jitter(now, ASK_AGAIN.0, ASK_AGAIN.1));
        // This node itself, if it can propose; else, and when that leads to nothing, another member.
        let asked = self.recovery.asked;
        self.recovery.asked += 1;
        let members: Vec<NodeId> = self
            .configs
            .latest()
            .map(|latest| latest.current.iter().map(|member| member.id).collect())
            .unwrap_or_default();
        let to = if asked.is_multiple_of(2) && members.contains(&self.node) {
            self.node
        } else {
            members[self.rng.between(0, members.len() as u64) as usize]
        };
        self.send(to, wish);
    }

    /// A member may have lost records, under that ring version or an earlier one.
    pub(super) fn on_lost(&mut self, from: NodeId, above: RingVersion, now: Now) {
        let told = |latest: &Config| latest.recovers(from) && latest.ring_version > above;
        if let Some(latest) = self.acting().filter(|latest| !told(latest))
            && let Some(next) = latest.with_recovering(from)
        {
            self.propose(Arc::new(next), now);
        }
    }

    /// A member has covered the others under that ring version.
    pub(super) fn on_recovered(&mut self, from: NodeId, ring: RingVersion, now: Now) {
        if let Some(latest) = self.acting().filter(|latest| latest.ring_version == ring)
            && let Some(next) = latest.recovered(from)
        {
            self.propose(Arc::new(next), now);
        }
    }
}

//! What a member finds out for the leader of a change (itself, or another member) before anything is
//! proposed: which joiners it reaches at the addresses that they give.

use std::collections::{BTreeMap, BTreeSet};

use torc_ring::{Member, NodeId};

use super::Cluster;
use crate::cluster_io::ClusterOutput;
use crate::cluster_message::{ClusterMessage, JOINERS_MAX};
use crate::time::{Mono, Now, SECOND};

/// Probes that are worked on at once; further ones are sent again by who asks.
const PROBES_MAX: usize = 8;
/// A probe is forgotten after this time, in microseconds: its leader gave up before.
const PROBE_AGE_MAX: u64 = 10 * SECOND;

#[derive(Debug, Default)]
pub(super) struct Probes {
    /// By asker and change.
    asked: BTreeMap<(NodeId, u64), Probe>,
    /// Joiners that the shell is dialling; at most those of all probes.
    dialling: BTreeSet<NodeId>,
}

#[derive(Debug)]
struct Probe {
    joiners: BTreeSet<NodeId>,
    reached: BTreeSet<NodeId>,
    /// Set at the next housekeeping.
    since: Option<Mono>,
}

impl Cluster {
    pub(super) fn on_probe(&mut self, from: NodeId, change: u64, joiners: Vec<Member>) {
        let Some(latest) = self.acting() else {
            return;
        };
        if !latest.is_current(from) || joiners.len() > JOINERS_MAX {
            return;
        }
        if let Some(probe) = self.probes.asked.get(&(from, change)) {
            let missing: Vec<Member> = joiners
                .into_iter()
                .filter(|joiner| !probe.reached.contains(&joiner.id))
                .collect();
            self.answer_probe(from, change);
            self.dial(missing);
            return;
        }
        if self.probes.asked.len() >= PROBES_MAX {
            return;
        }
        let probe = Probe {
            joiners: joiners.iter().map(|joiner| joiner.id).collect(),
            reached: BTreeSet::new(),
            since: None,
        };
        self.probes.asked.insert((from, change), probe);
        self.dial(joiners);
    }

    fn dial(&mut self, joiners: Vec<Member>) {
        for joiner in joiners {
            if self.probes.dialling.insert(joiner.id) {
                self.out.push_back(ClusterOutput::Dial(joiner));
            }
        }
    }

    fn answer_probe(&mut self, to: NodeId, change: u64) {
        let Some(probe) = self.probes.asked.get(&(to, change)) else {
            return;
        };
        let reached = probe.reached.iter().copied().collect();
        self.send(to, ClusterMessage::Probed { change, reached });
    }

    pub(super) fn on_dialled(&mut self, node: NodeId, reached: bool) {
        if !self.probes.dialling.remove(&node) || !reached {
            return;
        }
        let mut answer = Vec::new();
        for ((asker, change), probe) in &mut self.probes.asked {
            if probe.joiners.contains(&node) && probe.reached.insert(node) {
                answer.push((*asker, *change));
            }
        }
        for (asker, change) in answer {
            self.answer_probe(asker, change);
        }
    }

    pub(super) fn drop_old_probes(&mut self, now: Now) {
        self.probes.asked.retain(|_, probe| {
            let since = *probe.since.get_or_insert(now.mono);
            now.mono.since(since) <= PROBE_AGE_MAX
        });
        let asked = &self.probes.asked;
        self.probes
            .dialling
            .retain(|node| asked.values().any(|probe| probe.joiners.contains(node)));
    }
}

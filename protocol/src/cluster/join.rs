//! The joiner's side: a node without a config asks the nodes named to it until it is taken in.

use std::sync::Arc;

use torc_ring::{Config, NodeId};

use super::{Cluster, Phase};
use crate::cluster_io::{ClusterEvent, ClusterOutput};
use crate::cluster_message::{CLUSTER_PROTOCOL, ClusterMessage, JoinRefusal};
use crate::time::{MS, Mono, Now, SECOND};
use crate::wire::{self, Blob};

/// Greatest number of nodes named by `--join` that are asked.
const CONTACTS_MAX: usize = 64;
/// The next node is asked when one has not answered for so long, in microseconds.
const ANSWER_WAIT: (u64, u64) = (700 * MS, 1_100 * MS);
/// A busy cluster is asked again after this time, in microseconds; doubled each time up to
/// [`BUSY_STEPS_MAX`] times.
const BUSY_WAIT: (u64, u64) = (100 * MS, 300 * MS);
const BUSY_STEPS_MAX: u32 = 4;
/// A refusal that may pass is followed by another attempt after this time, in microseconds.
const REFUSED_WAIT: (u64, u64) = (2 * SECOND, 4 * SECOND);

#[derive(Debug)]
pub(super) struct Joiner {
    contacts: Vec<NodeId>,
    turn: usize,
    busy: u32,
    next_try: Mono,
    /// The config seen last; all contacts must belong to its cluster.
    seen: Option<Arc<Config>>,
    /// A final refusal was reported: nothing more is tried.
    refused: bool,
}

impl Joiner {
    pub(super) fn next_try(&self) -> Mono {
        self.next_try
    }
}

impl Cluster {
    pub(super) fn on_contacts(&mut self, mut contacts: Vec<NodeId>, now: Now) {
        contacts.retain(|contact| *contact != self.node);
        contacts.truncate(CONTACTS_MAX);
        match &mut self.phase {
            Phase::Blank if !contacts.is_empty() => {
                self.phase = Phase::Joining(Joiner {
                    contacts,
                    turn: 0,
                    busy: 0,
                    next_try: now.mono,
                    seen: None,
                    refused: false,
                });
            }
            Phase::Joining(joiner) => joiner.contacts = contacts,
            Phase::Checking(_) | Phase::Serving => {
                // A cluster of another id shows in the pong.
                for contact in contacts {
                    self.ping(contact, now);
                }
            }
            Phase::Blank
            | Phase::Bootstrapping
            | Phase::Leaving(_)
            | Phase::Removed
            | Phase::Halted => {}
        }
    }

    pub(super) fn tick_join(&mut self, now: Now) {
        let wait = self.jitter(now, ANSWER_WAIT.0, ANSWER_WAIT.1);
        let Phase::Joining(joiner) = &mut self.phase else {
            return;
        };
        if joiner.next_try > now.mono {
            return;
        }
        joiner.next_try = wait;
        if joiner.contacts.is_empty() || joiner.refused {
            return;
        }
        let contact = joiner.contacts[joiner.turn % joiner.contacts.len()];
        joiner.turn = joiner.turn.wrapping_add(1);
        self.send(contact, ClusterMessage::Fetch { after: None });
    }

    pub(super) fn on_fetched_by_joiner(&mut self, from: NodeId, newest: Option<&Blob>, now: Now) {
        let Some(blob) = newest else {
            // It is no member itself yet.
            self.on_join_busy(now);
            return;
        };
        let Ok(config) = wire::decode_config(&blob.0) else {
            self.event(ClusterEvent::BadConfig { peer: from });
            return;
        };
        let Phase::Joining(joiner) = &mut self.phase else {
            return;
        };
        if let Some(seen) = &joiner.seen
            && seen.cluster != config.cluster
        {
            let refusal = JoinRefusal::OtherCluster {
                theirs: config.cluster,
                ours: seen.cluster,
            };
            self.on_join_refused(refusal, now);
            return;
        }
        let (version, cluster) = (config.version, config.cluster);
        let config = Arc::new(config);
        joiner.seen = Some(Arc::clone(&config));
        if config.member(self.node).is_some() {
            self.adopt_if_member(config);
            return;
        }
        let member = self.member.clone();
        let replaces = self.settings.replaces.clone();
        let protocol = CLUSTER_PROTOCOL;
        self.send(
            from,
            ClusterMessage::Join {
                protocol,
                version,
                cluster,
                member,
                replaces,
            },
        );
    }

    /// A decided config that names this joiner makes it a member.
    pub(super) fn adopt_if_member(&mut self, config: Arc<Config>) {
        if config.member(self.node).is_some() {
            self.store_base(config);
        }
    }

    pub(super) fn on_join_busy(&mut self, now: Now) {
        if self.ask_again.is_some() {
            self.ask_again = Some(self.jitter(now, REFUSED_WAIT.0, REFUSED_WAIT.1));
        }
        let wait = self.jitter(now, BUSY_WAIT.0, BUSY_WAIT.1).since(now.mono);
        if let Phase::Joining(joiner) = &mut self.phase {
            joiner.next_try = now.mono.plus(wait << joiner.busy);
            joiner.busy = (joiner.busy + 1).min(BUSY_STEPS_MAX);
        }
    }

    pub(super) fn on_join_refused(&mut self, refusal: JoinRefusal, now: Now) {
        let wait = self.jitter(now, REFUSED_WAIT.0, REFUSED_WAIT.1);
        if self.ask_again.is_some() {
            self.ask_again = (!refusal.is_final()).then_some(wait);
            self.out.push_back(ClusterOutput::JoinRefused(refusal));
            return;
        }
        let Phase::Joining(joiner) = &mut self.phase else {
            return;
        };
        if joiner.refused {
            return;
        }
        joiner.refused = refusal.is_final();
        joiner.next_try = wait;
        self.out.push_back(ClusterOutput::JoinRefused(refusal));
    }
}

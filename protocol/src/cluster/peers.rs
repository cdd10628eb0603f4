//! What members tell each other every second: versions, clock bounds, clocks.

use std::collections::{BTreeMap, BTreeSet};

use torc_ring::{ClusterId, ConfigVersion, NodeId};

use super::{After, Cluster, put_number};
use crate::clocks::{ClockVerdict, Clocks};
use crate::cluster_io::{ClusterEvent, ClusterOutput};
use crate::cluster_message::{ClusterMessage, Standing};
use crate::hlc::Hlc;
use crate::store::{StateKey, Write};
use crate::time::{Mono, Now, SECOND, Wall};

/// Time between two pings of one peer, in microseconds; in clusters of more than [`PING_PEERS`] members
/// it grows with their number.
const PING_EVERY: u64 = SECOND;
const PING_PEERS: u64 = 64;
/// A peer's bound is written to disk when it has risen by this much since, in microseconds. In memory it is
/// always the newest: only an old disk image that all reachable members restarted after could hide so much.
const BOUND_STEP: u64 = 60 * SECOND;
/// Nodes of other clusters that are remembered, so that each is reported once.
const FOREIGN_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct Peers {
    /// All members of the newest config but this node.
    known: BTreeMap<NodeId, Peer>,
    /// Bounds on disk of nodes that are members no more.
    forgotten: BTreeSet<NodeId>,
    clocks: Clocks,
    ping_at: Mono,
    next_seq: u64,
    trusted: bool,
    warned: bool,
    foreign: BTreeSet<NodeId>,
}

#[derive(Debug, Default)]
struct Peer {
    decided: ConfigVersion,
    bound: Hlc,
    bound_durable: Hlc,
    ping: Option<(u64, Mono)>,
    heard: Option<Mono>,
}

impl Peers {
    pub(super) fn new(bounds: Vec<(NodeId, Hlc)>, now: Mono) -> Self {
        let known = bounds.into_iter().map(|(node, bound)| {
            (
                node,
                Peer {
                    bound,
                    bound_durable: bound,
                    ..Peer::default()
                },
            )
        });
        Self {
            known: known.collect(),
            forgotten: BTreeSet::new(),
            clocks: Clocks::default(),
            ping_at: now,
            next_seq: 1,
            trusted: true,
            warned: false,
            foreign: BTreeSet::new(),
        }
    }

    pub(super) fn ping_at(&self) -> Mono {
        self.ping_at
    }

    pub(super) fn heard(&mut self, from: NodeId, now: Mono) {
        if let Some(peer) = self.known.get_mut(&from) {
            peer.heard = Some(now);
        }
    }

    /// When that member was heard of last.
    pub(super) fn heard_at(&self, node: NodeId) -> Option<Mono> {
        self.known.get(&node).and_then(|peer| peer.heard)
    }

    /// The newest config version that the member is known to have decided.
    pub(super) fn decided(&self, node: NodeId) -> ConfigVersion {
        let peer = self.known.get(&node);
        peer.map_or(ConfigVersion(0), |peer| peer.decided)
    }

    /// Time between two pings of one peer, in microseconds.
    pub(super) fn ping_every(&self) -> u64 {
        PING_EVERY * (1 + self.known.len() as u64 / PING_PEERS)
    }

    pub(super) fn was_heard(&self, peer: NodeId) -> bool {
        self.known
            .get(&peer)
            .is_some_and(|peer| peer.heard.is_some())
    }

    pub(super) fn clock_trusted(&self) -> bool {
        self.trusted
    }

    pub(super) fn remembered(&self, peer: NodeId) -> Hlc {
        self.known.get(&peer).map_or(Hlc(0), |peer| peer.bound)
    }

    pub(super) fn on_bounds_durable(&mut self, bounds: &[(NodeId, Hlc)]) {
        for (node, bound) in bounds {
            if let Some(peer) = self.known.get_mut(node) {
                peer.bound_durable = peer.bound_durable.max(*bound);
            }
        }
    }

    pub(super) fn on_learned(&mut self, from: NodeId, version: ConfigVersion) {
        if let Some(peer) = self.known.get_mut(&from) {
            peer.decided = peer.decided.max(version);
        }
    }

    pub(super) fn take_forgotten(&mut self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.forgotten)
    }

    /// A peer that has decided versions above `have`; which of them, `pick` says.
    pub(super) fn ahead_of(&self, have: ConfigVersion, pick: u64) -> Option<NodeId> {
        let ahead: Vec<NodeId> = self
            .known
            .iter()
            .filter(|(_, peer)| peer.decided > have)
            .map(|(node, _)| *node)
            .collect();
        let count = ahead.len().max(1) as u64;
        ahead.get((pick % count) as usize).copied()
    }
}

impl Cluster {
    /// Brings the peers in line with the newest config.
    pub(super) fn sync_peers(&mut self) {
        let Some(latest) = self.configs.latest() else {
            return;
        };
        let members: BTreeSet<NodeId> = latest
            .all_members()
            .map(|member| member.id)
            .filter(|id| *id != self.node)
            .collect();
        let peers = &mut self.peers;
        let gone = peers
            .known
            .keys()
            .filter(|id| !members.contains(id))
            .copied();
        peers.forgotten.extend(gone);
        peers.known.retain(|id, _| members.contains(id));
        peers.clocks.retain(|id| members.contains(&id));
        for id in members {
            peers.known.entry(id).or_default();
        }
    }

    fn standing(&self) -> Standing {
        Standing {
            cluster: self.configs.latest().map(|config| config.cluster),
            decided: self.configs.latest_version(),
            applied: self.configs.applied(),
            bound: self.clock.bound(),
        }
    }

    pub(super) fn ping(&mut self, to: NodeId, now: Now) {
        let seq = self.peers.next_seq;
        self.peers.next_seq += 1;
        if let Some(peer) = self.peers.known.get_mut(&to) {
            peer.ping = Some((seq, now.mono));
        }
        let standing = self.standing();
        self.send(to, ClusterMessage::Ping { seq, standing });
    }

    pub(super) fn on_ping(&mut self, from: NodeId, seq: u64, standing: Standing, now: Now) {
        if self.is_foreign(from, standing.cluster) {
            return;
        }
        self.take_standing(from, standing);
        let standing = self.standing();
        self.send(
            from,
            ClusterMessage::Pong {
                seq,
                wall: now.wall.0,
                standing,
            },
        );
    }

    pub(super) fn on_pong(
        &mut self,
        from: NodeId,
        (seq, wall): (u64, u64),
        standing: Standing,
        now: Now,
    ) {
        if self.is_foreign(from, standing.cluster) {
            return;
        }
        self.take_standing(from, standing);
        let Some(peer) = self.peers.known.get_mut(&from) else {
            return;
        };
        let Some((_, sent)) = peer.ping.take_if(|(asked, _)| *asked == seq) else {
            return;
        };
        self.peers.clocks.record(from, Wall(wall), sent, now);
        if let Some(offset_us) = self.peers.clocks.offset(from, now) {
            let round_trip_us = now.mono.since(sent);
            self.event(ClusterEvent::PeerClock {
                peer: from,
                offset_us,
                round_trip_us,
            });
        }
        self.judge_clock(now);
    }

    fn take_standing(&mut self, from: NodeId, standing: Standing) {
        if let Some(peer) = self.peers.known.get_mut(&from) {
            peer.decided = peer.decided.max(standing.decided);
            peer.bound = peer.bound.max(standing.bound);
        }
        self.news(from, standing.decided);
    }

    /// Whether the sender belongs to another cluster; if so, both sides get to know.
    pub(super) fn is_foreign(&mut self, from: NodeId, theirs: Option<ClusterId>) -> bool {
        let ours = self.configs.latest().map(|config| config.cluster);
        let (Some(ours), Some(theirs)) = (ours, theirs) else {
            return false;
        };
        if ours == theirs {
            return false;
        }
        self.report_foreign(from, theirs);
        self.send(from, ClusterMessage::Foreign { cluster: ours });
        true
    }

    pub(super) fn on_foreign(&mut self, from: NodeId, cluster: ClusterId) {
        if self
            .configs
            .latest()
            .is_some_and(|config| config.cluster != cluster)
        {
            self.report_foreign(from, cluster);
        }
    }

    fn report_foreign(&mut self, peer: NodeId, cluster: ClusterId) {
        if self.peers.foreign.len() < FOREIGN_MAX && self.peers.foreign.insert(peer) {
            self.event(ClusterEvent::Foreign { peer, cluster });
        }
    }

    fn judge_clock(&mut self, now: Now) {
        let verdict = self
            .peers
            .clocks
            .judge(self.peers.known.keys().copied(), now);
        let ClockVerdict::Drift(drift_us) = verdict else {
            return;
        };
        let trusted = drift_us.unsigned_abs() <= self.settings.drift_max;
        let warn = drift_us.unsigned_abs() > self.settings.drift_warn;
        if trusted != self.peers.trusted {
            self.peers.trusted = trusted;
            self.out.push_back(ClusterOutput::ClockTrusted(trusted));
        }
        if warn != self.peers.warned {
            self.peers.warned = warn;
            self.event(ClusterEvent::ClockDrift { drift_us, warn });
        }
    }

    pub(super) fn tick_peers(&mut self, now: Now) {
        if self.peers.ping_at > now.mono {
            return;
        }
        let every = self.peers.ping_every();
        self.peers.ping_at = self.jitter(now, every * 9 / 10, every * 11 / 10);
        let peers: Vec<NodeId> = self.peers.known.keys().copied().collect();
        for peer in peers {
            self.ping(peer, now);
        }
        self.judge_clock(now);
        self.store_bounds();
        self.drop_old_probes(now);
    }

    fn store_bounds(&mut self) {
        let risen = |peer: &Peer| {
            peer.bound_durable.micros().saturating_add(BOUND_STEP) <= peer.bound.micros()
        };
        let bounds: Vec<(NodeId, Hlc)> = self
            .peers
            .known
            .iter()
            .filter(|(_, peer)| risen(peer))
            .map(|(node, peer)| (*node, peer.bound))
            .collect();
        let pending = self
            .commits
            .values()
            .any(|after| matches!(after, After::PeerBounds(_)));
        if bounds.is_empty() || pending {
            return;
        }
        let writes: Vec<Write> = bounds
            .iter()
            .map(|(node, bound)| put_number(StateKey::PeerBound(*node), bound.0))
            .collect();
        self.commit(writes, After::PeerBounds(bounds));
    }
}

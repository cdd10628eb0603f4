//! How quickly peers answer: whom to ask first, and when to ask one more.
//!
//! The 95th percentile is followed by stochastic approximation (Robbins and Monro 1951; "frugal
//! streaming", Ma et al. 2013): one number per peer, no samples kept. Hedging at the p95 is from Dean and
//! Barroso, "The Tail at Scale" (2013).

use std::collections::BTreeMap;

use torc_ring::NodeId;

use crate::time::MS;

/// Peers remembered at most; beyond, the slowest is forgotten.
const PEERS_MAX: usize = 2_000;
/// What a peer is believed to need before it has answered once, in microseconds.
const UNKNOWN: u64 = 20 * MS;
/// Bounds of the wait before a hedge, in microseconds.
const HEDGE: std::ops::RangeInclusive<u64> = (2 * MS)..=(500 * MS);

/// Latencies of all peers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies {
    peers: BTreeMap<NodeId, Peer>,
}

#[derive(Clone, Copy, Debug)]
struct Peer {
    /// Exponentially weighted mean in microseconds.
    mean: u64,
    /// Estimate of the 95th percentile in microseconds.
    p95: u64,
}

impl Latencies {
    /// `node` answered after `micros`.
    pub(crate) fn observe(&mut self, node: NodeId, micros: u64) {
        if self.peers.len() >= PEERS_MAX && !self.peers.contains_key(&node) {
            let slowest = self
                .peers
                .iter()
                .max_by_key(|(_, peer)| peer.mean)
                .map(|(&id, _)| id);
            slowest.map(|id| self.peers.remove(&id));
        }
        let peer = self.peers.entry(node).or_insert(Peer {
            mean: micros,
            p95: micros.saturating_mul(2),
        });
        peer.mean = (peer.mean * 7 + micros) / 8;
        let step = (peer.p95 / 16).max(20);
        peer.p95 = if micros > peer.p95 {
            peer.p95.saturating_add(step * 19 / 20)
        } else {
            peer.p95.saturating_sub(step / 20)
        };
    }

    /// Mean latency in microseconds, for ordering.
    pub(crate) fn mean(&self, node: NodeId) -> u64 {
        self.peers.get(&node).map_or(UNKNOWN, |peer| peer.mean)
    }

    /// How long to wait for `node` before another is asked too, in microseconds.
    pub(crate) fn hedge_after(&self, node: NodeId) -> u64 {
        self.peers
            .get(&node)
            .map_or(UNKNOWN, |peer| peer.p95)
            .clamp(*HEDGE.start(), *HEDGE.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_settles_near_the_95th_percentile() {
        let mut latencies = Latencies::default();
        let node = NodeId(1);
        let mut state = 1_u64;
        for _ in 0..20_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            latencies.observe(node, 10_000 + (state >> 33) % 10_000);
        }
        let hedge = latencies.hedge_after(node);
        assert!(
            (17_500..=21_500).contains(&hedge),
            "p95 of 10..20 ms is 19.5 ms, estimated {hedge} us"
        );
    }
}

//! How far this node's clock lies from the others': measured against the median of a majority's clocks.
//!
//! Each pong gives one sample of a peer's clock, taken to have been read in the middle of the round trip.
//! A sample is kept relative to the monotonic clock, so that a jump of this node's own wall clock shows at
//! once and not only when all peers have been asked again.
//! Source: the median of a majority lies between two correct clocks as long as a majority is correct
//! (Lamport, Melliar-Smith, "Synchronizing Clocks in the Presence of Faults", 1985).

use std::collections::BTreeMap;

use torc_ring::NodeId;

use crate::time::{Mono, Now, SECOND, Wall};

/// A sample older than this says nothing any more, in microseconds.
pub const SAMPLE_AGE_MAX: u64 = 10 * SECOND;
/// A sample of a longer round trip is too vague to judge by, in microseconds.
pub const ROUND_TRIP_MAX: u64 = 2 * SECOND;

/// What is known of the peers' clocks. Holds at most one sample per peer that it is told of.
#[derive(Clone, Debug, Default)]
pub struct Clocks {
    samples: BTreeMap<NodeId, Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    /// The peer's wall clock minus this node's monotonic clock.
    ahead: i128,
    at: Mono,
}

/// What the samples say of this node's own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockVerdict {
    /// Fewer than a majority of the clocks are known: nothing can be said.
    Unknown,
    /// Microseconds by which this node's clock is ahead of the median (negative: behind).
    Drift(i64),
}

impl Clocks {
    /// A peer's pong arrived: it read `peer` on its wall clock between `sent` and now. A round trip that
    /// took too long is not used.
    pub fn record(&mut self, from: NodeId, peer: Wall, sent: Mono, now: Now) {
        let round_trip = now.mono.since(sent);
        if round_trip > ROUND_TRIP_MAX {
            return;
        }
        let ahead = i128::from(peer.0) + i128::from(round_trip / 2) - i128::from(now.mono.0);
        self.samples.insert(
            from,
            Sample {
                ahead,
                at: now.mono,
            },
        );
    }

    /// Forgets all peers that `keep` does not name.
    pub fn retain(&mut self, keep: impl Fn(NodeId) -> bool) {
        self.samples.retain(|peer, _| keep(*peer));
    }

    /// Microseconds by which the peer's clock is ahead of this node's (negative: behind).
    #[must_use]
    pub fn offset(&self, peer: NodeId, now: Now) -> Option<i64> {
        let sample = self.samples.get(&peer)?;
        (now.mono.since(sample.at) <= SAMPLE_AGE_MAX).then(|| {
            let offset = sample.ahead + i128::from(now.mono.0) - i128::from(now.wall.0);
            offset.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
        })
    }

    /// Where this node's clock lies, among the clocks of `others` and its own.
    pub fn judge(&self, others: impl Iterator<Item = NodeId>, now: Now) -> ClockVerdict {
        let mut offsets = vec![0_i64];
        let mut members = 1;
        for peer in others {
            members += 1;
            offsets.extend(self.offset(peer, now));
        }
        if offsets.len() < members / 2 + 1 {
            return ClockVerdict::Unknown;
        }
        offsets.sort_unstable();
        let (low, high) = (offsets[(offsets.len() - 1) / 2], offsets[offsets.len() / 2]);
        let median = i128::midpoint(i128::from(low), i128::from(high));
        ClockVerdict::Drift((-median).clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = SECOND;

    fn now(mono: u64, wall: u64) -> Now {
        Now {
            mono: Mono(mono),
            wall: Wall(wall),
        }
    }

    fn judge(clocks: &Clocks, others: u64, now: Now) -> ClockVerdict {
        clocks.judge((1..=others).map(NodeId), now)
    }

    #[test]
    fn one_wrong_clock_among_three_is_the_others_problem_or_ones_own() {
        let mut clocks = Clocks::default();
        clocks.record(
            NodeId(1),
            Wall(1_000 * S),
            Mono(5 * S),
            now(5 * S, 1_000 * S),
        );
        clocks.record(
            NodeId(2),
            Wall(9_000 * S),
            Mono(5 * S),
            now(5 * S, 1_000 * S),
        );
        assert_eq!(
            judge(&clocks, 2, now(5 * S, 1_000 * S)),
            ClockVerdict::Drift(0)
        );
        clocks.record(
            NodeId(2),
            Wall(1_000 * S),
            Mono(5 * S),
            now(5 * S, 1_000 * S),
        );
        let jumped = now(6 * S, 1_301 * S);
        assert_eq!(
            judge(&clocks, 2, jumped),
            ClockVerdict::Drift(300_000_000),
            "seen at once"
        );
    }

    #[test]
    fn half_of_the_round_trip_is_accounted_for() {
        let mut clocks = Clocks::default();
        clocks.record(NodeId(1), Wall(100 * S), Mono(0), now(S, 100 * S + S / 2));
        assert_eq!(clocks.offset(NodeId(1), now(S, 100 * S + S / 2)), Some(0));
        clocks.record(NodeId(2), Wall(7), Mono(0), now(3 * S, 0));
        assert_eq!(clocks.offset(NodeId(2), now(3 * S, 0)), None, "too vague");
    }

    #[test]
    fn without_a_majority_nothing_is_said() {
        let mut clocks = Clocks::default();
        assert_eq!(
            judge(&clocks, 0, now(0, 0)),
            ClockVerdict::Drift(0),
            "alone is a majority"
        );
        clocks.record(NodeId(1), Wall(500 * S), Mono(0), now(0, 0));
        assert_eq!(judge(&clocks, 4, now(0, 0)), ClockVerdict::Unknown);
        assert_eq!(
            judge(&clocks, 2, now(0, 0)),
            ClockVerdict::Drift(-250_000_000)
        );
        assert_eq!(
            judge(&clocks, 2, now(11 * S, 0)),
            ClockVerdict::Unknown,
            "the sample is stale"
        );
    }

    #[test]
    fn absurd_clocks_do_not_overflow() {
        let mut clocks = Clocks::default();
        clocks.record(NodeId(1), Wall(u64::MAX), Mono(0), now(0, 0));
        assert_eq!(clocks.offset(NodeId(1), now(0, 0)), Some(i64::MAX));
        assert!(matches!(
            judge(&clocks, 1, now(0, u64::MAX)),
            ClockVerdict::Drift(_)
        ));
    }
}

//! I12: the acks that make a write's quorum are of one ring version.

use std::collections::{BTreeMap, BTreeSet};

use torc_protocol::version::Version;
use torc_ring::{NodeId, RingVersion};

use super::{Invariant, Violation};

/// Acks that reached coordinators.
#[derive(Clone, Debug, Default)]
pub struct Rounds {
    acks: BTreeMap<Version, BTreeSet<(RingVersion, NodeId)>>,
}

impl Rounds {
    /// An ack of the write of that version has reached its coordinator.
    pub fn ack(&mut self, write: Version, from: NodeId, ring: RingVersion) {
        self.acks.entry(write).or_default().insert((ring, from));
    }

    /// The coordinator, at `ring`, calls the write done; `own` replicas of its own may have acked
    /// without a message.
    ///
    /// # Errors
    /// When fewer than `required` owners have acked under that ring.
    pub fn done(
        &mut self,
        write: Version,
        ring: RingVersion,
        own: usize,
        required: usize,
    ) -> Result<(), Violation> {
        let acks = self.acks.remove(&write).unwrap_or_default();
        let here = acks.iter().filter(|(of, _)| *of == ring).count() + own;
        if here >= required {
            return Ok(());
        }
        let what = format!(
            "write {write} is done with {here} of {required} acks of ring {}",
            ring.0
        );
        Err(Violation::new(Invariant::OneRing, what))
    }
}

#[cfg(test)]
mod tests {
    use torc_protocol::hlc::Hlc;

    use super::*;

    #[test]
    fn a_quorum_of_two_rings_is_found() {
        let mut rounds = Rounds::default();
        let write = |at| Version {
            hlc: Hlc(at),
            node: NodeId(1),
        };
        rounds.ack(write(1), NodeId(2), RingVersion(1));
        rounds.ack(write(1), NodeId(2), RingVersion(1));
        rounds.ack(write(1), NodeId(3), RingVersion(2));
        assert!(rounds.done(write(1), RingVersion(2), 0, 2).is_err());
        rounds.ack(write(2), NodeId(2), RingVersion(2));
        assert!(rounds.done(write(2), RingVersion(2), 1, 2).is_ok());
    }
}

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

    /// The coordinator `own`, at `ring`, calls the write done; its own replica may have acked without a
    /// message. `owners` are the sets of owners under that ring, each with the acks that it requires.
    ///
    /// # Errors
    /// When fewer owners than required have acked under that ring.
    pub fn done(
        &mut self,
        write: Version,
        (own, ring): (NodeId, RingVersion),
        owners: &[(&[NodeId], usize)],
    ) -> Result<(), Violation> {
        let acks = self.acks.remove(&write).unwrap_or_default();
        for (set, required) in owners {
            let acked = |node: &&NodeId| **node == own || acks.contains(&(ring, **node));
            let here = set.iter().filter(acked).count();
            if here < *required {
                let what = format!(
                    "write {write} is done with {here} of {required} acks of ring {}",
                    ring.0
                );
                return Err(Violation::new(Invariant::OneRing, what));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use torc_protocol::hlc::Hlc;

    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);
    const D: NodeId = NodeId(4);

    fn write(at: u64) -> Version {
        Version {
            hlc: Hlc(at),
            node: A,
        }
    }

    #[test]
    fn a_quorum_of_two_rings_is_found() {
        let mut rounds = Rounds::default();
        let owners: &[NodeId] = &[A, B, C];
        let (one, two) = (RingVersion(1), RingVersion(2));
        rounds.ack(write(1), B, one);
        rounds.ack(write(1), B, one);
        rounds.ack(write(1), C, two);
        assert!(rounds.done(write(1), (D, two), &[(owners, 2)]).is_err());
        rounds.ack(write(2), B, two);
        assert!(rounds.done(write(2), (A, two), &[(owners, 2)]).is_ok());
    }

    #[test]
    fn a_majority_of_the_union_is_no_quorum_of_each_ring() {
        let mut rounds = Rounds::default();
        let ring = RingVersion(1);
        let owners: [(&[NodeId], usize); 2] = [(&[A, B, C], 2), (&[A, D, NodeId(5)], 2)];
        rounds.ack(write(1), B, ring);
        rounds.ack(write(1), C, ring);
        assert!(rounds.done(write(1), (A, ring), &owners).is_err());
        rounds.ack(write(2), B, ring);
        rounds.ack(write(2), D, ring);
        assert!(rounds.done(write(2), (A, ring), &owners).is_ok());
    }
}

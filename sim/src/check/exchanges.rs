//! I12: a replica serves only what it is asked at its own ring version, and says that it has drained only
//! when nothing of an older one is on its way to disk. I8: what it says, its disk holds.

use std::collections::BTreeMap;

use torc_protocol::message::{OpId, RecordKey};
use torc_protocol::store::CommitId;
use torc_protocol::version::{Digest, Version};
use torc_ring::{NodeId, RingVersion};

use super::{Invariant, Violation};

/// One exchange: replica, coordinator, and what the coordinator calls it.
pub type Exchange = (NodeId, NodeId, OpId, RingVersion);

/// Requests that replicas may serve.
#[derive(Clone, Debug, Default)]
pub struct Exchanges(BTreeMap<Exchange, Option<RecordKey>>);

impl Exchanges {
    /// A request arrives at a shard that has applied `ring`.
    pub fn asked(&mut self, exchange: Exchange, ring: RingVersion, key: Option<&RecordKey>) {
        if exchange.3 == ring {
            self.0.insert(exchange, key.cloned());
        }
    }

    /// A replica answers with something else than a refusal. Says which key it was asked about, if one.
    ///
    /// # Errors
    /// When it was never asked at a ring version that it had applied.
    pub fn answered(&self, exchange: Exchange) -> Result<Option<&RecordKey>, Violation> {
        if let Some(key) = self.0.get(&exchange) {
            return Ok(key.as_ref());
        }
        let (replica, coordinator, op, ring) = exchange;
        let what = format!(
            "{replica} serves {op:?} of {coordinator} at ring {}, which it had not applied",
            ring.0
        );
        Err(Violation::new(Invariant::OneRing, what))
    }
}

/// A replica tells a coordinator of a state while its disk holds another.
///
/// # Errors
/// When the disk lacks it.
pub fn served(told: Digest, stored: Option<Digest>) -> Result<(), Violation> {
    if stored >= Some(told) {
        return Ok(());
    }
    let what = format!("a replica answers {told:?} while its disk holds {stored:?}");
    Err(Violation::new(Invariant::Durable, what))
}

/// A replica acknowledges a write; its disk holds that version or a later one.
///
/// # Errors
/// When the disk lacks it.
pub fn acked(told: Version, stored: Option<Version>) -> Result<(), Violation> {
    if stored >= Some(told) {
        return Ok(());
    }
    let what = format!("a replica acknowledges {told} while its disk holds {stored:?}");
    Err(Violation::new(Invariant::Durable, what))
}

/// Records of one shard that are on their way to disk, and the ring version under which each was taken.
#[derive(Clone, Debug, Default)]
pub struct Drain(BTreeMap<CommitId, RingVersion>);

impl Drain {
    /// A commit of a record is asked for.
    pub fn begins(&mut self, id: CommitId, ring: RingVersion) {
        self.0.insert(id, ring);
    }

    /// Its outcome is known.
    pub fn ends(&mut self, id: CommitId) {
        self.0.remove(&id);
    }

    /// The shard says that everything of ring versions below `ring` is over.
    ///
    /// # Errors
    /// When it is not.
    pub fn drained(&self, ring: RingVersion) -> Result<(), Violation> {
        match self.0.values().find(|taken| **taken < ring) {
            None => Ok(()),
            Some(taken) => {
                let what = format!(
                    "a shard calls ring {} drained for with a write of ring {} on its way to disk",
                    ring.0, taken.0
                );
                Err(Violation::new(Invariant::OneRing, what))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use torc_protocol::hlc::Hlc;

    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn digest(at: u64, hash: u64) -> Digest {
        let version = Version {
            hlc: Hlc(at),
            node: A,
        };
        Digest { version, hash }
    }

    #[test]
    fn an_answer_across_ring_versions_is_found() {
        let mut exchanges = Exchanges::default();
        let at = |ring| (A, B, OpId(7), RingVersion(ring));
        exchanges.asked(at(2), RingVersion(2), None);
        exchanges.asked(at(3), RingVersion(2), None);
        assert!(exchanges.answered(at(2)).is_ok());
        assert!(exchanges.answered(at(3)).is_err());
        exchanges.asked(at(3), RingVersion(3), None);
        assert!(exchanges.answered(at(3)).is_ok(), "asked again later");
    }

    #[test]
    fn what_the_disk_does_not_hold_is_found() {
        assert!(served(digest(5, 1), Some(digest(5, 1))).is_ok());
        assert!(served(digest(5, 1), Some(digest(6, 0))).is_ok());
        assert!(served(digest(5, 2), Some(digest(5, 1))).is_err());
        assert!(served(digest(5, 1), None).is_err());
        let version = |at| digest(at, 0).version;
        assert!(acked(version(5), Some(version(5))).is_ok());
        assert!(acked(version(5), Some(version(4))).is_err());
    }

    #[test]
    fn a_drain_that_does_not_wait_is_found() {
        let mut drain = Drain::default();
        drain.begins(CommitId(1), RingVersion(2));
        assert!(drain.drained(RingVersion(2)).is_ok());
        assert!(drain.drained(RingVersion(3)).is_err());
        drain.ends(CommitId(1));
        assert!(drain.drained(RingVersion(3)).is_ok());
    }
}

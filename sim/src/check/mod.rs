//! Checkers of the invariants. Each is a small machine that is told what happened and says what is wrong.

pub mod agreed;
pub mod books;
pub mod causal;
pub mod converge;
pub mod covered;
pub mod deleted;
pub mod exchanges;
pub mod floors;
pub mod mint;
pub mod order;
pub mod rounds;

use std::fmt;

/// What must hold; the numbers are those of the list in `docs/simulator.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// I1: an acknowledged write is readable.
    Readable,
    /// I2: replicas converge once faults end.
    Converge,
    /// I3: a deleted value never comes back.
    Deleted,
    /// I4, I5: writes and reads follow one order, and reads never go back in time.
    Order,
    /// I6: one config per version, none skipped, none forgotten.
    Agreed,
    /// I7: no timestamp is minted twice, and a retry keeps its own.
    Mint,
    /// I8: durable before acknowledged, and before visible.
    Durable,
    /// I9: healed means progress.
    Progress,
    /// I10: the books balance.
    Books,
    /// I11: a write orders after what its author saw.
    Causal,
    /// I12: one ring version per exchange.
    OneRing,
    /// I13: everything keeps its bound and its deadline.
    Bounded,
    /// The core's own assertions hold.
    Asserted,
    /// What a reader finds is what somebody wrote there.
    Genuine,
    /// I1 in numbers: when a ring is switched to, every owner in it has what was acknowledged before.
    Covered,
    /// I3: a node that has applied a config keeps nothing that it does not own by it.
    Cleaned,
    /// I1 and I3 in advance: what disks say of floors, closes and promises is so.
    Floors,
}

/// Something that must not happen has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What does not hold.
    pub invariant: Invariant,
    /// The circumstances.
    pub what: String,
}

impl Violation {
    pub(crate) fn new(invariant: Invariant, what: impl Into<String>) -> Self {
        Self {
            invariant,
            what: what.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.invariant, self.what)
    }
}

//! I1 and I3 in what stands on disks about floors: a mark that says too much loses or brings back a value only
//! when several other things happen too, and is wrong before.
//!
//! A mark is a floor, a close and a promise (protocol, section 7). What a mark may say follows from the rules
//! of a raise: all owners have closed and compared before one of them raises, a floor that is on disk stays
//! there as long as its node owns the partition, new owners know the closes, and whoever keeps a hint that
//! counted has promised the floor.

use std::collections::BTreeMap;

use torc_protocol::floor::Mark;
use torc_protocol::hlc::Hlc;
use torc_protocol::version::Version;
use torc_ring::NodeId;

use super::{Invariant, Violation};

/// What each node's disk says of each partition, and the config version at which that came to it.
#[derive(Clone, Debug, Default)]
pub struct Marks(BTreeMap<(NodeId, u16), (Mark, u64)>);

impl Marks {
    /// What came to that disk last.
    #[must_use]
    pub fn of(&self, place: (NodeId, u16)) -> Option<(Mark, u64)> {
        self.0.get(&place).copied()
    }

    /// A mark has come to a disk; answers whether its floor is higher than the one before. `let_go` says that
    /// the node has not owned the partition all the time since then.
    ///
    /// # Errors
    /// When something of it is lower than before, which only the floor of somebody else's partition may be.
    pub fn stored(
        &mut self,
        (node, partition): (NodeId, u16),
        (mark, version): (Mark, u64),
        let_go: bool,
    ) -> Result<bool, Violation> {
        let before = self.0.insert((node, partition), (mark, version));
        let (before, _) = before.unwrap_or_default();
        let falls = mark.floor < before.floor && !(let_go && mark.floor == Hlc(0));
        if falls || mark.close < before.close || mark.promise < before.promise {
            let what = format!(
                "the mark of partition {partition} on the disk of {node} falls from {before:?} to {mark:?}"
            );
            return Err(Violation::new(Invariant::Floors, what));
        }
        Ok(mark.floor > before.floor)
    }

    /// The disk of that node is another one now, or has lost what it says of floors.
    pub fn forget(&mut self, node: NodeId) {
        self.0.retain(|(of, _), _| *of != node);
    }
}

/// A floor is on a disk for the first time; `close` is what the disk of another owner says.
///
/// # Errors
/// When that owner has not closed so far.
pub fn closed((owner, partition): (NodeId, u16), floor: Hlc, close: Hlc) -> Result<(), Violation> {
    if close >= floor {
        return Ok(());
    }
    let what = format!(
        "a floor of partition {partition} rises to {floor:?}, and {owner} has closed {close:?} only"
    );
    Err(Violation::new(Invariant::Floors, what))
}

/// A floor is on a disk for the first time. Whoever raised it holds `must` of a key, which is up to the floor;
/// `has` is what the disk of another owner holds.
///
/// # Errors
/// When that owner lacks it: they were to be equal.
pub fn compared(
    (owner, key): (NodeId, u64),
    must: Version,
    has: Option<Version>,
) -> Result<(), Violation> {
    if has >= Some(must) {
        return Ok(());
    }
    let what = format!("a floor rises over {must} of key {key}, of which {owner} has {has:?}");
    Err(Violation::new(Invariant::Floors, what))
}

/// A node says that all it gains in a ring change is there; its disk says `close` of a partition of which so
/// many owners have closed `must` that every majority of them knows.
///
/// # Errors
/// When it has not taken that over: a write that they refused would be taken by it.
pub fn inherited((node, partition): (NodeId, u16), must: Hlc, close: Hlc) -> Result<(), Violation> {
    if close >= must {
        return Ok(());
    }
    let what = format!(
        "{node} is complete with partition {partition} closed up to {close:?}, and its owners have closed {must:?}"
    );
    Err(Violation::new(Invariant::Floors, what))
}

/// A node is about to keep a hint that counts; its disk says `promise`, and an owner of the partition has
/// raised its floor to `floor` before.
///
/// # Errors
/// When it has not promised so far: a write up to the floor would be taken, and met by closes everywhere.
pub fn stands_in(
    (node, partition): (NodeId, u16),
    floor: Hlc,
    promise: Hlc,
) -> Result<(), Violation> {
    if promise >= floor {
        return Ok(());
    }
    let what = format!(
        "{node} stands in for an owner of partition {partition} with a promise of {promise:?}, below the floor {floor:?}"
    );
    Err(Violation::new(Invariant::Floors, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: (NodeId, u16) = (NodeId(1), 3);

    fn mark(floor: u64, close: u64, promise: u64) -> (Mark, u64) {
        let mark = Mark {
            floor: Hlc(floor),
            close: Hlc(close),
            promise: Hlc(promise),
        };
        (mark, 1)
    }

    #[test]
    fn marks_only_rise_as_long_as_the_partition_is_owned() {
        let mut marks = Marks::default();
        assert_eq!(marks.stored(A, mark(0, 2, 2), false), Ok(false));
        assert_eq!(marks.stored(A, mark(2, 2, 2), false), Ok(true));
        assert_eq!(marks.stored(A, mark(2, 3, 4), false), Ok(false));
        for lower in [mark(0, 3, 4), mark(1, 3, 4), mark(2, 2, 4), mark(2, 3, 3)] {
            assert!(marks.clone().stored(A, lower, false).is_err(), "{lower:?}");
        }
        assert!(marks.clone().stored(A, mark(1, 3, 4), true).is_err());
        assert_eq!(marks.stored(A, mark(0, 3, 4), true), Ok(false));
    }

    #[test]
    fn another_disk_begins_anew() {
        let mut marks = Marks::default();
        assert_eq!(marks.stored(A, mark(2, 2, 2), false), Ok(true));
        marks.forget(NodeId(2));
        assert!(marks.clone().stored(A, mark(0, 2, 2), false).is_err());
        marks.forget(A.0);
        assert_eq!(marks.stored(A, mark(0, 1, 1), false), Ok(false));
    }

    #[test]
    fn a_floor_above_a_close_or_above_what_an_owner_lacks_is_found() {
        assert!(closed(A, Hlc(5), Hlc(5)).is_ok());
        assert!(closed(A, Hlc(5), Hlc(4)).is_err());
        let version = |at| Version {
            hlc: Hlc(at),
            node: NodeId(9),
        };
        let owner = (A.0, 7);
        assert!(compared(owner, version(3), Some(version(3))).is_ok());
        assert!(compared(owner, version(3), Some(version(4))).is_ok());
        assert!(compared(owner, version(3), Some(version(2))).is_err());
        assert!(compared(owner, version(3), None).is_err());
    }

    #[test]
    fn a_close_or_a_promise_that_was_not_taken_over_is_found() {
        for check in [inherited, stands_in] {
            assert!(check(A, Hlc(5), Hlc(5)).is_ok());
            assert!(check(A, Hlc(5), Hlc(4)).is_err());
            assert!(check(A, Hlc(0), Hlc(0)).is_ok());
        }
    }
}

//! I1, I4, I5: what a completed operation has shown to be on so many owners, every later operation whose
//! quorum overlaps must see.
//!
//! A write acknowledged by `w` owners, and a read answered from (or written back to) `s` owners, put a
//! version on that many owners. An operation that begins later and asks `q` of the `n` owners meets one of
//! them if `s + q > n`: a read must then answer that version or a newer one, a write must be newer than it
//! or be told that it was superseded. Where all quorums are majorities these rules together say that each
//! key is a linearizable register whose order is that of the versions.
//!
//! While a ring changes there are two sets of owners, and an operation has a quorum in each. Between
//! different sets nothing can be counted; there the rule is that a majority's value goes over to the next
//! majority, whatever the members are.

use torc_protocol::version::Version;
use torc_ring::ConfigVersion;

use super::{Invariant, Violation};

/// Greatest number of owners that the checker knows.
pub const OWNERS_MAX: usize = 7;

/// Names a set of owners of a key: two sets with one name have the same owners, which have owned the key
/// all the time between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SetId {
    /// The config version since which these are the owners.
    pub since: ConfigVersion,
    /// Whether they are those of the ring that is being moved to.
    pub target: bool,
}

/// So many of the owners of one set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The set.
    pub set: SetId,
    /// Owners in it.
    pub of: usize,
    /// How many of them.
    pub count: usize,
}

/// The greatest versions known to be on so many owners of a set, by that number.
#[derive(Clone, Debug)]
struct Known {
    set: SetId,
    of: usize,
    on: [Option<Version>; OWNERS_MAX + 1],
}

/// The greatest versions known to be on at least so many owners.
#[derive(Clone, Debug, Default)]
pub struct Floor {
    sets: Vec<Known>,
    /// On a majority of each set that there was.
    majority: Option<Version>,
}

impl Floor {
    /// The version is on that many owners of each set.
    pub fn raise(&mut self, on: &[Part], version: Version) {
        for part in on {
            let at = self.sets.iter().position(|known| known.set == part.set);
            let at = at.unwrap_or_else(|| {
                let (set, of) = (part.set, part.of);
                let on = [None; OWNERS_MAX + 1];
                self.sets.push(Known { set, of, on });
                self.sets.len() - 1
            });
            let slot = &mut self.sets[at].on[part.count.min(OWNERS_MAX)];
            *slot = (*slot).max(Some(version));
        }
        if is_majority(on) {
            self.majority = self.majority.max(Some(version));
        }
    }

    /// An owner has lost what it had: of what at most half of the owners of a set have, one copy is gone. What
    /// more of them have it gets back before it counts.
    pub fn forget_one(&mut self) {
        for Known { of, on, .. } in &mut self.sets {
            for count in 1..=*of / 2 {
                on[count - 1] = on[count - 1].max(on[count].take());
            }
        }
    }

    /// The greatest version known to be on a majority of each set that there was.
    #[must_use]
    pub fn majority(&self) -> Option<Version> {
        self.majority
    }

    /// What an operation must see that asks that many owners of each set.
    #[must_use]
    pub fn seen_by(&self, asked: &[Part]) -> Option<Version> {
        let counted = asked.iter().filter_map(|part| {
            let slots = self.sets.iter().find(|known| known.set == part.set)?.on;
            let overlapping =
                (1..=OWNERS_MAX).filter(|on| on + part.count > part.of && *on <= part.of);
            overlapping.filter_map(|on| slots[on]).max()
        });
        let counted = counted.max();
        if is_majority(asked) {
            counted.max(self.majority)
        } else {
            counted
        }
    }
}

fn is_majority(parts: &[Part]) -> bool {
    !parts.is_empty() && parts.iter().all(|part| 2 * part.count > part.of)
}

/// A read that began when `floor` held has found `found`.
///
/// # Errors
/// When it went back in time.
pub fn read(floor: &Floor, asked: &[Part], found: Option<Version>) -> Result<(), Violation> {
    let must = floor.seen_by(asked);
    if found >= must {
        return Ok(());
    }
    let what =
        format!("a read of {asked:?} found {found:?}, but {must:?} was known before it began");
    Err(Violation::new(Invariant::Order, what))
}

/// A write that began when `floor` held was acknowledged under `version`, and not called superseded.
///
/// # Errors
/// When it is not newer than what was known before it began.
pub fn write(floor: &Floor, asked: &[Part], version: Version) -> Result<(), Violation> {
    let must = floor.seen_by(asked);
    if Some(version) > must {
        return Ok(());
    }
    let what = format!("a write to {asked:?} as {version} lost to {must:?} from before it, untold");
    Err(Violation::new(Invariant::Order, what))
}

#[cfg(test)]
mod tests {
    use torc_protocol::hlc::Hlc;
    use torc_ring::NodeId;

    use super::*;

    fn version(at: u64) -> Version {
        Version {
            hlc: Hlc(at),
            node: NodeId(1),
        }
    }

    fn part(since: u64, count: usize, of: usize) -> Part {
        let set = SetId {
            since: ConfigVersion(since),
            target: false,
        };
        Part { set, of, count }
    }

    #[test]
    fn a_read_that_misses_an_acknowledged_write_is_found() {
        let mut floor = Floor::default();
        floor.raise(&[part(1, 2, 3)], version(5));
        let two = [part(1, 2, 3)];
        assert!(read(&floor, &two, Some(version(5))).is_ok());
        assert!(read(&floor, &two, Some(version(6))).is_ok());
        assert!(read(&floor, &two, Some(version(4))).is_err());
        assert!(read(&floor, &two, None).is_err());
        assert!(
            read(&floor, &[part(1, 1, 3)], None).is_ok(),
            "quorums that do not overlap promise nothing"
        );
    }

    #[test]
    fn what_a_minority_has_may_be_lost_with_one_owner_and_what_a_majority_has_may_not() {
        let mut floor = Floor::default();
        floor.raise(&[part(1, 1, 3)], version(6));
        floor.raise(&[part(1, 2, 3)], version(5));
        let all = [part(1, 3, 3)];
        assert!(read(&floor, &all, Some(version(5))).is_err());
        floor.forget_one();
        assert!(read(&floor, &all, Some(version(5))).is_ok());
        assert!(read(&floor, &all, Some(version(4))).is_err());
    }

    #[test]
    fn a_write_that_silently_loses_is_found() {
        let mut floor = Floor::default();
        floor.raise(&[part(1, 2, 3)], version(5));
        assert!(write(&floor, &[part(1, 2, 3)], version(6)).is_ok());
        assert!(write(&floor, &[part(1, 2, 3)], version(4)).is_err());
        assert!(write(&floor, &[part(1, 1, 3)], version(4)).is_ok());
    }

    #[test]
    fn a_majority_is_seen_by_a_majority_of_other_owners_and_nothing_less_is() {
        let mut floor = Floor::default();
        floor.raise(&[part(1, 2, 3)], version(5));
        floor.raise(&[part(1, 1, 3)], version(6));
        assert!(read(&floor, &[part(4, 2, 3)], Some(version(4))).is_err());
        assert!(read(&floor, &[part(4, 2, 3)], Some(version(5))).is_ok());
        assert!(read(&floor, &[part(4, 1, 3)], None).is_ok());
        let joint = [part(1, 3, 3), part(4, 1, 3)];
        assert!(
            read(&floor, &joint, Some(version(5))).is_err(),
            "the part that asks all of the old owners sees what one of them has"
        );
    }
}

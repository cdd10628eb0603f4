//! I3: a deleted value never comes back, though its tombstone is gone; and the tombstone really goes.
//!
//! The checker knows at which floor each state is dead, and the highest floor that any owner has reached.
//! Once the floor has passed a tombstone, absence is as good as the tombstone itself; anything older is not.

use std::collections::BTreeMap;

use torc_protocol::hlc::Hlc;
use torc_protocol::record::Record;
use torc_protocol::version::Version;
use torc_ring::NodeId;

use super::order::{Floor, Part};
use super::{Invariant, Violation};

/// What dies, and how far it has been collected.
#[derive(Clone, Debug, Default)]
pub struct Deleted {
    dead_at: BTreeMap<Version, Hlc>,
    floors: BTreeMap<u16, Hlc>,
    /// By key: the greatest version that a floor has passed.
    buried: BTreeMap<u64, Version>,
}

impl Deleted {
    /// A record was seen.
    pub fn saw(&mut self, record: &Record) {
        if let Some(at) = record.dead_at() {
            self.dead_at.insert(record.version(), at);
        }
    }

    /// An owner has raised its floor of a partition; answers whether it is the first to come that far.
    pub fn raised(&mut self, partition: u16, floor: Hlc) -> bool {
        let known = self.floors.entry(partition).or_default();
        let first = floor > *known;
        *known = floor.max(*known);
        first
    }

    /// Whether that version is dead at that floor.
    #[must_use]
    pub fn is_dead(&self, version: Version, floor: Hlc) -> bool {
        self.dead_at.get(&version).is_some_and(|at| *at <= floor)
    }

    /// A floor has passed that version of the key.
    pub fn bury(&mut self, key: u64, version: Version) {
        let known = self.buried.entry(key).or_insert(version);
        *known = version.max(*known);
    }

    /// Whether the key needs no record any more at that floor, where `version` was known of it: that version
    /// is dead, or a later one.
    #[must_use]
    pub fn is_gone(&self, key: u64, version: Version, floor: Hlc) -> bool {
        let later = self.buried.get(&key).filter(|later| **later >= version);
        self.is_dead(version, floor) || later.is_some_and(|later| self.is_dead(*later, floor))
    }

    /// A copy with that floor holds that version of a key, alive.
    ///
    /// # Errors
    /// When a floor has passed something newer that is dead at this floor: what the copy holds was deleted, and
    /// is taken for what nobody deleted.
    pub fn holds(
        &self,
        (key, node): (u64, NodeId),
        version: Version,
        floor: Hlc,
    ) -> Result<(), Violation> {
        let dead = self.buried.get(&key).filter(|later| {
            **later > version && self.is_dead(**later, floor) && !self.is_dead(version, floor)
        });
        let Some(dead) = dead else { return Ok(()) };
        let what = format!(
            "{node} holds {version} of key {key} at the floor {floor:?}, which {dead} has deleted"
        );
        Err(Violation::new(Invariant::Deleted, what))
    }

    /// The highest floor that an owner of that partition has reached.
    #[must_use]
    pub fn floor(&self, partition: u16) -> Hlc {
        self.floors.get(&partition).copied().unwrap_or_default()
    }

    /// Judges a read that an order of operations has found wrong: `found`, where `must` was known.
    ///
    /// # Errors
    /// When it is wrong all the same, though what it should have seen may be gone.
    pub fn judge(
        &self,
        (key, partition): (u64, u16),
        (floor, asked): (&Floor, &[Part]),
        found: Option<Version>,
        wrong: Violation,
    ) -> Result<(), Violation> {
        let highest = self.floor(partition);
        let must = floor.seen_by(asked);
        let gone = must.filter(|must| self.is_gone(key, *must, highest));
        match (gone, found) {
            (None, _) => Err(wrong),
            (Some(_), None) => Ok(()),
            (Some(must), Some(found)) => {
                let what = format!("{found} comes back, though {must} has deleted it");
                Err(Violation::new(Invariant::Deleted, what))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use torc_ring::ConfigVersion;

    use super::*;
    use crate::check::order::{self, SetId};

    fn version(at: u64) -> Version {
        Version {
            hlc: Hlc(at),
            node: NodeId(1),
        }
    }

    #[test]
    fn a_collected_tombstone_may_be_missing_and_what_it_deleted_may_not_come_back() {
        let set = SetId {
            since: ConfigVersion(1),
            target: false,
        };
        let all = [Part {
            set,
            of: 3,
            count: 3,
        }];
        let mut floor = Floor::default();
        floor.raise(&all, version(5));
        let mut deleted = Deleted::default();
        deleted.saw(&Record::tombstone(version(5)));
        let judge = |deleted: &Deleted, found| {
            order::read(&floor, &all, found)
                .or_else(|wrong| deleted.judge((7, 0), (&floor, &all), found, wrong))
        };
        assert!(judge(&deleted, None).is_err(), "not collected yet");
        assert!(deleted.raised(0, Hlc(5)));
        assert!(!deleted.raised(0, Hlc(5)));
        assert!(judge(&deleted, None).is_ok());
        assert!(!deleted.is_gone(7, version(4), Hlc(9)));
        deleted.bury(7, version(5));
        assert!(
            deleted.is_gone(7, version(4), Hlc(9)),
            "a later one is dead"
        );
        assert!(judge(&deleted, Some(version(6))).is_ok());
        let held = |at, floor| deleted.holds((7, NodeId(2)), version(at), Hlc(floor));
        assert!(held(4, 5).is_err(), "the floor says that it was deleted");
        assert!(held(4, 4).is_ok(), "a floor that says nothing of it yet");
        assert!(held(5, 5).is_ok() && held(6, 5).is_ok());
        let back = judge(&deleted, Some(version(4))).expect_err("it is back");
        assert_eq!(back.invariant, Invariant::Deleted);
    }
}

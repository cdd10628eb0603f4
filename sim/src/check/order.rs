//! I1, I4, I5: what a completed operation has shown to be on so many owners, every later operation whose
//! quorum overlaps must see.
//!
//! A write acknowledged by `w` owners, and a read answered from (or written back to) `s` owners, put a
//! version on that many owners. An operation that begins later and asks `q` of the `n` owners meets one of
//! them if `s + q > n`: a read must then answer that version or a newer one, a write must be newer than it
//! or be told that it was superseded. Where all quorums are majorities these rules together say that each
//! key is a linearizable register whose order is that of the versions.

use torc_protocol::version::Version;

use super::{Invariant, Violation};

/// Greatest number of owners that the checker knows.
pub const OWNERS_MAX: usize = 16;

/// The greatest versions known to be on at least so many owners (the index).
#[derive(Clone, Copy, Debug, Default)]
pub struct Floor([Option<Version>; OWNERS_MAX + 1]);

impl Floor {
    /// The version is on that many owners.
    pub fn raise(&mut self, owners: usize, version: Version) {
        let slot = &mut self.0[owners.min(OWNERS_MAX)];
        *slot = (*slot).max(Some(version));
    }

    /// What an operation must see that asks `quorum` of `n` owners.
    #[must_use]
    pub fn seen_by(&self, quorum: usize, n: usize) -> Option<Version> {
        (1..=OWNERS_MAX)
            .filter(|owners| owners + quorum > n)
            .filter_map(|owners| self.0[owners])
            .max()
    }
}

/// A read that began when `floor` held has found `found`.
///
/// # Errors
/// When it went back in time.
pub fn read(
    floor: &Floor,
    (quorum, n): (usize, usize),
    found: Option<Version>,
) -> Result<(), Violation> {
    let must = floor.seen_by(quorum, n);
    if found >= must {
        return Ok(());
    }
    let what = format!(
        "a read of {quorum} of {n} found {found:?}, but {must:?} was known before it began"
    );
    Err(Violation::new(Invariant::Order, what))
}

/// A write that began when `floor` held was acknowledged under `version`, and not called superseded.
///
/// # Errors
/// When it is not newer than what was known before it began.
pub fn write(
    floor: &Floor,
    (quorum, n): (usize, usize),
    version: Version,
) -> Result<(), Violation> {
    let must = floor.seen_by(quorum, n);
    if Some(version) > must {
        return Ok(());
    }
    let what =
        format!("a write to {quorum} of {n} as {version} lost to {must:?} from before it, untold");
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

    #[test]
    fn a_read_that_misses_an_acknowledged_write_is_found() {
        let mut floor = Floor::default();
        floor.raise(2, version(5));
        assert!(read(&floor, (2, 3), Some(version(5))).is_ok());
        assert!(read(&floor, (2, 3), Some(version(6))).is_ok());
        assert!(read(&floor, (2, 3), Some(version(4))).is_err());
        assert!(read(&floor, (2, 3), None).is_err());
        assert!(
            read(&floor, (1, 3), None).is_ok(),
            "quorums that do not overlap promise nothing"
        );
    }

    #[test]
    fn a_write_that_silently_loses_is_found() {
        let mut floor = Floor::default();
        floor.raise(2, version(5));
        assert!(write(&floor, (2, 3), version(6)).is_ok());
        assert!(write(&floor, (2, 3), version(4)).is_err());
        assert!(write(&floor, (1, 3), version(4)).is_ok());
    }
}

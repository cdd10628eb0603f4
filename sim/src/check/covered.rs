//! I1 and I3 across ring changes: what every owner of a new ring must have when it is switched to, and what
//! nobody may keep who does not own it.
//!
//! A quorum of the new owners hides one of them that is not complete; here each of them is looked at.

use torc_protocol::message::RecordKey;
use torc_protocol::version::Version;
use torc_ring::NodeId;

use super::{Invariant, Violation};

/// The new ring is decided on. `must` was on a majority of the former owners before the change began, `has`
/// is what this owner's disk holds.
///
/// # Errors
/// When the owner lacks it.
pub fn complete(
    (owner, key): (NodeId, u64),
    must: Option<Version>,
    has: Option<Version>,
) -> Result<(), Violation> {
    if has >= must {
        return Ok(());
    }
    let what = format!(
        "{owner} has {has:?} of key {key} at the switch, and {must:?} was acknowledged before the change"
    );
    Err(Violation::new(Invariant::Covered, what))
}

/// A ring is switched to while a node keeps so many hints, of partitions that have moved, that counted towards
/// a write quorum: what they hold may be at no owner.
///
/// # Errors
/// When there is any.
pub fn delivered(node: NodeId, hints: usize) -> Result<(), Violation> {
    if hints == 0 {
        return Ok(());
    }
    let what = format!("{node} keeps {hints} hints that counted, of partitions that have moved");
    Err(Violation::new(Invariant::Covered, what))
}

/// A node calls a config applied; its disk holds a record of `key`, which it owns by it or not.
///
/// # Errors
/// When it does not.
pub fn kept(node: NodeId, key: &RecordKey, owns: bool) -> Result<(), Violation> {
    if owns {
        return Ok(());
    }
    let what =
        format!("{node} has applied a config and keeps {key:?}, which it does not own by it");
    Err(Violation::new(Invariant::Cleaned, what))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use torc_protocol::hlc::Hlc;
    use torc_ring::{BucketId, Token};

    use super::*;

    #[test]
    fn an_owner_that_lacks_an_acknowledged_write_is_found() {
        let version = |at| {
            Some(Version {
                hlc: Hlc(at),
                node: NodeId(1),
            })
        };
        let owner = (NodeId(4), 7);
        assert!(complete(owner, None, None).is_ok());
        assert!(complete(owner, version(1), version(1)).is_ok());
        assert!(complete(owner, version(1), version(2)).is_ok());
        assert!(complete(owner, version(2), version(1)).is_err());
        assert!(complete(owner, version(1), None).is_err());
    }

    #[test]
    fn hints_that_counted_and_were_left_behind_are_found() {
        assert!(delivered(NodeId(1), 0).is_ok());
        assert!(delivered(NodeId(1), 1).is_err());
    }

    #[test]
    fn what_is_left_over_is_found() {
        let key = RecordKey {
            bucket: BucketId(1),
            token: Token(3),
            key: Bytes::from_static(b"k"),
        };
        assert!(kept(NodeId(1), &key, true).is_ok());
        assert!(kept(NodeId(1), &key, false).is_err());
    }
}

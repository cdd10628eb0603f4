//! I7: no version is minted twice, and a write keeps the version that it got.

use std::collections::{BTreeMap, BTreeSet};

use torc_protocol::version::{Digest, Version};

use super::{Invariant, Violation};

/// All versions of a run.
#[derive(Clone, Debug, Default)]
pub struct Mint {
    digests: BTreeMap<Version, (u64, u64)>,
    writes: BTreeMap<u64, Version>,
    /// Versions of which a fault has made a second one.
    twins: BTreeSet<Version>,
}

impl Mint {
    /// A record of that digest for the key of that number was seen; `write` is the client's operation if
    /// the record tells.
    ///
    /// # Errors
    /// When the version stands for something else already, or the operation had another version.
    pub fn seen(&mut self, key: u64, digest: Digest, write: Option<u64>) -> Result<(), Violation> {
        let known = *self
            .digests
            .entry(digest.version)
            .or_insert((key, digest.hash));
        let twin = known.0 == key && self.twins.contains(&digest.version);
        if known != (key, digest.hash) && !twin {
            let what = format!(
                "version {} was minted twice: for key {} and key {key}",
                digest.version, known.0
            );
            return Err(Violation::new(Invariant::Mint, what));
        }
        if let Some(write) = write {
            let first = *self.writes.entry(write).or_insert(digest.version);
            if first != digest.version {
                let what = format!(
                    "operation {write} has two versions, {first} and {}",
                    digest.version
                );
                return Err(Violation::new(Invariant::Mint, what));
            }
        }
        Ok(())
    }

    /// A fault makes another record of that version.
    pub fn twin(&mut self, version: Version) {
        self.twins.insert(version);
    }

    /// What was written as that version, if it was ever seen: the key's number and the content's hash.
    #[must_use]
    pub fn of(&self, version: Version) -> Option<(u64, u64)> {
        self.digests.get(&version).copied()
    }
}

#[cfg(test)]
mod tests {
    use torc_protocol::hlc::Hlc;
    use torc_ring::NodeId;

    use super::*;

    #[test]
    fn a_version_minted_twice_and_a_write_minted_anew_are_found() {
        let digest = |at, hash| Digest {
            version: Version {
                hlc: Hlc(at),
                node: NodeId(1),
            },
            hash,
        };
        let mut mint = Mint::default();
        assert!(mint.seen(1, digest(1, 1), Some(7)).is_ok());
        assert!(
            mint.seen(1, digest(1, 1), Some(7)).is_ok(),
            "the same again is no news"
        );
        assert!(mint.seen(1, digest(1, 2), None).is_err(), "another content");
        assert!(mint.seen(2, digest(1, 1), None).is_err(), "another key");
        assert!(
            mint.seen(1, digest(2, 1), Some(7)).is_err(),
            "another version of the same write"
        );
    }
}

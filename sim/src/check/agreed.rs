//! I6: one config per version, none skipped, and a vote is on disk before anybody hears of it; I7 for
//! ballots.

use std::collections::BTreeMap;
use std::sync::Arc;

use torc_protocol::agree::{Acceptor, Ballot};
use torc_ring::{Config, ConfigVersion, NodeId};

use super::{Invariant, Violation};

/// What was decided in one cluster, and who used which ballot.
#[derive(Clone, Debug, Default)]
pub struct Agreed {
    decided: BTreeMap<ConfigVersion, Arc<Config>>,
    ballots: BTreeMap<Ballot, (NodeId, u32)>,
}

impl Agreed {
    /// Somebody says that this config is decided.
    ///
    /// # Errors
    /// When another one was decided under that version.
    pub fn decided(&mut self, config: Config) -> Result<(), Violation> {
        let version = config.version;
        match self.decided.get(&version) {
            None => {
                self.decided.insert(version, Arc::new(config));
                Ok(())
            }
            Some(known) if **known == config => Ok(()),
            Some(_) => Err(Violation::new(
                Invariant::Agreed,
                format!("two configs are decided as version {}", version.0),
            )),
        }
    }

    /// The config decided under that version.
    #[must_use]
    pub fn at(&self, version: u64) -> Option<&Arc<Config>> {
        self.decided.get(&ConfigVersion(version))
    }

    /// The newest decided config.
    #[must_use]
    pub fn latest(&self) -> Option<&Arc<Config>> {
        self.decided.values().next_back()
    }

    /// A node that has `stored` as the version applied last, and in this life was handed `before`, is
    /// handed `version`.
    ///
    /// # Errors
    /// When one is skipped.
    pub fn applied(
        node: NodeId,
        (stored, before): (u64, Option<ConfigVersion>),
        version: ConfigVersion,
    ) -> Result<(), Violation> {
        let expected = before.map_or(stored, |last| last.0 + 1);
        // A node that has never applied any begins where it was taken in.
        if version.0 == expected || (before.is_none() && stored == 0) {
            return Ok(());
        }
        let what = format!("{node} applies version {} after {expected}", version.0);
        Err(Violation::new(Invariant::Agreed, what))
    }

    /// That life of a node begins a round.
    ///
    /// # Errors
    /// When another life, or another node, has used the ballot.
    pub fn prepares(&mut self, ballot: Ballot, of: (NodeId, u32)) -> Result<(), Violation> {
        let known = *self.ballots.entry(ballot).or_insert(of);
        if known == of {
            return Ok(());
        }
        let what = format!(
            "ballot {ballot:?} is used by {} life {} and by {} life {}",
            known.0, known.1, of.0, of.1
        );
        Err(Violation::new(Invariant::Mint, what))
    }

    /// A node whose disk holds `stored` for this instance answers that it has promised, or accepted in,
    /// `ballot`.
    ///
    /// # Errors
    /// When a crash now would make it forget that.
    pub fn votes(
        node: NodeId,
        stored: Option<&Acceptor>,
        (ballot, accepts): (Ballot, bool),
    ) -> Result<(), Violation> {
        let kept = stored.is_some_and(|acceptor| {
            let below = Ballot {
                node: NodeId(ballot.node.0.saturating_sub(1)),
                ..ballot
            };
            let value_kept = acceptor
                .accepted()
                .is_some_and(|(accepted, _)| *accepted >= ballot);
            acceptor.clone().prepare(below).is_err() && (value_kept || !accepts)
        });
        if kept {
            return Ok(());
        }
        let what = format!("{node} votes in {ballot:?} before that is on its disk");
        Err(Violation::new(Invariant::Agreed, what))
    }

    /// A node whose newest decided version on disk is `decided` proposes `version`.
    ///
    /// # Errors
    /// When the one before is not decided as far as it knows.
    pub fn proposes(
        node: NodeId,
        decided: ConfigVersion,
        version: ConfigVersion,
    ) -> Result<(), Violation> {
        if version.0 <= decided.0 + 1 {
            return Ok(());
        }
        let what = format!(
            "{node} proposes version {} on a version that it does not know to be decided",
            version.0
        );
        Err(Violation::new(Invariant::Agreed, what))
    }

    /// A node whose start check has (not) passed votes or proposes.
    ///
    /// # Errors
    /// When it has not.
    pub fn takes_part(node: NodeId, serving: bool) -> Result<(), Violation> {
        if serving {
            return Ok(());
        }
        let what = format!("{node} takes part in a vote before its start check has passed");
        Err(Violation::new(Invariant::Agreed, what))
    }
}

#[cfg(test)]
mod tests {
    use torc_protocol::hlc::Hlc;
    use torc_ring::config::{Secret, WEIGHT_DEFAULT};
    use torc_ring::{ClusterId, Member};

    use super::*;

    fn config(version: u64, weight: u32) -> Config {
        let member = Member {
            id: NodeId(1),
            name: "a".into(),
            zone: String::new(),
            weight,
            peer: "a:1".into(),
            http: "a:2".into(),
        };
        let mut config = Config::bootstrap(ClusterId(1), (1, Secret([0; 32])), 2, member);
        config.version = ConfigVersion(version);
        config
    }

    fn ballot(at: u64) -> Ballot {
        Ballot {
            hlc: Hlc(at),
            node: NodeId(1),
        }
    }

    #[test]
    fn two_values_of_one_version_are_found() {
        let mut agreed = Agreed::default();
        assert!(agreed.decided(config(1, WEIGHT_DEFAULT)).is_ok());
        assert!(agreed.decided(config(1, WEIGHT_DEFAULT)).is_ok());
        assert!(agreed.decided(config(2, 7)).is_ok());
        assert!(agreed.decided(config(1, 7)).is_err());
    }

    #[test]
    fn a_skipped_version_is_found() {
        let at = ConfigVersion;
        let check = |known, version| Agreed::applied(NodeId(1), known, version);
        assert!(check((0, None), at(9)).is_ok(), "a joiner begins anywhere");
        assert!(check((3, None), at(3)).is_ok(), "after a restart");
        assert!(check((3, Some(at(3))), at(4)).is_ok());
        assert!(check((3, None), at(4)).is_err());
        assert!(check((3, Some(at(3))), at(5)).is_err());
    }

    #[test]
    fn a_ballot_of_two_lives_is_found() {
        let mut agreed = Agreed::default();
        assert!(agreed.prepares(ballot(5), (NodeId(1), 1)).is_ok());
        assert!(agreed.prepares(ballot(5), (NodeId(1), 1)).is_ok());
        assert!(agreed.prepares(ballot(5), (NodeId(1), 2)).is_err());
    }

    #[test]
    fn a_vote_that_a_crash_would_undo_is_found() {
        let mut acceptor = Acceptor::default();
        assert!(Agreed::votes(NodeId(1), None, (ballot(5), false)).is_err());
        let _ = acceptor.prepare(ballot(5));
        assert!(Agreed::votes(NodeId(1), Some(&acceptor), (ballot(5), false)).is_ok());
        assert!(Agreed::votes(NodeId(1), Some(&acceptor), (ballot(6), false)).is_err());
        assert!(
            Agreed::votes(NodeId(1), Some(&acceptor), (ballot(5), true)).is_err(),
            "promised, but not accepted"
        );
        let _ = acceptor.accept(ballot(5), Arc::new(config(1, 1)));
        assert!(Agreed::votes(NodeId(1), Some(&acceptor), (ballot(5), true)).is_ok());
        assert!(Agreed::takes_part(NodeId(1), false).is_err());
    }

    #[test]
    fn a_proposal_on_an_undecided_version_is_found() {
        let check = |decided, version| {
            Agreed::proposes(NodeId(1), ConfigVersion(decided), ConfigVersion(version))
        };
        assert!(check(4, 5).is_ok());
        assert!(check(4, 6).is_err());
    }
}

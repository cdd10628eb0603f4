//! Agreement: this node as an acceptor and as a proposer of the version after the newest decided one.

use std::collections::BTreeSet;
use std::sync::Arc;

use torc_ring::{Config, ConfigVersion, NodeId, change};

use super::{After, COMMITS_MAX, Cluster};
use crate::agree::{Acceptor, Ballot, Proposer, Verdict};
use crate::cluster_io::ClusterEvent;
use crate::cluster_message::ClusterMessage;
use crate::hlc::Hlc;
use crate::mutant::Mutant;
use crate::store::{StateKey, Write};
use crate::time::{MS, Mono, Now, SECOND};
use crate::wire::{self, Blob};

/// A value that was accepted and is not known to be decided is driven on after this time, in microseconds.
const DRIVE_AFTER: (u64, u64) = (2 * SECOND, 4 * SECOND);
/// A round is given this long before the next one, in microseconds; doubled with each up to [`ROUND_MAX`].
const ROUND: (u64, u64) = (400 * MS, 700 * MS);
const ROUND_MAX: u64 = 8;
/// A refused round is followed by another after this time, in microseconds.
const AFTER_REFUSAL: (u64, u64) = (20 * MS, 300 * MS);
/// Wait for a clock bound that is on its way to disk, in microseconds.
const BOUND_WAIT: u64 = 20 * MS;
/// A proposal without a decision for so long has an unknown outcome, in microseconds.
const UNKNOWN_AFTER: u64 = 10 * SECOND;

#[derive(Debug)]
pub(super) struct Votes {
    /// For the version after the newest decided one.
    acceptor: Acceptor,
    proposal: Option<Proposal>,
    drive_at: Option<Mono>,
}

#[derive(Debug)]
struct Proposal {
    wish: Arc<Config>,
    round: Option<Proposer>,
    retry_at: Mono,
    rounds: u64,
    unknown_at: Mono,
    said_unknown: bool,
}

impl Votes {
    pub(super) fn new(acceptors: Vec<(ConfigVersion, Acceptor)>, next: ConfigVersion) -> Self {
        let acceptor = acceptors.into_iter().find(|(version, _)| *version == next);
        Self {
            acceptor: acceptor.map(|(_, acceptor)| acceptor).unwrap_or_default(),
            proposal: None,
            drive_at: None,
        }
    }

    /// Nothing is being decided as far as this node knows.
    pub(super) fn is_quiet(&self) -> bool {
        self.proposal.is_none() && self.acceptor.accepted().is_none()
    }

    pub(super) fn is_proposing(&self) -> bool {
        self.proposal.is_some()
    }

    pub(super) fn deadline(&self) -> Option<Mono> {
        let retry = self.proposal.as_ref().map(|proposal| proposal.retry_at);
        [retry, self.drive_at].into_iter().flatten().min()
    }
}

impl Cluster {
    pub(super) fn on_prepare(
        &mut self,
        from: NodeId,
        version: ConfigVersion,
        ballot: Ballot,
        now: Now,
    ) {
        if !self.is_instance(from, version) || !self.is_timely(ballot, now) {
            return;
        }
        match self.votes.acceptor.prepare(ballot) {
            Ok(accepted) => {
                let accepted = accepted.and_then(|(ballot, value)| {
                    Some((ballot, Blob(wire::encode_config(&value).ok()?)))
                });
                self.store_vote(
                    from,
                    version,
                    ClusterMessage::Promise {
                        version,
                        ballot,
                        accepted,
                    },
                );
            }
            Err(refused) => {
                let promised = refused.promised;
                self.send(
                    from,
                    ClusterMessage::Rejected {
                        version,
                        ballot,
                        promised,
                    },
                );
            }
        }
    }

    pub(super) fn on_accept(&mut self, from: NodeId, ballot: Ballot, bytes: &[u8], now: Now) {
        let Ok(config) = wire::decode_config(bytes) else {
            self.event(ClusterEvent::BadConfig { peer: from });
            return;
        };
        let version = config.version;
        if !self.is_instance(from, version) || !self.is_timely(ballot, now) {
            return;
        }
        let fits = self
            .configs
            .latest()
            .is_some_and(|latest| change::follows(latest, &config));
        if !fits {
            self.event(ClusterEvent::BadConfig { peer: from });
            return;
        }
        match self.votes.acceptor.accept(ballot, Arc::new(config)) {
            Ok(()) => {
                self.store_vote(from, version, ClusterMessage::Accepted { version, ballot });
                self.drive_later(now);
            }
            Err(refused) => {
                let promised = refused.promised;
                self.send(
                    from,
                    ClusterMessage::Rejected {
                        version,
                        ballot,
                        promised,
                    },
                );
            }
        }
    }

    /// Whether this node is an acceptor of that version now. Who asks for a decided one is told it; when
    /// the asker is ahead, this node catches up first.
    fn is_instance(&mut self, from: NodeId, version: ConfigVersion) -> bool {
        // What is decided is told by whoever knows it, also by a member that may go.
        let decided = self.configs.at(version).cloned();
        if let Some(config) = decided.filter(|_| from != self.node) {
            self.publish_to(from, &config);
            return false;
        }
        let Some(latest) = self.acting().filter(|latest| version > latest.version) else {
            return false;
        };
        if version.0 > latest.version.0 + 1 {
            self.news(from, ConfigVersion(version.0 - 1));
            return false;
        }
        let acceptor = |id| {
            let any = self.has(Mutant::AcceptorsFromTarget) && latest.member(id).is_some();
            latest.is_current(id) || any
        };
        acceptor(from) && acceptor(self.node) && self.commits.len() < COMMITS_MAX
    }

    /// A ballot from beyond the allowed clock drift is not answered: once promised, nobody else's ballots
    /// could reach it.
    fn is_timely(&mut self, ballot: Ballot, now: Now) -> bool {
        self.clock.observe(ballot.hlc, now.wall)
    }

    fn store_vote(&mut self, to: NodeId, version: ConfigVersion, answer: ClusterMessage) {
        let Ok(value) = self.votes.acceptor.encode() else {
            return;
        };
        let put = Write::StatePut {
            key: StateKey::Acceptor(version),
            value,
        };
        if self.has(Mutant::VoteBeforeDurable) {
            self.send(to, answer.clone());
        }
        self.commit(vec![put], After::Send(to, answer));
    }

    pub(super) fn drive_later(&mut self, now: Now) {
        if self.votes.acceptor.accepted().is_some() {
            self.votes.drive_at = Some(self.jitter(now, DRIVE_AFTER.0, DRIVE_AFTER.1));
        }
    }

    /// The config that a proposal follows: the newest decided one, never one that is merely accepted.
    pub(super) fn base(&self) -> Option<Arc<Config>> {
        let latest = self.acting()?;
        let accepted = self.votes.acceptor.accepted();
        match accepted.filter(|_| self.has(Mutant::ProposalOnUndecided)) {
            Some((_, value)) => Some(Arc::clone(value)),
            None => Some(latest),
        }
    }

    /// Begins to propose `wish`, which follows the newest decided config. Answers whether it does.
    pub(super) fn propose(&mut self, wish: Arc<Config>, now: Now) -> bool {
        let Some(latest) = self.base() else {
            return false;
        };
        let fits = change::follows(&latest, &wish) && wish.validate().is_ok();
        if !fits || self.votes.proposal.is_some() || !self.peers.clock_trusted() {
            return false;
        }
        let unknown_at = now.mono.plus(UNKNOWN_AFTER);
        self.votes.proposal = Some(Proposal {
            wish,
            round: None,
            retry_at: now.mono,
            rounds: 0,
            unknown_at,
            said_unknown: false,
        });
        self.begin_round(now);
        true
    }

    /// Gives up proposing that config, if that is what is proposed; somebody else may still bring it about.
    pub(super) fn withdraw(&mut self, wish: &Config) {
        if self
            .votes
            .proposal
            .as_ref()
            .is_some_and(|p| *p.wish == *wish)
        {
            self.votes.proposal = None;
        }
    }

    /// Gives up whatever this node proposes.
    pub(super) fn withdraw_all(&mut self) {
        self.votes.proposal = None;
    }

    fn begin_round(&mut self, now: Now) {
        let latest = self.base().filter(|_| self.peers.clock_trusted());
        let pause = self.jitter(now, ROUND.0, ROUND.1).since(now.mono);
        let reuses = self.has(Mutant::BallotReused);
        let shifts_base = self.has(Mutant::ProposalOnUndecided);
        let from_target = self.has(Mutant::AcceptorsFromTarget);
        let Some(proposal) = &mut self.votes.proposal else {
            return;
        };
        let Some(latest) = latest else {
            proposal.retry_at = now.mono.plus(pause);
            return;
        };
        let minted = if reuses {
            Ok(Hlc(proposal.rounds + 1))
        } else {
            self.clock.mint(now.wall)
        };
        let Ok(hlc) = minted else {
            proposal.retry_at = now.mono.plus(BOUND_WAIT);
            return;
        };
        let ballot = Ballot {
            hlc,
            node: self.node,
        };
        let version = proposal.wish.version;
        if shifts_base && version.0 != latest.version.0 + 1 {
            self.votes.proposal = None;
            return;
        }
        let mut base = Config::clone(&latest);
        if from_target && let Some(target) = &latest.target {
            base.current.clone_from(target);
        }
        let round = Proposer::new(ballot, &base, Arc::clone(&proposal.wish));
        let acceptors = round.acceptors().to_vec();
        proposal.round = Some(round);
        proposal.rounds += 1;
        proposal.retry_at = now
            .mono
            .plus(pause.saturating_mul(proposal.rounds.min(ROUND_MAX)));
        for acceptor in acceptors {
            self.send(acceptor, ClusterMessage::Prepare { version, ballot });
        }
    }

    pub(super) fn on_promise(
        &mut self,
        from: NodeId,
        version: ConfigVersion,
        ballot: Ballot,
        accepted: Option<(Ballot, Blob)>,
        now: Now,
    ) {
        let Some(latest) = self.acting() else {
            return;
        };
        // A late answer, to a round of a version that is decided by now, is no news and no fault of anybody.
        let is_mine = self
            .round(version)
            .is_some_and(|round| round.ballot() == ballot);
        if !is_mine && !self.has(Mutant::LatePromiseBlamed) {
            return;
        }
        let told = match accepted {
            None => None,
            Some(_) if self.has(Mutant::AcceptedIgnored) => None,
            Some((theirs, blob)) => match wire::decode_config(&blob.0) {
                Ok(config) if change::follows(&latest, &config) => Some((theirs, Arc::new(config))),
                // A promise with a value that cannot be read must not count as one without.
                Ok(_) | Err(_) => {
                    self.event(ClusterEvent::BadConfig { peer: from });
                    return;
                }
            },
        };
        let verdict = self
            .round(version)
            .map(|round| round.on_promise(from, ballot, told));
        self.follow(verdict, ballot, now);
    }

    pub(super) fn on_accepted(
        &mut self,
        from: NodeId,
        version: ConfigVersion,
        ballot: Ballot,
        now: Now,
    ) {
        let verdict = self
            .round(version)
            .map(|round| round.on_accepted(from, ballot));
        self.follow(verdict, ballot, now);
    }

    fn round(&mut self, version: ConfigVersion) -> Option<&mut Proposer> {
        let proposal = self.votes.proposal.as_mut()?;
        if proposal.wish.version == version {
            proposal.round.as_mut()
        } else {
            None
        }
    }

    fn follow(&mut self, verdict: Option<Verdict>, ballot: Ballot, now: Now) {
        match verdict {
            None | Some(Verdict::Pending) => {}
            Some(Verdict::Accept(value)) => {
                let Ok(config) = wire::encode_config(&value) else {
                    return;
                };
                let config = Blob(config);
                let pause = self.jitter(now, ROUND.0, ROUND.1);
                let mut acceptors = Vec::new();
                if let Some(proposal) = &mut self.votes.proposal {
                    proposal.retry_at = proposal.retry_at.max(pause);
                    acceptors = proposal
                        .round
                        .as_ref()
                        .map_or(acceptors, |r| r.acceptors().to_vec());
                }
                for acceptor in acceptors {
                    let config = config.clone();
                    self.send(acceptor, ClusterMessage::Accept { ballot, config });
                }
            }
            Some(Verdict::Decided(value)) => self.publish(&value),
        }
    }

    /// Tells everybody concerned, this node included.
    fn publish(&mut self, value: &Config) {
        let Ok(config) = wire::encode_config(value) else {
            return;
        };
        let before = self.configs.latest().cloned();
        let members = before
            .iter()
            .flat_map(|config| config.all_members())
            .chain(value.all_members());
        let everybody: BTreeSet<NodeId> = members.map(|member| member.id).collect();
        for member in everybody {
            self.send(
                member,
                ClusterMessage::Learn {
                    config: Blob(config.clone()),
                },
            );
        }
    }

    /// Tells one node of a decided config.
    pub(super) fn publish_to(&mut self, to: NodeId, config: &Config) {
        if let Ok(config) = wire::encode_config(config) {
            self.send(
                to,
                ClusterMessage::Learn {
                    config: Blob(config),
                },
            );
        }
    }

    pub(super) fn on_rejected(
        &mut self,
        version: ConfigVersion,
        ballot: Ballot,
        promised: Ballot,
        now: Now,
    ) {
        let is_mine = self
            .round(version)
            .is_some_and(|round| round.ballot() == ballot);
        if !is_mine {
            return;
        }
        self.clock.observe(promised.hlc, now.wall);
        let soon = self.jitter(now, AFTER_REFUSAL.0, AFTER_REFUSAL.1);
        if let Some(proposal) = &mut self.votes.proposal {
            proposal.round = None;
            proposal.retry_at = soon;
        }
    }

    /// A version is decided and stored: the next instance begins empty.
    pub(super) fn votes_decided(&mut self, version: ConfigVersion) {
        self.votes.acceptor = Acceptor::default();
        self.votes.drive_at = None;
        if self
            .votes
            .proposal
            .as_ref()
            .is_some_and(|proposal| proposal.wish.version <= version)
        {
            self.votes.proposal = None;
        }
    }

    pub(super) fn tick_votes(&mut self, now: Now) {
        if self.votes.drive_at.is_some_and(|at| at <= now.mono) {
            self.votes.drive_at = None;
            self.drive_later(now);
            let value = self
                .votes
                .acceptor
                .accepted()
                .map(|(_, value)| Arc::clone(value));
            if let Some(value) = value.filter(|_| self.votes.proposal.is_none()) {
                self.propose(value, now);
            }
        }
        let Some(proposal) = &mut self.votes.proposal else {
            return;
        };
        let is_unknown = proposal.unknown_at <= now.mono && !proposal.said_unknown;
        proposal.said_unknown |= is_unknown;
        let retry = proposal.retry_at <= now.mono;
        if is_unknown {
            self.change_unknown();
        }
        if retry {
            self.begin_round(now);
        }
    }
}

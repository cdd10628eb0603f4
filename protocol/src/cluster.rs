//! The cluster machine: once per node, it owns the config, the agreement on it, joins, the start check,
//! and what members tell each other of their clocks. Pure: see [`crate::cluster_io`] for its boundary.
//!
//! Invariants:
//! - One config per version, applied in order, none skipped; "applied" is durable before it is told.
//! - A node votes, proposes and serves only after its start check has passed.
//! - Members change by way of a joint config alone: the ring becomes another one only when every owner that
//!   it will have has told, naming the joint ring version, that it has everything it gains (`drive.rs`).
//!
//! Sources: Lamport, "Paxos Made Simple" (2001), one instance per version; Ongaro, Ousterhout, "In Search
//! of an Understandable Consensus Algorithm" (2014), section 6, for what a change of members may overlap.
//! It does not move data: the shards do (`transfer.rs`), and tell when they have it.

mod admin;
mod change;
mod configs;
mod drive;
mod history;
mod join;
mod leave;
mod peers;
mod probe;
mod recovery;
mod start;
mod vote;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use torc_ring::{Config, ConfigVersion, Member, NodeId};

use crate::cluster_io::{
    BootstrapRefusal, CLUSTER_BOUND, CLUSTER_CLOCK_SHARD, ClusterEvent, ClusterInput,
    ClusterOutput, ClusterSettings, Persisted,
};
use crate::cluster_message::ClusterMessage;
use crate::hlc::{Hlc, HlcClock, Pace};
use crate::message::{PeerBody, PeerMessage};
use crate::mutant::Mutant;
use crate::rng::Rng;
use crate::store::{Batch, CommitId, StateKey, StoreError, Sync, Write};
use crate::time::{JumpGuard, MS, Mono, Now, SECOND};

/// Commits in flight above which votes are not taken: their senders ask again.
const COMMITS_MAX: usize = 256;
/// After a failed commit the next attempt waits this long, in microseconds.
const STORE_RETRY: u64 = SECOND;

/// See the module's text.
#[derive(Debug)]
pub struct Cluster {
    node: NodeId,
    member: Member,
    settings: ClusterSettings,
    clock: HlcClock,
    jump: JumpGuard,
    rng: Rng,
    phase: Phase,
    configs: configs::Configs,
    votes: vote::Votes,
    peers: peers::Peers,
    changes: change::Changes,
    admin: admin::Admin,
    drive: drive::Drive,
    recovery: recovery::Recovery,
    history: history::History,
    /// When a node that no config names asks to be taken in again.
    ask_again: Option<Mono>,
    probes: probe::Probes,
    commits: BTreeMap<CommitId, After>,
    next_commit: u64,
    local: VecDeque<ClusterMessage>,
    out: VecDeque<ClusterOutput>,
}

/// Where a node is in its life.
#[derive(Debug)]
enum Phase {
    /// Neither config nor contacts.
    Blank,
    /// The first config is on its way to disk.
    Bootstrapping,
    /// No config yet; asks to be taken in.
    Joining(join::Joiner),
    /// Has a config; asks the members whether it has forgotten something.
    Checking(start::StartCheck),
    /// Votes, proposes, serves.
    Serving,
    /// No member any more; makes sure that those who are know it.
    Leaving(leave::Leaver),
    /// No member any more, and all is said; answers fetches.
    Removed,
    /// Has forgotten something: says nothing more.
    Halted,
}

/// What follows when a batch is on disk.
#[derive(Debug)]
enum After {
    /// The answer that speaks of it may go out.
    Send(NodeId, ClusterMessage),
    /// The first config that this node has.
    Base(Arc<Config>),
    /// The next decided config.
    Decided(Arc<Config>),
    /// Configs from before this node.
    Older(Vec<Arc<Config>>),
    /// What this node does not own by that config is gone; `true` if there may be more.
    Cleaned(Arc<Config>, bool),
    /// The config that is applied.
    Applied(Arc<Config>),
    /// This node's clock bound.
    Bound,
    /// Bounds of peers.
    PeerBounds(Vec<(NodeId, Hlc)>),
}

impl Cluster {
    /// The machine of a node that starts with what is on its disk.
    #[must_use]
    pub fn new(persisted: Persisted, settings: ClusterSettings, now: Now) -> Self {
        let mut rng = Rng::new(settings.rng_seed ^ persisted.node.0.rotate_left(32));
        let clock = HlcClock::new(
            CLUSTER_CLOCK_SHARD,
            persisted.own_bound,
            settings.drift_max,
            Pace::BALLOTS,
        );
        let latest = persisted.decided.last().cloned();
        let ring = latest.as_ref().map(|config| config.ring_version);
        let lost = ring.filter(|_| settings.lost);
        let next_version = latest.as_ref().map_or(0, |config| config.version.0) + 1;
        let mut cluster = Self {
            node: persisted.node,
            member: persisted.member,
            clock,
            jump: JumpGuard::new(now, settings.drift_max),
            phase: Phase::Blank,
            configs: configs::Configs::new(persisted.decided, persisted.applied),
            votes: vote::Votes::new(persisted.acceptors, ConfigVersion(next_version)),
            peers: peers::Peers::new(persisted.peer_bounds, now.mono),
            changes: change::Changes::new(rng.next_u64()),
            admin: admin::Admin::default(),
            drive: drive::Drive::new(now.mono),
            recovery: recovery::Recovery::new(lost),
            history: history::History::new(now.mono),
            ask_again: None,
            probes: probe::Probes::default(),
            settings,
            rng,
            commits: BTreeMap::new(),
            next_commit: 0,
            local: VecDeque::new(),
            out: VecDeque::new(),
        };
        if latest.is_some() {
            cluster.resume(now);
            cluster.settle(now);
        } else if cluster.settings.lost {
            // A node that no cluster has taken in had nothing to lose.
            cluster.out.push_back(ClusterOutput::Recovered);
        }
        cluster
    }

    fn resume(&mut self, now: Now) {
        self.sync_peers();
        if let Some(applied) = self.configs.applied_config().cloned() {
            self.out.push_back(ClusterOutput::Apply(applied));
        }
        self.begin_start_check(now);
        if let Some(latest) = self.configs.latest().cloned() {
            self.drive_decided(&latest, false, now);
        }
        self.note_removal(now);
        self.apply_next();
    }

    /// Takes in what happened; [`Self::next_output`] then says what to do.
    pub fn handle(&mut self, now: Now, input: ClusterInput) {
        if matches!(self.phase, Phase::Halted) {
            return;
        }
        match input {
            ClusterInput::Bootstrap {
                cluster,
                seed,
                secret,
                partition_bits,
            } => {
                let config =
                    Config::bootstrap(cluster, (seed, secret), partition_bits, self.member.clone());
                self.bootstrap(config);
            }
            ClusterInput::Contacts(contacts) => self.on_contacts(contacts, now),
            ClusterInput::Peer { from, hlc, message } => {
                self.clock.observe(hlc, now.wall);
                self.peers.heard(from, now.mono);
                if self.may_say(from, &message) {
                    self.on_message(from, message, now);
                }
            }
            ClusterInput::NewerConfig(peer, version) => self.news(peer, version),
            ClusterInput::Committed(id, outcome) => self.on_committed(id, outcome, now),
            ClusterInput::Drained(ring) => self.on_drained(ring),
            ClusterInput::Leftovers(version, found) => self.on_leftovers(version, found, now),
            ClusterInput::Covered(ring) => self.on_covered(ring),
            ClusterInput::Progress { ring, progress } => self.on_own_progress(ring, progress),
            ClusterInput::Admin(id, request) => self.on_admin(id, request, now),
            ClusterInput::Dialled(node, reached) => self.on_dialled(node, reached),
            ClusterInput::Propose(config) => {
                self.propose(config, now);
            }
            ClusterInput::Tick => {}
        }
        self.settle(now);
    }

    /// What the shell has to do next, in order.
    pub fn next_output(&mut self) -> Option<ClusterOutput> {
        self.out.pop_front()
    }

    /// When [`ClusterInput::Tick`] is due, if nothing else comes first.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        let phase = match &self.phase {
            Phase::Blank | Phase::Halted => return None,
            Phase::Bootstrapping => return Some(self.peers.ping_at()),
            Phase::Joining(joiner) => Some(joiner.next_try()),
            Phase::Checking(check) => Some(check.next_try()),
            Phase::Leaving(leaver) => Some(leaver.tell_at()),
            Phase::Serving | Phase::Removed => None,
        };
        let timers = [
            phase,
            Some(self.peers.ping_at()),
            self.configs.deadline(),
            self.votes.deadline(),
            self.changes.deadline(),
            self.admin.deadline(),
            self.drive.deadline(),
            self.recovery.deadline(),
            self.history.deadline(),
            self.ask_again,
        ];
        timers.into_iter().flatten().min()
    }

    /// The newest decided config.
    #[must_use]
    pub fn latest(&self) -> Option<&Arc<Config>> {
        self.configs.latest()
    }

    /// The version applied last, durably; 0 for none.
    #[must_use]
    pub fn applied(&self) -> ConfigVersion {
        self.configs.applied()
    }

    /// Whether the start check has passed.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving)
    }

    fn on_message(&mut self, from: NodeId, message: ClusterMessage, now: Now) {
        match message {
            ClusterMessage::Ping { seq, standing } => self.on_ping(from, seq, standing, now),
            ClusterMessage::Pong {
                seq,
                wall,
                standing,
            } => {
                self.on_pong(from, (seq, wall), standing, now);
            }
            ClusterMessage::StartCheck { bound, cluster } => {
                self.on_start_check(from, bound, cluster);
            }
            ClusterMessage::StartChecked { bound, remembered } => {
                self.on_start_checked(from, bound, remembered, now);
            }
            ClusterMessage::Foreign { cluster } => self.on_foreign(from, cluster),
            ClusterMessage::Fetch { after } => self.on_fetch(from, after),
            ClusterMessage::Configs {
                oldest,
                latest,
                configs,
            } => {
                self.on_configs(from, (oldest, latest), &configs, now);
            }
            ClusterMessage::Join {
                protocol,
                version,
                cluster,
                member,
                replaces,
            } => {
                let terms = (protocol, version, cluster);
                self.on_join(from, terms, (member, replaces), now);
            }
            ClusterMessage::JoinBusy => self.on_join_busy(now),
            ClusterMessage::JoinRefused { refusal } => self.on_join_refused(refusal, now),
            ClusterMessage::Probe { change, joiners } => self.on_probe(from, change, joiners),
            ClusterMessage::Probed { change, reached } => self.on_probed(from, change, &reached),
            ClusterMessage::Prepare { version, ballot } => {
                self.on_prepare(from, version, ballot, now);
            }
            ClusterMessage::Promise {
                version,
                ballot,
                accepted,
            } => {
                self.on_promise(from, version, ballot, accepted, now);
            }
            ClusterMessage::Accept { ballot, config } => {
                self.on_accept(from, ballot, &config.0, now);
            }
            ClusterMessage::Accepted { version, ballot } => {
                self.on_accepted(from, version, ballot, now);
            }
            ClusterMessage::Rejected {
                version,
                ballot,
                promised,
            } => {
                self.on_rejected(version, ballot, promised, now);
            }
            ClusterMessage::Learn { config } => self.on_learn(from, &config.0),
            ClusterMessage::Learned { version } => self.peers.on_learned(from, version),
            ClusterMessage::Ask { ring, drives } => self.on_ask(from, ring, drives, now),
            ClusterMessage::Progress { ring, progress } => self.on_progress(from, ring, progress),
            ClusterMessage::Lost { above } => self.on_lost(from, above, now),
            ClusterMessage::Recovered { ring } => self.on_recovered(from, ring, now),
        }
    }

    /// Delivers this node's messages to itself and runs the timers that are due.
    fn settle(&mut self, now: Now) {
        self.deliver_local(now);
        if matches!(self.phase, Phase::Blank | Phase::Halted) {
            return;
        }
        self.tick_peers(now);
        self.tick_configs(now);
        self.tick_start(now);
        self.tick_join(now);
        self.tick_votes(now);
        self.tick_changes(now);
        self.tick_drive(now);
        self.tick_recovery(now);
        self.tick_history(now);
        self.tick_leave(now);
        self.renew_bound(now);
        self.deliver_local(now);
        self.tick_admin(now);
    }

    fn deliver_local(&mut self, now: Now) {
        while let Some(message) = self.local.pop_front() {
            if matches!(self.phase, Phase::Halted) {
                return;
            }
            self.on_message(self.node, message, now);
        }
    }

    fn bootstrap(&mut self, config: Config) {
        let refusal = match (&self.phase, self.configs.latest()) {
            (_, Some(latest)) => Some(BootstrapRefusal::Used {
                cluster: latest.cluster,
                version: latest.version,
            }),
            (Phase::Blank, None) if config.validate().is_err() => Some(BootstrapRefusal::Invalid),
            (Phase::Blank, None) => None,
            _ => Some(BootstrapRefusal::Busy),
        };
        if let Some(refusal) = refusal {
            self.out.push_back(ClusterOutput::BootstrapRefused(refusal));
            return;
        }
        self.phase = Phase::Bootstrapping;
        self.store_base(Arc::new(config));
    }

    fn on_committed(&mut self, id: CommitId, outcome: Result<(), StoreError>, now: Now) {
        let Some(after) = self.commits.remove(&id) else {
            return;
        };
        if let Err(error) = outcome {
            self.on_commit_failed(after, error, now);
            return;
        }
        match after {
            After::Send(to, message) => self.send(to, message),
            After::Base(config) => self.on_base(&config, now),
            After::Decided(config) => self.on_decided(&config, now),
            After::Older(older) => self.on_older(older, now),
            After::Cleaned(config, more) => self.on_cleaned(config, more),
            After::Applied(config) => self.on_applied(&config, now),
            After::Bound => self.clock.on_bound_durable(now.wall),
            After::PeerBounds(bounds) => self.peers.on_bounds_durable(&bounds),
        }
    }

    fn on_commit_failed(&mut self, after: After, error: StoreError, now: Now) {
        self.event(ClusterEvent::StoreFailed { error });
        match after {
            // Whoever waits for the answer, or for the bounds, asks or is asked again.
            After::Send(..) | After::PeerBounds(_) => {}
            After::Base(_) => {
                self.configs.storing_failed();
                if matches!(self.phase, Phase::Bootstrapping) {
                    self.phase = Phase::Blank;
                    let refusal = BootstrapRefusal::Store(error);
                    self.out.push_back(ClusterOutput::BootstrapRefused(refusal));
                }
            }
            After::Decided(_) => self.configs.storing_failed(),
            After::Older(_) => self.history.storing_failed(),
            After::Applied(config) => {
                self.configs
                    .retry_applied(config, now.mono.plus(STORE_RETRY));
            }
            After::Cleaned(config, _) => self.clean_later(config, now),
            After::Bound => self.clock.on_bound_failed(),
        }
    }

    /// Whether that node may say this: whoever is not a member asks, and is answered; what is voted or
    /// remembered is taken from members alone. What is decided is taken from whoever knows it, as long as it
    /// follows: all members that this node knows of may have been replaced while it was away. A node without
    /// a config believes its contacts.
    fn may_say(&self, from: NodeId, message: &ClusterMessage) -> bool {
        use ClusterMessage as M;
        match message {
            M::Ping { .. }
            | M::Pong { .. }
            | M::StartCheck { .. }
            | M::Foreign { .. }
            | M::Fetch { .. }
            | M::Configs { .. }
            | M::Join { .. }
            | M::JoinBusy
            | M::JoinRefused { .. } => true,
            M::StartChecked { .. }
            | M::Probe { .. }
            | M::Probed { .. }
            | M::Prepare { .. }
            | M::Promise { .. }
            | M::Accept { .. }
            | M::Accepted { .. }
            | M::Rejected { .. }
            | M::Learn { .. }
            | M::Learned { .. }
            | M::Ask { .. }
            | M::Progress { .. }
            | M::Lost { .. }
            | M::Recovered { .. } => self
                .latest()
                .is_none_or(|config| config.member(from).is_some()),
        }
    }

    /// Keeps the clock's durable bound ahead. Not before the start check has passed: a bound raised by a
    /// node that has forgotten something would hide that from the members that remember. Not while the
    /// clock is off: a bound far in the future would outlive the clock's repair.
    fn renew_bound(&mut self, now: Now) {
        let steady = self.jump.look(now);
        if !self.is_serving() || !self.peers.clock_trusted() || !steady {
            return;
        }
        if let Some(bound) = self.clock.renewal(now.wall) {
            let put = put_number(StateKey::HlcBound(CLUSTER_BOUND), bound.0);
            self.commit(vec![put], After::Bound);
        }
    }

    fn send(&mut self, to: NodeId, message: ClusterMessage) {
        if to == self.node {
            self.local.push_back(message);
            return;
        }
        let message = PeerMessage {
            hlc: self.clock.last(),
            body: PeerBody::Cluster(message),
        };
        self.out.push_back(ClusterOutput::Send(to, message));
    }

    fn commit(&mut self, writes: Vec<Write>, after: After) {
        let id = CommitId(self.next_commit);
        self.next_commit += 1;
        self.commits.insert(id, after);
        self.out.push_back(ClusterOutput::Commit(
            id,
            Batch {
                writes,
                sync: Sync::Fsync,
            },
        ));
    }

    fn event(&mut self, event: ClusterEvent) {
        self.out.push_back(ClusterOutput::Event(event));
    }

    #[cfg(feature = "mutants")]
    fn has(&self, mutant: Mutant) -> bool {
        self.settings.mutant == Some(mutant)
    }

    #[cfg(not(feature = "mutants"))]
    #[allow(clippy::unused_self)]
    const fn has(&self, _: Mutant) -> bool {
        false
    }

    /// The newest config, when this node may act as one of its members.
    fn acting(&self) -> Option<Arc<Config>> {
        let latest = self.configs.latest()?;
        let may = self.is_serving() || self.has(Mutant::VoteBeforeStartCheck);
        (may && latest.is_current(self.node)).then(|| Arc::clone(latest))
    }

    fn jitter(&mut self, now: Now, low: u64, high: u64) -> Mono {
        now.mono.plus(self.rng.between(low, high))
    }
}

fn put_number(key: StateKey, number: u64) -> Write {
    Write::StatePut {
        key,
        value: Bytes::copy_from_slice(&number.to_be_bytes()),
    }
}

/// How long a message is waited for before it is sent again, in microseconds.
const RESEND: u64 = 250 * MS;

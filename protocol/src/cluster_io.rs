//! Inputs and outputs of a [`crate::cluster::Cluster`], and what it finds on disk when it starts.
//!
//! How a shell uses the machine:
//!
//! ```text
//! let mut cluster = Cluster::new(Persisted::read(node, member, state)?, settings, now);
//! if --bootstrap   cluster.handle(now, ClusterInput::Bootstrap { … })
//! if --join        dial the addresses; cluster.handle(now, ClusterInput::Contacts(ids)) as often as they change
//! loop {
//!     while let Some(output) = cluster.next_output() { do it }
//!     wait for the next input, at the latest until cluster.next_deadline(): then ClusterInput::Tick
//! }
//! ```
//!
//! The shell owes the machine:
//! - [`ClusterOutput::Commit`]: batches are committed in order, each answered by one
//!   [`ClusterInput::Committed`] after it is on disk.
//! - [`ClusterOutput::Apply`]: compute the ring, hand it to all shards, connect to all members; when all
//!   shards have said `Drained` for its ring version, [`ClusterInput::Drained`]. Applied configs come in
//!   order of their versions, none is skipped; after a start the one that was applied last comes first.
//! - [`ClusterOutput::FindLeftovers`]: one answer each. Shards' `Covered` of a joint ring version, when all have
//!   said it, as [`ClusterInput::Covered`]; their progress, added up, as [`ClusterInput::Progress`].
//! - [`ClusterOutput::Dial`]: one answer each.
//! - A shard's `NewerConfig` is handed in as [`ClusterInput::NewerConfig`]; the cluster part of peer
//!   messages as [`ClusterInput::Peer`], from whatever node authenticated itself, member or not.
//!
//! A node with a config needs neither `Bootstrap` nor `Contacts`.

use std::sync::Arc;

use bytes::Bytes;
use torc_ring::config::Secret;
use torc_ring::{ClusterId, Config, ConfigVersion, Member, NodeId, RingVersion};

use crate::agree::{Acceptor, AcceptorError};
use crate::cluster_admin::{AdminError, AdminId, AdminReply, AdminRequest, Progress};
use crate::cluster_message::{ClusterMessage, JoinRefusal};
use crate::hlc::Hlc;
use crate::message::PeerMessage;
use crate::store::{Batch, CommitId, Leftover, StateKey, StoreError};
use crate::wire::{self, WireError};

/// Greatest number of ranges in one [`ClusterInput::Leftovers`]; after that many the machine asks again.
pub const LEFTOVERS_MAX: usize = 1_024;
/// Index of the cluster machine among [`StateKey::HlcBound`]s.
pub const CLUSTER_BOUND: u8 = 255;
/// Shard index by which the cluster machine's clock mints; shards of a node have lower ones.
pub const CLUSTER_CLOCK_SHARD: u8 = 63;

/// What does not change while a node runs.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// Seed of jitter and of identifiers; drawn by the shell at each start.
    pub rng_seed: u64,
    /// `max_clock_drift`, in microseconds.
    pub drift_max: u64,
    /// From which drift on a warning is due, in microseconds.
    pub drift_warn: u64,
    /// The member that this node joins in place of, by name or id: one that is dead.
    pub replaces: Option<String>,
    /// Records that this node had stored may be gone, as its storage has found out. Stays so in each life until
    /// [`ClusterOutput::Recovered`].
    pub lost: bool,
    /// A deliberate bug.
    #[cfg(feature = "mutants")]
    pub mutant: Option<crate::mutant::Mutant>,
}

impl ClusterSettings {
    /// The documented defaults: 60 s and 1 s.
    #[must_use]
    pub fn new(rng_seed: u64) -> Self {
        use crate::time::SECOND;
        Self {
            rng_seed,
            drift_max: 60 * SECOND,
            drift_warn: SECOND,
            replaces: None,
            lost: false,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }
}

/// What a node knows when it starts.
#[derive(Clone, Debug)]
pub struct Persisted {
    /// This node's id, which lives in its data directory.
    pub node: NodeId,
    /// How it presents itself when it joins.
    pub member: Member,
    /// Decided configs in order of their versions, without gaps.
    pub decided: Vec<Arc<Config>>,
    /// The version applied last; 0 for none.
    pub applied: ConfigVersion,
    /// Acceptor state per config version.
    pub acceptors: Vec<(ConfigVersion, Acceptor)>,
    /// The durable bound of the cluster machine's own clock ([`StateKey::HlcBound`] of
    /// [`CLUSTER_BOUND`]), not of the shards': peers remember exactly this one.
    pub own_bound: Hlc,
    /// The clock bounds that this node remembers of its peers.
    pub peer_bounds: Vec<(NodeId, Hlc)>,
}

/// Why the state on disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PersistedError {
    /// A number that is not 8 bytes long.
    #[error(
        "stored node state {key:?} has {len} bytes instead of 8: the data directory is damaged or of a newer version"
    )]
    Number {
        /// Which.
        key: StateKey,
        /// Bytes that there are.
        len: usize,
    },
    /// A decided config that cannot be read.
    #[error("stored config {version:?} cannot be read: {source}")]
    Config {
        /// Its version.
        version: ConfigVersion,
        /// Why.
        source: WireError,
    },
    /// A version is missing among the decided ones, or stands under another's key.
    #[error("stored configs have a gap or are mixed up at {version:?}")]
    Gap {
        /// Where.
        version: ConfigVersion,
    },
    /// Acceptor state that cannot be read.
    #[error("stored votes for config {version:?} cannot be read: {source}")]
    Acceptor {
        /// Its version.
        version: ConfigVersion,
        /// Why.
        source: AcceptorError,
    },
}

impl Persisted {
    /// A node that has just been made.
    #[must_use]
    pub fn fresh(member: Member) -> Self {
        Self {
            node: member.id,
            member,
            decided: Vec::new(),
            applied: ConfigVersion(0),
            acceptors: Vec::new(),
            own_bound: Hlc(0),
            peer_bounds: Vec::new(),
        }
    }

    /// Takes what belongs to the cluster machine out of all node state, in any order; other keys are
    /// passed over.
    ///
    /// # Errors
    /// When something cannot be read: the node must then not start, because it may have voted.
    pub fn read(
        member: Member,
        state: impl IntoIterator<Item = (StateKey, Bytes)>,
    ) -> Result<Self, PersistedError> {
        let mut found = Self::fresh(member);
        for (key, value) in state {
            match key {
                StateKey::HlcBound(CLUSTER_BOUND) => found.own_bound = Hlc(number(key, &value)?),
                StateKey::Identity
                | StateKey::HlcBound(_)
                | StateKey::Change(..)
                | StateKey::Tree(..)
                | StateKey::Floor(..) => {}
                StateKey::PeerBound(peer) => {
                    found.peer_bounds.push((peer, Hlc(number(key, &value)?)));
                }
                StateKey::Applied => found.applied = ConfigVersion(number(key, &value)?),
                StateKey::Acceptor(version) => {
                    let acceptor = Acceptor::decode(&value)
                        .map_err(|source| PersistedError::Acceptor { version, source })?;
                    found.acceptors.push((version, acceptor));
                }
                StateKey::Decided(version) => {
                    let config = wire::decode_config(&value)
                        .map_err(|source| PersistedError::Config { version, source })?;
                    if config.version != version {
                        return Err(PersistedError::Gap { version });
                    }
                    found.decided.push(Arc::new(config));
                }
            }
        }
        found.decided.sort_by_key(|config| config.version);
        for pair in found.decided.windows(2) {
            if pair[1].version.0 != pair[0].version.0 + 1 {
                return Err(PersistedError::Gap {
                    version: pair[1].version,
                });
            }
        }
        let applied_is_kept = found.applied.0 == 0
            || found
                .decided
                .iter()
                .any(|config| config.version == found.applied);
        if !applied_is_kept {
            return Err(PersistedError::Gap {
                version: found.applied,
            });
        }
        Ok(found)
    }
}

fn number(key: StateKey, value: &[u8]) -> Result<u64, PersistedError> {
    let bytes: [u8; 8] = value.try_into().map_err(|_| PersistedError::Number {
        key,
        len: value.len(),
    })?;
    Ok(u64::from_be_bytes(bytes))
}

/// What happens to a cluster machine.
#[derive(Debug)]
pub enum ClusterInput {
    /// Make a new cluster with this node as its only member. Answered by [`ClusterOutput::Serve`] or
    /// [`ClusterOutput::BootstrapRefused`].
    Bootstrap {
        /// Drawn at random.
        cluster: ClusterId,
        /// Seed of the token hash, drawn at random.
        seed: u64,
        /// Key of message authentication codes, drawn at random by a secure generator.
        secret: Secret,
        /// Partitions as a power of two.
        partition_bits: u8,
    },
    /// Nodes that were named by `--join` and that a connection exists to; replaces those named before. A
    /// node without a config joins through them; one with a config checks that they are of its cluster.
    Contacts(Vec<NodeId>),
    /// A peer's message. The sender is authenticated.
    Peer {
        /// Who.
        from: NodeId,
        /// The sender's clock.
        hlc: Hlc,
        /// What it says.
        message: ClusterMessage,
    },
    /// A shard heard from that peer that there is this config version.
    NewerConfig(NodeId, ConfigVersion),
    /// The outcome of [`ClusterOutput::Commit`].
    Committed(CommitId, Result<(), StoreError>),
    /// All shards have drained everything below this ring version.
    Drained(RingVersion),
    /// The answer to [`ClusterOutput::FindLeftovers`]: in order, at most [`LEFTOVERS_MAX`].
    Leftovers(ConfigVersion, Result<Vec<Leftover>, StoreError>),
    /// All shards have everything that this node gains under that joint ring version, durably. Counts for
    /// that ring version alone; comes again after a restart.
    Covered(RingVersion),
    /// How far this node's shards are together, now and then.
    Progress {
        /// The joint ring version.
        ring: RingVersion,
        /// How far; `covered` is not looked at.
        progress: Progress,
    },
    /// An operator asks. Answered by one [`ClusterOutput::AdminReply`].
    Admin(AdminId, AdminRequest),
    /// The answer to [`ClusterOutput::Dial`].
    Dialled(NodeId, bool),
    /// Propose this as the next config. Nothing happens when it cannot follow the newest one, or while
    /// this node may not propose or is proposing; another one may be decided in its place.
    Propose(Arc<Config>),
    /// Time has passed: [`crate::cluster::Cluster::next_deadline`] was reached.
    Tick,
}

/// What a cluster machine wants done.
#[derive(Debug)]
pub enum ClusterOutput {
    /// Send to a peer (never to this node itself). May be lost.
    Send(NodeId, PeerMessage),
    /// Write to disk; answered by [`ClusterInput::Committed`].
    Commit(CommitId, Batch),
    /// This config is valid now: see the module's text.
    Apply(Arc<Config>),
    /// Which records on disk belong to a bucket or partition that this node does not own by this config
    /// ([`crate::shard_io::View::keeps`])? Answered by [`ClusterInput::Leftovers`] with the first
    /// [`LEFTOVERS_MAX`] ranges. Comes when the shards have drained, before the config counts as applied.
    FindLeftovers(Arc<Config>),
    /// The answer to an operator.
    AdminReply(AdminId, Result<AdminReply, AdminError>),
    /// Open a **new** connection to `peer` of this member-to-be, check that its certificate names `id`, and
    /// answer by [`ClusterInput::Dialled`] within a few seconds. (A connection that came in from it proves
    /// nothing about the address that it gives.)
    Dial(Member),
    /// The start check has passed and a config is applied, one that says so when this node may have lost
    /// records: serve. Once per start.
    Serve,
    /// What may have been lost is here again, durably, and all know it: [`ClusterSettings::lost`] is over.
    Recovered,
    /// This node's clock is (not) within the allowed drift. Trusted until said otherwise.
    ClockTrusted(bool),
    /// No node will take this one in; it should stop and say why. For [`JoinRefusal::Unreachable`] it goes
    /// on trying.
    JoinRefused(JoinRefusal),
    /// There is no new cluster here.
    BootstrapRefused(BootstrapRefusal),
    /// This node has forgotten what it once had on disk: it must stop at once. Nothing follows.
    Amnesia {
        /// Who remembers more.
        peer: NodeId,
        /// The clock bound that the peer remembers.
        remembered: Hlc,
        /// The clock bound on this node's disk.
        own: Hlc,
    },
    /// This node is no member any more, and a majority of those that are have stored that: it stops.
    Removed {
        /// By this config version.
        version: ConfigVersion,
        /// It left of its own will, and its data is elsewhere; else it was taken out as dead, and what it has
        /// on disk is of no use to anybody.
        graceful: bool,
    },
    /// For metrics and logs.
    Event(ClusterEvent),
}

/// Why a bootstrap is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapRefusal {
    /// The data directory has been used.
    #[error("this data directory belongs to cluster {cluster} already (config version {}): start without --bootstrap, or name an empty --data directory", .version.0)]
    Used {
        /// Its cluster.
        cluster: ClusterId,
        /// The newest config version in it.
        version: ConfigVersion,
    },
    /// It is joining another cluster, or being bootstrapped already.
    #[error("this node is already joining or making a cluster: give either --bootstrap or --join")]
    Busy,
    /// The first config would not be valid.
    #[error("the first configuration is not valid: check --name, --weight and partition_bits")]
    Invalid,
    /// It could not be stored.
    #[error("the first configuration could not be stored: {0}")]
    Store(StoreError),
}

/// What the shell counts and logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterEvent {
    /// A config is applied, durably.
    Applied {
        /// Its version.
        version: ConfigVersion,
        /// Its ring version.
        ring: RingVersion,
        /// Its current members.
        members: usize,
    },
    /// A pong: for the peer's row in metrics.
    PeerClock {
        /// Who.
        peer: NodeId,
        /// Microseconds by which its clock is ahead of this node's (negative: behind).
        offset_us: i64,
        /// Microseconds that the round trip took.
        round_trip_us: u64,
    },
    /// This node's clock is further from the median of a majority's clocks than the warning bound, or is
    /// near again.
    ClockDrift {
        /// Microseconds ahead of the median (negative: behind).
        drift_us: i64,
        /// Whether it is above the warning bound.
        warn: bool,
    },
    /// The start check goes on: these members have not answered yet.
    StartWaits {
        /// Members that confirmed.
        confirmed: usize,
        /// Members asked.
        members: usize,
    },
    /// A joiner was refused by this member.
    JoinerRefused {
        /// Who.
        joiner: NodeId,
        /// Why.
        refusal: JoinRefusal,
    },
    /// A change of the members begins or ends at this node.
    Change {
        /// Nodes that want to join.
        joiners: Vec<NodeId>,
        /// What happened.
        outcome: ChangeOutcome,
    },
    /// Everybody is complete: this node proposes the switch.
    Switching {
        /// The joint ring version.
        ring: RingVersion,
    },
    /// Too few owners of the target ring have been heard of for too long: this node proposes to take the
    /// change back.
    TargetLost {
        /// The joint ring version.
        ring: RingVersion,
    },
    /// All know now that this node may have lost records: it gets them back under this ring version.
    Recovering {
        /// The ring version.
        ring: RingVersion,
    },
    /// A node of another cluster talks to this one.
    Foreign {
        /// Who.
        peer: NodeId,
        /// Its cluster.
        cluster: ClusterId,
    },
    /// A peer sent a config that cannot follow this node's, or cannot be read.
    BadConfig {
        /// Who.
        peer: NodeId,
    },
    /// This node lacks config versions that no peer keeps any more: it can only come back as a new node.
    FarBehind {
        /// Who said so.
        peer: NodeId,
        /// The newest version here.
        have: ConfigVersion,
        /// The oldest version there.
        oldest: ConfigVersion,
    },
    /// Something could not be stored; it will be tried again.
    StoreFailed {
        /// Why.
        error: StoreError,
    },
}

/// How a change of the members is getting on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeOutcome {
    /// Members are asked whether they reach the joiners.
    Started,
    /// Enough of them do; the joint config is proposed.
    Proposed,
    /// It is decided.
    Committed,
    /// Another change was decided in its place, or members did not answer; the joiners try again.
    Postponed,
    /// No majority answers: the change may still come through, by anybody's hand.
    Unknown,
}

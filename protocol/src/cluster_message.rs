//! What the cluster machines of two nodes say to each other.
//!
//! Configurations travel as [`Blob`]s of [`crate::wire::encode_config`], so that a node that only passes
//! one on need not take it apart; whoever takes one in decodes and validates it.

use torc_ring::{ClusterId, ConfigVersion, Member, NodeId, RingVersion};

use crate::agree::Ballot;
use crate::cluster_admin::Progress;
use crate::hlc::Hlc;
use crate::wire::Blob;

/// Version of this conversation; a joiner that speaks another one is refused.
pub const CLUSTER_PROTOCOL: u32 = 1;
/// Greatest number of joiners of one change.
pub const JOINERS_MAX: usize = 64;
/// Greatest number of configurations in one [`ClusterMessage::Configs`].
pub const CONFIGS_MAX: usize = 16;

/// Between cluster machines.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::BorrowDecode)]
#[bincode(decode_context = "crate::wire::Frame")]
pub enum ClusterMessage {
    /// Are you there, and what do you know?
    Ping {
        /// Repeated by the pong.
        seq: u64,
        /// Where the sender stands.
        standing: Standing,
    },
    /// Answer to a ping.
    Pong {
        /// The ping's.
        seq: u64,
        /// The sender's wall clock, in microseconds since 1970.
        wall: u64,
        /// Where the sender stands.
        standing: Standing,
    },
    /// A node that has started asks whether it has forgotten something. Answered by everybody, at any time.
    StartCheck {
        /// The clock bound that it found on its disk.
        bound: Hlc,
        /// Its cluster.
        #[bincode(with_serde)]
        cluster: ClusterId,
    },
    /// Answer to a start check.
    StartChecked {
        /// The asker's bound, repeated.
        bound: Hlc,
        /// The highest clock bound that the sender remembers of the asker; 0 for none.
        remembered: Hlc,
    },
    /// The sender belongs to another cluster and talks about nothing else with the receiver.
    Foreign {
        /// The sender's cluster.
        #[bincode(with_serde)]
        cluster: ClusterId,
    },
    /// Asks for decided configurations. Answered to everybody, members or not.
    Fetch {
        /// Those after this version, in order; `None` for the newest alone.
        #[bincode(with_serde)]
        after: Option<ConfigVersion>,
    },
    /// Decided configurations.
    Configs {
        /// The oldest version that the sender still has; 0 when it has none.
        #[bincode(with_serde)]
        oldest: ConfigVersion,
        /// The newest version that the sender has; 0 when it has none.
        #[bincode(with_serde)]
        latest: ConfigVersion,
        /// At most [`CONFIGS_MAX`], in order.
        configs: Vec<Blob>,
    },
    /// A node without a configuration wants to become a member.
    Join {
        /// [`CLUSTER_PROTOCOL`] of the joiner.
        protocol: u32,
        /// The configuration that it has fetched.
        #[bincode(with_serde)]
        version: ConfigVersion,
        /// That configuration's cluster.
        #[bincode(with_serde)]
        cluster: ClusterId,
        /// The joiner.
        #[bincode(with_serde)]
        member: Member,
        /// The member that it comes in place of, by name or id.
        replaces: Option<String>,
    },
    /// Not now: fetch the present configuration and ask again after a while.
    JoinBusy,
    /// No.
    JoinRefused {
        /// Why.
        refusal: JoinRefusal,
    },
    /// Before anything is proposed: can you reach these nodes?
    Probe {
        /// Names the change for its proposer.
        change: u64,
        /// The joiners.
        #[bincode(with_serde)]
        joiners: Vec<Member>,
    },
    /// Answer to a probe; comes again when more joiners were reached.
    Probed {
        /// The probe's.
        change: u64,
        /// Joiners that were reached at the address that they gave.
        #[bincode(with_serde)]
        reached: Vec<NodeId>,
    },
    /// Paxos, first phase.
    Prepare {
        /// The config version to be decided.
        #[bincode(with_serde)]
        version: ConfigVersion,
        /// The proposer's ballot.
        ballot: Ballot,
    },
    /// Answer to [`ClusterMessage::Prepare`].
    Promise {
        /// The config version.
        #[bincode(with_serde)]
        version: ConfigVersion,
        /// The ballot promised.
        ballot: Ballot,
        /// What was accepted before, and in which ballot.
        accepted: Option<(Ballot, Blob)>,
    },
    /// Paxos, second phase.
    Accept {
        /// The proposer's ballot.
        ballot: Ballot,
        /// The configuration, which holds its version.
        config: Blob,
    },
    /// Answer to [`ClusterMessage::Accept`].
    Accepted {
        /// The config version.
        #[bincode(with_serde)]
        version: ConfigVersion,
        /// The ballot in which it was accepted.
        ballot: Ballot,
    },
    /// Answer to either phase: a higher ballot was promised.
    Rejected {
        /// The config version.
        #[bincode(with_serde)]
        version: ConfigVersion,
        /// The ballot refused.
        ballot: Ballot,
        /// The ballot promised.
        promised: Ballot,
    },
    /// This configuration is decided.
    Learn {
        /// The configuration.
        config: Blob,
    },
    /// The sender has stored all versions up to this one as decided.
    Learned {
        /// The version.
        #[bincode(with_serde)]
        version: ConfigVersion,
    },
    /// How far are you with this joint phase? Answered by nodes that have applied it.
    Ask {
        /// The joint ring version.
        #[bincode(with_serde)]
        ring: RingVersion,
        /// The sender drives it: nobody else needs to.
        drives: bool,
    },
    /// The sender has applied this joint ring version, and is so far with it. This is the word that a switch
    /// rests on.
    Progress {
        /// The joint ring version.
        #[bincode(with_serde)]
        ring: RingVersion,
        /// How far.
        progress: Progress,
    },
    /// The sender may have lost records: the next config shall say so, under a ring version above this one.
    Lost {
        /// The newest ring version on its disk when its life began.
        #[bincode(with_serde)]
        above: RingVersion,
    },
    /// The sender, which was said to recover, has covered the others under this ring version.
    Recovered {
        /// The ring version.
        #[bincode(with_serde)]
        ring: RingVersion,
    },
}

/// What a node tells of itself with every ping and pong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Standing {
    /// Its cluster, if it knows one.
    #[bincode(with_serde)]
    pub cluster: Option<ClusterId>,
    /// Newest config version that it has stored as decided; 0 for none.
    #[bincode(with_serde)]
    pub decided: ConfigVersion,
    /// Config version that it has applied, durably; 0 for none.
    #[bincode(with_serde)]
    pub applied: ConfigVersion,
    /// Its durable clock bound.
    pub bound: Hlc,
}

/// Why a node cannot become a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, bincode::Encode, bincode::Decode)]
pub enum JoinRefusal {
    /// The joiner is older or newer than the cluster.
    #[error(
        "the cluster speaks cluster protocol {cluster}, this node {joiner}: install the same version of torc"
    )]
    Protocol {
        /// The cluster's.
        cluster: u32,
        /// The joiner's.
        joiner: u32,
    },
    /// The joiner's configuration is another cluster's.
    #[error(
        "the node asked belongs to cluster {theirs}, this node to cluster {ours}: check the addresses given to --join"
    )]
    OtherCluster {
        /// The cluster that was asked.
        #[bincode(with_serde)]
        theirs: ClusterId,
        /// The cluster that the joiner knows.
        #[bincode(with_serde)]
        ours: ClusterId,
    },
    /// The name is taken.
    #[error(
        "a member is called `{name}` already: give this node another --name (a node that lost its data is a new node)"
    )]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The peer address is taken.
    #[error("a member has the peer address {address} already: give this node another --peer")]
    AddressTaken {
        /// The address.
        address: String,
    },
    /// The joiner's name, zone, weight or addresses are not valid.
    #[error(
        "this node's name, zone, weight or addresses are not valid: check --name, --zone, --weight, --peer and --http"
    )]
    BadMember,
    /// The cluster is full.
    #[error("the cluster has {count} members, which is the limit")]
    TooManyMembers {
        /// Members that it has.
        count: u32,
    },
    /// The member that the joiner comes in place of is not there.
    #[error("no member is called `{name}`: check --replace")]
    NoSuchMember {
        /// The name given.
        name: String,
    },
    /// The member that the joiner comes in place of is alive.
    #[error(
        "member `{name}` was heard of a moment ago, and only a dead one is replaced: stop it first, or join without --replace and let it leave"
    )]
    Alive {
        /// The name given.
        name: String,
    },
    /// An operator took back the change that was to take the joiner in.
    #[error(
        "an operator aborted the change that was to take this node in: start it again when it shall join"
    )]
    Aborted,
    /// Too few members can reach the joiner at the address that it gives.
    #[error(
        "only {reached} of {members} members reach this node at {address}: check --peer, and that UDP is let through"
    )]
    Unreachable {
        /// The address.
        address: String,
        /// Members that reached it.
        reached: u32,
        /// Members.
        members: u32,
    },
}

impl JoinRefusal {
    /// Whether asking again cannot help.
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Unreachable { .. } | Self::Alive { .. })
    }
}

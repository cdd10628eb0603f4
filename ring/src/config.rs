//! The cluster configuration: members, buckets, current and target ring, under one version number.
//!
//! Invariant: a `Config` that passed [`Config::validate`] yields a ring on every node, and the same one.
//! How nodes agree on it stands in `torc-protocol`; this crate only says what it is.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::change::LastChange;
use crate::owner_table::{OWNERS_MAX, OwnerTable};
use crate::token::PARTITION_BITS_MAX;

/// Identity of a node: drawn at random when its data directory is made, and never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::str::FromStr for NodeId {
    type Err = std::num::ParseIntError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(s, 16).map(Self)
    }
}

/// Identity of a cluster, drawn at bootstrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub u64);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Identity of a bucket; never reused, so that a recreated bucket never sees old records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BucketId(pub u32);

/// Version of the configuration: 1 at bootstrap, then up by one with each agreed change.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ConfigVersion(pub u64);

/// The [`ConfigVersion`] that last touched the ring. Nodes never serve each other across ring versions.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct RingVersion(pub u64);

/// A member of the ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Identity.
    pub id: NodeId,
    /// Name for people, unique in the cluster: 1–64 bytes of `a-z A-Z 0-9 _ - .`.
    pub name: String,
    /// Failure domain; replicas of a key are put into distinct zones as long as there are any left.
    pub zone: String,
    /// Relative share of the ring, 1..=10,000; 100 is usual.
    pub weight: u32,
    /// Address for peers (QUIC), `host:port`.
    pub peer: String,
    /// Address of the data listener (HTTP), `host:port`.
    pub http: String,
}

/// Weight of a member that says nothing else.
pub const WEIGHT_DEFAULT: u32 = 100;
/// Greatest weight of a member.
pub const WEIGHT_MAX: u32 = 10_000;
/// Greatest number of members.
pub const MEMBERS_MAX: usize = 1_000;
/// Greatest number of replicas of a key.
pub const REPLICAS_MAX: u8 = 16;
/// Greatest number of buckets.
pub const BUCKETS_MAX: usize = 1_000;

/// How many replicas must answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quorum {
    /// One.
    One,
    /// A majority of the owners.
    Quorum,
    /// All owners.
    All,
    /// This many, 1..=n.
    Count(u8),
}

impl Quorum {
    /// The number of replicas that this asks for where a key has `owners` of them, never more than `owners`.
    ///
    /// A cluster with fewer members than n has fewer owners: a `Count` above them is capped, so that one
    /// node alone is a working store.
    #[must_use]
    pub fn required(self, owners: usize) -> usize {
        match self {
            Self::One => 1.min(owners),
            Self::Quorum => owners / 2 + 1,
            Self::All => owners,
            Self::Count(count) => usize::from(count).min(owners),
        }
    }

    /// Whether this makes sense for a bucket of `n` replicas.
    #[must_use]
    pub fn fits(self, n: u8) -> bool {
        match self {
            Self::Count(count) => count >= 1 && count <= n,
            Self::One | Self::Quorum | Self::All => true,
        }
    }
}

impl fmt::Display for Quorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One => f.write_str("one"),
            Self::Quorum => f.write_str("quorum"),
            Self::All => f.write_str("all"),
            Self::Count(count) => write!(f, "{count}"),
        }
    }
}

impl std::str::FromStr for Quorum {
    type Err = ConfigError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "one" => Ok(Self::One),
            "quorum" => Ok(Self::Quorum),
            "all" => Ok(Self::All),
            _ => match s.parse::<u8>() {
                Ok(count) if count >= 1 && !s.starts_with('+') => Ok(Self::Count(count)),
                _ => Err(ConfigError::BadQuorum {
                    given: s.chars().take(32).collect(),
                }),
            },
        }
    }
}

/// How concurrent writes of one key are resolved; cannot change once the bucket has keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConflictMode {
    /// The greatest (HLC, node id) wins.
    #[default]
    Lww,
    /// Concurrent values are all kept and handed to the client.
    Siblings,
    /// One consensus register per key.
    Linearizable,
}

/// When a read that saw replicas differ writes the merged value back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadRepair {
    /// Before it answers: later reads never go back in time.
    #[default]
    Blocking,
    /// After it answered.
    Async,
    /// Never.
    Off,
}

/// A bucket and its defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Identity, never reused.
    pub id: BucketId,
    /// 1–64 bytes of `a-z 0-9 _ -`.
    pub name: String,
    /// Replicas of each key, 1..=16.
    pub n: u8,
    /// Replicas that a read waits for.
    pub r: Quorum,
    /// Replicas that a write waits for.
    pub w: Quorum,
    /// Conflict resolution.
    pub conflict: ConflictMode,
    /// Time to live of values that name none, in milliseconds.
    pub ttl_ms: Option<u64>,
    /// Read repair.
    pub read_repair: ReadRepair,
    /// Whether the next nodes on the ring may stand in for dead owners and count towards `w`.
    pub sloppy: bool,
}

/// Name of the bucket that exists from the start.
pub const DEFAULT_BUCKET: &str = "default";

impl Bucket {
    /// A bucket with the default settings: n = 3, r = w = quorum, `lww`, blocking read repair.
    #[must_use]
    pub fn new(id: BucketId, name: &str) -> Self {
        Self {
            id,
            name: name.to_owned(),
            n: 3,
            r: Quorum::Quorum,
            w: Quorum::Quorum,
            conflict: ConflictMode::Lww,
            ttl_ms: None,
            read_repair: ReadRepair::Blocking,
            sloppy: false,
        }
    }
}

/// Whether `name` is a valid bucket name: 1–64 bytes of `a-z 0-9 _ -`.
#[must_use]
pub fn is_bucket_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
}

/// Whether `name` is a valid node name: 1–64 bytes of `a-z A-Z 0-9 _ - .`.
#[must_use]
pub fn is_node_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// Key of the cluster's message authentication codes (causal contexts), drawn at bootstrap. Never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The cluster configuration at one version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// Its version.
    pub version: ConfigVersion,
    /// The version that last touched the ring.
    pub ring_version: RingVersion,
    /// Seed of the token hash, drawn at bootstrap.
    pub seed: u64,
    /// Key of message authentication codes, drawn at bootstrap.
    pub secret: Secret,
    /// Number of partitions as a power of two, fixed at bootstrap.
    pub partition_bits: u8,
    /// Members of the ring that serves, ordered by id.
    pub current: Vec<Member>,
    /// Members of the ring that is being moved to, while a change is in its joint phase; ordered by id.
    pub target: Option<Vec<Member>>,
    /// Buckets that will have another n in the target ring, with that n; ordered by id.
    pub target_n: Vec<(BucketId, u8)>,
    /// Current members that are dead and not in the target: nobody waits for them. Ordered.
    pub abandoned: Vec<NodeId>,
    /// How the last change of the ring ended.
    pub last_change: Option<LastChange>,
    /// Buckets, ordered by name.
    pub buckets: Vec<Bucket>,
    /// Id of the next bucket to be made.
    pub next_bucket: BucketId,
    /// Owners in the current ring, ordered by n. Where a bucket's n has no table, its owners are computed
    /// from the members.
    pub tables: Vec<OwnerTable>,
    /// Owners in the target ring, ordered by n; only while a change is in its joint phase.
    pub target_tables: Vec<OwnerTable>,
    /// Members that may have lost records which they had stored, and have not got them back yet. Ordered.
    pub recovering: Vec<NodeId>,
}

/// Why a configuration, or a part of one, is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum ConfigError {
    #[error("the configuration has no members")]
    NoMembers,
    #[error("the configuration has {count} members; the limit is {MEMBERS_MAX}")]
    TooManyMembers { count: usize },
    #[error("members are not in order, or one of them stands there twice ({id})")]
    MembersOutOfOrder { id: NodeId },
    #[error("two members are called `{name}`; give each node its own --name")]
    DuplicateName { name: String },
    #[error("two members have the peer address {peer}; give each node its own --peer")]
    DuplicatePeer { peer: String },
    #[error("node name `{name}` is not 1-64 bytes of a-z A-Z 0-9 _ - .")]
    BadNodeName { name: String },
    #[error("weight {weight} is outside 1..={WEIGHT_MAX}")]
    BadWeight { weight: u32 },
    #[error("bucket name `{name}` is not 1-64 bytes of a-z 0-9 _ -")]
    BadBucketName { name: String },
    #[error("buckets are not in order, or one of them stands there twice (`{name}`)")]
    BucketsOutOfOrder { name: String },
    #[error("the configuration has {count} buckets; the limit is {BUCKETS_MAX}")]
    TooManyBuckets { count: usize },
    #[error("n = {n} is outside 1..={REPLICAS_MAX}")]
    BadReplicas { n: u8 },
    #[error("`{given}` is no number of replicas: give one, quorum, all, or a number from 1 to n")]
    BadQuorum { given: String },
    #[error("partition_bits = {bits} is outside 0..={PARTITION_BITS_MAX}")]
    BadPartitionBits { bits: u8 },
    #[error("the configuration says what a change of the ring does, but is in no joint phase")]
    NotJoint,
    #[error(
        "tables of owners are not in order of n, or together name more than {OWNERS_MAX} owners"
    )]
    TablesOutOfOrder,
    #[error("there is a table of owners for n = {n}, but no bucket with that n")]
    TableWithoutBucket { n: u8 },
    #[error(
        "the table of owners for n = {n} does not name as many distinct members as it should for each partition"
    )]
    BadTable { n: u8 },
    #[error("the nodes that recover are not in order, or one of them is no member")]
    BadRecovering,
    #[error("the ring version {ring} is above the config version {version}")]
    RingAheadOfConfig { ring: u64, version: u64 },
}

impl Config {
    /// The first configuration of a cluster: `member` alone, and the bucket `default`.
    #[must_use]
    pub fn bootstrap(
        cluster: ClusterId,
        seeds: (u64, Secret),
        partition_bits: u8,
        member: Member,
    ) -> Self {
        let (seed, secret) = seeds;
        Self {
            cluster,
            version: ConfigVersion(1),
            ring_version: RingVersion(1),
            seed,
            secret,
            partition_bits,
            current: vec![member],
            target: None,
            target_n: Vec::new(),
            abandoned: Vec::new(),
            last_change: None,
            buckets: vec![Bucket::new(BucketId(1), DEFAULT_BUCKET)],
            next_bucket: BucketId(2),
            tables: Vec::new(),
            target_tables: Vec::new(),
            recovering: Vec::new(),
        }
    }

    /// The bucket of that name.
    #[must_use]
    pub fn bucket(&self, name: &str) -> Option<&Bucket> {
        let at = self
            .buckets
            .binary_search_by(|b| b.name.as_str().cmp(name))
            .ok()?;
        self.buckets.get(at)
    }

    /// The bucket with that id.
    #[must_use]
    pub fn bucket_by_id(&self, id: BucketId) -> Option<&Bucket> {
        self.buckets.iter().find(|b| b.id == id)
    }

    /// The member with that id, in the current ring or in the target.
    #[must_use]
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.all_members().find(|m| m.id == id)
    }

    /// Whether that node is a member of the current ring.
    #[must_use]
    pub fn is_current(&self, id: NodeId) -> bool {
        self.current.binary_search_by_key(&id, |m| m.id).is_ok()
    }

    /// Whether that member may lack records which it had stored.
    #[must_use]
    pub fn recovers(&self, id: NodeId) -> bool {
        self.recovering.binary_search(&id).is_ok()
    }

    /// Members of the current ring, then those of the target that are not in it.
    pub fn all_members(&self) -> impl Iterator<Item = &Member> {
        let joining = self
            .target
            .iter()
            .flatten()
            .filter(|m| !self.is_current(m.id));
        self.current.iter().chain(joining)
    }

    /// The next version of this configuration with `current` as its members (put in order here), which
    /// raises the ring version too. For tests and tables: a cluster changes its members by way of a joint
    /// configuration ([`crate::change`]). All owners are computed from the members.
    #[must_use]
    pub fn with_members(&self, mut current: Vec<Member>) -> Self {
        current.sort_by_key(|m| m.id);
        let version = ConfigVersion(self.version.0 + 1);
        Self {
            version,
            ring_version: RingVersion(version.0),
            current,
            target: None,
            target_n: Vec::new(),
            abandoned: Vec::new(),
            tables: Vec::new(),
            target_tables: Vec::new(),
            recovering: Vec::new(),
            ..self.clone()
        }
    }

    /// Checks what every node relies on.
    ///
    /// # Errors
    /// Says which rule is broken.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.partition_bits > PARTITION_BITS_MAX {
            return Err(ConfigError::BadPartitionBits {
                bits: self.partition_bits,
            });
        }
        if self.ring_version.0 > self.version.0 {
            return Err(ConfigError::RingAheadOfConfig {
                ring: self.ring_version.0,
                version: self.version.0,
            });
        }
        validate_members(&self.current)?;
        if let Some(target) = &self.target {
            validate_members(target)?;
        }
        self.validate_joint()?;
        let in_order = self.recovering.windows(2).all(|pair| pair[0] < pair[1]);
        if !in_order || self.recovering.iter().any(|&id| self.member(id).is_none()) {
            return Err(ConfigError::BadRecovering);
        }
        if self.buckets.len() > BUCKETS_MAX {
            return Err(ConfigError::TooManyBuckets {
                count: self.buckets.len(),
            });
        }
        for pair in self.buckets.windows(2) {
            if pair[0].name >= pair[1].name {
                return Err(ConfigError::BucketsOutOfOrder {
                    name: pair[1].name.clone(),
                });
            }
        }
        self.buckets.iter().try_for_each(validate_bucket)?;
        self.validate_tables()
    }

    fn validate_tables(&self) -> Result<(), ConfigError> {
        let bits = self.partition_bits;
        let current = |bucket: &Bucket| bucket.n;
        validate_tables(&self.tables, (&self.current, bits), |n| {
            self.buckets.iter().map(current).any(|used| used == n)
        })?;
        let target = self.target.as_deref().unwrap_or(&[]);
        validate_tables(&self.target_tables, (target, bits), |n| {
            let mut counts = self.buckets.iter().map(|b| self.target_replicas(b));
            counts.any(|used| used == n)
        })
    }

    /// What is only there while a change is in its joint phase.
    fn validate_joint(&self) -> Result<(), ConfigError> {
        let outside = self.target.is_none();
        let empty =
            self.target_n.is_empty() && self.abandoned.is_empty() && self.target_tables.is_empty();
        if outside && !empty {
            return Err(ConfigError::NotJoint);
        }
        let in_order = self.target_n.windows(2).all(|pair| pair[0].0 < pair[1].0)
            && self.abandoned.windows(2).all(|pair| pair[0] < pair[1]);
        if !in_order {
            return Err(ConfigError::NotJoint);
        }
        for &(_, n) in &self.target_n {
            if n == 0 || n > REPLICAS_MAX {
                return Err(ConfigError::BadReplicas { n });
            }
        }
        Ok(())
    }
}

fn validate_members(members: &[Member]) -> Result<(), ConfigError> {
    if members.is_empty() {
        return Err(ConfigError::NoMembers);
    }
    if members.len() > MEMBERS_MAX {
        return Err(ConfigError::TooManyMembers {
            count: members.len(),
        });
    }
    for pair in members.windows(2) {
        if pair[0].id >= pair[1].id {
            return Err(ConfigError::MembersOutOfOrder { id: pair[1].id });
        }
    }
    let mut names: Vec<&str> = members.iter().map(|m| m.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(ConfigError::DuplicateName {
            name: pair[0].to_owned(),
        });
    }
    let mut peers: Vec<&str> = members.iter().map(|m| m.peer.as_str()).collect();
    peers.sort_unstable();
    if let Some(pair) = peers.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(ConfigError::DuplicatePeer {
            peer: pair[0].to_owned(),
        });
    }
    for member in members {
        if !is_node_name(&member.name) {
            return Err(ConfigError::BadNodeName {
                name: member.name.clone(),
            });
        }
        if member.weight == 0 || member.weight > WEIGHT_MAX {
            return Err(ConfigError::BadWeight {
                weight: member.weight,
            });
        }
    }
    Ok(())
}

fn validate_tables(
    tables: &[OwnerTable],
    (members, bits): (&[Member], u8),
    is_used: impl Fn(u8) -> bool,
) -> Result<(), ConfigError> {
    let in_order = tables.windows(2).all(|pair| pair[0].n() < pair[1].n());
    let owners: usize = tables
        .iter()
        .map(|table| usize::from(table.n()) << bits)
        .sum();
    if !in_order || owners > OWNERS_MAX {
        return Err(ConfigError::TablesOutOfOrder);
    }
    for table in tables {
        let n = table.n();
        if !is_used(n) {
            return Err(ConfigError::TableWithoutBucket { n });
        }
        if table.unpack(members.len(), bits).is_none() {
            return Err(ConfigError::BadTable { n });
        }
    }
    Ok(())
}

fn validate_bucket(bucket: &Bucket) -> Result<(), ConfigError> {
    if !is_bucket_name(&bucket.name) {
        return Err(ConfigError::BadBucketName {
            name: bucket.name.clone(),
        });
    }
    if bucket.n == 0 || bucket.n > REPLICAS_MAX {
        return Err(ConfigError::BadReplicas { n: bucket.n });
    }
    for quorum in [bucket.r, bucket.w] {
        if !quorum.fits(bucket.n) {
            return Err(ConfigError::BadQuorum {
                given: quorum.to_string(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64) -> Member {
        Member {
            id: NodeId(id),
            name: format!("node-{id}"),
            zone: "a".into(),
            weight: WEIGHT_DEFAULT,
            peer: format!("127.0.0.1:{}", 7000 + id),
            http: format!("127.0.0.1:{}", 8000 + id),
        }
    }

    #[test]
    fn a_bootstrapped_config_is_valid_and_serves_the_default_bucket() {
        let config = Config::bootstrap(ClusterId(1), (7, Secret([0; 32])), 10, member(1));
        config.validate().expect("valid");
        assert_eq!(
            config.bucket(DEFAULT_BUCKET).map(|b| b.id),
            Some(BucketId(1))
        );
    }

    #[test]
    fn what_would_make_nodes_disagree_is_refused() {
        let config = Config::bootstrap(ClusterId(1), (7, Secret([0; 32])), 10, member(1));
        let mut twice = config.with_members(vec![member(2), member(1)]);
        twice.validate().expect("put in order");
        twice.current[1].name = "node-1".into();
        assert_eq!(
            twice.validate(),
            Err(ConfigError::DuplicateName {
                name: "node-1".into()
            })
        );
        let mut bits = config.clone();
        bits.partition_bits = 17;
        assert!(bits.validate().is_err());
        let mut none = config;
        none.current.clear();
        assert_eq!(none.validate(), Err(ConfigError::NoMembers));
    }

    #[test]
    fn quorums_parse_and_count() {
        assert_eq!("quorum".parse::<Quorum>(), Ok(Quorum::Quorum));
        assert_eq!("2".parse::<Quorum>(), Ok(Quorum::Count(2)));
        assert!("0".parse::<Quorum>().is_err());
        assert!("+1".parse::<Quorum>().is_err());
        assert!("two".parse::<Quorum>().is_err());
        assert_eq!(Quorum::Quorum.required(3), 2);
        assert_eq!(Quorum::Quorum.required(2), 2);
        assert_eq!(Quorum::All.required(3), 3);
        assert_eq!(Quorum::Count(3).required(1), 1);
    }
}

//! The ring as a node shows it (`GET /ring`), and the owners of a key computed from it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use torc_ring::config::Secret;
use torc_ring::{
    Bucket, BucketId, ClusterId, Config, ConfigError, ConfigVersion, Member, NodeId, OwnerTable,
    Ring, RingVersion,
};

use crate::text::Text;

/// `GET /ring`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RingView {
    /// Identity of the cluster.
    #[serde(default)]
    pub cluster: String,
    /// Version of the configuration.
    pub config_version: u64,
    /// Version of the configuration that last touched the ring.
    pub ring_version: u64,
    /// Number of partitions as a power of two.
    pub partition_bits: u8,
    /// Seed of the token hash; 16 hexadecimal digits in JSON, whose numbers lose bits in many languages.
    #[serde(with = "hexadecimal")]
    pub token_seed: u64,
    /// A change of the ring is under way.
    #[serde(default)]
    pub changing: bool,
    /// Members of the ring that serves, and those that are joining it.
    pub members: Vec<RingMember>,
    /// Buckets, in order of their names.
    #[serde(default)]
    pub buckets: Vec<RingBucket>,
    /// Who owns each partition, by the number of replicas; where none is for a bucket's, owners are computed
    /// from the members.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<RingTable>,
}

/// The owners of all partitions for one number of replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingTable {
    /// Replicas of each key.
    pub n: u8,
    /// [`OwnerTable::as_bytes`] in base64, about the members that are not joining, ordered by id.
    pub owners: String,
}

/// A bucket, as far as the ring is concerned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingBucket {
    /// Name.
    pub name: String,
    /// Identity.
    pub id: u32,
    /// Replicas of each key.
    pub n: u8,
}

/// A member of the ring.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RingMember {
    /// Identity, 16 hexadecimal digits.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// Failure domain.
    pub zone: String,
    /// Relative share.
    pub weight: u32,
    /// Share of all replicas, 0..=1.
    #[serde(default)]
    pub share: f64,
    /// Peer listener, `host:port`.
    pub peer: String,
    /// Data listener, `host:port`.
    pub http: String,
    /// Whether the node that answered believes it to be alive.
    #[serde(default)]
    pub alive: bool,
    /// `member`, `joining` or `leaving`.
    #[serde(default = "member")]
    pub state: String,
}

fn member() -> String {
    "member".to_owned()
}

/// `GET /ring/owners`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnersView {
    /// Bucket.
    pub bucket: String,
    /// The key, as text or base64.
    pub key: String,
    /// `base64` where the key is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    /// Replicas of the bucket's keys.
    pub n: u8,
    /// Where the key lies on the ring, 16 hexadecimal digits.
    pub token: String,
    /// Partition that the key falls into.
    pub partition: u32,
    /// Who holds it, in order of preference.
    pub owners: Vec<Owner>,
    /// Who may stand in for dead owners, in order of preference.
    #[serde(default)]
    pub stand_ins: Vec<Owner>,
}

/// A node in [`OwnersView`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Identity, 16 hexadecimal digits.
    pub id: String,
    /// Name for people.
    pub name: Option<String>,
    /// Data listener, `host:port`.
    pub http: Option<String>,
    /// Failure domain.
    pub zone: Option<String>,
    /// Whether the node that answered believes it to be alive.
    pub alive: bool,
}

/// `GET /ring/verify`: what each owner holds of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyView {
    /// Bucket.
    pub bucket: String,
    /// The key, as text or base64.
    pub key: String,
    /// `base64` where the key is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    /// Replicas of the bucket's keys.
    pub n: u8,
    /// Partition that the key falls into.
    pub partition: u32,
    /// All owners have answered, and hold the same.
    pub agree: bool,
    /// Owners in order of preference; while a change runs, those to come behind them.
    pub owners: Vec<CopyView>,
}

/// What one owner holds, in a [`VerifyView`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyView {
    /// The owner.
    #[serde(flatten)]
    pub owner: Owner,
    /// `holds`, `nothing`, `silent`, or why it does not say.
    pub answer: String,
    /// Time and node of the write that it holds, a tombstone's too.
    pub version: Option<String>,
    /// Hash of the content, 16 hexadecimal digits.
    pub hash: Option<String>,
    /// Up to where it has collected what was deleted, in microseconds since 1970; `None` for nowhere.
    #[serde(default)]
    pub floor_micros: Option<u64>,
}

impl VerifyView {
    /// The key.
    #[must_use]
    pub fn key(&self) -> Text {
        Text::from_json(self.key.clone(), self.encoding.as_deref())
    }
}

impl OwnersView {
    /// The key.
    #[must_use]
    pub fn key(&self) -> Text {
        Text::from_json(self.key.clone(), self.encoding.as_deref())
    }
}

mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer};

    // serde hands the field over by reference.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub(super) fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{number:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16).map_err(serde::de::Error::custom)
    }
}

/// The ring with its tables.
#[derive(Debug)]
pub(crate) struct Routes {
    config: Config,
    ring: Ring,
}

impl Routes {
    /// Computes the tables as every node does.
    pub(crate) fn compute(view: &RingView) -> Result<Self, ConfigError> {
        let member = |member: &RingMember| Member {
            id: member.id.parse().unwrap_or(NodeId(0)),
            name: member.name.clone(),
            zone: member.zone.clone(),
            weight: member.weight,
            peer: member.peer.clone(),
            http: member.http.clone(),
        };
        let serves = |member: &&RingMember| member.state != "joining";
        let mut current: Vec<Member> = view.members.iter().filter(serves).map(member).collect();
        current.sort_by_key(|member| member.id);
        let mut buckets: Vec<Bucket> = view
            .buckets
            .iter()
            .map(|bucket| Bucket {
                n: bucket.n,
                ..Bucket::new(BucketId(bucket.id), &bucket.name)
            })
            .collect();
        buckets.sort_by(|a, b| a.name.cmp(&b.name));
        let table = |table: &RingTable| match STANDARD.decode(&table.owners) {
            Ok(bytes) => Ok(OwnerTable::from_bytes(table.n, bytes)),
            Err(_) => Err(ConfigError::BadTable { n: table.n }),
        };
        let tables: Result<Vec<OwnerTable>, ConfigError> = view.tables.iter().map(table).collect();
        let config = Config {
            // Neither takes part in placement.
            cluster: ClusterId(0),
            secret: Secret([0; 32]),
            version: ConfigVersion(view.config_version),
            ring_version: RingVersion(view.ring_version),
            seed: view.token_seed,
            partition_bits: view.partition_bits,
            current,
            target: None,
            target_n: Vec::new(),
            abandoned: Vec::new(),
            last_change: None,
            next_bucket: BucketId(u32::MAX),
            buckets,
            tables: tables?,
            target_tables: Vec::new(),
            recovering: Vec::new(),
        };
        config.validate()?;
        let ring = Ring::compute(&config);
        Ok(Self { config, ring })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Data addresses of a key's owners, in order of preference; nothing for a bucket that is not known.
    pub(crate) fn owners(&self, bucket: &str, key: &[u8]) -> Vec<&str> {
        let Some(bucket) = self.config.bucket(bucket) else {
            return Vec::new();
        };
        let partition = self.ring.partition(self.ring.token(bucket.id, key));
        let owners = self.ring.owners(bucket.n, partition);
        owners
            .iter()
            .filter_map(|id| self.config.member(*id))
            .map(|member| member.http.as_str())
            .collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn view(members: u64) -> RingView {
        RingView {
            config_version: 3,
            ring_version: 3,
            partition_bits: 6,
            token_seed: u64::MAX,
            cluster: "c".into(),
            changing: false,
            tables: Vec::new(),
            buckets: vec![RingBucket {
                name: "default".into(),
                id: 1,
                n: 3,
            }],
            members: (1..=members)
                .map(|id| RingMember {
                    id: format!("{id:016x}"),
                    name: format!("node-{id}"),
                    zone: "a".into(),
                    weight: 100,
                    http: format!("127.0.0.1:{}", 8080 + id),
                    peer: format!("127.0.0.1:{}", 7080 + id),
                    alive: true,
                    share: 0.2,
                    state: "member".into(),
                })
                .collect(),
        }
    }

    #[test]
    fn owners_are_those_that_the_nodes_compute() {
        let view = view(5);
        let routes = Routes::compute(&view).expect("valid");
        let owners = routes.owners("default", b"hello");
        let token = torc_ring::Token::of(u64::MAX, BucketId(1), b"hello");
        let expected: Vec<String> = routes
            .ring()
            .owners(3, token.partition(6))
            .iter()
            .map(|id| format!("127.0.0.1:{}", 8080 + id.0))
            .collect();
        assert_eq!(owners, expected);
        assert_eq!(owners.len(), 3);
        assert!(routes.owners("other", b"hello").is_empty());
    }

    #[test]
    fn owners_that_the_cluster_has_written_down_are_believed() {
        let mut view = view(5);
        let computed = Routes::compute(&view).expect("valid");
        let ring = computed
            .config()
            .regrouped(computed.config().current.clone());
        let written = Ring::compute(&ring);
        view.tables = vec![RingTable {
            n: 3,
            owners: STANDARD.encode(ring.tables[0].as_bytes()),
        }];
        let json = serde_json::to_string(&view).expect("json");
        let view: RingView = serde_json::from_str(&json).expect("read");
        let routes = Routes::compute(&view).expect("valid");
        let partitions = || (0..64).map(torc_ring::PartitionId);
        assert!(partitions().all(|p| routes.ring().owners(3, p) == written.owners(3, p)));
        assert!(partitions().any(|p| routes.ring().owners(3, p) != computed.ring().owners(3, p)));
        let mut broken = view.clone();
        broken.tables[0].owners = "no base64!".into();
        assert!(Routes::compute(&broken).is_err());
        broken.tables[0].owners = STANDARD.encode([0; 72]);
        assert!(Routes::compute(&broken).is_err());
    }

    #[test]
    fn a_ring_that_makes_no_sense_is_refused() {
        let mut broken = view(2);
        broken.members[0].id = "not hexadecimal".into();
        broken.members[1].id = "neither".into();
        assert!(Routes::compute(&broken).is_err());
        broken = view(2);
        broken.partition_bits = 40;
        assert!(Routes::compute(&broken).is_err());
        broken.members.clear();
        assert!(Routes::compute(&broken).is_err());
    }

    #[test]
    fn a_seed_survives_json() {
        let json = serde_json::to_string(&view(1)).expect("json");
        assert!(
            json.contains(r#""token_seed":"ffffffffffffffff""#),
            "{json}"
        );
        let read: RingView = serde_json::from_str(&json).expect("read");
        assert_eq!(read, view(1));
    }

    #[test]
    fn a_node_that_is_joining_owns_nothing_yet() {
        let mut joining = view(4);
        joining.members[3].state = "joining".into();
        let routes = Routes::compute(&joining).expect("valid");
        assert_eq!(routes.config().current.len(), 3);
    }
}

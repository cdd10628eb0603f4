//! Settings of the side services: cache and queue. A node without them is whole.

use std::path::PathBuf;
use std::time::Duration;

use super::error::SettingsError;
use super::keys::{Key, Kind, key, optional};
use super::layers::Layers;

/// The read cache: a Redis of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Where it is.
    pub place: CachePlace,
    /// User, where Redis has users.
    pub user: Option<String>,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
    /// File that holds the sentinels' password, where they have one.
    pub sentinel_password_file: Option<PathBuf>,
    /// Greatest age of what is served from it.
    pub ttl: Duration,
    /// Buckets whose reads may be served from it although they do not say `r=one`.
    pub buckets: Vec<String>,
    /// Greatest number of keys.
    pub keys: u64,
    /// Greatest size of Redis in bytes.
    pub bytes: u64,
    /// Greatest value that is kept, in bytes.
    pub value_bytes: usize,
    /// Time within which Redis must have answered; else it is bypassed.
    pub budget: Duration,
}

/// Where a cache is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CachePlace {
    /// One server, `host:port`.
    Server(String),
    /// Whatever server the sentinels call the master.
    Sentinels {
        /// `host:port` of each.
        addresses: Vec<String>,
        /// The name by which they know it.
        master: String,
    },
}

/// The write queue and change feed: a RabbitMQ cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// `host:port` of each broker.
    pub brokers: Vec<String>,
    /// Virtual host.
    pub vhost: String,
    /// User.
    pub user: String,
    /// File that holds the password; `None`: RabbitMQ's default one, which works on loopback only.
    pub password_file: Option<PathBuf>,
    /// Greatest number of writes that wait.
    pub length: u64,
    /// Age from which on a queued write is not stored any more, and nothing is known of it.
    pub lifetime: Duration,
    /// Tell of every applied change.
    pub changes: bool,
    /// Greatest number of notes of changes that wait on this node.
    pub changes_max: u64,
}

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
const SECOND: u64 = 1_000;
const DAY: u64 = 86_400_000;

/// Their keys.
pub(super) static KEYS: &[Key] = &[
    optional(
        "cache.redis",
        Kind::HostPort,
        "\"127.0.0.1:6379\"",
        "Redis as read cache, a database of its own: one server. With Sentinel name `cache.sentinels` \
         instead. Without either there is no cache.",
    ),
    optional(
        "cache.sentinels",
        Kind::HostPorts,
        "[\"127.0.0.1:26379\"]",
        "Redis Sentinels that know which server is the master.",
    ),
    key(
        "cache.master",
        Kind::Name,
        "\"torc\"",
        "Name by which the sentinels know the master.",
    ),
    optional("cache.user", Kind::Name, "\"torc\"", "User of Redis."),
    optional(
        "cache.password_file",
        Kind::Path,
        "\"/run/secrets/redis\"",
        "File that holds the password of Redis.",
    ),
    optional(
        "cache.sentinel_password_file",
        Kind::Path,
        "\"/run/secrets/sentinel\"",
        "File that holds the password of the sentinels, where they have one.",
    ),
    key(
        "cache.ttl",
        Kind::Time(100..=DAY),
        "\"10s\"",
        "Greatest age of what is served from the cache: a change that did not reach it is overlooked for at \
         most this long.",
    ),
    optional(
        "cache.buckets",
        Kind::Buckets,
        "[\"default\"]",
        "Buckets whose reads may be served from the cache although they do not ask for `r=one`. A read that \
         asks for more than one replica never is.",
    ),
    key(
        "cache.keys",
        Kind::Number(1..=1_000_000_000),
        "1000000",
        "Keys in the cache; beyond, those that were not used for long go.",
    ),
    key(
        "cache.bytes",
        Kind::Size(MIB..=TIB),
        "\"256MiB\"",
        "Size of Redis in memory from which on keys go. Set Redis' own maxmemory a little above it.",
    ),
    key(
        "cache.value_bytes",
        Kind::Size(1..=16 * MIB),
        "\"64KiB\"",
        "Greatest value that is cached.",
    ),
    key(
        "cache.budget",
        Kind::Time(1..=SECOND),
        "\"2ms\"",
        "Time that Redis has to answer; after it the request goes on without the cache.",
    ),
    optional(
        "queue.brokers",
        Kind::HostPorts,
        "[\"127.0.0.1:5672\"]",
        "RabbitMQ as write queue and change feed; the first one that answers is used. Without it there is no \
         queue.",
    ),
    optional(
        "queue.vhost",
        Kind::Name,
        "\"torc\"",
        "Virtual host of RabbitMQ; one for each cluster. Without it: `/`.",
    ),
    key("queue.user", Kind::Name, "\"guest\"", "User of RabbitMQ."),
    optional(
        "queue.password_file",
        Kind::Path,
        "\"/run/secrets/rabbitmq\"",
        "File that holds the password of RabbitMQ. Without it RabbitMQ's default one is used, on loopback only.",
    ),
    key(
        "queue.length",
        Kind::Number(1..=100_000_000),
        "1000000",
        "Writes that may wait; more are refused with 503. Nodes and workers have to agree on it.",
    ),
    key(
        "queue.lifetime",
        Kind::Time(SECOND..=30 * DAY),
        "\"1d\"",
        "Age from which on a queued write is not applied any more, and `/writes/{id}` knows nothing of it. \
         Nodes have to agree on it.",
    ),
    key(
        "queue.changes",
        Kind::Flag,
        "false",
        "Publish every applied change to the topic exchange `torc.changes`.",
    ),
    key(
        "queue.changes_max",
        Kind::Number(1..=1_000_000_000),
        "1000000",
        "Changes that may wait for RabbitMQ on this node; more are dropped, counted, and told of as a gap.",
    ),
];

impl Layers {
    pub(super) fn cache(&self) -> Result<Option<Cache>, SettingsError> {
        let sentinels = self.list("cache.sentinels")?;
        let master = self.text("cache.master")?;
        let place = match (self.optional("cache.redis")?, sentinels) {
            (Some(_), Some(_)) => return Err(SettingsError::ServerAndSentinels),
            (Some(server), None) => CachePlace::Server(server),
            (None, Some(addresses)) => CachePlace::Sentinels { addresses, master },
            (None, None) => return Ok(None),
        };
        Ok(Some(Cache {
            place,
            user: self.optional("cache.user")?,
            password_file: self.optional("cache.password_file")?.map(PathBuf::from),
            sentinel_password_file: self
                .optional("cache.sentinel_password_file")?
                .map(PathBuf::from),
            ttl: self.time("cache.ttl")?,
            buckets: self.list("cache.buckets")?.unwrap_or_default(),
            keys: self.number("cache.keys")?,
            bytes: self.number("cache.bytes")?,
            value_bytes: self.number("cache.value_bytes")? as usize,
            budget: self.time("cache.budget")?,
        }))
    }

    pub(super) fn queue(&self) -> Result<Option<Queue>, SettingsError> {
        let Some(brokers) = self.list("queue.brokers")? else {
            return Ok(None);
        };
        let password_file = self.optional("queue.password_file")?.map(PathBuf::from);
        if password_file.is_none()
            && let Some(broker) = brokers.iter().find(|broker| !is_loopback(broker))
        {
            return Err(SettingsError::DefaultPassword {
                broker: broker.clone(),
            });
        }
        Ok(Some(Queue {
            brokers,
            vhost: self
                .optional("queue.vhost")?
                .unwrap_or_else(|| "/".to_owned()),
            user: self.text("queue.user")?,
            password_file,
            length: self.number("queue.length")?,
            lifetime: self.time("queue.lifetime")?,
            changes: self.flag("queue.changes")?,
            changes_max: self.number("queue.changes_max")?,
        }))
    }
}

fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

//! What can be driven: torc over HTTP, torc through its own client, Redis, and etcd.

mod etcd;
mod http;
mod redis;
mod torc;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use torc_client::Quorum;

use crate::address::Address;
use crate::error::Error;

/// Time for a target to say that it is there.
const PROBE_MAX: Duration = Duration::from_secs(5);

/// Kinds of targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetKind {
    /// torc over HTTP, each connection to one of the addresses; Nginx in front is as good.
    Torc,
    /// torc through `torc-client`, which sends each request to an owner of its key.
    TorcClient,
    /// A single Redis.
    Redis,
    /// A Redis cluster, reached through any of its nodes.
    RedisCluster,
    /// etcd through its HTTP gateway (v3).
    Etcd,
}

/// Their names, for messages.
pub const TARGET_NAMES: &str = "torc, torc-client, redis, redis-cluster, etcd";

impl TargetKind {
    /// Its name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Torc => "torc",
            Self::TorcClient => "torc-client",
            Self::Redis => "redis",
            Self::RedisCluster => "redis-cluster",
            Self::Etcd => "etcd",
        }
    }
}

/// A target as it is named on a command line: `torc`, `redis=127.0.0.1:6379`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetSpec {
    /// What it is.
    pub kind: TargetKind,
    /// Its addresses; none where they are given elsewhere.
    pub addresses: Vec<String>,
}

impl FromStr for TargetSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (name, addresses) = text.split_once('=').unwrap_or((text, ""));
        let kinds = [
            TargetKind::Torc,
            TargetKind::TorcClient,
            TargetKind::Redis,
            TargetKind::RedisCluster,
            TargetKind::Etcd,
        ];
        let kind = kinds.into_iter().find(|kind| kind.name() == name);
        let kind = kind.ok_or_else(|| Error::UnknownName {
            what: "target",
            given: name.chars().take(100).collect(),
            known: TARGET_NAMES,
        })?;
        let addresses = addresses.split(',').filter(|address| !address.is_empty());
        Ok(Self {
            kind,
            addresses: addresses.map(str::to_owned).collect(),
        })
    }
}

/// How a target is asked.
#[derive(Clone, Debug, Serialize)]
pub struct Asking {
    /// Bucket of torc.
    pub bucket: String,
    /// Replicas to wait for in reads of torc; the bucket's default otherwise. For etcd `one` stands for a
    /// serializable read, which its nodes answer alone.
    #[serde(serialize_with = "quorum")]
    pub r: Option<Quorum>,
    /// Replicas to wait for in writes of torc.
    #[serde(serialize_with = "quorum")]
    pub w: Option<Quorum>,
    /// Time for one operation.
    #[serde(skip)]
    pub deadline: Duration,
}

impl Default for Asking {
    fn default() -> Self {
        Self {
            bucket: "default".to_owned(),
            r: None,
            w: None,
            deadline: Duration::from_secs(5),
        }
    }
}

// serde hands the field over by reference.
#[allow(clippy::ref_option, clippy::trivially_copy_pass_by_ref)]
fn quorum<S: serde::Serializer>(quorum: &Option<Quorum>, serializer: S) -> Result<S::Ok, S::Error> {
    match quorum {
        Some(quorum) => serializer.collect_str(quorum),
        None => serializer.serialize_none(),
    }
}

/// A target with checked addresses.
#[derive(Clone, Debug)]
pub struct Target {
    /// What it is.
    pub kind: TargetKind,
    /// Where it is.
    pub addresses: Arc<[Address]>,
    /// How it is asked.
    pub asking: Asking,
}

impl Target {
    /// Checks the addresses.
    ///
    /// # Errors
    /// When there is none, one is none, or one is another machine's and `allow_remote` is not set.
    pub fn new(spec: &TargetSpec, asking: Asking, allow_remote: bool) -> Result<Self, Error> {
        let addresses: Vec<Address> = spec
            .addresses
            .iter()
            .map(|address| Address::check(address, allow_remote))
            .collect::<Result<_, _>>()?;
        if addresses.is_empty() {
            return Err(Error::Unfit(
                "a target needs an address, such as torc=127.0.0.1:8081",
            ));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if asking.bucket.is_empty() || !asking.bucket.chars().all(plain) {
            return Err(Error::Unfit(
                "the bucket's name may have letters, digits, `-`, `_` and `.`",
            ));
        }
        Ok(Self {
            kind: spec.kind,
            addresses: addresses.into(),
            asking,
        })
    }

    /// Makes sure that it is there, and that it sends nobody to another machine.
    ///
    /// # Errors
    /// When nobody answers, or it would.
    pub async fn probe(&self, allow_remote: bool) -> Result<(), Error> {
        if let Some(first) = self.addresses.first() {
            let unreachable = |reason: String| Error::Unreachable {
                target: self.kind.name(),
                address: first.text.clone(),
                reason,
            };
            let members = match self.kind {
                TargetKind::TorcClient => torc::members(self)
                    .await
                    .map_err(|error| unreachable(error.to_string()))?,
                TargetKind::RedisCluster => redis::members(self)
                    .await
                    .map_err(|error| unreachable(error.to_string()))?,
                _ => Vec::new(),
            };
            for member in members {
                Address::check(&member, allow_remote)?;
            }
            let mut connection = Connector::new(self)?.connection(0);
            let asked = connection.perform(Request::Get { key: "user0" });
            match tokio::time::timeout(PROBE_MAX, asked).await {
                Ok(Ok(_)) => {}
                Ok(Err(failure)) => return Err(unreachable(failure.to_string())),
                Err(_) => return Err(unreachable(Failure::Timeout.to_string())),
            }
        }
        Ok(())
    }
}

/// Makes the connections of one worker.
#[derive(Debug)]
pub(crate) struct Connector {
    target: Target,
    shared: Shared,
}

/// What the connections of one worker have in common.
#[derive(Debug)]
enum Shared {
    None,
    Client(torc_client::Client),
}

impl Connector {
    pub(crate) fn new(target: &Target) -> Result<Self, Error> {
        let shared = match target.kind {
            TargetKind::TorcClient => Shared::Client(torc::client(target)?),
            _ => Shared::None,
        };
        Ok(Self {
            target: target.clone(),
            shared,
        })
    }

    /// A connection, which begins with address number `first`. It is made when it is used.
    pub(crate) fn connection(&self, first: usize) -> Connection {
        let target = &self.target;
        let wire = match (&self.shared, target.kind) {
            (Shared::Client(client), _) => {
                Wire::Client(torc::Routed::new(client.clone(), &target.asking))
            }
            (_, TargetKind::Etcd) => Wire::Etcd(etcd::Etcd::new(target, first)),
            (_, TargetKind::Redis | TargetKind::RedisCluster) => {
                Wire::Redis(redis::Redis::new(target, first))
            }
            (_, TargetKind::Torc | TargetKind::TorcClient) => {
                Wire::Torc(torc::Torc::new(target, first))
            }
        };
        Connection {
            wire,
            deadline: target.asking.deadline,
        }
    }
}

/// One connection, which does one operation at a time.
#[derive(Debug)]
pub(crate) struct Connection {
    wire: Wire,
    deadline: Duration,
}

// One of them a connection: what a box would save is not worth its indirection on every operation.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
enum Wire {
    Torc(torc::Torc),
    Client(torc::Routed),
    Redis(redis::Redis),
    Etcd(etcd::Etcd),
}

/// One operation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Request<'a> {
    Get {
        key: &'a str,
    },
    Put {
        key: &'a str,
        value: &'a Bytes,
    },
    Delete {
        key: &'a str,
    },
    /// These records, the first of which is named first.
    Scan {
        keys: &'a [String],
    },
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done<'a> {
    /// A value that was read; of a scan, all that was read.
    Value(&'a [u8]),
    /// There is none.
    Missing,
    Written,
}

impl Connection {
    /// Does one operation.
    pub(crate) async fn perform(&mut self, request: Request<'_>) -> Result<Done<'_>, Failure> {
        let deadline = self.deadline;
        let work = async {
            match &mut self.wire {
                Wire::Torc(wire) => wire.perform(request).await,
                Wire::Client(wire) => wire.perform(request).await,
                Wire::Redis(wire) => wire.perform(request).await,
                Wire::Etcd(wire) => wire.perform(request).await,
            }
        };
        match tokio::time::timeout(deadline, work).await {
            Ok(result) => result,
            Err(_) => Err(Failure::Timeout),
        }
    }
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// Answered with this status.
    Status(u16),
    /// Nobody listens.
    ConnectionRefused,
    /// No connection came about for another reason.
    NotConnected,
    /// The connection ended before the answer.
    ConnectionLost,
    /// No answer within the deadline.
    Timeout,
    /// The answer is not understood.
    Malformed,
    /// Refused by the server, which does not speak HTTP.
    Refused,
    /// It was its turn (open loop), but no connection was free until the end.
    NotSent,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "status {status}"),
            Self::ConnectionRefused => f.write_str("connection refused"),
            Self::NotConnected => f.write_str("not connected"),
            Self::ConnectionLost => f.write_str("connection lost"),
            Self::Timeout => f.write_str("no answer in time"),
            Self::Malformed => f.write_str("answer not understood"),
            Self::Refused => f.write_str("refused"),
            Self::NotSent => f.write_str("not sent before the end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_named_with_or_without_addresses() {
        let spec: TargetSpec = "torc=127.0.0.1:1,127.0.0.1:2".parse().expect("valid");
        assert_eq!((spec.kind, spec.addresses.len()), (TargetKind::Torc, 2));
        let spec: TargetSpec = "torc-client".parse().expect("valid");
        assert_eq!(
            (spec.kind, spec.addresses.len()),
            (TargetKind::TorcClient, 0)
        );
        assert!("memcached=127.0.0.1:1".parse::<TargetSpec>().is_err());
    }

    #[test]
    fn no_target_is_on_another_machine() {
        let spec: TargetSpec = "redis=127.0.0.1:1,192.0.2.1:6379".parse().expect("valid");
        let refused = Target::new(&spec, Asking::default(), false);
        assert!(matches!(refused, Err(Error::Remote { .. })));
        assert!(Target::new(&spec, Asking::default(), true).is_ok());
    }
}

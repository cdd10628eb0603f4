//! Redis, single or as a cluster, by the `redis` crate.

use bytes::Bytes;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, RedisError, Value};

use super::{Done, Failure, Request, Target, TargetKind};

/// A connection to Redis.
#[derive(Debug)]
pub(crate) struct Redis {
    target: Target,
    at: usize,
    wire: Wire,
    last: Bytes,
}

enum Wire {
    None,
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "not connected",
            Self::Single(_) => "single",
            Self::Cluster(_) => "cluster",
        })
    }
}

impl Redis {
    pub(crate) fn new(target: &Target, first: usize) -> Self {
        Self {
            at: first % target.addresses.len().max(1),
            target: target.clone(),
            wire: Wire::None,
            last: Bytes::new(),
        }
    }

    pub(crate) async fn perform(&mut self, request: Request<'_>) -> Result<Done<'_>, Failure> {
        let mut command = Cmd::new();
        match request {
            Request::Get { key } => drop(command.arg("GET").arg(key)),
            Request::Put { key, value } => drop(command.arg("SET").arg(key).arg(&value[..])),
            Request::Delete { key } => drop(command.arg("DEL").arg(key)),
            // Redis has no order of keys: the records of a scan are read by their names, in one command.
            Request::Scan { keys } => drop(command.arg("MGET").arg(keys)),
        }
        if matches!(self.wire, Wire::None) {
            self.wire = self.connect().await.map_err(|error| failure(&error))?;
        }
        let answered = match &mut self.wire {
            Wire::Single(wire) => wire.req_packed_command(&command).await,
            Wire::Cluster(wire) => wire.req_packed_command(&command).await,
            Wire::None => return Err(Failure::NotConnected),
        };
        let value = answered.map_err(|error| {
            if error.is_io_error() {
                // The next operation tries the next address.
                self.wire = Wire::None;
                self.at = (self.at + 1) % self.target.addresses.len();
            }
            failure(&error)
        })?;
        match (request, value) {
            (Request::Get { .. }, Value::Nil) => Ok(Done::Missing),
            (Request::Get { .. }, Value::BulkString(bytes)) => {
                self.last = bytes.into();
                Ok(Done::Value(&self.last))
            }
            (Request::Put { .. }, Value::Okay) | (Request::Delete { .. }, Value::Int(_)) => {
                Ok(Done::Written)
            }
            (Request::Scan { keys }, Value::Array(values)) if values.len() == keys.len() => {
                Ok(Done::Value(&[]))
            }
            _ => Err(Failure::Malformed),
        }
    }

    async fn connect(&self) -> Result<Wire, RedisError> {
        let deadline = Some(self.target.asking.deadline);
        let url = |at: usize| format!("redis://{}", self.target.addresses[at].text);
        if self.target.kind == TargetKind::RedisCluster {
            let urls = (0..self.target.addresses.len()).map(url);
            let client = ClusterClient::builder(urls)
                .response_timeout(self.target.asking.deadline)
                .build()?;
            return client.get_async_connection().await.map(Wire::Cluster);
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(deadline)
            .set_response_timeout(deadline);
        let client = Client::open(url(self.at))?;
        let connected = client.get_multiplexed_async_connection_with_config(&config);
        connected.await.map(Wire::Single)
    }
}

/// Addresses of a cluster's nodes, where a client may be sent.
pub(crate) async fn members(target: &Target) -> Result<Vec<String>, RedisError> {
    let mut found = Vec::new();
    if let Some(first) = target.addresses.first() {
        let client = Client::open(format!("redis://{}", first.text))?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let text: String = redis::cmd("CLUSTER")
            .arg("NODES")
            .query_async(&mut connection)
            .await?;
        // ID IP:PORT@CLUSTER_PORT[,HOST] FLAGS ...
        for line in text.lines() {
            let address = line
                .split(' ')
                .nth(1)
                .and_then(|field| field.split('@').next());
            // A node that does not know its own address yet begins with the colon.
            found.extend(
                address
                    .filter(|address| !address.starts_with(':'))
                    .map(str::to_owned),
            );
        }
    }
    Ok(found)
}

fn failure(error: &RedisError) -> Failure {
    if error.is_timeout() {
        Failure::Timeout
    } else if error.is_connection_refusal() {
        Failure::ConnectionRefused
    } else if error.is_io_error() {
        Failure::ConnectionLost
    } else {
        Failure::Refused
    }
}

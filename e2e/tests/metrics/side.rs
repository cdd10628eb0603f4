//! The side services of the cluster whose figures are looked at.

use std::net::SocketAddr;

use tempfile::TempDir;
use torc_e2e::cluster::{Cluster, Node};
use torc_e2e::http::Request;
use torc_e2e::process::torc;
use torc_e2e::services::Service;
use torc_e2e::services::rabbit::Rabbit;
use torc_e2e::services::redis::Redis;

/// A Redis and a broker.
pub(crate) struct Side {
    redis: Redis,
    rabbit: Rabbit,
    _folder: TempDir,
}

impl Side {
    pub(crate) fn start() -> Self {
        let folder = TempDir::with_prefix("torc-e2e-side-").expect("a folder");
        Self {
            redis: Redis::start(folder.path(), None),
            rabbit: Rabbit::start(1),
            _folder: folder,
        }
    }

    /// What nodes and workers have to know of them.
    pub(crate) fn settings(&self) -> String {
        format!(
            "[cache]\nredis = \"{}\"\n[queue]\nbrokers = [\"{}\"]\nchanges = true\n",
            self.redis.address,
            self.rabbit.addresses()[0]
        )
    }
}

/// A worker that serves its figures there.
pub(crate) fn worker(cluster: &Cluster, http: SocketAddr) -> Service {
    let nodes: Vec<_> = cluster
        .addresses()
        .iter()
        .map(ToString::to_string)
        .collect();
    let mut command = torc(cluster.folder());
    command
        .args(["worker", "--http", &http.to_string()])
        .args(["--node", &nodes.join(",")])
        .arg("--config")
        .arg(cluster.folder().join("torc.toml"));
    Service::start("worker", cluster.folder(), &command)
}

/// An autoscaler that only explains.
pub(crate) fn autoscaler(cluster: &Cluster, http: SocketAddr, prometheus: SocketAddr) -> Service {
    let admins: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| node.admin.to_string())
        .collect();
    let mut command = torc(cluster.folder());
    command
        .args(["autoscale", "--dry-run", "--interval", "1s"])
        .args(["--docker", "/nonexistent"])
        .args(["--http", &http.to_string()])
        .args(["--prometheus", &prometheus.to_string()])
        .args(["--admin", &admins.join(",")]);
    Service::start("autoscaler", cluster.folder(), &command)
}

/// A queued write, and a read that the cache may answer.
pub(crate) fn use_it(node: &Node) {
    let put = Request::put("/kv/default/metrics-side", "x").header("prefer", "respond-async");
    let _ = node.ask(&put);
    let _ = node.ask(&Request::get("/kv/default/metrics-side?r=one"));
}

//! The side services of the cluster whose figures are looked at.

use tempfile::TempDir;
use torc_e2e::cluster::Node;
use torc_e2e::http::Request;
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

/// A queued write, and a read that the cache may answer.
pub(crate) fn use_it(node: &Node) {
    let put = Request::put("/kv/default/metrics-side", "x").header("prefer", "respond-async");
    let _ = node.ask(&put);
    let _ = node.ask(&Request::get("/kv/default/metrics-side?r=one"));
}

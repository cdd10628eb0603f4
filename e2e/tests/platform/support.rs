//! Everything around a cluster of three nodes: Redis with sentinels, RabbitMQ, a worker, Nginx.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use torc_e2e::cluster::{Cluster, Node, Options};
use torc_e2e::http::{Request, Response};
use torc_e2e::services::beside::Worker;
use torc_e2e::services::nginx::Proxy;
use torc_e2e::services::rabbit::Rabbit;
use torc_e2e::services::redis::Sentinels;
use torc_e2e::wait;

/// For anything that only has to come true.
pub(crate) const SOON: Duration = Duration::from_secs(240);

/// The platform; what is declared first ends first.
pub(crate) struct Platform {
    pub(crate) nginx: Proxy,
    pub(crate) worker: Option<Worker>,
    pub(crate) cluster: Cluster,
    pub(crate) rabbit: Rabbit,
    pub(crate) redis: Sentinels,
    /// The nodes' `torc.toml`, which the worker shares.
    config: String,
    _folder: TempDir,
}

/// What differs between tests.
pub(crate) struct Wish {
    /// Settings of the cache.
    pub(crate) cache: &'static str,
    /// How many brokers the queue has.
    pub(crate) brokers: usize,
}

impl Platform {
    /// Everything but a worker.
    pub(crate) fn start(wish: &Wish) -> Self {
        let folder = TempDir::with_prefix("torc-platform-")
            .unwrap_or_else(|error| panic!("make a folder: {error}"));
        let redis = Sentinels::start(folder.path());
        let rabbit = Rabbit::start(wish.brokers);
        let list = |all: &[SocketAddr]| {
            let all: Vec<_> = all.iter().map(|one| format!("\"{one}\"")).collect();
            all.join(", ")
        };
        let config = format!(
            "[cache]\n{}{}\n[queue]\nbrokers = [{}]\n",
            redis.config(),
            wish.cache,
            list(&rabbit.addresses())
        );
        let options = Options {
            config: Some(config.clone()),
            ..Options::default()
        };
        let cluster = Cluster::start(3, options);
        let nginx = Proxy::start("nginx.conf", &cluster.addresses());
        let platform = Self {
            nginx,
            worker: None,
            cluster,
            rabbit,
            redis,
            config,
            _folder: folder,
        };
        platform.wait_connected();
        platform
    }

    /// Until every node has its cache and its queue.
    pub(crate) fn wait_connected(&self) {
        for node in &self.cluster.nodes {
            for metric in ["torc_cache_connected", "torc_queue_connected"] {
                wait::until(&format!("{metric} of {}", node.name), SOON, || {
                    match node.metric(metric, &[])? {
                        Some(connected) if connected > 0.0 => Ok(()),
                        other => Err(format!("{other:?}")),
                    }
                });
            }
        }
    }

    /// Starts a worker and waits until it takes messages.
    pub(crate) fn start_worker(&mut self) {
        let (folder, nodes) = (self.cluster.folder(), self.cluster.addresses());
        self.worker = Some(Worker::start(folder, &self.config, &nodes, &[]));
    }

    /// One request through Nginx.
    #[track_caller]
    pub(crate) fn ask(&self, request: &Request) -> Response {
        self.nginx.ask(request)
    }

    /// What `/writes/{id}` says through Nginx, once it says that.
    pub(crate) fn wait_state(&self, write: &str, wanted: &str) -> Value {
        wait::until(&format!("{write} to be {wanted}"), SOON, || {
            let said = self.nginx.try_ask(&Request::get(write))?.json();
            if said["state"] == wanted {
                Ok(said)
            } else {
                Err(said.to_string())
            }
        })
    }

    /// Hits of the cache, of all nodes together.
    pub(crate) fn hits(&self) -> u64 {
        let of = |node: &Node| {
            node.metric("torc_cache_requests_total", &[("result", "hit")])
                .unwrap_or_else(|error| panic!("{error}"))
                .unwrap_or(0.0) as u64
        };
        self.cluster.nodes.iter().map(of).sum()
    }
}

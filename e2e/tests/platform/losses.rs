//! Any one side service is killed while keys are read and written on the nodes: no operation fails, and
//! when the service returns, everything catches up by itself.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use torc_e2e::cluster::READY_MAX;
use torc_e2e::http::Request;
use torc_e2e::services::beside::Autoscaler;
use torc_e2e::services::prometheus::{Prometheus, Scraped};
use torc_e2e::services::redis::Redis;
use torc_e2e::workload::{Load, Mix, seed};
use torc_e2e::{alone, ports, wait};

use crate::support::{Platform, SOON, Wish};

/// Above what a busy machine makes of the nodes' own deadline: only what a lost service costs may fail.
const MIX: Mix = Mix {
    clients: 3,
    operations_max: 1_000_000,
    keys: 20,
    prefix: "q-",
    puts: 40,
    deletes: 5,
    get_query: "r=quorum&deadline=20s",
    put_query: "w=quorum&deadline=20s",
    timeout: Duration::from_secs(30),
    pace: Duration::from_millis(10),
    one_clock: true,
};

/// Operations that have to succeed while something is away.
const MEANWHILE: usize = 200;

struct Clients {
    quorum: Load,
    /// Reads that the cache may answer.
    cached: Load,
}

impl Clients {
    fn start(platform: &Platform) -> Self {
        let nodes = platform.cluster.addresses();
        let cached = Mix {
            prefix: "c-",
            get_query: "r=one&deadline=20s",
            ..MIX
        };
        Self {
            quorum: Load::start(&nodes, &MIX, seed()),
            cached: Load::start(&nodes, &cached, seed()),
        }
    }

    /// Until so many more operations have been made, none of which failed.
    #[track_caller]
    fn go_on(&self, what: &str) {
        for load in [&self.quorum, &self.cached] {
            let target = load.operations_so_far() + MEANWHILE;
            wait::until(&format!("operations {what}"), READY_MAX * 4, || match load
                .operations_so_far()
            {
                now if now >= target => Ok(()),
                now => Err(format!("{now} of {target}")),
            });
            assert_eq!(load.failures_so_far(), 0, "operations failed {what}");
        }
    }

    fn finish(self) {
        for load in [self.quorum, self.cached] {
            let seen = load.finish();
            let first = seen.failures.first();
            assert_eq!(seen.failures_count, 0, "{first:?}");
            eprintln!("{} operations, none failed", seen.succeeded());
        }
    }
}

/// An asynchronous write through a node that is accepted within a while (its broker may have been lost a
/// moment ago); where it can be asked for.
fn queued(platform: &Platform, key: &str, value: &str) -> String {
    let request =
        Request::put(&format!("/kv/default/{key}"), value).header("prefer", "respond-async");
    let node = &platform.cluster.nodes[0];
    wait::until(&format!("{key} to be accepted"), SOON, || {
        let answer = node.ask(&request)?;
        match (answer.status, answer.header("location")) {
            (202, Some(location)) => Ok(location.to_owned()),
            _ => Err(answer.text()),
        }
    })
}

/// The value, read from every node in the way that the cache may answer.
#[track_caller]
fn wait_seen(platform: &Platform, key: &str, value: &str) {
    for node in &platform.cluster.nodes {
        let what = format!("{key} to be {value} on {}", node.name);
        wait::until(&what, SOON, || {
            match node.get(&format!("/kv/default/{key}?r=one")) {
                Some(found) if found == value.as_bytes() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
}

fn nginx(platform: &mut Platform, clients: &Clients) {
    platform.nginx.kill();
    clients.go_on("without Nginx");
    platform.nginx.restart();
    let answer = platform.ask(&Request::put("/kv/default/through", "again"));
    assert_eq!(answer.status, 204, "{}", answer.text());
}

fn worker(platform: &mut Platform, clients: &Clients) {
    if let Some(worker) = &mut platform.worker {
        worker.service.kill();
    }
    let writes: Vec<_> = (0..20)
        .map(|number| queued(platform, &format!("w-{number}"), "queued"))
        .collect();
    clients.go_on("without a worker");
    platform.start_worker();
    for write in &writes {
        platform.wait_state(write, "applied");
    }
}

fn broker(platform: &mut Platform, clients: &Clients) {
    let before = queued(platform, "b-before", "1");
    platform.rabbit.kill(0);
    clients.go_on("without a broker");
    let meanwhile = queued(platform, "b-meanwhile", "1");
    platform.rabbit.restart(0);
    let after = queued(platform, "b-after", "1");
    for write in [before, meanwhile, after] {
        platform.wait_state(&write, "applied");
    }
}

/// The master goes, and another server takes its place; then all servers go.
fn redis(platform: &mut Platform, clients: &Clients) {
    let node = |platform: &Platform, value: &'static str| {
        platform.cluster.nodes[0].put("/kv/default/cached", value);
    };
    node(platform, "1");
    let master = platform.redis.master_port();
    let at = platform
        .redis
        .servers
        .iter()
        .position(|server| Some(server.address.port()) == master)
        .unwrap_or_else(|| panic!("no master: {master:?}"));
    platform.redis.servers[at].service.kill();
    node(platform, "2");
    clients.go_on("without the cache's master");
    platform.wait_connected();
    wait_seen(platform, "cached", "2");
    for server in &mut platform.redis.servers {
        server.service.kill();
    }
    node(platform, "3");
    clients.go_on("without the cache");
    wait_seen(platform, "cached", "3");
    // They come back with nothing, as what they were at first; the sentinels sort it out.
    let folder = platform.cluster.folder().to_owned();
    for at in 0..platform.redis.servers.len() {
        let address = platform.redis.servers[at].address;
        platform.redis.servers[at] = Redis::start_at(&folder, address, None);
    }
    platform.wait_connected();
    wait::until("the cache to answer again", SOON, || {
        let before = platform.hits();
        clients.go_on("with the cache again");
        if platform.hits() > before {
            Ok(())
        } else {
            Err("no hits")
        }
    });
    wait_seen(platform, "cached", "3");
}

fn sentinels(platform: &mut Platform, clients: &Clients) {
    platform.redis.kill_sentinels();
    clients.go_on("without the sentinels");
    platform.redis.restart_sentinels();
    platform.wait_connected();
}

/// Whoever watches: figures, and the autoscaler that decides by them.
struct Watch {
    prometheus: Prometheus,
    autoscaler: Autoscaler,
    admins: Vec<SocketAddr>,
}

/// What Prometheus must have of each of three nodes after that moment, in seconds since 1970.
fn scraped_after(moment: u64) -> String {
    format!("count(timestamp(up{{job=\"torc\"}} == 1) > {moment}) == 3")
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

impl Watch {
    fn start(platform: &Platform) -> Self {
        let admins: Vec<_> = platform
            .cluster
            .nodes
            .iter()
            .map(|node| node.admin)
            .collect();
        let prometheus = Prometheus::start(&Scraped {
            nodes: admins.clone(),
            ..Scraped::default()
        });
        let folder = platform.cluster.folder();
        let autoscaler = Autoscaler::launch(ports::free(), folder, &admins, prometheus.address);
        let watch = Self {
            prometheus,
            autoscaler,
            admins,
        };
        watch.wait_scraped(now());
        watch.autoscaler.wait_ready();
        watch
    }

    fn wait_scraped(&self, after: u64) {
        let query = scraped_after(after);
        wait::until("figures of each node", SOON, || {
            self.prometheus.finds(&query)
        });
    }
}

/// Nobody watches for a while. What was seen before is still there, and what comes is seen.
fn prometheus(watch: &mut Watch, clients: &Clients) {
    let before = now();
    watch.wait_scraped(before);
    let seen = now();
    watch.prometheus.kill();
    clients.go_on("without Prometheus");
    watch.autoscaler.wait_down("Prometheus");
    watch.prometheus.restart();
    watch.wait_scraped(now());
    watch.autoscaler.wait_ready();
    let earlier = format!("count(up{{job=\"torc\"}} @ {seen} == 1) == 3");
    wait::until("figures from before", SOON, || {
        watch.prometheus.finds(&earlier)
    });
}

fn autoscaler(platform: &Platform, watch: &mut Watch, clients: &Clients) {
    watch.autoscaler.service.kill();
    clients.go_on("without the autoscaler");
    let (folder, at) = (platform.cluster.folder(), watch.autoscaler.http);
    let asked = watch.prometheus.address;
    watch.autoscaler = Autoscaler::launch(at, folder, &watch.admins, asked);
    watch.autoscaler.wait_ready();
}

#[test]
fn any_side_service_is_killed_and_no_operation_fails_and_all_catches_up() {
    let _alone = alone();
    let mut platform = Platform::start(&Wish {
        cache: "ttl = \"2s\"",
        brokers: 3,
    });
    platform.start_worker();
    let mut watch = Watch::start(&platform);
    let clients = Clients::start(&platform);
    clients.go_on("with everything");
    prometheus(&mut watch, &clients);
    autoscaler(&platform, &mut watch, &clients);
    sentinels(&mut platform, &clients);
    nginx(&mut platform, &clients);
    worker(&mut platform, &clients);
    broker(&mut platform, &clients);
    redis(&mut platform, &clients);
    clients.finish();
}

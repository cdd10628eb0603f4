//! Chaos: a cluster of processes under load while nodes die, stop, lose links, run out of disk, and see
//! their clocks jump; the recorded history is checked.
//!
//! `make chaos` gives it `CHAOS_SECONDS` (default 120, divided between the two networks) and `CHAOS_SEED`;
//! the tests alone take a short form of it. One cluster lives in network namespaces, whose kernel cuts the
//! links; the other one on loopback behind proxies that also delay, lose, double and reorder datagrams.

mod faults;
mod net;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use torc_e2e::cluster::{Cluster, Node, Options, READY_MAX};
use torc_e2e::http::Request;
use torc_e2e::linearize::{Checked, check};
use torc_e2e::netns::Netns;
use torc_e2e::proxy::Network;
use torc_e2e::shim::Clock;
use torc_e2e::tmpfs::Tmpfs;
use torc_e2e::workload::{Load, Mix, Random, Seen};
use torc_e2e::{alone, history, netns, wait};

use crate::faults::{Fault, ORDINARY, inject};
use crate::net::{Net, place_behind_proxies, place_in_namespaces};

const DISK_MEBIBYTES: u32 = 256;
/// A small memtable and reserve, so that the small disk holds a store and can be filled.
const CONFIG: &str = "[storage]\nwrite_buffer = \"4MiB\"\nreserve = \"24MiB\"\n";
/// Longer than all that may be under way when the faults end: hints, backoffs, clocks that settle.
const SETTLED_MAX: Duration = Duration::from_secs(90);

/// A cluster, what can be done to it, and the load on it.
struct World {
    cluster: Cluster,
    net: Net,
    clocks: Vec<Clock>,
    /// The last node's, where mounting is allowed.
    disk: Option<Tmpfs>,
    load: Option<Load>,
    random: Random,
}

impl World {
    fn load(&self) -> &Load {
        self.load.as_ref().expect("the load runs until the end")
    }

    /// Lets the load go on for a while: faults take time to be felt.
    fn let_run(&self, time: Duration) {
        let end = self.load().now_ns() + time.as_nanos() as u64;
        wait::until("time to pass", time + READY_MAX, || {
            if self.load().now_ns() >= end {
                Ok(())
            } else {
                Err("not yet")
            }
        });
    }

    fn some_time(&mut self, from_ms: u64, to_ms: u64) -> Duration {
        Duration::from_millis(from_ms + self.random.below((to_ms - from_ms) as usize) as u64)
    }
}

#[test]
fn a_cluster_in_network_namespaces_keeps_its_promises_through_chaos() {
    let _alone = alone();
    if let Err(why) = netns::available() {
        assert!(
            std::env::var("CI").is_err(),
            "the chaos test with kernel-level cuts cannot run: {why}"
        );
        eprintln!("SKIPPED, {why}. Only the proxies on loopback cut links in this run.");
        return;
    }
    let (seed, time) = settings();
    let network = Netns::lay(3).unwrap_or_else(|error| panic!("lay the network: {error}"));
    run("namespaces", Net::Namespaces(network), "fsync", seed, time);
}

#[test]
fn a_cluster_behind_bad_links_keeps_its_promises_through_chaos() {
    let _alone = alone();
    let (seed, time) = settings();
    run("proxies", Net::Proxies(None), "os", seed, time);
}

/// The seed (`CHAOS_SEED`, else a new one), and for how long each network has its faults.
fn settings() -> (u64, Duration) {
    let number = |name: &str| -> Option<u64> { std::env::var(name).ok()?.parse().ok() };
    let seed = number("CHAOS_SEED").unwrap_or_else(torc_e2e::workload::seed);
    let seconds = number("CHAOS_SECONDS").map_or(25, |all| (all / 2).max(10));
    (seed, Duration::from_secs(seconds))
}

fn start(net: Net, durability: &'static str, seed: u64) -> World {
    let mut cluster = Cluster::empty(Options {
        durability,
        config: Some(CONFIG.to_owned()),
        ..Options::default()
    });
    let disk = mounted();
    for number in 0..3 {
        let name = format!("node-{}", number + 1);
        match &disk {
            Some(disk) if number == 2 => cluster.add_in(&name, &disk.path().join("data")),
            _ => cluster.add(),
        };
    }
    let clocks: Vec<Clock> = (1..=3)
        .map(|number| {
            let path = cluster.folder().join(format!("clock-{number}"));
            Clock::in_file(path).unwrap_or_else(|error| panic!("make a clock: {error}"))
        })
        .collect();
    for (node, clock) in cluster.nodes.iter_mut().zip(&clocks) {
        node.options.environment.extend(clock.environment());
    }
    let net = match net {
        Net::Namespaces(network) => place_in_namespaces(&mut cluster, network),
        Net::Proxies(_) => place_behind_proxies(&mut cluster, seed),
    };
    let peers = net.peers(&cluster);
    cluster.form(&peers);
    World {
        cluster,
        net,
        clocks,
        disk,
        load: None,
        random: Random(seed),
    }
}

/// A small disk for one node, if this process may mount one.
fn mounted() -> Option<Tmpfs> {
    match Tmpfs::try_mount(DISK_MEBIBYTES) {
        Ok(disk) => Some(disk),
        Err(why) => {
            assert!(std::env::var("CI").is_err(), "{why}");
            eprintln!("SKIPPED, the full disk: {why}");
            None
        }
    }
}

fn run(name: &str, net: Net, durability: &'static str, seed: u64, time: Duration) {
    eprintln!(
        "chaos in {name}: CHAOS_SEED={seed}, {} s of faults",
        time.as_secs()
    );
    let mut world = start(net, durability, seed);
    let mix = Mix {
        clients: 10,
        operations_max: usize::MAX,
        keys: 8,
        get_query: "r=quorum&deadline=1s",
        put_query: "w=quorum&deadline=1s",
        timeout: Duration::from_millis(1_500),
        pace: Duration::from_millis(if time.as_secs() > 60 { 6 } else { 2 }),
        one_clock: false,
        ..Mix::default()
    };
    let addresses = world.cluster.addresses();
    world.load = Some(Load::start(&addresses, &mix, seed));
    world.let_run(Duration::from_secs(1));
    let mut injected: BTreeMap<Fault, u32> = BTreeMap::new();
    let began = Instant::now();
    for number in 0.. {
        if began.elapsed() >= time && number >= ORDINARY.len() {
            break;
        }
        // Each kind once, then as the dice fall.
        let dice = ORDINARY[world.random.below(ORDINARY.len())];
        let fault = ORDINARY.get(number).copied().unwrap_or(dice);
        if inject(&mut world, fault) {
            *injected.entry(fault).or_default() += 1;
        }
        world.let_run(Duration::from_millis(400));
    }
    settle(&world);
    the_books_balance_once_more(&mut world);
    let load = world.load.take().expect("the load runs until the end");
    let seen = load.finish_reading(&addresses);
    converge(&world, &mix);
    let checked = verdict(&world, &seen, seed);
    eprintln!("chaos in {name}, CHAOS_SEED={seed}:");
    eprintln!("  faults      {injected:?}");
    if let Net::Proxies(Some(network)) = &world.net {
        eprintln!("  datagrams   {:?}", Network::passed(network));
    }
    eprintln!(
        "  operations  {} ({} succeeded, {} failed or unknown)",
        seen.operations.len(),
        seen.succeeded(),
        seen.failures_count
    );
    eprintln!(
        "  verdict     linearizable over {} keys, nothing acknowledged lost, hints add up, replicas agree",
        checked.keys
    );
}

/// After the faults: everybody is back, in time, and all hints are delivered.
fn settle(world: &World) {
    let size = world.cluster.nodes.len();
    world.cluster.wait_members(size);
    for node in &world.cluster.nodes {
        let what = format!("the hints of {} to be delivered", node.name);
        wait::until(&what, SETTLED_MAX, || match waiting(node) {
            Ok(0.0) => Ok(()),
            Ok(some) => Err(format!("{some} waiting")),
            Err(error) => Err(error),
        });
    }
}

fn waiting(node: &Node) -> Result<f64, String> {
    let value = node.metric("torc_hints_waiting", &[])?;
    Ok(value.unwrap_or_default())
}

/// What a node says of its hints since it started: stored, delivered, dropped, waiting.
fn books(node: &Node) -> Result<[f64; 4], String> {
    let names = [
        "torc_hints_stored_total",
        "torc_hints_delivered_total",
        "torc_hints_dropped_total",
        "torc_hints_waiting",
    ];
    let mut values = [0.0; 4];
    for (value, name) in values.iter_mut().zip(names) {
        *value = node.metric(name, &[])?.unwrap_or_default();
    }
    Ok(values)
}

/// Counters begin again with each start of a node, so the books of the chaos itself cannot be added up.
/// One more node is killed and comes back, and those of the others must: stored = delivered + dropped +
/// waiting, from a state in which nothing waited.
fn the_books_balance_once_more(world: &mut World) {
    let before: Vec<[f64; 4]> = world.cluster.nodes[..2]
        .iter()
        .map(|node| books(node).unwrap_or_else(|error| panic!("{}: {error}", node.name)))
        .collect();
    world.cluster.nodes[2].kill();
    world.let_run(Duration::from_secs(3));
    world.cluster.nodes[2].start(&torc_e2e::cluster::Formation::Known);
    settle(world);
    let mut stored_by_all = 0.0;
    for (node, before) in world.cluster.nodes.iter().zip(before) {
        let what = format!("the hints of {} to add up", node.name);
        stored_by_all += wait::until(&what, READY_MAX, || {
            let now = books(node)?;
            let [stored, delivered, dropped, waiting] =
                [0, 1, 2, 3].map(|at: usize| now[at] - before[at]);
            if (stored - delivered - dropped - waiting).abs() < 0.5 {
                return Ok(stored);
            }
            Err(format!(
                "{stored} stored, {delivered} delivered, {dropped} dropped, {waiting} waiting"
            ))
        });
    }
    assert!(
        stored_by_all > 0.0,
        "a node was dead under load, and nobody kept a hint for it"
    );
}

/// Every owner's own copy of every key is the same.
fn converge(world: &World, mix: &Mix) {
    for key in mix.keys() {
        let what = format!("all copies of {key} to be the same");
        wait::until(&what, SETTLED_MAX, || {
            let read = |node: &Node, r: &str| {
                let answer = node.ask(&Request::get(&format!("/kv/default/{key}?r={r}")))?;
                match answer.status {
                    200 | 404 => Ok((answer.status, answer.body)),
                    status => Err(format!("{status} from {}", node.name)),
                }
            };
            let newest = read(&world.cluster.nodes[0], "all")?;
            for node in &world.cluster.nodes {
                let own = read(node, "one")?;
                if own != newest {
                    return Err(format!("{own:?} on {}, {newest:?} of all", node.name));
                }
            }
            Ok(())
        });
    }
}

fn verdict(world: &World, seen: &Seen, seed: u64) -> Checked {
    assert!(
        seen.succeeded() > 500,
        "too little was done to say anything: {} operations succeeded",
        seen.succeeded()
    );
    match check(&seen.operations) {
        Ok(checked) => checked,
        Err(violation) => {
            let path = world.cluster.folder().join("history.txt");
            let kept = history::dump(&seen.operations, &path);
            panic!(
                "CHAOS_SEED={seed}: {violation}\nthe whole history: {} ({kept:?})",
                path.display()
            );
        }
    }
}

//! The ring changes under load: nodes join, leave, die in the middle of it and come back, and are replaced.
//! No request fails but those in the hands of the node that was killed, and nothing acknowledged is lost.
//!
//! The short form has 5,000 keys and a low `transfer_rate`, so that changes last long enough to be met in the
//! middle; `TORC_LONG=1` takes 200,000 keys of 1 KiB and the rate that is the default, or that of
//! `TORC_TRANSFER_RATE` (`0B`: all that the machine can do), and prints what it measured.

mod watch;

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use torc_e2e::cluster::{Cluster, Formation, Node, Options, READY_MAX, shown};
use torc_e2e::history::Operation;
use torc_e2e::http::Request;
use torc_e2e::linearize::check;
use torc_e2e::workload::{Extras, Load, Mix, Seen, is_long, seed};
use torc_e2e::{alone, history, wait};

use watch::{Change, Watch, look};

const VALUE_BYTES: usize = 1 << 10;
/// A record's head, and a key such as `ring-123456`.
const RECORD_BYTES: f64 = VALUE_BYTES as f64 + 36.0 + 11.0;
/// Moved bytes may be this multiple of what the plan calls unavoidable.
const MOVED_MAX: f64 = 1.25;
const MIB: f64 = 1024.0 * 1024.0;
/// Longer than any change may take here, a node that comes back included.
const CHANGE_MAX: Duration = Duration::from_secs(300);
/// A node that joins a cluster with keys is ready after its share has begun to move.
const FILL_MAX: Duration = Duration::from_secs(900);

/// A killed node, and when clients were told of it.
struct Killed {
    node: SocketAddr,
    at_ns: u64,
    told_ns: u64,
}

struct World {
    cluster: Cluster,
    load: Load,
    watch: Watch,
    keys: u32,
    killed: Vec<Killed>,
    /// Bytes received by lives of nodes that are over.
    moved_before: f64,
    /// Name, begin and end of each phase, in nanoseconds of the load.
    phases: Vec<(&'static str, u64, u64)>,
}

impl World {
    fn start(long: bool) -> Self {
        let rate = if long {
            std::env::var("TORC_TRANSFER_RATE").unwrap_or_else(|_| "64MiB".into())
        } else {
            "384KiB".into()
        };
        let cluster = Cluster::start(
            3,
            Options {
                config: Some(format!("transfer_rate = \"{rate}\"\n")),
                ..Options::default()
            },
        );
        let keys = if long { 200_000 } else { 5_000 };
        let mix = Mix {
            clients: if long { 16 } else { 6 },
            operations_max: usize::MAX,
            keys,
            prefix: "ring-",
            puts: 50,
            deletes: 0,
            timeout: Duration::from_secs(10),
            pace: Duration::from_millis(if long { 0 } else { 2 }),
            ..Mix::default()
        };
        let extras = Extras {
            fill: true,
            hot: 100,
            value_bytes: VALUE_BYTES,
        };
        let load = Load::start_with(&cluster.addresses(), &mix, &extras, seed());
        wait::until("all keys to be put once", FILL_MAX, || {
            if load.is_filled() {
                Ok(())
            } else {
                Err(format!("{} operations", load.operations_so_far()))
            }
        });
        let watch = Watch::start(cluster.nodes[1].admin);
        Self {
            cluster,
            load,
            watch,
            keys,
            killed: Vec::new(),
            moved_before: 0.0,
            phases: Vec::new(),
        }
    }

    fn node(&self, name: &str) -> &Node {
        let mut nodes = self.cluster.nodes.iter();
        nodes.find(|node| node.name == name).expect("a node")
    }

    fn node_mut(&mut self, name: &str) -> &mut Node {
        let mut nodes = self.cluster.nodes.iter_mut();
        nodes.find(|node| node.name == name).expect("a node")
    }

    /// From now on clients ask these nodes.
    fn ask_only(&self, names: &[&str]) {
        let nodes: Vec<_> = names.iter().map(|name| self.node(name).http).collect();
        self.load.set_nodes(&nodes);
    }

    fn let_run(&self, time: Duration) {
        let end = self.load.now_ns() + time.as_nanos() as u64;
        wait::until("time to pass", time + READY_MAX, || {
            if self.load.now_ns() >= end {
                Ok(())
            } else {
                Err("not yet")
            }
        });
    }

    /// Waits until these are the members, and nothing moves.
    fn wait_ring(&self, names: &[&str]) {
        for name in names {
            let node = self.node(name);
            wait::until(&format!("{names:?} on {name}"), CHANGE_MAX, || {
                let mut members = node.members()?;
                members.sort();
                if members == names && !node.is_changing()? {
                    Ok(())
                } else {
                    Err(format!("{members:?}, {:?}", look(node.admin)))
                }
            });
        }
    }

    fn kill(&mut self, name: &str, then_ask: &[&str]) {
        let moved = self.moved_by(name);
        let at_ns = self.load.now_ns();
        self.node_mut(name).kill();
        self.ask_only(then_ask);
        self.moved_before += moved;
        let node = self.node(name).http;
        // One more operation of each client may have been begun before it heard of it.
        let told_ns = self.load.now_ns() + 100_000_000;
        self.killed.push(Killed {
            node,
            at_ns,
            told_ns,
        });
    }

    fn moved_by(&self, name: &str) -> f64 {
        let moved = self.node(name).metric("torc_transfer_bytes_total", &[]);
        moved.ok().flatten().unwrap_or(0.0)
    }

    fn moved(&self) -> f64 {
        let nodes = self.cluster.nodes.iter();
        let running = nodes.filter(|node| node.is_launched());
        let by_nodes: f64 = running.map(|node| self.moved_by(&node.name)).sum();
        self.moved_before + by_nodes
    }

    /// Makes a change, and says what it cost.
    fn phase(&mut self, name: &'static str, change: impl FnOnce(&mut Self)) {
        self.watch.take();
        let (moved, begin) = (self.moved(), self.load.now_ns());
        change(self);
        let end = self.load.now_ns();
        self.phases.push((name, begin, end));
        let changes = self.watch.take();
        let unavoidable: f64 = changes.iter().map(|change| change.unavoidable).sum();
        let least = unavoidable * f64::from(self.keys) * RECORD_BYTES;
        let bytes = self.moved() - moved;
        let took: Duration = changes.iter().map(Change::took).sum();
        eprintln!(
            "{name}: {} changes, {:.1} MiB moved, {:.2} of {:.1} MiB unavoidable, joint for {:.2} s, {:.1} MiB/s",
            changes.len(),
            bytes / MIB,
            bytes / least.max(1.0),
            least / MIB,
            took.as_secs_f64(),
            bytes / MIB / took.as_secs_f64().max(0.001)
        );
        if least > 0.0 {
            assert!(
                bytes <= MOVED_MAX * least,
                "{name}: {bytes} bytes were moved, {least} were unavoidable"
            );
        }
    }
}

/// `POST /ring/commit`; the change must begin.
#[track_caller]
fn commit(node: &Node, change: &serde_json::Value) {
    let body = json!({ "changes": [change] }).to_string();
    let request = Request::new("POST", "/ring/commit")
        .header("content-type", "application/json")
        .body(body);
    let answer = node.ask_admin(&request);
    assert!(
        matches!(&answer, Ok(answer) if answer.status == 200),
        "{change}: {}",
        shown(answer)
    );
}

/// Peak and present resident memory of a process, in bytes.
fn memory(node: &Node) -> (f64, f64) {
    let text = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap_or_default();
    let kibibytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.trim().split(' ').next()?.parse::<f64>().ok());
        number.unwrap_or(0.0) * 1024.0
    };
    (kibibytes("VmHWM:"), kibibytes("VmRSS:"))
}

/// The slowest of a hundred of the operations that began between those moments, in milliseconds.
fn p99(operations: &[Operation], (begin, end): (u64, u64)) -> f64 {
    let mut took: Vec<u64> = operations
        .iter()
        .filter(|operation| (begin..end).contains(&operation.invoked_ns))
        .map(|operation| operation.returned_ns - operation.invoked_ns)
        .collect();
    took.sort_unstable();
    let at = took.len() * 99 / 100;
    took.get(at).map_or(0.0, |&ns| ns as f64 / 1e6)
}

/// Operations and their p99 in milliseconds, of each piece of that length.
fn series(operations: &[Operation], (begin, end): (u64, u64), piece: u64) -> Vec<String> {
    (begin..end)
        .step_by(piece as usize)
        .map(|from| {
            let within = (from, from + piece);
            let count = operations
                .iter()
                .filter(|operation| (within.0..within.1).contains(&operation.invoked_ns))
                .count();
            format!("{count}/{:.0}", p99(operations, within))
        })
        .collect()
}

/// Copies what a node has on disk, as a measure of what this machine can do: MiB/s.
fn copy_rate(cluster: &Cluster, node: &Node) -> f64 {
    let to = cluster.folder().join("copied");
    let began = Instant::now();
    let status = Command::new("cp")
        .arg("-r")
        .arg(&node.data)
        .arg(&to)
        .status();
    let took = began.elapsed().as_secs_f64();
    assert!(status.is_ok_and(|status| status.success()), "cp failed");
    let bytes: u64 = walk(&to);
    bytes as f64 / MIB / took.max(0.001)
}

fn walk(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => walk(&entry.path()),
            Ok(data) => data.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Requests that failed although nobody had killed the node that was asked.
fn unexcused(seen: &Seen, killed: &[Killed]) -> Vec<String> {
    let excused = |failure: &torc_e2e::workload::Failure| {
        killed.iter().any(|killed| {
            killed.node == failure.node
                && failure.returned_ns >= killed.at_ns
                && failure.invoked_ns <= killed.told_ns
        })
    };
    let failures = seen.failures.iter().filter(|failure| !excused(failure));
    failures
        .map(|failure| {
            let ms = |ns: u64| ns / 1_000_000;
            let (from, to) = (ms(failure.invoked_ns), ms(failure.returned_ns));
            format!("{from}..{to} ms, {}: {}", failure.node, failure.what)
        })
        .collect()
}

#[test]
fn nodes_join_leave_die_and_are_replaced_under_load_and_nothing_fails_or_is_lost() {
    let _alone = alone();
    let long = is_long();
    let mut world = World::start(long);
    let calm = Duration::from_secs(if long { 15 } else { 3 });
    world.phase("before", |world| world.let_run(calm));
    let memory_before: Vec<_> = [1, 2]
        .iter()
        .map(|&at| memory(&world.cluster.nodes[at]).1)
        .collect();

    world.phase("node-4 and node-5 join", |world| {
        let peers = vec![world.cluster.nodes[1].peer];
        for _ in 0..2 {
            world.cluster.add().launch(&Formation::Join(peers.clone()));
        }
        let all = ["node-1", "node-2", "node-3", "node-4", "node-5"];
        world.node("node-4").wait_ready();
        world.node("node-5").wait_ready();
        world.ask_only(&all);
        world.wait_ring(&all);
    });
    world.phase("calm", |world| world.let_run(calm));

    world.phase("node-1 leaves, node-4 dies and returns", |world| {
        world.ask_only(&["node-2", "node-3", "node-4", "node-5"]);
        commit(
            world.node("node-2"),
            &json!({ "change": "leave", "node": "node-1" }),
        );
        world.kill("node-4", &["node-2", "node-3", "node-5"]);
        world.let_run(Duration::from_secs(2));
        let change = look(world.node("node-2").admin).expect("the change is told");
        assert_eq!(change["phase"], "moving", "it waits for node-4: {change}");
        world.node_mut("node-4").start(&Formation::Known);
        world.ask_only(&["node-2", "node-3", "node-4", "node-5"]);
        world.wait_ring(&["node-2", "node-3", "node-4", "node-5"]);
        let status = world.node_mut("node-1").wait_exit(READY_MAX);
        assert!(status.success(), "node-1 has left with {status}");
    });

    world.phase("node-6 replaces node-5", |world| {
        world.kill("node-5", &["node-2", "node-3", "node-4"]);
        let peers = vec![world.node("node-3").peer];
        let node = world.cluster.add();
        let replace = ["--replace", "node-5"].map(str::to_owned);
        node.options.arguments.extend(replace);
        node.launch(&Formation::Join(peers));
        world.wait_ring(&["node-2", "node-3", "node-4", "node-6"]);
        world.ask_only(&["node-2", "node-3", "node-4", "node-6"]);
    });
    world.phase("after", |world| world.let_run(calm));
    report_memory(&world, &memory_before);
    judge(world);
}

fn report_memory(world: &World, before: &[f64]) {
    let mebibytes = |bytes: f64| bytes / MIB;
    for (at, before) in [1, 2].into_iter().zip(before) {
        let node = &world.cluster.nodes[at];
        let (peak, now) = memory(node);
        eprintln!(
            "memory of {}: {:.0} MiB before, {:.0} MiB now, {:.0} MiB at most",
            node.name,
            mebibytes(*before),
            mebibytes(now),
            mebibytes(peak)
        );
    }
    for name in ["node-4", "node-6"] {
        let (peak, now) = memory(world.node(name));
        eprintln!(
            "memory of {name}, which joined: {:.0} MiB now, {:.0} MiB at most",
            mebibytes(now),
            mebibytes(peak)
        );
    }
    let rate = copy_rate(&world.cluster, world.node("node-2"));
    eprintln!("cp of a node's data: {rate:.0} MiB/s");
}

/// Reads every key once more, and judges the whole history.
fn judge(world: World) {
    let readers = ["node-2", "node-3", "node-4", "node-6"].map(|name| world.node(name).http);
    let World {
        cluster,
        load,
        killed,
        phases,
        keys,
        ..
    } = world;
    let seen = load.finish_reading_once(&readers);
    for &(name, begin, end) in &phases {
        eprintln!("p99 {:.1} ms: {name}", p99(&seen.operations, (begin, end)));
        if is_long() {
            let pieces = series(&seen.operations, (begin, end), 500_000_000);
            eprintln!("  operations/p99 of each half second: {}", pieces.join(" "));
        }
    }
    let failed = unexcused(&seen, &killed);
    eprintln!(
        "{} operations on {keys} keys, {} failed in the hands of killed nodes",
        seen.operations.len(),
        seen.failures_count - failed.len()
    );
    assert_eq!(seen.failures.len(), seen.failures_count, "all are kept");
    assert!(
        failed.is_empty(),
        "{} requests failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
    match check(&seen.operations) {
        Ok(checked) => eprintln!("{checked:?}"),
        Err(violation) => {
            let path = cluster.folder().join("history.txt");
            let kept = history::dump(&seen.operations, &path);
            panic!(
                "{violation}\nthe whole history: {} ({kept:?})",
                path.display()
            );
        }
    }
}

#[test]
fn a_node_joins_a_cluster_with_keys_by_itself_and_the_operator_sees_it() {
    let _alone = alone();
    let mut cluster = Cluster::start(3, Options::default());
    let target = |number: usize| format!("/kv/default/kept-{number}");
    for number in 0..200 {
        cluster.nodes[number % 3].put(&target(number), format!("value {number}"));
    }
    let peers = vec![cluster.nodes[0].peer];
    // A configuration of an earlier version is no obstacle.
    let old = ["--set", "ring_changes_preview=true"].map(str::to_owned);
    let node = cluster.add();
    node.options.arguments.extend(old);
    node.start(&Formation::Join(peers));
    cluster.wait_members(4);
    for number in 0..200 {
        let value = cluster.nodes[3].get(&target(number));
        assert_eq!(value, Some(format!("value {number}").into_bytes()));
    }
    assert!(
        cluster.nodes[3].log().contains("no longer needed"),
        "{}",
        cluster.nodes[3].log()
    );
    for node in &cluster.nodes {
        let change = look(node.admin).expect("a change");
        assert_eq!(change["phase"], "idle");
        assert_eq!(change["waiting"], json!([]), "nobody waits any more");
        assert_eq!(change["last"]["end"], "switched");
        let owned = node.metric("torc_partitions", &[("state", "owned")]);
        assert!(owned.expect("metrics").is_some_and(|owned| owned > 0.0));
        let moving = node.metric("torc_partitions", &[("state", "gaining")]);
        assert_eq!(moving.expect("metrics"), Some(0.0));
    }

    // What each owner holds of a key, through a node that need not be one.
    let request = Request::get("/ring/verify?key=kept-7");
    wait::until("all owners to hold the same", READY_MAX, || {
        let verified = cluster.nodes[3].ask_admin(&request)?.json();
        let copies = verified["owners"].as_array().map_or(0, Vec::len);
        if verified["agree"] == true && copies == 3 {
            Ok(())
        } else {
            Err(verified.to_string())
        }
    });
    cluster.nodes[1].kill();
    wait::until("a dead owner to be silent", READY_MAX, || {
        for number in 0..20 {
            let request = Request::get(&format!("/ring/verify?key=kept-{number}"));
            let verified = cluster.nodes[0].ask_admin(&request)?.json();
            let silent =
                |copy: &serde_json::Value| copy["name"] == "node-2" && copy["answer"] == "silent";
            let copies = verified["owners"].as_array().cloned().unwrap_or_default();
            if copies.iter().any(silent) && verified["agree"] == false {
                return Ok(());
            }
        }
        Err("no key of node-2 among them".to_owned())
    });
}

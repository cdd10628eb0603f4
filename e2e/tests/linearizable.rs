//! Puts and gets over all nodes with r = w = quorum are linearizable per key while nodes are killed
//! and paused. `TORC_LONG=1` runs ten minutes each, `TORC_SECONDS` as long as it says.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use torc_e2e::cluster::{Cluster, Formation, Options, READY_MAX};
use torc_e2e::linearize::check;
use torc_e2e::workload::{Load, Mix, Random, is_long, seed};
use torc_e2e::{alone, history, wait};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Kill,
    KillAll,
    Pause,
    PauseMajority,
    StopInOrder,
}

const FAULTS: [Fault; 5] = [
    Fault::Kill,
    Fault::Pause,
    Fault::KillAll,
    Fault::PauseMajority,
    Fault::StopInOrder,
];

/// Lets the load run for a while; the faults need time to be felt.
fn let_run(load: &Load, time: Duration) {
    let end = load.now_ns() + time.as_nanos() as u64;
    wait::until("time to pass", time + READY_MAX, || {
        if load.now_ns() >= end {
            Ok(())
        } else {
            Err("not yet")
        }
    });
}

fn inject(cluster: &mut Cluster, fault: Fault, load: &Load, random: &mut Random) {
    let victim = random.below(cluster.nodes.len());
    let other = (victim + 1) % cluster.nodes.len();
    let while_down = Duration::from_millis(300 + random.below(4_000) as u64);
    match fault {
        Fault::Kill => {
            cluster.nodes[victim].kill();
            let_run(load, while_down);
            cluster.nodes[victim].start(&Formation::Known);
        }
        Fault::KillAll => {
            cluster.kill_all();
            cluster.restart_all();
        }
        Fault::StopInOrder => {
            cluster.nodes[victim].stop();
            let_run(load, while_down / 2);
            cluster.nodes[victim].start(&Formation::Known);
        }
        Fault::Pause => {
            cluster.nodes[victim].pause();
            let_run(load, while_down * 2);
            cluster.nodes[victim].resume();
        }
        Fault::PauseMajority => {
            cluster.nodes[victim].pause();
            cluster.nodes[other].pause();
            let_run(load, while_down / 2);
            cluster.nodes[other].resume();
            let_run(load, while_down / 2);
            cluster.nodes[victim].resume();
        }
    }
}

/// How long faults are injected: `TORC_SECONDS`, else ten minutes in the long form.
fn duration(short: u64) -> Duration {
    let given = std::env::var("TORC_SECONDS")
        .ok()
        .and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(given.unwrap_or(if is_long() { 600 } else { short }))
}

#[test]
fn three_nodes_are_linearizable_while_they_are_killed_and_paused() {
    let _alone = alone();
    run(3, "os", duration(25));
}

#[test]
fn five_nodes_are_linearizable_while_they_are_killed_and_paused() {
    let _alone = alone();
    // Here most requests reach a node that does not own the key.
    run(5, "fsync", duration(15));
}

fn run(nodes: usize, durability: &'static str, time: Duration) {
    let seed = seed();
    let mut random = Random(seed);
    let mut cluster = Cluster::start(
        nodes,
        Options {
            durability,
            ..Options::default()
        },
    );
    let mix = Mix {
        clients: 12,
        operations_max: usize::MAX,
        get_query: "r=quorum&deadline=1s",
        put_query: "w=quorum&deadline=1s",
        timeout: Duration::from_millis(1_500),
        pace: Duration::from_millis(if time.as_secs() > 60 { 5 } else { 1 }),
        ..Mix::default()
    };
    let load = Load::start(&cluster.addresses(), &mix, seed);
    let_run(&load, Duration::from_secs(1));
    let began = Instant::now();
    let mut injected: BTreeMap<Fault, u32> = BTreeMap::new();
    for number in 0.. {
        // Each kind once, then as the dice fall.
        let dice = FAULTS[random.below(FAULTS.len())];
        let fault = FAULTS.get(number).copied().unwrap_or(dice);
        if number >= FAULTS.len() && began.elapsed() >= time {
            break;
        }
        inject(&mut cluster, fault, &load, &mut random);
        *injected.entry(fault).or_default() += 1;
        let_run(&load, Duration::from_millis(500));
    }
    cluster.wait_members(nodes);
    let seen = load.finish_reading(&cluster.addresses());
    eprintln!(
        "{injected:?}, {} succeeded, {} failed",
        seen.succeeded(),
        seen.failures_count
    );
    assert!(
        seen.succeeded() > 1_000,
        "too little was done to say anything: {}",
        seen.succeeded()
    );
    match check(&seen.operations) {
        Ok(checked) => eprintln!("{checked:?}"),
        Err(violation) => {
            let path = cluster.folder().join("history.txt");
            let kept = history::dump(&seen.operations, &path);
            panic!(
                "seed {seed}: {violation}\nthe whole history: {} ({kept:?})",
                path.display()
            );
        }
    }
}

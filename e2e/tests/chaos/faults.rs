//! The faults: each is injected, lasts for a while under load, and is undone.

use std::time::Duration;

use torc_e2e::cluster::Formation;
use torc_e2e::http::Request;
use torc_e2e::proxy::Link;
use torc_e2e::wait;

use crate::{SETTLED_MAX, World};

/// Less than the reserve: ordinary writes are refused on a disk with so much room.
const LEAVE_BYTES: u64 = 12 * 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// One node is cut off in both directions, until the others have noticed.
    Isolate,
    /// `kill -9` of one node, which comes back.
    Kill,
    /// SIGSTOP of one node, for less or longer than the failure detector's patience.
    Pause,
    /// One direction between two nodes is cut.
    CutOneWay,
    /// Both directions between two nodes are cut; the third one sees both.
    CutPair,
    /// Delay, loss, doubles and reordering on every link (proxies only).
    BadLinks,
    /// One node's wall clock jumps by seconds, and stays there for a while.
    ClockJump,
    /// One node's wall clock jumps by minutes, beyond the drift that is allowed.
    ClockFar,
    /// The disk of one node is full.
    FullDisk,
    /// `kill -9` of all nodes at once.
    KillAll,
    /// SIGTERM, and a start.
    Restart,
    /// SIGSTOP of two nodes: no quorum anywhere.
    PauseMajority,
}

/// In the order in which each is injected once; most telling first.
pub(crate) const ORDINARY: [Fault; 12] = [
    Fault::Isolate,
    Fault::Kill,
    Fault::CutOneWay,
    Fault::FullDisk,
    Fault::Pause,
    Fault::BadLinks,
    Fault::ClockJump,
    Fault::KillAll,
    Fault::CutPair,
    Fault::PauseMajority,
    Fault::ClockFar,
    Fault::Restart,
];

/// Injects a fault and undoes it; `false` if this world cannot have it.
pub(crate) fn inject(world: &mut World, fault: Fault) -> bool {
    let victim = world.random.below(3);
    let other = (victim + 1 + world.random.below(2)) % 3;
    match fault {
        Fault::Isolate => isolate(world, victim),
        Fault::Kill => {
            world.cluster.nodes[victim].kill();
            let down = world.some_time(300, 3_000);
            world.let_run(down);
            start(world, victim);
        }
        Fault::KillAll => {
            world.cluster.kill_all();
            world.cluster.restart_all();
        }
        Fault::Restart => {
            world.cluster.nodes[victim].stop();
            start(world, victim);
        }
        Fault::Pause => {
            world.cluster.nodes[victim].pause();
            let paused = world.some_time(300, 5_000);
            world.let_run(paused);
            world.cluster.nodes[victim].resume();
        }
        Fault::PauseMajority => {
            world.cluster.nodes[victim].pause();
            world.cluster.nodes[other].pause();
            let paused = world.some_time(300, 1_500);
            world.let_run(paused);
            world.cluster.nodes[other].resume();
            world.let_run(paused);
            world.cluster.nodes[victim].resume();
        }
        Fault::CutOneWay => {
            world.net.set_cut(victim, other, true);
            let cut = world.some_time(500, 4_000);
            world.let_run(cut);
            world.net.set_cut(victim, other, false);
        }
        Fault::CutPair => {
            let both = [(victim, other), (other, victim)];
            for (from, to) in both {
                world.net.set_cut(from, to, true);
            }
            let cut = world.some_time(500, 4_000);
            world.let_run(cut);
            for (from, to) in both {
                world.net.set_cut(from, to, false);
            }
        }
        Fault::BadLinks => return bad_links(world),
        Fault::ClockJump => {
            let by = [-20_000, -5_000, 700, 20_000][world.random.below(4)];
            jump(world, victim, by, (1_000, 3_000));
        }
        Fault::ClockFar => {
            let by = [-120_000, 120_000][world.random.below(2)];
            jump(world, victim, by, (1_000, 2_000));
        }
        Fault::FullDisk => return full_disk(world),
    }
    true
}

fn start(world: &mut World, node: usize) {
    world.cluster.nodes[node].start(&Formation::Known);
}

/// Proves on the way that cuts cut: the others must see the node go and come.
fn isolate(world: &mut World, victim: usize) {
    let others: Vec<usize> = (0..3).filter(|node| *node != victim).collect();
    let live = |world: &World, count: f64| {
        for node in &others {
            let node = &world.cluster.nodes[*node];
            node.wait_metric("torc_nodes_live", &[], |live| (live - count).abs() < 0.5);
        }
    };
    let both = |cut: bool| {
        for other in &others {
            world.net.set_cut(victim, *other, cut);
            world.net.set_cut(*other, victim, cut);
        }
    };
    both(true);
    live(world, 2.0);
    world.let_run(Duration::from_millis(500));
    both(false);
    live(world, 3.0);
}

fn bad_links(world: &mut World) -> bool {
    let mut below = |bound: usize| world.random.below(bound) as u64;
    let bad = Link {
        cut: false,
        lost: below(150) as u32,
        doubled: below(100) as u32,
        delay_us: below(20_000),
        jitter_us: 1_000 + below(60_000),
    };
    if !world.net.set_bad(Some(bad)) {
        return false;
    }
    let time = world.some_time(2_000, 5_000);
    world.let_run(time);
    world.net.set_bad(None)
}

fn jump(world: &mut World, victim: usize, by_ms: i64, (from_ms, to_ms): (u64, u64)) {
    let set = |world: &World, ms: i64| {
        world.clocks[victim]
            .set_ms(ms)
            .unwrap_or_else(|error| panic!("set a clock: {error}"));
    };
    set(world, by_ms);
    let time = world.some_time(from_ms, to_ms);
    world.let_run(time);
    set(world, 0);
}

/// The disk of the last node fills up; it must live through that and take writes again afterwards.
fn full_disk(world: &mut World) -> bool {
    let Some(disk) = &world.disk else {
        return false;
    };
    let node = &world.cluster.nodes[2];
    let (pid, before) = (node.pid(), node.log().len());
    let squeeze = disk.squeeze(LEAVE_BYTES, || {
        if node.log_since(before).contains("disk is full") {
            return Ok(());
        }
        Err("the node has not noticed".to_owned())
    });
    // The other two go on; with the third one's copy as well, a write cannot succeed.
    let on_all = || {
        let request = Request::put("/kv/default/full-disk?w=all", "x");
        node.ask(&request).map(|answer| answer.status)
    };
    let refused = on_all();
    assert!(
        matches!(refused, Ok(503 | 507)),
        "w=all on a full disk: {refused:?}"
    );
    world.let_run(Duration::from_millis(1_500));
    std::fs::remove_file(&squeeze).unwrap_or_else(|error| panic!("make room: {error}"));
    wait::until("writes to be taken again", SETTLED_MAX, || match on_all() {
        Ok(204) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(world.cluster.nodes[2].pid(), pid);
    true
}

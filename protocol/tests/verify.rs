//! Transcripts of asking every owner what it holds of a key.
#![allow(missing_docs)]

mod nodes;

use torc_protocol::client::{ClientOp, ClientReply, Held, Holding};
use torc_protocol::shard_io::Input;
use torc_protocol::time::SECOND;
use torc_ring::NodeId;

use nodes::{A, B, C, Cluster, D, E};

const KEY: &[u8] = b"k";

fn verify() -> ClientOp {
    ClientOp::Verify { key: KEY.into() }
}

fn held(reply: Option<ClientReply>) -> Option<Vec<Held>> {
    match reply? {
        ClientReply::Verified { held } => Some(held),
        other => panic!("no answer to what was asked: {other:?}"),
    }
}

fn of(held: &[Held], node: NodeId) -> Holding {
    let mut held = held.iter().filter(|held| held.node == node);
    held.next().expect("an owner").holding
}

#[test]
fn each_owner_says_for_itself_what_it_holds_and_nothing_is_repaired() {
    let mut cluster = Cluster::new(3);
    cluster.write(A, KEY, b"old");
    let newer = cluster.record(1, b"new");
    cluster.plant(B, KEY, newer.clone());
    cluster.lose(C, KEY);
    let asked = cluster.client(A, verify());
    cluster.settle();
    let held = held(cluster.reply(asked)).expect("all have answered");
    assert_eq!(held.len(), 3);
    let old = cluster.stored(A, KEY).expect("stored").digest();
    assert_eq!(of(&held, A), Holding::State(Some(old)));
    assert_eq!(of(&held, B), Holding::State(Some(newer.digest())));
    assert_eq!(of(&held, C), Holding::State(None));
    assert_eq!(cluster.stored(C, KEY), None, "it only looks");
    assert_eq!(cluster.open(A), 0);
}

#[test]
fn it_waits_for_no_owner_that_is_dead_and_until_the_deadline_for_one_that_is_silent() {
    let mut cluster = Cluster::new(3);
    cluster.write(A, KEY, b"v");
    cluster.isolate(C);
    let asked = cluster.client(A, verify());
    cluster.settle();
    assert_eq!(cluster.reply(asked), None, "C may still answer");
    cluster.advance(3 * SECOND);
    let late = held(cluster.reply(asked)).expect("the deadline has come");
    assert_eq!(of(&late, C), Holding::Silent);
    assert!(matches!(of(&late, B), Holding::State(Some(_))));

    cluster.believe_dead(A, &[C]);
    let asked = cluster.client(A, verify());
    cluster.settle();
    let soon = held(cluster.reply(asked)).expect("at once");
    assert_eq!(of(&soon, C), Holding::Silent);
}

#[test]
fn a_message_that_is_lost_is_sent_again() {
    let mut cluster = Cluster::new(3);
    cluster.write(A, KEY, b"v");
    cluster.cut(A, B);
    let asked = cluster.client(A, verify());
    cluster.settle();
    assert_eq!(cluster.reply(asked), None);
    cluster.heal();
    cluster.input(A, Input::Tick);
    cluster.advance(SECOND);
    let held = held(cluster.reply(asked)).expect("asked again");
    assert!(matches!(of(&held, B), Holding::State(Some(_))));
}

#[test]
fn while_a_partition_moves_the_owners_to_come_are_asked_too() {
    let mut cluster = Cluster::ring_of(5, &[A, B, C]);
    cluster.write(A, KEY, b"v");
    cluster.rings(&[A, B, C], Some(&[A, D, E]));
    let asked = cluster.client(A, verify());
    cluster.settle();
    let held = held(cluster.reply(asked)).expect("all have answered");
    let mut nodes: Vec<NodeId> = held.iter().map(|held| held.node).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, [A, B, C, D, E]);
    assert!(matches!(of(&held, C), Holding::State(Some(_))));
}

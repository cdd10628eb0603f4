//! How a node comes to the configs that others have decided: transcripts of one cluster machine.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::sync::Arc;

use torc_protocol::cluster::Cluster;
use torc_protocol::cluster_io::{ClusterInput, ClusterOutput, ClusterSettings, Persisted};
use torc_protocol::cluster_message::ClusterMessage;
use torc_protocol::hlc::Hlc;
use torc_protocol::message::PeerBody;
use torc_protocol::store::{Batch, CommitId, StateKey, StoreError, Write};
use torc_protocol::time::{Mono, Now, SECOND, Wall};
use torc_protocol::wire::{self, Blob};
use torc_ring::{ClusterId, Config, Member, NodeId, Secret};

fn member(id: u64) -> Member {
    Member {
        id: NodeId(id),
        name: format!("n{id}"),
        zone: String::new(),
        weight: 100,
        peer: format!("n{id}:1"),
        http: format!("n{id}:2"),
    }
}

fn now(micros: u64) -> Now {
    Now {
        mono: Mono(SECOND + micros),
        wall: Wall(1_800_000_000 * SECOND + micros),
    }
}

/// Three members with the first config, of which one is looked at, and the second config.
fn first_and_second() -> (Cluster, Config) {
    let mut first = Config::bootstrap(ClusterId(1), (7, Secret([0; 32])), 2, member(1));
    first.current = (1..=3).map(member).collect();
    let mut second = first.clone();
    second.version.0 += 1;
    second.buckets[0].ttl_ms = Some(1_000);
    let encoded = wire::encode_config(&first).expect("encodes");
    let state = BTreeMap::from([
        (StateKey::Decided(first.version), encoded),
        (
            StateKey::Applied,
            first.version.0.to_be_bytes().to_vec().into(),
        ),
    ]);
    let persisted = Persisted::read(member(1), state).expect("it can be read");
    let cluster = Cluster::new(persisted, ClusterSettings::new(1), now(0));
    (cluster, second)
}

/// What a machine wants: messages, and what is to be stored.
#[derive(Default)]
struct Wanted {
    fetches: usize,
    stores: Vec<CommitId>,
}

fn wanted(cluster: &mut Cluster, config: &Config) -> Wanted {
    let stores = |batch: &Batch| {
        let put = |write: &Write| matches!(write, Write::StatePut { key, .. } if *key == StateKey::Decided(config.version));
        batch.writes.iter().any(put)
    };
    let mut wanted = Wanted::default();
    while let Some(output) = cluster.next_output() {
        match output {
            ClusterOutput::Send(_, message) => {
                let PeerBody::Cluster(message) = &message.body else {
                    continue;
                };
                wanted.fetches += usize::from(matches!(message, ClusterMessage::Fetch { .. }));
            }
            ClusterOutput::Commit(id, batch) if stores(&batch) => wanted.stores.push(id),
            _ => {}
        }
    }
    wanted
}

fn from_two(message: ClusterMessage) -> ClusterInput {
    ClusterInput::Peer {
        from: NodeId(2),
        hlc: Hlc(0),
        message,
    }
}

#[test]
fn a_config_that_could_not_be_stored_is_asked_for_again_though_it_came_twice() {
    let (mut cluster, second) = first_and_second();
    let encoded = wire::encode_config(&second).expect("encodes");
    let learn = ClusterMessage::Learn {
        config: Blob(encoded.clone()),
    };
    cluster.handle(now(1), from_two(learn));
    let stores = wanted(&mut cluster, &second).stores;
    assert_eq!(stores.len(), 1, "it is being stored");
    // The answer to a fetch brings it once more meanwhile.
    let configs = ClusterMessage::Configs {
        oldest: second.version,
        latest: second.version,
        configs: vec![Blob(encoded.clone())],
    };
    cluster.handle(now(2), from_two(configs.clone()));
    cluster.handle(
        now(3),
        ClusterInput::Committed(stores[0], Err(StoreError::Full)),
    );
    let mut fetches = wanted(&mut cluster, &second).fetches;
    for turn in 1..100 {
        cluster.handle(now(turn * SECOND / 10), ClusterInput::Tick);
        fetches += wanted(&mut cluster, &second).fetches;
    }
    assert!(fetches > 0, "it asks again");
    cluster.handle(now(10 * SECOND), from_two(configs));
    let stores = wanted(&mut cluster, &second).stores;
    assert_eq!(stores.len(), 1, "there is room by now");
    cluster.handle(
        now(10 * SECOND + 1),
        ClusterInput::Committed(stores[0], Ok(())),
    );
    assert_eq!(
        cluster.latest().map(|config| Arc::clone(config).version),
        Some(second.version)
    );
}

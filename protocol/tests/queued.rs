//! Transcripts of writes that take effect later than they are accepted: minted at one node, stored at
//! another, perhaps more than once.

mod nodes;

use bytes::Bytes;
use torc_protocol::client::{ClientError, ClientOp, ClientReply, Value};
use torc_protocol::hlc::Hlc;
use torc_protocol::record::{Kind, Record};
use torc_protocol::shard_io::Input;
use torc_protocol::store::{StateKey, Sync, Write};
use torc_protocol::time::SECOND;
use torc_protocol::version::Version;
use torc_ring::{NodeId, Quorum};

use nodes::{A, B, C, Cluster, put, stored};

const KEY: &[u8] = b"k";

fn prepare(
    value: Option<&'static [u8]>,
    ttl_ms: Option<u64>,
    context: Option<Version>,
) -> ClientOp {
    ClientOp::Prepare {
        key: Bytes::from_static(KEY),
        value: value.map(|bytes| Value {
            bytes: Bytes::from_static(bytes),
            content_type: Bytes::new(),
            ttl_ms,
        }),
        context,
    }
}

fn store(record: &Record, w: Option<Quorum>) -> ClientOp {
    ClientOp::Store {
        key: Bytes::from_static(KEY),
        record: record.clone(),
        w,
    }
}

fn prepared(cluster: &mut Cluster, op: ClientOp) -> Record {
    let request = cluster.client(A, op);
    cluster.settle();
    match cluster.reply(request) {
        Some(ClientReply::Prepared { record }) => record,
        other => panic!("not prepared: {other:?}"),
    }
}

#[test]
fn a_version_is_minted_without_storing_or_sending_anything() {
    let mut cluster = Cluster::new(3);
    let record = prepared(&mut cluster, prepare(Some(b"v"), None, None));
    assert_eq!(record.version().node, A);
    assert_eq!(&record.value_bytes()[..], b"v");
    assert_eq!(cluster.sent, 0);
    for node in [A, B, C] {
        assert_eq!(cluster.stored(node, KEY), None);
    }
}

#[test]
fn a_write_stored_later_by_another_node_keeps_the_version_of_its_acceptance() {
    let mut cluster = Cluster::new(3);
    let record = prepared(&mut cluster, prepare(Some(b"v"), None, None));
    cluster.advance(60 * SECOND);
    let write = cluster.client(B, store(&record, None));
    cluster.settle();
    assert_eq!(stored(cluster.reply(write)), Some(record.digest()));
    for node in [A, B, C] {
        assert_eq!(cluster.stored(node, KEY), Some(record.clone()));
    }
}

#[test]
fn a_redelivered_write_changes_nothing_whatever_was_written_since() {
    let mut cluster = Cluster::new(3);
    let record = prepared(&mut cluster, prepare(Some(b"queued"), None, None));
    cluster.client(B, store(&record, Some(Quorum::All)));
    cluster.settle();
    let newer = cluster.client(C, put(KEY, b"newer"));
    cluster.settle();
    let newer = stored(cluster.reply(newer)).expect("stored");
    let again = cluster.client(A, store(&record, Some(Quorum::All)));
    cluster.settle();
    assert!(
        matches!(
            cluster.reply(again),
            Some(ClientReply::Stored {
                superseded: true,
                ..
            })
        ),
        "it is told that it is not what a reader sees"
    );
    for node in [A, B, C] {
        let state = cluster.stored(node, KEY).expect("stored");
        assert_eq!(state.digest(), newer);
    }
}

#[test]
fn writes_of_one_key_end_in_the_order_of_acceptance_however_they_are_stored() {
    let mut cluster = Cluster::new(3);
    let first = prepared(&mut cluster, prepare(Some(b"1"), None, None));
    let second = prepared(&mut cluster, prepare(None, None, None));
    assert!(first.version() < second.version());
    for record in [&second, &first] {
        cluster.client(B, store(record, Some(Quorum::All)));
        cluster.settle();
    }
    for node in [A, B, C] {
        let state = cluster.stored(node, KEY).expect("stored");
        assert_eq!(
            (state.kind(), state.digest()),
            (Kind::Tombstone, second.digest())
        );
    }
}

#[test]
fn a_node_that_stores_a_queued_write_orders_its_own_after_it() {
    let mut cluster = Cluster::new(3);
    let ahead = Version {
        hlc: Hlc::from_micros(cluster.now.wall.0 + 30 * SECOND),
        node: NodeId(77),
    };
    let record = prepared(&mut cluster, prepare(Some(b"v"), None, Some(ahead)));
    assert!(record.version() > ahead, "after what its author had seen");
    cluster.client(B, store(&record, Some(Quorum::All)));
    cluster.settle();
    // The clock lies ahead of its durable bound now: the bound is raised first.
    cluster.advance(SECOND);
    let own = cluster.client(B, put(KEY, b"own"));
    cluster.settle();
    cluster.advance(SECOND);
    let own = stored(cluster.reply(own)).expect("stored");
    assert!(own.version > record.version());
}

#[test]
fn a_time_to_live_counts_from_acceptance() {
    let mut cluster = Cluster::new(3);
    let record = prepared(&mut cluster, prepare(Some(b"v"), Some(5_000), None));
    assert_eq!(
        record.expiry(),
        Some(record.version().hlc.micros() + 5 * SECOND)
    );
    cluster.advance(10 * SECOND);
    let write = cluster.client(B, store(&record, None));
    cluster.settle();
    assert!(stored(cluster.reply(write)).is_some());
    let state = cluster.stored(C, KEY).expect("stored");
    assert!(
        !state.is_visible(cluster.now.wall.0),
        "it has expired in the queue"
    );
}

#[test]
fn nothing_is_prepared_before_the_clocks_bound_is_durable() {
    let mut cluster = Cluster::new(1);
    cluster.now.wall.0 += 2 * SECOND;
    cluster.restart_unconfigured(A);
    cluster.hold_commits(&[A]);
    cluster.configure(A);
    let request = cluster.client(A, prepare(Some(b"v"), None, None));
    cluster.settle();
    assert_eq!(
        cluster.reply(request),
        None,
        "a restart could mint it again"
    );
    assert!(matches!(
        cluster.waiting_writes(A)[..],
        [Write::StatePut {
            key: StateKey::HlcBound(0),
            ..
        }]
    ));
    assert_eq!(cluster.commit(A, Ok(())), Some(Sync::Fsync));
    cluster.settle();
    assert!(matches!(
        cluster.reply(request),
        Some(ClientReply::Prepared { .. })
    ));
}

#[test]
fn a_node_whose_clock_is_off_prepares_nothing() {
    let mut cluster = Cluster::new(3);
    cluster.input(A, Input::ClockTrusted(false));
    let request = cluster.client(A, prepare(None, None, None));
    cluster.settle();
    assert_eq!(
        cluster.reply(request),
        Some(ClientReply::Failed(ClientError::ClockDrift))
    );
}

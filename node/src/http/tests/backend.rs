//! A node without a cluster: one shard that keeps its keys in memory, and fails when it is told to.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use torc_protocol::client::{
    ClientError, ClientOp, ClientReply, ClientRequest, Held, Holding, ListedKey, record_of,
};
use torc_protocol::hlc::Hlc;
use torc_protocol::message::Cursor;
use torc_protocol::record::{Kind, Record};
use torc_protocol::shard_io::View;
use torc_protocol::version::Version;
use torc_protocol::wire::Blob;
use torc_ring::{BucketId, ClusterId, Config, Member, NodeId, PartitionId, Secret, Token};

use crate::config::Settings;
use crate::handle::{Handle, Submission};
use crate::metrics::Metrics;

pub(super) const NODE: NodeId = NodeId(0xa1);
pub(super) const SEED: u64 = 0x5eed_0000_0000_5eed;
const BITS: u8 = 4;
/// Keys that begin so are answered only when the test lets them go.
pub(super) const HELD: &[u8] = b"held";

/// The fake.
pub(super) struct Backend {
    pub(super) handle: Handle,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    records: Mutex<BTreeMap<(BucketId, Token, Bytes), Record>>,
    requests: Mutex<Vec<ClientRequest>>,
    failure: Mutex<Option<ClientError>>,
    superseded: Mutex<bool>,
    changed: Notify,
    release: Notify,
}

impl Backend {
    pub(super) fn start(settings: Arc<Settings>) -> Self {
        let (queue, submissions) = mpsc::channel(4_096);
        let handle = Handle::new(settings, Arc::new(Metrics::default()), NODE, vec![queue]);
        handle.set_view(View::new(config(1)));
        handle.update_state(|state| state.not_ready = None);
        let shared = Arc::new(Shared::default());
        tokio::spawn(run(submissions, Arc::clone(&shared), handle.clone()));
        Self { handle, shared }
    }

    /// From now on every request fails so; `None`: no more.
    pub(super) fn fail(&self, error: Option<ClientError>) {
        *self.shared.failure.lock() = error;
    }

    /// From now on every write finds a newer version there.
    pub(super) fn supersede(&self) {
        *self.shared.superseded.lock() = true;
    }

    /// Answers what is held.
    pub(super) fn release(&self) {
        self.shared.release.notify_waiters();
    }

    /// The request that came last.
    pub(super) fn last(&self) -> ClientRequest {
        self.shared
            .requests
            .lock()
            .last()
            .cloned()
            .expect("a request")
    }

    pub(super) fn count(&self) -> usize {
        self.shared.requests.lock().len()
    }
}

/// So many members, of which the first one is this node.
pub(super) fn config(members: u64) -> Config {
    let member = |number: u64| Member {
        id: NodeId(NODE.0 + number),
        name: format!("n{number}"),
        zone: "z".to_owned(),
        weight: 100,
        peer: format!("127.0.0.1:{}", 7_000 + number),
        http: format!("127.0.0.1:{}", 8_000 + number),
    };
    let config = Config::bootstrap(ClusterId(9), (SEED, Secret([0xcd; 32])), BITS, member(0));
    if members == 1 {
        config
    } else {
        config.with_members((0..members).map(member).collect())
    }
}

async fn run(mut submissions: mpsc::Receiver<Submission>, shared: Arc<Shared>, handle: Handle) {
    while let Some(Submission { request, reply }) = submissions.recv().await {
        shared.requests.lock().push(request.clone());
        let (shared, handle) = (Arc::clone(&shared), handle.clone());
        let held = match &request.op {
            ClientOp::Put { key, .. }
            | ClientOp::Prepare { key, .. }
            | ClientOp::Store { key, .. }
            | ClientOp::Get { key, .. } => key.starts_with(HELD),
            ClientOp::Watch { .. } => true,
            ClientOp::List { .. } | ClientOp::Verify { .. } => false,
        };
        if !held {
            let _ = reply.send(answer(&shared, &handle, request.op, request.bucket));
            continue;
        }
        tokio::spawn(async move {
            let answer = if matches!(request.op, ClientOp::Watch { .. }) {
                watch(&shared, &handle, &request).await
            } else {
                shared.release.notified().await;
                answer(&shared, &handle, request.op, request.bucket)
            };
            let _ = reply.send(answer);
        });
    }
}

async fn watch(shared: &Shared, handle: &Handle, request: &ClientRequest) -> ClientReply {
    let ClientOp::Watch { key, r, known } = &request.op else {
        unreachable!("only watches come here")
    };
    let get = || {
        answer(
            shared,
            handle,
            ClientOp::Get {
                key: key.clone(),
                r: *r,
            },
            request.bucket,
        )
    };
    let left = std::time::Duration::from_micros(request.deadline.since(handle.now().mono));
    let waiting = async {
        loop {
            let changed = shared.changed.notified();
            if let ClientReply::Found { record, .. } = get()
                && record.as_ref().map(Record::digest) != *known
            {
                return;
            }
            changed.await;
        }
    };
    let _ = tokio::time::timeout(left, waiting).await;
    get()
}

fn answer(shared: &Shared, handle: &Handle, op: ClientOp, bucket: BucketId) -> ClientReply {
    if let Some(error) = *shared.failure.lock() {
        return ClientReply::Failed(error);
    }
    let now_micros = handle.now().wall.0;
    let mut records = shared.records.lock();
    match op {
        ClientOp::Put { key, value, .. } => {
            let at = (bucket, Token::of(SEED, bucket, &key), key);
            let previous = records.get(&at).map_or(0, |record| record.version().hlc.0);
            let record = record_of(mint(now_micros, previous), value.as_ref(), None);
            let digest = record.digest();
            records.insert(at, record);
            shared.changed.notify_waiters();
            ClientReply::Stored {
                digest,
                superseded: *shared.superseded.lock(),
            }
        }
        ClientOp::Prepare { value, .. } => ClientReply::Prepared {
            record: record_of(mint(now_micros, 0), value.as_ref(), None),
        },
        ClientOp::Store { key, record, .. } => {
            let at = (bucket, Token::of(SEED, bucket, &key), key);
            let digest = record.digest();
            let newest = records.get(&at).map(Record::digest);
            let superseded = newest > Some(digest);
            if !superseded {
                records.insert(at, record);
                shared.changed.notify_waiters();
            }
            ClientReply::Stored { digest, superseded }
        }
        ClientOp::Get { key, .. } | ClientOp::Watch { key, .. } => {
            let at = (bucket, Token::of(SEED, bucket, &key), key);
            ClientReply::Found {
                record: records.get(&at).cloned(),
                now_micros,
            }
        }
        ClientOp::Verify { key } => {
            let at = (bucket, Token::of(SEED, bucket, &key), key);
            let digest = records.get(&at).map(Record::digest);
            let held = Held {
                node: NODE,
                floor: Hlc::from_micros(1_000_000),
                holding: Holding::State(digest),
            };
            let silent = Held {
                node: NodeId(NODE.0 + 1),
                floor: Hlc(0),
                holding: Holding::Silent,
            };
            ClientReply::Verified {
                held: vec![held, silent],
            }
        }
        ClientOp::List {
            partition,
            after,
            prefix,
            limit,
        } => list(
            &records,
            (bucket, partition),
            after.as_ref(),
            (&prefix, limit.min(7), now_micros),
        ),
    }
}

fn mint(now_micros: u64, previous: u64) -> Version {
    Version {
        hlc: Hlc(Hlc::from_micros(now_micros).0.max(previous + 1)),
        node: NODE,
    }
}

/// Looks at a few keys only, so that partitions take several answers.
fn list(
    records: &BTreeMap<(BucketId, Token, Bytes), Record>,
    (bucket, partition): (BucketId, PartitionId),
    after: Option<&Cursor>,
    (prefix, limit, now_micros): (&[u8], usize, u64),
) -> ClientReply {
    let mut keys = Vec::new();
    let mut looked = 0;
    let mut next = None;
    for ((of, token, key), record) in records {
        let place = Cursor {
            token: *token,
            key: Blob(key.clone()),
        };
        if *of != bucket
            || token.partition(BITS) != partition
            || after.is_some_and(|after| place <= *after)
        {
            continue;
        }
        if record.kind() == Kind::Value && record.is_visible(now_micros) && key.starts_with(prefix)
        {
            keys.push(ListedKey {
                key: key.clone(),
                digest: record.digest(),
                value_len: record.value_bytes().len() as u64,
                expiry: record.expiry(),
            });
        }
        looked += 1;
        if looked == limit {
            next = Some(place);
            break;
        }
    }
    ClientReply::Listed { keys, next }
}

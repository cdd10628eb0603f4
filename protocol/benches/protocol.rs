//! What the core costs for each request: a quorum's tally, a whole write and a whole read over three nodes
//! in memory, and the codec. No disk, no network: what is left is the protocol's own work.

use std::collections::{BTreeMap, VecDeque};
use std::hint::black_box;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use torc_protocol::client::{ClientOp, ClientReply, ClientRequest, RequestId, Value};
use torc_protocol::hlc::Hlc;
use torc_protocol::message::{
    OpId, PeerBody, PeerMessage, RecordKey, Request, RequestKind, WritePurpose,
};
use torc_protocol::quorum::{Tally, Verdict};
use torc_protocol::record::{Parts, Record};
use torc_protocol::shard::{Shard, ShardSettings};
use torc_protocol::shard_io::{Input, Output, View};
use torc_protocol::store::{CommitId, Found, Query, Write};
use torc_protocol::time::{Mono, Now, SECOND, Wall};
use torc_protocol::version::Version;
use torc_protocol::wire;
use torc_ring::{BucketId, ClusterId, Config, Member, NodeId, RingVersion, Secret, Token};

const VALUE: &[u8] = &[7; 1024];

fn tally(c: &mut Criterion) {
    let owners: Vec<NodeId> = (1..=3).map(NodeId).collect();
    let target: Vec<NodeId> = (3..=5).map(NodeId).collect();
    let mut group = c.benchmark_group("tally");
    group.bench_function("2 of 3", |b| {
        b.iter(|| {
            let mut tally = Tally::new(black_box(&owners), 2);
            tally.ack(owners[0]);
            tally.ack(owners[1]);
            assert_eq!(tally.verdict(), Verdict::Met);
        });
    });
    group.bench_function("2 of 3 in both rings", |b| {
        b.iter(|| {
            let mut tally = Tally::joint(black_box(&owners), 2, black_box(&target), 2);
            for node in [owners[0], target[0], target[1]] {
                tally.ack(node);
            }
            assert_eq!(tally.verdict(), Verdict::Met);
        });
    });
    group.finish();
}

/// Three nodes of one shard each, with disks that are maps.
struct Trio {
    shards: Vec<Shard>,
    disks: Vec<BTreeMap<RecordKey, Record>>,
    inbox: VecDeque<(usize, Input)>,
    now: Now,
    requests: u64,
}

impl Trio {
    fn new() -> Self {
        let member = |id: u64| Member {
            id: NodeId(id),
            name: format!("n{id}"),
            zone: String::new(),
            weight: 100,
            peer: format!("n{id}:7001"),
            http: format!("n{id}:8081"),
        };
        let alone = Config::bootstrap(ClusterId(1), (7, Secret([0; 32])), 10, member(1));
        let view = View::new(alone.with_members((1..=3).map(member).collect()));
        let now = Now {
            mono: Mono(SECOND),
            wall: Wall(1_800_000_000 * SECOND),
        };
        let mut trio = Self {
            shards: (1..=3)
                .map(|id| Shard::new(ShardSettings::new(NodeId(id), 0, 1), &[], now))
                .collect(),
            disks: vec![BTreeMap::new(); 3],
            inbox: VecDeque::new(),
            now,
            requests: 0,
        };
        for at in 0..3 {
            trio.inbox.push_back((at, Input::Config(Arc::clone(&view))));
            trio.inbox.push_back((at, Input::Serve));
        }
        trio.settle();
        trio
    }

    /// What the first node answers to a client, after everything has come to rest.
    fn ask(&mut self, op: ClientOp) -> ClientReply {
        self.requests += 1;
        let request = ClientRequest {
            deadline: self.now.mono.plus(2 * SECOND),
            trace: Bytes::new(),
            bucket: BucketId(1),
            op,
        };
        let input = Input::Client(RequestId(self.requests), request);
        self.inbox.push_back((0, input));
        self.settle().expect("an answer")
    }

    fn settle(&mut self) -> Option<ClientReply> {
        let mut reply = None;
        while let Some((at, input)) = self.inbox.pop_front() {
            self.now.mono = self.now.mono.plus(1);
            self.now.wall = Wall(self.now.wall.0 + 1);
            self.shards[at].handle(self.now, input);
            while let Some(output) = self.shards[at].next_output() {
                match output {
                    Output::Reply(_, answer) => reply = Some(answer),
                    Output::Send(to, message) => {
                        let from = NodeId(at as u64 + 1);
                        self.inbox
                            .push_back((to.0 as usize - 1, Input::Peer(from, message)));
                    }
                    Output::Read(id, Query::Record(key)) => {
                        let found = Found::Record(self.disks[at].get(&key).cloned());
                        self.inbox.push_back((at, Input::Read(id, Ok(found))));
                    }
                    Output::Commit(id, batch) => self.commit(at, id, batch.writes),
                    _ => {}
                }
            }
        }
        reply
    }

    fn commit(&mut self, at: usize, id: CommitId, writes: Vec<Write>) {
        for write in writes {
            if let Write::Merge { key, record } = write {
                let merged = match self.disks[at].remove(&key) {
                    Some(old) => old.merge(record).expect("one conflict mode"),
                    None => record,
                };
                self.disks[at].insert(key, merged);
            }
        }
        self.inbox.push_back((at, Input::Committed(id, Ok(()))));
    }
}

fn put(key: &Bytes) -> ClientOp {
    ClientOp::Put {
        key: key.clone(),
        value: Some(Value {
            bytes: Bytes::from_static(VALUE),
            content_type: Bytes::new(),
            ttl_ms: None,
        }),
        w: None,
        sloppy: None,
        fsync: false,
        context: None,
    }
}

fn coordinators(c: &mut Criterion) {
    let mut trio = Trio::new();
    let keys: Vec<Bytes> = (0..1024)
        .map(|index| Bytes::from(format!("user:{index:08}")))
        .collect();
    let mut next = 0;
    let mut group = c.benchmark_group("three nodes, 1 KiB");
    group.bench_function("write, w = quorum", |b| {
        b.iter(|| {
            next = (next + 1) % keys.len();
            let reply = trio.ask(put(&keys[next]));
            assert!(matches!(reply, ClientReply::Stored { .. }));
        });
    });
    for key in &keys {
        trio.ask(put(key));
    }
    group.bench_function("read, r = quorum", |b| {
        b.iter(|| {
            next = (next + 1) % keys.len();
            let key = keys[next].clone();
            let reply = trio.ask(ClientOp::Get { key, r: None });
            assert!(matches!(
                reply,
                ClientReply::Found {
                    record: Some(_),
                    ..
                }
            ));
        });
    });
    group.finish();
}

fn codec(c: &mut Criterion) {
    let bucket = BucketId(1);
    let key = Bytes::from_static(b"user:00001234");
    let record = Record::value(Parts {
        version: Version {
            hlc: Hlc(1 << 60),
            node: NodeId(1),
        },
        expiry: None,
        content_type: b"",
        value: VALUE,
    });
    let request = Request {
        op: OpId(1),
        ring: RingVersion(7),
        remaining_us: 2_000_000,
        trace: wire::Blob::default(),
        kind: RequestKind::Write {
            key: RecordKey {
                bucket,
                token: Token::of(7, bucket, &key),
                key,
            },
            record,
            purpose: WritePurpose::Client,
            fsync: false,
            floor: Hlc(0),
        },
    };
    let message = PeerMessage {
        hlc: Hlc(1 << 60),
        body: PeerBody::Request(request),
    };
    let mut frame = BytesMut::new();
    let len = wire::encode(&message, &mut frame).expect("within the limit");
    let frame = frame.freeze();
    let mut group = c.benchmark_group("codec, a write of 1 KiB");
    group.throughput(Throughput::Bytes(len as u64));
    let mut out = BytesMut::with_capacity(2 * len);
    group.bench_function("encode", |b| {
        b.iter(|| {
            out.clear();
            wire::encode(black_box(&message), &mut out).expect("within the limit")
        });
    });
    group.bench_function("decode", |b| {
        b.iter(|| wire::decode(black_box(&frame)).expect("a message"));
    });
    group.finish();
}

criterion_group!(benches, tally, coordinators, codec);
criterion_main!(benches);

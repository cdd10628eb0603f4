//! What the ring costs: a table once for each configuration, a lookup for each request.

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use torc_ring::change::stage;
use torc_ring::{BucketId, ClusterId, Config, Member, NodeId, Plan, Ring, RingChange, Secret};
use xxhash_rust::xxh3::xxh3_64;

fn config(nodes: u64, zones: u64) -> Config {
    let member = |index: u64| Member {
        id: NodeId(xxh3_64(&index.to_be_bytes())),
        name: format!("n{index}"),
        zone: format!("z{}", index % zones),
        weight: 100,
        peer: format!("n{index}:7001"),
        http: format!("n{index}:8081"),
    };
    let config = Config::bootstrap(ClusterId(1), (7, Secret([0; 32])), 10, member(0));
    config.with_members((0..nodes).map(member).collect())
}

fn tables(c: &mut Criterion) {
    let mut group = c.benchmark_group("table");
    group.sample_size(20);
    for (nodes, zones) in [(3, 1), (100, 1), (1000, 1), (1000, 3)] {
        let config = config(nodes, zones);
        group.bench_function(
            format!("{nodes} nodes, {zones} zones, 1024 partitions"),
            |b| {
                b.iter(|| Ring::compute(black_box(&config)));
            },
        );
    }
    for nodes in [100, 1000] {
        let (before, after) = (config(nodes - 1, 1), config(nodes, 1));
        group.bench_function(format!("plan with both tables, {nodes} nodes"), |b| {
            b.iter(|| Plan::between(black_box(&before), black_box(&after)));
        });
        let ring = before.regrouped(before.current.clone());
        let newcomer = after.current.iter().find(|m| !before.is_current(m.id));
        let newcomer = newcomer.expect("one more member");
        let node = newcomer.id;
        let waiting = BTreeMap::from([(node, newcomer.clone())]);
        group.bench_function(format!("a join staged and planned, {nodes} nodes"), |b| {
            b.iter(|| {
                let join = [RingChange::Join { node }];
                let joint = stage(black_box(&ring), &join, &waiting).expect("a newcomer");
                Plan::running(&joint)
            });
        });
    }
    group.finish();
}

fn lookups(c: &mut Criterion) {
    let ring = Ring::compute(&config(1000, 1));
    let keys: Vec<String> = (0..4096).map(|index| format!("user:{index:08}")).collect();
    let mut next = 0;
    let mut key = move || {
        next = (next + 1) % keys.len();
        keys[next].clone()
    };
    let mut group = c.benchmark_group("lookup");
    group.bench_function("token, 13-byte key", |b| {
        b.iter(|| ring.token(BucketId(1), black_box(b"user:00001234")));
    });
    let tokens: Vec<_> = (0..4096)
        .map(|_| ring.token(BucketId(1), key().as_bytes()))
        .collect();
    let mut at = 0;
    group.bench_function("owners of a token", |b| {
        b.iter(|| {
            at = (at + 1) % tokens.len();
            ring.owners(black_box(3), ring.partition(tokens[at]))
                .first()
                .copied()
        });
    });
    group.bench_function("key to owners", |b| {
        b.iter_batched_ref(
            &mut key,
            |key| {
                ring.owners(
                    black_box(3),
                    ring.partition(ring.token(BucketId(1), key.as_bytes())),
                )[0]
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, tables, lookups);
criterion_main!(benches);

//! A client's request begins: can it be served, whom does it concern, under which version.

use bytes::Bytes;
use torc_ring::{Bucket, BucketId, ConflictMode, NodeId, PartitionId, Quorum, Token};

use crate::client::{
    ClientError, ClientOp, ClientReply, ClientRequest, RequestId, Value, record_of,
};
use crate::core::{Ask, Caller, Step};
use crate::get::{self, For, Get};
use crate::list::{List, What};
use crate::message::{OpId, RecordKey};
use crate::mutant::Mutant;
use crate::put::{self, Put};
use crate::quorum::Need;
use crate::record::{Kind, Record};
use crate::replicate::{self};
use crate::shard_io::Event;
use crate::time::{Mono, Wall};
use crate::verify::Verify;
use crate::version::Version;
use crate::watch::{Watch, Wish};
use crate::wire::Blob;

use super::Shard;
use super::op::Op;

impl Shard {
    pub(super) fn on_client(&mut self, id: RequestId, request: ClientRequest, started: Mono) {
        match self.plan_client(&request) {
            Ok(bucket) => self.start(id, request, &bucket, started),
            Err(error) => self.refuse(id, &request, started, error),
        }
    }

    /// Keeps a request until it can be served, within a bound.
    pub(super) fn park(&mut self, id: RequestId, request: ClientRequest, started: Mono) {
        if self.parked.len() < self.core.settings.ops_max {
            self.parked.push_back((id, request, started));
        } else {
            self.refuse(id, &request, started, ClientError::Overloaded);
        }
    }

    /// The request's bucket, if the request can be served now.
    fn plan_client(&self, request: &ClientRequest) -> Result<Bucket, ClientError> {
        let core = &self.core;
        let Some(view) = core.view.as_ref().filter(|_| core.serving) else {
            return Err(ClientError::NotReady);
        };
        let open = match request.op {
            ClientOp::Watch { .. } => self.watches,
            _ => self.open,
        };
        if open >= core.settings.ops_max {
            return Err(ClientError::Overloaded);
        }
        let Some(bucket) = view.config.bucket_by_id(request.bucket) else {
            return Err(ClientError::NoBucket);
        };
        if bucket.conflict != ConflictMode::Lww {
            return Err(ClientError::Mode);
        }
        let quorum = match &request.op {
            ClientOp::Put { w, .. } | ClientOp::Store { w, .. } => *w,
            ClientOp::Get { r, .. } | ClientOp::Watch { r, .. } => *r,
            ClientOp::List { .. } | ClientOp::Prepare { .. } | ClientOp::Verify { .. } => None,
        };
        if let Some(Quorum::Count(given)) = quorum
            && given > bucket.n
        {
            return Err(ClientError::QuorumTooLarge { given, n: bucket.n });
        }
        let mints = match &request.op {
            ClientOp::Put { .. } | ClientOp::Prepare { .. } => true,
            ClientOp::Store { record, .. } if record.kind() == Kind::Siblings => {
                return Err(ClientError::Mode);
            }
            ClientOp::Store { .. }
            | ClientOp::Get { .. }
            | ClientOp::Watch { .. }
            | ClientOp::Verify { .. }
            | ClientOp::List { .. } => false,
        };
        if mints && !core.clock_is_fit() {
            return Err(ClientError::ClockDrift);
        }
        Ok(bucket.clone())
    }

    pub(super) fn refuse(
        &mut self,
        id: RequestId,
        request: &ClientRequest,
        started: Mono,
        error: ClientError,
    ) {
        if error == ClientError::Overloaded {
            self.core.event(Event::Shed {
                reason: "shard_requests",
            });
        }
        let ask = self.ask(OpId(0), request);
        let mut caller = Caller {
            request: Some(id),
            started,
            op: name_of(&request.op),
        };
        caller.answer(&mut self.core, &ask, 0, ClientReply::Failed(error));
    }

    pub(super) fn ask(&self, op: OpId, request: &ClientRequest) -> Ask {
        Ask {
            op,
            ring: self.core.ring_version(),
            deadline: request.deadline,
            trace: request.trace.clone(),
        }
    }

    pub(super) fn start(
        &mut self,
        id: RequestId,
        request: ClientRequest,
        bucket: &Bucket,
        started: Mono,
    ) {
        let caller = Caller {
            request: Some(id),
            started,
            op: name_of(&request.op),
        };
        let op = self.core.new_op();
        let ask = self.ask(op, &request);
        let started = match request.op.clone() {
            ClientOp::Put {
                key,
                value,
                w,
                sloppy,
                fsync,
                context,
            } => {
                let key = self.record_key(request.bucket, key);
                match self.mint((bucket, started), value.as_ref(), context) {
                    Ok(record) => {
                        let choice = PutChoice { w, sloppy, fsync };
                        self.start_put((ask, caller), (key, record), bucket, choice)
                    }
                    Err(MintRefused::Park) => {
                        let started = caller.started;
                        self.park(id, request, started);
                        self.core.renew_bound();
                        return;
                    }
                    Err(MintRefused::With(error)) => Err((caller, error)),
                }
            }
            ClientOp::Prepare { value, context, .. } => {
                match self.mint((bucket, started), value.as_ref(), context) {
                    Ok(record) => {
                        let mut caller = caller;
                        caller.answer(&mut self.core, &ask, 0, ClientReply::Prepared { record });
                        Ok(())
                    }
                    Err(MintRefused::Park) => {
                        let started = caller.started;
                        self.park(id, request, started);
                        self.core.renew_bound();
                        return;
                    }
                    Err(MintRefused::With(error)) => Err((caller, error)),
                }
            }
            ClientOp::Store { key, record, w } => {
                let key = self.record_key(request.bucket, key);
                // What is written here next orders after it, as after a peer's message.
                let wall = self.core.now.wall;
                self.core.clock.observe(record.version().hlc, wall);
                let choice = PutChoice {
                    w,
                    sloppy: None,
                    fsync: false,
                };
                self.start_put((ask, caller), (key, record), bucket, choice)
            }
            ClientOp::Get { key, r } => {
                let key = self.record_key(request.bucket, key);
                self.start_get((ask, caller), key, For::Client, (bucket, r))
            }
            ClientOp::Watch { key, r, known } => {
                let key = self.record_key(request.bucket, key);
                self.start_watch((ask, caller), key, r, known);
                Ok(())
            }
            ClientOp::Verify { key } => {
                let key = self.record_key(request.bucket, key);
                self.start_verify((ask, caller), key, bucket);
                Ok(())
            }
            ClientOp::List {
                partition,
                after,
                prefix,
                limit,
            } => {
                let limit = limit.clamp(1, replicate::LIST_MAX as usize);
                let what = What {
                    bucket: bucket.id,
                    partition,
                    after,
                    prefix: Blob(prefix),
                    limit,
                };
                self.start_list((ask, caller), what, bucket)
            }
        };
        if let Err((caller, error)) = started {
            self.refuse(
                id,
                &ClientRequest {
                    op: request.op,
                    ..request
                },
                caller.started,
                error,
            );
        }
    }

    pub(super) fn record_key(&self, bucket: BucketId, key: Bytes) -> RecordKey {
        let seed = self.core.view.as_ref().map_or(0, |view| view.config.seed);
        RecordKey {
            bucket,
            token: Token::of(seed, bucket, &key),
            key,
        }
    }

    /// A record under a fresh version that orders after what its author had read, and after all that was
    /// acknowledged before the request began.
    fn mint(
        &mut self,
        (bucket, started): (&Bucket, Mono),
        value: Option<&Value>,
        context: Option<Version>,
    ) -> Result<Record, MintRefused> {
        let wall = self.core.now.wall;
        if let Some(seen) = context
            && !self.core.has(Mutant::ContextUnheard)
            && !self.core.clock.observe(seen.hlc, wall)
        {
            return Err(MintRefused::With(ClientError::ContextFromFuture));
        }
        let arrived = Wall(wall.0.saturating_sub(self.core.now.mono.since(started)));
        let Ok(hlc) = self.core.clock.mint_since(arrived, wall) else {
            return Err(MintRefused::Park);
        };
        let version = Version {
            hlc,
            node: self.core.node(),
        };
        Ok(record_of(version, value, bucket.ttl_ms))
    }

    pub(super) fn start_put(
        &mut self,
        (ask, caller): (Ask, Caller),
        (key, record): (RecordKey, Record),
        bucket: &Bucket,
        choice: PutChoice,
    ) -> Result<(), (Caller, ClientError)> {
        let plan = self.put_plan(bucket, &key, choice);
        if let Some(error) = self.unavailable(&plan.need, plan.stand_ins.len()) {
            return Err((caller, error));
        }
        let op = ask.op;
        self.open += 1;
        let put = Put::start(&mut self.core, (ask, caller), (key, record), (plan, choice));
        self.ops.insert(op, Op::Put(Box::new(put)));
        Ok(())
    }

    pub(super) fn put_plan(
        &self,
        bucket: &Bucket,
        key: &RecordKey,
        choice: PutChoice,
    ) -> put::Plan {
        let partition = self.core.partition(key);
        let w = choice.w.unwrap_or(bucket.w);
        let need = self.core.need(bucket, partition, |n| w.required(n));
        let mut stand_ins = Vec::new();
        // Nobody stands in for the owners of a partition that moves: what a stand-in holds is not where
        // those that cover the partition look for it.
        if choice.sloppy.unwrap_or(bucket.sloppy)
            && !need.is_joint()
            && let Some(view) = self.core.view.as_ref()
        {
            let next = view.ring.stand_ins(bucket.n, partition);
            let owners = need.nodes();
            let dead_owners = owners.len() - self.alive(&owners);
            let alive = next
                .iter()
                .copied()
                .filter(|&node| !self.core.dead.contains(&node) && view.may_stand_in(node));
            stand_ins = alive.take(dead_owners).collect();
        }
        put::Plan { need, stand_ins }
    }

    fn alive(&self, owners: &[NodeId]) -> usize {
        owners
            .iter()
            .filter(|node| !self.core.dead.contains(node))
            .count()
    }

    /// Why it is not worth trying, if too few are alive, in either ring, together with `extra` that stand in.
    fn unavailable(&self, need: &Need, extra: usize) -> Option<ClientError> {
        let able = |node| !self.core.dead.contains(&node);
        let (required, alive) = need.shortage(able, extra)?;
        Some(ClientError::Unavailable { required, alive })
    }

    pub(super) fn start_get(
        &mut self,
        (ask, caller): (Ask, Caller),
        key: RecordKey,
        destination: For,
        (bucket, r): (&Bucket, Option<Quorum>),
    ) -> Result<(), (Caller, ClientError)> {
        let plan = self.get_plan(bucket, &key, r);
        if let Some(error) = self.unavailable(&plan.need, 0) {
            return Err((caller, error));
        }
        let op = ask.op;
        self.open += usize::from(caller.request.is_some());
        let get = Get::start(&mut self.core, (ask, caller), key, destination, (plan, r));
        self.ops.insert(op, Op::Get(Box::new(get)));
        Ok(())
    }

    pub(super) fn get_plan(
        &self,
        bucket: &Bucket,
        key: &RecordKey,
        r: Option<Quorum>,
    ) -> get::Plan {
        let partition = self.core.partition(key);
        let (r, w) = (r.unwrap_or(bucket.r), bucket.w);
        let need = self.core.need_to_read(bucket, partition, |n| r.required(n));
        let repair_need = self.core.need_to_repair(bucket, partition, |n| {
            let rest = (n + 1).saturating_sub(r.required(n));
            w.required(n).max(rest).min(n)
        });
        get::Plan {
            order: self.best_first(need.nodes()),
            need,
            repair: bucket.read_repair,
            repair_need,
        }
    }

    /// Owners in the order in which they are asked: this node, the same zone, low latency, the dead last.
    pub(super) fn best_first(&self, mut owners: Vec<NodeId>) -> Vec<NodeId> {
        let core = &self.core;
        let zone_of = |node| {
            let member = core.view.as_ref().and_then(|view| view.config.member(node));
            member.is_some_and(|member| member.zone == core.settings.zone)
        };
        owners.sort_by_cached_key(|&node| {
            let dead = core.dead.contains(&node);
            (
                dead,
                node != core.node(),
                !zone_of(node),
                core.latency.mean(node) / 256,
                node,
            )
        });
        owners
    }

    pub(super) fn start_list(
        &mut self,
        ids: (Ask, Caller),
        what: What,
        bucket: &Bucket,
    ) -> Result<(), (Caller, ClientError)> {
        let (order, need) = self.list_plan(bucket, what.partition);
        if let Some(error) = self.unavailable(&need, 0) {
            return Err((ids.1, error));
        }
        let op = ids.0.op;
        self.open += 1;
        let list = List::start(&mut self.core, ids, what, (order, need));
        self.ops.insert(op, Op::List(Box::new(list)));
        Ok(())
    }

    pub(super) fn list_plan(&self, bucket: &Bucket, partition: PartitionId) -> (Vec<NodeId>, Need) {
        let required = |n| bucket.r.required(n);
        let need = self.core.need_to_read(bucket, partition, required);
        (self.best_first(need.nodes()), need)
    }

    fn start_verify(&mut self, ids: (Ask, Caller), key: RecordKey, bucket: &Bucket) {
        let owners = self.all_owners(bucket, &key);
        let op = ids.0.op;
        self.open += 1;
        let verify = Verify::start(&mut self.core, ids, key, owners);
        self.ops.insert(op, Op::Verify(Box::new(verify)));
    }

    /// The owners of a key in order of preference, then those that it will have.
    pub(super) fn all_owners(&self, bucket: &Bucket, key: &RecordKey) -> Vec<NodeId> {
        let Some(view) = self.core.view.as_ref() else {
            return Vec::new();
        };
        let owners = view.ring.owners_of(bucket, self.core.partition(key));
        let mut all = owners.current.to_vec();
        let target = owners.target.unwrap_or_default();
        all.extend(target.iter().filter(|node| !owners.current.contains(node)));
        all
    }

    pub(super) fn start_watch(
        &mut self,
        ids: (Ask, Caller),
        key: RecordKey,
        r: Option<Quorum>,
        known: Option<crate::version::Digest>,
    ) {
        let op = ids.0.op;
        self.watches += 1;
        self.ops
            .insert(op, Op::Watch(Box::new(Watch::new(ids, key, r, known))));
        self.register_watch(op);
    }

    pub(super) fn register_watch(&mut self, op: OpId) {
        let Some(Op::Watch(watch)) = self.ops.get_mut(&op) else {
            return;
        };
        let bucket = self
            .core
            .view
            .as_ref()
            .and_then(|view| view.config.bucket_by_id(watch.key.bucket));
        let owners = bucket.map_or_else(Vec::new, |b| {
            let partition = self.core.partition(&watch.key);
            self.core.need_to_read(b, partition, |n| n).nodes()
        });
        if watch.register(&mut self.core, &owners) == Wish::Read {
            self.read_for_watch(op);
        }
    }

    pub(super) fn read_for_watch(&mut self, op: OpId) {
        let Some(Op::Watch(watch)) = self.ops.get(&op) else {
            return;
        };
        let (key, r, ring) = (watch.key.clone(), watch.r, self.core.ring_version());
        let (deadline, trace) = (watch.ask.deadline, watch.ask.trace.clone());
        let Some(bucket) = self
            .core
            .view
            .as_ref()
            .and_then(|view| view.config.bucket_by_id(key.bucket))
            .cloned()
        else {
            return;
        };
        let read = self.core.new_op();
        if let Some(Op::Watch(watch)) = self.ops.get_mut(&op) {
            watch.on_read_started(read);
        }
        let ask = Ask {
            op: read,
            ring,
            deadline,
            trace,
        };
        let caller = Caller {
            request: None,
            started: self.core.now.mono,
            op: "get",
        };
        if let Err((_, error)) = self.start_get((ask, caller), key, For::Watch(op), (&bucket, r)) {
            self.on_watch_outcome(op, Err(error));
        }
    }

    pub(super) fn on_watch_outcome(&mut self, op: OpId, outcome: get::Outcome) {
        let Some(Op::Watch(watch)) = self.ops.get_mut(&op) else {
            return;
        };
        let failed = outcome.is_err();
        let (step, wish) = watch.on_outcome(&mut self.core, outcome);
        match (step, wish) {
            (Step::Done, _) => self.end(op),
            // After a failure the next registration reads again.
            (Step::Wait, Wish::Read) if !failed => self.read_for_watch(op),
            (Step::Wait, _) => {}
        }
    }
}

/// What a client chose for its write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PutChoice {
    pub(crate) w: Option<Quorum>,
    pub(crate) sloppy: Option<bool>,
    pub(crate) fsync: bool,
}

enum MintRefused {
    Park,
    With(ClientError),
}

fn name_of(op: &ClientOp) -> &'static str {
    match op {
        ClientOp::Put { value: Some(_), .. } => "put",
        ClientOp::Put { value: None, .. } => "delete",
        ClientOp::Prepare { .. } => "prepare",
        ClientOp::Store { .. } => "store",
        ClientOp::Get { .. } => "get",
        ClientOp::Watch { .. } => "watch",
        ClientOp::Verify { .. } => "verify",
        ClientOp::List { .. } => "list",
    }
}

//! One shard: the single owner of a slice of a node's partitions, as coordinator and as replica.
//!
//! A partition belongs to one shard, so that a key's read-merge-write needs no lock. Everything that
//! happens comes in through [`Shard::handle`], everything wanted comes out of [`Shard::next_output`];
//! the same inputs give the same outputs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use torc_ring::{Bucket, BucketId, ConflictMode, NodeId, Quorum, RingVersion, Token};

use crate::client::{ClientError, ClientOp, ClientReply, ClientRequest, RequestId, Value};
use crate::core::{Ask, Caller, Core, HOUSEKEEPING, Step, Timer};
use crate::get::{self, For, Get};
use crate::hints::{Hints, StandIn};
use crate::list::{List, What};
use crate::message::{
    OpId, PeerBody, PeerMessage, RecordKey, Refusal, Reply, ReplyKind, Request, RequestKind,
};
use crate::put::{self, Put};
use crate::record::{KEY_LEN_MAX, Parts, Record};
use crate::replicate::{self, Replica};
use crate::shard_io::{Event, Input, Output, View};
use crate::store::HintTotal;
use crate::time::{Mono, Now};
use crate::version::Version;
use crate::watch::{Watch, Wish};
use crate::wire::Blob;

pub use crate::core::ShardSettings;

/// A slice of a node's partitions.
#[derive(Debug)]
pub struct Shard {
    core: Core,
    ops: BTreeMap<OpId, Op>,
    replica: Replica,
    hints: Hints,
    /// Answered writes that wait for slow owners, oldest first; may name some that are over already.
    lingering: VecDeque<OpId>,
    /// Requests that wait for the clock's bound or for the end of a freeze.
    parked: VecDeque<(RequestId, ClientRequest, Mono)>,
    /// Clients that have no answer yet.
    open: usize,
    drain: Option<RingVersion>,
    freezing: Option<RingVersion>,
}

#[derive(Debug)]
enum Op {
    Put(Box<Put>),
    Get(Box<Get>),
    List(Box<List>),
    Watch(Box<Watch>),
}

impl Shard {
    /// A shard that has no config yet and does not serve. `totals` are the hints found on disk.
    #[must_use]
    pub fn new(settings: ShardSettings, totals: &[HintTotal], now: Now) -> Self {
        let mut core = Core::new(settings, now);
        core.timers.insert((now.mono, Timer::Housekeeping));
        let replica = Replica::new(&core);
        let hints = Hints::new(&core, totals);
        Self {
            core,
            ops: BTreeMap::new(),
            replica,
            hints,
            lingering: VecDeque::new(),
            parked: VecDeque::new(),
            open: 0,
            drain: None,
            freezing: None,
        }
    }

    /// Takes what happened.
    pub fn handle(&mut self, now: Now, input: Input) {
        self.core.now = now;
        match input {
            Input::Client(id, request) => self.on_client(id, request, now.mono),
            Input::Peer(from, message) => self.on_peer(from, message),
            Input::Read(id, result) => {
                if !self.hints.on_read(&mut self.core, id, &result) {
                    self.replica.on_read(&mut self.core, id, result);
                }
            }
            Input::Committed(id, result) => self.on_committed(id, result),
            Input::Liveness(dead) => {
                self.core.dead = dead
                    .into_iter()
                    .filter(|&node| node != self.core.node())
                    .collect();
                self.hints.housekeeping(&mut self.core);
            }
            Input::ClockTrusted(trusted) => self.core.clock_trusted = trusted,
            Input::Config(view) => self.on_config(view),
            Input::Freeze(ring) => {
                if ring == self.core.ring_version() {
                    self.core.frozen = Some(ring);
                    self.freezing = Some(ring);
                }
            }
            Input::Serve => {
                self.core.serving = true;
                self.hints.housekeeping(&mut self.core);
            }
            Input::Tick => {}
        }
        self.ring_timers();
        while let Some(message) = self.core.loopback.pop_front() {
            self.on_peer(self.core.node(), message);
        }
        self.announce();
    }

    /// What is wanted next; to be asked until it is `None`.
    pub fn next_output(&mut self) -> Option<Output> {
        self.core.out.pop_front()
    }

    /// When [`Input::Tick`] is due, if nothing else happens before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Mono> {
        self.core.timers.first().map(|&(at, _)| at)
    }

    /// Clients that have no answer yet; for bounds and metrics.
    #[must_use]
    pub fn open_requests(&self) -> usize {
        self.open + self.parked.len()
    }

    fn on_client(&mut self, id: RequestId, request: ClientRequest, started: Mono) {
        match self.plan_client(&request) {
            Ok(bucket) => self.start(id, request, &bucket, started),
            Err(Refused::Park) => self.park(id, request, started),
            Err(Refused::With(error)) => self.refuse(id, &request, started, error),
        }
    }

    /// Keeps a request until it can be served, within a bound.
    fn park(&mut self, id: RequestId, request: ClientRequest, started: Mono) {
        if self.parked.len() < self.core.settings.ops_max {
            self.parked.push_back((id, request, started));
        } else {
            self.refuse(id, &request, started, ClientError::Overloaded);
        }
    }

    /// The request's bucket, if the request can be served now.
    fn plan_client(&self, request: &ClientRequest) -> Result<Bucket, Refused> {
        let core = &self.core;
        let Some(view) = core.view.as_ref().filter(|_| core.serving) else {
            return Err(Refused::With(ClientError::NotReady));
        };
        if self.open >= core.settings.ops_max {
            return Err(Refused::With(ClientError::Overloaded));
        }
        let Some(bucket) = view.config.bucket_by_id(request.bucket) else {
            return Err(Refused::With(ClientError::NoBucket));
        };
        if bucket.conflict != ConflictMode::Lww {
            return Err(Refused::With(ClientError::Mode));
        }
        let quorum = match &request.op {
            ClientOp::Put { w, .. } => *w,
            ClientOp::Get { r, .. } | ClientOp::Watch { r, .. } => *r,
            ClientOp::List { .. } => None,
        };
        if let Some(Quorum::Count(given)) = quorum
            && given > bucket.n
        {
            return Err(Refused::With(ClientError::QuorumTooLarge {
                given,
                n: bucket.n,
            }));
        }
        if let ClientOp::Put { .. } = &request.op {
            if !core.clock_trusted {
                return Err(Refused::With(ClientError::ClockDrift));
            }
            if core.is_frozen() {
                return Err(Refused::Park);
            }
        }
        Ok(bucket.clone())
    }

    fn refuse(
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

    fn ask(&self, op: OpId, request: &ClientRequest) -> Ask {
        Ask {
            op,
            ring: self.core.ring_version(),
            deadline: request.deadline,
            trace: request.trace.clone(),
        }
    }

    fn start(&mut self, id: RequestId, request: ClientRequest, bucket: &Bucket, started: Mono) {
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
                match self.mint(bucket, value, context) {
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
            ClientOp::Get { key, r } => {
                let key = self.record_key(request.bucket, key);
                self.start_get((ask, caller), key, For::Client, (bucket, r))
            }
            ClientOp::Watch { key, r, known } => {
                let key = self.record_key(request.bucket, key);
                self.start_watch((ask, caller), key, r, known);
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

    fn record_key(&self, bucket: BucketId, key: Bytes) -> RecordKey {
        let seed = self.core.view.as_ref().map_or(0, |view| view.config.seed);
        RecordKey {
            bucket,
            token: Token::of(seed, bucket, &key),
            key,
        }
    }

    /// A record under a fresh version that orders after what its author had read.
    fn mint(
        &mut self,
        bucket: &Bucket,
        value: Option<Value>,
        context: Option<Version>,
    ) -> Result<Record, MintRefused> {
        let wall = self.core.now.wall;
        if let Some(seen) = context
            && !self.core.clock.observe(seen.hlc, wall)
        {
            return Err(MintRefused::With(ClientError::ContextFromFuture));
        }
        let Ok(hlc) = self.core.clock.mint(wall) else {
            return Err(MintRefused::Park);
        };
        let version = Version {
            hlc,
            node: self.core.node(),
        };
        let Some(value) = value else {
            return Ok(Record::tombstone(version));
        };
        let expiry = value.ttl_ms.or(bucket.ttl_ms).map(|ttl| {
            hlc.micros()
                .saturating_add(ttl.saturating_mul(1_000))
                .max(1)
        });
        let content_type = &value.content_type;
        Ok(Record::value(Parts {
            version,
            expiry,
            content_type,
            value: &value.bytes,
        }))
    }

    fn start_put(
        &mut self,
        (ask, caller): (Ask, Caller),
        (key, record): (RecordKey, Record),
        bucket: &Bucket,
        choice: PutChoice,
    ) -> Result<(), (Caller, ClientError)> {
        let plan = self.put_plan(bucket, &key, choice);
        let alive = self.alive(&plan.owners) + plan.stand_ins.len();
        if plan.owners.is_empty() || alive < plan.required {
            let error = ClientError::Unavailable {
                required: plan.required.max(1) as u8,
                alive: alive as u8,
            };
            return Err((caller, error));
        }
        let op = ask.op;
        self.open += 1;
        let put = Put::start(&mut self.core, (ask, caller), (key, record), (plan, choice));
        self.ops.insert(op, Op::Put(Box::new(put)));
        Ok(())
    }

    fn put_plan(&self, bucket: &Bucket, key: &RecordKey, choice: PutChoice) -> put::Plan {
        let partition = self.core.partition(key);
        let owners = self.core.owners(bucket, partition);
        let required = choice.w.unwrap_or(bucket.w).required(owners.len());
        let mut stand_ins = Vec::new();
        if choice.sloppy.unwrap_or(bucket.sloppy)
            && let Some(view) = self.core.view.as_ref()
        {
            let next = view.ring.stand_ins(bucket.n, partition);
            let dead_owners = owners.len() - self.alive(&owners);
            let alive = next
                .iter()
                .copied()
                .filter(|node| !self.core.dead.contains(node));
            stand_ins = alive.take(dead_owners).collect();
        }
        put::Plan {
            owners,
            stand_ins,
            required,
        }
    }

    fn alive(&self, owners: &[NodeId]) -> usize {
        owners
            .iter()
            .filter(|node| !self.core.dead.contains(node))
            .count()
    }

    fn start_get(
        &mut self,
        (ask, caller): (Ask, Caller),
        key: RecordKey,
        destination: For,
        (bucket, r): (&Bucket, Option<Quorum>),
    ) -> Result<(), (Caller, ClientError)> {
        let plan = self.get_plan(bucket, &key, r);
        let alive = self.alive(&plan.order);
        if plan.order.is_empty() || alive < plan.required {
            let error = ClientError::Unavailable {
                required: plan.required.max(1) as u8,
                alive: alive as u8,
            };
            return Err((caller, error));
        }
        let op = ask.op;
        self.open += usize::from(caller.request.is_some());
        let get = Get::start(&mut self.core, (ask, caller), key, destination, (plan, r));
        self.ops.insert(op, Op::Get(Box::new(get)));
        Ok(())
    }

    fn get_plan(&self, bucket: &Bucket, key: &RecordKey, r: Option<Quorum>) -> get::Plan {
        let owners = self.core.owners(bucket, self.core.partition(key));
        let n = owners.len();
        let required = r.unwrap_or(bucket.r).required(n);
        let w = bucket.w.required(n);
        let repair_required = w.max((n + 1).saturating_sub(required)).min(n);
        get::Plan {
            order: self.best_first(owners),
            required,
            repair: bucket.read_repair,
            repair_required,
        }
    }

    /// Owners in the order in which they are asked: this node, the same zone, low latency, the dead last.
    fn best_first(&self, mut owners: Vec<NodeId>) -> Vec<NodeId> {
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

    fn start_list(
        &mut self,
        ids: (Ask, Caller),
        what: What,
        bucket: &Bucket,
    ) -> Result<(), (Caller, ClientError)> {
        let owners = self.core.owners(bucket, what.partition);
        let required = bucket.r.required(owners.len());
        let alive = self.alive(&owners);
        if owners.is_empty() || alive < required {
            let error = ClientError::Unavailable {
                required: required.max(1) as u8,
                alive: alive as u8,
            };
            return Err((ids.1, error));
        }
        let op = ids.0.op;
        self.open += 1;
        let order = self.best_first(owners);
        let list = List::start(&mut self.core, ids, what, (order, required));
        self.ops.insert(op, Op::List(Box::new(list)));
        Ok(())
    }

    fn start_watch(
        &mut self,
        ids: (Ask, Caller),
        key: RecordKey,
        r: Option<Quorum>,
        known: Option<crate::version::Digest>,
    ) {
        let op = ids.0.op;
        self.open += 1;
        self.ops
            .insert(op, Op::Watch(Box::new(Watch::new(ids, key, r, known))));
        self.register_watch(op);
    }

    fn register_watch(&mut self, op: OpId) {
        let Some(Op::Watch(watch)) = self.ops.get_mut(&op) else {
            return;
        };
        let bucket = self
            .core
            .view
            .as_ref()
            .and_then(|view| view.config.bucket_by_id(watch.key.bucket));
        let owners = bucket.map_or_else(Vec::new, |b| {
            self.core.owners(b, self.core.partition(&watch.key))
        });
        if watch.register(&mut self.core, &owners) == Wish::Read {
            self.read_for_watch(op);
        }
    }

    fn read_for_watch(&mut self, op: OpId) {
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

    fn on_watch_outcome(&mut self, op: OpId, outcome: get::Outcome) {
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

    fn on_peer(&mut self, from: NodeId, message: PeerMessage) {
        self.core.clock.observe(message.hlc, self.core.now.wall);
        match message.body {
            PeerBody::Request(request) => self.on_request(from, request),
            PeerBody::Reply(reply) => self.on_reply(from, reply),
            PeerBody::Cluster(_) => {}
        }
    }

    fn on_request(&mut self, from: NodeId, request: Request) {
        if request.ring > self.core.ring_version() {
            let version = torc_ring::ConfigVersion(request.ring.0);
            self.core.out.push_back(Output::NewerConfig(from, version));
        }
        let key_len = match &request.kind {
            RequestKind::Write { key, .. }
            | RequestKind::StandIn { key, .. }
            | RequestKind::Read { key, .. }
            | RequestKind::Watch { key, .. } => key.key.len(),
            RequestKind::List { .. } => 1,
        };
        if key_len == 0 || key_len > KEY_LEN_MAX {
            replicate::refuse_request(&mut self.core, from, &request, Refusal::NotOwner);
            return;
        }
        if let RequestKind::StandIn { .. } = request.kind {
            self.on_stand_in(from, request);
        } else {
            self.replica.on_request(&mut self.core, from, request);
        }
    }

    /// Keeps a counted hint, if this node is one of the n that may stand in.
    fn on_stand_in(&mut self, from: NodeId, request: Request) {
        let refusal = self.stand_in_refusal(&request);
        if let Some(refusal) = refusal {
            replicate::refuse_request(&mut self.core, from, &request, refusal);
            return;
        }
        let deadline = self.core.now.mono.plus(u64::from(request.remaining_us));
        let ask = Ask {
            op: request.op,
            ring: request.ring,
            deadline,
            trace: request.trace.0,
        };
        let RequestKind::StandIn {
            target,
            key,
            record,
        } = request.kind
        else {
            return;
        };
        self.hints.store(
            &mut self.core,
            target,
            (key, record),
            Some(StandIn { node: from, ask }),
        );
    }

    fn stand_in_refusal(&self, request: &Request) -> Option<Refusal> {
        let core = &self.core;
        let RequestKind::StandIn {
            target,
            key,
            record,
        } = &request.kind
        else {
            return None;
        };
        if request.ring != core.ring_version() {
            let config = core
                .view
                .as_ref()
                .map(|view| view.config.version)
                .unwrap_or_default();
            return Some(Refusal::RingVersion { config });
        }
        if !core.serving {
            return Some(Refusal::Overloaded);
        }
        if request.remaining_us == 0 {
            return Some(Refusal::Expired);
        }
        let allowed = core.view.as_ref().is_some_and(|view| {
            view.config.bucket_by_id(key.bucket).is_some_and(|bucket| {
                let partition = core.partition(key);
                view.ring.owners(bucket.n, partition).contains(target)
                    && view
                        .ring
                        .stand_ins(bucket.n, partition)
                        .contains(&core.settings.node)
            })
        });
        if !allowed {
            return Some(Refusal::NotOwner);
        }
        replicate::admit_write(core, crate::message::WritePurpose::Client, record).err()
    }

    fn on_reply(&mut self, from: NodeId, reply: Reply) {
        if let ReplyKind::Refused(Refusal::RingVersion { config }) = &reply.kind
            && self
                .core
                .view
                .as_ref()
                .is_none_or(|view| view.config.version < *config)
        {
            self.core.out.push_back(Output::NewerConfig(from, *config));
        }
        if self
            .hints
            .on_reply(&mut self.core, reply.op, from, &reply.kind)
        {
            return;
        }
        let Some(op) = self.ops.get_mut(&reply.op) else {
            return;
        };
        // An answer under another ring version is no answer.
        if op.ring() != reply.ring {
            return;
        }
        let before = op.waiting_client();
        let mut wish = Wish::Nothing;
        let mut outcome = None;
        let step = match op {
            Op::Put(put) => put.on_reply(&mut self.core, from, &reply.kind),
            Op::Get(get) => {
                let (step, result) = get.on_reply(&mut self.core, from, reply.kind);
                outcome = result.map(|result| (get.destination, result));
                step
            }
            Op::List(list) => list.on_reply(&mut self.core, from, reply.kind),
            Op::Watch(watch) => {
                if reply.kind == ReplyKind::Changed {
                    wish = watch.on_changed();
                }
                Step::Wait
            }
        };
        self.after(reply.op, before, step);
        if let Some((For::Watch(watch), result)) = outcome {
            self.on_watch_outcome(watch, result);
        }
        if wish == Wish::Read {
            self.read_for_watch(reply.op);
        }
    }

    /// Keeps the books after something happened to an operation.
    fn after(&mut self, id: OpId, waited: bool, step: Step) {
        let Some(op) = self.ops.get(&id) else { return };
        if waited && !op.waiting_client() {
            self.open = self.open.saturating_sub(1);
            if step == Step::Wait {
                self.lingering.push_back(id);
                self.bound_lingering();
            }
        }
        if step == Step::Done {
            self.remove(id);
        }
    }

    /// Ends an operation that has answered its client.
    fn end(&mut self, id: OpId) {
        self.open = self.open.saturating_sub(1);
        self.remove(id);
    }

    /// Takes an operation away; a write leaves hints for the owners that lack it.
    fn remove(&mut self, id: OpId) {
        let Some(mut op) = self.ops.remove(&id) else {
            return;
        };
        op.disarm(&mut self.core);
        if let Op::Put(put) = op {
            let missed = put.missed();
            for target in missed {
                self.hints.store(
                    &mut self.core,
                    target,
                    (put.key.clone(), put.record.clone()),
                    None,
                );
            }
        }
    }

    /// Slow owners may not make a coordinator remember writes without bound: the oldest get hints early.
    fn bound_lingering(&mut self) {
        while self.lingering.len() > self.core.settings.lingering_max {
            let Some(id) = self.lingering.pop_front() else {
                return;
            };
            if matches!(self.ops.get(&id), Some(Op::Put(put)) if put.lingers()) {
                self.remove(id);
            }
        }
    }

    fn on_committed(
        &mut self,
        id: crate::store::CommitId,
        result: Result<(), crate::store::StoreError>,
    ) {
        if self.core.on_bound_committed(id, result.is_ok()) {
            self.unpark();
        } else if !self.hints.on_committed(&mut self.core, id, result) {
            self.replica.on_committed(&mut self.core, id, result);
        }
    }

    /// Tries parked requests again; those whose time is over are answered.
    fn unpark(&mut self) {
        for (id, request, started) in std::mem::take(&mut self.parked) {
            if self.core.now.mono >= request.deadline {
                self.refuse(id, &request, started, ClientError::Overloaded);
            } else {
                self.on_client(id, request, started);
            }
        }
    }

    /// Operations start again under the new ring, with no answers of the old one.
    fn on_config(&mut self, view: Arc<View>) {
        // Versions are applied in order; an old one that comes late must not take the ring back.
        if self
            .core
            .view
            .as_ref()
            .is_some_and(|present| present.config.version > view.config.version)
        {
            return;
        }
        let before = self.core.ring_version();
        let ring = view.config.ring_version;
        self.core.view = Some(view);
        self.drain = Some(ring);
        if ring <= before && before != RingVersion(0) {
            return;
        }
        if self.core.frozen.is_some_and(|frozen| frozen < ring) {
            self.core.frozen = None;
            self.freezing = None;
        }
        let ids: Vec<OpId> = self.ops.keys().copied().collect();
        for id in ids {
            self.restart(id, ring);
        }
        self.unpark();
    }

    fn restart(&mut self, id: OpId, ring: RingVersion) {
        let Some(op) = self.ops.get(&id) else { return };
        let bucket_id = op.bucket();
        let bucket = self
            .core
            .view
            .as_ref()
            .and_then(|view| view.config.bucket_by_id(bucket_id))
            .cloned();
        let Some(bucket) = bucket else {
            self.abandon(id);
            return;
        };
        match self.ops.get(&id) {
            // The client has its answer; the owners that lack the write get hints, which know rings.
            Some(Op::Put(put)) if put.lingers() => self.remove(id),
            Some(Op::Put(put)) => {
                let plan = self.put_plan(&bucket, &put.key, put.choice);
                if let Some(Op::Put(put)) = self.ops.get_mut(&id) {
                    put.restart(&mut self.core, ring, plan);
                }
            }
            Some(Op::Get(get)) => {
                let plan = self.get_plan(&bucket, &get.key, get.r);
                if let Some(Op::Get(get)) = self.ops.get_mut(&id) {
                    get.restart(&mut self.core, ring, plan);
                }
            }
            Some(Op::List(list)) => {
                let owners = self.core.owners(&bucket, list.what.partition);
                let required = bucket.r.required(owners.len());
                let order = self.best_first(owners);
                if let Some(Op::List(list)) = self.ops.get_mut(&id) {
                    list.restart(&mut self.core, ring, order, required);
                }
            }
            Some(Op::Watch(_)) => self.register_watch(id),
            None => {}
        }
    }

    /// The operation's bucket is gone.
    fn abandon(&mut self, id: OpId) {
        let Some(mut op) = self.ops.remove(&id) else {
            return;
        };
        let waited = op.waiting_client();
        op.disarm(&mut self.core);
        let (ask, caller) = op.caller();
        caller.answer(
            &mut self.core,
            ask,
            0,
            ClientReply::Failed(ClientError::NoBucket),
        );
        if waited {
            self.open = self.open.saturating_sub(1);
        }
    }

    fn ring_timers(&mut self) {
        while let Some(&(at, timer)) = self.core.timers.first() {
            if at > self.core.now.mono {
                return;
            }
            self.core.timers.pop_first();
            match timer {
                Timer::Housekeeping => self.housekeeping(),
                Timer::Op(id) => self.on_op_timer(id),
            }
        }
    }

    fn housekeeping(&mut self) {
        let next = self.core.now.mono.plus(HOUSEKEEPING);
        self.core.timers.insert((next, Timer::Housekeeping));
        self.core.stop_waiting_for_clock();
        self.core.renew_bound();
        self.replica.expire_watches(&self.core);
        self.hints.housekeeping(&mut self.core);
        while self
            .lingering
            .front()
            .is_some_and(|id| !self.ops.contains_key(id))
        {
            self.lingering.pop_front();
        }
        if !self.parked.is_empty() {
            self.unpark();
        }
    }

    fn on_op_timer(&mut self, id: OpId) {
        if self.hints.on_timer(&mut self.core, id) {
            return;
        }
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        let before = op.waiting_client();
        let mut outcome = None;
        let mut renew = false;
        let step = match op {
            Op::Put(put) => put.on_timer(&mut self.core),
            Op::Get(get) => {
                let (step, result) = get.on_timer(&mut self.core);
                outcome = result.map(|result| (get.destination, result));
                step
            }
            Op::List(list) => list.on_timer(&mut self.core),
            Op::Watch(watch) => {
                let (step, again) = watch.on_timer(&mut self.core);
                renew = again;
                step
            }
        };
        self.after(id, before, step);
        if let Some((For::Watch(watch), result)) = outcome {
            self.on_watch_outcome(watch, result);
        }
        if renew {
            self.register_watch(id);
        }
    }

    /// Says what has come to be true.
    fn announce(&mut self) {
        if let Some(ring) = self.drain
            && !self.replica.has_commits_below(ring)
        {
            self.drain = None;
            self.core.out.push_back(Output::Drained(ring));
        }
        if let Some(ring) = self.freezing
            && !self.replica.has_writes()
        {
            self.freezing = None;
            self.core.out.push_back(Output::Frozen(ring));
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

enum Refused {
    /// It can be served soon.
    Park,
    With(ClientError),
}

enum MintRefused {
    Park,
    With(ClientError),
}

fn name_of(op: &ClientOp) -> &'static str {
    match op {
        ClientOp::Put { value: Some(_), .. } => "put",
        ClientOp::Put { value: None, .. } => "delete",
        ClientOp::Get { .. } => "get",
        ClientOp::Watch { .. } => "watch",
        ClientOp::List { .. } => "list",
    }
}

impl Op {
    fn ring(&self) -> RingVersion {
        match self {
            Self::Put(put) => put.ask.ring,
            Self::Get(get) => get.ask.ring,
            Self::List(list) => list.ask.ring,
            Self::Watch(watch) => watch.ask.ring,
        }
    }

    fn bucket(&self) -> BucketId {
        match self {
            Self::Put(put) => put.key.bucket,
            Self::Get(get) => get.key.bucket,
            Self::List(list) => list.what.bucket,
            Self::Watch(watch) => watch.key.bucket,
        }
    }

    fn waiting_client(&self) -> bool {
        match self {
            Self::Put(put) => put.caller.request.is_some(),
            Self::Get(get) => get.caller.request.is_some(),
            Self::List(list) => list.caller.request.is_some(),
            Self::Watch(watch) => watch.caller.request.is_some(),
        }
    }

    fn caller(&mut self) -> (&Ask, &mut Caller) {
        match self {
            Self::Put(put) => (&put.ask, &mut put.caller),
            Self::Get(get) => (&get.ask, &mut get.caller),
            Self::List(list) => (&list.ask, &mut list.caller),
            Self::Watch(watch) => (&watch.ask, &mut watch.caller),
        }
    }

    fn disarm(&mut self, core: &mut Core) {
        match self {
            Self::Put(put) => put.disarm(core),
            Self::Get(get) => get.disarm(core),
            Self::List(list) => list.disarm(core),
            Self::Watch(watch) => watch.disarm(core),
        }
    }
}

//! One shard: the single owner of a slice of a node's partitions, as coordinator and as replica.
//!
//! A partition belongs to one shard, so that a key's read-merge-write needs no lock. Everything that
//! happens comes in through [`Shard::handle`], everything wanted comes out of [`Shard::next_output`];
//! the same inputs give the same outputs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use torc_ring::{BucketId, PartitionId, RingVersion};

use crate::client::{ClientError, ClientReply, ClientRequest, RequestId};
use crate::core::{Core, HOUSEKEEPING, Step, Timer};
use crate::floor::{FloorStatus, Keeper};
use crate::get::For;
use crate::hints::Hints;
use crate::message::OpId;
use crate::mutant::Mutant;
use crate::repair::Repair;
use crate::replicate::Replica;
use crate::shard_io::{Input, Output, View};
use crate::store::HintTotal;
use crate::time::{Mono, Now};

mod op;
mod peer;
mod start;

use self::op::Op;
pub(crate) use self::start::PutChoice;
pub use crate::core::ShardSettings;

/// A slice of a node's partitions.
#[derive(Debug)]
pub struct Shard {
    core: Core,
    ops: BTreeMap<OpId, Op>,
    replica: Replica,
    hints: Hints,
    repair: Repair,
    floor: Keeper,
    /// Answered writes that wait for slow owners, oldest first; may name some that are over already.
    lingering: VecDeque<OpId>,
    /// Requests that wait for the clock's bound.
    parked: VecDeque<(RequestId, ClientRequest, Mono)>,
    /// Clients that have no answer yet.
    open: usize,
    /// Watches that have no answer yet.
    watches: usize,
    drain: Option<RingVersion>,
}

impl Shard {
    /// A shard that has no config yet and does not serve. `totals` are the hints found on disk.
    #[must_use]
    pub fn new(settings: ShardSettings, totals: &[HintTotal], now: Now) -> Self {
        let mut core = Core::new(settings, now);
        core.timers.insert((now.mono, Timer::Housekeeping));
        let replica = Replica::new(&core);
        let hints = Hints::new(&mut core, totals);
        let repair = Repair::new(&core);
        let floor = Keeper::new(&core);
        Self {
            core,
            ops: BTreeMap::new(),
            replica,
            hints,
            repair,
            floor,
            lingering: VecDeque::new(),
            parked: VecDeque::new(),
            open: 0,
            watches: 0,
            drain: None,
        }
    }

    /// Takes over a hash tree that an earlier life wrote down when it stopped ([`crate::store::StateKey::Tree`]); the
    /// caller has deleted it durably by now. To be called before anything happens.
    pub fn restore_tree(&mut self, bucket: BucketId, partition: PartitionId, bytes: Bytes) {
        if usize::from(partition.0) % usize::from(self.core.settings.count)
            == usize::from(self.core.settings.index)
        {
            self.core.trees.restore((bucket, partition), bytes);
        }
    }

    /// Takes over what an earlier life has stored under [`crate::store::StateKey::Floor`]. To be called before
    /// anything happens.
    pub fn restore_floor(&mut self, bucket: BucketId, partition: PartitionId, bytes: &[u8]) {
        if usize::from(partition.0) % usize::from(self.core.settings.count)
            == usize::from(self.core.settings.index)
        {
            Keeper::restore(&mut self.core, bucket, partition, bytes);
        }
    }

    /// Takes what happened.
    pub fn handle(&mut self, now: Now, input: Input) {
        self.core.set_now(now);
        match input {
            Input::Client(id, request) => self.on_client(id, request, now.mono),
            Input::Peer(from, message) => self.on_peer(from, message),
            Input::Read(id, result) => {
                if self.hints.on_read(&mut self.core, id, &result) {
                    return self.finish();
                }
                let (core, replica) = (&mut self.core, &mut self.replica);
                let Some(result) = self.floor.on_read(core, id, result) else {
                    return self.finish();
                };
                if let Some(result) = self.repair.on_read(core, replica, (id, result)) {
                    self.replica.on_read(&mut self.core, id, result);
                }
            }
            Input::Committed(id, result) => self.on_committed(id, result),
            Input::Liveness(dead) => {
                let node = self.core.node();
                let dead = dead.into_iter().filter(|&other| other != node).collect();
                let before = std::mem::replace(&mut self.core.dead, dead);
                self.repair.on_liveness(&mut self.core, &before);
                self.hints.housekeeping(&mut self.core);
            }
            Input::ClockTrusted(trusted) => self.core.clock_trusted = trusted,
            Input::Config(view) => self.on_config(view),
            Input::Applied(ring) => self.core.applied = self.core.applied.max(ring),
            Input::Repair => self.repair.on_wish(&mut self.core, &mut self.replica),
            Input::Save => self.repair.save(&mut self.core),
            Input::Stop => self.stop(),
            Input::Cancel(id) => self.cancel(id),
            Input::Serve => {
                self.core.serving = true;
                self.hints.housekeeping(&mut self.core);
            }
            Input::Tick => {}
        }
        self.finish();
    }

    /// What follows from what happened.
    fn finish(&mut self) {
        self.ring_timers();
        while let Some(message) = self.core.loopback.pop_front() {
            self.on_peer(self.core.node(), message);
        }
        self.announce();
        while let Some(message) = self.core.loopback.pop_front() {
            self.on_peer(self.core.node(), message);
        }
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

    /// Whether nobody waits for this shard: no client for an answer, no hint for the disk.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.open_requests() == 0
            && !self.hints.has_writes()
            && !self.floor.has_writes()
            && !self.repair.is_saving()
    }

    /// Clients that have no answer yet; for bounds and metrics.
    #[must_use]
    pub fn open_requests(&self) -> usize {
        self.open + self.watches + self.parked.len()
    }

    /// What waits to be collected in this shard now, and why; [`crate::shard_io::Event::Floors`] says it too.
    #[must_use]
    pub fn floor_status(&self) -> FloorStatus {
        self.floor.status(&self.core)
    }

    /// Keeps the books after something happened to an operation.
    pub(super) fn after(&mut self, id: OpId, waited: bool, step: Step) {
        let Some(op) = self.ops.get(&id) else { return };
        if waited && !op.waiting_client() {
            self.close_one(id);
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
    pub(super) fn end(&mut self, id: OpId) {
        self.close_one(id);
        self.remove(id);
    }

    /// Takes an operation away; a write leaves hints for the owners that lack it.
    pub(super) fn remove(&mut self, id: OpId) {
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
            return;
        }
        let (core, replica) = (&mut self.core, &mut self.replica);
        if !self
            .floor
            .on_committed(core, &self.hints, (id, result.is_ok()))
            && !self.hints.on_committed(core, id, result)
            && !self.repair.on_committed(core, replica, (id, result))
        {
            self.replica.on_committed(&mut self.core, id, result);
        }
    }

    /// Tries parked requests again; those whose time is over are answered.
    pub(super) fn unpark(&mut self) {
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
        let earlier = self.core.view.replace(view);
        self.drain = Some(ring);
        self.repair.on_config(&mut self.core, &mut self.replica);
        self.floor.on_config(&mut self.core, earlier.as_ref());
        if ring <= before && before != RingVersion(0) {
            return;
        }
        let ids: Vec<OpId> = self.ops.keys().copied().collect();
        for id in ids {
            self.restart(id, ring);
        }
        self.unpark();
    }

    pub(super) fn restart(&mut self, id: OpId, ring: RingVersion) {
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
                let plan = self.list_plan(&bucket, list.what.partition);
                if let Some(Op::List(list)) = self.ops.get_mut(&id) {
                    list.restart(&mut self.core, ring, plan);
                }
            }
            Some(Op::Verify(verify)) => {
                let owners = self.all_owners(&bucket, &verify.key);
                if let Some(Op::Verify(verify)) = self.ops.get_mut(&id) {
                    verify.restart(&mut self.core, ring, owners);
                }
            }
            Some(Op::Watch(_)) => self.register_watch(id),
            None => {}
        }
    }

    /// The operation's bucket is gone.
    pub(super) fn abandon(&mut self, id: OpId) {
        if self.ops.get(&id).is_some_and(Op::waiting_client) {
            self.close_one(id);
        }
        let Some(mut op) = self.ops.remove(&id) else {
            return;
        };
        op.disarm(&mut self.core);
        let (ask, caller) = op.caller();
        caller.answer(
            &mut self.core,
            ask,
            0,
            ClientReply::Failed(ClientError::NoBucket),
        );
    }

    /// One client less waits; watches are counted apart, so that they keep nobody else out.
    fn close_one(&mut self, id: OpId) {
        let count = match self.ops.get(&id) {
            Some(Op::Watch(_)) => &mut self.watches,
            _ => &mut self.open,
        };
        *count = count.saturating_sub(1);
    }

    /// Nobody waits for the request any more. Only a watch is worth looking for: the others end soon.
    fn cancel(&mut self, request: RequestId) {
        let watch = self.ops.iter().find_map(|(&id, op)| match op {
            Op::Watch(watch) if watch.caller.request == Some(request) => Some(id),
            _ => None,
        });
        if let Some(id) = watch {
            self.end(id);
        }
    }

    /// The node stops: watches are answered with what they last saw, and owners that still lack an
    /// answered write get hints now instead of later.
    fn stop(&mut self) {
        let watches: Vec<OpId> = self
            .ops
            .iter()
            .filter(|(_, op)| matches!(op, Op::Watch(_)))
            .map(|(&id, _)| id)
            .collect();
        for id in watches {
            if let Some(Op::Watch(watch)) = self.ops.get_mut(&id) {
                watch.finish(&mut self.core);
                self.end(id);
            }
        }
        for id in std::mem::take(&mut self.lingering) {
            if matches!(self.ops.get(&id), Some(Op::Put(put)) if put.lingers()) {
                self.remove(id);
            }
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
                Timer::Trees => self.repair.on_pump(&mut self.core, &mut self.replica),
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
        self.repair.housekeeping(&mut self.core, &mut self.replica);
        self.floor.housekeeping(&mut self.core);
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
        let (core, replica) = (&mut self.core, &mut self.replica);
        if self.hints.on_timer(core, id) || self.repair.on_timer(core, replica, id) {
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
            Op::Verify(verify) => verify.on_timer(&mut self.core),
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
            && (!self.replica.has_commits_below(ring) || self.core.has(Mutant::DrainSkipped))
            && !self.repair.has_commits_below(ring)
            && !self.floor.has_falling()
        {
            self.drain = None;
            self.core.drained = ring;
            self.core.out.push_back(Output::Drained(ring));
        }
        self.floor.settle(&mut self.core);
        self.repair.settle(&mut self.core, &mut self.replica);
    }
}

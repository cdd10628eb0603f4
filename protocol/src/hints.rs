//! Hinted handoff: writes that an owner missed, kept durably until it has them.
//!
//! Invariants: hints stored = delivered + dropped + waiting (each drop is counted and names its
//! partition); a hint is removed only after a durable ack of everybody who must have it; hints that
//! counted towards a quorum are never dropped by a bound.
//! Source: Dynamo (2007), section 4.6.

use std::collections::BTreeMap;

use bytes::Bytes;
use torc_ring::{NodeId, PartitionId, RingVersion};

use crate::core::{Ask, Core, Timer};
use crate::hlc::Hlc;
use crate::message::{OpId, RecordKey, Refusal, ReplyKind, RequestKind, WritePurpose};
use crate::mutant::Mutant;
use crate::record::Record;
use crate::replicate;
use crate::shard_io::Event;
use crate::store::{
    CommitId, Found, HINT_SLOTS, Hint, HintKey, HintTotal, Query, ReadId, StoreError, Sync, Write,
};
use crate::time::{Mono, SECOND};

/// Hints in flight to one target at a time.
const WINDOW: usize = 64;
/// How long a delivery may take before it is tried again, in microseconds.
const DELIVERY_DEADLINE: u64 = 5 * SECOND;
/// How long to wait after a delivery failed, in microseconds.
const BACKOFF: u64 = SECOND;

/// Hints of one shard.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    targets: BTreeMap<NodeId, Target>,
    commits: BTreeMap<CommitId, Pending>,
    reads: BTreeMap<ReadId, Question>,
    flights: BTreeMap<OpId, Flight>,
    last_seq: u64,
}

#[derive(Debug, Default)]
struct Target {
    waiting: u64,
    bytes: u64,
    /// Those that counted towards a write quorum.
    counted: u64,
    /// Hints on disk by slot, those being removed included.
    slots: BTreeMap<u8, u64>,
    delivery: Delivery,
    /// The slot whose turn it is: what cannot be delivered in one must not hold up the others.
    turn: u8,
}

#[derive(Clone, Copy, Debug, Default)]
enum Delivery {
    #[default]
    Idle,
    /// Not before then.
    Backoff(Mono),
    /// A batch is being read from disk.
    Reading,
    /// So many of a batch are still on their way; the next may start at `resume`.
    Flying {
        left: usize,
        failed: bool,
        resume: Mono,
    },
}

#[derive(Debug)]
enum Pending {
    Put {
        at: HintKey,
        size: Size,
        partition: PartitionId,
        stand_in: Option<StandIn>,
    },
    Delete {
        at: HintKey,
        size: Size,
        why: Why,
    },
}

/// What a hint counts for.
#[derive(Clone, Copy, Debug)]
struct Size {
    weight: u64,
    /// It counted towards a write quorum.
    counted: bool,
}

impl Size {
    fn of(hint: &Hint) -> Self {
        Self {
            weight: hint.weight(),
            counted: hint.counted,
        }
    }
}

/// Why a hint is removed; told when the disk has done it, so that each hint is counted once.
#[derive(Clone, Copy, Debug)]
enum Why {
    Delivered,
    Dropped {
        reason: &'static str,
        partition: PartitionId,
    },
}

/// What is being read from disk for a delivery.
#[derive(Debug)]
struct Question {
    target: NodeId,
    slot: u8,
    /// Hints of the slot when the question was put, if all of them were on disk by then.
    settled: Option<u64>,
}

/// A coordinator that waits for this node to stand in.
#[derive(Debug)]
pub(crate) struct StandIn {
    pub(crate) node: NodeId,
    pub(crate) ask: Ask,
}

#[derive(Debug)]
struct Flight {
    at: HintKey,
    /// Under which it was sent: an ack counts only as long as it holds, because owners may change.
    ring: RingVersion,
    size: Size,
    /// Where it belongs; `None` when it counted towards a quorum, and no close may drop it.
    partition: Option<PartitionId>,
    /// Who must still ack it: the target, or the partition's owners when the target left.
    waiting: Vec<NodeId>,
    deadline: Mono,
}

impl Hints {
    /// Takes over what an earlier life left on disk; `totals` may hold other shards' slots.
    pub(crate) fn new(core: &mut Core, totals: &[HintTotal]) -> Self {
        let mut hints = Self::default();
        let count = core.settings.count;
        for total in totals
            .iter()
            .filter(|total| total.slot % count == core.settings.index)
        {
            let target = hints.targets.entry(total.target).or_default();
            target.waiting += total.count;
            target.bytes += total.bytes;
            target.counted += total.counted;
            core.counted_hints += total.counted;
            *target.slots.entry(total.slot).or_default() += total.count;
            hints.last_seq = hints.last_seq.max(total.last_seq);
        }
        hints
    }

    /// Keeps a write for an owner that missed it, within the bounds. With `stand_in` it counts towards a
    /// quorum: then no bound drops it later, and the coordinator is answered when it is durable.
    pub(crate) fn store(
        &mut self,
        core: &mut Core,
        target: NodeId,
        (key, record): (RecordKey, Record),
        stand_in: Option<StandIn>,
    ) {
        let partition = core.partition(&key);
        let hint = Hint {
            key,
            record,
            counted: stand_in.is_some(),
        };
        let size = Size::of(&hint);
        let weight = size.weight;
        let kept = self.targets.get(&target).map_or(0, |target| target.bytes);
        if kept + weight > core.settings.hint_bytes_max {
            match stand_in {
                Some(asker) => refuse_stand_in(core, &asker, Refusal::Overloaded),
                None if core.has(Mutant::HintDroppedSilently) => {}
                None => core.event(Event::HintsDropped {
                    target,
                    count: 1,
                    reason: "bytes",
                    partition,
                }),
            }
            return;
        }
        self.last_seq = (self.last_seq + 1).max(core.clock.peek(core.now.wall).0);
        let slot = (partition.0 % u16::from(HINT_SLOTS)) as u8;
        let at = HintKey {
            target,
            slot,
            seq: self.last_seq,
        };
        let sync = if stand_in.is_some() {
            Sync::Fsync
        } else {
            Sync::Policy
        };
        let id = core.commit(Write::HintPut { at, hint }, sync);
        self.commits.insert(
            id,
            Pending::Put {
                at,
                size,
                partition,
                stand_in,
            },
        );
        core.event(Event::HintStored { target });
        let entry = self.targets.entry(target).or_default();
        entry.counted += u64::from(size.counted);
        core.counted_hints += u64::from(size.counted);
        entry.waiting += 1;
        entry.bytes += weight;
        *entry.slots.entry(slot).or_default() += 1;
        self.report(core, target);
    }

    /// Targets of which hints may lie in that slot.
    pub(crate) fn targets_of(&self, slot: u8) -> Vec<NodeId> {
        let in_slot = |(_, target): &(&NodeId, &Target)| target.slots.contains_key(&slot);
        let targets = self.targets.iter().filter(in_slot);
        targets.map(|(&node, _)| node).collect()
    }

    /// A commit ended; answers whether it was one of ours.
    pub(crate) fn on_committed(
        &mut self,
        core: &mut Core,
        id: CommitId,
        result: Result<(), StoreError>,
    ) -> bool {
        let Some(pending) = self.commits.remove(&id) else {
            return false;
        };
        match (pending, result) {
            (Pending::Put { stand_in, .. }, Ok(())) => {
                if let Some(asker) = stand_in {
                    tell_stand_in(core, &asker, "ok");
                    core.answer(asker.node, asker.ask.op, asker.ask.ring, ReplyKind::StoodIn);
                }
            }
            (
                Pending::Put {
                    at,
                    size,
                    partition,
                    stand_in,
                },
                Err(error),
            ) => {
                self.forget(core, at, size);
                if let Some(asker) = stand_in {
                    let refusal = if error == StoreError::Full {
                        Refusal::DiskFull
                    } else {
                        Refusal::Storage
                    };
                    refuse_stand_in(core, &asker, refusal);
                }
                let target = at.target;
                core.event(Event::HintsDropped {
                    target,
                    count: 1,
                    reason: "full",
                    partition,
                });
            }
            (Pending::Delete { at, size, why }, Ok(())) => {
                let target = at.target;
                core.event(match why {
                    Why::Delivered => Event::HintDelivered { target },
                    Why::Dropped { reason, partition } => Event::HintsDropped {
                        target,
                        count: 1,
                        reason,
                        partition,
                    },
                });
                self.forget(core, at, size);
                if core.serving {
                    self.deliver(core, at.target);
                }
            }
            // It stays on disk and is delivered once more: merging it again changes nothing.
            (Pending::Delete { .. }, Err(_)) => {}
        }
        true
    }

    fn forget(&mut self, core: &mut Core, at: HintKey, size: Size) {
        if let Some(target) = self.targets.get_mut(&at.target) {
            target.waiting = target.waiting.saturating_sub(1);
            target.bytes = target.bytes.saturating_sub(size.weight);
            let counted = u64::from(size.counted).min(target.counted);
            target.counted -= counted;
            core.counted_hints = core.counted_hints.saturating_sub(counted);
            if let Some(count) = target.slots.get_mut(&at.slot) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    target.slots.remove(&at.slot);
                }
            }
            // What a corrupt hint weighed is not known.
            if target.slots.is_empty() {
                target.bytes = 0;
            }
        }
        self.report(core, at.target);
    }

    fn report(&self, core: &mut Core, target: NodeId) {
        let (waiting, bytes) = self
            .targets
            .get(&target)
            .map_or((0, 0), |t| (t.waiting, t.bytes));
        core.event(Event::Hints {
            target,
            waiting,
            bytes,
        });
    }

    /// Looks after deliveries: starts those whose target is alive, gives up those that take too long.
    pub(crate) fn housekeeping(&mut self, core: &mut Core) {
        let now = core.now.mono;
        let late: Vec<OpId> = self
            .flights
            .iter()
            .filter(|(_, flight)| flight.deadline <= now)
            .map(|(&op, _)| op)
            .collect();
        for op in late {
            self.end_flight(core, op, false);
        }
        // Without a config nobody is known to whom a hint could go.
        if !core.serving || core.view.is_none() {
            return;
        }
        let targets: Vec<NodeId> = self.targets.keys().copied().collect();
        for target in targets {
            self.deliver(core, target);
        }
    }

    /// Starts the next batch for `node` when it is alive, the rate allows it, and the last batch has left
    /// the disk (else its hints would be found again).
    fn deliver(&mut self, core: &mut Core, node: NodeId) {
        let now = core.now.mono;
        let leaving =
            |pending: &Pending| matches!(pending, Pending::Delete { at, .. } if at.target == node);
        if self.commits.values().any(leaving) {
            return;
        }
        // A member that is being removed as dead is not waited for.
        let member = core.view.as_ref().is_some_and(|view| {
            view.config.member(node).is_some() && !view.config.abandoned.contains(&node)
        });
        let Some(target) = self.targets.get_mut(&node) else {
            return;
        };
        match target.delivery {
            Delivery::Backoff(until) if until > now => return,
            Delivery::Reading => return,
            Delivery::Flying { left, .. } if left > 0 => return,
            Delivery::Flying { resume, .. } if resume > now => return,
            Delivery::Idle | Delivery::Backoff(_) | Delivery::Flying { .. } => {}
        }
        if target.waiting == 0 && target.slots.is_empty() {
            target.delivery = Delivery::Idle;
            return;
        }
        if member && core.dead.contains(&node) {
            target.delivery = Delivery::Idle;
            return;
        }
        let mut from_turn = target.slots.range(target.turn..);
        let Some((&slot, &count)) = from_turn.next().or_else(|| target.slots.first_key_value())
        else {
            return;
        };
        target.turn = slot.wrapping_add(1);
        target.delivery = Delivery::Reading;
        let in_commit = self
            .commits
            .values()
            .any(|pending| pending.at().target == node);
        let settled = (!in_commit || core.has(Mutant::HintForgotten)).then_some(count);
        let id = core.read(Query::Hints {
            target: node,
            slot,
            after: 0,
            limit: WINDOW,
        });
        self.reads.insert(
            id,
            Question {
                target: node,
                slot,
                settled,
            },
        );
    }

    /// The disk answered; answers whether it was a question of ours.
    pub(crate) fn on_read(
        &mut self,
        core: &mut Core,
        id: ReadId,
        result: &Result<Found, StoreError>,
    ) -> bool {
        let Some(question) = self.reads.remove(&id) else {
            return false;
        };
        match (result, question.settled) {
            (Ok(Found::Hints(found)), Some(count)) if found.is_empty() => {
                self.recount(core, &question, count);
            }
            (Ok(Found::Hints(found)), _) => self.send(core, question.target, found),
            (Ok(_) | Err(_), _) => self.back_off(core, question.target),
        }
        true
    }

    /// The slot was believed to hold `count` hints and holds none: the disk is right. Hints that were stored
    /// since the question was put are not among them.
    fn recount(&mut self, core: &mut Core, question: &Question, count: u64) {
        let Some(target) = self.targets.get_mut(&question.target) else {
            return;
        };
        if let Some(believed) = target.slots.get_mut(&question.slot) {
            *believed = believed.saturating_sub(count);
            if *believed == 0 {
                target.slots.remove(&question.slot);
            }
        }
        target.waiting = target.waiting.saturating_sub(count);
        if target.slots.is_empty() {
            (target.waiting, target.bytes) = (0, 0);
            core.counted_hints = core.counted_hints.saturating_sub(target.counted);
            target.counted = 0;
        }
        target.delivery = Delivery::Idle;
        self.report(core, question.target);
    }

    fn send(&mut self, core: &mut Core, node: NodeId, found: &[(HintKey, Option<Hint>)]) {
        let mut left = 0;
        let mut bytes = 0;
        let oldest = core
            .clock
            .peek(core.now.wall)
            .micros()
            .saturating_sub(core.settings.hint_age_max);
        for (at, hint) in found {
            let Some(hint) = hint else {
                self.drop_corrupt(core, *at);
                continue;
            };
            let weight = hint.weight();
            // A clock that is off says nothing about age.
            if !hint.counted && core.clock_is_fit() && hint.record.version().hlc.micros() < oldest {
                self.drop_hint(core, *at, hint, "age");
                continue;
            }
            let recipients = recipients(core, node, &hint.key);
            if recipients.is_empty() {
                self.drop_hint(core, *at, hint, "left");
                continue;
            }
            bytes += weight;
            left += 1;
            self.fly(core, *at, hint, recipients);
        }
        let resume = core
            .now
            .mono
            .plus(bytes.saturating_mul(SECOND) / core.settings.hint_rate.max(1));
        let Some(target) = self.targets.get_mut(&node) else {
            return;
        };
        target.delivery = if left == 0 {
            Delivery::Backoff(core.now.mono.plus(BACKOFF / 10))
        } else {
            Delivery::Flying {
                left,
                failed: false,
                resume,
            }
        };
    }

    fn fly(&mut self, core: &mut Core, at: HintKey, hint: &Hint, recipients: Vec<NodeId>) {
        let op = core.new_op();
        let deadline = core.now.mono.plus(DELIVERY_DEADLINE);
        let ask = Ask {
            op,
            ring: core.ring_version(),
            deadline,
            trace: Bytes::new(),
        };
        for &node in &recipients {
            let kind = RequestKind::Write {
                key: hint.key.clone(),
                record: hint.record.clone(),
                purpose: WritePurpose::Hint,
                floor: Hlc(0),
                // The client was promised durability by the stand-in's fsync; it may not become less.
                fsync: hint.counted,
            };
            core.request(node, &ask, kind);
        }
        self.flights.insert(
            op,
            Flight {
                at,
                ring: ask.ring,
                size: Size::of(hint),
                partition: (!hint.counted).then(|| core.partition(&hint.key)),
                waiting: recipients,
                deadline,
            },
        );
        core.timers.insert((deadline, Timer::Op(op)));
        if core.has(Mutant::HintRemovedBeforeAck) {
            self.delete(core, at, Size::of(hint), Why::Delivered);
        }
    }

    fn drop_hint(&mut self, core: &mut Core, at: HintKey, hint: &Hint, reason: &'static str) {
        let partition = core.partition(&hint.key);
        self.delete(core, at, Size::of(hint), Why::Dropped { reason, partition });
    }

    /// A hint that cannot be read any more would hold up those behind it for ever. What it was about is not
    /// known but for the slot, so that all partitions of it are in doubt.
    fn drop_corrupt(&mut self, core: &mut Core, at: HintKey) {
        let partitions = core.view.as_ref().map_or(0, |view| view.ring.partitions());
        let first = u32::from(at.slot);
        let slot = (first..partitions).step_by(usize::from(HINT_SLOTS));
        let doubts = slot.map(|index| (PartitionId(index as u16), at.target));
        core.doubts.extend(doubts);
        let (reason, partition) = ("corrupt", PartitionId(u16::from(at.slot)));
        let (weight, counted) = (0, false);
        let size = Size { weight, counted };
        self.delete(core, at, size, Why::Dropped { reason, partition });
    }

    fn delete(&mut self, core: &mut Core, at: HintKey, size: Size, why: Why) {
        let id = core.commit(Write::HintDelete { at }, Sync::Policy);
        self.commits.insert(id, Pending::Delete { at, size, why });
    }

    /// An answer to a delivery; answers whether the exchange was one of ours.
    pub(crate) fn on_reply(
        &mut self,
        core: &mut Core,
        op: OpId,
        from: NodeId,
        kind: &ReplyKind,
    ) -> bool {
        let Some(flight) = self.flights.get_mut(&op) else {
            return false;
        };
        if flight.ring != core.ring_version() {
            self.end_flight(core, op, false);
        } else if let ReplyKind::Written { .. } = kind {
            flight.waiting.retain(|&node| node != from);
            if flight.waiting.is_empty() {
                self.end_flight(core, op, true);
            }
        } else if flight.waiting.contains(&from) {
            let closed = *kind == ReplyKind::Refused(Refusal::Closed);
            let (at, size) = (flight.at, flight.size);
            let partition = flight.partition.filter(|_| closed);
            if let Some(partition) = partition {
                // The owners have compared their copies, or will: who acknowledged it had it on disk.
                let reason = "closed";
                self.delete(core, at, size, Why::Dropped { reason, partition });
            }
            self.end_flight(core, op, false);
        }
        true
    }

    /// The timer of an exchange rang; answers whether it was one of ours.
    pub(crate) fn on_timer(&mut self, core: &mut Core, op: OpId) -> bool {
        let ours = self.flights.contains_key(&op);
        if ours {
            self.end_flight(core, op, false);
        }
        ours
    }

    fn end_flight(&mut self, core: &mut Core, op: OpId, delivered: bool) {
        let Some(flight) = self.flights.remove(&op) else {
            return;
        };
        core.timers.remove(&(flight.deadline, Timer::Op(op)));
        let node = flight.at.target;
        if delivered {
            self.delete(core, flight.at, flight.size, Why::Delivered);
        }
        let now = core.now.mono;
        let Some(target) = self.targets.get_mut(&node) else {
            return;
        };
        if let Delivery::Flying {
            left,
            failed,
            resume,
            ..
        } = &mut target.delivery
        {
            *left = left.saturating_sub(1);
            *failed |= !delivered;
            if *left == 0 {
                let until = if *failed { now.plus(BACKOFF) } else { *resume };
                target.delivery = Delivery::Backoff(until);
                self.deliver(core, node);
            }
        }
    }

    /// Whether a hint is on its way to disk.
    pub(crate) fn has_writes(&self) -> bool {
        !self.commits.is_empty()
    }

    fn back_off(&mut self, core: &Core, node: NodeId) {
        if let Some(target) = self.targets.get_mut(&node) {
            target.delivery = Delivery::Backoff(core.now.mono.plus(BACKOFF));
        }
    }
}

impl Pending {
    fn at(&self) -> HintKey {
        match self {
            Self::Put { at, .. } | Self::Delete { at, .. } => *at,
        }
    }
}

/// The target, as long as it owns the partition; when it does not, or is being removed as dead, all present
/// owners. While the partition
/// moves, its target owners too: they may have covered it already, without this write, and a write that
/// counted because of this hint may be nowhere else.
fn recipients(core: &Core, target: NodeId, key: &RecordKey) -> Vec<NodeId> {
    let Some(view) = core.view.as_ref() else {
        return Vec::new();
    };
    let Some(bucket) = view.config.bucket_by_id(key.bucket) else {
        return Vec::new();
    };
    let partition = key.token.partition(view.config.partition_bits);
    let owners = view.ring.owners_of(bucket, partition);
    let abandoned = &view.config.abandoned;
    let mut nodes = if owners.contains(target) && !abandoned.contains(&target) {
        vec![target]
    } else {
        let there = owners
            .current
            .iter()
            .filter(|node| !abandoned.contains(node));
        there.copied().collect()
    };
    for node in owners.target.unwrap_or_default() {
        if !nodes.contains(node) {
            nodes.push(*node);
        }
    }
    nodes
}

fn refuse_stand_in(core: &mut Core, asker: &StandIn, refusal: Refusal) {
    tell_stand_in(core, asker, replicate::outcome_of(refusal));
    core.answer(
        asker.node,
        asker.ask.op,
        asker.ask.ring,
        ReplyKind::Refused(refusal),
    );
}

fn tell_stand_in(core: &mut Core, asker: &StandIn, outcome: &'static str) {
    let trace = asker.ask.trace.clone();
    core.event(Event::Replica {
        op: "stand_in",
        outcome,
        from: asker.node,
        trace,
    });
}

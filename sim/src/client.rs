//! Clients: what they ask, and what the answers must be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use torc_protocol::client::{ClientError, ClientOp, ClientReply, ClientRequest, RequestId, Value};
use torc_protocol::message::OpId;
use torc_protocol::record::{Kind, Record};
use torc_protocol::time::{MS, Mono, SECOND};
use torc_protocol::version::{Digest, Version};
use torc_ring::{NodeId, PartitionId, Quorum, RingVersion};

use crate::check::order::{self, Floor, Part};
use crate::check::{Invariant, Violation, causal};
use crate::place::{Placed, Set};
use crate::plan::Plan;
use crate::world::{BUCKET, Ev, Place, World, key_bytes};

mod answers;

/// How much later than its deadline an answer may come: housekeeping's interval and what lies around it.
const GRACE: u64 = 400 * MS;

/// All clients, and what they know.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    issued: u64,
    /// Requests handed to shards.
    pub(crate) asked: u64,
    /// Requests that shards have reported as over.
    pub(crate) reported: u64,
    /// Requests whose node ended before it answered.
    pub(crate) lost: u64,
    waiting: BTreeMap<RequestId, Op>,
    next: u64,
    /// By key: what completed operations have shown.
    floors: BTreeMap<u64, Floor>,
    /// Key of each write.
    pub(crate) writes: BTreeMap<u64, u64>,
    /// Writes that were said to have had no effect.
    void: BTreeSet<u64>,
    /// Which write an exchange between nodes belongs to.
    pub(crate) exchanges: BTreeMap<(usize, u32, OpId), Version>,
    /// By key: the greatest acknowledged version.
    acknowledged: BTreeMap<u64, Version>,
    /// Keys that were ever deleted or given a time to live.
    mortal: BTreeSet<u64>,
}

/// A request that has no answer yet.
#[derive(Clone, Debug)]
struct Op {
    /// `None` for the checker's own reads at the end.
    client: Option<usize>,
    node: usize,
    begun: u64,
    deadline: u64,
    /// The ring of its shard when it began, for a watch, which may answer with what it read then.
    watched: Option<RingVersion>,
    what: What,
    floors: BTreeMap<u64, Floor>,
}

#[derive(Clone, Debug)]
enum What {
    Write {
        write: u64,
        key: u64,
        w: Quorum,
        sloppy: bool,
        context: Option<Version>,
    },
    Read {
        key: u64,
        r: Quorum,
    },
    List {
        partition: u16,
        from_start: bool,
    },
}

impl Clients {
    /// Whether every operation has been asked for and answered.
    pub(crate) fn finished(&self, plan: &Plan) -> bool {
        self.issued >= plan.ops && self.waiting.is_empty()
    }

    /// Operations begun by clients.
    pub(crate) fn issued(&self) -> u64 {
        self.issued
    }

    pub(crate) fn is_waiting(&self, id: RequestId) -> bool {
        self.waiting.contains_key(&id)
    }

    pub(crate) fn acknowledged(&self, key: u64) -> Option<Version> {
        self.acknowledged.get(&key).copied()
    }

    /// One owner has lost what it had not synced: what more than half of the owners have can be got back from
    /// the others, of all else one copy may be gone.
    pub(crate) fn forget_one(&mut self) {
        let waiting = self.waiting.values_mut().flat_map(|op| &mut op.floors);
        for (_, floor) in self.floors.iter_mut().chain(waiting) {
            floor.forget_one();
        }
    }

    pub(crate) fn floor(&self, key: u64) -> Floor {
        self.floors.get(&key).cloned().unwrap_or_default()
    }
}

impl World {
    /// A client asks for something.
    pub(crate) fn client_turn(&mut self, client: usize) {
        if self.clients.issued >= self.plan.ops {
            return;
        }
        let mut node = self.rng.below(self.nodes.len() as u64) as usize;
        if !self.nodes[node].serving && self.rng.chance(800) {
            // Most clients know who serves.
            let serving = (0..self.nodes.len()).filter(|at| self.nodes[*at].serving);
            let serving: Vec<usize> = serving.collect();
            if !serving.is_empty() {
                node = self.rng.pick(&serving);
            }
        }
        if let Some(newcomer) = self.newcomer() {
            node = newcomer;
        }
        if !self.nodes[node].is_up() {
            self.schedule(MS, Ev::Client { client });
            return;
        }
        self.clients.issued += 1;
        let key = self.rng.below(self.plan.keys);
        let mix = self.plan.mix;
        let mut at = self.rng.below(mix.iter().sum());
        let mut kind = 0;
        while at >= mix[kind] {
            at -= mix[kind];
            kind += 1;
        }
        match kind {
            0 => self.ask_read(client, node, key, false),
            1 => self.ask_write(client, node, key, false),
            2 => self.ask_write(client, node, key, true),
            3 => self.ask_read(client, node, key, true),
            _ => self.ask_list(client, node, key),
        }
    }

    fn own_quorum(&mut self) -> Option<Quorum> {
        if !self.plan.own_quorums || self.rng.chance(500) {
            return None;
        }
        Some(match self.rng.below(4) {
            0 => Quorum::One,
            1 => Quorum::Quorum,
            2 => Quorum::All,
            _ => Quorum::Count(self.rng.between(1, u64::from(self.plan.n)) as u8),
        })
    }

    fn ask_read(&mut self, client: usize, node: usize, key: u64, watch: bool) {
        let own = self.own_quorum();
        let r = own.unwrap_or(self.plan.r);
        let bytes = key_bytes(key);
        let op = if watch {
            ClientOp::Watch {
                key: bytes,
                r: own,
                known: self.stored_digest(node, key),
            }
        } else {
            ClientOp::Get { key: bytes, r: own }
        };
        self.ask((Some(client), node), op, What::Read { key, r });
    }

    /// What some client might know of a key.
    fn stored_digest(&self, node: usize, key: u64) -> Option<Digest> {
        let stored = self.nodes[node]
            .disk
            .visible
            .records
            .get(&self.record_key(key));
        stored.map(Record::digest)
    }

    fn ask_write(&mut self, client: usize, node: usize, key: u64, delete: bool) {
        let own = self.own_quorum();
        let w = own.unwrap_or(self.plan.w);
        let write = self.clients.next;
        let mut bytes = BytesMut::new();
        bytes.put_u64(write);
        let padding = self.rng.below(40) as usize;
        bytes.put_bytes(7, padding);
        let ttl_ms = (self.plan.ttl && self.rng.chance(300)).then(|| self.rng.between(1, 3_000));
        let value = Value {
            bytes: bytes.freeze(),
            content_type: Bytes::new(),
            ttl_ms,
        };
        if delete || ttl_ms.is_some() {
            self.clients.mortal.insert(key);
        }
        let sloppy = self.plan.sloppy && self.rng.chance(500);
        let context = if self.rng.chance(200) {
            // What its author saw was read anywhere.
            let seen_at = self.rng.below(self.nodes.len() as u64) as usize;
            self.stored_digest(seen_at, key).map(|d| d.version)
        } else {
            None
        };
        let op = ClientOp::Put {
            key: key_bytes(key),
            value: (!delete).then_some(value),
            w: own,
            sloppy: Some(sloppy),
            fsync: self.rng.chance(50),
            context,
        };
        self.clients.writes.insert(write, key);
        self.ask(
            (Some(client), node),
            op,
            What::Write {
                write,
                key,
                w,
                sloppy,
                context,
            },
        );
    }

    fn ask_list(&mut self, client: usize, node: usize, key: u64) {
        let partition = self.record_key(key).token.partition(self.plan.bits).0;
        let limit = self.rng.between(1, 20) as usize;
        let op = ClientOp::List {
            partition: PartitionId(partition),
            after: None,
            prefix: Bytes::new(),
            limit,
        };
        self.ask(
            (Some(client), node),
            op,
            What::List {
                partition,
                from_start: true,
            },
        );
    }

    /// The checker's own read.
    pub(crate) fn read_at(&mut self, node: usize, key: u64, quorum: Quorum) -> RequestId {
        let op = ClientOp::Get {
            key: key_bytes(key),
            r: Some(quorum),
        };
        self.ask((None, node), op, What::Read { key, r: quorum })
    }

    /// The checker's own write.
    pub(crate) fn write_at(&mut self, node: usize, key: u64, quorum: Quorum) -> RequestId {
        let write = self.clients.next;
        let bytes = Bytes::copy_from_slice(&write.to_be_bytes());
        let value = Value {
            bytes,
            content_type: Bytes::new(),
            ttl_ms: None,
        };
        self.clients.writes.insert(write, key);
        let op = ClientOp::Put {
            key: key_bytes(key),
            value: Some(value),
            w: Some(quorum),
            sloppy: Some(false),
            fsync: false,
            context: None,
        };
        self.ask(
            (None, node),
            op,
            What::Write {
                write,
                key,
                w: quorum,
                sloppy: false,
                context: None,
            },
        )
    }

    fn ask(
        &mut self,
        (client, node): (Option<usize>, usize),
        op: ClientOp,
        what: What,
    ) -> RequestId {
        let id = RequestId(self.clients.next);
        self.clients.next += 1;
        let patience = if !self.plan.orderly && self.rng.chance(100) {
            self.rng.below(100 * MS)
        } else {
            2 * SECOND
        };
        let patience = if client.is_some() {
            patience
        } else {
            5 * SECOND
        };
        let deadline = self.now + patience;
        let (partition, floors) = match &what {
            What::Write { key, .. } | What::Read { key, .. } => {
                let partition = self.record_key(*key).token.partition(self.plan.bits).0;
                (
                    partition,
                    BTreeMap::from([(*key, self.clients.floor(*key))]),
                )
            }
            What::List { partition, .. } => (*partition, self.clients.floors.clone()),
        };
        self.note(format_args!("client asks n{node} {id:?}: {op:?}"));
        let watched = matches!(op, ClientOp::Watch { .. }).then(|| self.ring_at(node, partition));
        let waiting = Op {
            client,
            node,
            begun: self.now,
            deadline,
            watched,
            what,
            floors,
        };
        self.clients.waiting.insert(id, waiting);
        self.clients.asked += 1;
        let request = ClientRequest {
            deadline: Mono(deadline),
            trace: Bytes::new(),
            bucket: BUCKET,
            op,
        };
        self.hand_over(node, partition, id, request);
        id
    }

    /// The node of these requests is gone; nobody will ever know.
    pub(crate) fn clients_lost(&mut self, node: usize) {
        let lost: Vec<RequestId> = self
            .clients
            .waiting
            .iter()
            .filter(|(_, op)| op.node == node)
            .map(|(&id, _)| id)
            .collect();
        for id in lost {
            self.clients.lost += 1;
            if let Some(Op {
                client: Some(client),
                ..
            }) = self.clients.waiting.remove(&id)
            {
                self.count("op: lost with its node");
                self.schedule(MS, Ev::Client { client });
            }
        }
    }

    /// A node answers.
    pub(crate) fn on_reply(&mut self, at: Place, id: RequestId, reply: &ClientReply) {
        self.note(format_args!(
            "n{} answers {id:?}: {:.300}",
            at.node,
            format!("{reply:?}")
        ));
        let Some(op) = self.clients.waiting.remove(&id) else {
            self.fail(Violation::new(
                Invariant::Books,
                format!("{id:?} was answered twice, or never asked"),
            ));
            return;
        };
        if self.now > op.deadline + GRACE && self.nodes[at.node].paused_until < op.begun {
            let late = self.now - op.deadline;
            self.fail(Violation::new(
                Invariant::Bounded,
                format!("{id:?} was answered {late} us too late"),
            ));
        }
        let outcome = match (&op.what, is_ok(reply)) {
            (What::Write { .. }, true) => "op: write ok",
            (What::Write { .. }, false) => "op: write failed",
            (What::Read { .. }, true) => "op: read ok",
            (What::Read { .. }, false) => "op: read failed",
            (What::List { .. }, true) => "op: list ok",
            (What::List { .. }, false) => "op: list failed",
        };
        self.count(outcome);
        if let ClientReply::Failed(error) = reply {
            let id = self.nodes[at.node].member.id;
            let latest = self.agreed.latest();
            // Who has left and does not know it yet is on its way out: clients are sent elsewhere.
            let stays = latest.is_some_and(|config| config.member(id).is_some());
            self.count(if stays {
                refusal(*error)
            } else {
                "op: refused by a node that has left"
            });
        }
        match (&op.what, reply) {
            (What::Write { .. }, ClientReply::Stored { digest, superseded }) => {
                self.on_stored(at, &op, *digest, *superseded);
            }
            (What::Read { key, r }, ClientReply::Found { record, .. }) => {
                self.on_found(at, &op, (*key, *r), record.as_ref());
            }
            (What::List { .. }, ClientReply::Listed { keys, next }) => {
                self.on_listed(at, &op, keys, next.is_none());
            }
            (What::Write { write, .. }, ClientReply::Failed(error)) => {
                self.on_write_failed(*write, *error);
            }
            (_, ClientReply::Failed(_)) => {}
            (what, reply) => {
                self.fail(Violation::new(
                    Invariant::Genuine,
                    format!("{what:?} was answered with {reply:?}"),
                ));
            }
        }
        if let Some(client) = op.client {
            let after = self.rng.below(2 * self.plan.think + 1);
            self.schedule(after, Ev::Client { client });
        }
    }

    fn on_write_failed(&mut self, write: u64, error: ClientError) {
        let maybe = matches!(
            error,
            ClientError::Quorum {
                maybe_applied: true,
                ..
            } | ClientError::DiskFull {
                maybe_applied: true,
                ..
            }
        );
        // A duplicate that is refused says nothing about the first copy; QUIC makes no duplicates.
        if !maybe && self.plan.faults.duplicates == 0 {
            self.clients.void.insert(write);
        }
    }

    fn on_stored(&mut self, at: Place, op: &Op, digest: Digest, superseded: bool) {
        let What::Write {
            write,
            key,
            w,
            sloppy,
            context,
        } = op.what
        else {
            return;
        };
        let seen = self.mint.seen(key, digest, Some(write));
        self.check(seen);
        let later = causal::write(context, digest.version);
        self.check(later);
        if superseded {
            self.count("rare: superseded write");
        }
        let Some(placed) = self.placed_at(at) else {
            return;
        };
        let record_key = self.record_key(key);
        let sets = placed.sets(&record_key);
        // The hints of a lost stand-in are nowhere to be seen.
        let lost = ["fault: data lost", "fault: power cut"];
        let unseen = sloppy && lost.iter().any(|what| self.counts.contains_key(what));
        if !self.plan.forgets() && !unseen {
            for set in &sets {
                let (copies, w) = (
                    self.copies(
                        (&record_key, digest),
                        set,
                        placed.view.config.version,
                        sloppy,
                    ),
                    w.required(set.nodes.len()),
                );
                if copies < w {
                    let what = format!(
                        "write {write} is acknowledged with {copies} of {w} copies on disk"
                    );
                    self.fail(Violation::new(Invariant::Durable, what));
                }
            }
        }
        if sloppy {
            return;
        }
        let required: Vec<(&[NodeId], usize)> = sets
            .iter()
            .map(|set| (set.nodes, w.required(set.nodes.len())))
            .collect();
        let own = (
            self.nodes[at.node].member.id,
            placed.view.config.ring_version,
        );
        let round = self.rounds.done(digest.version, own, &required);
        self.check(round);
        if self.plan.forgets() {
            return;
        }
        let parts = parts(&sets, w);
        // Known gap: a replica that restarts does not know that it has stored a version from a clock that was
        // ahead by more than the drift, and then does not tell an older write that it lost (seed 100709).
        // And an owner that has lost records acknowledges a write without knowing what it lost to.
        let gap = self.plan.faults.jumps > 0 && self.plan.faults.crashes > 0
            || self.cut_at.is_some_and(|at| at >= op.begun)
            || !placed.view.config.recovering.is_empty();
        if !superseded && !gap {
            let floor = op.floors.get(&key).cloned().unwrap_or_default();
            let result = order::write(&floor, &parts, digest.version);
            self.check(result);
        }
        let parts = self.shaken(op.begun, parts);
        self.raise(key, &parts, digest.version);
        let newest = self
            .clients
            .acknowledged
            .entry(key)
            .or_insert(digest.version);
        *newest = digest.version.max(*newest);
    }

    /// The ring version that the shard of that partition goes by.
    fn ring_at(&self, node: usize, partition: u16) -> RingVersion {
        let slots = &self.nodes[node].slots;
        let slot = slots.get(usize::from(partition) % slots.len().max(1));
        let placed = slot.and_then(|slot| slot.placed.as_ref());
        placed.map_or(RingVersion(0), |placed| placed.view.config.ring_version)
    }

    /// What the shard goes by.
    fn placed_at(&self, at: Place) -> Option<Arc<Placed>> {
        let slot = self.nodes[at.node].slots.get(usize::from(at.shard))?;
        slot.placed.clone()
    }

    pub(crate) fn raise(&mut self, key: u64, on: &[Part], version: Version) {
        self.clients
            .floors
            .entry(key)
            .or_default()
            .raise(on, version);
    }
}

fn parts(sets: &[Set<'_>], quorum: Quorum) -> Vec<Part> {
    let part = |set: &Set<'_>| Part {
        set: set.id,
        of: set.nodes.len(),
        count: quorum.required(set.nodes.len()),
    };
    sets.iter().map(part).collect()
}

/// The client's operation that made this record; tombstones do not tell.
pub(crate) fn write_of(record: &Record) -> Option<u64> {
    if record.kind() != Kind::Value {
        return None;
    }
    record
        .value_bytes()
        .get(..8)
        .and_then(|id| id.try_into().ok())
        .map(u64::from_be_bytes)
}

/// Why a node failed to do what it was asked. A node that says that it does not serve is no failure: clients
/// ask such nodes on purpose.
fn refusal(error: ClientError) -> &'static str {
    match error {
        ClientError::NotReady => "op: not ready",
        ClientError::Quorum { .. } => "refused: no quorum",
        ClientError::Unavailable { .. } => "refused: too few alive",
        ClientError::QuorumTooLarge { .. } => "refused: quorum too large",
        ClientError::Mode => "refused: mode",
        ClientError::NoBucket => "refused: no bucket",
        ClientError::DiskFull { .. } => "refused: disk full",
        ClientError::ClockDrift => "refused: clock drift",
        ClientError::ContextFromFuture => "refused: context",
        ClientError::Overloaded => "refused: overloaded",
    }
}

fn is_ok(reply: &ClientReply) -> bool {
    !matches!(reply, ClientReply::Failed(_))
}

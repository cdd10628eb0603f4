//! The replica's side: takes writes, answers reads, keeps watches.
//!
//! Invariants: an ack or an answer leaves only after the commit or read that it speaks of; it carries the
//! ring version at which the work was accepted. A write reads nothing first unless a newer version may be
//! there: `newest` bounds from above every version stored under a hash of its key, so that a version above
//! it is certainly the newest, and the ack can say so.

use std::collections::BTreeMap;

use bytes::Bytes;
use torc_ring::{NodeId, RingVersion};

use crate::core::Core;
use crate::hlc::Hlc;
use crate::message::{
    Cursor, ListEntry, Listed, OpId, RecordKey, Refusal, ReplyKind, Request, RequestKind,
    WritePurpose,
};
use crate::mutant::Mutant;
use crate::record::{Kind, Record};
use crate::shard_io::Event;
use crate::store::{CommitId, Found, Query, ReadId, StoreError, Sync, Write};
use crate::time::{Mono, SECOND};
use crate::trees::{self, TreeId};
use crate::version::{Digest, Version};
use crate::wire::Blob;

/// Number of bounds in `newest`; a power of two.
const SLOTS: usize = 1 << 14;
/// Questions to the disk that may be open at a time; more are refused.
const READS_MAX: usize = 1 << 14;
/// Greatest number of keys in an answer to a list.
pub(crate) const LIST_MAX: u32 = 10_000;

/// The replica's state.
#[derive(Debug)]
pub(crate) struct Replica {
    reads: BTreeMap<ReadId, Read>,
    commits: BTreeMap<CommitId, Commit>,
    newest: Vec<Hlc>,
    watches: BTreeMap<RecordKey, Vec<Watch>>,
    watch_count: usize,
    /// What a deliberate bug answers too early.
    #[cfg(feature = "mutants")]
    early: BTreeMap<RecordKey, Record>,
}

/// Who is to be answered.
#[derive(Clone, Debug)]
struct From {
    node: NodeId,
    op: OpId,
    ring: RingVersion,
    deadline: Mono,
    trace: Bytes,
}

#[derive(Debug)]
struct Read {
    from: From,
    why: Why,
    /// What it is about.
    tree: TreeId,
}

#[derive(Debug)]
enum Why {
    /// Answer with the state.
    Read {
        digest_only: bool,
    },
    /// A newer version may be there: look before writing.
    BeforeWrite {
        key: RecordKey,
        record: Record,
        purpose: WritePurpose,
        fsync: bool,
        floor: Hlc,
    },
    /// See whether a watched key has changed already.
    Watch {
        key: RecordKey,
        known: Option<Digest>,
    },
    List,
}

#[derive(Debug)]
struct Commit {
    from: From,
    key: RecordKey,
    digest: Digest,
    stored: Version,
    purpose: WritePurpose,
}

#[derive(Debug)]
struct Watch {
    from: From,
    known: Option<Digest>,
}

impl Replica {
    pub(crate) fn new(core: &Core) -> Self {
        // Whatever an earlier life stored was within the drift of its clock; see the module's invariant.
        let drift_max = core.settings.drift_max;
        let horizon = if core.settings.store_empty {
            Hlc(0)
        } else {
            let latest = Hlc::from_micros(core.now.wall.0.saturating_add(drift_max));
            latest.max(core.settings.durable_bound)
        };
        Self {
            reads: BTreeMap::new(),
            commits: BTreeMap::new(),
            newest: vec![horizon; SLOTS],
            watches: BTreeMap::new(),
            watch_count: 0,
            #[cfg(feature = "mutants")]
            early: BTreeMap::new(),
        }
    }

    /// A coordinator asks.
    pub(crate) fn on_request(&mut self, core: &mut Core, node: NodeId, request: Request) {
        let Request {
            op,
            ring,
            remaining_us,
            trace,
            kind,
        } = request;
        let deadline = core.now.mono.plus(u64::from(remaining_us));
        let from = From {
            node,
            op,
            ring,
            deadline,
            trace: trace.0,
        };
        let name = name_of(&kind);
        if self.reads.len() >= READS_MAX {
            refuse(core, &from, name, Refusal::Overloaded);
            return;
        }
        if let Err(refusal) = admit(core, &from, &kind) {
            refuse(core, &from, name, refusal);
            return;
        }
        match kind {
            RequestKind::Write {
                key,
                record,
                purpose,
                fsync,
                floor,
            } => {
                let why = Why::BeforeWrite {
                    key,
                    record,
                    purpose,
                    fsync,
                    floor,
                };
                self.write(core, from, why);
            }
            RequestKind::Read { key, digest_only } => {
                #[cfg(feature = "mutants")]
                if let Some(record) = self.early.get(&key) {
                    let digest = Some(record.digest());
                    let kind = if digest_only {
                        ReplyKind::Digest { digest }
                    } else {
                        let record = Some(record.clone());
                        ReplyKind::Full { record }
                    };
                    accept(core, &from, name, kind);
                    return;
                }
                let tree = core.tree_of(&key);
                let id = core.read(Query::Record(key));
                self.reads.insert(
                    id,
                    Read {
                        from,
                        why: Why::Read { digest_only },
                        tree,
                    },
                );
            }
            RequestKind::Watch { key, known } => self.watch(core, from, key, known),
            RequestKind::List {
                bucket,
                partition,
                after,
                prefix,
                limit,
            } => {
                let bits = core
                    .view
                    .as_ref()
                    .map_or(0, |view| view.config.partition_bits);
                let query = Query::Records {
                    bucket,
                    first: partition.first_token(bits),
                    last: partition.last_token(bits),
                    after: after.map(|cursor| (cursor.token, cursor.key.0)),
                    prefix: prefix.0,
                    limit: limit.clamp(1, LIST_MAX) as usize,
                };
                let id = core.read(query);
                self.reads.insert(
                    id,
                    Read {
                        from,
                        why: Why::List,
                        tree: (bucket, partition),
                    },
                );
            }
            // The shard hands these to its hints; none comes here.
            RequestKind::StandIn { .. } => refuse(core, &from, name, Refusal::NotOwner),
        }
    }

    /// Commits at once when the version is certainly the newest, else looks first.
    fn write(&mut self, core: &mut Core, from: From, why: Why) {
        let Why::BeforeWrite {
            key,
            record,
            purpose,
            fsync,
            floor,
        } = why
        else {
            return;
        };
        let tree = core.tree_of(&key);
        let version = record.version();
        let slot = &mut self.newest[(key.token.0 as usize) & (SLOTS - 1)];
        if version.hlc > *slot && record.kind() != Kind::Siblings {
            *slot = version.hlc;
            self.commit(core, from, (key, record), (purpose, fsync, version));
        } else {
            let id = core.read(Query::Record(key.clone()));
            self.reads.insert(
                id,
                Read {
                    from,
                    why: Why::BeforeWrite {
                        key,
                        record,
                        purpose,
                        fsync,
                        floor,
                    },
                    tree,
                },
            );
        }
    }

    fn commit(
        &mut self,
        core: &mut Core,
        from: From,
        (key, record): (RecordKey, Record),
        (purpose, fsync, stored): (WritePurpose, bool, Version),
    ) {
        let sync = if fsync { Sync::Fsync } else { Sync::Policy };
        let digest = record.digest();
        #[cfg(feature = "mutants")]
        if core.has(Mutant::ServesUncommitted) {
            self.early.insert(key.clone(), record.clone());
        }
        if core.has(Mutant::AckBeforeCommit) {
            accept(
                core,
                &from,
                purpose_name(purpose),
                ReplyKind::Written { stored },
            );
        }
        let tree = core.tree_of(&key);
        core.floors.touch(tree, &key, &record);
        let id = core.commit(
            Write::Merge {
                key: key.clone(),
                record,
            },
            sync,
        );
        self.commits.insert(
            id,
            Commit {
                from,
                key,
                digest,
                stored,
                purpose,
            },
        );
    }

    /// The disk answered a read; hands the result back when it was not asked for here.
    pub(crate) fn on_read(
        &mut self,
        core: &mut Core,
        id: ReadId,
        result: Result<Found, StoreError>,
    ) {
        let Some(Read { from, why, tree }) = self.reads.remove(&id) else {
            return;
        };
        let name = why.name();
        if from.ring != core.ring_version() && !core.has(Mutant::ServesAcrossRings) {
            refuse(core, &from, name, stale(core));
            return;
        }
        if core.now.mono >= from.deadline {
            refuse(core, &from, name, Refusal::Expired);
            return;
        }
        match (result, why) {
            (Err(error), _) => refuse(core, &from, name, refusal_of(error)),
            (Ok(Found::Record(found)), Why::Read { digest_only }) => {
                let found = core.alive(tree, found);
                let kind = if digest_only {
                    ReplyKind::Digest {
                        digest: found.as_ref().map(Record::digest),
                    }
                } else {
                    ReplyKind::Full { record: found }
                };
                accept_at(core, (&from, tree), name, kind);
            }
            (
                Ok(Found::Record(found)),
                Why::BeforeWrite {
                    key,
                    record,
                    purpose,
                    fsync,
                    floor,
                },
            ) => {
                let before = found.as_ref().map(Record::digest);
                let covered = before
                    .filter(|digest| *digest >= record.digest() && record.kind() != Kind::Siblings);
                // What is there already may not be fsynced, so a write that asks for an fsync is committed.
                if let (Some(digest), false) = (covered, fsync) {
                    accept(
                        core,
                        &from,
                        name,
                        ReplyKind::Written {
                            stored: digest.version,
                        },
                    );
                } else if let Err(refusal) = admit_write(core, tree, &record, (purpose, floor)) {
                    refuse(core, &from, name, refusal);
                } else {
                    let stored = covered.map_or(record.version(), |digest| digest.version);
                    self.commit(core, from, (key, record), (purpose, fsync, stored));
                }
            }
            (Ok(Found::Record(found)), Why::Watch { key, known }) => {
                let found = core.alive(tree, found);
                if found.as_ref().map(Record::digest) != known {
                    self.fire(core, &key, found.as_ref().map(Record::digest));
                }
            }
            (Ok(Found::Records { entries, reached }), Why::List) => {
                let entries = entries
                    .into_iter()
                    .filter(|(_, record)| !core.floors.is_dead(tree, record.dead_at()))
                    .map(|(key, record)| list_entry(key, &record))
                    .collect();
                let reached = reached.map(|(token, key)| Cursor {
                    token,
                    key: Blob(key),
                });
                accept_at(
                    core,
                    (&from, tree),
                    name,
                    ReplyKind::Listed(Listed { entries, reached }),
                );
            }
            (Ok(_), _) => refuse(core, &from, name, Refusal::Storage),
        }
    }

    /// A record comes another way than by a request: keeps the bound of what is stored.
    pub(crate) fn foresee(&mut self, key: &RecordKey, version: Version) {
        let slot = &mut self.newest[(key.token.0 as usize) & (SLOTS - 1)];
        *slot = version.hlc.max(*slot);
    }

    /// A commit ended; answers whether it was one of ours.
    pub(crate) fn on_committed(
        &mut self,
        core: &mut Core,
        id: CommitId,
        result: Result<(), StoreError>,
    ) -> bool {
        let Some(commit) = self.commits.remove(&id) else {
            return false;
        };
        trees::wrote(core, &commit.key);
        #[cfg(feature = "mutants")]
        self.early.remove(&commit.key);
        let name = purpose_name(commit.purpose);
        match result {
            Ok(()) => {
                // The ack speaks of the ring version under which the write was accepted.
                accept(
                    core,
                    &commit.from,
                    name,
                    ReplyKind::Written {
                        stored: commit.stored,
                    },
                );
                if commit.purpose != WritePurpose::Client {
                    core.event(Event::Repaired {
                        purpose: commit.purpose,
                    });
                }
                self.fire(core, &commit.key, Some(commit.digest));
            }
            Err(error) => refuse(core, &commit.from, name, refusal_of(error)),
        }
        true
    }

    /// Whether a write accepted under a ring version below this one is still on its way to disk.
    pub(crate) fn has_commits_below(&self, ring: RingVersion) -> bool {
        self.commits.values().any(|commit| commit.from.ring < ring)
    }

    /// Whether any write is on its way to disk or about to be.
    pub(crate) fn has_writes(&self) -> bool {
        !self.commits.is_empty()
            || self
                .reads
                .values()
                .any(|read| matches!(read.why, Why::BeforeWrite { .. }))
    }

    fn watch(&mut self, core: &mut Core, from: From, key: RecordKey, known: Option<Digest>) {
        if self.watch_count >= core.settings.watchers_max {
            refuse(core, &from, "watch", Refusal::Overloaded);
            return;
        }
        let watches = self.watches.entry(key.clone()).or_default();
        // The same coordinator asks again from time to time: one watch of an exchange is enough.
        let before = watches.len();
        watches.retain(|watch| (watch.from.node, watch.from.op) != (from.node, from.op));
        self.watch_count -= before - watches.len();
        watches.push(Watch {
            from: from.clone(),
            known,
        });
        self.watch_count += 1;
        let tree = core.tree_of(&key);
        let id = core.read(Query::Record(key.clone()));
        self.reads.insert(
            id,
            Read {
                from,
                why: Why::Watch { key, known },
                tree,
            },
        );
    }

    /// Tells everybody who watches the key for another state than `now`.
    pub(crate) fn fire(&mut self, core: &mut Core, key: &RecordKey, now: Option<Digest>) {
        if self.watch_count == 0 {
            return;
        }
        let Some(watches) = self.watches.get_mut(key) else {
            return;
        };
        let ring = core.ring_version();
        let before = watches.len();
        watches.retain(|watch| {
            let changed = watch.known != now;
            if changed {
                core.answer(watch.from.node, watch.from.op, ring, ReplyKind::Changed);
            }
            !changed
        });
        self.watch_count -= before - watches.len();
        if watches.is_empty() {
            self.watches.remove(key);
        }
    }

    /// Forgets watches that nobody waits for any more.
    pub(crate) fn expire_watches(&mut self, core: &Core) {
        if self.watch_count == 0 {
            return;
        }
        let now = core.now.mono;
        let mut count = 0;
        self.watches.retain(|_, watches| {
            watches.retain(|watch| watch.from.deadline > now);
            count += watches.len();
            !watches.is_empty()
        });
        self.watch_count = count;
    }
}

impl Why {
    fn name(&self) -> &'static str {
        match self {
            Self::Read { digest_only: false } => "read",
            Self::Read { digest_only: true } => "digest",
            Self::BeforeWrite { purpose, .. } => purpose_name(*purpose),
            Self::Watch { .. } => "watch",
            Self::List => "list",
        }
    }
}

fn purpose_name(purpose: WritePurpose) -> &'static str {
    match purpose {
        WritePurpose::Client => "write",
        WritePurpose::Hint => "hint",
        WritePurpose::Repair => "repair",
    }
}

fn name_of(kind: &RequestKind) -> &'static str {
    match kind {
        RequestKind::Write { purpose, .. } => purpose_name(*purpose),
        RequestKind::StandIn { .. } => "stand_in",
        RequestKind::Read {
            digest_only: false, ..
        } => "read",
        RequestKind::Read {
            digest_only: true, ..
        } => "digest",
        RequestKind::List { .. } => "list",
        RequestKind::Watch { .. } => "watch",
    }
}

/// Whether the request is of this ring version, in time, and about a partition that this node owns.
fn admit(core: &mut Core, from: &From, kind: &RequestKind) -> Result<(), Refusal> {
    // A joiner has the ring before it serves, and is asked again too: nobody else can take its place.
    let same = from.ring == core.ring_version() || core.has(Mutant::ServesAcrossRings);
    if !same || !core.serving {
        return Err(stale(core));
    }
    if core.now.mono >= from.deadline {
        return Err(Refusal::Expired);
    }
    let Some(view) = core.view.as_ref() else {
        return Err(Refusal::NotOwner);
    };
    let (bucket, partition) = match kind {
        RequestKind::Write { key, .. }
        | RequestKind::Read { key, .. }
        | RequestKind::Watch { key, .. } => {
            (key.bucket, key.token.partition(view.config.partition_bits))
        }
        RequestKind::List {
            bucket, partition, ..
        } => (*bucket, *partition),
        RequestKind::StandIn { .. } => return Ok(()),
    };
    let owned = view.keeps(core.settings.node, bucket, partition);
    if !owned {
        return Err(Refusal::NotOwner);
    }
    match kind {
        RequestKind::Write {
            purpose,
            record,
            floor,
            ..
        } => admit_write(core, (bucket, partition), record, (*purpose, *floor)),
        _ => Ok(()),
    }
}

/// Whether a write may be taken now.
pub(crate) fn admit_write(
    core: &Core,
    tree: TreeId,
    record: &Record,
    (purpose, floor): (WritePurpose, Hlc),
) -> Result<(), Refusal> {
    if core.closing {
        return Err(Refusal::Overloaded);
    }
    if purpose == WritePurpose::Client {
        let horizon = core.now.wall.0.saturating_add(core.settings.drift_max);
        if !core.clock_is_fit() || record.version().hlc.micros() > horizon {
            return Err(Refusal::ClockDrift);
        }
    }
    core.admit_version(tree, record.version(), (purpose, floor))
}

fn stale(core: &Core) -> Refusal {
    let config = core
        .view
        .as_ref()
        .map(|view| view.config.version)
        .unwrap_or_default();
    Refusal::RingVersion { config }
}

fn refusal_of(error: StoreError) -> Refusal {
    match error {
        StoreError::Full => Refusal::DiskFull,
        StoreError::Corrupt | StoreError::Failed => Refusal::Storage,
    }
}

pub(crate) fn outcome_of(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::RingVersion { .. } => "ring_version",
        Refusal::NotOwner => "not_owner",
        Refusal::Expired => "expired",
        Refusal::DiskFull => "disk_full",
        Refusal::Overloaded => "overloaded",
        Refusal::ClockDrift => "clock",
        Refusal::Storage => "storage",
        Refusal::Closed => "closed",
        Refusal::Inheriting => "inheriting",
    }
}

/// Answers with what was read, as it is at the present floor.
fn accept_at(core: &mut Core, (from, tree): (&From, TreeId), op: &'static str, kind: ReplyKind) {
    let floor = core.floors.floor(tree);
    did(core, (from, floor), op, kind);
}

fn accept(core: &mut Core, from: &From, op: &'static str, kind: ReplyKind) {
    did(core, (from, Hlc(0)), op, kind);
}

fn did(core: &mut Core, (from, floor): (&From, Hlc), op: &'static str, kind: ReplyKind) {
    core.event(Event::Replica {
        op,
        outcome: "ok",
        from: from.node,
        trace: from.trace.clone(),
    });
    core.answer_at(from.node, (from.op, from.ring, floor), kind);
}

fn refuse(core: &mut Core, from: &From, op: &'static str, refusal: Refusal) {
    let outcome = outcome_of(refusal);
    core.event(Event::Replica {
        op,
        outcome,
        from: from.node,
        trace: from.trace.clone(),
    });
    core.answer(from.node, from.op, from.ring, ReplyKind::Refused(refusal));
}

/// Refuses a request that another machine of this shard could not take.
pub(crate) fn refuse_request(core: &mut Core, node: NodeId, request: &Request, refusal: Refusal) {
    let deadline = core.now.mono.plus(SECOND);
    let from = From {
        node,
        op: request.op,
        ring: request.ring,
        deadline,
        trace: request.trace.0.clone(),
    };
    refuse(core, &from, name_of(&request.kind), refusal);
}

fn list_entry(key: RecordKey, record: &Record) -> ListEntry {
    ListEntry {
        at: Cursor {
            token: key.token,
            key: Blob(key.key),
        },
        digest: record.digest(),
        live: record.kind() != Kind::Tombstone,
        expiry: record.expiry().unwrap_or(0),
        value_len: record.value_bytes().len() as u64,
    }
}

//! What keeps the owners of a partition equal: sessions with other owners, the schedule that begins them,
//! and the coverage that a ring change demands.
//!
//! Invariants: what a session receives is fsynced before it counts, and what a transfer receives before the
//! whole of it counts; sessions are of one ring version and
//! begin only when this node has durably applied it and drained older ones; every record goes through the
//! same merge as any other write.
//! Source: Dynamo (2007), section 4.7.

use std::collections::{BTreeMap, BTreeSet};

use torc_ring::{BucketId, NodeId, PartitionId, RingVersion};

use crate::antientropy::Schedule;
use crate::budget::Budget;
use crate::core::{Core, Timer};
use crate::floor::{Over, Wanted};
use crate::message::{OpId, RecordKey};
use crate::replicate::Replica;
use crate::shard_io::{Event, Output};
use crate::store::{CommitId, Found, ReadId, StateKey, StoreError, Sync, Write};
use crate::sync_message::{SyncAnswer, SyncAsk, SyncBody, SyncMessage, SyncRefusal};
use crate::time::Mono;
use crate::transfer::Coverage;
use crate::trees::{self, Refresher};
use crate::version::Digest;

mod diff;
mod receive;
mod serve;
mod session;

use self::receive::is_key;
pub(crate) use self::serve::is_merged;
use self::serve::{Question, Waiter};
pub(crate) use self::session::Purpose;
use self::session::{Flow, Session};

/// Sessions of anti-entropy at a time.
const COMPARES_MAX: usize = 4;
/// Sessions of a ring change at a time.
const COVERS_MAX: usize = 8;
/// Sessions for floors at a time.
const FLOORS_MAX: usize = 4;
/// Bytes of trees in one commit when the node stops.
const SAVE_BYTES: usize = 1 << 20;

/// The shard's side of anti-entropy and transfer.
#[derive(Debug)]
pub(crate) struct Repair {
    shared: Shared,
    sessions: BTreeMap<OpId, Session>,
    waiters: Vec<Waiter>,
    schedule: Schedule,
    coverage: Option<Coverage>,
    /// Ring version for which schedule and coverage were made.
    ring: RingVersion,
    pumping: Option<Mono>,
    saving: Saving,
    /// Sessions for floors that may be held only later.
    nothing: BTreeSet<trees::TreeId>,
}

/// Writing the trees down for the next start.
#[derive(Debug, Default)]
enum Saving {
    #[default]
    No,
    /// As soon as no write is on its way.
    Wanted,
    Writing(BTreeSet<CommitId>),
    Done,
}

/// What sessions have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    refresher: Refresher,
    reads: BTreeMap<ReadId, Reader>,
    commits: BTreeMap<CommitId, Storing>,
    repair: Budget,
    /// Received in ring changes.
    taken: Budget,
    /// Handed out in ring changes.
    given: Budget,
}

impl Shared {
    /// What a ring change may use now.
    fn keep_pace(&mut self, core: &mut Core) {
        let now = core.now.mono;
        let changes = core
            .view
            .as_ref()
            .is_some_and(|view| view.config.target.is_some());
        core.foreground.set_moving(now, changes);
        let share = core.foreground.share(now);
        self.taken.set_share(share);
        self.given.set_share(share);
    }

    fn budget(&mut self, purpose: Purpose) -> &mut Budget {
        match purpose {
            Purpose::Compare | Purpose::Floor(_) => &mut self.repair,
            Purpose::Cover => &mut self.taken,
        }
    }
}

/// Who waits for the disk.
#[derive(Debug)]
enum Reader {
    /// A session, for a page of this side's digests.
    Ours(OpId),
    /// A session, for records that it wants to push.
    Push(OpId),
    /// Another node.
    Answer(Asker),
}

/// Another node that asked something.
#[derive(Clone, Debug)]
struct Asker {
    node: NodeId,
    session: OpId,
    number: u32,
    ring: RingVersion,
    partition: PartitionId,
    /// The bucket that was asked about, if it was one.
    bucket: Option<BucketId>,
    deadline: Mono,
}

/// Records on their way to disk.
#[derive(Debug)]
struct Storing {
    ring: RingVersion,
    from: NodeId,
    keys: Vec<(RecordKey, Digest)>,
    bytes: u64,
    transfer: bool,
    then: Then,
}

/// What follows when records are stored.
#[derive(Debug)]
enum Then {
    Answer(Asker),
    Session(OpId),
}

/// What a session works with.
pub(crate) struct Cx<'a> {
    core: &'a mut Core,
    replica: &'a mut Replica,
    shared: &'a mut Shared,
    /// Copies that are still being brought over.
    covering: &'a BTreeSet<trees::TreeId>,
}

/// The context, without borrowing the sessions.
macro_rules! cx {
    ($self:ident, $core:ident, $replica:ident) => {
        &mut Cx {
            core: $core,
            replica: $replica,
            shared: &mut $self.shared,
            covering: $self
                .coverage
                .as_ref()
                .map_or(&$self.nothing, Coverage::open),
        }
    };
}

impl Repair {
    pub(crate) fn new(core: &Core) -> Self {
        let settings = &core.settings;
        Self {
            shared: Shared {
                refresher: Refresher::default(),
                reads: BTreeMap::new(),
                commits: BTreeMap::new(),
                repair: Budget::new(settings.repair_rate),
                taken: Budget::new(settings.transfer_rate),
                given: Budget::new(settings.transfer_rate),
            },
            sessions: BTreeMap::new(),
            waiters: Vec::new(),
            schedule: Schedule::new(core),
            coverage: None,
            ring: RingVersion(0),
            pumping: None,
            saving: Saving::No,
            nothing: BTreeSet::new(),
        }
    }

    // ---- what happens

    pub(crate) fn on_message(
        &mut self,
        core: &mut Core,
        replica: &mut Replica,
        (from, message): (NodeId, SyncMessage),
    ) {
        let SyncMessage {
            session,
            number,
            ring,
            partition,
            floor,
            body,
        } = message;
        if usize::from(partition.0) & (usize::from(core.settings.count) - 1)
            != usize::from(core.settings.index)
        {
            return;
        }
        match body {
            SyncBody::Ask { remaining_us, ask } => {
                if ring > core.ring_version() {
                    let version = torc_ring::ConfigVersion(ring.0);
                    core.out.push_back(Output::NewerConfig(from, version));
                }
                match ask {
                    SyncAsk::Verified { age_us } if ring == core.ring_version() => {
                        self.schedule.verified(core, (partition, from), age_us);
                    }
                    SyncAsk::Doubt { node } => self.schedule.doubt(core.now, (partition, node)),
                    _ => {}
                }
                let question = Question {
                    from,
                    session,
                    number,
                    ring,
                    partition,
                    remaining_us,
                    floor,
                    ask,
                };
                if let Some(bucket) = question.ask.bucket()
                    && ring == core.ring_version()
                    && core.owns_both((bucket, partition), from)
                {
                    core.floors.hear((bucket, partition), from, floor);
                }
                serve::on_question(cx!(self, core, replica), &mut self.waiters, question);
            }
            SyncBody::Answer(answer) => {
                if let SyncAnswer::Refused(SyncRefusal::RingVersion { config }) = &answer
                    && core
                        .view
                        .as_ref()
                        .is_none_or(|view| view.config.version < *config)
                {
                    core.out.push_back(Output::NewerConfig(from, *config));
                }
                if answer == SyncAnswer::Noted {
                    self.schedule.noted(session, from);
                }
                if self
                    .sessions
                    .get(&session)
                    .is_some_and(|session| session.peer == from)
                {
                    self.drive(core, replica, session, |session, cx| {
                        session.on_answer(cx, (number, floor), answer)
                    });
                }
            }
        }
        self.go_on(core, replica);
    }

    /// The disk answered; hands the result back when it was no question of ours.
    pub(crate) fn on_read(
        &mut self,
        core: &mut Core,
        replica: &mut Replica,
        (id, result): (ReadId, Result<Found, StoreError>),
    ) -> Option<Result<Found, StoreError>> {
        if let Some(reader) = self.shared.reads.remove(&id) {
            let push = matches!(reader, Reader::Push(_));
            match reader {
                Reader::Answer(asker) => serve::on_read(cx!(self, core, replica), &asker, result),
                Reader::Ours(session) | Reader::Push(session) => {
                    self.drive(core, replica, session, |session, cx| {
                        session.on_read(cx, push, result)
                    });
                }
            }
            self.go_on(core, replica);
            return None;
        }
        let joint = self.coverage.is_some();
        let budget = if joint {
            &mut self.shared.taken
        } else {
            &mut self.shared.repair
        };
        if self.shared.refresher.on_read(core, budget, id, &result) {
            self.go_on(core, replica);
            return None;
        }
        Some(result)
    }

    /// A commit ended; answers whether it was one of ours.
    pub(crate) fn on_committed(
        &mut self,
        core: &mut Core,
        replica: &mut Replica,
        (id, result): (CommitId, Result<(), StoreError>),
    ) -> bool {
        if let Saving::Writing(commits) = &mut self.saving
            && commits.remove(&id)
        {
            if commits.is_empty() {
                self.saving = Saving::Done;
            }
            return true;
        }
        if let Some(coverage) = &mut self.coverage
            && coverage.on_committed(core, id, result.is_ok())
        {
            return true;
        }
        let Some(storing) = self.shared.commits.remove(&id) else {
            return false;
        };
        for (key, digest) in &storing.keys {
            trees::wrote(core, key);
            replica.fire(core, key, Some(*digest));
        }
        if result.is_ok() {
            if let Some(coverage) = &mut self.coverage
                && storing.transfer
            {
                coverage.bytes += storing.bytes;
            }
            core.event(Event::Synced {
                from: storing.from,
                keys: storing.keys.len() as u64,
                bytes: storing.bytes,
                transfer: storing.transfer,
            });
        }
        let holds = storing.ring == core.ring_version();
        match storing.then {
            Then::Answer(asker) if holds => {
                let answer = match result {
                    Ok(()) => SyncAnswer::Stored,
                    Err(_) => SyncAnswer::Refused(SyncRefusal::Failed),
                };
                asker.answer(core, answer);
            }
            Then::Session(session) if holds => {
                self.drive(core, replica, session, |session, cx| {
                    session.on_stored(cx, result.is_ok())
                });
            }
            Then::Answer(_) | Then::Session(_) => {}
        }
        self.go_on(core, replica);
        true
    }

    /// The timer of an exchange rang; answers whether it was one of ours.
    pub(crate) fn on_timer(&mut self, core: &mut Core, replica: &mut Replica, id: OpId) -> bool {
        if !self.sessions.contains_key(&id) {
            return false;
        }
        self.drive(core, replica, id, Session::on_timer);
        self.go_on(core, replica);
        true
    }

    /// Trees that waited for their budget may be read on.
    pub(crate) fn on_pump(&mut self, core: &mut Core, replica: &mut Replica) {
        self.pumping = None;
        self.go_on(core, replica);
    }

    /// Another config holds. Sessions of an older ring version are over.
    pub(crate) fn on_config(&mut self, core: &mut Core, replica: &mut Replica) {
        let ring = core.ring_version();
        let stale: Vec<OpId> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.ring < ring)
            .map(|(&id, _)| id)
            .collect();
        for id in stale {
            self.drive(core, replica, id, |_, _| Flow::Failed("ring_version"));
        }
        self.waiters.clear();
        if ring > self.ring {
            self.coverage = None;
        } else if let Some(coverage) = &mut self.coverage {
            coverage.forget_buckets(core);
        }
        let Some(view) = core.view.clone() else {
            return;
        };
        core.tree_key
            .get_or_insert_with(|| crate::merkle::TreeKey::new(&view.config.secret));
        let node = core.node();
        core.trees
            .retain(|(bucket, partition)| view.keeps(node, bucket, partition));
        self.schedule.rebuild(core);
        self.go_on(core, replica);
    }

    /// Peers came back, or went.
    pub(crate) fn on_liveness(&mut self, core: &mut Core, before: &BTreeSet<NodeId>) {
        let back = before.iter().filter(|node| !core.dead.contains(node));
        for &node in back {
            self.schedule.doubt_node(core.now, node);
        }
    }

    /// Somebody wants everything compared soon.
    pub(crate) fn on_wish(&mut self, core: &mut Core, replica: &mut Replica) {
        self.schedule.doubt_all(core.now);
        self.go_on(core, replica);
    }

    pub(crate) fn housekeeping(&mut self, core: &mut Core, replica: &mut Replica) {
        self.schedule.housekeeping(core);
        if let Some(coverage) = &mut self.coverage {
            coverage.report(core);
        }
        self.schedule.scrub(core, &mut self.shared.refresher);
        self.go_on(core, replica);
    }

    /// Nothing comes any more: the trees are written down when no write is on its way.
    pub(crate) fn save(&mut self, core: &mut Core) {
        core.closing = true;
        if matches!(self.saving, Saving::No) {
            self.saving = Saving::Wanted;
        }
    }

    /// Whether nothing of it is on its way to disk.
    pub(crate) fn has_writes(&self) -> bool {
        !self.shared.commits.is_empty()
    }

    pub(crate) fn has_commits_below(&self, ring: RingVersion) -> bool {
        self.shared
            .commits
            .values()
            .any(|storing| storing.ring < ring)
    }

    /// Whether the trees that were to be written down are not yet.
    pub(crate) fn is_saving(&self) -> bool {
        matches!(self.saving, Saving::Wanted | Saving::Writing(_))
    }

    // ---- what follows

    /// What has come to be possible: called whenever something happened.
    pub(crate) fn settle(&mut self, core: &mut Core, replica: &mut Replica) {
        if core.is_settled() && self.ring < core.ring_version() {
            self.ring = core.ring_version();
            self.coverage = Coverage::new(core);
            self.go_on(core, replica);
        }
        if !core.floors.wanted.is_empty() {
            self.go_on(core, replica);
        }
        // The closes that it waited for may be known by now.
        if let Some(coverage) = &mut self.coverage {
            coverage.announce(core);
        }
        if matches!(self.saving, Saving::Wanted) && !replica.has_writes() && !self.has_writes() {
            self.write_trees(core);
        }
    }

    fn write_trees(&mut self, core: &mut Core) {
        let mut commits = BTreeSet::new();
        let mut writes = Vec::new();
        let mut bytes = 0;
        let trees: Vec<_> = core.trees.encode().collect();
        for ((bucket, partition), value) in trees {
            bytes += value.len() + 64;
            let key = StateKey::Tree(bucket, partition);
            writes.push(Write::StatePut { key, value });
            if bytes >= SAVE_BYTES {
                let batch = std::mem::take(&mut writes);
                commits.insert(core.commit_all(batch, Sync::Policy));
                bytes = 0;
            }
        }
        if !writes.is_empty() {
            commits.insert(core.commit_all(writes, Sync::Fsync));
        }
        self.saving = if commits.is_empty() {
            Saving::Done
        } else {
            Saving::Writing(commits)
        };
    }

    /// Lets a session take a step; when it is over, keeps the books.
    fn drive(
        &mut self,
        core: &mut Core,
        replica: &mut Replica,
        id: OpId,
        step: impl FnOnce(&mut Session, &mut Cx<'_>) -> Flow,
    ) {
        let Some(mut session) = self.sessions.remove(&id) else {
            return;
        };
        let flow = step(&mut session, cx!(self, core, replica));
        if flow == Flow::Going {
            self.sessions.insert(id, session);
            return;
        }
        session.disarm(cx!(self, core, replica));
        self.shared
            .reads
            .retain(|_, reader| reader.session() != Some(id));
        let pair = (session.partition, session.peer);
        let ok = flow == Flow::Over;
        if session.purpose == Purpose::Cover {
            for &bucket in &session.buckets {
                core.floors.covering.remove(&(bucket, session.partition));
            }
        }
        match session.purpose {
            Purpose::Compare => self
                .schedule
                .ended(core, pair, ok.then_some(session.started)),
            Purpose::Floor(why) => {
                if let Some(&bucket) = session.buckets.first() {
                    let wanted = Wanted {
                        why,
                        tree: (bucket, session.partition),
                        peer: session.peer,
                    };
                    let found = ok.then_some(session.doom);
                    core.floors.over.push_back(Over { wanted, found });
                }
            }
            Purpose::Cover => {
                if let Some(coverage) = &mut self.coverage
                    && session.ring == self.ring
                {
                    coverage.ended(core, pair, &session.buckets, ok);
                }
            }
        }
        if let Flow::Failed(reason) = flow {
            core.event(Event::SyncFailed {
                peer: session.peer,
                partition: session.partition,
                reason,
            });
        }
    }

    /// Begins what may begin, reads trees on, and tells who waited for them.
    fn go_on(&mut self, core: &mut Core, replica: &mut Replica) {
        self.shared.keep_pace(core);
        loop {
            self.begin_sessions(core, replica);
            let budget = if self.coverage.is_some() {
                &self.shared.taken
            } else {
                &self.shared.repair
            };
            let wait = self.shared.refresher.pump(core, budget);
            if let Some(wait) = wait
                && self.pumping.is_none()
            {
                let at = core.now.mono.plus(wait);
                self.pumping = Some(at);
                core.timers.insert((at, Timer::Trees));
            }
            let ended = self.shared.refresher.take_ended();
            if ended.is_empty() {
                return;
            }
            for ended in ended {
                self.schedule.on_tree(core, &ended);
                serve::on_tree(cx!(self, core, replica), &mut self.waiters, &ended);
                let waiting: Vec<OpId> = self
                    .sessions
                    .iter()
                    .filter(|(_, session)| session.partition == ended.id.1)
                    .map(|(&id, _)| id)
                    .collect();
                for id in waiting {
                    self.drive(core, replica, id, |session, cx| session.on_tree(cx, &ended));
                }
            }
        }
    }

    fn begin_sessions(&mut self, core: &mut Core, replica: &mut Replica) {
        if !core.serving || !core.is_settled() || core.closing || self.ring != core.ring_version() {
            return;
        }
        loop {
            let running = |purpose: Purpose| {
                self.sessions
                    .values()
                    .filter(move |session| session.purpose == purpose)
            };
            let cover = match &self.coverage {
                Some(coverage) if running(Purpose::Cover).count() < COVERS_MAX => {
                    let busy: BTreeSet<PartitionId> = running(Purpose::Cover)
                        .map(|session| session.partition)
                        .collect();
                    coverage.next(core, &busy)
                }
                _ => None,
            };
            if let Some((pair, buckets)) = cover {
                self.begin(core, replica, (Purpose::Cover, pair), buckets);
                continue;
            }
            let floors = self
                .sessions
                .values()
                .filter(|session| matches!(session.purpose, Purpose::Floor(_)));
            if floors.count() < FLOORS_MAX
                && let Some(Wanted { why, tree, peer }) = core.floors.wanted.pop_front()
            {
                let pair = (tree.1, peer);
                self.begin(core, replica, (Purpose::Floor(why), pair), vec![tree.0]);
                continue;
            }
            if running(Purpose::Compare).count() >= COMPARES_MAX {
                return;
            }
            let Some((pair, buckets)) = self.schedule.next(core) else {
                return;
            };
            self.begin(core, replica, (Purpose::Compare, pair), buckets);
        }
    }

    fn begin(
        &mut self,
        core: &mut Core,
        replica: &mut Replica,
        (purpose, (partition, peer)): (Purpose, (PartitionId, NodeId)),
        buckets: Vec<BucketId>,
    ) {
        let what = (purpose, peer, partition);
        if purpose == Purpose::Cover {
            let trees = buckets.iter().map(|&bucket| (bucket, partition));
            core.floors.covering.extend(trees);
        }
        let session = Session::new(cx!(self, core, replica), what, buckets);
        let id = session.id;
        self.sessions.insert(id, session);
        self.drive(core, replica, id, Session::begin);
    }
}

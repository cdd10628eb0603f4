//! Read coordinator: the full value from the best replica, digests from the rest, one replica more when
//! somebody is slow; where answers differ, everything is fetched, merged, and written back.
//!
//! Invariant (`blocking`): what a read answers is stored on max(w, n−r+1) owners before it is answered, so
//! with r + w > n and 2r > n a later read never goes back in time.
//! Source: Dynamo (2007), section 5; Cassandra's blocking read repair. Reads no clock, does no I/O.

use std::collections::BTreeMap;

use torc_ring::{NodeId, Quorum, ReadRepair, RingVersion};

use crate::client::{ClientError, ClientReply};
use crate::core::{Ask, Caller, Core, Step};
use crate::hlc::Hlc;
use crate::message::{OpId, RecordKey, Refusal, ReplyKind, RequestKind, WritePurpose};
use crate::mutant::Mutant;
use crate::put::RETRY_OLDER;
use crate::quorum::{Need, Tally, Verdict};
use crate::record::Record;
use crate::shard_io::Event;
use crate::time::Mono;
use crate::version::Digest;

/// To whom the result of a read goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// The client.
    Client,
    /// A watch of this shard.
    Watch(OpId),
}

/// How a read is to be coordinated.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Owners, the one to be asked first in front.
    pub(crate) order: Vec<NodeId>,
    pub(crate) need: Need,
    pub(crate) repair: ReadRepair,
    /// Owners that must have the merged value before a blocking repair answers.
    pub(crate) repair_need: Need,
}

/// What one owner said.
#[derive(Clone, Debug)]
enum Answer {
    /// Asked for a digest or for the value; nothing came yet.
    Asked { since: Mono },
    /// Everything.
    Full(Option<Record>),
    /// The digest.
    Digest(Option<Digest>),
    /// It will not answer.
    Refused,
}

impl Answer {
    // Outer: whether there is an answer; inner: whether anything is stored.
    #[allow(clippy::option_option)]
    fn digest(&self) -> Option<Option<Digest>> {
        match self {
            Self::Full(record) => Some(record.as_ref().map(Record::digest)),
            Self::Digest(digest) => Some(*digest),
            Self::Asked { .. } | Self::Refused => None,
        }
    }
}

#[derive(Debug)]
enum Phase {
    /// Answers are being collected; with `all_full` only whole values count, because digests differed.
    Collect { all_full: bool },
    /// The merged value is being written back.
    WriteBack {
        merged: Option<Record>,
        tally: Tally,
    },
}

/// One read on its way.
#[derive(Debug)]
pub(crate) struct Get {
    pub(crate) ask: Ask,
    pub(crate) caller: Caller,
    pub(crate) key: RecordKey,
    pub(crate) destination: For,
    /// What the client asked for; the bucket's default otherwise.
    pub(crate) r: Option<Quorum>,
    plan: Plan,
    answers: Vec<(NodeId, Answer)>,
    /// The floors at which they were read.
    floors: BTreeMap<NodeId, Hlc>,
    retry: Vec<NodeId>,
    phase: Phase,
    hedge_at: Mono,
    wake: Option<Mono>,
}

/// What a finished read hands to whoever asked.
pub(crate) type Outcome = Result<Option<Record>, ClientError>;

impl Get {
    /// Asks the best owners.
    pub(crate) fn start(
        core: &mut Core,
        (ask, caller): (Ask, Caller),
        key: RecordKey,
        destination: For,
        (plan, r): (Plan, Option<Quorum>),
    ) -> Self {
        let mut get = Self {
            ask,
            caller,
            key,
            destination,
            r,
            plan,
            answers: Vec::new(),
            floors: BTreeMap::new(),
            retry: Vec::new(),
            phase: Phase::Collect { all_full: false },
            hedge_at: Mono(0),
            wake: None,
        };
        get.ask_first(core);
        get
    }

    fn ask_first(&mut self, core: &mut Core) {
        self.ask_enough(core);
        self.arm(core);
    }

    /// Asks so many owners that their answers would suffice, as far as there are any left: the first one
    /// for the value, the others for digests, those that take the place of one that refused, or is to be asked
    /// again, for the value.
    fn ask_enough(&mut self, core: &mut Core) {
        let mut tally = self.plan.need.tally();
        let refused = |answer: &Answer| matches!(answer, Answer::Refused);
        for (node, answer) in &self.answers {
            if !refused(answer) && !self.retry.contains(node) {
                tally.ack(*node);
            }
        }
        let first = self.answers.is_empty();
        while let Some(node) = self.ask_next(core, &tally, first && !self.answers.is_empty()) {
            tally.ack(node);
        }
    }

    /// What the owners that have answered amount to.
    fn answered(&self) -> Tally {
        let mut tally = self.plan.need.tally();
        for (node, answer) in &self.answers {
            match answer {
                Answer::Full(_) | Answer::Digest(_) => {
                    tally.ack(*node);
                }
                Answer::Refused => tally.fail(*node),
                Answer::Asked { .. } => {}
            }
        }
        tally
    }

    /// Starts again under another ring version, with no answers.
    pub(crate) fn restart(&mut self, core: &mut Core, ring: RingVersion, plan: Plan) {
        self.ask.ring = ring;
        self.plan = plan;
        self.answers.clear();
        self.floors.clear();
        self.retry.clear();
        self.phase = Phase::Collect { all_full: false };
        self.ask_first(core);
    }

    /// Asks the best owner that was not asked and whose answer would help; answers who that was.
    fn ask_next(&mut self, core: &mut Core, tally: &Tally, digest_only: bool) -> Option<NodeId> {
        let asked = |node: &NodeId| self.answers.iter().any(|(asked, _)| asked == node);
        let node = *self
            .plan
            .order
            .iter()
            .find(|&node| !asked(node) && tally.helps(*node))?;
        self.answers.push((
            node,
            Answer::Asked {
                since: core.now.mono,
            },
        ));
        self.hedge_at = core.now.mono.plus(core.latency.hedge_after(node));
        self.send_read(core, node, digest_only);
        Some(node)
    }

    fn send_read(&self, core: &mut Core, node: NodeId, digest_only: bool) {
        let kind = RequestKind::Read {
            key: self.key.clone(),
            digest_only,
        };
        core.request(node, &self.ask, kind);
    }

    /// An answer came. The outcome is there once the read is over.
    pub(crate) fn on_reply(
        &mut self,
        core: &mut Core,
        (from, floor): (NodeId, Hlc),
        kind: ReplyKind,
    ) -> (Step, Option<Outcome>) {
        match kind {
            ReplyKind::Full { record } => {
                self.on_answer(core, (from, floor), Answer::Full(record));
            }
            ReplyKind::Digest { digest } => {
                self.on_answer(core, (from, floor), Answer::Digest(digest));
            }
            ReplyKind::Written { stored } => {
                // An ack of a write-back before the read began anew says nothing of this one.
                if let Phase::WriteBack { tally, merged } = &mut self.phase
                    && merged
                        .as_ref()
                        .is_none_or(|record| stored >= record.version())
                {
                    tally.ack(from);
                }
            }
            ReplyKind::Refused(refusal) => self.on_refused(core, from, refusal),
            ReplyKind::StoodIn | ReplyKind::Listed(_) | ReplyKind::Changed => {}
        }
        self.settle(core)
    }

    fn on_answer(&mut self, core: &mut Core, (from, floor): (NodeId, Hlc), answer: Answer) {
        let now = core.now.mono;
        let Some((_, slot)) = self.answers.iter_mut().find(|(node, _)| *node == from) else {
            return;
        };
        if let Answer::Asked { since } = *slot {
            let micros = now.since(since);
            core.latency.observe(from, micros);
            core.event(Event::PeerLatency { peer: from, micros });
        }
        match (&*slot, &answer) {
            // A digest that comes late must not replace the value that was fetched meanwhile.
            (Answer::Full(_), Answer::Digest(_)) => {}
            // Digests differed already: only the value helps.
            (_, Answer::Digest(_)) if matches!(self.phase, Phase::Collect { all_full: true }) => {
                *slot = Answer::Asked { since: now };
                self.send_read(core, from, false);
            }
            _ => {
                *slot = answer;
                self.floors.insert(from, floor);
            }
        }
    }

    fn on_refused(&mut self, core: &mut Core, from: NodeId, refusal: Refusal) {
        if let Phase::WriteBack { tally, .. } = &mut self.phase {
            match refusal {
                // It has a higher floor than this read has seen: the read asks it this time.
                Refusal::Closed => {
                    self.plan.order.retain(|&node| node != from);
                    self.plan.order.insert(0, from);
                    let plan = self.plan.clone();
                    self.restart(core, self.ask.ring, plan);
                    return;
                }
                Refusal::RingVersion { .. } => self.retry.push(from),
                _ => tally.fail(from),
            }
            self.arm(core);
            return;
        }
        if let Refusal::RingVersion { config } = refusal {
            let ours = core.view.as_ref().map(|view| view.config.version);
            if ours.is_some_and(|ours| config <= ours) && !self.retry.contains(&from) {
                self.retry.push(from);
                if ours == Some(config) {
                    // It has the ring and does not serve yet: that may take a while.
                    self.ask_enough(core);
                }
                self.arm(core);
            }
            return;
        }
        if let Some((_, slot)) = self.answers.iter_mut().find(|(node, _)| *node == from)
            && matches!(slot, Answer::Asked { .. })
        {
            *slot = Answer::Refused;
            self.ask_enough(core);
        }
    }

    fn settle(&mut self, core: &mut Core) -> (Step, Option<Outcome>) {
        match &self.phase {
            Phase::Collect { all_full } => {
                let all_full = *all_full;
                self.settle_collect(core, all_full)
            }
            Phase::WriteBack { merged, tally } => match tally.verdict() {
                Verdict::Met => {
                    let merged = merged.clone();
                    self.finish(core, Ok(merged))
                }
                Verdict::Unreachable => {
                    let error = no_quorum(tally.required(), tally.received());
                    self.finish(core, Err(error))
                }
                Verdict::Pending => (Step::Wait, None),
            },
        }
    }

    fn settle_collect(&mut self, core: &mut Core, all_full: bool) -> (Step, Option<Outcome>) {
        let judged = self.judged(core);
        let digests: Vec<Option<Digest>> = judged
            .values()
            .map(|digest| compared(core, *digest))
            .collect();
        let full: Vec<NodeId> = self
            .answers
            .iter()
            .filter(|(_, answer)| matches!(answer, Answer::Full(_)))
            .map(|(node, _)| *node)
            .collect();
        let tally = self.answered();
        match tally.verdict() {
            Verdict::Unreachable => {
                let error = no_quorum(tally.required(), tally.received());
                return self.finish(core, Err(error));
            }
            Verdict::Pending if !self.is_content(core) => return (Step::Wait, None),
            Verdict::Pending | Verdict::Met => {}
        }
        if digests.windows(2).all(|pair| pair[0] == pair[1]) && !all_full {
            if !full.is_empty() {
                let record = self.fulls(&judged).next();
                return self.finish(core, Ok(record));
            }
            // Only digests so far: the replica that was asked for the value is slow. Fetch it elsewhere.
            if let Some(&(node, _)) = self
                .answers
                .iter()
                .find(|(_, a)| matches!(a, Answer::Digest(_)))
            {
                if digests[0].is_none() {
                    return self.finish(core, Ok(None));
                }
                self.send_read(core, node, false);
            }
            return (Step::Wait, None);
        }
        if !all_full {
            core.event(Event::ReadRepair {
                mode: self.plan.repair,
            });
            self.phase = Phase::Collect { all_full: true };
            let since = core.now.mono;
            let mut lacking = Vec::new();
            for (node, answer) in &mut self.answers {
                if matches!(answer, Answer::Digest(_)) {
                    *answer = Answer::Asked { since };
                    lacking.push(*node);
                }
            }
            for node in lacking {
                self.send_read(core, node, false);
            }
        }
        let mut whole = self.plan.need.tally();
        for node in full {
            whole.ack(node);
        }
        if whole.verdict() == Verdict::Met {
            self.repair(core)
        } else {
            (Step::Wait, None)
        }
    }

    /// A deliberate bug: one answer fewer will do.
    fn is_content(&self, core: &Core) -> bool {
        if !core.has(Mutant::ReadQuorumShort) {
            return false;
        }
        let mut tally = self.plan.need.clone().lessened().tally();
        for (node, answer) in &self.answers {
            if answer.digest().is_some() {
                tally.ack(*node);
            }
        }
        tally.verdict() == Verdict::Met
    }

    /// The highest floor that an answer was read at. One that was put aside, to be asked for as a whole, says
    /// nothing any more: what its owner held at that floor is not known here.
    fn floor(&self, core: &Core) -> Hlc {
        if core.has(Mutant::ReadIgnoresFloor) {
            return Hlc(0);
        }
        let aside = core.has(Mutant::FloorOfNoAnswer);
        let counts = |answer: &Answer| aside || answer.digest().is_some();
        let answers = self.answers.iter().filter(|(_, answer)| counts(answer));
        let floors = answers.filter_map(|(node, _)| self.floors.get(node));
        floors.copied().max().unwrap_or_default()
    }

    /// What each answer counts for: versions up to the highest floor seen that only owners with lower floors
    /// hold count for nothing, since there absence is information.
    fn judged(&self, core: &Core) -> BTreeMap<NodeId, Option<Digest>> {
        let highest = self.floor(core);
        let floor = |node: &NodeId| self.floors.get(node).copied().unwrap_or_default();
        let answers = || {
            let digest = |(node, answer): &(NodeId, Answer)| Some((*node, answer.digest()?));
            self.answers.iter().filter_map(digest)
        };
        let held: Vec<Digest> = answers()
            .filter(|(node, _)| floor(node) >= highest)
            .filter_map(|(_, digest)| digest)
            .collect();
        answers()
            .map(|(node, digest)| {
                let counts = |digest: &Digest| {
                    floor(&node) >= highest || digest.version.hlc > highest || held.contains(digest)
                };
                (node, digest.filter(counts))
            })
            .collect()
    }

    /// The records among the whole answers that count.
    fn fulls<'a>(
        &'a self,
        judged: &'a BTreeMap<NodeId, Option<Digest>>,
    ) -> impl Iterator<Item = Record> + 'a {
        self.answers
            .iter()
            .filter_map(move |(node, answer)| match answer {
                Answer::Full(Some(record)) => {
                    let counts = judged.get(node).copied().flatten().is_some();
                    counts.then(|| record.clone())
                }
                _ => None,
            })
    }

    /// All answers are whole values and they differ: merge them and write the result back.
    fn repair(&mut self, core: &mut Core) -> (Step, Option<Outcome>) {
        let mut merged: Option<Record> = None;
        let judged = self.judged(core);
        let fulls: Vec<Record> = self.fulls(&judged).collect();
        for record in fulls {
            merged = Some(match merged {
                None => record,
                Some(so_far) => {
                    if so_far.version() == record.version() && so_far.digest() != record.digest() {
                        let partition = core.partition(&self.key);
                        core.event(Event::VersionCollision { partition });
                    }
                    let Ok(both) = so_far.merge(record) else {
                        let error = no_quorum(self.answered().required(), 0);
                        return self.finish(core, Err(error));
                    };
                    both
                }
            });
        }
        let Some(record) = merged.clone() else {
            return self.finish(core, Ok(None));
        };
        if self.plan.repair == ReadRepair::Off {
            return self.finish(core, Ok(merged));
        }
        let digest = Some(record.digest());
        let mut tally = self.plan.repair_need.tally();
        for (node, found) in &judged {
            if *found == digest {
                tally.ack(*node);
            }
        }
        // Those that were seen to be stale, and as many of the others as the promise needs.
        let seen = |node: &NodeId| {
            self.answers
                .iter()
                .any(|(n, a)| n == node && a.digest().is_some())
        };
        let lacking: Vec<NodeId> = tally.missing().collect();
        let (stale, unseen): (Vec<NodeId>, Vec<NodeId>) = lacking.into_iter().partition(seen);
        let mut hoped = tally.clone();
        for node in &stale {
            hoped.ack(*node);
        }
        let mut written = stale;
        for node in unseen {
            if hoped.helps(node) {
                hoped.ack(node);
                written.push(node);
            }
        }
        for node in written {
            self.send_repair(core, node, &record);
        }
        if self.plan.repair == ReadRepair::Async || core.has(Mutant::WriteBackNotAwaited) {
            return self.finish(core, Ok(merged));
        }
        self.phase = Phase::WriteBack { merged, tally };
        self.settle(core)
    }

    fn send_repair(&self, core: &mut Core, node: NodeId, record: &Record) {
        let kind = RequestKind::Write {
            key: self.key.clone(),
            record: record.clone(),
            purpose: WritePurpose::Repair,
            fsync: false,
            floor: self.floor(core),
        };
        core.request(node, &self.ask, kind);
    }

    fn finish(&mut self, core: &mut Core, outcome: Outcome) -> (Step, Option<Outcome>) {
        if self.destination == For::Client {
            let reply = match &outcome {
                Ok(record) => ClientReply::Found {
                    record: record.clone(),
                    now_micros: core.clock.peek(core.now.wall).micros(),
                },
                Err(error) => ClientReply::Failed(*error),
            };
            let required = self.answered().required();
            self.caller.answer(core, &self.ask, required, reply);
        }
        (Step::Done, Some(outcome))
    }

    /// The timer rang: ask one more, ask again, or give up.
    pub(crate) fn on_timer(&mut self, core: &mut Core) -> (Step, Option<Outcome>) {
        self.wake = None;
        let now = core.now.mono;
        if now >= self.ask.deadline {
            let tally = match &self.phase {
                Phase::Collect { .. } => self.answered(),
                Phase::WriteBack { tally, .. } => tally.clone(),
            };
            let (required, received) = (tally.required(), tally.received());
            let error = no_quorum(required, received);
            return self.finish(core, Err(error));
        }
        let retry = std::mem::take(&mut self.retry);
        match &self.phase {
            Phase::Collect { .. } => {
                for node in retry {
                    self.send_read(core, node, false);
                }
                if now >= self.hedge_at {
                    self.hedge(core);
                }
            }
            Phase::WriteBack { merged, tally } => {
                let (merged, missing) = (merged.clone(), tally.missing().collect::<Vec<_>>());
                for node in missing {
                    // Slow and unasked owners alike: whoever makes the promise true first.
                    if let Some(record) = &merged {
                        self.send_repair(core, node, record);
                    }
                }
                self.hedge_at =
                    now.plus(core.latency.hedge_after(core.node()).max(20 * RETRY_OLDER));
            }
        }
        self.arm(core);
        (Step::Wait, None)
    }

    /// Somebody is slow: ask the next owner, or, when all were asked, the slow ones again.
    fn hedge(&mut self, core: &mut Core) {
        let slow: Vec<(NodeId, Mono)> = self
            .answers
            .iter()
            .filter_map(|(node, answer)| match answer {
                Answer::Asked { since } => Some((*node, *since)),
                _ => None,
            })
            .collect();
        for &(node, since) in &slow {
            core.latency.observe(node, core.now.mono.since(since));
        }
        let tally = self.answered();
        if self.ask_next(core, &tally, false).is_some() {
            core.event(Event::Hedged);
            return;
        }
        for (node, _) in slow {
            self.send_read(core, node, false);
        }
        self.hedge_at = core.now.mono.plus(20 * RETRY_OLDER);
    }

    fn arm(&mut self, core: &mut Core) {
        let now = core.now.mono;
        let mut at = self.ask.deadline.min(self.hedge_at.max(now.plus(1)));
        if !self.retry.is_empty() {
            at = at.min(now.plus(RETRY_OLDER));
        }
        core.set_timer(self.ask.op, self.wake, Some(at));
        self.wake = Some(at);
    }

    /// Takes the timer away: the operation is over.
    pub(crate) fn disarm(&mut self, core: &mut Core) {
        core.set_timer(self.ask.op, self.wake.take(), None);
    }
}

fn no_quorum(required: u8, received: u8) -> ClientError {
    ClientError::Quorum {
        required,
        received,
        maybe_applied: false,
    }
}

/// What two answers are compared by: all of the digest.
fn compared(core: &Core, digest: Option<Digest>) -> Option<Digest> {
    if core.has(Mutant::DigestOfVersion) {
        return digest.map(|digest| Digest { hash: 0, ..digest });
    }
    digest
}

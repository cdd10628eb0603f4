//! Write coordinator: succeeds once `w` distinct owners have made the write durable; owners that miss it
//! get a hint.
//!
//! Invariant: the version is minted once; whatever is sent again, to whomever, is the same record.
//! Source: Dynamo (2007), sections 4.5 and 4.6. Reads no clock, does no I/O.

use torc_ring::{NodeId, RingVersion};

use crate::client::{ClientError, ClientReply};
use crate::core::{Ask, Caller, Core, Step};
use crate::hlc::Hlc;
use crate::message::{RecordKey, Refusal, ReplyKind, RequestKind, WritePurpose};
use crate::mutant::Mutant;
use crate::quorum::{Need, Tally, Verdict};
use crate::record::{Parts, Record};
use crate::shard::PutChoice;
use crate::time::{MS, Mono};
use crate::version::Version;

/// How long to wait before a replica at an older ring version is asked again, in microseconds.
pub(crate) const RETRY_OLDER: u64 = 25 * MS;

/// One write on its way.
#[derive(Debug)]
pub(crate) struct Put {
    pub(crate) ask: Ask,
    pub(crate) caller: Caller,
    pub(crate) key: RecordKey,
    pub(crate) record: Record,
    pub(crate) choice: PutChoice,
    tally: Tally,
    /// Dead owners and the nodes that stand in for them.
    stand_ins: Vec<(NodeId, NodeId)>,
    /// Owners that have a hint already.
    hinted: Vec<NodeId>,
    /// Owners at an older ring version, to be asked again.
    retry: Vec<NodeId>,
    /// Greatest version that an owner has stored.
    stored: Version,
    disk_full: bool,
    /// Somebody may have the write although no ack of the present ring says so: it was sent under an
    /// earlier ring, or a disk failed in the middle of it.
    doubt: bool,
    hint_at: Mono,
    wake: Option<Mono>,
}

/// How a write is to be coordinated.
pub(crate) struct Plan {
    pub(crate) need: Need,
    /// The next nodes on the ring, when they may stand in.
    pub(crate) stand_ins: Vec<NodeId>,
}

impl Put {
    /// Sends the write to every owner that is alive, and finds stand-ins for the others.
    pub(crate) fn start(
        core: &mut Core,
        (ask, caller): (Ask, Caller),
        (key, record): (RecordKey, Record),
        (plan, choice): (Plan, PutChoice),
    ) -> Self {
        let hint_at = core
            .now
            .mono
            .plus(core.settings.hint_after)
            .min(ask.deadline);
        let stored = record.version();
        let mut put = Self {
            ask,
            caller,
            key,
            record,
            choice,
            tally: plan.need.tally(),
            stand_ins: Vec::new(),
            hinted: Vec::new(),
            retry: Vec::new(),
            stored,
            disk_full: false,
            doubt: false,
            hint_at,
            wake: None,
        };
        put.send_all(core, plan.stand_ins);
        put.arm(core);
        put
    }

    fn send_all(&mut self, core: &mut Core, stand_ins: Vec<NodeId>) {
        let mut free = stand_ins
            .into_iter()
            .filter(|node| !core.dead.contains(node))
            .collect::<Vec<_>>()
            .into_iter();
        for owner in self.tally.nodes().to_vec() {
            if !core.dead.contains(&owner) {
                self.send_to(core, owner);
            } else if let Some(node) = free.next() {
                self.stand_ins.push((owner, node));
                self.send_to(core, node);
            } else {
                self.tally.fail(owner);
            }
        }
    }

    /// Sends the write to an owner, or to a stand-in with the name of the owner that it stands in for.
    fn send_to(&self, core: &mut Core, node: NodeId) {
        let (key, record) = (self.key.clone(), self.record.clone());
        let kind = match self
            .stand_ins
            .iter()
            .find(|&&(_, stand_in)| stand_in == node)
        {
            Some(&(target, _)) => RequestKind::StandIn {
                target,
                key,
                record,
            },
            None => RequestKind::Write {
                key,
                record,
                purpose: WritePurpose::Client,
                fsync: self.choice.fsync,
                floor: Hlc(0),
            },
        };
        core.request(node, &self.ask, kind);
    }

    /// Starts again under another ring version, with no acks: what was promised under the old one does
    /// not count under the new one.
    pub(crate) fn restart(&mut self, core: &mut Core, ring: RingVersion, plan: Plan) {
        self.ask.ring = ring;
        self.doubt = true;
        if !core.has(Mutant::AcksKeptAcrossRings) {
            self.tally = plan.need.tally();
        }
        if core.has(Mutant::RetryRemints) {
            self.remint(core);
        }
        self.stand_ins.clear();
        self.retry.clear();
        self.disk_full = false;
        self.send_all(core, plan.stand_ins);
    }

    /// What a retry must never do.
    fn remint(&mut self, core: &mut Core) {
        if let Ok(hlc) = core.clock.mint(core.now.wall) {
            let version = Version {
                hlc,
                node: core.node(),
            };
            let (content_type, value) = (self.record.content_type(), self.record.value_bytes());
            let parts = Parts {
                version,
                expiry: self.record.expiry(),
                content_type,
                value: &value,
            };
            self.record = Record::value(parts);
        }
    }

    /// An answer came.
    pub(crate) fn on_reply(&mut self, core: &mut Core, from: NodeId, kind: &ReplyKind) -> Step {
        match kind {
            ReplyKind::Written { stored } => {
                self.stored = self.stored.max(*stored);
                if !self.tally.ack(from) && core.has(Mutant::DuplicateAckCounts) {
                    let another = self.tally.missing().next();
                    another.map(|node| self.tally.ack(node));
                }
            }
            ReplyKind::StoodIn => {
                if let Some(&(owner, _)) = self.stand_ins.iter().find(|(_, node)| *node == from) {
                    self.hinted.push(owner);
                    self.tally.ack(owner);
                }
            }
            ReplyKind::Refused(refusal) => self.on_refused(core, from, *refusal),
            ReplyKind::Full { .. }
            | ReplyKind::Digest { .. }
            | ReplyKind::Listed(_)
            | ReplyKind::Changed => {}
        }
        self.settle(core)
    }

    fn on_refused(&mut self, core: &mut Core, from: NodeId, refusal: Refusal) {
        let owner = self
            .stand_ins
            .iter()
            .find(|(_, node)| *node == from)
            .map_or(from, |&(owner, _)| owner);
        match refusal {
            Refusal::RingVersion { config } => {
                let ours = core.view.as_ref().map(|view| view.config.version);
                if ours.is_some_and(|ours| config <= ours) && !self.retry.contains(&from) {
                    self.retry.push(from);
                    self.arm(core);
                }
            }
            Refusal::Inheriting => {
                if !self.retry.contains(&from) {
                    self.retry.push(from);
                    self.arm(core);
                }
            }
            Refusal::DiskFull => {
                self.disk_full = true;
                self.tally.fail(owner);
            }
            Refusal::Storage => {
                self.doubt = true;
                self.tally.fail(owner);
            }
            Refusal::NotOwner
            | Refusal::Expired
            | Refusal::Overloaded
            | Refusal::ClockDrift
            | Refusal::Closed => {
                self.tally.fail(owner);
            }
        }
    }

    /// Answers the client when the answers suffice or cannot any more. The operation is over when no owner
    /// can be waited for any more.
    pub(crate) fn settle(&mut self, core: &mut Core) -> Step {
        match self.tally.verdict() {
            Verdict::Met => {
                let digest = self.record.digest();
                let superseded =
                    self.stored > digest.version && !core.has(Mutant::SupersededUntold);
                let reply = ClientReply::Stored { digest, superseded };
                self.caller
                    .answer(core, &self.ask, self.tally.required(), reply);
            }
            Verdict::Unreachable => self.fail(core),
            Verdict::Pending => return Step::Wait,
        }
        if self.tally.waiting() || !self.retry.is_empty() {
            Step::Wait
        } else {
            Step::Done
        }
    }

    fn fail(&mut self, core: &mut Core) {
        let (required, received) = (self.tally.required(), self.tally.received());
        // An owner that has not answered may have the write all the same.
        let doubt = self.doubt && !core.has(Mutant::DoubtForgotten);
        let maybe_applied =
            doubt || self.tally.any() || self.tally.waiting() || !self.hinted.is_empty();
        let error = if self.disk_full {
            ClientError::DiskFull {
                required,
                received,
                maybe_applied,
            }
        } else {
            ClientError::Quorum {
                required,
                received,
                maybe_applied,
            }
        };
        self.caller
            .answer(core, &self.ask, required, ClientReply::Failed(error));
    }

    /// The timer rang: ask again, give hints, or give up.
    pub(crate) fn on_timer(&mut self, core: &mut Core) -> Step {
        self.wake = None;
        let now = core.now.mono;
        if now >= self.ask.deadline {
            self.fail(core);
            return Step::Done;
        }
        if self.lingers() && now >= self.hint_at {
            return Step::Done;
        }
        for node in std::mem::take(&mut self.retry) {
            self.send_to(core, node);
        }
        self.arm(core);
        Step::Wait
    }

    /// Owners that do not have the write: they get hints if anybody has it at all (a write that nobody
    /// acked is not made to take effect later by its coordinator).
    pub(crate) fn missed(&self) -> Vec<NodeId> {
        if !self.tally.any() {
            return Vec::new();
        }
        self.tally
            .missing()
            .filter(|node| !self.hinted.contains(node))
            .collect()
    }

    /// Whether the client has its answer and only slow owners are waited for.
    pub(crate) fn lingers(&self) -> bool {
        self.caller.request.is_none()
    }

    /// One timer serves both ends: at `hint_at` an answered write gives up on slow owners, and an
    /// unanswered one sets the timer to its deadline.
    fn arm(&mut self, core: &mut Core) {
        let now = core.now.mono;
        let mut at = if now < self.hint_at {
            self.hint_at
        } else {
            self.ask.deadline
        };
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

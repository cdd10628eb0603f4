//! Verify coordinator: what each owner holds of a key, each for itself, for an operator who wants to know.
//!
//! Asks all owners, those of both rings while the partition moves, and answers when all that are believed to
//! be alive have, or at the deadline with what there is. It promises nothing and repairs nothing.

use std::collections::BTreeMap;

use torc_ring::{NodeId, RingVersion};

use crate::client::{ClientReply, Held, Holding};
use crate::core::{Ask, Caller, Core, Step};
use crate::hlc::Hlc;
use crate::message::{RecordKey, Refusal, ReplyKind, RequestKind};
use crate::time::{MS, Mono};

/// Owners that have not answered are asked again after so long, in microseconds.
const AGAIN: u64 = 250 * MS;
/// This much before the client's deadline it answers with what there is, in microseconds.
const MARGIN: u64 = 50 * MS;

/// One question on its way.
#[derive(Debug)]
pub(crate) struct Verify {
    pub(crate) ask: Ask,
    pub(crate) caller: Caller,
    pub(crate) key: RecordKey,
    owners: Vec<NodeId>,
    held: BTreeMap<NodeId, (Hlc, Holding)>,
    wake: Option<Mono>,
}

impl Verify {
    pub(crate) fn start(
        core: &mut Core,
        (ask, caller): (Ask, Caller),
        key: RecordKey,
        owners: Vec<NodeId>,
    ) -> Self {
        let mut verify = Self {
            ask,
            caller,
            key,
            owners,
            held: BTreeMap::new(),
            wake: None,
        };
        verify.ask_silent(core);
        verify.arm(core);
        verify
    }

    /// Starts again under another ring version, with no answers.
    pub(crate) fn restart(&mut self, core: &mut Core, ring: RingVersion, owners: Vec<NodeId>) {
        self.ask.ring = ring;
        self.owners = owners;
        self.held.clear();
        self.ask_silent(core);
        self.arm(core);
    }

    fn ask_silent(&self, core: &mut Core) {
        for &node in self.owners.iter().filter(|o| !self.held.contains_key(o)) {
            let kind = RequestKind::Read {
                key: self.key.clone(),
                digest_only: true,
            };
            core.request(node, &self.ask, kind);
        }
    }

    pub(crate) fn on_reply(
        &mut self,
        core: &mut Core,
        (from, floor): (NodeId, Hlc),
        kind: ReplyKind,
    ) -> Step {
        let holding = match kind {
            ReplyKind::Digest { digest } => Holding::State(digest),
            ReplyKind::Full { record } => Holding::State(record.map(|record| record.digest())),
            // One that has another ring is asked again: one of the two is about to catch up.
            ReplyKind::Refused(refusal) if !matches!(refusal, Refusal::RingVersion { .. }) => {
                Holding::Refused(refusal)
            }
            ReplyKind::Refused(_)
            | ReplyKind::Written { .. }
            | ReplyKind::StoodIn
            | ReplyKind::Listed(_)
            | ReplyKind::Changed => return Step::Wait,
        };
        if self.owners.contains(&from) {
            self.held.insert(from, (floor, holding));
        }
        let missing = |owner: &NodeId| !self.held.contains_key(owner) && !core.dead.contains(owner);
        if self.owners.iter().any(missing) {
            return Step::Wait;
        }
        self.finish(core)
    }

    fn finish(&mut self, core: &mut Core) -> Step {
        let held = self.owners.iter().map(|&node| {
            let (floor, holding) = self
                .held
                .get(&node)
                .copied()
                .unwrap_or((Hlc(0), Holding::Silent));
            Held {
                node,
                floor,
                holding,
            }
        });
        let reply = ClientReply::Verified {
            held: held.collect(),
        };
        let asked = self.owners.len() as u8;
        self.caller.answer(core, &self.ask, asked, reply);
        Step::Done
    }

    pub(crate) fn on_timer(&mut self, core: &mut Core) -> Step {
        self.wake = None;
        if core.now.mono.plus(MARGIN) >= self.ask.deadline {
            return self.finish(core);
        }
        self.ask_silent(core);
        self.arm(core);
        Step::Wait
    }

    fn arm(&mut self, core: &mut Core) {
        let now = core.now.mono;
        let end = Mono(self.ask.deadline.0.saturating_sub(MARGIN)).max(now.plus(1));
        let at = end.min(now.plus(AGAIN));
        core.set_timer(self.ask.op, self.wake, Some(at));
        self.wake = Some(at);
    }

    /// Takes the timer away: the operation is over.
    pub(crate) fn disarm(&mut self, core: &mut Core) {
        core.set_timer(self.ask.op, self.wake.take(), None);
    }
}

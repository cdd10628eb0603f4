//! Watch coordinator: answers a read as soon as the key's state is another one than the client knows.
//!
//! The owners are asked to say so once; whatever they say only starts a read, so that a watch promises
//! exactly what a read does. Registrations are renewed from time to time, with a read each, so that a
//! lost message or a restarted owner delays the news but never swallows it.

use torc_ring::{NodeId, Quorum};

use crate::client::ClientReply;
use crate::core::{Ask, Caller, Core, Step};
use crate::get::Outcome;
use crate::message::{OpId, RecordKey, RequestKind};
use crate::record::Record;
use crate::time::{MS, Mono, SECOND};
use crate::version::Digest;

/// A registration is renewed after this many microseconds.
const RENEW: u64 = 3 * SECOND;
/// This much before the client's deadline the watch answers with what it last read.
const MARGIN: u64 = 5 * MS;

/// One watch on its way.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) ask: Ask,
    pub(crate) caller: Caller,
    pub(crate) key: RecordKey,
    pub(crate) r: Option<Quorum>,
    known: Option<Digest>,
    last: Option<Outcome>,
    /// A read is under way.
    reading: Option<OpId>,
    /// Something was said while a read was under way: read again after it.
    dirty: bool,
    renew_at: Mono,
    wake: Option<Mono>,
}

/// What the watch wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Nothing,
    /// Start a read for it.
    Read,
}

impl Watch {
    pub(crate) fn new(
        (ask, caller): (Ask, Caller),
        key: RecordKey,
        r: Option<Quorum>,
        known: Option<Digest>,
    ) -> Self {
        Self {
            ask,
            caller,
            key,
            r,
            known,
            last: None,
            reading: None,
            dirty: false,
            renew_at: Mono(0),
            wake: None,
        }
    }

    /// Asks the owners to say when the key changes.
    pub(crate) fn register(&mut self, core: &mut Core, owners: &[NodeId]) -> Wish {
        self.ask.ring = core.ring_version();
        for &node in owners
            .iter()
            .filter(|node| !core.dead.contains(node))
            .collect::<Vec<_>>()
        {
            let kind = RequestKind::Watch {
                key: self.key.clone(),
                known: self.known,
            };
            core.request(node, &self.ask, kind);
        }
        self.renew_at = core.now.mono.plus(RENEW);
        self.arm(core);
        self.wish()
    }

    /// An owner says that the key has changed.
    pub(crate) fn on_changed(&mut self) -> Wish {
        self.wish()
    }

    fn wish(&mut self) -> Wish {
        if self.reading.is_some() {
            self.dirty = true;
            return Wish::Nothing;
        }
        Wish::Read
    }

    pub(crate) fn on_read_started(&mut self, read: OpId) {
        self.reading = Some(read);
        self.dirty = false;
    }

    /// The read ended.
    pub(crate) fn on_outcome(&mut self, core: &mut Core, outcome: Outcome) -> (Step, Wish) {
        self.reading = None;
        let changed =
            matches!(&outcome, Ok(record) if record.as_ref().map(Record::digest) != self.known);
        let failed = outcome.is_err();
        if !(failed && matches!(self.last, Some(Ok(_)))) {
            self.last = Some(outcome);
        }
        if changed {
            return (self.finish(core), Wish::Nothing);
        }
        let wish = if std::mem::take(&mut self.dirty) {
            Wish::Read
        } else {
            Wish::Nothing
        };
        (Step::Wait, wish)
    }

    pub(crate) fn finish(&mut self, core: &mut Core) -> Step {
        let now_micros = core.clock.peek(core.now.wall).micros();
        let reply = match self.last.take() {
            Some(Ok(record)) => ClientReply::Found { record, now_micros },
            Some(Err(error)) => ClientReply::Failed(error),
            None => ClientReply::Failed(crate::client::ClientError::Quorum {
                required: 1,
                received: 0,
                maybe_applied: false,
            }),
        };
        self.caller.answer(core, &self.ask, 0, reply);
        Step::Done
    }

    fn end(&self) -> Mono {
        Mono(self.ask.deadline.0.saturating_sub(MARGIN))
    }

    /// The timer rang; `true` asks for another registration.
    pub(crate) fn on_timer(&mut self, core: &mut Core) -> (Step, bool) {
        self.wake = None;
        if core.now.mono >= self.end() {
            return (self.finish(core), false);
        }
        let renew = core.now.mono >= self.renew_at;
        if !renew {
            self.arm(core);
        }
        (Step::Wait, renew)
    }

    fn arm(&mut self, core: &mut Core) {
        let at = self.end().min(self.renew_at);
        core.set_timer(self.ask.op, self.wake, Some(at));
        self.wake = Some(at);
    }

    pub(crate) fn disarm(&mut self, core: &mut Core) {
        core.set_timer(self.ask.op, self.wake.take(), None);
    }
}

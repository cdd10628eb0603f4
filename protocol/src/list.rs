//! List coordinator: one page of the live keys of a partition, merged from `r` owners.
//!
//! Invariant: a page says nothing about keys beyond the point that every asked owner has reached.

use std::collections::{BTreeMap, BTreeSet};

use torc_ring::{BucketId, NodeId, PartitionId, RingVersion};

use crate::client::{ClientError, ClientReply, ListedKey};
use crate::core::{Ask, Caller, Core, Step};
use crate::hlc::Hlc;
use crate::message::{Cursor, ListEntry, Listed, Refusal, ReplyKind, RequestKind};
use crate::put::RETRY_OLDER;
use crate::quorum::{Need, Tally, Verdict};
use crate::time::{MS, Mono};
use crate::version::Digest;
use crate::wire::Blob;

/// How long to wait for an owner before another is asked too, in microseconds.
const HEDGE: u64 = 200 * MS;

/// What is to be listed.
#[derive(Clone, Debug)]
pub(crate) struct What {
    pub(crate) bucket: BucketId,
    pub(crate) partition: PartitionId,
    pub(crate) after: Option<Cursor>,
    pub(crate) prefix: Blob,
    pub(crate) limit: usize,
}

/// One page on its way.
#[derive(Debug)]
pub(crate) struct List {
    pub(crate) ask: Ask,
    pub(crate) caller: Caller,
    pub(crate) what: What,
    order: Vec<NodeId>,
    need: Need,
    asked: Vec<NodeId>,
    /// With the floor of each.
    pages: Vec<(NodeId, Hlc, Listed)>,
    refused: Vec<NodeId>,
    retry: Vec<NodeId>,
    hedge_at: Mono,
    wake: Option<Mono>,
}

impl List {
    pub(crate) fn start(
        core: &mut Core,
        (ask, caller): (Ask, Caller),
        what: What,
        (order, need): (Vec<NodeId>, Need),
    ) -> Self {
        let mut list = Self {
            ask,
            caller,
            what,
            order,
            need,
            asked: Vec::new(),
            pages: Vec::new(),
            refused: Vec::new(),
            retry: Vec::new(),
            hedge_at: Mono(0),
            wake: None,
        };
        list.ask_first(core);
        list
    }

    /// Starts again under another ring version.
    pub(crate) fn restart(
        &mut self,
        core: &mut Core,
        ring: RingVersion,
        (order, need): (Vec<NodeId>, Need),
    ) {
        self.ask.ring = ring;
        (self.order, self.need) = (order, need);
        self.asked.clear();
        self.refused.clear();
        self.pages.clear();
        self.retry.clear();
        self.ask_first(core);
    }

    fn ask_first(&mut self, core: &mut Core) {
        self.ask_enough(core);
        self.arm(core);
    }

    /// Asks so many owners that their answers would suffice, as far as there are any left.
    fn ask_enough(&mut self, core: &mut Core) {
        let mut tally = self.need.tally();
        let counts = |node: &&NodeId| !self.refused.contains(node) && !self.retry.contains(node);
        for node in self.asked.iter().filter(counts) {
            tally.ack(*node);
        }
        while let Some(node) = self.ask_next(core, &tally) {
            tally.ack(node);
        }
    }

    /// Asks the best owner that was not asked and whose answer would help.
    fn ask_next(&mut self, core: &mut Core, tally: &Tally) -> Option<NodeId> {
        let fresh = |node: &&NodeId| !self.asked.contains(node) && tally.helps(**node);
        let node = *self.order.iter().find(fresh)?;
        self.asked.push(node);
        self.hedge_at = core.now.mono.plus(HEDGE);
        self.send(core, node);
        Some(node)
    }

    /// The owners whose pages are there.
    fn answered(&self) -> Tally {
        let mut tally = self.need.tally();
        for (node, ..) in &self.pages {
            tally.ack(*node);
        }
        for node in &self.refused {
            tally.fail(*node);
        }
        tally
    }

    fn send(&self, core: &mut Core, node: NodeId) {
        let kind = RequestKind::List {
            bucket: self.what.bucket,
            partition: self.what.partition,
            after: self.what.after.clone(),
            prefix: self.what.prefix.clone(),
            limit: self.what.limit as u32,
        };
        core.request(node, &self.ask, kind);
    }

    pub(crate) fn on_reply(
        &mut self,
        core: &mut Core,
        (from, floor): (NodeId, Hlc),
        kind: ReplyKind,
    ) -> Step {
        match kind {
            ReplyKind::Listed(page) if self.pages.iter().all(|(node, ..)| *node != from) => {
                self.pages.push((from, floor, page));
            }
            ReplyKind::Refused(Refusal::RingVersion { config }) => {
                let ours = core.view.as_ref().map(|view| view.config.version);
                // What was asked twice is not asked four times then.
                let known = self.retry.contains(&from);
                if !known && ours.is_some_and(|ours| config <= ours) {
                    self.retry.push(from);
                    if ours == Some(config) {
                        // It has the ring and does not serve yet: that may take a while.
                        self.ask_enough(core);
                    }
                    self.arm(core);
                }
            }
            ReplyKind::Refused(_) if !self.refused.contains(&from) => {
                self.refused.push(from);
                self.ask_enough(core);
            }
            _ => {}
        }
        let tally = self.answered();
        match tally.verdict() {
            Verdict::Met => {
                let reply = self.merge(core);
                self.caller.answer(core, &self.ask, tally.required(), reply);
                Step::Done
            }
            Verdict::Unreachable => self.fail(core),
            Verdict::Pending => Step::Wait,
        }
    }

    fn fail(&mut self, core: &mut Core) -> Step {
        let tally = self.answered();
        let (required, received) = (tally.required(), tally.received());
        let error = ClientError::Quorum {
            required,
            received,
            maybe_applied: false,
        };
        self.caller
            .answer(core, &self.ask, required, ClientReply::Failed(error));
        Step::Done
    }

    fn merge(&mut self, core: &Core) -> ClientReply {
        let now_micros = core.clock.peek(core.now.wall).micros();
        // Where the owner that got least far stopped; nothing may be said about keys beyond.
        let reached = self
            .pages
            .iter()
            .filter_map(|(.., page)| page.reached.clone())
            .min();
        let mut newest: BTreeMap<Cursor, ListEntry> = BTreeMap::new();
        for entry in self.entries() {
            if reached.as_ref().is_some_and(|end| entry.at > *end) {
                continue;
            }
            match newest.get_mut(&entry.at) {
                Some(known) if known.digest >= entry.digest => {}
                Some(known) => *known = entry,
                None => {
                    newest.insert(entry.at.clone(), entry);
                }
            }
        }
        let mut next = reached;
        let mut keys = Vec::new();
        for (at, entry) in newest {
            if !entry.live || (entry.expiry != 0 && entry.expiry <= now_micros) {
                continue;
            }
            if keys.len() == self.what.limit {
                break;
            }
            keys.push(ListedKey {
                key: at.key.0.clone(),
                digest: entry.digest,
                value_len: entry.value_len,
                expiry: (entry.expiry != 0).then_some(entry.expiry),
            });
            if keys.len() == self.what.limit {
                next = Some(at);
            }
        }
        ClientReply::Listed { keys, next }
    }

    /// What the pages hold, without versions up to the highest floor seen that only owners with lower ones
    /// hold: there absence is information.
    fn entries(&mut self) -> Vec<ListEntry> {
        let pages = std::mem::take(&mut self.pages);
        let highest = pages.iter().map(|(_, floor, _)| *floor).max();
        let highest = highest.unwrap_or_default();
        let held: BTreeSet<(Cursor, Digest)> = pages
            .iter()
            .filter(|(_, floor, _)| *floor == highest)
            .flat_map(|(.., page)| &page.entries)
            .filter(|entry| entry.digest.version.hlc <= highest)
            .map(|entry| (entry.at.clone(), entry.digest))
            .collect();
        let counts = |floor: Hlc, entry: &ListEntry| {
            floor == highest
                || entry.digest.version.hlc > highest
                || held.contains(&(entry.at.clone(), entry.digest))
        };
        pages
            .into_iter()
            .flat_map(|(_, floor, page)| page.entries.into_iter().map(move |e| (floor, e)))
            .filter(|(floor, entry)| counts(*floor, entry))
            .map(|(_, entry)| entry)
            .collect()
    }

    pub(crate) fn on_timer(&mut self, core: &mut Core) -> Step {
        self.wake = None;
        let now = core.now.mono;
        if now >= self.ask.deadline {
            return self.fail(core);
        }
        for node in std::mem::take(&mut self.retry) {
            self.send(core, node);
        }
        if now >= self.hedge_at {
            self.hedge_at = now.plus(HEDGE);
            let tally = self.answered();
            if self.ask_next(core, &tally).is_none() {
                for node in self.order.clone() {
                    self.send(core, node);
                }
            }
        }
        self.arm(core);
        Step::Wait
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

    pub(crate) fn disarm(&mut self, core: &mut Core) {
        core.set_timer(self.ask.op, self.wake.take(), None);
    }
}

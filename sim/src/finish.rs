//! The liveness phase: faults end, and everything that was promised for then is looked at.

use torc_protocol::client::RequestId;
use torc_protocol::record::Record;
use torc_protocol::time::{MS, SECOND};

use crate::check::{Invariant, Violation};
use crate::world::{Ev, World};

/// Virtual time until hints must have gone, in microseconds.
const DRAIN_MAX: u64 = 120 * SECOND;
/// No message or disk operation takes longer, in microseconds.
const SLOWEST: u64 = 10 * SECOND;
/// Tries of a read at all owners.
const TRIES: usize = 3;

impl World {
    pub(crate) fn finish(&mut self) {
        self.heal();
        let pauses = self
            .nodes
            .iter()
            .map(|node| node.paused_until)
            .max()
            .unwrap_or(0);
        self.pass(pauses.saturating_sub(self.now) + SLOWEST + 2 * SECOND);
        self.drain_hints();
        self.check_books();
        self.check_rings();
        if self.violation.is_none() && self.loses_no_hint() {
            self.check_handed_over();
        }
        for key in 0..self.plan.keys {
            if self.violation.is_none() && self.stored_anywhere(key) {
                let node = self.rng.below(self.nodes.len() as u64) as usize;
                self.succeed("read from all owners", node, |world, node| {
                    world.ask_all(node, key)
                });
            }
        }
        // A clock that was far ahead may have minted versions that nobody takes before their time.
        if self.plan.faults.jumps == 0 {
            for node in 0..self.nodes.len() {
                let key = self.rng.below(self.plan.keys);
                self.succeed("written to all owners", node, |world, node| {
                    world.write_all(node, key)
                });
            }
        }
        self.pass(5 * SECOND);
        self.check_converged();
    }

    fn heal(&mut self) {
        self.note(format_args!("faults end"));
        self.faults.calm();
        self.cuts.clear();
        for node in 0..self.nodes.len() {
            let this = &mut self.nodes[node];
            (this.offset, this.disk.full) = (0, false);
            self.schedule(0, Ev::Restart { node });
        }
        self.new_config(true);
    }

    fn pass(&mut self, span: u64) {
        let end = self.now + span;
        while self.violation.is_none() && self.now < end {
            self.step();
        }
    }

    fn hints_on_disk(&self) -> usize {
        self.nodes
            .iter()
            .map(|node| node.disk.visible.hints.len())
            .sum()
    }

    fn drain_hints(&mut self) {
        let end = self.now + DRAIN_MAX;
        while self.violation.is_none() && self.hints_on_disk() > 0 {
            if self.now > end {
                let left = self.hints_on_disk();
                let what = format!("{left} hints are not delivered long after faults have ended");
                self.fail(Violation::new(Invariant::Progress, what));
                return;
            }
            self.step();
        }
        self.pass(100 * MS);
    }

    /// Hints stored = delivered + dropped + waiting.
    fn check_books(&mut self) {
        for at in 0..self.nodes.len() {
            let node = &self.nodes[at];
            let told: u64 = node
                .slots
                .iter()
                .flat_map(|slot| slot.waiting.values())
                .sum();
            let books = node.books;
            let stored = node.disk.visible.hints.len() as u64;
            // What was removed in a life that ended before it could tell is in nobody's books.
            let crashes = self.plan.faults.crashes > 0;
            let removed = books.handed_over + books.given_up;
            let told_removed = books.delivered + books.dropped;
            let wrong = told != stored
                || told_removed > removed
                || (!crashes && told_removed != removed)
                || (!crashes && books.given_up > books.dropped);
            if wrong {
                let what = format!("n{at}: {stored} hints on disk, {told} in the books, {books:?}");
                self.fail(Violation::new(Invariant::Books, what));
            }
            if self.nodes[at]
                .slots
                .iter()
                .any(|slot| slot.shard.open_requests() > 0)
            {
                self.fail(Violation::new(
                    Invariant::Bounded,
                    format!("n{at} holds requests that nobody waits for"),
                ));
            }
        }
    }

    fn check_rings(&mut self) {
        for at in 0..self.nodes.len() {
            let ring = self.ring_of(at);
            if self.nodes[at].slots.iter().any(|slot| slot.drained != ring) {
                let what = format!("n{at} never said that it has drained for ring {}", ring.0);
                self.fail(Violation::new(Invariant::Progress, what));
            }
        }
    }

    fn loses_no_hint(&self) -> bool {
        let faults = &self.plan.faults;
        let dropped = self
            .nodes
            .iter()
            .any(|node| node.books.dropped + node.books.refused > 0);
        faults.crashes == 0 && faults.full == 0 && !dropped
    }

    /// Where no coordinator crashed and no hint was dropped, every owner has every acknowledged write
    /// before anybody reads.
    fn check_handed_over(&mut self) {
        for key in 0..self.plan.keys {
            let must = self.clients.acknowledged(key);
            let record_key = self.record_key(key);
            for owner in self.owners(&record_key) {
                let found = self.nodes[owner]
                    .disk
                    .visible
                    .records
                    .get(&record_key)
                    .map(Record::version);
                if found < must {
                    let what = format!(
                        "n{owner} lacks {must:?} of key {key} after all hints were delivered"
                    );
                    self.fail(Violation::new(Invariant::Converge, what));
                }
            }
        }
    }

    fn stored_anywhere(&self, key: u64) -> bool {
        let key = self.record_key(key);
        self.nodes
            .iter()
            .any(|node| node.disk.visible.records.contains_key(&key))
    }

    /// A request must succeed now, at least when it is repeated.
    fn succeed(&mut self, what: &str, node: usize, ask: impl Fn(&mut Self, usize) -> RequestId) {
        let oks = |world: &Self| {
            ["op: read ok", "op: write ok"]
                .iter()
                .filter_map(|name| world.counts.get(name))
                .sum::<u64>()
        };
        for _ in 0..TRIES {
            let before = oks(self);
            let id = ask(self, node);
            let end = self.now + 6 * SECOND;
            while self.violation.is_none() && self.clients.is_waiting(id) && self.now < end {
                self.step();
            }
            if self.violation.is_some() || oks(self) > before {
                return;
            }
        }
        let what = format!("a key cannot be {what} through n{node} long after faults have ended");
        self.fail(Violation::new(Invariant::Progress, what));
    }

    fn check_converged(&mut self) {
        if self.plan.repair == torc_ring::ReadRepair::Off {
            return;
        }
        for key in 0..self.plan.keys {
            let record_key = self.record_key(key);
            let states: Vec<_> = self
                .owners(&record_key)
                .into_iter()
                .map(|owner| {
                    self.nodes[owner]
                        .disk
                        .visible
                        .records
                        .get(&record_key)
                        .map(Record::digest)
                })
                .collect();
            if states.windows(2).any(|pair| pair[0] != pair[1]) {
                let what =
                    format!("owners of key {key} differ after a read of all of them: {states:?}");
                self.fail(Violation::new(Invariant::Converge, what));
            }
        }
    }
}

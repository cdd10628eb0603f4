//! The liveness phase: faults end, and everything that was promised for then is looked at.

use torc_protocol::client::RequestId;
use torc_protocol::hlc::Hlc;
use torc_protocol::record::Record;
use torc_protocol::time::{MS, SECOND};
use torc_ring::{NodeId, Quorum};

use crate::check::{Invariant, Violation, books, converge};
use crate::world::{EPOCH, Ev, Fate, Node, World};

/// Virtual time until hints must have gone, in microseconds.
const DRAIN_MAX: u64 = 120 * SECOND;
/// Virtual time until the members have to serve under one config, in microseconds.
const FORM_MAX: u64 = 120 * SECOND;
/// Clocks that were not further ahead than this are waited for, in microseconds.
const AHEAD_WAITED: u64 = 30 * SECOND;
/// Operators look at the ring this often, in microseconds.
const TIDY_EVERY: u64 = 3 * SECOND;
/// No message or disk operation takes longer, in microseconds.
const SLOWEST: u64 = 10 * SECOND;
/// Virtual time until owners that compare their copies have to be equal, in microseconds.
const COMPARE_MAX: u64 = 240 * SECOND;
/// Virtual time until old tombstones have to be gone, in microseconds.
const COLLECT_MAX: u64 = 180 * SECOND;
/// Tries of a read at all owners.
const TRIES: usize = 3;

/// Owners of a key, and what each has.
type States = Vec<(usize, Option<Record>)>;

impl World {
    pub(crate) fn finish(&mut self) {
        self.count("liveness checked");
        self.heal();
        let pauses = self
            .nodes
            .iter()
            .map(|node| node.paused_until)
            .max()
            .unwrap_or(0);
        self.pass(pauses.saturating_sub(self.now) + SLOWEST + 2 * SECOND);
        self.form_again();
        self.change_config();
        self.drain_hints();
        if self.goes_on() {
            self.check_books();
            self.check_rings();
        }
        if self.goes_on() && self.loses_no_hint() {
            self.check_handed_over();
        }
        self.converge_by_comparison();
        // Where an owner is gone for good, all of them cannot be asked.
        let quorum = if self.lost_members() == 0 {
            Quorum::All
        } else {
            Quorum::Quorum
        };
        for key in 0..self.plan.keys {
            if self.goes_on() && self.stored_anywhere(key) {
                let node = self.any_serving();
                self.succeed("read", node, |world, node| world.read_at(node, key, quorum));
            }
        }
        // A clock that was far ahead may have minted versions that nobody takes before their time.
        if self.ahead_max < AHEAD_WAITED {
            self.pass(self.ahead_max);
            for node in 0..self.nodes.len() {
                if self.goes_on() && self.nodes[node].serving {
                    let key = self.rng.below(self.plan.keys);
                    self.succeed("written", node, |world, node| {
                        world.write_at(node, key, quorum)
                    });
                }
            }
        }
        self.pass(5 * SECOND);
        if self.goes_on() {
            self.check_converged();
        }
        self.check_collected();
    }

    /// Tombstones and expired values that are old enough are gone from the disks of all owners.
    fn check_collected(&mut self) {
        if self.plan.floor_interval == 0 || self.lost_members() > 0 {
            return;
        }
        let oldest = EPOCH + self.now - self.plan.floor_margin;
        let end = self.now + COLLECT_MAX;
        while self.goes_on()
            && let Some((node, what)) = self.uncollected(Hlc::from_micros(oldest))
        {
            if self.now > end {
                let what = format!("n{node} still holds {what} long after faults have ended");
                self.fail(Violation::new(Invariant::Progress, what));
                return;
            }
            self.pass(SECOND);
        }
        if self.goes_on() {
            self.count("rare: everything collected");
        }
    }

    /// A dead record on a disk that should be gone.
    fn uncollected(&self, oldest: Hlc) -> Option<(usize, String)> {
        let latest = self.agreed.latest()?;
        self.nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| latest.member(node.member.id).is_some())
            .find_map(|(at, node)| {
                let mut records = node.disk.visible.records.values();
                let record = records.find(|r| r.dead_at().is_some_and(|dead| dead <= oldest))?;
                Some((at, format!("{:?} {}", record.kind(), record.version())))
            })
    }

    fn heal(&mut self) {
        self.note(format_args!("faults end"));
        self.faults.calm();
        self.cuts.clear();
        self.lags.clear();
        self.ahead_max = self.ahead_max.max(self.drifted_max());
        for node in 0..self.nodes.len() {
            let this = &mut self.nodes[node];
            (this.offset, this.rate, this.disk.full) = (0, 0, false);
            this.slow_until = 0;
            this.doomed = false;
            self.replace_rotten(node);
            self.schedule(0, Ev::Restart { node });
        }
    }

    /// All members serve under the newest config again.
    fn form_again(&mut self) {
        let end = self.now + FORM_MAX + self.ahead_max;
        let mut tidy_at = self.now + TIDY_EVERY;
        while self.goes_on() && !(self.is_formed() && self.is_tidy()) {
            if self.now > end {
                let what = "the members do not serve under one config long after faults have ended";
                self.fail(Violation::new(Invariant::Progress, what));
                return;
            }
            if self.now >= tidy_at {
                tidy_at = self.now + TIDY_EVERY;
                self.tidy_ring();
            }
            self.step();
        }
    }

    /// Nobody is a member who is gone for good: operators take them out.
    fn is_tidy(&self) -> bool {
        self.lost_members() == 0
    }

    /// The members can still agree on something, and apply it.
    fn change_config(&mut self) {
        let version = |world: &Self| world.agreed.latest().map(|config| config.version);
        let before = version(self);
        let end = self.now + FORM_MAX + self.ahead_max;
        while self.goes_on() && version(self) == before {
            if self.now > end {
                let what = "no new config is agreed on long after faults have ended";
                self.fail(Violation::new(Invariant::Progress, what));
                return;
            }
            let node = self.any_serving();
            self.new_config(node);
            self.pass(SECOND);
        }
        self.form_again();
        if self.goes_on() && self.plan.faults.changes > 0 {
            let node = self.any_serving();
            self.last_change(node);
            self.pass(SECOND);
            self.form_again();
        }
    }

    fn any_serving(&mut self) -> usize {
        let serving: Vec<usize> = (0..self.nodes.len())
            .filter(|at| self.nodes[*at].serving)
            .collect();
        if serving.is_empty() {
            return 0;
        }
        self.rng.pick(&serving)
    }

    fn pass(&mut self, span: u64) {
        let end = self.now + span;
        while self.goes_on() && self.now < end {
            self.step();
        }
    }

    /// Hints that wait. Those for a node that is gone go to the present owners.
    fn hints_on_disk(&self) -> usize {
        let hints = |node: &Node| node.disk.visible.hints.len();
        self.nodes.iter().map(hints).sum()
    }

    fn drain_hints(&mut self) {
        let end = self.now + DRAIN_MAX;
        while self.goes_on() && self.hints_on_disk() > 0 {
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

    /// Hints stored = delivered + dropped + waiting; requests = answered + lost with their nodes.
    fn check_books(&mut self) {
        let clients = &self.clients;
        let requests = books::requests(clients.asked, clients.reported, clients.lost);
        self.check(requests);
        for at in 0..self.nodes.len() {
            let node = &self.nodes[at];
            let told: u64 = node
                .slots
                .iter()
                .flat_map(|slot| slot.waiting.values())
                .sum();
            let stored = node.disk.visible.hints.len() as u64;
            let lives_ended = self.plan.faults.end_lives();
            let balance = node.books.balance(stored, told, lives_ended);
            self.check(balance.map_err(|violation| Violation {
                what: format!("n{at}: {}", violation.what),
                ..violation
            }));
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
        let ring = self.agreed.latest().map(|config| config.ring_version);
        for at in 0..self.nodes.len() {
            if self.nodes[at].latest().is_none() {
                continue;
            }
            let slots = &self.nodes[at].slots;
            if slots.iter().any(|slot| Some(slot.drained) != ring) {
                let what = format!("n{at} never said that it has drained for ring {ring:?}");
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
        // Who leaves takes the hints along that it kept for others.
        let dropped = dropped || self.counts.contains_key("rare: left");
        !faults.end_lives()
            && faults.full + faults.full_at_close == 0
            && faults.refusals == 0
            && !dropped
    }

    /// Where no coordinator crashed and no hint was dropped, every owner has every acknowledged write
    /// before anybody reads.
    fn check_handed_over(&mut self) {
        for key in 0..self.plan.keys {
            let must = self.clients.acknowledged(key);
            for (owner, found) in self.owned(key) {
                let found = found.as_ref().map(Record::version);
                let record_key = self.record_key(key);
                let gone = must.is_some_and(|must| self.is_collected(owner, &record_key, must));
                if found < must && !(gone && found.is_none()) {
                    let what = format!(
                        "n{owner} lacks {must:?} of key {key} after all hints were delivered"
                    );
                    self.fail(Violation::new(Invariant::Converge, what));
                }
            }
        }
    }

    /// Where owners compare their copies, these become equal although nobody reads and no hint is left.
    fn converge_by_comparison(&mut self) {
        // A second value under an equal version hides from the trees until everything is read again.
        let hidden = self.plan.faults.twins > 0;
        if !self.plan.antientropy || hidden || self.lost_members() > 0 {
            return;
        }
        self.pass(SLOWEST);
        let end = self.now + COMPARE_MAX;
        while self.goes_on() && self.differing().is_some() {
            if self.now > end {
                if let Some((key, states)) = self.differing() {
                    let what = format!(
                        "owners of key {key} differ long after faults have ended, although they compare their copies: {states:?}"
                    );
                    self.fail(Violation::new(Invariant::Converge, what));
                }
                return;
            }
            self.pass(500 * MS);
        }
    }

    /// A key of which owners have different states.
    fn differing(&mut self) -> Option<(u64, States)> {
        (0..self.plan.keys)
            .map(|key| (key, self.owned(key)))
            .find(|(_, states)| states.windows(2).any(|pair| pair[0].1 != pair[1].1))
    }

    /// The owners of a key that are there, by the newest config, and what each has.
    fn owned(&mut self, key: u64) -> States {
        let record_key = self.record_key(key);
        let Some(placed) = self.newest() else {
            return Vec::new();
        };
        let ids: Vec<NodeId> = placed
            .sets(&record_key)
            .iter()
            .flat_map(|set| set.nodes.iter().copied())
            .collect();
        let there = ids.into_iter().filter_map(|id| self.index_of(id));
        there
            .filter(|at| self.nodes[*at].fate == Fate::Stays)
            .map(|at| {
                let store = &self.nodes[at].disk.visible;
                let partition = record_key.token.partition(self.plan.bits);
                let floor = store.floor(record_key.bucket, partition);
                let stored = store.records.get(&record_key);
                let alive = |r: &&Record| r.dead_at().is_none_or(|dead_at| dead_at > floor);
                (at, stored.filter(alive).cloned())
            })
            .collect()
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
            while self.goes_on() && self.clients.is_waiting(id) && self.now < end {
                self.step();
            }
            if !self.goes_on() || oks(self) > before {
                return;
            }
            // A node that has just found its clock set distrusts it for ten seconds.
            self.pass(5 * SECOND);
        }
        if !self.goes_on() {
            return;
        }
        let what = format!("a key cannot be {what} through n{node} long after faults have ended");
        self.fail(Violation::new(Invariant::Progress, what));
    }

    fn check_converged(&mut self) {
        if self.plan.repair == torc_ring::ReadRepair::Off || self.lost_members() > 0 {
            return;
        }
        for key in 0..self.plan.keys {
            let states = self.owned(key);
            let agree = converge::owners(key, &states);
            self.check(agree);
        }
    }
}

//! What reads and lists may answer, and what must be on disk when they do.

use std::collections::BTreeMap;

use torc_protocol::client::ListedKey;
use torc_protocol::record::Record;
use torc_ring::{Quorum, ReadRepair};

use super::{Op, What, parts, write_of};
use crate::check::order::{self, Part};
use crate::check::{Invariant, Violation};
use crate::world::{Place, World, number_of_bytes};

impl World {
    pub(super) fn on_found(
        &mut self,
        at: Place,
        op: &Op,
        (key, r): (u64, Quorum),
        record: Option<&Record>,
    ) {
        let digest = record.map(Record::digest);
        if let Some(record) = record {
            self.genuine(key, record);
        }
        let Some(placed) = self.placed_at(at).filter(|_| !self.plan.forgets()) else {
            return;
        };
        let record_key = self.record_key(key);
        let sets = placed.sets(&record_key);
        let floor = op.floors.get(&key).cloned().unwrap_or_default();
        let partition = record_key.token.partition(self.plan.bits).0;
        let asked = self.whole(parts(&sets, r), &sets);
        let found = digest.map(|d| d.version);
        let result = order::read(&floor, &asked, found).or_else(|wrong| {
            let place = (key, partition);
            self.deleted.judge(place, (&floor, &asked), found, wrong)
        });
        // What clients never saw wrongly, but is not there in the end, is lost.
        self.check(result.map_err(|violation| Violation {
            invariant: if op.client.is_none() && violation.invariant == Invariant::Order {
                Invariant::Readable
            } else {
                violation.invariant
            },
            ..violation
        }));
        let ring = placed.view.config.ring_version;
        let Some(digest) = digest.filter(|_| op.watched.is_none_or(|then| then == ring)) else {
            return;
        };
        let mut on = Vec::new();
        let blocking = self.plan.repair == ReadRepair::Blocking;
        let copies: Vec<usize> = sets
            .iter()
            .map(|set| {
                self.copies(
                    (&record_key, digest),
                    set,
                    placed.view.config.version,
                    false,
                )
            })
            .collect();
        // Without write-backs one owner has it, of either ring.
        let somewhere = usize::from(copies.iter().all(|copies| *copies == 0));
        for (set, copies) in sets.iter().zip(copies) {
            let n = set.nodes.len();
            let promised = if blocking {
                let (r, w) = (r.required(n), self.plan.w.required(n));
                r.min(w.max(n + 1 - r).min(n))
            } else {
                somewhere
            };
            if copies < promised {
                let what = format!(
                    "a read of key {key} answers what {copies} of {promised} owners have on disk"
                );
                self.fail(Violation::new(Invariant::Durable, what));
            }
            on.push(Part {
                set: set.id,
                of: n,
                count: if blocking { promised } else { copies.min(1) },
            });
        }
        let on = self.shaken(op.begun, on);
        self.raise(key, &on, digest.version);
    }

    /// The record is what a client wrote to that key.
    fn genuine(&mut self, key: u64, record: &Record) {
        if let Some(write) = write_of(record) {
            if self.clients.writes.get(&write) != Some(&key) {
                let what = format!("key {key} holds write {write}, which was not made there");
                self.fail(Violation::new(Invariant::Genuine, what));
            }
            if self.clients.void.contains(&write) {
                let what = format!("write {write} is visible, but was said to have no effect");
                self.fail(Violation::new(Invariant::Genuine, what));
            }
        }
        let seen = self.mint.seen(key, record.digest(), write_of(record));
        self.check(seen);
    }

    pub(super) fn on_listed(&mut self, at: Place, op: &Op, keys: &[ListedKey], complete: bool) {
        let What::List {
            partition,
            from_start,
        } = op.what
        else {
            return;
        };
        let mut listed = BTreeMap::new();
        for key in keys {
            let number = number_of_bytes(&key.key);
            let twice = listed.insert(number, key.digest.version).is_some();
            if twice || !(0..self.plan.keys).contains(&number) {
                self.fail(Violation::new(
                    Invariant::Genuine,
                    format!("a list names key {number} twice or wrongly"),
                ));
            }
        }
        let Some(placed) = self.placed_at(at).filter(|_| !self.plan.forgets()) else {
            return;
        };
        for (&key, floor) in &op.floors {
            let record_key = self.record_key(key);
            if record_key.token.partition(self.plan.bits).0 != partition {
                continue;
            }
            let sets = placed.sets(&record_key);
            let asked = self.whole(parts(&sets, self.plan.r), &sets);
            let must = floor.seen_by(&asked);
            let missing =
                complete && from_start && must.is_some() && !self.clients.mortal.contains(&key);
            let found = listed.get(&key).copied();
            if (found.is_some() || missing) && found < must {
                let what = format!(
                    "a list of {asked:?} names key {key} as {found:?}, but {must:?} was known"
                );
                self.fail(Violation::new(Invariant::Order, what));
            }
        }
    }
}

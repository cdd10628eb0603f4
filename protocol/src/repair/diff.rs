//! Comparing keys and digests of two owners, range by range, both sides page by page.

use std::collections::VecDeque;

use bytes::Bytes;
use torc_ring::{BucketId, Token};

use super::{Cx, Reader};
use crate::floor::{DOOMED_MAX, Doom, Doomed};
use crate::hlc::Hlc;
use crate::message::{Cursor, OpId, RecordKey};
use crate::store::{DigestEntry, Query};
use crate::sync_message::{DIGESTS_MAX, SYNC_BYTES_MAX, SyncAsk};
use crate::version::Digest;
use crate::wire::Blob;

/// Keys that are pulled or pushed in one go.
const BATCH: usize = 256;

/// What is to be done next.
#[derive(Debug)]
pub(super) enum Next {
    /// Something is under way.
    Wait,
    /// Ask the other side.
    Ask(SyncAsk),
    /// All ranges are equal.
    Done,
}

#[derive(Debug)]
pub(super) struct Diff {
    pub(super) bucket: BucketId,
    ranges: VecDeque<(Token, Token)>,
    /// Where states differ, each side may hold a part of the merged one (siblings).
    both: bool,
    /// The other side gets what it lacks, too.
    push_too: bool,
    ours: Side,
    theirs: Side,
    /// Keys that the other side has newer, and that this side has newer, in order.
    pull: VecDeque<Cursor>,
    push: VecDeque<Cursor>,
    moving: Moving,
    floors: Floors,
    /// In a rebuild: what the other side does not hold.
    pub(super) doom: Doom,
    /// There is more of that than can be remembered.
    pub(super) overflowed: bool,
}

/// The floors of the two sides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floors {
    /// Up to here this side takes versions only from owners that have such a floor.
    pub(super) intake: Hlc,
    pub(super) theirs: Hlc,
    pub(super) ours: Hlc,
    /// The floor that this side will have.
    pub(super) rebuild: Option<Hlc>,
}

impl Floors {
    /// Whether this side takes that version from the other one.
    fn takes(&self, version: Hlc) -> bool {
        version > self.intake || self.theirs >= self.intake
    }

    /// Whether the other side would take that version from this one.
    fn gives(&self, version: Hlc) -> bool {
        version > self.theirs || self.ours >= self.theirs
    }

    fn dooms(&self, version: Hlc) -> bool {
        self.rebuild.is_some_and(|floor| version <= floor)
    }
}

/// Records that are under way.
#[derive(Debug)]
enum Moving {
    Nothing,
    /// So many from the front of `pull` are asked for; when they came, `done` of them are being stored.
    Pull {
        asked: usize,
        done: usize,
    },
    Push {
        asked: usize,
        done: usize,
    },
}

/// One side's keys in the present range, as far as they were read and not yet compared.
#[derive(Debug, Default)]
struct Side {
    /// With the floor at which each is dead, on this side.
    entries: VecDeque<(Cursor, Digest, Option<Hlc>)>,
    after: Option<Cursor>,
    /// The range was read to its end.
    ended: bool,
    /// A page is being read.
    reading: bool,
}

impl Side {
    fn take(
        &mut self,
        entries: impl Iterator<Item = (Cursor, Digest, Option<Hlc>)>,
        reached: Option<Cursor>,
    ) {
        self.entries.extend(entries);
        self.ended = reached.is_none();
        self.after = reached;
        self.reading = false;
    }
}

impl Diff {
    pub(super) fn new(
        bucket: BucketId,
        ranges: VecDeque<(Token, Token)>,
        (both, push_too): (bool, bool),
        floors: Floors,
    ) -> Self {
        Self {
            bucket,
            ranges,
            both,
            push_too,
            ours: Side::default(),
            theirs: Side::default(),
            pull: VecDeque::new(),
            push: VecDeque::new(),
            moving: Moving::Nothing,
            floors,
            doom: Doom::new(),
            overflowed: false,
        }
    }

    /// The other side's floor, as it is now.
    pub(super) fn hear(&mut self, theirs: Hlc) {
        self.floors.theirs = self.floors.theirs.min(theirs);
    }

    pub(super) fn on_theirs(&mut self, entries: Vec<(Cursor, Digest)>, reached: Option<Cursor>) {
        // A page that does not get further ends the range: another session will look again.
        let reached = reached.filter(|at| Some(at) > self.theirs.after.as_ref());
        let entries = entries.into_iter().map(|(at, digest)| (at, digest, None));
        self.theirs.take(entries, reached);
    }

    pub(super) fn on_ours(&mut self, entries: Vec<DigestEntry>, reached: Option<(Token, Bytes)>) {
        let entries = entries
            .into_iter()
            .map(|entry| (cursor(entry.token, entry.key), entry.digest, entry.dead_at));
        let reached = reached.map(|(token, key)| cursor(token, key));
        self.ours.take(entries, reached);
    }

    /// Compares as far as both sides are known.
    fn compare(&mut self) {
        while self.pull.len() < BATCH && self.push.len() < BATCH {
            let order = match (self.ours.entries.front(), self.theirs.entries.front()) {
                (Some((ours, ..)), Some((theirs, ..))) => ours.cmp(theirs),
                (Some(_), None) if self.theirs.ended => std::cmp::Ordering::Less,
                (None, Some(_)) if self.ours.ended => std::cmp::Ordering::Greater,
                _ => return,
            };
            let ours = order
                .is_le()
                .then(|| self.ours.entries.pop_front())
                .flatten();
            let theirs = order
                .is_ge()
                .then(|| self.theirs.entries.pop_front())
                .flatten();
            let (left, right) = (
                ours.as_ref().map(|(_, digest, _)| *digest),
                theirs.as_ref().map(|(_, digest, _)| *digest),
            );
            if left == right {
                continue;
            }
            let merge = self.both && left.is_some() && right.is_some();
            let floors = self.floors;
            // A state that will be dead at the new floor need not be dropped by name.
            let doomed = ours.as_ref().is_some_and(|(_, digest, dead_at)| {
                let dies = dead_at.is_some_and(|at| floors.dooms(at)) && theirs.is_none();
                left > right && floors.dooms(digest.version.hlc) && !dies
            });
            if let Some((at, digest, _)) = &theirs
                && (right > left || merge || doomed)
                && floors.takes(digest.version.hlc)
            {
                self.pull.push_back(at.clone());
            }
            let Some((at, digest, _)) = ours else {
                continue;
            };
            if doomed {
                self.overflowed |= self.doom.len() >= DOOMED_MAX;
                let instead = None;
                if !self.overflowed {
                    self.doom.insert(at, Doomed { digest, instead });
                }
            } else if (left > right || merge) && self.push_too && floors.gives(digest.version.hlc) {
                self.push.push_back(at);
            }
        }
    }

    /// What comes next; asks this side's disk itself.
    pub(super) fn next(&mut self, cx: &mut Cx<'_>, session: OpId) -> Next {
        if !matches!(self.moving, Moving::Nothing) {
            return Next::Wait;
        }
        loop {
            self.compare();
            let over = self.is_range_over();
            if self.pull.len() >= BATCH || (over && !self.pull.is_empty()) {
                let asked = self.pull.len().min(BATCH);
                self.moving = Moving::Pull { asked, done: asked };
                let keys = self.pull.iter().take(asked).cloned().collect();
                return Next::Ask(SyncAsk::Pull {
                    bucket: self.bucket,
                    keys,
                });
            }
            if self.push.len() >= BATCH || (over && !self.push.is_empty()) {
                self.read_for_push(cx, session);
                return Next::Wait;
            }
            if !over {
                return self.read_on(cx, session);
            }
            self.ranges.pop_front();
            if self.ranges.is_empty() {
                return Next::Done;
            }
            (self.ours, self.theirs) = (Side::default(), Side::default());
        }
    }

    fn is_range_over(&self) -> bool {
        let side = |side: &Side| side.ended && side.entries.is_empty();
        self.ranges.is_empty() || (side(&self.ours) && side(&self.theirs))
    }

    /// The next page of each side that has been used up.
    fn read_on(&mut self, cx: &mut Cx<'_>, session: OpId) -> Next {
        let Some(&(first, last)) = self.ranges.front() else {
            return Next::Done;
        };
        let wanted = |side: &Side| side.entries.is_empty() && !side.ended && !side.reading;
        if wanted(&self.ours) {
            self.ours.reading = true;
            let query = Query::Digests {
                bucket: self.bucket,
                first,
                last,
                after: self.ours.after.clone().map(|at| (at.token, at.key.0)),
                limit: DIGESTS_MAX,
            };
            let read = cx.core.read(query);
            cx.shared.reads.insert(read, Reader::Ours(session));
        }
        if wanted(&self.theirs) {
            self.theirs.reading = true;
            return Next::Ask(SyncAsk::Digests {
                bucket: self.bucket,
                range: (first, last),
                after: self.theirs.after.clone(),
            });
        }
        Next::Wait
    }

    fn read_for_push(&mut self, cx: &mut Cx<'_>, session: OpId) {
        let asked = self.push.len().min(BATCH);
        self.moving = Moving::Push { asked, done: asked };
        let keys = self.push.iter().take(asked);
        let query = Query::Keys {
            keys: keys.map(|at| record_key(self.bucket, at)).collect(),
            bytes: SYNC_BYTES_MAX,
        };
        let read = cx.core.read(query);
        cx.shared.reads.insert(read, Reader::Push(session));
    }

    /// The records of the keys up to `reached` came, or of all that were asked for.
    pub(super) fn on_pulled(&mut self, reached: Option<&Cursor>) {
        if let Moving::Pull { asked, done } = &mut self.moving {
            *done = upto(&self.pull, *asked, reached);
        }
    }

    /// What was pulled is stored.
    pub(super) fn on_stored(&mut self) {
        if let Moving::Pull { done, .. } = self.moving {
            self.pull.drain(..done.min(self.pull.len()));
            self.moving = Moving::Nothing;
        }
    }

    pub(super) fn on_push_read(&mut self, reached: Option<(Token, Bytes)>) {
        if let Moving::Push { asked, done } = &mut self.moving {
            let reached = reached.map(|(token, key)| cursor(token, key));
            *done = upto(&self.push, *asked, reached.as_ref());
        }
    }

    /// What was pushed is stored there.
    pub(super) fn on_pushed(&mut self) {
        if let Moving::Push { done, .. } = self.moving {
            self.push.drain(..done.min(self.push.len()));
            self.moving = Moving::Nothing;
        }
    }
}

/// How many of the first `asked` keys are not behind `reached`: at least one, so that it goes on.
fn upto(keys: &VecDeque<Cursor>, asked: usize, reached: Option<&Cursor>) -> usize {
    match reached {
        None => asked,
        Some(reached) => keys
            .iter()
            .take(asked)
            .take_while(|at| *at <= reached)
            .count()
            .max(1),
    }
}

pub(super) fn cursor(token: Token, key: Bytes) -> Cursor {
    Cursor {
        token,
        key: Blob(key),
    }
}

pub(super) fn record_key(bucket: BucketId, at: &Cursor) -> RecordKey {
    RecordKey {
        bucket,
        token: at.token,
        key: at.key.0.clone(),
    }
}

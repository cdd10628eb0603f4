//! Comparing keys and digests of two owners, range by range, both sides page by page.

use std::collections::VecDeque;

use bytes::Bytes;
use torc_ring::{BucketId, Token};

use super::{Cx, Reader};
use crate::message::{Cursor, OpId, RecordKey};
use crate::store::Query;
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
    entries: VecDeque<(Cursor, Digest)>,
    after: Option<Cursor>,
    /// The range was read to its end.
    ended: bool,
    /// A page is being read.
    reading: bool,
}

impl Side {
    fn take(&mut self, entries: impl Iterator<Item = (Cursor, Digest)>, reached: Option<Cursor>) {
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
        both: bool,
        push_too: bool,
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
        }
    }

    pub(super) fn on_theirs(&mut self, entries: Vec<(Cursor, Digest)>, reached: Option<Cursor>) {
        // A page that does not get further ends the range: another session will look again.
        let reached = reached.filter(|at| Some(at) > self.theirs.after.as_ref());
        self.theirs.take(entries.into_iter(), reached);
    }

    pub(super) fn on_ours(
        &mut self,
        entries: Vec<(Token, Bytes, Digest)>,
        reached: Option<(Token, Bytes)>,
    ) {
        let entries = entries
            .into_iter()
            .map(|(token, key, digest)| (cursor(token, key), digest));
        let reached = reached.map(|(token, key)| cursor(token, key));
        self.ours.take(entries, reached);
    }

    /// Compares as far as both sides are known.
    fn compare(&mut self) {
        while self.pull.len() < BATCH && self.push.len() < BATCH {
            let order = match (self.ours.entries.front(), self.theirs.entries.front()) {
                (Some((ours, _)), Some((theirs, _))) => ours.cmp(theirs),
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
                ours.as_ref().map(|(_, digest)| *digest),
                theirs.as_ref().map(|(_, digest)| *digest),
            );
            if left == right {
                continue;
            }
            let merge = self.both && left.is_some() && right.is_some();
            if let Some((at, _)) = &theirs
                && (right > left || merge)
            {
                self.pull.push_back(at.clone());
            }
            if let Some((at, _)) = ours
                && (left > right || merge)
                && self.push_too
            {
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

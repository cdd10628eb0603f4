//! The floor of a partition: the timestamp up to which tombstones and expired values have been collected, so
//! that below it absence is information.
//!
//! A floor is of a bucket's partition, because owners are (buckets may differ in n). It is stored durably
//! and only rises. Invariants: before an owner raises its floor to t, every owner has durably closed t, every
//! pair of owners has compared its copies since then, and no member holds or takes a counted hint up to t; a
//! version up to the receiver's floor is taken only from an owner whose floor is at least as high.
//! What is dead by the floor is left out of everything that is read as soon as the floor is there, and is
//! dropped from disk afterwards, page by page: so a raise is one small durable write.
//! Source: protocol, section 7. `siblings` and `linearizable` buckets have no floor yet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use torc_ring::{BucketId, ConflictMode, NodeId, PartitionId};

use crate::core::Core;
use crate::hlc::Hlc;
use crate::message::{Cursor, RecordKey, Refusal, WritePurpose};
use crate::mutant::Mutant;
use crate::record::Record;
use crate::store::{CommitId, StateKey, Sync, Write};
use crate::trees::TreeId;
use crate::version::{Digest, Version};

mod collect;
mod inherit;
mod keeper;
mod owner;
mod raise;
mod rebuild;
mod status;

pub(crate) use self::keeper::Keeper;
pub(crate) use self::rebuild::DOOMED_MAX;
pub(crate) use self::status::Ages;
pub use self::status::{FloorHeld, FloorStatus, HELD_MAX};

/// Keys that may be written to while a copy is watched; more end the watch.
const TOUCHED_MAX: usize = 65_536;
/// Length of an encoded [`Mark`].
const MARK_LEN: usize = 24;

/// What a node must not forget about a bucket's partition: three timestamps that only rise as long as it
/// owns the partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Everything dead up to here has been collected. 0 where the node is no owner.
    pub floor: Hlc,
    /// Versions up to here come only from other owners.
    pub close: Hlc,
    /// No counted hint up to here is held, created or taken.
    pub promise: Hlc,
}

impl Mark {
    /// For the disk: three numbers, big endian.
    #[must_use]
    pub fn encode(self) -> Bytes {
        let mut out = BytesMut::with_capacity(MARK_LEN);
        out.put_u64(self.floor.0);
        out.put_u64(self.close.0);
        out.put_u64(self.promise.0);
        out.freeze()
    }

    /// What [`Self::encode`] made; `None` for anything else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; MARK_LEN] = bytes.try_into().ok()?;
        let number = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            Hlc(u64::from_be_bytes(word))
        };
        Some(Self {
            floor: number(0),
            close: number(8),
            promise: number(16),
        })
    }
}

/// The margin that a floor must keep so that raising it gets in nobody's way, in microseconds: a write is on its
/// way for `deadline` at most, was minted by a clock that may be `drift_max` behind the median of all and is
/// closed by one that may be as much ahead of it, and may have waited in a queue for `queue_lifetime` (0 without
/// one). A shorter margin loses nothing, but refuses writes that are only slow.
#[must_use]
pub const fn margin(deadline: u64, drift_max: u64, queue_lifetime: u64) -> u64 {
    let drift = drift_max.saturating_mul(2);
    deadline
        .saturating_add(drift)
        .saturating_add(queue_lifetime)
}

/// A margin is shorter than [`margin`] says; both in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarginTooShort {
    /// What was wanted.
    pub given: u64,
    /// The least that may be.
    pub least: u64,
}

impl std::fmt::Display for MarginTooShort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { given, least } = self;
        write!(
            f,
            "tombstones may be collected after {given} us, which is sooner than writes can arrive: set at least {least} us (deadline + 2 x greatest clock drift + lifetime of queued writes)"
        )
    }
}

impl std::error::Error for MarginTooShort {}

/// Whether a margin of `given` microseconds is long enough.
///
/// # Errors
/// When it is shorter than [`margin`] of the other three.
pub const fn check_margin(
    given: u64,
    (deadline, drift_max, queue_lifetime): (u64, u64, u64),
) -> Result<(), MarginTooShort> {
    let least = margin(deadline, drift_max, queue_lifetime);
    if given < least {
        return Err(MarginTooShort { given, least });
    }
    Ok(())
}

/// Why a session is held for a floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Why {
    /// A raise: both sides get what they lack.
    Raise,
    /// This side has a lower floor than the other, and wants to know what to drop.
    Rebuild(Hlc),
}

/// A session that is wanted, or over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wanted {
    pub(crate) why: Why,
    pub(crate) tree: TreeId,
    pub(crate) peer: NodeId,
}

/// A record up to the new floor that the owner with the higher floor does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Doomed {
    pub(crate) digest: Digest,
    /// What that owner holds instead.
    pub(crate) instead: Option<Record>,
}

/// What a rebuild will drop, by key.
pub(crate) type Doom = BTreeMap<Cursor, Doomed>;

/// A session for a floor that is over; with what it found, if all went well.
#[derive(Debug)]
pub(crate) struct Over {
    pub(crate) wanted: Wanted,
    pub(crate) found: Option<Doom>,
}

/// What a shard knows about floors; shared by its machines.
#[derive(Debug, Default)]
pub(crate) struct Floors {
    places: BTreeMap<TreeId, Place>,
    /// Gained partitions of which the closes of the owners before are not known yet: nothing of them is
    /// complete.
    pub(crate) inheriting: BTreeSet<TreeId>,
    /// Copies that a session of a ring change brings something to now. None of them is rebuilt meanwhile, and
    /// none that is rebuilt is covered: what a rebuild refuses would count as covered.
    pub(crate) covering: BTreeSet<TreeId>,
    /// Sessions that somebody should hold.
    pub(crate) wanted: VecDeque<Wanted>,
    /// Sessions that are over.
    pub(crate) over: VecDeque<Over>,
}

#[derive(Debug, Default)]
struct Place {
    mark: Mark,
    /// Versions up to here are taken only from owners with at least such a floor: the floor, or the one that
    /// a rebuild is going to have.
    intake: Hlc,
    /// The greatest floor of another owner that was heard of, and whose.
    heard: Option<(Hlc, NodeId)>,
    rebuilding: bool,
    /// This node has been able to stand in for an owner since then.
    role_since: Hlc,
    /// It can stand in, and has not asked the owners yet how far they had closed before it could.
    role_unasked: bool,
    /// Keys that were written to since the watch began, with the greatest version.
    watch: Option<Watch>,
    dying: Dying,
    /// When the records that were counted are dead.
    ages: Ages,
    /// The same of the last look, while the records are looked at anew.
    ages_before: Option<Ages>,
}

#[derive(Debug, Default)]
struct Watch {
    touched: BTreeMap<Cursor, Hlc>,
    overflowed: bool,
}

/// What is known of records that will be dead at some floor.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Dying {
    /// Everything that was stored before has been looked at.
    pub(crate) known: bool,
    /// The least floor at which one of them is dead; `None` when there are none.
    pub(crate) earliest: Option<Hlc>,
}

impl Floors {
    fn place(&self, tree: TreeId) -> Option<&Place> {
        self.places.get(&tree)
    }

    fn place_mut(&mut self, tree: TreeId) -> &mut Place {
        self.places.entry(tree).or_default()
    }

    pub(crate) fn mark(&self, tree: TreeId) -> Mark {
        self.place(tree).map(|place| place.mark).unwrap_or_default()
    }

    pub(crate) fn floor(&self, tree: TreeId) -> Hlc {
        self.mark(tree).floor
    }

    /// The floor that a sender must have for versions up to it.
    pub(crate) fn intake(&self, tree: TreeId) -> Hlc {
        self.place(tree).map_or(Hlc(0), |place| place.intake)
    }

    pub(crate) fn is_rebuilding(&self, tree: TreeId) -> bool {
        self.place(tree).is_some_and(|place| place.rebuilding)
    }

    pub(crate) fn dying(&self, tree: TreeId) -> Dying {
        self.place(tree)
            .map(|place| place.dying)
            .unwrap_or_default()
    }

    /// What was counted of records that will be dead one day.
    fn ages(&self, tree: TreeId) -> Option<&Ages> {
        let place = self.place(tree)?;
        Some(place.ages_before.as_ref().unwrap_or(&place.ages))
    }

    /// Whether another owner is known to have a higher floor.
    fn is_behind(&self, tree: TreeId) -> bool {
        self.place(tree).is_some_and(|place| place.heard.is_some())
    }

    /// Takes over what an earlier life has stored.
    pub(crate) fn restore(&mut self, tree: TreeId, mark: Mark) {
        let place = self.place_mut(tree);
        place.mark = mark;
        place.intake = mark.floor;
    }

    /// An owner has said which floor it has.
    pub(crate) fn hear(&mut self, tree: TreeId, from: NodeId, floor: Hlc) {
        if floor > self.floor(tree) {
            let heard = &mut self.place_mut(tree).heard;
            if heard.is_none_or(|(known, _)| known <= floor) {
                *heard = Some((floor, from));
            }
        }
    }

    /// Whether a state is to be left out of what is read.
    pub(crate) fn is_dead(&self, tree: TreeId, dead_at: Option<Hlc>) -> bool {
        dead_at.is_some_and(|at| at <= self.floor(tree))
    }

    // ---- what changes

    fn trees(&self) -> Vec<TreeId> {
        self.places.keys().copied().collect()
    }

    fn forget(&mut self, tree: TreeId) {
        self.places.remove(&tree);
    }

    /// The node does not own it any more, or may lack records of it: answers whether it had a floor.
    fn fall(&mut self, tree: TreeId) -> bool {
        let place = self.place_mut(tree);
        let had = place.mark.floor > Hlc(0);
        (place.mark.floor, place.intake, place.heard) = (Hlc(0), Hlc(0), None);
        (place.dying, place.watch) = (Dying::default(), None);
        (place.ages, place.ages_before) = (Ages::default(), None);
        had
    }

    fn take_role(&mut self, tree: TreeId, since: Hlc) {
        let place = self.place_mut(tree);
        place.role_since = place.role_since.max(since);
        place.role_unasked = true;
    }

    /// Whether this node has to ask how far the owners have closed before it may stand in.
    pub(crate) fn is_role_unasked(&self, tree: TreeId) -> bool {
        self.place(tree).is_some_and(|place| place.role_unasked)
    }

    fn promise(&mut self, tree: TreeId, to: Hlc) {
        let mark = &mut self.place_mut(tree).mark;
        mark.promise = mark.promise.max(to);
    }

    fn close(&mut self, tree: TreeId, to: Hlc) {
        let mark = &mut self.place_mut(tree).mark;
        mark.close = mark.close.max(to);
    }

    fn raise(&mut self, tree: TreeId, to: Hlc) {
        let place = self.place_mut(tree);
        let mark = &mut place.mark;
        mark.floor = mark.floor.max(to);
        mark.close = mark.close.max(to);
        place.intake = place.intake.max(mark.floor);
        if place.heard.is_some_and(|(floor, _)| floor <= mark.floor) {
            place.heard = None;
        }
    }

    /// Partitions of which another owner has a higher floor.
    fn behind(&self) -> Vec<(TreeId, (Hlc, NodeId))> {
        let behind = self.places.iter();
        behind
            .filter_map(|(&tree, place)| Some((tree, place.heard?)))
            .collect()
    }

    fn unhear(&mut self, tree: TreeId) {
        self.place_mut(tree).heard = None;
    }

    fn begin_rebuild(&mut self, tree: TreeId, floor: Hlc) {
        self.close(tree, floor);
        self.watch(tree);
        let place = self.place_mut(tree);
        place.rebuilding = true;
        place.intake = place.intake.max(floor);
    }

    fn end_rebuild(&mut self, tree: TreeId) {
        self.unwatch(tree);
        let place = self.place_mut(tree);
        place.rebuilding = false;
        place.intake = place.mark.floor;
    }

    /// These partitions, and no others, wait for the closes of other owners.
    fn inherit_only(&mut self, trees: BTreeSet<TreeId>) {
        self.inheriting = trees;
    }

    fn inherited(&mut self, tree: TreeId) {
        self.inheriting.remove(&tree);
        self.place_mut(tree).role_unasked = false;
    }

    /// What others have said of their floors belongs to an older ring.
    fn unhear_all(&mut self) {
        for place in self.places.values_mut() {
            place.heard = None;
        }
    }

    /// What will be dead one day is counted from here on, while the records are looked at.
    fn begin_count(&mut self, tree: TreeId) {
        let place = self.place_mut(tree);
        place.dying = Dying::default();
        let ages = std::mem::take(&mut place.ages);
        place.ages_before.get_or_insert(ages);
    }

    /// The looking has ended early.
    fn uncounted(&mut self, tree: TreeId) {
        self.place_mut(tree).dying.known = false;
    }

    fn counted(&mut self, tree: TreeId, earliest: Option<Hlc>, ages: &Ages) {
        let place = self.place_mut(tree);
        place.ages.add_all(ages);
        place.ages_before = None;
        let dying = &mut place.dying;
        dying.known = true;
        let both = [dying.earliest, earliest];
        dying.earliest = both.into_iter().flatten().min();
    }

    // ---- watching what is written

    fn watch(&mut self, tree: TreeId) {
        self.place_mut(tree).watch = Some(Watch::default());
    }

    fn unwatch(&mut self, tree: TreeId) {
        self.place_mut(tree).watch = None;
    }

    /// What was written to since the watch began; `None` when too much was.
    fn touched(&self, tree: TreeId) -> Option<&BTreeMap<Cursor, Hlc>> {
        let watch = self.place(tree)?.watch.as_ref()?;
        (!watch.overflowed).then_some(&watch.touched)
    }

    /// A record is about to be written: every way of writing records comes by here.
    pub(crate) fn touch(&mut self, tree: TreeId, key: &RecordKey, record: &Record) {
        let place = self.place_mut(tree);
        if let Some(dead_at) = record.dead_at() {
            let earliest = place.dying.earliest.unwrap_or(dead_at);
            place.dying.earliest = Some(earliest.min(dead_at));
            place.ages.add(dead_at, 1);
        }
        if let Some(watch) = &mut place.watch {
            if watch.touched.len() >= TOUCHED_MAX {
                watch.overflowed = true;
                return;
            }
            let at = Cursor {
                token: key.token,
                key: crate::wire::Blob(key.key.clone()),
            };
            let version = record.version().hlc;
            let seen = watch.touched.entry(at).or_insert(version);
            *seen = version.max(*seen);
        }
    }
}

impl Core {
    pub(crate) fn tree_of(&self, key: &RecordKey) -> TreeId {
        (key.bucket, self.partition(key))
    }

    /// The record, unless it is dead by the floor.
    pub(crate) fn alive(&self, tree: TreeId, record: Option<Record>) -> Option<Record> {
        record.filter(|record| !self.floors.is_dead(tree, record.dead_at()))
    }

    /// Stores the mark of a partition as it is now in memory.
    fn store_mark(&mut self, tree: TreeId) -> CommitId {
        self.store_mark_as(tree, self.floors.mark(tree), Vec::new())
    }

    fn store_mark_as(
        &mut self,
        (bucket, partition): TreeId,
        mark: Mark,
        with: Vec<Write>,
    ) -> CommitId {
        let mut writes = with;
        writes.push(Write::StatePut {
            key: StateKey::Floor(bucket, partition),
            value: mark.encode(),
        });
        self.commit_all(writes, Sync::Fsync)
    }

    /// Whether a version may be taken that comes this way, with that floor.
    ///
    /// # Errors
    /// Says why not.
    pub(crate) fn admit_version(
        &self,
        tree: TreeId,
        version: Version,
        (purpose, floor): (WritePurpose, Hlc),
    ) -> Result<(), Refusal> {
        match purpose {
            WritePurpose::Client | WritePurpose::Hint => {
                if self.floors.inheriting.contains(&tree) {
                    return Err(Refusal::Inheriting);
                }
                let close = self.floors.mark(tree).close;
                if version.hlc <= close && !self.has(Mutant::FloorBeforeCloses) {
                    return Err(Refusal::Closed);
                }
            }
            WritePurpose::Repair => {
                if !self.takes(tree, version, floor) && !self.has(Mutant::ReadIgnoresFloor) {
                    return Err(Refusal::Closed);
                }
            }
        }
        Ok(())
    }

    /// Whether a version that an owner with that floor holds may be taken.
    pub(crate) fn takes(&self, tree: TreeId, version: Version, floor: Hlc) -> bool {
        let intake = self.floors.intake(tree);
        version.hlc > intake || floor >= intake || self.has(Mutant::LowerFloorTrusted)
    }

    /// Whether this node may take a counted hint of that version.
    pub(crate) fn may_promise(&self, tree: TreeId, version: Version) -> bool {
        let role = self.floors.place(tree).map_or(Hlc(0), |p| p.role_since);
        version.hlc > self.floors.mark(tree).promise.max(role)
    }

    /// The owners of a partition of an `lww` bucket that does not move, if this node is one of them, and none of
    /// them may lack what it had stored.
    fn steady_owners(&self, (bucket, partition): TreeId) -> Option<&[NodeId]> {
        let view = self.view.as_ref()?;
        let bucket = view.config.bucket_by_id(bucket)?;
        let owners = view.ring.owners_of(bucket, partition);
        let steady = owners.target.is_none()
            && bucket.conflict == ConflictMode::Lww
            && owners.current.contains(&self.node())
            && !owners.current.iter().any(|&o| view.config.recovers(o));
        steady.then_some(owners.current)
    }

    /// This shard's trees of `lww` buckets that this node owns.
    fn own_trees(&self) -> Vec<TreeId> {
        let Some(view) = self.view.as_ref() else {
            return Vec::new();
        };
        let (node, first) = (self.node(), u32::from(self.settings.index));
        let step = usize::from(self.settings.count);
        let mut trees = Vec::new();
        for bucket in &view.config.buckets {
            if bucket.conflict != ConflictMode::Lww {
                continue;
            }
            for index in (first..view.ring.partitions()).step_by(step) {
                let partition = PartitionId(index as u16);
                if view.ring.owners_of(bucket, partition).contains(node) {
                    trees.push((bucket.id, partition));
                }
            }
        }
        trees
    }

    /// Whether this node and that one own the partition, in either ring.
    pub(crate) fn owns_both(&self, tree: TreeId, other: NodeId) -> bool {
        let view = self.view.as_ref();
        view.is_some_and(|view| {
            view.keeps(self.node(), tree.0, tree.1) && view.keeps(other, tree.0, tree.1)
        })
    }

    /// The greatest timestamp that this node would close now, by its own clock.
    fn limit(&self) -> Hlc {
        let wall = self.now.wall.0;
        Hlc::from_micros(wall.saturating_sub(self.settings.floor_margin))
    }
}

/// The state of a bucket's partition, for those who restore it.
pub(crate) fn parse_mark(
    bucket: BucketId,
    partition: PartitionId,
    bytes: &[u8],
) -> Option<(TreeId, Mark)> {
    Some(((bucket, partition), Mark::decode(bytes)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_margin_covers_deadline_both_clocks_and_the_queue() {
        assert_eq!(margin(2, 60, 0), 122);
        assert_eq!(margin(2, 60, 100), 222);
        assert_eq!(margin(u64::MAX, 1, 1), u64::MAX);
        assert_eq!(check_margin(122, (2, 60, 0)), Ok(()));
        let short = check_margin(121, (2, 60, 0)).expect_err("too short");
        assert_eq!((short.given, short.least), (121, 122));
        assert!(short.to_string().contains("122"));
    }

    proptest! {
        #[test]
        fn marks_come_back(numbers in any::<(u64, u64, u64)>()) {
            let mark = Mark { floor: Hlc(numbers.0), close: Hlc(numbers.1), promise: Hlc(numbers.2) };
            prop_assert_eq!(Mark::decode(&mark.encode()), Some(mark));
        }

        #[test]
        fn other_bytes_are_no_mark(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(Mark::decode(&bytes).is_some(), bytes.len() == MARK_LEN);
        }
    }
}

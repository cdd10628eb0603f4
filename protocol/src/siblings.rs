//! Sets of concurrent values (`siblings` buckets): dotted version vector sets, their encoding and merge.
//!
//! Each write is named by a [`Dot`]; a set holds the dots whose values nobody has replaced, and as its
//! context all dots that it has ever seen, as one highest dot per (node, dot epoch). A dot that the context
//! covers and that is not in the set was replaced: that is how a merge tells "not seen yet" from "gone".
//! The context is exact because a key's dots of one (node, epoch) are minted one after the other on a state
//! that holds the earlier ones.
//!
//! Layout behind the 26 bytes that all records share (see [`crate::record`]; big endian):
//!
//! ```text
//! context entries u16   siblings u16
//! context entry:  node u64, epoch u64, hlc u64                  rising by (node, epoch), at least one
//! sibling:        node u64, epoch u64, hlc u64, write id u128,  rising by dot, each covered by the context
//!                 expiry u64, flags u8 (1: tombstone), content type length u16, value length u32,
//!                 content type, value
//! ```
//!
//! The version in the shared header is the greatest of the context's dots, so it never falls. There is one
//! encoding of each set, so equal sets have equal digests.
//!
//! A forwarder that tries again may make two dots of one write. **Both stay in the set, and a reader is
//! shown one** (the greatest dot). To drop the lower dot in a merge would break associativity: with
//! a = {d}, b = {d' of the same write} and c = a set that replaced d', (a ∪ b) ∪ c would lack d and
//! a ∪ (b ∪ c) hold it. A client's context covers both dots, so its next write replaces both.
//!
//! Sources: Preguiça, Baquero et al., "Dotted Version Vectors" (2010); Almeida, Baquero et al., "Scalable
//! and Accurate Causality Tracking for Eventually Consistent Stores" (2014), for sets.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use torc_ring::NodeId;

use crate::hlc::Hlc;
use crate::record::{CONTENT_TYPE_MAX, Kind, Record, RecordError, VALUE_LEN_MAX};
use crate::version::Version;

/// Bytes of the header that all records share.
const SHARED_LEN: usize = 26;
const COUNTS_LEN: usize = 4;
const DOT_LEN: usize = 24;
/// Bytes of a sibling before its content type.
const SIBLING_LEN: usize = DOT_LEN + 16 + 8 + 1 + 2 + 4;
const FLAG_TOMBSTONE: u8 = 1;

/// Greatest number of context entries, and of siblings, that the encoding holds. (Writers stop far below.)
pub const ENTRIES_MAX: usize = u16::MAX as usize;
/// From this many siblings on a warning is due.
pub const SIBLINGS_WARN: usize = 25;
/// From this many siblings on blind writes are refused.
pub const SIBLINGS_REFUSE: usize = 100;

/// Names one write of one key.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode,
)]
pub struct Dot {
    /// The owner that minted it.
    #[bincode(with_serde)]
    pub node: NodeId,
    /// Changes when that owner may have lost what it had minted for the key.
    pub epoch: u64,
    /// When.
    pub hlc: Hlc,
}

/// What a set, or a reader of it, has seen: the highest dot per (node, epoch).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Causal(BTreeMap<(NodeId, u64), Hlc>);

impl Causal {
    /// Has seen nothing: the context of a blind write.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in a dot and all earlier ones of its node and epoch.
    pub fn insert(&mut self, dot: Dot) {
        let highest = self.0.entry((dot.node, dot.epoch)).or_insert(dot.hlc);
        *highest = dot.hlc.max(*highest);
    }

    /// Takes in everything that another has seen.
    pub fn extend(&mut self, other: &Self) {
        other.dots().for_each(|dot| self.insert(dot));
    }

    /// Whether the dot has been seen.
    #[must_use]
    pub fn covers(&self, dot: Dot) -> bool {
        self.0
            .get(&(dot.node, dot.epoch))
            .is_some_and(|highest| *highest >= dot.hlc)
    }

    /// The highest dots, rising by (node, epoch).
    pub fn dots(&self) -> impl Iterator<Item = Dot> + '_ {
        self.0
            .iter()
            .map(|(&(node, epoch), &hlc)| Dot { node, epoch, hlc })
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The greatest version among the dots.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.dots()
            .map(|dot| Version {
                hlc: dot.hlc,
                node: dot.node,
            })
            .max()
    }
}

/// A value among concurrent ones. Ordered by content, which decides between two of one dot (a fault).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sibling {
    /// Identity of the client's write, drawn by the node that took it in and kept through its retries.
    pub write: u128,
    /// Microseconds since 1970; `None` for never. Never `Some(0)`.
    pub expiry: Option<u64>,
    /// Content type and value; `None` for a deletion.
    pub content: Option<Content>,
}

/// What a sibling that is no deletion holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Content {
    /// At most [`CONTENT_TYPE_MAX`] bytes; empty for none.
    pub content_type: Bytes,
    /// At most [`VALUE_LEN_MAX`] bytes.
    pub value: Bytes,
}

impl Sibling {
    fn is_visible(&self, micros: u64) -> bool {
        self.content.is_some() && self.expiry.is_none_or(|at| at > micros)
    }
}

/// A set of siblings, taken apart. Contents share the record's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Siblings {
    context: Causal,
    dots: BTreeMap<Dot, Sibling>,
}

impl Siblings {
    /// Takes a record apart.
    ///
    /// # Errors
    /// When it is of another kind.
    pub fn read(record: &Record) -> Result<Self, RecordError> {
        match record.kind() {
            Kind::Siblings => decode(record.as_bytes()),
            Kind::Value | Kind::Tombstone => Err(RecordError::Incompatible),
        }
    }

    /// Everything that this set has seen: what a reader is handed, and sends with its next write.
    #[must_use]
    pub fn context(&self) -> &Causal {
        &self.context
    }

    /// One sibling per write, the one with the greatest dot, in order of their dots; deletions and expired
    /// ones too.
    pub fn siblings(&self) -> impl Iterator<Item = (Dot, &Sibling)> {
        let mut last: BTreeMap<u128, Dot> = BTreeMap::new();
        for (dot, sibling) in &self.dots {
            last.insert(sibling.write, *dot);
        }
        let shown = move |(dot, sibling): &(&Dot, &Sibling)| last.get(&sibling.write) == Some(*dot);
        self.dots
            .iter()
            .filter(shown)
            .map(|(dot, sibling)| (*dot, sibling))
    }

    /// The siblings that a reader at `micros` since 1970 sees.
    pub fn visible(&self, micros: u64) -> impl Iterator<Item = (Dot, &Sibling)> {
        self.siblings()
            .filter(move |(_, sibling)| sibling.is_visible(micros))
    }

    /// Whether this write is in the set: a retry of it changes nothing.
    #[must_use]
    pub fn holds(&self, write: u128) -> bool {
        self.dots.values().any(|sibling| sibling.write == write)
    }

    /// A client's write: replaces exactly what its author had `seen`, and keeps what is concurrent to it.
    /// `dot` was freshly minted by the owner of this state, above everything in `seen` and in the set.
    pub fn write(&mut self, seen: &Causal, dot: Dot, sibling: Sibling) {
        if self.holds(sibling.write) {
            return;
        }
        self.dots.retain(|known, _| !seen.covers(*known));
        self.context.extend(seen);
        self.context.insert(dot);
        self.dots.insert(dot, sibling);
    }

    /// Least upper bound: a sibling stays if both sides hold it, or if the side that does not hold it has
    /// not seen it either.
    pub fn merge(&mut self, other: Self) {
        let (mine, theirs) = (&self.context, &other.context);
        self.dots
            .retain(|dot, _| other.dots.contains_key(dot) || !theirs.covers(*dot));
        for (dot, sibling) in other.dots {
            match self.dots.entry(dot) {
                Entry::Occupied(mut held) => {
                    if sibling > *held.get() {
                        held.insert(sibling);
                    }
                }
                Entry::Vacant(place) => {
                    if !mine.covers(dot) {
                        place.insert(sibling);
                    }
                }
            }
        }
        self.context.extend(&other.context);
    }

    /// The record.
    ///
    /// # Errors
    /// When nothing was ever written, or there is more of something than the encoding holds.
    pub fn to_record(&self) -> Result<Record, RecordError> {
        let version = self.context.version().ok_or(RecordError::Malformed)?;
        if self.context.len() > ENTRIES_MAX || self.dots.len() > ENTRIES_MAX {
            return Err(RecordError::Malformed);
        }
        let contents: usize = self
            .dots
            .values()
            .map(|s| SIBLING_LEN + s.content_len())
            .sum();
        let fixed = SHARED_LEN + COUNTS_LEN + DOT_LEN * self.context.len();
        let mut out = BytesMut::with_capacity(fixed + contents);
        out.put_bytes(0, SHARED_LEN);
        out.put_u16(self.context.len() as u16);
        out.put_u16(self.dots.len() as u16);
        for dot in self.context.dots() {
            put_dot(&mut out, dot);
        }
        for (dot, sibling) in &self.dots {
            put_dot(&mut out, *dot);
            sibling.put(&mut out)?;
        }
        Ok(Record::from_siblings(out, version))
    }
}

impl Sibling {
    fn content_len(&self) -> usize {
        self.content.as_ref().map_or(0, |content| {
            content.content_type.len() + content.value.len()
        })
    }

    fn put(&self, out: &mut BytesMut) -> Result<(), RecordError> {
        let (content_type, value) = match &self.content {
            Some(content) => (&content.content_type[..], &content.value[..]),
            None => (&[][..], &[][..]),
        };
        if content_type.len() > CONTENT_TYPE_MAX || value.len() > VALUE_LEN_MAX {
            return Err(RecordError::Malformed);
        }
        out.put_u128(self.write);
        out.put_u64(self.expiry.unwrap_or(0));
        out.put_u8(if self.content.is_none() {
            FLAG_TOMBSTONE
        } else {
            0
        });
        out.put_u16(content_type.len() as u16);
        out.put_u32(value.len() as u32);
        out.put_slice(content_type);
        out.put_slice(value);
        Ok(())
    }
}

fn put_dot(out: &mut BytesMut, dot: Dot) {
    out.put_u64(dot.node.0);
    out.put_u64(dot.epoch);
    out.put_u64(dot.hlc.0);
}

/// A place in an encoded set; every step checks that what it takes is there.
struct Reader<'a> {
    rest: &'a [u8],
    at: usize,
}

/// A sibling's fixed part, and where its content lies.
struct Framed {
    dot: Dot,
    write: u128,
    expiry: u64,
    tombstone: bool,
    content_type: std::ops::Range<usize>,
    value: std::ops::Range<usize>,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let rest = bytes
            .get(SHARED_LEN..)
            .ok_or(RecordError::Truncated { len: bytes.len() })?;
        Ok(Self {
            rest,
            at: SHARED_LEN,
        })
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(RecordError::Malformed)?;
        self.rest = rest;
        self.at += len;
        Ok(taken)
    }

    fn counts(&mut self) -> Result<(u16, u16), RecordError> {
        let mut bytes = self.take(COUNTS_LEN)?;
        Ok((bytes.get_u16(), bytes.get_u16()))
    }

    fn dot(&mut self) -> Result<Dot, RecordError> {
        let mut bytes = self.take(DOT_LEN)?;
        Ok(Dot {
            node: NodeId(bytes.get_u64()),
            epoch: bytes.get_u64(),
            hlc: Hlc(bytes.get_u64()),
        })
    }

    fn sibling(&mut self) -> Result<Framed, RecordError> {
        let dot = self.dot()?;
        let mut bytes = self.take(SIBLING_LEN - DOT_LEN)?;
        let (write, expiry, flags) = (bytes.get_u128(), bytes.get_u64(), bytes.get_u8());
        let (type_len, value_len) = (usize::from(bytes.get_u16()), bytes.get_u32() as usize);
        let tombstone = flags == FLAG_TOMBSTONE;
        let is_bare = type_len == 0 && value_len == 0;
        if flags > FLAG_TOMBSTONE || (tombstone && !is_bare) {
            return Err(RecordError::Malformed);
        }
        if type_len > CONTENT_TYPE_MAX || value_len > VALUE_LEN_MAX {
            return Err(RecordError::Malformed);
        }
        let start = self.at;
        self.take(type_len)?;
        let middle = self.at;
        self.take(value_len)?;
        let (content_type, value) = (start..middle, middle..self.at);
        Ok(Framed {
            dot,
            write,
            expiry,
            tombstone,
            content_type,
            value,
        })
    }
}

/// Goes through an encoded set, checks that it is the one encoding of a set, and hands each part on.
fn walk(
    bytes: &[u8],
    mut on_seen: impl FnMut(Dot),
    mut on_sibling: impl FnMut(Framed),
) -> Result<(), RecordError> {
    let mut reader = Reader::new(bytes)?;
    let (seen, siblings) = reader.counts()?;
    let context_start = reader.at;
    let mut last: Option<Dot> = None;
    let mut version: Option<Version> = None;
    for _ in 0..seen {
        let dot = reader.dot()?;
        if last.is_some_and(|last| (last.node, last.epoch) >= (dot.node, dot.epoch)) {
            return Err(RecordError::Malformed);
        }
        last = Some(dot);
        version = version.max(Some(Version {
            hlc: dot.hlc,
            node: dot.node,
        }));
        on_seen(dot);
    }
    let stated = crate::record::digest_of(bytes).map(|digest| digest.version);
    if version.is_none() || version != stated {
        return Err(RecordError::Malformed);
    }
    let context = &bytes[context_start..reader.at];
    let mut last: Option<Dot> = None;
    for _ in 0..siblings {
        let sibling = reader.sibling()?;
        if last.is_some_and(|last| last >= sibling.dot) || !is_covered(context, sibling.dot) {
            return Err(RecordError::Malformed);
        }
        last = Some(sibling.dot);
        on_sibling(sibling);
    }
    if reader.rest.is_empty() {
        Ok(())
    } else {
        Err(RecordError::Malformed)
    }
}

/// Whether an encoded context, whose order was checked, covers the dot.
fn is_covered(context: &[u8], dot: Dot) -> bool {
    let entry = |at: usize| {
        let mut bytes = &context[at * DOT_LEN..(at + 1) * DOT_LEN];
        (
            (NodeId(bytes.get_u64()), bytes.get_u64()),
            Hlc(bytes.get_u64()),
        )
    };
    let (mut low, mut high) = (0, context.len() / DOT_LEN);
    while low < high {
        let middle = usize::midpoint(low, high);
        let (name, highest) = entry(middle);
        match name.cmp(&(dot.node, dot.epoch)) {
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
            std::cmp::Ordering::Equal => return highest >= dot.hlc,
        }
    }
    false
}

fn decode(bytes: &Bytes) -> Result<Siblings, RecordError> {
    let mut set = Siblings::default();
    let (context, dots) = (&mut set.context, &mut set.dots);
    walk(
        bytes,
        |dot| context.insert(dot),
        |framed| {
            let content = (!framed.tombstone).then(|| Content {
                content_type: bytes.slice(framed.content_type),
                value: bytes.slice(framed.value),
            });
            let expiry = (framed.expiry > 0).then_some(framed.expiry);
            dots.insert(
                framed.dot,
                Sibling {
                    write: framed.write,
                    expiry,
                    content,
                },
            );
        },
    )?;
    Ok(set)
}

pub(crate) fn check(bytes: &[u8]) -> Result<(), RecordError> {
    walk(bytes, |_| {}, |_| {})
}

/// Whether a reader at `micros` since 1970 sees any of the siblings: of several dots of one write only
/// the greatest counts, as in [`Siblings::visible`].
pub(crate) fn is_visible(bytes: &Bytes, micros: u64) -> bool {
    decode(bytes).is_ok_and(|set| set.visible(micros).next().is_some())
}

pub(crate) fn merge(a: &Bytes, b: &Bytes) -> Result<Record, RecordError> {
    let mut merged = decode(a)?;
    merged.merge(decode(b)?);
    merged.to_record()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dot(node: u64, hlc: u64) -> Dot {
        Dot {
            node: NodeId(node),
            epoch: 1,
            hlc: Hlc(hlc),
        }
    }

    fn value(write: u128, text: &'static str) -> Sibling {
        let content = Content {
            content_type: Bytes::from_static(b"t"),
            value: text.into(),
        };
        Sibling {
            write,
            expiry: None,
            content: Some(content),
        }
    }

    fn texts(set: &Siblings) -> Vec<&[u8]> {
        set.visible(0)
            .filter_map(|(_, s)| s.content.as_ref())
            .map(|c| &c.value[..])
            .collect()
    }

    fn merged(a: &Siblings, b: &Siblings) -> Siblings {
        let mut both = a.clone();
        both.merge(b.clone());
        both
    }

    #[test]
    fn concurrent_writes_are_both_kept_and_a_write_with_their_context_replaces_both() {
        let (mut a, mut b) = (Siblings::default(), Siblings::default());
        a.write(&Causal::new(), dot(1, 10), value(1, "milk"));
        b.write(&Causal::new(), dot(2, 11), value(2, "eggs"));
        let mut both = merged(&a, &b);
        assert_eq!(texts(&both), [b"milk", b"eggs"]);
        let seen = both.context().clone();
        both.write(&seen, dot(1, 12), value(3, "both"));
        assert_eq!(texts(&both), [b"both"]);
        assert_eq!(
            texts(&merged(&both, &a)),
            [b"both"],
            "what was replaced stays replaced"
        );
        assert_eq!(texts(&merged(&b, &both)), [b"both"]);
    }

    #[test]
    fn a_write_replaces_exactly_what_its_author_saw() {
        let mut set = Siblings::default();
        set.write(&Causal::new(), dot(1, 10), value(1, "seen"));
        let seen = set.context().clone();
        set.write(&Causal::new(), dot(1, 11), value(2, "unseen"));
        set.write(&seen, dot(1, 12), value(3, "new"));
        assert_eq!(texts(&set), [b"unseen".as_slice(), b"new"]);
    }

    #[test]
    fn a_retry_makes_no_second_sibling() {
        let (mut a, mut b) = (Siblings::default(), Siblings::default());
        a.write(&Causal::new(), dot(1, 10), value(7, "once"));
        a.write(&Causal::new(), dot(1, 11), value(7, "once"));
        assert_eq!(
            a.context().version(),
            Some(Version {
                hlc: Hlc(10),
                node: NodeId(1)
            })
        );
        b.write(&Causal::new(), dot(2, 12), value(7, "once"));
        let mut both = merged(&a, &b);
        assert_eq!(texts(&both), [b"once"]);
        assert_eq!(
            both.siblings().map(|(dot, _)| dot).collect::<Vec<_>>(),
            [dot(2, 12)]
        );
        let seen = both.context().clone();
        both.write(&seen, dot(1, 13), value(8, "next"));
        assert_eq!(texts(&both), [b"next"], "both dots are replaced");
    }

    #[test]
    fn a_deletion_and_an_expired_value_are_not_visible() {
        let mut set = Siblings::default();
        set.write(
            &Causal::new(),
            dot(1, 10),
            Sibling {
                write: 1,
                expiry: None,
                content: None,
            },
        );
        let expiring = Sibling {
            expiry: Some(77),
            ..value(2, "brief")
        };
        set.write(&Causal::new(), dot(1, 11), expiring);
        let record = set.to_record().expect("encodes");
        assert!(record.is_visible(76) && !record.is_visible(77));
        assert_eq!(
            record.version(),
            Version {
                hlc: Hlc(11),
                node: NodeId(1)
            }
        );
        assert_eq!(Siblings::read(&record), Ok(set));
    }

    #[test]
    fn a_record_and_its_reader_agree_on_what_is_visible_when_a_write_has_two_dots() {
        let mut first = Siblings::default();
        first.write(&Causal::new(), dot(1, 10), value(5, "kept for ever"));
        let mut again = Siblings::default();
        let expired = Sibling {
            expiry: Some(77),
            ..value(5, "kept for a while")
        };
        again.write(&Causal::new(), dot(2, 11), expired);
        let both = merged(&first, &again);
        let record = both.to_record().expect("encodes");
        assert!(both.visible(100).next().is_none());
        assert!(!record.is_visible(100));
    }

    #[test]
    fn the_bytes_are_these() {
        let mut set = Siblings::default();
        set.write(&Causal::new(), dot(3, 5), value(9, "v"));
        let record = set.to_record().expect("encodes");
        let bytes = record.as_bytes();
        let mut expected = vec![1, 3];
        expected.extend(5_u64.to_be_bytes());
        expected.extend(3_u64.to_be_bytes());
        expected.extend(&bytes[18..26]);
        expected.extend([0, 1, 0, 1]);
        for _ in 0..2 {
            for word in [3_u64, 1, 5] {
                expected.extend(word.to_be_bytes());
            }
        }
        expected.extend(9_u128.to_be_bytes());
        expected.extend([0; 8]);
        expected.extend([0, 0, 1, 0, 0, 0, 1, b't', b'v']);
        assert_eq!(bytes[..], expected);
    }

    #[test]
    fn other_encodings_of_a_set_are_refused() {
        let mut set = Siblings::default();
        set.write(&Causal::new(), dot(1, 5), value(1, "a"));
        set.write(&Causal::new(), dot(2, 6), value(2, "b"));
        let good = set.to_record().expect("encodes").as_bytes().to_vec();
        check(&good).expect("sound");
        let swapped = {
            let mut bytes = good.clone();
            let (one, two) = (30..30 + DOT_LEN, 30 + DOT_LEN..30 + 2 * DOT_LEN);
            bytes[one.clone()].copy_from_slice(&good[two.clone()]);
            bytes[two].copy_from_slice(&good[one]);
            bytes
        };
        assert_eq!(
            check(&swapped),
            Err(RecordError::Malformed),
            "entries out of order"
        );
        let mut uncovered = good.clone();
        uncovered[30 + 2 * DOT_LEN + 23] = 9;
        assert_eq!(
            check(&uncovered),
            Err(RecordError::Malformed),
            "a dot beyond the context"
        );
        let mut longer = good.clone();
        longer.push(0);
        assert_eq!(
            check(&longer),
            Err(RecordError::Malformed),
            "bytes at the end"
        );
        for len in 0..good.len() {
            assert!(check(&good[..len]).is_err(), "cut at {len}");
        }
    }

    /// What three owners do with a key; each step names one of them by its index.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// A client that read at the second owner so many steps ago writes at the first one.
        Write {
            at: usize,
            read_at: usize,
            blind: bool,
            delete: bool,
            retry: bool,
        },
        /// The first owner gets the second one's state.
        Sync(usize, usize),
        /// An owner loses its data and gets a new epoch.
        Wipe(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let write = (0..3_usize, 0..3_usize, any::<[bool; 3]>());
        prop_oneof![
            6 => write.prop_map(|(at, read_at, [blind, delete, retry])| Step::Write { at, read_at, blind, delete, retry }),
            4 => (0..3_usize, 0..3_usize).prop_map(|(to, from)| Step::Sync(to, from)),
            1 => (0..3_usize).prop_map(Step::Wipe),
        ]
    }

    /// Runs the steps and answers every state that any owner ever had.
    fn history(steps: &[Step]) -> Vec<Siblings> {
        let mut owners = vec![Siblings::default(); 3];
        let mut epochs = [1_u64; 3];
        let mut write = 0_u128;
        let mut states = Vec::new();
        for (now, step) in steps.iter().enumerate() {
            let changed = match *step {
                Step::Write {
                    at,
                    read_at,
                    blind,
                    delete,
                    retry,
                } => {
                    let seen = if blind {
                        Causal::new()
                    } else {
                        owners[read_at].context().clone()
                    };
                    write += u128::from(!retry || write == 0);
                    let dot = Dot {
                        node: NodeId(at as u64),
                        epoch: epochs[at],
                        hlc: Hlc(now as u64 + 1),
                    };
                    let mut sibling = value(write, "v");
                    if delete {
                        sibling.content = None;
                    }
                    owners[at].write(&seen, dot, sibling);
                    at
                }
                Step::Sync(to, from) => {
                    let theirs = owners[from].clone();
                    owners[to].merge(theirs);
                    to
                }
                Step::Wipe(at) => {
                    owners[at] = Siblings::default();
                    epochs[at] += 1;
                    at
                }
            };
            if !owners[changed].context().is_empty() {
                states.push(owners[changed].clone());
            }
        }
        states
    }

    proptest! {
        #[test]
        fn merge_is_a_semilattice(steps in prop::collection::vec(step(), 1..40), picks in any::<[prop::sample::Index; 3]>()) {
            let states = history(&steps);
            prop_assume!(!states.is_empty());
            let [a, b, c] = picks.map(|pick| states[pick.index(states.len())].to_record().expect("encodes"));
            let m = |x: &Record, y: &Record| x.clone().merge(y.clone()).expect("compatible");
            prop_assert_eq!(m(&a, &b), m(&b, &a));
            prop_assert_eq!(m(&m(&a, &b), &c), m(&a, &m(&b, &c)));
            prop_assert_eq!(m(&a, &a), a.clone());
            prop_assert_eq!(m(&m(&a, &b), &a), m(&a, &b));
        }

        #[test]
        fn a_record_is_what_was_put_together(steps in prop::collection::vec(step(), 1..40)) {
            for state in history(&steps) {
                let record = state.to_record().expect("encodes");
                let parsed = Record::parse(record.as_bytes().clone()).expect("parses");
                prop_assert_eq!(Siblings::read(&parsed), Ok(state));
            }
        }

        /// Nothing is lost: a write is in the merge of all owners, or somebody who saw it replaced it.
        #[test]
        fn a_blind_write_loses_nothing(steps in prop::collection::vec(step(), 1..40), at in 0..3_u64) {
            let mut states = history(&steps);
            prop_assume!(!states.is_empty());
            let mut last = states.pop().unwrap_or_default();
            let before: Vec<Dot> = last.dots.keys().copied().collect();
            last.write(&Causal::new(), Dot { node: NodeId(at), epoch: 9, hlc: Hlc(1_000) }, value(u128::MAX, "new"));
            prop_assert!(before.iter().all(|dot| last.dots.contains_key(dot)));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(0..4_u8, 0..200), seen in 0..3_u16, siblings in 0..3_u16) {
            let mut bytes = bytes;
            if bytes.len() > 30 {
                bytes[26..28].copy_from_slice(&seen.to_be_bytes());
                bytes[28..30].copy_from_slice(&siblings.to_be_bytes());
            }
            let bytes = Bytes::from(bytes);
            let _ = (check(&bytes), is_visible(&bytes, 1));
            if let Ok(set) = decode(&bytes) {
                let _ = set.to_record();
                let _ = merge(&bytes, &bytes);
            }
        }
    }
}

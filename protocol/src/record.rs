//! The stored state of a key: one join-semilattice, used by every path that moves a value.
//!
//! A [`Record`] is its own encoding: the same bytes lie on disk, go over the wire and are compared, so
//! that neither a replica nor a coordinator ever copies a value to look at it. Layout (big endian):
//!
//! ```text
//! byte   0      1     2        10       18      26        34        36
//!        format kind  hlc u64  node u64 hash    expiry    ct len    content type, value
//! ```
//!
//! `kind` is 1 for a value, 2 for a tombstone, 3 for a set of siblings (see [`crate::siblings`]; its
//! bytes 2..26 hold the same digest). `hash` covers everything else, so it is also the checksum. `expiry` is microseconds since 1970, 0 for never.
//!
//! Invariant: bytes 2..26 order records of kind 1 and 2 exactly as the semilattice does, so their merge is
//! one comparison of 24 bytes.

use bytes::{BufMut, Bytes, BytesMut};
use torc_ring::NodeId;
use xxhash_rust::xxh3::Xxh3;

use crate::hlc::Hlc;
use crate::siblings;
use crate::version::{Digest, Version};

/// Bytes before content type and value.
pub const HEADER_LEN: usize = 36;
/// Greatest length of a content type, in bytes.
pub const CONTENT_TYPE_MAX: usize = 256;
/// Greatest length of a key, in bytes.
pub const KEY_LEN_MAX: usize = 1024;
/// Greatest configurable limit of a value's length, in bytes.
pub const VALUE_LEN_MAX: usize = 64 << 20;

const FORMAT: u8 = 1;
const KIND_VALUE: u8 = 1;
const KIND_TOMBSTONE: u8 = 2;
pub(crate) const KIND_SIBLINGS: u8 = 3;
const VERSION: std::ops::Range<usize> = 2..18;
const DIGEST: std::ops::Range<usize> = 2..26;

/// A stored state: a value, a tombstone, or a set of siblings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record(Bytes);

/// What a [`Record`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One value.
    Value,
    /// A deletion.
    Tombstone,
    /// Concurrent values.
    Siblings,
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Too short to be one.
    #[error("record of {len} bytes is truncated")]
    Truncated {
        /// Bytes that there are.
        len: usize,
    },
    /// A format that this version does not know.
    #[error("record format {format}, kind {kind} is unknown; it was written by a newer version")]
    Unknown {
        /// First byte.
        format: u8,
        /// Second byte.
        kind: u8,
    },
    /// The content does not match its hash.
    #[error("record content does not match its checksum")]
    Checksum,
    /// Lengths inside contradict each other.
    #[error("record is malformed")]
    Malformed,
    /// Two records that can never be of one key.
    #[error("records of different conflict modes cannot be merged")]
    Incompatible,
}

/// The parts of a value to be made into a record.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// Version that the coordinator minted.
    pub version: Version,
    /// Microseconds since 1970; `None` for never.
    pub expiry: Option<u64>,
    /// At most [`CONTENT_TYPE_MAX`] bytes; empty for none.
    pub content_type: &'a [u8],
    /// At most [`VALUE_LEN_MAX`] bytes.
    pub value: &'a [u8],
}

impl Record {
    /// A value. A content type above its limit is cut off (the facade refuses such requests).
    #[must_use]
    pub fn value(parts: Parts<'_>) -> Self {
        Self::build(KIND_VALUE, parts)
    }

    /// A tombstone.
    #[must_use]
    pub fn tombstone(version: Version) -> Self {
        Self::build(
            KIND_TOMBSTONE,
            Parts {
                version,
                expiry: None,
                content_type: &[],
                value: &[],
            },
        )
    }

    fn build(kind: u8, parts: Parts<'_>) -> Self {
        let content_type = &parts.content_type[..parts.content_type.len().min(CONTENT_TYPE_MAX)];
        let mut buf = BytesMut::with_capacity(HEADER_LEN + content_type.len() + parts.value.len());
        buf.put_u8(FORMAT);
        buf.put_u8(kind);
        buf.put_u64(parts.version.hlc.0);
        buf.put_u64(parts.version.node.0);
        buf.put_u64(0);
        buf.put_u64(parts.expiry.unwrap_or(0));
        buf.put_u16(content_type.len() as u16);
        buf.put_slice(content_type);
        buf.put_slice(parts.value);
        let hash = content_hash(&buf);
        buf[18..26].copy_from_slice(&hash.to_be_bytes());
        Self(buf.freeze())
    }

    /// Takes over bytes that [`crate::siblings`] has put together.
    pub(crate) fn from_siblings(mut buf: BytesMut, digest_version: Version) -> Self {
        buf[0] = FORMAT;
        buf[1] = KIND_SIBLINGS;
        buf[2..10].copy_from_slice(&digest_version.hlc.0.to_be_bytes());
        buf[10..18].copy_from_slice(&digest_version.node.0.to_be_bytes());
        let hash = content_hash(&buf);
        buf[18..26].copy_from_slice(&hash.to_be_bytes());
        Self(buf.freeze())
    }

    /// Takes bytes from disk or wire, checking form and checksum.
    ///
    /// # Errors
    /// Says what is wrong with them.
    pub fn parse(bytes: Bytes) -> Result<Self, RecordError> {
        check(&bytes)?;
        Ok(Self(bytes))
    }

    /// The encoded bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// Length of the encoded bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // a record is never empty
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.0[1] {
            KIND_VALUE => Kind::Value,
            KIND_TOMBSTONE => Kind::Tombstone,
            _ => Kind::Siblings,
        }
    }

    /// Version; of siblings, the greatest of their dots.
    #[must_use]
    pub fn version(&self) -> Version {
        Version {
            hlc: Hlc(self.u64_at(2)),
            node: NodeId(self.u64_at(10)),
        }
    }

    /// Version and content hash.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest {
            version: self.version(),
            hash: self.u64_at(18),
        }
    }

    /// When the value ceases to be visible, in microseconds since 1970. `None` for siblings: each of them
    /// has its own.
    #[must_use]
    pub fn expiry(&self) -> Option<u64> {
        match (self.kind(), self.u64_at(26)) {
            (Kind::Siblings, _) | (_, 0) => None,
            (_, at) => Some(at),
        }
    }

    /// The least floor at which this state is dead, so that it may be dropped: a tombstone once its version is
    /// not above the floor, a value once its expiry is not above it either. `None` for what never dies:
    /// values without expiry, and siblings.
    #[must_use]
    pub fn dead_at(&self) -> Option<Hlc> {
        dead_at(&self.0)
    }

    /// Whether a reader at `micros` since 1970 sees a value.
    #[must_use]
    pub fn is_visible(&self, micros: u64) -> bool {
        match self.kind() {
            Kind::Value => self.expiry().is_none_or(|at| at > micros),
            Kind::Tombstone => false,
            Kind::Siblings => siblings::is_visible(&self.0, micros),
        }
    }

    /// Content type; empty when there is none.
    #[must_use]
    pub fn content_type(&self) -> &[u8] {
        let (start, end) = self.content_type_range();
        &self.0[start..end]
    }

    /// The value, sharing the record's memory. Empty for tombstones and siblings.
    #[must_use]
    pub fn value_bytes(&self) -> Bytes {
        match self.kind() {
            Kind::Value => self.0.slice(self.content_type_range().1..),
            Kind::Tombstone | Kind::Siblings => Bytes::new(),
        }
    }

    fn content_type_range(&self) -> (usize, usize) {
        match self.kind() {
            Kind::Siblings => (HEADER_LEN, HEADER_LEN),
            Kind::Value | Kind::Tombstone => {
                let len = usize::from(u16::from_be_bytes([self.0[34], self.0[35]]));
                (HEADER_LEN, HEADER_LEN + len)
            }
        }
    }

    fn u64_at(&self, at: usize) -> u64 {
        u64_at(&self.0, at)
    }

    /// Least upper bound of two states of one key: commutative, associative, idempotent.
    ///
    /// # Errors
    /// When the two can never be of one key (a `siblings` and an `lww` record).
    pub fn merge(self, other: Self) -> Result<Self, RecordError> {
        match (self.kind(), other.kind()) {
            (Kind::Siblings, Kind::Siblings) => siblings::merge(&self.0, &other.0),
            (Kind::Siblings, _) | (_, Kind::Siblings) => Err(RecordError::Incompatible),
            _ => Ok(if merge_order(&self.0) >= merge_order(&other.0) {
                self
            } else {
                other
            }),
        }
    }
}

/// Which of two encoded states, both of kind value or tombstone, is the merged one; `None` when either is
/// something else. For the storage's merge operator, which must not copy values.
#[must_use]
pub fn merge_picks_first(first: &[u8], second: &[u8]) -> Option<bool> {
    let plain = |bytes: &[u8]| {
        bytes.len() >= HEADER_LEN
            && bytes[0] == FORMAT
            && matches!(bytes[1], KIND_VALUE | KIND_TOMBSTONE)
    };
    (plain(first) && plain(second)).then(|| merge_order(first) >= merge_order(second))
}

/// The digest of encoded bytes, after a look at their form and checksum; copies nothing.
///
/// # Errors
/// Says what is wrong with them.
pub fn check_digest(bytes: &[u8]) -> Result<Digest, RecordError> {
    check(bytes)?;
    digest_of(bytes).ok_or(RecordError::Truncated { len: bytes.len() })
}

/// The digest of encoded bytes that passed [`Record::parse`] at some time.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> Option<Digest> {
    (bytes.len() >= HEADER_LEN).then(|| Digest {
        version: Version {
            hlc: Hlc(u64_at(bytes, 2)),
            node: NodeId(u64_at(bytes, 10)),
        },
        hash: u64_at(bytes, 18),
    })
}

/// [`Record::dead_at`] of encoded bytes that passed [`Record::parse`] at some time.
#[must_use]
pub fn dead_at(bytes: &[u8]) -> Option<Hlc> {
    if bytes.len() < HEADER_LEN {
        return None;
    }
    let version = Hlc(u64_at(bytes, 2));
    match (bytes[1], u64_at(bytes, 26)) {
        (KIND_TOMBSTONE, _) => Some(version),
        (KIND_VALUE, expiry) if expiry != 0 => {
            // An expiry beyond what a timestamp can hold never comes.
            let expiry = (expiry <= u64::MAX >> crate::hlc::COUNTER_BITS)
                .then(|| Hlc::from_micros(expiry))?;
            Some(version.max(expiry))
        }
        _ => None,
    }
}

/// Version, then hash, then kind: the kind only decides for contents whose hashes collide, so that the
/// order is total on everything that can differ before the content.
fn merge_order(bytes: &[u8]) -> (&[u8], &[u8]) {
    (&bytes[DIGEST], &bytes[DIGEST.end..])
}

fn check(bytes: &[u8]) -> Result<(), RecordError> {
    if bytes.len() < HEADER_LEN {
        return Err(RecordError::Truncated { len: bytes.len() });
    }
    let (format, kind) = (bytes[0], bytes[1]);
    if format != FORMAT || !matches!(kind, KIND_VALUE | KIND_TOMBSTONE | KIND_SIBLINGS) {
        return Err(RecordError::Unknown { format, kind });
    }
    if content_hash(bytes) != u64_at(bytes, 18) {
        return Err(RecordError::Checksum);
    }
    if kind == KIND_SIBLINGS {
        return siblings::check(bytes);
    }
    let content_type = usize::from(u16::from_be_bytes([bytes[34], bytes[35]]));
    let tombstone_is_bare =
        kind != KIND_TOMBSTONE || (bytes.len() == HEADER_LEN && u64_at(bytes, 26) == 0);
    if content_type > CONTENT_TYPE_MAX
        || HEADER_LEN + content_type > bytes.len()
        || !tombstone_is_bare
    {
        return Err(RecordError::Malformed);
    }
    Ok(())
}

fn content_hash(bytes: &[u8]) -> u64 {
    let mut hasher = Xxh3::with_seed(u64::from(bytes[1]));
    hasher.update(&bytes[VERSION]);
    hasher.update(&bytes[DIGEST.end..]);
    hasher.digest()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0_u8; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn version(hlc: u64, node: u64) -> Version {
        Version {
            hlc: Hlc(hlc),
            node: NodeId(node),
        }
    }

    fn record() -> impl Strategy<Value = Record> {
        let value = prop::collection::vec(any::<u8>(), 0..4);
        (0..3_u64, 0..3_u64, any::<bool>(), 0..2_u64, value).prop_map(
            |(hlc, node, dead, expiry, value)| {
                if dead {
                    Record::tombstone(version(hlc, node))
                } else {
                    let expiry = (expiry > 0).then_some(expiry);
                    Record::value(Parts {
                        version: version(hlc, node),
                        expiry,
                        content_type: b"t",
                        value: &value,
                    })
                }
            },
        )
    }

    proptest! {
        #[test]
        fn merge_is_a_semilattice(a in record(), b in record(), c in record()) {
            let m = |x: &Record, y: &Record| x.clone().merge(y.clone()).expect("compatible");
            prop_assert_eq!(m(&a, &b), m(&b, &a));
            prop_assert_eq!(m(&m(&a, &b), &c), m(&a, &m(&b, &c)));
            prop_assert_eq!(m(&a, &a), a.clone());
            let picks = merge_picks_first(a.as_bytes(), b.as_bytes()).expect("plain");
            prop_assert_eq!(if picks { a.clone() } else { b.clone() }, m(&a, &b));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(record) = Record::parse(bytes.into()) {
                let _ = (record.value_bytes(), record.content_type().len(), record.is_visible(1));
            }
        }

        #[test]
        fn a_flipped_bit_is_detected(bit in 0_usize..(8 * 38)) {
            let good = Record::value(Parts { version: version(9, 1), expiry: None, content_type: b"", value: b"ab" });
            let mut bytes = good.as_bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Record::parse(bytes.into()).is_err());
        }
    }

    #[test]
    fn a_value_is_what_was_put() {
        let parts = Parts {
            version: version(5, 6),
            expiry: Some(77),
            content_type: b"text/plain",
            value: b"hello",
        };
        let record = Record::parse(Record::value(parts).as_bytes().clone()).expect("parses");
        assert_eq!(record.kind(), Kind::Value);
        assert_eq!(record.version(), version(5, 6));
        assert_eq!(record.content_type(), b"text/plain");
        assert_eq!(&record.value_bytes()[..], b"hello");
        assert!(record.is_visible(76) && !record.is_visible(77));
    }

    #[test]
    fn the_newer_version_wins_and_a_tie_goes_to_the_greater_hash() {
        let old = Record::tombstone(version(1, 9));
        let new = Record::tombstone(version(2, 0));
        assert_eq!(old.clone().merge(new.clone()), Ok(new));
        let value = |v: &'static [u8]| {
            Record::value(Parts {
                version: version(1, 1),
                expiry: None,
                content_type: b"",
                value: v,
            })
        };
        let (a, b) = (value(b"a"), value(b"b"));
        let winner = if a.digest().hash > b.digest().hash {
            a.clone()
        } else {
            b.clone()
        };
        assert_eq!(a.clone().merge(b.clone()), Ok(winner.clone()));
        assert_eq!(b.merge(a), Ok(winner));
    }
}

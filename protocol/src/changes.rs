//! The change feed: which replica tells of a change, when, and the note that it keeps until it has.
//!
//! Every current owner of a key notes a change in the same batch that makes it durable, so that no crash
//! can come between the two. The first owner in the key's order tells of it at once. The others keep their
//! notes for a while, and tell of the change in its place when an owner before them is believed dead then;
//! otherwise they forget it. So each change is told at least once, usually exactly once, and more often
//! around failures. (What is lost: notes that the first owner had not told yet when its disk was lost for
//! good, if it was alive at the end of that while.)
//!
//! Nothing here says how it is told; nothing is promised about the order of changes, which is why each
//! carries its version.

use bytes::{BufMut, Bytes};
use torc_ring::{BucketId, NodeId, Token};

use crate::hlc::Hlc;
use crate::message::RecordKey;
use crate::record::{KEY_LEN_MAX, Kind, Record};
use crate::shard_io::View;
use crate::version::{Digest, Version};

/// For how long an owner that is not the first one keeps its note, in microseconds.
pub const PATIENCE: u64 = 10 * crate::time::SECOND;

const FORMAT: u8 = 1;
/// Bytes before the key.
const HEAD_LEN: usize = 62;

/// Where a note lies: notes that are told at once, and those that wait first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// The first owner's.
    First,
    /// The other owners'.
    Later,
}

/// A note of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// When this replica was asked to make it durable, in microseconds since 1970.
    pub noted_micros: u64,
    /// The key.
    pub key: RecordKey,
    /// The state that was written; another one, even a newer one, may be there already.
    pub digest: Digest,
    /// Whether it is a deletion.
    pub deleted: bool,
    /// Length of the value in bytes.
    pub value_len: u64,
    /// When the value ceases to be visible, in microseconds since 1970; 0 for never.
    pub expiry: u64,
}

/// What is to be done about a note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Tell of it, and forget it then.
    Tell,
    /// Keep it for now.
    Keep,
    /// Forget it: an owner before this one tells of it.
    Forget,
}

/// The lane of this node's note of a change of that key; `None` when it notes nothing: it is not among the
/// current owners.
#[must_use]
pub fn lane(view: &View, node: NodeId, key: &RecordKey) -> Option<Lane> {
    match place(view, node, key)? {
        0 => Some(Lane::First),
        _ => Some(Lane::Later),
    }
}

/// What is to be done about a note now. `dead` are the nodes that are believed dead.
#[must_use]
pub fn duty(
    view: &View,
    node: NodeId,
    (lane, change): (Lane, &Change),
    (now_micros, dead): (u64, &[NodeId]),
) -> Duty {
    if lane == Lane::First {
        return Duty::Tell;
    }
    if now_micros < change.noted_micros.saturating_add(PATIENCE) {
        return Duty::Keep;
    }
    let Some(bucket) = view.config.bucket_by_id(change.key.bucket) else {
        return Duty::Forget;
    };
    let partition = change.key.token.partition(view.config.partition_bits);
    let mut before = view
        .ring
        .owners(bucket.n, partition)
        .iter()
        .take_while(|&&owner| owner != node);
    if before.any(|owner| dead.contains(owner)) {
        Duty::Tell
    } else {
        Duty::Forget
    }
}

fn place(view: &View, node: NodeId, key: &RecordKey) -> Option<usize> {
    let bucket = view.config.bucket_by_id(key.bucket)?;
    let partition = key.token.partition(view.config.partition_bits);
    let owners = view.ring.owners(bucket.n, partition);
    owners.iter().position(|&owner| owner == node)
}

impl Change {
    /// The note of a record that is about to be merged into its key.
    #[must_use]
    pub fn of(key: &RecordKey, record: &Record, now_micros: u64) -> Self {
        Self {
            noted_micros: now_micros,
            key: key.clone(),
            digest: record.digest(),
            deleted: record.kind() == Kind::Tombstone,
            value_len: record.value_bytes().len() as u64,
            expiry: record.expiry().unwrap_or(0),
        }
    }

    /// Its bytes, big endian: format u8 = 1, deleted u8, noted u64, bucket u32, token u64, hlc u64,
    /// node u64, hash u64, length of the value u64, expiry u64, key.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(HEAD_LEN + self.key.key.len());
        out.put_u8(FORMAT);
        out.put_u8(u8::from(self.deleted));
        out.put_u64(self.noted_micros);
        out.put_u32(self.key.bucket.0);
        out.put_u64(self.key.token.0);
        out.put_u64(self.digest.version.hlc.0);
        out.put_u64(self.digest.version.node.0);
        out.put_u64(self.digest.hash);
        out.put_u64(self.value_len);
        out.put_u64(self.expiry);
        out.put_slice(&self.key.key);
        out.into()
    }

    /// The note in these bytes; `None` when they are none.
    #[must_use]
    pub fn parse(bytes: &Bytes) -> Option<Self> {
        let head = bytes.first_chunk::<HEAD_LEN>()?;
        let key = bytes.slice(HEAD_LEN..);
        if head[0] != FORMAT || head[1] > 1 || !(1..=KEY_LEN_MAX).contains(&key.len()) {
            return None;
        }
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&head[at..at + 8]);
            u64::from_be_bytes(word)
        };
        Some(Self {
            noted_micros: word(2),
            key: RecordKey {
                bucket: BucketId(u32::from_be_bytes([head[10], head[11], head[12], head[13]])),
                token: Token(word(14)),
                key,
            },
            digest: Digest {
                version: Version {
                    hlc: Hlc(word(22)),
                    node: NodeId(word(30)),
                },
                hash: word(38),
            },
            deleted: head[1] == 1,
            value_len: word(46),
            expiry: word(54),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use torc_ring::{ClusterId, Config, Member, Secret};

    use super::*;
    use crate::record::Parts;
    use crate::time::SECOND;

    fn view() -> std::sync::Arc<View> {
        let member = |id: u64| Member {
            id: NodeId(id),
            name: format!("n{id}"),
            zone: format!("z{id}"),
            weight: 100,
            peer: format!("h:{id}"),
            http: format!("h:{}", 100 + id),
        };
        let mut config = Config::bootstrap(ClusterId(1), (7, Secret([0; 32])), 4, member(1));
        config.current = (1..=4).map(member).collect();
        View::new(config)
    }

    fn change(view: &View, key: &'static [u8]) -> Change {
        let bucket = BucketId(1);
        let key = RecordKey {
            bucket,
            token: Token::of(view.config.seed, bucket, key),
            key: Bytes::from_static(key),
        };
        let record = Record::value(Parts {
            version: Version {
                hlc: Hlc(5),
                node: NodeId(1),
            },
            expiry: Some(9),
            content_type: b"",
            value: b"value",
        });
        Change::of(&key, &record, 100 * SECOND)
    }

    #[test]
    fn each_owner_notes_a_change_and_the_first_one_tells_of_it() {
        let view = view();
        let change = change(&view, b"k");
        let partition = change.key.token.partition(4);
        let owners = view.ring.owners(3, partition);
        let lanes: Vec<_> = owners
            .iter()
            .map(|&node| lane(&view, node, &change.key))
            .collect();
        assert_eq!(
            lanes,
            [Some(Lane::First), Some(Lane::Later), Some(Lane::Later)]
        );
        let stranger = (1..=4)
            .map(NodeId)
            .find(|node| !owners.contains(node))
            .expect("four nodes");
        assert_eq!(lane(&view, stranger, &change.key), None);
        let now = 100 * SECOND;
        let first = (Lane::First, &change);
        assert_eq!(duty(&view, owners[0], first, (now, &[])), Duty::Tell);
    }

    #[test]
    fn a_later_owner_tells_of_it_only_when_one_before_it_is_dead() {
        let view = view();
        let change = change(&view, b"k");
        let owners = view.ring.owners(3, change.key.token.partition(4));
        let of = |owner: usize, now: u64, dead: &[NodeId]| {
            duty(&view, owners[owner], (Lane::Later, &change), (now, dead))
        };
        let (soon, late) = (110 * SECOND - 1, 110 * SECOND);
        assert_eq!(of(1, soon, &[owners[0]]), Duty::Keep);
        assert_eq!(of(1, late, &[owners[0]]), Duty::Tell);
        assert_eq!(of(1, late, &[]), Duty::Forget);
        assert_eq!(of(1, late, &[owners[2]]), Duty::Forget);
        assert_eq!(of(2, late, &[owners[1]]), Duty::Tell);
    }

    proptest! {
        #[test]
        fn notes_come_back(numbers in any::<[u64; 7]>(), bucket in any::<u32>(), deleted in any::<bool>(), key in prop::collection::vec(any::<u8>(), 1..=KEY_LEN_MAX)) {
            let [noted_micros, token, hlc, node, hash, value_len, expiry] = numbers;
            let change = Change {
                noted_micros,
                key: RecordKey { bucket: BucketId(bucket), token: Token(token), key: key.into() },
                digest: Digest { version: Version { hlc: Hlc(hlc), node: NodeId(node) }, hash },
                deleted,
                value_len,
                expiry,
            };
            prop_assert_eq!(Change::parse(&change.encode()), Some(change));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..90)) {
            let _ = Change::parse(&bytes.into());
        }
    }
}

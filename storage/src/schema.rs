//! Bytes on disk: keys and values of every column family. Drawn in `docs/format.md`; a change here is a
//! change of [`FORMAT`].
//!
//! All numbers are big endian, so that RocksDB's byte order is the order of the numbers.

use bytes::{BufMut, Bytes};
use torc_protocol::changes::Lane;
use torc_protocol::message::RecordKey;
use torc_protocol::record::{KEY_LEN_MAX, Record};
use torc_protocol::store::{Hint, HintKey, StateKey, StoreError};
use torc_ring::{BucketId, ConfigVersion, NodeId, PartitionId, Token};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Version of everything in this file; stands in the data directory's `FORMAT` file.
pub(crate) const FORMAT: u32 = 1;

pub(crate) const RECORDS: &str = "records";
pub(crate) const HINTS: &str = "hints";
pub(crate) const AGREEMENT: &str = "agreement";
pub(crate) const STATE: &str = "state";
pub(crate) const CHANGES: &str = "changes";
pub(crate) const FAMILIES: [&str; 5] = [RECORDS, HINTS, AGREEMENT, STATE, CHANGES];

const RECORD_KEY_HEAD: usize = 12;
const HINT_KEY_LEN: usize = 17;
/// Bytes of a hint's value before the key: form, flags, checksum, bucket, token, length of the key.
const HINT_HEAD: usize = 24;
const HINT_FORM: u8 = 1;
const HINT_COUNTED: u8 = 1;
const CHECKSUM_LEN: usize = 8;

const ACCEPTOR: u8 = 1;
const DECIDED: u8 = 2;
const APPLIED: u8 = 3;
const IDENTITY: u8 = 1;
const HLC_BOUND: u8 = 2;
const PEER_BOUND: u8 = 3;
const CHANGE_FIRST: u8 = 1;
const CHANGE_LATER: u8 = 2;
const TREE: u8 = 4;
const FLOOR: u8 = 5;

/// A group of [`StateKey`]s that can be read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum States {
    /// Every [`StateKey::Acceptor`], by version.
    Acceptor,
    /// Every [`StateKey::Decided`], by version.
    Decided,
    /// Every [`StateKey::HlcBound`], by shard.
    HlcBound,
    /// Every [`StateKey::PeerBound`], by node.
    PeerBound,
    /// Every [`StateKey::Tree`], by bucket and partition.
    Tree,
    /// Every [`StateKey::Floor`], by bucket and partition.
    Floor,
}

impl States {
    pub(crate) fn family_and_tag(self) -> (&'static str, u8) {
        match self {
            Self::Acceptor => (AGREEMENT, ACCEPTOR),
            Self::Decided => (AGREEMENT, DECIDED),
            Self::HlcBound => (STATE, HLC_BOUND),
            Self::PeerBound => (STATE, PEER_BOUND),
            Self::Tree => (STATE, TREE),
            Self::Floor => (STATE, FLOOR),
        }
    }

    pub(crate) fn contains(self, key: StateKey) -> bool {
        matches!(
            (self, key),
            (Self::Acceptor, StateKey::Acceptor(_))
                | (Self::Decided, StateKey::Decided(_))
                | (Self::HlcBound, StateKey::HlcBound(_))
                | (Self::PeerBound, StateKey::PeerBound(_))
                | (Self::Tree, StateKey::Tree(..))
                | (Self::Floor, StateKey::Floor(..))
        )
    }
}

/// bucket u32 ‖ token u64 ‖ key.
pub(crate) fn record_key(bucket: BucketId, token: Token, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(RECORD_KEY_HEAD + key.len());
    out.put_u32(bucket.0);
    out.put_u64(token.0);
    out.put_slice(key);
    out
}

/// First key after every record of that bucket and token; `None` behind the last of all.
pub(crate) fn record_key_after(bucket: BucketId, token: Token) -> Option<Vec<u8>> {
    let next = match token.0.checked_add(1) {
        Some(token) => (bucket.0, token),
        None => (bucket.0.checked_add(1)?, 0),
    };
    Some(record_key(BucketId(next.0), Token(next.1), &[]))
}

/// Above every record's key.
pub(crate) fn record_key_end() -> Vec<u8> {
    vec![u8::MAX; 4 + 8 + KEY_LEN_MAX + 1]
}

pub(crate) fn parse_record_key(bytes: &[u8]) -> Option<RecordKey> {
    let (head, key) = bytes.split_at_checked(RECORD_KEY_HEAD)?;
    Some(RecordKey {
        bucket: BucketId(u32_at(head, 0)?),
        token: Token(u64_at(head, 4)?),
        key: Bytes::copy_from_slice(key),
    })
}

/// target u64 ‖ slot u8 ‖ seq u64.
pub(crate) fn hint_key(at: HintKey) -> [u8; HINT_KEY_LEN] {
    let mut out = [0; HINT_KEY_LEN];
    out[..8].copy_from_slice(&at.target.0.to_be_bytes());
    out[8] = at.slot;
    out[9..].copy_from_slice(&at.seq.to_be_bytes());
    out
}

pub(crate) fn parse_hint_key(bytes: &[u8]) -> Option<HintKey> {
    if bytes.len() != HINT_KEY_LEN {
        return None;
    }
    Some(HintKey {
        target: NodeId(u64_at(bytes, 0)?),
        slot: bytes[8],
        seq: u64_at(bytes, 9)?,
    })
}

/// form u8 ‖ flags u8 ‖ checksum u64 ‖ bucket u32 ‖ token u64 ‖ key length u16 ‖ key ‖ record. The checksum
/// covers what the record's own does not: place, flags and key.
pub(crate) fn hint_value(at: HintKey, hint: &Hint) -> Vec<u8> {
    let mut out = Vec::with_capacity(HINT_HEAD + hint.key.key.len() + hint.record.len());
    out.put_u8(HINT_FORM);
    out.put_u8(if hint.counted { HINT_COUNTED } else { 0 });
    out.put_u64(0);
    out.put_u32(hint.key.bucket.0);
    out.put_u64(hint.key.token.0);
    out.put_u16(hint.key.key.len() as u16);
    out.put_slice(&hint.key.key);
    let sum = hint_checksum(at, out[1], &out[10..]);
    out[2..10].copy_from_slice(&sum.to_be_bytes());
    out.put_slice(hint.record.as_bytes());
    out
}

pub(crate) fn parse_hint_value(at: HintKey, bytes: &[u8]) -> Result<Hint, StoreError> {
    let parse = || {
        let head = bytes.get(..HINT_HEAD)?;
        let key_end = HINT_HEAD + usize::from(u16::from_be_bytes([head[22], head[23]]));
        let covered = bytes.get(10..key_end)?;
        let sound = head[0] == HINT_FORM && u64_at(head, 2)? == hint_checksum(at, head[1], covered);
        let record = Record::parse(Bytes::copy_from_slice(&bytes[key_end..])).ok()?;
        sound.then(|| Hint {
            key: RecordKey {
                bucket: BucketId(u32::from_be_bytes([head[10], head[11], head[12], head[13]])),
                token: Token(u64::from_be_bytes([
                    head[14], head[15], head[16], head[17], head[18], head[19], head[20], head[21],
                ])),
                key: Bytes::copy_from_slice(&bytes[HINT_HEAD..key_end]),
            },
            record,
            counted: head[1] & HINT_COUNTED != 0,
        })
    };
    parse().ok_or(StoreError::Corrupt)
}

/// Whether the hint in that value counted towards a write quorum, without reading the rest of it.
pub(crate) fn hint_counted(value: &[u8]) -> bool {
    value.get(1).is_some_and(|flags| flags & HINT_COUNTED != 0)
}

/// [`Hint::weight`] of the hint in a value of that length, without reading the value.
pub(crate) fn hint_weight(value_len: usize) -> u64 {
    (value_len.saturating_sub(HINT_HEAD) + 64) as u64
}

fn hint_checksum(at: HintKey, flags: u8, covered: &[u8]) -> u64 {
    let place = xxh3_64_with_seed(&hint_key(at), u64::from(flags));
    xxh3_64_with_seed(covered, place)
}

/// Column family and key of a piece of state.
pub(crate) fn state_key(key: StateKey) -> (&'static str, Vec<u8>) {
    let with_u64 = |tag: u8, number: u64| {
        let mut out = vec![tag];
        out.put_u64(number);
        out
    };
    match key {
        StateKey::Acceptor(version) => (AGREEMENT, with_u64(ACCEPTOR, version.0)),
        StateKey::Decided(version) => (AGREEMENT, with_u64(DECIDED, version.0)),
        StateKey::Applied => (AGREEMENT, vec![APPLIED]),
        StateKey::Identity => (STATE, vec![IDENTITY]),
        StateKey::HlcBound(shard) => (STATE, vec![HLC_BOUND, shard]),
        StateKey::PeerBound(node) => (STATE, with_u64(PEER_BOUND, node.0)),
        StateKey::Change(lane, number) => (CHANGES, with_u64(lane_tag(lane), number)),
        StateKey::Tree(bucket, partition) => (STATE, of_partition(TREE, bucket, partition)),
        StateKey::Floor(bucket, partition) => (STATE, of_partition(FLOOR, bucket, partition)),
    }
}

/// tag u8 ‖ bucket u32 ‖ partition u16.
fn of_partition(tag: u8, bucket: BucketId, partition: PartitionId) -> Vec<u8> {
    let mut out = vec![tag];
    out.put_u32(bucket.0);
    out.put_u16(partition.0);
    out
}

/// First byte of the keys of a lane's notes.
pub(crate) fn lane_tag(lane: Lane) -> u8 {
    match lane {
        Lane::First => CHANGE_FIRST,
        Lane::Later => CHANGE_LATER,
    }
}

pub(crate) fn parse_state_key(family: &str, bytes: &[u8]) -> Option<StateKey> {
    let (&tag, rest) = bytes.split_first()?;
    let number = (rest.len() == 8).then(|| u64_at(rest, 0)).flatten();
    match (family, tag, rest.len()) {
        (AGREEMENT, ACCEPTOR, 8) => Some(StateKey::Acceptor(ConfigVersion(number?))),
        (AGREEMENT, DECIDED, 8) => Some(StateKey::Decided(ConfigVersion(number?))),
        (AGREEMENT, APPLIED, 0) => Some(StateKey::Applied),
        (STATE, IDENTITY, 0) => Some(StateKey::Identity),
        (STATE, HLC_BOUND, 1) => Some(StateKey::HlcBound(rest[0])),
        (STATE, PEER_BOUND, 8) => Some(StateKey::PeerBound(NodeId(number?))),
        (CHANGES, CHANGE_FIRST, 8) => Some(StateKey::Change(Lane::First, number?)),
        (CHANGES, CHANGE_LATER, 8) => Some(StateKey::Change(Lane::Later, number?)),
        (STATE, TREE | FLOOR, 6) => {
            let bucket = BucketId(u32_at(rest, 0)?);
            let partition = PartitionId(u16::from_be_bytes([rest[4], rest[5]]));
            Some(match tag {
                TREE => StateKey::Tree(bucket, partition),
                _ => StateKey::Floor(bucket, partition),
            })
        }
        _ => None,
    }
}

/// checksum u64 ‖ bytes. The checksum covers the key too, so that a value cannot stand in a wrong place.
pub(crate) fn state_value(encoded_key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(CHECKSUM_LEN + value.len());
    out.put_u64(state_checksum(encoded_key, value));
    out.put_slice(value);
    out
}

/// `None` when the checksum does not match.
pub(crate) fn parse_state_value(encoded_key: &[u8], bytes: &[u8]) -> Option<Bytes> {
    let (sum, value) = bytes.split_at_checked(CHECKSUM_LEN)?;
    (u64_at(sum, 0)? == state_checksum(encoded_key, value)).then(|| Bytes::copy_from_slice(value))
}

fn state_checksum(encoded_key: &[u8], value: &[u8]) -> u64 {
    xxh3_64_with_seed(value, xxh3_64_with_seed(encoded_key, 0))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use torc_protocol::hlc::Hlc;
    use torc_protocol::version::Version;

    use super::*;

    fn state_keys() -> impl Strategy<Value = StateKey> {
        prop_oneof![
            Just(StateKey::Identity),
            Just(StateKey::Applied),
            any::<u8>().prop_map(StateKey::HlcBound),
            any::<u64>().prop_map(|n| StateKey::PeerBound(NodeId(n))),
            any::<u64>().prop_map(|n| StateKey::Acceptor(ConfigVersion(n))),
            any::<(u32, u16)>().prop_map(|(b, p)| StateKey::Tree(BucketId(b), PartitionId(p))),
            any::<(u32, u16)>().prop_map(|(b, p)| StateKey::Floor(BucketId(b), PartitionId(p))),
            any::<u64>().prop_map(|n| StateKey::Decided(ConfigVersion(n))),
            any::<u64>().prop_map(|n| StateKey::Change(Lane::First, n)),
            any::<u64>().prop_map(|n| StateKey::Change(Lane::Later, n)),
        ]
    }

    fn sample_hint() -> (HintKey, Hint) {
        let at = HintKey {
            target: NodeId(7),
            slot: 3,
            seq: 99,
        };
        let key = RecordKey {
            bucket: BucketId(1),
            token: Token(2),
            key: Bytes::from_static(b"k"),
        };
        let record = Record::tombstone(Version {
            hlc: Hlc(5),
            node: NodeId(6),
        });
        (
            at,
            Hint {
                key,
                record,
                counted: true,
            },
        )
    }

    proptest! {
        #[test]
        fn record_keys_sort_as_bucket_token_key(a in any::<(u32, u64, Vec<u8>)>(), b in any::<(u32, u64, Vec<u8>)>()) {
            let encode = |k: &(u32, u64, Vec<u8>)| record_key(BucketId(k.0), Token(k.1), &k.2);
            prop_assert_eq!(encode(&a).cmp(&encode(&b)), a.cmp(&b));
            let parsed = parse_record_key(&encode(&a)).expect("parses");
            prop_assert_eq!((parsed.bucket.0, parsed.token.0, parsed.key.to_vec()), a);
        }

        #[test]
        fn state_keys_come_back(key in state_keys()) {
            let (family, bytes) = state_key(key);
            prop_assert_eq!(parse_state_key(family, &bytes), Some(key));
        }

        #[test]
        fn a_flipped_bit_of_a_state_value_is_detected(value in prop::collection::vec(any::<u8>(), 0..40), bit in any::<prop::sample::Index>()) {
            let mut bytes = state_value(b"key", &value);
            prop_assert_eq!(parse_state_value(b"key", &bytes), Some(Bytes::from(value)));
            prop_assert_eq!(parse_state_value(b"another", &bytes), None);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(parse_state_value(b"key", &bytes), None);
        }

        #[test]
        fn arbitrary_hint_values_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..90)) {
            let _ = parse_hint_value(sample_hint().0, &bytes);
        }
    }

    #[test]
    fn every_flipped_bit_of_a_hint_is_detected() {
        let (at, hint) = sample_hint();
        let bytes = hint_value(at, &hint);
        assert_eq!(parse_hint_value(at, &bytes), Ok(hint.clone()));
        assert_eq!(hint_weight(bytes.len()), hint.weight());
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                parse_hint_value(at, &bad),
                Err(StoreError::Corrupt),
                "bit {bit}"
            );
        }
        assert_eq!(
            parse_hint_value(HintKey { seq: 100, ..at }, &bytes),
            Err(StoreError::Corrupt)
        );
    }

    #[test]
    fn the_end_of_the_last_bucket_has_no_successor() {
        assert_eq!(record_key_after(BucketId(u32::MAX), Token(u64::MAX)), None);
        assert_eq!(
            record_key_after(BucketId(1), Token(u64::MAX)),
            Some(record_key(BucketId(2), Token(0), &[]))
        );
    }
}

//! Writes that are accepted now and take effect later: the message that waits in a queue, the id by which
//! its author asks for it, and what can be said of it.
//!
//! Invariant: the version is minted when the write is accepted and travels with it, so that a message may
//! be delivered any number of times, in any order, to any node. Message and id carry a message
//! authentication code with a key of the cluster's own: whoever reaches the queue can lose writes or hand
//! them in again, but makes no version. Forms (big endian):
//!
//! ```text
//! message   format u8 = 1   bucket u32   w u8   length of the key u16   key   record   MAC 16
//! id        format u8 = 1   bucket u32   hlc u64   node u64   hash u64   key   MAC 16
//!           as URL-safe base64 without padding
//! ```
//!
//! `w` is 0 for the bucket's default, 1..=16 for a number, 253 for one, 254 for quorum, 255 for all.
//! Not here: how messages travel, and how a failure is kept.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut, Bytes};
use torc_ring::config::REPLICAS_MAX;
use torc_ring::{BucketId, NodeId, Quorum, Secret};

use crate::context::is_equal;
use crate::hlc::Hlc;
use crate::record::{HEADER_LEN, KEY_LEN_MAX, Kind, Record, RecordError, VALUE_LEN_MAX};
use crate::version::{Digest, Version};

const FORMAT: u8 = 1;
const MAC_LEN: usize = 16;
const MESSAGE_HEAD: usize = 8;
const ID_HEAD: usize = 29;
/// Greatest length of an id's text, in bytes.
pub const ID_TEXT_MAX: usize = (ID_HEAD + KEY_LEN_MAX + MAC_LEN).div_ceil(3) * 4;
/// Greatest length of a message, in bytes.
pub const MESSAGE_LEN_MAX: usize = MESSAGE_HEAD
    + KEY_LEN_MAX
    + HEADER_LEN
    + crate::record::CONTENT_TYPE_MAX
    + VALUE_LEN_MAX
    + MAC_LEN;
/// Separates these uses of the cluster's secret from all others, and from each other.
const MESSAGE_PURPOSE: &str = "torc 2026 queued write";
const ID_PURPOSE: &str = "torc 2026 id of a queued write";

const W_ONE: u8 = 253;
const W_QUORUM: u8 = 254;
const W_ALL: u8 = 255;

/// A write that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    /// Bucket.
    pub bucket: BucketId,
    /// 1..=1024 bytes.
    pub key: Bytes,
    /// A value or a tombstone under the version of its acceptance.
    pub record: Record,
    /// Replicas to wait for; the bucket's default otherwise.
    pub w: Option<Quorum>,
}

/// What an id says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteId {
    /// Bucket.
    pub bucket: BucketId,
    /// The key that is written.
    pub key: Bytes,
    /// The state that the write makes.
    pub digest: Digest,
}

impl WriteId {
    /// When the write was accepted, in microseconds since 1970.
    #[must_use]
    pub fn accepted_micros(&self) -> u64 {
        self.digest.version.hlc.micros()
    }
}

/// Why bytes are no message or id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueuedError {
    /// Too short, too long, or lengths inside contradict each other.
    #[error("it is malformed, or cut off")]
    Malformed,
    /// Made by another version of torc.
    #[error("it has format {format}, which this node does not know")]
    Unknown {
        /// First byte.
        format: u8,
    },
    /// Not made by this cluster.
    #[error("it was not made by this cluster")]
    Forged,
    /// The record inside is none.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Makes and checks messages and ids. Made once per config from its secret.
#[derive(Clone)]
pub struct QueueKey {
    message: [u8; 32],
    id: [u8; 32],
}

impl std::fmt::Debug for QueueKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QueueKey(..)")
    }
}

impl QueueKey {
    /// Derives the keys from the cluster's secret.
    #[must_use]
    pub fn new(secret: &Secret) -> Self {
        Self {
            message: blake3::derive_key(MESSAGE_PURPOSE, &secret.0),
            id: blake3::derive_key(ID_PURPOSE, &secret.0),
        }
    }

    /// The message of a write.
    #[must_use]
    pub fn encode(&self, write: &Queued) -> Vec<u8> {
        let len = MESSAGE_HEAD + write.key.len() + write.record.len() + MAC_LEN;
        let mut out = Vec::with_capacity(len);
        out.put_u8(FORMAT);
        out.put_u32(write.bucket.0);
        out.put_u8(match write.w {
            None => 0,
            Some(Quorum::Count(count)) => count,
            Some(Quorum::One) => W_ONE,
            Some(Quorum::Quorum) => W_QUORUM,
            Some(Quorum::All) => W_ALL,
        });
        out.put_u16(write.key.len() as u16);
        out.put_slice(&write.key);
        out.put_slice(write.record.as_bytes());
        let mac = mac(&self.message, &out);
        out.put_slice(&mac);
        out
    }

    /// The write in a message.
    ///
    /// # Errors
    /// When it was not made by [`Self::encode`] with this secret.
    pub fn decode(&self, message: &Bytes) -> Result<Queued, QueuedError> {
        let signed = checked(&self.message, message)?;
        let head = signed.get(..MESSAGE_HEAD).ok_or(QueuedError::Malformed)?;
        let key_end = MESSAGE_HEAD + usize::from(u16::from_be_bytes([head[6], head[7]]));
        if key_end > signed.len()
            || !(MESSAGE_HEAD + 1..=MESSAGE_HEAD + KEY_LEN_MAX).contains(&key_end)
        {
            return Err(QueuedError::Malformed);
        }
        let w = match head[5] {
            0 => None,
            W_ONE => Some(Quorum::One),
            W_QUORUM => Some(Quorum::Quorum),
            W_ALL => Some(Quorum::All),
            count if count <= REPLICAS_MAX => Some(Quorum::Count(count)),
            _ => return Err(QueuedError::Malformed),
        };
        let record = Record::parse(message.slice(key_end..signed.len()))?;
        if record.kind() == Kind::Siblings {
            return Err(QueuedError::Malformed);
        }
        Ok(Queued {
            bucket: BucketId(u32::from_be_bytes([head[1], head[2], head[3], head[4]])),
            key: message.slice(MESSAGE_HEAD..key_end),
            record,
            w,
        })
    }

    /// The id by which the author of a write asks for it.
    #[must_use]
    pub fn id(&self, write: &Queued) -> String {
        let digest = write.record.digest();
        let mut out = Vec::with_capacity(ID_HEAD + write.key.len() + MAC_LEN);
        out.put_u8(FORMAT);
        out.put_u32(write.bucket.0);
        out.put_u64(digest.version.hlc.0);
        out.put_u64(digest.version.node.0);
        out.put_u64(digest.hash);
        out.put_slice(&write.key);
        let mac = mac(&self.id, &out);
        out.put_slice(&mac);
        URL_SAFE_NO_PAD.encode(out)
    }

    /// What an id says.
    ///
    /// # Errors
    /// When it was not made by [`Self::id`] with this secret.
    pub fn parse_id(&self, text: &[u8]) -> Result<WriteId, QueuedError> {
        if text.len() > ID_TEXT_MAX {
            return Err(QueuedError::Malformed);
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| QueuedError::Malformed)?;
        let signed = checked(&self.id, &bytes)?;
        let (head, key) = signed
            .split_at_checked(ID_HEAD)
            .ok_or(QueuedError::Malformed)?;
        if !(1..=KEY_LEN_MAX).contains(&key.len()) {
            return Err(QueuedError::Malformed);
        }
        let version = Version {
            hlc: Hlc(word(head, 5)),
            node: NodeId(word(head, 13)),
        };
        Ok(WriteId {
            bucket: BucketId(u32::from_be_bytes([head[1], head[2], head[3], head[4]])),
            key: Bytes::copy_from_slice(key),
            digest: Digest {
                version,
                hash: word(head, 21),
            },
        })
    }
}

/// What can be said of a queued write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteState {
    /// It has not been stored yet.
    Pending,
    /// It was stored, or what is stored is newer, so that storing it would change nothing.
    Applied {
        /// A reader sees another write.
        superseded: bool,
    },
    /// It was given up. Handed in again from the dead letters, it can still be applied.
    Failed,
    /// It was accepted so long ago that nothing is known of it any more.
    Forgotten,
}

/// What a read of the key at a quorum, and the note of a failure if there is one, say of a write.
///
/// Nothing older than `lifetime_ms` is stored from a queue, nor is a tombstone or an expired value of that
/// age collected, so within that time a key without a newer state has certainly not seen the write.
#[must_use]
pub fn judge(
    id: &WriteId,
    (now_micros, lifetime_ms): (u64, u64),
    found: Option<Digest>,
    failed: bool,
) -> WriteState {
    if found == Some(id.digest) {
        return WriteState::Applied { superseded: false };
    }
    if failed {
        return WriteState::Failed;
    }
    if found > Some(id.digest) {
        return WriteState::Applied { superseded: true };
    }
    if is_too_old(id.accepted_micros(), (now_micros, lifetime_ms)) {
        WriteState::Forgotten
    } else {
        WriteState::Pending
    }
}

/// Whether a write that was accepted then may not be stored from a queue any more.
#[must_use]
pub fn is_too_old(accepted_micros: u64, (now_micros, lifetime_ms): (u64, u64)) -> bool {
    now_micros.saturating_sub(accepted_micros) > lifetime_ms.saturating_mul(1_000)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(word)
}

fn mac(key: &[u8; 32], signed: &[u8]) -> [u8; MAC_LEN] {
    let mut mac = [0; MAC_LEN];
    mac.copy_from_slice(&blake3::keyed_hash(key, signed).as_bytes()[..MAC_LEN]);
    mac
}

/// Everything before the MAC, when that is right.
fn checked<'a>(key: &[u8; 32], bytes: &'a [u8]) -> Result<&'a [u8], QueuedError> {
    let Some((signed, given)) = bytes.split_last_chunk::<MAC_LEN>() else {
        return Err(QueuedError::Malformed);
    };
    match signed.first() {
        Some(&FORMAT) if is_equal(&mac(key, signed), given) => Ok(signed),
        Some(&FORMAT) => Err(QueuedError::Forged),
        Some(&format) => Err(QueuedError::Unknown { format }),
        None => Err(QueuedError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::Parts;

    fn key(seed: u8) -> QueueKey {
        QueueKey::new(&Secret([seed; 32]))
    }

    fn version(hlc: u64) -> Version {
        Version {
            hlc: Hlc::from_micros(hlc),
            node: NodeId(6),
        }
    }

    fn write(key: &[u8], value: Option<&[u8]>, w: Option<Quorum>) -> Queued {
        let record = match value {
            None => Record::tombstone(version(5)),
            Some(value) => Record::value(Parts {
                version: version(5),
                expiry: Some(77),
                content_type: b"text/plain",
                value,
            }),
        };
        Queued {
            bucket: BucketId(3),
            key: Bytes::copy_from_slice(key),
            record,
            w,
        }
    }

    fn quorums() -> impl Strategy<Value = Option<Quorum>> {
        prop_oneof![
            Just(None),
            Just(Some(Quorum::One)),
            Just(Some(Quorum::Quorum)),
            Just(Some(Quorum::All)),
            (1..=REPLICAS_MAX).prop_map(|count| Some(Quorum::Count(count))),
        ]
    }

    proptest! {
        #[test]
        fn messages_and_ids_come_back(
            name in prop::collection::vec(any::<u8>(), 1..=KEY_LEN_MAX),
            value in prop::option::of(prop::collection::vec(any::<u8>(), 0..99)),
            w in quorums(),
        ) {
            let sent = write(&name, value.as_deref(), w);
            prop_assert_eq!(key(1).decode(&key(1).encode(&sent).into()), Ok(sent.clone()));
            let id = key(1).id(&sent);
            prop_assert!(id.len() <= ID_TEXT_MAX);
            let said = key(1).parse_id(id.as_bytes()).expect("made here");
            prop_assert_eq!((said.bucket, said.key, said.digest), (sent.bucket, sent.key, sent.record.digest()));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), text in ".{0,80}") {
            prop_assert!(key(1).decode(&bytes.into()).is_err());
            prop_assert!(key(1).parse_id(text.as_bytes()).is_err());
        }

        #[test]
        fn a_signed_body_of_any_form_never_panics(mut body in prop::collection::vec(any::<u8>(), 1..120)) {
            body[0] = FORMAT;
            let keys = key(1);
            let (for_message, for_id) = (mac(&keys.message, &body), mac(&keys.id, &body));
            let _ = keys.decode(&[&body[..], &for_message].concat().into());
            let _ = keys.parse_id(URL_SAFE_NO_PAD.encode([&body[..], &for_id].concat()).as_bytes());
        }
    }

    #[test]
    fn the_bytes_are_these() {
        let sent = write(b"k", None, Some(Quorum::Quorum));
        let id = "AQAAAAMAAAAAAABQAAAAAAAAAAAGSnEoUrAyKPprk3omxGDSl-UxZ_y4s1Antw";
        assert_eq!(key(7).id(&sent), id);
        let message = key(7).encode(&sent);
        assert_eq!(message[..9], *b"\x01\0\0\0\x03\xfe\0\x01k");
        assert_eq!(message[9..9 + sent.record.len()], **sent.record.as_bytes());
    }

    #[test]
    fn a_flipped_bit_or_another_clusters_secret_is_refused() {
        let sent = write(b"k", Some(b"v"), None);
        let message = key(1).encode(&sent);
        assert_eq!(
            key(2).decode(&message.clone().into()),
            Err(QueuedError::Forged)
        );
        assert_eq!(
            key(2).parse_id(key(1).id(&sent).as_bytes()),
            Err(QueuedError::Forged)
        );
        for bit in 0..message.len() * 8 {
            let mut bad = message.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(key(1).decode(&bad.into()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_write_is_pending_until_its_key_has_it_or_something_newer() {
        let id = WriteId {
            bucket: BucketId(1),
            key: Bytes::from_static(b"k"),
            digest: Digest {
                version: version(1_000_000),
                hash: 5,
            },
        };
        let at = |micros| {
            Some(Digest {
                version: version(micros),
                hash: 1,
            })
        };
        let soon = (2_000_000, 10_000);
        assert_eq!(judge(&id, soon, None, false), WriteState::Pending);
        assert_eq!(judge(&id, soon, at(999_999), false), WriteState::Pending);
        assert_eq!(
            judge(&id, soon, Some(id.digest), false),
            WriteState::Applied { superseded: false }
        );
        assert_eq!(
            judge(&id, soon, at(1_000_001), false),
            WriteState::Applied { superseded: true }
        );
        assert_eq!(judge(&id, soon, None, true), WriteState::Failed);
        assert_eq!(
            judge(&id, soon, at(1_000_001), true),
            WriteState::Failed,
            "what came later does not undo it"
        );
        assert_eq!(
            judge(&id, soon, Some(id.digest), true),
            WriteState::Applied { superseded: false },
            "handed in again"
        );
        let late = (11_000_001, 10_000);
        assert_eq!(judge(&id, late, None, false), WriteState::Forgotten);
        assert_eq!(
            judge(&id, late, Some(id.digest), false),
            WriteState::Applied { superseded: false }
        );
    }
}

//! Everything of the protocol that parses bytes from outside: frames, records, headers of clients.

use bytes::{Bytes, BytesMut};
use torc_protocol::agree::Acceptor;
use torc_protocol::context::{
    CONTEXT_DOTS_MAX, Context, ContextKey, etag, etag_matches, parse_etag,
};
use torc_protocol::hlc::Hlc;
use torc_protocol::record::{self, Kind, Record};
use torc_protocol::siblings::{Causal, Dot, Siblings};
use torc_protocol::wire::{self, WIRE_VERSION};
use torc_ring::{BucketId, NodeId, Secret};
use xxhash_rust::xxh3::Xxh3;

/// Frames from peers: whatever the bytes, decoding ends in a message or an error, and a message encodes to
/// the very bytes that it came from. So does a configuration.
pub fn wire_decode(data: &[u8]) {
    // The version byte is put in front: guessing it would teach nothing.
    let mut frame = BytesMut::with_capacity(1 + data.len());
    frame.extend_from_slice(&[WIRE_VERSION]);
    frame.extend_from_slice(data);
    let frame: Bytes = frame.freeze();
    if let Ok(config) = wire::decode_config(&frame) {
        let again = wire::encode_config(&config).expect("what was decoded is within the limit");
        assert_eq!(again, frame);
    }
    if let Ok(message) = wire::decode(&frame) {
        let mut again = BytesMut::new();
        wire::encode(&message, &mut again).expect("what was decoded is within the limit");
        assert_eq!(again, frame);
    }
    let _ = wire::decode(&frame.slice(1..));
}

/// Records from disk and wire, and stored votes: parsing never panics, and what parses can be looked at and
/// merged with itself.
///
/// A record carries a checksum that nobody guesses, so the right one is also put into the bytes.
pub fn record_parse(data: &[u8]) {
    if let Ok(acceptor) = Acceptor::decode(data) {
        let again = acceptor
            .encode()
            .expect("what was decoded is within the limit");
        assert_eq!(again, data);
    }
    let _ = record::digest_of(data);
    let _ = record::merge_picks_first(data, data);
    look(Bytes::copy_from_slice(data));
    look(with_checksum(data));
}

fn look(bytes: Bytes) {
    let Ok(record) = Record::parse(bytes) else {
        return;
    };
    let _ = (
        record.expiry(),
        record.content_type().len(),
        record.value_bytes().len(),
    );
    let visible = record.is_visible(1_000);
    if record.kind() == Kind::Siblings {
        let set = Siblings::read(&record).expect("a parsed set can be read");
        assert_eq!(set.visible(1_000).next().is_some(), visible);
        let again = set.to_record().expect("a set that was read can be written");
        assert_eq!(again, record);
    }
    assert_eq!(record.clone().merge(record.clone()), Ok(record));
}

/// The bytes with the hash in them that a record of this content has.
fn with_checksum(data: &[u8]) -> Bytes {
    let mut bytes = data.to_vec();
    if bytes.len() >= 26 {
        let mut hasher = Xxh3::with_seed(u64::from(bytes[1]));
        hasher.update(&bytes[2..18]);
        hasher.update(&bytes[26..]);
        bytes[18..26].copy_from_slice(&hasher.digest().to_be_bytes());
    }
    bytes.into()
}

/// The key whose contexts [`context_header`] reads.
pub fn context_key() -> ContextKey {
    ContextKey::new(&Secret([7; 32]))
}

/// Headers of clients: a causal context, which nobody makes but the store, and entity tags.
pub fn context_header(data: &[u8]) {
    let key = context_key();
    if let Ok(context) = key.decode(BucketId(1), b"key", data) {
        let again = key
            .encode(BucketId(1), b"key", &context)
            .expect("what was decoded fits");
        assert_eq!(again.as_bytes(), data);
    }
    // What a client could only get from a node: a sound context, damaged or not.
    let mut seen = Causal::new();
    for chunk in data.chunks_exact(17).take(CONTEXT_DOTS_MAX) {
        let word = |at: usize| {
            (chunk[at..at + 8].iter()).fold(0, |word, byte| word << 8 | u64::from(*byte))
        };
        seen.insert(Dot {
            node: NodeId(word(0)),
            epoch: u64::from(chunk[16]),
            hlc: Hlc(word(8)),
        });
    }
    let context = Context::Dots(seen);
    let mut sound = key
        .encode(BucketId(1), b"key", &context)
        .expect("it fits")
        .into_bytes();
    assert_eq!(key.decode(BucketId(1), b"key", &sound), Ok(context));
    if let Some((&bit, at)) = data.split_first() {
        let at = at.first().map_or(0, |at| usize::from(*at)) % sound.len();
        sound[at] ^= 1 << (bit % 8);
        assert!(key.decode(BucketId(1), b"key", &sound).is_err());
    }
    let text = String::from_utf8_lossy(data);
    if let Some(digest) = parse_etag(&text) {
        assert_eq!(parse_etag(&etag(digest)), Some(digest));
        assert!(etag_matches(&etag(digest), digest));
    }
}

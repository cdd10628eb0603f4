//! Headers of clients: a causal context and entity tags.
#![no_main]

use libfuzzer_sys::fuzz_target;
use torc_protocol::context::{
    CONTEXT_DOTS_MAX, Context, ContextKey, etag, etag_matches, parse_etag,
};
use torc_protocol::hlc::Hlc;
use torc_protocol::siblings::{Causal, Dot};
use torc_ring::{BucketId, NodeId, Secret};

fuzz_target!(|data: &[u8]| {
    let key = ContextKey::new(&Secret([7; 32]));
    if let Ok(context) = key.decode(BucketId(1), b"key", data) {
        let again = key.encode(BucketId(1), b"key", &context).expect("what was decoded fits");
        assert_eq!(again.as_bytes(), data);
    }
    // What a client could only get from a node: a sound context, damaged or not.
    let mut seen = Causal::new();
    for chunk in data.chunks_exact(17).take(CONTEXT_DOTS_MAX) {
        let word = |at: usize| chunk[at..at + 8].iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        seen.insert(Dot { node: NodeId(word(0)), epoch: u64::from(chunk[16]), hlc: Hlc(word(8)) });
    }
    let context = Context::Dots(seen);
    let mut sound = key.encode(BucketId(1), b"key", &context).expect("it fits").into_bytes();
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
});

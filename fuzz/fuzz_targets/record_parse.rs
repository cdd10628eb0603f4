//! Records from disk and wire, and stored votes: parsing never panics, and what parses can be looked at and
//! merged with itself.
//!
//! A record carries a checksum that no fuzzer guesses, so the target also puts the right one into the bytes
//! and goes on from there.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use torc_protocol::agree::Acceptor;
use torc_protocol::record::{self, Kind, Record};
use torc_protocol::siblings::Siblings;
use xxhash_rust::xxh3::Xxh3;

fuzz_target!(|data: &[u8]| {
    if let Ok(acceptor) = Acceptor::decode(data) {
        assert_eq!(acceptor.encode().expect("what was decoded is within the limit"), data);
    }
    let _ = record::digest_of(data);
    let _ = record::merge_picks_first(data, data);
    look(Bytes::copy_from_slice(data));
    look(with_checksum(data));
});

fn look(bytes: Bytes) {
    let Ok(record) = Record::parse(bytes) else {
        return;
    };
    let _ = (record.expiry(), record.content_type().len(), record.value_bytes().len());
    let visible = record.is_visible(1_000);
    if record.kind() == Kind::Siblings {
        let set = Siblings::read(&record).expect("a parsed set can be read");
        assert_eq!(set.visible(1_000).next().is_some(), visible);
        assert_eq!(set.to_record().expect("a set that was read can be written"), record);
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

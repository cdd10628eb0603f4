//! The short form of the fuzz targets of this crate (`make fuzz` runs the long one): the same checks, inputs
//! made from valid ones.
// `pub` is for the fuzz targets, which share these files.
#![allow(missing_docs, unreachable_pub)]

#[path = "../../fuzz/src/edits.rs"]
mod edits;
#[path = "../../fuzz/src/protocol.rs"]
mod targets;

use bytes::Bytes;
use torc_protocol::context::{Context, etag};
use torc_protocol::hlc::Hlc;
use torc_protocol::record::{Parts, Record};
use torc_protocol::siblings::{Causal, Content, Dot, Sibling, Siblings};
use torc_protocol::version::Version;
use torc_ring::{BucketId, NodeId};

fn version(hlc: u64) -> Version {
    Version {
        hlc: Hlc(hlc),
        node: NodeId(2),
    }
}

fn dot(hlc: u64) -> Dot {
    Dot {
        node: NodeId(2),
        epoch: 3,
        hlc: Hlc(hlc),
    }
}

/// The golden frames without their version byte, which the target puts in front.
fn frames() -> Vec<Vec<u8>> {
    let digits = include_str!("wire.golden").lines().filter_map(|line| {
        let (_, digits) = line.rsplit_once(": ")?;
        digits.get(2..)
    });
    digits
        .map(|digits| {
            let pairs = digits.as_bytes().chunks_exact(2);
            let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
            pairs
                .map(|pair| byte(pair).expect("hexadecimal digits"))
                .collect()
        })
        .collect()
}

#[test]
fn any_frame_is_a_message_or_refused() {
    let seeds = frames();
    assert!(seeds.len() >= 40, "{} golden frames", seeds.len());
    edits::feed(&seeds, targets::wire_decode);
}

fn records() -> Vec<Record> {
    let value = |expiry| {
        Record::value(Parts {
            version: version(0x0102),
            expiry,
            content_type: b"text/plain",
            value: b"a value",
        })
    };
    let mut set = Siblings::default();
    for hlc in [5, 9, 12] {
        let content = Content {
            content_type: Bytes::from_static(b"t"),
            value: Bytes::from_static(b"value"),
        };
        let sibling = Sibling {
            write: u128::from(hlc),
            expiry: (hlc == 9).then_some(77),
            content: (hlc != 12).then_some(content),
        };
        set.write(&Causal::new(), dot(hlc), sibling);
    }
    let set = set.to_record().expect("a small set");
    vec![
        value(None),
        value(Some(77)),
        Record::tombstone(version(8)),
        set,
    ]
}

#[test]
fn any_record_is_sound_or_refused() {
    let seeds: Vec<_> = records()
        .iter()
        .map(|record| record.as_bytes().to_vec())
        .collect();
    edits::feed(&seeds, targets::record_parse);
}

#[test]
fn any_header_is_a_context_or_tag_of_this_store_or_refused() {
    let key = targets::context_key();
    let mut seen = Causal::new();
    for hlc in [5, 9] {
        seen.insert(dot(hlc));
    }
    let contexts = [Context::Version(version(7)), Context::Dots(seen)];
    let encoded = contexts
        .iter()
        .map(|context| key.encode(BucketId(1), b"key", context).expect("two dots"));
    let mut seeds: Vec<_> = encoded.map(String::into_bytes).collect();
    let tags = records();
    seeds.extend(tags.iter().map(|record| etag(record.digest()).into_bytes()));
    seeds.push(b"W/\"1-2-3\"".to_vec());
    edits::feed(&seeds, targets::context_header);
}

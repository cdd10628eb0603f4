//! Frames from peers: whatever the bytes, decoding ends in a message or an error, and a message encodes to
//! the very bytes that it came from.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use torc_protocol::wire::{self, WIRE_VERSION};

fuzz_target!(|data: &[u8]| {
    if let Ok(config) = wire::decode_config(data) {
        let again = wire::encode_config(&config).expect("what was decoded is within the limit");
        assert_eq!(again, data);
    }
    // The version byte is put in front: guessing it would teach nothing.
    let mut frame = BytesMut::with_capacity(1 + data.len());
    frame.extend_from_slice(&[WIRE_VERSION]);
    frame.extend_from_slice(data);
    let frame: Bytes = frame.freeze();
    if let Ok(message) = wire::decode(&frame) {
        let mut again = BytesMut::new();
        wire::encode(&message, &mut again).expect("what was decoded is within the limit");
        assert_eq!(again, frame);
    }
});

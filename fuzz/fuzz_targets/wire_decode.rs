//! See `torc_fuzz::protocol::wire_decode`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| torc_fuzz::protocol::wire_decode(data));

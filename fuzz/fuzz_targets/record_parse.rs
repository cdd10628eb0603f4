//! See `torc_fuzz::protocol::record_parse`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| torc_fuzz::protocol::record_parse(data));

//! See `torc_fuzz::protocol::context_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| torc_fuzz::protocol::context_header(data));

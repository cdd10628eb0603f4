//! See `torc_fuzz::node::key_path`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| torc_fuzz::node::key_path(data));

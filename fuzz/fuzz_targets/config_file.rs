//! See `torc_fuzz::node::config_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| torc_fuzz::node::config_file(data));

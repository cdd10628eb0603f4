//! See `torc_fuzz::import::import_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| torc_fuzz::import::import_file(data));

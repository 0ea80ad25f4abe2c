//! See `kvstore::fuzzing::data_block`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kvstore::fuzzing::data_block(data));

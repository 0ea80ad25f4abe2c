//! See `kvstore::fuzzing::index_block`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kvstore::fuzzing::index_block(data));

//! See `kvstore::fuzzing::write_batch`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kvstore::fuzzing::write_batch(data));

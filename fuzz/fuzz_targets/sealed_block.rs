//! See `kvstore::fuzzing::sealed_block`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kvstore::fuzzing::sealed_block(data));

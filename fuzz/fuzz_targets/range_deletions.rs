//! See `kvstore::fuzzing::range_deletions`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kvstore::fuzzing::range_deletions(data));

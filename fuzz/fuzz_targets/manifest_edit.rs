//! See `kvstore::fuzzing::manifest_edit`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kvstore::fuzzing::manifest_edit(data));

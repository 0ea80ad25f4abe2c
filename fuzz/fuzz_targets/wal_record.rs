//! See `kvstore::fuzzing::wal_record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kvstore::fuzzing::wal_record(data));

//! See `kvstore::fuzzing::table_footer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kvstore::fuzzing::table_footer(data));

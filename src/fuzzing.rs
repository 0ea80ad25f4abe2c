//! One function for each decoder of bytes that come from a disk: for fuzzers (`fuzz/`), and for the test here, which runs
//! their seeds. Built only for those.
//!
//! Each takes any bytes, and holds the decoder to three things: it does not panic, it reserves no memory without bound, and
//! what it accepts can be walked, searched and written again, and reads back the same. Random bytes do not pass a
//! checksum. So where there is one, the bytes are tried as they are, and then once more with every checksum put right.

pub use crate::storage::lsm::fuzzing::{
    catalogue, checkpoint, data_block, filter, index_block, manifest, manifest_edit, properties,
    range_deletions, sealed_block, table, table_footer, write_batch,
};
pub use crate::wal::fuzzing::{wal_record, wal_segment};

/// A function of this module.
pub type Target = fn(&[u8]);

/// All of them, by name: that of the fuzz target and of the directory of its seeds.
pub const TARGETS: [(&str, Target); 15] = [
    ("catalogue", catalogue),
    ("checkpoint", checkpoint),
    ("data_block", data_block),
    ("filter", filter),
    ("index_block", index_block),
    ("manifest", manifest),
    ("manifest_edit", manifest_edit),
    ("properties", properties),
    ("range_deletions", range_deletions),
    ("sealed_block", sealed_block),
    ("table", table),
    ("table_footer", table_footer),
    ("wal_record", wal_record),
    ("wal_segment", wal_segment),
    ("write_batch", write_batch),
];

#[cfg(test)]
mod tests;

//! The decoders of the engine, for fuzzers: see [`crate::fuzzing`]. Here those of the environment; tables and manifests
//! have their own.

use super::catalogue::Catalogue;
use super::manifest::encode_edit;
pub use super::manifest::fuzzing::{manifest, manifest_edit};
pub use super::table::fuzzing::{
    data_block, filter, index_block, properties, range_deletions, sealed_block, table, table_footer,
};
use super::{checkpoint as checkpoints, recovery};
use crate::storage::{Operation, WriteBatch};

/// The file `catalogue`.
pub fn catalogue(data: &[u8]) {
    for bytes in [data.to_vec(), with_crc(data)] {
        if let Ok(catalogue) = Catalogue::decode(&bytes) {
            assert_eq!(Catalogue::decode(&catalogue.encode()), Ok(catalogue));
        }
    }
}

/// The file `checkpoint`.
pub fn checkpoint(data: &[u8]) {
    for bytes in [data.to_vec(), with_crc(data)] {
        if let Ok(tree) = checkpoints::decode(&bytes) {
            assert_eq!(checkpoints::decode(&checkpoints::encode(&tree)), Ok(tree.clone()));
            let mut body = Vec::new();
            encode_edit(&tree, &mut body);
            manifest_edit(&body);
        }
    }
}

/// A batch, alone and as the log has it: after the seqno of its first operation.
pub fn write_batch(data: &[u8]) {
    if let Some((_, batch)) = recovery::decode(data) {
        judge_batch(&batch);
    }
    let Some(batch) = WriteBatch::decode(data) else { return };
    assert_eq!(batch.encoded(), data, "a batch is its encoding");
    judge_batch(&batch);
}

fn judge_batch(batch: &WriteBatch) {
    let mut again = WriteBatch::new();
    again.advance_clock(batch.clock());
    for operation in batch.operations() {
        match operation {
            Operation::Put { key, value, expires_at } => again.put(&[key], &[value], expires_at),
            Operation::Delete { key } => again.delete(&[key]),
            Operation::DeleteRange { start, end } => again.delete_range(start, end),
        }
    }
    assert_eq!(again.len(), batch.len());
    assert!(again.operations().eq(batch.operations()), "operations are written as they were read");
    let decoded = WriteBatch::decode(again.encoded());
    assert_eq!(decoded, Some(again), "and read as they were written");
}

/// The bytes with their last four replaced by the checksum of the others.
fn with_crc(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    if let Some((body, checksum)) = bytes.split_last_chunk_mut() {
        *checksum = crc32c::crc32c(body).to_le_bytes();
    }
    bytes
}

//! The limits of a batch, checked by every engine before it changes anything, and what it may use of a disk that is nearly
//! full.

use super::{
    BATCH_BYTES_MAX, Error, KEY_BYTES_MAX, Operation, RESERVED_PREFIX, Result, VALUE_BYTES_MAX,
    WriteBatch,
};

/// [`Error::Invalid`] when `batch` is over a limit of the contract; says which one and by how much.
pub(super) fn check_batch(batch: &WriteBatch) -> Result<()> {
    check("batch", batch.size_bytes(), BATCH_BYTES_MAX)?;
    for operation in batch.operations() {
        match operation {
            Operation::Put { key, value, .. } => {
                check("key", key.len(), KEY_BYTES_MAX)?;
                check("value", value.len(), VALUE_BYTES_MAX)?;
            }
            Operation::Delete { key } => check("key", key.len(), KEY_BYTES_MAX)?,
            Operation::DeleteRange { start, end } => {
                // The first key beyond the longest key is one byte longer.
                check("range start", start.len(), KEY_BYTES_MAX + 1)?;
                check("range end", end.len(), KEY_BYTES_MAX + 1)?;
            }
        }
    }
    Ok(())
}

/// What must stay free on the disk after `batch`, where `reserve_bytes` shall. Deleting may use three quarters of the reserve,
/// because it is what helps; so may the caller's bookkeeping that goes with it.
pub(super) fn reserve_for(batch: &WriteBatch, reserve_bytes: u64) -> u64 {
    let grows = |operation| match operation {
        Operation::Put { key, .. } => key.first() != Some(&RESERVED_PREFIX),
        Operation::Delete { .. } | Operation::DeleteRange { .. } => false,
    };
    if batch.operations().any(grows) { reserve_bytes } else { reserve_bytes / 4 }
}

fn check(what: &str, bytes: usize, bytes_max: usize) -> Result<()> {
    if bytes <= bytes_max {
        return Ok(());
    }
    Err(Error::Invalid(format!("{what} of {bytes} bytes: at most {bytes_max} are allowed")))
}

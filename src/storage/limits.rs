//! The limits of a batch, checked by every engine before it changes anything.

use super::{
    BATCH_BYTES_MAX, Error, KEY_BYTES_MAX, Operation, Result, VALUE_BYTES_MAX, WriteBatch,
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

fn check(what: &str, bytes: usize, bytes_max: usize) -> Result<()> {
    if bytes <= bytes_max {
        return Ok(());
    }
    Err(Error::Invalid(format!("{what} of {bytes} bytes: at most {bytes_max} are allowed")))
}

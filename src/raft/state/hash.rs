//! A number for all that an engine holds, by which replicas are compared: simulations and tests do, and who doubts a disk may.

use xxhash_rust::xxh3::Xxh3;

use crate::error::Result;
use crate::storage::{Direction, KeyRange, Reader, StorageEngine};
use crate::util::time::Timestamp;

/// Hashes clock and rows of one moment, bookkeeping included: replicas that have applied the same entries have the same. Blocks; reads everything.
///
/// # Errors
///
/// What the engine's reads fail with.
pub fn state_hash(engine: &dyn StorageEngine) -> Result<u64> {
    view_hash(&*engine.view()?)
}

/// As [`state_hash`], of what `view` sees, which stands still.
pub(super) fn view_hash(view: &dyn Reader) -> Result<u64> {
    let mut hash = Xxh3::new();
    hash.update(&view.clock().as_millis().to_le_bytes());
    let mut rows = view.scan(KeyRange::ALL, Direction::Forward)?;
    while let Some(row) = rows.next()? {
        for part in [row.key, row.value] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let expires_at = row.expires_at.map_or(u64::MAX, Timestamp::as_millis);
        hash.update(&expires_at.to_le_bytes());
    }
    Ok(hash.digest())
}

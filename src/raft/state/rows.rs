//! The rows by which an engine knows how far the group's log is applied to it. They change in one batch with what the entries change.
//!
//! | row | key | value |
//! |---|---|---|
//! | applied | `00 61` | log id of the last entry that was applied |
//! | membership | `00 6d` | stored membership: that of the last such entry that was applied |
//!
//! The values are as in `raft/encoding.rs`. The other rows under `00`: `machine/record.rs`.

use super::super::encoding::{
    put_log_id, put_stored_membership, read_log_id, read_stored_membership,
};
use super::super::types::{LogId, SnapshotMeta, StoredMembership};
use crate::error::{Error, Reason, Result};
use crate::storage::{RESERVED_PREFIX, Reader, WriteBatch};
use crate::util::coding::Cursor;

const APPLIED: [u8; 2] = [RESERVED_PREFIX, b'a'];
const MEMBERSHIP: [u8; 2] = [RESERVED_PREFIX, b'm'];

/// Adds to `batch` that everything up to `log_id` is applied with it.
pub(super) fn put_applied(batch: &mut WriteBatch, log_id: &LogId) {
    let mut row = Vec::new();
    put_log_id(&mut row, log_id);
    batch.put(&[&APPLIED], &[&row], None);
}

/// Adds to `batch` that these are the group's members.
pub(super) fn put_members(batch: &mut WriteBatch, membership: &StoredMembership) {
    let mut row = Vec::new();
    put_stored_membership(&mut row, membership);
    batch.put(&[&MEMBERSHIP], &[&row], None);
}

/// What `engine` holds.
///
/// # Errors
///
/// What its reads fail with; CORRUPTION when a row is none.
pub(super) fn read(engine: &dyn Reader) -> Result<SnapshotMeta> {
    let last_log_id = read_row(engine, &APPLIED, "applied log id", read_log_id)?;
    let last_membership = read_row(engine, &MEMBERSHIP, "membership", read_stored_membership)?;
    Ok(SnapshotMeta { last_log_id, last_membership: last_membership.unwrap_or_default() })
}

fn read_row<T>(
    engine: &dyn Reader,
    key: &[u8],
    what: &str,
    read: impl Fn(&mut Cursor<'_>) -> Option<T>,
) -> Result<Option<T>> {
    let mut found = Ok(None);
    engine.get_with(key, &mut |entry| {
        let mut cursor = Cursor::new(entry.value);
        let value = read(&mut cursor).filter(|_| cursor.is_empty());
        found = value.map(Some).ok_or_else(|| {
            Error::new(Reason::Corruption, format!("the row of the {what} is malformed"))
        });
    })?;
    found
}

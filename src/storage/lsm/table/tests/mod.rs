//! Tests of whole tables, on the simulated file system.

#![expect(clippy::cast_possible_truncation, reason = "tables of tests are small")]

mod allocation;
mod damage;
mod life;
mod model;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Access, Table, TableBuilder, TableMetadata, TableUid};
use crate::storage::lsm::cache::BlockCache;
use crate::storage::lsm::key::{InternalEntry, KeyHash, Kind};
use crate::storage::lsm::options::TableOptions;
use crate::storage::{Error, KeyRange, Result, Seqno};
use crate::util::fs::sim::SimFileSystem;
use crate::util::time::Timestamp;

/// An entry that owns its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    key: Vec<u8>,
    seqno: u64,
    /// `None`: a deletion.
    value: Option<Vec<u8>>,
    expires_at: Option<u64>,
}

impl Row {
    fn entry(&self) -> InternalEntry<'_> {
        match &self.value {
            None => InternalEntry::delete(&self.key, Seqno(self.seqno)),
            Some(value) => {
                let expires_at = self.expires_at.map(Timestamp::from_millis);
                InternalEntry::put(&self.key, Seqno(self.seqno), value, expires_at)
            }
        }
    }

    fn of(entry: &InternalEntry<'_>) -> Self {
        Self {
            key: entry.key.to_vec(),
            seqno: entry.seqno.0,
            value: (entry.kind != Kind::Delete).then(|| entry.value.to_vec()),
            expires_at: entry.expires_at.map(Timestamp::as_millis),
        }
    }
}

fn path() -> PathBuf {
    PathBuf::from("/000001.sst")
}

fn build(
    fs: &SimFileSystem,
    path: &Path,
    uid: u64,
    rows: &[Row],
    range_deletions: &[(&[u8], &[u8], u64)],
    options: &TableOptions,
) -> Result<TableMetadata> {
    let mut builder = TableBuilder::create(fs, path, TableUid(uid), options.clone())?;
    for row in rows {
        builder.add(&row.entry(), KeyHash::of(&row.key))?;
    }
    for (start, end, seqno) in range_deletions {
        builder.add_range_deletion(start, end, Seqno(*seqno))?;
    }
    builder.finish()
}

fn get(table: &Table, key: &[u8], at: u64) -> Result<Option<Row>> {
    let mut row = None;
    let found = table.get(key, KeyHash::of(key), Seqno(at), |entry| row = Some(Row::of(&entry)))?;
    assert_eq!(found, row.is_some());
    Ok(row)
}

/// All entries, forwards.
fn scan(table: &Table, access: Access) -> Result<Vec<Row>> {
    let mut cursor = Table::cursor(table, access, KeyRange::ALL);
    let mut rows = Vec::new();
    cursor.seek_to_first()?;
    while let Some(entry) = cursor.entry() {
        rows.push(Row::of(&entry));
        cursor.next()?;
    }
    Ok(rows)
}

/// All entries, backwards.
fn scan_back(table: &Table, access: Access) -> Result<Vec<Row>> {
    let mut cursor = Table::cursor(table, access, KeyRange::ALL);
    let mut rows = Vec::new();
    cursor.seek_to_last()?;
    while let Some(entry) = cursor.entry() {
        rows.push(Row::of(&entry));
        cursor.prev()?;
    }
    Ok(rows)
}

/// A table of some hundred bytes that has a bit of everything.
fn small_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for key in 0..12u64 {
        for version in (0..=key % 4).rev() {
            let seqno = 10 + version * 20 + key;
            rows.push(Row {
                key: format!("key{key:02}").into_bytes(),
                seqno,
                value: (seqno % 5 > 0).then(|| format!("value {seqno}").into_bytes()),
                expires_at: (seqno % 5 > 0 && seqno % 3 == 0).then_some(1000 + seqno),
            });
        }
    }
    rows
}

fn open(fs: &SimFileSystem, cache: &Arc<BlockCache>) -> Result<Table> {
    Table::open(fs, &path(), cache, None)
}

fn is_corruption(error: &Error, size: u64) -> bool {
    matches!(error, Error::Corruption { file, offset, .. } if *file == path() && *offset <= size)
}

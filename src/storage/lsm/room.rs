//! Room on the disk: writes are refused while there is still some left, so that flushes, compactions and the log, which
//! free space, do not meet the end of it.
//!
//! The file system is not asked before each write: what it said last is a **credit**, a part of the room above the reserve,
//! which writes use up. Near the reserve there is none, and each write asks.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::storage::limits::reserve_for;
use crate::storage::{Error, Result, WriteBatch};
use crate::util::fs::FileSystem;

/// What a batch takes for each of its bytes until it is in a table and the log is cut.
const DISK_BYTES_PER_BYTE: u64 = 2;

/// The credit is one part in this many of the room, because others use the disk as well.
const CREDIT_PARTS: u64 = 8;

/// Largest credit.
const CREDIT_BYTES_MAX: u64 = 64 << 20;

/// What each write costs at least, so that the file system is asked every thousand small ones.
const COST_BYTES_MIN: u64 = 64 << 10;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Room {
    reserve_bytes: u64,
    credit_bytes: AtomicU64,
}

impl Room {
    /// That keeps `reserve_bytes` free.
    pub(super) const fn new(reserve_bytes: u64) -> Self {
        Self { reserve_bytes, credit_bytes: AtomicU64::new(0) }
    }

    /// [`Error::DiskFull`] when there is no room for `batch`. Whoever only deletes may use a part of the reserve.
    #[inline]
    pub(super) fn check(
        &self,
        fs: &dyn FileSystem,
        directory: &Path,
        batch: &WriteBatch,
    ) -> Result<()> {
        let cost = (batch.size_bytes() as u64 * DISK_BYTES_PER_BYTE).max(COST_BYTES_MIN);
        let spend = |credit: u64| credit.checked_sub(cost);
        let credit = &self.credit_bytes;
        if credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok() {
            return Ok(());
        }
        self.ask(fs, directory, cost, reserve_for(batch, self.reserve_bytes))
    }

    /// As [`Self::check`] for something new that is not a batch.
    pub(super) fn check_any(&self, fs: &dyn FileSystem, directory: &Path) -> Result<()> {
        self.ask(fs, directory, 0, self.reserve_bytes)
    }

    #[cold]
    fn ask(&self, fs: &dyn FileSystem, directory: &Path, cost: u64, reserve: u64) -> Result<()> {
        let failed = |error| Error::io("read the room of", directory, error);
        let available = fs.space(directory).map_err(failed)?.available;
        let room = available.saturating_sub(self.reserve_bytes.saturating_add(cost));
        let credit = (room / CREDIT_PARTS).min(CREDIT_BYTES_MAX);
        self.credit_bytes.store(credit, Ordering::Relaxed);
        if available >= reserve.saturating_add(cost) {
            return Ok(());
        }
        Err(Error::DiskFull { path: directory.to_owned() })
    }
}

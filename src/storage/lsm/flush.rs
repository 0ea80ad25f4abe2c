//! Flushing: sealed memtables become tables of level 0, in order, one at a time.
//!
//! 1. The table is written and synced.
//! 2. The edit is made durable: the table, the last write and the clock that are in it, and up to where the engine needs
//!    nothing of the log any more. A crash before leaves an orphan, which the next opening removes.
//! 3. The tree is exchanged: readers find in the table what they found in the memtable.
//! 4. The log is told.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::engine::Engine;
use super::key::KeyHash;
use super::memtable::{Memtable, MemtableCursor, Moment};
use super::table::{TableBuilder, TableMetadata, TableUid};
use super::tree::Sealed;
use super::version::{AddedTable, Flushed, VersionEdit};
use crate::storage::{KeyRange, Result};

impl Engine {
    /// Makes everything written so far durable in tables.
    pub(super) fn flush(&self) -> Result<()> {
        self.check_alive()?;
        self.seal_active();
        let flushed = self.flush_sealed();
        // Whatever failed, somebody knows it: this caller.
        flushed.inspect(|()| _ = self.directory.remove_garbage())
    }

    /// As a job in the background.
    pub(super) fn flush_in_background(&self) {
        if self.wants_flush.swap(false, Ordering::AcqRel) {
            self.seal_active();
        }
        let outcome = if self.is_alive() { self.flush_sealed() } else { Ok(()) };
        self.note_outcome(outcome);
    }

    /// Its memtables shall be flushed soon, full or not.
    pub(super) fn want_flush(&self) {
        self.wants_flush.store(true, Ordering::Release);
        self.shared.queue.flush_due(self.id());
    }

    /// Seals the active memtable if there is anything in it, were it only a clock.
    pub(super) fn seal_active(&self) {
        let mut writer = self.writer.lock();
        let tree = self.tree_owned();
        let before = match tree.sealed.first() {
            Some(sealed) => sealed.memtable.moment().seqno,
            None => tree.version.flushed().seqno,
        };
        if tree.seqno() > before {
            let log_end = self.log_end();
            self.seal(&mut writer, log_end);
        }
    }

    /// Flushes what is sealed, the oldest first.
    pub(super) fn flush_sealed(&self) -> Result<()> {
        let _flushing = self.flushing.lock();
        loop {
            let tree = self.tree_owned();
            let Some(oldest) = tree.sealed.last() else { return Ok(()) };
            self.flush_one(oldest, &tree.version.flushed()).map_err(|error| self.judge(error))?;
        }
    }

    fn flush_one(&self, sealed: &Arc<Sealed>, before: &Flushed) -> Result<()> {
        let Moment { seqno, clock } = sealed.memtable.moment();
        let log = sealed.log_end.max(before.log);
        let mut edit =
            VersionEdit { flushed: Some(Flushed { seqno, clock, log }), ..VersionEdit::default() };
        if sealed.memtable.is_empty() {
            self.commit_edit(&edit)?;
        } else {
            let (number, uid) = self.directory.allocate();
            let path = self.directory.table_path(number);
            let written = self.write_table(&path, uid, &sealed.memtable);
            let committed = written.and_then(|metadata| {
                self.figures.count_flush(metadata.size_bytes);
                edit.added.push(AddedTable { level: 0, number, metadata });
                self.commit_edit(&edit)
            });
            if let Err(error) = committed {
                // After a failed commit the manifest may name it: then it stays, and the next opening decides.
                if self.manifest_is_sound() {
                    let _ = self.shared.fs.remove(&path);
                }
                return Err(error);
            }
        }
        self.note_durable(seqno);
        if let Some(owner_log) = self.shared.log() {
            owner_log.release(self.owner(), log);
        }
        if self.shared.options.compaction {
            self.shared.queue.compaction_due(self.id());
        }
        Ok(())
    }

    /// The newest version of each key, unless a range deletion of the same memtable hides it, and the range deletions.
    /// Views have the memtable itself.
    fn write_table(
        &self,
        path: &std::path::Path,
        uid: TableUid,
        memtable: &Memtable,
    ) -> Result<TableMetadata> {
        let options = self.shared.options.table_options(0);
        let mut builder = TableBuilder::create(&*self.shared.fs, path, uid, options)?;
        let mut cursor = MemtableCursor::new(memtable, KeyRange::ALL);
        let mut last: Option<Vec<u8>> = None;
        let newest = memtable.moment().seqno;
        let mut there = cursor.seek_to_first();
        while there && let Some(entry) = cursor.entry() {
            if last.as_deref() != Some(entry.key) {
                let key = last.get_or_insert_default();
                key.clear();
                key.extend_from_slice(entry.key);
                let covered = memtable.newest_covering(entry.key, newest);
                if covered.is_none_or(|deletion| deletion < entry.seqno) {
                    builder.add(&entry, KeyHash::of(entry.key))?;
                }
            }
            there = cursor.next();
        }
        for run in memtable.range_deletions().iter() {
            for (start, end, seqno) in &run.deletions {
                builder.add_range_deletion(start, end, *seqno)?;
            }
        }
        builder.finish()
    }

    /// Keeps what failed for those who wait, or tells them that it goes on.
    pub(super) fn note_outcome(&self, outcome: Result<()>) {
        if outcome.is_err() {
            self.figures.count_failure();
        }
        *self.trouble.lock() = outcome.err();
        self.note_progress();
    }
}

//! What a merge writes: tables, cut where it costs least.
//!
//! A table ends before a key, when
//!
//! * it has the size aimed at, or would pass the largest one with the next entry;
//! * the next key lies behind a border of the level below, the grandparents, and the table has half the size aimed at: so it
//!   will have to be merged with whole tables of that level later, not with parts;
//! * or it overlaps so much of that level that merging it would cost too much.

use std::iter::Peekable;
use std::sync::Arc;
use std::vec;

use super::Job;
use crate::storage::Result;
use crate::storage::lsm::files::{FileNumber, TableFile};
use crate::storage::lsm::key::{InternalEntry, KeyHash};
use crate::storage::lsm::level::Span;
use crate::storage::lsm::table::{Fragment, TableBuilder};
use crate::storage::lsm::version::AddedTable;

/// A table that overlaps so many tables' worth of the level below is large enough.
const GRANDPARENT_TABLES_MAX: u64 = 10;

/// See the [module](self).
pub(super) struct Outputs<'a> {
    // Constant.
    job: &'a Job<'a>,
    grandparents: &'a [Arc<TableFile>],
    // The tables.
    /// All that were begun.
    numbers: Vec<FileNumber>,
    finished: Vec<AddedTable>,
    builder: Option<TableBuilder>,
    // What comes.
    /// Range deletions behind the last cut.
    deletions: Peekable<vec::IntoIter<Fragment>>,
    /// Grandparents that do not lie before the last key.
    ahead: usize,
    /// Bytes of those that lie between the last cut and the last key.
    passed_bytes: u64,
}

impl<'a> Outputs<'a> {
    pub(super) fn new(job: &'a Job<'a>) -> Self {
        let grandparents = job.version.levels().get(job.to + 1).map_or(&[][..], |l| l.tables());
        Self {
            job,
            grandparents,
            numbers: Vec::new(),
            finished: Vec::new(),
            builder: None,
            deletions: Vec::new().into_iter().peekable(),
            ahead: 0,
            passed_bytes: 0,
        }
    }

    /// The range deletions to be written, in the order of keys.
    pub(super) fn set_range_deletions(&mut self, deletions: Vec<Fragment>) {
        self.deletions = deletions.into_iter().peekable();
    }

    /// A new key comes, this is its newest entry: the only place for a cut.
    pub(super) fn begin_key(&mut self, entry: &InternalEntry<'_>) -> Result<()> {
        let passed = self.pass_grandparents(entry.key);
        let Some(builder) = &self.builder else {
            // Those are before the table.
            self.passed_bytes = 0;
            return Ok(());
        };
        let (size, job) = (builder.size_bytes(), self.job);
        let with_entry = size + (entry.key.len() + entry.value.len()) as u64;
        let wide = self.passed_bytes > GRANDPARENT_TABLES_MAX * job.table_bytes;
        let at_border = passed && (wide || size >= job.table_bytes / 2);
        if at_border || size >= job.table_bytes || with_entry > job.table_bytes_max {
            self.cut(Some(entry.key))?;
        }
        Ok(())
    }

    /// Adds what is kept of the key.
    pub(super) fn add(&mut self, entry: &InternalEntry<'_>, hash: KeyHash) -> Result<()> {
        self.builder()?.add(entry, hash)
    }

    /// Ends the table before `key`; `None`: it is the last one.
    pub(super) fn cut(&mut self, key: Option<&[u8]>) -> Result<()> {
        while let Some(fragment) = self.next_deletion(key) {
            let builder = self.builder()?;
            for &seqno in &fragment.seqnos {
                builder.add_range_deletion(&fragment.start, &fragment.end, seqno)?;
            }
        }
        self.passed_bytes = 0;
        let Some(builder) = self.builder.take() else { return Ok(()) };
        let number = *self.numbers.last().expect("the builder has one");
        let metadata = builder.finish()?;
        self.finished.push(AddedTable { level: self.job.to, number, metadata });
        Ok(())
    }

    /// The next range deletion, or the part of it that lies before `key`.
    fn next_deletion(&mut self, key: Option<&[u8]>) -> Option<Fragment> {
        let Some(key) = key else { return self.deletions.next() };
        let fragment = self.deletions.peek_mut().filter(|fragment| *fragment.start < *key)?;
        if *fragment.end <= *key {
            return self.deletions.next();
        }
        let before = Fragment { end: key.into(), ..fragment.clone() };
        fragment.start = key.into();
        Some(before)
    }

    /// Whether the key lies behind the end of a grandparent that the one before it did not lie behind.
    fn pass_grandparents(&mut self, key: &[u8]) -> bool {
        let before = self.ahead;
        while let Some(table) = self.grandparents.get(self.ahead) {
            if !Span::of(table).is_before(key) {
                break;
            }
            self.passed_bytes += table.size_bytes();
            self.ahead += 1;
        }
        self.ahead > before
    }

    fn builder(&mut self) -> Result<&mut TableBuilder> {
        match &mut self.builder {
            Some(builder) => Ok(builder),
            empty => {
                let Job { directory, layout, .. } = self.job;
                let (number, uid) = directory.allocate();
                self.numbers.push(number);
                let path = directory.table_path(number);
                let builder = TableBuilder::create(directory.fs(), &path, uid, layout.clone())?;
                Ok(empty.insert(builder))
            }
        }
    }

    /// What was written.
    pub(super) fn into_tables(self) -> Vec<AddedTable> {
        self.finished
    }

    /// Removes what was written. What cannot be removed is an orphan.
    pub(super) fn remove(self) {
        for number in self.numbers {
            let _ = self.job.directory.remove(&number.table_name());
        }
    }
}

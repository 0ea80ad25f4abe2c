//! What a merge reads: all entries of its tables in the order of internal keys, and whether deeper levels may hold a key.

use std::slice;
use std::sync::Arc;

use crate::storage::lsm::compaction::picker::Input;
use crate::storage::lsm::files::TableFile;
use crate::storage::lsm::key::InternalEntry;
use crate::storage::lsm::level::{Level, Span};
use crate::storage::lsm::table::{Access, Table, TableCursor};
use crate::storage::lsm::version::Version;
use crate::storage::{KeyRange, Result};

/// The entries of several tables that do not overlap, in order.
struct Run<'a> {
    /// Those after the current one.
    rest: slice::Iter<'a, Arc<TableFile>>,
    cursor: TableCursor<&'a Table>,
}

impl<'a> Run<'a> {
    /// On the first entry; `None` when there is none.
    fn open(tables: &'a [Arc<TableFile>]) -> Result<Option<Self>> {
        let mut rest = tables.iter();
        let Some(first) = rest.next() else { return Ok(None) };
        let mut run = Self { cursor: cursor(first)?, rest };
        let found = run.cursor.seek_to_first()? || run.next_table()?;
        Ok(found.then_some(run))
    }

    fn entry(&self) -> InternalEntry<'_> {
        self.cursor.entry().expect("a run that has ended is not kept")
    }

    /// To the next entry; false when there is none.
    fn next(&mut self) -> Result<bool> {
        Ok(self.cursor.next()? || self.next_table()?)
    }

    /// To the first entry of the tables that follow. One that has only range deletions has none.
    fn next_table(&mut self) -> Result<bool> {
        for table in self.rest.by_ref() {
            self.cursor = cursor(table)?;
            if self.cursor.seek_to_first()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_before(&self, other: &Self) -> bool {
        let (a, b) = (&self.cursor, &other.cursor);
        (a.key(), a.ordinal()) < (b.key(), b.ordinal())
    }
}

/// Reads around the cache: what is read once must not push out what is read often.
fn cursor(table: &Arc<TableFile>) -> Result<TableCursor<&Table>> {
    Ok(Table::cursor(&**table.table()?, Access::Sequential, KeyRange::ALL))
}

/// All entries, merged. Every table of level 0 is a run of its own.
pub(super) struct Inputs<'a> {
    /// A heap: each run is before those at twice its place plus one and plus two.
    #[expect(clippy::vec_box, reason = "they are large, and change places at many steps")]
    heap: Vec<Box<Run<'a>>>,
}

impl<'a> Inputs<'a> {
    pub(super) fn open(inputs: &'a [Input]) -> Result<Self> {
        let mut heap = Vec::new();
        for Input { level, tables } in inputs {
            let run = if *level == 0 { 1 } else { tables.len().max(1) };
            for tables in tables.chunks(run) {
                heap.extend(Run::open(tables)?.map(Box::new));
            }
        }
        let mut inputs = Self { heap };
        for place in (0..inputs.heap.len() / 2).rev() {
            inputs.sift_down(place);
        }
        Ok(inputs)
    }

    /// The entry it stands on; `None` at the end.
    pub(super) fn entry(&self) -> Option<InternalEntry<'_>> {
        self.heap.first().map(|run| run.entry())
    }

    /// To the next entry.
    pub(super) fn next(&mut self) -> Result<()> {
        let Some(first) = self.heap.first_mut() else { return Ok(()) };
        if !first.next()? {
            self.heap.swap_remove(0);
        }
        self.sift_down(0);
        Ok(())
    }

    fn sift_down(&mut self, mut place: usize) {
        loop {
            let children = (2 * place + 1..self.heap.len()).take(2);
            let before = |a: &usize, b: &usize| self.heap[*a].is_before(&self.heap[*b]);
            let Some(least) = children.reduce(|a, b| if before(&a, &b) { a } else { b }) else {
                return;
            };
            if !before(&least, &place) {
                return;
            }
            self.heap.swap(place, least);
            place = least;
        }
    }
}

/// Asks the levels below one about keys that come in order.
pub(super) struct Deeper<'a> {
    /// Each with the first table that does not lie before the last key asked for.
    levels: Vec<(&'a Level, usize)>,
}

impl<'a> Deeper<'a> {
    pub(super) fn new(version: &'a Version, level: usize) -> Self {
        let levels = version.levels()[level + 1..].iter();
        Self { levels: levels.map(|level| (&**level, 0)).collect() }
    }

    /// Whether one of them has a table that reaches over `key`.
    pub(super) fn may_hold(&mut self, key: &[u8]) -> bool {
        let mut holds = false;
        for (level, at) in &mut self.levels {
            let tables = level.tables();
            while tables.get(*at).is_some_and(|table| Span::of(table).is_before(key)) {
                *at += 1;
            }
            holds |= tables.get(*at).is_some_and(|table| Span::of(table).start <= key);
        }
        holds
    }
}

//! The tree of an engine at one moment: which tables are in which level, and up to where they hold what was written.
//!
//! A [`Version`] never changes. A [`VersionEdit`] makes the next one of it, and is what the manifest records. Readers
//! keep the version they began with, and with it its tables.
//!
//! Invariants of the levels, which make a read right that asks them from the top and stops at the first answer:
//!
//! * of one user key, every entry in a level is newer than every entry in a deeper level;
//! * within level 0, a table has only seqnos below those of the tables before it; elsewhere tables do not overlap;
//! * a range deletion lies within the keys of its table, and hides older entries in its own table and below it.

use std::sync::Arc;

use super::files::{FileNumber, TableDirectory, TableFile};
use super::key::SEQNO_MAX;
use super::level::Level;
use super::table::TableMetadata;
use crate::storage::Seqno;
use crate::util::time::Timestamp;
use crate::wal::Position;

/// Levels of a tree. The last one takes what the ones above it, each a tenth of the next, cannot.
pub(crate) const LEVELS: usize = 7;

/// The deepest level.
pub(crate) const LAST_LEVEL: usize = LEVELS - 1;

/// How far the tables of an engine hold what was written. Never goes backwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Flushed {
    /// Every write up to this one is in tables, and none after it.
    pub(crate) seqno: Seqno,
    /// The clock after that write. A compaction must not act on a later one: the log may lose that in a crash, and the
    /// clock would go back to before what was dropped had expired.
    pub(crate) clock: Timestamp,
    /// The engine needs nothing of the log that lies before this.
    pub(crate) log: Position,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Version {
    levels: [Arc<Level>; LEVELS],
    flushed: Flushed,
}

/// A table that joins a level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AddedTable {
    /// Which level.
    pub(crate) level: usize,
    /// Number of its file.
    pub(crate) number: FileNumber,
    /// What was written.
    pub(crate) metadata: TableMetadata,
}

/// What makes one version of another. A table that is removed from one level and added to another moves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct VersionEdit {
    /// Tables that join.
    pub(crate) added: Vec<AddedTable>,
    /// Tables that leave a level.
    pub(crate) removed: Vec<(usize, FileNumber)>,
    /// How far the tables hold what was written, when that changes.
    pub(crate) flushed: Option<Flushed>,
}

impl VersionEdit {
    /// Whether it names a table that did not only move.
    pub(crate) fn has_new_tables(&self) -> bool {
        let moved = |number| self.removed.iter().any(|&(_, removed)| removed == number);
        self.added.iter().any(|table| !moved(table.number))
    }
}

impl Version {
    /// All levels, from the newest data to the oldest.
    pub(crate) const fn levels(&self) -> &[Arc<Level>; LEVELS] {
        &self.levels
    }

    /// One level.
    pub(crate) fn level(&self, number: usize) -> &Level {
        &self.levels[number]
    }

    /// How far the tables hold what was written.
    pub(crate) const fn flushed(&self) -> Flushed {
        self.flushed
    }

    /// All tables, each with its level.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (usize, &Arc<TableFile>)> {
        let levels = self.levels.iter().enumerate();
        levels.flat_map(|(number, level)| level.tables().iter().map(move |table| (number, table)))
    }

    /// The edit that makes this version of the empty one.
    pub(crate) fn snapshot(&self) -> VersionEdit {
        let added = self.tables().map(|(level, table)| AddedTable {
            level,
            number: table.number(),
            metadata: table.metadata().clone(),
        });
        VersionEdit { added: added.collect(), removed: Vec::new(), flushed: Some(self.flushed) }
    }

    /// The next version, and the tables that are not in it any more. Says what is wrong when the edit does not fit.
    pub(crate) fn apply(
        &self,
        edit: &VersionEdit,
        directory: &Arc<TableDirectory>,
    ) -> Result<(Self, Vec<Arc<TableFile>>), String> {
        let flushed = self.next_flushed(edit)?;
        // The tables of the levels that change.
        let mut changed: [Option<Vec<Arc<TableFile>>>; LEVELS] = Default::default();
        let mut removed = Vec::new();
        for &(level, number) in &edit.removed {
            let tables = self.changed(&mut changed, level)?;
            let Some(at) = tables.iter().position(|table| table.number() == number) else {
                return Err(format!("table {} is not in level {level}", number.0));
            };
            removed.push(tables.remove(at));
        }
        for AddedTable { level, number, metadata } in &edit.added {
            check_table(*number, metadata, flushed)?;
            let table = match removed.iter().position(|table| table.number() == *number) {
                Some(at) => removed.swap_remove(at),
                None => TableFile::new(Arc::clone(directory), *number, metadata.clone()),
            };
            self.changed(&mut changed, *level)?.push(table);
        }
        let mut levels = self.levels.clone();
        for (number, tables) in changed.into_iter().enumerate() {
            if let Some(tables) = tables {
                levels[number] = Arc::new(Level::new(number, tables)?);
            }
        }
        let version = Self { levels, flushed };
        version.check_numbers()?;
        Ok((version, removed))
    }

    fn changed<'a>(
        &self,
        changed: &'a mut [Option<Vec<Arc<TableFile>>>; LEVELS],
        level: usize,
    ) -> Result<&'a mut Vec<Arc<TableFile>>, String> {
        let no_level = || format!("level {level}, there are {LEVELS}");
        let tables = changed.get_mut(level).ok_or_else(no_level)?;
        Ok(tables.get_or_insert_with(|| self.levels[level].tables().to_vec()))
    }

    fn next_flushed(&self, edit: &VersionEdit) -> Result<Flushed, String> {
        let (old, new) = (self.flushed, edit.flushed.unwrap_or(self.flushed));
        if new.seqno > SEQNO_MAX {
            return Err(format!("write {} was flushed, there are only 2^56", new.seqno.0));
        }
        if new.seqno < old.seqno || new.clock < old.clock || new.log < old.log {
            return Err(format!("what was flushed goes back from {old:?} to {new:?}"));
        }
        Ok(new)
    }

    /// Whether no number is there twice.
    fn check_numbers(&self) -> Result<(), String> {
        let mut numbers: Vec<_> = self.tables().map(|(_, table)| table.number()).collect();
        numbers.sort_unstable();
        match numbers.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("table {} is there twice", pair[0].0)),
            None => Ok(()),
        }
    }
}

fn check_table(
    number: FileNumber,
    metadata: &TableMetadata,
    flushed: Flushed,
) -> Result<(), String> {
    let properties = &metadata.properties;
    let number = number.0;
    if properties.seqno_max > flushed.seqno {
        let (seqno, upto) = (properties.seqno_max.0, flushed.seqno.0);
        return Err(format!("table {number} holds write {seqno}, flushed is only {upto}"));
    }
    let (start, end) = (&properties.smallest, &properties.largest);
    if *start > end.key || *start == end.key && !end.inclusive {
        return Err(format!("table {number} ends before it begins"));
    }
    Ok(())
}

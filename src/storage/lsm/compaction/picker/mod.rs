//! Which tables to compact next: a pure function of a tree. Leveled: from level 1 on each level is one sorted run, and
//! may hold [`growth`](PickerOptions::growth) times what the one above it may.
//!
//! | file | what |
//! |---|---|
//! | [`shape`] | what each level may hold |
//! | [`merge`] | from a table, or level 0, to what has to be compacted with it |
//! | [`space`] | work that only saves space |
//!
//! The order, most urgent first: what nobody can see (it costs nothing); level 0, which every read has to ask table by
//! table; the level that is most over its size; and, when asked for, space: tombstones, then expired entries.
//!
//! # What runs at the same time
//!
//! Several compactions may run; the tables of each are [`busy`](Hints::busy) and not picked again. No more is needed for
//! their outputs not to overlap: what is taken from one level is a run without gaps, and all that overlaps it in the next
//! level goes with it, so two compactions into one level that share no table share no keys. Level 0 has gaps, so only one
//! compaction takes from it at a time. Nor does any other compaction bring keys of a running one deeper than its
//! output: they would have to come from its own tables.

mod merge;
mod shape;
mod space;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use self::shape::Shape;
pub(crate) use self::shape::debt_bytes;
pub(crate) use self::space::{Manual, ManualStep, choose_manual};
use super::rules::Readers;
use crate::storage::lsm::files::{FileNumber, TableFile};
use crate::storage::lsm::table::Fragment;
use crate::storage::lsm::version::{AddedTable, Version, VersionEdit};

/// The shape that a tree is kept in.
#[derive(Debug, Clone)]
pub(crate) struct PickerOptions {
    /// Tables in level 0 from which on they are compacted. Default 4.
    pub(crate) l0_tables: usize,
    /// What the first level below level 0 may hold at most. Default 256 MiB.
    pub(crate) base_bytes: u64,
    /// How many times as much a level may hold as the one above it; at least 2. Default 10.
    pub(crate) growth: u64,
    /// Size aimed at for a table. Default 64 MiB.
    pub(crate) table_bytes: u64,
    /// A table is rewritten for its tombstones when so many of 100 data blocks are dense. Default 10.
    pub(crate) dense_percent: u64,
    /// And for its expired entries when so many of 100 have expired, by estimate. Default 10.
    pub(crate) expired_percent: u64,
    /// And when its first entry expired so long ago, because the estimate may be wrong. Default one day.
    pub(crate) expired_for: Duration,
}

impl Default for PickerOptions {
    fn default() -> Self {
        Self {
            l0_tables: 4,
            base_bytes: 256 << 20,
            growth: 10,
            table_bytes: 64 << 20,
            dense_percent: 10,
            expired_percent: 10,
            expired_for: Duration::from_hours(24),
        }
    }
}

/// Why something was picked; for figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reason {
    /// Nobody can see anything of a table.
    Dead,
    /// Level 0 has too many tables.
    LevelZero,
    /// A level is too large.
    Size,
    /// A table has many tombstones.
    Tombstones,
    /// A table has expired entries.
    Expired,
    /// An operator asked for it.
    Manual,
}

/// Tables of one level.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    /// Which level.
    pub(crate) level: usize,
    /// In the order of the level; not empty.
    pub(crate) tables: Vec<Arc<TableFile>>,
}

/// What to do next.
#[derive(Debug, Clone)]
pub(crate) enum Choice {
    /// The tables go to a deeper level as they are.
    Move {
        /// From where.
        input: Input,
        /// To where.
        to: usize,
    },
    /// The tables are dropped.
    Delete(Vec<Input>),
    /// The tables are merged into new ones.
    Merge {
        /// From the newest data to the oldest.
        inputs: Vec<Input>,
        /// To where: the level of the last input, or the one below.
        to: usize,
    },
}

impl Choice {
    /// What it takes from where.
    pub(crate) fn inputs(&self) -> &[Input] {
        match self {
            Self::Move { input, .. } => std::slice::from_ref(input),
            Self::Delete(inputs) | Self::Merge { inputs, .. } => inputs,
        }
    }

    /// All its tables. From now on they are [`busy`](Hints::busy).
    pub(crate) fn tables(&self) -> impl Iterator<Item = &Arc<TableFile>> {
        self.inputs().iter().flat_map(|input| &input.tables)
    }

    /// The edit that removes its tables, and adds them where they move to. A merge has new tables to add.
    pub(crate) fn edit(&self) -> VersionEdit {
        let mut edit = VersionEdit::default();
        for input in self.inputs() {
            edit.removed.extend(input.tables.iter().map(|table| (input.level, table.number())));
        }
        if let Self::Move { input, to } = self {
            edit.added.extend(input.tables.iter().map(|table| AddedTable {
                level: *to,
                number: table.number(),
                metadata: table.metadata().clone(),
            }));
        }
        edit
    }
}

/// What the picker has to know besides the tree.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hints<'a> {
    /// Tables of running compactions.
    pub(crate) busy: &'a HashSet<FileNumber>,
    /// Who reads.
    pub(crate) readers: &'a Readers,
    /// The range deletions of the tree, see [`range_deletions`](super::range_deletions).
    pub(crate) deletions: &'a [Vec<Fragment>],
    /// Whether work that only saves space is wanted, too.
    pub(crate) space: bool,
}

impl Hints<'_> {
    fn any_busy<'t>(&self, tables: impl IntoIterator<Item = &'t Arc<TableFile>>) -> bool {
        tables.into_iter().any(|table| self.busy.contains(&table.number()))
    }
}

/// A tree and what is known about it.
#[derive(Clone, Copy)]
struct Picker<'a> {
    version: &'a Version,
    options: &'a PickerOptions,
    hints: &'a Hints<'a>,
}

/// The most urgent thing to do; `None`: the tree is as it should be, or what could be done is being done.
pub(crate) fn choose(
    version: &Version,
    options: &PickerOptions,
    hints: &Hints<'_>,
) -> Option<(Reason, Choice)> {
    let picker = Picker { version, options, hints };
    let because = |reason| move |choice| (reason, choice);
    let urgent = (picker.dead().map(because(Reason::Dead)))
        .or_else(|| picker.crowded_level_zero().map(because(Reason::LevelZero)))
        .or_else(|| picker.large_level().map(because(Reason::Size)));
    if urgent.is_some() || !hints.space {
        return urgent;
    }
    (picker.tombstones().map(because(Reason::Tombstones)))
        .or_else(|| picker.expired().map(because(Reason::Expired)))
}

impl Picker<'_> {
    fn crowded_level_zero(self) -> Option<Choice> {
        let crowded = self.version.level(0).tables().len() >= self.options.l0_tables;
        if crowded { self.level_zero() } else { None }
    }

    /// From the level that is most over its size, and has something that is not busy.
    fn large_level(self) -> Option<Choice> {
        let shape = Shape::of(self.version, self.options);
        let mut levels: Vec<_> = (1..self.version.levels().len() - 1)
            .map(|level| (shape.fullness(level, self.idle_bytes(level)), level))
            .filter(|&(fullness, _)| fullness > 1.0)
            .collect();
        levels.sort_by(|a, b| b.0.total_cmp(&a.0));
        let excess = |level| self.idle_bytes(level) - shape.target_bytes(level);
        levels.into_iter().find_map(|(_, level)| self.shrink(level, excess(level)))
    }

    /// Bytes of a level that no compaction is taking away already.
    fn idle_bytes(self, level: usize) -> u64 {
        let idle = |table: &&Arc<TableFile>| !self.hints.any_busy([*table]);
        self.version.level(level).tables().iter().filter(idle).map(|table| table.size_bytes()).sum()
    }
}

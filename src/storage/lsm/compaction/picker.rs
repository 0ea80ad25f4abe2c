//! Which tables to compact next.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::rules::Readers;
use crate::storage::Seqno;
use crate::storage::lsm::files::{FileNumber, TableFile};
use crate::storage::lsm::version::{Version, VersionEdit};

/// The shape that a tree is kept in.
#[derive(Debug, Clone)]
pub(crate) struct PickerOptions {
    /// Tables in level 0 from which on they are compacted. Default 4.
    pub(crate) l0_tables: usize,
    /// What the first level below level 0 may hold. Default 256 MiB.
    pub(crate) base_bytes: u64,
    /// How many times a level is larger than the one above it. Default 10.
    pub(crate) growth: u64,
    /// Size aimed at for a table. Default 64 MiB.
    pub(crate) table_bytes: u64,
    /// Tombstones are compacted away in a table with this share of dense blocks. Default 10 %.
    pub(crate) dense_percent: u64,
    /// So are expired entries in a table that has this estimated share of them. Default 10 %.
    pub(crate) expired_percent: u64,
    /// And those that have been expired for so long, whatever their share. Default one day.
    pub(crate) expired_for: Duration,
}

/// Why something was picked; for figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reason {
    /// Level 0 has too many tables.
    LevelZero,
    /// A level is too large.
    Size,
    /// Nobody can see anything of a table.
    Dead,
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
    /// The tables are in another level from now on, as they are.
    Move {
        /// From where.
        input: Input,
        /// To where.
        to: usize,
    },
    /// The tables are dropped, as they are.
    Delete(Vec<Input>),
    /// The tables are merged into new ones.
    Merge {
        /// From the newest data to the oldest.
        inputs: Vec<Input>,
        /// To where.
        to: usize,
    },
}

impl Choice {
    /// The edit, where no table needs to be written for it: for all but a merge.
    pub(crate) fn edit(&self) -> Option<VersionEdit> {
        unimplemented!()
    }

    /// All tables of it. Nobody else may compact them meanwhile: they are `busy`.
    pub(crate) fn tables(&self) -> impl Iterator<Item = &Arc<TableFile>> {
        std::iter::empty()
    }
}

/// What the picker has to know besides the tree.
#[derive(Debug, Clone)]
pub(crate) struct Hints<'a> {
    /// Tables of running compactions.
    pub(crate) busy: &'a HashSet<FileNumber>,
    /// Who reads.
    pub(crate) readers: &'a Readers,
    /// Whether work that only saves space is wanted, too: each `compaction.interval`.
    pub(crate) space: bool,
}

/// A range that an operator wants rewritten.
#[derive(Debug, Clone)]
pub(crate) struct Manual {
    /// First key.
    pub(crate) start: Vec<u8>,
    /// First key beyond.
    pub(crate) end: Option<Vec<u8>>,
    /// What was written up to here, and flushed.
    pub(crate) upto: Seqno,
    /// Tables of lower numbers are not yet rewritten.
    pub(crate) before: FileNumber,
}

/// What to do next for a [`Manual`].
#[derive(Debug, Clone)]
pub(crate) enum ManualStep {
    /// This.
    Do(Choice),
    /// Ask again when a running compaction has ended.
    Wait,
    /// It is done.
    Done,
}

/// The most urgent thing to do; `None`: the tree is as it should be, or what could be done is being done.
pub(crate) fn choose(
    _version: &Version,
    _options: &PickerOptions,
    _hints: &Hints<'_>,
) -> Option<(Reason, Choice)> {
    None
}

/// The next step of a manual compaction.
pub(crate) fn choose_manual(
    _version: &Version,
    _options: &PickerOptions,
    _hints: &Hints<'_>,
    _manual: &Manual,
) -> ManualStep {
    ManualStep::Done
}

/// Bytes that compactions have to write until the tree is as it should be: an estimate for the pacer.
pub(crate) fn debt_bytes(_version: &Version, _options: &PickerOptions) -> u64 {
    0
}

impl Default for PickerOptions {
    fn default() -> Self {
        Self { l0_tables: 4, base_bytes: 256 << 20, growth: 10, table_bytes: 64 << 20, dense_percent: 10, expired_percent: 10, expired_for: Duration::from_secs(86400) }
    }
}

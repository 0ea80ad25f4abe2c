//! Which tables to compact next: a pure function of a tree. Leveled: from level 1 on each level is one sorted run, and
//! may hold [`growth`](PickerOptions::growth) times what the one above it may.
//!
//! | file | what |
//! |---|---|
//! | [`shape`] | what each level may hold |
//! | [`merge`] | from a table, or level 0, to what has to be compacted with it |
//! | [`running`] | what is being done already |
//! | [`space`] | work that only saves space |
//!
//! The order, most urgent first: what nobody can see (it costs nothing); level 0, which every read has to ask table by
//! table; the level that is most over its size; and, when asked for, space: tombstones, then expired entries.
//!
//! # What runs at the same time
//!
//! Several compactions may run, each on its own thread; [`Running`] is what the picker knows of them, and it chooses
//! nothing that is [in their way](Running::allows). A compaction judges by the version it was chosen from and its edit is
//! committed some time later, in whatever order. Two rules make that safe:
//!
//! 1. **No table is taken twice.**
//! 2. **What two put into one level does not overlap.** A merge may put something anywhere between its least and its
//!    greatest key, the *hull* of all its inputs; a table that moves, only where it is.
//!
//! A merge whose inputs have a gap is why the second rule is needed. One of `d..e` and `k..m` from level L takes no table
//! of `f..j`, and one may be put there, into level L, while it runs: that is right, for it is newer and stays above. But
//! should nothing in level L+1 be in its way, it could move on, to where the merge is about to put something around it.
//! What `merge.rs` makes today has no such gaps below level 0; nothing here relies on that.
//!
//! The rest follows. Let J run, from level L to level `to` (L+1; from level 0 the base level; or L itself, when a table
//! is only rewritten), and V be the version it was chosen from.
//!
//! * **Its edit fits whenever it is committed.** Its inputs are still there by rule 1. A table of `to` that overlaps its
//!   hull was in V, then it is an input (`merge.rs` takes all of them); or came later, which rule 2 excludes.
//! * **Nothing older of its keys is outside of its inputs and the levels below `to`.** In V it is so: tables of a level do
//!   not overlap; what is taken from level 0 is all of it, or overlaps nothing older there; the levels between level 0
//!   and the base level are empty, and stay so, because the only one that could fill them is another compaction of level
//!   0, and of those only one runs. While J runs, the only thing that becomes of what is below `to` is that it sinks
//!   further or goes.
//! * **Nothing newer of its keys gets below it.** It would have to pass through `to`: a compaction takes a table one
//!   level down, or from level 0 to the base level, which is no deeper than any input of J, as its tables are in the tree
//!   until its edit is committed. Rule 2 does not let it in.
//! * So **what J drops, or gives the seqno 0**, because V has nothing of a key below `to`, may be dropped for good: what
//!   J looks for there is older than what it holds, and neither appears later.
//! * **A table is dead** (`space.rs`) for one of two reasons. A newer range deletion hides it: that one is in a level above
//!   or in level 0, so whoever merges it has this table in his version, among his inputs (then this table is taken) or
//!   below (then he keeps the deletion). If the table of the range deletion is itself dead, for a still newer one, that
//!   one hides this table as well. Or it hides nothing: what is older would be below it, in the tree until it is gone.
//! * **The clock** of J is that of V. A later one in another compaction finds more expired, never less, and what is hidden
//!   from all readers at one clock is hidden at each later one.
//! * **Level 0** has gaps, and its tables are one above the other: one compaction takes from it at a time.
//!
//! What waits for whom: level 0 waits for a compaction of tables of the base level that it overlaps, which takes one
//! table's worth of it or little more; never for one between deeper levels.

mod merge;
mod running;
mod shape;
mod space;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

pub(crate) use self::running::Running;
use self::shape::Shape;
pub(crate) use self::shape::debt_bytes;
pub(crate) use self::space::{Manual, ManualStep, choose_manual};
use super::rules::Readers;
use crate::storage::lsm::files::TableFile;
use crate::storage::lsm::level::Span;
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

    /// All its tables.
    pub(crate) fn tables(&self) -> impl Iterator<Item = &Arc<TableFile>> {
        self.inputs().iter().flat_map(|input| &input.tables)
    }

    /// The level that it puts tables into; `None`: it only removes some.
    pub(crate) fn to(&self) -> Option<usize> {
        match self {
            Self::Move { to, .. } | Self::Merge { to, .. } => Some(*to),
            Self::Delete(_) => None,
        }
    }

    /// Where the keys are that it puts there.
    fn put_spans(&self) -> Vec<Span<'_>> {
        match self {
            Self::Move { input, .. } => input.tables.iter().map(|table| Span::of(table)).collect(),
            Self::Merge { .. } => Span::hull(self.tables()).into_iter().collect(),
            Self::Delete(_) => Vec::new(),
        }
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

/// How far down the order of urgency to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// What nobody can see, and level 0.
    LevelZero,
    /// Also levels that are too large.
    Size,
    /// Also what only saves space.
    Space,
}

/// What the picker has to know besides the tree.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hints<'a> {
    /// What is being done already.
    pub(crate) running: &'a Running,
    /// Who reads.
    pub(crate) readers: &'a Readers,
    /// The range deletions of the tree, see [`range_deletions`](super::range_deletions).
    pub(crate) deletions: &'a [Vec<Fragment>],
    /// What is wanted.
    pub(crate) scope: Scope,
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
    let wanted = |scope| (hints.scope >= scope).then_some(picker);
    (picker.dead().map(because(Reason::Dead)))
        .or_else(|| picker.crowded_level_zero().map(because(Reason::LevelZero)))
        .or_else(|| wanted(Scope::Size)?.large_level().map(because(Reason::Size)))
        .or_else(|| wanted(Scope::Space)?.tombstones().map(because(Reason::Tombstones)))
        .or_else(|| wanted(Scope::Space)?.expired().map(because(Reason::Expired)))
}

impl Picker<'_> {
    fn crowded_level_zero(self) -> Option<Choice> {
        let crowded = self.version.level(0).tables().len() >= self.options.l0_tables;
        if crowded { self.level_zero() } else { None }
    }

    fn any_taken<'t>(self, tables: impl IntoIterator<Item = &'t Arc<TableFile>>) -> bool {
        tables.into_iter().any(|table| self.hints.running.takes(table))
    }

    /// The choice, unless it is in the way of something that runs.
    fn allowed(self, choice: Choice) -> Option<Choice> {
        self.hints.running.allows(&choice).then_some(choice)
    }

    /// From the level that is most over its size, and has something that is not being taken already.
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
        let idle = |table: &&Arc<TableFile>| !self.hints.running.takes(table);
        self.version.level(level).tables().iter().filter(idle).map(|table| table.size_bytes()).sum()
    }
}

//! From a table that should go down, or from level 0, to all that has to be compacted with it.

use std::ops::Range;
use std::sync::Arc;

use super::shape::Shape;
use super::{Choice, Input, Picker};
use crate::storage::lsm::files::TableFile;
use crate::storage::lsm::level::Span;
use crate::storage::lsm::version::LAST_LEVEL;

/// A table that overlaps more than so many tables' worth of the level below the next is not moved, but merged into
/// smaller ones: it would have to be merged with all of them later.
const GRANDPARENT_TABLES_MAX: u64 = 10;

/// A merge is not made larger, where that costs no more tables of the next level, than so many tables.
const GROWN_TABLES_MAX: u64 = 25;

impl Picker<'_> {
    /// Level 0 goes to the base level: what it can without being rewritten, otherwise all of it.
    pub(super) fn level_zero(self) -> Option<Choice> {
        let tables = self.version.level(0).tables();
        if tables.is_empty() || self.any_taken(tables) {
            return None;
        }
        let to = Shape::of(self.version, self.options).base();
        let movable = self.movable_of_level_zero(to);
        if !movable.is_empty() {
            return Some(Choice::Move { input: Input { level: 0, tables: movable }, to });
        }
        let into = self.version.level(to).overlapping(Span::hull(tables)?);
        self.allowed(merge(0, tables, to, into))
    }

    /// Tables of level 0 that overlap nothing in level `to`, and nothing that is older or goes there as well.
    fn movable_of_level_zero(self, to: usize) -> Vec<Arc<TableFile>> {
        let tables = self.version.level(0).tables();
        let mut movable = Vec::new();
        for (index, table) in tables.iter().enumerate() {
            let span = Span::of(table);
            let older = &tables[index + 1..];
            // An older one that overlaps stays, or goes to the same level: in the way in either case.
            let free = !older.iter().any(|older| Span::of(older).overlaps(span));
            if free && self.fits_below(span, to) {
                movable.push(Arc::clone(table));
            }
        }
        movable
    }

    /// Whether a table with these keys may be put into level `to` as it is.
    fn fits_below(self, span: Span<'_>, to: usize) -> bool {
        let grandparents = self.version.levels().get(to + 1).map_or(0, |level| {
            level.overlapping(span).iter().map(|table| table.size_bytes()).sum()
        });
        self.version.level(to).range(span).is_empty()
            && grandparents <= GRANDPARENT_TABLES_MAX * self.options.table_bytes
            && !self.hints.running.puts(to, span)
    }

    /// Takes something from `level` to the next: moves what overlaps nothing there, up to `excess` bytes; otherwise
    /// merges the table that brings least of the next level with it for its size.
    pub(super) fn shrink(self, level: usize, excess: u64) -> Option<Choice> {
        let tables = self.version.level(level).tables();
        let idle = |table: &&Arc<TableFile>| !self.hints.running.takes(table);
        let mut moved = 0;
        let movable: Vec<_> = tables
            .iter()
            .filter(idle)
            .filter(|table| self.fits_below(Span::of(table), level + 1))
            .take_while(|table| {
                moved < excess && {
                    moved += table.size_bytes();
                    true
                }
            })
            .cloned()
            .collect();
        if !movable.is_empty() {
            return Some(Choice::Move { input: Input { level, tables: movable }, to: level + 1 });
        }
        let mut by_cost: Vec<_> =
            (0..tables.len()).map(|index| (self.cost(level, &tables[index]), index)).collect();
        by_cost.sort_by(|a, b| a.0.total_cmp(&b.0));
        by_cost.into_iter().find_map(|(_, index)| self.push_down(level, index))
    }

    /// Bytes of the next level that a table has to be merged with, for each of its own.
    #[expect(clippy::cast_precision_loss, reason = "a ratio, to compare")]
    fn cost(self, level: usize, table: &TableFile) -> f64 {
        let into = self.version.level(level + 1).overlapping(Span::of(table));
        let bytes: u64 = into.iter().map(|table| table.size_bytes()).sum();
        bytes as f64 / table.size_bytes().max(1) as f64
    }

    /// Takes one table of `level` to the next.
    pub(super) fn push_down(self, level: usize, index: usize) -> Option<Choice> {
        let from = self.version.level(level);
        let to = self.version.level(level + 1);
        let table = &from.tables()[index];
        if self.hints.running.takes(table) {
            return None;
        }
        if self.fits_below(Span::of(table), level + 1) {
            let tables = vec![Arc::clone(table)];
            return Some(Choice::Move { input: Input { level, tables }, to: level + 1 });
        }
        let into = to.range(Span::of(table));
        let taken = self.grown(level, index..index + 1, &into);
        let (tables, into) = (&from.tables()[taken], &to.tables()[into]);
        self.allowed(merge(level, tables, level + 1, into))
    }

    /// More tables of `level`, where they bring no more tables of the next one with them: those between the outermost
    /// keys of what is merged anyway.
    fn grown(self, level: usize, taken: Range<usize>, into: &Range<usize>) -> Range<usize> {
        let (from, to) = (self.version.level(level), self.version.level(level + 1));
        let both = from.tables()[taken.clone()].iter().chain(&to.tables()[into.clone()]);
        let Some(hull) = Span::hull(both) else { return taken };
        let Range { mut start, mut end } = from.range(hull);
        // The outermost two may reach further. What was taken does not, so something is left.
        start += usize::from(Span::of(&from.tables()[start]).start < hull.start);
        end -= usize::from(Span::of(&from.tables()[end - 1]).end > hull.end);
        let tables = &from.tables()[start..end];
        let bytes: u64 = tables.iter().map(|table| table.size_bytes()).sum();
        let too_much = bytes > GROWN_TABLES_MAX * self.options.table_bytes;
        if too_much || self.any_taken(tables) { taken } else { start..end }
    }

    /// Rewrites one table where it is when nothing lies below it, so that what is dead in it goes; otherwise takes it a
    /// level further down on its way there.
    pub(super) fn clean(self, level: usize, index: usize) -> Option<Choice> {
        if level == 0 {
            return self.level_zero();
        }
        let table = &self.version.level(level).tables()[index];
        if !self.is_last(level, Span::of(table)) {
            return self.push_down(level, index);
        }
        let tables = std::slice::from_ref(table);
        self.allowed(merge(level, tables, level, &[]))
    }

    /// Whether no level below `level` has anything of these keys.
    pub(super) fn is_last(self, level: usize, span: Span<'_>) -> bool {
        (level + 1..=LAST_LEVEL).all(|below| self.version.level(below).range(span).is_empty())
    }
}

/// A merge of tables of one level with those of the level they go to, if there are any.
fn merge(level: usize, tables: &[Arc<TableFile>], to: usize, into: &[Arc<TableFile>]) -> Choice {
    let mut inputs = vec![Input { level, tables: tables.to_vec() }];
    if !into.is_empty() {
        inputs.push(Input { level: to, tables: into.to_vec() });
    }
    Choice::Merge { inputs, to }
}

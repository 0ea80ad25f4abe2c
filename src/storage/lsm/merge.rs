//! Many sorted sources as one: memtables, tables, levels.
//!
//! The sources that stand on an entry are kept in the order of their entries. Whoever is first moves on, and stays first
//! as long as it is before the runner-up: one comparison for each entry of a run. Otherwise its new place is found by
//! binary search. Most comparisons are decided by the first eight bytes of the keys, which are kept beside the sources.
//!
//! Whoever is done with a key has all sources that stand on it step over it at once ([`Merge::skip_key`]): a tombstone and
//! what it hides cost one new place for each, not one for each step of either.

use std::cmp::Ordering;
use std::sync::Arc;

use super::key::{InternalEntry, Ordinal, compare};
use super::level::{Level, Span};
use super::memtable::{Memtable, MemtableCursor, prefix_of};
use super::table::{Access, Table, TableCursor};
use crate::storage::{Direction, KeyRange, Result};

/// A sorted run of entries.
pub(super) enum Source {
    Memtable(MemtableCursor<Arc<Memtable>>),
    Table(TableCursor<Arc<Table>>),
    Level(LevelCursor),
}

impl Source {
    #[inline]
    fn entry(&self) -> Option<InternalEntry<'_>> {
        match self {
            Self::Memtable(cursor) => cursor.entry(),
            Self::Table(cursor) => cursor.entry(),
            Self::Level(cursor) => cursor.cursor.as_ref().and_then(TableCursor::entry),
        }
    }

    /// Key and ordinal of the entry, without its value.
    #[inline]
    fn key(&self) -> Option<(&[u8], Ordinal)> {
        match self {
            Self::Memtable(cursor) => cursor.key(),
            Self::Table(cursor) => cursor.internal_key(),
            Self::Level(cursor) => cursor.cursor.as_ref().and_then(TableCursor::internal_key),
        }
    }

    fn start(&mut self, direction: Direction) -> Result<bool> {
        match (self, direction) {
            (Self::Memtable(cursor), Direction::Forward) => Ok(cursor.seek_to_first()),
            (Self::Memtable(cursor), Direction::Reverse) => Ok(cursor.seek_to_last()),
            (Self::Table(cursor), Direction::Forward) => cursor.seek_to_first(),
            (Self::Table(cursor), Direction::Reverse) => cursor.seek_to_last(),
            (Self::Level(cursor), direction) => cursor.start(direction),
        }
    }

    #[inline]
    fn advance(&mut self, direction: Direction) -> Result<bool> {
        match (self, direction) {
            (Self::Memtable(cursor), Direction::Forward) => Ok(cursor.next()),
            (Self::Memtable(cursor), Direction::Reverse) => Ok(cursor.prev()),
            (Self::Table(cursor), Direction::Forward) => cursor.next(),
            (Self::Table(cursor), Direction::Reverse) => cursor.prev(),
            (Self::Level(cursor), direction) => cursor.advance(direction),
        }
    }
}

/// The tables of one level below level 0, one after the other. A table is opened when it is reached.
pub(super) struct LevelCursor {
    level: Arc<Level>,
    access: Access,
    start: Vec<u8>,
    end: Option<Vec<u8>>,
    /// Tables that are still to come, by their place in the level.
    left: std::ops::Range<usize>,
    cursor: Option<TableCursor<Arc<Table>>>,
}

impl LevelCursor {
    /// Over the keys of `range`; `None` when no table can have any.
    pub(super) fn new(level: &Arc<Level>, access: Access, range: KeyRange<'_>) -> Option<Self> {
        let left = level.range(Span::from(range));
        let (start, end) = (range.start.to_vec(), range.end.map(<[u8]>::to_vec));
        let level = Arc::clone(level);
        (!left.is_empty()).then_some(Self { level, access, start, end, left, cursor: None })
    }

    fn start(&mut self, direction: Direction) -> Result<bool> {
        self.left = self.level.range(Span::from(KeyRange::new(&self.start, self.end.as_deref())));
        self.next_table(direction)
    }

    #[inline]
    fn advance(&mut self, direction: Direction) -> Result<bool> {
        let Some(cursor) = &mut self.cursor else { return Ok(false) };
        let there = match direction {
            Direction::Forward => cursor.next()?,
            Direction::Reverse => cursor.prev()?,
        };
        if there { Ok(true) } else { self.next_table(direction) }
    }

    #[cold]
    fn next_table(&mut self, direction: Direction) -> Result<bool> {
        loop {
            self.cursor = None;
            let next = match direction {
                Direction::Forward => self.left.next(),
                Direction::Reverse => self.left.next_back(),
            };
            let Some(next) = next else { return Ok(false) };
            let table = Arc::clone(self.level.tables()[next].table()?);
            let range = KeyRange::new(&self.start, self.end.as_deref());
            let cursor = self.cursor.insert(Table::cursor(table, self.access, range));
            let there = match direction {
                Direction::Forward => cursor.seek_to_first()?,
                Direction::Reverse => cursor.seek_to_last()?,
            };
            if there {
                return Ok(true);
            }
        }
    }
}

/// See the [module](self). After an error it must not be used further.
pub(super) struct Merge {
    sources: Vec<Source>,
    direction: Direction,
    /// Of each source that stands on an entry: the first bytes of its key.
    prefixes: Vec<u64>,
    /// Those sources, by entry, in the direction of the merge.
    order: Vec<usize>,
}

impl Merge {
    /// Stands on the first entry of all, in the given direction.
    pub(super) fn start(mut sources: Vec<Source>, direction: Direction) -> Result<Self> {
        let mut order = Vec::with_capacity(sources.len());
        for (index, source) in sources.iter_mut().enumerate() {
            if source.start(direction)? {
                order.push(index);
            }
        }
        let prefix = |source: &Source| source.key().map_or(0, |(key, _)| prefix_of(key));
        let prefixes = sources.iter().map(prefix).collect();
        let mut merge = Self { sources, direction, prefixes, order };
        let mut order = std::mem::take(&mut merge.order);
        order.sort_by(|&a, &b| merge.compare(a, b));
        merge.order = order;
        Ok(merge)
    }

    /// The entry it stands on.
    #[inline]
    pub(super) fn entry(&self) -> Option<InternalEntry<'_>> {
        self.sources[*self.order.first()?].entry()
    }

    /// To the next entry, in the direction of the merge.
    #[inline]
    pub(super) fn advance(&mut self) -> Result<()> {
        let Some(&first) = self.order.first() else { return Ok(()) };
        if !self.sources[first].advance(self.direction)? {
            self.order.remove(0);
            return Ok(());
        }
        self.note_prefix(first);
        self.settle(0);
        Ok(())
    }

    /// Beyond all entries of the key that it stands on; the key is left in `key`.
    #[inline]
    pub(super) fn skip_key(&mut self, key: &mut Vec<u8>) -> Result<()> {
        let Some(&first) = self.order.first() else { return Ok(()) };
        key.clear();
        key.extend(self.sources[first].key().into_iter().flat_map(|(key, _)| key));
        let prefix = self.prefixes[first];
        // Those that stand on the key come first.
        let others = self.order[1..].iter().take_while(|&&source| self.is_on(source, prefix, key));
        let count = 1 + others.count();
        for place in (0..count).rev() {
            if self.step_over(self.order[place], prefix, key)? {
                self.settle(place);
            } else {
                self.order.remove(place);
            }
        }
        Ok(())
    }

    /// Whether a source stands on `key`, which begins with `prefix`.
    #[inline]
    fn is_on(&self, source: usize, prefix: u64, key: &[u8]) -> bool {
        self.prefixes[source] == prefix
            && self.sources[source].key().is_some_and(|(other, _)| other == key)
    }

    /// To the first entry of a source behind those of `key`; false when there is none.
    #[inline]
    fn step_over(&mut self, source: usize, prefix: u64, key: &[u8]) -> Result<bool> {
        loop {
            if !self.sources[source].advance(self.direction)? {
                return Ok(false);
            }
            self.note_prefix(source);
            if !self.is_on(source, prefix, key) {
                return Ok(true);
            }
        }
    }

    #[inline]
    fn note_prefix(&mut self, source: usize) {
        self.prefixes[source] = self.sources[source].key().map_or(0, |(key, _)| prefix_of(key));
    }

    /// Moves the source at `place`, which has gone on, to where it belongs among those behind it.
    #[inline]
    fn settle(&mut self, place: usize) {
        let source = self.order[place];
        let Some(&next) = self.order.get(place + 1) else { return };
        if self.compare(source, next).is_lt() {
            return;
        }
        let later = |&other: &usize| self.compare(other, source).is_lt();
        let passed = 1 + self.order[place + 2..].partition_point(later);
        self.order[place..=place + passed].rotate_left(1);
    }

    /// The entries of two sources that stand on one. No two entries have the same internal key.
    #[inline]
    fn compare(&self, a: usize, b: usize) -> Ordering {
        let forward = self.prefixes[a].cmp(&self.prefixes[b]).then_with(|| {
            match (self.sources[a].key(), self.sources[b].key()) {
                (Some(a), Some(b)) => compare(a, b),
                _ => Ordering::Equal,
            }
        });
        match self.direction {
            Direction::Forward => forward,
            Direction::Reverse => forward.reverse(),
        }
    }
}

//! One level of a tree: which tables it has, and which of them a key or a range concerns.
//!
//! In level 0 tables overlap and are ordered from the newest to the oldest; each has only seqnos below those of the one
//! before it. In every other level tables do not overlap and are ordered by key.

use std::ops::Range;
use std::sync::Arc;

use super::files::TableFile;
use super::table::UpperBound;
use crate::storage::KeyRange;

/// A run of user keys with an end that may be inclusive, as that of a table is, or missing, as that of a range may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span<'a> {
    /// First key.
    pub(crate) start: &'a [u8],
    /// The last key when the flag is set, otherwise the first key beyond; `None`: there is no end.
    pub(crate) end: Option<(&'a [u8], bool)>,
}

impl<'a> Span<'a> {
    /// The keys of a table: of its entries and its range deletions.
    pub(crate) fn of(table: &'a TableFile) -> Self {
        let UpperBound { key, inclusive } = &table.properties().largest;
        Self { start: &table.properties().smallest, end: Some((key, *inclusive)) }
    }

    /// From the least to the greatest key of some tables; `None` when there are none.
    pub(crate) fn hull(tables: impl IntoIterator<Item = &'a Arc<TableFile>>) -> Option<Self> {
        let spans = tables.into_iter().map(|table| Self::of(table));
        spans.reduce(|a, b| Self { start: a.start.min(b.start), end: a.end.max(b.end) })
    }

    /// Whether all keys of it are before `key`.
    pub(crate) fn is_before(&self, key: &[u8]) -> bool {
        self.end.is_some_and(|(end, inclusive)| if inclusive { end < key } else { end <= key })
    }

    /// Whether a key may lie in both.
    pub(crate) fn overlaps(&self, other: Span<'_>) -> bool {
        !self.is_before(other.start) && !other.is_before(self.start)
    }
}

impl<'a> From<KeyRange<'a>> for Span<'a> {
    fn from(range: KeyRange<'a>) -> Self {
        Self { start: range.start, end: range.end.map(|end| (end, false)) }
    }
}

/// The tables of one level. See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Level {
    tables: Vec<Arc<TableFile>>,
    size_bytes: u64,
    /// What all greatest keys of the tables begin with.
    prefix: Vec<u8>,
    /// The next 8 bytes of the greatest key of each table: a search in an array, where otherwise each step would load a
    /// table and then its key.
    heads: Vec<u64>,
}

impl Level {
    /// Level `number` of these tables, in any order. Says what is wrong when they cannot be one level.
    pub(super) fn new(number: usize, mut tables: Vec<Arc<TableFile>>) -> Result<Self, String> {
        if number == 0 {
            tables.sort_by_key(|table| std::cmp::Reverse(table.properties().seqno_max));
        } else {
            tables.sort_by(|a, b| a.properties().smallest.cmp(&b.properties().smallest));
        }
        let fits = |a: &TableFile, b: &TableFile| match number {
            0 => a.properties().seqno_min > b.properties().seqno_max,
            _ => Span::of(a).is_before(&b.properties().smallest),
        };
        for pair in tables.windows(2) {
            if !fits(&pair[0], &pair[1]) {
                let (a, b) = (pair[0].number().0, pair[1].number().0);
                return Err(format!("tables {a} and {b} overlap in level {number}"));
            }
        }
        let size_bytes = tables.iter().map(|table| table.size_bytes()).sum();
        let (prefix, heads) = if number == 0 { Default::default() } else { heads(&tables) };
        Ok(Self { tables, size_bytes, prefix, heads })
    }

    /// All tables in their order.
    pub(crate) fn tables(&self) -> &[Arc<TableFile>] {
        &self.tables
    }

    /// Bytes of their files.
    pub(crate) const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// The one table that may say something about `key`. Not for level 0, where several may.
    #[inline]
    pub(crate) fn find(&self, key: &[u8]) -> Option<&Arc<TableFile>> {
        let table = self.tables.get(self.position(key))?;
        (*table.properties().smallest <= *key).then_some(table)
    }

    /// Where the first table is that does not lie before `key` altogether. Not for level 0.
    #[inline]
    pub(crate) fn position(&self, key: &[u8]) -> usize {
        debug_assert_eq!(self.heads.len(), self.tables.len(), "level 0 is not ordered by key");
        let shared = self.prefix.len().min(key.len());
        match key[..shared].cmp(&self.prefix) {
            std::cmp::Ordering::Less => return 0,
            std::cmp::Ordering::Greater => return self.tables.len(),
            std::cmp::Ordering::Equal => {}
        }
        let head = head(&key[shared..]);
        let from = self.heads.partition_point(|&other| other < head);
        let alike = self.heads[from..].partition_point(|&other| other == head);
        let alike = &self.tables[from..from + alike];
        from + alike.partition_point(|table| Span::of(table).is_before(key))
    }

    /// Where the tables are that may hold keys of `span`. Not for level 0.
    pub(crate) fn range(&self, span: Span<'_>) -> Range<usize> {
        let start = self.position(span.start);
        let reached = |table: &Arc<TableFile>| !span.is_before(&table.properties().smallest);
        start..start + self.tables[start..].partition_point(reached)
    }

    /// The tables that may hold keys of `span`. Not for level 0.
    pub(crate) fn overlapping(&self, span: Span<'_>) -> &[Arc<TableFile>] {
        &self.tables[self.range(span)]
    }
}

/// What all greatest keys begin with, and the next 8 bytes of each.
fn heads(tables: &[Arc<TableFile>]) -> (Vec<u8>, Vec<u64>) {
    let keys = || tables.iter().map(|table| &table.properties().largest.key[..]);
    let (Some(first), Some(last)) = (keys().next(), keys().next_back()) else {
        return Default::default();
    };
    // They are sorted: what the first and the last share, all share.
    let shared = first.iter().zip(last).take_while(|(a, b)| a == b).count();
    (first[..shared].to_vec(), keys().map(|key| head(&key[shared..])).collect())
}

/// Orders as the bytes do, as far as it goes.
fn head(bytes: &[u8]) -> u64 {
    let mut head = [0; 8];
    let length = bytes.len().min(8);
    head[..length].copy_from_slice(&bytes[..length]);
    u64::from_be_bytes(head)
}

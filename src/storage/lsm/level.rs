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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::Seqno;
    use crate::storage::lsm::cache::BlockCache;
    use crate::storage::lsm::files::{FileNumber, TableDirectory};
    use crate::storage::lsm::open_files::OpenFiles;
    use crate::storage::lsm::table::{Properties, TableMetadata, TableUid};
    use crate::util::fs::sim::SimFileSystem;

    fn table(number: u64, smallest: &[u8], largest: &[u8], inclusive: bool) -> Arc<TableFile> {
        let fs = Arc::new(SimFileSystem::new(1));
        let directory =
            TableDirectory::new(OpenFiles::new(fs, 8), "/".into(), BlockCache::new(0), 1);
        let properties = Properties {
            seqno_min: Seqno(number),
            seqno_max: Seqno(number),
            smallest: smallest.to_vec(),
            largest: UpperBound { key: largest.to_vec(), inclusive },
            ..Properties::default()
        };
        let metadata = TableMetadata { uid: TableUid(number), size_bytes: 1, properties };
        TableFile::new(directory, FileNumber(number), metadata)
    }

    fn numbers(tables: &[Arc<TableFile>]) -> Vec<u64> {
        tables.iter().map(|table| table.number().0).collect()
    }

    #[test]
    fn level_zero_is_ordered_from_the_newest_and_other_levels_by_key() {
        let tables = || vec![table(1, b"m", b"z", true), table(2, b"a", b"c", true)];
        assert_eq!(numbers(Level::new(0, tables()).expect("fits").tables()), [2, 1]);
        assert_eq!(numbers(Level::new(1, tables()).expect("fits").tables()), [2, 1]);
        let tables = vec![table(2, b"m", b"z", true), table(1, b"a", b"m", true)];
        assert!(Level::new(0, tables.clone()).is_ok(), "tables of level 0 may overlap");
        let refused = Level::new(1, tables).expect_err("both have m");
        assert_eq!(refused, "tables 1 and 2 overlap in level 1");
        let tables = vec![table(2, b"m", b"z", true), table(1, b"a", b"m", false)];
        assert!(Level::new(1, tables).is_ok(), "only the later one has m");
    }

    /// Borders of tables that do not overlap: from each key to the next or to before it, and sometimes none.
    fn level(keys: &[Vec<u8>], kinds: &[u8]) -> Level {
        let pairs = keys.windows(2).zip(kinds).enumerate();
        let tables = pairs.filter_map(|(index, (pair, kind))| {
            let (number, start, end) = (index as u64, &pair[0], &pair[1]);
            match kind {
                0 => None,
                1 => Some(table(number, start, end, false)),
                _ => Some(table(number, start, start, true)),
            }
        });
        Level::new(3, tables.collect()).expect("they do not overlap")
    }

    /// Keys that share long prefixes, and differ in length, and in zeros.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        let tail = proptest::collection::vec(prop_oneof![Just(0), Just(1), Just(255)], 0..12);
        (proptest::bool::weighted(0.9), tail).prop_map(|(shares, tail)| {
            let prefix: &[u8] = if shares { b"a long prefix" } else { b"" };
            [prefix, &tail].concat()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn what_a_key_or_a_range_concerns_is_found_as_by_asking_every_table(
            keys in proptest::collection::btree_set(key(), 0..12),
            kinds in proptest::collection::vec(0..3u8, 12),
            wanted in key(),
            end in proptest::option::of(key()),
        ) {
            let keys: Vec<_> = keys.into_iter().collect();
            let level = level(&keys, &kinds);
            let holds = |table: &&Arc<TableFile>| {
                let span = Span::of(table);
                span.start <= &wanted[..] && !span.is_before(&wanted)
            };
            let found = level.find(&wanted).map(|table| table.number());
            prop_assert_eq!(found, level.tables().iter().find(holds).map(|table| table.number()));

            let span = Span::from(KeyRange::new(&wanted, end.as_deref()));
            prop_assume!(end.as_ref().is_none_or(|end| wanted < *end));
            let overlaps = |table: &&Arc<TableFile>| Span::of(table).overlaps(span);
            let expected: Vec<_> = level.tables().iter().filter(overlaps).cloned().collect();
            prop_assert_eq!(numbers(level.overlapping(span)), numbers(&expected));
        }
    }
}

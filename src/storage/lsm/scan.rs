//! Scans: the entries of a range at one moment, in order, in either direction.
//!
//! Forwards, the newest version of a key that the moment sees comes first, and the older ones are skipped. Backwards it
//! comes last, so that versions are copied until the next key shows which was the newest. A memtable, which may have
//! thousands of a key, shows one of them ([`MemtableCursor::seen_at`]); a table has hardly more.

use std::sync::Arc;

use super::key::Kind;
use super::level::Span;
use super::memtable::{MemtableCursor, Moment, Runs};
use super::merge::{LevelCursor, Merge, Source};
use super::read::is_visible;
use super::table::{Access, Table};
use super::tree::Tree;
use super::version::Version;
use crate::storage::lsm::key::InternalEntry;
use crate::storage::{Direction, EntryRef, KeyRange, Result, Scan, Seqno};
use crate::util::time::Timestamp;

/// The range deletions of one source.
enum Deletions {
    Memtable(Runs),
    Table(Arc<Table>),
}

impl Deletions {
    fn newest_covering(&self, key: &[u8], at: Seqno) -> Option<Seqno> {
        match self {
            Self::Memtable(runs) => {
                runs.iter().filter_map(|run| run.fragments.newest_covering(key, at)).max()
            }
            Self::Table(table) => table.range_deletions().newest_covering(key, at),
        }
    }
}

/// A running scan. Keeps `G` as long as it lives: what keeps the engine open.
pub(super) struct TreeScan<G> {
    merge: Option<Merge>,
    deletions: Vec<Deletions>,
    moment: Moment,
    direction: Direction,
    /// Forwards: the entry that the merge stands on was handed out.
    is_out: bool,
    /// The key whose versions are being skipped or compared.
    key: Vec<u8>,
    /// Backwards: the newest version of it so far.
    value: Vec<u8>,
    expires_at: Option<Timestamp>,
    /// Its tables may be opened again at any step, so their files must be there.
    _version: Arc<Version>,
    _guard: G,
}

impl<G> TreeScan<G> {
    /// Over the entries of `range` in `tree` at `moment`.
    pub(super) fn new(
        tree: &Tree,
        moment: Moment,
        range: KeyRange<'_>,
        direction: Direction,
        guard: G,
    ) -> Result<Self> {
        let (merge, deletions) = if range.is_empty() {
            (None, Vec::new())
        } else {
            let (sources, deletions) = sources(tree, range, Some(moment.seqno))?;
            (Some(Merge::start(sources, direction)?), deletions)
        };
        Ok(Self {
            merge,
            deletions,
            moment,
            direction,
            is_out: false,
            key: Vec::new(),
            value: Vec::new(),
            expires_at: None,
            _version: Arc::clone(&tree.version),
            _guard: guard,
        })
    }

    fn forward(&mut self) -> Result<bool> {
        let Some(merge) = &mut self.merge else { return Ok(false) };
        if std::mem::take(&mut self.is_out) {
            merge.skip_key(&mut self.key)?;
        }
        while let Some(entry) = merge.entry() {
            if entry.seqno > self.moment.seqno {
                merge.advance()?;
            } else if is_shown(&entry, &self.deletions, self.moment) {
                self.is_out = true;
                return Ok(true);
            } else {
                merge.skip_key(&mut self.key)?;
            }
        }
        Ok(false)
    }

    fn reverse(&mut self) -> Result<bool> {
        let Some(merge) = &mut self.merge else { return Ok(false) };
        while let Some(entry) = merge.entry() {
            self.key.clear();
            self.key.extend_from_slice(entry.key);
            let mut shown = false;
            while let Some(entry) = merge.entry().filter(|entry| entry.key == self.key) {
                if entry.seqno <= self.moment.seqno {
                    shown = is_shown(&entry, &self.deletions, self.moment);
                    if shown {
                        self.value.clear();
                        self.value.extend_from_slice(entry.value);
                        self.expires_at = entry.expires_at;
                    }
                }
                merge.advance()?;
            }
            if shown {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl<G: Send> Scan for TreeScan<G> {
    fn next(&mut self) -> Result<Option<EntryRef<'_>>> {
        let there = match self.direction {
            Direction::Forward => self.forward(),
            Direction::Reverse => self.reverse(),
        };
        match there {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => {
                self.merge = None;
                return Err(error);
            }
        }
        if self.direction == Direction::Reverse {
            let Self { key, value, expires_at, .. } = self;
            return Ok(Some(EntryRef { key, value, expires_at: *expires_at }));
        }
        let entry = self.merge.as_ref().and_then(Merge::entry);
        Ok(entry.map(|InternalEntry { key, value, expires_at, .. }| EntryRef {
            key,
            value,
            expires_at,
        }))
    }
}

#[inline]
fn is_shown(entry: &InternalEntry<'_>, deletions: &[Deletions], moment: Moment) -> bool {
    if entry.kind == Kind::Delete {
        return false;
    }
    let covering = |deletions: &Deletions| deletions.newest_covering(entry.key, moment.seqno);
    is_visible(entry, deletions.iter().filter_map(covering).max(), moment)
}

/// Every entry of a tree, in order, whoever may see it. The tree must live for as long.
pub(super) fn merge_of(tree: &Tree) -> Result<Merge> {
    let (sources, _) = sources(tree, KeyRange::ALL, None)?;
    Merge::start(sources, Direction::Forward)
}

/// What has entries in `range`, and the range deletions that may lie over them. `at`: of memtables only what a read at it
/// sees, the newest version of each key.
fn sources(
    tree: &Tree,
    range: KeyRange<'_>,
    at: Option<Seqno>,
) -> Result<(Vec<Source>, Vec<Deletions>)> {
    let (mut sources, mut deletions) = (Vec::new(), Vec::new());
    for memtable in tree.memtables() {
        let runs = memtable.range_deletions();
        if !runs.is_empty() {
            deletions.push(Deletions::Memtable(runs));
        }
        let cursor = MemtableCursor::new(memtable.clone(), range).seen_at(at);
        sources.push(Source::Memtable(cursor));
    }
    let span = Span::from(range);
    let (top, deeper) = tree.version.levels().split_first().expect("there are levels");
    for file in top.tables().iter().filter(|file| Span::of(file).overlaps(span)) {
        let table = file.table()?;
        sources.push(Source::Table(Table::cursor(Arc::clone(table), Access::Scan, range)));
    }
    for level in deeper {
        sources.extend(LevelCursor::new(level, Access::Scan, range).map(Source::Level));
    }
    let overlapping = deeper.iter().flat_map(|level| level.overlapping(span));
    let top = top.tables().iter().filter(|file| Span::of(file).overlaps(span));
    for file in top.chain(overlapping).filter(|file| file.properties().range_deletions > 0) {
        deletions.push(Deletions::Table(Arc::clone(file.table()?)));
    }
    Ok((sources, deletions))
}

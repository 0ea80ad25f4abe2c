//! Point reads: ask from the newest to the oldest, stop at the first answer.
//!
//! Of one key, everything in a memtable or level is newer than everything further down, so that the first entry found is
//! the newest, and a range deletion that covers the key hides all that lies below the place where it was found.

use super::files::TableFile;
use super::key::{InternalEntry, KeyHash, Kind};
use super::level::Span;
use super::memtable::{Memtable, Moment};
use super::tree::Tree;
use crate::storage::{EntryRef, Result, Seqno};

/// Hands `visit` the entry under `key` at `moment`; returns whether there is one.
pub(super) fn get(
    tree: &Tree,
    moment: Moment,
    key: &[u8],
    visit: &mut dyn FnMut(EntryRef<'_>),
) -> Result<bool> {
    let mut lookup = Lookup { key, hash: KeyHash::of(key), moment, visit };
    for memtable in tree.memtables() {
        if let Some(answer) = lookup.ask_memtable(memtable) {
            return Ok(answer);
        }
    }
    let (top, deeper) = tree.version.levels().split_first().expect("there are levels");
    for table in top.tables() {
        let span = Span::of(table);
        if span.start <= key
            && !span.is_before(key)
            && let Some(answer) = lookup.ask_table(table)?
        {
            return Ok(answer);
        }
    }
    for level in deeper {
        if let Some(table) = level.find(key)
            && let Some(answer) = lookup.ask_table(table)?
        {
            return Ok(answer);
        }
    }
    Ok(false)
}

/// Whether a read at `clock` sees the entry, when `covered` is the newest range deletion over it.
#[inline]
pub(super) fn is_visible(
    entry: &InternalEntry<'_>,
    covered: Option<Seqno>,
    moment: Moment,
) -> bool {
    entry.kind != Kind::Delete
        && covered.is_none_or(|deletion| deletion < entry.seqno)
        && entry.expires_at.is_none_or(|at| at > moment.clock)
}

struct Lookup<'a> {
    key: &'a [u8],
    hash: KeyHash,
    moment: Moment,
    visit: &'a mut dyn FnMut(EntryRef<'_>),
}

impl Lookup<'_> {
    /// `None`: ask further down.
    #[inline]
    fn ask_memtable(&mut self, memtable: &Memtable) -> Option<bool> {
        let covered = memtable.newest_covering(self.key, self.moment.seqno);
        let mut answer = covered.map(|_| false);
        let (key, hash, at) = (self.key, self.hash, self.moment.seqno);
        memtable.get(key, hash, at, |entry| answer = Some(self.answer(&entry, covered)));
        answer
    }

    #[inline]
    fn ask_table(&mut self, file: &TableFile) -> Result<Option<bool>> {
        let table = file.table()?;
        let covered = table.range_deletions().newest_covering(self.key, self.moment.seqno);
        let mut answer = covered.map(|_| false);
        let (key, hash, at) = (self.key, self.hash, self.moment.seqno);
        table.get(key, hash, at, |entry| answer = Some(self.answer(&entry, covered)))?;
        Ok(answer)
    }

    fn answer(&mut self, entry: &InternalEntry<'_>, covered: Option<Seqno>) -> bool {
        let visible = is_visible(entry, covered, self.moment);
        if visible {
            let InternalEntry { key, value, expires_at, .. } = *entry;
            (self.visit)(EntryRef { key, value, expires_at });
        }
        visible
    }
}

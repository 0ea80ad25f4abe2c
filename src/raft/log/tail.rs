//! The newest entries of a group, kept in memory: followers that keep up and the state machine read nothing from disk.
//!
//! Invariant: they are the last ones of the log, without a gap. An entry shares the memory of the message or the record
//! that it came in; its size counts what it needs of that.

use std::collections::VecDeque;

use crate::raft::encoding::entry_bytes;
use crate::raft::types::Entry;

#[derive(Debug, Default)]
pub(super) struct Tail {
    entries: VecDeque<Entry>,
    bytes: usize,
}

/// What an entry takes in memory.
fn size(entry: &Entry) -> usize {
    size_of::<Entry>() + entry_bytes(entry)
}

impl Tail {
    /// What the entries take in memory.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Index of the first one; `None`: there is none.
    pub(super) fn first(&self) -> Option<u64> {
        Some(self.entries.front()?.log_id.index)
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.bytes += size(&entry);
        self.entries.push_back(entry);
    }

    /// Those from `index` on.
    pub(super) fn from(&self, index: u64) -> impl Iterator<Item = &Entry> + '_ {
        let before = self.first().map_or(0, |first| index.saturating_sub(first));
        let before = usize::try_from(before).unwrap_or(usize::MAX).min(self.entries.len());
        self.entries.range(before..)
    }

    pub(super) fn truncate(&mut self, from: u64) {
        while let Some(entry) = self.entries.pop_back_if(|entry| entry.log_id.index >= from) {
            self.bytes -= size(&entry);
        }
        self.trim();
    }

    pub(super) fn purge(&mut self, first: u64) {
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.log_id.index < first) {
            self.bytes -= size(&entry);
        }
        self.trim();
    }

    /// Lets go of the oldest ones, until `bytes` are free or there is none.
    pub(super) fn evict(&mut self, bytes: usize) {
        let target = self.bytes.saturating_sub(bytes);
        while self.bytes > target
            && let Some(entry) = self.entries.pop_front()
        {
            self.bytes -= size(&entry);
        }
        self.trim();
    }

    /// Gives back the memory of what is gone.
    fn trim(&mut self) {
        if self.entries.capacity() > 4 * self.entries.len() + 64 {
            self.entries.shrink_to(2 * self.entries.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::log::tests::entry;

    fn tail(indexes: std::ops::Range<u64>) -> Tail {
        let mut tail = Tail::default();
        indexes.for_each(|index| tail.push(entry(1, index, 100)));
        tail
    }

    fn indexes(tail: &Tail, from: u64) -> Vec<u64> {
        tail.from(from).map(|entry| entry.log_id.index).collect()
    }

    #[test]
    fn entries_go_at_both_ends_and_their_bytes_with_them() {
        let mut tail = tail(5..15);
        let each = tail.bytes() / 10;
        assert_eq!(indexes(&tail, 13), [13, 14]);
        assert_eq!(indexes(&tail, 0).len(), 10);
        assert_eq!(indexes(&tail, 15), [0; 0]);
        tail.truncate(12);
        tail.purge(7);
        assert_eq!((indexes(&tail, 0), tail.bytes()), ((7..12).collect(), 5 * each));
        tail.evict(each + 1);
        assert_eq!((tail.first(), tail.bytes()), (Some(9), 3 * each));
        tail.evict(usize::MAX);
        assert_eq!((tail.first(), tail.bytes()), (None, 0));
        assert_eq!(indexes(&tail, 3), [0; 0]);
    }
}

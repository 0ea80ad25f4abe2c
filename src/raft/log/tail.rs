//! The newest entries of a group, kept in memory: followers that keep up and the state machine read nothing from disk.
//!
//! Invariant: they are the last ones of the log, without a gap. An entry has its memory to itself: the message that it came
//! in may be ten thousand times as large, with entries of other groups that are long gone.

use std::collections::VecDeque;

use bytes::Bytes;
use openraft::EntryPayload;

use crate::command::Proposal;
use crate::raft::encoding::entry_bytes;
use crate::raft::types::Entry;

#[derive(Debug, Default)]
pub(super) struct Tail {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Calls of [`Tail::look`] since the last entry came.
    quiet_looks: u32,
}

/// How often a tail is looked at before it is taken for idle.
pub(super) const QUIET_LOOKS: u32 = 10;

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

    pub(super) fn push(&mut self, mut entry: Entry) {
        if let EntryPayload::Normal(proposal) = &mut entry.payload {
            *proposal = Proposal::from_bytes(Bytes::copy_from_slice(proposal.bytes()));
        }
        self.bytes += size(&entry);
        self.entries.push_back(entry);
        self.quiet_looks = 0;
    }

    /// Lets go of all entries when this is the call number [`QUIET_LOOKS`] since the last one came: who has not got them by then was away, and
    /// may read the disk.
    pub(super) fn look(&mut self) {
        self.quiet_looks = self.quiet_looks.saturating_add(1);
        if self.quiet_looks >= QUIET_LOOKS {
            *self = Self { quiet_looks: self.quiet_looks, ..Self::default() };
        }
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

    #[test]
    fn an_entry_keeps_nothing_of_the_message_it_came_in() {
        let message = Bytes::from(vec![7; 1 << 20]);
        let (part, payload) = (message.slice(1000..1100), EntryPayload::Normal);
        let mut entry = entry(1, 5, 0);
        entry.payload = payload(Proposal::from_bytes(part.clone()));
        let mut tail = Tail::default();
        tail.push(entry);
        let kept = tail.from(5).next().map(|entry| entry.payload.clone());
        assert_eq!(kept, Some(payload(Proposal::from_bytes(part))));
        assert!(message.is_unique(), "the entry holds on to a megabyte");
    }

    #[test]
    fn entries_go_when_no_more_come() {
        let mut tail = tail(5..15);
        (1..QUIET_LOOKS).for_each(|_| tail.look());
        tail.push(entry(1, 15, 100));
        (1..QUIET_LOOKS).for_each(|_| tail.look());
        assert_eq!(indexes(&tail, 0).len(), 11);
        tail.look();
        assert_eq!((indexes(&tail, 0), tail.bytes()), (vec![], 0));
        tail.look();
        tail.push(entry(1, 16, 100));
        assert_eq!(indexes(&tail, 0), [16]);
    }
}

//! A memtable: the newest writes of an engine, in memory, in the order of internal keys.
//!
//! One writer at a time (the engine's lock of writers), any number of readers without a lock. What readers may see is
//! said by [`Memtable::moment`]: the seqno and the clock of the newest batch that was **published**, as one pair. The
//! pair belongs to the memtable and not to the engine, so that whoever holds a memtable that was sealed meanwhile reads
//! the moment of its last batch, and never a clock whose batch lies in the next memtable.
//!
//! Invariants:
//! * No two entries have the same key and seqno.
//! * Entries of a batch are inserted before the batch is published; those above the published seqno are not read.

mod arena;
mod cursor;
mod deletions;
mod index;
mod list;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

pub(super) use self::cursor::MemtableCursor;
use self::deletions::Deletions;
pub(super) use self::deletions::Runs;
pub(super) use self::list::prefix_of;
use self::list::{Heads, Inserted, List};
pub(super) use super::compaction::rules::Moment;
use super::key::{InternalEntry, KeyHash, Kind, Ordinal};
use crate::storage::{Operation, RESERVED_PREFIX, Seqno, WriteBatch};
use crate::util::interleave;
use crate::util::time::Timestamp;

/// Figures of a memtable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Entries of all kinds.
    pub(super) entries: u64,
    /// Range deletions.
    pub(super) range_deletions: u64,
    /// Keys whose newest entry is a value, without reserved ones.
    pub(super) keys: u64,
    /// Bytes of them and of those values.
    pub(super) key_value_bytes: u64,
    /// Keys that were deleted without having had a value here, without reserved ones: what may hide a key elsewhere.
    pub(super) deletions: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Memtable {
    list: List,
    deletions: Deletions,
    // Written by the one writer.
    bytes: AtomicUsize,
    used_bytes: AtomicUsize,
    counts: [AtomicU64; 5],
    /// Earliest expiry, and the latest plus one; `u64::MAX` and 0 when nothing expires.
    earliest_expiry: AtomicU64,
    latest_expiry: AtomicU64,
    /// Odd while `seqno` and `clock` change.
    turn: AtomicU64,
    seqno: AtomicU64,
    clock: AtomicU64,
}

impl Memtable {
    /// An empty one that goes on after `moment`.
    pub(super) fn new(moment: Moment) -> Self {
        Self::with_heads(moment, Heads::default())
    }

    /// An empty one that goes on after this one, and expects keys like those in it.
    pub(super) fn next(&self) -> Self {
        Self::with_heads(self.moment(), self.list.suited_heads())
    }

    fn with_heads(moment: Moment, heads: Heads) -> Self {
        Self {
            list: List::new(heads),
            deletions: Deletions::new(),
            bytes: AtomicUsize::new(0),
            used_bytes: AtomicUsize::new(0),
            counts: Default::default(),
            earliest_expiry: AtomicU64::new(u64::MAX),
            latest_expiry: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            seqno: AtomicU64::new(moment.seqno.0),
            clock: AtomicU64::new(moment.clock.as_millis()),
        }
    }

    /// Inserts the operations of a batch, the first of them under the seqno `first`, and publishes them with the batch's
    /// clock. One caller at a time. Returns the moment after it: a batch without operations takes one seqno as well.
    pub(super) fn apply(&self, first: Seqno, batch: &WriteBatch) -> Moment {
        let mut seqno = first;
        for operation in batch.operations() {
            match operation {
                Operation::Put { key, value, expires_at } => {
                    self.insert(&InternalEntry::put(key, seqno, value, expires_at));
                }
                Operation::Delete { key } => self.insert(&InternalEntry::delete(key, seqno)),
                Operation::DeleteRange { start, end } => self.delete_range(start, end, seqno),
            }
            seqno.0 += 1;
            interleave::at("memtable");
        }
        let last = Seqno(seqno.0.max(first.0 + 1) - 1);
        let clock = self.moment().clock.max(batch.clock());
        let moment = Moment { seqno: last, clock };
        self.publish(moment);
        moment
    }

    /// The newest published moment.
    #[inline]
    pub(super) fn moment(&self) -> Moment {
        for spins in 0u32.. {
            let before = self.turn.load(Ordering::Acquire);
            interleave::at("memtable");
            let seqno = self.seqno.load(Ordering::Relaxed);
            interleave::at("memtable");
            let clock = self.clock.load(Ordering::Relaxed);
            // The loads above stay above.
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.turn.load(Ordering::Relaxed) == before {
                return Moment { seqno: Seqno(seqno), clock: Timestamp::from_millis(clock) };
            }
            // The writer is between two stores; only if it lost its processor there, this takes longer.
            if spins > 64 {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
        unreachable!("a writer publishes sooner")
    }

    /// Hands `visit` the newest entry of `key` that a read at `at` sees, whatever its kind; returns whether there is
    /// one. Range deletions are not applied.
    #[inline]
    pub(super) fn get(
        &self,
        key: &[u8],
        hash: KeyHash,
        at: Seqno,
        visit: impl FnOnce(InternalEntry<'_>),
    ) -> bool {
        let Some(node) = self.list.find(key, hash, Ordinal::seek(at)) else { return false };
        visit(self.list.entry(node));
        true
    }

    /// The newest range deletion that covers `key` and that a read at `at` sees.
    #[inline]
    pub(super) fn newest_covering(&self, key: &[u8], at: Seqno) -> Option<Seqno> {
        self.deletions.newest_covering(key, at)
    }

    /// The range deletions now.
    pub(super) fn range_deletions(&self) -> Runs {
        self.deletions.runs()
    }

    /// Whether there is neither entry nor range deletion.
    pub(super) fn is_empty(&self) -> bool {
        let counts = self.counts();
        counts.entries == 0 && counts.range_deletions == 0
    }

    /// Memory it takes, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Memory that its entries and range deletions take: what says whether it is full.
    pub(super) fn used_bytes(&self) -> usize {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// The figures now.
    pub(super) fn counts(&self) -> Counts {
        let [entries, range_deletions, keys, key_value_bytes, deletions] =
            self.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        Counts { entries, range_deletions, keys, key_value_bytes, deletions }
    }

    /// The earliest and the latest expiry of its entries.
    pub(super) fn expiries(&self) -> Option<(Timestamp, Timestamp)> {
        let latest = self.latest_expiry.load(Ordering::Relaxed).checked_sub(1)?;
        let earliest = self.earliest_expiry.load(Ordering::Relaxed);
        Some((Timestamp::from_millis(earliest), Timestamp::from_millis(latest)))
    }

    fn insert(&self, entry: &InternalEntry<'_>) {
        let hash = KeyHash::of(entry.key);
        let Inserted { allocated_bytes, used_bytes, replaced } = self.list.insert(entry, hash);
        self.note_bytes(allocated_bytes, used_bytes);
        let [entries, ..] = &self.counts;
        add(entries, 1);
        if entry.key.first() != Some(&RESERVED_PREFIX) {
            self.count(entry, replaced);
        }
        if let Some(expires_at) = entry.expires_at.map(Timestamp::as_millis) {
            self.earliest_expiry.fetch_min(expires_at, Ordering::Relaxed);
            self.latest_expiry.fetch_max(expires_at.saturating_add(1), Ordering::Relaxed);
        }
    }

    fn count(&self, entry: &InternalEntry<'_>, replaced: Option<InternalEntry<'_>>) {
        let [.., keys, key_value_bytes, deletions] = &self.counts;
        let bytes = |entry: &InternalEntry<'_>| (entry.key.len() + entry.value.len()) as u64;
        if let Some(replaced) = replaced.filter(|replaced| replaced.kind != Kind::Delete) {
            subtract(keys, 1);
            subtract(key_value_bytes, bytes(&replaced));
        } else if replaced.is_none() && entry.kind == Kind::Delete {
            add(deletions, 1);
        }
        if entry.kind != Kind::Delete {
            add(keys, 1);
            add(key_value_bytes, bytes(entry));
        }
    }

    fn delete_range(&self, start: &[u8], end: &[u8], seqno: Seqno) {
        if start >= end {
            return;
        }
        self.deletions.add(start, end, seqno);
        let [_, range_deletions, ..] = &self.counts;
        add(range_deletions, 1);
        self.used_bytes.fetch_add(start.len() + end.len() + 64, Ordering::Relaxed);
        self.bytes.fetch_add(2 * (start.len() + end.len() + 64), Ordering::Relaxed);
    }

    fn note_bytes(&self, allocated: usize, used: usize) {
        let [_, range_deletions, ..] = &self.counts;
        let any = range_deletions.load(Ordering::Relaxed) > 0;
        let deletions = if any { self.deletions.bytes() } else { 0 };
        self.bytes.store(allocated + deletions, Ordering::Relaxed);
        self.used_bytes.store(used + deletions, Ordering::Relaxed);
    }

    fn publish(&self, moment: Moment) {
        let turn = self.turn.load(Ordering::Relaxed);
        self.turn.store(turn + 1, Ordering::Relaxed);
        // The stores below stay below.
        fence(Ordering::Release);
        interleave::at("memtable");
        self.seqno.store(moment.seqno.0, Ordering::Relaxed);
        interleave::at("memtable");
        self.clock.store(moment.clock.as_millis(), Ordering::Relaxed);
        self.turn.store(turn + 2, Ordering::Release);
    }
}

/// Only one thread writes these.
fn add(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed) + by, Ordering::Relaxed);
}

/// As [`add`].
fn subtract(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed) - by, Ordering::Relaxed);
}

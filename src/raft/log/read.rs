//! Reading entries: from the tail in memory, else record by record from the wal.
//!
//! What is read is decided under the group's lock (a [`Plan`]), and is what the log was at that moment; the disk is read
//! without it. A record that a purge has taken away meanwhile is not needed any more: the read is planned again. A record
//! whose entries were cut off meanwhile is still there.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use bytes::Bytes;

use super::group::GroupLog;
use super::record::{ENTRIES, RECORD_ENTRIES_MAX, decode_entries};
use super::{damage, io_error};
use crate::raft::blocking::blocking;
use crate::raft::encoding::entry_bytes;
use crate::raft::types::Entry;
use crate::wal::{self, Position};

/// Most bytes of entries that are read at once for a follower or the state machine, but for a single larger entry.
pub const READ_BYTES_MAX: usize = 1 << 20;

/// How much one read brings: the first entry always, then as long as both hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    entries: usize,
    bytes: usize,
}

impl Limit {
    /// All that is asked for.
    pub(super) const NONE: Self = Self { entries: usize::MAX, bytes: usize::MAX };
    /// A message to a follower; the number of entries is limited by who asks.
    pub(super) const MESSAGE: Self = Self { entries: usize::MAX, bytes: READ_BYTES_MAX };
    /// A step of a stream.
    pub(super) const STEP: Self = Self { entries: RECORD_ENTRIES_MAX, bytes: READ_BYTES_MAX };
}

/// What to read, decided at one moment.
struct Plan {
    /// Index of the first entry of it.
    first: u64,
    /// Records, with the index that each begins with and those of its entries that are wanted.
    records: Vec<(Position, u64, Range<u64>)>,
    /// What follows them, from memory.
    cached: Vec<Entry>,
}

/// Entries that were read, within a limit.
struct Taken {
    entries: Vec<Entry>,
    bytes: usize,
    limit: Limit,
}

impl Taken {
    const fn within(limit: Limit) -> Self {
        Self { entries: Vec::new(), bytes: 0, limit }
    }

    /// Whether `entry` was taken.
    fn push(&mut self, entry: Entry) -> bool {
        let bytes = self.bytes.saturating_add(entry_bytes(&entry));
        let full = self.entries.len() >= self.limit.entries || bytes > self.limit.bytes;
        if full && !self.entries.is_empty() {
            return false;
        }
        self.bytes = bytes;
        self.entries.push(entry);
        true
    }
}

impl GroupLog {
    /// The entries `range` of the log, or the first of them within `limit`. Those that are not in the log are left out.
    pub(super) fn read(&self, range: Range<u64>, limit: Limit) -> io::Result<Vec<Entry>> {
        loop {
            let plan = self.plan(&range, limit);
            let first = plan.first;
            let read = if plan.records.is_empty() {
                Ok(plan.cached)
            } else {
                blocking(|| self.carry_out(plan, limit))
            };
            return match read {
                Err(wal::Error::Invalid(_)) if self.state().index.first() > first => continue,
                read => read.map_err(io_error),
            };
        }
    }

    fn plan(&self, range: &Range<u64>, limit: Limit) -> Plan {
        let state = self.state();
        let (log, cached) = (state.index.range(), state.tail.first().unwrap_or(u64::MAX));
        let (first, end) = (range.start.max(log.start), range.end.min(log.end));
        let mut plan = Plan { first, records: Vec::new(), cached: Vec::new() };
        if first >= end {
            return plan;
        }
        let (mut bytes, mut entries) = (0u64, 0u64);
        for (span, of) in state.index.spans(first..end.min(cached)) {
            if bytes >= limit.bytes as u64 || entries >= limit.entries as u64 {
                return plan;
            }
            // A record of which not all is wanted may bring little.
            bytes += if of.start == span.first { span.bytes } else { 0 };
            entries += of.end - of.start;
            plan.records.push((span.position, span.first, of));
        }
        let mut taken = Taken::within(limit);
        for entry in state.tail.from(first) {
            if entry.log_id.index >= end || !taken.push(entry.clone()) {
                break;
            }
        }
        plan.cached = taken.entries;
        plan
    }

    fn carry_out(&self, plan: Plan, limit: Limit) -> wal::Result<Vec<Entry>> {
        let mut taken = Taken::within(limit);
        for (position, first, of) in plan.records {
            let (wanted, skipped) = (of.end - of.start, of.start - first);
            let entries = self.read_record(position, first, &of)?.into_iter();
            for (entry, _) in entries.skip(index_in(skipped)).zip(0..wanted) {
                if !taken.push(entry) {
                    return Ok(taken.entries);
                }
            }
        }
        for entry in plan.cached {
            if !taken.push(entry) {
                break;
            }
        }
        Ok(taken.entries)
    }

    /// The entries of a record that begins with `first` and has those of `of`.
    fn read_record(
        &self,
        position: Position,
        first: u64,
        of: &Range<u64>,
    ) -> wal::Result<Vec<Entry>> {
        let record = self.shared.wal.read(position)?;
        let refuse = |detail: &str| damage(self.shared.wal.dir(), position, self.group.id, detail);
        if record.owner != self.group.owner() || record.kind != ENTRIES {
            return Err(refuse("the record is not one with entries of the group"));
        }
        let entries = decode_entries(&Bytes::from(record.body));
        let entries = entries.map_err(|what| refuse(&format!("the record is no {what}")))?;
        let has = entries.first().is_some_and(|entry| entry.log_id.index == first)
            && entries.last().is_some_and(|entry| entry.log_id.index + 1 >= of.end);
        if !has {
            let Range { start, end } = of;
            return Err(refuse(&format!("the record does not have the entries {start} to {end}")));
        }
        Ok(entries)
    }

    /// Entries one by one, read in steps. After an error there is none.
    pub(super) fn steps(&self, range: Range<u64>) -> Steps {
        Steps { log: self.clone(), rest: range, step: VecDeque::new(), begun: false }
    }
}

/// A place in a record, which has no more than `usize::MAX` entries.
fn index_in(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// See [`GroupLog::steps`].
#[derive(Debug)]
pub(super) struct Steps {
    log: GroupLog,
    /// What was not read yet.
    rest: Range<u64>,
    step: VecDeque<Entry>,
    begun: bool,
}

impl Steps {
    fn read(&mut self) -> io::Result<()> {
        let read = self.log.read(self.rest.clone(), Limit::STEP)?;
        let (Some(first), Some(last)) = (read.first(), read.last()) else {
            self.rest = 0..0;
            return Ok(());
        };
        let (first, start) = (first.log_id.index, self.rest.start);
        if self.begun && first != start {
            let detail = format!("{}: entry {start} was purged while it was read", self.log.id());
            return Err(io::Error::new(io::ErrorKind::NotFound, detail));
        }
        self.begun = true;
        self.rest.start = last.log_id.index + 1;
        self.step = read.into();
        Ok(())
    }
}

impl Iterator for Steps {
    type Item = io::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.step.is_empty()
            && !self.rest.is_empty()
            && let Err(error) = self.read()
        {
            self.rest = 0..0;
            return Some(Err(error));
        }
        self.step.pop_front().map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::raft::log::tests::{append, entry, now, opened};
    use crate::raft::log::{GroupId, LogStore};
    use crate::util::fs::sim::SimFileSystem;

    const GROUP: GroupId = GroupId(1);

    /// A log with entries of these lengths, none, some or all of them in memory.
    fn logs(lengths: &[usize]) -> impl Iterator<Item = (LogStore, GroupLog)> {
        [0, 1 << 20, 1 << 30].into_iter().map(move |cache_bytes| {
            let store = opened(&Arc::new(SimFileSystem::new(1)), cache_bytes);
            let log = store.group(GROUP);
            let entries = (0..).zip(lengths).map(|(index, &length)| entry(1, index, length));
            drop(append(&log, entries.collect()).expect("appended"));
            (store, log)
        })
    }

    fn indexes(entries: &[Entry]) -> Vec<u64> {
        entries.iter().map(|entry| entry.log_id.index).collect()
    }

    #[test]
    fn one_read_brings_a_mebibyte_and_at_least_one_entry() {
        let lengths: Vec<_> = [200_000; 20].into_iter().chain([3 << 20, 10]).collect();
        for (_store, log) in logs(&lengths) {
            let read = |from| indexes(&log.read(from..u64::MAX, Limit::MESSAGE).expect("read"));
            assert_eq!(read(0), [0, 1, 2, 3, 4], "1 MiB and no more");
            assert_eq!(read(17), [17, 18, 19]);
            assert_eq!(read(20), [20], "a larger one comes alone");
            assert_eq!(read(21), [21]);
            assert_eq!(read(22), [0; 0]);
            let all = log.read(3..21, Limit::NONE).expect("read");
            assert_eq!(indexes(&all), (3..21).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_stream_holds_one_step_and_no_more() {
        for lengths in [vec![10; 2000], vec![50_000; 100]] {
            for (_store, log) in logs(&lengths) {
                let mut steps = log.steps(0..u64::MAX);
                let mut next = 0;
                while let Some(entry) = steps.next() {
                    assert_eq!(entry.expect("read").log_id.index, next);
                    next += 1;
                    let bytes: usize = steps.step.iter().map(entry_bytes).sum();
                    assert!(steps.step.len() < RECORD_ENTRIES_MAX && bytes <= READ_BYTES_MAX);
                }
                assert_eq!(next, lengths.len() as u64);
            }
        }
    }

    #[test]
    fn a_stream_ends_with_an_error_when_what_comes_next_was_purged() {
        for (_store, log) in logs(&[10; 1000]) {
            let mut steps = log.steps(5..900);
            assert_eq!(steps.next().expect("some").expect("read").log_id.index, 5);
            log.purge_upto(entry(1, 400, 0).log_id).expect("purged");
            let error = steps.find_map(Result::err).expect("a hole");
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
            assert!(steps.next().is_none());
            // What was purged before the first step is simply not there.
            let rest: io::Result<Vec<_>> = log.steps(5..403).collect();
            assert_eq!(indexes(&rest.expect("read")), [401, 402]);
        }
    }

    #[test]
    fn a_follower_is_sent_nothing_that_does_not_follow() {
        use openraft::storage::RaftLogReader as _;
        for (_store, mut log) in logs(&[10; 20]) {
            log.purge_upto(entry(1, 4, 0).log_id).expect("purged");
            let mut read =
                |from| indexes(&now(log.limited_get_log_entries(from, 9)).expect("read"));
            assert_eq!(read(4), [0; 0]);
            assert_eq!(read(5), [5, 6, 7, 8]);
            assert_eq!(read(9), [0; 0]);
        }
    }
}

//! Where the entries of a group are: which record has which, and who led when they were proposed. Pure, in memory, rebuilt
//! by replay; some 30 bytes for a record, nothing for an entry.
//!
//! Invariants: `first <= end`; the spans have rising indexes and positions, and the last begins before `end`; where there are
//! entries, `leaders` has a row for each change of the leader, the first at or before `first`. The spans reach down to
//! `first`, but for a replay that has not seen the end yet ([`Index::lacks`]).

use std::collections::VecDeque;
use std::ops::Range;

use crate::raft::types::{LeaderId, LogId};
use crate::wal::Position;

/// A record with entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// Index of the first entry in it. Those that were purged or cut off count as well: what of a span is in the log is
    /// what lies between `first` of the log and the next span.
    pub(super) first: u64,
    pub(super) position: Position,
    /// Bytes of its body.
    pub(super) bytes: u64,
}

/// From here on entries are of this leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reign {
    first: u64,
    leader: LeaderId,
}

/// See the [module](self).
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    first: u64,
    end: u64,
    spans: VecDeque<Span>,
    leaders: VecDeque<Reign>,
    /// Bytes of all spans.
    bytes: u64,
}

impl Index {
    /// An index without entries, the next of which is `first`.
    pub(super) fn beginning_at(first: u64) -> Self {
        Self { first, end: first, ..Self::default() }
    }

    /// An index of entries of which no record was seen.
    pub(super) fn unseen(range: Range<u64>) -> Self {
        Self { first: range.start, end: range.end, ..Self::default() }
    }

    /// Index of the first entry, or of the next if there is none.
    pub(super) const fn first(&self) -> u64 {
        self.first
    }

    /// Index of the next entry.
    pub(super) const fn end(&self) -> u64 {
        self.end
    }

    pub(super) const fn range(&self) -> Range<u64> {
        self.first..self.end
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.first == self.end
    }

    /// Bytes of the records that hold entries of the log.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The oldest record that is needed.
    pub(super) fn oldest(&self) -> Option<Position> {
        Some(self.spans.front()?.position)
    }

    /// The first index of which no record was seen, if there is one.
    pub(super) fn lacks(&self) -> Option<u64> {
        let seen = self.spans.front().map_or(self.end, |span| span.first);
        (self.first < seen).then_some(self.first)
    }

    /// Takes a record of entries, which begin at `end`.
    pub(super) fn append(
        &mut self,
        position: Position,
        bytes: u64,
        entries: impl Iterator<Item = LogId>,
    ) {
        self.spans.push_back(Span { first: self.end, position, bytes });
        self.bytes += bytes;
        for LogId { leader_id, index } in entries {
            assert_eq!(index, self.end, "entries follow each other");
            if self.leaders.back().is_none_or(|reign| reign.leader != leader_id) {
                self.leaders.push_back(Reign { first: index, leader: leader_id });
            }
            self.end = index + 1;
        }
    }

    /// Forgets the entries from `from` on.
    pub(super) fn truncate(&mut self, from: u64) {
        if from <= self.first {
            *self = Self::beginning_at(from);
            return;
        }
        self.end = self.end.min(from);
        while let Some(span) = self.spans.pop_back_if(|span| span.first >= from) {
            self.bytes -= span.bytes;
        }
        while self.leaders.pop_back_if(|reign| reign.first >= from).is_some() {}
    }

    /// Forgets the entries before `first`, which may be beyond the end.
    pub(super) fn purge(&mut self, first: u64) {
        if first >= self.end {
            *self = Self::beginning_at(first);
            return;
        }
        self.first = first;
        let gone = self.spans.partition_point(|span| span.first <= first).saturating_sub(1);
        self.bytes -= self.spans.drain(..gone).map(|span| span.bytes).sum::<u64>();
        let gone = self.leaders.partition_point(|reign| reign.first <= first).saturating_sub(1);
        self.leaders.drain(..gone);
    }

    /// The id of an entry of the log.
    pub(super) fn log_id(&self, index: u64) -> Option<LogId> {
        if !self.range().contains(&index) {
            return None;
        }
        let reign = self.leaders.partition_point(|reign| reign.first <= index).checked_sub(1)?;
        Some(LogId { leader_id: self.leaders[reign].leader, index })
    }

    /// The id of the last entry.
    pub(super) fn last_log_id(&self) -> Option<LogId> {
        self.log_id(self.end.checked_sub(1)?)
    }

    /// The id of the last entry of each leader in `range`, and so also that of its end.
    pub(super) fn key_log_ids(&self, range: Range<u64>) -> Vec<LogId> {
        let ends = self.leaders.iter().skip(1).map(|reign| reign.first);
        let ends = ends.filter(|end| (range.start + 1..range.end).contains(end));
        ends.chain([range.end]).filter_map(|end| self.log_id(end.checked_sub(1)?)).collect()
    }

    /// The record that has the entry `index` of the log.
    pub(super) fn position(&self, index: u64) -> Option<Position> {
        let (span, _) = self.spans(index..index.checked_add(1)?).next()?;
        Some(span.position)
    }

    /// The records that have the entries `range` of the log, each with those of them that it has.
    pub(super) fn spans(&self, range: Range<u64>) -> impl Iterator<Item = (Span, Range<u64>)> + '_ {
        let Range { start, end } = range;
        let (start, end) = (start.max(self.first), end.min(self.end));
        let at = self.spans.partition_point(|span| span.first <= start).saturating_sub(1);
        let spans = self.spans.range(at.min(self.spans.len())..);
        let nexts = self.spans.iter().skip(at + 1).map(|span| span.first).chain([self.end]);
        spans.zip(nexts).map_while(move |(span, next)| {
            let of = span.first.max(start)..next.min(end);
            (!of.is_empty()).then_some((*span, of))
        })
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId as _;

    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId { leader_id: LeaderId::new(term, 7), index }
    }

    fn at(number: u64) -> Position {
        Position::from_u64(number)
    }

    /// Records of three entries from index 3 to 11, of terms 1, 1 and 2, and 2 and 4.
    fn index() -> Index {
        let mut index = Index::beginning_at(3);
        index.append(at(10), 1, (3..6).map(|index| id(1, index)));
        index.append(at(20), 10, [id(1, 6), id(2, 7), id(2, 8)].into_iter());
        index.append(at(30), 100, [id(2, 9), id(4, 10), id(4, 11)].into_iter());
        index
    }

    fn spans(index: &Index, range: Range<u64>) -> Vec<(Position, Range<u64>)> {
        index.spans(range).map(|(span, of)| (span.position, of)).collect()
    }

    #[test]
    fn entries_are_found_in_their_records() {
        let index = index();
        assert_eq!(index.range(), 3..12);
        assert_eq!(spans(&index, 0..100), [(at(10), 3..6), (at(20), 6..9), (at(30), 9..12)]);
        assert_eq!(spans(&index, 5..7), [(at(10), 5..6), (at(20), 6..7)]);
        assert_eq!(spans(&index, 12..13), []);
        assert_eq!(spans(&index, 0..3), []);
        assert_eq!(index.position(8), Some(at(20)));
        assert_eq!((index.position(2), index.position(12)), (None, None));
    }

    #[test]
    fn leaders_are_known_without_reading() {
        let index = index();
        let ids: Vec<_> = (0..14).filter_map(|at| index.log_id(at)).collect();
        let terms = [1, 1, 1, 1, 2, 2, 2, 4, 4];
        assert_eq!(ids, (3..12).zip(terms).map(|(at, term)| id(term, at)).collect::<Vec<_>>());
        assert_eq!(index.key_log_ids(3..12), [id(1, 6), id(2, 9), id(4, 11)]);
        assert_eq!(index.key_log_ids(6..10), [id(1, 6), id(2, 9)]);
        assert_eq!(index.key_log_ids(7..8), [id(2, 7)]);
        assert_eq!(Index::default().key_log_ids(0..0), []);
    }

    #[test]
    fn what_is_cut_off_is_written_again_elsewhere() {
        let mut index = index();
        index.truncate(7);
        assert_eq!((index.range(), index.last_log_id()), (3..7, Some(id(1, 6))));
        assert_eq!(index.bytes(), 11, "a record of which something is left is needed");
        index.append(at(40), 1000, [id(5, 7)].into_iter());
        assert_eq!(spans(&index, 5..9), [(at(10), 5..6), (at(20), 6..7), (at(40), 7..8)]);
        assert_eq!(index.key_log_ids(3..8), [id(1, 6), id(5, 7)]);
        index.truncate(3);
        assert_eq!((index.range(), index.bytes(), index.oldest()), (3..3, 0, None));
        assert_eq!(index.last_log_id(), None);
    }

    #[test]
    fn what_is_purged_is_needed_no_more() {
        let mut index = index();
        index.purge(5);
        assert_eq!((index.range(), index.oldest()), (5..12, Some(at(10))));
        index.purge(7);
        assert_eq!((index.range(), index.oldest(), index.bytes()), (7..12, Some(at(20)), 110));
        assert_eq!(index.log_id(7), Some(id(2, 7)));
        assert_eq!(index.lacks(), None);
        index.purge(20);
        assert_eq!((index.range(), index.oldest(), index.bytes()), (20..20, None, 0));
    }
}

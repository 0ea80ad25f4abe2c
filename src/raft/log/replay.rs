//! A group, rebuilt from its records.
//!
//! What is seen is the end of what was written: records before some place are gone with their segments, and those after it
//! may speak of entries that were purged since. So an index begins with what the first record says, each further one must
//! fit what is known by then, and at the end all entries that the log claims must have been seen.

use std::ops::Range;

use super::index::Index;
use super::record::{HardState, Record};
use crate::raft::types::Entry;
use crate::wal::Position;

/// What the records of a group say so far.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub(super) hard: HardState,
    /// `None`: nothing was said about entries.
    index: Option<Index>,
    /// The newest state record.
    pub(super) state_at: Option<Position>,
    /// The newest record.
    pub(super) last: Option<Position>,
}

impl Replay {
    /// Takes the next record of the group, with a body of `bytes`. An error says why it cannot be the next.
    pub(super) fn take(
        &mut self,
        position: Position,
        record: Record,
        bytes: u64,
    ) -> Result<(), String> {
        self.last = Some(position);
        match record {
            Record::Entries(entries) => self.take_entries(position, &entries, bytes),
            Record::State(hard, indexes) => self.take_state(position, hard, indexes),
            Record::Truncate(from) => self.take_truncation(from),
            Record::Forget => {
                // Whatever comes next is of a group that begins anew.
                *self = Self { index: Some(Index::default()), last: self.last, ..Self::default() };
                Ok(())
            }
        }
    }

    fn take_state(
        &mut self,
        position: Position,
        hard: HardState,
        indexes: Range<u64>,
    ) -> Result<(), String> {
        let begun = self.state_at.replace(position).is_some();
        self.hard = hard;
        let Some(index) = &mut self.index else {
            self.index = Some(Index::unseen(indexes));
            return Ok(());
        };
        // A purge may go beyond the end, and then nothing is left; otherwise it changes nothing there.
        let fits = indexes.end == index.end() || (indexes.is_empty() && indexes.end > index.end());
        if !fits || (begun && indexes.start < index.first()) {
            return Err(format!(
                "a state of a log of the entries {} to {} after one of {} to {}",
                indexes.start,
                indexes.end,
                index.first(),
                index.end()
            ));
        }
        index.purge(indexes.start);
        Ok(())
    }

    fn take_truncation(&mut self, from: u64) -> Result<(), String> {
        let begun = self.state_at.is_some();
        let index = self.index.get_or_insert_with(|| Index::unseen(from..u64::MAX));
        if from >= index.end() || (begun && from < index.first()) {
            let Range { start, end } = index.range();
            return Err(format!(
                "entries are cut off from {from} on, of a log from {start} to {end}"
            ));
        }
        index.truncate(from);
        Ok(())
    }

    fn take_entries(
        &mut self,
        position: Position,
        entries: &[Entry],
        bytes: u64,
    ) -> Result<(), String> {
        let first = entries.first().map_or(0, |entry| entry.log_id.index);
        let index = self.index.get_or_insert_with(|| Index::beginning_at(first));
        if first != index.end() {
            let end = index.end();
            return Err(format!("entries from index {first} on, where those from {end} on belong"));
        }
        index.append(position, bytes, entries.iter().map(|entry| entry.log_id));
        Ok(())
    }

    /// The index, or the entry that is missing.
    pub(super) fn finish(&mut self) -> Result<Index, String> {
        let mut index = self.index.take().unwrap_or_default();
        if self.state_at.is_none() {
            // Nobody ever said that the log begins anywhere else.
            index.purge(0);
        }
        match index.lacks() {
            None => Ok(index),
            Some(first) => {
                Err(format!("the log begins with entry {first}, of which there is no record"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::log::tests::{entry, id};

    fn entries(range: Range<u64>) -> Record {
        Record::Entries(range.map(|index| entry(1, index, 10)).collect())
    }

    fn state(range: Range<u64>) -> Record {
        let purged = range.start.checked_sub(1).map(|last| id(1, last));
        Record::State(HardState { purged, ..HardState::default() }, range)
    }

    fn replayed(records: impl IntoIterator<Item = Record>) -> Result<Range<u64>, String> {
        let mut replay = Replay::default();
        for (position, record) in (1..).map(Position::from_u64).zip(records) {
            replay.take(position, record, 1)?;
        }
        Ok(replay.finish()?.range())
    }

    #[test]
    fn records_that_follow_each_other_make_a_log() {
        assert_eq!(replayed([]), Ok(0..0));
        assert_eq!(replayed([entries(0..3), entries(3..5)]), Ok(0..5));
        assert_eq!(replayed([entries(0..3), Record::Truncate(1), entries(1..4)]), Ok(0..4));
        assert_eq!(replayed([entries(0..9), state(4..9), entries(9..10)]), Ok(4..10));
        // A snapshot from elsewhere, behind the end.
        assert_eq!(replayed([entries(0..3), state(8..8), entries(8..9)]), Ok(8..9));
        assert_eq!(replayed([entries(0..3), Record::Forget, entries(0..1)]), Ok(0..1));
    }

    #[test]
    fn what_is_gone_in_front_of_the_first_record_was_purged_later() {
        assert_eq!(replayed([entries(5..7), state(6..7)]), Ok(6..7));
        assert_eq!(replayed([state(2..7), entries(7..9), state(7..9)]), Ok(7..9));
        let cut = [entries(5..7), Record::Truncate(3), entries(3..8), state(4..8)];
        assert_eq!(replayed(cut), Ok(4..8));
        let cut = [Record::Truncate(3), entries(3..8), state(4..8)];
        assert_eq!(replayed(cut), Ok(4..8));
        assert_eq!(replayed([Record::Truncate(0), entries(0..2)]), Ok(0..2));
    }

    #[test]
    fn records_that_are_missing_are_noticed() {
        let refused = |records: Vec<Record>| replayed(records).expect_err("refused");
        for (records, complaint) in [
            (vec![entries(1..3)], "begins with entry 0"),
            (vec![entries(0..3), entries(4..5)], "from index 4 on, where those from 3 on"),
            (vec![entries(0..3), entries(2..5)], "from index 2 on, where those from 3 on"),
            (vec![entries(5..7), state(4..7)], "begins with entry 4"),
            (vec![state(2..7), entries(7..9)], "begins with entry 2"),
            (vec![entries(0..5), state(2..7)], "of the entries 2 to 7 after one of 0 to 5"),
            (vec![entries(0..5), state(2..4)], "2 to 4 after one of 0 to 5"),
            (vec![entries(0..5), state(3..3)], "3 to 3 after one of 0 to 5"),
            (vec![entries(0..5), Record::Truncate(5)], "from 5 on, of a log from 0 to 5"),
            (vec![Record::Truncate(5)], "begins with entry 0"),
            (vec![Record::Truncate(5), entries(5..6), state(4..6)], "begins with entry 4"),
            (vec![entries(0..5), state(3..5), state(1..5)], "1 to 5 after one of 3 to 5"),
            (vec![entries(0..5), state(3..5), Record::Truncate(2)], "from 2 on, of a log from 3"),
            (vec![Record::Forget, entries(1..2)], "from index 1 on, where those from 0 on"),
        ] {
            let detail = refused(records);
            assert!(detail.contains(complaint), "{detail}");
        }
    }
}

//! A group, rebuilt from its records.
//!
//! What is seen is the end of what was written: records before some place are gone with their segments, and those after it
//! may speak of entries that were purged since. So an index begins with what the first record says, each further one must
//! fit what is known by then, and at the end all entries that the log claims must have been seen.

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
            Record::State(hard, indexes) => {
                self.hard = hard;
                self.state_at = Some(position);
                let Some(index) = &mut self.index else {
                    self.index = Some(Index::unseen(indexes));
                    return Ok(());
                };
                let (known, emptied) =
                    (index.end(), indexes.is_empty() && indexes.end >= index.end());
                if indexes.end != known && !emptied {
                    let end = indexes.end;
                    return Err(format!(
                        "a state of a log to index {end} after entries to {known}"
                    ));
                }
                index.purge(indexes.start);
                Ok(())
            }
            Record::Truncate(from) => {
                let index = self.index.get_or_insert_with(|| Index::beginning_at(from));
                if from > index.end() {
                    let end = index.end();
                    return Err(format!("entries are cut off from {from} on, of a log to {end}"));
                }
                index.truncate(from);
                Ok(())
            }
            Record::Forget => {
                // Whatever comes next is of a group that begins anew.
                *self = Self { index: Some(Index::default()), last: self.last, ..Self::default() };
                Ok(())
            }
        }
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
        if self.state_at.is_none() && !index.is_empty() {
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

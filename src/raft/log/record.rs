//! The records of a group: how they look in the wal. Pure: values in, bytes out.
//!
//! The owner of a record is its group. Its kind says what it is and in which form; a new form is a new kind, a number is
//! never used again. Numbers are varints; log id, vote, entry: see `raft/encoding.rs`.
//!
//! | kind | record | body |
//! |---|---|---|
//! | 16 | entries | one entry after the other, at least one, their indexes without a gap |
//! | 17 | state | vote (`0`, or `1` and the vote), committed (maybe a log id), purged (maybe a log id), first index of the log, index after its last, generation of the engine |
//! | 18 | truncate | first index that is cut off |
//! | 19 | forget | nothing: the group has nothing in the log any more |
//!
//! A state record holds everything of a group that is not in its entries, so that the newest one is all that must be kept.
//!
//! Worked example, state: a vote for replica 3 in term 2, committed, nothing committed, purged up to 2-3 at index 4, entries 5
//! to 8, generation 1: `01 02 03 01 | 00 | 01 02 03 04 | 05 | 09 | 01`.

use std::ops::Range;

use bytes::Bytes;

use crate::raft::encoding::{
    entry_bytes, put_entry, put_maybe_log_id, put_vote, read_bool, read_entry, read_maybe_log_id,
    read_vote,
};
use crate::raft::types::{Entry, LogId, Vote};
use crate::util::coding::{Cursor, put_varint};
use crate::wal::Kind;

pub(super) const ENTRIES: Kind = Kind(16);
pub(super) const STATE: Kind = Kind(17);
pub(super) const TRUNCATE: Kind = Kind(18);
pub(super) const FORGET: Kind = Kind(19);

/// A record takes no further entry beyond this: one that is read for a single entry is not large. An entry that is larger
/// has a record of its own.
const RECORD_BYTES_MAX: usize = 256 << 10;

/// Nor beyond so many, which is how many are read at once for the state machine.
pub(super) const RECORD_ENTRIES_MAX: usize = 256;

/// What is kept of a group besides its entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct HardState {
    pub(super) vote: Option<Vote>,
    /// The last entry known to be committed; only a hint, and not synced.
    pub(super) committed: Option<LogId>,
    /// The last entry that was purged.
    pub(super) purged: Option<LogId>,
    /// The generation of the group's engine.
    pub(super) generation: u64,
}

/// A record, decoded.
#[derive(Debug, PartialEq)]
pub(super) enum Record {
    Entries(Vec<Entry>),
    /// With the indexes of the entries there are.
    State(HardState, Range<u64>),
    Truncate(u64),
    Forget,
}

/// Entries as records have them: each part with its bytes.
pub(super) fn encode_entries(entries: &[Entry]) -> Vec<(&[Entry], Vec<u8>)> {
    let mut records = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let (part, beyond) = rest.split_at(fitting(rest));
        let mut body = Vec::with_capacity(part.iter().map(entry_bytes).sum());
        for entry in part {
            put_entry(&mut body, entry);
        }
        records.push((part, body));
        rest = beyond;
    }
    records
}

/// How many of `entries` go into one record: at least one.
fn fitting(entries: &[Entry]) -> usize {
    let mut bytes = 0;
    let fits = |entry: &&Entry| {
        bytes += entry_bytes(entry);
        bytes <= RECORD_BYTES_MAX
    };
    entries.iter().take(RECORD_ENTRIES_MAX).take_while(fits).count().max(1)
}

pub(super) fn encode_state(state: &HardState, indexes: &Range<u64>) -> Vec<u8> {
    let HardState { vote, committed, purged, generation } = state;
    let mut body = Vec::new();
    body.push(vote.is_some().into());
    if let Some(vote) = vote {
        put_vote(&mut body, vote);
    }
    put_maybe_log_id(&mut body, committed.as_ref());
    put_maybe_log_id(&mut body, purged.as_ref());
    put_varint(&mut body, indexes.start);
    put_varint(&mut body, indexes.end);
    put_varint(&mut body, *generation);
    body
}

pub(super) fn encode_truncate(from: u64) -> Vec<u8> {
    let mut body = Vec::new();
    put_varint(&mut body, from);
    body
}

/// The record of this kind with this body, or what is wrong with it.
pub(super) fn decode(kind: Kind, body: &Bytes) -> Result<Record, String> {
    match kind {
        ENTRIES => decode_entries(body).map(Record::Entries),
        STATE => decode_state(body).ok_or("state"),
        TRUNCATE => decode_truncate(body).map(Record::Truncate).ok_or("truncation"),
        FORGET => body.is_empty().then_some(Record::Forget).ok_or("removal of a group"),
        Kind(kind) => {
            return Err(format!("a record of kind {kind}, which this program does not know"));
        }
    }
    .map_err(|what| format!("{} bytes that are no record of a {what}", body.len()))
}

pub(super) fn decode_entries(body: &Bytes) -> Result<Vec<Entry>, &'static str> {
    let mut cursor = Cursor::new(body);
    let mut entries: Vec<Entry> = Vec::new();
    while !cursor.is_empty() {
        let entry = read_entry(body, &mut cursor).ok_or("row of entries")?;
        let follows = |last: &Entry| last.log_id.index.checked_add(1) == Some(entry.log_id.index);
        if !entries.last().is_none_or(follows) || entry.log_id.index == u64::MAX {
            return Err("row of entries that follow each other");
        }
        entries.push(entry);
    }
    if entries.is_empty() { Err("row of entries") } else { Ok(entries) }
}

fn decode_state(body: &[u8]) -> Option<Record> {
    let mut cursor = Cursor::new(body);
    let vote = if read_bool(&mut cursor)? { Some(read_vote(&mut cursor)?) } else { None };
    let committed = read_maybe_log_id(&mut cursor)?;
    let purged = read_maybe_log_id(&mut cursor)?;
    let indexes = cursor.varint()?..cursor.varint()?;
    let generation = cursor.varint()?;
    let begins = |purged: LogId| purged.index.checked_add(1) == Some(indexes.start);
    let sound = cursor.is_empty() && indexes.start <= indexes.end && purged.is_none_or(begins);
    sound.then_some(Record::State(HardState { vote, committed, purged, generation }, indexes))
}

fn decode_truncate(body: &[u8]) -> Option<u64> {
    let mut cursor = Cursor::new(body);
    let from = cursor.varint()?;
    cursor.is_empty().then_some(from)
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;
    use openraft::entry::RaftEntry as _;
    use openraft::vote::RaftLeaderId as _;
    use proptest::prelude::*;

    use super::*;
    use crate::command::Proposal;
    use crate::raft::types::LeaderId;

    fn id(term: u64, index: u64) -> LogId {
        LogId { leader_id: LeaderId::new(term, 3), index }
    }

    fn row(first: u64, lengths: &[usize]) -> Vec<Entry> {
        let value = |&length: &usize| Proposal::from_bytes(vec![7; length].into());
        let entry = |(index, length)| Entry::new(id(2, index), EntryPayload::Normal(value(length)));
        (first..).zip(lengths).map(entry).collect()
    }

    #[test]
    fn the_worked_example_of_the_format_is_what_is_written() {
        let vote = Vote { leader_id: LeaderId::new(2, 3), committed: true };
        let (vote, purged) = (Some(vote), Some(id(2, 4)));
        let state = HardState { vote, committed: None, purged, generation: 1 };
        assert_eq!(encode_state(&state, &(5..9)), [1, 2, 3, 1, 0, 1, 2, 3, 4, 5, 9, 1]);
    }

    #[test]
    fn entries_are_split_by_bytes_and_by_number() {
        let lengths = |entries: &[Entry]| -> Vec<_> {
            encode_entries(entries).iter().map(|(part, _)| part.len()).collect()
        };
        assert_eq!(lengths(&row(0, &[10; 600])), [256, 256, 88]);
        assert_eq!(lengths(&row(0, &[100_000; 5])), [2, 2, 1]);
        assert_eq!(lengths(&row(0, &[10, 1_000_000, 10, 10])), [1, 1, 2]);
        assert_eq!(lengths(&[]), [0; 0]);
    }

    #[test]
    fn rows_with_a_gap_are_refused() {
        let mut entries = row(4, &[1, 2, 3]);
        entries.remove(1);
        let mut body = Vec::new();
        for entry in &entries {
            put_entry(&mut body, entry);
        }
        assert!(decode(ENTRIES, &body.into()).is_err());
        assert!(decode(ENTRIES, &Bytes::new()).is_err());
    }

    #[test]
    fn states_that_contradict_themselves_are_refused() {
        let state = HardState { purged: Some(id(1, 4)), ..HardState::default() };
        let sound =
            |state: &HardState, indexes| decode(STATE, &encode_state(state, &indexes).into());
        assert!(sound(&state, 5..5).is_ok());
        assert!(sound(&state, 4..5).is_err(), "the log begins behind what was purged");
        #[expect(clippy::reversed_empty_ranges, reason = "that is what is refused")]
        let backwards = 6..5;
        assert!(sound(&HardState::default(), backwards).is_err());
    }

    proptest! {
        #[test]
        fn every_record_reads_back(
            first in 0u64..1 << 40, lengths in proptest::collection::vec(0usize..300, 1..20),
            terms in proptest::option::of(any::<(u64, bool)>()), generation: u64, from: u64, cut: prop::sample::Index,
        ) {
            let entries = row(first, &lengths);
            let (_, entries_body) = encode_entries(&entries).remove(0);
            let vote = terms.map(|(term, committed)| Vote { leader_id: LeaderId::new(term, 1), committed });
            let purged = first.checked_sub(1).map(|last| id(1, last));
            let state = HardState { vote, committed: vote.map(|_| id(7, from)), purged, generation };
            let indexes = first..first + 9;
            let records = [
                (ENTRIES, entries_body, Record::Entries(entries)),
                (STATE, encode_state(&state, &indexes), Record::State(state, indexes)),
                (TRUNCATE, encode_truncate(from), Record::Truncate(from)),
                (FORGET, Vec::new(), Record::Forget),
            ];
            for (kind, body, record) in records {
                let cut = Bytes::copy_from_slice(&body[..if body.is_empty() { 0 } else { cut.index(body.len()) }]);
                prop_assert_eq!(decode(kind, &body.into()), Ok(record));
                // A row of entries that ends with a whole one is a shorter row.
                prop_assert!(kind == ENTRIES || kind == FORGET || decode(kind, &cut).is_err());
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(kind: u8, body: Vec<u8>) {
            let body = Bytes::from(body);
            for kind in [kind, 16, 17, 18, 19] {
                if let Ok(Record::State(state, indexes)) = decode(Kind(kind), &body) {
                    let again = encode_state(&state, &indexes);
                    prop_assert_eq!(decode(STATE, &again.into()), Ok(Record::State(state, indexes)));
                }
            }
        }
    }
}

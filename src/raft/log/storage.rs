//! openraft's storage traits, as it calls them. What each call promises is in the head of the [module](super).

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds, RangeInclusive};

use futures::Stream;
use futures::stream;
use openraft::errors::LeaderChanged;
use openraft::storage::{
    IOFlushed, LeaderBoundedStreamError, LeaderBoundedStreamResult, LogState, RaftLogReader,
    RaftLogStorage,
};
use openraft::{OptionalSend, RaftTypeConfig};

use super::group::GroupLog;
use super::read::Limit;
use super::{durable_level, io_error};
use crate::raft::planted::{self, Bug};
use crate::raft::types::{Entry, LeaderId, LogId, TypeConfig, Vote};

/// The indexes of a range.
fn indexes(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<TypeConfig> for GroupLog {
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<Entry>>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.read(indexes(&range), Limit::NONE)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.state().hard.vote)
    }

    /// Nothing when `start` is not in the log: a replication whose leader is none any more may ask for what was purged or
    /// cut off, and an entry that does not follow its question would be worse than none.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let read = self.read(start..end, Limit::MESSAGE)?;
        let follows = read.first().is_some_and(|entry| entry.log_id.index == start);
        Ok(if follows { read } else { Vec::new() })
    }

    async fn entries_stream<R>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        stream::iter(self.steps(indexes(&range)))
    }

    async fn leader_bounded_stream<R>(
        &mut self,
        leader: LeaderId,
        range: R,
    ) -> impl Stream<Item = LeaderBoundedStreamResult<TypeConfig>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let log = self.clone();
        let steps = self.steps(indexes(&range));
        // As long as the leader is the same, nothing is cut off: an entry read before is still an entry of the log.
        let leads = move || match log.state().hard.vote {
            Some(vote) if vote.committed && vote.leader_id == leader => Ok(()),
            vote => Err(LeaderChanged::new(leader, vote)),
        };
        stream::iter(bounded(steps, leads))
    }

    /// The last entry of each leader: what openraft makes of it, and its own way to find it, say so, other than the text
    /// of the trait.
    async fn get_key_log_ids(&mut self, range: RangeInclusive<LogId>) -> io::Result<Vec<LogId>> {
        let (first, last) = (range.start().index, range.end().index);
        Ok(self.state().index.key_log_ids(first..last.saturating_add(1)))
    }
}

/// The entries of `steps` while `leads` says so; after its error there is none.
fn bounded(
    mut steps: impl Iterator<Item = io::Result<Entry>>,
    leads: impl Fn() -> Result<(), LeaderChanged<TypeConfig>>,
) -> impl Iterator<Item = LeaderBoundedStreamResult<TypeConfig>> {
    let mut changed = false;
    std::iter::from_fn(move || {
        if changed {
            return None;
        }
        let next = leads().and_then(|()| {
            let next = steps.next();
            // Once more: what was read may have been cut off by a new leader before it was.
            leads().map(|()| next)
        });
        match next {
            Ok(next) => Some(next?.map_err(LeaderBoundedStreamError::IoError)),
            Err(error) => {
                changed = true;
                Some(Err(LeaderBoundedStreamError::LeaderChanged(error)))
            }
        }
    })
}

impl RaftLogStorage<TypeConfig> for GroupLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.state();
        Ok(LogState { last_purged_log_id: state.hard.purged, last_log_id: state.last_log_id() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        if planted::is(Bug::UnsyncedVote) {
            return self.note(|hard| hard.vote = Some(*vote)).map(|_| ());
        }
        self.set_vote(*vote).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.note(|hard| hard.committed = committed).map(|_| ())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.committed())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = <TypeConfig as RaftTypeConfig>::Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let Some(last) = self.append_entries(entries.into_iter().collect())? else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        let flushed = move |outcome: crate::wal::Result<()>| {
            callback.io_completed(outcome.map_err(io_error));
        };
        self.shared.wal.on_level(last, durable_level(), flushed).map_err(io_error)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.truncate(last.map_or(0, |last| last.index.saturating_add(1))).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.purge_upto(log_id)
    }
}

//! The log of one group: writing, and what is known of it without reading.
//!
//! Every write is a record, appended to the wal under the group's lock, so that records and what is in memory have one
//! order. Nothing waits for the disk under it but what [`Wal::append`](crate::wal::Wal::append) itself waits for (head of the
//! [module](super)). Whoever needs a record on stable storage waits for it after the lock, by callback.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::index::Index;
use super::record::{
    ENTRIES, FORGET, HardState, STATE, TRUNCATE, encode_entries, encode_state, encode_truncate,
};
use super::tail::Tail;
use super::{Shared, durable_level, io_error};
use crate::raft::types::{Entry, GroupId, LogId, Vote};
use crate::wal::{self, Kind, Level, Owner, Position};

/// The log of one group. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct GroupLog {
    pub(super) shared: Arc<Shared>,
    pub(super) group: Arc<Group>,
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) id: GroupId,
    pub(super) state: Mutex<GroupState>,
    /// Bytes of the tail, to be read without the lock.
    pub(super) cached_bytes: AtomicUsize,
}

/// What is known of a group. Guarded by [`Group::state`].
#[derive(Debug, Default)]
pub(super) struct GroupState {
    pub(super) hard: HardState,
    pub(super) index: Index,
    pub(super) tail: Tail,
    /// The newest state record; there is one as soon as `hard` is not the default.
    pub(super) state_at: Option<Position>,
    /// The newest record.
    pub(super) last: Option<Position>,
    /// The group is gone. Nothing is written any more.
    pub(super) forgotten: bool,
}

impl GroupState {
    /// The first position that is needed.
    pub(super) fn needed(&self) -> Option<Position> {
        self.index.oldest().into_iter().chain(self.state_at).min()
    }

    pub(super) fn last_log_id(&self) -> Option<LogId> {
        self.index.last_log_id().or(self.hard.purged)
    }

    pub(super) fn is_pristine(&self) -> bool {
        let HardState { vote, purged, .. } = &self.hard;
        vote.is_none() && purged.is_none() && self.index.is_empty()
    }
}

impl Group {
    pub(super) fn new(id: GroupId, state: GroupState) -> Arc<Self> {
        Arc::new(Self { id, state: Mutex::new(state), cached_bytes: AtomicUsize::new(0) })
    }

    pub(super) const fn owner(&self) -> Owner {
        Owner(self.id.0 as u64)
    }
}

impl Shared {
    /// Appends a record of `group`, whose lock is held.
    fn append(
        &self,
        group: &Group,
        state: &mut GroupState,
        kind: Kind,
        body: &[u8],
    ) -> io::Result<Position> {
        if state.forgotten {
            return Err(io::Error::other(format!("{} was removed from this node", group.id)));
        }
        let position = self.wal.append(group.owner(), kind, &[body]).map_err(io_error)?;
        state.last = Some(position);
        Ok(position)
    }

    /// Appends a state record, which replaces the one before, of a log with the entries `indexes`.
    fn append_state(
        &self,
        group: &Group,
        state: &mut GroupState,
        hard: HardState,
        indexes: Range<u64>,
    ) -> io::Result<Position> {
        let body = encode_state(&hard, &indexes);
        let position = self.append(group, state, STATE, &body)?;
        state.hard = hard;
        state.state_at = Some(position);
        Ok(position)
    }

    /// Lets go of what the group needs no more, once the state record at `position`, which says so, is on stable storage.
    /// Before that a crash would leave neither.
    fn release_after(
        self: &Arc<Self>,
        group: &Group,
        needed: Position,
        position: Position,
    ) -> io::Result<()> {
        let (owner, shared) = (group.owner(), Arc::downgrade(self));
        let release = move |outcome: wal::Result<()>| {
            if let (Ok(()), Some(shared)) = (outcome, shared.upgrade()) {
                shared.wal.release(owner, needed);
            }
        };
        self.wal.on_level(position, Level::Sync, release).map_err(io_error)
    }

    /// Returns once the record at `position`, and all before it, are on stable storage.
    async fn synced(&self, position: Position) -> io::Result<()> {
        if position < self.wal.reached(durable_level()) {
            return Ok(());
        }
        let (sender, outcome) = oneshot::channel();
        let callback = move |outcome| _ = sender.send(outcome);
        self.wal.on_level(position, durable_level(), callback).map_err(io_error)?;
        match outcome.await {
            Ok(outcome) => outcome.map_err(io_error),
            Err(_) => Err(io::Error::other("the log was closed")),
        }
    }

    /// Writes the state of groups without entries again, so that they hold no segment but the one that is being written.
    /// What fails is tried again after the next purge.
    fn renew_idle(self: &Arc<Self>) {
        let groups: Vec<_> = self.groups.read().values().cloned().collect();
        for group in groups {
            let mut state = group.state.lock();
            let idle = state.index.is_empty() && !state.forgotten;
            let old = |at: Position| at.segment() < self.wal.end().segment();
            if !idle || !state.state_at.is_some_and(old) {
                continue;
            }
            let (hard, indexes) = (state.hard.clone(), state.index.range());
            let Ok(renewed) = self.append_state(&group, &mut state, hard, indexes) else { return };
            drop(state);
            if self.release_after(&group, renewed, renewed).is_err() {
                return;
            }
        }
    }
}

impl GroupLog {
    /// The group.
    pub fn id(&self) -> GroupId {
        self.group.id
    }

    pub(super) fn state(&self) -> MutexGuard<'_, GroupState> {
        self.group.state.lock()
    }

    /// Whether the group has never voted, has no entry and has purged none.
    pub fn is_pristine(&self) -> bool {
        self.state().is_pristine()
    }

    /// Returns once every entry up to `index` is on stable storage here. The state machine waits for it before it applies,
    /// so that a flush of an engine is never ahead of the log.
    ///
    /// # Errors
    ///
    /// When the entries never will be, or there is no entry `index` yet.
    pub async fn durable(&self, index: u64) -> io::Result<()> {
        let position = {
            let state = self.state();
            if index < state.index.first() {
                // Purged: it was in an engine or a snapshot before.
                return Ok(());
            }
            state.index.position(index).ok_or_else(|| {
                let (group, end) = (self.group.id, state.index.end());
                let detail = format!("entry {index} of {group}: the log ends before {end}");
                io::Error::new(io::ErrorKind::InvalidInput, detail)
            })?
        };
        self.shared.synced(position).await
    }

    /// The last entry that is purged, for simulations.
    #[cfg(test)]
    pub(in crate::raft) fn purged(&self) -> Option<LogId> {
        self.state().hard.purged
    }

    /// Bytes of the records that hold its entries, if these go back to the first one; `None` once any was purged.
    pub fn bytes_from_the_beginning(&self) -> Option<u64> {
        let state = self.state();
        state.hard.purged.is_none().then(|| state.index.bytes())
    }

    /// The generation of the group's engine; 0 until one was set.
    pub fn generation(&self) -> u64 {
        self.state().hard.generation
    }

    /// Sets the generation of the group's engine, durably.
    pub async fn set_generation(&self, generation: u64) -> io::Result<()> {
        self.change(|hard| hard.generation = generation).await
    }

    pub(super) async fn set_vote(&self, vote: Vote) -> io::Result<()> {
        self.change(|hard| hard.vote = Some(vote)).await
    }

    /// Changes the hard state, durably.
    async fn change(&self, change: impl FnOnce(&mut HardState)) -> io::Result<()> {
        let position = self.note(change)?;
        self.shared.synced(position).await
    }

    /// Changes the hard state; a crash may take the change back.
    pub(super) fn note(&self, change: impl FnOnce(&mut HardState)) -> io::Result<Position> {
        let mut state = self.state();
        let mut hard = state.hard.clone();
        change(&mut hard);
        let indexes = state.index.range();
        self.shared.append_state(&self.group, &mut state, hard, indexes)
    }

    /// The last entry known to be committed, of those that are in the log.
    pub(super) fn committed(&self) -> Option<LogId> {
        let state = self.state();
        let (committed, last) = (state.hard.committed?, state.last_log_id()?);
        Some(if committed.index > last.index { last } else { committed })
    }

    /// Appends `entries`; they can be read when this returns. Returns the last record of the group, if it has any: what is
    /// durable when that is. When the disk fills up on the way, what found its place before stays.
    pub(super) fn append_entries(&self, entries: Vec<Entry>) -> io::Result<Option<Position>> {
        check_row(&entries)?;
        let records = encode_entries(&entries);
        let mut state = self.state();
        let mut outcome = entries
            .first()
            .map_or(Ok(()), |first| self.make_room_at(&mut state, first.log_id.index));
        let mut taken = 0;
        for (part, body) in &records {
            let appended =
                outcome.and_then(|()| self.shared.append(&self.group, &mut state, ENTRIES, body));
            match appended {
                Ok(position) => {
                    let ids = part.iter().map(|entry| entry.log_id);
                    state.index.append(position, body.len() as u64, ids);
                    taken += part.len();
                    outcome = Ok(());
                }
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        drop(records);
        entries.into_iter().take(taken).for_each(|entry| state.tail.push(entry));
        let last = state.last;
        self.shared.count_tail(&self.group, &state);
        drop(state);
        self.shared.evict();
        outcome.map(|()| last)
    }

    /// Sees to it that the next entry may be `first`. Only a log that never had a purge may begin anywhere.
    fn make_room_at(&self, state: &mut GroupState, first: u64) -> io::Result<()> {
        let end = state.index.end();
        if first == end {
            return Ok(());
        }
        if first < end || !state.index.is_empty() || state.hard.purged.is_some() {
            let group = self.group.id;
            let detail =
                format!("entry {first} of {group} cannot follow a log that ends before {end}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, detail));
        }
        let hard = state.hard.clone();
        self.shared.append_state(&self.group, state, hard, first..first)?;
        state.index = Index::beginning_at(first);
        Ok(())
    }

    /// Cuts off the entries from `from` on, durably.
    pub(super) async fn truncate(&self, from: u64) -> io::Result<()> {
        let position = {
            let mut state = self.state();
            let from = from.max(state.index.first());
            if from >= state.index.end() {
                return Ok(());
            }
            let body = encode_truncate(from);
            let position = self.shared.append(&self.group, &mut state, TRUNCATE, &body)?;
            state.index.truncate(from);
            state.tail.truncate(from);
            self.shared.count_tail(&self.group, &state);
            position
        };
        self.shared.synced(position).await
    }

    /// Removes the entries up to `purged`, which may be beyond the last: then the log goes on behind it. Not waited for.
    pub(super) fn purge_upto(&self, purged: LogId) -> io::Result<()> {
        let (needed, position) = {
            let mut state = self.state();
            if state.hard.purged.is_some_and(|before| before.index >= purged.index) {
                return Ok(());
            }
            let first = purged.index.saturating_add(1);
            let indexes = first..state.index.end().max(first);
            let hard = HardState { purged: Some(purged), ..state.hard.clone() };
            let position = self.shared.append_state(&self.group, &mut state, hard, indexes)?;
            state.index.purge(first);
            state.tail.purge(first);
            self.shared.count_tail(&self.group, &state);
            (state.needed().unwrap_or(position), position)
        };
        self.shared.release_after(&self.group, needed, position)?;
        self.shared.renew_idle();
        Ok(())
    }

    /// Removes the group, durably: nothing of it is found when the log is opened again.
    pub(super) async fn forget(&self) -> io::Result<()> {
        let position = {
            let mut state = self.state();
            if state.forgotten || state.last.is_none() {
                state.forgotten = true;
                return Ok(());
            }
            let position = self.shared.append(&self.group, &mut state, FORGET, &[])?;
            *state = GroupState { forgotten: true, ..GroupState::default() };
            self.shared.count_tail(&self.group, &state);
            position
        };
        let beyond = Position::from_u64(position.as_u64() + 1);
        self.shared.release_after(&self.group, beyond, position)?;
        self.shared.synced(position).await
    }
}

/// Entries of one append follow each other.
fn check_row(entries: &[Entry]) -> io::Result<()> {
    let follow = |pair: &[Entry]| pair[0].log_id.index.checked_add(1) == Some(pair[1].log_id.index);
    if entries.windows(2).all(follow) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "entries with a gap between their indexes"))
}

impl Shared {
    /// The tail of `group` has changed.
    pub(super) fn count_tail(&self, group: &Group, state: &GroupState) {
        let bytes = state.tail.bytes();
        let before = group.cached_bytes.swap(bytes, Ordering::Relaxed);
        // Wrapping both ways adds up: the sum is never negative once all have counted.
        self.cached_bytes.fetch_add(bytes.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Lets go of entries in memory until all together fit: the oldest of the group that has most.
    pub(super) fn evict(&self) {
        loop {
            let cached = self.cached_bytes.load(Ordering::Relaxed);
            let Some(above) = cached.checked_sub(self.options.cache_bytes).filter(|&n| n > 0)
            else {
                return;
            };
            let cached_bytes = |group: &&Arc<Group>| group.cached_bytes.load(Ordering::Relaxed);
            let fullest = self.groups.read().values().max_by_key(cached_bytes).cloned();
            let Some(group) = fullest.filter(|group| cached_bytes(&group) > 0) else { return };
            let mut state = group.state.lock();
            state.tail.evict(above);
            self.count_tail(&group, &state);
        }
    }
}

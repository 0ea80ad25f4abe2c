//! How records get to the disk: leaders and followers, one write and one sync for all who wait.
//!
//! # The problem
//!
//! Many threads want their record on stable storage. A sync takes as long for one as for a thousand, so while one runs,
//! the others should gather for the next. A thread alone should find itself without any hand-over. Writes without a
//! sync should not wait for the syncs of others.
//!
//! # The protocol
//!
//! There are two **turns**, one to write and one to sync, each held by at most one thread, its **leader**. Taking a
//! turn fixes its **target**: the end of the buffer for a write, the end of what is written for a sync. The leader
//! works without the lock, then moves `written` or `synced` to the target. Whoever needs a position:
//!
//! 1. returns, if it has been reached;
//! 2. waits, if the turn is taken: in the **group** of that turn if its target covers the position, else in the next;
//! 3. else takes the turn. A leader of a sync reserves it first, waits a moment for those whom the last sync has
//!    served, and sees to it that all that have gathered are written.
//!
//! When a turn ends, its whole group is woken, and one of the next group, which finds the turn free and takes it, for
//! its group.
//!
//! # Why nobody waits for ever
//!
//! * The group of a turn is fixed as a parity: taking the turn flips it, so those who waited as "next" *are* the group
//!   of whoever takes the turn next, may it be the one who was woken or a newcomer. The end of that turn wakes them
//!   all; one whose position was not covered after all (it was not yet written) begins again at 1.
//! * The one woken of the next group waits again only if the turn is taken, and then in that turn's group.
//! * A leader of a sync may wait for the turn to write; a writer never waits for a sync.
//! * A failure poisons the log and wakes everybody; so does a leader that panics.
//!
//! # Why an acknowledgement is true
//!
//! * Only the write leader takes chunks out of the buffer, so writes are in order and `written` has no hole.
//! * A sync goes through all segments written to since they were synced, oldest first, before `synced` moves. What is
//!   written meanwhile lies beyond the target and keeps its segment dirty.
//! * A failed write or sync moves nothing, and no turn begins after it: `poison` is set under the lock that turns are
//!   taken under. Those that run at the same time may end well; what they have reached is reached.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::{Error, Result};
use super::segment::{SEGMENT_HEADER_BYTES, Segment};
use super::state::{Chunk, Shared, State};
use super::sync::{Condvar, MutexGuard};
use super::{Background, Level, Position};

/// How long a leader waits for others: this part of what the last sync took, and no longer than that.
const GATHER_FRACTION: u32 = 8;
const GATHER_MAX: Duration = Duration::from_millis(1);

/// Whether somebody leads, and up to where. Guarded by `state`.
#[derive(Debug, Default)]
pub(super) struct Turn {
    target: Option<Position>,
    /// Which half of the [`Turnstile`] is the group of the present turn, or was of the last.
    parity: usize,
    /// Requests that joined while it ran.
    joined: u64,
}

/// Where followers wait: by parity of the turn that serves them.
#[derive(Debug, Default)]
pub(super) struct Turnstile {
    groups: [Condvar; 2],
}

impl Turn {
    /// Keeps others from leading; serves nobody yet, so whoever comes joins the group of the turn that will be taken.
    fn reserve(&mut self) {
        debug_assert!(self.target.is_none(), "one leader at a time");
        self.target = Some(Position::BEGINNING);
    }

    /// Begins the turn, which is free or reserved by the caller.
    fn take(&mut self, target: Position) {
        debug_assert!(self.target.is_none_or(|at| at == Position::BEGINNING), "one leader");
        self.target = Some(target);
        self.parity ^= 1;
        self.joined = 0;
    }

    fn serves(&self, position: Position) -> bool {
        self.target.is_some_and(|target| position < target)
    }

    const fn is_taken(&self) -> bool {
        self.target.is_some()
    }
}

impl Turnstile {
    /// Waits for the turn that serves `position` to end, or for a call to lead the next one.
    fn wait(
        &self,
        state: &mut MutexGuard<'_, State>,
        turn: impl Fn(&State) -> &Turn,
        position: Position,
    ) {
        let turn = turn(state);
        let group = if turn.serves(position) { turn.parity } else { turn.parity ^ 1 };
        self.groups[group].wait(state);
    }

    fn end(&self, turn: &mut Turn) {
        turn.target = None;
        self.groups[turn.parity].notify_all();
        self.groups[turn.parity ^ 1].notify_one();
    }

    pub(super) fn wake_all(&self) {
        for group in &self.groups {
            group.notify_all();
        }
    }
}

impl State {
    /// Notes that somebody waits for a sync.
    pub(super) fn count_request(&mut self, position: Position, level: Level) {
        if level == Level::Buffered {
            return;
        }
        self.sync_asked = Some(self.end.segment);
        if self.synced > position || self.synced == self.end {
            return;
        }
        if self.syncing.serves(position) {
            self.syncing.joined += 1;
        } else {
            self.sync_requests += 1;
        }
    }
}

impl Shared {
    pub(super) fn commit(&self, position: Position, level: Level) -> Result<()> {
        let mut state = self.state.lock();
        if position >= state.end {
            let end = state.end;
            return Err(Error::Invalid(format!(
                "position {position} was not given out; the log ends at {end}"
            )));
        }
        state.count_request(position, level);
        self.reach(&mut state, position, level)
    }

    pub(super) fn barrier(&self, level: Level) -> Result<()> {
        let mut state = self.state.lock();
        let last = state.last;
        state.count_request(last, level);
        self.reach(&mut state, last, level)
    }

    /// Returns once the record at `position` has reached `level`.
    pub(super) fn reach(
        &self,
        state: &mut MutexGuard<'_, State>,
        position: Position,
        level: Level,
    ) -> Result<()> {
        match level {
            Level::Buffered => self.write_through(state, position),
            Level::Sync => self.sync_through(state, position),
        }
    }

    /// Returns once the record at `position` is written.
    pub(super) fn write_through(
        &self,
        state: &mut MutexGuard<'_, State>,
        position: Position,
    ) -> Result<()> {
        while state.written <= position && state.written < state.end {
            state.check_alive()?;
            if state.writing.is_taken() {
                self.writes.wait(state, |state| &state.writing, position);
            } else {
                self.write_buffer(state)?;
            }
        }
        Ok(())
    }

    /// Returns once the record at `position` is on stable storage.
    fn sync_through(&self, state: &mut MutexGuard<'_, State>, position: Position) -> Result<()> {
        while state.synced <= position && state.synced < state.end {
            state.check_alive()?;
            if state.syncing.is_taken() {
                self.syncs.wait(state, |state| &state.syncing, position);
                continue;
            }
            state.syncing.reserve();
            self.gather(state);
            let last = state.last;
            let written = self.write_through(state, last).and_then(|()| state.check_alive());
            if let Err(error) = written {
                state.syncing.target = None;
                return Err(error);
            }
            let target = state.written;
            self.sync_files(state, target)?;
        }
        Ok(())
    }

    /// Gives those whom the last sync has served a moment to come back with their next record. Without it two halves
    /// take turns, and every commit waits for two syncs. Whoever is alone does not wait.
    fn gather(&self, state: &mut MutexGuard<'_, State>) {
        if self.options.background == Background::Caller {
            return;
        }
        let patience = (state.last_sync / GATHER_FRACTION).min(GATHER_MAX);
        let begin = Instant::now();
        while state.sync_requests < state.peers && begin.elapsed() < patience {
            MutexGuard::unlocked(state, std::thread::yield_now);
        }
    }

    /// Returns once everything before `target`, the beginning of a segment, is on stable storage. Does not wait for the
    /// rest.
    pub(super) fn sync_segments_before(
        &self,
        state: &mut MutexGuard<'_, State>,
        target: Position,
    ) -> Result<()> {
        while state.synced < target {
            state.check_alive()?;
            let last = Position::new(target.segment, 0);
            if state.syncing.is_taken() {
                self.syncs.wait(state, |state| &state.syncing, last);
            } else if state.written < target {
                self.write_through(state, last)?;
            } else {
                self.sync_files(state, target)?;
            }
        }
        Ok(())
    }

    /// Leads a write of all that is buffered. The turn is free.
    fn write_buffer(&self, state: &mut MutexGuard<'_, State>) -> Result<()> {
        let target = state.end;
        let chunks = std::mem::take(&mut state.chunks);
        state.writing.take(target);
        let written = MutexGuard::unlocked(state, || self.guarded(|| write(&chunks)));
        self.writes.end(&mut state.writing);
        match written {
            Ok(()) => {
                state.written = target;
                state.counts.writes += chunks.len() as u64;
                state.recycle(chunks);
                self.wake_callbacks(state);
                Ok(())
            }
            Err(error) => Err(self.poison(state, error)),
        }
    }

    /// Leads a sync of everything before `target`, which is written. The turn is free, or reserved by the caller.
    fn sync_files(&self, state: &mut MutexGuard<'_, State>, target: Position) -> Result<()> {
        debug_assert!(target <= state.written, "only what is written can be synced");
        let whole =
            |segment: &Segment| Position::new(segment.number, SEGMENT_HEADER_BYTES) < target;
        let dirty: Vec<_> = state.dirty.iter().filter(|segment| whole(segment)).cloned().collect();
        state.syncing.take(target);
        let requests = std::mem::take(&mut state.sync_requests);
        let begin = Instant::now();
        let synced = MutexGuard::unlocked(state, || self.guarded(|| sync(&dirty)));
        state.last_sync = begin.elapsed();
        let group = requests + state.syncing.joined;
        state.peers = group + state.sync_requests;
        self.syncs.end(&mut state.syncing);
        match synced {
            Ok(()) => {
                state.synced = state.synced.max(target);
                let clean = state.written <= target;
                state.dirty.retain(|segment| {
                    segment.number > target.segment || (segment.number == target.segment && !clean)
                });
                state.counts.sync_group.observe(group);
                let micros = state.last_sync.as_nanos().div_ceil(1_000);
                state.counts.sync_micros.observe(u64::try_from(micros).unwrap_or(u64::MAX));
                self.wake_callbacks(state);
                Ok(())
            }
            Err(error) => Err(self.poison(state, error)),
        }
    }

    /// Ends all writing. Returns the error that everybody gets, which is that of the first failure.
    pub(super) fn poison(&self, state: &mut State, error: Error) -> Error {
        let poison = state.poison.get_or_insert_with(|| error.into_poison()).clone();
        self.writes.wake_all();
        self.syncs.wake_all();
        self.callbacks_due.notify_all();
        self.callbacks_called.notify_all();
        self.files_due.notify_all();
        poison
    }

    /// Runs what a leader does without the lock. A panic in it must not leave the turn taken and the followers asleep.
    fn guarded<T>(&self, work: impl FnOnce() -> T) -> T {
        let guard = PoisonOnPanic(self);
        let result = work();
        std::mem::forget(guard);
        result
    }
}

/// Poisons the log when it is dropped, that is, when a panic passes by.
pub(super) struct PoisonOnPanic<'a>(pub(super) &'a Shared);

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        let cause = std::io::Error::other("a thread panicked while it wrote to the log");
        let error = Error::io("write", &self.0.dir, cause);
        let mut state = self.0.state.lock();
        self.0.poison(&mut state, error);
    }
}

fn write(chunks: &[Chunk]) -> Result<()> {
    for Chunk { segment, start, bytes } in chunks {
        let written = segment.file.write_at(bytes, u64::from(*start));
        written.map_err(|error| Error::io("write", &segment.path, error))?;
    }
    Ok(())
}

fn sync(segments: &[Arc<Segment>]) -> Result<()> {
    for segment in segments {
        let synced = segment.file.sync_data();
        synced.map_err(|error| Error::io("sync", &segment.path, error))?;
    }
    Ok(())
}
